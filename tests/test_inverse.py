"""Unknown coefficients of an equation: found from measurements, with an interval that means what it says."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import linalg

import pinn_odelora as po
from pinn_odelora import confidence
from pinn_odelora.confidence import _interval, coefficient_intervals, response, student
from pinn_odelora.config.build import experiment, posed
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box, Cloud
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.lowrank.start import pissa
from pinn_odelora.lowrank.targets import linear_targets, put_factors, thaw
from pinn_odelora.matrix_problem import MatrixProblem
from pinn_odelora.nets import MLP
from pinn_odelora.objective import Batch, Objective
from pinn_odelora.optim.methods import full_implicit, odelora
from pinn_odelora.points import Points
from pinn_odelora.registry import problem_classes
from pinn_odelora.runs.save import save_outcome
from pinn_odelora.sampling.batch_size import AdaptiveBatchSize
from pinn_odelora.system import Solution, System, draw_points

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
NAMES = sorted(problem_classes())


def numbers(problem):
    """The parameters that may vary."""
    return [name for name, p in problem.parameters().items() if not (p.integer or p.choices)]


# Derivatives by coefficients.


@pytest.mark.parametrize(
    ("name", "conditions", "coefficient"),
    [
        (name, conditions, coefficient)
        for name in NAMES
        if not issubclass(problem_classes()[name], MatrixProblem)  # theirs describe the matrix that is sought
        for conditions in problem_classes()[name].supports
        for coefficient in numbers(problem_classes()[name])
    ],
)
def test_rows_are_differentiable_by_every_coefficient(name, conditions, coefficient, generator):
    """Its column against differences of fourth order, conditions and ansatz that contain it included."""
    problem = problem_classes()[name](conditions=conditions)
    net = MLP(problem.inputs, len(problem.fields), width=8, depth=2, generator=generator).double()

    def linearised(value):
        solution = Solution(dataclasses.replace(problem, **{coefficient: value}), net, [coefficient])
        system = System(solution.problem, solution)
        points = draw_points(system.terms, 4, 3, seed=3)
        return Linearisation(Sweep(system, {}, dict(solution.named_parameters(prefix=""))), points)

    x = getattr(problem, coefficient)
    h = 1e-4 * x
    around = linearised(x)
    column = torch.cat([group.columns[f"coefficients.{coefficient}"] for group in around.groups()])[:, 0]
    near, far = (linearised(x + d).r - linearised(x - d).r for d in (h, 2 * h))
    expected = (8 * near - far) / (12 * h)
    assert column.abs().max() > 0
    assert (column - expected).abs().max() < 1e-7 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_reference_while_a_coefficient_is_unknown(name, generator):
    problem = problem_classes()[name]()
    p = problem.region.sample(4, lambda n, d: torch.rand(n, d, generator=generator, dtype=torch.float64))
    assert torch.equal(problem.known_reference(p), problem.reference(p))
    for coefficient in numbers(problem):
        solution = Solution(problem, MLP(problem.inputs, len(problem.fields), width=4, depth=1), [coefficient])
        assert solution.problem.unknown == (coefficient,)
        assert solution.problem.known_reference(p) is None


# A system that is linear in all that is trained: u' = c on [0, 1] with u = ax + b, u measured with noise.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slope(Problem):
    """u' = c on [0, 1], u(0) = 0 softly."""

    coords = ("x",)
    region = Box(x=(0, 1))
    supports = ("soft",)
    c: float = parameter(1.0, 2.0)

    def terms(self):
        return {
            "pde": Term(self.region, lambda f: f.u_x - self.c, weight=3.0),
            "bc": Term(self.region.face(x=0.0), lambda f: f.u),
        }


X = torch.linspace(0.1, 1, 12, dtype=torch.float64)[:, None]


