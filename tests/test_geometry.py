"""Points: low-discrepancy, stateless, where they should be; DeepXDE's shapes leave no trace outside themselves."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import qmc

from pinn_odelora.errors import InputError
from pinn_odelora.geometry import Box, Cloud, Union, sobol
from pinn_odelora.geometry.deepxde import Shape, shapes
from pinn_odelora.points import Points


def uniform(seed, draw=0):
    return lambda n, d: sobol(n, d, seed=seed, draw=draw)


def test_sobol_depends_on_seed_and_draw_alone():
    first = sobol(100, 3, seed=5, draw=7)
    sobol(100, 3, seed=6)
    sobol(64, 2, seed=5, draw=8)
    torch.rand(3)
    assert torch.equal(first, sobol(100, 3, seed=5, draw=7))
    others = [sobol(100, 3, seed=s, draw=k) for s, k in [(5, 8), (5, 6), (6, 7), (6, 6), (4, 8), (0, 0)]]
    assert all(float((first - other).abs().max()) > 0.1 for other in others)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_sobol_has_the_same_bits_in_any_default_precision(d):
    """DeepXDE makes 64 bits torch's default, in which torch makes the first point."""
    expected = sobol(9, d, seed=17)
    kept = sys.modules[sobol.__module__]._scrambled
    kept.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(sobol(9, d, seed=17), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_sobol_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    sobol(123, 2, seed=11)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("n", "d"), [(1, 1), (100, 2), (1000, 4), (5, 0)])
def test_sobol_fills_the_unit_cube(n, d):
    points = sobol(n, d, seed=1, draw=2)
    assert points.shape == (n, d)
    assert points.dtype == torch.float64
    assert bool(((points >= 0) & (points < 1)).all())


@pytest.mark.parametrize("draw", [0, 1, 17])
def test_sobol_is_more_even_than_chance(draw):
    """Centred discrepancy of 512 points in the square; chance gives 100 times the even value."""
    ours = qmc.discrepancy(sobol(512, 2, seed=3, draw=draw).numpy())
    chance = [qmc.discrepancy(np.random.default_rng(s).random((512, 2))) for s in range(5)]
    assert ours < 0.1 * min(chance)


def test_means_converge_faster_than_by_chance():
    """Error of ∫ cos(3x) exp(y) over draws: sampling by chance has slope -1/2."""
    exact = math.sin(3) / 3 * (math.e - 1)

    def error(n):
        means = []
        for draw in range(16):
            x, y = sobol(n, 2, seed=2, draw=draw).T
            means.append(float((torch.cos(3 * x) * torch.exp(y)).mean()))
        return np.sqrt(np.mean((np.array(means) - exact) ** 2))

    slope = np.log2(error(4096) / error(64)) / 6
    assert slope < -0.8


BOX = Box(x=(-1, 2), y=(0, 0.5), t=(3, 4))


def assert_inside(p, bounds):
    for name, (low, high) in bounds.items():
        assert bool(((p[name] >= low) & (p[name] <= high)).all()), name


def test_box_is_filled_evenly():
    p = BOX.sample(1024, uniform(1))
    assert list(p) == ["x", "y", "t"]
    assert_inside(p, BOX.bounds)
    for name, (low, high) in BOX.bounds.items():
        assert float(p[name].mean()) == pytest.approx((low + high) / 2, abs=1e-2 * (high - low))
        assert float(p[name].var()) == pytest.approx((high - low) ** 2 / 12, rel=1e-2)


def test_face_fixes_a_coordinate_and_only_that():
    face = BOX.face(t=3.0)
    p = face.sample(64, uniform(1))
    assert BOX.interior
    assert not face.interior
    assert bool((p.t == 3.0).all())
    assert_inside(p, BOX.bounds)
    assert len(torch.unique(p.x)) == 64


def test_a_corner_is_one_point_repeated():
    p = BOX.face(x=2.0, y=0.0, t=4.0).sample(3, uniform(1))
    assert torch.equal(p.rows(["x", "y", "t"]), torch.tensor([[2.0, 0.0, 4.0]] * 3, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 4, 10, 103])
def test_boundary_gives_every_face_its_share(n):
    boundary = BOX.boundary("x", "y")
    p = boundary.sample(n, uniform(2))
    faces = [p.x == -1, p.x == 2, p.y == 0, p.y == 0.5]
    shares = [int(face.sum()) for face in faces]
    assert not boundary.interior
    assert p.number == sum(shares) == max(n, 4)
    assert max(shares) - min(shares) <= 1
    assert_inside(p, BOX.bounds)


def test_boundary_without_names_is_all_of_it():
    assert len(BOX.boundary().parts) == 6


def test_union_keeps_the_columns_of_its_parts():
    union = Union(Box(x=(0, 1), t=(0, 0)), Box(t=(0, 1), x=(1, 1)))
    p = union.sample(9, uniform(3))
    assert set(p) == {"x", "t"}
    assert p.number == 9


