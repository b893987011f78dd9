"""Meshes of triangles or tetrahedra as regions; the only file that imports ``meshio``.

    plate = Mesh("plate.msh", coords="xy")
    plate.boundary()                              the facets of one cell only, with outward unit normals

Points are spread uniformly by volume over the cells, and by area over the facets: a cell is chosen by the first number
in [0, 1), stretched to [0, 1) again, and the sorted numbers are the partial sums of the barycentric coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, linalg

from pinn_odelora.errors import InputError
from pinn_odelora.geometry.spatial import Spatial, Uniform, accepted
from pinn_odelora.geometry.surfaces import Keep, chosen, kept, with_normals
from pinn_odelora.points import Points

SIMPLICES = {
    2: {"triangle": ((0, 1, 2),), "quad": ((0, 1, 2), (0, 2, 3))},
    3: {"tetra": ((0, 1, 2, 3),)},
}
"""By the dimension, how a cell is divided into simplices; cells of higher order count by their corners."""
FLAT = 1e-9
"""Largest extent of a plane mesh across the plane, relative to that in the plane."""


class Mesh(Spatial):
    """The region covered by a mesh.

    Args:
        mesh: a file that ``meshio`` reads (Gmsh, VTK, XDMF, Abaqus, …), or an object with ``points`` (N, 2 or 3) and
            ``cells_dict`` (cells of vertices by kind), as ``meshio.read`` returns.
        coords: names of the coordinates, two for triangles and quadrilaterals, three for tetrahedra.

    Attributes:
        corners: of the simplices, (cells, d + 1, d).
        facets: corners of those on the boundary, (facets, d, d); ``normals`` their outward unit normals (facets, d).

    Raises:
        InputError: if the file cannot be read, meshio is not installed, there are no cells of that dimension or also
            ones that cannot be used, or a plane mesh is not plane.
    """

    interior = True

    def __init__(self, mesh: Any, coords: Sequence[str] = ("x", "y")) -> None:
        found = _read(mesh) if isinstance(mesh, str | Path) else mesh
        self.coords = tuple(coords)
        d = len(self.coords)
        if d not in SIMPLICES:
            raise InputError(f"coords of a mesh are {', '.join(self.coords)}, but there must be two or three.")
        vertices = _vertices(np.asarray(found.points, dtype=float), d)
        cells = _cells(found.cells_dict, d)
        self.corners = torch.from_numpy(vertices[cells])
        facets, opposite = _boundary(cells)
        self.facets = torch.from_numpy(vertices[facets])
        self.normals = _outward(self.facets, torch.from_numpy(vertices[opposite]))

    def __repr__(self) -> str:
        return f"<mesh of {len(self.corners)} cells in {', '.join(self.coords)}>"

    def boundary(self, keep: Keep | None = None) -> MeshBoundary:
        """Its boundary, or the part of it that ``keep`` chooses from its points."""
        return MeshBoundary(self, keep)

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        d = len(self.coords)
        unit = uniform(n, d + beside)
        _, places = _placed(self.corners, unit[:, :d])
        return Points.from_rows(self.coords, places), unit[:, d:]


class MeshBoundary(Spatial):
    """The boundary of a mesh.

    Args:
        mesh: what it bounds.
        keep: chooses from its points.
    """

    interior = False

    def __init__(self, mesh: Mesh, keep: Keep | None = None) -> None:
        self.mesh, self.keep, self.coords = mesh, keep, mesh.coords

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        return accepted(n, uniform, len(self.coords) - 1, beside, self._candidates, "The boundary of the mesh")

    def _candidates(self, unit: Tensor) -> tuple[Points, Tensor]:
        which, places = _placed(self.mesh.facets, unit)
        p = with_normals(self.coords, places, self.mesh.normals[which])
        return p, kept(self.keep, p)


def _placed(corners: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """The simplex (m,) and the place (m, d) of each row of numbers, uniform by volume, for simplices (M, k + 1, d)."""
    edges = corners[:, 1:] - corners[:, :1]
    volumes = linalg.det(edges @ edges.mT).clamp(min=0).sqrt()
    which, unit = chosen(volumes, unit)
    sums = torch.cat([unit.new_zeros(len(unit), 1), unit.sort(dim=1).values, unit.new_ones(len(unit), 1)], dim=1)
    return which, (sums.diff(dim=1)[:, None] @ corners[which])[:, 0]


def _read(path: str | Path) -> Any:
    try:
        import meshio
    except ImportError:
        raise InputError(f"Reading {path} needs meshio: pip install meshio.") from None
    if not Path(path).is_file():
        raise InputError(f"There is no mesh {path}.")
    # meshio ends the process where it cannot read a file.
    try:
        return meshio.read(path)
    except (Exception, SystemExit) as error:
        said = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
        raise InputError(f"{path} cannot be read as a mesh: {said}.") from error


def _vertices(points: NDArray, d: int) -> NDArray:
    if points.ndim != 2 or points.shape[1] < d:
        raise InputError(f"The points of the mesh have shape {points.shape}, but {d} coordinates are named.")
    if points.size and np.ptp(points[:, d:], axis=0).max(initial=0) > FLAT * np.ptp(points[:, :d], axis=0).max():
        raise InputError(f"The mesh is not plane, so that it needs three coordinates instead of {d}.")
    return points[:, :d]


def _cells(given: Mapping[str, Any], d: int) -> NDArray:
    """The simplices of dimension d by their vertices, (M, d + 1); cells of lower dimension are left out."""
    known = SIMPLICES[d]
    lower = {"vertex", "line", *(SIMPLICES[2] if d == 3 else ())}
    found = []
    for kind, vertices in given.items():
        name = kind.rstrip("0123456789")
        if name in known:
            found += [np.asarray(vertices)[:, [*corners]] for corners in known[name]]
        elif name not in lower:
            allowed = " and ".join(known)
            raise InputError(f"The mesh has cells of kind {kind}, but with {d} coordinates only {allowed} can be used.")
    if not found:
        raise InputError(f"The mesh has no cells of dimension {d}, only {', '.join(given) or 'points'}.")
    return np.concatenate(found).astype(np.int64)


def _boundary(cells: NDArray) -> tuple[NDArray, NDArray]:
    """The facets that belong to one cell only, (F, d), and the vertex of that cell opposite to each, (F,)."""
    size = cells.shape[1]
    facets = np.concatenate([np.delete(cells, i, axis=1) for i in range(size)])
    opposite = np.concatenate([cells[:, i] for i in range(size)])
    _, first, count = np.unique(np.sort(facets, axis=1), axis=0, return_index=True, return_counts=True)
    alone = np.sort(first[count == 1])
    return facets[alone], opposite[alone]


def _outward(facets: Tensor, opposite: Tensor) -> Tensor:
    """Unit normals (F, d) of facets (F, d, d) that point away from opposite vertices (F, d)."""
    edges = facets[:, 1:] - facets[:, :1]
    turned = (
        torch.stack([edges[:, 0, 1], -edges[:, 0, 0]], dim=1) if edges.shape[1] == 1 else linalg.cross(*edges.unbind(1))
    )
    normals = turned / linalg.vector_norm(turned, dim=1, keepdim=True)
    inwards = ((opposite - facets[:, 0]) * normals).sum(dim=1, keepdim=True)
    return torch.where(inwards > 0, -normals, normals)
