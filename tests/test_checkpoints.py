"""Weights from files: every format gives the same network back, and nothing unsuitable gets in or is run."""

import pickle

import lightning as L
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from pinn_odelora.checkpoints import load_network, read_state_dict, save_network
from pinn_odelora.errors import InputError
from pinn_odelora.nets import MLP


def network(seed=0, **sizes):
    return MLP(2, 1, **{"width": 5, "depth": 3, **sizes}, generator=torch.Generator().manual_seed(seed))


class Module(L.LightningModule):
    """A user's module: the network beside other parameters, optimiser state and hyper-parameters in its checkpoint."""

    def __init__(self, net, nu=0.05):
        super().__init__()
        self.save_hyperparameters(ignore="net")
        self.net = net
        self.log_nu = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(2, 2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def training_step(self, x):
        return self.net(x.double()).square().mean() + self.log_nu

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(1, 2))


@pytest.mark.filterwarnings("ignore")
def lightning_file(net, path):
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    module = Module(net)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=path.parent, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module)
    net.load_state_dict(weights)
    trainer.save_checkpoint(path)


FORMATS = {
    "state_dict": lambda net, path: torch.save(net.state_dict(), path),
    "legacy": lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False),
    "deepxde": lambda net, path: torch.save(
        {"model_state_dict": net.state_dict(), "optimizer_state_dict": torch.optim.Adam(net.parameters()).state_dict()},
        path,
    ),
    "lightning": lambda net, path: torch.save(
        {"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()} | {"log_nu": torch.ones(())}, "epoch": 3},
        path,
    ),
    "compiled": lambda net, path: torch.save({f"net._orig_mod.{k}": v for k, v in net.state_dict().items()}, path),
    "safetensors": lambda net, path: safetensors.torch.save_file(net.state_dict(), path),
    "ours": lambda net, path: save_network(net, path, {"problem": "burgers"}),
}


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ""])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_network(kind, suffix, tmp_path):
    saved, net = network(seed=1), network(seed=2)
    FORMATS[kind](saved, tmp_path / f"net{suffix}")
    load_network(net, tmp_path / f"net{suffix}")
    for name, value in saved.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


@pytest.mark.filterwarnings("ignore")
def test_checkpoint_of_a_lightning_trainer(tmp_path):
    saved, net = network(seed=1), network(seed=2)
    lightning_file(saved, tmp_path / "last.ckpt")
    load_network(net, str(tmp_path / "last.ckpt"))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in saved.state_dict().items())


def test_weights_take_the_dtype_of_the_network(tmp_path):
    saved, net = network(seed=1).float(), network(seed=2)
    save_network(saved, tmp_path / "net", {})
    load_network(net, tmp_path / "net")
    assert net.linears[1].weight.dtype == torch.float64
    assert torch.equal(net.linears[1].weight, saved.linears[1].weight.double())


def test_buffers_are_weights_too(tmp_path):
    class Fourier(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.register_buffer("frequencies", torch.full((3,), value))

    save_network(Fourier(2.0), tmp_path / "net")
    load_network(net := Fourier(1.0), tmp_path / "net")
    assert torch.equal(net.frequencies, torch.full((3,), 2.0))


class Code:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


MALICIOUS = {
    "zip": lambda content, path: torch.save(content, path),
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
    "pickle of protocol 0": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=0)),
    "pickle of protocol 2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize("write", MALICIOUS.values(), ids=MALICIOUS)
def test_code_in_a_file_is_refused_and_not_run(write, tmp_path):
    content = {"state_dict": network().state_dict(), "hyper_parameters": Code(str(tmp_path / "made"))}
    write(content, tmp_path / "net.pt")
    net = network(seed=2)
    with pytest.raises(InputError, match=r"holds pickled code.*save a state_dict instead"):
        load_network(net, tmp_path / "net.pt")
    assert not (tmp_path / "made").exists()
    assert torch.equal(net.linears[0].weight, network(seed=2).linears[0].weight)


def test_the_malicious_file_would_have_worked(tmp_path):
    MALICIOUS["zip"](Code(str(tmp_path / "made")), tmp_path / "net.pt")
    torch.load(tmp_path / "net.pt", weights_only=False).close()
    assert (tmp_path / "made").exists()


