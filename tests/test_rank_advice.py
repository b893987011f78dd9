"""The advice on the rank: predictions are dense least squares, monotone in the rank, and what is reported follows."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from pinn_odelora import Adaptation, LoRA, Sampling, suggest_rank
from pinn_odelora.errors import InputError
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.ntk import rank as advising
from pinn_odelora.ntk.rank import RankAdvice, RankPrediction
from pinn_odelora.ntk.tangent_kernels import TangentKernels, dual_solution, effective_dimension, predicted_residual
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay
from problems.matrix_regression import MatrixRegression
from problems.matrix_sensing import MatrixSensing

FEW = Sampling(interior=60, boundary=20)


class Net(nn.Module):
    """Layers of unequal sides."""

    def __init__(self, inputs, outputs, generator, sizes=(6, 8, 7, 5)):
        super().__init__()
        sides = [inputs, *sizes, outputs]
        self.linears = nn.ModuleList(nn.Linear(a, b).double() for a, b in itertools.pairwise(sides))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) / p.shape[-1] ** 0.5

    def forward(self, x):
        *hidden, last = self.linears
        for linear in hidden:
            x = torch.tanh(linear(x))
        return last(x)


class Erf(Net):
    """An activation without jet rules."""

    def forward(self, x):
        *hidden, last = self.linears
        for linear in hidden:
            x = torch.special.erfcx(linear(x).square())
        return last(x)


ADAPTED = ["linears.1", "linears.2", "linears.3"]
ENDS = ("linears.0", "linears.4")


class Case:
    """A system at a generic network, and the Jacobian of all its weights by nested reverse mode."""

    def __init__(self, problem, generator):
        self.net = Net(problem.inputs, len(problem.fields), generator)
        self.solution = Solution(problem, self.net)
        self.system = System(problem, self.solution)
        self.points = draw_points(self.system.terms, 40, 10, seed=3)
        layers = {name: self.net.get_submodule(name) for name in (*ADAPTED, "linears.4")}
        self.others = {"linears.4.bias": self.net.linears[4].bias}
        self.linearised = Linearisation(Sweep(self.system, layers, self.others), self.points)
        self.kernels = TangentKernels(self.linearised, ADAPTED, (1, 2, 3, 5))

    def dense(self):
        """(r, J by name), J of whole weights (R, m, n)."""
        system = System(self.system.problem, self.solution, derivatives="autograd")
        tensors = {name: self.net.get_submodule(name).weight for name in (*ADAPTED, "linears.4")} | self.others
        r = system.residual_vector(self.points)
        rows = [torch.autograd.grad(x, [*tensors.values()], retain_graph=True) for x in r]
        return r.detach(), {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(tensors)}


@pytest.fixture(params=[Burgers(nu=0.03), Kovasznay()], ids=["burgers", "kovasznay"])
def case(request, generator):
    return Case(request.param, generator)


def tangent_basis(W, r):
    """Orthonormal matrices that span the tangent space at the best rank-r approximation of W, without frames: the
    range of the projection P_U D + D P_V - P_U D P_V."""
    U, _, V = torch.linalg.svd(W)
    P, Q = U[:, :r] @ U[:, :r].mT, V[:r].mT @ V[:r]
    units = torch.eye(W.numel(), dtype=W.dtype).view(-1, *W.shape)
    images = (P @ units + units @ Q - P @ units @ Q).flatten(1)
    values, vectors = torch.linalg.eigh(images)
    assert int((values > 0.5).sum()) == r * (sum(W.shape) - r)
    return vectors[:, values > 0.5]


def stacked_residual(J, r, mu):
    """√ of the minimum of ‖r + J z‖² + μ‖z‖² by numpy's least squares, over ‖r‖."""
    A = np.vstack([J, math.sqrt(mu) * np.eye(J.shape[1])])
    b = -np.concatenate([r, np.zeros(J.shape[1])])
    z, *_ = np.linalg.lstsq(A, b, rcond=None)
    return float(np.linalg.norm(A @ z - b) / np.linalg.norm(r)), z


