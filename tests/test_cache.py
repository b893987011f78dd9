"""A pretrained network is taken from the cache where everything that made it is the same, and never elsewhere."""

import dataclasses
import importlib
import math
import os
import pickle
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pinn_odelora
from pinn_odelora import manifest
from pinn_odelora.checkpoints import save_network
from pinn_odelora.errors import InputError, UnwritableError
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.nets import MLP
from pinn_odelora.pretraining import cache
from pinn_odelora.pretraining.pretrain import Pretraining, pretrained
from pinn_odelora.system import Solution, System
from problems.burgers import Burgers
from problems.poisson import Poisson

PACKAGE = Path(pinn_odelora.__file__).parent


def net(seed=0, width=6, **more):
    return MLP(2, 1, width=width, depth=2, generator=torch.Generator().manual_seed(seed), **more).double()


def key(problem=None, network=None, settings=None):
    return cache.key(problem or Burgers(), network or net(), settings or Pretraining())


# The same gives the same key.


def test_everything_built_again_has_the_same_key_in_another_process_too():
    code = (
        "from test_cache import key, net\n"
        "from problems.burgers import Burgers\n"
        "print(key(Burgers(nu=0.3, weights={'pde': 2.0}), net(seed=3)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(PACKAGE.parent)])}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = key(Burgers(nu=0.3, weights={"pde": 2.0}), net(seed=3))
    assert there.stdout.strip() == here
    assert len(here) == 16


def test_the_order_of_weights_by_name_does_not_matter():
    assert key(Burgers(weights={"pde": 2.0, "data": 3.0})) == key(Burgers(weights={"data": 3.0, "pde": 2.0}))


# Any other problem, network or setting has another one.


def frozen(network, part):
    for p in getattr(network, part).parameters():
        p.requires_grad_(False)
    return network


def tied(equal_only):
    """Two layers of one weight, or of two that are equal, which training would part."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(torch.linspace(0.1, 0.7, p.numel()).reshape(p.shape))
    if not equal_only:
        layers[2].weight = layers[0].weight
    return layers


class Scaled(nn.Module):
    """A network with values that neither its ``repr`` nor its ``state_dict`` shows."""

    def __init__(self, omega=1.0, window=1.0, active=True, activation=torch.sin):
        super().__init__()
        self.last = nn.Linear(2, 1, dtype=torch.float64)
        nn.init.constant_(self.last.weight, 0.5)
        nn.init.constant_(self.last.bias, 0.25)
        self._omega, self.activation = omega, activation
        self.register_buffer("window", torch.tensor(window), persistent=False)
        self.train(active)

    def forward(self, x):
        return self.activation(self._omega * self.window * self.last(x))


def cube(x):
    return x**3


def perturbed():
    network = net()
    with torch.no_grad():
        network.linears[1].weight[2, 3] += 1e-15
    return network


DIFFERENT = {
    "default": {},
    "problem": {"problem": Poisson()},
    "parameter": {"problem": Burgers(nu=math.nextafter(Burgers().nu, 1))},
    "conditions": {"problem": Burgers(conditions="soft")},
    "weights": {"problem": Burgers(weights={"pde": 2.0})},
    "initial weights": {"network": net(seed=1)},
    "a last digit of the initial weights": {"network": perturbed()},
    "width": {"network": net(width=7)},
    "activation": {"network": net(activation="sin")},
    "precision": {"network": net().float()},
    "frozen layer": {"network": frozen(net(), "linears")},
    "tied": {"network": tied(equal_only=False)},
    "equal": {"network": tied(equal_only=True)},
    "hidden": {"network": Scaled()},
    "hidden number": {"network": Scaled(omega=30.0)},
    "hidden buffer": {"network": Scaled(window=2.0)},
    "hidden flag": {"network": Scaled(active=False)},
    "builtin function": {"network": Scaled(activation=torch.tanh)},
    "own function": {"network": Scaled(activation=cube)},
    "seed": {"settings": Pretraining(seed=1)},
    "steps": {"settings": Pretraining(adam_steps=99)},
    "rate": {"settings": Pretraining(adam_lr=math.nextafter(5e-3, 1))},
}


def test_any_difference_gives_another_key():
    keys = {name: key(**parts) for name, parts in DIFFERENT.items()}
    assert all(keys.values())
    alike = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert not alike


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (1, True),
        ("1", 1),
        (0.1, np.float32(0.1)),
        (0.0, -0.0),
        ([1, 2], (1, 2)),
        ([[1], 2], [1, [2]]),
        ({"a": 1}, {"b": 1}),
        ({"a": {"b": 1}}, {"a": {}, "b": 1}),
        (np.zeros(3000), np.eye(1, 3000, 1500)[0]),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(3000), torch.eye(1, 3000)[0]),
        (torch.zeros(2), np.zeros(2, dtype=np.float32)),
        (math.sin, math.cos),
        (torch.nn.functional.gelu, torch.nn.functional.silu),
    ],
)
def test_values_that_differ_have_different_exact_forms(a, b):
    assert cache._exact(a) != cache._exact(b)
    assert cache._exact(a) == cache._exact(a)


# So has any other code.


def test_any_edit_of_the_package_gives_another_key(tmp_path, monkeypatch):
    copied = tmp_path / "pinn_odelora"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pinn_odelora, "__file__", str(copied / "__init__.py"))
    first = cache.package()
    (copied / "notes.txt").write_text("no code")
    assert cache.package() == first
    files = sorted(copied.rglob("*.py"))
    assert len(files) > 80
    for file in files:
        text = file.read_bytes()
        file.write_bytes(text + b"\n")
        assert cache.package() != first, file
        file.write_bytes(text)
    assert cache.package() == first
    (copied / "metrics.py").rename(copied / "metric.py")
    assert cache.package() != first


def test_the_package_is_part_of_the_key(monkeypatch):
    before = key()
    monkeypatch.setattr(cache, "package", list)
    assert key() != before


def test_versions_are_part_of_the_key(monkeypatch):
    before = key()
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert key() != before


SOURCE = """
import dataclasses
import torch
from own_constants import SLOPE
from pinn_odelora.geometry import Box
from pinn_odelora.formulation import Problem, Term

@dataclasses.dataclass(frozen=True, kw_only=True)
class Base(Problem):
    coords = ("x",)
    region = Box(x=(0, 1))
    supports = ("soft",)
    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_x - SLOPE)}

