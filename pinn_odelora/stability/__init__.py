"""How steady is the training of low-rank factors? Step sizes, seeds, ranks, starts, precisions and points.

ODELoRA (Gao and Tan, 2026, arXiv 2602.07479) claims to be better than existing baselines, especially in the stability
of training. Only its abstract is known to us. This study tests the claim by our own reading on four problems, against
the flow of plain LoRA and published optimisers of LoRA pairs.

    plan         the runs, in their order
    methods      who takes part, with which step sizes
    running      one run
    studying     all that are missing, side by side
    predictions  what was expected before
    measures     what is measured, and how sure it is
    verdicts     each claim: holds, does not hold, undecided
    storage      the runs in one file
    report       the page, its tables and its pictures
    words        what the page says about them
"""
