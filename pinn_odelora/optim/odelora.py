"""ODELoRA as one ``torch.optim.Optimizer``: a flow on LoRA pairs, followed by a time discretisation.

    W = W0 + s·B A,    d(product)/dt = -P_T(∂L/∂W)            (``flows.balanced``, our reading of arXiv 2602.07479)

The learning rate is the step size h of the integrator, in units of flow time, and nothing else. Explicit schemes need a
torch closure, so they work for any model with LoRA pairs, PEFT's too; schemes that linearise need the residuals and
their Jacobian, which an objective has (``pinn_odelora.Objective``).

What moves is the pair itself or its product (``optim.charts``):

* ``chart="factors"``: A and B, with a velocity field on factors; after each step they are balanced again;
* ``chart="manifold"``: the product on the manifold of rank-r matrices, in its own metric, where no Gram matrix of
  factors is inverted; the factors are a balanced pair of it.

A step is: a chart of the parameters (``optim.charts``), one step of an integrator there (``integrators``), which asks
the chart for velocities (``flows``, or projections of ``manifolds``) or a linearisation, and the parameters at its end.
Of the balanced pairs of a product the one nearest to the former factors is taken (``manifolds.factors``). A step of
Euler's scheme in well-conditioned factors needs none of this, since it has a closed form (``flows.euler``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.flows import balanced_flow, gradient_flow, scaled_flow
from pinn_odelora.flows.start import is_zero
from pinn_odelora.integrators import Integrator, Report, RungeKutta
from pinn_odelora.integrators.base import Step, Velocity
from pinn_odelora.integrators.linearly_implicit import ImplicitState
from pinn_odelora.integrators.runge_kutta import rk_step
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.linalg.plan import Plan
from pinn_odelora.lowrank.pairs import trainable_groups
from pinn_odelora.optim.charts import (
    Chart,
    FactorChart,
    FactorFlow,
    LeastSquares,
    ManifoldChart,
    balanced,
    check_finite,
)
from pinn_odelora.optim.closed_form import euler
from pinn_odelora.optim.groups import (
    Group,
    Layer,
    alike,
    at_rank,
    check_group,
    completed,
    is_pair,
    listed,
    parameters,
    read_scale,
    slices,
    stacked,
    unchanged_on_failure,
)

GROUPS = "build them by pinn_odelora.factor_pairs(model), or the optimiser by ODELoRA.from_model(model)"
HALF = (torch.float16, torch.bfloat16)
WHOLE = (Tensor, nn.Parameter)
STATE, MASTER, SHAPE = "integrator", "master", "shape"
LATER = frozenset({"at_least"})
"""Fields of an integrator's state that earlier versions did not save; those begin with their defaults."""


