"""Several processes at the same moment, and one folder or one cache: one of them writes, the others say so.

two runs      begin in one new folder
two resumes   of an interrupted run
a running one is continued by another process
a cache       that is empty is filled by three runs
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from . import child
from .materials import Materials
from .records import Verdict
from .runs import asked, at_step, difference, outcome, program

MUST = "one writer, and what it writes is as if it were alone"
COUNT = 50
QUICK = (0,)
WAYS = ("two runs", "two resumes", "a running one", "a cache")


def prepare(materials: Materials) -> Materials:
    return materials


def trial(setting: Materials, folder: Path, rng: random.Random, number: int) -> Verdict:
    way = WAYS[number % len(WAYS)]
    undisturbed = outcome(setting.of("finished") / "run")
    environment = {"PINN_ODELORA_CACHE": str(folder / "cache")}
    words = asked(("seed=0", "pretrain.seed=0"), folder / "run")
    if way == "two resumes":
        setting.copy("interrupted", folder)
        words = (f"resume={folder / 'run'}",)
    if way == "a cache":
        runs = [folder / f"run{k}" for k in range(3)]
        calls = [program(*asked(("seed=0", "pretrain.seed=0"), run)) for run in runs]
    else:
        runs, calls = [folder / "run"], [program(*words), program(*words)]
    if way == "a running one":
        # it waits at its fifth step until the other one has ended
        calls[0] = program(*words, before=lambda: at_step(4, lambda: waiting(folder)))
        calls[1] = program(f"resume={folder / 'run'}")
    children = [child.start(calls[0], folder, environment)]
    if way == "a running one":
        if not there(folder / "waits", children[0]):
            return Verdict("the first ended", False, way, child.finish(children[0]).last)
        time.sleep(rng.uniform(0, 0.05))
        left = [child.run(calls[1], folder, environment)]
        (folder / "goes on").touch()
        left.insert(0, child.finish(children[0]))
    else:
        for call in calls[1:]:
            time.sleep(rng.choice([0, 0, rng.uniform(0, 0.5)]))
            children.append(child.start(call, folder, environment))
        left = [child.finish(one) for one in children]
    return judged(way, left, runs, undisturbed)


def judged(way: str, left: list[child.Ended], runs: list[Path], undisturbed: dict) -> Verdict:
    if bad := next((one for one in left if one.code not in (0, 2) or one.traceback), None):
        return Verdict("traceback" if bad.traceback else f"code {bad.code}", False, way, bad.last)
    whole = [one for one in left if one.code == 0]
    said = next((one.last for one in left if one.code == 2), "")
    later = way == "two resumes" and len(whole) == 2  # the second began when the first had ended: again a resume
    if len(whole) != len(runs) and not later:
        return Verdict(f"{len(whole)} writers", False, way, said)
    for run in runs:
        if differs := difference(outcome(run), undisturbed):
            return Verdict("other bits", False, way, differs)
    return Verdict("one after the other" if later else "as if alone", True, way, said)


def waiting(folder: Path) -> None:
    (folder / "waits").touch()
    until = time.monotonic() + 10 * child.LIMIT
    while not (folder / "goes on").exists() and time.monotonic() < until:
        time.sleep(0.005)


def there(file: Path, one: child.Child) -> bool:
    """Wait for a file while a child runs."""
    while not file.exists():
        if os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.005)
    return True
