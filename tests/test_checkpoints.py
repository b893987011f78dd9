"""Weights from files: every format gives the same network back, and nothing unsuitable gets in or is run."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf
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


# Nothing of a file is run.


class Code:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class Created:
    """Runs a command when an instance is made."""

    def __new__(cls, command="true"):
        os.system(command)
        return super().__new__(cls)


class Stateful:
    """Runs a command when an instance gets its state."""

    def __setstate__(self, command):
        os.system(command)


CONTAINERS = {
    "zip": lambda content, path: torch.save(content, path),
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
    "pickle of protocol 0": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=0)),
    "pickle of protocol 2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize("write", CONTAINERS.values(), ids=CONTAINERS)
def test_code_beside_the_weights_is_not_run(write, tmp_path):
    saved, net = network(seed=1), network(seed=2)
    write({"state_dict": saved.state_dict(), "hyper_parameters": Code(str(tmp_path / "made"))}, tmp_path / "net.pt")
    load_network(net, tmp_path / "net.pt")
    assert equal(net, saved)
    assert not (tmp_path / "made").exists()


HERE = __name__.encode()
PROGRAMS = {
    "REDUCE": b"cos\nsystem\n(VCOMMAND\ntR.",
    "eval": b"cbuiltins\neval\n(V__import__('os').system('COMMAND')\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVsystem\ntR(VCOMMAND\ntR.",
    "INST": b"(VCOMMAND\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nVCOMMAND\no.",
    "STACK_GLOBAL": b"\x80\x04Vos\nVsystem\n\x93VCOMMAND\n\x85R.",
    "NEWOBJ": b"\x80\x02c" + HERE + b"\nCreated\nVCOMMAND\n\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04c" + HERE + b"\nCreated\n)}Vcommand\nVCOMMAND\ns\x92.",
    "BUILD": b"\x80\x02c" + HERE + b"\nStateful\n)\x81VCOMMAND\nb.",
    "copyreg": b"ccopyreg\n_reconstructor\n(c" + HERE + b"\nStateful\ncbuiltins\nobject\nNtRVCOMMAND\nb.",
    "map": b"\x80\x04}cos\nsystem\nVCOMMAND\n\x85RVx\ns.",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_pickle_that_calls_is_not_run(program, tmp_path):
    program = program.replace(b"COMMAND", f"touch {tmp_path / 'made'}".encode())
    (tmp_path / "net.pt").write_bytes(program)
    with pytest.raises(InputError, match=r"holds (no tensors|a \w+, not weights)"):
        read_state_dict(tmp_path / "net.pt")
    assert not (tmp_path / "made").exists()
    with suppress(TypeError):  # it is no trick of the test: the pickle does what it says
        pickle.loads(program)
    assert (tmp_path / "made").exists()


def test_what_a_pickle_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "unheard_of.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "net.pt").write_bytes(b"cunheard_of\nThing\n.")
    with pytest.raises(InputError):
        read_state_dict(tmp_path / "net.pt")
    assert not (tmp_path / "made").exists()


def test_a_pickle_changes_no_function_of_torch(tmp_path):
    before = torch._utils._rebuild_tensor_v2.__defaults__
    program = b"ctorch._utils\n_rebuild_tensor_v2\n(N(V__defaults__\n(I1\ntdtb."
    (tmp_path / "net.pt").write_bytes(program)
    with pytest.raises(InputError):
        read_state_dict(tmp_path / "net.pt")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


NONSENSE = {
    "extension": b"\x82\x01.",
    "memo": b"h\x07.",
    "mark": b"t.",
    "no end": b"}",
    "keys of a list": b"](Va\nVb\nu.",
    "odd map": b"(Va\nd.",
    "length": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"ab.",
    "place in the memo": b"}r\xff\xff\xff\xff.",
}


@pytest.mark.parametrize("program", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused(program, tmp_path):
    (tmp_path / "net.pt").write_bytes(program)
    with pytest.raises(InputError, match=r"net\.pt (is truncated, damaged or no file of weights|holds no tensors)"):
        read_state_dict(tmp_path / "net.pt")


def test_trees_that_refer_to_themselves_have_an_end(tmp_path):
    tree = {"state_dict": network(seed=1).state_dict()}
    for _ in range(60):  # 2^60 paths
        tree = {"a": tree, "b": tree}
    tree["self"] = tree
    torch.save({"far": tree, "near": network(seed=3).state_dict()}, tmp_path / "net.pt")
    load_network(net := network(seed=2), tmp_path / "net.pt")
    assert equal(net, network(seed=3))


# Tensors in files.


def equal(net, other):
    return all(torch.equal(x, other.state_dict()[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize("write", CONTAINERS.values(), ids=CONTAINERS)
def test_tensors_are_those_of_torch(write, tmp_path):
    x = torch.arange(60.0).reshape(5, 12)
    state = {
        "transposed": x.mT,
        "part": x[1:4, ::3],
        "repeated": x[:1, :1].expand(4, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(x[2]),
        **{str(d): x[0].to(d) for d in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)},
    }
    write(state, tmp_path / "net.pt")
    found = read_state_dict(tmp_path / "net.pt")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def test_a_tensor_of_another_byte_order(tmp_path):
    saved = network(seed=1)
    torch.save(saved.state_dict(), tmp_path / "little")
    with zipfile.ZipFile(tmp_path / "little") as old, zipfile.ZipFile(tmp_path / "net", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            swapped = np.frombuffer(content, "<f8").astype(">f8").tobytes() if "/data/" in name else content
            new.writestr(name, b"big" if name.endswith("byteorder") else swapped)
    load_network(net := network(seed=2), tmp_path / "net")
    assert equal(net, saved)


class Claimed:
    """A tensor of a file that says of itself what is not so."""

    def __init__(self, *strided):
        self.strided = strided

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.strided, False, OrderedDict())


class Claims(pickle.Pickler):
    def persistent_id(self, x):
        return x if isinstance(x, tuple) and x[:1] == ("storage",) else None


def claimed(path, numel, *strided):
    """A file with a vector b of three numbers, and the claim that it has ``numel``, offset, sizes and strides."""
    program = io.BytesIO()
    Claims(program, protocol=2).dump({"b": Claimed(("storage", torch.DoubleStorage, "0", "cpu", numel), *strided)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", program.getvalue())
        archive.writestr("net/data/0", np.arange(3.0).tobytes())


@pytest.mark.parametrize(
    "claim",
    [
        (3, 1, (3,), (1,)),
        (3, 0, (2, 2), (2, 1)),
        (3, -1, (3,), (1,)),
        (3, 0, (3,), (-1,)),
        (3, 0, (3,), ()),
        (3, 0, (2**62, 2**62), (1, 1)),
        (10**18, 0, (3,), (1,)),
        (-3, 0, (3,), (1,)),
        ("3", 0, (3,), (1,)),
        (3, 0, 3, 1),
    ],
)
def test_a_tensor_beyond_its_bytes_is_refused(claim, tmp_path):
    claimed(tmp_path / "good", 3, 0, (3,), (1,))
    assert read_state_dict(tmp_path / "good")["b"].tolist() == [0, 1, 2]
    claimed(tmp_path / "net", *claim)
    with pytest.raises(InputError, match=r"net (cannot be read: it|is truncated, damaged)"):
        read_state_dict(tmp_path / "net")


def test_a_huge_repetition_of_one_number_takes_no_memory(tmp_path):
    claimed(tmp_path / "net", 3, 0, (10**15,), (0,))
    net = nn.Module()
    net.b = nn.Parameter(torch.zeros(3))
    with pytest.raises(InputError, match=r"it is damaged \(its sizes repeat its bytes\)"):
        load_network(net, tmp_path / "net")


def test_compressed_and_damaged_records_are_refused(tmp_path):
    torch.save({"b": torch.full((3,), 7.0, dtype=torch.float64)}, tmp_path / "net")
    data = (tmp_path / "net").read_bytes()
    number = np.float64(7).tobytes()
    assert data.count(number * 3) == 1
    (tmp_path / "damaged").write_bytes(data.replace(number * 3, number * 2 + np.float64(8).tobytes()))
    with pytest.raises(InputError, match=r"b in .*damaged cannot be read: it is damaged"):
        read_state_dict(tmp_path / "damaged")
    with (
        zipfile.ZipFile(tmp_path / "net") as old,
        zipfile.ZipFile(tmp_path / "small", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(InputError, match="it is compressed"):
        read_state_dict(tmp_path / "small")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(tmp_path / "net", "net.pt")
    with pytest.raises(InputError, match="no file of weights"):
        read_state_dict(tmp_path / "outer.zip")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x: x.to_sparse(), r"it is sparse; save it by to_dense\(\)"),
        (lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8), "it is quantised"),
        (lambda x: x.to("meta"), "it is on the meta device"),
        (lambda x: torch.complex(x, x).conj(), "it is a conjugated or negated view"),
    ],
)
def test_tensors_of_other_kinds_are_refused_where_they_are_needed(spoil, reason, tmp_path):
    saved, net = network(seed=1), network(seed=2)
    state = saved.state_dict()
    torch.save({"state_dict": state, "other": {"x": spoil(torch.ones(2, 2))}}, tmp_path / "net")
    load_network(net, tmp_path / "net")
    assert equal(net, saved)
    torch.save(state | {"linears.1.weight": spoil(state["linears.1.weight"])}, tmp_path / "net")
    with pytest.raises(InputError, match=rf"^linears\.1\.weight in .*net cannot be read: {reason}"):
        load_network(net, tmp_path / "net")


# Checkpoints as people have them.


class Wrapped(nn.Module):
    """A pickled module: its network, a layer without biases, a buffer that is no weight, and other things."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.path, self.act = Path("somewhere"), nn.Tanh()
        self.history = [torch.ones(3)]
        self.register_buffer("grid", torch.ones(2), persistent=False)


