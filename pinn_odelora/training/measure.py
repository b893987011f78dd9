"""What is measured of a network that is being adapted, under the same names for every method.

The update of layer l is D_l = s(B A), its product, when factors are trained, and W_l - W0_l when all weights are. Its
effective rank is exp(H(σ / Σσ)), H the entropy of the normalised singular values (Roy and Vetterli, 2007).
The alignment of a step is the cosine between the change ΔW of all adapted weights and -G, the descent direction of
full fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, linalg, nn

from pinn_odelora.geometry import sobol
from pinn_odelora.lowrank.balance import balance_defect
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.metrics import max_error, relative_l2
from pinn_odelora.points import Points
from pinn_odelora.problem import Problem

Layers = Mapping[str, nn.Linear | LowRankLinear]

SHOWN = 8
"""How many singular values of a layer are logged."""
FINER = 8
"""How many times more test points the errors before and after a run have than those of its history."""


def errors(problem: Problem, solution: nn.Module, n: int) -> dict[str, float]:
    """Relative L2 and largest error at n points that do not depend on the run."""
    p = test_points(problem, n).to(next(solution.parameters()))
    with torch.no_grad():
        prediction, reference = solution(p), problem.reference(p)
    return {"error/rel_l2": relative_l2(prediction, reference), "error/max": max_error(prediction, reference)}


def test_points(problem: Problem, n: int) -> Points:
    """The same n points of the region for every run, float64."""
    return problem.region.sample(n, lambda n, d: sobol(n, d, seed=999))


def weights(layers: Layers) -> dict[str, Tensor]:
    """Copies of the effective weights by layer name, (m, n) each."""
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


def singular_values(layer: LowRankLinear) -> Tensor:
    """Those of s·B A, (r,), from the r × r core of two thin factorisations."""
    R_B = linalg.qr(layer.B.double()).R
    R_A = linalg.qr(layer.A.double().mT).R
    return layer.scale * linalg.svdvals(R_B @ R_A.mT)


def effective_rank(sigma: Tensor) -> float:
    """exp of the entropy of σ/Σσ; 0 for a zero matrix."""
    total = float(sigma.sum())
    if not total > 0:
        return 0.0
    p = sigma[sigma > 0] / total
    return math.exp(-float((p * p.log()).sum()))


@torch.no_grad()
def spectrum(layers: Layers, pretrained: Mapping[str, Tensor]) -> dict[str, float]:
    """Singular values, effective rank (mean over layers) and Frobenius norm of the updates."""
    values = {
        name: singular_values(layer)
        if isinstance(layer, LowRankLinear)
        else linalg.svdvals((layer.weight - pretrained[name]).double())
        for name, layer in layers.items()
    }
    shown = {
        f"lora/{name}/singular_value_{i + 1}": float(x) for name, v in values.items() for i, x in enumerate(v[:SHOWN])
    }
    ranks = [effective_rank(v) for v in values.values()]
    norm = math.sqrt(sum(float(v.square().sum()) for v in values.values()))
    return {"lora/effective_rank": sum(ranks) / len(ranks), "lora/norm": norm} | shown


@torch.no_grad()
def conditioning(layers: Layers) -> dict[str, float]:
    """‖BᵀB - AAᵀ‖ and the condition numbers of AAᵀ and BᵀB, the worst over the layers; NaN without factors."""
    pairs = [layer.factors for layer in layers.values() if isinstance(layer, LowRankLinear)]
    if not pairs:
        return {"lora/balance": math.nan, "lora/cond_A": math.nan, "lora/cond_B": math.nan}
    return {
        "lora/balance": max(float(balance_defect(y)) for y in pairs),
        "lora/cond_A": max(_gram_condition(y.A) for y in pairs),
        "lora/cond_B": max(_gram_condition(y.B) for y in pairs),
    }


def _gram_condition(factor: Tensor) -> float:
    sigma = linalg.svdvals(factor.double())
    return float((sigma[0] / sigma[-1]) ** 2) if sigma[-1] > 0 else math.inf


def alignment(before: Mapping[str, Tensor], after: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> float:
    """cos(ΔW, -G) over all adapted weights together, NaN when either is zero."""
    change = torch.cat([(after[name] - before[name]).flatten() for name in gradient])
    G = torch.cat([g.flatten() for g in gradient.values()])
    scale = float(linalg.vector_norm(change) * linalg.vector_norm(G))
    return -float(change @ G) / scale if scale > 0 else math.nan


def norm_of(tensors: list[Tensor]) -> float:
    """The Euclidean norm of several tensors together."""
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors))
