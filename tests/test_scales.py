"""Units: found from the problem or declared, kept with the network, and of no effect on problems of order one."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import pinn_odelora as po
from pinn_odelora import diagnostics
from pinn_odelora.checkpoints import load_network, read_state_dict, save_network, units_of
from pinn_odelora.checks.constants import free_constants
from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.derivatives.jets import JetField
from pinn_odelora.diagnostics import errors
from pinn_odelora.error_estimate import error_estimate
from pinn_odelora.errors import ChangedWarning, InputError
from pinn_odelora.families.basis import Basis
from pinn_odelora.families.estimate import Linearised, Unseen, relative
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.stations import Station
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.lowrank.targets import linear_targets
from pinn_odelora.manifolds.variables import variable
from pinn_odelora.measurements import measured_term
from pinn_odelora.metrics import relative_l2, relative_l2_by_field
from pinn_odelora.misfit import misfits
from pinn_odelora.nets import MLP, Scaled, check_network, in_declared_units, in_units, in_units_of
from pinn_odelora.nets.scaled import kept_units
from pinn_odelora.ntk.adapting import adapt_linearised
from pinn_odelora.points import Points
from pinn_odelora.pretraining.pretrain import Pretraining, unseen_error
from pinn_odelora.registry import problem_classes
from pinn_odelora.result import _estimate
from pinn_odelora.runs.save import described
from pinn_odelora.scaling.fields import _range, _unit
from pinn_odelora.scaling.find import find
from pinn_odelora.scaling.trial import Trial, points_of, prescribed, waves
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.units import NATURAL, Scales, Unit

# Problems in the units of their field.


def nozzle(v=1.0, **more):
    """Incompressible flow through a nozzle: u ~ 1 beside P ~ 10⁵, which varies by 1."""
    box = po.Box(x=(0, 1))
    area = lambda x: 1 - 0.4 * torch.sin(math.pi * x) ** 2
    slope = lambda x: -0.4 * math.pi * torch.sin(2 * math.pi * x)
    return po.problem(
        coords="x",
        fields=("u", "P"),
        region=box,
        v=po.parameter(v, 1.5, above=0),
        mass=lambda f: area(f.x) * f.u_x + slope(f.x) * f.u,
        momentum=lambda f: f.u * f.u_x + f.P_x,
        inlet=(box.face(x=0.0), lambda f, v: (f.u - v, f.P - 1e5)),
        reference=lambda p, v: torch.cat([v / area(p.x), 1e5 + v**2 / 2 * (1 - area(p.x) ** -2)], 1),
        name="Nozzle",
        **more,
    )


LENGTHS, CONDUCTIVITIES = (0.010, 0.005), (400.0, 1.38)
"""Of a layer of copper and one of glass, m and W/(m K)."""


def layers():
    """Steady conduction through two layers between 400 K and 300 K; one field for each, continuous with its flux."""
    (a, b), (k, c) = LENGTHS, CONDUCTIVITIES
    copper, glass = po.Box(x=(0, a)), po.Box(x=(a, a + b))
    wall = copper.face(x=a)

    def reference(p, c):
        q = 100 / (a / k + b / c)
        return torch.cat([400 - q * p.x / k, 300 + q * (a + b - p.x) / c], 1)

    return po.problem(
        coords="x",
        fields=("T", "S"),
        region=po.Box(x=(0, a + b)),
        c=po.parameter(c, 1.2 * c, above=0),
        copper=(copper, lambda f: k * f.T_xx),
        glass=(glass, lambda f, c: c * f.S_xx),
        hot=(copper.face(x=0.0), lambda f: f.T - 400),
        cold=(glass.face(x=a + b), lambda f: f.S - 300),
        temperature=(wall, lambda f: f.T - f.S),
        flux=(wall, lambda f, c: k * f.T_x - c * f.S_x),
        reference=reference,
        name="Layers",
    )


RATE = 24 * math.exp(-111e3 / (8.314 * 365))
"""exp(-E/RT) · 24: of a rate in 1/h, in 1/d, at 365 K."""
A = 7.8e8


def emsley(guess=1e8):
    """The degree of polymerisation D of paper (Emsley and Stevens, 1994): D' = -A exp(-E/RT) D², t in days."""
    box = po.Box(t=(0, 2000))
    return po.problem(
        coords="t",
        fields="D",
        region=box,
        A=po.parameter(guess, guess, above=0),
        pde=lambda f, A: f.D_t + A * RATE * f.D**2,
        ic=(box.face(t=0.0), lambda f: f.D - 1000),
        reference=lambda p, A: 1000 / (1 + A * RATE * 1000 * p.t),
        name="Emsley",
    )


def paper(noise=0.0):
    t = np.linspace(0, 2000, 40)
    return {"t": t, "D": 1000 / (1 + A * RATE * 1000 * t) + noise * np.random.default_rng(0).normal(size=40)}


# What is found.


@pytest.mark.parametrize("name", sorted(problem_classes()))
def test_the_problems_of_the_repository_stay_in_their_units(name):
    """So their networks are not wrapped, and their runs are the same bit for bit."""
    cls = problem_classes()[name]
    for conditions in cls.supports:
        source = cls(conditions=conditions).at_source()
        assert in_units(net := torch.nn.Linear(1, 1), source) is net


