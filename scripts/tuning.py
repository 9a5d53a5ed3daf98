"""Learn a λ for each group of weights while training, and compare with searching for it.

    python scripts/tuning.py [--out FOLDER] [--smoke]

Digits with 64 inputs of noise appended, so that groups need different λ: 150 examples to train on,
300 to choose λ by, 1347 to test. A network with one hidden layer takes 300 steps of full-batch
momentum. Searches train the whole network for every λ they try; `hyper_decay` trains it once. Costs
are wall times over that of one run with λ given, measured in turn. About two minutes.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments import new_figure, table
from options import new_folder

import wdjax
from wdjax import plots, tuning

Params = Any
Part = dict[str, jax.Array]
FOLDER = Path(__file__).parents[1] / "figures"

GROUPS = ("pixels", "noise", "output")
RULES = (*((f"{group}/kernel", 1.0) for group in GROUPS), ("bias", 0.0))
LEAST, MOST = 1e-4, 3.0


class Split(NamedTuple):
    """Digits with noise: {"pixels": (N, 64), "noise": (N, 64), "y": (N,)} each."""

    train: Part
    val: Part
    test: Part


def split(seed: int) -> Split:
    """Draw the three parts and the noise."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(y))
    x = (x[rows] - x.mean()) / x.std()
    data = {"pixels": x, "noise": rng.normal(size=x.shape), "y": y[rows]}
    data = {name: jnp.asarray(a, jnp.int32 if name == "y" else jnp.float32)
            for name, a in data.items()}  # fmt: skip
    cuts = (slice(150), slice(150, 450), slice(450, None))
    return Split(*({name: a[cut] for name, a in data.items()} for cut in cuts))


