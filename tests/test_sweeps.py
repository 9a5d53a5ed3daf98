"""Sweeps against runs one by one, exact ridge and NumPy; chunks, devices, interruption."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_devices

import wdjax
from wdjax import schedules, sweeps
from wdjax.folds import Folds
from wdjax.sweeps import _chunks, _functions, _program, _store

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(30, 6))
Y = X @ GENERATOR.normal(size=6) + 2.0 + GENERATOR.normal(size=30)
DATA = {"x": X.astype(np.float32), "y": Y.astype(np.float32)}
RULES = (("kernel", 1.0), ("bias", 0.0))


def init(key):
    del key
    return {"kernel": jnp.zeros(6), "bias": jnp.zeros(())}


def init_random(key):
    return {"kernel": jax.random.normal(key, 6), "bias": jnp.zeros(())}


def half_square(params, data, weights):
    residual = jnp.dot(data["x"], params["kernel"]) + params["bias"] - data["y"]
    return 0.5 * jnp.sum(weights * residual**2) / jnp.sum(weights)


def l2_sgd(h):
    return optax.chain(
        wdjax.add_decayed_weights(h["weight_decay"], rules=RULES),
        optax.sgd(h.get("learning_rate", 0.1)),
    )


def run(build=l2_sgd, hparams=None, data=DATA, **options):
    hparams = sweeps.grid(weight_decay=[0.01, 0.1, 1.0]) if hparams is None else hparams
    defaults = {
        "init": init,
        "loss": half_square,
        "folds": sweeps.kfold(30, 4),
        "epochs": 3,
        "batch_size": 8,
    }
    return sweeps.sweep(build, hparams, data, **(defaults | options))


# Against the truth.


def ridge(x, y, weight_decay):
    """The minimum of 1/(2n) ‖X w + b − y‖² + λ/2 ‖w‖², b free, in float64."""
    center, level = x.mean(axis=0), y.mean()
    x, y = x - center, y - level
    w = np.linalg.solve(x.T @ x / len(x) + weight_decay * np.eye(x.shape[1]), x.T @ y / len(x))
    return w, level - center @ w


def ridge_scores(weight_decays, folds, x=X, y=Y):
    """(C, K) validation scores of exact ridge."""
    scores = np.empty((len(weight_decays), len(folds.train)))
    for k, (train, used, val, kept) in enumerate(zip(*folds, strict=True)):
        train, val = train[used > 0], val[kept > 0]
        for c, weight_decay in enumerate(weight_decays):
            w, b = ridge(x[train], y[train], weight_decay)
            scores[c, k] = 0.5 * np.mean((x[val] @ w + b - y[val]) ** 2)
    return scores


def test_gradient_descent_reaches_exact_ridge_on_every_fold_and_chooses_the_same_strength():
    weight_decays, folds = sweeps.log_grid(1e-3, 10.0, 9), sweeps.kfold(30, 4)
    # batches of the whole part, a rate below 2 / largest curvature for every λ
    found = run(
        hparams=sweeps.grid(weight_decay=weight_decays, learning_rate=[0.12]),
        folds=folds,
        epochs=600,
        batch_size=None,
    )
    exact = ridge_scores(weight_decays, folds)
    np.testing.assert_allclose(found.val[:, :, 0, 0], exact, rtol=2e-4)
    best = exact.mean(axis=1).argmin()
    assert 0 < best < 8
    assert sweeps.select(found).index == best


def test_mini_batches_with_a_decaying_rate_choose_the_strength_that_ridge_chooses():
    # nearly as many features as examples, little signal: here L2 helps
    generator = np.random.default_rng(1)
    x = generator.normal(size=(40, 25))
    y = x[:, 0] + generator.normal(size=40)
    weight_decays, folds = 10.0 ** np.arange(-3, 2), sweeps.kfold(40, 5)

    def build(h):
        return optax.chain(
            wdjax.add_decayed_weights(h["weight_decay"], rules=RULES),
            optax.sgd(wdjax.inverse_sqrt(0.05, gamma=0.05)),
        )

    found = run(
        build,
        sweeps.grid(weight_decay=weight_decays),
        {"x": x.astype(np.float32), "y": y.astype(np.float32)},
        init=lambda key: {"kernel": jnp.zeros(25), "bias": jnp.zeros(())},
        folds=folds,
        epochs=400,
    )
    exact = ridge_scores(weight_decays, folds, x, y).mean(axis=1)
    assert 0 < exact.argmin() < 4
    assert sweeps.select(found).index == exact.argmin()


def sgd_in_numpy(train, val, weight_decay, epochs, size):
    """The same run in float64, rows in order, the last batch of an epoch as short as it is."""
    w, b = np.zeros(6), 0.0
    for _ in range(epochs):
        for first in range(0, len(train), size):
            rows = train[first : first + size]
            residual = X[rows] @ w + b - Y[rows]
            w = w - 0.1 * (X[rows].T @ residual / len(rows) + weight_decay * w)
            b = b - 0.1 * residual.mean()
    return [0.5 * np.mean((X[rows] @ w + b - Y[rows]) ** 2) for rows in (val, train)]


@pytest.mark.parametrize("folds", [sweeps.kfold(30, 4), sweeps.time_folds(30, 3)], ids=["k", "t"])
def test_short_batches_and_short_folds_count_what_is_there(folds):
    found = run(folds=folds, shuffle=False)
    for c, weight_decay in enumerate((0.01, 0.1, 1.0)):
        for k, (train, used, val, kept) in enumerate(zip(*folds, strict=True)):
            expected = sgd_in_numpy(train[used > 0], val[kept > 0], weight_decay, 3, 8)
            np.testing.assert_allclose(found.val[c, k, 0, 0], expected[0], rtol=1e-5)
            np.testing.assert_allclose(found.train[c, k, 0, 0], expected[1], rtol=1e-5)


def test_every_epoch_sees_every_training_example_once_in_a_new_order():
    folds = sweeps.kfold(30, 4)
    shared = _program.share(
        DATA, folds, epochs=np.array([5]), batch_size=8, seeds=[0, 1], shuffle=True, mesh=None
    )
    orders = np.asarray(shared.rows).transpose(1, 2, 0, 3).reshape(4, 2, 5, -1)
    for k in range(4):
        own = folds.train[k][folds.train_weights[k] > 0]
        for epochs in orders[k]:
            for order in epochs:
                assert sorted(order[order >= 0]) == own.tolist()
            assert len({tuple(order) for order in epochs}) == 5
    assert (orders[:, 0] != orders[:, 1]).any()


def test_each_fold_shuffles_its_own_way():
    """Folds with the same rows in training meet them in other orders."""
    one = sweeps.holdout(30, 0.2)
    twice = Folds(*(np.concatenate([part, part]) for part in one))
    shared = _program.share(
        DATA, twice, epochs=np.array([1]), batch_size=8, seeds=[0], shuffle=True, mesh=None
    )
    first, second = np.asarray(shared.rows).transpose(1, 0, 2, 3).reshape(2, -1)
    assert sorted(first) == sorted(second)
    assert (first != second).any()


def test_orders_repeat_when_the_table_would_grow_too_large(monkeypatch):
    monkeypatch.setattr(_program, "_ENTRIES", 4 * 24 * 2)
    shared = _program.share(
        DATA,
        sweeps.kfold(30, 4),
        epochs=np.array([5]),
        batch_size=8,
        seeds=[0],
        shuffle=True,
        mesh=None,
    )
    assert shared.rows.shape == (2 * 3, 4, 1, 8)
    assert run(epochs=5, folds=sweeps.kfold(30, 4)).finite.all()


# One by one, in chunks, again.


def test_a_configuration_alone_equals_its_row_and_chunks_equal_the_whole():
    hparams = sweeps.grid(weight_decay=[0.0, 0.01, 0.1, 0.5, 1.0], learning_rate=[0.05, 0.1])
    options = {"seeds": 2, "init": init_random, "keep_params": True, "evals": 3}
    whole = run(hparams=hparams, **options)
    assert whole.val.shape == whole.train.shape == (10, 4, 2, 3)
    assert whole.params["kernel"].shape == (10, 4, 2, 6)
    np.testing.assert_array_equal(whole.epochs, [1, 2, 3])
    assert len(np.unique(whole.val[..., -1])) == 80  # every run is one of its own
    cut = run(hparams=hparams, chunk=4, **options)  # 4 + 3 + 3
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    jax.tree.map(same, whole, cut)
    alone = run(hparams=jax.tree.map(lambda x: x[7:8], hparams), **options)
    np.testing.assert_allclose(alone.val[0], whole.val[7], rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b[7], rtol=1e-4, atol=1e-6),
        alone.params,
        whole.params,
    )


def test_seeds_can_be_named_and_change_weights_and_batches():
    both = run(seeds=[3, 5], init=init_random)
    one = run(seeds=[5], init=init_random)
    np.testing.assert_allclose(one.val[:, :, 0], both.val[:, :, 1], rtol=2e-5)
    assert (both.val[:, :, 0] != both.val[:, :, 1]).all()


def test_scores_on_the_way_are_those_of_shorter_runs():
    long = run(epochs=5, evals=2)
    np.testing.assert_array_equal(long.epochs, [2, 5])
    short = run(epochs=2)
    # the order of an epoch does not depend on how many follow
    np.testing.assert_allclose(long.val[..., 0], short.val[..., 0], rtol=2e-5)


def test_the_same_functions_and_shapes_compile_once():
    hparams = sweeps.grid(weight_decay=[0.2, 0.3])
    run(hparams=hparams)
    count = _program.train._cache_size()
    run(hparams=sweeps.grid(weight_decay=[0.4, 0.5]), epochs=3)
    assert _program.train._cache_size() == count


# Whatever is swept.

TAGS = {"kernel": 1.0, "bias": 0.0}
BUILDS = {
    "per group, through rules": (
        lambda h: optax.chain(
            optax.sgd(0.1),
            wdjax.decay_weights(0.1, rules=(("kernel", h["kernel"]), ("bias", h["bias"]))),
        ),
        {"kernel": np.array([0.5, 2.0]), "bias": np.array([0.0, 1.0])},
    ),
    "learning rate and law": (
        lambda h: wdjax.decayed(optax.adam)(
            h["learning_rate"], weight_decay=h["weight_decay"], rules=RULES
        ),
        sweeps.grid(weight_decay=[0.1, 1.0], learning_rate=[0.01, 0.1]),
    ),
    "gamma": (
        lambda h: optax.sgd(wdjax.inverse_sqrt(h["learning_rate"], h["gamma"]), momentum=0.9),
        sweeps.grid(learning_rate=[0.05], gamma=[0.0, 1.0]),
    ),
    "peak and length of a warm-up": (
        lambda h: optax.sgd(schedules.warmed_up(lambda count: h["peak"], h["steps"])),
        {"peak": np.array([0.1, 0.2]), "steps": np.array([2, 5])},
    ),
    "proximal l1 with a law": (
        lambda h: optax.chain(
            optax.sgd(0.1),
            wdjax.prox_weights(
                wdjax.lr_scaled(h["weight_decay"], 0.1), wdjax.penalties.l1, rules=RULES
            ),
        ),
        sweeps.grid(weight_decay=[0.1, 1.0]),
    ),
    "gate": (
        lambda h: optax.chain(
            optax.sgd(0.1),
            wdjax.decay_weights(h["weight_decay"], gate=wdjax.gates.cautious, rules=RULES),
        ),
        sweeps.grid(weight_decay=[0.1, 0.5]),
    ),
    "optax alone": (
        lambda h: optax.adamw(h["learning_rate"], b1=h["b1"], weight_decay=h["weight_decay"]),
        sweeps.grid(learning_rate=[0.1], b1=[0.5, 0.9], weight_decay=[0.1]),
    ),
}


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.first_is_quick
def test_a_traced_hyperparameter_trains_as_a_python_number_does(name):
    build, hparams = BUILDS[name]
    folds = Folds.from_sklearn([(range(20), range(20, 30))], X)
    found = run(
        build, hparams, init=init_random, folds=folds, batch_size=None, keep_params=True, epochs=6
    )
    batch = {key: value[:20] for key, value in DATA.items()}

    def alone(params, h):
        optimizer = optax.with_extra_args_support(build(h))

        def step(carry, _):
            params, state = carry
            grads = jax.grad(half_square)(params, batch, np.ones(20, np.float32))
            updates, state = optimizer.update(grads, state, params, grad=grads)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=6)[0][0]

    rows = [{k: v[c].item() for k, v in hparams.items()} for c in range(len(found.val))]
    ends = jax.jit(lambda params: [alone(params, h) for h in rows])(init_random(jax.random.key(0)))
    for c, params in enumerate(ends):
        kernel, bias = (np.asarray(found.params[name])[c, 0, 0] for name in ("kernel", "bias"))
        np.testing.assert_allclose(kernel, params["kernel"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bias, params["bias"], rtol=1e-4)


def test_transformations_get_the_loss():
    def build(h):
        def update(updates, state, params, *, value):
            del params
            return jax.tree.map(lambda g: -h["rate"] * value * g, updates), state

        start = lambda params: optax.EmptyState()
        return optax.GradientTransformationExtraArgs(start, update)

    def step(params, batch, h):
        given = batch.data, batch.weights
        value, grads = jax.value_and_grad(half_square)(params, *given)
        return jax.tree.map(lambda p, g: p - h["rate"] * value * g, params, grads)

    hparams = {"rate": np.array([0.01, 0.02])}
    built = run(build, hparams)
    stepped = run(step, hparams, loss=None, metric=half_square)
    np.testing.assert_allclose(built.val, stepped.val, rtol=1e-5)


def test_initial_weights_can_depend_on_the_hyperparameters():
    found = run(
        lambda h: optax.sgd(0.0),
        {"scale": np.array([1.0, 2.0])},
        init=lambda key, h: {"kernel": h["scale"] * jnp.ones(6), "bias": jnp.zeros(())},
        keep_params=True,
    )
    np.testing.assert_array_equal(found.params["kernel"][:, 0, 0, 0], [1.0, 2.0])


def test_an_argument_of_init_with_a_default_is_its_own():
    found = run(init=lambda key, size=6: {"kernel": jnp.zeros(size), "bias": jnp.zeros(())})
    np.testing.assert_array_equal(found.val, run().val)


def test_a_bfloat16_state_keeps_its_dtype():
    found = run(
        lambda h: optax.sgd(h["learning_rate"], momentum=h["momentum"]),
        sweeps.grid(learning_rate=[0.1], momentum=[0.5, 0.9]),
        init=lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), init(key)),
        keep_params=True,
    )
    assert found.params["kernel"].dtype == jnp.bfloat16
    assert found.finite.all()


def test_numbers_are_in_float64_where_jax_computes_in_float64(x64):
    weight_decays, folds = sweeps.log_grid(1e-3, 1.0, 4), sweeps.kfold(30, 4)
    found = run(
        hparams=sweeps.grid(weight_decay=weight_decays),
        data={"x": X, "y": Y},
        folds=folds,
        epochs=1500,
        batch_size=None,
    )
    exact = ridge_scores(weight_decays, folds)
    np.testing.assert_allclose(found.val[:, :, 0, 0], exact, rtol=1e-9)


# Models of every library.


def linen_model():
    nn = pytest.importorskip("flax.linen")
    model = nn.Dense(1)

    def start(key):
        return model.init(key, jnp.zeros((1, 6)))["params"]

    return start, lambda params, x: model.apply({"params": params}, x)[:, 0]


def haiku_model():
    hk = pytest.importorskip("haiku")
    model = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x)[:, 0]))
    return lambda key: model.init(key, jnp.zeros((1, 6))), model.apply


def equinox_model():
    eqx = pytest.importorskip("equinox")

    def make(key):
        return eqx.partition(eqx.nn.Linear(6, 1, key=key), eqx.is_array)

    static = make(jax.random.key(0))[1]

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)[:, 0]

    return lambda key: make(key)[0], apply


def nnx_model():
    nnx = pytest.importorskip("flax.nnx")

    def make(key):
        return nnx.split(nnx.Linear(6, 1, rngs=nnx.Rngs(key)))

    graph = make(jax.random.key(0))[0]
    return lambda key: make(key)[1], lambda state, x: nnx.merge(graph, state)(x)[:, 0]


MODELS = {
    "linen": linen_model,
    "haiku": haiku_model,
    "equinox": equinox_model,
    "nnx": nnx_model,
}


@pytest.mark.slow
@pytest.mark.parametrize("library", MODELS)
def test_models_of_every_library_sweep_through_an_optimizer_and_through_a_step(library):
    with jax.numpy_rank_promotion("allow"):  # not the models' business
        start, apply = MODELS[library]()

        def loss(params, data, weights):
            residual = apply(params, data["x"]) - data["y"]
            return 0.5 * jnp.sum(weights * residual**2) / jnp.sum(weights)

        def step(params, batch, h):
            grads = jax.grad(loss)(params, batch.data, batch.weights)
            return jax.tree.map(lambda p, g: p - h["learning_rate"] * g, params, grads)

        hparams = sweeps.grid(learning_rate=[0.01, 0.1])
        built = run(lambda h: optax.sgd(h["learning_rate"]), hparams, init=start, loss=loss)
        stepped = run(step, hparams, init=start, loss=None, metric=loss)
    assert (built.val[1] < built.val[0]).all()  # 9 small steps: the larger rate is ahead
    np.testing.assert_allclose(built.val, stepped.val, rtol=1e-5)


# Memory and devices.


def lowered(count, folds=None):
    folds = sweeps.kfold(30, 4) if folds is None else folds
    job = _functions.optimized(
        l2_sgd, init, half_square, half_square, keep=False, gaps=_functions.Gaps.SHORT
    )
    shared = _program.share(
        DATA, folds, epochs=np.array([9]), batch_size=8, seeds=[0], shuffle=True, mesh=None
    )
    hparams = {"weight_decay": jnp.ones(count), "learning_rate": jnp.ones(count)}
    return _program.train.lower(job, None, hparams, shared)


def test_temporaries_grow_no_faster_than_the_configurations():
    one, many = (lowered(c).compile().memory_analysis().temp_size_in_bytes for c in (1, 64))
    assert many <= 1.1 * 64 * one


def test_the_program_neither_shuffles_nor_copies_the_data_for_every_configuration():
    text = lowered(64).compile().as_text()
    assert " sort(" not in text
    assert "f32[4,1,64,8,6]" not in text  # a batch for every configuration


def test_a_small_budget_makes_chunks_and_loses_no_configuration(monkeypatch):
    sizes = []
    train = _program.train

    def spy(job, mesh, hparams, shared):
        sizes.append(len(hparams["weight_decay"]))
        return train(job, mesh, hparams, shared)

    spy.lower = train.lower
    hparams = sweeps.grid(weight_decay=np.linspace(0, 1, 10))
    whole = run(hparams=hparams)
    monkeypatch.setattr(_program, "train", spy)
    monkeypatch.setattr(_chunks, "_HOST_BUDGET", 3000)
    cut = run(hparams=hparams)
    assert len(sizes) > 1
    assert len(set(sizes)) == 1
    np.testing.assert_allclose(cut.val, whole.val, rtol=2e-5)


TWO_DEVICES = """
import jax, numpy as np
assert len(jax.local_devices()) == 2
import test_sweeps as t
from wdjax import sweeps
from wdjax.sweeps import _chunks, _functions, _program
hparams = sweeps.grid(weight_decay=np.linspace(0.0, 1.0, 7))  # odd: one repetition fills up
for limit in (None, 2):
    two = t.run(hparams=hparams, seeds=2, init=t.init_random, keep_params=True, chunk=limit)
    one = t.run(
        hparams=hparams, seeds=2, init=t.init_random, keep_params=True,
        devices=jax.local_devices()[:1],
    )
    np.testing.assert_allclose(two.val, one.val, rtol=1e-5)
    np.testing.assert_allclose(two.params["kernel"], one.params["kernel"], rtol=1e-4, atol=1e-6)
