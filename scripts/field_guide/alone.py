"""One file of a package whose other files need more than is here."""

import importlib
import importlib.util
import sys
import types


def alone(name, stand_ins):
    """Import a module, with stand-ins for others that it or its package would import.

    `stand_ins` maps their names to what is taken from them. An empty one is a package, whose own
    __init__ does not run.
    """
    top = name.partition(".")[0]
    (folder,) = importlib.util.find_spec(top).submodule_search_locations
    for key, taken in stand_ins.items():
        sys.modules[key] = types.ModuleType(key)
        path = [folder + key.removeprefix(top).replace(".", "/")]
        vars(sys.modules[key]).update(taken or {"__path__": path})
    return importlib.import_module(name)
