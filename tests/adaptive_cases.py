"""The adaptive methods: float64 references from the papers, in NumPy and plain Python, and a table.

A reference is a function of the initial parameters {path: array} that returns its step: a function
of (s, {path: m}, θ, Δ, g) -> Δ⁺. It keeps what it remembers in dictionaries of its own.
"""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from wdjax import adaptive, bounds


def each_group(axis, leaf, *others):
    """Yield (key, vectors) of every group; with axis=-1 a group is a row, else the whole leaf."""
    if axis is None:
        yield (), [x.ravel() for x in (leaf, *others)]
    else:
        for key in np.ndindex(leaf.shape[:-1]):
            yield key, [x[key] for x in (leaf, *others)]


def by_leaf(step):
    """Lift step(path, s m, θ, Δ, g) -> Δ⁺ of one leaf; multiplier 0 leaves it alone."""

    def whole(s, multipliers, params, updates, grads):
        return {
            path: step(path, s, multipliers[path], params[path], updates[path], grads[path])
            if multipliers[path] != 0
            else updates[path]
            for path in params
        }

    return whole


# CPR, Algorithm 1 of arXiv:2311.09058.


def squares(z):
    return sum(x * x for x in z), [2 * x for x in z], len(z)


def magnitudes(z):
    return sum(abs(x) for x in z), [math.copysign(1, x) if x else 0 for x in z], len(z)


def huber(z):
    value = sum(x * x / 2 if abs(x) < 1 else abs(x) - 0.5 for x in z)
    return value, [min(1, max(-1, x)) for x in z], len(z)


def spread(z):
    value = statistics.stdev(map(float, z))
    mean = statistics.fmean(z)
    return value, [(x - mean) / ((len(z) - 1) * value) for x in z], 1


def always(start):
    """A bound known from the start, as a function of R(θ₀)."""
    return lambda initial: {"kappa": start(initial)}, lambda z, step, value: None


def after(k):
    def follow(z, step, value):
        if step == k:
            z["kappa"] = value

    return lambda initial: {"kappa": None}, follow


def slowing(every, decay):
    def follow(z, step, value):
        z["mean"] = decay * z["mean"] + (1 - decay) * value
        if step % every or step == every:
            return
        growth = z["mean"] - z["last"]
        if step > 3 * every and growth < z["growth"] and z["kappa"] is None:
            z["kappa"] = value
        z["last"] = z["mean"]
        if step > 2 * every:
            z["growth"] = growth

    return lambda initial: {"kappa": None, "mean": 0.0, "last": 0.0, "growth": 0.0}, follow


def cpr(bound, measure=squares, axis=None):
    begin, follow = bound

    def reference(initial):
        memory = {
            (path, key): {"mu": 0.0, "step": 0} | begin(measure(z)[0])
            for path, leaf in initial.items()
            for key, (z,) in each_group(axis, leaf)
        }

        def step(path, s, m, param, update, grad):
            out = update.copy()
            for key, (c, new) in each_group(axis, param + update, out):
                z = memory[path, key]
                value, gradient, n = measure(c)
                z["step"] += 1
                if z["kappa"] is not None:
                    z["mu"] = max(0.0, z["mu"] + s / n * (value - z["kappa"]))
                    new -= m * z["mu"] * np.array(gradient)
                follow(z, z["step"], value)
            return out

        return by_leaf(step)

    return reference


# Tsuruoka et al. 2009, section 3.2: the loop over weights of their figure 2.


def cumulative(initial):
    owed = dict.fromkeys(initial, 0.0)
    received = {path: np.zeros_like(leaf) for path, leaf in initial.items()}

    def step(path, s, m, param, update, grad):
        owed[path] += s * m
        u, out = owed[path], np.zeros_like(param)
        for i in np.ndindex(param.shape):
            before = w = param[i] + update[i]
            q = received[path][i]
            if w > 0:
                w = max(0.0, w - (u + q))
            elif w < 0:
                w = min(0.0, w + (u - q))
            received[path][i] += w - before
            out[i] = w - param[i]
        return out

    return by_leaf(step)


# SPD, Algorithm 1 of arXiv:2411.01713.


def selective(point=None, axis=None):
    def reference(initial):
        def step(path, s, m, param, update, grad):
            out = update.copy()
            anchor = initial[path] if point is None else np.full_like(param, point)
            rows = each_group(axis, param, update, grad, anchor, out)
            for _, (theta, delta, g, a, new) in rows:
                old, moved = theta - a, theta + delta - a
                size = math.dist(moved, 0 * moved)
                if -np.dot(g, old) < 0 and size > 0:
                    share = min(1, max(0, (size - math.dist(old, 0 * old)) / size))
                    new -= s * m * share * moved
            return out

        return by_leaf(step)

    return reference


# AdamS's decay, Algorithm 3 of arXiv:2011.11152: entrywise second moments, as in Adam.


