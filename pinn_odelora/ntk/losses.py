"""Convex losses of all outputs f (R,) at once, as the linearised model needs them.

    squared        φ(f) = (c/2) ‖f − y‖²
    logistic       φ(f) = (1/N) Σ_i log(1 + exp(−y_i f_i)),                y_i = ±1
    cross_entropy  φ(f) = (1/N) Σ_i (log Σ_k exp f_ik − f_i,y_i),          y_i in 0, …, K − 1

c = 1 for the residuals of an equation, whose weights are in them, and 1/N for N examples. Each loss knows its gradient
w = ∇φ(f), a bound on the curvature, and its conjugate φ*(w) = sup_f ⟨w, f⟩ − φ(f), from which a duality gap follows
(``ntk.certificate``). A loss of the user's own is a function of outputs and targets; it is refused unless it is convex
between random outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError, unknown

PAIRS = 512
"""Random pairs of outputs between which a loss of the user's own is tried for convexity."""

Own = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs (N, K), targets)`` -> (N,), one value for each example."""


class ConvexLoss(Protocol):
    """φ: outputs of all rows (R,) -> a number.

    Attributes:
        curvature: an upper bound on the largest eigenvalue of the Hessian; infinite if none is known.
        name: in words.
    """

    name: str

    @property
    def curvature(self) -> float: ...

    def value(self, f: Tensor) -> Tensor:
        """φ(f), a scalar that can be differentiated."""

    def gradient(self, f: Tensor) -> Tensor:
        """w = ∇φ(f), (R,)."""

    def conjugate(self, w: Tensor) -> Tensor | None:
        """φ*(t w) for a gradient w scaled by t in [0, 1]; None if it is not known."""


@dataclass(frozen=True)
class SquaredError:
    """(c/2) ‖f − y‖²; y (R,)."""

    y: Tensor
    c: float = 1.0
    name: str = "squared"

    @property
    def curvature(self) -> float:
        return self.c

    def value(self, f: Tensor) -> Tensor:
        return self.c / 2 * (f - self.y).square().sum()

    def gradient(self, f: Tensor) -> Tensor:
        return self.c * (f - self.y)

    def conjugate(self, w: Tensor) -> Tensor:
        return w @ self.y + w.square().sum() / (2 * self.c)


@dataclass(frozen=True)
class Logistic:
    """Mean of log(1 + exp(−y f)); y (N,) of ±1."""

    y: Tensor
    name: str = "logistic"

    @property
    def curvature(self) -> float:
        return 1 / (4 * len(self.y))

    def value(self, f: Tensor) -> Tensor:
        return nn.functional.softplus(-self.y * f).mean()

    def gradient(self, f: Tensor) -> Tensor:
        return -self.y * torch.sigmoid(-self.y * f) / len(self.y)

    def conjugate(self, w: Tensor) -> Tensor:
        # w_i = −y_i p_i / N with p in [0, 1], the probability of the wrong label.
        p = -self.y * w * len(self.y)
        return (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean()


@dataclass(frozen=True)
class CrossEntropy:
    """Mean of log Σ_k exp f_k − f_y over N examples; y (N,) of whole numbers below ``classes``."""

    y: Tensor
    classes: int
    name: str = "cross_entropy"

    @property
    def curvature(self) -> float:
        return 1 / (2 * len(self.y))

    def value(self, f: Tensor) -> Tensor:
        return nn.functional.cross_entropy(f.view(-1, self.classes), self.y)

    def gradient(self, f: Tensor) -> Tensor:
        p = torch.softmax(f.view(-1, self.classes), dim=1)
        return ((p - self._hot(p)) / len(self.y)).flatten()

    def conjugate(self, w: Tensor) -> Tensor:
        # w_i = (p_i − e_{y_i}) / N with p_i in the simplex, where φ* is the negative entropy of p.
        p = len(self.y) * w.view(-1, self.classes)
        p = (p + self._hot(p)).clamp(min=0)
        return torch.xlogy(p, p).sum(dim=1).mean()

    def _hot(self, like: Tensor) -> Tensor:
        return nn.functional.one_hot(self.y, self.classes).to(like)


@dataclass(frozen=True)
class OwnLoss:
    """Mean over N examples of a function of outputs (N, K) and targets, without a known conjugate."""

    function: Own
    targets: Tensor
    outputs: int
    name: str = "own"

    @property
    def curvature(self) -> float:
        return math.inf

    def value(self, f: Tensor) -> Tensor:
        return self.function(f.view(-1, self.outputs), self.targets).mean()

    def gradient(self, f: Tensor) -> Tensor:
        with torch.enable_grad():
            f = f.detach().requires_grad_()
            return torch.autograd.grad(self.value(f), f)[0]

    def conjugate(self, w: Tensor) -> None:
        return None


def _squared(targets: Tensor, N: int, K: int) -> SquaredError:
    if targets.shape not in ((N, K), *([(N,)] if K == 1 else [])):
        raise InputError(f"targets has shape {tuple(targets.shape)}, but it must be ({N}, {K}), one row per example.")
    return SquaredError(targets.flatten().double(), 1 / N)


def _logistic(targets: Tensor, N: int, K: int) -> Logistic:
    if K != 1:
        raise InputError(f"The network has {K} outputs, but the logistic loss has one; choose cross_entropy.")
    labels = targets.flatten().double()
    if len(labels) != N or not bool((labels.abs() == 1).all()):
        raise InputError(f"targets must be {N} labels, each -1 or 1, for the logistic loss.")
    return Logistic(labels)


def _cross_entropy(targets: Tensor, N: int, K: int) -> CrossEntropy:
    whole = not targets.is_floating_point() and targets.shape == (N,)
    if K < 2 or not whole or not bool(((targets >= 0) & (targets < K)).all()):
        raise InputError(f"targets must be {N} whole numbers from 0 to {K - 1}, of at least two classes.")
    return CrossEntropy(targets.long(), K)


NAMED = {"squared": _squared, "logistic": _logistic, "cross_entropy": _cross_entropy}


def convex_loss(loss: str | Own, targets: Tensor, start: Tensor) -> ConvexLoss:
    """The loss of N examples.

    Args:
        loss: ``squared``, ``logistic``, ``cross_entropy``, or a function ``loss(outputs (N, K), targets)`` -> (N,).
        targets: one row or label for each example.
        start: outputs of the network, (N, K).

    Raises:
        InputError: for another name, targets that do not fit, or a function that is not convex in the outputs.
    """
    N, K = start.shape
    if isinstance(loss, str):
        if loss not in NAMED:
            raise unknown("loss", loss, NAMED, ", or a function of outputs (N, K) and targets that is convex")
        return NAMED[loss](targets, N, K)
    own = OwnLoss(loss, targets, K)
    _check_convex(own, start)
    return own


@torch.no_grad()
def _check_convex(own: OwnLoss, start: Tensor) -> None:
    """ℓ((a + b)/2) ≤ (ℓ(a) + ℓ(b))/2 between random outputs, near the start and far from it.

    Raises:
        InputError: if not, or if the values are not one for each example.
    """
    if own.function(start, own.targets).shape != (len(start),):
        raise InputError(f"The loss must give one value for each of the {len(start)} examples, of shape (N,).")
    generator = torch.Generator().manual_seed(0)
    spread = lambda: torch.randn(start.shape, generator=generator, dtype=start.dtype)
    for k in range(PAIRS):
        size = 10.0 ** (3 * k / PAIRS - 1)
        a, b = start + size * spread(), start + size * spread()
        ends = (own.function(a, own.targets) + own.function(b, own.targets)) / 2
        middle = own.function((a + b) / 2, own.targets)
        if bool((middle > ends + 1e-9 * (1 + ends.abs())).any()):
            raise InputError(
                "The loss is not convex in the outputs (its value half way between two outputs exceeds the mean of "
                f"theirs); allowed: {', '.join(NAMED)}, or a convex function."
            )
