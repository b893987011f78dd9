"""Problems of installed packages: found by name, never in the place of ours, broken ones named with their package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pinn_odelora import registry
from pinn_odelora.errors import InputError
from problems.burgers import Burgers

ROOT = Path(__file__).parents[1]
LESSON = (ROOT / "docs/guide/your-own-problem.md").read_text(encoding="utf-8")
WAVE = re.search(r"^`problems/wave.py`:\n\n```python\n(.*?)^```$", LESSON, flags=re.MULTILINE | re.DOTALL)[1]
TABLE = re.search(r'^\[project.entry-points."pinn_odelora.problems"\]\n(.*?)^```$', LESSON, re.MULTILINE | re.DOTALL)[1]
OURS = sorted(path.stem for path in (ROOT / "configs/problem").glob("*.yaml"))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package with entry points on the path as pip would leave it, and its module with the lesson's problem."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(entry_points, package="acme-waves", source=WAVE):
        folder = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[pinn_odelora.problems]\n{entry_points}\n")
        module = tmp_path / package.replace("-", "_")
        module.mkdir()
        (module / "__init__.py").touch()
        (module / "wave.py").write_text(source, encoding="utf-8")
        return tmp_path

    yield installed
    for name in [name for name in sys.modules if name.startswith(("acme_", "my_package"))]:
        del sys.modules[name]


def test_the_problems_of_this_repository():
    assert sorted(registry.problem_classes()) == OURS
    assert registry.problem_class("burgers") is Burgers
    assert registry.targets() == {}


def test_the_lessons_entry_point_brings_its_problem(install):
    install(TABLE.replace('"', ""), package="my-package")
    assert registry.targets() == {"wave": "my_package.wave.Wave"}
    assert "my_package" not in sys.modules
    cls = registry.problem_class("wave")
    assert cls(c=2.0).c == 2.0
    assert registry.problem_classes()["wave"] is cls
    assert sorted(registry.problem_classes()) == sorted([*OURS, "wave"])


def test_an_unknown_name_is_answered_with_the_nearest(install):
    install("acme_wave = acme_waves.wave:Wave")
    for typed, meant in (("burger", "burgers"), ("acme_wav", "acme_wave")):
        with pytest.raises(InputError, match=rf"^Unknown problem '{typed}' \(did you mean '{meant}'\?\); allowed: .*"):
            registry.problem_class(typed)


def test_a_name_that_is_taken_is_refused_with_both_sources(install):
    install("heat = acme_waves.wave:Wave")
    for ask in (registry.problem_classes, registry.targets, lambda: registry.problem_class("heat")):
        with pytest.raises(
            InputError, match=r"^The problem heat comes both from problems/heat.py and from the package"
        ):
            ask()


def test_two_packages_with_one_name_are_refused(install):
    install("wave = acme_waves.wave:Wave")
    install("wave = acme_tides.wave:Wave", package="acme-tides")
    with pytest.raises(InputError) as refused:
        registry.targets()
    assert str(refused.value) == (
        "The problem wave comes both from the package acme-tides and from the package acme-waves, but a name may have "
        "only one source: rename the problem or uninstall a package."
    )


@pytest.mark.parametrize(
    ("entry", "source", "sentence"),
    [
        ("wave = acme_waves.sea:Wave", WAVE, "acme_waves.sea:Wave, which cannot be imported: No module named"),
        ("wave = acme_waves.wave:Sea", WAVE, "acme_waves.wave:Sea, which cannot be imported: module 'acme_waves.wave'"),
        ("wave = acme_waves.wave:Wave", "1 / 0", "acme_waves.wave:Wave, which cannot be imported: division by zero."),
        ("wave = acme_waves.wave:math", WAVE, "acme_waves.wave:math, but that is no subclass of pinn_odelora.Problem."),
        ("wave = acme_waves.wave", WAVE, "acme_waves.wave, but it must be a class, as in acme_waves.wave:Wave."),
    ],
)
def test_a_broken_entry_point_is_a_sentence_that_names_its_package(install, entry, source, sentence):
    install(entry, source=source)
    for ask in (registry.problem_classes, lambda: registry.problem_class("wave")):
        with pytest.raises(InputError) as refused:
            ask()
        assert str(refused.value).startswith(f"The package acme-waves declares the problem wave as {sentence}")


def test_a_broken_package_does_not_keep_others_from_their_problems(install):
    install("wave = acme_waves.sea:Wave")
    assert registry.problem_class("burgers") is Burgers


def test_a_name_that_cannot_be_typed_is_refused(install):
    install("a wave = acme_waves.wave:Wave")
    with pytest.raises(InputError, match=r"^The package acme-waves names a problem 'a wave', but a name has letters"):
        registry.targets()


def test_names_are_found_without_torch():
    code = "import sys; from pinn_odelora import registry; registry.targets(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "False\n"


def train(folder, *arguments):
    """train.py with a folder of installed packages on its path."""
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import runpy; runpy.run_path('train.py', None, '__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def test_the_command_line_has_an_installed_problem(install):
    folder = install("acme_wave = acme_waves.wave:Wave")
    run = train(folder, "problem=acme_wave", "problem.c=3", "--cfg", "job", "--package", "problem")
    assert (run.returncode, run.stderr) == (0, "")
    assert "_target_: acme_waves.wave.Wave" in run.stdout
    assert "c: 3" in run.stdout


def test_its_values_are_checked_by_the_bounds_that_it_declares(install):
    folder = install("acme_wave = acme_waves.wave:Wave")
    run = train(folder, "problem=acme_wave", "problem.c=-1")
    assert (run.returncode, run.stderr) == (2, "problem.c is -1, but it must be a finite number above 0 or unknown.\n")
    run = train(folder, "problem=acme_wav")
    assert run.returncode == 2
    assert run.stderr.startswith("Unknown problem 'acme_wav' (did you mean 'acme_wave'?); allowed: ")


def test_the_command_line_refuses_a_name_that_is_taken(install):
    run = train(install("heat = acme_waves.wave:Wave"), "problem=burgers")
    assert run.returncode == 2
    assert run.stderr.startswith("The problem heat comes both from problems/heat.py and from the package acme-waves")
    assert run.stderr.count("\n") == 1


def test_a_problem_file_that_cannot_be_imported_is_a_sentence_with_its_line(tmp_path, monkeypatch):
    import problems

    monkeypatch.setattr(problems, "__path__", [*problems.__path__, str(tmp_path)])
    (tmp_path / "unfinished.py").write_text("import math\nmath.sqrt('2')\n")
    with pytest.raises(InputError) as refused:
        registry._own_class("unfinished")
    assert str(refused.value) == (
        "problems/unfinished.py cannot be imported: TypeError: must be real number, not str (unfinished.py, line 2)."
    )
