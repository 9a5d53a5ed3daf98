"""Parameters in dicts and a loss in JAX: no library at all."""

import jax
import jax.numpy as jnp
import loops
import optax


def mlp():
    draw = jax.nn.initializers.he_normal()
    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": {"kernel": draw(keys[0], (64, 32)), "bias": jnp.zeros(32)},
        "head": {"kernel": draw(keys[1], (32, 10)), "bias": jnp.zeros(10)},
    }

    def loss_fn(params, batch):
        x = batch["x"].reshape(len(batch["y"]), -1)
        x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        logits = x @ params["head"]["kernel"] + params["head"]["bias"][None]
        return loops.cross_entropy(logits, batch["y"])

    decayed = {"hidden/kernel", "head/kernel"}
    own_loop = own_loop_of(params, loss_fn)
    return loops.Model(params, None, loss_fn, loops.images(), decayed, own_loop)


def own_loop_of(params, loss_fn):
    def own_loop(optimizer, batches):
        @jax.jit
        def step(params, state, batch):
            updates, state = optimizer.update(jax.grad(loss_fn)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        ours, state = params, optimizer.init(params)
        for batch in batches:
            ours, state = step(ours, state, batch)
        return ours

    return own_loop


def cnn():
    draw = jax.nn.initializers.he_normal()
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "conv": {"kernel": draw(keys[0], (3, 3, 1, 8))},
        "norm": {"scale": jnp.ones(8), "bias": jnp.zeros(8)},
        "hidden": {"kernel": draw(keys[1], (128, 32)), "bias": jnp.zeros(32)},
        "head": {"kernel": draw(keys[2], (32, 10)), "bias": jnp.zeros(10)},
    }
    stats = {"mean": jnp.zeros(8), "var": jnp.ones(8)}

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"][None]

    def loss_fn(params, batch, model_state, key):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            batch["x"], params["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=layout
        )
        seen = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
        x = (x - seen["mean"][None, None, None]) * jax.lax.rsqrt(seen["var"] + 1e-5)[
            None, None, None
        ]
        x = jax.nn.relu(x * params["norm"]["scale"][None, None, None])
        x = x + params["norm"]["bias"][None, None, None]
        x = jax.nn.relu(dense(params["hidden"], x.reshape(len(x), -1)))
        x = x * jax.random.bernoulli(key, 0.9, x.shape) / 0.9
        loss = loops.cross_entropy(dense(params["head"], x), batch["y"])
        return loss, {}, jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, model_state, seen)

    def own_loop(optimizer, batches):
        @jax.jit
        def step(params, state, stats, batch, key):
            def loss(params):
                value, _, new = loss_fn(params, batch, stats, key)
                return value, new

            grads, stats = jax.grad(loss, has_aux=True)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, stats

        ours, state, now = params, optimizer.init(params), stats
        for t, batch in enumerate(batches):
            ours, state, now = step(ours, state, now, batch, jax.random.fold_in(loops.KEY, t))
        return ours

    decayed = {"conv/kernel", "hidden/kernel", "head/kernel"}
    return loops.Model(params, stats, loss_fn, loops.images(), decayed, own_loop)


def transformer():
    width, layers = 16, 2
    draw = jax.nn.initializers.lecun_normal(batch_axis=0)
    keys = iter(jax.random.split(jax.random.key(0), 7))
    params = {
        "embed": {"embedding": 0.1 * jax.random.normal(next(keys), (256, width))},
        "pos_embedding": 0.1 * jax.random.normal(next(keys), (16, width)),
        "blocks": {  # stacked: a leading axis of layers
            "norm_1": {"scale": jnp.ones((layers, width))},
            "qkv": {"kernel": draw(next(keys), (layers, width, 3 * width))},
            "out": {"kernel": draw(next(keys), (layers, width, width))},
            "norm_2": {"scale": jnp.ones((layers, width))},
            "up": {
                "kernel": draw(next(keys), (layers, width, 32)),
                "bias": jnp.zeros((layers, 32)),
            },
            "down": {"kernel": draw(next(keys), (layers, 32, width))},
        },
        "head": {"kernel": 0.1 * jax.random.normal(next(keys), (width, 256))},
    }

    def norm(x, layer):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * layer["scale"][None]

    def block(x, layer):
        q, k, v = jnp.split(norm(x, layer["norm_1"]) @ layer["qkv"]["kernel"], 3, axis=-1)
        heads = [a.reshape(len(x), 2, -1) for a in (q, k, v)]
        mixed = jax.nn.dot_product_attention(*heads, is_causal=True).reshape(x.shape)
        x = x + mixed @ layer["out"]["kernel"]
        hidden = norm(x, layer["norm_2"]) @ layer["up"]["kernel"] + layer["up"]["bias"][None]
        return x + jax.nn.gelu(hidden) @ layer["down"]["kernel"], None

    def logits(params, tokens):
        x = params["embed"]["embedding"][tokens] + params["pos_embedding"]
        x, _ = jax.lax.scan(block, x, params["blocks"])
        return x @ params["head"]["kernel"]

    def loss_fn(params, batch):
        tokens = batch["tokens"]
        out = jax.vmap(logits, (None, 0))(params, tokens[:, :-1])
        return loops.cross_entropy(out, tokens[:, 1:])

    decayed = {"blocks/qkv/kernel", "blocks/out/kernel", "blocks/up/kernel",
               "blocks/down/kernel", "head/kernel"}  # fmt: skip
    return loops.Model(params, None, loss_fn, loops.text(), decayed, own_loop_of(params, loss_fn))


@loops.checks_of(mlp, cnn, transformer)
def test_plain(check, build):
    check(build())
