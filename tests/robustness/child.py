"""A program in a process of its own, forked from one that has imported everything, with a limit of time and of memory.

A new interpreter takes seconds before it does anything; a forked one begins at once, from a process that has made a run
already.

A program hangs that has had a minute of processor time, or has slept for a minute: on a machine with much else to do a
minute of the clock says nothing.
"""

from __future__ import annotations

import atexit
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds."""
MEMORY = 6 << 30
"""Bytes of addresses that a program may take beyond those of its parent."""
FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)', re.MULTILINE)
TRACEBACK = "Traceback (most recent call last)"

Call = Callable[[], object]


class Ended(NamedTuple):
    """What a program left.

    Attributes:
        code: its exit code, minus the number of the signal that ended it; None where it hung.
        said: on standard output and error.
        seconds: of processor time that it took.
    """

    code: int | None
    said: str
    seconds: float

    @property
    def traceback(self) -> bool:
        return TRACEBACK in self.said

    @property
    def last(self) -> str:
        """The last line, and of a traceback where it was."""
        line = next((line for line in reversed(self.said.splitlines()) if line.strip()), "")
        places = [f"{Path(file).name}:{number}" for file, number in FRAME.findall(self.said)[-4:]]
        return f"{line} ({', '.join(places)})" if self.traceback else line


class Child(NamedTuple):
    """A program that runs, and the file that its output goes to."""

    pid: int
    log: Path

    @property
    def seconds(self) -> float:
        """Of processor time."""
        with suppress(OSError):
            return time.clock_gettime((~self.pid << 3) | 2)
        return 0.0


def train(*words: str) -> Call:
    """``python train.py``."""
    return lambda: _script(lambda: runpy.run_path(str(ROOT / "train.py"), run_name="__main__"), "train.py", *words)


def command(*words: str) -> Call:
    """``python -m pinn_odelora``."""
    run = lambda: runpy.run_module("pinn_odelora", run_name="__main__", alter_sys=True)
    return lambda: _script(run, "pinn_odelora", *words)


def _script(run: Call, *argv: str) -> None:
    sys.argv[:] = argv
    run()


def run(call: Call, folder: Path, environment: Mapping[str, str] | None = None, limit: float = LIMIT) -> Ended:
    """Call a function in a child: its working folder, and variables to set."""
    return finish(start(call, folder, environment), limit)


def start(call: Call, folder: Path, environment: Mapping[str, str] | None = None) -> Child:
    """Begin a call in a child."""
    descriptor, name = tempfile.mkstemp(".log", "robustness-")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _settle(descriptor, folder, environment or {})
            code = _called(call, descriptor)
        finally:
            os._exit(code)
    os.close(descriptor)
    return Child(pid, Path(name))


def finish(child: Child, limit: float = LIMIT) -> Ended:
    """Wait for a child, and end it with its own children where it hangs."""
    code, seconds = _waited(child, limit)
    with suppress(OSError):  # what it has left behind, too
        os.killpg(child.pid, signal.SIGKILL)
    if code is None:
        os.waitpid(child.pid, 0)
    said = child.log.read_bytes().decode(errors="replace")
    child.log.unlink()
    return Ended(code, said, seconds)


def _waited(child: Child, limit: float) -> tuple[int | None, float]:
    pause, seconds, awake = 0.001, 0.0, time.monotonic()
    while True:
        found, status, used = os.wait4(child.pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if child.seconds > seconds + 0.01:
            seconds, awake = child.seconds, time.monotonic()
        if seconds > limit or time.monotonic() > awake + limit:
            return None, seconds
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _settle(descriptor: int, folder: Path, environment: Mapping[str, str]) -> None:
    os.setsid()
    atexit._clear()  # what the parent has to do at its own end
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whoever started the campaign may ignore one
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    os.environ.update(environment)
    os.chdir(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _called(call: Call, log: int) -> int:
    """The exit code that an interpreter would have; a traceback is kept though the streams take nothing."""
    try:
        try:
            call()
        finally:
            atexit._run_exitfuncs()
        return 0
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        print(left.code, file=sys.stderr)
        return 1
    except BaseException:
        os.write(log, traceback.format_exc().encode())
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()


@contextmanager
def workplace() -> Iterator[Path]:
    """A new folder, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="robustness-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def warm(*calls: Call) -> None:
    """Make these calls in this process, so that its children have what they import; they read YAML by the parser in C,
    since the one in Python takes a third of the time of a run that is so short.
    """
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    kept, here, words = [os.dup(number) for number in (1, 2)], os.getcwd(), [*sys.argv]
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nothing, number)
        for call in calls:
            with suppress(SystemExit):
                call()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, file in zip((1, 2), kept, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.close(nothing)
        os.chdir(here)
        sys.argv[:] = words
