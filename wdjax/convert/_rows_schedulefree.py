"""Rows of schedulefree: Optax has the same averaging around an optimizer without momentum."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from optax.contrib import schedule_free

from wdjax.convert._links import chain, changed, coupled, last, only, ours, rated
from wdjax.convert._pieces import Build, Piece, Settings, given, shown
from wdjax.convert._row import PAIR, Entry, row
from wdjax.rules import Rules
from wdjax.schedules import as_schedule


def _averaging(*links: Build) -> Build:
    """optax.contrib.schedule_free around the chain, whose decay then takes λη of y off z."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        b1 = s["momentum"] if "momentum" in s else s["betas"][0]
        s = {**s, "lr": as_schedule(s["lr"], "lr")}
        pieces = chain(*links)(s, rules)
        step = optax.chain(*(piece.link for piece in pieces if piece.link))
        before = lambda count: s["lr"](count - 1)  # Optax weighs a step by the rate after it
        whole = schedule_free(step, before, b1=b1, weight_lr_power=s["weight_lr_power"])
        meaning = (
            f"optax.contrib.schedule_free(all of this, b1={shown(b1)}): gradients and decay are of "
            "these weights; for evaluation see optax.contrib.schedule_free_eval_params"
        )
        around = Piece(given(s, "weight_lr_power"), meaning, whole)
        return [*(piece._replace(link=None) for piece in pieces), around]

    return link


def _warmed(*links: Build) -> Build:
    """The links at η · min(1, (t + 1) / `warmup_steps`)."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        steps = s["warmup_steps"]
        if not steps:
            return chain(*links)(s, rules)
        rising = lambda lr, n: lr(n) * jnp.minimum((jnp.asarray(n, float) + 1) / steps, 1.0)
        lr = changed(s["lr"], f"rising in {steps} steps", rising)
        return [*chain(*links)({**s, "lr": lr}, rules), Piece(given(s, "warmup_steps"), "in lr")]

    return link


def _rectified(*links: Build) -> Build:
    """The links at η · RAdam's rectification, which is 0 in the first steps."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        b2 = s["betas"][1]
        lr = changed(s["lr"], "rectified", lambda lr, n: lr(n) * _rectification(n + 1, b2))
        return chain(*links)({**s, "lr": lr}, rules)

    return link


def _rectification(t: Any, b2: float) -> Any:
    """√((ρ − 4)(ρ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρ)) where ρ > 4, else 0."""
    t, top = jnp.asarray(t, float), 2 / (1 - b2) - 1
    rho = top - 2 * t * b2**t / (1 - b2**t)
    share = (rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho)
    return jnp.where(rho > 4, jnp.sqrt(jnp.maximum(share, 0.0)), 0.0)


_without_momentum = ours(
    lambda b1, b2, eps: optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
    "g / (√v̂ + ε): β₁ is that of the average", "betas", "eps",
)  # fmt: skip
_flat = only("r", 0.0, "Optax weighs all steps of one rate alike.")
_COMMON: Settings = {"weight_decay": 0.0, "r": 0.0, "weight_lr_power": 2.0}
_ADAM: Settings = {"lr": 2.5e-3, **PAIR, **_COMMON}
SCHEDULEFREE: Mapping[str, Entry] = {
    "AdamWScheduleFree": row(
        _flat, _warmed(_averaging(_without_momentum, rated, last())), **_ADAM, warmup_steps=0
    ),
    "SGDScheduleFree": row(
        _flat, _warmed(_averaging(coupled, rated)),
        lr=1.0, momentum=0.9, **_COMMON, warmup_steps=0,
    ),
    "RAdamScheduleFree": row(
        _flat, only("silent_sgd_phase", True, "Nothing here takes those steps."),
        _rectified(_averaging(_without_momentum, rated, last())), **_ADAM, silent_sgd_phase=True,
    ),
}  # fmt: skip
