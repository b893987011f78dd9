"""The methods of a comparison: which parameters are trained, and by which optimiser.

A method is a function of its settings that returns a ``Method``; ``configs/method/<name>.yaml`` names the function.
A method that takes an ``integrator`` is a time discretisation of a flow; the others are rivals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from pinn_odelora.errors import InputError
from pinn_odelora.flows import gradient_flow, scaled_flow
from pinn_odelora.integrators import ROS2, Chebyshev, LinearlyImplicit, RungeKutta
from pinn_odelora.optim.flow import ODELoRA, factor_pairs
from pinn_odelora.optim.groups import single_tensors
from pinn_odelora.optim.implicit import ImplicitODELoRA
from pinn_odelora.optim.lbfgs import LBFGS
from pinn_odelora.optim.muon import FactorMuon
from pinn_odelora.optim.projected import ProjectedODELoRA
from pinn_odelora.system import Solution

Integrator = RungeKutta | Chebyshev | LinearlyImplicit | ROS2


class Method(NamedTuple):
    """What is trained and how.

    ``trains``: the low-rank ``factors``, or all ``weights`` of the network.
    ``optimizer``: from parameter groups (pairs for factors) to the optimiser; it is stepped with a closure.
    """

    trains: Literal["factors", "weights"]
    optimizer: Callable[[Sequence[dict[str, Any]]], Optimizer]

    def groups(self, solution: Solution) -> list[dict[str, Any]]:
        """The parameter groups: the LoRA pairs of the network, or all its weights, which are thawed; then every other
        tensor that is trained, a group each.
        """
        if self.trains == "factors":
            return [*factor_pairs(solution.net), *single_tensors(solution)]
        for p in solution.net.parameters():
            p.requires_grad_(True)
        return single_tensors(solution)


def odelora(integrator: Integrator, retract: bool = True) -> Method:
    """Full fine-tuning's gradient flow projected on balanced rank-r factors (Gao and Tan, 2026, arXiv 2602.07479)."""
    implicit = isinstance(integrator, LinearlyImplicit | ROS2)
    if implicit and integrator.metric == "factors":
        raise InputError(
            "integrator.metric is factors, which is the flow of plain LoRA: choose method=lora_gd, or weights."
        )
    if not implicit and _chart(integrator) == "factors":
        return Method("factors", lambda pairs: ODELoRA(pairs, integrator=integrator, retract=retract))
    if not retract:
        raise InputError(
            "method.retract is false, but this integrator works on the manifold, where factors are always balanced; "
            "allowed with an explicit one and integrator.chart=factors."
        )
    if implicit:
        return Method("factors", lambda pairs: ImplicitODELoRA(pairs, integrator, "weights"))
    return Method("factors", lambda pairs: ProjectedODELoRA(pairs, integrator))


def _chart(integrator: RungeKutta | Chebyshev) -> str:
    return integrator.chart or ("manifold" if isinstance(integrator, Chebyshev) else "factors")


def lora_gd(integrator: Integrator) -> Method:
    """The flow of plain LoRA; gradient descent on the factors by Euler's scheme (Hu et al., 2022, arXiv 2106.09685)."""
    if isinstance(integrator, LinearlyImplicit | ROS2):
        if integrator.metric == "weights":
            raise InputError(
                "integrator.metric is weights, but the flow of plain LoRA has the metric of the factors: choose "
                "method=odelora for it, or factors."
            )
        return Method("factors", lambda pairs: ImplicitODELoRA(pairs, integrator, "factors"))
    if integrator.chart == "manifold":
        raise InputError(
            "integrator.chart is manifold, but the flow of plain LoRA depends on the factors and not on their product "
            "alone: choose method=odelora for it, or factors."
        )
    return Method("factors", lambda pairs: ODELoRA(pairs, integrator=integrator, flow=gradient_flow, retract=False))


def scaled_gd(integrator: Integrator) -> Method:
    """Gradients of the factors divided by each other's Gram matrix (Tong, Ma and Chi, 2021, arXiv 2005.08898).

    With Euler's scheme it is ScaledGD; for LoRA see Zhang and Pilanci (2024, arXiv 2402.02347).
    """
    if isinstance(integrator, LinearlyImplicit | ROS2):
        raise InputError(
            "method.scaled_gd is a flow without an implicit scheme: choose an explicit one, such as integrator=euler, "
            "or method=odelora."
        )
    if integrator.chart == "manifold":
        raise InputError(
            "integrator.chart is manifold, but scaled gradient descent moves the factors: choose method=odelora for "
            "it, or factors."
        )
    return Method("factors", lambda pairs: ODELoRA(pairs, integrator=integrator, flow=scaled_flow, retract=False))


def lora_adam(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam on the factors (Kingma and Ba, 2015, arXiv 1412.6980; Hu et al., 2022, arXiv 2106.09685)."""
    return Method("factors", lambda groups: torch.optim.Adam(_parameters(groups), lr=lr, betas=tuple(betas)))


def lora_plus(lr: float = 1e-3, ratio: float = 16.0, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam with a larger learning rate for B (LoRA+; Hayou, Ghosh and Yu, 2024, arXiv 2402.12354).

    ``lr`` is that of A, ``ratio`` · ``lr`` that of B. Of what else is trained weights have ``lr`` and biases that of B,
    as in the authors' code and in PEFT.
    """

    def optimizer(groups: Sequence[dict[str, Any]]) -> Optimizer:
        slow, fast = [], []
        for group in groups:
            A, *B = group["params"]
            (slow if A.ndim == 2 else fast).append(A)
            fast += B
        return torch.optim.Adam([{"params": slow}, {"params": fast, "lr": ratio * lr}], lr=lr, betas=tuple(betas))

    return Method("factors", optimizer)


def lora_muon(lr: float = 1e-2, momentum: float = 0.95) -> Method:
    """Muon on each factor by itself, Adam on what is no factor (Jordan et al., 2024)."""
    if not 0 <= momentum < 1:
        raise InputError(f"method.momentum is {momentum:g}, but it must be at least 0 and below 1.")
    return Method("factors", lambda groups: FactorMuon(groups, lr, momentum))


def full_implicit(integrator: Integrator) -> Method:
    """Natural gradient descent on all weights: the gradient flow itself, without a manifold, by an implicit scheme.

    With the second-order correction it is a Levenberg–Marquardt method with geodesic acceleration (Transtrum and
    Sethna, 2012, arXiv 1201.5885); for physics-informed networks see Müller and Zeinhofer (2023, arXiv 2302.13163).
    """
    if not isinstance(integrator, LinearlyImplicit | ROS2):
        raise InputError(
            "method.full_implicit needs an implicit scheme: choose integrator=linearly_implicit or integrator=ros2."
        )
    return Method("weights", lambda groups: ImplicitODELoRA(groups, integrator, "weights"))


def full_adam(lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam on all weights (Kingma and Ba, 2015, arXiv 1412.6980)."""
    return Method("weights", lambda groups: torch.optim.Adam(_parameters(groups), lr=lr, betas=tuple(betas)))


def full_lbfgs(history: int = 100) -> Method:
    """L-BFGS on all weights with a strong Wolfe line search (Liu and Nocedal, 1989), one iteration a step."""
    return Method("weights", lambda groups: LBFGS(_parameters(groups), history))


def _parameters(groups: Sequence[dict[str, Any]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]
