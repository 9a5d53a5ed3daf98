"""The loop: the same numbers as a plain Python loop, wherever it is cut, and nothing is lost."""

import _thread
import gc
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax.training import TrainState, make_train_step
from wdjax.training._loop import fit

rng = np.random.default_rng(0)
X = rng.normal(size=(20, 2)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0]) + 3.0).astype(np.float32)
DATA = {"x": X, "y": Y, "index": np.arange(20)}
OPTIMIZER = optax.adam(0.1)


def loss_fn(params, batch):
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(error**2), {"size": len(batch["y"]), "first": batch["index"][0]}


STEP = make_train_step(loss_fn, OPTIMIZER)


def start(key=None):
    return TrainState.create({"w": jnp.zeros(2), "b": jnp.zeros(())}, OPTIMIZER, key=key)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def cut(orders, batch_size=8):
    """The batches of these epochs, one after the other."""
    for order in orders:
        for i in range(0, len(order), batch_size):
            yield {name: x[order[i : i + batch_size]] for name, x in DATA.items()}


def plain_loop(state, batches):
    losses = []
    for batch in batches:
        state, metrics = STEP(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


# The same numbers as a plain loop.


def test_fit_is_a_plain_loop_with_the_short_batch_at_its_true_size():
    expected, losses = plain_loop(start(), cut([np.arange(20)] * 5))
    state, history = fit(STEP, start(), DATA, epochs=5, batch_size=8, shuffle=False)
    np.testing.assert_allclose(history.metrics["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-5)
    np.testing.assert_array_equal(history.metrics["size"], [8, 8, 4] * 5)
    np.testing.assert_array_equal(history.metrics["first"], [0, 8, 16] * 5)
    np.testing.assert_array_equal(history.steps, np.arange(15))
    assert int(state.step) == 15


@pytest.mark.parametrize("size", [20, 3000])
def test_every_epoch_shows_every_example_once_in_a_new_order(size):
    seen = lambda params, batch: (params["w"] * 0.0, {"rows": batch["i"]})
    optimizer = optax.sgd(0.1)
    state = TrainState.create({"w": jnp.array(0.0)}, optimizer)
    step = make_train_step(seen, optimizer)
    data = {"i": np.arange(size)}
    _, history = fit(step, state, data, epochs=12, batch_size=10, chunk=100)
    epochs = history.metrics["rows"].reshape(12, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (12, 1)))
    assert len({epoch.tobytes() for epoch in epochs}) == 12
    _, other = fit(step, state, data, epochs=12, batch_size=10, seed=1)
    assert not np.array_equal(other.metrics["rows"].reshape(12, size), epochs)


def test_the_order_does_not_depend_on_the_batch_size():
    seen = lambda params, batch: (params["w"] * 0.0, {"rows": batch["i"]})
    optimizer = optax.sgd(0.1)
    state = TrainState.create({"w": jnp.array(0.0)}, optimizer)
    step = make_train_step(seen, optimizer)
    # more epochs than are shuffled at once
    _, small = fit(step, state, {"i": np.arange(20)}, epochs=1000, batch_size=4)
    _, large = fit(step, state, {"i": np.arange(20)}, epochs=1000, batch_size=20)
    np.testing.assert_array_equal(small.metrics["rows"].ravel(), large.metrics["rows"].ravel())


def test_every_order_of_three_examples_is_equally_likely():
    seen = lambda params, batch: (params["w"] * 0.0, {"rows": batch["i"]})
    optimizer = optax.sgd(0.1)
    state = TrainState.create({"w": jnp.array(0.0)}, optimizer)
    step = make_train_step(seen, optimizer)
    _, history = fit(step, state, {"i": np.arange(3)}, epochs=12_000, batch_size=3)
    _, counts = np.unique(history.metrics["rows"], axis=0, return_counts=True)
    # six orders, 2,000 of each expected, standard deviation 41
    assert len(counts) == 6
    assert np.abs(counts - 2000).max() < 5 * 41


@pytest.mark.parametrize("how", ["generator", "iterable", "device", "iter of a list"])
def test_a_stream_gives_the_same_run(how):
    orders = [np.arange(20)] * 4

    class Loader:
        def __iter__(self):
            return cut(orders)

    batches = {
        "generator": lambda: cut(orders),
        "iterable": Loader,
        "device": lambda: (jax.device_put(batch) for batch in cut(orders)),
        "iter of a list": lambda: iter(list(cut(orders))),
    }[how]()
    expected, losses = plain_loop(start(), cut(orders))
    state, history = fit(STEP, start(), batches)
    np.testing.assert_allclose(history.metrics["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-5)
    np.testing.assert_array_equal(history.metrics["size"], [8, 8, 4] * 4)


def test_a_stream_may_fill_one_buffer_again_and_again():
    def reusing():
        buffer = {name: np.empty((10, *x.shape[1:]), x.dtype) for name, x in DATA.items()}
        for i in range(10):
            for name, x in DATA.items():
                buffer[name][:] = x[10 * (i % 2) :][:10]
            yield buffer

    _, history = fit(STEP, start(), reusing())
    np.testing.assert_array_equal(history.metrics["first"], [0, 10] * 5)


def test_a_stream_is_read_no_further_than_its_batches_are_used():
    batches = cut([np.arange(16)] * 10)
    fit(STEP, start(), batches, steps=7)
    assert len(list(batches)) == 13


def test_data_may_be_a_tuple_or_one_array():
    optimizer = optax.sgd(0.1)
    state = TrainState.create({"w": jnp.zeros(2)}, optimizer)
    both = make_train_step(lambda p, b: jnp.mean((b[0] @ p["w"] - b[1]) ** 2), optimizer)
    one = make_train_step(lambda p, b: jnp.mean((b @ p["w"]) ** 2), optimizer)
    assert len(fit(both, state, (X, Y), epochs=1, batch_size=8)[1].steps) == 3
    assert len(fit(one, state, X, epochs=1, batch_size=8)[1].steps) == 3


def test_model_state_and_keys_go_through_the_loop():
    def noisy(params, batch, model_state, key):
        noise = jax.random.normal(key, batch["y"].shape)
        error = batch["x"] @ params["w"] + params["b"] - batch["y"] + noise
        return jnp.mean(error**2), {}, {"seen": model_state["seen"] + len(batch["y"])}

    step = make_train_step(noisy, OPTIMIZER, accumulate=2)
    create = lambda: TrainState.create(
        start().params, OPTIMIZER, model_state={"seen": jnp.array(0)}, key=jax.random.key(3)
    )
    expected = create()
    for batch in cut([np.arange(20)] * 3):
        expected, _ = step(expected, batch)
    state, _ = fit(step, create(), DATA, epochs=3, batch_size=8, shuffle=False)
    assert int(state.model_state["seen"]) == 60
    np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-5)


@pytest.mark.slow
def test_equinox_params_go_through_the_loop():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, "scalar", 8, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        return jnp.mean((jax.vmap(eqx.combine(params, static))(batch["x"]) - batch["y"]) ** 2)

    state = TrainState.create(params, OPTIMIZER)
    step = make_train_step(loss_fn, OPTIMIZER)
    state, history = fit(step, state, DATA, epochs=40, batch_size=8)
    assert history.metrics["loss"][-3:].mean() < 0.1 * history.metrics["loss"][:3].mean()


def test_any_function_may_be_the_step():
    def step(state, batch):
        params = jax.tree.map(lambda p: p + len(batch["y"]), state.params)
        return state._replace(params=params, step=state.step + 1), {"n": jnp.zeros((2, 3))}

    state, history = fit(step, start(), DATA, steps=4, batch_size=8)
    assert float(state.params["b"]) == 8 + 8 + 4 + 8
    assert history.metrics["n"].shape == (4, 2, 3)


def test_float64_data_and_params():
    with jax.enable_x64(True):
        optimizer = optax.sgd(0.05)
        state = TrainState.create({"w": jnp.zeros(2)}, optimizer)
        x, y = X.astype(np.float64), X.astype(np.float64) @ np.array([1.0, -2.0])
        step = make_train_step(lambda p, b: jnp.mean((b[0] @ p["w"] - b[1]) ** 2), optimizer)
        state, history = fit(step, state, (x, y), epochs=500, batch_size=8)
        assert history.metrics["loss"].dtype == np.float64
        np.testing.assert_allclose(state.params["w"], [1.0, -2.0], rtol=1e-12)


# Wherever it is cut.


@pytest.mark.parametrize(
    "options", [{"chunk": 1}, {"chunk": 7}, {"evaluate": "yes", "eval_every": 4}]
)
def test_chunks_and_evaluations_do_not_change_the_run(options):
    if "evaluate" in options:
        options = {**options, "evaluate": lambda state: {"b": state.params["b"]}}
    expected, whole = fit(STEP, start(), DATA, epochs=9, batch_size=8)
    state, history = fit(STEP, start(), DATA, epochs=9, batch_size=8, **options)
    same(state, expected)
    same(history.metrics, whole.metrics)


@pytest.mark.parametrize("first", [1, 4, 11])
def test_resuming_is_the_uninterrupted_run_bit_for_bit(first):
    expected, whole = fit(STEP, start(), DATA, epochs=9, batch_size=8)
    state, before = fit(STEP, start(), DATA, steps=first, batch_size=8)
    state, after = fit(STEP, state, DATA, epochs=9, batch_size=8)
    same(state, expected)
    np.testing.assert_array_equal(np.concatenate([before.steps, after.steps]), whole.steps)
    losses = [before.metrics["loss"], after.metrics["loss"]]
    np.testing.assert_array_equal(np.concatenate(losses), whole.metrics["loss"])


def test_a_second_fit_compiles_nothing():
    traces = []

    def counted(params, batch):
        traces.append(len(batch["y"]))
        return loss_fn(params, batch)

    step = make_train_step(counted, OPTIMIZER)
    state, _ = fit(step, start(), DATA, epochs=2, batch_size=8)
    assert sorted(traces) == [4, 8]
    fit(step, start(), DATA, epochs=5, batch_size=8, seed=3)
    fit(step, state, DATA, steps=17, batch_size=8, evaluate=lambda s: {}, eval_every=5)
    assert sorted(traces) == [4, 8]


def test_the_callers_state_and_data_stay_valid():
    state, data = start(jax.random.key(0)), jax.device_put(DATA)
    fit(STEP, state, data, epochs=2, batch_size=8)
    same(state.params, start().params)
    np.testing.assert_array_equal(data["x"], X)


def test_nothing_left_to_do_is_a_warning():
    state, _ = fit(STEP, start(), DATA, epochs=2, batch_size=8)
    with pytest.warns(UserWarning, match="nothing to do: the state is at step 6 of 6"):
        after, history = fit(STEP, state, DATA, epochs=2, batch_size=8)
    same(after, state)
    assert (len(history.steps), history.metrics, history.evals) == (0, {}, {})


# What it shows.


def test_evaluations_come_at_multiples_and_at_the_end():
    evaluate = lambda state: {"t": state.step, "b": float(state.params["b"])}
    state, _ = fit(STEP, start(), DATA, steps=2, batch_size=8)
    state, history = fit(STEP, state, DATA, steps=14, batch_size=8, evaluate=evaluate, eval_every=4)
    np.testing.assert_array_equal(history.eval_steps, [4, 8, 12, 14])
    np.testing.assert_array_equal(history.evals["t"], [4, 8, 12, 14])
    assert history.evals["b"][-1] == float(state.params["b"])
    _, history = fit(STEP, start(), DATA, steps=8, batch_size=8, evaluate=evaluate, eval_every=4)
    np.testing.assert_array_equal(history.eval_steps, [4, 8])
    _, history = fit(STEP, start(), cut([np.arange(20)] * 2), evaluate=evaluate)
    np.testing.assert_array_equal(history.eval_steps, [6])


def test_states_given_to_callbacks_are_theirs_to_keep():
    kept, checkpoints = [], []
    state, _ = fit(
        STEP,
        start(),
        DATA,
        epochs=4,
        batch_size=8,
        evaluate=lambda state: kept.append(state) or {},
        eval_every=5,
        on_chunk=checkpoints.append,
    )
    assert [int(state.step) for state in kept] == [5, 10, 12]
    assert [int(state.step) for state in checkpoints][-1] == 12
    same(kept[-1], state)
    same(checkpoints[-1], state)


def test_skipped_steps_are_counted_and_told():
    x = X.copy()
    x[3] = np.nan
    with pytest.warns(UserWarning, match="skipped 5 of 15 steps"):
        state, history = fit(STEP, start(), {**DATA, "x": x}, epochs=5, batch_size=8)
    assert int(state.skipped) == 5
    assert (~history.metrics["finite"]).sum() == 5
    assert np.isfinite(state.params["w"]).all()


def test_slow_steps_run_in_short_chunks():
    def slow(state, batch):
        def wait(step):
            time.sleep(0.05)
            return step

        step = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.int32), state.step)
        return state._replace(step=step + 1), {}

    stops = []
    fit(
        slow, start(), DATA, steps=25, batch_size=8, on_chunk=lambda state: stops.append(state.step)
    )
    counts = np.diff([0, *map(int, stops)])
    assert counts.sum() == 25
    assert counts.max() <= 12


def test_a_bar_shows_progress(capsys):
    pytest.importorskip("tqdm")
    fit(STEP, start(), DATA, epochs=3, batch_size=8, progress=True)
    shown = capsys.readouterr().err
    assert "9/9" in shown
    assert "loss" in shown
    fit(STEP, start(), DATA, epochs=3, batch_size=8)
    assert capsys.readouterr().err == ""


def test_a_bar_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"`progress=True` needs tqdm.* pip install tqdm"):
        fit(STEP, start(), DATA, epochs=3, batch_size=8, progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(STEP, start(), DATA, epochs=3, batch_size=8)


# Nothing is lost.


def broken_stream(good):
    yield from cut([np.arange(8)] * good)
    raise OSError("the disk is gone")


@pytest.mark.parametrize("good", [1, 6])
def test_an_iterator_that_raises_loses_no_batch(good):
    with pytest.raises(OSError, match="the disk is gone") as caught:
        fit(STEP, start(), broken_stream(good))
    expected, _ = fit(STEP, start(), cut([np.arange(8)] * good))
    same(caught.value.state, expected)
    assert len(caught.value.history.metrics["loss"]) == good
    assert f"`fit` was at step {good}" in caught.value.__notes__[0]


def test_a_batch_that_was_read_ahead_is_left_in_what_an_exception_carries():
    orders = [np.arange(20)] * 2  # 8, 8, 4, 8, 8, 4: the change of shape shows one batch later
    expected, _ = fit(STEP, start(), cut(orders))

    def stop(state):
        if int(state.step) == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fit(STEP, start(), cut(orders), on_chunk=stop)
    reached = caught.value.state
    state, history = fit(STEP, reached, caught.value.batches)
    assert history.metrics["size"].tolist() == [4, 8, 8, 4]
    same(state, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("where", ["evaluate", "on_chunk"])
def test_a_callback_that_raises_loses_no_step(error, where):
    def raising(state):
        if int(state.step) >= 6:
            raise error
        return {"t": state.step}

    options = {where: raising} | ({"eval_every": 3} if where == "evaluate" else {"chunk": 3})
    with pytest.raises(error) as caught:
        fit(STEP, start(), DATA, epochs=9, batch_size=8, **options)
    state, history = caught.value.state, caught.value.history
    assert int(state.step) == len(history.metrics["loss"]) >= 6
    whole, _ = fit(STEP, start(), DATA, epochs=9, batch_size=8)
    resumed, _ = fit(STEP, state, DATA, epochs=9, batch_size=8)
    same(resumed, whole)


@pytest.fixture
def interruptible():
    """Interrupts arrive, whatever was set before.

    Shells start jobs in the background with interrupts ignored. JAX has a hook in Python's
    collector, and Python drops an interrupt that arrives while it runs.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()
    yield
    gc.enable()
    signal.signal(signal.SIGINT, before)


# In some versions JAX turns an interrupt that arrives inside its comparisons into a ValueError.
INTERRUPTS = (KeyboardInterrupt, ValueError)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_in_the_middle_leaves_a_state_to_go_on_with():
    fit(STEP, start(), DATA, steps=3, batch_size=8)
    for seconds in (0.1, 0.11, 0.12, 0.13):
        threading.Timer(seconds, _thread.interrupt_main).start()
        with pytest.raises(INTERRUPTS) as caught:
            fit(STEP, start(), DATA, epochs=10**6, batch_size=8)
        state, history = caught.value.state, caught.value.history
        assert int(state.step) == len(history.steps) == len(history.metrics["loss"]) > 0
        assert np.isfinite(state.params["w"]).all()


class Interrupting(dict):
    """Metrics whose node in the tree sends an interrupt, as soon as `armed`, when JAX opens it."""

    armed = 0

    def opened(self):
        if Interrupting.armed:
            Interrupting.armed -= 1
            signal.raise_signal(signal.SIGINT)
        return tuple(self.values()), tuple(self)


jax.tree_util.register_pytree_node(
    Interrupting,
    Interrupting.opened,
    lambda names, values: Interrupting(zip(names, values, strict=True)),
)


def interrupting_step(state, batch):
    state, metrics = STEP(state, batch)
    return state, {"own": Interrupting(metrics)}


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("more", [1, 5])
def test_interrupts_while_an_interrupted_run_is_settled_lose_no_step(more):
    """The second batch interrupts the run, and the metrics of the first one its last lines."""

    def batches():
        yield DATA
        Interrupting.armed = more
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(INTERRUPTS) as caught:
        fit(interrupting_step, start(), batches())
    error, Interrupting.armed = caught.value, 0
    assert int(error.state.step) == 1
    assert np.isfinite(error.state.params["w"]).all()
    assert len(error.history.steps) <= 1  # a second interrupt ends the wait for metrics
    state, _ = fit(STEP, error.state, DATA, steps=3, batch_size=8)
    assert int(state.step) == 3


# What it refuses.


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (DATA, {"epochs": 1}, TypeError, r"`batch_size` must .* iter\(batches\) trains"),
        (
            DATA,
            {"epochs": 1, "batch_size": 0},
            ValueError,
            r"`batch_size` must be .* \[1, 20\]; got 0",
        ),
        (DATA, {"epochs": 1, "batch_size": 21}, ValueError, r"in \[1, 20\]; got 21. These are 20"),
        (DATA, {"epochs": 1, "batch_size": 8.0}, TypeError, "`batch_size` must be a whole .*8.0"),
        (
            DATA,
            {"batch_size": 8},
            ValueError,
            "`epochs` must be given, or else `steps`.*epochs=None",
        ),
        (
            DATA,
            {"batch_size": 8, "epochs": 1, "steps": 1},
            ValueError,
            "`epochs` must be given, or else",
        ),
        (
            DATA,
            {"batch_size": 8, "epochs": 0},
            ValueError,
            "`epochs` must be .* >= 1, or None; got 0",
        ),
        (DATA, {"batch_size": 8, "steps": True}, TypeError, "`steps` must be a whole .*got True"),
        (DATA, {"batch_size": 8, "steps": 1, "chunk": 0}, ValueError, "`chunk` must be .* got 0"),
        (DATA, {"batch_size": 8, "steps": 1, "eval_every": 1}, ValueError, "come with `evaluate`"),
        ({}, {"epochs": 1, "batch_size": 8}, ValueError, "`batches` must hold .* got no array"),
        (
            {"x": X, "y": Y[1:]},
            {"epochs": 1, "batch_size": 8},
            ValueError,
            r"got \(20, 2\) at 'x', \(19,\) at 'y'",
        ),
        ({"x": X[:0]}, {"epochs": 1, "batch_size": 8}, ValueError, r"got \(0, 2\) at 'x'"),
        (
            {"x": X, "n": 3},
            {"epochs": 1, "batch_size": 8},
            TypeError,
            "arrays of numbers; got int at 'n'",
        ),
        (5, {"epochs": 1, "batch_size": 8}, TypeError, r"arrays of numbers; got int at '\.'"),
        (iter([]), {}, ValueError, "must yield at least one batch; got none"),
        (iter([DATA]), {"epochs": 2}, ValueError, "come with data in memory, .* got epochs=2"),
        (iter([DATA]), {"batch_size": 2}, ValueError, "come with data in memory, .* batch_size=2"),
        (
            iter([{"x": "a"}]),
            {},
            TypeError,
            "`batch` must hold plain arrays of numbers; got str at 'x'",
        ),
        (
            DATA | {"index": np.arange(20) + 2**40},
            {"epochs": 1, "batch_size": 8},
            ValueError,
            "`batches` must fit int32, .* got 1099511627776 in 'index'",
        ),
        (
            iter([DATA | {"index": np.arange(20) - 2**40}]),
            {},
            ValueError,
            "`batch` must fit int32, .* got -1099511627776 in 'index'",
        ),
        (
            DATA,
            {"batch_size": 8, "steps": 1, "seed": -1},
            ValueError,
            "`seed` must .* >= 0; got -1",
        ),
        (DATA, {"batch_size": 8, "steps": 1, "seed": None}, TypeError, "`seed` must .* got None"),
        (
            DATA,
            {"batch_size": 8, "steps": 1, "evaluate": 3},
            TypeError,
            "`evaluate` must be a function or None; got 3",
        ),
        (
            DATA,
            {"batch_size": 8, "steps": 1, "on_chunk": 3},
            TypeError,
            "`on_chunk` must be a function or None; got 3",
        ),
    ],
)
def test_bad_data_and_options_are_named(data, options, error, message):
    with pytest.raises(error, match=message):
        fit(STEP, start(), data, **options)


def test_a_masked_array_is_refused_for_its_mask_would_be_lost():
    masked = np.ma.masked_invalid(np.where(X > 1, np.nan, X))
    for batches in (DATA | {"x": masked}, iter([DATA | {"x": masked}])):
        with pytest.raises(TypeError, match=r"got masked float32\[20,2\] at 'x'\. .* fill or drop"):
            fit(
                STEP,
                start(),
                batches,
                steps=1,
                **({} if "__next__" in dir(batches) else {"batch_size": 8}),
            )


def test_a_warning_that_is_an_error_loses_nothing():
    """It is the last thing that happens, after all steps."""
    data = {"x": np.array([1.0, np.nan], np.float32)}
    step = make_train_step(lambda p, b: jnp.sum(p["w"] * b["x"]), OPTIMIZER)
    state = TrainState.create({"w": jnp.ones(())}, OPTIMIZER)
    with pytest.raises(UserWarning, match="skipped 3 of 6 steps") as caught:
        fit(step, state, data, epochs=3, batch_size=1)  # pytest makes errors of warnings
    assert int(caught.value.state.step) == len(caught.value.history.steps) == 6


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="`state` must be a TrainState; got dict"):
        fit(STEP, {"w": 1}, DATA, epochs=1, batch_size=8)


def test_a_state_that_a_step_used_up_is_refused():
    state = start()
    STEP(state, next(cut([np.arange(20)])))
    with pytest.raises(
        ValueError,
        match=r"`state` must still have its memory; .*donated.*state\.copy\(\), or .*donate=False",
    ):
        fit(STEP, state, DATA, epochs=1, batch_size=8)


def test_metrics_that_depend_on_the_batch_size_are_refused():
    step = make_train_step(lambda p, b: (jnp.sum(p["w"]), {"y": b["y"]}), OPTIMIZER)
    with pytest.raises(ValueError, match=r"`metrics` must keep their shapes.*\(8,\).*\(4,\)"):
        fit(step, start(), DATA, epochs=1, batch_size=8)


def test_metrics_that_change_shape_in_a_stream_lose_nothing():
    step = make_train_step(lambda p, b: (jnp.sum(p["w"]), {"y": b["y"]}), OPTIMIZER)
    message = r"`metrics` must keep their shapes.*\(8,\).* and then .*\(4,\)"
    with pytest.raises(ValueError, match=message) as caught:
        fit(step, start(), cut([np.arange(20)]))
    assert caught.value.history.metrics["y"].shape == (2, 8)
    assert int(caught.value.state.step) == 3


def test_a_bad_batch_names_its_entry_and_keeps_the_state():
    step = make_train_step(loss_fn, OPTIMIZER, batch_spec={"x": ("B", 3), "y": ("B",)})
    with pytest.raises(ValueError, match=r"`batch_spec`; .* not declared: \['index'\]") as caught:
        fit(step, start(), DATA, epochs=1, batch_size=8)
    same(caught.value.state, start())


def test_a_stream_that_ends_early_is_a_warning():
    with pytest.warns(UserWarning, match="ended at step 3, before step 10"):
        state, _ = fit(STEP, start(), cut([np.arange(20)]), steps=10)
    assert int(state.step) == 3


@pytest.mark.parametrize(
    ("results", "error", "message"),
    [
        ([None], TypeError, "`evaluate` must return a dict of scalars; got NoneType"),
        (
            [{"a": 1}, {"b": 1}],
            ValueError,
            r"same names and shapes .*; got {'b': \(\)}, and {'a': \(\)}",
        ),
    ],
)
def test_bad_evaluations_are_named(results, error, message):
    results = iter(results)
    with pytest.raises(error, match=message):
        fit(
            STEP,
            start(),
            DATA,
            steps=4,
            batch_size=8,
            evaluate=lambda state: next(results),
            eval_every=2,
        )


def test_debug_nans_says_where_the_nan_came_from():
    loss = lambda params, batch: jnp.mean(jnp.log(params["w"]) * batch["x"])
    optimizer = optax.sgd(0.1)
    step = make_train_step(loss, optimizer)
    state = TrainState.create({"w": jnp.array(-1.0)}, optimizer)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        fit(step, state, {"x": np.ones(4, np.float32)}, epochs=1, batch_size=2)


@pytest.mark.parametrize("column", [np.array(["a", "b"]), np.array([object(), 1]),
                                    np.array(["2024-01-01"] * 2, "datetime64[D]")])  # fmt: skip
def test_columns_that_are_no_numbers_are_named(column):
    data = {"x": np.ones(2, np.float32), "when": column}
    with pytest.raises(
        TypeError, match=r"must hold plain arrays of numbers; got .* at 'when'. Turn"
    ):
        fit(STEP, start(), data, epochs=1, batch_size=2)


def test_what_evaluate_returns_is_copied_and_checked_while_the_run_can_be_kept():
    optimizer = optax.sgd(0.1)
    step = make_train_step(lambda p, b: jnp.mean((p["w"] * b["x"] - 1.0) ** 2), optimizer)
    buffer = np.zeros(3)

    def run(evaluate):
        state = TrainState.create({"w": jnp.zeros(())}, optimizer)
        data = {"x": np.ones(12, np.float32)}
        options = {"epochs": 2, "batch_size": 4, "eval_every": 2}
        return fit(step, state, data, evaluate=evaluate, **options)[1]

    def fill(state):
        buffer[:] = int(state.step)
        return {"a": buffer}

    assert run(fill).evals["a"][:, 0].tolist() == [2, 4, 6]
    message = (
        r"same names and shapes every time; got {'a': \(4,\)}, and {'a': \(2,\)} the first time"
    )
    with pytest.raises(ValueError, match=message) as caught:
        run(lambda state: {"a": np.zeros(int(state.step))})
    assert int(caught.value.state.step) == 4
    assert len(caught.value.history.steps) == 4
    with pytest.raises(
        TypeError, match=r"`evaluate` must hold plain arrays of numbers; got <U1\[\] at 'a'"
    ):
        run(lambda state: {"a": "x"})
