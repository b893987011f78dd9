"""A disk that becomes full in the middle of a run: one sentence, nothing of before is lost, and with space it goes on.

The disk is a small file system in memory, of which a file takes all but so many pages; where none may be mounted,
writes fail instead.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pinn_odelora.files import UNFINISHED

from . import child, disk
from .materials import Materials
from .records import Verdict
from .runs import again, asked, content, difference, outcome, program

MUST = "one sentence, nothing of before is lost, and it goes on to the same bits"
COUNT = 30
QUICK = (17,)
PAGE = 4096
SIZE = 16 << 20


def prepare(materials: Materials) -> Materials:
    return materials


@contextmanager
def mounted(folder: Path) -> Iterator[Path | None]:
    """A small file system; None where none may be mounted."""
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)]
    try:
        able = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        able = False
    try:
        yield place if able else None
    finally:
        if able:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, pages: int) -> Path:
    """Leave so many pages of a file system free."""
    ballast = place / "ballast"
    free = os.statvfs(place).f_bfree
    with ballast.open("wb") as file:
        for _ in range(free - pages):
            file.write(bytes(PAGE))
    return ballast


def trial(setting: Materials, folder: Path, rng: random.Random, number: int) -> Verdict:
    whole = outcome(setting.of("finished") / "run")
    environment = {"PINN_ODELORA_CACHE": str(folder / "cache")}
    with mounted(folder) as place:
        home = place or folder
        before = setting.copy("finished", home / "former")
        kept, run, case = content(before), home / "run", ("seed=0", "pretrain.seed=0")
        words, ballast = asked(case, run), None
        if place:
            sizes = [-(-file.stat().st_size // PAGE) for file in (setting.of("finished") / "run").rglob("*")]
            pages = round((number + rng.random()) / COUNT * sum(sizes))
            what, ballast = f"{pages} of {sum(sizes)} pages free", fill(home, pages)
            left = child.run(program(*words), folder, environment)
        else:
            at = 1 + round((number + rng.random()) / COUNT * 120)
            what = f"write {at} fails"
            broken = program(*words, before=lambda: disk.Disk(setattr, at, disk.full))
            left = child.run(broken, folder, environment)
        if content(before) != kept:
            return Verdict("something lost", False, what, left.last)
        if left.code not in (0, 2) or left.traceback:
            return Verdict("traceback" if left.traceback else f"code {left.code}", False, what, left.last)
        if left.code == 2 and "No space left on device" not in left.last:
            return Verdict("another sentence", False, what, left.last)
        if parts := [*run.rglob(f"*{UNFINISHED}")]:
            return Verdict("files left", False, what, parts[0].name)
        if ballast:
            ballast.unlink()
        on = child.run(program(*again(case, run)), folder, environment) if left.code else left
        if on.code != 0:
            return Verdict("not continued", False, what, on.last)
        differs = difference(outcome(run), whole)
        said = "other bits" if differs else "one sentence" if left.code else "went on without the file"
        return Verdict(said, not differs, what, differs or left.last)
