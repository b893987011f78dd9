"""What is solved in another way than step by step: a family with its stations, and a linearised model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from pinn_odelora import manifest
from pinn_odelora.checkpoints import save_network
from pinn_odelora.config.build import KEYS, by_keys
from pinn_odelora.config.checks import resolved, settings
from pinn_odelora.config.request import Request
from pinn_odelora.config.running import Run
from pinn_odelora.diagnostics import errors
from pinn_odelora.errors import InputError
from pinn_odelora.families.family import Family
from pinn_odelora.families.offline import family
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.files import write_json
from pinn_odelora.geometry import sobol, stream
from pinn_odelora.loop import StepRecord
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.ntk.adapting import LinearisedResult, adapt_linearised, check_settings
from pinn_odelora.runs import messages
from pinn_odelora.runs.folder import FAMILY, HISTORY, OUTCOME, SUMMARY, WEIGHTS
from pinn_odelora.runs.history import History
from pinn_odelora.runs.save import versions
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import Solution

ANSWERS = 9
"""How many members are asked for at the end."""


@dataclass
class FamilyRun(Run):
    """What a configuration asks for where ``family`` is not empty; its arguments, and what is raised, are those of
    ``Run``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        config, built = resolved(self.cfg), self.experiment.adaptation
        self.ranges = config["family"]
        self.lora, self.stations, self.budget = (settings(config, key) for key in ("lora", "stations", "budget"))
        self.derivatives = config["derivatives"]["engine"]
        with by_keys(KEYS):  # What does not fit raises before anything is trained.
            Parametric(built.net, built.problem, (*self.ranges,), self.lora, self.cfg.seed, self.derivatives)

    def solve(self, facts: dict[str, Any]) -> None:
        """Solve the stations, from those in the folder if there are any, and leave the summary.

        Args:
            facts: what is known of the pretrained network.

        Raises:
            InputError: if the folder has the stations of another family.
            NonFiniteError: if the equation cannot be solved where the path starts.
        """
        with messages.leaving("while stations were solved", self.folder):
            made = family(
                self.experiment.adaptation.net,
                self.experiment.adaptation.problem,
                ranges=self.ranges,
                tolerance=self.stations.tolerance,
                most=self.stations.most,
                scale=self.stations.scale,
                budget=self.budget,
                lora=self.lora,
                seed=self.cfg.seed,
                derivatives=self.derivatives,
                threads=1 if self.cfg.threads == "auto" else self.cfg.threads,
                file=self.folder / FAMILY,
                say=messages.say,
            )
            if made.paused:
                count = len(made.stations)
                where = f"after {count} {'station' if count == 1 else 'stations'}"
                messages.leave(where, self.folder, made.paused)
            summary = self._summary(made, facts)
        write_json(self.folder / SUMMARY, summary)
        manifest.add(self.folder / MANIFEST, OUTCOME)
        messages.last_line(outcome(summary), "", self.folder)

    def _summary(self, made: Family, facts: dict[str, Any]) -> dict[str, Any]:
        stations, found = made.stations, answers(made, self.cfg.log.test)
        estimates, known = [x["estimate"] for x in found], [x["rel_l2"] for x in found]
        return {
            "problem": self.cfg.choices.problem,
            "ranges": made.ranges,
            "tolerance": self.stations.tolerance,
            "count": len(stations),
            "steps": sum(s.steps for s in stations),
            "gradient_evals": sum(s.gradient_evals for s in stations),
            "seconds": made.seconds,
            "estimate_median": median(estimates),
            "estimate_worst": max(estimates),
            "rel_l2_median": median(known),
            "rel_l2_worst": max(known),
            "answer_seconds": mean(x["seconds"] for x in found),
            "answers": found,
            "stations": [
                {"values": s.values, "loss": s.loss, "change": s.change, "steps": s.steps, "seconds": s.seconds}
                for s in stations
            ],
            **{name: value for name, value in facts.items() if name.startswith("pretrain")},
            "versions": versions(),
        }


