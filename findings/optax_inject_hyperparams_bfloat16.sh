#!/usr/bin/env bash
# optax 0.2.8: inject_hyperparams(adamw) rounds all hyperparameters to the parameters' dtype. With
# bfloat16 parameters b2 = 0.999 becomes 1, the bias correction divides 0 by 0, and the first update
# is NaN. Its docstring says that None infers the dtype from the parameters; nothing warns.
# hyperparam_dtype=jnp.float32 helps.
# Seen: b2 1.0, update nan; without inject_hyperparams -0.0011
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
"$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import optax

params = {"w": jnp.ones((), jnp.bfloat16)}
grads = {"w": jnp.full((), 0.1, jnp.bfloat16)}
settings = {"learning_rate": 1e-3, "b2": 0.999, "weight_decay": 0.1}


def first(optimizer):
    return optimizer.update(grads, optimizer.init(params), params)


plain, _ = first(optax.adamw(**settings))
injected, state = first(optax.inject_hyperparams(optax.adamw)(**settings))
wide, _ = first(optax.inject_hyperparams(optax.adamw, hyperparam_dtype=jnp.float32)(**settings))
print("b2", state.hyperparams["b2"], "update", injected["w"], "plain", plain["w"], "wide", wide["w"])
assert float(state.hyperparams["b2"]) == 1.0, "the behavior has changed"
assert jnp.isnan(injected["w"]), "the behavior has changed"
assert jnp.isfinite(plain["w"]) and jnp.isfinite(wide["w"])
PYTHON
