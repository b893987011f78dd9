"""The rank where none is chosen.

    4 , or 8 where the smallest sufficient batch is under-determined with 8 and not with 4  (``sampling.batch_size``).

At width 40 a scalar equation has 1,073 coordinates at rank 4 and 1,889 at rank 8, the first and last layers included;
at width 128 3,537 at rank 4. The three components of Kovasznay flow have 2,520 residuals at 800 points: at width 40 too
many for both ranks, and 4 is the better one for the largest batch; at width 128 the 6,723 coordinates of rank 8 keep
the batch under-determined. The ranks 4 and 8 were chosen on the problems of the race (docs/results/defaults.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pinn_odelora.sampling.batch_size import under_determined

RANKS = (4, 8)


def initial_rank(layers: Mapping[str, nn.Linear], beside: int, sufficient: int) -> int:
    """The rank for layers that are to be adapted.

    Args:
        layers: by name; one that cannot have a rank has min(m, n) instead.
        beside: how many numbers are trained beside the factors.
        sufficient: residuals of the smallest sufficient batch.
    """
    sides = [(layer.out_features, layer.in_features) for layer in layers.values()]
    own = lambda r, m, n: min(r, m, n) * (m + n - min(r, m, n))
    dimension = lambda r: beside + sum(own(r, m, n) for m, n in sides)
    largest = max(min(side) for side in sides)
    fitting = (r for r in RANKS if r <= largest and under_determined(sufficient, dimension(r)))
    return next(fitting, min(RANKS[0], largest))
