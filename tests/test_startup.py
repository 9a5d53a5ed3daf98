"""What starts grows linearly: equations and instructions per leaf, without a clock; and memory.

Two counts of leaves tell what one more layer adds, a third tells whether that is constant.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from method_cases import METHODS
from script_files import load

import wdjax
from wdjax import gates, radial
from wdjax.metrics import measured

LAYERS = (2, 3, 4)
LAYER = {"kernel": (4, 6), "bias": (6,)}

programs = load("benchmarks/accelerator").programs


def params_of(layers, dtype=jnp.float32):
    shape = lambda size: jax.ShapeDtypeStruct(size, dtype)
    layer = {name: shape(size) for name, size in LAYER.items()}
    return {f"layer_{i}": layer for i in range(layers)}


def equations(program):
    """The equations of a jaxpr, those of branches, loops and called functions among them."""
    is_program = lambda x: hasattr(x, "eqns")
    parts = [jax.tree.leaves([*line.params.values()], is_leaf=is_program) for line in program.eqns]
    inside = [x for part in parts for x in part if is_program(x)]
    return len(program.eqns) + sum(map(equations, inside))


def traced(optimizer, params):
    state = jax.eval_shape(optimizer.init, params)

    def step(grads, state, params):
        return optimizer.update(grads, state, params, grad=grads)

    return jax.make_jaxpr(step)(params, state, params).jaxpr


def counts(optimizer, dtype=jnp.float32):
    return [equations(traced(optimizer, params_of(n, dtype))) for n in LAYERS]


def assert_linear(few, more, most):
    assert few < more
    assert most - more == more - few


# What a formula adds to a leaf is the same for each leaf; what walks over them depends on these.
WALKS = {(c.verb, c.anchor, c.memory, c.needs_grad): name for name, c in METHODS.items()}


EVERY = [
    name if name in WALKS.values() else pytest.param(name, marks=pytest.mark.slow)
    for name in METHODS
]


@pytest.mark.parametrize("name", EVERY)
def test_each_layer_adds_as_many_equations_to_a_method(name):
    case = METHODS[name]
    method = case.build(case.x, rules=(("kernel", 1.0), ("**", 0.0)))
    assert_linear(*counts(optax.with_extra_args_support(method)))


ADAMW = wdjax.adamw(1e-3, weight_decay=0.1)
WRAPPED = {
    "optax.adamw": (optax.adamw(1e-3), jnp.float32),
    "wdjax.adamw": (ADAMW, jnp.float32),
    "measured": (measured(ADAMW), jnp.float32),
    "measured at every step": (measured(ADAMW, every=1), jnp.float32),
    "measured by leaf": (measured(ADAMW, per="leaf"), jnp.float32),
    "another optimizer measured": (measured(optax.adamw(1e-3)), jnp.float32),
    "compensated": (wdjax.compensated(ADAMW), jnp.bfloat16),
    "stochastically_rounded": (wdjax.stochastically_rounded(ADAMW, 0), jnp.bfloat16),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_each_layer_adds_as_many_equations_to_a_wrapper(name):
    optimizer, dtype = WRAPPED[name]
    assert_linear(*counts(optax.with_extra_args_support(optimizer), dtype))


def loss(params, batch):
    return batch["x"].mean() * sum(jnp.vdot(p, p) for p in jax.tree.leaves(params))


STEPS = {
    "of micro-batches, clipped": {"accumulate": 2, "max_grad_norm": 1.0},
    "without a branch": {"skip_nonfinite": False},
}


@pytest.mark.parametrize("name", STEPS)
def test_each_layer_adds_as_many_equations_to_a_training_step(name):
    def count(layers):
        optimizer = measured(ADAMW)
        step = wdjax.make_train_step(loss, optimizer, **STEPS[name])
        create = lambda params: wdjax.TrainState.create(params, optimizer)
        state = jax.eval_shape(create, params_of(layers))
        return equations(jax.make_jaxpr(step)(state, {"x": np.ones(4, np.float32)}).jaxpr)

    assert_linear(*map(count, LAYERS))


# A formula of norms is traced once for each shape, so that few equations are left for each leaf.


def top_equations(optimizer, dtype=jnp.float32):
    few, more = (traced(optimizer, params_of(n, dtype)).eqns for n in (2, 3))
    return len(more) - len(few)


TRACED_ONCE = {
    "norm_control": (optax.chain(optax.adam(1e-3), radial.norm_control(0.1)), jnp.float32),
    "hyperball": (optax.chain(optax.adam(1e-3), radial.hyperball(1e-3)), jnp.float32),
    "update_floor": (optax.chain(optax.adam(1e-3), radial.update_floor(1e-3)), jnp.float32),
    "compensated": (wdjax.compensated(ADAMW), jnp.bfloat16),
    "stochastically_rounded": (wdjax.stochastically_rounded(ADAMW, 0), jnp.bfloat16),
}


@pytest.mark.parametrize("name", TRACED_ONCE)
def test_norms_and_rounding_add_a_third_of_adams_own_equations_for_each_layer(name):
    plain = top_equations(optax.with_extra_args_support(optax.adamw(1e-3)))
    assert top_equations(*TRACED_ONCE[name]) <= 1.34 * plain


# The compiled program. A wait that each kernel computes anew, or a sum of all leaves inside each
# kernel, shows in the instructions and not in the equations.


@pytest.mark.parametrize("name", ["measured", "measured by leaf"])
def test_no_layer_adds_more_instructions_than_the_one_before(name):
    def count(layers):
        text = programs.compiled(WRAPPED[name][0], params_of(layers)).as_text()
        return sum(map(len, programs.read(text).computations.values()))

    few, more, most = map(count, (1, 2, 3))
    assert few < more
    assert most - more <= 1.05 * (more - few)  # a compiler may choose otherwise for a few of them


# Memory, in bytes for each parameter: what the state holds, and what a step needs beside it.

HELD = {
    "wdjax.adamw": (ADAMW, jnp.float32, 8),
    "with a gate": (wdjax.adamw(1e-3, weight_decay=0.1, gate=gates.cautious), jnp.float32, 8),
    "with an anchor": (wdjax.adamw(1e-3, weight_decay=0.1, anchor="init"), jnp.float32, 8 + 4),
    "measured": (measured(ADAMW), jnp.float32, 8),
    "hyperball": (optax.chain(optax.adam(1e-3), radial.hyperball(1e-3)), jnp.float32, 8),
    "compensated": (wdjax.compensated(ADAMW), jnp.bfloat16, 8 + 4),
    "stochastically_rounded": (wdjax.stochastically_rounded(ADAMW, 0), jnp.bfloat16, 8),
}


def memory(optimizer, dtype):
    """Bytes per parameter: of the state, and temporary ones of a step that donates."""
    params = {f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((64, 64), dtype)} for i in range(4)}
    state = jax.eval_shape(optimizer.init, params)

    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(params, state, params).compile()
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    count = sum(x.size for x in jax.tree.leaves(params))
    return size(state) / count, compiled.memory_analysis().temp_size_in_bytes / count


@functools.cache
def plain_memory():
    return memory(optax.adamw(1e-3), jnp.float32)


@pytest.mark.parametrize("name", HELD)
def test_no_method_holds_more_than_it_says(name):
    optimizer, dtype, bytes_held = HELD[name]
    held, temporary = memory(optimizer, dtype)
    assert bytes_held <= held < bytes_held + 0.01
    # no more than one number for each parameter beside what plain Adam needs
    assert temporary <= plain_memory()[1] + 4 + 0.1
