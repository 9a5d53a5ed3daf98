#!/usr/bin/env bash
# optax 0.2.8: ema(0.999) and incremental_update(..., 0.001) of bfloat16 numbers stop half way. At
# 0.5 what a step would add, 0.001 of the rest, is below half a spacing and rounds away: the average
# of ones from zero stays at 0.5. optax.ema has accumulator_dtype for this, incremental_update nothing.
# Seen: 0.5 and 0.5 after 5,000 steps; in float32 0.993
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax


def averages(dtype):
    one, zero = {"w": jnp.ones((), dtype)}, {"w": jnp.zeros((), dtype)}
    ema = optax.ema(0.999, debias=False)
    state, target = ema.init(one), zero
    update = jax.jit(ema.update)
    follow = jax.jit(lambda target: optax.incremental_update(one, target, 0.001))
    for _ in range(5_000):
        mean, state = update(one, state)
        target = follow(target)
    return float(mean["w"]), float(target["w"])


narrow, wide = averages(jnp.bfloat16), averages(jnp.float32)
print("bfloat16", narrow, "float32", wide)
assert narrow == (0.5, 0.5), "the behavior has changed"
assert min(wide) > 0.99
PYTHON
