"""The benchmarks compare what they say: equations with known solutions, equal gradients, and sums done right."""

import importlib.util
import json
import math
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pinn_odelora.derivatives import AutogradField
from pinn_odelora.geometry import Box, sobol

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import house
import step_time
from engines import JAX, build
from engines.process import SHOW_FREED, Elsewhere
from engines.workloads import WORKLOADS, AllenCahn, Burgers, KdV, NavierStokes, case, distance, reference

LIBRARY = {"deepxde": "deepxde", "pina": "pina", **dict.fromkeys(JAX, "jax")}


# Step times: the equations.


def shock(p):
    """A viscous shock that moves with speed 1."""
    return 1 - torch.tanh((p.x - p.t) / (2 * Burgers.nu))


def front(p):
    """A front from 1 to 0, u_t = d u_xx + 5 (u - u³)."""
    k = math.sqrt(5 / (8 * AllenCahn.d))
    return (1 - torch.tanh(k * (p.x - 3 * math.sqrt(5 * AllenCahn.d / 2) * p.t))) / 2


def soliton(p):
    c = 0.7
    return 3 * c / torch.cosh(math.sqrt(c) / (2 * KdV.delta) * (p.x - c * p.t)) ** 2


def kovasznay(p):
    """Kovasznay's flow, turned by an angle so that no derivative vanishes."""
    c, s = math.cos(0.4), math.sin(0.4)
    x, y = c * p.x + s * p.y, c * p.y - s * p.x
    k = NavierStokes.re / 2 - math.sqrt(NavierStokes.re**2 / 4 + 4 * math.pi**2)
    wave, angle = torch.exp(k * x), 2 * math.pi * y
    u, v = 1 - wave * torch.cos(angle), k / (2 * math.pi) * wave * torch.sin(angle)
    return torch.cat([c * u - s * v, s * u + c * v, (1 - wave**2) / 2], dim=1)


def paraboloid(p):
    return -sum(x**2 for x in p.values()) / 20 + p.a * p.b


SOLUTIONS = {
    "burgers": (shock, Box(x=(-0.01, 0.01), t=(-0.01, 0.01))),
    "allen_cahn": (front, Box(x=(-0.01, 0.01), t=(-0.1, 0.1))),
    "navier_stokes": (kovasznay, NavierStokes.region),
    "kdv": (soliton, Box(x=(-0.05, 0.05), t=(-0.05, 0.05))),
    "poisson": (paraboloid, WORKLOADS["poisson"].problem.region),
}


def residual(name, solution):
    """Largest residual at generic points, by component."""
    problem, region = WORKLOADS[name].problem, SOLUTIONS[name][1]
    points = region.sample(40, lambda n, d: sobol(n, d, seed=3))
    field = AutogradField(solution, points, problem.fields, problem.coords)
    return problem.terms()["pde"].rows(field).detach().abs().amax(dim=0)


@pytest.mark.parametrize("name", WORKLOADS)
def test_an_exact_solution_makes_the_residual_of_a_workload_vanish(name):
    solution, region = SOLUTIONS[name]
    coordinate = next(iter(region.bounds))
    disturbed = lambda p: solution(p) * (1 + 0.1 * p[coordinate])
    assert (residual(name, solution) < 1e-9 * residual(name, disturbed)).all()


# Step times: the engines.


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("engine", ["autograd", "jets"])
def test_our_engine_finds_the_gradient_of_the_workload(engine, name):
    shared = case(name, 48)
    step = build(engine, shared, "cpu")
    assert distance(step.gradient(step.run()), reference(shared)) < 1e-5


@pytest.mark.parametrize("engine", ["deepxde", "pina", *(pytest.param(form, marks=pytest.mark.slow) for form in JAX)])
def test_a_rival_finds_the_gradient_of_the_workloads(engine):
    if importlib.util.find_spec(LIBRARY[engine]) is None:
        pytest.skip(f"{LIBRARY[engine]} is not installed")
    # Threads, defaults and warnings of the rivals stay out of the process of the tests.
    with Elsewhere("cpu") as away:
        for name in WORKLOADS:
            shared = case(name, 48)
            away.build(engine, shared)
            assert distance(away.gradient(engine), reference(shared)) < 1e-5, name


def test_the_distance_sees_one_wrong_layer():
    exact = reference(case("kdv", 16))
    wrong = [*exact[:-2], 1.001 * exact[-2], exact[-1]]
    assert distance(exact, exact) == 0
    size = lambda arrays: math.sqrt(sum(float((a**2).sum()) for a in arrays))
    assert distance(wrong, exact) == pytest.approx(1e-3 * size(exact[-2:-1]) / size(exact), rel=1e-9)


def test_nobody_times_a_wrong_gradient(monkeypatch, capsys):
    monkeypatch.setattr(step_time, "reference", lambda shared: [1.01 * part for part in reference(shared)])
    with pytest.raises(SystemExit) as ended:
        step_time.measure("burgers", ["autograd"], rounds=1, device="cpu", number=16)
    assert ended.value.code == 2
    assert "autograd is wrong by 9.9e-03" in capsys.readouterr().err


# Step times: times, memory, and what is made of them.


def test_a_measurement_has_every_engine_in_every_round():
    rows = step_time.measure("burgers", ["autograd", "jets"], rounds=3, device="cpu", number=16)
    assert list(rows) == ["autograd", "jets"]
    for row in rows.values():
        assert len(row["seconds"]) == len(row["cores"]) == 3
        assert min(row["seconds"]) > 0
        assert row["gradient_error"] < step_time.TOLERANCE


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_the_peak_is_what_a_step_holds_at_once_and_gives_back():
    with Elsewhere("cpu", SHOW_FREED) as alone:
        with pytest.raises(RuntimeError, match="KeyError"):
            alone.peak("jets")
        alone.build("jets", case("navier_stokes", 2048))
        large = alone.peak("jets")
        alone.build("jets", case("navier_stokes", 512))
        assert 4 * alone.peak("jets") == pytest.approx(large, rel=0.2)


