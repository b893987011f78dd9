"""LoFT: with full rank it is Adam on the whole weight; with less, Adam's step projected."""

import pytest
import torch
from factored import SCALE, Product
from torch import linalg

from pinn_odelora.errors import InputError
from pinn_odelora.rivals.loft import LoFT, loft

BETAS, EPS, LR = (0.8, 0.95), 1e-4, 0.03


def whole(product, steps):
    """The weights after each step of torch's Adam on W itself."""
    W = torch.nn.Parameter(product.weight())
    adam = torch.optim.Adam([W], lr=LR, betas=BETAS, eps=EPS)
    weights = []
    for _ in range(steps):
        W.grad = product.weights * torch.tanh(W.detach() - product.target)
        adam.step()
        weights.append(W.detach().clone())
    return torch.stack(weights)


def test_with_full_rank_it_is_adam_on_the_weight():
    product = Product(m=5, n=5, r=5)
    expected = whole(product, 12)
    optimizer = LoFT([product.group], lr=LR, betas=BETAS, eps=EPS, dampings=(0.0, 0.0))
    found = []
    for _ in range(12):
        optimizer.step(product.closure)
        found.append(product.weight())
    assert torch.allclose(torch.stack(found), expected, rtol=0, atol=1e-9)
    assert float((expected[-1] - expected[0]).norm()) > 1


def test_the_first_step_is_that_of_adam_projected_on_the_rows():
    product = Product()
    before, A = product.weight(), product.A.detach().clone()
    P = linalg.pinv(A) @ A
    G = product.gradient() @ P
    LoFT([product.group], lr=LR, betas=BETAS, eps=EPS, dampings=(0.0, 0.0)).step(product.closure)
    assert torch.equal(product.A, A)
    assert torch.allclose(product.weight() - before, -LR * (G / (G.abs() + EPS)) @ P, atol=1e-10)


def test_factors_take_turns_and_both_moments_see_every_gradient():
    product = Product()
    optimizer = LoFT([product.group], lr=LR)
    for turn in range(4):
        A, B = product.A.detach().clone(), product.B.detach().clone()
        moments = {key: x.clone() for key, x in optimizer.state[product.A].items() if key[0] in "mv"}
        optimizer.step(product.closure)
        assert torch.equal(product.A, A) == (turn % 2 == 0)
        assert torch.equal(product.B, B) == (turn % 2 == 1)
        assert all(not torch.equal(x, optimizer.state[product.A][key]) for key, x in moments.items())


def test_the_scale_is_part_of_the_factors():
    here = Product()
    there = Product(scale=1.0, factors=[SCALE**0.5 * x.detach() for x in (here.A, here.B)])
    for product in (here, there):
        optimizer = LoFT([product.group], lr=LR, dampings=(0.0, 0.0))
        for _ in range(6):
            optimizer.step(product.closure)
    assert torch.allclose(here.weight(), there.weight(), rtol=0, atol=1e-10)


def test_without_damping_the_product_does_not_depend_on_its_factors():
    here = Product()
    there = Product(factors=here.other_factors())
    for product in (here, there):
        optimizer = LoFT([product.group], lr=LR, dampings=(0.0, 0.0))
        for _ in range(6):
            optimizer.step(product.closure)
    assert torch.allclose(here.weight(), there.weight(), rtol=0, atol=1e-8)


def test_a_zero_adapter_starts_to_move():
    product = Product()
    torch.nn.init.zeros_(product.B)
    optimizer, losses = LoFT([product.group], lr=LR), []
    for _ in range(30):
        losses.append(float(optimizer.step(product.closure)))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("value", [{"lr": 0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}])
def test_refuses_settings_that_have_no_meaning(value):
    with pytest.raises(InputError, match=f"{next(iter(value))} is "):
        loft(**value)
