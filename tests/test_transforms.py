import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import imported, timm_optim
from packaging.version import Version

import wdjax
from wdjax import adaptive, gates, penalties, radial

KERNEL = {"kernel": np.float32([[2, -1]]), "bias": np.float32([3])}
ZERO = jax.tree.map(np.zeros_like, KERNEL)
KERNEL_NARROW = {"kernel": jnp.ones((8, 8), jnp.bfloat16)}


def run(tx, params, grads, steps):
    """Apply `steps` steps of a full optimizer to constant or computed gradients."""
    compute = grads if callable(grads) else lambda params: grads

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(compute(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    whole = lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]
    return jax.jit(whole)(params)


# Closed forms, in float64: the objective's exact minimizer against a long run.


def orthonormal_design(seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(40, 6)))
    y = q @ np.array([3.0, -2.0, 0.4, 0.1, 0.0, 1.0]) + 0.3 * rng.normal(size=40)
    return q, y


def half_squares(q, y):
    return lambda params: jax.grad(lambda p: 0.5 * jnp.sum((q @ p["kernel"] - y) ** 2))(params)


def test_sgd_with_l2_in_the_gradient_reaches_ridge(x64):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 5)), rng.normal(size=50)
    exact = np.linalg.solve(x.T @ x + 0.7 * np.eye(5), x.T @ y)
    tx = optax.chain(wdjax.add_decayed_weights(0.7), optax.sgd(0.01))
    got = run(tx, {"kernel": np.zeros(5)}, half_squares(x, y), 3_000)
    assert np.allclose(got["kernel"], exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("verb", [wdjax.decay_weights, wdjax.prox_weights])
def test_sgd_with_decoupled_l2_reaches_ridge(verb, x64):
    q, y = orthonormal_design()
    tx = optax.chain(optax.sgd(0.1), verb(wdjax.lr_scaled(0.7, 0.1)))
    got = run(tx, {"kernel": np.zeros(6)}, half_squares(q, y), 2_000)
    assert np.allclose(got["kernel"], np.asarray(q.T @ y) / 1.7, rtol=0, atol=1e-8)


def test_proximal_sgd_with_l1_reaches_the_soft_threshold_with_exact_zeros(x64):
    q, y = orthonormal_design()
    z = np.asarray(q.T @ y)
    exact = np.sign(z) * np.maximum(np.abs(z) - 0.5, 0)
    tx = optax.chain(optax.sgd(0.1), wdjax.prox_weights(wdjax.lr_scaled(0.5, 0.1), penalties.l1))
    got = np.asarray(run(tx, {"kernel": np.ones(6)}, half_squares(q, y), 2_000)["kernel"])
    assert np.allclose(got, exact, rtol=0, atol=1e-8)
    assert ((got == 0) == (exact == 0)).all()
    assert (got == 0).sum() >= 2


def test_proximal_sgd_with_group_lasso_reaches_the_group_threshold(x64):
    q, y = orthonormal_design()
    z = np.asarray(q.T @ y).reshape(3, 2)
    sizes = np.linalg.norm(z, axis=1, keepdims=True)
    exact = z * np.maximum(1 - 1.2 / sizes, 0)

    def grads(params):
        flat = {"kernel": params["kernel"].reshape(-1)}
        return {"kernel": half_squares(q, y)(flat)["kernel"].reshape(3, 2)}

    penalty = penalties.group_lasso(axes=1)
    tx = optax.chain(optax.sgd(0.1), wdjax.prox_weights(wdjax.lr_scaled(1.2, 0.1), penalty))
    got = np.asarray(run(tx, {"kernel": np.ones((3, 2))}, grads, 2_000)["kernel"])
    assert np.allclose(got, exact, rtol=0, atol=1e-8)
    assert ((got == 0) == (exact == 0)).all()
    assert (got == 0).all(axis=1).sum() >= 1


def test_elastic_net_reaches_its_closed_form(x64):
    q, y = orthonormal_design()
    z = np.asarray(q.T @ y)
    exact = np.sign(z) * np.maximum(np.abs(z) - 0.5 * 0.6, 0) / (1 + 0.5 * 0.4)
    law = wdjax.lr_scaled(0.5, 0.1)
    tx = optax.chain(optax.sgd(0.1), wdjax.prox_weights(law, penalties.elastic_net(0.6)))
    got = run(tx, {"kernel": np.ones(6)}, half_squares(q, y), 2_000)
    assert np.allclose(got["kernel"], exact, rtol=0, atol=1e-8)


def test_pure_decay_is_geometric_and_matches_the_half_life(x64):
    tx = optax.chain(optax.sgd(0.1), wdjax.decay_weights(wdjax.from_half_life(100)))
    got = run(tx, KERNEL, ZERO, 300)
    assert np.allclose(got["kernel"], np.asarray(KERNEL["kernel"]) / 8, rtol=1e-5)
    assert np.array_equal(got["bias"], KERNEL["bias"])


# add_decayed_weights is a drop-in for Optax's.

TAKES_SCHEDULES = Version(optax.__version__) >= Version("0.2.6")
SCHEDULED = pytest.param(
    optax.linear_schedule(0.1, 0.5, 3),
    marks=pytest.mark.skipif(not TAKES_SCHEDULES, reason="Optax's takes schedules from 0.2.6 on"),
)


@pytest.mark.parametrize(
    "mask",
    [
        None,
        {"kernel": True, "bias": False},
        {"kernel": False, "bias": np.True_},
        True,
        False,
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ],
    ids=["none", "tree", "numpy bool", "prefix True", "prefix False", "function"],
)
@pytest.mark.parametrize("strength", [0.1, SCHEDULED])
def test_add_decayed_weights_equals_optax(mask, strength):
    ours = optax.chain(wdjax.add_decayed_weights(strength, mask=mask), optax.sgd(0.1))
    theirs = optax.chain(optax.add_decayed_weights(strength, mask=mask), optax.sgd(0.1))
    grads = jax.tree.map(lambda p: 0.3 * p**2, KERNEL)
    chex.assert_trees_all_close(run(ours, KERNEL, grads, 4), run(theirs, KERNEL, grads, 4))


def test_a_mask_that_is_a_callable_module_is_a_tree():
    eqx = pytest.importorskip("equinox")

    class Linear(eqx.Module):
        kernel: jax.Array | bool
        bias: jax.Array | bool

        def __call__(self, x):
            return x @ self.kernel + self.bias

    params = Linear(jnp.ones((2, 2)), jnp.ones(2))
    tx = wdjax.add_decayed_weights(0.5, mask=Linear(True, False))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert np.all(updates.kernel == 0.5)
    assert np.all(updates.bias == 0)


def test_mask_leaves_must_be_booleans():
    tx = wdjax.add_decayed_weights(0.1, mask={"kernel": 0.01, "bias": 0.0})
    with pytest.raises(
        TypeError, match=r"`mask` must hold booleans; got float at '.*'. Multipliers go"
    ):
        tx.init(KERNEL)


# Anchors.


def test_decay_towards_the_start_leaves_the_start_alone_bit_for_bit():
    tx = wdjax.decay_weights(0.3, anchor="init")
    updates, _ = tx.update(ZERO, tx.init(KERNEL), KERNEL)
    chex.assert_trees_all_equal(updates, ZERO)


def test_an_anchor_of_zeros_equals_no_anchor_and_stays_out_of_the_state():
    plain, anchored = wdjax.decay_weights(0.3), wdjax.decay_weights(0.3, anchor=ZERO)
    chex.assert_trees_all_equal_structs(plain.init(KERNEL), anchored.init(KERNEL))
    grads = jax.tree.map(lambda p: 0.1 * p, KERNEL)
    chex.assert_trees_all_equal(
        jax.jit(plain.update)(grads, plain.init(KERNEL), KERNEL)[0],
        jax.jit(anchored.update)(grads, anchored.init(KERNEL), KERNEL)[0],
    )


def test_pure_decay_towards_an_anchor_is_geometric(x64):
    anchor = jax.tree.map(lambda p: np.full_like(p, 5), KERNEL)
    tx = optax.chain(optax.sgd(0.1), wdjax.decay_weights(0.1, anchor=anchor))
    got = run(tx, KERNEL, ZERO, 20)
    start = np.asarray(KERNEL["kernel"], np.float64)
    assert np.allclose(got["kernel"], 5 + (start - 5) * 0.9**20, rtol=1e-6)


def test_the_init_anchor_is_a_copy_that_survives_donation():
    tx = wdjax.decay_weights(0.1, anchor="init")
    params = jax.tree.map(jnp.asarray, KERNEL)
    leaves = map(jax.tree.leaves, (tx.init(params).memory, params))
    for kept, param in zip(*leaves, strict=True):
        assert kept.unsafe_buffer_pointer() != param.unsafe_buffer_pointer()


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        ("start", r'`anchor` must be None, "init", a pytree of arrays or .* got \'start\''),
        ({"kernel": jnp.ones((1, 2))}, r"`anchor` must have the structure and shapes .*bias"),
        (
            {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
            r"'kernel' \(2, 1\) instead of \(1, 2\)",
        ),
    ],
)
def test_an_anchor_that_does_not_fit_says_where(anchor, message):
    with pytest.raises(ValueError, match=message):
        wdjax.decay_weights(0.1, anchor=anchor).init(KERNEL)


