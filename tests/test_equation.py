"""An equation without a class is the same problem as with one, and what is wrong with it is one sentence at once."""

import copy
import dataclasses
import math
import pickle
from functools import partial

import pytest
import torch

from pinn_odelora.derivatives import AutogradField
from pinn_odelora.equation import problem
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Term, parameter
from pinn_odelora.geometry import Box, Cloud, sobol
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.pretraining import cache
from pinn_odelora.pretraining.pretrain import Pretraining
from pinn_odelora.reference import gauss_hermite
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

BOX = Box(x=(-1, 1), t=(0, 1))
UNIT = Box(x=(0, 1), t=(0, 1))
HEAT = {"coords": "xt", "region": UNIT, "pde": lambda f: f.u_t - f.u_xx}


def initial(x, amplitude):
    return -amplitude * torch.sin(math.pi * x)


def cole_hopf(p, nu, amplitude):
    z, log_w = gauss_hermite(200, p.x)
    y = p.x - torch.sqrt(4 * nu * p.t) * z
    log_phi = -amplitude * torch.cos(math.pi * y) / (2 * math.pi * nu)
    return (torch.softmax(log_w + log_phi, dim=1) * initial(y, amplitude)).sum(dim=1, keepdim=True)


def burgers_residual(f, nu):
    return f.op("u", {"t": 1, "xx": -nu}) + f.u * f.u_x


def starts(f, amplitude):
    return f.u - initial(f.x, amplitude)


def vanishes(f):
    return f.u


def burgers_ansatz(p, amplitude):
    return initial(p.x, amplitude), p.t * (1 - p.x**2)


def burgers(**changed):
    given = {
        "coords": "xt",
        "region": BOX,
        "nu": parameter(0.05, 0.02, above=0),
        "amplitude": parameter(1.0, 1.0),
        "pde": burgers_residual,
        "ic": (BOX.face(t=0.0), starts),
        "bc": (BOX.boundary("x"), vanishes),
        "ansatz": burgers_ansatz,
        "enforced": ("ic", "bc"),
        "reference": cole_hopf,
        "name": "Burgers",
    }
    return problem(**(given | changed))


def kovasznay():
    box = Box(x=(-0.5, 1), y=(-0.5, 1.5))
    rate = lambda re: -4 * math.pi**2 / (re / 2 + (re**2 / 4 + 4 * math.pi**2) ** 0.5)
    u = lambda x, y, re: 1 - torch.exp(rate(re) * x) * torch.cos(2 * math.pi * y)
    v = lambda x, y, re: rate(re) / (2 * math.pi) * torch.exp(rate(re) * x) * torch.sin(2 * math.pi * y)
    p = lambda x, re: (1 - torch.exp(2 * rate(re) * x)) / 2
    return problem(
        coords=("x", "y"),
        fields="uvp",
        region=box,
        re=parameter(20.0, 60.0, above=0),
        pde=lambda f, re: (
            f.u * f.u_x + f.v * f.u_y + f.p_x - f.lap("u") / re,
            f.u * f.v_x + f.v * f.v_y + f.p_y - f.lap("v") / re,
            f.u_x + f.v_y,
        ),
        bc=(box.boundary(), lambda f, re: (f.u - u(f.x, f.y, re), f.v - v(f.x, f.y, re))),
        outflow=Term(box.face(x=1.0), lambda f, re: f.p - p(f.x, re)),
        reference=lambda q, re: torch.cat([u(q.x, q.y, re), v(q.x, q.y, re), p(q.x, re)], dim=1),
    )


PAIRS = {
    "burgers-hard": (burgers(), Burgers()),
    "burgers-soft": (burgers(conditions="soft", weights={"ic": 7.0}), Burgers(conditions="soft", weights={"ic": 7.0})),
    "burgers-source": (burgers().at_source(), Burgers().at_source()),
    "burgers-replaced": (dataclasses.replace(burgers(), nu=0.3, amplitude=1.5), Burgers(nu=0.3, amplitude=1.5)),
    "kovasznay": (kovasznay(), Kovasznay()),
}


