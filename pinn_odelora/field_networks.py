"""Unknown fields of an equation as trained functions, above a bound a or without one:

    k(x) = a + (k₀ - a) exp N_k(x̂),    q(x) = q₀ + s N_q(x̂),    s = |q₀| or 1,

with a small network N_k for each. Its inputs x̂ are the named coordinates alone, mapped from the region to [-1, 1], and
its last layer starts at zero, so that at first the field is the guess everywhere, as it is for the problem that the
pretrained network solves. All its weights are trained beside the adapter. Measurements tell little of how the field
varies on small scales; a term

    ε · mean Σ_c (|c| ∂q/∂c)² / s²,    |c| the width of the region in c,

of the loss prefers smooth fields (Tikhonov, 1963; H¹ seminorm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Region, sobol
from pinn_odelora.geometry.regions import Uniform
from pinn_odelora.nets.mlp import MLP
from pinn_odelora.points import Points
from pinn_odelora.unknown_fields import UnknownField

TERM = "smooth_"
SAMPLE = 1024


def field_networks(problem: Problem) -> dict[str, FieldNetwork]:
    """The networks of the unknown fields of a problem, equal to the guesses."""
    return {name: FieldNetwork(x, problem.region) for name, x in problem.unknown_fields().items()}


def smoothing_terms(problem: Problem, networks: Mapping[str, FieldNetwork]) -> dict[str, Term]:
    """The smoothing terms by name, ``smooth_<field>``; of as many points as a boundary has."""
    declared = problem.unknown_fields()
    few = Few(problem.region)
    return {
        f"{TERM}{name}": Term(few, network.smoothness(name), weight=declared[name].smoothing)
        for name, network in networks.items()
        if declared[name].smoothing
    }


@dataclass(frozen=True)
class Few:
    """A region for a term that needs few points inside."""

    inside: Region
    interior = False

    def sample(self, n: int, uniform: Uniform) -> Points:
        return self.inside.sample(n, uniform)


class FieldNetwork(nn.Module):
    """An unknown field as a trained function, Points -> (N, 1).

    Args:
        declared: coordinates, guess, bound, and the size of the network.
        region: its coordinates are mapped to [-1, 1].
    """

    def __init__(self, declared: UnknownField, region: Region) -> None:
        super().__init__()
        self.declared = declared
        self.net = MLP(len(declared.coords), 1, width=declared.width, depth=declared.depth)
        nn.init.zeros_(self.net.linears[-1].weight)
        ends = {c: _ends(region, c) for c in declared.coords}
        self.middle = {c: (low + high) / 2 for c, (low, high) in ends.items()}
        self.half = {c: (high - low) / 2 or 1.0 for c, (low, high) in ends.items()}

    def forward(self, p: Points) -> Tensor:
        N = self.net(torch.cat([(p[c] - self.middle[c]) / self.half[c] for c in self.declared.coords], dim=1))
        if math.isfinite(self.declared.above):
            return self.declared.above + self.declared.size * torch.exp(N)
        return self.declared.guess + self.declared.size * N

    def smoothness(self, name: str) -> Callable[[Field], tuple[Tensor, ...]]:
        """The residual of the smoothing term, a component for each coordinate."""
        scale = {c: 2 * half / self.declared.size for c, half in self.half.items()}
        return lambda f: tuple(s * f.derivative(name, c) for c, s in scale.items())


class FoundField:
    """A field that was found, as a function of its coordinates: numbers or arrays in, an array out.

    Args:
        network: the field.
        region: of the problem.

    Attributes:
        coords: names of the coordinates, in order.
    """

    def __init__(self, network: FieldNetwork, region: Region) -> None:
        self.network = network
        self.region = region
        self.coords = network.declared.coords

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """The ends of the region along each of its coordinates."""
        middle, half = self.network.middle, self.network.half
        return [(middle[c] - half[c], middle[c] + half[c]) for c in self.coords]

    @torch.no_grad()
    def __call__(self, *coordinates: ArrayLike) -> np.ndarray:
        """The values at points, of the shape that the coordinates have after broadcasting.

        Raises:
            InputError: if the number of coordinates is not that of the field.
        """
        if len(coordinates) != len(self.coords):
            raise InputError(f"The field is a function of {', '.join(self.coords)}, but {len(coordinates)} were given.")
        weight = next(self.network.parameters())
        columns = torch.broadcast_tensors(*(torch.as_tensor(c).to(weight) for c in coordinates))
        p = Points({name: c.reshape(-1, 1) for name, c in zip(self.coords, columns, strict=True)})
        return self.network(p).reshape(columns[0].shape).cpu().numpy()

    def summary(self) -> dict[str, float]:
        """Its smallest and largest value and its mean, over the region."""
        p = self.region.sample(SAMPLE, lambda n, d: sobol(n, d, seed=0))
        values = self(*(p[c][:, 0] for c in self.coords))
        return {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean())}


def _ends(region: Region, c: str) -> tuple[float, float]:
    bounds = getattr(region, "bounds", {})
    if c in bounds:
        low, high = bounds[c]
        return float(low), float(high)
    x = region.sample(SAMPLE, lambda n, d: sobol(n, d, seed=0))[c]
    return float(x.min()), float(x.max())
