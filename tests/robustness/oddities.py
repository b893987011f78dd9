"""Files that are well-formed and wrong: some of their names and values are others, are gone, or are too many.

The folder has no manifest, as one of an earlier version or of somebody else: other numbers are no fault, but each
reader ends well or with one sentence.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from pinn_odelora.manifest import MANIFEST

from . import child
from .materials import Materials
from .overrides import ended
from .records import Verdict
from .runs import program

MUST = "no traceback, and none hangs"
COUNT = 150
QUICK = (0, 3)
predict = lambda f: child.command("predict", str(f / "run"), str(f / "points.npz"))
resume = lambda f: program(f"resume={f / 'run'}")
DOORS = (
    ("interrupted", "config.yaml", resume),
    ("finished", "config.yaml", predict),
    ("interrupted", "last.ckpt", resume),
    ("finished", "adapter/adapter_config.json", predict),
    ("finished", "summary.json", lambda f: child.command("compare", str(f / "run"))),
    ("interrupted", "start.json", resume),
    ("finished", "summary.json", lambda f: child.command("dashboard", str(f / "run"), "-o", str(f / "page.html"))),
    ("coefficient", "coefficients.json", predict),
)

VALUES = (
    *(None, True, 3, -1.5, "abc", "", [], [1], {}, {"a": 1}, {"_target_": 3}, {"_target_": "problems.heat.Heat"}),
    *([{"_target_": "x"}], math.nan, math.inf, "???", "a.b", "x" * 2000, 10**30, "1e3", [[]], {"": 1}),
)
NAMES = ("x", "_target_", "_args_", "", "a.b", "choices", "3")


def odd(content: Any, rng: random.Random) -> Any:
    """A copy with one to three changes."""
    changed = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = [place for place in _places(changed) if place]
        if not places:
            return rng.choice(VALUES)
        *above, last = rng.choice(places)
        inside = changed
        for name in above:
            inside = inside[name]
        how = rng.random()
        if how < 0.2:
            del inside[last]
        elif how < 0.35 and isinstance(inside, dict):
            inside[rng.choice(NAMES)] = copy.deepcopy(rng.choice(VALUES))
        else:
            inside[last] = copy.deepcopy(rng.choice(VALUES))
    return changed


def _places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, inner in items:
        yield from _places(inner, (*above, name))


def prepare(materials: Materials) -> Materials:
    return materials


def trial(setting: Materials, folder: Path, rng: random.Random, number: int) -> Verdict:
    name, file, reader = DOORS[number % len(DOORS)]
    run = setting.copy(name, folder) / "run"
    (run / MANIFEST).unlink()
    place = run / file
    if place.suffix == ".ckpt":
        changed = odd(torch.load(place, weights_only=True), rng)
        if isinstance(changed, dict):
            changed.pop("sha256", None)
        torch.save(changed, place)
    elif place.suffix == ".yaml":
        place.write_text(yaml.safe_dump(odd(yaml.safe_load(place.read_text()), rng)))
    else:
        place.write_text(json.dumps(odd(json.loads(place.read_text()), rng)))
    left = child.run(reader(folder), folder, {"PINN_ODELORA_CACHE": str(folder / "cache")})
    return ended(left, f"{file} of {name}")
