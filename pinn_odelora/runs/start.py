"""The start of a run: the pretrained network, kept in the run's folder with the facts that are known before
adaptation."""

from __future__ import annotations

import math
import re
import secrets
from pathlib import Path
from typing import Any

from torch import nn

from pinn_odelora import manifest
from pinn_odelora.adaptation import Adaptation
from pinn_odelora.checkpoints import Weights, save_network
from pinn_odelora.errors import InputError, OutOfTimeError, RefusedValueError, within
from pinn_odelora.files import reason, write_json
from pinn_odelora.formulation import Problem
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.measurements import measured_term
from pinn_odelora.metrics import known
from pinn_odelora.nets import Scaled, in_units, in_units_of
from pinn_odelora.nets.scaled import kept_units
from pinn_odelora.plain_files import read_mapping
from pinn_odelora.pretraining import cache
from pinn_odelora.pretraining.pretrain import Pretraining, pretrained
from pinn_odelora.rules import null, number
from pinn_odelora.runs import provenance
from pinn_odelora.runs.folder import BASE, CONFIG, OUTCOME, PROVENANCE, START, UNFINISHED
from pinn_odelora.runs.leader import first
from pinn_odelora.runs.messages import leave, leaving, say
from pinn_odelora.system import Solution, System
from pinn_odelora.wall import elapsed

MORE = 1.1
"""So many times what did not suffice for pretraining it must have to begin again."""


def weights_at_start(folder: str | None, checkpoint: str | None, part: str | None = None) -> Weights | None:
    """The weights that a run begins with: those of a run to continue or the user's own; None where it trains them.

    Args:
        folder: of the run.
        checkpoint: the user's file of weights.
        part: of the file of weights, where several networks in it fit.

    Raises:
        InputError: if the file cannot be read.
    """
    if folder is not None and (Path(folder) / START).is_file():
        return Weights(Path(folder) / BASE)
    with within("pretrain"):
        return None if checkpoint is None else Weights(checkpoint, part)


def in_units_at_start(
    net: nn.Module, problem: Problem, source: Problem, settings: Pretraining, weights: Weights | None, data: str | None
) -> nn.Module:
    """The network in its units: those of its weights, where there are some, and else those found for the problem that
    it will be trained on.

    Args:
        net: as the configuration gives it.
        problem, source: what it is adapted to, and trained on.
        settings: of pretraining.
        weights: that it begins with.
        data: file of measured values.
    """
    if weights is not None:
        net = in_units_of(net, problem, weights.units)
        if first() and (said := kept_units(net, problem)):
            say(said)
        return net
    measured = None if data is None else measured_term(data, problem)
    return in_units(net, source, measured) if settings.scales else net


def check_start(
    folder: Path,
    source: Problem,
    adaptation: Adaptation,
    settings: Pretraining,
    weights: Weights | None,
    kept: Path | None,
) -> None:
    """Refuse, before anything is trained or written, what would end a run after pretraining.

    Raises:
        InputError: for a damaged run to continue, a checkpoint that does not fit, a cache that cannot be written, and
            a time in which pretraining did not come to its end before.
    """
    if (folder / START).is_file():
        facts_of(folder)
    elif weights is not None:
        with within("pretrain"):
            weights.load(adaptation.net)
    else:
        key = cache.key(source, adaptation.net, settings)
        cache.check_writable(kept, key)
        if not cache.holds(kept, key):
            _check_time(folder, adaptation.budget.wall)


def start(
    folder: Path,
    source: Problem,
    adaptation: Adaptation,
    settings: Pretraining,
    weights: Weights | None = None,
    kept: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Give the network its pretrained weights, keep them in the folder, and return the facts of the start."""
    net = adaptation.net
    if (folder / START).exists():
        if first() and (said := provenance.sentence(folder, source, net)):
            say(said)
        if first():
            manifest.leave_out(folder / MANIFEST, OUTCOME)
        if weights is None or Path(weights.path) != folder / BASE:  # another process has pretrained it meanwhile
            weights = Weights(folder / BASE)
        weights.load(net)
        facts = facts_of(folder)
        adaptation.error_before = facts["rel_l2_before"]
        return facts
    if first():
        # Now, and not at the end, since files may be edited meanwhile.
        provenance.record(folder, source, net, (adaptation.data, None if weights is None else weights.path))
    net.to(device)
    if isinstance(net, Scaled):
        say(str(net.scales))
    wall, begun = adaptation.budget.wall, elapsed()
    # There is no step yet to end after.
    with leaving("before the first step", folder):
        try:
            network = pretrained(System(source, Solution(source, net)), settings, weights, kept, say, wall)
        except OutOfTimeError:
            write_json(folder / UNFINISHED, {"seconds": (had := wall - begun)})
            say(f"Pretraining is not divided: nothing of it is kept, and the {had:.0f} s that it had are too few.")
            leave("before the first step", folder, paused=True)
    net.to("cpu")
    save_network(net, folder / BASE, {"problem": repr(source)})
    facts = {
        "pretrain_rel_l2": known(network.rel_l2),
        "pretrain_loss": known(network.loss),
        "pretrain_seconds": known(network.seconds),
        "pretrain_origin": network.origin,
        "rel_l2_before": known(adaptation.error_before),
        "tracking_id": secrets.token_hex(4),
    }
    write_json(folder / START, facts)
    if first():
        manifest.write(folder / MANIFEST, (CONFIG, PROVENANCE, BASE, START))
    return facts


def _check_time(folder: Path, wall: float | None) -> None:
    """Refuse to begin pretraining again in a time that did not suffice: a scheduler would repeat that for ever."""
    if wall is None or not (folder / UNFINISHED).is_file():
        return
    try:
        had = number(above=0).check("seconds", read_mapping(folder / UNFINISHED).get("seconds"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / UNFINISHED} is damaged ({str(error).rstrip('.')}): remove it.") from None
    if wall - elapsed() < (needed := MORE * had):
        allowed = (
            f"at least {math.ceil(needed + elapsed()) + 1} or null, since pretraining, which is not divided, did not "
        )
        raise RefusedValueError("budget.wall", wall, f"{allowed}end in the {had:.0f} s that it had before")


def facts_of(folder: Path) -> dict[str, Any]:
    """What was known before adaptation.

    Raises:
        InputError: if the file is damaged.
    """
    file = folder / START
    try:
        facts = read_mapping(file)
        (number(least=0) | null).check("rel_l2_before", facts.get("rel_l2_before", ""))
        if not re.fullmatch("[0-9a-f]{8}", str(facts.get("tracking_id"))):
            raise ValueError("it has no tracking_id")
        return facts
    except OSError as error:
        said = f"Cannot read {file}: {reason(error)}; config.yaml repeats the run in another output_dir."
        raise InputError(said) from error
    except ValueError as error:
        said = str(error).rstrip(".")
        raise InputError(f"{file} is damaged ({said}); config.yaml repeats the run in another output_dir.") from None
