"""The methods of a comparison: which parameters are trained, and by which optimiser.

A method is a function of its settings that returns a ``Method``; ``configs/method/<name>.yaml`` names the function.
A method that takes an ``integrator`` is a time discretisation of a flow; the others are rivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.integrators import Integrator
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.optim.groups import Group, pairs_of, single_tensors
from pinn_odelora.optim.odelora import ODELoRA
from pinn_odelora.rules import boolean, null, one_of
from pinn_odelora.system import Solution


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
        layer: what is put in for an adapted layer where factors are trained.
    """

    name: str
    trains: Literal["factors", "weights"]
    optimizer: Callable[[Sequence[Group]], Optimizer]
    integrator: Integrator | None = None
    full_rank: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    metric: Literal["product", "factors"] = "factors"
    one_loss: bool = False
    layer: type[LowRankLinear] = LowRankLinear

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
    def has_adapter(self) -> bool:
        """Whether the weights change by a product of factors."""
        return self.trains == "factors" and self.layer.is_product

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
    resolved = probe(make).chart
    if not retract and resolved == "manifold":
        allowed = f"True, since {type(integrator).__name__} works on the manifold, where factors are always balanced"
        raise RefusedValueError("retract", retract, allowed)
    settings = {"retract": retract, "chart": chart}
    return Method("odelora", "factors", make, integrator, resolved == "factors", settings, metric="product")


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


def probe(make: Callable[[Sequence[Group]], ODELoRA]) -> ODELoRA:
    """The optimiser of one number: refuses schemes and charts that do not go together before any network is there."""
    return make([{"params": [torch.zeros(1)], "name": "probe"}])