def line_through(values):
    """The system of a line with unknown c, its groups and points."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, dtype=torch.float64))
    with torch.no_grad():
        net[0].weight.fill_(1.7)
        net[0].bias.fill_(0.2)
    solution = Solution(Slope(c=1.0), net, ["c"])
    cloud = Cloud(Points({"x": X, "measured_u": values}))
    data = Term(cloud, lambda f: f.u - f.measured_u, weight=0.5)
    system = System(solution.problem, solution, {"data": data})
    groups = full_implicit(LinearlyImplicit()).groups(solution)
    points = draw_points(system.terms, 16, 1, seed=0)
    objective = Objective(system, [p for g in groups for p in g["params"]], {"0": net[0]})
    objective.begin(Batch(0, points))
    return solution, groups, objective, points


def fitted(values, steps=12):
    """The estimate of c and its interval after steps of natural gradient descent on all that is trained."""
    solution, groups, objective, points = line_through(values)
    optimizer = full_implicit(LinearlyImplicit()).optimizer(groups)
    for _ in range(steps):
        optimizer.step(objective)
    return solution.coefficients["c"].item(), coefficient_intervals(objective.sweep, groups, points)["c"]


def exact(values):
    """c by the normal equations of rows (a, b, c)."""
    one, zero = torch.ones_like(X), torch.zeros_like(X)
    data = math.sqrt(2 * 0.5 / 12) * torch.cat([X, one, zero], dim=1)
    pde = math.sqrt(2 * 3) * torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    bc = math.sqrt(2) * torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    J = torch.cat([pde, bc, data])
    S = linalg.solve(J.mT @ J, data.mT)
    return S @ (math.sqrt(2 * 0.5 / 12) * values), S, data


def test_the_estimate_and_its_interval_are_those_of_the_normal_equations(generator):
    values = 2 * X + 0.1 * torch.randn(12, 1, generator=generator, dtype=torch.float64)
    estimate, interval = fitted(values)
    theta, S, data = exact(values)
    assert estimate == pytest.approx(float(theta[2]), rel=1e-7)
    r = data @ theta - math.sqrt(2 * 0.5 / 12) * values
    freedom = 12 - float((data @ S).trace())
    std = float(r.norm()) / math.sqrt(freedom) * float(S[2].norm())
    assert interval.std == pytest.approx(std, rel=1e-5)
    assert interval.high - interval.estimate == pytest.approx(student(0.95, freedom) * std, rel=1e-5)
    assert interval.low < interval.estimate < interval.high


@pytest.mark.parametrize("steps", [0, 12])
def test_the_step_ahead_is_told_and_widens_the_interval(steps, generator):
    """Rows are linear in weights and coefficient here, so that one Gauss-Newton step ends at the estimate."""
    values = 2 * X + 0.1 * torch.randn(12, 1, generator=generator, dtype=torch.float64)
    estimate, interval = fitted(values, steps)
    expected = float(exact(values)[0][2])
    assert estimate + interval.ahead == pytest.approx(expected, rel=1e-7)
    assert interval.settled == (steps > 0)
    half = interval.high - interval.estimate
    assert interval.low < expected < interval.high
    assert half > abs(interval.ahead) + 1.9 * interval.std


def test_what_the_residuals_leave_open_is_the_part_that_damping_decides(generator):
    """Where only x + y is seen, half of x and of y; of what is seen, nothing."""
    J = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    J[:, 1] = J[:, 0]
    found = response(J, torch.zeros(30, dtype=torch.float64), slice(0, 20))
    assert found.left.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-9)
    J[:, 1] += 1e-2 * torch.randn(30, generator=generator, dtype=torch.float64)
    assert float(response(J, torch.zeros(30, dtype=torch.float64), slice(0, 20)).left.max()) < 1e-9


def decay(rows, **rates):
    """What is found of the coefficients of u' + (sum of them) u = 0 from noisy values of exp(-3 t)."""
    line, t = Box(t=(0, 1)), np.linspace(0, 1, 20)
    u = np.exp(-3 * t) + 0.01 * np.random.default_rng(0).standard_normal(20)
    where = {name: po.parameter(value, value) for name, value in rates.items()}
    rate = lambda f, **known: f.u_t + sum(known.values()) * f.u
    pde = {("a",): lambda f, a: rate(f, a=a), ("a", "b"): lambda f, a, b: rate(f, a=a, b=b)}[tuple(rates)]
    problem = po.problem(coords="t", region=line, pde=pde, ic=(line.face(t=0.0), lambda f: f.u - 1), **where)
    net = po.pretrain(problem.at_source(), po.MLP(1, 1, width=10, depth=2))
    data = {"t": t[rows], "u": u[rows]}
    budget = po.Budget(gradient_evals=120)
    return po.adapt(net, problem, data=data, unknown=tuple(rates), rank=4, budget=budget)


