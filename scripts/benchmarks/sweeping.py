"""Sweeps against other ways of training many models; peers that are not installed are left out.

The job: a straight line through 80 points, λ in the gradient, 1,000 epochs of mini-batches of 32,
5 folds. Both sides train on the same folds with the same schedule and score the same fits. What
would take minutes is timed on a part and scaled, and says so.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax
from benchmarks.timing import Figure, against, installed, limited, paired, scaled
from wdjax import sweeps

RULES = (("kernel", 1.0), ("bias", 0.0))
GAMMA, RATE, BATCH, FOLDS = 0.01, 0.1, 32, 5


def data() -> dict[str, Any]:
    """80 examples of y = 3x + 5."""
    return wdjax.datasets.linear(seed=0).train


def loss(params: Any, part: Any, weights: Any) -> Any:
    """Weighted mean of squared errors."""
    residual = part["x"] @ params["kernel"] + params["bias"] - part["y"]
    return jnp.sum(weights * residual**2) / jnp.sum(weights)


def start(key: Any) -> Any:
    """At zero."""
    return {"kernel": jnp.zeros(1), "bias": jnp.zeros(())}


def optimizer(weight_decay: Any, rate: Any = RATE, gamma: Any = GAMMA) -> Any:
    """The documents' SGD."""
    return optax.chain(
        wdjax.add_decayed_weights(weight_decay, rules=RULES),
        optax.sgd(wdjax.inverse_sqrt(rate, gamma=gamma)),
    )


def swept(lams: np.ndarray, epochs: int, *, cold: bool) -> Any:
    """Run the sweep; cold makes new functions, so that it is traced and compiled again."""
    build = (lambda h: optimizer(h["weight_decay"])) if cold else _build
    return sweeps.sweep(
        build,
        sweeps.grid(weight_decay=lams),
        data(),
        init=start,
        loss=loss,
        folds=sweeps.kfold(80, FOLDS),
        epochs=epochs,
        batch_size=BATCH,
        progress=False,
    ).val


def _build(h: Any) -> Any:
    return optimizer(h["weight_decay"])