# Gates.


def test_cautious_decay_does_not_move_the_optimum(x64):
    """f(w) = ½(w − 2)²: decay settles at 2/(1 + λ), cautious decay at 2."""
    grads = lambda params: jax.tree.map(lambda w: w - 2.0, params)
    start = {"kernel": np.array([[0.5]])}
    law = wdjax.lr_scaled(0.5, 0.1)
    plain = run(optax.chain(optax.sgd(0.1), wdjax.decay_weights(law)), start, grads, 500)
    gated = wdjax.decay_weights(law, gate=gates.cautious)
    cautious = run(optax.chain(optax.sgd(0.1), gated), start, grads, 500)
    assert np.isclose(plain["kernel"].item(), 2 / 1.5, atol=1e-12)
    assert np.isclose(cautious["kernel"].item(), 2.0, atol=1e-12)


def test_the_cautious_gate_compares_signs_where_the_product_underflows():
    tiny = jnp.array([1e-30, -1e-30], jnp.float32)
    assert gates.cautious(tiny, -tiny).tolist() == [True, True]
    assert gates.cautious(tiny, tiny).tolist() == [False, False]
    assert gates.cautious(tiny, 0 * tiny).tolist() == [True, True]


def test_a_gate_must_be_a_function():
    with pytest.raises(
        TypeError, match=r"`gate` must be a function or None; got .*wdjax.gates.cautious"
    ):
        wdjax.decay_weights(0.1, gate="cautious")


