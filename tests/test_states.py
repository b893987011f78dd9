"""A state that is not that of the run is refused by what differs, before a step is taken from it."""

import copy
import math
import os
import re
import shutil
import sys

import pytest
import torch

from pinn_odelora.config.build import experiment
from pinn_odelora.errors import InputError
from pinn_odelora.lightning import states
from pinn_odelora.lightning.module import ODELoRAModule
from pinn_odelora.runs import saved_state
from pinn_odelora.runs.folder import STATE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


def step(saved):
    return saved["adaptation"]["progress"]


CHANGES = {
    "no optimiser": (lambda s: s.pop("optimizer_states"), "it has no optimizer_states"),
    "no loops": (lambda s: s.pop("loops"), "it has no loops"),
    "no version": (lambda s: s.pop("pytorch-lightning_version"), "it has no pytorch-lightning_version"),
    "no weights": (lambda s: s.update(state_dict={}), r"its network has no solution\.net\.linears\.0\.weight"),
    "a weight more": (lambda s: s["state_dict"].update(x=torch.zeros(1)), "its network has x, which that of the run "),
    "another size": (
        lambda s: s["state_dict"].update({"solution.net.linears.0.bias": torch.zeros(3, dtype=torch.float64)}),
        r"solution\.net\.linears\.0\.bias is \(3,\), in the run \(12,\)",
    ),
    "another precision": (
        lambda s: s["state_dict"].update({"solution.net.linears.0.bias": torch.zeros(12)}),
        r"solution\.net\.linears\.0\.bias is \(12,\) of torch\.float32, in the run torch\.float64",
    ),
    "NaN": (lambda s: s["state_dict"]["solution.net.linears.0.bias"].fill_(math.nan), "holds NaN or infinite values"),
    "no counters": (lambda s: s["adaptation"].pop("draw"), "its record of the run has no draw"),
    "a counter more": (lambda s: step(s).update(steps=3), "progress has steps, which that of the run has not"),
    "negative": (lambda s: step(s).update(gradient_evals=-5), "gradient_evals of progress is -5"),
    "a word": (lambda s: step(s).update(seconds="a"), "seconds of progress is 'a'"),
    "a draw of before": (lambda s: s["adaptation"].update(draw=-2), "a counter in it is -2"),
    "no best iterate": (lambda s: s["adaptation"]["best"].pop("best"), "best has no best"),
    "a short iterate": (lambda s: s["adaptation"]["best"]["best"]["parameters"].pop(), r"it has 9 parameters of best"),
    "levels of a batch": (
        lambda s: s["adaptation"]["batch_size"].update(levels=[-3.0, "a"]),
        "levels of batch_size is list",
    ),
    "no batch size": (lambda s: s["adaptation"].update(batch_size={}), "batch_size has no size"),
    "loss weights": (lambda s: s["adaptation"].update(loss_weights=None), "it has no loss_weights"),
    "ranks": (lambda s: s["adaptation"].update(ranks={}), "it has ranks"),
    "another term": (
        lambda s: s["adaptation"]["loss_weights"].update(multipliers={"wave": 1.0}),
        "multipliers has no pde",
    ),
    "no groups": (lambda s: s["optimizer_states"][0].update(param_groups=[]), "its optimiser has 0 groups, that of "),
    "another group": (
        lambda s: s["optimizer_states"][0]["param_groups"][0].update(name="other"),
        "its optimiser has other groups",
    ),
    "a foreign memory": (lambda s: s["optimizer_states"][0]["state"].update({77: {}}), "has a memory of 77"),
    "two optimisers": (lambda s: s["optimizer_states"].append({}), "it has not one optimiser"),
    "another problem": (lambda s: s["run"].update(problem={}), "its problem is None, that of the run problems.burgers"),
    "another parameter": (lambda s: s["run"]["problem"].update(nu=7), r"its problem\.nu is 7, that of the run 0"),
    "another method": (lambda s: s["run"]["method"].update(name="lora_gd"), r"its method\.name is lora_gd, that of "),
    "another scheme": (
        lambda s: s["run"]["integrator"].update(_target_="ROS2"),
        "its integrator is ROS2, that of the run pinn_odelora",
    ),
    "another seed": (lambda s: s["run"].update(seed=7), "its seed is 7, that of the run 0"),
    "a memory that changed": (
        lambda s: s["optimizer_states"][0]["state"][0]["integrator"].update(mu=1e3),
        "has changed since it was written, or is damaged",
    ),
    "no memory": (lambda s: s["optimizer_states"][0]["state"].clear(), "has changed since it was written"),
    "a later step": (lambda s: step(s).update(step=99), "has changed since it was written"),
    "loops of nothing": (lambda s: s["loops"].clear(), "has changed since it was written"),
    "a last digit": (lambda s: s["state_dict"]["solution.net.linears.0.bias"].mul_(1 + 1e-15), "has changed since"),
}


def longer(cfg):
    cfg.budget.steps = 9
    return cfg


@pytest.fixture
def begun(compose, run, tmp_path):
    """A run after five steps, and the same one before its first."""
    run(compose("budget.steps=5", "checkpoint.every=5"))
    adaptation = experiment(compose(f"resume={tmp_path / 'run'}")).adaptation
    return tmp_path / "run", ODELoRAModule(adaptation)


