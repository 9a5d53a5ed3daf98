"""Flax linen, with `flax.training.train_state.TrainState`."""

import jax
import jax.numpy as jnp
import loops
import pytest

nn = pytest.importorskip("flax.linen")
pytestmark = pytest.mark.usefixtures("rank_promotion_allowed")  # not the library's habit


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x.reshape(len(x), -1))))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False)(x)  # its gradient would be noise
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(256, 16, name="wte")(tokens)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.1), (16, 16))
        stacked = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2,
            in_axes=nn.broadcast,
        )  # fmt: skip
        x, _ = stacked(name="blocks")(x, nn.make_causal_mask(tokens))
        return nn.Dense(256, name="head")(x)


def cnn():
    from flax.training.train_state import TrainState

    module = CNN()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)

    def loss_fn(params, batch, model_state, key):
        logits, new = module.apply(
            {"params": params, "batch_stats": model_state}, batch["x"],
            rngs={"dropout": key}, mutable=["batch_stats"],
        )  # fmt: skip
        return loops.cross_entropy(logits, batch["y"]), {}, new["batch_stats"]

    def own_loop(optimizer, batches):
        class State(TrainState):
            batch_stats: object

        @jax.jit
        def step(state, batch, key):
            def loss(params):
                value, _, stats = loss_fn(params, batch, state.batch_stats, key)
                return value, stats

            grads, stats = jax.grad(loss, has_aux=True)(state.params)
            return state.apply_gradients(grads=grads, batch_stats=stats)

        state = State.create(
            apply_fn=module.apply, params=variables["params"], tx=optimizer,
            batch_stats=variables["batch_stats"],
        )  # fmt: skip
        for t, batch in enumerate(batches):
            state = step(state, batch, jax.random.fold_in(loops.KEY, t))
        return state.params

    decayed = {"Conv_0/kernel", "Dense_0/kernel", "Dense_1/kernel"}
    return loops.Model(
        variables["params"], variables["batch_stats"], loss_fn, loops.images(), decayed, own_loop
    )


def own_loop_of(module, params, loss_fn):
    from flax.training.train_state import TrainState

    def own_loop(optimizer, batches):
        @jax.jit
        def step(state, batch):
            return state.apply_gradients(grads=jax.grad(loss_fn)(state.params, batch))

        state = TrainState.create(apply_fn=module.apply, params=params, tx=optimizer)
        for batch in batches:
            state = step(state, batch)
        return state.params

    return own_loop


def mlp():
    module = MLP()
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]

    def loss_fn(params, batch):
        return loops.cross_entropy(module.apply({"params": params}, batch["x"]), batch["y"])

    own_loop = own_loop_of(module, params, loss_fn)
    decayed = {"Dense_0/kernel", "Dense_1/kernel"}
    return loops.Model(params, None, loss_fn, loops.images(), decayed, own_loop)


def transformer():
    module = Transformer()
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 16), jnp.int32))["params"]

    def loss_fn(params, batch):
        logits = module.apply({"params": params}, batch["tokens"][:, :-1])
        return loops.cross_entropy(logits, batch["tokens"][:, 1:])

    inner = ("attention/query", "attention/key", "attention/value", "attention/out")
    decayed = {f"blocks/{name}/kernel" for name in (*inner, "Dense_0", "Dense_1")}
    own_loop = own_loop_of(module, params, loss_fn)
    return loops.Model(params, None, loss_fn, loops.text(), decayed | {"head/kernel"}, own_loop)


@loops.checks_of(mlp, cnn, transformer)
def test_linen(check, build):
    check(build())
