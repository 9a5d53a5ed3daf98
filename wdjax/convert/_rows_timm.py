"""Rows of timm, every name of `timm.optim.list_optimizers()`; see `wdjax.convert._row`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from wdjax.convert import _torch, _update_rules
from wdjax.convert._adafactor import Options, adafactor, capped
from wdjax.convert._links import (
    adam,
    added,
    chain,
    coupled,
    lamb,
    lambw,
    laprop,
    last,
    momentum,
    off,
    only,
    ours,
    part,
    rated,
    when,
)
from wdjax.convert._pieces import Build, Settings
from wdjax.convert._row import (
    INITIAL,
    PAIR,
    STOPS,
    Entry,
    Row,
    adadelta,
    adamax,
    adan,
    belief,
    beta1_trace,
    lion,
    nadamw,
    normalized,
    radam,
    row,
)
from wdjax.schedules import corrected
from wdjax.transforms import decay_after_step, prox_weights


def _forms(direction: Build, base: str, **defaults: Any) -> dict[str, Row]:
    """The decoupled form, base + "w", and the one with corrected decay, base + "c"."""
    return {
        f"{base}w": row(direction, last(), **defaults, weight_decay=0.0),
        f"{base}c": row(direction, last(corrected), **defaults, **INITIAL),
    }


_NESTEROV: Settings = {"momentum": 0.9, "dampening": 0.0, "nesterov": True}
_LAMB: Settings = {
    "lr": 1e-3, **PAIR, "eps": 1e-6, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "always_adapt": False,
}  # fmt: skip
_ADAM: Settings = {"lr": 1e-3, **PAIR, "amsgrad": False}
_ADAN: Settings = {"lr": 1e-3, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 0.0}
_LAPROP: Settings = {"lr": 4e-4, "betas": (0.9, 0.999), "eps": 1e-15, "weight_decay": 0.0}
_LION: Settings = {"lr": 1e-4, "betas": (0.9, 0.99)}
_ZERO: Settings = {"weight_decay": 0.0}

_adopt = ours(
    lambda b1, b2, eps, power: _update_rules.adopt(
        b1, b2, eps, lambda t: jnp.inf if power is None else (t - 1) ** power
    ),
    "ADOPT, which takes no first step", "betas", "eps", "clip_exp",
)  # fmt: skip
_ADOPT: Settings = {"lr": 1e-3, "betas": (0.9, 0.9999), "eps": 1e-6, "clip_exp": 0.333}

_novograd_limits = off("Nothing here has it.", amsgrad=False, grad_averaging=False)
_NOVOGRAD: Settings = {
    "lr": 1e-3, "betas": (0.95, 0.98), "eps": 1e-8, "grad_averaging": False, "amsgrad": False,
}  # fmt: skip

_rmsprop_tf = chain(
    off("Write convert.from_('timm', 'rmsprop', ...).", centered=False, lr_in_momentum=True),
    ours(
        lambda alpha, eps: optax.scale_by_rms(alpha, eps, initial_scale=1.0),
        "optax.scale_by_rms, from 1 on", "alpha", "eps",
    ),
    rated, when("momentum", part(optax.trace, "momentum")),
)  # fmt: skip
_RMSPROP_TF: Settings = {
    "lr": 1e-2, "alpha": 0.9, "eps": 1e-10, "momentum": 0.9, "centered": False,
    "lr_in_momentum": True,
}  # fmt: skip

_big = chain(
    off("Its decay would be wdjax.fixed, without the rate.", unscaled_wd=False),
    ours(
        capped, "Adafactor's direction with a β₂ of at most `beta2_cap`, and an average",
        "min_dim_size_to_factor", "decay_rate", "decay_offset", "beta2_cap",
        "clipping_threshold", "momentum", "momentum_dtype", "eps",
    ),
    rated,
)  # fmt: skip
_BIG: Settings = {
    "lr": 1.0, "min_dim_size_to_factor": 16, "decay_rate": 0.8, "decay_offset": 0,
    "beta2_cap": 0.999, "momentum": 0.9, "momentum_dtype": jnp.bfloat16, "eps": None,
    "clipping_threshold": None, "unscaled_wd": False,
}  # fmt: skip


def _options(s: Settings) -> Options:
    return Options(
        s["lr"], s["eps"], s["eps_scale"], s["clip_threshold"], s["decay_rate"],
        beta1=None if s["betas"] is None else s["betas"][0],
        scaled=s["scale_parameter"] and s["lr"] is None, warmup=s["warmup_init"],
        above=s["min_dim_size_to_factor"],
    )  # fmt: skip


_ROWS: Mapping[str, Entry] = {
    "sgd": row(coupled, momentum, rated, lr=1e-3, **_NESTEROV, **_ZERO),
    "momentum": row(coupled, momentum, rated, lr=1e-3, **{**_NESTEROV, "nesterov": False}, **_ZERO),
    **_forms(chain(momentum, rated), "sgd", lr=1e-3, **_NESTEROV),
    "adam": row(coupled, adam, rated, **_ADAM, **_ZERO),
    **_forms(chain(adam, rated), "adam", **_ADAM),
    "nadam": row(_torch.nadam, lr=2e-3, **PAIR, momentum_decay=4e-3, **_ZERO,
                 decoupled_weight_decay=False),
    "nadamlegacy": row(
        coupled, ours(_update_rules.nadam, "Dozat's schedule of the momentum", "betas", "eps",
                      "schedule_decay"), rated,
        lr=2e-3, **PAIR, schedule_decay=4e-3, **_ZERO,
    ),
    **_forms(chain(nadamw, rated), "nadam", lr=1e-3, **PAIR),
    "radam": row(coupled, radam, rated, lr=1e-3, **PAIR, **_ZERO),
    "radamw": row(radam, rated, last(), lr=1e-3, **PAIR, **_ZERO),
    "adamax": row(coupled, adamax, rated, lr=2e-3, **PAIR, **_ZERO),
    "adadelta": row(coupled, adadelta, rated, lr=1.0, rho=0.9, eps=1e-6, **_ZERO),
    "adagrad": row(_torch.adagrad, lr=1e-2, lr_decay=0.0, eps=1e-8,
                   initial_accumulator_value=0.0, **_ZERO),
    "rmsprop": row(_torch.rmsprop, lr=1e-2, alpha=0.9, eps=1e-8, momentum=0.9, centered=False,
                   **_ZERO),
    "rmsproptf": row(coupled, _rmsprop_tf, **_RMSPROP_TF, **_ZERO),
    **_forms(_rmsprop_tf, "rmsproptf", **_RMSPROP_TF),
    "adabelief": row(
        only("amsgrad", False, "Nothing here has it."), belief, rated, last(),
        lr=1e-3, **{**PAIR, "eps": 1e-16}, amsgrad=False, **_ZERO,
    ),
    "lion": row(lion, rated, last(), **_LION, **_ZERO),
    "lionc": row(lion, rated, last(corrected), **_LION, **INITIAL),
    "adan": row(adan, rated, last(place=prox_weights), **_ADAN),
    "adanw": row(adan, rated, last(), **_ADAN),
    "adopt": row(coupled, _adopt, rated, **_ADOPT, **_ZERO),
    "adoptw": row(_adopt, rated, last(wait=1), **_ADOPT, **_ZERO),
    "adoptc": row(_adopt, rated, last(corrected, wait=1), **_ADOPT, **INITIAL),
    "laprop": row(laprop, rated, last(place=decay_after_step), **_LAPROP),
    "lapropc": row(laprop, rated, last(corrected, decay_after_step), **_LAPROP, initial_lr=None),
    "lamb": row(lamb, **_LAMB),
    "lambw": row(lambw(), **_LAMB),
    "lambcd": row(lambw(corrected), **_LAMB, initial_lr=None),
    "novograd": row(
        _novograd_limits, normalized, added("in its momentum, beside the normalized gradient"),
        beta1_trace, rated, **_NOVOGRAD, **_ZERO,
    ),
    **_forms(
        chain(_novograd_limits, normalized, beta1_trace, rated),
        "novograd", **_NOVOGRAD,
    ),
    "adafactor": row(
        adafactor(_options), lr=None, eps=1e-30, eps_scale=1e-3, clip_threshold=1.0,
        decay_rate=-0.8, betas=None, scale_parameter=True, warmup_init=False,
        min_dim_size_to_factor=16, **_ZERO,
    ),
    "adafactorbv": row(_big, last(), **_BIG, **_ZERO),
    "adafactorbvc": row(_big, last(corrected), **_BIG, **INITIAL),
}  # fmt: skip

_SAME = {  # other names of the same
    "nesterov": "sgd", "nesterovw": "sgdw", "adamwlegacy": "adamw", "radamlegacy": "radamw",
}  # fmt: skip
_MUON = (
    "which arrays are its matrices follows from their sizes, and it rounds them to bfloat16. Use "
    "wdjax.muonw, or convert.from_('torch', 'Muon', ...) for chosen matrices."
)
_TRUST = (
    "its c is not corrected decay but a limit of 1 on the trust ratio, which "
    "optax.scale_by_trust_ratio has not. Use 'lamb', or 'adamc' for corrected decay."
)
_OWN = (
    "its update rule is not in Optax. With a port of it write wdjax.decayed(port)(lr, "
    "weight_decay=λ): its decay is s = λη."
)
_CAUTIOUS = (
    "adafactor adafactorbv adafactorbvc adamc adamp adamw adan adanw adopt adoptc adoptw lamb "
    "lambw laprop lion lionc mars nadamc nadamw rmsproptf sgdc sgdp sgdw"
)
_REASONS: Mapping[str, tuple[str, ...]] = {
    _TRUST: ("lambc", "lambcw"),
    "a weight_decay of 0 switches its trust ratio off, and 1e-12 in place of 0 makes the step "
    "hundreds of times smaller. Use 'lamb', or optax.lars with a mask.": (
        "lars", "larc", "nlars", "nlarc",
    ),
    STOPS: ("madgradw",),
    "λθ joins its gradient. Optax's, from 0.2.8 on, is convert.from_('optax', 'madgrad', ...).": (
        "madgrad",
    ),
    "it multiplies the decay of some leaves by wd_ratio, from the angle of their gradient; "
    "sgdp divides it by 1 − momentum, too. Use 'adamw' or 'sgdw'.": ("adamp", "sgdp"),
    _MUON: ("muon", "nmuon", "adamuon", "nadamuon"),
    _OWN: ("mars", "radabelief"),
    "its preconditioner is random, drawn by PyTorch. psgd-jax has the method: "
    "wdjax.decayed(kron)(lr, weight_decay=λ).": ("kron", "kronw", "kronc"),
    "it needs a second gradient, and draws it at random.": ("adahessian",),
    "it belongs to bitsandbytes. Write convert.from_('bitsandbytes', 'AdamW', ...), or 'Adam' or "
    "'Lion'.": (
        "bnbadam", "bnbadam8bit", "bnbadamw", "bnbadamw8bit", "bnbademamix", "bnbademamix8bit",
        "bnblion", "bnblion8bit", "bnbsgd", "bnbsgd8bit",
    ),
    "it belongs to Apex and runs on CUDA only. For its formula write 'adam', 'adamw', 'lamb', "
    "'novograd' or 'sgd'.": ("fusedadam", "fusedadamw", "fusedlamb", "fusednovograd", "fusedsgd"),
}  # fmt: skip
TIMM: Mapping[str, Entry] = {
    **_ROWS,
    **{name: _ROWS[same] for name, same in _SAME.items()},
    **{name: why for why, names in _REASONS.items() for name in names},
    **{
        f"c{name}": f"its update is masked by the sign of the gradient (caution), not its decay; "
        f"nothing here does that. Without the mask it is {name!r}."
        for name in _CAUTIOUS.split()
    },
}
