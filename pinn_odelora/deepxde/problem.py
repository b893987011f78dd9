"""A DeepXDE model as a problem: its equation, conditions, weights, reference and unknown coefficients.

    L = Σ_i w_i · mean |f_i|²

over the losses f_i of the model, those of the equation first. All losses of the equation are one term, ``pde``, whose
columns are √(w_i / (k_i W)) f_i with the largest w_i = W as its weight and k_i the columns of f_i: DeepXDE takes the
mean over columns, too. Each condition is a term of its own, ``bc1``, ``bc2``, … in the model's order. Points are not
those of the model, but drawn by us from the same sets.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinn_odelora.checks.evaluation import Trial, some
from pinn_odelora.deepxde.conditions import array, term
from pinn_odelora.deepxde.derivatives import answered
from pinn_odelora.deepxde.regions import coordinates, domain
from pinn_odelora.deepxde.variables import Substituted, names
from pinn_odelora.derivatives.field import Field
from pinn_odelora.equation import field_names, taking
from pinn_odelora.equation import problem as equation
from pinn_odelora.errors import InputError, cause
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry.deepxde import default_device, library
from pinn_odelora.points import Points

PDE = "pde"


@dataclass(frozen=True)
class Posed:
    """A model's problem, and its unknown coefficients in the order of the model's variables."""

    problem: Problem
    unknown: tuple[str, ...]


def problem(model: Any, fields: Sequence[str] | None = None) -> Problem:
    """The problem of a ``deepxde.Model``, PyTorch backend, for ``po.pretrain``, ``po.adapt`` and all else.

    Its region is the model's geometry, its coordinates are x, y, z and t. Each ``dde.Variable`` is a parameter of the
    same name, and can be unknown; one that is positive stays so where a residual is infinite at zero. Each term is
    named as in ``pinn_odelora.deepxde.problem``.

    Args:
        model: compiled, so that loss weights and variables are known.
        fields: names of the network's outputs; u, or u1, u2, … if not given.

    Raises:
        InputError: for another backend, a model that is not compiled, integro-differential and fractional equations,
            a loss other than the mean square, a condition that holds on no point, or outputs that do not fit.
    """
    return posed(model, fields).problem


def posed(model: Any, fields: Sequence[str] | None = None) -> Posed:
    """As ``problem``, with the names of the unknown coefficients."""
    check(model)
    data, variables = model.data, [*model.external_trainable_variables]
    coords, fields = coordinates(data.geom), outputs(model, fields)
    read = [f for f in (data.pde, *(getattr(bc, "func", None) for bc in data.bcs)) if f is not None]
    unknown = tuple(names(variables, read, {*coords, *fields, *dir(Problem), PDE}))
    weights = _weights(model)
    with default_device("cpu"):
        terms = {
            name: t._replace(residual=_with_variables(t.residual, variables, unknown))
            for name, t in _terms(model, weights, fields, measured=bool(variables)).items()
        }
        made = lambda least: equation(
            coords=coords,
            fields=fields,
            region=domain(data.geom),
            reference=None if data.soln is None else _reference(data.soln, coords, len(fields)),
            scales={},  # the network is the user's own, in units of its own
            name="DeepXDE",
            **{
                name: parameter(v.item(), v.item(), above=least.get(name, -math.inf))
                for name, v in zip(unknown, variables, strict=True)
            },
            **terms,
        )
        free = made({})
        singular = [name for name in unknown if getattr(free, name) > 0 and _singular(free, name)]
    return Posed(made(dict.fromkeys(singular, 0.0)) if singular else free, unknown)


def _singular(free: Problem, name: str) -> bool:
    """Whether a residual is not finite where this coefficient is zero, so that it cannot change its sign on the way."""
    problem, like = replace(free, **{name: 0.0}), torch.zeros((), dtype=torch.float64)
    trial = Trial(problem, like)
    rows = (term.rows(trial.field(some(term.where, like=like))) for term in problem.loss_terms().values())
    try:
        return not all(bool(torch.isfinite(r).all()) for r in rows)
    except Exception:  # Somebody else's function can fail in any way; checks of the problem report it.
        return False


def _terms(model: Any, weights: Sequence[float], fields: Sequence[str], measured: bool) -> dict[str, Term]:
    """The losses of weight above zero, by the names of their terms."""
    data = model.data
    own, others = weights[: len(weights) - len(data.bcs)], weights[len(weights) - len(data.bcs) :]
    found = {PDE: Term(domain(data.geom), _Equation(data, own), max(own))} if any(own) else {}
    for k, (bc, w) in enumerate(zip(data.bcs, others, strict=True), 1):
        if w:
            made = term(f"condition {k} ({type(bc).__name__})", bc, data, fields, measured)
            found[f"bc{k}"] = made._replace(weight=w * made.weight)
    return found


def check(model: Any) -> None:
    """Check what kind of model it is.

    Raises:
        InputError: see ``problem``.
    """
    d = library()
    if d.backend.backend_name != "pytorch":
        raise InputError(
            f"DeepXDE runs on the backend {d.backend.backend_name}, but only pytorch is possible; set "
            "DDE_BACKEND=pytorch."
        )
    if not isinstance(model, d.Model):
        raise InputError(f"The model is a {type(model).__name__}, but it must be a deepxde.Model.")
    data = model.data
    if isinstance(data, d.data.IDE | d.data.FPDE):
        raise InputError(
            f"The model's data is a dde.data.{type(data).__name__}: integrals and fractional derivatives are not "
            "possible, only dde.data.PDE and dde.data.TimePDE."
        )
    if not isinstance(data, d.data.PDE) or not isinstance(model.net, nn.Module):
        raise InputError(
            f"The model's data is a {type(data).__name__} and its net a {type(model.net).__name__}, but they must be "
            "dde.data.PDE or dde.data.TimePDE, and a network of torch."
        )
    if model.outputs_losses_train is None:
        raise InputError('The model was never compiled: call model.compile("adam", lr=1e-3) first.')
    for loss in _losses(model):
        if loss is not d.losses.mean_squared_error:
            raise InputError(
                f"The model's loss is {getattr(loss, '__name__', loss)}, but only the mean square, "
                'compile(..., loss="MSE"), is possible.'
            )


def _losses(model: Any) -> list[Callable]:
    """The loss functions that ``compile`` was told, which the model keeps in a closure alone."""
    inner = inspect.getclosurevars(model.outputs_losses_train).nonlocals.get("outputs_losses")
    found = None
    for function in (model.outputs_losses_train, inner):
        if function is not None:
            found = inspect.getclosurevars(function).nonlocals.get("loss_fn", found)
    if found is None:
        compiled = inspect.getclosurevars(model.outputs_losses_train).nonlocals
        raise InputError(f"The losses of this version of DeepXDE cannot be read: {', '.join(compiled)}.")
    return [*found] if isinstance(found, list | tuple) else [found]


def outputs(model: Any, fields: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the network's outputs, which are counted at a few points."""
    few = next(model.net.parameters()).new_tensor(model.data.train_x[:2])
    try:
        with torch.no_grad():
            number = model.net(few).shape[1]
    except Exception as error:  # Somebody else's network and transforms can fail in any way.
        raise InputError(f"The network cannot be called at points of shape {(*few.shape,)}: {cause(error)}.") from error
    if fields is None:
        return field_names(number)
    if len(fields) != number:
        raise InputError(f"fields names {len(fields)} outputs, but the network has {number}.")
    return tuple(fields)


