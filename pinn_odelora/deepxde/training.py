"""A DeepXDE model trained here: from random weights by natural gradient, or adapted by low-rank factors.

The model's network is copied in double precision, trained, and what was found is written back: all weights, or W0 +
s (B A - B₀ A₀) where factors were trained, and the values of unknown coefficients. ``model.predict``, ``dde.saveplot``
and the rest of a script go on from there, in DeepXDE's precision; the result has the solution in ours.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pinn_odelora.adaptation import adapt as adapt_network
from pinn_odelora.budget import Budget
from pinn_odelora.deepxde.problem import Posed, posed, regularisation
from pinn_odelora.geometry.deepxde import library
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.lowrank.adapter_files import merged_state_dict
from pinn_odelora.optim.methods import full_implicit
from pinn_odelora.pretraining.pretrain import Pretraining, pretrain
from pinn_odelora.result import Result
from pinn_odelora.rules import number, whole

log = logging.getLogger(__name__)
LEAST = 1.0
"""Seconds that are left for natural gradient, however long Adam took."""


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
    return _finished(model, own, copy.deepcopy(model.net), seconds, settings)


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

    All weights are trained, on our points and in double precision; otherwise as ``adapt``.

    Args:
        model: compiled, see ``problem``; it is changed in place.
        seconds: of both together, Adam included.
        fields: names of the network's outputs.
        adam_steps: before natural gradient.
        seed: of the points.
        settings: those of ``po.adapt``.

    Raises:
        InputError: as ``problem`` and ``po.adapt`` do, before anything is trained.
    """
    seconds = number(above=0).check("seconds", seconds)
    own = posed(model, fields)
    begun = time.perf_counter()
    first = Pretraining(
        adam_steps=whole(0).check("adam_steps", adam_steps),
        second_stage="natural_gradient",
        natural_gradient_steps=0,
        scales=False,
        seed=seed,
    )
    net = pretrain(own.problem, model.net, settings=first, say=log.info)
    left = max(seconds - (time.perf_counter() - begun), LEAST)
    return _finished(model, own, net, left, {"method": full_implicit(LinearlyImplicit()), "seed": seed, **settings})


def _finished(model: Any, own: Posed, net: torch.nn.Module, seconds: float, settings: dict[str, Any]) -> Result:
    if kind := regularisation(model):
        log.warning("The %s regularization of the network is left out: it is no part of the equation.", kind)
    settings.setdefault("budget", Budget(seconds=seconds))
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
