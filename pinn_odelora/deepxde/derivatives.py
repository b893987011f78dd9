"""DeepXDE's ``dde.grad.jacobian`` and ``hessian``, answered by the derivatives of a field.

A user's ``pde(x, y)`` asks for J_ij = ∂y_i/∂x_j of the outputs y and for H_ij = ∂²y_k/∂x_i∂x_j, and of derivatives
again for higher orders. While it runs both functions are answered as ``derivatives.gradients`` says, one column at a
time, and so is ``torch.autograd.grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.gradients import Column, Derivatives, Gradients
from pinn_odelora.errors import InputError
from pinn_odelora.geometry.deepxde import default_device, library


class Matrices:
    """Jacobian and Hessian of the outputs at the points of a field, with the arguments that DeepXDE gives them."""

    def __init__(self, derivatives: Derivatives) -> None:
        self.derivatives = derivatives

    def jacobian(self, ys: Any, xs: Tensor, i: int | None = None, j: int | None = None) -> Tensor:
        """∂y_i/∂x_j, (N, 1); without j the row of all x_j, without i the column of all y_i."""
        ys = _outputs(ys)
        coords = self.derivatives.coords
        if i is None and j is None and ys.shape[1] > 1 and len(coords) > 1:
            raise InputError("dde.grad.jacobian needs i or j, where there are several outputs and several coordinates.")
        which, along = _chosen("i", i, ys.shape[1]), _chosen("j", j, len(coords))
        known = self.derivatives.columns(ys)
        if known is None:
            gradients = [self.derivatives.by_reverse_mode([ys[:, a].sum()]) for a in which]
            return torch.cat([g[:, along] for g in gradients], dim=1)
        asked = [Column(known[a].field, known[a].along + coords[b]) for a in which for b in along]
        return self.derivatives.row(asked)

    def hessian(self, ys: Any, xs: Tensor, component: int = 0, i: int = 0, j: int = 0) -> Tensor:
        """∂²y_component/∂x_i∂x_j, (N, 1)."""
        return self.jacobian(self.jacobian(ys, xs, i=component, j=i), xs, i=0, j=j)


@contextmanager
def answered(field: Field) -> Iterator[Derivatives]:
    """Have DeepXDE's functions, in reverse and in forward mode, and torch's answered by a field meanwhile."""
    derivatives = Derivatives(field)
    matrices, gradients = Matrices(derivatives), library().gradients
    with (
        default_device(derivatives.x.device),
        _replaced(gradients.gradients_reverse, matrices),
        _replaced(gradients.gradients_forward, matrices),
        Gradients([derivatives]),
    ):
        yield derivatives


@contextmanager
def _replaced(module: Any, matrices: Matrices) -> Iterator[None]:
    own: dict[str, Callable] = {name: getattr(module, name) for name in ("jacobian", "hessian")}
    module.jacobian, module.hessian = matrices.jacobian, matrices.hessian
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(module, name, function)


def _outputs(ys: Any) -> Tensor:
    """The outputs alone: in forward mode DeepXDE hands on (outputs, network)."""
    return ys[0] if isinstance(ys, tuple) else ys


def _chosen(name: str, index: int | None, number: int) -> list[int]:
    if index is None:
        return [*range(number)]
    if not 0 <= index < number:
        raise InputError(f"dde.grad: {name} is {index}, but it must be from 0 to {number - 1}.")
    return [index]
