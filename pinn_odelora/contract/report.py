"""What holds of a problem, as a table; see ``check``."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pinn_odelora.checks import constants
from pinn_odelora.checks.ansatz import ENFORCED, left_of, seams, vanishing
from pinn_odelora.checks.evaluation import Trial, check_functions, check_reference, check_residual, evaluating, some
from pinn_odelora.checks.problem import check_problem
from pinn_odelora.contract.quantities import SEEN, generic_points, indifferent, left_at_reference, sought_by
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import SOURCE, Problem, Term
from pinn_odelora.geometry import Box, Union
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.scaling.find import find
from pinn_odelora.system import Solution, System

VANISHES = 1e-6
"""What a term may leave of its largest summand at the reference, and jets of derivatives by reverse mode."""
USUAL = (0.05, 20.0)
"""Sizes of coordinates and fields that a network of the usual kind takes as they are."""
HOLDS, NOTE, UNKNOWN, FAILS = "holds", "note", "unknown", "fails"
WORSE = (HOLDS, NOTE, UNKNOWN, FAILS)


class Row(NamedTuple):
    """One thing that was checked: ``what``, whether it ``holds``, ``fails``, is ``unknown`` or a ``note``, and why."""

    what: str
    verdict: str
    said: str


@dataclass(frozen=True)
class Checked:
    """What was found of a problem.

    Attributes:
        rows: one for each thing that was checked, the worst over conditions, source and target.
    """

    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing fails."""
        return all(row.verdict != FAILS for row in self.rows)

    def __str__(self) -> str:
        wide = max(len(row.what) for row in self.rows)
        return "\n".join(f"{row.what:{wide}s}  {row.verdict:7s}  {row.said}".rstrip() for row in self.rows)


def check(problem: Problem | type[Problem]) -> Checked:
    """Check a problem before anything is trained: at source and target, under each kind of conditions it supports.

    The reference must make every term vanish to 1e-6 of its largest summand (what a less accurate one leaves, up to
    √accuracy, is a note), and must not when the sign of any quantity in the equation is flipped; the ansatz must
    satisfy what it enforces for any network, may not switch the network off inside, and must be as periodic as the
    problem; no field may be free by a constant; everything must be finite, each parameter must change something, and
    derivatives by jets must be those of reverse mode. What needs a reference is ``unknown`` without one.

    Args:
        problem: a problem, or a class with a value for every parameter.

    Returns:
        The rows of a table, which ``print`` shows; ``holds`` tells whether none of them fails.

    Raises:
        InputError: if a class cannot be made without arguments, or what it declares does not fit together.
    """
    posed = problem() if inspect.isclass(problem) else problem
    found: dict[str, Row] = {}
    for kind in posed.supports:
        target = dataclasses.replace(posed, conditions=kind, weights={})
        for place, case in (("target", target), ("source", target.at_source())):
            for row in _rows(case):
                if row.verdict in (FAILS, UNKNOWN):
                    row = row._replace(said=f"{row.said} ({kind} conditions, {place})")
                if row.what not in found or WORSE.index(row.verdict) > WORSE.index(found[row.what].verdict):
                    found[row.what] = row
    for row in _parameters(posed):
        found[row.what] = row
    return Checked(tuple(found.values()))


def _rows(problem: Problem) -> Iterator[Row]:
    try:
        check_problem(problem)
        check_reference(problem)
    except InputError as refused:
        yield Row("evaluation", FAILS, str(refused).rstrip("."))
        return
    yield Row("evaluation", HOLDS, "residuals, ansatz and reference: shapes, finite values and gradients")
    yield _corners(problem)
    yield _constants(problem)
    yield from _reference(problem)
    if problem.conditions == "hard":
        yield from _ansatz(problem)
    yield from _sizes(problem)
    yield from _engines(problem)


def _corners(problem: Problem) -> Row:
    for name, term in problem.loss_terms().items():
        for part in term.where.parts if isinstance(term.where, Union) else (term.where,):
            if not (isinstance(part, Box) and 0 < len(part.bounds) <= 6):
                continue
            bounds = part.bounds
            ends = torch.tensor([*itertools.product(*([*map(float, pair)] for pair in bounds.values()))])
            p = Points.from_rows([*bounds], ends.to(torch.float64).unique(dim=0))
            p = Points(
                p | {f"n{c}": torch.full((p.number, 1), float(x), dtype=torch.float64) for c, x in part.normal.items()}
            )
            try:
                check_residual(name, term._replace(coupled=True), Trial(problem, next(iter(p.values()))), p)
            except InputError as refused:
                return Row("corners", NOTE, f"{str(refused).rstrip('.')}; no point drawn inside lies there")
    return Row("corners", HOLDS, "residuals are finite at the corners of boxes and their faces")


