"""A finished run as a function:  u = load(run);  u(x, t);  and a finished family.

What reads the configuration is imported when it is needed: a caller who gives network and problem needs no Hydra.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from torch import nn

from pinn_odelora import manifest
from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.arguments import given as argument
from pinn_odelora.checkpoints import Weights, load_network
from pinn_odelora.errors import ChangedWarning, InputError
from pinn_odelora.field_networks import FieldNetwork, field_networks
from pinn_odelora.files import reason
from pinn_odelora.formulation import Problem
from pinn_odelora.lowrank.adapter_files import load_adapter
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.nets import check_network, copied, in_units_of
from pinn_odelora.nets.scaled import kept_units
from pinn_odelora.plain_files import read_mapping
from pinn_odelora.runs import provenance
from pinn_odelora.runs.folder import (
    ADAPTER,
    BASE,
    COEFFICIENTS,
    CONFIG,
    FAMILY,
    PROVENANCE,
    UNKNOWN_FIELDS,
    WEIGHTS,
)
from pinn_odelora.runs.trust import argument as words
from pinn_odelora.runs.trust import check_names, trusted

if TYPE_CHECKING:
    from pinn_odelora.families.family import Family

READ = (PROVENANCE, BASE, ADAPTER, WEIGHTS, COEFFICIENTS, UNKNOWN_FIELDS)
"""What is read of a run besides its configuration."""
OWN = (ADAPTER, WEIGHTS, FAMILY)
"""One of which a finished run has."""


def load(
    run: str | Path,
    net: nn.Module | None = None,
    problem: Problem | None = None,
    *,
    trust: str | Sequence[str] = (),
) -> AdaptedSolution:
    """The adapted solution of a run folder, on the CPU in double precision.

    Args:
        run: the folder that ``train.py`` or ``result.save`` left.
        net: a network of the structure that was adapted, (N, inputs) -> (N, fields), where ``config.yaml`` in the
            folder cannot build it. Its weights do not matter; it is copied, not changed.
        problem: the problem, where ``config.yaml`` cannot build it, as for one made by ``po.problem``. Coefficients
            that the run has found take the place of its values.
        trust: modules that ``config.yaml`` in the folder may import and call, beside this package, ``problems`` and
            the layers of torch: a run folder is data, and what it names is called only if the caller says so.

    Raises:
        InputError: if the folder holds no run, an unfinished one, or one of an earlier version; a file in it is
            damaged; network or problem must be given, or their module be trusted; or the network is not of the
            structure that was adapted.

    Warns:
        ChangedWarning: if the source of problem or network, or a file that the run has read, has changed since.
    """
    folder = _folder(run)
    if (folder / FAMILY).exists():
        raise InputError(
            f"{folder} holds a family of solutions; ask for one: python -m pinn_odelora family {quote(str(folder))}"
        )
    problem, net = base(folder, net, problem, trust)
    if (folder / ADAPTER).exists():
        load_adapter(net, folder / ADAPTER)
    elif (folder / WEIGHTS).exists():
        load_network(net, folder / WEIGHTS)
    else:
        raise _unfinished(folder)
    return AdaptedSolution(problem, net, found_fields(problem, folder / UNKNOWN_FIELDS))


def family(run: str | Path, *, trust: str | Sequence[str] = ()) -> Family:
    """The family in the folder that ``train.py`` left.

    Args:
        run: the folder.
        trust: modules that ``config.yaml`` in it may import and call, see ``load``.

    Raises:
        InputError: if the folder holds none, or ``config.yaml`` cannot build its network or problem.
    """
    from pinn_odelora.families.files import load_family

    folder = _folder(run)
    if not (folder / FAMILY).exists():
        raise InputError(f"{folder} holds no family: there is no {FAMILY} in it.")
    problem, net = base(folder, trust=trust)
    found = load_family(folder / FAMILY, net, problem)
    manifest.check(folder / MANIFEST, FAMILY)  # what differs is named before
    return found


def base(
    folder: Path, net: nn.Module | None = None, problem: Problem | None = None, trust: str | Sequence[str] = ()
) -> tuple[Problem, nn.Module]:
    """The problem of a run and the user's network as it was before adaptation; for the arguments see ``load``."""
    configured = () if net is not None and problem is not None else (CONFIG,)
    manifest.check(folder / MANIFEST, *configured, *READ)
    given, modules = net is not None, trusted(trust)
    solved = problem
    if net is None or problem is None:
        from omegaconf import OmegaConf

        from pinn_odelora.config.build import network, posed
        from pinn_odelora.runs.configuration import saved_config

        cfg = saved_config(folder)
        if problem is None:
            with _building("problem", folder):
                check_names("problem", OmegaConf.to_container(cfg.problem), modules)
                problem, solved, _ = posed(cfg)
    problem = with_coefficients(problem, folder)
    if not (folder / BASE).exists():
        raise _without_network(folder)
    # A damaged file must not be taken for a network that does not fit.
    weights = Weights(folder / BASE)
    if given:
        net = in_units_of(check_network(copied(net).cpu(), problem), problem, weights.tensors)
        weights.load(net)
    else:
        with _building("net", folder):
            check_names("net", OmegaConf.to_container(cfg.net), modules)
            net = in_units_of(check_network(network(cfg, problem, solved), problem), problem, weights.tensors)
            weights.load(net)
    provenance.warn(folder, problem, net)
    if said := kept_units(net, problem):
        warnings.warn(said, ChangedWarning, stacklevel=3)
    return problem, net


def _folder(run: str | Path) -> Path:
    """The folder of a run; refuses a file, and what is a part of a run."""
    folder = Path(run)
    part = (folder.parent / CONFIG).exists() and not any((folder / own).exists() for own in (CONFIG, *OWN))
    if folder.is_file() or (folder.is_dir() and part):
        whole = f"a part of one: load {folder.parent}" if part else "a file"
        raise InputError(f"{folder} is not the folder of a run, but {whole}.")
    return folder


def _unfinished(folder: Path) -> InputError:
    command = f"python train.py {argument('resume', folder)}{words(folder)}"
    return InputError(f"{folder} holds no finished run; continue it with: {command}")


def _without_network(folder: Path) -> InputError:
    """Why there is no network in a folder: no run, or one that has not got so far."""
    there = (folder / CONFIG).exists()
    return _unfinished(folder) if there else InputError(f"{folder} holds no run: there is no {CONFIG} in it.")


@contextmanager
def _building(part: str, folder: Path) -> Iterator[None]:
    """Ask for an object that the configuration does not describe well enough to be built here."""
    try:
        yield
    except Exception as error:  # The constructor of somebody else's class can fail in any way.
        said = str(error).partition("\n")[0].rstrip(".:") or type(error).__name__
        what = "network" if part == "net" else part
        raise InputError(
            f"{folder / CONFIG} cannot build the {what} here ({said}); give it: load(run, {part}=...)."
        ) from error


def with_coefficients(problem: Problem, folder: Path) -> Problem:
    """The problem with the values that the run found for its unknown coefficients."""
    file = folder / COEFFICIENTS
    if not file.exists():
        return problem
    try:
        return dataclasses.replace(problem, **read_mapping(file))
    except OSError as error:
        raise InputError(f"Cannot read {file}: {reason(error)}.") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged, or belongs to another problem ({error}).") from None


def found_fields(problem: Problem, file: Path) -> Mapping[str, FieldNetwork]:
    """The networks of the unknown fields that the run found."""
    networks = nn.ModuleDict(field_networks(problem) if file.exists() else {})
    if file.exists():
        load_network(networks, file)
    return dict(networks.items())
