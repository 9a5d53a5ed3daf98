"""The files in scripts/ as modules: they are no package."""

import importlib.util
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parents[1] / "scripts"


def load(name):
    """Import scripts/NAME.py, which finds its neighbors as it does when it is run."""
    file = FOLDER / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{file.stem}_script", file)
    module = importlib.util.module_from_spec(spec)
    neighbors = [str(file.parent), str(FOLDER)]
    sys.path[:0] = neighbors
    try:
        spec.loader.exec_module(module)
    finally:
        for folder in neighbors:
            sys.path.remove(folder)
    return module
