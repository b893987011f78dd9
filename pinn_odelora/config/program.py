"""The program around a run: what happens before it, and how it ends: well, with one sentence, or with a traceback."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import env_override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from pinn_odelora import arguments
from pinn_odelora.config import sentences
from pinn_odelora.config.application import explained, register
from pinn_odelora.config.checks import check
from pinn_odelora.config.folders import chosen_folder, resumed
from pinn_odelora.config.request import Request
from pinn_odelora.errors import NonFiniteError
from pinn_odelora.runs.configuration import find_method, saved_config
from pinn_odelora.runs.leader import leaders_folder
from pinn_odelora.runs.location import new_folder
from pinn_odelora.streams import escape_what_cannot_be_encoded, reveal_interruption

REFUSED, DIVERGED = 2, 3
FULL_ERROR = "HYDRA_FULL_ERROR"
Task = Callable[[DictConfig], None]


def begin(cfg: DictConfig) -> tuple[DictConfig, Path]:
    """The configuration to run, that of the run to continue with ``resume``, all of it checked, and the run's folder.

    ``choices`` in it names problem, net, method and integrator, the latter None for a method without.

    Raises:
        InputError: for any invalid input, before anything is trained.
    """
    if (folder := leaders_folder()) is not None:
        return saved_config(folder), folder
    request = Request.current()
    find_method(cfg)
    cfg, names = checked(cfg, request)
    with open_dict(cfg):
        cfg.choices = names
        folder = chosen_folder(cfg, request)
        if cfg.output_dir is None:
            what = "family" if cfg.family else names["method"]
            folder = new_folder(folder, f"{names['problem']}-{what}-{datetime.now():%Y%m%d-%H%M%S}")
        cfg.output_dir = str(folder)
    return cfg, folder


def checked(cfg: DictConfig, request: Request) -> tuple[DictConfig, dict[str, str | None]]:
    """The configuration, or that of the run to continue, all of it checked, and the names of its objects."""
    arguments.restore(cfg, request.given)
    if cfg.resume is not None:
        cfg = resumed(cfg, request)
    return cfg, check(cfg, request)


def run(main: Task, configs: str | Path = "configs") -> int:
    """Run a function of the configuration as the whole program, and return the exit code.

    Invalid input and numbers that stopped being finite are one sentence on stderr, code 2 and 3; with
    ``HYDRA_FULL_ERROR=1`` in the environment they keep their traceback, as every other error does.

    Args:
        main: the function, not decorated by ``hydra.main``.
        configs: the folder with ``train.yaml`` and its groups, beside the file of ``main`` unless it is absolute.
    """
    escape_what_cannot_be_encoded()
    folder = Path(inspect.getfile(main)).absolute().parent / configs
    if os.getcwd() not in sys.path:
        # A user's own network or problem lies where they work, not beside this program.
        sys.path.append(os.getcwd())
    program = hydra.main(version_base="1.3", config_path=str(folder), config_name="train")(carrying(main))
    try:
        if {"--help", "-h"} & {*sys.argv[1:]}:
            print(explained(folder))
            return 0
        register()
        with arguments.typed(), env_override({FULL_ERROR: "1"}):  # Hydra raises what it would print itself
            program()
        return 0
    except Ended as ended:
        error, said = ended.error, ended.said
    except Exception as raised:  # Outside of a run there is only Hydra, reading what was typed.
        error, said = raised, sentences.of_run(raised) or sentences.of_composition(raised)
    reveal_interruption(error)
    if said is None or os.environ.get(FULL_ERROR) == "1":
        raise error
    print(arguments.unspelled(said), file=sys.stderr)
    return DIVERGED if isinstance(error, NonFiniteError) else REFUSED


class Ended(BaseException):
    """Carries an error out of Hydra, which would announce it in its own words; no ``Exception``, as those it keeps."""

    def __init__(self, error: Exception, said: str | None) -> None:
        super().__init__(error, said)
        self.error, self.said = error, said

    def __str__(self) -> str:
        return self.said or f"{type(self.error).__name__}: {self.error}"


def carrying(main: Task) -> Task:
    """The task with its errors carried out of Hydra, but for a job of a sweep that diverged: the others are run."""

    @wraps(main)
    def task(cfg: DictConfig) -> None:
        new = cfg.output_dir is None
        try:
            main(cfg)
        except Exception as error:
            if new and cfg.output_dir is not None:
                with suppress(OSError):
                    Path(cfg.output_dir).rmdir()  # a new folder in which nothing was written
            if isinstance(error, NonFiniteError) and Request.current().job is not None:
                raise
            raise Ended(error, sentences.of_run(error)) from error

    return task


class SweepCheck(Callback):
    """Checks every run of a sweep before the first starts, where Hydra's own sweeper knows them from the start."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            return
        overrides = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        say = sentences.of_composition
        try:
            typed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
            several = any(o.key_or_group == "method" and o.is_sweep_override() for o in typed)
            values = lambda o: (f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator())
            lines = product(*(values(o) if o.is_sweep_override() else [o.input_line] for o in typed))
            jobs = [hydra.compose(config.hydra.job.config_name, [*line], return_hydra_config=True) for line in lines]
            say = sentences.of_run
            for number, job in enumerate(jobs):
                with open_dict(job):
                    own = job.pop("hydra")
                checked(job, Request.of(own, number, several))
        except Exception as error:
            raise Ended(error, say(error)) from None
