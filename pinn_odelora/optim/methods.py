"""The methods of a comparison: which parameters are trained, and by which optimiser.

A method is a function of its settings that returns a ``Method``; ``configs/method/<name>.yaml`` names the function.
A method that takes an ``integrator`` is a time discretisation of a flow; the others are rivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.flows import gradient_flow, scaled_flow
from pinn_odelora.integrators import Integrator
from pinn_odelora.optim.groups import Group, pairs_of, parameters, single_tensors
from pinn_odelora.optim.lbfgs import LBFGS
from pinn_odelora.optim.muon import FactorMuon
from pinn_odelora.optim.odelora import ODELoRA
from pinn_odelora.rules import below_one, boolean, fractions, null, number, one_of, whole
from pinn_odelora.system import Solution

POSITIVE = number(above=0)


@dataclass(frozen=True)
class Method:
    """What is trained and how.

    Attributes:
        name: of the function that made it.
        trains: the low-rank ``factors``, or all ``weights`` of the network.
        optimizer: from parameter groups (pairs for factors) to the optimiser; it is stepped with a closure.
        integrator: the time discretisation; None for a rival.
        full_rank: whether it needs factors of full rank to start from, unless a step size is given.
        settings: what the function was called with.
        metric: of the factors, that of their ``product`` where the method follows the gradient of that, else that of
            the ``factors`` themselves.
        one_loss: whether all steps must have the same loss, of which the method keeps a curvature.
    """

    name: str
    trains: Literal["factors", "weights"]
    optimizer: Callable[[Sequence[Group]], Optimizer]
    integrator: Integrator | None = None
    full_rank: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    metric: Literal["product", "factors"] = "factors"
    one_loss: bool = False

    def groups(self, solution: Solution) -> list[Group]:
        """The parameter groups: the LoRA pairs of the network, or all its weights, which are thawed; then every other
        tensor that is trained, a group each.
        """
        if self.trains == "factors":
            return [*pairs_of(solution.net), *single_tensors(solution)]
        for p in solution.net.parameters():
            p.requires_grad_(True)
        return single_tensors(solution)

    @property
    def linearises(self) -> bool:
        """Whether steps solve for many coordinates at once."""
        return self.integrator is not None and self.integrator.linearises

    @property
    def judges_own_points(self) -> bool:
        """Whether the size of a step is chosen by the loss on its own points; a fixed h is for the path itself."""
        return self.linearises and self.integrator.h is None


def odelora(
    integrator: Integrator, retract: bool = True, chart: Literal["factors", "manifold"] | None = None
) -> Method:
    """Full fine-tuning's gradient flow projected on balanced rank-r factors (Gao and Tan, 2026, arXiv 2602.07479).

    Args:
        integrator: the time discretisation.
        retract: in the factors, balance them after each step.
        chart: integrate the factors or their product; absent, the factors by Runge–Kutta schemes, else the product.

    Raises:
        InputError: if the integrator works on the manifold, where factors are always balanced, and retract is false, or
            linearises and chart is factors.
    """
    retract = boolean.check("retract", retract)
    chart = (one_of("factors", "manifold") | null).check("chart", chart)
    make = lambda groups: ODELoRA(groups, integrator=integrator, chart=chart, retract=retract)
    resolved = _probe(make).chart
    if not retract and resolved == "manifold":
        allowed = f"True, since {type(integrator).__name__} works on the manifold, where factors are always balanced"
        raise RefusedValueError("retract", retract, allowed)
    settings = {"retract": retract, "chart": chart}
    return Method("odelora", "factors", make, integrator, resolved == "factors", settings, metric="product")


def lora_gd(integrator: Integrator) -> Method:
    """The flow of plain LoRA; gradient descent on the factors by Euler's scheme (Hu et al., 2022, arXiv 2106.09685).

    Args:
        integrator: the time discretisation; one that linearises works in the metric of the factors.
    """
    return Method(
        "lora_gd",
        "factors",
        lambda groups: ODELoRA(groups, integrator=integrator, flow=gradient_flow, retract=False),
        integrator,
    )


def scaled_gd(integrator: Integrator) -> Method:
    """Gradients of the factors divided by each other's Gram matrix (Tong, Ma and Chi, 2021, arXiv 2005.08898).

    With Euler's scheme it is ScaledGD; for LoRA see Zhang and Pilanci (2024, arXiv 2402.02347).

    Args:
        integrator: the time discretisation, an explicit one.

    Raises:
        InputError: for a scheme that linearises: this flow has no implicit form here.
    """
    make = lambda groups: ODELoRA(groups, integrator=integrator, flow=scaled_flow, retract=False)
    _probe(make)
    return Method("scaled_gd", "factors", make, integrator, full_rank=True)


def lora_adam(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam on the factors (Kingma and Ba, 2015, arXiv 1412.6980; Hu et al., 2022, arXiv 2106.09685).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
    """
    return _adam("lora_adam", "factors", lr, betas)


