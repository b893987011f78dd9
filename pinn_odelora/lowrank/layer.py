"""The adapted linear layer  W = W0 + s·(B A − B₀ A₀),  x ↦ W x + b,  with only A and B trained.

The start (A₀, B₀) is subtracted so that the layer computes what the pretrained one did at the first step, whatever
the factors start from, and directions that join later (``adaptive``) join both. The user's W0 is never changed. Factors
carry the names that PEFT gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pinn_odelora.manifolds.factors import Factors


class LowRankLinear(nn.Module):
    """A frozen ``nn.Linear`` (m, n) with a trained product s·B·A of rank r beside it.

    Args:
        base: the pretrained layer, kept as ``base_layer`` and frozen.
        start: factors (A₀, B₀) to start from; the layer's function does not change.
        scale: s, the factor in front of the product.
    """

    def __init__(self, base: nn.Linear, start: Factors, scale: float) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.scale = scale
        self.lora_A = nn.ModuleDict({"default": _factor(start.A)})
        self.lora_B = nn.ModuleDict({"default": _factor(start.B)})
        self.register_buffer("start_A", start.A.detach().clone())
        self.register_buffer("start_B", start.B.detach().clone())
        self._formed: Tensor | None = None

    @property
    def A(self) -> nn.Parameter:
        return self.lora_A["default"].weight

    @property
    def B(self) -> nn.Parameter:
        return self.lora_B["default"].weight

    @property
    def factors(self) -> Factors:
        return Factors(self.A, self.B)

    @property
    def start(self) -> Factors:
        """What is subtracted, (A₀, B₀); it has another rank than the factors where these have changed theirs."""
        return Factors(self.start_A, self.start_B)

    @property
    def rank(self) -> int:
        return len(self.A)

    def reshape(self, factors: Factors, start: Factors) -> None:
        """Take factors and start of other ranks. The parameters stay the same objects; gradients are forgotten."""
        for name, p, x in zip("AB", self.factors, factors, strict=True):
            p.data, p.grad = x.detach().to(p).contiguous(), None
            linear = getattr(self, f"lora_{name}")["default"]
            linear.out_features, linear.in_features = p.shape
        self.start_A, self.start_B = (x.detach().clone() for x in start)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """A state of other ranks than these is as good: the factors and the start take its shapes first."""
        names = ("lora_A.default.weight", "lora_B.default.weight", "start_A", "start_B")
        found = [state[f"{prefix}{name}"].shape for name in names if f"{prefix}{name}" in state]
        if len(found) == len(names) and found != [x.shape for x in (*self.factors, *self.start)]:
            A, B, *start = map(self.A.new_empty, found)
            self.reshape(Factors(A, B), Factors(*start))
        super()._load_from_state_dict(state, prefix, *args)

    @property
    def scaling(self) -> dict[str, float]:
        """The scale as PEFT keeps it, by adapter name."""
        return {"default": self.scale}

    def update(self) -> Tensor:
        """The exact change of the user's weight, s·(B A − B₀ A₀), (m, n)."""
        return self.scale * (self.B @ self.A - self.start_B @ self.start_A)

    @property
    def weight(self) -> Tensor:
        """The effective weight W, (m, n): the same tensor for all who ask inside ``formed_weights``."""
        return self.base_layer.weight + self.update() if self._formed is None else self._formed

    def forward(self, x: Tensor) -> Tensor:
        # One product with the merged weight: with derivative channels in flight it costs less than two thin ones.
        return nn.functional.linear(x, self.weight, self.base_layer.bias)


def _factor(weight: Tensor) -> nn.Linear:
    with torch.random.fork_rng(devices=()):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.detach().clone())
    return linear


def plain_name(name: str) -> str:
    """The name of a parameter or layer of a ``Solution`` as the user's own network has it."""
    return name.removeprefix("net.").replace("base_layer.", "")


def adapters(module: nn.Module) -> dict[str, LowRankLinear]:
    """The adapted layers of a module by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LowRankLinear)}


@contextmanager
def formed_weights(layers: Mapping[str, LowRankLinear]) -> Iterator[dict[str, Tensor]]:
    """Form the effective weight W of every layer once, for all passes run inside, and hand the tensors out.

    They are nodes of the graph: the gradient of a loss with respect to them, G = ∂L/∂W, is that of full fine-tuning,
    and costs nothing beside the gradient with respect to A and B, whose chain runs through W.
    """
    for layer in layers.values():
        layer._formed = layer.weight
    try:
        yield {name: layer._formed for name, layer in layers.items()}
    finally:
        for layer in layers.values():
            layer._formed = None
