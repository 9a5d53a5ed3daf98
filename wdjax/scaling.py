"""How λ changes with the batch, the data, the learning rate and the width.

Small functions of numbers, which may be arrays and may be traced. They keep what a good λ did
elsewhere: its averaging timescale, or the fraction that it takes off in a step.
"""

import re
from typing import Any

import jax

from wdjax._trees import checks, paths
from wdjax._trees.kinds import Kind
from wdjax.rules import Rules, owners, resolve, standard

STANDARD: Rules = standard()


def timescale_to_weight_decay(timescale: Any, learning_rate: Any) -> Any:
    """Weight decay that makes AdamW's weights average their updates over a given time.

        λ = 1 / (η τ)

    Under s = η λ the weights are an exponential moving average of their updates, with this
    timescale. It is in steps; from epochs multiply by the steps of an epoch, τ = τ_epoch N/B, from
    a fraction of the run by its steps, τ = τ_EMA D/B.

    Args:
        timescale: τ > 0, in steps.
        learning_rate: η > 0, usually the peak.

    Returns:
        λ, for `lr_scaled`.

    Raises:
        ValueError: τ or η is not a finite number > 0.

    Example:
        >>> timescale_to_weight_decay(20_000, learning_rate=5e-4)
        0.1

    References:
        Wang and Aitchison, *How to set AdamW's weight decay as you scale model and dataset
        size*, 2024, arXiv:2405.13698.
    """
    _check_positive(timescale=timescale, learning_rate=learning_rate)
    return 1 / (learning_rate * timescale)


def weight_decay_to_timescale(weight_decay: Any, learning_rate: Any) -> Any:
    """Number of steps over which AdamW's weights average their updates.

        τ = 1 / (η λ)

    Divide by the steps of an epoch for τ_epoch, by the steps of the run for τ_EMA = B / (η λ D).

    Args:
        weight_decay: λ > 0, as for `lr_scaled`.
        learning_rate: η > 0, usually the peak.

    Returns:
        τ, in steps.

    Raises:
        ValueError: λ or η is not a finite number > 0.

    Example:
        >>> weight_decay_to_timescale(0.1, learning_rate=5e-4)
        20000.0

    References:
        Wang and Aitchison, *How to set AdamW's weight decay as you scale model and dataset
        size*, 2024, arXiv:2405.13698.
    """
    _check_positive(weight_decay=weight_decay, learning_rate=learning_rate)
    return 1 / (learning_rate * weight_decay)


def at_constant_timescale(
    weight_decay: Any, *, batch: Any = 1.0, data: Any = 1.0, learning_rate: Any = 1.0
) -> Any:
    """Weight decay for another batch, amount of data or learning rate, at the same timescale.

        λ = λ₀ (B/B₀) / ((D/D₀) (η/η₀))

    It keeps τ_EMA = B / (η λ D), the share of the data over which weights average: λ is
    proportional to B, and to 1/D. With η/η₀ = √(B/B₀) it is nanochat's rule, λ₀ √(B/B₀) D₀/D.

    Args:
        weight_decay: λ₀ >= 0, as for `lr_scaled`.
        batch: B/B₀ > 0, the new batch size relative to the old one.
        data: D/D₀ > 0, the new amount of training data (examples or tokens) relative to the old.
        learning_rate: η/η₀ > 0, the new learning rate relative to the old one.

    Returns:
        λ.

    Raises:
        ValueError: a ratio is not a finite number > 0, or λ₀ is negative.

    Example:
        >>> at_constant_timescale(0.1, batch=4.0)
        0.4
        >>> at_constant_timescale(0.1, batch=4.0, learning_rate=2.0, data=2.0)
        0.1

    References:
        Wang and Aitchison, 2024, arXiv:2405.13698; Bergsma et al., *Power Lines*, 2025,
        arXiv:2505.13738 (τ_EMA).
    """
    checks.number("weight_decay", weight_decay, least=0, many=True)
    _check_positive(batch=batch, data=data, learning_rate=learning_rate)
    return weight_decay * batch / (data * learning_rate)


