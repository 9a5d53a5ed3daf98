"""Train small models with weight decay, print what it did, write figures and metrics.json.

python scripts/train.py --out out                       the three demo jobs, under a minute
python scripts/train.py --data diabetes --optimizer adam --penalty l1 --implicit
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from options import finite_number, new_folder, whole_number

import wdjax
from wdjax import datasets, plots

# name -> the law given the peak learning rate, the weight decay used when none is given
LAWS: dict[str, tuple[Callable[[float], Callable[..., Any]], float]] = {
    "lr_scaled": (lambda peak: wdjax.lr_scaled, 0.1),
    "schedule_scaled": (lambda peak: functools.partial(wdjax.schedule_scaled, peak=peak), 1e-3),
    "fixed": (lambda peak: wdjax.fixed, 1e-3),
    "corrected": (lambda peak: functools.partial(wdjax.corrected, peak=peak), 0.1),
    "lr_squared": (lambda peak: wdjax.lr_squared, 1.0),
}
COUPLED = 0.01  # the weight decay used in the gradient when none is given
PENALTIES = {
    "none": None,
    "l2": wdjax.penalties.l2,
    "l1": wdjax.penalties.l1,
    "elastic_net": wdjax.penalties.elastic_net(0.5),
}
# name -> factory, its own arguments, the learning rate used when none is given
OPTIMIZERS: dict[str, tuple[Callable[..., Any], dict[str, Any], float]] = {
    "sgd": (optax.sgd, {}, 0.1),
    "momentum": (optax.sgd, {"momentum": 0.9}, 0.02),
    "adagrad": (optax.adagrad, {}, 0.1),
    "adam": (optax.adam, {}, 3e-3),
    "adabelief": (optax.adabelief, {}, 3e-3),
    "rmsprop": (optax.rmsprop, {}, 1e-3),
    "lion": (optax.lion, {}, 1e-3),
    "lamb": (optax.lamb, {}, 1e-2),
    "muon": (optax.contrib.muon, {}, 1e-2),
}
RULES = wdjax.standard()  # kernels decay, biases do not
EPOCHS = {"linear": 1000, "diabetes": 200, "digits": 30}
DIABETES = ("age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu")


# ---------------------------------------------------------------------------------------- models


class Task(NamedTuple):
    """A model with its data: loss(params, batch) -> (loss, metrics), measure(params, part)."""

    data: datasets.Dataset
    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], Any]
    measure: Callable[[Any, Any], dict[str, jax.Array]]


def dense(params: Any, x: jax.Array) -> jax.Array:
    """Return x w + b."""
    return jnp.dot(x, params["kernel"]) + params["bias"][None, :]


def weight_norm(params: Any) -> jax.Array:
    """Return ‖θ‖₂ over the weights that `standard()` decays, so biases are not in it."""
    return jnp.sqrt(2.0 * wdjax.penalty_value(wdjax.penalties.l2, params))


def weights(params: Any) -> np.ndarray:
    """Return the same weights, flat, for histograms and counts."""
    kept = jax.tree.map(lambda p, m: p[:0] if m == 0 else p, params, wdjax.resolve(RULES, params))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(kept)])


def regression(data: datasets.Dataset) -> Task:
    """Linear regression from zero, loss 1/(2n) Σ (x w + b − y)²: what ridge and lasso minimize."""

    def init(key: jax.Array) -> Any:
        del key
        return {"kernel": jnp.zeros((data.train["x"].shape[1], 1)), "bias": jnp.zeros(1)}

    def loss(params: Any, batch: Any) -> Any:
        residual = dense(params, batch["x"])[:, 0] - batch["y"]
        return 0.5 * jnp.mean(residual**2), {"weight_norm": weight_norm(params)}

    def measure(params: Any, part: Any) -> dict[str, jax.Array]:
        value = loss(params, part)[0]
        return {"loss": value, "R2": 1.0 - 2.0 * value / jnp.var(part["y"])}

    return Task(data, init, loss, measure)


def classification(data: datasets.Dataset, hidden: int = 128, classes: int = 10) -> Task:
    """One hidden layer, ReLU, cross-entropy."""

    def init(key: jax.Array) -> Any:
        sizes = (data.train["x"].shape[1], hidden, classes)
        draw = jax.nn.initializers.he_normal()
        return {
            f"dense_{i}": {"kernel": draw(k, sizes[i : i + 2]), "bias": jnp.zeros(sizes[i + 1])}
            for i, k in enumerate(jax.random.split(key, 2))
        }

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return dense(params["dense_1"], jax.nn.relu(dense(params["dense_0"], x)))

    def loss(params: Any, batch: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch["x"]), batch["y"]
        )
        return jnp.mean(losses), {"weight_norm": weight_norm(params)}

    def measure(params: Any, part: Any) -> dict[str, jax.Array]:
        right = jnp.argmax(logits(params, part["x"]), axis=1) == part["y"]
        return {"loss": loss(params, part)[0], "accuracy": jnp.mean(right)}

    return Task(data, init, loss, measure)


TASKS = {
    "linear": lambda seed: regression(datasets.linear(seed)),
    "diabetes": lambda seed: regression(datasets.diabetes(seed)),
    "digits": lambda seed: classification(datasets.digits(seed)),
}


# -------------------------------------------------------------------------------------- training


class Run(NamedTuple):
    """A finished run: parameters, curves (one entry per epoch or evaluation) and numbers."""

    params: Any
    steps: np.ndarray
    losses: np.ndarray
    norms: np.ndarray
    evals: dict[str, np.ndarray]
    numbers: dict[str, float]


def steps_per_epoch(task: Task, batch_size: int) -> int:
    """Count the mini-batches, the last short one among them."""
    return -(-len(task.data.train["y"]) // batch_size)


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: bool | None,
    watch: Callable[[Any], dict[str, jax.Array]] = lambda params: {},
) -> Run:
    """Fit, evaluating test loss and `watch` after about 100 evenly spaced numbers of epochs."""
    per_epoch = steps_per_epoch(task, batch_size)
    measure = jax.jit(task.measure)

    def evaluate(state: Any) -> dict[str, Any]:
        test = measure(state.params, task.data.test)
        return {f"test_{name}": value for name, value in test.items()} | watch(state.params)

    state, history = wdjax.fit(
        wdjax.make_train_step(task.loss, optimizer),
        wdjax.TrainState.create(task.init(jax.random.key(seed)), optimizer),
        task.data.train,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        evaluate=evaluate,
        eval_every=per_epoch * max(1, epochs // 100),
        progress=progress,
    )
    losses, norms = (
        history.metrics[name].reshape(epochs, per_epoch).mean(axis=1)
        for name in ("loss", "weight_norm")
    )
    numbers = {
        f"{part} {name}": float(value)
        for part, arrays in task.data._asdict().items()
        for name, value in measure(state.params, arrays).items()
    }
    kernels = weights(state.params).astype(np.float64)  # holds the square of any float32
    numbers["weight norm"] = float(np.linalg.norm(kernels))
    numbers["exact zeros"] = int(np.sum(kernels == 0))
    steps = per_epoch * np.arange(1, epochs + 1)
    evals = {"steps": history.eval_steps, **history.evals}
    return Run(state.params, steps, losses, norms, evals, numbers)


# ------------------------------------------------------------------------------------- reporting


class Report:
    """Prints a job and keeps every printed number for metrics.json."""

    def __init__(self, title: str) -> None:
        self.metrics: dict[str, Any] = {"title": title}
        self.start = time.perf_counter()
        print(f"\n{title}\n{'=' * len(title)}")

    def say(self, text: str, **numbers: float | str | None) -> None:
        """Print a text with numbers in braces."""
        self.metrics.setdefault("settings", {}).update(numbers)
        print(text.format(**numbers))

    def audits(self, task: Task, optimizers: Mapping[str, Any], steps: int) -> None:
        """Print what each optimizer that decays will do: asked of it, before anything is trained.

        Shapes are all that it takes, and rules and strengths stand in the optimizers alone.
        """
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        for label, optimizer in optimizers.items():
            if label != "none":
                audit = wdjax.audit(shapes, optimizer, rules=RULES, steps=steps)
                found = {"rows": audit.rows, "warnings": list(audit.warnings)}
                self.metrics.setdefault("audits", {})[label] = found
                print(f"\nbefore training, {label}:\n{audit.short()}")
                most = max(row["shrink"] or 0.0 for row in audit.rows)
                if most >= 1:
                    raise ValueError(
                        f"{label}: a step takes off {most:g} of a weight, and its sign flips; "
                        "lower --weight-decay"
                    )
        print()

    def runs(self, runs: Mapping[str, Mapping[str, float]]) -> None:
        """Print one line for each run, one column for each number."""
        self.metrics["runs"] = {label: dict(numbers) for label, numbers in runs.items()}
        columns = list(dict.fromkeys(name for numbers in runs.values() for name in numbers))
        width = max(len(label) for label in runs)
        print(" " * width, *(f"{name:>14}" for name in columns))
        for label, numbers in runs.items():
            cells = (f"{numbers[n]:>14.5g}" if n in numbers else f"{'-':>14}" for n in columns)
            print(f"{label:<{width}}", *cells)
        numbers = [value for row in runs.values() for value in row.values()]
        self.check("numbers that are not finite", int(np.sum(~np.isfinite(numbers))), 0)

    def check(self, name: str, value: float, limit: float) -> None:
        """Print whether a number is as small as it must be."""
        ok = bool(value <= limit)
        self.metrics.setdefault("checks", {})[name] = {"value": value, "limit": limit, "ok": ok}
        print(f"{name} = {value:.2g} ({'<=' if ok else '>'} {limit:g}: {'ok' if ok else 'BAD'})")

    def save(self, figure: Any, folder: Path, name: str) -> None:
        """Write the figure and print how long the job took."""
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        self.metrics["figure"] = path.name
        self.metrics["seconds"] = round(time.perf_counter() - self.start, 1)
        print(f"figure: {path} ({self.metrics['seconds']} s)")

    @property
    def ok(self) -> bool:
        """Whether every check of the job passed."""
        return all(check["ok"] for check in self.metrics.get("checks", {}).values())


def new_figure(title: str) -> tuple[Any, Any]:
    """Return a figure with 2 x 2 axes; without pyplot, so no display is needed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="tight")
    figure.suptitle(title)
    return figure, figure.subplots(2, 2)


