"""An adapted network as the function that it approximates:  u(x, t), arrays in and arrays out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pinn_odelora.errors import InputError
from pinn_odelora.field_networks import FieldNetwork, FoundField
from pinn_odelora.formulation import Problem
from pinn_odelora.points import Points
from pinn_odelora.system import Solution


class AdaptedSolution:
    """The solution of a problem by a network, as a function of its coordinates in the order of ``problem.coords``.

    Numbers and arrays give an array. If a coordinate is a tensor, the result is one too, in the precision and on the
    device of the network, and gradients flow through it to the coordinates and the weights.

    Args:
        problem: gives the coordinates, the fields and the ansatz.
        net: the network N of the ansatz, (N, inputs) -> (N, fields).
        networks: of the unknown fields that were found.

    Attributes:
        unknown_fields: what was found for unknown fields of the equation, by name, each a function of its coordinates.
    """

    def __init__(self, problem: Problem, net: nn.Module, networks: Mapping[str, FieldNetwork] | None = None) -> None:
        self.problem = problem
        self.solution = Solution(problem, net)
        self.unknown_fields = {name: FoundField(x, problem.region) for name, x in (networks or {}).items()}

    def __call__(self, *coordinates: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """The values at points, of the shape that the coordinates have after broadcasting against each other.

        With several fields there is a last axis for them: coordinates of shape (n, 1) and (m,) give (n, m, fields).

        Raises:
            InputError: if the number of coordinates is not that of the problem.
        """
        names = self.problem.coords
        if len(coordinates) != len(names):
            raise InputError(f"The solution is a function of {', '.join(names)}, but {len(coordinates)} were given.")
        weight = next(self.solution.parameters())
        given = [c if isinstance(c, Tensor) else torch.as_tensor(c, dtype=weight.dtype) for c in coordinates]
        columns = torch.broadcast_tensors(*(c.to(weight) for c in given))
        points = Points({name: c.reshape(-1, 1) for name, c in zip(names, columns, strict=True)})
        differentiable = any(isinstance(c, Tensor) for c in coordinates)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            values = self.solution(points)
        shape = columns[0].shape if len(self.problem.fields) == 1 else (*columns[0].shape, len(self.problem.fields))
        values = values.reshape(shape)
        return values if differentiable else values.cpu().numpy()
