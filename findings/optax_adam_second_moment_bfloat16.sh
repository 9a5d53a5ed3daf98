#!/usr/bin/env bash
# optax 0.2.8: Adam keeps its second moment in the parameters' dtype. In bfloat16 a decay by
# 1 - b2 = 0.001 rounds away, so the moment never falls again: after gradients of 1 those of 0.01
# make steps of a fiftieth of their length, for ever.
# Seen: second moment 0.196 after 200 steps, and the same 5,000 steps later (float32: 0.0013)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax


def moments(dtype):
    adam = optax.scale_by_adam()
    state = adam.init({"w": jnp.ones((), dtype)})
    update = jax.jit(adam.update)
    seen = []
    for gradient, steps in ((1.0, 200), (0.01, 5_000)):
        for _ in range(steps):
            updates, state = update({"w": jnp.asarray(gradient, dtype)}, state)
        seen.append(float(state.nu["w"]))
    return *seen, float(updates["w"])


before, after, step = moments(jnp.bfloat16)
_, wide, wide_step = moments(jnp.float32)
print(f"bfloat16 {before:.3f} then {after:.3f}, step {step:.3f}; float32 {wide:.4f}, step {wide_step:.2f}")
assert before == after, "the behavior has changed"
assert wide < after / 100
PYTHON
