"""The runs of the study, in their order: seed by seed, so that a part of the study is a study.

The main part is every method with every of its step sizes, and with the one that it chooses itself where it can, on
every problem. The slices vary one thing at a time for three methods on two problems, with every other step size. The
default settings are those of a user who gives a method and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pinn_odelora.stability.methods import METHODS, OURS, Entry

Part = Literal["main", "slice", "timed"]
RANK, RESIDUALS = 8, 800
"""The rank, and the residuals of a batch, with which the default settings of this package begin; equal for all methods
and problems, so that evaluations cost the same.
"""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        problem: its name; the network is pretrained at its source parameter.
        method: its name in ``METHODS``.
        step: the step size or learning rate; None for the method's own.
        seed: of the points, and of a random start.
        part: of the study.
        rank: r, or the word of the default.
        start: of the factors.
        precision: bits.
        points: ``fresh`` at each step, ``fixed``, or the ``default`` of the method.
        residuals: of a batch, all terms and components together, unless points are the default's.
        evaluations: the budget; None if it is seconds.
        seconds: the budget in CPU seconds; None if it is evaluations.
    """

    problem: str
    method: str
    step: float | None
    seed: int
    part: Part = "main"
    rank: int | str = RANK
    start: str = "pissa"
    precision: int = 64
    points: Literal["fresh", "fixed", "default"] = "fresh"
    residuals: int = RESIDUALS
    evaluations: int | None = 300
    seconds: float | None = None

    @property
    def name(self) -> str:
        """What tells it from every other run; the name of its file."""
        step = "own" if self.step is None else f"{self.step:.3g}"
        budget = f"{self.seconds:g}s" if self.evaluations is None else f"{self.evaluations}e"
        varied = f"r{self.rank}-{self.start}-{self.precision}-{self.points}-{self.residuals}"
        return f"{self.part}-{self.problem}-{self.method}-{step}-{varied}-{budget}-{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Form(NamedTuple):
    """How large a study is: ``places`` are powers of ten about the middle of a method's step sizes, ``beyond`` more of
    them for single methods.
    """

    seeds: tuple[int, ...]
    evaluations: int
    places: tuple[float, ...]
    sliced: tuple[float, ...]
    sliced_seeds: tuple[int, ...]
    seconds: float
    beyond: Mapping[str, tuple[float, ...]] = MappingProxyType({})

    @property
    def spacing(self) -> float:
        """Decades between two step sizes."""
        return self.places[1] - self.places[0]


PROBLEMS = ("burgers", "allen_cahn", "convection", "kovasznay")
FULL = Form(
    seeds=(1, 2, 3),
    evaluations=300,
    places=(-2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5),
    sliced=(-2.0, -1.0, 0.0, 1.0, 2.0),
    sliced_seeds=(1,),
    seconds=10.0,
    # On Allen–Cahn, whose residual has a small weight, the first seed worked at the end of the grid.
    beyond={"odelora_implicit": (3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0)},
)
QUICK = Form(
    seeds=(0,),
    evaluations=200,
    places=(-2.0, -1.0, 0.0, 1.0, 2.0),
    sliced=(-1.0, 0.0, 1.0),
    sliced_seeds=(),
    seconds=3.0,
)
SLICED_PROBLEMS = ("burgers", "kovasznay")
SLICED_METHODS = ("odelora_implicit", "lora_adam", "lora_pro_adamw")
SLICES: tuple[dict[str, Any], ...] = (
    {"rank": 2},
    {"rank": 4},
    {"start": "orthonormal"},
    {"start": "zero"},
    {"precision": 32},
    {"points": "fixed"},
    {"residuals": 400},
)
"""What is varied, one at a time, from rank 8, the pissa start, 64 bits, and 800 residuals at fresh points."""


def cases(
    form: Form, problems: Sequence[str] = PROBLEMS, methods: Sequence[str] | None = None, timed: bool = False
) -> Iterator[Case]:
    """All runs of a form, seed by seed; those of default settings by seconds if ``timed``, else the others."""
    chosen = [METHODS[name] for name in METHODS if methods is None or name in methods]
    present = [entry for entry in chosen if entry.present]
    for seed in form.seeds:
        if timed:
            yield from _timed(form, problems, present, seed)
            continue
        yield from _main(form, problems, present, seed)
        if seed in form.sliced_seeds:
            yield from _slices(form, problems, present, seed)


def _main(form: Form, problems: Sequence[str], entries: Sequence[Entry], seed: int) -> Iterator[Case]:
    for problem in problems:
        for entry in entries:
            case = Case(problem, entry.name, None, seed, evaluations=form.evaluations)
            if entry.name == OURS:
                yield replace(case, rank="auto", points="default")
                continue
            if entry.chooses:
                yield case
            places = (*form.places, *form.beyond.get(entry.name, ()))
            yield from (replace(case, step=step) for step in entry.steps(places))


def _slices(form: Form, problems: Sequence[str], entries: Sequence[Entry], seed: int) -> Iterator[Case]:
    for problem in (name for name in SLICED_PROBLEMS if name in problems):
        for entry in (entry for entry in entries if entry.name in SLICED_METHODS):
            for varied in SLICES:
                for step in entry.steps(form.sliced):
                    case = Case(problem, entry.name, step, seed, "slice", evaluations=form.evaluations)
                    yield replace(case, **varied)


def _timed(form: Form, problems: Sequence[str], entries: Sequence[Entry], seed: int) -> Iterator[Case]:
    settings = {"rank": "auto", "points": "default", "evaluations": None, "seconds": form.seconds}
    for problem in problems:
        for entry in entries:
            yield Case(problem, entry.name, entry.default, seed, "timed", **settings)