class Net(torch.nn.Linear):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's module, with base classes in another one and their constant in a third; all can be edited."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_constants.py").write_text("SLOPE = 1.0\n")
    (tmp_path / "own_base.py").write_text(SOURCE)
    (tmp_path / "own_problem.py").write_text(
        "import own_base\nclass Mine(own_base.Base):\n    pass\nclass Net(own_base.Net):\n    pass\n"
    )
    yield importlib.import_module("own_problem"), tmp_path
    for name in ("own_problem", "own_base", "own_constants"):
        del sys.modules[name]


@pytest.mark.parametrize("file", ["own_problem.py", "own_base.py", "own_constants.py"])
def test_an_edit_of_the_users_files_gives_another_key(own, file):
    module, folder = own
    linear = module.Net(1, 1, dtype=torch.float64)
    problem = lambda: (cache.key(module.Mine(), net(), Pretraining()), cache.key(Burgers(), linear, Pretraining()))
    before = problem()
    assert None not in before
    (folder / file).write_text((folder / file).read_text().replace("pass", "pass  # edited").replace("1.0", "2.0"))
    assert not set(problem()) & set(before)


# What cannot be told from something else has no key, and is not kept.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line(Problem):
    """u' = slope on [0, 1]."""

    coords = ("x",)
    region = Box(x=(0, 1))
    supports = ("soft",)
    slope: float = parameter(1.0, 2.0)
    table: object = None

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_x - self.slope)}

    def reference(self, p):
        return self.slope * p.x


class FromFunctions(Line):
    has_source = False


def typed_in():
    """A class as a notebook has it: of the module __main__, without a file."""
    made = type("Typed", (Line,), {"__module__": "__main__"})
    sys.modules["__main__"].Typed = made
    return made()


class Shadowed(Line):
    pass


First = Shadowed


class Shadowed(Line):
    """Another class of the same name: that of the first one is no longer in the file's namespace."""


def local(slope):
    class Local(Line):
        def terms(self):
            return {"pde": Term(self.region, lambda f: f.u_x - slope)}

    return Local()


def hooked():
    network = net()
    network.linears[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return network


def parametrised():
    return torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))


@pytest.mark.parametrize(
    "parts",
    [
        {"problem": FromFunctions()},
        {"problem": local(3.0)},
        {"problem": First()},
        {"problem": Line(table=lambda x: x)},
        {"problem": Line(table=torch.ones(2).sin)},
        {"problem": Line(table=object())},
        {"problem": Line(table={"a": [local(1.0)]})},
        {"problem": Line(table=np.array([object()]))},
        {"problem": Line(table=torch.eye(2).to_sparse())},
        {"network": Scaled(activation=lambda x: x)},
        {"network": hooked()},
        {"network": parametrised()},
    ],
)
def test_what_has_no_exact_form_has_no_key(parts):
    assert key(**parts) is None


