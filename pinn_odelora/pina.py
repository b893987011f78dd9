"""A PINA problem as a problem: its conditions are terms of the loss, their equations residuals.

    net = po.pretrain(po.pina.problem(Poisson()), model)            # model: of the solver, any torch module
    result = po.adapt(net, po.pina.problem(Another()), rank=8)

PINA's operators, ``grad``, ``div`` and ``laplacian``, call ``torch.autograd.grad``, which is answered as
``derivatives.gradients`` says. Unknown parameters of an ``InverseProblem`` are parameters of the same names, found from
conditions with ``input`` and ``target``. PINA is imported when ``problem`` is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.gradients import Derivatives, Gradients
from pinn_odelora.equation import field_names, taking
from pinn_odelora.equation import problem as equation
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box, Cloud, Region, Uniform
from pinn_odelora.geometry import Union as Faces
from pinn_odelora.points import Points

LETTERS = "xyztabcdefghijklmnopqrsvw"
"""Names of coordinates that have none, or whose own have several letters."""


def problem(problem: Any) -> Problem:
    """The problem of an instance of a ``pina.problem``.

    Coordinates, fields and terms have PINA's labels; a coordinate whose label has several letters has a letter of its
    own, and a condition ``data`` is ``condition_data``.

    Args:
        problem: its conditions have ``domain`` and ``equation``, ``input`` and ``equation``, or ``input`` and
            ``target``; ``solution`` is the reference, if it has one.

    Raises:
        InputError: for anything else than such a problem, and a condition of another kind.
    """
    for needed in ("conditions", "domains", "input_variables", "output_variables"):
        if not hasattr(problem, needed):
            raise InputError(f"The problem is a {type(problem).__name__} without {needed}; it must be one of PINA's.")
    labels, fields = _labels(problem, "input"), _labels(problem, "output")
    coords = _letters(labels, fields)
    unknown = dict(getattr(problem, "unknown_parameters", {}))
    terms = {
        _named(name, {*coords, *fields}): _term(name, condition, problem, coords, labels, fields, tuple(unknown))
        for name, condition in problem.conditions.items()
    }
    regions = [term.where for term in terms.values()]
    solution = getattr(problem, "solution", None)
    return equation(
        coords=coords,
        fields=fields,
        region=next((region for region in regions if region.interior), regions[0]),
        reference=None if solution is None else lambda p: _plain(solution(_labelled(p.rows(coords), labels))),
        scales={},  # the network is the user's own, in units of its own
        name=type(problem).__name__,
        **{name: parameter(value.item(), value.item()) for name, value in unknown.items()},
        **terms,
    )


def _named(name: str, taken: set[str]) -> str:
    """The name of a condition as that of a term, which ``data`` and names of coordinates and fields cannot have."""
    return f"condition_{name}" if name in {"data", *taken} else name


def _labels(problem: Any, side: str) -> list[str]:
    """Labels of the inputs or of the outputs; x, y, z, … and u, or u1, u2, …, where a problem of data has none."""
    if (known := getattr(problem, f"{side}_variables")) is not None:
        return [*known]
    given = [getattr(c, "input" if side == "input" else "target", None) for c in problem.conditions.values()]
    given = [x for x in given if isinstance(x, Tensor)]
    if not given:
        raise InputError(f"The problem has no {side}_variables, and no condition with {side}s that would tell them.")
    if labels := getattr(given[0], "labels", None):
        return [*labels]
    number = given[0].shape[-1]
    if side == "output":
        return [*field_names(number)]
    if number > len(LETTERS):
        raise InputError(f"The problem has {number} inputs without labels: give input_variables.")
    return [*LETTERS[:number]]


def _letters(labels: Sequence[str], fields: Sequence[str]) -> tuple[str, ...]:
    """One letter for each coordinate: its label, or the first that is free."""
    taken = {*labels, *fields}
    free = iter([letter for letter in LETTERS if letter not in taken])
    return tuple(label if len(label) == 1 else next(free) for label in labels)


def _labelled(rows: Tensor, labels: Sequence[str]) -> Tensor:
    from pina import LabelTensor

    return LabelTensor(rows, [*labels])


def _plain(x: Tensor) -> Tensor:
    return x.as_subclass(Tensor)


def _term(
    name: str,
    condition: Any,
    problem: Any,
    coords: tuple[str, ...],
    labels: Sequence[str],
    fields: Sequence[str],
    unknown: tuple[str, ...],
) -> Term:
    has = lambda what: getattr(condition, what, None) is not None
    rows = lambda given: _plain(given.extract(labels) if hasattr(given, "extract") else given).detach().double()
    if has("input") and not isinstance(condition.input, Tensor):
        kind = type(condition.input).__name__
        raise InputError(f"The input of condition {name} is a {kind}, not a tensor of points.")
    if has("input") and has("target"):
        points = Points.from_rows(coords, rows(condition.input))
        targets = _plain(condition.target).detach().double().reshape(points.number, -1)
        points = Points({**points, **{f"target{k}": targets[:, k : k + 1] for k in range(targets.shape[1])}})
        return Term(Cloud(points), partial(_missed, targets.shape[1]), measured=bool(unknown))
    if not has("equation") or not (has("input") or has("domain")):
        raise InputError(
            f"The condition {name} is a {type(condition).__name__}; possible are those with domain and equation, input "
            "and equation, or input and target."
        )
    where: Region
    if has("input"):
        where = Cloud(Points.from_rows(coords, rows(condition.input)))
    else:
        named = condition.domain
        where = _region(problem.domains[named] if isinstance(named, str) else named, labels, coords)
    return Term(where, taking(unknown, partial(_equation, condition.equation, labels, fields)))


def _missed(number: int, f: Field) -> Tensor:
    """The network's values minus the targets."""
    values = torch.cat([f.derivative(u, "") for u in f.fields[:number]], dim=1)
    return values - torch.cat([f.points[f"target{k}"] for k in range(number)], dim=1)


