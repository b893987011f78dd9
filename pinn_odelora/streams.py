"""What a program prints reaches any terminal, file or pipe, and the program outlives each of them.

A stream whose encoding lacks a letter (κ or → under cp1252, cp936, ASCII) would raise ``UnicodeEncodeError`` in the
middle of a run. It writes ``\\u03ba`` instead, as Python's own standard error does.

A stream that takes nothing any more would end a run by ``OSError``: a pipe whose reader has gone (EPIPE), a terminal
that was closed (EIO), a log on a full disk (ENOSPC). What is written then is lost, and nothing else; a log takes the
next lines where there is space again. When its terminal is closed a process also gets SIGHUP, which it ignores here.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

INTERRUPTED = 130
"""Exit code of a program that was interrupted."""


def escape_what_cannot_be_encoded() -> None:
    """For standard output and error of this process, at the start of a program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has none, and needs none
            stream.reconfigure(errors="backslashreplace")


def lose_what_cannot_be_written() -> None:
    """For standard output and error of this process, at the start of a program, and for its whole life."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file that is opened would have the number of a closed stream, and get what is printed.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before the program started
            lasting = _text(descriptor, "utf-8", "backslashreplace", line_buffering=True)
        else:
            lasting = _lasting(stream, getattr(sys, f"__{name}__"))
        setattr(sys, name, lasting)


@contextmanager
def program() -> Iterator[None]:
    """The whole program inside the block: it outlives its terminal; Ctrl-C, where nothing else is done about it, ends
    it with code 130 and without a traceback.

    SIGTERM keeps its effect, which is immediate, until there is something to save: an exception from a handler can get
    lost in an import.
    """
    lose_what_cannot_be_written()
    escape_what_cannot_be_encoded()
    if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def reveal_interruption(error: BaseException) -> None:
    """Raise the Ctrl-C that an error came of: what it interrupts, a library's clean-up say, can have errors of its own.

    Raises:
        KeyboardInterrupt: if there was one.
    """
    earlier: BaseException | None = error
    while earlier is not None:
        if isinstance(earlier, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        earlier = earlier.__cause__ or earlier.__context__


class _Lasting(io.FileIO):
    """A descriptor that takes everything; what cannot be written is lost."""

    def write(self, data: bytes, /) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written  # None: it would have to wait


def _lasting(stream: TextIO, own: TextIO | None) -> TextIO:
    """The stream in a form that never raises; one that somebody else has put in the place of Python's own stays."""
    buffer = getattr(stream, "buffer", None)
    if stream is not own or type(getattr(buffer, "raw", buffer)) is not io.FileIO:
        return stream
    with suppress(OSError):
        stream.flush()
    how = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return _text(stream.fileno(), stream.encoding, stream.errors, buffered=hasattr(buffer, "raw"), **how)


def _text(descriptor: int, encoding: str, errors: str | None, buffered: bool = True, **how: bool) -> TextIO:
    raw = _Lasting(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw) if buffered else raw, encoding, errors, **how)
