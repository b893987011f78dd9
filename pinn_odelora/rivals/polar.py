"""PoLAR: directions that stay almost orthonormal, with a matrix of scales between them.

Lion, Zhang, Li and He, "PoLAR: Polar-Decomposed Low-Rank Adapter Representation", NeurIPS 2025, arXiv 2506.03133;
written after the authors' code. With W = W0 + s·X Θ Yᵀ, X (m, r), Θ (r, r), Y (n, r), the gradients of X and Y are
replaced by the landing field,

    F_X = (g_X Xᵀ − X g_Xᵀ) X + λ X (XᵀX − I) ,    λ = 1 ,

whose first part is tangent to the orthonormal matrices and whose second leads back to them without a retraction; then
X, Θ and Y move by Adam with F_X, g_Θ and F_Y. Adam rescales the entries, after which the first part is not tangent any
more: while gradients are large against λ, X and Y are far from orthonormal, and they land as the gradients fall.

The factors of the pair are B = X Θ and A = Yᵀ, which is exact, also for the gradients: with B = X M, A = N Yᵀ, Θ = M N,

    g_X = g_B Mᵀ ,    g_Y = g_Aᵀ N ,    g_Θ = Xᵀ g_B N⁻ᵀ .

M, N are triangular in the first step, by QR factorisations of the start, and M = Θ, N = I from then on; X and Θ are
kept in the state. The paper starts from random orthonormal X, Y and Θ = 0, as a start at zero does here: where B = 0, X
is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, linalg

from pinn_odelora.errors import InputError
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group, check_rank, is_pair
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import NOT_NEGATIVE, PairOptimizer, State, adam_direction, adam_settings
from pinn_odelora.rules import whole


class PoLAR(PairOptimizer):
    """PoLAR on pairs, Adam on other tensors.

    Args:
        groups: one pair A (r, n), B (m, r) or one tensor each, as ``factor_pairs`` gives; A of rank r.
        lr: η.
        betas: decay rates of Adam's moments.
        landing: λ, how strongly X and Y are pulled to orthonormal matrices.
        seed: of the X of pairs that start at B = 0.

    Raises:
        InputError: for a group that is neither a pair nor one tensor, an A of linearly dependent rows, or a rank that
            a weight cannot have.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        landing: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(groups, lr, betas=tuple(betas), landing=landing, seed=seed)

    def check_pair(self, group: Group) -> None:
        check_rank(group, "PoLAR")
        R = linalg.qr(group["params"][0].detach().mT).R
        if not float(R.diagonal().abs().min()) > torch.finfo(R.dtype).eps * float(R.norm()):
            raise InputError(
                f"the factor A of {group['name']} has linearly dependent rows, but PoLAR needs its full rank: choose "
                "another start or a smaller rank."
            )
        group["seed"] = self.defaults["seed"] + len([*filter(is_pair, self.param_groups)])

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        X, M, N, Y = _parts(y, state, group)
        fields = {
            "X": landing_field(X, g.B @ M.mT, group["landing"]),
            "T": linalg.solve(N, (X.mT @ g.B).mT).mT,
            "Y": landing_field(Y, g.A.mT @ N, group["landing"]),
        }
        moves = {key: adam_direction(x, state, group["betas"], group["eps"], f"_{key}") for key, x in fields.items()}
        X, T, Y = (x - group["lr"] * moves[key] for key, x in zip("XTY", (X, M @ N, Y), strict=True))
        state["X"], state["Theta"] = X, T
        return Factors(Y.mT, X @ T)


def _parts(y: Factors, state: State, group: Group) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, M, N, Y of B = X M, A = N Yᵀ."""
    if "X" in state:
        return state["X"], state["Theta"], torch.eye(len(y.A)).to(y.A), y.A.mT
    X, M = linalg.qr(y.B)
    Y, R = linalg.qr(y.A.mT)
    return (X if y.B.any() else orthonormal(y.B, group["seed"])), M, R.mT, Y


def orthonormal(like: Tensor, seed: int) -> Tensor:
    """A random matrix (m, r) with orthonormal columns."""
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return linalg.qr(drawn).Q.to(like)


def landing_field(X: Tensor, g: Tensor, landing: float) -> Tensor:
    """(g Xᵀ − X gᵀ) X + λ X (XᵀX − I), (m, r), without a matrix (m, m)."""
    S = X.mT @ X
    return g @ S - X @ (g.mT @ X) + landing * (X @ S - X)


def polar(lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999), landing: float = 1.0, seed: int = 0) -> Method:
    """PoLAR: almost orthonormal directions with a matrix of scales (Lion et al., 2025, arXiv 2506.03133).

    Args:
        lr: learning rate.
        betas: decay rates of Adam's two moments, in [0, 1).
        landing: λ, how strongly the directions are pulled to orthonormal ones.
        seed: of the directions of layers that start at zero.
    """
    lr, betas = adam_settings(lr, betas)
    landing, seed = NOT_NEGATIVE.check("landing", landing), whole(0, 2**32 - 1).check("seed", seed)
    settings = {"lr": lr, "betas": [*betas], "landing": landing, "seed": seed}
    return Method("polar", "factors", lambda groups: PoLAR(groups, **settings), settings=settings)
