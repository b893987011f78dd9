"""Adapter files: the function survives saving, loading, merging and PEFT, and unsuitable files are refused."""

import json
import os
from functools import partial

import pytest
import safetensors.torch
import torch
from torch import nn

from pinn_odelora.checkpoints import load_network
from pinn_odelora.errors import InputError
from pinn_odelora.lowrank import Factors, LowRankLinear, adapters
from pinn_odelora.lowrank.adapter_files import load_adapter, merged_state_dict, save_adapter
from pinn_odelora.lowrank.start import orthonormal, pissa, zero
from pinn_odelora.lowrank.targets import linear_targets, put_factors, thaw
from pinn_odelora.nets import MLP

STARTS = {"zero": zero, "orthonormal": partial(orthonormal, size=0.5), "pissa": pissa}
RANK, SCALE = 2, 0.7
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def base():
    return MLP(2, 3, width=5, depth=4, generator=torch.Generator().manual_seed(3))


def trained(net, start, generator, rank=RANK, patterns=("linears.0", "linears.2", "linears.4")):
    """``net`` adapted at tall, square and wide layers, its factors moved far from the start."""
    layers = put_factors(net, linear_targets(net, patterns), rank, SCALE, start, generator)
    with torch.no_grad():
        for layer in layers.values():
            for factor in layer.factors:
                factor.add_(torch.randn(factor.shape, generator=generator, dtype=torch.float64), alpha=0.5)
    return net


