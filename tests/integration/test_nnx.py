"""Flax NNX, with `nnx.Optimizer`, and split into arrays for our loop."""

import jax
import jax.numpy as jnp
import loops
import pytest

import wdjax

nnx = pytest.importorskip("flax.nnx")
pytestmark = pytest.mark.usefixtures("rank_promotion_allowed")  # not the library's habit


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


class CNN(nnx.Module):
    def __init__(self, rngs):
        # a bias before the norm would have a gradient of noise
        self.conv = nnx.Conv(1, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.hidden = nnx.Linear(128, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.head(self.dropout(x))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm_1 = nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.norm_2 = nnx.LayerNorm(16, rngs=rngs)
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm_1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.wte = nnx.Embed(256, 16, rngs=rngs)
        self.pos_embedding = nnx.Param(0.1 * jax.random.normal(rngs.params(), (16, 16)))

        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs):
            return Block(rngs)

        self.blocks = stack(rngs)
        self.head = nnx.Linear(16, 256, rngs=rngs)

    def __call__(self, tokens):
        x = self.wte(tokens) + self.pos_embedding

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            return block(x)

        return self.head(forward(x, self.blocks))


def as_model(module, loss, batches, decayed):
    """The functional form: parameters apart from statistics and the counters of random keys."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss_fn(params, batch, model_state):
        merged = nnx.merge(graphdef, params, model_state, copy=True)
        value = loss(merged, batch)
        return value, {}, nnx.state(merged, nnx.Not(nnx.Param))

    def own_loop(optimizer, batches):
        model = nnx.clone(module)
        holder = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

        @nnx.jit
        def step(model, holder, batch):
            holder.update(model, nnx.grad(loss)(model, batch))

        for batch in batches:
            step(model, holder, batch)
        return nnx.state(model, nnx.Param)

    return loops.Model(params, rest, loss_fn, batches, decayed, own_loop)


def of_images(model, batch):
    return loops.cross_entropy(model(batch["x"]), batch["y"])


def mlp():
    decayed = {"hidden/kernel", "head/kernel"}
    return as_model(MLP(nnx.Rngs(0)), of_images, loops.images(), decayed)


def cnn():
    decayed = {"conv/kernel", "hidden/kernel", "head/kernel"}
    return as_model(CNN(nnx.Rngs(0)), of_images, loops.images(), decayed)


def transformer():
    def loss(model, batch):
        tokens = jnp.asarray(batch["tokens"])
        return loops.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])

    names = ("query", "key", "value", "out")
    inner = {f"blocks/attention/{name}/kernel" for name in names}
    decayed = inner | {"blocks/up/kernel", "blocks/down/kernel", "head/kernel"}
    return as_model(Transformer(nnx.Rngs(0)), loss, loops.text(), decayed)


@loops.checks_of(mlp, cnn, transformer)
def test_nnx(check, build):
    check(build())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
@pytest.mark.first_is_quick
def test_compensated_takes_partitioned_parameters(kind, dtype):
    nnx = pytest.importorskip("flax.nnx")
    ones = nnx.with_partitioning(nnx.initializers.ones_init(), ("fsdp", None))
    with jax.set_mesh(jax.make_mesh((1,), ("fsdp",), axis_types=(kind,))):
        try:
            model = nnx.Linear(4, 4, rngs=nnx.Rngs(0), param_dtype=dtype, kernel_init=ones)
        except AssertionError as error:
            if "with_sharding_constraint" not in str(error):
                raise
            pytest.skip("flax 0.12.0 makes no partitioned model on explicit axes of jax 0.8")
        optimizer = wdjax.compensated(wdjax.adamw(1e-1, weight_decay=0.1))
        holder = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        holder.update(model, nnx.grad(lambda m: jnp.mean(m(jnp.ones((2, 4))) ** 2))(model))
    assert model.kernel[...].dtype == dtype
