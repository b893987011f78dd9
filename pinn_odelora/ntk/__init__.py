"""The regime of the neural tangent kernel: the linearised model, its low-rank solutions, and what is known of them."""

from pinn_odelora.ntk.certificate import duality_gap, optimality
from pinn_odelora.ntk.linearise import Examples, linearised
from pinn_odelora.ntk.model import Linearised, nuclear_norm, ranks
from pinn_odelora.ntk.proximal import Solved, nuclear_norm_solution, proximal
from pinn_odelora.ntk.reduction import Reduced, reduce_rank
from pinn_odelora.ntk.thresholds import Threshold, Thresholds, rank_thresholds
from pinn_odelora.ntk.training import LinearisedRun, train

__all__ = [
    "Examples",
    "Linearised",
    "LinearisedRun",
    "Reduced",
    "Solved",
    "Threshold",
    "Thresholds",
    "duality_gap",
    "linearised",
    "nuclear_norm",
    "nuclear_norm_solution",
    "optimality",
    "proximal",
    "rank_thresholds",
    "ranks",
    "reduce_rank",
    "train",
]
