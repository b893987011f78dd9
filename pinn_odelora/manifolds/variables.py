"""The variables of an implicit scheme, one class per kind: points, tangent coordinates and retraction.

``LowRankPair``  a product s·B A on the manifold of rank r, in tangent coordinates: ODELoRA.
``FactorPair``   the factors themselves, a flat space: plain LoRA.
``Flat``         any tensor with the Euclidean metric: biases, full weights.
``Sized``        a number x of known size s by θ = x / s, as a coefficient of 10⁵: dx = s dθ.
``Positive``     a number x above a bound a, by θ = log(x - a): dx = (x - a) dθ, x⁺ = a + (x - a) exp(dθ). Positive
                 coefficients stay positive, and change at a relative rate. The ambient space is that of θ, which is
                 flat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import LowRank, low_rank, retract
from pinn_odelora.manifolds.tangent import FactorFrame, Frame, Stretch


class Moved(NamedTuple):
    """The point reached by a variable, and the norm of the part that its retraction discarded."""

    point: Any
    discarded: Tensor | None = None


class Variable(Protocol):
    """One variable of an implicit scheme."""

    def start(self) -> Any:
        """The point given by the present parameters, float64."""

    def values(self, y: Any) -> list[Tensor]:
        """The parameters at y."""

    def frame(self, y: Any) -> Frame | FactorFrame | Stretch | None:
        """Coordinates of the tangent space at y; None if they are the entries of y."""

    @property
    def dimension(self) -> int:
        """Number of coordinates."""

    def move(self, y: Any, frame: Any, z: Tensor) -> Moved:
        """The retraction at y of the tangent vector with coordinates z, (dimension,)."""

    def vector(self, frame: Any, z: Tensor) -> Tensor:
        """The tangent vector with coordinates z, (dimension,), as an element of the ambient space."""

    def coordinates(self, frame: Any, D: Tensor) -> Tensor:
        """The coordinates, (dimension,), of the projection of an element D of the ambient space."""


@dataclass(frozen=True)
class LowRankPair:
    """The product s·B A on the manifold of rank r; implements ``Variable``.

    Args:
        params: A (r, n) and B (m, r).
        scale: s.
    """

    params: list[Tensor]
    scale: float

    def start(self) -> LowRank:
        return low_rank(Factors(*self.params), self.scale)

    def values(self, y: LowRank) -> list[Tensor]:
        return [*y.factors(self.scale)]

    def frame(self, y: LowRank) -> Frame:
        return y.frame

    @property
    def dimension(self) -> int:
        (r, n), m = self.params[0].shape, self.params[1].shape[0]
        return r * (m + n - r)

    def move(self, y: LowRank, frame: Frame, z: Tensor) -> Moved:
        return Moved(*retract(y, frame, z))

    def vector(self, frame: Frame, z: Tensor) -> Tensor:
        return frame.vector(z)

    def coordinates(self, frame: Frame, D: Tensor) -> Tensor:
        return frame.coordinates(D)


class _SelfTangent:
    """A flat space, in which tangent vectors and coordinates are the same."""

    def vector(self, frame: Any, z: Tensor) -> Tensor:
        return z

    def coordinates(self, frame: Any, D: Tensor) -> Tensor:
        return D


@dataclass(frozen=True)
class FactorPair(_SelfTangent):
    """The factors as a flat space; implements ``Variable``.

    Args:
        params: A (r, n) and B (m, r).
        scale: s.
    """

    params: list[Tensor]
    scale: float

    def start(self) -> Factors:
        return Factors(*(p.detach().double().clone() for p in self.params))

    def values(self, y: Factors) -> list[Tensor]:
        return [*y]

    def frame(self, y: Factors) -> FactorFrame:
        return FactorFrame(y, self.scale)

    @property
    def dimension(self) -> int:
        return sum(p.numel() for p in self.params)

    def move(self, y: Factors, frame: FactorFrame, z: Tensor) -> Moved:
        return Moved(frame.moved(z))


@dataclass(frozen=True)
class Flat(_SelfTangent):
    """A tensor with the Euclidean metric; implements ``Variable``.

    Args:
        params: the tensor, as a list of one.
    """

    params: list[Tensor]

    def start(self) -> Tensor:
        return self.params[0].detach().double().clone()

    def values(self, y: Tensor) -> list[Tensor]:
        return [y]

    def frame(self, y: Tensor) -> None:
        return None

    @property
    def dimension(self) -> int:
        return self.params[0].numel()

    def move(self, y: Tensor, frame: None, z: Tensor) -> Moved:
        return Moved(y + z.view_as(y))


@dataclass(frozen=True)
class Positive(Flat):
    """A number above a bound, by the logarithm of the difference; implements ``Variable``.

    Args:
        params: the number, as a list of one tensor.
        above: the bound a.
    """

    above: float

    def frame(self, y: Tensor) -> Stretch:
        return Stretch(y - self.above)

    def move(self, y: Tensor, frame: Stretch, z: Tensor) -> Moved:
        return Moved(self.above + frame.size * torch.exp(z.view_as(y)))


@dataclass(frozen=True)
class Sized(Flat):
    """A number in units of its size; implements ``Variable``.

    Args:
        params: the number, as a list of one tensor.
        size: s.
    """

    size: float

    def frame(self, y: Tensor) -> Stretch:
        return Stretch(torch.full_like(y, self.size))

    def move(self, y: Tensor, frame: Stretch, z: Tensor) -> Moved:
        return Moved(y + frame.size * z.view_as(y))


def variable(group: dict[str, Any], metric: Literal["product", "factors"]) -> Variable:
    """The variable of a parameter group: a pair, a number above a bound, or a single tensor.

    Args:
        group: ``params``, one tensor or the pair A (r, n) and B (m, r); ``scale``, s of a pair; ``above``, the bound of
            a coefficient or None; ``size``, that of a coefficient without a bound, None or absent where it is of order
            one.
        metric: for pairs, ``product`` (the manifold of rank r) or ``factors``.
    """
    if len(group["params"]) == 2:
        return (LowRankPair if metric == "product" else FactorPair)(group["params"], group["scale"])
    if group["above"] is not None:
        return Positive(group["params"], group["above"])
    if group.get("size") is not None:
        return Sized(group["params"], group["size"])
    return Flat(group["params"])


def frames_of(
    groups: Iterable[Mapping[str, Any]], metric: Literal["product", "factors"]
) -> dict[str, Frame | FactorFrame | Stretch]:
    """The coordinates of all that is trained at the present parameters, by variable; none for those that are their own.

    Args:
        groups: parameter groups, see ``Method.groups``.
        metric: of pairs.
    """
    variables = {group["name"]: variable({"above": None} | dict(group), metric) for group in groups}
    frames = {name: x.frame(x.start()) for name, x in variables.items()}
    return {name: frame for name, frame in frames.items() if frame is not None}
