"""Single trials: steps that a NaN skips, weights as they are, another rate."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wdjax.audit._compiled import Compiled
from wdjax.audit._machine import Machine, applied, caller
from wdjax.audit._probe import Probe, as_float64, dot, norm

_MOST_CALLS = 20_000  # that weights are given to move
_CALLS_TO_GROW = 64
_MOST_SIMULATED = 2**14  # calls
_MOST_WORK = 2**30  # numbers times calls


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


def grows(probe: Probe) -> list[bool]:
    """Tell which kinds get longer in a run without gradients, from weights of either sign."""
    found = []
    for sign in (1, -1):
        theta = [(sign * x).astype(x.dtype) for x in probe.theta]
        state = probe.machine.start(theta)
        for quiet in probe.quiet:
            ran = probe.machine.run(theta, quiet, state, calls=_CALLS_TO_GROW, moving=True)
            ends = zip(as_float64(ran.theta), as_float64(theta), theta, strict=True)
            found.append([dot(b, a) > (1 + _rounding(x.dtype)) * dot(a, a) for b, a, x in ends])
    return [all(each) for each in zip(*found, strict=True)]


def _rounding(dtype: Any) -> float:
    """Rounding of a sum over the calls."""
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return _CALLS_TO_GROW * float(jnp.finfo(dtype).eps) if inexact else 0.0  # type: ignore[no-untyped-call]


def may_swallow(dtype: Any, found: Any) -> bool:
    """Tell whether a change by this fraction may round away, and whether that can be tried."""
    share = found.taken if found.shrink is None else found.shrink
    if not share or not jnp.issubdtype(dtype, jnp.inexact):
        return False
    rounding = float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    return bool(rounding / _MOST_CALLS < share < rounding)


def swallowed(machine: Machine, findings: Sequence[Any]) -> list[bool]:
    """Tell of which kinds weights stay as they are: measured, θ + u = θ.

    Args:
        machine: on weights in their own dtypes.
        findings: for each kind, what its decay is without rounding.

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
        calls = min(_MOST_CALLS, math.ceil(2**-6 / share))
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


def ends(
    optimizer: Any, tree: Any, calls: int, extra: dict[str, Any], needs: frozenset[str]
) -> list[float | None] | str:
    """Return what is left of each leaf after a run without gradients, or why that is not known."""
    leaves = jax.tree.leaves(tree)
    if any(isinstance(x, jax.ShapeDtypeStruct | jax.core.Tracer) for x in leaves):
        return "pass arrays"
    if calls > _MOST_SIMULATED or sum(x.size for x in leaves) * calls > _MOST_WORK:
        return "this run is too long to try here"
    update, zeros = caller(optimizer, extra, needs), jax.tree.map(jnp.zeros_like, tree)

    def call(_: Any, carry: Any) -> Any:
        theta, state = carry
        updates, after = update(zeros, state, theta)
        after = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), after, state)
        return jax.tree.map(applied, theta, updates), after

    start = jax.tree.map(jnp.asarray, tree)
    (end, _) = jax.jit(lambda x: lax.fori_loop(0, calls, call, (x, optimizer.init(x))))(start)
    lengths = [map(norm, as_float64(jax.tree.leaves(each))) for each in (start, end)]
    return [b / a if a else None for a, b in zip(*lengths, strict=True)]
