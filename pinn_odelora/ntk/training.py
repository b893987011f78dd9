"""Train the linearised model by the methods, flows, integrators and loop of every run.

In factors, δ_l = s·B_l A_l, with weight decay λ on both (``ntk.decay``), or as full matrices δ_l, by ``proximal`` for
the nuclear norm with weight μ = λ/s. Both decrease the regularised loss itself.

    run = train(model, odelora(RungeKutta(RK4, h=0.1)), rank=4, decay=1e-3)
    for record in run: ...
    run.delta()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pinn_odelora import loop
from pinn_odelora.budget import Budget
from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.start import Start, orthonormal
from pinn_odelora.lowrank.targets import Scale, check_rank, put_factors, ranks_at, scale_of
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.ntk.decay import DecayedObjective
from pinn_odelora.ntk.losses import SquaredError
from pinn_odelora.ntk.model import Linearised
from pinn_odelora.ntk.network import ConvexSystem, KnownSweep, RowNetwork
from pinn_odelora.objective import Objective
from pinn_odelora.optim.methods import Method
from pinn_odelora.rules import null, number, whole
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling


class LinearisedRun:
    """A linearised model on its way: iterate for the records of its steps; ``delta()`` is where it is.

    Args:
        model: the linearised model.
        method: what is trained and how; ``proximal`` for full matrices, any other for factors.
        rank: r of the factors, in a layer that cannot have it min(m, n); ignored for full matrices.
        scale: s, or s as a function of the rank of a layer.
        decay: λ ≥ 0, weight decay on both factors.
        start: factors by layer, A (r, n) and B (m, r); or a start of ``lowrank.start``, which is given δ = 0 for W0.
        subtracted: whether the start is subtracted, δ_l = s (B_l A_l − B₀A₀), as in an adaptation: δ then starts at 0.
        seed: of a random start.
        budget: when to stop; 1000 steps if absent.

    Raises:
        InputError: one sentence on what does not fit.
    """

    def __init__(
        self,
        model: Linearised,
        method: Method,
        *,
        rank: int | None = None,
        scale: Scale = 1.0,
        decay: float = 0.0,
        start: Mapping[str, Factors] | Start = orthonormal,
        subtracted: bool = False,
        seed: int = 0,
        budget: Budget | None = None,
    ) -> None:
        number(least=0).check("decay", decay)
        scale_of(scale, 1)
        (whole(1) | null).check("rank", rank)
        whole(0).check("seed", seed)
        check_method(model, method, decay)
        if subtracted and decay:
            raise InputError("the start is subtracted, so that decay would not be one of δ: leave one of them out.")
        self.model, self.method, self.decay, self.scale = model, method, decay, scale
        self.budget = budget or Budget(steps=1000)
        self.net = RowNetwork(model)
        if method.trains == "factors":
            self._put_factors(rank, start, seed, subtracted)
        self.training = self._training()

    def _put_factors(self, rank: int | None, start: Mapping[str, Factors] | Start, seed: int, subtracted: bool) -> None:
        layers = {name: self.net.get_submodule(name) for name in self.model.shapes}
        given = start if isinstance(start, Mapping) else None
        if rank is None:
            if given is None:
                raise InputError("rank is None, but factors need one unless they are given by start.")
            rank = max(len(y.A) for y in given.values())
        check_rank(rank, layers)
        ranks = ranks_at(rank, layers)
        scales = {name: scale_of(self.scale, r) for name, r in ranks.items()}
        generator = torch.Generator().manual_seed(seed)
        if given is None:
            given = {n: start(x.weight.detach(), ranks[n], scales[n], generator) for n, x in layers.items()}
        for name, layer in layers.items() if not subtracted else ():
            A, B = given[name]
            layer.weight.data = scales[name] * (B @ A).detach().double()
        queue = iter([Factors(*(x.double() for x in given[name])) for name in layers])
        put_factors(self.net, layers, rank, self.scale, lambda *_: next(queue), generator)

    def _training(self) -> loop.Training:
        system = ConvexSystem(self.model, self.net)
        groups = self.method.groups(system.solution)
        layers = {name: self.net.get_submodule(name) for name in self.model.shapes}
        tensors = [p for group in groups for p in group["params"]]
        factors = self.method.trains == "factors" and self.decay > 0
        objective = (
            DecayedObjective(system, tensors, layers, decay=self.decay)
            if factors
            else Objective(system, tensors, layers)
        )
        if isinstance(self.model.loss, SquaredError):
            objective.sweep = KnownSweep(system, layers)
        sampler = Sampler(system.terms, Sampling.fixed(), dict.fromkeys(system.terms, 1))
        return loop.Training(objective, self.method, self.method.optimizer(groups), sampler)

    def __iter__(self) -> Iterator[loop.StepRecord]:
        yield from loop.steps(self.training, self.budget)

    def finish(self) -> LinearisedRun:
        """Take all steps of the budget."""
        for _ in self:
            pass
        return self

    @property
    def failure(self) -> str | None:
        """Why the run ended early; None if it did not."""
        return None if self.training.failure is None else str(self.training.failure)

    def delta(self) -> dict[str, Tensor]:
        """δ by layer, (m, n)."""
        return self.net.delta()

    def factors(self) -> dict[str, Factors]:
        """The pairs by layer, copies; empty for full matrices."""
        layers = {name: self.net.get_submodule(name) for name in self.model.shapes}
        return {
            name: Factors(*(x.detach().clone() for x in layer.factors))
            for name, layer in layers.items()
            if isinstance(layer, LowRankLinear)
        }

    def regularised(self) -> float:
        """φ(f(δ)) + (λ/2) Σ (‖A‖² + ‖B‖²) in factors; of full matrices φ(f(δ)) + μ Σ ‖δ‖_*, with the weight of
        ``proximal``.
        """
        if self.method.trains == "weights":
            return float(self.model.penalised(self.delta(), self.method.settings.get("weight", 0.0)))
        squares = sum(x.square().sum() for y in self.factors().values() for x in y)
        return float(self.model.value(self.delta()) + self.decay / 2 * squares)


def check_method(model: Linearised | None, method: Method, decay: float) -> None:
    """Refuse a method that does not go with a decay, or with the loss of a model (a squared error without one).

    Raises:
        InputError: one sentence.
    """
    if method.trains == "weights" and decay:
        raise InputError("decay is of factors, but the method trains full matrices: give proximal a weight instead.")
    if not method.layer.is_product:
        raise InputError(f"the change of a weight by {method.name} is not linear in a product of factors, as δ is.")
    if not method.linearises:
        return
    if model is not None and not isinstance(model.loss, SquaredError):
        raise InputError(
            f"An implicit scheme follows a sum of squares, but the loss is {model.loss.name}: choose an explicit "
            "integrator."
        )
    if decay and method.name == "lora_gd":
        raise InputError(
            "lora_gd with an implicit scheme knows no weight decay on the factors: choose an explicit integrator, or "
            "odelora."
        )


def train(model: Linearised, method: Method, **settings: object) -> LinearisedRun:
    """A run of the linearised model, to be iterated over; not a step is taken yet.

    Args:
        model: the linearised model.
        method: what is trained and how; ``proximal`` for full matrices, any other for factors.
        settings: as of ``LinearisedRun``.

    Raises:
        InputError: one sentence on what does not fit.
    """
    return LinearisedRun(model, method, **settings)
