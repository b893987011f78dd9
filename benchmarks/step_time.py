"""The time of a step, loss and gradient with respect to all weights, with our engines, DeepXDE, PINA and JAX.

Five workloads (``engines/workloads.py``), tanh networks, float32, one thread, no optimiser. First every engine's
gradient is held against nested reverse mode in float64. Then rounds: in each, every engine takes its turn, JAX in a
second process that sleeps otherwise; the speed-up, DeepXDE's time over the engine's, is formed in each round, and the
table has its median and quartiles over the rounds. The peak memory of a step is measured in a process of its own for
each engine.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/step_time.py [--workloads burgers kdv] [--engines jets jax_jet] [--rounds 7] [--json times.json]

Exits with 1 when our jets are short of their target, with 2 when a gradient is wrong. The targets are those of a CPU;
``--device cuda`` measures and judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
from engines import ENGINES, JAX
from engines.process import ONE_THREAD, SHOW_FREED, Elsewhere, Steps
from engines.workloads import WORKLOADS, case, distance, reference
from rich import box
from rich.console import Console
from rich.table import Table

FASTER = {"burgers": 1.3, "allen_cahn": 1.15, "navier_stokes": 2.6, "kdv": 1.85, "poisson": 1.9}
"""DeepXDE's time over that of our jets, at least."""
MEMORY = {"navier_stokes": 0.40}
"""Our peak memory over DeepXDE's, at most."""
TOLERANCE = 1e-4
"""Relative difference that a float32 gradient may have from the exact one."""
CORES = 1.2
"""An engine that keeps more of them busy is not on one thread."""
PACKAGES = ("torch", "deepxde", "pina-mathlab", "jax", "jaxlib")


def measure(name, engines, rounds, device, number=None):
    """One workload: for every engine its times by round, gradient error, seconds of the first call and peak memory."""
    shared = case(name, number)
    exact = reference(shared)
    rows = {}
    with contextlib.ExitStack() as stack:
        here = Steps(device)
        there = stack.enter_context(Elsewhere(device)) if set(engines) & set(JAX) else None
        homes = {engine: there if engine in JAX else here for engine in engines}
        for engine, home in homes.items():
            first_call = home.build(engine, shared)
            error = distance(home.gradient(engine), exact)
            if not error <= TOLERANCE:
                print(f"{name}: the gradient of {engine} is wrong by {error:.1e}.", file=sys.stderr)
                raise SystemExit(2)
            rows[engine] = {"gradient_error": error, "first_call_s": first_call, "seconds": [], "cores": []}
        for _ in range(rounds):
            for engine, home in homes.items():
                time = home.time(engine)
                rows[engine]["seconds"].append(time.seconds)
                rows[engine]["cores"].append(time.cores)
    for engine in engines:
        rows[engine]["peak_bytes"] = peak(engine, shared, device) if name in MEMORY else None
    return rows


def peak(engine, shared, device):
    """Peak memory of a step of one engine; None where there is no way to measure it."""
    if (device == "cpu" and platform.system() != "Linux") or (device != "cpu" and engine in JAX):
        return None
    with Elsewhere(device, SHOW_FREED) as alone:
        alone.build(engine, shared)
        return alone.peak(engine)


def quartiles(values):
    """Lower quartile, median, upper quartile."""
    return tuple(float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))


def faster(rows, than, engine):
    """Quartiles over the rounds of the time of ``than`` over that of ``engine``."""
    return quartiles(np.divide(rows[than]["seconds"], rows[engine]["seconds"]))


def shortfalls(name, rows):
    """What one workload is short of, a sentence each."""
    found = []
    if "jets" in rows and (ratio := faster(rows, "deepxde", "jets")[1]) < FASTER[name]:
        found.append(f"{name}: jets are {ratio:.2f} times as fast as DeepXDE, short of {FASTER[name]}.")
    peaks = {engine: row["peak_bytes"] for engine, row in rows.items() if row["peak_bytes"]}
    if {"deepxde", "jets"} <= peaks.keys() and (share := peaks["jets"] / peaks["deepxde"]) > MEMORY[name]:
        found.append(f"{name}: jets need {share:.2f} of DeepXDE's memory, above {MEMORY[name]}.")
    for engine, row in rows.items():
        if (cores := np.median(row["cores"])) > CORES:
            found.append(f"{name}: {engine} kept {cores:.1f} cores busy instead of one.")
    return found


def table(name, rows):
    """Milliseconds, DeepXDE's time over the engine's with its quartiles, error of the gradient, peak memory."""
    made = Table(title=f"{name}: {WORKLOADS[name]}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("engine", "ms", "speed-up", "target", "error", "first call, s", "MB"):
        made.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
    for engine, row in rows.items():
        low, middle, high = faster(rows, "deepxde", engine)
        made.add_row(
            *(engine, f"{1e3 * np.median(row['seconds']):.1f}", rf"{middle:.2f} \[{low:.2f}, {high:.2f}]"),
            str(FASTER[name]) if engine == "jets" else "",
            *(f"{row['gradient_error']:.0e}", f"{row['first_call_s']:.1f}"),
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
        )
    return made


def versions():
    known = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return {"python": platform.python_version(), **known}


def missing(engines):
    """Libraries that the engines need and that are not installed."""
    needed = {"deepxde": "deepxde", "pina": "pina", **dict.fromkeys(JAX, "jax")}
    return sorted({needed[e] for e in engines if e in needed and importlib.util.find_spec(needed[e]) is None})


def on_gpu():
    """Whether the installed JAX could use one."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument(
        "--engines", nargs="+", default=list(ENGINES), choices=ENGINES, help="DeepXDE's is always timed"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    engines = [engine for engine in ENGINES if engine in {"deepxde", *args.engines}]
    if args.device == "cuda" and not on_gpu():
        engines = [engine for engine in engines if engine not in JAX]
    if absent := missing(engines):
        parser.error(f"{', '.join(absent)} missing: pip install -c constraints.txt -e '.[bench]', or name --engines")
    os.environ.update(ONE_THREAD | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
    results, short, console = {}, [], Console()
    for name in args.workloads:
        rows = results[name] = measure(name, engines, args.rounds, args.device)
        console.print(table(name, rows))
        if args.device == "cpu":
            short += shortfalls(name, rows)
    if args.json:
        facts = {"device": args.device, "rounds": args.rounds, "versions": versions(), "short": short}
        args.json.write_text(json.dumps({**facts, "workloads": results}, indent=2))
    if args.device == "cpu":
        print("\n".join(short) if short else "every target reached")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
