"""The files in scripts/ as modules: they are no package."""

import importlib.util
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parents[1] / "scripts"


def load(name):
    """Import scripts/NAME.py, which finds its neighbours as it does when it is run."""
    file = FOLDER / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{file.stem}_script", file)
    module = importlib.util.module_from_spec(spec)
    neighbours = [str(file.parent), str(FOLDER)]
    sys.path[:0] = neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        for folder in neighbours:
            sys.path.remove(folder)
    return module
