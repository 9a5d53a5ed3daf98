"""Rows of EasyLM and t5x, whose own optimizers are Adafactors."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from wdjax._lift.leaves import Params
from wdjax._trees import paths
from wdjax.convert._configs import (
    MADE,
    clipped,
    easylm_cosine,
    easylm_root,
    t5x_schedule,
    with_schedule,
)
from wdjax.convert._links import in_the_dtypes, last, off, ours, rated, told, unless, when
from wdjax.convert._pieces import Piece, Settings, check_numbers, decay, given, is_zero, named_rules
from wdjax.convert._row import Entry, row
from wdjax.convert._rows_optax import OPTAX
from wdjax.rules import Rules
from wdjax.schedules import as_schedule, lr_squared
from wdjax.transforms import decay_weights

# EasyLM.

_ADAFACTOR = (
    "optax.adafactor(lr, momentum=b1, decay_rate=b2, factored=False, clipping_threshold=None)"
)


def _adafactor_of_easylm(s: Settings, rules: Rules) -> list[Piece]:
    """optax.adafactor without factors."""
    dtype = jnp.bfloat16 if s["bf16_momentum"] else jnp.float32

    def adafactor(b1: float, b2: float, lr: Any, _: bool) -> optax.GradientTransformation:
        step = optax.adafactor(
            lr, multiply_by_parameter_scale=True, momentum=b1, decay_rate=b2, factored=False,
            clipping_threshold=None, dtype_momentum=dtype,
        )  # fmt: skip
        return optax.chain(step, in_the_dtypes)

    return ours(adafactor, _ADAFACTOR, "b1", "b2", "lr", "bf16_momentum")(s, rules)


def _palm(s: Settings, rules: Rules) -> list[Piece]:
    """optax.adafactor, and s = (λ / 1e-4) η²."""
    check_numbers(s, "weight_decay")
    (decays,) = last(lr_squared)({**s, "weight_decay": s["weight_decay"] / 1e-4}, rules)
    setting = f"weight_decay={s['weight_decay']}"
    return [*_adafactor_of_easylm(s, rules), decays._replace(setting=setting)]


_half_adam = ours(
    lambda b1, b2, half: optax.scale_by_adam(b1, b2, mu_dtype=jnp.bfloat16 if half else None),
    "optax.scale_by_adam", "b1", "b2", "bf16_momentum",
)  # fmt: skip
_EASYLM: Settings = {
    "b1": 0.9, "clip_gradient": 1.0, "weight_decay": 1e-4, "bf16_momentum": False,
}  # fmt: skip
_SCALED = "multiply_by_parameter_scale"
EASYLM: Mapping[str, Entry] = {
    "adamw": row(
        clipped("clip_gradient"),
        with_schedule(
            easylm_cosine,
            unless(_SCALED, _half_adam, rated), when(_SCALED, _adafactor_of_easylm), last(),
        ),
        told(MADE, "init_lr", "end_lr", "lr_warmup_steps", "lr_decay_steps"),
        lr=0.01, init_lr=0.0, end_lr=1e-3, lr_warmup_steps=2_000, lr_decay_steps=500_000,
        **_EASYLM, b2=0.95, multiply_by_parameter_scale=False,
    ),
    "palm": row(
        clipped("clip_gradient"), with_schedule(easylm_root, _palm),
        told(MADE, "lr_warmup_steps"),
        lr=0.01, lr_warmup_steps=10_000, **_EASYLM, b2=0.99,
    ),
}  # fmt: skip


# t5x.


def _t5x_adafactor(
    lr: Any, factored: bool, scaled: bool, momentum: Any, decay_rate: float, offset: int,
    most: Any, least: int, eps: float, floor: float, dtype: Any,
) -> optax.GradientTransformation:  # fmt: skip
    inner = optax.chain(
        optax.scale_by_factored_rms(factored, decay_rate, offset, least, eps),
        *([optax.clip_by_block_rms(most)] if most is not None else []),
        optax.scale_by_learning_rate(as_schedule(lr, "learning_rate")),
        *([optax.scale_by_param_block_rms(floor)] if scaled else []),
        *([optax.ema(momentum, debias=False, accumulator_dtype=dtype)] if momentum is not None
          else []),
        in_the_dtypes,
    )  # fmt: skip

    def init(params: Params) -> Any:
        others = [leaf.path for leaf in paths.leaves(params) if factored and leaf.ndim > 2]
        if others:
            raise ValueError(
                "t5x asks for a rule where an array of more than two axes is factored; got "
                f"{paths.listed(list(map(repr, others)))}. Nothing here takes those rules: pass "
                "factored=False, or keep t5x's."
            )
        return inner.init(params)

    return optax.GradientTransformation(init, inner.update)


def _by_a_power(s: Settings, rules: Rules) -> list[Piece]:
    """λ, or λ η^exponent with the exponent, where λ = None counts as 1."""
    names = ("weight_decay_rate", "weight_decay_rate_lr_exponent")
    lam, power = (s[name] for name in names)
    lr = as_schedule(s["learning_rate"], "learning_rate")
    if power and is_zero(lam):
        raise ValueError(
            "`weight_decay_rate` must not be 0 with weight_decay_rate_lr_exponent: it then counts "
            "as 1. Pass 1.0 for what runs, or weight_decay_rate_lr_exponent=None for no decay."
        )
    height = (1.0 if power else 0.0) if lam is None else lam

    def strength(count: Any) -> Any:
        return height * (lr(count) ** power if power else 1.0)

    law = f"{height} · lr^{power}" if power else repr(height)
    meaning = f"wdjax.decay_weights({law}, rules={named_rules(rules)}): on the weights, last"
    return [decay(given(s, *names), height, meaning, decay_weights(strength, rules=rules))]


T5X_SCHEDULE: Settings = {
    "factors": "constant * linear_warmup * rsqrt_decay", "base_learning_rate": 0.5,
    "warmup_steps": 1000, "decay_factor": 0.5, "steps_per_decay": 20_000,
    "steps_per_cycle": 100_000, "min_learning_rate": 1e-8,
}  # fmt: skip
T5X: Mapping[str, Entry] = {
    "Adafactor": row(
        off(
            "For arrays of two axes, of layers that are not scanned, they change nothing: pass "
            "None.", factor_map=None, logical_factor_rules=None,
        ),
        off("Nothing here does that.", max_parameter_scale=None, skip_nan_updates=False),
        clipped("global_norm_clip_threshold"),
        with_schedule(
            t5x_schedule,
            ours(
                _t5x_adafactor, "optax.adafactor, in parts",
                "learning_rate", "factored", "multiply_by_parameter_scale", "beta1",
                "decay_rate", "step_offset", "clipping_threshold", "min_dim_size_to_factor",
                "epsilon1", "epsilon2", "dtype_momentum",
            ),
            _by_a_power,
        ),
        told(MADE, *T5X_SCHEDULE),
        learning_rate=None, factored=True, multiply_by_parameter_scale=True, beta1=None,
        decay_rate=0.8, step_offset=0, clipping_threshold=1.0, weight_decay_rate=None,
        min_dim_size_to_factor=128, epsilon1=1e-30, epsilon2=1e-3, dtype_momentum=jnp.float32,
        factor_map=None, logical_factor_rules=None, weight_decay_rate_lr_exponent=None,
        global_norm_clip_threshold=None, max_parameter_scale=None, skip_nan_updates=False,
        **T5X_SCHEDULE,
    ),
    # Optax's own, and t5x hands them no schedule: theirs is that of the constructor.
    **{name: OPTAX[name] for name in ("adamw", "lamb", "lars", "lion", "sgd")},
}  # fmt: skip
