"""The benchmark for accelerators: right without one, at small size."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from script_files import load

import wdjax

accelerator = load("benchmarks/accelerator")
programs = accelerator.programs

ADAM = wdjax.decayed(optax.adam)(0.1, weight_decay=0.1)
SMALL = accelerator.blocks(32, 1, 64, jnp.float32)
GB = 10**9


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("room", [4 * GB, 11 * GB, 40 * GB, 80 * GB])
def test_the_model_leaves_room_for_two_trainings_and_the_gradients(room, dtype):
    shapes = accelerator.transformer(room, accelerator.MOST, dtype)
    assert len(jax.tree.leaves(shapes)) == 121
    assert accelerator.ARRAYS * accelerator.nbytes(shapes) <= room
    wider = accelerator.transformer(2 * room, accelerator.MOST, dtype)
    assert accelerator.count(wider) >= accelerator.count(shapes) > 1e7


def test_it_has_a_billion_parameters_where_they_fit():
    shapes = accelerator.transformer(80 * GB, accelerator.MOST, jnp.float32)
    assert accelerator.count(shapes) == 20 * (12 * 2048**2 + 2 * 2048) + 32_768 * 2_048


def test_a_smaller_model_says_why(capsys, monkeypatch):
    accelerator.described(SMALL, GB)
    assert "fewer than 1B: no accelerator is here" in capsys.readouterr().out
    monkeypatch.setattr(accelerator, "on_accelerator", lambda: True)
    accelerator.described(SMALL, 16 * GB)
    assert "fewer than 1B: 16 GB of memory" in capsys.readouterr().out
    whole = accelerator.transformer(80 * GB, accelerator.MOST, jnp.float32)
    assert accelerator.described(whole, 80 * GB) == "1.07B"
    assert "fewer" not in capsys.readouterr().out


def test_the_random_numbers_are_of_the_shapes_and_dtypes_and_not_constant():
    shapes = accelerator.blocks(32, 1, 64, jnp.bfloat16)
    filled = accelerator.random(shapes, 0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), filled) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    assert all(float(jnp.std(x.astype(jnp.float32))) > 0.5 for x in jax.tree.leaves(filled))


def test_the_steps_that_are_timed_are_those_of_the_optimizer():
    grads = accelerator.random(SMALL, 1)
    run = accelerator.stepper(ADAM, SMALL, grads, 3)
    run()
    got = run()[0]

    params = accelerator.random(SMALL, 0)
    state, update = ADAM.init(params), jax.jit(ADAM.update)
    for _ in range(6):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for ours, expected in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_pytorch_takes_the_same_steps():
    pytest.importorskip("torch")
    theirs = accelerator.torch_optimizer(SMALL)
    groups = theirs.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]

    # all kernels, then all else, each in the order of the tree
    decays = jax.tree.leaves(wdjax.resolve(wdjax.standard(), SMALL))
    order = [i for m in (1.0, 0.0) for i, other in enumerate(decays) if m == other]
    tensors = [param for group in groups for param in group["params"]]
    leaves: list = [None] * len(order)
    grads: list = [None] * len(order)
    for i, tensor in zip(order, tensors, strict=True):
        leaves[i] = jnp.asarray(tensor.detach().numpy().copy())
        grads[i] = jnp.asarray(tensor.grad.numpy())
    treedef = jax.tree.structure(SMALL)
    params, grads = treedef.unflatten(leaves), treedef.unflatten(grads)
    updates, _ = jax.jit(ADAM.update)(grads, ADAM.init(params), params)
    expected = jax.tree.leaves(optax.apply_updates(params, updates))

    accelerator.torch_stepper(theirs, 1)()
    for i, tensor in zip(order, tensors, strict=True):
        # 0.1 away from the start by Adam, and 0.01 of it by decay
        np.testing.assert_allclose(tensor.detach().numpy(), expected[i], atol=1e-5)


def test_a_copy_reads_and_writes_all_of_it_and_nothing_else():
    x = jax.ShapeDtypeStruct((2**13,), jnp.float32)
    for way in (accelerator.COPY, accelerator.NEGATE):
        text = way.lower(x).compile().as_text()
        (kernel,) = programs.kernels(programs.read(text))
        assert kernel.nbytes == 8 * 2**13
    assert accelerator.copiers(2**10)[0] == 8 * 2**10


def test_the_bandwidth_is_that_of_the_fastest_copy():
    pause = 0.002
    slow, fast = lambda: time.sleep(pause), lambda: 0
    assert accelerator.bandwidth((1_000, [slow]), tries=1) <= 1_000 / pause
    assert accelerator.bandwidth((1_000, [slow, fast]), tries=1) > 1_000 / pause


@pytest.mark.parametrize(
    ("optimizer", "dtype", "per_number"),
    [
        (ADAM, jnp.float32, 28),
        (ADAM, jnp.bfloat16, 14),
        (wdjax.compensated(ADAM), jnp.bfloat16, 30),
    ],
)
def test_the_bytes_are_those_that_must_move(optimizer, dtype, per_number):
    """Read g, θ, m, v and write θ, m, v; compensated: the residual, too."""
    shapes = accelerator.blocks(32, 1, 64, dtype)
    figure = accelerator.of_bandwidth("small", optimizer, shapes, repeats=1, steps=1, size=2**10)
    counters = 2 * 2 * 4  # two int32 counts
    assert figure.readings["bytes"] == per_number * accelerator.count(shapes) + counters
    assert figure.met is None  # a CPU has no goal


def test_goals_are_set_on_accelerators(monkeypatch):
    monkeypatch.setattr(accelerator, "on_accelerator", lambda: True)
    sizes = {"repeats": 1, "steps": 1}
    assert accelerator.of_bandwidth("a", ADAM, SMALL, **sizes, size=2**10).goal.endswith(">= 0.9")
    floor, against = accelerator.against_optax("b", ADAM, SMALL, **sizes)
    assert (floor.met, "itself" in floor.name) == (None, True)
    assert ">=" in against.goal
    assert against.met is not None


def test_memory_is_what_the_device_says_or_else_what_is_free(monkeypatch):
    assert accelerator.memory() > 10**8

    class Card:
        def memory_stats(self):
            return {"bytes_limit": 12_345}

    monkeypatch.setattr(jax, "devices", lambda: [Card()])
    assert accelerator.memory() == 12_345


@pytest.mark.slow  # compiles the table of all programs
def test_all_of_it_runs_and_prints_the_programs(capsys):
    figures = accelerator.bench_accelerator(1, True)
    printed = capsys.readouterr().out
    for name in accelerator.cases():
        assert f"\n{name} " in printed
    assert "GB/s, a copy" in printed
    names = " ".join(figure.name for figure in figures)
    for part in ("float32, of copy", "bfloat16, of copy", "compensated", "against optax.adamw"):
        assert part in names
