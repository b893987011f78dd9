"""Whether a saved state is that of a run, told before anything is continued from it.

Besides weights, optimiser and record a state has ``run``, the settings that its numbers depend on, and ``sha256``, a
digest of all that it holds, tensors by their bytes. What is checked, in this order:

    the names and sizes of weights, counters, memories and groups are those that the run has itself
    ``run`` is what the run would write
    the digest is that of the content

so that a state of another run is refused by what differs, and one that was changed by the digest. States of before have
neither of the last two.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from pinn_odelora.budget import Progress
from pinn_odelora.errors import InputError, cause
from pinn_odelora.loop import Training
from pinn_odelora.manifest import digest_of
from pinn_odelora.objective import Evaluation
from pinn_odelora.runs.ended import EndedRun
from pinn_odelora.runs.save import described
from pinn_odelora.sampling.batch_size import AdaptiveBatchSize, completed
from pinn_odelora.selection.best_iterate import Iterate
from pinn_odelora.selection.rank import Watch

RUN, DIGEST = "run", "sha256"
RESHAPED = ("lora_A.default.weight", "lora_B.default.weight", "start_A", "start_B")
"""Tensors whose sizes follow an adaptive rank."""


class OtherError(Exception):
    """How a state differs from that of the run."""


class Layout(NamedTuple):
    """Where a state keeps what.

    Attributes:
        names: that it must have, others beside them.
        weights, training: names of the network's tensors and of the record of the run.
        optimizers: gives the states of optimisers.
    """

    names: tuple[str, ...]
    weights: str
    training: str
    optimizers: Callable[[Mapping[str, Any]], Any]


PLAIN = Layout(
    ("solution", "optimizer", "training", "history", "error_before"),
    "solution",
    "training",
    lambda saved: [saved["optimizer"]],
)
"""As ``Adaptation.state_dict`` gives it."""


def check(
    saved: Mapping[str, Any],
    run: EndedRun,
    layout: Layout,
    weights: Mapping[str, Tensor],
    refused: Callable[[str], InputError],
) -> None:
    """Refuse a state that is not that of a run.

    Args:
        saved: the state.
        run: the run, before its first step.
        layout: where the state keeps what.
        weights: tensors of the run by the names that they have in the state.
        refused: the error for a sentence whose subject is the state.

    Raises:
        InputError: naming what differs.
    """
    try:
        training = run.training  # with which factors are put into the network
        _has(saved, layout.names, "it")
        _check_weights(saved[layout.weights], weights, run)
        _check_training(saved[layout.training], training)
        _check_optimizer(layout.optimizers(saved), training)
        _check_settings(saved.get(RUN), settings(run))
    except OtherError as error:
        raise refused(f"is not that of this run: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise refused(f"is not that of this run ({cause(error)})") from error
    if saved.get(DIGEST, expected := digest(saved)) != expected:
        raise refused("has changed since it was written, or is damaged: its digest is another one")


def seal(saved: dict[str, Any], run: EndedRun) -> None:
    """Put the settings of the run and the digest into a state, when all else is in it."""
    saved[RUN] = settings(run)
    saved[DIGEST] = digest(saved)


def settings(run: EndedRun) -> dict[str, Any]:
    """The settings that the numbers of a run depend on, and how far it goes not among them, as plain values."""
    method = run.method
    problem = {name: x for name, x in described(run.problem).items() if name not in run.unknown}
    found = {
        "problem": problem,
        "method": {"name": method.name, **method.settings},
        "integrator": None if method.integrator is None else described(method.integrator),
        **{name: dataclasses.asdict(getattr(run, name)) for name in ("lora", "points", "weighting")},
        "unknown": [*run.unknown],
        "seed": run.seed,
        "precision": run.precision,
    }
    return json.loads(json.dumps(found, default=str))


def digest(saved: Mapping[str, Any]) -> str:
    """Of all that a state holds but its digest."""
    return digest_of(*_parts({name: value for name, value in saved.items() if name != DIGEST}))


def whole(value: Any) -> int:
    """A counter."""
    if type(value) is not int or value < -1:
        raise OtherError(f"a counter in it is {value!r}")
    return value


# What a state has.


def _has(found: Any, names: Any, where: str) -> None:
    """Whether a map has exactly, or of a whole state at least, these names."""
    if not isinstance(found, Mapping):
        raise OtherError(f"{where} is {type(found).__name__} in place of names with values")
    if missing := [name for name in names if name not in found]:
        raise OtherError(f"{where} has no {missing[0]}")
    if where != "it" and (surplus := [name for name in found if name not in names]):
        raise OtherError(f"{where} has {surplus[0]}, which that of the run has not")


def _check_weights(found: Any, own: Mapping[str, Tensor], run: EndedRun) -> None:
    _has(found, own, "its network")
    for name, like in own.items():
        x = found[name]
        if not isinstance(x, Tensor) or x.dtype != like.dtype:
            raise OtherError(f"{name} is {_kind(x)}, in the run {like.dtype}")
        follows = run.adaptive is not None and name.endswith(RESHAPED) and x.ndim == like.ndim
        if x.shape != like.shape and not follows:
            raise OtherError(f"{name} is {tuple(x.shape)}, in the run {tuple(like.shape)}")
        if not x.isfinite().all():
            raise OtherError(f"{name} holds NaN or infinite values")


def _check_training(found: Any, own: Training) -> None:
    expected = own.state_dict()
    _has(found, expected, "its record of the run")
    _check_fields(Progress, found["progress"], "progress")
    _check_fields(AdaptiveBatchSize, completed(found["batch_size"]), "batch_size")
    _has(found["best"], expected["best"], "best")
    for name, iterate in found["best"].items():
        _check_fields(Iterate, iterate, name)
        _check_tensors(iterate["parameters"], own, f"parameters of {name}", empty=True)
    for name in ("ranks", "loss_weights"):
        if (found[name] is None) != (expected[name] is None):
            raise OtherError(f"it has {'no ' if found[name] is None else ''}{name}")
    if expected["ranks"] is not None:
        _has(found["ranks"], expected["ranks"], "ranks")
        for name, watch in found["ranks"].items():
            _check_fields(Watch, watch, f"ranks of {name}")
    if expected["loss_weights"] is not None:
        _has(found["loss_weights"], expected["loss_weights"], "loss_weights")
        multipliers = found["loss_weights"]["multipliers"]
        _has(multipliers, expected["loss_weights"]["multipliers"] or multipliers, "multipliers")
    if (last := found["evaluation"]) is not None:
        _has(last, Evaluation._fields, "evaluation")
        for name in ("parameters", "gradients"):
            _check_tensors(last[name], own, f"{name} of its evaluation")
        _has(last["weights"], own.objective.layers, "weights of its evaluation")
    for name in ("draw", "considered"):
        whole(found[name])


def _check_fields(cls: type, found: Any, where: str) -> None:
    """Names and types of what a dataclass was saved as; counters are not negative."""
    kinds = get_type_hints(cls)
    _has(found, kinds, where)
    for name, kind in kinds.items():
        value = found[name]
        numbers = {int: int, float: int | float, bool: bool, float | None: int | float | None}.get(kind, object)
        wrong = isinstance(value, bool) != (kind is bool) and kind in (int, float, bool)
        if kind == list[float]:
            wrong = not isinstance(value, list) or not all(type(x) in (int, float) for x in value)
        if wrong or not isinstance(value, numbers) or (kind is int and value < 0):
            raise OtherError(f"{name} of {where} is {_kind(value)}")


def _check_tensors(found: Any, own: Training, where: str, empty: bool = False) -> None:
    """One tensor for each that is trained, of its size but for adaptive ranks."""
    if empty and found == []:
        return
    like = own.objective.parameters
    if not isinstance(found, list) or len(found) != len(like):
        raise OtherError(f"it has {len(found)} {where}, the run {len(like)}")
    for x, p in zip(found, like, strict=True):
        if not isinstance(x, Tensor) or x.ndim != p.ndim or (own.ranks is None and x.shape != p.shape):
            raise OtherError(f"one of the {where} is {_kind(x)}, in the run {tuple(p.shape)}")


def _check_optimizer(found: Any, own: Training) -> None:
    if not isinstance(found, list) or len(found) != 1:
        raise OtherError("it has not one optimiser")
    _has(found[0], ("state", "param_groups"), "its optimiser")
    groups = own.optimizer.state_dict()["param_groups"]
    if len(found[0]["param_groups"]) != len(groups):
        raise OtherError(f"its optimiser has {len(found[0]['param_groups'])} groups, that of the run {len(groups)}")
    for group, like in zip(found[0]["param_groups"], groups, strict=True):
        if missing := [name for name in like if name not in group]:
            raise OtherError(f"its optimiser has no {missing[0]}")
        if len(group["params"]) != len(like["params"]) or group.get("name") != like.get("name"):
            raise OtherError("its optimiser has other groups")
    places = {k for group in groups for k in group["params"]}
    if other := [k for k in found[0]["state"] if k not in places]:
        raise OtherError(f"its optimiser has a memory of {other[0]!r}, which the run does not train")


def _check_settings(found: Any, own: Mapping[str, Any]) -> None:
    if found is None:  # of an earlier version
        return
    theirs, ours = dict(_flat(found)), dict(_flat(own))
    for name in (*ours, *theirs):
        if (there := theirs.get(name)) != (here := ours.get(name)):
            raise OtherError(f"its {name} is {there}, that of the run {here}")


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield prefix.replace("._target_", ""), node
        return
    for name, inner in node.items():
        yield from _flat(inner, f"{prefix}.{name}".strip("."))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype}"
    return repr(value) if isinstance(value, int | float | str | None) else type(value).__name__


# Bytes.


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} ".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for name in sorted(value, key=repr):
            yield f"{{{name!r}: ".encode()
            yield from _parts(value[name])
        yield b"}"
    elif isinstance(value, list | tuple):
        for inner in value:
            yield b"["
            yield from _parts(inner)
        yield b"]"
    elif value is None or isinstance(value, bool | int | float | str):
        yield (repr(value) if not (isinstance(value, float) and math.isnan(value)) else "nan").encode()
    else:
        yield type(value).__name__.encode()
