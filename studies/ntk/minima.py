"""Have factors of rank r no spurious local minima above the thresholds, and traps below them?

Jang, Lee and Ryu (2024, arXiv 2402.11867): for r(r+1)/2 > KN every second-order stationary point of the regularised
loss in factors, perturbed generically, is a global minimiser (second-hand in its exact form). Park (2026, arXiv
2605.03724) replaces the threshold by r(m+n) − r² > 1.35 KN for Gaussian features. Here every start is followed to a
stationary point by a trust-region method that uses negative curvature, and its objective compared with the certified
global minimum:

``gaussian``  random problems of 10 × 8 with 10 rows, ranks 1 to 6 (thresholds: r ≥ 5, and r ≥ 1)
``trap``      q blocks of 2 × 2 whose diagonal is weighed by 1 and whose off-diagonal by ε = 0.02: flipping the sign of
              one direction of a block fits the diagonal, at an error of ε·4·0.9 a block in the off-diagonal, and the
              way back passes a diagonal entry of zero. At rank q all 2^q sign patterns are stationary, r(r+1)/2 ≤ KN
``padded``    the trapped points with one more direction of size 1e-3

    python studies/ntk/minima.py [--quick] [--report] [--results docs/results/ntk]

What was predicted before it was measured:

1. gaussian, r ≥ 5: all starts reach the minimum to 1e-9. Of r = 3 and 4, at or above the rank of the minimiser (2 to 4)
   and below r ≥ 5, nearly all do, too: the threshold is sufficient and not necessary. At r = 1, above Park's threshold
   (17 > 13.5), none do: with λ > 0 the minimiser has rank 2 at least. Below the rank of the minimiser nobody can.
2. trap: a random start ends in a trap with probability 1 − 2^−q, 1/2 and 3/4 for q = 1, 2: gradient at rounding error,
   smallest Hessian eigenvalue zero up to rounding (the gauge group O(r)), objective above the minimum by about
   4·0.9·ε·½·2 = 0.07 a block.
3. padded: the trap is left at rank q + 1, far below the threshold: a stationary point whose factors lack rank is global
   if its Hessian is positive, because ‖G‖₂ > λ would be negative curvature. All end at the minimum.
4. Gradient descent on the factors (steps of 0.2) from 20 starts at r = 5 reaches the minimum to 1e-6. ODELoRA's flow
   with λ > 0 and more rank than the minimiser does not: it moves singular values that are too many at a speed that does
   not depend on their size, past zero, and stays above the minimum by O(h): halving h halves the excess. With λ = 0 it
   converges like gradient descent, or faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from experiment import Experiment, Record, Shown, Statement, main, values, where
from matplotlib.figure import Figure
from measured import descent, followed, gaussian, generator, hessian, model_of, pairs, product_steps, value
from scipy.optimize import minimize
from torch import Tensor, linalg
from torch.func import grad

from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.ntk import nuclear_norm_solution, rank_thresholds, ranks
from pinn_odelora.ntk.losses import SquaredError
from pinn_odelora.ntk.model import Linearised

M, N, ROWS = 10, 8, 10
PART = 0.1
"""λ as a part of the largest one, in the section ``gaussian``."""
GLOBAL = 1e-7
"""A value is global if it exceeds the certified minimum by less than this part of the loss at δ = 0."""
EPSILON = 0.02
LIGHT = 1e-3
"""λ in the section ``trap``."""


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    seeds: tuple[int, ...] = (1, 2, 3, 4)
    starts: int = 30
    losses: tuple[str, ...] = ("squared", "logistic")
    ranks: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    blocks: tuple[int, ...] = (1, 2, 3)
    trap_starts: int = 60
    flow_starts: int = 20
    flow_time: float = 2000.0


QUICK = Plan(
    seeds=(1,), starts=8, losses=("squared",), ranks=(1, 2, 3, 5), blocks=(1, 2), trap_starts=24, flow_starts=8,
    flow_time=600.0,
)  # fmt: skip


def trap(q: int) -> Linearised:
    """q blocks of 2 × 2, all of their entries measured, and heavy zeros between them."""
    size = 2 * q
    target = torch.zeros(size, size).double()
    weights = torch.full((size, size), 1.0).double()
    for k in range(q):
        at = slice(2 * k, 2 * k + 2)
        target[at, at] = torch.tensor([[1.0, 0.9], [0.9, 0.9]], dtype=torch.float64) * (1 + 0.1 * k)
        weights[at, at] = torch.tensor([[1.0, EPSILON], [EPSILON, 1.0]], dtype=torch.float64)
    root = weights.sqrt().flatten()
    J = torch.diag(root).unflatten(1, (size, size))
    return model_of(J, torch.zeros(size * size).double(), SquaredError(root * target.flatten()))


def objective(model: Linearised, r: int, decay: float) -> Callable[[Tensor], Tensor]:
    """x, A and B as one vector -> φ(f(B A)) + (λ/2)(‖A‖² + ‖B‖²)."""
    (m, n), J = model.shapes["W"], model.groups[0].blocks["W"].J.flatten(1)

    def F(x: Tensor) -> Tensor:
        A, B = x[: r * n].view(r, n), x[r * n :].view(m, r)
        return model.loss.value(model.start + J @ (B @ A).flatten()) + decay / 2 * x.square().sum()

    return F


def stationary(model: Linearised, r: int, decay: float, x: Tensor) -> tuple[Tensor, Record]:
    """Where a trust-region method with exact Hessians ends, and what it is."""
    F = objective(model, r, decay)
    g, H = grad(F), hessian(F)
    tensor = lambda z: torch.from_numpy(z).double()
    found = minimize(
        lambda z: float(F(tensor(z))),
        x.numpy(),
        jac=lambda z: g(tensor(z)).numpy(),
        hess=lambda z: H(tensor(z)).numpy(),
        method="trust-exact",
        options={"gtol": 1e-10, "maxiter": 500},
    )
    end = tensor(found.x)
    (m, n) = model.shapes["W"]
    delta = end[r * n :].view(m, r) @ end[: r * n].view(r, n)
    facts = {
        "value": float(F(end)),
        "gradient": float(g(end).norm()),
        "curvature": float(linalg.eigvalsh(H(end))[0]),
        "rank": ranks({"W": delta}, 1e-5)["W"],
        "norm": float(delta.norm()),
    }
    return end, facts


def measure(plan: Plan) -> list[Record]:
    records = []
    for loss in plan.losses:
        for seed in plan.seeds:
            records += random_problem(loss, seed, plan)
    for q in plan.blocks:
        records += traps(q, plan)
    records += flows(plan)
    return records


def random_problem(loss: str, seed: int, plan: Plan) -> list[Record]:
    model = gaussian(M, N, ROWS, seed=10 * seed, loss=loss)
    decay = PART * model.largest_weight()
    best = nuclear_norm_solution(model, decay, tolerance=1e-10)
    scale = float(model.value(model.zero()))
    records = []
    for r in plan.ranks:
        for k in range(plan.starts):
            x = 10.0 ** (k % 4 - 2) * torch.randn(r * (M + N), generator=generator(1000 * seed + k)).double()
            _, facts = stationary(model, r, decay, x)
            excess = (facts["value"] - best.value) / scale
            records.append(
                {"section": "gaussian", "loss": loss, "seed": seed, "r": r, "excess": excess, "best": best.value}
                | {"best_rank": ranks(best.delta, 1e-6)["W"], "gap": best.gap / scale}
                | facts
            )
    return records


def traps(q: int, plan: Plan) -> list[Record]:
    """Random starts at rank q; and those that end in a trap again with one more direction."""
    model = trap(q)
    best = nuclear_norm_solution(model, LIGHT, tolerance=1e-9)
    scale = float(model.value(model.zero()))
    (m, n) = model.shapes["W"]
    common = {"loss": "squared", "seed": q, "best": best.value, "gap": best.gap / scale}
    common["best_rank"] = ranks(best.delta, 1e-3)["W"]
    records = []
    # Factors of rank q may not reach the minimum over all matrices: the best that any start finds stands for it.
    ends = []
    for k in range(plan.trap_starts):
        x = 0.5 * torch.randn(q * (m + n), generator=generator(5000 + k)).double()
        ends.append(stationary(model, q, LIGHT, x))
    least = min(facts["value"] for _, facts in ends)
    trapped = []
    for end, facts in ends:
        excess = (facts["value"] - least) / scale
        records.append({"section": "trap", "r": q, "excess": excess, "least": least} | common | facts)
        if excess > 1e-3:
            trapped.append(end)
    for k, end in enumerate(trapped[:12]):
        A, B = end[: q * n].view(q, n), end[q * n :].view(m, q)
        more = 1e-3 * torch.randn(m + n, generator=generator(7000 + k)).double()
        x = torch.cat([torch.cat([A, more[None, :n]]).flatten(), torch.cat([B, more[n:, None]], dim=1).flatten()])
        _, facts = stationary(model, q + 1, LIGHT, x)
        excess = (facts["value"] - least) / scale
        records.append({"section": "padded", "r": q + 1, "excess": excess, "least": least} | common | facts)
    return records


def flows(plan: Plan) -> list[Record]:
    """Many starts at once, by gradient flow of the factors and by ODELoRA's, with and without decay."""
    records = []
    for seed in plan.seeds[:2]:
        model = gaussian(M, N, ROWS, seed=10 * seed)
        scale = float(model.value(model.zero()))
        for part in (PART, 0.0):
            decay = part * model.largest_weight()
            best = nuclear_norm_solution(model, decay, tolerance=1e-9).value if part else 0.0
            for name in ("lora_gd", "odelora"):
                # The step size of the flow on products is what decides how near it comes.
                for h in (0.4, 0.2) if name == "odelora" else (0.2,):
                    y = pairs(M, N, 5, plan.flow_starts, 0.5, seed)
                    steps = round(plan.flow_time / h)
                    if name == "odelora":
                        end = product_steps(model, y, decay, h, steps)
                    else:
                        end = Factors(*followed(descent(model, decay), y, h, steps, EULER))
                    excess = (value(model, end, decay) - best) / scale
                    facts = {"section": "flow", "flow": name, "seed": seed, "part": part, "h": h, "r": 5}
                    records.append(
                        facts
                        | {"excess": float(excess.max()), "median": float(excess.median()), "starts": plan.flow_starts}
                    )
    return records


