"""The unknown coefficients of a DeepXDE model, ``dde.Variable``: tensors that the user's functions read by themselves.

Whoever trains them in double precision, with bounds or from another value has tensors of their own. While a function of
the user runs, every operation of torch gets those in place of the variables, wherever they were found: in globals,
closures, or attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pinn_odelora.errors import InputError


class Substituted(TorchFunctionMode):
    """A mode in which torch computes with other tensors.

    Args:
        pairs: (variable, tensor to take in its place).
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.pairs = [(id(variable), other) for variable, other in pairs]

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = {name: self._exchanged(x) for name, x in (kwargs or {}).items()}
        return function(*map(self._exchanged, args), **kwargs)

    def _exchanged(self, x: Any) -> Any:
        if isinstance(x, list | tuple) and any(isinstance(part, Tensor) for part in x):
            return type(x)([self._exchanged(part) for part in x])
        if isinstance(x, Tensor):
            return next((other for variable, other in self.pairs if variable == id(x)), x)
        return x


def names(variables: Sequence[Tensor], functions: Iterable[Callable], taken: Iterable[str]) -> list[str]:
    """What the user calls each variable in the first function that reads it; ``variable1``, … where that is not known
    or is the name of something else.

    Raises:
        InputError: if a variable is not a single number.
    """
    for k, variable in enumerate(variables):
        if not isinstance(variable, Tensor) or variable.numel() != 1:
            raise InputError(
                f"External trainable variable {k + 1} must be a dde.Variable of a single number; a field that is "
                "unknown is an output of the network."
            )
    seen = [read for function in functions for read in _reads(function)]
    found: list[str] = []
    for k, variable in enumerate(variables):
        candidates = [name for name, x in seen if x is variable and name not in {*taken, *found}]
        found.append(next(iter(candidates), f"variable{k + 1}"))
    return found


def _reads(function: Callable) -> list[tuple[str, Any]]:
    """Globals and variables of the closure that a function reads, by name; all globals, for those of functions that it
    calls.
    """
    function = inspect.unwrap(function)
    if not inspect.isfunction(function):
        return []
    closed = inspect.getclosurevars(function)
    return [*closed.nonlocals.items(), *closed.globals.items(), *function.__globals__.items()]