class Settings:
    def __init__(self, **values):
        self.__dict__.update(values)


def with_settings(state):
    return {
        "state_dict": {f"net.{name}": x for name, x in state.items()},
        "hyper_parameters": {
            "act": nn.Tanh(),
            "scale": np.array([1.0, 2.0]),
            "one": np.float64(3),
            "config": OmegaConf.create({"width": 5, "lr": [1e-3]}),
            "path": Path("somewhere"),
            "loss": partial(torch.nn.functional.mse_loss, reduction="sum"),
            "own": Settings(width=5, inner=Settings(names={"a", "b"})),
        },
        "callbacks": {},
        "loops": {"epoch": 3},
    }


CHECKPOINTS = {
    "lightning with settings": with_settings,
    "smallest": lambda state: {"state_dict": state, "hyper_parameters": {"act": nn.Tanh()}},
    "model and optimizer": lambda state: {
        "model": state,
        "optimizer": torch.optim.Adam([nn.Parameter(x) for x in state.values()]).state_dict(),
        "scheduler": {"last_lr": [0.1]},
    },
    "net and loss": lambda state: {"net": state, "loss": torch.tensor(0.1)},
    "deep": lambda state: {"a": {"b": [{"c": state}, {"c": None}]}, "bias": torch.ones(1)},
    "whole module": lambda state: loaded(state),
    "whole module in a map": lambda state: {"model": Wrapped(loaded(state)), "epoch": 2},
    "parallel": lambda state: {f"module.{name}": x for name, x in state.items()},
    "parallel and compiled": lambda state: {"model": {f"module._orig_mod.{name}": x for name, x in state.items()}},
    "equal copies": lambda state: {"state_dict": state, "ema": {name: x.clone() for name, x in state.items()}},
    "arrays": lambda state: {"params": {name: x.numpy() for name, x in state.items()}},
    "columns first": lambda state: {name: np.asfortranarray(x.numpy()) for name, x in state.items()},
    "names in maps": lambda state: {
        "linears": {str(i): {k: state[f"linears.{i}.{k}"] for k in ("weight", "bias")} for i in range(4)}
    },
}


