"""The network of width n, its two parametrisations, what it has to learn, and where its factors start.

    f(x) = v φ(W2 φ(W1 φ(W0 x)))    φ = tanh, x in the plane, entries of W0, W1, W2 from N(0, 1/inputs)

with entries of the readout v from N(0, 1/n) in the standard parametrisation and from N(0, 1/n²) in the mean-field
one. W1 and W2 are adapted, nothing else is trained. The loss is the mean square of f − f₀ − Δ at eight fixed points:
what the network computed, and the same change Δ(x) = sin(2 x₁ − x₂) for all widths, as when a network is adapted from
one task to another.
"""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, linalg, nn

from pinn_odelora import MLP, Box, Cloud, Points, Problem, Term, problem
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.start import named
from pinn_odelora.lowrank.targets import linear_targets
from pinn_odelora.manifolds.factors import Factors

RANK, POINTS, SIZE = 4, 8, 1.0
"""r; the points; σ of balanced factors, of the order of the singular values of the weights."""
SQUARE = Box(x=(-1, 1), y=(-1, 1))
STARTS = ("zero", "orthonormal", "pissa", "aligned")
PARAMETRISATIONS = ("standard", "mean-field")


class ThinLinear(LowRankLinear):
    """The same function by thin products: W is never formed, which is what costs in wide layers of few points."""

    def forward(self, x: Tensor) -> Tensor:
        moved = x @ self.A.mT @ self.B.mT - x @ self.start_A.mT @ self.start_B.mT
        return self.base_layer(x) + self.scale * moved


class Task(NamedTuple):
    """A network before its first step: points (N, 2), targets (N, 1), and features (N, n) and outputs there."""

    net: MLP
    x: Tensor
    y: Tensor
    features: Tensor
    outputs: Tensor

    @property
    def problem(self) -> Problem:
        """The same loss as that of an equation: u is the target at the points."""
        points = Points(x=self.x[:, :1], y=self.x[:, 1:], target=self.y)
        return problem(coords="xy", region=SQUARE, fit=Term(Cloud(points), lambda f: f.u - f.target))

    def loss(self) -> Tensor:
        return (self.net(self.x) - self.y).square().mean()

    @torch.no_grad()
    def value(self) -> float:
        """The loss as a number."""
        return float(self.loss())

    @torch.no_grad()
    def changes(self) -> tuple[float, float]:
        """Root mean squares over points, and units, of what features and outputs have changed by."""
        h = features(self.net, self.x)
        moved = h - self.features, self.net.linears[-1](h) - self.outputs
        return tuple(float(x.square().mean().sqrt()) for x in moved)


def features(net: MLP, x: Tensor) -> Tensor:
    """The activations of the last hidden layer, (N, n)."""
    for linear in net.linears[:-1]:
        x = torch.tanh(linear(x))
    return x


@lru_cache(maxsize=2)
def network(width: int, parametrisation: str, seed: int) -> MLP:
    """The network as drawn, not to be changed; the same draws in both parametrisations."""
    generator = torch.Generator().manual_seed(seed)
    net = MLP(2, 1, width=width, depth=3, generator=generator)
    with torch.no_grad():
        for linear in net.linears:
            linear.weight.normal_(generator=generator).div_(math.sqrt(linear.in_features))
        if parametrisation == "mean-field":
            net.linears[-1].weight.div_(math.sqrt(width))
    return net.requires_grad_(False)


def task(width: int, parametrisation: str, start: str, seed: int, size: float = SIZE) -> Task:
    """A network with factors on its two square layers."""
    drawn = network(width, parametrisation, seed)
    net = copy.deepcopy(drawn, {id(p): p for p in drawn.parameters()})  # modules of its own around the same weights
    generator = torch.Generator().manual_seed(1000 + seed)
    x = 2 * torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    h = features(net, x)
    before = net.linears[-1](h)
    made = Task(net, x, before + torch.sin(2 * x[:, :1] - x[:, 1:]), h, before)
    layers = linear_targets(net)
    along = aligned(made, layers, size) if start == "aligned" else None
    for name, layer in layers.items():
        factors = named(start, size)(layer.weight, RANK, 1.0, generator) if along is None else along[name]
        net.set_submodule(name, ThinLinear(layer, factors, 1.0))
    return made


def aligned(made: Task, layers: dict[str, nn.Linear], size: float) -> dict[str, Factors]:
    """Balanced factors of r equal singular values along the first singular vectors of G = ∂L/∂W = δᵀh.

    A start in the gradient's direction is that of LoRA-GA (Wang, Yu and Li, 2024, arXiv 2407.05000) and of LoRA-One
    (Zhang, Liu and Chen, 2025, arXiv 2502.01235) up to sizes.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> object:
        def hook(layer: nn.Module, inputs: tuple[Tensor], z: Tensor) -> Tensor:
            z = z.detach().requires_grad_(True) if not z.requires_grad else z
            seen[name] = (inputs[0].detach(), z)
            return z

        return layers[name].register_forward_hook(hook)

    hooks = [keep(name) for name in layers]
    loss = made.loss()
    for hook in hooks:
        hook.remove()
    deltas = torch.autograd.grad(loss, [z for _, z in seen.values()])
    root = math.sqrt(size)
    found = {}
    for (name, (h, _)), delta in zip(seen.items(), deltas, strict=True):
        Q_B, Q_A = linalg.qr(delta.mT), linalg.qr(h.mT)
        U, _, Vh = linalg.svd(Q_B.R @ Q_A.R.mT)
        found[name] = Factors(root * Vh[:RANK] @ Q_A.Q.mT, root * Q_B.Q @ U[:, :RANK])
    return found
