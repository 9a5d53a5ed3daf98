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
_TINY = 1e-3  # gradients in place of zeros
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
        mean: ‖U(θ)‖ / ‖θ‖, of the mean over gradients of both signs.
        size: the same for gradients of one sign.
        finite: no NaN, no infinity.
    """

    fraction: float
    aside: float
    change: float
    odd: float
    pull: float
    even: float
    mean: float
    size: float
    finite: bool


def fraction(once: np.ndarray, twice: np.ndarray, theta: np.ndarray) -> float:
    """f = −⟨U(2θ) − U(θ), θ⟩ / ⟨θ, θ⟩."""
    length = _dot(theta, theta)
    return -_dot(twice - once, theta) / length if length else 0.0  # integers, empty leaves


def response(points: Points, theta: np.ndarray, size: float) -> Response:
    """Answer of one kind of leaf; `size` is ‖U(θ)‖."""
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
        mean=_norm(once) / length,
        size=size / length,
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
        quiet: gradients that stand for none: zeros, or, where these give NaN, tiny ones of both
            signs, over which the mean is taken.
        period: calls for a real step.
    """

    def __init__(self, machine: Machine, theta: Arrays | None = None) -> None:
        """Make stand-ins and start."""
        self.machine = machine
        self._draw = np.random.default_rng(0)
        self.theta = theta or [
            self._like(x, lambda n: self._draw.uniform(1, 2, n)) for x in machine.shapes
        ]
        self.quiet = [[jnp.zeros_like(x) for x in self.theta]]
        self.weights = [np.asarray(x, np.result_type(x.dtype, np.float64)) for x in self.theta]
        self.state = machine.start(self.theta)
        self.period = 1
        if not all(np.isfinite(u).all() for u in self.still(self.state)):
            tiny = [_TINY * g for g in self.noise()]
            self.quiet = [tiny, [-g for g in tiny]]

    def noise(self) -> Arrays:
        """Return new random gradients."""
        return [self._like(x, self._draw.standard_normal) for x in self.machine.shapes]

    def _like(self, shape: jax.ShapeDtypeStruct, values: Any) -> Any:
        if not jnp.issubdtype(shape.dtype, jnp.inexact):
            return jnp.zeros(shape.shape, shape.dtype)
        return jnp.asarray(values(shape.shape), shape.dtype)

    def summed(
        self, state: Any, grads: Arrays, scales: Any = 1.0, calls: int | None = None
    ) -> list[np.ndarray]:
        """Return U for each kind."""
        ran = self.machine.run(self.theta, grads, state, calls=calls or self.period, scales=scales)
        return as_float64(ran.total)

    def responses(
        self,
        state: Any,
        grads: Arrays | None = None,
        factor: Any = 1.0,
        *,
        settled: bool = False,
    ) -> list[Response]:
        """Answer of each kind from one state; with gradients, the mean over ±g.

        A part of the update that is odd in g, such as a step as long as the weights, drops out.
        `factor` is 1, or for each place at which weights enter 1 if it is to be scaled, else 0.
        """
        signs = self.quiet if grads is None else [grads, [-g for g in grads]]
        at = [1.0, 1.0 + factor, 1.0 - 2.0 * factor]
        sums = [[self.summed(state, g, scale) for g in signs] for scale in at]
        if settled:  # the state knows these weights already
            states = [
                self.machine.run(self.theta, signs[0], state, scales=x, pinned=True) for x in at
            ]
            sums = [
                [self.summed(ran.state, g, scale) for g in signs]
                for ran, scale in zip(states, at, strict=True)
            ]
        means = [[sum(x) / len(signs) for x in zip(*each, strict=True)] for each in sums]
        sizes = [max(_norm(u) for u in each) for each in zip(*sums[0], strict=True)]
        return [
            response(Points(*each), theta, size)
            for *each, theta, size in zip(*means, self.weights, sizes, strict=True)
        ]

    def still(self, state: Any, scales: Any = 1.0, calls: int | None = None) -> list[np.ndarray]:
        """Return U of each kind without gradients."""
        sums = [self.summed(state, g, scales, calls) for g in self.quiet]
        return [sum(x) / len(sums) for x in zip(*sums, strict=True)]

    def fractions(self, state: Any, calls: int | None = None) -> np.ndarray:
        """Return f of each kind at zero gradients."""
        once, twice = (self.still(state, s, calls) for s in (1.0, 2.0))
        each = zip(once, twice, self.weights, strict=True)
        return np.array([fraction(*points) for points in each])

    def sizes(self, state: Any) -> np.ndarray:
        """Return ‖U‖ / ‖θ‖ of each kind at zero gradients."""
        once = self.summed(state, self.quiet[0])
        return np.array(
            [_norm(u) / (_norm(w) or 1.0) for u, w in zip(once, self.weights, strict=True)]
        )

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
    plus, minus = (probe.still(state, s, calls=1) for s in (1.0, -1.0))
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
    memory = _memory(probe, state)
    slopes = probe.slopes(state, noise) if any(map(_answers, still)) else None
    seen = []
    for i, (z, r) in enumerate(zip(still, moving, strict=True)):
        slope = None if slopes is None else float(slopes[i])
        seen.append(_judge(z, r, slope, *memory[i]) if _answers(z) else _silent(z, r))
    if any(s.acts == "unknown" and not _answers(z) for s, z in zip(seen, still, strict=True)):
        again = probe.responses(state, noise, settled=True)  # lbfgs looks at how weights moved
        seen = [
            s if _answers(z) else _silent(z, r) for s, z, r in zip(seen, still, again, strict=True)
        ]
    if any(s.acts == "none" for s in seen):
        seen = _elsewhere(probe, state, seen)
    if any(s.acts == "gradient" and s.fraction is not None for s in seen):
        seen = _settled(probe, state, seen)
    return _by_places(probe, state, noise, seen)


