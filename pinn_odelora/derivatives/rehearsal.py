"""The dry run: choose the derivative engine of a residual, and check that row i depends on point i alone.

The residual is evaluated at a few points by nested reverse mode, which works for any network and yields the plan of
the jets. Jets must then reproduce the residual and its gradient. Finally one point is moved: if the residual at another
point changes, the term must be declared ``coupled``, because everything that treats points separately, from residual
sampling to the linearisation, would otherwise be silently wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.jet import EXPRESSION, NoJetRule, Tape
from pinn_odelora.derivatives.jets import JetField, Solved
from pinn_odelora.derivatives.plan import Blank, Operator, Plan, Recorder, Unknown, Unsolved, order, plan, reverse_cost
from pinn_odelora.derivatives.products import Products
from pinn_odelora.errors import InputError, unknown
from pinn_odelora.points import Points

log = logging.getLogger(__name__)

ENGINES = ("auto", "jets", "autograd")
SAMPLE = 6
"""Points of a dry run."""
Rows = Callable[[Field], Tensor]


@dataclass(frozen=True)
class Engine:
    """The evaluation of one residual with its derivatives: by jets if there is a plan, else by nested reverse mode.

    Args:
        solution: the map Points -> (N, fields).
        fields, coords: names of the solution's components and of the coordinates.
        rows: the residual, Field -> (N, components).
        plan: the plan of the jets, or None.
        reason: why there is no plan.
        order: of the highest derivative.
        reverse: products of a point with a hidden weight by nested reverse mode.
        expensive: the plan of jets that apply, but cost more than reverse mode does.
        transformed: whether the residual differentiates the solution by transforms of torch.func.
    """

    solution: Solved
    fields: tuple[str, ...]
    coords: tuple[str, ...]
    rows: Rows
    plan: Plan | None
    reason: str = ""
    order: int = 0
    reverse: int = 1
    expensive: Plan | None = None
    transformed: bool = False

    @property
    def by_rows(self) -> Engine:
        """The engine where every row is differentiated by the weights.

        With jets the sweep that does it tells of trained tensors that multiply or are added, too, which in reverse mode
        take one for each of their numbers.
        """
        return self if self.expensive is None else replace(self, plan=self.expensive, reason="", expensive=None)

    @property
    def products(self) -> int:
        """Products of a point with a hidden weight."""
        return self.reverse if self.plan is None else self.plan.carried

    def field(self, p: Points, tape: Tape | None = None) -> Field:
        """The solution at p with its derivatives.

        Args:
            p: evaluation points, columns (N, 1).
            tape: receives what jets evaluate of trained layers and tensors, if given, see ``Channels``.
        """
        if self.plan is None:
            return AutogradField(self.solution, p, self.fields, self.coords)
        asked = None
        if not self.plan.blind:
            asked = Recorder(Blank(p, self.fields, self.coords))
            self.rows(asked)
        return JetField(self.solution, p, self.fields, self.coords, self.plan, asked, tape)

    def residual(self, p: Points, tape: Tape | None = None) -> Tensor:
        """The residual at p, (N, components).

        Args:
            p: evaluation points, columns (N, 1).
            tape: receives what is evaluated of trained layers, and by jets of trained tensors, if given.
        """
        if self.plan is not None:
            return self.rows(self.field(p, tape))
        wanted = torch.is_grad_enabled()
        # A residual may differentiate expressions of its own, which need a graph also where the caller wants none.
        with torch.enable_grad(), nullcontext() if tape is None else Products(tape):
            found = self.rows(self.field(p))
        return found if wanted else found.detach()


def rehearse(
    name: str,
    rows: Rows,
    solution: Solved,
    points: Points,
    fields: Sequence[str],
    coords: Sequence[str],
    *,
    engine: str = "auto",
    coupled: bool = False,
) -> Engine:
    """Choose the engine of a residual by a dry run at its first ``SAMPLE`` points.

    Args:
        name: name of the residual, for messages.
        rows: the residual, Field -> (N, components).
        solution: the map Points -> (N, fields).
        points: columns (N, 1).
        fields, coords: names of the solution's components and of the coordinates.
        engine: ``autograd``, ``jets``, or ``auto``: jets where they apply and cost no more.
        coupled: whether row i of the residual may depend on points other than point i.

    Raises:
        InputError: if the engine is unknown, ``jets`` is requested but does not apply, the network mixes rows, or the
            residual couples points without being declared so.
    """
    if engine not in ENGINES:
        raise unknown("derivatives engine", engine, ENGINES)
    p = Points({key: x[:SAMPLE] for key, x in points.items()})
    reverse = Engine(solution, tuple(fields), tuple(coords), rows, None, "derivatives=autograd")
    recorder = Recorder(reverse.field(p))
    with torch.enable_grad():
        r = rows(recorder)
    reverse = replace(reverse, order=order(recorder), reverse=reverse_cost(recorder), transformed=recorder.transformed)
    _check_rows(name, reverse, p, r.detach(), coupled)
    if engine == "autograd":
        return reverse
    try:
        made = plan(recorder, _collapsible(recorder, rows, p))
        return _accepted(name, replace(reverse, plan=made, reason=""), recorder, r, engine)
    except InputError:
        raise
    except Exception as failure:  # Code written for tensors can fail on jets in any way.
        missing = next(iter(str(failure).splitlines()), type(failure).__name__)
        if "does not require grad" in missing or "not have been used in the graph" in missing:
            missing = EXPRESSION
        if engine == "jets":
            raise InputError(f"derivatives=jets cannot differentiate the solution in {name!r}: {missing}.") from failure
        log.info("%s: derivatives by nested reverse mode, since %s.", name, missing)
        return replace(reverse, reason=missing)


def _accepted(name: str, jets: Engine, recorder: Recorder, r: Tensor, engine: str) -> Engine:
    """The jet engine, verified; the reverse-mode one if that is cheaper and the choice is free."""
    assert jets.plan is not None
    p = Points({key: x.detach() for key, x in recorder.points.items()})
    with torch.enable_grad():
        tried = jets.residual(p)
    if not _near(tried, r):
        raise NoJetRule(f"its residual by jets differs by {float((tried - r).detach().abs().max()):.1e}")
    # A user-defined function with a custom backward pass has the right value under jets, but not its gradient.
    weights = _leaves(r) - _coordinates(recorder)
    if not all(map(_near, _gradient(tried, weights), _gradient(r, weights))):
        raise NoJetRule("the gradient of its residual by jets differs")
    if engine == "auto" and jets.plan.carried > jets.plan.reverse:
        reason = f"nested reverse mode needs {jets.plan.reverse} products a layer, jets {jets.plan.carried}"
        log.info("%s: derivatives by nested reverse mode, since %s.", name, reason)
        return replace(jets, plan=None, reason=reason, expensive=jets.plan)
    return jets


def _near(tried: Tensor, exact: Tensor) -> bool:
    scale = 1 + (float(exact.detach().abs().max()) if exact.numel() else 0.0)
    return torch.allclose(tried, exact, rtol=0, atol=scale * torch.finfo(exact.dtype).eps ** 0.5, equal_nan=True)


def _gradient(r: Tensor, leaves: set[Tensor]) -> Sequence[Tensor]:
    if not (leaves and r.requires_grad):
        return [torch.zeros_like(x) for x in leaves]
    # Other terms of the loss may share the graph: effective weights are formed once for all of them.
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(r, tuple(leaves), torch.ones_like(r), **options)


def _leaves(r: Tensor) -> set[Tensor]:
    """The leaves of the graph of r."""
    leaves, seen, ahead = set(), set(), [r.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        ahead += [following for following, _ in node.next_functions]
    return leaves


def _coordinates(recorder: Recorder) -> set[Tensor]:
    return set(recorder.points.values()).union(*map(_coordinates, recorder.moved))


def _collapsible(recorder: Recorder, rows: Rows, p: Points) -> list[bool]:
    """For each operator request whether its coefficients are independent of the solution."""
    blank = Recorder(Unsolved(p, recorder.fields, recorder.coords))
    rows(blank)
    if len(blank.operators) != len(recorder.operators):
        return [False] * len(recorder.operators)
    return [_equal(a, b) for a, b in zip(recorder.operators, blank.operators, strict=True)]


def _equal(a: Operator, b: Operator) -> bool:
    if not a.like(b):
        return False
    if any(isinstance(c, Unknown) for c in b.coefficients.values()):
        return False
    pairs = [(a.coefficients[alpha], b.coefficients[alpha]) for alpha in a.coefficients]
    return all(torch.equal(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor))


def _check_rows(name: str, engine: Engine, p: Points, r: Tensor, coupled: bool) -> None:
    if p.number < 2 or not bool(torch.isfinite(r).all()):
        return
    moved = Points({key: _first_moved(x) if key in engine.coords else x for key, x in p.items()})
    with torch.no_grad():
        values, others = engine.solution(p)[1:], engine.solution(moved)[1:]
    if not _same(values, others):
        raise InputError(_mixing(name, engine.solution, p))
    if coupled or _same(r[1:], engine.residual(moved).detach()[1:]):
        return
    if not _same(r, engine.residual(p).detach()):
        raise InputError(f"The residual {name!r} has other values when it is asked again; it must not draw at random.")
    raise InputError(
        f"A row of the residual {name!r} depends on points other than its own; read two points by f.at(...), or "
        "declare the term coupled=True."
    )


def _mixing(name: str, solution: Solved, p: Points) -> str:
    """Why the values at points change that were not moved: numbers drawn at random, or rows that are mixed."""
    with torch.no_grad():
        drawn = not _same(solution(p), solution(p))
    kind = nn.modules.dropout._DropoutNd if drawn else nn.modules.batchnorm._NormBase
    modules = solution.named_modules() if isinstance(solution, nn.Module) else ()
    found = [
        f"layer {at.removeprefix('net.')} ({type(m).__name__})"
        for at, m in modules
        if isinstance(m, kind) and m.training
    ]
    layer, advice = found[0] if found else "a layer", "call net.eval(), in its constructor for example, or leave it out"
    if drawn:
        return f"The network has other values when it is asked again (in {name!r}): {layer} draws at random; {advice}."
    return (
        f"Moving one point changes the solution at others (in {name!r}): {layer} mixes rows, as batch normalisation "
        f"does, so the network has no pointwise derivatives{'; ' + advice if found else ''}."
    )


def _first_moved(x: Tensor) -> Tensor:
    return torch.cat([x[:1] * (1 + 1e-3) + 1e-3, x[1:]])


def _same(a: Tensor, b: Tensor) -> bool:
    # Summation order may depend on the batch, so differences at rounding level do not count.
    return torch.allclose(a, b, rtol=0, atol=100 * torch.finfo(a.dtype).eps * (1 + float(a.abs().max())))
