"""A stateless stream of low-discrepancy points: draw k is a function of (seed, k) alone.

One scrambled Sobol set per (n, d, seed) is shifted modulo one by a vector drawn from a generator seeded with
(seed, draw): randomised quasi-Monte Carlo by rotation (Cranley and Patterson, 1976). Because nothing is carried
from draw to draw, a run that is resumed at step k sees exactly the points it would have seen.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

# Seeds are mixed by an odd multiplier so that (seed, draw) and (seed + 1, draw - 1) do not meet.
_MIX = 0x9E3779B97F4A7C15


def stream(name: str, *numbers: int) -> int:
    """The seed of a named stream of points: streams of other names or numbers share no scrambling.

    Args:
        name: what the points are for, as ``training`` or ``held-out``.
        numbers: the seed of the run, the number of a term, whatever tells streams of one name apart.
    """
    text = "/".join([name, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


@lru_cache(maxsize=64)
def _scrambled(n: int, d: int, seed: int) -> Tensor:
    return SobolEngine(d, scramble=True, seed=seed).draw(n, dtype=torch.float64)


def sobol(n: int, d: int, seed: int, draw: int = 0) -> Tensor:
    """n points in the unit cube [0, 1)^d, float64, (n, d); the same (seed, draw) gives the same bits.

    Args:
        n: number of points; powers of two are the most even.
        d: dimension; 0 gives an (n, 0) tensor.
        seed: which scrambling.
        draw: which rotation of it; a fixed point set uses one draw, a fresh one counts up.
    """
    if d == 0:
        return torch.empty(n, 0, dtype=torch.float64)
    generator = torch.Generator().manual_seed((seed * _MIX + draw) % 2**63)
    shift = torch.rand(1, d, generator=generator, dtype=torch.float64)
    return (_scrambled(n, d, seed) + shift) % 1.0