def stable(beta=0.999, largest=0.1):
    def reference(initial):
        nu = {path: np.zeros_like(leaf) for path, leaf in initial.items()}
        steps = [0]

        def step(s, multipliers, params, updates, grads):
            steps[0] += 1
            for path in params:
                nu[path] = beta * nu[path] + (1 - beta) * grads[path] ** 2
            hat = [
                nu[path].ravel() / (1 - beta ** steps[0]) for path in params if multipliers[path]
            ]
            mean = np.concatenate(hat).mean()
            return {
                path: updates[path] - min(s * m / mean**0.5, largest) * params[path]
                for path, m in multipliers.items()
            }

        return step

    return reference


# AWD, Algorithm 1 of arXiv:2210.00094; the updates are the gradients.


def awd(initial):
    memory = [0.0]

    def step(s, multipliers, params, updates, grads):
        flat = lambda tree: np.concatenate([tree[p].ravel() for p in tree if multipliers[p]])
        now = s * np.linalg.norm(flat(updates)) / np.linalg.norm(flat(params))
        memory[0] = 0.1 * memory[0] + 0.9 * now
        return {p: updates[p] + memory[0] * m * params[p] for p, m in multipliers.items()}

    return step


# AdaDecay, arXiv:1907.08931.


def ada_decay(axis=None):
    def reference(initial):
        def step(path, s, m, param, update, grad):
            out = update.copy()
            for _, (theta, g, new) in each_group(axis, param, update, out):
                size = [abs(x) for x in g]
                mean, deviation = statistics.fmean(size), statistics.pstdev(size)
                phi = [2 / (1 + math.exp(-4 * (x - mean) / deviation)) for x in size]
                new += s * m * np.array(phi) * theta
            return out

        return by_leaf(step)

    return reference


def hill(matrix):
    """1 + n / Σ ln(e_j / e_i) over the upper half of the eigenvalues of WᵀW."""
    values = sorted(np.linalg.eigvalsh(matrix.T @ matrix))[-min(matrix.shape) :]
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / sum(math.log(value / tail[0]) for value in tail)


class Case(NamedTuple):
    build: Callable  # (strength, **arguments such as rules) -> transformation
    reference: Callable
    verb: str
    needs_grad: bool = False
    trees: int = 0  # how many trees like the parameters it remembers
    first: bool = False  # it stands first in the chain


def _cpr(bound, measure=bounds.sum_squares, **fixed):
    return lambda s, **kw: adaptive.cpr(bound, measure, strength=s, **fixed, **kw)


def _cpr_rows():
    # strengths in the tests are about 0.1: a bound a little below the start keeps μ off its cap
    yield "cpr uniform", _cpr(bounds.uniform(2.0)), cpr(always(lambda r: 2.0))
    yield "cpr dependent", _cpr(bounds.dependent(0.7)), cpr(always(lambda r: 0.7 * r))
    yield "cpr warm start", _cpr(bounds.warm_start(3)), cpr(after(3))
    yield (
        "cpr inflection point",
        _cpr(bounds.inflection_point(1, decay=0.5)),
        cpr(slowing(1, 0.5)),
    )
    for name, measure, reference, kappa in (
        ("magnitudes", bounds.sum_magnitudes, magnitudes, 4.0),
        ("huber", bounds.sum_huber, huber, 1.5),
        ("deviation", bounds.deviation, spread, 0.6),
    ):
        yield (
            f"cpr {name}",
            _cpr(bounds.uniform(kappa), measure),
            cpr(always(lambda r, kappa=kappa: kappa), reference),
        )
    yield (
        "cpr deviation per row",
        _cpr(bounds.uniform(0.6), bounds.deviation, axes=-1),
        cpr(always(lambda r: 0.6), spread, axis=-1),
    )
    yield (
        "cpr per row",
        _cpr(bounds.dependent(0.7), axes=-1),
        cpr(always(lambda r: 0.7 * r), axis=-1),
    )


CPR_TREES = {"cpr inflection point": 5, "cpr dependent": 3, "cpr per row": 3}  # others: μ and κ
ADAPTIVE = {
    name: Case(build, reference, "cpr", trees=CPR_TREES.get(name, 2))
    for name, build, reference in _cpr_rows()
} | {
    "cumulative_l1": Case(adaptive.cumulative_l1, cumulative, "cumulative_l1", trees=2),
    "spd": Case(adaptive.spd, selective(), "spd", True, trees=1),
    "spd per row": Case(
        lambda s, **kw: adaptive.spd(s, axes=-1, **kw), selective(axis=-1), "spd", True, trees=1
    ),
    "swd": Case(adaptive.swd, stable(), "swd", True),
    "swd short memory": Case(
        lambda s, **kw: adaptive.swd(s, decay=0.5, largest=0.3, **kw), stable(0.5, 0.3), "swd", True
    ),
    "awd": Case(adaptive.awd, awd, "awd", first=True),
    "ada_decay": Case(adaptive.ada_decay, ada_decay(), "ada_decay", first=True),
    "ada_decay per row": Case(
        lambda s, **kw: adaptive.ada_decay(s, axes=-1, **kw), ada_decay(-1), "ada_decay", first=True
    ),
}
