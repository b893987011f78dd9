"""Check that a network fits a problem, by evaluating it once, and make its weights plain ones."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pinn_odelora.errors import InputError, cause
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import sobol, stream
from pinn_odelora.nets.scaled import in_declared_units
from pinn_odelora.nets.weight_norm import fold


def few_inputs(problem: Problem) -> Tensor:
    """Three rows with which a network for the problem can be called, (3, inputs), float64; always the same."""
    return sobol(3, problem.inputs, seed=stream("network"))


def check_network(net: nn.Module, problem: Problem) -> nn.Module:
    """Convert the network to float64, fold weight norm into the weights, put it in the units that the problem declares,
    and evaluate it at three inputs.

    Args:
        net: a module that maps (N, inputs) to (N, fields).
        problem: determines the number of inputs and of fields.

    Raises:
        InputError: if it is not a torch module, has spectral norm or weights without values, cannot be called with such
            inputs, or returns another shape.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"the network is a {type(net).__name__}, not a torch module.")
    net = net.double()
    fold(net)
    net = in_declared_units(net, problem)
    for name, x in net.state_dict().items():
        if is_lazy(x) or x.is_meta:
            where = "on the device meta" if x.is_meta else "before its layer is called, as in a LazyLinear"
            raise InputError(f"{name} of the network has no values {where}; make it with its size, on the CPU.")
        if not x.isfinite().all():
            raise InputError(f"{name} of the network holds values that are NaN or infinite.")
    x = few_inputs(problem)
    try:
        shape = tuple(net(x).shape)
    except RuntimeError as error:
        raise InputError(f"the network cannot be called with inputs of shape {tuple(x.shape)}: {error}.") from None
    except Exception as error:  # Somebody else's network can fail in any way.
        raise InputError(
            f"the network cannot be called with inputs of shape {tuple(x.shape)}: {cause(error)}."
        ) from error
    if shape != (3, len(problem.fields)):
        raise InputError(
            f"the network maps inputs (3, {problem.inputs}) to {shape}, but it must give (3, {len(problem.fields)}), "
            f"one column for each of {', '.join(problem.fields)}."
        )
    return net
