"""Linear models solved exactly, without training: ridge and lasso paths, and λ chosen by evidence.

One convention everywhere, with weights s (1 by default) and an unpenalized intercept b:

    ½ Σ s (y − b − Xw)² + λ (r ‖w‖₁ + (1 − r) ½‖w‖²)      ridge r = 0, lasso r = 1

The sum is over examples, not their mean: λ is scikit-learn's `Ridge(alpha=λ)` and n times (with
weights: Σ s times) the alpha of its Lasso and ElasticNet. `to_sklearn_alpha` converts the λ of a
training loss.

Ridge regression needs only inner products. `statistics` sums them up batch by batch, for data that
do not fit in memory or that lie on many devices, and the ridge functions take the total in place
of x and y.

Precision of ridge: if no value is traced it is computed in float64, whatever the dtype of
the data, and results are rounded to the dtype that JAX would give them, without x64 float32. So
features need not be standardized, and NumPy's float64 is taken as it is; a CPU takes two to three
times as long as in float32. Where even that loses the small directions, as beside a feature 10⁴
times the others or for equal columns and a tiny λ, all is computed once more by singular values,
which takes three to four times as long. Traced values
(under jit, vmap or grad) keep their dtype, and on a TPU all do. In float32 an eigenvalue d or a λ
below about p · eps · d_max is noise there, with eps = 10⁻⁷: features of unlike scales, rows of
weight 0 or of high leverage and small λ then give wrong solutions and scores. Standardize, or
enable x64.
"""

from wdjax.linear._models import (
    GroupRidge,
    LassoPath,
    RidgeCV,
    RidgePath,
    enet_path,
    group_ridge,
    lam_max,
    lasso_path,
    ridge_cv,
    ridge_path,
    to_sklearn_alpha,
)
from wdjax.linear._statistics import Statistics, statistics, total_statistics

__all__ = [
    "GroupRidge",
    "LassoPath",
    "RidgeCV",
    "RidgePath",
    "Statistics",
    "enet_path",
    "group_ridge",
    "lam_max",
    "lasso_path",
    "ridge_cv",
    "ridge_path",
    "statistics",
    "to_sklearn_alpha",
    "total_statistics",
]
