"""MLflow by Lightning's logger: a database and pictures in ``mlflow/`` of the run's folder, without a server.

With ``MLFLOW_TRACKING_URI`` in the environment the run goes to that store instead, which can hold many. Metrics have
the names of ``history.csv`` and its steps. MLflow's makers are told nothing, and when the store fails in the middle of
a run, the run goes on without it; a server that does not answer is waited for less than a minute. It cannot take back
what it has: rows that a killed run had sent after its last saved state are not sent again when they are made again.
"""

from __future__ import annotations

import logging
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import MLFlowLogger

from pinn_odelora.errors import InputError
from pinn_odelora.lightning.outside import Sparing, environment, first_line, in_time, spared

FOLDER = "mlflow"
STEP = "step"
"""What every row has."""
TAG = "pinn_odelora.run"
"""Of a run in the store: our own id of it, by which a continued run is found."""
SERVED = ("http:", "https:", "databricks")
"""Stores with a page of their own."""
LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Seconds for an answer, and how often a request is repeated; MLflow's own are 120 and 7, a quarter of an hour."""
LONGEST = 60.0
"""Seconds for all that is asked of a server at once."""
CHANGING = ("budget.", "checkpoint.", "log.", "logger.", "output_dir", "resume", "stations.")
"""Keys that a continued run may change: MLflow refuses a second value of a parameter."""


class Tracked(Sparing, MLFlowLogger):
    """A run in a store of MLflow.

    Args:
        folder: of the run.
        project: MLflow's experiment.
        name: of the run.
        tags: by name.
        config: its configuration, kept as parameters.
        run_id: our own id of the run; the run that has it is continued.

    Raises:
        InputError: if the store cannot be reached.
    """

    tracker = "MLflow"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        project: str,
        name: str | None,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        run_id: str | None,
    ) -> None:
        place = Path(folder).absolute() / FOLDER
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.store = given or f"sqlite:///{place / 'mlflow.db'}"
        if not given:
            place.mkdir(parents=True, exist_ok=True)

        def connect() -> None:
            super(Tracked, self).__init__(
                experiment_name=project,
                run_name=name,
                tracking_uri=self.store,
                tags={**tags, TAG: run_id or ""},
                artifact_location=None if given else (place / "artifacts").as_uri(),
                run_id=run_id and _continued(self.store, project, run_id),
            )
            self.log_hyperparams(_settings(config))
            self.sent = {m.step for m in self.experiment.get_metric_history(self.run_id, STEP)}

        try:
            with _quiet():
                self._asked(connect)
        except Exception as error:  # A store can fail in any way.
            raise InputError(
                f"MLflow's store {_without_password(self.store)} cannot be used: {first_line(error)}."
            ) from error

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step not in self.sent:
            self._log(metrics, step)

    def _log(self, metrics: Mapping[str, float], step: int | None) -> None:
        self.send(lambda: self._asked(lambda: super(Tracked, self).log_metrics(metrics, step)))

    def _asked(self, call: Callable[[], None]) -> None:
        """Ask something of the store, which a server has its time for."""
        with environment(**LIMITS):
            in_time(LONGEST, call) if self.store.startswith(SERVED) else call()

    def publish(
        self,
        summary: Mapping[str, Any],
        images: Mapping[str, str | os.PathLike[str]],
        columns: Sequence[str],
        rows: Sequence[Sequence[float]],
    ) -> None:
        """Add the figures of the summary as metrics, the pictures and the final table as files."""
        figures = {f"summary/{key}": float(x) for key, x in summary.items() if isinstance(x, int | float)}
        self._log(figures, int(summary.get("steps", 0)))

        def files() -> None:
            for path in images.values():
                self.experiment.log_artifact(self.run_id, os.fspath(path), "figures")
            table = {name: [row[k] for row in rows] for k, name in enumerate(columns)}
            self.experiment.log_dict(self.run_id, table, "final/points.json")

        with spared("MLflow", "the figures"):
            self._asked(files)

    def finalize(self, status: str = "success") -> None:
        with spared("MLflow", "the end of the run"):
            self._asked(lambda: super(Tracked, self).finalize(status))

    def end(self, failed: bool = False) -> str:
        """End the run; the server that shows it, or the command that does."""
        self.finalize("failed" if failed else "success")
        store = _without_password(self.store)
        if store.startswith(SERVED):
            return f"MLflow: {store}"
        return f"MLflow: mlflow ui --backend-store-uri {shlex.quote(store)}"


def _without_password(store: str) -> str:
    password = urlsplit(store).password
    return store.replace(f":{password}@", ":***@", 1) if password else store


def _continued(store: str, project: str, run_id: str) -> str | None:
    """MLflow's id of the run that has ours, None for a new one."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(project)
    found = experiment and client.search_runs([experiment.experiment_id], f"tags.`{TAG}` = '{run_id}'")
    return found[0].info.run_id if found else None


@contextmanager
def _quiet() -> Iterator[None]:
    """No report to MLflow's makers, and no word of its libraries on the tables that they make."""
    with environment(MLFLOW_DISABLE_TELEMETRY="true"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401  it sets the levels of its own logs

        logs = [logging.getLogger(name) for name in ("mlflow", "alembic", MLFlowLogger.__module__)]
        levels = [log.level for log in logs]
        try:
            for log in logs:
                log.setLevel(logging.ERROR)
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by full keys, without those that are ``CHANGING``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        full = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _settings(value, f"{full}.")
        elif not full.startswith(CHANGING):
            found[full] = value
    return found
