"""What a step of an optimiser of LoRA factors costs, gradients given, next to AdamW and to LoRA-Pro, on one thread.

Pairs A (r, n), B (m, r) for (m, n, r) = (40, 40, 4), (256, 256, 8), (4096, 4096, 16), of one layer and of 24, float64:

    odelora            ODELoRA by Euler's scheme, balanced after each step
    odelora, careful   the same without ``flows.euler``, by decompositions of the factors
    adamw              torch.optim.AdamW on the factors with its own choices; foreach and fused beside it
    lora_pro, plain    the formula of LoRA-Pro with SGD (Wang et al., 2025, arXiv 2407.18242), layer by layer in torch:
                       pseudo-inverses of AAᵀ + δI and BᵀB + δI, and the Sylvester equation by eigenvalues of general
                       matrices as in the authors' code, but (I - P_B) g_B without the projection (m, m) that they form
    lora_pro, formed   the same with that projection
    others             the methods on factors in ``configs/method/`` whose step needs no loss

Rounds: in each, everything takes its turn, and ratios are formed in the round; the table has their median and
quartiles. A turn is one step, as in training, where the network is evaluated between two of them: a step that follows
itself finds factors and code in the caches. The clock is that of the thread, so that neighbours on a shared machine
count less.

    OMP_NUM_THREADS=1 python benchmarks/optimizer_cost.py [--dtype float32] [--seconds 20] [--json costs.json]

Exits with 1 when our step costs more than 1.3 times ``lora_pro, plain`` or more than 3 times ``adamw``.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import yaml
from hydra.utils import get_method
from rich import box
from rich.console import Console
from rich.table import Table
from torch import linalg

from pinn_odelora.integrators import RungeKutta
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import rebalance
from pinn_odelora.optim import ODELoRA
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.threads import set_threads

SHAPES = ((40, 40, 4), (256, 256, 8), (4096, 4096, 16))
LAYERS = (1, 24)
LIMITS = {"lora_pro, plain": 1.3, "adamw": 3.0}
"""Our time over theirs, at most."""
STEP, DELTA = 1e-6, 1e-8
ROUNDS, LEAST = 200, 7
"""A case has at most and at least so many."""
LARGEST = 2e7
"""Entries of all weights up to which contenders take part that may form or remember whole weights."""
METHODS = Path(__file__).parents[1] / "configs/method"


class LoRAPro:
    """LoRA-Pro with SGD; ``formed`` whether I - P_B is."""

    def __init__(self, groups, lr, formed=False):
        self.groups, self.lr, self.formed = groups, lr, formed

    @torch.no_grad()
    def step(self):
        for group in self.groups:
            self.layer(*group["params"], group["scale"])

    def layer(self, A, B, s):
        S_A, S_B = A @ A.T, B.T @ B
        damping = DELTA * torch.eye(len(A), dtype=A.dtype)
        inverse_A, inverse_B = linalg.pinv(S_A + damping), linalg.pinv(S_B + damping)
        X = sylvester(S_B, S_A, -(inverse_B @ A.grad @ A.T) / s**2)
        if self.formed:
            rest = (torch.eye(len(B), dtype=B.dtype) - B @ inverse_B @ B.T) @ B.grad
        else:
            rest = B.grad - B @ (inverse_B @ (B.T @ B.grad))
        g_A = inverse_B @ A.grad / s**2 + X @ A
        g_B = rest @ inverse_A / s**2 - B @ X
        A.sub_(g_A, alpha=self.lr)
        B.sub_(g_B, alpha=self.lr)


def sylvester(S, T, C):
    """X with S X + X T = C, from eigenvalues of general matrices."""
    a, U = linalg.eig(S)
    b, V = linalg.eig(T)
    Y = linalg.solve(U, C.to(V.dtype) @ V) / (a[:, None] + b)
    return (U @ Y @ linalg.inv(V)).real


class Careful(ODELoRA):
    """Without the closed form."""

    def _has_closed_form(self, h, speeds):
        return False


def pairs(shape, layers, dtype, scale=1.0, seed=0):
    """Balanced pairs with the gradients of a loss whose gradient by W is random; scale 1 is all that some know."""
    m, n, r = shape
    generator = torch.Generator().manual_seed(seed)
    random = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)
    groups = []
    for i in range(layers):
        y, G = rebalance(Factors(random(r, n) / math.sqrt(n), random(m, r) / math.sqrt(m))), random(m, n)
        params = [torch.nn.Parameter(x.to(dtype)) for x in y]
        for p, g in zip(params, (scale * y.B.T @ G, scale * G @ y.A.T), strict=True):
            p.grad = g.to(dtype)
        groups.append({"params": params, "scale": scale, "name": f"layer {i}"})
    return groups


def of_configs():
    """By name, the optimisers of all methods on factors that step without evaluating a loss, by their defaults."""
    made = {}
    for path in sorted(METHODS.glob("*.yaml")):
        if path.stem == "odelora" or path.stem.startswith("full_"):
            continue
        function = get_method(yaml.safe_load(path.read_text())["_target_"])
        explicit = "integrator" in inspect.signature(function).parameters
        method = function(**({"integrator": RungeKutta(h=STEP)} if explicit else {}))
        if method.trains == "factors" and not method.one_loss:
            made[path.stem] = method.optimizer
    return made


def contenders(shape, layers):
    """From groups to optimisers, by name."""
    flat = lambda groups: [p for group in groups for p in group["params"]]
    found = {
        "odelora": lambda groups: ODELoRA(groups, lr=STEP),
        "odelora, careful": lambda groups: Careful(groups, lr=STEP),
        "adamw": lambda groups: torch.optim.AdamW(flat(groups), lr=STEP),
        "adamw, foreach": lambda groups: torch.optim.AdamW(flat(groups), lr=STEP, foreach=True),
        "adamw, fused": lambda groups: torch.optim.AdamW(flat(groups), lr=STEP, fused=True),
        "lora_pro, plain": lambda groups: LoRAPro(groups, STEP),
    }
    if shape[0] * shape[1] * layers > LARGEST:
        return found
    return found | {"lora_pro, formed": lambda groups: LoRAPro(groups, STEP, formed=True)} | of_configs()


def measure(shape, layers, dtype, seconds):
    """Seconds a step, by contender and round."""
    groups = pairs(shape, layers, dtype)
    steps = {name: make(copied(groups)).step for name, make in contenders(shape, layers).items()}
    for step in steps.values():
        step()
    laps, start, names = {name: [] for name in steps}, time.perf_counter(), [*steps]
    for _ in range(ROUNDS):
        for name in names:
            laps[name].append(timed(steps[name]))
        names.append(names.pop(0))
        if time.perf_counter() - start > seconds and len(laps["odelora"]) >= LEAST:
            break
    return laps


def copied(groups):
    """Parameters of their own; ``deepcopy`` leaves gradients out."""
    new = copy.deepcopy(groups)
    for group, old in zip(new, groups, strict=True):
        for p, q in zip(group["params"], old["params"], strict=True):
            p.grad = q.grad.clone()
    return new


def timed(step):
    """Seconds of the thread for a step."""
    start = time.thread_time()
    step()
    return time.thread_time() - start


def over(laps, name, reference):
    """Quartiles over the rounds of the time of one over that of another."""
    return statistics.quantiles([a / b for a, b in zip(laps[name], laps[reference], strict=True)], n=4)


def shortfalls(case, laps):
    """What one case is short of, a sentence each."""
    found = []
    for reference, limit in LIMITS.items():
        if not (ratio := over(laps, "odelora", reference)[1]) <= limit:
            found.append(f"{case}: our step costs {ratio:.2f} times {reference}, above {limit}.")
    return found


def table(case, laps):
    made = Table(title=case, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "µs", "over adamw", "over lora_pro, plain"):
        made.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, times in laps.items():
        ratios = ([*over(laps, name, reference)] for reference in ("adamw", "lora_pro, plain"))
        shown = (rf"{middle:.2f} \[{low:.2f}, {high:.2f}]" for low, middle, high in ratios)
        made.add_row(name, f"{1e6 * statistics.median(times):.0f}", *shown)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32"))
    parser.add_argument("--sizes", nargs="+", type=int, default=[m for m, _, _ in SHAPES], help="of m alone")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a case; it ends after 200 rounds at the latest")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1, which NumPy reads when it is imported")
    set_threads(1)
    keep_freed_memory()
    results, short = {}, []
    for shape in (shape for shape in SHAPES if shape[0] in args.sizes):
        for layers in LAYERS:
            case = f"(m, n, r) = {shape}, {layers} layer{'s' * (layers > 1)}, {args.dtype}"
            laps = results[case] = measure(shape, layers, getattr(torch, args.dtype), args.seconds)
            Console(width=100).print(table(case, laps))
            short += shortfalls(case, laps)
    if args.json:
        facts = {"torch": torch.__version__, "dtype": args.dtype, "short": short}
        args.json.write_text(json.dumps(facts | {"seconds": results}, indent=2))
    print("\n".join(short) if short else "every target reached")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
