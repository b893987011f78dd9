"""The command line: from what was typed to a configuration that is worth running, or to one sentence why not.

    keys, rules      what can be set, and to what
    signature        what a ``_target_`` takes, without importing it
    request          what was typed
    checks           all that can be refused before anything is built
    folders          where a run leaves its files, repeating and continuing it
    sentences        what is said when something is refused
    settings         what Hydra is told
    program          the start of a run, and how it ends

Nothing here imports torch, so that ``--help`` and a refusal answer at once.
"""

from pinn_odelora.config.checks import ADAPTIVE, UNKNOWN, check
from pinn_odelora.config.folders import has_pretrained, save_config
from pinn_odelora.config.keys import AUTO
from pinn_odelora.config.program import begin, run
from pinn_odelora.config.request import Request
from pinn_odelora.config.settings import register
from pinn_odelora.config.signature import signature

__all__ = [
    "ADAPTIVE",
    "AUTO",
    "UNKNOWN",
    "Request",
    "begin",
    "check",
    "has_pretrained",
    "register",
    "run",
    "save_config",
    "signature",
]
