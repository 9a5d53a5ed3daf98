#!/usr/bin/env bash
# optax 0.2.8 with orbax-checkpoint 0.12.8: a run is resumed with a smaller weight decay. Under
# inject_hyperparams the number in the checkpoint is used, and the one in the code is not; the same
# setting as a schedule is taken from the code, as are all settings without the wrapper. The
# documentation says that a number may be changed in the state, and not that a restored state
# decides. Nothing warns. state.hyperparams["weight_decay"] has to be set after restoring.
# Seen: taken off after a change from 0.1 to 0.01: plain 0.01, number 0.1, schedule 0.01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 \
    orbax-checkpoint==0.12.8
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import pathlib
import sys

import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

params, zeros = {"w": jnp.ones(())}, {"w": jnp.zeros(())}
injected = optax.inject_hyperparams(optax.adamw)


def resumed(name, factory, before, now):
    """Return what a step takes off a weight of 1 after the checkpoint."""
    place = pathlib.Path(sys.argv[1]) / name
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, factory(1.0, weight_decay=before).init(params))
        checkpointer.wait_until_finished()
        optimizer = factory(1.0, weight_decay=now)
        state = checkpointer.restore(place, optimizer.init(params))
    updates, _ = optimizer.update(zeros, state, params)
    return -float(updates["w"])


plain = resumed("plain", optax.adamw, 0.1, 0.01)
number = resumed("number", injected, 0.1, 0.01)
schedule = resumed("schedule", injected, lambda step: 0.1, lambda step: 0.01)
print(f"plain {plain:.3g} number {number:.3g} schedule {schedule:.3g}")
assert abs(number - 0.1) < 1e-6, "the behavior has changed"
assert abs(plain - 0.01) < 1e-6 and abs(schedule - 0.01) < 1e-6
PYTHON