def _weights(model: Any) -> list[float]:
    """w_i of all losses, those of the equation first."""
    number, conditions = _number(model), len(model.data.bcs)
    weights = [1.0] * (number + conditions) if model.loss_weights is None else [float(w) for w in model.loss_weights]
    if len(weights) != number + conditions:
        raise InputError(
            f"compile has {len(weights)} loss weights, but the equation has {number} losses, and there are "
            f"{conditions} conditions."
        )
    if min(weights) < 0 or not any(weights):
        raise InputError(f"The loss weights are {weights}, but they must not be negative, and one must not be zero.")
    return weights


def _number(model: Any) -> int:
    """How many losses the equation has, which DeepXDE itself learns by evaluating it."""
    if model.data.pde is None:
        return 0
    data, real, weights = model.data, library().config.real(np), model.loss_weights
    cast = [None if x is None else x.astype(real) for x in (data.train_x, data.train_y, data.train_aux_vars)]
    model.loss_weights = None  # of another number they would hide how many losses there are
    try:
        losses = model.outputs_losses_test(*cast)[1]
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"DeepXDE cannot evaluate the model's losses: {str(error).rstrip('.')}.") from error
    finally:
        model.loss_weights = weights
    return len(losses) - len(data.bcs) - int(regularisation(model) == "l1")


def regularisation(model: Any) -> str:
    """The kind of regularisation of the network; empty for none."""
    given = getattr(model.net, "regularizer", None)
    return "" if given is None else given[0]


class _Equation:
    """The residual of the equation, all its losses side by side."""

    def __init__(self, data: Any, weights: Sequence[float]) -> None:
        self.data = data
        self.weights = [w / max(weights) for w in weights]

    def __call__(self, f: Field) -> Tensor:
        with answered(f) as d:
            y = (d.y, None) if library().config.autodiff == "forward" else d.y
            more = () if self.data.auxiliary_var_fn is None else (self._auxiliary(d.x),)
            found = self.data.pde(d.x, y, *more)
        losses = found if isinstance(found, list | tuple) else [found]
        if len(losses) != len(self.weights):
            raise InputError(f"pde returns {len(losses)} residuals, but there are {len(self.weights)} loss weights.")
        columns = [x if x.ndim == 2 else x.reshape(len(d.x), -1) for x in losses]
        scaled = [math.sqrt(w / x.shape[1]) * x for w, x in zip(self.weights, columns, strict=True) if w]
        return torch.cat(scaled, dim=1)

    def _auxiliary(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.data.auxiliary_var_fn(array(x)), dtype=x.dtype, device=x.device)


def _with_variables(residual: Callable, variables: Sequence[Tensor], unknown: Sequence[str]) -> Callable:
    """A residual that takes the unknown coefficients by name."""

    def rows(f: Field, values: Mapping[str, Any]) -> Tensor:
        with Substituted((v, _number_of(values[name], v)) for v, name in zip(variables, unknown, strict=True)):
            return residual(f)

    return taking(unknown, rows) if unknown else residual


def _number_of(value: Any, variable: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.tensor(float(value), dtype=torch.float64, device=variable.device)
    return value.reshape(variable.shape)


def _reference(solution: Callable, coords: Sequence[str], number: int) -> Callable[[Points], Tensor]:
    def reference(p: Points) -> Tensor:
        rows = p.rows(coords)
        return torch.as_tensor(solution(array(rows)), dtype=rows.dtype, device=rows.device).reshape(-1, number)

    return reference
