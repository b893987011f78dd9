"""Weights of the stations in a first guess of a member: Σ_k c_k(x) θ_k with Σ_k c_k = 1.

``polyharmonic``  the interpolant by φ(d) = d³ and affine functions, in one parameter the natural cubic spline: exact
                  on smooth paths, but it oscillates where the path is rough (Duchon, 1977);
``affine``        the weights of least Σ_k c_k² d_k⁴ that reproduce affine functions, d_k the distance to station k:
                  in one parameter close to linear interpolation between the two nearest;
``nearest``       the nearest station.

All are tried; the one with the smallest residual is the base point of the span.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def guesses(stations: NDArray, x: NDArray) -> Iterator[NDArray]:
    """Weights (K,) of stations at coordinates (K, parameters) for a member at x (parameters,)."""
    distances = np.linalg.norm(stations - x, axis=1)
    nearest = np.zeros(len(stations))
    nearest[np.argmin(distances)] = 1.0
    yield nearest
    if len(stations) > stations.shape[1] + 1 and distances.min() > 0:
        yield _affine(stations, x, distances)
        yield _polyharmonic(stations, x, distances)


def _affine(stations: NDArray, x: NDArray, distances: NDArray) -> NDArray:
    """min Σ c² d⁴ with  C c = (1, x):  c = D⁻¹ Cᵀ (C D⁻¹ Cᵀ)⁺ (1, x)."""
    C = np.vstack([np.ones(len(stations)), stations.T])
    weight = distances**-4.0
    return weight * (C.T @ (np.linalg.pinv((C * weight) @ C.T, rcond=1e-12) @ np.concatenate([[1.0], x])))


def _polyharmonic(stations: NDArray, x: NDArray, distances: NDArray) -> NDArray:
    """The first K unknowns of  [Φ Cᵀ; C 0] (c, λ) = (φ(x), 1, x)."""
    K = len(stations)
    C = np.vstack([np.ones(K), stations.T])
    between = np.linalg.norm(stations[:, None] - stations[None], axis=2)
    system = np.block([[between**3, C.T], [C, np.zeros((len(C), len(C)))]])
    return np.linalg.lstsq(system, np.concatenate([distances**3, [1.0], x]), rcond=None)[0][:K]