def refusal(saved, module):
    try:
        states.check(saved, module.adaptation, module, "last")
    except InputError as error:
        return str(error)
    return ""


def test_what_differs_is_named(begun):
    folder, module = begun
    whole = states.read(folder / STATE)
    assert refusal(whole, module) == ""
    for name, (change, said) in CHANGES.items():
        other = copy.deepcopy(whole)
        change(other)
        sentence = rf"last, the state to continue from, .*{said}.*; config\.yaml .* in another output_dir\."
        assert re.fullmatch(sentence, refusal(other, module)), (name, refusal(other, module))
    # Those of before have neither.
    assert refusal({k: v for k, v in whole.items() if k not in (saved_state.RUN, saved_state.DIGEST)}, module) == ""


def test_a_digest_depends_on_all_that_is_in_a_state_and_on_no_order():
    whole = {"x": torch.arange(3.0), "y": {"a": 1, "b": [2.5, None]}}
    assert saved_state.digest(whole) == saved_state.digest({"y": {"b": (2.5, None), "a": 1}, "x": torch.arange(3.0)})
    assert saved_state.digest(whole) == saved_state.digest({**whole, saved_state.DIGEST: "its own is left out"})
    nested = {"a": [1, [2]], "b": {"c": 0.0}}
    others = ({"a": [1, 2], "b": {"c": 0.0}}, {"a": [1, [2]], "b": {"c": -0.0}}, {"a": [1, [2]], "c": {"b": 0.0}})
    assert len({saved_state.digest(x) for x in (nested, *others)}) == 4
    assert saved_state.digest({"x": torch.zeros(2, 3)}) != saved_state.digest({"x": torch.zeros(3, 2)})
    assert saved_state.digest({"x": torch.zeros(2)}) != saved_state.digest({"x": torch.zeros(2, dtype=torch.int32)})


def test_a_run_goes_on_from_no_other_state(begun, compose, run, tmp_path):
    folder, _ = begun
    for name, said in (("another size", r"in the run \(12,\)"), ("no memory", "has changed since it was written")):
        whole = torch.load(folder / STATE, weights_only=True)
        CHANGES[name][0](whole)
        there = tmp_path / name
        shutil.copytree(folder, there)
        torch.save(whole, there / STATE)
        with pytest.raises(InputError, match=r"last\.ckpt has changed since it was written, or is damaged"):
            run(longer(compose(f"resume={there}")))
        (there / "manifest.json").unlink()  # as one of before, or of somebody else
        with pytest.raises(InputError, match=rf"last\.ckpt, the state to continue from, .*{said}"):
            run(longer(compose(f"resume={there}")))

    # One of before may lack a digest, and fail only when a step is taken from it.
    whole = torch.load(folder / STATE, weights_only=True)
    whole = {name: x for name, x in whole.items() if name not in (saved_state.RUN, saved_state.DIGEST)}
    whole["optimizer_states"][0]["state"][0]["integrator"]["mu"] = "a word"
    torch.save(whole, folder / STATE)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"is not that of this run: the first step from it fails \(TypeError"):
        run(longer(compose(f"resume={folder}")))


def test_a_state_that_cannot_be_read_is_told_from_a_damaged_one(tmp_path):
    (tmp_path / STATE).mkdir()
    with pytest.raises(InputError, match=r"^Cannot read .*, the state to continue from: Is a directory"):
        states.read(tmp_path / STATE)


def opened(name, what):
    """How often files of this name are opened while something happens."""
    seen, watching = [], [True]

    def hook(event, given):  # stays for the life of the process
        if watching and event == "open" and given[1] is not None:  # without a mode it is the descriptor of another one
            seen.append(str(given[0]))

    sys.addaudithook(hook)
    what()
    watching.clear()
    return sum(file.endswith(f"/{name}") for file in seen)


def test_a_state_is_read_once(begun, compose, run):
    folder, _ = begun
    assert opened(STATE, lambda: (folder / STATE).read_bytes()) == 1
    # Once to go on from it, and once for the digest of what the state at the end takes the place of.
    assert opened(STATE, lambda: run(longer(compose(f"resume={folder}")))) == 2


def test_a_state_that_takes_the_place_of_what_was_read_is_read(begun, tmp_path):
    folder, _ = begun
    before = states.saved_in(folder)
    assert before.steps == 5
    assert states.saved_in(folder, before) is before
    whole = copy.deepcopy(before.content)
    step(whole)["step"] = 4
    torch.save(whole, tmp_path / "other")
    os.replace(tmp_path / "other", folder / STATE)  # as another process that ended meanwhile
    with pytest.raises(InputError, match=r"last\.ckpt has changed since it was written"):
        states.saved_in(folder, before)
    (folder / "manifest.json").unlink()
    assert states.saved_in(folder, before).steps == 4
    (folder / STATE).unlink()
    assert states.saved_in(folder, before) is None


def test_a_state_that_is_listed_and_missing_is_refused(begun):
    folder, _ = begun
    (folder / STATE).unlink()
    with pytest.raises(InputError, match=r"last\.ckpt cannot be read \(No such file or directory\)"):
        states.saved_in(folder)
