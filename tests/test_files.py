"""A file is replaced as a whole or not at all, whatever happens in between."""

import json
import math
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from pinn_odelora.errors import InputError, UnwritableError
from pinn_odelora.files import fill, flush, replacing, write_bytes, write_json, write_text


def test_what_is_written_is_what_is_read(tmp_path):
    write_bytes(tmp_path / "new" / "folder" / "a", b"\x00\r\n")
    write_text(tmp_path / "b", "ν = 0.02\r\n")
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"\x00\r\n"
    assert (tmp_path / "b").read_bytes() == "ν = 0.02\r\n".encode()


def test_json_of_numbers_that_it_does_not_have(tmp_path):
    content = {"a": math.nan, "b": {"c": [1.5, -math.inf, (math.inf, None)]}, "ν": 1e-300, "n": 2, "yes": True}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content | {"a": None, "b": {"c": [1.5, None, [None, None]]}}
    assert "ν" in text
    assert math.isnan(content["a"]), "the caller's own is left as it is"


def full(descriptor):
    raise OSError(28, "No space left on device")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_bytes(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"^Cannot write .*file: No space left on device\.$"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_another_error_passes_and_leaves_the_old_file(tmp_path):
    write_bytes(tmp_path / "file", b"old")

    def stopped():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_who_has_the_old_file_open_goes_on_reading_it(tmp_path):
    write_bytes(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as reader:
        write_bytes(tmp_path / "file", b"new")
        assert reader.read() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """Otherwise a power failure can leave an empty file under the name."""
    seen = []
    synced = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append((tmp_path / "file").read_bytes()), synced(fd)))
    (tmp_path / "file").write_bytes(b"old")
    write_bytes(tmp_path / "file", b"new")
    assert seen == [b"old"]


@pytest.mark.parametrize("below", ["file/a", "file/b/c"])
def test_a_folder_that_cannot_be_made(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^Cannot write .*/file/.*: (Not a directory|File exists)\.$"):
        write_bytes(tmp_path / below, b"")


def test_files_are_as_readable_as_any_other(tmp_path):
    write_bytes(tmp_path / "file", b"")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_process_that_is_killed_leaves_a_whole_file(tmp_path):
    code = (
        "import itertools, sys\n"
        "from pinn_odelora.files import write_bytes\n"
        "for i in itertools.count():\n"
        "    write_bytes(sys.argv[1], bytes([i % 251]) * 1_000_000)\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "file"])
        while not (tmp_path / "file").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = (tmp_path / "file").read_bytes()
        assert content == content[:1] * 1_000_000


def test_writing_files_needs_neither_torch_nor_anything_else():
    code = "import sys, pinn_odelora.files\nassert not {'torch', 'numpy', 'omegaconf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_link_with_the_name_of_a_temporary_file_is_not_followed(tmp_path):
    """Whoever can write to the folder can guess that name, and lead it to a file of the user's."""
    (tmp_path / "precious").write_bytes(b"mine")
    for target in ("precious", "nowhere"):
        (tmp_path / f".file.{os.getpid()}.part").symlink_to(tmp_path / target)
        write_bytes(tmp_path / "file", target.encode())
        assert (tmp_path / "file").read_bytes() == target.encode()
        assert not (tmp_path / "file").is_symlink()
        assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "precious"]
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_link_that_is_put_there_meanwhile_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")

    def swapped(write):
        with replacing(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.symlink_to(tmp_path / "precious")
            write(temporary)

    for write in (lambda temporary: fill(temporary, b"new"), lambda temporary: None):
        with pytest.raises(UnwritableError, match=r"^Cannot write .*file: Too many levels of symbolic links\.$"):
            swapped(write)
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_temporary_file_of_a_killed_process_of_the_same_number_is_in_no_ones_way(tmp_path):
    (tmp_path / f".file.{os.getpid()}.part").write_bytes(b"a longer half of something")
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_the_lines_of_a_log_and_its_name_are_put_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    flush(tmp_path / "none")
    assert synced == []
    (tmp_path / "log").write_text("a line\n")
    flush(tmp_path / "log")
    assert synced == [(tmp_path / "log").stat().st_ino, tmp_path.stat().st_ino]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnwritableError, match=r"^Cannot write .*log: No space left on device\.$"):
        flush(tmp_path / "log")
