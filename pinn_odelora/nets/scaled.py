"""A network in the units of a problem:  N(x) = a + s · N̂((x - b) / h),  inputs and outputs of N̂ of order one.

What is added to a network that was made for quantities of order one belongs to it: it is copied, saved and adapted with
it, and whoever evaluates it, at the source or at the target, sees the user's units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.scaling.find import declared_alone, find, input_names
from pinn_odelora.units import NATURAL, Scales, Unit

ROWS = "rows_"
"""The beginning of the names of the buffers with the sizes of residuals."""
PARTS = ("inputs", "outputs", "fields")
"""What has a shift and a size."""


class Scaled(nn.Module):
    """N(x) = a + s · net((x - b) / h), (N, inputs) -> (N, outputs).

    Shifts and sizes are buffers, float64 unless converted, and so are the units of the fields and the sizes of the
    residuals of each term, ``rows_<term>``: all of them are in the ``state_dict``.

    Args:
        net: N̂; its linear layers are named ``net.<name>``.
        scales: the units.
    """

    def __init__(self, net: nn.Module, scales: Scales) -> None:
        super().__init__()
        self.net = net
        self.names = {"inputs": (*scales.inputs,), "fields": (*scales.fields,)}
        self.origins = scales.origins
        for part in PARTS:
            shift, size = zip(*getattr(scales, part).values(), strict=True)
            self.register_buffer(f"{part}_shift", torch.tensor(shift, dtype=torch.float64))
            self.register_buffer(f"{part}_size", torch.tensor(size, dtype=torch.float64))
        for name, sizes in scales.rows.items():
            self.register_buffer(_buffer(name), torch.tensor(sizes, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """N(x)."""
        return self.net((x - self.inputs_shift) / self.inputs_size) * self.outputs_size + self.outputs_shift

    @property
    def scales(self) -> Scales:
        """The units, as they are in the buffers."""
        units = lambda part, names: dict(zip(names, self._units(part), strict=True))
        inputs, fields, rows = self.names["inputs"], self.names["fields"], _rows(self._buffers)
        return Scales(units("inputs", inputs), units("outputs", fields), units("fields", fields), rows, self.origins)

    def _units(self, part: str) -> Iterable[Unit]:
        pairs = zip(getattr(self, f"{part}_shift").tolist(), getattr(self, f"{part}_size").tolist(), strict=True)
        return [Unit(*pair) for pair in pairs]

    def row_sizes(self, term: str) -> Tensor | None:
        """The sizes of the components of the residual of a term, (components,) or (1,); None if it is not scaled."""
        return self._buffers.get(_buffer(term))

    def of_fields(self, u: Tensor) -> Tensor:
        """The fields in their units, (N, fields)."""
        return (u - self.fields_shift) / self.fields_size


def field_units(net: nn.Module, fields: Iterable[str]) -> dict[str, Unit]:
    """The unit of each field by a network; natural where it has none."""
    scaled = units_inside(net)
    return dict.fromkeys(fields, NATURAL) if scaled is None else dict(scaled.scales.fields)


def in_field_units(net: nn.Module, u: Tensor) -> Tensor:
    """(u_j - c_j) / s_j with the units of the fields that a network has, (N, fields); u itself without any.

    Relative errors are of fields in their units,  ‖(u - u*) / s‖ / ‖(u* - c) / s‖ , so that neither a field that is
    large in the user's units nor one far from zero hides the others, or its own variation.
    """
    scaled = units_inside(net)
    return u if scaled is None else scaled.of_fields(u)


def in_own_units(name: str, term: Term, net: Scaled) -> Term:
    """A term of the loss with each component of its residual divided by its size.

    Raises:
        InputError: by the residual, if it has another number of components than the network has sizes of.
    """
    if net.row_sizes(name) is None:
        return term

    def residual(f: Field) -> Tensor:
        r, sizes = term.rows(f), net.row_sizes(name)
        if len(sizes) not in (1, r.shape[1]):
            raise InputError(
                f"The residual of {name} has {r.shape[1]} components, but the network was scaled for {len(sizes)}; "
                "pretrain it for this problem, or give one without scales."
            )
        return r / sizes.to(r.device)

    return term._replace(residual=residual)


def terms_in_own_units(terms: Mapping[str, Term], net: nn.Module | None) -> dict[str, Term]:
    """Terms of the loss, in the units of a network where it has some."""
    scaled = units_inside(net)
    return {name: term if scaled is None else in_own_units(name, term, scaled) for name, term in terms.items()}


def units_inside(net: nn.Module | None) -> Scaled | None:
    """The part of a network that has units: itself, or inside a wrapper or a sum of networks; None without any."""
    return next((m for m in net.modules() if isinstance(m, Scaled)), None) if isinstance(net, nn.Module) else None


def _buffer(term: str) -> str:
    """The name of a term's buffer, which may have no dot: another one for each term."""
    return ROWS + term.replace("%", "%25").replace(".", "%2E")


