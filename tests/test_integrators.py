"""The contract of all integrators: one protocol for explicit, stabilised and linearly implicit schemes.

Every member runs on the gradient flow of ½‖r‖² with bent residuals, in a flat space and on matrices of fixed rank.
"""

import copy
import dataclasses
import io
import math

import pytest
import torch
from toys import Linear, Sensing, ambient, normal, point

from pinn_odelora.integrators import RKC, ROS2, Field, LinearlyImplicit, RungeKutta, Tableau, Velocity, tableau
from pinn_odelora.integrators.control import TRIALS
from pinn_odelora.manifolds.projected import FixedRank, Thin
from pinn_odelora.manifolds.space import FLAT

TABLEAUX = {name.lower(): value for name, value in vars(tableau).items() if isinstance(value, Tableau)}
H = 0.1

FIXED = {name: RungeKutta(scheme, h=H) for name, scheme in TABLEAUX.items()} | {
    "rkc1": RKC(1, h=H),
    "rkc2": RKC(2, h=H),
    "linearly_implicit": LinearlyImplicit(h=H),
    "ros2": ROS2(h=H),
}
CHOOSING = {name: dataclasses.replace(scheme, h=None) for name, scheme in FIXED.items()}
EVERY = {f"{name}-fixed": scheme for name, scheme in FIXED.items()} | {
    f"{name}-chosen": scheme for name, scheme in CHOOSING.items()
}
# Those that refuse a trial step and shorten it.
SHORTENING = {
    name: scheme
    for name, scheme in CHOOSING.items()
    if not isinstance(scheme, RungeKutta) or scheme.tableau.embedded is not None
}

every = pytest.mark.parametrize("scheme", EVERY.values(), ids=EVERY.keys())
shortening = pytest.mark.parametrize("scheme", SHORTENING.values(), ids=SHORTENING.keys())
spaces = pytest.mark.parametrize("kind", ["flat", "fixed rank"])
values = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


class Bent(Linear):
    """Residuals x + 0.4 sin x - b with x = D z, in a flat space."""

    def residuals(self, y):
        x = self.D @ y
        return x + 0.4 * torch.sin(x) - self.b

    def linearise(self, y):
        slopes = 1 + 0.4 * torch.cos(self.D @ y)
        return super().linearise(y)._replace(J=slopes[:, None] * self.D)

    def velocity(self, y):
        """For explicit schemes, state [z]."""
        return [-self.linearise(z).J.mT @ self.residuals(z) for z in y]


class Descent:
    """The gradient flow of a toy's loss, for schemes of every kind; counts its evaluations.

    Points at a larger distance than ``edge`` from the start have the value ``bad``, a negative edge leaves none with a
    good one; and so has what is evaluated after the first ``most`` times.
    """

    def __init__(self, toy, start, space):
        self.toy, self.start, self.space = toy, start, space
        self.edge, self.most, self.bad, self.evaluations = math.inf, math.inf, math.nan, 0

    def distance(self, y):
        return float((ambient([y]) - ambient([self.start])).norm())

    def seen(self, y, x):
        self.evaluations += 1
        if self.distance(y) <= self.edge and self.evaluations <= self.most:
            return x
        return (
            x._replace(left=self.bad * torch.ones_like(x.left)) if isinstance(x, Thin) else torch.full_like(x, self.bad)
        )

    def loss(self, y):
        r = self.toy.residuals(y)
        return float(r @ r) / 2

    def velocity(self, y):
        (here,) = y
        slope = Field(lambda y: [self.seen(here, x) for x in self.toy.velocity(y)], self.space).velocity(y).slope
        return Velocity(slope, self.loss(here))

    def residuals(self, y):
        return self.seen(y, self.toy.residuals(y))

    def linearise(self, y):
        local = self.toy.linearise(y)
        return local._replace(r=self.seen(y, local.r))


def descent(kind):
    """A flow, at a generic point."""
    generator = torch.Generator().manual_seed(7)
    if kind == "flat":
        toy = Bent(normal(6, 4, generator=generator), normal(6, generator=generator))
        return Descent(toy, normal(4, generator=generator), FLAT)
    return Descent(Sensing.random(30, 7, 5, generator, bent=0.4), point(7, 5, [1.2, 0.6], generator), FixedRank())


def posed(scheme, y):
    """A point as the scheme takes it: explicit ones move lists."""
    return y if scheme.linearises else [y]


def step(scheme, flow, state=None, h=None):
    """A step from the start; where it leads as a single point."""
    y, state, report = scheme.step(flow, posed(scheme, flow.start), scheme.init() if state is None else state, h)
    return (y if scheme.linearises else y[0]), state, report


