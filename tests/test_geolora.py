"""GeoLoRA: gradient descent in the tangent space and a truncation of bounded error, whatever the singular values."""

import pytest
import torch
from factored import SCALE, Product, path
from torch import linalg

from pinn_odelora.errors import InputError
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim import ODELoRA
from pinn_odelora.rivals.geolora import GeoLoRA, geolora, rank, truncated

LR = 0.05


def tangent(product):
    """P_T(G) at the product."""
    A, B, G = product.A.detach(), product.B.detach(), product.gradient()
    P_B, P_A = B @ linalg.pinv(B), linalg.pinv(A) @ A
    return P_B @ G + G @ P_A - P_B @ G @ P_A


def best(W, r):
    """The best approximation of rank r."""
    U, sigma, Vh = linalg.svd(W)
    return U[:, :r] * sigma[:r] @ Vh[:r]


def test_each_step_is_a_gradient_step_in_the_tangent_space_truncated():
    product = Product()
    optimizer = GeoLoRA([product.group], lr=LR)
    for _ in range(5):
        expected = product.W0 + best(product.weight() - product.W0 - LR * SCALE**2 * tangent(product), 3)
        optimizer.step(product.closure)
        assert torch.allclose(product.weight(), expected, rtol=0, atol=1e-11)


def test_it_is_eulers_scheme_of_odelora_on_the_manifold():
    ours = path(lambda groups: GeoLoRA(groups, lr=LR))
    theirs = path(lambda groups: ODELoRA(groups, lr=LR * SCALE**2, chart="manifold"))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)


def test_the_product_does_not_depend_on_its_factors():
    make = lambda groups: GeoLoRA(groups, lr=LR)
    assert torch.allclose(path(make), path(make, factors=Product().other_factors()), rtol=0, atol=1e-10)


def test_the_loss_descends_by_the_tangent_gradient_and_however_small_a_singular_value_is():
    for small in (1.0, 1e-3, 1e-6):
        product = Product()
        U, _, Vh = linalg.svd(product.B.detach() @ product.A.detach(), full_matrices=False)
        product.B.data, product.A.data = U[:, :3] * torch.tensor([2.0, 1.0, small]).double(), Vh[:3].clone()
        lr = 1e-4
        expected = lr * SCALE**2 * float(tangent(product).square().sum())
        before = float(product.loss(product.weight()))
        optimizer = GeoLoRA([product.group], lr=lr)
        optimizer.step(product.closure)
        after = float(product.loss(product.weight()))
        # The truncation takes away what is normal to the manifold, more of it where it is strongly curved.
        assert 0.5 * expected < before - after < 1.01 * expected


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.3, 0.9])
def test_a_truncation_loses_less_than_its_tolerance_and_keeps_no_more_than_it_needs(tau, generator):
    U, V = (linalg.qr(torch.randn(size, 5, generator=generator, dtype=torch.float64)).Q for size in (8, 7))
    S = torch.randn(5, 5, generator=generator, dtype=torch.float64) @ torch.diag(0.3 ** torch.arange(5).double())
    whole = U @ S @ V.mT
    found = truncated(U, S, V, tau, 5)
    r = len(found.A)
    assert float((found.B @ found.A - whole).norm()) <= tau * float(whole.norm()) + 1e-14
    assert r == 1 or float((best(whole, r - 1) - whole).norm()) >= tau * float(whole.norm())
    assert len(truncated(U, S, V, tau, 2).A) <= 2
    assert torch.allclose(found.A @ found.A.mT, torch.eye(r).double(), atol=1e-13)


def test_the_rank_falls_by_the_tolerance_and_grows_again_within_the_pair():
    """The target has rank 2 at first; later another one has full rank, and other directions: normal ones are not seen.

    A step has to add more than the tolerance takes away, which shorter ones here do not.
    """
    product = Product(r=4)
    product.W0.zero_()
    later, product.target = product.target, best(product.target, 2)
    optimizer, ranks = GeoLoRA([product.group], lr=1.0, tau=0.005), []
    for step in range(240):
        if step == 120:
            product.target = later.flip(0)
        optimizer.step(product.closure)
        ranks.append(rank(Factors(product.A.detach(), product.B.detach())))
    assert (ranks[119], ranks[239]) == (2, 4)
    assert product.A.shape == (4, 6)


def test_a_zero_adapter_moves_along_its_rows_at_first():
    product = Product()
    torch.nn.init.zeros_(product.B)
    A, G = product.A.detach().clone(), product.gradient()
    GeoLoRA([product.group], lr=LR).step(product.closure)
    expected = -LR * SCALE**2 * G @ linalg.pinv(A) @ A
    assert torch.allclose(product.weight() - product.W0, expected, atol=1e-12)


def test_refuses_a_rank_that_no_weight_can_have():
    with pytest.raises(InputError, match="more than its weight 7 x 6 can have, for which GeoLoRA is not defined"):
        GeoLoRA([Product(r=7).group])


@pytest.mark.parametrize("value", [{"lr": 0}, {"tau": 1.0}])
def test_refuses_settings_that_have_no_meaning(value):
    with pytest.raises(InputError, match=f"{next(iter(value))} is "):
        geolora(**value)
