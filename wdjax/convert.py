"""Settings of other frameworks, exactly reproduced: PyTorch, Keras, timm, the AdamW paper.

Each function takes the settings of its source by their names there, with the defaults from there,
and returns the equal optimiser with an explanation: `record.optimizer` and `print(record)`.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import optax

from wdjax.conversions import (
    Converted,
    Groups,
    Piece,
    Settings,
    adam,
    check_below_one,
    check_known,
    check_list,
    check_numbers,
    converted,
    decay,
    given,
    rate,
    shown,
)
from wdjax.convert_keras import (
    keras_adagrad,
    keras_adam,
    keras_adamw,
    keras_l1,
    keras_l1_l2,
    keras_l2,
    keras_nadam,
    keras_rmsprop,
    keras_sgd,
)
from wdjax.convert_muon import torch_muon
from wdjax.convert_torch import (
    torch_adagrad,
    torch_adam,
    torch_adamw,
    torch_nadam,
    torch_rmsprop,
    torch_sgd,
)
from wdjax.kinds import Kind
from wdjax.paths import Leaf
from wdjax.rules import Rules, Selector, check_rules
from wdjax.scaling import from_normalized
from wdjax.schedules import Schedule, Strength, as_schedule, check_scalar, schedule_scaled
from wdjax.transforms import EVERYTHING, decay_weights

__all__ = [
    "Converted",
    "keras_adagrad",
    "keras_adam",
    "keras_adamw",
    "keras_l1",
    "keras_l1_l2",
    "keras_l2",
    "keras_nadam",
    "keras_rmsprop",
    "keras_sgd",
    "paper_adamw",
    "paper_normalized",
    "paper_sgdw",
    "timm_layer_decay",
    "timm_weight_decay",
    "torch_adagrad",
    "torch_adam",
    "torch_adamw",
    "torch_muon",
    "torch_nadam",
    "torch_rmsprop",
    "torch_sgd",
]

_FALLBACK = "Give those parameters an optimizer of their own with optax.partition."
_NO_EQUAL = {
    "no_opt_scale": "Nearest: optax.freeze(mask) after the optimizer, for the lowest layers.",
    "fallback_list": _FALLBACK,
    "fallback_no_weight_decay": _FALLBACK,
}


# timm: which parameters decay, and at which rates layers learn.


def timm_weight_decay(
    *,
    no_weight_decay_list: Sequence[str] = (),
    weight_decay_exclude_1d: bool = True,
    **unknown: Any,
) -> Rules:
    """Rules that decay what timm's `param_groups_weight_decay` decays.

        m = 0 for ndim ≤ 1, for names ending in "bias" and for the list, else 1

    λ itself belongs to the optimiser: `torch_adamw(weight_decay=0.05, rules=...)`. Where layers
    are stacked for a scan, gains have two axes and this decays them; `wdjax.standard()` does not.

    Args:
        no_weight_decay_list: names as timm has them, from the root and with dots, `*` spanning
            any number of segments: "pos_embed", "blocks.*.gamma". Each must match a parameter.
        weight_decay_exclude_1d: False decays vectors and biases, too.
        **unknown: fallback_list and fallback_no_weight_decay have no equal here.

    Returns:
        Rules, for any `rules` here.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting has no equal; at `init`, a name matches nothing.

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
        **unknown: no_opt_scale and the fallback lists have no equal here; the decay of the
            weights is the business of `timm_weight_decay`.

    Returns:
        Groups for the functions of this module: `torch_adamw(groups=timm_layer_decay(...),
        rules=timm_weight_decay())`. The smaller rate also slows the decay, as in timm, which
        decays biases of two axes here, though not in its other function.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range or has no equal.

    Example:
        >>> timm_layer_decay(["stem/**", "block_0/**"], layer_decay=0.5)
        (('stem/**', {'lr_scale': 0.25}), ('block_0/**', {'lr_scale': 0.5}))

    References:
        timm 1.0.31, `timm/optim/_param_groups.py`; Bao et al., *BEiT*, 2021, arXiv:2106.08254.
    """
    known = ["layers", "layer_decay", "min_scale"]
    check_known("timm.optim.param_groups_layer_decay", unknown, known, _NO_EQUAL)
    check_list("layers", layers)
    check_scalar("layer_decay", layer_decay, most=1.0)
    check_scalar("min_scale", min_scale)
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


# The AdamW paper: decay follows the schedule's shape, not its height.


def paper_adamw(
    *,
    weight_decay: float,
    alpha: float = 1e-3,
    eta: Strength = 1.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    rules: Rules = EVERYTHING,
    **unknown: Any,
) -> Converted:
    """AdamW as its paper has it, which is not PyTorch's: λ is not multiplied by α.

        θ⁺ = θ − η_t (α m̂ / (√v̂ + ε) + λ θ)

    Args:
        weight_decay: λ, the fraction taken off in a step at η_t = 1. PyTorch's is λ/α.
        alpha: α, the initial learning rate.
        eta: η_t, the schedule multiplier: a number or a schedule, 1 at its peak.
        beta_1: β₁ in [0, 1).
        beta_2: β₂ in [0, 1).
        epsilon: ε, outside of the root.
        rules: multipliers of the weight decay. The paper decays everything.
        **unknown: there are no others.

    Returns:
        The optimiser, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range.

    Example:
        >>> print(paper_adamw(weight_decay=2.5e-4))
        AdamW, Algorithm 2 of its paper
          beta_1=0.9, beta_2=0.999, epsilon=1e-08
            → optax.scale_by_adam(0.9, 0.999, eps=1e-08)
          alpha=0.001, eta=1.0
            → optax.scale_by_learning_rate(0.001)
          weight_decay=0.00025
            → wdjax.decay_weights(wdjax.schedule_scaled(0.00025, 0.001, peak=0.001), ...): ...

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019, arXiv:1711.05101,
        Algorithm 2.
    """
    return _paper("AdamW, Algorithm 2 of its paper", _adamw, locals())


def paper_sgdw(
    *,
    weight_decay: float,
    alpha: float = 1e-3,
    eta: Strength = 1.0,
    beta_1: float = 0.9,
    rules: Rules = EVERYTHING,
    **unknown: Any,
) -> Converted:
    """SGDW as its paper has it: λ is not multiplied by α, and the momentum holds its rates.

        m ← β₁ m + η_t α g,  θ⁺ = θ − m − η_t λ θ

    Args:
        weight_decay: λ, the fraction taken off in a step at η_t = 1.
        alpha: α, the initial learning rate.
        eta: η_t, the schedule multiplier: a number or a schedule, 1 at its peak.
        beta_1: β₁ in [0, 1).
        rules: multipliers of the weight decay. The paper decays everything.
        **unknown: there are no others.

    Returns:
        The optimiser, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range.

    Example:
        >>> print(paper_sgdw(weight_decay=2.5e-4, alpha=0.05).parts[0][1][0].meaning)
        optax.scale_by_learning_rate(0.05)

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019, arXiv:1711.05101,
        Algorithm 1.
    """
    return _paper("SGDW, Algorithm 1 of its paper", _sgdw, locals())


def paper_normalized(
    *, weight_decay: float, batch_size: int, examples: int, epochs: int, **others: Any
) -> Converted:
    """`paper_adamw` from the paper's normalized weight decay.

        λ = λ_norm √(b / (B T))

    Args:
        weight_decay: λ_norm (the paper: 0.025 to 0.05).
        batch_size: b, in examples.
        examples: B, the size of the training set.
        epochs: T, the length of the run; with warm restarts, of the current one.
        **others: of `paper_adamw`.

    Returns:
        The optimiser, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range.

    Example:
        >>> run = {"batch_size": 128, "examples": 51_200, "epochs": 100}
        >>> print(paper_normalized(weight_decay=0.05, **run).parts[0][1][0].meaning)
        weight_decay=0.00025 per step: 0.05 √(128 / (51200 · 100))

    References:
        Loshchilov and Hutter, 2019, arXiv:1711.05101, appendix on normalized weight decay.
    """
    run = {"batch_size": batch_size, "examples": examples, "epochs": epochs}
    per_step = from_normalized(weight_decay, **run)
    record = paper_adamw(weight_decay=per_step, **others)
    meaning = (
        f"weight_decay={per_step:.6g} per step: {weight_decay} √({batch_size} / ({examples} · "
        f"{epochs}))"
    )
    settings = {"weight_decay": weight_decay, **run}
    first = Piece(given(settings, *settings), meaning)
    return dataclasses.replace(record, parts=(("", (first, *record.parts[0][1])),))


def _paper(source: str, build: Any, arguments: Settings) -> Converted:
    """Convert from the arguments of one of the functions above, by name."""
    settings = {**arguments}
    rules, unknown = settings.pop("rules"), settings.pop("unknown")
    check_known(source, unknown, [*settings, "rules"])
    as_schedule(settings["eta"], "eta")
    if callable(settings["alpha"]):
        raise TypeError("`alpha` must be a number, the height of the step; a schedule is `eta`.")
    check_numbers(settings, "alpha", "weight_decay")
    return converted(source, build, settings, rules=rules)


def _adamw(s: Settings, rules: Rules) -> list[Piece]:
    b1, b2, eps = s["beta_1"], s["beta_2"], s["epsilon"]
    check_below_one(s, "beta_1", "beta_2")
    check_numbers(s, "epsilon")
    direction = adam(given(s, "beta_1", "beta_2", "epsilon"), b1, b2, eps)
    return [direction, _paper_rate(s), *_paper_decay(s, rules)]


def _sgdw(s: Settings, rules: Rules) -> list[Piece]:
    b1 = s["beta_1"]
    check_below_one(s, "beta_1")
    momentum = Piece(given(s, "beta_1"), f"optax.trace({b1}), after the rate", optax.trace(b1))
    return [_paper_rate(s), momentum, *_paper_decay(s, rules)]


def _paper_rate(s: Settings) -> Piece:
    return rate(given(s, "alpha", "eta"), _alpha_eta(s))


def _paper_decay(s: Settings, rules: Rules) -> list[Piece]:
    setting, lam, alpha = given(s, "weight_decay"), s["weight_decay"], s["alpha"]
    law = f"wdjax.schedule_scaled({shown(lam)}, {shown(_alpha_eta(s))}, peak={shown(alpha)})"
    link = decay_weights(schedule_scaled(lam, _alpha_eta(s), alpha), rules=rules)
    return [decay(setting, lam, f"wdjax.decay_weights({law}, ...): on the weights", link)]


def _alpha_eta(s: Settings) -> float | Schedule:
    alpha, eta = s["alpha"], s["eta"]
    if not callable(eta):
        constant: float = alpha * eta
        return constant

    def scaled(count: Any) -> Any:
        return alpha * eta(count)

    scaled.__name__ = f"{shown(alpha)} * {shown(eta).strip('<>')}"
    return scaled
