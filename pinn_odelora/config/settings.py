"""What Hydra is told about this program: to write no files, to leave some groups open, and what ``--help`` says.

A group whose YAML holds only a ``_target_`` takes any key that the target does; Hydra would refuse keys that are not in
the file. So those parts of the configuration are marked open here, and ``checks`` holds the keys against the target.
The settings stand in Hydra's own place and not in configs/, so that a run's saved configuration needs none of them.
"""

from __future__ import annotations

import os

from hydra.conf import HelpConf, HydraConf, RunDir, SweepDir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pinn_odelora.config.folders import RUNS
from pinn_odelora.config.keys import ADAPTIVE, OPEN, PROVIDED, help_lines

HELP = f"""\
Adapt a pretrained physics-informed network to a new problem parameter by training low-rank factors along an ODE.

  python train.py problem=burgers
  python train.py problem=heat integrator=rk4 integrator.h=0.03 lora.rank=4 budget.seconds=10 output_dir=my_run
  python train.py -m problem=burgers,heat method=odelora,lora_adam seed=0,1,2

Choose a member of each group, group=member, and set what it takes, group.key=value:

$APP_CONFIG_GROUPS
Other keys, key=value:

{help_lines()}

A coefficient of the equation may be unknown, as problem.nu=unknown, and is found from data.file.
-m runs every combination of a,b,c; --cfg job shows the configuration without running it.
python -m pinn_odelora list describes the problems and methods; README.md and docs/ say more.
"""


def register() -> None:
    """Store the program's settings of Hydra, in the place of Hydra's defaults."""
    kept = [d for d in HydraConf().defaults if not d.keys() & {"output", "job_logging", "env"}]
    settings = HydraConf(
        defaults=[*kept, {"output": None}, {"job_logging": "stdout"}, {"env": "open"}, "_self_"],
        output_subdir=None,
        run=RunDir("."),
        sweep=SweepDir(f"${{sweep_folder:${{output_dir}},{RUNS}/.sweeps/${{now:%Y%m%d-%H%M%S}}}}", "."),
        help=HelpConf(template=HELP),
        callbacks={"ending": {"_target_": "pinn_odelora.config.program.Ending"}},
    )
    OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, replace=True)
    OmegaConf.register_new_resolver("first_rank", _first_rank, replace=True)
    store = ConfigStore.instance()
    store.store(group="hydra", name="config", node=settings, provider="pinn_odelora")
    store.store(group="hydra/env", name="open", node=_open_parts(), package="_global_", provider="pinn_odelora")


def _sweep_folder(output_dir: str | None, otherwise: str) -> str:
    """Where Hydra records a sweep: beside its runs, if they have a place of their own."""
    return otherwise if output_dir is None else os.path.expanduser(output_dir)


def _first_rank(rank: int | str, start: int) -> int | str:
    """The rank that factors start with."""
    return start if rank == ADAPTIVE else rank


def _open_parts() -> DictConfig:
    """Empty nodes that take any key, themselves and inside; what is merged into them stays open."""
    parts = OmegaConf.create()
    for key in (*PROVIDED, *(key for key in OPEN if key.split(".")[0] not in PROVIDED)):
        OmegaConf.update(parts, key, {})
        OmegaConf.set_struct(OmegaConf.select(parts, key), False)
    return parts
