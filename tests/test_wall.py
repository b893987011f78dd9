"""A run ends before the time of its process does, saved, with a code of its own; continued, it has the same bits."""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pinn_odelora as po
from pinn_odelora import config as commandline
from pinn_odelora import wall
from pinn_odelora.config.build import experiment
from pinn_odelora.config.running import Run
from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.files import write_bytes, write_json
from pinn_odelora.pretraining import cache
from pinn_odelora.runs.messages import CONTINUE
from pinn_odelora.wall import Room, check_ahead, elapsed
from problems.heat import Heat

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
LATE = 1e9
"""A limit that this process does not reach."""


class Hand:
    """A clock that goes on by so much each time that it is looked at."""

    def __init__(self, start, *ticks):
        self.now, self.ticks = start, itertools.cycle(ticks)

    def __call__(self):
        self.now += next(self.ticks)
        return self.now


def test_the_time_is_that_of_the_process_and_not_of_the_import():
    code = "import time; time.sleep(0.6)\nfrom pinn_odelora.wall import elapsed\nprint(elapsed())"
    begun = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    length = time.monotonic() - begun
    if sys.platform == "linux":
        assert 0.6 < float(ran.stdout) < length + 0.02
    before = elapsed()
    time.sleep(0.05)
    assert 0.05 <= elapsed() - before < 5


def test_without_a_table_of_processes_the_time_is_that_since_the_import(monkeypatch):
    def none(*_, **__):
        raise FileNotFoundError

    whole = elapsed()
    monkeypatch.setattr(Path, "read_text", none)
    assert 0 < elapsed() <= whole + 1


def test_there_is_room_for_the_longest_step_and_the_longest_saving(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 3.0, 3.5, 4.0, 5.0])
    monkeypatch.setattr(wall, "elapsed", lambda: next(times))
    room = Room()
    assert room.fits(10)  # at 0, nothing is known
    assert room.fits(10)  # at 1
    assert (room.step, room.save) == (1.0, 0.0)
    assert room.fits(5.1)  # at 3: 3 + 2 < 5.1
    with room.saving():  # from 3 to 3.5
        pass
    assert not room.fits(6.4)  # at 4: 4 + 2 + 0.5 > 6.4
    assert (room.step, room.save) == (2.0, 0.5)
    room.restart()
    assert room.fits(7.6)  # at 5: what lay between was no step


def test_a_limit_that_is_over_is_refused_with_the_time():
    check_ahead(None)
    check_ahead(LATE)
    with pytest.raises(
        RefusedValueError, match=r"^wall is 0.001, but it must be above [\d.]+, the seconds that this pro"
    ):
        check_ahead(0.001)
    net = po.MLP(2, 1, width=4, depth=2)
    with pytest.raises(RefusedValueError, match=r"^wall is 0.001"):
        po.steps(net, Heat(), budget=po.Budget(steps=2, wall=0.001))
    with pytest.raises(RefusedValueError, match=r"^wall is 0, but it must be a finite number above 0 or None"):
        po.Budget(wall=0)


def test_the_limit_is_no_cost():
    from pinn_odelora.budget import Progress

    assert po.Budget(wall=5).used(Progress(step=10**6, seconds=1e6)) == 0
    assert not po.Budget(wall=5).ends
    assert po.Budget(wall=5, steps=10).used(Progress(step=5)) == 0.5


def tiny(**budget):
    net = po.MLP(2, 1, width=4, depth=2, generator=torch.Generator().manual_seed(0))
    few = po.Sampling(fresh=True, interior=8, boundary=4, batch_size=16)
    log = po.Log(every=2, heldout=8, test=8)
    return po.steps(net, Heat(), rank=2, points=few, log=log, device="cpu", budget=po.Budget(steps=9, **budget))


def test_steps_end_before_the_limit_and_go_on_with_the_same_bits(monkeypatch):
    whole = tiny()
    list(whole)
    part = tiny(wall=LATE)
    monkeypatch.setattr(wall, "elapsed", Hand(LATE - 5.5, 1.0))
    assert [record.step for record in part] == [0, 1, 2, 3]  # at -0.5 a step of 1 does not fit
    assert part.training.paused
    assert not part.training.over(part.budget)
    monkeypatch.setattr(wall, "elapsed", elapsed)
    again = tiny(wall=LATE)
    again.load_state_dict(part.state_dict())
    monkeypatch.setattr(wall, "elapsed", Hand(LATE + 5, 1.0))
    assert [record.step for record in again] == [4], "one at least, or it would never end"
    monkeypatch.setattr(wall, "elapsed", elapsed)
    last = tiny(wall=LATE)
    last.load_state_dict(again.state_dict())
    assert [record.step for record in last] == [5, 6, 7, 8]
    assert not last.training.paused
    state = lambda run: [*run.solution.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(last), strict=True))
    spent = [run.training.progress.seconds for run in (part, again, last)]
    assert 0 < spent[0] < spent[1] < spent[2]


def test_a_step_is_not_begun_for_which_only_the_saving_has_no_room(monkeypatch):
    run = tiny(wall=LATE)
    run.training.room.save = 2.0
    monkeypatch.setattr(wall, "elapsed", Hand(LATE - 5.5, 1.0))
    assert len(list(run)) == 2


