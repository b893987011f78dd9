"""TensorBoard by Lightning's logger: event files in ``tensorboard/`` of the run's folder, without a server.

``tensorboard --logdir runs`` shows all runs below ``runs`` side by side. Scalars have the names of ``history.csv`` and
its steps; the part before ``/`` is the section.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from pinn_odelora.lightning.outside import Sparing, spared
from pinn_odelora.runs.messages import near

FOLDER = "tensorboard"


class Board(Sparing, TensorBoardLogger):
    """The event files of one run; a continued run adds to them.

    Args:
        folder: of the run.
        config: its configuration, shown as text.
        start: the step that it begins with; what a killed run wrote of later ones is hidden, since it comes again.
    """

    tracker = "TensorBoard"

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, Any], start: int = 0) -> None:
        super().__init__(save_dir=folder, name="", version=FOLDER, default_hp_metric=False, purge_step=start)
        self.folder = Path(folder)
        self.experiment.add_text("config", _listed(config), start)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.send(lambda: super(Board, self).log_metrics(metrics, step))

    def publish(
        self,
        summary: Mapping[str, Any],
        images: Mapping[str, str | os.PathLike[str]],
        columns: Sequence[str],
        rows: Sequence[Sequence[float]],
    ) -> None:
        """Add the summary and the final table as text, and the pictures."""
        from matplotlib.image import imread

        with spared("TensorBoard", "the outcome"):
            step = int(summary.get("steps", 0))
            self.experiment.add_text("summary", _listed(summary), step)
            self.experiment.add_text("final/points", _table(columns, rows), step)
            for name, path in images.items():
                self.experiment.add_image(f"figures/{name}", imread(path)[..., :3], step, dataformats="HWC")

    def end(self, failed: bool = False) -> str:
        """Close the files; the command that shows them."""
        with spared("TensorBoard", "the end of the run"):
            self.finalize("failed" if failed else "success")
        return f"TensorBoard: tensorboard --logdir {shlex.quote(os.fspath(near(self.folder.absolute())))}"

    def save(self) -> None:
        """Write what is held back; no second file of settings, which are in ``config.yaml``."""
        self.experiment.flush()


def _listed(values: Mapping[str, Any]) -> str:
    """Values as YAML in a block of Markdown."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _table(columns: Sequence[str], rows: Sequence[Sequence[float]]) -> str:
    lines = [columns, ["---"] * len(columns), *([f"{x:.6g}" for x in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
