"""Exponents of the width n that counting predicts, for every method, start, parametrisation and quantity.

A hidden layer z = W h has n inputs and n outputs; h, its derivative φ' and the residual e have entries of order 1, so
‖h‖ ~ n^½. δ = e φ' ⊙ (readout) is the gradient by z, G = δ hᵀ. Write ‖δ‖ ~ n^d: the entries of a standard readout are
N(0, 1/n), hence d = 0; those of a mean-field readout N(0, 1/n²), hence d = −½. A motion ΔW changes the features by
‖ΔW h‖ / n^½ per unit and the outputs by δᵀΔW h. Rank r and number of points are of order 1. With step size η:

**First order**, one step, or few of a small step.

* ``odelora`` and ``lora_gd`` from random balanced factors of size σ (``orthonormal``; ``pissa`` of a random W0): ΔW is
  −η P_T(G), or −ησ (P_B G + G P_A), with random subspaces: ‖P_B δ‖ ~ n^(d−½), hᵀP_A h ~ 1, so that ΔW h is
  η (P_B δ ‖h‖² + δ hᵀP_A h), of norm n^(d+½). Features d, outputs 2d.
* The same from factors along the singular vectors of G (``aligned``): P_T(G) = G, full fine-tuning. ΔW h = −η δ ‖h‖²:
  features d + ½, outputs 2d + 1.
* ``lora_gd`` from B = 0, rows of A of norm 1 (``zero``): ΔW h = −η δ ‖A h‖², ‖A h‖ ~ 1: features d − ½, outputs 2d.
* Adam moves every entry by η. From B = 0: ΔB A h has entries of order η: features 0, outputs η Σ|δ| ~ d + ½. From
  ``orthonormal``: ΔA h = η Σ|h| ~ n, times entries n^(−½) of B: features ½, outputs d + ½.
* LoRA+ is Adam with another constant. Its authors' rule is a ratio of the rates that grows as n, here η_A ∝ 1/n.
  Then ΔA h ~ 1: from B = 0 as Adam; from ``orthonormal`` features 0 (of ΔB), outputs d + ½.
* Muon moves A (r, n) by a matrix of spectral norm η, B (n, r) by one of η (n/r)^½, whose entries are of order η. From
  B = 0: as Adam. From ``orthonormal``: ΔA h ~ n^½ at most, times n^(−½): features 0, outputs d + ½.

**Later** these are not what counts.

* Both flows turn A towards h and B towards δ: cosines c_A, c_B from n^(−½) on grow exponentially in flow time, at a
  rate ‖δ‖‖h‖/σ ~ n^(d+½), until outputs have moved by order 1. From B = 0 ‖A h‖ does, at the same rate. So d = 0 is
  over in a time n^(−½) log n, and d = −½ in a time log n. Where the outputs have moved by order 1 along δ, the features
  have by n^(−d−½): ``fitted``. The largest eigenvalue is then ‖δ‖‖h‖ ~ n^(d+½) (n^(2d+1) from ``aligned``), and the
  largest stable step, which is about the best one for many steps, its inverse.
* For Adam, LoRA+ and Muon the product ΔB ΔA of two motions takes over: ΔB ΔA h has entries η² n for Adam and LoRA+, η²
  n^½ for Muon: features 1 and ½, outputs d + 3/2 and d + 1. LoRA+ with the growing ratio: features 0, outputs d + ½.
  Outputs move by order 1 at the smaller step of both regimes.

So between one step and many steps an exponent may be anywhere between those of ``first`` and those of what follows.
"""

from __future__ import annotations

from typing import NamedTuple

D = {"standard": 0.0, "mean-field": -0.5}
"""d, the exponent of ‖δ‖."""


class Exponents(NamedTuple):
    """Of the changes of features and of outputs."""

    features: float
    outputs: float


class Prediction(NamedTuple):
    """``first``: of one small step; ``later``: of what takes over; ``fitted``: where outputs have moved by order 1;
    ``step``: of the best step size after many steps.
    """

    first: Exponents
    later: Exponents
    fitted: Exponents
    step: float

    def between(self, quantity: str) -> tuple[float, float]:
        """The smallest and the largest exponent of the three regimes."""
        found = [getattr(x, quantity) for x in (self.first, self.later, self.fitted)]
        return min(found), max(found)


def predicted(method: str, start: str, parametrisation: str) -> Prediction:
    """By the counting above; ``method`` is a name of ``contenders``."""
    d = D[parametrisation]
    fitted = Exponents(0.0 - (d + 0.5), 0.0)
    if method in ("odelora", "lora_gd"):
        first = {
            "zero": Exponents(d - 0.5, 2 * d),
            "aligned": Exponents(d + 0.5, 2 * d + 1),
        }.get(start, Exponents(d, 2 * d))
        along = Exponents(d + 0.5, 2 * d + 1)
        step = 2 * d + 1 if start == "aligned" else d + 0.5
        return Prediction(first, along, fitted, 0.0 - step)
    later = {
        "lora_adam": Exponents(1.0, d + 1.5),
        "lora_plus": Exponents(1.0, d + 1.5),
        "lora_plus_n": Exponents(0.0, d + 0.5),
        "factor_muon": Exponents(0.5, d + 1.0),
    }[method]
    spread = start != "zero" and method in ("lora_adam", "lora_plus")
    first = Exponents(0.5 if spread else 0.0, d + 0.5)
    # Outputs moved by order 1: η n^first in the one regime, η² n^later in the other.
    both = later.outputs if method == "lora_plus_n" else later.outputs / 2
    return Prediction(first, later, fitted, 0.0 - max(first.outputs, both))


def size_exponent(method: str) -> float:
    """Of the change by one step in σ, the size of balanced factors: P_T knows no size; the gradient of a factor is the
    size of the other one squared in the product; other methods move a factor by the step whatever its gradient.
    """
    return {"odelora": 0.0, "lora_gd": 1.0}.get(method, 0.5)
