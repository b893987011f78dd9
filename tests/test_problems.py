"""The contract of a problem: its reference solves it, its ansatz keeps its conditions, its parameters are checked.

Problems are found, not listed: a new file in ``problems/`` is tested by being there.
"""

import importlib
import math
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.integrate import solve_ivp

import pinn_odelora as po
import problems
from pinn_odelora.contract.quantities import Quantities, generic_points, indifferent, left_at_reference
from pinn_odelora.contract.report import check
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.derivatives.jet import EXPRESSION
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import Box, sobol
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.matrix_problem import MatrixProblem
from pinn_odelora.metrics import relative_l2
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.reference import PeriodicSolution, etdrk4
from pinn_odelora.system import Solution
from problems import allen_cahn
from problems.allen_cahn import AllenCahn
from problems.burgers import Burgers
from problems.convection import Convection
from problems.heat import Heat
from problems.helmholtz import Helmholtz
from problems.kovasznay import Kovasznay
from problems.poisson import Poisson
from problems.reaction import Reaction

VARIANTS = {
    "Burgers": [{"amplitude": 1.5}, {"nu": 0.01 / math.pi}],
    "Convection": [{"beta": 20.0}],
    "AllenCahn": [{"d": 1e-4}],
    "Poisson": [{"domain": "plate_with_hole"}],
    "Kovasznay": [{"re": 80.0}],
}


def found():
    for module in pkgutil.iter_modules(problems.__path__, "problems."):
        for member in vars(importlib.import_module(module.name)).values():
            if isinstance(member, type) and issubclass(member, Problem) and member.__module__ == module.name:
                yield member


CLASSES = list(found())
CASES = [
    problem
    for cls in CLASSES
    for conditions in cls.supports
    for values in ({}, *VARIANTS.get(cls.__name__, []))
    for target in [cls(conditions=conditions, **values)]
    for problem in ([target.at_source(), target] if not values else [target])
]


def name(problem):
    values = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in problem_values(problem).items())
    return f"{type(problem).__name__}-{problem.conditions}-{'-'.join(values)}"


def problem_values(problem):
    return {k: getattr(problem, k) for k in problem.parameters()}


every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
every_case = pytest.mark.parametrize("problem", CASES, ids=name)


def equation(problem):
    """The name of the term that holds the equation: only a matrix has none, and is known by its measurements."""
    return "measured" if isinstance(problem, MatrixProblem) else "pde"


@every_case
def test_reference_makes_every_term_vanish(problem):
    points = generic_points(problem)
    for name in problem.terms():
        assert left_at_reference(problem, name, points[name]) < 1e-6, name


@every_class
def test_every_quantity_in_an_equation_matters(cls):
    """Any one with the wrong sign would miss the tolerance of the test above by a factor of a thousand."""
    problem = cls()  # a quantity that is zero has no sign: p_y in Kovasznay's flow, see the test of symmetry
    assert indifferent(problem, equation(problem), generic_points(problem)[equation(problem)]) == []


@every_class
def test_the_contract_holds(cls):
    found = check(cls)
    assert {row.verdict for row in found.rows} <= {"holds", "note"}, f"\n{found}"


def test_quantities_are_the_summands_of_operators_and_of_moved_points():
    """u_t + β u_x cancels to nothing and so does a periodic pair, but neither is made of small quantities."""
    problem = Convection()
    field = Quantities(problem, generic_points(problem)["pde"])
    there = field.at(x=field.x + 2 * math.pi)
    r = field.op("u", {"t": 1, "x": problem.beta}) + 0.01 * (field.u - there.u)
    assert field.asked.keys() == {("u", "t", "here"), ("u", "x", "here"), ("u", "", "here"), ("u", "", "here.0")}
    assert float(r.detach().abs().max()) < 1e-12
    assert field.largest_summand(r) == pytest.approx(problem.beta, rel=1e-3)
    wrong = Quantities(problem, field.points, flipped=[("u", "", "here.0")])
    assert float((wrong.u - wrong.at(x=wrong.x + 2 * math.pi).u).detach().abs().max()) > 1.9


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_flux_that_is_differentiated_is_checked_at_the_reference(sign):
    """x / (1 + t) is a rarefaction of Burgers' equation in conservation form; it is none of the other sign."""

    def conserved(f):
        flux = sign * f.u**2 / 2
        return f.u_t + torch.autograd.grad(flux, f.x, torch.ones_like(flux), create_graph=True)[0]

    box = po.Box(x=(0, 1), t=(0, 1))
    start = (box.face(t=0.0), lambda f: f.u - f.x)
    found = po.check(
        po.problem(coords="xt", region=box, pde=conserved, start=start, reference=lambda p: p.x / (1 + p.t))
    )
    verdicts = {row.what: row.verdict for row in found.rows}
    assert verdicts["pde at the reference"] == ("holds" if sign > 0 else "fails")
    engine = next(row for row in found.rows if row.what == "derivatives in pde")
    assert engine.said == f"reverse mode, since {EXPRESSION}"


