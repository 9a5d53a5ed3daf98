"""The table to read before training: what decay does to each parameter.

`audit(params, optimizer)` runs any Optax optimizer on stand-in weights and reports what it does;
`audit(params, strength=..., rules=...)` shows what is declared, for those who have none yet.
"""

from collections.abc import Callable
from typing import Any

from wdjax.audit._compare import Difference, check_decay, same_decay
from wdjax.audit._declared import checked_steps, declared
from wdjax.audit._measured import Taken, measured, strengths
from wdjax.audit._table import Audit
from wdjax.rules import STANDARD, Rules
from wdjax.schedules import Strength

__all__ = [
    "Audit",
    "Difference",
    "Taken",
    "audit",
    "check_decay",
    "same_decay",
    "strengths",
]


def audit(
    params: Any,
    optimizer: Any = None,
    *,
    steps: int | None = None,
    rules: Rules | None = None,
    strength: Strength | None = None,
    extra: dict[str, Any] | None = None,
    loss: Callable[[Any], Any] | None = None,
) -> Audit:
    """Show, before anything is trained, what decay does to every weight.

        f = −⟨U(2θ) − U(θ), θ⟩ / ⟨θ, θ⟩;  shrink = max_t f(t);  left = Π_{t<T} (1 − f(t))
        half-life = ln 2 / −ln(1 − shrink)

    U is the sum of the updates of one real step at held weights θ. It is measured on stand-ins,
    with zero and with random gradients, for any Optax optimizer, ours or not; nothing of the size
    of the model is held in memory. Without an optimizer, the table is that of `decay_weights` by
    `strength` and `rules`.

    How decay acts: on the "weights"; in the "gradient", where momentum multiplies and Adam
    normalizes it (then there is no fraction, and `left` is simulated without gradients); "both";
    by a "constant" length, as L1 does; towards a "point"; "none"; or "unknown", with a note that
    says why. For plain SGD "weights" and "gradient" are the same, and "weights" is said.

    In the printed table, arrays that differ only in the number of their block share a line.
    What is certainly wrong stands below it, marked "!"; what could not be measured, "?".

    Args:
        params: a pytree of arrays or of ShapeDtypeStructs, as `jax.eval_shape` gives.
        optimizer: a `GradientTransformation`, or a function of the learning rate that returns one:
            then the law is told, too, and shrink is that at a rate of 0.001.
        steps: T >= 1, the length of the run in real steps; may be left out.
        rules: (selector, multiplier) pairs: what is wanted. With an optimizer, it is compared with
            them; without, they give m. By default `standard()`.
        strength: without an optimizer: s, the fraction taken off per step, in [0, 1): a number or
            a schedule such as `lr_scaled(0.1, lr)`.
        extra: further arguments that the optimizer's `update` needs. Value, gradient and loss of a
            line search need not be given: the loss is ⟨g, θ⟩.

        loss: with an optimizer: a function of the parameters, such as
            `lambda params: loss_fn(params, batch)`. Leaves that decay and that its gradient cannot
            reach (they are unused or under `stop_gradient`) are named.

    Returns:
        The audit: print it, log its `rows`, or test that its `warnings` are empty.

    Raises:
        RuleError: as in `resolve`; a multiplier is traced.
        ValueError: `steps` is missing or < 1; the strength is negative, not finite, or so large
            that signs would flip.
        TypeError: a leaf is not an array; `steps` is not a whole number; `optimizer` is not an
            optimizer, or needs arguments that are not in `extra`; both or neither of `optimizer`
            and `strength` are given.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        >>> found = audit(params, optax.adamw(0.1, weight_decay=0.1), steps=100)
        >>> print(str(found).partition("!")[0].strip())
        2 float32 arrays, 9 numbers, 9 of them decayed (100.0%)
        measured: strength 0.01 at each of 100 steps
                                                         shrink  half    left
        path    shape  numbers  rule    mult  acts        /step  life  at end
        kernel  2x3          6  weight     1  weights  1.00e-02  69.0   0.366
        bias    3            3  bias       0  weights  1.00e-02  69.0   0.366
        >>> found.warnings[0]
        'bias decays, but wdjax.standard() gives a bias or gain the multiplier 0; ...'
        >>> audit(params, strength=0.01, steps=100).rows[1]["left"]
        0.366...
    """
    if (optimizer is None) == (strength is None):
        got = "neither" if optimizer is None else "both"
        raise TypeError(
            f"`audit` needs either an optimizer or a strength; got {got}. Write "
            "audit(params, optimizer) or audit(params, strength=..., rules=...)."
        )
    steps = checked_steps(steps)
    if strength is not None:
        return declared(params, strength, STANDARD if rules is None else rules, steps)
    return measured(params, optimizer, rules, steps, extra or {}, loss)
