"""Problems whose solution is a matrix: the functional, the points, the losses, the targets, and that they are found."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import linalg

from pinn_odelora.config.build import experiment
from pinn_odelora.diagnostics import errors
from pinn_odelora.errors import InputError
from pinn_odelora.geometry import sobol
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.lowrank.start import named
from pinn_odelora.lowrank.targets import put_factors
from pinn_odelora.manifolds.tangent import Frame
from pinn_odelora.matrices import GaussianMatrices, UnitMatrices, entry_names, matrix_points, orthonormal
from pinn_odelora.nets import MatrixFunctional
from pinn_odelora.objective import Batch, Objective
from pinn_odelora.optim.methods import odelora
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.matrix_regression import MatrixRegression
from problems.matrix_sensing import MatrixSensing

ROOT = Path(__file__).parent.parent
BOTH = [MatrixSensing, MatrixRegression]

both = pytest.mark.parametrize("cls", BOTH, ids=lambda cls: cls.__name__)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def at(problem, W):
    """The problem's solution at weight W."""
    net = MatrixFunctional(problem)
    with torch.no_grad():
        net.W.weight.copy_(W)
    return Solution(problem, net)


def points_of(problem):
    return draw_points(problem.loss_terms(), 1, 1, seed=0)


# The functional and its points.


@both
def test_the_network_is_the_inner_product(cls, generator):
    problem = cls(rows=5, columns=7)
    W, M = normal(generator, 5, 7), normal(generator, 11, 5, 7)
    expected = torch.tensor([[float((X * W).sum())] for X in M], dtype=torch.float64)
    assert torch.allclose(at(problem, W)(matrix_points(M)), expected, rtol=1e-13)
    assert torch.allclose(problem.reference(matrix_points(M)), (M * problem.matrix).sum((1, 2))[:, None], rtol=1e-13)


def test_the_network_starts_at_the_source_and_moves_no_generator():
    before = torch.random.get_rng_state()
    source = MatrixSensing().at_source()
    assert torch.equal(MatrixFunctional(source).W.weight, source.matrix)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(InputError, match="Burgers has none"):
        MatrixFunctional(Burgers())


def test_the_error_at_unit_matrices_is_the_frobenius_ratio(generator):
    problem = MatrixSensing(rows=4, columns=6)
    W = normal(generator, 4, 6)
    found = errors(problem, at(problem, W), 3)
    gap = W - problem.matrix
    assert found["error/rel_l2"] == pytest.approx(float(gap.norm() / problem.matrix.norm()), rel=1e-13)
    assert found["error/max"] == pytest.approx(float(gap.abs().max()), rel=1e-13)


def test_unit_matrices_have_one_entry_each():
    rows = UnitMatrices(2, 3).sample(99, None).rows(entry_names(2, 3))
    assert entry_names(2, 3) == ("M_1_1", "M_1_2", "M_1_3", "M_2_1", "M_2_2", "M_2_3")
    assert torch.equal(rows, torch.eye(6).double())
    p = UnitMatrices(2, 3).sample(99, None)
    assert all(p[f"M_{int(k)}_{int(l)}"][i] == 1 for i, (k, l) in enumerate(p.rows(("k", "l"))))


def test_gaussian_matrices_have_mean_0_and_covariance_1(generator):
    W = normal(generator, 3, 4)
    p = GaussianMatrices(W).sample(4096, lambda n, d: sobol(n, d, seed=5))
    rows = p.rows(entry_names(3, 4))
    assert float(rows.mean(dim=0).abs().max()) < 0.02
    assert float((rows.mT.cov() - torch.eye(12)).abs().max()) < 0.06
    assert torch.allclose(p.b, rows @ W.reshape(-1, 1))
    assert GaussianMatrices(W).sample(2, lambda n, d: torch.zeros(n, d).double()).b.isfinite().all()


def test_measured_matrices_are_independent_and_standard_normal():
    problem = MatrixSensing(rows=4, columns=5, measurements=20_000)
    rows = problem.measured().rows(problem.coords)
    assert float(rows.mean(dim=0).abs().max()) < 4.5 / math.sqrt(20_000)
    assert float((rows.mT.cov() - torch.eye(20)).abs().max()) < 6 / math.sqrt(20_000)