def residuals(posed, derivatives, unknown=()):
    """Residuals, loss and the gradient of the loss, of the same network at the same points."""
    generator = torch.Generator().manual_seed(3)
    net = MLP(posed.inputs, len(posed.fields), width=10, depth=2, generator=generator).double()
    solution = Solution(posed, net, unknown)
    system = System(solution.problem, solution, derivatives=derivatives)
    points = draw_points(system.terms, 20, 10, seed=1)
    loss = system.loss(points)
    gradient = torch.autograd.grad(loss.total, tuple(solution.parameters()))
    return [*system.residuals(points).values(), loss.total, *loss.terms.values(), *gradient]


@pytest.mark.parametrize("derivatives", ["jets", "autograd"])
@pytest.mark.parametrize("pair", PAIRS)
def test_it_is_bit_for_bit_the_problem_of_a_class(pair, derivatives):
    made, written = PAIRS[pair]
    assert made.loss_terms().keys() == written.loss_terms().keys()
    assert made.parameters() == written.parameters()
    for ours, theirs in zip(residuals(made, derivatives), residuals(written, derivatives), strict=True):
        assert torch.equal(ours, theirs)
    p = made.region.sample(50, lambda n, d: sobol(n, d, seed=2))
    assert torch.equal(made.reference(p), written.reference(p))


@pytest.mark.parametrize("derivatives", ["jets", "autograd"])
def test_an_unknown_coefficient_is_trained_like_that_of_a_class(derivatives):
    """nu is in the residual alone, the amplitude in the ansatz too; the gradients for both come last."""
    results = [residuals(p, derivatives, ("nu", "amplitude")) for p in (burgers(), Burgers())]
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    assert all(float(gradient) != 0 for gradient in results[0][-2:])
    unknown = Solution(burgers(), MLP(2, 1), ("nu",)).problem
    assert unknown.unknown == ("nu",)
    assert unknown.known_reference(BOX.sample(4, lambda n, d: sobol(n, d, seed=2))) is None