def points(generator):
    return torch.randn(20, 2, generator=generator, dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_save_and_load_keep_the_function(start, generator, tmp_path):
    net, x = trained(base(), start, generator), points(generator)
    save_adapter(net, tmp_path / "adapter", base="net.safetensors")
    loaded = base()
    layers = load_adapter(loaded, tmp_path / "adapter")
    close(loaded(x), net(x))
    assert (loaded(x) - base()(x)).abs().max() > 0.1
    for name, layer in layers.items():
        assert not (layer.start_B @ layer.start_A).any()
        assert layer.rank == min(RANK if start is zero else 2 * RANK, *layer.weight.shape)
        close(layer.weight, adapters(net)[name].weight)
    assert [n for n, p in loaded.named_parameters() if p.requires_grad] == [
        f"{name}.lora_{x}.default.weight" for name in layers for x in "AB"
    ]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_loaded_adapter_is_saved_as_it_was(start, generator, tmp_path):
    save_adapter(trained(base(), start, generator), tmp_path / "one", base="b")
    load_adapter(again := base(), tmp_path / "one")
    save_adapter(again, tmp_path / "two", base="b")
    one, two = (safetensors.torch.load_file(tmp_path / folder / WEIGHTS) for folder in ("one", "two"))
    assert {key: x.shape for key, x in one.items()} == {key: x.shape for key, x in two.items()}
    for name in adapters(again):
        assert relative(product(two, name), product(one, name)) < 1e-14
    assert (tmp_path / "one" / CONFIG).read_text() == (tmp_path / "two" / CONFIG).read_text()


def product(tensors, name, dtype=torch.float64):
    """The matrix B A of a layer in a file, whose factors are rounded to ``dtype`` first."""
    A, B = (tensors[f"base_model.model.{name}.lora_{letter}.weight"].to(dtype).double() for letter in "AB")
    return B @ A


def relative(x, y):
    return ((x - y).norm() / y.norm()).item()


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_difference_is_saved_exactly_and_balanced(start, generator, tmp_path):
    net = trained(base(), start, generator)
    save_adapter(net, tmp_path, base="b")
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    for name, layer in adapters(net).items():
        assert relative(SCALE * product(tensors, name), layer.update().detach()) < 1e-14
        A, B = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
        close(A @ A.mT, torch.diag(torch.diag(A @ A.mT)))
        close(A @ A.mT, B.mT @ B)


@pytest.mark.parametrize(("second", "rank"), [(0.0, 1), (1e-11, 2)])
def test_the_rank_is_that_of_the_difference(second, rank, generator, tmp_path):
    """A rotation of the pair changes the weight by rounding alone, which is cut; what is smallest beside it is kept."""
    net = base()
    layers = put_factors(net, linear_targets(net, "linears.2"), RANK, SCALE, pissa, generator)
    (layer,) = layers.values()
    turn = torch.linalg.qr(torch.randn(RANK, RANK, generator=generator, dtype=torch.float64)).Q
    with torch.no_grad():
        layer.B.copy_(layer.B @ turn.mT)
        layer.A.copy_(turn @ layer.A)
        sizes = torch.tensor([1.0, second], dtype=torch.float64)
        layer.A.add_(sizes[:, None] * torch.randn(RANK, 5, generator=generator, dtype=torch.float64))
    save_adapter(net, tmp_path, base="b")
    assert json.loads((tmp_path / CONFIG).read_text())["r"] == rank
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert relative(SCALE * product(tensors, "linears.2"), layer.update().detach()) < 1e-14


def test_a_rounded_pair_is_as_good_as_its_factors(generator, tmp_path):
    """A small change from a large start: a pair in which the two cancel would lose it in bfloat16 (2⁻⁸ = 3.9e-3)."""
    net = base()
    put_factors(net, linear_targets(net), RANK, SCALE, pissa, generator)
    with torch.no_grad():
        for layer in adapters(net).values():
            for factor in layer.factors:
                factor.add_(torch.randn(factor.shape, generator=generator, dtype=torch.float64), alpha=0.01)
    save_adapter(net, tmp_path, base="b")
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    for name, layer in adapters(net).items():
        assert relative(SCALE * product(tensors, name, torch.bfloat16), layer.update().detach()) < 2**-8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_an_adapter_of_no_steps_can_be_trained_in_peft(start, generator, tmp_path):
    peft = pytest.importorskip("peft")
    net, x = base(), points(generator)
    put_factors(net, linear_targets(net), RANK, SCALE, start, generator)
    save_adapter(net, tmp_path, base="b")
    model = peft.PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    assert torch.equal(model(x), base()(x))
    model(x).square().sum().backward()
    for name in adapters(net):
        layer = model.base_model.model.get_submodule(name)
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert torch.linalg.matrix_rank(A) == RANK
        assert not B.any()
        assert torch.linalg.matrix_rank(B.grad) == RANK


def test_a_pair_with_A_at_zero_keeps_its_B(generator, tmp_path):
    net = trained(base(), zero, generator)
    with torch.no_grad():
        for layer in adapters(net).values():
            layer.A.zero_()
    save_adapter(net, tmp_path, base="b")
    load_adapter(loaded := base(), tmp_path)
    assert all(torch.equal(layer.B, adapters(net)[name].B) for name, layer in adapters(loaded).items())


def test_factors_that_are_not_finite_are_not_saved(generator, tmp_path):
    net = trained(base(), zero, generator)
    with torch.no_grad():
        net.linears[2].B[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite values, which cannot be saved"):
        save_adapter(net, tmp_path / "adapter", base="b")
    assert not (tmp_path / "adapter").exists()


def test_the_format_is_that_of_peft(generator, tmp_path):
    save_adapter(trained(base(), pissa, generator), tmp_path, base="my/net.pt")
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        "base_model.model.linears.0.lora_A.weight": (2, 2),
        "base_model.model.linears.0.lora_B.weight": (5, 2),
        "base_model.model.linears.2.lora_A.weight": (4, 5),
        "base_model.model.linears.2.lora_B.weight": (5, 4),
        "base_model.model.linears.4.lora_A.weight": (3, 5),
        "base_model.model.linears.4.lora_B.weight": (3, 3),
    }
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["target_modules"] == ["linears.0", "linears.2", "linears.4"]
    assert config["base_model_name_or_path"] == "my/net.pt"
    assert (config["r"], config["lora_alpha"] / config["r"]) == (2, pytest.approx(SCALE, rel=1e-15))
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", None, "none")
    assert config["rank_pattern"] == {r"^linears\.2": 4, r"^linears\.4": 3}
    assert config["alpha_pattern"] == pytest.approx({r"^linears\.2": 4 * SCALE, r"^linears\.4": 3 * SCALE})


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_merged_weights_fit_the_plain_network(start, generator, tmp_path):
    net, x = trained(base(), start, generator), points(generator)
    merged, plain = merged_state_dict(net), base()
    assert list(merged) == list(plain.state_dict())
    torch.save(merged, tmp_path / "merged.pt")
    load_network(plain, tmp_path / "merged.pt")
    close(plain(x), net(x))
    assert torch.equal(merged["linears.1.weight"], base().linears[1].weight)


def test_merging_copies(generator):
    net = trained(base(), pissa, generator)
    before = net.linears[1].weight.clone()
    for value in merged_state_dict(net).values():
        value.zero_()
    assert torch.equal(net.linears[1].weight, before)


def test_layers_without_bias_and_names_that_look_like_ours(generator):
    net = nn.Sequential()
    net.add_module("base_layer", nn.Linear(2, 4, bias=False, dtype=torch.float64))
    net.add_module("start_A", nn.Linear(4, 3, dtype=torch.float64))
    expected = list(net.state_dict())
    trained(net, pissa, generator, patterns="*")
    merged = merged_state_dict(net)
    assert list(merged) == expected
    assert torch.equal(merged["base_layer.weight"], net.base_layer.weight)


class Branched(nn.Module):
    """A network in which the name of one layer is the end of another's: PEFT's lists cannot tell them apart."""

    def __init__(self):
        super().__init__()
        self.trunk = base()
        self.linears = nn.ModuleList([nn.Linear(3, 3, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)])
        for i, layer in enumerate(self.linears):
            nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(i))
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.linears[1](torch.tanh(self.linears[0](self.trunk(x))))


