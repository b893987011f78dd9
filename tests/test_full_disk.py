"""A disk that becomes full at any write of a run: one sentence, what was there before is as it was, and the run that is
continued ends with the bits of one that was never disturbed.
"""

import random
import shutil
from pathlib import Path

import hydra
import pytest
from robustness.disk import Disk, full
from robustness.runs import TINY, at_step, content, difference, outcome, without_pictures

import train
from pinn_odelora import config as commandline
from pinn_odelora import load
from pinn_odelora.errors import InputError, UnwritableError
from pinn_odelora.families import offline
from pinn_odelora.files import UNFINISHED

CONFIGS = Path(__file__).parent.parent / "configs"
WRITES = 20
"""Of the run above, at least: settings, network, cache, rows, states and outcome."""
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """``ran(*arguments)``: train.py in this process, with pictures that take no time to draw."""
    monkeypatch.setenv("PINN_ODELORA_CACHE", str(tmp_path / "cache"))
    without_pictures(monkeypatch.setattr)

    def run(*arguments):
        commandline.register()
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose("train", [*arguments])
        train.train(cfg)

    return run


def refused_at(positions, ran, tmp_path):
    """Runs whose nth write finds no space, each continued; returns how many said so."""
    ran(*TINY, f"output_dir={tmp_path / 'whole'}")
    whole, said = outcome(tmp_path / "whole"), 0
    for n in positions:
        folder = tmp_path / f"part{n}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PINN_ODELORA_CACHE", str(tmp_path / f"cache{n}"))
            then = []
            Disk(patch.setattr, n, full, lambda folder=folder, then=then: then.append(content(folder)))
            sentence = refusal(ran, *TINY, f"output_dir={folder}")
            if sentence:
                said += 1
                begun = (folder / "config.yaml").exists()
                assert "No space left on device" in sentence, n
                assert ("continue with: python train.py resume=" in sentence) == begun, n
                assert [content(folder)] == then, f"write {n} changed what was there before"
            assert then, "there are not so many writes"
            assert not [*folder.rglob(f"*{UNFINISHED}")], n
        if not (folder / "summary.json").exists():
            ran(f"resume={folder}") if (folder / "config.yaml").exists() else ran(*TINY, f"output_dir={folder}")
        assert not difference(outcome(folder), whole), n
        assert load(folder) is not None
    return said


def refusal(ran, *arguments):
    """The sentence with which a run ends; empty for one that goes to its end."""
    try:
        ran(*arguments)
    except UnwritableError as error:
        return str(error)
    return ""


def number_of_writes(ran, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch.setattr)
        ran(*TINY, f"output_dir={tmp_path / 'counted'}")
    return disk.asked


@pytest.mark.parametrize("step", [2, 5], ids=["before a row", "before a state"])
def test_a_folder_that_is_gone_is_a_sentence_and_stays_gone(step, ran, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    at_step(step, lambda: shutil.rmtree(folder), monkeypatch.setattr)
    with pytest.raises(
        UnwritableError, match=r"^Cannot write .*(the folder of the run is gone|No such file or dir)"
    ) as e:
        ran(*TINY, f"output_dir={folder}")
    assert "continue with" not in str(e.value)
    assert not folder.exists()


def test_a_family_whose_folder_is_gone_is_a_sentence_and_the_folder_stays_gone(ran, tmp_path, monkeypatch):
    folder, real = tmp_path / "run", offline.solve
    few = [x for x in TINY if not x.startswith(("points", "log.every", "log.heldout", "checkpoint"))]

    def solved(*given, **settings):
        shutil.rmtree(folder, ignore_errors=True)
        return real(*given, **settings)

    monkeypatch.setattr(offline, "solve", solved)
    monkeypatch.setattr(offline, "_lost", lambda station: False)  # of a network that is hardly trained
    with pytest.raises(
        UnwritableError, match=r"^Cannot write .*family\.safetensors: its folder is gone, with all"
    ) as e:
        ran(*few, "family.kappa=[0.05,0.051]", f"output_dir={folder}")
    assert "continue with" not in str(e.value)
    assert not folder.exists()


def test_without_its_working_folder_a_run_is_finished(ran, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    at_step(3, (tmp_path / "here").rmdir, monkeypatch.setattr)
    ran(*TINY, f"output_dir={tmp_path / 'run'}")
    assert load(tmp_path / "run") is not None


ODD = {
    "folder": lambda file: file.mkdir(),
    "empty": lambda file: file.touch(),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00caf\xe9\n" * 9),
}


def test_a_file_that_cannot_be_read_is_a_sentence_that_names_it(ran, tmp_path):
    ran(*TINY, f"output_dir={tmp_path / 'run'}")
    for name in ("config.yaml", "start.json", "history.csv", "last.ckpt", "pretrained.safetensors"):
        file, aside = tmp_path / "run" / name, tmp_path / name
        file.rename(aside)
        for what, make in ODD.items():
            if (name, what) == ("history.csv", "empty"):  # as before the first row
                continue
            make(file)
            with pytest.raises(InputError, match=name.replace(".", r"\.")):
                ran(f"resume={tmp_path / 'run'}")
            file.rmdir() if what == "folder" else file.unlink()
        aside.rename(file)
    ran(f"resume={tmp_path / 'run'}", "budget.steps=8")
    assert load(tmp_path / "run") is not None


def test_a_full_disk_at_some_writes_of_a_run(ran, tmp_path):
    number = number_of_writes(ran, tmp_path)
    assert number > 2 * WRITES
    assert refused_at(random.Random(0).sample(range(1, number + 1), 3), ran, tmp_path) >= 2


@pytest.mark.slow
def test_a_full_disk_at_every_write_of_a_run(ran, tmp_path):
    number = number_of_writes(ran, tmp_path)
    said = refused_at(range(1, number + 1), ran, tmp_path)
    # The lock's own text, and the two files of the cache, which a run can do without.
    assert number - said <= 7
