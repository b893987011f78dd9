"""Which of the processes of a run leads it: the one that was started, makes its folder and writes its files.

The others are started by Lightning with the same command line, when the leader has pretrained and written the
configuration; they are told of its folder by the environment, and read both there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "PINN_ODELORA_RUN_FOLDER"
RANK = "LOCAL_RANK"  # set by Lightning, 0 in the leader


def leaders_folder() -> Path | None:
    """The folder of the run that this process takes part in without leading it; None where it leads."""
    return Path(os.environ[FOLDER]) if FOLDER in os.environ and os.environ.get(RANK, "0") != "0" else None


def first() -> bool:
    """Whether this process is the first of its run, also where another program, as torchrun, started all of them."""
    return leaders_folder() is None and all(os.environ.get(name, "0") == "0" for name in (RANK, "RANK"))


def by_launcher() -> bool:
    """Whether another program, as torchrun, started all processes of this run, any of which may be ahead."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def leading(folder: Path, threads: int) -> Iterator[None]:
    """Tell processes that are started meanwhile of the folder, and Lightning of the threads that each shall have."""
    before = dict(os.environ)
    os.environ.setdefault(FOLDER, str(folder))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():  # Lightning leaves ranks and addresses, too
            del os.environ[name]
