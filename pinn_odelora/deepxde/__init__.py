"""DeepXDE models as they are: adapt them, train them, or use them as problems.

import deepxde as dde                         # backend PyTorch
import pinn_odelora as po

model = dde.Model(data, net)
model.compile("adam", lr=1e-3)
po.deepxde.train(model, seconds=30)           # in place of model.train
po.deepxde.adapt(other, seconds=5)            # another model with the same network: low-rank factors
problem = po.deepxde.problem(model)           # for everything else
"""

from pinn_odelora.deepxde.problem import problem
from pinn_odelora.deepxde.training import adapt, train

__all__ = ["adapt", "problem", "train"]
