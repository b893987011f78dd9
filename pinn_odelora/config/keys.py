"""The keys of a run: what each means and what it may be. ``--help``, refusals and checks all read this one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pinn_odelora.errors import InputError, unknown
from pinn_odelora.rules import (
    Rule,
    boolean,
    file,
    fractions,
    list_of,
    null,
    number,
    one_of,
    part,
    path,
    text,
    whole,
)


class Key(NamedTuple):
    meaning: str
    rule: Rule


AUTO = "auto"
"""The rank where none is chosen, see ``training.rows``."""
ADAPTIVE = "adaptive"
"""The rank of factors that grow and shrink."""
SEED = whole(0, 2**32 - 1)

KEYS: Mapping[str, Key] = {
    "seed": Key("of the starting factors and the points", SEED),
    "precision": Key("32 or 64 bits for network, points and factors", one_of(32, 64)),
    "threads": Key("processor threads; auto is one for a small network", one_of("auto") | whole(1, 1024)),
    "output_dir": Key("folder of the run; null picks a new one in runs/", path | null),
    "resume": Key("folder of an interrupted run to continue", path | null),
    "budget.gradient_evals": Key(
        "end after so many gradient evaluations, those of every stage counted", whole(1) | null
    ),
    "budget.seconds": Key("end after so many seconds of training", number(above=0) | null),
    "budget.steps": Key("end after so many steps", whole(1) | null),
    "lora.rank": Key(
        "rank r of the factors; auto: 8 where steps can rest at few rows then, else 4; adaptive: it follows the "
        "gradient",
        whole(1) | one_of(AUTO, ADAPTIVE),
    ),
    "lora.adaptive.start": Key("adaptive rank: r at the start", whole(1)),
    "lora.adaptive.max": Key("the largest r", whole(1)),
    "lora.adaptive.outside": Key("grows while more of the gradient is outside of the tangent space", part),
    "lora.adaptive.rows": Key(
        "rows that an implicit step is to have for each dimension, unless far fewer do", number(above=0)
    ),
    "lora.adaptive.directions": Key("new ones come from weight or gradient", one_of("weight", "gradient")),
    "lora.adaptive.size": Key("of one from the gradient: the part of the smallest singular value", number(above=0)),
    "lora.adaptive.tolerance": Key("singular values of at most this part of all are truncated", part),
    "lora.scale": Key("s in W = W0 + s(BA - B0A0)", number(above=0)),
    "lora.targets": Key(
        "adapted layers, as patterns; null is the hidden ones", text | list_of(text, "patterns") | null
    ),
    "lora.also": Key(
        "what is trained beside the factors: a list of biases, last (the last layer, where it is not adapted)",
        list_of(one_of("biases", "last"), "words"),
    ),
    "lora.start": Key("starting factors: zero, orthonormal or pissa", one_of("zero", "orthonormal", "pissa")),
    "lora.start_size": Key("size of orthonormal starting factors", number(above=0)),
    "data.file": Key("measurements, .csv or .npz with named columns", file | null),
    "data.weight": Key("weight of the measurements in the loss", number(above=0)),
    "pretrain.checkpoint": Key("your own pretrained network; null trains one at the source parameter", file | null),
    "pretrain.seed": Key("of its initial weights and points", SEED),
    "pretrain.adam_steps": Key("steps of Adam", whole(0)),
    "pretrain.adam_lr": Key("its learning rate", number(above=0)),
    "pretrain.finish": Key(
        "what follows Adam: implicit (natural gradient), lbfgs, or auto: the first where the network suits it",
        one_of("auto", "implicit", "lbfgs"),
    ),
    "pretrain.implicit_steps": Key("steps of natural gradient at most", whole(0)),
    "pretrain.lbfgs_evals": Key("gradient evaluations of L-BFGS at most", whole(0)),
    "pretrain.target": Key("relative L2 error that ends pretraining", number(above=0)),
    "pretrain.interior": Key("points inside the domain, and the most rows of natural gradient", whole(1)),
    "pretrain.boundary": Key("points on each part of the boundary", whole(1)),
    "pretrain.cache": Key("folder of networks kept for later runs; null is the user's cache", path | null),
    "derivatives.engine": Key(
        "jets, autograd, or auto: jets where they can and cost no more", one_of("auto", "jets", "autograd")
    ),
    "derivatives.compile": Key("compile loss and gradient at the first step: on or off", one_of("off", "on")),
    "points.fresh": Key("new points at every step", boolean),
    "points.residual": Key("the part of fresh interior points that follows the residual, from 0 to 1", part),
    "points.rows": Key("rows of all drawn points together at most, thinned to it; null is no bound", whole(1) | null),
    "points.first": Key(
        "rows of the first step, doubled where a step fits its own points only; null is all rows", whole(1) | null
    ),
    "points.validation": Key(
        "end with the best point by points that no step has, where a scheme chooses its steps by their own", boolean
    ),
    "points.interior": Key("points inside the domain", whole(1)),
    "points.boundary": Key("points on each part of the boundary", whole(1)),
    "log.every": Key("steps between two rows of measurements", whole(1)),
    "log.heldout": Key("held-out points of the loss", whole(1)),
    "log.test": Key("points of the error against the reference", whole(1)),
    "checkpoint.every": Key("steps between two saved states", whole(1)),
    "logger.kind": Key("wandb, or csv without W&B", one_of("wandb", "csv")),
    "logger.project": Key("W&B project", text),
    "logger.group": Key("W&B group; null is problem/method/rank", text | null),
    "logger.name": Key("W&B name of the run; null is made from group and seed", text | null),
    "logger.job_type": Key("W&B job type", text),
    "logger.tags": Key("W&B tags", list_of(text, "tags")),
}

GROUPS = ("problem", "net", "derivatives", "method", "integrator", "points", "logger", "experiment")

PROVIDED: Mapping[str, tuple[str, ...]] = {
    "problem": (),
    "net": ("inputs", "outputs", "generator", "source"),
    "method": ("integrator",),
    "integrator": (),
}
"""The groups whose keys are the parameters of a ``_target_``, and those parameters that the program gives itself."""

OPEN: Mapping[str, str] = {
    "problem.weights": "loss weights by term: problem.weights.<term>=10",
    "pretrain.source": "problem parameters that the pretrained network solved: pretrain.source.<parameter>=1",
    "trainer": "anything that Lightning's Trainer takes: trainer.accelerator=cpu",
}

COMPONENT_RULES: Mapping[str, Rule] = {
    "net.width": whole(1),
    "net.depth": whole(1),
    "method.lr": number(above=0),
    "method.history": whole(1),
    "method.ratio": number(above=0),
    "method.betas": fractions(2),
    "integrator.h": number(above=0) | null,
    "integrator.rtol": number(above=0),
    "integrator.atol": number(above=0),
}
"""Bounds of parameters that a signature cannot tell, for every member of a group that has them."""

DECIDED: Mapping[str, str] = {
    "logger": "set logger=wandb or logger=csv",
    "callbacks": "it brings its own",
    "precision": "set precision=32 or precision=64",
    "max_epochs": "set budget.steps",
    "max_steps": "set budget.steps",
    "max_time": "set budget.seconds",
    "limit_train_batches": "set budget.steps",
    "overfit_batches": "set points=fixed",
    "accumulate_grad_batches": "set points.interior",
    "gradient_clip_val": "a method steps by its own rule",
    "gradient_clip_algorithm": "a method steps by its own rule",
    "num_nodes": "it stays on one device",
}
"""Settings of Lightning's Trainer that would do nothing in a run, or spoil it, and what to do instead."""