def test_a_periodic_equation_is_periodic():
    ring = problem(
        coords="xt",
        region=UNIT,
        pde=lambda f: f.u_t + f.u_x,
        ic=(UNIT.face(t=0.0), lambda f: f.u - torch.sin(2 * math.pi * f.x)),
        periods={"x": 1.0},
        ansatz=lambda p: (torch.sin(2 * math.pi * p.x), p.t),
        enforced="ic",
    )
    solution = Solution(ring, MLP(ring.inputs, 1).double())
    x, t = torch.rand(2, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert ring.inputs == 3
    assert torch.allclose(solution(Points(x=x + 1, t=t)), solution(Points(x=x, t=t)), rtol=0, atol=1e-12)
    assert ring.reference(Points(x=x, t=t)) is None


def test_a_term_keeps_what_it_says():
    term = Term(UNIT, lambda f: f.u - f.u.mean(), weight=3.0, coupled=True, heldout=UNIT.face(t=1.0))
    kept = problem(**HEAT, mean=term).loss_terms()["mean"]
    assert kept == term


def test_arguments_with_defaults_are_left_alone():
    """The idiom that binds a variable of a loop; of a parameter's name it is the parameter."""
    made = problem(
        coords="xt", region=UNIT, c=parameter(1.0, 2.0), pde=lambda f, k=5.0, c=0.0: k * f.u_t - c * f.u_x + 0 * f.u
    )
    p = UNIT.sample(4, lambda n, d: sobol(n, d, seed=2))
    field = AutogradField(lambda p: p.x**2 + p.t, p, ("u",), ("x", "t"))
    assert torch.equal(made.terms()["pde"].rows(field).detach(), 5 - 2.0 * 2 * p.x)


def test_it_can_be_copied_and_pickled():
    made = dataclasses.replace(burgers(), nu=0.3)
    assert copy.deepcopy(made) == made
    assert copy.copy(made) == made
    again = pickle.loads(pickle.dumps([made, made.at_source()]))
    assert [repr(p) for p in again] == [repr(made), repr(made.at_source())]
    assert type(again[0]) is type(again[1])
    for ours, theirs in zip(residuals(again[0], "jets"), residuals(made, "jets"), strict=True):
        assert torch.equal(ours, theirs)


def test_a_copy_of_a_solution_has_coefficients_of_its_own():
    solution = Solution(burgers(), MLP(2, 1), ("nu",))
    copied = copy.deepcopy(solution)
    assert copied.problem.nu is copied.coefficients["nu"]
    assert copied.problem.nu is not solution.problem.nu


def test_its_repr_is_for_people():
    made = burgers()
    assert repr(made) == "<Burgers for u(x, t): pde, ic (enforced), bc (enforced), nu=0.02, amplitude=1.0>"
    soft = dataclasses.replace(made, conditions="soft", weights={"bc": 10})
    assert repr(soft) == "<Burgers for u(x, t): pde, ic, bc (weight 10), nu=0.02, amplitude=1.0>"
    assert "nu=unknown, now 0.02," in repr(Solution(made, MLP(2, 1), ("nu",)).problem)
    assert repr(kovasznay()) == "<Equation for u, v, p(x, y): pde, bc, outflow, re=60.0>"


def test_two_equations_of_one_name_never_share_a_pretrained_network():
    """Their functions may differ where their names and values do not."""
    net, settings = MLP(2, 1), Pretraining()
    assert cache.key(burgers(), net, settings) is None
    typed_in = type("Burgers", (Burgers,), {"__module__": "__main__.cell"})
    assert cache.key(typed_in(), net, settings) is None
    cache.check_writable(None, None)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"pde": 3.0}, "pde is 3.0, but it must be a residual, a pair (region, residual), a po.Term, or a parameter"),
        ({"ic": (vanishes, UNIT.face(t=0.0))}, "ic is (<function vanishes at "),
        ({"refrence": lambda p: p.x}, "refrence is no argument of problem (did you mean 'reference'?)"),
        ({"pde": lambda f, mu: f.u}, "Unknown argument of pde: 'mu'; allowed: none; declare a parameter by mu="),
        (
            {"c": parameter(1.0, 2.0), "pde": lambda f, cc: f.u},
            "Unknown argument of pde: 'cc' (did you mean 'c'?); allowed: c;",
        ),
        ({"c": parameter(1.0, 2.0)}, "c is a parameter, but no function takes it"),
        ({"pde": lambda: 0}, "pde takes no argument, but its first one must be the field or the points."),
        ({"pde": lambda f: f.v}, "The residual of pde cannot be evaluated: the solution has no 'v': fields are u"),
        ({"pde": lambda f: f.u_yy}, "The residual of pde cannot be evaluated: the solution has no 'u_yy'"),
        ({"pde": lambda f: f.u[:, 0]}, "The residual of pde gives a tensor of shape (8,) at 8 points, but it must"),
        ({"pde": lambda f: [f.u, 0.0]}, "The residual of pde gives a float at 8 points, but it must give a column"),
        ({"pde": lambda f: None}, "The residual of pde gives nothing at 8 points"),
        ({"region": {"x": (0, 1)}}, "region is {'x': (0, 1)}, but it must be a region, such as po.Box(x=(0, 1)"),
        ({"region": Box(x=(0, 1))}, "region has no coordinate t, only x; it must have all of x, t."),
        ({"bc": (Box(x=(0, 0)), vanishes)}, "The region of bc has no coordinate t, only x"),
        ({"coords": ""}, "coords is '', but it must be a string of letters or a sequence of names."),
        ({"coords": "x,t"}, "coords is 'x,t', but it must be a string of letters or a sequence of names."),
        ({"coords": 2}, "coords is 2, but it must be a string of letters or a sequence of names."),
        ({"fields": "pressure"}, "fields is 'pressure', but it may have 'r' only once; a string names one by each"),
        ({"fields": ("u_1",)}, "fields has 'u_1', but a residual could not ask for it by that name"),
        ({"fields": ("rows",)}, "fields has 'rows', but a residual could not ask for it by that name"),
        ({"fields": "xu"}, "x is both a coordinate and a field"),
        ({"x": parameter(1.0, 2.0)}, "x is a coordinate, so no parameter may have that name."),
        ({"u": vanishes}, "u is a field, so no term may have that name."),
        ({"embed": parameter(1.0, 2.0)}, "A parameter cannot be called embed"),
        ({"data": vanishes}, "data is the name of the term of measurements"),
        ({"name": "my wave"}, "name is 'my wave', but it must be a word of letters and digits."),
        ({"enforced": "bcs", "bc": vanishes}, "Unknown term in enforced: 'bcs' (did you mean 'bc'?)"),
        ({"enforced": "bc", "bc": vanishes}, "enforced names bc, but there is no ansatz to satisfy it."),
        ({"ansatz": lambda p: (0 * p.x, p.t)}, "There is an ansatz, but enforced does not say which of the terms"),
        ({"ansatz": lambda p: (p.x, p.t), "enforced": "pde"}, "enforced names every term, but at least one must be"),
        ({"periods": {"y": 1.0}}, "Unknown coordinate in periods: 'y'; allowed: t, x."),
        ({"periods": {"x": 0}}, "The period of x is 0, but it must be a positive number."),
        ({"accuracy": 0}, "accuracy is 0, but it must be a positive number."),
        ({"bc": Term(UNIT, vanishes, weight=-1)}, "The weight of bc is -1, but a loss weight is a positive number."),
        ({"reference": lambda p: p.x[:, 0]}, "reference gives a tensor of shape (8,) at 8 points, but it must have"),
        ({"reference": lambda p: p.z}, "reference cannot be evaluated: these points have no column 'z'"),
        ({"reference": 3}, "reference is 3, but it must be a function of points."),
        ({"conditions": "hard"}, "Unknown conditions of Equation: 'hard'"),
        ({"weights": {"pd": 2.0}}, "Unknown loss term in problem.weights of Equation: 'pd' (did you mean 'pde'?)"),
    ],
)
def test_what_is_wrong_is_one_sentence(changed, sentence):
    with pytest.raises(InputError) as refused:
        problem(**(HEAT | changed))
    assert str(refused.value).startswith(sentence)
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