mesh = _chunks.mesh_over(None, 8)
assert mesh.size == 2
loss, gaps = t.half_square, _functions.Gaps.SHORT
job = _functions.optimized(t.l2_sgd, t.init, loss, loss, keep=True, gaps=gaps)
shared = _program.share(
    t.DATA, sweeps.kfold(30, 4), epochs=np.array([2, 4]), batch_size=8, seeds=[0], shuffle=True,
    mesh=mesh,
)
text = _program.train.lower(
    job, mesh, {"weight_decay": np.ones(8, np.float32)}, shared
).compile().as_text()
found = [w for w in ("all-reduce", "all-gather", "all-to-all", "permute", "reduce-scatter")
         if w in text]
assert not found, found
assert "f32[4,1,4,6]" in text  # four of the eight configurations on each device
print("equal")
"""


@pytest.mark.slow
def test_two_devices_equal_one_without_a_collective():
    assert two_devices.printed(TWO_DEVICES) == "equal\n"


# Interruption.

KILLED = """
import os, signal, sys
import test_sweeps as t
from wdjax.sweeps import _store
save, saved = _store.Store.save, []
def kill(self, rows, arrays):
    save(self, rows, arrays)
    saved.append(rows)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
_store.Store.save = kill
t.long_sweep(sys.argv[1])
"""


def long_sweep(folder):
    hparams = sweeps.grid(weight_decay=np.linspace(0.0, 1.0, 5))
    return run(hparams=hparams, folder=folder, chunk=1, keep_params=True, evals=3)


def test_a_killed_sweep_continues_from_its_finished_chunks(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "sweep"
    env = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(folder.glob("rows-*.npz"))) == 2
    (first, _) = sorted(folder.glob("rows-*.npz"))
    (folder / f".{first.name}.0123abcd.part").write_bytes(b"half of a file")
    (folder / ".sweep.json.0123abcd.part").write_bytes(b"")

    trained = []
    train = _program.train

    def spy(job, mesh, hparams, shared):
        trained.append(np.asarray(hparams["weight_decay"]).item())
        return train(job, mesh, hparams, shared)

    spy.lower = train.lower
    spy.trace = train.trace
    monkeypatch.setattr(_program, "train", spy)
    resumed = long_sweep(folder)
    assert trained == [0.5, 0.75, 1.0]
    monkeypatch.setattr(_program, "train", train)
    whole = long_sweep(None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), resumed, whole)
    monkeypatch.setattr(_program, "train", spy)
    again = long_sweep(folder)  # nothing is left to do
    assert len(trained) == 3
    jax.tree.map(np.testing.assert_array_equal, again, resumed)
    assert {path.name for path in folder.iterdir()} == {
        "sweep.json",
        *(path.name for path in folder.glob("rows-*.npz")),
    }


SAVING = """
import sys
import test_sweeps as t
from wdjax.sweeps import _store
write = _store._write
def told(*args, **kwargs):
    print("writes", flush=True)
    write(*args, **kwargs)
