"""Two claims from the literature, tried at small size with equal tuning budgets and several seeds.

    python scripts/experiments.py [cautious|corrected] [--out FOLDER] [--smoke]

    cautious     does cautious decay leave the optimum where it is, and what does that buy?
    corrected    does decay by the squared learning rate keep gradients from growing at the end?

Each prints its tables and writes a figure and the numbers, for METHODS.md. Both together take
about a minute on two quiet cores.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from options import new_folder

import wdjax
from wdjax import datasets, gates, plots

Params = Any
Tables = dict[str, Any]  # name -> rows, or a number
FOLDER = Path(__file__).parents[1] / "figures"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as aligned text."""
    lines = [list(rows[0]), *([f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()]
                              for row in rows)]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def new_figure(columns: int) -> tuple[Any, Any]:
    """Return a figure with a row of axes; without pyplot, so no display is needed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * columns, 3.6), layout="constrained", dpi=90)
    return figure, figure.subplots(1, columns)


# ------------------------------------------------------------------------------- cautious decay

DECAYS = {
    "none": None,
    "plain": lambda z, update, grad: jnp.ones_like(z),
    "cautious": gates.cautious,
}


GRID = (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)


def settle(
    method: str,
    lambdas: Sequence[float],
    loss_fn: Callable[[Any, Params], jax.Array],
    start: Any,
    data: Params,
    rate: Any,
    steps: int,
) -> list[np.ndarray]:
    """Train once per λ, all at once: a leaf each, whose λ is the multiplier the rules give it.

    SGD is entrywise, so the leaves do not meet.
    """
    leaves = {f"run_{i}": start for i in range(len(lambdas))}
    gate = DECAYS[method]
    optimizer = wdjax.sgdw(
        rate,
        weight_decay=0.0 if gate is None else 1.0,
        rules=tuple(zip(leaves, lambdas, strict=True)),
        gate=gate,
    )

    def total(params: Params, batch: Params) -> jax.Array:
        return sum(loss_fn(x, batch) for x in params.values())

    step = wdjax.make_train_step(total, optimizer)
    state = wdjax.TrainState.create(leaves, optimizer)
    n = len(jax.tree.leaves(data)[0])
    state, _ = wdjax.fit(
        step, state, data, steps=steps, batch_size=n, shuffle=False, progress=False
    )
    return [np.asarray(x) for x in state.params.values()]


def quadratic(steps: int, lambdas: Sequence[float]) -> list[dict[str, Any]]:
    """Minimize ½(x − 2)² from 0 and from 4, at a constant learning rate of 0.1."""
    start, optimum = jnp.array([0.0, 4.0]), jnp.array([2.0, 2.0])

    def loss_fn(x: Any, optimum: Any) -> jax.Array:
        return jnp.sum((x - optimum) ** 2) / 2

    ends = {m: settle(m, lambdas, loss_fn, start, optimum, 0.1, steps) for m in DECAYS}
    return [
        {"λ": lam, "2/(1+λ)": 2 / (1 + lam)}
        | {f"{m} from {x0:g}": float(ends[m][i][j]) for m in DECAYS for j, x0 in enumerate(start)}
        | {"Σs": wdjax.decay_budget(wdjax.lr_scaled(lam, 0.1), steps)}
        for i, lam in enumerate(lambdas)
    ]


class Underdetermined(NamedTuple):
    """5 equations in 20 unknowns, several draws; and what each method makes of them."""

    rows: list[dict[str, Any]]
    least: float  # the median norm of the shortest solutions


def least_squares(steps: int, draws: int, lambdas: Sequence[float]) -> Underdetermined:
    """Solve A x = b from a far start; the learning rate falls linearly to 0."""
    generator = np.random.default_rng(0)
    a = generator.normal(size=(draws, 5, 20)) / np.sqrt(20)
    b = np.einsum("nij,nj->ni", a, generator.normal(size=(draws, 20)) * 0.3)
    start = jnp.asarray(generator.normal(size=(draws, 20)), jnp.float32)
    shortest = np.stack([np.linalg.pinv(x) @ y for x, y in zip(a, b, strict=True)])
    rate = wdjax.linear_ramp(0.3, 0.0, steps)

    def residuals(x: Any, a: Any, b: Any) -> Any:
        return (a @ x[..., None])[..., 0] - b

    def loss_fn(x: Any, batch: Params) -> jax.Array:
        return jnp.sum(residuals(x, batch["a"], batch["b"]) ** 2) / 2

    def row(method: str, lam: float, x: np.ndarray) -> dict[str, Any]:
        median = lambda vectors: float(np.median(np.linalg.norm(vectors, axis=1)))
        return {
            "decay": method,
            "λ": lam,
            "residual": median(residuals(x, a, b)),
            "norm": median(x),
            "distance": median(x - shortest),
            "Σs": wdjax.decay_budget(wdjax.lr_scaled(lam, rate), steps),
        }

    data = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    rows = []
    for method, gate in DECAYS.items():
        grid = lambdas if gate else (0.0,)
        ends = settle(method, grid, loss_fn, start, data, rate, steps)
        rows += [row(method, lam, x) for lam, x in zip(grid, ends, strict=True)]
    return Underdetermined(rows, float(np.median(np.linalg.norm(shortest, axis=1))))


def cautious(out: Path, smoke: bool) -> Tables:
    """Cautious against plain decay where the answer is known."""
    steps, draws, grid = (100, 2, GRID[-2:]) if smoke else (20_000, 10, GRID)
    points = quadratic(50 if smoke else 2_000, (0.1, 0.3, 0.5, 1.0, 2.0))
    solved = least_squares(steps, draws, grid)
    print("½(x − 2)², SGD, constant learning rate 0.1, where it ends (Σs if the gate were open):\n")
    print(table(points))
    print(f"\n5 equations, 20 unknowns, {draws} draws, SGD, learning rate 0.3 -> 0.")
    print(f"Medians. The shortest solution has norm {solved.least:.3g}; `distance` is to that:\n")
    print(table(solved.rows))
    best = [
        min((row for row in solved.rows if row["decay"] == method), key=lambda row: row["distance"])
        for method in DECAYS
    ]
    print("\nλ tuned over the same grid, for the distance to the shortest solution:\n")
    print(table(best))

    figure, (left, right) = new_figure(2)
    lams = [row["λ"] for row in points]
    left.plot(lams, [row["2/(1+λ)"] for row in points], "k:", label="2 / (1 + λ)")
    for method, color, marker in zip(
        ("plain", "cautious"), plots.COLORS, plots.MARKERS, strict=False
    ):
        left.plot(
            lams, [row[f"{method} from 0"] for row in points], marker, color=color, label=method
        )
        rows = [row for row in solved.rows if row["decay"] == method]
        right.loglog([max(row["residual"], 1e-8) for row in rows], [row["norm"] for row in rows],
                     marker + "-", color=color, label=method)  # fmt: skip
    left.set(xlabel="λ", ylabel="x at the end", title="½(x − 2)²", ylim=(0, 2.3))
    right.axhline(solved.least, color="k", ls=":", label="shortest solution")
    right.set(xlabel="residual ‖Ax − b‖", ylabel="norm ‖x‖", title="5 equations, 20 unknowns")
    for axes in (left, right):
        axes.legend()
    figure.savefig(out / "cautious.png")
    return {"points": points, "grid": solved.rows, "best": best, "least": solved.least}


# ------------------------------------------------------------------------------ corrected decay

NOISE, PEAK, LAMBDAS = 0.5, 1e-2, (0.03, 0.1, 0.3, 1.0)
HIDDEN = (("hidden_*/kernel", 1.0), ("**", 0.0))  # followed by a norm: scale invariant
HEAD = (("head/kernel", 1.0), ("**", 0.0))


def logits(params: Params, x: jax.Array) -> jax.Array:
    """Three layers; RMSNorm without a gain after the first two."""
    for name in ("hidden_0", "hidden_1"):
        x = x @ params[name]["kernel"]
        x = jax.nn.relu(x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6))
    return x @ params["head"]["kernel"]


def noisy_loss(params: Params, batch: Params, key: jax.Array) -> Any:
    """Cross-entropy; in every step half of the labels are drawn anew at random."""
    which, what = jax.random.split(key)
    labels = batch["y"]
    drawn = jax.random.randint(what, labels.shape, 0, 10)
    labels = jnp.where(jax.random.bernoulli(which, NOISE, labels.shape), drawn, labels)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, batch["x"]), labels)
    return jnp.mean(losses), {"weight_norm": optax.tree.norm(params)}


def start(seed: int, width: int) -> Params:
    """He's initialization."""
    draw, sizes = jax.nn.initializers.he_normal(), (64, width, width, 10)
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        name: {"kernel": draw(key, sizes[i : i + 2])}
        for i, (name, key) in enumerate(zip(("hidden_0", "hidden_1", "head"), keys, strict=True))
    }


