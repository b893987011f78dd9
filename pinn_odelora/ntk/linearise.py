"""Linearise a network around its weights: the residuals of an equation, or outputs for examples.

    po.linearised(net, problem)                              rows √(2 w_k/N_k) r_k(x_i), φ = ½‖·‖², at fixed points
    po.linearised(net, Examples(x, y, "cross_entropy"))      rows f_k(x_i), φ = mean_i ℓ(f(x_i), y_i)

The residuals of a nonlinear equation are linearised as a whole, in the network's weights. Only the adapted layers move:
biases and the last layer, which an adaptation may train beside the factors, stay, as in the theory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.linearisation.blocks import Formed, Group
from pinn_odelora.lowrank.targets import linear_targets
from pinn_odelora.lowrank.wiring import Wiring
from pinn_odelora.nets import check_network, few_inputs
from pinn_odelora.ntk.losses import Own, SquaredError, convex_loss
from pinn_odelora.ntk.model import Linearised
from pinn_odelora.rules import whole
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.unknown_fields import check_none

log = logging.getLogger(__name__)

LARGEST = 2.0**31
"""Most bytes of a Jacobian that is formed."""
SMALL = 2.0**26
"""Bytes up to which it is formed as one array for all rows, whose products are then faster than those of pairs."""


@dataclass(frozen=True)
class Examples:
    """Examples for regression or classification.

    Args:
        inputs: what the network is given, (N, …).
        targets: (N, K) for ``squared``; labels (N,), each ±1 for ``logistic`` and a whole number below K for
            ``cross_entropy``.
        loss: one of these names, or a convex function ``loss(outputs (N, K), targets)`` -> (N,).
    """

    inputs: Tensor
    targets: Tensor
    loss: str | Own = "squared"


def linearised(
    net: nn.Module,
    problem: Problem | Examples,
    *,
    targets: str | Sequence[str] | None = None,
    interior: int = 100,
    boundary: int = 25,
    seed: int = 0,
    derivatives: str = "auto",
) -> Linearised:
    """The model f(W0) + ⟨J, δ⟩ around the present weights of a network, and its convex loss.

    Args:
        net: the pretrained network, (N, inputs) -> (N, fields) or (N, K); it is put in float64.
        problem: an equation, or examples.
        targets: the layers that move, as shell patterns; None for the hidden layers.
        interior, boundary: points for each term of an equation that fills the domain, and for each of the others.
        seed: of these points, which stay fixed.
        derivatives: ``auto``, ``jets`` or ``autograd``, for an equation.

    Raises:
        InputError: if network, layers, points or loss do not fit; if examples are fewer than outputs.
    """
    if isinstance(problem, Examples):
        return _of_examples(net, problem, targets)
    if not isinstance(problem, Problem):
        raise InputError(f"The second argument is a {type(problem).__name__}, but it must be a problem or Examples.")
    check_none(problem.unknown_fields(), "a linearised model")
    whole(1).check("interior", interior)
    whole(1).check("boundary", boundary)
    net = check_network(net, problem)
    system = System(problem, Solution(problem, net), derivatives=derivatives)
    layers = linear_targets(net, targets, Wiring.of(net, few_inputs(problem)))
    points = draw_points(system.terms, interior, boundary, seed)
    sweep = Sweep(system, layers)
    slower = tuple(name for name in system.terms if not sweep.paired(name))
    for name in slower:
        log.info("The term %s is linearised row by row: %s.", name, sweep.unpaired(name))
    around = Linearisation(sweep, points, memory=LARGEST)
    shapes = {name: tuple(layer.weight.shape) for name, layer in around.layers.items()}
    start = around.r.detach().clone()
    loss = SquaredError(torch.zeros_like(start))
    return Linearised(start, _formed(around, shapes), shapes, loss, dict(around.terms), 1, slower)


def _formed(around: Linearisation, shapes: Mapping[str, tuple[int, int]]) -> list[Group]:
    """The rows as one group if the array is small, else as they are."""
    if 8 * around.rows * sum(m * n for m, n in shapes.values()) > SMALL:
        return [*around.groups()]
    blocks = {name: Formed(around.r.new_empty(around.rows, m, n)) for name, (m, n) in shapes.items()}
    for group in around.groups():
        for name, block in group.blocks.items():
            blocks[name].J[group.rows] = block.formed()
    return [Group("all", slice(0, around.rows), around.r.clone(), blocks, {})]


def _of_examples(net: nn.Module, examples: Examples, targets: str | Sequence[str] | None) -> Linearised:
    if not isinstance(net, nn.Module):
        raise InputError(f"net is a {type(net).__name__}, but it must be a torch network with linear layers.")
    net.double()
    inputs = examples.inputs.double()
    wiring = Wiring.of(net, inputs[:3])
    layers = linear_targets(net, "*" if targets is None and not wiring.hidden else targets, wiring)
    with torch.no_grad():
        start = net(inputs)
    if start.ndim != 2 or len(start) != len(inputs):
        raise InputError(f"The network gives outputs of shape {tuple(start.shape)}, but it must give (N, K).")
    N, K = start.shape
    if K > N:
        raise InputError(
            f"The network has {K} outputs for {N} examples, but there must be at least as many examples as outputs."
        )
    loss = convex_loss(examples.loss, examples.targets, start)
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    size = 8 * N * K * sum(m * n for m, n in shapes.values())
    if size > LARGEST:
        raise InputError(f"The Jacobian has {size / 2**30:.1f} GiB, but at most {LARGEST / 2**30:.0f} can be formed.")
    J = _jacobian(net, layers, inputs)
    blocks = {name: Formed(J[name].flatten(0, 1)) for name in layers}
    group = Group("examples", slice(0, N * K), start.flatten(), blocks, {})
    return Linearised(start.flatten(), [group], shapes, loss, {"examples": group.rows}, K)


def _jacobian(net: nn.Module, layers: Mapping[str, nn.Linear], inputs: Tensor) -> dict[str, Tensor]:
    """∂f_k(x_i)/∂W by layer, (N, K, m, n); row i of the outputs must depend on input i alone."""
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    fixed = {key: x.detach() for key, x in net.state_dict().items()}

    def outputs(moving: Mapping[str, Tensor], x: Tensor) -> Tensor:
        own = {f"{name}.weight": W for name, W in moving.items()}
        return functional_call(net, fixed | own, (x[None],))[0]

    return vmap(jacrev(outputs), in_dims=(None, 0), chunk_size=64)(weights, inputs)
