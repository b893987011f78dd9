"""PINA problems: our rows are PINA's residuals, and unknown parameters are found."""

import math
from types import SimpleNamespace

import pytest
import torch

import pinn_odelora as po
from pinn_odelora.errors import InputError
from pinn_odelora.geometry import Box, sobol
from pinn_odelora.nets import MLP
from pinn_odelora.pina import Drawn
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("pina")


@pytest.fixture(scope="module")
def pina():
    import pina
    import pina.domain
    import pina.equation
    import pina.operator
    import pina.problem

    return pina


def mixture(x, y):
    """u_θθ + u_yy + v_θ v, and div (u, v) - θ, by PINA's operators."""
    from pina.operator import div, grad, laplacian

    flat = lambda part: part.as_subclass(torch.Tensor)
    first = flat(laplacian(y, x, components=["u"], d=["theta", "y"]))
    second = flat(grad(y, x, components=["v"], d=["theta"])) * flat(y.extract(["v"]))
    third = flat(div(y, x, components=["u", "v"], d=["theta", "y"])) - flat(x.extract(["theta"]))
    return torch.cat([first + second, third], dim=1)


def flow(pina):
    domain, equation = pina.domain, pina.equation

    class Flow(pina.problem.SpatialProblem):
        output_variables = ["u", "v"]
        spatial_domain = domain.CartesianDomain({"theta": [-1, 2], "y": [0, 1]})
        domains = {
            "D": spatial_domain,
            "around": spatial_domain.partial(),
            "foot": domain.CartesianDomain({"theta": [-1, 2], "y": 0.0}),
            "ball": domain.EllipsoidDomain({"theta": [0, 1], "y": [0.2, 0.8]}),
        }
        conditions = {
            "inside": pina.Condition(domain="D", equation=equation.Equation(mixture)),
            "around": pina.Condition(domain="around", equation=equation.FixedValue(0.5, components=["u"])),
            "foot": pina.Condition(
                domain="foot",
                equation=equation.SystemEquation(
                    [equation.FixedValue(1.0, components=["v"]), equation.FixedGradient(0.0, components=["u"], d=["y"])]
                ),
            ),
            "ball": pina.Condition(domain="ball", equation=equation.Laplace(components=["u"], d=["theta", "y"])),
            "seen": pina.Condition(
                input=pina.LabelTensor(torch.rand(6, 2), ["theta", "y"]),
                target=pina.LabelTensor(torch.rand(6, 2), ["u", "v"]),
            ),
        }

    return Flow()


def net(inputs=2, outputs=2, width=9):
    return MLP(inputs, outputs, width=width, depth=2, generator=torch.Generator().manual_seed(1)).double()


def test_rows_are_the_residuals_and_so_are_their_gradients(pina):
    theirs, network = flow(pina), net()
    posed = po.pina.problem(theirs)
    assert posed.coords == ("x", "y")
    assert posed.fields == ("u", "v")
    system = System(posed, Solution(posed, network))
    assert all(system.engine(name).plan is not None for name in ("inside", "around", "ball", "seen"))
    for name, term in system.terms.items():
        p = term.where.sample(9, lambda n, d: sobol(n, d, seed=4))
        x = pina.LabelTensor(p.rows("xy").clone(), ["theta", "y"]).requires_grad_()
        y = pina.LabelTensor(network(x), ["u", "v"])
        condition = theirs.conditions[name]
        wanted = y - condition.target if name == "seen" else condition.equation.residual(x, y)
        wanted = wanted.as_subclass(torch.Tensor).reshape(p.number, -1)
        found = system.engine(name).residual(p)
        assert torch.allclose(found, wanted.double(), atol=1e-12), name
        gradients = [
            torch.autograd.grad(r.square().sum(), [*network.parameters()], materialize_grads=True)
            for r in (found, wanted)
        ]
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*gradients, strict=True))


