"""Whatever a file is called, Hydra reads its name as it was typed, and a suggested command can be pasted."""

import random
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pinn_odelora.arguments import PATHS, given, quoted, readable, restore, spelled, unspelled

PARSER = OverridesParser.create()
NAMES = (
    *("epoch=9-step=100.ckpt", "数据.csv", "été.csv", "a(1).csv", "o'neil.csv", 'the "best".csv', "my data.csv"),
    *(
        "~/foo",
        r"C:\data\new.csv",
        "a,b.csv",
        "[1].csv",
        "{x: 1}.csv",
        "#1.csv",
        "2024",
        "1e5",
        "true",
        "a:b",
        "(",
        ")",
    ),
    *("\\", "\\'", "$HOME", "a&b;c", " a.csv", "a\nb", "-", "*.csv"),
)


def read(argument, several=False):
    """What Hydra makes of an argument: its value, or the values of a sweep."""
    (line,) = [a for a in readable([argument, *(["-m"] if several else [])]) if a != "-m"]
    override = PARSER.parse_override(line)
    if override.is_sweep_override():
        again = [PARSER.parse_override(f"x={value}") for value in override.sweep_string_iterator()]
        return [o.value() for o in again]
    return override.value()


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_read_as_it_was_typed(name, key):
    assert read(f"{key}={name}") == name
    assert read(f"+{key}={name}") == name


@pytest.mark.parametrize("name", NAMES)
def test_a_command_with_a_path_can_be_pasted(name):
    (word,) = shlex.split(given("resume", name))
    assert read(word) == name
    assert read(word, several=True) == name


def test_any_text_is_read_as_it_was_typed():
    rng = random.Random(0)
    for _ in range(150):
        name = "".join(rng.choices("ab1é数κ'\"\\,=()[]{}:~$#& \t-.|", k=rng.randint(1, 12)))
        argument = f"data.file={quoted(name)}"
        assert read(argument) == name
        assert readable(readable([argument])) == [argument]
        assert read(shlex.split(given("data.file", name))[0]) == name


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("data.file=a.csv,é.csv", ["a.csv", "é.csv"]),
        ("data.file='a,b.csv',c(1).csv", ["a,b.csv", "c(1).csv"]),
        ("data.file=choice(a.csv,b.csv)", ["a.csv", "b.csv"]),
        ("output_dir=a=1,null", ["a=1", None]),
        ("logger.name=é,数", ["é", "数"]),
    ],
)
def test_a_sweep_has_its_values_between_commas(typed, values):
    assert read(typed, several=True) == values


def test_a_comma_in_the_name_of_a_file_that_exists_is_none_between_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.csv").touch()
    assert read("data.file=a,b.csv", several=True) == "a,b.csv"
    (tmp_path / "a.csv").touch()
    (tmp_path / "c.csv").touch()
    assert readable(["data.file=a.csv,c.csv"]) == ["data.file=a.csv,c.csv"]  # Hydra asks for -m
    assert read("data.file=a.csv,d.csv") == "a.csv,d.csv"


@pytest.mark.parametrize(
    "argument",
    [
        *("problem=burgers", "seed=1,2", "lora.also=[last]", "family.nu=[0.05,0.006]", "problem.nu=1e-3", "--help"),
        *("net._target_=mine.Net", "output_dir=null", "output_dir=NULL", "resume=", "output_dir='a b'", "~data.file"),
        *('data.file="a(1).csv"', "data.file=${oc.env:FILE}", "hydra/launcher=processes", "logger.tags=['é']", "-m"),
        *("--config-dir=é", "problem.weights={pde: 1}", "logger.name=a b", "data.file=glob(*)", "nonsense"),
    ],
)
def test_what_hydra_reads_already_is_left_alone(argument):
    assert readable([argument]) == [argument]


def test_a_value_of_any_key_that_names_a_file_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh(1).msh").touch()
    (tmp_path / "1").touch()
    assert read("problem.mesh=mesh(1).msh") == "mesh(1).msh"
    assert read("problem.mesh=données.msh") == "données.msh"
    assert readable(["problem.mesh=other(1).msh", "seed=1"]) == ["problem.mesh=other(1).msh", "seed=1"]


def test_letters_of_a_key_are_spelled_and_restored():
    argument, other = readable(["problem.κ=0.3", "+problem.weights.été=2"])
    assert (argument, other) == ("problem._u3ba_=0.3", "+problem.weights._ue9_t_ue9_=2")
    assert unspelled(f"problem.{spelled('κ₂')} is 0.3") == "problem.κ2 is 0.3"  # as Python reads it
    assert spelled("µ") == spelled("μ")
    cfg = OmegaConf.create({"problem": {"nu": 1, "_u3ba_": 0.3, "weights": {"_ue9_t_ue9_": 2}}, "free": "${nowhere}"})
    restore(cfg, ["problem.κ", "problem.nu", "problem.weights.été", "free"])
    assert cfg.problem == {"nu": 1, "κ": 0.3, "weights": {"été": 2}}
