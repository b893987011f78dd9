"""How linear the adaptation of a physics-informed network is, against the size of the jump.

In the regime of the neural tangent kernel a network is its linearisation at the pretrained weights,

    r(W_t) ≈ r(W_0) + J_0 (W_t - W_0) ,          K_t = J_t J_tᵀ ≈ K_0 ,

for as long as it is trained. Along runs of ODELoRA with default settings and rank 8, from a network pretrained at the
source to targets at e^(± size) times the source's parameter, at fixed points that no step sees:

* ``kernel``         ‖K_t - K_0‖ / ‖K_0‖ in Frobenius norms, K of the weights of the adapted and the last layers;
* ``linearisation``  ‖r(W_t) - r(W_0) - J_0 (W_t - W_0)‖ / ‖r(W_t) - r(W_0)‖;
* ``solution``       the penalised solution of the linearised problem in all these weights, put into the network, for
                     the best of 13 penalties by the residual of the network at other points: what is left of that, and
                     the error, beside the error of the run.

The first two are taken where the run first leaves less than a tenth of the residual, and at its end. The regime
*describes* a jump where they are below 0.1 there, in both places, and the solution has at most twice the error of the
run.

Predicted before it was run, when solutions of the linearised problem had been seen at the declared jump of each problem
(Burgers 0.9, heat 1.4, Kovasznay 1.1), and nothing along a run:

1. the kernel change at the end is proportional to the size: below 0.1 at 0.01, above 0.1 at 0.1, above 0.5 at 0.9;
2. the linearisation error is below 0.1 at size 0.01 for heat and Kovasznay, above 0.3 for Burgers; above 0.5 for all
   from size 0.9 on;
3. the solution leaves 0.4 of the residual for Burgers at 0.01 and 0.8 at 0.9; 0.1 and 0.7 for heat; 0.02 and 0.3 for
   Kovasznay flow;
4. its error is more than 10 times that of the run at 0.1, and more than 100 times at 0.9: the regime describes no jump
   that one would adapt to.

    python studies/ntk/linearity.py [--quick] [--results FOLDER] [--report]

writes figures as JSON, a picture and a page to ``docs/results/ntk``; with ``--quick``, two problems, three sizes and
short runs to ``runs/linearity``, in less than three minutes. Either outcome is a result: the exit code is 0.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, linalg, nn

import pinn_odelora as po
from pinn_odelora.adaptation import Adaptation
from pinn_odelora.diagnostics import errors
from pinn_odelora.formulation import Problem
from pinn_odelora.gradient import residual_vector_of
from pinn_odelora.linearisation import Linearisation
from pinn_odelora.points import Points
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.runs.style import STYLE
from pinn_odelora.system import System, draw_points
from problems.burgers import Burgers
from problems.heat import Heat
from problems.kovasznay import Kovasznay

ROOT = Path(__file__).parents[2]
RAW, PAGE, PICTURE = "linearity.json", "linearity.md", "linearity.png"
SOURCES: dict[str, tuple[type[Problem], str, float, int]] = {
    "burgers": (Burgers, "nu", 0.05, -1),
    "heat": (Heat, "kappa", 0.05, 1),
    "kovasznay": (Kovasznay, "re", 20.0, 1),
}
"""Problem, parameter, source, and whether jumps go up or down: to the harder side."""
RANK, NEAR, ALIKE, TEST = 8, 0.1, 2.0, 1024
MARKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Steps after which the distances are measured, besides the end."""
PENALTIES = tuple(10.0**-k for k in range(13))
"""μ over the largest eigenvalue of K_0."""
Row = dict[str, Any]


class Form(NamedTuple):
    """Problems, sizes of jumps, residuals of the kernel along a run and of the linearised problem, and CPU seconds of a
    run.
    """

    problems: tuple[str, ...]
    sizes: tuple[float, ...]
    residuals: int
    solved: int
    seconds: float


FULL = Form(tuple(SOURCES), (0.003, 0.01, 0.03, 0.1, 0.3, 0.9, 1.4), 400, 1600, 3.0)
QUICK = Form(("burgers", "kovasznay"), (0.01, 0.1, 0.9), 200, 800, 1.0)


def target(name: str, size: float) -> Problem:
    """The equation at the end of a jump."""
    problem, parameter, source, sign = SOURCES[name]
    return problem(**{parameter: source * math.exp(sign * size)})


