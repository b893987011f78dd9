"""What is run: widths, seeds, marks and times of the full and of the quick form, and all runs as rows.

Step sizes are chosen on seeds that are in no other slope.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from features.contenders import BASE, CONTENDERS, SWEPT
from features.network import PARAMETRISATIONS
from features.running import Case, Look, flow, steps
from features.transfer import climbed, scanned

TIMES = {"standard": (0.3, 3.0), "mean-field": (10.0, 100.0)}
"""Flow times; at the second one outputs have moved by order 1 at all widths."""
SIZES, SIZE_WIDTH = (0.25, 0.5, 1.0, 2.0, 4.0), 256
"""σ of balanced starts, and the width at which they are compared."""

Row = dict[str, Any]


class Form(NamedTuple):
    """``seeds`` of small steps; ``working``: of steps of the chosen size; ``flow``: of flow times; ``sweep``: those on
    which step sizes are chosen; ``times``: how many of ``TIMES`` from the last; ``pissa``: the largest width at which
    a singular value decomposition of the weights is affordable.
    """

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    working: tuple[int, ...]
    flow: tuple[int, ...]
    sweep: tuple[int, ...]
    times: int = 2
    marks: tuple[int, ...] = (1, 10, 100)
    pissa: int = 1024


FULL = Form(
    widths=(64, 128, 256, 512, 1024, 2048),
    seeds=tuple(range(12)),
    working=tuple(range(5)),
    flow=tuple(range(5)),
    sweep=(101, 102, 103),
)
QUICK = Form(
    widths=(64, 128, 256, 512),
    seeds=tuple(range(5)),
    working=tuple(range(3)),
    flow=tuple(range(3)),
    sweep=(101, 102),
    times=1,
    marks=(1, 10, 30),
    pissa=256,
)


def small_steps(form: Form) -> Iterator[Row]:
    """One and ten steps of first order, from every start."""
    for n, parametrisation, seed in _networks(form.widths, form.seeds):
        for method, contender in CONTENDERS.items():
            for start in contender.starts:
                if start != "pissa" or n <= form.pissa:
                    eta = contender.small[parametrisation]
                    case = Case(method, start, parametrisation, n, seed)
                    yield from (_row("small", case, eta, look) for look in steps(case, eta, (1, 10)))


def start_sizes(form: Form) -> Iterator[Row]:
    """One small step in the mean-field parametrisation from balanced starts of several sizes."""
    for size in SIZES:
        for method, contender in CONTENDERS.items():
            for seed in form.seeds:
                case, eta = Case(method, "orthonormal", "mean-field", SIZE_WIDTH, seed), contender.small["mean-field"]
                (look,) = steps(case, eta, (1,), size)
                yield _row("size", case, eta, look) | {"size": size}


def flow_times(form: Form) -> Iterator[Row]:
    """The flows themselves at equal times."""
    for n, parametrisation, seed in _networks(form.widths, form.flow):
        for method, contender in CONTENDERS.items():
            for start in contender.starts if contender.has_flow else ():
                for time in TIMES[parametrisation][-form.times :] if start != "pissa" else ():
                    case = Case(method, start, parametrisation, n, seed)
                    yield _row("flow", case, None, flow(case, time))


def sweeps(form: Form) -> Iterator[Row]:
    """The best step size of every swept method at every width: of those with which the loss never rises above its
    first value the one that leaves the smallest. Each search begins at the best one of the width before, only the first
    of a method with a grid.
    """
    for method, start in SWEPT:
        for parametrisation in PARAMETRISATIONS:
            at_base = None
            for seed in form.sweep:
                best = at_base
                for n in form.widths:
                    case, found = Case(method, start, parametrisation, n, seed), {}
                    loss = _loss(case, form.marks[-1])
                    if best is None:
                        best = scanned(loss, found, CONTENDERS[method].scan)
                    best = climbed(loss, best, found)
                    at_base = best if at_base is None else at_base
                    yield _row(
                        "sweep", case, 2.0**best, Look(form.marks[-1], None, math.nan, math.nan, found[best], math.nan)
                    )


def _loss(case: Case, k: int) -> Callable[[int], float]:
    """Of a step size 2^j, infinite where the loss rose above its first value on the way."""
    return lambda j: steps(case, 2.0**j, (k,), limit=1.0)[0].loss


def best_steps(rows: list[Row]) -> dict[tuple[str, str, str, int], float]:
    """By method, start, parametrisation and width: the smallest of those of the seeds, which is to work on all."""
    found: dict[tuple[str, str, str, int], list[float]] = {}
    for row in rows:
        if row["kind"] == "sweep":
            found.setdefault((row["method"], row["start"], row["parametrisation"], row["width"]), []).append(row["eta"])
    return {key: min(etas) for key, etas in found.items()}


def working_steps(form: Form, best: dict[tuple[str, str, str, int], float]) -> Iterator[Row]:
    """Steps of the size that is best at the width ``BASE``; at the largest width of its own best size too."""
    for n, parametrisation, seed in _networks(form.widths, form.working):
        for method, start in SWEPT:
            case = Case(method, start, parametrisation, n, seed)
            eta = best[method, start, parametrisation, BASE]
            yield from (_row("working", case, eta, look) for look in steps(case, eta, form.marks))
            if n == form.widths[-1]:
                own = best[method, start, parametrisation, n]
                yield _row("own", case, own, steps(case, own, form.marks[-1:])[0])


def _networks(widths: tuple[int, ...], seeds: tuple[int, ...]) -> Iterator[tuple[int, str, int]]:
    return ((n, parametrisation, seed) for n in widths for parametrisation in PARAMETRISATIONS for seed in seeds)


def _row(kind: str, case: Case, eta: float | None, look: Look) -> Row:
    return {"kind": kind, **case._asdict(), "eta": eta, **look._asdict()}
