"""How a run is put together: what is built for it, and how often."""

import pytest

from pinn_odelora import loop, system
from pinn_odelora.system import System

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


def test_a_run_has_two_residual_systems_one_to_pretrain_and_one_to_adapt(compose, run, monkeypatch):
    """Each rehearses the derivatives of its terms once, so that every further one would delay the first step."""
    systems, at_steps, init, step = [], [], System.__init__, loop._step

    def counting(made, problem, *args, **options):
        systems.append(problem)
        init(made, problem, *args, **options)

    def watching(training):
        at_steps.append((training.method.name, len(systems)))
        return step(training)

    monkeypatch.setattr(System, "__init__", counting)
    monkeypatch.setattr(loop, "_step", watching)
    cfg = compose("pretrain.natural_gradient_steps=2", "pretrain.target=1e-12", "budget.steps=2")
    done = run(cfg)
    assert [name for name, _ in at_steps] == [*["pretraining"] * 3, *["full_implicit"] * 2, *["odelora"] * 2]
    assert {number for _, number in at_steps} == {2}
    assert systems == [done.adaptation.problem, done.run.experiment.source]
    assert done.run.experiment.source.nu != done.adaptation.problem.nu


def test_a_term_is_rehearsed_once_in_each_system(compose, run, monkeypatch):
    """Whatever asks for its residuals: pretraining, its error, the batch size, the linearisation, the diagnostics."""
    rehearsed, rehearse = [], system.rehearse
    monkeypatch.setattr(
        system, "rehearse", lambda name, *args, **options: rehearsed.append(name) or rehearse(name, *args, **options)
    )
    run(compose("problem=kovasznay", "pretrain.natural_gradient_steps=2", "budget.steps=2"))
    assert sorted(rehearsed) == ["bc", "bc", "outflow", "outflow", "pde", "pde"]
