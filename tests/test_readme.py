"""The README is true: its commands are accepted, its Python runs, its tables and file names are those of the code."""

import logging
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import hydra
import numpy as np
import pytest
import yaml
from hydra.utils import instantiate

import pinn_odelora
from pinn_odelora import __main__ as program
from pinn_odelora import config as commandline
from pinn_odelora.integrators import ROS2, Chebyshev, LinearlyImplicit, RungeKutta, tableau
from pinn_odelora.nets import MLP
from pinn_odelora.optim.methods import Method

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = "pip install -c constraints.txt -e . && python train.py problem=burgers"
SECOND = "pip install -c constraints.txt -e '.[test]' && pytest"

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def fenced(text, language):
    """The contents of all blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def table(heading):
    """The rows of the table in a section, as dictionaries from its header; names lose links and backquotes."""
    section = re.split(r"^## ", README, flags=re.MULTILINE)
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


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the README takes for granted."""
    (tmp_path / "measured.csv").write_text("x,t,u\n0.5,0.5,0.1\n")
    (tmp_path / "network.pt").write_bytes(b"")
    (tmp_path / "mine.py").write_text("class Net:\n    def __init__(self, inputs, outputs): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path
    root.handlers[:], root.level = handlers, level


def begin(monkeypatch, arguments):
    """The exit code of train.py with a run that only saves its configuration."""

    @hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="train")
    def train(cfg):
        commandline.save_config(*commandline.begin(cfg))

    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    try:
        return commandline.run(train)
    except SystemExit as asked_for_help:
        return asked_for_help.code


def commands(text):
    for block in fenced(text, "bash"):
        for line in block.splitlines():
            for part in line.split(" && "):
                if words := shlex.split(part, comments=True):
                    yield words


def test_every_command_line_is_accepted(workplace, monkeypatch, capsys):
    """In the order of the README and in one folder, so that a run that is continued was begun before."""
    seen = set()
    for words in commands(README):
        match words:
            case ["python", "train.py", *arguments]:
                code = begin(monkeypatch, [os.path.expandvars(a) for a in arguments])
                assert code == 0, (words, capsys.readouterr().err)
            case ["python", "-m", "pinn_odelora", *arguments]:
                program.parser().parse_args(arguments)
                seen.add(arguments[0])
            case _:
                assert " ".join(words).replace(".[test]", "'.[test]'") in f"{FIRST} {SECOND}"
    assert seen == {"list", "predict", "compare", "export"}
    assert (workplace / "runs" / "sweep" / "5" / "config.yaml").exists()


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("path", ["README.md", "docs/choosing-a-method.md"])
def test_every_setting_in_a_sentence_is_accepted(path, monkeypatch, capsys):
    settings = set(re.findall(r"`([a-z_.]+=[^`]+)`", (ROOT / path).read_text(encoding="utf-8")))
    assert settings
    for setting in settings:
        assert begin(monkeypatch, setting.split()) == 0, (setting, capsys.readouterr().err)


@pytest.mark.usefixtures("workplace")
def test_an_argument_that_does_not_exist_is_not_accepted(monkeypatch):
    assert begin(monkeypatch, ["problem=burgers", "lora.rang=4"]) != 0


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
def test_the_python_examples_run(tmp_path, monkeypatch, compose, adapt):
    """In a folder with a short run of the network that they expect."""
    from pinn_odelora.runs import conclude

    module, _ = adapt(compose(f"output_dir={tmp_path / 'my_run'}", "net.width=40", "budget.steps=2"))
    conclude.save_weights(module, tmp_path / "my_run")
    monkeypatch.chdir(tmp_path)
    training, using = fenced(README, "python")
    _, body = re.split(r"\n\n(?=problem)", training)
    assert len(body.splitlines()) == 12

    variables = {}
    exec(training, variables)
    net = MLP(inputs=2, outputs=1)
    variables["load_network"](net, "my_run/pretrained.safetensors")
    system = variables["System"](variables["problem"], variables["Solution"](variables["problem"], net))
    assert variables["loss"].item() < 0.999 * system.loss(variables["points"]).total.item()

    exec(using, variables)
    assert variables["values"].shape == (201,)
    assert np.isfinite(variables["values"]).all()
    assert abs(variables["values"][0]) < 1e-12  # u(-1, t) = 0 is hard


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
            orders = {LinearlyImplicit: 1, ROS2: 2, Chebyshev: getattr(made, "order", None)}
            assert int(row["order"]) == orders[type(made)]
            continue
        assert made.tableau is scheme
        assert (row["what a step evaluates"].split()[0], int(row["order"])) == (str(scheme.stages), scheme.order)
        assert row["embedded order"] == (str(scheme.embedded_order) if scheme.embedded else "–")
        assert row["stable up to h abs(λ)"] == f"{scheme.real_stability:.2f}"


def test_files_of_a_run():
    from pinn_odelora.runs import folder as files

    names = {value for name, value in vars(files).items() if name.isupper()}
    listed = {bare(row["file"]).rstrip("/") for row in table("What a run leaves")}
    assert listed == names | {"solution.png", "history.png", "wandb"}


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