class Start:
    """The system at the pretrained network: r_0, J_0 and K_0 at fixed points, in effective weights."""

    def __init__(self, run: Adaptation, residuals: int) -> None:
        self.sweep = run.training.objective.sweep
        self.points = run.training.sampler.validation(residuals)
        self.around = Linearisation(self.sweep, self.points)
        self.K = self.around.kernel()
        self.before = self.weights()

    def weights(self) -> dict[str, Tensor]:
        layers = {name: layer.weight.detach().clone() for name, layer in self.sweep.variables.layers.items()}
        return layers | {name: x.detach().clone() for name, x in self.sweep.variables.others.items()}

    def distances(self) -> tuple[float, float, float]:
        """Kernel change, linearisation error and what is left of the residual, where the network is now."""
        moved = {name: x - self.before[name] for name, x in self.weights().items()}
        here = Linearisation(self.sweep, self.points)
        return (
            float(linalg.matrix_norm(here.kernel() - self.K) / linalg.matrix_norm(self.K)),
            linearisation_error(self.around.r, here.r, self.around.matvec(moved)),
            float(here.r.norm() / self.around.r.norm()),
        )


def linearisation_error(before: Tensor, after: Tensor, predicted: Tensor) -> float:
    """‖r_t - r_0 - J_0 δ‖ / ‖r_t - r_0‖; NaN where nothing has moved."""
    return float((after - before - predicted).norm() / (after - before).norm())


def solutions(net: nn.Module, problem: Problem, run: Adaptation, residuals: int) -> Iterator[Row]:
    """For each penalty the solution of the linearised problem: what the model predicts to be left of the residual at
    the points of the problem, and what the network leaves at others, with its error.
    """
    sweep = run.training.objective.sweep
    around = Linearisation(sweep, run.training.sampler.validation(residuals))
    eigenvalues, Q = linalg.eigh(around.kernel())
    eigenvalues, c = eigenvalues.clamp(min=0), Q.mT @ around.r
    unseen = draw_points(
        sweep.system.terms, 1000, 200, seed=0, purpose="points that the linearised problem does not see"
    )
    before = residual_norm(net, problem, unseen)
    for penalty in PENALTIES:
        mu = penalty * float(eigenvalues[-1])
        delta = around.rmatvec(-(Q @ (c / (eigenvalues + mu))))
        moved = moved_network(net, delta, [*sweep.variables.layers])
        left, error = residual_norm(moved, problem, unseen) / before, error_of(moved, problem)
        predicted = float((mu * c / (eigenvalues + mu)).norm() / c.norm())
        yield {"penalty": penalty, "predicted": predicted, "left": left, "rel_l2": error}


@torch.no_grad()
def moved_network(net: nn.Module, delta: Mapping[str, Tensor], layers: Sequence[str]) -> nn.Module:
    """The network moved by δ, which names the weight of a layer by the layer."""
    moved = copy.deepcopy(net)
    for name, x in delta.items():
        weight = moved.get_submodule(name).weight if name in layers else moved.get_parameter(name)
        weight += x
    return moved


def residual_norm(net: nn.Module, problem: Problem, points: Mapping[str, Points]) -> float:
    return float(residual_vector_of(System(problem, po.Solution(problem, net)))(points).norm())


def error_of(net: nn.Module, problem: Problem) -> float:
    return errors(problem, po.Solution(problem, net), TEST)["error/rel_l2"]


def measured(name: str, size: float, form: Form, net: nn.Module) -> Row:
    """One jump: the path of a run, and the solutions of the linearised problem."""
    problem = target(name, size)
    log = po.Log(test=TEST)
    run = po.steps(net, problem, rank=RANK, budget=po.Budget(seconds=form.seconds), log=log)
    run.training.clock = time.thread_time
    start = Start(run, form.residuals)
    solved = solutions(net, problem, run, form.solved)
    found = [x for x in solved if math.isfinite(x["left"] + x["rel_l2"])]
    path = []
    for record in run:
        done = record.step + 1
        if done in MARKS:
            path.append(row(run, start, done))
    run.conclude()
    path.append(row(run, start, run.training.progress.step))
    return {"problem": name, "size": size, "before": error_of(net, problem), "path": path, "solutions": found}


def row(run: Adaptation, start: Start, step: int) -> Row:
    kernel, linearisation, left = start.distances()
    error = run.diagnostics.reference.errors()["error/rel_l2"]
    return {"step": step, "kernel": kernel, "linearisation": linearisation, "left": left, "rel_l2": error}


# What follows.


class Verdict(NamedTuple):
    """A jump in one line; ``first`` and ``last``: (kernel change, linearisation error) where a tenth of the residual is
    left, NaN where the run leaves more, and at the end.
    """

    problem: str
    size: float
    before: float
    first: tuple[float, float]
    last: tuple[float, float]
    left: float
    solution_error: float
    reached: float

    @property
    def described(self) -> bool:
        """Whether the regime describes it."""
        return all(x < NEAR for x in (*self.first, *self.last)) and self.solution_error <= ALIKE * self.reached


def verdict(found: Row) -> Verdict:
    best = min(found["solutions"], key=lambda x: x["left"])
    distances = [(x["kernel"], x["linearisation"]) for x in found["path"]]
    small = (d for d, x in zip(distances, found["path"], strict=True) if x["left"] < NEAR)
    return Verdict(
        *(found[key] for key in ("problem", "size", "before")),
        next(small, (math.nan, math.nan)),
        distances[-1],
        best["left"],
        best["rel_l2"],
        found["path"][-1]["rel_l2"],
    )


