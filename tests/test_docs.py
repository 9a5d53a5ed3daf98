"""The site builds without a warning, and every public name is on it."""

import inspect
import pathlib
import re
import subprocess
import sys

import pytest
from test_api import NAMESPACES, own_functions

import wdjax

for needed in ("mkdocs", "material", "mkdocs_jupyter", "mkdocstrings_handlers.python"):
    pytest.importorskip(needed, reason="pip install -e '.[docs]'")

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "METHODS.md", *sorted((ROOT / "docs").glob("*.md"))]


def public():
    """The paths of all public objects, where they are shown."""
    for name in wdjax.__all__:
        value = getattr(wdjax, name)
        if inspect.ismodule(value):
            yield f"wdjax.{name}"
        elif hasattr(value, "__module__") and value.__module__ != "wdjax.optimizers":
            yield f"{value.__module__.partition('._')[0]}.{name}"  # a folder's file is private
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

    sources = [*ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb"), ROOT / "METHODS.md"]
    shown = {page.parent.relative_to(tmp_path) for page in tmp_path.rglob("index.html")}
    assert {path.relative_to(ROOT).with_suffix("") for path in sources} <= shown
    assert pathlib.Path() in shown  # the README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_of_the_repository(page):
    """So that they work on GitHub, too; mkdocs checks the anchors."""
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []
