"""DeepXDE's own step, ``Model._train_step``, its optimiser only calling the closure (Lu et al., 2021)."""

from __future__ import annotations

import contextlib
import io
import os
from types import SimpleNamespace

import numpy as np
import torch

from engines import Step
from engines.workloads import WORKLOADS, AllenCahn, Burgers, Case, KdV, NavierStokes, gradients, load

os.environ["DDE_BACKEND"] = "pytorch"
with contextlib.redirect_stderr(io.StringIO()):
    import deepxde as dde

# On a machine with a GPU the import makes it torch's default device, also for the other engines of this process.
torch.set_default_device(None)

jacobian, hessian = dde.grad.jacobian, dde.grad.hessian


def burgers(x, u):
    return jacobian(u, x, j=1) + u * jacobian(u, x, j=0) - Burgers.nu * hessian(u, x)


def allen_cahn(x, u):
    return jacobian(u, x, j=1) - AllenCahn.d * hessian(u, x) - 5 * (u - u**3)


def navier_stokes(x, y):
    u, v = y[:, 0:1], y[:, 1:2]
    u_x, u_y = jacobian(y, x, i=0, j=0), jacobian(y, x, i=0, j=1)
    v_x, v_y = jacobian(y, x, i=1, j=0), jacobian(y, x, i=1, j=1)
    p_x, p_y = jacobian(y, x, i=2, j=0), jacobian(y, x, i=2, j=1)
    lap_u, lap_v = (hessian(y, x, component=c, i=0, j=0) + hessian(y, x, component=c, i=1, j=1) for c in (0, 1))
    return [
        u * u_x + v * u_y + p_x - lap_u / NavierStokes.re,
        u * v_x + v * v_y + p_y - lap_v / NavierStokes.re,
        u_x + v_y,
    ]


def kdv(x, u):
    u_xxx = jacobian(hessian(u, x), x, j=0)
    return jacobian(u, x, j=1) + u * jacobian(u, x, j=0) + KdV.delta**2 * u_xxx


def poisson(x, u):
    return sum(hessian(u, x, i=k, j=k) for k in range(x.shape[1])) + 1


EQUATIONS = {f.__name__: f for f in (burgers, allen_cahn, navier_stokes, kdv, poisson)}


def build(case: Case, device: str) -> Step:
    problem = WORKLOADS[case.workload].problem
    low, high = np.array([problem.region.bounds[name] for name in problem.coords]).T
    sizes = [case.points.shape[1], *(len(bias) for _, bias in case.layers)]
    place = torch.device(device) if device != "cpu" else contextlib.nullcontext()
    with place, contextlib.redirect_stdout(io.StringIO()):
        data = dde.data.PDE(dde.geometry.Hypercube(low, high), EQUATIONS[case.workload], [], anchors=case.points)
        model = dde.Model(data, dde.nn.FNN(sizes, "tanh", "Glorot uniform"))
        model.compile("adam", lr=1e-3)
        model.train_state.set_data_train(*data.train_next_batch())
    load(model.net.parameters(), case)
    model.opt = SimpleNamespace(step=lambda closure: closure(), zero_grad=model.opt.zero_grad)
    state = model.train_state

    def run():
        with place:
            model._train_step(state.X_train, state.y_train, state.train_aux_vars)
        if device != "cpu":
            torch.cuda.synchronize()

    return Step(run, lambda _: gradients(model.net.parameters()))
