"""Sweeps side by side, by a stand-in for train.py whose jobs do what ACTS says for their seed, and train nothing.

The cluster is a stand-in too: an ``sbatch`` that runs the script of the array as SLURM would, on this machine.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pinn_odelora.errors import InputError
from pinn_odelora.sweeps.jobs import portable

ROOT = Path(__file__).parents[1]
PROGRAM = f"""
import json, os, signal, sys, time
from pinn_odelora import config
from pinn_odelora.config.folders import chosen_folder
from pinn_odelora.config.request import Request
from pinn_odelora.errors import InputError, NonFiniteError

class Odd(Exception):
    def __init__(self, one, two): super().__init__(one)

def train(cfg):
    folder = chosen_folder(cfg, Request.current())
    folder.mkdir()
    print("seed", cfg.seed)
    act = json.loads(os.environ["ACTS"]).get(str(cfg.seed))
    if act == "diverge": raise NonFiniteError("Term pde is NaN.")
    if act == "refuse": raise InputError("Layer 3 allows at most rank 2.")
    if act == "fail": raise Odd("a bug", 2)
    if act == "die": os.kill(os.getpid(), signal.SIGKILL)
    if act == "wait":
        (folder / "waits").touch()
        time.sleep(60)
    facts = [os.getpid(), os.environ.get("OMP_NUM_THREADS")]
    (folder / "done").write_text(json.dumps(facts))

if __name__ == "__main__":
    sys.exit(config.run(train, {str(ROOT / "configs")!r}))
"""
SLURM = {
    # Jobs of an array start after sbatch has returned, each with its number.
    "sbatch": f"""#!{sys.executable}
import os, re, shutil, subprocess, sys
shutil.copy(sys.argv[1], os.environ["SCRIPT"])
last = re.search(r"--array=0-(\\d+)", open(sys.argv[1]).read())[1]
for k in range(int(last) + 1):
    own = dict(JOB_ID=str(78 + k), ARRAY_JOB_ID="77", ARRAY_TASK_ID=str(k), NTASKS="1", JOB_NUM_NODES="1", NODEID="0",
               PROCID="0", LOCALID="0", JOB_NODELIST="here")
    environment = os.environ | {{f"SLURM_{{name}}": value for name, value in own.items()}}
    subprocess.Popen(["bash", sys.argv[1]], env=environment, stdout=open(os.devnull, "w"), stderr=subprocess.STDOUT)
print("Submitted batch job 77")
""",
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
exec "$@"
""",
    "sacct": "#!/bin/bash\necho 'JobID|State|NodeList'; for k in 0 1 2; do echo \"77_$k|$STATE|here\"; done\n",
}


class Sweep:
    """``sweep(*arguments, acts={…})``: the sweep of the stand-in, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "program.py").write_text(PROGRAM)

    def start(self, *arguments, acts=(), checks=False, **environment):
        # The checks of all jobs would need torch.
        unchecked = [] if checks else ["~hydra.callbacks.checks"]
        command = [sys.executable, "program.py", "-m", "output_dir=out", *unchecked, *arguments]
        kept = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "OMP_NUM_THREADS")}
        environment = (
            kept
            | {
                "ACTS": json.dumps(dict(acts)),
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            }
            | environment
        )
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *arguments, **settings):
        process = self.start(*arguments, **settings)
        out, said = process.communicate(timeout=120)
        return process.returncode, out.splitlines(), said.splitlines()

    def done(self):
        return {int(file.parent.name): json.loads(file.read_text()) for file in self.folder.glob("out/*/done")}


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


IN_TWO = ("hydra/launcher=processes", "hydra.launcher.workers=2")


def test_a_diverged_job_does_not_end_the_sweep(sweep):
    code, out, said = sweep(*IN_TWO, "seed=range(4)", acts={1: "diverge"})
    assert code == 3
    assert said[0] == "#1 Term pde is NaN."
    assert said[-1] == "Term pde is NaN."
    assert [line for line in out if line.startswith("#2")] == ["#2 : output_dir=out seed=2", "#2 seed 2"]
    done = sweep.done()
    assert sorted(done) == [0, 2, 3]
    assert 1 <= len({pid for pid, _ in done.values()}) <= 2
    assert {threads for _, threads in done.values()} == {"1"}


def test_other_jobs_are_finished_when_one_is_refused_or_fails(sweep):
    code, _, said = sweep(*IN_TWO, "seed=range(5)", acts={0: "refuse", 3: "fail"})
    assert code == 2
    assert "#0 Layer 3 allows at most rank 2." in said
    assert said[-1] == "Layer 3 allows at most rank 2."
    assert "#3 __mp_main__.Odd: a bug" in said
    assert sorted(sweep.done()) == [1, 2, 4]


def test_a_failure_keeps_its_traceback(sweep):
    code, _, said = sweep(*IN_TWO, "seed=0,1", acts={1: "fail"})
    assert code == 1
    # Once where it happened, once where the program ends.
    assert sum('raise Odd("a bug", 2)' in line for line in said) == 2
    assert said[-1].endswith("Odd: a bug")
    assert sorted(sweep.done()) == [0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["seed=0,1", "lora.rank=4,0"], "lora.rank is 0"),
        (["seed=0,1", "hydra.launcher.workers=0"], "hydra.launcher.workers is 0, but it must be a whole number of at"),
        (["seed=0,1", "hydra.launcher.worker=3"], "Unknown key of hydra.launcher: 'worker' (did you mean 'workers'?)"),
        (["hydra/launcher=slurm", "seed=0,1"], "The cluster slurm cannot be used, or not with these settings: Could"),
    ],
)
def test_what_is_wrong_is_a_sentence_before_any_job(sweep, arguments, sentence):
    pytest.importorskip("submitit")
    code, out, said = sweep("hydra/launcher=processes", *arguments, checks=True)
    assert code == 2
    assert out == []
    assert len(said) == 1
    assert said[0].startswith(sentence)
    assert said[0].endswith(".")
    assert [*sweep.folder.glob("out/[0-9]*")] == []


def until(condition, seconds=60):
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("that took too long")


def children(pid):
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid):
    """A zombie counts, where nobody collects orphans."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_ends_its_jobs_and_begins_no_other(sweep, number):
    process = sweep.start(*IN_TWO, "seed=range(4)", acts={0: "wait", 1: "wait"})
    until(lambda: len([*sweep.folder.glob("out/*/waits")]) == 2)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.endswith("The sweep is interrupted; 2 of its 4 jobs were not begun.\n")
    assert "Traceback" not in said
    assert sweep.done() == {}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_no_process_outlives_a_sweep_that_is_killed(sweep):
    process = sweep.start(*IN_TWO, "seed=0,1", acts={0: "wait", 1: "wait"})
    until(lambda: len([*sweep.folder.glob("out/*/waits")]) == 2)
    own = children(process.pid)
    assert len(own) >= 2
    process.kill()
    process.communicate()
    until(lambda: all(map(gone, own)), seconds=10)


