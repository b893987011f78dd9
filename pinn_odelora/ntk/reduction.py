"""From a minimiser of F(δ) = φ(f(δ)) + μ‖δ‖_* to one of low rank with the same outputs.

Let δ_l = B_l A_l with balanced factors B_l = U √Σ, A_l = √Σ Vᵀ, and move it to B_l (I + t S_l) A_l with symmetric S_l.
The outputs stay if

    Σ_l ⟨J_l[i], B_l S_l A_l⟩ = 0    for every row i = 1, …, R ,

which has a solution S ≠ 0 as soon as the Σ_l r_l(r_l+1)/2 unknowns are more than R = K·N. As long as I + t S ⪰ 0 the
factors of the new δ have the weight ½(‖A‖² + ‖B‖²) = Σ_l tr Σ_l (I + t S_l): affine in t, and at a minimiser therefore
constant. The largest t with I + t S ⪰ 0 makes it singular, and some rank falls. Repeated, this ends with

    Σ_l r_l(r_l+1)/2 ≤ K·N ,

the count of Barvinok (1995) and Pataki (1998) for semidefinite programs, which Jang, Lee and Ryu (2024, arXiv
2402.11867) use for LoRA. With several layers the sum over layers is our own reading: S needs to be block-diagonal only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.ntk.model import Delta, Linearised
from pinn_odelora.rules import number


class Reduced(NamedTuple):
    """A δ of low rank.

    Attributes:
        delta: δ by layer, (m, n).
        ranks: r_l by layer.
        count: Σ_l r_l(r_l+1)/2.
        moved: the largest change of an output, over all reductions.
        steps: reductions taken.
    """

    delta: Delta
    ranks: dict[str, int]
    count: int
    moved: float
    steps: int


@torch.no_grad()
def reduce_rank(model: Linearised, delta: Mapping[str, Tensor], tolerance: float = 1e-9) -> Reduced:
    """Reduce the ranks of δ until Σ_l r_l(r_l+1)/2 ≤ R; outputs stay, and so does the nuclear norm of a minimiser.

    Of a δ that is no minimiser the nuclear norm does not grow.

    Args:
        model: the linearised model.
        delta: δ by layer, (m, n).
        tolerance: singular values below this part of the largest one of all layers count as zero.

    Raises:
        InputError: if the tolerance is not positive.
    """
    number(above=0).check("tolerance", tolerance)
    at_first = model.values(delta)
    pairs = _balanced(delta, tolerance)
    steps = 0
    while pairs and _count(pairs) > model.rows:
        S = _direction(model, pairs)
        pairs = _balanced(_product(_moved(pairs, S), model), tolerance)
        steps += 1
    reduced = _product(pairs, model)
    found = {name: pairs[name][0].shape[1] if name in pairs else 0 for name in model.shapes}
    return Reduced(reduced, found, _count(pairs), float((model.values(reduced) - at_first).abs().max()), steps)


Pairs = dict[str, tuple[Tensor, Tensor]]
"""B (m, r) and A (r, n) by layer, of positive rank."""


def _balanced(delta: Mapping[str, Tensor], tolerance: float) -> Pairs:
    factors = {name: linalg.svd(x, full_matrices=False) for name, x in delta.items()}
    bound = tolerance * max(float(sigma[0]) for _, sigma, _ in factors.values())
    pairs = {}
    for name, (U, sigma, Vh) in factors.items():
        r = int((sigma > bound).sum())
        if r:
            root = sigma[:r].sqrt()
            pairs[name] = (U[:, :r] * root, root[:, None] * Vh[:r])
    return pairs


def _count(pairs: Pairs) -> int:
    return sum(r * (r + 1) // 2 for r in (B.shape[1] for B, _ in pairs.values()))


def _direction(model: Linearised, pairs: Pairs) -> dict[str, Tensor]:
    """S by layer, with unchanged outputs, and such that the trace does not grow with t > 0."""
    columns = []
    for name, (B, A) in pairs.items():
        J = torch.cat([group.blocks[name].formed() for group in model.groups])
        J = B.mT @ J @ A.mT
        r = B.shape[1]
        i, j = torch.triu_indices(r, r)
        # ⟨J, S⟩ = Σ_{i ≤ j} S_ij (J_ij + J_ji), half of that on the diagonal.
        columns.append((J + J.mT)[:, i, j] * torch.where(i == j, 0.5, 1.0).to(J))
    null = linalg.svd(torch.cat(columns, dim=1), full_matrices=True).Vh[-1]
    found, at = {}, 0
    for name, (B, _) in pairs.items():
        r = B.shape[1]
        i, j = torch.triu_indices(r, r)
        S = null.new_zeros(r, r)
        S[i, j] = S[j, i] = null[at : at + len(i)]
        at += len(i)
        found[name] = S
    trace = sum((found[name].diagonal() * B.square().sum(dim=0)).sum() for name, (B, _) in pairs.items())
    eigenvalues = torch.cat([linalg.eigvalsh(S) for S in found.values()])
    # Of the two directions the one that lowers the trace; at a minimiser neither does, and the shorter way is taken.
    size = sum(B.square().sum() for B, _ in pairs.values()) * eigenvalues.abs().max()
    falls = trace if abs(float(trace)) > 1e-6 * float(size) else eigenvalues.sum()
    sign = -1.0 if float(falls) > 0 else 1.0
    if float((sign * eigenvalues).min()) >= 0:
        sign = -sign
    return {name: sign * S for name, S in found.items()}


def _moved(pairs: Pairs, S: Mapping[str, Tensor]) -> Pairs:
    """B √(I + t S), √(I + t S) A at the largest t, where the smallest eigenvalue is zero."""
    spectra = {name: linalg.eigh(S[name]) for name in pairs}
    t = -1 / min(float(values[0]) for values, _ in spectra.values())
    moved = {}
    for name, (values, Q) in spectra.items():
        B, A = pairs[name]
        root = (1 + t * values).clamp(min=0).sqrt()
        root = torch.where(root < 1e-6, 0.0, root)
        moved[name] = (B @ Q * root, root[:, None] * (Q.mT @ A))
    return moved


def _product(pairs: Pairs, model: Linearised) -> Delta:
    return model.zero() | {name: B @ A for name, (B, A) in pairs.items()}