def test_coefficients_that_only_occur_as_a_sum_have_no_interval():
    result = decay(slice(None), a=1.0, b=0.5)
    assert "no interval of a and b, which the measurements do not determine" in str(result)
    for x in result.coefficients.values():
        assert (x["low"], x["high"], x["std"], x["settled"]) == (None, None, None, False)
    assert result.coefficients["a"]["estimate"] + result.coefficients["b"]["estimate"] == pytest.approx(3, abs=0.2)


def test_an_interval_needs_a_measured_value_beyond_those_that_are_fitted():
    assert "95 % interval" in str(decay(slice(None), a=1.0))
    only = decay(slice(10, 11), a=1.0)
    assert "no interval, since the fit leaves no measured value to tell the noise by" in str(only)
    assert only.coefficients["a"]["low"] is None


def test_the_interval_covers_the_truth_as_often_as_it_says(generator):
    """By the normal equations, whose estimate and interval a test above has shown to be the same, 4000 times."""
    noise = 0.1 * torch.randn(12, 4000, generator=generator, dtype=torch.float64)
    theta, _, data = exact(2 * X + noise)
    J = torch.cat([data, math.sqrt(6) * torch.tensor([[1.0, 0, -1]]), math.sqrt(2) * torch.tensor([[0.0, 1, 0]])])
    found = response(J, torch.zeros(14, dtype=torch.float64), slice(0, 12))
    r = data @ theta - math.sqrt(2 * 0.5 / 12) * (2 * X + noise)
    freedom = 12 - found.used
    std = r.norm(dim=0) / math.sqrt(freedom) * found.deviation[2]
    assert float(theta[2].std()) == pytest.approx(0.1 * math.sqrt(1 / 12) * float(found.deviation[2]), rel=0.04)
    covered = ((theta[2] - 2).abs() < student(0.95, freedom) * std).double().mean()
    assert float(covered) == pytest.approx(0.95, abs=0.012)


def test_an_interval_above_a_bound_is_one_of_the_logarithm():
    found = _interval(3.0, 1.0, 0.1, 2.0, 0.3)
    expected = (3.0, 1 + 2 * math.exp(-0.5), 1 + 2 * math.exp(0.5), 0.2, 2 * (math.exp(0.3) - 1))
    assert tuple(found) == pytest.approx(expected)
    assert not found.settled
    assert found._replace(ahead=0.09).settled
    # Of a coefficient that the measurements leave open.
    assert tuple(_interval(3.0, 1.0, math.inf, 2.0, 0.3))[:4] == (3.0, 1.0, math.inf, math.inf)
    assert tuple(_interval(3.0, None, math.inf, 2.0, 0.3))[:4] == (3.0, -math.inf, math.inf, math.inf)