def test_a_gate_gets_the_raw_gradient_from_the_caller_of_update():
    seen = []

    def gate(z, update, grad):
        seen.append(None if grad is None else float(grad[0, 0]))
        return True

    tx = wdjax.decay_weights(0.1, gate=gate)
    state = tx.init(KERNEL)
    tx.update(ZERO, state, KERNEL)
    tx.update(ZERO, state, KERNEL, grad=KERNEL)
    assert seen == [None, 2.0]


# Strengths that cannot be right.


@pytest.mark.parametrize(
    "strength", [1.0, wdjax.lr_scaled(0.5, 4.0), lambda count: 3.0 / (1 + count)]
)
def test_a_strength_that_would_flip_signs_names_the_paths(strength):
    tx = wdjax.decay_weights(strength)
    message = r"`strength` times multiplier must be < 1.*'kernel'.*flip signs.*prox_weights"
    with pytest.raises(ValueError, match=message):
        tx.init(KERNEL)


def test_the_multiplier_counts_towards_the_bound_and_implicit_decay_has_none():
    with pytest.raises(ValueError, match=r"for 'kernel' and would flip"):
        wdjax.decay_weights(0.5, rules=(("kernel", 2.0), ("**", 1.0))).init(KERNEL)
    wdjax.prox_weights(30.0).init(KERNEL)
    wdjax.add_decayed_weights(30.0).init(KERNEL)
    wdjax.decay_weights(30.0, penalties.l1).init(KERNEL)  # not a fraction there


@pytest.mark.parametrize("verb", [wdjax.decay_weights, wdjax.prox_weights])
def test_decay_that_bfloat16_would_swallow_warns_with_paths_and_remedy(verb):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), KERNEL)
    message = (
        r"bfloat16 parameters swallow this decay: it takes off at most 0.0001 per step, .* below "
        r"0.002 of a number rounds away, for 'kernel'. Wrap the optimizer in wdjax.compensated"
    )
    tx = verb(wdjax.lr_scaled(0.1, 1e-3))
    with pytest.warns(UserWarning, match=message):
        tx.init(params)
    tx.init(KERNEL)  # float32 holds it
    verb(0.01).init(params)  # and bfloat16 holds this