def draw_curves(runs: Mapping[str, Run], train_ax: Any, test_ax: Any, norm_ax: Any) -> None:
    """Draw train loss, test loss and weight norm of all runs."""
    first = next(iter(runs.values()))
    losses = {label: run.losses for label, run in runs.items()}
    norms = {label: run.norms for label, run in runs.items()}
    tests = {label: run.evals["test_loss"] for label, run in runs.items()}
    plots.loss_curve(losses, steps=first.steps, ax=train_ax, ylabel="train loss, epoch mean")
    plots.loss_curve(tests, steps=first.evals["steps"], ax=test_ax, ylabel="test loss")
    plots.weight_norms(norms, steps=first.steps, ax=norm_ax)


# --------------------------------------------------------------------------------- the demo jobs


def linear_job(out: Path, seed: int, progress: bool | None, epochs: int = 5000) -> Report:
    """SGD with L2 in the gradient reaches the exact ridge solution."""
    weight_decay, init_value, gamma, batch_size = 0.1, 0.5, 3.0, 20
    task = TASKS["linear"](seed)
    learning_rate = wdjax.inverse_sqrt(init_value, gamma)
    report = Report("1. A line by SGD with L2 in the gradient, against exact ridge")
    report.say(
        "minimize 1/(2n) Σ (x w + b − y)² + λ/2 w², the bias b is free; λ = {weight_decay}\n"
        "learning rate {init_value} / sqrt(1 + {gamma}² t); {epochs} epochs, mini-batches of "
        "{batch_size}",
        weight_decay=weight_decay,
        init_value=init_value,
        gamma=gamma,
        epochs=epochs,
        batch_size=batch_size,
    )
    w, b = ridge(task.data.train, weight_decay)
    sgd = optax.sgd(learning_rate)
    optimizers = {
        "none": sgd,
        "L2": optax.chain(wdjax.add_decayed_weights(weight_decay, rules=RULES), sgd),
    }
    report.audits(task, optimizers, epochs * steps_per_epoch(task, batch_size))
    runs = {
        label: train(
            task,
            optimizer,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            watch=lambda params: {"distance": distance(params, w, b)},
        )
        for label, optimizer in optimizers.items()
    }
    exact = {"exact ridge": {"weight norm": abs(w.item()), "w": w.item(), "b": b}}
    report.runs({label: run.numbers | line_of(run) for label, run in runs.items()} | exact)
    report.check("max |w - ridge|", distance(runs["L2"].params, w, b), 1e-4)
    report.save(linear_figure(task, runs, w.item(), b), out, "linear")
    return report