def parts() -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to train and to validate on, of each fold."""
    folds = sweeps.kfold(80, FOLDS)
    return list(zip(folds.train, folds.val, strict=True))


# Peers. Each returns the validation scores, or what has taken the time that is counted.


def program_by_hand(lams: np.ndarray, epochs: int) -> Any:
    """The same job, optimizer and folds in one JAX program of its own, and nothing else: cold."""
    train, val = (np.stack(rows) for rows in zip(*parts(), strict=True))
    table = data()
    order = np.broadcast_to(train, (epochs, *train.shape))
    order = np.random.default_rng(0).permuted(order, axis=2).astype(np.int32)
    rows = order.reshape(epochs, FOLDS, -1, BATCH).swapaxes(1, 2).reshape(-1, FOLDS, BATCH)
    held_out = np.zeros((FOLDS, len(table["y"])), np.float32)
    np.put_along_axis(held_out, val, 1, axis=1)

    def begin(lam: Any, _: Any) -> Any:
        params = start(None)
        return params, optimizer(lam).init(params)

    def step(carry: Any, batch: Any, lam: Any) -> Any:
        params, state = carry
        grads = jax.grad(loss)(params, batch, jnp.ones(BATCH))
        updates, state = optimizer(lam).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def score(carry: Any, weights: Any) -> Any:
        return loss(carry[0], table, weights)

    @jax.jit
    def everything(lams: Any, table: Any, rows: Any, held_out: Any) -> Any:
        def advance(t: Any, carry: Any) -> Any:
            batch = jax.tree.map(lambda x: x[rows[t]], table)
            return jax.vmap(jax.vmap(step, (0, None, 0)), (0, 0, None))(carry, batch, lams)

        carry = jax.vmap(jax.vmap(begin, (0, None)), (None, 0))(lams, held_out)
        carry = jax.lax.fori_loop(0, len(rows), advance, carry)
        return jax.vmap(jax.vmap(score, (0, None)), (0, 0))(carry, held_out)

    return np.asarray(everything(lams.astype(np.float32), table, rows, held_out))


def torch_by_hand(lams: np.ndarray, epochs: int) -> Any:
    """All models as the rows of two tensors, autograd of the summed losses, one Python loop."""
    import torch

    torch.set_num_threads(1)
    rows = np.stack([train for train, _ in parts()])
    x, y = (torch.tensor(a) for a in (data()["x"][:, 0][rows], data()["y"][rows]))
    lam = torch.tensor(lams, dtype=torch.float32)[None, :]
    w = torch.zeros(FOLDS, len(lams), requires_grad=True)
    b = torch.zeros(FOLDS, len(lams), requires_grad=True)
    step, rng = 0, np.random.default_rng(0)
    for _ in range(epochs):
        order = torch.tensor(rng.permutation(rows.shape[1]))
        for first in range(0, rows.shape[1], BATCH):
            now = order[first : first + BATCH]
            residual = w[..., None] * x[:, None, now] + b[..., None] - y[:, None, now]
            grad_w, grad_b = torch.autograd.grad((residual**2).mean(-1).sum(), (w, b))
            rate = RATE / (1 + GAMMA**2 * step**2) ** 0.5
            with torch.no_grad():
                w -= rate * (grad_w + lam * w)
                b -= rate * grad_b
            step += 1
    return w


def torch_func(lams: np.ndarray, epochs: int) -> Any:
    """`torch.func.vmap` of `grad` over folds and λ, one Python loop."""
    import torch
    from torch.func import grad, vmap

    torch.set_num_threads(1)
    rows = np.stack([train for train, _ in parts()])
    x, y = (torch.tensor(a) for a in (data()["x"][:, 0][rows], data()["y"][rows]))
    lam = torch.tensor(lams, dtype=torch.float32)

    def one_loss(params: Any, x: Any, y: Any) -> Any:
        return ((params[0] * x + params[1] - y) ** 2).mean()

    each = vmap(vmap(grad(one_loss), (0, None, None)), (0, 0, 0))
    params = torch.zeros(FOLDS, len(lams), 2)
    decay = torch.stack([lam, torch.zeros_like(lam)], dim=1)[None]
    step, rng = 0, np.random.default_rng(0)
    for _ in range(epochs):
        order = torch.tensor(rng.permutation(rows.shape[1]))
        for first in range(0, rows.shape[1], BATCH):
            now = order[first : first + BATCH]
            rate = RATE / (1 + GAMMA**2 * step**2) ** 0.5
            params = params - rate * (each(params, x[:, now], y[:, now]) + decay * params)
            step += 1
    return params


def torch_one(epochs: int) -> Any:
    """One model, `nn.Linear`, `torch.optim.SGD` and a scheduler, as tutorials write it."""
    import torch

    torch.set_num_threads(1)
    x, y = torch.tensor(data()["x"]), torch.tensor(data()["y"])[:, None]
    model, criterion = torch.nn.Linear(1, 1), torch.nn.MSELoss()
    groups = [{"params": [model.weight], "weight_decay": 1e-3}, {"params": [model.bias]}]
    sgd = torch.optim.SGD(groups, lr=RATE)
    law = torch.optim.lr_scheduler.LambdaLR(sgd, lambda t: (1 + GAMMA**2 * t**2) ** -0.5)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for first in range(0, len(x), BATCH):
            now = order[first : first + BATCH]
            sgd.zero_grad()
            criterion(model(x[now]), y[now]).backward()
            sgd.step()
            law.step()
    return model


def fitted(epochs: int, *, cold: bool) -> Any:
    """`wdjax.fit` of one model."""
    tx = _one if not cold else optimizer(1e-3)
    step = _step if not cold else wdjax.make_train_step(_mean, tx)
    state = wdjax.TrainState.create(start(None), tx)
    return wdjax.fit(step, state, data(), epochs=epochs, batch_size=BATCH, progress=False)[0].params


def _mean(params: Any, batch: Any) -> Any:
    return loss(params, batch, jnp.ones(len(batch["y"])))


_one = optimizer(1e-3)
_step = wdjax.make_train_step(_mean, _one)


def grid_search(lams: np.ndarray) -> Any:
    """scikit-learn, exact solutions of the same problems."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    grid = {"alpha": 64 * lams / 2}
    search = GridSearchCV(Ridge(), grid, cv=parts(), scoring="neg_mean_squared_error")
    return search.fit(data()["x"], data()["y"])


