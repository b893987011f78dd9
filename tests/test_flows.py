"""The balanced flow: its invariants at generic points, and LoRA-Pro's direction written out independently."""

import pytest
import torch

from pinn_odelora.errors import InputError
from pinn_odelora.flows import balanced_flow, gradient_flow, scaled_flow
from pinn_odelora.manifolds.factors import Factors, balance_defect
from pinn_odelora.manifolds.fixed_rank import rebalance

SCALE = 0.7
SHAPES = [(7, 5, 2), (5, 9, 3), (6, 6, 1), (4, 4, 4)]
shapes = pytest.mark.parametrize(("m", "n", "r"), SHAPES)


def random(*size, generator):
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def generic(m, n, r, generator):
    """Unbalanced factors, a full gradient G, and the gradients of the factors."""
    y = Factors(random(r, n, generator=generator), random(m, r, generator=generator))
    G = random(m, n, generator=generator)
    return y, G, Factors(SCALE * y.B.T @ G, SCALE * G @ y.A.T)


def product_velocity(y, dy):
    return SCALE * (dy.B @ y.A + y.B @ dy.A)


def tangent_projection(y, G):
    """P_B G + G P_A - P_B G P_A with orthonormal bases, not Gram matrices."""
    Q_B, Q_A = torch.linalg.qr(y.B).Q, torch.linalg.qr(y.A.T).Q
    P_B, P_A = Q_B @ Q_B.T, Q_A @ Q_A.T
    return P_B @ G + G @ P_A - P_B @ G @ P_A


@shapes
def test_product_follows_the_projected_full_gradient(m, n, r, generator):
    y, G, g = generic(m, n, r, generator)
    difference = product_velocity(y, balanced_flow(y, g, SCALE)) + tangent_projection(y, G)
    assert float(difference.abs().max()) < 1e-10


def test_a_direction_that_is_not_needed_keeps_its_digits_in_every_gauge(generator):
    """σ_2/σ_1 = 1e-12, as in a rank too many: of Gram matrices that are formed four digits would be left."""
    U, V = (torch.linalg.qr(random(n, 2, generator=generator)).Q for n in (7, 5))
    Q = torch.linalg.qr(random(2, 2, generator=generator)).Q
    root = torch.tensor([1.0, 1e-6], dtype=torch.float64)
    y, G = Factors(Q.T @ (root[:, None] * V.T), U * root @ Q), random(7, 5, generator=generator)
    moved = product_velocity(y, balanced_flow(y, Factors(SCALE * y.B.T @ G, SCALE * G @ y.A.T), SCALE))
    P_U, P_V = U @ U.T, V @ V.T
    assert torch.allclose(moved, P_U @ G @ P_V - P_U @ G - G @ P_V, atol=1e-8)


def test_a_rank_above_the_size_of_a_factor_is_refused(generator):
    y, _, g = generic(7, 2, 3, generator)
    with pytest.raises(InputError, match="factor A has lost rank"):
        balanced_flow(y, g, SCALE)


@shapes
def test_balance_does_not_move_from_any_starting_point(m, n, r, generator):
    y, _, g = generic(m, n, r, generator)
    dA, dB = balanced_flow(y, g, SCALE)
    drift = dB.T @ y.B + y.B.T @ dB - dA @ y.A.T - y.A @ dA.T
    assert float(drift.abs().max()) < 1e-10


@shapes
def test_motion_is_horizontal(m, n, r, generator):
    """BᵀdB = dA Aᵀ: the factors move as little as the product's velocity allows."""
    y, _, g = generic(m, n, r, generator)
    dA, dB = balanced_flow(y, g, SCALE)
    assert torch.allclose(y.B.T @ dB, dA @ y.A.T, atol=1e-10)


@shapes
def test_product_velocity_is_blind_to_the_choice_of_factors(m, n, r, generator):
    y, G, g = generic(m, n, r, generator)
    P = random(r, r, generator=generator) + 2 * torch.eye(r, dtype=torch.float64)
    other = Factors(torch.linalg.solve(P, y.A), y.B @ P)
    moved = balanced_flow(other, Factors(SCALE * other.B.T @ G, SCALE * G @ other.A.T), SCALE)
    same = product_velocity(y, balanced_flow(y, g, SCALE))
    assert torch.allclose(product_velocity(other, moved), same, atol=1e-9)


@shapes
def test_euler_step_is_the_direction_of_lora_pro_with_sgd(m, n, r, generator):
    """LoRA-Pro (Wang et al., 2025): pseudo-inverses and a Sylvester equation solved through a Kronecker product."""
    y, _, g = generic(m, n, r, generator)
    A, B = y
    inverse_A, inverse_B = torch.linalg.inv(A @ A.T), torch.linalg.inv(B.T @ B)
    right = -inverse_B @ g.A @ A.T / SCALE**2
    identity = torch.eye(r, dtype=torch.float64)
    kronecker = torch.kron(B.T @ B, identity) + torch.kron(identity, A @ A.T)
    X = torch.linalg.solve(kronecker, right.flatten()).reshape(r, r)
    direction_A = inverse_B @ g.A / SCALE**2 + X @ A
    projector = torch.eye(m, dtype=torch.float64) - B @ inverse_B @ B.T
    direction_B = projector @ g.B @ inverse_A / SCALE**2 - B @ X
    dy = balanced_flow(y, g, SCALE)
    assert torch.allclose(dy.A, -direction_A, atol=1e-9)
    assert torch.allclose(dy.B, -direction_B, atol=1e-9)


