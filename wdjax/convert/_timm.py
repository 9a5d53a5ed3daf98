"""timm's rates at which layers learn; see `wdjax.convert`. What decays is `wdjax.like.timm`."""

from collections.abc import Sequence
from typing import Any

from wdjax._trees import checks
from wdjax.convert._pieces import Groups, check_known
from wdjax.rules import Selector

_FALLBACK = "Give those parameters an optimizer of their own with optax.partition."
_NO_EQUAL = {
    "no_opt_scale": "Nearest: optax.freeze(mask) after the optimizer, for the lowest layers.",
    "fallback_list": _FALLBACK,
    "fallback_no_weight_decay": _FALLBACK,
}


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
            of the weights use `wdjax.like.timm`.

    Returns:
        Groups for the functions of this module: `torch_adamw(groups=timm_layer_decay(...),
        rules=wdjax.like.timm())`. The smaller rate also slows the decay, as in timm, which
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
    checks.names("layers", layers)
    checks.number("layer_decay", layer_decay, least=0, most=1)
    checks.number("min_scale", min_scale, least=0)
    top = len(layers)
    return tuple(
        (selector, {"lr_scale": max(min_scale, layer_decay ** (top - i))})
        for i, selector in enumerate(layers)
    )
