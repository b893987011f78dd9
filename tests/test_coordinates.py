"""J in coordinates as an operator, the solvers of its damped systems, and how one of them is chosen.

J is held against dense columns: nested reverse mode, row by row, times a basis that is written out here.
"""

import itertools

import pytest
import torch
from test_linearisation import PROBLEMS, SCALE, assert_near, make
from torch import linalg

from pinn_odelora.linalg import conjugate_gradients as iterative
from pinn_odelora.linalg import damped, plan
from pinn_odelora.linalg.conjugate_gradients import ConjugateGradients, Nystrom
from pinn_odelora.linalg.damped import Damped
from pinn_odelora.linalg.plan import Shape, predicted
from pinn_odelora.linalg.solvers import solver_for
from pinn_odelora.linearisation import Coordinates, Linearisation, Sweep, coordinates, sweep
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import frame
from pinn_odelora.manifolds.tangent import FactorFrame, Stretch
from pinn_odelora.nets import MLP
from pinn_odelora.system import Solution, System, draw_points
from problems.allen_cahn import AllenCahn
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

KINDS = {
    "tangent": lambda layer: frame(layer.factors),
    "factors": lambda layer: FactorFrame(Factors(*map(torch.detach, layer.factors)), SCALE),
}
TWO = [p for p in PROBLEMS if isinstance(p, AllenCahn | Kovasznay)]
BIASES = ("bias.0", "bias.3", "bias.4")


def normal(*size, generator):
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def stacked_solution(J, w, mu):
    """(JᵀJ + μ)⁻¹ Jᵀ w from the least-squares problem of [J; √μ I]."""
    stacked = torch.cat([J, mu**0.5 * torch.eye(J.shape[1], dtype=torch.float64)])
    return linalg.lstsq(stacked, torch.cat([w, w.new_zeros(J.shape[1])])[:, None]).solution[:, 0]


class Mixed:
    """Three framed layers, the last one whole, and biases: one of a layer that is no variable, one stretched."""

    def __init__(self, generator, kind="tangent", problem=PROBLEMS[0], dtype=torch.float64):
        self.case = make(problem, generator, dtype=dtype)
        layers = {**self.case.adapted, "linears.4": self.case.layers["linears.4"]}
        self.variables = layers, {name: self.case.others[name] for name in BIASES}
        size = torch.rand(4, generator=generator, dtype=torch.float64) + 0.5
        frames = {name: KINDS[kind](layer) for name, layer in self.case.adapted.items()}
        self.frames = {**frames, "bias.3": Stretch(size)}
        r, J = self.case.dense()
        names = [*self.case.layers, *self.case.others]
        plain = self.case.plain.linears
        sizes = [*(x.weight.numel() for x in plain), *(x.bias.numel() for x in plain)]
        parts = dict(zip(names, J.split(sizes, dim=1), strict=True))
        self.r = r
        bases = {name: basis(kind, layer) for name, layer in self.case.adapted.items()} | {"bias.3": torch.diag(size)}
        columns = [parts[name] @ bases[name] if name in bases else parts[name] for name in (*layers, *BIASES)]
        self.J = torch.cat(columns, dim=1).detach()

    def coordinates(self, memory=2.0**30, **options):
        linearised = self.case.linearised(*self.variables, **options)
        return Coordinates(linearised, self.frames, memory)


def basis(kind, layer):
    """The weights that a layer moves to, (m n, coordinates), by each coordinate."""
    A, B = (x.detach().double() for x in layer.factors)
    (r, n), m = A.shape, len(B)
    units = lambda *shape: torch.eye(shape[0] * shape[1], dtype=torch.float64).view(-1, *shape)
    if kind == "factors":
        moves = torch.cat([SCALE * B @ units(r, n), SCALE * units(m, r) @ A])
    else:
        f = frame(layer.factors)
        U, outside, V = (x.double() for x in f)
        moves = torch.cat([U @ units(r, n), outside @ units(r, m - r).mT @ V])
    return moves.flatten(1).T


def assert_is(J, dense, generator, tolerance=1e-11):
    near = lambda found, exact: assert_near(found, exact, tolerance)
    R, P = dense.shape
    assert J.shape == (R, P)
    for vectors in [(), (3,)]:
        z, w = normal(P, *vectors, generator=generator), normal(R, *vectors, generator=generator)
        near(J @ z, dense @ z)
        near(J.mT @ w, dense.mT @ w)
        assert (J @ z).dtype == (J.mT @ w).dtype == torch.float64
    near(J.squares(), dense.square().sum(dim=0))
    near(J.dense(), dense)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", TWO, ids=lambda p: type(p).__name__)
