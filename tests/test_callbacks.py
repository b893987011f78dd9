"""A run says where it stands, on a terminal and in a log, and its state is on the disk whole."""

import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from pinn_odelora import manifest
from pinn_odelora.budget import Budget, Progress
from pinn_odelora.errors import InputError
from pinn_odelora.lightning.callbacks import ProgressLine, Saver
from pinn_odelora.runs.history import History
from pinn_odelora.wall import Room

ROW = {
    "step": 20.0,
    "loss": 0.0125,
    "error/rel_l2": 3.2e-4,
    "cost/seconds": 2.0,
    "cost/gradient_evals": 100.0,
}


def adaptation(evals=0, best=False):
    """What the callbacks ask of an adaptation."""
    progress = Progress(gradient_evals=evals, seconds=evals / 50)
    training = SimpleNamespace(progress=progress, returns_best=best, room=Room())
    return SimpleNamespace(budget=Budget(gradient_evals=400), training=training)


def shown(terminal, width=120):
    """A progress line, and the text that it has written."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=width, color_system=None, highlight=False)
    return ProgressLine(adaptation(evals=100), console=console), text


@pytest.mark.parametrize(
    ("changes", "evals", "line"),
    [
        ({}, 100, "step 20  loss 1.250e-02  rel. L2 3.200e-04  50 evals/s  6 s left"),
        ({}, 400, "step 20  loss 1.250e-02  rel. L2 3.200e-04  50 evals/s  0 s left"),
        ({}, 0, "step 20  loss 1.250e-02  rel. L2 3.200e-04  …  …"),
        (
            {"coefficient/nu": 0.02, "coefficient/[a]": 1 / 3},
            100,
            "step 20  loss 1.250e-02  nu 0.02  [a] 0.333333  50 evals/s  6 s left",
        ),
    ],
)
def test_a_line_has_step_loss_error_speed_and_what_is_left(changes, evals, line):
    assert ProgressLine(adaptation(evals)).line(ROW | changes) == line


@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({}, "best: rel. L2 3.200e-04"),
        ({"coefficient/k": 2.0, "coefficient/q": 3.0}, "best: k 2  q 3"),
    ],
)
def test_a_line_says_that_the_error_is_of_the_best_iterate_where_the_run_returns_that(changes, best):
    line = ProgressLine(adaptation(100, best=True)).line(ROW | changes)
    assert line == f"step 20  loss 1.250e-02  {best}  50 evals/s  6 s left"


def test_speed_and_what_is_left_are_those_of_now_where_the_row_is_earlier():
    early = ROW | {"step": 0.0, "cost/seconds": 0.1, "cost/gradient_evals": 9.0}
    assert ProgressLine(adaptation(100)).line(early).endswith("50 evals/s  6 s left")


def test_what_is_left_ends_with_the_time_of_the_process(monkeypatch):
    monkeypatch.setattr("pinn_odelora.lightning.callbacks.elapsed", lambda: 100.0)
    run = adaptation(evals=100)
    for wall, left in ((200, "6 s left"), (102, "2 s left"), (90, "0 s left")):
        run.budget = Budget(gradient_evals=400, wall=wall)
        assert ProgressLine(run).line(ROW).endswith(left)
    run.budget = Budget(wall=103)
    assert ProgressLine(run).line(ROW).endswith("3 s left")


def test_a_log_gets_a_whole_line_now_and_then(monkeypatch):
    line, text = shown(terminal=False, width=20)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for seconds in (0, 1, 3.9, 0.2, 4.7, 0.4):
        now[0] += seconds
        line(ROW | {"step": now[0], "coefficient/[red]k": 2.0})
    line.close()
    lines = text.getvalue().splitlines()
    assert [one.split("  ")[0] for one in lines] == ["step 100", "step 105", "step 110"]
    assert {one.split("  ", 1)[1] for one in lines} == {"loss 1.250e-02  [red]k 2  50 evals/s  6 s left"}


def test_a_terminal_has_one_line_kept_up_to_date_and_the_part_of_the_budget_that_is_used(monkeypatch):
    line, text = shown(terminal=True)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for seconds in (0, 0.1, 0.15, 0.25):
        now[0] += seconds
        line(ROW | {"step": round(10 * now[0])})
    assert line.bar.tasks[0].completed == 0.25
    line.close()
    assert text.getvalue().count("\n") == 1, "the line stays, and the next output has a new one"
    assert [*dict.fromkeys(re.findall(r"step (\d+)", text.getvalue()))] == ["1000", "1002", "1005"]
    assert "rel. L2 3.200e-04  50 evals/s  6 s left" in text.getvalue()
    assert text.getvalue().endswith("\x1b[?25h"), "the cursor is visible again"


def test_a_narrow_terminal_has_one_line_all_the_same():
    line, text = shown(terminal=True, width=50)
    line(ROW)
    line.close()
    assert text.getvalue().count("\n") == 1
    assert "step 20  loss 1.250e-02" in text.getvalue()


def test_a_progress_line_that_showed_nothing_leaves_nothing():
    for terminal in (True, False):
        line, text = shown(terminal)
        line.close()
        assert text.getvalue() == ""


def test_the_terminal_is_standard_error(capsys):
    ProgressLine(adaptation())(ROW)
    out, err = capsys.readouterr()
    assert (out, err[:7]) == ("", "step 20")


def test_whole_lines_of_other_output_stand_above_the_line(monkeypatch):
    line, text = shown(terminal=True)
    monkeypatch.setattr(sys, "stderr", text)
    line(ROW)
    print("something else", file=sys.stderr)
    line.close()
    assert text.getvalue().index("something else") < text.getvalue().rindex("step 20")


class Trainer:
    is_global_zero = True

    def __init__(self, fails=False):
        self.fails = fails

    def save_checkpoint(self, path):
        torch.save({"progress": 1}, path)
        if self.fails:
            raise OSError(28, "No space left on device")


def test_the_state_is_saved_every_so_many_steps_and_replaced_whole(tmp_path):
    module, saved = SimpleNamespace(adaptation=adaptation()), []
    progress = module.adaptation.training.progress
    saver = Saver(tmp_path / "last.ckpt", every=10)
    for step in (1, 9, 10, 11, 25, 29, 30):
        progress.step = step
        saver.on_train_batch_end(Trainer(), module)
        saved.append(saver.saved)
    assert saved == [0, 0, 10, 10, 25, 25, 30]
    before = (tmp_path / "last.ckpt").read_bytes()
    progress.step = 40
    with pytest.raises(InputError, match=r"Cannot write .*last.ckpt: No space left on device"):
        saver.on_train_end(Trainer(fails=True), module)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "manifest.json"]
    manifest.check(tmp_path / "manifest.json", "last.ckpt")  # whose digest is the one of before, beside the next


def test_rows_are_on_the_disk_before_the_state_that_counts_them(tmp_path, monkeypatch):
    """A power failure must not leave a state whose rows are lost; a row by itself is not waited for."""
    history, done = History(tmp_path / "history.csv"), []
    history.append({"step": 0})
    sync, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(Path(b).name), move(a, b)))
    history.append({"step": 1})
    assert done == []
    saver = Saver(tmp_path / "last.ckpt", every=1)
    saver.save(Trainer(), SimpleNamespace(adaptation=adaptation()))
    rows, folder = (place.stat().st_ino for place in (tmp_path / "history.csv", tmp_path))
    assert done[:2] == [rows, folder]
    assert done.index("last.ckpt") > 1
    assert done.count(rows) == 1
