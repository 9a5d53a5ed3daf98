"""Rows of PyTorch; see `wdjax.convert._row`."""

from collections.abc import Mapping

import optax

from wdjax.convert import _torch, _update_rules
from wdjax.convert._links import (
    averaged,
    coupled,
    last,
    ours,
    part,
    rated,
    relative,
    unless,
    when,
)
from wdjax.convert._row import (
    DECOUPLED,
    PAIR,
    Entry,
    adadelta,
    adamax,
    radam,
    row,
)

TORCH: Mapping[str, Entry] = {
    "SGD": _torch.torch_sgd,
    "Adam": _torch.torch_adam,
    "AdamW": _torch.torch_adamw,
    "NAdam": _torch.torch_nadam,
    "Adagrad": _torch.torch_adagrad,
    "RMSprop": _torch.torch_rmsprop,
    "Muon": _torch.torch_muon,
    "RAdam": row(
        unless(DECOUPLED, coupled), radam, rated, when(DECOUPLED, last()),
        lr=1e-3, **PAIR, weight_decay=0.0, decoupled_weight_decay=False, maximize=False,
    ),
    "Adamax": row(coupled, adamax, rated, lr=2e-3, **PAIR, weight_decay=0.0, maximize=False),
    "Adadelta": row(
        coupled, adadelta, rated, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, maximize=False
    ),
    "Adafactor": row(
        ours(
            lambda power, least, rms: _update_rules.factored(power, 0.0, least),
            "Adafactor's √v with ε₁ as its least value; optax.adafactor adds ε to g²",
            "beta2_decay", "eps",
        ),
        part(optax.clip_by_block_rms, "d"),
        ours(
            lambda least, rms: optax.scale_by_param_block_rms(rms),
            "optax.scale_by_param_block_rms(ε₂): times the RMS of the weights", "eps",
        ),
        relative, last(),
        lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, maximize=False,
    ),
    "ASGD": row(
        coupled, averaged,
        lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0, maximize=False,
    ),
    "Rprop": "it has no weight decay.",
    "LBFGS": "it has no weight decay. See optax.lbfgs.",
}  # fmt: skip
