"""A fresh process in which the CPU counts as two devices."""

import os
import subprocess
import sys


def printed(code):
    """What the code prints there; the files of this folder can be imported."""
    own = os.environ.get("XLA_FLAGS", "")
    env = os.environ | {
        "XLA_FLAGS": f"{own} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.path.dirname(__file__),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout
