"""Offline: follow the solution over the ranges, then refine where answers are worst.

1.  The pretrained network solves the equation somewhere in the range: the path starts where its residual is smallest.
2.  A grid of stations is solved in the order of distance, each by a few steps from the nearest one that is solved. One
    that fails halves the distance: the point half-way is solved first.
3.  Greedy refinement, as reduced-basis methods place snapshots (Prud'homme et al., 2002): the error is estimated
    half-way between neighbouring stations and at the stations themselves. Where it is largest a station is added, from
    the online answer there, or the station at that place is solved further. It ends when no estimate exceeds the
    tolerance, or with the budget.

What comes next is a function of the stations so far alone, so that a family that was interrupted goes on to the same
end; every time a station is finished, the family is handed to ``keep``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay
from torch import nn

from pinn_odelora.budget import Budget, Progress
from pinn_odelora.errors import InputError, NonFiniteError, UnwritableError
from pinn_odelora.families.adapted import in_span
from pinn_odelora.families.family import Family
from pinn_odelora.families.files import continued, save
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.ranges import Ranges
from pinn_odelora.families.settings import Stations
from pinn_odelora.families.stations import Station, solve
from pinn_odelora.files import make_folder
from pinn_odelora.formulation import Problem
from pinn_odelora.lowrank.settings import LoRA
from pinn_odelora.rules import null, whole
from pinn_odelora.rules import seed as seeds
from pinn_odelora.threads import threads as limited
from pinn_odelora.wall import Room, check_ahead

log = logging.getLogger(__name__)

GRIDS = {1: (33, 25, 17, 13, 9), 2: (9, 7, 5, 4, 3)}
"""Points of the path's grid for each parameter, by the number of parameters: as many as the budget allows. Many short
ways with few steps each end far closer to the solution than few long ones at the same cost."""
SEARCHED = {1: 33, 2: 9}
"""The same for where the path starts."""
PART = 0.8
"""Of the budget for the path."""
LOST = 0.05
"""A station whose function still changes by so much in its last step is not solved."""
HALVINGS = 6
STEPS, FURTHER = 6, 10
"""Most steps of a station on the path; and where it is added later, or solved further."""
BEYOND = 2.0
"""So many times the error of the stations beside it an answer must have, for a station there to help."""
GAIN = 0.7
"""A station whose estimate stays above this fraction is not solved further."""
Message = Callable[[str], None]


@dataclass
class Construction:
    """A family in the making.

    Args:
        family: with the stations so far.
        tolerance: estimated relative L2 error that no answer shall exceed.
        budget: steps, evaluations or seconds of all stations together.
        most: stations.
        keep: called with the family after every station.
        say: takes messages.

    Attributes:
        paused: whether it ended for want of time before ``Budget.wall``.
    """

    family: Family
    tolerance: float
    budget: Budget
    most: int
    keep: Callable[[Family], None] = lambda family: None
    say: Message = log.info
    paused: bool = field(default=False, init=False)
    room: Room = field(default_factory=Room)
    _known: dict[tuple, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)
    _begun: bool = False

    def run(self) -> None:
        """Solve stations until the tolerance is met or the budget is spent.

        Raises:
            NonFiniteError: if no station can be solved.
        """
        for x in self._path():
            if self._solved_at(x):
                continue
            if self._over():
                if self.paused:
                    return
                self.say(f"The budget ends on the path: {_named(self.family.space.values(x))} is not reached.")
                return
            self._reach(x)
        while not self._over() and self._refine():
            pass

    @property
    def progress(self) -> Progress:
        """The cost so far."""
        stations = self.family.stations
        steps, evaluations = sum(s.steps for s in stations), sum(s.gradient_evals for s in stations)
        return Progress(steps, evaluations, self.family.seconds)

    def _over(self) -> bool:
        """Whether there is nothing left for another station and for what its estimates need."""
        self._clock()
        ahead = self.progress
        ahead.seconds += 1.5 * max((s.seconds / (s.rounds + 1) for s in self.family.stations), default=0.0)
        return len(self.family.stations) >= self.most or self.budget.used(ahead) >= 1 or self._out_of_time()

    def _out_of_time(self) -> bool:
        """Whether there is none for another station; the first one of a process is solved all the same."""
        if self.budget.wall is None:
            return False
        first, self._begun = not self._begun, True
        self.paused = not (self.room.fits(self.budget.wall) or first)
        return self.paused

    def _clock(self) -> None:
        now = time.perf_counter()
        self.family.seconds += now - self._since
        self._since = now

    # The path.

    def _path(self) -> Iterator[NDArray]:
        """The grid from the start outwards, each point the nearest to one before it."""
        dimension = len(self.family.space.names)
        first = self.family.coordinates[0] if self.family.stations else self._source()
        yield first
        self.family.grid = self.family.grid or self._affordable(dimension)
        reached, left = [first], _grid(self.family.grid, dimension)
        while left:
            gaps = [min(np.linalg.norm(x - y) for y in reached) for x in left]
            x = left.pop(int(np.argmin(gaps)))
            if min(gaps) > 1e-9:
                reached.append(x)
                yield x

    def _affordable(self, dimension: int) -> int:
        """The finest grid whose path takes its part of the budget, by what the first station cost."""
        first = self.family.stations[0]
        sizes = GRIDS[dimension]
        for points in sizes:
            times = STEPS * points**dimension / max(first.steps, 1)
            cost = Progress(int(times * first.steps), int(times * first.gradient_evals), times * first.seconds)
            if points**dimension <= self.most and (self.budget.used(cost) <= PART or points == sizes[-1]):
                break
        self.say(
            f"A path of {points**dimension} stations: about {cost.seconds:.0f} s, {cost.step} steps, "
            f"{self.family.bytes * points**dimension / 2**20:.1f} MiB of adapters."
        )
        return points

    def _source(self) -> NDArray:
        """Where the pretrained network has the smallest residual."""
        dimension = len(self.family.space.names)
        grid = _grid(SEARCHED[dimension], dimension)
        own = [getattr(self.family.problem, name) for name in self.family.space.names]
        declared = [self.family.problem.parameters()[name].source for name in self.family.space.names]
        for values in (own, declared):
            x = self.family.space.coordinates(dict(zip(self.family.space.names, values, strict=True)), extrapolate=True)
            if ((x >= 0) & (x <= 1)).all():
                grid.insert(0, x)
        return min(grid, key=self.family.pretrained_loss)

    def _reach(self, x: NDArray) -> None:
        """Solve the station at x, and on the way there as many as it takes."""
        for _ in range(HALVINGS):
            if self._solved_at(x):
                return
            stations = self.family.stations
            near = stations[self.family.nearest(x)[0]] if stations else None
            start = self.family.parametric.start if near is None else near.weights
            target = x
            station = self._solved(target, start, STEPS)
            for _ in range(HALVINGS):
                if not _lost(station) or near is None or self._over():
                    break
                target = (target + self.family.space.coordinates(near.values)) / 2
                self.say(f"{_named(station.values)} is out of reach: half the distance first.")
                station = self._solved(target, start, STEPS)
            if _lost(station) and self.paused:
                return  # half-way
            if _lost(station):
                reason = station.failure or f"its steps still change it by {station.change:.0e}"
                if near is None:
                    raise NonFiniteError(f"The first member, at {_named(station.values)}, cannot be solved: {reason}.")
                self.say(f"{_named(station.values)} cannot be reached: {reason}.")
                return
            self._add(station)
            if target is x:
                return

    def _solved_at(self, x: NDArray) -> bool:
        """Whether there is a station at x."""
        there = self.family.coordinates
        return len(there) > 0 and bool(np.linalg.norm(there - x, axis=1).min() < 1e-9)

    def _solved(self, x: NDArray, start: dict, steps: int) -> Station:
        number = len(self.family.stations)
        values = self.family.space.values(x)
        return solve(self.family.parametric, start, values, self.tolerance / 2, self._seed(number, 0), steps)

    def _seed(self, number: int, rounds: int) -> int:
        return self.family.seed + 1000 * number + rounds

    # The refinement.

    def _refine(self) -> bool:
        """Add a station at the worst answer, or solve the worst station further; whether there was one too bad."""
        stations = self.family.stations
        x = self.family.coordinates
        own = [self._estimated(point) for point in x]
        bad = [(error, k, None) for k, error in enumerate(own) if not stations[k].settled]
        for a, b in _neighbours(x):
            error = self._estimated(middle := (x[a] + x[b]) / 2)
            # Otherwise it is the error of the stations themselves, which another one would share.
            if error > BEYOND * max(own[a], own[b]):
                bad.append((error, None, middle))
        worst, k, middle = max(bad, key=lambda found: found[0], default=(0.0, None, None))
        if worst <= self.tolerance:
            return False
        if k is None:
            self._insert(middle)
        else:
            self._further(k)
        return True

    def _estimated(self, x: NDArray) -> float:
        """The estimate at x, which stays valid while the stations near it do."""
        near = self.family.nearest(x)
        key = (x.tobytes(), *((k, self.family.stations[k].rounds) for k in near))
        if key not in self._known:
            in_span(self.family, x)
            self._known[key] = self.family.estimate(x)
        return self._known[key]

    def _insert(self, x: NDArray) -> None:
        self._add(self._solved(x, in_span(self.family, x).weights, FURTHER))

    def _further(self, k: int) -> None:
        old = self.family.stations[k]
        x = self.family.coordinates[k]
        self.family.parametric.place(old.weights, old.values)
        before = self.family.estimate(x)
        again = solve(
            self.family.parametric,
            old.weights,
            old.values,
            self.tolerance / 2,
            self._seed(k, old.rounds + 1),
            FURTHER,
        )
        found = replace(
            again,
            steps=old.steps + again.steps,
            gradient_evals=old.gradient_evals + again.gradient_evals,
            seconds=old.seconds + again.seconds,
            rounds=old.rounds + 1,
        )
        self.family.replace(k, found)
        after = self.family.estimate(x)
        if not after < GAIN * before:
            found = replace(found, settled=True)
            if not after < before:
                found = replace(found, weights=old.weights, loss=old.loss, change=old.change)
            self.family.replace(k, found)
        self._report(k, found, min(before, after))

    def _add(self, station: Station) -> None:
        self.family.add(station)
        self.family.prepare()
        self._report(len(self.family.stations) - 1, station)

    def _report(self, k: int, station: Station, estimate: float | None = None) -> None:
        self._clock()
        with self.room.saving():
            self.keep(self.family)
        known = f"last change {station.change:.1e}" if estimate is None else f"error about {estimate:.1e}"
        self.say(
            f"station {k + 1} at {_named(station.values)}: {known}, {station.steps} steps, {station.seconds:.1f} s"
        )


def _lost(station: Station) -> bool:
    return bool(station.failure) or not station.change < LOST


def _named(values: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())


def _grid(points: int, dimension: int) -> list[NDArray]:
    return [np.array(x) for x in product(np.linspace(0, 1, points), repeat=dimension)]


def _neighbours(x: NDArray) -> list[tuple[int, int]]:
    """Pairs of stations next to each other; in two dimensions the edges of the Delaunay triangulation."""
    if x.shape[1] == 1:
        order = np.argsort(x[:, 0], kind="stable")
        return [(int(a), int(b)) for a, b in pairwise(order)]
    if len(x) < 4:
        return []
    edges = {(int(min(a, b)), int(max(a, b))) for t in Delaunay(x).simplices for a, b in combinations(t, 2)}
    return sorted(edges)


def _kept(made: Family, file: Path) -> None:
    """Write the stations so far; not into a new folder of the name, where all else would be missing."""
    if not file.parent.is_dir():
        raise UnwritableError(f"Cannot write {file}: its folder is gone, with all that it held.")
    save(made, file)


def family(
    net: nn.Module,
    problem: Problem,
    *,
    tolerance: float = 1e-5,
    budget: Budget | None = None,
    seconds: float | None = None,
    rank: int | None = None,
    lora: LoRA | None = None,
    most: int = 80,
    scale: str = "auto",
    seed: int = 0,
    derivatives: str = "auto",
    threads: int | None = 1,
    file: str | Path | None = None,
    say: Message = log.info,
    ranges: Mapping[str, Sequence[float]] | None = None,
    **parameters: Sequence[float],
) -> Family:
    """Solve an equation for all parameters of a range, from one pretrained network.

        family = po.family(net, Burgers(), nu=(0.05, 0.006), seconds=60)
        u = family(nu=0.013)          # a tenth of a second
        u(x, t), u.error

    Args:
        net: the pretrained network, (N, inputs) -> (N, fields), which solves the equation somewhere in the range; it is
            not changed.
        problem: the equation; its other parameters have the values that they have there.
        tolerance: estimated relative L2 error of answers at which refinement ends.
        budget: limits of the offline work, steps of stations among them; absent, 60 seconds.
        seconds: short for ``budget=Budget(seconds=…)``.
        rank: short for ``lora=LoRA(rank=…)``.
        lora: adapted layers and rank, which is 4 where it is ``auto``.
        most: stations.
        scale: of the parameters, ``log``, ``linear``, or ``auto``, see ``families.ranges``.
        seed: of the points.
        derivatives: ``auto``, ``jets`` or ``autograd``.
        threads: CPU threads meanwhile, and for answers; None leaves them as they are.
        file: where stations are kept, each as soon as it is solved; if it exists, the family in it goes on.
        say: takes messages.
        ranges: the ranges by name, for parameters whose name is one of the arguments above.
        parameters: the ends of each parameter's range, one or two parameters.

    Raises:
        InputError: one sentence on what does not fit, before anything is solved.
        NonFiniteError: if the equation cannot be solved where the path starts.
    """
    if rank is not None and lora is not None:
        raise InputError("rank and lora are both given, but rank is short for lora=LoRA(rank=...): give one.")
    if budget is not None and seconds is not None:
        raise InputError("budget and seconds are both given, but seconds is short for budget=Budget(...): give one.")
    settings, seed = Stations(tolerance, most, scale), seeds.check("seed", seed)
    threads = (whole(1) | null).check("threads", threads)
    given = {**(ranges or {}), **parameters}
    space = Ranges.of(problem, given, scale)
    lora = lora or (LoRA() if rank is None else LoRA(rank=rank))
    parametric = Parametric(net, problem, space.names, lora, seed, derivatives)
    made = Family(parametric, space, seed, threads)
    if file is not None:
        continued(made, file)
        make_folder(Path(file).parent)
    keep = (lambda family: None) if file is None else (lambda family: _kept(family, Path(file)))
    limits = budget or Budget(seconds=60.0 if seconds is None else seconds)
    check_ahead(limits.wall)
    made.timed = limits.seconds is not None
    with limited(threads):
        construction = Construction(made, settings.tolerance, limits, settings.most, keep, say)
        construction.run()
    made.paused = construction.paused
    if file is not None:
        _kept(made, Path(file))
    return made
