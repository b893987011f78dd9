"""Normals and surfaces: unit, outward, uniform by area, the same for the same numbers; combinations and meshes."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Ball, Box, Cloud, Mesh, Union, sobol
from pinn_odelora.points import Points
from pinn_odelora.system import draw_points

SQUARE = Box(x=(0, 2), y=(-1, 1))


def uniform(n, d):
    return sobol(n, d, seed=7)


def normal(p, coords):
    return torch.cat([p[f"n{c}"] for c in coords], dim=1)


def square_mesh(n=5):
    """A square of triangles, with the boundary lines that Gmsh writes too, in three columns."""
    x = np.linspace(0, 1, n) ** 1.5
    points = np.array([(a, b, 0.0) for b in x for a in x])
    corner = [i + n * j for j in range(n - 1) for i in range(n - 1)]
    triangles = np.array([t for c in corner for t in ((c, c + 1, c + n + 1), (c, c + n + 1, c + n))])
    return SimpleNamespace(points=points, cells_dict={"triangle": triangles, "line": np.array([[0, 1]])})


def cube_mesh():
    """The unit cube as six tetrahedra about a diagonal."""
    points = np.array([(i & 1, i >> 1 & 1, i >> 2 & 1) for i in range(8)], dtype=float)
    paths = [(1, 3), (1, 5), (2, 3), (2, 6), (4, 5), (4, 6)]
    return SimpleNamespace(points=points, cells_dict={"tetra10": np.array([(0, a, b, 7) for a, b in paths])})


# Normals.


def test_faces_of_a_box_have_outward_normals():
    p = SQUARE.boundary().sample(64, uniform)
    outward = torch.where(p.x == 0, -1.0, torch.where(p.x == 2, 1.0, 0.0))
    assert torch.equal(p.nx, outward.double())
    assert torch.equal(p.ny, (torch.where(p.x % 2 == 0, 0.0, p.y)).double())
    assert (SQUARE.face(y=-1.0).normal, SQUARE.face(x=0.7).normal) == ({"y": -1.0}, {"x": 1.0})
    corner = SQUARE.face(x=0.0, y=1.0)
    assert corner.normal == {}
    assert [*corner.sample(3, uniform)] == ["x", "y"]


def test_an_end_is_recognised_up_to_rounding():
    assert Box(x=(0.3, 1)).face(x=0.1 + 0.2).normal == {"x": -1.0}


def test_the_edge_of_an_initial_face_has_its_normal_in_space():
    start = Box(x=(0, 1), t=(0, 2)).face(t=0.0)
    assert [*start.boundary().sample(4, uniform)] == ["x", "t", "nx"]


def test_a_union_of_parts_with_and_without_normals_has_none():
    parts = SQUARE.face(x=0.0), SQUARE.face(y=1.0)
    both = Union(*parts).sample(6, uniform)
    assert torch.equal(normal(both, "xy"), torch.tensor([[-1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3).double())
    points = Points(x=torch.rand(2, 1, dtype=torch.float64), y=torch.rand(2, 1, dtype=torch.float64))
    assert [*Union(parts[0], Cloud(points)).sample(6, uniform)] == ["x", "y"]
    assert [*Union(Cloud(points), parts[0]).sample(6, uniform)] == ["x", "y"]


# Surfaces.


@pytest.mark.parametrize("d", [1, 2, 3, 4, 6])
def test_spheres_and_balls_are_uniform(d):
    """Moments of the sphere S of radius R about c: E n = 0, E n_i n_j = δ_ij/d, E n_i⁴ = 3/(d (d + 2)); of the ball."""
    coords = "xyzwvs"[:d]
    ball = Ball(0.7, **{c: 0.1 * i - 0.2 for i, c in enumerate(coords)})
    centre = torch.tensor([0.1 * i - 0.2 for i in range(d)], dtype=torch.float64)
    p = ball.boundary().sample(4096, uniform)
    n = normal(p, coords)
    assert torch.allclose(p.rows(coords), centre + 0.7 * n, atol=1e-14)
    assert torch.allclose(n.norm(dim=1), torch.ones(4096, dtype=torch.float64))
    tight = 2e-3 if d < 4 else 8e-3
    assert float(n.mean(dim=0).abs().max()) < tight
    assert float((n.mT @ n / 4096 - torch.eye(d) / d).abs().max()) < tight
    assert float(((n**4).mean(dim=0) - 3 / (d * (d + 2))).abs().max()) < tight
    q = ball.sample(4096, uniform).rows(coords) - centre
    assert float((q.mT @ q / 4096 - torch.eye(d) * 0.49 / (d + 2)).abs().max()) < tight
    assert float(q.norm(dim=1).max()) < 0.7


def test_the_boundary_of_a_combination_is_uniform_and_points_outwards():
    """A square with a hole and a bump: lengths by formulas, normals against the sides on which points are."""
    hole, bump = Ball(0.5, y=0.1, x=0.8), Ball(0.6, x=2.0, y=0.0)
    plate = SQUARE - hole | bump
    p = plate.boundary().sample(8192, uniform)
    # Half of the bump is outside the square.
    pieces = {"hole": 2 * math.pi * 0.5, "bump": math.pi * 0.6, "edges": 8 - 1.2}
    on = {
        "hole": ((p.x - 0.8).hypot(p.y - 0.1) - 0.5).abs() < 1e-9,
        "bump": ((p.x - 2).hypot(p.y) - 0.6).abs() < 1e-9,
    }
    assert bool((p.x[on["bump"]] > 2 - 1e-9).all())
    for name, belongs in on.items():
        assert float(belongs.double().mean()) == pytest.approx(pieces[name] / sum(pieces.values()), abs=2e-3)
    step = 1e-4 * normal(p, "xy")
    beside = lambda side: plate.contains(Points.from_rows("xy", p.rows("xy") + side * step))
    assert float(beside(1).double().mean()) < 1e-3
    assert float(beside(-1).double().mean()) > 1 - 1e-3


def test_a_common_edge_is_not_sampled_twice():
    left, right = Box(x=(0, 1), y=(0, 1)), Box(y=(0, 1), x=(0.5, 3))
    p = (left | right).boundary().sample(4096, uniform)
    assert float((p.y == 0).double().mean()) == pytest.approx(3 / 8, abs=2e-3)
    overlap = (p.y == 0) & (p.x > 0.5) & (p.x < 1)
    assert float(overlap.double().mean()) == pytest.approx(0.5 / 8, abs=2e-3)
    assert set(p) == {"x", "y", "nx", "ny"}


def test_points_of_a_combination_are_inside_and_even():
    lens = Ball(1.0, x=0.0, y=0.0, z=0.0) & Ball(1.0, x=1.0, y=0.0, z=0.0)
    p = lens.sample(4096, uniform)
    assert bool(lens.contains(p).all())
    # The lens of two unit balls at distance 1 is symmetric about x = 1/2, with caps of height 1/2.
    assert float(p.x.mean()) == pytest.approx(0.5, abs=1e-3)
    # ρ² over a cap, whose slice at s has the radius √(1 - s²): its area is π (1 - s²), ∫ρ² over it π (1 - s²)²/2.
    s = np.linspace(0.5, 1, 20001)
    moment = np.trapezoid(math.pi / 2 * (1 - s**2) ** 2, s) / np.trapezoid(math.pi * (1 - s**2), s)
    assert float((p.y**2 + p.z**2).mean()) == pytest.approx(moment, abs=2e-3)


def test_a_part_of_a_boundary_is_chosen_from_its_points():
    plate = SQUARE - Ball(0.5, x=1.0, y=0.0)
    p = plate.boundary(lambda q: (q.x - 1).hypot(q.y) < 0.6).sample(50, uniform)
    assert torch.allclose(normal(p, "xy"), -(p.rows("xy") - torch.tensor([[1.0, 0.0]])) / 0.5, atol=1e-12)
    with pytest.raises(InputError, match="The surface is empty"):
        plate.boundary(lambda q: q.x > 5).sample(5, uniform)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_truth_values_of_the_points_are_a_column_or_a_row(shape):
    right = lambda q: (q.x > 0.5).reshape(shape)
    for region in (SQUARE, SQUARE - Ball(0.5, x=1.0, y=0.0)):
        assert float(region.boundary(right).sample(50, uniform).x.min()) > 0.5


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (lambda q: q.x, r"returned torch\.float64, \(7, 1\) for 7 points, but it must return a truth value for each"),
        (lambda q: True, "returned True for 7 points, but it must"),
        (lambda q: (q.x > 0).T, r"returned torch\.bool, \(1, 7\) for 7 points, but it must"),
        (lambda q: q.z > 0, r"cannot be called with points \(AttributeError: these points have no column 'z'"),
        (lambda x, y: x > 0, r"cannot be called with points \(TypeError: .* missing 1 required"),
    ],
)
def test_what_is_no_choice_of_points_is_one_sentence(keep, said):
    for region in (SQUARE, SQUARE - Ball(0.5, x=1.0, y=0.0)):
        with pytest.raises(InputError, match=said):
            region.boundary(keep).sample(7, uniform)


def test_a_part_of_the_boundary_of_a_box_is_chosen_from_all_its_faces():
    p = SQUARE.boundary(lambda q: q.x + q.y > 0.5).sample(400, uniform)
    assert bool((p.x + p.y > 0.5).all())
    assert {tuple(row) for row in normal(p, "xy").tolist()} <= {(1, 0), (0, 1), (-1, 0), (0, -1)}
    from_centre = p.rows("xy") - torch.tensor([[1.0, 0.0]])
    assert torch.allclose((from_centre * normal(p, "xy")).sum(dim=1), torch.ones(400, dtype=torch.float64))
    with pytest.raises(InputError, match="but not from that of a face"):
        SQUARE.face(x=1.0).boundary(lambda q: q.y > 0)


def test_a_product_has_the_normal_in_space_alone():
    tube = (SQUARE - Ball(0.5, x=1.0, y=0.0)) * Box(t=(0, 3))
    assert tube.interior
    p = tube.sample(512, uniform)
    assert set(p) == {"x", "y", "t"}
    assert float(p.t.mean()) == pytest.approx(1.5, abs=0.02)
    # Place and time are independent.
    assert abs(float(((p.x - 1) * (p.t - 1.5)).mean())) < 0.01
    side = tube.boundary()
    assert not side.interior
    assert set(side.sample(8, uniform)) == {"x", "y", "t", "nx", "ny"}
    start = tube.face(t=0.0)
    assert not start.interior
    assert bool((start.sample(8, uniform).nt == -1).all())
    assert set(start.boundary().sample(8, uniform)) == {"x", "y", "t", "nx", "ny"}


REGIONS = {
    "sphere": Ball(1.0, x=0.0, y=0.0).boundary(),
    "plate": SQUARE - Ball(0.5, x=1.0, y=0.0),
    "edges": ((SQUARE - Ball(0.5, x=1.0, y=0.0)) * Box(t=(0, 1))).boundary(),
    "mesh": Mesh(square_mesh()).boundary(),
    "box": SQUARE.boundary(),
}


@pytest.mark.parametrize("name", REGIONS)
def test_points_are_functions_of_the_numbers_and_can_be_shared(name):
    terms = {name: Term(REGIONS[name], lambda f: f.u)}
    p, again = (draw_points(terms, 40, 40, seed=3, draw=2)[name] for _ in range(2))
    other = draw_points(terms, 40, 40, seed=3, draw=3)[name]
    assert p.number == 40
    assert all(torch.equal(p[c], again[c]) for c in p)
    assert any(float((p[c] - other[c]).abs().max()) > 0.01 for c in p)
    parts = [p.part(share) for share in (slice(0, 13), slice(13, 26), slice(26, 40))]
    assert all(torch.equal(torch.cat([part[c] for part in parts]), p[c]) for c in p)


def test_what_cannot_be_combined_is_said():
    for wrong, sentence in (
        (lambda: SQUARE - Ball(0.5, x=1.0, z=0.0), "Solids in x, y and x, z cannot be combined"),
        (lambda: SQUARE & Ball(0.5, x=9.0, y=0.0), "The intersection of the solids is empty"),
        (lambda: SQUARE.face(x=0.0) | SQUARE, "is no solid"),
        (lambda: SQUARE | SQUARE.boundary(), "is no solid"),
        (lambda: Ball(-1.0, x=0.0), "radius of a ball is -1.0"),
        (lambda: Ball(1.0), "needs the coordinates of its centre"),
        (lambda: SQUARE * Box(y=(0, 1)), "y is a coordinate of both factors"),
        (lambda: (SQUARE - SQUARE).sample(2, uniform), "The solid is empty"),
    ):
        with pytest.raises(InputError, match=sentence):
            wrong()


# Meshes.


def test_a_plane_mesh_is_sampled_by_area_whatever_its_cells():
    mesh = Mesh(square_mesh(), "xy")
    p = mesh.sample(4096, uniform)
    moments = [float(x.mean()) for x in (p.x, p.x**2, p.x * p.y)]
    assert moments == pytest.approx([1 / 2, 1 / 3, 1 / 4], abs=2e-3)
    q = mesh.boundary().sample(4096, uniform)
    expected = torch.where(q.x == 0, -1.0, torch.where(q.x == 1, 1.0, 0.0))
    assert torch.allclose(q.nx, expected.double(), atol=1e-14)
    assert torch.allclose(q.nx**2 + q.ny**2, torch.ones_like(q.nx))
    assert float((q.nx == -1).double().mean()) == pytest.approx(1 / 4, abs=2e-3)
    assert float((q.x**2).mean()) == pytest.approx((0 + 1 + 2 / 3) / 4, abs=2e-3)


def test_a_solid_mesh_has_its_six_faces():
    mesh = Mesh(cube_mesh(), "xyz")
    p = mesh.sample(4096, uniform)
    assert float((p.x * p.y * p.z).mean()) == pytest.approx(1 / 8, abs=2e-3)
    q = (mesh * Box(t=(0, 1))).boundary(lambda p: p.z < 1).sample(4096, uniform)
    n, places = normal(q, "xyz"), q.rows("xyz")
    # The outward normal of a face of the cube is 2 x - 1 in the coordinate that is 0 or 1.
    assert torch.allclose((n * (2 * places - 1)).sum(dim=1), torch.ones(4096, dtype=torch.float64))
    assert torch.allclose(n.abs().mean(dim=0), torch.tensor([2 / 5, 2 / 5, 1 / 5]).double(), atol=2e-3)
    assert float((q.nz > 0).double().mean()) == 0


def test_quadrilaterals_are_two_triangles_each():
    cells = {"quad": np.array([[0, 1, 4, 3], [1, 2, 5, 4]])}
    points = np.array([(0, 0), (1, 0), (3, 0), (0, 1), (1, 1), (3, 1)], dtype=float)
    mesh = Mesh(SimpleNamespace(points=points, cells_dict=cells))
    assert mesh.normals.shape == (6, 2)
    assert float(mesh.sample(2048, uniform).x.mean()) == pytest.approx(1.5, abs=5e-3)


def test_meshes_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    mesh, bent = square_mesh(), square_mesh()
    bent.points[:, 2] = bent.points[:, 0] ** 2
    solid = SimpleNamespace(points=cube_mesh().points, cells_dict={"hexahedron": np.arange(8)[None]})
    for wrong, coords, sentence in (
        (bent, "xy", "The mesh is not plane"),
        (mesh, "xyz", "no cells of dimension 3, only triangle, line"),
        (solid, "xyz", "cells of kind hexahedron, but with 3 coordinates only tetra can be used"),
        (mesh, "x", "there must be two or three"),
    ):
        with pytest.raises(InputError, match=sentence):
            Mesh(wrong, coords)
    monkeypatch.setitem(sys.modules, "meshio", None)
    with pytest.raises(InputError, match=r"Reading .*a\.msh needs meshio: pip install meshio"):
        Mesh(tmp_path / "a.msh")


def test_a_file_is_read_by_meshio(tmp_path, monkeypatch):
    def read(path):
        if path.read_text() == "bad":
            raise SystemExit(1)
        return square_mesh()

    monkeypatch.setitem(sys.modules, "meshio", SimpleNamespace(read=read))
    good, bad = tmp_path / "a.msh", tmp_path / "b.msh"
    good.write_text("mesh")
    bad.write_text("bad")
    assert Mesh(good).corners.shape == (32, 3, 2)
    with pytest.raises(InputError, match="cannot be read as a mesh"):
        Mesh(bad)
    with pytest.raises(InputError, match="There is no mesh"):
        Mesh(str(tmp_path / "c.msh"))
