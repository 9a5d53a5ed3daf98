"""timm's choices of what decays, and of the rates at which layers learn; see `wdjax.convert`."""

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

from wdjax._trees import checks
from wdjax._trees.kinds import Kind
from wdjax._trees.paths import Leaf
from wdjax.convert._pieces import Groups, check_known, check_list
from wdjax.rules import Rules, Selector, check_rules

_FALLBACK = "Give those parameters an optimizer of their own with optax.partition."
_NO_EQUAL = {
    "no_opt_scale": "Nearest: optax.freeze(mask) after the optimizer, for the lowest layers.",
    "fallback_list": _FALLBACK,
    "fallback_no_weight_decay": _FALLBACK,
}


def timm_weight_decay(
    *,
    no_weight_decay_list: Sequence[str] = (),
    weight_decay_exclude_1d: bool = True,
    **unknown: Any,
) -> Rules:
    """Rules that decay what timm's `param_groups_weight_decay` decays.

        m = 0 for ndim ≤ 1, for names ending in "bias" and for the list, else 1

    λ itself belongs to the optimizer: `torch_adamw(weight_decay=0.05, rules=...)`. Where layers
    are stacked for a scan, gains have two axes and this decays them; `wdjax.standard()` does not.

    Args:
        no_weight_decay_list: names as timm has them, from the root and with dots, `*` spanning
            any number of segments: "pos_embed", "blocks.*.gamma". Each must match a parameter.
        weight_decay_exclude_1d: False decays vectors and biases, too.
        **unknown: fallback_list and fallback_no_weight_decay have no equivalent here.

    Returns:
        Rules, for any `rules` here.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting has no equivalent; at `init`, a name matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from wdjax import resolve
        >>> params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
        >>> resolve(timm_weight_decay(), params)
        {'head': {'bias': 0.0, 'kernel': 1.0}}

    References:
        timm 1.0.31, `timm/optim/_param_groups.py`.
    """
    known = ["no_weight_decay_list", "weight_decay_exclude_1d"]
    check_known("timm.optim.param_groups_weight_decay", unknown, known, _NO_EQUAL)
    check_list("no_weight_decay_list", no_weight_decay_list)
    listed: Rules = tuple((_timm_name(name), 0.0) for name in no_weight_decay_list)
    excluded: Rules = ((Kind("timm: ndim ≤ 1 or bias", _is_flat), 0.0),)
    return check_rules((*listed, *(excluded if weight_decay_exclude_1d else ()), ("**", 1.0)))


def timm_layer_decay(
    layers: Sequence[Selector],
    *,
    layer_decay: float = 0.75,
    min_scale: float = 0.0,
    **unknown: Any,
) -> Groups:
    """Groups that learn as slowly as in timm's `param_groups_layer_decay`.

        lr_scale = max(min_scale, d^(L − i)) for layer i of 0, 1, ..., L

    Args:
        layers: a selector for each layer, from the input up, as in `rules`. What none of them
            claims is layer L, the head, with scale 1.
        layer_decay: d in [0, 1].
        min_scale: the smallest scale, >= 0.
        **unknown: no_opt_scale and the fallback lists have no equivalent here; for the decay
            of the weights use `timm_weight_decay`.

    Returns:
        Groups for the functions of this module: `torch_adamw(groups=timm_layer_decay(...),
        rules=timm_weight_decay())`. The smaller rate also slows the decay, as in timm, which
        decays biases of two axes here, though not in its other function.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range or has no equivalent.

    Example:
        >>> timm_layer_decay(["stem/**", "block_0/**"], layer_decay=0.5)
        (('stem/**', {'lr_scale': 0.25}), ('block_0/**', {'lr_scale': 0.5}))

    References:
        timm 1.0.31, `timm/optim/_param_groups.py`; Bao et al., *BEiT*, 2021, arXiv:2106.08254.
    """
    known = ["layers", "layer_decay", "min_scale"]
    check_known("timm.optim.param_groups_layer_decay", unknown, known, _NO_EQUAL)
    check_list("layers", layers)
    checks.number("layer_decay", layer_decay, least=0, most=1)
    checks.number("min_scale", min_scale, least=0)
    top = len(layers)
    return tuple(
        (selector, {"lr_scale": max(min_scale, layer_decay ** (top - i))})
        for i, selector in enumerate(layers)
    )


def _timm_name(name: str) -> Selector:
    """A name of timm's as a selector: it spans segments with `*`, which globs here do not."""
    path = name.replace(".", "/")
    if not re.search(r"[*?\[]", path):
        return f"/{path}"
    return re.compile(rf"\A{fnmatch.translate(path)}")


def _is_flat(leaf: Leaf) -> bool:
    return leaf.ndim <= 1 or leaf.name == "bias"