def ridge(part: datasets.Arrays, weight_decay: float) -> tuple[np.ndarray, float]:
    """Minimize 1/(2n) ‖X w + b − y‖² + λ/2 ‖w‖² exactly, in float64; the bias b is free.

    With centered X and y:  w = (XᵀX/n + λ I)⁻¹ Xᵀy/n,  b = mean(y) − mean(X) w.
    """
    x, y = part["x"].astype(np.float64), part["y"].astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean()
    x, y = x - mean_x, y - mean_y
    w = np.linalg.solve(x.T @ x / len(x) + weight_decay * np.eye(x.shape[1]), x.T @ y / len(x))
    return w, float(mean_y - mean_x @ w)


def distance(params: Any, w: np.ndarray, b: float) -> float:
    """Return the largest difference of any weight from w, or of the bias from b."""
    found = np.append(np.asarray(params["kernel"], np.float64)[:, 0], params["bias"][0])
    return float(np.abs(found - np.append(w, b)).max())


def line_of(run: Run) -> dict[str, float]:
    """Return slope and intercept."""
    return {"w": run.params["kernel"].item(), "b": run.params["bias"].item()}


def linear_figure(task: Task, runs: Mapping[str, Run], w: float, b: float) -> Any:
    """Draw data and fits, train loss, weight norm and the distance to the exact solution."""
    figure, ((fit_ax, loss_ax), (norm_ax, distance_ax)) = new_figure(
        "y = 3x + 5 + noise: SGD with L2 in the gradient against exact ridge"
    )
    for (label, part), marker in zip(task.data._asdict().items(), "ox", strict=True):
        fit_ax.plot(part["x"][:, 0], part["y"], marker, color="0.6", markersize=4, label=label)
    ends = np.array([-1.0, 1.0])
    fit_ax.plot(ends, w * ends + b, color="0.8", linewidth=6, label="exact ridge", zorder=1)
    for index, (label, run) in enumerate(runs.items()):
        slope, intercept = line_of(run).values()
        color, style = plots.COLORS[index], plots.LINES[index]
        fit_ax.plot(ends, slope * ends + intercept, style, color=color, label=label)
    fit_ax.set(xlabel="x", ylabel="y")

    draw_curves(runs, loss_ax, distance_ax, norm_ax)
    distance_ax.clear()
    distances = {label: run.evals["distance"] for label, run in runs.items()}
    plots.loss_curve(distances, steps=runs["L2"].evals["steps"], ax=distance_ax)
    distance_ax.axhline(1e-4, linestyle=":", color="black", label="required: 1e-4")
    distance_ax.set_ylabel("largest distance of w and b to exact ridge")
    norm_ax.axhline(abs(w), linestyle=":", color="black", label="exact ridge")
    for ax in (fit_ax, norm_ax, distance_ax):
        ax.legend()
    for ax in (loss_ax, norm_ax, distance_ax):
        ax.set_xscale("log")
    return figure


