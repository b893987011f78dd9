"""Memory of the process: keep what is freed, since the next step allocates the same again.

glibc returns large blocks to the system when they are freed, and the next one costs a page fault for every page. Steps
that free and allocate a few tens of megabytes spend a fifth of their time on that.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Tell glibc to keep what the process frees; without glibc, do nothing. For programs to call, not for libraries."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGEST)
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TOP_PAD, 2**26)
