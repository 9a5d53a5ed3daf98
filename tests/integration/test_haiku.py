"""Haiku, with `transform_with_state` and a loop of updates."""

import jax
import jax.numpy as jnp
import loops
import optax
import pytest

hk = pytest.importorskip("haiku")
pytestmark = pytest.mark.usefixtures("rank_promotion_allowed")  # not the library's habit


def as_model(function, loss, batches, decayed):
    network = hk.transform_with_state(function)
    params, state = network.init(jax.random.key(0), batches[0])

    def loss_fn(params, batch, model_state, key):
        out, new = network.apply(params, model_state, key, batch)
        return loss(out, batch), {}, new

    def own_loop(optimizer, batches):
        @jax.jit
        def step(params, state, opt_state, batch, key):
            def value(params):
                out, new = network.apply(params, state, key, batch)
                return loss(out, batch), new

            grads, state_ = jax.grad(value, has_aux=True)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), state_, opt_state

        ours, now, opt_state = params, state, optimizer.init(params)
        for t, batch in enumerate(batches):
            ours, now, opt_state = step(
                ours, now, opt_state, batch, jax.random.fold_in(loops.KEY, t)
            )
        return ours

    return loops.Model(params, state, loss_fn, batches, decayed, own_loop)


def of_images(out, batch):
    return loops.cross_entropy(out, batch["y"])


def mlp():
    def function(batch):
        return hk.nets.MLP([32, 10])(hk.Flatten()(batch["x"]))

    decayed = {"mlp/~/linear_0/w", "mlp/~/linear_1/w"}
    return as_model(function, of_images, loops.images(), decayed)


def cnn():
    def function(batch):
        # a bias before the norm would have a gradient of noise
        x = hk.Conv2D(8, 3, stride=2, with_bias=False)(batch["x"])
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training=True))
        x = jax.nn.relu(hk.Linear(32)(x.reshape(len(x), -1)))
        return hk.Linear(10)(hk.dropout(hk.next_rng_key(), 0.1, x))

    return as_model(function, of_images, loops.images(), {"conv2_d/w", "linear/w", "linear_1/w"})


def transformer():
    def block(x):
        mask = jnp.tril(jnp.ones((x.shape[1],) * 2))[None, None]
        init = hk.initializers.VarianceScaling()
        y = hk.LayerNorm(-1, True, True, name="norm_1")(x)
        x = x + hk.MultiHeadAttention(2, 8, w_init=init, name="attention")(y, y, y, mask)
        y = hk.LayerNorm(-1, True, True, name="norm_2")(x)
        return x + hk.Linear(16, name="down")(jax.nn.gelu(hk.Linear(32, name="up")(y)))

    def function(batch):
        x = hk.Embed(256, 16, name="embed")(batch["tokens"][:, :-1])
        x = x + hk.get_parameter("pos_embs", (16, 16), init=hk.initializers.RandomNormal(0.1))
        x = hk.experimental.layer_stack(2)(block)(x)
        return hk.Linear(256, name="head")(x)

    def loss(out, batch):
        return loops.cross_entropy(out, batch["tokens"][:, 1:])

    stack = "__layer_stack_no_per_layer/"
    names = ("attention/query", "attention/key", "attention/value", "attention/linear",
             "up", "down")  # fmt: skip
    decayed = {f"{stack}{name}/w" for name in names} | {"head/w"}
    return as_model(function, loss, loops.text(), decayed)


@loops.checks_of(mlp, cnn, transformer)
def test_haiku(check, build):
    check(build())
