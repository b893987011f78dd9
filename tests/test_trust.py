"""What lies in a folder of somebody else's is data: whatever it holds, nothing of it is imported or called."""

import dataclasses
import importlib
import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from omegaconf import OmegaConf

import pinn_odelora as po
from pinn_odelora.__main__ import main
from pinn_odelora.array_files import read_arrays
from pinn_odelora.checkpoints import load_network, save_network
from pinn_odelora.config import begin
from pinn_odelora.errors import InputError, UnwritableError
from pinn_odelora.integrators import tableau
from pinn_odelora.lightning.states import saved_in
from pinn_odelora.lowrank.adapter_files import load_adapter
from pinn_odelora.measurements import read_measurements
from pinn_odelora.nets import MLP
from pinn_odelora.plain_files import read_json, read_yaml
from pinn_odelora.runs import trust
from pinn_odelora.runs.configuration import read_config, saved_config
from pinn_odelora.runs.messages import continuable
from pinn_odelora.runs.reopened import reopened
from pinn_odelora.runs.save import described
from problems.burgers import Burgers

CONFIGS = Path(__file__).parent.parent / "configs"
SENTINEL = "called"
"""A file that every attack here would make in the current folder."""
EVIL = f"""
import pathlib
import pinn_odelora as po
pathlib.Path({SENTINEL!r}).touch()
class Wave(po.Problem): pass
class Net(po.MLP): pass
def network(inputs: int, outputs: int) -> po.MLP: ...
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a module that leaves a trace when it is imported; none must be left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_of_theirs.py").write_text(EVIL)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("evil_of_theirs", None)
    assert not (tmp_path / SENTINEL).exists()


@pytest.fixture
def folder(pretrained_folder):
    """A finished run whose network is as it was, with a configuration to be edited."""
    path, net = pretrained_folder
    save_network(net, path / "network.safetensors")
    return path


def edited(folder, **parts):
    cfg = OmegaConf.load(folder / "config.yaml")
    for key, value in parts.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    OmegaConf.save(cfg, folder / "config.yaml")


# Names in a configuration.

CALLS = {
    "module of theirs": {"_target_": "evil_of_theirs.Wave"},
    "network of theirs": {"_target_": "evil_of_theirs.Net"},
    "function of theirs": {"_target_": "evil_of_theirs.network"},
    "import of theirs": {"_target_": "evil_of_theirs"},
    "system": {"_target_": "os.system", "command": f"touch {SENTINEL}"},
    "open": {"_target_": "builtins.open", "file": SENTINEL, "mode": "w"},
    "eval": {"_target_": "builtins.eval", "source": f"open({SENTINEL!r}, 'w')"},
    "positional": {"_target_": "os.system", "_args_": [f"touch {SENTINEL}"]},
    "partial": {"_target_": "os.system", "_partial_": True, "command": f"touch {SENTINEL}"},
    "a way through the package": {"_target_": "pinn_odelora.files.os.system", "command": f"touch {SENTINEL}"},
    "a way through problems": {"_target_": "problems.burgers.torch.os.system", "command": f"touch {SENTINEL}"},
    "a way through torch": {"_target_": "torch.nn.modules.module.functools.partial"},
    "a function of the package": {"_target_": "pinn_odelora.files.write_text", "path": SENTINEL, "content": ""},
    "a network trained and kept": {"_target_": "pinn_odelora.pretraining.pretrain.pretrain", "cache": "."},
    "hub": {"_target_": "torch.hub.load", "repo_or_dir": ".", "source": "local", "model": "evil"},
    "loading": {"_target_": "torch.load", "f": "evil.pt", "weights_only": False},
    "by name": {"_target_": "hydra.utils.get_object", "path": "evil_of_theirs.Wave"},
    "call": {"_target_": "hydra.utils.call", "config": {"_target_": "os.system", "command": f"touch {SENTINEL}"}},
    "no name": {"_target_": ["os.system"]},
    "not even a word": {"_target_": "os.system('touch called')"},
}
PLACES = [
    *("problem", "net", "method", "integrator", "problem.region", "net.activation", "net.parts.0"),
    *("method.schedule", "integrator.tableau"),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_name_of_something_else_is_refused_before_it_is_imported(place, call):
    key, *inside = place.split(".")
    known = {
        "problem": "problems.burgers.Burgers",
        "net": "pinn_odelora.nets.MLP",
        "method": "pinn_odelora.methods.odelora",
        "integrator": "pinn_odelora.integrators.RungeKutta",
    }
    settings = call
    for name in reversed(inside):
        settings = [settings] if name == "0" else {name: settings}
    settings = {"_target_": known[key], **settings} if inside else settings
    with pytest.raises(InputError, match=rf"^{re.escape(place)}(\.config)?\._target_ is "):
        trust.check_names(key, settings)
    assert "evil_of_theirs" not in sys.modules


@pytest.mark.parametrize("part", ["problem", "net"])
@pytest.mark.parametrize("call", ["network of theirs", "system", "a function of the package", "open"])
def test_a_folder_that_is_loaded_or_continued_calls_nothing(part, call, folder, compose):
    edited(folder, **{part: CALLS[call]})
    with pytest.raises(InputError, match=rf"cannot build the \w+ here \({part}._target_ is "):
        po.load(folder)
    with pytest.raises(InputError, match=rf"^{part}\._target_ is .*, which a run folder may not call by itself; if "):
        begin(compose(f"resume={folder}"))


@pytest.mark.parametrize(
    ("part", "nested"), [("net__activation", CALLS["open"]), ("integrator__tableau", CALLS["by name"])]
)
def test_what_is_inside_is_held_to_the_same(part, nested, folder, compose):
    edited(folder, **{part: nested})
    with pytest.raises(InputError, match=r"may not call by itself"):
        begin(compose(f"resume={folder}"))


@pytest.mark.parametrize("group", trust.HOMES)
def test_what_this_program_has_is_known(group):
    files = sorted((CONFIGS / group).glob("*.yaml"))
    assert files
    for file in files:
        trust.check_names(group, yaml.safe_load(file.read_text(encoding="utf-8")))


def test_what_this_program_writes_is_known():
    for key, thing in (
        ("problem", Burgers()),
        ("net", MLP(2, 1)),
        ("net", torch.nn.Sequential(torch.nn.Linear(2, 1))),
        ("integrator", po.LinearlyImplicit()),
        ("integrator", po.RungeKutta(tableau.RK4, h=0.1)),
        ("integrator", po.RungeKutta(dataclasses.replace(tableau.RK4), h=0.1)),  # described by its numbers
    ):
        trust.check_names(key, described(thing))


def test_a_module_that_the_caller_names_is_called(folder, tmp_path, compose, capsys):
    (tmp_path / "mine_of_ours.py").write_text("import pinn_odelora as po\nclass Net(po.MLP): pass\n")
    expected = po.load(folder)(0.3, 0.4)
    edited(folder, net___target_="mine_of_ours.Net")
    assert trust.others(folder) == ["mine_of_ours"]
    assert trust.argument(folder) == " trust=mine_of_ours"
    for named in ("mine_of_ours", ["mine_of_ours"], ("other", "mine_of_ours.Net")):
        assert po.load(folder, trust=named)(0.3, 0.4) == expected
    np.savez(tmp_path / "points.npz", x=[0.3], t=[0.4])
    command = ["predict", str(folder), str(tmp_path / "points.npz")]
    assert main(command) == 2
    assert "--trust mine_of_ours" in capsys.readouterr().err
    assert main([*command, "--trust", "mine_of_ours"]) == 0
    how = r"continue with: python train\.py resume=.* trust=mine_of_ours\.?$"
    with pytest.raises(UnwritableError, match=how), continuable(folder):
        raise UnwritableError("Cannot write it: No space left on device.")
    kept = begin(compose(f"resume={folder}", "trust=[mine_of_ours]"))[0]
    assert kept.net["_target_"] == "mine_of_ours.Net"
    sys.modules.pop("mine_of_ours")


def test_a_configuration_cannot_trust_itself(folder, compose):
    edited(folder, net___target_="evil_of_theirs.Net", trust=["evil_of_theirs"])
    with pytest.raises(InputError, match="may not call by itself"):
        begin(compose(f"resume={folder}"))


@pytest.mark.parametrize("named", ["", "a b", "mine.py/x", ["mine", 3]])
def test_what_is_no_module_cannot_be_trusted(named, folder):
    with pytest.raises(InputError, match=r"^trust is .*, but it must be the name of a module"):
        po.load(folder, trust=named)


# Values that would be computed, and files that grow.


@pytest.mark.parametrize(
    "value",
    ["${oc.env:HOME}", "${touching:x}", "${oc.create:{a: 1}}", "${problem.nu}", "a${oc.env:HOME}b", "${x.${y}}"],
)
def test_no_value_is_computed(value, folder, compose, here):
    OmegaConf.register_new_resolver("touching", lambda _: (here / SENTINEL).touch(), replace=True)
    edited(folder, problem__weights={"pde": value})
    with pytest.raises(InputError, match=r"has values only"):
        saved_config(folder)
    with pytest.raises(InputError, match=r"has values only"):
        begin(compose(f"resume={folder}"))
    OmegaConf.clear_resolver("touching")


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{a}, {a}]\n" for a, b in zip(["*a", "*b", "*c"], "bcd", strict=True))
TEXTS = {
    "aliases": BOMB,
    "merged": "a: &a {x: 1}\nb:\n  <<: *a\n",
    "itself": "a: &a [*a]\n",
    "a call": f"!!python/object/apply:os.system ['touch {SENTINEL}']",
    "an object": f"problem: !!python/object/new:os.system ['touch {SENTINEL}']",
    "a module": "problem: !!python/module:evil_of_theirs",
    "deep": "[" * 30_000,
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_configuration_is_plain_values_of_the_size_of_its_file(text, tmp_path):
    (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for reader in (read_yaml, read_config):
        with pytest.raises(ValueError):  # noqa: PT011
            reader(tmp_path / "config.yaml")
    with pytest.raises(InputError, match=r"holds no run"):
        saved_config(tmp_path)
    assert trust.others(tmp_path) == []


def test_json_that_is_nested_too_deeply_is_one_sentence(folder):
    deep = "[" * 100_000
    (folder / "deep.json").write_text(deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(folder / "deep.json")
    (folder / "coefficients.json").write_text(deep)
    with pytest.raises(InputError, match=r"coefficients\.json is damaged"):
        po.load(folder)


# Pickles.


class Touch:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {SENTINEL}",)


def evil_zip(name="archive/data.pkl", content=None, **more):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **more) as archive:
        archive.writestr(name, pickle.dumps(Touch(), protocol=2) if content is None else content)
    return file.getvalue()


FILES = {
    "pickle": pickle.dumps({"linears.0.weight": Touch()}),
    "old pickle": pickle.dumps(Touch(), protocol=0),
    "zip": evil_zip(),
    "zip, compressed": evil_zip(compression=zipfile.ZIP_DEFLATED),
    "zip that climbs": evil_zip(f"../../{SENTINEL}/data.pkl"),
    "zip with an absolute name": evil_zip("/tmp/data.pkl"),
    "legacy": b"".join(pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {}, Touch(), [])),
    "safetensors": struct.pack("<Q", 8) + b"{" + pickle.dumps(Touch()),
    "empty": b"",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_no_file_of_weights_is_executed(content, folder, tmp_path):
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            load_network(MLP(2, 1), tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    (tmp_path / "adapter_model.bin").write_bytes(content)
    with pytest.raises(InputError):
        load_adapter(MLP(2, 1), tmp_path)
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=r"last\.ckpt, the state to continue from, is damaged"):
        saved_in(tmp_path)
    (tmp_path / "family.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="no family of this program, or it is damaged"):
        po.load_family(tmp_path / "family.safetensors", MLP(2, 1), po.load(folder).problem)
    for name in ("data.npz", "data.csv"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            read_measurements(tmp_path / name, ["x"], ["u"])
    for name in ("pretrained.safetensors", "network.safetensors", "unknown_fields.safetensors"):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(content)
        with pytest.raises(InputError):
            po.load(folder)
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)


def test_objects_in_arrays_are_not_loaded(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([Touch()], dtype=object), u=np.zeros(1))
    with pytest.raises(InputError, match="holds pickled objects, never loaded"):
        read_measurements(tmp_path / "data.npz", ["x"], ["u"])
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        read_arrays(tmp_path / "data.npz")


# Archives that are larger than they look.


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**28,)})
    file = tmp_path / "data.npz"
    with zipfile.ZipFile(file, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    assert np.frombuffer(file.read_bytes(), np.uint8).size < 1000
    with pytest.raises(ValueError, match=r".+"):  # the header claims 2 GiB of numbers, of which there are eight
        read_arrays(file)
    content = bytearray(file.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<L", 2**31)  # the size that the archive declares
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"would unpack to 2\.0 GiB; write it uncompressed, by numpy\.savez"):
        read_arrays(file)


def test_a_tensor_that_repeats_a_few_bytes_endlessly_is_not_made(tmp_path):
    torch.save({"linears.0.weight": torch.zeros(1).expand(2**34)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"linears\.0\.weight in .*model\.pt cannot be read: .* repeat its bytes"):
        load_network(MLP(2, 1), tmp_path / "model.pt")


def test_a_file_that_never_ends_is_not_read(folder):
    from pinn_odelora.manifest import sha256

    (folder / "provenance.json").write_text(
        json.dumps(
            {
                "modules": {},
                "source": {},
                "files": {"/dev/zero": {"sha256": ""}, str(folder / "pipe"): {"sha256": ""}},
                "packages": {},
            }
        )
    )
    os.mkfifo(folder / "pipe")
    po.load(folder)
    for file in ("/dev/zero", folder / "pipe", folder):
        with pytest.raises(OSError, match=r"regular file|directory"):
            sha256(file)


@pytest.mark.parametrize(
    "name", [".lock", "history.csv", ".config.yaml.4711", "adapter", "adapter/adapter_config.json"]
)
def test_a_run_writes_by_no_link_into_another_folder(name, folder, here):
    outside = here / "outside"
    outside.write_text("mine")
    (folder / "wandb").mkdir()
    (folder / "latest").symlink_to("wandb")  # as W&B makes them
    reopened(folder, None)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(InputError, match=rf"{name} is a link to .*outside, but a run that goes on writes into its own"):
        reopened(folder, None)
    assert outside.read_text() == "mine"


def test_names_that_leave_the_folder_are_not_followed(here):
    """Though the file that they lead to has the digest that is listed."""
    from pinn_odelora.manifest import DamagedError, _write, check, sha256

    folder = here / "run"
    (folder / "a").mkdir(parents=True)
    (here / "secret").write_text("mine")
    for name in ("../secret", str(here / "secret"), "a/../../secret"):
        _write(folder / "manifest.json", {name: (sha256(here / "secret"),)}, {})
        with pytest.raises(DamagedError):
            check(folder / "manifest.json", name)


def test_weights_of_another_network_are_not_a_family(folder):
    content = {
        "format": 1,
        "network": "x",
        "ranges": [{"_target_": "os.system"}],
        "lora": {},
        "seed": 0,
        "stations": [],
    }
    safetensors.torch.save_file({"0/a": torch.zeros(1)}, folder / "f.safetensors", {"family": json.dumps(content)})
    with pytest.raises(InputError):
        po.load_family(folder / "f.safetensors", MLP(2, 1), po.load(folder).problem)
