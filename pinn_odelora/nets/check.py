"""Whether a network fits a problem, found out by one call."""

from __future__ import annotations

from torch import nn

from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import sobol, stream


def check_network(net: nn.Module, problem: Problem) -> nn.Module:
    """The network in float64, tried at a few inputs.

    Args:
        net: N, from (N, inputs) to (N, fields).
        problem: tells how many inputs and fields there are.

    Raises:
        InputError: if it is no torch module, cannot be called with such inputs, or has another number of outputs.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"the network is a {type(net).__name__}, not a torch module.")
    net = net.double()
    x = sobol(3, problem.inputs, seed=stream("network"))
    try:
        shape = tuple(net(x).shape)
    except RuntimeError as error:
        raise InputError(f"the network cannot be called with inputs of shape {tuple(x.shape)}: {error}.") from None
    if shape != (3, len(problem.fields)):
        raise InputError(
            f"the network maps inputs (3, {problem.inputs}) to {shape}, but it must give (3, {len(problem.fields)}), "
            f"one column for each of {', '.join(problem.fields)}."
        )
    return net
