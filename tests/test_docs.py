"""The documents are true: their Python runs as it stands there; keys, columns and the API page are the code's."""

import importlib.util
import inspect
import math
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

import hydra_plugins.pinn_odelora  # noqa: F401  (tells Hydra of its launchers)
import pinn_odelora
import problems
from pinn_odelora import __main__ as program
from pinn_odelora.contract.quantities import Quantities, generic_points
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.errors import InputError
from pinn_odelora.geometry import sobol
from pinn_odelora.integrators import RungeKutta
from pinn_odelora.integrators.tableau import BOGACKI_SHAMPINE
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.metrics import relative_l2
from pinn_odelora.nets import MLP
from pinn_odelora.optim import ODELoRA, factor_pairs
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System, draw_points

DOCS = Path(__file__).parents[1] / "docs"
LESSON = (DOCS / "guide/your-own-problem.md").read_text(encoding="utf-8")
COLUMNS = (DOCS / "reference/columns.md").read_text(encoding="utf-8")
KEYS = (DOCS / "reference/keys.md").read_text(encoding="utf-8")
CONFIGS = DOCS.parent / "configs"
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
    assert NAMES == ["fretted", "ring", "wave"]
    assert sorted(FILES) == sorted(f for n in NAMES for f in (f"problems/{n}.py", f"configs/problem/{n}.yaml"))


def test_the_lessons_short_pieces_do_what_they_say():
    """A region, an integral and a reference of one's own, in one namespace."""
    pieces = [
        b for b in re.findall(r"^```python\n(.*?)^```$", LESSON, re.MULTILINE | re.DOTALL) if b not in FILES.values()
    ]
    found: dict = {}
    for piece in pieces:
        exec(piece, found)
    p = found["Triangle"]().sample(500, lambda n, d: sobol(n, d, seed=1))
    assert float((p.x + p.y).max()) < 1
    assert float(p.x.mean()) == pytest.approx(1 / 3, abs=0.01)
    p = Points(x=torch.full((2, 1), 0.3).double(), t=torch.tensor([[0.4], [0.7]]).double())
    field = AutogradField(lambda p: p.x**5 * p.t, p, ("u",), ("x", "t"))
    assert torch.allclose(found["integral"](field), p.t / 6, atol=1e-14)
    exact = torch.sin(math.pi * p.x) * torch.cos(math.pi * p.t)
    assert torch.allclose(found["reference"](None, p), exact, atol=1e-5)
    cooling, inside = found["cooling"], found["rod"].sample(500, lambda n, d: sobol(n, d, seed=1))
    more = found["modes"](inside, 0.2, 400)
    assert relative_l2(found["modes"](inside, 0.2), more) < cooling.accuracy
    assert [row.what for row in pinn_odelora.check(cooling).rows if row.verdict != "holds"] == ["ic at the reference"]
    assert {row.verdict for row in pinn_odelora.check(found["Radial"]).rows} == {"holds"}


@pytest.mark.usefixtures("lesson")
@pytest.mark.parametrize("name", NAMES)
def test_the_problem_passes_its_checks(name):
    found = pinn_odelora.check(program.problem_classes()[name])
    assert {row.verdict for row in found.rows} == {"holds"}, f"\n{found}"


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
def test_its_line_of_yaml_is_all_that_the_command_line_needs(name, lesson, compose, monkeypatch):
    monkeypatch.chdir(lesson)
    search = f"hydra.searchpath=[file://{lesson / 'configs'}]"
    cfg = compose(f"problem={name}", search, "problem.c=2", "pretrain.source.c=1.2")
    problem = instantiate(cfg.problem)
    assert type(problem).__module__ == f"problems.{name}"
    assert (problem.c, problem.n, cfg.pretrain.source.c) == (2, 1, 1.2)
    for wrong in ("problem.c=-1", "problem.c=fast", "problem.d=2", "problem.conditions=weak", "pretrain.source.d=1"):
        key, _, value = wrong.rpartition(".")[2].partition("=")
        with pytest.raises((InputError, InstantiationException), match=rf"{key}.*{value}|'{key}'"):
            instantiate(compose(f"problem={name}", search, wrong).problem)


