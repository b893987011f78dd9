"""Hostile words on the command line: each run ends, well or with one sentence.

Where a key asks for work or memory, as the width of a network does, values stay small: who asks for much gets it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from . import child
from .materials import Materials
from .records import Verdict
from .runs import TINY, program

MUST = "no traceback, and none hangs"
COUNT = 300
QUICK = (0, 1)
VALUES = (
    *("null", "nan", "inf", "-inf", "-1", "0", "-0.0", "0.5", "1e-300", "true", "false", "[]", "{}", "''", '""', "abc"),
    *("[1,2,3]", "{a:1}", "[null]", "[[1]]", "${seed}", "${problem}", "${oc.env:HOME}", "${nothing}", "${", "'${x'"),
    *(
        "1,2",
        "a=b",
        "=",
        "\\",
        "κ→🙂",
        "\u202e",
        "../../x",
        "/dev/full",
        "/dev/zero",
        "~",
        "-",
        "--help",
        "None",
        "0x10",
    ),
    *("1_000", "1e3", "!!python/name:os.system", "{_target_:os.getcwd}", "{_target_:builtins.open,file:x,mode:w}"),
    *("{_target_:no.such.thing}", "{_target_:torch.nn.Linear}", "os.system", "range(1)", "choice(1,2)", "glob(*)"),
    *("interval(0,1)", "a" * 3000, "[" * 200, "9" * 25, "-" + "9" * 25),
)
LARGE = ("1e308", "-1e308", "1e400", "9223372036854775808", "1e19", "1e100")
ASKING = (
    *("budget", "pretrain.adam_steps", "pretrain.natural_gradient_steps", "pretrain.lbfgs_evals", "pretrain.interior"),
    *("pretrain.boundary", "log.test", "log.heldout", "net", "points", "lora.adaptive", "lora.rank", "stations"),
    *("threads", "trainer"),
)
"""Keys, or parts, that ask for work or memory."""
FOREIGN = (
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.mode", "hydra.launcher", "hydra.searchpath", "hydra.verbose"),
    *("hydra.callbacks", "hydra.output_subdir", "hydra/launcher", "hydra.sweeper", "hydra.job.chdir", "nothing"),
    *("trainer.min_steps", "trainer.min_epochs", "trainer.max_steps", "trainer.callbacks", "trainer.plugins"),
    *("trainer.precision", "trainer.logger", "trainer.strategy", "trainer.profiler", "trainer.devices", "problem.x"),
    *("net._target_", "problem._target_", "method._target_", "integrator._target_", "integrator._args_", "a.b.c.d"),
    *("problem", "net", "method", "integrator", "points", "weighting", "logger", "derivatives", "experiment", "", "0"),
)
TARGETS = (
    *("builtins.open", "builtins.dict", "builtins.print", "os.getcwd", "os.system", "time.time", "torch.nn.Linear"),
    *("torch.nn.Sequential", "problems.burgers", "problems.burgers.Burgers", "pinn_odelora.nets.MLP", "builtins.exit"),
    *("pinn_odelora.integrators.RungeKutta", "pinn_odelora.methods.lora_adam", "no.such.thing", "math.pi", "problems"),
    *("pinn_odelora.formulation.Problem", "torch.nn.Module", "collections.OrderedDict", "torch.optim.Adam"),
)


def leaves(node: Any, prefix: str = "") -> list[str]:
    """The keys of a configuration in full, those of its parts, too."""
    if not isinstance(node, dict):
        return [prefix]
    own = [prefix] if prefix else []
    return own + [leaf for name in node for leaf in leaves(node[name], f"{prefix}.{name}".strip("."))]


def prepare(materials: Materials) -> list[str]:
    """The keys of a run."""
    config = yaml.safe_load((materials.of("finished") / "run" / "config.yaml").read_text())
    return [key for key in leaves(config) if not key.startswith(("choices", "output_dir", "resume"))]


def word(rng: random.Random, keys: list[str]) -> str:
    """One hostile argument."""
    key = rng.choice(FOREIGN) if rng.random() < 0.25 else rng.choice(keys)
    if key.endswith("_target_"):
        value = rng.choice(TARGETS)
    elif key.startswith(ASKING):
        value = rng.choice(VALUES)
    else:
        value = rng.choice((*VALUES, *LARGE))
    sign = rng.choice(["", "", "", "", "+", "++", "~"])
    return f"~{key}" if sign == "~" and rng.random() < 0.5 else f"{sign}{key}={value}"


def trial(keys: list[str], folder: Path, rng: random.Random, _: int) -> Verdict:
    hostile = [word(rng, keys) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    words = [w for w in TINY if not w.startswith("budget.steps")]
    if rng.random() < 0.1:
        words = [w for w in words if rng.random() < 0.9 or w.startswith(("budget", "pretrain", "logger"))]
    (folder / "here").mkdir()
    program_ = program(*words, "budget.steps=1", f"output_dir={folder / 'run'}", *hostile)
    left = child.run(program_, folder / "here", {"PINN_ODELORA_CACHE": str(folder / "cache"), "HOME": str(folder)})
    return ended(left, " ".join(hostile)[:300])


def ended(left: child.Ended, what: str) -> Verdict:
    if left.code is None:
        return Verdict("hang", False, what, left.last)
    if left.traceback:
        return Verdict("traceback", False, what, left.last)
    known = {0: "ran", 2: "refused", 3: "diverged"}
    return Verdict(known.get(left.code, f"code {left.code}"), left.code in known, what, left.last)
