"""Signals, and output that nobody takes: a run ends as it says and can be continued, or goes on to its end.

SIGINT and SIGTERM end a run with one line; one that is told how to continue has code 130. SIGTERM in the first moments
has its own effect, which is immediate. SIGHUP, and a terminal, pipe or disk that takes no output, change nothing.
"""

from __future__ import annotations

import os
import pty
import random
import signal
import sys
from pathlib import Path

from . import child, kills
from .kills import Setting, continued, prepare, signalled
from .records import Verdict
from .runs import CASES, asked, measurements, program

__all__ = ["COUNT", "MUST", "QUICK", "prepare", "trial"]
MUST = "one line and code 130, or no effect; continued, it ends with the same bits"
COUNT = 60
QUICK = (0,)
ENDING = {signal.SIGINT: (130,), signal.SIGTERM: (130, -signal.SIGTERM)}


def closed() -> None:
    for number in (0, 1, 2):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None


def full() -> None:
    disk = os.open("/dev/full", os.O_WRONLY)
    for number in (1, 2):
        os.dup2(disk, number)


def without_a_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python does
    for number in (1, 2):
        os.dup2(writer, number)


def terminal_that_closes() -> None:
    master, terminal = pty.openpty()
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    os.close(master)


def opened(act: child.Call) -> child.Call:
    """Change the outputs, and open them as an interpreter does that begins with them."""

    def changed() -> None:
        act()
        for number, name in ((1, "stdout"), (2, "stderr")):
            stream = open(number, "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    return changed


OUTPUTS = {
    "streams closed": closed,
    "disk of the log full": opened(full),
    "pipe without a reader": opened(without_a_reader),
    "terminal closed": opened(terminal_that_closes),
}


def trial(setting: Setting, folder: Path, rng: random.Random, number: int) -> Verdict:
    case = CASES[(5 * number) % len(CASES)]
    whole = setting.whole(case)
    measurements(folder)
    run, environment = folder / "run", {"PINN_ODELORA_CACHE": str(folder / "cache")}
    kind = number % 5
    if kind >= 3:
        name = [*OUTPUTS][rng.randrange(len(OUTPUTS))]
        what = f"{' '.join(case)}, {name}"
        ended = child.run(program(*asked(case, run), before=OUTPUTS[name]), folder, environment)
        return _whole(ended, run, whole, what)
    sent = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[kind]
    moment = rng.uniform(0.05, 0.95) * whole.seconds
    what = f"{' '.join(case)}, {sent.name} after {moment:.2f} of {whole.seconds:.2f} s"
    ended = signalled(program(*asked(case, run), before=_begun), folder, environment, moment, sent)
    if ended.code == 0:
        return _whole(ended, run, whole, what)
    if ended.code not in ENDING.get(sent, ()) or ended.traceback:
        return Verdict("traceback" if ended.traceback else f"code {ended.code}", False, what, ended.last)
    if ended.code == 130 and "continue with" not in ended.last and ended.last != "Interrupted.":
        return Verdict("no line", False, what, ended.last)
    return continued(case, run, folder, environment, whole, what)


def _begun() -> None:
    """SIGHUP ends Python itself until the program has begun."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _whole(ended: child.Ended, run: Path, whole: kills.Whole, what: str) -> Verdict:
    if ended.code != 0 or ended.traceback:
        return Verdict("traceback" if ended.traceback else f"code {ended.code}", False, what, ended.last)
    differs = kills.difference(kills.outcome(run), whole.outcome)
    return Verdict("other bits" if differs else "went on", not differs, what, differs)
