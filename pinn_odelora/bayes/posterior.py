"""The posterior of a family's parameters from measurements (Kennedy and O'Hagan, 2001, without their discrepancy).

    y_i = u(p_i; x) + ε_i,    ε_i ~ N(0, σ² / w_i) independent,    p(x | y) ∝ p(y | x) p(x),

with x the one or two parameters of the family and w_i the weights of the measurements, 1 if not given. With
S(x) = Σ w_i (y_i - u(p_i; x))² the likelihood is

    exp(-S / 2σ²)  for a known σ,    (n₀ s₀² + S)^(-(N + n₀)/2)  for an unknown one,

where σ² has been integrated out under its conjugate prior, the scaled inverse χ² of n₀ values with standard deviation
s₀; n₀ = 0 is the prior of Jeffreys, 1/σ (Gelman et al., Bayesian Data Analysis, 2013, section 3.2).

u is interpolated in the parameters (``chebyshev``), so that p can be evaluated thousands of times. It is sampled by the
affine-invariant ensemble of Goodman and Weare (2010) as in emcee (Foreman-Mackey et al., 2013, arXiv 1202.3665), and
approximated by the normal distribution of Laplace, in the family's coordinates of the parameters (``density``).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.special import ndtri

from pinn_odelora.bayes.chebyshev import Array, Demand, Interpolant, interpolate, value_at, values_at
from pinn_odelora.bayes.density import (
    Chain,
    Density,
    Noise,
    Normal,
    Prior,
    laplace_approximation,
    likely,
    normal_draws,
    resolve,
    run_chain,
    sampler_library,
)
from pinn_odelora.errors import InputError
from pinn_odelora.families.ranges import Interval
from pinn_odelora.files import write_figure
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.measurements import measured_term
from pinn_odelora.points import Points
from pinn_odelora.rules import one_of, whole
from pinn_odelora.rules import seed as any_seed
from pinn_odelora.runs.style import BLUE, ORANGE, STYLE

if TYPE_CHECKING:
    from pinn_odelora.families.answer import Answer
    from pinn_odelora.families.family import Family

LEVEL = 0.95
WALKERS = 32
NOTICED = 0.5
"""A systematic shift of a parameter that is worth a warning, in standard deviations."""
EXACT = 0.1
"""The shift that the interpolant may cause."""
SAFETY = 3.0
"""By which its error at a few new nodes is multiplied where unlikely parameters are given up."""


class Laplace(NamedTuple):
    """A parameter by Laplace's approximation, in its own units; NaN where the mode lies at the end of the range.

    Attributes:
        mode: the most likely value, of the density with respect to the family's coordinate.
        std: the standard deviation, to first order.
        low, high: the 95 % interval, within the range of the family.
    """

    mode: float
    std: float
    low: float
    high: float


class Posterior:
    """The posterior of a family's parameters.

    Attributes:
        names: of the parameters.
        samples: draws, (n, parameters), in the order of ``names``.
        sigma: the standard deviation of the noise of a measurement of weight 1, for every draw, (n,).
        mode: the most likely value of each parameter, by name.
        mean, std: of the draws, by name.
        interval: the central 95 % of the draws, (low, high) by name.
        laplace: mode, standard deviation and 95 % interval by Laplace's approximation, by name.
        method: ``mcmc`` or ``laplace``, by which the samples were drawn.
        acceptance: the part of the proposals that was accepted; NaN without a chain.
        autocorrelation: the autocorrelation time of the slowest parameter in steps; NaN without a chain.
        answers: how many answers of the family were computed.
        interpolation_error: the largest RMS difference at the measured points between the interpolant and answers at
            the mode and a standard deviation around it, weighted, in the units of the measurements.
        answer_error: the estimated RMS error of the answer at the mode, likewise.
        warnings: what the result suffers from, in sentences; each is also issued as a ``UserWarning``.
    """

    def __init__(
        self,
        family: Family,
        density: Density,
        chain: Chain,
        laplace: Mapping[str, Laplace],
        checks: Checks,
        sigma: Array,
    ) -> None:
        self.family = family
        self.names = names = tuple(laplace)
        self.samples = np.column_stack([value_at(i, z) for i, z in zip(density.intervals, chain.z.T, strict=True)])
        self.sigma = sigma
        self.method = "laplace" if math.isnan(chain.acceptance) else "mcmc"
        self.acceptance, self.autocorrelation = chain.acceptance, chain.time
        self.laplace = dict(laplace)
        self.answers = checks.answers
        self.interpolation_error, self.answer_error = checks.interpolation_error, checks.answer_error
        self.warnings = (*checks.warnings, *chain.warnings)
        self.mode = {name: found.mode for name, found in laplace.items()}
        self.mean = self._by_name(self.samples.mean(axis=0))
        self.std = self._by_name(self.samples.std(axis=0))
        ends = np.quantile(self.samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        self.interval = {name: (float(low), float(high)) for name, low, high in zip(names, *ends, strict=True)}

    def _by_name(self, values: Array) -> dict[str, float]:
        return dict(zip(self.names, map(float, values), strict=True))

    def __repr__(self) -> str:
        found = (
            f"{name} = {self.mean[name]:.6g} ± {self.std[name]:.2g} (95 % interval {low:.6g} to {high:.6g})"
            for name, (low, high) in self.interval.items()
        )
        chain = "" if math.isnan(self.acceptance) else f", {self.acceptance:.0%} accepted"
        return f"{', '.join(found)}: {len(self.samples)} samples ({self.method}{chain}), {self.answers} answers"

    def solutions(self, n: int) -> list[Answer]:
        """The family's answers at n of the samples, evenly spaced in the chain: draws of the solution itself.

        Args:
            n: at least 1, at most the number of samples.

        Raises:
            InputError: if there are not so many samples.
        """
        n = whole(1, len(self.samples)).check("n", n)
        chosen = self.samples[np.linspace(0, len(self.samples) - 1, n).round().astype(int)]
        return [self.family(**self._by_name(x)) for x in chosen]

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Histograms of the samples with Laplace's approximation and the 95 % interval; two parameters also together.

        Args:
            path: the image file; None writes none.
        """
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(2.6 * (2 * len(self.names) - 1), 2.2))
            panels = figure.subplots(1, 2 * len(self.names) - 1, squeeze=False)[0]
            for axes, name, x in zip(panels, self.names, self.samples.T, strict=False):
                self._marginal(axes, name, x)
            if len(self.names) > 1:
                panels[-1].plot(*self.samples.T, linestyle="", marker=".", markersize=1, alpha=0.5, color=BLUE)
                panels[-1].set(xlabel=self.names[0], ylabel=self.names[1])
            if path is not None:
                write_figure(path, figure)
        return figure

    def _marginal(self, axes: Axes, name: str, x: Array) -> None:
        axes.hist(x, bins=40, density=True, color=BLUE, alpha=0.35)
        mode, std, *_ = self.laplace[name]
        if math.isfinite(std):
            near = np.linspace(x.min(), x.max(), 200)
            axes.plot(near, np.exp(-(((near - mode) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi)), color=ORANGE)
        for end in self.interval[name]:
            axes.axvline(end, color=BLUE, linestyle="--", linewidth=0.8)
        axes.set(xlabel=name, yticks=[])


def posterior(
    family: Family,
    data: str | Path | Mapping[str, ArrayLike] | Term,
    *,
    sigma: float | tuple[float, float] | None = None,
    prior: Prior | None = None,
    method: Literal["mcmc", "laplace"] = "mcmc",
    steps: int = 2000,
    seed: int = 0,
) -> Posterior:
    """The posterior of the parameters of a family from measurements of a solution (Kennedy and O'Hagan, 2001).

    The noise of the measurements is normal, independent, with variance σ²/weight and one σ for all measured fields.

    Args:
        family: one or two parameters.
        data: a file (.csv, .npz), columns by name, each (N,), or a term, as for ``adapt``: all coordinates, measured
            fields, and optionally ``weight``.
        sigma: the standard deviation σ of the noise; or (s₀, n₀), a guess and how many measurements it is worth; None
            if nothing is known. An unknown σ is integrated out, not estimated.
        prior: the logarithm of the prior density of the parameters, ``prior(nu=...)``, from arrays (n,) to an array
            (n,), up to a constant. The default is uniform over the range of the family in its own coordinate: in log x
            for a positive range whose ends differ by more than a factor of three, in x otherwise.
        method: how samples are drawn: ``mcmc`` by emcee, which ``pip install 'pinn-odelora[bayes]'`` installs;
            ``laplace`` from the normal distribution around the mode.
        steps: of the chain, with 32 walkers; of ``laplace`` the number of samples.
        seed: of the samples.

    Raises:
        InputError: if the data are invalid or fewer than what is unknown, an argument is not allowed, the prior
            allows no value of the range, or emcee is missing.
        NonFiniteError: if an answer is not finite.
    """
    method = one_of("mcmc", "laplace").check("method", method)
    steps, seed = whole(100).check("steps", steps), any_seed.check("seed", seed)
    if method == "mcmc":
        sampler_library()
    noise = Noise.known_as(sigma)
    intervals = _intervals(family)
    measured = Measured.of(data, family.problem)
    noise.check(len(measured.values), len(intervals))
    predictions = Predictions(family, intervals, measured)
    interpolant = interpolate(predictions, intervals, lambda found: predictions.demand(found, noise, prior))
    density = Density(interpolant, measured.values, noise, prior)
    grid = resolve(density)
    normal = laplace_approximation(density, grid)
    checks = check(predictions, interpolant, density, normal)
    rng = np.random.default_rng(seed)
    if method == "mcmc":
        chain = run_chain(density, grid.draw(WALKERS, rng), steps, rng)
    else:
        chain = normal_draws(normal, interpolant.part, steps, rng)
    noises = noise.draw(density.squares(chain.z), density.n, rng)
    found = Posterior(family, density, chain, in_own_units(normal, intervals), checks, noises)
    for sentence in found.warnings:
        warnings.warn(sentence, stacklevel=2)
    return found


def _intervals(family: Family) -> tuple[Interval, ...]:
    found = family.space.intervals
    if len(found) > 2:
        raise InputError(f"The family has {len(found)} parameters; a posterior is found for one or two.")
    return found


# What was measured, and what is predicted of it.


class Measured(NamedTuple):
    """The measured values, multiplied by the square roots of their weights.

    Attributes:
        points: the coordinates, (N,) each.
        columns: the index of each measured field.
        root: √w of every point, (N,).
        values: √w y, field by field, of the points with a positive weight, where it was measured, (values,).
        there: which of all these were measured, (fields · N,).
    """

    points: tuple[Array, ...]
    columns: tuple[int, ...]
    root: Array
    values: Array
    there: Array

    @classmethod
    def of(cls, data: str | Path | Mapping[str, ArrayLike] | Term, problem: Problem) -> Measured:
        """The columns of a data term.

        Raises:
            InputError: if the data are invalid.
        """
        points = _cloud(measured_term(data, problem))
        fields = [name for name in problem.fields if f"measured_{name}" in points]
        if not fields:
            raise InputError("data is a term without measured values; give a file, or columns by name.")
        column = {name: x.detach().cpu().double().numpy()[:, 0] for name, x in points.items()}
        root = np.sqrt(column.get("weight", np.ones(points.number)))
        kept = root > 0
        values = np.concatenate([root[kept] * column[f"measured_{name}"][kept] for name in fields])
        there = ~np.isnan(values)
        return cls(
            tuple(column[name][kept] for name in problem.coords),
            tuple(problem.fields.index(name) for name in fields),
            root[kept],
            values[there],
            there,
        )

    def weighted(self, u: Array, fields: int) -> Array:
        """√w u of the measured fields, from all at the points, (N,) or (N, fields) -> (values,)."""
        table = np.asarray(u, dtype=np.float64).reshape(-1, fields)
        return np.concatenate([self.root * table[:, i] for i in self.columns])[self.there]


def _cloud(term: Term) -> Points:
    points = getattr(term.where, "points", None)
    return points if isinstance(points, Points) else Points()


class Predictions:
    """√w u at the measured points from answers of the family; (parameters,) -> (values,).

    Attributes:
        asked: z of every answer.
        errors: the estimated ‖error‖₂ of every answer; 0 where the family gives no estimate.
    """

    def __init__(self, family: Family, intervals: Sequence[Interval], measured: Measured) -> None:
        self.family, self.intervals, self.measured = family, intervals, measured
        self.asked: list[Array] = []
        self.errors: list[float] = []

    def __call__(self, z: Array) -> Array:
        answer = self.family(**values_at(self.intervals, z))
        u, fields = answer(*self.measured.points), len(self.family.problem.fields)
        found, varying = (self.measured.weighted(x, fields) for x in (u, u - np.array(self.family.centres)))
        self.asked.append(np.array(z))
        self.errors.append(answer.error * float(np.linalg.norm(varying)) if math.isfinite(answer.error) else 0.0)
        return found

    def demand(self, found: Interpolant, noise: Noise, prior: Prior | None) -> Demand:
        """An error that does no harm, a tenth of σ or that of the answers there, where the parameters are likely."""
        y = self.measured.values
        density = Density(found, y, noise, prior)
        harmless = EXACT * (noise.sigma or _remaining(density))
        theirs = float(np.median(np.array(self.errors)[found.part.holds(np.array(self.asked))]))
        tolerance = max(harmless, theirs, 1e-13 * float(np.linalg.norm(y)))
        return Demand(tolerance, likely(density, found.part, SAFETY * found.error))


# Results.


def in_own_units(normal: Normal, intervals: Sequence[Interval]) -> dict[str, Laplace]:
    """The approximation by parameter; the interval is that of z, moved to x."""
    found = {}
    for interval, z, variance in zip(intervals, normal.mode, np.diag(normal.covariance), strict=True):
        std = math.sqrt(variance) if normal.exists else math.nan
        half = float(ndtri((1 + LEVEL) / 2)) * std
        ends = value_at(interval, np.clip(np.array([z - half, z + half]), -1, 1))
        mode = float(value_at(interval, z))
        wide = (
            mode * math.log(interval.high / interval.low) if interval.scale == "log" else interval.high - interval.low
        )
        found[interval.name] = Laplace(mode, wide / 2 * std, float(ends[0]), float(ends[1]))
    return found


def _remaining(density: Density) -> float:
    """σ, or what the best parameters leave to it."""
    parameters = len(density.intervals)
    S = density.squares(resolve(density).best[None])
    return density.noise.typical(float(S[0]), density.n, parameters)


# Whether it can be relied on.


class Checks(NamedTuple):
    """What the result rests on; see ``Posterior``."""

    interpolation_error: float
    answer_error: float
    answers: int
    warnings: tuple[str, ...]


def check(predictions: Predictions, interpolant: Interpolant, density: Density, normal: Normal) -> Checks:
    """Compare the interpolant with answers at the mode and a standard deviation to either side of it.

    A systematic error δ of the predictions moves a parameter by at most ‖δ‖₂/σ of its standard deviations: the least
    squares estimate moves by J⁺δ, whose entries have the standard deviation σ‖row of J⁺‖₂ by the noise.
    """
    half = np.sqrt(np.diag(normal.covariance)) if normal.exists else np.zeros(len(normal.mode))
    around = [normal.mode, *(normal.mode + sign * e for e in np.diag(half) if e.any() for sign in (1, -1))]
    z = np.clip(np.array(around), *interpolant.part)
    answers = [(predictions(point), predictions.errors[-1]) for point in z]
    interpolation = max(
        float(np.linalg.norm(interpolant(p[None])[0] - u)) for p, (u, _) in zip(z, answers, strict=True)
    )
    answer = answers[0][1]
    S = float(density.squares(normal.mode[None])[0])
    sigma = density.noise.typical(S, density.n, len(normal.mode))
    causes = {
        "The interpolation of the answers in the parameters is inexact and": interpolation / sigma,
        "The estimated error of the answers themselves": answer / sigma,
    }
    said = [
        f"{cause} may shift a parameter by up to {by:.2g} of its standard deviations, which the interval leaves out."
        for cause, by in causes.items()
        if by > NOTICED
    ]
    said += [
        f"The most likely {interval.name} is {value_at(interval, z):g}, at the end of the range of the family: the "
        "true one may lie outside."
        for interval, z in zip(density.intervals, normal.mode, strict=True)
        if abs(z) > 0.999
    ]
    root = math.sqrt(density.n)
    return Checks(interpolation / root, answer / root, len(predictions.asked), tuple(said))
