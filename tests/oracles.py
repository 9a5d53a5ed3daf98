"""Other packages, for tests that compare with them."""

import functools
import importlib
import importlib.util
import sys
import types
import warnings

import pytest


def imported(name, source="the extra 'oracles'"):
    """Import a package that warns, or skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} comes with {source}")


def alone(name, stand_ins, reason):
    """Import a module whose package needs more than is here, or skip.

    `stand_ins` maps modules that it would import to what is taken from them; an empty one is a
    package, whose own __init__ does not run.
    """
    top = name.split(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        pytest.skip(f"{top} comes with {reason}")
    (folder,) = spec.submodule_search_locations
    modules = {key: types.ModuleType(key) for key in stand_ins}
    for key, module in modules.items():
        vars(module).update(
            stand_ins[key] or {"__path__": [folder + key[len(top) :].replace(".", "/")]}
        )
    before = set(sys.modules)
    sys.modules |= modules
    try:
        return importlib.import_module(name)
    finally:
        for key in {*modules, *(x for x in sys.modules if x.split(".")[0] == top)} - before:
            del sys.modules[key]


@functools.cache
def timm_optim():
    """timm.optim without the rest of timm, which needs torchvision."""
    imported("torch")
    group = "timm.models.group_parameters"
    taken = {"group_parameters": None, "group_with_matcher": None}
    return alone("timm.optim", {"timm": {}, "timm.models": {}, group: taken}, "`make oracles`")


@functools.cache
def composer_optim():
    """Composer's decoupled optimizers without what it needs for training."""
    imported("torch")
    stand_ins = {"composer": {}, "composer.optim": {}, "composer.utils": {"dist": None}}
    return alone("composer.optim.decoupled_weight_decay", stand_ins, "`make oracles`")
