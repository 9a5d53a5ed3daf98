"""Independent float64 references in NumPy, written from the formulas; imports nothing of wdjax."""

import numpy as np


def norm(z, axis=None):
    return np.sqrt(np.sum(z * z, axis=axis, keepdims=True))


def divided(a, b):
    """a / b, and 0 where b is 0."""
    return np.divide(
        a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=b != 0
    )


# Penalties, one entry at a time: plain Python, so that no vectorisation mistake is shared.


def soft(z, s):
    if z > s:
        return z - s
    if z < -s:
        return z + s
    return 0.0


def sign(z):
    return (z > 0) - (z < 0)


def huber_value(z, delta):
    return z * z / 2 if abs(z) <= delta else delta * abs(z) - delta * delta / 2


def huber_gradient(z, delta):
    return max(-delta, min(delta, z))


def huber_prox(z, s, delta):
    """Solve x + s clip(x, −δ, δ) = z."""
    if abs(z) <= delta * (1 + s):
        return z / (1 + s)
    return z - s * delta * sign(z)


def each(function):
    """Lift a scalar function to float64 arrays."""
    return lambda z, *args: np.array(
        [function(float(entry), *args) for entry in np.ravel(z)], np.float64
    ).reshape(np.shape(z))


# Groups and constraints: written per group, in a loop.


def per_group(function, axis):
    """Apply a function of one group's vector to every group; `axis` runs inside a group."""

    def apply(z, *args):
        if axis is None:
            return function(z.ravel(), *args).reshape(z.shape)
        moved = np.moveaxis(z, axis, -1)
        flat = moved.reshape(-1, moved.shape[-1])
        out = np.stack([function(group, *args) for group in flat])
        return np.moveaxis(out.reshape(moved.shape), -1, axis)

    return apply


def group_prox(group, s):
    size = np.linalg.norm(group)
    return group * 0 if size <= s else group * (1 - s / size)


def group_gradient(group):
    size = np.linalg.norm(group)
    return group * 0 if size == 0 else group / size


def group_value(z, axis):
    groups = (
        z.ravel()[None] if axis is None else np.moveaxis(z, axis, -1).reshape(-1, z.shape[axis])
    )
    return sum(np.linalg.norm(group) for group in groups)


def ball_project(group, s, radius):
    size = np.linalg.norm(group)
    return group if s == 0 or size <= radius else group * (radius / size)


def sphere_project(group, s, radius):
    size = np.linalg.norm(group)
    return group if s == 0 or size == 0 else group * (radius / size)


# One step of each transformation on one leaf: (Δ, θ, s m, a) -> Δ⁺.


def coupled(gradient):
    return lambda update, param, s, anchor: update + s * gradient(param)


def explicit(gradient, gate=lambda z, update: 1.0):
    def step(update, param, s, anchor):
        z = param - anchor
        return update - s * gate(z, update) * gradient(z)

    return step


def implicit(prox):
    return lambda update, param, s, anchor: anchor + prox(param + update - anchor, s) - param


def cautious_gate(z, update):
    """1 where the update does not point away from the anchor."""
    return each_pair(lambda a, b: 1.0 if sign(a) * sign(b) <= 0 else 0.0, z, update)


def each_pair(function, a, b):
    pairs = zip(np.ravel(a), np.ravel(b), strict=True)
    return np.array([function(float(x), float(y)) for x, y in pairs]).reshape(np.shape(a))