def test_coordinates_fields_and_residuals_are_found_from_the_problem():
    flow, wall, ageing = find(nozzle().at_source()), find(layers().at_source()), find(emsley())
    assert flow.inputs == {"x": NATURAL}
    # The conditions prescribe 10⁵ for P, the momentum balance lets it vary by the square of u.
    assert flow.fields["u"] == NATURAL
    assert flow.fields["P"].shift == 1e5
    assert 0.1 < flow.fields["P"].size < 10
    assert not flow.rows
    assert wall.inputs["x"] == pytest.approx((0.0075, 0.0075), rel=1e-3)
    assert [unit.shift for unit in wall.fields.values()] == [400, 300]
    assert all(50 < unit.size < 200 for unit in wall.fields.values())
    # Second derivatives of size 100 over (7.5 mm)², times the conductivity.
    for name, k in zip(("copper", "glass"), CONDUCTIVITIES, strict=True):
        assert wall.rows[name][0] == pytest.approx(k * 100 / 0.0075**2, rel=4)
        assert wall.rows[name][0] > k * 100 / 0.0075**2 / 4
    assert ageing.inputs["t"] == pytest.approx((1000, 1000), rel=1e-3)
    assert ageing.fields["D"].shift == 1000
    assert 50 < ageing.fields["D"].size < 400
    assert str(flow).startswith("Scales: P 1e+05 ± 1")
    assert "found from the conditions" in str(flow)


def plate(side, nu=0.3, E=210e9, p=100e6, **more):
    """A quarter of a steel plate under traction, by its displacements in metres: of the order of p side / E."""
    box = po.Box(x=(0, side), y=(0, side))
    c, g = E / (1 - nu**2), E / (2 * (1 + nu))
    tau = lambda f: g * (f.u_y + f.v_x)
    traction = lambda f: p * torch.cos(math.pi / 2 * f.y / side)
    return po.problem(
        coords="xy",
        fields=("u", "v"),
        region=box,
        pde=lambda f: (
            c * (f.u_xx + nu * f.v_xy) + g * (f.u_yy + f.v_xy),
            c * (f.v_yy + nu * f.u_xy) + g * (f.v_xx + f.u_xy),
        ),
        left=(box.face(x=0.0), lambda f: (f.u, tau(f))),
        bottom=(box.face(y=0.0), lambda f: (f.v, tau(f))),
        top=(box.face(y=side), lambda f: (c * (f.v_y + nu * f.u_x), tau(f))),
        right=(box.face(x=side), lambda f: (c * (f.u_x + nu * f.v_y) - traction(f), tau(f))),
        **more,
    )


@pytest.mark.parametrize("side", [0.02, 0.1, 0.15, 0.5, 2.0])
def test_a_traction_tells_the_size_of_displacements_whatever_the_size_of_the_plate(side):
    """Also where coordinates are of order one and stay as they are."""
    found = find(plate(side))
    for unit in found.fields.values():
        assert 0.1 < unit.size / (100e6 * side / 210e9) < 3
    assert (found.inputs["x"] == NATURAL) == (side >= 0.2)


def test_a_displacement_beside_a_traction_is_no_free_constant():
    assert free_constants(plate(0.1)) == ()


def test_measured_values_tell_the_size_of_a_field():
    found = find(emsley(), measured_term(paper(), emsley()))
    assert found.fields["D"] == Unit(0.0, 1000.0)
    assert found.origins[:2] == ("region", "data")


@pytest.mark.parametrize(
    ("values", "balanced", "expected"),
    [
        ([0.0, 0.0], None, None),
        ([-2e5, 1e5], 3.0, Unit(0.0, 2e5)),
        ([300.0, 400.0], None, Unit(350.0, 50.0)),
        ([300.0, 400.0], 80.0, Unit(350.0, 80.0)),
        ([300.0, 400.0], 4e4, Unit(0.0, 400.0)),
        ([1e5, 1e5], 2.0, Unit(1e5, 2.0)),
        ([1e5, 1e5], None, Unit(0.0, 1e5)),
        ([1.0, 1.0], 1e-3, Unit(0.0, 1.0)),
    ],
)
def test_a_value_far_from_zero_is_taken_off_if_the_variation_about_it_is_known(values, balanced, expected):
    values = _range([torch.tensor(values, dtype=torch.float64)])
    assert (values and _unit(values, balanced)[0]) == expected


def test_only_what_prescribes_a_value_counts_as_a_condition():
    """Neither a flux, nor a periodic condition, nor an equation, whatever their numbers."""
    box = po.Box(x=(0, 1))
    p = po.problem(
        coords="x",
        fields=("u", "v"),
        region=box,
        pde=lambda f: (f.u_xx - 1e-3 * f.v, 3 * f.v - 2 * f.u - 1e6),
        flux=(box.face(x=1.0), lambda f: f.u_x - 5e5),
        loop=(box.face(x=0.0), lambda f: f.v - f.at(x=f.x + 1).v),
        value=(box.face(x=0.0), lambda f: 2 * f.u - (4e4 + 0 * f.x)),
    )
    found = prescribed(p, Trial(p, [NATURAL]))
    assert [x.unique().tolist() for x in found["u"]] == [[2e4]]
    assert found["v"] == []