def start(seed: int) -> Params:
    """He's initialization."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"pixels": (64, 64), "noise": (64, 64), "output": (64, 10)}
    params = {
        name: {"kernel": jax.nn.initializers.he_normal()(key, shapes[name])}
        for name, key in zip(GROUPS, keys, strict=True)
    }
    params["output"]["bias"] = jnp.zeros(10)
    return params


def loss(params: Params, part: Part) -> jax.Array:
    """Mean cross-entropy, without the penalty."""
    inputs = sum(part[name] @ params[name]["kernel"] for name in ("pixels", "noise"))
    logits = jnp.tanh(inputs) @ params["output"]["kernel"] + params["output"]["bias"][None]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, part["y"]))


def rate(steps: int) -> optax.Schedule:
    """Fall from 0.2 to a tenth of it."""
    return optax.linear_schedule(0.2, 0.02, steps)


def trained(decay: Any, parts: Split, params: Params, steps: int) -> tuple[Params, Any]:
    """Train to the end; return parameters and the state of the optimizer after every step."""
    optimizer = optax.chain(optax.sgd(rate(steps), momentum=0.9), decay)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, parts.train), state, params)
        log_decay = optax.tree.get(state, "log_weight_decay", default=None)
        return (optax.apply_updates(params, updates), state), log_decay

    (params, _), log_decay = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params, log_decay


@functools.partial(jax.jit, static_argnames="steps")
def given(decays: jax.Array, parts: Split, params: Params, steps: int) -> Any:
    """Train with these λ, one per group; return validation and test loss."""
    rules = (*((f"{name}/kernel", decays[i]) for i, name in enumerate(GROUPS)), ("bias", 0.0))
    decay = wdjax.decay_weights(wdjax.lr_scaled(1.0, rate(steps)), rules=rules)
    params, _ = trained(decay, parts, params, steps)
    return loss(params, parts.val), loss(params, parts.test)


@functools.partial(jax.jit, static_argnames=("steps", "every", "batch"))
def learned(parts: Split, params: Params, steps: int, every: int, batch: int | None = None) -> Any:
    """Train while learning λ; return validation loss, test loss and λ (steps, groups)."""
    unit = wdjax.lr_scaled(1.0, rate(steps))
    decay = tuning.hyper_decay(
        unit,
        loss,
        parts.val,
        rules=RULES,
        init=0.01,  # where PyTorch's AdamW starts, and stays
        every=every,
        batch_size=batch,
        bounds=(1e-6, 4.0),
    )
    params, log_decay = trained(decay, parts, params, steps)
    return loss(params, parts.val), loss(params, parts.test), jnp.exp(log_decay[:, :3])


def search(decays: np.ndarray, parts: Split, params: Params, steps: int) -> float:
    """Train with every λ, choose by the validation loss; return the test loss of the chosen."""
    many = jax.vmap(lambda d: given(d, parts, params, steps))
    val, test = map(np.asarray, many(jnp.asarray(decays, jnp.float32)))
    return float(test[np.nanargmin(val)])


def drawn(seed: int, count: int) -> np.ndarray:
    """(count, groups) λ, log-uniform."""
    low, high = np.log(LEAST), np.log(MOST)
    return np.exp(np.random.default_rng(seed).uniform(low, high, (count, len(GROUPS))))


def shared(count: int) -> np.ndarray:
    """(count, groups) λ on a logarithmic grid, the same for all groups."""
    return np.repeat(np.geomspace(LEAST, MOST, count)[:, None], len(GROUPS), axis=1)


def costs(program: Callable[[], Any], one: Callable[[], Any], repeats: int) -> float:
    """Return the median of paired ratios of wall time."""
    ratios = []
    for _ in range(repeats + 1):
        times = []
        for run in (program, one):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            times.append(time.perf_counter() - begin)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])  # the first one compiles


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print the table, write figure and numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=new_folder, default=FOLDER, help="folder for results")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    options = parser.parse_args(arguments)
    steps, splits, repeats = (20, 1, 1) if options.smoke else (300, 10, 9)

    parts, params = split(0), start(0)
    one = lambda: given(jnp.full(3, 0.1), parts, params, steps)
    programs: dict[str, tuple[Callable[[int, Split, Params], float], Any]] = {
        "no decay": (lambda i, p, w: search(np.zeros((1, 3)), p, w, steps), one)
    }
    searches = {"one λ, grid of 8": lambda i: shared(8)} | {
        f"random search, {n}": functools.partial(lambda n, i: drawn(i, n), n) for n in (8, 16, 32)
    }
    for name, grid in searches.items():
        run = lambda i, p, w, grid=grid: search(grid(i), p, w, steps)
        programs[name] = run, lambda run=run: run(0, parts, params)
    for every, batch, longer in (
        (10, None, 1),
        (5, None, 1),
        (5, 100, 1),
        (1, None, 1),
        (5, 100, 2),
    ):
        program = functools.partial(learned, steps=longer * steps, every=every, batch=batch)
        name = f"hyper_decay, every {every}" + (f", batches of {batch}" if batch else "")
        name += f", {longer} times the steps" if longer > 1 else ""
        run = lambda i, p, w, program=program: float(program(p, w)[1])
        programs[name] = run, functools.partial(program, parts, params)

    rows = []
    for name, (run, timed) in programs.items():
        tests = [run(i, split(i), start(i)) for i in range(splits)]
        few = max(1, repeats // 3) if "search" in name or "grid" in name else repeats
        error = float(np.std(tests, ddof=1) / np.sqrt(splits)) if splits > 1 else 0.0
        rows.append(
            {
                "method": name,
                "test loss": float(np.mean(tests)),
                "± s.e.": error,
                "cost in runs": costs(timed, one, few),
            }
        )
    print(f"digits and 64 noise inputs, a λ for each of {', '.join(GROUPS)}; {splits} splits\n")
    print(table(rows))

    options.out.mkdir(parents=True, exist_ok=True)
    figure, axes = new_figure(1)
    path = np.asarray(learned(parts, params, steps, 5)[2])
    for i, name in enumerate(GROUPS):
        axes.semilogy(path[:, i], plots.LINES[i], color=plots.COLORS[i], label=name)
    axes.set(xlabel="step", ylabel="λ", title="λ learned while training, every 5 steps")
    axes.legend()
    figure.savefig(options.out / "tuning.png")
    text = json.dumps({"rows": rows}, indent=1, ensure_ascii=False)
    (options.out / "tuning.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
