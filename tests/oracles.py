"""Other packages, for tests that compare with them."""

import functools
import importlib.util
import sys
import warnings

import pytest
from script_files import load


def imported(name, source="the extra 'oracles'"):
    """Import a package that warns, or skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} comes with {source}")


def alone(name, stand_ins, reason):
    """Import a module as the field guide does and leave no stand-ins behind, or skip."""
    top = name.split(".")[0]
    if importlib.util.find_spec(top) is None:
        pytest.skip(f"{top} comes with {reason}")
    before = set(sys.modules)
    try:
        return load("field_guide/alone").alone(name, stand_ins)
    finally:
        for key in {*stand_ins, *(x for x in sys.modules if x.split(".")[0] == top)} - before:
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
