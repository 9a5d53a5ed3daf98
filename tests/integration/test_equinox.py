"""Equinox, with `filter_jit`; for our loop, partitioned into arrays and the rest."""

import jax
import jax.numpy as jnp
import loops
import pytest

eqx = pytest.importorskip("equinox")


class CNN(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    hidden: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        # a bias before the norm would have a gradient of noise
        self.conv = eqx.nn.Conv2d(1, 8, 3, stride=2, padding=1, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.hidden = eqx.nn.Linear(128, 32, key=keys[1])
        self.dropout = eqx.nn.Dropout(0.1)
        self.head = eqx.nn.Linear(32, 10, key=keys[2])

    def __call__(self, x, state, key):
        x, state = self.norm(self.conv(x), state)
        x = jax.nn.relu(self.hidden(jax.nn.relu(x).reshape(-1)))
        return self.head(self.dropout(x, key=key)), state


class Block(eqx.Module):
    norm_1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm_2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.norm_1, self.norm_2 = eqx.nn.LayerNorm(16), eqx.nn.LayerNorm(16)
        self.attention = eqx.nn.MultiheadAttention(2, 16, key=keys[0])
        self.up = eqx.nn.Linear(16, 32, key=keys[1])
        self.down = eqx.nn.Linear(32, 16, key=keys[2])

    def __call__(self, x):
        y = jax.vmap(self.norm_1)(x)
        x = x + self.attention(y, y, y, jnp.tril(jnp.ones((len(x),) * 2, bool)))
        y = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm_2)(x)))
        return x + jax.vmap(self.down)(y)


class Transformer(eqx.Module):
    """The table of bytes is also the head: one array, tied by `eqx.nn.Shared`."""

    tied: eqx.nn.Shared
    pos_embed: eqx.nn.Embedding
    blocks: Block

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        embed = eqx.nn.Embedding(weight=0.1 * jax.random.normal(keys[0], (256, 16)))
        head = eqx.nn.Linear(16, 256, use_bias=False, key=keys[1])
        self.tied = eqx.nn.Shared(
            (embed, head), where=lambda pair: pair[1].weight, get=lambda pair: pair[0].weight
        )
        self.pos_embed = eqx.nn.Embedding(16, 16, key=keys[2])
        self.blocks = eqx.filter_vmap(Block)(jax.random.split(keys[3], 2))

    def __call__(self, tokens):
        embed, head = self.tied()
        x = jax.vmap(embed)(tokens) + self.pos_embed.weight
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        forward = lambda x, layer: (eqx.combine(layer, static)(x), None)
        return jax.vmap(head)(jax.lax.scan(forward, x, arrays)[0])


def own_loop_of(model, loss, state):
    """`loss(model, batch, state, key)` -> (value, state), as Equinox's users write it."""

    def own_loop(optimizer, batches):
        @eqx.filter_jit
        def step(model, state, opt_state, batch, key):
            grads, state_ = eqx.filter_grad(loss, has_aux=True)(model, batch, state, key)
            params = eqx.filter(model, eqx.is_inexact_array)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return eqx.apply_updates(model, updates), state_, opt_state

        ours, now = model, state
        opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
        for t, batch in enumerate(batches):
            ours, now, opt_state = step(
                ours, now, opt_state, batch, jax.random.fold_in(loops.KEY, t)
            )
        return eqx.filter(ours, eqx.is_inexact_array)

    return own_loop


def as_model(model, state, loss, batches, decayed):
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch, model_state, key):
        value, new = loss(eqx.combine(params, static), batch, model_state, key)
        return value, {}, new

    own_loop = own_loop_of(model, loss, state)
    return loops.Model(params, state, loss_fn, batches, decayed, own_loop)


def mlp():
    model = eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0))

    def loss(model, batch, state, key):
        images = jnp.asarray(batch["x"]).reshape(len(batch["y"]), -1)
        return loops.cross_entropy(jax.vmap(model)(images), batch["y"]), state

    decayed = {"layers/0/weight", "layers/1/weight"}
    return as_model(model, (), loss, loops.images(), decayed)


def cnn():
    model, state = eqx.nn.make_with_state(CNN)(jax.random.key(0))

    def loss(model, batch, state, key):
        each = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        images = jnp.moveaxis(jnp.asarray(batch["x"]), -1, 1)
        logits, state = each(images, state, jax.random.split(key, len(images)))
        return loops.cross_entropy(logits, batch["y"]), state

    decayed = {"conv/weight", "hidden/weight", "head/weight"}
    return as_model(model, state, loss, loops.images(), decayed)


def transformer():
    def loss(model, batch, state, key):
        tokens = jnp.asarray(batch["tokens"])
        return loops.cross_entropy(jax.vmap(model)(tokens[:, :-1]), tokens[:, 1:]), state

    names = ("query_proj", "key_proj", "value_proj", "output_proj")
    inner = {f"blocks/attention/{name}/weight" for name in names}
    decayed = inner | {"blocks/up/weight", "blocks/down/weight"}
    return as_model(Transformer(jax.random.key(0)), (), loss, loops.text(), decayed)


@loops.checks_of(mlp, cnn, transformer)
def test_equinox(check, build):
    check(build())
