"""The minimum over full δ by proximal gradient steps, accelerated.

    X⁺ = prox(Y − h G(Y), h μ) ,    prox(X, τ) = U max(Σ − τ, 0) Vᵀ ,    Y⁺ = X⁺ + β (X⁺ − X)

soft-thresholds the singular values (Cai, Candès and Shen, 2010, arXiv 0810.3286) of a gradient step on the loss, with
the momentum of FISTA (Beck and Teboulle, 2009) that restarts where it points uphill (O'Donoghue and Candès, 2015,
arXiv 1204.3982). The step size h is halved until the loss lies below its quadratic model of curvature 1/h, and may
grow again by a tenth. Singular values below the threshold become exactly zero, so that δ has a rank.

``ProximalGradient`` is an optimiser for the loop like any other, and changes its tensors in place: what it decreases
is F. The published code of Jang, Lee and Ryu (2024) assigns the thresholded matrix, and the decayed factors, to local
names, so that its regulariser enters the logged loss alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, linalg
from torch.optim import Optimizer

from pinn_odelora.errors import InputError
from pinn_odelora.integrators import Report
from pinn_odelora.ntk.certificate import duality_gap, optimality
from pinn_odelora.ntk.model import Delta, Linearised
from pinn_odelora.optim.groups import Group, parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rules import number, whole

GROWTH = 1.1
HALVINGS = 60

Evaluate = Callable[[Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]
"""Matrices -> the loss without regularisation, and its gradient by each."""


def soft_threshold(X: Tensor, threshold: float) -> Tensor:
    """prox of τ‖·‖_*: every singular value of X (m, n) reduced by τ, or zero."""
    U, sigma, Vh = linalg.svd(X, full_matrices=False)
    return U * (sigma - threshold).clamp(min=0) @ Vh


@dataclass(frozen=True)
class Iterate:
    """Where accelerated proximal gradient steps are.

    Attributes:
        x: the matrices.
        y: where the next gradient is taken, x plus momentum.
        t: of the momentum, 1 at a restart.
        h: the step size.
        loss: at y of the step that led here, without regularisation.
    """

    x: list[Tensor]
    y: list[Tensor]
    t: float
    h: float
    loss: float = math.nan


@torch.no_grad()
def accelerated_step(evaluate: Evaluate, here: Iterate, weight: float) -> Iterate:
    """One step; see the file's docstring.

    Raises:
        FloatingPointError: if no step size leads below the quadratic model.
    """
    loss, G = evaluate(here.y)
    h = here.h
    for _ in range(HALVINGS):
        x = [soft_threshold(y - h * g, h * weight) for y, g in zip(here.y, G, strict=True)]
        moved = [a - b for a, b in zip(x, here.y, strict=True)]
        model = sum((g * d).sum() + d.square().sum() / (2 * h) for g, d in zip(G, moved, strict=True))
        # Rounding in the loss must not halve the step for ever, near the end.
        if float(evaluate(x)[0] - loss - model) <= 1e-14 * abs(float(loss)):
            break
        h /= 2
    else:
        raise FloatingPointError("No step size decreases the loss as its gradient says.")
    uphill = sum((a * (b - c)).sum() for a, b, c in zip(moved, x, here.x, strict=True)) < 0
    t = 1.0 if uphill else here.t
    after = (1 + math.sqrt(1 + 4 * t * t)) / 2
    y = [b + (t - 1) / after * (b - c) for b, c in zip(x, here.x, strict=True)]
    return Iterate(x, y, after, GROWTH * h, float(loss))


class Solved(NamedTuple):
    """A minimiser of F.

    Attributes:
        delta: δ by layer, (m, n).
        value: F(δ).
        gap: the duality gap, an upper bound on F(δ) − min F; NaN for a loss without a known conjugate.
        residual: the largest violation of the optimality conditions, relative to μ.
        steps: taken.
    """

    delta: Delta
    value: float
    gap: float
    residual: float
    steps: int


def nuclear_norm_solution(
    model: Linearised,
    weight: float,
    *,
    tolerance: float = 1e-8,
    steps: int = 20_000,
    start: Delta | None = None,
) -> Solved:
    """Minimise F(δ) = φ(f(δ)) + μ Σ_l ‖δ_l‖_* over full matrices.

    Ends where the optimality conditions hold to ``tolerance`` relative to μ, or after ``steps``; ``gap`` and
    ``residual`` say how well the minimum was reached.

    Args:
        model: the linearised model.
        weight: μ ≥ 0; λ/s for factors with weight decay λ and scale s.
        tolerance: of the optimality conditions.
        steps: at most.
        start: δ to start from; zero if absent.

    Raises:
        InputError: if μ is negative or no finite number, or the tolerance is not positive.
    """
    number(least=0).check("weight", weight)
    number(above=0).check("tolerance", tolerance)
    whole(1).check("steps", steps)
    names = [*model.shapes]

    def evaluate(x: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        f = model.values(dict(zip(names, x, strict=True)))
        return model.loss.value(f), [*model.adjoint(model.loss.gradient(f)).values()]

    first = [*(start or model.zero()).values()]
    here = Iterate(first, first, 1.0, _step_size(model))
    taken = 0
    while taken < steps:
        here = accelerated_step(evaluate, here, weight)
        taken += 1
        if taken % 20 == 0 and optimality(model, dict(zip(names, here.x, strict=True)), weight) <= tolerance:
            break
    delta = dict(zip(names, here.x, strict=True))
    value = float(model.penalised(delta, weight))
    return Solved(delta, value, duality_gap(model, delta, weight), optimality(model, delta, weight), taken)


def _step_size(model: Linearised) -> float:
    """1 / (curvature of φ · ‖J‖²), the latter by power iteration; 1 for a loss of unknown curvature."""
    if not math.isfinite(model.loss.curvature):
        return 1.0
    w = torch.ones_like(model.start)
    for _ in range(20):
        w = model.apply(model.adjoint(w / w.norm()))
    return 1 / (model.loss.curvature * float(w.norm())) if float(w.norm()) > 0 else 1.0


class ProximalGradient(Optimizer):
    """Accelerated proximal gradient steps on matrices, each a parameter group of one tensor, in place.

    Args:
        params: parameter groups.
        weight: μ ≥ 0, of the nuclear norm of every matrix.
        h: the step size to start with.

    Raises:
        InputError: if a tensor is no matrix; from ``step`` without a closure.
    """

    def __init__(self, params: Sequence[Group], weight: float, h: float = 1.0) -> None:
        for group in params:
            if any(p.ndim != 2 for p in group["params"]):
                raise InputError(f"{group.get('name', 'a parameter')} is no matrix, so it has no nuclear norm.")
        super().__init__(params, {"lr": h})
        self.weight = weight
        self.report = Report()
        self._here: Iterate | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:
        """One step; the loss where its gradient was taken is returned, with what the closure itself adds to it."""
        if closure is None:
            raise InputError("ProximalGradient looks at the loss at several points, so step needs a closure.")
        tensors = parameters(self.param_groups)
        now = [p.detach().clone() for p in tensors]
        here = self._here
        if here is None or not all(map(torch.equal, now, here.x)):
            here = Iterate(now, now, 1.0, self.param_groups[0]["lr"] if here is None else here.h)

        def evaluate(x: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
            for p, value in zip(tensors, x, strict=True):
                p.copy_(value)
            with torch.enable_grad():
                loss = closure()
            return loss.detach(), [p.grad.clone() for p in tensors]

        # The trial that was accepted is the last one, where the tensors are now.
        self._here = after = accelerated_step(evaluate, here, self.weight)
        self.report = Report(after.h / GROWTH, after.loss)
        return torch.as_tensor(after.loss)


def proximal(weight: float, h: float = 1.0) -> Method:
    """Accelerated proximal gradient steps on δ itself, the full tuning of the linearised model.

    Args:
        weight: μ ≥ 0, of the nuclear norm; λ/s for factors with weight decay λ and scale s.
        h: the step size to start with.

    Raises:
        InputError: if the weight is negative or the step size not positive.
    """
    weight, h = number(least=0).check("weight", weight), number(above=0).check("h", h)
    make = lambda groups: ProximalGradient(groups, weight, h)
    return Method("proximal", "weights", make, settings={"weight": weight, "h": h})
