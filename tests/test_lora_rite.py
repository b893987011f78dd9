"""LoRA-RITE: the steps of the package, and a product that does not know how it is factored."""

import math

import pytest
import torch
from factored import Product, path

from pinn_odelora.errors import InputError
from pinn_odelora.rivals.lora_rite import LoRARITE, lora_rite

PLAIN = {"clip": None, "skip": None, "escape": False}
SETTINGS = {
    "plain": PLAIN,
    "authors": {"clip": 1.0, "skip": 1.0, "escape": False},
    "clip": {"clip": 0.3, "skip": None, "escape": False},
    "skip": {"clip": None, "skip": 0.8, "escape": False},
    "escape": {"clip": None, "skip": None, "escape": True},
}


@pytest.mark.parametrize("start", ["generic", "zero"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_takes_the_steps_of_the_package(settings, start):
    package = pytest.importorskip("pytorch_optimizer")
    ours, theirs = (
        [Product(seed=seed) for seed in (3, 4)],
        [Product(seed=seed) for seed in (3, 4)],
    )
    if start == "zero":
        for product in (*ours, *theirs):
            torch.nn.init.zeros_(product.B)
    off = lambda value: 0.0 if value is None else value
    reference = package.LoRARite(
        [{"params": [p.A, p.B]} for p in theirs],
        lr=0.02,
        betas=(0.8, 0.95),
        eps=1e-4,
        clip_unmagnified_grad=off(settings["clip"]),
        update_skipping=off(settings["skip"]),
        apply_escape=settings["escape"],
    )
    optimizer = LoRARITE([p.group for p in ours], lr=0.02, betas=(0.8, 0.95), eps=1e-4, **settings)
    for _ in range(20):
        for p in (*ours, *theirs):
            p.closure()
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.A, b.A, rtol=0, atol=1e-11)
        assert torch.allclose(a.B, b.B, rtol=0, atol=1e-11)
    assert float((ours[0].weight() - Product().weight()).norm()) > 1e-2


@pytest.mark.parametrize("escape", [False, True])
def test_the_product_does_not_depend_on_its_factors(escape):
    make = lambda groups: LoRARITE(groups, lr=0.05, escape=escape)
    same = path(make)
    other = path(make, factors=Product().other_factors())
    assert torch.allclose(same, other, rtol=0, atol=1e-9)
    assert float((same[-1] - same[0]).norm()) > 0.3


def test_nothing_is_skipped_or_clipped_unless_asked_for():
    """With losses a thousand times as large, which the authors' bound on the gradient would stop."""

    def moved(**settings):
        product = Product()
        product.weights *= 1e3
        before = product.weight()
        LoRARITE([product.group], lr=0.1, **settings).step(product.closure)
        return float((product.weight() - before).norm())

    assert moved(skip=1.0) == 0
    assert moved() > 0.05
    assert math.isclose(moved(), moved(clip=1.0), rel_tol=1e-2)  # the second moment takes the size out


def test_a_bound_on_the_norm_of_factors_that_overflow_is_no_error_of_the_library():
    product = Product()
    product.closure()
    product.A.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="cannot be decomposed"):
        LoRARITE([product.group], clip=1.0).step()


def test_refuses_a_rank_that_no_weight_can_have():
    with pytest.raises(InputError, match=r"pair has rank 7, more than its weight 7 x 6 can have, for which LoRA-RITE"):
        LoRARITE([Product(r=7).group])


@pytest.mark.parametrize("value", [{"lr": 0}, {"betas": (0.9,)}, {"eps": 0.0}, {"clip": 0}, {"skip": -1.0}])
def test_refuses_settings_that_have_no_meaning(value):
    with pytest.raises(InputError, match=f"{next(iter(value))} is "):
        lora_rite(**value)
