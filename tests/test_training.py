"""The training step: what it computes, what it leaves alone, and what it refuses."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.training import TrainState, make_train_step

rng = np.random.default_rng(0)
X = rng.normal(size=(12, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5]) + 3.0).astype(np.float32)
BATCH = {"x": X, "y": Y}


def init():
    return jax.tree.map(jnp.asarray, {"w": np.full(3, 0.5, np.float32), "b": np.float32(0.25)})


def squared_error(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def reference_gradient(w, b, x, y):
    """Of the mean squared error, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    error = x @ w + b - y
    return np.mean(error**2), 2 * x.T @ error / len(y), 2 * np.mean(error)


def leaves_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


def run(loss_fn, optimizer=None, batch=BATCH, params=None, **options):
    """The state and metrics after one step."""
    optimizer = optimizer or optax.sgd(0.1)
    kept = {name: options.pop(name) for name in ("model_state", "key") if name in options}
    state = TrainState.create(params or init(), optimizer, **kept)
    return make_train_step(loss_fn, optimizer, **options)(state, batch)


# What it computes.


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_of_sgd_is_the_formula(accumulate):
    state, metrics = run(squared_error, accumulate=accumulate)
    loss, dw, db = reference_gradient(np.full(3, 0.5), 0.25, X, Y)
    np.testing.assert_allclose(state.params["w"], 0.5 - 0.1 * dw, rtol=1e-6)
    np.testing.assert_allclose(state.params["b"], 0.25 - 0.1 * db, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(dw @ dw + db**2), rtol=1e-6)
    assert bool(metrics["finite"])
    assert (int(state.step), int(state.skipped)) == (1, 0)


def test_clipping_comes_before_the_optimizer_so_decay_is_not_clipped():
    optimizer = optax.chain(optax.add_decayed_weights(100.0), optax.sgd(1.0))
    state, metrics = run(squared_error, optimizer, max_grad_norm=1e-3)
    _, dw, db = reference_gradient(np.full(3, 0.5), 0.25, X, Y)
    norm = np.sqrt(dw @ dw + db**2)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], 0.5 - 1e-3 * dw / norm - 50.0, rtol=1e-6)


def test_a_small_gradient_is_not_clipped():
    leaves_equal(run(squared_error, max_grad_norm=1e3)[0], run(squared_error)[0])


def test_a_zero_gradient_survives_clipping():
    state, metrics = run(lambda params, batch: 0.0 * params["b"], max_grad_norm=1.0)
    assert float(metrics["grad_norm"]) == 0.0
    leaves_equal(state.params, init())


def test_the_norm_does_not_overflow_in_float16():
    params = {"w": jnp.zeros(2, jnp.float16)}
    state, metrics = run(lambda p, _: jnp.sum(p["w"]) * jnp.float16(1000), params=params)
    np.testing.assert_allclose(metrics["grad_norm"], 1000 * np.sqrt(2), rtol=1e-6)
    assert int(state.skipped) == 0


def test_micro_batches_are_summed_in_float32():
    # 1 + 255 · 2⁻⁸ is 1.99609375; bfloat16 sums lose every 2⁻⁸ beside the 1
    params = {"w": jnp.zeros((), jnp.bfloat16)}
    batch = np.full(256, 2.0**-8, np.float32)
    batch[0] = 1.0
    state, _ = run(
        lambda p, x: jnp.mean(p["w"] * x), optax.sgd(256.0), batch, params=params, accumulate=256
    )
    assert state.params["w"].dtype == jnp.bfloat16
    assert float(state.params["w"]) == pytest.approx(-1.99609375, abs=2.0**-7)


def test_metrics_are_the_users_and_means_over_micro_batches():
    def loss_fn(params, batch):
        return squared_error(params, batch), {"first": batch["y"][0], "size": len(batch["y"])}

    _, metrics = run(loss_fn, accumulate=3)
    np.testing.assert_allclose(metrics["first"], Y[[0, 1, 2]].mean(), rtol=1e-6)
    assert set(metrics) == {"loss", "grad_norm", "finite", "first", "size"}
    assert float(metrics["size"]) == 4


