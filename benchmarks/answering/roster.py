"""Who else answers: solvers, one target at a time, and those who prepare and then answer every parameter."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from answering.cases import Case
from answering.rivals.adaptation import adaptation
from answering.rivals.by_deepxde import deepxde
from answering.rivals.combination import combination
from answering.rivals.conditional import conditional
from answering.rivals.last_layer import last_layer, multi_head
from answering.rivals.scratch import lbfgs, natural_gradient, ssbroyden
from answering.trace import Function, Trace
from pinn_odelora.rivals.ssbroyden import LARGEST
from pinn_odelora.system import Solution


class Start(NamedTuple):
    """What there is before a target is known; nothing is made for those who do not ask for it.

    ``network``: makes the one pretrained at the source; ``stations``: makes the family; ``seconds``: of CPU time that
    both took.
    """

    network: Callable[[], nn.Module]
    stations: Callable[[], Any]
    seconds: float


class Solver(NamedTuple):
    """Solves for one parameter until an error or a number of seconds is reached.

    ``scratch``: whether it begins with a new network. ``most``: numbers that it can train; None for any.
    """

    name: str
    solve: Callable[[Case, float, int, float, float, Start], Trace]
    scratch: bool = True
    most: int | None = None
    package: str | None = None

    def missing(self, case: Case) -> str | None:
        """Why it does not run on a case."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is missing"
        if self.most is not None and sum(p.numel() for p in case.net(0).parameters()) > self.most:
            return f"it cannot train more than {self.most} numbers"
        return None


class Preparer(NamedTuple):
    """Takes the family's offline time, or its stations, and returns a function from parameters to solutions."""

    name: str
    prepare: Callable[[Case, int, Start], Callable[[float], Function]]

    def missing(self, case: Case) -> str | None:
        return None


def station_solutions(case: Case, family: Any) -> list[Solution]:
    """The solutions of the stations as they are, each a copy."""
    parametric, found = family.parametric, []
    for station in family.stations:
        parametric.place(station.weights)
        found.append(Solution(case.at(station.values[case.parameter]), copy.deepcopy(parametric.net)))
    return found


def of_stations(case: Case, start: Start) -> Callable[[float], Function]:
    """The combination of the solutions of the family's stations."""
    family = start.stations()
    values = [station.values[case.parameter] for station in family.stations]
    return combination(case, values, station_solutions(case, family))


NATURAL, ADAPTATION = "natural_gradient", "adaptation"
SOLVERS: Mapping[str, Solver] = {
    solver.name: solver
    for solver in (
        Solver(NATURAL, lambda *job: natural_gradient(*job[:-1])),
        Solver(ADAPTATION, lambda *job: adaptation(*job[:-1], job[-1].network()), scratch=False),
        Solver("lbfgs", lambda *job: lbfgs(*job[:-1])),
        Solver("ssbroyden", lambda *job: ssbroyden(*job[:-1]), most=LARGEST),
        Solver("deepxde", lambda *job: deepxde(*job[:-1]), package="deepxde"),
    )
}
PREPARERS: Mapping[str, Preparer] = {
    preparer.name: preparer
    for preparer in (
        Preparer("combination", lambda case, seed, start: of_stations(case, start)),
        Preparer("one_head", lambda case, seed, start: last_layer(case, start.network())),
        Preparer("multi_head", lambda case, seed, start: multi_head(case, seed, start.seconds)),
        Preparer("conditional", lambda case, seed, start: conditional(case, seed, start.seconds)),
    )
}
RIVALS = {**SOLVERS, **PREPARERS}
