"""Other packages, for tests that compare with them."""

import functools
import importlib
import importlib.util
import sys
import types
import warnings

import pytest


def imported(name):
    """Import a package that warns, or skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} comes with the extra 'oracles'")


@functools.cache
def timm_optim():
    """timm.optim without the rest of timm, which needs torchvision."""
    pytest.importorskip("torch", reason="comes with the extra 'oracles'")
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm comes with the extra 'oracles'")
    package, models, stub = (
        types.ModuleType(name) for name in ("timm", "timm.models", "timm.models.group_parameters")
    )
    package.__path__, models.__path__ = list(spec.submodule_search_locations), []
    stub.group_parameters = stub.group_with_matcher = None
    sys.modules |= {module.__name__: module for module in (package, models, stub)}
    try:
        return importlib.import_module("timm.optim")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
            del sys.modules[name]
