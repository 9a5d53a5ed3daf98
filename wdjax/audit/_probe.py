"""What a machine's steps do to weights: the fraction taken off, and how.

From one state, U(θ, g) is the sum of the updates of one real step (k calls) at held weights θ and
gradients g. With random and with zero gradients, at θ, at 2θ and at −θ:

    fraction    f = −⟨U(2θ) − U(θ), θ⟩ / ⟨θ, θ⟩
    aside         = ‖U(2θ) − U(θ) + f θ‖ / ‖U(2θ) − U(θ)‖
    odd           = (U(θ) − U(−θ)) / 2
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.audit._machine import Arrays, Compiled, Machine

_ROUNDING = 3e-7  # of a sum of updates, in float32
_ALIKE = 1e-3  # two measured fractions within this are one
_MOST_CALLS = 130  # looked at for a real step
_MOST_SETTLING = 2**14


class Points(NamedTuple):
    """U at θ, 2θ and −θ, of one kind of leaf, in float64."""

    once: np.ndarray
    twice: np.ndarray
    minus: np.ndarray


class Response(NamedTuple):
    """How the updates of one kind answer the weights, for one kind of gradients.

    Attributes:
        fraction: f.
        aside: the part of U(2θ) − U(θ) that is not along θ, 0 to 1.
        change: ‖U(2θ) − U(θ)‖ / ‖θ‖.
        odd: −⟨odd, θ⟩ / ⟨θ, θ⟩.
        pull: −⟨U(θ), θ⟩ / ⟨θ, θ⟩.
        even: ‖U(θ) + U(−θ)‖ / 2‖θ‖: what does not change sign with the weights.
        size: ‖U(θ)‖ / ‖θ‖.
        finite: no NaN, no infinity.
    """

    fraction: float
    aside: float
    change: float
    odd: float
    pull: float
    even: float
    size: float
    finite: bool


def fraction(once: np.ndarray, twice: np.ndarray, theta: np.ndarray) -> float:
    """f = −⟨U(2θ) − U(θ), θ⟩ / ⟨θ, θ⟩."""
    length = _dot(theta, theta)
    return -_dot(twice - once, theta) / length if length else 0.0  # integers, empty leaves


def response(points: Points, theta: np.ndarray) -> Response:
    """Answer of one kind of leaf."""
    once, twice, minus = points
    f = fraction(once, twice, theta)
    change, length = _norm(twice - once), _norm(theta) or 1.0
    odd = (once - minus) / 2
    return Response(
        fraction=f,
        aside=_norm(twice - once + f * theta) / change if change else 0.0,
        change=change / length,
        odd=-_dot(odd, theta) / length**2,
        pull=-_dot(once, theta) / length**2,
        even=_norm(once + minus) / 2 / length,
        size=_norm(once) / length,
        finite=bool(np.isfinite(once).all() and np.isfinite(twice).all()),
    )


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.real(np.vdot(a, b)))


def _norm(a: np.ndarray) -> float:
    return math.sqrt(_dot(a, a))


class Probe:
    """A machine with its stand-ins: weights in [1, 2], zero and random gradients.

    Attributes:
        machine: what is run.
        theta: weights, for each kind.
        zeros: gradients.
        period: calls for a real step.
    """

    def __init__(self, machine: Machine, theta: Arrays | None = None) -> None:
        """Make stand-ins and start."""
        self.machine = machine
        self._draw = np.random.default_rng(0)
        self.theta = theta or [self._like(x, lambda n: self._draw.uniform(1, 2, n)) for x in machine.shapes]
        self.zeros = [jnp.zeros_like(x) for x in self.theta]
        self.weights = [np.asarray(x, np.result_type(x.dtype, np.float64)) for x in self.theta]
        self.state = machine.start(self.theta)
        self.period = 1

    def noise(self) -> Arrays:
        """Return new random gradients."""
        return [self._like(x, self._draw.standard_normal) for x in self.machine.shapes]

    def _like(self, shape: jax.ShapeDtypeStruct, values: Any) -> Any:
        if not jnp.issubdtype(shape.dtype, jnp.inexact):
            return jnp.zeros(shape.shape, shape.dtype)
        return jnp.asarray(values(shape.shape), shape.dtype)

    def summed(self, state: Any, grads: Arrays, scales: Any = 1.0, calls: int | None = None) -> list[np.ndarray]:
        """Return U for each kind."""
        ran = self.machine.run(self.theta, grads, state, calls=calls or self.period, scales=scales)
        return as_float64(ran.total)

    def responses(self, state: Any, grads: Arrays | None = None, factor: Any = 1.0) -> list[Response]:
        """Answer of each kind from one state; with gradients, the mean over ±g.

        A part of the update that is odd in g, such as a step as long as the weights, drops out.
        `factor` is 1, or for each place at which weights enter 1 if it is to be scaled, else 0.
        """
        signs = [self.zeros] if grads is None else [grads, [-g for g in grads]]
        at = [1.0, 1.0 + factor, 1.0 - 2.0 * factor]
        sums = [[self.summed(state, g, scale) for g in signs] for scale in at]
        means = [[sum(x) / len(signs) for x in zip(*each, strict=True)] for each in sums]
        return [
            response(Points(*each), theta)
            for *each, theta in zip(*means, self.weights, strict=True)
        ]

    def fractions(self, state: Any, calls: int | None = None) -> np.ndarray:
        """Return f of each kind at zero gradients."""
        once, twice = (self.summed(state, self.zeros, s, calls) for s in (1.0, 2.0))
        each = zip(once, twice, self.weights, strict=True)
        return np.array([fraction(*points) for points in each])

    def sizes(self, state: Any) -> np.ndarray:
        """Return ‖U‖ / ‖θ‖ of each kind at zero gradients."""
        once = self.summed(state, self.zeros)
        return np.array([_norm(u) / (_norm(w) or 1.0) for u, w in zip(once, self.weights, strict=True)])

    def slopes(self, state: Any, grads: Arrays) -> np.ndarray | None:
        """Return f of each kind by automatic differentiation: independent of differences."""
        if not isinstance(self.machine, Compiled):
            return None
        try:
            both = [
                as_float64(self.machine.slope(self.theta, g, state, calls=self.period))
                for g in (grads, [-g for g in grads])
            ]
        except Exception:  # a primitive without a derivative
            return None
        return np.array(
            [
                fraction(np.zeros_like(theta), (a + b) / 2, theta)
                for a, b, theta in zip(*both, self.weights, strict=True)
            ]
        )


def as_float64(arrays: Arrays) -> list[np.ndarray]:
    """Return arrays for exact sums."""
    return [np.asarray(x, np.result_type(x.dtype, np.float64)) for x in jax.device_get(arrays)]


# Calls and real steps.


class Walk(NamedTuple):
    """Consecutive calls at held weights, (kinds, calls) each.

    Attributes:
        moved: gradients change the update.
        pulled: without gradients, the call moves weights one way and their opposites the other.
    """

    moved: np.ndarray
    pulled: np.ndarray

    @property
    def period(self) -> int:
        """Calls from one real step to the next, the longest of all kinds."""
        gaps = [int(np.diff(np.flatnonzero(row)).max(initial=0)) for row in self.moved]
        return max([1, *gaps])


def walk(probe: Probe, state: Any) -> Walk:
    """Call on until every kind has moved twice, or for long."""
    moved, pulled = [], []
    run = probe.machine.run
    for _ in range(_MOST_CALLS):
        grads = probe.noise()
        plus = run(probe.theta, grads, state)
        minus = run(probe.theta, [-g for g in grads], state)
        pairs = zip(as_float64(plus.total), as_float64(minus.total), strict=True)
        moved.append([bool((a != b).any()) for a, b in pairs])
        pulled.append(_pulled(probe, state))
        state = plus.state
        times = np.sum(moved, axis=0)
        if len(moved) >= 4 and ((times >= 2) | (times == 0)).all() and times.any():
            if len(moved) >= 4 * max(1, _longest_gap(moved)):
                break
    return Walk(np.array(moved).T, np.array(pulled).T)


def _pulled(probe: Probe, state: Any) -> list[bool]:
    plus, minus = (probe.summed(state, probe.zeros, s, calls=1) for s in (1.0, -1.0))
    return [
        abs(_dot(a - b, w)) > 1e-6 * _norm(a - b) * _norm(w) > 0
        for a, b, w in zip(plus, minus, probe.weights, strict=True)
    ]


def _longest_gap(moved: list[list[bool]]) -> int:
    rows = np.array(moved).T
    return max([1, *(int(np.diff(np.flatnonzero(row)).max(initial=0)) for row in rows)])


# Judging one kind at one state.


class Seen(NamedTuple):
    """What is seen of one kind of leaf at one state.

    Attributes:
        acts: how decay acts there.
        fraction: taken off in a real step; None where it is no number.
        why: why it is none, for people.
        pull: positive shrinks weights without gradients, negative grows them.
        places: at how many places decay enters.
        gated: only some entries decay at a time.
    """

    acts: str
    fraction: float | None
    why: str = ""
    pull: float = 0.0
    places: int = 1
    gated: bool = False


def judged(probe: Probe, state: Any) -> list[Seen]:
    """Say of each kind how decay acts from this state on."""
    noise = probe.noise()
    still, moving = probe.responses(state), probe.responses(state, noise)
    slopes = probe.slopes(state, noise)
    memory = _memory(probe, state)
    seen = []
    for i, (z, r) in enumerate(zip(still, moving, strict=True)):
        slope = None if slopes is None else float(slopes[i])
        seen.append(_judge(z, r, slope, float(memory[i])))
    if any(s.acts == "gradient" and s.fraction is not None for s in seen):
        seen = _settled(probe, state, seen)
    return _by_places(probe, state, noise, seen)


def _judge(z: Response, r: Response, slope: float | None, memory: float) -> Seen:
    """Judge one kind by its answers at zero gradients, z, and at random ones, r."""
    if not z.finite:
        return Seen("unknown", None, "its update without a gradient is no number")
    noise = _ROUNDING * (1 + r.size)
    if not _answers(z):
        return _without_pull(z, r, noise)
    same = abs(z.fraction - r.fraction) <= _ALIKE * abs(z.fraction) + noise
    if abs(z.odd) > 0 and z.change <= _ALIKE * abs(z.odd):  # the length of the weights plays no part
        if memory == 0 and abs(z.odd - r.odd) <= 0.05 * abs(z.odd):
            return Seen("constant", None, "it takes off lengths, not fractions", z.odd)
        return Seen("gradient", None, "the optimizer normalises it", z.odd)
    if z.aside > 0.01:
        return Seen("unknown", None, "its pull is not along the weights", z.odd)
    if abs(memory) > noise * 0.01 + 1e-3 * abs(z.fraction) and memory * z.fraction > 0:
        return Seen("gradient", z.fraction if same else None, "", z.odd)
    straight = abs(z.odd - z.fraction) <= 0.01 * abs(z.fraction)
    if not straight:
        if z.odd > z.fraction > 0:
            return Seen("constant", z.fraction, "a part of it takes off lengths", z.odd)
        return Seen("unknown", None, "its pull depends on the length of the weights", z.odd)
    if not same:
        gated = 0 < r.fraction < z.fraction and abs(r.fraction / z.fraction - 0.5) < 0.45
        if gated and r.aside > 0.3:
            return Seen("weights", z.fraction, pull=z.odd, gated=True)
        return Seen("gradient", None, "gradients change its strength", z.odd)
    if slope is not None and abs(slope - z.fraction) > 0.01 * abs(z.fraction) + noise:
        return Seen("unknown", None, "two ways to measure it disagree", z.odd)
    acts = "point" if z.even > _ALIKE * abs(z.odd) else "weights"
    return Seen(acts, z.fraction, pull=z.odd)


def _answers(z: Response) -> bool:
    """Tell whether updates without gradients depend on the weights."""
    straight = z.change > 0 and not (z.change < 1e-6 and z.aside > 0.5)
    return straight or abs(z.odd) > 1e-6 or (abs(z.odd) > 0 and z.even < z.size / 2)


def _without_pull(z: Response, r: Response, noise: float) -> Seen:
    if r.aside < 0.5 and abs(r.fraction) > 10 * noise:
        return Seen("unknown", None, "its strength depends on the gradients", r.fraction)
    return Seen("none", 0.0)


def _memory(probe: Probe, state: Any) -> np.ndarray:
    """How much a step at twice the weights adds to the pull of the next one."""
    run = probe.machine.run
    after = [
        run(probe.theta, probe.zeros, state, calls=probe.period, scales=s, pinned=True).state
        for s in (1.0, 2.0)
    ]
    once, twice = (probe.summed(x, probe.zeros) for x in after)
    return np.array([fraction(*x) for x in zip(once, twice, probe.weights, strict=True)])


def _settled(probe: Probe, state: Any, seen: list[Seen]) -> list[Seen]:
    """Hold the weights until momentum has settled, and measure then."""
    run = probe.machine.run
    ends = [(s, state) for s in (1.0, 2.0)]
    linear = [i for i, s in enumerate(seen) if s.acts == "gradient" and s.fraction is not None]
    before, calls = np.zeros(len(seen)), 16 * probe.period
    while True:
        ends = [
            (s, run(probe.theta, probe.zeros, x, calls=calls, scales=s, pinned=True).state)
            for s, x in ends
        ]
        once, twice = (probe.summed(x, probe.zeros, s) for s, x in ends)
        now = np.array([fraction(*x) for x in zip(once, twice, probe.weights, strict=True)])
        settled = (np.abs(now - before) <= 1e-8 * np.abs(now))[linear].all()
        if settled or calls >= _MOST_SETTLING:
            break
        before, calls = now, 2 * calls
    return [
        s._replace(fraction=float(now[i])) if i in linear else s for i, s in enumerate(seen)
    ]


def _by_places(probe: Probe, state: Any, noise: Arrays, seen: list[Seen]) -> list[Seen]:
    """Look at each place at which weights enter by itself."""
    sites = probe.machine.sites
    if sites == 1:
        return seen
    one = np.eye(sites)
    each = [(probe.responses(state, None, e), probe.responses(state, noise, e)) for e in one]
    return [
        _with_places(s, [(z[i], r[i]) for z, r in each]) for i, s in enumerate(seen)
    ]


def _with_places(seen: Seen, places: list[tuple[Response, Response]]) -> Seen:
    """Count the places; tell "both" from "gradient"."""
    if seen.acts not in ("weights", "gradient"):
        return seen
    direct = [
        z.fraction
        for z, r in places
        if z.finite
        and _answers(z)
        and z.aside < 0.01
        and abs(z.fraction - r.fraction) <= 0.01 * abs(z.fraction)
    ]
    normalised = [
        z.odd for z, r in places if z.finite and z.odd and z.change <= _ALIKE * abs(z.odd)
    ]
    if any(abs(f) > 0.5 for f in direct):  # c − θ: parts of one step
        return seen
    if seen.acts == "gradient" and seen.fraction is None and direct and normalised:
        return Seen("both", None, seen.why, seen.pull, len(direct) + len(normalised))
    return seen._replace(places=max(1, len(direct)))
