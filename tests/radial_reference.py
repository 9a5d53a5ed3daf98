"""The radial methods: float64 references in NumPy, one group of weights at a time, in a loop."""

import itertools

import numpy as np
from reference import by_leaf

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
    """Lift start(θ₀) -> memory and step(x, m, θ, Δ, memory, t) -> θ⁺ of one group."""

    def of_leaf(initial):
        memories = [start(row) for row in groups(initial, axes)[0]]
        times = itertools.count()

        def leaf(x, m, theta, update, grad):
            rows, back = groups(theta, axes)
            triples = zip(rows, groups(update, axes)[0], memories, strict=True)
            t = next(times)
            return back(np.stack([step(x, m, *triple, t) for triple in triples])) - theta

        return leaf

    return by_leaf(of_leaf)


def nothing(theta):
    return None


# One group's step, from the papers' formulas; x is the number that a row varies.


def norm_control(ratio):
    def step(rate, m, theta, update, target, t):
        if length(theta) == 0:
            return theta + update
        return theta + update - rate * m * (1 - ratio(t) * target / length(theta)) * theta

    return step


def hyperball(eta, m, theta, update, target, t):
    return target * unit(theta + eta * m * target * unit(update))


def radial_brake(inward):
    def step(outward, m, theta, update, memory, t):
        candidate = theta + update
        change = length(candidate) - length(theta)
        s = outward if change > 0 else inward
        s = 1 - m * (1 - s)
        return candidate * (length(theta) + s * change) / length(candidate)

    return step


def project_radial(s, m, theta, update, memory, t):
    n = unit(theta)
    return theta + update - m * n * np.dot(n, update) - s * m * theta


def update_floor(tau, m, theta, update, memory, t):
    if length(update) == 0:
        return theta
    return theta + update * max(1.0, tau * m * length(theta) / length(update))


def relative_update(eta, m, theta, update, memory, t):
    return theta + eta * m * length(theta) * unit(update)


class Rotation:
    """A neuron's memory: its radius and the mean square of its turns."""

    def __init__(self, theta, centered):
        self.centered = centered
        self.radius = length(self.center(theta))
        self.mean_square = 0.0

    def center(self, x):
        return x - x.mean() if self.centered else x


def rotational(beta, eps):
    def step(eta, m, theta, update, memory, t):
        theta, turn = memory.center(theta), memory.center(update)
        turn = turn - np.dot(theta, turn) / np.dot(theta, theta) * theta
        memory.mean_square = beta * memory.mean_square + (1 - beta) * np.dot(turn, turn)
        mean_square = memory.mean_square / (1 - beta ** (t + 1))
        theta = theta + eta * m * memory.radius * turn / (np.sqrt(mean_square) + eps)
        return memory.radius * unit(theta)

    return step


def adamp(delta, decay_ratio, views):
    """AdamP's projection and decay, as in the paper's Algorithm 2: one decision per leaf."""

    def of_leaf(start):
        def step(s, m, theta, update, grad):
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
            return move - s * m * ratio * theta

        return step

    return by_leaf(of_leaf)
