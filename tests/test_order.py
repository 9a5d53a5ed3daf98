"""Decay on the wrong side of the learning rate makes weights grow: it is an error."""

import contextlib
import functools
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import adaptive, bounds, radial
from wdjax._lift import place

PARAMS = {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.zeros(3)}
LAST = {
    "decay_weights": lambda: wdjax.decay_weights(0.1),
    "prox_weights": lambda: wdjax.prox_weights(0.1),
    "cpr": lambda: adaptive.cpr(bounds.dependent(0.5)),
    "norm_control": lambda: radial.norm_control(0.1),
    "hyper_decay": lambda: wdjax.tuning.hyper_decay(
        0.1, lambda params, batch: jnp.sum(batch @ params["kernel"]), np.ones((200, 4), np.float32)
    ),
}
SCHEDULE = optax.linear_schedule(0.0, 0.1, 100)
STEPS = {
    "sgd": lambda: optax.sgd(0.1),
    "sgd(schedule)": lambda: optax.sgd(SCHEDULE),
    "sgd(0)": lambda: optax.sgd(0.0),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "scale": lambda: optax.scale(-0.1),
    "scale_by_schedule": lambda: optax.scale_by_schedule(lambda count: -SCHEDULE(count)),
    "scale_by_adam": optax.scale_by_adam,
    "scale_by_learning_rate": lambda: optax.scale_by_learning_rate(0.1),
}
CHAINS = {
    "chain": optax.chain,
    "nested": lambda first, last: optax.chain(optax.chain(optax.clip(1.0), first), last),
    "in MultiSteps": lambda *members: optax.MultiSteps(
        optax.chain(*members), 2
    ).gradient_transformation(),
    "in masked": lambda *members: optax.masked(
        optax.chain(*members), {"kernel": True, "bias": True}
    ),
}  # fmt: skip


def run(tx, steps=2, params=PARAMS):
    grads, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


# Line searches look at losses.

SEARCHES = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    "zoom": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(15)),
}
X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
Y = X @ np.array([2.0, -1.0, 3.0], np.float32) + np.sin(np.arange(60, dtype=np.float32))


def searched(optimizer, penalty, steps):
    """Least squares, and the loss that the search sees."""

    def loss(p):
        return jnp.mean((X @ p["kernel"] - Y) ** 2) + penalty(p)

    @jax.jit
    def step(p, state):
        value, grad = jax.value_and_grad(loss)(p)
        updates, state = optimizer.update(grad, state, p, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(p, updates), state

    p = {"kernel": np.zeros(3, np.float32)}
    state = optimizer.init(p)
    for _ in range(steps):
        p, state = step(p, state)
    return p["kernel"]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    "part",
    [
        lambda: wdjax.add_decayed_weights(2.0),
        lambda: optax.masked(wdjax.add_decayed_weights(2.0), {"kernel": True}),
        lambda: adaptive.awd(0.1, rules=(("**", 1.0),)),
    ],
    ids=["L2", "masked", "awd"],
)
def test_decay_before_a_line_search_is_refused_with_the_loss_to_write(search, part):
    message = r"comes before a line search, .* the loss .* λ \* wdjax\.penalty_value\(wdjax"
    with pytest.raises(TypeError, match=message):
        searched(optax.chain(part(), SEARCHES[search]()), lambda p: 0.0, 1)


@pytest.mark.parametrize("method", ["decay_weights", "hyper_decay"])
def test_a_finished_step_with_decay_is_not_searched(method):
    decay = {
        "decay_weights": lambda: wdjax.decay_weights(0.1, rules=(("**", 1.0),)),
        "hyper_decay": lambda: wdjax.tuning.hyper_decay(
            0.1, lambda p, batch: jnp.sum(batch @ p["kernel"]), X, rules=(("**", 1.0),)
        ),
    }[method]()
    chain = optax.chain(optax.sgd(1.0), decay, optax.scale_by_backtracking_linesearch(15))
    with pytest.raises(TypeError, match=f"`{method}` comes before a line search"):
        searched(chain, lambda p: 0.0, 1)


def test_decay_after_a_line_search_that_keeps_its_gradient_is_refused():
    """`optax.value_and_grad_from_state` would give that of weights before the decay."""
    decay = wdjax.decay_weights(0.1, rules=(("**", 1.0),))
    keeps = functools.partial(optax.scale_by_backtracking_linesearch, 5, store_grad=True)
    message = "comes after a line search, which keeps the gradient .* the loss that the search"
    for inner in (optax.lbfgs(), optax.chain(optax.sgd(1.0), keeps())):
        with pytest.raises(TypeError, match=f"`decay_weights` {message}"):
            searched(optax.chain(inner, decay), lambda p: 0.0, 1)
    with pytest.raises(TypeError, match=f"`decayed` adds decay, which here {message}"):
        wdjax.decayed(optax.lbfgs)(1.0, weight_decay=0.1)
    forgets = optax.scale_by_backtracking_linesearch(5)
    searched(optax.chain(optax.sgd(1.0), forgets, decay), lambda p: 0.0, 1)