def mixed(generator):
    """Layers of different rank and scale."""
    net = trained(Branched(), pissa, generator, patterns=["linears.0", "trunk.linears.1", "trunk.linears.3"])
    W0 = net.linears[1]
    pair = Factors(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in ((1, 3), (2, 1))))
    net.linears[1] = LowRankLinear(W0, Factors(pair.A, 0 * pair.B), 2.3)
    with torch.no_grad():
        net.linears[1].B.copy_(pair.B)
    return net


def test_ranks_and_scales_may_differ(generator, tmp_path):
    net, x = mixed(generator), points(generator)
    save_adapter(net, tmp_path, base="b")
    load_adapter(loaded := Branched(), tmp_path)
    close(loaded(x), net(x))
    assert {name: layer.rank for name, layer in adapters(loaded).items()} == {
        "trunk.linears.1": 4,
        "trunk.linears.3": 4,
        "linears.0": 3,
        "linears.1": 1,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_peft_computes_the_same_function(start, generator, tmp_path):
    peft = pytest.importorskip("peft")
    net, x = trained(base(), start, generator), points(generator)
    save_adapter(net, tmp_path, base="b")
    model = peft.PeftModel.from_pretrained(base(), tmp_path)
    close(model(x), net(x))
    close(model.merge_and_unload()(x), net(x))


@pytest.mark.filterwarnings("ignore")
def test_peft_tells_layers_with_similar_names_apart(generator, tmp_path):
    peft = pytest.importorskip("peft")
    net, x = mixed(generator), points(generator)
    save_adapter(net, tmp_path, base="b")
    model = peft.PeftModel.from_pretrained(Branched(), tmp_path)
    close(model(x), net(x))
    touched = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert touched == set(adapters(net))


@pytest.mark.filterwarnings("ignore")
def test_ours_survives_peft_and_back(generator, tmp_path):
    peft = pytest.importorskip("peft")
    net = mixed(generator)
    save_adapter(net, tmp_path / "ours", base="b")
    peft.PeftModel.from_pretrained(Branched(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    load_adapter(loaded := Branched(), tmp_path / "theirs")
    for name, layer in adapters(net).items():
        assert relative(adapters(loaded)[name].update(), layer.update()) < 1e-14


def representable():
    """The network with weights that single precision holds, because some starts of PEFT need that."""
    return base().float()


def peft_model(generator, **options):
    """An adapter of PEFT in which both factors are far from zero, and the network with its unchanged weights."""
    peft = pytest.importorskip("peft", minversion="0.21")
    options = {"init_lora_weights": "gaussian"} | options
    config = peft.LoraConfig(r=2, target_modules=["linears.1", "linears.2"], **options)
    model = peft.get_peft_model(representable(), config).double()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, generator=generator)
    return model, representable().double()


PLAIN = {
    "gaussian": {},
    "patterns": {"rank_pattern": {"linears.2": 3}, "lora_alpha": 5},
    "rslora": {"use_rslora": True, "rank_pattern": {"linears.2": 3}, "lora_alpha": 5},
    "eva": {"init_lora_weights": "eva"},
    "mica": {"init_lora_weights": "mica"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dropout": {"lora_dropout": 0.5},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_plain_adapters_of_peft_are_read(options, generator, tmp_path):
    model, net = peft_model(generator, **options)
    model.eval().save_pretrained(tmp_path)
    x = points(generator)
    assert (net(x) - model(x)).abs().max() > 0.1
    load_adapter(net, tmp_path)
    close(net(x), model(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_changed_the_weights_are_read_when_they_say_by_how_much(start, generator, tmp_path):
    peft, net = pytest.importorskip("peft"), representable().double()
    config = peft.LoraConfig(r=2, target_modules=["linears.1", "linears.2"], init_lora_weights=start)
    model = peft.get_peft_model(representable(), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    x = points(generator)
    model.save_pretrained(tmp_path / "changed")
    with pytest.raises(InputError, match=f"init_lora_weights to '{start}', which may have changed the base weights"):
        load_adapter(net, tmp_path / "changed")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start")
    load_adapter(net, tmp_path / "plain")
    torch.testing.assert_close(net(x), model.double()(x), rtol=0, atol=1e-5)


class Runs:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore")
def test_pickled_adapters_are_read_and_never_run(generator, tmp_path):
    model, net = peft_model(generator)
    model.save_pretrained(tmp_path)
    x, tensors = points(generator), safetensors.torch.load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    torch.save(tensors | {"code": Runs(tmp_path / "ran")}, tmp_path / "adapter_model.bin")
    load_adapter(net, tmp_path)
    close(net(x), model(x))
    assert not (tmp_path / "ran").exists()
    safetensors.torch.save_file({"other": torch.ones(1)}, tmp_path / WEIGHTS)
    refused(tmp_path, r"safetensors holds other, which is not a LoRA factor")


ALSO = [("biases",), ("last",), ("biases", "last")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("also", ALSO, ids="+".join)
def test_what_is_trained_beside_the_factors_is_saved_with_them(also, generator, tmp_path):
    peft = pytest.importorskip("peft")
    net, x = trained(base(), pissa, generator), points(generator)
    thaw(net, also)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    save_adapter(net, tmp_path, base="b")
    load_adapter(loaded := base(), tmp_path)
    close(loaded(x), net(x))
    close(merged(loaded)(x), net(x))
    close(peft.PeftModel.from_pretrained(base(), tmp_path)(x), net(x))
    save_adapter(loaded, tmp_path / "again", base="b")
    load_adapter(again := base(), tmp_path / "again")
    close(again(x), net(x))


def merged(net):
    plain = base()
    plain.load_state_dict(merged_state_dict(net))
    return plain


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_peft_with_biases_and_whole_layers_are_read(generator, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["linears.1"], bias="all", modules_to_save=["linears.3"])
    model = peft.get_peft_model(base(), config)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, generator=generator)
    model.save_pretrained(tmp_path)
    load_adapter(net := base(), tmp_path)
    x = points(generator)
    close(net(x), model(x))


@pytest.fixture
def saved(generator, tmp_path):
    save_adapter(trained(base(), pissa, generator), tmp_path, base="b")
    return tmp_path


def refused(folder, reason, net=None):
    net = net or base()
    with pytest.raises(InputError, match=reason):
        load_adapter(net, folder)
    assert not adapters(net)
    assert all(p.requires_grad for p in net.parameters())


def rewrite(folder, change):
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def reconfigure(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG])
def test_missing_files(missing, saved):
    (saved / missing).unlink()
    refused(saved, rf"Cannot read .*{missing}: No such file")
    refused(saved / "nowhere", r"Cannot read .*: No such file")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "is not JSON"), ("[1]", "no peft_type"), ("{}", "no peft_type"), ("\xff\xfe", "is not JSON")],
)
def test_settings_of_another_kind(text, reason, saved):
    (saved / CONFIG).write_text(text, encoding="latin-1")
    refused(saved, reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "LOHA"}, "sets peft_type to 'LOHA', but only 'LORA'"),
        ({"use_dora": True}, "sets use_dora to True, but only plain LoRA can be read here, where it is off"),
        ({"alora_invocation_tokens": [1]}, r"sets alora_invocation_tokens to \[1\], but only plain LoRA"),
        ({"lora_bias": True}, "sets lora_bias to True"),
        ({"target_parameters": ["experts.weight"]}, "sets target_parameters"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "sets layer_replication"),
        ({"ensure_weight_tying": True}, "sets ensure_weight_tying"),
        ({"kasa_config": {"beta": 0.1}}, "sets kasa_config"),
        ({"use_bdlora": {"nblocks": 2}}, "sets use_bdlora"),
        ({"of_a_later_version": 0.0}, "sets of_a_later_version to 0.0"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights to 'pissa', which may have changed the base weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "which may have changed the base weights"),
        ({"init_lora_weights": "loftq"}, "which may have changed the base weights"),
        ({"r": 3}, "does not give the scale of each layer"),
        ({"r": 0}, "does not give the scale"),
        ({"lora_alpha": None}, "does not give the scale"),
        ({"lora_alpha": float("nan")}, "does not give the scale"),
        ({"rank_pattern": {"(": 2}}, "does not give the scale"),
        ({"rank_pattern": [2]}, "does not give the scale"),
    ],
)
def test_settings_that_cannot_be_followed(changes, reason, saved):
    reconfigure(saved, **changes)
    refused(saved, reason)


