"""The command line, by a stand-in for train.py that reads the real configs/ and trains nothing.

The tests at the end that name ``train.py`` need the real one.
"""

import copy
import logging
import os
import re
import resource
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import hydra
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from pinn_odelora import config as commandline
from pinn_odelora import methods
from pinn_odelora.__main__ import main
from pinn_odelora.config import components
from pinn_odelora.config.checks import check, settings
from pinn_odelora.config.folders import resumed
from pinn_odelora.config.load import load
from pinn_odelora.config.request import Request
from pinn_odelora.config.sentences import of_run
from pinn_odelora.config.settings import CLASSES, OPEN, RULES
from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.runs.configuration import RENAMED, find_method, save_config, saved_config
from pinn_odelora.runs.location import new_folder
from pinn_odelora.runs.unused import note

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
GROUPS = ("problem", "net", "derivatives", "method", "integrator", "points", "weighting", "logger", "experiment")
HEAVY = {"torch", "lightning", "wandb", "deepxde"}


def members(group):
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


class Ran(NamedTuple):
    code: int
    said: str
    runs: list


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """``typed(*arguments, act=…)``: what comes of a command line when a run saves its config and calls ``act(cfg)``."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*arguments, act=lambda cfg: None):
        runs = []

        def train(cfg):
            cfg, folder = commandline.begin(cfg)
            save_config(cfg, folder)
            act(cfg)
            runs.append((cfg, folder))

        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = commandline.run(train, CONFIGS)
        return Ran(code, capsys.readouterr().err, runs)

    yield call
    root.handlers[:], root.level = handlers, level


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def compose(*overrides):
    commandline.register()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("train", [*overrides])


@pytest.fixture(scope="module")
def default():
    return compose()


def put(cfg, line):
    """What Hydra would make of a line of simple values, many times faster."""
    parser = OverridesParser.create()
    cfg = copy.deepcopy(cfg)
    typed = parser.parse_overrides(line.split())
    for override in typed:
        member = CONFIGS / override.key_or_group / f"{override.value()}.yaml"
        value = OmegaConf.load(member) if member.exists() else override.value()
        if member.exists():
            value.pop("defaults", None)
        OmegaConf.update(cfg, override.key_or_group, value, force_add=True, merge=not member.exists())
    return cfg, Request(given=tuple(override.key_or_group for override in typed))


def leaves(node, prefix=""):
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in OPEN:
            yield from leaves(value, f"{key}.")
        else:
            yield key


def test_every_key_has_a_rule_or_a_class_and_stands_in_configs(default):
    by_class = {f"{part}.{name}" for part, path in CLASSES.items() for name in signature(resolve_name(path)).parameters}
    assert {*leaves(OmegaConf.to_container(default))} == {*RULES, *OPEN, *by_class} - CLASSES.keys()


@pytest.mark.parametrize(
    "part", ["log", "points", "weighting", "pretrain", "stations", "lora", "lora.adaptive", "training"]
)
def test_python_and_the_command_line_have_the_same_defaults(default, part):
    config = OmegaConf.to_container(default)
    mine, given = resolve_name(CLASSES[part])(), settings(config, part)
    assert {k: v for k, v in vars(given).items() if k != "adaptive"} == {
        k: v for k, v in vars(mine).items() if k != "adaptive"
    }


ALONE = [(g, m) for g in GROUPS[:-1] for m in members(g) if "defaults" not in OmegaConf.load(CONFIGS / g / f"{m}.yaml")]
"""Members that change no other group."""


def built(cfg):
    """The names of what a configuration builds."""
    return check(cfg, Request())


@pytest.mark.parametrize(("group", "member"), [(g, m) for g, m in ALONE if m != "matrix"])
def test_every_member_of_every_group_passes_the_checks_and_takes_effect(default, group, member):
    cfg, _ = put(default, f"{group}={member}")
    before = copy.deepcopy(cfg)
    names = built(cfg)
    assert cfg == before  # what is written in configs/ is read as it stands
    if group in names and group != "net":
        assert names[group] == member
    else:
        own = OmegaConf.load(CONFIGS / group / f"{member}.yaml")
        assert cfg[group] == own


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        *((f"experiment={name}", "choices.integrator", "rk4") for name in members("experiment")),
        ("logger=csv", "logger.kind", "csv"),
        *(
            (f"{group}={name}", f"choices.{group}", name)
            for group in ("method", "integrator", "problem")
            for name in members(group)
            if (group, name) not in ALONE
        ),
    ],
)
def test_a_member_made_of_others_passes_the_checks_and_takes_effect(line, key, value):
    cfg = compose(line)
    OmegaConf.update(cfg, "choices", built(cfg), force_add=True)
    assert OmegaConf.select(cfg, key) == value


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("method=lora_gd", "integrator.tableau.path", "pinn_odelora.integrators.tableau.EULER"),
        ("integrator=rk4", "points.residual", 0),
        ("method=full_lbfgs", "points.fresh", False),
        ("problem=matrix_sensing", "pretrain.source.rank", 3),
        ("problem=matrix_sensing lora.rank=adaptive", "pretrain.source.rank", 1),
    ],
)
def test_a_member_brings_what_goes_with_it(line, key, value):
    cfg = compose(*line.split())
    built(cfg)
    assert OmegaConf.select(cfg, key) == value


READ = [
    ("problem.nu=0.03", "problem.nu", 0.03),
    ("problem.weights.pde=10", "problem.weights.pde", 10),
    ("method=lora_adam method.lr=2e-3", "method.lr", 2e-3),
    ("integrator.h=null", "integrator.h", None),
    ("net.width=64", "net.width", 64),
    ("pretrain.source.nu=0.1", "pretrain.source.nu", 0.1),
    ("trainer.deterministic=true", "trainer.deterministic", True),
    ("budget.gradient_evals=1e4", "budget.gradient_evals", 10_000),
    ("lora.targets=[a,b]", "lora.targets", ["a", "b"]),
    ("logger.name=7", "logger.name", "7"),
]


@pytest.mark.parametrize(("line", "key", "value"), READ)
def test_reads_a_value(default, line, key, value):
    cfg, request = put(default, line)
    check(cfg, request)
    got = OmegaConf.select(cfg, key)
    assert got == value
    assert type(got) is type(value) or OmegaConf.is_list(got)


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["problem.nu=0.03", "problem.weights.pde=10", "pretrain.source.nu=1", "net.width=9"], "problem.nu", 0.03),
        (["method=lora_adam", "method.lr=2e-3", "trainer.deterministic=true"], "method.lr", 2e-3),
        (["integrator=rk4", "integrator.h=0.03"], "choices.integrator", "rk4"),
        (["log.every=${checkpoint.every}"], "log.every", 100),
        (["experiment=heat_rk4"], "choices.problem", "heat"),
        (["method=full_lbfgs"], "choices.integrator", None),
        (["problem._target_=problems.allen_cahn.AllenCahn", "problem.d=1e-3"], "choices.problem", "allen_cahn"),
        (
            ["integrator=rk4", "integrator.tableau.path=pinn_odelora.integrators.tableau.HEUN"],
            "choices.integrator",
            "heun",
        ),
    ],
)
def test_accepts(typed, arguments, key, value):
    ran = typed(*arguments)
    assert (ran.code, ran.said) == (0, "")
    assert OmegaConf.select(ran.runs[0][0], key) == value


REFUSED = [
    ("problem=burger", "Unknown problem 'burger' (did you mean 'burgers'?); allowed: allen_cahn, burgers"),
    (
        "method=sgd",
        f"Unknown method 'sgd'; allowed: {', '.join(sorted(x.stem for x in CONFIGS.glob('method/*.yaml')))}.",
    ),
    ("integrator=rk5", "Unknown integrator 'rk5' (did you mean 'rk4'?); allowed: bogacki_shampine, dormand_prince"),
    ("logger=neptune", "Unknown logger 'neptune'; allowed: csv, mlflow, tensorboard, wandb."),
    ("points=sometimes", "Unknown points 'sometimes'; allowed: even, fixed, fresh, residual."),
    ("weighting=trace", "Unknown weighting 'trace'; allowed: fixed, gradnorm, ntk."),
    ("weighting=ntk weighting.every=0", "weighting.every is 0, but it must be a whole number of at least 1 or null."),
    ("weighting.average=1", "weighting.average is 1, but it must be a number of at least 0 and below 1."),
    ("experiment=none", "Unknown experiment 'none'; allowed: "),
    ("problem=null", "chosen by the name of a member"),
    ("metod=odelora", "Unknown key 'metod' (did you mean 'method'?); allowed: budget, "),
    ("+metod=odelora", "Unknown key 'metod' (did you mean 'method'?); allowed: budget, "),
    ("rank=4", "perhaps lora.rank was meant"),
    (
        "lora.rnk=4",
        "Unknown key of lora: 'rnk' (did you mean 'rank'?); allowed: adaptive, alpha, also, rank, scale, scaling, ",
    ),
    ("+lora.rnk=4", "Unknown key of lora: 'rnk' (did you mean 'rank'?)"),
    ("lora=4", "lora is 4, but it is not a key with a value: set lora.adaptive, lora.rank, "),
    ("~seed", "seed is null, but it must be a whole number"),
    ("~lora", "lora is None, but it is not a key with a value: set lora.adaptive, lora.rank, "),
    ("problem.mu=1", "Unknown key of problem: 'mu'; allowed: amplitude, conditions, nu, weights."),
    ("lora.rank=0", "lora.rank is 0, but it must be a whole number of at least 1 or auto or adaptive."),
    ("log.every=${missing}", "log.every cannot be resolved"),
    ("points=fixed points.residual=0.5", "points.residual is 0.5, but it must be 0 where points are fixed"),
    (
        "points=fixed points.initial_batch_size=50",
        "points.initial_batch_size is 50, but it must be null where points are fixed",
    ),
    ("points=fresh points.residual=1.5", "points.residual is 1.5, but it must be a number from 0 to 1."),
    (
        "method=lora_adam integrator=rk4",
        "integrator is given, but lora_adam takes no integrator; methods that do: full_implicit, full_natural, "
        "lora_gd, lora_pro, odelora, scaled_gd.",
    ),
    ("method=full_adam lora.also=[biases]", "lora.also is given, but full_adam trains all weights"),
    ("lora.also=[bias]", "lora.also is [bias], but it must be a list of words, each biases, first or last."),
    ("points.batch_size=0", "points.batch_size is 0"),
    ("method=full_lbfgs lora.rank=2", "lora.rank is given, but full_lbfgs trains all weights"),
    ("method=full_adam lora.targets=a lora.start=zero", "has no factors; lora.targets alone can be set"),
    ("seed=1,2", "seed=1,2 holds several values: add -m"),
    ("seed", "Cannot read the argument 'seed'"),
    ("seed=[1", "Cannot read the argument 'seed=[1'"),
    ("resume=nowhere", "nowhere holds no run"),
    ("output_dir=/dev/null/run", "The output folder /dev/null/run cannot be written"),
    ("-m seed=1,2 lora.rank=4,0", "lora.rank is 0"),
    ("-m problem=burgers,burger", "Unknown problem 'burger'"),
    ("-m problem=3,4", "chosen by the name of a member"),
    ("-m seed=1,2 integrator.h=0.1,-1", "integrator.h is -1, but it must be a finite number above 0 or null."),
    ("-m method=odelora,lora_adam method.lr=1", "Unknown key of method: 'lr'"),
    ("-m problem=glob(h*) lora.rank=range(0,3)", "lora.rank is 0"),
]


@pytest.mark.parametrize(("line", "sentence"), REFUSED, ids=[line for line, _ in REFUSED])
def test_refuses_in_one_sentence_and_leaves_nothing(typed, tmp_path, line, sentence):
    ran = typed(*line.split())
    assert ran.code == 2
    assert sentence in ran.said
    assert ran.said.count("\n") == 1
    assert ran.said.endswith(".\n")
    assert ran.runs == []
    assert files(tmp_path) == []


WRONG = [
    ("method.lr=1", "Unknown key of method: 'lr'; allowed: chart, retract."),
    ("method.integrator=1", "Unknown key of method: 'integrator'; allowed: chart, retract."),
    (
        "integrator=rk4 integrator.tableau.pth=1",
        "Unknown key of integrator.tableau: 'pth' (did you mean 'path'?); allowed: path.",
    ),
    ("net.inputs=3", "Unknown key of net: 'inputs'; allowed: activation, depth, width."),
    ("trainer.acelerator=cpu", "Unknown key of trainer: 'acelerator' (did you mean 'accelerator'?); allowed: "),
    ("pretrain.source.kappa=1", "Unknown source parameter of Burgers: 'kappa'; allowed: amplitude, nu."),
    ("integrator.h=-0.1", "integrator.h is -0.1"),
    ("trainer=4", "trainer is 4, but it is not a key with a value: set trainer.<name>."),
    ("problem.nu=-1", "problem.nu is -1, but it must be a finite number above 0 or unknown."),
    ("problem.nu=nan", "problem.nu is .nan, but it must be a finite number"),
    ("problem.nu=wide", "problem.nu is wide, but it must be a finite number above 0 or unknown."),
    ("problem=helmholtz problem.k=1.5", "problem.k is 1.5, but it must be a whole number of at least 1."),
    ("problem=poisson problem.domain=disc", "problem.domain is disc, but it must be square or plate_with_hole."),
    ("problem.conditions=hrd", "Unknown conditions of Burgers: 'hrd' (did you mean 'hard'?)"),
    ("problem.nu=unknown", "data.file is null, but it must be a file of measurements, from which problem.nu is found."),
    ("problem=helmholtz problem.k=unknown", "problem.k is unknown, but it must be a whole number of at least 1."),
    ("pretrain.source.nu=0", "pretrain.source.nu is 0, but it must be a finite number above 0."),
    ("problem.weights.pde=0", "problem.weights.pde is 0, but it must be a finite number above 0."),
    ("problem.weights=3", "set problem.weights.<name>"),
    ("problem.weights.pdf=3", "Unknown loss term"),
    ("net.width=wide", "net.width is wide, but it must be a whole number"),
    ("net.width=0", "net.width is 0, but it must be a whole number of at least 1."),
    ("net.activation=tahn", "Unknown activation 'tahn' (did you mean 'tanh'?)"),
    (
        "method.retract=false",
        "method.retract is false, but it must be true, since LinearlyImplicit works on the manifold",
    ),
    ("method.chart=factors", "method.chart is factors, but it must be manifold or null with LinearlyImplicit"),
    ("method.retract=7", "method.retract is 7, but it must be true or false."),
    ("integrator.h=0", "integrator.h is 0, but it must be a finite number above 0 or null."),
    ("method=lora_adam method.lr=0", "method.lr is 0"),
    ("method=lora_plus method.ratio=0", "method.ratio is 0"),
    ("lora.rank=2.5", "lora.rank is 2.5"),
    ("lora.rank=true", "lora.rank is true"),
    ("lora.scale=0", "lora.scale is 0"),
    ("lora.scale=2 lora.alpha=16", "lora.scale is 2, but it must be 1, its default, where alpha is given"),
    ("lora.scaling=rslora", "lora.alpha is null, but it must be a number where scaling is rslora."),
    (
        "lora.start=ones",
        "lora.start is ones, but it must be zero, orthonormal, pissa, olora, nora, lora_ga or lora_one.",
    ),
    ("lora.rank=adaptive lora.start=zero", "lora.start is zero, but it must be pissa or orthonormal if the rank is"),
    ("lora.rank=adaptive lora.adaptive.start=20", "lora.adaptive.start is 20, but it must be at most"),
    ("lora.adaptive.max=3", "lora.rank is auto, but it must be adaptive where lora.adaptive.max is given."),
    ("lora.start_size=-1", "lora.start_size is -1"),
    ("seed=-1", "seed is -1, but it must be a whole number of at least 0 and at most 4294967295."),
    (f"seed={10**20}", "at most 4294967295."),
    (f"problem.nu={10**400}", "but it must be a finite number above 0 or unknown."),
    (f"problem=helmholtz problem.k={10**400}", "but it must be a whole number of at least 1."),
    ("problem=helmholtz problem.k=1e300", "problem.k is 1.0e+300, but it must be a whole number of at least 1."),
    ("threads=1000000000", "threads is 1000000000, but it must be auto or a whole number of at least 1 and at most"),
    ("method=lora_adam method.betas=[0.9]", "method.betas is [0.9], but it must be a list of 2 numbers, each at"),
    ("method=lora_adam method.betas=[0.9,1]", "method.betas is [0.9, 1], but it must be a list of 2 numbers"),
    ("trainer.devices=2", "trainer.devices is 2, but it must be one device, 1 or its index as [0], or several with"),
    (
        "trainer.precision=16",
        "trainer.precision is 16, but it must be left out, since a run decides that itself: set precis",
    ),
    (
        "trainer.max_steps=5",
        "trainer.max_steps is 5, but it must be left out, since a run decides that itself: set budget.",
    ),
    (
        "+trainer.min_steps=9",
        "trainer.min_steps is 9, but it must be left out, since a run decides that itself: set bu",
    ),
    ("+trainer.min_epochs=9", "trainer.min_epochs is 9, but it must be left out, since a run decides that itself: s"),
    ("trainer.profiler=1e3", "trainer.profiler is 1000.0, but it must be a word or null."),
    ("trainer.log_every_n_steps=abc", "trainer.log_every_n_steps is abc, but it must be a whole number or null."),
    ("trainer.deterministic=3", "trainer.deterministic is 3, but it must be true or false or a word or null."),
    ("trainer.callbacks=[]", "trainer.callbacks is [], but it must be left out, since a run decides that itself"),
    ("precision=16", "precision is 16, but it must be 32 or 64."),
    ("threads=0", "threads is 0, but it must be auto or a whole number of at least 1 and at most 1024."),
    ("budget.seconds=inf", "budget.seconds is .inf, but it must be a finite number above 0 or null."),
    ("budget.steps=0", "budget.steps is 0"),
    (
        "budget.gradient_evals=null",
        "budget.steps is null, but it must be a whole number where neither gradient_evals nor",
    ),
    ("points.interior=0", "points.interior is 0"),
    ("log.every=0", "log.every is 0"),
    ("checkpoint.every=0", "checkpoint.every is 0"),
    ("data.weight=0", "data.weight is 0"),
    ("data.file=nowhere.csv", "data.file is nowhere.csv, but it must be the path of an existing file"),
    ("pretrain.checkpoint=nowhere.pt", "pretrain.checkpoint is nowhere.pt"),
    (f"pretrain.checkpoint={300 * 'a'}", "but it must be the path of an existing file"),
    ("method=full_adam integrator.h=1", "integrator.h is given, but full_adam takes no integrator"),
    ("net._target_=nowhere.Net", "net._target_ is nowhere.Net, but it must be the dotted name of a class"),
    (
        "net._target_=os.system",
        "net._target_ is os.system, but it must be the dotted name of a class that is a torch.nn.",
    ),
    ("net._target_=problems.burgers.Burgers", "but it must be the dotted name of a class that is a torch.nn.Module"),
    (
        "problem._target_=torch.nn.Linear",
        "but it must be the dotted name of a class that is a pinn_odelora.formulation.",
    ),
    (
        "method._target_=shutil.rmtree method.path=/nowhere",
        "method._target_ is shutil.rmtree, but it must be the dotted",
    ),
    ("integrator._target_=torch.nn.Linear", "integrator._target_ is torch.nn.Linear, but it must be the dotted name"),
    ("problem._target_=problems.burgers.Burger", "has no attribute 'Burger'"),
]


@pytest.mark.parametrize(("line", "sentence"), WRONG, ids=[line for line, _ in WRONG])
def test_refuses_a_value(default, line, sentence):
    with pytest.raises(InputError) as refused:
        check(*put(default, line))
    said = of_run(refused.value)
    assert sentence in said
    assert said.endswith(".")
    assert "\n" not in said


OLD = {
    "points.rows": 5,
    "points.first": 5,
    "points.validation": "true",
    "lora.adaptive.rows": 2,
    "pretrain.finish": "lbfgs",
    "pretrain.implicit_steps": 3,
    "derivatives.compile": "on",
    "integrator.chart": "manifold",
    "integrator.first": 1,
    "integrator.metric": "weights",
}


@pytest.mark.parametrize(("key", "value"), OLD.items())
def test_a_key_of_earlier_versions_is_refused_with_its_new_name(typed, key, value):
    assert OLD.keys() == RENAMED.keys()
    ran = typed(f"{key}={value}")
    new = f"is now {RENAMED[key]}" if RENAMED[key] else "no longer exists; leave it out"
    assert (ran.code, ran.said) == (2, f"{key} {new}.\n")


@pytest.mark.parametrize(("former", "now"), [("lora_adam", "lora_adam"), ("lora_muon", "factor_muon")])
def test_the_method_of_an_earlier_version_is_found_where_it_is_now(former, now, tmp_path):
    cfg = compose(f"method={now}")
    cfg.method["_target_"] = f"pinn_odelora.optim.methods.{former}"
    with open_dict(cfg):
        cfg.choices = {"method": former}
    save_config(cfg, tmp_path)
    kept = saved_config(tmp_path)
    assert (kept.method["_target_"], kept.choices.method) == (f"pinn_odelora.methods.{now}", now)
    ours = compose("method=odelora")
    find_method(ours)
    assert ours == compose("method=odelora")


def test_a_run_folder_of_an_earlier_version_is_refused(typed, tmp_path):
    typed("output_dir=here")
    file = tmp_path / "here/config.yaml"
    file.write_text(file.read_text().replace("initial_batch_size: 250", "first: 250"))
    ran = typed("resume=here")
    assert ran.code == 2
    assert ran.said == (
        f"{tmp_path / 'here'} holds a run of an earlier version, which cannot be read: points.first is now "
        "points.initial_batch_size.\n"
    )


def test_a_key_left_out_has_its_default(typed):
    ran = typed("~lora.rank", "~log.every")
    assert (ran.said, ran.runs[0][0].lora.rank, ran.runs[0][0].log.every) == ("", "auto", 10)


def test_a_folder_that_holds_a_run_is_refused_and_not_touched(typed, tmp_path):
    typed("output_dir=here", "seed=3")
    before = (tmp_path / "here/config.yaml").read_bytes()
    ran = typed("output_dir=here", "seed=4")
    assert ran.code == 2
    assert f"already holds a run; continue it with resume={tmp_path / 'here'}" in ran.said
    assert (tmp_path / "here/config.yaml").read_bytes() == before


def fail(error):
    def act(cfg):
        raise error

    return act


def test_numbers_that_are_not_finite_have_a_code_of_their_own(typed):
    ran = typed(act=fail(NonFiniteError("Term pde is NaN.")))
    assert (ran.code, ran.said) == (3, "Term pde is NaN.\n")


def test_a_refusal_in_the_run_is_a_sentence(typed):
    ran = typed(act=fail(InputError("Layer 3 allows\nat most rank 2.")))
    assert (ran.code, ran.said) == (2, "Layer 3 allows at most rank 2.\n")


def test_a_refusal_while_building_leaves_no_empty_folder(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "save_config", fail_before_saving)
    ran = typed()
    assert ran.said == "Too late.\n"
    assert files(tmp_path / "runs") == []


def fail_before_saving(cfg, folder):
    assert folder.is_dir()
    raise InputError("Too late.")


@pytest.mark.parametrize("error", [KeyError("a bug"), OSError("disk full"), SystemExit(130), KeyboardInterrupt()])
def test_other_errors_and_exits_pass_as_they_are(typed, error):
    with pytest.raises(type(error)) as caught:
        typed(act=fail(error))
    assert caught.value is error


def test_hydra_full_error_brings_the_traceback_back(typed, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InputError):
        typed("lora.rank=0")
    with pytest.raises(hydra.errors.MissingConfigException):
        typed("problem=burger")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_the_environment_is_left_as_it_was(typed, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    typed("lora.rank=0")
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_runs_of_one_second_have_folders_of_their_own_and_hydra_writes_nothing(typed, tmp_path):
    first = typed("seed=1").runs[0][1]
    made = [first, *(new_folder(first.parent, first.name) for _ in range(3))]
    assert len(set(made)) == 4
    assert all(folder.is_dir() and folder.name.startswith("burgers-odelora-2") for folder in made)
    assert files(made[0]) == ["config.yaml"]
    assert files(tmp_path)[0] == "runs"
    assert len(files(tmp_path)) == 6


def test_a_sweep_runs_every_combination_in_numbered_folders(typed, tmp_path):
    ran = typed("-m", "lora.rank=2", "problem=burgers,heat", "output_dir=sweep")
    assert ran.code == 0
    assert [(cfg.lora.rank, cfg.choices.problem) for cfg, _ in ran.runs] == [(2, "burgers"), (2, "heat")]
    assert [folder for _, folder in ran.runs] == [tmp_path / "sweep/0", tmp_path / "sweep/1"]
    made = ["sweep", "sweep/0", "sweep/0/config.yaml", "sweep/1", "sweep/1/config.yaml", "sweep/multirun.yaml"]
    assert files(tmp_path) == made


def test_a_sweep_over_methods_may_set_what_some_of_them_do_not_look_at(typed):
    ran = typed("-m", "method=odelora,full_lbfgs,lora_adam", "lora.rank=4", "integrator.h=0.1", "output_dir=sweep")
    assert (ran.code, [cfg.choices.method for cfg, _ in ran.runs]) == (0, ["odelora", "full_lbfgs", "lora_adam"])
    for given in (["-m", "lora.rank=4,8"], ["lora.rank=4"]):
        ran = typed(*given, "method=full_lbfgs", "output_dir=other")
        assert ran.code == 2
        assert ran.said.startswith("lora.rank is given, but full_lbfgs trains all weights and has no factors; ")


def test_a_job_says_what_it_does_not_look_at():
    adam = methods.full_adam()
    said = "lora.rank is given, but full_adam trains all weights and has no factors: it has no effect on this job."
    assert note(adam, ["seed", "lora.targets", "lora.rank"]) == said
    said = "integrator is given, but full_adam takes no integrator: it has no effect on this job."
    assert note(adam, ["integrator", "lora.rank"]) == said
    assert note(methods.odelora(LinearlyImplicit()), ["integrator", "lora.rank"]) == ""
    assert note(adam, ["lora.targets", "integrators"]) == ""


def test_a_sweep_into_folders_that_hold_runs_is_refused(typed, tmp_path):
    typed("-m", "seed=1,2", "output_dir=sweep")
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    ran = typed("-m", "seed=1,2", "output_dir=sweep")
    assert ran.code == 2
    assert "sweep/0 already holds a run" in ran.said
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)} == before


def test_a_diverged_run_does_not_end_a_sweep(typed):
    def act(cfg):
        if cfg.seed == 1:
            raise NonFiniteError("Term pde is NaN.")

    ran = typed("-m", "seed=0,1,2", act=act)
    assert ran.code == 3
    assert ran.said.endswith("Term pde is NaN.\n")
    assert [cfg.seed for cfg, _ in ran.runs] == [0, 2]


def test_the_saved_configuration_repeats_the_run(typed, tmp_path):
    (tmp_path / "points.csv").touch()
    typed("problem.nu=0.03", "integrator=rk4", "integrator.h=0.1", "data.file=points.csv", "output_dir=first", "seed=7")
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    ran = typed("--config-path", str(tmp_path / "first"), "--config-name", "config", "output_dir=second")
    assert ran.said == ""
    assert ran.runs[0][0].choices.integrator == "rk4"
    assert files(tmp_path / "elsewhere") == ["second", "second/config.yaml"]
    first, second = (file.read_text() for file in (tmp_path / "first/config.yaml", Path("second/config.yaml")))
    assert first == second
    assert "defaults" not in first
    assert OmegaConf.load(tmp_path / "first/config.yaml").data.file == str(tmp_path / "points.csv")


def test_a_saved_configuration_stays_open_and_checked(typed, tmp_path):
    typed("output_dir=first")
    again = ["--config-path", str(tmp_path / "first"), "--config-name", "config", "output_dir=second"]
    assert typed(*again, "problem.nua=0.3").said.startswith("Unknown key of problem: 'nua'")
    assert typed(*again, "problem.nu=0.3").runs[0][0].problem.nu == 0.3


def test_resume_takes_the_saved_configuration_and_a_new_budget(typed, tmp_path):
    typed("problem=heat", "method=lora_adam", "seed=7", "budget.steps=10", "output_dir=run")
    ran = typed("resume=run", "budget.steps=20", "logger=csv", "log.every=5")
    assert ran.said == ""
    cfg, folder = ran.runs[0]
    assert folder == tmp_path / "run"
    assert (cfg.seed, cfg.budget.steps, cfg.logger.kind, cfg.log.every) == (7, 20, "csv", 5)
    assert cfg.choices == {"problem": "heat", "net": "mlp", "method": "lora_adam", "integrator": None}
    assert cfg.resume == cfg.output_dir == str(folder)
    assert OmegaConf.load(folder / "config.yaml").budget.steps == 20


def test_resume_does_not_need_the_users_checkpoint_any_more(typed, tmp_path):
    own = tmp_path / "own.pt"
    own.touch()
    typed("output_dir=here", f"pretrain.checkpoint={own}")
    own.unlink()
    assert "pretrain.checkpoint is" in typed("resume=here").said
    (tmp_path / "here/start.json").touch()
    ran = typed("resume=here")
    assert (ran.code, ran.runs[0][0].pretrain.checkpoint) == (0, str(own))


def test_a_finished_run_without_its_state_is_not_begun_anew(typed, tmp_path):
    typed("output_dir=here")
    (tmp_path / "here/summary.json").touch()
    ran = typed("resume=here")
    assert ran.code == 2
    assert "is a finished run without last.ckpt" in ran.said


@pytest.mark.parametrize("name", ["start.json", "last.ckpt"])
def test_a_folder_with_the_state_of_a_run_is_not_taken_for_a_new_one(typed, tmp_path, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / name).touch()
    assert typed("output_dir=here").code == 2


def test_a_dotted_name_inside_a_component_that_leads_nowhere_is_a_sentence(typed):
    ran = typed("integrator=rk4", "integrator.tableau.path=math.nothing")
    assert ran.code == 2
    assert "integrator.tableau._target_ is hydra.utils.get_object, which fails: ImportError: Error loading" in ran.said


@pytest.mark.parametrize("other", ["seed", "problem", "output_dir", "log.test", "trainer.devices", "lora.rank"])
def test_resume_changes_nothing_that_takes_part_in_the_numbers(default, tmp_path, other):
    cfg, _ = put(default, f"resume={tmp_path}")
    with pytest.raises(
        InputError, match=rf"{other} cannot change .* allowed: budget, .*, checkpoint, log.every, logger\."
    ):
        resumed(cfg, Request(given=("resume", "budget.steps", "logger", other)))


@pytest.mark.parametrize("content", ["", "a: [", "just text", "seed: 1"])
def test_resume_refuses_a_damaged_configuration(default, tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=r"holds no run: there is no config\.yaml in it that can be read"):
        resumed(put(default, f"resume={tmp_path}")[0], Request(given=("resume",)))


def test_a_network_of_ones_own_from_the_working_folder(typed, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, inputs, hidden: int, kind: str | None = None): super().__init__()\n"
        "def make(outputs: int, **rest) -> Net: return Net(1, 2)\n"
        "def unknown(outputs: int): return Net(1, 2)\n"
    )
    ran = typed("net._target_=own.Net", "net.hidden=64")
    assert (ran.said, ran.runs[0][0].net.hidden, ran.runs[0][0].choices.net) == ("", 64, "net")
    assert typed("net._target_=own.Net").said == "own.Net needs a value for net.hidden.\n"
    assert "net.hidden is x, but it must be a whole number." in typed("net._target_=own.Net", "net.hidden=x").said
    assert "allowed: hidden, kind." in typed("net._target_=own.Net", "net.hidden=1", "net.widht=3").said
    assert typed("net._target_=own.make", "net.anything=3").code == 0
    assert "a function annotated to return one" in typed("net._target_=own.unknown").said
    sys.modules.pop("own")


def test_a_target_is_resolved_and_not_called_before_it_is_known_to_fit(default, monkeypatch):
    called = []
    monkeypatch.setattr(components, "harmless", lambda path="": called.append(path), raising=False)
    for group in ("problem", "net", "method", "integrator"):
        with pytest.raises(InputError, match=rf"{group}\._target_ is .*harmless, but it must be the dotted name"):
            check(*put(default, f"{group}._target_=pinn_odelora.config.components.harmless"))
    assert called == []


def answer(script, *arguments, cwd):
    """What a fresh interpreter says, the modules it imports, and the processor seconds it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    command = [sys.executable, "-X", "importtime", str(script), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = ran.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return ran.returncode, ran.stdout, said, imported, seconds


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--cfg", "job"], 0),
        (["problem=burger"], 2),
        (["lora.rnk=1"], 2),
        (["points.interior=0"], 2),
        (["resume=nowhere"], 2),
    ],
)
def test_real_train_py_answers_at_once_and_imports_nothing_heavy(tmp_path, arguments, code):
    returned, out, said, imported, seconds = answer(ROOT / "train.py", *arguments, cwd=tmp_path)
    assert returned == code, said
    assert "hydra" in imported
    assert not HEAVY & imported
    assert seconds < 2
    assert files(tmp_path) == []
    if arguments == ["--help"]:
        assert all(", ".join(members(group)) in out for group in GROUPS)
        assert {*RULES} <= {*leaves(yaml.safe_load(out[out.index("\nseed:") :]))}
    if code == 2:
        assert len(said) == 1


