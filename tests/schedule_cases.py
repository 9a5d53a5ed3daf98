"""Rows for schedules of the weight decay: formula and decay budget, in plain Python float64."""

import math
from collections.abc import Callable
from typing import NamedTuple

from scipy.special import digamma

import wdjax


class BudgetCase(NamedTuple):
    build: Callable  # the arguments -> schedule
    arguments: tuple[float, ...]
    reference: Callable  # (t, the arguments) -> value
    budget: Callable  # (T, the arguments) -> Σ_{t<T} value, in closed form


def linear(t, start, end, n):
    return end if t >= n else start + (end - start) * t / n


def cosine(t, start, end, n):
    """DINO's line, held at the end as Megatron does."""
    return end + (start - end) * (1 + math.cos(math.pi * min(t, n) / n)) / 2


def ramp_budget(T, start, end, n):
    on_the_way = min(T, n)
    assert on_the_way == n, "the closed form is for whole ramps"
    return start * (n + 1) / 2 + end * (n - 1) / 2 + end * (T - n)


def warmed(t, value, n):
    return value * min(t, n) / n


SCHEDULES = {
    "linear_ramp": BudgetCase(wdjax.schedules.linear_ramp, (0.04, 0.4, 20), linear, ramp_budget),
    "cosine_ramp": BudgetCase(wdjax.schedules.cosine_ramp, (0.04, 0.4, 20), cosine, ramp_budget),
    "log_time": BudgetCase(
        wdjax.schedules.log_time,
        (0.4, 30.0),
        lambda t, start, scale: start / (1 + t / scale),
        lambda T, start, scale: start * scale * (digamma(T + scale) - digamma(scale)),
    ),
    "warmed_up": BudgetCase(
        wdjax.schedules.warmed_up,
        (0.3, 8),
        warmed,
        lambda T, value, n: value * (n - 1) / 2 + value * (T - n),
    ),
    "delayed": BudgetCase(
        wdjax.schedules.delayed,
        (0.3, 8),
        lambda t, s, n: s if t >= n else 0.0,
        lambda T, s, n: s * (T - n),
    ),
    "periodic": BudgetCase(
        wdjax.schedules.periodic,
        (0.1, 4),
        lambda t, s, k: 1 - (1 - s) ** k if t % k == k - 1 else 0.0,
        lambda T, s, k: (T // k) * (1 - (1 - s) ** k),
    ),
}
