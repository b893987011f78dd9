"""The linearised regime of a run: its numbers against the network's own, and the command line."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_family_commandline import SMALL, cache, typed  # noqa: F401
from test_linearisation import Net

import pinn_odelora as po
from pinn_odelora.diagnostics import errors
from pinn_odelora.errors import InputError
from pinn_odelora.integrators import LinearlyImplicit, RungeKutta
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.methods import lora_gd, odelora
from pinn_odelora.ntk.adapting import adapt_linearised, check_settings
from pinn_odelora.ntk.settings import Regime
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

LINEARISED = ["training.regime=linearised", *SMALL, "net.depth=3"]
FILES = [
    *(
        "code",
        "config.yaml",
        "history.csv",
        "manifest.json",
        "network.safetensors",
        "pretrained.safetensors",
        "provenance.json",
    ),
    *("start.json", "summary.json"),
]


def network(problem, seed=1):
    return Net(problem.inputs, len(problem.fields), torch.tanh, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "problem", [Burgers(), Burgers(conditions="soft"), Kovasznay()], ids=lambda p: type(p).__name__
)
def test_small_changes_are_those_of_the_network(problem):
    """δ of size ε: what the linearised model and the network say differs by ε²."""
    net = network(problem)
    defects = []
    for h in (1e-4, 1e-5):
        scheme = lora_gd(RungeKutta(EULER, h=h))
        drawn = {"interior": 40, "boundary": 10, "budget": po.Budget(steps=1), "lora": po.LoRA(rank=2)}
        found = adapt_linearised(net, problem, method=scheme, **drawn, test=64)
        size = sum(x.square().sum() for x in found.delta.values()).sqrt()
        changes = (found.loss - found.loss_before, found.network_loss - found.loss_before)
        assert changes[0] < 0
        defects.append((abs(changes[0] - changes[1]), abs(found.rel_l2 - found.network_rel_l2), float(size)))
    (loss, error, size), (loss2, error2, size2) = defects
    assert size / size2 == pytest.approx(10, rel=1e-3)
    assert loss / loss2 == pytest.approx(100, rel=0.3)
    assert error / error2 == pytest.approx(100, rel=0.3)


def test_the_numbers_are_those_of_loss_and_error():
    problem = Burgers()
    net = network(problem)
    drawn = {"interior": 40, "boundary": 10, "seed": 3}
    found = adapt_linearised(net, problem, **drawn, lora=po.LoRA(rank=2), budget=po.Budget(steps=4), test=64)
    system = System(problem, Solution(problem, net))
    points = draw_points(system.terms, 40, 10, 3)
    assert found.loss_before == pytest.approx(float(system.loss(points).total.detach()), rel=1e-12)
    moved = System(problem, Solution(problem, found.net))
    assert found.network_loss == pytest.approx(float(moved.loss(points).total.detach()), rel=1e-12)
    assert found.network_rel_l2 == errors(problem, Solution(problem, found.net), 64)["error/rel_l2"]
    for name, D in found.delta.items():
        change = found.net.get_submodule(name).weight - net.get_submodule(name).weight
        assert torch.allclose(change, D, atol=1e-14)
    assert found.loss < found.loss_before
    assert found.summary["steps"] == 4
    assert f"{found.rel_l2:.2e}" in repr(found)


def test_an_adaptation_and_its_linearisation_take_the_same_first_step():
    """With the same factors, start and points the first Euler step is the same; the second is not."""
    problem, h = Burgers(), 1e-3
    net = network(problem)
    for steps, same in ((1, True), (3, False)):
        settings = {"lora": po.LoRA(rank=2, also=(), scale=0.7), "budget": po.Budget(steps=steps), "seed": 4}
        method = odelora(RungeKutta(EULER, h=h))
        found = adapt_linearised(net, problem, method=method, interior=40, boundary=10, **settings)
        run = po.adapt(net, problem, method=method, points=po.Sampling.fixed(40, 10), device="cpu", **settings)
        for name, D in found.delta.items():
            change = run.net.get_submodule(name).weight - net.get_submodule(name).weight
            assert torch.allclose(change.detach(), D, rtol=1e-7, atol=1e-10) == same


def test_decay_keeps_the_change_small():
    problem = Burgers()
    net = network(problem)
    sizes = []
    for decay in (0.0, 0.3):
        lora = po.LoRA(rank=2, start="orthonormal", start_size=0.5)
        method = lora_gd(RungeKutta(EULER, h=1e-2))
        settings = {"interior": 40, "boundary": 10, "lora": lora, "budget": po.Budget(steps=200)}
        found = adapt_linearised(net, problem, method=method, decay=decay, **settings)
        assert found.failure == ""
        sizes.append(float(sum(x.square().sum() for x in found.delta.values())))
    assert sizes[1] < sizes[0]


def refused(sentence):
    return pytest.raises(InputError, match=re.escape(sentence))


def test_bad_input_is_refused_in_one_sentence():
    problem = Burgers()
    net = network(problem)
    with refused("decay is -1, but it must be a finite number of at least 0."):
        Regime("linearised", -1)
    with refused("decay is 0.1, but it must be 0 unless the regime is linearised."):
        Regime(decay=0.1)
    with refused("decay is -0.1"):
        adapt_linearised(net, problem, decay=-0.1)
    with refused("start is 'pissa', but it must be zero or orthonormal with decay"):
        adapt_linearised(net, problem, decay=0.1)
    with refused("rank is 'adaptive', but it must be a whole number or auto"):
        adapt_linearised(net, problem, lora=po.LoRA(rank="adaptive"))
    with refused("rank is 7, but it must be at most 6 for layer linears.2"):
        adapt_linearised(net, problem, lora=po.LoRA(rank=7))
    with refused("lora_gd with an implicit scheme knows no weight decay"):
        adapt_linearised(net, problem, method=lora_gd(LinearlyImplicit()), decay=0.1, lora=po.LoRA(start="zero"))


def test_checking_leaves_the_network_as_it_is():
    net = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 5))
    net = torch.nn.Sequential(net, torch.nn.Tanh(), torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    before = {name: x.clone() for name, x in net.state_dict().items()}
    check_settings(net, Burgers(), odelora(LinearlyImplicit()), po.LoRA(rank=2), 0.0)
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].dtype == x.dtype and torch.equal(after[name], x) for name, x in before.items())


# The command line.


def test_the_line_leaves_a_folder_that_can_be_loaded(typed, tmp_path):  # noqa: F811
    line = [*LINEARISED, "points=fixed", "points.interior=60", "budget.steps=12", "lora.rank=2", "output_dir=run"]
    code, *_ = typed(*line)
    assert code == 0
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == FILES
    summary = json.loads((folder / "summary.json").read_text())
    page = (Path(__file__).parents[1] / "docs/reference/columns.md").read_text(encoding="utf-8")
    table = page.split("## Names in the `summary.json` of a linearised model\n\n")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()]
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == summary.keys()
    assert summary["regime"] == "linearised"
    assert summary["steps"] == 12
    assert summary["rows"] == 60
    assert summary["loss"] < summary["loss_before"]
    assert len((folder / "history.csv").read_text().splitlines()) == 3
    before, after = (load_file(folder / name) for name in ("pretrained.safetensors", "network.safetensors"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "linears.1.weight",
        "linears.2.weight",
    }
    # Interrupted, it starts again; finished, there is nothing to continue.
    code, said = typed(f"resume={folder}")
    assert code == 2
    assert "is a finished run without last.ckpt" in said[-1]
    (folder / "summary.json").unlink()
    assert typed(f"resume={folder}")[0] == 0
    again = json.loads((folder / "summary.json").read_text())
    assert {k: x for k, x in again.items() if "seconds" not in k and k != "pretrain_origin"} == {
        k: x for k, x in summary.items() if "seconds" not in k and k != "pretrain_origin"
    }
    assert len((folder / "history.csv").read_text().splitlines()) == 3
    u = po.load(folder)
    assert errors(Burgers(), u.solution, 512)["error/rel_l2"] == pytest.approx(summary["network_rel_l2"], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["training.regime=linearized"], "training.regime is linearized, but it must be network or linearised."),
        (["training.decay=1e-3"], "training.decay is 0.001, but it must be 0 unless the regime is linearised."),
        ([LINEARISED[0], "training.decay=1"], "lora.start is pissa, but it must be zero or orthonormal with decay"),
        ([LINEARISED[0], "data.weight=3"], "data.weight is given, but it has no effect on the linearised model"),
        ([LINEARISED[0], "points=fresh"], "points are new at every step, but those of the linearised model stay"),
        ([LINEARISED[0], "lora.rank=adaptive"], "lora.rank is adaptive, but it must be a whole number or auto"),
        ([LINEARISED[0], "family.nu=[0.05,0.03]"], "training.regime is given, but it has no effect on a family"),
        ([LINEARISED[0], "lora.rank=9", "net.width=8"], "lora.rank is 9, but it must be at most 8"),
    ],
)
def test_what_does_not_fit_is_one_sentence(typed, arguments, sentence, tmp_path):  # noqa: F811
    code, *said = typed(*arguments, "output_dir=run")
    assert code == 2
    assert any(sentence in str(line) for line in said)