def test_coordinates_are_the_dense_columns(kind, problem, generator, monkeypatch):
    monkeypatch.setattr(coordinates, "FORMED", 8 * 40.0)  # a few rows at a time
    mixed = Mixed(generator, kind, problem)
    assert_is(mixed.coordinates(), mixed.J, generator)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_kept_is_recomputed(kind, generator):
    mixed = Mixed(generator, kind)
    kept, streamed = mixed.coordinates(), mixed.coordinates(memory=1.0, chunk=3)
    assert_is(streamed, mixed.J, generator)
    assert_is(kept, mixed.J, generator)
    assert streamed._kept is None
    assert kept._kept is not None
    assert list(kept.parts()) == kept._kept


@pytest.mark.parametrize("share", [1e-9, 0.3, 0.9])
def test_a_linearisation_that_keeps_nothing_has_the_same_coordinates_and_gradient(share, generator):
    mixed = Mixed(generator)
    size = sum(group.bytes for group in mixed.case.linearised(*mixed.variables).groups())
    linearised = mixed.case.linearised(*mixed.variables, memory=share * size, chunk=2)
    assert linearised._kept is None
    calls = []
    linearised._swept, swept = lambda: calls.append(1) or swept(), linearised._swept
    gradient = torch.cat([x.flatten() for x in linearised.gradient().values()])
    assert not calls
    weights = mixed.case.linearised(*mixed.variables)
    assert_near(gradient, weights.columns().mT @ mixed.r)
    assert_is(Coordinates(linearised, mixed.frames), mixed.J, generator)


def test_a_bias_of_a_layer_that_is_no_variable_costs_no_sweep_of_its_own(generator, monkeypatch):
    mixed = Mixed(generator)
    monkeypatch.setattr(sweep, "_columns", None)
    monkeypatch.setattr(sweep.Sweep, "_has_pairs", lambda *_: True)
    assert_near(mixed.case.linearised({}, {"bias.0": mixed.case.others["bias.0"]}).r, mixed.r)


def test_in_single_precision_coordinates_keep_four_digits(generator):
    mixed = Mixed(generator, dtype=torch.float32)
    assert_is(mixed.coordinates(), mixed.J, generator, tolerance=1e-4)


def test_rows_without_pairs_have_the_same_coordinates(generator):
    mixed = Mixed(generator)
    linearised = mixed.case.linearised(*mixed.variables)
    apart = mixed.case.linearised(*mixed.variables)
    apart._sweep._paired = dict.fromkeys(apart.terms, False)
    apart = type(linearised)(apart._sweep, mixed.case.points)
    assert_is(Coordinates(apart, mixed.frames), mixed.J, generator)


def test_whole_weights_have_a_kernel_and_frames_have_none(generator):
    case = make(PROBLEMS[0], generator)
    J = Coordinates(case.linearised(), {})
    dense = case.dense()[1]
    assert_is(J, dense, generator)
    assert J.has_kernel
    assert_near(J.kernel(), dense @ dense.mT)
    assert not Mixed(generator).coordinates().has_kernel
    assert not Coordinates(case.linearised(), {}, kernel=False).has_kernel


# Solvers.


@pytest.mark.parametrize(
    ("mu", "used"),
    [(1e-2, ("kernel", torch.float32)), (1e-9, ("kernel", torch.float64)), (1e-16, ("eigen", torch.float64))],
)
def test_an_operator_with_a_kernel_is_solved_without_its_matrix(mu, used, generator):
    case = make(PROBLEMS[0], generator)
    J = Coordinates(case.linearised(), {})
    dense, w = case.dense()[1], normal(J.shape[0], generator=generator)
    J.dense = None
    S = solver_for(J)
    assert isinstance(S, Damped)
    mu *= S.largest
    # Rows that can be met: else the answer turns with the square of the condition number.
    w = dense @ (dense.mT @ w)
    expected = stacked_solution(dense, w, mu)
    assert linalg.vector_norm(S(w, mu) - expected) < 1e-6 * linalg.vector_norm(expected)
    assert S.used == used
    assert S.largest == pytest.approx(float(dense.square().sum(dim=0).max()))


