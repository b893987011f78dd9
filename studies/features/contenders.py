"""Who is compared, by which step size: the Euler step of either flow, Adam, LoRA+ and Muon on factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pinn_odelora import RungeKutta
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.methods import Method, factor_muon, lora_adam, lora_gd, lora_plus, odelora

BASE = 64
"""The width at which a ratio that grows with the width is the published one, and at which step sizes are chosen."""
RATIO = 16.0
"""Of LoRA+: the learning rate of B over that of A."""


class Contender(NamedTuple):
    """``make``: from step size and width to the method. ``small``: a step size of first order, by parametrisation, in
    which nothing of what ``predictions`` calls later shows in ten steps at any width. ``starts``: the published one
    first. ``scan``: exponents of 2 among which the search for the best step size begins.
    """

    make: Callable[[float, int], Method]
    small: dict[str, float]
    starts: tuple[str, ...]
    label: str
    scan: range = range(-14, 1, 2)
    has_flow: bool = False


def rates(eta: float) -> dict[str, float]:
    return {"standard": eta, "mean-field": eta}


CONTENDERS = {
    "odelora": Contender(
        lambda h, n: odelora(RungeKutta(EULER, h=h)),
        {"standard": 1e-5, "mean-field": 1e-3},
        ("orthonormal", "pissa", "aligned"),
        "ODELoRA",
        scan=range(-6, 11, 2),
        has_flow=True,
    ),
    "lora_gd": Contender(
        lambda h, n: lora_gd(RungeKutta(EULER, h=h)),
        {"standard": 1e-5, "mean-field": 1e-3},
        ("zero", "orthonormal"),
        "LoRA",
        scan=range(-6, 11, 2),
        has_flow=True,
    ),
    "lora_plus": Contender(lambda lr, n: lora_plus(lr, RATIO), rates(1e-6), ("zero", "orthonormal"), "LoRA+, ratio 16"),
    "lora_plus_n": Contender(
        lambda lr, n: lora_plus(lr * BASE / n, RATIO * n / BASE),
        rates(1e-6),
        ("zero", "orthonormal"),
        "LoRA+, ratio n/4",
    ),
    "lora_adam": Contender(lambda lr, n: lora_adam(lr), rates(1e-6), ("zero", "orthonormal"), "Adam-LoRA"),
    "factor_muon": Contender(lambda lr, n: factor_muon(lr), rates(1e-5), ("zero", "orthonormal"), "Muon"),
}
SWEPT = (
    *((name, contender.starts[0]) for name, contender in CONTENDERS.items()),
    ("odelora", "aligned"),
)
"""Methods and starts whose step size is chosen: the published start of each, and the other one of ``odelora``."""
