"""Adapt a pretrained physics-informed network:  python train.py problem=burgers  (python train.py --help)."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from pinn_odelora import config
from pinn_odelora.streams import program


def train(cfg: DictConfig) -> None:
    cfg, folder = config.begin(cfg)  # the whole configuration is checked

    from pinn_odelora.config.build import experiment
    from pinn_odelora.config.running import Run
    from pinn_odelora.config.solving import FamilyRun, LinearisedAdaptation
    from pinn_odelora.runs.alone import alone
    from pinn_odelora.runs.messages import continuable

    solved = FamilyRun if cfg.family else LinearisedAdaptation if cfg.training.regime == "linearised" else None
    run = (solved or Run)(cfg, folder, experiment(cfg))  # all that can be refused
    with alone(folder, new=cfg.resume is None), continuable(folder):
        config.save_config(cfg, folder)
        facts = run.pretrain()
        if solved:
            run.solve(facts)
            return
        module = run.fit(facts)
        if module.interrupted:
            run.leave(module)
        result = module.adaptation.result()
        run.conclude(result, facts)


if __name__ == "__main__":
    with program():
        sys.exit(config.run(train))
