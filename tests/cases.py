"""The tables: one row per penalty, law, schedule and gate. A public name without a row fails."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import reference as ref

import wdjax
from wdjax import gates, matrices, penalties


class PenaltyCase(NamedTuple):
    penalty: penalties.Penalty
    prox: Callable | None  # float64 reference (z, s) -> array
    value: Callable | None = None  # (z) -> float
    gradient: Callable | None = None  # (z) -> array
    convex: bool = True
    keeps_signs: bool = True  # the prox of an entry has the entry's sign, or is 0
    explicit: bool = True  # an explicit step is well-conditioned at every parameter


def total(function):
    return lambda z: float(np.sum(ref.each(function)(z)))


def elastic(r):
    return lambda z: r * abs(z) + (1 - r) * z * z / 2


def p_norm_case(p, floor):
    return PenaltyCase(
        penalties.p_norm(p, floor),
        ref.each(lambda z, s: ref.p_norm_prox(z, s, p, floor)),
        total(lambda z: ref.p_norm_value(z, p, floor)),
        ref.each(lambda z: ref.p_norm_gradient(z, p, floor)),
        convex=p >= 1,
    )


def concave_case(penalty, pieces):
    return PenaltyCase(
        penalty,
        ref.each(lambda z, s: ref.concave_prox(z, s, pieces)),
        total(lambda z: ref.concave_value(z, pieces)),
        ref.each(lambda z: ref.concave_gradient(z, pieces)),
        convex=False,
    )


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
    "cubic": PenaltyCase(
        penalties.cubic(axes=0),
        ref.per_group(lambda g, s: ref.cubic_prox(g, s, 0.0), 0),
        lambda z: sum(ref.cubic_value(group, 0.0) for group in z.T),
        ref.per_group(lambda g: ref.cubic_gradient(g, 0.0), 0),
    ),
    "cubic, whole leaf": PenaltyCase(
        penalties.cubic(least=0.6),
        ref.per_group(lambda g, s: ref.cubic_prox(g, s, 0.6), None),
        lambda z: ref.cubic_value(z, 0.6),
        ref.per_group(lambda g: ref.cubic_gradient(g, 0.6), None),
    ),
    "spread": PenaltyCase(
        penalties.spread(axes=0),
        ref.per_group(ref.spread_prox, 0),
        lambda z: sum(ref.spread_value(group) for group in z.T),
        ref.per_group(ref.spread_gradient, 0),
        keeps_signs=False,
    ),
    "spread, whole leaf": PenaltyCase(
        penalties.spread(),
        ref.per_group(ref.spread_prox, None),
        ref.spread_value,
        ref.per_group(ref.spread_gradient, None),
        keeps_signs=False,
    ),
    "p_norm 0.8": p_norm_case(0.8, 0.5),
    "p_norm 1.5": p_norm_case(1.5, 0.6),
    "l0": PenaltyCase(
        penalties.l0, ref.each(ref.l0_prox), lambda z: float(np.count_nonzero(z)), convex=False
    ),
    "l_half": PenaltyCase(
        penalties.l_half,
        ref.each(lambda z, s: ref.p_norm_prox(z, s, 0.5, 0.0)),
        total(lambda z: abs(z) ** 0.5),
        convex=False,
    ),
    "mcp": concave_case(penalties.mcp(1.3), ref.mcp_pieces(1.3)),
    "scad": concave_case(penalties.scad(0.4, a=3.7), ref.scad_pieces(0.4, 3.7)),
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


def over_matrices(function):
    return lambda z: float(np.sum(ref.per_matrix(lambda part: np.array(function(part)))(z)))


MATRICES = {
    "nuclear": PenaltyCase(
        matrices.nuclear,
        ref.per_matrix(ref.nuclear_prox),
        over_matrices(lambda z: np.linalg.norm(z, "nuc")),
        ref.per_matrix(ref.nuclear_gradient),
        keeps_signs=False,
        explicit=False,
    ),
    "spectral": PenaltyCase(
        matrices.spectral,
        ref.per_matrix(ref.spectral_prox),
        over_matrices(lambda z: np.linalg.norm(z, 2) ** 2 / 2),
        ref.per_matrix(ref.spectral_gradient),
        keeps_signs=False,
    ),
    "orthogonal": PenaltyCase(
        matrices.orthogonal,
        None,
        over_matrices(ref.orthogonal_value),
        ref.per_matrix(ref.orthogonal_gradient),
    ),
    "spectral_cap": PenaltyCase(
        matrices.spectral_cap(0.7),
        ref.per_matrix(lambda z, s: ref.cap_project(z, s, 0.7)),
        keeps_signs=False,
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


class GateCase(NamedTuple):
    gate: gates.Gate
    reference: Callable  # (z, Δ, g) -> array of z's shape
    needs_grad: bool = True


GATES = {
    "cautious": GateCase(
        gates.cautious, lambda z, update, grad: ref.cautious_gate(z, update), needs_grad=False
    ),
    "strictly_cautious": GateCase(
        gates.strictly_cautious,
        lambda z, update, grad: ref.strictly_cautious_gate(z, update),
        needs_grad=False,
    ),
    "descent": GateCase(
        gates.descent(axes=0),
        lambda z, update, grad: ref.per_group_pair(ref.descent_gate, 0)(z, grad),
    ),
    "cosine": GateCase(
        gates.cosine(delta=0.8, axes=0, factor=0.25),
        lambda z, update, grad: ref.per_group_pair(
            lambda a, b: ref.cosine_gate(a, b, 0.8, 0.25), 0
        )(z, grad),
    ),
    "touched_rows": GateCase(
        gates.touched_rows(),
        lambda z, update, grad: ref.per_group_pair(ref.touched_gate, -1)(z, grad),
    ),
}
