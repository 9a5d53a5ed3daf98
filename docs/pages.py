"""The pages of the site: README, guide, notebooks and METHODS.md as they are; the reference.

Files keep the places that they have in the repository, so one link works on GitHub and here.
"""

import ast
import json
import posixpath
import re
from collections import defaultdict
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
GUIDE = (
    *("which", "how_strongly", "where", "before_and_after", "choosing", "law", "clusters"),
    *(
        "from_other_frameworks",
        "field_guide",
        "surprises",
        "devices",
        "low_precision",
        "checkpoints",
        "small_leaves",
    ),
    *("speed", "pitfalls"),
)
COPIED = ("README.md", "METHODS.md", "docs/*.md", "figures/*.png", "notebooks/*.ipynb")
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


def title(path: str) -> str:
    """Return the first heading of a page or notebook."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        text = "".join(json.loads(text)["cells"][0]["source"])
    return text.splitlines()[0].removeprefix("# ")


def on_config(config: MkDocsConfig) -> None:
    """List the pages."""
    guide = [f"docs/{name}.md" for name in GUIDE]
    tutorials = [path for path in copied() if path.endswith(".ipynb")]
    config.nav = [
        {"Home": "README.md"},
        {"Guide": [{title(path): path} for path in guide]},
        {"Tutorials": [{title(path): path} for path in tutorials]},
        {"Reference": [{name: f"reference/{name}.md"} for name in reference()]},
        {"Methods": "METHODS.md"},
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path in copied():
        file = File(path, str(ROOT), config.site_dir, config.use_directory_urls)
        file.inclusion = InclusionLevel.INCLUDED  # those of docs/ are left out where mkdocs looks
        files.append(file)
    for name, text in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Read a page as GitHub does: links to other files, and | in the code of tables."""
    here = posixpath.dirname(page.file.src_uri)
    if not page.parent:  # without neighbors there is nothing to list beside it
        page.meta["hide"] = ["navigation"]

    def target(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, link[1]))
        is_elsewhere = files.get_file_from_path(path) is None and (ROOT / path).is_file()
        return f"]({config.repo_url}/blob/main/{path})" if is_elsewhere else link[0]

    return re.sub(r"\]\(([\w./-]+)\)", target, markdown).replace("\\|", "|")


on_files.mkdocs_priority = 100  # before the plugin that turns notebooks into pages
