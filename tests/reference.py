"""Independent float64 references in NumPy, written from the formulas; imports nothing of wdjax."""

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq


def norm(z, axis=None):
    return np.sqrt(np.sum(z * z, axis=axis, keepdims=True))


def divided(a, b):
    """a / b, and 0 where b is 0."""
    return np.divide(
        a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=b != 0
    )


# Penalties, one entry at a time: plain Python, so that no vectorization mistake is shared.


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


def l0_prox(z, s):
    return z if z * z / 2 > s else 0.0


def p_norm_value(z, p, floor):
    """|z|ᵖ down to the floor, below it the parabola that meets it with the same slope."""
    if abs(z) >= floor:
        return abs(z) ** p - (1 - p / 2) * floor**p
    return p / 2 * floor ** (p - 2) * z * z


def p_norm_gradient(z, p, floor):
    return p * z * max(abs(z), floor) ** (p - 2)


def p_norm_prox(z, s, p, floor):
    """Bisect where x + s p xᵖ⁻¹ grows, and take the cheaper of the two minima."""
    size = abs(z)
    if s == 0 or size == 0:
        return z
    push = lambda x: x + s * p * x ** (p - 1)
    low = max(floor, (s * p * (1 - p)) ** (1 / (2 - p)) if p < 1 else 0.0)
    small = size / (1 + s * p * floor ** (p - 2)) if floor > 0 else 0.0
    minima = [small] if small <= floor else []
    if low == 0 or push(low) < size:
        high = size
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if push(middle) < size else (low, middle)
        minima.append((low + high) / 2)
    cost = lambda x: (x - size) ** 2 / 2 + s * p_norm_value(x, p, floor)
    return sign(z) * min(minima, key=cost)


# MCP and SCAD by their definition: R' is linear between knots, 0 beyond the last.


def mcp_pieces(gamma):
    return [(0.0, gamma, 1.0, -1 / gamma), (gamma, np.inf, 0.0, 0.0)]


def scad_pieces(knee, a):
    span = (a - 1) * knee
    return [
        (0.0, knee, 1.0, 0.0),
        (knee, a * knee, a * knee / span, -1 / span),
        (a * knee, np.inf, 0.0, 0.0),
    ]


def concave_value(z, pieces):
    """Integrate R' = c + d x over the pieces up to |z|."""
    total = 0.0
    for start, end, c, d in pieces:
        x = min(max(abs(z), start), end)
        total += c * (x - start) + d * (x * x - start * start) / 2
    return total


def concave_gradient(z, pieces):
    for start, end, c, d in pieces:
        if start <= abs(z) <= end:
            return sign(z) * (c + d * abs(z))
    raise AssertionError("the pieces cover everything")


def concave_prox(z, s, pieces):
    """The best of all stationary points and knots."""
    size, minima = abs(z), [0.0]
    for start, end, c, d in pieces:
        if 1 + s * d > 0 and start <= (size - s * c) / (1 + s * d) <= end:
            minima.append((size - s * c) / (1 + s * d))
    cost = lambda x: (x - size) ** 2 / 2 + s * concave_value(x, pieces)
    return sign(z) * min(minima, key=cost)


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


def rms(group):
    return np.linalg.norm(group) / np.sqrt(group.size)


def cubic_value(group, least):
    return group.size * quad(lambda x: max(least, x) * x, 0, rms(group), points=[least])[0]


def cubic_gradient(group, least):
    return max(least, rms(group)) * group


def cubic_prox(group, s, least):
    """The length x of the result, in RMS, where x (1 + s max(ε, x)) is that of the group."""
    size = rms(group)
    if size == 0:
        return group * 0
    left = brentq(lambda x: x * (1 + s * max(least, x)) - size, 0, size, xtol=1e-300, rtol=1e-15)
    return group * (left / size)


def ball_project(group, s, radius):
    size = np.linalg.norm(group)
    return group if s == 0 or size <= radius else group * (radius / size)


def sphere_project(group, s, radius):
    size = np.linalg.norm(group)
    return group if s == 0 or size == 0 else group * (radius / size)


def spread_value(group):
    return np.std(group, ddof=1) if group.size > 1 else 0.0


def spread_gradient(group):
    size = spread_value(group)
    return group * 0 if size == 0 else (group - group.mean()) / ((group.size - 1) * size)


def spread_prox(group, s):
    """Only the deviations are pulled; std = ‖deviations‖ / √(n − 1)."""
    if group.size == 1:
        return group
    deviations = group - group.mean()
    return group.mean() + group_prox(deviations, s / np.sqrt(group.size - 1))


# Matrices: one at a time, by NumPy's decomposition.


def per_matrix(function):
    """Apply a function of one matrix to a matrix or to each of a stack."""

    def apply(z, *args):
        if z.ndim == 2:
            return function(z, *args)
        return np.stack([apply(part, *args) for part in z])

    return apply


def with_singular_values(z, function):
    left, sigma, right = np.linalg.svd(z, full_matrices=False)
    return left @ np.diag(function(sigma)) @ right


