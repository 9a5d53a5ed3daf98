"""What the functions of a sweep ignore is refused or warned of; what they use never is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback
from test_sweeps import DATA, half_square, init, init_random, l2_sgd, run

import wdjax
from wdjax import sweeps
from wdjax.sweeps._checks import used

# Weights.


def errors(params, data):
    return (jnp.dot(data["x"], params["kernel"]) + params["bias"] - data["y"]) ** 2


def unweighted(params, data, weights):
    del weights
    return jnp.mean(errors(params, data))


def descend(params, batch, h):
    grads = jax.grad(half_square)(params, batch.data, batch.weights)
    return jax.tree.map(lambda p, g: p - h["weight_decay"] * g, params, grads)


def careless(params, batch, h):
    return descend(params, batch._replace(weights=jnp.ones(len(batch.weights))), h)


FULL = {"folds": sweeps.kfold(30, 3), "batch_size": 10}
IGNORED = {
    "a loss": ("loss", lambda: run(loss=unweighted)),
    "a loss of full batches": ("loss", lambda: run(loss=unweighted, **FULL)),
    "a jitted loss": ("loss", lambda: run(loss=jax.jit(unweighted))),
    "a loss that reads their number": (
        "loss",
        lambda: run(loss=lambda p, d, w: jnp.sum(errors(p, d)) / len(w)),
    ),
    "a loss of short batches, with a metric": (
        "loss",
        lambda: run(loss=unweighted, metric=half_square),
    ),
    "a metric": ("metric", lambda: run(metric=unweighted)),
    "the metric of a step": ("metric", lambda: run(descend, loss=None, metric=unweighted)),
    "a step on short batches": ("build", lambda: run(careless, loss=None, metric=half_square)),
    "in a refit on short batches": ("loss", lambda: refit(unweighted, 8)),
}  # fmt: skip


def refit(loss, batch_size):
    chosen = sweeps.Selection(0, {"weight_decay": 0.1}, 2, 0, *([None] * 3), (), 0)
    return sweeps.refit(l2_sgd, chosen, DATA, init=init, loss=loss, batch_size=batch_size)


@pytest.mark.parametrize("name", IGNORED)
def test_who_ignores_the_weights_is_refused_before_training(name):
    blamed, make = IGNORED[name]
    with pytest.raises(ValueError, match=rf"`{blamed}` must use its weights; .* jnp\.sum\(weights"):
        make()


def by_scan(params, data, weights):
    add = lambda total, pair: (total + pair[0] * pair[1], None)
    return jax.lax.scan(add, 0.0, (weights, errors(params, data)))[0] / jnp.sum(weights)


def by_branch(params, data, weights):
    mean = lambda: jnp.sum(weights * errors(params, data)) / jnp.sum(weights)
    return jax.lax.cond(jnp.sum(weights) > 0, mean, lambda: 0.0)


def by_rows(params, data, weights):
    kept = jnp.where(weights > 0, errors(params, data), 0.0)
    return jnp.sum(kept) / jnp.count_nonzero(weights)


@jax.custom_vjp
def by_own_rule(params, data, weights):
    return half_square(params, data, weights)


by_own_rule.defvjp(
    lambda *given: (half_square(*given), given),
    lambda given, g: (jax.tree.map(lambda d: g * d, jax.grad(half_square)(*given)), None, None),
)


@pytest.mark.parametrize(
    "loss",
    [by_scan, by_branch, by_rows, by_own_rule, jax.jit(half_square), jax.checkpoint(half_square)],
    ids=["scan", "cond", "where", "custom_vjp", "jit", "checkpoint"],
)
@pytest.mark.first_is_quick
def test_however_weights_are_used_they_are_used(loss):
    factor = {by_scan: 2, by_branch: 2, by_rows: 2}.get(loss, 1)
    np.testing.assert_allclose(start_loss(loss), factor * start_loss(half_square), rtol=1e-5)


@functools.cache
def start_loss(loss):
    """It is of random weights, which do not move."""
    still = lambda h: optax.sgd(0.0 * h["weight_decay"])
    return run(still, loss=loss, init=init_random, epochs=1).val


def test_where_every_row_counts_a_loss_needs_no_weights():
    weighted = run(metric=half_square, **FULL)
    half = lambda params, data, weights: 0.5 * unweighted(params, data, weights)
    np.testing.assert_allclose(run(loss=half, metric=half_square, **FULL).val, weighted.val, 1e-5)
    # some folds have a batch more than others, but each batch is full
    grown = sweeps.time_folds(30, 2)
    run(loss=half, metric=half_square, folds=grown, batch_size=10)
    refit(half, 10)
    # a loss without data has no rows, nor has a metric on rows of its own
    run(loss=lambda params, data, weights: optax.tree.norm(params), metric=half_square)
    run(metric=lambda params, data, weights: unweighted(params, DATA, weights))


# Hyperparameters.


def two(build, **options):
    hparams = sweeps.grid(weight_decay=[0.1, 0.2], dropout=[0.0, 0.5])
    return run(build, hparams, **options)


@jax.jit
def jitted_step(params, batch, h):
    return descend(params, batch, h)


@pytest.mark.parametrize(
    "make",
    [
        lambda: two(l2_sgd),
        lambda: two(jitted_step, loss=None, metric=half_square),
        lambda: two(l2_sgd, init=lambda key, h: jax.tree.map(lambda x: x + 0.0, init(key))),
    ],
    ids=["build", "a jitted step", "init"],
)  # fmt: skip
def test_a_hyperparameter_that_nothing_uses_is_warned_of(make):
    with pytest.warns(
        UserWarning, match=r"`hparams` has 'dropout', which is not used by `build` or"
    ):
        make()


def test_the_warning_points_at_the_call_and_names_all():
    hparams = {"weight_decay": np.ones(2), "a": np.arange(2.0), "b": {"c": np.eye(2)}}
    with pytest.warns(UserWarning, match=r"has 'a', 'b/c', which") as caught:
        sweeps.sweep(
            l2_sgd, hparams, DATA, init=init, loss=half_square, epochs=1, **FULL
        )  # fmt: skip
    assert [warning.filename for warning in caught] == [__file__]


def used_by_init(key, h):
    return jax.tree.map(lambda x: x + h["dropout"], init(key))


def used_by_a_branch(h):
    def schedule(count):
        return jax.lax.cond(count > 1, lambda: h["dropout"], lambda: 0.1)

    return optax.chain(wdjax.add_decayed_weights(h["weight_decay"]), optax.sgd(schedule))


@pytest.mark.parametrize(
    "make",
    [
        lambda: two(l2_sgd, init=used_by_init),
        lambda: two(used_by_a_branch),
        lambda: two(
            lambda h: optax.inject_hyperparams(optax.adamw)(
                h["dropout"], weight_decay=h["weight_decay"]
            )
        ),
        lambda: run(hparams=sweeps.grid(weight_decay=[0.1, 0.2], note=[1.0])),
    ],
    ids=["init", "a branch", "a state", "one value only"],
)  # fmt: skip
def test_a_hyperparameter_that_something_uses_is_not_warned_of(make):
    make()  # every warning is an error here


def test_what_a_function_uses_is_found_through_jitted_functions_and_never_missed():
    @jax.jit
    def inner(x, y, z):
        return x + z, y

    def outer(x, y, z, n):
        first, _ = inner(x, y, z)
        jax.debug.print("{}", n)
        return first * jnp.zeros(())

    assert used(outer, 1.0, 2.0, 3.0, 4.0) == (True, False, True, True)
    assert used(lambda x: 1.0, 1.0) == (False,)
    assert used(lambda x, y: x, {"a": 1.0}, (2.0, None)) == ({"a": True}, (False, None))
    loop = lambda x, y: jax.lax.fori_loop(0, 3, lambda i, s: (s[0] + s[1], s[1]), (x, y))[0]
    assert used(loop, 1.0, 2.0) == (True, True)
    unused = lambda x, y: jax.lax.fori_loop(0, 3, lambda i, s: (s[0], s[1] + 1), (x, y))[0]
    assert used(unused, 1.0, 2.0) == (True, False)


# The host.


def by_host(call, factor):
    def metric(params, data, weights):
        value = half_square(params, data, weights)
        at_host = lambda x: np.float32(factor * x)
        return call(at_host, jax.ShapeDtypeStruct((), np.float32), value)

    return metric


CALLS = {
    "pure_callback": lambda *given: jax.pure_callback(*given, vmap_method="sequential"),
    "io_callback": io_callback,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_folder_is_refused_where_the_host_may_change_results_unseen(name, tmp_path):
    with pytest.raises(ValueError, match=rf"`folder` must be None .* call the host; got {name}"):
        run(metric=by_host(CALLS[name], 1.0), folder=tmp_path)
    assert not list(tmp_path.iterdir())
    found = run(metric=by_host(CALLS[name], 2.0)).val
    np.testing.assert_allclose(found, 2 * run(metric=half_square).val, rtol=1e-6)


def test_printing_is_no_reason_to_refuse_a_folder(tmp_path, capfd):
    def loss(params, data, weights):
        value = half_square(params, data, weights)
        jax.debug.callback(lambda x: None, value)
        return value

    first, second = (run(loss=loss, folder=tmp_path, epochs=1) for _ in range(2))
    np.testing.assert_array_equal(first.val, second.val)
