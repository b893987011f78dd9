"""Draws docs/family.png: one network, and the solutions of Burgers' equation at any viscosity between 0.05 and 0.006.

python docs/family.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

import pinn_odelora as po
from pinn_odelora.diagnostics import errors
from problems.burgers import Burgers

mpl.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path(__file__).parent / "family.png"
SHOWN, ANSWERED = (0.05, 0.03, 0.02, 0.013, 0.009, 0.006), 60


def main() -> None:
    """Pretrain, solve the family by as many steps as fit into a minute, and ask it for sixty members."""
    net = po.pretrain(Burgers(nu=0.05))
    family = po.family(net, Burgers(), nu=(0.05, 0.006), budget=po.Budget(steps=300))
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    x = np.linspace(-1, 1, 801)
    for nu, colour in zip(SHOWN, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(SHOWN))), strict=True):
        left.plot(x, family(nu=nu)(x, 1.0), color=colour, label=f"ν = {nu:g}", linewidth=1.3)
    left.set(xlabel="x", ylabel="u(x, 1)", title="members of one family")
    left.legend(frameon=False, fontsize=8)
    asked = np.exp(np.random.default_rng(1).uniform(*np.log((0.006, 0.05)), ANSWERED))
    answers = family.answers(nu=np.sort(asked))
    truth = [errors(u.problem, po.Solution(u.problem, u.net), 4096)["error/rel_l2"] for u in answers]
    at = [u.values["nu"] for u in answers]
    right.loglog(at, [u.error for u in answers], "-", color="0.6", label="estimated")
    right.loglog(at, truth, ".", color="C3", label="true")
    stations = [s.values["nu"] for s in family.stations]
    right.plot(stations, [min(truth) / 2] * len(stations), "|", color="C0", label="stations")
    right.set(xlabel="ν", ylabel="relative L2 error", title=f"{ANSWERED} answers")
    right.minorticks_off()
    right.set_xticks((0.006, 0.01, 0.02, 0.05), ("0.006", "0.01", "0.02", "0.05"))
    right.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
