"""Pointwise functions of jets: their derivatives up to the order carried, in closed form or by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pinn_odelora.derivatives.jet import Channel, Coefficient, Jet, NoJetRule, combine, compose

Rule = Callable[..., Any]
Derivatives = Callable[..., Sequence[Tensor]]
"""``derivatives(z, k, …)``: s(z), s'(z), …, s^(k)(z) and possibly more, with the further arguments of s."""


def pointwise(derivatives: Derivatives) -> Rule:
    """The rule of an elementwise function with the given derivatives."""
    return lambda z, *args, **kwargs: compose(z, lambda x, k: derivatives(x, k, *args, **kwargs))


def by_autograd(function: Callable[..., Tensor]) -> Derivatives:
    """The derivatives of an elementwise function, by repeated automatic differentiation."""

    def derivatives(z: Tensor, k: int, *args: Any, **kwargs: Any) -> Sequence[Tensor]:
        graph = torch.is_grad_enabled() and z.requires_grad
        with torch.enable_grad():
            z = z if graph else z.detach().requires_grad_()
            s = [function(z.clone(), *args, **kwargs)]  # which may write its values there
            while len(s) <= k and s[-1].requires_grad:
                s += torch.autograd.grad(s[-1].sum(), z, create_graph=True, materialize_grads=True)
            s += [torch.zeros_like(z)] * (k + 1 - len(s))
        return s if graph else [x.detach() for x in s]

    return derivatives


def tanh(z: Tensor, k: int) -> Sequence[Tensor]:
    """tanh and its derivatives: s' = 1 - s², s'' = -2 s s', s''' = s' (4 - 6 s'), s'''' = s'' (4 - 12 s')."""
    a = torch.tanh(z)
    s = [a]
    if k > 0:
        s.append(1 - a * a)
    if k > 1:
        s.append(-2 * a * s[1])
    if k > 2:
        s.append(s[1] * (4 - 6 * s[1]))
    if k > 3:
        s.append(s[2] * (4 - 12 * s[1]))
    return _known(s, k, "tanh")


def tanh_of(z: Jet) -> Jet:
    """tanh z by  tanh'' = -2 tanh tanh':  with f_α = s' z_α already formed,  s'' z_α z_β = -2 f (f_α z_β).

    Neither s'' nor the products z_α z_β are formed, which saves a fifth of the memory traffic. From third order on the
    general rule is as fast, and in the first layer it is faster.
    """
    if any(k > 2 for monomials in z.channels.chain.values() for k in monomials) or _first_layer(z):
        return compose(z, tanh)
    a, slope = tanh(z.value, 1)
    first: dict[Channel, Tensor] = {c: slope * x for c, x in z.parts.items() if c != ""}
    parts = {"": a}
    for channel, monomials in z.channels.chain.items():
        pairs = [(c, *blocks) for c, blocks in monomials.get(2, ()) if first.keys() >= {*blocks}]
        if pairs or channel in first:
            parts[channel] = combine(_curved(pairs, first, z, a), first.get(channel))
    return Jet(parts, z.channels)


def _first_layer(z: Jet) -> bool:
    """Whether all channels but the value are the same at all points, so that their products cost next to nothing."""
    return all(len(x) == 1 for c, x in z.parts.items() if c != "")


def _curved(
    pairs: Sequence[tuple[Coefficient, Channel, Channel]], first: dict[Channel, Tensor], z: Jet, a: Tensor
) -> list[tuple[Coefficient, Tensor, Tensor]]:
    """-2 a Σ c f_α z_β as summands, with the sum evaluated first."""
    if len(pairs) == 1:
        ((c, alpha, beta),) = pairs
        return [(-2 * c, a, first[alpha] * z.parts[beta])]
    return [(-2.0, a, combine((c, first[alpha], z.parts[beta]) for c, alpha, beta in pairs))] if pairs else []


def sin(z: Tensor, k: int) -> Sequence[Tensor]:
    """sin and its derivatives, s'' = -s."""
    s = [torch.sin(z)]
    if k > 0:
        s.append(torch.cos(z))
    while len(s) <= k:
        s.append(-s[-2])
    return s


def cos(z: Tensor, k: int) -> Sequence[Tensor]:
    """cos and its derivatives, s'' = -s."""
    s = [torch.cos(z)]
    if k > 0:
        s.append(-torch.sin(z))
    while len(s) <= k:
        s.append(-s[-2])
    return s


def exp(z: Tensor, k: int) -> Sequence[Tensor]:
    """exp and its derivatives, all equal."""
    return [torch.exp(z)] * (k + 1)


def sigmoid(z: Tensor, k: int) -> Sequence[Tensor]:
    """σ and its derivatives: σ' = σ (1 - σ), σ'' = σ' (1 - 2σ), σ''' = σ' (1 - 6σ')."""
    a = torch.sigmoid(z)
    s = [a]
    if k > 0:
        s.append(a * (1 - a))
    if k > 1:
        s.append(s[1] * (1 - 2 * a))
    if k > 2:
        s.append(s[1] * (1 - 6 * s[1]))
    return _known(s, k, "sigmoid")


def silu(z: Tensor, k: int, inplace: bool = False) -> Sequence[Tensor]:
    """(z σ)^(k) = z σ^(k) + k σ^(k-1)."""
    a = sigmoid(z, k)
    return [z * a[0], *(z * a[i] + i * a[i - 1] for i in range(1, k + 1))]


def softplus(z: Tensor, k: int, beta: float = 1.0, threshold: float = 20.0) -> Sequence[Tensor]:
    """s' = σ(βz) below the threshold, and above it the derivatives of the straight line that torch uses there."""
    s = [functional.softplus(z, beta, threshold)]
    straight = beta * z > threshold
    for i, a in enumerate(sigmoid(beta * z, k - 1) if k else ()):
        s.append(torch.where(straight, float(i == 0), beta**i * a))
    return s


def gelu(z: Tensor, k: int, approximate: str = "none") -> Sequence[Tensor]:
    """z Φ(z), with Φ and φ the standard normal distribution function and its density."""
    if approximate != "none":
        return by_autograd(partial(functional.gelu, approximate=approximate))(z, k)
    s = [functional.gelu(z)]
    phi = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) if k else z
    if k > 0:
        s.append(torch.special.ndtr(z) + z * phi)
    if k > 1:
        s.append(phi * (2 - z * z))
    if k > 2:
        s.append(phi * z * (z * z - 4))
    return _known(s, k, "gelu")


def power(z: Tensor, k: int, exponent: float) -> Sequence[Tensor]:
    """z^p; the derivatives of an integer power are zero from some order on, so that 0 is never raised to p < 0."""
    s, c, p = [z**exponent], 1.0, exponent
    for _ in range(k):
        c, p = c * p, p - 1
        s.append(torch.zeros_like(z) if c == 0 else c * z**p)
    return s


def _known(s: list[Tensor], k: int, name: str) -> list[Tensor]:
    if len(s) <= k:
        raise NoJetRule(f"{name} has jet rules up to order {len(s) - 1}; derivatives=autograd has no such limit")
    return s