@pytest.mark.parametrize("freedom", [0.3, 1.0, 2.0, 7.5, 30.0, 1e9])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_a_quantile_of_student_bounds_the_probability_that_it_is_asked_for(freedom, level):
    """By the integral of the density, ∫ dt/π/(1 + t²) at one degree of freedom for instance."""
    q = student(level, freedom)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    density = lambda x: math.exp(log_scale - (freedom + 1) / 2 * math.log1p(x**2 / freedom))
    # x = sinh s, since the tails of few degrees of freedom are long.
    inside = quad(lambda s: density(math.sinh(s)) * math.cosh(s), -math.asinh(q), math.asinh(q))[0]
    assert inside == pytest.approx(level, rel=1e-6)
    if freedom == 1:
        assert q == pytest.approx(math.tan(level * math.pi / 2))


def test_without_a_degree_of_freedom_there_is_no_quantile():
    assert math.isnan(student(0.95, 0.0))
    assert math.isnan(student(0.95, -1.5))


# On a network.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decay(Problem):
    """u' = -k u on [0, 1], u(0) = 1."""

    coords = ("t",)
    region = Box(t=(0, 1))
    enforced = ("ic",)
    k: float = parameter(1.0, 2.0, above=0)

    def terms(self):
        return {
            "pde": Term(self.region, lambda f: f.u_t + self.k * f.u),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - 1),
        }

    def ansatz(self, p):
        return torch.ones_like(p.t), p.t

    def reference(self, p):
        return torch.exp(-self.k * p.t)


def decaying(generator, first, metric="odelora", truth=2.0):
    net = MLP(1, 1, width=12, depth=2, generator=generator).double()
    method = (odelora if metric == "odelora" else full_implicit)(LinearlyImplicit())
    layers = linear_targets(net, "linears.1")
    if method.trains == "factors":
        layers = put_factors(net, layers, 6, 1.0, pissa, generator)
        thaw(net, ["biases", "last"])
    solution = Solution(Decay(k=first), net, ["k"])
    t = torch.rand(30, 1, generator=generator, dtype=torch.float64)
    cloud = Cloud(Points({"t": t, "measured_u": torch.exp(-truth * t)}))
    system = System(solution.problem, solution, {"data": Term(cloud, lambda f: f.u - f.measured_u)})
    groups = method.groups(solution)
    objective = Objective(system, [p for g in groups for p in g["params"]], layers)
    return solution, method.optimizer(groups), objective, groups


@pytest.mark.parametrize("metric", ["odelora", "full_implicit"])
def test_a_coefficient_is_found_from_clean_data(metric, generator):
    solution, optimizer, objective, groups = decaying(generator, 0.3, metric)
    for step in range(40):
        objective.begin(Batch(step, draw_points(objective.system.terms, 60, 1, seed=0, draw=step)))
        optimizer.step(objective)
        assert solution.coefficients["k"].item() > 0
    assert solution.coefficients["k"].item() == pytest.approx(2.0, rel=1e-3)
    interval = coefficient_intervals(objective.sweep, groups, objective.batch.points)["k"]
    assert 0 < interval.low < interval.estimate < interval.high
    assert interval.high - interval.low < 0.01
    assert interval.high * interval.low == pytest.approx(interval.estimate**2)  # symmetric in the logarithm


def test_the_interval_is_found_in_coordinates_of_the_tangent_space(generator, monkeypatch):
    """One for each dimension: factors have r² more numbers, which no residual sees."""
    _, _, objective, groups = decaying(generator, 0.3)
    points, shapes = draw_points(objective.system.terms, 60, 1, seed=0), []
    monkeypatch.setattr(confidence, "response", lambda J, *rest: shapes.append(J.shape) or response(J, *rest))
    before = coefficient_intervals(objective.sweep, groups, points)["k"]
    (layer,) = objective.layers.values()
    beside = sum(p.numel() for p in objective.parameters) - layer.A.numel() - layer.B.numel()
    assert shapes == [(60 + 30, 6 * (12 + 12 - 6) + beside)]
    # So it is that of the product, however it is split into factors.
    turn = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.B.copy_(layer.B @ turn)
        layer.A.copy_(linalg.solve(turn, layer.A))
    assert coefficient_intervals(objective.sweep, groups, points)["k"] == pytest.approx(before, rel=1e-5)


