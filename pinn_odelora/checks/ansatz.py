"""The ansatz u = g + m · N of hard conditions: its shapes, what it satisfies, where m vanishes, and periodic seams.

g and m must be as periodic as the problem says it is, in value and slope: where g_x jumps from one end of the period to
the other, no smooth periodic N removes the kink, and no point of a sample lies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.checks.evaluation import (
    Trial,
    check_residual,
    columns,
    described,
    evaluating,
    first_not_finite,
    place,
    some,
    spoken,
)
from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.errors import InputError
from pinn_odelora.points import Points

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem, Term

ENFORCED = 1e-6
"""Largest residual of an enforced condition under the ansatz, relative to one plus that without it."""
SMOOTH = 1e-6
"""Largest jump of g and m at a seam, relative to one plus their size, where numbers have 64 bits."""
COARSE = 1e-3
"""The same where they have 32."""
INSIDE = 64
"""Points at which m is looked at."""


def check_ansatz(problem: Problem, like: Tensor | None = None) -> None:
    """Check shapes, and that m does not vanish inside, at points of dtype and device of ``like``.

    Raises:
        InputError: if something is wrong with it.
    """
    p = some(problem.region, like=like)
    if problem.reads_network:
        with evaluating("ansatz"):
            u = Trial(problem, p[problem.coords[0]], "hard")(p)
        shape = (p.number, len(problem.fields))
        if not (isinstance(u, Tensor) and tuple(u.shape) == shape):
            raise InputError(f"ansatz gives {described(u)}, but with the network N it must give u, of shape {shape}.")
        return
    with evaluating("ansatz"):
        made = problem.ansatz(p)
    shapes = {(p.number, 1), (p.number, len(problem.fields))}
    if not (isinstance(made, tuple | list) and len(made) == 2):
        raise InputError(f"ansatz gives {described(made)}, but it must give a pair (g, m) for u = g + m · network.")
    for name, part in zip("gm", made, strict=True):
        if not isinstance(part, Tensor) or tuple(part.shape) not in shapes:
            raise InputError(
                f"ansatz gives {described(part)} at {p.number} points, but g and m must have shape "
                f"{' or '.join(map(str, sorted(shapes)))}."
            )
        if (row := first_not_finite(part)) is not None:
            raise InputError(f"{name} of the ansatz is {spoken(part[row])} at {place(p, row, problem.coords)}.")
    if (found := vanishing(problem, like)) and found.wrong:
        raise InputError(found.said)


def check_seams(problem: Problem, along: Collection[str], like: Tensor | None = None) -> None:
    """g and m are periodic in value, and in slope where the equation differentiates along the coordinate.

    Raises:
        InputError: if they are not.
    """
    for seam in seams(problem, like):
        if not seam.smooth and (seam.value > seam.allowed or seam.coordinate in along):
            raise InputError(seam.said)


def check_enforced(problem: Problem, name: str, term: Term, p: Points) -> None:
    """The ansatz satisfies a term identically.

    Raises:
        InputError: if its residual does not vanish with a network that is not zero.
    """
    left = left_of(problem, name, term, p)
    # Written so that a NaN raises, too.
    if not float(left.max()) <= ENFORCED:
        row = int(left.nan_to_num(nan=torch.inf).argmax())
        raise InputError(
            f"{name} is enforced, but the ansatz does not satisfy it: its residual is {float(left[row]):.2g} at "
            f"{place(p, row, problem.coords)} with a network that is not zero, relative to one plus that without the "
            "ansatz."
        )


def left_of(problem: Problem, name: str, term: Term, p: Points) -> Tensor:
    """The residual of an enforced term under the ansatz, (n,), relative to one plus that of the network alone."""
    like = p[problem.coords[0]]
    free, _ = check_residual(name, term, Trial(problem, like, "soft"), p)
    what = f"The residual of {name}"
    with evaluating(what), torch.enable_grad():
        r = columns(what, term.residual(Trial(problem, like, "hard").field(p)), p.number)
    return r.detach().abs().amax(dim=1) / (1 + free.abs().max())


class Seam(NamedTuple):
    """g or m at both ends of a period.

    Attributes:
        part: ``g`` or ``m``; ``u`` for an ansatz that takes the network.
        coordinate: the periodic one.
        ends: of its interval.
        value, slope: largest jumps of the values and of the derivatives along the coordinate, relative to one plus
            their size.
        allowed: how large they may be.
    """

    part: str
    coordinate: str
    ends: tuple[float, float]
    value: float
    slope: float
    allowed: float = SMOOTH

    @property
    def smooth(self) -> bool:
        """Whether neither jumps."""
        return self.value <= self.allowed and self.slope <= self.allowed

    @property
    def said(self) -> str:
        """What is wrong with it."""
        c, (low, high) = self.coordinate, self.ends
        what, jump = ("slope", self.slope) if self.value <= self.allowed else ("value", self.value)
        equal = "the same value, but not the same slope," if what == "slope" else "not the same value"
        return (
            f"periods says that the solution is periodic in {c}, but {self.part} of the ansatz has {equal} at "
            f"{c} = {low:g} and {c} = {high:g}: it jumps by {jump:.2g}, relative to one plus its size."
        )


def seams(problem: Problem, like: Tensor | None = None) -> Iterator[Seam]:
    """g and m at the ends of every periodic coordinate of a box; g is left out where the reference jumps, too."""
    bounds = getattr(problem.region, "bounds", {})
    for c in [c for c in problem.periods if c in bounds]:
        ends = tuple(map(float, bounds[c]))
        p = some(problem.region, like=like)
        sides = [Points(p | {c: torch.full_like(p[c], end)}) for end in ends]
        if problem.reads_network:
            parts = {"u": Trial(problem, p[c], "hard")}
        else:
            parts = {part: lambda q, k=k: problem.ansatz(q)[k] for k, part in enumerate("gm")}
        jumps = {part: _jumps(problem, sides, c, function) for part, function in parts.items()}
        for part, (value, slope) in jumps.items():
            seam = Seam(part, c, ends, value, slope, COARSE if p[c].dtype == torch.float32 else SMOOTH)
            if part == "m" or seam.smooth or not _reference_jumps(problem, sides, c):
                yield seam


def _jumps(problem: Problem, sides: list[Points], c: str, function: Callable[[Points], Tensor]) -> tuple[float, float]:
    """By how much values and slopes differ at most between two sides, relative to one plus their size."""
    wide = lambda q: function(q).expand(-1, len(problem.fields))
    fields = [AutogradField(wide, p, problem.fields, problem.coords) for p in sides]
    found = []
    for along in ("", c):
        low, high = (torch.cat([f.derivative(name, along) for name in problem.fields], dim=1).detach() for f in fields)
        found.append(float((high - low).abs().max() / (1 + torch.maximum(low.abs(), high.abs()).max())))
    return found[0], found[1]


def _reference_jumps(problem: Problem, sides: list[Points], c: str) -> bool:
    if problem.unknown or problem.reference(sides[0]) is None:
        return False
    return max(_jumps(problem, sides, c, problem.reference)) > SMOOTH


class Vanishing(NamedTuple):
    """A point inside where the network has no influence on a field, since m is zero.

    Attributes:
        field: whose it is.
        where: the point.
        known: whether the solution is g there, by the reference; None without one.
        exact: whether it is a point of a sample, where m is zero by chance only on a set of positive measure.
    """

    field: str
    where: str
    known: bool | None
    exact: bool

    @property
    def wrong(self) -> bool:
        """Whether the solution is known to be something else there, or m is zero at a generic point."""
        return self.exact or self.known is False

    @property
    def said(self) -> str:
        """What is wrong with it."""
        return (
            f"m of the ansatz vanishes inside the region, at {self.where}, where the network then cannot change "
            f"{self.field}; it may vanish where conditions are imposed only."
        )


def vanishing(problem: Problem, like: Tensor | None = None) -> Vanishing | None:
    """A zero of m inside the region: at a point of a sample, or between two points of a box where its signs differ.

    None where the ansatz takes the network, and has no m.
    """
    if problem.reads_network:
        return None
    p = some(problem.region, INSIDE, like)
    m = problem.ansatz(p)[1].detach()
    for k in range(m.shape[1]):
        field = problem.fields[k] if m.shape[1] > 1 else ", ".join(problem.fields)
        column = m[:, k]
        if bool((column == 0).any()):
            row = int((column == 0).nonzero()[0])
            known = _is_g(problem, Points({name: x[row : row + 1] for name, x in p.items()}), k)
            return Vanishing(field, place(p, row, problem.coords), known, not known)
        if hasattr(problem.region, "bounds") and bool(column.min() < 0 < column.max()):
            zero = _zero(problem, p, int(column.argmin()), int(column.argmax()), k)
            return Vanishing(field, place(zero, 0, problem.coords), _is_g(problem, zero, k), False)
    return None


def _zero(problem: Problem, p: Points, low: int, high: int, k: int) -> Points:
    """The zero of m between a point where it is negative and one where it is positive, by bisection."""
    a, b = (Points({name: p[name][row : row + 1] for name in problem.coords}) for row in (low, high))
    for _ in range(50):
        middle = Points({name: (a[name] + b[name]) / 2 for name in problem.coords})
        negative = float(problem.ansatz(middle)[1][0, k]) < 0
        a, b = (middle, b) if negative else (a, middle)
    return b


def _is_g(problem: Problem, p: Points, k: int) -> bool | None:
    values = None if problem.unknown else problem.reference(p)
    if values is None:
        return None
    g = problem.ansatz(p)[0].expand(-1, len(problem.fields))
    column = slice(None) if problem.ansatz(p)[1].shape[1] == 1 else slice(k, k + 1)
    near = max(1e-6, problem.accuracy)
    return bool(torch.allclose(g[:, column], values[:, column], rtol=near, atol=near))
