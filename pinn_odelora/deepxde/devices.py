"""torch's default device, which DeepXDE makes a GPU where there is one.

Points come from the CPU and go where the network is, so that this package computes with the CPU as the default; the
user's functions have that of the points as theirs, on which they put the tensors that they make.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def default_device(device: str | torch.device) -> Iterator[None]:
    """Another default device meanwhile."""
    before = torch.get_default_device()
    if before.type == torch.device(device).type:  # setting it adds overhead to every call
        yield
        return
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        if torch.get_default_device() != before:
            torch.set_default_device(before)