TAKES = {  # lengths and rates, not fractions of each number
    "l1": lambda s: wdjax.decay_weights(s, penalties.l1),
    "after the step": lambda s: wdjax.decay_after_step(s, penalties.l1),
    "huber": lambda s: wdjax.decay_weights(s, penalties.huber(0.5)),  # curved near 0 alone
    "p_norm": lambda s: wdjax.prox_weights(s, penalties.p_norm(0.8, 1.0)),
    "group_lasso": lambda s: wdjax.prox_weights(s, penalties.group_lasso()),
    "nuclear": lambda s: wdjax.prox_weights(s, wdjax.matrices.nuclear),
    "norm_control": lambda s: radial.norm_control(s, 0.5),
    "project_radial": radial.project_radial,
    "cumulative_l1": adaptive.cumulative_l1,
    "hyper_decay": lambda s: wdjax.tuning.hyper_decay(
        0.1, lambda params, batch: 0.0, np.ones(100), init=10 * s, bounds=(1e-5, 9.0)
    ),
}


@pytest.mark.parametrize("method", TAKES.values(), ids=TAKES)
@pytest.mark.first_is_quick
def test_each_method_says_when_bfloat16_swallows_what_it_takes(method):
    params = {"kernel": np.linspace(-3, -1, 64).reshape(8, 8).astype(jnp.bfloat16)}
    with pytest.warns(UserWarning, match="bfloat16 parameters swallow this decay.*'kernel'"):
        state = method(1e-4).init(params)
    updates = method(1e-4).update(jax.tree.map(np.zeros_like, params), state, params)[0]
    chex.assert_trees_all_equal(optax.apply_updates(params, updates), params)
    method(0.1).init(params)  # this it holds
    wdjax.compensated(method(1e-4)).init(params)
    method(1e-4).init(jax.tree.map(np.float32, params))


def test_each_leaf_is_tried_at_the_size_of_its_own_weights():
    """L1 takes a length: most of it is lost on large weights, and little on small ones."""
    shapes = {"few": (4, 64), "many": (4096, 64), "vector": (4096,), "other": (4, 64)}
    params = {name: jnp.ones(shape, jnp.bfloat16) for name, shape in shapes.items()}
    rules = (("other", 30.0), ("**", 1.0))
    with pytest.warns(UserWarning, match="swallow this decay.*, for 'few'. Wrap"):
        wdjax.prox_weights(2e-4, penalties.l1, rules=rules).init(params)
    wdjax.prox_weights(1e-2, penalties.elastic_net(0.9)).init(KERNEL_NARROW)


@pytest.mark.parametrize(
    "method",
    [
        adaptive.cpr(wdjax.bounds.dependent(0.9)),
        adaptive.swd(1e-6),
        wdjax.add_decayed_weights(1e-4),
        wdjax.decay_weights(1e-4, penalties.l1, anchor={"kernel": np.ones((8, 8))}),
    ],
)
def test_what_gradients_or_later_steps_decide_is_not_warned_of(method):
    method.init({"kernel": jnp.ones((8, 8), jnp.bfloat16)})


def test_the_warning_says_the_truth_about_bfloat16():
    """At eps/4 the decay still rounds away; at a little more it acts."""
    limit = float(jnp.finfo(jnp.bfloat16).eps) / 4
    theta = jnp.linspace(1, 2, 129, dtype=jnp.bfloat16)
    after = lambda s: (theta.astype(jnp.float32) * (1 - s)).astype(jnp.bfloat16)
    assert np.array_equal(after(0.999 * limit), theta)
    assert not np.array_equal(after(1.05 * limit), theta)


def test_prox_refuses_updates_too_narrow_to_reach_its_point():
    tx = wdjax.prox_weights(0.1, penalties.l1)
    updates = jax.tree.map(lambda p: p.astype(jnp.bfloat16), ZERO)
    with pytest.raises(TypeError, match=r"as wide as their parameters; got bfloat16 for float32"):
        tx.update(updates, tx.init(KERNEL), KERNEL)


