"""Which way weights are pulled without gradients, and how far: of any kind of decay.

    pull(s) = −⟨U(sθ) − U(−sθ), θ⟩ / 2 ⟨θ, θ⟩

for ordinary weights (s = 1), and for long and short ones, which some penalties pull alone. Of the
way to a point of rest c, U(θ) = x (c − θ), a step takes

    x = ⟨U(θ) − U(θ + U(θ)), U(θ)⟩ / ⟨U(θ), U(θ)⟩
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from wdjax.audit._probe import Probe, Response, dot, norm

_SCALES = (1e2, 1.0, 1e-2)  # a method that keeps a length pulls long weights inward
_ROUNDING = 1e-6  # of a sum of weights and their update
_ALONG = 0.998  # the cosine of two pulls along one line; that of L1 and L2 is 0.98 here


class Pull(NamedTuple):
    """How one kind of leaf is pulled.

    Attributes:
        sign: 1 inward, −1 outward, 0 not at all; by the longest weights that are pulled.
        taken: pull(1), the share of ordinary weights that a step takes off.
        way: the share of their way to where they are pulled that a step takes; more than 1 goes
            past it.
    """

    sign: int
    taken: float
    way: float


def pulls(probe: Probe, state: Any) -> list[Pull]:
    """Look at long, ordinary and short weights, and at those of the other sign."""
    of_scale = {
        s: [
            -dot(there - back, w) / 2 / (dot(w, w) or 1.0)
            for there, back, w in zip(
                probe.still(state, s), probe.still(state, -s), probe.weights, strict=True
            )
        ]
        for s in _SCALES
    }
    steps = probe.still(state)
    after = probe.still(
        state, theta=[x + u.astype(x.dtype) for x, u in zip(probe.theta, steps, strict=True)]
    )
    found = []
    for kind in range(len(probe.weights)):
        each = [(s, of_scale[s][kind]) for s in _SCALES]
        felt = (pull for s, pull in each if abs(pull) > _ROUNDING * s)
        first = next(felt, 0.0)
        u, w = steps[kind], probe.weights[kind]
        is_moved = dot(u, u) > _ROUNDING**2 * dot(w, w)
        way = dot(u - after[kind], u) / dot(u, u) if is_moved else 0.0
        found.append(Pull((first > 0) - (first < 0), of_scale[1.0][kind], way))
    return found


def decays_in(pulls: Sequence[float]) -> int:
    """Count decays by the pulls of their parts.

    A proximal step takes all of θ off and gives nearly all of it back: what pulls the other way
    belongs to the part that is nearest to it, and what is left of both is one decay, or none.

    Example:
        >>> decays_in([1.0, -0.99]), decays_in([0.01, 0.01]), decays_in([1.0, -0.99, 0.01])
        (1, 2, 2)
    """
    return len(_nets([np.array([pull]) for pull in pulls]))


def same_in(parts: Sequence[Response]) -> int:
    """Count how often pulls act along one line: L1 beside L2 is no decay twice, L1 beside L1 is."""
    each = np.array([[z.odd, *z.turn] for z in parts])
    nets = _nets(list(each)) if np.isfinite(each).all() else []

    def alike(one: np.ndarray) -> int:
        return sum(dot(one, net) > _ALONG * norm(one) * norm(net) for net in nets)

    return max(map(alike, nets), default=0)


def _nets(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What is left of parts that give back; the first number of each is its pull."""
    outward = sum(part[0] for part in parts) < 0
    parts = [-part for part in parts] if outward else list(parts)
    inward = [part for part in parts if part[0] > 0]
    for back in sorted((-part for part in parts if part[0] < 0), key=lambda part: part[0]):
        if inward:
            distances = [abs(part[0] - back[0]) for part in inward]
            nearest = inward.pop(int(np.argmin(distances)))
            if nearest[0] - back[0] > _ROUNDING * nearest[0]:
                inward.append(nearest - back)
    return inward
