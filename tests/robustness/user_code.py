"""Faulty problems and networks of the user's: one sentence, or a traceback whose last frame is theirs."""

from __future__ import annotations

import random
from pathlib import Path

from . import child
from .materials import Materials
from .records import Verdict
from .runs import asked, program
from .slips import NETWORK, NETWORK_SLIPS, PROBLEM, PROBLEM_SLIPS

MUST = "no traceback without the user's own frame last"
COUNT = len(PROBLEM_SLIPS) + len(NETWORK_SLIPS)
QUICK = (0, 90)
FILE = "mine.py"


def prepare(_: Materials) -> None:
    """Nothing: each trial has its own problem or network."""


def trial(_: None, folder: Path, rng: random.Random, number: int) -> Verdict:
    ours = number < len(PROBLEM_SLIPS)
    old, new = PROBLEM_SLIPS[number] if ours else NETWORK_SLIPS[number - len(PROBLEM_SLIPS)]
    template = PROBLEM if ours else NETWORK
    if template.count(old) != 1:
        raise ValueError(f"{old!r} is not once in the template")
    (folder / FILE).write_text(template.replace(old, new))
    case = ("problem._target_=mine.Mine",) if ours else ("net._target_=mine.Net",)
    dropped = ("problem=",) if ours else ("net.width=", "net.depth=")
    words = [w for w in asked((*case, "budget.steps=3"), folder / "run") if not w.startswith(dropped)]
    left = child.run(program(*words), folder, {"PINN_ODELORA_CACHE": str(folder / "cache")})
    return judged(left, f"{old.strip()} -> {new.strip()}"[:200])


def judged(left: child.Ended, what: str) -> Verdict:
    if left.code is None:
        return Verdict("hang", False, what, left.last)
    if left.traceback:
        frames = child.FRAME.findall(left.said)
        theirs = bool(frames) and Path(frames[-1][0]).name == FILE
        return Verdict("their own traceback" if theirs else "traceback", theirs, what, left.last)
    known = {0: "ran", 2: "refused", 3: "diverged"}
    return Verdict(known.get(left.code, f"code {left.code}"), left.code in known, what, left.last)
