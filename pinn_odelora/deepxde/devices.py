"""torch's default device, which DeepXDE makes a GPU where there is one.

Points come from the CPU and go where the network is, so that this package computes with the CPU as the default; the
user's functions have that of the points as theirs, on which they put the tensors that they make.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def default_device(device: str | torch.device) -> Iterator[None]:
    """Another default device meanwhile."""
    device = torch.device(device)
    same = torch.get_default_device().type == device.type
    with nullcontext() if same else device:  # setting it adds overhead to every call
        yield
