"""Two runs never write into one folder, and a lock is gone with its process."""

import subprocess
import sys

import pytest

from pinn_odelora.errors import InputError
from pinn_odelora.runs.alone import LOCK, alone

HOLDER = """
import sys, time
from pathlib import Path
from pinn_odelora.runs.alone import alone
with alone(Path(sys.argv[1]), new=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        for new in (True, False):
            sentence = (
                rf"^A run is writing into .*run \(process {first.pid} on .*\); wait until it ends, or give another"
            )
            with pytest.raises(InputError, match=sentence), alone(folder, new):
                raise AssertionError
        assert (folder / LOCK).exists()
        first.kill()
        first.wait()
    with alone(folder, new=True):
        assert (folder / LOCK).exists()
    assert not any(folder.iterdir())


def test_a_caller_in_python_is_told_in_its_own_terms(tmp_path):
    """``result.save(folder)`` has no output_dir, and cannot continue a run."""
    sentence = r"wait until it ends, or give another folder\.$"
    run = tmp_path / "run"
    with alone(run, True), pytest.raises(InputError, match=sentence) as held, alone(run, False, typed=False):
        raise AssertionError
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match=r"already holds a run; give another\.$") as full, alone(tmp_path, True, False):
        raise AssertionError
    assert not any(word in str(error.value) for error in (held, full) for word in ("output_dir", "resume"))


def test_a_folder_that_got_a_run_meanwhile_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "start.json").touch()
    with pytest.raises(InputError, match="already holds a run; continue it with resume="), alone(tmp_path, new=True):
        raise AssertionError
    with alone(tmp_path, new=False):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["start.json"]


def test_the_other_processes_of_a_run_need_no_lock(tmp_path, monkeypatch):
    with alone(tmp_path, new=True):
        monkeypatch.setenv("RANK", "1")
        with alone(tmp_path, new=True):
            pass
        assert (tmp_path / LOCK).exists()


def test_a_process_that_is_ahead_of_the_first_is_no_other_run(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with alone(tmp_path, new=True):
        assert (tmp_path / LOCK).exists()


def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def without(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", without)
    with alone(tmp_path, new=True), alone(tmp_path, new=True):
        pass


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), alone(tmp_path / "file" / "run", new=False):
        raise AssertionError


def test_a_full_disk_locks_all_the_same(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with alone(tmp_path, new=True):
        assert (tmp_path / LOCK).exists()


def test_the_one_who_has_the_lock_removes_what_killed_processes_left(tmp_path):
    (tmp_path / ".last.ckpt.123.part").touch()
    with alone(tmp_path, new=False):
        assert [file.name for file in tmp_path.iterdir()] == [LOCK]