def test_domains_are_boxes_faces_or_drawn(pina):
    terms = po.pina.problem(flow(pina)).terms()
    assert terms["inside"].where == Box(x=(-1.0, 2.0), y=(0.0, 1.0))
    assert terms["foot"].where == Box(x=(-1.0, 2.0), y=(0.0, 0.0))
    around = terms["around"].where.sample(40, lambda n, d: sobol(n, d, seed=1))
    assert (((around.x == -1) | (around.x == 2)) | ((around.y == 0) | (around.y == 1))).all()
    ball = terms["ball"].where
    assert isinstance(ball, Drawn)
    state = torch.get_rng_state()
    p, q = (ball.sample(20, lambda n, d: sobol(n, d, seed=1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(p.rows("xy"), q.rows("xy"))
    assert float((((p.x - 0.5) / 0.5) ** 2 + ((p.y - 0.5) / 0.3) ** 2).max()) <= 1 + 1e-6


def decay(pina, rate=1.7):
    """u' = -k u, u(0) = 1, k unknown, from ten values."""
    domain, equation = pina.domain, pina.equation
    t = torch.linspace(0.1, 1, 10)[:, None]

    def ode(x, y, parameters):
        return pina.operator.grad(y, x, components=["u"], d=["t"]) + parameters["k"] * y.extract(["u"])

    class Decay(pina.problem.TimeDependentProblem, pina.problem.InverseProblem):
        output_variables = ["u"]
        temporal_domain = domain.CartesianDomain({"t": [0, 1]})
        unknown_parameter_domain = domain.CartesianDomain({"k": [0.9, 1.1]})
        domains = {"D": temporal_domain, "start": domain.CartesianDomain({"t": 0.0})}
        conditions = {
            "D": pina.Condition(domain="D", equation=equation.Equation(ode)),
            "start": pina.Condition(domain="start", equation=equation.FixedValue(1.0)),
            "data": pina.Condition(
                input=pina.LabelTensor(t, ["t"]), target=pina.LabelTensor(torch.exp(-rate * t), ["u"])
            ),
        }

        def solution(self, pts):
            return torch.exp(-rate * pts.extract(["t"]))

    return Decay()


def test_an_unknown_parameter_is_found(pina):
    posed = po.pina.problem(decay(pina))
    assert [*posed.parameters()] == ["k"]
    assert posed.terms()["condition_data"].measured
    start = net(1, 1)
    quick = {"budget": po.Budget(gradient_evals=250), "log": po.Log(every=1000, test=64, heldout=32)}
    method = po.methods.full_implicit(po.LinearlyImplicit())
    result = po.adapt(start, posed, unknown=["k"], method=method, **quick)
    assert abs(result.coefficients["k"]["estimate"] - 1.7) < 1e-2
    p = Points(t=torch.linspace(0, 1, 5, dtype=torch.float64)[:, None])
    assert torch.allclose(posed.reference(p)[-1], torch.tensor([math.exp(-1.7)], dtype=torch.float64))


def test_a_problem_of_data_alone_needs_no_labels(pina):
    from pina.problem.zoo import SupervisedProblem

    x = torch.rand(12, 2)
    posed = po.pina.problem(SupervisedProblem(x, torch.cat([x, 2 * x], dim=1)))
    assert posed.coords == ("x", "y")
    assert posed.fields == ("u1", "u2", "u3", "u4")
    network = net(2, 4)
    found = System(posed, Solution(posed, network)).engine("condition_data").residual(posed.region.sample(12, None))
    wanted = network(x.double()) - torch.cat([x, 2 * x], dim=1)
    assert torch.allclose(found.norm(), wanted.norm())
    labelled = SupervisedProblem(pina.LabelTensor(x, ["r", "phi"]), pina.LabelTensor(x[:, :1], ["p"]))
    assert (po.pina.problem(labelled).coords, po.pina.problem(labelled).fields) == (("r", "x"), ("p",))


def test_what_is_wrong_is_a_sentence(pina):
    with pytest.raises(InputError, match="a MLP without conditions; it must be one of PINA's"):
        po.pina.problem(net())
    theirs = flow(pina)
    theirs.conditions["seen"] = SimpleNamespace(input=["a graph"], target=torch.rand(1, 2))
    with pytest.raises(InputError, match="input of condition seen is a list, not a tensor of points"):
        po.pina.problem(theirs)
    theirs = flow(pina)
    theirs.conditions["graph"] = object()
    with pytest.raises(InputError, match="condition graph is a object; possible are"):
        po.pina.problem(theirs)
