"""What an adaptation returns: the solution as a function, numbers, the history, and the way to a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.confidence import Interval
from pinn_odelora.diagnostics import BY_FIELD
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.loop import Row
from pinn_odelora.lowrank.adapter_files import save_adapter
from pinn_odelora.lowrank.layer import LowRankLinear, adapters
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.metrics import known
from pinn_odelora.misfit import Misfit
from pinn_odelora.naming import integrator_name, snake_case
from pinn_odelora.nets import Scaled
from pinn_odelora.nets.scaled import own_name
from pinn_odelora.runs.ended import EndedRun
from pinn_odelora.runs.save import save


class Adapter:
    """The low-rank change of the network's weights."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def save(self, folder: str | Path, base: str = "pretrained.safetensors") -> None:
        """Write it in PEFT's format, for the network as it was before.

        Args:
            folder: made if it does not exist.
            base: name or path of that network, for the record.

        Raises:
            InputError: if the method trained all weights, or the folder cannot be written.
        """
        if not adapters(self.net):
            raise InputError("there is no adapter to save, because all weights were trained; save result.net instead.")
        save_adapter(self.net, folder, base)


class Result:
    """An adapted solution.

    Attributes:
        problem: what was adapted to, with the values that were found for unknown parameters.
        net: the adapted network, on the CPU; where factors were trained its layers are W0 + s (B A - B₀ A₀).
        solution: the solution as a function of the coordinates, see ``AdaptedSolution``.
        adapter: the low-rank change alone, ``adapter.save(folder)``.
        rel_l2, max_error: ‖u - u*‖₂ / ‖u*‖₂, of fields in their units if the network has some, and max |u - u*| at test
            points; NaN without a reference.
        rel_l2_by_field: the former of each field, where there are several and a reference.
        rel_l2_before: rel_l2 of the pretrained network.
        error_estimate: estimate of rel_l2 without a reference, by ``pinn_odelora.error_estimate``; None
            where none was asked for (``Log.estimate``), or there is none; the summary's ``no_estimate`` says why.
        field_estimates: the same of each field by name; empty where there is none.
        losses_before, losses: w_k · mean |r_k|² of each term at held-out points, of the pretrained network and at the
            end.
        loss, heldout_loss: L where the last step began, and on held-out points at the end.
        history: one dictionary for each logged step and one for the end, by the names of docs/reference/notation.md;
            ``pandas.DataFrame(result.history)`` is a table.
        coefficients: estimate, 95 % interval and more of each unknown parameter; no interval where the measured values
            are not fitted.
        unknown_fields: each unknown field that was found, as a function of its coordinates.
        misfits: how each measured field and other measured term is fitted, where a parameter was unknown.
        ranks: r of each adapted layer, by its name in the user's network; empty where all weights were trained.
        steps, gradient_evals, seconds: cost.
        diverged: whether numbers stopped being finite, or the held-out loss ended above its first value.
        failure: what stopped being finite, where; empty if nothing did.
        stalled: whether the run ended because a step no longer moved the weights.
        summary: all of it in a dictionary of plain values, as ``summary.json`` has it.
    """

    def __init__(self, adaptation: EndedRun, errors: Mapping[str, float]) -> None:
        training = adaptation.training
        p = training.progress
        self.adaptation = adaptation
        self.problem: Problem = adaptation.problem
        self.net: nn.Module = adaptation.net
        self.solution = AdaptedSolution(adaptation.problem, adaptation.net, adaptation.solution.unknown_fields)
        self.unknown_fields = self.solution.unknown_fields
        self.adapter = Adapter(adaptation.net)
        self.history: list[Row] = adaptation.history
        self.rel_l2, self.max_error = errors["error/rel_l2"], errors["error/max"]
        self.rel_l2_by_field = {k.removeprefix(BY_FIELD): x for k, x in errors.items() if k.startswith(BY_FIELD)}
        self.rel_l2_before = adaptation.error_before
        self.error_estimate = adaptation.estimate.rel_l2
        self.field_estimates = dict(adaptation.estimate.fields)
        self.losses_before, self.losses = dict(adaptation.losses_before), dict(adaptation.losses)
        self.misfits = adaptation.misfits
        self.loss, self.heldout_loss = p.loss, p.heldout_loss
        self.steps, self.gradient_evals, self.seconds = p.step, p.gradient_evals, p.seconds
        self.loss_rises, self.largest_rise = p.rises / max(p.step, 1), p.largest_rise
        self.failure = str(training.failure or "")
        self.stalled = training.stalled
        self.diverged = bool(self.failure) or not p.heldout_loss <= p.first_heldout_loss
        layers = training.objective.layers
        own = {own_name(self.net, name): x for name, x in layers.items()}
        self.ranks = {name: x.rank for name, x in own.items() if isinstance(x, LowRankLinear)}
        self.coefficients = {
            name: _interval(adaptation.intervals.get(name), x.item())
            for name, x in adaptation.solution.coefficients.items()
        }

    def __repr__(self) -> str:
        """The last line of a run."""
        return f"{snake_case(type(self.problem))}, {self.adaptation.method.name}: {self.outcome()}"

    def outcome(self) -> str:
        """What was found and at which cost, in words."""
        reached = ", ".join(self._found() + self._quality())
        return f"{reached} in {self.steps} steps, {self.gradient_evals} gradient evaluations, {self.seconds:.1f} s"

    def _found(self) -> list[str]:
        fields = {f"{name}({', '.join(q.coords)})": q.summary() for name, q in self.unknown_fields.items()}
        best = self.adaptation.training.returns_best
        estimates = ", ".join(_estimate(name, x, best) for name, x in self.coefficients.items())
        if estimates and (missed := [_missed(name, x) for name, x in self.misfits.items() if not x.fitted]):
            estimates += f" (no interval, since the data are not fitted: {'; '.join(missed)})"
        intervals = self.adaptation.intervals
        if undetermined := [name for name, x in intervals.items() if math.isinf(x.std)]:
            estimates += f" (no interval of {' and '.join(undetermined)}, which the measurements do not determine)"
        elif any(math.isnan(x.std) for x in intervals.values()):
            estimates += " (no interval, since the fit leaves no measured value to tell the noise by)"
        return [
            *filter(None, [estimates]),
            *(
                f"{name} from {x['min']:.4g} to {x['max']:.4g}, mean {x['mean']:.4g} (fields have no interval)"
                for name, x in fields.items()
            ),
        ]

    def _quality(self) -> list[str]:
        """How good the solution is: its error where that is known, else the held-out losses and the estimate."""
        if known(self.rel_l2) is not None:
            by_field = ", ".join(f"{name} {x:.1e}" for name, x in self.rel_l2_by_field.items())
            return [
                f"relative L2 {self.rel_l2_before:.2e} -> {self.rel_l2:.2e}" + (f" ({by_field})" if by_field else "")
            ]
        before, after = self.losses_before, self.losses
        terms = ", ".join(f"{name} {before[name]:.1e} -> {x:.1e}" for name, x in after.items())
        losses = f"held-out loss {sum(before.values()):.2e} -> {sum(after.values()):.2e}"
        said = "error uncertain" if self.adaptation.estimate.uncertain else ""
        said = said if self.error_estimate is None else f"relative L2 error about {self.error_estimate:.0e}"
        return [losses + (f" ({terms})" if len(after) > 1 else ""), *filter(None, [said])]

    @property
    def summary(self) -> dict[str, Any]:
        """Plain values, as ``summary.json`` has them."""
        run = self.adaptation
        plan = run.plan()
        layers, derivatives = run.chosen.splitlines()
        fields = self.unknown_fields
        matrix = isinstance(self.problem.region, UnitMatrices)
        return {
            "problem": snake_case(type(self.problem)),
            "method": run.method.name,
            "integrator": None if run.method.integrator is None else integrator_name(run.method.integrator),
            "linear_algebra": None if plan is None else str(plan),
            "seed": run.seed,
            "layers": layers,
            "derivatives": derivatives,
            "ranks": self.ranks or None,
            "rel_l2": known(self.rel_l2),
            "max_error": known(self.max_error),
            **({"rel_l2_by_field": self.rel_l2_by_field} if self.rel_l2_by_field else {}),
            "error_estimate": self.error_estimate,
            "field_estimates": self.field_estimates,
            "no_estimate": run.estimate.reason,
            **({"rel_error": self.rel_l2} if matrix else {}),
            **({"coefficients": self.coefficients} if self.coefficients else {}),
            **({"misfits": {k: _plain(x._asdict()) for k, x in self.misfits.items()}} if self.misfits else {}),
            **({"unknown_fields": {k: q.summary() for k, q in fields.items()}} if fields else {}),
            **({"scales": self.net.scales.as_dict()} if isinstance(self.net, Scaled) else {}),
            "loss": self.loss,
            "heldout_loss": self.heldout_loss,
            "heldout_losses_before": self.losses_before,
            "heldout_losses": self.losses,
            "loss_rises": self.loss_rises,
            "largest_rise": self.largest_rise,
            "diverged": self.diverged,
            "stalled": self.stalled,
            "failure": self.failure,
            "gradient_evals": self.gradient_evals,
            "steps": self.steps,
            "seconds": self.seconds,
            "rel_l2_before": known(self.rel_l2_before),
        }

    def save(self, folder: str | Path) -> None:
        """Write what ``train.py`` leaves: settings, history, summary, adapter or weights, the network before, figures.

        Args:
            folder: made if it does not exist; it must not hold a run.

        Raises:
            InputError: if the folder holds a run, or cannot be written.
        """
        save(self, Path(folder))


