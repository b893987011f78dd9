"""The command line, by a stand-in for train.py that reads the real configs/ and trains nothing.

The tests at the end that name ``train.py`` need the real one.
"""

import copy
import inspect
import logging
import os
import pkgutil
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import hydra
import hydra._internal.hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from pinn_odelora import config as commandline
from pinn_odelora.config.checks import check
from pinn_odelora.config.folders import output_folder, resumed, save_config
from pinn_odelora.config.keys import GROUPS, KEYS, OPEN, PROVIDED
from pinn_odelora.config.request import Request
from pinn_odelora.config.signature import signature
from pinn_odelora.errors import InputError, NonFiniteError

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
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
    # Hydra composes everything once more only to look for hydra.mode, which nobody sets here.
    monkeypatch.setattr(hydra._internal.hydra.Hydra, "get_mode", lambda *_, **__: None)

    def call(*arguments, act=lambda cfg: None):
        runs = []

        @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
        def train(cfg):
            cfg, folder = commandline.begin(cfg)
            save_config(cfg, folder)
            act(cfg)
            runs.append((cfg, folder))

        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = commandline.run(train)
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
    return cfg, Request(given=tuple(override.key_or_group for override in typed), folders=(CONFIGS,))


def test_the_table_of_keys_is_that_of_train_yaml():
    def keys(node, prefix=""):
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and key not in (*PROVIDED, *OPEN):
                yield from keys(value, f"{key}.")
            else:
                yield key

    cfg = OmegaConf.to_container(compose())
    assert set(keys(cfg)) | {"problem.weights"} == {*KEYS, *OPEN, *PROVIDED}


ALONE = [(g, m) for g in GROUPS[:-1] for m in members(g) if "defaults" not in OmegaConf.load(CONFIGS / g / f"{m}.yaml")]
"""Members that change no other group."""


@pytest.mark.parametrize(("group", "member"), [(g, m) for g, m in ALONE if m != "csv"])
def test_every_member_of_every_group_passes_the_checks(default, group, member):
    check(put(default, f"{group}={member}")[0], Request())


