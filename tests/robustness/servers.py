"""Trackers on this machine that do not answer, or nonsense: a run ends whole, or says at its start what is wrong.

W&B is spared, and the run goes on without it; a store of MLflow that was asked for must be there at the start.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import child
from .materials import Materials
from .records import Verdict
from .runs import asked, difference, outcome, program

MUST = "the run ends whole, or one sentence at its start; no hang"
LIMIT = 150.0
"""Seconds that a run may wait for a server; W&B's own limits are 10 at the start and 60 at the end."""


def mute(_: socket.socket) -> None:
    time.sleep(1000)


def gone(_: socket.socket) -> None:
    pass


def answer(status: str, body: bytes, kind: str = "application/json") -> Callable[[socket.socket], None]:
    def answered(caller: socket.socket) -> None:
        caller.recv(65536)
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        caller.sendall(head.encode() + body)

    return answered


def garbage(caller: socket.socket) -> None:
    caller.recv(65536)
    caller.sendall(random.Random(0).randbytes(2000))


def drip(caller: socket.socket) -> None:
    """An answer that has no end."""
    caller.recv(65536)
    caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while True:
        caller.sendall(b" ")
        time.sleep(1)


SERVERS = {
    "mute": mute,
    "closes at once": gone,
    "error 500": answer("500 Internal Server Error", b"{}"),
    "error 403": answer("403 Forbidden", b"<html>no</html>", "text/html"),
    "empty answers": answer("200 OK", b"{}"),
    "a web page": answer("200 OK", b"<html>welcome</html>", "text/html"),
    "garbage": garbage,
    "no end": drip,
    "nobody": None,
}
TRACKERS = ("mlflow", "wandb")
COUNT = len(SERVERS) * len(TRACKERS)
QUICK = ()
"""None: W&B's service takes seconds to start."""


def prepare(materials: Materials) -> Materials:
    return materials


@contextmanager
def serving(answered: Callable[[socket.socket], None] | None) -> Iterator[int]:
    """A server in a process of its own; its port. Without a function nobody listens there."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    pid = os.fork() if answered else 0
    if answered and pid == 0:
        with suppress(BaseException):
            os.setsid()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            while True:
                caller, _ = listening.accept()
                if os.fork() == 0:
                    answered(caller)
                    break
                caller.close()
        os._exit(0)
    listening.close()
    try:
        yield port
    finally:
        if answered:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def trial(setting: Materials, folder: Path, _: random.Random, number: int) -> Verdict:
    tracker, name = TRACKERS[number % 2], [*SERVERS][number // 2]
    with serving(SERVERS[name]) as port:
        address = f"http://127.0.0.1:{port}"
        environment = {
            "PINN_ODELORA_CACHE": str(folder / "cache"),
            "WANDB_BASE_URL": address,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online",
            "MLFLOW_TRACKING_URI": address,
            "HOME": str(folder),
        }
        words = asked(("seed=0", "pretrain.seed=0", f"logger={tracker}"), folder / "run")
        begun = time.monotonic()
        left = child.run(program(*words), folder, environment, limit=LIMIT)
    what = f"{tracker}, {name}: {time.monotonic() - begun:.0f} s"
    if left.code is None or left.traceback:
        return Verdict("hang" if left.code is None else "traceback", False, what, left.last)
    if left.code == 2 and tracker == "mlflow":
        return Verdict("refused", "cannot be used" in left.last, what, left.last)
    if left.code != 0:
        return Verdict(f"code {left.code}", False, what, left.last)
    differs = difference(outcome(folder / "run"), outcome(setting.of("finished") / "run"))
    return Verdict("other bits" if differs else "ran whole", not differs, what, differs or left.last)
