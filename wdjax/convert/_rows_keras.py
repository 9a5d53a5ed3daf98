"""Rows of Keras; see `wdjax.convert._row`."""

from collections.abc import Mapping

import optax

from wdjax.convert import _keras, _update_rules
from wdjax.convert._links import decayed_first, last, ours, part, rated, relative, told
from wdjax.convert._muon import muon
from wdjax.convert._row import Entry, row

KERAS: Mapping[str, Entry] = {
    "SGD": _keras.keras_sgd,
    "Adam": _keras.keras_adam,
    "AdamW": _keras.keras_adamw,
    "Nadam": _keras.keras_nadam,
    "Adagrad": _keras.keras_adagrad,
    "RMSprop": _keras.keras_rmsprop,
    "L1": _keras.keras_l1,
    "L2": _keras.keras_l2,
    "L1L2": _keras.keras_l1_l2,
    "Lion": row(
        part(optax.scale_by_lion, "beta_1", "beta_2"), rated, last(),
        learning_rate=1e-3, beta_1=0.9, beta_2=0.99, weight_decay=None,
    ),
    "Adamax": row(
        ours(
            _update_rules.adamax, "Adamax with ε outside the maximum; optax.adamax has it inside",
            "beta_1", "beta_2", "epsilon",
        ),
        rated, last(),
        learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=None,
    ),
    "Adadelta": row(
        part(optax.scale_by_adadelta, "rho", "epsilon"), rated, last(),
        learning_rate=1e-3, rho=0.95, epsilon=1e-7, weight_decay=None,
    ),
    "Lamb": row(
        decayed_first(
            ours(
                lambda *moments: optax.chain(
                    optax.scale_by_adam(*moments), optax.scale_by_trust_ratio()
                ),
                "optax.scale_by_adam, then optax.scale_by_trust_ratio()",
                "beta_1", "beta_2", "epsilon",
            ),
            rated,
        ),
        learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=None,
    ),
    "Adafactor": row(
        decayed_first(
            ours(
                lambda power, added: _update_rules.factored(power, added, 0.0),
                "Adafactor's √v, over the last two axes", "beta_2_decay", "epsilon_1",
            ),
            part(optax.clip_by_block_rms, "clip_threshold"),
            part(optax.scale_by_param_block_rms, "epsilon_2"),
            relative,
        ),
        told("nothing: Keras takes min(η, 1/√t) either way", "relative_step"),
        learning_rate=1e-3, beta_2_decay=-0.8, epsilon_1=1e-30, epsilon_2=1e-3, clip_threshold=1.0,
        relative_step=True, weight_decay=None,
    ),
    "Muon": row(
        muon,
        learning_rate=1e-3, adam_beta_1=0.9, adam_beta_2=0.999, adam_weight_decay=0.004,
        epsilon=1e-7, weight_decay=0.004, exclude_layers=None, exclude_embeddings=True,
        muon_a=3.4445, muon_b=-4.7750, muon_c=2.0315, adam_lr_ratio=1, momentum=0.95, ns_steps=5,
        nesterov=True, rms_rate=0.2,
    ),
    "Ftrl": "its decay is part of its own proximal step.",
    "ScheduleFreeAdamW": "it decays at an iterate between two others; see "
    "optax.contrib.schedule_free with the decay inside.",
}  # fmt: skip
