"""Slips in a problem file are one sentence, when the class is made or before anything is trained."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch

import pinn_odelora as po
from pinn_odelora import Box, Problem, Term, parameter
from pinn_odelora.checks.constants import free_constants
from pinn_odelora.checks.problem import check_problem
from pinn_odelora.contract.report import check
from pinn_odelora.errors import InputError
from pinn_odelora.geometry import Cloud
from pinn_odelora.measurements import measured_term
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.pretraining.pretrain import Pretraining
from pinn_odelora.system import Solution, System
from problems.heat import Heat

UNIT = Box(x=(0, 1), t=(0, 1))


def diffusion(f):
    return f.op("u", {"t": 1, "xx": -1.0})


def made(**changed):
    """A heat equation of a class whose attributes are replaced; None leaves one out."""
    given = {
        "__module__": __name__,
        "__annotations__": {"k": float},
        "coords": ("x", "t"),
        "region": UNIT,
        "supports": ("soft",),
        "k": parameter(1.0, 1.2, above=0),
        "terms": lambda self: {
            "pde": Term(self.region, lambda f: f.op("u", {"t": 1, "xx": -self.k})),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - torch.sin(math.pi * f.x)),
            "bc": Term(self.region.boundary("x"), lambda f: f.u),
        },
    }
    attributes = {key: value for key, value in (given | changed).items() if value is not None}
    return dataclass(frozen=True, kw_only=True)(type("Rod", (Problem,), attributes))()


def terms(**residuals):
    """Terms on the whole region, or of (region, residual)."""
    made_of = lambda region, part: Term(*part) if isinstance(part, tuple) else Term(region, part)
    return {"terms": lambda self: {name: made_of(self.region, part) for name, part in residuals.items()}}


HARD = {
    "supports": ("hard", "soft"),
    "enforced": ("ic", "bc"),
    "ansatz": lambda self, p: (torch.sin(math.pi * p.x), p.t * p.x * (1 - p.x)),
}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"fields": ("T_s",)}, "fields has 'T_s', but a residual could not ask for it by that name, since _ stands"),
        ({"fields": ("points",)}, "fields has 'points', but a residual could not ask for it by that name"),
        ({"fields": ("x",)}, "x is both a coordinate and a field"),
        ({"field": ("u", "v")}, "Rod has field, which means nothing to a problem; did you mean fields?"),
        ({"enforce": ("ic",)}, "Rod has enforce, which means nothing to a problem; did you mean enforced?"),
        ({"period": {"x": 1.0}}, "Rod has period, which means nothing to a problem; did you mean periods?"),
        ({"refrence": lambda self, p: p.x}, "Rod has refrence, which means nothing to a problem; did you mean ref"),
        ({"terms": None}, "Rod has no terms, which every problem must define."),
        ({"supports": "soft"}, "supports of Rod is 'soft', but it must be"),
        ({"supports": ("hard",)}, "Rod supports hard conditions, but has no ansatz; define ansatz(p), or declare"),
        (HARD | {"enforced": ("ic", "bcs")}, "Unknown term in enforced: 'bcs' (did you mean 'bc'?)"),
        (HARD | {"enforced": "bc"}, "enforced is 'bc', but it must be a tuple of names, ('bc',)."),
        ({"periods": {"y": 1.0}}, "Unknown coordinate in periods: 'y'; allowed: t, x."),
        ({"periods": {"x": 0.9}}, "The period of x is 0.9, but the region is 1 wide in x: its width must be a whole"),
        ({"region": Box(x=(0, 1))}, "region has no coordinate t, only x; it must have all of x, t."),
        ({"region": Box(x=(0, 0), t=(0, 1))}, "region has no width in x: it goes from 0 to 0."),
        (terms(pde=diffusion, ic=(Box(x=(0, 1)), diffusion)), "The region of ic has no coordinate t, only x"),
        (terms(pde=(UNIT, diffusion, -1.0)), "The weight of pde is -1.0, but a loss weight is a positive number."),
        ({"terms": lambda self: [Term(UNIT, diffusion)]}, "terms() gives a list, but it must give terms by name"),
        ({"terms": lambda self: {"pde": (UNIT, diffusion)}}, "The term pde is a tuple, but it must be a Term(region"),
        (terms(pde=diffusion, data=diffusion), "data is the name of the term of measurements"),
    ],
)
def test_what_a_class_declares_wrongly_is_refused_when_it_is_made(changed, sentence):
    with pytest.raises(InputError) as refused:
        made(**changed)
    assert str(refused.value).startswith(sentence)
    assert str(refused.value).endswith((".", "?"))


def in_place(f):
    r = f.u
    r += f.x
    return r + f.u_t


POLAR = {"coords": ("r", "t"), "region": Box(r=(0, 1), t=(0, 1))}
AXIS = POLAR["region"].face(r=0.0)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (terms(pde=lambda f: diffusion(f)[:, 0]), "The residual of pde gives a tensor of shape (8,) at 8 points"),
        (terms(pde=lambda f: f.u_t - f.u_xx[:, 0]), "The residual of pde has as many columns as there are points"),
        (terms(pde=lambda f: diffusion(f).detach().numpy()), "The residual of pde gives an array of NumPy at 8"),
        (terms(pde=lambda f: 0.0), "The residual of pde gives a float at 8 points"),
        (terms(pde=lambda f: diffusion(f) > 0), "The residual of pde gives numbers of kind bool, but they must be "),
        (terms(pde=lambda f: 1j * diffusion(f)), "The residual of pde gives numbers of kind complex128, but they"),
        (terms(pde=lambda f: diffusion(f).detach()), "The residual of pde does not depend on the network"),
        (terms(pde=diffusion, ic=lambda f: 2 * f.x), "The residual of ic asks nothing of the solution"),
        (
            terms(pde=lambda f: f.u_t if f.u.mean() > 0 else f.u),
            "The residual of pde decides by values of the solution",
        ),
        (terms(pde=lambda f: f.u_t if f.u > 0 else f.u), "The residual of pde decides by values of the solution"),
        (terms(pde=in_place), "The residual of pde changes u in place; write x = x + y instead of x += y."),
        (terms(pde=lambda f: f.u_t - f.y), "The residual of pde cannot be evaluated: the solution has no 'y'"),
        (terms(pde=lambda f: f.op("v", {"t": 1})), "The residual of pde cannot be evaluated: Unknown field 'v'"),
        (terms(pde=lambda f: f.op("u", {"y": 1})), "The residual of pde cannot be evaluated: Unknown coordinate 'y'"),
        (
            POLAR | terms(pde=lambda f: f.u_t - f.u_rr, axis=(AXIS, lambda f: torch.sin(f.u_r * f.r) / f.r)),
            "The residual of axis is NaN at r = 0, t = 0.4452, though what it asks for (u_r) is finite there",
        ),
        (
            terms(pde=diffusion, bc=lambda f: torch.sqrt((f.u - f.u) ** 2)),
            "The residual of bc is finite at x = 0.4452, t = 0.3003, but its gradient is NaN there",
        ),
        (
            HARD | {"ansatz": lambda self, p: (torch.sin(3 * p.x), p.t * p.x * (1 - p.x))},
            "ic is enforced, but the ansatz does not satisfy it: its residual is 0.",
        ),
        (
            HARD
            | {
                "ansatz": lambda self, p: (torch.sin(math.pi * p.x), p.t * p.x * (1 - p.x) * (p.x - 0.3)),
                "reference": lambda self, p: torch.sin(math.pi * p.x) * torch.exp(-self.k * math.pi**2 * p.t),
            },
            "m of the ansatz vanishes inside the region, at x = 0.3, ",
        ),
        (
            HARD | {"ansatz": lambda self, p: (torch.sin(math.pi * p.x), p.t * torch.relu(p.x - 0.3) * (1 - p.x))},
            "m of the ansatz vanishes inside the region, at x = ",
        ),
        (HARD | {"ansatz": lambda self, p: (p.x[:, 0], p.t)}, "ansatz gives a tensor of shape (8,) at 8 points"),
    ],
)
def test_what_a_few_points_show_is_refused_before_anything_is_trained(changed, sentence):
    problem = made(**changed)
    with pytest.raises(InputError) as refused:
        System(problem, Solution(problem, MLP(problem.inputs, 1, width=4, depth=1)))
    assert str(refused.value).startswith(sentence)
    assert str(refused.value).endswith(".")


RING = {
    "supports": ("hard",),
    "enforced": ("ic",),
    "periods": {"x": 1.0},
    "ansatz": lambda self, p: (p.x * (1 - p.x), p.t),
}
START = (UNIT.face(t=0.0), lambda f: f.u - f.x * (1 - f.x))


def test_a_kink_at_a_periodic_seam_is_refused_where_the_equation_differentiates_across_it():
    with pytest.raises(InputError, match=r"g of the ansatz has the same value, but not the same slope, at x = 0 and"):
        check_problem(made(**RING, **terms(pde=diffusion, ic=START)))
    check_problem(made(**RING, **terms(pde=lambda f: f.u_t + f.u, ic=START)))
    smooth = {"ansatz": lambda self, p: (torch.sin(2 * math.pi * p.x), p.t)}
    there = (UNIT.face(t=0.0), lambda f: f.u - torch.sin(2 * math.pi * f.x))
    check_problem(made(**RING | smooth, **terms(pde=diffusion, ic=there)))


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (
            lambda self, p: p.x.numpy(),
            "reference gives an array of NumPy at 8 points, but it must have shape (8, 1) as a",
        ),
        (
            lambda self, p: p.x[:, 0],
            "reference gives a tensor of shape (8,) at 8 points, but it must have shape (8, 1).",
        ),
        (lambda self, p: 1j * p.x, "reference gives numbers of kind complex128, but they must be real and of floating"),
        (lambda self, p: torch.log(p.x - 0.5), "reference is NaN at x = 0.4452, t = 0.3003."),
        (lambda self, p: p.y, "reference cannot be evaluated: these points have no column 'y'"),
    ],
)
def test_a_reference_is_checked_before_training(reference, sentence):
    problem = made(reference=reference)
    for start in (po.pretrain, lambda problem: po.adapt(MLP(2, 1, width=4, depth=1), problem)):
        with pytest.raises(InputError) as refused:
            start(problem)
        assert str(refused.value).startswith(sentence)


def test_numbers_that_fail_at_few_points_are_not_blamed_on_the_learning_rate():
    p = Points(x=torch.linspace(0, 1, 101).double()[:, None], t=torch.full((101, 1), 0.3).double())
    problem = made(**terms(pde=(Cloud(p, interior=True), lambda f: diffusion(f) * torch.log((f.x - 0.5).abs()))))
    with pytest.raises(InputError) as refused:
        po.pretrain(problem, MLP(2, 1, width=4, depth=1), settings=Pretraining(adam_steps=2))
    assert str(refused.value).startswith(
        "Pretraining by Adam failed: The residual of pde is infinite at x = 0.5, t = 0.3"
    )
    assert "adam_lr" not in str(refused.value)


def test_a_list_of_columns_is_a_tuple_of_columns():
    problem = made(**terms(pde=lambda f: [f.u_t, f.u_xx]))
    p = UNIT.sample(3, lambda n, d: torch.rand(n, d, dtype=torch.float64))
    system = System(problem, Solution(problem, MLP(2, 1, width=4, depth=1).double()))
    assert system.residuals({"pde": p})["pde"].shape == (3, 2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Box(x=(1, 0)), r"^The interval of x is \(1, 0\), but it must be a pair of finite numbers, the lower"),
        (lambda: Box(x="01"), r"^The interval of x is '01', but it must be a pair of finite numbers, the lower first"),
        (lambda: Box(x=(0, math.nan)), r"^The interval of x is \(0, nan\)"),
        (lambda: Box(x=(0, math.inf)), r"^The interval of x is \(0, inf\)"),
        (lambda: Box(x=1), r"^The interval of x is 1,"),
        (lambda: UNIT.face(T=0.0), r"^Unknown coordinate of the box: 'T'; allowed: t, x\.$"),
        (lambda: UNIT.face(t=5.0), r"^face\(t=5.0\) is outside the box, where t is from 0 to 1\.$"),
        (lambda: UNIT.boundary("y"), r"^Unknown coordinate of the box: 'y'"),
    ],
)
def test_boxes_and_their_faces_have_order_and_names(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_the_domain_may_depend_on_a_parameter_that_is_known():
    posed = made(region=property(lambda self: Box(x=(0, self.k), t=(0, 1))))
    assert posed.at_source().region.bounds["x"] == (0, 1.0)
    assert posed.terms()["pde"].where.bounds["x"] == (0, 1.2)
    with pytest.raises(InputError, match="The interval of x depends on an unknown parameter, but points cannot move"):
        Solution(posed, MLP(2, 1, width=4, depth=2), ("k",))


def test_a_class_that_is_no_dataclass_is_told():
    attributes = {"coords": ("x", "t"), "region": UNIT, "supports": ("soft",), "k": parameter(1.0, 2.0)}
    bare = type("Rod", (Problem,), attributes | terms(pde=diffusion))
    with pytest.raises(InputError, match=r"^Rod declares the parameter k, but is no dataclass; write @dataclass"):
        bare()


# The contract.


def verdicts(problem):
    return {row.what: row.verdict for row in check(problem).rows}


def test_a_wrong_sign_a_wrong_condition_and_a_useless_parameter_fail():
    exact = lambda self, p: torch.sin(math.pi * p.x) * torch.exp(-self.k * math.pi**2 * p.t)
    right = made(**HARD, reference=exact)
    assert set(verdicts(right).values()) == {"holds"}
    wrong = terms(
        pde=lambda f: f.op("u", {"t": 1, "xx": 1.2}),
        ic=(UNIT.face(t=0.0), lambda f: f.u - torch.sin(math.pi * f.x)),
        bc=(UNIT.boundary("x"), lambda f: f.u - 0.1),
    )
    found = verdicts(made(**wrong, reference=exact))
    failed = {what for what, verdict in found.items() if verdict == "fails"}
    assert failed == {"pde at the reference", "bc at the reference"}
    useless = made(**terms(pde=diffusion))
    assert verdicts(useless)["parameter k"] == "fails"
    assert not check(useless).holds


def test_what_cannot_be_checked_is_unknown():
    assert verdicts(made())["reference"] == "unknown"
    detached = made(reference=lambda self, p: torch.sin(math.pi * p.x.detach()))
    assert "not differentiable" in next(row.said for row in check(detached).rows if row.what == "reference")
    assert check(detached).holds


def nearly(error):
    """The solution of the rod but for a smooth relative error."""
    decay = lambda self, p: torch.exp(-self.k * math.pi**2 * p.t)
    return lambda self, p: (
        torch.sin(math.pi * p.x) * decay(self, p) + error * torch.sin(3 * math.pi * p.x) * torch.cos(p.t)
    )


def test_a_reference_good_to_some_digits_may_leave_as_much_as_it_declares_and_no_more():
    verdicts_at = lambda error, **more: verdicts(made(reference=nearly(error), **more))
    exact, wrong = verdicts_at(0.0), verdicts_at(1e-4)
    assert {exact["pde at the reference"], exact["ic at the reference"]} == {"holds"}
    assert {wrong["pde at the reference"], wrong["ic at the reference"]} == {"fails"}
    declared = verdicts_at(1e-4, accuracy=1e-4)
    assert {declared["pde at the reference"], declared["ic at the reference"]} == {"note"}
    assert declared["bc at the reference"] == declared["signs in pde"] == "holds"
    assert verdicts_at(1e-1, accuracy=1e-4)["pde at the reference"] == "fails"
    said = {row.what: row.said for row in check(made(reference=nearly(1e-4), accuracy=1e-4)).rows}
    assert said["ic at the reference"].endswith("as a reference with accuracy = 0.0001 may leave, up to 1e-02")


def test_a_sign_does_not_show_where_the_reference_leaves_as_much():
    """u_t = u_xx + c u with c so small that the error of the reference hides it."""
    posed = terms(pde=lambda f: f.op("u", {"t": 1, "xx": -1.0, "": 2e-2}), ic=(UNIT.face(t=0.0), lambda f: f.u_x))
    found = {
        accuracy: verdicts(made(**posed, reference=nearly(error), accuracy=accuracy))["signs in pde"]
        for error, accuracy in ((0.0, 1e-12), (1e-3, 1e-2))
    }
    assert found == {1e-12: "holds", 1e-2: "note"}


def test_the_network_may_be_off_where_an_inexact_reference_is_nearly_g():
    waves = lambda p: torch.sin(2 * math.pi * p.x)
    decays = lambda error: lambda self, p: waves(p) * torch.exp(-4 * self.k * math.pi**2 * p.t) + error * p.t
    hard = HARD | {"enforced": ("bc",), "ansatz": lambda self, p: (0 * p.x, waves(p))}
    assert check_problem(made(**hard, reference=decays(1e-5), accuracy=1e-4)) is None
    with pytest.raises(InputError, match=r"m of the ansatz vanishes inside the region, at x = 0\.5"):
        check_problem(made(**hard, reference=decays(1e-5)))


def test_a_class_and_its_problem_have_one_contract_which_prints_as_a_table():
    found = check(Heat)
    assert found == check(dataclasses.replace(Heat(), conditions="soft"))
    assert str(found).splitlines()[0].split()[:2] == ["evaluation", "holds"]
    assert len(str(found).splitlines()) == len(found.rows)


def test_corners_of_faces_have_their_normals():
    box = po.Box(x=(0, 2), t=(0, 1))
    wall = po.conditions.neumann(box.boundary("x"), coefficient=lambda f: 1 / (1 + f.t))
    rows = po.check(po.problem(coords="xt", region=box, pde=lambda f: f.u_t - f.u_xx, wall=wall)).rows
    assert [row.verdict for row in rows if row.what == "corners"] == ["holds"]


def test_the_surface_of_a_combination_is_not_the_boxes_that_it_is_made_of():
    pierced = po.Box(x=(-2, 2), y=(-1, 1)) - po.Ball(0.5, x=0.0, y=0.0)
    wall = po.conditions.neumann(pierced.boundary())
    rows = po.check(po.problem(coords="xy", region=pierced, pde=lambda f: f.lap("u") + f.u, wall=wall)).rows
    assert [row.verdict for row in rows if row.what == "corners"] == ["holds"]


# Fields that are free by a constant.

SQUARE = po.Box(x=(0, 1), y=(0, 2))
WALLS = po.conditions.neumann(SQUARE.boundary(), lambda f: f.nx)
CORNER = po.Points(x=torch.zeros(1, 1).double(), y=torch.ones(1, 1).double())


def potential(**more):
    """Δu = 0, ∂u/∂n = n_x: u is x and a constant."""
    return po.problem(coords="xy", region=SQUARE, pde=lambda f: f.lap("u"), walls=WALLS, **more)


def mean_zero(p, N):
    nodes = [0.5 - 12**-0.5, 0.5 + 12**-0.5]
    return N(p) - sum(N(po.Points(x=0 * p.x + a, y=0 * p.y + 2 * b)) for a in nodes for b in nodes) / 4


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({}, "note"),
        ({"reference": lambda p: p.x}, "fails"),
        ({"seam": po.conditions.periodic(SQUARE, "y")}, "note"),
        ({"square": (SQUARE, lambda f: 1e-3 * (f.u_x**2 + f.u_y**2 - 1))}, "note"),
        ({"point": po.conditions.dirichlet(Cloud(CORNER)), "reference": lambda p: p.x}, "holds"),
        ({"mean": po.conditions.integral(SQUARE, "xy", 1.0, nodes=2)}, "holds"),
        ({"mass": (SQUARE, lambda f: f.u_x * f.u - f.x)}, "holds"),
    ],
)
def test_a_field_of_which_only_derivatives_are_read_is_free_by_a_constant(more, verdict):
    (row,) = (row for row in check(potential(**more)).rows if row.what == "constants")
    assert row.verdict == verdict
    assert ("u is determined up to a constant only" in row.said) == (verdict != "holds")


def test_an_ansatz_may_fix_the_constant():
    mean = po.conditions.integral(SQUARE, "xy", 0.0, nodes=2)
    assert free_constants(potential(mean=mean, enforced=("mean",), ansatz=mean_zero)) == ()
    insulated = {"ends": po.conditions.neumann(SQUARE.boundary("y")), "enforced": ("ends",)}
    assert free_constants(potential(**insulated, ansatz=lambda p: (p.x, (p.y * (2 - p.y)) ** 2))) == ()
    assert free_constants(potential(**insulated, ansatz=lambda p, N: N(po.Points(x=p.x, y=0 * p.y)))) == ("u",)


def test_each_field_is_looked_at_by_itself():
    def stokes(f):
        return f.lap("u") - f.p_x, f.lap("v") - f.p_y, f.u_x + f.v_y

    walls = (SQUARE.boundary(), lambda f: (f.u - f.y, f.v))
    flow = po.problem(coords="xy", fields="uvp", region=SQUARE, pde=stokes, walls=walls)
    assert free_constants(flow) == ("p",)
    measured = {"x": [0.1] * 20, "y": [0.1] * 20, "u": [1.0] * 20, "p": [math.nan] * 19 + [0.3]}
    data = measured_term(measured, flow)
    assert free_constants(flow, {**flow.loss_terms(), "data": data}) == ()
    with_gauge = po.problem(coords="xy", fields="uvp", region=SQUARE, pde=stokes, walls=walls, gauge=lambda f: f.p)
    assert free_constants(with_gauge) == ()


def test_the_units_that_pretraining_finds_are_shown_and_numbers_are_rounded():
    days = Box(t=(0, 2000))
    start = (days.face(t=0.0), lambda f: f.u - 500.0)
    decay = po.problem(
        coords="t",
        region=days,
        E=parameter(210e9, 210e9, above=0),
        pde=lambda f, E: f.u_t + E / 1e14 * f.u,
        start=start,
    )
    said = {row.what: row.said for row in check(decay).rows}
    assert said["units for pretraining"].startswith("t 1e+03 ± 1e+03, u 500, residual start ")
    assert said["parameter E"] == "2.31e+11 in the place of 2.1e+11 makes a difference"
    assert "units for pretraining" not in {row.what for row in check(Heat()).rows}


LINE = Box(x=(0, 1), t=(0, 1))


def test_a_parameter_may_be_a_tensor_of_one_number():
    problem = Heat(kappa=torch.tensor(0.25))
    assert problem == Heat(kappa=0.25)
    assert problem.unknown == ()
    assert Heat().at_source(kappa=torch.tensor([0.25])).kappa == 0.25
    with pytest.raises(InputError, match=r"^kappa is "):
        Heat(kappa=torch.tensor([0.25, 0.5]))
    with pytest.raises(InputError, match=r"^kappa is -1"):
        Heat(kappa=torch.tensor(-1.0))


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e10, 1e17])
def test_prescribed_values_of_any_size_determine_a_field(size):
    pde, start = (lambda f: f.op("u", {"t": 1, "xx": -1})), LINE.face(t=0.0)
    given = (start, lambda f: f.u - size * torch.sin(math.pi * f.x))
    insulated = (LINE.boundary("x"), lambda f: f.nx * f.u_x - size)
    periodic = po.conditions.periodic(LINE, "x")
    assert free_constants(po.problem(coords="xt", region=LINE, pde=pde, ic=given, walls=insulated)) == ()
    slope = (start, lambda f: f.u_x - size)
    for sides in (insulated, periodic):
        assert free_constants(po.problem(coords="xt", region=LINE, pde=pde, ic=slope, walls=sides)) == ("u",)
