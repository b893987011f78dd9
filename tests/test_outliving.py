"""A program outlives its terminal: output that nobody takes is lost, and nothing else; signals end it as it says."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pinn_odelora.config import program

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
from pathlib import Path
from pinn_odelora.streams import program
with program():
    for k in range(3000):
        print("a line of output on standard output", k)
        print("another one on standard error", k, file=sys.stderr)
    assert sys.stdout.writable() and not sys.stdout.isatty()
    Path(sys.argv[1]).write_text("done")
    sys.exit(7)
"""
WAITING = """
import signal, sys, time
from pathlib import Path
from pinn_odelora.streams import program
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have set another
with program():
    print("ready", flush=True)
    for _ in range(600):
        time.sleep(0.05)
        if Path(sys.argv[1]).exists():
            sys.exit(7)
"""
posix = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors are those of POSIX systems")


@posix
@pytest.mark.parametrize(
    "how", ["2>&1 | head -1", "2>&1 | true", ">/dev/full 2>/dev/full", ">&- 2>&-", ">&- 2>/dev/full", "<&- >&- 2>&-"]
)
@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_output_that_nobody_takes_ends_no_program(how, options, tmp_path):
    command = " ".join([sys.executable, *options, "program.py", "end"])
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = ["bash", "-c", f"set -o pipefail; {command} {how}"]
    ran = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (7, "")
    assert (tmp_path / "end").read_text() == "done"


@posix
def test_a_log_on_a_disk_with_space_again_goes_on(tmp_path):
    code = (
        "import os, sys\n"
        "from pinn_odelora.streams import lose_what_cannot_be_written\n"
        "kept = os.dup(1)\n"
        "lose_what_cannot_be_written()\n"
        "print('first', flush=True)\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "print('lost', flush=True)\n"
        "os.dup2(kept, 1)\n"
        "print('last \\u03ba')\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert ran.stdout.decode().splitlines() == ["first", "last κ"]


@posix
def test_a_file_that_is_opened_does_not_get_what_is_printed(tmp_path):
    code = (
        "import os, sys\n"
        "from pinn_odelora.streams import lose_what_cannot_be_written\n"
        "lose_what_cannot_be_written()\n"
        "file = open(sys.argv[1], 'w')\n"
        "assert file.fileno() > 2\n"
        "print('out'); print('err', file=sys.stderr); os.write(2, b'from C')\n"
    )
    command = f'{sys.executable} -c "$1" file >&- 2>&-'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", command, "-", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "file").read_bytes() == b""


def test_streams_of_somebody_else_stay(monkeypatch, capsys):
    from pinn_odelora.streams import lose_what_cannot_be_written

    here = sys.stdout, sys.stderr
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    lose_what_cannot_be_written()
    assert (sys.stdout, sys.stderr) == here


def waiting(tmp_path, **how):
    (tmp_path / "program.py").write_text(WAITING)
    command = [sys.executable, "program.py", "end"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Whoever runs the tests in the background has Python's children ignore SIGINT.
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, preexec_fn=heard, **how)


@posix
@pytest.mark.parametrize(
    ("number", "code", "sentence"), [(signal.SIGINT, 130, "Interrupted.\n"), (signal.SIGTERM, -signal.SIGTERM, "")]
)
def test_a_signal_ends_a_program_without_a_traceback(number, code, sentence, tmp_path):
    with waiting(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (code, sentence)


@pytest.mark.parametrize("inside", [True, False], ids=["in the run", "in Hydra"])
def test_what_an_interruption_leaves_behind_is_no_error_of_its_own(inside, monkeypatch):
    """Ctrl-C in the middle of a library's context, whose end then fails."""

    def cleared(*_):
        try:
            raise KeyboardInterrupt
        finally:
            None.missing  # noqa: B018

    monkeypatch.setattr(sys, "argv", ["train.py", "problem=heat"])
    if not inside:
        monkeypatch.setattr(program, "register", cleared)
    with pytest.raises(KeyboardInterrupt):
        program.run(cleared, ROOT / "configs")


@posix
def test_a_program_goes_on_when_its_terminal_is_closed(tmp_path):
    import pty

    master, terminal = pty.openpty()
    process = waiting(tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    assert os.read(master, 5) == b"ready"
    os.close(master)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    (tmp_path / "end").touch()
    assert process.wait(timeout=20) == 7


RUN = [
    *("problem=heat", "net.width=4", "net.depth=2", "lora.rank=2", "logger=csv", "trainer.accelerator=cpu"),
    *("points=fresh", "points.interior=8", "points.boundary=4", "budget.gradient_evals=null"),
    *("pretrain.adam_steps=1", "pretrain.natural_gradient_steps=0", "log.test=8", "log.heldout=8", "log.every=2"),
]


def train(tmp_path, *arguments, **how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PINN_ODELORA_CACHE": str(tmp_path / "cache")}
    folder = [] if any(a.startswith("output_dir=") for a in arguments) else [f"output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "train.py", *RUN, *folder, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **how)


def begun(process, history):
    """Wait until a run has a few rows."""
    while not history.exists() or history.read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.02)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("how", ["2>&1 | head -1", ">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_a_run_whose_output_nobody_takes_is_finished(how, tmp_path):
    arguments = " ".join([*RUN, f"output_dir={tmp_path / 'run'}", "budget.steps=20"])
    command = f"set -o pipefail; {sys.executable} train.py {arguments} {how}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PINN_ODELORA_CACHE": str(tmp_path / "cache")}
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, check=False).returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


@posix
@pytest.mark.slow
def test_a_run_is_finished_when_its_terminal_is_closed(tmp_path):
    import pty

    master, terminal = pty.openpty()
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "start_new_session": True}
    process = train(tmp_path, "budget.steps=400", **streams)
    os.close(terminal)
    begun(process, tmp_path / "run" / "history.csv")
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "summary.json").exists()


@posix
@pytest.mark.slow
def test_a_run_without_time_ends_with_its_code_and_is_finished_by_continuing(tmp_path):
    begun_at = time.monotonic()
    with train(tmp_path, "budget.steps=1", f"output_dir={tmp_path / 'short'}") as process:
        assert process.wait() == 0
    wall = 1.5 * (time.monotonic() - begun_at) + 5
    begun_at = time.monotonic()
    with train(tmp_path, "budget.steps=1000000", f"budget.wall={wall}") as process:
        assert process.wait(timeout=20 * wall) == 75
    assert time.monotonic() - begun_at < wall + 2
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    limits = ["budget.wall=null", "budget.steps=1"]  # which it has taken already
    command = [sys.executable, "train.py", f"resume={tmp_path / 'run'}", *limits]
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()