def _constants(problem: Problem) -> Row:
    if not (free := constants.free_constants(problem)):
        return Row("constants", HOLDS, "terms and ansatz see a constant that is added to a field")
    known = not problem.unknown and problem.reference(some(problem.region)) is not None
    return Row("constants", FAILS if known else NOTE, constants.said(free))


def _reference(problem: Problem) -> Iterator[Row]:
    p = some(problem.region).tracked(problem.coords)
    values = problem.reference(p)
    cannot = (
        "without a reference, signs and conditions of the equation cannot be checked"
        if values is None
        else "the reference is not differentiable, so it cannot be put into the equation"
    )
    if values is None or not values.requires_grad:
        yield Row("reference", UNKNOWN, cannot)
        return
    points = generic_points(problem)
    guessed = problem.role == SOURCE and problem.known_reference(p) is not None
    for name, term in problem.terms().items():
        with evaluating(f"The residual of {name}"):
            if (sought := sought_by(problem, name, points[name])) and not guessed:
                said = f"it reads {', '.join(sought)}, of which the reference does not tell the values"
                yield Row(f"{name} at the reference", UNKNOWN, said)
                continue
            left = left_at_reference(problem, name, points[name])
            verdict, said = _at_reference(problem, left)
            # A sign does not show where the reference itself leaves as much.
            enough = max(SEEN, 3 * left) if verdict == NOTE else SEEN
            blind = indifferent(problem, name, points[name], enough) if term.where.interior else []
        yield Row(f"{name} at the reference", verdict, said)
        if term.where.interior:
            missed = ", ".join(dict.fromkeys(f"{field}_{along}" if along else field for field, along, _ in blind))
            said = f"the sign of {missed} makes no difference" if blind else "a flipped sign of any quantity shows"
            yield Row(f"signs in {name}", NOTE if blind else HOLDS, said)


def _at_reference(problem: Problem, left: float) -> tuple[str, str]:
    """The verdict on what a term leaves of its largest summand at the reference, which has its own error.

    Derivatives of an error are larger than the error: those of second order about its root, by the inequality of
    Landau and Kolmogorov with four bounded derivatives.
    """
    explained = math.sqrt(problem.accuracy)
    said = f"{left:.1e} of its largest summand"
    if left < VANISHES:
        return HOLDS, said
    if left < explained:
        return NOTE, f"{said}, as a reference with accuracy = {problem.accuracy:g} may leave, up to {explained:.0e}"
    return FAILS, said


def _ansatz(problem: Problem) -> Iterator[Row]:
    points, terms = generic_points(problem), problem.terms()
    for name in problem.enforced:
        left = float(left_of(problem, name, terms[name], points[name]).max())
        yield Row(f"{name} under the ansatz", HOLDS if left <= ENFORCED else FAILS, f"{left:.1e} for a generic network")
    found = vanishing(problem)
    if problem.reads_network:
        yield Row("network inside", NOTE, "the ansatz takes the network, so there is no m that could vanish")
    elif found is None:
        yield Row("network inside", HOLDS, "m does not vanish inside the region")
    elif found.known:
        yield Row("network inside", NOTE, f"m vanishes at {found.where}, where the solution is g")
    else:
        yield Row("network inside", FAILS if found.wrong else UNKNOWN, found.said.rstrip("."))
    along = check_functions(problem, terms, points)
    for seam in seams(problem):
        said = f"value {seam.value:.1e}, slope {seam.slope:.1e} between both ends" if seam.smooth else seam.said
        # A kink matters where the equation differentiates across it.
        verdict = HOLDS if seam.smooth else FAILS if seam.coordinate in along else NOTE
        yield Row(f"{seam.part} periodic in {seam.coordinate}", verdict, said.rstrip("."))