def diabetes_job(out: Path, seed: int, progress: bool | None, epochs: int = 5000) -> Report:
    """Proximal L1 finds the exact zeros of the lasso; L2 shrinks all weights and drops none."""
    from sklearn.linear_model import Lasso, Ridge

    weight_decay, learning_rate = 0.05, 0.4
    task = TASKS["diabetes"](seed)
    part = task.data.train
    count = len(part["y"])
    report = Report("2. Diabetes: L1 by proximal steps, against L2")
    report.say(
        "minimize 1/(2n) ‖X w + b − y‖² + λ R(w), R = ‖w‖₁ or ½‖w‖²; λ = {weight_decay}\n"
        "full batches, learning rate {learning_rate}, {epochs} steps",
        weight_decay=weight_decay,
        learning_rate=learning_rate,
        epochs=epochs,
    )
    strength = wdjax.lr_scaled(weight_decay, learning_rate)
    sgd = optax.sgd(learning_rate)
    optimizers = {
        "none": sgd,
        "L2": optax.chain(sgd, wdjax.decay_weights(strength)),
        "L1": optax.chain(sgd, wdjax.prox_weights(strength, wdjax.penalties.l1)),
    }
    report.audits(task, optimizers, epochs)
    options = {"epochs": epochs, "batch_size": count, "seed": seed, "progress": progress}
    runs = {label: train(task, optimizer, **options) for label, optimizer in optimizers.items()}
    report.runs({label: run.numbers for label, run in runs.items()})

    x, y = part["x"].astype(np.float64), part["y"].astype(np.float64)
    exact = {  # scikit-learn's Ridge sums over the examples where ours, and its Lasso, average
        "L2": Ridge(alpha=count * weight_decay).fit(x, y),
        "L1": Lasso(alpha=weight_decay, tol=1e-10, max_iter=100_000).fit(x, y),
    }
    for label, model in exact.items():
        name = f"max |{label} - scikit-learn's {type(model).__name__}|"
        report.check(name, distance(runs[label].params, model.coef_, model.intercept_), 1e-4)
    different = int(np.sum((weights(runs["L1"].params) == 0) != (exact["L1"].coef_ == 0)))
    report.check("zeros that are not zeros of scikit-learn's Lasso, or the reverse", different, 0)

    figure, ((train_ax, test_ax), (norm_ax, weight_ax)) = new_figure(
        f"Diabetes, λ = {weight_decay}: L1 sets weights to exactly zero, L2 only shrinks them"
    )
    draw_curves(runs, train_ax, test_ax, norm_ax)
    for ax in (train_ax, test_ax, norm_ax):
        ax.set_xscale("log")
    for ax in (train_ax, test_ax):  # one scale from zero: the test losses hardly differ
        ax.set_ylim(0.0, 0.55)
    draw_weights("diabetes", runs, weight_ax)
    report.save(figure, out, "diabetes")
    return report


