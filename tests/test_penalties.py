import dataclasses
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from cases import MATRICES, PENALTIES

import wdjax
from wdjax import matrices, penalties


def compiled(penalty):
    """The same penalty, of whose functions each is one program for each shape."""
    parts = {part: getattr(penalty, part) for part in ("prox", "value", "gradient")}
    parts = {part: jax.jit(function) for part, function in parts.items() if function}
    return dataclasses.replace(penalty, **parts)


EAGER = PENALTIES | MATRICES
ALL = {name: case._replace(penalty=compiled(case.penalty)) for name, case in EAGER.items()}


def rows_where(condition):
    chosen = {name: case for name, case in ALL.items() if condition(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


rows = rows_where(lambda case: True)
proximal = rows_where(lambda case: case.prox)
convex = rows_where(lambda case: case.prox and case.convex)
joint = rows_where(lambda case: case.prox and case.value and not case.penalty.separable)
valued = rows_where(lambda case: case.value)
smooth = rows_where(lambda case: case.gradient)
separable = rows_where(lambda case: case.penalty.separable)
OF_MATRICES = {case.penalty.name for case in MATRICES.values()}
of_matrices = rows_where(lambda case: case.penalty.name in OF_MATRICES)
Z = np.array([[0.0, 1.5, -0.2], [0.4, -0.4, 3.0], [0.0, 0.0, 0.0], [-2.0, 0.05, 1e-4]])
STRENGTHS = (0.0, 0.1, 1.0, 7.0)


def draw(seed):
    """Entries of the shape of Z: one shape is compiled once for all tests."""
    return np.random.default_rng(seed).normal(size=Z.shape)


def tolerance(case):
    """Two decompositions agree to rounding of the largest singular value, about 4."""
    return 2e-14 if case.penalty.name in OF_MATRICES else 1e-15


@proximal
def test_prox_equals_the_reference(case, x64):
    for s in STRENGTHS:
        ours = case.penalty.prox(Z, s)
        np.testing.assert_allclose(ours, case.prox(Z, s), rtol=1e-13, atol=tolerance(case))


@joint
@pytest.mark.parametrize("s", [0.1, 1.0])
@pytest.mark.first_is_quick
def test_prox_minimizes_its_objective(case, s, x64):
    """No reference at all: the definition, against a general-purpose minimizer."""
    z = np.random.default_rng(0).normal(size=(3, 2))

    def objective(x):
        return 0.5 * np.sum((x - z.ravel()) ** 2) + s * case.value(x.reshape(z.shape))

    ours = np.asarray(case.penalty.prox(z, s))
    found = scipy.optimize.minimize(
        objective, ours.ravel() + 0.1, method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20_000, "maxfev": 40_000},
    )  # fmt: skip
    assert objective(ours.ravel()) <= found.fun + 1e-9


@separable
@pytest.mark.first_is_quick
def test_prox_is_the_global_minimizer_of_a_dense_scan(case, x64):
    """Whatever the shape of R: no x on a grid of step 1e-3 is cheaper than the prox."""
    z = np.append(np.linspace(-3.97, 4.01, 61), [0.0, 1e-3, 6.0])
    strengths = np.array([0.02, 0.1, 0.5, 1.0, 1.2, 1.5, 2.0, 7.0])
    ours = np.asarray(jax.vmap(case.penalty.prox, (None, 0))(z, strengths))
    grid = np.linspace(-7, 7, 14_001)
    values = np.asarray(jax.vmap(case.penalty.value)(np.append(grid, ours)))
    of_grid, of_ours = values[: grid.size], values[grid.size :].reshape(ours.shape)
    for s, x, value in zip(strengths, ours, of_ours, strict=True):
        scan = 0.5 * (grid - z[:, None]) ** 2 + s * of_grid
        assert np.all(0.5 * (x - z) ** 2 + s * value <= scan.min(axis=1) + 1e-12)


@separable
@pytest.mark.first_is_quick
def test_an_array_of_strengths_acts_entry_by_entry(case, x64):
    strengths = np.random.default_rng(6).uniform(0, 3, Z.shape)
    strengths[0, 1] = 0.0
    together = np.asarray(case.penalty.prox(Z, strengths))
    for index, s in np.ndenumerate(strengths):
        alone = case.penalty.prox(Z[index].reshape(1, 1), float(s)).item()
        assert np.isclose(together[index], alone, rtol=1e-13, atol=1e-15)


@rows
def test_separable_says_whether_entries_are_independent(case, x64):
    if case.penalty.prox is None:
        assert not case.penalty.separable
        return
    z = draw(7)
    alone = np.array([case.penalty.prox(x.reshape(1, 1), 0.3).item() for x in z.ravel()])
    together = np.asarray(case.penalty.prox(z, 0.3))
    assert case.penalty.separable == np.allclose(together.ravel(), alone)


@valued
def test_value_equals_the_reference(case, x64):
    assert np.isclose(case.penalty.value(Z), case.value(Z), rtol=1e-13)


@smooth
def test_gradient_equals_the_reference(case, x64):
    ours = case.penalty.gradient(Z)
    assert np.allclose(ours, case.gradient(Z), rtol=1e-13, atol=tolerance(case))


@smooth
def test_gradient_is_the_derivative_of_the_value_and_zero_at_zero(case, x64):
    derivative, z, zero = jax.jit(jax.grad(case.penalty.value)), draw(1), np.zeros(Z.shape)
    chex.assert_trees_all_close(case.penalty.gradient(z), derivative(z), rtol=1e-12, atol=1e-14)
    assert not np.any(derivative(zero))
    assert not np.any(case.penalty.gradient(zero))


@rows_where(  # the cubic has no bound
    lambda case: case.gradient and not case.penalty.name.startswith(("orthogonal", "cubic"))
)
def test_curvature_bounds_the_second_derivative_and_is_reached(case, x64):
    """An explicit step with s · curvature = 1 still shrinks; elsewhere the bound is attained."""
    steps = np.linspace(-2, 2, 4001)
    gradient = np.ravel(jax.vmap(case.penalty.gradient)(steps[:, None, None]))
    smooth = np.abs(steps[1:] + steps[:-1]) > 0.01  # away from the kink at 0
    slopes = (np.diff(gradient) / np.diff(steps))[smooth]
    assert np.isclose(slopes.max(), case.penalty.curvature, atol=1e-6)


@proximal
def test_zero_is_a_fixed_point_and_the_prox_is_odd_and_keeps_signs(case, x64):
    assert not np.any(case.penalty.prox(np.zeros(Z.shape), 0.5))
    z = draw(2)
    shrunk = np.asarray(case.penalty.prox(z, 0.5))
    assert np.allclose(case.penalty.prox(-z, 0.5), -shrunk, atol=1e-14)
    assert not case.keeps_signs or np.all(np.sign(shrunk) * np.sign(z) >= 0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_leaves_stay_empty(shape):
    @jax.jit
    def parts(z):
        penalties = [case.penalty for case in EAGER.values()]
        kept = [p.prox(z, 0.5) for p in penalties if p.prox]
        kept += [p.gradient(z) for p in penalties if p.gradient]
        return kept, {p.name: p.value(z) for p in penalties if p.value}

    kept, values = parts(np.zeros(shape))
    assert {leaf.shape for leaf in kept} == {shape}
    assert not any(values.values()), values


@proximal
def test_tiny_and_huge_entries_stay_finite(case):
    z = np.array([[1e-30, -1e-38, 0.0], [1e-45, 1e15, -1e10]] * 2, np.float32)

    both = jax.jit(lambda s: jax.jvp(lambda s: case.penalty.prox(z, s), (s,), (jnp.ones_like(s),)))
    for s in (0.0, 1e-12, 0.5, 1e6):
        shrunk, slope = both(s)
        assert np.all(np.isfinite(shrunk))
        assert s == 0 or np.all(np.isfinite(slope))


@convex
@pytest.mark.parametrize("s", [0.1, 2.0])
def test_prox_is_non_expansive(case, s, x64):
    for seed in range(20):
        x, y = draw(seed), draw(100 + seed)
        moved = np.linalg.norm(case.penalty.prox(x, s) - case.penalty.prox(y, s))
        assert moved <= np.linalg.norm(x - y) * (1 + 1e-12)


@proximal
@pytest.mark.first_is_quick
def test_prox_runs_under_vmap_over_strengths(case, x64):
    together = jax.vmap(case.penalty.prox, (None, 0))(Z, np.array(STRENGTHS))
    alone = [case.penalty.prox(Z, s) for s in STRENGTHS]
    assert np.allclose(together, np.stack(alone), rtol=1e-13, atol=1e-13)


def test_complex_parameters_shrink_by_their_modulus():
    z = np.array([3 + 4j, 0.3 + 0.4j], np.complex64)
    assert np.allclose(penalties.l1.prox(z, 1.0), [2.4 + 3.2j, 0])
    assert np.isclose(penalties.l2.value(z), 12.625)
    assert penalties.l2.value(z).dtype == jnp.float32


def test_groups_run_along_the_given_axes_of_a_stacked_kernel(x64):
    """Stacked layers (layer, in, out): axes=1 groups the inputs of each output of each layer."""
    z = np.random.default_rng(4).normal(size=(2, 3, 4))
    ours = compiled(penalties.group_lasso(axes=1)).prox(z, 0.5)
    want = z * np.maximum(1 - 0.5 / np.linalg.norm(z, axis=1, keepdims=True), 0)
    assert np.allclose(ours, want)
    both = compiled(penalties.ball(0.5, axes=(-2, -1))).prox(z, 1.0)
    assert np.allclose(np.linalg.norm(both, axis=(1, 2)), 0.5)


def test_special_cases_reduce_to_simpler_penalties(x64):
    pairs = [
        (penalties.elastic_net(1.0), penalties.l1),
        (penalties.elastic_net(0.0), penalties.l2),
        (penalties.huber(1e9), penalties.l2),
    ]

    @jax.jit
    def both(z):
        of_pair = [[(p.prox(z, 0.3), p.value(z)) for p in pair] for pair in pairs]
        soft = penalties.l1.prox(z, 0.3)
        one_entry = penalties.group_lasso(axes=()).prox(z, 0.3)
        sharp = penalties.huber(1e-9).prox(z, 0.3e9)
        return of_pair, one_entry, sharp, soft

    of_pair, one_entry, sharp, soft = both(Z)
    for special, simple in of_pair:
        chex.assert_trees_all_close(special, simple, atol=1e-15)
    assert np.allclose(one_entry, soft, atol=1e-15)
    assert np.allclose(sharp, soft, atol=1e-8)


def test_limits_of_the_concave_penalties_are_lasso_and_hard_threshold(x64):
    @jax.jit
    def limits(z, s):
        soft, hard = penalties.l1.prox(z, s), penalties.l0.prox(z, s)
        return [
            (penalties.mcp(1e12).prox(z, s), soft),
            (penalties.scad(1e12).prox(z, s), soft),
            (penalties.p_norm(1.0, 1e-12).prox(z, s), soft),
            (penalties.p_norm(2.0).prox(z, s), z / (1 + 2 * s)),
            (penalties.p_norm(0.5, 1e-12).prox(z, s), penalties.l_half.prox(z, s)),
            (penalties.mcp(1e-12).prox(z, 2 * s / 1e-12), hard),
            (penalties.scad(1e-12, a=3.0).prox(z, s / 2e-12), hard),
        ]

    for s in (0.02, 0.3, 2.0):
        for special, simple in limits(np.linspace(-3.01, 3, 100), s):
            assert np.allclose(special, simple, atol=1e-7)


@pytest.mark.parametrize("p", [0.5, 0.8, 1.0, 1.5, 2.0])
def test_repeating_the_published_p_norm_step_from_outside_ends_at_the_prox(p, x64):
    """θ ← c X / (X + p s) with X = |θ|²⁻ᵖ majorizes at θ; its fixed point is stationary."""
    c, s = 1.7, 0.3
    theta = c
    for _ in range(500):
        theta = c * theta ** (2 - p) / (theta ** (2 - p) + p * s)
    ours = compiled(penalties.p_norm(p, 1e-6)).prox(np.array([c]), s)
    assert np.isclose(ours, theta, rtol=1e-12)


def test_zero_absorbs_the_published_p_norm_step_but_not_the_prox(x64):
    s, p, theta, candidate = 0.01, 0.8, 0.0, 0.5
    power = abs(theta) ** (2 - p)
    assert candidate * power / (power + p * s) == 0
    assert compiled(penalties.p_norm(p)).prox(np.array([candidate]), s) > 0.48


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.6, 1.0, 1.4])
def test_the_derivative_of_the_p_norm_prox_is_right(p, x64):
    prox = compiled(penalties.p_norm(p, 0.05)).prox
    at, h = (np.array([0.02, 0.9, -2.0]), 0.2), 1e-6
    for along in (np.ones(3), 0.0), (np.zeros(3), 1.0):
        ends = [prox(at[0] + step * along[0], at[1] + step * along[1]) for step in (h, -h)]
        slope = jax.jvp(prox, at, along)[1]
        assert np.allclose(slope, (ends[0] - ends[1]) / (2 * h))


