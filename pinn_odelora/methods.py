"""All methods by name: ``po.adapt(net, problem, method=po.methods.lora_adam())``.

``odelora`` and ``full_implicit`` are ours, the others are the rivals, a file each in ``pinn_odelora/rivals/``.
"""

from pinn_odelora.optim.methods import Method, full_implicit, odelora
from pinn_odelora.rivals.adam import full_adam, lora_adam, lora_adamw
from pinn_odelora.rivals.allora import allora
from pinn_odelora.rivals.altlora import altlora, altlora_plus
from pinn_odelora.rivals.balora import balora
from pinn_odelora.rivals.dora import dora
from pinn_odelora.rivals.factor_muon import factor_muon
from pinn_odelora.rivals.full_muon import full_muon
from pinn_odelora.rivals.geolora import geolora
from pinn_odelora.rivals.lbfgs import full_lbfgs, lora_lbfgs
from pinn_odelora.rivals.loft import loft
from pinn_odelora.rivals.lora_fa import lora_fa
from pinn_odelora.rivals.lora_gd import lora_gd
from pinn_odelora.rivals.lora_muon import lora_muon
from pinn_odelora.rivals.lora_plus import lora_plus
from pinn_odelora.rivals.lora_pro import lora_pro, lora_pro_adamw
from pinn_odelora.rivals.lora_rite import lora_rite
from pinn_odelora.rivals.natural import full_natural
from pinn_odelora.rivals.polar import polar
from pinn_odelora.rivals.reflora import reflora
from pinn_odelora.rivals.scaled_adamw import scaled_adamw
from pinn_odelora.rivals.scaled_gd import scaled_gd
from pinn_odelora.rivals.soap import full_soap
from pinn_odelora.rivals.ssbroyden import full_ssbroyden, lora_ssbroyden

__all__ = [
    "Method",
    "allora",
    "altlora",
    "altlora_plus",
    "balora",
    "dora",
    "factor_muon",
    "full_adam",
    "full_implicit",
    "full_lbfgs",
    "full_muon",
    "full_natural",
    "full_soap",
    "full_ssbroyden",
    "geolora",
    "loft",
    "lora_adam",
    "lora_adamw",
    "lora_fa",
    "lora_gd",
    "lora_lbfgs",
    "lora_muon",
    "lora_plus",
    "lora_pro",
    "lora_pro_adamw",
    "lora_rite",
    "lora_ssbroyden",
    "odelora",
    "polar",
    "reflora",
    "scaled_adamw",
    "scaled_gd",
]