def test_train_py_leaves_with_the_code_to_continue_and_continues(compose, run, tmp_path, monkeypatch, capsys):
    common = ["problem=heat", "points=fresh", "budget.gradient_evals=null", "budget.steps=12", "checkpoint.every=50"]
    whole = run(compose(*common, f"output_dir={tmp_path / 'whole'}"))
    monkeypatch.setattr(wall, "elapsed", clock := Hand(LATE - 9.5, 1.0))
    part = run(compose(*common, f"budget.wall={LATE:.0f}", f"output_dir={tmp_path / 'parts'}"))
    assert part.result is None
    assert 0 < part.progress.step < 8
    with pytest.raises(SystemExit) as left:
        part.run.leave(part.module)
    assert (left.value.code, CONTINUE) == (75, 75)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"Out of time (budget.wall) at step {part.progress.step}; continue with: python train.py res"
    )
    steps, seconds = [part.progress.step], [part.progress.seconds]
    while part.result is None:
        clock.now = LATE - 9.5
        resumed = part = run(commandline.begin(compose(f"resume={tmp_path / 'parts'}"))[0])
        steps.append(part.progress.step)
        seconds.append(part.progress.seconds)
    assert steps == sorted({*steps})
    assert (len(steps) > 2, steps[-1]) == (True, 12)
    assert seconds == sorted({*seconds})
    parameters = [[*done.adaptation.solution.parameters()] for done in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))


@pytest.mark.parametrize("stage", ["adam_steps", "natural_gradient_steps", "lbfgs_evals"])
def test_pretraining_that_does_not_end_in_time_leaves_with_the_code_and_begins_again(
    stage, compose, run, tmp_path, monkeypatch, capsys
):
    second = "lbfgs" if stage == "lbfgs_evals" else "natural_gradient"
    steps = {"adam_steps": 1, "natural_gradient_steps": 0, "lbfgs_evals": 0} | {stage: 200 if second == "lbfgs" else 12}
    steps = [f"pretrain.{name}={n}" for name, n in steps.items()] + [f"pretrain.second_stage={second}"]
    common = ["problem=heat", "budget.gradient_evals=null", "budget.steps=2", *steps, "pretrain.target=1e-12"]
    whole = run(compose(*common, f"output_dir={tmp_path / 'whole'}", f"pretrain.cache={tmp_path / 'a'}"))
    common += [f"output_dir={tmp_path / 'part'}", f"pretrain.cache={tmp_path / 'b'}"]
    monkeypatch.setattr(wall, "elapsed", Hand(LATE - 5.5, 1.0))
    with pytest.raises(SystemExit) as left:
        run(compose(*common, f"budget.wall={LATE:.0f}"))
    assert left.value.code == 75
    few, last = capsys.readouterr().err.splitlines()[-2:]
    assert few.startswith("Pretraining is not divided: nothing of it is kept, and the ")
    assert last.startswith("Out of time (budget.wall) before the first step; continue with: python train.py resume=")
    assert not (tmp_path / "b").exists() or not [*(tmp_path / "b").iterdir()]

    monkeypatch.setattr(wall, "elapsed", elapsed)
    resume = f"resume={tmp_path / 'part'}"
    with pytest.raises(
        RefusedValueError, match=r"^budget\.wall is .*, but it must be at least \d+ or null, since pretrai"
    ):
        run(compose(resume))
    cfg = compose(resume)
    cfg.budget.wall = None
    done = run(cfg)
    parameters = [[*made.adaptation.solution.parameters()] for made in (whole, done)]
    assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))
    assert done.facts["pretrain_origin"] == "trained"


def test_pretraining_begins_again_in_more_time_or_from_the_cache(compose, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = compose("problem=heat", f"budget.wall={LATE:.0f}", f"output_dir={folder}")
    for had, refused in ((0.95 * LATE, True), (0.8 * LATE, False)):
        write_json(folder / "pretraining.json", {"seconds": had})
        if refused:
            with pytest.raises(RefusedValueError, match=r"must be at least 10450\d{5} or null"):
                Run(cfg, folder, experiment(cfg))
        else:
            Run(cfg, folder, experiment(cfg))
    write_json(folder / "pretraining.json", {"seconds": 0.95 * LATE})
    built = experiment(cfg)
    key = cache.key(built.source, built.adaptation.net, built.pretraining)
    write_bytes(tmp_path / "cache" / f"heat-{key}.safetensors", b"")
    Run(cfg, folder, built)
    (folder / "pretraining.json").write_text("{}")
    (tmp_path / "cache" / f"heat-{key}.safetensors").unlink()
    with pytest.raises(InputError, match=r"pretraining\.json is damaged \(seconds is None"):
        Run(cfg, folder, experiment(cfg))


def test_a_limit_alone_never_finishes_a_run_and_is_refused(compose, tmp_path):
    cfg = compose("budget.gradient_evals=null", f"budget.wall={LATE:.0f}")
    with pytest.raises(RefusedValueError, match=r"^budget\.wall is .*, but it must be given with another limit"):
        Run(cfg, tmp_path, experiment(cfg))


def test_the_command_line_names_the_key_of_a_limit_that_is_over(compose):
    with pytest.raises(RefusedValueError, match=r"^budget\.wall is 0\.01, but it must be above"):
        experiment(compose("budget.wall=0.01"))


def test_a_family_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    net = po.MLP(2, 1, width=6, depth=2, generator=torch.Generator().manual_seed(0))
    settings = po.Pretraining(adam_steps=20, natural_gradient_steps=30, interior=100, boundary=20)
    net = po.pretrain(Heat(kappa=0.05), net, settings=settings)
    limits = {"budget": po.Budget(steps=45), "rank": 2, "tolerance": 1e-9, "most": 6}
    po.family(net, Heat(), kappa=(0.05, 0.08), file=tmp_path / "whole", **limits)
    limits["budget"] = po.Budget(steps=45, wall=LATE)
    counts = []
    for _ in range(50):
        monkeypatch.setattr(wall, "elapsed", Hand(LATE - 4.5, 1.0))
        made = po.family(net, Heat(), kappa=(0.05, 0.08), file=tmp_path / "parts", **limits)
        counts.append(len(made.stations))
        if not made.paused:
            break
    assert len(set(counts)) > 2, counts
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
