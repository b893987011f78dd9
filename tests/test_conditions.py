"""Conditions in one line against exact solutions; terms of one side alone; measurements as terms; ansatz(p, N)."""

import dataclasses
import math
import pickle
from dataclasses import dataclass, fields

import pytest
import torch

import pinn_odelora as po
from pinn_odelora import conditions, confidence
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.derivatives.jet import Channels
from pinn_odelora.derivatives.jets import lifted, seeded
from pinn_odelora.errors import InputError
from pinn_odelora.families.combination import Combinations
from pinn_odelora.families.estimate import Unseen
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.stations import Station
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Ball, Box, Cloud, sobol
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.misfit import misfits_of_term
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System, draw_points

SQUARE = Box(x=(0, 2), y=(-1, 1))
TUBE = Box(x=(0, 1), t=(0, 2))
QUICK = po.Pretraining(adam_steps=20, natural_gradient_steps=30, interior=150, boundary=20)
FEW = po.Sampling.even(interior=150, boundary=20)


def exact(p):
    """u = e^{x} sin(2 y), v = x y²: generic, with known gradients."""
    return torch.cat([torch.exp(p.x) * torch.sin(2 * p.y), p.x * p.y**2], dim=1)


def residual(term, function=exact, fields=("u", "v"), coords=("x", "y"), n=24):
    p = term.where.sample(n, lambda n, d: sobol(n, d, seed=3))
    return term.rows(AutogradField(function, p, fields, coords)).detach()


def vanishes(term, **kwargs):
    return float(residual(term, **kwargs).abs().max()) < 1e-12


def slope(f):
    """∂u/∂n of ``exact`` by its formula."""
    return f.nx * torch.exp(f.x) * torch.sin(2 * f.y) + f.ny * 2 * torch.exp(f.x) * torch.cos(2 * f.y)


WHERE = {
    "face": SQUARE.face(x=0.0),
    "boundary": SQUARE.boundary(),
    "disk": Ball(0.7, x=0.3, y=0.2).boundary(),
    "hole": (SQUARE - Ball(0.5, x=1.0, y=0.1)).boundary(),
}


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
def test_values_and_normal_derivatives(where):
    value = lambda f: torch.exp(f.x) * torch.sin(2 * f.y)
    assert vanishes(conditions.dirichlet(where, value))
    assert vanishes(conditions.neumann(where, lambda f: 3 * slope(f), coefficient=3))
    assert vanishes(conditions.neumann(where, lambda f: f.x * slope(f), coefficient=lambda f: f.x))
    assert vanishes(conditions.robin(where, 2.0, lambda f: f.y, lambda f: 2 * value(f) + f.y * slope(f)))
    assert vanishes(conditions.neumann(where, lambda f: f.nx * f.y**2 + 2 * f.ny * f.x * f.y, field="v"))
    # A condition that is not linear: its value reads the solution.
    assert vanishes(conditions.neumann(where, lambda f: slope(f) + f.u**2 - value(f) ** 2))
    for wrong in (
        conditions.dirichlet(where, 0.3),
        conditions.neumann(where, lambda f: -slope(f)),
        conditions.robin(where, 2.0, lambda f: -f.y, lambda f: 2 * value(f) + f.y * slope(f)),
    ):
        assert not vanishes(wrong)


def test_a_component_of_the_normal_that_is_not_there_is_zero():
    term = Term(SQUARE.face(x=2.0), lambda f: (f.nx, f.ny))
    assert torch.equal(residual(term), torch.tensor([[1.0, 0.0]] * 24).double())
    with pytest.raises(AttributeError, match="the points of this term have no normal, ny"):
        residual(Term(SQUARE, lambda f: f.ny))
    with pytest.raises(InputError, match="needs points with a normal"):
        residual(conditions.neumann(SQUARE, 0.0))