def test_a_kernel_of_single_precision_is_trusted_no_further(generator, monkeypatch):
    """Its smallest eigenvalues are rounding errors, and its eigenvalues are found once."""
    case = make(PROBLEMS[0], generator)
    J, dense = Coordinates(case.linearised(), {}), case.dense()[1]
    rounded = J.kernel().float().double()
    monkeypatch.setattr(J, "kernel", lambda: rounded)
    J.dtype = torch.float32
    S, w = Damped(J), dense @ (dense.mT @ normal(J.shape[0], generator=generator))
    assert S.trusted == pytest.approx(damped.TRUSTED * torch.finfo(torch.float32).eps * float(dense.square().sum()))
    S(w, S.trusted)
    assert not S.used.fallback
    found = []
    eigh = linalg.eigh
    monkeypatch.setattr(linalg, "eigh", lambda M: found.append(M) or eigh(M))
    for part in (0.9, 0.3):
        S(w, part * S.trusted)
        assert S.used == ("eigen", torch.float64)
    assert len(found) == 1


def test_the_eigenvalues_give_the_same_solution_at_any_damping(generator, monkeypatch):
    monkeypatch.setattr(damped, "TRUSTED", 1e30)
    monkeypatch.setattr(damped, "SINGLE", 1e30)
    case = make(PROBLEMS[0], generator)
    J, dense = Coordinates(case.linearised(), {}), case.dense()[1]
    S, w = Damped(J), normal(J.shape[0], generator=generator)
    for mu in (1e-1, 1e-3):
        expected = stacked_solution(dense, w, mu)
        assert linalg.vector_norm(S(w, mu) - expected) < 1e-9 * linalg.vector_norm(expected)
        assert S.used == ("eigen", torch.float64)


def decaying(R, P, generator, rate=0.7):
    """A matrix with singular values rate^k."""
    k = min(R, P)
    left, right = (linalg.qr(normal(n, k, generator=generator)).Q for n in (R, P))
    return left * rate ** torch.arange(k, dtype=torch.float64) @ right.mT


class Dense:
    """A matrix as an operator without a kernel."""

    has_kernel = False

    def __init__(self, J):
        self.J, self.shape, self.mT = J, tuple(J.shape), J.mT

    def __matmul__(self, z):
        return self.J @ z

    def squares(self):
        return self.J.square().sum(dim=0)


@pytest.mark.parametrize("largest", [0, 7, 64])
@pytest.mark.parametrize("shape", [(50, 30), (30, 50)])
@pytest.mark.parametrize("mu", [1e-1, 1e-4, 1e-7])
def test_conjugate_gradients_run_to_the_end_are_the_damped_solution(shape, largest, mu, generator):
    J, w = decaying(*shape, generator), normal(shape[0], generator=generator)
    S = ConjugateGradients(Dense(J), tolerance=1e-12, iterations=3000, largest=largest)
    expected = stacked_solution(J, w, mu)
    assert linalg.vector_norm(S(w, mu) - expected) < 1e-6 * linalg.vector_norm(expected)
    assert S.preconditioner.columns <= largest


def test_they_stop_where_they_are_told_to(generator):
    J, w, mu = decaying(50, 30, generator), normal(50, generator=generator), 1e-5
    S = ConjugateGradients(Dense(J), tolerance=1e-2, largest=0)
    z = S(w, mu)
    left = linalg.vector_norm(J.mT @ (w - J @ z) - mu * z) / linalg.vector_norm(J.mT @ w)
    assert 1e-5 < left < 1e-2
    capped = ConjugateGradients(Dense(J), tolerance=1e-12, iterations=3, largest=0)
    assert float((J.mT @ w) @ capped(w, mu)) > 0
    assert capped.iterations == 3


def inverse(M, P, mu):
    return torch.stack([M.solve(e, mu) for e in torch.eye(P, dtype=torch.float64)], dim=1)


@pytest.mark.parametrize("columns", [5, 12, 30])
def test_the_preconditioner_is_symmetric_positive(columns, generator):
    J, mu = decaying(50, 30, generator), 1e-3
    M = Nystrom(Dense(J), columns)
    M.prepare(1e-30, J)
    assert M.columns == columns
    found = inverse(M, 30, mu)
    assert_near(found, found.mT, 1e-10)
    assert float(linalg.eigvalsh((found + found.mT) / 2)[0]) > 0