def test_a_coefficient_stays_above_its_bound(generator):
    """Values that grow would be those of a negative k."""
    solution, optimizer, objective, _ = decaying(generator, 1.0, truth=-1.0)
    for step in range(15):
        objective.begin(Batch(step, draw_points(objective.system.terms, 60, 1, seed=0, draw=step)))
        optimizer.step(objective)
        assert solution.coefficients["k"].item() > 0
    assert solution.coefficients["k"].item() < 0.1


# Runs.


@pytest.fixture
def measured(tmp_path):
    """A file of measurements of Burgers' equation at ν = 0.02."""
    rng = np.random.default_rng(3)
    x, t = rng.uniform(-1, 1, 20), rng.uniform(0, 1, 20)
    p = Points({"x": torch.from_numpy(x)[:, None], "t": torch.from_numpy(t)[:, None]})
    u = problem_classes()["burgers"](nu=0.02).reference(p)[:, 0].numpy()
    np.savez(tmp_path / "measured.npz", x=x, t=t, u=u + 0.01 * rng.standard_normal(20))
    return f"data.file={tmp_path / 'measured.npz'}"


def test_the_batch_grows_by_the_loss_without_the_measured_part(compose, run, measured, monkeypatch):
    updates, update = [], AdaptiveBatchSize.update

    def recording(batch, began, ended, price, dimension, largest, measured, sufficient, compared):
        assert compared is None  # terms have no multipliers
        updates.append((began, measured))
        update(batch, began, ended, price, dimension, largest, measured, sufficient, compared)

    cfg = compose(
        *("problem.nu=unknown", measured, "points=residual", "points.initial_batch_size=10", "pretrain.adam_steps=0"),
        *("budget.steps=4", "log.every=1"),
    )
    monkeypatch.setattr(AdaptiveBatchSize, "update", recording)
    *rows, _ = run(cfg).adaptation.history
    assert updates == [(row["loss"], row["loss/data"]) for row in rows]
    assert all(0 < measured < began for began, measured in updates)
    # The step was taken with a Gram matrix, in one of two precisions.
    assert {row["integrator/bits"] for row in rows} <= {32, 64}
    assert {row["integrator/fallback"] for row in rows} == {0}


ENOUGH = ("points.interior=400", "points.initial_batch_size=125", "budget.steps=16")
"""For a network that hardly solves anything to fit the measurements."""


