"""Radial methods: bad input, invariants, reductions, oracles. Else see `test_properties`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from method_cases import VERBS
from oracles import timm_optim
from radial_reference import groups, length

import wdjax
from wdjax import penalties, radial

RULES = (("a/kernel", 1.0), ("b/*/kernel", 0.5), ("bias", 0.0))
RADIAL = {verb: case for verb, case in VERBS.items() if hasattr(radial, verb)}
methods = pytest.mark.parametrize("case", RADIAL.values(), ids=RADIAL.keys())


def tree(seed, dtype=np.float32, scale=1.0):
    """A kernel, a bias that lacks the axes of most rows, and a kernel stacked over two layers."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: np.asarray(scale * rng.normal(size=shape), dtype)
    return {"a": {"kernel": draw(3, 4), "bias": draw(4)}, "b": [{"kernel": draw(2, 3, 4)}]}


def trajectory(tx, params, updates):
    """The parameters after each step."""
    state, path = tx.init(params), []
    update = jax.jit(tx.update)
    for step in updates:
        moved, state = update(step, state, params)
        params = optax.apply_updates(params, moved)
        path.append(params)
    return path


@methods
@pytest.mark.first_is_quick
def test_complex_leaves_turn_by_the_real_inner_product(case):
    """A complex group is a real group of twice the size."""
    real = lambda seed: np.random.default_rng(seed).normal(size=(2, 3, 2)).astype(np.float32)
    joined = lambda x: x[..., 0] + 1j * x[..., 1]
    own = {}
    if case.needs_grad:  # δ/√n counts complex numbers once
        own["cosine"] = 100.0
    if case.verb == "rotational":  # a complex mean is not the mean of both parts
        own["centered"] = False
    tx = case.build(case.x, axes=None, rules=ONE, **own)
    run = jax.jit(lambda x, u, g: tx.update(u, tx.init(x), x, grad=g)[0])
    got = run(*(joined(real(seed)) for seed in range(3)))
    want = joined(np.asarray(run(*map(real, range(3)))))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


# Bad input.


@methods
def test_axes_that_a_selected_leaf_lacks_fail_at_init(case):
    tx = case.build(case.x, axes=(0, 3), rules=RULES)
    message = r"`axes` must be axes of every decayed leaf; got \(0, 3\) for 'a/kernel' \(3, 4\)"
    with pytest.raises(ValueError, match=message):
        tx.init(tree(0))


@pytest.mark.parametrize("method", [radial.norm_control, radial.hyperball])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_that_is_not_positive_fails_when_built(method, bad):
    with pytest.raises(ValueError, match=r"`radius` must be a finite number > 0, or None; got"):
        method(0.1, radius=bad)


@pytest.mark.parametrize(
    "build_one",
    [
        lambda **kw: radial.norm_control(0.1, **kw),
        lambda **kw: radial.hyperball(0.1, **kw),
        lambda **kw: radial.rotational(0.1, centered=False, **kw),
    ],
    ids=["norm_control", "hyperball", "rotational"],
)
def test_a_group_of_zeros_at_init_is_named(build_one):
    params = {"out": {"kernel": np.float32([[1, 0]] * 3), "bias": np.zeros(2, np.float32)}}
    message = "`params` must not have a group of zeros.*; got zeros in 'out/kernel'. Exclude these"
    with pytest.raises(ValueError, match=message):
        build_one(axes=0).init(params)
    build_one(axes=None).init(params)  # the whole leaf has a norm
    build_one(axes=None, rules=(("**", 0.0),)).init(params)


def test_a_constant_neuron_has_nothing_left_when_centered():
    with pytest.raises(ValueError, match="not have a group of zeros"):
        radial.rotational(0.1, axes=0).init({"kernel": jnp.ones((3, 2))})