def test_model_state_passes_through_micro_batches_in_turn():
    def loss_fn(params, batch, model_state):
        return squared_error(params, batch), {}, {"ema": 0.5 * model_state["ema"] + batch["y"][0]}

    state, _ = run(loss_fn, model_state={"ema": jnp.array(1.0)}, accumulate=2)
    np.testing.assert_allclose(state.model_state["ema"], 0.5 * (0.5 + Y[0]) + Y[1], rtol=1e-6)


def test_keys_are_folded_with_step_and_micro_batch():
    def loss_fn(params, batch, key):
        return squared_error(params, batch), {"noise": jax.random.normal(key)}

    key = jax.random.key(7)
    step = make_train_step(loss_fn, optax.sgd(0.1))
    state = TrainState.create(init(), optax.sgd(0.1), key=key)
    for t in range(2):
        state, metrics = step(state, BATCH)
        expected = jax.random.normal(jax.random.fold_in(key, t))
        assert float(metrics["noise"]) == float(expected)
    _, metrics = run(loss_fn, key=key, accumulate=2)
    folded = [jax.random.fold_in(jax.random.fold_in(key, 0), i) for i in range(2)]
    expected = np.mean([float(jax.random.normal(k)) for k in folded])
    np.testing.assert_allclose(metrics["noise"], expected, rtol=1e-6)


def test_optimizers_that_want_the_loss_get_it():
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    state, _ = run(squared_error, optimizer)
    loss = reference_gradient(np.full(3, 0.5), 0.25, X, Y)[0]
    np.testing.assert_allclose(state.opt_state[1].best_value, loss, rtol=1e-6)


def test_many_steps_trace_once():
    traces = []

    def loss_fn(params, batch):
        traces.append(1)
        return squared_error(params, batch)

    step = make_train_step(loss_fn, optax.adam(0.1))
    state = TrainState.create(init(), optax.adam(0.1))
    for _ in range(4):
        state, _ = step(state, BATCH)
    assert len(traces) == 1


def test_a_step_runs_under_vmap_over_states():
    optimizer = optax.adam(0.1)
    step = make_train_step(squared_error, optimizer, max_grad_norm=1.0)
    states = [TrainState.create({**init(), "b": jnp.asarray(b)}, optimizer) for b in (0.0, 2.0)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *states)
    stacked, _ = jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked, BATCH)
    for i, state in enumerate(states):
        single, _ = step(state, BATCH)
        for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5)


# What it leaves alone.


def nan_when_asked(params, batch, model_state, key):
    loss = squared_error(params, batch) * jnp.where(batch["bad"][0] == 1, jnp.nan, 1.0)
    return loss, {}, {"calls": model_state["calls"] + 1, "loss": loss}


def infinite_gradient(params, batch, model_state, key):
    # √|b − 0.25| is 0 at the start, its derivative is not a number
    kink = lambda b: jnp.sqrt(jnp.abs(b - 0.25))
    bad = jax.lax.cond(batch["bad"][0] == 1, kink, lambda b: 0.0 * b, params["b"])
    return (
        squared_error(params, batch) + bad,
        {},
        {**model_state, "calls": model_state["calls"] + 1},
    )


@pytest.mark.parametrize(
    ("loss_fn", "accumulate", "optimizer"),
    [
        (nan_when_asked, 1, optax.adamw(0.1)),
        (infinite_gradient, 2, optax.adamw(0.1)),
        (
            infinite_gradient,
            1,
            optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1, momentum=0.9)),
        ),
        (nan_when_asked, 2, optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
    ],
    ids=["adamw-1-nan", "adamw-2-infinite", "noise-1-infinite", "multisteps-2-nan"],
)
@pytest.mark.first_is_quick
def test_a_step_that_is_not_finite_changes_nothing(loss_fn, accumulate, optimizer):
    model_state = {"calls": jnp.array(0), "loss": jnp.array(0.0)}
    state = TrainState.create(init(), optimizer, model_state=model_state, key=jax.random.key(1))
    before = state.copy()
    step = make_train_step(loss_fn, optimizer, accumulate=accumulate)
    state, metrics = step(state, {**BATCH, "bad": np.ones(12, np.float32)})
    assert not bool(metrics["finite"])
    assert (int(state.step), int(state.skipped)) == (1, 1)
    data = lambda s: jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        (s.params, s.opt_state, s.model_state),
    )
    leaves_equal(data(state), data(before))
    state, metrics = step(state, {**BATCH, "bad": np.zeros(12, np.float32)})
    assert np.isfinite(state.params["w"]).all()
    assert (int(state.step), int(state.skipped), int(state.model_state["calls"])) == (
        2,
        1,
        accumulate,
    )


