"""JAX: one jitted ``value_and_grad``, with the derivatives at a point in one of three forms (Bradbury et al., 2018).

``grad``: nested reverse mode, output by output; ``jvp``: nested forward mode; ``jet``: ``jax.experimental.jet``, Taylor
mode (Bettencourt, Johnson and Duvenaud, 2019). Each along one coordinate, which is all that the five equations need,
and at one point; then ``vmap``. For ten dimensions the coordinates are taken one by one: batched, all forms are slower.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet

from engines import Step
from engines.workloads import AllenCahn, Burgers, Case, KdV, NavierStokes

# On a GPU, XLA would multiply in TF32, which torch does not.
jax.config.update("jax_default_matmul_precision", "highest")


def by_grad(f, x, axis, order):
    """f and its derivatives of order 1, 2, … along one coordinate at the point x (d,), each (outputs,)."""

    def tower(g):
        values = [g(x)]
        for _ in range(order):
            g = lambda x, g=g: jax.grad(g)(x)[axis]
            values.append(g(x))
        return values

    outputs = jax.eval_shape(f, x).shape[0]
    return list(zip(*(tower(lambda x, i=i: f(x)[i]) for i in range(outputs)), strict=True))


def by_jvp(f, x, axis, order):
    """The same in forward mode."""
    e = jnp.zeros_like(x).at[axis].set(1)
    values = [f(x)]
    for _ in range(order):
        f = lambda x, f=f: jax.jvp(f, (x,), (e,))[1]
        values.append(f(x))
    return values


def by_jet(f, x, axis, order):
    """The same in Taylor mode."""
    e = jnp.zeros_like(x).at[axis].set(1)
    value, derivatives = jet(f, (x,), ((e, *[jnp.zeros_like(x)] * (order - 1)),))
    return [value, *derivatives]


FORMS = {"grad": by_grad, "jvp": by_jvp, "jet": by_jet}


def burgers(along, dimensions):
    (u,), (u_x,), (u_xx,) = along(0, 2)
    _, (u_t,) = along(1, 1)
    return u_t + u * u_x - Burgers.nu * u_xx


def allen_cahn(along, dimensions):
    (u,), _, (u_xx,) = along(0, 2)
    _, (u_t,) = along(1, 1)
    return u_t - AllenCahn.d * u_xx - 5 * (u - u**3)


def navier_stokes(along, dimensions):
    (u, v, _), (u_x, v_x, p_x), (u_xx, v_xx, _) = along(0, 2)
    _, (u_y, v_y, p_y), (u_yy, v_yy, _) = along(1, 2)
    return jnp.array(
        [
            u * u_x + v * u_y + p_x - (u_xx + u_yy) / NavierStokes.re,
            u * v_x + v * v_y + p_y - (v_xx + v_yy) / NavierStokes.re,
            u_x + v_y,
        ]
    )


def kdv(along, dimensions):
    (u,), (u_x,), _, (u_xxx,) = along(0, 3)
    _, (u_t,) = along(1, 1)
    return u_t + u * u_x + KdV.delta**2 * u_xxx


def poisson(along, dimensions):
    return sum(along(axis, 2)[2][0] for axis in range(dimensions)) + 1


EQUATIONS = {f.__name__: f for f in (burgers, allen_cahn, navier_stokes, kdv, poisson)}


def network(layers, x):
    *hidden, (W, b) = layers
    for V, c in hidden:
        x = jnp.tanh(x @ V + c)
    return x @ W + b


def build(case: Case, device: str, form: str) -> Step:
    equation, derivatives = EQUATIONS[case.workload], FORMS[form]
    place = jax.devices(device)[0]
    layers = jax.device_put([(W.T, b) for W, b in case.layers], place)
    points = jax.device_put(case.points, place)

    def residual(layers, x):
        return equation(lambda axis, order: derivatives(lambda x: network(layers, x), x, axis, order), len(x))

    @jax.jit
    @jax.value_and_grad
    def step(layers, points):
        return jnp.square(jax.vmap(residual, (None, 0))(layers, points)).sum() / len(points)

    def gradient(result):
        return [array for W, b in result[1] for array in (W.T, b)]

    return Step(lambda: jax.block_until_ready(step(layers, points)), gradient)