def test_the_size_of_a_hard_output_is_that_of_u_less_g_over_m():
    box = po.Box(t=(0, 2000))
    given = {"coords": "t", "region": box, "ic": (box.face(t=0.0), lambda f: f.u - 1e4), "enforced": "ic"}
    p = po.problem(
        **given,
        pde=lambda f: f.u_t + 1e-3 * f.u,
        ansatz=lambda p: (1e4 + 0 * p.t, p.t),
        reference=lambda p: 1e4 * torch.exp(-1e-3 * p.t),
    )
    found = find(p)
    # N = (u - g)/t is -10 at the start and -4.3 at the end.
    assert found.outputs["u"].shift == 0
    assert 1 <= found.outputs["u"].size < 20
    assert found.fields["u"].size > 1e3
    solution = Solution(p, in_units(MLP(1, 1), p))
    start = Points({"t": torch.zeros(1, 1, dtype=torch.float64)})
    assert float(solution(start).detach()) == 1e4


def test_a_periodic_coordinate_has_no_size():
    box = po.Box(x=(0, 500), t=(0, 300))
    p = po.problem(
        coords="xt",
        region=box,
        periods={"x": 500},
        pde=lambda f: f.u_t + f.u_x,
        ic=(box.face(t=0.0), lambda f: f.u - torch.sin(f.x)),
    )
    assert find(p).inputs == {"input_1": NATURAL, "input_2": NATURAL, "t": Unit(150.0, 150.0)}
    p = dataclasses.replace(p)
    type(p).scales = {"x": 500.0}
    with pytest.raises(InputError, match=r"^scales has x, but the network does not see that coordinate itself"):
        find(p)


def test_what_is_declared_is_taken_as_it_is():
    declared = find(nozzle(scales={"x": 0.5, "P": (9e4, 1e4), "momentum": 7.0}))
    assert declared.inputs["x"] == Unit(0.0, 0.5)
    assert declared.outputs["P"] == Unit(9e4, 1e4)
    assert declared.rows["momentum"] == (7.0,)
    by_fields = po.problem(
        coords={"t": 2000.0}, fields={"u": 1.0, "P": 1e5}, region=po.Box(t=(0, 2000)), pde=lambda f: f.P_t - f.u
    )
    assert by_fields.fields == ("u", "P")
    assert by_fields.coords == ("t",)
    assert by_fields.units() == {"t": Unit(0, 2000.0), "u": Unit(0, 1.0), "P": Unit(0, 1e5)}
    assert in_units(net := MLP(1, 2), nozzle(scales={})) is net


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rise(Problem):
    coords = ("t",)
    fields = {"P": 1e5}  # noqa: RUF012
    supports = ("soft",)
    region = po.Box(t=(0, 1))
    k: float = parameter(1.0, 2.0)

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.P_t - self.k * 1e5)}


def test_a_class_names_its_fields_with_their_sizes():
    assert Rise.fields == ("P",)
    assert Rise().units() == {"P": Unit(0.0, 1e5)}
    assert find(Rise()).outputs["P"] == Unit(0.0, 1e5)


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"Q": 1.0}, "Unknown name in scales of Nozzle: 'Q'"),
        ({"P": 0.0}, "scales of P is 0.0, but"),
        ({"P": "big"}, "scales of P is 'big', but|scales of P is big, but"),
    ],
)
def test_scales_that_make_no_sense_are_refused(scales, said):
    with pytest.raises(InputError, match=said):
        nozzle(scales=scales)


# The network.

SCALES = Scales(
    {"x": Unit(3.0, 20.0), "t": Unit(0.0, 0.05)},
    {"u": Unit(300.0, 50.0)},
    {"u": Unit(300.0, 50.0)},
    {"pde": (4.0,)},
)


def scaled(generator):
    return Scaled(MLP(2, 1, width=6, depth=3, generator=generator), SCALES)


def test_a_scaled_network_is_the_one_inside_in_other_units(generator):
    net = scaled(generator)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    inner = torch.stack([(x[:, 0] - 3) / 20, x[:, 1] / 0.05], dim=1)
    assert torch.allclose(net(x), 300 + 50 * net.net(inner), rtol=1e-15)
    assert net.scales.inputs == dict(SCALES.inputs)
    assert net.scales.rows == SCALES.rows
    assert [*linear_targets(net)] == ["net.linears.1", "net.linears.2"]
    assert linear_targets(net, "linears.1").keys() == linear_targets(net, "net.linears.1").keys() == {"net.linears.1"}


def test_its_jets_are_its_derivatives(generator):
    net = scaled(generator)
    region = po.Box(x=(-15, 20), t=(0, 0.1))
    p = po.problem(coords="xt", region=region, pde=lambda f: f.u_t - f.op("u", {"xx": 2.0}) + f.u * f.u_x, scales={})
    system = System(p, Solution(p, net), derivatives="jets")
    points = draw_points(system.terms, 7, 1, seed=0)["pde"]
    engine = system.engine("pde")
    jets, reverse = engine.field(points), AutogradField(system.solution, points, "u", "xt")
    assert isinstance(jets, JetField)
    for along in ("", "t", "x"):
        a, b = jets.derivative("u", along), reverse.derivative("u", along)
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * float(b.detach().abs().max()))
    # The residual is that of the equation in the units of the term.
    plain = System(p, lambda q: system.solution(q)).residuals({"pde": points})["pde"]
    assert torch.allclose(4 * engine.residual(points), plain, rtol=1e-9, atol=1e-9 * float(plain.detach().abs().max()))


