"""The steps whose rows W&B has of a run already, by its own reader of its files.

A killed run has sent rows after its last saved state. Continued, it takes these steps again and makes the same rows, of
which W&B removes none: only a server can rewind a run, and it does not know an offline one. What W&B had not written to
its files, every 15 seconds, when the run was killed is lost there, and counts as not sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pinn_odelora.lightning.outside import first_line, told

STEP = "step"
READING = 60.0
"""Seconds that reading a file may take."""


def kept_steps(folder: Path, run_id: str) -> frozenset[float]:
    """The steps of the rows in all parts of a run, offline or online; one line says which part cannot be read.

    Args:
        folder: of the run.
        run_id: W&B's id.
    """
    files = sorted((folder / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb"))
    return frozenset(step for file in files for step in _steps(file))


def _steps(file: Path) -> list[float]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", os.fspath(file)]
    # Offline, W&B's reader reports nothing to its makers.
    quiet = os.environ | {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    try:
        done = subprocess.run(command, capture_output=True, check=True, env=quiet, timeout=READING)
        records = [json.loads(line) for line in done.stdout.decode().splitlines()]
        rows = [record["history"]["item"] for record in records if record.get("type") == "history"]
        return [row[STEP] for row in rows if STEP in row]
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
        told(f"{file.name} of W&B cannot be read ({_short(error)}): rows that it has may come a second time.")
        return []


def _short(error: Exception) -> str:
    """What an error says, without the command that failed."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"its reader ended with {error.returncode}"
    return "its reader takes too long" if isinstance(error, subprocess.TimeoutExpired) else first_line(error)