def cells(x: Verdict) -> tuple[str, ...]:
    return (
        *(x.problem, f"{x.size:g}", f"{x.before:.1e}", *(f"{a:.2g}, {b:.2g}" for a, b in (x.first, x.last))),
        *(f"{x.left:.2g}", f"{x.solution_error:.1e}", f"{x.reached:.1e}", "yes" if x.described else "no"),
    )


HEAD = (
    *("problem", "size", "error before", "at a tenth of the residual", "at the end", "solution leaves"),
    *("its error", "error of the run", "described"),
)


def page(rows: Sequence[Row], form: Form, command: str, seconds: float, versions: str) -> str:
    """The results as Markdown, those of the full form with what they mean."""
    line = lambda parts: f"| {' | '.join(parts)} |"
    return "\n".join(
        [
            "# How linear an adaptation is",
            "",
            f"Made by `{command}` in {seconds / 60:.0f} minutes of CPU time on one thread ({versions}); all figures "
            f"are in [{RAW}]({RAW}).",
            "",
            *([MEANING.read_text(encoding="utf-8")] if form == FULL else []),
            f"Width 40, rank {RANK}, default settings, {form.seconds:g} CPU seconds a run, one seed, kernels of "
            f"{form.residuals} residuals. The size of a jump is the logarithm of target over source; 0.9 is ν = 0.05 → "
            "0.02 of Burgers' equation. Pairs are kernel change and linearisation error, where a tenth of the residual "
            "is left for the first time and at the end of the run. The solution is that of the linearised problem in "
            f"all weights that are adapted, on {form.solved} residuals, at the penalty with which the network's "
            "residual at other points is smallest, relative to that at the start.",
            "",
            line(HEAD),
            "|---" * len(HEAD) + "|",
            *(line(cells(verdict(x))) for x in rows),
            "",
            f"![Kernel change and linearisation error against the size of the jump]({PICTURE})",
            "",
        ]
    )


MEANING = Path(__file__).with_name("linearity.md")
"""What the figures of the full form say."""


def picture(rows: Sequence[Row], path: Path) -> None:
    """The four quantities of the table against the size of the jump."""
    panels = (
        ("kernel change at the end", lambda x: x.last[0]),
        ("linearisation error at a tenth", lambda x: x.first[1]),
        ("left by the linearised solution", lambda x: x.left),
        ("its error over that of the run", lambda x: x.solution_error / x.reached),
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.4))
        for axes, (title, of) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for name in dict.fromkeys(x["problem"] for x in rows):
                own = [verdict(x) for x in rows if x["problem"] == name]
                axes.plot([x.size for x in own], [of(x) for x in own], marker=".", label=name)
            axes.axhline(ALIKE if "over" in title else NEAR, color="0.4", lw=0.8, ls=":")
            axes.set(title=title, xlabel="size of the jump", xscale="log", yscale="log")
        figure.axes[0].legend()
        figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two problems, three sizes, short runs")
    parser.add_argument("--results", type=Path, help="folder of page, picture and raw figures")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page again")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/pretrained", help="folder of pretrained networks")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    form = QUICK if args.quick else FULL
    folder = args.results or ROOT / ("runs/linearity" if args.quick else "docs/results/ntk")
    folder.mkdir(parents=True, exist_ok=True)
    if not args.report:
        start, rows = time.process_time(), []
        for name in form.problems:
            problem, parameter, source, _ = SOURCES[name]
            net = po.pretrain(problem(**{parameter: source}), cache=args.cache)
            for size in form.sizes:
                rows.append(measured(name, size, form, net))
                print(" ".join(cells(verdict(rows[-1]))), flush=True)
        versions = f"torch {torch.__version__}, Python {platform.python_version()}"
        kept = {"seconds": round(time.process_time() - start), "versions": versions, "rows": rows}
        (folder / RAW).write_text(json.dumps(short(kept)) + "\n", encoding="utf-8")
    kept = json.loads((folder / RAW).read_text(encoding="utf-8"))
    command = "python studies/ntk/linearity.py" + " --quick" * args.quick
    written = page(kept["rows"], form, command, kept["seconds"], kept["versions"])
    (folder / PAGE).write_text(written, encoding="utf-8")
    picture(kept["rows"], folder / PICTURE)
    table = Table(*HEAD)
    for x in kept["rows"]:
        table.add_row(*cells(verdict(x)))
    Console(width=max(Console().width, 130)).print(table)
    return 0


def short(x: Any) -> Any:
    """Numbers to four digits."""
    if isinstance(x, dict):
        return {key: short(value) for key, value in x.items()}
    if isinstance(x, list):
        return [short(value) for value in x]
    return float(f"{x:.4g}") if isinstance(x, float) else x


if __name__ == "__main__":
    sys.exit(main())