def statements(records: list[Record]) -> list[Statement]:
    found = []
    random = where(records, section="gaussian")
    needed = rank_thresholds({"W": (M, N)}, ROWS)
    above = [r for r in random if r["r"] >= needed.of("jang").rank]
    reached = [r for r in above if r["excess"] < GLOBAL]
    found.append(
        Statement(
            "above",
            f"gaussian, r(r+1)/2 > KN (r ≥ {needed.of('jang').rank}): every start ends at the global minimum",
            f"{len(reached)} of {len(above)}, largest excess {max(r['excess'] for r in above):.0e}",
            len(reached) == len(above),
        )
    )
    worst = max(r["gradient"] for r in random)
    bent = min(r["curvature"] for r in random)
    found.append(
        Statement(
            "above",
            "they are second-order stationary points: gradient below 1e-7, Hessian above −1e-7",
            f"gradient at most {worst:.0e}, smallest eigenvalue {bent:.0e}",
            worst < 1e-7 and bent > -1e-7,
        )
    )
    between = [r for r in random if r["best_rank"] <= r["r"] < needed.of("jang").rank]
    if between:
        got = sum(r["excess"] < GLOBAL for r in between)
        found.append(
            Statement(
                "necessary",
                "below that threshold, from the rank of the minimiser on: at least nine of ten starts do, too",
                f"{got} of {len(between)}",
                got >= 0.9 * len(between),
            )
        )
    below = [r for r in random if r["r"] < r["best_rank"]]
    if below:
        low = sorted({r["r"] for r in below})
        least = min(r["excess"] for r in below)
        found.append(
            Statement(
                "park",
                f"below the rank of the minimiser, but above r(m+n) − r² > 1.35 KN (r ≥ {needed.of('park').rank}): "
                "no start "
                "reaches the minimum over all matrices, which has no such rank",
                f"ranks {low}, smallest excess {least:.1e}",
                least > GLOBAL,
            )
        )
    found += trap_statements(records)
    deficient = [r for r in records if r["section"] != "flow" and r["rank"] < r["r"]]
    if deficient:
        worst = max(r["excess"] for r in deficient)
        found.append(
            Statement(
                "deficient",
                "a second-order stationary point whose product has less than the rank of the factors is global",
                f"{sum(r['excess'] < 1e-6 for r in deficient)} of {len(deficient)}, largest excess {worst:.0e}",
                worst < 1e-6,
            )
        )
    found += flow_statements(where(records, section="flow"))
    return found