def test_navier_stokes_is_symmetric_in_x_and_y():
    """Kovasznay's pressure depends on x alone; mirrored at x = y the flow solves the same equations and tests p_y."""
    problem = Kovasznay()

    def mirrored(p):
        u, v, pressure = problem.reference(Points(x=p.y, y=p.x)).unbind(dim=1)
        return torch.stack([v, u, pressure], dim=1)

    field = AutogradField(mirrored, generic_points(problem)["pde"], problem.fields, problem.coords)
    assert float(problem.terms()["pde"].rows(field).detach().abs().max()) < 1e-12


def random_solution(problem, generator):
    return Solution(problem, MLP(problem.inputs, len(problem.fields), width=16, depth=2, generator=generator))


@every_case
def test_hard_conditions_hold_for_any_network(problem, generator):
    if problem.conditions == "soft":
        assert problem.loss_terms().keys() == problem.terms().keys()
        return
    assert problem.enforced
    assert problem.loss_terms().keys() == problem.terms().keys() - set(problem.enforced)
    solution = random_solution(problem, generator)
    points = generic_points(problem)
    for name in problem.enforced:
        field = AutogradField(solution, points[name], problem.fields, problem.coords)
        assert float(problem.terms()[name].rows(field).detach().abs().max()) < 1e-12, name
    inside = problem.region.sample(100, lambda n, d: sobol(n, d, seed=5))
    assert float(problem.ansatz(inside)[1].abs().min()) > 0, "the network is switched off inside"


@pytest.mark.parametrize("problem", [problem for problem in CASES if problem.periods], ids=name)
def test_what_the_network_adds_is_periodic(problem, generator):
    """Value and first derivatives; the initial state that it is added to is as periodic as the problem states it."""
    solution = random_solution(problem, generator)
    here = problem.region.sample(50, lambda n, d: sobol(n, d, seed=6))
    there = Points(here | {c: here[c] + period for c, period in problem.periods.items()})
    added = lambda p: problem.ansatz(p)[1] * solution.net(problem.embed(p))
    f, g = (AutogradField(added, p, problem.fields, problem.coords) for p in (here, there))
    for quantity in ("u", *(f"u_{c}" for c in problem.coords)):
        assert float((getattr(f, quantity) - getattr(g, quantity)).detach().abs().max()) < 1e-12
    for c, period in problem.periods.items():
        low, high = problem.region.bounds[c]
        assert high - low == pytest.approx(period)
        ends = [problem.reference(Points(here | {c: torch.full_like(here[c], end)})) for end in (low, high)]
        assert torch.allclose(*ends, atol=1e-12)


@every_case
def test_reference_has_shape_and_dtype_of_the_points(problem):
    p = problem.region.sample(7, lambda n, d: sobol(n, d, seed=8)).to(torch.float32)
    u = problem.reference(p)
    assert p.number == 7 or isinstance(problem.region, UnitMatrices)
    assert u.shape == (p.number, len(problem.fields))
    assert u.dtype == torch.float32
    assert relative_l2(u.double(), problem.reference(p.to(torch.float64))) < 1e-4


@every_class
def test_parameters_refuse_what_is_not_allowed(cls):
    for key, declared in cls.parameters().items():
        wrong = [math.nan, math.inf, -math.inf, "hello", None, True, [1.0]]
        wrong += [declared.above] if math.isfinite(declared.above) else []
        wrong += [2.5] if declared.integer else []
        for value in wrong:
            with pytest.raises(InputError, match=key):
                cls(**{key: value})


