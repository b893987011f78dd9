"""Two rank thresholds for LoRA on a linearised model with R = K·N rows, and where they say nothing.

Jang, Lee and Ryu (2024, arXiv 2402.11867), for linearised training: with

    r (r + 1)/2 > K·N

the regularised loss in factors of rank r, perturbed generically, has no spurious local minimum (the exact form is
known to us second-hand). The left side counts the symmetric r × r matrices S in B S A.

Park (2026, arXiv 2605.03724), from its abstract, second-hand in detail:

    r (m + n) − r² > C* K·N ,    C* ≈ 1.35 for Gaussian features.

The left side is the dimension of the manifold of rank-r matrices.

Of several layers of one rank r, each left side is summed over the layers: for the first because S may be block-
diagonal (``ntk.reduction``), for the second because dimensions add up. Both summed forms are our own reading. A
threshold above min(m, n) is vacuous: no factors of that rank exist, and the statement is one on full matrices. None of
this is a guarantee for the network itself, whose outputs are not linear in its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pinn_odelora.errors import InputError
from pinn_odelora.ntk.model import Linearised
from pinn_odelora.rules import number, whole

GAUSSIAN = 1.35
"""C* of Park for Gaussian features."""
ALL = "all layers"


@dataclass(frozen=True)
class Threshold:
    """The smallest rank above a threshold, of one layer or of all at one rank.

    Attributes:
        source: whose it is.
        layer: its name, or ``all layers``.
        count: the left side at that rank; at the largest possible rank where none is above the threshold.
        needed: the right side, which the count must exceed.
        rank: the smallest r; None where no r at all exceeds it.
        largest: min(m, n), of all layers the smallest.
    """

    source: str
    layer: str
    count: int
    needed: float
    rank: int | None
    largest: int

    @property
    def vacuous(self) -> bool:
        """Whether factors of that rank do not exist."""
        return self.rank is None or self.rank > self.largest

    def __str__(self) -> str:
        if self.rank is None:
            return f"no rank up to {self.largest} ({self.count} ≤ {self.needed:g}): vacuous"
        what = f"vacuous, above min(m, n) = {self.largest}" if self.vacuous else f"of {self.largest} at most"
        return f"r ≥ {self.rank} ({self.count} > {self.needed:g}), {what}"


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a model; ``print`` shows what they mean.

    Attributes:
        rows: R = K·N, scalar equations.
        found: every threshold, per layer and of all layers.
    """

    rows: int
    found: tuple[Threshold, ...]

    def of(self, source: str, layer: str = ALL) -> Threshold:
        """One of them; ``source`` is ``jang`` or ``park``."""
        for one in self.found:
            if (one.source, one.layer) == (source, layer):
                return one
        raise InputError(f"There is no threshold of {source!r} for {layer!r}; sources are jang and park.")

    def __str__(self) -> str:
        layers = [*dict.fromkeys(one.layer for one in self.found)]
        width = max(map(len, layers))
        lines = [f"Rank thresholds of the linearised model, {self.rows} rows (residuals, or outputs times examples):"]
        for source, formula in (("jang", "r(r+1)/2 > KN"), ("park", f"r(m+n) − r² > {GAUSSIAN:g} KN")):
            lines.append(f"  {formula}, no spurious minima ({TITLES[source]}):")
            lines += [f"    {layer:{width}}  {self.of(source, layer)}" for layer in layers]
        lines.append(
            "Per layer: if that layer alone is adapted. All layers: one rank r for all, left sides summed. They are "
            "statements on the linearised model, not on the network itself."
        )
        return "\n".join(lines)


TITLES = {"jang": "Jang, Lee and Ryu, 2024, perturbed loss", "park": "Park, 2026, Gaussian features"}


def rank_thresholds(
    model: Linearised | Mapping[str, tuple[int, int]], rows: int | None = None, *, constant: float = GAUSSIAN
) -> Thresholds:
    """Both thresholds, for each layer alone and for all layers at one rank.

    Args:
        model: a linearised model; or the shapes (m, n) of the layers by name.
        rows: R = K·N, the number of residual rows, or of outputs times examples; that of the model if absent.
        constant: C* of the second threshold.

    Raises:
        InputError: if there are no layers, no rows, or the constant is not positive.
    """
    if isinstance(model, Linearised):
        shapes, rows = model.shapes, model.rows if rows is None else rows
    else:
        shapes = dict(model)
    rows = whole(1).check("rows", rows)
    number(above=0).check("constant", constant)
    if not shapes:
        raise InputError("There are no layers, but a threshold is one on the rank of at least one.")
    groups = {name: [shape] for name, shape in shapes.items()}
    if len(shapes) > 1:
        groups[ALL] = [*shapes.values()]
    found = [jang(name, each, rows) for name, each in groups.items()]
    found += [park(name, each, rows, constant) for name, each in groups.items()]
    if len(shapes) == 1:
        found += [Threshold(one.source, ALL, one.count, one.needed, one.rank, one.largest) for one in found]
    return Thresholds(rows, tuple(found))


def jang(layer: str, shapes: list[tuple[int, int]], rows: int) -> Threshold:
    """The smallest r with Σ_l r(r+1)/2 > R."""
    r = 1
    while len(shapes) * r * (r + 1) // 2 <= rows:
        r += 1
    return Threshold("jang", layer, len(shapes) * r * (r + 1) // 2, rows, r, min(map(min, shapes)))


def park(layer: str, shapes: list[tuple[int, int]], rows: int, constant: float = GAUSSIAN) -> Threshold:
    """The smallest r with Σ_l r(m+n) − r² > C* R, up to the smallest min(m, n)."""
    largest = min(map(min, shapes))
    count = lambda r: sum(r * (m + n) - r * r for m, n in shapes)
    rank = next((r for r in range(1, largest + 1) if count(r) > constant * rows), None)
    return Threshold("park", layer, count(rank or largest), constant * rows, rank, largest)