def trap_statements(records: list[Record]) -> list[Statement]:
    found = []
    for q in values(where(records, section="trap"), "r"):
        there = where(records, section="trap", r=q)
        stuck = [r for r in there if r["excess"] > 1e-3]
        part = len(stuck) / len(there)
        expected = 1 - 0.5**q
        curved = min(r["curvature"] for r in stuck) if stuck else float("nan")
        found.append(
            Statement(
                "below",
                f"trap of {q} block{'s' * (q > 1)}, r = {q} (count {q * (q + 1) // 2} of KN = {4 * q * q}): random "
                "starts "
                f"end in a trap, strict up to O(r), about {expected:.0%} of them",
                f"{len(stuck)} of {len(there)}, smallest Hessian eigenvalue {curved:.0e}, excess "
                f"{min((r['excess'] for r in stuck), default=0):.2f} to "
                f"{max((r['excess'] for r in stuck), default=0):.2f}",
                abs(part - expected) < 0.3 and bool(stuck) and curved > -1e-7,
            )
        )
    padded = where(records, section="padded")
    if padded:
        left = [r for r in padded if r["excess"] < 1e-6]
        found.append(
            Statement(
                "padded",
                "one more direction of size 1e-3 leads out of every trap, far below the threshold",
                f"{len(left)} of {len(padded)}",
                len(left) == len(padded),
            )
        )
    return found


