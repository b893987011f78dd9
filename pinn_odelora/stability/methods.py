"""Who takes part: discretisations of our flow, and published optimisers of LoRA pairs.

A published optimiser has the default learning rate of its function in ``rivals`` and ``optim.methods``, which is the
middle of its step sizes. An integrator has no default step size, but finds one; the middle of its step sizes was set on
Burgers' equation with a seed that is not reported, so that the interval contains the step sizes that work.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from pinn_odelora import rivals
from pinn_odelora.integrators import RKC, LinearlyImplicit, RungeKutta
from pinn_odelora.integrators.tableau import EULER, RK4
from pinn_odelora.optim import methods
from pinn_odelora.optim.methods import Method, odelora
from pinn_odelora.rivals.lora_gd import lora_gd

OURS = "odelora"
"""The default settings of the package: the linearly implicit scheme with its own step size, rank and points."""


@dataclass(frozen=True)
class Entry:
    """A method with a step size.

    Attributes:
        name: in the study.
        family: ``ours`` follows our flow, ``plain`` is the common practice, ``published`` are optimisers for LoRA.
        middle: of the step sizes.
        make: from a step size, or None, to the method; None where the package does not have it.
        chooses: whether it finds a step size of its own where none is given.
    """

    name: str
    family: str
    middle: float
    make: Callable[[float | None], Method] | None
    chooses: bool = False

    @property
    def present(self) -> bool:
        return self.make is not None

    @property
    def default(self) -> float | None:
        """The step size of a user who gives none; None where the method finds it."""
        return None if self.chooses else self.middle

    def steps(self, places: Sequence[float]) -> list[float]:
        """The step sizes at these powers of ten about the middle; none for default settings alone."""
        return [] if self.name == OURS else [self.middle * 10**place for place in places]


@cache
def _published() -> dict[str, Callable[..., Method]]:
    """Every function of ``optim.methods`` and of ``rivals`` that returns a method, by its name."""
    modules = [methods, *(importlib.import_module(f"{rivals.__name__}.{m.name}") for m in _modules())]
    found = [f for module in modules for f in vars(module).values() if inspect.isfunction(f)]
    return {f.__name__: f for f in found if f.__annotations__.get("return") == "Method"}


def _modules() -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.iter_modules(rivals.__path__))


def _with_rate(name: str, rate: float | None) -> Method:
    return _published()[name]() if rate is None else _published()[name](lr=rate)


def _rival(name: str, family: str = "published") -> Entry:
    """A method with a learning rate; without ``make`` if the package has none of this name."""
    if name not in _published():
        return Entry(name, family, float("nan"), None)
    default = inspect.signature(_published()[name]).parameters["lr"].default
    return Entry(name, family, float(default), partial(_with_rate, name))


def _implicit(h: float | None) -> Method:
    return odelora(LinearlyImplicit(h))


def _euler(h: float | None) -> Method:
    return odelora(RungeKutta(EULER, h))


def _rk4(h: float | None) -> Method:
    return odelora(RungeKutta(RK4, h))


def _rkc2(h: float | None) -> Method:
    return odelora(RKC(2, h))


def _gd(h: float | None) -> Method:
    return lora_gd(RungeKutta(EULER, h))


METHODS = {
    entry.name: entry
    for entry in (
        Entry(OURS, "ours", float("nan"), _implicit, chooses=True),
        Entry("odelora_implicit", "ours", 1e2, _implicit, chooses=True),
        Entry("odelora_euler", "ours", 1e-3, _euler, chooses=True),
        Entry("odelora_rk4", "ours", 1e-3, _rk4, chooses=True),
        Entry("odelora_rkc2", "ours", 1e-2, _rkc2, chooses=True),
        Entry("lora_gd", "plain", 1e-3, _gd, chooses=True),
        _rival("lora_adam", "plain"),
        _rival("lora_plus"),
        _rival("scaled_adamw"),
        _rival("lora_pro_adamw"),
        _rival("lora_rite"),
        _rival("reflora"),
        _rival("altlora_plus"),
    )
}
