"""Ten of DeepXDE's forward examples with one parameter changed: what is changed, and the solution then.

References are formulas, but for Allen–Cahn, which is solved by collocation at Chebyshev points. Columns of X are in the
order of the script's coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Change(NamedTuple):
    """What is changed: numbers as by ``--set``, pieces of the text, and the solution then, (N, d) -> (N, fields).

    ``mended`` are pieces that torch or NumPy would not run, with what is run in their place, changed or not.
    """

    what: str
    reference: Callable[[NDArray], NDArray]
    numbers: Mapping[str, float] = {}
    text: Mapping[str, str] = {}
    mended: Mapping[str, str] = {}


def burgers(X: NDArray) -> NDArray:
    """By the Cole–Hopf transform."""
    import torch

    from pinn_odelora.points import Points
    from problems.burgers import Burgers

    return Burgers(nu=0.007 / math.pi).reference(Points.from_rows("xt", torch.as_tensor(X))).numpy()


@cache
def allen_cahn_values(n: int, d: float) -> tuple[NDArray, Callable[[NDArray], NDArray]]:
    """Chebyshev points x_j = cos(jπ/n), and v = u + 1 there at times: v_t = d v_xx + 5 (v - 1 - (v - 1)³), v(±1) = 0.

    Differentiation matrix: Trefethen, Spectral Methods in MATLAB (2000), chapter 6.
    """
    from scipy.integrate import solve_ivp

    x = np.cos(np.pi * np.arange(n + 1) / n)
    c = np.array([2.0, *[1.0] * (n - 1), 2.0]) * (-1.0) ** np.arange(n + 1)
    D = np.outer(c, 1 / c) / (x[:, None] - x[None, :] + np.eye(n + 1))
    D -= np.diag(D.sum(axis=1))
    second = (D @ D)[1:-1, 1:-1]
    rate = lambda t, v: d * second @ v + 5 * (v - 1 - (v - 1) ** 3)
    jacobian = lambda t, v: d * second + np.diag(5 * (1 - 3 * (v - 1) ** 2))
    start = 1 + x[1:-1] ** 2 * np.cos(np.pi * x[1:-1])
    found = solve_ivp(rate, (0, 1), start, "BDF", jac=jacobian, rtol=1e-8, atol=1e-10, dense_output=True)
    return x, lambda t: np.pad(found.sol(t), ((1, 1), (0, 0)))


def allen_cahn(X: NDArray, n: int = 400, d: float = 0.002) -> NDArray:
    """Barycentric interpolation in x (Berrut and Trefethen, 2004), at 400 times linearly in t by its own scheme."""
    x, values = allen_cahn_values(n, d)
    weights = (-1.0) ** np.arange(n + 1) * np.array([0.5, *[1.0] * (n - 1), 0.5])
    found = np.empty((len(X), 1))
    for rows in np.array_split(np.arange(len(X)), max(1, len(X) // 500)):
        quotients = weights / (X[rows, :1] - x + 1e-14)
        found[rows, 0] = (quotients * values(X[rows, 1]).T).sum(axis=1) / quotients.sum(axis=1)
    return found - 1


def kovasznay(X: NDArray, re: float = 40.0) -> NDArray:
    rate = re / 2 - np.sqrt(re**2 / 4 + 4 * np.pi**2)
    x, y = X[:, :1], X[:, 1:2]
    u = 1 - np.exp(rate * x) * np.cos(2 * np.pi * y)
    v = rate / (2 * np.pi) * np.exp(rate * x) * np.sin(2 * np.pi * y)
    return np.hstack([u, v, (1 - np.exp(2 * rate * x)) / 2])


CHANGES: dict[str, Change] = {
    "Allen_Cahn": Change("d 0.001 → 0.002", allen_cahn, {"d": 0.002}),
    "Burgers": Change("ν 0.01/π → 0.007/π", burgers, text={"0.01 / np.pi": "0.007 / np.pi"}),
    "Euler_beam": Change(
        "load 1 → 2",
        lambda X: 2 * (-(X**4) / 24 + X**3 / 6 - X**2 / 4),
        text={
            "dy_xxxx + 1": "dy_xxxx + 2",
            "return -(x**4)": "return 2 * -(x**4)",
            "+ x**3 / 6 - ": "+ x**3 / 3 - 2 * ",
        },
    ),
    "Helmholtz_Dirichlet_2d": Change(
        "k₀ 4π → 5π", lambda X: np.prod(np.sin(5 * np.pi * X), axis=1, keepdims=True), {"n": 2.5}
    ),
    "Klein_Gordon": Change(
        "frequency 1 → 1.2",
        lambda X: X[:, :1] * np.cos(1.2 * X[:, 1:]),
        mended={'elif dde.backend.backend_name == "paddle"': "else", "import paddle": "import torch as paddle"},
        text={
            "+ x * cos(t)": "+ 1.44 * x * cos(1.2 * t)",
            "cos(t) ** 2": "cos(1.2 * t) ** 2",
            "np.cos(x[:, 1:2])": "np.cos(1.2 * x[:, 1:2])",
        },
    ),
    "Kovasznay_flow": Change("Re 20 → 40", kovasznay, {"Re": 40}),
    "Laplace_disk": Change(
        "boundary values cos θ → cos 2θ",
        lambda X: X[:, :1] ** 2 * np.cos(2 * X[:, 1:]),
        text={"r * np.cos(theta)": "r**2 * np.cos(2 * theta)", "np.cos(x[:, 1:2])": "np.cos(2 * x[:, 1:2])"},
    ),
    "Poisson_Dirichlet_1d": Change(
        "source's frequency π → 1.5π", lambda X: np.sin(1.5 * np.pi * X), text={"np.pi": "(1.5 * np.pi)"}
    ),
    "diffusion_1d": Change(
        "decay rate 1 → 2",
        lambda X: np.sin(np.pi * X[:, :1]) * np.exp(-2 * X[:, 1:]),
        text={"exp(-x[:, 1:])": "exp(-2 * x[:, 1:])", "(tf.sin(": "(2 * tf.sin("},
    ),
    "heat": Change(
        "a 0.4 → 0.2",
        lambda X: np.sin(np.pi * X[:, :1]) * np.exp(-0.2 * np.pi**2 * X[:, 1:]),
        {"a": 0.2},
        mended={"(x[i], t[j])": "(x[i, 0], t[j, 0])"},
    ),
}