@pytest.mark.parametrize(
    "line",
    [
        *(f"experiment={name}" for name in members("experiment")),
        "logger=csv",
        *(
            f"{group}={name}"
            for group in ("method", "problem")
            for name in members(group)
            if (group, name) not in ALONE
        ),
    ],
)
def test_a_member_made_of_others_passes_the_checks(line):
    check(compose(line), Request())


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
        "Unknown method 'sgd'; allowed: full_adam, full_implicit, full_lbfgs, lora_adam, lora_gd, lora_muon, "
        "lora_plus, odelora, scaled_gd.",
    ),
    ("integrator=rk5", "Unknown integrator 'rk5' (did you mean 'rk4'?); allowed: bogacki_shampine, dormand_prince"),
    ("logger=tensorboard", "Unknown logger 'tensorboard'; allowed: csv, wandb."),
    ("points=sometimes", "Unknown points 'sometimes'; allowed: fixed, fresh, residual."),
    ("experiment=none", "Unknown experiment 'none'; allowed: "),
    ("problem=null", "chosen by the name of a member"),
    ("metod=odelora", "Unknown key 'metod' (did you mean 'method'?); allowed: budget, "),
    ("+metod=odelora", "Unknown key 'metod' (did you mean 'method'?); allowed: budget, "),
    ("rank=4", "perhaps lora.rank was meant"),
    (
        "lora.rnk=4",
        "Unknown key of lora: 'rnk' (did you mean 'rank'?); allowed: adaptive.directions, adaptive.max, ",
    ),
    ("+lora.rnk=4", "Unknown key of lora: 'rnk' (did you mean 'rank'?)"),
    ("lora=4", "lora is 4, but it is not a key with a value: set lora.rank, "),
    ("~lora.rank", "lora.rank is missing from the configuration"),
    ("problem.mu=1", "Unknown key of problem: 'mu'; allowed: amplitude, conditions, nu, weights."),
    ("lora.rank=0", "lora.rank is 0, but it must be a whole number of at least 1 or auto or adaptive."),
    ("log.every=${missing}", "log.every cannot be resolved"),
    ("points=fixed points.residual=0.5", "points.residual is 0.5 with points.fresh=false"),
    ("points=fixed points.first=50", "points.first is 50 with points.fresh=false"),
    ("points=fresh points.residual=1.5", "points.residual is 1.5, but it must be a number from 0 to 1."),
    (
        "method=lora_adam integrator=rk4",
        "method lora_adam takes no integrator; methods that do: full_implicit, lora_gd, odelora, scaled_gd.",
    ),
    ("method=full_adam lora.also=[biases]", "lora.also is given, but method full_adam trains all weights"),
    ("lora.also=[bias]", "lora.also is "),
    ("points.rows=0", "points.rows is 0"),
    ("method=full_lbfgs lora.rank=2", "lora.rank is given, but method full_lbfgs trains all weights"),
    ("method=full_adam lora.targets=a lora.start=zero", "no low-rank factors; lora.targets alone can be set"),
    ("seed=1,2", "seed=1,2 holds several values: add -m"),
    ("seed", "Cannot read the argument 'seed'"),
    ("seed=[1", "Cannot read the argument 'seed=[1'"),
    ("resume=nowhere", "holds no run"),
    ("output_dir=/dev/null/run", "The output folder /dev/null/run cannot be written"),
    ("-m seed=1,2 lora.rank=4,0", "lora.rank is 0"),
    ("-m problem=burgers,burger", "Unknown problem 'burger'"),
    ("-m problem=3,4", "chosen by the name of a member"),
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
    ("method.lr=1", "Unknown key of method: 'lr'; allowed: retract."),
    ("method.integrator=1", "Unknown key of method: 'integrator'; allowed: retract."),
    (
        "integrator=rk4 integrator.tableau.pth=1",
        "Unknown key of integrator.tableau: 'pth' (did you mean 'path'?); allowed: path.",
    ),
    ("net.inputs=3", "Unknown key of net: 'inputs'; allowed: activation, depth, width."),
    ("trainer.acelerator=cpu", "Unknown key of trainer: 'acelerator' (did you mean 'accelerator'?); allowed: "),
    ("pretrain.source.kappa=1", "Unknown key of pretrain.source: 'kappa'; allowed: amplitude, nu."),
    ("integrator.h=-0.1", "integrator.h is -0.1"),
    ("trainer=4", "set trainer.<setting>"),
    ("problem.nu=-1", "problem.nu is -1, but it must be a finite number above 0 or unknown."),
    ("problem.nu=nan", "problem.nu is nan, but it must be a finite number"),
    ("problem.nu=wide", "problem.nu is 'wide', but it must be a finite number above 0 or unknown."),
    ("problem=helmholtz problem.k=1.5", "problem.k is 1.5, but it must be a whole number of at least 1."),
    ("problem=poisson problem.domain=disc", "problem.domain is 'disc', but it must be square or plate_with_hole."),
    ("pretrain.source.nu=0", "pretrain.source.nu is 0, but it must be a finite number above 0."),
    ("problem.weights.pde=0", "problem.weights.pde is 0, but it must be a finite number above 0."),
    ("problem.weights=3", "set problem.weights.<term>"),
    ("net.width=wide", "net.width is 'wide', but it must be a whole number of at least 1."),
    ("net.width=0", "net.width is 0"),
    ("method.retract=7", "method.retract is 7, but it must be true or false."),
    ("integrator.h=0", "integrator.h is 0, but it must be a finite number above 0 or null."),
    ("method=lora_adam method.lr=0", "method.lr is 0"),
    ("method=lora_plus method.ratio=0", "method.ratio is 0"),
    ("lora.rank=2.5", "lora.rank is 2.5"),
    ("lora.rank=true", "lora.rank is True"),
    ("lora.scale=0", "lora.scale is 0"),
    ("lora.start=ones", "lora.start is 'ones', but it must be zero, orthonormal or pissa."),
    ("lora.start_size=-1", "lora.start_size is -1"),
    ("seed=-1", "seed is -1, but it must be a whole number of at least 0 and at most 4294967295."),
    (f"seed={10**20}", "at most 4294967295."),
    (f"problem.nu={10**400}", "but it must be a finite number above 0 or unknown."),
    (f"problem=helmholtz problem.k={10**400}", "but it must be a whole number of at least 1."),
    ("problem=helmholtz problem.k=1e300", "problem.k is 1e+300, but it must be a whole number of at least 1."),
    ("threads=1000000000", "threads is 1000000000, but it must be auto or a whole number of at least 1 and at most"),
    ("method=lora_adam method.betas=[0.9]", "method.betas is [0.9], but it must be a list of 2 numbers, each at"),
    ("method=lora_adam method.betas=[0.9,1]", "method.betas is [0.9, 1], but it must be a list of 2 numbers"),
    ("trainer.devices=2", "trainer.devices is 2, but a run stays on one device"),
    ("trainer.precision=16", "trainer.precision is given, but a run decides that itself: set precision=32"),
    ("trainer.max_steps=5", "trainer.max_steps is given, but a run decides that itself: set budget.steps."),
    ("trainer.callbacks=[]", "trainer.callbacks is given, but a run decides that itself"),
    ("precision=16", "precision is 16, but it must be 32 or 64."),
    ("threads=0", "threads is 0, but it must be auto or a whole number of at least 1 and at most 1024."),
    ("budget.seconds=inf", "budget.seconds is inf"),
    ("budget.steps=0", "budget.steps is 0"),
    ("budget.gradient_evals=null", "needs one of budget.gradient_evals, budget.seconds, budget.steps"),
    ("points.interior=0", "points.interior is 0"),
    ("log.every=0", "log.every is 0"),
    ("checkpoint.every=0", "checkpoint.every is 0"),
    ("data.weight=0", "data.weight is 0"),
    ("data.file=nowhere.csv", "data.file is 'nowhere.csv', but it must be the path of an existing file"),
    ("pretrain.checkpoint=nowhere.pt", "pretrain.checkpoint is 'nowhere.pt'"),
    (f"pretrain.checkpoint={300 * 'a'}", "but it must be the path of an existing file"),
    ("method=full_adam integrator.h=1", "integrator.h is given, but method full_adam takes no integrator"),
    ("net._target_=nowhere.Net", "net._target_ is 'nowhere.Net', but it must be the dotted name of a class"),
    ("problem._target_=problems.burgers.Burger", "has no attribute 'Burger'"),
]