def test_spread_leaves_the_mean_and_a_single_entry_alone(x64):
    z = np.random.default_rng(8).normal(3, 1, size=(6, 2))
    spread = compiled(penalties.spread())
    for s in (0.1, 100.0):
        assert np.isclose(np.mean(spread.prox(z, s)), z.mean(), rtol=1e-14)
    assert np.allclose(spread.prox(z, 100.0), z.mean(), rtol=1e-14)
    assert np.array_equal(compiled(penalties.spread(axes=())).prox(z, 1.0), z)
    assert np.isclose(spread.value(z), np.std(z, ddof=1), rtol=1e-14)


# Matrices.

WELL = np.random.default_rng(9).normal(size=(5, 3))


def test_on_diagonal_matrices_the_nuclear_norm_is_the_lasso(x64):
    entries = np.array([2.0, -1.5, 0.3, -0.1])
    ours = ALL["nuclear"].penalty.prox(np.diag(entries), 0.5)
    assert np.allclose(ours, np.diag([1.5, -1.0, 0, 0]), atol=1e-14)


def test_a_nuclear_prox_beyond_the_largest_singular_value_is_exactly_zero():
    assert not np.any(ALL["nuclear"].penalty.prox(WELL, 100.0))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_orthogonal_decay_drives_all_singular_values_to_one(shape, x64):
    tx = wdjax.decay_weights(0.02, matrices.orthogonal)

    @jax.jit
    def decayed(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
            return (jax.tree.map(jnp.add, params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=300)
        return params, matrices.orthogonal.value(params["kernel"])

    params, value = decayed({"kernel": np.random.default_rng(10).normal(size=shape)})
    assert np.allclose(np.linalg.svd(params["kernel"], compute_uv=False), 1, atol=1e-9)
    assert value < 1e-15  # for wide ones, too


def test_the_curvature_of_orthogonality_is_the_one_at_its_minimum(x64):
    gradient = ALL["orthogonal"].penalty.gradient
    _, slope = jax.jvp(gradient, (np.ones((1, 1)),), (np.ones((1, 1)),))
    assert slope == matrices.orthogonal.curvature


def test_the_spectral_cap_keeps_singular_vectors_and_matrices_within_it(x64):
    capped = matrices.spectral_cap(1.0).prox(WELL, 1.0)
    left, sigma, right = np.linalg.svd(WELL, full_matrices=False)
    assert np.allclose(left.T @ capped @ right.T, np.diag(np.minimum(sigma, 1)), atol=1e-14)
    assert np.array_equal(matrices.spectral_cap(100.0).prox(WELL, 1.0), WELL)


def test_the_spectral_prox_lowers_only_the_largest_singular_values(x64):
    z, prox = np.diag([4.0, 1.0, 0.5]), ALL["spectral"].penalty.prox
    assert np.allclose(prox(z, 1.0), np.diag([2.0, 1.0, 0.5]), atol=1e-14)
    assert np.allclose(prox(z, 4.0), np.diag([5 / 6, 5 / 6, 0.5]), atol=1e-14)


@of_matrices
def test_scan_stacked_layers_are_penalized_one_by_one(case, x64):
    stack = np.random.default_rng(11).normal(size=(2, 3, 4, 3))
    layers = stack.reshape(6, 4, 3)
    penalty = case.penalty
    if penalty.value is not None:
        alone = sum(penalty.value(layer) for layer in layers)
        assert np.isclose(penalty.value(stack), alone, rtol=1e-13)
    maps = {"prox": lambda z: penalty.prox(z, 0.3), "gradient": penalty.gradient}
    for part, function in maps.items():
        if getattr(penalty, part) is not None:
            alone = np.stack([function(layer) for layer in layers]).reshape(stack.shape)
            assert np.allclose(function(stack), alone, atol=1e-13)


def test_the_gradient_of_a_matrix_of_low_rank_ignores_the_null_space(x64):
    z = np.outer([3.0, 4.0, 0.0], [1.0, 0.0])
    assert np.allclose(ALL["nuclear"].penalty.gradient(z), z / 5, atol=1e-14)


@of_matrices
def test_a_vector_is_no_matrix(case):
    penalty = case.penalty
    message = (
        rf"`{penalty.name.split('(')[0]}.*` needs matrices, or stacks of them; "
        r"got a leaf of shape \(3,\). Restrict the penalty by `rules`."
    )
    parts = [penalty.value, penalty.gradient, penalty.prox and (lambda z: penalty.prox(z, 1.0))]
    for part in filter(None, parts):
        with pytest.raises(ValueError, match=message):
            part(np.ones(3))


def test_orthogonality_has_no_prox():
    assert matrices.orthogonal.prox is None
    with pytest.raises(TypeError, match=r"`prox_weights` needs a penalty with a prox; .*orthogona"):
        wdjax.prox_weights(0.1, matrices.orthogonal)


# Other people's code. jaxopt and skglm state the same proximal maps independently.


@pytest.fixture
def jaxopt_prox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no longer maintained, says jaxopt
        pytest.importorskip("jaxopt", reason="jaxopt comes with the extra 'oracles'")
        from jaxopt import prox
    return prox


def test_convex_proxes_equal_jaxopt(jaxopt_prox, x64, agrees):
    pairs = {
        "l2": (penalties.l2, jaxopt_prox.prox_ridge, lambda s: s),
        "l1": (penalties.l1, jaxopt_prox.prox_lasso, lambda s: s),
        "elastic_net": (penalties.elastic_net(0.3), jaxopt_prox.prox_elastic_net,
                        lambda s: (0.3 * s, 0.7 / 0.3)),
        "group_lasso": (penalties.group_lasso(), jaxopt_prox.prox_group_lasso, lambda s: s),
    }  # fmt: skip

    @jax.jit
    def both(z, s):
        return {name: (p.prox(z, s), theirs(z, of(s))) for name, (p, theirs, of) in pairs.items()}

    for s in (0.1, 1.0):
        for name, (ours, want) in both(Z, s).items():
            agrees(f"penalties.{name}", "jaxopt", ours, want, rtol=1e-14, atol=1e-16)


@pytest.fixture
def skglm_prox():
    pytest.importorskip("skglm", reason="skglm comes with the extra 'oracles'")
    from skglm.utils import prox_funcs

    return prox_funcs


@pytest.mark.slow
@pytest.mark.parametrize("s", [0.1, 0.5, 1.0])
def test_concave_proxes_equal_skglm(skglm_prox, s, x64, agrees):
    """Their MCP holds for steps below γ, and their λ, fixed at 1 here, is both scale and knee."""
    z = np.linspace(-3.02, 3, 61)
    ours = {
        "mcp": penalties.mcp(1.5).prox(z, s),
        "scad": penalties.scad(1.0, a=3.7).prox(z, s),
        "l_half": penalties.l_half.prox(z, s),
    }
    theirs = {
        "mcp": [skglm_prox.prox_MCP(x, s, 1.0, 1.5) for x in z],
        "scad": [skglm_prox.prox_SCAD(x, s, 1.0, 3.7) for x in z],
        "l_half": [skglm_prox.prox_05(x, s) for x in z],
    }
    for name, values in theirs.items():
        agrees(f"penalties.{name}", "skglm", ours[name], values, rtol=1e-13, atol=1e-15)


@pytest.mark.slow
def test_concave_values_equal_skglm(skglm_prox, x64, agrees):
    z = np.linspace(-6, 6, 61)
    mcp = penalties.mcp(1.5).value(z)
    scad = penalties.scad(1.0, a=3.7).value(z)
    want = skglm_prox.value_MCP(z, 1.0, 1.5), skglm_prox.value_SCAD(z, 1.0, 3.7)
    agrees("penalties.mcp", "skglm", mcp, want[0], rtol=1e-13, atol=1e-8)
    agrees("penalties.scad", "skglm", scad, want[1], rtol=1e-13, atol=1e-8)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_ball_equals_torch_renorm(axis, x64, agrees):
    """The limit lies between the norms, so that some groups are projected and some are not."""
    torch = pytest.importorskip("torch", reason="torch comes with the extra 'oracles'")
    ours = compiled(penalties.ball(1.8, axes=1 - axis)).prox(Z, 1.0)
    theirs = torch.renorm(torch.tensor(Z), p=2, dim=axis, maxnorm=1.8).numpy()
    assert 0 < np.sum(np.any(theirs != Z, axis=1 - axis)) < Z.shape[axis]
    agrees("penalties.ball", "torch", ours, theirs, atol=2e-7)  # it adds 1e-7 to the norms


def test_penalty_value_sums_over_rules_in_float32():
    params = {
        "kernel": np.ones((300, 10), jnp.bfloat16),
        "head": {"kernel": np.array([[3.0, 4.0]], np.float32)},
        "bias": np.array([100.0], np.float32),
    }
    rules = (("head/kernel", 0.5), *wdjax.standard())
    value = jax.jit(lambda params: wdjax.penalty_value(penalties.l2, params, rules))(params)
    assert value.dtype == jnp.float32
    assert float(value) == 3000 / 2 + 0.5 * 25 / 2  # bfloat16 would not count beyond 256


def test_penalty_value_in_a_loss_gives_the_gradient_of_coupled_decay():
    params = {"kernel": np.array([[3.0, -4.0]]), "bias": np.array([1.0])}
    grads = jax.jit(jax.grad(lambda p: 0.1 * wdjax.penalty_value(penalties.l2, p)))(params)
    assert np.allclose(grads["kernel"], [[0.3, -0.4]])
    assert np.allclose(grads["bias"], 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: penalties.elastic_net(1.5), r"`l1_ratio` must be in \[0, 1\]; got 1.5"),
        (lambda: penalties.elastic_net(float("nan")), r"`l1_ratio` must be in \[0, 1\]; got nan"),
        (lambda: penalties.huber(0.0), r"`delta` must be a finite number > 0; got 0.0"),
        (lambda: penalties.p_norm(0.0), r"`p` must be in \(0, 2\]; got 0.0"),
        (lambda: penalties.p_norm(2.5), r"`p` must be in \(0, 2\]; got 2.5"),
        (lambda: penalties.p_norm(0.8, 0.0), r"`floor` must be a finite number > 0; got 0.0"),
        (lambda: penalties.mcp(0.0), r"`gamma` must be a finite number > 0; got 0.0"),
        (lambda: penalties.scad(-1.0), r"`knee` must be a finite number > 0; got -1.0"),
        (
            lambda: penalties.scad(1.0, a=2.0),
            r"`a` must be a finite number > 2; got 2.0",
        ),
        (lambda: matrices.spectral_cap(0.0), r"`limit` must be a finite number > 0; got 0.0"),
        (
            lambda: penalties.spread(axes=3).prox(np.ones((2, 2)), 1.0),
            r"`axes` must be axes of every penalized leaf; got 3 for a leaf of shape \(2, 2\)",
        ),
        (lambda: penalties.ball(-1.0), r"`radius` must be a finite number > 0; got -1.0"),
        (lambda: penalties.sphere(float("inf")), r"`radius` must be a finite number > 0; got inf"),
        (
            lambda: penalties.group_lasso(axes=2).prox(np.ones((2, 2)), 1.0),
            r"`axes` must be axes of every penalized leaf; got 2 for a leaf of shape \(2, 2\)",
        ),
    ],
)
def test_bad_arguments_say_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_constraint_has_no_value_and_no_gradient():
    params = {"kernel": np.ones((2, 2))}
    with pytest.raises(TypeError, match=r"`penalty` must be a penalty with a value, .*; got \{\}"):
        wdjax.penalty_value({}, penalties.l2)
    with pytest.raises(TypeError, match=r"`penalty` must be .*; got <penalty ball"):
        wdjax.penalty_value(penalties.ball(1.0), params)
    with pytest.raises(TypeError, match=r"`decay_weights` needs a penalty with a gradient; sphere"):
        wdjax.decay_weights(0.1, penalties.sphere(1.0))
    with pytest.raises(TypeError, match=r"must be a wdjax.penalties.Penalty.*got 'l2'"):
        wdjax.prox_weights(0.1, "l2")