def _rows(tensors: Mapping[str, Tensor | None]) -> dict[str, tuple[float, ...]]:
    """The sizes of residuals by term, from the buffers of a network among other tensors."""
    found = {name.removeprefix(ROWS): x for name, x in tensors.items() if name.startswith(ROWS)}
    return {name.replace("%2E", ".").replace("%25", "%"): (*x.tolist(),) for name, x in found.items()}


def in_units(net: nn.Module, problem: Problem, data: Term | None = None) -> nn.Module:
    """The network in the units that are found for a problem; itself where they are the user's own, or it has some.

    Args:
        net: made for inputs and outputs of order one.
        problem, data: as of ``find``.

    Raises:
        InputError: as ``find``.
    """
    if not isinstance(net, nn.Module) or units_inside(net) is not None or problem.scales == {}:
        return net
    return _wrapped(net, find(problem, data))


def in_declared_units(net: nn.Module, problem: Problem) -> nn.Module:
    """A network that was trained elsewhere, in the units that the problem declares; itself without any, or if it has
    some.

    Raises:
        InputError: as ``find``.
    """
    has = not problem.scales or units_inside(net) is not None
    return net if has else _wrapped(net, declared_alone(problem))


def in_units_of(net: nn.Module, problem: Problem, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network in the units that a file of weights has; in the declared ones where it has none.

    Args:
        net: as the configuration gives it.
        problem: what it solves.
        tensors: those of the file.

    Raises:
        InputError: as ``find``, and if the file has units of another number of fields.
    """
    if isinstance(net, Scaled):
        net = net.net
    tensors = units_in(tensors)
    if not tensors or units_inside(net) is not None:
        return in_declared_units(net, problem)
    if (n := len(tensors["fields_size"])) != len(problem.fields):
        raise InputError(
            f"The weights are those of a network of {n} fields, but the problem has {len(problem.fields)}, "
            f"{', '.join(problem.fields)}; give weights that fit, or none."
        )
    units = lambda part, names: dict(zip(names, map(Unit, *_pairs(tensors, part)), strict=True))
    inputs = [f"input_{i + 1}" for i in range(len(tensors["inputs_size"]))]
    if len(inputs) == problem.inputs:
        inputs = input_names(problem)
    scales = Scales(
        units("inputs", inputs), units("outputs", problem.fields), units("fields", problem.fields), _rows(tensors)
    )
    return Scaled(net, scales)


def kept_units(net: nn.Module, problem: Problem) -> str:
    """One sentence if a network has other units than the problem declares: weights mean their function in the units
    that they were trained in, and no others.

    Args:
        net: in the units of its weights.
        problem: what it solves.
    """
    scaled = units_inside(net)
    if scaled is None or not problem.scales:
        return ""
    own = scaled.scales
    rows = {name: Unit(0.0, max(own.rows.get(name, (1.0,)))) for name in problem.terms()}
    known = {**rows, **own.inputs, **own.fields}
    other = {name: unit for name, unit in problem.units().items() if name in known and not _same(unit, known[name])}
    if not other:
        return ""
    has, declared = (", ".join(f"{name} {units[name]}" for name in other) for units in (known, other))
    return (
        f"The weights keep the units that they were trained in ({has}), not those that the problem declares "
        f"({declared}); pretrain again for these."
    )


def _same(a: Unit, b: Unit) -> bool:
    """As far as numbers of 32 bits tell."""
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-6 * abs(b.size)) for x, y in zip(a, b, strict=True))


def own_name(net: nn.Module, name: str) -> str:
    """The name in the user's own network of a layer of it in units."""
    return name.removeprefix("net.") if isinstance(net, Scaled) else name


def units_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a network in units, without a prefix that all of its names have; none where there is none."""
    for name in tensors:
        if name.rpartition(".")[2] == "inputs_size":
            start = name.removesuffix("inputs_size")
            if all(f"{start}{part}_{kind}" in tensors for part in PARTS for kind in ("shift", "size")):
                return {key[len(start) :]: x for key, x in tensors.items() if key.startswith(start)}
    return {}


def _pairs(tensors: Mapping[str, Tensor], part: str) -> Sequence[list[float]]:
    return tensors[f"{part}_shift"].tolist(), tensors[f"{part}_size"].tolist()


def _wrapped(net: nn.Module, scales: Scales) -> nn.Module:
    if scales.natural:
        return net
    first = next(net.parameters(), torch.zeros(()))
    return Scaled(net, scales).to(first.device)


def inside(net: nn.Module) -> nn.Module:
    """The network that was made for quantities of order one."""
    return net.net if isinstance(net, Scaled) else net