def _equation(posed: Any, labels: Sequence[str], fields: Sequence[str], f: Field, values: Mapping[str, Any]) -> Tensor:
    known = Derivatives(f)
    parameters = {name: torch.as_tensor(x, dtype=known.x.dtype).reshape(1) for name, x in values.items()}
    with Gradients([known]):
        found = posed.residual(_labelled(known.x, labels), _labelled(known.y, fields), parameters or None)
    return _plain(found).reshape(len(known.x), -1)


def _region(domain: Any, labels: Sequence[str], coords: tuple[str, ...]) -> Region:
    from pina.domain import CartesianDomain, Union

    if isinstance(domain, CartesianDomain):
        ends = {**{label: (float(x), float(x)) for label, x in domain.fixed.items()}, **domain.range}
        return Box(**{c: tuple(map(float, ends[label])) for c, label in zip(coords, labels, strict=True)})
    if isinstance(domain, Union):
        parts = [_region(part, labels, coords) for part in domain.geometries]
        if not any(part.interior for part in parts):
            return Faces(*parts)
    return Drawn(domain, labels, coords)


class Drawn:
    """Random points of another domain, drawn by PINA; it is taken to fill its dimensions.

    Args:
        domain: of PINA.
        labels: of the coordinates, in order.
        coords: their names here.
    """

    interior = True

    def __init__(self, domain: Any, labels: Sequence[str], coords: tuple[str, ...]) -> None:
        self.domain = domain
        self.labels = [*labels]
        self.coords = coords

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points, columns (n, 1), the same for the same ``uniform``; torch's generator is as it was afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(int(uniform(1, 1).item() * 2**52))
            rows = _plain(self.domain.sample(n, mode="random").extract(self.labels)).double()
            chosen = torch.randperm(len(rows))[:n]
        return Points.from_rows(self.coords, rows[chosen])