def test_a_loss_that_is_not_finite_is_enough_to_skip():
    def loss_fn(params, batch):
        return squared_error(params, batch) + jax.lax.stop_gradient(jnp.inf * params["w"][0])

    state, metrics = run(loss_fn)
    assert np.isfinite(metrics["grad_norm"])
    assert int(state.skipped) == 1
    leaves_equal(state.params, init())


def test_without_skipping_the_numbers_go_through():
    loss_fn = lambda params, batch: squared_error(params, batch) * jnp.nan
    state, metrics = run(loss_fn, skip_nonfinite=False)
    assert np.isnan(state.params["w"]).all()
    assert (int(state.step), int(state.skipped), bool(metrics["finite"])) == (1, 0, False)


def test_create_copies_so_donation_spares_the_callers_arrays():
    # dog keeps the initial params in its state: without copies one buffer would be donated twice
    optimizer = optax.contrib.dog(1.0)
    params, key, model_state = init(), jax.random.key(0), {"n": jnp.zeros(2)}

    def loss_fn(params, batch, model_state, key):
        return squared_error(params, batch), {}, model_state

    state = TrainState.create(params, optimizer, model_state=model_state, key=key)
    after, _ = make_train_step(loss_fn, optimizer)(state, BATCH)
    assert state.params["w"].is_deleted()
    leaves_equal(params, init())
    assert not model_state["n"].is_deleted()
    assert not key.is_deleted()
    kept = after.copy()
    make_train_step(loss_fn, optimizer)(after, BATCH)
    assert int(kept.step) == 1


def test_a_copy_compiles_no_program():
    state = TrainState.create({"w": np.ones((3, 7), np.float32)}, optax.adam(0.1))
    compiled = []
    listen = lambda name, *_, **__: compiled.append(name)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.clear_caches()
        kept = state.copy()
    finally:
        forget = getattr(jax.monitoring, "unregister_event_duration_listener", None)
        forget and forget(listen)  # an earlier JAX keeps it
    leaves_equal(kept, state)
    assert [name for name in compiled if name.endswith("backend_compile_duration")] == []


def test_without_donation_the_state_stays_valid():
    state = TrainState.create(init(), optax.sgd(0.1))
    make_train_step(squared_error, optax.sgd(0.1), donate=False)(state, BATCH)
    leaves_equal(state.params, init())


# Other libraries, other precisions.