def test_units_are_saved_with_the_weights_and_read_again(generator, tmp_path):
    net = scaled(generator)
    save_network(net, tmp_path / "w.safetensors")
    p = po.problem(coords="xt", region=po.Box(x=(0, 1), t=(0, 1)), pde=lambda f: f.u_t - f.u_x)
    again = in_units_of(MLP(2, 1, width=6, depth=3), p, read_state_dict(tmp_path / "w.safetensors"))
    load_network(again, tmp_path / "w.safetensors")
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(again(x), net(x))
    assert again.scales.rows == SCALES.rows


def test_weights_from_elsewhere_have_the_declared_units_or_none(generator, tmp_path):
    """A network that was trained for t/2000 sees t/2000, without a shift, even if the file knows nothing of it."""
    foreign = MLP(1, 1, width=6, depth=2, generator=generator)
    torch.save(foreign.state_dict(), tmp_path / "w.pt")
    given = {"coords": "t", "region": po.Box(t=(0, 2000)), "pde": lambda f: f.u_t}
    plain, declared = po.problem(**given), po.problem(**given, scales={"t": 2000.0, "u": 1e5})
    t = torch.tensor([[500.0]], dtype=torch.float64)
    for p, expected in ((plain, foreign(t)), (declared, 1e5 * foreign(t / 2000))):
        net = in_units_of(MLP(1, 1, width=6, depth=2), p, read_state_dict(tmp_path / "w.pt"))
        load_network(net, tmp_path / "w.pt")
        assert torch.allclose(net(t), expected, rtol=1e-14)
        assert torch.allclose(check_network(foreign, p)(t), expected, rtol=1e-14)
    assert in_declared_units(foreign, plain) is foreign


def test_a_residual_that_the_network_was_not_scaled_for_is_refused(generator):
    net = Scaled(
        MLP(1, 1, generator=generator), Scales({"t": NATURAL}, {"u": NATURAL}, {"u": NATURAL}, {"pde": (3.0, 4.0)})
    )
    p = po.problem(coords="t", region=po.Box(t=(0, 1)), pde=lambda f: f.u_t)
    with pytest.raises(InputError, match=r"^The residual of pde has 1 components, but the network was scaled for 2"):
        System(p, Solution(p, net)).components("pde")


class Constant(torch.nn.Module):
    """The same values everywhere."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x):
        return self.values.expand(len(x), -1)


def test_errors_are_of_fields_in_their_units():
    """P = 10⁵ is right to 1e-5, and u = 0 is not right at all: neither hides in the other."""
    p = nozzle(scales={"u": 2.0, "P": (1e5, 4.0)})
    found = errors(p, Solution(p, in_declared_units(Constant(0.0, 0.0), p)), 64)  # u = 0, P = 10⁵
    x = diagnostics.test_points(p, 64)
    u, P = p.reference(x).unbind(dim=1)
    size = (((P - 1e5) / 4).square().sum() + (u / 2).square().sum()).sqrt()
    assert found["error/rel_l2"] == pytest.approx(1.0, rel=1e-12)
    assert found["error/rel_l2/u"] == found["error/rel_l2/P"] == pytest.approx(1.0, rel=1e-12)
    half = errors(p, Solution(p, in_declared_units(Constant(0.0, 0.25), p)), 64)  # P = 10⁵ + 1
    expected = (((P - 1e5 - 1) / 4).square().sum() + (u / 2).square().sum()).sqrt() / size
    assert half["error/rel_l2"] == pytest.approx(float(expected), rel=1e-9)
    assert half["error/rel_l2/P"] == pytest.approx(float((P - 1e5 - 1).norm() / (P - 1e5).norm()), rel=1e-9)
    assert half["error/max"] == pytest.approx(float((P - 1e5 - 1).abs().max()))


def test_errors_without_units_are_those_of_the_values_bit_for_bit(generator):
    p = nozzle(scales={})
    solution = Solution(p, MLP(1, 2, width=5, depth=2, generator=generator))
    x = diagnostics.test_points(p, 64)
    with torch.no_grad():
        expected = relative_l2(solution(x), p.reference(x))
    assert errors(p, solution, 64)["error/rel_l2"] == expected
    assert unseen_error(System(p, solution), 0)() == pytest.approx(expected, rel=1e-2)


def test_pretraining_and_runs_measure_the_same_error():
    p = nozzle().at_source()
    solution = Solution(p, in_units(MLP(1, 2), p))
    found = unseen_error(System(p, solution), 0)()
    assert found > 0.3
    assert errors(p, solution, 2048)["error/rel_l2"] == pytest.approx(found, rel=1e-2)


# Runs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cooling(Problem):
    """T' = -k (T - 290) over an hour, t in seconds, T in kelvin."""

    coords = ("t",)
    fields = ("T",)
    region = po.Box(t=(0, 3600))
    supports = ("soft",)
    k: float = parameter(1e-3, 1.2e-3, above=0)

    def terms(self):
        return {
            "ode": Term(self.region, lambda f: f.T_t + self.k * (f.T - 290)),
            "start": Term(self.region.face(t=0.0), lambda f: f.T - 370),
        }

    def reference(self, p):
        return 290 + 80 * torch.exp(-self.k * p.t)


