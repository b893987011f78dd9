"""How long a page of 200 runs takes to open, and how large it is.

200 synthetic runs of four problems and ten methods, with 300 logged rows each and a map of their solution, on one page,
opened from the disk by Chromium without a window; the seconds until everything is drawn that is in the window, and
until everything is drawn in a window as high as the page, the middle of some tries.

    python benchmarks/dashboard.py [--runs 200] [--tries 5]

Exits with 1 where the page takes 3 s or more, or has 10 MB or more.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from pinn_odelora.dashboards.collect import Shown
from pinn_odelora.dashboards.page import page
from pinn_odelora.points import Points
from problems.burgers import Burgers
from problems.convection import Convection
from problems.heat import Heat
from problems.kovasznay import Kovasznay

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import PROGRAM, browser

SECONDS, MEGABYTES = 3.0, 10.0
PROBLEMS = {"burgers": Burgers(), "heat": Heat(), "convection": Convection(), "kovasznay": Kovasznay()}
METHODS = [f"method_{k}" for k in range(10)]
ROWS = 300


class Wrong:
    """The reference of a problem with a smooth error."""

    def __init__(self, problem, size, wave):
        self.problem, self.size, self.wave = problem, size, wave

    def __call__(self, *columns):
        coords = self.problem.coords
        p = Points({name: torch.as_tensor(c).reshape(-1, 1) for name, c in zip(coords, columns, strict=True)})
        error = self.size * torch.sin(self.wave * sum(p[name] for name in coords))
        return (self.problem.reference(p) + error).numpy()


def synthetic(number, draw):
    """A run whose error falls at some rate to some level, with noise."""
    name = list(PROBLEMS)[number % len(PROBLEMS)]
    method, h = METHODS[number % len(METHODS)], 10 ** draw.uniform(-4, 1)
    rate, level = 10 ** draw.uniform(-2.5, -1), 10 ** draw.uniform(-6, -2)
    error = [0.3 * math.exp(-rate * k) + level * math.exp(0.2 * draw.gauss(0, 1)) for k in range(ROWS)]
    rows = [
        {
            "step": float(k),
            "cost/gradient_evals": 4.0 * k,
            "cost/seconds": 0.03 * k * (1 + number % 7),
            "error/rel_l2": e,
            "loss": e**2 * math.exp(draw.gauss(0, 0.5)),
            "stability/heldout_loss": e**2,
            "stability/iterate_loss": e**2 * math.exp(abs(draw.gauss(0, 0.5))),
            "lora/balance": 1e-12 * math.exp(0.02 * k),
            "lora/cond_A": 10 + k,
            "lora/cond_B": 20 + k,
            "integrator/h": h,
        }
        for k, e in enumerate(error)
    ]
    return Shown(
        f"sweep/{number}",
        {"problem": name, "method": method, "integrator": None, "seed": number % 3},
        {"method.lr": f"{h:.3g}", "lora.rank": str(2 + number % 5)},
        {"rel_l2": error[-1], "loss_rises": 0.3, "largest_rise": 0.1, "diverged": number % 23 == 0, "seconds": 9.0},
        rows,
        True,
        lambda: Wrong(PROBLEMS[name], error[-1], 3 + number % 5),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--tries", type=int, default=5)
    args = parser.parse_args()
    if PROGRAM is None:
        sys.exit("There is no Chromium on this machine.")
    draw = random.Random(0)
    runs = [synthetic(k, draw) for k in range(args.runs)]
    begun = time.perf_counter()
    made = page(runs, [])
    written = time.perf_counter() - begun
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "page.html"
        made.save(file)
        with browser(Path(folder) / "profile") as shown:
            opened = [shown.open(file) for _ in range(args.tries)]
            whole = statistics.median(shown.open(file, height=6000) for _ in range(args.tries))
            said = list(shown.said)
    seconds, size = statistics.median(opened), made.size / 1e6
    print(f"{args.runs} runs: written in {written:.1f} s, {size:.1f} MB (below {MEGABYTES:g})")
    tries = ", ".join(f"{x:.2f}" for x in opened)
    print(f"opened in {seconds:.2f} s (below {SECONDS:g}); tries {tries}; all of it drawn in {whole:.2f} s")
    print(f"messages of the console: {', '.join(said) or 'none'}")
    return int(seconds >= SECONDS or size >= MEGABYTES or bool(said))


if __name__ == "__main__":
    sys.exit(main())
