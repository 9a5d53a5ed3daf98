#!/usr/bin/env bash
# equinox 0.13.8: apply_updates adds and keeps what JAX promotes to, so a float32 update turns a
# bfloat16 model into a float32 one, which compiles again and needs twice the memory. optax 0.2.8
# casts the sum back to the dtype of the parameter. Optimizers that compute in float32 return such
# updates.
# Seen: equinox float32, optax bfloat16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 equinox==0.13.8
"$folder/venv/bin/python" - <<'PYTHON'
import equinox as eqx
import jax.numpy as jnp
import optax

params, updates = {"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.full(3, -1e-3, jnp.float32)}
widened, kept = eqx.apply_updates(params, updates), optax.apply_updates(params, updates)
print("equinox", widened["w"].dtype, "optax", kept["w"].dtype)
assert widened["w"].dtype == jnp.float32, "the behavior has changed"
assert kept["w"].dtype == jnp.bfloat16
PYTHON
