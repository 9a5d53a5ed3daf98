"""Compare what an optimizer does with what was declared, or with another optimizer."""

import dataclasses
from typing import Any

import numpy as np

from wdjax import schedules
from wdjax._trees import paths
from wdjax.audit._course import Finding
from wdjax.audit._declared import checked_steps
from wdjax.audit._measured import Measurement, measure
from wdjax.audit._verdicts import Leaf
from wdjax.rules import STANDARD, Rules
from wdjax.schedules import Strength

_UNFIT = ("gradient", "both", "constant", "point", "unknown")  # no fraction of the weights
_ROUNDING = 5e-7  # of a schedule's largest value: what float32 may leave of a cosine at its end


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where two optimizers decay differently; true if they decay alike.

    Attributes:
        sentences: one for each way to differ, with paths; empty if there is none.

    Example:
        >>> found = Difference(("bias: 0.01 is taken off in a step by the first, nothing by ...",))
        >>> bool(found), bool(Difference(()))
        (False, True)
    """

    sentences: tuple[str, ...]

    def __bool__(self) -> bool:
        """Tell whether both decay alike."""
        return not self.sentences

    def __str__(self) -> str:
        """Return the sentences."""
        return "\n".join(self.sentences) or "both decay alike"


def check_decay(
    optimizer: Any,
    params: Any,
    *,
    strength: Strength,
    rules: Rules = STANDARD,
    steps: int | None = None,
    rtol: float = 1e-4,
    extra: dict[str, Any] | None = None,
) -> None:
    """Raise where an optimizer does not decay as declared: for a test beside `get_optimizer`.

        |f(t) − s(t) m| <= rtol · s(t) m + 5e-7 · max_t s(t) m    for each leaf and step

    Args:
        optimizer: any Optax optimizer.
        params: a pytree of arrays or ShapeDtypeStructs.
        strength: s, the fraction that a step is to take off: a number or a schedule.
        rules: (selector, multiplier) pairs that give m.
        steps: T, the length of the run; without it, some steps up to a million are looked at.
        rtol: how far, as a fraction, measured and declared may be apart.
        extra: as in `audit`.

    Returns:
        None: decay is as declared.

    Raises:
        AssertionError: somewhere they differ; the message names the paths.
        TypeError: as in `audit`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import wdjax
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        >>> check_decay(wdjax.adamw(0.1, weight_decay=0.1), params, strength=0.01)
        >>> check_decay(optax.adamw(0.1, weight_decay=0.1), params, strength=0.01)
        Traceback (most recent call last):
        AssertionError: measured decay is not the declared one:
        bias: 0.01 is taken off in a step, but 0 is declared
    """
    found = measure(params, optimizer, rules, checked_steps(steps), extra or {})
    schedule = schedules.as_schedule(strength)
    texts = [(leaf.path, _unlike(leaf, schedule, rtol)) for leaf in found.leaves]
    sentences = _joined([(path, text) for path, text in texts if text])
    if sentences:
        raise AssertionError("measured decay is not the declared one:\n" + "\n".join(sentences))


def _unlike(leaf: Leaf, schedule: Any, rtol: float) -> str | None:
    """Say how a leaf's decay differs from s(t) m."""
    found = leaf.found
    counts = np.asarray(found.counts, np.int32)
    wanted = leaf.multiplier * np.asarray(
        schedules.sampled(schedule, counts)
        if len(counts)
        else schedules.sampled(schedule, np.zeros(1, np.int32))
    )
    if found.acts == "none":
        return f"nothing is taken off, but {wanted.max():.6g} is declared" if wanted.any() else None
    if found.acts in _UNFIT:
        why = f": {found.why}" if found.why else ""
        return f"decay acts in another way ({found.acts}{why}), but {wanted.max():.6g} is declared"
    curve = np.asarray(found.curve)
    apart = _apart(curve, wanted, rtol)
    worst = int(apart.argmax())
    if apart[worst] <= 0:
        return _extras(found)
    when = f" of step {counts[worst]:,}" if found.step is not None or np.ptp(wanted) else ""
    step = f"in a step{when}" if not when else f"in{when[3:]}"
    return f"{curve[worst]:.6g} is taken off {step}, but {wanted[worst]:.6g} is declared"


def _extras(found: Finding) -> str | None:
    """Say what is wrong although the fraction of a step is right."""
    if found.why:
        return found.why
    if found.repeats > 1:
        return f"decay acts {found.repeats} times per real step"
    if found.swallowed:
        return "the dtype swallows the decay"
    return None


