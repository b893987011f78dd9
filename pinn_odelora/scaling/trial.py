"""What a problem does with functions of given size: random fields in the network's place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pinn_odelora.checks.evaluation import evaluating
from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import Region, sobol, stream
from pinn_odelora.points import Points
from pinn_odelora.units import Unit
from pinn_odelora.unknown_fields import extended

POINTS = 32
"""Points at which a term is looked at."""
TRIALS = 2
"""Random fields that are tried."""

REFUSED = (ArithmeticError, ValueError, RuntimeError, AssertionError)
"""What a residual may raise for values of random fields that it does not take."""

Waves = Callable[[Tensor], Tensor]
"""Inputs of the network in their units, (N, inputs), to functions of mean square one, (N, fields)."""


def points_of(region: Region, n: int = POINTS) -> Points:
    """n points of a region, its two opposite corners among them where the region is a box."""

    def corners_first(n: int, d: int) -> Tensor:
        unit = sobol(n, d, seed=stream("scales"))
        ends = torch.tensor([0.0, 1.0 - 2.0**-52], dtype=unit.dtype)[:, None].expand(2, d)
        return torch.cat([ends, unit])[:n]

    return Points({name: x.double() for name, x in region.sample(n, corners_first).items()})


def waves(inputs: int, fields: int, number: int) -> Waves:
    """√2 sin(ω · x + φ) for each field, with 1 ≤ |ω_i| ≤ 2: about one half-wave over inputs of size one."""
    generator = torch.Generator().manual_seed(number)
    omega = 1 + torch.rand(inputs, fields, generator=generator, dtype=torch.float64)
    omega = omega * (2 * torch.randint(0, 2, omega.shape, generator=generator) - 1)
    phase = 2 * math.pi * torch.rand(fields, generator=generator, dtype=torch.float64)
    return lambda x: math.sqrt(2) * torch.sin(x @ omega + phase)


class Trial:
    """The residuals of a problem under fields of given sizes.

    Args:
        problem: the equation; its ansatz is applied if its conditions are hard.
        inputs: the units of the network's inputs.
    """

    def __init__(self, problem: Problem, inputs: Sequence[Unit]) -> None:
        self.problem = problem
        self.terms = problem.terms()
        self.shift, self.size = (torch.tensor(x, dtype=torch.float64) for x in zip(*inputs, strict=True))

    def inputs(self, p: Points) -> Tensor:
        """The inputs of the network in their units, (N, inputs)."""
        return (self.problem.embed(p) - self.shift) / self.size

    def solution(self, base: Tensor, amplitudes: Tensor, shape: Waves) -> Callable[[Points], Tensor]:
        """u of N = base + amplitude · waves; amplitudes are (fields,) or, one for each point, (N, fields)."""

        network = lambda p: base + amplitudes * shape(self.inputs(p))
        return lambda p: self.problem.represented(p, network)

    def rows(self, name: str, p: Points, solution: Callable[[Points], Tensor]) -> Tensor | None:
        """The residual of a term, (N, components); None where it does not take these fields, of which the run will say
        more if it takes no others either.

        Raises:
            InputError: if it cannot be evaluated, whatever the fields.
        """
        declared = self.problem.unknown_fields()
        read = extended(solution, declared) if declared else solution
        with evaluating(f"The residual of {name}"), torch.enable_grad():
            try:
                r = self.terms[name].rows(AutogradField(read, p, self.problem.readable, self.problem.coords))
            except REFUSED:
                return None
        columns = isinstance(r, Tensor) and r.ndim == 2 and len(r) == p.number
        return r if columns and r.is_floating_point() else None

    def sizes(self, name: str, base: Tensor, amplitudes: Tensor) -> Tensor | None:
        """The root mean square of each component of a term over all trials, (components,); None as for ``rows``."""
        p = points_of(self.terms[name].where)
        squares = []
        for k in range(TRIALS):
            r = self.rows(name, p, self.solution(base, amplitudes, waves(len(self.shift), len(base), k)))
            if r is None:
                return None
            squares.append(r.detach().square())
        return torch.cat(squares).mean(dim=0).sqrt()

    def response(self, name: str, base: Tensor, amplitudes: Tensor) -> tuple[Tensor, Tensor] | None:
        """The root mean squares of r, (components,), and of ∂r/∂amplitude_j, (components, fields).

        Row i of the residual depends on the amplitudes at point i alone, so that the gradient of a column's sum has
        the derivatives of all rows. None as for ``rows``.
        """
        p = points_of(self.terms[name].where)
        found, slopes = [], []
        for k in range(TRIALS):
            each = amplitudes.expand(p.number, len(base)).clone().requires_grad_()
            r = self.rows(name, p, self.solution(base, each, waves(len(self.shift), len(base), k)))
            if r is None:
                return None
            found.append(r.detach())
            columns = [_gradient(column, each) for column in r.unbind(dim=1)]
            slopes.append(torch.stack(columns, dim=1))
        rms = lambda x: torch.cat(x).square().mean(dim=0).sqrt()
        return rms(found), rms(slopes)


def _gradient(column: Tensor, amplitudes: Tensor) -> Tensor:
    if not column.requires_grad:
        return torch.zeros_like(amplitudes)
    found = torch.autograd.grad(column.sum(), amplitudes, retain_graph=True, allow_unused=True, materialize_grads=True)
    return found[0]


def prescribed(problem: Problem, trial: Trial) -> Mapping[str, list[Tensor]]:
    """The values that conditions prescribe to each field, by field.

    A component of a residual is a value condition of one field if it is c(x) u_j + d(x) for whatever smooth fields; it
    then prescribes u_j = -d/c. Conditions that the ansatz enforces are among the terms, and tell as much.
    """
    fields = len(problem.fields)
    found: dict[str, list[Tensor]] = {name: [] for name in problem.fields}
    constant = lambda c: lambda p: c.expand(p.number, fields)
    zero, one = torch.zeros(fields, dtype=torch.float64), torch.eye(fields, dtype=torch.float64)
    shape = waves(len(trial.shift), fields, TRIALS)
    wavy = lambda p: shape(trial.inputs(p))
    for name, term in trial.terms.items():
        p = points_of(term.where)
        d, moved = trial.rows(name, p, constant(zero)), trial.rows(name, p, wavy)
        slopes = [trial.rows(name, p, constant(e)) for e in one]
        if d is None or moved is None or any(r is None for r in slopes):
            continue
        c = torch.stack([(r - d).detach() for r in slopes], dim=2)  # (N, components, fields)
        d, moved, u = d.detach(), moved.detach(), wavy(p).detach()
        affine = d + (c * u[:, None, :]).sum(dim=2)
        near = (moved - affine).abs() <= 1e-8 * (d.abs() + c.abs().sum(dim=2))
        for component in range(d.shape[1]):
            acting = (c[:, component].abs() > 0).any(dim=0).nonzero().flatten().tolist()
            if len(acting) == 1 and bool(near[:, component].all()):
                slope = c[:, component, acting[0]]
                values = (-d[:, component] / slope)[slope != 0]
                if bool(values.isfinite().all()):
                    found[problem.fields[acting[0]]].append(values)
    return found
