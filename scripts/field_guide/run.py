"""Run the packages of rows.py and write what was seen to measured.json.

    python scripts/field_guide/run.py              all of them: needs a network and an hour
    python scripts/field_guide/run.py timm keras   these again
    python scripts/field_guide/page.py --write     then the page

Each package is installed in a temporary environment, at the versions that rows.py names, or cloned
at a commit. Packages that need the same share one; `--keep FOLDER` keeps the environments there for
the next time.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import venv

from rows import PACKAGES, Package

HERE = pathlib.Path(__file__).parent
MEASURED = HERE / "measured.json"


def environment(folder: pathlib.Path, package: Package) -> pathlib.Path:
    """Return the interpreter of an environment that has the package."""
    place = folder / (package.home or package.family)
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *package.requires], check=True)
    if package.bare:
        alone = ["--no-deps", "--ignore-requires-python"]
        subprocess.run([*install, *alone, *package.bare], check=True)
    return python


def cloned(folder: pathlib.Path, package: Package) -> list[pathlib.Path]:
    """Return where the code of a package lies that is run from its repository."""
    if not package.clone:
        return []
    repository, _, commit = package.clone.partition("==")
    place = folder / "clones" / repository
    if not place.exists():
        url = f"https://github.com/{repository}"
        subprocess.run(["git", "clone", "-q", "--no-checkout", url, place], check=True)
    checkout = ["git", "-C", place, "checkout", "-q", commit, "--", *package.files]
    subprocess.run(checkout, check=True)
    return [place, place / "src"]


def measure(python: pathlib.Path, name: str, clones: list[pathlib.Path]) -> dict:
    """Return what measure.py prints in that environment."""
    run = subprocess.run(
        [python, HERE / "measure.py", name],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, clones))},
    )
    return json.loads(run.stdout.splitlines()[-1])


def written(table: dict) -> str:
    """Return the table as JSON in which a list of numbers is one line."""
    text = json.dumps(table, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}]*\]|\[(?:[^\[\]{}]|\[[^\[\]{}]*\])*\]",
                  lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"  # fmt: skip


def main() -> None:
    """Measure the packages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("packages", nargs="*", help=", ".join(PACKAGES))
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the environments")
    options = parser.parse_args()
    unknown = set(options.packages) - set(PACKAGES)
    if unknown:
        sys.exit(f"rows.py has no package {sorted(unknown)}; it has {list(PACKAGES)}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or pathlib.Path(temporary)
        for name in options.packages or PACKAGES:
            try:
                python = environment(folder, PACKAGES[name])
                seen = measure(python, name, cloned(folder, PACKAGES[name]))
            except subprocess.CalledProcessError as error:
                print(f"{name}: left as it was, {error}", file=sys.stderr)
                continue
            table = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
            table[name] = {"day": datetime.date.today().isoformat(), **seen}
            ordered = {name: table[name] for name in PACKAGES if name in table}
            MEASURED.write_text(written(ordered), encoding="utf-8")
            print(f"{name} {seen['version']}: {len(seen['rows'])} of {len(PACKAGES[name].rows)}")


if __name__ == "__main__":
    main()
