"""What was expected, as statements on the records that hold or not, and the verdict on each claim.

The claims are those that we read in the abstract of ODELoRA (Gao and Tan, 2026, arXiv 2602.07479): linear convergence
for strongly convex objectives and for matrix sensing, under certain discretisations and mild conditions, whose
statements and constants are not known to us. Numbers here come from our own theory, see ``studies/linear_convergence``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from convergence.rates import Interval
from convergence.results import Results, diverged, largest_deviation
from convergence.sections import GENTLE
from convergence.setups import FLOWS

NEAR_PREDICTION = 0.05
"""How far a measured rate may be from the one of theory."""
STRAIGHT = 0.995
"""The least part of the variance of log error that a line explains; of error ∝ 1/steps it explains 0.992."""
FLAT, STEEP = 0.03, 0.1
"""How far an exponent may be from 0, and from −1."""
ROBUST = ("euler", "euler_manifold", "implicit_default")


class Statement(NamedTuple):
    """What was expected of the measurement, what was found, and whether it holds."""

    claim: str
    said: str
    found: str
    holds: bool


def shown(x: Interval) -> str:
    return f"{x.mean:.3g} ± {x.half:.1g}"


def near(x: Interval, value: float, within: float) -> bool:
    """The whole interval lies there."""
    return abs(x.mean - value) + x.half <= within


def linear(results: Results) -> Iterator[Statement]:
    for problem in results.where(section="local").values("problem"):
        runs = results.where(section="local", problem=problem, contender=FLOWS)
        least = min((r["explained"] for r in runs.going), default=0.0)
        off = largest_deviation(runs.going.ratios())
        lost = sum(map(diverged, runs))
        yield Statement(
            problem,
            "every discretisation of the flow converges in a line from near the target, at the rate of the theory",
            f"{len(runs)} runs, {lost} diverged, R² at least {least:.4f}, rates within {off:.1%} of the theory",
            len(runs.going) == len(runs) and least >= STRAIGHT and off <= NEAR_PREDICTION,
        )


def condition(results: Results) -> Iterator[Statement]:
    for problem in results.where(section="local").values("problem"):
        there = results.where(section="local", problem=problem)
        for name in there.values("contender"):
            slow = name == "lora_gd"
            runs = there.where(contender=name).going
            found = runs.exponent("condition")
            if slow:
                yield from falling(f"{problem}, {name}: rate ∝ 1/κ", runs)
            else:
                yield Statement(
                    "rivals" if name == "scaled_gd" else "condition",
                    f"{problem}, {name}: rate ∝ κ⁰",
                    f"exponent {shown(found)}",
                    near(found, 0, FLAT),
                )


def falling(said: str, runs: Results) -> Iterator[Statement]:
    """That of gradient descent, which is −1 for large κ, and from κ = 1 on what the spectra give."""
    found = runs.exponent("condition")
    theory = runs.exponent("condition", lambda r: r["predicted"])
    yield Statement(
        "gradient descent",
        said,
        f"exponent {shown(found)}, in theory {shown(theory)}",
        abs(found.mean + 1) <= STEEP and abs(found.mean - theory.mean) <= FLAT,
    )


def time(results: Results) -> Iterator[Statement]:
    for problem in results.where(section="time").values("problem"):
        there = results.where(section="time", problem=problem)
        flows = there.where(contender=FLOWS)
        exact = [r["rate"] / r["h"] / r["slowest"] for r in flows.where(contender="rk4").going]
        yield Statement(
            "condition",
            f"{problem}: at small steps all schemes have the flow's own rate λ_1 in flow time",
            f"RK4 within {largest_deviation(exact):.2%} of λ_1, all within {largest_deviation(flows.ratios()):.2%} of "
            f"theory; exponent of κ {shown(flows.where(contender='rk4').going.exponent('condition'))}",
            largest_deviation(exact) <= NEAR_PREDICTION
            and largest_deviation(flows.ratios()) <= NEAR_PREDICTION
            and near(flows.where(contender="rk4").going.exponent("condition"), 0, FLAT),
        )
        slow = there.where(contender="lora_gd").going
        yield from falling(f"{problem}: the flow of plain LoRA has a rate ∝ 1/κ in flow time", slow)


def curvature(results: Results) -> Iterator[Statement]:
    there = results.where(section="curvature")
    for name in there.values("contender"):
        runs = there.where(contender=name)
        found, theory = runs.going.exponent("curvature"), runs.exponent("curvature", lambda r: r["predicted"])
        explicit = name == "euler"
        yield Statement(
            "regression",
            f"{name}: with the curvature of the objective the rate {'falls' if explicit else 'does not fall'}, as in "
            "theory",
            f"exponent {shown(found)}, in theory {shown(theory)}",
            abs(found.mean - theory.mean) < FLAT and (found.mean < -0.5 if explicit else found.mean > -FLAT),
        )


def starts(results: Results) -> Iterator[Statement]:
    for problem in results.where(section="starts").values("problem"):
        there = results.where(section="starts", problem=problem, excess=0)
        for start in there.values("start"):
            runs = there.where(start=start, contender=ROBUST)
            got = sum(r["to_target"] is not None for r in runs)
            yield Statement(
                "starts",
                f"{problem}, from the start {start}, exact rank: {', '.join(ROBUST)} reach 1e-6 for every κ and seed",
                f"{got} of {len(runs)}",
                got == len(runs),
            )
        ill = Results(r for r in there.where(contender="lora_gd") if r["condition"] >= 100)
        got = sum(r["to_target"] is not None for r in ill)
        yield Statement(
            "gradient descent",
            f"{problem}: at κ ≥ 100 gradient descent does not get to 1e-6 in as many evaluations, from any start",
            f"{got} of {len(ill)} did",
            got == 0,
        )


def excess(results: Results) -> Iterator[Statement]:
    there = results.where(section="excess")
    for name in there.where(contender=FLOWS).values("contender"):
        runs = there.where(contender=name)
        least = min((r["explained"] for r in runs.going), default=0.0)
        found = runs.going.exponent("condition")
        flat = math.isnan(found.mean) or near(found, 0, STEEP)
        yield Statement(
            "excess",
            f"{name}: one rank too many leaves convergence linear, and its rate blind to κ",
            f"{len(runs.going)} of {len(runs)} in a line, R² at least {least:.3f}"
            + ("" if math.isnan(found.mean) else f", exponent of κ {shown(found)}"),
            len(runs.going) == len(runs) and least >= STRAIGHT and flat,
        )
    slow = there.where(contender="lora_gd", h=GENTLE)
    powers = [r["power"] for r in slow]
    if powers:
        yield Statement(
            "excess",
            "gradient descent at a small step: error ∝ 1/steps, no longer linear",
            f"exponents {min(powers):.2f} to {max(powers):.2f}",
            all(-1.5 < p < -0.6 for p in powers),
        )


def peak(results: Results) -> Iterator[Statement]:
    there = results.where(section="peak")
    for name in there.values("contender"):
        if name in ("rk4", "lora_gd"):
            continue
        small = Results(r for r in there.where(contender=name) if r["start"] <= 1e-2)
        found = small.exponent("start", lambda r: r["peak"])
        overshoots = name in ("euler", "scaled_gd")
        yield Statement(
            "tiny",
            f"{name}: the largest error on the way from a start of size c is ∝ {'1/c' if overshoots else 'c⁰'}",
            f"exponent {shown(found)}",
            near(found, -1 if overshoots else 0, STEEP),
        )


CHECKS: tuple[Callable[[Results], Iterator[Statement]], ...] = (
    linear,
    condition,
    time,
    curvature,
    starts,
    excess,
    peak,
)


def statements(results: Results) -> list[Statement]:
    """All that the records can tell."""
    return [statement for check in CHECKS for statement in check(results)]


CLAIMS = {
    "regression": (
        "Linear convergence for strongly convex objectives",
        "near the target, for step sizes below the stability limit; the curvature of the objective sets both",
    ),
    "sensing": (
        "Linear convergence in matrix sensing",
        "near the target, with 3 r (m + n − r) Gaussian measurements, fewer than entries, without noise",
    ),
    "starts": (
        "The same from far away: every run is at 1e-6 within 400 evaluations",
        "spectral, orthonormal, small and tiny starts at exact rank; a swept step near the stability limit of a seed "
        "is the way to miss it",
    ),
    "condition": (
        "The flow's rate does not depend on κ of the target",
        "for κ from 1 to 1e4, each discretisation and both charts",
    ),
    "gradient descent": (
        "Gradient descent's rate does",
        "as 1/κ from κ = 10 on, to the digit as the spectra say; none of its far runs at κ ≥ 100 ends in time",
    ),
    "rivals": ("(rival) ScaledGD's does not either", "at exact rank"),
    "excess": (
        "Linear convergence with more rank than the target has",
        "one rank too many, orthonormal start; gradient descent becomes sublinear",
    ),
    "tiny": (
        "A limit: explicit schemes in the factors overshoot from tiny starts, on the manifold they do not",
        "the way back costs log(1/c) over the rate",
    ),
}
"""What a claim says, and under which conditions it was tested."""
UNTESTABLE = (
    (
        "The constants, the region and the “mild conditions” of the source's theorems",
        "only the abstract is known to us; what is here is our own linear theory",
    ),
)


def verdict(claim: str, found: list[Statement]) -> str:
    about = [s for s in found if s.claim == claim]
    return "not tested" if not about else "confirmed" if all(s.holds for s in about) else "not confirmed"
