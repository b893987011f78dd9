"""A flow on LoRA factors and an integrator, as one ``torch.optim.Optimizer``.

Works for any model with LoRA pairs: ours, and those of PEFT. The learning rate is the step size h of the integrator,
in units of flow time, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinn_odelora.errors import InputError
from pinn_odelora.flows import balanced_flow
from pinn_odelora.integrators import RungeKutta
from pinn_odelora.integrators.explicit import Descent, State
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.lowrank.balance import rebalance
from pinn_odelora.lowrank.layer import Factors
from pinn_odelora.optim.groups import forget_but, is_pair

Flow = Callable[[Factors, Factors, float], Factors]
"""``flow(y, g, scale)``: the velocity at factors y with gradients g; pure, so that every stage sees the same field."""


def factor_pairs(model: nn.Module) -> list[dict[str, Any]]:
    """One parameter group ``{"params": [A, B], "scale": s, "name": …}`` for each LoRA pair of a model.

    Raises:
        InputError: if the model has no pair of matrices named ``lora_A`` and ``lora_B``.
    """
    groups = []
    for name, layer in model.named_modules():
        for adapter, A in getattr(layer, "lora_A", {}).items():
            B = layer.lora_B[adapter].weight
            if A.weight.ndim != 2 or B.ndim != 2:
                raise InputError(f"the LoRA pair of {name!r} is not a pair of matrices; no other kind is supported.")
            groups.append({"params": [A.weight, B], "scale": float(layer.scaling[adapter]), "name": name})
    if not groups:
        raise InputError("the model has no LoRA pairs (layers with lora_A and lora_B); adapt it first.")
    return groups


class ODELoRA(Optimizer):
    """Follow a flow on LoRA pairs by a time discretisation: by default the balanced flow by Euler's scheme.

    ``step(closure)`` evaluates the closure once for each stage, on the same batch, and returns the loss of the first
    stage, which is the loss at the point the step starts from. With a one-stage scheme and a given step size,
    ``step()`` without closure uses the gradients that are there.

    Args:
        pairs: parameter groups of one pair each, as ``factor_pairs`` gives, then of single tensors, which follow their
            own gradient flow.
        lr: the step size h; absent, the integrator's own, which may choose it.
        integrator: the time discretisation.
        flow: the velocity field on the factors.
        retract: after each step return to the balanced manifold BᵀB = AAᵀ, leaving the product as it is.

    Raises:
        InputError: for a group that is not a pair, a negative step size, or a point where the flow is singular.
        FloatingPointError: from ``step``, when loss or gradient are not finite at the current point.
    """

    def __init__(
        self,
        pairs: Iterable[dict[str, Any]],
        lr: float | None = None,
        integrator: RungeKutta | None = None,
        flow: Flow = balanced_flow,
        retract: bool = True,
    ) -> None:
        self.integrator = integrator or RungeKutta(EULER)
        self.flow = flow
        self.retract = retract
        lr = self.integrator.h if lr is None else lr
        if lr is not None and not lr >= 0:
            raise InputError(f"the step size lr is {lr!r}, but it must be a positive number.")
        super().__init__(pairs, {"lr": lr, "scale": 1.0, "name": "", "memory": {}})
        for group in self.param_groups:
            shapes = [tuple(p.shape) for p in group["params"]]
            if not is_pair(group):
                continue
            if [len(shape) for shape in shapes] != [2, 2] or shapes[0][0] != shapes[1][1]:
                raise InputError(
                    f"parameter group {group['name']!r} has shapes {shapes}; it must be one pair A (r, n), B (m, r)."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        if closure is None and (self.integrator.stages > 1 or self.param_groups[0]["lr"] is None):
            raise InputError("this integrator evaluates the loss several times a step, so step needs a closure.")
        losses: list[Tensor] = []

        def evaluate(y: State) -> tuple[State, float]:
            self._place(y)
            if closure is not None:
                with torch.enable_grad():
                    losses.append(closure())
            return self._velocity(y), float(losses[-1]) if losses else math.nan

        y = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        try:
            self._place(self._advance(Descent(evaluate), y))
        except BaseException:
            self._place(y)
            raise
        if self.retract:
            self._retract()
        return losses[0] if losses else None

    def rank_changed(self) -> None:
        """The pairs have other shapes: step sizes and eigenvalues found for the others are forgotten."""
        forget_but(self.param_groups, "last_h")

    def _advance(self, velocity: Callable[[State], State], y: State) -> State:
        """One step of the integrator; groups with different step sizes run at different speeds of one time."""
        first = self.param_groups[0]
        h = first["lr"]
        step = self.integrator.step(velocity, y, None if h is None else 1.0, first["memory"])
        for group in self.param_groups:
            group["memory"] = {**step.memory, "last_h": step.h if h is None else group["lr"]}
        return step.y

    def _velocity(self, y: State) -> State:
        """The flow at y with the gradients that the closure left; pairs of one shape and scale in one batch."""
        batches: dict[Any, list[int]] = {}
        dy: State = [
            self._downhill(i, k) for i, group in enumerate(self.param_groups) for k in range(len(group["params"]))
        ]
        for i, group in enumerate(self.param_groups):
            if not is_pair(group):
                continue
            A, B = group["params"]
            batches.setdefault((A.shape, B.shape, A.dtype, A.device, group["scale"]), []).append(i)
        for (*_, scale), members in batches.items():
            point = Factors(*(torch.stack([y[2 * i + k] for i in members]) for k in (0, 1)))
            slope = Factors(*(torch.stack([self._gradient(i, k) for i in members]) for k in (0, 1)))
            dA, dB = self._named(members, point, slope, scale)
            for j, i in enumerate(members):
                speed = self.param_groups[i]["lr"]
                dy[2 * i], dy[2 * i + 1] = (x if speed is None else speed * x for x in (dA[j], dB[j]))
        return dy

    def _downhill(self, i: int, k: int) -> Tensor:
        """The velocity of a tensor by itself: that of the gradient flow."""
        speed = self.param_groups[i]["lr"]
        return -self._gradient(i, k) * (1.0 if speed is None else speed)

    def _gradient(self, i: int, k: int) -> Tensor:
        p = self.param_groups[i]["params"][k]
        return torch.zeros_like(p) if p.grad is None else p.grad

    def _named(self, members: list[int], point: Factors, slope: Factors, scale: float) -> Factors:
        """The flow of a batch, with the layers' names on a refusal."""
        try:
            return self.flow(point, slope, scale)
        except InputError as refusal:
            names = ", ".join(str(self.param_groups[i]["name"]) for i in members)
            raise InputError(f"In {names}: {refusal}.") from None

    def _place(self, y: State) -> None:
        for p, x in zip((p for group in self.param_groups for p in group["params"]), y, strict=True):
            p.copy_(x)

    def _retract(self) -> None:
        for group in filter(is_pair, self.param_groups):
            A, B = group["params"]
            balanced = rebalance(Factors(A, B))
            A.copy_(balanced.A)
            B.copy_(balanced.B)
