"""What was typed, as Hydra keeps it beside the configuration that it composed."""

from __future__ import annotations

from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pinn_odelora.arguments import unspelled


class Request(NamedTuple):
    """``given``: the keys and groups that were set; ``job``: its number in a sweep; ``among_methods``: whether that has
    jobs of several methods, as one that Hydra runs may, so that a key may be for others than this one.
    """

    given: tuple[str, ...] = ()
    job: int | None = None
    among_methods: bool = False

    @classmethod
    def of(cls, hydra: DictConfig, job: int | None = None, among_methods: bool = False) -> Request:
        """From Hydra's own part of a configuration."""
        typed = OverridesParser.create().parse_overrides(OmegaConf.to_container(hydra.overrides.task, resolve=False))
        return cls(tuple(unspelled(override.key_or_group) for override in typed), job, among_methods)

    @classmethod
    def current(cls) -> Request:
        """That of the job that Hydra runs now; empty when the configuration did not come from a command line."""
        if not HydraConfig.initialized():
            return cls()
        hydra = HydraConfig.get()
        return cls.of(hydra, hydra.job.num, True) if hydra.mode == RunMode.MULTIRUN else cls.of(hydra)

    def gives(self, *prefixes: str) -> list[str]:
        """The keys given that are one of the prefixes, or lie inside one."""
        return [key for key in self.given if any(key == p or key.startswith(f"{p}.") for p in prefixes)]
