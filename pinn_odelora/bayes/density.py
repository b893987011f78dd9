"""The density of a family's parameters given measurements: on a grid, by a normal distribution, and by a chain.

With N values of noise σ², S(z) the sum of the squared errors of the predictions, and n₀, s₀ as in ``posterior``,

    log p(z | y) = -S / 2σ²  or  -(N + n₀)/2 · log(n₀ s₀² + S),    plus the logarithm of the prior, on [-1, 1]^d.

S = ‖R [T(z); -1]‖² with the triangular factor R of [Cᵀ | y], T the basis of the interpolant and C its coefficients, so
that its cost does not depend on N.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from pinn_odelora.bayes.chebyshev import Array, Interpolant, Part, value_at
from pinn_odelora.errors import InputError
from pinn_odelora.families.ranges import Interval
from pinn_odelora.rules import number

Prior = Callable[..., ArrayLike]
"""The logarithm of a density, up to a constant: ``prior(nu=array)``, (n,) -> (n,)."""

NUMBER = {1: 257, 2: 65}
"""Points of a grid for each parameter, by the number of parameters."""
LONG_ENOUGH = 50
"""Autocorrelation times that a chain must have for these to be known (the rule of emcee's documentation)."""
BURN_IN = 5
"""Autocorrelation times that are discarded; the walkers start from draws of the density on a grid."""
FAR = 25.0
"""How far below its maximum the logarithm of a density no longer counts."""


@dataclass(frozen=True)
class Noise:
    """What is known of the noise: σ itself, or that σ² has a scaled inverse χ² distribution.

    Attributes:
        sigma: σ, None if it is unknown.
        guess, worth: s₀ and n₀ of its prior.
    """

    sigma: float | None
    guess: float = 0.0
    worth: float = 0.0

    @classmethod
    def known_as(cls, sigma: float | tuple[float, float] | None) -> Noise:
        """From the argument ``sigma``.

        Raises:
            InputError: if it is neither a positive number nor two of them nor None.
        """
        positive = number(above=0)
        if sigma is None:
            return cls(None)
        if isinstance(sigma, tuple | list):
            if len(sigma) != 2:
                raise InputError(f"sigma has {len(sigma)} entries, but it must be a number or (guess, worth).")
            return cls(None, *(float(positive.check("an entry of sigma", x)) for x in sigma))
        return cls(float(positive.check("sigma", sigma)))

    def check(self, values: int, parameters: int) -> None:
        """Whether so many values can tell the parameters, and σ if it is unknown.

        Raises:
            InputError: if not.
        """
        if self.sigma is None and self.worth + values <= parameters:
            raise InputError(
                f"{values} measured values cannot tell {parameters} parameters and the noise; give sigma or more data."
            )

    def log_likelihood(self, S: Array, n: int) -> Array:
        """Its logarithm for n values whose squared errors sum to S, up to a constant."""
        if self.sigma is not None:
            return -S / (2 * self.sigma**2)
        # A sum of zero, from data without noise, is a pole.
        return -(n + self.worth) / 2 * np.log(np.maximum(self.worth * self.guess**2 + S, np.finfo(float).tiny))

    def draw(self, S: Array, n: int, rng: np.random.Generator) -> Array:
        """A draw of σ for each of the sums S, from its distribution given the parameters."""
        if self.sigma is not None:
            return np.full(len(S), self.sigma)
        return np.sqrt((self.worth * self.guess**2 + S) / rng.chisquare(n + self.worth, len(S)))

    def typical(self, S: float, n: int, parameters: int) -> float:
        """σ, or what the smallest S leaves to it."""
        if self.sigma is not None:
            return self.sigma
        return math.sqrt((self.worth * self.guess**2 + S) / max(n + self.worth - parameters, 1))


# The density.


class Density:
    """The logarithm of the posterior density of z, up to a constant; -inf outside the part of the interpolant.

    Args:
        interpolant: of the predictions.
        values: what was measured, (values,).
        noise: what is known of it.
        prior: the logarithm of the prior density of the parameters; None for the uniform one in z.
    """

    def __init__(self, interpolant: Interpolant, values: Array, noise: Noise, prior: Prior | None = None) -> None:
        self.interpolant, self.noise, self.prior, self.n = interpolant, noise, prior, len(values)
        self.R = np.linalg.qr(np.column_stack([interpolant.matrix.T, values]), mode="r")

    @property
    def intervals(self) -> tuple[Interval, ...]:
        return self.interpolant.intervals

    def squares(self, z: Array) -> Array:
        """S, (M,)."""
        return np.square(self.interpolant.basis(z) @ self.R[:, :-1].T - self.R[:, -1]).sum(axis=1)

    def __call__(self, z: Array, shift: float = 0.0) -> Array:
        """At z, (M, parameters) -> (M,).

        Args:
            z: the points.
            shift: added to √S; with the error of the interpolant the density is at least, and with its negative at
                most, what is found.
        """
        part = self.interpolant.part
        held = np.clip(z, part.low, part.high)
        found = self.noise.log_likelihood(np.square(np.maximum(np.sqrt(self.squares(held)) + shift, 0)), self.n)
        if self.prior is not None:
            found = found + self._log_prior(held)
        return np.where(part.holds(z), found, -np.inf)

    def _log_prior(self, z: Array) -> Array:
        """With respect to z: the density of x times dx/dz."""
        x = {interval.name: value_at(interval, z[:, i]) for i, interval in enumerate(self.intervals)}
        try:
            found = np.broadcast_to(np.asarray(self.prior(**x), dtype=np.float64), (len(z),))
        except (TypeError, ValueError) as error:
            taken = ", ".join(x)
            raise InputError(
                f"prior must take arrays (n,) by the names {taken} and return an array (n,), but raised: {error}."
            ) from error
        if np.isnan(found).any() or (found == np.inf).any():
            i = int((np.isnan(found) | (found == np.inf)).argmax())
            where = ", ".join(f"{name}={values[i]:g}" for name, values in x.items())
            raise InputError(f"prior is {found[i]} at {where}; it must be a finite number, or -inf to exclude a value.")
        return found + sum(np.log(x[interval.name]) for interval in self.intervals if interval.scale == "log")


class Grid(NamedTuple):
    """Points in the box that holds all but e⁻²⁵ of the density, and its logarithm there.

    Attributes:
        z: (M, parameters).
        log_density: (M,).
        spacing: between neighbours, (parameters,).
    """

    z: Array
    log_density: Array
    spacing: Array

    @property
    def weights(self) -> Array:
        """The probability of the cell of each point, (M,)."""
        w = np.exp(self.log_density - self.log_density.max())
        return w / w.sum()

    @property
    def best(self) -> Array:
        """The point of the largest density, (parameters,)."""
        return self.z[self.log_density.argmax()]

    @property
    def std(self) -> Array:
        """The standard deviation of each parameter, (parameters,)."""
        mean = self.weights @ self.z
        return np.sqrt(self.weights @ np.square(self.z - mean)) + self.spacing / 4

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n draws, uniform within a cell, (n, parameters)."""
        z = self.z[rng.choice(len(self.z), size=n, p=self.weights)]
        z = z + self.spacing * rng.uniform(-0.5, 0.5, z.shape)
        return np.clip(z, self.z.min(axis=0), self.z.max(axis=0))


def grid_on(density: Density, part: Part) -> Grid:
    """257 points, or 65 × 65, ends included.

    Raises:
        InputError: if the prior excludes all of them.
    """
    parameters = len(part.low)
    number = NUMBER[parameters]
    axes = [np.linspace(a, b, number) for a, b in zip(*part, strict=True)]
    z = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, parameters)
    log_density = density(z)
    if not np.isfinite(log_density).any():
        raise InputError("prior is -inf over the whole range of the family; it must allow a part of it.")
    return Grid(z, log_density, (part.high - part.low) / (number - 1))


def likely(density: Density, part: Part, error: float = 0.0) -> Part:
    """The box that holds all but e⁻²⁵ of the density.

    Args:
        density: on a larger box.
        part: the larger box.
        error: of the predictions, ‖·‖₂; what it may hide counts as likely.
    """
    grid = grid_on(density, part)
    highest = density(grid.z, error).max()
    most = density(grid.z, -error)
    held = most + _rise(most, len(part.low)) > highest - FAR
    low, high = grid.z[held].min(axis=0) - grid.spacing, grid.z[held].max(axis=0) + grid.spacing
    return Part(np.maximum(low, part.low), np.minimum(high, part.high))


def resolve(density: Density) -> Grid:
    """A grid that resolves the density: its box shrinks to where the density counts until it no longer does."""
    part = density.interpolant.part
    while (narrow := likely(density, part)).volume < part.volume / 2 and (narrow.high - narrow.low > 1e-12).all():
        part = narrow
    return grid_on(density, part)


def _rise(log_density: Array, parameters: int) -> Array:
    """By how much a density may exceed its value at a point of the grid before the next one, (M,)."""
    table = log_density.reshape((NUMBER[parameters],) * parameters)
    with np.errstate(invalid="ignore"):
        slopes = np.abs(np.stack(np.gradient(table) if parameters > 1 else [np.gradient(table)]))
    return 2 * np.where(np.isfinite(slopes), slopes, 0).sum(axis=0).reshape(-1)


# Laplace's approximation.


class Normal(NamedTuple):
    """A normal distribution of z.

    Attributes:
        mode: (parameters,).
        covariance: (parameters, parameters); NaN where the density has no maximum inside.
    """

    mode: Array
    covariance: Array

    @property
    def exists(self) -> bool:
        return bool(np.isfinite(self.covariance).all())


def laplace_approximation(density: Density, grid: Grid) -> Normal:
    """The normal distribution at the maximum of the density, by its second differences.

    Args:
        density: the logarithm of a density.
        grid: resolves it.
    """
    unit, highest, part = grid.std, grid.log_density.max(), density.interpolant.part
    bounds = [*zip((part.low - grid.best) / unit, (part.high - grid.best) / unit, strict=True)]

    def depth(t: Array) -> float:
        # A finite number where the prior excludes a value.
        return min(float(highest - density((grid.best + unit * t)[None])[0]), 1e6)

    found = minimize(
        depth, np.zeros(len(unit)), method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-8}
    )
    mode = np.clip(grid.best + unit * found.x, part.low, part.high)
    room = np.minimum(mode - part.low, part.high - mode)
    nowhere = Normal(mode, np.full((len(mode), len(mode)), math.nan))
    if (room < 1e-3 * unit).any():
        return nowhere
    # First the curvature, then differences over a tenth of a standard deviation along each axis.
    curvature = -np.diag(_hessian(density, mode, np.minimum(1e-2 * unit, room)))
    if not (np.isfinite(curvature) & (curvature > 0)).all():
        return nowhere
    precision = -_hessian(density, mode, np.minimum(0.1 / np.sqrt(curvature), room))
    if not (np.isfinite(precision).all() and (np.linalg.eigvalsh(precision) > 0).all()):
        return nowhere
    return Normal(mode, np.linalg.inv(precision))


def _hessian(f: Callable[[Array], Array], z: Array, step: Array) -> Array:
    """Second central differences of f: (M, d) -> (M,) at z, (d, d)."""
    d = len(z)
    e = np.diag(step)
    H = np.empty((d, d))
    for i, j in itertools.combinations_with_replacement(range(d), 2):
        shifts = [e[i] + e[j], e[i] - e[j], e[j] - e[i], -e[i] - e[j]] if i != j else [e[i], 0 * e[i], 0 * e[i], -e[i]]
        with np.errstate(invalid="ignore"):
            a, b, c, g = f(z + np.array(shifts))
            H[i, j] = H[j, i] = (a - b - c + g) / (step[i] * step[j] * (4 if i != j else 1))
    return H


# Samples.


class Chain(NamedTuple):
    """Samples of z.

    Attributes:
        z: (n, parameters).
        acceptance: the part of the proposals that was accepted; NaN without a chain.
        time: the autocorrelation time of the slowest parameter in steps; NaN without a chain.
        warnings: in sentences.
    """

    z: Array
    acceptance: float = math.nan
    time: float = math.nan
    warnings: tuple[str, ...] = ()


def sampler_library() -> ModuleType:
    """emcee, an extra.

    Raises:
        InputError: if it is missing.
    """
    try:
        import emcee
    except ImportError:
        raise InputError(
            "method='mcmc' needs the package emcee: pip install 'pinn-odelora[bayes]'; method='laplace' does without."
        ) from None
    return emcee


def normal_draws(normal: Normal, part: Part, n: int, rng: np.random.Generator) -> Chain:
    """Draws of the normal distribution within a box, by rejection.

    Raises:
        InputError: if there is no such distribution, or hardly any of it lies in the range.
    """
    if not normal.exists:
        raise InputError(
            "The density has no maximum inside the range of the family, so method='laplace' has nothing to offer; "
            "take method='mcmc', or extend the family."
        )
    half = np.linalg.cholesky(normal.covariance)
    kept = np.empty((0, len(half)))
    for _ in range(100):
        z = normal.mode + rng.standard_normal((n, len(half))) @ half.T
        kept = np.concatenate([kept, z[part.holds(z)]])
        if len(kept) >= n:
            return Chain(kept[:n])
    raise InputError(
        "The measurements tell so little that hardly a part of Laplace's normal distribution lies in the range of the "
        "family; take method='mcmc'."
    )


def run_chain(density: Density, start: Array, steps: int, rng: np.random.Generator) -> Chain:
    """Samples after the burn-in, every half of an autocorrelation time.

    Args:
        density: its logarithm, for all walkers at once.
        start: of each walker, (walkers, parameters).
        steps: of each walker.
        rng: its seed is drawn from this.
    """
    emcee = sampler_library()
    walkers, parameters = start.shape
    sampler = emcee.EnsembleSampler(walkers, parameters, density, vectorize=True)
    # emcee draws from a generator of numpy's former kind.
    state = np.random.RandomState(int(rng.integers(2**32))).get_state()
    sampler.run_mcmc(emcee.State(start, random_state=state), steps)
    chain = sampler.get_chain()
    time = float(np.max(emcee.autocorr.integrated_time(chain, quiet=True, tol=0)))
    said = ()
    if not steps >= LONG_ENOUGH * time:
        said = (
            f"The chain of {steps} steps is shorter than {LONG_ENOUGH} times its autocorrelation time ({time:.0f}), so "
            "its quantiles are uncertain; raise steps.",
        )
    time = time if math.isfinite(time) else float(steps)
    kept = chain[min(math.ceil(BURN_IN * time), steps // 2) :: max(1, int(time / 2))]
    return Chain(kept.reshape(-1, parameters), float(sampler.acceptance_fraction.mean()), time, said)
