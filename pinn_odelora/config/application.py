"""What Hydra is told about this program: to write no files, to leave some groups open, and what ``--help`` prints.

A group whose YAML holds only a ``_target_`` takes any argument that the target does; Hydra would refuse keys that are
not in the file. So those parts of the configuration are marked open here, and ``checks`` holds the keys against the
target. The settings stand in Hydra's own place and not in configs/, so that a run's saved configuration needs none of
them.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import indent

from hydra.conf import HydraConf, RunDir, SweepDir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pinn_odelora.config.folders import RUNS
from pinn_odelora.config.settings import OPEN
from pinn_odelora.registry import targets


def register() -> None:
    """Store the program's settings of Hydra, in the place of Hydra's defaults, and problems of installed packages.

    Raises:
        InputError: if a problem of an installed package has a name that is taken, or names no class.
    """
    kept = [d for d in HydraConf().defaults if not d.keys() & {"output", "job_logging", "env"}]
    settings = HydraConf(
        defaults=[*kept, {"output": None}, {"job_logging": "stdout"}, {"env": "open"}, "_self_"],
        output_subdir=None,
        run=RunDir("."),
        sweep=SweepDir(f"${{place:${{output_dir}},{RUNS}/.sweeps/${{now:%Y%m%d-%H%M%S}}}}", "."),
        callbacks={"checks": {"_target_": "pinn_odelora.config.program.SweepCheck"}},
    )
    resolver = OmegaConf.register_new_resolver
    resolver("place", lambda path, runs: runs if path is None else str(Path(path).expanduser()), replace=True)
    resolver("first_rank", lambda rank, start: start if rank == "adaptive" else rank, replace=True)
    store = ConfigStore.instance()
    store.store(group="hydra", name="config", node=settings, provider="pinn_odelora")
    for name, target in targets().items():
        store.store(group="problem", name=name, node={"_target_": target}, provider="pinn_odelora")
    store.store(group="hydra/env", name="open", node=_open_parts(), package="_global_", provider="pinn_odelora")


def explained(configs: Path) -> str:
    """The text of ``--help``: ``train.yaml`` as it is written, with the members of the groups above its keys.

    Groups whose keys are not the arguments of an object are part of it, with the keys of the default member. Hydra's
    own help would read every configuration there is, which is most of the time that it takes.
    """
    above, _, below = (configs / "train.yaml").read_text(encoding="utf-8").partition("defaults:\n")
    defaults, *keys = below.split("\n\n")
    members = {f.name: {member.stem for member in f.glob("*.yaml")} for f in sorted(configs.iterdir()) if f.is_dir()}
    members["problem"] |= targets().keys()
    for group, member in re.findall(r"- (\w+): (\w+)", defaults):
        file = configs / group / f"{member}.yaml"
        if file.exists() and "_target_" not in (text := file.read_text(encoding="utf-8")):
            keys.append(f"{group}:  # as in {group}={member}\n{indent(text, '  ')}")
    groups = "\n".join(f"{group}: {', '.join(sorted(names))}" for group, names in members.items())
    return re.sub("^# ?", "", above, flags=re.MULTILINE) + f"{groups}\n\n" + "\n\n".join(key.rstrip() for key in keys)


def _open_parts() -> DictConfig:
    """Empty nodes that take any key, themselves and inside; what is merged into them stays open."""
    parts = OmegaConf.create()
    for key in OPEN:
        OmegaConf.update(parts, key, {})
        OmegaConf.set_struct(OmegaConf.select(parts, key), False)
    return parts
