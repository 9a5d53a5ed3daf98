"""What many leaves cost before the first step: trace, lower and compile, against `optax.adamw`.

Kernels of 8 x 8 to 16 x 8 and their biases, two leaves a layer: the work of a step is nothing, its
start is everything. Every program is new, and of each pair the one follows at once on the other.
Counted is processor time, of all threads: what a compiler takes on a shared machine scatters.
The whole table takes about an hour.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax
from benchmarks.growth import slope
from benchmarks.timing import Figure
from wdjax import adaptive, bounds, gates, metrics, penalties, radial, stacking, sweeps, tuning

SIZES = [14, 140, 700, 1_400]
FEW = 140  # leaves; larger trees are started once
SHAPES = ((8, 8), (12, 8), (16, 8), (8, 16))
RATE, DECAY = 1e-3, 0.1
GOALS = {"wdjax.adamw": 1.0, "metrics.measured": 1.3}  # of the others 1.5

Seconds = tuple[float, float, float]  # to trace, to lower, to compile


def layers(leaves: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    """So many small leaves, half of them biases."""
    shapes = [SHAPES[i % len(SHAPES)] for i in range(leaves // 2)]
    return {
        f"layer_{i}": {"kernel": jnp.full(shape, 0.1, dtype), "bias": jnp.zeros(shape[1], dtype)}
        for i, shape in enumerate(shapes)
    }


def loss(params: Any, batch: Any) -> Any:
    """Half the squares of all parameters, times a number."""
    return 0.5 * batch["x"].mean() * sum(jnp.vdot(p, p) for p in jax.tree.leaves(params))


# Steps, each a new jitted function and its arguments.


def bare(optimizer: optax.GradientTransformation, params: Any) -> tuple[Any, ...]:
    """`update` alone."""
    held = jax.eval_shape(lambda: params)
    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(lambda g, state, p: optimizer.update(g, state, p, grad=g)), held, state, held


def in_plain_jax(params: Any) -> tuple[Any, ...]:
    """The training step that one writes by hand."""
    optimizer = optax.adamw(RATE)

    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted, params, optimizer.init(params), {"x": jnp.ones(4)}


def in_ours(params: Any, optimizer: Any = None, **options: Any) -> tuple[Any, ...]:
    """The same by `make_train_step`."""
    optimizer = optimizer or wdjax.adamw(RATE, weight_decay=DECAY)
    state = wdjax.TrainState.create(params, optimizer)
    return wdjax.make_train_step(loss, optimizer, **options), state, {"x": jnp.ones(4)}


def started(jitted: Any, *args: Any) -> Seconds:
    """Start a program, but do not run it."""
    jax.clear_caches()
    marks = [time.process_time()]
    traced = jitted.trace(*args)
    marks.append(time.process_time())
    lowered = traced.lower()
    marks.append(time.process_time())
    lowered.compile()
    marks.append(time.process_time())
    trace, lower, compilation = np.diff(marks)
    return float(trace), float(lower), float(compilation)


# Whole runs: from the call to the result of one step, two runs of Python's loop and ours.


def run_by_hand(params: Any) -> Any:
    """One step of the plain loop."""
    jitted, *args = in_plain_jax(jax.tree.map(jnp.copy, params))
    return jitted(*args)


def run_of_fit(params: Any) -> Any:
    """`fit` for one epoch of one batch."""
    step, state, batch = in_ours(params)
    return wdjax.fit(step, state, batch, epochs=1, batch_size=4, progress=False)[0].params


def run_of_sweep(params: Any) -> Any:
    """`sweep` of two strengths, two folds and one epoch."""
    weighted = lambda params, data, weights: loss(params, data) * weights.mean()
    return sweeps.sweep(
        lambda h: wdjax.adamw(RATE, weight_decay=h["weight_decay"]),
        sweeps.grid(weight_decay=np.array([0.1, 0.2])),
        {"x": np.ones(8, np.float32)},
        init=lambda key: params,
        loss=weighted,
        folds=sweeps.kfold(8, 2),
        epochs=1,
        batch_size=4,
        progress=False,
    ).val


def ran(program: Callable[[Any], Any], params: Any) -> Seconds:
    """Time a whole run; its parts are not told apart."""
    jax.clear_caches()
    begin = time.process_time()
    jax.block_until_ready(program(params))
    return 0.0, 0.0, time.process_time() - begin


# The rows.

Start = Callable[[Any], Seconds]


def of_optimizer(optimizer: optax.GradientTransformation) -> Start:
    """Start `update` of an optimizer."""
    return lambda params: started(*bare(optimizer, params))


def of_narrow(optimizer: optax.GradientTransformation) -> Start:
    """Start `update` of an optimizer for parameters in bfloat16."""
    narrow = lambda params: jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    return lambda params: started(*bare(optimizer, narrow(params)))


def of_step(optimizer: Any = None, **options: Any) -> Start:
    """Start a training step of ours."""
    return lambda params: started(*in_ours(params, optimizer, **options))


def rows() -> dict[str, tuple[Start, Start]]:
    """Name every program and what it is compared with."""
    adam, plain = optax.adam(RATE), wdjax.adamw(RATE, weight_decay=DECAY)
    decayed = wdjax.decayed(optax.adam)
    held_out = tuning.hyper_decay(DECAY, loss, {"x": jnp.ones(4)})
    after = {
        "adaptive.cpr": adaptive.cpr(bounds.uniform(2.0)),
        "adaptive.cumulative_l1": adaptive.cumulative_l1(1e-3),
        "adaptive.spd": adaptive.spd(),
        "adaptive.swd": adaptive.swd(DECAY),
        "radial.norm_control": radial.norm_control(DECAY),
        "radial.hyperball": radial.hyperball(RATE),
        "radial.radial_brake": radial.radial_brake(),
        "radial.project_radial": radial.project_radial(),
        "radial.update_floor": radial.update_floor(RATE),
        "radial.relative_update": radial.relative_update(RATE),
        "radial.rotational": radial.rotational(RATE, axes=0, rules=(("kernel", 1.0), ("**", 0.0))),
        "tuning.hyper_decay": held_out,
    }
    before = {
        "add_decayed_weights": wdjax.add_decayed_weights(DECAY),
        "adaptive.awd": adaptive.awd(DECAY),
        "adaptive.ada_decay": adaptive.ada_decay(DECAY),
    }
    optimizers = {
        "optax.adamw itself": optax.adamw(RATE),
        "wdjax.adamw": plain,
        "with gates.cautious": decayed(RATE, weight_decay=DECAY, gate=gates.cautious),
        'with anchor="init"': decayed(RATE, weight_decay=DECAY, anchor="init"),
        "with l1, implicit": decayed(RATE, weight_decay=DECAY, penalty=penalties.l1, implicit=True),
        "with group_lasso": decayed(
            RATE, weight_decay=DECAY, penalty=penalties.group_lasso(axes=0)
        ),
        **{name: optax.chain(adam, method) for name, method in after.items()},
        **{name: optax.chain(method, adam) for name, method in before.items()},
        "metrics.measured": metrics.measured(plain),
        'metrics.measured, per="leaf"': metrics.measured(plain, per="leaf"),
    }
    adamw, narrow = of_optimizer(optax.adamw(RATE)), of_narrow(optax.adamw(RATE))
    rounded = {
        "compensated, bfloat16": wdjax.compensated(plain),
        "stochastically_rounded, bfloat16": wdjax.stochastically_rounded(plain, 0),
    }
    by_hand = lambda params: started(*in_plain_jax(params))
    in_stacks = lambda params: started(*bare(stacking.stacked(plain), stacking.stack(params)))
    steps = {
        "make_train_step": of_step(),
        "make_train_step, accumulate": of_step(accumulate=2),
        "make_train_step, max_grad_norm": of_step(max_grad_norm=1.0),
        "make_train_step, skip_nonfinite=False": of_step(skip_nonfinite=False),
        "make_train_step, donate=False": of_step(donate=False),
        "make_train_step, measured": of_step(metrics.measured(plain)),
    }
    hand = lambda params: ran(run_by_hand, params)
    return {
        **{name: (of_optimizer(tx), adamw) for name, tx in optimizers.items()},
        "optax.adamw itself, bfloat16": (narrow, adamw),
        **{name: (of_narrow(tx), narrow) for name, tx in rounded.items()},
        "stacking.stacked": (in_stacks, adamw),
        **{name: (start, by_hand) for name, start in steps.items()},
        "fit, to its end": (lambda params: ran(run_of_fit, params), hand),
        "sweep, to its end": (lambda params: ran(run_of_sweep, params), hand),
    }


def bench_startup(repeats: int, smoke: bool) -> list[Figure]:
    """Start every row at every size, and the slope of its growth in log-log."""
    figures = []
    sizes = [2] if smoke else SIZES
    wanted = {size: 1 if size > FEW else max(1, repeats // 5) for size in sizes}
    for name, (ours, theirs) in rows().items():
        totals = []
        for size in sizes:
            params = layers(size)
            pairs = [(ours(params), theirs(params)) for _ in range(wanted[size])]
            figures.append(_figure(name, size, pairs, None if smoke else GOALS.get(name, 1.5)))
            totals.append(figures[-1].ours_ms)
        if not smoke:
            figures[-1] = _with_slope(figures[-1], slope(sizes, totals))
    return figures


def _figure(
    name: str, size: int, pairs: list[tuple[Seconds, Seconds]], goal: float | None
) -> Figure:
    ours, theirs = (np.array(column) for column in zip(*pairs, strict=True))
    ratios = ours.sum(1) / theirs.sum(1)
    middle = float(np.median(ratios))
    # of whole runs only the sum is known
    parts = {
        part: float(np.median(ours[:, i] / theirs[:, i]))
        for i, part in enumerate(("trace", "lower", "compile"))
        if theirs[:, i].all()
    }
    return Figure(
        f"startup, {name}, {size:,} leaves",
        1e3 * float(np.median(ours.sum(1))),
        1e3 * float(np.median(theirs.sum(1))),
        (middle, float(ratios.min()), float(ratios.max())),
        "ours/theirs" if goal is None else f"ours/theirs <= {goal:g}",
        None if goal is None else middle <= goal,
        {"leaves": size, **parts},
    )


def _with_slope(figure: Figure, p: float) -> Figure:
    """Say the slope beside the largest size: 1 is linear."""
    return figure._replace(
        name=f"{figure.name}, slope {p:.2f}", readings={**(figure.readings or {}), "slope": p}
    )