def digits_job(out: Path, seed: int, progress: bool | None, epochs: int = 30) -> Report:
    """AdamW against Adam + L2 against none, at strengths that give similar weight norms."""
    learning_rate, batch_size = 1e-3, 64
    decoupled, coupled, proximal = 1.0, 4e-3, 0.2
    task = TASKS["digits"](seed)
    report = Report("3. Digits by a 64-128-10 network: AdamW, against Adam + L2, against none")
    report.say(
        "Adam, learning rate {learning_rate}, {epochs} epochs, mini-batches of {batch_size}\n"
        "λ: AdamW {AdamW}, Adam + L2 {L2}, L1 {L1}, chosen for similar weight norms",
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        AdamW=decoupled,
        L2=coupled,
        L1=proximal,
    )
    adam, adamw = optax.adam(learning_rate), wdjax.decayed(optax.adam)
    l1 = {"penalty": wdjax.penalties.l1, "implicit": True}
    optimizers = {
        "none": adam,
        "AdamW": adamw(learning_rate, weight_decay=decoupled),
        "Adam + L2": optax.chain(wdjax.add_decayed_weights(coupled, rules=RULES), adam),
        "Adam, L1": adamw(learning_rate, weight_decay=proximal, **l1),
    }
    report.audits(task, optimizers, epochs * steps_per_epoch(task, batch_size))
    options = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "progress": progress}
    runs = {label: train(task, optimizer, **options) for label, optimizer in optimizers.items()}
    report.runs({label: run.numbers for label, run in runs.items()})
    accuracy = runs["none"].numbers["test accuracy"]
    report.say(
        "one standard error of a test accuracy is {standard_error:.3f}: smaller differences say "
        "nothing",
        standard_error=(accuracy * (1.0 - accuracy) / len(task.data.test["y"])) ** 0.5,
    )
    figure, ((train_ax, test_ax), (norm_ax, weight_ax)) = new_figure(
        "Digits, a 64-128-10 network under Adam: three places for the decay"
    )
    draw_curves(runs, train_ax, test_ax, norm_ax)
    draw_weights("digits", runs, weight_ax)
    report.save(figure, out, "digits")
    return report


