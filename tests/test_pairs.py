"""LoRA pairs of a model: their gradients come from that of one weight; what else is trained is named or refused.

What a pair must satisfy is W = W0 + s·B A, so with G = ∂L/∂W its gradients are s BᵀG and s G Aᵀ. PEFT's layers add the
product to the output of a base layer that keeps W0, so that G is the gradient of W0, which autograd gives by itself.
"""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from pinn_odelora.errors import InputError
from pinn_odelora.lowrank import Factors, LowRankLinear
from pinn_odelora.lowrank.pairs import factor_pairs, trainable_groups

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers", "ignore:::torch.jit")

WIDTH, RANK = 8, 2


def lora():
    """PEFT, imported late because that takes seconds, and not everybody has it."""
    return pytest.importorskip("peft", minversion="0.21")


def plain():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def adapted(net=None, targets=("0",), init="pissa", **options):
    peft = lora()
    config = peft.LoraConfig(r=RANK, target_modules=list(targets), init_lora_weights=init, **options)
    return peft.get_peft_model(net or plain(), config)


def backward(model, *inputs, **named):
    out = model(*inputs, **named)
    out = next(x for x in (getattr(out, "last_hidden_state", None), out[0], out) if isinstance(x, torch.Tensor))
    (out.square().sum() + out.sum()).backward()


def at_a_generic_point(model, generator):
    """The model in float64 with no factor at zero, and gradients of the weights beside those of the factors."""
    model = model.double()
    for p in model.parameters():
        p.requires_grad_(True)
    with torch.no_grad():
        for group in groups_of(model):
            for factor in group["params"]:
                factor.copy_(0.1 * torch.randn(factor.shape, generator=generator, dtype=torch.float64))
    return model


def groups_of(model):
    with warnings.catch_warnings(action="ignore"):
        return factor_pairs(model)


def check_gradients(model, transposed=False):
    """∂L/∂A = s BᵀG and ∂L/∂B = s G Aᵀ with the gradient G of the weight itself."""
    groups = groups_of(model)
    for group in groups:
        A, B = group["params"]
        layer, adapter = group["layer"]
        G = layer.base_layer.weight.grad
        G = G.mT if transposed else G
        assert group["scale"] == layer.scaling[adapter]
        torch.testing.assert_close(A.grad, group["scale"] * B.mT @ G)
        torch.testing.assert_close(B.grad, group["scale"] * G @ A.mT)
        assert A.grad.any()
    return [group["name"].rpartition("base_model.model.")[2] for group in groups]


@pytest.mark.parametrize("options", [{}, {"lora_alpha": 64}, {"use_rslora": True}, {"lora_bias": True, "init": True}])
def test_linear_layers(options, generator):
    model = at_a_generic_point(adapted(targets=["0", "2"], **options), generator)
    backward(model, torch.randn(5, WIDTH, generator=generator, dtype=torch.float64))
    assert check_gradients(model) == ["0", "2"]


def test_gpt2_keeps_its_weights_transposed(generator):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=12, n_head=2, vocab_size=11, n_positions=8, use_cache=False)
    net = transformers.GPT2Model(config).eval()
    model = at_a_generic_point(adapted(net, ["c_attn", "c_fc"], fan_in_fan_out=True), generator).eval()
    backward(model, torch.tensor([[3, 1, 4, 1, 5]]))
    assert check_gradients(model, transposed=True) == ["h.0.attn.c_attn", "h.0.mlp.c_fc"]
    assert [tuple(p.shape) for p in groups_of(model)[0]["params"]] == [(RANK, 12), (36, RANK)]


def test_llama(generator):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=12, intermediate_size=10, num_hidden_layers=2, num_attention_heads=2, vocab_size=11, use_cache=False
    )
    model = at_a_generic_point(adapted(transformers.LlamaModel(config), ["q_proj", "down_proj"]), generator)
    backward(model, torch.tensor([[3, 1, 4, 1, 5]]))
    assert len(check_gradients(model)) == 4


