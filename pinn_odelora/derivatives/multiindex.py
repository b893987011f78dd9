"""Derivative multi-indices as sorted strings, and the combinatorics of the chain and product rules.

``"txx"`` stands for ∂³/∂t∂x², the empty string for the value. For f = s(z) with a pointwise s,

    f_α = Σ_π  s^(|π|)(z) · Π_{β ∈ π} z_β ,     π over the set partitions of the letters of α   (Faà di Bruno),

and for a product  (f g)_α = Σ_S f_S g_{α∖S},  S over the subsets of the letters (Leibniz). Equal summands are stored
once with their multiplicity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import combinations

Word = str
"""A multi-index: the letters of the coordinates, sorted."""


def word(letters: Iterable[str]) -> Word:
    """The multi-index of letters given in any order."""
    return "".join(sorted(letters))


@cache
def partitions(alpha: Word) -> tuple[tuple[int, tuple[Word, ...]], ...]:
    """The set partitions of the letters of α as (multiplicity, blocks): xx -> (1, (xx,)), (1, (x, x))."""
    return tuple((count, blocks) for blocks, count in Counter(_partitions(alpha)).items())


def _partitions(alpha: Word) -> list[tuple[Word, ...]]:
    if not alpha:
        return [()]
    first, rest = alpha[0], alpha[1:]
    grown = []
    for blocks in _partitions(rest):
        grown.append((first, *blocks))
        grown += [(*blocks[:i], word(first + blocks[i]), *blocks[i + 1 :]) for i in range(len(blocks))]
    return [tuple(sorted(blocks)) for blocks in grown]


@cache
def splits(alpha: Word) -> tuple[tuple[int, Word, Word], ...]:
    """The ways to split the letters of α between two factors, as (multiplicity, left, right)."""
    places = range(len(alpha))
    dealt = Counter(
        (word(alpha[i] for i in left), word(alpha[i] for i in places if i not in left))
        for k in range(len(alpha) + 1)
        for left in combinations(places, k)
    )
    return tuple((count, left, right) for (left, right), count in dealt.items())


def parts(alpha: Word) -> set[Word]:
    """All multi-indices in the chain rule of α: its non-empty sub-words, α included."""
    return {block for _, blocks in partitions(alpha) for block in blocks}


def closed(words: Iterable[Word]) -> tuple[Word, ...]:
    """The closure of multi-indices under the chain rule, without the value, by increasing order."""
    needed = set().union(*(parts(alpha) for alpha in words))
    return tuple(sorted(needed, key=lambda alpha: (len(alpha), alpha)))
