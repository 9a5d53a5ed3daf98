"""Single trials: steps that a NaN skips, weights in their own narrow dtype, another rate."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from wdjax.audit._compiled import Compiled
from wdjax.audit._machine import Machine
from wdjax.audit._probe import Probe

_MOST_HALVED = 20_000  # calls that narrow weights are given to move


def skipped_steps(probe: Probe, state: Any) -> list[bool]:
    """Tell which kinds decay in a step in which one NaN keeps all gradients out."""
    noise = probe.noise()
    poisoned = [
        [_with_nan(g) if i == 0 else g for i, g in enumerate(gs)]
        for gs in (noise, [-g for g in noise])
    ]
    if noise[0].size < 2 and len(noise) == 1:
        return [False]
    plus, minus = (probe.summed(state, g) for g in poisoned)
    turned = probe.summed(state, poisoned[0], -1.0)
    whole = all(
        np.isfinite(a).all() and np.array_equal(a, b) for a, b in zip(plus, minus, strict=True)
    )
    return [
        whole and float(np.real(np.vdot(b - a, w))) > 0
        for a, b, w in zip(plus, turned, probe.weights, strict=True)
    ]


def _with_nan(grads: Any) -> Any:
    if not jnp.issubdtype(grads.dtype, jnp.inexact):
        return grads
    poisoned = grads.copy()
    poisoned.flat[:1] = np.nan
    return poisoned


def swallowed(machine: Machine, findings: Sequence[Any]) -> list[bool]:
    """Tell of which kinds narrow weights stay as they are: measured, θ + u = θ.

    Args:
        machine: on weights in their own dtypes.
        findings: for each kind, what its decay is in float32.

    Returns:
        True where no entry has moved after as many calls as a wide weight needs to move by 1/64.
    """
    probe = Probe(machine)
    found = []
    for kind, known in enumerate(findings):
        share = known.taken if known.shrink is None else known.shrink
        if share <= 0:
            found.append(False)
            continue
        calls = min(_MOST_HALVED, math.ceil(2**-6 / share))
        state = probe.machine.at(probe.state, known.step or 0)
        ran = machine.run(
            probe.theta,
            probe.quiet[0],
            probe.state if state is None else state,
            calls=calls,
            moving=True,
            pinned=True,
        )
        found.append(bool((ran.theta[kind] == probe.theta[kind]).all()))
    return found


def injected_laws(machine: Compiled) -> list[float] | None:
    """By how much f grows if an injected rate is doubled; None where nothing was injected."""
    if not machine.has_rate:
        return None
    probe = Probe(machine)
    twice = machine.with_rate(probe.state, 2.0)
    noise = probe.noise()
    steps = [probe.summed(state, noise) for state in (probe.state, twice)]
    if all(np.array_equal(a, b) for a, b in zip(*steps, strict=True)):
        return None  # a schedule sets it anew
    once, now = probe.fractions(probe.state), probe.fractions(twice)
    return [float(b / a) if a else math.nan for a, b in zip(once, now, strict=True)]
