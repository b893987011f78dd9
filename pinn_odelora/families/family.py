"""A family of solutions: stations found offline, and any member between them online.

    u = family(nu=0.013)                    a combination of the stations' solutions, with an estimate of its error
    u = family(nu=0.013, tolerance=1e-6)    and steps on the low-rank manifold, if the estimate is larger
    u = family(nu=0.013, form="adapter")    one adapter, in the span of the stations' factors

The stations are solved by ``families.offline``; ``families.combination`` and ``families.adapted`` find members, and
``families.estimate`` says how good they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pinn_odelora.errors import InputError, unknown
from pinn_odelora.families.adapted import Adapted, adapted
from pinn_odelora.families.answer import Answer
from pinn_odelora.families.combination import Combination, Combinations
from pinn_odelora.families.estimate import SAFETY, Green, Linearised, relative
from pinn_odelora.families.parametric import Parametric, fresh
from pinn_odelora.families.ranges import Ranges, Values
from pinn_odelora.families.sensitivity import Sensitivity, sensitivity
from pinn_odelora.families.settings import ADAPTER, COMBINATION, FORMS
from pinn_odelora.families.stations import Station
from pinn_odelora.formulation import Problem
from pinn_odelora.nets.scaled import field_units
from pinn_odelora.rules import null, number, one_of
from pinn_odelora.threads import threads

RESIDUALS = 1000
"""Of the points of a Gauss–Newton step."""
NEIGHBOURS = 2
"""Stations that span a member: so many for each parameter, and two."""
GLANCE = 200
"""Residuals on which base points are compared."""


class Family:
    """The members of a family over ranges of parameters of an equation.

    Made by ``po.family`` or read by ``po.load_family``.

    Attributes:
        ranges: low and high end by parameter.
        stations: the solved members, in the order in which they were found.
        grid: points of the path's grid for each parameter; 0 before it is chosen.
        seconds: time spent on them.
        timed: whether a file keeps times.
        paused: whether the work on stations ended for want of time before ``Budget.wall``, to be continued.
        points, glance: on which members are found, and on which first guesses are compared.
    """

    def __init__(
        self,
        parametric: Parametric,
        ranges: Ranges,
        seed: int = 0,
        threads: int | None = 1,
    ) -> None:
        self.parametric = parametric
        self.space = ranges
        self.stations: list[Station] = []
        self.seed = seed
        self.threads = threads
        self.grid = 0
        self.seconds = 0.0
        self.timed = True
        self.paused = False
        self.points = parametric.points(RESIDUALS, seed, "family online")
        self.glance = parametric.points(GLANCE, seed, "family online")
        self._linearised = Linearised(parametric, seed)
        self._greens: dict[int, Green] = {}
        self._combinations: dict[torch.device, Combinations] = {}

    def add(self, station: Station) -> None:
        """Add a solved member to those that span the others."""
        self.stations.append(station)

    def replace(self, k: int, station: Station) -> None:
        """Put a station in the place of another one."""
        if station.weights is not self.stations[k].weights:
            self._greens.pop(k, None)
        self.stations[k] = station

    def pretrained_loss(self, x: NDArray) -> float:
        """‖r‖² of the network before adaptation at x."""
        self.parametric.place(self.parametric.start, self.space.values(x))
        return float(self.parametric.residual_vector(fresh(self.glance)).square().sum())

    def __repr__(self) -> str:
        ranges = ", ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in self.ranges.items())
        number = len(self.stations)
        return f"<family of {type(self.problem).__name__} for {ranges}: {number} station{'s' * (number != 1)}>"

    @property
    def problem(self) -> Problem:
        """The equation that the family was asked for."""
        return self.parametric.posed

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {interval.name: (interval.low, interval.high) for interval in self.space.intervals}

    @property
    def centres(self) -> tuple[float, ...]:
        """Of the fields in the units of the network, from which errors are relative; zero without units."""
        return tuple(unit.shift for unit in field_units(self.parametric.net, self.problem.fields).values())

    @property
    def bytes(self) -> int:
        """Memory of one station's adapter."""
        return sum(x.numel() * x.element_size() for x in self.parametric.trained.values())

    def __call__(
        self, *, tolerance: float | None = None, form: str = "auto", extrapolate: bool = False, **values: float
    ) -> Answer:
        """The member at these parameters.

        Args:
            tolerance: estimated relative L2 error up to which steps on the low-rank manifold follow, which yield an
                adapter; None takes none.
            form: ``combination`` of the stations' solutions, one ``adapter``, or ``auto``: the combination, unless it
                solves the equation worse than the stations beside it or misses the tolerance, and then whichever has
                the smaller estimate.
            extrapolate: whether a parameter may lie outside its range.
            values: one for each parameter of the family.

        Raises:
            InputError: if a parameter is missing, unknown or outside the range, tolerance is not positive, or there are
                no combinations for the equation and one is asked for.
        """
        x = self.space.coordinates(values, extrapolate)
        return self._answers([x], [values], tolerance, form, "cpu")[0]

    def prepare(self) -> None:
        """Form what answers and estimates need at every station, which otherwise the first answer near it does."""
        with threads(self.threads):
            self._of_stations("cpu")
            for k in range(len(self.stations)):
                self._green(k)

    def answers(
        self,
        *,
        tolerance: float | None = None,
        form: str = "auto",
        extrapolate: bool = False,
        device: torch.device | str = "cpu",
        **values: ArrayLike,
    ) -> list[Answer]:
        """Members at several parameters, whose combinations are found together.

        Args:
            tolerance, form, extrapolate: as for one.
            device: where combinations are found.
            values: arrays that are broadcast against each other.

        Raises:
            InputError: as for one.
        """
        columns = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in values.values()))
        rows = [dict(zip(values, map(float, row), strict=True)) for row in zip(*map(np.ravel, columns), strict=True)]
        return self._answers([self.space.coordinates(row, extrapolate) for row in rows], rows, tolerance, form, device)

    def problem_at(self, **values: float) -> Problem:
        """The equation at these parameters."""
        return self.parametric.problem_at(values)

    def save(self, path: str | Path) -> None:
        """Write it to one safetensors file, see ``families.files``.

        Raises:
            InputError: if it cannot be written.
        """
        from pinn_odelora.families.files import save  # it reads families, too

        save(self, path)

    # How an answer is found.

    def _answers(
        self,
        xs: Sequence[NDArray],
        values: Sequence[Values],
        tolerance: float | None,
        form: str,
        device: torch.device | str,
    ) -> list[Answer]:
        tolerance, form = (number(above=0) | null).check("tolerance", tolerance), one_of(*FORMS).check("form", form)
        began = time.perf_counter()
        with threads(self.threads):
            combined = self._combined(xs, form, device)
            share = (time.perf_counter() - began) / max(len(xs), 1)
            return [
                self._answer(x, {name: float(v[name]) for name in self.space.names}, c, tolerance, form, share)
                for x, v, c in zip(xs, values, combined, strict=True)
            ]

    def _answer(
        self,
        x: NDArray,
        values: dict[str, float],
        combination: Combination | None,
        tolerance: float | None,
        form: str,
        share: float,
    ) -> Answer:
        """The better of the two forms that are wanted; ``share`` is the time that the combination has taken."""
        began = time.perf_counter()
        error = math.inf if combination is None else self._combination_error(x, combination)
        wanted = error if tolerance is None else tolerance
        enough = combination is not None and combination.loss <= self.loss_beside(x) and error <= wanted
        other = None if enough or form == COMBINATION else adapted(self, x, tolerance)
        if combination is None or (other is not None and not error <= other.error):
            assert other is not None
            return self._as_adapter(values, other, share + time.perf_counter() - began)
        return Answer(
            self.parametric.posed,
            values,
            COMBINATION,
            error,
            combination.loss,
            combination.steps,
            other.corrections if other else 0,
            share + time.perf_counter() - began,
            lambda: combination.network,
            lambda: self(form=ADAPTER, extrapolate=True, **values),
        )

    def _as_adapter(self, values: dict[str, float], found: Adapted, seconds: float) -> Answer:
        return Answer(
            self.parametric.posed,
            values,
            ADAPTER,
            found.error,
            found.loss,
            found.steps,
            found.corrections,
            seconds,
            lambda: self.parametric.network(found.weights),
        )

    def _combined(self, xs: Sequence[NDArray], form: str, device: torch.device | str) -> Sequence[Combination | None]:
        """The combinations, where the form allows them and the equation has them."""
        if form == ADAPTER or not xs:
            return [None] * len(xs)
        combinations = self._of_stations(device)
        if not combinations.reason:
            return combinations.find([self.space.values(x) for x in xs], [self.nearest(x)[0] for x in xs])
        if form == COMBINATION:
            name = type(self.problem).__name__
            raise InputError(f"{name} has no combinations, since {combinations.reason}; form=adapter is possible.")
        return [None] * len(xs)

    def _of_stations(self, device: torch.device | str) -> Combinations:
        device = torch.device(device)
        if device not in self._combinations:
            self._combinations[device] = Combinations(self.parametric, self.points, self._linearised.points, device)
        self._combinations[device].take(self.stations)
        return self._combinations[device]

    def nearest(self, x: NDArray) -> list[int]:
        """The stations that span an adapter, the nearest first."""
        distances = np.linalg.norm(self.coordinates - x, axis=1)
        return [int(k) for k in np.argsort(distances, kind="stable")[: NEIGHBOURS * len(x) + 2]]

    def loss_beside(self, x: NDArray) -> float:
        """The larger loss of the two stations nearest to x."""
        return max(self.stations[k].loss for k in self.nearest(x)[:2])

    @property
    def coordinates(self) -> NDArray:
        """Of all stations, (stations, parameters)."""
        return np.array([self.space.coordinates(s.values, extrapolate=True) for s in self.stations])

    # How it depends on the parameters.

    def derivative(self, name: str, /, **values: float) -> Sensitivity:
        """∂u/∂μ for one parameter, a function of the coordinates like ``u`` itself.

        Args:
            name: the parameter.
            values: where, one for each parameter.

        Raises:
            InputError: as for a call, and for an unknown name.
        """
        if name not in self.space.names:
            raise unknown("parameter of the family:", name, self.space.names)
        x = self.space.coordinates(values)
        at = {name: float(values[name]) for name in self.space.names}
        with threads(self.threads):
            weights = adapted(self, x).weights
            return sensitivity(self.parametric, at, weights, name, self.space.step(name, at), self.points)

    # How good it is.

    def estimate(self, x: NDArray) -> float:
        """Of the relative L2 error of the member in the network at x."""
        G = self._green(self.nearest(x)[0])
        return SAFETY * relative(G.error(self._linearised.residuals()), self.parametric.function())

    def _combination_error(self, x: NDArray, found: Combination) -> float:
        return SAFETY * relative(self._green(self.nearest(x)[0]).error(found.residuals), found.u)

    def _green(self, k: int) -> Green:
        if k not in self._greens:
            here = self.parametric.weights()
            values = {name: float(p) for name, p in self.parametric.solution.coefficients.items()}
            self._greens[k] = self._linearised.green(self.stations[k])
            self.parametric.place(here, values)
        return self._greens[k]
