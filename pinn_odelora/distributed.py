"""One problem in several processes: each evaluates its part of the points, and all know all residuals.

The points of a step are a function of the seed, the step and the batch size alone, so every process draws them all and
nothing is sent for it. Of the N points of a term process p of n evaluates about N/n, and

    L = Σ_p L_p ,   ∂L/∂y = Σ_p ∂L_p/∂y        are summed over the processes,
    r ,  J                                      are gathered, row by row in the order of the points.

What follows from them, the step and whatever is decided by it, every process computes for itself from the same numbers.
So parameters stay equal to the last bit without being sent, and the rest of the code knows of one process only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class Processes:
    """One process, alone: it evaluates everything, and there is nothing to exchange.

    Attributes:
        rank, number: which of how many processes this is.
    """

    rank, number = 0, 1

    def part(self, n: int) -> slice:
        """Which of n rows this process evaluates; all of them where there are fewer than processes."""
        return slice(0, n)

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum of each tensor over the processes."""
        return list(tensors)

    def gathered(self, rows: Tensor, n: int) -> Tensor:
        """All n rows from the part of each process."""
        return rows

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag

    def clock(self) -> float:
        """Seconds, the same in all processes: what is left of a budget must be."""
        return time.perf_counter()


ALONE = Processes()


class TorchProcesses(Processes):
    """Those of torch's default process group; what one of them does here all have to do, in the same order."""

    def __init__(self) -> None:
        self.rank, self.number = distributed.get_rank(), distributed.get_world_size()
        on_gpu = distributed.get_backend() == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def part(self, n: int) -> slice:
        return self._parts(n)[self.rank]

    def _parts(self, n: int) -> list[slice]:
        if n < self.number:
            return [slice(0, n)] * self.number
        ends = [n * k // self.number for k in range(self.number + 1)]
        return [slice(*ends[k : k + 2]) for k in range(self.number)]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        flat = torch.cat([x.reshape(-1).double() for x in tensors]).to(self.device)
        distributed.all_reduce(flat)
        parts = flat.split([x.numel() for x in tensors])
        return [part.view(x.shape).to(x) for part, x in zip(parts, tensors, strict=True)]

    def gathered(self, rows: Tensor, n: int) -> Tensor:
        if n < self.number:
            return rows
        sizes = [part.stop - part.start for part in self._parts(n)]
        # The parts sent must be of one size.
        sent = rows.new_zeros(max(sizes), *rows.shape[1:], device=self.device)
        sent[: len(rows)] = rows
        found = [torch.empty_like(sent) for _ in sizes]
        distributed.all_gather(found, sent)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)]).to(rows.device)

    def any(self, flag: bool) -> bool:
        seen = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(seen, distributed.ReduceOp.MAX)
        return bool(seen)

    def clock(self) -> float:
        now = torch.tensor(time.perf_counter(), dtype=torch.float64, device=self.device)
        distributed.broadcast(now, 0)
        return float(now)


def processes() -> Processes:
    """Those that torch.distributed has been started with."""
    started = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return TorchProcesses() if started else ALONE


def end() -> None:
    """Part with the other processes, if there are any."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
