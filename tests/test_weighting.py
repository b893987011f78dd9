"""Weights of the terms of the loss: sizes against dense Jacobians, the formula, its cost, and what a run shows of it.

The dense Jacobians are ``vmap(jacrev)`` of residuals that are written out here, by the factors themselves or by whole
weights; the tangent space of the product is then projected on by P_B and P_A, without the frames of the library.
Factors, biases and the weights w_k are generic, and s is not 1.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import linalg
from torch.func import functional_call, jacrev, vmap

import pinn_odelora as po
from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.gradient import Gradient
from pinn_odelora.linearisation import Linearisation
from pinn_odelora.linearisation.sweep import Sweep
from pinn_odelora.lowrank.layer import plain_name
from pinn_odelora.objective import Batch
from pinn_odelora.sampling.batch_size import AdaptiveBatchSize
from pinn_odelora.selection.best_iterate import validation_loss
from pinn_odelora.system import draw_points
from pinn_odelora.weighting.loss_weights import LEAST, multipliers
from problems.burgers import Burgers
from problems.helmholtz import Helmholtz
from problems.kovasznay import Kovasznay

SCALE = 0.7
SOFT = {
    "burgers": Burgers(nu=0.03, conditions="soft", weights={"pde": 0.3, "ic": 2.0, "bc": 1.7}),
    "helmholtz": Helmholtz(k=2, conditions="soft", weights={"pde": 0.01, "bc": 3.0}),
    "kovasznay": Kovasznay(re=30.0, weights={"pde": 0.4, "bc": 1.3, "outflow": 5.0}),
}
METHODS = {
    "odelora": lambda: po.methods.odelora(po.LinearlyImplicit()),
    "lora_adam": po.methods.lora_adam,
    "full_adam": po.methods.full_adam,
}
FEW = po.Sampling.even(interior=60, boundary=20)


def started(problem, method, kind="ntk", seed=0, **settings):
    """An adaptation of a generic network whose factors are generic, and whose biases are trained."""
    net = po.MLP(problem.inputs, len(problem.fields), width=7, depth=3, generator=torch.Generator().manual_seed(seed))
    lora = po.LoRA(rank=2, scale=SCALE, also=("last", "biases"), start="orthonormal")
    given = {"points": FEW, "budget": po.Budget(steps=6), "log": po.Log(every=2, heldout=16, test=16)} | settings
    run = po.steps(net, problem, lora=lora, method=METHODS[method](), weighting=kind, seed=seed, device="cpu", **given)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in run.training.objective.parameters:
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return run


def batch(run, number=0):
    return Batch(number, draw_points(run.system.terms, 9, 5, seed=3))


# Dense Jacobians.


def _whole(name):
    """Whether a tensor of an adapted network is one of the plain network, too."""
    return ".lora_" not in name and ".start_" not in name


def residuals_written_out(problem, u):
    """Term -> residuals at one point x (2,), by derivatives of u(x)."""
    first, second = jacrev(u), jacrev(jacrev(u))
    value = lambda x: u(x)

    def burgers(x):
        return second(x)[0, 0, 0] * -problem.nu + first(x)[0, 1] + u(x)[0] * first(x)[0, 0]

    def helmholtz(x):
        s = torch.sin(math.pi * x[0]) * torch.sin(problem.k * math.pi * x[1])
        q = (1 - (1 + problem.k**2) * math.pi**2) * s
        return second(x)[0, 0, 0] + second(x)[0, 1, 1] + u(x)[0] - q

    def kovasznay(x):
        w, D, H = value(x), first(x), second(x)
        momentum = [w[0] * D[i, 0] + w[1] * D[i, 1] + D[2, i] - (H[i, 0, 0] + H[i, 1, 1]) / problem.re for i in (0, 1)]
        return torch.stack([*momentum, D[0, 0] + D[1, 1]])

    exact = lambda x: problem.reference(po.Points({c: x[i].view(1, 1) for i, c in enumerate(problem.coords)}))[0]
    if isinstance(problem, Burgers):
        initial = lambda x: u(x)[0] + torch.sin(math.pi * x[0])
        return {"pde": burgers, "ic": initial, "bc": lambda x: u(x)[0]}
    if isinstance(problem, Helmholtz):
        return {"pde": helmholtz, "bc": lambda x: u(x)[0]}
    return {"pde": kovasznay, "bc": lambda x: (u(x) - exact(x))[:2], "outflow": lambda x: (u(x) - exact(x))[2]}


class Dense:
    """r_k (N_k c,) and J_k (N_k c, P) by term at the points of a batch, unweighted, in the method's coordinates."""

    def __init__(self, run, points, method):
        self.run = run
        trained = {n: p.detach() for n, p in run.net.named_parameters() if p.requires_grad}
        adapted = run.training.objective.layers if method == "odelora" else {}
        net = run.net
        if adapted:
            # A plain network with the weights that the layers have now; its rows are projected below.
            net = po.MLP(run.problem.inputs, len(run.problem.fields), width=7, depth=3)
            net.load_state_dict({plain_name(n): x for n, x in run.net.state_dict().items() if _whole(n)})
            trained = {plain_name(n): x for n, x in trained.items() if _whole(n)}
            for n, layer in adapted.items():
                trained[f"{n}.weight"] = net.get_submodule(n).weight.data = layer.weight.detach()
        self.r, self.J = {}, {}
        for name in run.system.terms:
            x = torch.cat([points[name][c] for c in run.problem.coords], dim=1)
            self.r[name], J = self.rows(net, name, x, trained)
            at = lambda n: adapted.get(n.removesuffix(".weight"))
            self.J[name] = torch.cat([g.flatten(1) if not at(n) else self.projected(g, at(n)) for n, g in J.items()], 1)

    def rows(self, net, name, x, trained):
        def r(values, x):
            u = lambda x: functional_call(net, values, (x[None],))[0]
            return residuals_written_out(self.run.problem, u)[name](x).reshape(-1)

        with torch.no_grad():
            J = vmap(jacrev(r), in_dims=(None, 0))(trained, x)
            return vmap(r, in_dims=(None, 0))(trained, x).flatten(), {n: g.flatten(0, 1) for n, g in J.items()}

    @staticmethod
    def projected(D, layer):
        """P_B D + D P_A - P_B D P_A, row by row."""
        A, B = (x.detach() for x in layer.factors)
        P_B, P_A = B @ linalg.pinv(B), linalg.pinv(A) @ A
        return (P_B @ D + D @ P_A - P_B @ D @ P_A).flatten(1)

    def sizes(self, kind, points):
        number = {name: points[name].number for name in self.J}
        if kind == "ntk":
            return {name: float(J.square().sum()) / number[name] for name, J in self.J.items()}
        return {name: 2 * float((J.mT @ self.r[name]).norm()) / number[name] for name, J in self.J.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", SOFT)
def test_sizes_are_those_of_dense_jacobians_in_the_coordinates_of_the_method(problem, method):
    run = started(SOFT[problem], method)
    objective, points = run.training.objective, batch(run).points
    weights, around = objective.loss_weights, Linearisation(objective.sweep, points)
    dense = Dense(run, points, method)
    for kind in ("ntk", "gradnorm"):
        weights.settings = po.Weighting(kind)
        exact = dense.sizes(kind, points)
        assert weights.sizes(around) == pytest.approx(exact, rel=1e-11)
        # Rows that carry multipliers already say the same of the terms.
        odd = dict(zip(run.system.terms, (7.3, 0.2, 31.0), strict=False))
        assert weights.sizes(around.reweighted(odd)) == pytest.approx(exact, rel=1e-11)
        # Nor does it matter whether the pairs fit the memory.
        assert weights.sizes(Linearisation(objective.sweep, points, memory=500, chunk=4)) == pytest.approx(
            exact, rel=1e-11
        )


def test_frozen_weights_do_not_count_and_trained_ones_do():
    """With the factors alone the size is that of the factors; the last layer and biases add theirs."""
    problem = SOFT["burgers"]
    sizes = {}
    for also in ((), ("last",), ("last", "biases")):
        net = po.MLP(2, 1, width=7, depth=3, generator=torch.Generator().manual_seed(0))
        lora = po.LoRA(rank=2, also=also, start="orthonormal", start_size=0.4)
        run = po.steps(net, problem, lora=lora, weighting="ntk", points=FEW, device="cpu")
        objective, points = run.training.objective, batch(run).points
        sizes[also] = objective.loss_weights.sizes(Linearisation(objective.sweep, points))["pde"]
    factors, last, biases = sizes.values()
    assert factors < last < biases


# The formula.


def test_multipliers_make_the_sizes_equal_and_a_term_without_any_is_bounded():
    found = multipliers({"a": 1.0, "b": 3.0, "c": 0.5})
    assert found == {"a": 4.5, "b": 1.5, "c": 9.0}
    assert sum(1 / x for x in found.values()) == pytest.approx(1)
    assert multipliers({"a": 2.0, "b": 0.0}) == {"a": 1.0, "b": pytest.approx(1 / LEAST)}
    assert multipliers({"a": 0.0, "b": 0.0}) == multipliers({"a": math.nan, "b": 1.0}) == {}


@pytest.mark.parametrize("kind", ["ntk", "gradnorm"])
def test_a_renewal_keeps_a_part_of_the_former_multipliers_but_for_the_first(kind):
    run = started(SOFT["burgers"], "odelora", po.Weighting(kind, every=2, average=0.6))
    objective, seen = run.training.objective, []
    for number in range(5):
        objective.begin(batch(run, number))
        objective.linearise()
        seen.append(dict(objective.multipliers))
        with torch.no_grad():
            for p in objective.parameters:
                p *= 1.1
        sizes = objective.loss_weights.sizes(Linearisation(objective.sweep, batch(run).points))
        if number == 1:
            exact = {k: 0.6 * seen[0][k] + 0.4 * sum(sizes.values()) / x for k, x in sizes.items()}
    assert sum(1 / x for x in seen[0].values()) == pytest.approx(1, rel=1e-12)
    assert seen[0] == seen[1] != seen[2] == seen[3] != seen[4]
    assert seen[2] == pytest.approx(exact, rel=1e-12)
    assert objective.loss_weights.renewed == 3


@pytest.mark.parametrize("method", METHODS)
def test_what_a_step_minimises_is_the_sum_of_the_terms_times_their_multipliers(method):
    run = started(SOFT["kovasznay"], method)
    objective, points = run.training.objective, batch(run).points
    objective.begin(batch(run))
    at_renewal = objective()
    first = objective.first
    found = {k: float(x) for k, x in objective.multipliers.items()}
    assert min(found.values()) > 1
    terms = run.system.loss(points).terms
    exact = sum(found[k] * x for k, x in terms.items())
    gradients = torch.autograd.grad(exact, objective.parameters)
    assert float(at_renewal) == pytest.approx(exact.item(), rel=1e-12)
    assert {k: float(x) for k, x in first.terms.items()} == pytest.approx({k: x.item() for k, x in terms.items()})
    for a, b in zip(first.gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # The second request is answered from memory; at other parameters the gradient is that of autograd.
    assert objective() is at_renewal
    with torch.no_grad():
        for p in objective.parameters:
            p *= 1.01
    objective()
    terms = run.system.loss(points).terms
    moved = sum(found[k] * x for k, x in terms.items())
    plain = {k: x.item() for k, x in terms.items()}
    gradients, moved = torch.autograd.grad(moved, objective.parameters), moved.item()
    assert float(objective.last.total) == pytest.approx(moved, rel=1e-12)
    assert {k: float(x) for k, x in objective.last.terms.items()} == pytest.approx(plain, rel=1e-12)
    for a, b in zip(objective.last.gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # The same holds of residuals and of the linearisation.
    assert float(objective.residuals().square().sum() / 2) == pytest.approx(moved, rel=1e-12)
    assert float(objective.linearise().loss) == pytest.approx(moved, rel=1e-12)


def test_the_weights_of_the_problem_stay_factors():
    """λ_k do not depend on w_k, so that a term of w_k = 10 counts ten times as much."""
    found = []
    for weights in ({}, {"pde": 0.1, "ic": 10.0, "bc": 3.0}):
        run = started(replace(SOFT["burgers"], weights=weights), "odelora")
        run.training.objective.begin(batch(run))
        run.training.objective.linearise()
        found.append(run.training.objective.multipliers)
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize("memory", [2.0**30, 500], ids=["kept", "swept again"])
def test_a_reweighted_linearisation_is_one_with_these_multipliers(memory, generator):
    run = started(SOFT["kovasznay"], "odelora")
    sweep, points = run.training.objective.sweep, batch(run).points
    one, other = {"pde": 3.0, "bc": 0.4}, {"pde": 0.7, "bc": 11.0, "outflow": 2.0}
    options = {"memory": memory, "chunk": 4}
    a = Linearisation(sweep, points, multipliers=one, **options).reweighted(other)
    b = Linearisation(sweep, points, multipliers=other, **options)
    plain = Linearisation(sweep, points, **options)
    root = torch.cat(
        [torch.full((s.stop - s.start,), other[k], dtype=torch.float64) for k, s in plain.terms.items()]
    ).sqrt()
    near = lambda x, y: torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    near(a.r, root * plain.r)
    near(b.r, a.r)
    near(a.columns(), root[:, None] * plain.columns())
    near(a.kernel(), root[:, None] * plain.kernel() * root)
    w = torch.randn(a.rows, generator=generator, dtype=torch.float64)
    for found in (a, b):
        for name, exact in plain.rmatvec(root * w).items():
            near(found.rmatvec(w)[name], exact)
        for name, exact in plain.rmatvec(root**2 * plain.r).items():
            near(found.gradient()[name], exact)
            near(sum(G[name] for G in found.term_gradients().values()), exact)
        for term, rows in plain.terms.items():
            alone = torch.zeros_like(w)
            alone[rows] = plain.r[rows] * other[term]
            for name, exact in plain.rmatvec(alone).items():
                near(found.term_gradients()[term][name], exact)
    assert float(plain.loss) == pytest.approx(float(Linearisation(sweep, points).loss))


# What it costs.


@pytest.fixture
def asked(monkeypatch):
    """How often sweeps, gradients and backward passes are asked for."""
    found = {"sweeps": 0, "gradients": 0, "backward": 0}

    def counting(owner, attribute, name):
        function = getattr(owner, attribute)

        def counted(*args, **kwargs):
            found[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, counted)

    counting(Sweep, "__call__", "sweeps")
    counting(Gradient, "__call__", "gradients")
    counting(torch.autograd, "grad", "backward")
    return found


@pytest.mark.parametrize("kind", ["ntk", "gradnorm"])
def test_a_scheme_that_linearises_renews_at_every_step_without_a_further_backward_pass(kind, asked):
    passes = {}
    for weighting in ("fixed", kind):
        run = started(SOFT["burgers"], "odelora", weighting)
        records = iter(run)
        next(records)  # pairs are compared with dense rows once
        asked.update(dict.fromkeys(asked, 0))
        for _ in range(4):
            next(records)
        passes[weighting] = dict(asked)
    assert passes["fixed"] == passes[kind]
    assert passes[kind]["gradients"] == 0
    assert run.training.objective.loss_weights.renewed == 5


def test_adam_renews_by_a_linearisation_instead_of_a_gradient(asked):
    run = started(SOFT["burgers"], "lora_adam", po.Weighting("ntk", every=3), budget=po.Budget(steps=7))
    for record in run:
        assert record.gradient_evals == record.step + 1
    assert run.training.objective.loss_weights.renewed == 3
    assert asked["gradients"] == 4
    assert asked["sweeps"] == 3 * 3


def test_how_often_multipliers_are_renewed_by_default():
    every = {}
    for method in METHODS:
        run = started(SOFT["helmholtz"], method, budget=po.Budget(steps=3))
        _ = [*run]
        every[method] = run.training.objective.loss_weights.renewed
    assert every == {"odelora": 3, "lora_adam": 1, "full_adam": 1}


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_of_one_term_has_no_multipliers(method, asked):
    """Whatever the weighting, and to the last bit; nothing is linearised for it."""
    ends = []
    for kind in ("fixed", "ntk"):
        run = started(Burgers(nu=0.03), method, kind)
        records = [*run]
        assert all(record.multipliers == {} for record in records)
        ends.append([p.clone() for p in run.training.objective.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert asked["sweeps"] == 0 or method == "odelora"


# What a run shows.


def test_the_loss_of_records_and_rows_is_that_of_the_problem():
    run = started(SOFT["burgers"], "odelora")
    seen = []
    for record in run:
        terms = run.system.loss(run.training.objective.batch.points).terms
        seen.append((record, sum(terms.values())))
        assert record.loss == pytest.approx(sum(record.terms.values()), rel=1e-14)
        assert record.report.loss == pytest.approx(
            sum(record.multipliers[k] * x for k, x in record.terms.items()), rel=1e-12
        )
    run.conclude()
    rows = run.history
    for row, (record, _) in zip(rows, seen[::2], strict=False):
        assert {k: row[f"weighting/{k}"] for k in run.system.terms} == record.multipliers
    assert [row["loss"] for row in rows[:-1]] == [record.loss for record, _ in seen[::2]]
    assert rows[-1]["loss"] == pytest.approx(sum(rows[-1][f"loss/{k}"] for k in run.system.terms), rel=1e-12)
    assert {f"weighting/{k}" for k in run.system.terms} <= rows[-1].keys()


def test_the_best_iterate_is_chosen_by_the_loss_of_the_problem():
    run = started(SOFT["burgers"], "odelora")
    objective = run.training.objective
    objective.begin(batch(run))
    objective.linearise()
    assert objective.multipliers["ic"] > 2
    V = batch(run).points
    loss, effective = validation_loss(objective, V)
    assert loss == pytest.approx(run.system.loss(V).total.item())
    plain = started(SOFT["burgers"], "odelora", "fixed")
    assert (loss, effective) == validation_loss(plain.training.objective, V)


def test_the_batch_grows_by_losses_of_the_same_multipliers():
    """Multipliers that double what a step begins with are no gap: it is compared with what they were before."""
    ended, fall = 0.5, 0.8
    plain, doubled = (AdaptiveBatchSize(100, began=1.0, ended=ended) for _ in range(2))
    plain.update(fall, 0.3, 2.0, 0, 1000)
    doubled.update(9 * fall, 9 * 0.3, 2.0, 0, 1000, compared=fall)
    assert (plain.gap, plain.progress, plain.size) == (doubled.gap, doubled.progress, doubled.size)
    assert (doubled.began, doubled.ended) == (9 * fall, 9 * 0.3)


def test_a_step_tells_the_batch_what_the_multipliers_before_make_of_its_loss(monkeypatch):
    told = []
    update = AdaptiveBatchSize.update
    monkeypatch.setattr(AdaptiveBatchSize, "update", lambda *args: told.append(args[1:]) or update(*args))
    run = started(SOFT["burgers"], "odelora", po.Weighting("ntk", average=0.0))
    records = [*run]
    for (began, *_, compared), record, before in zip(told[1:], records[1:], records, strict=False):
        assert began == pytest.approx(sum(record.multipliers[k] * x for k, x in record.terms.items()), rel=1e-12)
        assert compared == pytest.approx(sum(before.multipliers[k] * x for k, x in record.terms.items()), rel=1e-12)
        assert began != compared


def test_intervals_are_those_of_the_loss_that_was_minimised(generator):
    """At a point where the weighted gradient vanishes the next step is zero; that of another loss is not."""
    from pinn_odelora.confidence import coefficient_intervals

    problem = Burgers(nu=0.03, conditions="soft")
    x, t = torch.rand(2, 60, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        u = started(problem, "odelora").solution(po.Points(x=x[:, None], t=t[:, None]))[:, 0].numpy()
    # Noise about what the network says where it starts, so that the misfit may be noise.
    noise = 0.1 * torch.randn(60, generator=generator, dtype=torch.float64).numpy()
    data = {"x": x.numpy(), "t": t.numpy(), "u": u + noise}
    run = started(problem, "odelora", data=data, unknown=["nu"], data_weight=1e3, budget=po.Budget(steps=4))
    _ = [*run]
    objective = run.training.objective
    points = objective.batch.points
    ahead = {}
    for name, given in (("weighted", objective.multipliers), ("plain", None)):
        (ahead[name],) = coefficient_intervals(objective.sweep, run.groups, points, multipliers=given).values()
    assert ahead["weighted"] != ahead["plain"]
    run.conclude()
    assert run.misfits["u"].fitted
    assert run.intervals.keys() == {"nu"}


# Refused.


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("trace", "weighting is 'trace', but it must be fixed, ntk or gradnorm."),
        (3, "weighting is 3, but it must be fixed, ntk or gradnorm."),
        (None, "weighting is None, but it must be fixed, ntk or gradnorm."),
    ],
)
def test_a_weighting_that_does_not_exist_is_one_sentence(given, sentence):
    with pytest.raises(InputError) as refused:
        started(SOFT["burgers"], "odelora", given)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("settings", "name"), [({"kind": "x"}, "kind"), ({"every": 0}, "every"), ({"average": 1.0}, "average")]
)
def test_settings_out_of_their_range_are_named(settings, name):
    with pytest.raises(RefusedValueError, match=f"^{name} is "):
        po.Weighting(**settings)


def test_lbfgs_keeps_the_curvature_of_one_loss():
    METHODS["full_lbfgs"] = po.methods.full_lbfgs
    try:
        assert started(SOFT["burgers"], "full_lbfgs", "fixed").training
        with pytest.raises(InputError, match="weighting is 'ntk', but it must be fixed with full_lbfgs, which keeps"):
            started(SOFT["burgers"], "full_lbfgs", "ntk")
    finally:
        del METHODS["full_lbfgs"]
