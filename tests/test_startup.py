"""What starts grows linearly: equations and instructions per leaf, without a clock.

Two counts of leaves tell what one more layer adds, a third tells whether that is constant.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from method_cases import METHODS
from script_files import load

import wdjax
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


# The compiled program. A wait that each kernel computes anew, or a sum of all leaves inside of each
# kernel, shows in the instructions and not in the equations.


@pytest.mark.parametrize("name", ["measured", "measured by leaf"])
def test_no_layer_adds_more_instructions_than_the_one_before(name):
    def count(layers):
        text = programs.compiled(WRAPPED[name][0], params_of(layers)).as_text()
        return sum(map(len, programs.read(text).computations.values()))

    few, more, most = map(count, (1, 2, 3))
    assert few < more
    assert most - more <= 1.05 * (more - few)  # a compiler may choose otherwise for a few of them
