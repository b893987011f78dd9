"""What the structured Jacobian costs, in units of one gradient of the plain network: loss and all weights and biases.

Burgers' equation at 1,000 points, a tanh network of depth 4, rank 4 on its hidden layers, one thread. The unit is the
faster of our gradients: by nested reverse mode or by jets. Its rivals form the same Jacobian of the residuals in the
same coordinates by ``torch.func``, from residuals written out again for one point, and with the low-rank parts applied
as thin products, which suits them best:

    vmap_reverse   vmap(jacrev), derivatives of u by grad of grad
    vmap_forward   vmap(jacrev), derivatives of u by jvp of jvp
    jacfwd         jacfwd of all residuals, 16 directions at once; timed for 16 of them and multiplied

First every Jacobian is held against ours. Then rounds: in each, everything takes its turn, and ratios are formed in the
round; the table has their median and quartiles. On the CPU the clock is that of the process, so that neighbours on a
shared machine count less.

    python benchmarks/jacobian.py [--widths 40 128] [--dtype float32] [--device cuda] [--rounds 7] [--json costs.json]

Exits with 1 when a target is missed, with 2 when a Jacobian is wrong.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from pinn_odelora.gradient import Gradient, residual_vector_of
from pinn_odelora.linalg.damped import Damped
from pinn_odelora.linalg.gram import gram
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.manifolds.fixed_rank import low_rank, retract
from pinn_odelora.manifolds.tangent import Frame
from pinn_odelora.nets import MLP
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.threads import set_threads
from problems.burgers import Burgers

POINTS, RANK, DIRECTIONS = 1000, 4, 16
UNITS = {"reverse": "autograd", "jets": "jets"}
"""Gradients of the plain network by name, with their derivatives."""
RIVALS = ("vmap_reverse", "vmap_forward", "jacfwd")
PARTS = {
    "sweep": "(a) r and all pairs",
    "columns": "(b) columns in tangent coordinates",
    "gram": "(c) Gram matrix or kernel of the columns",
    "step": "(d) trial step of the implicit scheme",
}
AT_MOST = {40: {"sweep": 1.1, "step": 6.0}, 128: {"step": 5.0}}
"""Gradients, in float64 on a CPU."""
FASTER = 6.0
"""Time of either form of vmap(jacrev) over that of sweep and columns, at least."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
CALLS, SECONDS = 3, 0.25
"""A time is the median over so many calls at least, and over so many seconds; a rival's is one call."""