def _interval(found: Interval | None, value: float) -> dict[str, float | bool | None]:
    """An estimate with its 95 % interval; None where a failed run has none."""
    found = found or Interval(value, *[math.nan] * 4)
    return _plain(found._asdict()) | {"settled": found.settled}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _estimate(name: str, x: Mapping[str, Any], best: bool) -> str:
    """The estimate in words; ``best``: whether it is that of the best iterate, which more steps hardly replace."""
    if None in x.values():
        return f"{name} = {x['estimate']:.6g}"
    advice = "return the last iterate (points.best_iterate=false) or raise" if best else "raise the budget or"
    more = "" if x["settled"] else f"; not settled, the next step would add {x['ahead']:.1e}: {advice} the rank"
    n = _digits(x)
    return f"{name} = {x['estimate']:.{n}g} (95 % interval {x['low']:.{n}g} to {x['high']:.{n}g}{more})"


def _digits(x: Mapping[str, Any]) -> int:
    """Significant digits that tell the ends of an interval from the estimate, two of its half-width; six at least."""
    half, size = (x["high"] - x["low"]) / 2, max(abs(x["low"]), abs(x["high"]))
    return min(max(6, 2 + math.ceil(math.log10(size / half))), 17) if half > 0 else 6


def _missed(name: str, x: Misfit) -> str:
    return f"rms misfit {x.rms:.2g} of {name}, whose values have a spread of {x.spread:.2g}"