@pytest.mark.parametrize(("line", "sentence"), WRONG, ids=[line for line, _ in WRONG])
def test_refuses_a_value(default, line, sentence):
    with pytest.raises(InputError) as refused:
        check(*put(default, line))
    assert sentence in str(refused.value)
    assert str(refused.value).endswith(".")


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


def test_a_refusal_while_building_is_a_sentence_even_through_instantiate(typed):
    ran = typed("problem.conditions=hrd", act=lambda cfg: instantiate(cfg.problem))
    assert ran.code == 2
    assert ran.said.startswith("Unknown conditions of Burgers: 'hrd'")


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
    cfg = compose()
    OmegaConf.update(cfg, "choices", {"problem": "burgers", "method": "odelora"}, force_add=True)
    made = [typed("seed=1").runs[0][1], *(output_folder(cfg, Request()) for _ in range(3))]
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
    ran = typed("integrator=rk4", "integrator.tableau.path=math.nothing", act=lambda cfg: instantiate(cfg.integrator))
    assert ran.code == 2
    assert "Error loading 'math.nothing', but it must be the dotted name of something that exists.\n" in ran.said


@pytest.mark.parametrize("other", ["seed", "problem", "output_dir", "log.test", "trainer.devices", "lora.rank"])
def test_resume_changes_nothing_that_takes_part_in_the_numbers(default, tmp_path, other):
    cfg, _ = put(default, f"resume={tmp_path}")
    with pytest.raises(InputError, match=rf"{other} cannot change .* allowed: budget, checkpoint, log.every, logger\."):
        resumed(cfg, Request(given=("resume", "budget.steps", "logger", other)))