@every_class
def test_conditions_and_weights_are_checked(cls):
    with pytest.raises(InputError, match="allowed: "):
        cls(conditions="sof")
    term = equation(cls())
    with pytest.raises(InputError, match=rf"did you mean '{term}'\?"):
        cls(weights={term[:-1]: 1.0})
    for weight in (0.0, -1.0, math.nan, math.inf, "one"):
        with pytest.raises(InputError, match=rf"weights.{term} is .*, but it must be a finite number above 0"):
            cls(weights={term: weight})
    for absent in {"hard", "soft"} - set(cls.supports):
        with pytest.raises(InputError, match=absent):
            cls(conditions=absent)


@every_case
def test_at_source_gives_the_declared_source(problem):
    source = problem.at_source()
    declared = {k: p.source for k, p in problem.parameters().items()}
    assert problem_values(source) == declared
    assert source.conditions == problem.conditions
    key = next(iter(declared))
    assert problem_values(problem.at_source(**{key: declared[key] + 1})) == declared | {key: declared[key] + 1}
    with pytest.raises(InputError, match="source parameter"):
        problem.at_source(colour=1.0)


def test_weights_of_terms_that_the_source_lacks_are_dropped():
    plate = Poisson(domain="plate_with_hole", weights={"hole": 3.0, "pde": 2.0})
    assert plate.loss_terms()["hole"].weight == 3.0
    assert plate.at_source().weights == {"pde": 2.0}


@every_class
def test_configuration_is_one_line(cls):
    module = cls.__module__.removeprefix("problems.")
    config = Path(__file__).parents[1] / "configs" / "problem" / f"{module}.yaml"
    line = f"_target_: problems.{module}.{cls.__name__}\n"
    if issubclass(cls, MatrixProblem):
        assert line in config.read_text()  # the network and what is adapted are others too
    else:
        assert config.read_text() == line


# References against computations that share no code with them.


def chebyshev(n):
    """Nodes in [-1, 1], descending, and the differentiation matrix there (Trefethen, 2000, program cheb)."""
    x = np.cos(np.pi * np.arange(n + 1) / n)
    c = np.where(np.arange(n + 1) % n == 0, 2.0, 1.0) * (-1.0) ** np.arange(n + 1)
    D = np.outer(c, 1 / c) / (x[:, None] - x + np.eye(n + 1))
    return x, D - np.diag(D.sum(axis=1))


def columns(problem, *coordinates):
    return Points({c: torch.as_tensor(x).reshape(-1, 1) for c, x in zip(problem.coords, coordinates, strict=True)})


@pytest.mark.parametrize("kappa", [0.05, 0.2])
def test_heat_is_the_exponential_of_a_collocation_matrix(kappa):
    problem = Heat(kappa=kappa)
    x, D = chebyshev(28)
    x, A = (1 + x[1:-1]) / 2, 4 * (D @ D)[1:-1, 1:-1]
    for t in (0.3, 1.0):
        u = scipy.linalg.expm(kappa * t * A) @ (np.sin(np.pi * x) + np.sin(3 * np.pi * x) / 2)
        exact = problem.reference(columns(problem, x, np.full_like(x, t)))[:, 0]
        assert relative_l2(torch.from_numpy(u), exact) < 1e-9


@pytest.mark.parametrize(
    ("problem", "map_x", "data", "identity"),
    [
        (Helmholtz(), lambda x: x, lambda q, x, y: q.q(x, y), 1.0),
        (Poisson(), lambda x: (1 + x) / 2, lambda q, x, y: -q.f(x, y), 0.0),
    ],
    ids=["Helmholtz", "Poisson"],
)
def test_elliptic_solutions_by_collocation(problem, map_x, data, identity):
    """Δu + identity · u = data, solved on a tensor grid from the right-hand side alone."""
    x, D = chebyshev(30)
    x = map_x(x)
    D = D * 2 / (x[0] - x[-1])
    A, eye = (D @ D)[1:-1, 1:-1], np.eye(len(x) - 2)
    X, Y = (torch.from_numpy(z.ravel()) for z in np.meshgrid(x[1:-1], x[1:-1], indexing="ij"))
    laplacian = np.kron(A, eye) + np.kron(eye, A)
    u = np.linalg.solve(laplacian + identity * np.eye(len(X)), data(problem, X, Y).numpy())
    assert relative_l2(torch.from_numpy(u), problem.reference(columns(problem, X, Y))[:, 0]) < 1e-9


