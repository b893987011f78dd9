"""A finished run is loaded as the function that was found, whoever made its network and problem."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.checkpoints import save_network
from pinn_odelora.config.load import family, load
from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.adapter_files import save_adapter
from pinn_odelora.lowrank.start import pissa
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

ROOT = Path(__file__).parent.parent
X, T = np.linspace(-0.9, 0.8, 7)[:, None], np.linspace(0.1, 0.9, 5)


def solution(problem, generator, dtype=torch.float64):
    return AdaptedSolution(problem, MLP(problem.inputs, len(problem.fields), generator=generator).to(dtype))


# The function.


def test_coordinates_are_broadcast_and_fields_come_last(generator):
    u = solution(Burgers(), generator)
    values = u(X, T)
    assert values.shape == (7, 5)
    assert values[3, 2] == pytest.approx(float(u(X[3, 0], T[2])), rel=1e-14)
    several = solution(Kovasznay(), generator)(X, T)
    assert several.shape == (7, 5, 3)


def test_values_are_those_of_the_ansatz_with_the_network(generator):
    u = solution(Burgers(), generator)
    p = Points({"x": torch.tensor([[0.3]], dtype=torch.float64), "t": torch.tensor([[0.4]], dtype=torch.float64)})
    g, m = u.problem.ansatz(p)
    expected = g + m * u.solution.net(torch.cat([p.x, p.t], dim=1))
    assert float(u(0.3, 0.4)) == pytest.approx(float(expected.detach()), rel=1e-14)


def test_gradients_flow_to_tensors_and_arrays_need_none(generator):
    u = solution(Burgers(), generator)
    x = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(u(x, 0.4).sum(), x)
    h = 1e-5
    assert float(slope) == pytest.approx(float(u(0.3 + h, 0.4) - u(0.3 - h, 0.4)) / (2 * h), rel=1e-6)
    assert isinstance(u(X, T), np.ndarray)


def test_a_network_of_single_precision_is_asked_in_its_own(generator):
    u = solution(Burgers(), generator, torch.float32)
    assert u(X, T).dtype == np.float32
    assert u(torch.from_numpy(X), 0.5).dtype == torch.float32


def test_another_number_of_coordinates_is_refused(generator):
    with pytest.raises(InputError, match=r"^The solution is a function of x, t, but 1 were given\.$"):
        solution(Burgers(), generator)(0.3)


# A folder.


@pytest.fixture(params=["factors", "weights"])
def folder(pretrained_folder, request, generator):
    """What a run of each kind leaves, its steps replaced by drawn numbers."""
    path, net = pretrained_folder
    if request.param == "factors":
        put_factors(net, linear_targets(net, None), 2, 1.0, pissa, generator)
    with torch.no_grad():
        for p in (p for p in net.parameters() if p.requires_grad):
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    if request.param == "factors":
        save_adapter(net, path / "adapter", base="pretrained.safetensors")
    else:
        save_network(net, path / "network.safetensors")
    return path


def changed(folder, **parts):
    """The folder with other descriptions of network or problem in its configuration."""
    cfg = OmegaConf.load(folder / "config.yaml")
    for key, value in parts.items():
        cfg[key] = value
    OmegaConf.save(cfg, folder / "config.yaml")


def mine(**sizes):
    return MLP(2, 1, **{"width": 12} | sizes, generator=torch.Generator().manual_seed(99)).float()


def test_network_and_problem_of_the_caller_give_the_same_function(folder):
    expected = load(folder)(X, T)
    net = mine()
    before = net.linears[1].weight.detach().clone()
    assert np.array_equal(load(folder, net=net)(X, T), expected)
    assert torch.equal(net.linears[1].weight, before)
    assert isinstance(net.linears[1], torch.nn.Linear)
    (folder / "config.yaml").unlink()
    assert np.array_equal(load(folder, net, Burgers(nu=0.03))(X, T), expected)


@pytest.mark.parametrize(
    ("part", "described", "sentence"),
    [
        (
            "net",
            {"_target_": "builtins.dict"},
            r"cannot build the network here \(.*; give it: load\(run, net=\.\.\.\)\.$",
        ),
        ("net", {"_target_": "pinn_odelora.nets.MLP", "width": 9}, r"cannot build the network here \(.* does not fit"),
        ("net", {"_target_": "gone.Net"}, r"cannot build the network here \(.*'gone'.*; give it: load\(run, net="),
        # As one made by po.problem is described.
        ("problem", {"_target_": "pinn_odelora.equation.Wave"}, r"cannot build the problem here \(.*Wave.*; give it: "),
        ("problem", {"_target_": "pinn_odelora.equation.Equation"}, r"cannot build the problem here \(.*; give it: "),
        ("problem", {"_target_": "problems.gone.Gone"}, r"cannot build the problem here \(.*; give it: load\(run, pr"),
    ],
)
def test_what_the_configuration_cannot_build_has_to_be_given(folder, part, described, sentence):
    expected = load(folder)(X, T)
    changed(folder, **{part: described})
    with pytest.raises(InputError, match=sentence):
        load(folder)
    given = {"net": mine(), "problem": Burgers(nu=0.03)}[part]
    assert np.array_equal(load(folder, **{part: given})(X, T), expected)


def test_a_network_of_another_structure_is_refused(folder):
    with pytest.raises(InputError, match=r"does not fit: .*the network needs the layer sizes of the file"):
        load(folder, net=mine(width=13))


def test_coefficients_that_were_found_replace_those_of_the_given_problem(folder):
    (folder / "coefficients.json").write_text('{"amplitude": 1.5}')
    u = load(folder, problem=Burgers(nu=0.03))
    assert u.problem == dataclasses.replace(Burgers(nu=0.03), amplitude=1.5)
    assert float(u(0.5, 0.0)) == pytest.approx(-1.5)
    (folder / "coefficients.json").write_text('{"mass": 1.5}')
    with pytest.raises(InputError, match=r"coefficients.json is damaged, or belongs to another problem"):
        load(folder)


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "problem: {_target_: '${nowhere}'}\n"])
def test_a_configuration_that_is_none_is_refused(folder, text):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"holds no run: there is no config.yaml in it that can be read"):
        load(folder)


@pytest.mark.parametrize("old", ["points.rows=4000", "pretrain.finish=auto", "derivatives.compile=auto"])
def test_a_run_of_an_earlier_version_is_refused(folder, old):
    cfg, (key, value) = OmegaConf.load(folder / "config.yaml"), old.split("=")
    OmegaConf.update(cfg, key, value)
    OmegaConf.save(cfg, folder / "config.yaml")
    with pytest.raises(InputError, match=rf"holds a run of an earlier version, which cannot be read: {key} .*\.$"):
        load(folder)


def test_an_unfinished_run_is_refused(folder):
    for name in ("adapter", "network.safetensors"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"holds no finished run; continue it with: python train\.py resume="):
        load(folder)


def test_a_run_without_a_network_is_one_sentence(folder):
    """It was ended while the network was pretrained."""
    (folder / "pretrained.safetensors").unlink()
    for given in ({}, {"net": mine(), "problem": Burgers(nu=0.03)}):
        with pytest.raises(InputError, match=r"^.* holds no finished run; continue it with: python train") as found:
            load(folder, **given)
        assert found.value.__cause__ is found.value.__context__ is None


def test_a_folder_without_a_run_is_refused(tmp_path):
    for given in ({}, {"net": mine(), "problem": Burgers(nu=0.03)}):
        with pytest.raises(InputError, match=r"holds no run: there is no config.yaml in it"):
            load(tmp_path, **given)


def test_a_part_of_a_run_is_refused_with_the_folder_to_load(folder, tmp_path):
    for part in ("config.yaml", "pretrained.safetensors"):
        with pytest.raises(
            InputError, match=rf"{part} is not the folder of a run, but a part of one: load {folder}\.$"
        ):
            load(folder / part)
    (folder / "code").mkdir()
    with pytest.raises(InputError, match=rf"code is not the folder of a run, but a part of one: load {folder}\.$"):
        family(folder / "code")
    (alone := tmp_path / "alone.safetensors").touch()
    with pytest.raises(InputError, match=r"alone\.safetensors is not the folder of a run, but a file\.$"):
        load(alone)


def test_a_run_inside_another_one_is_no_part_of_it(folder):
    inner = shutil.copytree(folder, folder / "inner")
    assert np.array_equal(load(inner)(X, T), load(folder)(X, T))
    (inner / "config.yaml").unlink()
    assert np.array_equal(load(inner, mine(), Burgers(nu=0.03))(X, T), load(folder)(X, T))


def test_with_network_and_problem_neither_hydra_nor_lightning_is_imported(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    code = (
        "import sys\n"
        "from pinn_odelora.nets import MLP\n"
        "from pinn_odelora.config.load import load\n"
        "from problems.burgers import Burgers\n"
        "load(sys.argv[1], MLP(2, 1, width=12), Burgers(nu=0.03))(0.1, 0.2)\n"
        "assert not {'hydra', 'omegaconf', 'lightning', 'wandb'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "copy"], check=True, cwd=ROOT, timeout=120)