def help_lines() -> str:
    """One line for each key."""
    lines = {key: known.meaning for key, known in KEYS.items()} | OPEN
    return "\n".join(f"  {key:<22} {meaning}" for key, meaning in lines.items())


def inside(prefix: str) -> list[str]:
    """The keys directly inside a prefix, in full; at the top, the first parts of all keys and the groups."""
    if prefix:
        return [key for key in (*KEYS, *OPEN) if key.startswith(f"{prefix}.")]
    return [*dict.fromkeys([*GROUPS, *(key.split(".")[0] for key in (*KEYS, *OPEN))])]


def unknown_key(key: str) -> InputError:
    """The sentence for a key that no run has, with the one that may have been meant."""
    prefix = key
    while prefix and not inside(prefix):
        prefix = prefix.rpartition(".")[0]
    namesakes = [full for full in KEYS if full.rpartition(".")[2] == key]
    advice = f"; perhaps {' or '.join(namesakes)} was meant" if namesakes else ""
    return unknown_member(prefix, key.removeprefix(f"{prefix}."), inside(prefix), advice)


def unknown_member(prefix: str, name: str, allowed: Iterable[str], advice: str = "") -> InputError:
    """The sentence for a name that a part of the configuration does not have; ``allowed`` may be given in full."""
    return unknown(
        f"key of {prefix}:" if prefix else "key", name, [k.removeprefix(f"{prefix}.") for k in allowed], advice
    )
