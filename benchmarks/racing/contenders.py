"""Who races: this package with its default settings, and what a user could pick instead.

A rival with a learning rate gets the best of several, found on a seed that is not reported, and lets it fall to zero by
a cosine over its time. L-BFGS and self-scaled Broyden choose their steps by a strong Wolfe line search and have nothing
to sweep; they need points that stay, either for ever or, L-BFGS ``resampled``, for a while, after which it starts with
new points and an empty memory. On all weights self-scaled Broyden races at width 40, since it keeps a square matrix.
Rivals on factors have rank 4 everywhere: rank 8 is the default's where its own batches stay under-determined.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from racing.cases import CASES

CONFIGS = Path(__file__).parents[2] / "configs"


class Contender(NamedTuple):
    """One way to adapt a network.

    ``overrides``: of the configuration, as on the command line.
    ``rates``: learning rates to choose from; none for a method that chooses its steps itself.
    ``renewed``: evaluations after which points and optimiser are new; None for points as configured.
    ``package``: what has to be installed for it.
    ``cases``: the names of those that it races on; None is all.
    """

    name: str
    overrides: tuple[str, ...] = ()
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


OURS = "odelora"
ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Learning rates of the sweep, for Adam and SOAP."""
FLOW_CASES = ("burgers", "heat", "kovasznay")
MOMENTUM_CASES = ("burgers", "heat", "burgers_wide", "convection_wide", "kovasznay_wide")
NARROW_CASES = tuple(case.name for case in CASES.values() if case.width <= 40)
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
        Contender("full_soap", ("method=full_soap",), rates=ADAM_RATES, package="pytorch_optimizer"),
        Contender("lora_lbfgs", ("method=lora_lbfgs", "lora.rank=4")),
        Contender("full_lbfgs", ("method=full_lbfgs",)),
        Contender("full_lbfgs_resampled", ("method=full_lbfgs", "points.fresh=true"), renewed=100),
        Contender("lora_ssbroyden", ("method=lora_ssbroyden", "lora.rank=4")),
        Contender("full_ssbroyden", ("method=full_ssbroyden",), cases=NARROW_CASES),
        Contender(NATURAL, ("method=full_implicit", "points.batch_size=1000", "integrator.momentum=0")),
        Contender(NATURAL_EVEN, ("method=full_natural",)),
        Contender("full_natural_momentum", ("method=full_implicit", "points.batch_size=1000"), cases=MOMENTUM_CASES),
        *SCHEMES.values(),
    )
}
RIVALS = tuple(name for name in CONTENDERS if name != OURS and name not in SCHEMES and not name.startswith(NATURAL))
"""The rivals of which the best one counts: Adam, SOAP, L-BFGS and self-scaled Broyden."""
BROYDEN = tuple(name for name in RIVALS if name.endswith("ssbroyden"))
FIELD = {
    "the best of Adam, SOAP and L-BFGS": tuple(name for name in RIVALS if name not in BROYDEN),
    "self-scaled Broyden, on factors or all weights": BROYDEN,
    "natural gradient on all weights, on even points": (NATURAL_EVEN,),
    "natural gradient on all weights, with our points and best iterate": (NATURAL,),
}
"""What the headline states one beside the other; of several contenders the best on each case."""