def same_decay(
    params: Any,
    theirs: Any,
    ours: Any,
    *,
    steps: int | None = None,
    rtol: float = 1e-4,
    extra: dict[str, Any] | None = None,
) -> Difference:
    """Say, by path, where two optimizers decay differently: for moving from one to the other.

    Args:
        params: a pytree of arrays or ShapeDtypeStructs.
        theirs: any Optax optimizer.
        ours: another.
        steps: T, the length of the run.
        rtol: how far, as a fraction, two strengths may be apart.
        extra: as in `audit`, for both.

    Returns:
        What differs; true if nothing does.

    Raises:
        TypeError: as in `audit`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import wdjax
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        >>> print(same_decay(params, optax.adamw(0.1), wdjax.adamw(0.1, weight_decay=1e-4)))
        bias: 1e-05 is taken off in a step by the first, nothing by the second
    """
    steps = checked_steps(steps)
    first, second = (measure(params, each, None, steps, extra or {}) for each in (theirs, ours))
    return Difference(_joined(_differences(first, second, rtol)))


def _differences(one: Measurement, other: Measurement, rtol: float) -> list[tuple[str, str]]:
    found = []
    for a, b in zip(one.leaves, other.leaves, strict=True):
        text = _difference(a.found, b.found, rtol)
        if text:
            found.append((a.path, text))
    return found


def _difference(one: Finding, other: Finding, rtol: float) -> str | None:
    if "unknown" in (one.acts, other.acts):
        why = one.why if one.acts == "unknown" else other.why
        return f"decay cannot be compared: {why}"
    if one.acts != other.acts or (one.shrink is None) != (other.shrink is None):
        return f"{_told(one)} by the first, {_told(other)} by the second"
    if one.shrink is None:
        return _other_ends(one, other, rtol)
    if _same_curve(one, other, rtol):
        if one.repeats != other.repeats:
            times = f"{one.repeats} times per real step by the first, {other.repeats} by the second"
            return f"decay acts {times}"
        return None
    if one.shrink != other.shrink and not np.isclose(one.shrink, other.shrink or 0.0, rtol=rtol):
        return f"{_told(one)} by the first, {_told(other)} by the second"
    return "peaks are equally strong, but other steps are not: schedules or laws differ"


def _other_ends(one: Finding, other: Finding, rtol: float) -> str | None:
    """Compare what is left, where there is no fraction to compare."""
    if one.left is None or other.left is None:
        return None
    if np.isclose(one.left, other.left, rtol=max(rtol, 1e-3)):
        return None
    return f"{one.left:.4g} is left after the first, {other.left:.4g} after the second"


def _same_curve(one: Finding, other: Finding, rtol: float) -> bool:
    """Compare at the steps that both visited; a constant one holds at all."""
    curves = [dict(zip(f.counts, f.curve, strict=True)) for f in (one, other)]
    if min(map(len, curves)) == 1:
        (short, long) = sorted(curves, key=len)
        value = next(iter(short.values()))
        return bool((_apart(list(long.values()), value, rtol) <= 0).all())
    common = sorted(curves[0].keys() & curves[1].keys())
    a, b = ([curve[count] for count in common] for curve in curves)
    return bool((_apart(a, b, rtol) <= 0).all())


def _apart(curve: Any, other: Any, rtol: float) -> np.ndarray:
    """By how much two curves differ at each step, beyond what is allowed."""
    a, b = np.asarray(curve), np.asarray(other)
    allowed = rtol * np.abs(b) + _ROUNDING * np.abs(b).max(initial=0) + 1e-12
    apart: np.ndarray = np.abs(a - b) - allowed
    return apart


def _told(found: Finding) -> str:
    if found.acts == "none":
        return "nothing"
    if found.shrink is None:
        return f"decay of another kind ({found.acts})"
    way = {"weights": "", "gradient": ", in the gradient,"}.get(found.acts, f" ({found.acts})")
    return f"{found.shrink:.4g} is taken off{way} in a step"


def _joined(texts: list[tuple[str, str]]) -> tuple[str, ...]:
    """One sentence for all paths of which the same is said."""
    groups: dict[str, list[str]] = {}
    for path, text in texts:
        groups.setdefault(text, []).append(path or "the array")
    return tuple(f"{paths.listed(found)}: {text}" for text, found in groups.items())
