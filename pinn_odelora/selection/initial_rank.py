"""How many rows the points of a step give, and the rank where none is chosen.

A term of c components gives c rows at each of its points; measured points do not count, since a step has them anyway.
Enough for a step are the rows of 800 points inside the domain, see ``growth``: with at least twice as many columns
steps rest there, below the peak of double descent, and are at their cheapest. So without a choice the rank is

    4 , or 8 where steps rest with 8 and not with 4:

at width 40 a scalar equation has 953 columns at rank 4 and 1769 at rank 8, the last layer included; at width 128 3,153
at rank 4. The three components of Kovasznay flow have 2,520 rows at 800 points. At width 40 that is too many for both,
and 4 is the better one for steps of all rows; at width 128 they rest with the 6,339 columns of rank 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.sampling.batch_size import below_the_peak
from pinn_odelora.system import System, draw_points

ENOUGH = 800
"""Interior points that may do without more."""
RANKS = (4, 8)


def components(system: System) -> dict[str, int]:
    """How many each term has; found with a system of its own, since engines keep to the first points they see."""
    like = next(system.solution.parameters())
    few = {name: p.to(like) for name, p in draw_points(system.terms, 8, 8, seed=0).items()}
    apart = System(system.problem, system.solution, system.extra, system.derivatives)
    return {name: r.shape[1] for name, r in apart.residuals(few).items()}


def drawn(terms: Mapping[str, Term], each: Mapping[str, int], interior: int, boundary: int) -> int:
    """The rows of all points that are drawn; ``each`` has the components of a term, 1 where it has none."""
    size = lambda term: interior if term.where.interior else boundary
    return sum(each.get(name, 1) * size(x) for name, x in terms.items() if not isinstance(x.where, Cloud))


def enough(rows: int, interior: int) -> int:
    """Those that go with 800 of so many interior points."""
    return math.ceil(ENOUGH * rows / interior)


def rank(layers: Mapping[str, nn.Linear], beside: int, rows: int) -> int:
    """The one without a choice, for layers that are to be adapted; ``beside`` is what else is trained."""
    sides = [(layer.out_features, layer.in_features) for layer in layers.values()]
    columns = lambda r: beside + sum(r * (m + n - r) for m, n in sides)
    largest = min(min(side) for side in sides)
    resting = (r for r in RANKS if r <= largest and below_the_peak(rows, columns(r)))
    return next(resting, min(RANKS[0], largest))
