"""Every page of the site, made from what exists: README, METHODS.md, notebooks, docstrings."""

import ast
import json
from collections import defaultdict
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
COPIED = ("README.md", "METHODS.md", "figures/*.png", "notebooks/*.ipynb")
OBJECT = "::: wdjax.{path}\n    options: {{heading: wdjax.{name}, heading_level: {level}}}\n"


def public() -> tuple[list[str], dict[str, list[str]]]:
    """Return what `wdjax.__all__` names: the namespaces, and module -> names of the rest."""
    tree = ast.parse((ROOT / "wdjax/__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    homes = {name.name: str(node.module) for node in imports for name in node.names}
    (every,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    others = defaultdict(list)
    for name, home in homes.items():
        if name in every:
            others[home].append(name)
    namespaces = sorted(others.pop("wdjax"))
    return namespaces, {home.removeprefix("wdjax."): names for home, names in others.items()}


def reference() -> dict[str, str]:
    """Return title -> text of the pages made from docstrings."""
    namespaces, others = public()
    package = ast.get_docstring(ast.parse((ROOT / "wdjax/__init__.py").read_text()))
    parts = ["# wdjax", str(package)]
    for home, names in others.items():
        parts.append(f"## {home.capitalize()}")
        parts += [OBJECT.format(path=f"{home}.{name}", name=name, level=3) for name in names]
    pages = {"wdjax": "\n\n".join(parts)}
    for name in namespaces:
        pages[f"wdjax.{name}"] = OBJECT.format(path=name, name=name, level=1)
    return pages


def copied() -> list[str]:
    """Return the paths of the files that are shown as they are."""
    found = [path for pattern in COPIED for path in sorted(ROOT.glob(pattern))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def title(notebook: str) -> str:
    """Return the heading of a notebook."""
    first = json.loads((ROOT / notebook).read_text())["cells"][0]["source"]
    return "".join(first).splitlines()[0].removeprefix("# ")


def on_config(config: MkDocsConfig) -> None:
    """List the pages."""
    tutorials = [path for path in copied() if path.endswith(".ipynb")]
    config.nav = [
        {"Home": "README.md"},
        {"Tutorials": [{title(path): path} for path in tutorials]},
        {"Reference": [{name: f"reference/{name}.md"} for name in reference()]},
        {"Methods": "METHODS.md"},
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages."""
    for path in copied():
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    for name, text in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


on_files.mkdocs_priority = 100  # before the plugin that turns notebooks into pages
