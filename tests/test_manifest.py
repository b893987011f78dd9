"""Digests find every change of a file that they list, and are written so that a kill at any moment makes none."""

import json
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinn_odelora import manifest
from pinn_odelora.errors import InputError
from pinn_odelora.manifest import DamagedError, add, check, exchanging, leave_out, read, write

MANY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
"""The same examples each time, however slow the machine is."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "adapter/weights").write_bytes(bytes(range(200)))
    return tmp_path


def listed(folder):
    return read(folder / "manifest.json").files


def test_files_are_listed_and_agree(folder):
    write(folder / "manifest.json", ["config.yaml", "adapter", "nowhere"], {"seconds": 1.5})
    assert [*listed(folder)] == ["adapter/weights", "config.yaml"]
    assert read(folder / "manifest.json").facts == {"seconds": 1.5}
    check(folder / "manifest.json", "config.yaml", "adapter", "nowhere", "unlisted")


def test_a_folder_without_a_manifest_says_nothing(folder):
    assert read(folder / "manifest.json") is None
    check(folder / "manifest.json", "config.yaml")


def test_files_are_added_and_left_out(folder):
    path = folder / "manifest.json"
    write(path, ["config.yaml"])
    add(path, ["adapter"])
    assert len(listed(folder)) == 2
    leave_out(path, ["adapt"])  # which is no folder above
    assert len(listed(folder)) == 2
    leave_out(path, ["adapter"])
    assert [*listed(folder)] == ["config.yaml"]
    (folder / "adapter/weights").write_bytes(b"")
    check(path, "config.yaml", "adapter")


# Any change is found.


@MANY
@given(content=st.binary(min_size=1, max_size=60), data=st.data())
def test_every_change_of_a_file_is_found_and_named(tmp_path_factory, content, data):
    folder = tmp_path_factory.mktemp("kept")
    for name in ("one", "two"):
        (folder / name).write_bytes(content + name.encode())
    write(folder / "manifest.json", ["one", "two"])
    kind = data.draw(st.sampled_from(["flip", "cut", "more", "gone", "folder", "swap"]))
    file, other, kept = folder / "two", folder / "one", (folder / "two").read_bytes()
    if kind == "flip":
        at, bit = data.draw(st.integers(0, len(kept) - 1)), data.draw(st.integers(0, 7))
        file.write_bytes(kept[:at] + bytes([kept[at] ^ 1 << bit]) + kept[at + 1 :])
    elif kind == "cut":
        file.write_bytes(kept[: data.draw(st.integers(0, len(kept) - 1))])
    elif kind == "more":
        file.write_bytes(kept + data.draw(st.binary(min_size=1, max_size=5)))
    elif kind == "swap":
        file.write_bytes(other.read_bytes())
    else:
        file.unlink()
        _ = kind == "folder" and file.mkdir()
    said = "cannot be read" if kind in ("gone", "folder") else "has changed since it was written, or is damaged"
    with pytest.raises(DamagedError, match=rf"two {said}"):
        check(folder / "manifest.json", "one", "two")
    check(folder / "manifest.json", "one")


@MANY
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_manifest_is_not_taken_for_damaged_files(tmp_path_factory, at, bit, cut):
    folder = tmp_path_factory.mktemp("kept")
    (folder / "one").write_bytes(b"1")
    path = folder / "manifest.json"
    write(path, ["one"], {"seconds": 2.0})
    whole = path.read_bytes()
    place = int(at * (len(whole) - 2))
    path.write_bytes(whole[:place] if cut else whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    try:
        same = json.loads(path.read_bytes()) == json.loads(whole)  # space for another space
    except ValueError:
        same = False
    if not same:
        with pytest.raises(DamagedError, match=r"manifest\.json"):
            check(path, "one")


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "null", "{}", '{"format": 2}', '{"format": 1, "files": [], "facts": {}, "sha256": ""}', "[" * 9999],
)
def test_what_is_no_manifest_is_one_sentence(content, folder):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DamagedError, match=r"^.*manifest\.json.*\.$"):
        check(folder / "manifest.json", "config.yaml")


# Kills.


class KilledError(BaseException):
    pass


def test_the_manifest_agrees_whenever_a_file_is_exchanged(folder, monkeypatch):
    """A process that is killed between any two moves in a file system leaves files that agree with the manifest."""
    path, replace = folder / "manifest.json", os.replace
    moves = []

    def counted(source, target):
        replace(source, target)
        moves.append(os.path.basename(target))
        check(path, "last.ckpt")
        if len(moves) == stop:
            raise KilledError

    monkeypatch.setattr(os, "replace", counted)
    for stop in range(1, 12):
        moves.clear()
        try:
            for k in range(6):
                with exchanging(path, "last.ckpt") as temporary:
                    temporary.write_bytes(f"{stop}, {k}".encode())
        except KilledError:
            pass
        check(path, "last.ckpt")
        assert len(listed(folder)["last.ckpt"]) <= 2
    assert moves[:3] == ["manifest.json", "last.ckpt", "manifest.json"]


def test_an_exchange_that_fails_leaves_all_as_it_was(folder):
    path = folder / "manifest.json"
    with exchanging(path, "last.ckpt") as temporary:
        temporary.write_bytes(b"1")
    before = path.read_bytes()

    def failing():
        with exchanging(path, "last.ckpt") as temporary:
            temporary.write_bytes(b"2")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space"):
        failing()
    assert path.read_bytes() == before
    assert (folder / "last.ckpt").read_bytes() == b"1"
    check(path, "last.ckpt")


def test_a_damaged_manifest_is_written_again_with_what_is_written(folder):
    path = folder / "manifest.json"
    path.write_text("{")
    add(path, ["config.yaml"])
    check(path, "config.yaml")


def test_what_cannot_be_read_is_one_sentence(folder):
    path = folder / "manifest.json"
    write(path, ["config.yaml"])
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml")
    with pytest.raises(DamagedError, match=r"config\.yaml cannot be read \(it is no regular file\)"):
        check(path, "config.yaml")


def test_bytes_are_those_of_the_digest(folder):
    import hashlib

    content = random.Random(1).randbytes(100_000)
    (folder / "large").write_bytes(content)
    assert manifest.sha256(folder / "large") == hashlib.sha256(content).hexdigest()
    assert manifest.digest_of(content[:7], content[7:]) == hashlib.sha256(content).hexdigest()