def test_a_killed_process_is_a_sentence(sweep):
    code, _, said = sweep(*IN_TWO, "seed=range(3)", acts={1: "die"})
    assert code == 1
    assert said[-1].startswith("A process of the sweep was killed, perhaps for want of memory with 2 of them")
    assert "#1" in said[-1]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A SLURM that runs jobs here, and the place of the script it was given."""
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SCRIPT", str(tmp_path / "script.sh"))
    monkeypatch.setenv("STATE", "COMPLETED")
    return tmp_path / "script.sh"


def test_a_cluster_gets_the_jobs_and_their_settings(sweep, cluster):
    chosen = ["workers=2", "partition=gpu", "timeout_min=7", "mem_gb=3", "additional_parameters={nice: 5}"]
    own = [f"hydra.launcher.{setting}" for setting in chosen]
    code, out, said = sweep("hydra/launcher=slurm", *own, "seed=range(3)", acts={1: "diverge"})
    assert code == 3
    assert said[-1] == "Term pde is NaN."
    assert "#0 finished" in said
    assert "#1 Term pde is NaN." in said
    assert "#2 : output_dir=out seed=2 -> slurm 77_2" in out
    assert sorted(sweep.done()) == [0, 2]
    script = cluster.read_text()
    for line in ("partition=gpu", "time=7", "mem=3GB", "array=0-2%2", "cpus-per-task=1", "nice=5"):
        assert f"#SBATCH --{line}\n" in script
    assert {threads for _, threads in sweep.done().values()} == {"1"}


@pytest.mark.slow
def test_a_job_that_the_cluster_ends_is_told_and_the_others_count(sweep, cluster):
    code, _, said = sweep("hydra/launcher=slurm", "seed=range(3)", acts={1: "die"}, STATE="FAILED")
    assert code == 1
    assert any(line.startswith("#1 was ended by the cluster (FAILED); its log is ") for line in said)
    assert sorted(sweep.done()) == [0, 2]


def test_an_error_travels_with_its_traceback():
    try:
        raise InputError("No.")
    except InputError as error:
        there = pickle.loads(pickle.dumps(portable(error)))
    assert type(there) is InputError
    assert 'raise InputError("No.")' in there.__notes__[0]
    assert "local" in str(portable(type("Odd", (Exception,), {"__qualname__": "f.<locals>.Odd"})("local")))


@pytest.mark.slow
def test_train_py_gives_the_same_numbers_in_processes(tmp_path):
    short = (
        "problem=heat logger=csv points.interior=40 points.boundary=12 pretrain.adam_steps=3 log.test=64 net.width=12"
    )
    rest = "pretrain.natural_gradient_steps=0 budget.steps=3 trainer.accelerator=cpu seed=0,1"
    environment = os.environ | {"PINN_ODELORA_CACHE": str(tmp_path / "cache")}
    for name, launcher in (("one", []), ("two", IN_TWO)):
        words = [*launcher, *short.split(), *rest.split(), f"output_dir={name}"]
        command = [sys.executable, str(ROOT / "train.py"), "-m", *words]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for seed in (0, 1):
        one, two = (
            load_file(tmp_path / name / str(seed) / "adapter/adapter_model.safetensors") for name in ("one", "two")
        )
        assert one.keys() == two.keys()
        assert all((one[key] == two[key]).all() for key in one)