def loaded(state):
    net = network()
    net.load_state_dict(state)
    net.linears[1].register_buffer("grid", torch.ones(2), persistent=False)  # in no state_dict
    return net


@pytest.mark.parametrize("write", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_as_people_have_them(kind, write, tmp_path):
    saved, net = network(seed=1), network(seed=2)
    write(CHECKPOINTS[kind](saved.state_dict()), tmp_path / "last.ckpt")
    load_network(net, tmp_path / "last.ckpt")
    assert equal(net, saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_fewer_bits_are_converted(dtype, tmp_path):
    saved, net = network(seed=1).to(dtype), network(seed=2)
    torch.save({"model": saved.state_dict()}, tmp_path / "net")
    load_network(net, tmp_path / "net")
    assert equal(net, saved.double())


def test_of_two_networks_in_a_file_one_is_chosen(tmp_path):
    first, second, net = network(seed=1), network(seed=3), network(seed=2)
    kept = {"state_dict": {f"net.{k}": v for k, v in first.state_dict().items()}, "ema": second.state_dict()}
    torch.save(kept, tmp_path / "net")
    with pytest.raises(InputError) as refused:
        load_network(net, tmp_path / "net")
    assert str(refused.value) == (
        f"part is None, but it must be state_dict.net or ema, since {tmp_path / 'net'} holds several networks that fit."
    )
    assert equal(net, network(seed=2))
    for part, expected in (("state_dict.net", first), ("state_dict", first), ("ema", second)):
        load_network(net, tmp_path / "net", part)
        assert equal(net, expected)
    with pytest.raises(
        InputError, match=r"^part is 'swa', but it must be the name of a map of tensors in .*, as ema, "
    ):
        load_network(net, tmp_path / "net", "swa")
    torch.save(first.state_dict() | {"ema": second.state_dict()}, tmp_path / "net")
    with pytest.raises(InputError, match=r"must be \. or ema"):
        load_network(net, tmp_path / "net")
    load_network(net, tmp_path / "net", ".")
    assert equal(net, first)


def test_a_map_that_does_not_fit_is_named_by_the_nearest(tmp_path):
    torch.save({"model": network(depth=4).state_dict(), "ema": nn.Linear(2, 2).state_dict()}, tmp_path / "net")
    with pytest.raises(
        InputError, match=r"are not those of the network: surplus linears.4.weight, linears.4.bias; the"
    ):
        load_network(network(depth=3), tmp_path / "net")


# Weight norm.


def weight_normed(apply, **settings):
    net = network(seed=1).float()
    for k in (0, 2):
        apply(net.linears[k], **settings)
        with torch.no_grad():  # g is not the norm of v only at the start
            net.get_parameter(next(n for n, _ in net.named_parameters() if n.startswith(f"linears.{k}.weight_g")
                                   or n == f"linears.{k}.parametrizations.weight.original0")).mul_(1.7)  # fmt: skip
    return net


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("apply", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weight_norm_in_a_file_is_folded(apply, dim, tmp_path):
    saved, net = weight_normed(apply, dim=dim), network(seed=2)
    torch.save({"state_dict": {f"net.{k}": v for k, v in saved.state_dict().items()}}, tmp_path / "net")
    load_network(net, tmp_path / "net")
    x = torch.linspace(-1, 1, 14).reshape(7, 2)
    assert not torch.allclose(saved(x), network(seed=1).float()(x), rtol=1e-2)
    torch.testing.assert_close(net(x.double()), saved.double()(x.double()), rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "spoil", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.orthogonal]
)
def test_other_computed_weights_in_a_file_are_refused(spoil, tmp_path):
    saved = network(seed=1)
    spoil(saved.linears[1])
    torch.save(saved.state_dict(), tmp_path / "net")
    with pytest.raises(InputError, match=r"holds linears\.1\..*, from which a weight is computed; give a file with"):
        load_network(network(seed=2), tmp_path / "net")


# Damaged files, and other ones.


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
    with pytest.raises(InputError, match=r"must be fine or coarse, since .* holds several networks that fit"):
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
