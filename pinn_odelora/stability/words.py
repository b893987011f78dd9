"""What the page says about its tables, and what its verdicts rest on."""

from __future__ import annotations

from pinn_odelora.stability.plan import RESIDUALS, Form

VERDICTS = (
    "The source, of which only the abstract is known to us, claims that its dynamics, discretised by schemes "
    "including Euler's and Runge–Kutta, are better than existing baselines on physics-informed networks, especially in "
    "the stability of training. Each claim is judged for this package's default, for the linearly implicit scheme with "
    "the rank and the points of all others, and for the better one of Euler's scheme and RK4, each against the rival "
    "that is best in this measure. The difference is ours minus the rival's, with its nominal 95 % interval over "
    "problems and seeds; a claim is undecided where zero is inside. *Ahead* counts problems where ours is better."
)
LIMITS = (
    "* **Few problems.** Verdicts are about these four problems, these networks and this budget. The interval leaves "
    "out zero whenever ours is better on all four, or worse on all four, which chance alone brings about once in eight "
    "times. Nothing is corrected for the number of claims.",
    "* **More than a scheme.** `odelora` has a rank and residual-based points of its own. It and `odelora_implicit` "
    "without a step size return their best iterate, by the loss on validation points; all other runs return the last "
    "one. That returned losses hardly rise and no such run diverges follows in part from this choice. Columns and rows "
    "of last iterates are free of it.",
    "* **Step sizes.** Those of published optimisers are centred on the default learning rate of their functions here; "
    "those of integrators were centred by probes on Burgers' equation. The share of step sizes that diverge depends on "
    "where they are centred. Learning rates are constant, without warm-up or decay, and all other constants of the "
    "rivals have their defaults.",
    "* **Larger step sizes of ours.** The linearly implicit scheme was given more step sizes after the first seed had "
    "shown that it works at the end of its grid on Allen–Cahn. Verdicts, losses, shares of divergence and "
    "predictions leave them out, so that all methods have equally many; the other tables, the target of its width and "
    "the picture include them.",
    "* **Speed.** To leave a tenth of the error after so few evaluations takes speed as much as tolerance of step "
    "sizes: a method that needs more of them has no width, however steady it is. Halving is judged beside it.",
    "* **Standing still.** A method that hardly moves neither rises nor diverges, keeps its condition number, and does "
    "not depend on the seed. Where the best rival is such a method, its errors tell.",
    "* **Costs.** Equal evaluations are not equal times: the table of errors has the seconds of a run.",
    "* **Selection.** The best step size is chosen by the errors that are reported, for every method; the best rival "
    "by the values that are compared, which leans against us; so is the better one of Euler's scheme and RK4, which "
    "leans the other way.",
)
LOSSES = (
    "Problems on which a rival is better than ours in the same measure, by medians over seeds and with the step sizes "
    "that all methods have. A method that hardly moves does well in all of them except errors and working step sizes."
)
PICTURED = (
    "The error of what a run returns after all its evaluations, median over seeds, with a band from the best seed to "
    "the worst, over the step size relative to the middle of the method's grid (vertical line), which for published "
    "optimisers is the default. Horizontal lines: the error of the start, a tenth of it (dotted), and the default "
    "settings of this package, which choose their step size (dash-dotted). Crosses at 10: errors above, or without a "
    "value."
)
WIDE = (
    "Decades between the ends of the longest row of neighbouring step sizes that reach a tenth of the error at the "
    "start, median over seeds: 0.0 where no two neighbours do, *none* where no step size does with any seed; ≥ where "
    "the row reaches an end of the grid. The mean has its nominal 95 % interval. The linearly implicit scheme has "
    "larger step sizes than its grid had at first, which no rival has."
)
SHARES = (
    "Of the step sizes that all methods have, and of that of a method's own choice, with all seeds: a failure, a "
    "refusal, or a held-out loss above that of the start at the end, of what is returned. The last column counts by "
    "the last iterates."
)
ERRORS = (
    "Relative L2, median over seeds with the smallest and the largest; the step size or learning rate in brackets. "
    "*Last iterate*: of runs that return an earlier one. Seconds are those of the CPU for a run, median over problems "
    "and seeds, with runs side by side."
)
RISES = (
    "Between marks at equal evaluations: the share of marks at which the loss on the same held-out points is larger "
    "than at the one before, mean over problems and seeds, and the largest rise in %. Of the iterates, and of what the "
    "run would have returned there. For the default step size, and for the best one. After a failure nothing rises."
)
SLICED = (
    "The smallest median error over step sizes, one thing varied at a time from rank 8, the PiSSA start, 64 bits, and "
    f"{RESIDUALS:,} residuals at fresh points; the last column is the largest over the smallest error of the "
    "ranks 2, 4, 8 and of the starts."
)
SHAPES = (
    "Along runs with the best step size: the largest condition number of the Gram matrices AAᵀ and BᵀB of a layer and "
    "the largest ‖BᵀB − AAᵀ‖, at marks; median over problems and seeds, and largest."
)
PREDICTED = (
    "Written down before the runs of the full form in `pinn_odelora/stability/predictions.py`, which also says what "
    "had been seen by then."
)


def timed(form: Form) -> str:
    """Of the errors at equal seconds."""
    return (
        f"Relative L2 after {form.seconds:g} CPU seconds of one thread without tuning: the default step size, rank and "
        "points of each method. Median over seeds with the smallest and the largest; the last column is the largest "
        "over the smallest error of the seeds, on the problem where that is worst."
    )
