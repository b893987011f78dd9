"""A run is killed, at a random moment or in the middle of a write; continued, it ends with the same bits.

Every fifth trial is killed at a write, in which half of it is on the disk. The undisturbed run of each case is made
once, and kept with the number of its writes and its processor time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pinn_odelora.files import UNFINISHED

from . import child
from .disk import Disk
from .materials import Materials
from .records import Verdict
from .runs import CASES, again, asked, die, difference, measurements, outcome, program

MUST = "continued, it ends with the same bits"
COUNT = 200
QUICK = (0, 17)
AT_A_WRITE = 5
"""One trial of so many."""


class Whole(NamedTuple):
    """An undisturbed run: what it left, its writes and its seconds."""

    outcome: dict[str, Any]
    writes: int
    seconds: float


class Setting:
    """The undisturbed runs, each made when it is asked for."""

    def __init__(self, materials: Materials) -> None:
        self.folder, self.made = materials.folder / "undisturbed", materials.undisturbed

    def whole(self, case: Sequence[str]) -> Whole:
        if case not in self.made:
            self.made[case] = undisturbed(case, self.folder / f"case{len(self.made)}")
        return self.made[case]


prepare = Setting


def undisturbed(case: Sequence[str], folder: Path) -> Whole:
    """Make a run whose writes are counted.

    Raises:
        RuntimeError: if it fails.
    """
    folder.mkdir(parents=True)
    measurements(folder)
    run, counted = folder / "run", folder / "writes"

    def call() -> None:
        disk = Disk(setattr)
        try:
            program(*asked(case, run))()
        finally:
            counted.write_text(json.dumps(disk.asked))

    ended = child.run(call, folder, {"PINN_ODELORA_CACHE": str(folder / "cache")})
    if ended.code != 0:
        raise RuntimeError(f"{' '.join(case)} ended with {ended.code}: {ended.said}")
    return Whole(outcome(run), json.loads(counted.read_text()), ended.seconds)


def trial(setting: Setting, folder: Path, rng: random.Random, number: int) -> Verdict:
    case = CASES[number % len(CASES)]
    whole = setting.whole(case)
    at_a_write = number % AT_A_WRITE == 0
    moment = rng.randint(1, whole.writes) if at_a_write else rng.uniform(0, whole.seconds)
    measurements(folder)
    environment = {"PINN_ODELORA_CACHE": str(folder / "cache")}
    for attempt in range(9):
        run = folder / f"run{attempt}"
        if at_a_write:
            what = f"{' '.join(case)} killed at write {moment} of {whole.writes}"
            killed = program(*asked(case, run), before=lambda at=moment: Disk(setattr, at, die))
            ended = child.run(killed, folder, environment)
        else:
            what = f"{' '.join(case)} killed after {moment:.2f} of {whole.seconds:.2f} s"
            ended = signalled(program(*asked(case, run)), folder, environment, moment, signal.SIGKILL)
        if ended.code != 0:
            break
        moment = moment // 2 if at_a_write else moment / 2  # it was quicker than the undisturbed one
    if ended.code != -signal.SIGKILL:
        return Verdict("not killed", False, what, ended.last)
    return continued(case, run, folder, environment, whole, what)


def signalled(call: child.Call, folder: Path, environment: dict[str, str], seconds: float, number: int) -> child.Ended:
    """Send a signal to a program when it has had so much processor time; not to one that has ended."""
    begun = child.start(call, folder, environment)
    while begun.seconds < seconds and os.waitid(os.P_PID, begun.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
    os.kill(begun.pid, number)
    return child.finish(begun)


def continued(
    case: Sequence[str], run: Path, folder: Path, environment: dict[str, str], whole: Whole, what: str
) -> Verdict:
    """Go on with a run unless it has ended, and compare what it leaves with the undisturbed one."""
    ended = child.run(program(*again(case, run)), folder, environment)
    if ended.code is None:
        return Verdict("hang", False, what, ended.last)
    if ended.code or ended.traceback:
        return Verdict("traceback" if ended.traceback else "not continued", False, what, ended.last)
    if left := [*run.rglob(f"*{UNFINISHED}")]:
        return Verdict("files left", False, what, str(left[0].name))
    if differs := difference(outcome(run), whole.outcome):
        return Verdict("other bits", False, what, differs)
    return Verdict("same bits", True, what)