@pytest.mark.parametrize("content", ["", "a: [", "just text", "seed: 1"])
def test_resume_refuses_a_damaged_configuration(default, tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match="holds no run"):
        resumed(put(default, f"resume={tmp_path}")[0], Request(given=("resume",)))


def targets():
    files = [file for group in PROVIDED for file in (CONFIGS / group).glob("*.yaml")]
    return sorted({OmegaConf.load(file)["_target_"] for file in files} | {"hydra.utils.get_object"})


@pytest.mark.parametrize("target", targets())
def test_a_signature_that_is_read_is_the_one_that_is_imported(target):
    true = inspect.signature(pkgutil.resolve_name(target)).parameters
    read = signature(target).parameters
    assert {name: p.required for name, p in read.items()} == {n: p.default is p.empty for n, p in true.items()}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package with every way to define a target, which would fail if its core were imported."""
    source = {
        "__init__.py": "from .core import Child, Plain as Renamed, function",
        "base.py": """
            import dataclasses
            from typing import ClassVar
            @dataclasses.dataclass(kw_only=True)
            class Base:
                shared: ClassVar[int] = 3
                hidden: int = dataclasses.field(init=False, default=2)
                first: float
                second: int = dataclasses.field(default=1, metadata={})
            """,
        "core.py": """
            from dataclasses import dataclass
            from . import base as b
            raise RuntimeError("imported")
            @dataclass
            class Child(b.Base):
                third: "str | None" = None
                first: float = 1.0
            class Plain:
                def __init__(self, x: int, /, y=2, *args, z, **rest): ...
            class Heir(Plain):
                pass
            def function(a, *, b: bool = True): ...
            """,
        "made.py": "exec('class Made:\\n  def __init__(self, k: int = 1): ...')",
    }
    (tmp_path / "theirs").mkdir()
    for name, text in source.items():
        (tmp_path / "theirs" / name).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    signature.cache_clear()


@pytest.mark.usefixtures("package")
def test_signatures_without_importing():
    child = signature("theirs.Child")
    assert {name: (p.annotation, p.required) for name, p in child.parameters.items()} == {
        "first": ("float", False),
        "second": ("int", False),
        "third": ("'str | None'", False),
    }
    for target in ("theirs.Renamed", "theirs.core.Heir"):
        plain = signature(target)
        assert {name: p.required for name, p in plain.parameters.items()} == {"x": True, "y": False, "z": True}
        assert plain.accepts_any
    assert set(signature("theirs.function").parameters) == {"a", "b"}
    assert "theirs" not in sys.modules


@pytest.mark.usefixtures("package")
def test_a_target_that_the_source_does_not_show_is_imported(monkeypatch):
    (Path(pkgutil.importlib.util.find_spec("theirs").submodule_search_locations[0]) / "__init__.py").write_text("")
    assert signature("theirs.made.Made").parameters == {"k": ("int", False, {})}
    for name in [name for name in sys.modules if name.startswith("theirs")]:
        del sys.modules[name]


def test_a_network_of_ones_own_from_the_working_folder(typed, tmp_path):
    (tmp_path / "own.py").write_text("class Net:\n    def __init__(self, inputs, hidden: int): ...\n")
    assert typed("net._target_=own.Net", "net.hidden=64").runs[0][0].net.hidden == 64
    assert typed("net._target_=own.Net").said == "own.Net needs a value for net.hidden.\n"
    assert "net.hidden is 'x'" in typed("net._target_=own.Net", "net.hidden=x").said


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
    [(["--help"], 0), (["--cfg", "job"], 0), (["problem=burger"], 2), (["problem.nu=-1"], 2), (["trainer.x=1"], 2)],
    ids=["--help", "--cfg job", "unknown problem", "bad value", "unknown key of Lightning"],
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
        assert all(f"  {key} " in out for key in KEYS)
    if code == 2:
        assert len(said) == 1


def test_there_is_a_rule_for_literal_annotations(tmp_path, monkeypatch):
    (tmp_path / "chosen.py").write_text("def method(kind: Literal['a', 'b'] | None = 'a'): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose("method._target_=chosen.method", "method.kind=c")
    with pytest.raises(InputError, match=r"method\.kind is 'c', but it must be a or b or null"):
        check(cfg, Request())