class ODELoRA(Optimizer):
    """Follow a flow on LoRA pairs by a time discretisation: by default the balanced flow by Euler's scheme.

    ``step(closure)`` evaluates the closure once for each stage, on the same batch, and returns the loss where the step
    starts. With Euler's scheme and a given step size, ``step()`` without closure uses the gradients that are there.
    A pair that starts at B = 0, as PEFT's do, takes one Euler step in the row space of A first (``flows.start``). After
    a step, ``report`` has its telemetry.

    A step of h = 0 evaluates the loss and moves nothing, and a group without gradients or with lr = 0 keeps its bits.
    Factors of 16 bits have float32 masters in ``state``. The scale of a pair is read from its layer at each step, where
    its group names one, as those of ``factor_pairs`` do; a copy or a pickle of the optimiser keeps the last one.

    Args:
        params: parameter groups of one pair (A, B) each, as ``factor_pairs`` gives, or of one tensor, which follows its
            own gradient flow.
        lr: the step size h; absent, the integrator's own, which may choose it.
        integrator: the time discretisation.
        flow: the velocity field on the factors; ``balanced_flow`` is ODELoRA's.
        chart: what is integrated, see the file's docstring; absent, the factors by Runge–Kutta schemes and the product
            by stabilised ones and by those that linearise.
        retract: in the factors, return to the balanced manifold BᵀB = AAᵀ after each step.

    Raises:
        InputError: for a group that is neither a pair nor one tensor, a step size that is not finite or is negative, a
            flow that the chart or scheme cannot integrate, or, from ``step``, a point where the flow is singular.
        FloatingPointError: from ``step``, when loss or gradient are not finite at the current point, or no step size or
            the given one leads to finite numbers. Whatever ``step`` raises, parameters and state are those of before.
    """

    def __init__(
        self,
        params: Iterable[Group],
        lr: float | None = None,
        integrator: Integrator | None = None,
        flow: FactorFlow = balanced_flow,
        chart: Literal["factors", "manifold"] | None = None,
        retract: bool = True,
    ) -> None:
        self.integrator = integrator or RungeKutta(EULER)
        self.flow = flow
        self.retract = retract
        self.chart = chart or ("manifold" if self.integrator.linearises or _stabilised(self.integrator) else "factors")
        if chart is None and flow is not balanced_flow and not self.integrator.linearises:
            self.chart = "factors"
        _check_flow(flow, self.chart, self.integrator)
        self.report = Report()
        self._layers: list[Layer | None] = []
        lr = self.integrator.h if lr is None else lr
        super().__init__(listed(params, "ODELoRA", GROUPS), {"lr": lr, "scale": 1.0, "above": None})
        self._keep(self.integrator.init())

    @classmethod
    def from_model(cls, model: nn.Module, lr: float | None = None, **settings: Any) -> ODELoRA:
        """For every active LoRA pair of a model, and every other tensor that is trainable.

        PEFT's default start, B = 0, is fine: see ``flows.start`` for what the first step is there.

        Args:
            model: a network with LoRA pairs, ours or PEFT's.
            lr: the step size h.
            settings: as of ``ODELoRA``.

        Raises:
            InputError: if the model has no LoRA pair, or one whose update is not s·BA.
        """
        return cls(trainable_groups(model), lr=lr, **settings)

    def add_param_group(self, param_group: Group) -> None:
        """Add a pair or a tensor.

        Raises:
            InputError: as the class.
        """
        group = completed(param_group, len(self.param_groups))
        layer = group.pop("layer", None)
        check_group(group, GROUPS)
        self._check_fits(group)
        super().add_param_group(group)
        self._layers.append(layer)

    def _check_fits(self, group: Group) -> None:
        """Refuse a step size, a name or a rank that the steps of this optimiser cannot have."""
        _check_step_size(group.get("lr", self.defaults["lr"]))
        if group["name"] in (other["name"] for other in self.param_groups):
            raise InputError(f"two parameter groups are named {group['name']}, but each needs a name of its own.")
        if not is_pair(group) or self.flow is gradient_flow:
            return
        A, B = group["params"]
        if len(A) > min(A.shape[1], len(B)):
            raise InputError(
                f"{group['name']} has rank {len(A)}, more than its weight {len(B)} x {A.shape[1]} can have, which is "
                "singular for every flow but gradient_flow: choose a smaller rank."
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        h, speeds = self._step_sizes()
        self._check_closure(closure, h)
        self._read_scales()
        objective = closure is not None and isinstance(closure, LeastSquares)
        if self._has_closed_form(h, speeds):
            chart = closure and Chart(self.param_groups, self._parameters(), closure)
            if self._by_closed_form(chart, h):
                return chart and chart.loss
            # The loss and the gradients are those of this point already.
            closure = chart and (lambda: chart.loss)
        with unchanged_on_failure(self.param_groups):
            before = self._numbers()
            if h == 0:
                return self._stay(closure, before)
            zero = {} if objective else self._zero_pairs(before)
            chart, taken = self._take(closure, before, h, speeds, zero)
            self._place(self._ended(chart, taken.y))
        self._keep(taken.state)
        self.report = chart.described(taken)
        return chart.loss

    def rank_changed(self) -> None:
        """The pairs have other shapes: what belongs to the former ones is forgotten.

        The damping of an implicit scheme goes on, and its last step where it is an element of the ambient space.
        """
        state = self._state()
        on_products = self.chart == "manifold" and self.flow is balanced_flow
        if not self.integrator.linearises:
            self._keep(self.integrator.init())
        elif not on_products:
            self._keep(replace(state, last=None, at_least=0) if isinstance(state, ImplicitState) else state)

    def plan(self, residuals: int, rank: int | None = None) -> Plan | None:
        """The linear algebra that steps with so many residuals will use, with pairs of that rank if it is given; None
        for a scheme that does not linearise.
        """
        if not self.integrator.linearises:
            return None
        groups = self.param_groups if rank is None else [at_rank(group, rank) for group in self.param_groups]
        return ManifoldChart(self._metric, self._memory, groups, parameters(groups)).plan(residuals)

    # How a step is taken.

    def _has_closed_form(self, h: float | None, speeds: list[float]) -> bool:
        """Whether a step is one of Euler's on balanced factors, with one step size."""
        euler = getattr(self.integrator, "tableau", None) == EULER
        plain = euler and self.chart == "factors" and self.flow is balanced_flow and self.retract
        # Sharded tensors have no closed form.
        if not (plain and h) or any(speed != 1 for speed in speeds):
            return False
        return all(type(p) in WHOLE for p in self._parameters())

    def _by_closed_form(self, chart: Chart | None, h: float) -> bool:
        """Evaluate the loss, if there is a closure, and take the step of ``flows.euler``; whether it was safe to."""
        loss = chart.evaluate() if chart else math.nan
        after = euler(self.param_groups, [self._master(p) if p.dtype in HALF else p for p in self._parameters()], h)
        if after is None:
            return False
        self._place(after)
        self.report = Report(h, loss)
        return True

    def _take(
        self,
        closure: Callable[[], Tensor] | None,
        before: list[Tensor],
        h: float | None,
        speeds: list[float],
        zero: dict[int, float],
    ) -> tuple[FactorChart | ManifoldChart, Step]:
        """A step of the integrator in the chart, or the first one from a zero adapter."""
        groups, state = self.param_groups, self._state()
        chart = FactorChart(self.flow, groups, before, closure, speeds, zero)
        if zero:
            here = chart.velocity(before)
            if not all(chart.still(i) for i in zero):
                return chart, self._first_step(chart, here, h)
        if self.chart == "manifold":
            chart = ManifoldChart(self._metric, self._memory, groups, before, closure, speeds, zero)
        return chart, self.integrator.step(chart, chart.start(), state, h)

    def _first_step(self, chart: FactorChart, here: Velocity, h: float | None) -> Step:
        """Euler's step from a zero adapter, whatever the scheme."""
        if h is None:
            raise InputError(
                "a LoRA pair starts at B A = 0, where no step size can be found: give lr for the first step, or start "
                "from factors of full rank, as init_lora_weights='pissa' does."
            )
        y = rk_step(lambda _: here.slope, chart.before, h, EULER, here.slope)
        return Step(y, self._state(), Report(h, here.loss))

    def _ended(self, chart: FactorChart | ManifoldChart, y: list[Any]) -> list[Tensor]:
        """The parameters at the end of a step: what does not move as it was, pairs balanced.

        Raises:
            FloatingPointError: where they are not finite.
        """
        moving = chart.moving()
        after = list(chart.before)
        reached = chart.numbers(y)
        for i in moving:
            after[chart.places[i]] = reached[chart.places[i]]
        in_factors = isinstance(chart, FactorChart)
        if self.retract if in_factors else self.flow is balanced_flow:
            after = balanced(self.param_groups, after, chart.before, moving, already=not in_factors)
        check_finite(after, chart.names, "step")
        return after

    def _stay(self, closure: Callable[[], Tensor] | None, before: list[Tensor]) -> Tensor | None:
        """A step of h = 0, as a schedule may ask for: the loss, and nothing moves."""
        chart = Chart(self.param_groups, before, closure)
        self.report = Report(0.0, chart.evaluate())
        return chart.loss

    def _check_closure(self, closure: Callable[[], Tensor] | None, h: float | None) -> None:
        scheme = type(self.integrator).__name__
        if self.integrator.linearises and not isinstance(closure, LeastSquares):
            raise InputError(
                f"{scheme} asks for the residuals and their Jacobian, which a torch closure does not have: pass a "
                "pinn_odelora.Objective to step, or choose an explicit integrator, as RungeKutta."
            )
        several = self.integrator.stages > 1 or _stabilised(self.integrator)
        if closure is None and (several or self.chart == "manifold" or h is None):
            raise InputError(
                f"{scheme} evaluates the loss at other points than where the parameters are, so step needs a closure."
            )

    @property
    def _metric(self) -> str:
        return "product" if self.flow is balanced_flow else "factors"

    @property
    def _memory(self) -> float:
        return getattr(self.integrator, "memory", math.inf)

    # Step sizes, scales, numbers.

    def _step_sizes(self) -> tuple[float | None, list[float]]:
        """h, and for every group the part of the flow's time that passes for it: groups may have different lr."""
        for group in self.param_groups:
            _check_step_size(group["lr"])
        rates = [group["lr"] for group in self.param_groups]
        if any(rate is None for rate in rates):
            if any(rate is not None for rate in rates):
                raise InputError(
                    "some parameter groups have a step size lr and others None, but it is one for all or none."
                )
            return None, [1.0] * len(rates)
        rates = [float(rate) for rate in rates]
        h = max(rates)
        speeds = [rate / h if h else 1.0 for rate in rates]
        if self.integrator.linearises and set(speeds) != {1.0}:
            raise InputError("parameter groups have different step sizes lr, but an implicit scheme takes one for all.")
        return h, speeds

    def _read_scales(self) -> None:
        for group, layer in zip(self.param_groups, self._layers, strict=True):
            if layer is not None:
                read_scale(group, layer)

    def _numbers(self) -> list[Tensor]:
        """The parameters, those of 16 bits by their float32 masters."""
        return [self._master(p).clone() if p.dtype in HALF else p.detach().clone() for p in self._parameters()]

    def _master(self, p: Tensor) -> Tensor:
        master = self.state.get(p, {}).get(MASTER)
        # Somebody else may have written to the parameter.
        if master is None or master.shape != p.shape or not torch.equal(master.to(p.dtype), p.detach()):
            return p.detach().float()
        return master

    def _place(self, numbers: list[Tensor]) -> None:
        for p, x in zip(self._parameters(), numbers, strict=True):
            if p.dtype in HALF:
                self.state[p][MASTER] = x
        # In one call, which a signal does not interrupt half-way.
        torch._foreach_copy_(self._parameters(), numbers)

    def _parameters(self) -> list[Tensor]:
        return parameters(self.param_groups)

    def _zero_pairs(self, numbers: list[Tensor]) -> dict[int, float]:
        """The pairs with B A = 0, where these flows are singular, and the precision that they were given in."""
        if self.flow not in (balanced_flow, scaled_flow):
            return {}
        pairs = [numbers[at] for at in slices(self.param_groups)]
        members = [i for i, group in enumerate(self.param_groups) if is_pair(group)]
        given = {i: self._precision(self.param_groups[i]["params"][0]) for i in members}
        zero: dict[int, float] = {}
        for batch in alike(members, lambda i: (pairs[i][0].shape, pairs[i][1].shape, pairs[i][0].device, given[i])):
            found = is_zero(stacked(pairs, batch), given[batch[0]])
            # One host read, and in most steps no other; sharded tensors have no tolist.
            if bool(found.any()):
                zero |= {i: given[i] for i, is_so in zip(batch, found, strict=True) if bool(is_so)}
        return zero

    def _precision(self, p: Tensor) -> float:
        """Of a start: at most that of float32, whose numbers a model of float64 may have started from."""
        return torch.finfo(p.dtype if p.dtype in HALF and MASTER not in self.state.get(p, {}) else torch.float32).eps

    # State: the integrator's, with the first parameter, where torch keeps what is saved.

    def _first(self) -> Tensor:
        return self.param_groups[0]["params"][0]

    def _state(self) -> Any:
        saved = self.state.get(self._first(), {}).get(STATE)
        return replace(self.integrator.init(), **(saved or {}))

    def _keep(self, state: Any) -> None:
        self.state[self._first()][STATE] = dict(vars(state))

    def state_dict(self) -> dict[str, Any]:
        """The integrator's state, the masters, and the shape of every parameter."""
        saved = super().state_dict()
        state = saved["state"]
        for key, p in zip(parameters(saved["param_groups"]), self._parameters(), strict=True):
            state[key] = {**state.get(key, {}), SHAPE: [*p.shape]}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; scales stay those of the layers.

        Raises:
            InputError: if the state is that of other groups, of other ranks, of groups in another order, or of another
                integrator.
        """
        state, keys = state_dict["state"], parameters(state_dict["param_groups"])
        self._check_saved(state_dict["param_groups"], [state.get(key, {}) for key in keys])
        own = [{key: group.get(key) for key in ("scale", "above", "size")} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, own, strict=True):
            group.update(settings)
        # torch casts what it loads to the dtype of the parameters, which would round masters and steps.
        self.state.clear()
        for key, p in zip(keys, self._parameters(), strict=True):
            if kept := {name: x for name, x in state.get(key, {}).items() if name != SHAPE}:
                self.state[p] = _moved(kept, p.device)

    def _check_saved(self, groups: list[Group], state: list[dict[str, Any]]) -> None:
        names, found = ([str(group.get("name")) for group in each] for each in (self.param_groups, groups))
        if names != found or len(state) != len(self._parameters()):
            raise InputError(
                f"the state is that of the groups {', '.join(found)}, but the optimiser has {', '.join(names)}."
            )
        shapes = [[*p.shape] for p in self._parameters()]
        saved = [[*kept.get(SHAPE, shape)] for kept, shape in zip(state, shapes, strict=True)]
        if saved != shapes:
            raise InputError(f"the state is that of parameters of shapes {saved}, but the optimiser has {shapes}.")
        integrator = {*vars(self.integrator.init())}
        if {*state[0].get(STATE, integrator)} | (LATER & integrator) != integrator:
            raise InputError(f"the state is that of another integrator than {type(self.integrator).__name__}.")

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps defaults, state and groups alone; a copy knows no layers, so its scales stay as they are.
        own = ("integrator", "flow", "retract", "chart", "report")
        kept = {name: getattr(self, name) for name in own} | {"_layers": [None] * len(self.param_groups)}
        return {**super().__getstate__(), **kept}


def _stabilised(integrator: Integrator) -> bool:
    """Whether its stages reach so far that factors might lose rank on the way."""
    return bool(getattr(integrator, "stabilised", False))


def _check_flow(flow: FactorFlow, chart: str, integrator: Integrator) -> None:
    if chart not in ("factors", "manifold"):
        raise RefusedValueError("chart", chart, "factors or manifold")
    name = getattr(flow, "__name__", str(flow))
    if integrator.linearises and flow not in (balanced_flow, gradient_flow):
        raise InputError(
            f"{type(integrator).__name__} follows the gradient flow of a sum of squares, balanced_flow or "
            f"gradient_flow, but not {name}: choose an explicit integrator."
        )
    if integrator.linearises and chart == "factors":
        raise RefusedValueError("chart", chart, f"manifold or None with {type(integrator).__name__}, which works there")
    if chart == "manifold" and not integrator.linearises and flow is not balanced_flow:
        raise RefusedValueError("chart", chart, f"factors or None with {name}, a field on the factors and not on BA")


def _check_step_size(lr: float | None) -> None:
    if lr is not None and not 0 <= float(lr) < math.inf:
        raise InputError(f"the step size lr is {float(lr)!r}, but it must be a finite number of at least 0.")


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors on a device, in whatever is around them."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(x, device) for name, x in value.items()}
    return [_moved(x, device) for x in value] if isinstance(value, list) else value
