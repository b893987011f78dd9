"""What Hydra is told about this program: to write no files, to leave some groups open, and what ``--help`` prints.

A group whose YAML holds only a ``_target_`` takes any argument that the target does; Hydra would refuse keys that are
not in the file. So those parts of the configuration are marked open here, and ``checks`` holds the keys against the
target. The settings stand in Hydra's own place and not in configs/, so that a run's saved configuration needs none of
them.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import yaml
from hydra.conf import HelpConf, HydraConf, RunDir, SweepDir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pinn_odelora.config.folders import RUNS
from pinn_odelora.config.settings import OPEN
from pinn_odelora.registry import targets


def register(configs: Path | None = None) -> None:
    """Store the program's settings of Hydra, in the place of Hydra's defaults, and problems of installed packages.

    Args:
        configs: the folder of the configuration, for ``--help``.

    Raises:
        InputError: if a problem of an installed package has a name that is taken, or names no class.
    """
    kept = [d for d in HydraConf().defaults if not d.keys() & {"output", "job_logging", "env"}]
    settings = HydraConf(
        defaults=[*kept, {"output": None}, {"job_logging": "stdout"}, {"env": "open"}, "_self_"],
        output_subdir=None,
        run=RunDir("."),
        sweep=SweepDir(f"${{place:${{output_dir}},{RUNS}/.sweeps/${{now:%Y%m%d-%H%M%S}}}}", "."),
        help=HelpConf(template=explained(configs) if configs else ""),
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
    """``train.yaml`` as it is written: what stands above its defaults, the groups, and all keys.

    Groups whose keys are not the arguments of an object are part of it, with the keys of the default member.
    """
    above, _, below = (configs / "train.yaml").read_text(encoding="utf-8").partition("defaults:\n")
    defaults, *keys = below.split("\n\n")
    for line in yaml.safe_load(defaults):
        for group, member in line.items() if isinstance(line, dict) else ():
            text = (configs / group / f"{member}.yaml").read_text(encoding="utf-8") if member else "_target_"
            if "_target_" not in text:
                keys.append(f"{group}:  # as in {group}={member}\n{indent(text, '  ')}")
    intro = "\n".join(line.removeprefix("#").removeprefix(" ") for line in above.splitlines())
    return f"{intro}\n$APP_CONFIG_GROUPS\n" + "\n\n".join(key.rstrip() for key in keys).replace("$", "$$")


def _open_parts() -> DictConfig:
    """Empty nodes that take any key, themselves and inside; what is merged into them stays open."""
    parts = OmegaConf.create()
    for key in OPEN:
        OmegaConf.update(parts, key, {})
        OmegaConf.set_struct(OmegaConf.select(parts, key), False)
    return parts