@pytest.mark.slow
def test_flax_batch_norm_and_dropout():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
            return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))[:, 0]

    net = Net()
    variables = net.init(jax.random.key(0), X, train=False)

    def loss_fn(params, batch, model_state, key):
        predicted, changed = net.apply(
            {"params": params, **model_state},
            batch["x"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return jnp.mean((predicted - batch["y"]) ** 2), {}, changed

    optimizer = optax.adam(0.05)
    model_state = {"batch_stats": variables["batch_stats"]}
    state = TrainState.create(
        variables["params"], optimizer, model_state=model_state, key=jax.random.key(1)
    )
    step = make_train_step(loss_fn, optimizer)
    losses = []
    for _ in range(60):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    hidden = X @ variables["params"]["Dense_0"]["kernel"]
    first, _ = step(
        TrainState.create(variables["params"], optimizer, model_state=model_state, key=state.key),
        BATCH,
    )
    mean = first.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * hidden.mean(0), rtol=1e-5, atol=1e-6)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


@pytest.mark.slow
def test_equinox_filtered_params():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        predicted = jax.vmap(eqx.combine(params, static))(batch["x"])
        return jnp.mean((predicted - batch["y"]) ** 2)

    state, _ = run(loss_fn, optax.sgd(0.1), params=params)
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    grads = jax.grad(loss_fn)(params, BATCH)
    expected = params.layers[0].weight - 0.1 * grads.layers[0].weight
    np.testing.assert_allclose(state.params.layers[0].weight, expected, rtol=1e-5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        params = {"w": jnp.full(3, 0.5, jnp.float64), "b": jnp.array(0.25, jnp.float64)}
        batch = {"x": X.astype(np.float64), "y": Y.astype(np.float64)}
        state, metrics = run(squared_error, params=params, batch=batch, accumulate=2)
        _, dw, db = reference_gradient(np.full(3, 0.5), 0.25, X, Y)
        np.testing.assert_allclose(state.params["w"], 0.5 - 0.1 * dw, rtol=1e-14)
        np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(dw @ dw + db**2), rtol=1e-14)
        assert metrics["loss"].dtype == jnp.float64


MOMENTUM = optax.sgd(0.1, momentum=0.9)  # not Adam: Optax itself mixes dtypes in its powers


@pytest.mark.parametrize(
    ("optimizer", "accumulate", "dtype", "x64"),
    [
        (MOMENTUM, 1, jnp.float32, False),
        (MOMENTUM, 2, jnp.bfloat16, False),
        (MOMENTUM, 2, jnp.float32, True),
        (MOMENTUM, 1, jnp.complex64, True),
        (wdjax.metrics.measured(wdjax.sgdw(0.1, weight_decay=0.1)), 1, jnp.bfloat16, False),
    ],
    ids=["plain", "narrow", "wide", "complex", "measured"],
)
@pytest.mark.first_is_quick
def test_it_runs_where_dtypes_are_not_promoted(optimizer, accumulate, dtype, x64):
    """It added a truth value to a count; gradients of two widths met in the norm and in the sum."""

    def loss_fn(params, batch, model_state, key):
        loss = squared_error({**params, "w": params["w"].real.astype(np.float32)}, batch)
        return loss, {"size": jnp.int32(12), "noise": jax.random.uniform(key)}, model_state

    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        params = {"w": jnp.full(3, 0.5, dtype), "b": jnp.array(0.25, jnp.float32)}
        options = {"accumulate": accumulate, "max_grad_norm": 1.0}
        kept = {"model_state": {"n": jnp.zeros(2, int)}, "key": jax.random.key(0)}
        step = make_train_step(loss_fn, optimizer, **options)
        state = wdjax.TrainState.create(params, optimizer, **kept)
        state, history = wdjax.fit(step, state, BATCH, epochs=2, batch_size=8, progress=False)
        assert history.metrics["finite"].all()
        assert not np.array_equal(state.params["w"], params["w"])


# What it refuses.


ADAM = optax.adam(0.1)


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        (wdjax.sgdw(0.1, weight_decay=0.1, momentum=0.9), wdjax.sgdw(0.1, weight_decay=0.1),
         "only in the state: '0/0/trace/b', '0/0/trace/w'"),
        (optax.adamw(0.1), optax.sgd(0.1), "only in the state: '0/count', '0/mu/b'"),
        (optax.sgd(0.1), ADAM, "got that of another, only in the optimizer: '0/count'"),
        (optax.rmsprop(0.1), optax.adagrad(0.1), "optimizer: '0/sum_.*; only in .*: '0/nu/b'"),
        (wdjax.adamw(0.1, weight_decay=0.1, anchor="init"), wdjax.adamw(0.1, weight_decay=0.1),
         "only in the state: .*memory/b'"),
        (optax.sgd(0.1), optax.chain(optax.clip(1.0), optax.sgd(0.1)), "in other containers"),
    ],
    ids=["momentum", "adamw", "sgd", "rmsprop", "anchor", "chain"],
)  # fmt: skip
def test_the_state_of_another_optimizer_is_refused(old, new, difference):
    """It went on without the momentum, without a word, or failed inside Optax."""
    state = TrainState.create(init(), old)
    message = f"`opt_state` must be made by this step's optimizer; .*{difference}.*restore into"
    with pytest.raises(ValueError, match=message):
        make_train_step(squared_error, new)(state, BATCH)
    with pytest.raises(ValueError, match=message):
        wdjax.fit(make_train_step(squared_error, new), state, BATCH, steps=1, batch_size=4)


