"""Derivative multi-indices as sorted words, and the combinatorics of the chain and product rules.

``"xxt"`` stands for ∂³/∂x²∂t, the empty word for the value. For f = s(z), s acting pointwise,

    f_α = Σ_π  s^(|π|)(z) · Π_{β ∈ π} z_β ,     π over the set partitions of the letters of α   (Faà di Bruno),

and for a product  (f g)_α = Σ_S f_S g_{α∖S},  S over the subsets of the letters (Leibniz). Equal summands are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import combinations

Word = str
"""A multi-index: the letters of the coordinates, sorted."""


def word(letters: Iterable[str]) -> Word:
    """The multi-index of some letters, in any order."""
    return "".join(sorted(letters))


@cache
def partitions(alpha: Word) -> tuple[tuple[int, tuple[Word, ...]], ...]:
    """The set partitions of the letters of α as (how many equal ones, blocks): xx -> (1, (xx,)), (1, (x, x))."""
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
    """The ways to deal the letters of α to two factors as (how many equal ones, left, right)."""
    places = range(len(alpha))
    dealt = Counter(
        (word(alpha[i] for i in left), word(alpha[i] for i in places if i not in left))
        for k in range(len(alpha) + 1)
        for left in combinations(places, k)
    )
    return tuple((count, left, right) for (left, right), count in dealt.items())


def parts(alpha: Word) -> set[Word]:
    """All words that the chain rule of α reads: the non-empty sub-words, α itself included."""
    return {block for _, blocks in partitions(alpha) for block in blocks}


def closed(words: Iterable[Word]) -> tuple[Word, ...]:
    """The words with everything that their chain rules read, without the value, lowest order first."""
    needed = set().union(*(parts(alpha) for alpha in words))
    return tuple(sorted(needed, key=lambda alpha: (len(alpha), alpha)))
