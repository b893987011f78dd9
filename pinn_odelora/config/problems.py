"""Problems of installed packages as members of the group ``problem``, without a file in configs/."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from pinn_odelora.registry import targets


def register_problems() -> None:
    """Let ``problem=<name>`` choose the problems of installed packages; none has the name of one of ours.

    Raises:
        InputError: if an installed package's problem has a name that is taken, or names no class.
    """
    store = ConfigStore.instance()
    for name, target in targets().items():
        store.store(group="problem", name=name, node={"_target_": target}, provider="pinn_odelora")
