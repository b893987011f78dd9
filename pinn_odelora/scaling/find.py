"""Units found from the problem: of coordinates from its regions, of fields from conditions, data and equation.

A network with inputs and outputs of order one is what initialisations, optimisers and step sizes are made for, and a
least-squares sum compares its residuals as they stand. Nondimensionalising by hand gives both (Wang, Sankaran, Wang and
Perdikaris, 2023, arXiv 2308.08468); here it is done by measuring sizes:

* a coordinate has the middle and the half-width of its range over the regions of all terms and the measured points.
  The random fields vary over this range, also where the coordinate stays as it is;
* a field has the size of the values that conditions prescribe, or that were measured, or that the equation asks for
  (``scaling.fields``);
* a component of a residual has its root mean square under random fields of these sizes. It is divided by it, which is
  as if it had the weight 1/size² besides its own.

Sizes between 0.1 and 10 count as one (``units``), and so do residuals between 0.01 and 100 where neither coordinates
nor fields are scaled: a problem of order one is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pinn_odelora.checks.ansatz import check_ansatz
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.scaling.fields import Fields
from pinn_odelora.scaling.trial import Trial, points_of
from pinn_odelora.units import NATURAL, TOLERATED, TOLERATED_ESTIMATE, Scales, Unit, rounded


def find(problem: Problem, data: Term | None = None) -> Scales:
    """The units of a problem; what ``problem.scales`` declares is taken as it is.

    Args:
        problem: at its source parameter, if it has one.
        data: the term of measured values, with columns ``measured_<field>``.

    Raises:
        InputError: if the scale of a coordinate is declared that is no input of the network, as of a periodic one; or
            the ansatz is wrong, see ``checks``.
    """
    if problem.conditions == "hard":
        check_ansatz(problem)
    declared = problem.units()
    ranges = _ranges(problem, declared, data)
    inputs = {name: declared.get(name) or _tolerated(unit) for name, unit in ranges.items()}
    trial = Trial(problem, [declared.get(name) or unit for name, unit in ranges.items()])
    found = Fields(problem, trial, declared, data).found()
    outputs = {name: x.output for name, x in found.items()}
    scaled = any(unit != NATURAL for unit in (*inputs.values(), *outputs.values()))
    typical = torch.tensor([x.typical for x in found.values()], dtype=torch.float64)
    rows = {name: (declared[name].size,) for name in problem.loss_terms() if name in declared}
    for name in problem.loss_terms():
        if name not in rows:
            sizes = _sizes(trial, name, typical, TOLERATED if scaled else TOLERATED_ESTIMATE)
            rows |= {name: sizes} if any(size != 1 for size in sizes) else {}
    told = {x.origin for name, x in found.items() if name not in declared and {x.output, x.field} != {NATURAL}}
    told |= {"region"} if any(unit != NATURAL and name not in declared for name, unit in inputs.items()) else set()
    told |= {"declared"} if declared else set()
    told |= {"equation"} if rows.keys() - declared.keys() else set()
    origins = tuple(x for x in ("declared", "region", "conditions", "data", "equation") if x in told)
    return Scales(inputs, outputs, {name: x.field for name, x in found.items()}, rows, origins)


def declared_alone(problem: Problem) -> Scales:
    """What ``problem.scales`` declares, and the user's own units for the rest: for a network trained elsewhere.

    Raises:
        InputError: as ``find``.
    """
    declared = problem.units()
    inputs = {name: declared.get(name, NATURAL) for name in _named(problem, declared)}
    fields = {name: declared.get(name, NATURAL) for name in problem.fields}
    rows = {name: (declared[name].size,) for name in problem.loss_terms() if name in declared}
    return Scales(inputs, fields, fields, rows, ("declared",) if declared else ())


def input_names(problem: Problem) -> list[str]:
    """The inputs of the network by the coordinate that they are equal to; the others by number."""
    p = points_of(problem.region)
    names: list[str] = []
    for i, column in enumerate(problem.embed(p).unbind(dim=1)):
        same = [name for name in problem.coords if name not in names and torch.equal(p[name][:, 0], column)]
        names.append(same[0] if same else f"input_{i + 1}")
    return names


def _named(problem: Problem, declared: Mapping[str, Unit]) -> list[str]:
    """The same, checked to have the coordinates that are declared."""
    names = input_names(problem)
    for name in declared:
        if name in problem.coords and name not in names:
            raise InputError(
                f"scales has {name}, but the network does not see that coordinate itself (it is periodic, or embedded "
                "otherwise), so it has no scale: leave it out."
            )
    return names


def _ranges(problem: Problem, declared: Mapping[str, Unit], data: Term | None) -> dict[str, Unit]:
    """Middle and half-width of each input of the network."""
    regions = [problem.region, *(term.where for term in problem.terms().values())]
    clouds = [points_of(region) for region in regions]
    if data is not None:
        clouds.append(points_of(data.where))
    columns = torch.cat([problem.embed(p).detach() for p in clouds]).unbind(dim=1)
    names = _named(problem, declared)
    return {name: _of_range(x) for name, x in zip(names, columns, strict=True)}


def _of_range(x: Tensor) -> Unit:
    """Middle and half-width of the range of values; of a single value, which has no width, one for the latter."""
    low, high = float(x.min()), float(x.max())
    middle, half = rounded((low + high) / 2), rounded((high - low) / 2)
    if half <= 1e-9 * abs(middle):
        return Unit(middle if abs(middle) > TOLERATED else 0.0, 1.0)
    return Unit(middle if abs(middle) > half / TOLERATED else 0.0, half)


def _tolerated(unit: Unit) -> Unit:
    """The unit of a coordinate with this range: natural where values and width are of order one."""
    return NATURAL if abs(unit.shift) + unit.size <= TOLERATED and unit.size >= 1 / TOLERATED else unit


def _sizes(trial: Trial, term: str, typical: Tensor, tolerated: float) -> tuple[float, ...]:
    """The sizes of the components of the residual of a term, each one where it counts as that or is not known."""
    found = trial.sizes(term, *typical.unbind(dim=1))
    off = lambda x: 0 < x < math.inf and not 1 / tolerated <= x <= tolerated
    return () if found is None else tuple(rounded(x) if off(x) else 1.0 for x in found.tolist())
