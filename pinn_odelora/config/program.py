"""The program around a run: what happens before it, and how it ends: well, with one sentence, or with a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from pinn_odelora.config import sentences
from pinn_odelora.config.checks import check, takes_integrator
from pinn_odelora.config.folders import choices, output_folder, resumed
from pinn_odelora.config.problems import register_problems
from pinn_odelora.config.request import Request
from pinn_odelora.config.settings import register
from pinn_odelora.errors import NonFiniteError

REFUSED, DIVERGED = 2, 3
FULL_ERROR = "HYDRA_FULL_ERROR"


def begin(cfg: DictConfig) -> tuple[DictConfig, Path]:
    """The configuration to run, that of the run to continue with ``resume``, all of it checked, and the run's folder.

    ``choices`` in it names problem, net, method and integrator, the latter None for a method without.

    Raises:
        InputError: for whatever can be refused without building anything.
    """
    request = Request.current()
    if cfg.resume is not None:
        cfg = resumed(cfg, request)
    check(cfg, request)
    with open_dict(cfg):
        cfg.choices = choices(cfg, request, takes_integrator(cfg.method._target_))
        folder = output_folder(cfg, request)
        cfg.output_dir = str(folder)
    return cfg, folder


def run(main: Callable[[], None]) -> int:
    """Call a ``hydra.main`` function as the whole program, and return the exit code.

    A refused request and numbers that stopped being finite are one sentence on stderr, code 2 and 3; with
    ``HYDRA_FULL_ERROR=1`` in the environment they keep their traceback, as every other error does.
    """
    register()
    if os.getcwd() not in sys.path:
        # A user's own network or problem lies where they work, not beside this program.
        sys.path.append(os.getcwd())
    with _reraising() as full:
        error, said = _outcome(main)
    if error is None:
        return 0
    if said is None or full:
        raise error
    print(said, file=sys.stderr)
    return DIVERGED if isinstance(error, NonFiniteError) else REFUSED


@contextmanager
def _reraising() -> Iterator[bool]:
    """Have Hydra raise what it would print itself; yields whether the user asked for tracebacks."""
    asked = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield asked == "1"
    finally:
        if asked is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = asked


def _outcome(main: Callable[[], None]) -> tuple[Exception | None, str | None]:
    """What the program ended with, and the sentence for it if there is one."""
    try:
        register_problems()
        main()
    except Ended as ended:
        return ended.error, ended.said
    except NonFiniteError as error:
        return error, sentences.of_run(error)
    except Exception as error:
        # Outside of a run there is only Hydra, reading what was typed.
        return error, sentences.of_composition(error)
    return None, None


class Ended(BaseException):
    """Carries an error out of Hydra, which would announce it in its own words; no ``Exception``, as those it keeps."""

    def __init__(self, error: Exception, said: str | None) -> None:
        super().__init__()
        self.error = error
        self.said = said


class Ending(Callback):
    """Ends the program when a run fails, and a sweep before it starts when one of its runs would be refused."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            jobs = [*_sweep(config)]
        except Exception as error:
            raise Ended(error, sentences.of_composition(error)) from None
        try:
            for number, job in enumerate(jobs):
                check(*_split(job, number))
        except Exception as error:
            raise Ended(error, sentences.of_run(error)) from None

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value
        if config.output_dir is None and job_return.cfg.output_dir is not None:
            with suppress(OSError):
                Path(job_return.cfg.output_dir).rmdir()  # a new folder in which nothing was written
        if config.hydra.mode == RunMode.MULTIRUN and isinstance(error, NonFiniteError):
            return  # the rest of a sweep goes on; Hydra raises this at its end
        raise Ended(error, sentences.of_run(error))


def _sweep(config: DictConfig) -> Iterator[DictConfig]:
    """The configurations of a sweep's runs, where the sweeper knows them from the start."""
    if config.hydra.sweeper._target_.rpartition(".")[2] != BasicSweeper.__name__:
        return
    loader = GlobalHydra.instance().config_loader()
    typed = OverridesParser.create(loader).parse_overrides(
        OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    )
    jobs: Sequence[Sequence[str]] = BasicSweeper.split_arguments(typed, None)[0]
    for job in jobs:
        yield loader.load_sweep_config(config, list(job))


def _split(job: DictConfig, number: int) -> tuple[DictConfig, Request]:
    with open_dict(job):
        job.hydra.job.num = number
        hydra = job.pop("hydra")
    request = Request.of(hydra)
    return (job if job.resume is None else resumed(job, request)), request