# Integer leaves, holes, empty trees.


def test_integer_leaves_and_empty_trees_pass_through():
    params = {"kernel": jnp.ones((2, 2)), "steps": jnp.array(3)}
    updates = {"kernel": jnp.zeros((2, 2)), "steps": jnp.array(0)}
    for tx in (wdjax.decay_weights(0.1), wdjax.add_decayed_weights(0.1), wdjax.prox_weights(0.1)):
        got, _ = tx.update(updates, tx.init(params), params)
        assert got["steps"] is updates["steps"]
        assert tx.update({}, tx.init({}), {})[0] == {}


def test_a_non_array_leaf_says_how_to_filter():
    params = {"kernel": jnp.ones((2, 2)), "activation": jax.nn.relu}
    with pytest.raises(TypeError, match=r"'activation' is .*not an array: filter the"):
        wdjax.decay_weights(0.1).init(params)


def test_an_update_where_the_parameter_is_none_is_refused():
    tx = wdjax.decay_weights(0.1)
    params = KERNEL | {"extra": None}
    with pytest.raises(ValueError, match=r"got \(2,\) for no parameter"):
        tx.update(ZERO | {"extra": jnp.ones(2)}, tx.init(params), params)


# Updates narrower than their parameters, and leaves that are left alone.


def test_a_bfloat16_gradient_does_not_swallow_the_decay_of_float32_parameters():
    params = {"kernel": np.full((2, 2), 0.05, np.float32)}
    optimizer = wdjax.sgdw(1e-2, weight_decay=0.03)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(200):
        grads = {"kernel": np.full((2, 2), (-1.0) ** t, jnp.bfloat16)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    rate = float(jnp.bfloat16(1e-2))
    want = 0.05
    for t in range(200):
        want = want * (1 - 3e-4) - rate * (-1.0) ** t
    np.testing.assert_allclose(params["kernel"], want, rtol=1e-4)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"),
                                    ("bfloat16", "bfloat16"), ("float32", "float32")])  # fmt: skip
def test_coupled_decay_has_the_values_and_dtypes_of_optax(dtypes):
    grads, params = ({"w": np.ones(3, jnp.dtype(dtype))} for dtype in dtypes)
    ours, theirs = wdjax.add_decayed_weights(1e-3), optax.add_decayed_weights(1e-3)
    got = jax.jit(ours.update)(grads, ours.init(params), params)[0]["w"]
    want = jax.jit(theirs.update)(grads, theirs.init(params), params)[0]["w"]
    assert got.dtype == want.dtype
    np.testing.assert_allclose(np.float32(got), np.float32(want), rtol=1e-6)


def test_prox_looks_at_no_dtype_of_a_leaf_that_it_leaves_alone():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "steps": jnp.arange(3)}
    grads = {
        "kernel": jnp.ones((2, 2)),
        "bias": jnp.ones(2, jnp.bfloat16),
        "steps": np.zeros(3, jax.dtypes.float0),
    }
    tx = wdjax.prox_weights(0.5)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], 2 / 1.5 - 1, rtol=1e-6)
    assert updates["bias"] is grads["bias"]
    assert updates["steps"] is grads["steps"]


def test_float8_parameters_decay():
    params = {"kernel": jnp.ones((2, 2), jnp.float8_e4m3fn)}
    updates = {"kernel": jnp.zeros((2, 2), jnp.float8_e4m3fn)}
    tx = wdjax.decay_weights(0.25)
    got = tx.update(updates, tx.init(params), params)[0]["kernel"]
    assert got.dtype == jnp.float8_e4m3fn
    np.testing.assert_array_equal(got.astype(jnp.float32), -0.25)


# Shapes: what a function of the user's returns is not broadcast in silence.

SQUARE = {"kernel": np.ones((3, 3), np.float32), "bias": np.ones(3, np.float32)}
OF_EXAMPLES = jax.tree.map(lambda p: np.stack([p, p]), SQUARE)


def one_step(tx, params=SQUARE, **extra):
    zeros = jax.tree.map(np.zeros_like, params)
    return jax.jit(tx.update)(zeros, tx.init(params), params, **extra)