def same(a, b):
    """Whether two states, points or reports have the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def reloaded(scheme, state):
    """The state after it has been on disk, read as plain numbers and tensors."""
    file = io.BytesIO()
    torch.save(vars(state), file)
    file.seek(0)
    return dataclasses.replace(scheme.init(), **torch.load(file, weights_only=True))


@spaces
@every
def test_a_step_changes_neither_its_point_nor_its_state(scheme, kind):
    flow = descent(kind)
    _, state, _ = step(scheme, flow)
    y = posed(scheme, flow.start)
    before = copy.deepcopy((y, state))
    reached = scheme.step(flow, y, state).y
    assert same((y, state), before)
    assert not same(reached, y)


@spaces
@every
def test_a_state_is_plain_and_a_step_from_it_has_the_same_bits(scheme, kind):
    flow = descent(kind)
    y, state = posed(scheme, flow.start), scheme.init()
    assert same(reloaded(scheme, state), state)
    for _ in range(3):
        y, state, _ = scheme.step(flow, y, state)
        again = reloaded(scheme, state)
        assert same(again, state)
        assert same(scheme.step(flow, y, again), scheme.step(flow, y, state))


@spaces
@every
def test_the_report_has_step_size_loss_and_rejected_trials(scheme, kind):
    flow = descent(kind)
    y, _, report = step(scheme, flow)
    assert 0 < report.h < math.inf
    assert scheme.h in (None, report.h)
    assert report.loss == pytest.approx(flow.loss(flow.start), rel=1e-14)
    assert isinstance(report.rejected, int)
    assert report.rejected == 0 or scheme.h is None
    assert flow.loss(y) < report.loss
    if report.loss_after is not None:
        assert report.loss_after == pytest.approx(flow.loss(y), rel=1e-14)
    assert (report.solver is not None) == scheme.linearises
    assert (report.dimension > 0) == scheme.linearises


@spaces
@every
def test_a_step_size_given_at_the_step_comes_before_the_schemes_own(scheme, kind):
    given = 0.07
    found, fixed = (
        step(s, descent(kind), h=h) for s, h in ((scheme, given), (dataclasses.replace(scheme, h=given), None))
    )
    assert found[2].h == given
    assert same(found, fixed)


@spaces
@every
def test_a_short_step_is_the_flow(scheme, kind):
    h, flow = 1e-6, descent(kind)
    y, *_ = step(scheme, flow, h=h)
    velocity = ambient(flow.toy.velocity([flow.start]))
    assert float(((ambient([y]) - ambient([flow.start])) / h - velocity).norm()) < 1e-4 * float(velocity.norm())


@spaces
@every
def test_a_flow_at_rest_stays_there(scheme, kind):
    """Residuals that depend on nothing: no scale for a step, neither in the velocity nor in the Jacobian."""
    flow = descent(kind)
    matrices = "D" if kind == "flat" else "M"
    setattr(flow.toy, matrices, torch.zeros_like(getattr(flow.toy, matrices)))
    y, *_ = step(scheme, flow)
    # The numbers of a stabilised scheme's stages sum to one up to rounding.
    assert flow.distance(y) < 1e-12


@values
@spaces
@every
def test_a_velocity_without_value_at_the_start_is_refused(scheme, kind, bad):
    flow = descent(kind)
    flow.edge, flow.bad = -1.0, bad
    with pytest.raises(FloatingPointError):
        step(scheme, flow)


@values
@spaces
@pytest.mark.parametrize(
    "scheme", [s for s in EVERY.values() if s.linearises], ids=[n for n, s in EVERY.items() if s.linearises]
)
def test_a_jacobian_without_value_at_the_start_is_refused(scheme, kind, bad):
    flow = descent(kind)
    linearise = flow.linearise

    def spoiled(y):
        local = linearise(y)
        J = local.J.clone()
        J[1, 2] = bad
        return local._replace(J=J)

    flow.linearise = spoiled
    with pytest.raises(FloatingPointError):
        step(scheme, flow)


@values
@spaces
@shortening
def test_a_trial_point_without_value_shortens_the_step_and_is_counted(scheme, kind, bad):
    flow = descent(kind)
    long, _, whole = step(scheme, flow)
    flow.edge, flow.bad = flow.distance(long) / 10, bad
    y, _, report = step(scheme, flow)
    assert report.rejected > 0
    assert report.h < whole.h
    assert 0 < flow.distance(y) <= flow.edge
    assert report.loss == whole.loss
    assert flow.loss(y) < report.loss


@values
@spaces
@shortening
def test_where_no_trial_point_has_a_value_it_ends_after_a_bounded_number(scheme, kind, bad):
    """The linearly implicit scheme stays where it is; the others refuse."""
    flow = descent(kind)
    # A scheme that keeps an estimate of the eigenvalue looks at no other point then.
    _, state, _ = step(scheme, flow)
    flow.most, flow.bad, flow.evaluations = 1, bad, 0
    if isinstance(scheme, LinearlyImplicit):
        y, _, report = step(scheme, flow, state)
        assert same(y, flow.start)
        assert report.rejected > 0
        assert report.loss_after == report.loss
    else:
        with pytest.raises(FloatingPointError, match="No step down"):
            step(scheme, flow, state)
    assert flow.evaluations <= 1 + 3 * TRIALS


# Those that look at another point than both ends; so does RKC of first order where h asks for a second stage.
STAGED = {name: s for name, s in FIXED.items() if name not in ("euler", "linearly_implicit")} | {"rkc1": RKC(1, h=1.0)}


@values
@spaces
@pytest.mark.parametrize("scheme", STAGED.values(), ids=STAGED.keys())
def test_a_step_of_given_size_is_refused_where_a_stage_has_no_value(scheme, kind, bad):
    flow = descent(kind)
    long, *_ = step(scheme, flow)
    flow.edge, flow.bad = flow.distance(long) / 10, bad
    with pytest.raises(FloatingPointError):
        step(scheme, flow)
