"""A family of solutions: stations found offline, and any member between them online.

    u = family(nu=0.013)                    a base point, a few Gauss–Newton steps in the span, an estimate
    u = family(nu=0.013, tolerance=1e-6)    and steps on the low-rank manifold, if the estimate is larger

The stations are solved by ``families.offline``; ``families.span`` has the coordinates of the span, and
``families.estimate`` the estimate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pinn_odelora.errors import unknown
from pinn_odelora.families.answer import Answer
from pinn_odelora.families.estimate import SAFETY, Green, Linearised, relative
from pinn_odelora.families.interpolation import guesses
from pinn_odelora.families.parametric import Parametric, fresh
from pinn_odelora.families.ranges import Ranges
from pinn_odelora.families.sensitivity import Sensitivity, sensitivity
from pinn_odelora.families.span import Found, Span, gauss_newton
from pinn_odelora.families.stations import Station, solve
from pinn_odelora.formulation import Problem
from pinn_odelora.rules import null, number
from pinn_odelora.threads import threads

RESIDUALS = 1000
"""Of the points of a Gauss–Newton step."""
NEIGHBOURS = 2
"""Stations that span a member: so many for each parameter, and two."""
FAR = 10.0
"""So many times the losses of the stations beside it are too much for an answer."""
GLANCE = 200
"""Residuals on which base points are compared."""
CORRECTIONS = 12
"""Most steps on the manifold in one round, and how many rounds there are."""
ROUNDS = 3
ENOUGH = 0.8
"""A round that leaves more than this fraction of the estimate is the last."""


class Family:
    """The members of a family over ranges of parameters of an equation.

    Made by ``po.family`` or read by ``po.load_family``.

    Attributes:
        ranges: low and high end by parameter.
        stations: the solved members, in the order in which they were found.
        grid: points of the path's grid for each parameter; 0 before it is chosen.
        seconds: time spent on them.
        timed: whether a file keeps times.
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
        self._points = parametric.points(RESIDUALS, seed, "family online")
        self._glance = parametric.points(GLANCE, seed, "family online")
        self._linearised = Linearised(parametric, seed)
        self._greens: dict[int, Green] = {}

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
        return float(self.parametric.residual_vector(fresh(self._glance)).square().sum())

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
    def bytes(self) -> int:
        """Memory of one station's adapter."""
        return sum(x.numel() * x.element_size() for x in self.parametric.trained.values())

    def __call__(self, *, tolerance: float | None = None, extrapolate: bool = False, **values: float) -> Answer:
        """The member at these parameters.

        Args:
            tolerance: estimated relative L2 error up to which steps on the low-rank manifold follow; None takes none.
            extrapolate: whether a parameter may lie outside its range.
            values: one for each parameter of the family.

        Raises:
            InputError: if a parameter is missing, unknown or outside the range, or tolerance is not positive.
        """
        tolerance = (number(above=0) | null).check("tolerance", tolerance)
        x = self.space.coordinates(values, extrapolate)
        began = time.perf_counter()
        with threads(self.threads):
            return self._answer(x, {name: float(values[name]) for name in self.space.names}, tolerance, began)

    def prepare(self) -> None:
        """Form what estimates need at every station, which otherwise the first answer near it does."""
        with threads(self.threads):
            for k in range(len(self.stations)):
                self._green(k)

    def answers(self, **values: ArrayLike) -> list[Answer]:
        """Members at several parameters, arrays that are broadcast against each other; one after the other."""
        columns = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in values.values()))
        return [
            self(**dict(zip(values, map(float, row), strict=True))) for row in zip(*map(np.ravel, columns), strict=True)
        ]

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

    def _answer(self, x: NDArray, values: dict[str, float], tolerance: float | None, began: float) -> Answer:
        found = self.in_span(x, values)
        error = self.estimate(x)
        corrections, weights, loss = 0, found.weights, found.loss
        for round_ in range(ROUNDS if tolerance is not None else 0):
            if error <= tolerance:
                break
            solved = solve(self.parametric, weights, values, tolerance / 4, self.seed + round_, CORRECTIONS)
            corrections += solved.steps
            before, after = error, self.estimate(x)
            if after < before:
                weights, loss, error = solved.weights, solved.loss, after
            if not after < ENOUGH * before:
                break
        return Answer(
            self.parametric, values, weights, error, loss, found.steps, corrections, time.perf_counter() - began
        )

    def in_span(self, x: NDArray, values: dict[str, float]) -> Found:
        """Gauss–Newton steps in the span of the nearest stations; the member is in the network afterwards.

        Where they end far above the losses of the stations beside it, they start again from the next best guess.
        """
        near = self.nearest(x)
        neighbours = [self.stations[k].weights for k in near]
        usual = FAR * max(self.stations[k].loss for k in near[:2])
        best: Found | None = None
        for base in self._bases(x, values, near):
            found = gauss_newton(Span(self.parametric, base, neighbours), fresh(self._points))
            if best is None or found.loss < best.loss:
                best = found._replace(steps=found.steps + (best.steps if best else 0))
            if best.loss <= usual:
                break
        assert best is not None
        self.parametric.place(best.weights)
        return best

    def nearest(self, x: NDArray) -> list[int]:
        """The stations that span a member, the nearest first."""
        distances = np.linalg.norm(self.coordinates - x, axis=1)
        return [int(k) for k in np.argsort(distances, kind="stable")[: NEIGHBOURS * len(x) + 2]]

    @property
    def coordinates(self) -> NDArray:
        """Of all stations, (stations, parameters)."""
        return np.array([self.space.coordinates(s.values, extrapolate=True) for s in self.stations])

    def _bases(self, x: NDArray, values: dict[str, float], near: list[int]) -> list[dict[str, Tensor]]:
        """The guesses, the best first."""
        points, found = fresh(self._glance), []
        for c in guesses(self.coordinates[near], x):
            guess = self._combined(c, near)
            self.parametric.place(guess, values)
            found.append((float(self.parametric.residual_vector(points).square().sum()), len(found), guess))
        return [guess for *_, guess in sorted(found, key=lambda entry: entry[:2])]

    def _combined(self, c: NDArray, stations: Sequence[int]) -> dict[str, Tensor]:
        used = [(float(w), self.stations[k].weights) for w, k in zip(c, stations, strict=True) if w]
        return {name: sum(w * weights[name] for w, weights in used) for name in self.parametric.trained}

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
        u = self(**values)
        with threads(self.threads):
            step = self.space.step(name, u.values)
            return sensitivity(self.parametric, u.values, u.weights, name, step, self._points)

    # How good it is.

    def estimate(self, x: NDArray) -> float:
        """Of the relative L2 error of the member in the network at x."""
        k = int(np.argmin(np.linalg.norm(self.coordinates - x, axis=1)))
        G = self._green(k)
        u = self.parametric.function()
        return SAFETY * relative(G.error(self._linearised.residuals()), u)

    def _green(self, k: int) -> Green:
        if k not in self._greens:
            here = self.parametric.weights()
            values = {name: float(p) for name, p in self.parametric.solution.coefficients.items()}
            self._greens[k] = self._linearised.green(self.stations[k])
            self.parametric.place(here, values)
        return self._greens[k]
