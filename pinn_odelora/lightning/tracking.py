"""Where a run can be watched: Weights & Biases where it can be reached, its offline files otherwise.

There is no prompt, W&B's own ``init_timeout`` bounds the attempt to start a run, one line says why a run is offline,
and no run fails because of W&B. W&B's own charts are a dashboard without any set-up: the part of a name before ``/`` is
the section; loss, errors and stability have gradient evaluations as their axis, so that methods that differ in their
cost per step are compared fairly, the section ``by_seconds`` repeats three of them over seconds, and all that describes
a step has the step. docs/guide/reading-the-dashboards.md says what to see in them.

With ``kind="csv"`` nothing here is used and W&B is not imported; the history of a run is always kept by ``History``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightning.pytorch.loggers import Logger, WandbLogger

from pinn_odelora.errors import InputError, unknown
from pinn_odelora.lightning.outside import Sparing, environment, first_line, homes, spared, told
from pinn_odelora.lightning.wandb_files import STEP, kept_steps

if TYPE_CHECKING:
    from wandb import Run, Settings

KINDS = ("wandb", "tensorboard", "mlflow", "csv")
PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""What a kind imports that is not installed with this package; its extra has the same name."""

SUMMARIES = {
    "loss": "min",
    "error/rel_l2": "min",
    "error/max": "min",
    "stability/largest_rise": "max",
    "cost/gradient_evals": "last",
    "cost/seconds": "last",
}
"""What the table of runs shows of a metric, where that is not its last value."""

EVALUATIONS, SECONDS = "cost/gradient_evals", "cost/seconds"
BY_EVALUATIONS = ("loss", "error", "stability")
"""The sections whose axis is that of evaluations."""
BY_SECONDS = {
    "by_seconds/loss": "loss",
    "by_seconds/rel_l2": "error/rel_l2",
    "by_seconds/heldout_loss": "stability/heldout_loss",
}
"""What is shown a second time over seconds, since W&B gives a metric one axis."""

START, FINISH = 10.0, 60.0
"""Seconds that W&B may take to start a run, and to upload the rest at its end; a silent server adds some 3 s."""


class Tracker(Protocol):
    """A logger of Lightning's that also takes what a run ends with."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row of the history."""

    def publish(
        self,
        summary: Mapping[str, Any],
        images: Mapping[str, str | os.PathLike[str]],
        columns: Sequence[str],
        rows: Sequence[Sequence[float]],
    ) -> None:
        """The outcome: the names of ``summary.json``, image files by name, and a table of the solution at points."""

    def end(self, failed: bool = False) -> str:
        """Nothing more will come; where the run can be seen, in one line."""


class RunLogger(Sparing, WandbLogger):
    """Lightning's logger for a run that exists already, on our own axes instead of ``trainer/global_step``.

    Args:
        kept: steps whose rows W&B has already; they are not sent again.
        about: what Lightning's logger takes.
    """

    tracker = "W&B"

    def __init__(self, kept: Collection[float] = (), **about: Any) -> None:
        super().__init__(**about)
        self.kept = kept
        self.defined: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step in self.kept:
            return
        row = {} if step is None else {STEP: step}
        row |= metrics
        row |= {shown: row[name] for shown, name in BY_SECONDS.items() if name in row and SECONDS in row}
        self.send(lambda: self._log(row))

    def _log(self, row: Mapping[str, float]) -> None:
        self._define(row)
        self.experiment.log(row)

    def _define(self, names: Iterable[str]) -> None:
        """Tell W&B the axis of each metric once, by its full name: of two patterns that fit, W&B takes either."""
        for name in [name for name in names if name not in self.defined and name != STEP]:
            self.experiment.define_metric(name, step_metric=axis(name), summary=SUMMARIES.get(name))
            self.defined.add(name)

    def publish(
        self,
        summary: Mapping[str, Any],
        images: Mapping[str, str | os.PathLike[str]],
        columns: Sequence[str],
        rows: Sequence[Sequence[float]],
    ) -> None:
        log_summary(self.experiment, summary)
        log_images(self.experiment, images)
        log_final_table(self.experiment, columns, rows)

    def end(self, failed: bool = False) -> str:
        line = sync_line(self.experiment)
        finish(self.experiment, failed=failed)
        return f"W&B: {line}"


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
    start: int = 0,
) -> list[Logger]:
    """The loggers of a run, each a ``Tracker``: one, or none for ``csv`` and when W&B is disabled
    (``WANDB_MODE=disabled``).

    ``WANDB_MODE``, ``WANDB_BASE_URL`` and W&B's settings files are respected, and ``MLFLOW_TRACKING_URI``. The
    ``version`` of W&B's logger is the id of the run; its ``experiment`` is the run that the other functions of this
    file take.

    Args:
        kind: one of ``KINDS``.
        run_dir: folder of the run; the files of a kind go to ``run_dir/<kind>``.
        project, group, job_type, name, tags: where W&B files the run. Project and name are those of MLflow's
            experiment and run, the others its tags.
        config: the configuration of the run, a plain nested dictionary.
        run_id: id of the run to continue; without one there is a new run with a new id.
        start: the step that it begins with.

    Raises:
        InputError: if the kind does not exist, its package is not installed, or MLflow's store cannot be used.
    """
    check_installed(kind)
    _hide_adverts()
    if kind == "tensorboard":
        from pinn_odelora.lightning.tensorboard import Board

        return [Board(run_dir, config or {}, start)]
    if kind == "mlflow":
        from pinn_odelora.lightning.mlflow import Tracked

        named = {"group": group, "job_type": job_type, "tags": ", ".join(tags)}
        filled = {key: value for key, value in named.items() if value}
        return [Tracked(run_dir, project=project, name=name, tags=filled, config=config or {}, run_id=run_id)]
    if kind == "csv":
        return []
    about = {"project": project, "group": group, "job_type": job_type, "name": name, "tags": list(tags)}
    with environment(**homes(Path(run_dir))):
        if (mode := _mode()) == "disabled":
            return []
        kept = kept_steps(Path(run_dir), run_id) if run_id else frozenset()
        run = _start(mode, dir=os.fspath(run_dir), id=run_id, config=dict(config or {}), **about)
    run.define_metric(STEP)
    return [RunLogger(kept, experiment=run, project=project, save_dir=run_dir)]


