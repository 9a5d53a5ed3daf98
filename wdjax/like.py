"""The choice of another project, exactly: which parameters decay there, as rules.

    wdjax.adamw(3e-4, weight_decay=0.1, rules=wdjax.like.nanogpt())

Each function is the rule of one project, read from its source at the version named, with its
settings under their own names and its quirks kept. `wdjax.standard()` is what we recommend.
"""

import fnmatch
import re
from collections.abc import Sequence

from wdjax._trees import checks
from wdjax._trees.kinds import Kind
from wdjax._trees.paths import Leaf
from wdjax.rules import EVERYTHING, Rules, Selector, check_rules


def hugging_face(*, layer_norms: Sequence[Selector] = ()) -> Rules:
    """What the Trainer of transformers decays: all but biases and norms.

        m = 0 where the path says bias, layernorm, rmsnorm, norm or _norm, and in a LayerNorm

    Embeddings, positions, tokens, `norm_f`, BatchNorm's gains and the rates of state space models
    decay. A LayerNorm is known there by its class, here by the class that holds a leaf (equinox)
    or by its name (`LayerNorm_0`): name others, such as GPT-2's.

    Args:
        layer_norms: selectors of further LayerNorms, for instance ["ln_*/*"].

    Returns:
        Rules, for any `rules` here.

    Raises:
        TypeError: `layer_norms` is a text.
        RuleError: a selector is malformed; at `init`, one matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from wdjax import resolve
        >>> params = {"final_norm": {"scale": jnp.ones(2)}, "cls_token": jnp.ones((1, 1, 2))}
        >>> resolve(hugging_face(), params)
        {'cls_token': 1.0, 'final_norm': {'scale': 0.0}}

    References:
        transformers 4.57.1, `Trainer.get_decay_parameter_names`.
    """
    checks.names("layer_norms", layer_norms)
    further: Rules = tuple((selector, 0.0) for selector in layer_norms)
    kind = Kind("transformers: bias or norm", _is_bias_or_norm)
    return check_rules((*further, (kind, 0.0), *EVERYTHING))


def nanogpt() -> Rules:
    """What nanoGPT decays: all arrays with two axes or more, embeddings and positions too.

        m = 1 for ndim ≥ 2, else 0

    Where layers are stacked for a scan, biases and gains have two axes and this decays them.

    Returns:
        Rules, for any `rules` here.

    Example:
        >>> import jax.numpy as jnp
        >>> from wdjax import resolve
        >>> resolve(nanogpt(), {"wpe": jnp.ones((4, 2)), "ln_f": jnp.ones(2)})
        {'ln_f': 0.0, 'wpe': 1.0}

    References:
        karpathy/nanoGPT at 3adf61e, `GPT.configure_optimizers` in `model.py`.
    """
    return check_rules(((Kind("nanoGPT: ndim < 2", _is_flat), 0.0), *EVERYTHING))


def timm(
    *, no_weight_decay_list: Sequence[str] = (), weight_decay_exclude_1d: bool = True
) -> Rules:
    """What timm's `param_groups_weight_decay` decays.

        m = 0 for ndim ≤ 1, for names ending in "bias" and for the list, else 1

    The list comes from the model there: `model.no_weight_decay()`. Where layers are stacked for a
    scan, gains have two axes and this decays them; `wdjax.standard()` does not.

    Args:
        no_weight_decay_list: names as timm has them, from the root and with dots, `*` spanning
            any number of segments: "pos_embed", "blocks.*.gamma". Each must match a parameter.
        weight_decay_exclude_1d: False decays vectors and biases, too.

    Returns:
        Rules, for any `rules` here.

    Raises:
        TypeError: `no_weight_decay_list` is a text.
        RuleError: at `init`, a name of the list matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from wdjax import resolve
        >>> params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
        >>> resolve(timm(), params)
        {'head': {'bias': 0.0, 'kernel': 1.0}}

    References:
        timm 1.0.31, `timm/optim/_param_groups.py`.
    """
    checks.names("no_weight_decay_list", no_weight_decay_list)
    listed: Rules = tuple((_timm_name(name), 0.0) for name in no_weight_decay_list)
    flat: Rules = ((Kind("timm: ndim ≤ 1 or bias", _is_flat_or_bias), 0.0),)
    return check_rules((*listed, *(flat if weight_decay_exclude_1d else ()), *EVERYTHING))