@pytest.mark.parametrize("shape", [(3, 1), (3, 3)])
def test_a_gate_that_reduces_without_keepdims_is_refused(shape):
    """For a square matrix φ (3,) would gate columns where rows are meant."""
    tx = wdjax.decay_weights(0.1, gate=lambda z, u, g: jnp.any(z != 0, axis=-1))
    with pytest.raises(ValueError, match=r"`gate` must return .* got \(3,\), .* Use keepdims=True"):
        one_step(tx, {"kernel": np.ones(shape, np.float32)})
    kept = wdjax.decay_weights(0.1, gate=lambda z, u, g: jnp.any(z != 0, axis=-1, keepdims=True))
    assert np.allclose(one_step(kept, {"kernel": np.ones(shape, np.float32)})[0]["kernel"], -0.1)


@pytest.mark.parametrize(
    "tx",
    [
        wdjax.decay_weights(0.1, gate=lambda z, u, g: (z > 0)[None]),
        wdjax.decay_weights(0.1, penalties.Penalty("mine", None, gradient=lambda z: z[None])),
        wdjax.prox_weights(0.1, penalties.Penalty("mine", prox=lambda z, s: z[None])),
    ],
)
def test_a_result_of_another_shape_names_the_leaf(tx):
    with pytest.raises(ValueError, match=r"\(3, 3\).*; got \(1, 3, 3\)"):
        one_step(tx)


@pytest.mark.parametrize(
    "tx",
    [
        wdjax.decay_weights(0.1, penalties.Penalty("mine", None, gradient=jnp.sum)),
        wdjax.prox_weights(0.1, penalties.Penalty("mine", prox=lambda z, s: jnp.sum(z))),
    ],
)
def test_a_penalty_whose_parts_reduce_is_refused(tx):
    with pytest.raises(ValueError, match=r"penalty mine must .* shape \(3, 3\); got \(\)"):
        one_step(tx)


def test_a_gate_that_makes_a_leaf_larger_is_refused():
    tx = wdjax.decay_weights(0.1, gate=lambda z, u, g: jnp.ones((3, 3)))
    message = r"`decay_weights` must keep the shape of 'kernel' \(3, 1\); got \(3, 3\)"
    with pytest.raises(ValueError, match=message):
        one_step(tx, {"kernel": np.ones((3, 1), np.float32)})


def test_the_metric_and_the_multiplier_both_scale_the_prox():
    """prox of s m D with l1: |θ| − 0.1 · 0.5 · D."""
    rules = (("kernel", 0.5), ("**", 0.0))
    tx = wdjax.prox_weights(0.1, penalties.l1, rules=rules, metric="preconditioner")
    params, d = {"kernel": np.float32([[2, -1]])}, {"kernel": np.float32([[4, 2]])}
    got, _ = one_step(tx, params, preconditioner=d)
    np.testing.assert_allclose(got["kernel"], [[-0.2, 0.1]], rtol=1e-5)


def test_the_count_stays_at_the_last_that_it_can_hold():
    """Not at −2³¹, where a schedule would begin again from nowhere."""
    tx = wdjax.decay_weights(lambda count: jnp.where(count < 0, jnp.nan, 0.1))
    last = jnp.iinfo(jnp.int32).max
    state = tx.init(KERNEL)._replace(count=jnp.int32(last))
    for _ in range(2):
        updates, state = jax.jit(tx.update)(ZERO, state, KERNEL)
    assert int(state.count) == last
    np.testing.assert_allclose(updates["kernel"], -0.1 * KERNEL["kernel"], rtol=1e-6)


def test_a_preconditioner_of_another_shape_is_refused():
    tx = wdjax.prox_weights(0.1, penalties.l1, metric="preconditioner")
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match=r"must have the shape \(3, 3\); got \(2, 3, 3\)"),
    ):
        one_step(tx, preconditioner=OF_EXAMPLES)


@pytest.mark.parametrize(
    "tx",
    [
        wdjax.decay_weights(0.1, gate=gates.touched_rows()),
        wdjax.decay_weights(0.1, gate=gates.cosine()),
        adaptive.swd(0.01),
        adaptive.spd(0.1),
        radial.project_radial(cosine=0.9),
    ],
)
def test_gradients_of_single_examples_are_not_taken_for_that_of_the_batch(tx):
    with pytest.raises(ValueError, match=r"`grad` shaped like .* got \(2, 3, 3\)|\(2, 3\) for"):
        one_step(tx, grad=OF_EXAMPLES)
    jax.eval_shape(tx.update, SQUARE, tx.init(SQUARE), SQUARE, grad=SQUARE)