def test_vision_transformer(generator):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=10,
        image_size=4,
        patch_size=2,
        num_channels=1,
    )
    net = transformers.ViTModel(config, add_pooling_layer=False).eval()
    linears = [name for name, x in net.named_modules() if isinstance(x, nn.Linear)]
    model = at_a_generic_point(adapted(net, linears), generator).eval()
    backward(model, torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64))
    assert check_gradients(model) == linears


def test_embeddings(generator):
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))
    model = at_a_generic_point(adapted(net, init=True), generator)
    backward(model, torch.tensor([1, 5, 5, 0]))
    assert check_gradients(model, transposed=True) == ["0"]
    assert [tuple(p.shape) for p in factor_pairs_of(model)] == [(RANK, 7), (4, RANK)]


def factor_pairs_of(model):
    return [p for group in groups_of(model) for p in group["params"]]


def test_attention_with_one_weight_for_three_projections(generator):
    """The weight changes at each pass, so G is not at hand; but BᵀG Aᵀ by either gradient must be the same matrix."""
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    model = at_a_generic_point(adapted(nn.ModuleDict({"attn": attention}), ["attn"], init=True), generator)
    x = torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64)
    backward(model.base_model.model["attn"], x, x, x)
    groups = groups_of(model)
    assert len(groups) == 2
    for A, B in (group["params"] for group in groups):
        torch.testing.assert_close(B.mT @ B.grad, A.grad @ A.mT)


def test_our_layers(generator):
    net = plain().double()
    pair = Factors(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in ((RANK, WIDTH), (3, RANK))))
    net[2] = LowRankLinear(net[2], pair, 0.7)
    for p in net[:2].parameters():
        p.requires_grad_(False)
    (group,) = factor_pairs(net)
    layer, adapter = group.pop("layer")
    assert layer is net[2]
    assert layer.scaling[adapter] == 0.7
    assert group == {"params": [net[2].A, net[2].B], "scale": 0.7, "name": "2"}


def test_the_layer_gives_the_scale_of_later(generator):
    model = adapted()
    (group,) = factor_pairs(model)
    layer, adapter = group["layer"]
    layer.set_scale(adapter, 3.0)
    assert layer.scaling[adapter] == 3 * group["scale"]


