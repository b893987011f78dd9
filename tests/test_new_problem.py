"""The commands new and check: what is written runs at once, and what is wrong ends with 1."""

import shlex
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate

from pinn_odelora import __main__ as program
from pinn_odelora.commands.check import meant

ROOT = Path(__file__).parent.parent


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder, importable; modules from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "options",
    [["--coords", "xyt", "--fields", "u", "v"], ["--coords", "xy"], ["--coords", "t", "--fields", "a,b"]],
    ids=" ".join,
)
def test_a_new_problem_passes_its_checks(options, elsewhere, capsys):
    assert program.main(["new", "my_equation", *options]) == 0
    assert sorted(path.name for path in elsewhere.iterdir()) == ["my_equation.py", "test_my_equation.py"]
    last = capsys.readouterr().out.splitlines()[-1]
    program_, chosen = shlex.split(last.removeprefix("Run it:   python "))
    assert Path(program_).samefile(ROOT / "train.py"), "this folder has none"
    assert chosen == "problem._target_=my_equation.MyEquation"
    written = {}
    exec((elsewhere / "test_my_equation.py").read_text(encoding="utf-8"), written)
    written["test_the_contract_holds"]()


def test_inside_the_repository_there_is_a_line_of_yaml_too(elsewhere, capsys):
    (elsewhere / "problems").mkdir()
    (elsewhere / "problems/__init__.py").touch()
    (elsewhere / "train.py").touch()
    (elsewhere / "configs/problem").mkdir(parents=True)
    assert program.main(["new", "my_equation"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Run it:   python train.py problem=my_equation"
    assert (elsewhere / "tests/test_my_equation.py").is_file()
    line = "_target_: problems.my_equation.MyEquation\n"
    assert (elsewhere / "configs/problem/my_equation.yaml").read_text(encoding="utf-8") == line


def test_what_is_written_can_be_named_to_the_command_line(elsewhere, compose):
    program.main(["new", "my_equation"])
    problem = instantiate(compose("problem._target_=my_equation.MyEquation", "+problem.k=0.3").problem)
    assert (type(problem).__name__, problem.k) == ("MyEquation", 0.3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["my-equation"], "The name is 'my-equation', but it must be lower-case words joined by _"),
        (["class"], "The name is 'class', but it must be lower-case words joined by _"),
        (["torch"], "There is a module or problem torch already, and nothing is overwritten; choose another name."),
        (["taken"], "taken.py exists, and nothing is overwritten; choose another name."),
        (["mine", "--coords", "xx"], "coords is 'xx', but it may have 'x' only once"),
        (["mine", "--fields", "T_s"], "fields has ('T_s',)"),
        (["mine", "--fields", "x"], "x is both a coordinate and a field"),
    ],
)
def test_names_are_checked_and_nothing_is_overwritten(arguments, sentence, elsewhere, capsys):
    (elsewhere / "taken.py").write_text("kept = True\n")
    assert program.main(["new", *arguments]) == 2
    assert capsys.readouterr().err.startswith(sentence.replace("fields has ('T_s',)", "fields has 'T_s'"))
    assert [path.name for path in elsewhere.iterdir() if path.suffix] == ["taken.py"]
    assert (elsewhere / "taken.py").read_text() == "kept = True\n"


def test_check_ends_with_1_where_something_fails_and_finds_files_and_classes(elsewhere, capsys):
    program.main(["new", "my_equation"])
    text = (elsewhere / "my_equation.py").read_text(encoding="utf-8")
    (elsewhere / "wrong.py").write_text(text.replace('"xx": -self.k', '"xx": self.k'), encoding="utf-8")
    assert program.main(["check", "my_equation"]) == 0
    assert "fails" not in capsys.readouterr().out
    assert program.main(["check", "wrong.py"]) == 1
    assert "pde at the reference │ fails" in capsys.readouterr().out
    assert list(meant("wrong")) == list(meant("wrong.MyEquation")) == ["MyEquation"]
    (elsewhere / "broken.py").write_text("1 / 0\n")
    for name, sentence in {
        "broken": "broken.py cannot be imported: division by zero.",
        "wrong.Equation": "Unknown problem in wrong: 'Equation' (did you mean 'MyEquation'?); allowed: MyEquation.",
        "absent.py": "There is no file absent.py.",
        "burger": "Unknown problem 'burger' (did you mean 'burgers'?)",
    }.items():
        assert program.main(["check", name]) == 2
        assert capsys.readouterr().err.startswith(sentence)