def test_help_is_the_text_of_the_configuration(tmp_path):
    """Every line of train.yaml that explains a key stands in the help, and every key is explained or named there."""
    out = answer(ROOT / "train.py", "--help", cwd=tmp_path)[1]
    for file in ("train.yaml", "points/residual.yaml", "derivatives/auto.yaml", "logger/wandb.yaml"):
        lines = [line for line in (CONFIGS / file).read_text().splitlines() if re.match(r" *\w+: ", line)]
        assert len(lines) > (file == "train.yaml") * 40
        assert all(line in out for line in lines)
    assert "$" not in out


def test_a_rule_is_read_from_a_literal_annotation(tmp_path, monkeypatch):
    (tmp_path / "chosen.py").write_text(
        "from typing import Literal\n"
        "from pinn_odelora.optim.methods import Method\n"
        "def method(kind: Literal['a', 'b'] | None = 'a') -> Method: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose("method._target_=chosen.method", "method.kind=c")
    with pytest.raises(InputError, match=r"method\.kind is 'c', but it must be a or b or None"):
        check(cfg, Request())


def program(capsys, *arguments):
    """The exit code of ``python -m pinn_odelora``, and what it says."""
    try:
        code = main([*arguments])
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_program_without_an_argument_prints_the_help_of_all_commands(capsys, arguments):
    code, out, said = program(capsys, *arguments)
    assert (code, said) == (0, "")
    assert out.startswith("usage: python -m pinn_odelora [-h] command ...")
    for name in ("list", "suggest-rank", "predict", "family", "compare", "dashboard", "export", "study"):
        assert f"  python -m pinn_odelora {name} [-h]" in out
    assert "predict [-h] [-o OUTPUT] [--trust MODULE] run points" in " ".join(out.split())


def test_the_list_has_every_problem_and_every_method(capsys):
    code, out, said = program(capsys, "list")
    assert (code, said) == (0, "")
    names = {line.split()[1] for line in out.splitlines() if line.startswith("│")}
    for group in ("problem", "method"):
        assert {file.stem for file in (CONFIGS / group).glob("*.yaml")} <= names


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["lst"],
            "Unknown command 'lst' (did you mean 'list'?); allowed: check, compare, dashboard, deepxde, export, ",
        ),
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["predict", "run"], "the following arguments are required: points"),
        (["export", "run", "--outptu", "x"], "unrecognized arguments: --outptu x"),
    ],
)
def test_a_wrong_argument_is_a_line_of_usage_and_a_sentence(capsys, arguments, sentence):
    code, out, said = program(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said.startswith("usage: python -m pinn_odelora")
    assert sentence in said
    assert said.count("\n") <= 3


def test_a_folder_that_holds_no_run_is_a_sentence(capsys, tmp_path):
    code, out, said = program(capsys, "export", str(tmp_path))
    assert (code, out) == (2, "")
    assert said.startswith(f"{tmp_path} holds no run")
    assert said.count("\n") == 1


def test_a_run_of_an_earlier_version_is_not_loaded(typed, tmp_path):
    typed("output_dir=here")
    file = tmp_path / "here/config.yaml"
    file.write_text(file.read_text().replace("second_stage: auto", "finish: auto"))
    with pytest.raises(InputError, match=r"earlier version, .*: pretrain.finish is now pretrain.second_stage"):
        load(tmp_path / "here")


def test_a_run_with_a_problem_that_is_not_here_is_not_loaded(typed, tmp_path):
    typed("output_dir=here")
    file = tmp_path / "here/config.yaml"
    file.write_text(file.read_text().replace("problems.burgers.Burgers", "theirs.Wave"))
    with pytest.raises(InputError, match=r"cannot build the problem here .*problem\._target_ is theirs\.Wave"):
        load(tmp_path / "here")


# Names that Hydra does not read as they are typed; the names themselves are in test_arguments.py.


@pytest.mark.parametrize("name", ["epoch=9-step=100.ckpt", "o'neil (数据,1).csv"])
def test_a_run_has_its_files_by_any_name(typed, tmp_path, name):
    (tmp_path / name).touch()
    ran = typed(f"data.file={name}", f"pretrain.checkpoint={name}", f"output_dir=out {name}")
    (cfg, folder), *_ = ran.runs
    assert (cfg.data.file, cfg.pretrain.checkpoint) == (str(tmp_path / name), str(tmp_path / name))
    assert folder == tmp_path / f"out {name}"
    assert saved_config(folder).data.file == cfg.data.file
    said = typed(f"output_dir=out {name}").said
    (suggested,) = re.findall(r"continue it with (.*), or give another output_dir\.$", said)
    (resume,) = shlex.split(suggested)
    assert typed(resume).runs[0][1] == folder
    assert sys.argv == ["train.py", resume]


def test_a_sweep_over_files_of_any_name(typed, tmp_path):
    names = ["é(1).csv", "a,b.csv"]
    for name in names:
        (tmp_path / name).touch()
    ran = typed("-m", f"data.file={names[0]},'{names[1]}'", "output_dir=x=1", "logger=csv")
    assert [Path(cfg.data.file).name for cfg, _ in ran.runs] == names
    assert [folder for _, folder in ran.runs] == [tmp_path / "x=1" / str(k) for k in (0, 1)]
    assert typed("-m", f"data.file={names[1]},{names[0]}").code == 2


def test_a_file_that_is_not_there_is_named_as_it_was_typed(typed):
    said = typed("data.file=no(1).csv").said
    assert said == "data.file is no(1).csv, but it must be the path of an existing file or null.\n"


def test_a_parameter_may_have_any_letter_that_python_takes(typed, tmp_path):
    source = (ROOT / "problems/burgers.py").read_text(encoding="utf-8")
    (tmp_path / "greek.py").write_text(re.sub(r"\bnu\b", "κ", source), encoding="utf-8")
    own = "problem._target_=greek.Burgers"
    ran = typed("-m", own, "problem.κ=0.03,0.02", "output_dir=a")
    assert [cfg.problem["κ"] for cfg, _ in ran.runs] == [0.03, 0.02]
    assert saved_config(tmp_path / "a" / "1").problem["κ"] == 0.02
    assert typed(own, "problem.κ=-1").said == "problem.κ is -1, but it must be a finite number above 0 or unknown.\n"
    assert "Unknown key of lora: 'κ'" in typed("lora.κ=1").said
    sys.modules.pop("greek")


BROKEN = {
    "net._target_=nowhere.Net": "net._target_ is nowhere.Net, but it must be the dotted name of a class that is a "
    "torch.nn.Module, or a function annotated to return one (No module named 'nowhere').",
    "net._target_=needing.Net": "net._target_ is needing.Net, which cannot be imported: ModuleNotFoundError: No module "
    "named 'not_there' (needing.py, line 2).",
    "net._target_=unfinished.Net": "net._target_ is unfinished.Net, which cannot be imported: SyntaxError: invalid "
    "syntax (unfinished.py, line 1).",
    "problem._target_=dividing.Thing": "problem._target_ is dividing.Thing, which cannot be imported: "
    "ZeroDivisionError: division by zero (dividing.py, line 1).",
    "net._target_=making.Net": "net._target_ is making.Net, which fails: AttributeError: 'NoneType' object has no "
    "attribute 'shape' (making.py, line 5).",
    "net._target_=making.Lazy": "net._target_ is making.Lazy, which fails: ModuleNotFoundError: No module named "
    "'not_there' (making.py, line 9).",
    "net._target_=making.Sizes": "net._target_ is making.Sizes, which fails: TypeError: ",
    "problem._target_=posing.Wave": "problem._target_ is posing.Wave, which fails: ValueError: no speed (posing.py, "
    "line 4).",
}
OWN = {
    "needing": "import torch\nimport not_there\nclass Net(torch.nn.Module): pass\n",
    "unfinished": "class Net(:\n",
    "dividing": "1 / 0\n",
    "making": "import torch\n"
    "class Net(torch.nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        None.shape\n"
    "class Lazy(torch.nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        import not_there\n"
    "class Sizes(torch.nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.layer = torch.nn.Linear(None, 3)\n",
    "posing": "from problems.burgers import Burgers\n"
    "class Wave(Burgers):\n"
    "    def __post_init__(self):\n"
    "        raise ValueError('no speed')\n",
}


@pytest.mark.parametrize("argument", BROKEN)
def test_a_class_that_cannot_be_imported_or_made_is_a_sentence_with_its_line(typed, tmp_path, argument):
    for name, source in OWN.items():
        (tmp_path / f"{name}.py").write_text(source)
    ran = typed(argument)
    assert ran.code == 2
    assert ran.said.startswith(BROKEN[argument])
    assert ran.said.count("\n") == 1
    for name in OWN:
        sys.modules.pop(name, None)
