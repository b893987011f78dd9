"""What shows when the functions of a problem are evaluated at a few points, with a smooth function for the network.

Residuals must give finite columns that depend on the network, row by row, with finite gradients, and may neither change
what they were given nor decide by an ``if`` on the solution; ansatz and reference must give columns of the right shape.
A message names the term, and the point where numbers are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pinn_odelora.checks.declaration import check_columns
from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.plan import Blank
from pinn_odelora.errors import InputError, unknown
from pinn_odelora.geometry import Region, sobol
from pinn_odelora.points import Points

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem, Term

SAMPLE = 8
"""Points at which each function is evaluated once."""


def some(region: Region, n: int = SAMPLE, like: Tensor | None = None) -> Points:
    """A few points of a region, always the same.

    Args:
        region: where.
        n: how many.
        like: dtype and device; float64 on the CPU if not given.
    """
    p = region.sample(n, lambda n, d: sobol(n, d, seed=0))
    few = Points({name: column[:n] for name, column in p.items()})
    return few if like is None else few.to(like)


class Trial:
    """A solution by N = 2 + sin of generic plane waves: u = g + m · N under hard conditions, N itself under soft ones.

    Args:
        problem: its embedding and ansatz.
        like: dtype and device of the numbers.
        conditions: those of the problem if not given.
        shift: added to N, (fields,).

    Attributes:
        directions: of the waves, (inputs, fields); they require a gradient, as the weights of a network do.
    """

    def __init__(self, problem: Problem, like: Tensor, conditions: str = "", shift: Tensor | float = 0.0) -> None:
        self.problem = problem
        self.shift = shift
        self.conditions = conditions or problem.conditions
        inputs, outputs = problem.inputs, len(problem.fields)
        waves = torch.arange(inputs * outputs, dtype=torch.float64).cos().reshape(inputs, outputs)
        self.directions = waves.to(like).requires_grad_()

    def network(self, p: Points) -> Tensor:
        """N, (n, fields)."""
        phase = torch.arange(len(self.problem.fields)).to(self.directions)
        return 2 + torch.sin(self.problem.embed(p) @ self.directions + phase) + self.shift

    def __call__(self, p: Points) -> Tensor:
        return self.problem.represented(p, self.network, self.conditions)

    def field(self, p: Points) -> Asked:
        """What a residual reads at points p."""
        return Asked(AutogradField(self.extended, p, self.problem.readable, self.problem.coords))

    def extended(self, p: Points) -> Tensor:
        """With a smooth function for each unknown field, too."""
        slope = self.directions[0, 0]
        return torch.cat([self(p), *(x.trial(p, slope) for x in self.problem.unknown_fields().values())], dim=1)


class Asked(Field):
    """A field that keeps what it was asked for, with torch's counters of changes in place."""

    def __init__(self, inner: Field) -> None:
        super().__init__(inner.points, inner.fields, inner.coords)
        self.inner = inner
        self.given: list[tuple[str, Tensor, int]] = [(key, x, x._version) for key, x in inner.points.items()]
        self.quantities: list[tuple[str, Tensor]] = []
        self.moved: list[Asked] = []

    def derivative(self, field: str, along: str) -> Tensor:
        if field not in self.fields:
            raise unknown("field", field, self.fields)
        for letter in along:
            if letter not in self.coords:
                advice = "; one that is differentiated along has a single letter"
                raise unknown("coordinate", letter, self.coords, advice)
        value = self.inner.derivative(field, along)
        name = f"{field}_{along}" if along else field
        self.given.append((name, value, value._version))
        self.quantities.append((name, value))
        return value

    def values(self, rows: Tensor) -> Tensor:
        return self.inner.values(rows)

    def at(self, **columns: Tensor) -> Asked:
        self.moved.append(Asked(self.inner.at(**columns)))
        return self.moved[-1]

    def everything(self) -> list[tuple[str, Tensor]]:
        """The quantities asked for here and at moved points."""
        return self.quantities + [pair for moved in self.moved for pair in moved.everything()]

    def changed(self) -> str | None:
        """The name of a column that was changed in place."""
        own = next((name for name, x, before in self.given if x._version != before), None)
        return own or next(filter(None, (moved.changed() for moved in self.moved)), None)


class Decides(Exception):  # noqa: N818  (never seen by anybody)
    """An ``if`` asked for the truth of a value of the solution."""


