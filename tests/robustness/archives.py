"""Files that call something when they are unpickled: nothing is called, whatever reads them.

A payload is pickled by each protocol, alone or beside good weights, and packed as torch, numpy or somebody else would:
zip, compressed or not, the legacy formats of torch, arrays of objects, one inside another.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pinn_odelora import manifest

from . import child
from .materials import Materials, data, network, weights
from .records import Verdict
from .runs import asked, program

MUST = "nothing is called"
COUNT = 400
QUICK = (0, 1, 2, 3, 5)
SENTINEL, CANARY = "called", "canary"
"""A file that a call makes in the working folder, and one that it removes."""
TOUCH = f"touch {SENTINEL}"
CALLS: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
    (os.system, (TOUCH,)),
    (open, (SENTINEL, "w")),
    (eval, (f"open({SENTINEL!r}, 'w')",)),
    (exec, (f"open({SENTINEL!r}, 'w')",)),
    (subprocess.call, (["touch", SENTINEL],)),
    (os.mkdir, (SENTINEL,)),
    (os.remove, (CANARY,)),
    (os._exit, (0,)),
    (sys.exit, (0,)),
    (Path.touch, (Path(SENTINEL),)),
    (np.savetxt, (SENTINEL, [0])),
    (torch.save, (0, SENTINEL)),
    (pickle.loads, (pickle.dumps(0),)),
    (getattr, (os, "system")),
)
RAW = (
    b"cos\nsystem\n(S'touch called'\ntR.",
    b"(S'touch called'\nios\nsystem\n.",
    b"(cos\nsystem\nS'touch called'\no.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch called\x85R.",
    b"\x80\x02csubprocess\nPopen\n](U\x05touchU\x06callede\x85\x81.",
    b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x02os\x8c\x06system\x86R.",
    b"cbuiltins\n__import__\n(S'evil_of_theirs'\ntR.",
)
"""By opcodes that no pickler of today writes: INST, OBJ, a plain GLOBAL."""


class Evil:
    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...], state: Any = None) -> None:
        self.made = (call, args) if state is None else (call, args, state)

    def __reduce__(self) -> Any:
        return self.made


def pickled(rng: random.Random, good: dict[str, Any]) -> tuple[str, bytes, Any]:
    """What a payload is called, its pickle, and the object, None where there is none."""
    if rng.random() < 0.15:
        raw = rng.choice(RAW)
        return "raw opcodes", raw, None
    call, args = rng.choice(CALLS)
    evil: Any = Evil(call, args, rng.choice([None, None, {"a": 1}]))
    if call is getattr:
        evil = {"x": pickle.dumps(0)}  # os itself has no pickle
        evil = Evil(eval, (f"__import__('os').system({TOUCH!r})",))
    for _ in range(rng.randrange(3)):
        evil = rng.choice([[evil], {"a": evil}, (evil, 1), Evil(dict, ((("a", evil),),))])
    inside = rng.choice(["alone", "beside weights", "in state_dict", "as a weight"])
    whole = {
        "alone": evil,
        "beside weights": {**good, "settings": evil},
        "in state_dict": {"state_dict": good, "hyper_parameters": evil},
        "as a weight": {**good, "linears.0.weight": evil},
    }[inside]
    protocol = rng.randrange(6)
    return f"{getattr(call, '__name__', call)} {inside}, protocol {protocol}", pickle.dumps(whole, protocol), whole


def zipped(content: bytes, rng: random.Random, good: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    root = rng.choice(["archive", "model", "..", "/tmp", "a/b"])
    with zipfile.ZipFile(file, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        archive.writestr(f"{root}/data.pkl", content)
        if rng.random() < 0.7:
            archive.writestr(f"{root}/version", "3\n")
            archive.writestr(f"{root}/byteorder", "little")
        for k, x in enumerate(good.values()):
            archive.writestr(f"{root}/data/{k}", x.numpy().tobytes())
    return file.getvalue()


def legacy(content: bytes, rng: random.Random, _: Any) -> bytes:
    """The format of torch before 1.6: pickles one after the other, any of which may be the payload."""
    parts = [pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
    parts[rng.choice([0, 1, 2, 3, 3, 3, 4])] = content
    return b"".join(parts)


def tarred(content: bytes, rng: random.Random, _: Any) -> bytes:
    """The format of torch before 0.2."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def arrays(content: bytes, rng: random.Random, _: Any) -> bytes:
    """An array of objects in an archive of numpy."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("x", "t", "u"):
            archive.writestr(f"{name}.npy", header.getvalue() + content)
    return file.getvalue() if rng.random() < 0.8 else header.getvalue() + content


def tensors(content: bytes, rng: random.Random, _: Any) -> bytes:
    header = json.dumps({"__metadata__": {"family": content.decode("latin-1")}}).encode()
    return struct.pack("<Q", len(header)) + header + content


def nested(content: bytes, rng: random.Random, good: dict[str, Any]) -> bytes:
    """One inside another."""
    inner = rng.choice([zipped, legacy])(content, rng, good)
    return zipped(pickle.dumps(Evil(pickle.loads, (inner if rng.random() < 0.5 else content,)), 2), rng, good)


FORMS = (lambda content, rng, good: content, zipped, zipped, legacy, tarred, arrays, tensors, nested)
NAMES = ("as it is", "zip", "zip", "legacy", "tar", "numpy", "safetensors", "nested")


# What reads them.

DOORS = ("weights", "state", "adapter", "pretrained", "family", "data", "points", "cache")


def prepare(materials: Materials) -> Materials:
    return materials


def trial(setting: Materials, folder: Path, rng: random.Random, number: int) -> Verdict:
    good = network().state_dict()
    door, form = DOORS[number % len(DOORS)], rng.randrange(len(FORMS))
    said, payload, whole = pickled(rng, good)
    content = FORMS[form](payload, rng, good)
    if whole is not None and form == 1 and rng.random() < 0.5:  # as torch itself would write it
        file = io.BytesIO()
        torch.save(whole, file, pickle_protocol=rng.randrange(6), _use_new_zipfile_serialization=rng.random() < 0.7)
        content = file.getvalue()
    call = placed(setting, folder, door, content, rng)
    (folder / CANARY).touch()
    (folder / "evil_of_theirs.py").write_text(f"open({SENTINEL!r}, 'w')\n")
    left = child.run(call, folder, {"PINN_ODELORA_CACHE": str(folder / "cache")})
    what = f"{door}: {NAMES[form]} of {said}"
    return judged(left, folder, what)


def placed(setting: Materials, folder: Path, door: str, content: bytes, rng: random.Random) -> child.Call:
    """Put a file where it is read, and what reads it."""
    if door in ("weights", "data"):
        names = {"weights": ["a.pt", "a.pth", "a.ckpt", "a.bin", "a.safetensors"], "data": ["a.npz", "a.csv"]}
        file = folder / rng.choice(names[door])
        file.write_bytes(content)
        return {"weights": weights, "data": data}[door](file)
    run = setting.copy({"state": "interrupted", "family": "family"}.get(door, "finished"), folder) / "run"
    if door == "cache":
        entry = next((folder / "cache").glob("*.safetensors"))
        entry.write_bytes(content)
        manifest.write(entry.with_suffix(".json"), [entry.name], {"seconds": 1.0})
        return program(*asked(("seed=0", "pretrain.seed=0", "budget.steps=1"), folder / "new"))
    if door == "points":
        (folder / "points.npz").write_bytes(content)
    else:
        (run / manifest.MANIFEST).unlink()  # whoever made the folder could write another one
    places = {"state": "last.ckpt", "pretrained": "pretrained.safetensors", "family": "family.safetensors"}
    if door in places:
        (run / places[door]).write_bytes(content)
    if door == "adapter":
        (run / "adapter" / "adapter_model.safetensors").unlink()
        (run / "adapter" / rng.choice(["adapter_model.bin", "adapter_model.safetensors"])).write_bytes(content)
    if door == "state":
        return program(f"resume={run}")
    if door == "family":
        return child.command("family", str(run), "kappa=0.055")
    return child.command("predict", str(run), str(folder / "points.npz"))


def judged(left: child.Ended, folder: Path, what: str) -> Verdict:
    """Whether something was called: by what it leaves, or by how the program ended.

    Good weights beside a payload are read without it; a program that was ended by one has said nothing.
    """
    if (folder / SENTINEL).exists() or not (folder / CANARY).exists():
        return Verdict("called", False, what, left.last)
    if left.code is None:
        return Verdict("hang", False, what, left.last)
    if left.traceback:
        return Verdict("traceback", False, what, left.last)
    if left.code not in (0, 2) or not left.last:
        return Verdict(f"code {left.code}", False, what, left.last)
    return Verdict("refused" if left.code == 2 else "nothing called", True, what, left.last)
