import gc
import importlib.metadata
import json
import os
import pathlib

# before anything imports a plotting library
os.environ.setdefault("MPLBACKEND", "Agg")

# Before anything imports NumPy. The matrices here are small: threads that wait for each other took
# nine tenths of the time of some tests, and pytest-xdist has a process for each core anyway.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import chex
import hypothesis
import jax
import numpy as np
import pytest
from oracles import imported

jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the time of all tests goes into small programs: no Python lines in what is lowered, and
# where XLA still has its older code generator, that one, without LLVM's optimizations and in one
# piece. It needs a fifth of the time of the newer one.
jax.config.update("jax_traceback_in_locations_limit", 0)
QUICK = os.environ.get("QUICK_COMPILER") == "1" and jax.__version_info__ < (0, 11)
if QUICK:  # read when the first program is compiled
    flags = (
        "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 "
        "--xla_cpu_parallel_codegen_split_count=1"
    )
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

# What was imported stays, and a traced program is freed without the collector: to look for circles
# at every 700 objects took a tenth of the time.
gc.freeze()
gc.set_threshold(100_000, 50, 1000)

# the same examples in every run, and no clock: machines differ
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("repeatable")

LONGEST = {"test_notebooks", "test_bench", "test_visible", "test_devices"}
ORACLES = pathlib.Path(__file__).parent / "oracles.json"
DIFFERENCES = pytest.StashKey[dict[tuple[str, str], float]]()


def pytest_addoption(parser):
    parser.addoption(
        "--record-oracles",
        action="store_true",
        help="write the measured differences from other packages to tests/oracles.json",
    )


def pytest_configure(config):
    config.stash[DIFFERENCES] = {}


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items):
    """Of a test marked `first_is_quick` all rows but the first are slow.

    Files whose slow tests start other processes begin first: a worker takes a whole file.
    """
    seen = set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in seen and item.get_closest_marker("first_is_quick"):
            item.add_marker(pytest.mark.slow)
        seen.add(name)
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_sessionfinish(session):
    """Merge what was measured with what is there, so that one may record file by file."""
    measured = session.config.stash[DIFFERENCES]
    is_worker = hasattr(session.config, "workerinput")  # of pytest-xdist: several would write
    if is_worker or not (measured and session.config.getoption("--record-oracles")):
        return
    table = json.loads(ORACLES.read_text()) if ORACLES.exists() else {}
    for method, oracle in measured:  # another version replaces the last one
        name = oracle.split()[0]
        known = table.get(method, {})
        table[method] = {k: v for k, v in known.items() if k == oracle or k.split()[0] != name}
    for (method, oracle), difference in measured.items():
        table[method][oracle] = float(f"{difference:.1e}")
    ORACLES.write_text(json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@pytest.fixture(autouse=True, scope="module")
def _fresh_compilation_caches():
    """Forget compiled programs after each file: thousands of them make the collector slow."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _fresh_trace_counter():
    chex.clear_trace_counter()


@pytest.fixture
def agrees(request):
    """Compare a method of ours with another package, and remember how far apart they were."""
    differences = request.config.stash[DIFFERENCES]

    def check(method, oracle, got, want, *, atol, rtol=0.0):
        got, want = np.asarray(got), np.asarray(want)
        name = f"{oracle} {importlib.metadata.version(oracle).partition('+')[0]}"
        assert got.shape == want.shape, f"{method}: {got.shape}, {name}: {want.shape}"
        apart = float(np.abs(got - want).max(initial=0.0))
        assert np.allclose(got, want, atol=atol, rtol=rtol), (
            f"{method} is {apart:.1e} from {name}; allowed are {atol:g} + {rtol:g} |{name}|"
        )
        differences[method, name] = max(apart, differences.get((method, name), 0.0))

    return check


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def torch64():
    """Some of torch's optimizers keep a number in torch's default dtype."""
    torch = imported("torch")
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(torch.float32)
