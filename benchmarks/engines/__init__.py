"""The engines that ``step_time.py`` times, one file for each: how a step is taken with it, and nothing else.

A module of an engine has ``build(case, device, **options) -> Step``. It writes the five equations in the words of its
library, as a user would.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from engines.workloads import Case

ENGINES = {
    "deepxde": ("deepxde_step", {}),
    "pina": ("pina_step", {}),
    "jax_grad": ("jax_step", {"form": "grad"}),
    "jax_jvp": ("jax_step", {"form": "jvp"}),
    "jax_jet": ("jax_step", {"form": "jet"}),
    "autograd": ("our_step", {"derivatives": "autograd"}),
    "jets": ("our_step", {"derivatives": "jets"}),
}
"""Engine by name: its module and options. The last two are ours."""
JAX = ("jax_grad", "jax_jvp", "jax_jet")


class Step(NamedTuple):
    """Loss and gradient with respect to all weights, once.

    Args:
        run: takes the step and returns when it is done, on the device too.
        gradient: from what ``run`` returned, the gradients as arrays: ∂L/∂W (m, n), ∂L/∂b (m,), layer by layer.
    """

    run: Callable[[], Any]
    gradient: Callable[[Any], list[Any]]


def build(name: str, case: Case, device: str) -> Step:
    """The step of the engine of that name."""
    module, options = ENGINES[name]
    return importlib.import_module(f"engines.{module}").build(case, device, **options)
