"""A run finds each of its files that is no longer as it was written, and names it, whoever reads it next."""

import json
import random
import re
import shutil

import numpy as np
import pytest
import yaml

import pinn_odelora as po
from pinn_odelora import manifest
from pinn_odelora.dashboards.collect import of_folder
from pinn_odelora.errors import InputError
from pinn_odelora.lightning import states
from pinn_odelora.manifest import MANIFEST, DamagedError
from pinn_odelora.runs.compare import COLUMNS, COMPUTED, summaries
from pinn_odelora.runs.folder import OUTCOME
from pinn_odelora.runs.reopened import reopened

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")

BEFORE = {"config.yaml", "provenance.json", "start.json", "pretrained.safetensors"}
AFTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "history.csv", "summary.json"}
READERS = {
    "load": (po.load, (BEFORE | AFTER) - {"start.json", "history.csv", "summary.json"}),
    "resume": (lambda folder: (reopened(folder, None), states.saved_in(folder)), BEFORE | {"last.ckpt"}),
    "compare": (lambda folder: summaries([folder]), {"config.yaml", "summary.json"}),
    "dashboard": (of_folder, {"config.yaml", "summary.json", "history.csv"}),
}


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Which are not read again, and take most of the time."""
    monkeypatch.setattr("pinn_odelora.runs.save.save_figures", lambda *_: None)


def damaged(content, other, kind, rng):
    """A bit, an end or all of a file exchanged."""
    at = rng.randrange(len(content))
    return {
        "bit": content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
        "cut": content[:at],
        "swapped": other,
    }[kind]


def test_every_file_that_is_read_again_is_covered(compose, run, tmp_path):
    done, folder = run(compose("budget.steps=5", "checkpoint.every=3")), tmp_path / "run"
    assert {*manifest.read(folder / MANIFEST).files} == BEFORE | {"last.ckpt"}
    done.run.conclude(done.result, done.facts)
    assert {*manifest.read(folder / MANIFEST).files} == BEFORE | {"last.ckpt"} | AFTER
    rng, before = random.Random(3), po.load(folder)(0.3, 0.4)
    for reader, files in READERS.values():
        for name in sorted(files):
            content, other = (folder / name).read_bytes(), (folder / "pretrained.safetensors").read_bytes()
            other = other if name != "pretrained.safetensors" else (folder / "last.ckpt").read_bytes()
            for kind in ("bit", "cut", "swapped"):
                (folder / name).write_bytes(damaged(content, other, kind, rng))
                with pytest.raises(DamagedError, match=rf"{re.escape(name)} has changed since it was written"):
                    reader(folder)
            (folder / name).unlink()
            with pytest.raises(InputError):
                reader(folder)
            (folder / name).write_bytes(content)
        reader(folder)
    assert po.load(folder)(0.3, 0.4) == before
    (folder / MANIFEST).write_text("{")
    with pytest.raises(DamagedError, match=r"manifest\.json, the digests of the files beside it, is damaged"):
        po.load(folder)
    (folder / MANIFEST).unlink()  # as in a folder of before
    for reader, _ in READERS.values():
        reader(folder)


def test_what_is_written_again_is_covered_again(compose, run, tmp_path):
    folder, path = tmp_path / "run", tmp_path / "run" / MANIFEST
    for steps in (3, 6):
        cfg = compose(*([f"resume={folder}"] if steps > 3 else ["checkpoint.every=2"]))
        cfg.budget.steps = steps
        done = run(cfg)
        if steps > 3:  # until it ends, a run that was finished before may be killed between two of its files
            assert not any(name.startswith(OUTCOME) for name in manifest.read(path).files)
        done.run.conclude(done.result, done.facts)
        manifest.check(path, *OUTCOME, "last.ckpt")


def test_a_run_made_in_python_is_covered(tmp_path):
    data = {"x": np.linspace(0.1, 0.9, 5), "t": np.full(5, 0.5), "u": np.zeros(5)}
    small = {"points": po.Sampling.fixed(20, 8), "budget": po.Budget(steps=1), "log": po.Log(heldout=8, test=16)}
    from problems.burgers import Burgers

    result = po.adapt(po.MLP(2, 1, width=6, depth=2), Burgers(), data=data, method=po.methods.lora_adam(), **small)
    result.save(tmp_path / "run")
    assert {*manifest.read(tmp_path / "run" / MANIFEST).files} == BEFORE | AFTER | {"data.npz"}
    po.load(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    po.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("net", None, r"config\.yaml is not that of a run: it has no net\."),
        ("integrator", None, r"config\.yaml is not that of a run: it has no integrator\."),
        ("points", [1], r"config\.yaml is damaged: Index 'rows' \(str\) is not an int\."),
        ("method", [{"_target_": "x"}], r"holds no run|is damaged"),
        ("seed", "!!int ''", r"there is no config\.yaml in it that can be read as that of a run"),
        ("seed", "!!timestamp x", r"there is no config\.yaml in it that can be read as that of a run"),
    ],
)
def test_a_configuration_that_is_well_formed_and_wrong_is_a_sentence(key, value, sentence, pretrained_folder):
    folder, _ = pretrained_folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config[key]
    added = f"{key}: {value if isinstance(value, str) else json.dumps(value)}\n" if value is not None else ""
    (folder / "config.yaml").write_text(yaml.safe_dump(config) + added)
    with pytest.raises(InputError, match=sentence):
        reopened(folder, None)


def test_a_trainer_without_an_accelerator_has_the_one_there_is(compose, run):
    cfg = compose("budget.steps=1", "~trainer.accelerator")
    assert run(cfg).progress.step == 1


@pytest.mark.parametrize(("name", "value"), [("seconds", [1]), ("rel_l2", -1.0), ("method", {}), ("diverged", "no")])
def test_a_summary_that_is_well_formed_and_wrong_is_a_sentence(name, value, pretrained_folder):
    folder, _ = pretrained_folder
    right = dict.fromkeys((column for column in COLUMNS if column not in COMPUTED), 1.0)
    right |= {"problem": "burgers", "method": "odelora", "integrator": None, "diverged": False, "rel_l2": None}
    (folder / "summary.json").write_text(json.dumps(right))
    assert summaries([folder])[0]["seconds"] == 1.0
    (folder / "summary.json").write_text(json.dumps(right | {name: value}))
    with pytest.raises(InputError, match=r"are not those of a run \(RefusedValueError\)"):
        summaries([folder])
