"""The house: imports point downward, files stay small, and importing costs little."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "wdjax"

# Lowest floor first: a room, which is a file or a folder, imports only from lower floors.
FLOORS = (
    {"_trees"},
    {"stacking", "schedules", "folds", "datasets", "bounds", "plots"},
    {"rules", "linear", "sweeps"},
    {"_lift", "scaling", "like"},
    {"penalties", "gates", "anchors", "radial", "precision", "spectra"},
    {"transforms", "matrices"},
    {"optimizers", "adaptive", "audit", "convert"},
    {"metrics"},
    {"dynamics", "training", "tuning"},
)
RUNTIME = {"jax", "jaxlib", "optax", "chex", "numpy"}
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES})
FOLDERS = [room for room in ROOMS if (PACKAGE / room).is_dir()]


def named(path):
    return path.relative_to(PACKAGE).as_posix()


def every_file(test):
    return pytest.mark.parametrize("path", FILES, ids=named)(test)


def imports(path, *, top_level_only):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: use absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_table_for_contributors_is_that_of_the_floors():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| \d+ \| ([^|]*) \|", page, flags=re.MULTILINE)
    assert [{*re.findall(r"`(\w+)`", row)} for row in table] == [*FLOORS]


def test_the_address_is_that_of_the_project_everywhere():
    """So that a move is one line in pyproject.toml and one command for the rest."""
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = project["urls"]["Repository"].removeprefix("https://github.com/")
    files = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "mkdocs.yml",
        "pyproject.toml",
    ]
    for path in [*(root / file for file in files), *sorted((root / "notebooks").glob("*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"github(?:\.com)?/([\w.-]+/wdjax)\b", text)
        assert {*found} == {name}, path.name


def test_the_formatter_is_the_same_before_a_commit_and_after():
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    hooks = (root / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (version,) = re.findall(r"ruff-pre-commit\n +rev: v(.*)", hooks)
    assert f"ruff=={version}" in project["optional-dependencies"]["dev"]


def test_every_room_has_its_floor():
    assert {*ROOMS} - {"__init__"} == set.union(*FLOORS)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "__init__"])
def test_imports_point_downward(room):
    (floor,) = (i for i, rooms in enumerate(FLOORS) if room in rooms)
    below = set.union(set(), *FLOORS[:floor])
    for path in FILES:
        if named(path).removesuffix(".py").split("/")[0] == room:
            for name in imports(path, top_level_only=False):
                if name.startswith("wdjax.") and name.split(".")[1] != room:
                    assert name.split(".")[1] in below, f"{named(path)} must not import {name}"


@pytest.mark.parametrize("room", FOLDERS)
def test_no_circle_inside_a_folder(room):
    files = {path.stem: path for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"}
    waiting = {
        stem: {part for name in imports(path, top_level_only=False)
               for part in name.removeprefix(f"wdjax.{room}.").split(".")[:1]
               if name.startswith(f"wdjax.{room}.") and part in files}
        for stem, path in files.items()
    }  # fmt: skip
    while waiting:
        free = {stem for stem, needed in waiting.items() if not needed & {*waiting}}
        assert free, f"{room}: {sorted(waiting)} import one another"
        waiting = {stem: needed for stem, needed in waiting.items() if stem not in free}


@pytest.mark.parametrize("room", FOLDERS)
def test_files_of_a_public_folder_are_private(room):
    """So that no module hides a function of its name."""
    stems = {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"}
    assert room.startswith("_") or all(stem.startswith("_") for stem in stems)


@every_file
def test_only_the_runtime_dependencies_are_imported_at_module_level(path):
    for name in imports(path, top_level_only=True):
        root = name.split(".")[0]
        assert root in RUNTIME | {"wdjax"} | set(sys.stdlib_module_names), f"{path.name}: {name}"


@every_file
def test_a_file_holds_at_most_300_lines_of_code(path):
    """Docstrings, comments and blank lines are free."""
    source = path.read_text()
    docs = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.splitlines(), start=1)
    code = [n for n, text in lines if n not in docs and text.strip() and text.strip()[0] != "#"]
    assert len(code) <= 300


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
        "jax.extend",  # with it Pallas, longer to import than all of wdjax
    )
    check = f"import sys, wdjax; print([m for m in {extras} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
