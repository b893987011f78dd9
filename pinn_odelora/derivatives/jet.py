"""Jets: a tensor together with its derivatives along the coordinates, propagated forward through a computation.

A jet holds one tensor per channel: the value z, derivatives z_α, and images z_M = M z under linear operators
M = Σ_α c_α ∂_α of order one or higher. An operator takes a single channel, however many derivatives it contains,
because every rule is linear in the highest derivative: for f = s(z)

    f_M = s'(z) · z_M + Σ_α c_α · (summands of f_α with at least two derivatives),

and for a product  (f g)_M = f_M g + f g_M + Σ_α c_α · (summands of (f g)_α in which both factors are differentiated).
The channels z_t and z_xx of the heat operator ∂_t - κ∂_xx are never formed. For M = Δ this is the forward Laplacian
(Li et al., 2023, arXiv 2307.08214), and in general collapsed Taylor mode (Dangel et al., 2025, arXiv 2505.13644).

A jet is not a tensor but can take its place in torch's functions: ``torch.tanh(jet)`` applies the jet rule of ``tanh``.
Any network composed of functions with a jet rule can therefore be differentiated as it stands. An absent channel is
identically zero; a function without a rule raises ``NoJetRule``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.derivatives.multiindex import Word, partitions, splits

Coefficient = float | Tensor
Channel = Word | int
"""A derivative, by its multi-index, or an operator, by its number; the empty multi-index is the value."""
Monomials = dict[int, list[tuple[Coefficient, tuple[Word, ...]]]]
"""Products of derivatives with their coefficients, by number of factors."""


RULES: dict[str, Callable[..., Any]] = {}
"""The jet rules of torch's functions, by name in torch; filled in ``rules``."""


class NoJetRule(NotImplementedError):  # noqa: N818  usually caught, and then not an error
    """A computation uses a function without a jet rule."""


EXPRESSION = "the equation differentiates an expression, and not the solution or a derivative of it"
"""Why jets do not apply."""


class Passage(NamedTuple):
    """One evaluation of a linear layer: weight W (m, n), bias, channels H_c (N, n) in and Z_c (N, m) out."""

    weight: Tensor
    bias: Tensor | None
    H: dict[Channel, Tensor]
    Z: dict[Channel, Tensor]


class Trained(NamedTuple):
    """A product or sum of channels H_c with a trained tensor a that is the same at all points.

    Z_c = a ⊙ H_c for a product; H is None for a sum, where the value alone changes by a.
    """

    a: Tensor
    H: dict[Channel, Tensor] | None
    Z: dict[Channel, Tensor]


class Adjoint(NamedTuple):
    """A product D = E W (N, n) of nested reverse mode with a weight W (m, n), E (N, m) the gradient of a column."""

    weight: Tensor
    E: Tensor
    D: Tensor


Tape = list[Passage | Trained | Adjoint]


