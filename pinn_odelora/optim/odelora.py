"""ODELoRA as one ``torch.optim.Optimizer``: a flow on LoRA pairs, followed by a time discretisation.

    W = W0 + s·B A,    d(product)/dt = -P_T(∂L/∂W)            (``flows.balanced``, our reading of arXiv 2602.07479)

The learning rate is the step size h of the integrator, in units of flow time, and nothing else. Explicit schemes need a
torch closure, so they work for any model with LoRA pairs, PEFT's too; schemes that linearise need the residuals and
their Jacobian, which an objective has (``pinn_odelora.Objective``).

What moves is the pair itself or its product (``optim.charts``):

* ``chart="factors"``: A and B, with a velocity field on factors; after each step they are balanced again;
* ``chart="manifold"``: the product on the manifold of rank-r matrices, in its own metric, where no Gram matrix of
  factors
  is inverted; the factors are a balanced pair of it.

Of the balanced pairs of a product the one nearest to the former factors is taken (``manifolds.factors``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinn_odelora.errors import InputError
from pinn_odelora.flows import balanced_flow, gradient_flow
from pinn_odelora.flows.start import is_zero
from pinn_odelora.integrators import Integrator, Report, RungeKutta
from pinn_odelora.integrators.runge_kutta import rk_step
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.linalg.plan import Plan
from pinn_odelora.lowrank.pairs import trainable_groups
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import rebalance
from pinn_odelora.manifolds.variables import variable
from pinn_odelora.optim.charts import FactorChart, FactorFlow, LeastSquares, ManifoldChart
from pinn_odelora.optim.groups import Group, at_rank, check_group, is_pair, parameters, unchanged_on_failure

GROUPS = "build them by pinn_odelora.factor_pairs(model), or the optimiser by ODELoRA.from_model(model)"
HALF = (torch.float16, torch.bfloat16)
STATE, MASTER = "integrator", "master"


class ODELoRA(Optimizer):
    """Follow a flow on LoRA pairs by a time discretisation: by default the balanced flow by Euler's scheme.

    ``step(closure)`` evaluates the closure once for each stage, on the same batch, and returns the loss where the step
    starts. With a one-stage scheme and a given step size, ``step()`` without closure uses the gradients that are there.
    A pair that starts at B = 0, as PEFT's do, takes one Euler step in the row space of A first (``flows.start``). After
    a step, ``report`` has its telemetry.

    Factors of 16 bits are kept as float32 masters; a pair without gradients is left as it is.

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
        FloatingPointError: from ``step``, when loss or gradient are not finite at the current point; the parameters are
            then those of before the step.
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
        self._layers: list[tuple[nn.Module, str] | None] = []
        lr = self.integrator.h if lr is None else lr
        super().__init__(params, {"lr": lr, "scale": 1.0, "name": "", "above": None})
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
        layer = param_group.pop("layer", None)
        params = param_group["params"]
        param_group["params"] = [params] if isinstance(params, Tensor) else list(params)
        check_group(param_group, GROUPS)
        super().add_param_group(param_group)
        self._layers.append(layer)
        _check_step_size(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        if closure is None and (self.integrator.stages > 1 or self.chart == "manifold" or self._h() is None):
            raise InputError("this integrator evaluates the loss several times a step, so step needs a closure.")
        if closure is None and all(p.grad is None for p in parameters(self.param_groups)):
            return None
        self._read_scales()
        with unchanged_on_failure(self.param_groups):
            return self._in_factors(closure) if self.chart == "factors" else self._on_manifold(closure)

    def rank_changed(self) -> None:
        """The pairs have other shapes: what belongs to the former ones is forgotten.

        The damping of an implicit scheme goes on, and its last step where it is an element of the ambient space.
        """
        state = self._state()
        on_products = self.chart == "manifold" and self.flow is balanced_flow
        if not self.integrator.linearises:
            self._keep(self.integrator.init())
        elif not on_products:
            self._keep(replace(state, last=None) if hasattr(state, "last") else state)

    def plan(self, residuals: int, rank: int | None = None) -> Plan | None:
        """The linear algebra that steps with so many residuals will use, with pairs of that rank if it is given; None
        for a scheme that does not linearise.
        """
        if not self.integrator.linearises:
            return None
        groups = self.param_groups if rank is None else [at_rank(group, rank) for group in self.param_groups]
        return self._manifold_chart(groups, None).plan(residuals)

    # How a step is taken.

    def _in_factors(self, closure: Callable[[], Tensor] | None) -> Tensor | None:
        h, speeds = self._speeds()
        chart = FactorChart(self.param_groups, closure, self.flow, speeds)
        y = self._numbers()
        chart.zero_start = self._starts_at_zero()
        if h == 0:
            loss = chart.velocity(y).loss
            self.report = Report(0.0, loss)
            return chart.losses[0] if chart.losses else None
        step = self._first_step(chart, y, h) if chart.zero_start else None
        state = self._state()
        if step is None:
            taken = self.integrator.step(chart, y, state, h)
            step, state, self.report = taken.y, taken.state, taken.report
        self._place(self._balanced(step, y, self._active()) if self.retract else step)
        self._keep(state)
        return chart.losses[0] if chart.losses else None

    def _first_step(self, chart: FactorChart, y: list[Tensor], h: float | None) -> list[Tensor]:
        """Euler's step from a point where a factor is zero, whatever the scheme."""
        if h is None:
            raise InputError(
                "a LoRA pair starts at B = 0, where no step size can be found: give lr for the first step, or start "
                "from factors of full rank, as init_lora_weights='pissa' does."
            )
        here = chart.velocity(y)
        self.report = Report(h, here.loss)
        return rk_step(lambda _: here.slope, y, h, EULER, here.slope)

    def _on_manifold(self, closure: Callable[[], Tensor]) -> Tensor:
        if self.integrator.linearises and not isinstance(closure, LeastSquares):
            raise InputError(
                f"{type(self.integrator).__name__} asks for the residuals and their Jacobian, which a torch closure "
                "does not have: pass a pinn_odelora.Objective to step, or choose an explicit integrator, as RungeKutta."
            )
        if not isinstance(closure, LeastSquares) and self._starts_at_zero():
            return self._in_factors(closure)
        h, speeds = self._speeds()
        chart = self._manifold_chart(self.param_groups, closure, speeds)
        former = self._numbers()
        taken = self.integrator.step(chart, chart.start(), self._state(), h)
        chart.place(taken.y)
        discarded = getattr(taken.y, "discarded", None)
        if discarded is None and chart.discarded and not self.integrator.linearises:
            discarded = float(chart.discarded[-1])
        self.report = replace(taken.report, discarded=discarded, form=chart.form)
        if self.flow is balanced_flow:
            pairs = None if isinstance(closure, LeastSquares) else self._active()
            self._place(self._balanced(self._numbers(), former, pairs))
        self._keep(taken.state)
        return chart.losses[0]

    def _manifold_chart(
        self, groups: list[Group], closure: Callable[[], Tensor] | None, speeds: Iterable[float] = ()
    ) -> ManifoldChart:
        metric = "product" if self.flow is balanced_flow else "factors"
        variables = {group["name"]: variable(group, metric) for group in groups}
        memory = getattr(self.integrator, "memory", math.inf)
        return ManifoldChart(groups, variables, closure, memory, list(speeds))

    # Step sizes, scales, numbers.

    def _h(self) -> float | None:
        return self._speeds()[0]

    def _speeds(self) -> tuple[float | None, list[float]]:
        """h, and for every group the part of the flow's time that passes for it: groups may have different lr."""
        for group in self.param_groups:
            _check_step_size(group)
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
        """s is the layer's: it may have been set since, and a checkpoint may be of another one."""
        for group, layer in zip(self.param_groups, self._layers, strict=True):
            if layer is not None:
                module, adapter = layer
                group["scale"] = float(module.scaling[adapter])

    def _numbers(self) -> list[Tensor]:
        """The parameters, those of 16 bits by their float32 masters."""
        return [self._master(p) if p.dtype in HALF else p.detach().clone() for p in parameters(self.param_groups)]

    def _master(self, p: Tensor) -> Tensor:
        master = self.state[p].get(MASTER)
        # Somebody else may have written to the parameter.
        if master is None or master.shape != p.shape or not torch.equal(master.to(p.dtype), p.detach()):
            master = p.detach().float()
        return master.clone()

    def _place(self, y: list[Tensor]) -> None:
        for p, x in zip(parameters(self.param_groups), y, strict=True):
            p.copy_(x)
            if p.dtype in HALF:
                self.state[p][MASTER] = x

    def _starts_at_zero(self) -> bool:
        """Whether a pair is at a start where the balanced flow is singular; looked at until no pair is."""
        if self.flow is gradient_flow or self._left_zero():
            return False
        numbers = iter(self._numbers())
        pairs = [[next(numbers) for _ in group["params"]] for group in self.param_groups]
        found = any(is_zero(Factors(*pair)) for pair in pairs if len(pair) == 2)
        self.state[self._first()]["left_zero"] = not found
        return found

    def _left_zero(self) -> bool:
        return bool(self.state[self._first()].get("left_zero", False))

    def _active(self) -> list[int]:
        """The groups that are pairs and have gradients."""
        return [
            i
            for i, group in enumerate(self.param_groups)
            if is_pair(group) and any(p.grad is not None for p in group["params"])
        ]

    def _balanced(self, y: list[Tensor], former: list[Tensor], pairs: list[int] | None) -> list[Tensor]:
        """Pairs balanced, their products as they are, in the gauge nearest to the former one; in batches of one shape.

        Args:
            y: the parameters.
            former: the same before the step.
            pairs: the groups to balance; all pairs if absent.
        """
        places, at = [], 0
        for group in self.param_groups:
            places.append(at)
            at += len(group["params"])
        batches: dict[Any, list[int]] = {}
        for i in range(len(self.param_groups)) if pairs is None else pairs:
            if is_pair(self.param_groups[i]):
                A, B = y[places[i]], y[places[i] + 1]
                batches.setdefault((A.shape, B.shape, A.dtype, A.device), []).append(places[i])
        balanced = list(y)
        for members in batches.values():
            of = lambda state, k, members=members: torch.stack([state[i + k] for i in members])
            found = rebalance(Factors(of(y, 0), of(y, 1)), Factors(of(former, 0), of(former, 1)))
            for j, i in enumerate(members):
                balanced[i], balanced[i + 1] = found.A[j], found.B[j]
        return balanced

    # State: the integrator's, with the first parameter, where torch keeps what is saved.

    def _first(self) -> Tensor:
        return self.param_groups[0]["params"][0]

    def _state(self) -> Any:
        return self.integrator.restored(self.state[self._first()][STATE])

    def _keep(self, state: Any) -> None:
        self.state[self._first()][STATE] = dict(vars(state))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; scales stay those of the layers.

        Raises:
            InputError: if the state is of other groups, or of groups in another order.
        """
        saved = state_dict["param_groups"]
        names = [group.get("name", "") for group in self.param_groups]
        found = [group.get("name", "") for group in saved]
        if names != found or [len(g["params"]) for g in saved] != [len(g["params"]) for g in self.param_groups]:
            raise InputError(
                f"the state is that of the groups {', '.join(found)}, but the optimiser has {', '.join(names)}."
            )
        scales = [group["scale"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        # torch casts what it loads to the dtype of the parameters, which would round masters and steps.
        for number, p in enumerate(parameters(self.param_groups)):
            if number in state_dict["state"]:
                self.state[p] = _moved(state_dict["state"][number], p.device)
        for group, scale in zip(self.param_groups, scales, strict=True):
            group["scale"] = scale

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
        raise InputError(f"chart is {chart!r}, but it must be factors or manifold.")
    name = getattr(flow, "__name__", repr(flow))
    if integrator.linearises and flow not in (balanced_flow, gradient_flow):
        raise InputError(
            f"{type(integrator).__name__} follows the gradient flow of a sum of squares, balanced_flow or "
            f"gradient_flow, but not {name}: choose an explicit integrator."
        )
    if integrator.linearises and chart == "factors":
        raise InputError(f"chart is factors, but {type(integrator).__name__} works on the manifold: leave chart out.")
    if chart == "manifold" and not integrator.linearises and flow is not balanced_flow:
        raise InputError(
            f"chart is manifold, but {name} is a field on the factors and not on their product: choose balanced_flow, "
            "or chart='factors'."
        )


def _check_step_size(group: Group) -> None:
    lr = group["lr"]
    if lr is not None and not 0 <= float(lr) < math.inf:
        raise InputError(f"the step size lr is {float(lr)!r}, but it must be a finite number of at least 0.")


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors on a device, in whatever is around them."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(x, device) for name, x in value.items()}
    return [_moved(x, device) for x in value] if isinstance(value, list) else value
