"""One row per radial method, with its float64 reference in NumPy; imports nothing of wdjax.

A reference takes one leaf through a whole run: (θ₀, [Δ], [g], m) -> [θ after each step], one group
at a time, in a loop.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

length = np.linalg.norm


def unit(x):
    return x / length(x) if length(x) > 0 else x * 0.0


def groups(leaf, axes):
    """The leaf as a matrix with one group per row, and the way back."""
    inside = range(leaf.ndim) if axes is None else {a % leaf.ndim for a in np.atleast_1d(axes)}
    order = [a for a in range(leaf.ndim) if a not in inside] + sorted(inside)
    moved = np.transpose(leaf, order)
    size = int(np.prod([leaf.shape[a] for a in inside]))

    def back(rows):
        return np.transpose(rows.reshape(moved.shape), np.argsort(order))

    return moved.reshape(-1, size), back


def per_group(axes, start, step):
    """Lift start(θ₀) -> memory and step(θ, Δ, memory, m, t) -> θ⁺ of one group to a run."""

    def run(theta, updates, grads, m):
        del grads
        rows, back = groups(theta, axes)
        memories = [start(row) for row in rows]
        path = []
        for t, update in enumerate(updates):
            moves, _ = groups(update, axes)
            rows = np.stack([step(*row, m, t) for row in zip(rows, moves, memories, strict=True)])
            path.append(back(rows))
        return path

    return run


def nothing(theta):
    return None


# One group's step, from the papers' formulas.


def norm_control(rate, ratio):
    def step(theta, update, target, m, t):
        if length(theta) == 0:
            return theta + update
        return theta + update - rate(t) * m * (1 - ratio(t) * target / length(theta)) * theta

    return step


def hyperball(eta):
    def step(theta, update, target, m, t):
        return target * unit(theta + eta(t) * m * target * unit(update))

    return step


def radial_brake(outward, inward):
    def step(theta, update, memory, m, t):
        candidate = theta + update
        change = length(candidate) - length(theta)
        s = outward if change > 0 else inward
        s = 1 - m * (1 - s)
        return candidate * (length(theta) + s * change) / length(candidate)

    return step


def project_radial(strength):
    def step(theta, update, memory, m, t):
        n = unit(theta)
        return theta + update - m * n * np.dot(n, update) - strength * m * theta

    return step


def update_floor(tau):
    def step(theta, update, memory, m, t):
        if length(update) == 0:
            return theta
        return theta + update * max(1.0, tau(t) * m * length(theta) / length(update))

    return step


def relative_update(eta):
    def step(theta, update, memory, m, t):
        return theta + eta(t) * m * length(theta) * unit(update)

    return step


class Rotation:
    """A neuron's memory: its radius and the mean square of its turns."""

    def __init__(self, theta, centered):
        self.centered = centered
        self.radius = length(self.center(theta))
        self.mean_square = 0.0

    def center(self, x):
        return x - x.mean() if self.centered else x


def rotational(eta, beta, eps):
    def step(theta, update, memory, m, t):
        theta, turn = memory.center(theta), memory.center(update)
        turn = turn - np.dot(theta, turn) / np.dot(theta, theta) * theta
        memory.mean_square = beta * memory.mean_square + (1 - beta) * np.dot(turn, turn)
        mean_square = memory.mean_square / (1 - beta ** (t + 1))
        theta = theta + eta(t) * m * memory.radius * turn / (np.sqrt(mean_square) + eps)
        return memory.radius * unit(theta)

    return step


def adamp(strength, delta, decay_ratio, views):
    """AdamP's projection and decay, as in the paper's Algorithm 2: one decision per leaf."""

    def run(theta, updates, grads, m):
        path = []
        for update, grad in zip(updates, grads, strict=True):
            move, ratio = update, 1.0
            for axes in views:
                rows, back = groups(theta, axes)
                g, u = groups(grad, axes)[0], groups(update, axes)[0]
                cosines = [abs(np.dot(unit(a), unit(b))) for a, b in zip(rows, g, strict=True)]
                if max(cosines) < delta / np.sqrt(rows.shape[1]):
                    flat = [
                        b - m * unit(a) * np.dot(unit(a), b) for a, b in zip(rows, u, strict=True)
                    ]
                    move, ratio = back(np.stack(flat)), decay_ratio
                    break
            theta = theta + move - strength * m * ratio * theta
            path.append(theta)
        return path

    return run


# The table.


class RadialCase(NamedTuple):
    method: str  # a function of wdjax.radial
    swept: str  # the argument that tests vary
    x: float  # and its value
    reference: Callable  # (x) -> run
    arguments: Mapping[str, Any] = types.MappingProxyType({})
    idle: float | None = None  # the x that changes nothing, where there is one


def steady(x):
    return lambda t: x


def growing(t):
    return 1 + 0.125 * t


def _norm_control(axes, radius=None):
    start = length if radius is None else lambda theta: radius
    return RadialCase(
        "norm_control",
        "rate",
        0.25,
        lambda x: per_group(axes, start, norm_control(steady(x), growing)),
        {"ratio": growing, "radius": radius, "axes": axes},
        idle=0.0,
    )


def _hyperball(axes, radius=None):
    start = length if radius is None else lambda theta: radius
    return RadialCase(
        "hyperball",
        "learning_rate",
        0.3,
        lambda x: per_group(axes, start, hyperball(steady(x))),
        {"radius": radius, "axes": axes},
    )


def _adamp(axes, also_whole, delta):
    views = [axes, None] if also_whole else [axes]
    return RadialCase(
        "project_radial",
        "strength",
        0.05,
        lambda x: adamp(x, delta, 0.1, views),
        {"cosine": delta, "decay_ratio": 0.1, "axes": axes, "also_whole": also_whole},
    )


def _rotational(axes, centered):
    return RadialCase(
        "rotational",
        "learning_rate",
        0.2,
        lambda x: per_group(
            axes, lambda theta: Rotation(theta, centered), rotational(steady(x), 0.8, 1e-8)
        ),
        {"axes": axes, "decay": 0.8, "centered": centered},
    )


RADIAL = {
    "norm_control": _norm_control(None),
    "norm_control, per neuron, given radius": _norm_control(-2, radius=1.5),
    "hyperball": _hyperball(None),
    "hyperball, per neuron": _hyperball(-2),
    "hyperball, per layer, given radius": _hyperball((-2, -1), radius=0.7),
    "radial_brake": RadialCase(
        "radial_brake",
        "outward",
        0.25,
        lambda x: per_group(-1, nothing, radial_brake(x, 0.75)),
        {"inward": 0.75, "axes": (-1,)},
    ),
    "project_radial": RadialCase(
        "project_radial",
        "strength",
        0.05,
        lambda x: per_group(-2, nothing, project_radial(x)),
        {"axes": -2},
    ),
    "project_radial, AdamP": _adamp(-2, also_whole=True, delta=1.6),
    "project_radial, AdamP, one view": _adamp(None, also_whole=False, delta=1.0),
    "update_floor": RadialCase(
        "update_floor",
        "ratio",
        0.5,
        lambda x: per_group(-2, nothing, update_floor(steady(x))),
        {"axes": -2},
        idle=0.0,
    ),
    "relative_update": RadialCase(
        "relative_update",
        "learning_rate",
        0.25,
        lambda x: per_group(None, nothing, relative_update(steady(x))),
    ),
    "rotational": _rotational(-2, centered=True),
    "rotational, whole leaf, not centered": _rotational(None, centered=False),
}
