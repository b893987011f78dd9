"""The text of a small problem with a known solution, for any coordinates and fields.

With d coordinates of space x, …, and S = sin πx …, field number j solves

    with time      u_t = k Δu,         u = S exp(-dkπ²t) / j,
    without        -k Δu = dπ² S / j,  u = S / (jk),
    time alone     u_t = -k u,         u = exp(-kt) / j.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PROBLEM = '''"""{title}: a small example with a known solution, to be changed into your own."""

from __future__ import annotations

{math}from dataclasses import dataclass

import torch
from torch import Tensor

from pinn_odelora import Box, Points, Problem, Term, parameter


@dataclass(frozen=True, kw_only=True)
class {cls}(Problem):
    """{said}.

    Reference: {exact}.{others}
    """

    coords = ({coords})  # inputs of the network, a letter each
    fields = ({fields})  # its outputs
    region = Box({box})
    enforced = ({enforced})  # terms that the ansatz satisfies; conditions=soft trains them instead

    # Source, where the network is pretrained; target, to which it is adapted; what is allowed.
    k: float = parameter({source}, {target}, above=0)

    def terms(self) -> dict[str, Term]:
        # Where each holds and what must vanish there; f has coordinates f.{c}, values f.{u}, derivatives f.{u}_{c}.
        return {{
{terms}
        }}

    def shape(self, p: Points) -> Tensor:
        """{shape_said}, (N, 1)."""
        return {shape}

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        # u = g + m · network: g has the right values where m vanishes, and m vanishes there only.
        g = {g}
        m = {m}
        return g, m

    def reference(self, p: Points) -> Tensor:
        # The solution, a column for each field, if it is known; without one, leave this method out.
        u = {u_exact}
        return {u_columns}
'''
TEST = '''"""What ``python -m pinn_odelora check {name}`` checks."""

import pinn_odelora as po
from {module} import {cls}


def test_the_contract_holds():
    found = po.check({cls})
    assert found.holds, f"\\n{{found}}"
'''


@dataclass(frozen=True)
class Equation:
    """The example for a name, coordinates and fields."""

    name: str
    coords: tuple[str, ...]
    fields: tuple[str, ...]

    @property
    def cls(self) -> str:
        """The name in CamelCase."""
        return "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def timed(self) -> bool:
        """Whether there is time."""
        return "t" in self.coords

    @property
    def space(self) -> list[str]:
        """The other coordinates."""
        return [c for c in self.coords if c != "t"]

    def test(self, module: str) -> str:
        """The text of its test; ``module`` has the class."""
        return TEST.format(name=self.name, module=module, cls=self.cls)

    def problem(self) -> str:
        """The text of its file."""
        quoted = lambda names: ", ".join(f'"{name}"' for name in names) + "," * (len(names) == 1)
        enforced = ["ic"] * self.timed + ["bc"] * bool(self.space)
        shape = " * ".join(f"torch.sin(math.pi * p.{c})" for c in self.space) or "torch.ones_like(p.t)"
        m = [f"4 * p.{c} * (1 - p.{c})" for c in self.space]
        return PROBLEM.format(
            title=self.name.replace("_", " ").capitalize(),
            cls=self.cls,
            said=self._said(),
            math="import math\n" * bool(self.space),
            exact=self._exact(),
            others="".join(f" {v} is {self.fields[0]} / {j}." for j, v in self._further()),
            coords=quoted(self.coords),
            fields=quoted(self.fields),
            box=", ".join(f"{c}=(0, 1)" for c in self.coords),
            enforced=quoted(enforced),
            source=0.1 if self.timed and self.space else 1.0,
            target=0.15 if self.timed and self.space else 1.5,
            c=self.coords[0],
            u=self.fields[0],
            terms="\n".join(f"            {line}" for line in self._terms()),
            shape=shape,
            shape_said=" ".join(f"sin π{c}" for c in self.space) or "One",
            g=self._columns("self.shape(p)") if self.timed else f"0 * {self._columns('self.shape(p)')}",
            m=" * ".join(["p.t"] * self.timed + m),
            u_exact=f"self.shape(p) * torch.exp({self._rate()} * p.t)" if self.timed else "self.shape(p) / self.k",
            u_columns=self._columns("u"),
        )

    def _said(self) -> str:
        u, d = self.fields[0], len(self.space)
        box = " × ".join(["[0, 1]"] * len(self.coords))
        laplacian = " + ".join(f"{u}_{c}{c}" for c in self.space)
        laplacian = f"({laplacian})" if d > 1 else laplacian
        sines = " ".join(f"sin π{c}" for c in self.space)
        start = f"{u} = {sines or 1} at t = 0"
        ends = "" if not d else f"{u} = 0 at the ends of {', '.join(self.space)}"
        if not d:
            return f"{u}_t = -k {u} on {box};  {start}"
        if self.timed:
            return f"{u}_t = k {laplacian} on {box};  {start},  {ends}"
        return f"-k {laplacian} = {_times(d)}π² {sines} on {box};  {ends}"

    def _exact(self) -> str:
        u, d = self.fields[0], len(self.space)
        sines = " ".join(f"sin π{c}" for c in self.space)
        if not d:
            return f"{u} = exp(-kt)"
        return f"{u} = {sines} exp(-{_times(d)}kπ²t)" if self.timed else f"{u} = {sines} / k"

    def _rate(self) -> str:
        d = len(self.space)
        return f"-{d if d > 1 else ''}{' * ' if d > 1 else ''}self.k * math.pi**2" if d else "-self.k"

    def _terms(self) -> list[str]:
        d, t = len(self.space), '"t": 1, ' if self.timed else ""
        second = ", ".join(f'"{c}{c}": -self.k' for c in self.space) or '"": self.k'
        right = "" if self.timed else f" - {d if d > 1 else ''}{' * ' if d > 1 else ''}math.pi**2 * self.shape(f)"
        over = lambda j: "" if j == 1 or not right else f" / {j}"
        pde = [f'f.op("{u}", {{{t}{second}}}){right}{over(j)}' for j, u in enumerate(self.fields, start=1)]
        lines = [f'"pde": Term(self.region, lambda f: {pde[0]}),']
        if len(pde) > 1:
            lines = [
                '"pde": Term(',
                "    self.region,",
                "    lambda f: (",
                *(f"        {r}," for r in pde),
                "    ),",
                "),",
            ]
        if self.timed:
            start = self._each(lambda u, j: f"f.{u} - self.shape(f)" + ("" if j == 1 else f" / {j}"))
            lines.append(f'"ic": Term(self.region.face(t=0.0), lambda f: {start}),')
        if d:
            ends = self._each(lambda u, j: f"f.{u}")
            names = ", ".join(f'"{c}"' for c in self.space)
            lines.append(f'"bc": Term(self.region.boundary({names}), lambda f: {ends}),')
        return lines

    def _each(self, write: Callable[[str, int], str]) -> str:
        parts = [write(u, j) for j, u in enumerate(self.fields, start=1)]
        return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"

    def _further(self) -> list[tuple[int, str]]:
        return [*enumerate(self.fields, start=1)][1:]

    def _columns(self, value: str) -> str:
        if len(self.fields) == 1:
            return value
        parts = [value if j == 1 else f"{value} / {j}" for j in range(1, len(self.fields) + 1)]
        return f"torch.cat([{', '.join(parts)}], dim=1)"


def _times(d: int) -> str:
    return str(d) if d > 1 else ""