@shapes
def test_the_scaled_flow_is_the_one_of_its_authors(m, n, r, generator):
    """Tong, Ma and Chi (2021) for X = L Rᵀ: L moves by ∇f R (RᵀR)⁻¹ and R by ∇fᵀ L (LᵀL)⁻¹; at scale 1."""
    y, G, _ = generic(m, n, r, generator)
    L, R = y.B, y.A.T
    dA, dB = scaled_flow(y, Factors(L.T @ G, G @ R), 1.0)
    assert torch.allclose(dB, -G @ R @ torch.linalg.inv(R.T @ R), rtol=1e-9, atol=1e-10)
    assert torch.allclose(dA.T, -G.T @ L @ torch.linalg.inv(L.T @ L), rtol=1e-9, atol=1e-10)


@shapes
def test_the_scaled_product_counts_the_part_in_both_spaces_twice(m, n, r, generator):
    y, G, g = generic(m, n, r, generator)
    Q_B, Q_A = torch.linalg.qr(y.B).Q, torch.linalg.qr(y.A.T).Q
    expected = -tangent_projection(y, G) - Q_B @ (Q_B.T @ G @ Q_A) @ Q_A.T
    assert torch.allclose(product_velocity(y, scaled_flow(y, g, SCALE)), expected, atol=1e-10)


@shapes
def test_a_scaled_step_of_the_product_is_blind_to_the_choice_of_factors(m, n, r, generator):
    y, G, _ = generic(m, n, r, generator)
    P = random(r, r, generator=generator) + 2 * torch.eye(r, dtype=torch.float64)
    products = []
    for A, B in (y, (torch.linalg.solve(P, y.A), y.B @ P)):
        dA, dB = scaled_flow(Factors(A, B), Factors(SCALE * B.T @ G, SCALE * G @ A.T), SCALE)
        products.append((B + 0.3 * dB) @ (A + 0.3 * dA))
    assert torch.allclose(*products, atol=1e-9)


@pytest.mark.parametrize("flow", [balanced_flow, gradient_flow, scaled_flow])
def test_a_flow_descends_and_batches(flow, generator):
    points = [generic(6, 5, 2, generator) for _ in range(3)]
    stack = lambda k, j: torch.stack([p[k][j] for p in points])
    batched = flow(Factors(stack(0, 0), stack(0, 1)), Factors(stack(2, 0), stack(2, 1)), SCALE)
    for i, (y, G, g) in enumerate(points):
        single = flow(y, g, SCALE)
        assert float((G * product_velocity(y, single)).sum()) < 0
        assert torch.allclose(batched.A[i], single.A, rtol=1e-9)
        assert torch.allclose(batched.B[i], single.B, rtol=1e-9)


def test_small_matrices_are_solved_in_float64_whatever_the_dtype(generator):
    """Condition number 1e4 of the Gram matrices: float32 algebra would lose four of its seven digits."""
    y, _, g = generic(8, 7, 3, generator)
    y = Factors(torch.diag(torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)) @ y.A, y.B)
    y, g = (Factors(*(x.float().double() for x in pair)) for pair in (y, g))
    exact = balanced_flow(y, g, SCALE)
    single = balanced_flow(Factors(*(x.float() for x in y)), Factors(*(x.float() for x in g)), SCALE)
    assert single.A.dtype == torch.float32
    for a, b in zip(single, exact, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-7


@pytest.mark.parametrize("flow", [balanced_flow, scaled_flow])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_lost_rank_is_refused_with_the_way_out(factor, flow, generator):
    y, _, g = generic(6, 5, 2, generator)
    with pytest.raises(InputError, match=rf"factor {factor} has lost rank.*orthonormal.*pissa"):
        flow(y._replace(**{factor: torch.zeros_like(getattr(y, factor))}), g, SCALE)


@shapes
def test_rebalancing_keeps_the_product_and_ends_on_the_manifold(m, n, r, generator):
    y, _, _ = generic(m, n, r, generator)
    balanced = rebalance(y)
    assert torch.allclose(balanced.B @ balanced.A, y.B @ y.A, atol=1e-12)
    assert float(balance_defect(balanced)) < 1e-12
    assert float(balance_defect(y)) > 0.1


@shapes
def test_rebalancing_takes_the_pair_nearest_to_the_former_one(m, n, r, generator):
    """No rotation of it, near or far, is closer; SVD form, which is one of them, is less close."""
    y, _, _ = generic(m, n, r, generator)
    former, _, _ = generic(m, n, r, generator)
    found = rebalance(y, former)
    assert torch.allclose(found.B @ found.A, y.B @ y.A, atol=1e-12)
    assert float(balance_defect(found)) < 1e-12

    def distance(pair):
        return float((pair.A - former.A).square().sum() + (pair.B - former.B).square().sum())

    assert distance(found) < distance(rebalance(y)) or r == 1
    for size in (1e-3, 1e-1, 10.0):
        skew = size * random(r, r, generator=generator)
        Q = torch.linalg.matrix_exp(skew - skew.T)
        assert distance(found) <= distance(Factors(Q.T @ found.A, found.B @ Q)) + 1e-12
    flipped = torch.diag(torch.tensor([-1.0] + [1.0] * (r - 1), dtype=torch.float64))
    assert distance(found) <= distance(Factors(flipped @ found.A, found.B @ flipped)) + 1e-12
