"""python -m pinn_odelora deepxde SCRIPT.py: a DeepXDE script as it is, with our training in place of its own.

The script runs with ``deepxde.Model.train`` exchanged. Its first call trains the model by natural gradient, later ones
return at once: they would go on from a network that is trained. A call for no iterations, ``train(0)``, which gives the
losses of the network as it is, is DeepXDE's own. With ``--set Re=40`` the script runs twice: up to its
first call of ``train`` as it is, which trains the network, or takes the weights of ``--restore``; and with the other
value, where that network is adapted by low-rank factors.
"""

from __future__ import annotations

import ast
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinn_odelora.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

CALLS = 20
"""Of ``model.train`` on one model after which a script is taken to loop until losses of its own have fallen."""
Number = float | int
Training = Callable[[Any], None]


def run(script: Path, values: Sequence[str], seconds: float, restore: Path | None, rank: int) -> None:
    """Run a script, see the module's docstring.

    Args:
        script: the file.
        values: ``NAME=number`` for variables that the script sets at its top level.
        seconds: of training, and of adapting.
        restore: a file of ``model.save``, whose network is adapted.
        rank: of the factors.

    Raises:
        InputError: if the script cannot be read, has no such variable, or never calls ``model.train``.
    """
    other = with_numbers(parsed(script), numbers(values))
    if restore is not None and not values:
        raise InputError("--restore is for adapting: give --set NAME=number, too.")
    os.environ.setdefault("DDE_BACKEND", "pytorch")
    os.environ.setdefault("MPLBACKEND", "agg")
    from pinn_odelora.deepxde import adapt, train

    report = lambda result: print(f"pinn_odelora: {result}", flush=True)
    trained = lambda model: report(train(model, seconds))
    with progress():
        if not values:
            execute(script, other, trained)
            return
        weights = pretrained(script, restore, trained)

        def adapted(model: Any) -> None:
            model.net.load_state_dict(weights)
            report(adapt(model, seconds, rank=rank))

        execute(script, other, adapted)


@contextmanager
def progress() -> Iterator[None]:
    """Print what this package logs on the way."""
    log, lines = logging.getLogger("pinn_odelora"), logging.StreamHandler(sys.stdout)
    before = log.level
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.setLevel(before)


def parsed(script: Path) -> ast.Module:
    """The script as a syntax tree.

    Raises:
        InputError: if it cannot be read, or is no Python.
    """
    try:
        return ast.parse(script.read_bytes(), filename=str(script))
    except OSError as error:
        raise InputError(f"{script} cannot be read: {error.strerror}.") from None
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{script} is no Python: {error}.") from None


def numbers(values: Sequence[str]) -> dict[str, Number]:
    """Numbers by name, from ``NAME=number``."""
    found = {}
    for given in values:
        name, _, value = given.partition("=")
        number = _number(value)
        if number is None:
            raise InputError(f"--set {given} must be NAME=number, as in --set Re=40.")
        found[name.strip()] = number
    return found


def with_numbers(tree: ast.Module, values: Mapping[str, Number]) -> ast.Module:
    """The script with other numbers at its top level, changed in place.

    Raises:
        InputError: if it sets no such number.
    """
    set_there = {
        node.targets[0].id: node
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and _number(ast.unparse(node.value)) is not None
    }
    for name, value in values.items():
        if name not in set_there:
            raise unknown("number set at the top level of the script:", name, set_there)
        node = set_there[name]
        node.value = ast.copy_location(ast.Constant(value), node.value)
    return ast.fix_missing_locations(tree)


def _number(text: str) -> Number | None:
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError):
        return None
    return value if type(value) in (int, float) else None


def pretrained(script: Path, restore: Path | None, train: Training) -> Mapping[str, Tensor]:
    """The weights with which an adaptation starts, those of the script's model as it is."""
    found: dict[str, Tensor] = {}

    def keep(model: Any) -> None:
        if restore is None:
            train(model)
        else:
            from pinn_odelora.checkpoints import load_network

            load_network(model.net, str(restore))
        found.update({name: x.clone() for name, x in model.net.state_dict().items()})
        raise _Pretrained

    with suppress(_Pretrained):
        execute(script, parsed(script), keep)
    return found


class _Pretrained(Exception):  # noqa: N818  (it is no error)
    """The script has come to the end of its training."""


def execute(script: Path, tree: ast.Module, first: Training) -> None:
    """Run a script as Python does, ``first`` in place of the first call of each model's ``train``.

    Raises:
        InputError: if it never trains a model, or for ever.
    """
    from pinn_odelora.geometry.deepxde import library

    models = library().Model
    calls: dict[int, int] = {}
    kept = []

    def train(model: Any, *args: Any, **settings: Any) -> tuple[Any, Any]:
        if settings.get("iterations", next(iter(args), None)) == 0:
            return own(model, *args, **settings)
        calls[id(model)] = calls.get(id(model), 0) + 1
        if calls[id(model)] == 1:
            kept.append(model)  # alive, so that its id remains its own
            first(model)
        if calls[id(model)] > CALLS:
            raise InputError(
                f"{script} has called model.train {CALLS} times, each time with the network trained already: it seems "
                "to wait for a loss that this network does not reach; give more --seconds."
            )
        return model.losshistory, model.train_state

    own, argv, folder = models.train, sys.argv, str(script.resolve().parent)
    models.train = train
    sys.argv, sys.path = [str(script)], [folder, *sys.path]
    try:
        exec(compile(tree, str(script), "exec"), {"__name__": "__main__", "__file__": str(script)})
    finally:
        models.train = own
        sys.argv = argv
        sys.path.remove(folder)
    if not calls:
        raise InputError(f"{script} never calls model.train, which is where the network would be trained.")
