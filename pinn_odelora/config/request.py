"""What was typed, as Hydra keeps it beside the configuration that it composed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


class Request(NamedTuple):
    """``given``: the keys and groups that were set; ``choices``: the member of each group; ``job``: its number in a
    sweep; ``folders``: where the groups' files lie.
    """

    given: tuple[str, ...] = ()
    choices: Mapping[str, str | None] = {}
    job: int | None = None
    folders: tuple[Path, ...] = ()

    @classmethod
    def of(cls, hydra: DictConfig) -> Request:
        """From Hydra's own part of a configuration."""
        typed = OverridesParser.create().parse_overrides(OmegaConf.to_container(hydra.overrides.task, resolve=False))
        sources = [source.path for source in hydra.runtime.config_sources if source.schema == "file"]
        return cls(
            given=tuple(override.key_or_group for override in typed),
            choices=OmegaConf.to_container(hydra.runtime.choices),
            job=hydra.job.num if hydra.mode == RunMode.MULTIRUN else None,
            folders=tuple(map(Path, sources)),
        )

    @classmethod
    def current(cls) -> Request:
        """That of the job that Hydra runs now; empty when the configuration did not come from a command line."""
        return cls.of(HydraConfig.get()) if HydraConfig.initialized() else cls()

    def gives(self, *prefixes: str) -> list[str]:
        """The keys given that are one of the prefixes, or lie inside one."""
        return [key for key in self.given if any(key == p or key.startswith(f"{p}.") for p in prefixes)]

    def members(self, group: str) -> dict[str, str]:
        """The ``_target_`` of each member of a group that has one."""
        files = sorted(file for folder in self.folders for file in (folder / group).glob("*.yaml"))
        return {file.stem: target for file in files if (target := OmegaConf.load(file).get("_target_"))}
