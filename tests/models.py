"""Small models of linen, nnx, haiku and equinox: trees of shapes, built without computing anything.

Each function imports its library when called, so that the others work where it is absent.
"""

import jax
import jax.numpy as jnp

KEY = jax.random.key(0)


def _linen_variables(module, *inputs):
    with jax.numpy_rank_promotion("allow"):  # not the models' business
        return jax.eval_shape(module.init, KEY, *inputs)


def _linen_params(module, *inputs):
    return _linen_variables(module, *inputs)["params"]


def linen_transformer(scanned=False):
    """Attention, norms, a LayerScale and raw parameters; unrolled or with a layer axis in front."""
    import flax.linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            y = nn.MultiHeadDotProductAttention(num_heads=2, name="attn")(nn.LayerNorm()(x))
            gamma = self.param("layerscale_gamma", nn.initializers.ones, (8,))
            x = x + gamma * y
            x = x + nn.Dense(8, name="fc2")(nn.Dense(16, name="fc1")(nn.RMSNorm(name="ln_2")(x)))
            return x, None

    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            table = nn.Embed(10, 8, name="wte")
            x = table(tokens) + nn.Embed(5, 8, name="wpe")(jnp.arange(5))
            zeros = nn.initializers.zeros
            x = x + self.param("pos_embedding", zeros, (1, 5, 8)) + self.param("cls", zeros, (1, 8))
            if scanned:
                blocks = nn.scan(
                    Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
                )
                x, _ = blocks(name="blocks")(x, None)
            else:
                x, _ = Block(name="block_0")(x)
            x = nn.LayerNorm(name="final_norm")(x) * self.param("logit_scale", zeros, ())
            return nn.DenseGeneral((2, 4), name="head")(x)

    return _linen_params(Transformer(), jnp.zeros((2, 5), int))


def linen_vmapped():
    """An ensemble: every bias has two axes."""
    import flax.linen as nn

    ensemble = nn.vmap(
        nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0
    )
    return _linen_params(ensemble(8), jnp.zeros((4, 2, 3)))


def linen_boxed():
    """Kernels in partitioning boxes."""
    import flax.linen as nn

    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.initializers.lecun_normal()
            x = nn.Dense(16, kernel_init=nn.with_partitioning(init, (None, "model")))(x)
            logical = nn.with_logical_partitioning(init, ("embed", "mlp"))
            return nn.Dense(4, kernel_init=logical, name="value")(x)

    return _linen_params(Boxed(), jnp.zeros((2, 8)))


def linen_conv():
    """Convolutions, a depthwise one and BatchNorm: params and batch_stats together."""
    import flax.linen as nn

    class Conv(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=False, name="downsample_bn")(x)
            x = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x)
            x = nn.ConvLocal(2, (2, 2), name="local")(nn.GroupNorm(2)(x))
            return nn.PReLU()(x)

    return _linen_variables(Conv(), jnp.zeros((1, 6, 6, 3)))


def linen_weight_norm():
    """A key that holds a slash."""
    import flax.linen as nn

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(nn.Dense(4, name="wn_dense"))(x)

    return _linen_params(Normed(), jnp.zeros((2, 3)))


def linen_experts():
    """A mixture of experts: a router, expert matrices with an expert axis, and their biases."""
    import flax.linen as nn

    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.initializers.ones
            gates = nn.Dense(4, use_bias=False, name="router")(x)
            wi, wo = self.param("wi", init, (4, 8, 16)), self.param("wo", init, (4, 16, 8))
            bi = self.param("bi", init, (4, 16))
            hidden = jnp.einsum("nd,edh->neh", x, wi) + bi
            return jnp.einsum("neh,ehd,ne->nd", hidden, wo, gates)

    return _linen_params(Experts(), jnp.zeros((2, 8)))


def linen_recurrent():
    import flax.linen as nn

    return _linen_params(nn.RNN(nn.GRUCell(8)), jnp.zeros((2, 5, 3)))


def as_pure(state):
    """The arrays of an NNX state without their variables."""
    from flax import nnx

    return getattr(nnx, "as_pure", nnx.pure)(state)  # earlier versions have only `pure`


