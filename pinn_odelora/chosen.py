"""What was chosen for a run, in two lines:

    Adapted: linears.1, .2, .3 (40 x 40) at rank 8; trained whole: linears.4 (output).
    Derivatives: pde by jets (order 2, 3 products a layer); none in bc.

Products are those of the points of a term with a hidden weight, see ``derivatives.plan``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from pinn_odelora.derivatives import Engine
from pinn_odelora.derivatives.jet import EXPRESSION
from pinn_odelora.lowrank.wiring import Wiring

SHOWN = 12
"""Names of one list at most."""


def layers_line(
    layers: Mapping[str, nn.Linear],
    ranks: Mapping[str, int],
    asked: int,
    whole: Sequence[str],
    wiring: Wiring,
    adaptive: bool = False,
) -> str:
    """The layers with their ranks, and what is trained whole beside them.

    Args:
        layers: those that are adapted, with weight (m, n), by name.
        ranks: r of each.
        asked: the rank that was asked for, of which a layer has at most min(m, n).
        whole: what is trained beside the factors, by names and in words.
        wiring: of the network.
        adaptive: whether the ranks follow the gradient from there.
    """
    alike: dict[tuple[int, int, int], list[str]] = {}
    for name, layer in layers.items():
        alike.setdefault((*layer.weight.shape, ranks[name]), []).append(name)
    adapted = ", ".join(
        f"{listed(names)} ({m} x {n}) at rank {r}{'' if r == asked else ', the largest there'}"
        for (m, n, r), names in alike.items()
    )
    follows = ", which follows the gradient" if adaptive else ""
    return f"Adapted: {adapted}{follows}{_beside(whole)}{_remarks(wiring)}."


def _beside(whole: Sequence[str]) -> str:
    return f"; trained whole: {', '.join(whole)}" if whole else ""


def _remarks(wiring: Wiring) -> str:
    unused = f"; without effect on the output: {listed(wiring.unused)}" if wiring.unused else ""
    return unused + ("; first and last by module order, since calls do not tell" if wiring.by_order else "")


def whole_layers(names: Sequence[str], what: str) -> list[str]:
    """Layers that are trained whole, inputs or outputs (``what``), as one entry of ``layers_line``."""
    return [f"{listed(names)} ({what if len(names) == 1 else f'{what}s'})"] if names else []


def weights_line(net: nn.Module) -> str:
    """Where all weights are trained: how many."""
    return f"Trained: all {sum(p.numel() for p in net.parameters()):,} weights of the network."


def derivatives_line(engines: Mapping[str, Engine]) -> str:
    """How the derivatives of each term are found, and what a point of it costs."""
    alike: dict[str, list[str]] = {}
    for name, engine in engines.items():
        alike.setdefault(_how(engine), []).append(name)
    found = [f"{', '.join(names)} {how}" for how, names in alike.items() if how]
    without = [f"none in {', '.join(alike[''])}"] if "" in alike else []
    return f"Derivatives: {'; '.join(found + without)}."


def _how(engine: Engine) -> str:
    if engine.transformed:
        return "by the residual's own transforms of torch.func, its Jacobian row by row"
    if engine.reason == EXPRESSION:  # whose own derivatives nobody counts
        return f"by nested reverse mode, since {EXPRESSION}"
    if not engine.order:
        return ""
    cost = f"order {engine.order}, {engine.products} products a layer"
    if engine.plan:
        return f"by jets ({cost})"
    reason, _, _ = engine.reason.partition(";")  # what follows is advice
    return f"by nested reverse mode ({cost}), since {reason}"


def listed(names: Iterable[str]) -> str:
    """Names, those that differ from the one before in their last part alone by that: net.1, .2, .3."""
    shown, before = [], None
    for name in names:
        stem, dot, last = name.rpartition(".")
        shown.append(f".{last}" if dot and stem == before else name)
        before = stem
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
