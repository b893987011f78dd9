"""PoLAR: its own parameters behind a pair, directions near the Stiefel manifold, gradients as autograd has them."""

import pytest
import torch
from factored import SCALE, Product
from torch import linalg

from pinn_odelora.errors import InputError
from pinn_odelora.rivals.polar import PoLAR, landing_field, polar

BETAS, LR = (0.8, 0.95), 0.01


def defect(X):
    return float((X.mT @ X - torch.eye(X.shape[1]).double()).norm())


class Plain:
    """X, Θ, Y as parameters of autograd, the landing field written out, torch's Adam."""

    def __init__(self, product, X, T, Y, landing, eps):
        self.product, self.landing = product, landing
        self.X, self.T, self.Y = (torch.nn.Parameter(x.clone()) for x in (X, T, Y))
        self.adam = torch.optim.Adam([self.X, self.T, self.Y], lr=LR, betas=BETAS, eps=eps)

    def weight(self):
        return self.product.W0 + SCALE * self.X @ self.T @ self.Y.mT

    def step(self):
        self.adam.zero_grad()
        self.product.loss(self.weight()).backward()
        for x in (self.X, self.Y):
            X, g = x.detach(), x.grad
            normal = X @ (X.mT @ X - torch.eye(X.shape[1]).double())
            x.grad = (g @ X.mT - X @ g.mT) @ X + self.landing * normal
        self.adam.step()


@pytest.mark.parametrize("landing", [0.3, 1.0])
@pytest.mark.parametrize("start", ["generic", "zero"])
def test_the_pair_follows_the_three_matrices_exactly(start, landing):
    product = Product()
    if start == "zero":
        torch.nn.init.zeros_(product.B)
    optimizer = PoLAR([product.group], lr=LR, betas=BETAS, landing=landing)
    X, M = linalg.qr(product.B.detach())
    Y, R = linalg.qr(product.A.detach().mT)
    if start == "zero":
        generator = torch.Generator().manual_seed(0)
        X = linalg.qr(torch.randn(7, 3, generator=generator, dtype=torch.float64)).Q
        # X and Y have no gradient at first, and Adam would divide what rounding leaves of it by an ε of its own size.
        optimizer.param_groups[0]["eps"] = 1e-4
    plain = Plain(product, X, M @ R.mT, Y, landing, optimizer.param_groups[0]["eps"])
    for _ in range(20):
        optimizer.step(product.closure)
        plain.step()
        assert torch.allclose(product.weight(), plain.weight().detach(), rtol=0, atol=1e-10)
    assert float(plain.T.detach().norm()) > 0.1


def test_directions_land_on_the_orthonormal_ones_as_the_gradient_falls():
    def defects(landing):
        product, found = Product(), []
        optimizer = PoLAR([product.group], lr=LR, landing=landing)
        for _ in range(1000):
            optimizer.step(product.closure)
            found.append(max(defect(optimizer.state[product.A]["X"]), defect(product.A.detach().mT)))
        return found

    pulled, free = defects(1.0), defects(0.0)
    assert max(pulled) < 1.2
    assert pulled[-1] < 0.01
    assert free[-1] > 1


def test_the_landing_field_is_tangent_on_the_manifold_and_leads_to_it(generator):
    X = linalg.qr(torch.randn(7, 3, generator=generator, dtype=torch.float64)).Q
    g = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    field = landing_field(X, g, 1.0)
    assert float((X.mT @ field + field.mT @ X).norm()) < 1e-13
    assert torch.allclose(field, (g @ X.mT - X @ g.mT) @ X)
    away = 1.1 * X
    assert defect(away - 0.1 * landing_field(away, torch.zeros_like(g), 1.0)) < defect(away)


def test_refuses_what_has_no_directions():
    with pytest.raises(InputError, match="more than its weight 7 x 6 can have, for which PoLAR is not defined"):
        PoLAR([Product(r=7).group])
    product = Product()
    product.A.data[1] = product.A.data[0]
    with pytest.raises(InputError, match="the factor A of pair has linearly dependent rows"):
        PoLAR([product.group])


@pytest.mark.parametrize("value", [{"lr": 0}, {"landing": -1.0}, {"seed": -1}])
def test_refuses_settings_that_have_no_meaning(value):
    with pytest.raises(InputError, match=f"{next(iter(value))} is "):
        polar(**value)
