"""Stateless low-discrepancy points: draw k is a function of (seed, k) alone.

The scrambled Sobol set of (n, d, seed) is shifted modulo one by a vector from a generator seeded with (seed, draw):
randomised quasi-Monte Carlo by rotation (Cranley and Patterson, 1976). A run resumed at step k therefore draws the same
points as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

# An odd multiplier keeps (seed, draw) and (seed + 1, draw - 1) distinct.
_MIX = 0x9E3779B97F4A7C15


def stream(name: str, *numbers: int) -> int:
    """The seed of a named stream of points; streams with different names or numbers are scrambled independently.

    Args:
        name: the purpose of the points, such as ``training`` or ``held-out``.
        numbers: further keys, such as the seed of the run and the number of a term.
    """
    text = "/".join([name, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


@lru_cache(maxsize=64)
def _scrambled(n: int, d: int, seed: int) -> Tensor:
    points = SobolEngine(d, scramble=True, seed=seed).draw(n, dtype=torch.float64)
    # torch makes the first point in its default precision, which DeepXDE changes: the same bits under any.
    points[:1] = points[:1].float()
    return points


def sobol(n: int, d: int, seed: int, draw: int = 0) -> Tensor:
    """n points in the unit cube [0, 1)^d, float64, (n, d); the same (seed, draw) gives the same bits.

    Args:
        n: number of points; powers of two have the lowest discrepancy.
        d: dimension; 0 gives an (n, 0) tensor.
        seed: of the scrambling.
        draw: of the rotation; fixed points use a single draw, fresh ones count up.
    """
    if d == 0:
        return torch.empty(n, 0, dtype=torch.float64, device="cpu")
    generator = torch.Generator().manual_seed((seed * _MIX + draw) % 2**63)
    shift = torch.rand(1, d, generator=generator, dtype=torch.float64, device="cpu")
    return (_scrambled(n, d, seed) + shift) % 1.0
