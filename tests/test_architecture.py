"""The house: imports point downward, files stay small, and importing costs little."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "wdjax"

# Lowest first: a module imports only from modules to its left.
# fmt: off
LAYERS = (
    "paths", "stacking", "kinds", "rules", "frames", "chains", "order", "leafwise",
    "schedules", "scaling", "groups", "penalties", "matrices", "gates", "anchors",
    "preconditioners", "transforms",
    "stateful", "bounds", "adaptive", "spectra", "groupwise", "radial", "precision",
    "optimizers", "metrics", "audit", "relaxation", "dynamics", "sentences", "explaining",
    "foreign", "conversions", "convert_torch", "convert_muon", "convert_keras", "convert",
    "devices", "given", "states", "training", "batches", "fitting", "folds",
    "regression", "ridge", "singular", "lasso", "linear", "grids", "jobs", "runs", "results",
    "chunks", "usage", "selection", "sweeps", "tuning", "datasets", "canvas", "plots",
)
# fmt: on
RUNTIME = {"jax", "jaxlib", "optax", "chex", "numpy"}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(path, *, top_level_only):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: use absolute imports"
            if node.module == "wdjax":
                yield from (f"wdjax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_the_readme_lists_the_modules_in_this_order():
    text = (PACKAGE.parent / "README.md").read_text()
    listed = text.split("imports only from modules above it:")[1].split("\n\n")[1].split()
    assert tuple(listed) == LAYERS


def test_every_module_has_its_place_in_the_layers():
    assert set(MODULES) <= set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    floor = LAYERS.index(module)
    for name in imports(PACKAGE / f"{module}.py", top_level_only=False):
        if name.startswith("wdjax."):
            other = name.split(".")[1]
            assert LAYERS.index(other) < floor, f"{module} must not import {other}"


@pytest.mark.parametrize("module", [*MODULES, "__init__"])
def test_only_the_runtime_dependencies_are_imported_at_module_level(module):
    for name in imports(PACKAGE / f"{module}.py", top_level_only=True):
        root = name.split(".")[0]
        assert root in RUNTIME | {"wdjax"} | set(sys.stdlib_module_names), f"{module}: {name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_holds_at_most_250_lines_of_code(module):
    """Docstrings, comments and blank lines are free."""
    source = (PACKAGE / f"{module}.py").read_text()
    docs = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.splitlines(), start=1)
    code = [n for n, text in lines if n not in docs and text.strip() and text.strip()[0] != "#"]
    assert len(code) <= 250


def test_importing_the_package_imports_no_extra():
    extras = (
        "flax",
        "haiku",
        "equinox",
        "sklearn",
        "matplotlib",
        "orbax",
        "torch",
        "keras",
        "tqdm",
    )
    check = f"import sys, wdjax; print([m for m in {extras} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