def test_a_pickled_network_is_refused_by_name(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"pickled code \(torch\.nn\.modules\.linear\.Linear\)"):
        read_state_dict(tmp_path / "net.pt")


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("keep", [0, 5, 60, -1, -200])
@pytest.mark.parametrize("kind", ["state_dict", "legacy", "ours"])
def test_truncated_files(kind, keep, tmp_path):
    FORMATS[kind](network(), tmp_path / "net")
    cut(tmp_path / "net", keep)
    if kind == "state_dict" and keep == -1:
        cut(tmp_path / "net", -30)
    with pytest.raises(InputError, match="truncated, damaged or no file of weights"):
        load_network(network(), tmp_path / "net")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x,t,u\n0,0,1\n", "truncated, damaged or no file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "truncated, damaged or no file"),
        ({}, r"no tensors \(it is empty\)"),
        ({"state_dict": {}}, r"no tensors \(it is empty\)"),
        ({"epoch": 3, "lr": 0.1}, r"no tensors \(epoch, lr\)"),
        ([torch.ones(2)], "holds a list, not weights by name"),
        (torch.ones(2), "holds a Tensor, not weights by name"),
    ],
)
def test_files_of_something_else(content, reason, tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=reason):
        read_state_dict(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_other_archives(tmp_path):
    np.savez(tmp_path / "net.npz", a=np.ones(3))
    with pytest.raises(InputError, match="no file of weights"):
        read_state_dict(tmp_path / "net.npz")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read weights from .*none.pt: No such file"):
        load_network(network(), tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"Cannot read weights from .*: Is a directory"):
        load_network(network(), tmp_path)


def test_every_wrong_shape_is_named(tmp_path):
    save_network(network(width=4), tmp_path / "net")
    net = network(width=6)
    with pytest.raises(InputError) as refused:
        load_network(net, tmp_path / "net")
    assert "linears.1.weight is (4, 4) in the file but (6, 6) in the network" in str(refused.value)
    assert "linears.3.weight is (1, 4) in the file but (1, 6) in the network" in str(refused.value)
    assert str(refused.value).endswith("; the network needs the layer sizes of the file.")
    assert torch.equal(net.linears[0].weight, network(width=6).linears[0].weight)


def test_missing_and_surplus_names_are_shortened(tmp_path):
    save_network(network(depth=6), tmp_path / "deep")
    save_network(network(depth=2), tmp_path / "shallow")
    with pytest.raises(
        InputError, match=r": surplus linears.4.bias, linears.4.weight, linears.5.bias, 3 more; the network"
    ):
        load_network(network(depth=3), tmp_path / "deep")
    with pytest.raises(InputError, match=r": missing linears.3.weight, linears.3.bias; the network needs the depth"):
        load_network(network(depth=3), tmp_path / "shallow")


def test_surplus_below_the_prefix_keeps_its_name_in_the_file(tmp_path):
    state = {f"net.{k}": v for k, v in network(depth=4).state_dict().items()}
    torch.save({"state_dict": state | {"other": torch.ones(1)}}, tmp_path / "net")
    with pytest.raises(InputError, match=r"surplus net.linears.4.weight, net.linears.4.bias; the network"):
        load_network(network(depth=3), tmp_path / "net")


def test_a_prefix_ends_with_a_dot(tmp_path):
    torch.save({f"old_{k}": v for k, v in network().state_dict().items()}, tmp_path / "net")
    with pytest.raises(InputError, match=r"missing linears.0.weight, .* surplus old_linears.0.weight"):
        load_network(network(), tmp_path / "net")


def test_of_two_networks_the_shapes_decide_or_nothing_does(tmp_path):
    def save(second):
        both = {f"coarse.{k}": v for k, v in network(seed=1).state_dict().items()}
        torch.save(both | {f"fine.{k}": v for k, v in second.state_dict().items()}, tmp_path / "net")

    save(network(seed=3, width=7))
    load_network(net := network(seed=2, width=7), tmp_path / "net")
    assert torch.equal(net.linears[0].weight, network(seed=3, width=7).linears[0].weight)
    save(network(seed=1))
    load_network(net := network(seed=2), tmp_path / "net")
    assert torch.equal(net.linears[0].weight, network(seed=1).linears[0].weight)
    save(network(seed=3))
    with pytest.raises(InputError, match=r"several networks that fit, 'fine\.' and 'coarse\.'"):
        load_network(net, tmp_path / "net")
    with pytest.raises(InputError, match=r"is \(\d, 2\) in the file but \(9, 2\) in the network"):
        load_network(network(width=9), tmp_path / "net")


def test_an_adapter_is_no_network(tmp_path):
    torch.save({"base_model.model.linears.1.lora_A.weight": torch.ones(1, 5)}, tmp_path / "net")
    with pytest.raises(InputError, match="low-rank factors, not a whole network"):
        load_network(network(), tmp_path / "net")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_must_be_finite_in_the_dtype_of_the_network(value, tmp_path):
    state = network().state_dict()
    state["linears.2.bias"][3] = value
    torch.save(state, tmp_path / "net")
    net = network(seed=2).float()
    with pytest.raises(InputError, match=r"linears.2.bias in .* NaN or infinite in torch.float32"):
        load_network(net, tmp_path / "net")
    assert torch.equal(net.linears[0].weight, network(seed=2).float().linears[0].weight)


def test_metadata_are_kept_in_the_header_of_the_file(tmp_path):
    save_network(network(), tmp_path / "net", {"problem": "burgers"})
    with safetensors.safe_open(tmp_path / "net", framework="pt") as file:
        assert file.metadata() == {"problem": "burgers"}


def test_shared_weights_can_be_saved(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    save_network(net, tmp_path / "net")
    expected = net[0].weight.detach().clone()
    nn.init.zeros_(net[0].weight)
    load_network(net, tmp_path / "net")
    assert torch.equal(net[2].weight, expected)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"Cannot write .*net"):
        save_network(network(), tmp_path / "file" / "net")
