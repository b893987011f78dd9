"""Loss weights by the neural tangent kernel, and by gradient norms: what each term says of itself, made equal.

With the problem's own weights w_k and multipliers λ_k a step minimises

    L_λ = Σ_k λ_k L_k ,        L_k = w_k · mean_i |r_k(x_i)|² .

Let z be the coordinates of what is trained and J_k = ∂r_k/∂z at the N_k points of term k, without any weight. Along the
gradient flow of mean|r_k|² alone each entry of r_k decays at a rate that is on average proportional to T_k,

    ntk         T_k = tr J_k J_kᵀ / N_k ,              λ̂_k = Σ_j T_j / T_k        (Wang, Yu and Perdikaris, 2022)
    gradnorm    T_k = ‖∂ mean|r_k|² / ∂z‖ ,            λ̂_k = Σ_j T_j / T_k        (Wang et al., 2021 and 2023)

so that ntk gives all terms the same mean rate, gradnorm the same size of gradient. T_k contains neither w_k nor λ_k:
w_k = 10 makes a term count ten times as much as it would with w_k = 1, whatever the weighting. A trace is divided by
the number of points because the loss is a mean; for equal numbers it is the ratio tr K / tr K_k of the source.

z are the coordinates in which the method follows its gradient, so that frozen weights do not count: orthonormal tangent
coordinates of the product B A for ODELoRA, which follows the projected flow of the product; the entries of A and B for
methods that train the factors as they are; the entries of the weights where these are trained. A kernel of the full
adapted weight would count directions in which no step can go.

Everything follows from the linearisation at the start of a step, without a further sweep where it fits its memory. A
term whose T_k is below 1e-6 of the sum is weighted as if it were that much, since 1/T_k has no bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from pinn_odelora.linearisation import Coordinates, Linearisation
from pinn_odelora.linearisation.coordinates import Frames
from pinn_odelora.manifolds.tangent import FactorFrame, Frame, Stretch
from pinn_odelora.manifolds.variables import frames_of
from pinn_odelora.weighting.settings import Weighting

LEAST = 1e-6
"""The smallest part of Σ_j T_j that a term is taken to have."""
OFTEN, SELDOM = 1, 100
"""Steps between two renewals where they cost no evaluation of their own, and elsewhere."""


@dataclass
class LossWeights:
    """λ_k, and when and by what they are renewed.

    Args:
        settings: the kind, and how often.
        weights: w_k by term.
        groups: parameter groups of all that is trained, see ``Method.groups``.
        metric: of pairs, that of their ``product`` or that of the ``factors``.
        linearises: whether the steps of the method linearise anyway.

    Attributes:
        multipliers: λ_k by term.
        former: those of the step before.
        begun: steps so far.
        renewed: renewals so far.
    """

    settings: Weighting
    weights: Mapping[str, float]
    groups: Sequence[dict[str, Any]] = ()
    metric: Literal["product", "factors"] = "product"
    linearises: bool = True
    multipliers: dict[str, float] = field(default_factory=dict)
    former: dict[str, float] = field(default_factory=dict)
    begun: int = 0
    renewed: int = 0

    def __post_init__(self) -> None:
        self.multipliers = self.multipliers or dict.fromkeys(self.weights, 1.0)
        self.former = dict(self.multipliers)

    @property
    def active(self) -> bool:
        """Whether there is anything to balance: the only term of a loss has λ = 1."""
        return self.settings.kind != "fixed" and len(self.weights) > 1

    def begin(self) -> bool:
        """A step starts; whether λ_k are renewed at its first evaluation."""
        self.former = dict(self.multipliers)
        self.begun += 1
        every = self.settings.every or (OFTEN if self.linearises else SELDOM)
        return self.active and (self.begun - 1) % every == 0

    def renew(self, around: Linearisation) -> None:
        """Take λ_k from a linearisation at the present parameters, whatever λ_k it has been weighted by."""
        found = multipliers(self.sizes(around))
        keep = self.settings.average if self.renewed else 0.0
        self.multipliers |= {k: keep * self.multipliers[k] + (1 - keep) * x for k, x in found.items()}
        self.renewed += 1

    def sizes(self, around: Linearisation) -> dict[str, float]:
        """T_k by term."""
        frames = frames_of(self.groups, self.metric)
        applied = {k: 2 * w * around.multipliers.get(k, 1.0) for k, w in self.weights.items()}
        ntk = self.settings.kind == "ntk"
        found = traces(around, frames) if ntk else gradient_norms(around, frames)
        return {k: (1 if ntk else 2) * found[k] / x for k, x in applied.items()}

    def of(self, terms: Mapping[str, Tensor], multipliers: Mapping[str, float] | None = None) -> Tensor:
        """Σ_k λ_k L_k of the losses L_k, with the λ_k in force unless others are given."""
        found = self.multipliers if multipliers is None else multipliers
        return sum(found.get(name, 1.0) * x for name, x in terms.items())

    def state(self) -> dict[str, Any]:
        """Plain numbers to continue from."""
        return {"multipliers": dict(self.multipliers), "begun": self.begun, "renewed": self.renewed}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        self.multipliers = dict(state["multipliers"])
        self.former = dict(self.multipliers)
        self.begun, self.renewed = state["begun"], state["renewed"]


def multipliers(sizes: Mapping[str, float]) -> dict[str, float]:
    """λ̂_k = Σ_j T_j / T_k; nothing where the sum is zero or not finite, so that there is nothing to compare."""
    total = sum(sizes.values())
    if not 0 < total < math.inf:
        return {}
    return {k: total / max(x, LEAST * total) for k, x in sizes.items()}


def traces(around: Linearisation, frames: Frames) -> dict[str, float]:
    """tr J_k J_kᵀ by term k, of the rows as they are weighted, in the coordinates of the frames."""
    diagonal = Coordinates(around, frames).diagonal()
    return {k: float(diagonal[rows].sum()) for k, rows in around.terms.items()}


def gradient_norms(around: Linearisation, frames: Frames) -> dict[str, float]:
    """‖J_kᵀ r_k‖ by term k, of the rows as they are weighted, in the coordinates of the frames."""
    return {
        k: math.sqrt(sum(float(x.double().square().sum()) for n, g in G.items() for x in _in_frame(g, frames.get(n))))
        for k, G in around.term_gradients().items()
    }


def _in_frame(G: Tensor, frame: Frame | FactorFrame | Stretch | None) -> list[Tensor]:
    """The gradient by the coordinates of a frame, as its parts, from that by the variable itself."""
    if frame is None:
        return [G]
    if isinstance(frame, Stretch):
        return [frame.size.to(G) * G]
    left = lambda L: G if L is None else L.to(G).mT @ G
    return [left(L) if R is None else left(L) @ R.to(G).mT for L, R, _ in frame.restrictions]
