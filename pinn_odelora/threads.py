"""Threads of torch, and of the linear algebra of NumPy and SciPy, on the CPU.

For networks of the usual size, tens to a few hundred units wide, a second thread makes steps slower: their operations
are too small to be shared. So a step takes one unless it is told otherwise, and leaves the setting as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import scipy.linalg  # noqa: F401 -- its library is found only once it is loaded
import torch
from threadpoolctl import ThreadpoolController


def set_threads(number: int) -> None:
    """So many threads from now on, in this process."""
    torch.set_num_threads(number)
    _libraries().limit(limits=number, user_api="blas")


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """So many threads inside the block, as many as before after it; None leaves them alone."""
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    with _libraries().limit(limits=number, user_api="blas"):
        # Setting the number costs torch more than asking for it.
        if number != before:
            torch.set_num_threads(number)
        try:
            yield
        finally:
            if number != before:
                torch.set_num_threads(before)


@cache
def _libraries() -> ThreadpoolController:
    """Those that are loaded, found once: looking for them takes longer than a step."""
    return ThreadpoolController()
