"""Advice on the rank from the command line: the table, what a run's keys do, and invalid input."""

import re

import pytest
import torch

from pinn_odelora import LoRA, Sampling, suggest_rank
from pinn_odelora.__main__ import main
from pinn_odelora.checkpoints import save_network
from pinn_odelora.config import suggesting
from pinn_odelora.nets import MLP
from problems.burgers import Burgers

SHORT = ("net.width=10", "net.depth=3", "points.interior=60", "points.boundary=20", "pretrain.adam_steps=3")
QUICK = (*SHORT, "pretrain.natural_gradient_steps=0")


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """``typed(*arguments)``: exit code, output and messages of ``python -m pinn_odelora suggest-rank``."""
    monkeypatch.setenv("PINN_ODELORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main(["suggest-rank", *arguments])
        return code, *capsys.readouterr()

    return call


def rows(out):
    """The numbers of the table, by rank, without the measured seconds."""
    found = re.findall(r"^ +(\d+) +(\d+) +(\S+) +(\d+)% +(\d+) +(\S+)", out, flags=re.MULTILINE)
    return {int(rank): (int(P), float(q), int(gained), int(batch)) for rank, P, q, gained, batch, _ in found}


def test_the_table_is_that_of_the_function_for_the_same_network(typed, tmp_path):
    net = MLP(2, 1, width=10, depth=3, generator=torch.Generator().manual_seed(5)).double()
    save_network(net, tmp_path / "mine.safetensors", {})
    arguments = (*SHORT, "pretrain.checkpoint=mine.safetensors", "problem.nu=0.03", "seed=7", "lora.also=[last,biases]")
    code, out, said = typed("problem=burgers", *arguments, "tolerance=0.2", "--plot", "ranks.png")
    assert code == 0
    assert said.startswith("Pretrained network (checkpoint)")
    points, lora = Sampling(interior=60, boundary=20), LoRA(also=("last", "biases"))
    advice = suggest_rank(net, Burgers(nu=0.03), tolerance=0.2, lora=lora, points=points, seed=7)
    expected = {x.rank: (x.dimension, x.residual, x.fraction, x.batch) for x in advice.predictions}
    assert rows(out).keys() == expected.keys() == {1, 2, 4, 8}
    for rank, (P, q, gained, batch) in rows(out).items():
        dimension, residual, fraction, size = expected[rank]
        assert (P, batch) == (dimension, size)
        assert q == pytest.approx(residual, rel=6e-3)
        assert gained == pytest.approx(100 * fraction, abs=0.51)
    for sentence in advice.conclusions()[1:]:
        assert sentence in out
    assert "To leave 0.2 of the residual" in out
    assert out.count("best at equal seconds") == 2  # in the table, and in a sentence
    assert out.splitlines()[-1] == "ranks.png"
    assert (tmp_path / "ranks.png").stat().st_size > 5000


def test_a_network_that_is_pretrained_here_is_kept_for_the_next_time(typed, tmp_path):
    code, out, said = typed("problem=heat", *QUICK, "pretrain.source.kappa=0.1")
    assert code == 0
    assert "Pretraining Heat" in said
    assert [*(tmp_path / "cache").glob("heat-*.safetensors")]
    again, same, said = typed("problem=heat", *QUICK, "pretrain.source.kappa=0.1")
    assert again == 0
    assert "Pretrained network (cache)" in said
    assert rows(out) == rows(same)
    assert not [*tmp_path.glob("runs*")]


def test_matrices_are_advised_on_with_their_own_settings(typed):
    code, out, _ = typed("problem=matrix_sensing", "problem.rows=8", "problem.columns=8")
    assert code == 0
    assert rows(out).keys() == {1, 2, 4, 8}
    assert {P: r for r, (P, *_) in rows(out).items()} == {r * (16 - r): r for r in (1, 2, 4, 8)}
    assert "holds that far" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("problem=burger",), "Unknown problem 'burger' (did you mean 'burgers'?)"),
        (("problem=burgers", "tolerance=0"), "tolerance is 0.0, but it must be a finite number above 0 or null."),
        (("problem=burgers", "tolerance=-1"), "tolerance is -1.0, but it must be a finite number above 0 or null."),
        (("problem=burgers", "tolerance=small"), "tolerance is small, but it must be a finite number above 0 or null."),
        (("problem=burgers", "lora.rank=4"), "lora.rank is given, but it has no effect on suggest-rank: leave it out."),
        (("problem=burgers", "method=full_adam"), "method is given, but it has no effect on suggest-rank"),
        (("problem=burgers", "budget.seconds=3"), "budget.seconds is given, but it has no effect on suggest-rank"),
        (("problem=burgers", "problem.nu=unknown"), "problem.nu is unknown, but it must be a number for suggest-rank."),
        (("problem=burgers", "problem.nu=-1"), "problem.nu is -1, but it must be"),
        (("problem=burgers", "lora.start=zero"), "lora.start is zero, but it must be pissa"),
        (("problem=burgers", "net.depth=2", "lora.targets=nothing"), "nothing"),
        (("problem=burgers", "pretrain.checkpoint=there.pt"), "pretrain.checkpoint is there.pt, but it must be"),
        (("problem=burgers", "nu=0.1"), "Unknown key 'nu'"),
        (("problem=burgers", "problem"), "Cannot read the argument"),
        (("problem=burgers", "points.interior=0"), "points.interior is 0, but it must be"),
    ],
)
def test_invalid_input_is_one_sentence_before_any_work(typed, monkeypatch, arguments, sentence):
    monkeypatch.setattr(suggesting, "pretrained", lambda *_: pytest.fail("a network is trained"))
    code, out, said = typed(*arguments)
    assert (code, out) == (2, "")
    assert sentence in said
    assert said.count("\n") == 1


def test_a_checkpoint_of_another_network_is_a_sentence(typed, tmp_path):
    net = MLP(2, 1, width=12, depth=3, generator=torch.Generator().manual_seed(5)).double()
    save_network(net, tmp_path / "other.safetensors", {})
    code, out, said = typed("problem=burgers", *QUICK, "pretrain.checkpoint=other.safetensors")
    assert (code, out) == (2, "")
    assert said.count("\n") == 1
    assert "other.safetensors" in said


def test_without_the_configuration_the_function_is_named(typed, monkeypatch, tmp_path):
    monkeypatch.setattr(suggesting, "CONFIGS", tmp_path / "configs")
    code, _, said = typed("problem=burgers")
    assert code == 2
    assert "which is not installed: call pinn_odelora.suggest_rank." in said
