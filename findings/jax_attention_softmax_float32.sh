#!/usr/bin/env bash
# jax 0.10.2: jax.nn.dot_product_attention of float64 arrays gives float64, but its softmax is taken
# in float32: the result is right to seven digits only. Its documentation does not say so for float64.
# Whoever compares a port in float64 sees a difference that no optimizer made.
# Seen: float64, 1.6e-07 apart from the same formula written out
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4), jnp.float64)
got = jax.nn.dot_product_attention(query, key, value)
scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2  # √4
want = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
apart = float(jnp.abs(got - want).max())
print(f"{got.dtype}, {apart:.1e} apart from the same formula written out")
assert got.dtype == want.dtype == jnp.float64
assert 1e-9 < apart < 1e-6, "the behavior has changed"
PYTHON