def test_the_state_of_other_parameters_is_refused():
    state = TrainState.create(init(), ADAM)
    state = state._replace(opt_state=ADAM.init({"w": jnp.ones((1,)), "b": jnp.array(0.0)}))
    with pytest.raises(ValueError, match=r"'0/mu/w' is float32\[3\] in .*, float32\[1\] in"):
        make_train_step(squared_error, ADAM)(state, BATCH)


def test_a_restored_state_may_be_of_plain_arrays_and_wider_than_its_parameters():
    state = TrainState.create(init(), ADAM)
    step = make_train_step(squared_error, ADAM, donate=False)
    expected, _ = step(state, BATCH)
    restored, _ = step(jax.tree.map(np.asarray, state), BATCH)
    leaves_equal(restored, expected)
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), state.params)
    loss_fn = lambda params, batch: squared_error(jax.tree.map(jnp.float32, params), batch)
    after, _ = make_train_step(loss_fn, ADAM)(state._replace(params=narrow), BATCH)
    assert after.opt_state[0].mu["w"].dtype == jnp.float32


def test_an_optimizer_whose_init_must_see_values_is_taken_as_it_is():
    def by_value(params):
        return optax.sgd(0.1, momentum=0.9 if float(params["b"]) > 0 else None).init(params)

    optimizer = optax.GradientTransformation(by_value, optax.sgd(0.1, momentum=0.9).update)
    assert int(run(squared_error, optimizer)[0].step) == 1


def test_the_check_of_the_state_says_nothing_twice_and_costs_no_step():
    """A warning of `init` was given when the state was made."""
    seen = []

    def init_state(params):
        seen.append(params)
        warnings.warn("said once", stacklevel=1)
        return ADAM.init(params)

    optimizer = optax.GradientTransformation(init_state, ADAM.update)
    with pytest.warns(UserWarning, match="said once"):
        state = TrainState.create(init(), optimizer)
    step = make_train_step(squared_error, optimizer)
    for _ in range(3):
        state, _ = step(state, BATCH)
    assert len(seen) == 2


@pytest.mark.parametrize("key", [3, np.int64(3), "seed", jnp.ones(2), [0, 1]])
def test_a_key_that_is_none_is_refused_at_once(key):
    with pytest.raises(TypeError, match=r"`key` must be a random key, such as jax\.random\.key"):
        TrainState.create(init(), ADAM, key=key)


@pytest.mark.parametrize(
    "key", [jax.random.key(3), jax.random.PRNGKey(3), np.arange(2, dtype="u4")]
)
def test_keys_of_every_kind_are_keys(key):
    loss_fn = lambda params, batch, key: squared_error(params, batch) * jax.random.uniform(key)
    assert np.isfinite(run(loss_fn, key=key)[1]["loss"])


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [(np.arange(3), "int64[3]"), (jnp.zeros(2, bool), "bool[2]"), (1.0, "float"), (len, "builtin")],
)
def test_params_that_are_not_floating_point_arrays_are_named(leaf, kind):
    message = r"hold floating-point arrays only; got " + kind.replace("[", r"\[") + ".* at 'a/ids'"
    with pytest.raises(TypeError, match=message):
        TrainState.create({"a": {"ids": leaf}}, optax.sgd(0.1))


def test_at_most_five_paths_are_named():
    params = {f"p{i}": jnp.arange(2) for i in range(7)}
    with pytest.raises(TypeError, match=r"at 'p4', and 2 more\."):
        TrainState.create(params, optax.sgd(0.1))


