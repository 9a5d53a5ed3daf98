"""Keras' optimizers and regularizers, by Keras' own names and defaults; see `wdjax.convert`."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import optax

from wdjax._trees import checks
from wdjax._trees.paths import Leaf
from wdjax.convert import _update_rules
from wdjax.convert._pieces import (
    Build,
    Converted,
    Piece,
    Settings,
    check_known,
    check_numbers,
    converted,
    given,
    in_the_gradient,
    is_zero,
    on_the_weights,
    rate,
)
from wdjax.penalties import l1 as lasso
from wdjax.rules import EVERYTHING, Rules
from wdjax.schedules import Strength

KERNELS: Rules = (("kernel", 1.0), ("**", 0.0))
_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
_LEFT_OUT = ("name", "loss_scale_factor", "ema_momentum", "ema_overwrite_frequency")
_NO_EQUAL = {
    "use_ema": "Nearest: average = optax.incremental_update(params, average, 1 - ema_momentum) "
    "after every step.",
    "gradient_accumulation_steps": "Nearest: optax.MultiSteps(optimizer, steps); its schedules "
    "count the updates, those of Keras the batches.",
}


def keras_sgd(
    *,
    learning_rate: Strength = 0.01,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: Strength | None = None,
    exclude_from_weight_decay: Sequence[str] = (),
    rules: Rules = EVERYTHING,
    **common: Any,
) -> Converted:
    """Equivalent of `keras.optimizers.SGD`, whose weight decay is decoupled: SGDW.

        b ← μ b − η g,  θ⁺ = (1 − η λ) θ + b

    Args:
        learning_rate: η, a number or a schedule of the step. Each step enters the momentum with the
            rate of its own time; in PyTorch the rate multiplies the momentum.
        momentum: μ in [0, 1].
        nesterov: step along μ b − η g.
        weight_decay: λ, None for none.
        exclude_from_weight_decay: Keras' `var_names`: regular expressions searched in the last
            segment of a path, such as "bias".
        rules: multipliers of the weight decay for the rest. Keras decays everything.
        **common: clipnorm, clipvalue or global_clipnorm; name, loss_scale_factor, ... change no
            step; use_ema and gradient_accumulation_steps have no equivalent here.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range or has no equivalent.

    Example:
        >>> print(keras_sgd(momentum=0.9, weight_decay=0.1, exclude_from_weight_decay=["bias"]))
        keras.optimizers.SGD
          learning_rate=0.01
            → optax.scale_by_learning_rate(0.01)
          momentum=0.9, nesterov=False
            → optax.trace(0.9), after the learning rate
          weight_decay=0.1
            → wdjax.decay_weights(wdjax.lr_scaled(0.1, 0.01), rules=('bias': 0.0, '**': 1.0)): ...

    References:
        Keras 3.15, `keras/src/optimizers/sgd.py` and `base_optimizer.py`.
    """
    return _converted("SGD", _sgd, locals())


def keras_adam(
    *,
    learning_rate: Strength = 1e-3,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    amsgrad: bool = False,
    weight_decay: Strength | None = None,
    exclude_from_weight_decay: Sequence[str] = (),
    rules: Rules = EVERYTHING,
    **common: Any,
) -> Converted:
    """Equivalent of `keras.optimizers.Adam`, whose weight decay is decoupled: AdamW.

        θ⁺ = (1 − η λ) θ − η m̂ / (√v̂ + ε / √(1 − β₂^t))

    Args:
        learning_rate: η, a number or a schedule of the step.
        beta_1: β₁ in [0, 1).
        beta_2: β₂ in [0, 1).
        epsilon: ε, which Keras adds before it corrects the bias of √v.
        amsgrad: the largest v so far in place of v, before its bias is corrected.
        weight_decay: λ, None for none.
        exclude_from_weight_decay: names, as in `keras_sgd`.
        rules: multipliers of the weight decay for the rest. Keras decays everything.
        **common: clipnorm and others, as in `keras_sgd`.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range or has no equivalent.

    Example:
        >>> print(keras_adam())
        keras.optimizers.Adam
          beta_1=0.9, beta_2=0.999, epsilon=1e-07, amsgrad=False
            → Adam with ε added before the bias is corrected; optax.scale_by_adam has it after
          learning_rate=0.001
            → optax.scale_by_learning_rate(0.001)
          weight_decay=None
            → nothing: no decay

    References:
        Keras 3.15, `keras/src/optimizers/adam.py`; Kingma and Ba, *Adam*, 2015, arXiv:1412.6980,
        section 2, the more efficient order at its end.
    """
    return _converted("Adam", _adam, locals())


def keras_adamw(
    *,
    learning_rate: Strength = 1e-3,
    weight_decay: Strength = 0.004,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    amsgrad: bool = False,
    exclude_from_weight_decay: Sequence[str] = (),
    rules: Rules = EVERYTHING,
    **common: Any,
) -> Converted:
    """Equivalent of `keras.optimizers.AdamW`: Keras' Adam with another default of the decay.

        θ⁺ = (1 − η λ) θ − η m̂ / (√v̂ + ε / √(1 − β₂^t))

    Args:
        learning_rate: η, a number or a schedule of the step.
        weight_decay: λ.
        beta_1: β₁ in [0, 1).
        beta_2: β₂ in [0, 1).
        epsilon: ε, which Keras adds before it corrects the bias of √v.
        amsgrad: the largest v so far in place of v, before its bias is corrected.
        exclude_from_weight_decay: names, as in `keras_sgd`.
        rules: multipliers of the weight decay for the rest. Keras decays everything.
        **common: clipnorm and others, as in `keras_sgd`.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range or has no equivalent.

    Example:
        >>> print(keras_adamw().parts[0][1][-1].meaning)
        wdjax.decay_weights(wdjax.lr_scaled(0.004, 0.001), rules=everything): on the weights, ...

    References:
        Keras 3.15, `keras/src/optimizers/adamw.py`.
    """
    return _converted("AdamW", _adam, locals())


def keras_nadam(
    *,
    learning_rate: Strength = 1e-3,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: Strength | None = None,
    exclude_from_weight_decay: Sequence[str] = (),
    rules: Rules = EVERYTHING,
    **common: Any,
) -> Converted:
    """Equivalent of `keras.optimizers.Nadam`: PyTorch's, with `momentum_decay=1`.

        μ_t = β₁ (1 − ½ 0.96^t),  the step looks ahead along μ_{t+1} m + (1 − μ_t) g

    Args:
        learning_rate: η, a number or a schedule of the step.
        beta_1: β₁ in [0, 1).
        beta_2: β₂ in [0, 1).
        epsilon: ε, outside the root.
        weight_decay: λ, on the weights; None for none.
        exclude_from_weight_decay: names, as in `keras_sgd`.
        rules: multipliers of the weight decay for the rest. Keras decays everything.
        **common: clipnorm and others, as in `keras_sgd`.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range or has no equivalent.

    Example:
        >>> print(keras_nadam().parts[0][1][0].meaning)
        Dozat's schedule of the momentum, 0.96^t; not optax.nadam, which has a constant one

    References:
        Keras 3.15, `keras/src/optimizers/nadam.py`; Dozat, *Incorporating Nesterov Momentum into
        Adam*, 2016.
    """
    return _converted("Nadam", _nadam, locals())


def keras_adagrad(
    *,
    learning_rate: Strength = 1e-3,
    initial_accumulator_value: float = 0.1,
    epsilon: float = 1e-7,
    weight_decay: Strength | None = None,
    exclude_from_weight_decay: Sequence[str] = (),
    rules: Rules = EVERYTHING,
    **common: Any,
) -> Converted:
    """Equivalent of `keras.optimizers.Adagrad`, which is Optax's.

        a ← a + g²,  θ⁺ = (1 − η λ) θ − η g / √(a + ε)

    Args:
        learning_rate: η, a number or a schedule of the step.
        initial_accumulator_value: a at the start.
        epsilon: ε, inside the root.
        weight_decay: λ, on the weights; None for none.
        exclude_from_weight_decay: names, as in `keras_sgd`.
        rules: multipliers of the weight decay for the rest. Keras decays everything.
        **common: clipnorm and others, as in `keras_sgd`.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range or has no equivalent.

    Example:
        >>> print(keras_adagrad().parts[0][1][0].meaning)
        optax.scale_by_rss(0.1, 1e-07)

    References:
        Keras 3.15, `keras/src/optimizers/adagrad.py`.
    """
    return _converted("Adagrad", _adagrad, locals())


def keras_rmsprop(
    *,
    learning_rate: Strength = 1e-3,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
    centered: bool = False,
    weight_decay: Strength | None = None,
    exclude_from_weight_decay: Sequence[str] = (),
    rules: Rules = EVERYTHING,
    **common: Any,
) -> Converted:
    """Equivalent of `keras.optimizers.RMSprop`.

        v ← ρ v + (1 − ρ) g²,  b ← μ b + η g / √(v + ε),  θ⁺ = (1 − η λ) θ − b

    Args:
        learning_rate: η, a number or a schedule of the step. Each step enters the momentum with the
            rate of its own time.
        rho: ρ in [0, 1).
        momentum: μ in [0, 1].
        epsilon: ε, inside the root.
        centered: v − m² in place of v, with m the average gradient.
        weight_decay: λ, on the weights; None for none.
        exclude_from_weight_decay: names, as in `keras_sgd`.
        rules: multipliers of the weight decay for the rest. Keras decays everything.
        **common: clipnorm and others, as in `keras_sgd`.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of range or has no equivalent.

    Example:
        >>> print(keras_rmsprop().parts[0][1][0].meaning)
        optax.scale_by_rms(0.9, 1e-07)

    References:
        Keras 3.15, `keras/src/optimizers/rmsprop.py`.
    """
    return _converted("RMSprop", _rmsprop, locals())


def keras_l1_l2(*, l1: float = 0.0, l2: float = 0.0, rules: Rules = KERNELS) -> Converted:
    """Equivalent of `kernel_regularizer=keras.regularizers.L1L2(l1, l2)`; first in the chain.

        g ← g + l1 sign(θ) + 2 l2 θ

    Keras adds l2 ‖θ‖² to the loss, without the ½ of most texts: its l2 is half of λ.

    Args:
        l1: strength of ‖θ‖₁.
        l2: strength of ‖θ‖².
        rules: which parameters: all that are called "kernel". For one layer
            (("dense/kernel", 1.0), ("**", 0.0)), for others `bias_regularizer` accordingly.

    Returns:
        A record whose `.optimizer` adds the gradient of the regularizer and takes no step itself:
        `optax.chain(keras_l1_l2(l2=1e-4).optimizer, keras_sgd().optimizer)`, which also clips it
        as Keras does.

    Raises:
        ValueError: a strength is negative or not finite.

    Example:
        >>> print(keras_l1_l2(l2=1e-4))
        keras.regularizers.L1L2
          l1=0.0
            → nothing: no decay
          l2=0.0001
            → wdjax.add_decayed_weights(0.0002, rules=('kernel': 1.0, '**': 0.0)): in the ...

    References:
        Keras 3.15, `keras/src/regularizers/regularizers.py`. At θ = 0 its |θ| has the derivative
        1 on JAX, where sign(0) is 0.
    """
    return _regularizer("L1L2", {"l1": l1, "l2": l2}, rules)


def keras_l1(*, l1: float = 0.01, rules: Rules = KERNELS) -> Converted:
    """Equivalent of `kernel_regularizer=keras.regularizers.L1(l1)`; first in the chain.

        g ← g + l1 sign(θ)

    Args:
        l1: strength of ‖θ‖₁. Exact zeros come with `wdjax.prox_weights`, not with a gradient.
        rules: which parameters, as in `keras_l1_l2`.

    Returns:
        A record whose `.optimizer` adds the gradient, as in `keras_l1_l2`.

    Raises:
        ValueError: the strength is negative or not finite.

    Example:
        >>> print(keras_l1().parts[0][1][0].meaning)
        wdjax.add_decayed_weights(0.01, wdjax.penalties.l1, rules=('kernel': 1.0, '**': 0.0)): ...

    References:
        Keras 3.15, `keras/src/regularizers/regularizers.py`.
    """
    return _regularizer("L1", {"l1": l1}, rules)


def keras_l2(*, l2: float = 0.01, rules: Rules = KERNELS) -> Converted:
    """Equivalent of `kernel_regularizer=keras.regularizers.L2(l2)`; first in the chain.

        g ← g + 2 l2 θ

    Args:
        l2: strength of ‖θ‖², half of λ.
        rules: which parameters, as in `keras_l1_l2`.

    Returns:
        A record whose `.optimizer` adds the gradient, as in `keras_l1_l2`.

    Raises:
        ValueError: the strength is negative or not finite.

    Example:
        >>> print(keras_l2().parts[0][1][0].meaning)
        wdjax.add_decayed_weights(0.02, rules=('kernel': 1.0, '**': 0.0)): in the gradient, ...

    References:
        Keras 3.15, `keras/src/regularizers/regularizers.py`.
    """
    return _regularizer("L2", {"l2": l2}, rules)


def _converted(name: str, build: Build, arguments: Settings) -> Converted:
    """Convert from the arguments of one of the functions above, by name."""

    def decayed(s: Settings, rules: Rules) -> list[Piece]:
        setting = given(s, "weight_decay")
        decay = on_the_weights(setting, s["weight_decay"], s["learning_rate"], rules)
        return build(s, rules) + decay

    return from_keras(name, decayed, arguments)


def from_keras(name: str, build: Build, arguments: Settings) -> Converted:
    """Convert from settings with `exclude_from_weight_decay`, `rules` and `common`; clip first."""
    settings = {**arguments}
    names = ("exclude_from_weight_decay", "rules", "common")
    excluded, rules, common = (settings.pop(key) for key in names)
    source = f"keras.optimizers.{name}"
    checks.names("exclude_from_weight_decay", excluded)
    # what is None, False or 0 is switched off
    unknown = [key for key in common if key not in (*_CLIPS, *_LEFT_OUT)]
    known = [*settings, *_CLIPS, *_LEFT_OUT, *_NO_EQUAL, *names[:2]]
    check_known(source, [k for k in unknown if common[k] or k not in _NO_EQUAL], known, _NO_EQUAL)
    clips = {key: common[key] for key in _CLIPS if common.get(key) is not None}
    left_out = {key: common[key] for key in _LEFT_OUT if common.get(key) is not None}
    rules = (*((_Called(re.compile(pattern)), 0.0) for pattern in excluded), *rules)

    def clipped(s: Settings, rules: Rules) -> list[Piece]:
        return [*_clip(clips), *build(s, rules)]

    return converted(source, clipped, settings, rules=rules, left_out=left_out)


@dataclasses.dataclass(frozen=True)
class _Called:
    """Select by a regular expression in the last segment, as Keras does in a variable's name."""

    pattern: re.Pattern[str]

    def __call__(self, leaf: Leaf) -> bool:
        return self.pattern.search(leaf.name) is not None

    @property
    def __name__(self) -> str:
        return self.pattern.pattern

    def __repr__(self) -> str:
        return f"{self.pattern.pattern!r} of `exclude_from_weight_decay`"


