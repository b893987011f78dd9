"""Residual-based adaptive sampling (RAD): a step draws some of its points by the size of the residual.

Of n points a fraction is drawn without replacement from 2n candidates with probability ∝ |r| / mean|r| + c, |r| the
size of the residual at the present network; the others are the first of the candidates that are left, which are even
(Wu, Zhu, Tan, Kartha and Lu, 2023, arXiv 2207.10289, there with c = 1). How many points the loss rests on is told by
the effective sample size of its summands (Kish, 1965),

    N = (Σ r²)² / Σ r⁴ .

Among the candidates this is hundreds where the solution is smooth. In a shock that holds a few points of a thousand it
is a handful: a step fits the residual at these and leaves it between them, where the next step finds it. So where N is
below a hundredth of the number of candidates, many more are drawn, 20 n, and the residual is not evaluated there: each
takes |r| of the nearest candidate, with distances in units of what the candidates extend over in each coordinate. Their
density is then constant on the Voronoi cells of the candidates, and there are as many of them in the shock as its part
of Σ|r| asks for, rather than as many as candidates happened to be there. The fraction drawn by size is doubled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.spatial import KDTree
from torch import Tensor, linalg

from pinn_odelora.points import Points

CANDIDATES = 2
"""For each point that is kept."""
CONCENTRATED = 0.01
"""The effective sample size, by the number of candidates, below which there are further ones."""
FURTHER = 20
"""Of them for each point that is kept."""
EVEN = 0.2
"""c: what a point without a residual has of the average chance that a residual gives."""


def resampled(
    p: Points,
    n: int,
    part: float,
    residual: Callable[[Points], Tensor],
    generator: torch.Generator,
    further: Callable[[int], Points] | None = None,
) -> Points:
    """n of the candidates p, or all if those are fewer, a part by the size of ``residual(p)``, (N, components).

    Where the loss rests on few of them, ``further(k)`` draws k more points of the region, of which some may be given
    instead; None: there are none.
    """
    if n >= p.number:
        return p
    size = linalg.vector_norm(residual(p).detach(), dim=1).double().cpu()
    if further is not None and effective_sample_size(size) < CONCENTRATED * p.number:
        p, size = _extended(p, size, further(FURTHER * n))
        part = min(1.0, 2 * part)
    by_size = round(part * n)
    # torch.multinomial refuses to draw none.
    drawn = torch.multinomial(_chance(size), by_size, generator=generator) if by_size else torch.empty(0).long()
    left = torch.ones(len(size), dtype=torch.bool)
    left[drawn] = False
    return _rows(p, torch.cat([drawn, left.nonzero()[: n - len(drawn), 0]]))


def effective_sample_size(size: Tensor) -> float:
    """N from |r|, (N,); NaN where all are zero. In double precision, since |r|⁴ is soon out of the range of another."""
    loss = size.double().square()
    return float(loss.sum() ** 2 / loss.square().sum())


def _extended(p: Points, size: Tensor, more: Points) -> tuple[Points, Tensor]:
    """Points and sizes with those of further points, each of which has the size of the nearest of p; a point that is
    among p already is left out.
    """
    coords = [name for name in p if name not in {f"n{axis}" for axis in p.normals}]
    here, there = (q.rows(coords).double().cpu() for q in (p, more))
    extent = here.amax(0) - here.amin(0)
    extent[extent == 0] = 1.0
    distance, nearest = (torch.from_numpy(x) for x in KDTree((here / extent).numpy()).query((there / extent).numpy()))
    new = distance > 0
    joined = Points({name: torch.cat([x, more[name].to(x)[new.to(x.device)]]) for name, x in p.items()})
    return joined, torch.cat([size, size[nearest[new]]])


def _chance(size: Tensor) -> Tensor:
    """Uniform where the residual vanishes or is not finite: there is nothing to follow."""
    mean = size.mean()
    return size / mean + EVEN if 0 < mean < torch.inf else torch.ones_like(size)


def _rows(p: Points, rows: Tensor) -> Points:
    return Points({name: x[rows.to(x.device)] for name, x in p.items()})
