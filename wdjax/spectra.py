"""Multipliers from the spectra of the weights, worked out between steps (AlphaDecay)."""

import math
import re
from typing import Any

import jax
import numpy as np

from wdjax._lift.leaves import Params, is_off
from wdjax._trees import checks
from wdjax.rules import STANDARD, Ruled, Rules, check_rules, ruled


def hill_exponent(matrix: Any) -> float:
    """Estimate the power-law exponent of a matrix's spectrum; small is heavy-tailed.

        α = 1 + n / Σ_{j >= i} ln(e_j / e_i)

    Over the upper half e_i <= ... <= e_N of the eigenvalues of WᵀW, n in number.

    Args:
        matrix: (D, D') real numbers.

    Returns:
        α > 1, the same for W, W with its rows or columns rotated, and c·W; inf where there is no
        tail: a zero, orthogonal or one-dimensional matrix.

    Raises:
        ValueError: the array is not a matrix.

    Example:
        >>> round(hill_exponent(np.diag(np.e ** np.array([0.0, 0.0, 0.5, 1.0]))), 3)
        3.0

    References:
        He et al., *AlphaDecay: Module-wise Weight Decay for Heavy-Tailed Balancing in LLMs*,
        2025, arXiv:2506.14562, section 3; Hill, *A Simple General Approach to Inference About the
        Tail of a Distribution*, 1975.
    """
    if np.ndim(matrix) != 2:
        raise ValueError(f"`matrix` must have two axes; got shape {np.shape(matrix)}.")
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)[::-1]
    if values.size < 2 or values[values.size // 2] <= 1e-12 * values[-1]:
        return math.inf
    tail = 2 * np.log(values[values.size // 2 :] / values[values.size // 2])
    # equal singular values differ by rounding, which does not make a tail
    return 1 + tail.size / float(tail.sum()) if tail[-1] > 1e-9 else math.inf


def alpha_decay(
    params: Params,
    rules: Rules = STANDARD,
    *,
    least: float = 0.5,
    most: float = 1.5,
    smallest: int = 50,
) -> Rules:
    """Turn the spectra of the weights into rules: heavy-tailed matrices decay less.

        m ← m (l + (h − l) (α − α_min) / (α_max − α_min))

    Call it between steps, say every 500, and build the transformation anew: its state stays valid.
    Leaves that are not matrices or have no tail keep their m; with one α for all it is the middle.

    Args:
        params: pytree of arrays.
        rules: which parameters decay, and their m.
        least: l >= 0, the factor of the smallest α.
        most: h >= 0, the factor of the largest α.
        smallest: matrices with a shorter side than this keep their m: too few eigenvalues.

    Returns:
        Rules with one pair per parameter, for the argument `rules` of any transformation.

    Raises:
        RuleError: the rules do not fit the parameters.
        ValueError: `least` is negative, `most` below it, or one is not finite.

    Example:
        >>> from wdjax import resolve
        >>> diagonal = lambda *x: np.diag(np.exp(np.array(x)))
        >>> params = {"a": {"kernel": diagonal(0, 0, 1)}, "b": {"kernel": diagonal(0, 0, 2)}}
        >>> resolve(alpha_decay(params, smallest=2), params)
        {'a': {'kernel': 1.5}, 'b': {'kernel': 0.5}}

    References:
        He et al., *AlphaDecay: Module-wise Weight Decay for Heavy-Tailed Balancing in LLMs*,
        2025, arXiv:2506.14562, equation 4.
    """
    checks.number("least", least, least=0)
    checks.number("most", most, least=least)

    rows, _ = ruled(check_rules(rules), params)

    def exponent(row: Ruled, param: Any) -> float:
        shape = row.leaf.shape
        is_scored = len(shape) == 2 and min(shape) >= smallest and not is_off(row.multiplier)
        return hill_exponent(param) if is_scored else math.inf

    alphas = np.array([*map(exponent, rows, jax.tree.leaves(params))])
    scored = alphas[np.isfinite(alphas)]
    low, high = (scored.min(), scored.max()) if scored.size else (0.0, 0.0)

    def multiplier(alpha: float, m: Any) -> Any:
        if math.isinf(alpha):
            return m
        place = (alpha - low) / (high - low) if high > low else 0.5
        return m * float(least + (most - least) * place)

    return tuple(
        (re.compile(rf"\A{re.escape(row.leaf.path)}\Z"), multiplier(alpha, row.multiplier))
        for row, alpha in zip(rows, alphas, strict=True)
    )
