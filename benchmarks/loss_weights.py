"""What loss weights do to the error at equal seconds, on problems with soft conditions.

    python benchmarks/loss_weights.py [--quick] [--cases burgers wave] [--methods odelora lora_adam full_adam]
                                      [--seeds 3] [--seconds 10] [--json loss_weights.json]

Each case adapts a network pretrained with the same soft conditions at another parameter, with ``weighting`` ``fixed``,
``ntk`` and ``gradnorm``, all w_k = 1, all other settings those of the method's default on the command line; learning
rates are not tuned. Seconds are those of CPU time in steps, on one thread. Seeds change factors and points; the
pretrained network is the same. With ``--json`` runs that the file has already are not repeated. ``--quick`` is two
cases, one seed and one second.

Predictions, written before anything but a few seconds of Burgers with odelora (ntk as fixed, gradnorm ten times worse)
had been seen; ratios are the geometric mean over seeds of the error divided by that of ``fixed``:

1. odelora, ntk: between 1/2 and 2 on each case. A damped Gauss–Newton step on residuals that can all be made small
   hardly depends on their weights: those of a consistent system do not change its solution.
2. odelora, gradnorm: above 1 on three of four cases. A pretrained network keeps its conditions, whose gradients then
   vanish, so that their multipliers start at 10³ to 10⁵ and the step has to follow the conditions instead of the
   equation.
3. lora_adam and full_adam, ntk: below 1 on three of four cases, and below 1/2 on Helmholtz, whose equation has a kernel
   10³ times larger than its boundary values, by the fourth powers of wave numbers.
4. lora_adam and full_adam, gradnorm: between those of ntk and 3 times those.
5. Adam with the best weighting stays above the error of odelora with any on each case.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from answering.cases import wave
from rich.console import Console
from rich.table import Table

import pinn_odelora as po
from pinn_odelora.files import write_json
from pinn_odelora.formulation import Problem
from pinn_odelora.pretraining.cache import folder
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.threads import set_threads
from problems.burgers import Burgers
from problems.helmholtz import Helmholtz
from problems.kovasznay import Kovasznay

WEIGHTINGS = ("fixed", "ntk", "gradnorm")


class Case(NamedTuple):
    """The problem at the source and at the target."""

    source: Callable[[], Problem]
    target: Callable[[], Problem]


CASES = {
    "burgers": Case(lambda: Burgers(nu=0.05, conditions="soft"), lambda: Burgers(nu=0.02, conditions="soft")),
    "helmholtz": Case(lambda: Helmholtz(k=2, conditions="soft"), lambda: Helmholtz(k=4, conditions="soft")),
    "kovasznay": Case(lambda: Kovasznay(re=20.0), lambda: Kovasznay(re=60.0)),
    "wave": Case(lambda: replace(wave(), k=2.0, conditions="soft"), lambda: replace(wave(), k=3.0, conditions="soft")),
}
METHODS = {
    "odelora": (lambda: po.methods.odelora(po.LinearlyImplicit()), po.Sampling),
    "lora_adam": (po.methods.lora_adam, po.Sampling.even),
    "full_adam": (po.methods.full_adam, po.Sampling.even),
}


@cache
def network(name: str) -> torch.nn.Module:
    """The pretrained network of a case."""
    return po.pretrain(CASES[name].source(), cache=folder())


def adapted(name: str, method: str, weighting: str, seed: int, seconds: float) -> dict[str, object]:
    """One run: its error, cost and last multipliers."""
    make, points = METHODS[method]
    run = po.steps(
        network(name),
        CASES[name].target(),
        method=make(),
        points=points(),
        weighting=weighting,
        budget=po.Budget(seconds=seconds),
        log=po.Log(every=10**6),
        seed=seed,
        device="cpu",
    )
    run.training.clock = time.process_time
    multipliers = {}
    for record in run:
        multipliers = record.multipliers
    result = run.result()
    return {
        "case": name,
        "method": method,
        "weighting": weighting,
        "seed": seed,
        "seconds": seconds,
        "before": result.rel_l2_before,
        "rel_l2": result.rel_l2,
        "steps": result.steps,
        "multipliers": dict(multipliers),
        "failure": result.failure,
    }


def mean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def summed(runs: list[dict]) -> dict[tuple[str, str], dict[str, float]]:
    """(method, case) -> geometric mean over seeds of the error by weighting."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for r in runs:
        found.setdefault((r["method"], r["case"]), {}).setdefault(r["weighting"], []).append(r["rel_l2"])
    return {key: {weighting: mean(errors) for weighting, errors in by.items()} for key, by in found.items()}


