"""A family in one safetensors file: the adapters of all stations, and what they belong to.

Tensors are named ``<station>/<parameter>``. The metadata's entry ``family`` is JSON: a digest of the pretrained
network, the problem with its other parameters, the ranges, the adapter's settings, and for every station its
parameters, loss, estimates and cost. An equation made of functions has no name of its own: what tells it from another
one is the loss of the pretrained network at both ends of the ranges, at points that are always the same. Times are kept
where the budget was one of time; without them the same work gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch import nn

from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.families.family import Family
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.ranges import Interval, Ranges
from pinn_odelora.families.stations import Station
from pinn_odelora.files import reason, write_bytes
from pinn_odelora.formulation import Problem
from pinn_odelora.lowrank.settings import LoRA
from pinn_odelora.manifest import DamagedError, digest_of
from pinn_odelora.rules import annotated, list_of, null, number, whole
from pinn_odelora.threads import threads as limited

FORMAT = 1
POINTS, CLOSE = 400, 1e-6
"""Residuals by which an equation is told from another one, and the relative difference of their losses on machines."""
NUMBERS = [f.name for f in dataclasses.fields(Station) if f.name not in ("values", "weights")]
KINDS = get_type_hints(Station)
RULES = {name: whole(0) if KINDS[name] is int else annotated(KINDS[name]) for name in NUMBERS}
"""What each of them may be."""


def save(family: Family, path: str | Path) -> None:
    """Write a family; the file is replaced as a whole.

    Raises:
        InputError: if it cannot be written.
    """
    tensors = {f"{k}/{name}": x for k, s in enumerate(family.stations) for name, x in s.weights.items()}
    content = _described(family) | {"stations": [_row(s, family.timed) for s in family.stations]}
    written = json.dumps(content | {"sha256": _digest(content, tensors)}, allow_nan=False)
    # One entry alone: the order of several is not always the same.
    write_bytes(path, safetensors.torch.save(tensors, {"family": written}))


def load_family(path: str | Path, net: nn.Module, problem: Problem, *, threads: int | None = 1) -> Family:
    """Read a family.

    Args:
        path: what ``family.save`` wrote, or the ``file`` of ``po.family``.
        net: the pretrained network that it was made from.
        problem: its equation.
        threads: CPU threads for answers; None leaves them as they are.

    Raises:
        InputError: if the file is no family, or of another network or equation.
    """
    content, stations = _read(path)
    try:
        ranges, lora = Ranges(tuple(Interval(**x) for x in content["ranges"])), LoRA(**content["lora"])
    except (TypeError, ValueError) as error:
        raise _no_family(path) from error
    with limited(threads):
        parametric = Parametric(net, problem, ranges.names, lora, content["seed"])
        found = Family(parametric, ranges, content["seed"], threads)
        _take(found, path, content, stations)
    return found


def continued(family: Family, path: str | Path) -> None:
    """Give a family without stations those of a file, if there is one.

    Raises:
        InputError: if the file is no family, or one of other settings.
    """
    if Path(path).exists():
        _take(family, path, *_read(path))


def _described(family: Family) -> dict[str, Any]:
    parametric = family.parametric
    return {
        "format": FORMAT,
        "network": parametric.digest,
        "problem": type(parametric.posed).__name__,
        "others": {
            name: value
            for name in parametric.posed.parameters()
            if name not in parametric.names and not hasattr(value := getattr(parametric.posed, name), "shape")
        },
        "conditions": parametric.posed.conditions,
        "ranges": [dataclasses.asdict(interval) for interval in family.space.intervals],
        "lora": {k: v for k, v in dataclasses.asdict(parametric.lora).items() if k != "adaptive"},
        "seed": family.seed,
        "grid": family.grid,
        "seconds": family.seconds if family.timed else None,
        "losses": _losses(family),
    }


def _losses(family: Family) -> list[float | None]:
    """Of the pretrained network, by the equations at both ends of the ranges; None for one that is not finite."""
    parametric, found = family.parametric, []
    points = parametric.points(POINTS, 0, "family file")
    for end in ("low", "high"):
        values = {interval.name: getattr(interval, end) for interval in family.space.intervals}
        parametric.place(parametric.start, values)
        with torch.no_grad():
            loss = float(parametric.residual_vector(points).square().sum()) / 2
        found.append(loss if math.isfinite(loss) else None)
    return found


def _row(station: Station, timed: bool) -> dict[str, Any]:
    numbers = {name: getattr(station, name) for name in NUMBERS}
    if not timed:
        numbers["seconds"] = math.nan
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
    return {"values": station.values} | plain


def _read(path: str | Path) -> tuple[dict[str, Any], list[Station]]:
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            content = json.loads((file.metadata() or {})["family"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if content["format"] != FORMAT:
            raise InputError(f"{path} has format {content['format']}, but this version reads format {FORMAT}.")
        # A file of before has no digest.
        if content.get("sha256", digest := _digest(content, tensors)) != digest:
            raise DamagedError(f"{path} has changed since it was written, or is damaged: its digest is another one.")
        whole(0).check("seed", content["seed"])
        whole(0).check("grid", content["grid"])
        (number(least=0) | null).check("seconds", content["seconds"])
        # A file of before has no losses.
        list_of(number() | null, "losses", 2).check("losses", content.get("losses", [None, None]))
        stations = [_station(row, k, tensors) for k, row in enumerate(content["stations"])]
    except FileNotFoundError:
        raise InputError(f"There is no family at {path}.") from None
    except OSError as error:
        raise InputError(f"Cannot read {path}: {reason(error)}.") from error
    except RefusedValueError as error:
        raise _no_family(path) from error
    except InputError:
        raise
    except Exception as error:  # A damaged file can fail in any way.
        raise _no_family(path) from error
    return content, stations


def _no_family(path: str | Path) -> InputError:
    return InputError(f"{path} is no family of this program, or it is damaged.")


def _digest(content: dict[str, Any], tensors: dict[str, Any]) -> str:
    """Of all that a file holds; only the digest itself is left out."""
    covered = {name: value for name, value in content.items() if name != "sha256"}
    return digest_of(json.dumps(covered, sort_keys=True).encode(), safetensors.torch.save(tensors))


def _station(row: dict[str, Any], k: int, tensors: dict[str, Any]) -> Station:
    weights = {name.partition("/")[2]: x for name, x in tensors.items() if name.partition("/")[0] == str(k)}
    numbers = {name: math.nan if row[name] is None else RULES[name].check(name, row[name]) for name in NUMBERS}
    if not all(bool(x.isfinite().all()) for x in weights.values()):
        raise ValueError("an adapter holds NaN or infinite values")
    return Station({name: number().check(name, x) for name, x in row["values"].items()}, weights, **numbers)


def _take(family: Family, path: str | Path, content: dict[str, Any], stations: list[Station]) -> None:
    expected = json.loads(json.dumps(_described(family)))
    losses = expected.pop("losses")
    if missing := expected.keys() - content.keys():
        raise InputError(f"{path} is no family of this program: it has no {min(missing)}.")
    if content["network"] != expected["network"]:
        raise InputError(
            f"{path} belongs to another pretrained network: its digest is {content['network']}, that of this network "
            f"{expected['network']}."
        )
    for key, said in (
        ("problem", "the equation"),
        ("others", "the other parameters"),
        ("conditions", "the conditions"),
        ("ranges", "the ranges"),
        ("lora", "the adapters"),
        ("seed", "the seed"),
    ):
        if content[key] != expected[key]:
            raise InputError(f"{path} is of another family: {said} there: {content[key]}, here: {expected[key]}.")
    for here, there in zip(losses, content.get("losses", losses), strict=True):
        if None not in (here, there) and not math.isclose(here, there, rel_tol=CLOSE):
            raise InputError(
                f"{path} is of another equation: the pretrained network has a loss of {there:.6g} there, and of "
                f"{here:.6g} here, at an end of the ranges."
            )
    for station in stations:
        shapes = {name: tuple(x.shape) for name, x in station.weights.items()}
        if shapes != {name: tuple(p.shape) for name, p in family.parametric.trained.items()}:
            raise InputError(f"{path} holds adapters of other shapes than those of this network.")
        family.add(station)
    family.grid, family.seconds = content["grid"], content["seconds"] or 0.0
