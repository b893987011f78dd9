"""Residual-based adaptive sampling (RAD): a step draws some of its points by the size of the residual.

Of n points a fraction is drawn without replacement from the candidates with probability ∝ |r| / mean|r| + c, |r| the
size of the residual at the present network; the others are the first of the candidates that are left, which are even
(Wu, Zhu, Tan, Kartha and Lu, 2023, arXiv 2207.10289, there with c = 1). How many points the loss rests on is told by
the effective sample size of its summands (Kish, 1965),

    N = (Σ r²)² / Σ r⁴ .

Among 2n candidates this is hundreds where the solution is smooth. In a shock that holds a few points of a thousand it
is a handful, and a step that has seen it by chance only loses it at the next one. So where the effective sample size of
the first 2n candidates is below 16, the residual is evaluated at all others as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, linalg

from pinn_odelora.points import Points

AT_ONCE = 2
"""Candidates for each point that is kept."""
AT_MOST = 10
"""Candidates for each point that is kept, where the effective sample size is small."""
LEAST_EFFECTIVE = 16
EVEN = 0.2
"""c: what a point without a residual has of the average chance that a residual gives."""


def candidates(n: int, most: int) -> int:
    """How many are drawn where n are to be kept; ``most`` is a bound."""
    return max(AT_ONCE * n, min(AT_MOST * n, most))


def resampled(
    p: Points, n: int, part: float, residual: Callable[[Points], Tensor], generator: torch.Generator
) -> Points:
    """n of the candidates p, or all if those are fewer, a part by the size of ``residual(p)``, (N, components)."""
    if n >= p.number:
        return p
    size = _sizes(p, AT_ONCE * n, residual)
    by_size = round(part * n)
    # torch.multinomial refuses to draw none.
    drawn = torch.multinomial(_chance(size), by_size, generator=generator) if by_size else torch.empty(0).long()
    left = torch.ones(len(size), dtype=torch.bool)
    left[drawn] = False
    return _rows(p, torch.cat([drawn, left.nonzero()[: n - len(drawn), 0]]))


def effective_sample_size(size: Tensor) -> float:
    """N from |r|, (N,); NaN where all are zero."""
    loss = size.square()
    return float(loss.sum() ** 2 / loss.square().sum())


def _sizes(p: Points, first: int, residual: Callable[[Points], Tensor]) -> Tensor:
    """|r| at the first candidates, or at all of them where the effective sample size is small; float64 on the CPU."""
    size = lambda rows: linalg.vector_norm(residual(_rows(p, rows)).detach(), dim=1).double().cpu()
    found = size(torch.arange(min(first, p.number)))
    if p.number > first and effective_sample_size(found) < LEAST_EFFECTIVE:
        found = torch.cat([found, size(torch.arange(first, p.number))])
    return found


def _chance(size: Tensor) -> Tensor:
    """Uniform where the residual vanishes or is not finite: there is nothing to follow."""
    mean = size.mean()
    return size / mean + EVEN if 0 < mean < torch.inf else torch.ones_like(size)


def _rows(p: Points, rows: Tensor) -> Points:
    return Points({name: x[rows.to(x.device)] for name, x in p.items()})