def test_fractions_above_one_are_refused():
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\], or a schedule; got 1.5"):
        radial.norm_control(1.5)
    with pytest.raises(ValueError, match=r"`outward` must be in \[0, 1\]"):
        radial.radial_brake(2.0)
    with pytest.raises(ValueError, match=r"`inward` must be in \[0, 1\]"):
        radial.radial_brake(0.5, 2.0)
    tx = radial.norm_control(0.75, rules=(("**", 2.0),))
    with pytest.raises(
        ValueError, match=r"`rate` must be in \[0, 0.5\] at every step; got 0.75 at"
    ):
        tx.init(tree(0))
    tx = radial.norm_control(lambda count: 2.0)
    with pytest.raises(
        ValueError, match=r"`rate` must be in \[0, 1\] at every step; got 2 at step 0"
    ):
        tx.init(tree(0))


@pytest.mark.parametrize("method", [radial.radial_brake, radial.project_radial])
def test_multipliers_above_one_are_refused_where_they_are_a_share(method):
    message = rf"`rules` must give `{method.__name__}` multipliers <= 1; got 2."
    with pytest.raises(ValueError, match=message):
        method(rules=(("**", 2.0),)).init(tree(0))


def test_rotational_checks_its_numbers():
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\); got"):
            radial.rotational(0.1, axes=None, decay=bad)
    with pytest.raises(ValueError, match="`eps` must be a finite number >= 0"):
        radial.rotational(0.1, axes=None, eps=-1.0)