def test_a_norm_that_overflows_float32_is_projected_and_not_lost():
    sphere, ball = compiled(penalties.sphere(0.5, axes=1)), compiled(penalties.ball(0.5, axes=1))
    for size in (1e-30, 1.0, 1e30, 3e38):
        z = np.array([[0.75, 1.0], [0.0, 0.0]], np.float32) * np.float32(size)
        onto = sphere.prox(z, 1.0)
        np.testing.assert_allclose(onto, [[0.3, 0.4], [0.0, 0.0]], rtol=1e-6)
        np.testing.assert_allclose(ball.prox(z, 1.0), onto if size >= 1 else z, rtol=1e-6)


def all_penalties():
    """One of every penalty and constraint, with groups of whole leaves."""
    p = penalties
    return [
        p.l2, p.l1, p.elastic_net(0.5), p.group_lasso(), p.spread(), p.huber(1.0), p.p_norm(0.5),
        p.p_norm(1.5), p.l0, p.l_half, p.mcp(0.5), p.scad(0.5), p.ball(0.5), p.sphere(0.5),
    ]  # fmt: skip


@jax.jit
def proxes(z, s):
    return {penalty.name: penalty.prox(z, s) for penalty in all_penalties()}


def test_a_weight_that_is_no_number_is_not_made_a_number():
    """Else a run that has diverged would look well again."""

    @jax.jit
    def others(z):
        values = {p.name: p.value(z) for p in all_penalties() if p.value}
        return values, {p.name: p.gradient(z)[1] for p in all_penalties() if p.gradient}

    z = np.array([1.0, np.nan, -0.01, 3.0], np.float32)
    shrunk = [jax.tree.map(lambda x: x[1], proxes(z, strength)) for strength in (0.1, 2.0)]
    for found in (*shrunk, *others(z)):
        assert found
        assert all(map(np.isnan, found.values())), found