def from_normalized(weight_decay: Any, *, batch_size: Any, examples: Any, epochs: Any) -> Any:
    """Weight decay from Loshchilov and Hutter's normalized one, for runs of different length.

        λ = λ_norm √(b / (B T))

    Args:
        weight_decay: λ_norm >= 0.
        batch_size: b > 0, in examples.
        examples: B > 0, the size of the training set.
        epochs: T > 0, the length of the run.

    Returns:
        λ, for `schedule_scaled`: the paper's decay follows the schedule, not its height.

    Raises:
        ValueError: λ_norm is negative, or another number is not finite and > 0.

    Example:
        >>> from_normalized(0.05, batch_size=128, examples=51_200, epochs=100)
        0.00025

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019, arXiv:1711.05101,
        appendix on normalized weight decay.
    """
    checks.number("weight_decay", weight_decay, least=0, many=True)
    _check_positive(batch_size=batch_size, examples=examples, epochs=epochs)
    return weight_decay * (batch_size / (examples * epochs)) ** 0.5


def width_ratios(base: Any, scaled: Any, *, fan_in: int | None = None) -> Rules:
    """How much wider each hidden matrix is than in the base model, as (path, m) pairs.

        m = fan-in / fan-in of the base  where two or more axes grew,  1 elsewhere

    What grew along one axis only is "vector-like" in the words of μP: biases, gains, embedding
    tables, the first and the last matrix. Shapes decide, so `jax.eval_shape` is enough.

    Args:
        base: the parameters of the base model; arrays or ShapeDtypeStructs.
        scaled: those of the model to train, with the same paths.
        fan_in: the axis that counts a matrix's inputs: -2 in Flax and Haiku, -1 in Equinox; an
            axis, also for stacked layers. None requires all axes that grew to agree.

    Returns:
        Rules that give m, to print, edit and pass to `width_rules`.

    Raises:
        ValueError: the models have different paths or ranks, the axes that grew disagree while
            `fan_in` is None, or a matrix has no axis `fan_in`.

    Example:
        >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
        >>> base = {"in": shape(3, 64), "hidden": shape(64, 64), "out": shape(64, 10)}
        >>> scaled = {"in": shape(3, 256), "hidden": shape(256, 256), "out": shape(256, 10)}
        >>> width_ratios(base, scaled)
        (('/hidden', 4.0), ('**', 1.0))

    References:
        Yang et al., *Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter
        Transfer*, 2022, arXiv:2203.03466, Table 8 (hidden weights).
    """
    _check_same_model(base, scaled)
    pairs = zip(paths.leaves(base), paths.leaves(scaled), strict=True)
    found = [(wide.path, _growth(narrow.shape, wide.shape, fan_in)) for narrow, wide in pairs]
    unclear = [repr(path) for path, ratio in found if ratio is None]
    if unclear:
        raise ValueError(
            "`fan_in` must say which axis counts the inputs where axes grew by different factors; "
            f"got {fan_in} for {paths.listed(unclear)}. Pass the axis, -2 in Flax and Haiku, -1 "
            "in Equinox, or write (path, m) pairs by hand."
        )
    hidden = tuple((_exactly(path), ratio) for path, ratio in found if ratio and ratio != 1)
    return (*hidden, ("**", 1.0))


