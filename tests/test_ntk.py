"""The linearised model: its Jacobian, its minimum over full matrices and over factors, low rank, and thresholds."""

import dataclasses
import math
import re

import pytest
import torch
from test_linearisation import Net
from test_problems import CLASSES
from torch import linalg, nn
from torch.func import functional_call, jacrev, vmap

import pinn_odelora as po
import pinn_odelora.ntk.linearise as linearise_module
from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError
from pinn_odelora.integrators import LinearlyImplicit, RungeKutta
from pinn_odelora.integrators.tableau import EULER, RK4
from pinn_odelora.linearisation.blocks import Formed, Group
from pinn_odelora.lowrank.start import orthonormal, zero
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.matrix_problem import MatrixProblem
from pinn_odelora.methods import full_adam, lora_adam, lora_gd, odelora
from pinn_odelora.ntk import (
    Examples,
    LinearisedRun,
    duality_gap,
    linearised,
    nuclear_norm,
    nuclear_norm_solution,
    optimality,
    proximal,
    rank_thresholds,
    ranks,
    reduce_rank,
    train,
)
from pinn_odelora.ntk.losses import CrossEntropy, Logistic, SquaredError
from pinn_odelora.ntk.model import Linearised
from pinn_odelora.ntk.proximal import soft_threshold
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.heat import Heat
from problems.poisson import Poisson


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*size, seed=0):
    return torch.randn(*size, generator=generator(seed), dtype=torch.float64)


def random_model(shapes, rows, loss=None, seed=0):
    """Gaussian measurements of two or more matrices, and noise for data."""
    g = generator(seed)
    blocks = {
        name: Formed(torch.randn(rows, m, n, generator=g, dtype=torch.float64)) for name, (m, n) in shapes.items()
    }
    start = torch.randn(rows, generator=g, dtype=torch.float64)
    group = Group("rows", slice(0, rows), start, blocks, {})
    return Linearised(start, [group], shapes, loss or SquaredError(torch.zeros(rows).double()), {"rows": group.rows})


SHAPES = {"first": (5, 4), "second": (3, 6)}


def classifier(outputs=3):
    g = generator(5)
    return Net(2, outputs, torch.tanh, g)


def examples(N=14, K=3, loss="cross_entropy"):
    x = normal(N, 2, seed=3)
    if loss == "cross_entropy":
        return Examples(x, torch.randint(K, (N,), generator=generator(4)), loss)
    if loss == "logistic":
        return Examples(x, 2 * torch.randint(2, (N,), generator=generator(4)) - 1, loss)
    return Examples(x, normal(N, K, seed=4), loss)


# The Jacobian.


class PointField(Field):
    """The field of a network at one point, with derivatives by nested ``jacrev`` of a function of the coordinates."""

    def __init__(self, problem, network, point):
        super().__init__(point, problem.fields, problem.coords)
        self.problem, self.network = problem, network

    def _value(self, x):
        p = Points({**self.points, **{c: x[i].reshape(1, 1) for i, c in enumerate(self.coords)}})
        N = self.network(self.problem.embed(p))
        if self.problem.conditions == "soft":
            return N[0]
        g, m = self.problem.ansatz(p)
        return (g + m * N)[0]

    def derivative(self, field, along):
        function = self._value
        for c in along:
            function = self._along(function, self.coords.index(c))
        x = torch.stack([self.points[c].reshape(()) for c in self.coords])
        return function(x)[self.fields.index(field)].reshape(1, 1)

    @staticmethod
    def _along(function, i):
        return lambda x: jacrev(lambda t: function(x + t * torch.eye(len(x), dtype=x.dtype)[i]))(x.new_zeros(()))

    def at(self, **columns):
        return PointField(self.problem, self.network, Points({**self.points, **columns}))


def by_vmap(problem, net, points, layers):
    """r and its Jacobian by weights, of every row, from ``vmap(jacrev)``; weighted as the loss says."""
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    fixed = {key: x.detach() for key, x in net.state_dict().items()}
    J = []
    for name, term in problem.loss_terms().items():
        p = points[name]
        keys = [*p]

        def rows(moving, *columns, term=term, keys=keys):
            network = lambda x: functional_call(net, fixed | {f"{n}.weight": W for n, W in moving.items()}, (x,))
            point = Points({k: c.reshape(1, 1) for k, c in zip(keys, columns, strict=True)})
            return term.rows(PointField(problem, network, point))[0]

        found = vmap(jacrev(rows), in_dims=(None, *[0] * len(keys)))(weights, *(p[k] for k in keys))
        each = torch.cat([found[n].flatten(2) for n in layers], dim=2)  # (N, components, columns)
        J.append(math.sqrt(2 * term.weight / p.number) * each.transpose(0, 1).flatten(0, 1))
    return torch.cat(J)


