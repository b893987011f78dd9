"""AltLoRA and AltLoRA+: least-squares projections of the gradient, momentum that follows the other factor."""

import pytest
import torch
from factored import SCALE, Product, path
from torch import linalg

from pinn_odelora.errors import InputError
from pinn_odelora.rivals.altlora import AltLoRA, AltLoRAPlus, altlora, altlora_plus


def test_without_damping_the_product_does_not_depend_on_its_factors():
    make = lambda groups: AltLoRA(groups, lr=0.05, beta=0.8, damping=1e-14)
    same = path(make)
    assert torch.allclose(same, path(make, factors=Product().other_factors()), rtol=0, atol=1e-9)
    assert float((same[-1] - same[0]).norm()) > 0.3


def test_the_first_step_projects_the_gradient_on_the_columns_and_then_on_the_new_rows():
    product = Product()
    lr, before, G = 1e-2, product.weight(), product.gradient()
    A, B = product.A.detach().clone(), product.B.detach().clone()
    AltLoRA([product.group], lr=lr, beta=0.9, damping=1e-14).step(product.closure)
    new = A - lr * SCALE * linalg.lstsq(B, G).solution
    assert torch.allclose(product.A, new, atol=1e-12)
    # The gradient of B is that of before, its projection that of the new A.
    old = SCALE * G @ A.mT
    assert torch.allclose(product.B, B - lr * old @ linalg.inv(new @ new.mT), atol=1e-12)
    moved = product.weight() - before
    assert float((moved * G).sum()) < 0


def test_momentum_is_carried_to_the_columns_of_the_present_factor():
    """With A alone moving, B m_A is the mean of the projected gradients, each projected again on the new columns."""
    product = Product()
    optimizer = AltLoRA([product.group], lr=1e-2, beta=0.5, damping=1e-14)
    optimizer.step(product.closure)
    first = product.A.detach().clone()
    m, B_old = optimizer.state[product.A]["m_A"].clone(), optimizer.state[product.A]["other_A"].clone()
    assert not torch.allclose(B_old, product.B)
    B, G = product.B.detach().clone(), product.gradient()
    optimizer.step(product.closure)
    P = B @ linalg.pinv(B)
    expected = 0.5 * P @ B_old @ m + 0.5 * SCALE * P @ G
    assert torch.allclose(B @ optimizer.state[product.A]["m_A"], expected, atol=1e-10)
    moved = first - product.A.detach()
    assert torch.allclose(B @ moved, 1e-2 / (1 - 0.5**2) * expected, atol=1e-10)


def test_a_zero_adapter_moves_only_in_b_at_first():
    product = Product()
    torch.nn.init.zeros_(product.B)
    before = product.A.detach().clone()
    optimizer = AltLoRA([product.group])
    optimizer.step(product.closure)
    assert torch.equal(product.A, before)
    assert float(product.B.detach().norm()) > 0
    for _ in range(3):
        optimizer.step(product.closure)
    assert not torch.equal(product.A, before)


def test_second_moments_divide_by_the_root_of_an_uncorrected_mean():
    """In the first step m̂ is ĝ and v is (1 - β₂) ĝ², so that every entry moves by η / √(1 - β₂)."""
    product = Product()
    before = product.A.detach().clone()
    AltLoRAPlus([product.group], lr=1e-3, betas=(0.9, 0.75), eps=1e-12).step(product.closure)
    assert torch.allclose((product.A - before).abs(), torch.tensor(2e-3).double(), rtol=1e-6)


def test_the_stored_moment_of_altlora_plus_is_not_carried_along():
    product = Product()
    optimizer = AltLoRAPlus([product.group], lr=1e-2, betas=(0.5, 0.9))
    optimizer.step(product.closure)
    m, B = optimizer.state[product.A]["m_A"].clone(), product.B.detach().clone()
    product.closure()
    optimizer.step()
    D = linalg.inv(B.mT @ B + 1e-3 * torch.eye(3).double())
    assert torch.allclose(optimizer.state[product.A]["m_A"], 0.5 * m + 0.5 * D @ product.A.grad, atol=1e-13)


@pytest.mark.parametrize("method", [altlora, altlora_plus])
@pytest.mark.parametrize("value", [{"lr": 0}, {"damping": 0.0}])
def test_refuses_settings_that_have_no_meaning(method, value):
    with pytest.raises(InputError, match=f"{next(iter(value))} is "):
        method(**value)