@pytest.mark.parametrize("name", ["model_state", "key"])
def test_a_loss_that_takes_what_the_state_lacks(name):
    scope = {}
    exec(f"def loss_fn(params, batch, {name}): return 0.0", scope)
    with pytest.raises(
        ValueError, match=f"have the `{name}` that `loss_fn` takes; .* {name}= to TrainState.create"
    ):
        run(scope["loss_fn"])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, r"`batch` must hold arrays with the same number of rows, .*; got no array"),
        ({"x": X, "y": Y[:-1]}, r"number of rows, .*; got \(12, 3\) at 'x', \(11,\) at 'y'"),
        ({"x": X[:0], "y": Y[:0]}, r"at least one; got \(0, 3\) at 'x', \(0,\) at 'y'"),
        ({"x": X, "y": 1.0}, r"number of rows, .*; got \(12, 3\) at 'x', \(\) at 'y'"),
    ],
)
def test_bad_batches_are_named(batch, message):
    with pytest.raises(ValueError, match=message):
        run(squared_error, batch=batch)


@pytest.mark.parametrize(
    ("batch", "spec"),
    [
        (BATCH, {"x": ("B", 3), "y": ("B",)}),
        (BATCH, {"x": (None, "D"), "y": (12,)}),
        ((X, {"y": Y}), (("B", 3), {"y": ("B",)})),
        ([X, X], [("B", "D"), ("B", "D")]),
        (X, ("B", 3)),
    ],
)
def test_a_batch_that_meets_its_spec_passes(batch, spec):
    run(lambda params, batch: jnp.sum(params["w"]), batch=batch, batch_spec=spec)


@pytest.mark.parametrize(
    ("batch", "spec", "message"),
    [
        (BATCH, {"x": ("B", 13), "y": ("B",)}, r"shape \('B', 13\) at 'x'; got \(12, 3\)"),
        (BATCH, {"x": ("B", 3), "y": ("B", 1)}, r"shape \('B', 1\) at 'y'; got \(12,\)"),
        (BATCH, {"x": ("B", "B"), "y": ("B",)}, r"at 'x'; got \(12, 3\)\. B is 12"),
        (BATCH, {"x": ("B", "D"), "y": ("D",)}, r"at 'y'; got \(12,\)\. D is 3"),
        (BATCH, {"x": ("B", 3)}, r"entries of `batch_spec`; got .* not declared: \['y'\]"),
        ({"x": X}, {"x": ("B", 3), "y": ("B",)}, r"entries of `batch_spec`; got missing: \['y'\]"),
        ((X, {"y": Y}), (("B", 3), {"y": (None, 2)}), r"shape \(None, 2\) at '1/y'"),
        (X, ("B", 4), r"have shape \('B', 4\) at '\.'; got \(12, 3\)"),
    ],
)
def test_a_batch_that_breaks_its_spec_is_named(batch, spec, message):
    with pytest.raises(ValueError, match=message):
        run(lambda params, batch: jnp.sum(params["w"]), batch=batch, batch_spec=spec)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda p: p["w"], TypeError, r"scalar-output functions. Output had shape: \(3,\)"),
        (lambda p: jnp.int32(1), TypeError, "requires real-valued outputs .* got int32"),
        (lambda p: None, TypeError, "scalar-output functions. Output was None"),
        (
            lambda p: (p["b"], {}, {}),
            TypeError,
            r"must return \(loss, metrics\); got \(float32\[\], dict, dict\)",
        ),
        (lambda p: (p["b"], [p["b"]]), TypeError, r"got \(float32\[\], list\). Metrics are a dict"),
        (lambda p: (p["b"], {"a": "x"}), TypeError, "'str'>"),
        (lambda p: (p["b"], {"loss": p["b"]}), ValueError, r"names that the step adds; got 'loss'"),
    ],
)
def test_bad_results_of_the_loss_are_named(result, error, message):
    with pytest.raises(error, match=message):
        run(lambda params, batch: result(params))


