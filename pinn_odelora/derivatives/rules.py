"""The table of jet rules: how torch's functions act on the channels of a jet.

``RULES`` maps a function's name in torch to its rule. A pointwise function needs its derivatives up to the highest
order carried, in closed form or by autograd; a linear map acts on each channel separately; sums and products follow the
rules of calculus. A new rule takes one line:

    RULES["erf"] = pointwise(by_autograd(torch.erf))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pinn_odelora.derivatives.autograd import layer_norm
from pinn_odelora.derivatives.jet import (
    RULES,
    Channel,
    Channels,
    Jet,
    NoJetRule,
    Passage,
    Trained,
    compose,
    multiply,
)
from pinn_odelora.derivatives.pointwise import (
    Rule,
    by_autograd,
    cos,
    exp,
    gelu,
    pointwise,
    power,
    sigmoid,
    silu,
    sin,
    softplus,
    tanh_of,
)


def linear_map(function: Callable[..., Any]) -> Rule:
    """The rule of a function linear in its first argument; it may return several tensors, as ``chunk`` does.

    Of a jet among the other arguments it takes shape, dtype or device, as in ``constant.to(jet)``, which is no jet.
    """

    def rule(z: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(x.value if isinstance(x, Jet) else x for x in args)
        if not isinstance(z, Jet):
            return function(z, *args, **kwargs)
        images = {channel: function(z.part(channel), *args, **kwargs) for channel in z.parts}
        if isinstance(images[""], Tensor):
            return Jet(images, z.channels)
        split = [dict(zip(images, pieces, strict=True)) for pieces in zip(*images.values(), strict=True)]
        return tuple(Jet(parts, z.channels) for parts in split)

    return rule


def value_only(function: Callable[..., Any]) -> Rule:
    """The rule of a locally constant function, such as a comparison; the result is a plain tensor."""
    return lambda *args, **kwargs: function(*(x.value if isinstance(x, Jet) else x for x in args), **kwargs)


def linear(z: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    """x ↦ W x + b: one product per channel, the bias added to the value only; recorded on the tape if there is one."""
    _plain(weight, "the weight of a linear layer")
    Z = {c: functional.linear(x, weight, bias if c == "" else None) for c, x in z.parts.items()}
    if z.channels.tape is not None:
        z.channels.tape.append(Passage(weight, bias, z.parts, Z))
    return Jet(Z, z.channels)


def matmul(a: Any, b: Any) -> Jet:
    """a @ b, where one of the two is a jet.

    Raises:
        NoJetRule: if both are.
    """
    if isinstance(a, Jet) and isinstance(b, Jet):
        raise NoJetRule("a matrix product of two tensors that both depend on the coordinates has no jet rule")
    if isinstance(a, Jet):
        return a.map(lambda x: x @ b)
    return Jet({channel: a @ b.part(channel) for channel in b.parts}, b.channels)


def add(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    """a + alpha · b, where at least one of the two is a jet."""
    b = b if alpha == 1 else b * alpha
    if isinstance(a, Jet) and isinstance(b, Jet):
        parts = dict(a.parts)
        for channel, x in b.parts.items():
            parts[channel] = parts[channel] + x if channel in parts else x
        return _of_one_shape(parts, a.channels)
    jet, constant = (a, b) if isinstance(a, Jet) else (b, a)
    return recorded(constant, None, _of_one_shape(jet.parts | {"": jet.value + constant}, jet.channels))


def _of_one_shape(parts: dict[Channel, Tensor], channels: Channels) -> Jet:
    """A jet with all channels of the value's shape, which broadcasting against a constant may have enlarged."""
    shape = parts[""].shape
    alike = lambda x: x.shape == shape or (len(x) == 1 and x.shape[1:] == shape[1:])
    return Jet({c: x if alike(x) else x.expand(shape) for c, x in parts.items()}, channels)


