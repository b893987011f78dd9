"""Steps that live in one process, their times and their peak memory; and the same in a process of its own.

``Elsewhere`` answers to the same calls as ``Steps``, through a pipe; between calls its process sleeps.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import engines
from engines.workloads import Case

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
"""For torch and for XLA; to be set before either is imported."""
SHOW_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc gives blocks above this size back at once, so that what is resident is what is in use."""
CALLS, SECONDS = 3, 0.3
"""A turn has so many calls at least, and takes so many seconds."""


class Time(NamedTuple):
    """Seconds a step, and the cores that the process kept busy meanwhile."""

    seconds: float
    cores: float


class Steps:
    """Steps of several engines in this process, by the engine's name."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.steps: dict[str, engines.Step] = {}
        torch.set_num_threads(1)

    def build(self, name: str, case: Case) -> float:
        """Make a step and take it once; returns the seconds of that, compilation included."""
        start = time.perf_counter()
        self.steps[name] = engines.build(name, case, self.device)
        self.steps[name].run()
        return time.perf_counter() - start

    def gradient(self, name: str) -> list[np.ndarray]:
        step = self.steps[name]
        return [np.asarray(part) for part in step.gradient(step.run())]

    def time(self, name: str) -> Time:
        """The fastest call of a turn, the least disturbed one, after a call that warms caches up."""
        run = self.steps[name].run
        run()
        laps, began, busy = [], time.perf_counter(), time.process_time()
        while len(laps) < CALLS or time.perf_counter() - began < SECONDS:
            start = time.perf_counter()
            run()
            laps.append(time.perf_counter() - start)
        return Time(min(laps), (time.process_time() - busy) / (time.perf_counter() - began))

    def peak(self, name: str) -> int:
        """Bytes that a step needs at most above those held before it: resident memory, or the device's."""
        run = self.steps[name].run
        run()
        gc.collect()
        if self.device != "cpu":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run()
            return torch.cuda.max_memory_allocated() - before
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # The high-water mark starts again from what is resident now.
        run()
        return resident("VmHWM") - before


def resident(line: str) -> int:
    """Bytes in one line of what Linux says about this process."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[line].removesuffix("kB"))


class Elsewhere:
    """Steps in a process of its own, with further environment variables; a context manager that ends the process."""

    def __init__(self, device: str, environment: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(far_end, device), daemon=True)
        kept = dict(os.environ)
        os.environ.update(environment or {})
        try:
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(kept)
        far_end.close()

    def __getattr__(self, call: str) -> Any:
        def ask(*args: Any) -> Any:
            self.pipe.send((call, args))
            answer, failure = self.pipe.recv()
            if failure:
                raise RuntimeError(f"in the process of its own:\n{failure}")
            return answer

        return ask

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join()


def _serve(pipe: Any, device: str) -> None:
    steps = Steps(device)
    while True:
        try:
            call, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(steps, call)(*args), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
