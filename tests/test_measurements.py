"""Measurements: the data term is the weighted misfit of the measured fields, and every malformed file is named."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from pinn_odelora.confidence import coefficient_intervals
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.linearisation import Coordinates, Linearisation, Sweep
from pinn_odelora.measurements import measured_term, read_measurements
from pinn_odelora.nets import MLP
from pinn_odelora.objective import Objective
from pinn_odelora.optim.methods import full_implicit
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers

N = 6
COORDS, FIELDS = ("x", "y"), ("u", "v", "p")


def columns(names="x y u p weight", seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.1, 2, N) for name in names.split()}


def write_npz(path, table):
    np.savez(path, **table)


def write_csv(path, table):
    lines = [", ".join(table), *(",".join(map(repr, map(float, row))) for row in zip(*table.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n\n")


WRITERS = {".npz": write_npz, ".csv": write_csv}


def solution(p):
    """A generic solution with three fields."""
    return torch.cat([torch.sin(p.x) * p.y, p.x + 2 * p.y, torch.exp(p.x * p.y)], dim=1)


def residual(term, points=None):
    return term.rows(AutogradField(solution, points or term.where.points, FIELDS, COORDS))


@pytest.mark.parametrize("suffix", WRITERS)
def test_residual_is_the_weighted_misfit_of_the_measured_fields(suffix, tmp_path):
    table = columns()
    WRITERS[suffix](tmp_path / f"data{suffix}", table)
    term = read_measurements(tmp_path / f"data{suffix}", COORDS, FIELDS)
    x, y, u, p, w = (torch.from_numpy(table[name])[:, None] for name in ("x", "y", "u", "p", "weight"))
    expected = torch.cat([w.sqrt() * (torch.sin(x) * y - u), w.sqrt() * (torch.exp(x * y) - p)], dim=1)
    torch.testing.assert_close(residual(term), expected, rtol=1e-15, atol=1e-15)
    assert term.weight == 1.0
    assert set(term.where.points) == {"x", "y", "measured_u", "measured_p", "weight"}
    assert all(v.shape == (N, 1) and v.dtype == torch.float64 for v in term.where.points.values())


@pytest.mark.parametrize("suffix", WRITERS)
def test_without_weights_every_point_counts_the_same(suffix, tmp_path):
    table = columns("v y x")
    WRITERS[suffix](tmp_path / f"data{suffix}", table)
    term = read_measurements(str(tmp_path / f"data{suffix}"), COORDS, FIELDS)
    expected = torch.from_numpy(table["x"] + 2 * table["y"] - table["v"])[:, None]
    torch.testing.assert_close(residual(term), expected, rtol=1e-15, atol=1e-15)


def test_a_weight_column_of_another_name(tmp_path):
    table = columns("x y v") | {"1/variance": np.full(N, 4.0)}
    write_csv(tmp_path / "data.csv", table)
    term = read_measurements(tmp_path / "data.csv", COORDS, FIELDS, weight_column="1/variance")
    expected = 2 * torch.from_numpy(table["x"] + 2 * table["y"] - table["v"])[:, None]
    torch.testing.assert_close(residual(term), expected, rtol=1e-15, atol=1e-15)


def test_loss_and_gradient_of_a_problem_with_measurements(tmp_path):
    """The term enters L as mean_i w_i |u(x_i) - u_i|², all points at every draw, outside the region too."""
    problem, net = Burgers(), MLP(2, 1, width=4, depth=2)
    table = columns("x t u weight")
    table["x"][0] = 7.0
    write_npz(tmp_path / "data.npz", table)
    system = System(
        problem, Solution(problem, net), {"data": read_measurements(tmp_path / "data.npz", problem.coords, ("u",))}
    )
    points = draw_points(system.terms, interior=8, boundary=4, seed=0, draw=3)
    assert points["data"].number == N
    loss = system.loss(points).terms["data"]
    u = system.solution(points["data"])
    expected = (points["data"].weight * (u - points["data"].measured_u) ** 2).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    weights = list(net.parameters())
    for actual, wanted in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-13, atol=1e-15)


def test_columns_follow_the_points_to_another_dtype(tmp_path):
    write_npz(tmp_path / "data.npz", columns())
    term = read_measurements(tmp_path / "data.npz", COORDS, FIELDS)
    assert residual(term, term.where.points.to(torch.float32)).dtype == torch.float32


def test_columns_of_other_layouts(tmp_path):
    """(N, 1) arrays, integers, single precision, big-endian; a byte-order mark, quotes, a header as comment."""
    x, y, u = np.arange(N), np.arange(N, dtype=">f4") / 2, np.linspace(0, 1, N, dtype=np.float32)
    write_npz(tmp_path / "data.npz", {"x": x[:, None], "y": y, "u": u})
    from_npz = read_measurements(tmp_path / "data.npz", COORDS, FIELDS).where.points
    np.savetxt(tmp_path / "data.CSV", np.stack([x, y, u], axis=1), delimiter=",", header="x,y,u")
    from_csv = read_measurements(tmp_path / "data.CSV", COORDS, FIELDS).where.points
    rows = "".join(f'"{a}", {b}, {float(c)!r}\r\n' for a, b, c in zip(x, y, u, strict=True))
    (tmp_path / "excel.csv").write_text('\ufeff"x", "y", "u"\r\n' + rows, newline="")
    from_excel = read_measurements(tmp_path / "excel.csv", COORDS, FIELDS).where.points
    for points in (from_npz, from_csv, from_excel):
        torch.testing.assert_close(points.x[:, 0], torch.arange(N, dtype=torch.float64))
        torch.testing.assert_close(points.measured_u[:, 0], torch.from_numpy(u).double(), rtol=1e-15, atol=0)


def changed(name, row, value):
    table = columns()
    table[name][row] = value
    return table


def without(*names):
    return {name: values for name, values in columns().items() if name not in names}


BAD = {
    "nan": (changed("x", 2, np.nan), r"Column 'x' of .* is blank in row 3; only fields may be"),
    "inf": (changed("y", 5, -np.inf), r"Column 'y' of .* is -inf in row 6; it must be finite"),
    "negative weight": (changed("weight", 0, -0.5), r"Column 'weight' of .* is -0.5 in row 1; weights are at least 0"),
    "no weight": (columns() | {"weight": np.zeros(N)}, r"Column 'weight' of .* is 0 in every row"),
    "unknown": (columns("x y u z"), r"Unknown column of .*data.*: 'z'; allowed: p, u, v, weight, x, y"),
    "no coordinate": (without("y"), r"has no column 'y'; it must have all coordinates, x, y"),
    "no field": (without("u", "p"), r"has no measured field; it must have at least one of u, v, p"),
    "no rows": ({name: values[:0] for name, values in columns().items()}, r"has no rows"),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(("table", "reason"), BAD.values(), ids=BAD)
def test_bad_columns(table, reason, suffix, tmp_path):
    WRITERS[suffix](tmp_path / f"data{suffix}", table)
    with pytest.raises(InputError, match=reason):
        read_measurements(tmp_path / f"data{suffix}", COORDS, FIELDS)


def test_zero_weights_of_some_points_are_allowed(tmp_path):
    write_npz(tmp_path / "data.npz", changed("weight", 3, 0.0))
    r = residual(read_measurements(tmp_path / "data.npz", COORDS, FIELDS))
    assert not r[3].any()
    assert r[[0, 1, 2, 4, 5]].all()


class Code:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    objects = np.array([Code(str(tmp_path / "made"))] * N, dtype=object)
    np.savez(tmp_path / "data.npz", **columns() | {"u": objects})
    with pytest.raises(InputError, match="holds pickled objects, never loaded"):
        read_measurements(tmp_path / "data.npz", COORDS, FIELDS)
    (tmp_path / "data.npz").write_bytes(pickle.dumps(Code(str(tmp_path / "made"))))
    with pytest.raises(InputError, match="no readable arrays by name"):
        read_measurements(tmp_path / "data.npz", COORDS, FIELDS)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("keep", [0, 3, 50, -40])
def test_damaged_archives(keep, tmp_path):
    write_npz(tmp_path / "data.npz", columns())
    (tmp_path / "data.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:keep])
    with pytest.raises(InputError, match="no readable arrays by name"):
        read_measurements(tmp_path / "data.npz", COORDS, FIELDS)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((N, 3)), r"Column 'u' of .* has shape \(6, 3\); columns have shape \(N,\) or \(N, 1\)"),
        (np.ones(()), r"Column 'u' of .* has shape \(\)"),
        (np.ones(N) + 1j, r"Column 'u' of .* is of type complex128"),
        (np.array([b"1"] * N), r"Column 'u' of .* is of type \|S1"),
        (np.array(["1", "a"] * 3), r"Column 'u' of .* is 'a' in row 2, not a number"),
        (np.ones(N - 1), r"Column 'u' of .* has 5 rows, but 'x' has 6"),
    ],
)
def test_arrays_that_are_no_columns(array, reason, tmp_path):
    np.savez(tmp_path / "data.npz", **columns() | {"u": array})
    with pytest.raises(InputError, match=reason):
        read_measurements(tmp_path / "data.npz", COORDS, FIELDS)


def test_a_single_array_is_no_archive(tmp_path):
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(InputError, match="no readable arrays by name"):
        read_measurements(tmp_path / "data.npz", COORDS, FIELDS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x,y,u\n0,0,1\n0,1\n", r"Row 2 of .* has 2 values, but the header has 3 columns"),
        ("x,y,u\n0,0,1,5\n", r"Row 1 of .* has 4 values"),
        ("x,y,u\n0,0,1\n0,0,high\n", r"Column 'u' of .* is 'high' in row 2, not a number"),
        ("x,y,u\n0,,1\n", r"Column 'y' of .* is blank in row 1; only fields may be"),
        ("x,y,u,x\n0,0,1,0\n", r"Column 'x' of .* occurs 2 times"),
        ("0.1,0.2,0.3\n0,0,1\n", r"Unknown column of .*: '0.1'"),
        ("x;y;u\n1,500;2,250;3,125\n", r"Column 'x' of .* is '1,500' in row 1, not a number; write decimals with a"),
        ("x;y;u\n0,5;0;1.5\n", r"Column 'x' of .* is '0,5' in row 1, not a number; write decimals with a point"),
        ("", r"has no column 'x'"),
        ('x,y,u\n0,0,"1\n', r"is not a table of comma-separated values"),
    ],
)
def test_malformed_tables(text, reason, tmp_path):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_measurements(tmp_path / "data.csv", COORDS, FIELDS)


def test_other_bytes_are_no_table(tmp_path):
    (tmp_path / "data.csv").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="is not a table in UTF-8 or UTF-16; save it in one of these"):
        read_measurements(tmp_path / "data.csv", COORDS, FIELDS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        "x;y;u\n0.5;-1e-3;2\n1500;0;3\n",
        "x\ty\tu\r\n0.5\t-1e-3\t2\r\n1500\t0\t3\r\n",
        "x;y;u\n0,5;-1e-3;2\n1500,0;0;3\n",
        "x\ty\tu\n,5\t-0,1e-2\t2\n1500,0\t0\t3\n",
    ],
)
def test_tables_by_semicolons_and_tabs_with_points_or_commas(text, encoding, tmp_path):
    (tmp_path / "data.csv").write_bytes(text.encode(encoding))
    points = read_measurements(tmp_path / "data.csv", COORDS, FIELDS).where.points
    found = torch.cat([points["x"], points["y"], points["measured_u"]], dim=1)
    assert found.tolist() == [[0.5, -1e-3, 2.0], [1500.0, 0.0, 3.0]]


@pytest.mark.parametrize("suffix", WRITERS)
def test_missing_files_and_folders(suffix, tmp_path):
    with pytest.raises(InputError, match=r"Cannot read measurements from .*: No such file"):
        read_measurements(tmp_path / f"none{suffix}", COORDS, FIELDS)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(InputError, match=r"Cannot read measurements from .*: Is a directory"):
        read_measurements(tmp_path / f"folder{suffix}", COORDS, FIELDS)


def test_other_kinds_of_file(tmp_path):
    with pytest.raises(InputError, match=r"data.xlsx is not a file of measurements; allowed: .npz .* .csv"):
        read_measurements(tmp_path / "data.xlsx", COORDS, FIELDS)


# Blanks: fields measured at different places.

BLANKS = {"u": [0, 3], "p": [1, 2, 3, 5]}
"""Rows of each field in which it was not measured; row 3 has v alone."""


def with_blanks():
    table = columns("x y u v p weight")
    for name, rows in BLANKS.items():
        table[name][rows] = np.nan
    return table


def write_words(path, table):
    """Blank cells, NA and NaN by turns."""
    words = iter(["", "NA", " ", "NaN", "nan", "na"])
    write = lambda x: next(words) if np.isnan(x) else repr(float(x))
    lines = [",".join(table), *(",".join(map(write, row)) for row in zip(*table.values(), strict=True))]
    path.write_text("\n".join(lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bare(Problem):
    """An equation with a coefficient, to have measurements beside it."""

    coords, fields, supports = COORDS, FIELDS, ("soft",)
    region = Box(x=(0, 2), y=(0, 2))
    c: float = parameter(1.0, 2.0)

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_x + self.c * f.v_y + f.p)}


def together_and_alone(folder, suffix=".npz", write=write_npz):
    """The data with blanks as one term, and as a term for each field over the points where it was measured."""
    table, alone = with_blanks(), {}
    write(folder / f"data{suffix}", table)
    for name in FIELDS:
        there = ~np.isnan(table[name])
        write_npz(folder / f"{name}.npz", {key: table[key][there] for key in ("x", "y", name, "weight")})
        alone[name] = read_measurements(folder / f"{name}.npz", COORDS, FIELDS)
    return {"data": read_measurements(folder / f"data{suffix}", COORDS, FIELDS)}, alone


@pytest.mark.parametrize(("suffix", "write"), [(".npz", write_npz), (".csv", write_words)])
def test_a_file_with_blanks_is_a_term_for_each_field(suffix, write, tmp_path):
    """Loss, gradient and Jacobian are the same."""
    net = MLP(2, 3, width=5, depth=2)

    def evaluated(extra):
        system = System(Bare(), Solution(Bare(), net), extra)
        points = draw_points(system.terms, 4, 4, seed=0)
        linearised = Linearisation(Sweep(system, {"linears.1": net.linears[1]}), points)
        return system.loss(points), Coordinates(linearised, {}).dense()[4:], linearised.r[4:]

    together, alone = together_and_alone(tmp_path, suffix, write)
    (loss, J, r), (separate, J_alone, r_alone) = evaluated(together), evaluated(alone)
    torch.testing.assert_close(loss.total, separate.total, rtol=1e-14, atol=0)
    weights = list(net.parameters())
    gradients = (torch.autograd.grad(x.total, weights) for x in (loss, separate))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    there = torch.from_numpy(np.concatenate([~np.isnan(with_blanks()[name]) for name in FIELDS]))
    assert not r[~there].any()
    assert not J[~there].any()
    torch.testing.assert_close(r[there], r_alone, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(J[there], J_alone, rtol=1e-12, atol=1e-15)


def test_an_interval_counts_measured_values_alone(tmp_path):
    """It is that of separate terms, each with a noise of its own."""
    net = MLP(2, 3, width=5, depth=2)
    found = []
    for extra in together_and_alone(tmp_path):
        solution = Solution(Bare(), net, ["c"])
        system = System(solution.problem, solution, extra)
        few = (net.linears[-1].bias, solution.coefficients["c"])
        groups = [
            g for g in full_implicit(LinearlyImplicit()).groups(solution) if any(g["params"][0] is p for p in few)
        ]
        parameters = [p for group in groups for p in group["params"]]
        objective = Objective(system, parameters, {})
        points = draw_points(system.terms, 32, 4, seed=0)
        found.append(coefficient_intervals(objective.sweep, groups, points)["c"])
    assert found[0].std > 0
    assert tuple(found[0]) == pytest.approx(tuple(found[1]), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x,y,u,v\n0,0,1,2\n0,1,,NA\n", r"Row 2 of .* has no measured value, of u, v; leave the row out"),
        ("x,y,u,v\n0,0,1,\n0,1,2,\n", r"Column 'v' of .* is blank in every row; leave the column out"),
        ("x,y,u,v\n0,0,1,\n,1,2,3\n", r"Column 'x' of .* is blank in row 2; only fields may be, where they were not"),
        ("x,y,u,weight\n0,0,1,nan\n", r"Column 'weight' of .* is blank in row 1; only fields may be"),
        ("x,y,u,v\n0,0,1,-\n", r"Column 'v' of .* is '-' in row 1, not a number"),
    ],
)
def test_blanks_that_are_refused(text, reason, tmp_path):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_measurements(tmp_path / "data.csv", COORDS, FIELDS)


def test_masked_values_are_blank():
    table, hidden = columns("x y u p"), np.arange(N) % 3 == 0
    masked = np.ma.masked_array(np.where(hidden, -9999.0, table["u"]), hidden)
    blank = np.where(hidden, np.nan, table["u"])
    found, expected = (measured_term(table | {"u": u}, Bare()).where.points for u in (masked, blank))
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        torch.testing.assert_close(found[name], column, rtol=0, atol=0, equal_nan=True)


def test_tensors_that_are_differentiated_are_measurements_too():
    table = columns("x y u p")
    tracked = table | {"u": torch.from_numpy(table["u"]).requires_grad_()}
    assert measured_term(tracked, Bare()).where.points["measured_u"].tolist() == table["u"][:, None].tolist()