def test_the_preconditioner_is_exact_where_the_sketch_holds_everything(generator):
    J = decaying(50, 12, generator) @ normal(12, 40, generator=generator)
    M, mu = Nystrom(Dense(J), 20), 1e-2
    M.prepare(mu, J)
    assert M.last == 0
    product = inverse(M, 40, mu) @ (J.mT @ J + mu * torch.eye(40, dtype=torch.float64))
    assert_near(product, mu * torch.eye(40, dtype=torch.float64), 1e-6)
    S = ConjugateGradients(Dense(J))
    S(normal(50, generator=generator), mu)
    assert S.iterations == 1


def test_the_sketch_grows_until_what_it_misses_is_below_the_damping(generator, monkeypatch):
    monkeypatch.setattr(iterative, "FIRST", 4)
    J = decaying(80, 60, generator, rate=0.8)
    M = Nystrom(Dense(J), 60)
    for mu in (1e-1, 1e-3, 1e-5):
        M.prepare(mu, J)
        assert M.last <= 0.3 * mu
        kept = int((linalg.svdvals(J).square() > mu).sum())
        assert kept < M.columns <= 4 * kept
    columns = M.columns
    M.prepare(1e-1, J)
    assert M.columns == columns
    exact = linalg.svdvals(J).square()[:10]
    assert_near(M.values[:10], exact, 1e-4)


def test_of_a_network_the_sketch_saves_nearly_all_iterations():
    problem, net = Burgers(conditions="soft"), MLP(2, 1, width=8, depth=3)
    layers = put_factors(net, linear_targets(net), 3, SCALE, orthonormal, torch.Generator().manual_seed(1))
    system = System(problem, Solution(problem, net))
    linearised = Linearisation(Sweep(system, layers, {}), draw_points(system.terms, 200, 12, seed=3))
    J = Coordinates(linearised, {name: frame(layer.factors) for name, layer in layers.items()})
    dense = J.dense()
    for part in (1e-3, 1e-5, 1e-7):
        with_sketch, without = (ConjugateGradients(J, 1e-6, 3000, largest) for largest in (64, 0))
        mu = part * with_sketch.largest
        b = dense.mT @ linearised.r
        for S in (with_sketch, without):
            # What is promised is the residual: by part = 1e-7 it leaves the solution itself uncertain, and by how much
            # depends on the rounding of the machine.
            x = S(linearised.r, mu)
            assert linalg.vector_norm(dense.mT @ (dense @ x) + mu * x - b) < 1.1e-6 * linalg.vector_norm(b)
        assert with_sketch.iterations <= min(6, without.iterations / 4)
        again = ConjugateGradients(J, 1e-6, 3000)
        assert torch.equal(again(linearised.r, mu), with_sketch(linearised.r, mu))


# The choice.


def sides(width, layers=3):
    return 2 * width * layers


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        (Shape(1000, 960, sides(40), False), "normal"),
        (Shape(1000, 3072, sides(128), False), "kernel"),
        (Shape(10_000, 12_096, sides(256), False), "cg"),
        (Shape(1000, 3 * 128**2 + 3 * 128, sides(128) + 130 + 129, True), "pairs"),
        (Shape(100_000, 960, sides(40), False), "cg"),
        (Shape(60, 56, sides(8), False), "normal"),
    ],
)
def test_the_plan_of_typical_steps(shape, form):
    found = plan.plan(shape, 2.0**29)
    assert found.form == form
    assert found.bytes <= 2.0**29
    assert found.unusual == (form in ("pairs", "cg"))
    assert str(found).startswith(f"{shape.rows:,} rows x {shape.columns:,} columns: ")


@pytest.mark.parametrize("whole", [True, False])
def test_with_more_memory_a_plan_never_costs_more(whole):
    for rows, columns in itertools.product((50, 1000, 8000), repeat=2):
        shape = Shape(rows, columns, sides(64), whole)
        costs, before = predicted(shape), None
        for memory in 2.0 ** torch.arange(10, 40):
            form = plan.plan(shape, float(memory)).form
            assert form == "cg" or costs[form].bytes <= memory
            if form != "cg":
                assert before is None or costs[form].operations <= before
                before = costs[form].operations
            else:
                assert before is None
        assert form != "cg"
        larger = predicted(Shape(2 * rows, 2 * columns, 2 * sides(64), whole))
        assert all(larger[f].operations > costs[f].operations and larger[f].bytes > costs[f].bytes for f in costs)
