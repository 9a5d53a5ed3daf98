"""Runs of converted optimizers, of PyTorch's, and of references in NumPy, on the same gradients.

The gradient of step t is a fixed random one plus 0.1 θ, so that a row costs one compiled scan here
and a thousand cheap steps there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import imported

STEPS = 1_000
RNG = np.random.default_rng(3)
START = {"bias": RNG.normal(size=3), "kernel": RNG.normal(size=(4, 3))}
NOISE = {name: RNG.normal(size=(STEPS, *value.shape)) for name, value in START.items()}
NAMES = tuple(START)
EVERYTHING = (("**", 1.0),)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def falling(count):
    """The multiplier of a learning rate: half a cosine from 1 to a tenth."""
    cos = np.cos if isinstance(count, int) else jnp.cos
    return 0.55 + 0.45 * cos(np.pi * count / STEPS)


def scheduled(lr):
    return lambda count: lr * falling(count)


def flat(params):
    return np.concatenate([np.ravel(params[name]) for name in NAMES])


def ours(record, steps=STEPS):
    """Parameters after each step, as rows."""
    optimizer = record.optimizer

    def step(carry, noise):
        params, state = carry
        grads = jax.tree.map(lambda n, p: n + 0.1 * p, noise, params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.concatenate([params[name].ravel() for name in NAMES])

    params = jax.tree.map(jnp.asarray, START)
    noise = jax.tree.map(lambda n: jnp.asarray(n[:steps]), NOISE)
    run = jax.jit(lambda p, n: jax.lax.scan(step, (p, optimizer.init(p)), n)[1])
    return np.asarray(run(params, noise))


def together(optimizers):
    """Parameters after each step of each optimizer, from one program."""

    def step(carry, noise):
        carry = [one(optimizer, *state, noise) for optimizer, state in zip(optimizers, carry)]  # noqa: B905
        return carry, [jnp.concatenate([p[name].ravel() for name in NAMES]) for p, _ in carry]

    def one(optimizer, params, state, noise):
        grads = jax.tree.map(lambda n, p: n + 0.1 * p, noise, params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, noise = (jax.tree.map(jnp.asarray, tree) for tree in (START, NOISE))
    start = [(params, optimizer.init(params)) for optimizer in optimizers]
    run = jax.jit(lambda carry, noise: jax.lax.scan(step, carry, noise)[1])
    return [np.asarray(rows) for rows in run(start, noise)]


def agree(cases, within=1e-9):
    """Cases are (label, record, the rows that are wanted, and within what if not as the others)."""
    ran = together([case[1].optimizer for case in cases])
    for (name, _, want, *own), got in zip(cases, ran, strict=True):
        print(name, end=": ")
        close(got, want, *(own or [within]))


def torchs(build, steps=STEPS, dtype="float64", is_scheduled=True):
    """The same of a PyTorch optimizer under LambdaLR; build(parameters) -> optimizer."""
    torch = imported("torch")
    kind = getattr(torch, dtype)
    params = {name: torch.nn.Parameter(torch.tensor(START[name], dtype=kind)) for name in NAMES}
    noise = {name: torch.tensor(NOISE[name], dtype=kind) for name in NAMES}
    optimizer = build(params)
    shape = lambda t: float(falling(t))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape) if is_scheduled else None
    rows = []
    for t in range(steps):
        for name, p in params.items():
            p.grad = noise[name][t] + 0.1 * p.detach()
        optimizer.step()
        if is_scheduled:
            schedule.step()
        rows.append(flat({name: p.detach().numpy() for name, p in params.items()}).astype(float))
    return np.stack(rows)


def references(steps):
    """The same in NumPy, of step(θ, g, t, memory) -> θ by name; t = 1, 2, ..., memory a dict."""
    params, memories, rows = dict(START), {name: {} for name in NAMES}, []
    for t in range(1, STEPS + 1):
        for name in NAMES:
            grad = NOISE[name][t - 1] + 0.1 * params[name]
            params[name] = steps[name](params[name], grad, t, memories[name])
        rows.append(flat(params))
    return np.stack(rows)


def close(got, want, within=1e-9):
    """Relative to the largest weight of the run; a run that stands still says nothing."""
    assert got.shape == want.shape
    assert np.abs(want[-1] - want[0]).max() > 1e-3
    apart = np.abs(got - want).max() / np.abs(want).max()
    print(f"{apart:.1e} apart")
    assert apart <= within


def groups_of(params, lr, weight_decay, **bias):
    """PyTorch's groups: the bias has a third of the rate and twice the decay."""
    return [
        {"params": [params["bias"]], "lr": lr / 3, "weight_decay": 2 * weight_decay, **bias},
        {"params": [params["kernel"]], "lr": lr, "weight_decay": weight_decay},
    ]


def our_groups(lr, weight_decay, **own):
    return (("bias", {"lr": scheduled(lr / 3), "weight_decay": 2 * weight_decay, **own}),)


def label(value):
    if isinstance(value, type):
        return value.__name__
    return value if isinstance(value, str) else ",".join(map(str, value))


# References in NumPy, of the update rules that the packages document.


def moments(g, t, memory, b1, b2):
    memory["m"] = b1 * memory.get("m", 0.0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0.0) + (1 - b2) * g**2
    return memory["m"] / (1 - b1**t), memory["v"] / (1 - b2**t)


def adam_step(g, t, memory, b1=0.9, b2=0.999, eps=1e-8):
    m, v = moments(g, t, memory, b1, b2)
    return m / (np.sqrt(v) + eps)


def lion_step(g, t, memory, b1=0.9, b2=0.99):
    m = memory.get("m", 0.0)
    memory["m"] = b2 * m + (1 - b2) * g
    return np.sign(b1 * m + (1 - b1) * g)


def momentum_step(g, t, memory, mu=0.9):
    memory["b"] = mu * memory["b"] + g if memory else g
    return memory["b"]


def thinc_step(lr, coupled, lam):
    """Its Adam adds ε before the bias is corrected; the norm of each array is at most 1."""

    def step(theta, g, t, memory):
        g = g + lam * theta * coupled
        g = g / max(1.0, np.linalg.norm(g))
        memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * g
        memory["v"] = 0.999 * memory.get("v", 0.0) + 0.001 * g**2
        corrected = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        theta = theta - corrected * memory["m"] / (np.sqrt(memory["v"]) + 1e-8)
        return theta if coupled else theta - lr * lam * theta

    return step


def decoupled(direction, power=1.0, divided=lambda lr: 1.0):
    """(1 − λ η^power / divided) θ − η u, with η of the schedule."""

    def made(lr, lam):
        def step(theta, g, t, memory):
            eta = lr * falling(t - 1)
            return theta * (1 - lam * eta**power / divided(lr)) - eta * direction(g, t, memory)

        return step

    return made


def coupled(direction):
    def made(lr, lam):
        def step(theta, g, t, memory):
            return theta - lr * falling(t - 1) * direction(g + lam * theta, t, memory)

        return step

    return made