def test_a_class_that_was_typed_in_has_no_key(monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    assert key(problem=typed_in()) is None
    del sys.modules["__main__"].Typed


@dataclasses.dataclass(frozen=True)
class Drawn:
    """In the place of training: sets the weights, and counts how often."""

    seed: int = 0
    made = []  # noqa: RUF012

    def run(self, system, say, wall):
        self.made.append(1)
        with torch.no_grad():
            for p in system.solution.net.parameters():
                p.fill_(0.125 * system.problem.slope)


@pytest.mark.parametrize(("cls", "kept"), [(Line, True), (FromFunctions, False)])
def test_a_network_is_trained_once_for_each_key_and_always_without_one(cls, kept, tmp_path):
    Drawn.made.clear()
    for slope, expected in ((1.0, 1), (1.0, 1 if kept else 2), (3.0, 2 if kept else 3)):
        network = MLP(1, 1, width=3, depth=1).double()
        problem = cls(slope=slope)
        system = System(problem, Solution(problem, network))
        known = pretrained(system, Drawn(), kept=tmp_path / "kept", say=lambda line: None)
        assert all(bool((p == 0.125 * slope).all()) for p in network.parameters())
        assert len(Drawn.made) == expected
    assert known.origin == "trained"
    assert len([*tmp_path.rglob("*.safetensors")]) == (2 if kept else 0)
    assert (tmp_path / "kept").exists() == kept


class Touch:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch called",)


DAMAGE = {
    "a bit": lambda weights, facts: weights.write_bytes(flipped(weights.read_bytes())),
    "cut": lambda weights, facts: weights.write_bytes(weights.read_bytes()[:-5]),
    "empty": lambda weights, facts: weights.write_bytes(b""),
    "a pickle": lambda weights, facts: weights.write_bytes(pickle.dumps(Touch())),
    "another network": lambda weights, facts: save_network(MLP(1, 1, width=4, depth=1).double(), weights),
    "facts cut": lambda weights, facts: facts.write_bytes(facts.read_bytes()[:-9]),
    "facts of a bit": lambda weights, facts: facts.write_bytes(flipped(facts.read_bytes())),
    "facts that are no text": lambda weights, facts: facts.write_bytes(b"\xff\xfe{"),
    "facts of before": lambda weights, facts: facts.write_text('{"seconds": 1.0}'),
    "facts of nothing": lambda weights, facts: manifest.write(facts, [], {"seconds": 1.0}),
    "no seconds": lambda weights, facts: manifest.write(facts, [weights.name], {"seconds": "a while"}),
    "a list": lambda weights, facts: facts.write_text("[" * 9999),
}


def flipped(content):
    return content[:-12] + bytes([content[-12] ^ 1]) + content[-11:]


def trained(folder, said):
    network, problem = MLP(1, 1, width=3, depth=1).double(), Line(slope=1.0)
    known = pretrained(System(problem, Solution(problem, network)), Drawn(), kept=folder, say=said.append)
    assert all(bool((p == 0.125).all()) for p in network.parameters())
    return known.origin


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_network_is_trained_again_and_one_line_says_so(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    assert trained(tmp_path / "kept", said) == "trained"
    assert trained(tmp_path / "kept", said) == "cache"
    assert not any("damaged" in line for line in said)
    (weights,) = (tmp_path / "kept").glob("*.safetensors")
    damage(weights, weights.with_suffix(".json"))
    assert trained(tmp_path / "kept", said) == "trained"
    (line,) = [line for line in said if "damaged" in line.partition(":")[0]]
    assert line.startswith("A pretrained network in the cache is damaged, and is trained again: ")
    assert trained(tmp_path / "kept", said) == "cache"
    assert not (tmp_path / "called").exists()


def test_a_damaged_network_in_a_folder_that_cannot_be_written_is_trained_and_not_kept(tmp_path, monkeypatch):
    said = []
    trained(tmp_path / "kept", said)
    (weights,) = (tmp_path / "kept").glob("*.safetensors")
    weights.write_bytes(b"")

    def refused(*_):
        raise UnwritableError("Cannot write it: Read-only file system.")

    monkeypatch.setattr("pinn_odelora.pretraining.pretrain.save_network", refused)
    assert trained(tmp_path / "kept", said) == "trained"
    assert "Cannot write it: Read-only file system; the network is not kept for the next run." in said


# Where it is.


def test_the_folder_is_the_users_cache_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("PINN_ODELORA_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "pinn_odelora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "pinn_odelora"
    monkeypatch.setenv("PINN_ODELORA_CACHE", str(tmp_path / "named"))
    assert cache.folder() == tmp_path / "named"


def test_a_user_without_a_home_has_no_networks_kept(tmp_path, monkeypatch):
    def nobody(_):
        raise KeyError("uid not found")

    for name in ("PINN_ODELORA_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    cache.check_writable(None, key())
    assert cache.place(None, key()) is None
    assert cache.place(tmp_path, key()) == tmp_path
    said = []
    problem = Poisson()
    system = System(problem, Solution(problem, MLP(2, 1, width=4)))
    pretrained(system, Pretraining(adam_steps=1, natural_gradient_steps=0), say=said.append)
    assert re.search("is not kept .*there is no home folder .*PINN_ODELORA_CACHE", said[0])
    # Versions of platformdirs differ in what they do then.
    monkeypatch.setattr(cache.platformdirs, "user_cache_path", lambda *_, **__: Path("~/.cache/pinn_odelora"))
    with pytest.raises(InputError, match="no home folder"):
        cache.folder()
