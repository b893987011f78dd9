"""A rank that follows the gradient: directions are added where the tangent space misses it, truncated where small.

At a product s·B A = U Σ V of rank r the part of a matrix G that is normal to the manifold, and of a gradient G the
share that no tangent vector can follow, are

    G_out = (I - U Uᵀ) G (I - Vᵀ V) ,        ω = ‖G_out‖ / ‖G‖ .

A layer *grows* where ω is above a bound: as many new pairs u, v of directions join the bases as there are. That bases
are doubled by what a gradient says before a step, and truncated after it, is the rank-adaptive integrator of dynamical
low-rank approximation (Ceruti, Kusch and Lubich, 2022, arXiv 2104.05247), with one gradient a step GeoLoRA
(Schotthöfer, Zangrando, Ceruti, Tudisco and Kusch, 2024, arXiv 2410.18720). There a new direction has no singular value
of its own. Here it takes one over from the frozen weight, as the start of the layer did. With s·b a = σ u v,

    W = W0 + s (B A - B₀A₀) ,    (B, B₀) ← ([B, b], [B₀, b]) ,    (A, A₀) ← ([A; a], [A₀; a]) ,

W does not change, in exact arithmetic; since u and v are normal to the bases, the singular values of s·B A are those
that were there and σ, and the pair stays balanced. Large ones are worth having: the manifold bends by 1/σ. Directions
come

    from the weight      the leading singular vectors of F_out, F = W0 - s B₀A₀ what is frozen, and their singular
                         value: where the start is ``pissa``, the next that it would have had with a larger rank;
    from the gradient    those of G_out, by which the tangent space gains what it misses most at this step, and a part
                         of the smallest singular value there is.

Where a scheme solves for its steps, the manifolds of all layers together may have as many dimensions as the batches of
its steps suffice for (``sampling.batch_size``): with more of them a step interpolates its points, at a price that grows
with the third power. A batch suffices for dimensions that are few against its residuals, and again for many more than
they are, so that the rank may have to grow fourfold or more at once; and early: on Poisson's equation the loss after
10 s was three to six times that of the largest rank where layers were observed for three steps before each growth.

A layer is *truncated* where singular values are below a part of ‖σ‖: the product is replaced by its best approximation
of the rank that is left, and W changes by what is said to be truncated. A direction that had grown just before has come
to nothing, and the next one waits twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, linalg

from pinn_odelora.errors import RefusedValueError
from pinn_odelora.lowrank.layer import Factors, LowRankLinear
from pinn_odelora.manifolds.fixed_rank import LowRank, low_rank
from pinn_odelora.rules import check, number, one_of, part, whole

SEEN, LONGEST = 1, 1024
"""Steps that a layer is observed for before it grows, at first and at most."""


@dataclass(frozen=True)
class AdaptiveRank:
    """The settings of ``lora.adaptive``.

    Args:
        start: r at the start.
        max: the largest r; also at most min(m, n) of a layer.
        outside: the bound of ω.
        residuals: wanted in a batch for every dimension of the manifolds, unless it is under-determined anyway.
        directions: where they come from.
        size: σ of one from the gradient, as a part of the smallest singular value there is.
        tolerance: singular values of at most this part of ‖σ‖ are truncated.

    Raises:
        InputError: if the start is above the maximum.
    """

    start: int = 2
    max: int = 16
    outside: float = 0.2
    residuals: float = 4.0
    directions: Literal["weight", "gradient"] = "weight"
    size: float = 1.0
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        positive = number(above=0)
        check(self, start=whole(1), max=whole(1), outside=part, residuals=positive, size=positive, tolerance=part)
        check(self, directions=one_of("weight", "gradient"))
        if self.start > self.max:
            raise RefusedValueError("start", self.start, f"at most max, which is {self.max}")


def outside(y: LowRank, G: Tensor) -> Tensor:
    """G_out, the part of G (m, n) that is normal to the manifold at y, float64."""
    G = G.to(y.U)
    rest = G - y.U @ (y.U.mT @ G)
    return rest - (rest @ y.V.mT) @ y.V


@torch.no_grad()
def frozen(layer: LowRankLinear) -> Tensor:
    """W0 - s B₀A₀, the part of W that is not trained."""
    return layer.base_layer.weight - layer.scale * layer.start_B @ layer.start_A


def share(part: Tensor, G: Tensor) -> float:
    """ω = ‖part‖ / ‖G‖, 0 where both vanish."""
    whole = float(linalg.matrix_norm(G.double()))
    return float(linalg.matrix_norm(part)) / whole if whole > 0 else 0.0


def leading(part: Tensor, number: int) -> LowRank:
    """The best approximation of a matrix of that rank."""
    U, sigma, V = linalg.svd(part, full_matrices=False)
    return LowRank(U[:, :number], sigma[:number], V[:number])


@torch.no_grad()
def grow(layer: LowRankLinear, new: LowRank) -> None:
    """Let s·B A take over a matrix from the frozen weight."""
    a, b = (x.to(layer.A) for x in new.factors(layer.scale))
    start = layer.start
    layer.reshape(
        Factors(torch.cat([layer.A, a]), torch.cat([layer.B, b], dim=1)),
        Factors(torch.cat([start.A, a]), torch.cat([start.B, b], dim=1)),
    )


@torch.no_grad()
def truncate(layer: LowRankLinear, y: LowRank, rank: int) -> float:
    """Replace the product, which is y, by its best approximation of that rank; the Frobenius norm of what is lost."""
    kept = y.cut(rank)
    layer.reshape(Factors(*(x.to(layer.A) for x in kept.factors(layer.scale))), layer.start)
    return float(linalg.vector_norm(y.sigma[rank:]))


def dimension(rank: int, layer: LowRankLinear) -> int:
    """r (m + n - r), that of the manifold."""
    return rank * (sum(layer.base_layer.weight.shape) - rank)


@dataclass
class Watch:
    """What is known of a layer; plain numbers, so that it can be saved.

    Attributes:
        omega: ω averaged over the steps since the rank changed, with weights 2⁻¹, 2⁻², … from the last on.
        seen: how many these are.
        wait: how many there have to be before the layer grows.
        grown: whether the last change was growth.
        truncated: ‖·‖ of all that has been truncated, summed.
    """

    omega: float = math.nan
    seen: int = 0
    wait: int = SEEN
    grown: bool = False
    truncated: float = 0.0

    def saw(self, omega: float) -> None:
        self.omega = omega if self.seen == 0 else (self.omega + omega) / 2
        self.seen += 1

    def changed(self, grown: bool) -> None:
        if grown and self.grown:
            self.wait = SEEN
        elif not grown:
            self.wait = min(2 * self.wait, LONGEST) if self.grown else SEEN
        self.seen, self.grown = 0, grown


@dataclass
class RankAdaptation:
    """The ranks of some layers, changed between steps.

    Args:
        rule: the settings.
        layers: the layers by name.
    """

    rule: AdaptiveRank
    layers: Mapping[str, LowRankLinear]
    watches: dict[str, Watch] = field(init=False)

    def __post_init__(self) -> None:
        self.watches = {name: Watch() for name in self.layers}

    def update(self, G: Mapping[str, Tensor], serves: Callable[[int], bool] = lambda columns: True) -> bool:
        """After a step: truncate the layers that can do with less, and let grow those that ask for it, the one that
        misses the largest part of its gradient first; whether one changed.

        Args:
            G: ∂L/∂W by layer where the step began, which costs nothing. From one step to the next it hardly matters:
                what is taken of it is normal to the manifold where the step ended.
            serves: whether steps can do with manifolds of so many dimensions.
        """
        changed = self.settle()
        parts = {name: outside(self._point(name), G[name]) for name in self.layers}
        for name, normal in parts.items():
            self.watches[name].saw(share(normal, G[name]))
        for name, rank in self._wanted(serves).items():
            new = self._directions(name, parts[name], rank - self.layers[name].rank)
            if new.sigma.numel():
                grow(self.layers[name], new)
                self.watches[name].changed(grown=True)
                changed = True
        return changed

    def _wanted(self, serves: Callable[[int], bool]) -> dict[str, int]:
        """The ranks of the layers that grow: twice those that there are; else four, eight, … times, if there is room
        beyond; else one more, for as many layers as there is room, the one that misses the largest part first.
        """
        asking = [name for name in sorted(self.layers, key=lambda name: -self.watches[name].omega) if self._asks(name)]
        for factor in (2**k for k in range(1, self.rule.max.bit_length() + 1)):
            ranks = {name: min(factor * self.layers[name].rank, self.most(self.layers[name])) for name in asking}
            if serves(self._columns(ranks)):
                return ranks
        ranks: dict[str, int] = {}
        for name in asking:
            more = ranks | {name: self.layers[name].rank + 1}
            ranks = more if serves(self._columns(more)) else ranks
        return ranks

    def _columns(self, ranks: Mapping[str, int]) -> int:
        """The dimensions of all manifolds together, with these ranks."""
        return sum(dimension(ranks.get(name, layer.rank), layer) for name, layer in self.layers.items())

    def _directions(self, name: str, part: Tensor, number: int) -> LowRank:
        """Those to add: fewer where what is left of the weight is as small as what is truncated."""
        y = self._point(name)
        if self.rule.directions == "gradient":
            new = leading(part, number)
            return new._replace(sigma=torch.full_like(new.sigma, self.rule.size * float(y.sigma[-1])))
        new = leading(outside(y, frozen(self.layers[name])), number)
        return new.cut(int((new.sigma > self._least(y)).sum()))

    def settle(self) -> bool:
        """Truncate the layers that can do with less; whether there was one."""
        changed = [self._truncated(self.watches[name], x, self._point(name)) for name, x in self.layers.items()]
        return any(changed)

    def _point(self, name: str) -> LowRank:
        return low_rank(self.layers[name].factors, self.layers[name].scale)

    def _asks(self, name: str) -> bool:
        layer, watch = self.layers[name], self.watches[name]
        return watch.seen >= watch.wait and watch.omega > self.rule.outside and layer.rank < self.most(layer)

    def _truncated(self, watch: Watch, layer: LowRankLinear, y: LowRank) -> bool:
        rank = max(1, int((y.sigma > self._least(y)).sum()))
        if rank == layer.rank:
            return False
        watch.truncated += truncate(layer, y, rank)
        watch.changed(grown=False)
        return True

    def _least(self, y: LowRank) -> float:
        return self.rule.tolerance * float(linalg.vector_norm(y.sigma))

    def most(self, layer: LowRankLinear) -> int:
        """The largest rank that a layer may have."""
        return min(self.rule.max, *layer.base_layer.weight.shape)

    def state(self) -> dict[str, Any]:
        return {name: asdict(watch) for name, watch in self.watches.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.watches = {name: Watch(**saved) for name, saved in state.items()}

    def row(self) -> dict[str, float]:
        """What is logged of the rule."""
        return {
            "lora/truncated": sum(watch.truncated for watch in self.watches.values()),
            **{f"lora/{name}/outside": watch.omega for name, watch in self.watches.items()},
        }