def width_rules(widths: Rules, params: Any, *, power: float, rules: Rules = STANDARD) -> Rules:
    """Rules whose multipliers follow the width of each matrix.

        multiplier ← multiplier · m^p

    The power depends on *where the decay is applied*, and the usual names are ambiguous. Where
    hidden matrices have the learning rate η/m, as in μP with Adam:

        wanted                             decay before the rate     decay last, after it
                                           of each matrix            (`decay_weights`, `decayed`)
        s = ηλ at every width (MuAdam)     p = 1                     p = 0
        s ∝ m^(−½) (Fan et al.)            p = ½                     p = −½
        s = ηλ/m, λ left alone             p = 0                     p = −1

    The last row is what MuAdam does with `decoupled_wd=True`: the flag means "do not scale λ",
    meant for decay that is not multiplied by the learning rate.

    Args:
        widths: rules that give m > 0: from `width_ratios`, or your own, such as
            `(("blocks/**/kernel", 4.0), ("**", 1.0))`. m may be traced.
        params: the parameters of the model to train; arrays or ShapeDtypeStructs.
        power: p, as in the table.
        rules: (selector, multiplier) pairs to build on.

    Returns:
        Rules for that model: a path with its multiplier for every matrix that changes, then what
        is left of `rules`.

    Raises:
        RuleError: `widths` or `rules` do not fit the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"hidden": {"kernel": jnp.ones((256, 256)), "bias": jnp.ones(256)}}
        >>> rules = width_rules((("kernel", 4.0), ("**", 1.0)), params, power=-0.5)
        >>> resolve(rules, params)
        {'hidden': {'bias': 0.0, 'kernel': 0.5}}

    References:
        Microsoft's mup, `MuAdam`; Kosson et al., *Weight Decay may matter more than muP for
        Learning Rate Transfer in Practice*, 2025, arXiv:2510.19093; Fan et al., *Robust Layerwise
        Scaling Rules by Proper Weight Decay Tuning*, 2025, arXiv:2510.15262 (√(η/λ) d^0.75 is held
        fixed). The rules disagree on what to hold fixed, so the power has no default.
    """
    leaves = paths.leaves(params)
    own = owners(rules, params)
    factors = [m**power for m in jax.tree.leaves(resolve(widths, params))]
    multipliers = jax.tree.leaves(resolve(rules, params))
    changed = [
        not (_is(factor, 1.0) or _is(multiplier, 0.0))
        for factor, multiplier in zip(factors, multipliers, strict=True)
    ]
    rows = zip(leaves, multipliers, factors, changed, strict=True)
    pairs = tuple((_exactly(leaf.path), m * factor) for leaf, m, factor, new in rows if new)
    emptied = set(own) - {i for i, new in zip(own, changed, strict=True) if not new}
    rest = (rule for i, rule in enumerate(rules) if i not in emptied or isinstance(rule[0], Kind))
    return (*pairs, *rest)


def _growth(base: tuple[int, ...], scaled: tuple[int, ...], fan_in: int | None) -> float | None:
    """Return m of one leaf, or None where the axes do not tell."""
    ratios = [new / old if old else 1.0 for old, new in zip(base, scaled, strict=True)]
    grown = {ratio for ratio in ratios if ratio != 1}
    if sum(ratio != 1 for ratio in ratios) < 2:
        return 1.0
    if fan_in is not None:
        return ratios[fan_in] if -len(ratios) <= fan_in < len(ratios) else None
    return grown.pop() if len(grown) == 1 else None


def _check_same_model(base: Any, scaled: Any) -> None:
    """Compare paths, not containers: those of Equinox carry their sizes."""
    first = [(leaf.path, leaf.ndim) for leaf in paths.leaves(base)]
    second = [(leaf.path, leaf.ndim) for leaf in paths.leaves(scaled)]
    if first != second:
        differing = [repr(path) for path, _ in sorted(set(first) ^ set(second))]
        raise ValueError(
            "`scaled` must have the paths and ranks of `base`; they differ in "
            f"{paths.listed(dict.fromkeys(differing))}. Only sizes may change with the width."
        )


def _exactly(path: str) -> str:
    """Return the glob that matches one path."""
    return "/" + re.sub(r"[*?\[]", r"[\g<0>]", path) if path else "**"


def _is(value: Any, number: float) -> bool:
    return isinstance(value, float) and value == number


def _check_positive(**quantities: Any) -> None:
    for name, value in quantities.items():
        advice = "Of a schedule, pass the peak." * callable(value)
        checks.number(name, value, above=0, many=True, advice=advice)