def draw_weights(data: str, runs: Mapping[str, Run], ax: Any) -> None:
    """Draw the final weights: a histogram of many, single coefficients of few."""
    final = {label: weights(run.params) for label, run in runs.items()}
    if data == "digits":
        plots.weight_histogram(final, ax=ax)
        return
    names, ylabel = (("x",), "slope") if data == "linear" else (DIABETES, "sd of y per sd of x")
    plots.coefficients(final, names=names, ax=ax, ylabel=f"coefficient ({ylabel})")


# ------------------------------------------------------------------------------ one's own choice


def own_job(out: Path, seed: int, progress: bool | None, options: argparse.Namespace) -> Report:
    """Train what the command line says, with and without decay."""
    factory, arguments, default_rate = OPTIMIZERS[options.optimizer]
    law, default_decay = LAWS[options.law]
    peak = _given(options.learning_rate, default_rate)
    weight_decay = _given(options.weight_decay, COUPLED if options.coupled else default_decay)
    learning_rate = peak if options.gamma is None else wdjax.inverse_sqrt(peak, options.gamma)
    epochs = _given(options.epochs, EPOCHS[options.data])
    batch_size = _given(options.batch_size, 20 if options.data == "linear" else 64)
    task = TASKS[options.data](seed)
    examples = len(task.data.train["y"])
    if batch_size > examples:
        options.refuse(f"--batch-size must be at most {examples}, all examples; got {batch_size}")

    place = "in the gradient" if options.coupled else "implicit" if options.implicit else "explicit"
    report = Report(f"{options.data}: {options.optimizer}, penalty {options.penalty}")
    report.say(
        "λ = {weight_decay}, law {law}, decay {place}; learning rate {learning_rate}, gamma {gamma}"
        "; {epochs} epochs, mini-batches of {batch_size}",
        weight_decay=weight_decay,
        law="none: λ multiplies the penalty" if options.coupled else options.law,
        place=place,
        learning_rate=peak,
        gamma=options.gamma,
        epochs=epochs,
        batch_size=batch_size,
    )
    # decayed with λ = 0, because optax.lion alone would decay by 0.001
    decayed = functools.partial(wdjax.decayed(factory), learning_rate, **arguments)
    optimizers = {"none": decayed(weight_decay=0.0)}
    penalty = PENALTIES[options.penalty]
    label = f"{options.penalty}, {place}"
    if penalty is not None and options.coupled:
        in_gradient = wdjax.add_decayed_weights(weight_decay, penalty, rules=RULES)
        optimizers[label] = optax.chain(in_gradient, optimizers["none"])
    elif penalty is not None:
        optimizers[label] = decayed(
            weight_decay=weight_decay, law=law(peak), penalty=penalty, implicit=options.implicit
        )
    try:
        report.audits(task, optimizers, epochs * steps_per_epoch(task, batch_size))
    except ValueError as error:  # a λ that flips signs
        options.refuse(str(error))
    fitting = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "progress": progress}
    runs = {label: train(task, optimizer, **fitting) for label, optimizer in optimizers.items()}
    report.runs({label: run.numbers for label, run in runs.items()})

    figure, ((train_ax, test_ax), (norm_ax, weight_ax)) = new_figure(report.metrics["title"])
    draw_curves(runs, train_ax, test_ax, norm_ax)
    draw_weights(options.data, runs, weight_ax)
    report.save(figure, out, options.data)
    return report


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


