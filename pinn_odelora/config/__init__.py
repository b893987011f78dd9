"""The command line: from what was typed to a configuration that is worth running, or to one sentence why not.

    application      what Hydra is told, and the text of ``--help``
    program          the start of a run, and how it ends
    request          what was typed
    settings         which class holds which keys
    components       the objects that ``_target_`` names
    checks           everything that can be refused before a run starts
    folders          where a run leaves its files, and continuing it
    sentences        invalid input in words

A rule on a value stands in the class that holds the value; here it only gets the name of a key. torch is imported by
the checks of what needs it, so that ``--help`` and most refusals answer at once.
"""

from pinn_odelora.config.application import register
from pinn_odelora.config.folders import has_pretrained
from pinn_odelora.config.program import begin, run
from pinn_odelora.config.request import Request
from pinn_odelora.runs.configuration import save_config

__all__ = ["Request", "begin", "has_pretrained", "register", "run", "save_config"]
