"""How λ changes with the batch, the data, the learning rate and the width.

Small functions of numbers, which may be arrays and may be traced, keep what a good λ did elsewhere:
its averaging timescale, or the fraction that it takes off in a step. `fit_law` asks small runs.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wdjax._trees import checks, html, paths
from wdjax._trees.kinds import Kind
from wdjax.rules import STANDARD, Rules, check_rules, owners, resolve, ruled
from wdjax.sweeps import SweepResult, validation_curve

_NEAR = math.log(4)  # how far from the best λ a cubic in ln λ is trusted


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
    rules = check_rules(rules)
    own, (rows, _) = owners(rules, params), ruled(rules, params)
    factors = [m**power for m in jax.tree.leaves(resolve(widths, params))]
    changed = [
        not (_is(factor, 1.0) or _is(row.multiplier, 0.0))
        for row, factor in zip(rows, factors, strict=True)
    ]
    of_each = zip(rows, factors, changed, strict=True)
    pairs = tuple((_exactly(r.leaf.path), r.multiplier * x) for r, x, new in of_each if new)
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
        advice = "For a schedule, pass its peak." * callable(value)
        checks.number(name, value, above=0, many=True, advice=advice)


# The law of λ, from small runs.


class Optimum(NamedTuple):
    """The best λ of one sweep.

    Attributes:
        factors: name -> number, what was different in this sweep.
        value: λ*, where a cubic in ln λ around the lowest score has its minimum.
        se: standard error of ln λ*, from folds and seeds and the curvature there; NaN of one run.
        why: why there is no λ*; "" where there is one.

    Example:
        >>> Optimum({"batch": 32}, 0.1, 0.05, "").value
        0.1
    """

    factors: Mapping[str, float]
    value: float
    se: float
    why: str


class Forecast(NamedTuple):
    """What a law says of λ* elsewhere.

    Attributes:
        value: the prediction.
        low: lower end of its interval.
        high: upper end.

    Example:
        >>> Forecast(0.1, 0.05, 0.2).high
        0.2
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, repr=False)
class Law:
    """ln λ* = constant + Σ exponent · ln factor. Print it; `fit_law` makes it.

    Attributes:
        exponents: name of a factor -> its power.
        errors: name -> standard error of that power.
        constant: ln λ* where every factor is 1.
        covariance: of the constant and the powers, in this order.
        scatter: standard deviation of ln λ* around the law, beyond the errors of the optima.
        freedom: degrees of freedom, optima less numbers fitted.
        optima: one for each sweep, with what was left out and why.

    Example:
        >>> optima = (Optimum({"batch": 32}, 0.1, 0.05, ""),)
        >>> print(Law({"batch": 0.5}, {"batch": 0.1}, -4.0, np.eye(2), 0.0, 1, optima))
        λ* = 0.0183 · batch^0.50±0.10; 1 optimum, scatter 0% beyond their errors
        batch    λ*  error
           32   0.1     5%
    """

    exponents: dict[str, float]
    errors: dict[str, float]
    constant: float
    covariance: np.ndarray[Any, Any]
    scatter: float
    freedom: int
    optima: tuple[Optimum, ...]

    def predict(self, *, level: float = 0.95, **factors: float) -> Forecast:
        """Predict λ* for other factors, with an interval in which it should lie.

        Student's t with the law's degrees of freedom; its width covers the error of the law there
        and the scatter around it. It cannot know where a law ends.

        Args:
            level: of the interval, in (0, 1).
            **factors: a number > 0 for each factor of the law.

        Returns:
            The `Forecast`.

        Raises:
            ValueError: a factor is missing, unknown or not > 0, or the level is out of range.
        """
        checks.number("level", level, above=0, below=1)
        _check_factors("factors", factors, tuple(self.exponents))
        x = np.array([1.0, *(math.log(factors[name]) for name in self.exponents)])
        mean = float(x @ [self.constant, *self.exponents.values()])
        error = math.sqrt(float(x @ self.covariance @ x) + self.scatter**2)
        half = _student(self.freedom, (1 + level) / 2) * error
        return Forecast(math.exp(mean), math.exp(mean - half), math.exp(mean + half))

    def __str__(self) -> str:
        """Return the law and the table of its optima."""
        titles, rows = self._table()
        table = [
            titles,
            *([cell if isinstance(cell, str) else cell[0] for cell in row] for row in rows),
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(map(str.rjust, row, widths)).rstrip() for row in table)
        return "\n".join([self._sentence(), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the same as a table for notebooks."""
        return html.table(*self._table(), above=[self._sentence()])

    def _sentence(self) -> str:
        powers = (f" · {k}^{v:.2f}±{self.errors[k]:.2f}" for k, v in self.exponents.items())
        count = sum(not optimum.why for optimum in self.optima)
        return (
            f"λ* = {math.exp(self.constant):.3g}{''.join(powers)}; {count} "
            f"{'optimum' if count == 1 else 'optima'}, scatter {math.expm1(self.scatter):.0%} "
            "beyond their errors"
        )

    def _table(self) -> tuple[list[str], list[list[html.Cell]]]:
        has_why = any(optimum.why for optimum in self.optima)
        rows: list[list[html.Cell]] = []
        for factors, value, se, why in self.optima:
            cells: list[html.Cell] = [(f"{factors[k]:g}", factors[k]) for k in self.exponents]
            error = "-" if math.isnan(se) else f"{math.expm1(se):.0%}"
            cells += ["-" if why else (f"{value:.3g}", value), error]
            rows.append(cells + [why] * has_why)
        return [*self.exponents, "λ*", "error"] + ["left out"] * has_why, rows


def fit_law(
    results: Sequence[tuple[Mapping[str, float], SweepResult]],
    *,
    quantity: str | Callable[[Any], Any] = "weight_decay",
) -> Law:
    """Learn from small sweeps how the best λ follows from the batch, the data, the width, ...

        ln λ* = b₀ + Σ_j b_j ln x_j + scatter + error of λ*

    In each sweep λ* is the minimum of a cubic in ln λ through the scores of the values within a
    factor of 4 of the lowest (of two on either side at least), the other hyperparameters at their
    best; a parabola would not do, for scores rise more steeply on one side. The error of λ* is the
    slope there that single runs have, of folds and seeds, over the curvature. The law is fitted by
    weighted least squares; where optima scatter more than their errors say, the moment estimate of
    that scatter joins the weights and the intervals.

    Args:
        results: (factors, result of a sweep) pairs, factors such as {"batch": 32, "data": 1e6},
            the same names in each, numbers > 0; at least two more than factors.
        quantity: the name of the hyperparameter, or a function of the hyperparameters that gives
            (C,) numbers > 0, such as the timescale lambda h: 1 / (h["rate"] * h["weight_decay"]).

    Returns:
        The `Law`: print it, and ask its `predict`.

    Raises:
        TypeError: `results` holds something else.
        ValueError: factors have other names or are not > 0; too few sweeps have an optimum within
            their grid; two factors rise and fall together, or one is the same in all of them.

    Example:
        >>> lams = np.geomspace(1e-3, 1, 13)
        >>> def sweep_at(batch):  # lowest where λ = 0.002 · batch
        ...     score = (np.log(lams[:, None] / (0.002 * batch)) + np.array([-0.1, 0.1])) ** 2
        ...     score = score[:, :, None, None]
        ...     return SweepResult({"weight_decay": lams}, score, score, [1])
        >>> law = fit_law([({"batch": b}, sweep_at(b)) for b in (8, 16, 32, 64)])
        >>> round(law.exponents["batch"], 3), round(law.predict(batch=256).value, 3)
        (1.0, 0.512)

    References:
        Wang and Aitchison, 2024, arXiv:2405.13698, and Bergsma et al., *Power Lines*, 2025,
        arXiv:2505.13738 (laws of this form); DerSimonian and Laird, *Meta-Analysis in Clinical
        Trials*, 1986 (scatter beyond the errors).
    """
    names = _checked_sweeps(results)
    optima = tuple(
        Optimum({name: float(x) for name, x in factors.items()}, *_vertex(result, quantity))
        for factors, result in results
    )
    found = [optimum for optimum in optima if not optimum.why]
    if len(found) < len(names) + 2:
        left = "; ".join(f"{_told(o.factors)}: {o.why}" for o in optima if o.why) or "none left out"
        raise ValueError(
            f"the law is not identified: {len(names)} factors need {len(names) + 2} sweeps with an "
            f"optimum inside their grid; {len(found)} have one. {left}."
        )
    rows = [[1.0, *(math.log(o.factors[name]) for name in names)] for o in found]
    x, y = np.array(rows), np.array([math.log(o.value) for o in found])
    _check_spread(x, names)
    b, covariance, scatter = _weighted(x, y, np.array([o.se for o in found]))
    errors = np.sqrt(np.diag(covariance))[1:]
    return Law(
        dict(zip(names, b[1:].tolist(), strict=True)),
        dict(zip(names, errors.tolist(), strict=True)),
        float(b[0]),
        covariance,
        scatter,
        len(found) - len(b),
        optima,
    )


def _vertex(result: SweepResult, quantity: Any) -> tuple[float, float, str]:
    """λ*, the standard error of ln λ*, and why there is none."""
    if callable(quantity):
        values = np.asarray(quantity(result.hparams), np.float64)
        result, quantity = result._replace(hparams={"quantity": values}), "quantity"
    curve = validation_curve(result, quantity)
    runs = np.asarray(result.val, np.float64)[curve.index, ..., -1].reshape(len(curve.x), -1)
    mean = np.where(np.isfinite(runs).all(axis=1), runs.mean(axis=1), np.inf)
    best, last = int(mean.argmin()), len(mean) - 1
    if not np.isfinite(mean[best]):
        return math.nan, math.nan, "every run diverged"
    if best in (0, last) or curve.x[best - 1] <= 0:
        return math.nan, math.nan, f"lowest at the edge of the grid, {curve.x[best]:g}"
    u = np.log(np.maximum(curve.x, np.finfo(float).tiny) / curve.x[best])
    near = np.abs(u) <= _NEAR
    near[max(best - 2, 0) : best + 3] = True
    near &= (curve.x > 0) & np.isfinite(mean)
    if not near[best - 1 : best + 2].all():
        return math.nan, math.nan, f"diverged beside the lowest, {curve.x[best]:g}"
    # coefficients are linear in the scores, so each run has its own
    cubic = np.polyfit(u[near], runs[near], min(3, int(near.sum()) - 1))
    whole = cubic.mean(axis=1)
    flat = np.roots(np.polyder(whole))
    flat = flat[np.isreal(flat)].real
    flat = flat[(np.polyval(np.polyder(whole, 2), flat) > 0) & (np.abs(flat) <= _NEAR)]
    if not len(flat):
        return math.nan, math.nan, f"no minimum of a cubic near the lowest, {curve.x[best]:g}"
    there = flat[np.abs(flat).argmin()]
    value = float(curve.x[best] * np.exp(there))
    if runs.shape[1] == 1:
        return value, math.nan, ""
    bend = np.array([np.polyval(np.polyder(run, 2), there) for run in cubic.T])
    if bend.mean() < 2 * _error(bend):
        return math.nan, math.nan, "flat within its errors"
    slopes = np.array([np.polyval(np.polyder(run), there) for run in cubic.T])
    return value, _error(slopes) / float(bend.mean()), ""


def _error(values: Any) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _weighted(x: Any, y: Any, se: Any) -> tuple[Any, Any, float]:
    """Coefficients, their covariance, and the scatter beyond the errors."""
    freedom = len(y) - x.shape[1]
    if np.isnan(se).any():  # of single runs nothing is known but how far they are from the law
        se = np.zeros(len(y))
    known = np.maximum(se, 1e-9)
    weights = known**-2
    rest = _least_squares(x, y, weights)[2]
    shrunk = np.linalg.solve((x.T * weights) @ x, (x.T * weights**2) @ x)
    excess = (weights @ rest**2 - freedom) / (weights.sum() - np.trace(shrunk))
    scatter = math.sqrt(max(float(excess), 0.0))
    b, covariance, _ = _least_squares(x, y, 1 / (known**2 + scatter**2))
    return b, covariance, scatter


def _student(freedom: int, level: float) -> float:
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # comes with jax, as NumPy

    return float(stdtrit(freedom, level))


def _least_squares(x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
    covariance = np.linalg.inv((x.T * weights) @ x)
    b = covariance @ (x.T * weights) @ y
    return b, covariance, y - x @ b


def _checked_sweeps(results: Any) -> tuple[str, ...]:
    """Return the names of the factors."""
    is_sequence = isinstance(results, Sequence) and len(results) > 0
    fits = is_sequence and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], Mapping)
        and isinstance(pair[1], SweepResult)
        for pair in results
    )
    rule = "be (factors, result of a sweep) pairs"
    advice = 'Write [({"batch": 32}, sweep(...)), ({"batch": 64}, sweep(...)), ...].'
    checks.must("results", fits, rule, checks.kind_of(results), advice, TypeError)
    names = tuple(results[0][0])
    for i, (factors, _) in enumerate(results):
        _check_factors(f"results[{i}][0]", factors, names)
    return names


def _check_factors(argument: str, factors: Mapping[str, Any], names: tuple[str, ...]) -> None:
    rule = f"have a number for each of {paths.listed(names)}"
    checks.must(argument, set(factors) == set(names) and names, rule, paths.listed(factors))
    for name, value in factors.items():
        checks.number(f"{argument}[{name!r}]", value, above=0)


def _check_spread(x: Any, names: tuple[str, ...]) -> None:
    """Refuse factors that these sweeps cannot tell apart."""
    for i, name in enumerate(names, 1):
        others = np.delete(x, i, axis=1)
        rest = x[:, i] - others @ np.linalg.lstsq(others, x[:, i])[0]
        if np.abs(rest).max() < 1e-6:
            raise ValueError(
                f"the law is not identified: in the sweeps that have an optimum, {name!r} is the "
                "same, or follows from the other factors. Vary it by itself, or leave it out."
            )


def _told(factors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in factors.items())
