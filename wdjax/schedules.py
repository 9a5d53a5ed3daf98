"""Functions of the step: how strongly and when.

A schedule maps an int32 step count, 0 at the first step, to a scalar. A *strength* s(t) is
dimensionless: the fraction taken off in that step. A *law* says how it follows from λ and the
learning rate η. Every argument may be a number, a schedule or a traced scalar.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlog1py

from wdjax._trees import checks

Scalar = float | int | jax.Array | np.ndarray
Schedule = Callable[[Any], Any]
Strength = Scalar | Schedule


@dataclasses.dataclass(frozen=True)
class Constant:
    """The schedule s(t) = value, kept readable so that it can be checked before training.

    Example:
        >>> Constant(0.1)(1_000)
        0.1
    """

    value: Any
    law: str = dataclasses.field(default="", repr=False, compare=False)  # that gave it, if η is in

    def __call__(self, count: Any) -> Any:
        """Return the value, whatever the step."""
        del count
        return self.value


def as_schedule(value: Strength, name: str = "strength") -> Schedule:
    """Turn a number, a traced scalar or a schedule into a schedule, and check what is known.

    Args:
        value: a number >= 0, a traced or concrete scalar array, or a schedule.
        name: the argument's name, for the message.

    Returns:
        `value` itself if it is a schedule, else `Constant(value)`.

    Raises:
        ValueError: a known value is negative or not finite.
        TypeError: `value` is neither a number nor a schedule.

    Example:
        >>> as_schedule(0.1)
        Constant(value=0.1)
    """
    check_scalar(name, value)
    if not callable(value):
        return Constant(value)
    if value in (fixed, lr_scaled, schedule_scaled, corrected, lr_squared):
        law = value.__name__
        raise TypeError(
            f"`{name}` must be a number >= 0 or a schedule; got the law {law} itself. "
            f"Call it: {law}(weight_decay, ...)."
        )
    return value


def check_scalar(name: str, value: Any, *, above: float | None = None, **limits: Any) -> None:
    """Refuse a known number out of range, by default >= 0; other schedules pass."""
    known = value.value if isinstance(value, Constant) else value
    if not callable(known):
        low: dict[str, Any] = {"least": 0} if above is None else {"above": above}
        advice = "Multipliers per parameter go into `rules`." * (np.ndim(known) > 0)
        checks.number(name, known, also="a schedule", advice=advice, **low, **limits)


def _of_step(formula: Callable[..., Any], **quantities: Strength) -> Schedule:
    """Lift a formula of numbers to schedules: evaluate each quantity at the step, then combine."""
    schedules = [as_schedule(quantity, name) for name, quantity in quantities.items()]
    if not any(map(callable, quantities.values())):
        return Constant(formula(*quantities.values()))
    return lambda count: formula(*(schedule(count) for schedule in schedules))


def _by_law(law: Any, formula: Callable[..., Any], **quantities: Strength) -> Schedule:
    """The same for a law that has η in it, which must not come in twice."""
    earlier = getattr(quantities["weight_decay"], "law", "")
    if earlier:
        raise TypeError(
            f"`weight_decay` must be λ itself; got {earlier}(λ, η), which {law.__name__} would "
            f"multiply by η again. Pass λ and law=wdjax.{earlier}, or this with law=wdjax.fixed."
        )
    schedule = _of_step(formula, **quantities)
    if isinstance(schedule, Constant):
        return dataclasses.replace(schedule, law=law.__name__)
    schedule.law = law.__name__  # type: ignore[attr-defined]
    return schedule


def _in_time(formula: Callable[..., Any], **quantities: Strength) -> Schedule:
    """Lift formula(t, *numbers) to a schedule; each number may be a schedule itself."""
    schedules = [as_schedule(quantity, name) for name, quantity in quantities.items()]
    return lambda count: formula(_time(count), *(schedule(count) for schedule in schedules))


def _time(count: Any) -> jax.Array:
    """Return the count as a float: in float32, or in float64 where jax has that enabled."""
    return jnp.asarray(count, float)


# Laws: how the strength follows from λ and the learning rate.


def fixed(weight_decay: Strength, learning_rate: Any = None) -> Schedule:
    """Strength that does not depend on the learning rate.

        s(t) = λ

    Args:
        weight_decay: λ, the fraction taken off per step, in [0, 1).
        learning_rate: ignored; present so that `fixed` can be used as a law.

    Returns:
        A schedule: count -> s.

    Example:
        >>> fixed(1e-4)(0)
        0.0001

    References:
        `optax.adafactor(weight_decay_rate=)` and "independent" decay in NVIDIA's
        Emerging-Optimizers follow this law.
    """
    del learning_rate
    return _of_step(lambda lam: lam, weight_decay=weight_decay)


def lr_scaled(weight_decay: Strength, learning_rate: Strength) -> Schedule:
    """Strength proportional to the learning rate: what PyTorch and Optax call AdamW.

        s(t) = λ η(t)

    Args:
        weight_decay: λ >= 0.
        learning_rate: η, a number or schedule.

    Returns:
        A schedule: count -> s.

    Example:
        >>> round(lr_scaled(0.1, 3e-4)(0), 10)
        3e-05

    References:
        `torch.optim.AdamW`, `optax.adamw`.
    """
    return _by_law(
        lr_scaled, lambda lam, lr: lam * lr, weight_decay=weight_decay, learning_rate=learning_rate
    )


def schedule_scaled(weight_decay: Strength, learning_rate: Strength, peak: Strength) -> Schedule:
    """Strength that follows the shape of the learning-rate schedule but not its height.

        s(t) = λ η(t) / η̄

    Args:
        weight_decay: λ, the fraction taken off per step at the peak, in [0, 1).
        learning_rate: η, a number or schedule.
        peak: η̄ > 0, the largest learning rate. Passed, never measured: a warm-up would spoil it.

    Returns:
        A schedule: count -> s.

    Raises:
        ValueError: `peak` is zero.

    Example:
        >>> schedule_scaled(1e-4, lambda count: 0.5 * 3e-4, peak=3e-4)(0)
        5e-05

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019, arXiv:1711.05101,
        Algorithm 2 (η_t there is the schedule multiplier η(t)/η̄).
    """
    check_scalar("peak", peak, above=0)
    return _by_law(
        schedule_scaled,
        lambda lam, lr, top: lam * (lr / top),
        weight_decay=weight_decay,
        learning_rate=learning_rate,
        peak=peak,
    )


def corrected(weight_decay: Strength, learning_rate: Strength, peak: Strength) -> Schedule:
    """Strength that keeps the equilibrium norm of normalized layers while η(t) changes (AdamC).

        s(t) = λ η(t)² / η̄

    Args:
        weight_decay: λ >= 0, as for `lr_scaled`; the two agree where η(t) = η̄.
        learning_rate: η, a number or schedule.
        peak: η̄ > 0, the largest learning rate. Passed, never measured.

    Returns:
        A schedule: count -> s.

    Raises:
        ValueError: `peak` is zero.

    Example:
        >>> round(corrected(0.1, lambda count: 0.5 * 1e-3, peak=1e-3)(0), 10)
        2.5e-05

    References:
        Defazio, *Why Gradients Rapidly Increase Near the End of Training*, 2025,
        arXiv:2506.02285, Algorithm 1 (AdamC).
    """
    check_scalar("peak", peak, above=0)
    return _by_law(
        corrected,
        lambda lam, lr, top: lam * lr * (lr / top),
        weight_decay=weight_decay,
        learning_rate=learning_rate,
        peak=peak,
    )


def lr_squared(weight_decay: Strength, learning_rate: Strength) -> Schedule:
    """Strength proportional to the squared learning rate, as PaLM was trained.

        s(t) = λ η(t)²

    Args:
        weight_decay: λ >= 0 (PaLM: 1.0).
        learning_rate: η, a number or schedule.

    Returns:
        A schedule: count -> s.

    Example:
        >>> round(lr_squared(1.0, 1e-2)(0), 10)
        0.0001

    References:
        Chowdhery et al., *PaLM: Scaling Language Modeling with Pathways*, 2022,
        arXiv:2204.02311, section 5.
    """
    return _by_law(
        lr_squared,
        lambda lam, lr: lam * lr * lr,
        weight_decay=weight_decay,
        learning_rate=learning_rate,
    )


# Strengths in readable units.


def from_timescale(steps: Strength) -> Schedule:
    """Strength from the number of steps over which the weights average their updates.

        s(t) = 1 / τ

    Args:
        steps: τ > 1, in steps. With AdamW, τ = 1 / (η λ); one τ shrinks an untouched weight to
            about 1/e.

    Returns:
        A schedule: count -> s.

    Raises:
        ValueError: τ <= 1, which would flip signs.

    Example:
        >>> from_timescale(1_000)(0)
        0.001

    References:
        Wang and Aitchison, *How to set AdamW's weight decay as you scale model and dataset
        size*, 2024, arXiv:2405.13698, section 3.
    """
    check_scalar("steps", steps, above=1)
    return _of_step(lambda tau: 1 / tau, steps=steps)


def from_half_life(steps: Strength) -> Schedule:
    """Strength from the number of steps in which an untouched weight halves.

        s(t) = 1 − 2^(−1/h)

    Args:
        steps: h > 0, in steps.

    Returns:
        A schedule: count -> s.

    Raises:
        ValueError: h <= 0.

    Example:
        >>> from_half_life(1)(0)
        0.5

    References:
        The closed form of (1 − s)^h = 1/2.
    """
    check_scalar("steps", steps, above=0)
    return _of_step(_half_life_strength, steps=steps)


def _half_life_strength(half_life: Any) -> Any:
    # expm1 keeps the digits that 1 − 2^(−1/h) would cancel for a long half-life
    if isinstance(half_life, int | float):
        return -math.expm1(-math.log(2) / half_life)
    return -jnp.expm1(-math.log(2) / half_life)


def target_rms(learning_rate: Strength, rms: Strength) -> Schedule:
    """Strength that holds weights under Adam-like updates at a chosen root mean square.

        s(t) = η(t)² / (2 ρ²)

    Random unit-RMS updates add η² to the mean square in each step and decay takes 2 s ρ² off;
    the two balance at RMS ρ. Valid for small s and steps that are noise of unit RMS, as are Adam's
    with its momentum counted in. Lion's steps stay correlated for longer: its weights settle at √M
    times ρ, with M from `dynamics.lion_memory`, 6.8 times for small s, so ask for ρ/√M.

    Args:
        learning_rate: η, a number or schedule.
        rms: ρ > 0, the root mean square that the weights shall have.

    Returns:
        A schedule: count -> s.

    Raises:
        ValueError: `rms` is zero.

    Example:
        >>> round(target_rms(1e-3, rms=0.1)(0), 10)
        5e-05

    References:
        Kosson, Messmer and Jaggi, *Rotational Equilibrium*, 2023, arXiv:2305.17212, Table 1
        (the equilibrium norm √(η / 2λ) solved for λ).
    """
    check_scalar("rms", rms, above=0)
    return _of_step(lambda lr, rho: lr * lr / (2 * rho * rho), learning_rate=learning_rate, rms=rms)


# Weight decay that changes during training: λ(t) for a law, or a finished strength.


def linear_ramp(init_value: Strength, end_value: Strength, steps: Strength) -> Schedule:
    """Change linearly from one value to another, then hold.

        λ(t) = λ₀ + (λ₁ − λ₀) min(t / T, 1)

    Its budget, Σ λ(t) over t < T, is λ₀ (T + 1)/2 + λ₁ (T − 1)/2, the same as `cosine_ramp`'s.

    Args:
        init_value: λ₀ >= 0, the value at step 0.
        end_value: λ₁ >= 0, the value from step T on; larger or smaller than λ₀.
        steps: T > 0, in steps.

    Returns:
        A schedule: count -> λ.

    Raises:
        ValueError: a value is negative, or T <= 0.

    Example:
        >>> ramp = linear_ramp(0.0, 0.1, steps=10)
        >>> [round(float(ramp(t)), 3) for t in (0, 5, 10, 99)]
        [0.0, 0.05, 0.1, 0.1]

    References:
        `--weight-decay-incr-style linear` of NVIDIA's Megatron-LM; `optax.linear_schedule`, with
        every argument traceable.
    """
    check_scalar("steps", steps, above=0)
    return _in_time(
        lambda t, start, end, n: _mixed(start, end, _progress(t, n)),
        init_value=init_value,
        end_value=end_value,
        steps=steps,
    )


def cosine_ramp(init_value: Strength, end_value: Strength, steps: Strength) -> Schedule:
    """Change along half a cosine from one value to another, then hold: DINO's weight decay.

        λ(t) = λ₁ + ½ (λ₀ − λ₁) (1 + cos(π min(t / T, 1)))

    Its budget, Σ λ(t) over t < T, is λ₀ (T + 1)/2 + λ₁ (T − 1)/2, the same as `linear_ramp`'s.

    Args:
        init_value: λ₀ >= 0, the value at step 0 (DINO: 0.04).
        end_value: λ₁ >= 0, the value from step T on (DINO: 0.4).
        steps: T > 0, in steps.

    Returns:
        A schedule: count -> λ. Wrap it in `warmed_up` for a linear warm-up.

    Raises:
        ValueError: a value is negative, or T <= 0.

    Example:
        >>> ramp = cosine_ramp(0.04, 0.4, steps=100)
        >>> [round(float(ramp(t)), 3) for t in (0, 50, 100, 101)]
        [0.04, 0.22, 0.4, 0.4]

    References:
        Caron et al., *Emerging Properties in Self-Supervised Vision Transformers*, 2021,
        arXiv:2104.14294, appendix; `--weight-decay-incr-style cosine` of NVIDIA's Megatron-LM is
        the same curve.
    """
    check_scalar("steps", steps, above=0)
    return _in_time(
        lambda t, start, end, n: _mixed(end, start, (1 + jnp.cos(math.pi * _progress(t, n))) / 2),
        init_value=init_value,
        end_value=end_value,
        steps=steps,
    )


def log_time(init_value: Strength, timescale: Strength) -> Schedule:
    """Decay that fades like 1/t, so that its budget grows with the logarithm of time.

        λ(t) = λ₀ / (1 + t / T_s)

    Its budget, Σ λ(t) over t < T, is λ₀ T_s (ψ(T + T_s) − ψ(T_s)) ≈ λ₀ T_s ln(1 + T / T_s), where
    ψ is the digamma function.

    Args:
        init_value: λ₀ >= 0, the value at step 0.
        timescale: T_s > 0, in steps: λ has halved at t = T_s. ADANA takes a tenth of the run.

    Returns:
        A schedule: count -> λ. ADANA's strength is `schedule_scaled(log_time(...), η, peak)`.

    Raises:
        ValueError: λ₀ is negative, or T_s <= 0.

    Example:
        >>> [round(float(log_time(0.4, timescale=100)(t)), 3) for t in (0, 100, 300)]
        [0.4, 0.2, 0.1]

    References:
        Ferbach, Paquette, Gidel, Everett and Paquette, *Logarithmic-time Schedules for Scaling
        Language Models with Momentum*, 2026, arXiv:2602.05298 (ADANA).
    """
    check_scalar("timescale", timescale, above=0)
    return _in_time(
        lambda t, start, scale: start / (1 + t / scale), init_value=init_value, timescale=timescale
    )


def warmed_up(schedule: Strength, steps: Strength) -> Schedule:
    """Rise linearly from 0 to a schedule's first value, then follow the schedule.

        λ'(t) = λ(0) t / n  for t < n,  λ(t − n) afterwards

    Its budget, Σ λ'(t) over t < T, is λ(0) (n − 1)/2 plus that of λ over T − n steps.

    Args:
        schedule: λ, a schedule or a number.
        steps: n >= 0, steps of the warm-up. They delay λ: give it T − n steps of its own.

    Returns:
        A schedule: count -> λ'.

    Raises:
        ValueError: n is negative.

    Example:
        >>> late = warmed_up(linear_ramp(0.4, 0.0, steps=4), steps=2)
        >>> [round(float(late(t)), 3) for t in range(7)]
        [0.0, 0.2, 0.4, 0.3, 0.2, 0.1, 0.0]

    References:
        `optax.warmup_cosine_decay_schedule` warms up in the same way; DINO's own helper reaches
        λ(0) one step sooner, with t / (n − 1).
    """
    after, delay = as_schedule(schedule, "schedule"), as_schedule(steps, "steps")

    def warm(count: Any) -> Any:
        n = delay(count)
        return after(jnp.maximum(jnp.asarray(count) - n, 0)) * _progress(_time(count), n)

    return warm


def delayed(strength: Strength, steps: Strength) -> Schedule:
    """Do not decay in the first n steps.

        s'(t) = 0  for t < n,  s(t) afterwards

    s keeps its own clock: a law still sees the learning rate of the step. `warmed_up` rises
    instead and moves its schedule. Its budget, Σ s'(t) over t < T, is that of s from n to T.

    Args:
        strength: s, a number or schedule.
        steps: n >= 0, the steps without decay.

    Returns:
        A schedule: count -> s'.

    Raises:
        ValueError: s or n is negative.

    Example:
        >>> [round(float(delayed(0.1, steps=2)(t)), 3) for t in range(4)]
        [0.0, 0.0, 0.1, 0.1]

    References:
        RAdam in several packages decays from step 5 on, when its variance is known; SOAP and ADOPT
        from step 1.
    """
    formula = lambda t, n, s: jnp.where(t < n, 0, s)
    return _in_time(formula, steps=steps, strength=strength)


def periodic(strength: Strength, every: int | jax.Array) -> Schedule:
    """Decay on every k-th step only, for the k steps up to it at once.

        s'(t) = 1 − (1 − s(t))^k  if k divides t + 1,  else 0

    The exponent is exact, not the first order k s: where no gradient acts, a weight is after k
    steps where a constant s would have brought it. Its budget, Σ s'(t) over t < T, is
    ⌊T / k⌋ (1 − (1 − s)^k), less than T s. A value above 1 counts as 1.

    Args:
        strength: s in [0, 1], a number or schedule: a finished strength, after the law.
        every: k >= 1, in steps. The first decay comes with step k − 1, the k-th of the run.

    Returns:
        A schedule: count -> s'. For `decay_weights`; prox_weights shrinks by 1/(1 + s) instead.

    Raises:
        TypeError: k is not a whole number.
        ValueError: s is outside [0, 1], or k < 1.

    Example:
        >>> [round(float(periodic(0.1, every=2)(t)), 3) for t in range(4)]
        [0.0, 0.19, 0.0, 0.19]

    References:
        The closed form of k decays in a row; lazy or delayed regularization in the sparse setting.
    """
    schedule = as_schedule(strength)
    check_scalar("strength", schedule, most=1)
    if not isinstance(every, jax.Array):
        checks.whole("every", every)

    def step(count: Any) -> Any:
        s = jnp.minimum(schedule(count), 1)
        # log1p and expm1 keep the digits of a small s
        whole = -jnp.expm1(every * jnp.log1p(-s))
        return jnp.where((jnp.asarray(count) + 1) % every == 0, whole, 0)

    return step


def _progress(t: Any, steps: Any) -> Any:
    """Return t / T, and 1 from T on, also where T is 0."""
    return jnp.where(t < steps, t / jnp.maximum(steps, 1), 1)


def _mixed(start: Any, end: Any, share: Any) -> Any:
    """Mix so that both ends are met exactly, which start + (end − start) does not promise."""
    return (1 - share) * start + share * end


# Learning rates.


def inverse_sqrt(init_value: Strength, gamma: Strength) -> Schedule:
    """Inverse square root decay of the learning rate.

        η(t) = η₀ / √(1 + γ² t)

    Some introductions call this law exponential decay. It is not: it falls like t^(−1/2), far
    slower than the `geometric` law.

    Args:
        init_value: η₀, the learning rate at step 0.
        gamma: γ >= 0, per square root of a step; the rate has fallen to η₀/√2 at t = 1/γ².

    Returns:
        A schedule: count -> η.

    Example:
        >>> float(inverse_sqrt(0.1, gamma=1.0)(3))
        0.05...

    References:
        Robbins and Monro, *A Stochastic Approximation Method*, 1951, for the family of slowly
        falling rates; the form with γ² is common in regression tutorials.
    """
    return _in_time(
        lambda t, eta, slope: eta / jnp.sqrt(1 + slope**2 * t), init_value=init_value, gamma=gamma
    )


def geometric(init_value: Strength, rate: Strength) -> Schedule:
    """Exponential decay of the learning rate, by a fixed fraction at each count.

        η(t) = η₀ (1 − r)^t

    Args:
        init_value: η₀, the learning rate at step 0.
        rate: r in [0, 1], the fraction lost per count. Wrap in `per_epoch` to count epochs.

    Returns:
        A schedule: count -> η.

    Raises:
        ValueError: r is outside [0, 1].

    Example:
        >>> float(geometric(0.1, rate=0.5)(2))
        0.025...

    References:
        The same law as `optax.exponential_decay(init_value, 1, 1 - rate)`, with every argument
        traceable.
    """
    check_scalar("rate", rate, most=1)
    # 1 − r would lose the digits of a small r, and the power multiply the loss by t
    return _in_time(
        lambda t, eta, loss: eta * jnp.exp(xlog1py(t, -loss)), init_value=init_value, rate=rate
    )


def per_epoch(schedule: Schedule, steps_per_epoch: int | jax.Array) -> Schedule:
    """Make a schedule count epochs instead of steps.

        η'(t) = η(⌊t / n⌋)

    Args:
        schedule: η, a function of the epoch, 0 in the first.
        steps_per_epoch: n >= 1, steps in an epoch, the last short batch included.

    Returns:
        A schedule: count of steps -> value.

    Raises:
        TypeError: `schedule` is not a function.
        ValueError: n < 1.

    Example:
        >>> halving = per_epoch(geometric(0.1, rate=0.5), steps_per_epoch=3)
        >>> [round(float(halving(t)), 3) for t in range(5)]
        [0.1, 0.1, 0.1, 0.05, 0.05]

    References:
        The per-epoch rule η ← η (1 − decay) of introductory texts.
    """
    checks.function("schedule", schedule, advice="It maps the epoch to the value.")
    checks.number("steps_per_epoch", steps_per_epoch, least=1)
    return lambda count: schedule(jnp.asarray(count) // steps_per_epoch)


# What is known of a strength before training.

# To a million, about 20 to the decade: enough to see the height of any usual schedule. Before that
# every step, to see one that acts every k-th step only.
SAMPLED_COUNTS = np.unique(
    np.concatenate([np.arange(2**14), np.geomspace(1, 1e6, 120).round()])
).astype(np.int32)
_CHUNK = 2**18  # steps that `decay_budget` evaluates at a time


def sampled(strength: Schedule, counts: np.ndarray = SAMPLED_COUNTS) -> np.ndarray | None:
    """Evaluate a strength at (N,) steps in float64, or return None where it is traced.

    Example:
        >>> sampled(lr_scaled(0.1, lambda count: 0.5**count), np.array([0, 1]))
        array([0.1 , 0.05])
    """
    if isinstance(strength, Constant):
        values = strength.value
    else:
        with jax.ensure_compile_time_eval():
            try:
                values = jax.vmap(jax.jit(strength))(counts)  # compiled once for a schedule
            except jax.errors.JAXTypeError:  # branches on the count in Python: fit for eager loops
                values = np.array([strength(count) for count in counts], np.float64)
    if isinstance(values, jax.core.Tracer):
        return None
    if np.shape(values) not in ((), counts.shape):
        shape = np.shape(values)[1:]
        raise ValueError(f"`strength` must give a scalar at every step; got shape {shape}.")
    return np.broadcast_to(np.asarray(values, np.float64), counts.shape)


def decay_budget(strength: Strength, steps: int) -> float:
    """Sum the strength over a run, to compare schedules at equal budgets.

        S = Σ_{t < T} s(t),   and an untouched weight keeps about e^(−S)

    Every step is evaluated, in float64 on the host. A schedule that holds float32 arrays, as some
    of Optax's do, is as exact as they are.

    Args:
        strength: s, a number or schedule; a schedule of λ or η is summed in the same way.
        steps: T >= 0, the length of the run.

    Returns:
        S.

    Raises:
        ValueError: `steps` is outside [0, 2³¹).
        TypeError: `steps` is not a whole number, or the strength depends on traced values.

    Example:
        >>> decay_budget(cosine_ramp(0.04, 0.4, steps=100), 100)
        21.82
        >>> decay_budget(linear_ramp(0.04, 0.4, steps=100), 100)
        21.82
    """
    schedule = as_schedule(strength)
    checks.whole("steps", steps, least=0, most=2**31 - 1)
    sums = []
    with jax.enable_x64(True):
        for start in range(0, int(steps), _CHUNK):
            counts = np.arange(start, min(start + _CHUNK, steps), dtype=np.int32)
            values = sampled(schedule, counts)
            if values is None:
                raise TypeError(
                    "`strength` must be known, to be summed; got one that depends on traced "
                    "values. Call decay_budget outside jit, vmap and grad."
                )
            sums.append(math.fsum(values))
    return math.fsum(sums)


def checked_samples(
    schedule: Schedule, name: str = "strength", most: float = math.inf
) -> np.ndarray | None:
    """Sample a schedule, None where it is traced, and refuse what is not in [0, most] throughout.

    Many schedules turn negative after the run that they were made for. One that is positive and
    then negative to the end counts as 0 there, as in `at_step`; a warning says from which step on.

    Example:
        >>> checked_samples(lambda count: count - 1.0)
        Traceback (most recent call last):
        ValueError: `strength` must be finite and >= 0 at every step; got -1 at step 0. ...
    """
    values, counts = sampled(schedule), SAMPLED_COUNTS
    if values is None:
        return None
    end = np.max(np.flatnonzero(values > 0), initial=-1) + 1
    ended = end and (values[end:] <= 0).all()  # NaN does not count as an end
    kept = np.where(np.arange(len(values)) < end, values, 0) if ended else values
    check_values(kept, counts, name, most)
    negative = counts[values - kept < _rounding(values)]
    if len(negative):
        warnings.warn(
            f"`{name}` is negative from step {negative[0]} on and counts as 0 there. If your "
            "run is that long, let the schedule end at 0: jnp.maximum(0, ...).",
            stacklevel=3,
        )
    return kept


def at_step(schedule: Schedule, count: Any) -> Any:
    """s(t), and 0 where it has turned negative, which `checked_samples` has warned of."""
    s = schedule(count)
    if isinstance(schedule, Constant):
        return s
    return max(s, 0) if isinstance(s, int | float) else jnp.where(s < 0, 0, s)


def check_values(
    values: np.ndarray, counts: np.ndarray, name: str = "strength", most: float = math.inf
) -> None:
    """Raise where a value is not finite or outside [0, most], naming the first such step."""
    bad = ~(np.isfinite(values) & (values >= _rounding(values)) & (values <= most))
    if bad.any():
        bound = "finite and >= 0" if most == math.inf else f"in [0, {most:g}]"
        raise ValueError(
            f"`{name}` must be {bound} at every step; got {values[bad][0]:g} at step "
            f"{counts[bad][0]}. Check the schedule, its arguments and the multipliers; "
            "jnp.maximum(0, ...) ends a schedule at 0."
        )


def _rounding(values: np.ndarray) -> Any:
    """How far below 0 a ramp to 0 that is computed in float32 may end."""
    return -1e-6 * np.max(values, where=np.isfinite(values), initial=0)
