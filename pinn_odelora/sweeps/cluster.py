"""Jobs on a cluster, each as a job of SLURM, by ``submitit`` (Meta, 2018-2025).

The jobs are one array; scripts, logs and what passes between the processes lie in a folder that all nodes see. They do
not need the process that submitted them, which waits for them only to tell how they ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pinn_odelora.errors import InputError
from pinn_odelora.runs.messages import say
from pinn_odelora.streams import INTERRUPTED
from pinn_odelora.sweeps.jobs import Job, Outcome
from pinn_odelora.sweeps.processes import ONE_THREAD

GENERAL = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")
"""Settings that submitit knows for every cluster; the others are those of sbatch."""


def on_cluster(
    jobs: Sequence[Job], folder: Path, cluster: str, at_once: int, settings: Mapping[str, Any]
) -> list[Outcome]:
    """Submit all jobs, wait for them, and return how each ended; one that fails stops no other.

    Args:
        jobs: the jobs.
        folder: for scripts and logs, ``<job>_log.err`` among them.
        cluster: ``slurm``, or submitit's ``local`` and ``debug``, which need none.
        at_once: most jobs that run at the same time.
        settings: ``GENERAL`` ones, and options of sbatch by their names in submitit; None for the cluster's default.

    Raises:
        InputError: if submitit or the cluster is missing, or refuses a setting.
        SystemExit: with code 130 if the wait was interrupted; the jobs go on.
    """
    executor = _executor(folder, cluster, at_once, settings)
    submitted = executor.map_array(_run, list(jobs))
    for job, handle in zip(jobs, submitted, strict=True):
        print(f"#{job.number} : {job.line} -> {cluster} {handle.job_id}", flush=True)
    try:
        return [_ended(job, handle) for job, handle in zip(jobs, submitted, strict=True)]
    except KeyboardInterrupt:
        numbers = " ".join(dict.fromkeys(str(handle.job_id).partition("_")[0] for handle in submitted))
        say(f"No longer waiting; the jobs go on, and end with: scancel {numbers}")
        raise SystemExit(INTERRUPTED) from None


def _executor(folder: Path, cluster: str, at_once: int, settings: Mapping[str, Any]) -> Any:
    try:
        import submitit
    except ImportError:
        raise InputError("A sweep on a cluster needs submitit: pip install 'pinn-odelora[cluster]'.") from None
    one_thread = [f"export {name}=${{{name}:-1}}" for name in ONE_THREAD]
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(
            name="pinn_odelora", slurm_array_parallelism=at_once, slurm_setup=one_thread, **_prefixed(settings)
        )
    except (RuntimeError, ValueError, NameError, AssertionError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"The cluster {cluster} cannot be used, or not with these settings: {said}.") from None
    return executor


def _prefixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: x for name, x in settings.items() if x is not None and x != {}}
    return {name if name in GENERAL else f"slurm_{name}": x for name, x in given.items()}


def _run(job: Job) -> Outcome:
    return job.run()


def _ended(job: Job, handle: Any) -> Outcome:
    """How a job ended, told; one that left no word was ended by the cluster."""
    import submitit

    try:
        ended = handle.result()
        left = isinstance(ended, SystemExit | KeyboardInterrupt)
        say(f"#{job.number} {'finished' if ended is None else 'was interrupted' if left else ended}")
        return ended
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
        say(f"#{job.number} was ended by the cluster ({handle.state}); its log is {handle.paths.stderr}.")
        return SystemExit(1)
