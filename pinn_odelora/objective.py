"""A loss as an optimiser asks for it: counted, checked to be finite, and not evaluated twice in a row at one point.

    L = ½‖r‖² ,    g = ∂L/∂y ,    G = ∂L/∂W ,    J = ∂r/∂z

With multipliers λ_k of its terms (``weighting``) L is Σ_k λ_k L_k, and the rows of term k in r and J are times √λ_k.

An optimiser asks for loss and gradient by calling the objective, as torch's optimisers call a closure; a scheme that
linearises also asks for residuals and their linearisation. Every evaluation counts one, whoever asks for it. A second
request for loss and gradient at the same parameters and points is answered from memory: so an embedded pair whose last
stage is its next first stage, or a line search that ends where it last evaluated, pays once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pinn_odelora.checks.domain import outside_domain
from pinn_odelora.errors import DomainError, NonFiniteError
from pinn_odelora.gradient import Gradient, in_pieces, residual_vector_of
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.lowrank.layer import LowRankLinear, plain_name
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.points import Points
from pinn_odelora.system import System
from pinn_odelora.weighting.loss_weights import LossWeights


class Batch(NamedTuple):
    """Points for every term, and the number of the draw: equal numbers mean equal points, if of as many candidates.

    ``kept``: how many interior points a step keeps of these candidates; None where they are no candidates.
    """

    number: int
    points: dict[str, Points]
    kept: int | None = None

    def to(self, device: torch.device) -> Batch:
        return self._replace(points={name: p.to(device) for name, p in self.points.items()})


class Evaluation(NamedTuple):
    """Loss, terms and gradients at one point, all detached; ``weights`` holds G = ∂L/∂W of every adapted layer.

    ``terms`` are L_k = w_k · mean|r_k|², and ``total`` their sum, each times λ_k where terms have multipliers.
    """

    batch: int
    parameters: list[Tensor]
    total: Tensor
    terms: dict[str, Tensor]
    gradients: list[Tensor]
    weights: dict[str, Tensor]


class Snapshot(NamedTuple):
    """All that is trained, and what adapted layers subtract, since their ranks may change; copies."""

    parameters: list[Tensor]
    starts: list[Factors]


class Trained(NamedTuple):
    """What is trained, as a linearisation takes it: linear layers by their effective weights, and other tensors."""

    layers: dict[str, nn.Linear | LowRankLinear]
    others: dict[str, Tensor]


def variables_of(
    solution: nn.Module, parameters: Sequence[Tensor], adapted: Mapping[str, nn.Linear | LowRankLinear]
) -> Trained:
    """The adapted layers, the other layers whose weight is trained, and every other trained tensor, by name."""
    trained = {id(p) for p in parameters}
    linear = {name: layer for name, layer in solution.named_modules() if isinstance(layer, nn.Linear)}
    # A weight of several layers is one variable, under its last layer's name as in ``single_tensors``.
    last = {id(layer.weight): name for name, layer in linear.items()}
    plain = {
        plain_name(name): layer
        for name, layer in linear.items()
        if id(layer.weight) in trained and last[id(layer.weight)] == name
    }
    # The factors of an adapted layer are linear layers of their own to torch.
    factors = {id(layer) for x in adapted.values() if isinstance(x, LowRankLinear) for layer in x.modules()}
    layers = {**adapted, **{name: layer for name, layer in plain.items() if id(layer) not in factors}}
    known = {id(layer.weight) for layer in plain.values()}
    others = {plain_name(name): p for name, p in solution.named_parameters() if id(p) in trained and id(p) not in known}
    return Trained(layers, others)


class Objective:
    """The loss of a residual system at the points of a batch; a closure for optimisers, and more (``LeastSquares``).

    Args:
        system: the residual system.
        parameters: what is trained.
        layers: the adapted layers by name, whose weight gradients are wanted.
        loss_weights: the multipliers λ_k of the terms, renewed at the first evaluation of a step; absent, 1.

    Attributes:
        count: evaluations so far, of loss and gradient, residuals or a linearisation.
        first: the evaluation where the step at hand started; None before it.
    """

    def __init__(
        self,
        system: System,
        parameters: Sequence[nn.Parameter],
        layers: Mapping[str, nn.Linear | LowRankLinear],
        loss_weights: LossWeights | None = None,
    ) -> None:
        self.system = system
        self.parameters = list(parameters)
        self.layers = dict(layers)
        adapted = {name: layer for name, layer in layers.items() if isinstance(layer, LowRankLinear)}
        self.gradient = Gradient(system, self.parameters, adapted)
        self.variables = variables_of(system.solution, self.parameters, layers)
        self.sweep = Sweep(system, *self.variables)
        self._residual_vector = residual_vector_of(system)
        self.uncounted = in_pieces(system)
        """Residuals of each term for a measurement, (N_k, components): not counted."""
        self.count = 0
        self.last: Evaluation | None = None
        self.good: Evaluation | None = None
        self.first: Evaluation | None = None
        self.loss_weights = loss_weights
        self._due = False
        self._starts: list[Factors] = []

    @property
    def multipliers(self) -> dict[str, float]:
        """λ_k by term; empty where all are 1 for good."""
        return self.loss_weights.multipliers if self.loss_weights and self.loss_weights.active else {}

    @property
    def known(self) -> bool:
        """Whether the last evaluation was here, at these points and with the parameters as they are now."""
        if self.last is None or self.last.batch != self.batch.number:
            return False
        return all(torch.equal(p, x) for p, x in zip(self.parameters, self.last.parameters, strict=True))

    def begin(self, batch: Batch) -> None:
        """A step starts with these points: its first evaluation is where the network is now."""
        self.batch = batch
        self.first = None
        self._due = self.loss_weights is not None and self.loss_weights.begin()

    def __call__(self) -> Tensor:
        """Loss at the parameters as they are now; their ``.grad`` is set to tensors that nobody may write to.

        Raises:
            NonFiniteError: if loss or gradient are not finite; the message names the term and the layer.
        """
        if self._due:
            # A linearisation has loss and gradients, so that this is the evaluation that would be made anyway.
            self.last = self._described(self._linearised(2.0**30))
            self.count += 1
        elif not self.known:
            self.last = self._evaluate()
            self.count += 1
        if self.first is None:
            self._began(self.last)
        for p, g in zip(self.parameters, self.last.gradients, strict=True):
            p.grad = g
        return self.last.total

    def linearise(self, memory: float = 2.0**30) -> Linearisation:
        """r and its Jacobian at the parameters as they are now, in ``memory`` bytes."""
        around = self._linearised(memory)
        evaluation = self._described(around)
        self.count += 1
        if self.first is None:
            self._began(evaluation)
        return around

    def _linearised(self, memory: float) -> Linearisation:
        """The linearisation, from which the multipliers are renewed if that is due."""
        around = Linearisation(self.sweep, self.batch.points, memory=memory, multipliers=self.multipliers)
        if not self._due:
            return around
        self._due = False
        self.loss_weights.renew(around)
        return around.reweighted(self.multipliers)

    def _began(self, evaluation: Evaluation) -> None:
        """A step begins at a point with finite loss and gradient: the one to go back to."""
        self.first = self.good = evaluation
        self._starts = self._subtracted()

    def weight_gradients(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, G = ∂L/∂W of every trained layer and ∂L/∂x of other tensors, at the parameters as they are now."""
        loss = self()
        by_tensor = {id(p): g for p, g in zip(self.parameters, self.last.gradients, strict=True)}
        layers, others = self.variables
        whole = {name: layer.weight for name, layer in layers.items() if isinstance(layer, nn.Linear)}
        alone = {name: by_tensor[id(x)] for name, x in (whole | others).items() if id(x) in by_tensor}
        return loss, {**self.last.weights, **alone}

    def residuals(self) -> Tensor:
        """r alone, (R,), at a trial point: whether it is finite is for the caller to see."""
        self.count += 1
        r = self._residual_vector(self.batch.points)
        return torch.cat([math.sqrt(c) * part for c, part in self._by_term(r)]) if self.multipliers else r

    def _by_term(self, r: Tensor) -> Iterator[tuple[float, Tensor]]:
        """λ_k, and the rows of r, for each term k."""
        points = self.batch.points
        names = [name for name in self.system.terms if name in points]
        sizes = [points[name].number * self.system.components(name) for name in names]
        return zip((self.multipliers[name] for name in names), r.split(sizes), strict=True)

    def residuals_at(self, points: Mapping[str, Points]) -> dict[str, Tensor]:
        """The residuals of each term, (N_k, components), at other points than the batch's, counted as an evaluation."""
        self.count += 1
        return self.uncounted(points)

    def _described(self, around: Linearisation) -> Evaluation:
        """Loss and gradients that a linearisation holds."""
        G = around.gradient()
        gradients = self._pulled_back(G)
        terms = {name: around.r[rows].square().sum() / 2 for name, rows in around.terms.items()}
        terms = {name: x / self.multipliers.get(name, 1.0) for name, x in terms.items()}
        self._check(around.loss, terms, gradients)
        parameters = [p.detach().clone() for p in self.parameters]
        weights = {name: G[name] for name in self.layers}
        return Evaluation(self.batch.number, parameters, around.loss, terms, gradients, weights)

    def _pulled_back(self, G: Mapping[str, Tensor]) -> list[Tensor]:
        """The gradients by the factors from those by effective weights: g_A = s BᵀG, g_B = s GAᵀ."""
        found: dict[int, Tensor] = {}
        layers, others = self.variables
        for name, layer in layers.items():
            if isinstance(layer, LowRankLinear):
                A, B = (x.detach() for x in layer.factors)
                found[id(layer.A)], found[id(layer.B)] = layer.scale * B.mT @ G[name], layer.scale * G[name] @ A.mT
            else:
                found[id(layer.weight)] = G[name]
        found |= {id(x): G[name] for name, x in others.items()}
        return [found[id(p)] for p in self.parameters]

    def restore_last_good(self) -> None:
        """Put the network back to the last point that a step started from with finite loss and gradient."""
        if self.good is not None:
            self.restore(Snapshot(self.good.parameters, self._starts))

    def snapshot(self) -> Snapshot:
        """The network as it is."""
        return Snapshot([p.detach().clone() for p in self.parameters], self._subtracted())

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Put the network there, whatever its ranks are."""
        values = {id(p): x for p, x in zip(self.parameters, snapshot.parameters, strict=True)}
        for layer, start in zip(self._adapted(), snapshot.starts, strict=True):
            A, B = values[id(layer.A)], values[id(layer.B)]
            if (layer.A.shape, layer.start_A.shape) != (A.shape, start.A.shape):
                layer.reshape(Factors(A.clone(), B.clone()), start)
        for p in self.parameters:
            p.copy_(values[id(p)])

    @contextmanager
    def restored(self, snapshot: Snapshot) -> Iterator[None]:
        """The network there for a while."""
        here = self.snapshot()
        self.restore(snapshot)
        try:
            yield
        finally:
            self.restore(here)

    def _subtracted(self) -> list[Factors]:
        """The starts of the adapted layers: they are replaced, never written to, so that there is nothing to copy."""
        return [layer.start for layer in self._adapted()]

    def _adapted(self) -> list[LowRankLinear]:
        return [layer for layer in self.layers.values() if isinstance(layer, LowRankLinear)]

    def _evaluate(self) -> Evaluation:
        loss, found = self.gradient(self.batch.points, self.multipliers)
        gradients = found[: len(self.parameters)]
        self._check(loss.total, loss.terms, gradients)
        G = dict(zip(self.gradient.adapted, found[len(self.parameters) :], strict=True))
        trained = {id(p): g for p, g in zip(self.parameters, gradients, strict=True)}
        weights = {name: G[name] if name in G else trained[id(x.weight)] for name, x in self.layers.items()}
        parameters = [p.detach().clone() for p in self.parameters]
        return Evaluation(self.batch.number, parameters, loss.total, loss.terms, gradients, weights)

    def _check(self, total: Tensor, terms: dict[str, Tensor], gradients: Sequence[Tensor]) -> None:
        # One number that is finite only if all are: one host read instead of one for each tensor.
        witness = float(total.detach() + torch.cat([g.reshape(-1) for g in gradients]).sum())
        if not math.isfinite(witness) and not all(bool(torch.isfinite(x).all()) for x in (total, *gradients)):
            self.count += 1
            raise self._diagnosis(terms)

    def _diagnosis(self, terms: dict[str, Tensor]) -> NonFiniteError:
        system, points = self.system, self.batch.points
        if said := system.refused(points):
            return NonFiniteError(said)
        term = next((name for name, x in terms.items() if not bool(torch.isfinite(x))), None)
        if term and (said := outside_domain(system.problem, term, system.terms[term], system.evaluated, points[term])):
            return DomainError(said)
        quantity = "value" if term else "gradient"
        term = term or self._term_of_bad_gradient()
        return NonFiniteError(
            f"The {quantity} of loss term {term!r} is NaN or infinite; the first layer concerned: {self._layer()}."
        )

    @torch.enable_grad()
    def _term_of_bad_gradient(self) -> str:
        for name, x in self.system.loss(self.batch.points).terms.items():
            gradients = torch.autograd.grad(x, self.parameters, retain_graph=True, allow_unused=True)
            if not all(g is None or bool(torch.isfinite(g).all()) for g in gradients):
                return name
        return "their sum"

    def _layer(self) -> str:
        """The first linear layer, in the order of evaluation, with a weight or an output that is not finite."""
        found: list[str] = []

        def look(name: str, layer: nn.Module, output: Tensor) -> None:
            if not (bool(torch.isfinite(layer.weight).all()) and bool(torch.isfinite(output).all())):
                found.append(name)

        hooks = [
            layer.register_forward_hook(lambda m, _, out, name=name: look(name, m, out))
            for name, layer in self.system.solution.net.named_modules()
            if isinstance(layer, nn.Linear | LowRankLinear)
        ]
        with torch.no_grad():
            for p in self.batch.points.values():
                self.system.solution(p)
        for hook in hooks:
            hook.remove()
        return found[0] if found else "none (the derivatives overflow between layers)"
