"""The neural tangent kernel before and after an adaptation, and the memory of 10,000 residuals.

    python benchmarks/kernel_spectra.py [--quick] [--evals 200] [--json kernel_spectra.json]

The cases are those of ``loss_weights.py``, adapted with all defaults; 250 points inside and 50 on each part of the
boundary, which no step has. The last line is a process of its own: the leading 64 eigenpairs at 10,080 residuals, width
128. It takes a minute and is left out by ``--quick``, which is one case of 60 evaluations. Exits with 1 when the
process takes 2 GiB or more.

Predictions, written before the table had been seen, each for the kernel of all terms:

1. a_10, the part of the residual in the first ten eigenvectors, falls on each case: training removes these first.
2. λ_1 changes by less than a factor of 2, and the trace as well: the jump is small for the kernel.
3. κ is above 1e20 before and after.
4. d(1e-6 λ_1), the directions that count at this penalty, changes by less than a factor of 1.5.
5. 10,080 residuals take between 0.7 and 1.5 GiB, the process itself included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from loss_weights import CASES, network
from rich.console import Console
from rich.table import Table

import pinn_odelora as po
from pinn_odelora.files import write_json
from pinn_odelora.kernel import ALL, Spectrum
from pinn_odelora.threads import set_threads

GIBIBYTES = 2.0
MU = 1e-6
LARGE = """
import resource, torch
import pinn_odelora as po
from problems.burgers import Burgers
torch.set_num_threads(1)
run = po.steps(po.MLP(2, 1, width=128), Burgers(nu=0.02, conditions="soft"), rank=4, device="cpu")
found = run.kernel_spectra(interior=7200)["all"]
assert (len(found.residual), len(found.values)) == (10_080, 64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def figures(spectrum: Spectrum, mu: float) -> dict[str, float]:
    """What the table shows of a spectrum."""
    return {
        "largest": float(spectrum.values[0]),
        "trace": spectrum.trace,
        "condition": spectrum.condition,
        "alignment": float(spectrum.alignment[min(10, len(spectrum.values)) - 1]),
        "dimension": spectrum.effective_dimension(mu)[0],
    }


def around(name: str, evals: int, seed: int = 0) -> dict[str, object]:
    """Figures of each term and of the whole kernel, before and after one adaptation."""
    budget, log = po.Budget(gradient_evals=evals), po.Log(every=10**6)
    run = po.steps(network(name), CASES[name].target(), budget=budget, log=log, seed=seed, device="cpu")
    before = run.kernel_spectra()
    _ = [*run]
    result = run.result()
    after = run.kernel_spectra()
    mu = MU * float(before[ALL].values[0])
    terms = {key: {"before": figures(before[key], mu), "after": figures(after[key], mu)} for key in before}
    return {"case": name, "rel_l2": [result.rel_l2_before, result.rel_l2], "terms": terms}


def memory() -> float:
    """Peak memory in GiB of a process with 10,080 residuals."""
    root = Path(__file__).parents[1]
    return float(subprocess.run([sys.executable, "-c", LARGE], cwd=root, check=True, capture_output=True).stdout)


def predictions(cases: list[dict]) -> dict[str, tuple[int, int]]:
    """How many cases each prediction holds on."""
    pairs = [(c["terms"][ALL]["before"], c["terms"][ALL]["after"]) for c in cases]
    within = lambda a, b, factor: 1 / factor < a / b < factor
    holds = {
        "1 alignment falls": [b["alignment"] < a["alignment"] for a, b in pairs],
        "2 largest and trace within 2": [
            within(a["largest"], b["largest"], 2) and within(a["trace"], b["trace"], 2) for a, b in pairs
        ],
        "3 condition above 1e20": [min(a["condition"], b["condition"]) > 1e20 for a, b in pairs],
        "4 dimension within 1.5": [within(a["dimension"], b["dimension"], 1.5) for a, b in pairs],
    }
    return {name: (sum(found), len(found)) for name, found in holds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--evals", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_threads(1)
    names, evals = (["burgers"], 60) if given.quick else ([*CASES], given.evals)
    cases = [around(name, evals) for name in names]
    peak = None if given.quick else memory()
    if given.json:
        write_json(given.json, {"cases": cases, "gibibytes": peak})
    table = Table("case", "kernel of", "λ_1", "trace", "κ", "a_10", "d(1e-6 λ_1)")
    for case in cases:
        for key, found in case["terms"].items():
            shown = [f"{found['before'][x]:.3g} → {found['after'][x]:.3g}" for x in found["before"]]
            table.add_row(case["case"], key, *shown)
    console = Console(width=140)
    console.print(table)
    for name, (held, of) in predictions(cases).items():
        console.print(f"{name}: on {held} of {of}")
    if peak is None:
        return 0
    console.print(f"5 between 0.7 and 1.5 GiB: {peak:.2f} GiB")
    return 0 if peak < GIBIBYTES else 1


if __name__ == "__main__":
    sys.exit(main())