AS_IN_NUMPY = {"axis": "dim", "keepdims": "keepdim"}
"""Arguments that torch also takes by their names in NumPy."""


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels that every jet of one evaluation carries.

    Args:
        derivatives: multi-indices by increasing order, closed under the chain rule.
        operators: coefficients by multi-index, for each operator; the lower-order derivatives that their chain rules
            need are among ``derivatives``.
        tape: receives a ``Passage`` for every evaluation of a linear layer, and a ``Trained`` for every product or sum
            with a trained tensor, if given.
    """

    derivatives: tuple[Word, ...] = ()
    operators: tuple[Mapping[Word, Coefficient], ...] = ()
    tape: Tape | None = None
    chain: dict[Channel, Monomials] = field(init=False)

    def __post_init__(self) -> None:
        chain: dict[Channel, Monomials] = {alpha: _monomials({alpha: 1.0}) for alpha in self.derivatives}
        for number, coefficients in enumerate(self.operators):
            chain[number] = {1: [(1.0, (number,))]} | {
                k: terms for k, terms in _monomials(coefficients).items() if k > 1
            }
        object.__setattr__(self, "chain", chain)

    def split(self, channel: Channel) -> list[tuple[Coefficient, Channel, Channel]]:
        """The summands (c, left, right) of this channel of a product."""
        if isinstance(channel, str):
            return list(splits(channel))
        crossed = [
            (_times(c, count), left, right)
            for alpha, c in self.operators[channel].items()
            for count, left, right in splits(alpha)
            if left and right
        ]
        return [(1.0, channel, ""), (1.0, "", channel), *crossed]


def _monomials(coefficients: Mapping[Word, Coefficient]) -> Monomials:
    by_degree: Monomials = {}
    for alpha, c in coefficients.items():
        for count, blocks in partitions(alpha):
            by_degree.setdefault(len(blocks), []).append((_times(c, count), blocks))
    return by_degree


def _times(c: Coefficient, count: int) -> Coefficient:
    return c if count == 1 else c * count


class Jet:
    """A tensor and its derivative channels; see the module's docstring.

    Args:
        parts: a tensor for each channel that is not identically zero, of the value's shape, or with a single row if
            the channel is the same at all points.
        channels: the channels of this evaluation.

    Raises:
        NoJetRule: when a function or method without a jet rule is applied to it.
    """

    __slots__ = ("channels", "parts")

    def __init__(self, parts: dict[Channel, Tensor], channels: Channels) -> None:
        self.parts = parts
        self.channels = channels

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(func.__name__)
        if rule is None:
            raise NoJetRule(f"{func.__name__} has no jet rule; derivatives=autograd differentiates any module")
        return rule(*args, **{AS_IN_NUMPY.get(name, name): x for name, x in (kwargs or {}).items()})

    @property
    def value(self) -> Tensor:
        """The tensor itself, without its derivatives."""
        return self.parts[""]

    @property
    def shape(self) -> torch.Size:
        """Shape of the value."""
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the value."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Device of the value."""
        return self.value.device

    @property
    def ndim(self) -> int:
        """Number of dimensions of the value."""
        return self.value.ndim

    def part(self, channel: Channel) -> Tensor:
        """A channel expanded to the value's shape; zero if absent."""
        found = self.parts.get(channel)
        if found is None:
            return torch.zeros_like(self.value)
        return found if found.shape == self.value.shape else found.expand(self.value.shape)

    def map(self, linear: Callable[[Tensor], Tensor]) -> Jet:
        """The image under a linear map that does not depend on the coordinates, channel by channel."""
        return Jet({channel: linear(x) for channel, x in self.parts.items()}, self.channels)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A tensor method, as in ``jet.square()``, by the rule of the function of the same name."""
        if name.startswith("__") or not callable(getattr(torch.Tensor, name, None)):
            raise AttributeError(f"a jet has no attribute {name!r}")
        if name not in RULES:
            raise NoJetRule(f"{name} has no jet rule; derivatives=autograd differentiates any module")
        return lambda *args, **kwargs: RULES[name](self, *args, **kwargs)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> Jet:
        if isinstance(index, tuple) and index and index[0] == slice(None):
            return self.map(lambda x: x[index])
        return Jet({channel: self.part(channel)[index] for channel in self.parts}, self.channels)

    def __neg__(self) -> Jet:
        return self.map(torch.neg)

    def __add__(self, other: Any) -> Jet:
        return RULES["add"](self, other)

    def __sub__(self, other: Any) -> Jet:
        return RULES["sub"](self, other)

    def __rsub__(self, other: Any) -> Jet:
        return RULES["sub"](other, self)

    def __mul__(self, other: Any) -> Jet:
        return RULES["mul"](self, other)

    def __truediv__(self, other: Any) -> Jet:
        return RULES["div"](self, other)

    def __rtruediv__(self, other: Any) -> Jet:
        return RULES["div"](other, self)

    def __pow__(self, other: Any) -> Jet:
        return RULES["pow"](self, other)

    def __rpow__(self, other: Any) -> Jet:
        return RULES["pow"](other, self)

    def __matmul__(self, other: Any) -> Jet:
        return RULES["matmul"](self, other)

    def __lt__(self, other: Any) -> Tensor:
        return RULES["lt"](self, other)

    def __le__(self, other: Any) -> Tensor:
        return RULES["le"](self, other)

    def __gt__(self, other: Any) -> Tensor:
        return RULES["gt"](self, other)

    def __ge__(self, other: Any) -> Tensor:
        return RULES["ge"](self, other)

    __radd__ = __add__
    __rmul__ = __mul__


def compose(z: Jet, derivatives: Callable[[Tensor, int], Sequence[Tensor]]) -> Jet:
    """s(z) for a pointwise s, by the formula of Faà di Bruno.

    Args:
        z: the argument.
        derivatives: ``derivatives(z, k)`` returns s(z), s'(z), …, s^(k)(z), and possibly more.
    """
    product = _Products(z.parts)
    channels = {}
    for channel, monomials in z.channels.chain.items():
        found = {k: total for k, terms in monomials.items() if (total := product.sum(terms)) is not None}
        if found:
            channels[channel] = found
    order = max((k for found in channels.values() for k in found), default=0)
    s = derivatives(z.value, order)
    parts: dict[Channel, Tensor] = {"": s[0]}
    for channel, found in channels.items():
        parts[channel] = combine((c, s[k], P) for k, (c, P) in found.items())
    return Jet(parts, z.channels)


def multiply(f: Jet, g: Jet) -> Jet:
    """The product of two jets, by the Leibniz rule."""
    found: dict[Channel, Tensor] = {"": f.value * g.value}
    for channel in f.channels.chain:
        terms = [
            (c, f.parts[left], g.parts[right])
            for c, left, right in f.channels.split(channel)
            if left in f.parts and right in g.parts
        ]
        if terms:
            found[channel] = combine(terms)
    return Jet(found, f.channels)


class _Products:
    """Products of derivatives, each formed once."""

    def __init__(self, parts: Mapping[Channel, Tensor]) -> None:
        self.known: dict[tuple[Channel, ...], Tensor] = {(channel,): x for channel, x in parts.items()}

    def __call__(self, blocks: tuple[Channel, ...]) -> Tensor | None:
        """Π z_β, or None if a factor is zero."""
        if blocks not in self.known:
            if any((block,) not in self.known for block in blocks):
                return None
            self.known[blocks] = self(blocks[:-1]) * self(blocks[-1:])
        return self.known[blocks]

    def sum(self, terms: list[tuple[Coefficient, tuple[Channel, ...]]]) -> tuple[Coefficient, Tensor] | None:
        """Σ c·Π z_β as a pair (coefficient, tensor), or None if it is zero."""
        present = [(c, P) for c, blocks in terms if (P := self(blocks)) is not None]
        if len(present) > 1:
            return 1.0, _total(present)
        return present[0] if present else None


def _total(terms: list[tuple[Coefficient, Tensor]]) -> Tensor:
    (c, x), *rest = terms
    total = x if _is_one(c) else c * x
    for c, x in rest:
        total = torch.add(total, x, alpha=c) if isinstance(c, float | int) else total + c * x
    return total


def combine(terms: Iterable[tuple[Coefficient, Tensor, Tensor]], start: Tensor | None = None) -> Tensor:
    """start + Σ c·a·b, with numerical coefficients fused into the product; needs at least one term or a start."""
    total = start
    for c, a, b in terms:
        if not isinstance(c, float | int):
            a, c = c * a, 1.0
        if total is None:
            total = a * b if _is_one(c) else (c * a) * b
        else:
            total = torch.addcmul(total, a, b, value=c)
    assert total is not None
    return total


def _is_one(c: Coefficient) -> bool:
    return isinstance(c, float | int) and c == 1
