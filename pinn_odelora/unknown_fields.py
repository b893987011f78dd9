"""The declaration of an unknown field: a function of some of the coordinates, such as a diffusivity k(x) or a source
q(x, t), that stands in an equation and is found from measurements. ``field_networks`` has the functions themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pinn_odelora.errors import InputError, unknown
from pinn_odelora.points import Points
from pinn_odelora.rules import number, whole

SMOOTHING = 1e-7
"""ε; with it k(x) = 1 + sin(2πx)/2 is found to 6e-3, relative L2, from 60 exact values of u."""


@dataclass(frozen=True)
class UnknownField:
    """The declaration of an unknown field; ``unknown_field`` makes one.

    Attributes:
        coords: the coordinates that it depends on.
        guess: its value in the problem solved by the pretrained network, and the first guess.
        above: exclusive lower bound.
        smoothing: ε.
        width, depth: of its network.
    """

    coords: tuple[str, ...]
    guess: float
    above: float = -math.inf
    smoothing: float = SMOOTHING
    width: int = 16
    depth: int = 2

    def __post_init__(self) -> None:
        number(above=self.above).check("guess", self.guess)
        if not self.smoothing >= 0:
            raise InputError(f"smoothing is {self.smoothing!r}, but it must be a number of at least 0.")
        whole(1).check("width", self.width)
        whole(1).check("depth", self.depth)

    @property
    def size(self) -> float:
        """s, by which changes of the field are measured."""
        return (self.guess - self.above) if math.isfinite(self.above) else abs(self.guess) or 1.0

    def check(self, name: str, coords: Sequence[str]) -> None:
        """Check that it depends on coordinates of the problem, by which a residual can differentiate.

        Raises:
            InputError: if not.
        """
        if not self.coords:
            raise InputError(f"{name} depends on no coordinate; a number is a parameter, po.parameter(source, target).")
        for c in self.coords:
            if c not in coords:
                raise unknown(f"coordinate of the unknown field {name}:", c, coords)
            if len(c) > 1 and self.smoothing:
                raise InputError(f"{name} is smoothed along {c}, but derivatives are along coordinates of one letter.")

    def constant(self, p: Points) -> Tensor:
        """The guess at points, (N, 1)."""
        return self.guess + 0 * p[self.coords[0]]

    def trial(self, p: Points, slope: Tensor) -> Tensor:
        """A smooth function near the guess that depends on a tensor, to evaluate residuals with once, (N, 1)."""
        return self.guess + 0.1 * self.size * torch.sin(sum(p[c] for c in self.coords) * slope)


def unknown_field(
    coords: str | Sequence[str],
    *,
    guess: float,
    above: float = -math.inf,
    smoothing: float = SMOOTHING,
    width: int = 16,
    depth: int = 2,
) -> Any:
    """A field of the equation that is found from measurements, with the adapter: ``k = unknown_field("x", guess=1.0)``.

    In a problem class it is an attribute, in ``po.problem`` an argument; residuals read it as they read the solution,
    ``f.k`` and ``f.k_x``. Where the problem is the source it is ``guess``; ``po.adapt`` finds it.

    Args:
        coords: the coordinates that it depends on; a string names one by each letter.
        guess: its value in the problem solved by the pretrained network, and the first guess.
        above: exclusive lower bound.
        smoothing: ε of the term ε · mean Σ_c (|c| ∂q/∂c)² / s² of the loss, |c| the width of the region in c and s the
            size of the guess above the bound; 0 for none. More for values with more noise.
        width, depth: units and hidden layers of the network that represents it.

    Raises:
        InputError: if a number is not allowed.
    """
    return UnknownField(tuple(coords), float(guess), above, smoothing, width, depth)


def check_none(declared: Mapping[str, UnknownField], what: str) -> None:
    """Check that a problem has no unknown field, where it would silently stay the guess.

    Args:
        declared: the unknown fields by name.
        what: cannot have one.

    Raises:
        InputError: if it has.
    """
    for name in declared:
        raise InputError(f"{name} is an unknown field, which {what} cannot have; an adaptation, po.adapt, finds it.")


def extended(solution: Callable[[Points], Tensor], declared: Mapping[str, UnknownField]) -> Callable[[Points], Tensor]:
    """A solution with the unknown fields as further columns, Points -> (N, fields + unknown fields).

    Args:
        solution: Points -> (N, fields); its ``unknown_fields`` are the networks of those that are trained, the others
            are their guess.
        declared: the unknown fields by name.
    """
    networks = getattr(solution, "unknown_fields", {})
    values = [networks[name] if name in networks else x.constant for name, x in declared.items()]  # noqa: SIM401
    return lambda p: torch.cat([solution(p), *(value(p) for value in values)], dim=1)