def test_fields_that_are_called_like_normals_are_the_fields():
    """A director (nx, ny) of a liquid crystal."""
    term = Term(SQUARE.boundary(), lambda f: (f.nx, f.ny, f.ny_x))
    p = term.where.sample(24, lambda n, d: sobol(n, d, seed=3))
    assert torch.equal(residual(term, fields=("nx", "ny"))[:, :2], exact(p))


def test_a_periodic_solution_is_periodic_to_the_order_asked_for():
    """sin πx + x³ - x on [-1, 1] has equal values and slopes at the ends, but not equal second derivatives."""
    wave = lambda p: torch.cat([p.t * (torch.sin(math.pi * p.x) + p.x**3 - p.x), torch.cos(math.pi * p.x)], dim=1)
    box = Box(x=(-1, 1), t=(0, 1))
    how = {"function": wave, "coords": ("x", "t")}
    assert conditions.periodic(box, "x").where.bounds["x"] == (-1, -1)
    assert vanishes(conditions.periodic(box, "x", order=1), **how)
    assert not vanishes(conditions.periodic(box, "x", order=2), **how)
    assert vanishes(conditions.periodic(box, "x", order=2, fields="v"), **how)
    assert residual(conditions.periodic(box, "x", order=2), **how).shape == (24, 6)
    with pytest.raises(InputError, match="coordinate of the box: 'y'"):
        conditions.periodic(box, "y")


def test_two_media_meet():
    """u = 3 x + y and v = x + 2 x₀ + y meet at x₀ with k u_x = l v_x for k = 1, l = 3."""
    meeting = lambda p: torch.cat([3 * p.x + p.y, p.x + 2 * 0.8 + p.y], dim=1)
    where = SQUARE.face(x=0.8)
    assert vanishes(conditions.interface(where, coefficients=(1, lambda f: 3 + 0 * f.y)), function=meeting)
    assert residual(conditions.interface(where, ("u", "v"), (1, 2)), function=meeting)[:, 1] == pytest.approx(1.0)
    with pytest.raises(InputError, match="has two fields and coefficients"):
        conditions.interface(where, ("u",))


