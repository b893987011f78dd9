"""The campaign of faults as a program; see the package for what it tries.

    python -m tests.robustness --full [--kinds kills mutations] [--seed 1] [--file runs/robustness.jsonl] [--page PAGE]

Every finished trial is a line of the file, and one that held is not made again, so that an interrupted campaign goes
on where it was; a trial that did not hold is made again when the code has changed. Exits with 1 where a trial did not
hold, or was not made.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="agg")  # of networks so small, and before torch is imported

from rich.console import Console
from rich.table import Table

from pinn_odelora.pretraining import cache
from pinn_odelora.threads import set_threads

from . import child, records
from .materials import Materials
from .records import Record, Verdict
from .runs import asked, program

KINDS = (
    *("kills", "signals", "mutations", "oddities", "archives", "configurations", "overrides", "writers", "full_disk"),
    *("servers", "user_code"),
)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__.splitlines()[0])
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--full", action="store_true", help="all trials")
    form.add_argument("--quick", action="store_true", help="a few of each kind")
    form.add_argument("--table", action="store_true", help="no trials, and the table of those that were made")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--numbers", nargs="+", type=int, help="of the trials of each kind, whether made or not")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, default=child.ROOT / "runs" / "robustness.jsonl", help="of the trials")
    parser.add_argument("--page", type=Path, help="where the table is written as a page")
    parser.add_argument("--seconds", type=float, help="no trial is begun after so many")
    return parser.parse_args(words)


def module(kind: str) -> ModuleType:
    return import_module(f".{kind}", __package__)


def numbers(kind: str, args: argparse.Namespace) -> Sequence[int]:
    whole = module(kind)
    if args.numbers:
        return [number for number in args.numbers if number < whole.COUNT]
    return whole.QUICK if args.quick else range(whole.COUNT)


def code() -> str:
    """The state of the package."""
    return cache._digest(repr(cache.package()).encode())[:8]


def one(kind: str, setting: object, number: int, seed: int, state: str) -> Record:
    """Make a trial; one that fails itself did not hold."""
    begun = time.monotonic()
    with child.workplace() as folder:
        try:
            verdict = module(kind).trial(setting, folder, random.Random(f"{seed} {kind} {number}"), number)
        except Exception:
            verdict = Verdict("the trial failed", False, "", traceback.format_exc())
    return Record(kind, number, seed, state, round(time.monotonic() - begun, 2), *verdict)


def made(args: argparse.Namespace) -> None:
    """Make the trials that are left, the kinds in proportion, so that what an interrupted campaign has made is fair."""
    state, begun = code(), time.monotonic()
    counts = {kind: len(numbers(kind, args)) for kind in args.kinds}
    places = [(k / counts[kind], kind, n) for kind in args.kinds for k, n in enumerate(numbers(kind, args))]
    wanted = [(kind, number) for _, kind, number in sorted(places)]
    todo = wanted if args.numbers else records.to_do(records.read(args.file), args.seed, state, wanted)
    if not todo:
        return
    set_threads(1)
    with child.workplace() as place:
        os.environ["PINN_ODELORA_CACHE"] = str(place / "cache")
        child.warm(program(*asked((), place / "run")), child.command("predict", str(place), "none.npz"))
        materials, settings = Materials(place / "materials"), {}
        for kind, number in todo:
            if args.seconds and time.monotonic() - begun > args.seconds:
                return
            if kind not in settings:
                settings[kind] = module(kind).prepare(materials)
            record = one(kind, settings[kind], number, args.seed, state)
            records.append(args.file, record)
            if not record.held or args.numbers:
                print(f"{kind} {number}: {record.outcome}: {record.what}: {record.said}", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    warnings.simplefilter("ignore")
    if not args.table:
        made(args)
    counts = {kind: len(numbers(kind, args)) for kind in args.kinds}
    must = {kind: module(kind).MUST for kind in args.kinds}
    found = records.read(args.file)
    wanted = {(kind, number) for kind in args.kinds for number in numbers(kind, args)}
    found = [r for r in found if (r.kind, r.number) in wanted]
    rows, whole = records.table(found, args.seed, counts, must)
    shown = Table(*records.HEADER)
    for row in rows:
        shown.add_row(*row)
    Console(width=200).print(shown)
    if args.page:
        done = records.latest(found, args.seed).values()
        states = Counter(r.code for r in done)
        said = ", ".join(f"{number} with {state}" for state, number in states.most_common())
        about = {"Seed": args.seed, "trials by the digest of the package that they were made with:": said}
        short = [r for r in done if not r.held]
        args.page.write_text(records.page(rows, short, about), encoding="utf-8")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