def test_strength_zero_leaves_the_smallest_and_largest_as_they_are():
    z = np.array([3e-20, -4e-20, 3e19, 1e37], np.float32)
    for part in (z[:2], z[2:], z):
        for name, shrunk in proxes(part, 0.0).items():
            np.testing.assert_array_equal(shrunk, part, err_msg=name)


def test_a_group_without_spread_left_has_equal_weights():
    z = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    collapsed = np.asarray(compiled(penalties.spread(axes=1)).prox(z, 1e9))
    np.testing.assert_array_equal(collapsed, collapsed[:, :1] + np.zeros(64, np.float32))
    many = np.full(10**6, 0.1, np.float32)  # their mean is off by more than their own rounding
    np.testing.assert_array_equal(compiled(penalties.spread()).gradient(many), 0.0)


def test_groups_of_equal_weights_have_no_spread_whatever_their_mean():
    spread, deviation = compiled(penalties.spread()), jax.jit(wdjax.bounds.deviation)
    for value in (0.125, 0.1, 1e-3, 7e4):
        z = np.full((3, 5), value, np.float32)
        np.testing.assert_array_equal(spread.gradient(z), 0.0)
        np.testing.assert_array_equal(spread.prox(z, 0.1), z)
        assert deviation(z).value == 0


def test_the_group_lasso_pulls_by_one_whatever_the_size():
    lasso = compiled(penalties.group_lasso())
    for size in (1e-30, 1e-20, 1.0, 1e19, 1e30):
        z = np.array([3.0, 4.0], np.float32) * np.float32(size)
        np.testing.assert_allclose(lasso.gradient(z), [0.6, 0.8], rtol=1e-6)
        np.testing.assert_array_equal(compiled(penalties.ball(30 * size)).prox(z, 1.0), z)


def test_a_floor_too_small_for_float32_is_refused():
    with pytest.raises(ValueError, match=r"`floor` must be larger: float32 cannot hold"):
        penalties.p_norm(0.5, floor=1e-27)


def test_the_cap_on_singular_values_holds_however_far_they_are_above():
    z = np.random.default_rng(0).normal(size=(2, 24, 16))
    z /= np.linalg.norm(z, 2, axis=(1, 2), keepdims=True)
    cap = compiled(matrices.spectral_cap(1.0))
    for size in (3.0, 1e3, 1e6, 1e9):
        capped = np.asarray(cap.prox(np.float32(size * z), 1.0), np.float64)
        np.testing.assert_allclose(np.linalg.norm(capped, 2, axis=(1, 2)), 1.0, rtol=1e-5)


def test_the_nuclear_gradient_leaves_out_singular_values_that_are_rounding():
    """Of a matrix of rank one it is u v*, whatever directions rounding adds."""
    u, v = np.random.default_rng(0).normal(size=(2, 8))
    got = ALL["nuclear"].penalty.gradient(np.outer(u, v).astype(np.float32))
    want = np.outer(u, v) / (np.linalg.norm(u) * np.linalg.norm(v))
    np.testing.assert_allclose(got, want, atol=1e-5)
