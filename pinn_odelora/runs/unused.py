"""Settings that a method does not look at: a run refuses them, a sweep over methods leaves them to the others."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from pinn_odelora import methods
from pinn_odelora.optim.methods import Method


def unused(method: Method, given: Sequence[str]) -> str:
    """The sentence for the first key, or group, of a configuration that has no effect with a method; else empty."""
    inside = lambda group: [key for key in given if key == group or key.startswith(f"{group}.")]
    if method.integrator is None and (keys := inside("integrator")):
        takes = lambda f: "integrator" in inspect.signature(f).parameters
        others = ", ".join(name for name, f in inspect.getmembers(methods, inspect.isfunction) if takes(f))
        return f"{keys[0]} is given, but {method.name} takes no integrator; methods that do: {others}."
    if method.trains == "weights" and (keys := [key for key in inside("lora") if key != "lora.targets"]):
        advice = "lora.targets alone can be set, for the layers that are measured"
        return f"{keys[0]} is given, but {method.name} trains all weights and has no factors; {advice}."
    return ""


def note(method: Method, given: Sequence[str]) -> str:
    """What a job of a sweep says of such a key; empty where there is none."""
    said = unused(method, given)
    return said and f"{said.partition(';')[0].removesuffix('.')}: it has no effect on this job."
