"""Rows of PyTorch and timm; see `wdjax.convert._row`."""

from collections.abc import Mapping

import optax

from wdjax.convert import _torch, _update_rules
from wdjax.convert._links import (
    adam,
    averaged,
    coupled,
    lamb,
    laprop,
    last,
    momentum,
    ours,
    part,
    rated,
    relative,
    unless,
    when,
)
from wdjax.convert._pieces import Settings
from wdjax.convert._row import (
    DECOUPLED,
    INITIAL,
    PAIR,
    STOPS,
    Entry,
    adadelta,
    adamax,
    adan,
    lion,
    nadamw,
    radam,
    row,
)
from wdjax.schedules import corrected
from wdjax.transforms import decay_after_step, prox_weights

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

_NESTEROV: Settings = {"momentum": 0.9, "dampening": 0.0, "nesterov": True}
_LAMB: Settings = {
    "lr": 1e-3, **PAIR, "eps": 1e-6, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "always_adapt": False,
}  # fmt: skip
_ADAN: Settings = {"lr": 1e-3, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 0.0}
_LAPROP: Settings = {"lr": 4e-4, "betas": (0.9, 0.999), "eps": 1e-15, "weight_decay": 0.0}
_ZERO: Settings = {"weight_decay": 0.0}
_CAUTIOUS = ("adamw", "nadamw", "lion", "sgdw", "adan", "adanw", "laprop", "lamb", "adamc",
             "nadamc", "lionc", "sgdc", "muon", "adafactor", "mars", "lambw", "radamw")  # fmt: skip
TIMM: Mapping[str, Entry] = {
    "sgd": row(coupled, momentum, rated, lr=1e-3, **_NESTEROV, **_ZERO),
    "momentum": row(coupled, momentum, rated, lr=1e-3, **{**_NESTEROV, "nesterov": False}, **_ZERO),
    "sgdw": row(momentum, rated, last(), lr=1e-3, **_NESTEROV, **_ZERO),
    "adam": row(coupled, adam, rated, lr=1e-3, **PAIR, amsgrad=False, **_ZERO),
    "adamw": row(adam, rated, last(), lr=1e-3, **PAIR, amsgrad=False, **_ZERO),
    "nadamw": row(nadamw, rated, last(), lr=1e-3, **PAIR, **_ZERO),
    "radam": row(coupled, radam, rated, lr=1e-3, **PAIR, **_ZERO),
    "radamw": row(radam, rated, last(), lr=1e-3, **PAIR, **_ZERO),
    "adamax": row(coupled, adamax, rated, lr=2e-3, **PAIR, **_ZERO),
    "lion": row(lion, rated, last(), lr=1e-4, betas=(0.9, 0.99), **_ZERO),
    "adan": row(adan, rated, last(place=prox_weights), **_ADAN),
    "adanw": row(adan, rated, last(), **_ADAN),
    "laprop": row(laprop, rated, last(place=decay_after_step), **_LAPROP),
    "lamb": row(lamb, rated, **_LAMB),
    "adamc": row(adam, rated, last(corrected), lr=1e-3, **PAIR, amsgrad=False, **INITIAL),
    "nadamc": row(nadamw, rated, last(corrected), lr=1e-3, **PAIR, **INITIAL),
    "lionc": row(lion, rated, last(corrected), lr=1e-4, betas=(0.9, 0.99), **INITIAL),
    "sgdc": row(momentum, rated, last(corrected), lr=1e-3, **_NESTEROV, **INITIAL),
    "lapropc": row(
        laprop, rated, last(corrected, decay_after_step), **_LAPROP, initial_lr=None
    ),
    "lambc": "its c is not corrected decay but a limit of 1 on the trust ratio, which "
    "optax.scale_by_trust_ratio has not. Use 'lamb', or 'adamc' for corrected decay.",
    **dict.fromkeys(
        ("lars", "larc", "nlars", "nlarc"),
        "a weight_decay of 0 switches its trust ratio off, and 1e-12 in place of 0 makes the step "
        "hundreds of times smaller. Use 'lamb', or optax.lars with a mask.",
    ),
    "madgradw": STOPS,
    **dict.fromkeys(
        ("adamp", "sgdp"),
        "it multiplies the decay of some leaves by wd_ratio, from the angle of their gradient; "
        "sgdp divides it by 1 − momentum, too. Use 'adamw' or 'sgdw'.",
    ),
    **dict.fromkeys(
        ("adopt", "adoptw", "adoptc"),
        "it neither steps nor decays in its first step. The decay alone would be "
        "wdjax.decay_weights(wdjax.delayed(wdjax.lr_scaled(λ, lr), 1)), last.",
    ),
    **{
        f"c{name}": f"its update is masked by the sign of the gradient (caution), not its decay; "
        f"nothing here does that. Without the mask it is {name!r}."
        for name in _CAUTIOUS
    },
}  # fmt: skip
