"""Run the notebooks, each in a fresh kernel and an empty folder, and keep their outputs.

python scripts/notebooks.py                            all of them, in place
python scripts/notebooks.py notebooks/1_*.ipynb        only these
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from options import old_file

FOLDER = Path(__file__).parents[1] / "notebooks"
NEEDS = {"7_from_pytorch_to_jax": "torch"}  # what not every environment has
LONGEST = 300  # seconds for a cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def environment() -> dict[str, str]:
    """Return this process's environment, but figures appear in the notebook."""
    others = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return others | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # else a warning of the debugger


def executed(path: Path) -> Any:
    """Run a notebook from its first cell to its last and return it; the file stays as it is."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LONGEST,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=ERROR"],
        )
        client.execute(env=environment())
    notebook.metadata = nbformat.from_dict(METADATA)  # no version of an interpreter
    return notebook


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the notebooks that the command line names, and write them."""
    parser = argparse.ArgumentParser(description="Run the notebooks and keep their outputs.")
    help_ = "all, if none is given"
    parser.add_argument("paths", nargs="*", type=old_file, metavar="path", help=help_)
    for path in parser.parse_args(arguments).paths or sorted(FOLDER.glob("*.ipynb")):
        other = NEEDS.get(path.stem)
        if other and importlib.util.find_spec(other) is None:
            print(f"{path.name}: left as it is, for it needs {other}: make oracles", flush=True)
            continue
        begin = time.perf_counter()
        nbformat.write(executed(path), path)
        size = path.stat().st_size / 1024
        print(f"{path.name}: {time.perf_counter() - begin:.0f} s, {size:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