class Case:
    """Everything that is timed at one width, as functions without arguments."""

    def __init__(self, width, dtype, device, number=POINTS):
        self.device = device
        problem = Burgers()
        plain = MLP(2, 1, width=width).to(device, dtype)
        net = copy.deepcopy(plain)
        self.layers = put_factors(net, linear_targets(net), RANK, 1.0, orthonormal, torch.Generator().manual_seed(0))
        self.system = System(problem, Solution(problem, net), derivatives="jets")
        self.points = {
            name: p.to(device, dtype) for name, p in draw_points(self.system.terms, number, 0, seed=0).items()
        }
        self.gradients = {}
        for name, derivatives in UNITS.items():
            system = System(problem, Solution(problem, plain), derivatives=derivatives)
            self.gradients[name] = Gradient(system, list(plain.parameters()))
        self.sweep = Sweep(self.system, self.layers)
        self.trial = residual_vector_of(self.system)
        self.at = {name: low_rank(layer.factors, layer.scale) for name, layer in self.layers.items()}
        self.here = self.linearised()
        self.J = self.columns()
        self.rival = Rival(self, problem, plain)

    def linearised(self):
        return Linearisation(self.sweep, self.points, memory=2**33)

    def columns(self):
        # Points of the manifold are float64 at any precision of the network.
        self.frames = {name: Frame(*(x.to(self.here.r) for x in y.frame)) for name, y in self.at.items()}
        return self.here.columns(self.frames)

    def step(self):
        """From the present factors to the loss at the trial point, and back."""
        self.here = self.linearised()
        J = self.columns()
        solve = Damped(J)
        z = -solve(self.here.r, 1e-3 * solve.largest)
        kept = [(layer.A.data, layer.B.data) for layer in self.layers.values()]
        parts = z.split([frame.dimension for frame in self.frames.values()])
        for (name, layer), part in zip(self.layers.items(), parts, strict=True):
            reached = retract(self.at[name], self.frames[name], part.double()).point
            layer.A.data, layer.B.data = (x.to(layer.A.dtype) for x in reached.factors(layer.scale))
        loss = float(self.trial(self.points).square().sum() / 2)
        for layer, (A, B) in zip(self.layers.values(), kept, strict=True):
            layer.A.data, layer.B.data = A, B
        return loss

    def timed(self):
        """What takes its turn in a round, by name."""
        ours = {
            "sweep": self.linearised,
            "columns": self.columns,
            "gram": lambda: gram(self.J if self.J.shape[1] <= self.J.shape[0] else self.J.mT),
            "step": self.step,
        }
        units = {name: lambda g=g: g(self.points) for name, g in self.gradients.items()}
        return {**units, **ours, **{name: getattr(self.rival, name) for name in self.rivals}}

    @property
    def rivals(self):
        """Those that are not out of the race: ``jacfwd`` takes minutes beyond the smallest width."""
        return RIVALS if self.J.shape[1] < 1000 else RIVALS[:2]


class Rival:
    """The same Jacobian by ``torch.func``: residuals as a function of the coordinates (X, Kᵀ) at zero."""

    def __init__(self, case, problem, plain):
        frames = [case.frames.get(f"linears.{i}") for i in range(len(plain.linears))]
        self.layers = [(x.weight.detach(), x.bias.detach(), f) for x, f in zip(plain.linears, frames, strict=True)]
        self.nu = problem.nu
        self.p = case.points["pde"].rows(("x", "t"))
        self.scale = math.sqrt(2 / len(self.p))
        self.z = [case.J.new_zeros(f.dimension) for f in frames if f is not None]

    def solution(self, z, x, t):
        h, z = torch.stack([x, t]), iter(z)
        for i, (W, b, frame) in enumerate(self.layers):
            h = torch.tanh(h) if i else h
            image = W @ h + b
            if frame is not None:
                X, K = frame.split(next(z))
                image = image + frame.U @ (X @ h) + frame.complement @ (K @ (frame.V @ h))
            h = image
        return -torch.sin(math.pi * x) + t * (1 - x**2) * h[0]

    def by_reverse(self, z, p):
        u, (x, t) = lambda x, t: self.solution(z, x, t), p
        u_x = grad(u, 0)
        return self.scale * (grad(u, 1)(x, t) + u(x, t) * u_x(x, t) - self.nu * grad(u_x, 0)(x, t))

    def by_forward(self, z, p):
        x, t = p
        one = torch.ones_like(x)
        along_x = lambda x: jvp(lambda x: self.solution(z, x, t), (x,), (one,))
        (u, u_x), (_, u_xx) = jvp(along_x, (x,), (one,))
        _, u_t = jvp(lambda t: self.solution(z, x, t), (t,), (one,))
        return self.scale * (u_t + u * u_x - self.nu * u_xx)

    def vmap_reverse(self):
        return self._per_point(self.by_reverse)

    def vmap_forward(self):
        return self._per_point(self.by_forward)

    def _per_point(self, residual):
        return torch.cat(vmap(jacrev(residual), (None, 0))(self.z, self.p), dim=1)

    def jacfwd(self):
        """The first columns only; all of them are ``parts`` times as many."""
        first, *others = self.z
        residuals = lambda x: vmap(self.by_forward, (None, 0))([torch.cat([x, first[len(x) :]]), *others], self.p)
        return jacfwd(residuals)(first[:DIRECTIONS])

    @property
    def parts(self):
        return sum(len(x) for x in self.z) / DIRECTIONS


