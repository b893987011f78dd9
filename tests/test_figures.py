"""The figures show what they claim, whatever the run was like."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Box
from pinn_odelora.geometry.deepxde import Shape, shapes
from pinn_odelora.runs.figures import solution_figure
from pinn_odelora.runs.history_figure import history_figure
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay
from problems.poisson import Poisson


class Wave(Problem):
    """A field of our own over any region: what figures need of a problem, and nothing else."""

    supports = ("soft",)
    coords = ("x", "y", "t")
    region = Box(x=(0, 2), y=(0, 1), t=(1, 3))

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u)}

    def reference(self, p):
        return torch.sin(2 * p.x) * (1 + p.y) * p.t


class Decay(Wave):
    coords = ("t",)
    fields = ("u", "v")
    region = Box(t=(0, 3))

    def reference(self, p):
        return torch.cat([torch.exp(-p.t), torch.cos(p.t)], dim=1)


class Unknown(Wave):
    coords = ("x", "t")
    region = Box(x=(0, 2), t=(0, 1))

    def reference(self, p):
        return None


class Holed(Wave):
    @property
    def region(self):
        d = shapes()
        return Shape(d.Rectangle([0, 0], [2, 1]) - d.Disk([0.7, 0.5], 0.2), t=(1, 3))


def pictures(figure):
    """Images and triangulations, in the order of the panels; a colour bar's own axes have none."""
    panels = [axes for axes in figure.axes if axes.get_title()]
    return [(axes, *axes.images, *axes.collections) for axes in panels]


def png(path):
    image = imread(path)
    assert image.shape[0] > 300
    assert image.shape[1] > 400
    assert image[..., :3].std() > 0.02, "the picture is blank"
    return image


def test_reference_prediction_and_error_of_burgers_on_one_scale(tmp_path):
    problem = Burgers()
    figure = solution_figure(problem, lambda p: 1.5 * problem.reference(p) + 0.1, tmp_path / "u.png", resolution=30)
    (_, reference), (_, prediction), (_, error) = pictures(figure)
    u, v, e = (im.get_array() for im in (reference, prediction, error))
    assert reference.norm is prediction.norm
    assert (reference.norm.vmin, reference.norm.vmax) == (u.min(), u.max())
    assert np.allclose(v, 1.5 * u + 0.1)
    assert np.allclose(e, v - u)
    assert error.norm.vmax == -error.norm.vmin == abs(e).max()
    png(tmp_path / "u.png")


def test_time_runs_to_the_right_and_space_upwards(tmp_path):
    problem = Burgers()
    figure = solution_figure(problem, problem.reference, tmp_path / "u.png", resolution=20)
    (axes, reference), *_ = pictures(figure)
    assert axes.get_ylabel() == "$x$"
    assert figure.axes[0].get_xlabel() == "$t$"
    assert reference.get_extent() == [0, 1, -1, 1]
    assert reference.origin == "lower"
    start = reference.get_array()[:, 0]
    assert start[5] > 0 > start[-5], "u(x, 0) = -sin πx is positive on the left half, the lower one here"


def test_every_field_has_its_row_and_its_own_scale(tmp_path):
    problem = Kovasznay()
    figure = solution_figure(problem, problem.reference, tmp_path / "u.png", resolution=12)
    shown = pictures(figure)
    assert len(shown) == 9
    assert len({(im.norm.vmin, im.norm.vmax) for _, im in shown[::3]}) == 3
    assert [axes.get_title() for axes, _ in shown[1::3]] == ["prediction $u$", "prediction $v$", "prediction $p$"]


@pytest.mark.parametrize("problem", [Poisson(domain="plate_with_hole"), Holed()], ids=lambda p: type(p).__name__)
def test_nothing_is_drawn_in_a_hole(tmp_path, problem):
    centre, radius, area = ((0.5, 0.5), 0.25, 1) if isinstance(problem, Poisson) else ((0.7, 0.5), 0.2, 2)
    figure = solution_figure(problem, problem.reference, tmp_path / "u.png", resolution=40)
    _, mesh = pictures(figure)[0]
    corners = np.array([path.vertices[:3] for path in mesh.get_paths()])
    inside = np.linalg.norm(corners.mean(axis=1) - centre, axis=1) < 0.9 * radius
    assert not inside.any()
    a, b, c = corners.swapaxes(0, 1)
    covered = 0.5 * np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sum()
    assert covered == pytest.approx(area - math.pi * radius**2, rel=0.01)


def test_a_third_coordinate_is_held_in_the_middle(tmp_path):
    figure = solution_figure(Wave(), Wave().reference, tmp_path / "u.png", resolution=10)
    _, reference = pictures(figure)[0]
    x, y = 2 * (np.arange(10) + 0.5) / 10, (np.arange(10) + 0.5) / 10
    assert np.allclose(reference.get_array(), np.sin(2 * x) * (1 + y[:, None]) * 2)
    assert figure.get_suptitle() == "$t = 2$"


