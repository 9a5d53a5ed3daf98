"""Choose weight decay by cross-validation: tables, validation curves, heat maps, paths.

python scripts/sweep.py --out out                  four jobs, about a minute
python scripts/sweep.py --jobs digits --keep       interrupted, the same command goes on
"""

import argparse
import functools
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from options import new_folder, whole_number
from train import finite_json

import wdjax
from wdjax import datasets, linear, plots, sweeps

RULES = wdjax.standard()  # kernels decay, biases do not
SHOWN = 8  # rows of a table


class Job(NamedTuple):
    """A model, its data, what is swept, and what to check."""

    title: str
    data: datasets.Dataset
    init: Callable[[jax.Array], Any]
    loss: Callable[..., jax.Array]
    build: Callable[[Any], optax.GradientTransformation]
    hparams: dict[str, np.ndarray]
    epochs: int
    batch_size: int
    folds: int
    is_linear: bool
    names: tuple[str, ...] | None = None


# ------------------------------------------------------------------------------------------ jobs


def coupled_sgd(h: Any) -> optax.GradientTransformation:
    """L2 in the gradient, the penalty λ/2 ‖w‖², and a rate η / sqrt(1 + γ² t)."""
    learning_rate = wdjax.inverse_sqrt(h["learning_rate"], h["gamma"])
    return optax.chain(
        wdjax.add_decayed_weights(h["weight_decay"], rules=RULES), optax.sgd(learning_rate)
    )


def adamw(h: Any) -> optax.GradientTransformation:
    """Adam with decoupled decay, λ η of the weights taken off at every step."""
    return wdjax.decayed(optax.adam)(
        h["learning_rate"], weight_decay=h["weight_decay"], rules=RULES
    )


def dense(params: Any, x: jax.Array) -> jax.Array:
    """Return x w + b."""
    return jnp.dot(x, params["kernel"]) + params["bias"][None]


def zeros(features: int) -> Callable[[jax.Array], Any]:
    """Start a linear model at zero, as ridge has no other place to start from."""
    return lambda key: {"kernel": jnp.zeros((features, 1)), "bias": jnp.zeros(1)}


def half_square(params: Any, data: Any, weights: jax.Array) -> jax.Array:
    """1/(2n) Σ (x w + b − y)²: with λ/2 ‖w‖² what ridge regression minimizes."""
    residual = dense(params, data["x"])[:, 0] - data["y"]
    return 0.5 * jnp.sum(weights * residual**2) / jnp.sum(weights)


def perceptron(key: jax.Array, hidden: int = 32) -> Any:
    """One hidden layer for the digits."""
    draw = jax.nn.initializers.he_normal()
    return {
        f"dense_{i}": {"kernel": draw(k, shape), "bias": jnp.zeros(shape[1])}
        for i, (k, shape) in enumerate(
            zip(jax.random.split(key), ((64, hidden), (hidden, 10)), strict=True)
        )
    }


def cross_entropy(params: Any, data: Any, weights: jax.Array) -> jax.Array:
    """Mean cross-entropy of a network with one hidden layer and ReLU."""
    logits = dense(params["dense_1"], jax.nn.relu(dense(params["dense_0"], data["x"])))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["y"])
    return jnp.sum(weights * losses) / jnp.sum(weights)


def line(seed: int) -> Job:
    """One feature, y = 3x + 5, and 80 examples. Nothing overfits, so λ = 0 should do no harm."""
    return Job(
        "1. y = 3x + 5: λ, η and γ of SGD",
        datasets.linear(seed),
        zeros(1),
        half_square,
        coupled_sgd,
        sweeps.grid(
            weight_decay=[0.0, *sweeps.log_grid(1e-4, 10.0, 11)],
            learning_rate=sweeps.log_grid(0.01, 10.0, 10),
            gamma=[0.0, 0.03, 0.3],
        ),
        epochs=300,
        batch_size=32,
        folds=5,
        is_linear=True,
    )