def big_vision(*, wd_mults: Sequence[tuple[str, float]] = ((".*/kernel$", 1.0),)) -> Rules:
    """What big_vision decays: kernels and nothing else.

        m = that of the first pattern that matches the whole path, else 0

    A kernel at the root has no slash before it, so that a bare `nn.Dense` matches nothing: trained
    without decay there, an error here.

    Args:
        wd_mults: (regular expression, multiplier) pairs, as `config.wd_mults`.

    Returns:
        Rules, for any `rules` here. The law is `wdjax.schedule_scaled`: λ of big_vision follows
        the schedule's shape and not the learning rate.

    Raises:
        RuleError: at `init`, a pattern matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from wdjax import resolve
        >>> resolve(big_vision(), {"cls": jnp.ones(2), "head": {"kernel": jnp.ones((2, 2))}})
        {'cls': 0.0, 'head': {'kernel': 1.0}}

    References:
        google-research/big_vision at 0127fb6, `make` in `big_vision/optax.py`.
    """
    whole = ((re.compile(rf"\A(?:{pattern})\Z"), mult) for pattern, mult in wd_mults)
    return check_rules((*whole, ("**", 0.0)))


def maxtext(*, adamw_mask: Sequence[str] = ()) -> Rules:
    """What MaxText decays: everything, biases and gains too, unless a mask leaves it out.

        m = 0 where a pattern is found in the path, else 1

    Args:
        adamw_mask: regular expressions, as in its configuration, whose default is none. Its own
            example is ["bias", ".*norm", ".*ln.*"]: also `unnormalized/kernel`, `aln_head/kernel`.

    Returns:
        Rules, for any `rules` here.

    Raises:
        TypeError: `adamw_mask` is a text.
        RuleError: at `init`, a pattern matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from wdjax import resolve
        >>> resolve(maxtext(adamw_mask=["bias"]), {"bias": jnp.ones(2), "scale": jnp.ones(2)})
        {'bias': 0.0, 'scale': 1.0}

    References:
        AI-Hypercomputer/maxtext at e591f30, `get_adamw_mask` in `optimizers/optimizers.py`.
    """
    checks.names("adamw_mask", adamw_mask)
    masked: Rules = tuple((re.compile(p), 0.0) for p in adamw_mask)
    return check_rules((*masked, *EVERYTHING))


def megatron(*, apply_wd_to_qk_layernorm: bool = False) -> Rules:
    """What Megatron-LM decays: all but arrays of one axis and biases.

        m = 0 for ndim = 1 and for names ending in "bias", else 1

    Embeddings and scalars decay.

    Args:
        apply_wd_to_qk_layernorm: whether `q_layernorm` and `k_layernorm` decay, as in Qwen3-Next.

    Returns:
        Rules, for any `rules` here.

    Example:
        >>> import jax.numpy as jnp
        >>> from wdjax import resolve
        >>> params = {"q_layernorm": {"weight": jnp.ones(2)}, "proj": {"bias": jnp.ones((2, 2))}}
        >>> resolve(megatron(apply_wd_to_qk_layernorm=True), params)
        {'proj': {'bias': 0.0}, 'q_layernorm': {'weight': 1.0}}

    References:
        NVIDIA/Megatron-LM at d98e8a6, `get_standard_config_overrides` in
        `megatron/core/optimizer/__init__.py`.
    """
    kind = Kind("Megatron: ndim 1 or bias", _is_vector_or_bias)
    kept: Rules = ((Kind("Megatron: qk layernorm", _is_qk_layernorm), 1.0),)
    return check_rules((*(kept if apply_wd_to_qk_layernorm else ()), (kind, 0.0), *EVERYTHING))


# What the projects ask of a parameter.

_BIAS_OR_NORM = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")


def _is_bias_or_norm(leaf: Leaf) -> bool:
    is_layer_norm = any(cls.__name__ == "LayerNorm" for cls in leaf.types)
    return is_layer_norm or bool(_BIAS_OR_NORM.search(_dotted(leaf).lower()))


def _is_flat(leaf: Leaf) -> bool:
    return leaf.ndim <= 1


def _is_flat_or_bias(leaf: Leaf) -> bool:
    return leaf.ndim <= 1 or _ends_in_bias(leaf)


def _is_vector_or_bias(leaf: Leaf) -> bool:
    return leaf.ndim == 1 or _ends_in_bias(leaf)


def _ends_in_bias(leaf: Leaf) -> bool:
    return _dotted(leaf).endswith(".bias")


def _is_qk_layernorm(leaf: Leaf) -> bool:
    return "q_layernorm." in _dotted(leaf) or "k_layernorm." in _dotted(leaf)


def _dotted(leaf: Leaf) -> str:
    """The name that torch would give."""
    return ".".join(leaf.parts)


def _timm_name(name: str) -> Selector:
    """A name of timm's as a selector: it spans segments with `*`, which globs here do not."""
    path = name.replace(".", "/")
    if not re.search(r"[*?\[]", path):
        return f"/{path}"
    return re.compile(rf"\A{fnmatch.translate(path)}")
