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

from wdjax.audit._compiled import Compiled
from wdjax.audit._machine import Arrays, Machine

_TINY = 1e-3  # gradients in place of zeros
_MOST_CALLS = 130  # looked at for a real step


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
        turn: what of U(θ) changes sign with the weights, as a list of numbers.
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
    turn: np.ndarray
    pull: float
    even: float
    mean: float
    size: float
    finite: bool


def fraction(once: np.ndarray, twice: np.ndarray, theta: np.ndarray) -> float:
    """Return f = −⟨U(2θ) − U(θ), θ⟩ / ⟨θ, θ⟩."""
    length = dot(theta, theta)
    return -dot(twice - once, theta) / length if length else 0.0  # integers, empty leaves


def response(points: Points, theta: np.ndarray, size: float) -> Response:
    """Answer of one kind of leaf; `size` is ‖U(θ)‖."""
    once, twice, minus = points
    f = fraction(once, twice, theta)
    change, length = norm(twice - once), norm(theta) or 1.0
    odd = (once - minus) / 2
    return Response(
        fraction=f,
        aside=norm(twice - once + f * theta) / change if change else 0.0,
        change=change / length,
        odd=-dot(odd, theta) / length**2,
        turn=odd.ravel(),
        pull=-dot(once, theta) / length**2,
        even=norm(once + minus) / 2 / length,
        mean=norm(once) / length,
        size=size / length,
        finite=bool(np.isfinite(once).all() and np.isfinite(twice).all()),
    )


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Return ⟨a, b⟩."""
    return float(np.real(np.vdot(a, b)))


def norm(a: np.ndarray) -> float:
    """Return ‖a‖."""
    return math.sqrt(dot(a, a))


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
        self.quiet = [[np.zeros_like(x) for x in self.theta]]
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
            return np.zeros(shape.shape, shape.dtype)
        return np.asarray(values(shape.shape)).astype(shape.dtype)  # NumPy's: nothing to compile

    def summed(
        self,
        state: Any,
        grads: Arrays,
        scales: Any = 1.0,
        calls: int | None = None,
        theta: Arrays | None = None,
    ) -> list[np.ndarray]:
        """Return U for each kind."""
        at = self.theta if theta is None else theta
        ran = self.machine.run(at, grads, state, calls=calls or self.period, scales=scales)
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
        means: list[Any] = [[sum(x) / len(signs) for x in zip(*each, strict=True)] for each in sums]
        sizes = [max(norm(u) for u in each) for each in zip(*sums[0], strict=True)]
        return [
            response(Points(*each), theta, size)
            for *each, theta, size in zip(*means, self.weights, sizes, strict=True)
        ]

    def still(
        self,
        state: Any,
        scales: Any = 1.0,
        calls: int | None = None,
        theta: Arrays | None = None,
    ) -> list[np.ndarray]:
        """Return U of each kind without gradients."""
        sums = [self.summed(state, g, scales, calls, theta) for g in self.quiet]
        means: list[np.ndarray] = [np.mean(x, axis=0) for x in zip(*sums, strict=True)]
        return means

    def fractions(self, state: Any, calls: int | None = None) -> np.ndarray:
        """Return f of each kind at zero gradients."""
        once, twice = (self.still(state, s, calls) for s in (1.0, 2.0))
        each = zip(once, twice, self.weights, strict=True)
        return np.array([fraction(*points) for points in each])

    def along(self, state: Any) -> list[Response]:
        """Answer of each kind without gradients alone."""
        points = [self.still(state, s) for s in (1.0, 2.0, -1.0)]
        return [
            response(Points(*each), w, norm(each[0]))
            for *each, w in zip(*points, self.weights, strict=True)
        ]

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
        return longest_gap(self.moved)


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
        twice = times.any() and ((times >= 2) | (times == 0)).all()
        if twice and len(moved) >= 4 * longest_gap(np.array(moved).T):
            break
    return Walk(np.array(moved).T, np.array(pulled).T)


def _pulled(probe: Probe, state: Any) -> list[bool]:
    plus, minus = (probe.still(state, s, calls=1) for s in (1.0, -1.0))
    return [
        abs(dot(a - b, w)) > 1e-6 * norm(a - b) * norm(w) > 0
        for a, b, w in zip(plus, minus, probe.weights, strict=True)
    ]


def longest_gap(moved: np.ndarray) -> int:
    """Calls from one that moves to the next, at most, of (kinds, calls)."""
    return max([1, *(int(np.diff(np.flatnonzero(row)).max(initial=0)) for row in moved)])
