"""A solution as a function of its coordinates: u(x, t)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.points import Points
from pinn_odelora.system import Solution


class SolutionFunction:
    """The solution as a function of its coordinates, in the order of ``problem.coords``.

    Tensors give a tensor, through which gradients flow; numbers and arrays give an array. Coordinates are broadcast
    against each other; the result has their common shape, with a last axis of fields when there are several.
    """

    def __init__(self, problem: Problem, net: nn.Module) -> None:
        self.problem = problem
        self.solution = Solution(problem, net)

    def __call__(self, *coordinates: ArrayLike | Tensor) -> np.ndarray | Tensor:
        if len(coordinates) != len(self.problem.coords):
            raise InputError(
                f"the solution is a function of {', '.join(self.problem.coords)}, but {len(coordinates)} were given."
            )
        tensors = any(isinstance(c, Tensor) for c in coordinates)
        weight = next(self.solution.parameters())
        as_tensor = lambda c: c if isinstance(c, Tensor) else torch.as_tensor(c, dtype=weight.dtype)
        columns = torch.broadcast_tensors(*map(as_tensor, coordinates))
        points = Points(
            {name: c.reshape(-1, 1).to(weight) for name, c in zip(self.problem.coords, columns, strict=True)}
        )
        values = self.solution(points)
        shape = columns[0].shape if len(self.problem.fields) == 1 else (*columns[0].shape, len(self.problem.fields))
        values = values.reshape(shape)
        return values if tensors else values.detach().numpy()