def _clip(clips: Settings) -> list[Piece]:
    if len(clips) > 1:
        raise ValueError(f"only one of {', '.join(_CLIPS)} may be set; got {given(clips, *clips)}.")
    links = {
        "clipnorm": ("each leaf's gradient, by its own norm", _update_rules.clip_norms),
        "clipvalue": ("optax.clip", optax.clip),
        "global_clipnorm": ("optax.clip_by_global_norm", optax.clip_by_global_norm),
    }
    check_numbers(clips, *clips)
    return [
        Piece(given(clips, name), links[name][0], links[name][1](value))
        for name, value in clips.items()
        if value > 0
    ]


def _regularizer(name: str, settings: Settings, rules: Rules) -> Converted:
    def build(s: Settings, rules: Rules) -> list[Piece]:
        pieces = []
        check_numbers(s, *s)
        for key, value in s.items():
            if key == "l1":
                pieces += in_the_gradient(given(s, key), value, rules, lasso)
            else:
                pieces += in_the_gradient(given(s, key), 2 * value, rules)
        return pieces

    return converted(f"keras.regularizers.{name}", build, settings, rules=rules)


# The chains, up to the decay of the weights, which is the same for all.


def _sgd(s: Settings, rules: Rules) -> list[Piece]:
    return [_rate(s), *_momentum(s, "momentum", "nesterov")]


