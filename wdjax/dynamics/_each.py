"""Every group of weights, predicted: from the optimizer, or from what is declared."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wdjax import metrics, stacking
from wdjax._trees import checks, html, paths
from wdjax.audit import Taken, strengths
from wdjax.dynamics._predict import SAY, Prediction, at_steps, passes, predict, predicted
from wdjax.dynamics._theory import Direction, Number
from wdjax.optimizers import Decayed
from wdjax.rules import STANDARD, Rules, resolve
from wdjax.schedules import Strength

Groups = dict[str, list[int]]  # group -> which leaves

_SAME = 1e-4  # fractions as near as this are one


class Predictions(dict[str, Prediction]):
    """Group -> prediction. Its text is a table, one line for each group; a pytree.

    Example:
        >>> from wdjax.dynamics import adam
        >>> params = {"kernel": np.ones((2, 2)), "bias": np.ones(2)}
        >>> print(predict_declared(params, adam(), 1e-3, weight_decay=0.1, steps=9_000))
        9,000 steps
        group   shrink  half-life  timescale  left at end  settled RMS  rotation  settled after ...
        bias         0      never      never            1            -         0          never ...
        weight  0.0001      6,931     10,000        0.407       0.0707   0.00324          never ...
    """

    def __repr__(self) -> str:
        """Return the table; for traced or mapped predictions, what a dictionary shows."""
        if not all(p.is_plain for p in self.values()):
            return super().__repr__()
        titles, rows = _table(self)
        lines = [titles, *([x if isinstance(x, str) else x[0] for x in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (
            [name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for name, *cells in lines
        )
        return "\n".join([_length(self), *("  ".join(cells) for cells in padded)])

    def _repr_html_(self) -> str | None:
        """Return the table for notebooks; None where there is none."""
        if not all(p.is_plain for p in self.values()):
            return None
        return html.table(*_table(self), above=[_length(self)])


def _flattened(found: Predictions) -> tuple[Any, Any]:
    return tuple(found.values()), tuple(found)


def _unflattened(groups: Any, found: Any) -> Predictions:
    return Predictions(zip(groups, found, strict=True))


jax.tree_util.register_pytree_node(Predictions, _flattened, _unflattened)


def predict_each(
    params: Any,
    optimizer: Any,
    direction: Direction,
    *,
    learning_rate: Strength,
    steps: int,
    per: str | None = None,
    rules: Rules | None = None,
    batch_size: int | None = None,
    examples: int | None = None,
    extra: dict[str, Any] | None = None,
) -> Predictions:
    """Predict every group of weights that `metrics.measured` reads, for `explain`.

    What decay takes off in each step is measured, as by `audit`, so rules, λ and its law stand in
    the optimizer alone. η and the direction, with its momentum, no optimizer tells: say them.

    Args:
        params: at the start, a pytree of arrays; of ShapeDtypeStructs, weights start at 0.
        optimizer: any Optax optimizer that decays weights, ours or not.
        direction: what moves the weights in it: `adam(...)`, `lion(...)`, `muon(...)`,
            `sgd(...)`, or `sgd(..., coupled=True)` where decay is in the gradient.
        learning_rate: η, a number or schedule: the optimizer's.
        steps: T >= 1, the length of the run in real steps.
        per: "rule" or "leaf"; None: as the optimizer is `measured`, else "rule".
        rules: (selector, multiplier) pairs that name the groups; None: the optimizer's own, where
            it is `measured` or was built by `decayed`, else `standard()`.
        batch_size: B, in examples; with `examples`, times are also given in epochs.
        examples: N, size of the training set.
        extra: further arguments that the optimizer's `update` needs, as for `audit`.

    Returns:
        group -> prediction.

    Raises:
        RuleError: as in `resolve`.
        TypeError: `optimizer` or `direction` is something else; T, B or N is not a whole number.
        ValueError: nothing decays; `direction` does not cover the decay; leaves of one group
            decay differently; T, B or N is < 1.

    Example:
        >>> import optax
        >>> from wdjax.dynamics import adam
        >>> params = {"kernel": np.full((2, 2), 0.5, "float32"), "bias": np.zeros(2, "float32")}
        >>> optimizer = optax.adamw(1e-3, weight_decay=0.1)
        >>> found = predict_each(params, optimizer, adam(), learning_rate=1e-3, steps=100)
        >>> {group: round(float(prediction.budget), 4) for group, prediction in found.items()}
        {'bias': 0.01, 'weight': 0.01}
    """
    checks.optimizer("optimizer", optimizer)
    checks.record("direction", direction, Direction, SAY)
    checks.whole("steps", steps)
    per_epoch = passes(batch_size, examples)
    bare = optimizer.optimizer if isinstance(optimizer, metrics.Measured) else optimizer
    taken = strengths(params, bare, steps=steps, extra=extra or {})
    _check_covered(taken, direction)
    params = stacking.unstack(params)
    leaves = jax.tree.leaves(params)
    eta = at_steps("learning_rate", learning_rate, steps)
    per = _told("per", per, optimizer, "rule")
    groups = _groups(params, per, _told("rules", rules, optimizer, STANDARD))
    _check_alike(groups, taken)
    return Predictions(
        (name, predicted(direction, eta, taken[own[0]].fractions, _rms(leaves, own), per_epoch))
        for name, own in groups.items()
    )


def predict_declared(
    params: Any,
    direction: Direction,
    learning_rate: Strength,
    *,
    per: str = "rule",
    rules: Rules = STANDARD,
    **options: Any,
) -> Predictions:
    """Predict every group of weights without an optimizer, from rules and λ.

    Args:
        params: at the start, a pytree of arrays; of ShapeDtypeStructs, weights start at 0.
        direction: as for `predict`.
        learning_rate: as for `predict`.
        per: "rule" or "leaf", as for `metrics.measured`.
        rules: (selector, multiplier) pairs; they name the groups and give their multipliers.
        **options: weight_decay, steps, law, batch_size and examples, as for `predict`.

    Returns:
        group -> prediction.

    Raises:
        RuleError: as in `resolve`.
        TypeError, ValueError: as in `predict`.

    Example:
        >>> from wdjax.dynamics import adam
        >>> params = {"kernel": np.full((2, 2), 0.5, "float32"), "bias": np.zeros(2, "float32")}
        >>> found = predict_declared(params, adam(), 1e-3, weight_decay=0.1, steps=100)
        >>> {group: round(float(prediction.budget), 4) for group, prediction in found.items()}
        {'bias': 0.0, 'weight': 0.01}
    """
    params = stacking.unstack(params)
    leaves, multipliers = jax.tree.leaves(params), jax.tree.leaves(resolve(rules, params))
    return Predictions(
        (
            name,
            predict(
                direction,
                learning_rate,
                multiplier=multipliers[own[0]],
                start_rms=_rms(leaves, own),
                **options,
            ),
        )
        for name, own in _groups(params, per, rules).items()
    )


def _told(name: str, given: Any, optimizer: Any, otherwise: Any) -> Any:
    """What is given, else what the optimizer says of its groups, else the usual."""
    ours = isinstance(optimizer, Decayed | metrics.Measured)
    told = getattr(optimizer, name, None) if ours and given is None else given
    return otherwise if told is None else told


def _groups(params: Any, per: str, rules: Rules) -> Groups:
    groups: Groups = {}
    for i, name in enumerate(metrics.groups_of(params, per=per, rules=rules)):
        if name is not None:
            groups.setdefault(name, []).append(i)
    return groups


def _rms(leaves: list[Any], own: list[int]) -> float:
    """RMS of all entries together; 0 where only the shapes are known."""
    group = [leaves[i] for i in own]
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in group):
        return 0.0
    squares = sum(float(np.sum(np.abs(leaf).astype(np.float64) ** 2)) for leaf in group)
    return math.sqrt(squares / max(1, sum(leaf.size for leaf in group)))


# What cannot be predicted.


def _check_covered(taken: list[Taken], direction: Direction) -> None:
    """Refuse decay that the theory of this direction does not cover."""
    if all(each.acts == "none" for each in taken):
        raise ValueError(
            "`optimizer` decays nothing: its steps take nothing off any weight. Does a mask leave "
            "everything out, or is the decay in the loss? wdjax.audit(params, optimizer) shows "
            "each weight; dynamics.predict takes a strength instead."
        )
    problems: dict[str, list[str]] = {}
    for each in taken:
        problem = _problem(each, direction.gain != 1)
        if problem:
            problems.setdefault(problem, []).append(each.path or "the array")
    if problems:
        told = "\n".join(f"{paths.listed(where)}: {text}" for text, where in problems.items())
        raise ValueError(f"`optimizer` cannot be predicted with this `direction`.\n{told}")


def _problem(taken: Taken, coupled: bool) -> str | None:
    """Say why a leaf's decay is not covered, and what to do."""
    acts, why, s = taken.acts, taken.why, taken.fractions
    if acts == "none":
        return None
    if acts == "gradient" and why:
        return (
            f"decay is in the gradient, where {why}: no direction covers this. Put it after the "
            "optimizer, as wdjax.adamw does"
        )
    if why or acts not in ("weights", "gradient"):
        kind = f"{acts}: {why}" if why else acts
        return f"decay is of another kind ({kind}); call dynamics.predict with your own strength"
    if s.min() < -_SAME * s.max():
        return "weights grow; wdjax.audit(params, optimizer) says why"
    if s.max() >= 1:
        return f"a step takes off {s.max():.3g}, and signs flip; lower λ"
    if acts == "gradient" and not coupled:
        return (
            "decay is in the gradient, but `direction` is for decay after the step; write "
            "dynamics.sgd(..., momentum=..., coupled=True), or move the decay"
        )
    if acts == "weights" and coupled:
        return "decay is after the step, but `direction` is for decay in the gradient; drop coupled"
    return None


