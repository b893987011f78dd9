"""Derivatives of a solution, requested by name."""

from pinn_odelora.derivatives import rules as _rules  # noqa: F401  fills the table of jet rules
from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.jets import JetField, lifted
from pinn_odelora.derivatives.pointwise import by_autograd, pointwise
from pinn_odelora.derivatives.rehearsal import ENGINES, SAMPLE, Engine, rehearse
from pinn_odelora.derivatives.rules import RULES

__all__ = [
    "ENGINES",
    "RULES",
    "SAMPLE",
    "AutogradField",
    "Engine",
    "Field",
    "JetField",
    "by_autograd",
    "lifted",
    "pointwise",
    "rehearse",
]
