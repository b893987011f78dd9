"""A Kolmogorov–Arnold network: sums of trained functions of one variable,

    h_j ← Σ_i φ_ji(h_i) ,    φ(h) = w · h / (1 + exp(-h)) + Σ_k c_k B_k(tanh h) ,

on a uniform grid of [-1, 1]. The authors' B_k are cubic B-splines (Liu et al., 2024, arXiv 2404.19756); Gaussians
exp(-v²), v the distance from a grid point in steps, are nearly the same functions (Li, 2024, arXiv 2405.06721), and
smooth. They are the default here, since second derivatives of cubic splines are only piecewise linear, which an
equation notices: on Burgers' equation the error is fourteen times larger. Two more things differ from the authors'
code: tanh takes h to a grid that never moves, and w and c of a layer are one weight, of a linear layer on the functions
of h, so that it can be adapted as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from pinn_odelora.derivatives import RULES, pointwise
from pinn_odelora.nets.layers import linear, seeded, size
from pinn_odelora.rules import one_of


def cubic_spline(v: Tensor) -> Tensor:
    """The cubic B-spline with the knots -2, …, 2, elementwise: ((2 - |v|)₊³ - 4 (1 - |v|)₊³) / 6."""
    if has_torch_function_unary(v):
        return handle_torch_function(cubic_spline, (v,), v)
    return spline_derivatives(v, 0)[0]


def spline_derivatives(v: Tensor, k: int) -> Sequence[Tensor]:
    """The spline and its derivatives up to the third, a step function; all above are zero between the knots."""
    size, sign = v.abs(), v.sign()
    outer, inner = torch.relu(2 - size), torch.relu(1 - size)
    s = [(outer**3 - 4 * inner**3) / 6]
    if k > 0:
        s.append(sign * (2 * inner**2 - outer**2 / 2))
    if k > 1:
        s.append(outer - 4 * inner)
    if k > 2:
        s.append(sign * (4 * (inner > 0).to(v) - (outer > 0).to(v)))
    return s + [torch.zeros_like(v)] * (k + 1 - len(s))


RULES["cubic_spline"] = pointwise(spline_derivatives)


def gaussian(v: Tensor) -> Tensor:
    """exp(-v²), elementwise."""
    return torch.exp(-(v * v))


BASES = {"gaussian": gaussian, "spline": cubic_spline}


class KANLayer(nn.Module):
    """(N, n) -> (N, m); the weight of ``linear`` (m, n + n · (grid + 3)) holds w of all inputs, then c of each input.

    Args:
        n, m: number of inputs and outputs.
        grid: intervals of the grid.
        basis: ``gaussian`` or ``spline``.
        generator: source of the initial weights.
    """

    def __init__(self, n: int, m: int, grid: int, basis: str, generator: torch.Generator) -> None:
        super().__init__()
        self.basis = BASES[basis]
        self.step = 2 / grid
        centres = -1 + self.step * torch.arange(-1, grid + 2, dtype=torch.float64)
        self.each = len(centres)
        self.register_buffer("centres", centres.repeat(n))
        self.linear = linear(n * (grid + 4), m, generator, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Σ_i φ_ji(h_i)."""
        return self.linear(torch.cat([nn.functional.silu(h), self.functions(torch.tanh(h))], dim=-1))

    def functions(self, x: Tensor) -> Tensor:
        """All B_k(x_i), (N, n) -> (N, n · (grid + 3)), those of one input together."""
        repeated = x.unsqueeze(-1).expand(-1, -1, self.each).flatten(1)
        return self.basis((repeated - self.centres) / self.step)


class KAN(nn.Module):
    """``layers.0`` … ``layers.<depth>`` with ``depth`` hidden vectors of ``width`` between them.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width: units of a hidden vector.
        depth: number of hidden vectors.
        grid: intervals of the grid; each function of one variable has grid + 4 trained numbers.
        basis: the functions B_k, ``gaussian`` or ``spline``.
        generator: source of the initial weights; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, or the basis is unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 15,
        depth: int = 3,
        grid: int = 5,
        basis: str = "gaussian",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.grid = size("width", width), size("depth", depth), size("grid", grid)
        self.basis = one_of(*BASES).check("basis", basis)
        sides = [size("inputs", inputs), *[self.width] * self.depth, size("outputs", outputs)]
        generator = seeded(generator)
        self.layers = nn.ModuleList(KANLayer(n, m, self.grid, self.basis, generator) for n, m in pairwise(sides))

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        for layer in self.layers:
            x = layer(x)
        return x