# L-BFGS has the search by zooming inside
@pytest.mark.parametrize("search", ["lbfgs", "backtracking"])
def test_the_penalty_in_the_loss_that_is_searched_ends_at_ridge(search):
    lam, rules = 2.0, (("**", 1.0),)
    found = searched(
        SEARCHES[search](),
        lambda p: lam * wdjax.penalty_value(wdjax.penalties.l2, p, rules),
        30,
    )
    # ∇ = 2/60 Xᵀ(Xw − y) + λ w = 0
    exact = np.linalg.solve(X.T @ X + 60 * lam / 2 * np.eye(3), X.T @ Y)
    np.testing.assert_allclose(found, exact, atol=1e-3)


def test_what_a_line_search_needs_may_be_passed_where_there_is_none():
    found = searched(optax.chain(wdjax.add_decayed_weights(2.0), optax.sgd(0.1)), lambda p: 0.0, 1)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("method", LAST)
def test_what_changes_finished_steps_is_refused_before_what_makes_them(method, step):
    tx = optax.chain(LAST[method](), STEPS[step]())
    with pytest.raises(TypeError, match=rf"`{method}` must come after .*: optax.chain\(.*{method}"):
        run(tx)
    state = tx.init(PARAMS)
    with pytest.raises(TypeError, match=rf"Put it last: .*{method}"):
        jax.jit(tx.update)(PARAMS, state, PARAMS)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_wrong_order_is_seen_in_every_chain(chain):
    right, wrong = (
        CHAINS[chain](*members)
        for members in [
            (optax.sgd(0.1), wdjax.decay_weights(0.1)),
            (wdjax.decay_weights(0.1), optax.sgd(0.1)),
        ]
    )
    with pytest.raises(TypeError, match="must come after the learning rate"):
        run(wrong)
    assert (run(right)["kernel"] < PARAMS["kernel"]).all()


def test_the_place_of_adamw_s_decay_in_optax_is_named():
    """Where `optax.add_decayed_weights` is replaced by ours without moving it."""
    tx = optax.chain(
        optax.scale_by_adam(), wdjax.decay_weights(0.1), optax.scale_by_learning_rate(0.1)
    )
    with pytest.raises(TypeError, match=r"Before the learning rate use wdjax.add_decayed_weights"):
        run(tx)
    fine = optax.chain(
        optax.scale_by_adam(), wdjax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.1)
    )
    assert np.allclose(run(fine, 1)["kernel"], 2.0 * (1 - 0.01))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("add_decayed_weights", wdjax.add_decayed_weights),
        ("awd", adaptive.awd),
        ("ada_decay", adaptive.ada_decay),
    ],
)
@pytest.mark.parametrize("step", ["sgd", "sgd(schedule)", "adam", "scale", "scale_by_schedule"])
def test_what_changes_gradients_is_refused_after_the_step(name, method, step):
    tx = optax.chain(STEPS[step](), method(0.1))
    with pytest.raises(TypeError, match=rf"`{name}` must come before the learning rate"):
        run(tx)
    run(optax.chain(method(0.1), STEPS[step]()))


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(wdjax.adamw(0.1, weight_decay=0.1), optax.clip(1.0)),
        optax.chain(wdjax.adamw(0.1, weight_decay=0.1), optax.scale(0.5)),
        optax.chain(wdjax.adamw(0.1, weight_decay=0.1), optax.scale_by_schedule(SCHEDULE)),
        optax.chain(wdjax.sgdw(0.1, weight_decay=0.1), wdjax.prox_weights(0.01)),
        optax.chain(wdjax.sgdw(0.1, weight_decay=0.1), optax.keep_params_nonnegative()),
        optax.chain(wdjax.decay_weights(0.1), optax.set_to_zero()),
        # to climb, the gradient is turned round first
        optax.chain(optax.scale(-1.0), wdjax.add_decayed_weights(0.1), optax.sgd(0.1)),
        optax.chain(optax.clip(1.0), wdjax.add_decayed_weights(-0.0)),  # the rate may come later
        optax.inject_hyperparams(wdjax.adamw)(SCHEDULE, weight_decay=0.1),
        # members that may act on other leaves
        optax.chain(
            optax.masked(wdjax.adamw(0.1, weight_decay=0.5), {"kernel": True, "bias": False}),
            optax.masked(optax.sgd(0.1), {"kernel": False, "bias": True}),
        ),
        optax.chain(
            optax.masked(optax.sgd(0.1), {"kernel": False, "bias": True}),
            wdjax.add_decayed_weights(0.1, rules=wdjax.standard()),
            optax.masked(optax.inject_hyperparams(optax.sgd)(0.1), {"kernel": True, "bias": False}),
        ),
        # positive in its run of 1,000 steps
        optax.chain(
            wdjax.sgdw(0.1, weight_decay=0.1), optax.scale_by_schedule(lambda c: 1 - c / 1_000)
        ),
    ],
)
def test_other_neighbors_are_none_of_its_business(tx):
    new = run(tx)
    assert (jnp.abs(new["kernel"]) <= 2.0 + 0.1).all()


