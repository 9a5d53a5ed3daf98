import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from cases import PENALTIES

import wdjax
from wdjax import penalties

rows = pytest.mark.parametrize("case", PENALTIES.values(), ids=PENALTIES.keys())
valued = pytest.mark.parametrize(
    "case", [case for case in PENALTIES.values() if case.value], ids=lambda case: case.penalty.name
)
Z = np.array([[0.0, 1.5, -0.2], [0.4, -0.4, 3.0], [0.0, 0.0, 0.0], [-2.0, 0.05, 1e-4]])
STRENGTHS = (0.0, 0.1, 1.0, 7.0)


@rows
@pytest.mark.parametrize("s", STRENGTHS)
def test_prox_equals_the_reference(case, s, x64):
    assert np.allclose(
        case.penalty.prox(jnp.asarray(Z), s), case.prox(Z, s), rtol=1e-13, atol=1e-15
    )


@valued
@pytest.mark.parametrize("s", [0.1, 1.0])
def test_prox_minimises_its_objective(case, s, x64):
    """No reference at all: the definition, against a general-purpose minimiser."""
    z = np.random.default_rng(0).normal(size=(3, 2))

    def objective(x):
        return 0.5 * np.sum((x - z.ravel()) ** 2) + s * case.value(x.reshape(z.shape))

    ours = np.asarray(case.penalty.prox(jnp.asarray(z), s))
    found = scipy.optimize.minimize(
        objective, ours.ravel() + 0.1, method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20_000, "maxfev": 40_000},
    )  # fmt: skip
    assert objective(ours.ravel()) <= found.fun + 1e-9


@valued
def test_value_and_gradient_equal_the_reference(case, x64):
    assert np.isclose(case.penalty.value(jnp.asarray(Z)), case.value(Z), rtol=1e-13)
    assert np.allclose(case.penalty.gradient(jnp.asarray(Z)), case.gradient(Z), rtol=1e-13)


@valued
def test_gradient_is_the_derivative_of_the_value(case, x64):
    z = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
    chex.assert_trees_all_close(
        case.penalty.gradient(z), jax.grad(case.penalty.value)(z), rtol=1e-12
    )


@valued
def test_the_derivative_of_the_value_is_finite_and_zero_at_zero(case):
    zero = jnp.zeros((3, 4))
    assert not np.any(jax.grad(case.penalty.value)(zero))
    assert not np.any(case.penalty.gradient(zero))


@valued
def test_curvature_bounds_the_second_derivative_and_is_reached(case, x64):
    """An explicit step with s · curvature = 1 still shrinks; elsewhere the bound is attained."""
    steps = np.linspace(-2, 2, 4001)
    gradient = np.asarray(jax.vmap(lambda x: case.penalty.gradient(x.reshape(1, 1))[0, 0])(
        jnp.asarray(steps)
    ))  # fmt: skip
    smooth = np.abs(steps[1:] + steps[:-1]) > 0.01  # away from the kink at 0
    slopes = (np.diff(gradient) / np.diff(steps))[smooth]
    assert np.isclose(slopes.max(), case.penalty.curvature, atol=1e-6)


@rows
def test_zero_is_a_fixed_point_and_signs_are_kept(case):
    zero = jnp.zeros((2, 3))
    assert not np.any(case.penalty.prox(zero, 0.5))
    z = jnp.asarray(np.random.default_rng(2).normal(size=(5, 6)), jnp.float32)
    out = case.penalty.prox(z, 0.5)
    assert np.all(np.sign(out) * np.sign(z) >= 0)
    assert np.allclose(case.penalty.prox(-z, 0.5), -out)


@rows
@pytest.mark.parametrize("s", [0.1, 2.0])
def test_prox_is_non_expansive(case, s):
    if not case.convex:
        pytest.skip("the projection onto a sphere is not convex, hence not non-expansive")
    rng = np.random.default_rng(3)
    for _ in range(20):
        x, y = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
        moved = jnp.linalg.norm(case.penalty.prox(x, s) - case.penalty.prox(y, s))
        assert moved <= jnp.linalg.norm(x - y) * (1 + 1e-6)


@rows
def test_prox_runs_under_jit_and_vmap_over_strengths(case):
    z = jnp.asarray(Z, jnp.float32)
    strengths = jnp.asarray(STRENGTHS)
    together = jax.jit(jax.vmap(lambda s: case.penalty.prox(z, s)))(strengths)
    alone = jnp.stack([case.penalty.prox(z, s) for s in STRENGTHS])
    assert np.allclose(together, alone, rtol=1e-6)