class Marked(Tensor):
    """A value of the solution: what torch computes from it is marked, too, and is neither true nor false."""

    def __bool__(self) -> bool:
        raise Decides


class Undecided(Blank):
    """A field of marked values."""

    def derivative(self, field: str, along: str) -> Tensor:
        return super().derivative(field, along).as_subclass(Marked)

    def at(self, **columns: Tensor) -> Undecided:
        return Undecided(Points({**self.points, **columns}), self.fields, self.coords)


def check_functions(problem: Problem, terms: Mapping[str, Term], points: Mapping[str, Points]) -> set[str]:
    """Evaluate the residuals once.

    Args:
        problem: with the conditions under which they are evaluated.
        terms: of the loss.
        points: of every term, a few.

    Returns:
        The coordinates along which they differentiate.

    Raises:
        InputError: if a residual cannot be used, see ``check_residual``.
    """
    along: set[str] = set()
    for name, term in terms.items():
        p = points[name]
        check_columns(f"The region of {name}", p, tuple(problem.coords))
        _, field = check_residual(name, term, Trial(problem, p[problem.coords[0]]), p)
        along |= {letter for quantity, _ in field.everything() for letter in quantity.partition("_")[2]}
    return along


@torch.enable_grad()
def check_residual(name: str, term: Term, trial: Trial, p: Points) -> tuple[Tensor, Asked]:
    """The residual of a term at points p with a trial solution, (n, components), and the field that it read.

    Raises:
        InputError: if it cannot be evaluated, gives no columns (n, 1), does not depend on the network, changes its
            arguments, decides by an ``if`` on values of the solution, or is not finite, or its gradient.
    """
    what = f"The residual of {name}"
    field = trial.field(p)
    with evaluating(what):
        r = columns(what, term.residual(field), p.number)
    if changed := field.changed():
        raise InputError(f"{what} changes {changed} in place; write x = x + y instead of x += y.")
    if p.number > 1 and r.shape[1] == p.number and _columns_at(term, trial, p, p.number - 1) == p.number - 1:
        raise InputError(
            f"{what} has as many columns as there are points: a value of shape ({p.number},) is combined with columns "
            f"({p.number}, 1); keep columns, as in x[:, :1] instead of x[:, 0]."
        )
    _check_finite(what, r, field)
    _check_dependence(what, r, field, trial)
    if not term.coupled:
        _check_decisions(what, term, field)
    return r.detach(), field


def columns(what: str, r: Any, n: int) -> Tensor:
    """A residual as one tensor (n, components).

    Raises:
        InputError: if it gives anything but a column of real numbers, or several.
    """
    several = isinstance(r, tuple | list)
    if several and not r:
        raise InputError(f"{what} gives no column.")
    for column in r if several else (r,):
        if not (isinstance(column, Tensor) and column.ndim == 2 and len(column) == n):
            raise InputError(
                f"{what} gives {described(column)} at {n} points, but it must give a column of shape ({n}, 1), or a "
                "tuple of columns."
            )
        check_real(what, column)
    return torch.cat(tuple(r), dim=1) if several else r


def _columns_at(term: Term, trial: Trial, p: Points, n: int) -> int:
    fewer = Points({key: x[:n] for key, x in p.items()})
    return columns("", term.residual(trial.field(fewer)), n).shape[1]


def _check_finite(what: str, r: Tensor, field: Asked) -> None:
    row = first_not_finite(r)
    if row is None:
        return
    bad = next((f"{name} is {spoken(x[row])}" for name, x in field.everything() if not x[row].isfinite().all()), None)
    asked = ", ".join(dict.fromkeys(name for name, _ in field.everything())) or "nothing of the solution"
    cause = (
        f"since {bad} there, by ansatz or embedding"
        if bad
        else f"though what it asks for ({asked}) is finite there: it divides by zero, or leaves a function's domain"
    )
    raise InputError(f"{what} is {spoken(r[row])} at {place(field, row)}, {cause}.")


