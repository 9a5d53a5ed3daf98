"""Make one step of training in a fresh process and print when it was done.

python first_step.py LIBRARY MODEL LAYERS: the optimizer alone is of wdjax or of Optax.
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

Model = tuple[Any, Any, Any]  # parameters, loss of parameters and a batch, batch
WIDTH, LENGTH, LETTERS = 64, 32, 96


def readme(layers: int) -> Model:
    """The parameters of README's example."""
    params = {
        "dense": {"kernel": jnp.ones((64, 32)), "bias": jnp.zeros(32)},
        "head": {"kernel": jnp.ones((32, 1)), "bias": jnp.zeros(1)},
    }

    def loss(params: Any, x: Any) -> Any:
        for layer in params.values():
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return jnp.mean((x - 1) ** 2)

    return params, loss, jnp.ones((8, 64))


def flax(layers: int) -> Model:
    """A transformer of so many blocks, each with leaves of its own."""
    from flax import linen as nn

    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any) -> Any:
            x = nn.Embed(LETTERS, WIDTH)(tokens)
            for _ in range(layers):
                x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
                x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
            return nn.Dense(LETTERS)(nn.LayerNorm()(x))

    module, tokens = Transformer(), jnp.ones((4, LENGTH), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), tokens)
    return params, lambda params, batch: jnp.mean(module.apply(params, batch) ** 2), tokens


def haiku(layers: int) -> Model:
    """A network of two leaves a layer."""
    import haiku as hk

    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([WIDTH] * layers)(x)))
    x = jnp.ones((8, WIDTH))
    params = jax.jit(network.init)(jax.random.key(0), x)
    return params, lambda params, x: jnp.mean(network.apply(params, x) ** 2), x


def optimizer(library: str) -> optax.GradientTransformationExtraArgs:
    """AdamW with a schedule; matrices decay."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, 1_000)
    if library == "optax":
        matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
        return optax.adamw(rate, weight_decay=0.1, mask=matrices)
    import wdjax

    return wdjax.adamw(rate, weight_decay=0.1)


library, model, number = sys.argv[1:]
params, loss, batch = {"readme": readme, "flax": flax, "haiku": haiku}[model](int(number))
tx = optimizer(library)


@jax.jit
def step(params: Any, state: Any) -> Any:
    """One update."""
    updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
    return optax.apply_updates(params, updates), state


jax.block_until_ready(step(params, tx.init(params)))
print(time.time())