def test_complex_parameters_shrink_by_their_modulus():
    z = jnp.array([3 + 4j, 0.3 + 0.4j])
    assert np.allclose(penalties.l1.prox(z, 1.0), [2.4 + 3.2j, 0])
    assert np.isclose(penalties.l2.value(z), 12.625)
    assert penalties.l2.value(z).dtype == jnp.float32


def test_groups_run_along_the_given_axes_of_a_stacked_kernel(x64):
    """Stacked layers (layer, in, out): axes=1 groups the inputs of each output of each layer."""
    z = np.random.default_rng(4).normal(size=(2, 3, 4))
    ours = penalties.group_lasso(axes=1).prox(jnp.asarray(z), 0.5)
    for layer in range(2):
        for out in range(4):
            group = z[layer, :, out]
            shrunk = group * max(1 - 0.5 / np.linalg.norm(group), 0)
            assert np.allclose(ours[layer, :, out], shrunk)
    both = penalties.ball(0.5, axes=(-2, -1)).prox(jnp.asarray(z), 1.0)
    assert np.allclose(np.linalg.norm(both, axis=(1, 2)), 0.5)


def test_special_cases_reduce_to_simpler_penalties(x64):
    z = jnp.asarray(Z)
    pairs = [
        (penalties.elastic_net(1.0), penalties.l1),
        (penalties.elastic_net(0.0), penalties.l2),
        (penalties.huber(1e9), penalties.l2),
    ]
    for special, simple in pairs:
        assert np.allclose(special.prox(z, 0.3), simple.prox(z, 0.3), atol=1e-15)
        assert np.isclose(special.value(z), simple.value(z))
    one_entry = penalties.group_lasso(axes=()).prox(z, 0.3)
    assert np.allclose(one_entry, penalties.l1.prox(z, 0.3), atol=1e-15)
    sharp = penalties.huber(1e-9)
    assert np.allclose(sharp.prox(z, 0.3e9), penalties.l1.prox(z, 0.3), atol=1e-8)


def test_penalty_value_sums_over_rules_in_float32():
    params = {
        "kernel": jnp.full((300, 10), 1.0, jnp.bfloat16),
        "head": {"kernel": jnp.array([[3.0, 4.0]])},
        "bias": jnp.array([100.0]),
    }
    rules = (("head/kernel", 0.5), *wdjax.standard())
    value = wdjax.penalty_value(penalties.l2, params, rules)
    assert value.dtype == jnp.float32
    assert float(value) == 3000 / 2 + 0.5 * 25 / 2  # bfloat16 would not count beyond 256


def test_penalty_value_in_a_loss_gives_the_gradient_of_coupled_decay():
    params = {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([1.0])}
    grads = jax.grad(lambda p: 0.1 * wdjax.penalty_value(penalties.l2, p))(params)
    assert np.allclose(grads["kernel"], [[0.3, -0.4]])
    assert np.allclose(grads["bias"], 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: penalties.elastic_net(1.5), r"`l1_ratio` must be in \[0, 1\]; got 1.5"),
        (lambda: penalties.elastic_net(float("nan")), r"`l1_ratio` must be in \[0, 1\]; got nan"),
        (lambda: penalties.huber(0.0), r"`delta` must be > 0, in units of the weights; got 0.0"),
        (lambda: penalties.ball(-1.0), r"`radius` must be a finite number > 0; got -1.0"),
        (lambda: penalties.sphere(float("inf")), r"`radius` must be a finite number > 0; got inf"),
        (
            lambda: penalties.group_lasso(axes=2).prox(jnp.ones((2, 2)), 1.0),
            r"`axes` must be axes of every penalised leaf; got 2 for a leaf of shape \(2, 2\)",
        ),
    ],
)
def test_bad_arguments_say_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_constraint_has_no_value_and_no_gradient():
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(TypeError, match=r"`penalty` must have a value; got the constraint ball"):
        wdjax.penalty_value(penalties.ball(1.0), params)
    with pytest.raises(TypeError, match=r"`decay_weights` needs a penalty with a gradient; the c"):
        wdjax.decay_weights(0.1, penalties.sphere(1.0))
    with pytest.raises(TypeError, match=r"must be a wdjax.penalties.Penalty.*got 'l2'"):
        wdjax.prox_weights(0.1, "l2")
