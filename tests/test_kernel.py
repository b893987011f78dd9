"""The spectrum of the neural tangent kernel against dense eigendecompositions, whole and by Lanczos' method.

The dense Jacobian is that of ``test_linearisation``: nested reverse mode, row by row, of a plain network; with frames
that of ``test_coordinates``. Weights, factors and loss weights are generic.
"""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_coordinates import Mixed
from test_linearisation import PROBLEMS, assert_near, label, make
from torch import linalg

import pinn_odelora as po
from pinn_odelora import kernel
from pinn_odelora.errors import InputError
from pinn_odelora.kernel import ALL, Kernel, Spectrum, spectra
from pinn_odelora.manifolds.variables import frames_of
from pinn_odelora.runs.history import History
from problems.burgers import Burgers
from problems.heat import Heat

ROOT = Path(__file__).parents[1]
MU = (1e-6, 0.03, 2.0)


def dense_dimension(K, mu):
    """tr K (K + μ)⁻¹."""
    return float(linalg.solve(K + mu * torch.eye(len(K), dtype=K.dtype), K).trace())


def assert_is_spectrum_of(found, K, r, tolerance=1e-11):
    values, vectors = linalg.eigh(K)
    assert_near(found.values, values.flip(0)[: found.rank], tolerance)
    assert found.trace == pytest.approx(float(K.trace()), rel=tolerance)
    assert_near(found.vectors * found.values @ found.vectors.mT, K, tolerance)
    assert_near(found.vectors.mT @ found.vectors, torch.eye(found.rank, dtype=torch.float64))
    assert torch.equal(found.residual, r)
    # Parts of the residual in the spaces of well separated eigenvalues; single ones of a cluster are nobody's.
    gaps = values.flip(0)[: found.rank]
    parts = (vectors.flip(1)[:, : found.rank].mT @ r).square().cumsum(0) / r.square().sum()
    apart = [k for k in range(found.rank - 1) if gaps[k] - gaps[k + 1] > 1e-3 * gaps[0]]
    assert apart
    for k in apart:
        assert float(found.alignment[k]) == pytest.approx(float(parts[k]), abs=1e-8)
    for mu in MU:
        low, high = found.effective_dimension(mu)
        assert low == high == pytest.approx(dense_dimension(K, mu), rel=1e-9)


@pytest.mark.parametrize("problem", PROBLEMS, ids=label)
def test_the_kernel_and_its_spectrum_are_those_of_the_dense_jacobian(problem, generator):
    case = make(problem, generator)
    r, J = case.dense()
    linearised = case.linearised()
    whole = Kernel(linearised)
    w = torch.randn(len(r), 3, generator=generator, dtype=torch.float64)
    assert_near(whole.dense(), J @ J.mT)
    assert_near(whole @ w, J @ (J.mT @ w))
    assert_near(whole @ w[:, 0], J @ (J.mT @ w[:, 0]))
    assert whole.trace() == pytest.approx(float(J.square().sum()), rel=1e-11)
    found = spectra(linearised)
    assert [*found] == [ALL, *linearised.terms]
    for name, spectrum in found.items():
        rows = slice(0, len(r)) if name == ALL else linearised.terms[name]
        assert_near(spectrum.residual, r[rows])
        assert_is_spectrum_of(spectrum, J[rows] @ J[rows].mT, spectrum.residual)
        part = Kernel(linearised, term=None if name == ALL else name)
        assert_near(part @ w[rows], J[rows] @ (J[rows].mT @ w[rows]))
        assert part.trace() == pytest.approx(spectrum.trace, rel=1e-11)


@pytest.mark.parametrize("kind", ["tangent", "factors"])
def test_in_coordinates_it_is_that_of_what_is_trained(kind, generator):
    mixed = Mixed(generator, kind)
    K = mixed.J @ mixed.J.mT
    found = Kernel(mixed.case.linearised(*mixed.variables), mixed.frames)
    assert_near(found.dense(), K)
    assert_is_spectrum_of(found.spectrum(), K, found.residual)


def test_small_eigenvalues_are_not_those_of_rounding():
    """From J, not from K: λ_p = 1e-22 λ_1 is known to several digits, and so is the condition number."""
    generator = torch.Generator().manual_seed(0)
    U, V = (linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in (5, 8))
    sigma = torch.tensor([3.0, 1.0, 1e-3, 1e-6, 3e-11], dtype=torch.float64)

    class Given(Kernel):
        def __init__(self, J):
            self.J, self.at, self.shape, self.residual = _Matrix(J), slice(0, 5), (5, 5), J[:, 0]

    found = Given(U * sigma @ V[:5]).spectrum()
    assert found.condition == pytest.approx(1e22, rel=1e-3)
    assert Given(U[:, :2] * sigma[:2] @ V[:2]).spectrum().condition > 1e30


class _Matrix:
    def __init__(self, J):
        self.J, self.shape = J, J.shape

    def dense(self):
        return self.J


