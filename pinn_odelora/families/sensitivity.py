"""The derivative of a member by a parameter, from the implicit function theorem.

A member satisfies  r(θ; μ) = 0  in the sense of least squares. Where the residual is small,

    J dθ/dμ = -∂r/∂μ ,      du/dμ = (∂u/∂θ) dθ/dμ + ∂u/∂μ ,

the last term through an ansatz that depends on μ. dθ/dμ, in the factors, is the damped least-squares solution; ∂r/∂μ
and du/dμ are central differences, of the residual at fixed θ and of the solution along (dθ/dμ, 1), whose errors are
quadratic in a small step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.families.parametric import Parametric, Weights, fresh
from pinn_odelora.formulation import Problem
from pinn_odelora.linalg.damped import Damped
from pinn_odelora.linearisation import Linearisation
from pinn_odelora.points import Points

DAMPING = 1e-12
"""Relative to the largest entry of JᵀJ; the factors have directions that do not change their product."""


class Sensitivity:
    """∂u/∂μ as a function of the coordinates.

    Args:
        ahead, behind: problem and network at μ + ε and μ - ε.
        step: ε.
    """

    def __init__(self, ahead: tuple[Problem, nn.Module], behind: tuple[Problem, nn.Module], step: float) -> None:
        self.ahead, self.behind, self.step = AdaptedSolution(*ahead), AdaptedSolution(*behind), step

    def __call__(self, *coordinates: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """The values at points, as ``AdaptedSolution``."""
        return (self.ahead(*coordinates) - self.behind(*coordinates)) / (2 * self.step)


def sensitivity(
    parametric: Parametric,
    values: dict[str, float],
    weights: Weights,
    name: str,
    step: float,
    points: Mapping[str, Points],
) -> Sensitivity:
    """By a parameter of this name, at a member with these values and weights; ``step`` is ε of the differences."""
    moved = lambda sign: values | {name: values[name] + sign * step}
    residuals = []
    for sign in (1, -1):
        parametric.place(weights, moved(sign))
        residuals.append(parametric.residual_vector(fresh(points)))
    parametric.place(weights, values)
    around = Linearisation(parametric.objective.sweep, fresh(points))
    solver = Damped(parametric.columns(around, "factors"), single=False)
    velocity = -solver((residuals[0] - residuals[1]) / (2 * step), DAMPING * solver.largest)
    variables = parametric.variables(around, "factors")
    names, sizes = [*variables], [x.dimension for x in variables.values()]
    ends = []
    for sign in (1, -1):
        parts = dict(zip(names, (sign * step * velocity).split(sizes), strict=True))
        parametric.place(parametric.moved(weights, parts))
        ends.append((parametric.problem_at(moved(sign)), copy.deepcopy(parametric.net)))
    parametric.place(weights, values)
    return Sensitivity(*ends, step)
