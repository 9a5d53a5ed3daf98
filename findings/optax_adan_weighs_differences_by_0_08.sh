#!/usr/bin/env bash
# optax 0.2.8: adan weighs what the gradient has changed by with 1 − b2 = 0.08 where Algorithm 1 of
# the paper, the code of its authors, timm and pytorch_optimizer have 0.92. The paper's β₂ is 0.08,
# Optax's b2 is 1 − β₂ = 0.92, but its formula keeps the paper's 1 − β₂. The second step for gradients
# 1 and 2, with b1 = b3 = 0: (2 + w v̂) / (2 + w) with v̂ = 0.08 / (1 − 0.92²).
# Seen: 0.98157, which is w = 0.08; w = 0.92 would be 0.84903
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
"$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import optax

tx = optax.adan(1.0, b1=0.0, b2=0.92, b3=0.0, eps=0.0)
w = jnp.zeros(())
state = tx.init(w)
for gradient in (1.0, 2.0):
    update, state = tx.update(jnp.asarray(gradient), state, w)
v = 0.08 / (1 - 0.92**2)
step, of_optax, of_paper = -float(update), *((2 + w * v) / (2 + w) for w in (0.08, 0.92))
print(f"{step:.5f}, which is w = 0.08: {of_optax:.5f}; w = 0.92 would be {of_paper:.5f}")
assert abs(step - of_optax) < 1e-5, "the behavior has changed"
assert abs(step - of_paper) > 0.1
PYTHON