def subtract(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    """a - alpha · b, where at least one of the two is a jet."""
    return add(a, -b, alpha=alpha)


def product(a: Any, b: Any) -> Jet:
    """a · b, where at least one of the two is a jet."""
    if isinstance(a, Jet) and isinstance(b, Jet):
        return multiply(a, b)
    jet, constant = (a, b) if isinstance(a, Jet) else (b, a)
    return recorded(constant, jet.parts, jet.map(lambda x: x * constant))


def recorded(a: Any, H: dict[Channel, Tensor] | None, Z: Jet) -> Jet:
    """Z, which is H ⊙ a, or a sum with a; put on the tape if there is one and a, the same at all points, is trained."""
    if Z.channels.tape is not None and isinstance(a, Tensor) and a.requires_grad and a.ndim < Z.ndim:
        Z.channels.tape.append(Trained(a, H, Z.parts))
    return Z


def divide(a: Any, b: Any) -> Jet:
    """a / b, where at least one of the two is a jet."""
    if not isinstance(b, Jet):
        return a.map(lambda x: x / b)
    return product(a, compose(b, partial(power, exponent=-1)))


def raise_to(a: Any, b: Any) -> Jet:
    """a ** b, where one of the two is a jet.

    Raises:
        NoJetRule: if both are.
    """
    if isinstance(b, Jet):
        if isinstance(a, Jet):
            raise NoJetRule("a power whose base and exponent both depend on the coordinates has no jet rule")
        return compose(b * math.log(a) if not isinstance(a, Tensor) else b * a.log(), exp)
    _plain(b, "an exponent")
    return compose(a, partial(power, exponent=float(b)))


def _plain(x: Any, what: str) -> None:
    if isinstance(x, Jet):
        raise NoJetRule(f"{what} that depends on the coordinates has no jet rule")


def concatenate(function: Callable[..., Tensor]) -> Rule:
    """The rule of ``cat`` and ``stack``: channel by channel, with zeros for absent channels and plain tensors."""

    def rule(tensors: Sequence[Any], dim: int = 0) -> Jet:
        jets = [x for x in tensors if isinstance(x, Jet)]
        carried = dict.fromkeys(channel for jet in jets for channel in jet.parts)
        side_by_side = function is torch.cat and dim in (-1, jets[0].ndim - 1)
        parts = {}
        for c in carried:
            constant = side_by_side and all(len(jet.parts[c]) == 1 for jet in jets if c in jet.parts)
            parts[c] = function([_of(x, c, 1 if constant else len(x)) for x in tensors], dim=dim)
        return Jet(parts, jets[0].channels)

    return rule


def _of(x: Jet | Tensor, channel: Channel, rows: int) -> Tensor:
    """A channel with ``rows`` rows; zero if it is absent or x is a plain tensor."""
    if isinstance(x, Jet) and channel in x.parts:
        part = x.parts[channel]
    elif isinstance(x, Tensor) and channel == "":
        part = x
    else:
        part = (x.value if isinstance(x, Jet) else x)[:1].new_zeros(1, *x.shape[1:])
    return part if len(part) == rows else part.expand(rows, *part.shape[1:])


def where(condition: Any, a: Any, b: Any) -> Jet:
    """The selected branch with its derivatives; a jump between the branches does not contribute."""
    jet = a if isinstance(a, Jet) else b
    a, b = (x if isinstance(x, Jet) else Jet({"": torch.as_tensor(x).to(jet.value)}, jet.channels) for x in (a, b))
    condition = condition.value if isinstance(condition, Jet) else condition
    return Jet(
        {c: torch.where(condition, a.part(c), b.part(c)) for c in a.parts | b.parts},
        jet.channels,
    )


def dropout(z: Jet, p: float = 0.5, training: bool = True, inplace: bool = False) -> Jet:
    """The identity, as dropout in evaluation mode.

    Raises:
        NoJetRule: in training mode with p > 0.
    """
    if training and p:
        raise NoJetRule(
            "dropout in training mode draws other numbers at every call, so there is no function to differentiate"
        )
    return z


def _maps(names: str, owner: Any, rule: Callable[[Any], Rule]) -> dict[str, Rule]:
    return {name: rule(getattr(owner, name)) for name in names.split()}


RULES |= {
    "add": add,
    "sub": subtract,
    "mul": product,
    "multiply": product,
    "div": divide,
    "true_divide": divide,
    "pow": raise_to,
    "rsub": lambda a, b: subtract(b, a),
    "linear": linear,
    "matmul": matmul,
    "mm": matmul,
    "cat": concatenate(torch.cat),
    "concat": concatenate(torch.cat),
    "stack": concatenate(torch.stack),
    "where": where,
    "layer_norm": layer_norm,
    "dropout": dropout,
    "tanh": tanh_of,
    "sin": pointwise(sin),
    "cos": pointwise(cos),
    "exp": pointwise(exp),
    "sigmoid": pointwise(sigmoid),
    "silu": pointwise(silu),
    "softplus": pointwise(softplus),
    "gelu": pointwise(gelu),
    "log_sigmoid": pointwise(by_autograd(functional.logsigmoid)),
    "square": pointwise(partial(power, exponent=2)),
    "reciprocal": pointwise(partial(power, exponent=-1)),
    "sqrt": pointwise(partial(power, exponent=0.5)),
    "rsqrt": pointwise(partial(power, exponent=-0.5)),
    **_maps(
        "abs acosh asinh atan atanh cosh erf erfc exp2 expm1 log log10 log1p log2 sinc sinh tan",
        torch,
        lambda f: pointwise(by_autograd(f)),
    ),
    **_maps("celu elu leaky_relu mish relu selu softsign", functional, lambda f: pointwise(by_autograd(f))),
    **_maps(
        "clone contiguous diagonal double expand flatten float movedim narrow neg permute reshape squeeze sum mean "
        "split t to transpose unbind unflatten unsqueeze view chunk __getitem__ expand_as reshape_as type_as view_as",
        torch.Tensor,
        linear_map,
    ),
    **_maps("zeros_like ones_like full_like", torch, value_only),
    **_maps("eq ne lt le gt ge new_tensor new_zeros new_ones new_full", torch.Tensor, value_only),
}