def check(case):
    """Largest relative difference of each rival's Jacobian to ours."""
    size = float(case.J.abs().max())
    found = {name: getattr(case.rival, name)() for name in case.rivals}
    return {name: float((J - case.J[:, : J.shape[1]]).abs().max()) / size for name, J in found.items()}


def seconds(run, device, once=False):
    """Median time of a call; a long one is called once."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    laps, began = [], clock()
    while not laps or (not once and (len(laps) < CALLS or clock() - began < SECONDS)):
        start = clock()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        laps.append(clock() - start)
    return statistics.median(laps)


def measure(width, dtype, device, rounds, number=POINTS):
    """Seconds of everything by round at one width, and the facts of the case."""
    case = Case(width, dtype, device, number)
    wrong = check(case)
    for name, error in wrong.items():
        if not error <= TOLERANCE[dtype]:
            print(f"width {width}: the Jacobian of {name} differs by {error:.1e}.", file=sys.stderr)
            raise SystemExit(2)
    timed = case.timed()
    for run in timed.values():
        run()
    laps = {name: [] for name in timed}
    for _ in range(rounds):
        for name, run in timed.items():
            spent = seconds(run, device, once=name in RIVALS)
            laps[name].append(spent * (case.rival.parts if name == "jacfwd" else 1))
    return {"residuals": case.J.shape[0], "columns": case.J.shape[1], "difference": wrong, "seconds": laps}


def unit(laps):
    """Our faster gradient."""
    return min(UNITS, key=lambda name: statistics.median(laps[name]))


def ratio(laps, over, under):
    """Quartiles over the rounds of the time of some parts over that of others."""
    total = lambda names: np.sum([laps[name] for name in names], axis=0)
    return tuple(float(q) for q in np.quantile(total(over) / total(under), (0.25, 0.5, 0.75)))


def shortfalls(width, laps):
    """What one width is short of, a sentence each."""
    found = []
    for part, most in AT_MOST.get(width, {}).items():
        if (cost := ratio(laps, [part], [unit(laps)])[1]) > most:
            found.append(f"width {width}: {part} costs {cost:.2f} gradients, above {most:g}.")
    for rival in RIVALS[:2]:
        if (times := ratio(laps, [rival], ["sweep", "columns"])[1]) < FASTER:
            found.append(f"width {width}: sweep and columns are {times:.1f} times as fast as {rival}, not {FASTER:g}.")
    return found


def table(width, result):
    laps, best = result["seconds"], unit(result["seconds"])
    title = f"width {width}: {result['residuals']} residuals, {result['columns']} columns; the unit is {best}"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "ms", "gradients", "over (a) + (b)"):
        made.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, times in laps.items():
        low, middle, high = ratio(laps, [name], [best])
        made.add_row(
            PARTS.get(name, f"gradient, {name}" if name in UNITS else name),
            f"{1e3 * statistics.median(times):.1f}",
            rf"{middle:.2f} \[{low:.2f}, {high:.2f}]",
            f"{ratio(laps, [name], ['sweep', 'columns'])[1]:.1f}" if name in RIVALS else "",
        )
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", nargs="+", type=int, default=[40, 128, 256])
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(1)
    keep_freed_memory()
    results, short = {}, []
    for width in args.widths:
        result = results[width] = measure(width, getattr(torch, args.dtype), args.device, args.rounds)
        Console().print(table(width, result))
        # The targets are those of one CPU thread in double precision.
        if (args.dtype, args.device) == ("float64", "cpu"):
            short += shortfalls(width, result["seconds"])
    if args.json:
        facts = {key: getattr(args, key) for key in ("dtype", "device", "rounds")}
        facts |= {"torch": torch.__version__, "short": short}
        args.json.write_text(json.dumps(facts | {"widths": results}, indent=2))
    print("\n".join(short) if short else "every target reached")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
