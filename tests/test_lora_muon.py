"""LoRA-Muon: a step of the product of a given size in the spectral norm, whatever its factors."""

import pytest
import torch
from factored import SCALE, Product, path
from torch import linalg

from pinn_odelora.errors import InputError
from pinn_odelora.rivals.lora_muon import LoRAMuon, inverse_root, lora_muon, msign


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_product_does_not_depend_on_its_factors(decay):
    make = lambda groups: LoRAMuon(groups, lr=0.05, decay=decay)
    same = path(make)
    assert torch.allclose(same, path(make, factors=Product().other_factors()), rtol=0, atol=1e-9)
    assert float((same[-1] - same[0]).norm()) > 0.3


def test_the_scale_is_part_of_the_factors():
    """s and √s A, √s B with s = 1 are the same adapter."""
    make = lambda groups: LoRAMuon(groups, lr=0.05)
    here = Product()
    factors = [SCALE**0.5 * x.detach() for x in (here.A, here.B)]
    assert torch.allclose(path(make), path(make, scale=1.0, factors=factors), rtol=0, atol=1e-10)


def test_both_parts_of_a_step_have_singular_values_of_half_the_learning_rate():
    product, lr = Product(), 1e-3
    A, B = product.A.detach().clone(), product.B.detach().clone()
    optimizer = LoRAMuon([product.group], lr=lr)
    optimizer.step(product.closure)
    dA, dB = product.A.detach() - A, product.B.detach() - B
    for part in (SCALE * dB @ A, SCALE * B @ dA):
        sigma = linalg.svdvals(part)
        assert torch.allclose(sigma[:3], torch.tensor(lr / 2).double(), rtol=1e-10)
        assert float(sigma[3]) < 1e-15
    assert float(linalg.matrix_norm(SCALE * (dB @ A + B @ dA), 2)) <= lr * (1 + 1e-12)


def test_no_direction_of_half_that_size_descends_faster():
    """Steepest: for the first gradient, −⟨G, s ΔB A⟩ is η/2 times the nuclear norm of G on the rows of A."""
    product = Product()
    G, A, B = product.gradient(), product.A.detach().clone(), product.B.detach().clone()
    LoRAMuon([product.group], lr=0.1).step(product.closure)
    on_rows = G @ linalg.pinv(A) @ A
    descent = -float((G * (SCALE * (product.B.detach() - B) @ A)).sum())
    assert descent == pytest.approx(0.05 * float(linalg.matrix_norm(on_rows, "nuc")), rel=1e-10)


def test_the_product_decays_by_its_own_rate():
    """Without a gradient, by 1 − λη."""
    product = Product()
    change = product.weight() - product.W0
    optimizer = LoRAMuon([product.group], lr=0.2, decay=0.5)
    product.A.grad, product.B.grad = torch.zeros_like(product.A), torch.zeros_like(product.B)
    optimizer.step()
    assert torch.allclose(product.weight() - product.W0, 0.9 * change, rtol=0, atol=1e-13)


def test_a_zero_adapter_moves_only_in_b_at_first():
    product = Product()
    torch.nn.init.zeros_(product.B)
    before = product.A.detach().clone()
    optimizer = LoRAMuon([product.group], lr=0.1)
    optimizer.step(product.closure)
    assert torch.equal(product.A, before)
    assert torch.allclose(linalg.svdvals(SCALE * product.B.detach() @ before)[:3], torch.tensor(0.05).double())
    optimizer.step(product.closure)
    assert not torch.equal(product.A, before)


def test_signs_and_roots_leave_out_what_is_rounding(generator):
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(2, 5, generator=generator, dtype=torch.float64)
    sigma = linalg.svdvals(msign(y))
    assert torch.allclose(sigma, torch.tensor([1, 1, 0, 0, 0]).double(), atol=1e-13)
    S = y.mT @ y
    P = linalg.pinv(y) @ y
    assert torch.allclose(inverse_root(S) @ S @ inverse_root(S), P, atol=1e-10)
    assert torch.equal(msign(torch.zeros(3, 2)), torch.zeros(3, 2))
    assert torch.equal(inverse_root(torch.zeros(2, 2)), torch.zeros(2, 2))


@pytest.mark.parametrize("value", [{"lr": 0}, {"momentum": 1.0}, {"decay": -1.0}, {"decay": 200.0}])
def test_refuses_settings_that_have_no_meaning(value):
    with pytest.raises(InputError, match=f"{next(iter(value))} is "):
        lora_muon(**value)


def test_a_schedule_that_raises_the_learning_rate_too_far_is_refused():
    product = Product()
    optimizer = LoRAMuon([product.group], lr=0.1, decay=5.0)
    optimizer.step(product.closure)
    optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(InputError, match=r"the learning rate is 0\.2, but it must be below 1/decay"):
        optimizer.step(product.closure)
