"""Files that have changed: a bit, an end, a digit, the encoding, or all of one.

What reads such a file says so in one sentence, or finds what it found before. Where a manifest or a digest covers the
file, other numbers are never given without a word; a checkpoint or a table of the user's is covered by nothing, and a
changed digit in it is another number.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import child
from .materials import Materials, adapter, data, weights
from .records import Verdict
from .runs import asked, difference, outcome, program

MUST = "one sentence, or as before; nothing covered is taken silently"
COUNT = 1500
QUICK = (0, 1, 2, 3, 4, 5, 7, 9, 10, 13, 18)


class Door(NamedTuple):
    """What reads files of a folder.

    Attributes:
        of: the material.
        files: that are changed.
        read: the program, for a folder.
        found: what it has found, for a folder and what it said.
        covered: whether a manifest or a digest covers each of the files.
    """

    of: str
    files: tuple[str, ...]
    read: Callable[[Path], child.Call]
    found: Callable[[Path, str], Any]
    covered: bool = True


def predicted(folder: Path, _: str) -> bytes:
    return (folder / "points-predicted.npz").read_bytes()


def ended(folder: Path, _: str) -> dict[str, Any]:
    return outcome(folder / "run")


def said(folder: Path, text: str) -> str:
    return text.replace(str(folder), "")


predict = lambda f: child.command("predict", str(f / "run"), str(f / "points.npz"))
resume = lambda f: program(f"resume={f / 'run'}")
BASE = ("run/config.yaml", "run/provenance.json", "run/pretrained.safetensors", "run/manifest.json")
ADAPTER = ("run/adapter/adapter_config.json", "run/adapter/adapter_model.safetensors")
STATE = (*BASE, "run/start.json", "run/last.ckpt", "run/last.ckpt")
DOORS = (
    Door("finished", (*BASE, *ADAPTER, *ADAPTER), predict, predicted),
    Door("interrupted", STATE, resume, ended),
    Door("files", ("weights.safetensors",), lambda f: weights(f / "weights.safetensors"), said, False),
    Door("interrupted", STATE, resume, ended),
    Door("files", ("zip.pt",), lambda f: weights(f / "zip.pt"), said, False),
    Door("files", ("legacy.pt",), lambda f: weights(f / "legacy.pt"), said, False),
    Door("finished", (*BASE, *ADAPTER, *ADAPTER), predict, predicted),
    Door("files", ("lightning.ckpt",), lambda f: weights(f / "lightning.ckpt"), said, False),
    Door("coefficient", (*BASE, *ADAPTER, "run/coefficients.json"), predict, predicted),
    Door("files", ("data.csv",), lambda f: data(f / "data.csv"), said, False),
    Door("files", ("data.npz",), lambda f: data(f / "data.npz"), said, False),
    Door("all weights", (*BASE, "run/network.safetensors"), predict, predicted),
    Door(
        "family",
        ("run/family.safetensors", "run/family.safetensors", *BASE),
        lambda f: child.command("family", str(f / "run"), "kappa=0.055", "--points", str(f / "points.npz")),
        predicted,
    ),
    Door(
        "finished",
        ("run/config.yaml", "run/summary.json", "run/manifest.json"),
        lambda f: child.command("compare", str(f / "run"), "--csv", str(f / "table.csv")),
        lambda f, _: (f / "table.csv").read_bytes(),
    ),
    Door(
        "finished",
        ("run/config.yaml", "run/summary.json", "run/history.csv", "run/manifest.json"),
        lambda f: child.command("dashboard", str(f / "run"), "-o", str(f / "page.html")),
        lambda f, _: said(f, (f / "page.html").read_text()),
    ),
    Door("finished", ADAPTER, lambda f: adapter(f / "run" / "adapter"), said, False),
    Door("finished", ("points.npz",), predict, predicted, False),
    Door("interrupted", ("run/history.csv",), resume, ended, False),
    Door("finished", ("run/last.ckpt", *BASE), resume, ended),
    Door(
        "finished",
        ("cache/*.json", "cache/*.safetensors"),
        lambda f: program(*asked(("pretrain.seed=0", "seed=0", "budget.steps=1"), f / "new")),
        lambda f, _: outcome(f / "new"),
    ),
)


# Changes: content, that of the file of another run, and a generator, to content.


def bit(content: bytes, _: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def bits(content: bytes, other: bytes, rng: random.Random) -> bytes:
    for _ in range(8):
        content = bit(content, other, rng)
    return content


def cut(content: bytes, _: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def emptied(content: bytes, _: bytes, rng: random.Random) -> bytes:
    return b""


def appended(content: bytes, _: bytes, rng: random.Random) -> bytes:
    return content + rng.choice([b"\n", b"\0", b"}", rng.randbytes(rng.randint(1, 40)), content])


def blank(content: bytes, _: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content)), rng.randint(1, 64)
    part = content[at : at + size]
    return content[:at] + rng.choice([b"\0", b" ", b"\xff"]) * len(part) + content[at + size :]


def moved(content: bytes, _: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[at:] + content[:at]


def swapped(_: bytes, other: bytes, rng: random.Random) -> bytes:
    return other


def encoded(content: bytes, other: bytes, rng: random.Random) -> bytes:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return bits(content, other, rng)
    forms = [text.encode("utf-16"), text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode()]
    return rng.choice([*forms, text.replace("e", "é").encode("latin-1", "replace"), text.encode("utf-7")])


def digit(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Another digit in the place of one: a number that looks as good as before."""
    places = [k for k, byte in enumerate(content) if chr(byte).isdigit() and byte < 128]
    if not places:
        return bit(content, other, rng)
    at = rng.choice(places)
    return content[:at] + b"%d" % ((content[at] - 48 + rng.randint(1, 9)) % 10) + content[at + 1 :]