def polynomial(seed: int, degree: int = 20, size: int = 40) -> Job:
    """Polynomials of degree 20 through 40 noisy points: here L2 is what makes it work."""
    generator = np.random.default_rng(seed)

    def draw(count: int) -> datasets.Arrays:
        x = generator.uniform(-1.0, 1.0, count)
        y = np.sin(3.0 * x) + generator.normal(scale=0.5, size=count)
        # Chebyshev's polynomials, of which high degrees are as large as low ones
        features = np.polynomial.chebyshev.chebvander(x, degree)[:, 1:]
        return {"x": features.astype(np.float32), "y": y.astype(np.float32)}

    return Job(
        "2. Degree 20 through 40 noisy points: where L2 helps",
        datasets.Dataset(draw(size), draw(1000)),
        zeros(degree),
        half_square,
        coupled_sgd,
        sweeps.grid(
            weight_decay=sweeps.log_grid(1e-4, 10.0, 21), learning_rate=[0.05], gamma=[0.01]
        ),
        epochs=2000,
        batch_size=16,
        folds=5,
        is_linear=True,
        names=tuple(f"T{i}" for i in range(1, degree + 1)),
    )


def diabetes(seed: int) -> Job:
    """Ten measurements of 353 patients: λ and η."""
    return Job(
        "3. Diabetes, linear model by SGD: λ and η",
        datasets.diabetes(seed),
        zeros(10),
        half_square,
        coupled_sgd,
        sweeps.grid(
            weight_decay=sweeps.log_grid(1e-4, 10.0, 16),
            learning_rate=sweeps.log_grid(0.0003, 1.0, 8),
            gamma=[0.03],
        ),
        epochs=200,
        batch_size=32,
        folds=5,
        is_linear=True,
        names=("age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu"),
    )


def digits(seed: int) -> Job:
    """Handwritten digits, one hidden layer by AdamW: λ and η."""
    return Job(
        "4. Digits, one hidden layer by AdamW: λ and η",
        datasets.digits(seed),
        perceptron,
        cross_entropy,
        adamw,
        sweeps.grid(
            weight_decay=[0.0, *sweeps.log_grid(0.01, 100.0, 9)],
            learning_rate=sweeps.log_grid(1e-3, 0.5, 7),
        ),
        epochs=15,
        batch_size=64,
        folds=3,
        is_linear=False,
    )


JOBS = {"line": line, "polynomial": polynomial, "diabetes": diabetes, "digits": digits}


# --------------------------------------------------------------------------------------- working


def ridge_scores(job: Job, weight_decays: np.ndarray, folds: sweeps.Folds) -> np.ndarray:
    """Cross-validated scores (L,) of exact ridge on the same folds, in float64.

    With centered X and y:  w = (XᵀX/n + λ I)⁻¹ Xᵀy/n,  b = mean(y) − mean(X) w.
    """
    x, y = job.data.train["x"].astype(np.float64), job.data.train["y"].astype(np.float64)
    scores = np.empty((len(weight_decays), len(folds.train)))
    for k, (train, used, val, kept) in enumerate(zip(*folds, strict=True)):
        train, val = train[used > 0], val[kept > 0]
        center, level, n = x[train].mean(axis=0), y[train].mean(), len(train)
        inputs, target = x[train] - center, y[train] - level
        for index, weight_decay in enumerate(weight_decays):
            hessian = inputs.T @ inputs / n + weight_decay * np.eye(x.shape[1])
            w = np.linalg.lstsq(hessian, inputs.T @ target / n, rcond=None)[0]
            scores[index, k] = 0.5 * np.mean(((x[val] - center) @ w + level - y[val]) ** 2)
    return scores.mean(axis=1)