def test_a_run_keeps_the_units_and_is_loaded_and_continued_with_them(compose, run, tmp_path, capsys, monkeypatch):
    """A run whose files know no units, as one of before has none, stays without."""
    given = ["problem._target_=test_scales.Cooling", "lora.targets=linears.2", "checkpoint.every=1"]
    whole = run(compose(*given, "budget.steps=4", f"output_dir={tmp_path / 'whole'}"))
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Scales: "))
    assert said.startswith("Scales: t 1.8e+03 ± 1.8e+03, T 370")
    whole.run.conclude(whole.result, whole.facts)
    assert whole.result.summary["scales"]["units"]["t"] == [1800.0, 1800.0]
    assert whole.result.ranks.keys() == whole.result.summary["ranks"].keys() == {"linears.2"}
    assert whole.result.history[-1]["lora/linears.2/rank"] == 4
    said = "Adapted: linears.2 (12 x 12) at rank 4; trained whole: linears.0 (input), linears.4 (output)"
    assert whole.result.summary["layers"].startswith(said)
    u = po.load(tmp_path / "whole", trust="test_scales")
    t = np.array([0.0, 1000.0])
    assert u(t) == pytest.approx(whole.result.solution(t), rel=1e-6)
    run(compose(*given, "budget.steps=2", f"output_dir={tmp_path / 'part'}"))
    cfg = compose(f"resume={tmp_path / 'part'}", "trust=test_scales")
    cfg.budget.steps = 4
    part = run(cfg).adaptation
    for (name, a), b in zip(whole.adaptation.net.named_parameters(), part.net.parameters(), strict=True):
        assert torch.equal(a, b), name

    plain = run(compose(*given, "budget.steps=1", "pretrain.scales=false", f"output_dir={tmp_path / 'plain'}"))
    assert not isinstance(plain.adaptation.net, Scaled)
    again = run(compose(f"resume={tmp_path / 'plain'}", "trust=test_scales")).adaptation
    assert not isinstance(again.net, Scaled)

    monkeypatch.setattr(Cooling, "scales", {"t": 900.0})
    with pytest.warns(ChangedWarning, match=r"^The weights keep .* \(t 1.8e\+03 ± 1.8e\+03\), not .* \(t 900\)"):
        assert po.load(tmp_path / "whole", trust="test_scales")(t) == pytest.approx(u(t), rel=1e-12)
    capsys.readouterr()
    run(compose(f"resume={tmp_path / 'part'}", "trust=test_scales"))
    assert capsys.readouterr().err.count("The weights keep the units that they were trained in (t 1.8e+03") == 1


# Measurements.


@pytest.mark.parametrize(("size", "unit"), [(0.03, 0.03), (1.0, 1.0), (1e5, 1e5)])
def test_measured_values_weigh_by_their_size(size, unit, generator):
    p = po.problem(coords="t", region=po.Box(t=(0, 1)), pde=lambda f: f.u_t)
    term = measured_term({"t": [0.1, 0.5, 0.9], "u": [0.0, 2 * size, size]}, p)
    points = term.where.points
    r = term.rows(AutogradField(lambda q: 3 * size + 0 * q.t, points, "u", "t"))
    assert r.flatten().tolist() == pytest.approx([3 * size / unit, size / unit, 2 * size / unit])


def test_the_data_are_fitted_if_what_is_left_is_noise():
    p = po.problem(coords="t", region=po.Box(t=(0, 1)), pde=lambda f: f.u_t, scales={})
    t = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(1)
    truth = lambda q: torch.exp(-q.t)

    def judged(error, noise):
        e = noise * torch.randn(40, 1, generator=generator, dtype=torch.float64)
        found = misfits(p, lambda q: truth(q) + error(q), Points({"t": t, "measured_u": truth(Points({"t": t})) + e}))
        return found["u"]

    none, small, smooth = lambda q: 0 * q.t, lambda q: 1e-4 * torch.sin(3 * q.t), lambda q: 0.1 * torch.sin(3 * q.t)
    assert sum(judged(none, 0.05).fitted for _ in range(100)) >= 97
    assert judged(none, 0.05).rms == pytest.approx(0.05, rel=0.3)
    assert judged(small, 0.0).fitted  # the network's own accuracy
    assert not judged(smooth, 0.02).fitted
    assert judged(smooth, 0.02).correlation > 0.5
    assert not judged(lambda q: 2 + 0 * q.t, 0.02).fitted
    hidden = Points({"t": t, "measured_u": torch.full_like(t, torch.nan)})
    assert misfits(p, truth, hidden) == {}


def test_an_interval_has_as_many_digits_as_its_width_asks_for():
    x = {"estimate": 1.2345678912, "low": 1.2345677, "high": 1.23456801, "std": 1e-7, "ahead": 0.0, "settled": True}
    assert _estimate("k", x, True) == "k = 1.23456789 (95 % interval 1.2345677 to 1.23456801)"
    assert _estimate("k", x | {"low": 1.0, "high": 1.5}, True) == "k = 1.23457 (95 % interval 1 to 1.5)"


