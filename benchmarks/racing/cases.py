"""What the contenders race on: jumps of a PDE parameter, each from a network pretrained at the problem's source.

The problem's own default jump; on four problems a harder jump from the same network; on three a wider network.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Case(NamedTuple):
    """A jump.

    ``overrides``: of the configuration, as on the command line. ``seeds``: of the points, and of the factors' start
    where it is random; the pretrained network is the same for all of them.
    """

    name: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    width: int = 40


def _wide(problem: str) -> Case:
    return Case(f"{problem}_wide", (f"problem={problem}", "net.width=128"), width=128)


CASES = {
    case.name: case
    for case in (
        Case("burgers", ("problem=burgers",)),
        Case("heat", ("problem=heat",)),
        Case("poisson", ("problem=poisson",)),
        Case("helmholtz", ("problem=helmholtz",)),
        Case("convection", ("problem=convection",)),
        Case("reaction", ("problem=reaction",)),
        Case("allen_cahn", ("problem=allen_cahn",)),
        Case("kovasznay", ("problem=kovasznay",)),
        Case("burgers_sharp", ("problem=burgers", f"problem.nu={0.01 / math.pi}")),
        Case("allen_cahn_sharp", ("problem=allen_cahn", "problem.d=1e-4")),
        Case("convection_fast", ("problem=convection", "problem.beta=20")),
        Case("kovasznay_fast", ("problem=kovasznay", "problem.re=80")),
        _wide("burgers"),
        _wide("convection"),
        _wide("kovasznay"),
    )
}