def choose(result: sweeps.SweepResult) -> dict[str, sweeps.Selection]:
    """Apply the rules; an optimum at the edge of the grid is printed rather than warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return {
            label: sweeps.select(result, rule)
            for label, rule in (("min", "min"), ("1-SE", "1se"), ("paired 1-SE", "paired-1se"))
        }


def test_loss(job: Job, selection: sweeps.Selection, seed: int) -> float:
    """Train the selection on all training data and score the test part, which nothing has seen."""
    params = sweeps.refit(
        job.build,
        selection,
        job.data.train,
        init=job.init,
        loss=job.loss,
        batch_size=job.batch_size,
        seed=seed,
    )
    return float(job.loss(params, job.data.test, jnp.ones(len(job.data.test["y"]))))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the best rows and count the rest."""
    names = list(rows[0])
    print("".join(f"{name:>14}" for name in names))
    for row in rows[:SHOWN]:
        print("".join(f"{row[name]:>14.5g}" for name in names))
    diverged = sum(not np.isfinite(row["mean"]) for row in rows)
    print(f"... {len(rows)} configurations in all, {diverged} of them diverged")


def study(job: Job, *, seed: int, folder: Path | None, progress: bool | None) -> dict[str, Any]:
    """Sweep, select, refit and compare; print and return what was found."""
    print(f"\n{job.title}\n{'=' * len(job.title)}")
    start = time.perf_counter()
    folds = sweeps.kfold(len(job.data.train["y"]), job.folds, seed=seed)
    result = sweeps.sweep(
        job.build,
        job.hparams,
        job.data.train,
        init=job.init,
        loss=job.loss,
        folds=folds,
        epochs=job.epochs,
        batch_size=job.batch_size,
        seeds=[seed],
        folder=folder,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    runs = result.val[..., 0].size
    print(f"{runs} runs of {job.epochs} epochs in {seconds:.2f} s, compilation included\n")
    rows = sweeps.table(result)
    print_table(rows)

    chosen = choose(result)
    found: dict[str, Any] = {
        "title": job.title,
        "runs": runs,
        "seconds": round(seconds, 2),
        "table": rows,
        "choices": {},
        "checks": {},
    }
    print()
    for label, selection in chosen.items():
        numbers = {"test loss": test_loss(job, selection, seed), **selection.hparams}
        edge = f"  at the edge of the grid: {', '.join(selection.edge)}" if selection.edge else ""
        print(f"{label:<12}", *(f"{k} {v:<10.4g}" for k, v in numbers.items()), edge)
        found["choices"][label] = numbers | {"edge": list(selection.edge)}
    if job.is_linear:
        compare(job, result, folds, found)
    return found | {"result": result, "chosen": chosen}


def compare(
    job: Job, result: sweeps.SweepResult, folds: sweeps.Folds, found: dict[str, Any]
) -> None:
    """Check the sweep against exact ridge on the same folds, where nothing is trained."""
    curve = sweeps.validation_curve(result, "weight_decay")
    exact = ridge_scores(job, curve.x, folds)
    best = exact.argmin()
    excess = exact[int(np.argmin(curve.mean))] / exact[best] - 1.0
    ok = bool(excess <= 0.01)
    found["exact"] = exact.tolist()
    found["checks"]["excess of the chosen λ over the best of exact ridge"] = {
        "value": float(excess),
        "limit": 0.01,
        "ok": ok,
    }
    print(
        f"exact ridge on the same folds: best λ {curve.x[best]:.4g}, score {exact[best]:.5g}; the "
        f"sweep's λ scores {excess:.2%} worse there ({'ok' if ok else 'BAD'}: at most 1%)"
    )


def passes(found: dict[str, Any]) -> bool:
    """Whether no check of a job failed."""
    return all(check["ok"] for check in found["checks"].values())


def draw(job: Job, found: dict[str, Any], path: Path) -> None:
    """Draw validation curve, heat map or both, and the coefficient path of a linear model."""
    from matplotlib.figure import Figure

    result, chosen = found["result"], found["chosen"]
    has_map = len(np.unique(job.hparams["learning_rate"])) > 1
    panels = 1 + has_map + (job.names is not None)
    figure = Figure(figsize=(6.0 * panels, 4.8), layout="constrained")
    figure.suptitle(job.title)
    axes = iter(np.ravel(figure.subplots(1, panels)))

    lines = {label: chosen[label].hparams["weight_decay"] for label in ("min", "1-SE")}
    curve = sweeps.validation_curve(result, "weight_decay")
    ax = plots.validation_curve(curve, chosen=lines, ax=next(axes))
    if "exact" in found:
        ax.plot(curve.x, found["exact"], ":", color="black", label="exact ridge")
        ax.legend()
    ax.set(xlabel="weight decay λ", ylabel="cross-validated loss")
    finite = curve.mean[np.isfinite(curve.mean)]
    if finite.max() > 10 * finite.min():
        ax.set_yscale("log")
    if has_map:
        scores = sweeps.heatmap(result, "weight_decay", "learning_rate")
        h = chosen["min"].hparams
        best = {"min": (h["weight_decay"], h["learning_rate"])}
        ax = plots.heat_map(scores, chosen=best, ax=next(axes), label="cross-validated loss")
        ax.set(xlabel="weight decay λ", ylabel="learning rate η")
    if job.names is not None:
        draw_path(job, lines, next(axes))
    figure.savefig(path, dpi=120)
    print(f"figure: {path}")


def draw_path(job: Job, lines: dict[str, float], ax: Any) -> None:
    """Draw the coefficients of exact ridge over λ; the strength of a mean is n times smaller."""
    x, y = job.data.train["x"], job.data.train["y"]
    weight_decays = np.asarray(sweeps.log_grid(1e-4, 10.0, 100))
    coefficients = np.asarray(linear.ridge_path(x, y, len(y) * weight_decays).coef)
    few = job.names is not None and len(job.names) <= 10
    names = job.names if few else None
    plots.coefficient_path(weight_decays, coefficients, names=names, chosen=lines, ax=ax)
    ax.set(xlabel="weight decay λ", ylabel="coefficient of exact ridge")


# ---------------------------------------------------------------------------------- command line


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        description="Choose weight decay by cross-validation.", allow_abbrev=False
    )
    parser.add_argument("--out", type=new_folder, default="out", help="folder for results")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    seed, folds = (functools.partial(whole_number, least=least) for least in (0, 2))
    parser.add_argument("--seed", type=seed, default=0, help="of data, folds, weights and batches")
    parser.add_argument("--epochs", type=whole_number, help="instead of each job's own")
    parser.add_argument("--folds", type=folds, help="instead of each job's own")
    parser.add_argument(
        "--keep", action="store_true", help="keep finished chunks and go on from them"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    options.refuse = parser.error  # for what only a job itself finds
    for name in options.jobs if options.folds else ():
        most = len(JOBS[name](options.seed).data.train["y"]) // 2
        if options.folds > most:
            parser.error(
                f"--folds must leave two examples in each, so be at most {most} for {name}; got "
                f"{options.folds}"
            )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the jobs; 0 if every check passed, else 1."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    others = []  # jobs whose check failed on other epochs or folds than their own
    for name in options.jobs:
        own = JOBS[name](options.seed)
        job = own._replace(epochs=options.epochs or own.epochs, folds=options.folds or own.folds)
        folder = options.out / f"sweep-{name}" if options.keep else None
        progress = False if options.no_progress else None  # None: a bar where it helps
        try:
            found = study(job, seed=options.seed, folder=folder, progress=progress)
        except ValueError as error:
            if "`folder` must" not in str(error):
                raise
            options.refuse(f"--keep: {error}")  # it holds another sweep
        draw(job, found, options.out / f"sweep-{name}.png")
        metrics[name] = {k: v for k, v in found.items() if k not in ("result", "chosen")}
        if (job.epochs, job.folds) != (own.epochs, own.folds) and not passes(found):
            others.append(f"{own.epochs} and {own.folds} of {name}")
    ok = all(map(passes, metrics.values()))
    path = options.out / "sweep.json"
    text = json.dumps(
        finite_json(metrics | {"ok": ok}), indent=2, ensure_ascii=False, allow_nan=False
    )
    path.write_text(text, encoding="utf-8")
    verdict = "all checks passed" if ok else "BAD: a check failed, see above"
    if others:
        verdict += f"; its limit is for a job's own epochs and folds, {', '.join(others)}"
    print(f"\n{verdict}; {path}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