def nnx_model():
    """Attention with a projection called value, LoRA, BatchNorm, Dropout and a tied head."""
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.ln = nnx.LayerNorm(8, rngs=rngs)
            self.bn = nnx.BatchNorm(8, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(8, 8, rngs=rngs)
            self.blocks = nnx.List([Block(rngs)])
            self.lora = nnx.LoRA(8, 2, 8, rngs=rngs)
            self.head = nnx.Linear(8, 8, rngs=rngs)
            self.head.kernel = self.embed.embedding
            self.cls_token = nnx.Param(jnp.zeros((1, 1, 8)))

    return nnx.eval_shape(lambda: Model(nnx.Rngs(0)))


def nnx_stack():
    """Layers stacked by vmap."""
    from flax import nnx

    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.ln = nnx.LayerNorm(8, rngs=rngs)
            self.up = nnx.Linear(8, 16, rngs=rngs)

    class Stack(nnx.Module):
        def __init__(self):
            create = nnx.vmap(lambda key: Layer(nnx.Rngs(key)), in_axes=0, out_axes=0)
            self.stack = create(jax.random.split(KEY, 3))

    return nnx.eval_shape(Stack)


def _haiku_params(function, *inputs):
    import haiku as hk

    with jax.numpy_rank_promotion("allow"):
        params, _ = jax.eval_shape(hk.transform_with_state(function).init, KEY, *inputs)
    return params


def haiku_model():
    """MLP, attention, BatchNorm with leading axes of one, an embedding and raw parameters."""
    import haiku as hk

    def model(tokens):
        x = hk.Embed(10, 8)(tokens)
        x = x + hk.get_parameter("pos_embs", (5, 8), init=jnp.zeros)
        x = x * hk.get_parameter("temperature", (), init=jnp.ones)
        x = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.Constant(0.0))(x, x, x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
        x = hk.LayerNorm(-1, True, True)(x)
        return hk.nets.MLP([16, 4])(x)

    return _haiku_params(model, jnp.zeros((2, 5), int))


def haiku_stack():
    import haiku as hk

    def model(x):
        def layer(x):
            x = hk.LayerNorm(-1, True, True, name="layer_norm")(x)
            return hk.Linear(8, name="ff")(x)

        return hk.experimental.layer_stack(3)(layer)(x)

    return _haiku_params(model, jnp.zeros((2, 8)))


def _equinox_params(build):
    import equinox as eqx

    model = eqx.filter_eval_shape(build)
    return eqx.filter(model, lambda leaf: hasattr(leaf, "shape") and hasattr(leaf, "dtype"))


def equinox_model():
    """One of each, most of them with a `weight`."""
    import equinox as eqx

    class PreNorm(eqx.Module):
        norm: eqx.nn.LayerNorm
        body: eqx.nn.Linear

    def build():
        nn = eqx.nn
        return {
            "attn": nn.MultiheadAttention(2, 8, use_query_bias=True, key=KEY),
            "conv": nn.Conv2d(3, 8, 3, key=KEY),
            "embed": nn.Embedding(10, 8, key=KEY),
            "pos_embed": nn.Embedding(5, 8, key=KEY),
            "gru": nn.GRUCell(3, 8, key=KEY),
            "ln_chw": nn.LayerNorm((8, 4, 4)),
            "mlp": nn.MLP(2, 2, 4, 1, key=KEY),
            "norm_of_linear": PreNorm(nn.LayerNorm(8), nn.Linear(8, 8, key=KEY)),
            "patch_embed": nn.Conv2d(3, 8, 4, key=KEY),
            "prelu": nn.PReLU(0.1),
            "rms": nn.RMSNorm(8),
            "wn": nn.WeightNorm(nn.Linear(3, 4, key=KEY)),
        }

    return _equinox_params(build)


def equinox_batch_norm():
    """With its running statistics in the tree, as they are without `make_with_state`."""
    import equinox as eqx

    return _equinox_params(lambda: {"bn": eqx.nn.BatchNorm(8, "batch", mode="ema")})


def equinox_stack():
    """Layers stacked by filter_vmap: only the container tells the norm from the matrix."""
    import equinox as eqx

    def layer(key):
        return eqx.nn.Sequential([eqx.nn.Linear(8, 8, key=key), eqx.nn.LayerNorm(8)])

    return _equinox_params(lambda: {"seq": eqx.filter_vmap(layer)(jax.random.split(KEY, 3))})
