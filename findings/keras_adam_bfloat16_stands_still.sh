#!/usr/bin/env bash
# keras 3.15.1 on JAX: Adam, AdamW and Lamb never move a variable of dtype bfloat16, and Nadam makes
# it NaN. The bias correction is computed in the variable's dtype, where beta_2 = 0.999, the default,
# rounds to 1: the step is multiplied by sqrt(1 - 1). Only the decay of AdamW is left. The
# documentation of Adam says nothing of dtypes. With beta_2 = 0.99 the variable moves.
# Seen after 20 gradients of 1 from 1.0, learning rate 0.1: Adam 1.0, float32 -1.0; Nadam nan
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 keras==3.15.1
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PYTHON'
import math

import keras


def after_20_steps(name, dtype, **settings):
    w = keras.Variable(1.0, dtype=dtype)
    optimizer = getattr(keras.optimizers, name)(0.1, **settings)
    optimizer.build([w])
    for _ in range(20):
        optimizer.apply([keras.ops.ones((), dtype)], [w])
    return float(keras.ops.cast(w.value, "float32"))


for name in ("Adam", "AdamW", "Lamb", "Nadam", "Adamax", "RMSprop"):
    print(name, *(after_20_steps(name, dtype) for dtype in ("float32", "bfloat16")))
assert after_20_steps("Adam", "float32") < -0.9
assert after_20_steps("Adam", "bfloat16", beta_2=0.99) < 0.9
assert after_20_steps("Adam", "bfloat16") == 1.0, "the behavior has changed"
assert after_20_steps("AdamW", "bfloat16") == 1.0, "the behavior has changed"
assert math.isnan(after_20_steps("Nadam", "bfloat16")), "the behavior has changed"
PYTHON