def test_cloud_is_what_it_was_given():
    given = Points(x=torch.zeros(3, 1), u=torch.ones(3, 1))
    assert Cloud(given).sample(100, uniform(1)) is given


@pytest.fixture(scope="module")
def d():
    return shapes()


@pytest.fixture(scope="module")
def plate(d):
    return Shape(d.Rectangle([-1, 0], [1, 1]) - d.Disk([0.25, 0.5], 0.25))


def radius(p, x=0.25, y=0.5):
    return torch.sqrt((p.x - x) ** 2 + (p.y - y) ** 2)


def test_no_point_falls_into_the_hole_and_the_rest_is_filled_evenly(plate):
    p = plate.sample(2000, uniform(4))
    assert plate.interior
    assert p.number == 2000
    assert_inside(p, {"x": (-1, 1), "y": (0, 1)})
    assert float(radius(p).min()) > 0.25
    area = 2 - math.pi / 16
    left = float((p.x < -0.25).double().mean())
    ring = float((radius(p) < 0.4).double().mean())
    assert left == pytest.approx(0.75 / area, abs=0.01)
    assert ring == pytest.approx(math.pi * (0.4**2 - 0.25**2) / area, abs=0.01)


def test_same_draw_same_points(plate):
    for region in (plate, plate.boundary()):
        first, again, other = (region.sample(300, uniform(4, draw)) for draw in (1, 1, 2))
        assert all(torch.equal(first[c], again[c]) for c in "xy")
        assert float((first.x - other.x).abs().max()) > 0.1
        assert first.x.dtype == torch.float64


def test_boundary_of_a_disk_is_its_circle(d):
    circle = Shape(d.Disk([0.5, 0.5], 0.25)).boundary()
    p = circle.sample(256, uniform(1))
    angle = torch.sort(torch.atan2(p.y - 0.5, p.x - 0.5).flatten()).values
    assert not circle.interior
    assert float((radius(p, 0.5, 0.5) - 0.25).abs().max()) < 1e-15
    assert float(torch.diff(angle).max()) < 3 * 2 * math.pi / 256


def test_boundary_is_shared_by_length(plate):
    """Outer perimeter 6, rim π/2."""
    p = plate.boundary().sample(1000, uniform(1))
    rim = (radius(p) - 0.25).abs() < 1e-12
    outer = (p.x.abs() == 1) | (p.y == 0) | (p.y == 1)
    assert bool((rim ^ outer).all())
    assert float(rim.double().mean()) == pytest.approx(math.pi / 2 / (6 + math.pi / 2), abs=0.01)


@pytest.mark.parametrize(
    ("build", "area", "length", "side"),
    [
        (lambda d: d.Rectangle([0, 0], [2, 1]), 2, 6, 0.4),
        (lambda d: d.Triangle([0, 0], [2, 0], [0, 2]), 2, 4 + math.sqrt(8), 0.4),
        (lambda d: d.Polygon([[0, 0], [0, 2], [1, 2], [1, 1], [2, 1], [2, 0]]), 3, 8, 0.4),
        (lambda d: d.Rectangle([0, 0], [1, 2]) | d.Rectangle([1, 0], [2, 1]), 3, 8, 0.4),
        (lambda d: d.Rectangle([0, 0], [2, 2]) & d.Disk([0, 0], 1), math.pi / 4, 2 + math.pi / 2, 0.4),
        (lambda d: d.Disk([0, 0], 1) - d.Disk([0, 0], 0.5), 3 * math.pi / 4, 3 * math.pi, 0),
        (
            lambda d: d.Rectangle([0, 0], [2, 2]) - d.Disk([1, 1], 0.75) | d.Disk([1, 1], 0.5),
            4 - 5 * math.pi / 16,
            8 + 2.5 * math.pi,
            0.4,
        ),
    ],
    ids=["rectangle", "triangle", "polygon", "union", "intersection", "ring", "nested"],
)
def test_areas_and_lengths_of_combinations(d, build, area, length, side):
    """Points are as dense as area and length say, in a square of side ¼ and on the bottom side from 0.55 to 0.95."""
    shape = Shape(build(d))
    p = shape.sample(4096, uniform(6))
    near = (p.x > 0.55) & (p.x < 0.8) & (p.y > 0) & (p.y < 0.25)
    assert float(near.double().mean()) * area == pytest.approx(0.0625, rel=0.05)
    q = shape.boundary().sample(4096, uniform(6))
    bottom = (q.y == 0) & (q.x > 0.55) & (q.x < 0.95)
    assert float(bottom.double().mean()) * length == pytest.approx(side, rel=0.05)


