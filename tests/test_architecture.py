"""Imports point down the layers, heavy libraries have one home each, and the command line stays light."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import from its own layer or from one below; the first pattern that fits decides.
LAYERS = (
    ("pinn_odelora/errors", 0),
    ("pinn_odelora/points", 0),
    ("pinn_odelora/metrics", 0),
    ("pinn_odelora/__init__", 0),
    ("pinn_odelora/commandline", 0),
    ("pinn_odelora/geometry", 1),
    ("pinn_odelora/derivatives", 1),
    ("pinn_odelora/reference", 1),
    ("pinn_odelora/formulation", 1),
    ("pinn_odelora/equation", 1),
    ("pinn_odelora/registry", 1),
    ("pinn_odelora/matri", 1),
    ("pinn_odelora/nets", 1),
    ("pinn_odelora/lowrank", 1),
    ("pinn_odelora/checkpoints", 1),
    ("pinn_odelora/measurements", 1),
    ("problems/", 1),
    ("pinn_odelora/system", 2),
    ("pinn_odelora/compiled", 1),
    ("pinn_odelora/gradient", 3),
    ("pinn_odelora/linearisation", 3),
    ("pinn_odelora/flows", 3),
    ("pinn_odelora/integrators", 3),
    ("pinn_odelora/optim", 3),
    ("pinn_odelora/training", 4),
    ("pinn_odelora/report", 4),
    ("pinn_odelora/__main__", 5),
    ("train", 5),
)
HOMES = {
    "deepxde": {"pinn_odelora/geometry/deepxde.py"},
    "lightning": {"pinn_odelora/training"},
    "wandb": {"pinn_odelora/lightning/tracking.py"},
    "hydra": {
        "train.py",
        "pinn_odelora/commandline",
        "pinn_odelora/config/build.py",
        "pinn_odelora/runs/load.py",
    },
}
FILES = sorted(p.relative_to(ROOT).as_posix() for d in ("pinn_odelora", "problems") for p in (ROOT / d).rglob("*.py"))
FILES.append("train.py")


def layer(path):
    return next((n for pattern, n in LAYERS if path.startswith(pattern)), None)


def imports(path):
    """Dotted names of the modules that a file imports at any depth, and whether each import is lazy."""
    tree = ast.parse((ROOT / path).read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, id(node) not in top
            yield from ((f"{node.module}.{alias.name}", id(node) not in top) for alias in node.names)


def file_of(module):
    for candidate in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


@pytest.mark.parametrize("path", FILES)
def test_every_file_has_a_layer_and_imports_downwards(path):
    here = layer(path)
    assert here is not None, f"{path} has no layer; add it to LAYERS"
    for module, lazy in imports(path):
        target = file_of(module)
        # The package's own face hands `load` on without importing it.
        if target and not (lazy and path == "pinn_odelora/__init__.py"):
            assert layer(target) <= here, f"{path} (layer {here}) imports {target} (layer {layer(target)})"


@pytest.mark.parametrize("path", FILES)
def test_heavy_libraries_are_imported_in_their_home_only(path):
    for module, _ in imports(path):
        homes = HOMES.get(module.partition(".")[0])
        assert homes is None or any(path.startswith(home) for home in homes), f"{path} imports {module}"


def test_integrators_and_flows_know_neither_nets_nor_problems():
    for path in FILES:
        if path.startswith(("pinn_odelora/flows", "pinn_odelora/integrators")):
            for module, _ in imports(path):
                assert not module.startswith(("problems", "pinn_odelora.formulation", "pinn_odelora.nets")), path


def test_the_library_sets_no_global_state():
    """The bridge to deepxde may touch defaults: it puts back what deepxde changes, as test_geometry shows."""
    for path in FILES:
        text = "" if path == "pinn_odelora/geometry/deepxde.py" else (ROOT / path).read_text()
        for call in ("set_default_dtype", "set_default_device", "np.random.seed", "torch.manual_seed("):
            assert call not in text, f"{path} calls {call}"