def check_installed(kind: str) -> None:
    """Refuse a logger that does not exist, or whose package is missing.

    Raises:
        InputError: with the kinds there are, or the command that installs the package.
    """
    if kind not in KINDS:
        raise unknown("logger", kind, KINDS)
    if missing := [name for name in PACKAGES.get(kind, ()) if importlib.util.find_spec(name) is None]:
        raise InputError(f"logger={kind} needs {missing[0]}: pip install 'pinn-odelora[{kind}]'.")


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
            obstacle = f"{server} started no run ({first_line(error)})"
            # The service still holds the id of the run that failed to start.
            wandb.teardown()
            _settings()
    if obstacle:
        told(f"W&B is offline: {obstacle}.")
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
    with environment(WANDB_ERROR_REPORTING="false"):
        # create_new leaves runs alone that were left open, by a job of a sweep that failed or by the user.
        return wandb.init(mode=mode, resume="allow", reinit="create_new", settings=settings, **about)


def _obstacle() -> str:
    """What keeps W&B from being used online, empty if nothing is known to; the network is not touched."""
    import wandb

    try:
        # While the user has a run of their own open, W&B refuses to log in again.
        known = wandb.login(prompt=False, verify=False) if wandb.run is None else not wandb.run.offline
    except wandb.Error as error:
        return first_line(error)
    return "" if known else "there is no API key; `wandb login` stores one"


def axis(name: str) -> str:
    """The metric over which W&B draws another."""
    section = name.partition("/")[0]
    if section in BY_EVALUATIONS:
        return EVALUATIONS
    return SECONDS if name in BY_SECONDS else STEP


def log_images(run: Run, images: Mapping[str, str | os.PathLike[str]]) -> None:
    """Show image files by name, in the section ``figures``."""
    import wandb

    with spared("W&B", "the figures"):
        run.log({f"figures/{name}": wandb.Image(os.fspath(path)) for name, path in images.items()})


def log_final_table(run: Run, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    """Show the solution at points as the table ``final/points``: coordinates, fields, reference, error."""
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    # A table is an artifact too, which W&B would keep outside the run's folder until it is uploaded.
    folder = Path(run.dir).parents[1]
    own = homes(folder.parent) | {"WANDB_DATA_DIR": os.fspath(folder)}
    with spared("W&B", "the table"), environment(**own):
        run.log({"final/points": table})


def log_summary(run: Run, summary: Mapping[str, Any]) -> None:
    """Put the final figures beside the run's name in the table of runs."""
    with spared("W&B", "the summary"):
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
    import wandb

    with spared("W&B", "the end of the run"):
        try:
            run.finish(exit_code=int(failed))
        except TimeoutError:
            told(f"W&B did not take everything; for the rest: wandb sync --include-online {_folder(run)}")
        except wandb.Error:
            raise
        except Exception:  # W&B's service has ended: its own words on that are not to be the last ones
            with suppress(Exception):
                wandb.teardown()
            raise