def nuclear_prox(z, s):
    return with_singular_values(z, each(lambda sigma: soft(sigma, s)))


def nuclear_gradient(z):
    size = np.linalg.norm(z, 2)
    return with_singular_values(z, each(lambda sigma: float(sigma > 1e-12 * size)))


def spectral_gradient(z):
    left, sigma, right = np.linalg.svd(z)
    return sigma[0] * np.outer(left[:, 0], right[0])


def spectral_prox(z, s):
    """Bisect the level t at which Σ max(σ − t, 0) = s t."""

    def leveled(sigma):
        low, high = 0.0, sigma[0]
        for _ in range(200):
            t = (low + high) / 2
            low, high = (t, high) if sum(max(x - t, 0) for x in sigma) > s * t else (low, t)
        return np.array([min(x, high) for x in sigma])

    return with_singular_values(z, leveled)


def orthogonal_value(z):
    return sum((sigma**2 - 1) ** 2 for sigma in np.linalg.svd(z, compute_uv=False))


def orthogonal_gradient(z):
    """2 Σ (W*W − I)ᵢⱼ ∂(W*W)ᵢⱼ, entry by entry."""
    beyond = z.T @ z - np.eye(z.shape[1])
    out = np.zeros_like(z)
    for a in range(z.shape[0]):
        for b in range(z.shape[1]):
            out[a, b] = 4 * sum(z[a, j] * beyond[b, j] for j in range(z.shape[1]))
    return out


def cap_project(z, s, limit):
    if s == 0:
        return z
    return with_singular_values(z, each(lambda sigma: min(sigma, limit)))


# Methods. The reference of a method is a function of the initial parameters {path: array}. It
# returns a step, a function of (x, {path: m}, θ, Δ, g) -> Δ⁺, which keeps what it remembers.


def by_leaf(begin):
    """Lift begin(θ₀) -> step(x, m, θ, Δ, g) -> Δ⁺ of one leaf; m = 0 leaves a leaf alone."""

    def reference(initial):
        steps = {path: begin(leaf) for path, leaf in initial.items()}

        def step(x, multipliers, params, updates, grads):
            return {
                path: steps[path](x, m, params[path], updates[path], grads[path])
                if m != 0
                else updates[path]
                for path, m in multipliers.items()
            }

        return step

    return reference


def anchored(point, formula):
    """Lift formula(Δ, θ, s m, a) -> Δ⁺; the point is 0 (None), θ₀ ("init") or a number."""

    def begin(start):
        anchor = start if point == "init" else np.full_like(start, point or 0.0)
        return lambda s, m, param, update, grad: formula(update, param, s * m, anchor)

    return by_leaf(begin)


def coupled(gradient, scale=1.0):
    return lambda update, param, s, anchor: update + s * scale * gradient(param)


def explicit(gradient, gate=lambda z, update: 1.0, scale=1.0):
    def step(update, param, s, anchor):
        z = param - anchor
        return update - s * scale * gate(z, update) * gradient(z)

    return step


def after_step(gradient):
    return lambda update, param, s, anchor: update - s * gradient(param + update - anchor)


def implicit(prox, scale=1.0):
    return lambda update, param, s, anchor: (
        anchor + prox(param + update - anchor, s * scale) - param
    )


def cautious_gate(z, update):
    """1 where the update does not point away from the anchor."""
    return each_pair(lambda a, b: 1.0 if sign(a) * sign(b) <= 0 else 0.0, z, update)


def strictly_cautious_gate(z, update):
    return each_pair(lambda a, b: 1.0 if sign(a) * sign(b) < 0 else 0.0, z, update)


# Gates that see the raw gradient: one number for each group's z and g.


def per_group_pair(function, axis):
    """Map a function of two groups' vectors over z and g; the result is spread over each group."""

    def apply(z, grad):
        if axis is None:
            return np.full(z.shape, function(z.ravel(), grad.ravel()))
        pair = [np.moveaxis(x, axis, -1) for x in (z, grad)]
        flat = [x.reshape(-1, x.shape[-1]) for x in pair]
        values = np.array([function(a, b) for a, b in zip(*flat, strict=True)])
        shape = (*pair[0].shape[:-1], 1)
        return np.moveaxis(np.broadcast_to(values.reshape(shape), pair[0].shape), -1, axis)

    return apply


def descent_gate(z, grad):
    return 1.0 if sum(a * b for a, b in zip(z, grad, strict=True)) > 0 else 0.0


def cosine_gate(z, grad, delta, factor):
    lengths = np.linalg.norm(z) * np.linalg.norm(grad)
    cosine = abs(z @ grad) / lengths if lengths else 0.0
    return factor if cosine < delta / np.sqrt(len(z)) else 1.0


def touched_gate(z, grad):
    return 1.0 if any(grad != 0) else 0.0


def each_pair(function, a, b):
    pairs = zip(np.ravel(a), np.ravel(b), strict=True)
    return np.array([function(float(x), float(y)) for x, y in pairs]).reshape(np.shape(a))
