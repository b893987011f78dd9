"""The quick form of the campaign of faults (``tests/robustness``), and that the campaign sees what it looks for."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robustness import child, records
from robustness.archives import CANARY, SENTINEL, judged
from robustness.records import Record, Verdict
from robustness.runs import difference
from robustness.user_code import judged as of_users

from pinn_odelora.plain_files import read_json, read_mapping, read_yaml

ROOT = Path(__file__).parent.parent
KINDS = (
    *("kills", "signals", "mutations", "oddities", "archives", "configurations", "overrides", "writers", "full_disk"),
    *("servers", "user_code"),
)
DIVIDES = lambda: 1 / 0
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="trials are forked")


@posix
def test_the_quick_form_of_the_campaign_holds(tmp_path):
    file = tmp_path / "trials.jsonl"
    command = [sys.executable, "-m", "tests.robustness", "--quick", "--file", str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    kinds = {json.loads(line)["kind"] for line in file.read_text().splitlines()}
    assert kinds == {*KINDS} - {"servers"}


# What reads plain files of somebody else.

PIECES = (
    *("a: ", "b:\n  ", "- ", "\n", "!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "!!python/name:os.system"),
    *(
        "&a ",
        "*a",
        "<<: ",
        "? ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "'",
        '"',
        "1e999",
        "0x",
        "2020-99-99",
        "=",
        "~",
        "---\n",
        "#",
    ),
    *("null", "9" * 5000, "\ud800", "\x00", "\ufeff", "%YAML 1.1\n", "|", ">", "\t", "${x}"),
)


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
@settings(max_examples=100, deadline=None)
def test_a_plain_file_is_values_or_a_value_error(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.write_bytes(text.encode(errors="surrogatepass"))
        for read in (read_yaml, read_json, read_mapping):
            with suppress(ValueError):
                read(file)


# What is no success.


def test_what_did_not_hold_is_made_again_when_the_code_has_changed(tmp_path):
    file = tmp_path / "trials.jsonl"
    made = lambda number, code, held: Record("kills", number, 0, code, 1.0, "x", held, "", "")
    for record in (made(0, "a", True), made(1, "a", False), made(2, "b", False)):
        records.append(file, record)
    file.write_text(file.read_text() + '{"kind": "kills", "num')  # killed in the middle of a line
    records.append(file, made(3, "b", True))
    found, wanted = records.read(file), [("kills", k) for k in range(5)]
    assert [r.number for r in found] == [0, 1, 2, 3]
    assert records.to_do(found, 0, "b", wanted) == [("kills", 1), ("kills", 4)]
    assert len(records.to_do(found, 1, "b", wanted)) == 5
    rows, whole = records.table(found, 0, {"kills": 5}, {"kills": "it holds"})
    assert ([*rows[0][2:5]], whole) == (["5", "4", "2"], False)
    for number in (1, 2, 4):
        records.append(file, made(number, "c", True))
    assert records.table(records.read(file), 0, {"kills": 5}, {"kills": "it holds"})[1]


def test_a_call_is_seen_by_what_it_leaves_or_removes_or_ends(tmp_path):
    ended = lambda code, said="a sentence": child.Ended(code, said, 0.0)
    seen = lambda one: judged(one, tmp_path, "").outcome
    (tmp_path / CANARY).touch()
    found = [seen(ended(code)) for code in (2, 0, 1, -11, None)]
    assert found == ["refused", "nothing called", "code 1", "code -11", "hang"]
    assert seen(ended(0, "")) == "code 0", "it was ended by what it read"
    assert seen(ended(2, child.TRACEBACK)) == "traceback"
    (tmp_path / SENTINEL).touch()
    assert judged(ended(2), tmp_path, "it") == Verdict("called", False, "it", "a sentence")
    (tmp_path / SENTINEL).unlink()
    (tmp_path / CANARY).unlink()
    assert seen(ended(2)) == "called"


def test_a_traceback_is_the_users_if_its_last_frame_is():
    said = f'{child.TRACEBACK}:\n  File "a/loop.py", line 3, in f\n  File "b/{{}}", line 7, in g\nValueError: no'
    assert of_users(child.Ended(1, said.format("mine.py"), 0.0), "").held
    assert not of_users(child.Ended(1, said.format("autograd.py"), 0.0), "").held
    assert not of_users(child.Ended(1, "", 0.0), "").held


def test_outcomes_differ_by_a_bit():
    import torch

    a, b = {"x": torch.tensor([0.0, 1.0]), "rows": []}, {"x": torch.tensor([0.0, 1.0]), "rows": []}
    assert difference(a, b) == ""
    b["x"][1] += 1e-7
    assert difference(a, b) == "x differs"
    assert difference({**a, "y": 1}, a) == "only one has y"
    assert difference(a, {**a, "rows": [1]}) == "rows differs"


@posix
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_program_that_sleeps_hangs_and_one_that_fails_says_so(tmp_path):
    assert child.run(lambda: time.sleep(60), tmp_path, limit=0.3).code is None
    assert child.run(lambda: sys.exit(3), tmp_path).code == 3
    assert child.run(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path).code == -signal.SIGKILL
    ended = child.run(DIVIDES, tmp_path)
    assert (ended.code, ended.traceback) == (1, True)
    assert ended.last.startswith("ZeroDivisionError: division by zero (child.py:")
    assert ended.last.endswith(f", {Path(__file__).name}:{DIVIDES.__code__.co_firstlineno})")
