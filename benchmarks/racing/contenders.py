"""Who races: this package with its default settings, and what a user could pick instead.

A rival with a learning rate gets the best of several, found on a seed that is not reported, and lets it fall to zero by
a cosine over its time. L-BFGS chooses its steps by a strong Wolfe line search and has nothing to sweep; it needs points
that stay, either for ever or, ``resampled``, for a while, after which it starts with new points and an empty memory.
Rivals on factors have rank 4 everywhere: rank 8 is the default's where its own batches stay under-determined.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pinn_odelora.optim.groups import parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.lbfgs import LBFGS

CONFIGS = Path(__file__).parents[2] / "configs"


class Contender(NamedTuple):
    """One way to adapt a network.

    ``overrides``: of the configuration, as on the command line.
    ``method``: what is trained and how, where it is not the configuration's.
    ``rates``: learning rates to choose from; none for a method that chooses its steps itself.
    ``renewed``: evaluations after which points and optimiser are new; None for points as configured.
    ``package``: what has to be installed for it.
    ``cases``: the names of those that it races on; None is all.
    """

    name: str
    overrides: tuple[str, ...] = ()
    method: Callable[[], Method] | None = None
    rates: tuple[float, ...] = ()
    renewed: int | None = None
    package: str | None = None
    cases: tuple[str, ...] | None = None

    def races_on(self, case: str) -> bool:
        return self.cases is None or case in self.cases

    @property
    def missing(self) -> str | None:
        """What there is not, so that it cannot race."""
        for override in self.overrides:
            group, _, name = override.partition("=")
            if group == "method" and not (CONFIGS / "method" / f"{name}.yaml").is_file():
                return f"configs/method/{name}.yaml"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package}"
        return None


def lora_lbfgs(history: int = 100) -> Method:
    """L-BFGS on the factors, otherwise as ``full_lbfgs``."""
    return Method("lora_lbfgs", "factors", lambda groups: LBFGS(parameters(groups), history))


def full_soap() -> Method:
    """SOAP on all weights (Vyas et al., 2024, arXiv 2409.11321), as published but for the weight decay.

    The published decay of 0.01 pulls the weights to zero, away from every solution: at the losses of this race it
    would be all that is left to see, so it is off.
    """
    from pytorch_optimizer import SOAP

    settings = {"betas": (0.95, 0.95), "precondition_frequency": 10, "weight_decay": 0}
    return Method("full_soap", "weights", lambda groups: SOAP(parameters(groups), **settings))


OURS = "odelora"
ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Learning rates of the sweep, for Adam and SOAP."""
FLOW_CASES = ("burgers", "heat", "kovasznay")
MOMENTUM_CASES = ("burgers", "heat", "burgers_wide", "convection_wide", "kovasznay_wide")
EXPLICIT = {
    "euler": ("integrator=euler",),
    "heun": ("integrator=heun",),
    "rk4": ("integrator=rk4",),
    "rk4_manifold": ("integrator=rk4", "method.chart=manifold"),
    "bogacki_shampine": ("integrator=bogacki_shampine",),
    "rkc1": ("integrator=rkc1",),
    "rkc2": ("integrator=rkc2",),
}
IMPLICIT = {
    "ros2": ("integrator=ros2",),
    "no_correction": ("integrator.correction=false",),
    "no_momentum": ("integrator.momentum=0",),
}
SCHEMES = {
    name: Contender(name, overrides, cases=FLOW_CASES)
    for name, overrides in {**{n: (*x, "lora.rank=4") for n, x in EXPLICIT.items()}, **IMPLICIT}.items()
}
"""Other discretisations of the flow that our default follows, which find their step sizes themselves; ``no_correction``
and ``no_momentum`` are the default scheme without one of its two additions. They show what stability costs, and are no
rivals. Explicit ones keep to rank 4: the reason for rank 8, an under-determined batch, does not concern their steps.
"""
NATURAL, NATURAL_EVEN = "full_natural", "full_natural_even"
"""Natural gradient on all weights in kernel form, with our correction. ``full_natural_even``: with nothing else of
ours, 1,000 even points at every step, and the last iterate returned. ``full_natural``: with our adaptive batch size,
residual-based sampling and best iterate, too, and a largest batch of 1,000 residuals, the best for it of 1,000, 2,000
and 4,000 on Burgers, Helmholtz and the wide Burgers with seed 101. ``full_natural_momentum``: with our momentum as
well, so that what is left of the difference is the manifold, and the largest batch.
"""
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS),
        Contender("lora_adam", ("method=lora_adam", "lora.rank=4"), rates=ADAM_RATES),
        Contender("full_adam", ("method=full_adam",), rates=ADAM_RATES),
        Contender("full_soap", ("method=full_adam",), full_soap, rates=ADAM_RATES, package="pytorch_optimizer"),
        Contender("lora_lbfgs", ("method=lora_adam", "points=fixed", "lora.rank=4"), lora_lbfgs),
        Contender("full_lbfgs", ("method=full_lbfgs",)),
        Contender("full_lbfgs_resampled", ("method=full_lbfgs", "points.fresh=true"), renewed=100),
        Contender(NATURAL, ("method=full_implicit", "points.batch_size=1000", "integrator.momentum=0")),
        Contender(
            NATURAL_EVEN,
            ("method=full_implicit", "points=fresh", "points.best_iterate=false", "integrator.momentum=0"),
        ),
        Contender("full_natural_momentum", ("method=full_implicit", "points.batch_size=1000"), cases=MOMENTUM_CASES),
        *SCHEMES.values(),
    )
}
RIVALS = tuple(name for name in CONTENDERS if name != OURS and name not in SCHEMES and not name.startswith(NATURAL))
"""Those that the targets speak of as Adam, SOAP and L-BFGS."""
