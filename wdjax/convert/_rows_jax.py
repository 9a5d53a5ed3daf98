"""Rows of projects in JAX, by the keys of their configurations; see `wdjax.convert._row`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from wdjax._trees.kinds import Kind
from wdjax._trees.paths import Leaf
from wdjax.convert._links import chain, in_the_dtypes, last, ours, part, rated, told, when
from wdjax.convert._pieces import Build, Piece, Settings
from wdjax.convert._row import REQUIRED, Entry, row
from wdjax.rules import Rules
from wdjax.schedules import Strength, lr_squared, schedule_scaled
from wdjax.transforms import EVERYTHING


def _clipped(name: str) -> Build:
    return when(name, part(optax.clip_by_global_norm, name))


_adam = part(optax.scale_by_adam, "b1", "b2", "eps", "eps_root", "mu_dtype")

MAXTEXT: Mapping[str, Entry] = {
    "adamw": row(
        _clipped("gradient_clipping_threshold"),
        part(
            optax.scale_by_adam, "adam_b1", "adam_b2", "adam_eps", "adam_eps_root", "mu_dtype"
        ),
        rated, last(),
        learning_rate=3e-5, adam_b1=0.9, adam_b2=0.95, adam_eps=1e-8, adam_eps_root=0.0,
        adam_weight_decay=0.1, mu_dtype=None, adamw_mask=(), gradient_clipping_threshold=1.0,
    ),
    "muon": "by default it decays everything but its matrices. Use wdjax.muonw, whose rules say "
    "what decays.",
}  # fmt: skip
MAXTEXT_NO_EQUAL: Mapping[str, str] = dict.fromkeys(
    ("learning_rate_schedule_steps", "warmup_steps_fraction",
     "cosine_learning_rate_final_fraction", "learning_rate_final_fraction", "steps"),
    "Give `learning_rate` the schedule, a function of the step.",
)  # fmt: skip

LEVANTER: Mapping[str, Entry] = {
    "adam": row(
        _clipped("max_grad_norm"), part(optax.scale_by_adam, "beta1", "beta2", "epsilon"),
        rated, last(),
        learning_rate=6e-4, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8,
        max_grad_norm=1.0,
    ),
}  # fmt: skip
LEVANTER_NO_EQUAL: Mapping[str, str] = {
    **dict.fromkeys(
        ("min_lr_ratio", "warmup", "warmup_ratio", "stable", "cooldown", "lr_schedule"),
        "Give `learning_rate` the schedule, a function of the step: config.lr_scheduler(steps).",
    ),
    "weight_decay_modules": "Say it in `rules`.",
    "default_weight_decay_mask": "Say it in `rules`.",
}


def _is_left_out(leaf: Leaf) -> bool:
    """By the class that holds the leaf, or where there is none by the path."""
    holders = [cls.__name__ for cls in leaf.types if cls.__module__.split(".")[0] != "builtins"]
    name = f"{holders[-1] if holders else ''}.{'.'.join(leaf.parts)}"
    return name.endswith("bias") or any(x in name for x in ("LayerNorm", "RMSNorm", "Embedding"))


LEVANTER_RULES: Rules = (
    (Kind("levanter: LayerNorm, RMSNorm, Embedding or bias", _is_left_out), 0.0),
    *EVERYTHING,
)

_BIG_VISION: Settings = {
    "lr": REQUIRED, "initial_lr": None, "wd": 0.0, "wd_mults": ((".*/kernel$", 1.0),),
    "grad_clip_norm": None,
}  # fmt: skip


def _big_vision(direction: Build, **defaults: Any) -> Entry:
    return row(
        _clipped("grad_clip_norm"), direction, rated, last(schedule_scaled),
        **defaults, **_BIG_VISION,
    )  # fmt: skip


BIG_VISION: Mapping[str, Entry] = {
    "scale_by_adam": _big_vision(_adam, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None),
    "scale_by_lion": _big_vision(
        part(optax.scale_by_lion, "b1", "b2", "mu_dtype"), b1=0.9, b2=0.99, mu_dtype=None
    ),
    "big_vision.scale_by_adafactor": "its own Adafactor has no equivalent here. Its decay alone is "
    "wdjax.decay_weights(wdjax.schedule_scaled(wd, lr, peak), "
    "rules=wdjax.like.big_vision(wd_mults=...)), last.",
}
BIG_VISION_NO_EQUAL: Mapping[str, str] = {
    "schedule": "Give `lr` the schedule times config.lr, and `initial_lr` config.lr itself.",
    "lr_mults": "They scale the step and not the decay, which no group here does.",
}


# EasyLM's configurations hold their schedule; a function in place of `lr` is taken as it is.


def _with_schedule(schedule: Any, *links: Build) -> Build:
    def link(s: Settings, rules: Rules) -> list[Piece]:
        return chain(*links)(s if callable(s["lr"]) else {**s, "lr": schedule(s)}, rules)

    return link


def _cosine(s: Settings) -> Strength:
    names = ("init_lr", "lr", "lr_warmup_steps", "lr_decay_steps", "end_lr")
    cosine: Strength = optax.warmup_cosine_decay_schedule(*(s[name] for name in names))
    return cosine


def _inverse_root(s: Settings) -> Strength:
    height, warm_up = s["lr"] / 0.01, s["lr_warmup_steps"]

    def inverse_root(count: Any) -> Any:
        return height / jnp.sqrt(jnp.maximum(jnp.asarray(count, float), warm_up))

    return inverse_root


def _palm(s: Settings, rules: Rules) -> list[Piece]:
    """optax.adafactor, and s = (λ / 1e-4) η²."""
    dtype = jnp.bfloat16 if s["bf16_momentum"] else jnp.float32

    def adafactor(b1: float, b2: float, lr: Any, _: bool) -> optax.GradientTransformation:
        step = optax.adafactor(
            lr, multiply_by_parameter_scale=True, momentum=b1, decay_rate=b2, factored=False,
            clipping_threshold=None, dtype_momentum=dtype,
        )  # fmt: skip
        return optax.chain(step, in_the_dtypes)

    step = ours(
        adafactor,
        "optax.adafactor(lr, momentum=b1, decay_rate=b2, factored=False, clipping_threshold=None)",
        "b1", "b2", "lr", "bf16_momentum",
    )  # fmt: skip
    (decays,) = last(lr_squared)({**s, "weight_decay": s["weight_decay"] / 1e-4}, rules)
    return [*step(s, rules), decays._replace(setting=f"weight_decay={s['weight_decay']}")]


_EASYLM: Settings = {
    "b1": 0.9, "clip_gradient": 1.0, "weight_decay": 1e-4, "bf16_momentum": False,
}  # fmt: skip
_RATE = "they make the schedule, unless `lr` is one"
EASYLM: Mapping[str, Entry] = {
    "adamw": row(
        _clipped("clip_gradient"),
        ours(
            lambda b1, b2, half: optax.scale_by_adam(
                b1, b2, mu_dtype=jnp.bfloat16 if half else None
            ),
            "optax.scale_by_adam", "b1", "b2", "bf16_momentum",
        ),
        _with_schedule(_cosine, rated, last()),
        told(_RATE, "init_lr", "end_lr", "lr_warmup_steps", "lr_decay_steps"),
        lr=0.01, init_lr=0.0, end_lr=1e-3, lr_warmup_steps=2_000, lr_decay_steps=500_000,
        **_EASYLM, b2=0.95,
    ),
    "palm": row(
        _clipped("clip_gradient"), _with_schedule(_inverse_root, _palm),
        told(_RATE, "lr_warmup_steps"),
        lr=0.01, lr_warmup_steps=10_000, **_EASYLM, b2=0.99,
    ),
}  # fmt: skip
T5X: Mapping[str, Entry] = {
    "Adafactor": "its own Adafactor has no equivalent here. Its decay alone is wdjax.fixed(λ), or "
    "wdjax.lr_squared(λ, lr) where weight_decay_rate_lr_exponent is 2; a λ of 0 or None "
    "then counts as 1.",
}