@pytest.mark.parametrize(
    ("best", "advice"),
    [
        (True, "return the last iterate (points.best_iterate=false) or raise the rank"),
        (False, "raise the budget or the rank"),
    ],
)
def test_an_estimate_that_is_not_settled_says_what_moves_it(best, advice):
    x = {"estimate": 2.0, "low": 1.5, "high": 2.5, "std": 0.1, "ahead": -0.25, "settled": False}
    said = _estimate("k", x, best)
    assert said == f"k = 2 (95 % interval 1.5 to 2.5; not settled, the next step would add -2.5e-01: {advice})"


def test_a_coefficient_without_a_bound_is_measured_in_its_first_guess():
    p = po.problem(
        coords="t",
        region=po.Box(t=(0, 1)),
        q=po.parameter(-4e5, -4e5),
        c=po.parameter(2.0, 2.0),
        pde=lambda f, q, c: c * f.u_t - q,
    )
    solution = Solution(p, MLP(1, 1, depth=2), ["q", "c"])
    assert solution.sizes == {"coefficients.q": 4e5}
    x = variable({"params": [torch.tensor(-4e5)], "above": None, "size": 4e5}, "product")
    y = x.start()
    assert float(x.move(y, x.frame(y), torch.tensor([0.25])).point) == -3e5


def test_errors_are_told_of_each_field():
    u, v = torch.tensor([[1.0, 1e5], [2.0, 2e5]]), torch.tensor([[1.1, 1e5], [2.0, 2e5]])
    assert relative_l2_by_field(v, u, ("u", "P")) == pytest.approx({"u": 0.1 / math.sqrt(5), "P": 0.0}, rel=1e-5)
    assert relative_l2_by_field(v[:, :1], u[:, :1], ("u",)) == relative_l2_by_field(u, None, ("u", "P")) == {}


# Problems in natural units, solved as they stand.

SHORT = Pretraining(adam_steps=20, natural_gradient_steps=20, interior=200)


def test_pressure_does_not_hide_velocity():
    net = po.pretrain(nozzle().at_source(), MLP(1, 2, width=10, depth=3), settings=SHORT)
    result = po.adapt(net, nozzle(), points=po.Sampling(interior=200), budget=po.Budget(gradient_evals=40))
    assert result.rel_l2_by_field["u"] < 5e-3
    assert f"(u {result.rel_l2_by_field['u']:.1e}, P " in repr(result)
    assert result.summary["scales"]["units"]["P"][0] == 1e5
    assert result.history[-1]["error/rel_l2/u"] == pytest.approx(result.rel_l2_by_field["u"], rel=0.3)


def test_no_interval_where_the_data_are_not_fitted():
    result = po.adapt(
        MLP(1, 1, width=8, depth=2),
        emsley(),
        data=paper(),
        unknown=("A",),
        lora=po.LoRA(targets="*"),
        rank=None,
        points=po.Sampling.fixed(60, 10),
        log=po.Log(test=64, heldout=32),
        budget=po.Budget(steps=1),
    )
    assert result.coefficients["A"]["low"] is None
    assert "no interval, since the data are not fitted: rms misfit" in repr(result)
    assert not result.summary["misfits"]["D"]["fitted"]


def own_layer(result):
    """The relative error of each field of ``layers`` where it is meant."""
    p = result.problem.region.sample(400, lambda n, d: torch.linspace(0, 1, n, dtype=torch.float64)[:, None])
    with torch.no_grad():
        u, exact = Solution(result.problem, result.net)(p), result.problem.reference(p)
    pick = lambda y: torch.where(p.x <= LENGTHS[0], y[:, :1], y[:, 1:])
    # Of the drop of 100 K, and not of the absolute temperature.
    return float((pick(u) - pick(exact)).norm() / (pick(exact) - 350).norm())


@pytest.mark.slow
def test_two_layers_are_solved_in_kelvin_and_metres():
    result = po.adapt(po.pretrain(layers().at_source()), layers(), budget=po.Budget(gradient_evals=200))
    assert own_layer(result) < 1e-4


@pytest.mark.slow
def test_velocity_and_pressure_are_both_solved():
    result = po.adapt(po.pretrain(nozzle().at_source()), nozzle(), budget=po.Budget(gradient_evals=300))
    assert result.rel_l2_by_field["u"] < 1e-5
    assert result.rel_l2_by_field["P"] < 5e-5  # of its deviation from 10⁵, which is about one


@pytest.mark.slow
@pytest.mark.parametrize("guess", [1e8, 7e9])
def test_the_rate_of_ageing_is_found_in_days(guess):
    """Of 7.8e8, from a guess that is off by a factor of about 8 or 9, with noise of 5 in degrees of 1000."""
    p = emsley(guess)
    settings = {"data": paper(5.0), "unknown": ("A",), "budget": po.Budget(gradient_evals=300)}
    result = po.adapt(po.pretrain(p, data=settings["data"]), p, **settings)
    found = result.coefficients["A"]
    assert found["estimate"] == pytest.approx(A, rel=0.02)
    assert found["low"] < A < found["high"]
    assert found["high"] / found["low"] < 1.1


