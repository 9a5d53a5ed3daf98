"""On eight devices everything is as on one: results, layouts, and no word more between them."""

import json
import os
import subprocess
import sys

import device_worker
import pytest
from once import once

# the programs are tiny: optimizing them takes longer than running them
FLAGS = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0"
)


@pytest.fixture(scope="module", name="outcome")
def _outcome(tmp_path_factory):
    """What each check found, from one process: {check: what went wrong, or nothing}."""
    return once(tmp_path_factory, "devices", lambda folder: run_all())


def run_all():
    env = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, device_worker.__file__],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow  # a hundred programs for eight devices, compiled in a fresh process
@pytest.mark.parametrize("check", device_worker.CHECKS)
def test_eight_devices_are_as_good_as_one(check, outcome):
    assert not outcome[check], outcome[check]