def test_a_whole_step_may_be_turned_down_by_plateaus():
    tx = optax.chain(wdjax.sgdw(0.1, weight_decay=0.1), optax.contrib.reduce_on_plateau(patience=1))
    state = tx.init(PARAMS)
    update = functools.partial(tx.update, jax.tree.map(jnp.zeros_like, PARAMS))
    updates, _ = update(state, PARAMS, value=jnp.asarray(1.0))
    assert np.allclose(updates["kernel"], -0.02)


@pytest.mark.parametrize("method", ["decay_weights", "hyper_decay"])
@pytest.mark.parametrize("after", [False, True])
def test_a_factor_that_only_training_knows_is_warned_of_where_decay_comes_before_it(after, method):
    def optimizer(learning_rate):
        parts = [LAST[method](), optax.scale(-learning_rate)]
        return optax.chain(optax.scale_by_adam(), *(parts if after else reversed(parts)))

    injected = optax.inject_hyperparams(optimizer)(learning_rate=SCHEDULE)
    update = lambda: jax.eval_shape(injected.update, PARAMS, injected.init(PARAMS), PARAMS)
    with pytest.warns(match="put .* last") if after else contextlib.nullcontext():
        update()


# Neighbors that are somebody else's functions.


class Held:
    """An object with init and update, as optax.MultiSteps is one."""

    def __init__(self, tx):
        self.init, self.inner = tx.init, tx

    def update(self, updates, state, params=None):
        return self.inner.update(updates, state, params)


def logged(inner):
    """With the names and the signature of what it wraps, but not its closure."""

    @functools.wraps(inner.update)
    def update(updates, state, params=None):
        return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def with_update(wrap):
    return lambda tx: optax.GradientTransformation(tx.init, wrap(tx.update))


WRAPPED = {
    "plain": lambda tx: tx,
    "jit": with_update(jax.jit),
    "checkpoint": with_update(jax.checkpoint),
    "named_call": with_update(jax.named_call),
    "partial": with_update(functools.partial),
    "wraps": logged,
    "object": Held,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("base", [optax.sgd(0.1), optax.scale(-0.1)], ids=["sgd", "scale"])
def test_right_programs_run_whatever_wraps_their_updates(base, wrap):
    before = optax.chain(wdjax.add_decayed_weights(0.1), wrap(base))
    after = optax.chain(wrap(base), wdjax.decay_weights(0.1))
    assert np.allclose(run(before, 1)["kernel"], 2.0 * (1 - 0.01))
    assert np.allclose(run(after, 1)["kernel"], 2.0 * (1 - 0.1))


# Copies of Optax in which something inside has another name.

RENAMED = {
    "an inner function": (
        "update_fn(updates, state, params=None, **extra_args):\n    if len(update_fns)",
        "update(updates, state, params=None, **extra_args):\n    if len(update_fns)",
        "return base.GradientTransformationExtraArgs(init_fn, update_fn)\n\n\ndef named_chain",
        "return base.GradientTransformationExtraArgs(init_fn, update)\n\n\ndef named_chain",
    ),
    "a local variable": (
        "new_state = []", "new_states = []",
        "new_state.append(new_s)\n    return updates, tuple(new_state)",
        "new_states.append(new_s)\n    return updates, tuple(new_states)",
    ),
}  # fmt: skip
PROGRAM = """
import warnings, jax.numpy as jnp, optax, wdjax
params = {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.zeros(3)}
right = lambda: optax.chain(optax.clip(1.0), optax.adam(0.1), wdjax.decay_weights(0.1))
coupled = lambda: optax.chain(wdjax.add_decayed_weights(0.1), optax.sgd(0.1))
wrong = lambda: optax.chain(wdjax.decay_weights(0.1), optax.sgd(0.1))
for build in (right, coupled, wrong, lambda: wdjax.adamw(0.1, weight_decay=0.1)):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tx = build()
        tx.update(params, tx.init(params), params)
    print([str(w.message) for w in seen if "wdjax" in str(w.message)])
"""


@pytest.mark.parametrize("renamed", RENAMED.values(), ids=RENAMED)
@pytest.mark.first_is_quick
def test_where_optax_looks_otherwise_inside_nothing_is_refused_and_one_warning_says_so(
    renamed, tmp_path
):
    shutil.copytree(pathlib.Path(optax.__file__).parent, tmp_path / "optax")
    file = tmp_path / "optax" / "transforms" / "_combining.py"
    text = file.read_text()
    for old, new in zip(renamed[::2], renamed[1::2], strict=True):
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text)
    here = pathlib.Path(wdjax.__file__).parents[1]
    path = os.pathsep.join(map(str, (tmp_path, here)))
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    warning = f"wdjax cannot see the order of chains in Optax {optax.__version__}; use wdjax.audit("
    assert warning in out[0]
    assert out[1:] == ["[]"] * 3


def test_the_optax_that_is_installed_can_be_read():
    place._is_legible.cache_clear()
    assert place._is_legible()
