"""Settings of the low-rank update: adapted layers, rank, and initial factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pinn_odelora.errors import RefusedValueError
from pinn_odelora.rules import check, list_of, null, number, one_of, text, whole

if TYPE_CHECKING:
    from pinn_odelora.selection.rank import AdaptiveRank

AUTO = "auto"
"""The rank chosen from the layers and the number of points, see ``selection.initial_rank``."""
ADAPTIVE = "adaptive"
"""The rank that follows the gradient, see ``selection.rank``."""
STARTS = ("zero", "orthonormal", "pissa", "olora", "nora", "lora_ga", "lora_one")
SINGULAR = ("zero", "nora")
"""Starts where one of the factors is zero."""
OF_GRADIENT = ("lora_ga", "lora_one")
"""Starts made from the gradient of the loss where the network begins."""
KEPT = ("lora_one",)
"""Starts whose product stays in the weight: the function changes."""
THAWED = ("biases", "first", "last")
"""What else can be trained besides the factors."""
SCALINGS = ("standard", "rslora")
"""How s follows from alpha."""


@dataclass(frozen=True)
class LoRA:
    """The low-rank update  W = W0 + s (B A - B₀ A₀)  of a layer W (m, n), with B (m, r) and A (r, n).

    Args:
        rank: r; a layer that cannot have it has min(m, n). ``auto`` is 8 if the batch stays under-determined, else 4;
            ``adaptive`` follows the gradient.
        scale: s, unless ``alpha`` is given.
        alpha: α, from which s follows, as in PEFT, by ``scaling``; with an adaptive rank from its start.
        scaling: ``standard`` for s = α/r (Hu et al., 2022, arXiv 2106.09685), ``rslora`` for s = α/√r, with which the
            speed of training does not fall with the rank (Kalajdzievski, 2023, arXiv 2312.03732).
        targets: names of the adapted layers, as a shell pattern or a list of patterns; None for all hidden layers, by
            the wiring of the network, see ``lowrank.wiring``.
        also: what is trained besides the factors: ``biases`` of all linear layers; ``first`` and ``last``, whole first
            and last layers unless they are adapted.
        start: initial factors, ``zero``, ``orthonormal``, ``pissa``, ``olora``, ``nora``, ``lora_ga`` or ``lora_one``;
            see ``lowrank.start``. The last two cost a gradient; with ``lora_one`` B₀ A₀ is not subtracted.
        start_size: the singular values of s B₀ A₀ for an orthonormal start.
        adaptive: settings of the adaptive rank; None for the defaults. Not used with a fixed rank.

    Raises:
        InputError: if a value is out of range, an adaptive rank is combined with a start at zero, a scale is given
            beside ``alpha``, or ``rslora`` without it.
    """

    rank: int | Literal["auto", "adaptive"] = AUTO
    scale: float = 1.0
    alpha: float | None = None
    scaling: Literal["standard", "rslora"] = "standard"
    targets: str | Sequence[str] | None = None
    also: Sequence[str] = ("first", "last")
    start: Literal["zero", "orthonormal", "pissa", "olora", "nora", "lora_ga", "lora_one"] = "pissa"
    start_size: float = 0.1
    adaptive: AdaptiveRank | None = None

    def __post_init__(self) -> None:
        check(self, rank=whole(1) | one_of(AUTO, ADAPTIVE), scale=number(above=0), start=one_of(*STARTS))
        check(self, targets=text | list_of(text, "patterns") | null, start_size=number(above=0))
        check(self, also=list_of(one_of(*THAWED), f"words, each {', '.join(THAWED[:-1])} or {THAWED[-1]}"))
        check(self, alpha=number(above=0) | null, scaling=one_of(*SCALINGS))
        if self.alpha is not None and self.scale != 1:
            raise RefusedValueError("scale", self.scale, "1, its default, where alpha is given, from which it follows")
        if self.alpha is None and self.scaling != "standard":
            raise RefusedValueError("alpha", None, f"a number where scaling is {self.scaling}")
        if self.rank == ADAPTIVE and self.start in SINGULAR:
            allowed = "pissa or orthonormal if the rank is adaptive: new directions are scaled by the initial ones"
            raise RefusedValueError("start", self.start, allowed)

    def scale_at(self, rank: int) -> float:
        """s of factors of rank r.

        Args:
            rank: r.
        """
        if self.alpha is None:
            return self.scale
        return self.alpha / (rank if self.scaling == "standard" else math.sqrt(rank))
