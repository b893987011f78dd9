"""A problem and a network as a user writes them, and slips in either: a piece of the text and what stands there."""

from __future__ import annotations

PROBLEM = '''
import math
from dataclasses import dataclass

import torch

from pinn_odelora import Box, Points, Problem, Term, parameter


@dataclass(frozen=True, kw_only=True)
class Mine(Problem):
    """u_t = k u_xx on the unit square."""

    coords = ("x", "t")
    fields = ("u",)
    region = Box(x=(0, 1), t=(0, 1))
    enforced = ("ic", "bc")
    supports = ("hard", "soft")

    k: float = parameter(0.05, 0.1, above=0)

    def terms(self):
        return {
            "pde": Term(self.region, lambda f: f.u_t - self.k * f.u_xx),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - torch.sin(math.pi * f.x)),
            "bc": Term(self.region.boundary("x"), lambda f: f.u),
        }

    def ansatz(self, p):
        return torch.sin(math.pi * p.x), 4 * p.t * p.x * (1 - p.x)

    def reference(self, p):
        return torch.exp(-self.k * math.pi**2 * p.t) * torch.sin(math.pi * p.x)
'''

PDE = "lambda f: f.u_t - self.k * f.u_xx"
ANSATZ = "return torch.sin(math.pi * p.x), 4 * p.t * p.x * (1 - p.x)"
REFERENCE = "return torch.exp(-self.k * math.pi**2 * p.t) * torch.sin(math.pi * p.x)"
TERMS = '        return {\n            "pde"'
PROBLEM_SLIPS = (
    # Declarations.
    ('coords = ("x", "t")', 'coords = "x"'),
    ('coords = ("x", "t")', 'coords = ("x", "x")'),
    ('coords = ("x", "t")', 'coords = ("x", "t", "y")'),
    ('coords = ("x", "t")', "coords = ()"),
    ('coords = ("x", "t")', 'coords = ["x", 3]'),
    ('coords = ("x", "t")', "coords = None"),
    ('    coords = ("x", "t")\n', ""),
    ('fields = ("u",)', 'fields = ("u")'),
    ('fields = ("u",)', 'fields = ("u", "v")'),
    ('fields = ("u",)', "fields = ()"),
    ('fields = ("u",)', 'fields = ("x",)'),
    ("region = Box(x=(0, 1), t=(0, 1))", "region = Box(x=(0, 1))"),
    ("region = Box(x=(0, 1), t=(0, 1))", "region = Box(x=(1, 0), t=(0, 1))"),
    ("region = Box(x=(0, 1), t=(0, 1))", "region = Box(x=(0, 0), t=(0, 1))"),
    ("region = Box(x=(0, 1), t=(0, 1))", "region = ((0, 1), (0, 1))"),
    ("region = Box(x=(0, 1), t=(0, 1))", "region = None"),
    ("    region = Box(x=(0, 1), t=(0, 1))\n", ""),
    ("region = Box(x=(0, 1), t=(0, 1))", 'region = Box(x=("a", 1), t=(0, 1))'),
    ('enforced = ("ic", "bc")', 'enforced = ("ic", "boundary")'),
    ('enforced = ("ic", "bc")', 'enforced = "ic"'),
    ('enforced = ("ic", "bc")', 'enforced = ("pde", "ic", "bc")'),
    ('supports = ("hard", "soft")', 'supports = ("hard", "weak")'),
    ('supports = ("hard", "soft")', "supports = ()"),
    ("k: float = parameter(0.05, 0.1, above=0)", "k: float = parameter(-0.05, 0.1, above=0)"),
    ("k: float = parameter(0.05, 0.1, above=0)", 'k: float = parameter("small", 0.1)'),
    ("k: float = parameter(0.05, 0.1, above=0)", "k: float"),
    ("k: float = parameter(0.05, 0.1, above=0)", "k: float = parameter()"),
    ("@dataclass(frozen=True, kw_only=True)\n", ""),
    ("@dataclass(frozen=True, kw_only=True)", "@dataclass"),
    ("class Mine(Problem):", "class Mine:"),
    # The file.
    ("import torch\n", "import torhc\n"),
    ("class Mine(Problem):", "class Mine(Problem)"),
    ("    def terms(self):", "   def terms(self):"),
    ("class Mine(Problem):", "1 / 0\nclass Mine(Problem):"),
    # Terms.
    (PDE, "lambda f: f.u_t - self.kappa * f.u_xx"),
    (PDE, "lambda f: f.u_t - self.k * f.u_yy"),
    (PDE, "lambda f: f.v_t - self.k * f.v_xx"),
    (PDE, "lambda f: f.u_t - self.k * torch.cat([f.u_xx, f.u_xx])"),
    (PDE, "lambda f: (f.u_t - self.k * f.u_xx).mean()"),
    (PDE, "lambda f: (f.u_t - self.k * f.u_xx).squeeze()"),
    (PDE, "lambda f: (f.u_t - self.k * f.u_xx)[1:]"),
    (PDE, "lambda f: None"),
    (PDE, "lambda f: 0.0"),
    (PDE, "lambda f: (f.u_t - self.k * f.u_xx).detach()"),
    (PDE, "lambda f: (f.u_t - self.k * f.u_xx).numpy()"),
    (PDE, "lambda f: [f.u_t - self.k * f.u_xx]"),
    (PDE, "lambda f: {'pde': f.u_t - self.k * f.u_xx}"),
    (PDE, "lambda f: (f.u_t - self.k * f.u_xx).bool()"),
    (PDE, "lambda f: (f.u_t - self.k * f.u_xx) * 1j"),
    (PDE, "lambda f: (f.u_t - self.k * f.u_xx) / 0"),
    (PDE, "lambda f: torch.log(f.u_t - 1e9)"),
    (PDE, "lambda f: f.u_t - self.k * f.u_xx + f.u @ f.u"),
    (PDE, "lambda f: f.u_t - self.k * math.sqrt(f.u_xx)"),
    (PDE, "lambda f, t: f.u_t - self.k * f.u_xx"),
    (PDE, "lambda: 0"),
    (PDE, '"u_t - k u_xx"'),
    (PDE, "lambda f: f.u_t - self.k * f.lap('w')"),
    (PDE, "lambda f: f.op('u', {'t': 1, 'xx': 'k'})"),
    (PDE, "lambda f: f.op('u', {'t': 1, 'qq': -self.k})"),
    (PDE, "lambda f: f.u_t - f.at(x=f.x[:1]).u"),
    (PDE, "lambda f: f.u_t - f.at(y=f.x).u"),
    (PDE, "lambda f: f.u_t + exec('raise ValueError(chr(10).join(\"ab\"))')"),
    ('Term(self.region.boundary("x"), lambda f: f.u)', "lambda f: f.u"),
    ('Term(self.region.boundary("x"), lambda f: f.u)', "None"),
    ('Term(self.region.boundary("x"), lambda f: f.u)', 'Term(self.region.boundary("y"), lambda f: f.u)'),
    ('Term(self.region.boundary("x"), lambda f: f.u)', 'Term("boundary", lambda f: f.u)'),
    ("Term(self.region.face(t=0.0), ", "Term(self.region.face(t=0.5), "),
    ("Term(self.region.face(t=0.0), ", "Term(self.region.face(), "),
    (TERMS, '        return {}\n        return {\n            "pde"'),
    (TERMS, '        return None\n        return {\n            "pde"'),
    (TERMS, '        raise KeyError("later")\n        return {\n            "pde"'),
    (TERMS, '        return [Term(self.region, lambda f: f.u)]\n        return {\n            "pde"'),
    # Ansatz and reference.
    (ANSATZ, "return torch.sin(math.pi * p.x)"),
    (ANSATZ, "return torch.sin(math.pi * p.x), 4 * p.t * p.x * (1 - p.x), 0"),
    (ANSATZ, "return torch.sin(math.pi * p.x), 0"),
    (ANSATZ, "return torch.sin(math.pi * p.x).squeeze(), 4 * p.t.squeeze()"),
    (ANSATZ, "return p.y, p.t"),
    (ANSATZ, "return None"),
    (ANSATZ, "return torch.sin(math.pi * p.x) / (p.x - p.x), p.t"),
    (REFERENCE, "return torch.sin(math.pi * p.x).squeeze()"),
    (REFERENCE, "return torch.sin(math.pi * p.y)"),
    (REFERENCE, "return None"),
    (REFERENCE, "return torch.sin(math.pi * p.x).numpy()"),
    (REFERENCE, "return 1.0"),
    (REFERENCE, "return torch.zeros(3, 1)"),
    (REFERENCE, "return torch.sin(math.pi * p.x).float()"),
    (REFERENCE, "return torch.sqrt(-1 - p.x)"),
)

NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self, inputs, outputs, width=6):
        super().__init__()
        self.first = torch.nn.Linear(inputs, width)
        self.middle = torch.nn.Linear(width, width)
        self.last = torch.nn.Linear(width, outputs)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.middle(h))
        return self.last(h)
"""

LAST = "        return self.last(h)"
INSIDE = "        h = torch.tanh(self.middle(h))"
NETWORK_SLIPS = (
    ("def __init__(self, inputs, outputs, width=6):", "def __init__(self, width=6):\n        inputs, outputs = 2, 1"),
    ("def __init__(self, inputs, outputs, width=6):", "def __init__(self, inputs, outputs, width):"),
    ("        super().__init__()\n", ""),
    ("torch.nn.Linear(width, outputs)", "torch.nn.Linear(width, 3)"),
    ("torch.nn.Linear(inputs, width)", "torch.nn.Linear(3, width)"),
    ("torch.nn.Linear(width, width)", "torch.nn.Linear(width, width + 1)"),
    ("torch.nn.Linear(width, width)", "torch.nn.Linear(width, -1)"),
    ("torch.nn.Linear(width, width)", "torch.nn.Dropout(0.5)"),
    ("torch.nn.Linear(width, width)", "torch.nn.BatchNorm1d(width)"),
    ("torch.nn.Linear(width, width)", "torch.nn.ReLU()"),
    ("torch.nn.Linear(width, width)", "torch.nn.LazyLinear(width)"),
    ("torch.nn.Linear(width, width)", "torch.nn.LSTM(width, width)"),
    ("torch.nn.Linear(width, width)", "None"),
    ("torch.nn.Linear(width, width)", 'torch.nn.Linear(width, width, device="meta")'),
    ("torch.nn.Linear(width, width)", "torch.nn.Linear(width, width, dtype=torch.complex64)"),
    ("torch.nn.Linear(width, width)", "torch.nn.Linear(width, width).requires_grad_(False)"),
    ("    def forward(self, x):", "    def forwards(self, x):"),
    ("    def forward(self, x):", "    def forward(self):"),
    ("    def forward(self, x):", "    def forward(self, x, t):"),
    (LAST, "        return None"),
    (LAST, "        return self.last(h).squeeze()"),
    (LAST, "        return self.last(h).mean()"),
    (LAST, "        return self.last(h).detach()"),
    (LAST, "        return self.last(h).numpy()"),
    (LAST, "        return (self.last(h), h)"),
    (LAST, "        return {'u': self.last(h)}"),
    (LAST, "        return self.last(h)[:-1]"),
    (LAST, "        return self.last(h) * float('nan')"),
    (LAST, "        return self.last(h).float()"),
    (LAST, "        return self.last(h) + torch.randn(1)"),
    (LAST, "        raise RuntimeError('not yet')"),
    (LAST, "        return 1.0"),
    (INSIDE, "        h = torch.tanh(self.midle(h))"),
    (INSIDE, "        h = h - h.mean(0)"),
    (INSIDE, "        h = torch.round(h)"),
    (INSIDE, "        h = h.sort(0).values"),
    (INSIDE, "        h = torch.tanh(self.middle(h.float()))"),
    (INSIDE, "        self.calls += 1"),
    (INSIDE, "        h = h.numpy()"),
    (INSIDE, "        h.add_(1)"),
)
