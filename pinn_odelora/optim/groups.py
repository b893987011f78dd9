"""Parameter groups of one LoRA pair each: how an optimiser on the manifold reads and writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

Group = dict[str, Any]


def parameters(groups: list[Group]) -> list[Tensor]:
    """A and B of every pair in order."""
    return [p for group in groups for p in group["params"]]


@contextmanager
def unchanged_on_failure(groups: list[Group]) -> Iterator[None]:
    """Put the parameters back to what they were if what runs inside does not end well."""
    before = [p.detach().clone() for p in parameters(groups)]
    try:
        yield
    except BaseException:
        for p, x in zip(parameters(groups), before, strict=True):
            p.copy_(x)
        raise