def test_orthonormal_factors_turn_with_their_generator(generator):
    Q = orthonormal(9, 4, generator)
    assert torch.allclose(Q.mT @ Q, torch.eye(4).double(), atol=1e-14)
    assert not torch.allclose(Q, orthonormal(9, 4, generator))


# Targets.


@both
@pytest.mark.parametrize(("rank", "condition", "size"), [(3, 100.0, 1.0), (4, 1.0, 0.1), (2, 1e4, 7.0), (1, 50.0, 2.0)])
def test_the_target_has_the_rank_the_condition_and_the_size_asked_for(cls, rank, condition, size):
    W = cls(rank=rank, condition=condition, size=size, rows=9, columns=6).matrix
    sigma = linalg.svdvals(W)
    assert W.shape == (9, 6)
    assert float(sigma[0]) == pytest.approx(size, rel=1e-12)
    assert float(sigma[0] / sigma[rank - 1]) == pytest.approx(condition if rank > 1 else 1, rel=1e-9)
    assert float(sigma[rank:].max()) < 1e-14 * size
    ratios = sigma[1:rank] / sigma[: rank - 1]
    assert torch.allclose(ratios, ratios[:1].expand_as(ratios), rtol=1e-9)


@both
def test_seeds_give_other_targets_and_the_same_again(cls):
    assert torch.equal(cls(seed=4).matrix, cls(seed=4).matrix)
    assert abs(float(torch.cosine_similarity(cls(seed=4).matrix.flatten(), cls(seed=5).matrix.flatten(), dim=0))) < 0.5


def test_measurements_by_default_are_five_times_the_freedoms():
    assert MatrixSensing(rows=12, columns=8, rank=2).number == 5 * 2 * (12 + 8 - 2)
    assert points_of(MatrixSensing(measurements=17))["measured"].number == 17


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.5])
def test_noise_is_as_strong_as_asked_for(noise):
    problem = MatrixSensing(noise=noise)
    p = problem.measured()
    exact = problem.reference(p)
    assert float((p.b - exact).norm() / exact.norm()) == pytest.approx(noise, abs=1e-14)


def test_weights_of_entries_are_geometric_between_1_and_the_curvature():
    w = MatrixRegression(rows=4, columns=5, curvature=1e3).entry_weights()
    assert torch.allclose(w.flatten().sort().values, torch.logspace(0, 3, 20, dtype=torch.float64), rtol=1e-12)
    assert not torch.equal(w.flatten(), w.flatten().sort().values)
    assert torch.equal(MatrixRegression(curvature=1.0).entry_weights(), torch.ones(20, 20).double())


# Losses and Jacobians.


@both
def test_the_loss_vanishes_at_the_target(cls):
    problem = cls()
    system = System(problem, at(problem, problem.matrix))
    assert float(system.loss(points_of(problem)).total.detach()) < 1e-28


def test_the_loss_of_sensing_is_the_mean_square_of_the_mismatch(generator):
    problem = MatrixSensing(rows=5, columns=4, rank=2, noise=0.1, weights={"measured": 3.0})
    W, p = normal(generator, 5, 4), problem.measured()
    M = p.rows(problem.coords).unflatten(1, (5, 4))
    b = p.b[:, 0]
    expected = 3 * sum((float((M[i] * W).sum()) - float(b[i])) ** 2 for i in range(len(b))) / len(b)
    found = System(problem, at(problem, W)).loss(points_of(problem)).total
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_regression_is_half_the_weighted_square(generator):
    problem = MatrixRegression(rows=5, columns=4, rank=2, curvature=50.0)
    W = normal(generator, 5, 4)
    expected = float((problem.entry_weights() * (W - problem.matrix) ** 2).sum() / 2)
    found = System(problem, at(problem, W)).loss(points_of(problem)).total
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


def adapted(problem, r, generator, start="pissa"):
    """Factors beside the source matrix, with the objective and the optimiser of the default method."""
    net = MatrixFunctional(problem.at_source(rank=r))
    layers = put_factors(net, {"W": net.W}, r, 1.0, named(start, 0.1), generator)
    solution = Solution(problem, net)
    method = odelora(LinearlyImplicit())
    groups = method.groups(solution)
    objective = Objective(System(problem, solution), [p for g in groups for p in g["params"]], layers)
    objective.begin(Batch(0, points_of(problem)))
    return net.W, objective, method.optimizer(groups)


