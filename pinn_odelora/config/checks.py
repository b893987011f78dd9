"""Every check before a run starts, so that a sweep does not end at its last job.

Keys that do not exist; values, each by the rule of the object that holds it; files that are not there; and settings
that the chosen method, or a family, would not look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pinn_odelora.config import components, family
from pinn_odelora.config.folders import chosen_folder, has_pretrained
from pinn_odelora.config.request import Request
from pinn_odelora.config.sentences import unknown_key
from pinn_odelora.config.settings import CLASSES, OPEN, PARTS, RULES
from pinn_odelora.errors import InputError, RefusedValueError, within
from pinn_odelora.lightning.settings import check_trainer
from pinn_odelora.rules import one_of, signature
from pinn_odelora.runs.location import check_free


def check(cfg: DictConfig, request: Request) -> dict[str, str | None]:
    """Refuse a configuration that cannot be run; the names of its problem, network, method and integrator.

    Values are put into ``cfg`` as they were read: 1e4 evaluations as an integer, paths as absolute ones.

    Raises:
        InputError: one sentence on the first thing that is wrong.
    """
    if OmegaConf.select(cfg, "family", default={}):
        family.limit(cfg, request)
    config = resolved(cfg)
    for key in (*OPEN, "problem.weights"):
        mapping(key, OmegaConf.select(cfg, key, default={}), ["<name>"])
    for part in PARTS:
        held = section(config, part)
        keys = [key for key in RULES if key.rpartition(".")[0] == part]
        if has_pretrained(cfg) and part == "pretrain":
            keys.remove("pretrain.checkpoint")
        read = {key: RULES[key].check(key, held.get(key.rpartition(".")[2])) for key in keys}
        if part in CLASSES:
            read |= {f"{part}.{name}": value for name, value in vars(settings(config, part)).items()}
        for key in read.keys() - CLASSES.keys():
            value = [*read[key]] if isinstance(read[key], tuple) else read[key]
            OmegaConf.update(cfg, key, value, force_add=True)
    with within("trainer"):
        check_trainer(config["trainer"], sweep=request.job is not None)
    names = objects(resolved(cfg), request)
    if cfg.resume is None:
        check_free(chosen_folder(cfg, request))
    return names


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain dictionaries with every ``${…}`` replaced."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key} cannot be resolved: {str(error).splitlines()[0]}.") from None


def settings(config: Mapping[str, Any], key: str) -> Any:
    """The object of ``CLASSES`` with the settings at ``key``, those in it included; a key left out has its default.

    Raises:
        InputError: if a key does not exist, or a value is not allowed.
    """
    cls, held = resolve_name(CLASSES[key]), section(config, key)
    below = [name for name in held if f"{key}.{name}" in CLASSES]
    values = {name: value for name, value in held.items() if name in signature(cls).parameters}
    parts = {name: settings(config, f"{key}.{name}") for name in below}
    with within(key):
        return cls(**values | parts)


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What is at ``key``, the whole configuration without one; only keys that exist."""
    prefix = f"{key}." if key else ""
    below = [k.removeprefix(prefix).split(".")[0] for k in (*RULES, *OPEN, *CLASSES) if k.startswith(prefix)]
    names = [*dict.fromkeys([*below, *(signature(resolve_name(CLASSES[key])).parameters if key in CLASSES else ())])]
    held: Any = config
    for name in key.split(".") if key else ():
        held = held.get(name)
    for name in mapping(key, held, names).keys() - {"choices"}:
        if name not in names:
            raise unknown_key(f"{prefix}{name}", {known: held.get(known) for known in names})
    return held


def mapping(key: str, value: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """A part of the configuration, which holds keys and has no value of its own."""
    if not isinstance(value, Mapping):
        allowed = ", ".join(f"{key}.{name}" for name in names)
        raise InputError(f"{key} is {value}, but it is not a key with a value: set {allowed}.")
    return value


def objects(config: Mapping[str, Any], request: Request) -> dict[str, str | None]:
    """Build problem, network and method, which checks them, refuse what the method would not look at; their names."""
    from pinn_odelora.derivatives import ENGINES
    from pinn_odelora.naming import integrator_name, snake_case
    from pinn_odelora.runs.unused import unused

    one_of(*ENGINES).check("derivatives.engine", config["derivatives"]["engine"])
    problem, source, unknown = components.problem(config["problem"], config["pretrain"]["source"])
    measured = config["data"]["file"] or any(term.measured for term in problem.loss_terms().values())
    if unknown and not measured and not config["family"]:
        raise RefusedValueError("data.file", None, f"a file of measurements, from which problem.{unknown[0]} is found")
    net = components.network(config["net"], problem, source, config["pretrain"]["seed"])
    method = components.method(config["method"], config["integrator"])
    if not request.among_methods and (said := unused(method, request.given)):
        raise InputError(said)
    rank = config["lora"]["rank"]
    if rank != "adaptive" and (given := request.gives("lora.adaptive")):
        raise RefusedValueError("lora.rank", rank, f"adaptive where {given[0]} is given")
    family.check_family(config, request, problem, unknown, method)
    names = {"problem": snake_case(type(problem)), "net": snake_case(type(net)), "method": method.name}
    return names | {"integrator": method.integrator and integrator_name(method.integrator)}