def fourier_derivative(u, period, order):
    k = 2 * np.pi / period * np.arange(len(u) // 2 + 1)
    return np.fft.irfft((1j * k) ** order * np.fft.rfft(u))


@pytest.mark.parametrize(
    ("problem", "rhs", "n", "tolerance"),
    [
        (Convection(), lambda q, u: -q.beta * fourier_derivative(u, 2 * np.pi, 1), 16, 1e-8),
        (Reaction(), lambda q, u: q.rho * u * (1 - u), 64, 1e-8),
        (AllenCahn(d=1e-3), lambda q, u: q.d * fourier_derivative(u, 2.0, 2) + 5 * (u - u**3), 512, 2e-7),
        (
            Burgers(nu=0.05),
            lambda q, u: q.nu * fourier_derivative(u, 2.0, 2) - u * fourier_derivative(u, 2.0, 1),
            128,
            1e-8,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Problem) else "",
)
def test_evolutions_by_the_method_of_lines(problem, rhs, n, tolerance):
    low, high = problem.region.bounds["x"]
    x = low + (high - low) * np.arange(n) / n
    initial = problem.ansatz(columns(problem, x, np.zeros(n)))[0][:, 0].numpy()
    times = (0.5, 1.0)
    lines = solve_ivp(lambda t, u: rhs(problem, u), (0, 1), initial, "DOP853", times, rtol=1e-10, atol=1e-10)
    for t, u in zip(times, lines.y.T, strict=True):
        exact = problem.reference(columns(problem, x, np.full(n, t)))[:, 0]
        assert relative_l2(torch.from_numpy(u), exact) < tolerance


@pytest.mark.parametrize("nu", [0.02, 0.01 / math.pi])
def test_burgers_in_fourier_modes(nu):
    problem = Burgers(nu=nu, amplitude=1.5)
    n, steps = 2048, 1000
    x = -1 + 2 * np.arange(n) / n
    k = np.pi * np.arange(n // 2 + 1)
    square = lambda v: -0.5j * k * np.fft.rfft(np.fft.irfft(v) ** 2)
    history = etdrk4(-nu * k**2, square, np.fft.rfft(-1.5 * np.sin(np.pi * x)), 0.5 / steps, steps, every=steps)
    exact = problem.reference(columns(problem, x, np.full(n, 0.5)))[:, 0]
    assert relative_l2(torch.from_numpy(np.fft.irfft(history[-1])), exact) < 1e-6


@pytest.mark.parametrize("d", [1e-3, 1e-4])
def test_allen_cahn_is_as_accurate_as_it_says(d):
    """Against twice the modes and half the step, the kink at t = 0 included."""
    p = AllenCahn.region.sample(4000, lambda n, d: sobol(n, d, seed=9))
    u, finer = (allen_cahn.solution(d, p.x, p.t, refinement) for refinement in (1, 2))
    assert relative_l2(u, finer) < AllenCahn.accuracy
    early = columns(AllenCahn(d=d), np.linspace(0.9, 1, 500), np.full(500, 0.005))
    u, finer = (allen_cahn.solution(d, early.x, early.t, refinement) for refinement in (1, 2))
    assert relative_l2(u, finer) < 100 * AllenCahn.accuracy


@pytest.mark.parametrize(("d", "t"), [(1e-3, 0.5), (0.3, 0.7)])
def test_the_heat_equation_for_the_initial_state_of_allen_cahn(d, t):
    """Against its Fourier series, of which few terms are left by then."""
    n = 2**14
    x = 2 * np.arange(n) / n - 1
    k = np.pi * np.arange(n // 2 + 1)
    modes = np.fft.rfft(AllenCahn.initial(torch.from_numpy(x)).numpy())
    wanted = np.fft.irfft(np.exp(-d * k**2 * t) * modes)[::97]
    points = torch.from_numpy(x[::97, None])
    found = allen_cahn.diffused(d, points, torch.full_like(points, t))
    np.testing.assert_allclose(found[:, 0].numpy(), wanted, atol=1e-8)


@pytest.mark.parametrize("d", [1e-3, 1e-4])
@pytest.mark.parametrize("t", [0.02, 0.05, 0.3])
def test_the_ansatz_of_allen_cahn_leaves_no_kink_to_the_network(d, t):
    """What is left, u - g, is flat over a quarter of the layer's width from the kink, where 2|s| has slope 2."""
    problem = AllenCahn(d=d)
    s = np.array([0.0, math.sqrt(d * t) / 2])
    p = columns(problem, 1 - s, np.full(2, t))
    g, _ = problem.ansatz(p)
    left = (problem.reference(p) - g)[:, 0]
    assert abs(left[1] - left[0]) / s[1] < 0.02 * 2


def test_the_residual_of_allen_cahn_has_half_the_growth_of_what_it_leaves_near_zero():
    """weight(t)² is what a small solution at t grows by until the end, over what one at 0 does."""
    small = etdrk4(np.array([5.0]), lambda v: -5 * v**3, np.array([1e-8]), 1 / 400, 400)[:, 0].real
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    growth = small[-1] / small
    assert torch.allclose(AllenCahn.weight(t) ** 2, torch.from_numpy(growth / growth[0]), rtol=1e-8)


def test_the_residual_of_allen_cahn_by_hand(generator):
    """At u = sin(3x) exp(t)."""
    problem = AllenCahn(d=0.3)
    x, t = 2 * torch.rand(2, 50, 1, generator=generator, dtype=torch.float64) - 1
    field = AutogradField(lambda p: torch.sin(3 * p.x) * torch.exp(p.t), Points(x=x, t=t), ("u",), ("x", "t"))
    u = torch.sin(3 * x) * torch.exp(t)
    by_hand = torch.exp(-2.5 * t) * (u + 0.3 * 9 * u - 5 * u + 5 * u**3)
    assert torch.allclose(problem.terms()["pde"].rows(field), by_hand, atol=1e-12)


def test_etdrk4_has_order_four():
    """v' = 3v - 3v² and a stiff linear companion, which is solved exactly whatever the step."""
    exact = lambda v, t: v * np.exp(3 * t) / (1 + v * (np.exp(3 * t) - 1))
    errors = []
    for steps in (10, 20, 40):
        nonlinear = lambda v: np.array([-3 * v[0] ** 2, 0.0])
        v = etdrk4(np.array([3.0, -1e4]), nonlinear, np.array([0.1, 1.0]), 1 / steps, steps)
        assert v.shape == (steps + 1, 2)
        assert abs(v[1, 1] - np.exp(-1e4 / steps)) < 1e-15
        errors.append(abs(v[-1, 0] - exact(0.1, 1.0)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.25)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(4, abs=0.25)


def test_etdrk4_takes_complex_spectra():
    """A wave travels by its phase: v' = -iω v."""
    L = np.array([-7.3j, 2.1j])
    v = etdrk4(L, lambda v: 0 * v, np.array([1.0, 2.0j]), 0.01, 100, every=50)
    assert np.allclose(v, np.exp(np.outer([0, 0.5, 1], L)) * np.array([1.0, 2.0j]), atol=1e-13)


def test_interpolated_waves_have_the_right_derivatives():
    """On nodes, between them, and in the one-sided intervals at both ends of time."""
    t = np.linspace(0, 2, 65)
    modes = np.zeros((65, 33), dtype=complex)
    modes[:, 3] = 32 * np.exp(-1j * t)
    u = PeriodicSolution.from_modes(modes, start=-1.0, period=3.0, end=2.0)
    k = 2 * math.pi

    p = Box(x=(-4, 5), t=(0, 2)).sample(200, lambda n, d: sobol(n, d, seed=2))
    nodes = Points(x=torch.tensor([[-1.0], [2.0], [0.5]]), t=torch.tensor([[0.0], [2.0], [1.0]])).to(torch.float64)
    p = Points({c: torch.cat([p[c], nodes[c]]) for c in p})
    f = AutogradField(lambda p: u(p.x, p.t), p, ("u",), ("x", "t"))
    phase = k * (p.x + 1) - p.t
    for computed, exact in [
        (f.u, torch.cos(phase)),
        (f.u_t, torch.sin(phase)),
        (f.u_x, -k * torch.sin(phase)),
        (f.u_xx, -(k**2) * torch.cos(phase)),
    ]:
        assert float((computed - exact).detach().abs().max()) < 1e-8
