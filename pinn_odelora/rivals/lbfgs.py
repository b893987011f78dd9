"""L-BFGS with a strong Wolfe line search (Liu and Nocedal, 1989) that keeps working when the loss is small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pinn_odelora.optim.groups import parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rules import whole


class LBFGS(torch.optim.LBFGS):
    """``torch.optim.LBFGS`` without tolerances, on a scaled loss: the budget ends it.

    torch leaves a pair (s, y) out of its memory when yᵀs ≤ 1e-10, an absolute number. Residual losses reach it at
    about 1e-6, and the iteration then stalls on a stale memory. The method itself does not depend on the scale of
    the loss, so it is given ``scale`` · L; ``step`` returns L.

    Args:
        params: what is minimised over.
        history: pairs kept.
        iterations: iterations in one ``step``.
        scale: the factor.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], history: int = 100, iterations: int = 1, scale: float = 1e8
    ) -> None:
        super().__init__(
            params,
            lr=1.0,
            max_iter=iterations,
            max_eval=25 * iterations,
            history_size=history,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        self.scale = scale

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        def scaled() -> Tensor:
            loss = closure()
            for p in self.param_groups[0]["params"]:
                # Gradients by factors come with their columns in a row, which torch's flattening refuses.
                p.grad = (p.grad * self.scale).contiguous()
            return loss * self.scale

        return super().step(scaled) / self.scale

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps defaults, state and groups alone, and its own L-BFGS cannot be copied.
        kept = {name: getattr(self, name) for name in ("scale", "_params", "_numel_cache")}
        return {**super().__getstate__(), **kept}


def lora_lbfgs(history: int = 100) -> Method:
    """L-BFGS on the factors with a strong Wolfe line search (Liu and Nocedal, 1989), one iteration a step.

    Args:
        history: pairs (s, y) that are kept.
    """
    return _lbfgs("lora_lbfgs", "factors", history)


def full_lbfgs(history: int = 100) -> Method:
    """L-BFGS on all weights with a strong Wolfe line search (Liu and Nocedal, 1989), one iteration a step.

    Args:
        history: pairs (s, y) that are kept.
    """
    return _lbfgs("full_lbfgs", "weights", history)


def _lbfgs(name: str, trains: Literal["factors", "weights"], history: int) -> Method:
    history = whole(1).check("history", history)
    make = lambda groups: LBFGS(parameters(groups), history)
    return Method(name, trains, make, settings={"history": history}, one_loss=True)