LINES = re.findall(r"^python train.py (.*)$", LESSON, flags=re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_its_command_lines_set_what_they_say(line, lesson, compose):
    words = line.split()
    cfg = compose(*words, f"hydra.searchpath=[file://{lesson / 'configs'}]")
    problem = instantiate(cfg.problem)
    assert words[0] == f"problem={type(problem).__name__.lower()}"
    for word in words[1:]:
        key, value = word.removeprefix("problem.").split("=")
        kind, _, term = key.partition(".")
        if term:
            assert problem.loss_terms()[term].weight == float(value)
        else:
            assert str(getattr(problem, kind)) == str(type(getattr(problem, kind))(value))


def test_the_command_lines_of_the_lesson_reach_parameters_conditions_and_weights():
    assert {word.split("=")[0] for line in LINES for word in line.split()} == {
        "problem",
        "problem.c",
        "problem.length",
        "problem.conditions",
        "problem.weights.ic",
    }


# Python in the guide.


PAGES = [
    "getting-started",
    "choosing-a-rank",
    "your-own-model",
    "your-own-network",
    "inverse-problems",
    "tuning",
    "conditions",
    "without-a-reference",
    "scales",
    "your-own-data",
    "deepxde",
    "torch-residuals",
    "pina",
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_python_of_the_guide_runs(page, tmp_path, monkeypatch):
    """All blocks of a page in one namespace, with short budgets."""
    if page == "your-own-model":
        pytest.importorskip("peft")
    if page == "tuning":
        pytest.importorskip("optuna")
    if page == "pina":
        warnings.simplefilter("ignore")  # importing it, or what it imports, warns
        pytest.importorskip("pina")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PINN_ODELORA_CACHE", str(tmp_path / "cache"))
    rows = [f"{x},{t},{-math.sin(math.pi * x) * math.exp(-t)}" for x in (-0.5, 0.1, 0.6) for t in (0.1, 0.5, 0.9)]
    (tmp_path / "measured.csv").write_text("\n".join(["x,t,u", *rows]))
    text = (DOCS / "guide" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    found: dict = {}
    for block in blocks:
        short = block.replace("range(20)", "range(3)").replace("seconds=2", "budget=po.Budget(steps=2)")
        if page in ("conditions", "your-own-data", "torch-residuals", "pina"):
            short = re.sub(
                r"pretrain\((.*)\)",
                r"pretrain(\1, settings=po.Pretraining(0, natural_gradient_steps=2, lbfgs_evals=0))",
                short,
            )
        exec(re.sub(r"Budget\([^)]*\)", "Budget(steps=2)", short), found)
    assert len(blocks) >= 1
    result = found["result"]
    assert result.steps == 2
    assert not result.failure
    if page == "getting-started":
        assert found["slope"].shape == found["x"].shape == (201,)
        assert found["record"].step in (1, 2)
        assert math.isfinite(result.rel_l2)  # of po.problem, with its reference
    if page == "your-own-model":
        assert found["loss"].item() < 0.85 * float((found["targets"]).square().mean())
    if page == "tuning":
        assert [len(trial.params) for trial in found["study"].trials] == [2, 2, 2]
        assert found["study"].best_value == min(trial.value for trial in found["study"].trials)
    if page == "choosing-a-rank":
        assert [x.rank for x in found["advice"].predictions] == [1, 2, 4, 8, 16]
        assert (tmp_path / "ranks.png").exists()
    if page == "conditions":
        assert found["result"].coefficients.keys() == {"c"}
        system = System(found["laplace"], Solution(found["laplace"], MLP(2, 1, width=4, depth=2)))
        assert all(r.shape == (9, 1) for r in system.residuals(draw_points(system.terms, 9, 9, seed=0)).values())
    if page == "without-a-reference":
        assert found["result"].error_estimate > 0
        assert (tmp_path / "my_run" / "solution.png").exists()
    if page == "inverse-problems":
        assert found["result"].coefficients.keys() == {"nu"}


NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"


def told(line):
    """The words of a line, and its numbers; those of its cost are left out."""
    line = re.sub(r" in \d+ steps, \d+ gradient evaluations, [\d.]+ s", "", line)
    return re.sub(NUMBER, "#", line), [float(x) for x in re.findall(NUMBER, line)]


def alike(quoted, printed):
    """The same words, and numbers of the same size, unless both are tiny or the run has exploded."""
    (words, numbers), (others, found) = told(quoted), told(printed)
    near = lambda a, b: max(a, b) < 1e-4 or min(a, b) > 1e6 or max(a, b) <= 10 * min(a, b)
    return words == others and all(near(abs(a), abs(b)) for a, b in zip(numbers, found, strict=True))


@pytest.mark.slow
def test_the_symptoms_and_remedies_are_those_that_the_page_quotes(tmp_path, monkeypatch, capsys):
    """Every quoted line is printed by the block before it, in this order; a remedy shows in the numbers."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "guide" / "when-it-does-not-converge.md").read_text(encoding="utf-8")
    found: dict = {}
    for kind, block in re.findall(r"^```(python|text)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(block, found)
            printed = iter(capsys.readouterr().out.splitlines())
            continue
        for quoted in block.splitlines():
            assert any(alike(quoted, line) for line in printed), quoted
    assert len(re.findall("^```text$", text, flags=re.MULTILINE)) == 14


def test_a_quoted_line_is_compared_in_words_and_in_sizes():
    line = "odelora: relative L2 2.9e-01 -> 4.16e-03 in 14 steps, 106 gradient evaluations, 1.0 s"
    assert alike(line, "odelora: relative L2 3.1e-01 -> 9.0e-04 in 15 steps, 98 gradient evaluations, 7.0 s")
    assert not alike(line, line.replace("4.16e-03", "4.16e-01"))
    assert not alike(line, line.replace("relative", "absolute"))


# What is logged, and what can be set.


def first_column(text, heading):
    """The names in the first column of the first table after a line."""
    rows = text.split(f"{heading}\n")[1].lstrip().split("|\n\n")[0]
    first = (line.split("|")[1] for line in rows.splitlines() if line.startswith("|"))
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def test_the_columns_are_those_that_a_run_logs_and_sums_up(compose, run):
    from pinn_odelora.runs.history import History
    from pinn_odelora.runs.save import save_outcome

    cfg = compose("problem=heat", "problem.conditions=soft", "budget.steps=2")
    done = run(cfg)
    summary = save_outcome(done.result, Path(cfg.output_dir), done.facts)
    logged = {
        re.sub(r"^loss/.*", "loss/<term>", re.sub(r"_\d+$", "_<i>", re.sub(r"/linears\.\d/", "/<layer>/", column)))
        for column in History(Path(cfg.output_dir) / "history.csv").columns
    }
    assert first_column(COLUMNS, "## Columns of `history.csv`") == logged
    assert first_column(COLUMNS, "## Names in `summary.json`") == summary.keys()


def key_rows():
    """Key -> the other cells of its row, over all tables of the page; a row of several keys counts for each."""
    found = {}
    for line in KEYS.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        for key in re.findall(r"`([\w.]+)`", cells[0]) if line.startswith("| `") else []:
            found[key] = [cell.strip("| ") for cell in cells[1:]]
    return found


def leaves(node, prefix=""):
    """Key -> value of a configuration, without what Hydra adds."""
    for name, value in node.items():
        if name in ("defaults", "source", "trainer") or name.startswith("_"):
            continue
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def read(file):
    return yaml.safe_load((CONFIGS / f"{file}.yaml").read_text(encoding="utf-8"))


def test_the_keys_and_their_defaults_are_those_of_the_configuration():
    rows = key_rows()
    plain = dict(leaves(read("train") | {"logger": read("logger/wandb"), "derivatives": read("derivatives/auto")}))
    plain |= dict(leaves(read("weighting/fixed"), "weighting."))
    for key, value in plain.items():
        assert key in rows, key
        assert yaml.safe_load(rows[key][-1]) == value, key
    members = [dict(leaves(read(f"points/{name}"), "points.")) for name in ("residual", "fresh", "fixed")]
    for key in members[0]:
        assert [yaml.safe_load(cell) for cell in rows[key][-3:]] == [member[key] for member in members], key
    of_components = {key for key in rows if key.startswith(("method.", "integrator.", "problem.", "net."))}
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    of_launchers = {key for key in rows if key.startswith("hydra")}
    assert rows.keys() - of_components - of_launchers - groups == plain.keys() | members[0].keys()


def test_every_setting_of_a_method_has_one_row():
    found = Counter(re.findall(r"^\| `(method\.\w+)`", KEYS, flags=re.MULTILINE))
    targets = [get_object(read(f"method/{path.stem}")["_target_"]) for path in (CONFIGS / "method").glob("*.yaml")]
    settings = {f"method.{name}" for target in targets for name in inspect.signature(target).parameters}
    assert found == Counter(settings - {"method.integrator"})


def test_the_keys_of_launchers_and_their_defaults_are_those_that_hydra_knows():
    known = {name: ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node for name in ("processes", "slurm")}
    rows = {key: cells for key, cells in key_rows().items() if key.startswith("hydra.launcher.")}
    assert {key.rpartition(".")[2] for key in rows} == {*known["processes"], *known["slurm"]} - {"_target_"}
    for key, (of, *_, default) in rows.items():
        values = [known[launcher][key.rpartition(".")[2]] for launcher in re.findall(r"`(\w+)`", of)]
        assert [yaml.safe_load(cell) for cell in default.split(", ")] == values, key


@pytest.mark.parametrize(("group", "made_of"), [("method", ("integrator",)), ("integrator", ("tableau", "order"))])
def test_the_keys_of_methods_and_integrators_are_their_parameters(group, made_of):
    """What a member is made of, its scheme or tableau, is chosen by its name."""
    targets = {read(f"{group}/{path.stem}")["_target_"] for path in (CONFIGS / group).glob("*.yaml")}
    parameters = {name for target in targets for name in inspect.signature(get_object(target)).parameters}
    documented = {key.removeprefix(f"{group}.") for key in key_rows() if key.startswith(f"{group}.")}
    assert documented == parameters - {*made_of}


def test_the_groups_are_those_of_the_folder():
    rows = key_rows()
    for folder in (path for path in CONFIGS.iterdir() if path.is_dir()):
        members = {path.stem for path in folder.glob("*.yaml")}
        assert members <= set(re.findall(r"`(\w+)`", rows[folder.name][0])), folder.name


# The page of the API, and its words.


def load_api():
    spec = importlib.util.spec_from_file_location("docs_api", DOCS / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_api_page_is_that_of_the_code():
    api = load_api()
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "write it by: python docs/api.py"


def test_a_stale_api_page_is_noticed(tmp_path, monkeypatch, capsys):
    api = load_api()
    monkeypatch.setattr(sys, "argv", ["api.py", "--check"])
    assert api.main() == 0
    monkeypatch.setattr(api, "PAGE", tmp_path / "api.md")
    assert api.main() == 1
    api.PAGE.write_text(api.page() + "one line more\n", encoding="utf-8")
    assert api.main() == 1
    assert "stale" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["api.py"])
    assert api.main() == 0
    assert api.PAGE.read_text(encoding="utf-8") == api.page()


def test_every_public_name_is_documented():
    api = load_api()
    for name in pinn_odelora.__all__:
        assert len(api.documentation(getattr(pinn_odelora, name)).split()) >= 5, name


AVOIDED = (
    *("incumbent", "challenger", "carriers", "surroundings", "nearer", "farther", "dear", "dearer", "anew", "legs"),
    *("be had", "is refused", "rows rest", "looks at", "points that follow", "the way there"),
)
"""Words that the vocabulary of the project replaces."""


@pytest.mark.parametrize(
    "path",
    [p for p in (*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md")) if p.name != "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(DOCS.parent)),
)
def test_documents_keep_to_the_vocabulary(path):
    text = " ".join(path.read_text(encoding="utf-8").lower().split())
    assert [word for word in AVOIDED if re.search(rf"\b{word}\b", text)] == []