def _check_alike(groups: Groups, taken: list[Taken]) -> None:
    """Refuse groups of several strengths."""
    for name, own in groups.items():
        first, *others = (taken[i] for i in own)
        near = _SAME * np.max([abs(taken[i].fractions).max() for i in own])
        unlike = [x for x in others if abs(x.fractions - first.fractions).max() > near]
        if unlike:
            tops = {x.path: f"'{x.path}' {x.fractions.max():.3g}" for x in (first, unlike[0])}
            raise ValueError(
                f"leaves of the group '{name}' decay differently: {', '.join(tops.values())} in a "
                'step at most. Pass the rules= of the optimizer, or per="leaf".'
            )


# The table.


def _length(found: Predictions) -> str:
    return ", ".join(f"{x:,} steps" for x in sorted({len(p.shrink) for p in found.values()}))


def _table(found: Predictions) -> tuple[list[str], list[list[html.Cell]]]:
    """Titles, and a row for each group, at the step at which its decay is strongest."""
    in_epochs = any(np.isfinite(p.timescale_epochs) for p in found.values())
    columns: dict[str, Callable[[Prediction, int], html.Cell]] = {
        "shrink": lambda p, top: _short(p.shrink[top]),
        "half-life": lambda p, top: _whole(p.half_life),
        "timescale": lambda p, top: _whole(p.timescale),
        **({"in epochs": lambda p, top: _short(p.timescale_epochs)} if in_epochs else {}),
        "left at end": lambda p, top: _short(p.left),
        "settled RMS": lambda p, top: _short(p.equilibrium_rms[top]),
        "rotation": lambda p, top: _short(p.rotation[top]),
        "settled after": lambda p, top: _whole(p.settled),
        "norm at most": lambda p, top: _short(p.bound),
    }
    rows: list[list[html.Cell]] = [
        [name, *(show(p, int(np.argmax(p.shrink))) for show in columns.values())]
        for name, p in found.items()
    ]
    return ["group", *columns], rows


def _whole(x: Number) -> html.Cell:
    return (f"{x:,.0f}" if np.isfinite(x) else "never"), float(x)


def _short(x: Number) -> html.Cell:
    return (f"{x:.3g}" if np.isfinite(x) else "-"), float(x)
