"""A rank that follows the gradient: growth keeps the function, truncation says what it loses, and the rank is found."""

import json
import math
import re
import signal
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import linalg, nn
from toys import normal

from pinn_odelora import load, loop
from pinn_odelora.config.build import experiment
from pinn_odelora.errors import InputError
from pinn_odelora.flows import balanced_flow, gradient_flow
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.start import pissa
from pinn_odelora.manifolds.factors import Factors, balance_defect
from pinn_odelora.manifolds.fixed_rank import low_rank
from pinn_odelora.optim import ODELoRA
from pinn_odelora.runs.history import History
from pinn_odelora.selection.best_iterate import BestIterate
from pinn_odelora.selection.rank import (
    SEEN,
    AdaptiveRank,
    RankAdaptation,
    dimension,
    grow,
    leading,
    outside,
    share,
    truncate,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")

M, N, R, SCALE = 9, 7, 3, 0.6
ADAPTIVE = ["lora.rank=adaptive"]
SENSING = [
    *("problem=matrix_sensing", "problem.rows=12", "problem.columns=12", "problem.condition=2"),
    *(*ADAPTIVE, "lora.adaptive.max=8", "problem.measurements=600", "pretrain.adam_steps=0"),
]
EULER = ("integrator=euler", "method.chart=manifold", "integrator.h=0.4")


def layer_at(generator, balanced, rank=R):
    """A layer away from its start, of generic factors."""
    factors = lambda: Factors(normal(rank, N, generator=generator), normal(M, rank, generator=generator))
    base = nn.Linear(N, M, dtype=torch.float64)
    layer = LowRankLinear(base, factors(), SCALE)
    y = factors()
    if balanced:
        y = low_rank(y, SCALE).factors(SCALE)
    layer.reshape(y, layer.start)
    return layer


def dense_outside(W, rank, G):
    """The normal part from the orthogonal complements of the singular spaces, by full decompositions."""
    U, _, V = linalg.svd(W)
    left, right = U[:, rank:], V[rank:]
    return left @ (left.mT @ G @ right.mT) @ right


# Growth.


@pytest.mark.parametrize("balanced", [True, False], ids=["manifold", "factors"])
@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("number", [1, 3])
def test_growth_keeps_the_function_and_adds_singular_values(balanced, size, number, generator):
    layer = layer_at(generator, balanced)
    before, x = layer.weight.detach().clone(), normal(5, N, generator=generator)
    output, sigma = layer(x).detach(), low_rank(layer.factors, SCALE).sigma
    product = (SCALE * layer.B @ layer.A).detach()
    parameters = [layer.A, layer.B]
    part = leading(outside(low_rank(layer.factors, SCALE), normal(M, N, generator=generator)), number)
    taken = size * float(sigma[-1]) * torch.linspace(1, 0.3, number, dtype=torch.float64)
    grow(layer, part._replace(sigma=taken))
    assert layer.rank == R + number
    assert layer.A is parameters[0]
    assert layer.B is parameters[1]
    assert (layer.weight - before).abs().max() < 1e-14
    assert (layer(x) - output).abs().max() < 1e-13
    found = low_rank(layer.factors, SCALE).sigma
    assert torch.allclose(found, torch.cat([sigma, taken]), rtol=1e-12, atol=0)
    # The product does move, by the part that it took over.
    moved = linalg.matrix_norm(SCALE * layer.B @ layer.A - product)
    assert torch.allclose(moved, linalg.vector_norm(taken), rtol=1e-9)
    if balanced:
        assert balance_defect(layer.factors) < 1e-13


@pytest.mark.parametrize("directions", ["gradient", "weight"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_new_directions_lead_the_outer_part_of_gradient_or_weight(directions, number, generator):
    layer = layer_at(generator, balanced=True)
    W, G = (SCALE * layer.B @ layer.A).detach(), normal(M, N, generator=generator)
    held = (layer.weight - W).detach()
    ranks = RankAdaptation(AdaptiveRank(start=R, max=R + number, directions=directions), {"one": layer})
    changes = [ranks.update({"one": G}) for _ in range(SEEN)]
    assert changes == [False] * (SEEN - 1) + [True]
    assert layer.rank == R + number
    u, s, v = linalg.svd(dense_outside(W, R, G if directions == "gradient" else held))
    y = low_rank(layer.factors, SCALE)
    smallest = linalg.svdvals(W)[R - 1 : R].expand(number)
    given = smallest if directions == "gradient" else s[:number]
    assert torch.allclose(y.sigma.sort().values, torch.cat([linalg.svdvals(W)[:R], given]).sort().values)
    # The new directions are what the bases have gained.
    u, v = u[:, :number], v[:number]
    assert torch.allclose(y.U @ (y.U.mT @ u), u, atol=1e-12)
    assert torch.allclose((v @ y.V.mT) @ y.V, v, atol=1e-12)
    old = linalg.svd(W)
    assert (old.U[:, :R].mT @ u).abs().max() < 1e-12
    assert (old.Vh[:R] @ v.mT).abs().max() < 1e-12
    if directions == "gradient":
        # What is outside now has lost its leading singular values, and nothing else.
        now, rest = outside(y, G), s[number:].square().sum()
        assert torch.allclose(linalg.matrix_norm(now).square(), rest, rtol=1e-12)
        assert share(now, G) == pytest.approx(float((rest / G.square().sum()).sqrt()), rel=1e-12)


def test_growth_goes_on_where_pissa_has_stopped(generator):
    """From the start, directions of the weight are those of a larger rank; and none where nothing is frozen."""
    base = nn.Linear(N, M, dtype=torch.float64)
    start = lambda rank: pissa(base.weight, rank, SCALE, generator)
    layer, larger = (LowRankLinear(base, start(rank), SCALE) for rank in (R, 2 * R))
    for rank in (2 * R, N, N):
        ranks = RankAdaptation(AdaptiveRank(start=R, outside=0), {"one": layer})
        for _ in range(SEEN):
            ranks.update({"one": normal(M, N, generator=generator)})
        assert layer.rank == rank
        if rank == 2 * R:
            y = low_rank(layer.factors, SCALE)
            assert torch.allclose(y.matrix(), SCALE * larger.B @ larger.A, atol=1e-13)
            assert torch.allclose(layer.start_B @ layer.start_A, larger.start_B @ larger.start_A, atol=1e-13)
    assert layer.rank == N
    assert linalg.matrix_norm(layer.scale * layer.start_B @ layer.start_A - base.weight) < 1e-12


def test_nothing_is_taken_from_a_frozen_weight_that_vanishes(generator):
    base = nn.Linear(N, M, dtype=torch.float64)
    with torch.no_grad():
        base.weight.copy_(low_rank(layer_at(generator, balanced=True).factors, 1.0).matrix())
    layer = LowRankLinear(base, pissa(base.weight, R, SCALE, generator), SCALE)
    ranks = RankAdaptation(AdaptiveRank(start=R), {"one": layer})
    assert not any(ranks.update({"one": normal(M, N, generator=generator)}) for _ in range(3 * SEEN))


def test_the_outer_part_is_the_normal_one(generator):
    y = low_rank(layer_at(generator, balanced=False).factors, SCALE)
    G = normal(M, N, generator=generator)
    part, tangent = outside(y, G), y.frame.vector(y.frame.coordinates(G))
    assert torch.allclose(part + tangent, G, atol=1e-13)
    assert torch.allclose(part, dense_outside(y.matrix(), R, G), atol=1e-13)


def test_no_layer_grows_without_need_or_beyond_its_bounds(generator):
    layer = layer_at(generator, balanced=True)
    y = low_rank(layer.factors, SCALE)
    G = {"one": y.frame.vector(normal(y.frame.dimension, generator=generator))}

    def looked(rule, G, room=math.inf):
        ranks = RankAdaptation(rule, {"one": layer})
        return [ranks.update(G, lambda columns: columns <= room) for _ in range(SEEN)]

    assert not any(looked(AdaptiveRank(start=R), G)), "all of the gradient is tangent"
    generic = {"one": normal(M, N, generator=generator)}
    assert not any(looked(AdaptiveRank(start=R, max=R), generic))
    one_more = dimension(R + 1, layer)
    assert not any(looked(AdaptiveRank(start=R), generic, one_more - 1))
    assert any(looked(AdaptiveRank(start=R), generic, one_more))
    assert layer.rank == R + 1


def test_a_layer_doubles_or_goes_to_the_other_side_of_what_steps_cannot_do(generator):
    sizes = {rank: dimension(rank, layer_at(generator, balanced=True)) for rank in range(1, N + 1)}

    def ranks(rank, serves, most=N):
        layer = layer_at(generator, balanced=True, rank=rank)
        found = RankAdaptation(AdaptiveRank(start=1, max=most), {"one": layer})
        for _ in range(SEEN):
            found.update({"one": normal(M, N, generator=generator)}, serves)
        return layer.rank

    assert ranks(2, lambda columns: True) == 4
    assert ranks(4, lambda columns: True) == N
    assert ranks(2, lambda columns: columns not in (sizes[3], sizes[4]), most=5) == 5
    assert ranks(1, lambda columns: columns != sizes[2], most=5) == 4
    assert ranks(2, lambda columns: columns < sizes[4]) == 3
    assert ranks(2, lambda columns: columns < sizes[3]) == 2


def test_the_layer_that_misses_most_grows_first(generator):
    layers = {name: layer_at(generator, balanced=True) for name in ("one", "two")}
    y = low_rank(layers["one"].factors, SCALE)
    G = {name: normal(M, N, generator=generator) for name in layers}
    G["one"] += 3 * y.frame.vector(y.frame.coordinates(G["one"]))
    room = dimension(R, layers["one"]) + dimension(R + 1, layers["one"])
    ranks = RankAdaptation(AdaptiveRank(start=R, outside=0.01), layers)
    for _ in range(3 * SEEN):
        ranks.update(G, lambda columns: columns <= room)
    assert [layer.rank for layer in layers.values()] == [R, R + 1]


# Truncation.


def test_truncation_changes_the_weight_by_what_is_said(generator):
    layer = layer_at(generator, balanced=False)
    y = low_rank(layer.factors, SCALE)
    small = y._replace(sigma=y.sigma * torch.tensor([1, 1e-3, 2e-3], dtype=torch.float64))
    layer.reshape(small.factors(SCALE), layer.start)
    before = layer.weight.detach().clone()
    ranks = RankAdaptation(AdaptiveRank(start=R, tolerance=1e-2, outside=1), {"one": layer})
    assert ranks.update({"one": normal(M, N, generator=generator)})
    assert layer.rank == 1
    lost = linalg.matrix_norm(layer.weight.detach() - before)
    assert ranks.row()["lora/truncated"] == pytest.approx(float(lost), rel=1e-12)
    assert lost > 0
    assert ranks.row()["lora/truncated"] == pytest.approx(float(linalg.vector_norm(small.sigma[1:])), rel=1e-12)
    assert balance_defect(layer.factors) < 1e-13


def test_the_best_approximation_is_kept(generator):
    layer = layer_at(generator, balanced=False)
    y = low_rank(layer.factors, SCALE)
    assert truncate(layer, y, 2) == pytest.approx(float(y.sigma[2]))
    U, s, V = linalg.svd(y.matrix())
    assert torch.allclose(SCALE * layer.B @ layer.A, U[:, :2] * s[:2] @ V[:2], atol=1e-13)


def test_a_direction_that_comes_to_nothing_is_waited_for_twice_as_long(generator):
    layer = layer_at(generator, balanced=True)
    rule = AdaptiveRank(start=R, max=R + 1, directions="gradient", size=1e-6, tolerance=1e-4)
    ranks = RankAdaptation(rule, {"one": layer})
    grown = []
    for step in range(64):
        rank = layer.rank
        ranks.update({"one": normal(M, N, generator=generator)})
        grown += [step] * (layer.rank > rank)
    # Each is truncated at the next look, from which the wait counts.
    gaps = [b - a for a, b in pairwise(grown)]
    assert gaps == [2**k * SEEN for k in range(1, 6)]


# Ranks of matrices are found.


@pytest.mark.parametrize(
    ("scheme", "rank", "start"),
    [((), 5, 1), ((), 2, 6), (EULER, 5, 1), (EULER, 2, 6)],
    ids=["implicit grows", "implicit shrinks", "explicit grows", "explicit shrinks"],
)
def test_the_rank_of_a_matrix_is_found(scheme, rank, start, compose, run, tmp_path):
    sizes = (f"problem.rank={rank}", f"lora.adaptive.start={start}", "budget.gradient_evals=90")
    done = run(compose(*SENSING, *scheme, *sizes))
    assert done.result.ranks == {"W": rank}
    assert done.result.rel_l2 < 1e-7
    found = low_rank(done.layers["W"].factors, 1.0).sigma
    expected = linalg.svdvals(done.adaptation.problem.matrix)[:rank]
    assert torch.allclose(found, expected, rtol=1e-6)
    row = History(tmp_path / "run/history.csv").rows[-1]
    assert row["lora/rank"] == row["lora/W/rank"] == rank


@pytest.mark.parametrize("chart", ["factors", "manifold"])
def test_a_step_that_changes_a_rank_says_how_large_it_was(chart, compose, run):
    rule = (*ADAPTIVE, "lora.adaptive.outside=0.1", "lora.adaptive.max=5")
    cfg = compose(*rule, "integrator=heun", f"method.chart={chart}", "budget.steps=8", "log.every=1")
    *rows, _ = run(cfg).adaptation.history
    assert len({row["lora/rank"] for row in rows}) > 1
    assert all(row["integrator/h"] > 0 for row in rows)
    if chart == "manifold":
        assert all(row["lora/discarded"] >= 0 for row in rows)


# A run.


@pytest.mark.parametrize(
    "scheme",
    [
        ["points=residual", "points.initial_batch_size=36", "lora.adaptive.residuals=0.1"],
        ["method=lora_gd", "integrator=linearly_implicit", "lora.adaptive.residuals=0.1"],
        ["integrator=heun", "integrator.renew=7", "points=fresh"],
        ["integrator=bogacki_shampine", "method.chart=manifold", "points=fixed"],
    ],
    ids=" ".join,
)
def test_an_interrupted_run_ends_with_the_same_bits(scheme, compose, run, tmp_path, monkeypatch):
    common = [*ADAPTIVE, "lora.adaptive.outside=0.1", "lora.adaptive.max=5", *scheme]
    common += ["budget.steps=14", "checkpoint.every=4", "points.interior=400"]
    whole = run(compose(*common, f"output_dir={tmp_path / 'whole'}"))
    assert max(whole.result.ranks.values()) > 2
    step = loop._step

    def interrupting(training):
        record = step(training)
        if record.step == 8:
            signal.raise_signal(signal.SIGTERM)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", interrupting)
        stopped = run(compose(*common, f"output_dir={tmp_path / 'parts'}"))
    assert stopped.result is None
    assert stopped.progress.step == 9
    assert max(layer.rank for layer in stopped.layers.values()) > 2
    resumed = run(compose(f"resume={tmp_path / 'parts'}"))
    assert resumed.result.ranks == whole.result.ranks
    one, other = (done.adaptation.solution.state_dict() for done in (whole, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.training.ranks.state() == resumed.training.ranks.state()


def test_the_adapter_of_other_ranks_is_the_same_function(compose, run, tmp_path):
    settings = ["lora.adaptive.outside=0.1", "lora.adaptive.max=5", "lora.adaptive.residuals=0.1"]
    done = run(compose(*ADAPTIVE, *settings, "budget.steps=8", "points.interior=400"))
    ranks = [*done.result.ranks.values()]
    assert ranks == [layer.rank for layer in done.layers.values()]
    assert max(ranks) > 2
    done.result.adapter.save(tmp_path / "run/adapter")
    points = done.adaptation.diagnostics.reference.test
    u = load(tmp_path / "run")
    found = u(*(points[name] for name in u.problem.coords))
    assert torch.allclose(found, done.adaptation.solution(points), rtol=0, atol=1e-12)
    saved = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    factors = [x for name, x in saved.items() if "lora_A" in name]
    # The start has grown with the factors.
    assert [len(A) for A in factors] == [2 * rank for rank in ranks]
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == 1.0


def test_a_failed_step_leads_back_to_the_ranks_that_there_were(compose):
    training = experiment(compose(*ADAPTIVE)).adaptation.training
    objective = training.objective
    objective.begin(training.sampler.draw(0))
    objective.linearise()
    before = {name: layer.weight.detach().clone() for name, layer in objective.layers.items()}
    for layer in objective.layers.values():
        part = outside(low_rank(layer.factors, 1.0), torch.ones_like(layer.weight))
        grow(layer, leading(part, 2))
        layer.A.data[0] = math.nan
    objective.restore_last_good()
    assert [layer.rank for layer in objective.layers.values()] == [2, 2, 2]
    assert all(torch.equal(layer.weight, before[name]) for name, layer in objective.layers.items())


def test_the_best_iterate_keeps_its_ranks_when_the_next_ones_have_others(compose, tmp_path, generator):
    """Also through a file, as in the state that a run is continued from."""
    training = experiment(compose(*ADAPTIVE)).adaptation.training
    objective, best = training.objective, training.best
    layer, V = next(iter(objective.layers.values())), training.sampler.validation(40)
    best.consider(objective, V)
    best.close(objective, lambda times: V)
    there, loss = layer.weight.detach().clone(), best.best.loss
    grow(
        layer,
        leading(outside(low_rank(layer.factors, layer.scale), normal(*layer.weight.shape, generator=generator)), 1),
    )
    with torch.no_grad():
        layer.A.add_(3 * normal(*layer.A.shape, generator=generator))
    moved = layer.weight.detach().clone()
    best.consider(objective, V)
    best.close(objective, lambda times: V)
    assert best.best.loss == loss
    torch.save(asdict(best), tmp_path / "best")
    kept = BestIterate.loaded(torch.load(tmp_path / "best", weights_only=True))
    with objective.restored(kept.snapshot):
        assert layer.rank == layer.lora_A["default"].out_features == len(layer.start_A) == 2
        assert torch.equal(layer.weight, there)
    assert layer.rank == layer.lora_A["default"].out_features == len(layer.start_A) == 3
    assert torch.equal(layer.weight, moved)
    # What is kept is a copy.
    objective.restore(kept.snapshot)
    with torch.no_grad():
        layer.A.zero_()
    objective.restore(kept.snapshot)
    assert torch.equal(layer.weight, there)


@pytest.mark.parametrize(("flow", "kept"), [(balanced_flow, True), (gradient_flow, False)])
def test_the_last_step_goes_on_only_where_it_is_no_step_of_the_factors(flow, kept, generator):
    """The momentum of an implicit scheme is an element of the ambient space, of whatever rank, or of the factors."""
    layer = layer_at(generator, balanced=True)
    group = {"params": [layer.A, layer.B], "scale": SCALE, "name": "one"}
    optimizer = ODELoRA([group], integrator=LinearlyImplicit(), flow=flow)
    last = {"one": normal(M, N, generator=generator)}
    optimizer.state[layer.A]["integrator"] = before = {"mu": 1.0, "last": last, "at_least": 9}
    optimizer.rank_changed()
    after = before if kept else {"mu": 1.0, "last": None, "at_least": 0}
    assert optimizer.state[layer.A]["integrator"] == after


def test_the_memory_that_is_said_to_be_needed_is_that_of_the_largest_rank(compose):
    planned = lambda *overrides: experiment(compose(*overrides)).adaptation.plan()
    assert planned(*ADAPTIVE, "lora.adaptive.max=6") == planned("lora.rank=6") != planned("lora.rank=2")
    assert planned(*ADAPTIVE, "lora.adaptive.max=99") == planned("lora.rank=12")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["lora.rank=adapted"],
            "lora.rank is 'adapted', but it must be a whole number of at least 1 or auto or adaptive.",
        ),
        (
            [*ADAPTIVE, "lora.adaptive.start=5", "lora.adaptive.max=4"],
            "lora.adaptive.start is 5, but it must be at most max, which is 4.",
        ),
        (
            [*ADAPTIVE, "lora.adaptive.outside=1.5"],
            "lora.adaptive.outside is 1.5, but it must be a number from 0 to 1.",
        ),
        (
            [*ADAPTIVE, "lora.start=zero"],
            "lora.start is 'zero', but it must be pissa or orthonormal if the rank is adaptive",
        ),
        (
            [*ADAPTIVE, "method=lora_adam"],
            "lora.rank is 'adaptive', but it must be a number with lora_adam, which keeps a memory",
        ),
        ([*ADAPTIVE, "lora.adaptive.start=13"], "lora.adaptive.start is 13, but it must be at most 12"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, said, compose):
    with pytest.raises(InputError, match=f"^{re.escape(said)}"):
        experiment(compose(*overrides))