def _check_dependence(what: str, r: Tensor, field: Asked, trial: Trial) -> None:
    if not field.everything():
        if not r.requires_grad or _coordinates_only(r, field):
            raise InputError(f"{what} asks nothing of the solution, so training cannot change it.")
        return
    slope = None
    if r.requires_grad:
        (slope,) = torch.autograd.grad(r.sum(), [trial.directions], allow_unused=True, retain_graph=True)
    if slope is None:
        raise InputError(
            f"{what} does not depend on the network: it has a detached value, a number made by float(…) or .item(), or "
            "one of NumPy."
        )
    if not slope.isfinite().all():
        row = next((i for i in range(len(r)) if not _slope(r[i], trial).isfinite().all()), 0)
        raise InputError(
            f"{what} is finite at {place(field, row)}, but its gradient is {spoken(_slope(r[row], trial))} there: a "
            "function such as a root has no derivative where its argument is zero."
        )


def _slope(r: Tensor, trial: Trial) -> Tensor:
    return torch.autograd.grad(r.sum(), [trial.directions], retain_graph=True)[0]


def _coordinates_only(r: Tensor, field: Asked) -> bool:
    """Whether the leaves of its graph are the coordinates: an unknown coefficient would be another one."""
    own = {id(field.points[c]) for c in field.coords}
    seen, ahead = set(), [r.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable") and id(node.variable) not in own:
            return False
        ahead += [following for following, _ in node.next_functions]
    return True


def _check_decisions(what: str, term: Term, field: Asked) -> None:
    try:
        term.residual(Undecided(field.points, field.fields, field.coords))
    except Decides:
        raise InputError(_decides(what)) from None
    except Exception:  # Values of one everywhere, or marked ones, may not suit it; it was evaluated already.
        return


def _decides(what: str) -> str:
    return f"{what} decides by values of the solution (if, and, max); write torch.where(condition, a, b)."


def check_reference(problem: Problem, like: Tensor | None = None) -> None:
    """Evaluate the reference once, at points of the dtype and device of ``like``.

    Raises:
        InputError: if it cannot be evaluated, gives another shape than (n, fields), no tensor, or is not finite.
    """
    if problem.unknown:
        return
    p = some(problem.region, like=like)
    check_columns("region", p, tuple(problem.coords))
    with evaluating("reference"):
        values = problem.reference(p)
    if values is None:
        return
    check_values("reference", values, p.number, len(problem.fields))
    if (row := first_not_finite(values)) is not None:
        raise InputError(f"reference is {spoken(values[row])} at {place(p, row, problem.coords)}.")


def check_values(what: str, values: Any, n: int, fields: int) -> None:
    """Values of the solution have a column for each field.

    Raises:
        InputError: if not.
    """
    if not (isinstance(values, Tensor) and tuple(values.shape) == (n, fields)):
        advice = "" if isinstance(values, Tensor) else " as a tensor, which torch.as_tensor makes of an array"
        raise InputError(
            f"{what} gives {described(values)} at {n} points, but it must have shape ({n}, {fields}){advice}."
        )
    check_real(what, values)


def check_real(what: str, values: Tensor) -> None:
    """Values are real numbers of floating point.

    Raises:
        InputError: if they are complex numbers, whole ones, or true and false.
    """
    if not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        raise InputError(f"{what} gives numbers of kind {kind}, but they must be real and of floating point.")


@contextmanager
def evaluating(what: str) -> Iterator[None]:
    """One sentence for whatever goes wrong in a function of the caller's, whose traceback it keeps."""
    try:
        yield
    except Exception as error:
        said = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
        if "Boolean value of Tensor" in said:
            raise InputError(_decides(what)) from error
        if isinstance(error, InputError) and said.startswith(what):
            raise
        if "same dtype" in said:
            said += "; give tensors of your own the dtype of the points, dtype=x.dtype"
        raise InputError(f"{what} cannot be evaluated: {said}.") from error


def first_not_finite(values: Tensor) -> int | None:
    """The first row that is not finite."""
    bad = ~values.detach().isfinite().all(dim=1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def spoken(values: Tensor) -> str:
    """NaN or infinite, for the first of the values that is not finite."""
    return "NaN" if bool(values.detach().isnan().any()) else "infinite"


def place(p: Points | Field, row: int, coords: Any = None) -> str:
    """One of the points, as x = 0.25, t = 0."""
    points = p.points if isinstance(p, Field) else p
    names = p.coords if isinstance(p, Field) else coords
    return ", ".join(f"{name} = {points[name][row].item():.4g}" for name in names)


def described(value: Any) -> str:
    """What somebody's function gave."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    return "nothing" if value is None else "an array of NumPy" if kind == "numpy.ndarray" else f"a {kind}"
