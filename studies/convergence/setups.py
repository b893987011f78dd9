"""What is solved and by whom: matrix problems and contenders, on the objects of a run.

Matrices are 14 × 12, targets have rank 2 and σ_1 = 1. Sensing has 3 r (m + n − r) = 144 measurements of 168 entries;
regression has curvatures from 1 to 10 unless said otherwise. The factors carry the whole matrix: the network is built
at a source W0 of the rank of the factors, and they start as its best approximation (``pissa``), so that W = s·B A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, linalg

import pinn_odelora as po
from pinn_odelora import LinearlyImplicit, RungeKutta
from pinn_odelora.integrators.tableau import EULER, RK4
from pinn_odelora.loop import Training
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.matrix_problem import MatrixProblem
from pinn_odelora.methods import Method, lora_gd, odelora, scaled_gd
from pinn_odelora.nets import MatrixFunctional
from problems.matrix_regression import MatrixRegression
from problems.matrix_sensing import MatrixSensing

ROWS, COLUMNS, RANK = 14, 12, 2
FREEDOMS = RANK * (ROWS + COLUMNS - RANK)
MEASUREMENTS = 3 * FREEDOMS


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A problem, and the rank of the factors.

    Args:
        problem: ``sensing`` or ``regression``.
        condition: κ of the target.
        seed: of target, measurements and start.
        excess: rank of the factors above that of the target.
        curvature: of ``regression``.
    """

    problem: str = "sensing"
    condition: float = 1.0
    seed: int = 1
    excess: int = 0
    curvature: float = 10.0

    def posed(self) -> MatrixProblem:
        """The problem itself."""
        shape = {"rows": ROWS, "columns": COLUMNS, "rank": RANK, "condition": self.condition, "seed": self.seed}
        if self.problem == "regression":
            return MatrixRegression(**shape, curvature=self.curvature)
        return MatrixSensing(**shape, measurements=MEASUREMENTS)

    @property
    def rank(self) -> int:
        """Of the factors."""
        return RANK + self.excess

    @property
    def smallest(self) -> float:
        """σ_r / ‖W*‖: an error of this size has lost a direction of the target."""
        sigma = linalg.svdvals(self.posed().matrix)
        return float(sigma[RANK - 1] / sigma.norm())

    @property
    def generator(self) -> torch.Generator:
        """Of the start."""
        return torch.Generator().manual_seed(10_000 + self.seed)


class Contender(NamedTuple):
    """A discretisation of the flow, or a rival.

    ``method``: of the step size h in units of flow time; None lets the scheme choose.
    ``spectrum``: whose eigenvalues say how fast it is, see ``theory``.
    ``factor``: z ↦ R(z), by which a step multiplies on the test equation, z = −h λ.
    ``steps``: the step sizes of its sweep, by problem; those of regression at a curvature of 10.
    """

    name: str
    method: Callable[[float | None], Method]
    spectrum: str
    factor: Callable[[Tensor], Tensor]
    steps: dict[str, tuple[float | None, ...]]

    @property
    def stages(self) -> int:
        """Gradients of a step."""
        return 4 if self.factor is fourth_order else 1

    def sweep(self, setup: Setup) -> tuple[float | None, ...]:
        """Step sizes to try; explicit ones become smaller as the curvature grows."""
        steps = self.steps[setup.problem]
        return tuple(h * 10 / setup.curvature for h in steps) if len(steps) > 1 else steps


def first_order(z: Tensor) -> Tensor:
    """R(z) of Euler's scheme."""
    return 1 + z


def fourth_order(z: Tensor) -> Tensor:
    """R(z) of the classical Runge–Kutta scheme."""
    return 1 + z * (1 + z / 2 * (1 + z / 3 * (1 + z / 4)))


def implicit(z: Tensor) -> Tensor:
    """R(z) of the linearly implicit Euler scheme."""
    return 1 / (1 - z)


EXPLICIT = {"sensing": (0.1, 0.14, 0.2, 0.28, 0.4, 0.56), "regression": (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4)}
UNIT = dict.fromkeys(EXPLICIT, (1.0,))
CHOSEN = dict.fromkeys(EXPLICIT, (None,))
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("euler", lambda h: odelora(RungeKutta(EULER, h=h)), "flow", first_order, EXPLICIT),
        Contender(
            "euler_manifold", lambda h: odelora(RungeKutta(EULER, h=h), chart="manifold"), "flow", first_order, EXPLICIT
        ),
        Contender("rk4", lambda h: odelora(RungeKutta(RK4, h=h)), "flow", fourth_order, EXPLICIT),
        Contender(
            "rk4_manifold", lambda h: odelora(RungeKutta(RK4, h=h), chart="manifold"), "flow", fourth_order, EXPLICIT
        ),
        Contender("implicit", lambda h: odelora(LinearlyImplicit(h=h)), "flow", implicit, UNIT),
        Contender("implicit_default", lambda h: odelora(LinearlyImplicit(h=h)), "flow", implicit, CHOSEN),
        Contender("lora_gd", lambda h: lora_gd(RungeKutta(EULER, h=h)), "factors", first_order, EXPLICIT),
        Contender("scaled_gd", lambda h: scaled_gd(RungeKutta(EULER, h=h)), "scaled", first_order, EXPLICIT),
    )
}
"""``implicit`` has h = 1 in units of flow time, so that there is a rate to measure: a sweep would take the largest h,
which is the Gauss–Newton step. ``implicit_default`` is the package's default and chooses h by the gain ratio.
"""
FLOWS = tuple(name for name, contender in CONTENDERS.items() if contender.spectrum == "flow")


@dataclass(frozen=True)
class Source:
    """A matrix in the place of a solved problem."""

    matrix: Tensor


class Entry(NamedTuple):
    """A contender where it starts."""

    layer: LowRankLinear
    training: Training


def enter(setup: Setup, method: Method, W0: Tensor) -> Entry:
    """Factors of W0, ready for the steps of a run, each with all measurements."""
    net = MatrixFunctional(Source(W0))
    run = po.Adaptation(
        net,
        setup.posed(),
        lora=po.LoRA(rank=setup.rank, targets="W", also=()),
        method=method,
        points=po.Sampling.fixed(),
        log=po.Log(heldout=1, test=1),
        seed=setup.seed,
    )
    training = run.training  # now the network has the factors
    return Entry(net.W, training)
