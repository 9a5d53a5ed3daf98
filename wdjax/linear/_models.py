"""The solvers as users call them: ridge, lasso and elastic net, and their λ; see `wdjax.linear`."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import checks
from wdjax.folds import Folds, check_folds
from wdjax.linear import _data, _lasso, _ridge, _ridge_by_sums, _ridge_by_svd
from wdjax.linear._statistics import Statistics

_STATIC = ("intercept", "exact", "tolerance")
_SUMS = "It is in the `Statistics` already."
_RIDGE = "At 0 the elastic net is ridge regression: call ridge_path."


class RidgePath(NamedTuple):
    """Solutions along a grid of λ; without targets T where y has one axis.

    Attributes:
        coef: (L, p[, T]), w.
        intercept: (L[, T]), b.
        df: (L,), effective degrees of freedom without the intercept: Σ d / (d + λ).
    """

    coef: jax.Array
    intercept: jax.Array
    df: jax.Array


class RidgeCV(NamedTuple):
    """The chosen λ and the fit to all data with it.

    Attributes:
        score: (L,), or (L, T) with per_target: what was minimized.
        lam: (), or (T,) with per_target.
        coef: (p[, T]).
        intercept: ([T]).
        edge: (), or (T,): λ is the smallest or largest of the grid, which should then be longer.
    """

    score: jax.Array
    lam: jax.Array
    coef: jax.Array
    intercept: jax.Array
    edge: jax.Array


class GroupRidge(NamedTuple):
    """A λ for every group and the fit with them.

    Attributes:
        lam: (G,).
        coef: (p[, T]).
        intercept: ([T]).
        score: (), what was minimized, summed over targets.
        edge: (G,), λ is at an end of its range: at the upper one the group is useless, at the lower
            one its features need no shrinking.
    """

    lam: jax.Array
    coef: jax.Array
    intercept: jax.Array
    score: jax.Array
    edge: jax.Array


class LassoPath(NamedTuple):
    """Solutions along a grid of λ, with their certificate.

    Attributes:
        lams: (L,), the grid.
        coef: (L, p), with exact zeros.
        intercept: (L,).
        gap: (L,), duality gap over ‖y − ȳ‖²: no w has an objective lower by more than that.
        converged: (L,), whether gap <= tol.
    """

    lams: jax.Array
    coef: jax.Array
    intercept: jax.Array
    gap: jax.Array
    converged: jax.Array


def ridge_path(
    x: Any,
    y: Any = None,
    lams: Any = None,
    *,
    groups: Any = None,
    intercept: bool = True,
    weights: Any = None,
) -> RidgePath:
    """Ridge regression at every λ of a grid, from one eigendecomposition.

        w(λ) = (XᵀX + λ I)⁻¹ Xᵀy = V diag(1 / (d + λ)) Vᵀ Xᵀy      XᵀX = V diag(d) Vᵀ

    with X and y centered and scaled by √s. Where p is not well below n, the eigenvectors are those
    of XXᵀ. Differentiable in x, y, lams and weights any number of times, equal eigenvalues
    included. In float64 inside unless values are traced: see the module on float32 under jit, vmap
    and grad.

    Args:
        x: X, (n, p), finite. A constant column gets the coefficient 0 beside an intercept. Or the
            `Statistics` of data that do not fit in memory, without y and weights.
        y: (n,), or (n, T) for T targets.
        lams: λ >= 0, (L,); (L, G) with groups. λ = 0 is least squares, of smallest norm where that
            is not unique: a singular value up to p · eps times the largest counts as 0, with the
            eps of x; where traced, up to √(p · eps) times.
        groups: (p,) int, the group 0 ... G − 1 of every feature, for a λ of its own; then λ > 0
            unless p is well below n, and each row of `lams` costs a factorization.
        intercept: fit b, unpenalized.
        weights: s >= 0, (n,); a row with 0 counts as absent.

    Returns:
        `RidgePath`.

    Raises:
        TypeError: an argument is not of numbers, or `intercept` is not a bool.
        ValueError: shapes differ; a value is not finite or out of its range; fewer than two rows.

    Example:
        >>> x, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 3.0, 5.0])
        >>> path = ridge_path(x, y, [0.0, 2.0])
        >>> path.coef[:, 0].round(3), path.intercept.round(3), path.df.round(3)
        (Array([2., 1.], dtype=float32), Array([1., 2.], dtype=float32),
         Array([1. , 0.5], dtype=float32))

    References:
        Hoerl, Kennard, *Ridge Regression: Biased Estimation for Nonorthogonal Problems*, 1970,
        eq. 2.1; Hastie, Tibshirani, Friedman, *The Elements of Statistical Learning*, 2009,
        eq. 3.47 and 3.50.
    """
    if isinstance(x, Statistics):
        _check_sums(y, weights)
        return RidgePath(*_ridge_by_sums.ridge_path(x, lams, groups, intercept))
    x, y, weights = _data.prepared(x, y, weights, intercept)
    labels, count = _data.numbered(groups, x.shape[1])
    lams = _data.grid(lams, x, width=None if groups is None else count, zero=True)
    zero = _data.known(lams) and (lams == 0).any()
    is_wide = groups is not None and _ridge.is_wide(*x.shape)
    rule = "be > 0 with groups where p is not well below n"
    checks.must("lams", not (is_wide and zero), rule, "0")
    path: RidgePath = _data.on_any_scales(
        _ridge_path, x, y, lams, weights, labels,
        intercept=intercept, noise=float(np.finfo(x.dtype).eps),
    )  # fmt: skip
    return path


@functools.partial(jax.jit, static_argnames=("noise", *_STATIC))
def _ridge_path(
    x: Any, y: Any, lams: Any, weights: Any, groups: Any, *,
    intercept: bool, noise: float, exact: bool, tolerance: float,
) -> tuple[RidgePath, Any]:  # fmt: skip
    by = _ridge_by_svd if exact else _ridge
    with jax.default_matmul_precision("highest"):
        problem = _data.centred(x, y, weights, intercept)
        if groups is None:
            coef = by.coefficients(problem, lams, intercept, noise)
            df = by.degrees_of_freedom(problem, lams, intercept, noise)
        else:
            coef, df = _ridge.group_path(problem, lams[:, groups])
        is_lost = groups is None and _ridge_by_svd.are_needed(problem, lams, intercept, tolerance)
        coef, constant = _data.targets(y, coef, _data.intercept_of(problem, coef))
        return RidgePath(coef, constant, df), is_lost


def ridge_cv(
    x: Any,
    y: Any = None,
    lams: Any = None,
    *,
    method: Literal["loo", "gcv", "evidence", "folds"] | Folds = "loo",
    per_target: bool = False,
    intercept: bool = True,
    weights: Any = None,
) -> RidgeCV:
    """Choose λ for ridge regression, and fit with it.

        loo        (1/Σs) Σ s (r / (1 − h))²              every example under the fit to all others
        gcv        (1/n) Σ s r² / (1 − tr H / n)²         the same with the mean leverage
        evidence   ½ (m log(E / m) + log det(I + K/λ))    −log p(y | λ), σ² at its best
        Folds      mean over folds of the mean squared error of the part left out

    r are the residuals, h = diag H the leverages of the hat matrix, K = XXᵀ,
    E = min_w Σ s r² + λ‖w‖², and m = n − 1 with an intercept. Where n is not well above p, r and
    1 − h are both formed as sums of λ / (d + λ): the textbook's differences y − ŷ and 1 − h have no
    correct digit in float32 there, and choose a far too small λ. Computed in float64 unless values
    are traced: see the module on float32 under jit, vmap and grad.

    Args:
        x: X, (n, p), finite. Or the `Statistics` of data that do not fit in memory, without y and
            weights; method is then "gcv", "evidence", or "folds" for the folds that they have.
        y: (n,), or (n, T) for T targets.
        lams: λ > 0, (L,), in any order.
        method: how λ is scored, see above; `Folds` come from kfold, holdout, time_folds or
            Folds.from_sklearn. With several targets scores are averaged (evidence: added).
        per_target: choose a λ for each target.
        intercept: fit b, unpenalized.
        weights: s >= 0, (n,); a row with 0 counts as absent, in the scores too.

    Returns:
        `RidgeCV`. The smallest score wins, of equal ones the largest λ; a score that is not finite
        never does. With traced values the largest λ is also returned where no score is finite.

    Raises:
        TypeError: an argument is not of numbers, `per_target` or `intercept` is not a bool, or the
            method is neither a name nor `Folds`.
        ValueError: shapes differ; a value is not finite or out of its range; fewer than two rows;
            folds that do not fit the rows, or have a part whose weights are all 0; no score is
            below infinity.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(30, 50))
        >>> y = x[:, 0] + 0.1 * rng.normal(size=30)
        >>> chosen = ridge_cv(x, y, np.logspace(-2, 4, 7))
        >>> float(chosen.lam), chosen.score.shape, bool(chosen.edge)
        (10.0, (7,), False)

    References:
        Allen, *The Relationship between Variable Selection and Data Augmentation and a Method for
        Prediction*, 1974; Golub, Heath, Wahba, *Generalized Cross-Validation as a Method for
        Choosing a Good Ridge Parameter*, 1979, eq. 1.4; MacKay, *Bayesian Interpolation*, 1992,
        section 4; Rifkin, Lippert, *Notes on Regularized Least Squares*, 2007.
    """
    checks.flag("per_target", per_target)
    if isinstance(x, Statistics):
        _check_sums(y, weights)
        return RidgeCV(*_ridge_by_sums.ridge_cv(x, lams, method, per_target, intercept))
    x, y, weights = _data.prepared(x, y, weights, intercept)
    lams = _data.grid(lams, x, zero=False)
    name, folds = (method, None) if isinstance(method, str) else ("folds", method)
    if folds is None:
        checks.choice("method", name, _ridge.CRITERIA, "Or give Folds.")
    elif _data.known(*jax.tree.leaves(folds)):
        check_folds(folds, x.shape[0], "method")
        _data.check_fold_weights(folds, weights)
    chosen: RidgeCV = _data.on_any_scales(
        _ridge_cv, x, y, lams, weights, folds,
        method=name, per_target=per_target, intercept=intercept,
    )  # fmt: skip
    _data.check_score(chosen.score)
    return chosen


@functools.partial(jax.jit, static_argnames=("method", "per_target", *_STATIC))
def _ridge_cv(
    x: Any, y: Any, lams: Any, weights: Any, folds: Any, *,
    method: str, per_target: bool, intercept: bool, exact: bool, tolerance: float,
) -> tuple[RidgeCV, jax.Array]:  # fmt: skip
    by, solver = (_ridge_by_svd, _ridge_by_svd.coefficients) if exact else (_ridge, None)
    with jax.default_matmul_precision("highest"):
        problem = _data.centred(x, y, weights, intercept)
        if folds is not None:
            errors = _ridge.fold_errors(x, y, weights, folds, lams, intercept, solver)
            score = jnp.mean(errors, axis=0)
        else:
            fits = by.fits(problem, lams, intercept)
            score = jax.vmap(_ridge.CRITERIA[method], (0, None))(fits, problem)
        if not per_target:
            joint = jnp.sum if method == "evidence" else jnp.mean
            score = joint(score, axis=1, keepdims=True)
        lam, edge = _data.lowest(score, lams)
        coef = by.solve(problem, jnp.broadcast_to(lam, problem.mean_y.shape), intercept)
        is_lost = _ridge_by_svd.are_needed(problem, lams, intercept, tolerance)
        if not per_target:
            score, lam, edge = score[:, 0], lam[0], edge[0]
        coef, constant = _data.targets(y, coef, _data.intercept_of(problem, coef))
        return RidgeCV(score, lam, coef, constant, edge), is_lost


def group_ridge(
    x: Any,
    y: Any = None,
    groups: Any = None,
    *,
    method: Literal["evidence", "loo", "gcv"] = "evidence",
    steps: int = 30,
    intercept: bool = True,
    weights: Any = None,
) -> GroupRidge:
    """Choose a λ for every group of features, by gradient on log λ.

        minimize over log λ:  the score of `ridge_cv` at  w = (XᵀX + Λ)⁻¹ Xᵀy,  Λ = diag λ_group

    Adam, from the best λ_group ∝ d_group on a grid, where d = ‖X_group‖² / min(n, p_group) is the
    mean eigenvalue of the group's own Gram matrix: a group times c gets c² times the λ. Each step
    costs one Cholesky factor of size min(n, p). The best λ on the way is returned. The score is not
    convex: this finds a good local minimum. Computed in float64 unless values are traced: see the
    module on float32 under jit, vmap and grad.

    Args:
        x: X, (n, p), finite. Or the `Statistics` of data that do not fit in memory, without y and
            weights; not for "loo".
        y: (n,), or (n, T) for T targets that share λ.
        groups: (p,) int, the group 0 ... G − 1 of every feature.
        method: what is minimized; evidence is the cheapest and chose best where its Gaussian
            prior holds.
        steps: of Adam on log λ, at a rate that falls from 1 to almost 0; an int >= 1.
        intercept: fit b, unpenalized.
        weights: s >= 0, (n,); a row with 0 counts as absent.

    Returns:
        `GroupRidge`; each λ_group lies within 10⁻⁴ and 10⁶ times d_group. A useless group ends at
        a large one.

    Raises:
        TypeError: an argument is not of numbers, or `intercept` is not a bool.
        ValueError: shapes differ; a value is not finite or out of its range; fewer than two rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 20))
        >>> y = x[:, :10].sum(axis=1) + rng.normal(size=40)
        >>> signal, noise = group_ridge(x, y, np.repeat([0, 1], 10)).lam
        >>> bool(100 * signal < noise)
        True

    References:
        MacKay, *Bayesian Interpolation*, 1992, section 4; Tipping, *Sparse Bayesian Learning and
        the Relevance Vector Machine*, 2001; Dupré la Tour et al., *Feature-space selection with
        banded ridge regression*, 2022.
    """
    checks.must("groups", groups is not None, "give the group of every feature", "None")
    checks.whole("steps", steps)
    if isinstance(x, Statistics):
        _check_sums(y, weights)
        return GroupRidge(*_ridge_by_sums.group_ridge(x, groups, method, steps, intercept))
    x, y, weights = _data.prepared(x, y, weights, intercept)
    labels, count = _data.numbered(groups, x.shape[1])
    checks.choice("method", method, ("evidence", "loo", "gcv"))
    found: GroupRidge = _data.in_float64(
        _group_ridge, x, y, labels, weights,
        count=count, method=method, steps=steps, intercept=intercept,
    )  # fmt: skip
    return found


@functools.partial(jax.jit, static_argnames=("count", "method", "steps", "intercept"))
def _group_ridge(
    x: Any, y: Any, groups: Any, weights: Any, *,
    count: int, method: str, steps: int, intercept: bool,
) -> GroupRidge:  # fmt: skip
    with jax.default_matmul_precision("highest"):
        problem = _data.centred(x, y, weights, intercept)
        lam, edge, score = _ridge.group_lams(problem, groups, count, method, steps, intercept)
        coef = _ridge.group_path(problem, lam[groups][None])[0][0]
        coef, constant = _data.targets(y, coef, _data.intercept_of(problem, coef))
        return GroupRidge(lam, coef, constant, score, edge)


def _check_sums(y: Any, weights: Any) -> None:
    for name, value in {"y": y, "weights": weights}.items():
        checks.must(name, value is None, "be left out beside `Statistics`", "one", _SUMS)


def enet_path(
    x: Any,
    y: Any,
    lams: Any = None,
    *,
    l1_ratio: float = 0.5,
    tol: float = 1e-4,
    max_sweeps: int = 1_000,
    max_active: int | None = None,
    intercept: bool = True,
    weights: Any = None,
) -> LassoPath:
    """Elastic net at every λ of a grid, each solution with its duality gap.

        minimize over w, b:  ½ Σ s (y − b − Xw)² + λ (r ‖w‖₁ + (1 − r) ½‖w‖²)

    Cyclic coordinate descent on inner products, from the largest λ to the smallest, each from the
    solution before it. With more features than `max_active`, on a working set: at each λ, by turns,
    the features that violate optimality most are taken in, the set is solved, all features are
    looked at. It stops when the duality gap over all features is small enough.

    Differentiable in x, y, lams and weights on the support, which a small enough change keeps; the
    accuracy is that of the solution, so take a small `tol`. Under `vmap` all members wait for the
    slowest: `jax.lax.map` is faster on a CPU.

    Args:
        x: X, (n, p), finite.
        y: (n,), or (n, T) for T targets, each solved separately.
        lams: λ > 0, (L,), in any order; by default 100 values in equal ratios, from `lam_max` down
            to a thousandth of it.
        l1_ratio: r in (0, 1]; 1 is the lasso. r = 0 is `ridge_path`.
        tol: the gap, in units of ‖y − ȳ‖², at which a solution is good enough; > 0. As
            scikit-learn's.
        max_sweeps: most passes over the features in use at one λ.
        max_active: most features in use at once: memory for its square and for n of its multiples
            is taken. By default n + 128; with r < 1 4n + 128 and, where nothing is traced and
            these do not suffice, all; at most 4,096.
        intercept: fit b, unpenalized.
        weights: s >= 0, (n,); a row with 0 counts as absent.

    Returns:
        `LassoPath`. Where `max_sweeps` or `max_active` did not suffice, `converged` is False and
        the gap says by how much. With T targets coef is (L, p, T), all others but lams (L, T).

    Raises:
        TypeError: an argument is not of numbers, or `intercept` is not a bool.
        ValueError: shapes differ; a value is not finite or out of its range; fewer than two rows;
            no grid is given and all features or y are constant.

    Example:
        >>> x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> path = enet_path(x, np.array([3.0, -3.0, 1.0, -1.0]), [4.0, 2.0], l1_ratio=0.5)
        >>> path.coef.round(3), path.converged
        (Array([[1.   , 0.   ],
               [1.667, 0.333]], dtype=float32), Array([ True,  True], dtype=bool))

    References:
        Friedman, Hastie, Tibshirani, *Regularization Paths for Generalized Linear Models via
        Coordinate Descent*, 2010, section 2; Zou, Hastie, *Regularization and Variable Selection
        via the Elastic Net*, 2005; Fercoq, Gramfort, Salmon, *Mind the Duality Gap*, 2015,
        arXiv:1505.03410; Massias, Gramfort, Salmon, *Celer: a Fast Solver for the Lasso with Dual
        Extrapolation*, 2018, arXiv:1802.07481, algorithm 1 (the working set; without its
        extrapolation).
    """
    x, y, weights = _data.prepared(x, y, weights, intercept)
    checks.number("l1_ratio", l1_ratio, above=0, most=1, advice=_RIDGE)
    checks.number("tol", tol, above=0)
    checks.whole("max_sweeps", max_sweeps)
    checks.whole("max_active", max_active, optional=True)
    if lams is None:
        largest = lam_max(x, y, l1_ratio, intercept=intercept, weights=weights)
        fits = not _data.known(largest) or largest > 0
        got = "None: at every λ > 0 all coefficients are 0"
        checks.must("lams", fits, "be given where y is constant", got)
        lams = largest * jnp.logspace(0, -3, 100, dtype=largest.dtype)
    lams = _data.grid(lams, x, zero=False)
    lasso_only = _data.known(l1_ratio) and l1_ratio == 1
    x, y, *means = _data.near_zero(x, y, weights, intercept)
    solve = functools.partial(_enet_path, x, y, lams, l1_ratio, weights, intercept=intercept)
    first, last = _lasso.sizes(x.shape, lasso_only, max_active)
    path: LassoPath = solve(options=_lasso.Options(float(tol), max_sweeps, first))
    if first < last and _lasso.is_full(path.coef, path.converged, first):
        path = solve(options=_lasso.Options(float(tol), max_sweeps, last))
    return path._replace(intercept=path.intercept + _data.offset(path.coef, *means))


@functools.partial(jax.jit, static_argnames=("options", "intercept"))
def _enet_path(
    x: Any, y: Any, lams: Any, l1_ratio: Any, weights: Any, *,
    options: _lasso.Options, intercept: bool,
) -> LassoPath:  # fmt: skip
    with jax.default_matmul_precision("highest"):
        problem = _data.centred(x, y, weights, intercept)
        order = jnp.argsort(-lams)
        falling = lams[order]
        ratio = jnp.asarray(l1_ratio, x.dtype)
        strength = _lasso.Strength(falling * ratio, falling * (1 - ratio))
        coef, gap = _lasso.path(problem.x, problem.y, strength, options)
        back = jnp.argsort(order)
        coef, gap = jnp.moveaxis(coef, 0, -1)[back], gap.T[back]
        found = _data.targets(y, coef, _data.intercept_of(problem, coef), gap, gap <= options.tol)
        return LassoPath(lams, *found)


def lasso_path(
    x: Any,
    y: Any,
    lams: Any = None,
    *,
    tol: float = 1e-4,
    max_sweeps: int = 1_000,
    max_active: int | None = None,
    intercept: bool = True,
    weights: Any = None,
) -> LassoPath:
    """The lasso at every λ of a grid, each solution with its duality gap: `enet_path` at r = 1.

        minimize over w, b:  ½ Σ s (y − b − Xw)² + λ ‖w‖₁

    Args:
        x: X, (n, p), finite.
        y: (n,), or (n, T) for T targets, each solved separately.
        lams: λ > 0, (L,), in any order; by default 100 values in equal ratios, from `lam_max` down
            to a thousandth of it.
        tol: the gap, in units of ‖y − ȳ‖², at which a solution is good enough; > 0.
        max_sweeps: most passes over the features in use at one λ.
        max_active: most features in use at once; by default n + 128, at most 4,096.
        intercept: fit b, unpenalized.
        weights: s >= 0, (n,); a row with 0 counts as absent.

    Returns:
        `LassoPath`; see `enet_path`.

    Raises:
        TypeError: as `enet_path`.
        ValueError: as `enet_path`.

    Example:
        >>> x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> path = lasso_path(x, np.array([3.0, -3.0, 1.0, -1.0]), [4.0, 2.0])
        >>> path.coef  # Xᵀy = (6, 2), XᵀX = 2 I
        Array([[1., 0.],
               [2., 0.]], dtype=float32)

    References:
        Tibshirani, *Regression Shrinkage and Selection via the Lasso*, 1996, eq. 2; and those of
        `enet_path`.
    """
    return enet_path(
        x, y, lams, l1_ratio=1.0, tol=tol, max_sweeps=max_sweeps, max_active=max_active,
        intercept=intercept, weights=weights,
    )  # fmt: skip


def lam_max(
    x: Any, y: Any, l1_ratio: float = 1.0, *, intercept: bool = True, weights: Any = None
) -> jax.Array:
    """The smallest λ at which all coefficients of `enet_path` are 0.

        λ_max = max_j |x_jᵀ y| / r      x and y centered and scaled by √s

    Args:
        x: X, (n, p), finite.
        y: (n,), or (n, T): the largest over targets.
        l1_ratio: r in (0, 1].
        intercept: whether b is fitted.
        weights: s >= 0, (n,).

    Returns:
        (), of the dtype of x.

    Raises:
        TypeError: an argument is not of numbers, or `intercept` is not a bool.
        ValueError: shapes differ; a value is not finite or out of its range; fewer than two rows.

    Example:
        >>> float(lam_max(np.array([[1.0], [2.0], [6.0]]), np.array([0.0, 0.0, 3.0])))
        9.0

    References:
        Friedman, Hastie, Tibshirani, *Regularization Paths for Generalized Linear Models via
        Coordinate Descent*, 2010, section 2.5.
    """
    x, y, weights = _data.prepared(x, y, weights, intercept)
    checks.number("l1_ratio", l1_ratio, above=0, most=1, advice=_RIDGE)
    x, y, *_ = _data.near_zero(x, y, weights, intercept)
    largest: jax.Array = _lam_max(x, y, weights, intercept=intercept)
    return largest / l1_ratio


@functools.partial(jax.jit, static_argnames="intercept")
def _lam_max(x: Any, y: Any, weights: Any, *, intercept: bool) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        problem = _data.centred(x, y, weights, intercept)
        return jnp.max(jnp.abs(problem.x.T @ problem.y))


_LOSSES: dict[str, Callable[[Any], Any]] = {
    "mse": lambda n: 1 / n,
    "half_mse": lambda n: 1 / (2 * n),
    "sum": lambda n: 1,
    "half_sum": lambda n: 1 / 2,
}


def to_sklearn_alpha(
    lam: Any,
    n: int,
    loss: Literal["mse", "half_mse", "sum", "half_sum"] = "mse",
    *,
    penalty: Literal["decay", "loss"] = "decay",
    norm: Literal["l2", "l1"] = "l2",
) -> Any:
    """Scikit-learn's alpha for the λ of a training objective.

        objective: c Σ r² + λ R(w)        l2: alpha = λ d / c        l1: alpha = λ / (2 n c)

        loss        c          l2, decay: λ/2 ‖w‖²    l2, loss: λ‖w‖²    l1: λ‖w‖₁
        mse         1/n        n λ / 2                n λ                λ / 2
        half_mse    1/(2n)     n λ                    2 n λ              λ
        sum         1          λ / 2                  λ                  λ / (2n)
        half_sum    1/2        λ                      2 λ                λ / n

    d is ½ for decay and 1 for loss. This module's own λ is that of half_sum with decay: it equals
    Ridge's alpha and n times Lasso's, so for l2 the result is also the λ for `ridge_path`, and for
    l1 n times the result is the λ for `lasso_path`.

    Args:
        lam: λ >= 0, a number or an array.
        n: number of examples, or the sum of their weights.
        loss: the data part: mse (1/n) Σ r², half_mse (1/2n) Σ r², sum Σ r², half_sum ½ Σ r².
        penalty: for l2, decay is λ/2 ‖w‖², whose gradient λw weight decay adds; loss is λ‖w‖²
            written into the loss. For l1 both are λ‖w‖₁.
        norm: l2 for Ridge's alpha, l1 for Lasso's.

    Returns:
        alpha, with the shape of `lam`.

    Raises:
        TypeError: λ or n is not a number.
        ValueError: a name is not one of those above; λ < 0; n < 1.

    Example:
        >>> to_sklearn_alpha(0.1, 80), to_sklearn_alpha(0.1, 80, "half_mse", norm="l1")
        (4.0, 0.1)
    """
    checks.choice("loss", loss, _LOSSES)
    checks.choice("penalty", penalty, ("decay", "loss"))
    checks.choice("norm", norm, ("l2", "l1"))
    checks.number("n", n, least=1)
    checks.number("lam", lam, least=0, many=True)
    c = _LOSSES[loss](n)
    if norm == "l1":
        return lam / (2 * n * c)
    return lam / (2 * c) if penalty == "decay" else lam / c
