"""Does the best λ of a small language model keep a constant timescale?

    python scripts/law.py [--out FOLDER] [--smoke]

A transformer learns characters of Python's manual at three widths, batch sizes and sizes of the
training text, each with a grid of λ and two seeds: one compiled sweep per shape, a row of law.json
each. Rows that are there are not trained again, so a run that was stopped goes on. All of it takes
about an hour of one core. The law of the best λ is printed and drawn at the end.
"""

import argparse
import functools
import itertools
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from options import new_folder

import wdjax
from wdjax import plots, scaling, sweeps

Params = Any
FOLDER = Path(__file__).parents[1] / "figures"

BLOCKS, HEAD, CONTEXT = 2, 16, 32  # layers, width of a head of attention, characters seen
RATE, WARM, EPOCHS, SEEDS = 5e-3, 0.05, 4, 2  # peak; share of the steps; passes over the text
WIDTHS, BATCHES, CHARACTERS = (32, 16, 64), (2, 4, 8), (8_192, 16_384, 32_768)
HELD_OUT = 32_768  # characters that no run trains on
# τ = 1/(η λ) as a share of the run, η the peak: the same shares at every shape, so that a law of
# constant timescale has its optimum in the same place of each grid, and another law has not
SHARES = 2.0 ** np.arange(4, -4, -1)


# -------------------------------------------------------------------------------------- the text


@functools.cache
def text() -> np.ndarray:
    """The manual in (rows, CONTEXT + 1) numbers of characters; no paragraph comes twice."""
    from pydoc_data.topics import topics

    paragraphs = sorted({part for topic in topics.values() for part in topic.split("\n\n")})
    order = np.random.default_rng(0).permutation(len(paragraphs))
    whole = "\n\n".join(paragraphs[i] for i in order)
    numbers = np.unique(list(whole), return_inverse=True)[1].astype(np.int32)
    starts = np.arange(0, len(numbers) - CONTEXT, CONTEXT)
    return numbers[starts[:, None] + np.arange(CONTEXT + 1)]


def parts(characters: int) -> tuple[np.ndarray, sweeps.Folds]:
    """Rows to train on, and after them the rows held out."""
    held, train = HELD_OUT // CONTEXT, characters // CONTEXT
    rows = np.concatenate([text()[held : held + train], text()[:held]])
    assert len(rows) == train + held, "the text is too short"
    split = [(np.arange(train), np.arange(train, len(rows)))]
    return rows, sweeps.Folds.from_sklearn(split, rows)


# ------------------------------------------------------------------------------------- the model


def init(key: jax.Array, width: int) -> Params:
    """Blocks are stacked, so that one `scan` runs them all."""
    keys = iter(jax.random.split(key, 7))
    size = int(text().max()) + 1

    def kernel(*shape: int) -> Any:
        return {"kernel": jax.random.normal(next(keys), shape) * shape[-2] ** -0.5}

    def scale(*shape: int) -> Any:
        return {"scale": jnp.ones(shape)}

    return {
        "embed": {"embedding": jax.random.normal(next(keys), (size, width))},
        "positions": {"pos_embedding": jax.random.normal(next(keys), (CONTEXT, width)) * 0.1},
        "blocks": {
            "norm_1": scale(BLOCKS, width),
            "qkv": kernel(BLOCKS, width, 3 * width),
            "out": kernel(BLOCKS, width, width),
            "norm_2": scale(BLOCKS, width),
            "up": kernel(BLOCKS, width, 4 * width),
            "down": kernel(BLOCKS, 4 * width, width),
        },
        "norm": scale(width),
        "head": kernel(width, size),
    }


def normed(p: Params, x: jax.Array) -> jax.Array:
    """RMSNorm."""
    return (
        p["scale"][None, None] * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    )


def block(x: jax.Array, p: Params) -> tuple[jax.Array, None]:
    """Attention and two layers, each after a norm and next to a bypass; x is (rows, T, width)."""
    rows, length, _ = x.shape
    qkv = (normed(p["norm_1"], x) @ p["qkv"]["kernel"]).reshape(rows, length, 3, -1, HEAD)
    q, k, v = (qkv[:, :, i] for i in range(3))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * HEAD**-0.5
    scores = jnp.where(jnp.tri(length, dtype=bool)[None, None], scores, -1e9)
    mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v).reshape(x.shape)
    x = x + mixed @ p["out"]["kernel"]
    hidden = jax.nn.relu(normed(p["norm_2"], x) @ p["up"]["kernel"])
    return x + hidden @ p["down"]["kernel"], None


def losses(params: Params, rows: jax.Array) -> jax.Array:
    """Cross-entropy of each row, in nats per character."""
    x = params["embed"]["embedding"][rows[:, :-1]]
    x = x + params["positions"]["pos_embedding"][None]
    x, _ = jax.lax.scan(block, x, params["blocks"])
    logits = normed(params["norm"], x) @ params["head"]["kernel"]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
    return jnp.mean(each, axis=1)


