"""Launchers of Hydra for this program: the jobs of a sweep in processes of this machine, or on a SLURM cluster.

    python train.py -m hydra/launcher=processes hydra.launcher.workers=4 seed=range(16)
    python train.py -m hydra/launcher=slurm hydra.launcher.partition=cpu hydra.launcher.timeout_min=30 seed=range(64)

Hydra looks for launchers in the package ``hydra_plugins``, which all of them share, and nowhere else. What a job is
stands here, how jobs run side by side in ``pinn_odelora.sweeps``.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from traceback import format_exception
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

Task = Callable[[DictConfig], Any]


class Parallel(Launcher):
    """Composes the jobs of a sweep, has them run, and tells Hydra how they ended."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: Task, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config
        self.main = getattr(task_function, "__wrapped__", task_function)
        self.check()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from pinn_odelora.config.program import Ended

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = (self._job(overrides, number) for number, overrides in enumerate(job_overrides, initial_job_idx))
        outcomes = self.run(jobs, len(job_overrides))
        for kind in (Ended, SystemExit, KeyboardInterrupt):
            for error in outcomes:
                if isinstance(error, kind):
                    raise error
        return [_returned(error, overrides) for error, overrides in zip(outcomes, job_overrides, strict=True)]

    def _job(self, overrides: Sequence[str], number: int) -> Any:
        from pinn_odelora.sweeps.jobs import Job

        config = self.loader.load_sweep_config(self.config, [*overrides])
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return Job(number, " ".join(filter_overrides(overrides)), partial(ran, self.main, config, [*sys.path]))

    @abstractmethod
    def check(self) -> None:
        """Refuse a setting, before any job."""

    @abstractmethod
    def run(self, jobs: Iterable[Any], number: int) -> list[BaseException | None]:
        """Run the jobs, of which there are so many; how they ended."""


class Processes(Parallel):
    """``hydra/launcher=processes``: in processes of this machine, ``workers`` at once."""

    def check(self) -> None:
        from pinn_odelora.rules import null, whole

        (whole(1) | null).check("hydra.launcher.workers", self.settings["workers"])

    def run(self, jobs: Iterable[Any], number: int) -> list[BaseException | None]:
        from pinn_odelora.sweeps.processes import cores, in_processes

        return in_processes(jobs, number, min(self.settings["workers"] or cores(), number))


class Cluster(Parallel):
    """``hydra/launcher=slurm``: each as a job of SLURM, ``workers`` at once."""

    def check(self) -> None:
        from pinn_odelora.rules import whole

        whole(1).check("hydra.launcher.workers", self.settings["workers"])

    def run(self, jobs: Iterable[Any], number: int) -> list[BaseException | None]:
        from pinn_odelora.sweeps.cluster import on_cluster

        settings = {
            name: OmegaConf.to_container(x) if OmegaConf.is_config(x) else x for name, x in self.settings.items()
        }
        cluster, at_once = settings.pop("cluster"), settings.pop("workers")
        return on_cluster([*jobs], Path(self.config.hydra.sweep.dir).absolute() / ".jobs", cluster, at_once, settings)


def ran(main: Task, config: DictConfig, paths: Sequence[str]) -> BaseException | None:
    """A job, in whatever process, as Hydra itself would run it; returns the error that ended it."""
    sys.path += [path for path in paths if path not in sys.path]  # a user's own network or problem
    from pinn_odelora.config.application import register
    from pinn_odelora.config.program import Ended, carrying
    from pinn_odelora.errors import NonFiniteError
    from pinn_odelora.sweeps.jobs import portable

    setup_globals()
    register()
    HydraConfig.instance().set_config(config)
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    with open_dict(config):
        environment = config.pop("hydra").job.env_set
    try:
        with env_override(environment):
            carrying(main)(config)
    except Ended as ended:
        print(ended.said or "".join(format_exception(ended.error)), file=sys.stderr)
        return Ended(portable(ended.error), ended.said)
    except NonFiniteError as error:
        print(error, file=sys.stderr)
        return portable(error)
    except (SystemExit, KeyboardInterrupt) as left:
        return left
    return None


def _returned(error: BaseException | None, overrides: Sequence[str]) -> JobReturn:
    """What Hydra wants to know of a job: it raises the error of the first that has one."""
    if error is None:
        return JobReturn(overrides=[*overrides], status=JobStatus.COMPLETED)
    returned = JobReturn(overrides=[*overrides], status=JobStatus.FAILED)
    returned.return_value = error
    return returned


def _store(name: str, launcher: type[Parallel], **settings: Any) -> None:
    node = OmegaConf.create({"_target_": f"{__name__}.{launcher.__name__}", **settings})
    if "additional_parameters" in settings:
        OmegaConf.set_struct(node.additional_parameters, False)
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="pinn_odelora")


_store("processes", Processes, workers=None)
_store(
    "slurm",
    Cluster,
    workers=256,
    cluster="slurm",
    timeout_min=60,
    cpus_per_task=1,
    gpus_per_node=None,
    mem_gb=None,
    partition=None,
    account=None,
    qos=None,
    constraint=None,
    additional_parameters={},
)