def _answers(z: Response) -> bool:
    """Tell whether updates without gradients depend on the weights, rounding apart."""
    straight = z.change > 0 and not (z.change < 1e-6 and z.aside > 0.5)
    return not z.finite or straight or (z.pull * z.odd > 0 and abs(z.odd) > 1e-3 * z.size)


def _silent(z: Response, r: Response) -> Seen:
    """Judge a kind that does not move without gradients."""
    noise = 10 * _ROUNDING * (1 + r.size)
    depends = r.aside < 0.05 and abs(r.fraction) > noise and r.finite
    if depends or (r.pull * r.odd > 0 and abs(r.odd) > max(noise, 0.95 * r.mean)):
        return Seen("unknown", None, "its strength depends on the gradients", r.odd)
    return Seen("none", 0.0)


def _judge(z: Response, r: Response, slope: float | None, memory: float, changed: float) -> Seen:
    """Judge one kind by its answers at zero gradients, z, and at random ones, r."""
    if not z.finite:
        return Seen("unknown", None, "its update without a gradient is no number")
    if z.change <= _ALIKE * abs(z.odd):  # the length of the weights plays no part
        if memory == 0 and abs(z.odd - r.odd) <= 0.3 * abs(z.odd):
            return Seen("constant", None, "it takes off lengths, not fractions", z.odd)
        return Seen("gradient", None, "the optimizer normalises it", z.odd)
    noise = _ROUNDING * (1 + r.size)
    remembers = abs(memory) > 0.01 * noise + _ALIKE * abs(z.fraction)
    if z.aside > 0.01:
        if remembers:
            return Seen("gradient", None, "the optimizer normalises it", z.odd)
        return Seen("unknown", None, "its pull is not along the weights", z.odd)
    if abs(z.odd - z.fraction) > 0.01 * abs(z.fraction):
        if z.odd > z.fraction > 0:
            return Seen("constant", z.fraction, "a part of it takes off lengths", z.odd)
        return Seen("unknown", None, "its pull depends on the length of the weights", z.odd)
    same = abs(z.fraction - r.fraction) <= _ALIKE * abs(z.fraction) + noise
    if remembers and memory * z.fraction > 0:
        why = "" if same else "gradients change its strength"
        return Seen("gradient", z.fraction if same else None, why, z.odd)
    if not same:
        if 0.3 < r.fraction / z.fraction < 1.7 and r.aside < 0.5:
            return Seen("weights", z.fraction, pull=z.odd, gated=True)
        return Seen("gradient", None, "gradients change its strength", z.odd)
    if slope is not None and abs(slope - z.fraction) > 0.01 * abs(z.fraction) + noise:
        return Seen("unknown", None, "two ways to measure it disagree", z.odd)
    to_a_point = z.even > _ALIKE * abs(z.odd) and changed < 0.3 * z.even  # noise does not stay
    return Seen("point" if to_a_point else "weights", z.fraction, pull=z.odd)