def loss(params: Params, rows: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted mean."""
    return jnp.sum(weights * losses(params, rows)) / jnp.sum(weights)


def score(params: Params, rows: jax.Array, weights: jax.Array) -> jax.Array:
    """The same of many rows, 64 at a time, which takes less memory."""
    each = jax.lax.map(functools.partial(losses, params), rows.reshape(-1, 64, CONTEXT + 1))
    return jnp.sum(weights * each.ravel()) / jnp.sum(weights)


# ------------------------------------------------------------------------------------ the sweeps


def swept(width: int, batch: int, characters: int, lams: np.ndarray) -> sweeps.SweepResult:
    """Train one shape with every λ and seed, in one program."""
    rows, folds = parts(characters)
    steps = EPOCHS * -(-folds.train.shape[1] // batch)
    rate = wdjax.warmed_up(wdjax.linear_ramp(RATE, 0.0, steps), round(WARM * steps))

    def build(h: Any) -> optax.GradientTransformation:
        return wdjax.adamw(rate, weight_decay=h["weight_decay"], b2=0.99)

    return sweeps.sweep(
        build, sweeps.grid(weight_decay=lams), rows, init=functools.partial(init, width=width),
        loss=loss, metric=score, folds=folds, epochs=EPOCHS, batch_size=batch, seeds=SEEDS,
        chunk=len(lams), progress=False,
    )  # fmt: skip


def row(width: int, batch: int, characters: int, shares: np.ndarray) -> dict[str, Any]:
    """What is kept of one shape: the scores of every λ (rows) and seed (columns)."""
    steps = EPOCHS * -(-characters // (CONTEXT * batch))
    lams = scaling.timescale_to_weight_decay(shares * steps, RATE)
    result = swept(width, batch, characters, lams)
    shape = jax.eval_shape(functools.partial(init, width=width), jax.random.key(0))
    return {
        "width": width,
        "batch": batch,
        "characters": characters,
        "steps": steps,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shape)),
        "weight_decay": lams.tolist(),
        "validation": result.val[:, 0, :, 0].astype(float).round(4).tolist(),
        "train": result.train[:, 0, :, 0].astype(float).round(4).tolist(),
    }


def run(file: Path, shapes: Sequence[tuple[int, int, int]], shares: np.ndarray) -> list[Any]:
    """Train what the file has no row of, and write it after each shape."""
    settings = {
        "text": f"pydoc_data.topics of Python {'.'.join(platform.python_version_tuple()[:2])}",
        "blocks": BLOCKS, "context": CONTEXT, "peak": RATE, "warm-up": WARM, "epochs": EPOCHS,
        "seeds": SEEDS, "held out": HELD_OUT,
    }  # fmt: skip
    kept = json.loads(file.read_text("utf-8")) if file.exists() else {"settings": settings}
    if kept["settings"] != settings:
        raise SystemExit(f"{file} is of other settings. Choose another folder, or remove it.")
    rows = kept.setdefault("sweeps", [])
    there = {(r["width"], r["batch"], r["characters"]) for r in rows}
    for shape in (shape for shape in shapes if shape not in there):
        rows.append(row(*shape, shares))
        file.with_suffix(".new").write_text(written(kept), "utf-8")
        file.with_suffix(".new").replace(file)
        print(f"{len(rows)} of {len(shapes)}: width, batch, characters {shape}", flush=True)
    return rows


def written(kept: dict[str, Any]) -> str:
    """JSON with a line for each sweep."""
    lines = ",\n".join(json.dumps(r) for r in kept["sweeps"])
    head = json.dumps(kept["settings"], ensure_ascii=False)
    return f'{{"settings": {head},\n"sweeps": [\n{lines}\n]}}\n'


# --------------------------------------------------------------------------------------- the law

CONSTANT = {"width": 0.0, "batch": 1.0, "characters": -1.0}  # powers of λ at a constant timescale


def results(rows: Sequence[Any]) -> list[tuple[dict[str, float], sweeps.SweepResult]]:
    """The rows as `scaling.fit_law` takes them."""

    def result(r: Any) -> sweeps.SweepResult:
        val, train = (np.array(r[part])[:, None, :, None] for part in ("validation", "train"))
        lams = {"weight_decay": np.array(r["weight_decay"])}
        return sweeps.SweepResult(lams, val, train, np.array([EPOCHS]))

    return [({name: r[name] for name in CONSTANT}, result(r)) for r in rows]


def shares(law: scaling.Law) -> np.ndarray:
    """The timescale of each optimum as a share of its run, 1 / (η λ* steps)."""
    found = [o for o in law.optima if not o.why]
    steps = [EPOCHS * o.factors["characters"] / (CONTEXT * o.factors["batch"]) for o in found]
    return 1 / (RATE * np.array([o.value for o in found]) * np.array(steps))


def excess(rows: Sequence[Any], rule: Callable[[Any], float]) -> dict[str, float]:
    """What a rule for λ costs above the best λ of each shape, at the grid's nearest λ, in nats."""
    costs = []
    for r in rows:
        scores, lams = np.mean(r["validation"], axis=1), np.array(r["weight_decay"])
        costs.append(scores[np.abs(np.log(lams / rule(r))).argmin()] - scores.min())
    return {"mean": float(np.mean(costs)), "most": float(np.max(costs))}


def rules(rows: Sequence[Any]) -> dict[str, Callable[[Any], float]]:
    """Ways to choose λ for a shape; the constants are the best in hindsight."""

    def best(
        rule: Callable[[float], Callable[[Any], float]], values: Any
    ) -> Callable[[Any], float]:
        return min(map(rule, values), key=lambda one: excess(rows, one)["mean"])

    def timescale(share: float) -> Callable[[Any], float]:
        return lambda r: scaling.timescale_to_weight_decay(share * r["steps"], RATE)

    def others(r: Any) -> float:
        law = scaling.fit_law(results([other for other in rows if other is not r]))
        return law.predict(**{name: r[name] for name in CONSTANT}).value

    lams = np.unique([lam for r in rows for lam in r["weight_decay"]])
    return {
        "the smallest λ of the grid": timescale(SHARES[0]),
        "one λ for all": best(lambda lam: lambda r: lam, lams),
        "one share of the run": best(timescale, SHARES),
        "the law of the other shapes": others,
    }


def draw(law: scaling.Law, rows: Sequence[Any]) -> Any:
    """Along each factor the law and, dashed, what a constant timescale says; all scores."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 7.2), layout="constrained", dpi=90)
    *panels, last = figure.subplots(2, 2).ravel()
    for ax, name in zip(panels, CONSTANT, strict=True):
        plots.scaling_law(law, name, ax=ax)
        values = np.array(sorted({r[name] for r in rows}))
        found = [o for o in law.optima if not o.why]
        usual = {k: np.exp(np.mean([np.log(o.factors[k]) for o in found])) for k in CONSTANT}
        height = law.predict(**usual).value * (values / usual[name]) ** CONSTANT[name]
        ax.plot(values, height, "k--", label="constant timescale")
        ax.get_legend().remove()
    ax.legend(frameon=False)
    for color, line, width in zip(plots.COLORS, plots.LINES, sorted(WIDTHS), strict=False):
        for r in (r for r in rows if r["width"] == width):
            scores = np.mean(r["validation"], axis=1)
            share = 1 / (RATE * np.array(r["weight_decay"]) * r["steps"])
            last.semilogx(share, scores - scores.min(), line, color=color, lw=1,
                          label=f"width {width}")  # fmt: skip
    handles = dict(zip(*reversed(last.get_legend_handles_labels()), strict=True))
    last.legend(handles.values(), handles, frameon=False)
    last.set(xlabel="timescale 1/(ηλ), share of the run", ylabel="loss above the best, nats",
             ylim=(-0.005, 0.15))  # fmt: skip
    return figure


def report(rows: Sequence[Any], out: Path) -> None:
    """Print the law, what a constant timescale would be, and what rules cost; draw the law."""
    law = scaling.fit_law(results(rows))
    print(law)
    fewest = min(r["steps"] for r in rows)
    longer = scaling.fit_law(results([r for r in rows if r["steps"] > fewest]))
    print(f"\npowers of λ*  found          over {fewest} steps   constant timescale")
    for name, power in CONSTANT.items():
        one, other = (f"{f.exponents[name]:+.2f} ± {f.errors[name]:.2f}" for f in (law, longer))
        print(f"{name:12}  {one}   {other}     {power:+.0f}")
    share = shares(law)
    middle, spread = np.exp(np.log(share).mean()), np.exp(np.log(share).std(ddof=1))
    print(f"\n1/(ηλ*) as a share of the run: {middle:.2g}, times or over {spread:.2g}; "
          f"{share.min():.2g} to {share.max():.2g}\n\nloss above the best λ of the shape, "
          "nats per character:")  # fmt: skip
    for name, rule in rules(rows).items():
        cost = excess(rows, rule)
        print(f"{name:32} mean {cost['mean']:.4f}   most {cost['most']:.4f}")
    draw(law, rows).savefig(out / "law.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, fit the law, draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=new_folder, default=FOLDER, help="of law.json and law.png")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.smoke:
        run(options.out / "law.json", [(16, 8, 2_048)], SHARES[::4])
        return
    shapes = itertools.product(WIDTHS, BATCHES, CHARACTERS)
    # one width after the other, short runs first
    in_order = sorted(shapes, key=lambda shape: (WIDTHS.index(shape[0]), shape[2] / shape[1]))
    report(run(options.out / "law.json", in_order, SHARES), options.out)


if __name__ == "__main__":
    main()