def test_the_cosine_gate_checks_its_threshold_and_asks_for_the_gradient():
    with pytest.raises(ValueError, match="`cosine` must be a finite number >= 0"):
        radial.project_radial(cosine=-0.1)
    tx, params = radial.project_radial(cosine=0.1), tree(0)
    with pytest.raises(ValueError, match=r"needs the raw gradient; got none\. .*with_grad"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("tx", [radial.hyperball(0.1), radial.rotational(0.1, axes=None)])
def test_updates_narrower_than_their_parameters_are_refused(tx):
    params, updates = tree(0), tree(1, jnp.bfloat16)
    state = jax.eval_shape(tx.init, params)
    with pytest.raises(TypeError, match=r"needs updates as wide as their parameters; got bfloat16"):
        jax.eval_shape(tx.update, updates, state, params)


# Invariants and reductions.

ONE = (("**", 1.0),)


def norms(leaf, axes):
    return np.array([length(row) for row in groups(np.asarray(leaf, np.float64), axes)[0]])


def one_step(tx, params, updates, **extra):
    run = lambda params, updates: tx.update(updates, tx.init(params), params, **extra)[0]
    return jax.tree.map(np.add, params, jax.jit(run)(params, updates))


def kernel(seed, shape=(6, 5), dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("axes", [None, 0, 1])
def test_pure_norm_control_moves_the_norm_linearly_and_keeps_the_direction(axes, x64):
    theta = kernel(0, dtype=np.float64)

    @jax.jit
    def run(rate, ratio):
        tx = radial.norm_control(rate, ratio, radius=2.0, axes=axes)
        return theta + tx.update(jnp.zeros_like(theta), tx.init(theta), theta)[0]

    for rate, ratio in ((0.01, 0.5), (0.5, 3.0), (1.0, 0.5)):
        got = np.asarray(run(rate, ratio))
        want = (1 - rate) * norms(theta, axes) + rate * ratio * 2.0
        assert np.allclose(norms(got, axes), want, rtol=1e-14)
        cosines = groups(got * theta, axes)[0].sum(1) / norms(got, axes) / norms(theta, axes)
        assert np.allclose(cosines, 1, rtol=1e-14)


def test_norm_control_with_ratio_zero_is_decay_weights_bit_for_bit():
    params, schedule = tree(0), lambda count: 0.125 / (1 + count)
    got = trajectory(radial.norm_control(schedule, 0.0, rules=RULES), params, [tree(1)] * 3)
    want = trajectory(wdjax.decay_weights(schedule, rules=RULES), params, [tree(1)] * 3)
    chex.assert_trees_all_equal(got, want)


def test_norm_control_with_ratio_zero_takes_zero_groups():
    zero = {"kernel": np.zeros((2, 2), np.float32)}
    radial.norm_control(0.1, 0.0).init(zero)
    radial.norm_control(0.1, wdjax.fixed(0.0)).init(zero)


def test_norm_control_at_rate_one_is_the_projection_onto_the_sphere():
    params = tree(0)
    zero = jax.tree.map(np.zeros_like, params)
    got = one_step(radial.norm_control(1.0, radius=0.7, axes=-1, rules=ONE), params, zero)
    onto = lambda p: 0.7 * p / np.linalg.norm(p, axis=-1, keepdims=True)
    chex.assert_trees_all_close(got, jax.tree.map(onto, params), rtol=1e-6, atol=1e-7)
    prox = jax.jit(lambda p: penalties.sphere(0.7, axes=-1).prox(p, 1.0))
    chex.assert_trees_all_close(got["a"]["kernel"], prox(params["a"]["kernel"]), rtol=1e-6)


def test_hyperball_is_a_relative_update_and_then_norm_control_at_rate_and_ratio_one():
    params, rules = tree(0), (*RULES[:1], ("**", 0.0))
    steps = [tree(t) for t in range(5)]
    zero = jax.tree.map(np.zeros_like, params)
    relative = radial.relative_update(0.3, rules=rules)
    pin = radial.norm_control(1.0, 1.0, rules=rules)

    @jax.jit
    def both(params, states, step):
        moved, first = relative.update(step, states[0], params)
        params = optax.apply_updates(params, moved)
        moved, second = pin.update(zero, states[1], params)
        return optax.apply_updates(params, moved), (first, second)

    two, states = params, (relative.init(params), pin.init(params))
    for step in steps:
        two, states = both(two, states, step)
    one = trajectory(radial.hyperball(0.3, rules=rules), params, steps)[-1]
    chex.assert_trees_all_close(one, two, rtol=1e-5, atol=1e-6)


def after_steps(tx, theta, draws):
    def body(carry, update):
        params, state = carry
        moved, state = tx.update(update, state, params)
        return (optax.apply_updates(params, moved), state), None

    return jax.jit(lambda x: jax.lax.scan(body, (x, tx.init(x)), draws)[0][0])(theta)


@pytest.mark.parametrize(("axes", "radius"), [(None, 0.3), (0, None), (1, 0.3)])
def test_hyperball_holds_the_norm_for_two_thousand_steps(axes, radius):
    theta, draws = kernel(0), kernel(1, (2_000, 6, 5))
    after = after_steps(radial.hyperball(0.2, radius=radius, axes=axes), theta, draws)
    want = norms(theta, axes) if radius is None else radius
    assert np.allclose(norms(after, axes), want, rtol=3e-7)


def test_hyperball_holds_the_norm_in_bfloat16_without_drift():
    theta, draws = (kernel(i, s, jnp.bfloat16) for i, s in enumerate([(40, 50), (1_000, 40, 50)]))
    after = after_steps(radial.hyperball(0.05, rules=ONE), theta, draws)
    assert np.allclose(norms(after, None), norms(theta, None), rtol=3e-4)


def test_the_length_of_the_update_does_not_matter_to_hyperball():
    theta, update = kernel(0), kernel(1)
    tx = radial.hyperball(0.3, axes=0)
    run = jax.jit(lambda update: tx.update(update, tx.init(theta), theta)[0])
    for scale in (1e-30, 1e-12, 1e3, 1e30):
        got = run(update * np.float32(scale))
        assert np.allclose(got, run(update), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eta", [0.01, 0.5, 2.0])
def test_a_tangent_step_of_hyperball_turns_by_arctan_eta(eta, x64):
    theta, update = kernel(0, dtype=np.float64), kernel(1, dtype=np.float64)
    update = update - theta * np.vdot(theta, update) / np.vdot(theta, theta)
    after = one_step(radial.hyperball(eta), theta, update)
    cosine = np.vdot(theta, after) / np.linalg.norm(theta) / np.linalg.norm(after)
    assert np.isclose(np.tan(np.arccos(cosine)), eta, rtol=1e-9)


def test_a_traced_radius_runs_under_vmap():
    theta, update = kernel(0), kernel(1)
    run = lambda r: (
        theta
        + radial.hyperball(0.1, radius=r).update(
            update, radial.hyperball(0.1, radius=r).init(theta), theta
        )[0]
    )
    sizes = np.linalg.norm(jax.jit(jax.vmap(run))(np.float32([0.5, 2.0])), axis=(1, 2))
    assert np.allclose(sizes, [0.5, 2.0], rtol=1e-6)


def test_a_given_radius_lets_a_zero_matrix_start_in_the_direction_of_its_first_step():
    update = np.float32([[3.0, 4.0]])
    got = one_step(radial.hyperball(0.1, radius=2.0), 0 * update, update)
    assert np.allclose(got, [[1.2, 1.6]], rtol=1e-6)


def test_zero_groups_that_init_could_not_see_take_their_update_as_it_comes():
    params, update = np.float32([[1, 1, 1], [0, 0, 0]]), kernel(1, (2, 3))
    for tx in (
        radial.hyperball(0.1, axes=1),
        radial.rotational(0.1, axes=1, centered=False),
    ):
        got = jax.jit(lambda p, u, tx=tx: tx.update(u, tx.init(p), p)[0])(params, update)
        assert np.array_equal(got[1], update[1])
        assert not np.allclose(got[0], update[0])


def test_a_step_of_hyperball_onto_zero_leaves_the_group_where_it_was():
    theta = np.float32([[2.0, 0.0]])
    assert np.array_equal(one_step(radial.hyperball(1.0), theta, -theta), theta)


def test_the_brake_at_one_is_the_identity_bit_for_bit():
    params, updates = tree(0), tree(1)
    tx = radial.radial_brake(1.0, 1.0, rules=ONE)
    got, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    chex.assert_trees_all_equal(got, updates)


def test_the_brake_at_zero_outward_never_lets_a_norm_grow():
    updates = [kernel(t) * 0.3 for t in range(1, 40)]
    path = trajectory(radial.radial_brake(0.0, axes=0), kernel(0), updates)
    sizes = np.stack([norms(theta, 0) for theta in [kernel(0), *path]])
    assert (np.diff(sizes, axis=0) <= 1e-6).all()
    assert (np.diff(sizes, axis=0) < -1e-3).any()


def test_the_brake_keeps_the_direction_of_the_candidate_and_its_share_of_growth(x64):
    theta, update = kernel(0, dtype=np.float64), kernel(1, dtype=np.float64)
    got = one_step(radial.radial_brake(0.5, 0.25, axes=0), theta, update)
    start, candidate = norms(theta, 0), norms(theta + update, 0)
    s = np.where(candidate > start, 0.5, 0.25)
    assert set(s) == {0.5, 0.25}
    assert np.allclose(norms(got, 0), start + s * (candidate - start), rtol=1e-14)
    direction = np.asarray(theta + update) / candidate
    assert np.allclose(np.asarray(got) / norms(got, 0), direction, rtol=1e-13)


def test_the_brake_lets_zero_weights_start():
    update = kernel(1)
    got = one_step(radial.radial_brake(0.0), 0 * update, update)
    assert np.array_equal(got, update)


@pytest.mark.parametrize("axes", [None, 0, 1])
def test_a_projected_step_is_orthogonal_and_obeys_pythagoras(axes, x64):
    theta, update = kernel(0, dtype=np.float64), kernel(1, dtype=np.float64)
    tx = radial.project_radial(axes=axes)
    moved = np.asarray(jax.jit(tx.update)(update, tx.init(theta), theta)[0])
    dots = groups(moved * theta, axes)[0].sum(1)
    assert np.allclose(dots, 0, atol=1e-14)
    want = norms(theta, axes) ** 2 + norms(moved, axes) ** 2
    assert np.allclose(norms(theta + moved, axes) ** 2, want, rtol=1e-14)


def test_a_cosine_threshold_of_zero_never_projects():
    params, updates = tree(0), tree(1)
    tx = radial.project_radial(cosine=0.0, axes=-1, rules=RULES, also_whole=True)
    got, _ = jax.jit(tx.update)(updates, tx.init(params), params, grad=tree(2))
    chex.assert_trees_all_close(got, updates, rtol=0, atol=0)


def test_no_step_is_shorter_than_the_floor_and_longer_ones_are_left_alone():
    theta = kernel(0)
    update = kernel(1) * np.float32([[1e-30, 1e-3, 0.1, 1.0, 10.0]])
    tx = radial.update_floor(0.5, axes=0)
    moved, _ = jax.jit(tx.update)(update, tx.init(theta), theta)
    sizes, floor = norms(moved, 0), 0.5 * norms(theta, 0)
    assert (sizes >= floor * (1 - 1e-6)).all()
    long = norms(update, 0) > floor
    assert long.sum() == 2
    assert np.array_equal(moved[:, long], update[:, long])
    cosines = groups(np.asarray(moved), 0)[0] @ groups(np.asarray(update), 0)[0].T
    assert (np.diag(cosines) > 0).all()


def test_a_relative_update_has_its_share_of_the_norm_and_lets_zero_weights_start():
    theta = kernel(0) * np.float32([[1, 1, 0, 1, 1]])
    update = kernel(1) * np.float32([[1e-30, 1.0, 3.0, 10.0, 1e20]])
    tx = radial.relative_update(0.25, axes=0)
    moved, _ = jax.jit(tx.update)(update, tx.init(theta), theta)
    assert np.allclose(np.delete(norms(moved, 0) / norms(theta, 0).clip(1e-9), 2), 0.25, rtol=1e-6)
    assert np.array_equal(moved[:, 2], update[:, 2])


@pytest.mark.slow
def test_rotational_keeps_norm_and_mean_and_turns_at_its_speed():
    """RMS of the tangent of the angle per step and neuron against η, for noise that differs in size
    a hundredfold between neurons and has a radial part."""
    dimensions, neurons, eta = 400, 6, 0.03
    theta = kernel(0, (dimensions, neurons))
    theta = theta - theta.mean(0, keepdims=True)
    sizes = jnp.geomspace(0.01, 1.0, neurons)[None]
    tx = radial.rotational(eta, axes=0)
    draws = jax.random.normal(jax.random.key(1), (200, dimensions, neurons))

    def body(carry, draw):
        params, state = carry
        moved, state = tx.update(sizes * (draw + 2 * params), state, params)
        new = params + moved
        dot = jnp.sum(params * new, 0)
        angle = jnp.arccos(dot / jnp.linalg.norm(params, axis=0) / jnp.linalg.norm(new, axis=0))
        return (new, state), angle

    (after, _), angles = jax.jit(lambda x: jax.lax.scan(body, (x, tx.init(x)), draws))(theta)
    assert np.allclose(norms(after, 0), norms(theta, 0), rtol=1e-5)
    assert np.allclose(after.mean(0), 0, atol=1e-6)
    assert np.allclose(np.sqrt((angles**2).mean(0)), eta, rtol=0.01)


def test_rotational_does_not_turn_to_what_rounding_leaves_of_an_update_along_the_weights():
    theta = kernel(0, (2, 5))
    step = lambda tx, x, u: jax.jit(lambda x, u: tx.update(u, tx.init(x), x)[0])(x, u)
    got = step(radial.rotational(0.1, axes=0, centered=False), theta, np.float32(-0.1) * theta)
    np.testing.assert_allclose(got, 0, atol=1e-6)
    # two centered numbers have one direction only, and nothing is tangent to it
    theta = theta - theta.mean(0, keepdims=True)
    got = step(radial.rotational(0.1, axes=0), theta, kernel(1, (2, 5)))
    np.testing.assert_allclose(got, 0, atol=1e-6)


def test_rotational_takes_the_mean_out_at_the_first_step():
    theta = kernel(0) + np.float32(3)
    got = one_step(radial.rotational(0.1, axes=0), theta, kernel(1))
    assert np.allclose(got.mean(0), 0, atol=1e-6)
    assert np.allclose(norms(got, 0), norms(theta - theta.mean(0, keepdims=True), 0), rtol=1e-6)


def test_stacked_layers_are_separate_groups():
    """Two layers stacked on a leading axis equal the two layers apart."""
    theta, update = kernel(0, (2, 6, 5)), kernel(1, (2, 6, 5))
    for make in (radial.hyperball, radial.relative_update, radial.norm_control):
        got = one_step(make(0.3, axes=(-2, -1)), theta, update)
        whole = make(0.3)
        alone = jax.jit(lambda x, u, tx=whole: x + tx.update(u, tx.init(x), x)[0])
        for i in range(2):
            assert np.allclose(got[i], alone(theta[i], update[i]), rtol=1e-6)


# Other packages.


def torch_run(make, theta, grads):
    """Steps of a torch optimizer in float64."""
    torch = pytest.importorskip("torch", reason="comes with the extra 'oracles'")
    param = torch.nn.Parameter(torch.tensor(theta))
    optimizer = make([param])
    for grad in grads:
        param.grad = torch.tensor(grad)
        optimizer.step()
    return param.detach().numpy()


def oracle_data(radial_share, steps=12):
    """A torch weight (out, in) and gradients that are more or less radial."""
    rng = np.random.default_rng(3)
    theta = rng.normal(size=(4, 6))
    grads = []
    for t in range(steps):
        grad = rng.normal(size=(4, 6))
        tangent = grad - theta * (grad * theta).sum(1, keepdims=True) / (theta**2).sum(
            1, keepdims=True
        )
        grads.append(tangent + radial_share[t % len(radial_share)] * theta)
    return theta, grads


def our_run(tx, theta, grads):
    """The same run in Flax's layout (in, out)."""
    params = theta.T
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    for grad in grads:
        moved, state = update(grad.T, state, params, grad=grad.T)
        params = params + np.asarray(moved)
    return params.T


def adamp_package():
    pytest.importorskip("torch", reason="comes with the extra 'oracles'")
    return pytest.importorskip("adamp", reason="comes with the extra 'oracles'")


@functools.cache  # compiled once for all shares and packages
def with_gate(kind):
    factory, strength = {
        "adam": (optax.adam(0.05, eps=0.0), 0.3),
        "nesterov": (optax.sgd(0.05, momentum=0.9, nesterov=True), 0.03 / (1 - 0.9)),
        "momentum": (optax.sgd(0.05, momentum=0.9), 0.03 / (1 - 0.9)),
    }[kind]
    law = wdjax.lr_scaled(strength, 0.05)
    gate = radial.project_radial(law, cosine=0.1, decay_ratio=0.1, axes=0, also_whole=True)
    return optax.chain(factory, gate)


SHARES = {"tangent": [0.0, 0.005], "mixed": [0.0, 0.03, 0.08, 1.0, 0.05], "radial": [1.0]}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("package", ["adamp", "timm"])
def test_adam_and_the_cosine_gate_are_adamp(package, share, x64, agrees):
    packages = adamp_package() if package == "adamp" else timm_optim()
    theta, grads = oracle_data(SHARES[share])
    make = lambda params: packages.AdamP(params, lr=0.05, weight_decay=0.3, eps=0.0)
    got = our_run(with_gate("adam"), theta, grads)
    agrees("radial.project_radial", package, got, torch_run(make, theta, grads), atol=1e-14)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    ("package", "nesterov"), [("adamp", True), ("timm", True), ("timm", False)]
)
def test_momentum_and_the_cosine_gate_are_sgdp(package, nesterov, share, x64, agrees):
    """Without Nesterov the package adamp writes its projection into the momentum: not the paper."""
    packages = adamp_package() if package == "adamp" else timm_optim()
    theta, grads = oracle_data(SHARES[share])
    make = lambda params: packages.SGDP(
        params, lr=0.05, momentum=0.9, weight_decay=0.03, nesterov=nesterov, eps=0.0
    )
    got = our_run(with_gate("nesterov" if nesterov else "momentum"), theta, grads)
    agrees("radial.project_radial", package, got, torch_run(make, theta, grads), atol=1e-13)


@pytest.mark.parametrize(("share", "hits"), [("tangent", 12), ("radial", 0)])
def test_the_oracles_data_does_and_does_not_trigger_the_gate(share, hits, x64):
    """So that the comparisons above run through both branches."""
    theta, grads = oracle_data(SHARES[share])
    theta, hit = theta.T, 0
    tx = radial.project_radial(cosine=0.1, axes=0)
    state, update = tx.init(theta), jax.jit(tx.update)
    for grad in (grad.T for grad in grads):
        moved, _ = update(grad + theta, state, theta, grad=grad)
        hit += not np.allclose(moved, grad + theta)
    assert hit == hits


def test_hyperball_is_heavyball_s(agrees):
    """HeavyBall's direction is g/√v without a first moment: Adam with β₁ = 0."""
    torch = pytest.importorskip("torch", reason="comes with the extra 'oracles'")
    heavyball = pytest.importorskip("heavyball", reason="comes with the extra 'oracles'")
    heavyball.utils.compile_mode = None
    theta, grads = oracle_data([1.0, 0.0])
    theta, grads = theta.astype(np.float32), [g.astype(np.float32) for g in grads]
    make = lambda params: heavyball.HyperBallAdamW(
        params, lr=0.1, betas=(0.9, 0.99), multi_tensor=False
    )
    got = our_run(
        optax.chain(optax.adam(1.0, b1=0.0, b2=0.99), radial.hyperball(0.1)), theta, grads
    )
    with torch.no_grad():
        want = torch_run(make, theta, grads)
    agrees("radial.hyperball", "heavyball", got, want, atol=2e-6)


def test_an_injected_axis_is_no_axis():
    with pytest.raises(TypeError, match=r"pass static_args=\(\"axes\",\)"):
        optax.inject_hyperparams(radial.hyperball)(0.1, axes=0).init({"kernel": jnp.ones((2, 2))})
    named = optax.inject_hyperparams(radial.hyperball, static_args=("axes",))(0.1, axes=0)
    named.init({"kernel": jnp.ones((2, 2))})


@pytest.mark.parametrize("method", ["norm_control", "hyperball"])
def test_a_radius_may_be_retuned_scheduled_and_injected(method):
    make = lambda radius: getattr(radial, method)(1.0, radius=radius)
    params = {"kernel": np.arange(1, 7, dtype=np.float32).reshape(3, 2)}
    updates = {"kernel": params["kernel"][::-1] / 128}
    after = lambda tx, state: jax.jit(tx.update)(updates, state, params)[0]
    want = after(make(8.0), make(8.0).init(params))
    restored = after(make(8.0), make(4.0).init(params))
    chex.assert_trees_all_close(restored, want, rtol=1e-6)
    injected = optax.inject_hyperparams(getattr(radial, method))(1.0, radius=lambda t: 8.0 + t)
    state = injected.init(params)
    chex.assert_trees_all_close(after(injected, state), want, rtol=1e-6)
    _, state = jax.jit(injected.update)(updates, state, params)
    later = after(injected, state)
    chex.assert_trees_all_close(later, after(make(9.0), make(9.0).init(params)), rtol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        radial.hyperball(0.1, rules=(("**", 1.0),)),
        radial.rotational(0.1, axes=-1, rules=(("**", 1.0),)),
    ],
    ids=["hyperball", "rotational"],
)
def test_a_group_that_starts_at_zero_takes_the_optimizers_step(tx):
    """It has no norm to keep; a compiled `init` cannot refuse it."""
    params = {"kernel": np.zeros((2, 3), np.float32)}
    updates = {"kernel": np.full((2, 3), 0.5, np.float32)}
    got = jax.jit(lambda p, u: tx.update(u, tx.init(p), p)[0])(params, updates)
    np.testing.assert_array_equal(got["kernel"], updates["kernel"])