CHANGES = (bit, bit, bit, bits, cut, cut, emptied, appended, blank, moved, swapped, encoded, digit)


class Setting:
    """Materials, and what each door finds in the undamaged ones."""

    def __init__(self, materials: Materials) -> None:
        self.materials, self.found = materials, {}

    def undamaged(self, number: int) -> Any:
        if number not in self.found:
            with child.workplace() as folder:
                self.found[number] = _read(DOORS[number], self.materials.copy(DOORS[number].of, folder))[0]
        return self.found[number]


prepare = Setting


def trial(setting: Setting, folder: Path, rng: random.Random, number: int) -> Verdict:
    chosen = number % len(DOORS)
    door = DOORS[chosen]
    pattern, change = rng.choice(door.files), rng.choice(CHANGES)
    file = next(iter(sorted(setting.materials.copy(door.of, folder).glob(pattern))))
    other = (
        next(iter(sorted(setting.materials.of(door.of, 1).glob(pattern)))).read_bytes() if change is swapped else b""
    )
    content = file.read_bytes()
    while (changed := change(content, other, rng)) == content:
        change = bit  # what the two runs have in common, for instance
    file.write_bytes(changed)
    what = f"{file.name} of {door.of}, {change.__name__}"
    found, left = _read(door, folder)
    if left.code is None:
        return Verdict("hang", False, what, left.last)
    if left.traceback:
        return Verdict("traceback", False, what, left.last)
    if left.code in (2, 3):
        return Verdict("refused", True, what, left.last)
    if left.code != 0:
        return Verdict(f"code {left.code}", False, what, left.last)
    before = setting.undamaged(chosen)
    same = not difference(found, before) if isinstance(found, dict) else found == before
    if same:
        return Verdict("as before", True, what)
    return Verdict("silent" if door.covered else "other numbers, covered by nothing", not door.covered, what, left.last)


def _read(door: Door, folder: Path) -> tuple[Any, child.Ended]:
    """What a door finds in a folder, None where it ends with an error."""
    left = child.run(door.read(folder), folder, {"PINN_ODELORA_CACHE": str(folder / "cache")})
    return (door.found(folder, left.said) if left.code == 0 else None), left
