"""What a program prints reaches any terminal, file or pipe.

A stream whose encoding lacks a letter (κ or → under cp1252, cp936, ASCII) would raise ``UnicodeEncodeError`` in the
middle of a run. It writes ``\\u03ba`` instead, as Python's own standard error does.
"""

from __future__ import annotations

import sys


def escape_what_cannot_be_encoded() -> None:
    """For standard output and error of this process, at the start of a program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has none, and needs none
            stream.reconfigure(errors="backslashreplace")
