"""Rows of MaxText, Levanter and big_vision, by the entries of their configurations."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from wdjax._trees.kinds import Kind
from wdjax._trees.paths import Leaf
from wdjax.convert._adafactor import capped
from wdjax.convert._configs import (
    MADE,
    big_vision_schedule,
    clipped,
    levanter_schedule,
    maxtext_schedule,
    with_schedule,
)
from wdjax.convert._links import (
    chain,
    last,
    off,
    only,
    ours,
    part,
    rated,
    told,
    unless,
    when,
)
from wdjax.convert._pieces import Build, Piece, Settings
from wdjax.convert._row import REQUIRED, Entry, row
from wdjax.rules import EVERYTHING, Rules
from wdjax.schedules import corrected, schedule_scaled

_adam = part(optax.scale_by_adam, "b1", "b2", "eps", "eps_root", "mu_dtype")


# MaxText.


def _maxtext_adam(s: Settings, rules: Rules) -> list[Piece]:
    """Adam whose first moment has `mu_dtype`; "" is the dtype of the weights."""
    names = ("adam_b1", "adam_b2", "adam_eps", "adam_eps_root", "mu_dtype")
    return part(optax.scale_by_adam, *names)({**s, "mu_dtype": s["mu_dtype"] or None}, rules)


_SCHEDULE: Settings = {
    "steps": 150_001, "learning_rate_schedule_steps": -1, "lr_schedule_type": "cosine",
    "warmup_steps_fraction": 0.1, "learning_rate_final_fraction": 0.1,
    "wsd_decay_steps_fraction": 0.1, "wsd_decay_style": "linear",
}  # fmt: skip
_maxtext = row(
    off("Nothing here skips a step.", skip_step_on_spikes=False),
    clipped("gradient_clipping_threshold"), _maxtext_adam,
    with_schedule(maxtext_schedule, rated, last()), told(MADE, *_SCHEDULE),
    learning_rate=3e-5, adam_b1=0.9, adam_b2=0.95, adam_eps=1e-8, adam_eps_root=0.0,
    adam_weight_decay=0.1, mu_dtype="", adamw_mask=(),
    gradient_clipping_threshold=1.0, skip_step_on_spikes=False, **_SCHEDULE,
)  # fmt: skip
MAXTEXT: Mapping[str, Entry] = {
    "adamw": _maxtext,
    "adam_pax": _maxtext,
    "sgd": "it has no weight decay. Write optax.sgd.",
    "muon": "by default it decays everything but its matrices. Use wdjax.muonw, whose rules say "
    "what decays.",
}


# Levanter.

_LEVANTER: Settings = {
    "learning_rate": 6e-4, "weight_decay": 0.1, "max_grad_norm": 1.0,
    "num_train_steps": None, "min_lr_ratio": 0.1, "warmup": 0.01, "decay": None,
    "lr_schedule": "cosine",
    "rewarmup": 0.0, "cooldown": None, "cycle_length": None, "cycles": None, "haps": None,
    "weight_decay_modules": None, "default_weight_decay_mask": None,
}  # fmt: skip
_levanter_limits = chain(
    off(
        "Give `learning_rate` the schedule: config.lr_scheduler(num_train_steps).",
        rewarmup=0.0, cooldown=None, cycle_length=None, cycles=None, haps=None,
    ),
    only("weight_decay_modules", None, "Say it in `rules`."),
    clipped("max_grad_norm"),
)  # fmt: skip
_levanter_schedule = told(MADE, "num_train_steps", "min_lr_ratio", "warmup", "decay", "lr_schedule")


def _corrected_by_the_peak(s: Settings, rules: Rules) -> list[Piece]:
    """AdamC's decay, with the peak of the schedule as the initial rate."""
    return last(corrected)({**s, "initial_lr": s["max_lr"]}, rules)


