"""What published optimisers of LoRA pairs share: one evaluation a step, a rule for pairs, and Adam on other tensors.

A rule takes a pair A (r, n), B (m, r) with gradients g_A = s BᵀG, g_B = s GAᵀ, where W = W0 + s·B A and G = ∂L/∂W, to
the next pair. Tensors that are no factors, as biases and a last layer trained beside the factors, go by Adam (Kingma
and Ba, 2015, arXiv 1412.6980) with the learning rate of the pairs, since the papers speak of pairs alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.errors import InputError
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import (
    Group,
    Layer,
    check_group,
    completed,
    has_gradient,
    is_pair,
    listed,
    read_scale,
)
from pinn_odelora.rules import fractions, number

ADVICE = "build them by pinn_odelora.factor_pairs(model)"
POSITIVE = number(above=0)
NOT_NEGATIVE = number(least=0)
WIDE = (torch.float32, torch.float64)
State = MutableMapping[str, Any]


class PairOptimizer(Optimizer):
    """Moves every LoRA pair by ``pair``, and every other tensor by ``single``.

    ``step(closure)`` evaluates the closure once; ``step()`` takes the gradients that are there. What a rule remembers
    of a pair is in the state of its A, that of another tensor in its own, so that both are saved by ``state_dict``.
    ``state["step"]`` counts from 1. The scale of a pair is read from its layer at each step, where its group names one;
    a copy or a pickle of the optimiser keeps the last one.

    Args:
        groups: parameter groups of one pair or one tensor each, as ``factor_pairs`` and ``trainable_groups`` give.
        lr: η, of all groups.
        settings: defaults of the groups beyond ``lr`` and ``scale``; ``betas`` and ``eps`` are those of Adam,
            ``weight_decay`` λ is 0 unless it is given. A group may have others of its own.

    Raises:
        InputError: for a group that is neither a pair nor one tensor, is not of float32 or float64, or sets what this
            optimiser does not have.
        FloatingPointError: by ``step``, where a decomposition of the factors fails.
    """

    def __init__(self, groups: Iterable[Group], lr: float, **settings: Any) -> None:
        self._own = frozenset(settings)
        self._layers: list[Layer | None] = []
        defaults = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "scale": 1.0, "above": None}
        super().__init__(listed(groups, type(self).__name__, ADVICE), {**defaults, "lr": lr, **settings})

    def add_param_group(self, param_group: Group) -> None:
        """Add a pair or a tensor.

        Raises:
            InputError: as the class.
        """
        group = completed(param_group, len(self.param_groups))
        layer = group.pop("layer", None)  # a module, which a state_dict must not hold
        check_group(group, ADVICE, type(self).__name__, self._own)
        if other := {p.dtype for p in group["params"]} - {*WIDE}:
            # Moments of 16 bits stand still: 0.999 v is v.
            raise InputError(
                f"{group['name']} is of {other.pop()}, but {type(self).__name__} computes in the precision of the "
                "factors, which has to be float32 or float64."
            )
        if is_pair(group):
            self.check_pair(group)
        super().add_param_group(group)
        self._layers.append(layer)

    def check_pair(self, group: Group) -> None:
        """Refuse a pair for which the rule has no meaning.

        Args:
            group: with ``name``; settings that it does not have are in ``defaults``.

        Raises:
            InputError: one sentence.
        """

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps defaults, state and groups alone; a copy knows no layers, so its scales stay as they are.
        return {**super().__getstate__(), "_own": self._own, "_layers": [None] * len(self.param_groups)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        for group, layer in zip(self.param_groups, self._layers, strict=True):
            if layer is not None and read_scale(group, layer):
                self.check_pair(group)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with decomposing("the pairs"):
            self.prepare()
        for group in self.param_groups:
            if not has_gradient(group):
                continue
            first, *rest = group["params"]
            state = self.state[first]
            state["step"] = state.get("step", 0) + 1
            if is_pair(group):
                B = rest[0]
                with decomposing(group["name"]):
                    after = self.pair(Factors(first, B), Factors(first.grad, B.grad), state, group)
                first.copy_(after.A)
                B.copy_(after.B)
            else:
                first.copy_(self.single(first, first.grad, state, group))
        return loss

    def prepare(self) -> None:
        """What a rule needs of all pairs together, before the first one moves."""

    @abstractmethod
    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        """The pair after the step; neither ``y`` nor ``g`` may be written to.

        Args:
            y: A (r, n), B (m, r).
            g: g_A, g_B, same shapes.
            state: what the rule remembers of this pair, with ``step`` = t.
            group: its settings, ``lr`` and ``scale`` among them.
        """

    def single(self, x: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        """A tensor that is no factor after the step: by AdamW, which is Adam without a weight decay."""
        return adamw(x, g, state, group)


@contextmanager
def decomposing(name: str) -> Iterator[None]:
    """Tell of a decomposition that fails, as it does for numbers that overflow, as of numbers.

    Raises:
        FloatingPointError: with the name of what is decomposed.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise FloatingPointError(f"The factors of {name} cannot be decomposed: {error}") from error


def adam_direction(g: Tensor, state: State, betas: tuple[float, float], eps: float, key: str = "") -> Tensor:
    """m̂/(√v̂ + ε) with m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², both over 1 − βᵗ; t is ``state["step"]``.

    Args:
        g: the gradient, or what takes its place.
        state: holds m and v as ``m`` and ``v``, followed by ``key``.
    """
    (b1, b2), t = betas, state["step"]
    m = b1 * state.get(f"m{key}", torch.zeros_like(g)) + (1 - b1) * g
    v = b2 * state.get(f"v{key}", torch.zeros_like(g)) + (1 - b2) * g.square()
    state[f"m{key}"], state[f"v{key}"] = m, v
    return m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)


def adamw(x: Tensor, g: Tensor, state: State, group: Group, key: str = "") -> Tensor:
    """(1 − ηλ) x − η m̂/(√v̂ + ε), with η, λ, betas and ε of the group.

    Args:
        x: what is moved.
        g: its gradient, or what takes the place of that.
        state: of ``adam_direction``.
        key: of its moments there.
    """
    step = adam_direction(g, state, group["betas"], group["eps"], key)
    return (1 - group["lr"] * group["weight_decay"]) * x - group["lr"] * step


def damped(S: Tensor, damping: float) -> Tensor:
    """S + δI for a Gram matrix S.

    Args:
        S: AAᵀ or BᵀB, (r, r).
        damping: δ ≥ 0.
    """
    return S + damping * torch.eye(len(S), dtype=S.dtype, device=S.device)


def damped_inverse(S: Tensor, damping: float) -> Tensor:
    """(S + δI)⁻¹, (r, r), for a Gram matrix S; where that is singular, the pseudo-inverse, as in PEFT and LoRA-Pro.

    Args:
        S: AAᵀ or BᵀB, (r, r).
        damping: δ ≥ 0.
    """
    return torch.linalg.pinv(damped(S, damping), hermitian=True)


def adam_settings(lr: float, betas: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Learning rate and decay rates of the two moments, checked.

    Raises:
        InputError: unless lr > 0 and betas are two numbers in [0, 1).
    """
    b1, b2 = fractions(2).check("betas", [*betas])
    return POSITIVE.check("lr", lr), (b1, b2)