def _elsewhere(probe: Probe, state: Any, seen: list[Seen]) -> list[Seen]:
    """Look also at much shorter and much longer weights."""
    why = "it acts only on weights that are much shorter or longer than most"
    here, short, long = (probe.still(state, scale) for scale in (1.0, 1e-2, 1e2))
    pulled = [
        any(-_dot(u - h, w) > 1e-6 * _norm(u - h) * _norm(w) > 0 for u in (a, b))
        for h, a, b, w in zip(here, short, long, probe.weights, strict=True)
    ]
    return [
        Seen("unknown", None, why) if s.acts == "none" and hit else s
        for s, hit in zip(seen, pulled, strict=True)
    ]


def _memory(probe: Probe, state: Any, factor: Any = 1.0) -> list[tuple[float, float]]:
    """How much a step at twice the weights adds to the pull of the next one; how much it changes.

    Of each kind: f of the next update by the weights of this one, and ‖U⁺(θ) − U(θ)‖ / ‖θ‖.
    """
    run = probe.machine.run
    after = [
        run(
            probe.theta,
            probe.quiet[0],
            state,
            calls=probe.period,
            scales=1.0 + s * factor,
            pinned=True,
        ).state
        for s in (0.0, 1.0)
    ]
    once, twice = (probe.still(x) for x in after)
    before = probe.still(state)
    return [
        (fraction(a, b, w), _norm(a - u) / (_norm(w) or 1.0))
        for u, a, b, w in zip(before, once, twice, probe.weights, strict=True)
    ]


def _settled(probe: Probe, state: Any, seen: list[Seen]) -> list[Seen]:
    """Hold the weights until momentum has settled, and measure then."""
    run = probe.machine.run
    ends = [(s, state) for s in (1.0, 2.0)]
    linear = [i for i, s in enumerate(seen) if s.acts == "gradient" and s.fraction is not None]
    before, calls = np.zeros(len(seen)), 16 * probe.period
    while True:
        ends = [
            (s, run(probe.theta, probe.quiet[0], x, calls=calls, scales=s, pinned=True).state)
            for s, x in ends
        ]
        once, twice = (probe.still(x, s) for s, x in ends)
        now = np.array([fraction(*x) for x in zip(once, twice, probe.weights, strict=True)])
        settled = (np.abs(now - before) <= 1e-8 * np.abs(now))[linear].all()
        if settled or calls >= _MOST_SETTLING:
            break
        before, calls = now, 2 * calls
    return [s._replace(fraction=float(now[i])) if i in linear else s for i, s in enumerate(seen)]


def _by_places(probe: Probe, state: Any, noise: Arrays, seen: list[Seen]) -> list[Seen]:
    """Look at each place at which weights enter by itself."""
    sites = probe.machine.sites
    if sites == 1:
        return seen
    each = [
        (
            probe.responses(state, None, one),
            probe.responses(state, noise, one),
            _memory(probe, state, one),
        )
        for one in np.eye(sites)
    ]
    return [
        _with_places(s, [(z[i], r[i], m[i][0]) for z, r, m in each]) for i, s in enumerate(seen)
    ]


def _with_places(seen: Seen, places: list[tuple[Response, Response, float]]) -> Seen:
    """Count the places; tell "both" from "gradient"."""
    if seen.acts not in ("weights", "gradient"):
        return seen
    direct, through = [], []
    for z, r, memory in places:
        if not (z.finite and _answers(z)):
            continue
        plain = z.aside < 0.01 and abs(z.fraction - r.fraction) <= 0.01 * abs(z.fraction)
        remembers = abs(memory) > 0.01 * abs(z.odd)
        (direct if plain and not remembers else through).append(z.fraction)
    if any(abs(f) > 0.5 for f in direct):  # c − θ: parts of one step
        return seen
    if seen.acts == "gradient" and direct and through:
        return seen._replace(acts="both", places=len(direct) + len(through))
    return seen._replace(places=max(1, len(direct)) if seen.acts == "weights" else 1)