@pytest.mark.parametrize("ranks", [(2, 3, 1), (5, 1, 2)])
def test_the_predicted_residual_is_that_of_dense_least_squares(case, ranks):
    r, J = case.dense()
    chosen = dict(zip(ADAPTED, ranks, strict=True))
    columns = [J[n].flatten(1) @ tangent_basis(case.net.get_submodule(n).weight.detach(), k) for n, k in chosen.items()]
    columns += [J["linears.4"].flatten(1), J["linears.4.bias"].flatten(1)]
    whole = torch.cat([x.flatten(1) for x in J.values()], dim=1)
    for mu in (1e-1, 1e-5):
        expected, _ = stacked_residual(torch.cat(columns, dim=1).numpy(), r.numpy(), mu)
        assert predicted_residual(case.kernels.kernel(chosen), case.kernels.r, mu) == pytest.approx(expected, rel=1e-7)
        expected, z = stacked_residual(whole.numpy(), r.numpy(), mu)
        assert predicted_residual(case.kernels.full, case.kernels.r, mu) == pytest.approx(expected, rel=1e-7)
        w = dual_solution(case.kernels.full, case.kernels.r, mu)
        assert np.allclose(-(whole.mT @ w).numpy(), z, rtol=1e-5, atol=1e-6 * np.abs(z).max())


def test_a_higher_rank_of_any_layer_leaves_no_more(case):
    lower = dict.fromkeys(ADAPTED, 1)
    for mu in (1e-1, 1e-4, 1e-7):
        q = lambda ranks, mu=mu: predicted_residual(case.kernels.kernel(ranks), case.kernels.r, mu)
        for name, (r, more) in itertools.product(ADAPTED, itertools.pairwise((1, 2, 3, 5))):
            assert q(lower | {name: more}) <= q(lower | {name: r}) * (1 + 1e-9)
        all_ranks = [q(dict.fromkeys(ADAPTED, r)) for r in (1, 2, 3, 5)]
        assert all_ranks == sorted(all_ranks, reverse=True)
        assert all_ranks[0] > 1.001 * all_ranks[-1]
        assert predicted_residual(case.kernels.full, case.kernels.r, mu) <= all_ranks[-1] * (1 + 1e-9)


def test_the_effective_dimension_counts_the_eigenvalues_above_the_penalty(case):
    K = case.kernels.full
    spectrum = torch.linalg.eigvalsh(K)
    for mu in (1e-1, 1e-4):
        expected = float(torch.trace(torch.linalg.solve(K + mu * torch.eye(len(K), dtype=K.dtype), K)))
        assert effective_dimension(spectrum, mu) == pytest.approx(expected, rel=1e-6)
    steps = torch.tensor([-5e-5, 1e-9, 1e-8, 1.0, 10.0, 1e3], dtype=torch.float64)
    assert effective_dimension(steps, 1e-4) == pytest.approx(3, abs=1e-3)


# The advice.


@pytest.fixture(scope="module")
def advised():
    generator = torch.Generator().manual_seed(4)
    net = Net(2, 1, generator)
    before = copy.deepcopy(net.state_dict())
    advice = suggest_rank(net, Burgers(nu=0.03), points=FEW)
    assert all(torch.equal(before[name], x) for name, x in net.state_dict().items())
    assert not any("lora" in name for name in net.state_dict())
    return net, advice


def test_the_advice_is_about_the_ranks_that_fit_and_their_prices(advised):
    _, advice = advised
    assert [x.rank for x in advice.predictions] == [1, 2, 4]  # the smallest side is 5
    for x in advice.predictions:
        assert x.dimension == sum(x.rank * (a + b - x.rank) for a, b in ((6, 8), (8, 7), (7, 5))) + 18 + 6
        assert x.fraction == pytest.approx(math.log(x.residual) / math.log(advice.residual))
        assert x.price == pytest.approx(x.seconds * math.exp(8 * (1 - x.fraction)))
        assert x.seconds > 0
    residuals = [x.residual for x in advice.predictions]
    assert 1 > residuals[0] > residuals[1] > residuals[2] >= advice.residual > 0
    assert advice.rank == min(advice.predictions, key=lambda x: x.price).rank
    assert 0 < advice.effective_dimension < advice.residuals == 800
    assert advice.one_sweep


