"""Which tests enter which functions of the package, and what each test costs.

A tracer sees every call and looks at no line, so that a test runs about a third longer. A process that a test starts
reports for it, too: it inherits the name of the test from pytest, and the tracer from a ``sitecustomize`` on its path,
which is a copy of this file. What a file of tests enters is recorded again when that file has changed.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

FOLDER, SOURCE, TEST = "ODELORA_REACH", "ODELORA_REACH_ROOT", "PYTEST_CURRENT_TEST"
"""Environment variables: where the records go, the root of the tree, and the test that runs, which pytest sets."""
PACKAGE = "pinn_odelora"
_seen: set[CodeType] = set()


class Record(NamedTuple):
    """A test by its name, its seconds on a processor, and what it enters, as file:qualified name."""

    test: str
    seconds: float
    entered: frozenset[str]


def records(root: Path, folder: Path, tests: Iterable[str]) -> list[Record]:
    """What tests enter, recorded where it is not known.

    Args:
        root: of the tree.
        folder: of the records.
        tests: files below the root.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stale = [test for test in tests if _mark(folder, test) != _digest(root / test)]
    if stale:
        _record(root, folder.resolve(), stale)
    entered, seconds = defaultdict(set), defaultdict(float)
    for test in tests:
        for file in folder.glob(f"{Path(test).stem}.*jsonl"):
            for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
                entered[line["test"]].update(line["entered"])
                seconds[line["test"]] += line["seconds"]
    return [Record(test, seconds[test], frozenset(entered[test])) for test in entered]


def _record(root: Path, folder: Path, tests: Iterable[str]) -> None:
    for test in tests:
        for file in folder.glob(f"{Path(test).stem}.*"):
            file.unlink()
    site = folder / "site"
    site.mkdir(exist_ok=True)
    shutil.copy(__file__, site / "sitecustomize.py")
    path = os.pathsep.join(filter(None, [str(root), str(site), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, FOLDER: str(folder), SOURCE: str(root), "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "tests.robustness.reach", *tests]
    subprocess.run(command, cwd=root, env=environment, check=True, stdout=sys.stderr)


def _mark(folder: Path, test: str) -> str:
    done = folder / f"{Path(test).stem}.done"
    return done.read_text() if done.exists() else ""


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# The tracer.


def trace(frame: FrameType, event: str, argument: Any) -> None:
    """Note the function that is entered; nothing is traced inside of it."""
    _seen.add(frame.f_code)


def start() -> None:
    """Trace every thread from here on."""
    threading.settrace(trace)
    sys.settrace(trace)


def stop() -> None:
    """Trace no more, as an interpreter that ends has lost what a tracer needs."""
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]


def entered() -> list[str]:
    """The functions since the last time, and forget them."""
    global _seen
    found, _seen = _seen, set()
    root = os.environ[SOURCE] + os.sep
    inside = [code for code in found if code.co_filename.startswith(f"{root}{PACKAGE}{os.sep}")]
    return sorted({f"{code.co_filename.removeprefix(root)}:{code.co_qualname}" for code in inside})


def note(test: str, spent: float, part: str = "main") -> None:
    """Add what was entered in a test to its record."""
    line = {"test": test.partition(" (")[0], "seconds": round(spent, 3), "entered": entered()}
    stem = Path(test.partition("::")[0]).stem
    with (Path(os.environ[FOLDER]) / f"{stem}.{part}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def seconds() -> float:
    """Time on a processor of this process and those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Plugin:
    """Records each test; a file is marked when all of its tests have run."""

    begun = 0.0
    file = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if (file := nodeid.partition("::")[0]) != self.file:
            self.mark()
            self.file = file
        self.begun = seconds()
        entered()
        start()  # tests may have set a tracer of their own

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        note(nodeid, seconds() - self.begun)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        stop()
        if exitstatus == 0:
            self.mark()

    def mark(self) -> None:
        if self.file:
            done = Path(os.environ[FOLDER]) / f"{Path(self.file).stem}.done"
            done.write_text(_digest(Path(os.environ[SOURCE]) / self.file))


def pytest_configure(config: Any) -> None:
    if FOLDER in os.environ:
        config.pluginmanager.register(Plugin())


if __name__ == "sitecustomize" and os.environ.get(TEST):
    start()
    atexit.register(lambda: (stop(), note(os.environ[TEST], 0.0, str(os.getpid()))))