def test_a_layer_used_twice_is_one_pair(generator):
    """One weight at two places has one gradient, the sum over both."""
    layer = nn.Linear(WIDTH, WIDTH)
    model = adapted(nn.Sequential(layer, nn.Tanh()))
    net = model.base_model.model
    net.append(net[0])
    model = at_a_generic_point(model, generator)
    backward(model, torch.randn(5, WIDTH, generator=generator, dtype=torch.float64))
    assert check_gradients(model) == ["0"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pairs_of_any_precision(dtype, generator):
    model = at_a_generic_point(adapted(init=True), generator).to(dtype)
    assert len(groups_of(model)) == 1


# --- left alone: frozen and inactive ------------------------------------------------------------------------------


def two_adapters():
    model = adapted()
    model.add_adapter("other", lora().LoraConfig(r=3, target_modules=["0", "2"], init_lora_weights="gaussian"))
    return model


def names(model):
    return [(group["name"].removeprefix("base_model.model."), group["layer"][1]) for group in factor_pairs(model)]


def test_inactive_adapters_are_left_alone():
    model = two_adapters()
    assert names(model) == [("0", "default")]
    model.set_adapter("other")
    assert names(model) == [("0", "other"), ("2", "other")]
    model.base_model.set_adapter(["default", "other"])
    assert names(model) == [("0.default", "default"), ("0.other", "other"), ("2", "other")]


def test_inactive_adapters_are_left_alone_even_if_they_ask_for_gradients():
    model = two_adapters()
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    assert names(model) == [("0", "default")]
    assert len(trainable_groups(model)) == 1


def test_frozen_pairs_are_left_alone():
    model = adapted(targets=["0", "2"])
    model.base_model.model[0].requires_grad_(False)
    assert names(model) == [("2", "default")]


def test_a_model_without_a_trained_pair():
    with pytest.raises(InputError, match="no LoRA pairs"):
        factor_pairs(plain())
    model = adapted()
    with model.disable_adapter(), pytest.raises(InputError, match=r"All LoRA pairs .* frozen or of inactive"):
        factor_pairs(model)
    with model.disable_adapter(), pytest.raises(InputError, match="frozen or of inactive"):
        factor_pairs(model.requires_grad_(True))
    with pytest.raises(InputError, match="frozen or of inactive"):
        trainable_groups(model.requires_grad_(False))


# --- refused: another update than s·B A ---------------------------------------------------------------------------


class Experts(nn.Module):
    """Three matrices in one parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, WIDTH, WIDTH))

    def forward(self, x):
        return torch.einsum("eij,bj->bi", self.weight, x)


def stacked_experts():
    return adapted(nn.ModuleDict({"experts": Experts()}), [], init=True, target_parameters=["experts.weight"])


def adaptive():
    peft = lora()
    return peft.get_peft_model(plain(), peft.AdaLoraConfig(target_modules=["0"], init_r=RANK, total_step=9))


class LoralibLinear(nn.Linear):
    """The names of ``loralib.Linear``, github.com/microsoft/LoRA."""

    def __init__(self, n, m, r):
        super().__init__(n, m)
        self.lora_A, self.lora_B = nn.Parameter(torch.zeros(r, n)), nn.Parameter(torch.zeros(m, r))
        self.scaling = 1 / r


def monteclora():
    from peft.tuners.lora import MontecloraConfig

    return adapted(init=True, monteclora_config=MontecloraConfig())


def velora():
    from peft.tuners.lora import VeloraConfig

    return adapted(init=True, velora_config=VeloraConfig(num_groups=2))


def block_diagonal():
    from peft.tuners.lora import BdLoraConfig

    return adapted(init=True, use_bdlora=BdLoraConfig(target_modules_bd_a=["0"], nblocks=2))


def kasa():
    from peft.tuners.lora import KasaConfig

    return adapted(init=True, kasa_config=KasaConfig())


VARIANTS = {
    "dora": (lambda: adapted(init=True, use_dora=True), "DoraLinearVariant"),
    "kasa": (kasa, "KasaLinearVariant"),
    "block_diagonal": (block_diagonal, "BdLoraLinearVariant"),
    "velora": (velora, "VeloraLinearVariant"),
    "monteclora": (monteclora, "MontecloraLinearVariant"),
    "activated": (
        lambda: adapted(init=True, alora_invocation_tokens=[1]),
        "ALoraLinearVariant",
    ),
    "minor_components": (lambda: adapted(init="mica"), "MiCALinearVariant"),
    "stacked_experts": (stacked_experts, r"stacks 6 rows in A at rank 2"),
    "adalora": (adaptive, "AdaLoRA"),
    "loralib": (lambda: nn.Sequential(LoralibLinear(4, 3, 2)), "as loralib does"),
    "convolution": (
        lambda: adapted(nn.Sequential(nn.Conv2d(2, 3, 3)), init=True),
        r"shapes \(2, 2, 3, 3\) and \(3, 2, 1, 1\)",
    ),
    "max_norm": (lambda: adapted(nn.Sequential(nn.Embedding(7, 4, max_norm=1.0)), init=True), "max_norm"),
}


@pytest.mark.parametrize(("build", "reason"), VARIANTS.values(), ids=VARIANTS)
def test_another_update_is_refused(build, reason):
    model = build()
    for collect in (factor_pairs, trainable_groups):
        with pytest.raises(InputError, match=reason) as refusal:
            collect(model)
        assert "lora." not in str(refusal.value).replace("LoRA", "")


def test_a_frozen_pair_of_another_update_is_left_alone():
    model = adapted(init=True, use_dora=True)
    model.add_adapter("plain", lora().LoraConfig(r=RANK, target_modules=["0"]))
    model.set_adapter("plain")
    assert names(model) == [("0", "plain")]


def test_a_layer_that_says_that_it_adds_something_else(generator):
    model = at_a_generic_point(adapted(), generator)
    layer = model.base_model.model[0]
    assert len(groups_of(model)) == 1
    own = layer.get_delta_weight
    layer.get_delta_weight = lambda adapter: own(adapter) * torch.tensor([1.0, 1.001] * 4)
    with pytest.raises(InputError, match=r"'base_model.model.0' changes the weight by a matrix other than s·B A"):
        factor_pairs(model)


@pytest.mark.parametrize("letter", "AB")
def test_one_trained_factor_is_refused(letter):
    model = adapted()
    getattr(model.base_model.model[0], f"lora_{letter}").requires_grad_(False)
    with pytest.raises(InputError, match=f"has only one trained factor \\({'BA'['AB'.index(letter)]}\\)"):
        factor_pairs(model)


def test_merged_pairs_are_refused():
    model = adapted()
    model.merge_adapter()
    with pytest.raises(InputError, match="is merged into the weight"):
        factor_pairs(model)
    model.unmerge_adapter()
    assert len(factor_pairs(model)) == 1


def test_a_factor_of_two_layers_is_refused():
    model = adapted(nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, 3), nn.Linear(WIDTH, 4)), ["0", "2"])
    net = model.base_model.model
    net[2].lora_A["default"].weight = net[0].lora_A["default"].weight
    with pytest.raises(InputError, match=r"0.lora_A.default.weight and .*2.lora_A.default.weight are one tensor"):
        factor_pairs(model)


def test_factors_tied_as_views_of_each_other_are_refused():
    """PEFT ties those of an output layer to those of the embedding, each of which then gets half of the gradient."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=11,
        tie_word_embeddings=True,
    )
    net = transformers.LlamaForCausalLM(config)
    model = adapted(net, ["embed_tokens", "lm_head"], init=True, ensure_weight_tying=True)
    with pytest.raises(
        InputError, match=r"lora_embedding_A.default and .*lm_head.lora_B.default.weight are one tensor"
    ):
        factor_pairs(model)


