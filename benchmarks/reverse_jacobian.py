"""What the Jacobian of nested reverse mode costs, beside that of jets, row by row, and by torch.func.

    python benchmarks/reverse_jacobian.py [--points 4000] [--rounds 5] [--json costs.json]
                                          [--page docs/reference/linearisation.md]

A tanh network of depth 4, all of its linear layers, one thread. Residuals with jets: Burgers' equation
at widths 40 and 128, convection, Poisson, Kovasznay flow. Without: Burgers' equation in conservation form,
u_t + ∂(½u² - ν u_x)/∂x, whose flux is differentiated as an expression. Its rival outside is ``vmap(jacrev)`` of the
residual at one point, which has the same entries. Rounds, in each of which everything takes its turn; CPU seconds of
the process, medians, and MiB of the Jacobian as it is kept.

Targets: at most 4 times the seconds of jets; in conservation form at least 10 times as fast as row by row, and 2 times
as fast as ``vmap(jacrev)``. Exits with 1 where one is missed, with 2 where two Jacobians differ.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from pinn_odelora.derivatives.field import Field
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.lowrank.targets import linear_layers
from pinn_odelora.nets import MLP
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.threads import set_threads
from problems.burgers import Burgers
from problems.convection import Convection
from problems.kovasznay import Kovasznay
from problems.poisson import Poisson

NU = 0.01
CASES: dict[str, tuple[type[Problem], int]] = {
    "Burgers, width 40": (Burgers, 40),
    "Burgers, width 128": (Burgers, 128),
    "convection": (Convection, 40),
    "Poisson": (Poisson, 40),
    "Kovasznay flow": (Kovasznay, 40),
}
FORM = "conservation form"
MOST, ROWS, OUTSIDE = 4.0, 10.0, 2.0

Found = Mapping[str, Mapping[str, float]]
"""By residual, seconds and MiB by how they were found."""


class RowByRow(Sweep):
    """A sweep that differentiates every residual individually."""

    def paired(self, name: str) -> bool:
        return False


def derivative(u: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]


def conserved(f: Field) -> Tensor:
    return f.u_t + derivative(f.u**2 / 2 - NU * f.u_x, f.x)


def network(problem: Problem, width: int) -> MLP:
    return MLP(problem.inputs, len(problem.fields), width=width, generator=torch.Generator().manual_seed(0)).double()


def linearising(
    system: System, net: MLP, number: int, sweep: type[Sweep] = Sweep, term: str | None = None
) -> Callable[[], Linearisation]:
    """The linearisation of all terms, or of one, as a function without arguments."""
    swept = sweep(system, linear_layers(net))
    points = draw_points(system.terms, number, 200, seed=0)
    system.terms = system.terms if term is None else {term: system.terms[term]}
    return lambda: Linearisation(swept, points, memory=2.0**33)


def of_problem(kind: type[Problem], width: int, number: int) -> dict[str, Callable]:
    problem = kind()
    net = network(problem, width)
    systems = {way: System(problem, Solution(problem, net), derivatives=way) for way in ("jets", "autograd")}
    return {way: linearising(system, net, number) for way, system in systems.items()}


def of_conservation_form(number: int) -> dict[str, Callable]:
    problem = Burgers(conditions="soft")
    net = network(problem, 40)
    made = lambda: System(problem, Solution(problem, net), {FORM: Term(problem.region, conserved)})
    found = {"autograd": linearising(made(), net, number, term=FORM)}
    found["row by row"] = linearising(made(), net, number, RowByRow, FORM)
    p = draw_points(made().terms, number, 200, seed=0)[FORM].rows(("x", "t"))
    held = {name: x.detach() for name, x in net.named_parameters()}
    weights = {name: x for name, x in held.items() if name.endswith("weight")}
    u = lambda W, x, t: functional_call(net, {**held, **W}, (torch.stack([x, t])[None],))[0, 0]
    flux = lambda W, x, t: u(W, x, t) ** 2 / 2 - NU * grad(u, 1)(W, x, t)
    scale = math.sqrt(2 / number)
    residual = lambda W, q: scale * (grad(u, 2)(W, q[0], q[1]) + grad(flux, 1)(W, q[0], q[1]))
    found["vmap(jacrev)"] = lambda: vmap(jacrev(residual), (None, 0))(weights, p)
    return found


def jacobian(made: Linearisation | dict[str, Tensor]) -> Tensor:
    if isinstance(made, Linearisation):
        return made.columns()
    return torch.cat([x.flatten(1) for x in made.values()], dim=1).detach()


def mebibytes(made: Linearisation | dict[str, Tensor]) -> float:
    parts = [x.numel() * x.element_size() for x in made.values()] if isinstance(made, dict) else []
    return sum(parts or [group.bytes for group in made.groups()]) / 2**20


def differences(ways: Mapping[str, Callable]) -> float:
    """The largest one of their Jacobians, relative to the largest entry."""
    first, *others = (jacobian(run()) for run in ways.values())
    return max(float((J - first).abs().max() / first.abs().max()) for J in others)


def measure(ways: Mapping[str, Callable], rounds: int) -> dict[str, float]:
    laps: dict[str, list[float]] = {way: [] for way in ways}
    sizes = {f"{way}, MiB": mebibytes(run()) for way, run in ways.items()}
    for _ in range(rounds):
        for way, run in ways.items():
            start = time.process_time()
            run()
            laps[way].append(time.process_time() - start)
    return {way: statistics.median(each) for way, each in laps.items()} | sizes


def short(found: Found) -> list[str]:
    """A sentence for each target that is missed."""
    said = []
    for case, costs in found.items():
        own = costs["autograd"]
        if "jets" in costs and own > MOST * costs["jets"]:
            said.append(f"{case}: {own / costs['jets']:.1f} times the seconds of jets, above {MOST:g}.")
        for rival, least in (("row by row", ROWS), ("vmap(jacrev)", OUTSIDE)):
            if rival in costs and costs[rival] < least * own:
                said.append(f"{case}: {costs[rival] / own:.1f} times as fast as {rival}, not {least:g}.")
    return said


def markdown(found: Found) -> str:
    shown = {"autograd": "reverse mode, one sweep", "jets": "jets", "row by row": "", "vmap(jacrev)": ""}
    rows = [["residual", *(title or way for way, title in shown.items())], ["---"] * 5]
    for case, costs in found.items():
        rows.append([case] + [f"{costs[w]:.3f}, {costs[f'{w}, MiB']:.0f} MiB" if w in costs else "" for w in shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    args = parser.parse_args()
    set_threads(1)
    keep_freed_memory()
    found = {}
    for case in [*CASES, FORM]:
        made = lambda number, case=case: (
            of_problem(*CASES[case], number) if case in CASES else of_conservation_form(number)
        )
        if (apart := differences(made(50))) > 1e-9:
            print(f"{case}: Jacobians differ by {apart:.1e}.", file=sys.stderr)
            return 2
        found[case] = measure(made(args.points), args.rounds)
    missed = short(found)
    print(markdown(found))
    print("\n".join(missed) or "every target reached")
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "costs": found, "short": missed}, indent=2))
    if args.page:
        from networks import put

        put(args.page, markdown(found))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
