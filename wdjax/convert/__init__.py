"""Settings of other packages, exactly reproduced: PyTorch, Keras, timm, Optax and others.

`from_(source, optimizer, **settings)` is the door to all of them; what is used most has a function
of its own. Each takes the settings of its source under their original names, with the original
defaults, and returns the equivalent optimizer and an explanation: `record.optimizer` and
`print(record)`.
"""

from wdjax.convert._from import from_
from wdjax.convert._keras import (
    keras_adagrad,
    keras_adam,
    keras_adamw,
    keras_l1,
    keras_l1_l2,
    keras_l2,
    keras_nadam,
    keras_rmsprop,
    keras_sgd,
)
from wdjax.convert._paper import paper_adamw, paper_normalized, paper_sgdw
from wdjax.convert._pieces import Converted
from wdjax.convert._timm import timm_layer_decay
from wdjax.convert._torch import (
    torch_adagrad,
    torch_adam,
    torch_adamw,
    torch_muon,
    torch_nadam,
    torch_rmsprop,
    torch_sgd,
)

__all__ = [
    "Converted",
    "from_",
    "keras_adagrad",
    "keras_adam",
    "keras_adamw",
    "keras_l1",
    "keras_l1_l2",
    "keras_l2",
    "keras_nadam",
    "keras_rmsprop",
    "keras_sgd",
    "paper_adamw",
    "paper_normalized",
    "paper_sgdw",
    "timm_layer_decay",
    "torch_adagrad",
    "torch_adam",
    "torch_adamw",
    "torch_muon",
    "torch_nadam",
    "torch_rmsprop",
    "torch_sgd",
]
