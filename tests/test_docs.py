"""The documents are true: the lesson's problems are run as they stand there, and what is logged is what is defined."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from test_problems import Quantities, generic_points

import problems
from pinn_odelora import __main__ as program
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.geometry import sobol
from pinn_odelora.integrators import RungeKutta
from pinn_odelora.integrators.tableau import BOGACKI_SHAMPINE
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import adapt as put_factors
from pinn_odelora.lowrank.targets import linear_targets
from pinn_odelora.nets import MLP
from pinn_odelora.optim import ODELoRA, factor_pairs
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System, draw_points

DOCS = Path(__file__).parents[1] / "docs"
LESSON = (DOCS / "adding-a-problem.md").read_text(encoding="utf-8")
NOTATION = (DOCS / "notation.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", LESSON, flags=re.MULTILINE | re.DOTALL))
NAMES = sorted(Path(file).stem for file in FILES if file.startswith("problems/"))


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """The lesson's files in a folder beside the repository, their problems importable as if they lay in it."""
    folder = tmp_path_factory.mktemp("lesson")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    problems.__path__.append(str(folder / "problems"))
    importlib.invalidate_caches()
    yield folder
    problems.__path__.remove(str(folder / "problems"))
    for name in NAMES:
        sys.modules.pop(f"problems.{name}", None)
        vars(problems).pop(name, None)


def cases(name):
    cls = program.problem_classes()[name]
    for conditions in cls.supports:
        target = cls(conditions=conditions)
        yield from (target, target.at_source(), cls(conditions=conditions, n=2))


def test_the_lesson_has_its_files():
    assert NAMES == ["ring", "wave"]
    assert sorted(FILES) == sorted(f for n in NAMES for f in (f"problems/{n}.py", f"configs/problem/{n}.yaml"))


@pytest.mark.usefixtures("lesson")
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_makes_every_term_vanish(name):
    for problem in cases(name):
        for term_name, term in problem.terms().items():
            field = Quantities(problem, generic_points(problem)[term_name])
            (component,) = term.rows(field).unbind(dim=1)
            size = field.largest_summand(component) if term.where.interior else 1.0
            assert float(component.detach().abs().max()) < 1e-6 * size, (problem, term_name)


@pytest.mark.usefixtures("lesson")
@pytest.mark.parametrize("name", NAMES)
def test_the_ansatz_keeps_what_it_enforces(name, generator):
    for problem in cases(name):
        if problem.conditions == "soft":
            assert problem.loss_terms().keys() == problem.terms().keys()
            continue
        assert problem.loss_terms().keys() == {"pde"}
        solution = Solution(problem, MLP(problem.inputs, 1, width=16, depth=2, generator=generator))
        for term in problem.enforced:
            field = AutogradField(solution, generic_points(problem)[term], problem.fields, problem.coords)
            assert float(problem.terms()[term].rows(field).detach().abs().max()) < 1e-12, term
        inside = problem.region.sample(100, lambda n, d: sobol(n, d, seed=5))
        assert float(problem.ansatz(inside)[1].abs().min()) > 0
        for coordinate, period in problem.periods.items():
            shifted = Points(inside | {coordinate: inside[coordinate] + period})
            assert torch.allclose(solution(shifted), solution(inside), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("lesson")
@pytest.mark.parametrize("name", NAMES)
def test_the_problem_trains(name, generator):
    problem = program.problem_classes()[name]()
    net = MLP(problem.inputs, 1, width=16, depth=3, generator=generator)
    put_factors(net, linear_targets(net), 2, 1.0, orthonormal, generator)
    system = System(problem, Solution(problem, net))
    points = draw_points(system.terms, interior=64, boundary=16, seed=0)
    optimizer = ODELoRA(factor_pairs(net), integrator=RungeKutta(BOGACKI_SHAMPINE))

    def closure():
        optimizer.zero_grad()
        loss = system.loss(points).total
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_its_line_of_yaml_is_all_that_the_command_line_needs(name, lesson, compose):
    from pinn_odelora.config import build

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lesson)
        arguments = [f"problem={name}", f"hydra.searchpath=[file://{lesson / 'configs'}]"]
        built = build.experiment(compose(*arguments, "problem.c=2", "pretrain.source.c=1.2"))
    assert (built.problem.c, built.source.c) == (2, 1.2)
    assert type(built.problem).__module__ == f"problems.{name}"


def test_its_command_lines_are_those_of_the_command_line(lesson, compose):
    for line in re.findall(r"^python train.py (.*)$", LESSON, flags=re.MULTILINE):
        compose(*line.split(), f"hydra.searchpath=[file://{lesson / 'configs'}]")


# What is measured.


def names(heading):
    """The names in the first column of the table that follows a line of the notation."""
    rows = NOTATION.split(heading)[1].lstrip().split("\n\n")[0]
    first = (line.split("|")[1] for line in rows.splitlines() if line.startswith("|"))
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def test_notation_defines_what_a_run_logs_and_sums_up(compose, adapt):
    from pinn_odelora.runs import conclude
    from pinn_odelora.runs.history import History

    cfg = compose("problem=heat", "problem.conditions=soft", "budget.steps=2")
    module, facts = adapt(cfg)
    logged = {
        re.sub(r"^loss/.*", "loss/<term>", re.sub(r"_\d+$", "_<i>", re.sub(r"/linears\.\d/", "/<layer>/", column)))
        for column in History(Path(cfg.output_dir) / "history.csv").columns
    }
    assert names("both are fixed and not used in training.") == logged
    assert names("`summary.json` has, at the end of a run:") == conclude.summary(cfg, module, facts).keys()