def test_a_loss_with_model_state_must_return_three():
    message = r"must return \(loss, metrics, model_state\); got \(float32\[\], dict\)"
    with pytest.raises(TypeError, match=message):
        run(lambda params, batch, model_state: (params["b"], {}), model_state={"n": jnp.zeros(1)})


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"n": jnp.zeros(3)}, r"'n' is float32\[2\] in the old one, float32\[3\] in the new"),
        ({"n": jnp.zeros(2, jnp.bfloat16)}, r"'n' is float32\[2\] in .*, bfloat16\[2\] in the new"),
        ({"m": jnp.zeros(2)}, r"only in the old one: 'n'; only in the new one: 'm'"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_model_state_that_changes_is_named(after, message, accumulate):
    with pytest.raises(ValueError, match="`model_state` must keep structure.*" + message):
        run(
            lambda params, batch, model_state: (params["b"], {}, after),
            model_state={"n": jnp.zeros(2)},
            accumulate=accumulate,
        )


def test_a_model_state_in_another_container_is_named():
    with pytest.raises(
        ValueError, match=r"`model_state` must keep .*'0' is in tuple in the old one, in list in"
    ):
        run(
            lambda params, batch, model_state: (params["b"], {}, list(model_state)),
            model_state=(jnp.zeros(1), jnp.zeros(2)),
        )


def test_an_optimizer_state_or_params_that_change_are_named():
    def changing(field):
        def update(updates, state, params):
            grown = jax.tree.map(lambda u: jnp.zeros((2, *u.shape)), updates)
            return (grown, state) if field == "params" else (updates, {"mu": jnp.zeros((2, 3))})

        return optax.GradientTransformation(lambda params: {"mu": jnp.zeros(3)}, update)

    loss_fn = lambda params, batch: jnp.sum(params["w"])
    params = {"w": jnp.zeros((1, 3))}
    message = r"`opt_state` must keep .*'mu' is float32\[3\] in .*, float32\[2,3\] in"
    with pytest.raises(ValueError, match=message):
        run(loss_fn, changing("opt_state"), params=params)
    params = {"w": jnp.zeros(())}
    message = r"`params` must keep .*'w' is float32\[\] in .*, float32\[2\] in"
    with pytest.raises(ValueError, match=message):
        run(loss_fn, changing("params"), params=params)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accumulate": 0}, ValueError, r"`accumulate` must be a whole number >= 1; got 0"),
        ({"accumulate": 1.5}, TypeError, r"`accumulate` must be a whole number >= 1; got 1.5"),
        (
            {"accumulate": 5},
            ValueError,
            r"`accumulate` must divide every batch; got .*=5 and .* 12",
        ),
        ({"max_grad_norm": 0.0}, ValueError, r"`max_grad_norm` must be .* > 0, or None; got 0.0"),
        ({"max_grad_norm": "2"}, TypeError, r"`max_grad_norm` must be .* > 0, or None; got '2'"),
        ({"max_grad_norm": True}, TypeError, r"`max_grad_norm` must be .* > 0, or None; got True"),
        (
            {"max_grad_norm": np.ones(2)},
            TypeError,
            r"`max_grad_norm` must be .* > 0, or None; got array",
        ),
        ({"batch_spec": {"x": 5}}, TypeError, r"`batch_spec` must hold tuples .* got int at 'x'"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        run(squared_error, **options)


def test_a_partial_loss_works():
    loss_fn = functools.partial(
        lambda scale, params, batch: scale * squared_error(params, batch), 2.0
    )
    loss = reference_gradient(np.full(3, 0.5), 0.25, X, Y)[0]
    np.testing.assert_allclose(run(loss_fn)[1]["loss"], 2 * loss, rtol=1e-6)


def test_what_is_no_function_or_optimizer_is_refused_when_built():
    with pytest.raises(TypeError, match="`loss_fn` must be a function; got 3"):
        make_train_step(3, optax.sgd(0.1))
    for build in (
        lambda wrong: make_train_step(squared_error, wrong),
        lambda wrong: TrainState.create({"w": jnp.ones(2)}, wrong),
    ):
        with pytest.raises(TypeError, match=r"`optimizer` must be an Optax .* None"):
            build(None)


def test_arguments_that_changed_places_are_named_and_not_printed():
    params = {"w": jnp.ones(1000)}
    step, optimizer = make_train_step(squared_error, optax.sgd(0.1)), optax.sgd(0.1)
    with pytest.raises(TypeError, match=r"`loss_fn` must be a function; got dict\.$"):
        make_train_step(params, optimizer)
    with pytest.raises(TypeError, match=r"`penalty` must be .*penalties\.l2.*; got dict\.$"):
        wdjax.decay_weights(0.1, params)
    with pytest.raises(TypeError, match=r"`optimizer` must be an Optax optimizer; got dict\. For"):
        TrainState.create(optimizer, params)
    with pytest.raises(
        TypeError, match=r"`state` must be a TrainState; got tuple\. Use TrainState"
    ):
        step(optimizer.init(params), BATCH)


def test_a_key_that_partial_has_set_stays():
    def loss_fn(params, batch, key):
        return jnp.sum(params["w"]) * jax.random.uniform(key)

    own, of_state = jax.random.key(1), jax.random.key(2)
    step = make_train_step(functools.partial(loss_fn, key=own), optax.sgd(0.1), donate=False)
    state = TrainState.create({"w": jnp.ones(())}, optax.sgd(0.1), key=of_state)
    _, metrics = step(state, {"x": jnp.ones(1)})
    np.testing.assert_allclose(metrics["loss"], jax.random.uniform(own), rtol=1e-6)


def test_params_may_hold_none_as_a_filtered_equinox_model_does():
    params = {"w": jnp.ones(3), "b": None}
    loss = lambda params, batch: jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    step = make_train_step(loss, optax.sgd(0.1))
    state, _ = step(TrainState.create(params, optax.sgd(0.1)), BATCH)
    assert state.params["b"] is None
    assert not np.array_equal(state.params["w"], np.ones(3))


# Parameters that no gradient reaches.


def _through_a_buffer(params, batch):
    held = jax.jit(jax.lax.stop_gradient)(params["buffer"]).sum()
    return jnp.mean((batch["x"] * params["kernel"].sum() * held) ** 2)


WITH_BUFFER = jax.tree.map(
    np.float32, {"kernel": np.ones((2, 2)), "buffer": np.ones((2, 2)), "unused": np.ones(2)}
)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_decay_of_parameters_that_no_gradient_reaches_is_warned_of(accumulate):
    optimizer = wdjax.sgdw(1e-3, weight_decay=0.1, rules=(("**", 1.0),))
    step = wdjax.make_train_step(_through_a_buffer, optimizer, accumulate=accumulate)
    state = TrainState.create(WITH_BUFFER, optimizer)
    with pytest.warns(
        UserWarning, match=r"no gradient reaches them.*fade away: 'buffer', 'unused'\."
    ):
        step(state, {"x": jnp.ones(4)})


def test_parameters_that_no_gradient_reaches_may_stay_as_they_are():
    """Warnings are errors here."""
    rules = (("kernel", 1.0), ("**", 0.0))
    for optimizer in (optax.adam(1e-3), wdjax.sgdw(1e-3, weight_decay=0.1, rules=rules)):
        step = wdjax.make_train_step(_through_a_buffer, optimizer)
        state, _ = step(TrainState.create(WITH_BUFFER, optimizer), {"x": jnp.ones(4)})
        np.testing.assert_array_equal(state.params["buffer"], WITH_BUFFER["buffer"])


def test_a_gradient_that_is_the_same_everywhere_reaches_its_parameter():
    """Warnings are errors here."""
    optimizer = optax.adamw(1e-3, weight_decay=0.1)
    step = wdjax.make_train_step(lambda params, batch: params["w"].sum(), optimizer)
    step(TrainState.create({"w": jnp.ones(3)}, optimizer), jnp.ones(4))


def test_the_loss_is_traced_once_to_look_and_to_train():
    traces = []

    def loss_fn(params, batch):
        traces.append(None)
        return jnp.mean(params["w"] * batch["x"])

    step = wdjax.make_train_step(loss_fn, optax.sgd(0.1))
    step(TrainState.create({"w": jnp.ones(())}, optax.sgd(0.1)), {"x": jnp.ones(4)})
    assert len(traces) == 1


def test_a_state_prints_the_audit_of_its_optimizer_when_asked(capsys):
    optimizer = optax.sgd(0.1)
    TrainState.create({"kernel": jnp.ones((2, 2))}, optimizer, audit=True)
    assert "! nothing decays" in capsys.readouterr().out
