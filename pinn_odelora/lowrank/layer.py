"""The adapted linear layer  x ↦ W x + b,  W = W0 + s·(B A − B₀ A₀),  with only A and B trained.

Subtracting the initial product leaves the layer's function unchanged at the start, for any initial factors; of rank 0,
A₀ and B₀ subtract nothing. Directions added later by an adaptive rank are added to both pairs. The user's W0 is never
changed. Parameters have PEFT's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pinn_odelora.manifolds.factors import Factors


class LowRankLinear(nn.Module):
    """A frozen ``nn.Linear`` with weight (m, n), plus a trained product s·B·A of rank r.

    Args:
        base: the pretrained layer, frozen and kept as ``base_layer``.
        start: initial factors A₀ (r, n) and B₀ (m, r).
        scale: s.
        subtracted: whether their product is subtracted, which leaves the layer's function unchanged.
    """

    is_product: ClassVar[bool] = True
    """Whether W − W0 is s·(B A − B₀ A₀); a layer of another form sets it to false."""

    def __init__(self, base: nn.Linear, start: Factors, scale: float, subtracted: bool = True) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.scale = scale
        self.lora_A = nn.ModuleDict({"default": _factor(start.A)})
        self.lora_B = nn.ModuleDict({"default": _factor(start.B)})
        r0 = len(start.A) if subtracted else 0
        self.register_buffer("start_A", start.A.detach()[:r0].clone())
        self.register_buffer("start_B", start.B.detach()[:, :r0].clone())
        self._formed: Tensor | None = None

    @property
    def A(self) -> nn.Parameter:
        """The factor A, (r, n)."""
        return self.lora_A["default"].weight

    @property
    def B(self) -> nn.Parameter:
        """The factor B, (m, r)."""
        return self.lora_B["default"].weight

    @property
    def factors(self) -> Factors:
        """The pair (A, B)."""
        return Factors(self.A, self.B)

    @property
    def start(self) -> Factors:
        """The subtracted pair (A₀, B₀), A₀ (r₀, n) and B₀ (m, r₀); r₀ is 0 where nothing is subtracted.

        An adaptive rank r may differ from r₀.
        """
        return Factors(self.start_A, self.start_B)

    @property
    def rank(self) -> int:
        """r."""
        return len(self.A)

    def reshape(self, factors: Factors, start: Factors) -> None:
        """Set factors and start to tensors of other ranks.

        The parameters remain the same objects; their gradients are dropped.

        Args:
            factors: A (r, n) and B (m, r), with any rank r.
            start: A₀ (r₀, n) and B₀ (m, r₀), with any rank r₀.
        """
        for name, p, x in zip("AB", self.factors, factors, strict=True):
            p.data, p.grad = x.detach().to(p).contiguous(), None
            linear = getattr(self, f"lora_{name}")["default"]
            linear.out_features, linear.in_features = p.shape
        self.start_A, self.start_B = (x.detach().clone() for x in start)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load a state of any ranks: factors and start first take its shapes."""
        names = ("lora_A.default.weight", "lora_B.default.weight", "start_A", "start_B")
        found = [state[f"{prefix}{name}"].shape for name in names if f"{prefix}{name}" in state]
        if len(found) == len(names) and found != [x.shape for x in (*self.factors, *self.start)]:
            A, B, *start = map(self.A.new_empty, found)
            self.reshape(Factors(A, B), Factors(*start))
        super()._load_from_state_dict(state, prefix, *args)

    @property
    def scaling(self) -> dict[str, float]:
        """The scale by adapter name, as in PEFT."""
        return {"default": self.scale}

    # As of the layer in whose place this one is, which networks read.

    @property
    def in_features(self) -> int:
        """n."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """m."""
        return self.base_layer.out_features

    @property
    def bias(self) -> Tensor | None:
        """b, (m,)."""
        return self.base_layer.bias

    def update(self) -> Tensor:
        """The change of the weight, s·(B A − B₀ A₀), (m, n)."""
        return self.scale * (self.B @ self.A - self.start_B @ self.start_A)

    @property
    def weight(self) -> Tensor:
        """The effective weight W, (m, n); inside ``formed_weights`` always the same tensor."""
        return self.base_layer.weight + self.update() if self._formed is None else self._formed

    def forward(self, x: Tensor) -> Tensor:
        """W x + b, (N, n) -> (N, m)."""
        # With several derivative channels, one product with the merged weight costs less than two thin ones.
        return nn.functional.linear(x, self.weight, self.base_layer.bias)


def _factor(weight: Tensor) -> nn.Linear:
    with torch.random.fork_rng(devices=()):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.detach().clone())
    return linear


def plain_name(name: str) -> str:
    """The name in the user's own network of a parameter or layer of a ``Solution``."""
    return name.removeprefix("net.").replace("base_layer.", "")


def adapters(module: nn.Module) -> dict[str, LowRankLinear]:
    """The adapted layers of a module by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LowRankLinear)}


def merged(module: nn.Module) -> nn.Module:
    """The module itself with a plain layer, of the effective weight, in the place of every adapted one."""
    for owner in [*module.modules()]:
        for name, layer in owner.named_children():
            if isinstance(layer, LowRankLinear):
                layer.base_layer.weight = nn.Parameter(layer.weight.detach().clone())
                setattr(owner, name, layer.base_layer)
    return module


@contextmanager
def formed_weights(layers: Mapping[str, LowRankLinear]) -> Iterator[dict[str, Tensor]]:
    """Form the effective weight W of every layer once, for all evaluations inside the context.

    The weights are nodes of the graph: the gradient G = ∂L/∂W is that of full fine-tuning, and comes at no extra cost
    with the gradients with respect to A and B, which are computed from it.

    Args:
        layers: adapted layers by name.

    Yields:
        W (m, n) of each layer by name.
    """
    for layer in layers.values():
        layer._formed = layer.weight
    try:
        yield {name: layer._formed for name, layer in layers.items()}
    finally:
        for layer in layers.values():
            layer._formed = None
