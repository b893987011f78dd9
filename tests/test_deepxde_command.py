"""python -m pinn_odelora deepxde: a script as it is, with our training in place of its own."""

import sys

import pytest

from pinn_odelora import __main__ as program
from pinn_odelora.commands import deepxde as command
from pinn_odelora.errors import InputError

SCRIPT = """
import numpy as np
import deepxde as dde
import beside

k = 1.0
STEPS, NAME = 100, "net"


def main():
    time = dde.geometry.TimeDomain(0, 1)
    conditions = [dde.icbc.IC(time, lambda t: beside.START, lambda _, on_initial: on_initial)]
    ode = lambda t, u: dde.grad.jacobian(u, t) + k * u
    data = dde.data.PDE(time, ode, conditions, 20, 2, solution=lambda t: np.exp(-k * t), num_test=50)
    model = dde.Model(data, dde.nn.FNN([1, 10, 10, 1], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-3, metrics=["l2 relative error"])
    model.train(iterations=STEPS)
    model.compile("L-BFGS")
    losshistory, train_state = model.train()
    print("END", k, len(losshistory.steps), float(np.abs(model.predict(np.array([[1.0]])) - np.exp(-k)).max()))


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "beside.py").write_text("START = 1.0\n")
    file = tmp_path / "decay.py"
    file.write_text(SCRIPT)
    yield file
    sys.modules.pop("beside", None)


def test_a_script_is_trained_and_goes_on(script, capsys):
    before = list(sys.path)
    assert program.main(["deepxde", str(script), "--seconds", "1"]) == 0
    assert sys.path == before
    said = capsys.readouterr().out
    assert said.count("pinn_odelora: ") == 1
    assert "full_implicit: relative L2 " in said
    k, rows, error = (float(x) for x in said.split("END ")[1].split())
    assert (k, rows) == (1.0, 1)
    assert error < 1e-3


def test_with_another_value_the_trained_network_is_adapted(script, capsys):
    assert program.main(["deepxde", str(script), "--set", "k=1.5", "--seconds", "1", "--rank", "2"]) == 0
    said = capsys.readouterr().out
    assert [line.split(",")[1].split(":")[0].strip() for line in said.splitlines() if "pinn_odelora: " in line] == [
        "full_implicit",
        "odelora",
    ]
    k, _, error = (float(x) for x in said.split("END ")[1].split())
    assert said.count("END") == 1
    assert k == 1.5
    assert error < 1e-3


def test_numbers_are_exchanged_where_the_script_sets_them():
    tree = command.ast.parse("a = 1\nb = c = 2.0\nd = -4\ne = [a]\n")
    changed = command.ast.unparse(command.with_numbers(tree, {"a": 7, "d": 0.5}))
    assert changed.splitlines() == ["a = 7", "b = c = 2.0", "d = 0.5", "e = [a]"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.py"], "nowhere.py cannot be read: No such file"),
        (["SCRIPT", "--set", "Re=40"], "Unknown number set at the top level of the script: 'Re'; allowed: k."),
        (["SCRIPT", "--set", "k"], "--set k must be NAME=number, as in --set Re=40."),
        (["SCRIPT", "--set", "k=open('x')"], "must be NAME=number"),
        (["SCRIPT", "--restore", "net.pt"], "--restore is for adapting: give --set NAME=number, too."),
        (["SCRIPT", "--set", "k=2", "--restore", "no.pt"], "no.pt"),
    ],
)
def test_bad_input_is_one_sentence(script, capsys, arguments, said):
    assert program.main(["deepxde", *(str(script) if a == "SCRIPT" else a for a in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_a_call_for_no_iterations_is_deepxdes_own(script):
    """It tells the losses that a script weighs its terms by."""
    script.write_text(SCRIPT.replace("    model.train(iterations=STEPS)\n", "    model.train(0)\n" * 2))
    trained = []
    command.execute(script, command.parsed(script), trained.append)
    (model,) = trained
    assert model.losshistory.steps == [0, 0]
    assert model.train_state.step == 0


def test_a_script_that_never_trains_or_never_ends_is_told(tmp_path):
    file = tmp_path / "script.py"
    file.write_text("import deepxde\n")
    with pytest.raises(InputError, match=r"script\.py never calls model\.train"):
        command.execute(file, command.parsed(file), lambda model: None)
    loop = "import deepxde as d\nm = d.Model(None, None)\nwhile True:\n    m.train(1)\n"
    with pytest.raises(InputError, match=r"has called model\.train 20 times"):
        command.execute(file, command.ast.parse(loop), lambda model: None)
    file.write_text("a = (\n")
    with pytest.raises(InputError, match=r"script\.py is no Python"):
        command.parsed(file)
