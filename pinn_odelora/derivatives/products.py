"""The products with a weight in nested reverse mode, on a tape.

Reverse mode multiplies by the weight of a linear layer again. With E the gradient with respect to the output of

    Z = H Wᵀ + b        that with respect to its input is        D = E W ,

and reverse mode through D multiplies by Wᵀ once more. All of these products are recorded, so that the Jacobian of
residuals that nested reverse mode has found takes one further reverse sweep, not one for each row
(``linearisation.tape``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pinn_odelora.derivatives.jet import Adjoint, Passage, Tape


class Products(TorchFunctionMode):
    """A context inside which linear layers with a trained weight, and their derivatives, are recorded.

    Args:
        tape: receives a ``Passage`` for every product with Wᵀ, and an ``Adjoint`` for every one with W.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape: Tape | None = tape

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        # What is recorded is differentiated outside, by the same backward passes.
        self.tape = None

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not weight.requires_grad:
            return functional.linear(input, weight, bias)
        return self.times_transposed(input, weight, bias)

    def times_transposed(self, H: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
        """H Wᵀ + b."""
        Z = _Product.apply(H, W, True, self)
        Z = Z if b is None else Z + b
        if self.tape is not None and Z.requires_grad:
            self.tape.append(Passage(W, b, {"": H}, {"": Z}))
        return Z

    def times(self, E: Tensor, W: Tensor) -> Tensor:
        """E W."""
        D = _Product.apply(E, W, False, self)
        if self.tape is not None and D.requires_grad:
            self.tape.append(Adjoint(W, E, D))
        return D


class _Product(torch.autograd.Function):
    """x Wᵀ or x W, differentiated by recorded products; with respect to W it is the tape that tells."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, transposed: bool, products: Products) -> Tensor:
        ctx.save_for_backward(W)
        ctx.transposed, ctx.products = transposed, products
        return x @ (W.mT if transposed else W)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (W,) = ctx.saved_tensors
        again = ctx.products.times if ctx.transposed else ctx.products.times_transposed
        return again(g, W) if ctx.needs_input_grad[0] else None, None, None, None
