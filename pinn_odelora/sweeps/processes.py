"""Jobs in processes of this machine, so many at once.

A process is kept for one job after another, since to start one takes seconds. Its lines carry the number of the job. A
job is handed over when a process is free and not before, so that none has to be called back when the sweep is stopped.

Ctrl-C and SIGTERM end the jobs at hand as they end a single one: after the step, with its state saved. A second one
ends the processes at once.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType
from typing import TextIO

from pinn_odelora.runs.messages import CONTINUE, say
from pinn_odelora.streams import INTERRUPTED, escape_what_cannot_be_encoded, lose_what_cannot_be_written
from pinn_odelora.sweeps.jobs import Job, Outcome

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
STOPS = (signal.SIGINT, signal.SIGTERM)


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(jobs: Iterable[Job], number: int, workers: int) -> list[Outcome]:
    """Run all jobs, ``workers`` of them at once, and return how each ended; one that fails stops no other.

    Args:
        jobs: taken one by one, so that the next is made while others run.
        number: how many there are.
        workers: processes.

    Raises:
        SystemExit: with code 130 if the sweep was interrupted, with 75 if its jobs are to be continued, with a sentence
            if a process was killed.
    """
    outcomes: dict[int, Outcome] = {}
    begun, running, jobs = [], dict[Future[Outcome], Job](), iter(jobs)
    spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads and CUDA's state
    with _stopping() as stopped, ProcessPoolExecutor(workers, spawn, _begin) as pool:
        try:
            while running or (len(begun) < number and not stopped.is_set()):
                while len(begun) < number and len(running) < workers and not stopped.is_set():
                    begun.append(job := next(jobs))
                    print(f"#{job.number} : {job.line}", flush=True)
                    running[pool.submit(_run, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcomes[running.pop(future).number] = ended = _ended(future)
                    if isinstance(ended, SystemExit | KeyboardInterrupt):
                        stopped.set()
        except BrokenProcessPool:
            if not stopped.is_set():
                left = [job.number for job in begun if job.number not in outcomes]
                raise SystemExit(_killed(left, number - len(begun), workers)) from None
    if stopped.is_set():
        if len(begun) < number:
            say(f"The sweep is interrupted; {number - len(begun)} of its {number} jobs were not begun.")
        codes = {ended.code for ended in outcomes.values() if isinstance(ended, SystemExit)}
        raise SystemExit(CONTINUE if codes == {CONTINUE} else INTERRUPTED)
    return [outcomes[job.number] for job in begun]


def _ended(future: Future[Outcome]) -> Outcome:
    raised = future.exception()
    if isinstance(raised, BrokenProcessPool):
        raise raised
    return future.result() if raised is None else raised


def _killed(left: Sequence[int], unbegun: int, workers: int) -> str:
    jobs = ", ".join(f"#{number}" for number in left)
    return (
        f"A process of the sweep was killed, perhaps for want of memory with {workers} of them; not finished: {jobs}; "
        f"not begun: {unbegun} jobs. Those with a saved state continue with: python train.py resume=<folder>"
    )


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, which are passed on to the processes; a second one kills these."""
    stopped = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        again = stopped.is_set()
        stopped.set()
        for process in multiprocessing.active_children():
            process.kill() if again else process.terminate()
        if again:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# In the processes.


def _begin() -> None:
    """A new process: one thread for each library, unless told otherwise, and no life after its parent's."""
    lose_what_cannot_be_written()
    escape_what_cannot_be_encoded()
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _run(job: Job) -> Outcome:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    own = [_Numbered(stream, f"#{job.number} ") for stream in (sys.stdout, sys.stderr)]
    try:
        with redirect_stdout(own[0]), redirect_stderr(own[1]):
            return job.run()
    finally:
        signal.signal(signal.SIGTERM, before)
        for stream in own:
            stream.end()


class _Numbered(io.TextIOBase):
    """Whole lines to a stream that several processes share, each with a prefix."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self.stream, self.prefix, self.held = stream, prefix, ""

    def write(self, text: str) -> int:
        *lines, self.held = (self.held + text).split("\n")
        self.stream.write("".join(f"{self.prefix}{line}\n" for line in lines))
        self.stream.flush()
        return len(text)

    def end(self) -> None:
        """What is left of a last line."""
        if self.held:
            self.write("\n")