# ---------------------------------------------------------------------------------- command line


def finite_json(node: Any) -> Any:
    """Replace what is not finite by None: JSON cannot express it."""
    if isinstance(node, dict):
        return {name: finite_json(value) for name, value in node.items()}
    if isinstance(node, list):
        return [finite_json(value) for value in node]
    return None if isinstance(node, float) and not np.isfinite(node) else node


def defaults(values: Mapping[str, float]) -> str:
    """Write defaults for the help."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        description="Train small models with weight decay. Without --data: the three demo jobs.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=new_folder, default="out", help="folder for results")
    seed = functools.partial(whole_number, least=0)
    parser.add_argument("--seed", type=seed, default=0, help="of data, weights and mini-batches")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--data", choices=TASKS, help="train on this alone, as the options say")
    own = parser.add_argument_group("one's own job (with --data)")
    own.add_argument("--optimizer", choices=OPTIMIZERS, help="default: sgd; digits: adam")
    rates = defaults({name: row[2] for name, row in OPTIMIZERS.items()})
    own.add_argument("--learning-rate", type=finite_number, metavar="η", help=f"default: {rates}")
    own.add_argument("--gamma", type=finite_number, metavar="γ", help="η / sqrt(1 + γ² t)")
    decays = defaults({name: row[1] for name, row in LAWS.items()} | {"--coupled": COUPLED})
    own.add_argument("--weight-decay", type=finite_number, metavar="λ", help=f"default: {decays}")
    own.add_argument("--law", choices=LAWS, help="how λ depends on η; default: lr_scaled")
    own.add_argument("--penalty", choices=PENALTIES, help="default: l2")
    place = own.add_mutually_exclusive_group()
    place.add_argument(
        "--implicit", action="store_true", default=None, help="proximal steps: l1 gives exact zeros"
    )
    place.add_argument(
        "--coupled", action="store_true", default=None, help="add the penalty to the loss"
    )
    own.add_argument("--epochs", type=whole_number, help=f"default: {defaults(EPOCHS)}")
    own.add_argument("--batch-size", type=whole_number, help="default: 64; linear 20")
    options = parser.parse_args(arguments)
    options.refuse = parser.error  # for what only the job itself finds

    names = [action.dest for action in own._group_actions]
    given = ["--" + n.replace("_", "-") for n in names if getattr(options, n) is not None]
    if options.data is None and given:
        parser.error(f"{', '.join(given)} need --data; without it the demo jobs run")
    of_decay = {"--weight-decay", "--law", "--coupled", "--implicit"}
    if options.penalty == "none" and of_decay & {*given}:
        parser.error(f"--penalty none has no decay: drop {', '.join(sorted(of_decay & {*given}))}")
    if options.coupled and options.law:
        parser.error("--law has no meaning with --coupled, where λ multiplies the penalty")
    options.optimizer = options.optimizer or ("adam" if options.data == "digits" else "sgd")
    options.law = options.law or "lr_scaled"
    options.penalty = options.penalty or "l2"
    options.implicit = bool(options.implicit)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the jobs; 0 if every check passed, else 1."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    progress = False if options.no_progress else None  # None: a bar where it helps
    start = time.perf_counter()
    if options.data is None:
        jobs = {"linear": linear_job, "diabetes": diabetes_job, "digits": digits_job}
    else:
        jobs = {options.data: functools.partial(own_job, options=options)}
    reports = {name: job(options.out, options.seed, progress) for name, job in jobs.items()}

    ok = all(report.ok for report in reports.values())
    seconds = round(time.perf_counter() - start, 1)
    metrics = {name: report.metrics for name, report in reports.items()}
    path = options.out / "metrics.json"
    found = finite_json(metrics | {"ok": ok, "seconds": seconds})
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text, encoding="utf-8")
    verdict = "ok: no check failed" if ok else "BAD: a check failed, see above"
    print(f"\n{verdict}; {path}; {seconds} s")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