def predictions(errors: dict[tuple[str, str], dict[str, float]]) -> dict[str, tuple[int, int]]:
    """How many of the cases that were run each prediction holds on."""
    ratio = {key: {w: x / by["fixed"] for w, x in by.items()} for key, by in errors.items()}
    implicit = {case: x for (method, case), x in ratio.items() if method == "odelora"}
    adam = {key: x for key, x in ratio.items() if key[0] != "odelora"}
    count = lambda holds: (sum(holds), len(holds))
    found = {
        "1 odelora: ntk / fixed in [1/2, 2]": count([0.5 <= x["ntk"] <= 2 for x in implicit.values()]),
        "2 odelora: gradnorm / fixed > 1": count([x["gradnorm"] > 1 for x in implicit.values()]),
        "3 Adam: ntk / fixed < 1": count([x["ntk"] < 1 for x in adam.values()]),
        "3 Adam on Helmholtz: ntk / fixed < 1/2": count(
            [x["ntk"] < 0.5 for k, x in adam.items() if k[1] == "helmholtz"]
        ),
        "4 Adam: gradnorm / ntk in [1, 3]": count([1 <= x["gradnorm"] / x["ntk"] <= 3 for x in adam.values()]),
    }
    worst = {case: max(by.values()) for (method, case), by in errors.items() if method == "odelora"}
    best = [(case, min(by.values())) for (method, case), by in errors.items() if method != "odelora"]
    found["5 best of Adam above worst of odelora"] = count([x > worst[case] for case, x in best if case in worst])
    return {name: (held, of) for name, (held, of) in found.items() if of}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.cases, given.seeds, given.seconds = ["burgers", "kovasznay"], 1, 1.0
    set_threads(1)
    keep_freed_memory()
    runs = json.loads(given.json.read_text())["runs"] if given.json and given.json.exists() else []
    label = lambda r: (r["case"], r["method"], r["weighting"], r["seed"], r["seconds"])
    known = {label(r) for r in runs}
    for method in given.methods:
        for name in given.cases:
            for seed in range(given.seeds):
                for weighting in WEIGHTINGS:
                    if (name, method, weighting, seed, given.seconds) not in known:
                        runs.append(adapted(name, method, weighting, seed, given.seconds))
                        print(*label(runs[-1]), f"{runs[-1]['rel_l2']:.3e}", file=sys.stderr)
                        if given.json:
                            write_json(given.json, {"runs": runs})
    report(runs)
    return 0


def report(runs: list[dict]) -> None:
    """The table, and which predictions hold."""
    errors = summed(runs)
    table = Table(
        "method", "case", "before", *WEIGHTINGS, "ntk / fixed", "gradnorm / fixed", "steps", "λ at the end, ntk"
    )
    for (method, case), by in errors.items():
        own = [r for r in runs if (r["method"], r["case"]) == (method, case)]
        steps = "/".join(str(round(mean([r["steps"] for r in own if r["weighting"] == w]))) for w in by)
        last = next(r["multipliers"] for r in own if r["weighting"] == "ntk")
        table.add_row(
            method,
            case,
            f"{own[0]['before']:.1e}",
            *(f"{by[w]:.1e}" for w in WEIGHTINGS),
            *(f"{by[w] / by['fixed']:.2f}" for w in WEIGHTINGS[1:]),
            steps,
            ", ".join(f"{k} {x:.1f}" for k, x in last.items()),
        )
    console = Console(width=160)
    console.print(table)
    for name, (held, of) in predictions(errors).items():
        console.print(f"{name}: on {held} of {of}")


if __name__ == "__main__":
    sys.exit(main())