def adam(law: Callable[..., Any], rate: Any, weight_decay: Any) -> optax.GradientTransformation:
    """Adam; `law` for the layers before a norm, the usual one for the head."""
    return optax.chain(
        optax.adam(rate),
        wdjax.decay_weights(law(weight_decay, rate), rules=HIDDEN),
        wdjax.decay_weights(wdjax.lr_scaled(weight_decay, rate), rules=HEAD),
    )


LAWS = {
    "AdamW (lr_scaled)": wdjax.lr_scaled,
    "AdamC (corrected)": functools.partial(wdjax.corrected, peak=PEAK),
}


def windows(values: np.ndarray) -> tuple[float, float]:
    """Return the mean of the middle 2% of a run and of its last 2%."""
    n, few = len(values), max(1, len(values) // 50)
    return float(values[n // 2 : n // 2 + few].mean()), float(values[-few:].mean())


def accuracy(params: Params, part: Params) -> float:
    """Return the share of examples that are classified right."""
    return float(jnp.mean(jnp.argmax(logits(params, part["x"]), axis=1) == part["y"]))


class Run(NamedTuple):
    """One training run."""

    law: str
    weight_decay: float
    grad_norm: np.ndarray
    weight_norm: np.ndarray
    validation: float
    test: float


def label_noise(steps: int, seeds: int, lambdas: Sequence[float], width: int) -> list[Run]:
    """Train every law with every λ from every seed."""
    rate = wdjax.linear_ramp(PEAK, 0.0, steps)
    runs = []
    for law, function in LAWS.items():
        # λ is part of the optimizer's state, so that one compiled step serves all of them
        build = optax.inject_hyperparams(functools.partial(adam, function, rate))
        step = wdjax.make_train_step(noisy_loss, build(weight_decay=0.0))
        for weight_decay, seed in itertools.product(lambdas, range(seeds)):
            data = datasets.digits(seed)
            kept, held = ({k: v[part] for k, v in data.train.items()}
                          for part in (slice(1152), slice(1152, None)))  # fmt: skip
            state = wdjax.TrainState.create(
                start(seed, width), build(weight_decay=weight_decay), key=jax.random.key(seed)
            )
            state, history = wdjax.fit(
                step, state, kept, steps=steps, batch_size=128, seed=seed, progress=False
            )
            runs.append(Run(
                law, weight_decay, history.metrics["grad_norm"], history.metrics["weight_norm"],
                accuracy(state.params, held), accuracy(state.params, data.test),
            ))  # fmt: skip
    return runs


def summary(runs: Sequence[Run], law: str, weight_decay: float, steps: int) -> dict[str, Any]:
    """Average over the seeds."""
    mine = [run for run in runs if (run.law, run.weight_decay) == (law, weight_decay)]
    grad = np.mean([windows(run.grad_norm) for run in mine], axis=0)
    ratio = np.mean([windows(run.grad_norm / run.weight_norm) for run in mine], axis=0)
    rate = wdjax.linear_ramp(PEAK, 0.0, steps)
    tests = [run.test for run in mine]
    return {
        "law": law,
        "λ": weight_decay,
        "Σs hidden": wdjax.decay_budget(LAWS[law](weight_decay, rate), steps),
        "‖g‖ middle": float(grad[0]),
        "end": float(grad[1]),
        "‖g‖/‖θ‖ middle": float(ratio[0]),
        "end ": float(ratio[1]),
        "validation": f"{np.mean([run.validation for run in mine]):.3f}",
        "test": f"{np.mean(tests):.3f}",
        "least, most": f"{min(tests):.3f}, {max(tests):.3f}",
    }


def corrected(out: Path, smoke: bool) -> Tables:
    """AdamC against AdamW on digits with label noise."""
    steps, seeds, lambdas = (60, 1, LAMBDAS[-1:]) if smoke else (6_000, 3, LAMBDAS)
    runs = label_noise(steps, seeds, lambdas, width=16 if smoke else 64)
    rows = [summary(runs, law, lam, steps) for law in LAWS for lam in lambdas]
    print(
        f"digits, {NOISE:.0%} fresh label noise, {seeds} seeds, {steps} steps, Adam {PEAK} -> 0:\n"
    )
    print(table(rows))
    best = [
        max((row for row in rows if row["law"] == law), key=lambda row: row["validation"])
        for law in LAWS
    ]
    print("\nλ tuned over the same grid, for the accuracy on the validation part:\n")
    print(table(best))

    figure, (left, middle, right) = new_figure(3)
    few = max(1, steps // 50)
    at = np.arange(steps // few) * few + few / 2
    for law, color, line, marker in zip(
        LAWS, plots.COLORS, plots.LINES, plots.MARKERS, strict=False
    ):
        mine = [run for run in runs if (run.law, run.weight_decay) == (law, lambdas[-1])]
        for ax, curves in (
            (left, [run.grad_norm for run in mine]),
            (middle, [run.grad_norm / run.weight_norm for run in mine]),
        ):
            means = np.mean(curves, axis=0)[: few * (steps // few)].reshape(-1, few).mean(axis=1)
            ax.plot(at, means, line, color=color, label=law)
        growth = [row["end "] / row["‖g‖/‖θ‖ middle"] for row in rows if row["law"] == law]
        right.semilogx(lambdas, growth, marker + line, color=color, label=law)
    for ax, name in ((left, "‖g‖"), (middle, "‖g‖ / ‖θ‖")):
        ax.set(xlabel="step", ylabel=name, ylim=(0, None), title=f"λ = {lambdas[-1]:g}")
    right.axhline(1, color="k", ls=":")
    right.set(xlabel="λ", ylabel="‖g‖ / ‖θ‖, end over middle", title="growth")
    for ax in (left, middle, right):
        ax.legend()
    figure.savefig(out / "corrected.png")
    return {"grid": rows, "best": best}


EXPERIMENTS = {"cautious": cautious, "corrected": corrected}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiments that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(EXPERIMENTS))
    parser.add_argument("--out", type=new_folder, default=FOLDER, help="folder for the figures")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(EXPERIMENTS))
    if unknown:
        parser.error(f"unknown experiments {unknown}; there are {', '.join(EXPERIMENTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or EXPERIMENTS:
        results = EXPERIMENTS[name](options.out, options.smoke)
        text = json.dumps(results, indent=1, ensure_ascii=False)
        (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print()


if __name__ == "__main__":
    main()
