"""Euler's step from Gram matrices is the step by decompositions of the factors, or is not taken."""

import math

import pytest
import torch

from pinn_odelora.flows import balanced_flow
from pinn_odelora.flows.euler import SAFE, euler_step
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import rebalance
from pinn_odelora.optim import ODELoRA
from pinn_odelora.optim import closed_form as by_gram

SCALE, H = 0.7, 0.05
SHAPES = [(9, 7, 3), (6, 11, 4), (8, 8, 1), (4, 4, 4)]
CONDITIONS = [10.0**k for k in range(9)]
shapes = pytest.mark.parametrize(("m", "n", "r"), SHAPES)
paths = pytest.mark.parametrize("hosts", [("cpu",), ()], ids=["numpy", "torch"])


class Careful(ODELoRA):
    """By decompositions of the factors."""

    def _has_closed_form(self, h, speeds):
        return False


def random(*size, generator):
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def pair(m, n, r, condition, generator, skewed=False):
    """A balanced pair whose product has that condition number, or one with balanced Gram matrices of no kind; and the
    gradients of a loss with a generic gradient of size σ_r, so that a step moves no direction beyond itself."""
    U, V = (torch.linalg.qr(random(k, r, generator=generator)).Q for k in (m, n))
    sigma = torch.logspace(0, -math.log10(condition), r, dtype=torch.float64)
    Q = torch.linalg.qr(random(r, r, generator=generator)).Q
    A, B = Q.T @ (sigma.sqrt()[:, None] * V.T), U * sigma.sqrt() @ Q
    if skewed:
        P = random(r, r, generator=generator) + 3 * torch.eye(r, dtype=torch.float64)
        A, B = torch.linalg.solve(P, A), B @ P
    G = sigma[-1] * random(m, n, generator=generator)
    return Factors(A, B), Factors(SCALE * B.T @ G, SCALE * G @ A.T)


def careful_step(y, g, h=H):
    dy = balanced_flow(y, g, SCALE)
    return rebalance(Factors(y.A + h * dy.A, y.B + h * dy.B), y)


def distance(found, exact):
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(found, exact, strict=True))


@shapes
@paths
@pytest.mark.parametrize("skewed", [False, True])
def test_a_generic_step_is_that_of_flow_and_retraction(m, n, r, skewed, hosts, generator, monkeypatch):
    monkeypatch.setattr("pinn_odelora.flows.euler.HOSTS", hosts)
    pairs, gradients = zip(*(pair(m, n, r, 5.0, generator, skewed) for _ in range(4)), strict=True)
    alone = [euler_step([y], [g], SCALE, H)[0] for y, g in zip(pairs, gradients, strict=True)]
    for y, g, one, together in zip(pairs, gradients, alone, euler_step(pairs, gradients, SCALE, H), strict=True):
        exact = careful_step(y, g)
        assert distance(exact, y) > 1e-3
        assert distance(one, exact) < 1e-13
        assert distance(together, exact) < 1e-13


@paths
@pytest.mark.parametrize("condition", CONDITIONS)
def test_an_ill_conditioned_pair_has_the_same_digits_or_none(condition, hosts, generator, monkeypatch):
    """The rounding of float64 times the condition number, where Gram matrices are trusted."""
    monkeypatch.setattr("pinn_odelora.flows.euler.HOSTS", hosts)
    y, g = pair(9, 7, 3, condition, generator)
    found = euler_step([y], [g], SCALE, H)
    assert (found is None) == (condition > 1 / SAFE / 1.5)
    if found is not None:
        exact = careful_step(y, g)
        assert distance(found[0], exact) < 1e-16 * condition + 1e-14
        difference = found[0].B @ found[0].A - exact.B @ exact.A
        assert float(difference.norm() / (exact.B @ exact.A).norm()) < 1e-16 * condition + 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_optimiser_takes_the_same_steps_by_either_way(condition, dtype, layers, generator):
    ends = []
    start = [pair(9, 7, 3, condition, generator) for _ in range(layers)]
    for kind in (ODELoRA, Careful):
        groups = []
        for y, g in start:
            params = [torch.nn.Parameter(x.to(dtype, copy=True)) for x in y]
            for p, x in zip(params, g, strict=True):
                p.grad = x.to(dtype)
            groups.append({"params": params, "scale": SCALE})
        optimizer = kind(groups, lr=H)
        for _ in range(3):
            optimizer.step()
        ends.append(Factors(*(torch.stack([group["params"][k].detach() for group in groups]) for k in (0, 1))))
    # Of numbers of 32 and of 16 bits, an inverse has lost as many digits as the condition number has.
    limit = 1e-12 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    assert distance(*ends) < limit


