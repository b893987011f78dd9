"""Does the flow converge linearly, at a rate that does not depend on the target? Rates against condition numbers.

ODELoRA (Gao and Tan, 2026, arXiv 2602.07479) claims linear convergence for strongly convex objectives and for matrix
sensing, for certain discretisations and under mild conditions. Only its abstract is known to us; its constants and
set-ups are not. This study tests the claims by our own reading on the two matrix problems, with the package's flows,
integrators and optimisers, against gradient descent on the factors and ScaledGD, each with its step size swept on seeds
that are not reported.

    python studies/linear_convergence.py [--quick] [--report] [--results docs/results/theory]

The full form takes about 20 minutes on one core, ``--quick`` less than two minutes; it writes nothing unless
``--results`` is given. ``--report`` runs nothing and judges and shows the records that are there. Exits with 1 when an
expected statement does not hold.

What was predicted before it was measured, from the linearisation at the target (``convergence/theory.py``), with d the
dimension r (m + n − r) of the manifold, c the size of a start and H the Hessian of the loss in W:

1. Near the target the error falls in a line, at the rate −log max_j |R(−h λ_j)| a step, with the eigenvalues λ of
   P_T H P_T: for sensing about 2 (1 ∓ √(d/R))², that is 0.36 to 4.98 here, so that the best Euler step makes 0.14 a
   step and the error a tenth in 16 steps. In flow time every scheme has the rate λ_1 as h → 0.
2. These λ depend on the singular vectors of W* and not on its singular values: rate ∝ κ⁰, for both charts and any R.
   ScaledGD has the eigenvalues of (P_T + P_B ⊗ P_A) H: also κ⁰, up to twice as stiff. Gradient descent has
   λ_1 ∝ σ_r and λ_d ∝ σ_1: rate ∝ κ⁻¹.
3. Explicit schemes pay for the condition of P_T H P_T; the linearly implicit one has log(1 + h λ_1), which does not.
   RK4, stable up to 2.8 instead of 2, costs 4 gradients a step: about 0.35 of Euler's progress for each.
4. Over-specified rank: the singular values that are too many go to 0 in proportion to the error, and a flow that
   divides by them stays linear, with the λ_1 of the larger dimension. Gradient descent moves them by their own size,
   ds/dt ∝ −s²: error ∝ 1/steps. For large κ we feared that the factor chart would not find its way, because the
   directions of σ_r turn as fast as the remaining error over σ_r.
5. Small starts: an Euler step in the factors has the second-order part h² dB dA of size h²/c: it overshoots to an error
   ∝ 1/c and comes back in a line, in log(1/c) over the rate more steps. The manifold chart and the implicit scheme
   retract instead, and do not see c. Gradient descent waits log(1/c)/σ_r at first.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from convergence.report import console, write
from convergence.results import Results, load, rounded
from convergence.sections import FULL, QUICK, SECTIONS
from convergence.verdicts import statements

THEORY = Path(__file__).parent.parent / "docs/results/theory"
NAME = "linear_convergence"


def measured(plan):
    """The records of all sections, and the CPU seconds of each."""
    records, seconds = [], {}
    for name, section in SECTIONS.items():
        began = time.process_time()
        records += section(plan)
        seconds[name] = round(time.process_time() - began, 1)
        print(f"{name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    return records, seconds


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer seeds, conditions and contenders")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--results", type=Path, help=f"folder of {NAME}.json, .md and .png")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = args.results or (None if args.quick else THEORY)
    if args.report:
        facts, records = load((folder or THEORY) / f"{NAME}.json")
    else:
        records, seconds = measured(QUICK if args.quick else FULL)
        facts = {"quick": args.quick, "seconds": seconds, "torch": torch.__version__}
    results = Results({key: rounded(value) for key, value in r.items()} for r in records)
    found = statements(results)
    if folder is not None:
        write(results, found, facts, folder, NAME)
    console(found)
    short = [s for s in found if not s.holds]
    print("\n".join(f"{s.said}: {s.found}" for s in short) if short else "every statement holds")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
