#!/usr/bin/env bash
# keras 3.15.1 on jax 0.10.2, with floatx float64 and jax_enable_x64: ops.norm and ops.mean of float64
# arrays are taken in float32 (the mean is cast back). Muon, Adafactor and clipping use them, so that
# a float64 run is not one. The documentation does not say it.
# Seen: norm float32, 1.9e-08 apart; mean float64, 1.5e-07 apart
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 keras==3.15.1
KERAS_HOME="$folder" KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
import keras

keras.config.set_floatx("float64")
x = np.array([1.0, 2.0, 3.0]) / 7
variable = keras.Variable(x, dtype="float64")
norm, mean = keras.ops.norm(variable), keras.ops.mean(variable)
apart = [abs(float(got) / want - 1) for got, want in ((norm, np.linalg.norm(x)), (mean, x.mean()))]
print(f"norm {norm.dtype}, {apart[0]:.1e} apart; mean {mean.dtype}, {apart[1]:.1e} apart")
assert max(apart) > 1e-9, "the behavior has changed"
PYTHON