# Networks in units, elsewhere.


def test_each_term_has_sizes_of_its_own_whatever_its_name(generator, tmp_path):
    names = ("a.b", "a_b", "a%2Eb", "a")
    rows = {name: (float(k + 2),) for k, name in enumerate(names)}
    scales = Scales({"t": Unit(0, 9)}, {"u": NATURAL}, {"u": NATURAL}, rows)
    net = Scaled(MLP(1, 1, width=4, depth=1, generator=generator), scales)
    assert net.scales.rows == rows
    assert [float(net.row_sizes(name)) for name in names] == [2, 3, 4, 5]
    save_network(net, tmp_path / "w.safetensors")
    p = po.problem(coords="t", region=po.Box(t=(0, 1)), pde=lambda f: f.u_t)
    assert in_units_of(MLP(1, 1, width=4, depth=1), p, units_of(tmp_path / "w.safetensors")).scales.rows == rows


def test_units_that_are_declared_otherwise_than_weights_have_them_are_told(generator):
    """The function of the weights is that in the units that they were trained in."""

    def heat(scales):
        box = po.Box(x=(0, 1), t=(0, 1))
        return po.problem(coords="xt", region=box, pde=lambda f: f.u_t - f.u_xx, periods={"x": 1.0}, scales=scales)

    inputs = {"cosine": NATURAL, "sine": NATURAL, "t": Unit(0, 50.0)}
    scales = Scales(inputs, {"u": NATURAL}, {"u": NATURAL}, {"pde": (4.0,)})
    tensors = Scaled(MLP(3, 1, width=4, depth=1, generator=generator), scales).state_dict()
    told = [
        ({"t": 60.0}, "(t 50), not those that the problem declares (t 60); pretrain again for these."),
        ({"u": (1.0, 2.0), "t": 50.0}, "(u 1), not those that the problem declares (u 1 ± 2)"),
        ({"pde": 5.0}, "(pde 4), not those that the problem declares (pde 5)"),
        ({"pde": 4.0, "t": 50.0, "u": 1.0}, ""),
        (None, ""),
    ]
    for scales, sentence in told:
        p = heat(scales)
        net = in_units_of(MLP(3, 1, width=4, depth=1), p, tensors)
        assert net.scales.inputs["t"] == Unit(0, 50.0)
        said = kept_units(net.float(), p)
        assert sentence in said
        assert bool(said) == bool(sentence)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slip(Problem):
    """Any residual, right or wrong."""

    coords, supports, internal = ("t",), ("soft",), ("role", "residual")
    region = po.Box(t=(0, 1000))
    residual: object

    def terms(self):
        return {"pde": Term(self.region, self.residual)}


def test_what_a_residual_refuses_is_told_apart_from_what_it_cannot_do():
    """Random fields may leave its domain, of which nothing is found then; a slip is a sentence at once."""
    region = Slip.region

    def positive(f):
        if bool((f.u < 0).any()):
            raise ValueError("u must be positive")
        return f.u_t + f.u

    p = Slip(residual=positive)
    trial = Trial(p, [NATURAL])
    wavy = trial.solution(torch.zeros(1), torch.ones(1), waves(1, 1, 0))
    assert trial.rows("pde", points_of(region), wavy) is None
    for unreal in (lambda f: f.u_t > 0, lambda f: 1j * f.u):  # of which the checks say what is wrong
        assert find(Slip(residual=unreal)) is not None
        assert Trial(Slip(residual=unreal), [NATURAL]).rows("pde", points_of(region), wavy) is None
    slip = Trial(Slip(residual=lambda f: f.v_t), [NATURAL])
    with pytest.raises(InputError, match=r"^The residual of pde cannot be evaluated: the solution has no 'v_t'"):
        slip.rows("pde", points_of(region), wavy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlipOfAnsatz(Slip):
    """An ansatz with a slip: its residual is right."""

    supports, internal = ("hard",), ("role", "residual", "g_and_m")
    enforced = ("ic",)
    g_and_m: object

    def terms(self):
        return {**super().terms(), "ic": Term(self.region.face(t=0.0), lambda f: f.u)}

    def ansatz(self, p):
        return self.g_and_m(p)


@pytest.mark.parametrize(
    ("ansatz", "sentence"),
    [
        (lambda p: p.t, "ansatz gives a tensor of shape"),
        (lambda p: (0 * p.t, p.t, 0), "ansatz gives a tuple"),
        (lambda p: (0 * p.t, 0), "ansatz"),
        (lambda p: (0 * p.y, p.t), "ansatz cannot be evaluated: these points have no column 'y'"),
        (lambda p: None, "ansatz gives nothing"),
    ],
)
def test_a_slip_of_the_ansatz_is_a_sentence_before_sizes_are_found_of_it(ansatz, sentence):
    with pytest.raises(InputError, match=f"^{sentence}"):
        find(SlipOfAnsatz(residual=lambda f: f.u_t + f.u, g_and_m=ansatz))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_in_units_are_refused_by_a_network_without_any(generator, tmp_path, prefix):
    """Its layers are found in the file behind a prefix, but without the units they are another function."""
    net = scaled(generator)
    torch.save({prefix + name: x for name, x in net.state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="in units of its own"):
        load_network(MLP(2, 1, width=6, depth=3).double(), tmp_path / "w.pt")
    p = po.problem(coords="xt", region=po.Box(x=(0, 1), t=(0, 1)), pde=lambda f: f.u_t - f.u_x)
    again = in_units_of(MLP(2, 1, width=6, depth=3), p, units_of(tmp_path / "w.pt"))
    load_network(again, tmp_path / "w.pt")
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(again(x), net(x))
    with pytest.raises(InputError, match="a network of 1 fields, but the problem has 2, u, P"):
        in_units_of(MLP(1, 2), nozzle(), units_of(tmp_path / "w.pt"))


def test_a_network_with_units_inside_gets_no_others(generator):
    """A sum of networks in units, or a wrapper, sees the user's own coordinates already."""
    p = po.problem(coords="xt", region=po.Box(x=(0, 1), t=(0, 1)), pde=lambda f: f.u_t - f.u_x, scales={"u": 1e5})
    net = torch.nn.Sequential(scaled(generator))
    assert in_declared_units(net, p) is net
    assert in_units(net, p) is net
    system = System(p, Solution(p, net))
    points = draw_points(system.terms, 5, 1, seed=0)
    inside = System(p, Solution(p, net[0]))
    assert torch.equal(system.residual_vector(points), inside.residual_vector(points))


def test_combinations_of_a_family_have_residuals_in_the_units_of_the_network(generator):
    """The Green's operator of an estimate takes the residuals of its own system."""
    p = nozzle(scales={"P": 1e5, "mass": 2.0, "momentum": 50.0, "inlet": 7.0})
    net = MLP(1, 2, width=5, depth=3, generator=generator)
    parametric = Parametric(net, p, ("v",), po.LoRA(rank=2))
    points = parametric.points(30, 0, "test")
    basis = Basis(parametric, points)
    parametric.set({"v": 1.2})
    basis.put(0)
    found = basis.residuals(lambda number: parametric.problem, torch.ones(1, 1, dtype=torch.float64))
    assert torch.allclose(found[0], parametric.residual_vector(points), rtol=1e-8, atol=1e-10)


def test_estimates_are_of_fields_in_their_units(generator):
    """Of u and P, whose deviations are comparable; in the user's units P alone would count, and be right to 1e-5."""
    p = nozzle()
    net = po.pretrain(p.at_source(), MLP(1, 2, width=10, depth=3, generator=generator), settings=SHORT)
    run = po.steps(net, p, points=po.Sampling(interior=100), budget=po.Budget(steps=3))
    for _ in run:
        pass
    found, true = error_estimate(run.system), errors(p, run.solution, 512)
    assert true["error/rel_l2"] / 3 < found.rel_l2 < 3 * true["error/rel_l2"]
    for name in p.fields:
        assert true[f"error/rel_l2/{name}"] / 3 < found.fields[name] < 3 * true[f"error/rel_l2/{name}"]


def test_estimates_of_families_are_of_fields_in_their_units(generator):
    """A displaced member has the error that G finds from its residual, relative to the deviations."""
    p = nozzle(scales={"u": 2.0, "P": (1e5, 4.0)})
    net = in_declared_units(MLP(1, 2, width=8, depth=3, generator=generator), p)
    parametric = Parametric(net, p, ("v",), po.LoRA(rank=2))
    weights, values = parametric.weights(), {"v": 1.2}
    linearised = Linearised(parametric, 0)
    G = linearised.green(Station(values, weights, 0.0, 0.0, 1, 1, 0.0))
    before, u = linearised.residuals(), parametric.solution(parametric.probes).detach()
    nudge = lambda x: x + 1e-4 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    parametric.place({name: nudge(x) for name, x in weights.items()})
    moved, sizes = parametric.solution(parametric.probes).detach(), torch.tensor([2.0, 4.0])
    scaled = (u - torch.tensor([0.0, 1e5])) / sizes
    expected = float(((moved - u) / sizes).norm() / scaled.norm())
    after = linearised.residuals()
    change = Unseen(after.own - before.own, after.further - before.further)
    found = relative(G.error(change), parametric.function())
    assert found == pytest.approx(expected, rel=0.05)
    parametric.place(weights)
    assert torch.allclose(parametric.function(), scaled, rtol=1e-12)


def test_the_linearised_regime_measures_the_network_in_declared_units(generator):
    """Without a step, all three errors are that of the network."""
    p = nozzle(scales={"x": 1.0, "P": (1e5, 2.0)})
    net = MLP(1, 2, width=5, depth=3, generator=generator)
    found = adapt_linearised(net, p, lora=po.LoRA(rank=1), budget=po.Budget(steps=1), interior=20, boundary=5, test=32)
    assert isinstance(found.net, Scaled)
    expected = errors(p, Solution(p, in_declared_units(net, p)), 32)["error/rel_l2"]
    assert found.rel_l2_before == pytest.approx(expected, rel=1e-12)


def test_a_saved_problem_has_no_argument_that_no_configuration_sets():
    assert described(Cooling()).keys() & {"role", "conditions"} == {"conditions"}