def flow_statements(there: list[Record]) -> list[Statement]:
    found = []
    descent = [r for r in there if r["flow"] == "lora_gd" and r["part"] > 0]
    worst = max(r["excess"] for r in descent)
    found.append(
        Statement(
            "flows",
            "gradient descent from every start reaches the minimum to 1e-4, with λ > 0",
            f"largest excess {worst:.0e}",
            worst < 1e-4,
        )
    )
    ratios = []
    for seed in values(there, "seed"):
        by_h = {r["h"]: r["median"] for r in there if r["seed"] == seed and r["flow"] == "odelora" and r["part"] > 0}
        ratios.append(by_h[0.4] / by_h[0.2])
    rough = [r["median"] for r in there if r["flow"] == "odelora" and r["part"] > 0 and r["h"] == 0.2]
    found.append(
        Statement(
            "flows",
            "ODELoRA's flow with λ > 0 and more rank than the minimiser stays above it by O(h): half of h, half of "
            "that",
            f"median excess {min(rough):.0e} to {max(rough):.0e} at h = 0.2, ratio to twice the step "
            + ", ".join(f"{x:.2f}" for x in ratios),
            all(1.4 < x < 3.5 for x in ratios) and min(rough) > 1e-6,
        )
    )
    free = [r for r in there if r["flow"] == "odelora" and r["part"] == 0]
    found.append(
        Statement(
            "flows",
            "with λ = 0 ODELoRA's flow fits all rows from every start",
            f"largest excess {max(r['excess'] for r in free):.0e}",
            max(r["excess"] for r in free) < 1e-9,
        )
    )
    return found


