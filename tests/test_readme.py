"""README and guide are true: commands are accepted, Python runs, tables and file names are those of the code."""

import logging
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import yaml
from hydra.utils import instantiate

import pinn_odelora
from pinn_odelora import __main__ as program
from pinn_odelora import config as commandline
from pinn_odelora.integrators import RKC, ROS2, LinearlyImplicit, RungeKutta, tableau
from pinn_odelora.optim.methods import Method

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = "pip install -c constraints.txt -e . && python train.py problem=burgers"
SECOND = "pip install -c constraints.txt -e '.[test]' && pytest"

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def fenced(text, language):
    """The contents of all blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def table(heading, text=README):
    """The rows of the table in a section, as dictionaries from its header; names lose links and backquotes."""
    section = re.split(r"^#+ ", text, flags=re.MULTILINE)
    lines = next(s for s in section if s.startswith(f"{heading}\n")).splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    return [dict(zip(header, row, strict=True)) for row in rows]


def bare(cell):
    return re.match(r"\[?`?([\w.]+/?)", cell)[1]


def members(group):
    return sorted(file.stem for file in (ROOT / "configs" / group).glob("*.yaml"))


def test_the_two_lines_are_there_and_are_those_of_ci():
    blocks = [block.strip() for block in fenced(README, "bash")]
    assert blocks[:2] == [FIRST, SECOND]
    ci = (ROOT / ".ci" / "run").read_text()
    install, run_tests = SECOND.split(" && ")
    assert install.replace("pip install", "pip install -q") in ci
    assert f"\n{run_tests}\n" in ci
    assert f"\n{FIRST.split(' && ')[1]} " in ci


# A run that begins as train.py does, and trains nothing.

OWN_NET = """
import torch
class Net(torch.nn.Sequential):
    def __init__(self, inputs, outputs): super().__init__(torch.nn.Linear(inputs, outputs))
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the README takes for granted."""
    (tmp_path / "measured.csv").write_text("x,t,u\n0.5,0.5,0.1\n")
    (tmp_path / "network.pt").write_bytes(b"")
    (tmp_path / "mine.py").write_text(OWN_NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path
    root.handlers[:], root.level = handlers, level


def begin(monkeypatch, arguments):
    """The exit code of train.py with a run that only saves its configuration; jobs of a sweep one after another."""
    arguments = [word for word in arguments if not word.startswith(("hydra/launcher", "hydra.launcher"))]

    def train(cfg):
        commandline.save_config(*commandline.begin(cfg))

    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    return commandline.run(train, ROOT / "configs")


def commands(text):
    for block in fenced(text, "bash"):
        for line in block.splitlines():
            for part in line.split(" && "):
                if words := shlex.split(part, comments=True):
                    yield words


GUIDE = "docs/guide/"
COMMANDS = [
    "README.md",
    *(
        f"{GUIDE}{name}.md"
        for name in (
            "command-line",
            "choosing-a-rank",
            "families",
            "inverse-problems",
            "matrix-problems",
            "stability-study",
        )
    ),
]


LONG = pytest.param(COMMANDS[1], marks=pytest.mark.slow)  # half a minute; its settings and sentences are tried below


@pytest.mark.parametrize("path", [LONG if path == COMMANDS[1] else path for path in COMMANDS])
def test_every_command_line_is_accepted(path, workplace, monkeypatch, capsys):
    """In the order of the page and in one folder, so that a run that is continued was begun before."""
    seen = set()
    for words in commands((ROOT / path).read_text(encoding="utf-8")):
        match words:
            case ["python", "train.py", *arguments]:
                code = begin(monkeypatch, [os.path.expandvars(a) for a in arguments])
                assert code == 0, (words, capsys.readouterr().err)
            case ["python", "-m", "pinn_odelora", *arguments]:
                program.parser().parse_args(arguments)
                seen.add(arguments[0])
            case _:
                assert " ".join(words).replace(".[test]", "'.[test]'") in f"{FIRST} {SECOND}"
    if path in COMMANDS[:2]:
        alone = {"new", "check"} if path == COMMANDS[1] else set()
        assert seen - {"new", "check"} == {
            *("list", "suggest-rank", "predict", "family", "compare", "dashboard", "export", "study")
        }
        assert alone <= seen
        assert (workplace / "runs" / "sweep" / "5" / "config.yaml").exists()


SENTENCES = ["choosing-a-method", "command-line", "inverse-problems", "your-own-model", "when-it-does-not-converge"]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    "path", ["README.md", "docs/reference/integrators.md", *(f"{GUIDE}{name}.md" for name in SENTENCES)]
)
def test_every_setting_in_a_sentence_is_accepted(path, monkeypatch, capsys):
    """By itself, or for what only an explicit scheme has, with one."""
    settings = set(re.findall(r"`([a-z_.]+=[^`()]+)`", (ROOT / path).read_text(encoding="utf-8")))
    assert settings
    for setting in settings:
        explicit = ["integrator=rk4"] * setting.startswith(("method.chart", "method.retract"))
        assert begin(monkeypatch, [*setting.split(), *explicit]) == 0, (setting, capsys.readouterr().err)


@pytest.mark.usefixtures("workplace")
def test_an_argument_that_does_not_exist_is_not_accepted(monkeypatch):
    assert begin(monkeypatch, ["problem=burgers", "lora.rang=4"]) != 0


def test_the_python_section_adapts_and_saves(tmp_path, monkeypatch, capsys):
    """With a budget of evaluations instead of seconds; errors are computed again, from the reference itself."""
    import torch

    from pinn_odelora.points import Points
    from problems.burgers import Burgers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PINN_ODELORA_CACHE", str(tmp_path / "cache"))
    _, adapting, looping = fenced(README, "python")
    found = {}
    exec(adapting.replace("seconds=10", "gradient_evals=200"), found)
    result, u, burgers = found["result"], found["u"], Burgers(nu=0.02)

    box = torch.rand(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x, t = 2 * box[:, :1] - 1, box[:, 1:]
    reference = burgers.reference(Points({"x": x, "t": t}))
    error = float((u(x, t).detach().reshape_as(reference) - reference).norm() / reference.norm())
    assert error < 2e-3 < 1e-1 < result.summary["rel_l2_before"]
    assert 0.5 * result.rel_l2 < error < 2 * result.rel_l2
    assert 200 <= result.gradient_evals < 220
    assert not result.diverged
    assert f"{result.rel_l2}" in capsys.readouterr().out
    assert np.abs(u(np.array([-1.0, 1.0]), 0.7)).max() < 1e-12  # the boundary condition is hard
    assert isinstance(found["values"], np.ndarray | float)

    before = safetensors.torch.load_file("my_run/pretrained.safetensors")
    assert all(torch.equal(x, before[name]) for name, x in found["net"].state_dict().items())  # net is not changed
    points = np.linspace(-1, 1, 21)
    assert np.allclose(pinn_odelora.load("my_run")(points, 0.5), u(points, 0.5), rtol=0, atol=1e-13)
    expected = {bare(row["file"]).rstrip("/") for row in table("What a run leaves")}
    here = {file.name for file in Path("my_run").iterdir()}
    assert here >= {"summary.json", "history.csv", "config.yaml", "adapter", "pretrained.safetensors"}
    assert here <= expected
    assert {file.name for file in Path("adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}

    exec(looping.replace("steps=50", "steps=8"), found)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(step) for step, *_ in printed] == [*range(len(printed))] or [int(step) for step, *_ in printed] == [
        *range(1, len(printed) + 1)
    ]
    assert len(printed) == 8
    assert float(printed[-1][1]) < 0.1 * float(printed[0][1])


def test_the_family_at_the_top_answers(tmp_path, monkeypatch, capsys):
    """With a budget of steps instead of seconds, and a page of few values."""
    monkeypatch.chdir(tmp_path)
    first, *_ = fenced(README, "python")
    shorter = first.replace("seconds=30", "budget=po.Budget(steps=36)").replace(
        '"burgers.html"', '"burgers.html", values=3'
    )
    found = {}
    exec(shorter, found)
    error, value = map(float, capsys.readouterr().out.split())
    assert error == found["u"].error < 1e-2
    assert value == found["u"](0.3, 0.5)
    assert found["slope"](0.3, 0.5).shape == ()
    assert Path("burgers.html").is_file()


# Tables.


def test_problems():
    rows = {bare(row["problem"]): row for row in table("Problems")}
    classes = program.problem_classes()
    assert sorted(rows) == sorted(classes) == members("problem")
    for name, cls in classes.items():
        row, problem = rows[name], cls()
        assert f"(problems/{name}.py)" in row["problem"]
        first, *others = cls.parameters()
        assert row["parameter"].split(",")[0] == first
        source, target = row["source → target"].split(" → ")
        assert (float(source), float(target)) == (cls.parameters()[first].source, getattr(problem, first))
        words = row["conditions"].split(", ")
        assert tuple(w for w in words if w in ("hard", "soft")) == cls.supports
        assert [w.removeprefix("periodic in ") for w in words if w.startswith("periodic")] == list(cls.periods)
        assert float(row["accuracy"]) == cls.accuracy
        for other in others:
            assert f"`problem.{other}`" in README
        # Written in one line of the class's docstring, up to the quantities that it is solved for.
        equation = row["equation"].split(",")[0].replace("−", "-")
        assert equation in cls.__doc__.splitlines()[0]


def test_methods():
    rows = {bare(row["method"]): row for row in table("Methods")}
    assert sorted(rows) == members("method")
    for name, row in rows.items():
        function = instantiate(yaml.safe_load((ROOT / f"configs/method/{name}.yaml").read_text()), _partial_=True).func
        integrated = "integrator" in function.__annotations__
        implicit = "by an implicit scheme" in row["what it is"]
        integrator = LinearlyImplicit() if implicit else RungeKutta(tableau.EULER)
        method = function(integrator=integrator) if integrated else function()
        assert isinstance(method, Method)
        assert row["trains"] == method.trains
        assert integrated == (implicit or "by any integrator" in row["what it is"])
        paper = re.sub(r"\]\(.*?\)", "", row["paper"]).replace("([", "arXiv ").rstrip(")")
        for part in paper.replace(" arXiv", ", arXiv").split(", "):
            assert part in function.__doc__, (name, part)


def test_integrators():
    rows = {bare(row["integrator"]): row for row in table("Integrators")}
    assert sorted(rows) == members("integrator")
    default = yaml.safe_load((ROOT / "configs/train.yaml").read_text())["defaults"]
    assert {"integrator": next(name for name, row in rows.items() if "(default)" in row["integrator"])} in default
    for name, row in rows.items():
        scheme = getattr(tableau, name.upper(), None)
        settings = yaml.safe_load((ROOT / f"configs/integrator/{name}.yaml").read_text())
        made = instantiate({key: value for key, value in settings.items() if key != "defaults"})
        if scheme is None:
            orders = {LinearlyImplicit: 1, ROS2: 2, RKC: getattr(made, "order", None)}
            assert int(row["order"]) == orders[type(made)]
            continue
        assert made.tableau is scheme
        assert (row["what a step evaluates"].split()[0], int(row["order"])) == (str(scheme.stages), scheme.order)
        assert row["embedded order"] == (str(scheme.embedded_order) if scheme.embedded else "–")
        assert row["stable up to h abs(λ)"] == f"{scheme.real_stability:.2f}"


def test_files_of_a_run():
    from pinn_odelora.manifest import MANIFEST
    from pinn_odelora.runs import folder as files

    names = {value for name, value in vars(files).items() if name.isupper() and isinstance(value, str)}
    reference = (ROOT / "docs/reference/run-folder.md").read_text(encoding="utf-8")
    for rows in (table("What a run leaves"), table("Files of a run", reference)):
        assert {bare(row["file"]).rstrip("/") for row in rows} == names | {
            "solution.png",
            "history.png",
            "wandb",
            MANIFEST,
        }


# Files, links, and what is said twice.


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


@every_document
def test_every_file_named_exists(path):
    """Names in backquotes that begin with a folder of the repository, those of a lesson's own files left out."""
    folders = ("pinn_odelora/", "problems/", "configs/", "tests/", "benchmarks/", "docs/", ".ci/")
    taught = re.findall(r"^`(\S+)`:$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name in re.findall(r"`([\w.\-]+/[\w.\-/]*)`", path.read_text(encoding="utf-8")):
        if name.startswith(folders) and name not in taught:
            assert (ROOT / name).exists(), name


def test_the_expected_output_is_that_of_a_run():
    block = README.split("<!-- expected output -->")[1].split("```")[1]
    number = r"[\d.]+(?:e[+-]\d+)?"
    line = rf"burgers, odelora: relative L2 {number} -> {number} in \d+ steps, \d+ gradient evaluations, {number} s; "
    assert re.search(line + r"files in (?:\S+/)?runs/burgers-odelora-\d+-\d+$", block, flags=re.MULTILINE), block


def test_version_and_licence_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == pinn_odelora.__version__
    assert citation["license"] == project["license"]
    assert pinn_odelora.__version__ in (ROOT / "CHANGELOG.md").read_text()
    for reference in citation["references"]:
        assert reference["url"] in README
        assert reference["title"] in README