def answers(made: Family, n: int) -> list[dict[str, Any]]:
    """Members spread over the ranges: their values, estimated relative L2 error, true one at n points where there is a
    reference, else NaN, and time.
    """
    found = []
    for x in sobol(ANSWERS, len(made.ranges), seed=stream("family answers")).numpy():
        u = made(**made.space.values(x))
        error = errors(u.problem, Solution(u.problem, u.net), n)["error/rel_l2"]
        found.append({"values": u.values, "estimate": u.error, "rel_l2": error, "seconds": u.seconds})
    return found


def outcome(summary: dict[str, Any]) -> str:
    """The summary of a family in a few words."""
    x = summary
    ranges = ", ".join(f"{name} {low:g}..{high:g}" for name, (low, high) in x["ranges"].items())
    stations = f"{x['count']} stations" if x["count"] > 1 else "one station"
    true = "" if math.isnan(x["rel_l2_worst"]) else f" (true {x['rel_l2_median']:.0e}, {x['rel_l2_worst']:.0e})"
    seconds = f"{x['seconds']:.0f}" if x["seconds"] >= 10 else f"{x['seconds']:.1f}"
    return (
        f"{x['problem']} family {ranges}: {stations} in {seconds} s; answers: estimated error median "
        f"{x['estimate_median']:.0e}, worst {x['estimate_worst']:.0e}{true}, {x['answer_seconds']:.2f} s each"
    )


UNUSED = ("data", "checkpoint", "budget.wall", "lora.adaptive", "lora.also", "log.heldout", "stations", "precision")
"""Keys that the linearised model does not look at."""


@dataclass
class LinearisedAdaptation(Run):
    """What a configuration asks for with ``training.regime=linearised``; its arguments, and what is raised, are those
    of ``Run``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        config, built = resolved(self.cfg), self.experiment.adaptation
        request, drawn = Request.current(), settings(config, "points")
        unused = [*UNUSED, *(["logger"] if config["logger"]["kind"] != "csv" else [])]
        if given := request.gives(*unused):
            raise InputError(f"{given[0]} is given, but it has no effect on the linearised model: leave it out.")
        if drawn.fresh and request.gives("points"):
            raise InputError("points are new at every step, but those of the linearised model stay: give points=fixed.")
        # Without a choice they are those of points=fixed, and not as many as new ones would be.
        chosen = Sampling.fixed() if drawn.fresh else drawn
        self.lora, self.budget, self.points = settings(config, "lora"), settings(config, "budget"), chosen
        with by_keys(KEYS | {"start": "lora.start", "decay": "training.decay"}):
            check_settings(built.net, built.problem, built.method, self.lora, self.cfg.training.decay)

    def solve(self, facts: dict[str, Any]) -> None:
        """Adapt the linearised model; leave its history, the network with the weights W0 + δ, and the summary.

        Args:
            facts: what is known of the pretrained network.
        """
        # A run that is continued starts again, without the rows of before.
        built, history = self.experiment.adaptation, History(self.folder / HISTORY, up_to_step=-1)

        def kept(record: StepRecord) -> None:
            if record.step % self.cfg.log.every == 0:
                spent = {"gradient_evals": record.gradient_evals, "seconds": record.seconds}
                history.append({"step": record.step, "loss": record.loss, "h": record.report.h, **spent})

        with messages.leaving("while the linearised model was trained", self.folder), by_keys(KEYS):
            found = adapt_linearised(
                built.net,
                built.problem,
                method=built.method,
                lora=self.lora,
                interior=self.points.interior,
                boundary=self.points.boundary,
                budget=self.budget,
                decay=self.cfg.training.decay,
                seed=self.cfg.seed,
                test=self.cfg.log.test,
                derivatives=resolved(self.cfg)["derivatives"]["engine"],
                observe=kept,
            )
        save_network(found.net, self.folder / WEIGHTS, {})
        write_json(self.folder / SUMMARY, self._summary(found, facts))
        manifest.add(self.folder / MANIFEST, OUTCOME)
        messages.last_line(f"{self.cfg.choices.problem}, {built.method.name}, {found!r}", found.failure, self.folder)

    def _summary(self, found: LinearisedResult, facts: dict[str, Any]) -> dict[str, Any]:
        names = {name: self.cfg.choices[name] for name in ("problem", "method", "integrator")}
        pretraining = {name: value for name, value in facts.items() if name.startswith("pretrain")}
        return names | found.summary | pretraining | {"versions": versions()}