@pytest.mark.parametrize(("seconds", "best"), [((1e-4, 1, 1), 1), ((1, 1e-4, 1), 2), ((1, 1, 1), 4)])
def test_the_rank_with_the_smallest_price_is_advised(seconds, best, generator, monkeypatch):
    takes = dict(zip((1, 2, 4), seconds, strict=True))
    monkeypatch.setattr(advising, "_seconds", lambda run, clock: takes[run.rank])
    advice = suggest_rank(Net(2, 1, generator), Burgers(nu=0.03), points=FEW)
    assert [x.seconds for x in advice.predictions] == [*seconds]
    assert advice.rank == best


def test_the_model_is_where_it_was_after_its_solution_was_put_into_the_network(generator):
    run = Adaptation(Net(2, 1, generator), Burgers(nu=0.03), rank=1, points=FEW)
    model = advising._Model(run, (1, 2), lambda line: None)
    before = [p.detach().clone() for p in run.net.parameters()]
    assert model.reached() == model.reached()
    assert all(torch.equal(x, p) for x, p in zip(before, run.net.parameters(), strict=True))


def test_the_smallest_ranks_meet_the_tolerance_and_none_can_be_lowered(advised):
    net, advice = advised
    one, two, four = (x.residual for x in advice.predictions)
    for tolerance, expected in (((one + two) / 2, 2), ((two + four) / 2, 4), (1.5 * one, 1)):
        found = suggest_rank(net, Burgers(nu=0.03), points=FEW, tolerance=tolerance)
        assert found.tolerance == tolerance
        assert found.sufficient == expected
        assert {*found.layers} == {*ADAPTED}
        assert max(found.layers.values()) == expected
        q = model_residual(net, found.layers)
        assert q <= tolerance
        for name, rank in found.layers.items():
            if rank > 1:
                assert model_residual(net, found.layers | {name: rank // 2}) > tolerance
    impossible = suggest_rank(net, Burgers(nu=0.03), points=FEW, tolerance=0.9 * advice.residual)
    assert (impossible.sufficient, impossible.layers) == (None, {})
    assert "no rank does" in str(impossible)
    assert advice.tolerance == pytest.approx(2 * advice.residual)


def model_residual(net, ranks):
    """q of the linearised model by a route of its own: columns of whole weights, projected on tangent spaces."""
    problem = Burgers(nu=0.03)
    system = System(problem, Solution(problem, net))
    sampler = Sampler(system.terms, FEW, {name: system.components(name) for name in system.terms}, 0)
    layers = {name: net.get_submodule(name) for name in (*ENDS, *ADAPTED)}
    sweep = Sweep(system, layers, {f"{name}.bias": net.get_submodule(name).bias for name in ENDS})
    linearised = Linearisation(sweep, sampler.validation(800))
    J = linearised.columns()
    mu = 1e-12 * float(torch.linalg.matrix_norm(J @ J.mT, 2))
    parts, at = [], 0
    for name, layer in layers.items():
        own = J[:, at : (at := at + layer.weight.numel())]
        parts.append(own @ tangent_basis(layer.weight.detach(), ranks[name]) if name in ranks else own)
    q, _ = stacked_residual(torch.cat([*parts, J[:, at:]], dim=1).numpy(), linearised.r.numpy(), mu)
    return q


def test_the_residual_reached_is_that_of_the_network_at_the_solution_of_the_model(generator):
    """A problem that is linear in its weight is solved where the model says; a small jump nearly so."""
    problem = MatrixSensing(rows=6, columns=5, rank=2, measurements=60)
    net = matrix_net(problem)
    advice = suggest_rank(net, problem, lora=LoRA(targets="*", also=()), points=Sampling.fixed())
    # q holds the penalty, too.
    assert advice.reached <= advice.residual * (1 + 1e-6)
    assert advice.reached < 1e-4
    assert "holds that far" in str(advice)
    far = suggest_rank(Net(2, 1, generator), Burgers(nu=0.03), points=FEW)
    assert far.reached > 2 * far.residual
    assert "does not hold that far" in str(far)


def matrix_net(problem):
    from pinn_odelora.nets import MatrixFunctional

    return MatrixFunctional(problem.at_source()).double()


def test_biases_and_targets_are_taken_from_the_settings(generator):
    net = Net(2, 1, generator)
    only = suggest_rank(
        net, Burgers(nu=0.03), lora=LoRA(targets="linears.2", also=("biases",)), points=FEW, ranks=[3, 2]
    )
    assert [x.rank for x in only.predictions] == [2, 3]
    biases = 6 + 8 + 7 + 5 + 1
    assert [x.dimension for x in only.predictions] == [2 * (15 - 2) + biases, 3 * (15 - 3) + biases]
    assert {*only.layers} <= {"linears.2"}
    full = suggest_rank(net, Burgers(nu=0.03), points=FEW, ranks=[2])
    assert only.residual > full.residual


def test_a_step_is_timed_on_a_batch_as_large_as_its_rank_needs(generator):
    """Scalar equation, 4,000 points drawn: 5 residuals a coordinate, or the smallest sufficient batch where that stays
    under-determined; a clock that counts its own readings shows which steps are timed."""
    net = Net(2, 1, generator, sizes=(24, 40, 40, 24))
    ticks = itertools.count()
    advice = suggest_rank(net, Burgers(nu=0.03), ranks=[1, 4, 12], clock=lambda: float(next(ticks)), points=Sampling())
    batches = {x.dimension: x.batch for x in advice.predictions}
    assert [*batches] == [2 * 63 + 79 + 97, 4 * (2 * 60 + 76) + 97, 12 * (2 * 52 + 68) + 97]
    assert [*batches.values()] == [5 * 302, 4000, 800]
    assert all(x.seconds >= 1 for x in advice.predictions)
    assert all(
        x.batch == 60 for x in suggest_rank(net, Burgers(nu=0.03), points=Sampling.fixed(60), ranks=[1, 2]).predictions
    )


def test_what_the_first_and_slow_steps_take_does_not_count(monkeypatch):
    class Run:
        failure = None

        def __init__(self, ends):
            self.training = self
            self.ends = ends

        def __iter__(self):
            return (type("Record", (), {"seconds": t})() for t in self.ends)

    assert advising._seconds(Run([5.0, 5.25, 7.0]), None) == 0.25
    with pytest.raises(InputError, match="the first step of the adaptation fails"):
        advising._seconds(Run([]), None)


class Apart(Net):
    """A weight that is used outside its layer, too."""

    def forward(self, x):
        return super().forward(x) + 0.01 * self.linears[1].weight.sum()


@pytest.mark.parametrize(("net", "one_sweep"), [(Apart, False), (Erf, True)])
def test_a_jacobian_that_is_formed_row_by_row_is_named(net, one_sweep, generator):
    said, net = [], net(2, 1, generator, sizes=(4, 5, 4))
    advice = suggest_rank(net, Burgers(nu=0.03), points=FEW, ranks=[1], say=said.append)
    assert advice.one_sweep == one_sweep
    slower = "The Jacobian of some residuals is formed row by row, which takes longer."
    assert said == ([] if one_sweep else [slower])


def test_jets_and_reverse_mode_predict_the_same(generator):
    tanh = Net(2, 1, generator, sizes=(4, 5, 4))
    a = suggest_rank(tanh, Burgers(nu=0.03), points=FEW, ranks=[1], derivatives="autograd")
    b = suggest_rank(tanh, Burgers(nu=0.03), points=FEW, ranks=[1])
    assert a.one_sweep
    assert b.one_sweep
    assert a.predictions[0].residual == pytest.approx(b.predictions[0].residual, rel=1e-4)


def test_the_price_weighs_seconds_against_digits():
    base = RankPrediction(4, 100, 0.01, 0.9, 800, 0.1)
    cheap = dataclasses.replace(base, rank=2, fraction=0.8, seconds=0.05)
    assert base.price / cheap.price == pytest.approx(2 * math.exp(-0.8))
    advice = RankAdvice(4, (cheap, base), 0.1, 2, {"a": 1, "b": 2}, 0.01, 5.0, 17.4, 800, True)
    lines = str(advice).splitlines()
    assert lines[0].split() == ["rank", "coordinates", "predicted", "residual", "gained", "batch", "seconds/step"]
    assert lines[1].split() == ["2", "100", "1.00e-02", "80%", "800", "0.050"]
    assert lines[2].endswith("best at equal seconds")
    assert lines[3:] == [
        "Rank 4 is best at equal seconds, by prediction.",
        "To leave 0.1 of the residual in the linearised model: rank 2 is the smallest that does; by layer a 1, b 2.",
        "All weights leave 0.01 there, the network itself 5: the model does not hold that far: it compares ranks.",
        "The kernel has 800 rows and effective dimension 17.",
    ]


def test_the_picture_is_drawn(advised, tmp_path):
    from PIL import Image

    _, advice = advised
    advice.plot(tmp_path / "ranks.png")
    with Image.open(tmp_path / "ranks.png") as image:
        assert min(image.size) > 300


def test_measured_values_are_among_the_residuals(generator):
    net, x = Net(2, 1, generator), torch.linspace(-0.9, 0.9, 30, dtype=torch.float64)
    measured = {"x": x, "t": 0.3 + 0 * x, "u": torch.sin(x), "weight": 1 + x.square()}
    data = {name: values.numpy() for name, values in measured.items()}
    advice = suggest_rank(net, Burgers(nu=0.03), points=FEW, ranks=[1, 2], data=data, data_weight=3.0)
    without = suggest_rank(net, Burgers(nu=0.03), points=FEW, ranks=[1, 2])
    assert (advice.residuals, without.residuals) == (830, 800)
    assert advice.predictions[0].residual > without.predictions[0].residual  # more to fit with the same coordinates


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tolerance": 0}, "tolerance is 0, but it must be a finite number above 0 or None."),
        ({"tolerance": -0.1}, "tolerance is -0.1, but it must be a finite number above 0 or None."),
        ({"ranks": []}, "ranks is empty, but there must be one to compare."),
        ({"ranks": [2, 9]}, "ranks is 9, but it must be at most 7 for layer linears.2 of shape (7, 8)."),
        ({"ranks": [0]}, "ranks is 0, but it must be a whole number of at least 1."),
        ({"lora": LoRA(start="zero")}, "start is 'zero', but it must be pissa, from which"),
        ({"derivatives": "jet"}, "jet"),
    ],
)
def test_invalid_input_is_one_sentence(settings, sentence, generator):
    with pytest.raises(InputError) as refused:
        suggest_rank(Net(2, 1, generator), Burgers(nu=0.03), points=FEW, **settings)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_that_does_not_fit_and_a_solved_problem_are_refused(generator):
    with pytest.raises(InputError, match="the network maps inputs"):
        suggest_rank(Net(2, 3, generator), Burgers(nu=0.03))
    with pytest.raises(InputError, match="not a torch module"):
        suggest_rank("net", Burgers(nu=0.03))
    huge = Net(2, 1, generator)
    huge.linears[4].weight.data *= 1e200
    with pytest.raises(InputError, match="the residual at the pretrained network is NaN or infinite"):
        suggest_rank(huge, Burgers(nu=0.03), points=FEW)
    problem = MatrixRegression(rows=6, columns=5, rank=2)
    net = matrix_net(problem)
    net.W.weight.data = problem.matrix
    with pytest.raises(InputError, match="the residual vanishes at the pretrained network"):
        suggest_rank(net, problem, lora=LoRA(targets="*", also=()), points=Sampling.fixed())
