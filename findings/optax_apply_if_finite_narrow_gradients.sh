#!/usr/bin/env bash
# optax 0.2.8: apply_if_finite refuses bfloat16 gradients of float32 parameters as soon as the
# optimizer inside returns float32 updates, as adamw with decay does. The error comes from
# jax.lax.cond, whose branches have different dtypes, and names neither gradients nor optimizer.
# Seen: TypeError: cond branches must have equal output types but they differ.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
"$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import optax

params, grads = {"w": jnp.ones(3)}, {"w": jnp.ones(3, jnp.bfloat16)}
bare = optax.adamw(1e-3)
updates, _ = bare.update(grads, bare.init(params), params)
print("alone", updates["w"].dtype)
wrapped = optax.apply_if_finite(bare, 3)
try:
    wrapped.update(grads, wrapped.init(params), params)
except TypeError as error:
    print("TypeError:", str(error).splitlines()[0])
    assert "cond branches must have equal output types" in str(error), "the behavior has changed"
else:
    raise AssertionError("the behavior has changed")
PYTHON