def test_a_shape_times_an_interval(plate):
    cylinder = Shape(plate.geometry, ("x", "y"), t=(2.0, 5.0))
    p = cylinder.sample(500, uniform(1))
    assert list(p) == ["x", "y", "t"]
    assert cylinder.interior
    assert float(radius(p).min()) > 0.25
    assert_inside(p, {"t": (2, 5)})
    start = cylinder.face(t=2.0)
    assert not start.interior
    assert bool((start.sample(50, uniform(1)).t == 2.0).all())
    wall = cylinder.boundary().sample(500, uniform(1))
    assert float(wall.t.std()) == pytest.approx(3 / math.sqrt(12), rel=0.05)


def test_shapes_of_other_dimensions(d):
    ball = Shape(d.Sphere([0, 0, 0], 1), ("x", "y", "z"))
    p = ball.sample(1000, uniform(1))
    assert float(p.rows("xyz").norm(dim=1).max()) <= 1
    with pytest.raises(InputError, match=r"Sphere cannot be sampled; allowed: Disk"):
        ball.boundary()
    with pytest.raises(InputError, match="3 dimensions, but coords names x, y"):
        Shape(d.Sphere([0, 0, 0], 1))


def test_an_empty_shape_is_refused(d):
    empty = Shape(d.Disk([0, 0], 0.5) - d.Disk([0, 0], 1))
    for region in (empty, empty.boundary()):
        with pytest.raises(InputError, match="empty"):
            region.sample(8, uniform(1))


IMPORT = """
import random, sys, warnings
import numpy as np, torch

def state():
    keys = np.random.get_state()
    return (random.getstate(), keys[1].tobytes(), keys[2:], torch.get_rng_state().numpy().tobytes(),
            torch.get_default_dtype(), torch.get_default_device(), tuple(warnings.filters))

random.seed(1), np.random.seed(2), torch.manual_seed(3)
torch.set_default_dtype(torch.float64), torch.set_default_device("meta")
from pinn_odelora.geometry import sobol
from pinn_odelora.geometry.deepxde import Shape, shapes
assert "deepxde" not in sys.modules
before = state()
d = shapes()
assert "deepxde" in sys.modules
assert state() == before, "import"
torch.set_default_device(None)
before = state()
plate = Shape(d.Rectangle([0, 0], [1, 1]) - d.Disk([0.5, 0.5], 0.25))
for region in (plate, plate.boundary()):
    region.sample(100, lambda n, d: sobol(n, d, seed=1))
assert state() == before, "sampling"
"""


def test_importing_deepxde_leaves_no_trace():
    """Random states, torch's defaults, warning filters and stderr; "meta" stands for a default device of the user's."""
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == run.stderr == ""


def test_a_default_device_that_the_import_sets_is_taken_back():
    """What DeepXDE does where there is a GPU."""
    from pinn_odelora.geometry.deepxde import _undisturbed

    before = torch.get_default_device()
    with _undisturbed():
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
    assert torch.get_default_device() == before
    assert torch.empty(1).device == before
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("make", ["difference", "union", "intersection", "triangle"])
def test_normals_of_a_deepxde_shape_are_its_own(make):
    d = shapes()
    square, disk = d.Rectangle([0, 0], [1, 1]), d.Disk([0.9, 0.4], 0.3)
    shape = {
        "difference": lambda: square - disk,
        "union": lambda: square | disk,
        "intersection": lambda: square & disk,
        "triangle": lambda: d.Triangle([0, 0], [1, 0.2], [0.3, 0.9]),
    }[make]()
    p = Shape(shape, t=(0, 1)).boundary().sample(200, uniform(7))
    ours, places = p.rows(["nx", "ny"]).numpy(), p.rows("xy").numpy()
    # DeepXDE gives none at points that are, by rounding, on no boundary of its primitives.
    known = np.array([shape.boundary_normal(x[None])[0] for x in places])
    there = np.isclose(np.linalg.norm(known, axis=1), 1)
    assert there.mean() > 0.5
    assert np.abs(ours - known)[there].max() < 1e-7
    assert np.allclose(np.linalg.norm(ours, axis=1), 1)
    assert "nt" not in p


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (torch.zeros(3, 1), "are a Tensor, but they must be columns"),
        (Points(), "are a Points, but they must be columns"),
        (
            Points(x=torch.zeros(3)),
            r"Column x of a cloud is a tensor \(3,\), but every column must be a tensor \(3, 1\)",
        ),
        (Points(x=torch.zeros(3, 1), t=torch.zeros(2, 1)), r"Column t of a cloud is a tensor \(2, 1\)"),
        (Points(x=torch.zeros(0, 1)), r"Column x of a cloud is a tensor \(0, 1\), but .* \(N, 1\)"),
        (Points(x=[[0.0]]), "Column x of a cloud is a list"),
    ],
)
def test_a_cloud_has_columns_of_one_length(points, said):
    with pytest.raises(InputError, match=said):
        Cloud(points)