@pytest.mark.parametrize("memory", [2.0**29, 2e4], ids=["kept", "recomputed"])
@pytest.mark.parametrize("term", [None, "pde"])
def test_lanczos_finds_the_leading_part(term, memory, generator):
    case = make(PROBLEMS[-2], generator)
    _, J = case.dense()
    linearised = case.linearised()
    rows = slice(0, len(J)) if term is None else linearised.terms[term]
    K = J[rows] @ J[rows].mT
    operator = Kernel(linearised, term=term, memory=memory)
    k, complete = 4, operator.spectrum()
    found = operator.spectrum(leading=k)
    assert (len(found.values), found.rank, found.complete) == (k, complete.rank, False)
    assert_near(found.values, complete.values[:k], 1e-10)
    assert_near(found.alignment, complete.alignment[:k], 1e-8)
    assert found.trace == pytest.approx(float(K.trace()), rel=1e-11)
    assert math.isnan(found.condition)
    for mu in (1e-9, *MU, 1e3):
        low, high = found.effective_dimension(mu)
        assert low < dense_dimension(K, mu) < high
    # They close as μ grows beyond the eigenvalues that are not known.
    low, high = found.effective_dimension(1e6 * found.trace)
    assert high - low < 1e-5 * low


def test_bounds_are_attained_by_the_extreme_spectra():
    """What is left gathered in eigenvalues as large as the last known one, or spread evenly."""
    vectors, r = torch.eye(8, dtype=torch.float64)[:, :2], torch.ones(8, dtype=torch.float64)
    known, mu = torch.tensor([5.0, 2.0], dtype=torch.float64), 0.7
    low, high = Spectrum(known, vectors, r, trace=7.0 + 4.0, rank=8).effective_dimension(mu)
    f = lambda x: x / (x + mu)
    assert low == pytest.approx(f(5) + f(2) + 2 * f(2))
    assert high == pytest.approx(f(5) + f(2) + 6 * f(4 / 6))


def test_many_rows_have_a_leading_part_and_few_have_all(monkeypatch, generator):
    case = make(Burgers(conditions="soft"), generator)
    linearised = case.linearised()
    assert Kernel(linearised).spectrum().complete
    monkeypatch.setattr(kernel, "EXACT", 20)
    monkeypatch.setattr(kernel, "LEADING", 6)
    assert len(Kernel(linearised).spectrum().values) == 6
    assert Kernel(linearised, term="ic").spectrum().complete
    monkeypatch.setattr(kernel, "EXACT", 2000)
    monkeypatch.setattr(kernel, "FORMED", 1e3)
    assert len(Kernel(linearised).spectrum().values) == 6


def test_one_row_has_one_eigenvalue(generator):
    case = make(Heat(), generator, data=False)
    case.points = {name: po.Points({key: x[:1] for key, x in p.items()}) for name, p in case.points.items()}
    r, J = case.dense()
    operator = Kernel(case.linearised())
    for leading in (None, 3):
        found = operator.spectrum(leading)
        assert float(found.values[0]) == pytest.approx(float(J.square().sum()), rel=1e-11)
        assert float(found.alignment[0]) == pytest.approx(1.0)
        assert (found.condition, len(r)) == (1.0, 1)


def test_what_cannot_be_is_one_sentence(generator):
    linearised = make(Heat(), generator).linearised()
    with pytest.raises(InputError, match="Unknown term 'ic'; allowed: data, pde"):
        Kernel(linearised, term="ic")
    with pytest.raises(InputError, match="leading is 0, but it must be a whole number of at least 1 or None"):
        Kernel(linearised).spectrum(0)
    with pytest.raises(InputError, match="kernel is 1, but it must be True or False"):
        po.Log(kernel=1)


# Of a run.


def begun(method=None, **settings):
    problem = Burgers(nu=0.03, conditions="soft")
    net = po.MLP(2, 1, width=8, depth=3, generator=torch.Generator().manual_seed(0))
    log = po.Log(every=2, heldout=40, test=16, kernel=True)
    given = {"points": po.Sampling.even(80, 20), "budget": po.Budget(steps=5), "log": log, "rank": 2} | settings
    return po.steps(net, problem, method=method, device="cpu", **given)