def _sizes(problem: Problem) -> Iterator[Row]:
    p = some(problem.region, 200)
    values = None if problem.unknown else problem.reference(p)
    sizes = {} if len(problem.coords) > 6 else {c: float(p[c].abs().max()) for c in problem.coords}
    if values is not None:
        sizes |= {name: float(values[:, k].abs().max()) for k, name in enumerate(problem.fields)}
    for name, size in sizes.items():
        usual = size == 0 or USUAL[0] <= size <= USUAL[1]
        said = f"about {size:.2g}" + ("" if usual else ": far from 1, so that pretraining finds a unit for it")
        yield Row(f"size of {name}", HOLDS if usual else NOTE, said)
    if not (found := find(problem.as_source())).natural:
        yield Row("units for pretraining", HOLDS, str(found).removeprefix("Scales: "))


def _engines(problem: Problem) -> Iterator[Row]:
    net = MLP(problem.inputs, len(problem.fields), width=16, depth=2, generator=torch.Generator().manual_seed(0))
    solution = Solution(problem, net.double())
    automatic = System(problem, solution)
    for name, term in problem.loss_terms().items():
        try:
            engine = automatic.engine(name).by_rows
        except InputError as refused:
            yield Row(f"derivatives in {name}", FAILS, str(refused).rstrip("."))
            continue
        if engine.plan is None:
            yield Row(f"derivatives in {name}", HOLDS, f"reverse mode, since {engine.reason}")
            continue
        left = _difference(problem, solution, name, term)
        cost = f"jets, {engine.plan.carried} products a layer (reverse mode {engine.plan.reverse})"
        verdict = HOLDS if left < VANISHES else FAILS
        yield Row(f"derivatives in {name}", verdict, f"{cost}; both agree to {left:.1e}")


def _difference(problem: Problem, solution: Solution, name: str, term: Term) -> float:
    """Between a residual by jets and by reverse mode, relative to one plus the size of each component."""
    p = some(term.where, 50)
    jets, exact = (
        System(problem, solution, derivatives=engine).engine(name).residual(p).detach()
        for engine in ("jets", "autograd")
    )
    return float(((jets - exact).abs().amax(dim=0) / (1 + exact.abs().amax(dim=0))).max())


def _parameters(posed: Problem) -> Iterator[Row]:
    for name, declared in posed.parameters().items():
        other = _another(posed, name, declared.source)
        try:
            changes = other is not None and _differ(posed, dataclasses.replace(posed, **{name: other}))
        except InputError as refused:
            yield Row(f"parameter {name}", FAILS, f"at {other!r}: {str(refused).rstrip('.')}")
            continue
        said = f"{_shown(other)} in the place of {_shown(getattr(posed, name))} makes a difference"
        yield Row(
            f"parameter {name}",
            HOLDS if changes else NOTE if other is None else FAILS,
            said if changes else "has one value only" if other is None else "changes nothing",
        )


def _another(posed: Problem, name: str, source: object) -> object:
    """Another allowed value of a parameter: its source, if that is one."""
    declared, value = posed.parameters()[name], getattr(posed, name)
    if isinstance(value, torch.Tensor):
        value = value.item()
    if source != value:
        return source
    if declared.choices:
        return next((word for word in declared.choices if word != value), None)
    return value + 1 if declared.integer else value * 1.1 if value else 0.1


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _differ(a: Problem, b: Problem) -> bool:
    """Whether residuals, references or ansatz of two problems differ somewhere."""
    if a.terms().keys() != b.terms().keys():
        return True
    return any(not _same(one, other) for one, other in zip(_values(a), _values(b), strict=True))


def _same(a: Callable[[], torch.Tensor], b: Callable[[], torch.Tensor]) -> bool:
    one, other = a(), b()
    return one.shape == other.shape and torch.equal(one, other)


def _values(problem: Problem) -> Iterator[Callable[[], torch.Tensor]]:
    for name, term in problem.terms().items():
        p = some(term.where)
        yield lambda p=p: p.rows(problem.coords)
        yield lambda name=name, term=term, p=p: check_residual(
            name, term, Trial(problem, next(iter(p.values())), "soft"), p
        )[0]
    if problem.has_ansatz:
        p = some(problem.region)
        yield lambda p=p: Trial(problem, next(iter(p.values())), "hard")(p).detach()
    if not problem.unknown and problem.reference(some(problem.region)) is not None:
        yield lambda: problem.reference(some(problem.region)).detach()
