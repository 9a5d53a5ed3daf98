"""The tables: one row per penalty, law and transformation. A public method without a row fails."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import reference as ref

import wdjax
from wdjax import gates, penalties


class PenaltyCase(NamedTuple):
    penalty: penalties.Penalty
    prox: Callable  # float64 reference (z, s) -> array
    value: Callable | None = None  # (z) -> float
    gradient: Callable | None = None  # (z) -> array
    convex: bool = True


def total(function):
    return lambda z: float(np.sum(ref.each(function)(z)))


def elastic(r):
    return lambda z: r * abs(z) + (1 - r) * z * z / 2


PENALTIES = {
    "l2": PenaltyCase(
        penalties.l2,
        ref.each(lambda z, s: z / (1 + s)),
        total(lambda z: z * z / 2),
        ref.each(lambda z: z),
    ),
    "l1": PenaltyCase(penalties.l1, ref.each(ref.soft), total(abs), ref.each(ref.sign)),
    "elastic_net": PenaltyCase(
        penalties.elastic_net(0.3),
        ref.each(lambda z, s: ref.soft(z, 0.3 * s) / (1 + 0.7 * s)),
        total(elastic(0.3)),
        ref.each(lambda z: 0.3 * ref.sign(z) + 0.7 * z),
    ),
    "group_lasso": PenaltyCase(
        penalties.group_lasso(axes=0),
        ref.per_group(ref.group_prox, 0),
        lambda z: ref.group_value(z, 0),
        ref.per_group(ref.group_gradient, 0),
    ),
    "group_lasso, whole leaf": PenaltyCase(
        penalties.group_lasso(),
        ref.per_group(ref.group_prox, None),
        lambda z: ref.group_value(z, None),
        ref.per_group(ref.group_gradient, None),
    ),
    "huber": PenaltyCase(
        penalties.huber(0.4),
        ref.each(lambda z, s: ref.huber_prox(z, s, 0.4)),
        total(lambda z: ref.huber_value(z, 0.4)),
        ref.each(lambda z: ref.huber_gradient(z, 0.4)),
    ),
    "ball": PenaltyCase(
        penalties.ball(0.7, axes=-1),
        ref.per_group(lambda g, s: ref.ball_project(g, s, 0.7), -1),
    ),
    "sphere": PenaltyCase(
        penalties.sphere(0.7, axes=-1),
        ref.per_group(lambda g, s: ref.sphere_project(g, s, 0.7), -1),
        convex=False,
    ),
}


class LawCase(NamedTuple):
    law: Callable  # (weight_decay, learning_rate, peak) -> schedule
    reference: Callable  # the same three numbers -> s


LAWS = {
    "fixed": LawCase(lambda w, lr, peak: wdjax.fixed(w), lambda w, lr, peak: w),
    "lr_scaled": LawCase(lambda w, lr, peak: wdjax.lr_scaled(w, lr), lambda w, lr, peak: w * lr),
    "schedule_scaled": LawCase(wdjax.schedule_scaled, lambda w, lr, peak: w * lr / peak),
    "corrected": LawCase(wdjax.corrected, lambda w, lr, peak: w * lr**2 / peak),
    "lr_squared": LawCase(lambda w, lr, peak: wdjax.lr_squared(w, lr), lambda w, lr, p: w * lr**2),
}


class ScheduleCase(NamedTuple):
    build: Callable  # the arguments -> schedule
    arguments: tuple[float, ...]
    reference: Callable  # (t, the arguments) -> value


SCHEDULES = {
    "from_timescale": ScheduleCase(wdjax.from_timescale, (50.0,), lambda t, tau: 1 / tau),
    "from_half_life": ScheduleCase(wdjax.from_half_life, (50.0,), lambda t, h: 1 - 2 ** (-1 / h)),
    "target_rms": ScheduleCase(
        wdjax.target_rms, (0.01, 0.2), lambda t, lr, rms: lr**2 / (2 * rms**2)
    ),
    "inverse_sqrt": ScheduleCase(
        wdjax.inverse_sqrt, (0.1, 0.3), lambda t, eta, g: eta / (1 + g * g * t) ** 0.5
    ),
    "geometric": ScheduleCase(wdjax.geometric, (0.1, 0.05), lambda t, eta, r: eta * (1 - r) ** t),
    "per_epoch": ScheduleCase(
        lambda rate, n: wdjax.per_epoch(wdjax.geometric(0.1, rate), n),
        (0.5, 3),
        lambda t, rate, n: 0.1 * (1 - rate) ** (t // n),
    ),
}

ANCHOR = 0.25  # every entry of the anchor tree in the rows that have one


class TransformCase(NamedTuple):
    build: Callable  # (strength, **arguments such as rules) -> transformation
    reference: Callable  # (Δ, θ, s m, a) -> Δ⁺
    anchor: Any = None  # None, "init", or the number that fills the anchor tree
    verb: str = "decay_weights"


def _rows():
    for name, case in PENALTIES.items():
        yield (
            f"prox_weights {name}",
            TransformCase(
                lambda s, p=case.penalty, **kw: wdjax.prox_weights(s, p, **kw),
                ref.implicit(case.prox),
                verb="prox_weights",
            ),
        )
        if case.gradient is None:
            continue
        yield (
            f"decay_weights {name}",
            TransformCase(
                lambda s, p=case.penalty, **kw: wdjax.decay_weights(s, p, **kw),
                ref.explicit(case.gradient),
            ),
        )
        yield (
            f"add_decayed_weights {name}",
            TransformCase(
                lambda s, p=case.penalty, **kw: wdjax.add_decayed_weights(s, p, **kw),
                ref.coupled(case.gradient),
                verb="add_decayed_weights",
            ),
        )
    identity = ref.each(lambda z: z)
    yield (
        "decay_weights cautious",
        TransformCase(
            lambda s, **kw: wdjax.decay_weights(s, gate=gates.cautious, **kw),
            ref.explicit(identity, ref.cautious_gate),
        ),
    )
    for anchor in ("init", ANCHOR):
        yield (
            f"decay_weights anchor {anchor}",
            TransformCase(
                lambda s, **kw: wdjax.decay_weights(s, **kw), ref.explicit(identity), anchor
            ),
        )
        yield (
            f"prox_weights l1 anchor {anchor}",
            TransformCase(
                lambda s, **kw: wdjax.prox_weights(s, penalties.l1, **kw),
                ref.implicit(ref.each(ref.soft)),
                anchor,
                "prox_weights",
            ),
        )


TRANSFORMS = dict(_rows())
GATES = {"cautious": gates.cautious}