def test_settings_that_are_off_or_mean_nothing_here_are_read(saved):
    off = {"use_dora": None, "of_a_later_version": None, "of_another_one": [], "lora_bias": False, "loftq_config": {}}
    reconfigure(saved, **off, lora_dropout=0.1, task_type="CAUSAL_LM", eva_config={"rho": 2.0}, megatron_core="m")
    assert load_adapter(base(), saved).keys() == {"linears.0", "linears.2", "linears.4"}


def test_truncated_factors(saved):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-9])
    refused(saved, "truncated")


KEY = "base_model.model.linears.2.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(KEY), "holds only lora_B of layer linears.2"),
        (lambda t: t.update(other=torch.ones(2)), "holds other, which is not a LoRA factor"),
        (lambda t: t[KEY].fill_(float("nan")), f"{KEY} in .* NaN"),
        (lambda t: t.update({KEY: torch.ones(4, 6)}), r"A \(4, 6\) and B \(5, 4\) for layer linears.2, which needs"),
        (lambda t: t.update({KEY: torch.ones(4)}), r"A \(4,\) and B \(5, 4\) for layer linears.2, which needs"),
    ],
)
def test_factors_that_do_not_fit(change, reason, saved):
    rewrite(saved, change)
    refused(saved, reason)


def test_another_network(saved):
    shallow = MLP(2, 3, width=5, depth=3)
    refused(saved, r"adapts linears.4, but the linear layers are linears.0, linears.1, linears.2, linears.3\.", shallow)
    wide = MLP(2, 3, width=6, depth=4)
    refused(saved, r"for layer linears.0, which needs A \(r, 2\) and B \(6, r\)", wide)


def test_an_adapted_network_takes_no_second_adapter(saved, generator):
    with pytest.raises(InputError, match="already has adapted layers"):
        load_adapter(trained(base(), zero, generator), saved)


def test_a_plain_network_has_no_adapter_to_save(tmp_path):
    with pytest.raises(InputError, match="no adapted layer"):
        save_adapter(base(), tmp_path / "adapter", base="b")
    assert not (tmp_path / "adapter").exists()
