"""The site builds without a warning, and every public name is on it."""

import inspect
import pathlib
import subprocess
import sys

import pytest
from test_api import NAMESPACES, own_functions

import wdjax

for needed in ("mkdocs", "material", "mkdocs_jupyter", "mkdocstrings_handlers.python"):
    pytest.importorskip(needed, reason="pip install -e '.[docs]'")

ROOT = pathlib.Path(__file__).parents[1]


def public():
    """The paths of all public objects, where they are shown."""
    for name in wdjax.__all__:
        value = getattr(wdjax, name)
        if inspect.ismodule(value):
            yield f"wdjax.{name}"
        elif hasattr(value, "__module__") and value.__module__ != "wdjax.optimizers":
            yield f"{value.__module__}.{name}"
        else:
            yield f"wdjax.optimizers.{name}"
    for module in NAMESPACES:
        yield from (f"{module.__name__}.{name}" for name in own_functions(module))


@pytest.mark.slow  # half a minute: reads every docstring and notebook
def test_the_site_builds_and_has_every_public_name(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = [page.read_text() for page in tmp_path.glob("reference/*/index.html")]
    missing = [path for path in public() if not any(f'id="{path}"' in page for page in pages)]
    assert not missing

    tutorials = {path.stem for path in ROOT.glob("notebooks/*.ipynb")}
    assert {path.parent.name for path in tmp_path.glob("notebooks/*/index.html")} == tutorials
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "METHODS" / "index.html").exists()