def tables(records: list[Record]) -> list[Shown]:
    rows = []
    random = where(records, section="gaussian")
    for loss, seed, r in dict.fromkeys((x["loss"], x["seed"], x["r"]) for x in random):
        there = where(random, loss=loss, seed=seed, r=r)
        rows.append([loss, str(seed), str(r), *numbers(there), str(there[0]["best_rank"])])
    header = ["loss", "seed", "r", "starts", "global", "largest excess", "gradient", "Hessian", "rank of the minimiser"]
    shown = [Shown("Random problems", header, rows)]
    rows = []
    for section in ("trap", "padded"):
        for r in values(where(records, section=section), "r"):
            there = where(records, section=section, r=r)
            rows.append([section, str(r), *numbers(there, 1e-6)])
    shown.append(
        Shown(
            "Traps",
            ["", "r", "starts", "at the best value", "largest excess", "gradient", "Hessian"],
            rows,
        )
    )
    rows = [
        [r["flow"], f"{r['part']:g}", f"{r['h']:g}", str(r["seed"]), f"{r['median']:.1e}", f"{r['excess']:.1e}"]
        for r in where(records, section="flow")
    ]
    shown.append(Shown("Flows at r = 5", ["flow", "λ/λ_max", "h", "seed", "median excess", "largest"], rows))
    return shown


def numbers(there: list[Record], bound: float = GLOBAL) -> list[str]:
    return [
        str(len(there)),
        str(sum(r["excess"] < bound for r in there)),
        f"{max(r['excess'] for r in there):.1e}",
        f"{max(r['gradient'] for r in there):.0e}",
        f"{min(r['curvature'] for r in there):.0e}",
    ]


def figure(records: list[Record]) -> Figure:
    made = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = made.subplots(1, 2)
    for k, loss in enumerate(values(where(records, section="gaussian"), "loss")):
        there = where(records, section="gaussian", loss=loss)
        left.plot(
            [r["r"] + 0.15 * k for r in there], [max(r["excess"], 1e-16) for r in there], ".", alpha=0.5, label=loss
        )
    left.axvline(4.5, color="k", ls="--", lw=1)
    left.set(yscale="log", xlabel="r", ylabel="excess over the minimum", title="random problems; dashed: r(r+1)/2 = KN")
    left.legend(fontsize=8)
    for section in ("trap", "padded"):
        there = where(records, section=section)
        right.plot([r["r"] for r in there], [max(r["excess"], 1e-16) for r in there], ".", alpha=0.5, label=section)
    right.set(yscale="log", xlabel="r", title="traps")
    right.legend(fontsize=8)
    return made


ABOUT = (
    f"Random problems: {M} × {N}, {ROWS} rows, λ a tenth of the largest one, starts of sizes 0.01 to 10. Excess is "
    "over "
    "the certified minimum over all matrices, in parts of the loss at δ = 0; in traps over the best value at that rank."
)
EXPERIMENT = Experiment(
    "minima",
    "No spurious minima above the threshold, traps below",
    ABOUT,
    {
        "above": "r(r+1)/2 > KN: no spurious local minima",
        "necessary": "(ours) the threshold is not necessary for random problems",
        "park": "(limit) r(m+n) − r² > 1.35 KN is no statement on the regularised minimum",
        "below": "below the threshold there are problems with spurious local minima",
        "padded": "(ours) such a trap is left with one more direction",
        "deficient": "second-order stationary points of deficient rank are global",
        "flows": "(ours) gradient descent finds the minimum; ODELoRA's flow with weight decay and rank to spare up "
        "to O(h)",
    },
    measure,
    statements,
    tables,
    figure,
    (Plan(), QUICK),
    (
        "Fewer starts end in the constructed traps than half of the sign patterns would say: 33, 70 and 83 % instead "
        "of 50, 75 and 88 %. The way to the right signs is shorter.",
        "A trap in a random problem: 2 of 30 starts of one problem (squared error, seed 4) at r = 2, the rank of its "
        "minimiser, end at a strict local minimum 0.8 % above the global one. At r = 3 there is none.",
        "Near the end gradients are at 3e-8 at most and not at rounding error: the method stops where the objective no "
        "longer decreases.",
    ),
)


def command(arguments: Any = None) -> int:
    return main(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(command())
