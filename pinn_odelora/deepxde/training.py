"""A DeepXDE model trained here: from random weights by natural gradient, or adapted by low-rank factors.

The model's network is copied in double precision, trained, and what was found is written back: all weights, or W0 +
s (B A - B₀ A₀) where factors were trained, and the values of unknown coefficients. ``model.predict``, ``dde.saveplot``
and the rest of a script go on from there, in DeepXDE's precision; the result has the solution in ours.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pinn_odelora.adaptation import adapt as adapt_network
from pinn_odelora.budget import Budget
from pinn_odelora.deepxde.problem import Posed, posed, regularisation
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry.deepxde import default_device, library
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.lowrank.adapter_files import merged_state_dict
from pinn_odelora.nets import check_network, copied
from pinn_odelora.optim.methods import full_implicit
from pinn_odelora.pretraining import following, stages
from pinn_odelora.pretraining.pretrain import unseen_error, without_reference
from pinn_odelora.result import Result
from pinn_odelora.rules import number, whole
from pinn_odelora.system import Solution, System
from pinn_odelora.threads import threads

log = logging.getLogger(__name__)
INTERIOR, BOUNDARY = 1000, 200
"""As of ``Pretraining``."""
ADAM_PART = 0.1
"""Of the time, at most."""
MOSTLY, AT_THE_GUESS = 0.85, 0.4
"""The part of the time before the run that is returned: nearly all, or less where that has to find coefficients."""
LEAST = 1.0
"""Seconds for each part, however long those before it took."""
FLOOR = 1e-12
"""The relative error below which nothing is gained."""
STEPS = 10_000
"""Of natural gradient at most, in messages."""


def adapt(model: Any, seconds: float = 10.0, *, fields: Sequence[str] | None = None, **settings: Any) -> Result:
    """Adapt the network of a ``deepxde.Model`` to its equation by low-rank factors, trained by ODELoRA.

        model.restore("re20.pt")              # a network that solves the equation at another parameter
        result = po.deepxde.adapt(model, seconds=10)
        model.predict(x)                      # goes on with the adapted network

    A coefficient that is a ``dde.Variable`` is unknown: it is found from the values of ``PointSetBC`` and
    ``PointSetOperatorBC``, and has an interval.

    Args:
        model: compiled, its network trained or restored, see ``problem``; it is changed in place.
        seconds: spent in steps.
        fields: names of the network's outputs.
        settings: those of ``po.adapt``: ``rank``, ``method``, ``points``, ``budget`` in place of ``seconds``, ….

    Raises:
        InputError: as ``problem`` and ``po.adapt`` do, before anything is trained.
    """
    own = posed(model, fields)
    return _finished(model, own, model.net, seconds, settings)


def train(
    model: Any,
    seconds: float = 60.0,
    *,
    fields: Sequence[str] | None = None,
    adam_steps: int = 100,
    seed: int = 0,
    **settings: Any,
) -> Result:
    """Train the network of a ``deepxde.Model`` from its weights as they are: Adam, then natural gradient.

    All weights are trained, on our points and in double precision, as ``po.pretrain`` does, and in the last part of the
    time as ``po.adapt`` does with ``full_implicit``, whose result is returned; otherwise as ``adapt``.

    Args:
        model: compiled, see ``problem``; it is changed in place.
        seconds: of both together, Adam included.
        fields: names of the network's outputs.
        adam_steps: before natural gradient; fewer where they would take more than a tenth of ``seconds``.
        seed: of the points.
        settings: those of ``po.adapt``; a ``budget`` is that of each part.

    Raises:
        InputError: as ``problem`` and ``po.adapt`` do, before anything is trained.
    """
    seconds = number(above=0).check("seconds", seconds)
    adam_steps = whole(0).check("adam_steps", adam_steps)
    own = posed(model, fields)
    begun = time.perf_counter()
    net = check_network(copied(model.net), own.problem)
    # With its guess for an unknown coefficient, which is found afterwards.
    until = begun + seconds * (AT_THE_GUESS if own.unknown else MOSTLY)
    with threads(1), default_device("cpu"):
        _pretrained(own.problem.as_source(), net, adam_steps, until, settings.get("budget"), seed)
    left = max(seconds - (time.perf_counter() - begun), LEAST)
    return _finished(model, own, net, left, {"method": full_implicit(LinearlyImplicit()), "seed": seed, **settings})


def _pretrained(
    problem: Problem, net: nn.Module, adam_steps: int, until: float, budget: Budget | None, seed: int
) -> None:
    """Train a network in place, as pretraining does, until a time or for a budget: by L-BFGS where a Jacobian is too
    expensive for natural gradient.
    """
    system = System(problem, Solution(problem, net))
    seconds = math.inf if budget else ADAM_PART * max(until - time.perf_counter(), LEAST)
    first = stages.adam(system, INTERIOR, BOUNDARY, seed, adam_steps, stages.adam_lr(net), log.info, seconds=seconds)
    if first.failure is not None:
        raise InputError(f"Adam failed: {first.failure}")
    budget = budget or Budget(seconds=max(until - time.perf_counter(), LEAST))
    stage = stages.natural_gradient(system, INTERIOR, BOUNDARY, seed)
    if reason := stages.unsuitable(stage):
        log.info("L-BFGS follows, since %s.", reason)
        stage = stages.lbfgs(system, INTERIOR, BOUNDARY, seed)
    error, unseen = unseen_error(system, seed), without_reference(system, seed)
    following.follow(stage, budget, STEPS, error, FLOOR, log.info, unseen)
    system.solution.zero_grad(set_to_none=True)


def _finished(model: Any, own: Posed, net: nn.Module, seconds: float, settings: dict[str, Any]) -> Result:
    if kind := regularisation(model):
        log.warning("The %s regularization of the network is left out: it is no part of the equation.", kind)
    settings.setdefault("budget", Budget(seconds=seconds))
    with default_device("cpu"):
        result = adapt_network(net, own.problem, unknown=own.unknown, **settings)
    _put(model, own, result)
    return result


def _put(model: Any, own: Posed, result: Result) -> None:
    """Write what was found into the model, and a row of its losses into its history."""
    model.net.load_state_dict(merged_state_dict(result.net))
    with torch.no_grad():
        for name, variable in zip(own.unknown, model.external_trainable_variables, strict=True):
            variable.fill_(result.coefficients[name]["estimate"])
    real = library().config.real(np)
    cast = lambda arrays: [None if x is None else np.asarray(x, dtype=real) for x in arrays]
    state = model.train_state
    state.set_data_train(*cast(model.data.train_next_batch(model.batch_size)))
    state.set_data_test(*cast(model.data.test()))
    state.step += result.steps
    state.iteration += result.steps
    state.disregard_best()  # of former weights: the best ones are those that are here
    model._test(verbose=0)
