"""The start of a run: the pretrained network, kept in the run's folder with the facts that are known before
adaptation."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from torch import nn

from pinn_odelora import manifest
from pinn_odelora.adaptation import Adaptation
from pinn_odelora.checkpoints import load_network, save_network, units_of
from pinn_odelora.errors import InputError, within
from pinn_odelora.files import write_json
from pinn_odelora.formulation import Problem
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.measurements import measured_term
from pinn_odelora.metrics import known
from pinn_odelora.nets import Scaled, in_units, in_units_of
from pinn_odelora.plain_files import read_mapping
from pinn_odelora.pretraining import cache
from pinn_odelora.pretraining.pretrain import Pretraining, pretrained
from pinn_odelora.rules import null, number
from pinn_odelora.runs import provenance
from pinn_odelora.runs.folder import BASE, CONFIG, OUTCOME, PROVENANCE, START
from pinn_odelora.runs.leader import first
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
    part: str | None = None,
) -> nn.Module:
    """The network in its units: those of the file of its weights, that of a run to continue or the user's own, where
    there is one, and else those found for the problem that it will be trained on.

    Args:
        net: as the configuration gives it.
        problem, source: what it is adapted to, and trained on.
        settings: of pretraining.
        checkpoint, data: files of weights and of measured values.
        folder: of the run.
        part: of the file of weights, where several networks in it fit.
    """
    if folder is not None and (Path(folder) / START).is_file():
        checkpoint, part = str(Path(folder) / BASE), None
    if checkpoint is not None:
        return in_units_of(net, problem, units_of(checkpoint, part))
    measured = None if data is None else measured_term(data, problem)
    return in_units(net, source, measured) if settings.scales else net


def check_start(
    folder: Path,
    source: Problem,
    adaptation: Adaptation,
    settings: Pretraining,
    checkpoint: str | None,
    kept: Path | None,
    part: str | None = None,
) -> None:
    """Refuse, before anything is trained or written, what would end a run after pretraining.

    Raises:
        InputError: for a damaged run to continue, a checkpoint that does not fit, a cache that cannot be written.
    """
    if (folder / START).is_file():
        facts_of(folder)
    elif checkpoint is not None:
        with within("pretrain"):
            load_network(adaptation.net, checkpoint, part)
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
    part: str | None = None,
) -> dict[str, Any]:
    """Give the network its pretrained weights, keep them in the folder, and return the facts of the start."""
    net = adaptation.net
    if (folder / START).exists():
        if first() and (said := provenance.sentence(folder, source, net)):
            say(said)
        if first():
            manifest.leave_out(folder / MANIFEST, OUTCOME)
        load_network(net, folder / BASE)
        facts = facts_of(folder)
        adaptation.error_before = facts["rel_l2_before"]
        return facts
    if first():
        # Now, and not at the end, since files may be edited meanwhile.
        provenance.record(folder, source, net, (adaptation.data, checkpoint))
    net.to(device)
    if isinstance(net, Scaled):
        say(str(net.scales))
    # There is no step yet to end after.
    with leaving("before the first step", folder):
        network = pretrained(System(source, Solution(source, net)), settings, checkpoint, kept, say, part)
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
    except (OSError, ValueError) as error:
        said = str(error).rstrip(".")
        raise InputError(f"{file} is damaged ({said}); config.yaml repeats the run in another output_dir.") from None