def test_the_jacobian_in_tangent_coordinates_is_that_of_the_inner_product(generator):
    """Row i is √(2/R) ⟨M_i, U X + U⊥ K V⟩, (X, K) one coordinate after the other."""
    problem = MatrixSensing(rows=6, columns=5, rank=2)
    layer, objective, _ = adapted(problem, 2, generator)
    U, _, V = linalg.svd((layer.B @ layer.A).detach())
    frame = Frame(U[:, :2], U[:, 2:], V[:2])
    p = problem.measured()
    M = p.rows(problem.coords)
    expected = []
    for z in torch.eye(frame.dimension, dtype=torch.float64):
        X, K = frame.split(z)
        expected.append(math.sqrt(2 / p.number) * M @ (U[:, :2] @ X + U[:, 2:] @ K @ V[:2]).flatten())
    J = objective.linearise().columns({"W": frame})
    assert objective.sweep.paired("measured")
    assert J.shape == (p.number, 2 * (6 + 5 - 2))
    assert torch.allclose(J, torch.stack(expected, dim=1), rtol=1e-11, atol=1e-13)


@both
def test_the_adapter_carries_the_whole_matrix(cls, generator):
    problem = cls()
    layer, _, _ = adapted(problem, 3, generator)
    assert torch.allclose(layer.scale * (layer.B @ layer.A).detach(), layer.weight.detach(), atol=1e-15)
    assert torch.allclose(layer.weight.detach(), problem.at_source().matrix, atol=1e-15)


# Recovery.


@both
@pytest.mark.parametrize("seed", range(1, 7))
def test_the_default_recovers_the_target_and_ends_quadratically(cls, seed, generator):
    problem = cls(seed=seed)
    layer, objective, optimizer = adapted(problem, 3, generator)
    W, errors = problem.matrix, []
    for step in range(20):
        objective.begin(Batch(step, objective.batch.points))
        optimizer.step(objective)
        errors.append(float((layer.weight.detach() - W).norm() / W.norm()))
        if errors[-1] < 1e-10:
            break
    assert errors[-1] < 1e-10
    # Once an error is small against σ_r, the next one is that of second order at most, up to the damping.
    small = [(a, b) for a, b in pairwise(errors) if a < 1e-3]
    assert small
    assert all(b < max(0.1 * a, 1e-10) for a, b in small)
    assert min(b / a for a, b in small) < 1e-3


def test_more_factors_than_the_target_has_rank_recover_it_too(generator):
    problem = MatrixSensing()
    layer, objective, optimizer = adapted(problem, 5, generator)
    for step in range(30):
        objective.begin(Batch(step, objective.batch.points))
        optimizer.step(objective)
    assert float((layer.weight.detach() - problem.matrix).norm() / problem.matrix.norm()) < 1e-10


def test_too_few_measurements_are_met_by_another_matrix(generator):
    problem = MatrixSensing(measurements=60)
    layer, objective, optimizer = adapted(problem, 3, generator)
    for step in range(30):
        objective.begin(Batch(step, objective.batch.points))
        loss = optimizer.step(objective)
    assert float(loss) < 1e-8
    assert float((layer.weight.detach() - problem.matrix).norm() / problem.matrix.norm()) > 0.1


def test_noise_is_averaged_over_the_measurements(generator):
    """The best matrix of rank r misses W* by about noise · √(freedoms / R) · ‖W*‖ (Candès and Plan, 2011)."""
    problem = MatrixSensing(noise=0.01)
    layer, objective, optimizer = adapted(problem, 3, generator)
    for step in range(25):
        objective.begin(Batch(step, objective.batch.points))
        optimizer.step(objective)
    error = float((layer.weight.detach() - problem.matrix).norm() / problem.matrix.norm())
    assert error == pytest.approx(0.01 / math.sqrt(5), rel=0.3)