def test_a_single_coordinate_gives_curves(tmp_path):
    figure = solution_figure(Decay(), lambda p: Decay().reference(p) + p.t, tmp_path / "u.png")
    error = figure.axes[3].lines[0]
    assert np.allclose(error.get_ydata(), error.get_xdata())
    png(tmp_path / "u.png")


def test_without_a_reference_the_prediction_stands_alone(tmp_path):
    figure = solution_figure(Unknown(), lambda p: p.x * p.t, tmp_path / "u.png", resolution=10)
    assert [axes.get_title() for axes, _ in pictures(figure)] == ["prediction $u$"]
    solution_figure(Unknown(), lambda p: p.x * 0, tmp_path / "constant.png", resolution=10)


@pytest.mark.parametrize("problem", [Burgers(), Poisson(domain="plate_with_hole")], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("spoilt", [5, None])
def test_a_run_that_blew_up_is_still_drawn(tmp_path, problem, spoilt):
    def solution(p):
        u = 1e3 * problem.reference(p)
        u[:spoilt] = math.nan
        u[5:7] = math.inf if spoilt else math.nan
        return u

    solution_figure(problem, solution, tmp_path / "u.png", resolution=20)
    png(tmp_path / "u.png")


def test_a_network_of_low_precision_is_asked_in_its_own(tmp_path):
    class Net(torch.nn.Linear):
        def forward(self, p):
            return super().forward(p.rows(("x", "t")))

    net = Net(2, 1, dtype=torch.float32)
    _, prediction = pictures(solution_figure(Burgers(), net, tmp_path / "u.png", resolution=8))[1]
    assert prediction.get_array().dtype == np.float64


def rows(n, **more):
    return [
        {
            "step": 10 * i,
            "loss": 2.0**-i,
            "stability/heldout_loss": 1.5 * 2.0**-i,
            "stability/rose": float(i % 4 == 3),
            "error/rel_l2": 0.3 * 2.0**-i,
            "lora/balance": 1e-14 * (i + 1),
            "cost/gradient_evals": 40.0 * i,
            "cost/seconds": 0.1 * i,
        }
        | more
        for i in range(n)
    ]


def curves(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_history_against_both_costs(tmp_path):
    figure = history_figure(rows(12), tmp_path / "h.png")
    assert len(figure.axes) == 6
    for axes, x in zip(figure.axes[::3], (40 * np.arange(12), 0.1 * np.arange(12)), strict=True):
        shown = curves(axes)
        assert axes.get_yscale() == "log"
        assert np.allclose(shown["training"], np.stack([x, 2.0 ** -np.arange(12)], axis=1))
        assert np.allclose(shown["held out"][:, 1], 1.5 * 2.0 ** -np.arange(12))
        assert np.allclose(shown["rise"], shown["held out"][3::4])
    assert [axes.get_xlabel() for axes in figure.axes] == 3 * ["gradient evaluations"] + 3 * ["seconds"]
    png(tmp_path / "h.png")


@pytest.mark.parametrize("lora", [{}, {"lora/balance": math.nan}, {"lora/balance": 0.0}])
def test_history_of_a_method_without_factors_says_so(tmp_path, lora):
    table = [{k: v for k, v in row.items() if not k.startswith("lora")} | lora for row in rows(5)]
    figure = history_figure(table, tmp_path / "h.png")
    for axes in figure.axes[2::3]:
        assert not axes.lines
        assert axes.texts[0].get_text() == "no values to show"
    assert len(figure.axes[1].lines) == 1


def test_history_leaves_gaps_where_a_number_has_no_logarithm(tmp_path):
    table = rows(6)
    table[1]["loss"], table[2]["loss"], table[3]["loss"] = 0.0, math.nan, math.inf
    del table[4]["loss"]
    y = curves(history_figure(table, tmp_path / "h.png").axes[0])["training"][:, 1]
    assert np.isnan(y).tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("n", [0, 1])
def test_history_of_a_run_that_hardly_began(tmp_path, n):
    figure = history_figure(rows(n), tmp_path / "h.png")
    assert len(figure.axes[0].lines) == (2 if n else 0)
    assert all(line.get_marker() == "o" for line in figure.axes[0].lines), "a point alone needs a marker to be seen"


def test_figures_leave_matplotlib_as_it_was(tmp_path):
    # Asking for the backend would choose one.
    names = mpl.rcParams.keys() - {"backend"}
    before = {name: mpl.rcParams[name] for name in names}
    solution_figure(Burgers(), Burgers().reference, tmp_path / "u.png", resolution=8)
    history_figure(rows(3), tmp_path / "h.png")
    assert {name: mpl.rcParams[name] for name in names} == before