def _adam(s: Settings, rules: Rules) -> list[Piece]:
    check_numbers(s, "beta_1", "beta_2", below=1)
    check_numbers(s, "epsilon")
    link = _update_rules.adam(
        s["beta_1"],
        s["beta_2"],
        amsgrad=s["amsgrad"],
        denominator=lambda root, c: (root + s["epsilon"]) / c,
    )
    meaning = "Adam with ε added before the bias is corrected; optax.scale_by_adam has it after"
    return [Piece(given(s, "beta_1", "beta_2", "epsilon", "amsgrad"), meaning, link), _rate(s)]


def _nadam(s: Settings, rules: Rules) -> list[Piece]:
    check_numbers(s, "beta_1", "beta_2", below=1)
    check_numbers(s, "epsilon")
    link = _update_rules.nadam(s["beta_1"], s["beta_2"], s["epsilon"], 1.0)
    meaning = "Dozat's schedule of the momentum, 0.96^t; not optax.nadam, which has a constant one"
    return [Piece(given(s, "beta_1", "beta_2", "epsilon"), meaning, link), _rate(s)]


def _adagrad(s: Settings, rules: Rules) -> list[Piece]:
    initial, epsilon = s["initial_accumulator_value"], s["epsilon"]
    check_numbers(s, "initial_accumulator_value", "epsilon")
    setting = given(s, "initial_accumulator_value", "epsilon")
    meaning = f"optax.scale_by_rss({initial}, {epsilon})"
    return [Piece(setting, meaning, optax.scale_by_rss(initial, epsilon)), _rate(s)]


def _rmsprop(s: Settings, rules: Rules) -> list[Piece]:
    check_numbers(s, "rho", below=1)
    check_numbers(s, "epsilon")
    scale = optax.scale_by_stddev if s["centered"] else optax.scale_by_rms
    meaning = f"optax.{scale.__name__}({s['rho']}, {s['epsilon']})"
    link = scale(s["rho"], s["epsilon"])
    scaled = Piece(given(s, "rho", "epsilon", "centered"), meaning, link)
    return [scaled, _rate(s), *_momentum(s, "momentum")]


def _rate(s: Settings) -> Piece:
    return rate(given(s, "learning_rate"), s["learning_rate"])


def _momentum(s: Settings, *names: str) -> list[Piece]:
    """μ, of steps that the learning rate has scaled."""
    momentum, nesterov = s["momentum"], s.get("nesterov", False)
    check_numbers(s, "momentum", most=1)
    if is_zero(momentum):
        return []
    code = f"optax.trace({momentum}{', nesterov=True' if nesterov else ''})"
    link = optax.trace(momentum, nesterov=nesterov)
    return [Piece(given(s, *names), f"{code}, after the learning rate", link)]
