#!/usr/bin/env bash
# equinox 0.13.8 with optax 0.2.8: the bias of a Conv2d has shape (channels, 1, 1). Masks by the
# number of axes, as in the example of optax.masked, take it for a matrix and decay it; a Linear's
# bias stays. The documentation of Conv says that there is a bias, and not its shape.
# Seen: axes of bias: Conv1d 2, Conv2d 3, Conv3d 4, Linear 1; taken off: Conv2d 0.1, Linear 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 equinox==0.13.8
"$folder/venv/bin/python" - <<'PYTHON'
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

key = jax.random.key(0)
layers = {
    "Conv1d": eqx.nn.Conv1d(3, 8, 3, key=key),
    "Conv2d": eqx.nn.Conv2d(3, 8, 3, key=key),
    "Conv3d": eqx.nn.Conv3d(3, 8, 3, key=key),
    "Linear": eqx.nn.Linear(3, 8, key=key),
}
params = eqx.filter(layers, eqx.is_inexact_array)
mask = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
optimizer = optax.adamw(1.0, weight_decay=0.1, mask=mask)
zeros = jax.tree.map(jnp.zeros_like, params)
updates, _ = optimizer.update(zeros, optimizer.init(params), params)
taken = {name: float(-(updates[name].bias / params[name].bias).mean()) for name in params}
print("axes", {name: layer.bias.ndim for name, layer in layers.items()}, "taken off", taken)
assert layers["Conv2d"].bias.shape == (8, 1, 1), "the behavior has changed"
assert abs(taken["Conv2d"] - 0.1) < 1e-6, "the behavior has changed"
assert taken["Linear"] == 0
PYTHON
