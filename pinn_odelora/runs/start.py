"""The start of a run: the pretrained network, kept in the run's folder with the facts that are known before
adaptation."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from torch import nn

from pinn_odelora.adaptation import Adaptation
from pinn_odelora.checkpoints import load_network, read_state_dict, save_network
from pinn_odelora.errors import InputError
from pinn_odelora.files import write_json
from pinn_odelora.formulation import Problem
from pinn_odelora.measurements import measured_term
from pinn_odelora.nets import Scaled, in_units, in_units_of
from pinn_odelora.pretraining import cache
from pinn_odelora.pretraining.pretrain import Pretraining, pretrained
from pinn_odelora.runs.folder import BASE, START
from pinn_odelora.runs.messages import leaving, say
from pinn_odelora.system import Solution, System


def in_units_at_start(
    net: nn.Module,
    problem: Problem,
    source: Problem,
    settings: Pretraining,
    checkpoint: str | None,
    data: str | None,
    folder: str | None,
) -> nn.Module:
    """The network in its units: those of the file of its weights, that of a run to continue or the user's own, where
    there is one, and else those found for the problem that it will be trained on.

    Args:
        net: as the configuration gives it.
        problem, source: what it is adapted to, and trained on.
        settings: of pretraining.
        checkpoint, data: files of weights and of measured values.
        folder: of the run.
    """
    if folder is not None and (Path(folder) / START).is_file():
        checkpoint = str(Path(folder) / BASE)
    if checkpoint is not None:
        return in_units_of(net, problem, read_state_dict(checkpoint))
    measured = None if data is None else measured_term(data, problem)
    return in_units(net, source, measured) if settings.scales else net


def check_start(
    folder: Path,
    source: Problem,
    adaptation: Adaptation,
    settings: Pretraining,
    checkpoint: str | None,
    kept: Path | None,
) -> None:
    """Refuse, before anything is trained or written, what would end a run after pretraining.

    Raises:
        InputError: for a damaged run to continue, a checkpoint that does not fit, a cache that cannot be written.
    """
    if (folder / START).is_file():
        facts_of(folder)
    elif checkpoint is not None:
        load_network(adaptation.net, checkpoint)
    else:
        cache.check_writable(kept, cache.key(source, adaptation.net, settings))


def start(
    folder: Path,
    source: Problem,
    adaptation: Adaptation,
    settings: Pretraining,
    checkpoint: str | None = None,
    kept: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Give the network its pretrained weights, keep them in the folder, and return the facts of the start."""
    net = adaptation.net
    if (folder / START).exists():
        load_network(net, folder / BASE)
        facts = facts_of(folder)
        adaptation.error_before = facts["rel_l2_before"]
        return facts
    net.to(device)
    if isinstance(net, Scaled):
        say(str(net.scales))
    # There is no step yet to end after.
    with leaving("before the first step", folder):
        known = pretrained(System(source, Solution(source, net)), settings, checkpoint, kept, say)
    net.to("cpu")
    save_network(net, folder / BASE, {"problem": repr(source)})
    facts = {
        "pretrain_rel_l2": known.rel_l2,
        "pretrain_loss": known.loss,
        "pretrain_seconds": known.seconds,
        "pretrain_origin": known.origin,
        "rel_l2_before": adaptation.error_before,
        "tracking_id": secrets.token_hex(4),
    }
    write_json(folder / START, facts)
    return facts


def facts_of(folder: Path) -> dict[str, Any]:
    """What was known before adaptation.

    Raises:
        InputError: if the file is damaged.
    """
    file = folder / START
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); config.yaml repeats the run in another output_dir.") from None
