"""The names of the files in a run folder, and how small ones are written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
"""Repeats the run by itself."""
START = "start.json"
"""Facts from before adaptation."""
BASE = "pretrained.safetensors"
"""The user's network, as it was."""
HISTORY = "history.csv"
"""One row for each logged step."""
STATE = "last.ckpt"
"""The resume state."""
ADAPTER = "adapter"
"""Folder of the low-rank update in PEFT's format, when factors were trained."""
WEIGHTS = "network.safetensors"
"""The whole network, when all weights were trained."""
SUMMARY = "summary.json"
COEFFICIENTS = "coefficients.json"
"""What was found for coefficients of the equation, where some were unknown."""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write in one move; numbers that JSON cannot hold become null."""
    partial = path.with_suffix(".partial")
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}
    partial.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    os.replace(partial, path)