def lora_plus(lr: float = 1e-3, ratio: float = 16.0, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam with a larger learning rate for B (LoRA+; Hayou, Ghosh and Yu, 2024, arXiv 2402.12354).

    Args:
        lr: learning rate of A, and of whole weights that are trained beside the factors.
        ratio: the learning rate of B, and of biases, divided by that of A, as in the authors' code and in PEFT.
        betas: decay rates of the two moments, in [0, 1).
    """
    lr, betas = _adam_settings(lr, betas)
    ratio = POSITIVE.check("ratio", ratio)

    def optimizer(groups: Sequence[Group]) -> Optimizer:
        slow: list[Tensor] = []
        fast: list[Tensor] = []
        for group in groups:
            A, *B = group["params"]
            (slow if A.ndim == 2 else fast).append(A)
            fast += B
        return torch.optim.Adam([{"params": slow}, {"params": fast, "lr": ratio * lr}], lr=lr, betas=betas)

    return Method("lora_plus", "factors", optimizer, settings={"lr": lr, "ratio": ratio, "betas": [*betas]})


def lora_muon(lr: float = 1e-2, momentum: float = 0.95) -> Method:
    """Muon on each factor by itself, Adam on what is no factor (Jordan et al., 2024).

    Args:
        lr: learning rate of both.
        momentum: of Muon, in [0, 1).
    """
    lr, momentum = POSITIVE.check("lr", lr), below_one.check("momentum", momentum)
    make = lambda groups: FactorMuon(groups, lr, momentum)
    return Method("lora_muon", "factors", make, settings={"lr": lr, "momentum": momentum})


def full_implicit(integrator: Integrator) -> Method:
    """Natural gradient descent on all weights: the gradient flow itself, without a manifold, by an implicit scheme.

    With the second-order correction it is a Levenberg–Marquardt method with geodesic acceleration (Transtrum and
    Sethna, 2012, arXiv 1201.5885); for physics-informed networks see Müller and Zeinhofer (2023, arXiv 2302.13163) and,
    in kernel form with geodesic acceleration, Jnini and Vella (2025, arXiv 2505.21404).

    Args:
        integrator: the time discretisation, one that linearises.

    Raises:
        InputError: for a scheme that does not linearise.
    """
    if not integrator.linearises:
        raise InputError("full_implicit needs an implicit scheme, linearly_implicit or ros2.")
    return Method("full_implicit", "weights", lambda groups: ODELoRA(groups, integrator=integrator), integrator)


def full_adam(lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam on all weights (Kingma and Ba, 2015, arXiv 1412.6980).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
    """
    return _adam("full_adam", "weights", lr, betas)


def full_lbfgs(history: int = 100) -> Method:
    """L-BFGS on all weights with a strong Wolfe line search (Liu and Nocedal, 1989), one iteration a step.

    Args:
        history: pairs (s, y) that are kept.
    """
    history = whole(1).check("history", history)
    make = lambda groups: LBFGS(parameters(groups), history)
    return Method("full_lbfgs", "weights", make, settings={"history": history}, one_loss=True)


def _adam(name: str, trains: Literal["factors", "weights"], lr: float, betas: Sequence[float]) -> Method:
    lr, betas = _adam_settings(lr, betas)
    make = lambda groups: torch.optim.Adam(parameters(groups), lr=lr, betas=betas)
    return Method(name, trains, make, settings={"lr": lr, "betas": [*betas]})


def _adam_settings(lr: float, betas: Sequence[float]) -> tuple[float, tuple[float, float]]:
    return POSITIVE.check("lr", lr), tuple(fractions(2).check("betas", [*betas]))


def _probe(make: Callable[[Sequence[Group]], ODELoRA]) -> ODELoRA:
    """The optimiser of one number: refuses schemes and charts that do not go together before any network is there."""
    return make([{"params": [torch.zeros(1)], "name": "probe"}])