def test_integrals_by_gauss_nodes():
    sine = math.e**2 - 1  # ∫ e^x dx over [0, 2]
    assert vanishes(conditions.integral(SQUARE, "x", lambda f: sine * torch.sin(2 * f.y)))
    both = conditions.integral(SQUARE, "xy", 2 * 2 / 3, of="v")
    assert both.where.sample(9, None).number == 1  # the same number at all points
    assert vanishes(both)
    face = SQUARE.face(x=2.0)
    assert vanishes(conditions.integral(face, "y", 2 / 3, of=lambda f: f.nx * f.v_x))
    assert not vanishes(conditions.integral(SQUARE.face(x=0.0), "y", 2 / 3, of=lambda f: f.nx * f.v_x))
    # Over a circle, by nodes of one's own with their normals: ∮ ∂v/∂n ds = ∫ Δv, Δv = 2 x.
    angle = 2 * math.pi * torch.arange(12, dtype=torch.float64)[:, None] / 12
    nodes = Points(x=1 + 0.5 * angle.cos(), y=0.5 * angle.sin(), nx=angle.cos(), ny=angle.sin())
    flux = conditions.integral(
        SQUARE, (nodes, [math.pi / 12] * 12), 2 * math.pi / 4, of=lambda f: f.nx * f.v_x + f.ny * f.v_y
    )
    assert vanishes(flux)
    for wrong, sentence in (
        (lambda: conditions.integral(SQUARE, "t", 1.0), "coordinate to integrate over: 't'"),
        (lambda: conditions.integral(face, "x", 1.0), "x is fixed at 2 in this region"),
        (lambda: conditions.integral(SQUARE, (nodes, [1.0]), 1.0), "12 nodes, but 1 weights"),
        (lambda: conditions.dirichlet(face, "hot"), "value is 'hot', but it must be a number or a function"),
        (
            lambda: residual(conditions.dirichlet(face, lambda f: f.y[:, 0])),
            r"shape \(24,\), but it must give a column",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            wrong()


def heat(**parts):
    return po.problem(
        coords="xt",
        region=TUBE,
        k=po.parameter(0.5, 2.0, above=0),
        h=po.parameter(1.0, 3.0, above=0),
        pde=lambda f, k: f.u_t - k * f.u_xx,
        loss=conditions.robin(TUBE.face(x=1.0), lambda f, h: h, lambda f, k: k, lambda f, h: 0.5 * h, weight=3.0),
        **parts,
    )


def test_values_take_the_parameters_of_a_problem_by_name():
    posed = heat(mean=conditions.integral(TUBE, "x", lambda f, **all: all["h"] + 0 * f.t, of=lambda f, k: k * f.u))
    where = TUBE.face(x=1.0).sample(24, lambda n, d: sobol(n, d, seed=3))
    for case, k, h in ((posed, 2.0, 3.0), (posed.at_source(), 0.5, 1.0), (dataclasses.replace(posed, h=7.0), 2.0, 7.0)):
        wave = lambda p: torch.exp(-p.t) * torch.cos(p.x)
        terms = case.loss_terms()
        x, t = torch.ones(24, 1).double(), where.t
        expected = h * torch.exp(-t) * torch.cos(x) - k * torch.exp(-t) * torch.sin(x) - 0.5 * h
        assert torch.allclose(residual(terms["loss"], wave, ("u",), ("x", "t")), expected, atol=1e-13)
        assert terms["loss"].weight == 3.0
        left = residual(terms["mean"], wave, ("u",), ("x", "t"))
        assert torch.allclose(left, k * torch.exp(-terms_t(terms["mean"])) * math.sin(1) - h, atol=1e-13)
    with pytest.raises(InputError, match="argument of bad: 'q'"):
        heat(bad=conditions.neumann(TUBE.face(x=0.0), lambda f, q: q))


def terms_t(term):
    return term.where.sample(24, lambda n, d: sobol(n, d, seed=3)).t


def level(f):
    return 2.0


def test_a_condition_of_named_functions_can_be_pickled():
    term = pickle.loads(pickle.dumps(conditions.neumann(SQUARE.face(x=0.0), level)))
    assert residual(term).shape == (24, 1)
    assert term.where.normal == {"x": -1.0}


@pytest.mark.parametrize("name", ["neumann", "hole", "integral", "periodic", "interface"])
def test_jets_give_the_same_residuals_and_jacobian(name, generator):
    where = {"hole": WHERE["hole"]}.get(name, SQUARE.boundary())
    term = {
        "neumann": lambda: conditions.neumann(where, 1.0, coefficient=lambda f: f.u),
        "hole": lambda: conditions.robin(where, 1.0, 2.0),
        "integral": lambda: conditions.integral(SQUARE, "x", 1.0, nodes=3),
        "periodic": lambda: conditions.periodic(SQUARE, "x"),
        "interface": lambda: conditions.interface(SQUARE.face(y=0.3), coefficients=(2, 3)),
    }[name]()
    posed = po.problem(coords="xy", fields="uv", region=SQUARE, pde=lambda f: f.u_x, term=term)
    net = MLP(2, 2, width=8, depth=2, generator=generator)
    solution = Solution(posed, net)
    points, found = None, []
    for engine in ("jets", "autograd"):
        system = System(posed, solution, derivatives=engine)
        points = points or draw_points(system.terms, 12, 12, seed=1)
        sweep = Sweep(system, {"net.linears.1": net.linears[1]})
        assert sweep.paired("term")
        found.append(Linearisation(sweep, points))
    assert torch.allclose(found[0].r, found[1].r, rtol=0, atol=1e-12)
    assert torch.allclose(*(x.kernel() for x in found), rtol=0, atol=1e-11)


# Terms of the source or the target alone.


@dataclass(frozen=True, kw_only=True)
class Sided(Problem):
    """u_x = c, with a gauge at the source and another one at the target."""

    coords = ("x",)
    region = Box(x=(0, 1))
    supports = ("soft",)

    c: float = parameter(1.0, 2.0)

    def terms(self):
        return {
            "pde": Term(self.region, lambda f: f.u_x - self.c),
            "before": conditions.dirichlet(self.region.face(x=0.0), 0.0, only="source"),
            "after": conditions.dirichlet(self.region.face(x=0.0), 5.0, only="target", weight=2.0),
        }


def test_a_term_holds_at_the_source_or_the_target_alone():
    target = Sided(weights={"after": 3.0, "pde": 7.0})
    source = target.at_source()
    assert [*target.loss_terms()] == ["pde", "after"]
    assert [*source.loss_terms()] == ["pde", "before"]
    assert (source.role, source.c, source.weights) == ("source", 1.0, {"pde": 7.0})
    again = dataclasses.replace(source, c=4.0)
    assert [*again.loss_terms()] == ["pde", "before"]
    assert Sided(c=4.0).as_source().c == 4.0
    for wrong, sentence in (
        (lambda: Sided(role="middle"), "role is 'middle', but it must be source or target"),
        (lambda: Sided(weights={"before": 1.0}), "loss term in problem.weights of Sided: 'before'"),
        (lambda: heat(gauge=Term(TUBE, lambda f: f.u, only="both")), "only of term gauge is 'both'"),
        (lambda: heat(gauge=Term(TUBE, lambda f: f.u, measured=True)), "gauge is measured, so its region must be"),
        (
            lambda: po.problem(coords="x", region=Sided.region, a=Term(Sided.region, level, only="source")),
            "Equation has no term left for its target",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            wrong()


def test_pretraining_has_the_terms_of_the_source():
    """Whichever problem it is given: u = x and not x + 5, with the parameters as they are."""
    net = po.pretrain(Sided(c=1.0), MLP(1, 1, width=6, depth=2), settings=QUICK)
    assert float(net(torch.zeros(1, 1).double()).detach()) == pytest.approx(0.0, abs=1e-2)


# Measurements as terms.


def slopes(noise=0.0, number=20, seed=0):
    """Slopes of u = e^{-c x} / c: the equation is u_x = -c u, and the measured slope is -e^{-c x}, c = 2."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(0.05, 0.95, number, dtype=torch.float64)[:, None]
    errors = noise * torch.randn(number, 1, generator=generator, dtype=torch.float64)
    return Points(x=x, slope=-torch.exp(-2 * x) + errors)


def decay(points, **more):
    return po.problem(
        coords="x",
        region=Box(x=(0, 1)),
        c=po.parameter(1.0, 1.0, above=0),
        pde=lambda f, c: f.u_x + c * f.u,
        slopes=Term(Cloud(points), lambda f: f.u_x - f.slope, measured=True),
        reference=lambda p, c: torch.exp(-c * p.x) / c,
        **more,
    )


@pytest.fixture(scope="module")
def decayed():
    exact_slopes = Term(Box(x=(0, 1)).face(x=0.0), lambda f: f.u - 1)
    start = po.problem(coords="x", region=Box(x=(0, 1)), pde=lambda f: f.u_x + f.u, ic=exact_slopes)
    return po.pretrain(start, MLP(1, 1, width=10, depth=3), settings=QUICK)


def test_measured_slopes_find_a_coefficient_with_its_interval(decayed):
    """No file of data, and no measured value of u: the operator measurements are the data."""
    posed = decay(slopes(noise=1e-3))
    result = po.adapt(decayed, posed, unknown="c", rank=3, points=FEW, budget=po.Budget(steps=15))
    interval = result.adaptation.intervals["c"]
    assert interval.low < 2.0 < interval.high
    assert 1e-4 < interval.std < 3e-2
    assert interval.estimate == pytest.approx(2.0, abs=4 * interval.std)


def test_two_terms_of_measurements_have_each_their_own_noise(generator):
    """Of a linear fit of 3 numbers to 40 exact and 30 rough values, against the scatter of 4000 such fits."""
    J = torch.randn(70, 3, generator=generator, dtype=torch.float64)
    J[40:] *= 0.05
    size = torch.cat([torch.full((40, 1), 0.1), torch.full((30, 1), 2.0)]).double()
    noise = size * torch.randn(70, 4000, generator=generator, dtype=torch.float64)
    fits = torch.linalg.lstsq(J, noise).solution
    left = noise - J @ fits
    terms = [slice(0, 40), slice(40, 70)]
    found = [(confidence.response(J, left[:, 0], rows), rows) for rows in terms]
    both = [confidence._noise(J, left[:, k], found) for k in range(400)]
    variance = torch.stack([v for v, _ in both]).mean(dim=0)
    assert torch.allclose(variance, fits.var(dim=1), rtol=0.1)
    # More degrees of freedom than the smaller term has, fewer than both together.
    assert all(bool(((f > 27) & (f < 67)).all()) for _, f in both)
    alone, freedom = confidence._noise(J, left[:, 0], found[:1])
    assert freedom.tolist() == [40 - found[0][0].used] * 3
    assert torch.allclose(alone, float(left[:40, 0].square().sum()) / freedom * found[0][0].deviation ** 2)


def test_without_any_noise_the_degrees_of_freedom_are_those_of_the_smallest_term(generator):
    """Exact data of several terms, fitted exactly: intervals of no width, and not NaN."""
    J = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    r = torch.zeros(30, dtype=torch.float64)
    found = [(confidence.response(J, r, rows), rows) for rows in (slice(0, 20), slice(20, 30))]
    variance, freedom = confidence._noise(J, r, found)
    assert variance.tolist() == [0, 0]
    assert freedom.tolist() == [10 - found[1][0].used] * 2
    assert confidence._interval(3.0, None, 0.0, confidence.student(0.95, float(freedom[0])), 0.0)[:3] == (3.0, 3.0, 3.0)


def test_measured_terms_are_judged_like_data(generator):
    """Slopes that the network misses smoothly, or by noise; with two components, each by itself."""
    weighted = lambda f: (f.u_x - f.slope, 3 * (f.u_x - f.slope))

    def judged(points, residual, net=lambda x: torch.exp(-2 * x) / 2):
        posed = decay(points)
        system = System(posed, lambda p: net(p.x))
        system.terms["slopes"] = Term(Cloud(points), residual, measured=True)
        return misfits_of_term(system, "slopes", points)

    single = lambda f: f.u_x - f.slope
    assert judged(slopes(noise=0.05), single)["slopes"].fitted
    (missed,) = judged(slopes(noise=0.01), single, lambda x: 0.3 * torch.exp(-2 * x)).values()
    assert not missed.fitted
    assert missed.correlation > 0.5
    values = slopes(noise=0.01).slope
    assert missed.spread == pytest.approx(float((values - values.mean()).square().mean().sqrt()), rel=1e-12)
    both = judged(slopes(noise=0.05), weighted)
    assert both.keys() == {"slopes_1", "slopes_2"}
    assert both["slopes_2"].rms == pytest.approx(3 * both["slopes_1"].rms)
    assert both["slopes_2"].correlation == pytest.approx(both["slopes_1"].correlation)


def test_no_interval_where_a_measured_term_is_not_fitted(decayed):
    few = {"rank": 3, "points": FEW, "budget": po.Budget(steps=15)}
    bent = slopes()
    bent["slope"] += 0.3 * torch.sin(9 * bent.x)  # of no solution of the equation
    result = po.adapt(decayed, decay(bent), unknown="c", **few)
    assert result.coefficients["c"]["low"] is None
    assert not result.summary["misfits"]["slopes"]["fitted"]
    assert "no interval, since the data are not fitted: rms misfit" in repr(result)
    assert " of slopes, whose values have a spread of " in repr(result)


def test_an_unknown_without_measurements_is_still_refused():
    posed = heat()
    with pytest.raises(InputError, match=r"k is unknown, but there are no measurements .* measured=True"):
        po.steps(MLP(2, 1, width=8, depth=2), posed, unknown="k")


@dataclass(frozen=True, kw_only=True)
class Slopes(Problem):
    """u_x = -c u, with measured slopes."""

    coords = ("x",)
    region = Box(x=(0, 1))
    supports = ("soft",)

    c: float = parameter(1.0, 1.0, above=0)

    def terms(self):
        return {
            "pde": Term(self.region, lambda f: f.u_x + self.c * f.u),
            "slopes": Term(Cloud(slopes()), lambda f: f.u_x - f.slope, measured=True),
        }


def test_the_command_line_takes_measured_terms_for_data(compose):
    with pytest.raises(InputError, match=r"data\.file is None, but it must be a file of measurements"):
        compose("problem=burgers", "problem.nu=unknown")
    wanted = compose(f"problem._target_={__name__}.Slopes", "problem.c=unknown")
    assert wanted.problem.c == "unknown"


# Conditions that hold by an ansatz of the network.


def hard(p, N):
    """u = sin(πx/2) + t (x (1 - x) N(x, t) + x N(1, t)): u(0, t) = 0, u_x(1, t) = 0 and u(x, 0) = sin(πx/2)."""
    end = N(Points(x=torch.ones_like(p.x), t=p.t))
    return torch.sin(math.pi / 2 * p.x) + p.t * (p.x * (1 - p.x) * N(p) + p.x * end)


def rod(ansatz=hard, **more):
    return po.problem(
        coords="xt",
        region=Box(x=(0, 1), t=(0, 1)),
        k=po.parameter(0.1, 0.4, above=0),
        pde=lambda f, k: f.op("u", {"t": 1, "xx": -k}),
        ic=conditions.dirichlet(Box(x=(0, 1), t=(0, 1)).face(t=0.0), lambda f: torch.sin(math.pi / 2 * f.x)),
        left=conditions.dirichlet(Box(x=(0, 1), t=(0, 1)).face(x=0.0)),
        right=conditions.neumann(Box(x=(0, 1), t=(0, 1)).face(x=1.0)),
        reference=lambda p, k: torch.exp(-k * math.pi**2 / 4 * p.t) * torch.sin(math.pi / 2 * p.x),
        ansatz=ansatz,
        enforced=("ic", "left", "right"),
        **more,
    )


def test_an_ansatz_of_the_network_keeps_its_conditions_to_rounding(generator):
    posed = rod()
    assert posed.reads_network
    assert not heat().reads_network
    solution = Solution(posed, MLP(2, 1, width=12, depth=3, generator=generator))
    for name in posed.enforced:
        term = posed.terms()[name]
        p = term.where.sample(32, lambda n, d: sobol(n, d, seed=3))
        assert float(term.rows(AutogradField(solution, p, ("u",), "xt")).detach().abs().max()) < 1e-14
    p = posed.region.sample(32, lambda n, d: sobol(n, d, seed=3))
    assert torch.allclose(solution(p), hard(p, lambda q: solution.net(q.rows("xt"))))


@pytest.mark.parametrize("unknown", [(), ("k",)])
def test_an_ansatz_of_the_network_is_differentiated_by_jets(unknown, generator):
    """N(1, t), and N at a place of plain tensors, which are no jets, are on the tape like N(x, t)."""

    def pinned(p, N):
        origin = Points(x=torch.full((p.number, 1), 0.2).double(), t=torch.full((p.number, 1), 0.4).double())
        return hard(p, N) + p.x * (1 - p.x) ** 2 * p.t * N(origin) ** 2

    posed = dataclasses.replace(rod(pinned), k=0.3)
    net = MLP(2, 1, width=8, depth=3, generator=generator)
    solution = Solution(posed, net, unknown)
    found = []
    for engine in ("jets", "autograd"):
        system = System(solution.problem, solution, derivatives=engine)
        points = draw_points(system.terms, 20, 5, seed=1)
        sweep = Sweep(system, {"net.linears.1": net.linears[1]}, {"bias": net.linears[0].bias})
        assert sweep.paired("pde")
        found.append([Linearisation(sweep, points) for _ in range(2)])
        assert torch.equal(found[-1][0].r, found[-1][1].r)
    jets, reverse = found[0][0], found[1][0]
    assert torch.allclose(jets.r, reverse.r, rtol=0, atol=1e-12)
    assert torch.allclose(jets.kernel(), reverse.kernel(), rtol=0, atol=1e-10)
    # Values that were kept with the points would be those of the former network.
    with torch.no_grad():
        net.linears[2].weight.mul_(1.5)
    assert not torch.allclose(Linearisation(Sweep(System(solution.problem, solution), {}), points).r, jets.r)


@pytest.mark.parametrize(
    "constant",
    [
        lambda p: torch.tensor([[1.0, 2.0]]).to(p.x),
        lambda p: torch.tensor([[1.0, 2.0]]).type_as(p.x),
        lambda p: p.x.new_tensor([[1.0, 2.0]]),
        lambda p: torch.tensor([[1.0, 2.0]]).to(p.x).expand(p.number, 2),
        lambda p: torch.tensor([[1.0, 2.0]], dtype=torch.float64).expand_as(p.x * p.x.new_ones(1, 2)),
    ],
    ids=["to", "type_as", "new_tensor", "expand", "expand_as"],
)
@pytest.mark.parametrize("reads", [True, False], ids=["u(p, N)", "g + m N"])
def test_a_constant_for_each_field_in_an_ansatz_stays_with_jets(constant, reads, generator):
    """u(0) = 1 and v(0) = 2; g has a row for each point, an ansatz of the network need not."""
    posed = po.problem(
        coords="x",
        fields=("u", "v"),
        region=Box(x=(0, 1)),
        pde=lambda f: (f.u_x - f.v, f.v_xx + f.u),
        start=(Box(x=(0, 1)).face(x=0.0), lambda f: (f.u - 1, f.v - 2)),
        ansatz=(lambda p, N: constant(p) + p.x * N(p)) if reads else (lambda p: (constant(p) + 0 * p.x, p.x)),
        enforced="start",
    )
    solution = Solution(posed, MLP(1, 2, width=8, depth=2, generator=generator))
    jets, reverse = (System(posed, solution, derivatives=engine) for engine in ("jets", "autograd"))
    points = draw_points(posed.loss_terms(), 20, 5, seed=1)
    assert torch.allclose(jets.residual_vector(points), reverse.residual_vector(points), rtol=0, atol=1e-12)
    assert isinstance(lifted(constant, seeded(points["pde"], "x", Channels(("x", "xx")))), torch.Tensor)


def test_an_ansatz_without_jet_rules_is_differentiated_by_reverse_mode(generator):
    bent = lambda p, N: hard(p, N) + p.t * p.x * (1 - p.x) ** 2 * torch.special.bessel_j0(p.x)
    system = System(rod(bent), Solution(rod(bent), MLP(2, 1, width=8, depth=2, generator=generator)))
    assert system.engine("pde").plan is None
    assert system.residuals(draw_points(system.terms, 8, 8, seed=0))["pde"].shape == (8, 1)


def test_a_hard_neumann_condition_is_as_accurate_as_values():
    """The rod, and the same one continued by symmetry to [0, 2] with values at both ends."""
    mirrored = po.problem(
        coords="xt",
        region=Box(x=(0, 2), t=(0, 1)),
        k=po.parameter(0.1, 0.4, above=0),
        pde=lambda f, k: f.op("u", {"t": 1, "xx": -k}),
        bc=(Box(x=(0, 2), t=(0, 1)).boundary("x"), lambda f: f.u),
        reference=lambda p, k: torch.exp(-k * math.pi**2 / 4 * p.t) * torch.sin(math.pi / 2 * p.x),
        ansatz=lambda p: (torch.sin(math.pi / 2 * p.x), p.t * p.x * (2 - p.x)),
        enforced="bc",
    )
    errors = []
    for posed in (rod(), mirrored):
        net = po.pretrain(posed.at_source(), MLP(2, 1, width=10, depth=3), settings=QUICK)
        result = po.adapt(net, posed, rank=3, points=FEW, budget=po.Budget(steps=15))
        errors.append(result.rel_l2)
    assert errors[0] < 3 * errors[1] + 1e-5
    assert errors[0] < 5e-4


@pytest.mark.parametrize(
    ("ansatz", "sentence"),
    [
        (lambda p, N: (p.x, N(p)), "ansatz gives a tuple, but with the network N it must give u, of shape"),
        (lambda p, N: hard(p, N)[:, 0], r"ansatz gives a tensor of shape \(8,\), but with the network N"),
        (lambda p, N: hard(p, N) + p.t * p.x**2, "right is enforced, but the ansatz does not satisfy it"),
        (lambda p, N: N(p) + N(Points(x=p.x)), "ansatz cannot be evaluated: these points have no column 't'"),
        (lambda p, net: net(p), "argument of ansatz: 'net'"),
    ],
)
def test_an_ansatz_of_the_network_is_checked(ansatz, sentence):
    with pytest.raises(InputError, match=sentence):
        rod(ansatz)


def test_an_ansatz_of_the_network_takes_parameters_and_classes_have_it_too(generator):
    scaled = rod(lambda p, N, k: hard(p, lambda q: k * N(q)))
    net = MLP(2, 1, width=8, depth=2, generator=generator)
    p = scaled.region.sample(8, lambda n, d: sobol(n, d, seed=3))
    assert torch.allclose(Solution(scaled, net)(p), hard(p, lambda q: 0.4 * net(q.rows("xt"))))

    @dataclass(frozen=True, kw_only=True)
    class Mean(Problem):
        """u_xx = 1 with mean value zero by three Gauss nodes."""

        coords = ("x",)
        region = Box(x=(0, 1))

        def terms(self):
            return {"pde": Term(self.region, lambda f: f.u_xx - 1)}

        def ansatz(self, p, N):
            nodes = [(0.5 - math.sqrt(0.15), 5 / 18), (0.5, 8 / 18), (0.5 + math.sqrt(0.15), 5 / 18)]
            return N(p) - sum(w * N(Points(x=torch.full_like(p.x, x))) for x, w in nodes)

    net = MLP(1, 1, width=8, depth=2, generator=generator)
    solution = Solution(Mean(), net)
    left = residual(conditions.integral(Mean.region, "x", 0.0, nodes=3), solution, ("u",), ("x",))
    assert float(left.abs().max()) < 1e-14
    assert System(Mean(), solution).engine("pde").plan is not None
    assert solution(Points(x=torch.rand(5, 1).double())).shape == (5, 1)


def test_a_family_of_such_problems_has_no_combinations(generator):
    parametric = Parametric(MLP(2, 1, width=8, depth=3, generator=generator), rod(), ("k",))
    points = draw_points(parametric.system.terms, 10, 10, seed=0)
    combinations = Combinations(parametric, points, Unseen(points, points))
    assert combinations.reason == "its ansatz takes the network, in which it need not be linear"
    combinations.take([Station({"k": 0.1}, parametric.start, *[0.0] * (len(fields(Station)) - 2))])
    assert len(combinations.stations) == 1


@pytest.mark.slow
def test_a_family_of_such_problems_answers_by_adapters():
    net = po.pretrain(rod().at_source(), MLP(2, 1, width=8, depth=3), settings=po.Pretraining(adam_steps=20))
    family = po.family(net, rod(), k=(0.1, 0.15), tolerance=1e-2)
    assert family(k=0.12).form == "adapter"
    with pytest.raises(InputError, match="has no combinations, since its ansatz takes the network"):
        family(k=0.12, form="combination")