def test_a_step_that_cancels_a_factor_is_left_to_the_careful_way(generator):
    """Backwards along a direction of the pair itself, until its smallest singular value all but vanishes."""
    y, _ = pair(9, 7, 3, 5.0, generator)
    U, sigma, V = torch.linalg.svd(y.B @ y.A, full_matrices=False)
    G = U[:, 2:3] @ V[2:3]
    g = Factors(SCALE * y.B.T @ G, SCALE * G @ y.A.T)
    for left in (1e-9, 1e-6):
        # The product loses h/s of u vᵀ, to second order in h as B₊A₊ has it.
        h = 2 * SCALE * float(sigma[2]) * (1 - left)
        found = euler_step([y], [g], SCALE, h)
        assert found is None
    assert euler_step([y], [g], SCALE, 0.3 * h) is not None


def test_numbers_that_are_not_finite_or_of_no_rank_are_left_to_the_careful_way(generator):
    y, g = pair(9, 7, 3, 5.0, generator)
    for bad in (math.nan, math.inf):
        wrong = Factors(g.A.clone(), g.B)
        wrong.A[1, 2] = bad
        assert euler_step([y], [wrong], SCALE, H) is None
    assert euler_step([Factors(y.A, 0 * y.B)], [g], SCALE, H) is None
    assert euler_step([y], [g], SCALE, 1e300) is None
    single = [Factors(*(x.float() for x in z)) for z in (Factors(1e19 * y.A, 1e19 * y.B), g)]
    assert euler_step(single[:1], single[1:], SCALE, H) is not None


def test_groups_of_every_kind_move_as_by_the_careful_way(generator):
    """Two shapes, two scales, a pair without gradients, single tensors, in several batches; one evaluation."""
    shapes = [(9, 7, 3), (9, 7, 3), (6, 11, 4), (9, 7, 3), (9, 7, 3)]
    start = [pair(*shape, 5.0, generator) for shape in shapes]
    bias, slope = random(6, generator=generator), random(6, generator=generator)
    ends, calls = [], []
    for kind in (ODELoRA, Careful):
        groups = [{"params": [torch.nn.Parameter(x.clone()) for x in y], "scale": SCALE} for y, _ in start]
        groups[1]["scale"] = 2 * SCALE
        groups.append({"params": [torch.nn.Parameter(bias.clone())]})
        given = [*(g for _, g in start), [slope]]

        def closure(groups=groups, given=given):
            calls.append(1)
            for group, g in zip(groups, given, strict=True):
                for p, x in zip(group["params"], g, strict=True):
                    p.grad = None if group is groups[3] else x.clone()
            return torch.tensor(0.5)

        optimizer = kind(groups, lr=H)
        assert float(optimizer.step(closure)) == 0.5
        assert (optimizer.report.h, optimizer.report.loss) == (H, 0.5)
        ends.append([p.detach() for group in groups for p in group["params"]])
    assert len(calls) == 2
    assert all(torch.equal(a, b) for a, b in zip(ends[0][6:8], start[3][0], strict=True))
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-13)
    assert torch.equal(ends[0][-1], ends[1][-1])


def test_the_careful_way_asks_for_no_second_loss(generator):
    """One pair of many is ill-conditioned."""
    calls = []
    groups = []
    for condition in (5.0, 1e7):
        y, g = pair(9, 7, 3, condition, generator)
        groups.append({"params": [torch.nn.Parameter(x) for x in y], "scale": SCALE})
        for p, x in zip(groups[-1]["params"], g, strict=True):
            p.grad = x
    before = [p.detach().clone() for group in groups for p in group["params"]]
    assert ODELoRA(groups, lr=H).step(lambda: calls.append(1) or torch.tensor(2.0)) == 2.0
    assert calls == [1]
    assert not any(torch.equal(p, x) for p, x in zip([p for g in groups for p in g["params"]], before, strict=True))


def test_batches_are_pieces_of_one_kind(monkeypatch):
    new = lambda *size: torch.nn.Parameter(torch.ones(*size))
    groups = [{"params": [new(2, 5), new(4, 2)], "scale": s} for s in (1.0, 1.0, 2.0, 1.0)]
    groups.append({"params": [new(2, 4), new(4, 2)], "scale": 1.0})
    values = [group["params"] for group in groups]
    assert by_gram._batches(groups, values, range(5)) == [[0, 1, 3], [2], [4]]
    monkeypatch.setattr(by_gram, "PIECE", 40)
    assert by_gram._batches(groups, values, range(5)) == [[0, 1], [3], [2], [4]]