_store._write = told
t.long_sweep(sys.argv[1])
"""


@pytest.mark.slow  # a dozen processes
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_survives_whatever_ends_it_at_any_moment(sign, tmp_path):
    """Two processes on one folder, of which one is ended while it writes."""
    rng = np.random.default_rng(0)
    env = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", SAVING, str(tmp_path)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": env}
    for writes in (1, 2, 1):
        with (
            subprocess.Popen(command, **quiet) as first,
            subprocess.Popen(command, **quiet) as other,
        ):
            for _ in range(writes):
                first.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            first.send_signal(sign)
            other.communicate()
        assert other.returncode == 0
        for piece in list(tmp_path.glob("rows-*.npz"))[1:]:  # so that there is something to do
            piece.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed, whole = long_sweep(tmp_path), long_sweep(None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), resumed, whole)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npz"}


@pytest.mark.parametrize("damage", [b"", b"half of a file", None], ids=["empty", "other", "short"])
def test_a_damaged_piece_is_named_and_trained_again(damage, tmp_path):
    whole = long_sweep(tmp_path)
    first = min(tmp_path.glob("rows-*.npz"))
    first.write_bytes(first.read_bytes()[:-30] if damage is None else damage)
    with pytest.warns(UserWarning, match=r"damaged file, '.*0-000000.npz': .* trained again"):
        again = long_sweep(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert first.with_suffix(".damaged").exists()
    long_sweep(tmp_path)  # and says no more


def test_a_file_that_another_process_tidied_away_is_written_again(tmp_path):
    calls = []

    def fill(file):
        calls.append(file.write(b"whole"))
        if len(calls) == 1:
            (temporary,) = tmp_path.glob(".*.part")
            temporary.unlink()

    _store._write(tmp_path / "rows.npz", fill)
    assert (tmp_path / "rows.npz").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npz"]


def test_a_record_is_never_replaced_and_never_half(tmp_path, monkeypatch):
    """With and without links, as on a network drive."""
    for link in (os.link, lambda *_: (_ for _ in ()).throw(PermissionError("no links here"))):
        monkeypatch.setattr(os, "link", link)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        for text in (b"first", b"second"):
            _store._write(path, lambda file, text=text: file.write(text), move=_store._claim)
        assert path.read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_same_bytes_in_another_shape_or_dtype_are_another_sweep():
    prints = [
        _store.fingerprints(data=np.zeros(shape, dtype))
        for shape, dtype in (((2, 3), "f4"), ((3, 2), "f4"), ((2, 3), "i4"))
    ]
    assert len({p["data"] for p in prints}) == 3


def test_rows_of_another_sweep_are_never_taken(tmp_path):
    other = {"x": DATA["x"], "y": 3 * DATA["y"]}
    run(folder=tmp_path, data=other)
    (tmp_path / "sweep.json").unlink()
    np.testing.assert_array_equal(run(folder=tmp_path).val, run().val)


def test_of_two_sweeps_that_begin_a_folder_at_once_one_is_refused(tmp_path, monkeypatch):
    """Neither sees the record of the other before it writes its own."""
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    run(folder=tmp_path)
    with pytest.raises(ValueError, match="other hparams"):
        run(folder=tmp_path, hparams=sweeps.grid(weight_decay=[0.5]))


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_damaged_record_is_named_and_costs_no_row(text, tmp_path):
    found = run(folder=tmp_path)
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep.json' is damaged. Remove this file"):
        run(folder=tmp_path)
    (tmp_path / "sweep.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows-*")}
    np.testing.assert_array_equal(run(folder=tmp_path).val, found.val)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows-*")}


def test_an_interrupt_while_writing_leaves_no_file_behind(tmp_path):
    def fill(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _store._write(tmp_path / "rows.npz", fill)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_sweep_is_refused_and_says_what_differs(tmp_path):
    run(folder=tmp_path)
    other = {"x": DATA["x"] + 1, "y": DATA["y"]}
    with pytest.raises(
        ValueError, match=r"`folder` must be empty or hold the same .* other data\."
    ):
        run(folder=tmp_path, data=other)
    with pytest.raises(ValueError, match="other hparams"):
        run(folder=tmp_path, hparams=sweeps.grid(weight_decay=[0.01, 0.1, 2.0]))
    with pytest.raises(ValueError, match="other functions"):
        run(folder=tmp_path, loss=lambda *given: 2.0 * half_square(*given))
    with pytest.raises(ValueError, match="other batches"):
        run(folder=tmp_path, seeds=[7])


def test_bfloat16_results_survive_the_folder(tmp_path):
    options = {
        "init": lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), init(key)),
        "folder": tmp_path,
        "keep_params": True,
    }
    first, second = run(**options), run(**options)
    assert second.params["kernel"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_progress_counts_configurations(capsys):
    pytest.importorskip("tqdm")
    run(chunk=1, progress=True)
    assert "3/3" in capsys.readouterr().err
    run(chunk=1)  # stderr is not a terminal
    assert capsys.readouterr().err == ""


def test_progress_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"`progress=True` needs tqdm"):
        run(progress=True)


# Refitting.


def test_refitting_on_all_examples_reaches_exact_ridge():
    found = run(hparams=sweeps.grid(weight_decay=[0.0, 0.3, 3.0]), epochs=400, batch_size=None)
    selection = sweeps.select(found, rule=lambda scores: 1)
    params = sweeps.refit(l2_sgd, selection, DATA, init=init, loss=half_square, batch_size=None)
    w, b = ridge(X, Y, 0.3)
    np.testing.assert_allclose(params["kernel"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["bias"], b, rtol=1e-4)


def test_refitting_with_a_step_of_ones_own_returns_its_carry():
    def step(carry, batch, h):
        return carry + h["rate"] * jnp.sum(batch.weights)

    found = run(
        step, {"rate": np.array([1.0, 2.0])}, init=lambda key: 0.0, loss=None,
        metric=lambda carry, data, weights: carry,
    )  # fmt: skip
    np.testing.assert_array_equal(found.val[:, :, 0, 0].T, [[66, 132]] * 2 + [[69, 138]] * 2)
    with pytest.warns(UserWarning, match="edge"):
        selection = sweeps.select(found)
    carry = sweeps.refit(step, selection, DATA, init=lambda key: 0.0, batch_size=7, epochs=2)
    assert float(carry) == 60.0


# Random keys in the carry.


def noisy_step(carry, batch, h):
    """Dropout of inputs by a key that the carry brings along."""
    params, key = carry
    key, now = jax.random.split(key)
    kept = batch.data["x"] * jax.random.bernoulli(now, 0.5, batch.data["x"].shape)
    grads = jax.grad(half_square)(params, batch.data | {"x": kept}, batch.weights)
    return jax.tree.map(lambda p, g: p - h["learning_rate"] * g, params, grads), key


NOISY = {
    "init": lambda key: (init(key), key),
    "metric": lambda carry, data, weights: half_square(carry[0], data, weights),
}


def test_random_keys_in_the_carry_are_kept_and_go_to_a_folder_and_back(tmp_path):
    rates = sweeps.grid(learning_rate=[0.01, 0.02, 0.05])
    options = {"loss": None, "keep_params": True, "seeds": 2, "folder": tmp_path, "chunk": 2}
    found, again = (run(noisy_step, rates, **NOISY, **options) for _ in range(2))
    params, keys = found.params
    assert params["kernel"].shape == (3, 4, 2, 6)
    assert keys.shape == (3, 4, 2)
    expected = jax.random.key(1)
    for _ in range(3 * 3):  # epochs of three batches
        expected = jax.random.split(expected)[0]
    assert bool((keys[:, :, 1] == expected).all())
    assert bool((again.params[1] == keys).all())


def test_a_random_key_in_the_carry_goes_on_in_a_refit():
    chosen = sweeps.Selection(0, {"learning_rate": 0.1}, 2, 0, *([None] * 3), (), 0)
    _, key = sweeps.refit(noisy_step, chosen, DATA, init=NOISY["init"], batch_size=None)
    assert bool(key == jax.random.split(jax.random.split(jax.random.key(0))[0])[0])


# Bad input.


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "opt_state"],
    meta_fields=["update"],
)
@dataclasses.dataclass
class Kept:
    """What Flax's TrainState is: a carry with the optimizer's function in it."""

    params: object
    opt_state: object
    update: object


def keeping(key, h):
    optimizer = l2_sgd(h)
    return Kept(init(key), optimizer.init(init(key)), optimizer.update)


def kept_step(carry, batch, h):
    grads = jax.grad(half_square)(carry.params, batch.data, batch.weights)
    updates, opt_state = carry.update(grads, carry.opt_state, carry.params)
    params = optax.apply_updates(carry.params, updates)
    return dataclasses.replace(carry, params=params, opt_state=opt_state)


def _with(value, row=(4, 2)):
    broken = DATA["x"].astype(np.float64)
    broken[row] = value
    return DATA | {"x": broken}


def _swap(**options):
    return lambda: run(**options)


def branching(h):
    return optax.sgd(0.1 if h["weight_decay"] > 0.05 else 0.2)


BAD = {
    "no axis": (lambda: sweeps.grid(), ValueError, r"`axes` must name a hyperparameter or more"),
    "empty axis": (
        lambda: sweeps.grid(weight_decay=[]),
        ValueError,
        r"`weight_decay` must be a list of one value or more; got shape \(0,\)",
    ),
    "a number for an axis": (
        lambda: sweeps.grid(weight_decay=0.1),
        ValueError,
        r"`weight_decay` must be a list of one value or more; got shape \(\)",
    ),
    "zero in a log grid": (
        lambda: sweeps.log_grid(0.0, 1.0, 3),
        ValueError,
        r"`low` must have 0 < low < high < ∞; got low=0.0",
    ),
    "words for a log grid": (
        lambda: sweeps.log_grid("a", "b", 3),
        ValueError,
        r"`low` must have 0 < low .* got low='a'",
    ),
    "one point": (lambda: sweeps.log_grid(0.1, 1.0, 1), ValueError, r"`n` must be .* >= 2"),
    "a random range below zero": (
        lambda: sweeps.random(3, weight_decay=(-1.0, 1.0)),
        ValueError,
        r"`weight_decay` must have 0 < low .* got low=-1.0",
    ),
    "no space": (lambda: sweeps.random(3), ValueError, r"`spaces` must name a hyperparameter"),
    "no kind of space": (
        lambda: sweeps.random(3, weight_decay=0.1),
        TypeError,
        r"`weight_decay` must be a tuple \(low, high\), .* got 0.1",
    ),
    "empty grid": (_swap(hparams={}), ValueError, r"`hparams` must hold .* got no array"),
    "no row": (
        _swap(hparams={"weight_decay": np.zeros(0)}),
        ValueError,
        r"`hparams` must hold .* at least one; got \(0,\) at 'weight_decay'",
    ),
    "a scalar": (
        _swap(hparams={"weight_decay": np.array(0.1)}),
        ValueError,
        r"`hparams` must hold .*; got \(\) at 'weight_decay'",
    ),
    "a list": (
        _swap(hparams={"weight_decay": [0.1]}),
        TypeError,
        r"`hparams` must hold plain arrays of numbers; got float at 'weight_decay/0'",
    ),
    "text": (
        _swap(hparams={"weight_decay": np.array(["a"])}),
        TypeError,
        r"`hparams` must hold plain arrays of numbers; got <U1\[1\] at 'weight_decay'",
    ),
    "two lengths": (
        _swap(hparams={"weight_decay": np.zeros(2), "learning_rate": np.zeros(3)}),
        ValueError,
        r"the same number of rows, .* got \(3,\) at 'learning_rate', \(2,\) .* grid makes all comb",
    ),
    "negative λ": (
        _swap(hparams={"weight_decay": np.array([0.1, -0.5])}),
        ValueError,
        r"`hparams` must be finite and >= 0 in float32, .*; got -0.5 in row 1 of 'weight_decay'",
    ),
    "infinite": (
        _swap(hparams={"x": np.array([0.1, np.inf])}),
        ValueError,
        r"`hparams` must be finite in float32, .*; got inf in row 1 of 'x'",
    ),
    "negative λ by another name": (
        _swap(
            build=lambda h: wdjax.add_decayed_weights(h["lam"]),
            hparams={"lam": np.array([0.1, -0.5])},
        ),
        ValueError,
        r"`strength` must be .* got -0.5",
    ),
    "negative λ in a vector": (
        _swap(
            build=lambda h: wdjax.add_decayed_weights(h["lam"][1]),
            hparams={"lam": np.array([[0.1, 0.3], [0.2, -0.5], [0.0, 0.2]])},
        ),
        ValueError,
        r"`strength` must be .* got -0.5",
    ),
    "nothing built": (
        _swap(build=lambda h: None),
        TypeError,
        r"`build` must return an Optax optimizer; got NoneType. A step of your own",
    ),
    "no function": (_swap(build=optax.sgd(0.1)), TypeError, r"`build` "),
    "two arguments": (
        _swap(build=lambda carry, h: None),
        TypeError,
        r"`build` must be build\(h\) -> .* or step\(carry, batch, h\) .* needs 2 arguments",
    ),
    "a branch on λ": (
        _swap(build=branching),
        TypeError,
        r"`build` must not branch on a hyperparameter",
    ),
    "a carry that keeps its optimizer": (
        lambda: run(
            kept_step, init=keeping, metric=lambda c, d, w: half_square(c.params, d, w)
        ),
        TypeError,
        r"a traced hyperparameter must not be kept .*TrainState.create\(tx=build\(h\)\)",
    ),
    "params for init": (
        _swap(init={"kernel": np.zeros(6)}),
        TypeError,
        r"`init` must be a function; got \{",
    ),
    "init without a key": (
        _swap(init=lambda: 0.0),
        TypeError,
        r"`init` must be init\(key\) or init\(key, h\)",
    ),
    "no loss": (_swap(loss=None), TypeError, r"`loss` must be a function; got None. Write loss\("),
    "a step without metric": (
        _swap(build=lambda carry, batch, h: carry),
        TypeError,
        r"`metric` must be a function; got None. Write metric\(carry, data, weights\)",
    ),
    "a loss for each example": (
        _swap(loss=lambda params, data, weights: weights * data["y"]),
        TypeError,
        r"`loss` must return one number; got float32\[8\]",
    ),
    "a metric that is a dict": (
        _swap(metric=lambda params, data, weights: {}),
        TypeError,
        r"`metric` must return one number; got dict",
    ),
    "lengths of the data": (
        _swap(data={"x": DATA["x"], "y": DATA["y"][:-1]}),
        ValueError,
        r"`data` must hold .* number of rows, .*; got \(30, 6\) at 'x', \(29,\) at 'y'",
    ),
    "no array in the data": (
        _swap(data={"x": DATA["x"], "y": 3.0}),
        TypeError,
        r"`data` must hold plain arrays of numbers; got float at 'y'",
    ),
    "masked values": (
        _swap(data=DATA | {"x": np.ma.masked_less(DATA["x"], 0.0)}),
        TypeError,
        r"`data` must hold .*; got masked float32\[30,6\] at 'x'\. .* fill or drop what is masked",
    ),
    "missing values": (
        _swap(data=_with(np.nan)),
        ValueError,
        r"`data` must be finite; got nan in 'x' at \[4, 2\], 1 in all",
    ),
    "too large for float32": (
        _swap(data=_with(1e300)),
        ValueError,
        r"`data` must be finite; got inf in 'x' at \[4, 2\]",
    ),
    "whole numbers too large for int32": (
        _swap(data=DATA | {"id": np.arange(30) + 2**40}),
        ValueError,
        r"`data` must fit int32, .* got 1099511627776 in 'id'",
    ),
    "hyperparameters too large for float32": (
        _swap(hparams={"weight_decay": np.array([0.1, 1e39])}),
        ValueError,
        r"finite and >= 0 in float32, .*; got 1e\+39 in row 1 of 'weight_decay'",
    ),
    "hyperparameters that would be 0": (
        _swap(hparams={"weight_decay": np.array([1e-50, 0.1])}),
        ValueError,
        r"in float32, .* rounds it to 0; got 1e-50 in row 0 of 'weight_decay'",
    ),
    "seeds that are the same to JAX": (
        _swap(seeds=[0, 2**32]),
        ValueError,
        r"`seeds` must be .* different whole numbers in \[0, 2\*\*32\)",
    ),
    "a seed twice": (_swap(seeds=[1, 1]), ValueError, r"`seeds` must .* different .*\[1, 1\]"),
    "folds of other data": (
        _swap(folds=sweeps.kfold(40, 4)),
        ValueError,
        r"`folds` must train on some of the 30 examples .*; got row \d+ in fold 0",
    ),
    "folds of a part of the data": (
        _swap(folds=sweeps.kfold(20, 4)),
        ValueError,
        r"`folds` must cover all 30 examples; got folds of the first 20\. .* Or leave out of",
    ),
    "weights of examples": (
        _swap(folds=sweeps.kfold(30, 4)._replace(train_weights=np.full((4, 23), 0.5, np.float32))),
        ValueError,
        r"`folds` must have training weights 0 or 1, .* got 0.5",
    ),
    "a number as a folder": (
        _swap(folder=3), TypeError, r"`folder` must be a path or None; got 3",
    ),
    "no name for a folder": (
        _swap(folder=""), TypeError, r"`folder` must be a path or None; got ''",
    ),
    "a number of folds": (_swap(folds=5), TypeError, r"`folds` must be Folds, .* got 5"),
    "epochs": (_swap(epochs=0), ValueError, r"`epochs` must be a whole number >= 1; got 0"),
    "batch size": (_swap(batch_size=0), ValueError, r"`batch_size` must be .* \[1, 23\]; got 0"),
    "large batches": (
        _swap(batch_size=24),
        ValueError,
        r"`batch_size` must be .* \[1, 23\]; got 24. The largest training part has 23",
    ),
    "evals": (_swap(evals=4), ValueError, r"`evals` must be .* in \[1, 3\]; got 4"),
    "seeds": (_swap(seeds=[]), ValueError, r"`seeds` must be a number >= 1, or"),
    "negative seed": (_swap(seeds=[-1]), ValueError, r"`seeds` must be a number >= 1, or"),
    "half a seed": (_swap(seeds=[0.5, 1.7]), ValueError, r"`seeds` must be .* got \[0.5, 1.7\]"),
    "a seed of random draws": (
        lambda: sweeps.random(3, -1, weight_decay=[0.1]),
        ValueError,
        r"`seed` must be a whole number >= 0; got -1",
    ),
    "a seed to refit": (
        lambda: sweeps.refit(
            l2_sgd, sweeps.Selection(0, {"weight_decay": 0.1}, 2, 0, *([None] * 3), (), 0), DATA,
            init=init, loss=half_square, batch_size=8, seed=-1,
        ),
        ValueError,
        r"`seed` must be a whole number >= 0; got -1",
    ),
    "chunk": (_swap(chunk=0), ValueError, r"`chunk` must be a whole number >= 1, or None; got 0"),
    "devices": (_swap(devices=[]), ValueError, r"`devices` must belong to this process.* got none"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_the_name_of_the_argument(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


def test_a_branch_on_a_hyperparameter_is_explained_wherever_a_program_is_traced(tmp_path):
    hparams, options = sweeps.grid(weight_decay=[0.01, 0.1]), {"init": init, "loss": half_square}
    chosen = sweeps.Selection(0, {"weight_decay": 0.1}, 2, 0, *([None] * 3), (), 0)
    for traced in (
        lambda: run(branching, hparams, folder=tmp_path),
        lambda: sweeps.refit(branching, chosen, DATA, batch_size=8, **options),
    ):
        with pytest.raises(TypeError, match="`build` must not branch on a hyperparameter"):
            traced()


def test_an_error_while_building_says_which_configuration():
    with pytest.raises(ValueError, match="strength") as caught:
        run(build=lambda h: wdjax.add_decayed_weights(h["lam"]), hparams={"lam": np.array([-2.0])})
    assert "row 0 of `hparams`: {'lam': -2.0}" in caught.value.__notes__[0]


def test_random_draws_are_log_uniform_and_independent_of_other_names():
    draw = sweeps.random(4000, 1, weight_decay=(1e-4, 1.0), momentum=[0.0, 0.9])
    assert sweeps.random(4000, 1, weight_decay=(1e-4, 1.0))["weight_decay"].tolist() == (
        draw["weight_decay"].tolist()
    )
    shares = np.histogram(np.log10(draw["weight_decay"]), bins=4, range=(-4, 0))[0] / 4000
    np.testing.assert_allclose(shares, 0.25, atol=0.03)
    np.testing.assert_allclose(np.mean(draw["momentum"] == 0.9), 0.5, atol=0.03)


def test_everything_the_namespace_offers_exists_and_has_its_sections():
    import inspect

    assert sweeps.__all__ == sorted(sweeps.__all__)
    for name in sweeps.__all__:
        value = getattr(sweeps, name)
        doc = inspect.getdoc(value)
        assert ">>>" in doc, name
        if inspect.isfunction(value):
            for argument in inspect.signature(value).parameters:
                assert f"{argument}:" in doc, f"{name}: {argument}"


def test_a_strength_that_flips_signs_is_refused_as_in_a_run_alone():
    data = {"x": np.ones((8, 2), np.float32), "y": np.ones(8, np.float32)}

    def loss(params, part, weights):
        return jnp.sum(weights * (part["x"] @ params["kernel"] - part["y"]) ** 2)

    init = lambda key: {"kernel": jnp.ones(2)}
    rules = (("**", 1.0),)
    build = lambda h: optax.chain(
        optax.sgd(0.1), wdjax.decay_weights(h["weight_decay"], rules=rules)
    )
    hparams = sweeps.grid(weight_decay=[0.0, 1.9])
    with pytest.raises(ValueError, match="would flip signs") as caught:
        sweeps.sweep(
            build,
            hparams,
            data,
            init=init,
            loss=loss,
            folds=sweeps.kfold(8, 2),
            epochs=1,
            batch_size=None,
        )
    assert "row 1 of `hparams`" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("batch_size", [None, 7, 3])
@pytest.mark.first_is_quick
def test_some_of_the_folds_give_the_runs_that_they_gave_among_all(batch_size):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(11, 2)), "y": rng.normal(size=11)}
    data = jax.tree.map(np.float32, data)
    every = sweeps.kfold(11, 3)  # training parts of 7, 7 and 8
    some = jax.tree.map(lambda table: table[:2], every)

    def loss(w, part, weights):
        return jnp.sum(weights * (part["x"] @ w - part["y"]) ** 2) / jnp.sum(weights)

    def run(folds):
        found = sweeps.sweep(
            lambda h: optax.sgd(h["rate"]),
            sweeps.grid(rate=[0.1, 0.2]),
            data,
            init=lambda key: jnp.zeros(2),
            loss=loss,
            folds=folds,
            epochs=5,
            batch_size=batch_size,
            keep_params=True,
        )
        return found.params

    np.testing.assert_allclose(run(some), run(every)[:, :2], rtol=1e-5, atol=1e-6)