def _with_its_peak(*links: Build) -> Build:
    """The links at the schedule, whose peak they get as `max_lr`."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        lr = s["learning_rate"]
        if s["adamc_weight_decay"] and callable(lr):
            raise ValueError(
                "`learning_rate` must be a number with adamc_weight_decay: its decay is divided "
                "by that peak."
            )
        return with_schedule(levanter_schedule, *links)({**s, "max_lr": lr}, rules)

    return link


LEVANTER: Mapping[str, Entry] = {
    "adam": row(
        off(
            "Nothing here does that to the update.",
            update_rms_clipping=None, clip_update_norm=None, skip_bad_steps=False,
        ),
        _levanter_limits,
        ours(
            lambda b1, b2, eps, nesterov: optax.scale_by_adam(b1, b2, eps, nesterov=nesterov),
            "optax.scale_by_adam", "beta1", "beta2", "epsilon", "nesterov",
        ),
        _with_its_peak(
            rated, unless("adamc_weight_decay", last()),
            when("adamc_weight_decay", _corrected_by_the_peak),
        ),
        _levanter_schedule,
        **_LEVANTER, beta1=0.9, beta2=0.95, epsilon=1e-8, nesterov=False,
        update_rms_clipping=None, clip_update_norm=None, skip_bad_steps=False,
        adamc_weight_decay=False,
    ),
    "lion": row(
        _levanter_limits, part(optax.scale_by_lion, "beta1", "beta2"),
        with_schedule(levanter_schedule, rated, last()), _levanter_schedule,
        told("nothing: Lion has no ε", "epsilon"),
        **_LEVANTER, beta1=0.9, beta2=0.95, epsilon=1e-8,
    ),
    **dict.fromkeys(
        ("adopt", "cautious", "kron", "mars", "mini", "muon", "rmsprop", "scion", "soap",
         "sophia-h"),
        "its update rule is Levanter's own. Its decay alone is "
        "wdjax.decay_weights(wdjax.lr_scaled(λ, schedule)), last.",
    ),
}  # fmt: skip


def _is_left_out(leaf: Leaf) -> bool:
    """By the class that holds the leaf, or where there is none by the path."""
    holders = [cls.__name__ for cls in leaf.types if cls.__module__.split(".")[0] != "builtins"]
    name = f"{holders[-1] if holders else ''}.{'.'.join(leaf.parts)}"
    left_out = ("LayerNorm", "RMSNorm", "RmsNorm", "Embedding")
    return name.endswith("bias") or any(x in name for x in left_out)


_LEVANTER_RULES: Rules = (
    (Kind("levanter: LayerNorm, RMSNorm, Embedding or bias", _is_left_out), 0.0),
    *EVERYTHING,
)


def levanter_rules(default_weight_decay_mask: Any = None) -> Rules:
    """What Levanter decays: its default, unless that is switched off."""
    return EVERYTHING if default_weight_decay_mask is False else _LEVANTER_RULES


# big_vision.

_BIG_VISION: Settings = {
    "lr": REQUIRED, "initial_lr": None, "wd": 0.0, "wd_mults": ((".*/kernel$", 1.0),),
    "grad_clip_norm": None, "schedule": {}, "total_steps": None, "lr_mults": None,
    "grad_clip_per_example": None,
}  # fmt: skip


def _one_schedule(s: Settings, rules: Rules) -> list[Piece]:
    if isinstance(s["schedule"], list | tuple):
        raise ValueError(
            "`schedule` must be that of all parameters. Give `lr` the schedule times config.lr, "
            "`initial_lr` config.lr itself, and freeze with optax.partition what has None."
        )
    return []


def _big_vision(direction: Build, **defaults: Any) -> Entry:
    return row(
        _one_schedule,
        off("They scale the step and not the decay, which no group here does.", lr_mults=None),
        off("Clip with optax, before the optimizer.", grad_clip_per_example=None),
        clipped("grad_clip_norm"), direction,
        with_schedule(big_vision_schedule, rated, last(schedule_scaled)),
        told(MADE, "schedule", "total_steps"), **defaults, **_BIG_VISION,
    )  # fmt: skip


BIG_VISION: Mapping[str, Entry] = {
    "scale_by_adam": _big_vision(_adam, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None),
    "scale_by_lion": _big_vision(
        part(optax.scale_by_lion, "b1", "b2", "mu_dtype"), b1=0.9, b2=0.99, mu_dtype=None
    ),
    "big_vision.scale_by_adafactor": _big_vision(
        ours(
            capped,
            "optax.scale_by_factored_rms with a β₂ of at most `beta2_cap`, and an average",
            "min_dim_size_to_factor", "decay_rate", "decay_offset", "beta2_cap",
            "clipping_threshold", "momentum", "dtype_momentum", "eps",
        ),
        min_dim_size_to_factor=32, decay_rate=0.8, decay_offset=0, beta2_cap=0.999,
        clipping_threshold=None, momentum=0.9, dtype_momentum=jnp.bfloat16, eps=1e-30,
    ),
    "big_vision.momentum_hp": _big_vision(
        part(optax.trace, "momentum", "nesterov", "dtype"),
        momentum=0.9, dtype=jnp.bfloat16, nesterov=False,
    ),
    "big_vision.sgd": _big_vision(chain()),
}  # fmt: skip
