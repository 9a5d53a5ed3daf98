"""Saved and restored, a run goes on as if nothing had happened, whatever happened."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax

DATA = wdjax.datasets.linear(seed=0).train
EPOCHS = 6  # of 3 steps


def loss_fn(params, batch, key):
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    return jnp.mean((batch["x"] @ params["kernel"] + params["bias"] + noise - batch["y"]) ** 2)


def begin(optimizer):
    params = {"kernel": jnp.zeros(1), "bias": jnp.zeros(())}
    return wdjax.TrainState.create(params, optimizer, key=jax.random.key(3))


RATE = optax.constant_schedule(0.05)  # a schedule: Optax's own state has no count for a number


@functools.cache
def first_optimizer():
    return wdjax.decayed(optax.adam)(RATE, weight_decay=0.1, rules=wdjax.standard())


def retuned_optimizers():
    """Another λ, other rules, another law and schedule: the same state fits them all."""
    build, cosine = wdjax.decayed(optax.adam), optax.cosine_decay_schedule(0.02, 100)
    return {
        "λ": build(RATE, weight_decay=0.3),
        "a schedule of λ": build(RATE, weight_decay=lambda t: 0.1 / (1 + t)),
        "rules": build(RATE, weight_decay=0.1, rules=(("**", 0.5),)),
        "law": build(RATE, weight_decay=0.001, law=wdjax.fixed),
        "schedule": build(cosine, weight_decay=0.1),
        "gate": build(RATE, weight_decay=0.1, gate=wdjax.gates.cautious),
        "penalty": build(RATE, weight_decay=0.1, penalty=wdjax.penalties.l1, implicit=True),
    }


@functools.cache
def step_of(optimizer):
    return wdjax.make_train_step(loss_fn, optimizer)


def trained(optimizer, state, epochs=EPOCHS):
    return wdjax.fit(step_of(optimizer), state, DATA, epochs=epochs, batch_size=32, progress=False)[
        0
    ]


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# Two ways to save. A random key is saved as its data, which is what both of them can hold.


def packed(state):
    return state._replace(key=jax.random.key_data(state.key))


def unpacked(state):
    return state._replace(key=jax.random.wrap_key_data(jnp.asarray(state.key)))


def through_orbax(state, like, folder):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", packed(state))
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, packed(like))
        return unpacked(checkpointer.restore(folder / "state", shapes))


def through_msgpack(state, like, folder):
    serialization = pytest.importorskip("flax.serialization")
    file = folder / "state.msgpack"
    file.write_bytes(serialization.to_bytes(packed(state)))
    restored = serialization.from_bytes(packed(like), file.read_bytes())
    return unpacked(jax.tree.map(jnp.asarray, restored))


ways = pytest.mark.parametrize("saved", [through_orbax, through_msgpack])


@ways
@pytest.mark.first_is_quick
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(saved, tmp_path):
    optimizer = first_optimizer()
    whole = trained(optimizer, begin(optimizer))
    half = trained(optimizer, begin(optimizer), epochs=EPOCHS // 2)
    assert int(half.step) == 9
    restored = saved(half, begin(optimizer), tmp_path)
    assert_identical(restored, half)
    assert_identical(trained(optimizer, restored), whole)


@ways
def test_residuals_beside_float32_leaves_are_saved_and_restored(saved, tmp_path):
    optimizer = wdjax.compensated(wdjax.adamw(1e-3, weight_decay=0.1))
    params = {"kernel": jnp.ones((2, 2), jnp.bfloat16), "bias": jnp.zeros(2)}
    state = wdjax.TrainState.create(params, optimizer, key=jax.random.key(3))
    grads = jax.tree.map(jnp.ones_like, params)
    _, opt_state = optimizer.update(grads, state.opt_state, params)
    state = state._replace(opt_state=opt_state)
    like = wdjax.TrainState.create(params, optimizer, key=jax.random.key(4))
    assert_identical(saved(state, like, tmp_path), state)


@pytest.mark.slow  # a run for each change
@pytest.mark.parametrize("what", retuned_optimizers())
def test_a_checkpoint_survives_retuning(what, tmp_path):
    saved = through_orbax if what in ("λ", "penalty") else through_msgpack
    half = trained(first_optimizer(), begin(first_optimizer()), epochs=2)
    other = retuned_optimizers()[what]
    restored = saved(half, begin(other), tmp_path)
    assert_identical(restored, half)
    after = trained(other, restored, epochs=3)
    assert int(after.step) == 9
    assert not np.array_equal(after.params["kernel"], half.params["kernel"])


@ways
def test_a_checkpoint_of_another_model_is_refused(saved, tmp_path):
    optimizer = first_optimizer()
    params = {"kernel": jnp.zeros((2, 2)), "extra": {"bias": jnp.zeros(3)}}
    other = wdjax.TrainState.create(params, optimizer, key=jax.random.key(3))
    with pytest.raises(ValueError, match=r"extra|kernel|bias"):
        saved(begin(optimizer), other, tmp_path)


# A process that is killed while it saves.

TRAINER = """
import pathlib, sys
sys.path.insert(0, {tests!r})
import jax, test_checkpoints as t, orbax.checkpoint as ocp, wdjax
folder = pathlib.Path(sys.argv[1])
optimizer = t.first_optimizer()
step = wdjax.make_train_step(t.loss_fn, optimizer)
options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
with ocp.CheckpointManager(folder, options=options) as manager:
    state = t.begin(optimizer)
    if manager.latest_step() is not None:
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, t.packed(state))
        restored = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(like))
        state = t.unpacked(restored)
    print("from", int(state.step), flush=True)

    def save(state):
        manager.save(int(state.step), args=ocp.args.StandardSave(t.packed(state)))
        print("saved", int(state.step), flush=True)

    state, _ = wdjax.fit(step, state, t.DATA, epochs={epochs}, batch_size=32, chunk=1,
                         on_chunk=save, progress=False)
print("done", *t.jax.tree.leaves(state.params), flush=True)
"""


def train_in_a_process(folder, epochs, kill_after=None):
    """Run the trainer; kill it that many seconds after its first save. Return what it printed."""
    code = TRAINER.format(tests=str(pathlib.Path(__file__).parent), epochs=epochs)
    environment = os.environ | {"JAX_NUMPY_RANK_PROMOTION": "allow"}
    command = [sys.executable, "-c", code, str(folder)]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            lines.append(line.split())
            if kill_after is not None and lines[-1][0] == "saved":
                time.sleep(kill_after)
                process.send_signal(signal.SIGKILL)
                break
        lines += [line.split() for line in process.stdout]
    assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)
    return lines


@pytest.mark.slow  # four processes, one after the other
def test_a_process_killed_while_it_saves_loses_no_finished_checkpoint(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    epochs, last = 40, -1
    for kill_after in (0.0, 0.07):
        lines = train_in_a_process(tmp_path / "killed", epochs, kill_after)
        started = int(lines[0][1])
        assert lines[0][0] == "from"
        assert started >= max(last, 0), "a checkpoint that was said to be saved is gone"
        last = max(int(step) for word, step, *_ in lines if word == "saved")
    finished = train_in_a_process(tmp_path / "killed", epochs)
    assert int(finished[0][1]) >= last
    whole = train_in_a_process(tmp_path / "whole", epochs)
    assert finished[-1] == whole[-1]
    assert finished[-1][0] == "done"
