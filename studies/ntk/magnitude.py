"""Does LoRA either find a minimum of low rank and small norm, or fail loudly, at high rank and large norm?

Kim, Kim and Ryu (2025, arXiv 2502.09376), from their abstract: without linearisation, training reaches either a global
minimiser of low rank and small magnitude, or a qualitatively different point of high rank and large magnitude; a zero
start and weight decay favour the first. Two settings:

``quadratic``  f(X) = ½⟨X − X*, H(X − X*)⟩ of 8 × 7 matrices with X* = u*v*ᵀ of rank 1, and factors of rank r = 3. H is
               built so that a point of full rank r = 3, X0 = c Σ u_i v_iᵀ with c = 2, orthogonal to X*, has the
               gradient −u*v*ᵀ: stationary in its factors, and a strict local minimum up to its gauge, because the
               curvature L = 1 along u*v_iᵀ and u_i v*ᵀ outweighs it, L c > 1 (the construction is ours). The condition
               number of H is 194
``equation``   a network for Burgers' equation, rank 8 factors on two layers, all of them trained by Adam with decay

    python studies/ntk/magnitude.py [--quick] [--report] [--results docs/results/ntk]

What was predicted before it was measured, for gradient descent on the factors:

1. quadratic: two ends only. Rank 1 and norm 1 from zero and small starts (sizes up to 0.1), always. Rank 3 and norm
   c √3 = 3.46 from starts near X0 (relative distance 0.1), always. From random starts of size 10 some of either.
2. Decay λ shrinks the trap, its σ to c − λ, and undoes it at λ = (L c − 1)/(L − 1 + 3 c) = 1/6, 1.3 % of the largest
   useful λ (‖∇f(0)‖₂ = 13): beyond it starts near X0 end at the minimum, too.
3. So a failure is visible: full rank, norm 3.5 times that of the minimiser.
4. equation: a zero start and a small one (0.01) end with less rank (at 1 % of the largest singular value) and norm than
   one of 1 at the same loss; decay reduces both rank and norm, at a larger loss.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from experiment import Experiment, Record, Shown, Statement, main, values, where
from matplotlib.figure import Figure
from measured import descent, followed, generator, model_of, normal, pairs, product_steps, value
from torch import Tensor, linalg

import pinn_odelora as po
from pinn_odelora import loop
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.lowrank.start import orthonormal, zero
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.methods import lora_adam
from pinn_odelora.nets import MLP
from pinn_odelora.ntk import nuclear_norm_solution
from pinn_odelora.ntk.decay import DecayedObjective
from pinn_odelora.ntk.losses import SquaredError
from pinn_odelora.ntk.model import Linearised
from pinn_odelora.pretraining.pretrain import Pretraining, pretrain
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import Solution, System
from problems.burgers import Burgers

M, N, R = 8, 7, 3
C, PULL, SIDE = 2.0, 1.0, 1.0
"""σ of the trap, ‖∇f‖ there, and L, the curvature across."""
CRITICAL = (SIDE * C - PULL) / (SIDE - 1 + R * C)
STEP = 0.02


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    starts: int = 40
    time: float = 1500.0
    decays: tuple[float, ...] = (0.0, 0.05, 0.12, 0.2, 0.5)
    sizes: tuple[float, ...] = (1e-3, 1e-1, 1.0, 10.0)
    equation_sizes: tuple[float, ...] = (0.0, 1e-2, 1.0)
    equation_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2)
    seeds: tuple[int, ...] = (1, 2)
    adam_steps: int = 1000
    pretraining: int = 60


QUICK = Plan(
    starts=16, time=500.0, decays=(0.0, 0.05, 0.3), equation_decays=(0.0, 1e-2), seeds=(1,), adam_steps=250,
    pretraining=20, equation_sizes=(0.0, 1.0),
)  # fmt: skip


def trap() -> tuple[Linearised, Tensor, Tensor]:
    """The quadratic as a linearised model, X0 and X*: H = Σ of its square roots along an orthonormal basis."""
    Q = linalg.qr(normal(M, R + 1, seed=1)).Q
    P = linalg.qr(normal(N, R + 1, seed=2)).Q
    unit = lambda i, j: torch.outer(Q[:, i], P[:, j]).flatten()
    target, e0 = unit(R, R), sum(unit(i, i) for i in range(R)) / math.sqrt(R)
    # Curvature 1 everywhere but across, where it is L, and in the plane of e0 and e*.
    H = torch.eye(M * N).double()
    for i in range(R):
        for e in (unit(R, i), unit(i, R)):
            H += (SIDE - 1) * torch.outer(e, e)
    plane = torch.stack([e0, target])
    beta = C * math.sqrt(R)
    block = torch.tensor([[1.0, beta], [beta, PULL + C * C * R]], dtype=torch.float64)
    H += plane.mT @ (block - torch.eye(2).double()) @ plane
    values_, vectors = linalg.eigh(H)
    J = (values_.sqrt()[:, None] * vectors.mT).unflatten(1, (M, N))
    y = J.flatten(1) @ target
    model = model_of(J, torch.zeros(M * N).double(), SquaredError(y))
    return model, (C * math.sqrt(R) * e0).view(M, N), target.view(M, N)


def measure(plan: Plan) -> list[Record]:
    return quadratic(plan) + equation(plan)


def quadratic(plan: Plan) -> list[Record]:
    model, X0, target = trap()
    best = {decay: minimum(model, decay) for decay in plan.decays}
    records = []
    for decay in plan.decays:
        for name, y in started(plan, X0).items():
            # From large factors the first steps must be small.
            first = followed(descent(model, decay), y, STEP / 10, 2000, EULER)
            steps = round(plan.time / STEP / 10)
            ends = {"lora_gd": Factors(*followed(descent(model, decay), first, STEP, steps, EULER))}
            if name != "zero" and decay == 0:
                ends["odelora"] = product_steps(model, y, decay, STEP, round(plan.time / STEP / 20))
            for flow, end in ends.items():
                X = end.B @ end.A
                sigma = linalg.svdvals(X)
                excess = value(model, end, decay) - best[decay]
                for k in range(len(X)):
                    records.append(
                        {
                            "section": "quadratic",
                            "flow": flow,
                            "start": name,
                            "decay": decay,
                            "seed": k,
                            "rank": int((sigma[k] > 5e-2 * sigma[k, 0]).sum()),
                            "norm": float(X[k].norm() / target.norm()),
                            "smallest": float(sigma[k, R - 1]),
                            "excess": float(excess[k]),
                            "slope": float(descended(model, decay, end)[k]),
                        }
                    )
    return records


def descended(model: Linearised, decay: float, y: Factors) -> Tensor:
    """The norm of the gradient by the factors, (number,)."""
    return sum(x.square().sum((-2, -1)) for x in descent(model, decay)([*y])).sqrt()


def minimum(model: Linearised, decay: float) -> float:
    return nuclear_norm_solution(model, decay, tolerance=1e-9).value if decay else 0.0


def started(plan: Plan, X0: Tensor) -> dict[str, Factors]:
    """Zero, small and large random starts; and X0 with a tenth of its norm of noise."""
    A = (2 * torch.rand(plan.starts, R, N, generator=generator(3)).double() - 1) / math.sqrt(N)
    starts = {"zero": Factors(A, torch.zeros(plan.starts, M, R).double())}
    starts |= {f"size {c:g}": pairs(M, N, R, plan.starts, c, seed=4) for c in plan.sizes}
    noise = normal(plan.starts, M, N, seed=6)
    noisy = X0 + 0.1 * X0.norm() * noise / linalg.matrix_norm(noise)[:, None, None]
    U, sigma, Vh = linalg.svd(noisy, full_matrices=False)
    root = sigma[:, :R].sqrt()
    starts["near the trap"] = Factors(root[:, :, None] * Vh[:, :R], U[:, :, :R] * root[:, None])
    return starts


def equation(plan: Plan) -> list[Record]:
    records = []
    problem = Burgers()
    settings = Pretraining(natural_gradient_steps=plan.pretraining, interior=400, boundary=60, target=1e-3)
    base = MLP(problem.inputs, 1, width=20, depth=3, generator=generator(1))
    base = pretrain(problem.at_source(), base, settings=settings)
    for size in plan.equation_sizes:
        for decay in plan.equation_decays:
            for seed in plan.seeds:
                facts = adapted(problem, base.state_dict(), size, decay, seed, plan.adam_steps)
                records.append({"section": "equation", "start": size, "decay": decay, "seed": seed} | facts)
    return records


def adapted(problem: Any, weights: dict[str, Tensor], size: float, decay: float, seed: int, steps: int) -> Record:
    """Adam on factors of the network itself, without linearisation, with weight decay in the loss."""
    net = MLP(problem.inputs, 1, width=20, depth=3).double()
    net.load_state_dict(weights)
    start = zero if size == 0 else lambda W, r, s, g: orthonormal(W, r, s, g, size=size)
    layers = put_factors(net, linear_targets(net), 8, 1.0, start, generator(seed))
    solution = Solution(problem, net)
    system = System(problem, solution)
    method = lora_adam(3e-3)
    groups = method.groups(solution)
    objective = DecayedObjective(system, [p for g in groups for p in g["params"]], layers, decay=decay)
    components = {name: system.components(name) for name in system.terms}
    sampler = Sampler(system.terms, Sampling.fixed(300, 50), components)
    training = loop.Training(objective, method, method.optimizer(groups), sampler)
    for _ in loop.steps(training, po.Budget(steps=steps)):
        pass
    products = [(layer.B @ layer.A).detach() for layer in layers.values()]
    sigma = [linalg.svdvals(X) for X in products]
    loss = float(system.loss(sampler.draw(0).points).total.detach())
    return {
        "loss": loss,
        "rank": max(int((s > 1e-2 * s[0]).sum()) for s in sigma),
        "norm": math.sqrt(sum(float(X.square().sum()) for X in products)),
        "change": math.sqrt(sum(float(layer.update().square().sum().detach()) for layer in layers.values())),
    }


def statements(records: list[Record]) -> list[Statement]:
    found = []
    there = where(records, section="quadratic", flow="lora_gd")
    plain = where(there, decay=0.0)
    small = [r for r in plain if r["start"] in ("zero", "size 0.001", "size 0.1")]
    good = [r for r in small if r["rank"] == 1 and abs(r["norm"] - 1) < 0.02 and r["excess"] < 1e-3]
    found.append(
        Statement(
            "small",
            "quadratic, λ = 0: from zero and small starts always the minimiser, rank 1 and norm 1",
            f"{len(good)} of {len(small)}",
            len(good) == len(small),
        )
    )
    stuck = [r for r in plain if r["excess"] > 1e-2]
    loud = [r for r in stuck if r["rank"] == R and r["norm"] > 2]
    near = where(plain, start="near the trap")
    held = [r for r in near if r["excess"] > 1e-2]
    found.append(
        Statement(
            "loud",
            f"whatever does not reach it has full rank {R} and a norm of {C * math.sqrt(R):.2f} times that of the "
            "minimiser",
            f"{len(loud)} of {len(stuck)}; norms {min((r['norm'] for r in stuck), default=0):.2f} to "
            f"{max((r['norm'] for r in stuck), default=0):.2f}",
            bool(stuck) and len(loud) == len(stuck) and all(abs(r["norm"] - C * math.sqrt(R)) < 0.1 for r in stuck),
        )
    )
    found.append(
        Statement(
            "loud",
            "starts near that point end there",
            f"{len(held)} of {len(near)}, gradient at most {max(r['slope'] for r in near):.0e}",
            len(held) == len(near),
        )
    )
    weak = [r for r in where(there, start="near the trap") if 0 < r["decay"] < CRITICAL]
    strong = [r for r in where(there, start="near the trap") if r["decay"] > CRITICAL]
    kept = [r for r in weak if r["excess"] > 1e-2]
    freed = [r for r in strong if r["excess"] < 1e-3]
    sigma = max((abs(r["smallest"] - (C - r["decay"])) for r in kept), default=math.inf)
    found.append(
        Statement(
            "decay",
            f"weight decay below λ = {CRITICAL:.3f} leaves them there, with σ = c − λ; above it they reach the minimum",
            f"{len(kept)} of {len(weak)} stay, σ within {sigma:.0e}; {len(freed)} of {len(strong)} reach the minimum",
            len(kept) == len(weak) and len(freed) == len(strong) and sigma < 0.01,
        )
    )
    flow = where(records, section="quadratic", flow="odelora")
    held = [r for r in where(flow, start="near the trap") if r["excess"] > 1e-2]
    found.append(
        Statement(
            "flow",
            "ODELoRA's flow has the same two ends: a trap of the product is one for it, too",
            f"{len(held)} of {len(where(flow, start='near the trap'))} from near the trap; of the others "
            f"{sum(r['excess'] < 1e-3 for r in flow if r['start'] != 'near the trap')} of "
            f"{sum(r['start'] != 'near the trap' for r in flow)} reach the minimum",
            len(held) == len(where(flow, start="near the trap")),
        )
    )
    found += equation_statements(where(records, section="equation"))
    return found


def mean(there: list[Record], key: str) -> float:
    return sum(r[key] for r in there) / len(there)


def equation_statements(there: list[Record]) -> list[Statement]:
    sizes, decays = values(there, "start"), values(there, "decay")
    at = lambda size, decay, key: mean(where(there, start=size, decay=decay), key)
    norms = [at(size, 0.0, "norm") for size in sizes]
    least, most = decays[0], decays[-1]
    return [
        Statement(
            "equation",
            "equation, λ = 0: the norm of B A is smaller from a zero start than from one of size 1",
            ", ".join(f"{size:g}: {x:.2f}" for size, x in zip(sizes, norms, strict=True)),
            norms[0] < norms[-1],
        ),
        Statement(
            "equation",
            f"weight decay {most:g} reduces the norm, from every start",
            ", ".join(f"{s:g}: {at(s, least, 'norm'):.2f} → {at(s, most, 'norm'):.2f}" for s in sizes),
            all(at(s, most, "norm") < at(s, least, "norm") for s in sizes),
        ),
        Statement(
            "equation",
            f"and the rank, at 1 % of the largest singular value, does not grow with λ = {most:g}",
            ", ".join(f"{s:g}: {at(s, least, 'rank'):.1f} → {at(s, most, 'rank'):.1f}" for s in sizes),
            all(at(s, most, "rank") <= at(s, least, "rank") for s in sizes),
        ),
    ]


def tables(records: list[Record]) -> list[Shown]:
    rows = []
    there = where(records, section="quadratic")
    for flow, decay, start in dict.fromkeys((r["flow"], r["decay"], r["start"]) for r in there):
        these = where(there, flow=flow, decay=decay, start=start)
        good = [r for r in these if r["excess"] < 1e-3]
        bad = [r for r in these if r["excess"] >= 1e-3]
        span = lambda rs, key: f"{min(r[key] for r in rs):.3g} to {max(r[key] for r in rs):.3g}" if rs else "–"
        rows.append(
            [
                flow,
                f"{decay:g}",
                start,
                f"{len(good)} of {len(these)}",
                span(good, "rank"),
                span(good, "norm"),
                span(bad, "rank"),
                span(bad, "norm"),
            ]
        )
    header = ["flow", "λ", "start", "at the minimum", "rank there", "norm there", "rank elsewhere", "norm elsewhere"]
    shown = [Shown("Quadratic", header, rows)]
    rows = []
    there = where(records, section="equation")
    for start, decay in dict.fromkeys((r["start"], r["decay"]) for r in there):
        these = where(there, start=start, decay=decay)
        cells = [f"{mean(these, key):.3g}" for key in ("loss", "rank", "norm", "change")]
        rows.append(["zero" if start == 0 else f"{start:g}", f"{decay:g}", *cells])
    shown.append(
        Shown("Burgers' equation, means over seeds", ["start", "λ", "loss", "rank", "‖B A‖", "‖change of W‖"], rows)
    )
    return shown


def figure(records: list[Record]) -> Figure:
    made = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = made.subplots(1, 2)
    for start in values(where(records, section="quadratic"), "start"):
        there = where(records, section="quadratic", flow="lora_gd", start=start)
        left.plot([r["norm"] for r in there], [r["rank"] for r in there], ".", alpha=0.4, label=start)
    left.set(xlabel="‖X‖ / ‖X*‖", ylabel="rank", title="ends of gradient descent", yticks=[1, 2, 3])
    left.legend(fontsize=7)
    there = where(records, section="equation")
    for decay in values(there, "decay"):
        these = where(there, decay=decay)
        right.plot([r["norm"] for r in these], [r["loss"] for r in these], "o", label=f"λ = {decay:g}")
    right.set(xscale="log", yscale="log", xlabel="‖B A‖", ylabel="loss", title="Burgers' equation")
    right.legend(fontsize=7)
    return made


EXPERIMENT = Experiment(
    "magnitude",
    "Low rank and small, or high rank and large",
    f"A quadratic of {M} × {N} matrices with a minimiser of rank 1 and a trap of rank {R}, factors of rank {R}, plain "
    "gradient descent in small steps; and Burgers' equation, without linearisation, two layers of 20 units.",
    {
        "small": "zero and small starts reach the global minimum, of low rank and small norm",
        "loud": "what does not reach it is of high rank and large norm",
        "decay": "weight decay removes such points",
        "flow": "(ours) ODELoRA's flow has the same ends",
        "equation": "start and decay bias the factors of a network on an equation in the same way",
    },
    measure,
    statements,
    tables,
    figure,
    (Plan(), QUICK),
    (
        "Random starts of size 10 were expected to end in the trap now and then. By gradient descent none of 40 does, "
        "by ODELoRA's flow one.",
        "Without decay the start of size 1 on Burgers' equation ends with a larger B A, but not with a larger change "
        "of the weights: much of B A is the start, which the layer subtracts.",
    ),
)


def command(arguments: Any = None) -> int:
    return main(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(command())