# --- what is trained beside the pairs -----------------------------------------------------------------------------

BESIDE = {
    "modules_to_save": (
        {"modules_to_save": ["2"]},
        ["2.modules_to_save.default.weight", "2.modules_to_save.default.bias"],
    ),
    "biases": ({"bias": "lora_only"}, ["0.base_layer.bias"]),
    "bias_of_the_pair": ({"lora_bias": True, "init": True}, ["0.lora_B.default.bias"]),
}


@pytest.mark.parametrize(("options", "beside"), BESIDE.values(), ids=BESIDE)
def test_what_is_trained_beside_the_pairs_is_named(options, beside):
    model = adapted(**options)
    with pytest.warns(UserWarning, match="trainable_groups and ODELoRA.from_model") as caught:
        pairs = factor_pairs(model)
    assert [group["name"] for group in pairs] == ["base_model.model.0"]
    (message,) = (str(x.message) for x in caught)
    assert all(f"base_model.model.{name}" in message for name in beside)
    groups = trainable_groups(model)
    assert groups[0]["params"] == pairs[0]["params"]
    assert [group["name"] for group in groups[1:]] == [f"base_model.model.{name}" for name in beside]


def test_every_trained_tensor_is_in_one_group():
    model = adapted(targets=["0"], bias="all", modules_to_save=["2"])
    held = [id(p) for group in trainable_groups(model) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_many_names_are_counted():
    model = adapted(bias="none")
    model.extra = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(9)])
    with pytest.warns(UserWarning, match=r"extra\.4 and 4 more;"):
        factor_pairs(model)


def test_copies_are_pairs_of_their_own():
    model = adapted()
    (ours,), (other,) = factor_pairs(model), factor_pairs(copy.deepcopy(model))
    assert ours["params"][0] is not other["params"][0]
    assert math.isclose(ours["scale"], other["scale"])