@pytest.mark.parametrize(
    "method", [None, po.methods.lora_adam(), po.methods.full_adam()], ids=["odelora", "lora_adam", "full_adam"]
)
def test_rows_have_the_kernel_where_the_step_started(method):
    run = begun(method)
    assert run.training.progress.step == 0
    before = run.kernels.spectra(run.diagnostics.reference.heldout)
    records = [*run]
    run.conclude()
    after = run.kernels.spectra(run.diagnostics.reference.heldout)
    for row, found in ((run.history[0], before), (run.history[-1], after)):
        for name, prefix in ((ALL, "kernel"), ("pde", "kernel/pde"), ("bc", "kernel/bc")):
            assert row[f"{prefix}/trace"] == pytest.approx(found[name].trace, rel=1e-12)
            assert row[f"{prefix}/eigenvalue_1"] == pytest.approx(float(found[name].values[0]), rel=1e-6)
            assert row[f"{prefix}/alignment_1"] == pytest.approx(float(found[name].alignment[0]), rel=1e-6)
        assert row["kernel/eigenvalue_10"] == pytest.approx(float(found[ALL].values[9]), rel=1e-6)
        assert row["kernel/alignment_10"] == pytest.approx(float(found[ALL].alignment[9]), rel=1e-6)
        assert "kernel/bc/eigenvalue_100" not in row
    assert before[ALL].trace != after[ALL].trace
    d = run.history[0].get("kernel/effective_dimension", math.nan)
    assert "kernel/effective_dimension" not in run.history[-1]
    if method is None:
        assert d == pytest.approx(before[ALL].effective_dimension(1 / records[0].report.h)[0])
        assert 1 < d < before[ALL].rank
    else:
        assert math.isnan(d)
    # Coordinates of two hidden layers of 8 × 8, r (m + n - r) or r (m + n), first and last layers; or all weights.
    numbers = {"odelora": 24 + 2 * 28 + 9, "lora_adam": 24 + 2 * 32 + 9, "full_adam": 177}
    frames = frames_of(run.groups, run.method.metric)
    assert Kernel(run.training.objective.linearise(), frames).J.shape[1] == numbers[run.method.name]


def test_measuring_the_kernel_does_not_change_the_run():
    ends = []
    for log in (po.Log(every=2, heldout=40, test=16), po.Log(every=2, heldout=40, test=16, kernel=True)):
        run = begun(log=log)
        _ = [*run]
        run.conclude()
        ends.append((run.training.progress.gradient_evals, [p.clone() for p in run.training.objective.parameters]))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))
    assert not any(name.startswith("kernel") for name in begun(log=po.Log(every=1)).history)


@pytest.mark.parametrize(("method", "rank"), [(None, 89), (po.methods.lora_adam(), 97), (po.methods.full_adam(), 140)])
def test_a_kernel_has_at_most_as_many_eigenvalues_as_the_method_has_coordinates(method, rank):
    """24 + 2 · 28 + 9 in the tangent space, 24 + 2 · 32 + 9 by the factors; all 177 weights exceed 140 residuals."""
    found = begun(method).kernel_spectra(interior=100)[ALL]
    assert (len(found.residual), found.rank, len(found.values)) == (140, rank, rank)
    assert float(found.values[-1]) > 0


def test_spectra_before_and_after_come_from_python():
    run = begun()
    before = run.kernel_spectra(interior=30)
    _ = [*run]
    run.conclude()
    after = run.kernel_spectra(interior=30)
    assert [*before] == [*after] == [ALL, "pde", "ic", "bc"]
    assert [len(before[name].residual) for name in before] == [30 + 6 + 6, 30, 6, 6]
    assert before[ALL].complete
    assert float(after[ALL].values[0]) != float(before[ALL].values[0])
    assert float(after[ALL].residual.norm()) < float(before[ALL].residual.norm())
    assert len(run.kernel_spectra(interior=30, leading=3)[ALL].values) == 3
    with pytest.raises(InputError, match="interior is 0, but"):
        run.kernel_spectra(interior=0)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
def test_the_command_line_logs_what_the_columns_say(compose, run):
    done = run(compose("problem=heat", "problem.conditions=soft", "budget.steps=2", "log.kernel=true"))
    columns = History(Path(done.run.folder) / "history.csv").columns
    logged = {re.sub(r"_\d+$", "_<i>", name) for name in columns if name.startswith("kernel")}
    section = (ROOT / "docs/reference/columns.md").read_text(encoding="utf-8").split("### The kernel")[1].split("##")[0]
    names = set(re.findall(r"^\| `(kernel/[^`]+)`", section, flags=re.MULTILINE)) - {"kernel/<term>/…"}
    of_terms = names - {"kernel/effective_dimension"}
    assert logged == names | {name.replace("kernel/", f"kernel/{term}/") for name in of_terms for term in TERMS}


TERMS = ("pde", "ic", "bc")

LARGE = """
import resource, time, torch
import pinn_odelora as po
from problems.burgers import Burgers
torch.set_num_threads(1)
net = po.MLP(2, 1, width=128)
run = po.steps(net, Burgers(nu=0.02, conditions="soft"), rank=4, device="cpu")
start = time.perf_counter()
found = run.kernel_spectra(interior=7200)["all"]
print(len(found.residual), len(found.values), found.complete, float(found.values[-1] / found.values[0]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter() - start)
"""


@pytest.mark.slow
def test_ten_thousand_rows_take_less_than_two_gibibytes():
    ran = subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, capture_output=True, text=True, check=True)
    (rows, known, complete, _), (gibibytes, seconds) = (line.split() for line in ran.stdout.strip().splitlines())
    assert (int(rows), int(known), complete) == (10_080, 64, "False")
    assert float(gibibytes) < 2
    assert float(seconds) < 300