def test_a_run_finds_logs_and_keeps_a_coefficient(compose, run, measured, tmp_path):
    done = run(compose("problem.nu=unknown", measured, *ENOUGH, "log.every=2"))
    solution, folder = done.adaptation.solution, tmp_path / "run"
    estimate = solution.coefficients["nu"].item()
    assert 0 < estimate != 0.05
    header, first, *_, last = (folder / "history.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in (first, last)]
    assert [float(row["coefficient/nu"]) for row in rows] == [0.05, estimate]
    assert not any("nan" in row.values() for row in rows)
    assert "error/rel_l2" not in header

    summary = save_outcome(done.result, folder, done.facts)
    found = summary["coefficients"]["nu"]
    assert found["estimate"] == estimate
    assert 0 < found["low"] < estimate < found["high"]
    assert summary["rel_l2"] is None
    assert json.loads((folder / "coefficients.json").read_text()) == {"nu": estimate}

    u = po.load(folder)
    assert u.problem.nu == estimate
    p = Points({"x": torch.tensor([[0.3]]).double(), "t": torch.tensor([[0.4]]).double()})
    # The adapter's file has single precision.
    assert float(u(0.3, 0.4)) == pytest.approx(float(solution(p).detach()), rel=1e-6)


def test_the_last_line_says_what_was_found(compose, run, measured, capsys):
    done = run(compose("problem.nu=unknown", measured, *ENOUGH))
    done.run.conclude(done.result, done.facts)
    last = capsys.readouterr().err.splitlines()[-1]
    estimate = done.adaptation.solution.coefficients["nu"].item()
    assert f"burgers, odelora: nu = {estimate:.6g} (95 % interval " in last


def test_the_first_guess_is_the_value_of_the_pretrained_network(compose, measured):
    assert posed(compose("problem.nu=unknown", measured))[0].nu == 0.05
    problem, _, unknown = posed(compose("problem.nu=unknown", measured, "pretrain.source.nu=0.1"))
    assert (problem.nu, unknown) == (0.1, ("nu",))


def test_a_coefficient_of_the_ansatz_is_found_and_loaded(compose, run, measured, tmp_path):
    """Burgers' amplitude stands in the ansatz, so a solution without it would be another function."""
    done = run(compose("problem.amplitude=unknown", measured, "problem.nu=0.05", "budget.steps=3"))
    save_outcome(done.result, tmp_path / "run", done.facts)
    u = po.load(tmp_path / "run")
    amplitude = done.result.coefficients["amplitude"]["estimate"]
    assert abs(amplitude - 1) > 1e-3
    assert float(u(0.3, 0.0)) == pytest.approx(-amplitude * math.sin(0.3 * math.pi))


def test_a_resumed_run_is_the_same_bit_for_bit(compose, run, measured, tmp_path):
    given = ["problem.nu=unknown", measured, "checkpoint.every=1"]
    whole = run(compose(*given, "budget.steps=7", f"output_dir={tmp_path / 'whole'}")).adaptation
    run(compose(*given, "budget.steps=3", f"output_dir={tmp_path / 'part'}"))
    cfg = compose(f"resume={tmp_path / 'part'}")
    cfg.budget.steps = 7
    part = run(cfg).adaptation
    for (name, a), b in zip(whole.solution.named_parameters(), part.solution.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert whole.intervals == part.intervals


# Refusals.


def test_an_unknown_without_measurements_is_refused(compose):
    said = r"^data.file is None, but it must be a file of measurements, from which problem.nu is found\.$"
    with pytest.raises(InputError, match=said):
        compose("problem.nu=unknown")


@pytest.mark.parametrize("given", ["problem=poisson problem.a=unknown", "problem=poisson problem.domain=unknown"])
def test_only_numbers_that_vary_can_be_unknown(compose, measured, given):
    with pytest.raises(InputError, match=r"'unknown', but it must be"):
        compose(*given.split(), measured)


def test_what_a_coefficient_may_be_names_the_word(compose):
    with pytest.raises(InputError, match=r"^problem.nu is -1, but it must be a finite number above 0 or unknown\.$"):
        compose("problem.nu=-1")


@pytest.mark.parametrize(
    "given",
    ["integrator=rk4", "method=lora_gd integrator=euler integrator.h=0.1", "method=lora_adam", "method=full_lbfgs"],
)
def test_a_method_that_cannot_find_a_coefficient_is_refused(compose, measured, given):
    cfg = compose("problem.nu=unknown", measured, *given.split())
    with pytest.raises(InputError, match=r"^nu is unknown, but only an implicit scheme can find it"):
        experiment(cfg)


def test_a_coefficient_that_nothing_depends_on_is_refused(compose, measured):
    cfg = compose("problem.nu=unknown", measured, "problem._target_=test_inverse.Idle")
    with pytest.raises(InputError, match=r"^nu is unknown, but no residual of this problem depends on it"):
        experiment(cfg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idle(Problem):
    """u_t = u_xx, whose nu does nothing."""

    coords = ("x", "t")
    region = Box(x=(-1, 1), t=(0, 1))
    supports = ("soft",)
    nu: float = parameter(0.05, 0.02, above=0)

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_t - f.u_xx)}