def test_decay_behind_a_private_aggregate_does_not_look_at_single_examples():
    def private(learning_rate):
        return optax.chain(
            optax.contrib.differentially_private_aggregate(1.0, 0.0, 0), optax.sgd(learning_rate)
        )

    gated = wdjax.decayed(private)(0.1, weight_decay=0.5, gate=gates.touched_rows())
    with pytest.raises(
        ValueError, match=r"`decay_weights` needs `grad` and params of the same structure and sh"
    ):
        jax.eval_shape(gated.update, OF_EXAMPLES, gated.init(SQUARE), SQUARE)
    plain = wdjax.decayed(private)(0.1, weight_decay=0.5)
    updates, _ = jax.eval_shape(plain.update, OF_EXAMPLES, plain.init(SQUARE), SQUARE)
    assert updates["kernel"].shape == (3, 3)


def test_an_anchor_of_numpy_arrays_is_a_copy():
    anchor = jax.tree.map(lambda p: np.full(p.shape, 3.0, np.float32), SQUARE)
    tx = wdjax.decay_weights(0.1, anchor=anchor)
    before = one_step(tx)[0]["kernel"]
    anchor["kernel"] -= 3.0  # the caller uses the buffer again
    assert np.allclose(before, 0.2)
    assert np.allclose(one_step(tx)[0]["kernel"], 0.2)


# Nothing decays.


@pytest.mark.parametrize(
    "params", [{"coef": jnp.ones(10), "intercept": jnp.ones(())}, jnp.ones(10)]
)
def test_where_vectors_of_unknown_name_are_all_that_might_decay_a_warning_says_so(params):
    with pytest.warns(
        UserWarning, match=r"`decay_weights`: no parameter decays\. Vectors .*: '.*'\. If"
    ):
        wdjax.adamw(1e-3, weight_decay=0.1).init(params)
    with pytest.warns(UserWarning, match=r"`penalty_value`: no parameter decays"):
        wdjax.penalty_value(penalties.l2, params)


@pytest.mark.parametrize(
    ("tx", "params"),
    [
        (wdjax.adamw(1e-3, weight_decay=0.1), {"coef": jnp.ones(10), "w": jnp.ones(10)}),
        (wdjax.adamw(1e-3, weight_decay=0.0), {"coef": jnp.ones(10)}),
        (wdjax.adamw(1e-3, weight_decay=0.1, rules=(("**", 0.0),)), {"coef": jnp.ones(10)}),
        (wdjax.adamw(1e-3, weight_decay=0.1), {"bias": jnp.ones(10)}),
        (wdjax.adamw(1e-3, weight_decay=0.1), {}),
        (
            optax.masked(wdjax.adamw(1e-3, weight_decay=0.1), {"coef": True, "w": False}),
            {"coef": jnp.ones(10), "w": jnp.ones((2, 2))},
        ),
    ],
)
def test_where_it_is_meant_or_known_no_warning_comes(tx, params):
    tx.init(params)


# Decay of the candidate.


def test_decay_after_the_step_is_laprop_s(x64, agrees):
    """Gradients that do not depend on the weights: LaProp without decay gives the steps."""
    torch, optim = imported("torch"), timm_optim()
    start, grads = np.full(3, 2.0), np.random.default_rng(0).normal(size=(20, 3))

    def walk(weight_decay):
        param = torch.nn.Parameter(torch.tensor(start))
        optimizer = optim.LaProp([param], lr=0.1, weight_decay=weight_decay)
        for grad in grads:
            param.grad = torch.tensor(grad)
            optimizer.step()
            yield param.detach().numpy().copy()

    steps = np.diff([start, *walk(0.0)], axis=0)
    tx = wdjax.decay_after_step(0.1 * 0.5, rules=(("**", 1.0),))

    def step(params, update):
        updates, _ = tx.update(update, tx.init(params), params)
        return optax.apply_updates(params, updates), params

    ours, _ = jax.lax.scan(step, jnp.asarray(start), steps)
    agrees("decay_after_step", "timm", ours, list(walk(0.5))[-1], atol=1e-13)
