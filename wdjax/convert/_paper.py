"""The AdamW paper's own convention, by its own names; see `wdjax.convert`."""

import dataclasses
from typing import Any

import optax

from wdjax._trees import checks
from wdjax.convert._pieces import (
    Converted,
    Piece,
    Settings,
    adam,
    check_known,
    check_numbers,
    converted,
    decay,
    given,
    rate,
    shown,
)
from wdjax.rules import EVERYTHING, Rules
from wdjax.scaling import from_normalized
from wdjax.schedules import Schedule, Strength, as_schedule, schedule_scaled
from wdjax.transforms import decay_weights


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
    """AdamW as in its paper, unlike PyTorch's: λ is not multiplied by α.

        θ⁺ = θ − η_t (α m̂ / (√v̂ + ε) + λ θ)

    Args:
        weight_decay: λ, the fraction taken off in a step at η_t = 1. PyTorch's is λ/α.
        alpha: α, the initial learning rate.
        eta: η_t, the schedule multiplier: a number or a schedule, 1 at its peak.
        beta_1: β₁ in [0, 1).
        beta_2: β₂ in [0, 1).
        epsilon: ε, outside the root.
        rules: multipliers of the weight decay. The paper decays everything.
        **unknown: refused; there are no other settings.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

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
    """SGDW as in its paper: λ is not multiplied by α, and the momentum holds its rates.

        m ← β₁ m + η_t α g,  θ⁺ = θ − m − η_t λ θ

    Args:
        weight_decay: λ, the fraction taken off in a step at η_t = 1.
        alpha: α, the initial learning rate.
        eta: η_t, the schedule multiplier: a number or a schedule, 1 at its peak.
        beta_1: β₁ in [0, 1).
        rules: multipliers of the weight decay. The paper decays everything.
        **unknown: refused; there are no other settings.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

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
        The optimizer, in `.optimizer`; print the record for the explanation.

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
    checks.number("alpha", settings["alpha"], least=0, advice="A schedule goes into `eta`.")
    check_numbers(settings, "weight_decay")
    return converted(source, build, settings, rules=rules)


def _adamw(s: Settings, rules: Rules) -> list[Piece]:
    b1, b2, eps = s["beta_1"], s["beta_2"], s["epsilon"]
    check_numbers(s, "beta_1", "beta_2", below=1)
    check_numbers(s, "epsilon")
    direction = adam(given(s, "beta_1", "beta_2", "epsilon"), b1, b2, eps)
    return [direction, _paper_rate(s), *_paper_decay(s, rules)]


def _sgdw(s: Settings, rules: Rules) -> list[Piece]:
    b1 = s["beta_1"]
    check_numbers(s, "beta_1", below=1)
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
