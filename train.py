"""Adapt a pretrained physics-informed network:  python train.py problem=burgers  (python train.py --help)."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from pinn_odelora import config as commandline


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def train(cfg: DictConfig) -> None:
    cfg, folder = commandline.begin(cfg)  # all that can be refused without torch is refused here

    from pinn_odelora.config import build

    built = build.experiment(cfg)  # problem, network, method, and one rehearsed step

    from pinn_odelora.config import run
    from pinn_odelora.files import write_json
    from pinn_odelora.runs import conclude
    from pinn_odelora.runs import folder as files

    run.check(cfg, folder)
    commandline.save_config(cfg, folder)
    run.set_up_process(cfg)
    facts = run.pretrained_network(cfg, built, folder)
    loggers = run.loggers(cfg, folder, facts)
    module = run.fit(cfg, built, loggers, folder)
    if module.interrupted:
        conclude.interrupted(module, loggers, folder)

    conclude.save_weights(module, folder)
    conclude.save_coefficients(module, folder)
    result = conclude.summary(cfg, module, facts)
    write_json(folder / files.SUMMARY, result)
    conclude.publish(loggers, module, result, conclude.pictures(module, folder))
    conclude.last_words(module, result, folder)


if __name__ == "__main__":
    sys.exit(commandline.run(train))