def rows(peak=None, **milliseconds):
    """Rounds of equal ratios in spite of a load that differs from round to round."""
    load = np.array([1.0, 3.0, 1.5])
    made = {
        e: {"seconds": list(load * t / 1e3), "cores": [1.0] * 3, "peak_bytes": None} for e, t in milliseconds.items()
    }
    for engine, size in (peak or {}).items():
        made[engine]["peak_bytes"] = size
    return made


def test_a_ratio_is_formed_in_each_round():
    uneven = {"deepxde": {"seconds": [10, 20, 60]}, "jets": {"seconds": [5, 5, 10]}}
    assert step_time.faster(uneven, "deepxde", "jets") == (3, 4, 5)
    assert step_time.faster(rows(deepxde=30, jets=20), "deepxde", "jets") == pytest.approx((1.5, 1.5, 1.5))


def test_targets_that_are_met_are_not_short():
    met = rows(deepxde=100, jax_grad=45, jax_jvp=31, jets=100 / 2.61)
    assert step_time.shortfalls("navier_stokes", met) == []


@pytest.mark.parametrize(
    ("name", "measured", "sentence"),
    [
        ("burgers", rows(deepxde=13, jets=10.1), "burgers: jets are 1.29 times as fast as DeepXDE, short of 1.3."),
        ("kdv", rows(deepxde=18.4, jets=10), "kdv: jets are 1.84 times as fast as DeepXDE, short of 1.85."),
        (
            "navier_stokes",
            rows(deepxde=40, jets=10, peak={"deepxde": 100, "jets": 41}),
            "navier_stokes: jets need 0.41 of DeepXDE's memory, above 0.4.",
        ),
    ],
)
def test_what_is_short_is_said(name, measured, sentence):
    assert step_time.shortfalls(name, measured) == [sentence]


def test_a_second_thread_is_noticed():
    measured = rows(deepxde=40, jax_jet=20)
    measured["jax_jet"]["cores"] = [1.9, 1.8, 1.0]
    assert step_time.shortfalls("poisson", measured) == ["poisson: jax_jet kept 1.8 cores busy instead of one."]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["deepxde", "autograd", "jets"])
def test_an_engine_finds_the_same_gradient_on_the_gpu(engine):
    shared = case("navier_stokes", 256)
    with Elsewhere("cuda") as away:
        away.build(engine, shared)
        assert distance(away.gradient(engine), reference(shared)) < step_time.TOLERANCE
        assert away.peak(engine) > 0


# This checkout against another one.


def history(path, rows, size="cost/batch_size"):
    """A history of (step, seconds, batch size)."""
    lines = [f"step,cost/seconds,{size}", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines))
    return path


def test_a_pace_is_that_of_steps_of_one_batch_size_and_the_end_of_a_run_is_none(tmp_path):
    rows = [(0, 0.0, 125), (10, 1.0, 125), (20, 4.0, 250), (30, 9.0, 250), (40, 16.0, 250), (43, 100.0, 250)]
    expected = {125: [0.1], 250: [0.5, 0.7]}
    for name in house.BATCH_SIZE:
        assert house.paces(history(tmp_path / "history.csv", rows, name)) == expected


def test_steps_are_compared_at_the_batch_sizes_that_both_have():
    here, against = {100: [1.0, 3.0, 2.0], 200: [8.0], 400: [50.0]}, {100: [1.0], 200: [4.0, 5.0, 6.0], 800: [0.1]}
    assert house.compared(here, against) == (5.0, 3.0)
    assert all(map(math.isnan, house.compared({100: [1.0]}, {200: [1.0]})))
    assert not house.Verdict("", "", [], [], math.nan, 1.03).met


def test_the_sides_take_turns():
    assert [i for _, i, _ in house.turns(("a", "b"), 3)] == [0, 1, 1, 0, 0, 1]
    assert [side for _, _, side in house.turns(("a", "b"), 2)] == ["a", "b", "b", "a"]


def small_process(*words):
    """House's own process is small, this one is not, and memory is counted from that of the parent."""
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=Path(house.__file__).parent, capture_output=True, text=True, check=False)


def test_a_process_is_timed_and_its_memory_counted(tmp_path):
    ask = f"""
import house
side = house.Side(house.ROOT, house.Path({str(tmp_path)!r}))
for n in (1, 200):
    print(*house.process(side, "-c", f"x = bytearray({{n}} * 2**20); print(len(x), end='')"))
"""
    done = small_process("-c", ask)
    (_, _, small), (said, seconds, large) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert said == 200 * 2**20
    assert 0 < seconds < 10
    assert large - small == pytest.approx(199 * 2**20, rel=0.1)


def test_the_failure_of_a_process_is_shown(tmp_path):
    with pytest.raises(SystemExit, match="no such thing"):
        house.process(house.Side(house.ROOT, tmp_path), "-c", "raise ValueError('no such thing')")


@pytest.mark.slow
def test_a_checkout_is_as_good_as_itself(tmp_path):
    done = small_process("house.py", "--against", str(house.ROOT), "--quick", "--json", str(tmp_path / "house.json"))
    assert done.returncode in (0, 1), done.stderr
    found = {v["what"]: v for v in json.loads((tmp_path / "house.json").read_text())}
    error = found["error, burgers"]
    assert error["here"] == error["against"]
    assert found["a step, burgers"]["found"] == pytest.approx(1, abs=0.3)
    assert found["peak memory, burgers"]["found"] == pytest.approx(1, abs=0.1)
