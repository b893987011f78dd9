"""A broken tree shown to tests, in a process of its own.

What every test needs of other packages is imported once (``warm``), and each trial is a fork of that process: the
imports would take longer than most tests. The broken package itself is imported by the fork alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

OTHERS = (
    "numpy",
    "torch",
    "torch.func",
    "scipy.spatial",
    "scipy.stats",
    "scipy.linalg",
    "omegaconf",
    "safetensors.torch",
)
SLACK, MANY = 60.0, 6.0
"""Seconds on a processor beside those of the tests, and so many times those, until a trial is taken for a hang."""
STILL = 300.0
"""Seconds on the wall in which nothing of it runs, until it is taken for one as well. The wall alone tells nothing: the
machine may do other things."""
LOOK = 10.0
"""Seconds between two looks at the table of processes."""


class Shown(NamedTuple):
    """What became of a break: ``caught``, ``hang`` or ``survived``; by which test; seconds on a processor."""

    outcome: str
    by: str
    seconds: float


class Chosen:
    """A plugin: of what is collected the chosen tests, in their order; and those that fail, a line each."""

    def __init__(self, tests: list[str], report: Path) -> None:
        self.order = {test: n for n, test in enumerate(tests)}
        self.report = report

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((x for x in items if x.nodeid in self.order), key=lambda x: self.order[x.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._note(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._note(f"{report.nodeid} (import)")

    def _note(self, test: str) -> None:
        with self.report.open("a", encoding="utf-8") as file:
            file.write(f"{test}\n")


def warm() -> None:
    """Import what tests need of other packages."""
    for name in OTHERS:
        importlib.import_module(name)


def show(root: Path, tests: Mapping[str, list[str]], limit: float) -> Shown:
    """Run tests of a tree until one fails.

    Args:
        root: of the tree.
        tests: names by file.
        limit: seconds that they should take.
    """
    report = root / "failed"
    report.unlink(missing_ok=True)
    most = SLACK + MANY * limit
    child = os.fork()
    if not child:
        _run(root, tests, report)
    code, usage = _ended(child, most)
    spent = round(usage, 1)
    if code == 0:
        return Shown("survived", "", spent)
    if code == 1 or report.exists():
        first = _lines(report)[:1] or ["an error outside of tests"]
        return Shown("caught", first[0].removeprefix("tests/"), spent)
    if code == -signal.SIGKILL:
        return Shown("hang", "", spent)
    if code < 0:
        return Shown("caught", f"ended by signal {-code}", spent)
    raise RuntimeError(f"pytest ended with {code} for {[*tests]}: see {root / 'output'}")


def failing(root: Path, tests: Mapping[str, list[str]], limit: float) -> set[str]:
    """Which of the tests fail on a tree, all of them run."""
    report = root / "failed"
    report.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        _run(root, tests, report, whole=True)
    _ended(child, SLACK + MANY * limit)
    return {*_lines(report)}


def _lines(report: Path) -> list[str]:
    return report.read_text(encoding="utf-8").splitlines() if report.exists() else []


def _run(root: Path, tests: Mapping[str, list[str]], report: Path, whole: bool = False) -> None:
    """The child: never returns."""
    code = 70
    try:
        os.setsid()
        output = os.open(root / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        here = ("", str(Path.cwd()))
        os.chdir(root)
        os.environ["PYTHONPATH"] = str(root)
        sys.path[:] = [str(root), *(place for place in sys.path if place not in here)]
        for name in [x for x in sys.modules if x.partition(".")[0] in ("tests", "pinn_odelora", "problems")]:
            del sys.modules[name]
        torch.set_num_interop_threads(1)
        torch.set_num_interop_threads = lambda number: None  # which a second session would be refused
        options = [*([] if whole else ["-x"]), "-q", "-n0", "-p", "no:cacheprovider", "--tb=short", f"--rootdir={root}"]
        for file, names in tests.items():  # to collect a file takes longer than most of its tests
            code = int(pytest.main([*options, file], plugins=[Chosen(names, report)]))
            code = 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code
            if code and not whole:
                break
        package = sys.modules.get("pinn_odelora")
        if package is not None and not str(package.__file__).startswith(str(root)):
            code = 71  # another tree was tested
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(child: int, most: float) -> tuple[int, float]:
    """Exit code, or minus the signal, and seconds on a processor; killed, with all that it started, after too many of
    these, or when nothing of it runs.
    """
    known, since, looked = 0.0, time.monotonic(), time.monotonic()
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.2)
        if time.monotonic() - looked < LOOK:
            continue
        used, looked = _used(child), time.monotonic()
        known, since = (used, time.monotonic()) if used > known else (known, since)
        if used > most or time.monotonic() - since > STILL:
            _kill(child)
            _, status, usage = os.wait4(child, 0)
            break
    _kill(child)  # what a test has left behind
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _used(group: int) -> float:
    """Seconds on a processor of a group of processes, those that have ended among them (Linux)."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")