def small(cls, conditions):
    return cls(rows=4, columns=3, rank=2) if issubclass(cls, MatrixProblem) else cls(conditions=conditions)


@pytest.mark.parametrize(
    "problem",
    [small(cls, conditions) for cls in CLASSES for conditions in cls.supports],
    ids=lambda p: f"{type(p).__name__}-{p.conditions}",
)
def test_the_kernel_is_that_of_vmap_and_jacrev(problem):
    problem = dataclasses.replace(problem, weights={n: 0.3 + 0.4 * k for k, n in enumerate(problem.loss_terms())})
    net = Net(problem.inputs, len(problem.fields), torch.tanh, generator(1))
    model = linearised(net, problem, interior=6, boundary=4, seed=2)
    points = draw_points(System(problem, Solution(problem, net)).terms, 6, 4, 2)
    layers = {name: net.get_submodule(name) for name in model.shapes}
    J = by_vmap(problem, net, points, layers)
    K = J @ J.mT
    assert model.kernel().shape == K.shape
    assert float((model.kernel() - K).abs().max()) <= 1e-11 * float(K.abs().max())
    assert float((model.matrix() - J).abs().max()) <= 1e-11 * float(J.abs().max())


def test_the_outputs_are_those_of_the_network_to_second_order():
    problem = Burgers()
    net = Net(2, 1, torch.tanh, generator(1))
    model = linearised(net, problem, interior=8, seed=3)
    D = {name: normal(*shape, seed=k) for k, (name, shape) in enumerate(model.shapes.items())}
    system = System(problem, Solution(problem, net))
    points = draw_points(system.terms, 8, 25, 3)
    W = {name: net.get_submodule(name).weight.detach().clone() for name in model.shapes}
    defects = []
    for t in (1e-2, 1e-3):
        for name in W:
            net.get_submodule(name).weight.data = W[name] + t * D[name]
        defects.append(
            float(
                (system.residual_vector(points) - model.values({n: t * x for n, x in D.items()})).abs().max().detach()
            )
        )
    assert defects[1] < 1e-4
    assert math.log10(defects[0] / defects[1]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy", "logistic"])
def test_the_loss_of_examples_is_that_of_torch_and_its_gradient_that_of_the_network(loss):
    K = 1 if loss == "logistic" else 3
    net, data = classifier(K), examples(K=K, loss=loss)
    model = linearised(net, data, targets="*")
    f = net(data.inputs)
    expected = {
        "squared": lambda: (f - data.targets).square().sum() / 2 / len(f),
        "cross_entropy": lambda: nn.functional.cross_entropy(f, data.targets),
        "logistic": lambda: torch.log1p(torch.exp(-data.targets[:, None] * f)).mean(),
    }[loss]()
    assert float(model.value(model.zero())) == pytest.approx(float(expected.detach()), abs=1e-14)
    layers = [net.get_submodule(name) for name in model.shapes]
    G = torch.autograd.grad(expected, [layer.weight for layer in layers])
    for found, exact in zip(model.gradient(model.zero()).values(), G, strict=True):
        assert torch.allclose(found, exact, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy", "logistic"])
def test_gradient_conjugate_and_curvature_belong_to_the_loss(loss):
    """φ(f) + φ*(∇φ(f)) = ⟨f, ∇φ(f)⟩, the Fenchel identity, and ≥ for other gradients."""
    made = {
        "squared": SquaredError(normal(12, seed=1), 0.3),
        "cross_entropy": CrossEntropy(torch.randint(3, (4,), generator=generator(2)), 3),
        "logistic": Logistic(torch.sign(normal(12, seed=1))),
    }[loss]
    f, other = normal(12, seed=2), normal(12, seed=3)
    w = made.gradient(f)
    exact = torch.autograd.functional.jacobian(made.value, f)
    assert torch.allclose(w, exact, atol=1e-14)
    assert float(made.value(f) + made.conjugate(w) - f @ w) == pytest.approx(0, abs=1e-13)
    for t in (0.0, 0.4, 1.0):
        assert float(made.value(other) + made.conjugate(t * w) - t * other @ w) >= -1e-13
    H = torch.autograd.functional.hessian(made.value, f)
    assert float(linalg.eigvalsh(H)[-1]) <= made.curvature * (1 + 1e-12)


# The minimum over full matrices.


def by_cvxpy(model, weight, loss):
    """The same problem, posed in J as an array."""
    cp = pytest.importorskip("cvxpy")
    X = {name: cp.Variable(shape) for name, shape in model.shapes.items()}
    J = model.matrix().numpy()
    # torch flattens row by row.
    f = model.start.numpy() + J @ cp.hstack([cp.vec(x, order="C") for x in X.values()])
    if isinstance(loss, SquaredError):
        phi = loss.c / 2 * cp.sum_squares(f - loss.y.numpy())
    elif isinstance(loss, Logistic):
        phi = cp.sum(cp.logistic(cp.multiply(-loss.y.numpy(), f))) / len(loss.y)
    else:
        F = cp.reshape(f, (len(loss.y), loss.classes), order="C")
        chosen = [F[i, int(k)] for i, k in enumerate(loss.y)]
        phi = (cp.sum(cp.log_sum_exp(F, axis=1)) - sum(chosen)) / len(loss.y)
    problem = cp.Problem(cp.Minimize(phi + weight * sum(cp.normNuc(x) for x in X.values())))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return problem.value, {name: torch.from_numpy(x.value) for name, x in X.items()}


CONVEX = {
    "squared": (SquaredError(normal(9, seed=8), 0.7), 9),
    "logistic": (Logistic(torch.sign(normal(9, seed=8))), 9),
    "cross_entropy": (CrossEntropy(torch.randint(3, (4,), generator=generator(8)), 3), 12),
}


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("part", [0.6, 0.1])
@pytest.mark.parametrize("loss", CONVEX)
def test_the_proximal_solution_is_that_of_cvxpy(loss, part):
    made, rows = CONVEX[loss]
    model = random_model(SHAPES, rows, made, seed=6)
    weight = part * model.largest_weight()
    found = nuclear_norm_solution(model, weight, tolerance=1e-9)
    value, X = by_cvxpy(model, weight, made)
    assert found.value == pytest.approx(value, abs=1e-8)
    size = max(1.0, *(float(x.abs().max()) for x in X.values()))
    for name, x in X.items():
        assert float((found.delta[name] - x).abs().max()) <= 1e-6 * size
    assert found.residual <= 1e-9
    assert -1e-13 <= found.gap <= 1e-8


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_the_proximal_solution_of_an_equation_is_that_of_cvxpy():
    model = linearised(Net(2, 1, torch.tanh, generator(1)), Poisson(conditions="soft"), interior=8, boundary=2)
    weight = 0.2 * model.largest_weight()
    found = nuclear_norm_solution(model, weight, tolerance=1e-9)
    value, X = by_cvxpy(model, weight, model.loss)
    assert found.value == pytest.approx(value, rel=1e-8)
    for name, x in X.items():
        # Near a minimum the point is known to the root of what the value is known to.
        assert float((found.delta[name] - x).abs().max()) <= 1e-5 * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("loss", CONVEX)
def test_the_conditions_of_a_minimum_hold(loss):
    """UᵀGV = −μI on the support, ‖G‖ ≤ μ; and F is convex: no random point on a line lies above its chord."""
    made, rows = CONVEX[loss]
    model = random_model(SHAPES, rows, made, seed=7)
    weight = 0.3 * model.largest_weight()
    found = nuclear_norm_solution(model, weight, tolerance=1e-9)
    G = model.gradient(found.delta)
    for name, x in found.delta.items():
        U, sigma, Vh = linalg.svd(x, full_matrices=False)
        r = int((sigma > 1e-9).sum())
        assert float(linalg.matrix_norm(G[name], 2)) <= weight * (1 + 1e-8)
        core = U[:, :r].mT @ G[name] @ Vh[:r].mT
        assert torch.allclose(core, -weight * torch.eye(r).double(), atol=1e-8 * weight)
    assert sum(ranks(found.delta).values()) > 0
    for seed in range(20):
        a, b = ({n: normal(*shape, seed=10 * seed + k) for n, shape in SHAPES.items()} for k in (1, 2))
        middle = {n: (a[n] + b[n]) / 2 for n in a}
        F = lambda X: float(model.penalised(X, weight))
        assert F(middle) <= (F(a) + F(b)) / 2 + 1e-12
        assert F({n: found.delta[n] + 1e-3 * a[n] for n in a}) > found.value


def test_the_gap_bounds_the_distance_to_the_minimum():
    model = random_model(SHAPES, 9, seed=2)
    weight = 0.3 * model.largest_weight()
    best = nuclear_norm_solution(model, weight, tolerance=1e-9).value
    for steps in (1, 5, 25, 125):
        found = nuclear_norm_solution(model, weight, steps=steps)
        assert found.value - best <= found.gap * (1 + 1e-9) + 1e-13
        assert optimality(model, found.delta, weight) == found.residual
    assert nuclear_norm_solution(model, weight, steps=5).gap > 1e-3
    assert math.isinf(duality_gap(model, model.zero(), 0.0)) or duality_gap(model, model.zero(), 0.0) > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_conditions_see_a_gradient_that_turns_either_singular_vector(side):
    """G = −μ u vᵀ + ε u⊥ vᵀ (or u v⊥ᵀ) breaks G V = −μ U by ε, and ‖G‖ ≤ μ by ε²/2 only."""
    U, V = (linalg.qr(normal(size, size, seed=size)).Q for size in (5, 4))
    mu, eps = 0.7, 1e-4
    X = 2.0 * torch.outer(U[:, 0], V[:, 0])
    more = torch.outer(U[:, 1], V[:, 0]) if side == "left" else torch.outer(U[:, 0], V[:, 1])
    G = -mu * torch.outer(U[:, 0], V[:, 0]) + eps * more
    J = torch.eye(20).double().unflatten(1, (5, 4))
    loss = SquaredError((X - G).flatten())
    start = torch.zeros(20).double()
    group = Group("rows", slice(0, 20), start, {"W": Formed(J)}, {})
    model = Linearised(start, [group], {"W": (5, 4)}, loss, {"rows": group.rows})
    assert optimality(model, {"W": X}, mu) == pytest.approx(eps / mu, rel=1e-3)


def test_zero_is_the_minimum_above_the_largest_weight_and_not_below():
    model = random_model(SHAPES, 9, seed=3)
    for part, zero_is_best in ((1.001, True), (0.99, False)):
        found = nuclear_norm_solution(model, part * model.largest_weight())
        assert (max(float(x.abs().max()) for x in found.delta.values()) == 0) == zero_is_best


def test_a_loss_of_ones_own_is_minimised_too():
    """The Huber loss is convex; without a conjugate there is no gap, but the conditions can be checked."""
    huber = lambda f, y: nn.functional.huber_loss(f, y, reduction="none").sum(dim=1)
    model = linearised(classifier(), Examples(normal(14, 2), normal(14, 3, seed=1), huber))
    weight = 0.2 * model.largest_weight()
    found = nuclear_norm_solution(model, weight, tolerance=1e-8)
    assert found.residual <= 1e-8
    assert math.isnan(found.gap)
    assert found.value < float(model.value(model.zero()))


# Factors.


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
def test_weight_decay_on_factors_is_the_nuclear_norm_with_weight_decay_over_scale(scale):
    """Of all factors of a matrix the balanced ones have the least decay; and the minima agree."""
    X = normal(5, 4, seed=1)
    U, sigma, Vh = linalg.svd(X, full_matrices=False)
    root = (sigma / scale).sqrt()
    balanced = Factors(root[:, None] * Vh, U * root)
    decay = lambda y: 0.37 / 2 * (y.A.square().sum() + y.B.square().sum())
    assert torch.allclose(scale * balanced.B @ balanced.A, X, atol=1e-13)
    assert float(decay(balanced)) == pytest.approx(0.37 / scale * float(nuclear_norm({"": X})), rel=1e-12)
    for seed in range(5):
        T = torch.eye(4).double() + 0.2 * normal(4, 4, seed=seed)
        other = Factors(linalg.solve(T, balanced.A), balanced.B @ T)
        assert float(decay(other)) > float(decay(balanced))

    model = random_model(SHAPES, 9, seed=6)
    weight = 0.5 * model.largest_weight()
    best = nuclear_norm_solution(model, weight, tolerance=1e-9)
    method = lora_gd(RungeKutta(RK4, h=0.04 / scale))
    run = train(model, method, rank=3, scale=scale, decay=scale * weight, budget=po.Budget(steps=300)).finish()
    assert run.failure is None
    assert run.regularised() == pytest.approx(best.value, rel=5e-6)
    assert float(model.penalised(run.delta(), weight)) == pytest.approx(best.value, rel=5e-6)


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize(
    "method",
    [
        odelora(RungeKutta(RK4, h=1e-3)),
        odelora(RungeKutta(EULER, h=1e-3), chart="manifold"),
        odelora(LinearlyImplicit()),
        lora_gd(RungeKutta(RK4, h=1e-3)),
        lora_adam(1e-3),
    ],
    ids=["odelora", "manifold", "implicit", "lora_gd", "adam"],
)
def test_factors_decrease_the_regularised_loss_itself(method, scale):
    """The loss that is recorded is the regularised one, each step decreases it, and the decay shrinks the factors."""
    model = random_model(SHAPES, 9, seed=4)
    big = lambda W0, rank, scale, g: orthonormal(W0, rank, scale, g, size=3.0)
    settings = {"rank": 2, "scale": scale, "start": big, "budget": po.Budget(steps=15)}
    run = train(model, method, decay=2.0, **settings)
    first, penalty = run.regularised(), run.training.objective.penalty
    plain = train(model, method, **settings).finish()
    losses = [record.loss for record in run]
    assert losses[0] == pytest.approx(first, rel=1e-12)
    assert losses == sorted(losses, reverse=True)
    assert run.regularised() < losses[-1]
    squares = lambda run: float(sum(x.square().sum() for y in run.factors().values() for x in y))
    assert float(penalty()) == pytest.approx(squares(run), rel=1e-12)
    assert squares(run) < squares(plain)


def test_the_gradient_of_the_decay_is_the_same_in_the_factors_and_on_the_manifold():
    model = random_model(SHAPES, 9, seed=4)
    run = train(model, odelora(RungeKutta(EULER, h=0.1)), rank=2, scale=0.4, decay=0.8)
    objective = run.training.objective
    objective.begin(run.training.sampler.draw(0))
    loss, G = objective.weight_gradients()
    by_tensor = {id(p): g for p, g in zip(objective.parameters, objective.last.gradients, strict=True)}
    for name in SHAPES:
        layer = run.net.get_submodule(name)
        assert torch.allclose(by_tensor[id(layer.A)], 0.4 * layer.B.mT @ G[name], atol=1e-12)
        assert torch.allclose(by_tensor[id(layer.B)], 0.4 * G[name] @ layer.A.mT, atol=1e-12)
    numerical = {}
    for name, y in run.factors().items():
        A = y.A.clone()
        h = 1e-6
        values = []
        for sign in (1, -1):
            moved = {**run.factors(), name: Factors(A + sign * h * torch.ones_like(A), y.B)}
            other = train(model, odelora(RungeKutta(EULER, h=0.1)), start=moved, scale=0.4, decay=0.8)
            values.append(other.regularised())
        numerical[name] = (values[0] - values[1]) / (2 * h)
        assert numerical[name] == pytest.approx(float(by_tensor[id(run.net.get_submodule(name).A)].sum()), rel=1e-6)
    around = objective.linearise()
    assert float(around.loss - loss) == pytest.approx(0, abs=1e-12)
    for memory in (2.0**30, 1.0):  # kept, and swept again in every operation
        again = objective.linearise(memory)
        assert torch.allclose(again.columns(), around.columns(), atol=1e-13)
        for name, x in again.gradient().items():
            assert torch.allclose(x, G[name], atol=1e-11)
    assert [*around.terms] == ["rows", "decay"]
    assert float(objective.residuals().square().sum() / 2) == pytest.approx(float(loss), rel=1e-12)


def test_the_loop_takes_proximal_steps_to_the_same_minimum():
    model = random_model(SHAPES, 9, seed=6)
    weight = 0.3 * model.largest_weight()
    best = nuclear_norm_solution(model, weight, tolerance=1e-9)
    run = train(model, proximal(weight), budget=po.Budget(steps=500))
    values = []
    for _ in run:
        values.append(run.regularised())
    assert values[-1] == pytest.approx(best.value, rel=1e-9)
    assert values[0] < float(model.value(model.zero()))
    assert ranks(run.delta()) == ranks(best.delta)
    assert run.training.optimizer.report.h > 0


def test_the_proximal_step_thresholds_singular_values():
    X = normal(6, 4, seed=2)
    sigma = linalg.svdvals(X)
    assert torch.allclose(linalg.svdvals(soft_threshold(X, 1.3)), (sigma - 1.3).clamp(min=0), atol=1e-12)
    P = soft_threshold(X, 1.3)
    objective = lambda Y: float((Y - X).square().sum() / 2 + 1.3 * linalg.svdvals(Y).sum())
    for seed in range(10):
        assert objective(P) < objective(P + 0.01 * normal(6, 4, seed=seed))


@pytest.mark.parametrize(
    "method", [odelora(RungeKutta(RK4, h=0.01)), odelora(LinearlyImplicit()), lora_gd(RungeKutta(RK4, h=0.02))]
)
def test_without_decay_the_rows_are_fitted_where_factors_are_many(method):
    model = random_model(SHAPES, 6, seed=4)
    run = train(model, method, rank=2, budget=po.Budget(steps=150)).finish()
    assert float(model.value(run.delta())) <= 1e-6 * float(model.value(model.zero()))


def test_without_decay_an_implicit_flow_fits_an_equation():
    model = linearised(Net(2, 1, torch.tanh, generator(1)), Poisson(conditions="soft"), interior=4, boundary=2)
    run = train(model, odelora(LinearlyImplicit()), rank=4, budget=po.Budget(steps=40)).finish()
    assert float(model.value(run.delta())) <= 1e-6 * float(model.value(model.zero()))


def test_cross_entropy_is_trained_by_flow_and_loop():
    model = linearised(classifier(), examples(), targets="*")
    weight = 0.1 * model.largest_weight()
    best = nuclear_norm_solution(model, weight)
    run = train(model, lora_gd(RungeKutta(RK4, h=4.0)), rank=2, decay=weight, budget=po.Budget(steps=300), start=zero)
    assert all(float(x.abs().max()) == 0 for x in run.delta().values())
    run.finish()
    assert run.regularised() == pytest.approx(best.value, rel=3e-3)


def test_the_system_of_the_rows_is_the_model():
    """Values, gradient and Jacobian of what the loop trains, against the model's own."""
    model = linearised(Net(2, 1, torch.tanh, generator(1)), Heat(conditions="soft"), interior=7, boundary=3)
    run = train(model, odelora(LinearlyImplicit()), rank=2)
    objective = run.training.objective
    objective.begin(run.training.sampler.draw(0))
    around = objective.linearise()
    delta = run.delta()
    assert float(nuclear_norm(delta)) > 0.1
    assert torch.allclose(around.r, model.values(delta), atol=1e-13)
    assert torch.allclose(around.columns(), model.matrix(), atol=1e-13)
    assert float(objective() - model.value(delta)) == pytest.approx(0, abs=1e-13)
    for name, G in model.gradient(delta).items():
        assert torch.allclose(objective.last.weights[name], G, atol=1e-12)
    assert torch.allclose(around.r, objective.residuals(), atol=1e-13)


def test_the_rows_of_examples_are_weighed_by_their_number():
    """L = ½‖r‖² with r = (f − y)/√N, for schemes that linearise."""
    model = linearised(classifier(), examples(loss="squared"), targets="*")
    run = train(model, odelora(LinearlyImplicit()), rank=2)
    objective = run.training.objective
    objective.begin(run.training.sampler.draw(0))
    around, delta = objective.linearise(), run.delta()
    assert torch.allclose(around.r, (model.values(delta) - model.loss.y) / 14**0.5, atol=1e-13)
    assert torch.allclose(around.columns(), model.matrix() / 14**0.5, atol=1e-13)
    for name, G in model.gradient(delta).items():
        assert torch.allclose(around.gradient()[name], G, atol=1e-12)
    assert float(around.loss - model.value(delta)) == pytest.approx(0, abs=1e-13)


def test_groups_and_one_array_are_the_same_model(monkeypatch):
    net = Net(2, 1, torch.tanh, generator(1))
    formed = linearised(net, Burgers(conditions="soft"), interior=7, boundary=3)
    monkeypatch.setattr(linearise_module, "SMALL", 0)
    pairs = linearised(net, Burgers(conditions="soft"), interior=7, boundary=3)
    assert len(formed.groups) == 1 < len(pairs.groups)
    D = {name: normal(*shape, seed=k) for k, (name, shape) in enumerate(formed.shapes.items())}
    w = normal(formed.rows, seed=5)
    assert torch.allclose(formed.values(D), pairs.values(D), atol=1e-12)
    assert torch.allclose(formed.kernel(), pairs.kernel(), atol=1e-11)
    for name, x in formed.adjoint(w).items():
        assert torch.allclose(x, pairs.adjoint(w)[name], atol=1e-12)
    runs = [train(model, odelora(LinearlyImplicit()), rank=2, budget=po.Budget(steps=3)) for model in (formed, pairs)]
    for name, x in runs[0].finish().delta().items():
        assert torch.allclose(x, runs[1].finish().delta()[name], atol=1e-8)


# Low rank.


def commuting(rows, blocks, copies, seed):
    """Measurements a_i ⊗ I: the gradient has every singular value ``copies`` times, so that minimisers are many."""
    a = normal(rows, blocks, blocks, seed=seed)
    J = torch.stack([torch.kron(x, torch.eye(copies).double()) for x in a])
    start = normal(rows, seed=seed + 1)
    group = Group("rows", slice(0, rows), start, {"W": Formed(J)}, {})
    shape = {"W": (blocks * copies, blocks * copies)}
    return Linearised(start, [group], shape, SquaredError(torch.zeros(rows).double()), {"rows": group.rows})


@pytest.mark.parametrize("copies", [3, 5])
def test_a_minimiser_of_high_rank_is_reduced_to_the_count_of_the_theorem(copies):
    model = commuting(3, 2, copies, seed=1)
    weight = 0.2 * model.largest_weight()
    found = nuclear_norm_solution(model, weight, tolerance=1e-10)
    r = ranks(found.delta)["W"]
    assert r * (r + 1) / 2 > model.rows
    reduced = reduce_rank(model, found.delta)
    assert reduced.count <= model.rows
    assert reduced.steps > 0
    assert ranks(reduced.delta) == reduced.ranks
    assert reduced.moved < 1e-9
    assert float(model.penalised(reduced.delta, weight)) == pytest.approx(found.value, rel=1e-9)
    assert optimality(model, reduced.delta, weight) < 1e-7


def test_a_matrix_that_is_no_minimiser_is_reduced_without_more_norm():
    model = random_model(SHAPES, 4, seed=3)
    delta = {name: normal(*shape, seed=k) for k, (name, shape) in enumerate(SHAPES.items())}
    reduced = reduce_rank(model, delta)
    assert reduced.count <= 4
    assert reduced.moved < 1e-9
    assert float(nuclear_norm(reduced.delta)) <= float(nuclear_norm(delta)) + 1e-9


def test_nothing_is_reduced_where_the_count_holds_already():
    model = random_model(SHAPES, 9, seed=6)
    found = nuclear_norm_solution(model, 0.5 * model.largest_weight())
    reduced = reduce_rank(model, found.delta)
    assert reduced.steps == 0
    assert reduced.count <= 9


# Thresholds.


def test_thresholds_are_the_smallest_ranks_above_the_counts():
    found = rank_thresholds({"a": (64, 64), "b": (64, 64), "c": (64, 64)}, 2000)
    assert found.of("jang", "a").rank == 63  # 62·63/2 = 1953, 63·64/2 = 2016
    assert rank_thresholds({"a": (64, 64)}, 2016).of("jang", "a").rank == 64  # the count must exceed KN, not meet it
    assert rank_thresholds({"a": (64, 64)}, 100, constant=1.27).of("park", "a").rank == 2  # 127 is no more than 127
    assert not found.of("jang", "a").vacuous
    assert found.of("jang").rank == 37  # 3·36·37/2 = 1998, 3·37·38/2 = 2109
    assert found.of("park").count == 3 * 8 * 128 - 3 * 64 == 2880 > 1.35 * 2000 > 3 * 7 * 128 - 3 * 49
    assert found.of("park").rank == 8
    alone = rank_thresholds({"a": (50, 50)}, 10_000)
    assert alone.of("jang").rank == 141
    assert alone.of("jang").vacuous
    assert alone.of("park").rank is None
    assert alone.of("park").count == 2500


def test_thresholds_follow_the_rows_of_a_model_and_say_what_they_are():
    model = linearised(Net(2, 1, torch.tanh, generator(1)), Burgers(), interior=30)
    found = rank_thresholds(model)
    assert found.rows == model.rows == 30
    shown = str(found)
    assert "30 rows" in shown
    assert "not on the network itself" in shown
    assert "vacuous" in shown
    for name in model.shapes:
        assert name in shown
    classes = linearised(classifier(), examples())
    assert rank_thresholds(classes).rows == 42


# Refusals.


def refused(sentence):
    return pytest.raises(InputError, match=re.escape(sentence))


def test_bad_input_is_refused_in_one_sentence():
    model = random_model(SHAPES, 9)
    method = lora_gd(RungeKutta(EULER, h=0.1))
    with refused("decay is -1, but it must be a finite number of at least 0."):
        train(model, method, rank=2, decay=-1)
    with refused("weight is -0.1, but it must be a finite number of at least 0."):
        nuclear_norm_solution(model, -0.1)
    with refused("weight is nan, but"):
        proximal(math.nan)
    with refused("rank is 5, but it must be at most 4 for layer first of shape (5, 4)."):
        train(model, method, rank=5)
    with refused("rank is None, but factors need one"):
        train(model, method)
    with refused("scale is 0, but"):
        train(model, method, rank=2, scale=0)
    with refused("decay is of factors, but the method trains full matrices"):
        train(model, full_adam(), decay=0.1)
    with refused("lora_gd with an implicit scheme knows no weight decay"):
        train(model, lora_gd(LinearlyImplicit()), rank=2, decay=0.1)
    with refused("the loss is cross_entropy: choose an explicit integrator"):
        train(linearised(classifier(), examples()), odelora(LinearlyImplicit()), rank=1)
    with refused("rows is 0, but it must be a whole number of at least 1."):
        rank_thresholds(SHAPES, 0)
    with refused("There are no layers"):
        rank_thresholds({}, 10)
    with refused("but it must be a problem or Examples"):
        linearised(classifier(), 3)


def test_losses_that_are_not_convex_and_targets_that_do_not_fit_are_refused():
    net, x = classifier(), normal(14, 2)
    with refused("The loss is not convex in the outputs"):
        linearised(net, Examples(x, normal(14, 3), lambda f, y: torch.tanh((f - y).square()).sum(dim=1)))
    with refused("The loss is not convex in the outputs"):
        linearised(net, Examples(x, normal(14, 3), lambda f, y: torch.sqrt((f - y).abs()).sum(dim=1)))
    # Convex near the outputs of the network, and not far from them.
    far = lambda f, y: ((f - y).square() / (1 + (f - y).square() / 400)).sum(dim=1)
    with refused("The loss is not convex in the outputs"):
        linearised(net, Examples(x, normal(14, 3), far))
    with refused("one value for each of the 14 examples"):
        linearised(net, Examples(x, normal(14, 3), lambda f, y: (f - y).square()))
    with refused("Unknown loss 'crossentropy' (did you mean 'cross_entropy'?)"):
        linearised(net, Examples(x, normal(14, 3), "crossentropy"))
    with refused("The network has 3 outputs for 2 examples"):
        linearised(net, Examples(x[:2], torch.tensor([0, 1]), "cross_entropy"))
    with refused("targets must be 14 whole numbers from 0 to 2"):
        linearised(net, Examples(x, torch.full((14,), 3), "cross_entropy"))
    with refused("the logistic loss has one"):
        linearised(net, Examples(x, torch.ones(14), "logistic"))
    with refused("targets has shape (14, 2), but it must be (14, 3)"):
        linearised(net, Examples(x, normal(14, 2), "squared"))


def test_reverse_mode_gives_the_same_linearisation():
    net = Net(2, 1, torch.tanh, generator(1))
    jets, reverse = (linearised(net, Poisson(), interior=5, derivatives=way) for way in ("jets", "autograd"))
    assert (jets.slower, reverse.slower) == ((), ())
    assert torch.allclose(jets.matrix(), reverse.matrix(), atol=1e-10)


def test_what_is_linearised_row_by_row_is_said(caplog):
    class Apart(Net):
        def forward(self, x):
            return super().forward(x) + self.linears[1].weight.sum() / 100

    net = Apart(2, 1, torch.tanh, generator(1))
    with caplog.at_level("INFO", logger="pinn_odelora.ntk.linearise"):
        slow = linearised(net, Poisson(), interior=5)
    assert slow.slower == tuple(slow.terms)
    assert "row by row: weights are used outside linear layers" in caplog.text


def test_a_run_is_one_of_the_loop():
    model = random_model(SHAPES, 9)
    run = LinearisedRun(model, lora_gd(RungeKutta(EULER, h=0.01)), rank=2, budget=po.Budget(steps=4))
    records = list(run)
    assert [record.step for record in records] == [0, 1, 2, 3]
    assert records[-1].gradient_evals == 4
    assert po.linearised is linearised