def trained(lam: Any, epochs: int) -> Any:
    """One λ on all folds as a traceable function, for peers that search over such."""
    rows = jnp.asarray(np.stack([train for train, _ in parts()]))
    held = jnp.asarray(np.stack([val for _, val in parts()]))
    x, y = jnp.asarray(data()["x"]), jnp.asarray(data()["y"])
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(64) for _ in range(epochs)]).reshape(-1, BATCH)

    def fold(rows: Any, held: Any) -> Any:
        tx = optimizer(lam)

        def step(carry: Any, now: Any) -> Any:
            params, state = carry
            part = {"x": x[rows[now]], "y": y[rows[now]]}
            grads = jax.grad(loss)(params, part, jnp.ones(BATCH))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (start(None), tx.init(start(None)))
        (params, _), _ = jax.lax.scan(step, carry, jnp.asarray(orders))
        return loss(params, {"x": x[held], "y": y[held]}, jnp.ones(16))

    return jnp.mean(jax.vmap(fold)(rows, held))


def hyperoptax_grid(lams: np.ndarray, epochs: int, n_parallel: int) -> Any:
    """Hyperoptax's grid search over the traceable function, compiled anew."""
    from hyperoptax.grid import GridSearch
    from hyperoptax.spaces import DiscreteSpace

    space = {"lam": DiscreteSpace(values=[float(lam) for lam in lams])}
    state, search = GridSearch.init(space, n_parallel=n_parallel)
    objective = lambda key, params: -trained(params["lam"], epochs)
    found = search.optimize(state, jax.random.key(0), objective, len(lams) // n_parallel)
    return jax.tree.leaves(found)


def optuna_grid(lams: np.ndarray, epochs: int) -> Any:
    """Optuna's grid sampler, one compiled call per trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    one = jax.jit(functools.partial(trained, epochs=epochs))
    sampler = optuna.samplers.GridSampler({"lam": [float(lam) for lam in lams]})
    study = optuna.create_study(sampler=sampler)
    low, high = float(lams.min()), float(lams.max())
    study.optimize(lambda trial: float(one(trial.suggest_float("lam", low, high))), len(lams))
    return study.best_value


# The benchmarks.


def bench_one(repeats: int, smoke: bool) -> list[Figure]:
    """One fit of the documents' job against a PyTorch loop, with and without compilation."""
    if not installed("torch"):
        return []
    epochs, few = (5, 1) if smoke else (1_000, max(2, repeats // 5))
    theirs = lambda: torch_one(epochs)
    return [
        paired(f"one model, {epochs} epochs, against PyTorch", lambda: fitted(epochs, cold=False),
               theirs, repeats=few, goal=None if smoke else 200, faster=True),
        paired("one model, cold, against PyTorch", lambda: fitted(epochs, cold=True),
               theirs, repeats=few, goal=None if smoke else 3.5, faster=True),
    ]  # fmt: skip


def bench_many(repeats: int, smoke: bool) -> list[Figure]:
    """256 λ on 5 folds: 1,280 fits, traced and compiled each time, unless it says warm."""
    count, epochs = (4, 3) if smoke else (256, 1_000)
    lams = np.geomspace(1e-5, 1.0, count)
    fits = count * FOLDS
    few = max(2, repeats // 5)
    cold = functools.partial(swept, lams, epochs, cold=True)
    figures = [
        limited(f"{fits:,} fits, cold", cold, repeats=repeats, most_ms=250),
        limited(f"{fits:,} fits, warm", functools.partial(swept, lams, epochs, cold=False),
                repeats=repeats, most_ms=100),
        paired(f"{fits:,} fits, cold, against a program by hand", cold,
               lambda: program_by_hand(lams, epochs), repeats=repeats,
               goal=None if smoke else 1.15),
    ]  # fmt: skip
    peers: list[tuple[str, tuple[str, ...], Callable[[], Any], float]] = [
        ("scikit-learn's GridSearchCV(Ridge)", ("sklearn",), lambda: grid_search(lams), 5),
        ("PyTorch by hand", ("torch",), lambda: torch_by_hand(lams, epochs), 2.5),
        ("torch.func", ("torch",), lambda: torch_func(lams, epochs), 9),
        ("hyperoptax, all at once", ("hyperoptax",),
         lambda: hyperoptax_grid(lams, epochs, count), 1 / 1.1),
        ("hyperoptax, its default", ("hyperoptax",),
         lambda: hyperoptax_grid(lams, epochs, 1), 2.5),
    ]  # fmt: skip
    for name, needs, theirs, goal in peers:
        if installed(*needs):
            name = f"{fits:,} fits, cold, against {name}"
            figures.append(paired(name, cold, theirs, repeats=few,
                                  goal=None if smoke else goal, faster=True))  # fmt: skip
    if installed("torch"):
        one = scaled(lambda: torch_one(epochs), fits)
        name = f"{fits:,} fits, cold, against one after the other in PyTorch (1 timed)"
        figures.append(against(name, cold, one, repeats=few, goal=None if smoke else 1_000))
    if installed("optuna"):
        some = lams[:: max(1, count // 16)]
        theirs_ms = scaled(lambda: optuna_grid(some, epochs), count / len(some))
        name = f"{fits:,} fits, cold, against optuna ({len(some)} of {count} trials timed)"
        figures.append(against(name, cold, theirs_ms, repeats=few, goal=None if smoke else 50))
    return figures


def cube(size: int, epochs: int) -> Any:
    """λ × η × γ on 5 folds with 3 seeds: 15,360 fits for size 16."""
    hparams = sweeps.grid(
        weight_decay=np.geomspace(1e-5, 1.0, size),
        rate=np.geomspace(1e-3, 0.9, size),
        gamma=np.geomspace(1e-3, 0.1, max(1, size // 4)),
    )
    return sweeps.sweep(
        lambda h: optimizer(h["weight_decay"], h["rate"], h["gamma"]),
        hparams, data(), init=start, loss=loss, folds=sweeps.kfold(80, FOLDS),
        epochs=epochs, batch_size=BATCH, seeds=3, progress=False,
    ).val  # fmt: skip


def bench_cube(repeats: int, smoke: bool) -> list[Figure]:
    """15,360 fits, 3,000 steps each, cold."""
    size, epochs = (4, 2) if smoke else (16, 1_500)
    name = f"{size * size * max(1, size // 4) * FOLDS * 3:,} fits of {2 * epochs:,} steps, cold"
    few = max(2, repeats // 5)
    return [limited(name, lambda: cube(size, epochs), repeats=few, most_ms=1_200)]


_DEVICES = """
import jax, sys, time
jax.config.update("jax_num_cpu_devices", {count})
sys.path.insert(0, {folder!r})
from benchmarks import sweeping
run = lambda: sweeping.on_all_devices({size}, {epochs})
run()
begin = time.perf_counter()
run()
print(time.perf_counter() - begin)
"""


def on_all_devices(size: int, epochs: int) -> Any:
    """A sweep with work for both cores of a small machine, of functions that stay the same."""
    hparams = sweeps.grid(weight_decay=np.geomspace(1e-5, 1.0, size))
    return sweeps.sweep(
        _build, hparams, data(), init=start, loss=loss, folds=sweeps.kfold(80, FOLDS),
        epochs=epochs, batch_size=BATCH, seeds=3, progress=False,
    ).val  # fmt: skip


def bench_devices(repeats: int, smoke: bool) -> list[Figure]:
    """The same warm sweep on one device and on two, in processes of their own, in turn."""
    size, epochs, few = (4, 2, 1) if smoke else (1_024, 1_500, max(3, repeats // 3))
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def seconds(count: int) -> float:
        code = _DEVICES.format(count=count, folder=folder, size=size, epochs=epochs)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              check=True)  # fmt: skip
        return float(done.stdout)

    pairs = [(seconds(2), seconds(1)) for _ in range(few)]
    ratios = [one / two for two, one in pairs]
    two, one = (1e3 * float(np.median(column)) for column in zip(*pairs, strict=True))
    spread = (float(np.median(ratios)), min(ratios), max(ratios))
    name = f"sweep of {size:,} λ on 2 CPU devices, against 1"
    met = None if smoke else spread[0] >= 1.8
    return [Figure(name, two, one, spread, "theirs/ours >= 1.8", met)]