HARD = {
    **HEAT,
    "ic": (UNIT.face(t=0.0), lambda f: f.u - torch.sin(math.pi * f.x)),
    "rest": (UNIT.face(t=0.0), lambda f: f.u_t),
    "enforced": ("ic", "rest"),
}


@pytest.mark.parametrize(
    ("ansatz", "sentence"),
    [
        (lambda p: (torch.cos(math.pi * p.x), p.t**2), "ic is enforced, but the ansatz does not satisfy it"),
        (lambda p: (torch.sin(math.pi * p.x), p.t), "rest is enforced, but the ansatz does not satisfy it"),
        (lambda p: (torch.sin(math.pi * p.x), p.t.sqrt() ** 4), "rest is enforced, but the ansatz does not satisfy it"),
        (lambda p: torch.sin(math.pi * p.x), "ansatz gives a tensor of shape (8, 1), but it must give a pair (g, m)"),
        (lambda p: (p.x[:, 0], p.t), "ansatz gives a tensor of shape (8,) at 8 points, but g and m must have shape"),
        (lambda p: (p.y, p.t), "ansatz cannot be evaluated: these points have no column 'y'"),
    ],
)
def test_an_ansatz_that_does_not_satisfy_its_conditions_is_refused(ansatz, sentence):
    with pytest.raises(InputError) as refused:
        problem(**HARD, ansatz=ansatz)
    assert str(refused.value).startswith(sentence)
    assert problem(**HARD, ansatz=lambda p: (torch.sin(math.pi * p.x), p.t**2)).conditions == "hard"


def test_a_parameter_is_checked_at_both_of_its_values():
    for source, target in ((-1.0, 1.0), (1.0, -1.0)):
        with pytest.raises(InputError, match=r"c is -1.0, but it must be a finite number above 0"):
            problem(coords="xt", region=UNIT, c=parameter(source, target, above=0), pde=lambda f, c: f.u_t - c * f.u)
    with pytest.raises(InputError, match="domain"):
        problem(
            coords="xt",
            region=UNIT,
            domain=parameter("a", "c", choices=("a", "b")),
            pde=lambda f, domain: f.u_t,
        )


def test_functions_without_a_signature_and_partial_ones_are_functions():
    weighted = partial(lambda f, k: k * f.u_t, k=2.0)
    cloud = Cloud(UNIT.sample(30, lambda n, d: sobol(n, d, seed=0)))
    made = problem(coords="xt", region=UNIT, pde=weighted, seen=(cloud, vanishes))
    assert made.loss_terms().keys() == {"pde", "seen"}
