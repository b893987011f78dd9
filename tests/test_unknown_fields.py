"""Unknown fields of an equation: their derivatives and Jacobian are exact, and they are found from measurements."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from test_resume import stop_at

import pinn_odelora as po
from pinn_odelora.__main__ import evaluated
from pinn_odelora.config import begin
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.errors import InputError
from pinn_odelora.field_networks import FieldNetwork, field_networks
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Box
from pinn_odelora.linearisation import Coordinates, Linearisation, Sweep
from pinn_odelora.nets import MLP
from pinn_odelora.objective import variables_of
from pinn_odelora.points import Points
from pinn_odelora.pretraining.pretrain import unseen_error
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.unknown_fields import extended, unknown_field

BOX = Box(x=(0, 2), t=(-1, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(Problem):
    """u_t = (k u_x)_x + q with k(x) and q(x, t)."""

    coords, fields, supports = ("x", "t"), ("u",), ("soft",)
    region = BOX
    k = unknown_field("x", guess=1.5, above=0.5)
    q = unknown_field("xt", guess=-2.0, width=3, depth=1)

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_t - f.k * f.u_xx - f.k_x * f.u_x - f.q)}


def generic(generator):
    """A solution with generic unknown fields."""
    net = MLP(2, 1, width=5, depth=2, generator=generator)
    solution = Solution(Flow(), net, unknown_fields=field_networks(Flow()))
    with torch.no_grad():
        for x in solution.unknown_fields.parameters():
            x += 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return solution


def test_fields_begin_as_the_guess_and_depend_on_their_coordinates_alone(generator):
    p = BOX.sample(20, lambda n, d: torch.rand(n, d, generator=generator, dtype=torch.float64))
    start = extended(Solution(Flow(), MLP(2, 1), unknown_fields=field_networks(Flow())), Flow.unknown_fields())(p)
    torch.testing.assert_close(start[:, 1:], torch.tensor([[1.5, -2.0]]).double().expand(20, 2))
    found = generic(generator)
    k = found.unknown_fields["k"]
    assert (k(p) > 0.5).all()
    assert torch.equal(k(p), k(Points(p | {"t": p.t + 1})))
    assert k(p).std() > 0.01


def test_residual_and_jacobian_are_those_of_reverse_mode(generator):
    """Structured by jets, row by row by nested reverse mode; with all networks trained."""
    solution = generic(generator)
    known = variables_of(solution, [*solution.parameters()], {})
    J = {}
    for engine in ("jets", "autograd"):
        system = System(Flow(), solution, derivatives=engine)
        points = draw_points(system.terms, 7, 3, seed=1)
        sweep = Sweep(system, *known)
        assert sweep.paired("pde")
        around = Linearisation(sweep, points)
        J[engine] = torch.cat([around.r[:, None], Coordinates(around, {}).dense()], dim=1)
    torch.testing.assert_close(J["jets"], J["autograd"], rtol=1e-9, atol=1e-11)
    q_columns = sum(x.numel() for x in solution.unknown_fields.parameters())
    assert J["jets"].shape[1] == 1 + sum(x.numel() for x in solution.net.parameters()) + q_columns


def test_the_smoothing_term_is_the_mean_square_of_scaled_slopes(generator):
    network = generic(generator).unknown_fields["q"]
    p = BOX.sample(9, lambda n, d: torch.rand(n, d, generator=generator, dtype=torch.float64))
    f = AutogradField(network, p, ("q",), ("x", "t"))
    for along, column in zip("xt", network.smoothness("q")(f), strict=True):
        h = 1e-5
        near, far = (network(Points(p | {along: p[along] + s * h})) for s in (1, -1))
        torch.testing.assert_close(column, 2 / 2 * (near - far) / (2 * h), rtol=1e-6, atol=1e-8)


def test_what_cannot_be_an_unknown_field(generator):
    with pytest.raises(InputError, match=r"guess is 0\.0"):
        unknown_field("x", guess=0, above=0)
    with pytest.raises(InputError, match="smoothing is -1"):
        unknown_field("x", guess=1, smoothing=-1)
    line = {"coords": "x", "region": Box(x=(0, 1)), "pde": lambda f: f.u_x - f.q}
    with pytest.raises(InputError, match=r"Unknown coordinate of the unknown field q: 'y'; allowed: x"):
        po.problem(**line, q=po.unknown_field("y", guess=1))
    with pytest.raises(InputError, match="u is a field, so no unknown field may have that name"):
        po.problem(**line, u=po.unknown_field("x", guess=1))
    posed = po.problem(**line, q=po.unknown_field("x", guess=1))
    net = MLP(1, 1, width=4, depth=3)
    with pytest.raises(InputError, match="q is unknown, but there are no measurements to find it from"):
        po.steps(net, posed)
    idle = po.problem(coords="x", region=Box(x=(0, 1)), pde=lambda f: f.u_x - 1, q=po.unknown_field("x", guess=1))
    data = {"x": [0.0, 1.0], "u": [0.0, 1.0]}
    with pytest.raises(InputError, match="q is unknown, but no residual of this problem depends on it"):
        po.steps(net, idle, data=data)
    with pytest.raises(InputError, match="q is unknown, but only an implicit scheme can find it"):
        po.steps(net, posed, data=data, method=po.methods.lora_adamw())
    with pytest.raises(InputError, match="q is an unknown field, which a linearised model cannot have"):
        po.linearised(net, posed)
    of_c = po.problem(**line | {"pde": lambda f, c: f.u_x - c * f.q}, q=posed.q, c=po.parameter(1.0, 2.0))
    with pytest.raises(InputError, match="q is an unknown field, which a family cannot have"):
        po.family(net, of_c, c=(1.0, 2.0))


LINE = Box(x=(0, 1))


def diffusivity(x):
    return 1 + 0.5 * torch.sin(2 * math.pi * x)


def diffusion():
    """-(k u')' = f with u = sin πx + x."""

    def f(x):
        slope, bend = math.pi * torch.cos(math.pi * x) + 1, -(math.pi**2) * torch.sin(math.pi * x)
        return -math.pi * torch.cos(2 * math.pi * x) * slope - diffusivity(x) * bend

    return po.problem(
        coords="x",
        region=LINE,
        k=po.unknown_field("x", guess=1.0, above=0),
        pde=lambda F: F.k * F.u_xx + F.k_x * F.u_x + f(F.x),
        bc=(LINE.boundary("x"), lambda F: F.u - F.x),
    )


def values(noise=0.0):
    x = np.linspace(0.01, 0.99, 60)
    u = np.sin(math.pi * x) + x
    return {"x": x, "u": u + noise * math.sqrt((u**2).mean()) * np.random.default_rng(0).normal(size=60)}


def error_of(field, exact, *axes):
    found, true = field(*axes), exact(*map(torch.as_tensor, axes)).numpy()
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def test_a_run_with_an_unknown_field_is_saved_and_read(tmp_path):
    """A few steps: the field moves from the guess, and comes back from the folder as it was."""
    posed, net = diffusion(), MLP(1, 1, width=8, depth=3)
    result = po.adapt(net, posed, data=values(), budget=po.Budget(steps=3), log=po.Log(estimate=False))
    k = result.unknown_fields["k"]
    x = np.linspace(0, 1, 7)
    assert np.abs(k(x) - 1).max() > 0.01
    assert result.history[-1]["loss/smooth_k"] > 0
    assert result.summary["unknown_fields"]["k"] == k.summary()
    assert re.search(r"k\(x\) from .* to .*, mean .* \(fields have no interval\)", result.outcome())
    result.save(tmp_path / "run")
    assert (tmp_path / "run" / "k.png").stat().st_size > 0
    again = po.load(tmp_path / "run", net=net, problem=posed)
    np.testing.assert_array_equal(again.unknown_fields["k"](x), k(x))
    np.savez(tmp_path / "points.npz", x=x)
    with np.load(evaluated(again, tmp_path / "points.npz", None)) as written:
        np.testing.assert_array_equal(written["k"], k(x))
    assert isinstance(k.network, FieldNetwork)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sourced(Problem):
    """-u'' = q(x), u(0) = u(1) = 0; q = π² sin πx, and the guess 8 has another solution."""

    coords, supports, enforced = ("x",), ("hard", "soft"), ("bc",)
    region = LINE
    q = unknown_field("x", guess=8.0, width=6)

    def terms(self):
        return {"pde": Term(LINE, lambda f: f.u_xx + f.q), "bc": Term(LINE.boundary("x"), lambda f: f.u)}

    def reference(self, p):
        return torch.sin(math.pi * p.x)

    def ansatz(self, p):
        return 0 * p.x, p.x * (1 - p.x)


class Aware(Sourced):
    """With the solution of the guess, 4 x (1 - x), too."""

    def reference(self, p):
        return 4 * p.x * (1 - p.x) if self.role == "source" else super().reference(p)


class Wrong(Sourced):
    def reference(self, p):
        return 5 * p.x * (1 - p.x) if self.role == "source" else super().reference(p)


def test_a_reference_is_that_of_the_field_sought():
    """At the source there is another field, the guess, of which a reference has to be told apart."""
    p = LINE.sample(5, lambda n, d: torch.rand(n, d, dtype=torch.float64))
    for cls, known in ((Sourced, False), (Aware, True)):
        problem = cls()
        assert torch.equal(problem.known_reference(p), torch.sin(math.pi * p.x))
        source = problem.at_source()
        assert (source.known_reference(p) is not None) == known
        error = unseen_error(System(source, Solution(source, MLP(1, 1, width=4, depth=3))), 0)()
        assert math.isfinite(error) == known


def test_what_a_reference_does_not_tell_is_unknown_to_a_check():
    for cls, verdict in ((Sourced, "unknown"), (Aware, "unknown"), (Wrong, "fails")):
        found = {row.what: row.verdict for row in po.check(cls()).rows}
        assert found["pde at the reference"] == verdict
        assert found["bc at the reference"] == "holds"
        # With the solution of the guess, the equation is checked at the source.
        assert ("signs in pde" in found) == (cls is not Sourced)
    said = {row.what: row.said for row in po.check(Sourced()).rows}["pde at the reference"]
    assert said.startswith("it reads q, of which the reference does not tell the values (")


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
def test_an_interrupted_run_of_the_command_line_finds_the_same_field(compose, run, tmp_path, monkeypatch):
    x = np.linspace(0.05, 0.95, 10)
    np.savetxt(tmp_path / "u.csv", np.stack([x, np.sin(math.pi * x)], 1), delimiter=",", header="x,u", comments="")
    common = [
        *("problem._target_=test_unknown_fields.Sourced", f"data.file={tmp_path / 'u.csv'}", "points.interior=20"),
        *("budget.steps=8", "log.every=2", "checkpoint.every=3", "log.estimate=false"),
    ]
    whole = run(compose(*common, f"output_dir={tmp_path / 'whole'}"))
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        run(compose(*common, f"output_dir={tmp_path / 'parts'}"))
    resumed = run(begin(compose(f"resume={tmp_path / 'parts'}", "trust=test_unknown_fields"))[0])
    found, again = (done.result.unknown_fields["q"](x) for done in (whole, resumed))
    np.testing.assert_array_equal(found, again)
    assert np.abs(found - 8).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "weight", "most"), [(0.0, 10.0, 2e-2), (0.01, 1.0, 0.15)])
def test_a_diffusivity_is_found(noise, weight, most):
    posed = diffusion()
    net = po.pretrain(posed.at_source(), MLP(1, 1, width=20, depth=3))
    points, budget = po.Sampling(interior=200, boundary=50), po.Budget(gradient_evals=300)
    result = po.adapt(net, posed, rank=8, data=values(noise), data_weight=weight, points=points, budget=budget)
    assert error_of(result.unknown_fields["k"], diffusivity, np.linspace(0, 1, 400)) < most


@pytest.mark.slow
def test_a_source_is_found():
    """q(x) in u_t = u_xx / 10 + q from 100 exact values of u, a series of sines."""
    box = Box(x=(0, 1), t=(0, 1))
    source = lambda x: x * torch.exp(-3 * x) * 5
    # u = Σ_n a_n(t) sin nπx with a_n' = -λ_n a_n + q_n.
    s = torch.linspace(0, 1, 4001, dtype=torch.float64)
    n = torch.arange(1, 200, dtype=torch.float64)
    modes = torch.trapezoid(2 * source(s) * torch.sin(math.pi * n[:, None] * s), s, dim=1)
    rate = 0.1 * (math.pi * n) ** 2
    rng = np.random.default_rng(1)
    x, t = rng.uniform(0.02, 0.98, 100), rng.uniform(0.05, 1, 100)
    X, T = torch.as_tensor(x)[:, None], torch.as_tensor(t)[:, None]
    u = (torch.sin(math.pi * n * X) * modes * (1 - torch.exp(-rate * T)) / rate).sum(dim=1).numpy()
    posed = po.problem(
        coords="xt",
        region=box,
        q=po.unknown_field("x", guess=0.5),
        pde=lambda f: f.u_t - 0.1 * f.u_xx - f.q,
        ic=(box.face(t=0.0), lambda f: f.u),
        bc=(box.boundary("x"), lambda f: f.u),
    )
    net = po.pretrain(posed.at_source(), MLP(2, 1, width=20, depth=3))
    data, budget = {"x": x, "t": t, "u": u}, po.Budget(gradient_evals=300)
    result = po.adapt(net, posed, rank=8, data=data, data_weight=10.0, budget=budget)
    assert error_of(result.unknown_fields["q"], source, np.linspace(0, 1, 400)) < 5e-2
