"""What a problem declares fits together: its regions, terms, conditions and periods. Nothing is evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from pinn_odelora.checks.names import check_apart, check_names
from pinn_odelora.errors import InputError, unknown

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem, Term

CONDITIONS = ("hard", "soft")


def check_declaration(problem: Problem) -> Mapping[str, Term]:
    """Check everything that a problem says of itself.

    Returns:
        Its terms, which may be expensive to make.

    Raises:
        InputError: for the first thing that is wrong, by the name of its attribute or term.
    """
    coords = check_names("coords", problem.coords)
    check_names("fields", problem.fields)
    check_apart(coords, check_names("fields", problem.readable))
    for name, field in problem.unknown_fields().items():
        field.check(name, coords)
    check_region("region", problem.region, coords)
    for name, (low, high) in getattr(problem.region, "bounds", {}).items():
        if name in coords and not low < high:
            raise InputError(f"region has no width in {name}: it goes from {float(low):g} to {float(high):g}.")
    if problem.regular is not None:
        check_region("regular", problem.regular, coords)
    terms = check_terms(problem.terms())
    for name, term in terms.items():
        check_region(f"The region of {name}", term.where, coords)
        if term.heldout is not None:
            check_region(f"The held-out region of {name}", term.heldout, coords)
    check_enforced(problem, terms)
    check_periods(problem)
    if not (isinstance(problem.accuracy, Real) and 0 < problem.accuracy < math.inf):
        raise InputError(f"accuracy is {problem.accuracy!r}, but it must be a positive number.")
    return terms


def check_supports(problem: Problem) -> None:
    """The kinds of conditions are words, and hard ones have an ansatz.

    Raises:
        InputError: if not.
    """
    name, supports = type(problem).__name__, problem.supports
    if isinstance(supports, str) or not supports or not {*supports} <= {*CONDITIONS}:
        raise InputError(f'supports of {name} is {supports!r}, but it must be ("hard",), ("soft",) or both.')
    if "hard" in supports and not problem.has_ansatz:
        raise InputError(
            f'{name} supports hard conditions, but has no ansatz; define ansatz(p), or declare supports = ("soft",).'
        )


def check_region(what: str, region: Any, coords: tuple[str, ...]) -> None:
    """It can be sampled, and has every coordinate as far as it says what it has.

    Raises:
        InputError: if not.
    """
    if not (hasattr(region, "sample") and hasattr(region, "interior")):
        raise InputError(f"{what} is {region!r}, but it must be a region, such as po.Box(x=(0, 1), t=(0, 1)).")
    bounds = getattr(region, "bounds", None)
    if isinstance(bounds, Mapping):
        check_columns(what, bounds, coords)


def check_columns(what: str, columns: Mapping[str, Any], coords: tuple[str, ...]) -> None:
    """Every coordinate is among them.

    Raises:
        InputError: if not.
    """
    if missing := [name for name in coords if name not in columns]:
        raise InputError(
            f"{what} has no coordinate {', '.join(missing)}, only {', '.join(columns)}; it must have all of "
            f"{', '.join(coords)}."
        )


def check_terms(terms: Any) -> Mapping[str, Term]:
    """Terms by name, each with a region, a function and a positive weight.

    Raises:
        InputError: if not.
    """
    if not isinstance(terms, Mapping):
        raise InputError(f'terms() gives a {type(terms).__name__}, but it must give terms by name, {{"pde": Term(…)}}.')
    if not terms:
        raise InputError("The problem has no term: give at least an equation, as in pde=lambda f: f.u_t - f.u_xx.")
    for name, term in terms.items():
        if not (hasattr(term, "residual") and hasattr(term, "where")):
            raise InputError(f"The term {name} is a {type(term).__name__}, but it must be a Term(region, residual).")
        if not callable(term.residual):
            raise InputError(f"The residual of {name} is {term.residual!r}, but it must be a function of the field.")
        if not (isinstance(term.weight, Real) and 0 < term.weight < math.inf):
            raise InputError(f"The weight of {name} is {term.weight!r}, but a loss weight is a positive number.")
    if "data" in terms:
        raise InputError("data is the name of the term of measurements, so no other term may have it.")
    return terms


def check_enforced(problem: Problem, terms: Mapping[str, Term]) -> None:
    """What the ansatz enforces are terms, and something is left to train on.

    Raises:
        InputError: if not.
    """
    enforced = problem.enforced
    if isinstance(enforced, str):
        raise InputError(f"enforced is {enforced!r}, but it must be a tuple of names, ({enforced!r},).")
    for name in enforced:
        if name not in terms:
            raise unknown("term in enforced:", name, terms)
    if enforced and not problem.has_ansatz:
        raise InputError(f"enforced names {', '.join(enforced)}, but there is no ansatz to satisfy it.")
    if "hard" in problem.supports and terms.keys() <= {*enforced}:
        raise InputError("enforced names every term, but at least one must be left to train on.")


def check_periods(problem: Problem) -> None:
    """Periods are positive numbers that fit the region as often as one likes.

    Raises:
        InputError: if not.
    """
    for name, period in problem.periods.items():
        if name not in problem.coords:
            raise unknown("coordinate in periods:", name, problem.coords)
        if not (_is_positive(period)):
            raise InputError(f"The period of {name} is {period!r}, but it must be a positive number.")
        bounds = getattr(problem.region, "bounds", {})
        if name not in bounds:
            continue
        low, high = map(float, bounds[name])
        times = (high - low) / float(period)
        if abs(times - round(times)) > 1e-6 or round(times) == 0:
            raise InputError(
                f"The period of {name} is {float(period):.6g}, but the region is {high - low:.6g} wide in {name}: "
                "its width must be a whole number of periods."
            )


def _is_positive(value: Any) -> bool:
    try:
        return 0 < float(value) < math.inf
    except (TypeError, ValueError):
        return False
