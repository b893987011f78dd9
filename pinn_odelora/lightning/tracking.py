"""Where a run can be watched: Weights & Biases where it can be reached, its offline files otherwise.

There is no prompt, W&B's own ``init_timeout`` bounds the attempt to start a run, one line says why a run is offline,
and no run fails because of W&B. Every metric has the training step as its axis, so that W&B's own charts are a
dashboard; the part of a name before ``/`` is the section. Runs of methods that differ in their cost per step are
compared by choosing ``cost/gradient_evals`` or ``cost/seconds`` as the axis.

With ``kind="csv"`` nothing here is used and W&B is not imported; the history of a run is always kept by ``History``.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, WandbLogger

from pinn_odelora.errors import unknown

if TYPE_CHECKING:
    from wandb import Run, Settings

KINDS = ("wandb", "csv")

SUMMARIES = {
    "loss": "min",
    "error/rel_l2": "min",
    "error/max": "min",
    "stability/largest_rise": "max",
    "cost/gradient_evals": "last",
    "cost/seconds": "last",
}
"""What the table of runs shows of a metric, where that is not its last value."""

START, FINISH = 10.0, 60.0
"""Seconds that W&B may take to start a run, and to upload the rest at its end; a silent server adds some 3 s."""


class RunLogger(WandbLogger):
    """Lightning's logger for a run that exists already, on our own step axis instead of ``trainer/global_step``.

    When W&B fails in the middle of a run, nothing more is sent to it, and the run goes on.
    """

    lost = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        axis = {} if step is None else {"step": step}
        if not self.lost:
            self.lost = True
            with _spared("metrics any more"):
                self.experiment.log(axis | dict(metrics))
                self.lost = False


@contextmanager
def _spared(what: str) -> Iterator[None]:
    """Report in one line what W&B raises, and go on: everything is in the files of the run anyway."""
    try:
        yield
    except Exception as error:
        _say(f"W&B did not take {what} ({type(error).__name__}: {_first_line(error)}).")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def make_loggers(
    kind: str,
    run_dir: str | os.PathLike[str],
    *,
    project: str,
    group: str | None = None,
    job_type: str | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    run_id: str | None = None,
) -> list[Logger]:
    """The loggers of a run: one for W&B, or none for ``csv`` and when W&B is disabled (``WANDB_MODE=disabled``).

    ``WANDB_MODE``, ``WANDB_BASE_URL`` and W&B's settings files are respected. The logger's ``version`` is the id of
    the run; its ``experiment`` is the run that the other functions of this file take.

    Args:
        kind: ``wandb`` or ``csv``.
        run_dir: folder of the run; W&B's files go to ``run_dir/wandb``.
        project, group, job_type, name, tags: where W&B files the run.
        config: the configuration of the run, a plain nested dictionary.
        run_id: id of the run to continue; without one there is a new run with a new id.

    Raises:
        InputError: if the kind does not exist.
    """
    if kind not in KINDS:
        raise unknown("logger", kind, KINDS)
    _hide_adverts()
    if kind == "csv" or (mode := _mode()) == "disabled":
        return []
    about = {"project": project, "group": group, "job_type": job_type, "name": name, "tags": list(tags)}
    run = _start(mode, dir=os.fspath(run_dir), id=run_id, config=dict(config or {}), **about)
    _define_metrics(run)
    return [RunLogger(experiment=run, project=project, save_dir=run_dir)]


def _hide_adverts() -> None:
    """Drop the products that Lightning recommends whenever a Trainer is built."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advert)


def _no_advert(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()


def _settings() -> Settings:
    """W&B's settings from its files and the environment; from here on W&B prints nothing in this process."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings


def _mode() -> str:
    """``online`` to try, ``offline`` or ``disabled``."""
    asked = os.environ.get("WANDB_MODE") or _settings().mode
    return {"dryrun": "offline", "offline": "offline", "disabled": "disabled"}.get(asked, "online")


def _start(mode: str, **about: Any) -> Run:
    """A new run, offline if it cannot be online."""
    import wandb

    obstacle = _obstacle() if mode == "online" else ""
    if mode == "online" and not obstacle:
        server = _settings().base_url
        try:
            return _init("online", **about)
        except wandb.Error as error:
            obstacle = f"{server} started no run ({_first_line(error)})"
            # The service still holds the id of the run that failed to start.
            wandb.teardown()
            _settings()
    if obstacle:
        _say(f"W&B is offline: {obstacle}.")
    return _init("offline", **about)


def _init(mode: str, **about: Any) -> Run:
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=START,
        finish_timeout=FINISH,
        finish_timeout_raises=True,
    )
    # W&B reports its own errors to the server, and would wait at exit for one that does not answer.
    with _environment(WANDB_ERROR_REPORTING="false"):
        # create_new leaves runs alone that were left open, by a job of a sweep that failed or by the user.
        return wandb.init(mode=mode, resume="allow", reinit="create_new", settings=settings, **about)


@contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Variables for choices that W&B offers no setting for; what the user has set stays."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _obstacle() -> str:
    """What keeps W&B from being used online, empty if nothing is known to; the network is not touched."""
    import wandb

    try:
        # While the user has a run of their own open, W&B refuses to log in again.
        known = wandb.login(prompt=False, verify=False) if wandb.run is None else not wandb.run.offline
    except wandb.Error as error:
        return _first_line(error)
    return "" if known else "there is no API key; `wandb login` stores one"


def _define_metrics(run: Run) -> None:
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    # By full name: of two patterns that fit, W&B takes either.
    for name, summary in SUMMARIES.items():
        run.define_metric(name, step_metric="step", summary=summary)


def log_images(run: Run, images: Mapping[str, str | os.PathLike[str]]) -> None:
    """Show image files by name, in the section ``figures``."""
    import wandb

    with _spared("the figures"):
        run.log({f"figures/{name}": wandb.Image(os.fspath(path)) for name, path in images.items()})


def log_final_table(run: Run, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    """Show the solution at points as the table ``final/points``: coordinates, fields, reference, error."""
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    # A table is an artifact too, which W&B would keep outside the run's folder until it is uploaded.
    with _spared("the table"), _environment(WANDB_DATA_DIR=os.fspath(Path(run.dir).parents[1])):
        run.log({"final/points": table})


def log_summary(run: Run, summary: Mapping[str, Any]) -> None:
    """Put the final figures beside the run's name in the table of runs."""
    with _spared("the summary"):
        run.summary.update(dict(summary))


def sync_line(run: Run) -> str | None:
    """Where to see the run: the address of an online run, or the command that uploads an offline one.

    The command names the folder that holds every part of the run, also those before it was resumed; W&B joins them by
    the id of the run, in order of time.
    """
    return f"wandb sync {_folder(run)}" if run.offline else run.url


def _folder(run: Run) -> str:
    folder = Path(run.dir).parents[1].absolute()
    here = Path.cwd()
    return shlex.quote(os.fspath(folder.relative_to(here) if folder.is_relative_to(here) else folder))


def finish(run: Run, failed: bool = False) -> None:
    """End the run, so that another can follow in this process; if the rest cannot be uploaded in time, say how to."""
    with _spared("the end of the run"):
        try:
            run.finish(exit_code=int(failed))
        except TimeoutError:
            _say(f"W&B did not take everything; for the rest: wandb sync --include-online {_folder(run)}")
