"""Where the Jacobian is read off the tape of an evaluation, from the gradients of a summed residual.

With G_c = ∂(Σ_i r_i)/∂Z_c a linear layer Z_c = H_c Wᵀ + b gives the pairs (G_c, H_c) of W, and the column block
∂r_i/∂b = G[i] of its bias, with G that of the value. Nested reverse mode has the channel of the value alone, and a
product D = E W there gives the pair (E, ∂(Σ_i r_i)/∂D). A trained tensor a, the same at all points, that multiplies
channels of jets, Z_c = a ⊙ H_c, gives

    ∂r_i/∂a = Σ_c G_c[i] ⊙ H_c[i] ,

summed over what a is broadcast along, and one that is added gives G[i] as a bias does. If a is computed from a variable
x, as exp(s) from s, then ∂r_i/∂x = ∂r_i/∂a · ∂a/∂x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pinn_odelora.derivatives.jet import Adjoint, Passage, Tape


class Constant(NamedTuple):
    """A trained tensor a on the tape.

    Attributes:
        shape: of a.
        derivatives: ∂a/∂x, (a.numel(), x.numel()), by the name of x; None where a is x.
    """

    shape: torch.Size
    derivatives: dict[str, Tensor | None]

    def columns(self, GH: Tensor) -> Iterator[tuple[str, Tensor]]:
        """∂r_i/∂x (N, x.numel()) for every x, from G or G ⊙ H, (N, …)."""
        J = _summed(GH, self.shape)
        for name, D in self.derivatives.items():
            yield name, J if D is None else J @ D


class Place(NamedTuple):
    """A tensor on the tape at which the gradient G is wanted.

    Attributes:
        Z: the tensor.
        layer: name of the layer that it comes from, whose weight is a variable; None if there is none.
        H: what the layer multiplied.
        constant: the bias of the layer, or another tensor that is added or multiplies.
        factor: what that multiplies; None for a sum.
        adjoint: whether Z is H W, of which the pair is (H, G), and not H Wᵀ, of which it is (G, H).
    """

    Z: Tensor
    layer: str | None
    H: Tensor | None
    constant: Constant | None
    factor: Tensor | None = None
    adjoint: bool = False


def places(tape: Tape, W: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> list[Place]:
    """All places that tell of the variables.

    Args:
        tape: of one evaluation.
        W: the weights of the layers by name.
        others: further variables by name, leaves of the graph.
    """
    layers, names = ({id(x): name for name, x in known.items()} for known in (W, others))
    found = []
    for x in tape:
        if isinstance(x, Passage):
            layer, bias = layers.get(id(x.weight)), _constant(x.bias, names, others)
            found += [Place(z, layer, x.H[c], bias if c == "" else None) for c, z in x.Z.items()]
        elif isinstance(x, Adjoint):
            found.append(Place(x.D, layers.get(id(x.weight)), x.E, None, adjoint=True))
        elif (a := _constant(x.a, names, others)) is not None:
            found += [Place(x.Z[""], None, None, a)] if x.H is None else []
            found += [Place(x.Z[c], None, None, a, H) for c, H in (x.H or {}).items()]
    return [place for place in found if place.layer is not None or place.constant is not None]


def _constant(a: Tensor | None, names: Mapping[int, str], others: Mapping[str, Tensor]) -> Constant | None:
    if a is None or not a.requires_grad:
        return None
    if a.is_leaf:
        return Constant(a.shape, {names[id(a)]: None}) if id(a) in names else None
    units = torch.eye(a.numel(), dtype=a.dtype, device=a.device).view(a.numel(), *a.shape)
    options = {"retain_graph": True, "allow_unused": True, "is_grads_batched": True}
    found = torch.autograd.grad(a, [*others.values()], units, **options) if others else ()
    derivatives = {
        name: D.reshape(a.numel(), x.numel())
        for (name, x), D in zip(others.items(), found, strict=True)
        if D is not None
    }
    return Constant(a.shape, derivatives) if derivatives else None


def _summed(x: Tensor, shape: torch.Size) -> Tensor:
    """x (N, …) summed over what ``shape`` is broadcast along, as rows (N, shape.numel())."""
    if x.shape[1:] != shape:
        ahead = x.ndim - 1 - len(shape)
        x = x.flatten(1, ahead).sum(dim=1) if ahead else x
        spread = [i + 1 for i, n in enumerate(shape) if n == 1 != x.shape[i + 1]]
        x = x.sum(dim=spread, keepdim=True) if spread else x
    return x.flatten(1) if x.ndim > 1 else x[:, None]
