"""Threads of torch on the CPU, for a while.

For networks of the usual size, tens to a few hundred units wide, a second thread makes steps slower: their operations
are too small to be shared. So a step takes one unless it is told otherwise, and leaves the setting as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """So many threads inside the block, as many as before after it; None leaves them alone."""
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