@pytest.mark.parametrize("problem", ["matrix_sensing", pytest.param("matrix_regression", marks=pytest.mark.slow)])
def test_the_command_recovers_the_matrix(problem, tmp_path):
    line = [sys.executable, "train.py", f"problem={problem}", "logger=csv"]
    line += [f"output_dir={tmp_path / 'run'}", f"pretrain.cache={tmp_path / 'cache'}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result["rel_l2"] == result["rel_error"] < 1e-10
    assert result["pretrain_rel_l2"] < 1e-14
    assert not result["diverged"]
    names = {"summary.json", "history.csv", "solution.png", "history.png", "adapter", "config.yaml", "start.json"}
    assert names <= {file.name for file in (tmp_path / "run").iterdir()}


def composed_for_a_matrix(compose, *overrides):
    return compose("pretrain.adam_steps=0", "budget.gradient_evals=40", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["problem=matrix_sensing", "method=lora_gd"],
        ["problem=matrix_sensing", "method=scaled_gd"],
        ["problem=matrix_sensing", "integrator=rk4"],
        ["problem=matrix_sensing", "integrator=rk4", "method.chart=manifold"],
        ["problem=matrix_sensing", "method=lora_adam", "method.lr=0.03"],
        ["problem=matrix_regression", "method=lora_gd"],
        ["problem=matrix_regression", "integrator=ros2"],
    ],
    ids=" ".join,
)
def test_every_flow_makes_the_error_smaller(overrides, compose, run):
    result = run(composed_for_a_matrix(compose, *overrides)).result
    assert not result.failure
    assert result.rel_l2 < 0.9 * result.rel_l2_before


def test_regression_over_all_weights_is_convex_and_needs_no_rank(compose, run):
    cfg = composed_for_a_matrix(compose, "problem=matrix_regression", "method=full_implicit")
    assert run(cfg).result.rel_l2 < 1e-10


def test_held_out_measurements_are_fresh(compose, run):
    """Fewer measurements than freedoms are met exactly, and others are not."""
    cfg = composed_for_a_matrix(compose, "problem=matrix_sensing", "problem.measurements=60", "log.every=1")
    last = run(cfg).adaptation.history[-1]
    assert last["loss"] < 1e-3 * last["stability/heldout_loss"]


def test_the_source_has_the_rank_of_the_factors(compose):
    cfg = compose("problem=matrix_sensing", "problem.rank=2")
    assert (cfg.lora.rank, cfg.pretrain.source.rank) == (2, 2)
    cfg = compose("problem=matrix_sensing", "lora.rank=5")
    assert (cfg.problem.rank, cfg.pretrain.source.rank) == (3, 5)


# Invalid input.


@pytest.mark.parametrize(
    ("cls", "values", "said"),
    [
        (MatrixSensing, {"rank": 21}, "rank is 21, but it must be at most 20 for a 20 × 20 matrix."),
        (MatrixSensing, {"rank": 0}, "rank is 0, but it must be a whole number of at least 1."),
        (MatrixSensing, {"noise": -0.1}, "noise is -0.1, but it must be a finite number of at least 0."),
        (MatrixSensing, {"noise": math.inf}, "noise is inf, but it must be a finite number of at least 0."),
        (MatrixSensing, {"measurements": 0}, "measurements is 0, but it must be a whole number of at least 1."),
        (MatrixSensing, {"rows": 0}, "rows is 0, but it must be a whole number of at least 1."),
        (MatrixSensing, {"columns": 2.5}, "columns is 2.5, but it must be a whole number of at least 1."),
        (MatrixSensing, {"rows": 300}, "rows is 300, but it must be at most 204 with 20 columns: a matrix has 4096"),
        (MatrixRegression, {"condition": 0.5}, "condition is 0.5, but it must be a finite number of at least 1."),
        (
            MatrixRegression,
            {"curvature": 0.5},
            "curvature is 0.5, but it must be a finite number of at least 1",
        ),
    ],
    ids=str,
)
def test_refusals(cls, values, said):
    with pytest.raises(InputError) as refusal:
        cls(**values)
    assert str(refusal.value).startswith(said)


def test_what_describes_the_target_cannot_be_found(compose, tmp_path):
    """No residual depends on it: the measurements are those of one target."""
    names = entry_names(2, 2)
    (tmp_path / "data.csv").write_text(",".join((*names, "u")) + "\n1,0,0,0,0.5\n")
    overrides = ["problem=matrix_sensing", "problem.rows=2", "problem.columns=2", "problem.rank=1"]
    cfg = compose(*overrides, "problem.condition=unknown", f"data.file={tmp_path / 'data.csv'}")
    with pytest.raises(InputError, match="no residual of this problem depends on it"):
        experiment(cfg)
