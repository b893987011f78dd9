"""The second start of the default run as a user waits for it: the whole process, from the command line to its end.

    python benchmarks/second_start.py

Runs ``python train.py problem=burgers problem.nu=0.02`` twice in processes of their own, with a folder of pretrained
networks that is empty at first. Exits with 1 when the second takes longer than 30 s or ends above 3e-5.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
SECONDS, ERROR = 30.0, 3e-5


def run(folder, name):
    """Wall seconds of the process, and the relative L2 error of its summary."""
    line = [sys.executable, "train.py", "problem=burgers", "problem.nu=0.02", f"output_dir={folder / name}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PINN_ODELORA_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    return seconds, json.loads((folder / name / "summary.json").read_text())["rel_l2"]


def main():
    with tempfile.TemporaryDirectory() as folder:
        starts = {name: run(Path(folder), name) for name in ("first", "second")}
    table = Table("start", "seconds", "relative L2")
    for name, (seconds, error) in starts.items():
        table.add_row(name, f"{seconds:.1f}", f"{error:.2e}")
    Console().print(table)
    seconds, error = starts["second"]
    return 0 if seconds <= SECONDS and error <= ERROR else 1


if __name__ == "__main__":
    sys.exit(main())
