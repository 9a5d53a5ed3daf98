"""The adaptive methods: float64 references from the papers, in NumPy and plain Python."""

import math
import statistics

import numpy as np
from reference import by_leaf


def each_group(axis, leaf, *others):
    """Yield (key, vectors) of every group; with axis=-1 a group is a row, else the whole leaf."""
    if axis is None:
        yield (), [x.ravel() for x in (leaf, *others)]
    else:
        for key in np.ndindex(leaf.shape[:-1]):
            yield key, [x[key] for x in (leaf, *others)]


# CPR, Algorithm 1 of arXiv:2311.09058.


def squares(z):
    return sum(x * x for x in z), [2 * x for x in z], len(z)


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


def cpr(bound, measure=squares, axis=None):
    begin, follow = bound

    def of_leaf(start):
        memory = {
            key: {"mu": 0.0, "step": 0} | begin(measure(z)[0])
            for key, (z,) in each_group(axis, start)
        }

        def step(s, m, param, update, grad):
            out = update.copy()
            for key, (c, new) in each_group(axis, param + update, out):
                z = memory[key]
                value, gradient, n = measure(c)
                z["step"] += 1
                if z["kappa"] is not None:
                    z["mu"] = max(0.0, z["mu"] + s / n * (value - z["kappa"]))
                    new -= m * z["mu"] * np.array(gradient)
                follow(z, z["step"], value)
            return out

        return step

    return by_leaf(of_leaf)


# Tsuruoka et al. 2009, section 3.2: the loop over weights of their figure 2.


@by_leaf
def cumulative(start):
    owed, received = 0.0, np.zeros_like(start)

    def step(s, m, param, update, grad):
        nonlocal owed
        owed += s * m
        out = np.zeros_like(param)
        for i in np.ndindex(param.shape):
            before = w = param[i] + update[i]
            q = received[i]
            if w > 0:
                w = max(0.0, w - (owed + q))
            elif w < 0:
                w = min(0.0, w + (owed - q))
            received[i] += w - before
            out[i] = w - param[i]
        return out

    return step


# SPD, Algorithm 1 of arXiv:2411.01713.


def selective(axis=None):
    def of_leaf(start):
        def step(s, m, param, update, grad):
            out = update.copy()
            for _, (theta, delta, g, a, new) in each_group(axis, param, update, grad, start, out):
                old, moved = theta - a, theta + delta - a
                size = math.dist(moved, 0 * moved)
                if -np.dot(g, old) < 0 and size > 0:
                    share = min(1, max(0, (size - math.dist(old, 0 * old)) / size))
                    new -= s * m * share * moved
            return out

        return step

    return by_leaf(of_leaf)


# AdamS's decay, Algorithm 3 of arXiv:2011.11152: entrywise second moments, as in Adam.


def stable(beta=0.999, largest=0.1):
    def reference(initial):
        nu = {path: np.zeros_like(leaf) for path, leaf in initial.items()}
        steps = 0

        def step(s, multipliers, params, updates, grads):
            nonlocal steps
            steps += 1
            for path in params:
                nu[path] = beta * nu[path] + (1 - beta) * grads[path] ** 2
            hat = [nu[path].ravel() / (1 - beta**steps) for path in params if multipliers[path]]
            mean = np.concatenate(hat).mean()
            return {
                path: updates[path] - min(s * m / mean**0.5, largest) * params[path]
                for path, m in multipliers.items()
            }

        return step

    return reference


# AWD, Algorithm 1 of arXiv:2210.00094; the updates are the gradients.


def awd(initial):
    memory = 0.0

    def step(s, multipliers, params, updates, grads):
        nonlocal memory
        flat = lambda tree: np.concatenate([tree[p].ravel() for p in tree if multipliers[p]])
        now = s * np.linalg.norm(flat(updates)) / np.linalg.norm(flat(params))
        memory = 0.1 * memory + 0.9 * now
        return {p: updates[p] + memory * m * params[p] for p, m in multipliers.items()}

    return step


# AdaDecay, arXiv:1907.08931.


def ada_decay(axis=None):
    def of_leaf(start):
        def step(s, m, param, update, grad):
            out = update.copy()
            for _, (theta, g, new) in each_group(axis, param, update, out):
                size = [abs(x) for x in g]
                mean, deviation = statistics.fmean(size), statistics.pstdev(size)
                z = [(x - mean) / deviation if deviation else 0.0 for x in size]
                new += s * m * np.array([2 / (1 + math.exp(-4 * x)) for x in z]) * theta
            return out

        return step

    return by_leaf(of_leaf)


def hill(matrix):
    """1 + n / Σ ln(e_j / e_i) over the upper half of the eigenvalues of WᵀW."""
    values = sorted(np.linalg.eigvalsh(matrix.T @ matrix))[-min(matrix.shape) :]
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / sum(math.log(value / tail[0]) for value in tail)
