import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_devices

import wdjax
from wdjax import metrics
from wdjax.metrics import MeasuredState, latest, series

measured = functools.partial(metrics.measured, every=1)  # unless a test is about something else

OF_STEP = {"weight_norm", "weight_rms", "update_norm", "rotation", "effective_learning_rate"}
OF_DECAY = {"decay_to_update", "gated", "strength"}
LR, WEIGHT_DECAY = 0.1, 0.3


def draw(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


PARAMS = {
    "dense": {"kernel": draw(0, 6, 5), "bias": draw(1, 5)},
    "head": {"kernel": draw(2, 5, 3)},
    "embedding": draw(3, 7, 4),
}
GRADS = jax.tree.map(lambda p: np.sin(5 * p), PARAMS)
RULES = (("head/kernel", 0.5), *wdjax.standard())


def sgd(**options):
    return wdjax.decayed(optax.sgd)(LR, weight_decay=WEIGHT_DECAY, **options)


# One object each, so that all tests share its compiled update.
MEASURED, BY_LEAF = measured(sgd()), measured(sgd(), per="leaf")
CAUTIOUS, UNIT = measured(sgd(gate=wdjax.gates.cautious)), measured(optax.sgd(1.0))


def one_step(optimizer, params=PARAMS, grads=GRADS):
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    return updates, latest(state)


def on_paper(optimizer, params=PARAMS):
    """The readings after a step without their numbers."""
    step = lambda p: latest(optimizer.update(p, optimizer.init(p), p)[1])
    return jax.eval_shape(step, params)


def reference(params, before, after, strength):
    """The readings in float64, from the leaves of one group."""
    flat = [np.concatenate([np.ravel(x).astype(np.float64) for x in t]) for t in
            (params, before, after)]  # fmt: skip
    w, b, u = flat
    unit, turned = w / np.linalg.norm(w), (w + u) / np.linalg.norm(w + u)
    chord, sum_ = np.linalg.norm(unit - turned), np.linalg.norm(unit + turned)
    return {
        "weight_norm": np.linalg.norm(w),
        "weight_rms": np.sqrt(np.mean(w * w)),
        "update_norm": np.linalg.norm(u),
        "rotation": 2 * np.arctan2(chord, sum_),
        "effective_learning_rate": np.linalg.norm(b) / np.linalg.norm(w),
        "decay_to_update": np.linalg.norm(u - b) / np.linalg.norm(b),
        "gated": np.mean((u == b) & (w != 0)) if strength else 0.0,
        "strength": strength,
    }


def assert_close(got, want, rtol=1e-5):
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert np.allclose(got[name], value, rtol=rtol, atol=1e-12), name


# What is read.


def test_the_readings_of_each_rule_are_those_of_the_formulas_in_float64():
    s = LR * WEIGHT_DECAY
    wide = jax.tree.map(lambda x: x.astype(np.float64), (PARAMS, GRADS))

    def step(path, m):
        theta, grad = (functools.reduce(lambda tree, key: tree[key], path, t) for t in wide)
        return [theta], [-LR * grad], [-LR * grad - s * m * theta]

    _, found = one_step(measured(sgd(rules=RULES)))
    assert set(found) == {"head/kernel", "weight", "bias", "embedding"}
    assert_close(found["head/kernel"], reference(*step(("head", "kernel"), 0.5), s / 2))
    assert_close(found["weight"], reference(*step(("dense", "kernel"), 1.0), s))
    assert_close(found["bias"], reference(*step(("dense", "bias"), 0.0), 0.0))


def test_the_leaves_of_a_rule_count_as_one_vector():
    s = LR * WEIGHT_DECAY
    kernels = [PARAMS["dense"]["kernel"], PARAMS["head"]["kernel"]]
    grads = [GRADS["dense"]["kernel"], GRADS["head"]["kernel"]]
    before = [-LR * g.astype(np.float64) for g in grads]
    after = [b - s * p.astype(np.float64) for b, p in zip(before, kernels, strict=True)]
    assert_close(one_step(MEASURED)[1]["weight"], reference(kernels, before, after, s))


def test_per_leaf_reads_each_leaf_by_its_path():
    _, found = one_step(BY_LEAF)
    assert set(found) == {"dense/kernel", "dense/bias", "head/kernel", "embedding"}
    norm = np.linalg.norm(PARAMS["head"]["kernel"])
    assert found["head/kernel"]["weight_norm"] == pytest.approx(norm, rel=1e-6)


def test_every_reading_is_a_float32_scalar():
    for optimizer in (MEASURED, measured(optax.adam(0.1))):
        for reading in jax.tree.leaves(on_paper(optimizer)):
            assert (reading.shape, reading.dtype) == ((), jnp.float32)


def test_without_decay_to_be_told_apart_its_readings_are_left_out():
    _, found = one_step(measured(optax.adamw(0.1)), PARAMS["dense"], GRADS["dense"])
    assert set(found["weight"]) == OF_STEP
    got = {name: float(value) for name, value in found["weight"].items()}
    ratio = got["update_norm"] / got["weight_norm"]
    assert got["effective_learning_rate"] == pytest.approx(ratio, rel=1e-6)
    assert set(one_step(MEASURED)[1]["weight"]) == OF_STEP | OF_DECAY


def at_angle(angle, radial, seed=0, shape=(300, 70)):
    """θ, Δ in float32 such that Δ turns θ by about `angle` and adds `radial` of its length."""
    theta, other = draw(seed, *shape).astype(np.float64), draw(seed + 1, *shape).astype(np.float64)
    across = other - theta * np.vdot(theta, other) / np.vdot(theta, theta)
    across *= np.linalg.norm(theta) / np.linalg.norm(across)
    delta = (1 + radial) * (np.cos(angle) * theta + np.sin(angle) * across) - theta
    return theta.astype(np.float32), delta.astype(np.float32)


@pytest.mark.parametrize("angle", [1e-6, 1e-4, 1e-2, 1.0, 3.0])
@pytest.mark.parametrize("radial", [0.0, 1e-4])
def test_rotation_is_exact_for_tiny_and_large_angles(angle, radial):
    theta, delta = at_angle(angle, radial)
    _, found = one_step(UNIT, {"kernel": theta}, {"kernel": -delta})
    want = reference([theta], [delta], [delta], 0.0)["rotation"]
    # where nearly all of the step is along θ, its part across has fewer digits
    tolerance = 1e-5 if radial <= angle else 0.01
    assert found["weight"]["rotation"] == pytest.approx(want, rel=tolerance)


@pytest.mark.parametrize("strength", [1e-4, 0.5])
def test_strong_decay_does_not_blur_a_tiny_rotation(strength):
    """Decay by s makes the angle 1/(1 − s) times as large."""
    theta, delta = at_angle(1e-5, 0.0)
    other = draw(5, 20, 20)
    params, grads = {"kernel": theta, "other/kernel": other}, {"kernel": -delta}
    grads["other/kernel"] = np.zeros_like(other)
    optimizer = measured(wdjax.decayed(optax.sgd)(1.0, weight_decay=strength), per="leaf")
    _, found = one_step(optimizer, params, grads)
    assert found["kernel"]["rotation"] == pytest.approx(1e-5 / (1 - strength), rel=1e-3)
    assert found["other/kernel"]["rotation"] < 1e-7 * strength


def test_leaves_that_shrink_apart_turn_their_group():
    one = np.ones((1, 1), np.float32)
    params, grads = {"a": one, "b": one}, {"a": 0 * one, "b": one / 2}
    _, found = one_step(measured(optax.sgd(1.0), rules=(("**", 1.0),)), params, grads)
    want = np.pi / 4 - np.arctan(0.5)  # from (1, 1) to (1, 1/2)
    assert found["**"]["rotation"] == pytest.approx(want, rel=1e-5)


def test_the_arc_cosine_would_not_have_done():
    theta, delta = at_angle(1e-4, 0.0)
    turned = theta + delta
    lengths = np.linalg.norm(theta) * np.linalg.norm(turned)
    naive = np.arccos(np.clip(np.vdot(theta, turned) / lengths, -1, 1, dtype=np.float32))
    assert abs(naive - 1e-4) > 1e-5


def test_a_step_back_through_the_origin_turns_by_a_half_circle():
    theta = draw(0, 4, 4)
    _, found = one_step(UNIT, {"kernel": theta}, {"kernel": 3 * theta})
    assert found["weight"]["rotation"] == pytest.approx(np.pi, rel=1e-3)


@pytest.mark.parametrize("weights", [0.0, 1.0])
@pytest.mark.parametrize("gradient", [0.0, 1.0])
def test_zeros_read_zero_and_never_nan(weights, gradient):
    params, grads = ({"kernel": np.full((3, 2), x, np.float32)} for x in (weights, gradient))
    found = one_step(MEASURED, params, grads)[1]["weight"]
    assert all(np.isfinite(value) for value in found.values())
    if weights == 0:
        assert found["rotation"] == found["effective_learning_rate"] == found["gated"] == 0
    if gradient == 0:
        assert found["effective_learning_rate"] == found["decay_to_update"] == 0


def test_long_rows_and_bare_arrays_keep_their_digits():
    for shape in ((2**20,), (2, 2**19), (2**12, 2**8)):
        x = np.full(shape, 0.1, np.float32)
        (found,) = one_step(UNIT, x, x)[1].values()
        want = np.sqrt(x.size * np.float64(np.float32(0.1)) ** 2)
        assert found["weight_norm"] == pytest.approx(want, rel=2e-5), shape


# Decay.


def test_gated_is_the_share_that_the_gate_held_back():
    """Cautious: where Δ and θ point the same way, that is where g and θ do not."""
    found = one_step(CAUTIOUS)[1]["weight"]
    pairs = [(PARAMS[k]["kernel"], GRADS[k]["kernel"]) for k in ("dense", "head")]
    held = np.concatenate([np.ravel(p * g < 0) for p, g in pairs])
    assert 0 < held.mean() < 1
    assert found["gated"] == pytest.approx(held.mean(), rel=1e-6)
    assert one_step(MEASURED)[1]["weight"]["gated"] == 0


def test_nothing_is_gated_where_nothing_decays():
    gate = wdjax.gates.cautious
    off = wdjax.decayed(optax.sgd)(LR, weight_decay=0.0, gate=gate)
    assert one_step(measured(off))[1]["weight"]["gated"] == 0
    assert one_step(CAUTIOUS)[1]["bias"]["gated"] == 0


def test_decay_that_bfloat16_swallows_counts_as_gated():
    params = grads = {"kernel": np.ones((8, 8), jnp.bfloat16)}
    optimizer = measured(wdjax.decayed(optax.sgd)(1.0, weight_decay=1e-4))
    with pytest.warns(UserWarning, match="swallow"):
        state = optimizer.init(params)
    found = latest(jax.jit(optimizer.update)(grads, state, params)[1])["weight"]
    assert found["gated"] == 1
    assert found["decay_to_update"] == 0
    assert found["strength"] == pytest.approx(1e-4)
    assert found["weight_norm"] == pytest.approx(8)


def test_what_bfloat16_swallows_is_counted_as_what_the_compiled_step_returns():
    """A compiler skips a cast to bfloat16 and back, and then nothing seems to be swallowed."""
    params, grads = ({"kernel": draw(seed, 64, 64).astype(jnp.bfloat16)} for seed in range(2))

    def updated(weight_decay, wrap):
        optimizer = wrap(wdjax.decayed(optax.sgd)(0.1, weight_decay=weight_decay))
        return jax.jit(optimizer.update)(grads, optimizer.init(params), params)

    updates, state = updated(0.02, measured)
    same = np.equal(updates["kernel"], updated(0.0, lambda tx: tx)[0]["kernel"])
    assert 0.05 < same.mean() < 0.5
    assert latest(state)["weight"]["gated"] == pytest.approx(float(same.mean()), abs=0.02)


def test_the_implicit_form_is_measured_as_what_the_prox_adds():
    penalty = wdjax.penalties.l1
    optimizer = measured(sgd(penalty=penalty, implicit=True), per="leaf")
    found = one_step(optimizer)[1]["dense/kernel"]
    theta, grad = (t["dense"]["kernel"].astype(np.float64) for t in (PARAMS, GRADS))
    candidate = theta - LR * grad
    s = LR * WEIGHT_DECAY
    after = np.sign(candidate) * np.maximum(np.abs(candidate) - s, 0) - theta
    assert_close(found, reference([theta], [-LR * grad], [after], s), rtol=1e-4)


def test_strength_follows_the_schedule_and_the_law():
    lr = optax.linear_schedule(0.1, 0.0, 4)
    optimizer = measured(wdjax.decayed(optax.adam)(lr, weight_decay=0.3))
    params, grads = PARAMS["dense"], GRADS["dense"]
    state, strengths = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in range(5):
        _, state = update(grads, state, params)
        strengths.append(float(latest(state)["weight"]["strength"]))
    assert np.allclose(strengths, 0.3 * np.array([0.1, 0.075, 0.05, 0.025, 0.0]))


# The step itself stays as it was.


@pytest.mark.parametrize(
    ("factory", "per", "every"),
    [(optax.sgd, "leaf", 1), (optax.adam, "rule", 1), (optax.adam, "leaf", 2)],
)
@pytest.mark.first_is_quick
def test_the_step_is_the_same_bit_for_bit(factory, per, every):
    plain = wdjax.decayed(factory)(0.01, weight_decay=0.1, gate=wdjax.gates.cautious)
    ours = measured(plain, per=per, every=every)

    def train(optimizer):
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state):
            grads = jax.tree.map(lambda p: jnp.sin(5 * p), params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = jax.tree.map(jnp.array, PARAMS)
        state = optimizer.init(params)
        for _ in range(5):
            params, state = step(params, state)
        return params, getattr(state, "inner_state", state)

    chex.assert_trees_all_equal(train(ours), train(plain))


@pytest.mark.parametrize("every", [1, 10])
def test_reading_copies_no_parameter_and_no_moment(every):
    optimizer = measured(wdjax.decayed(optax.adam)(0.1, weight_decay=0.1), every=every)
    params = {"kernel": np.ones((512, 512), np.float32)}

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params)
    memory = compiled.compile().memory_analysis()
    assert memory.temp_size_in_bytes < params["kernel"].nbytes / 4


def test_readings_are_taken_every_n_steps_and_held_in_between():
    optimizer = measured(optax.sgd(0.1), every=3)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params, state, params)
        return (optax.apply_updates(params, updates), state), latest(state)["weight"]

    start = {"kernel": np.ones((2, 2), np.float32)}
    scanned = jax.lax.scan(step, (start, optimizer.init(start)), length=8)[1]["weight_norm"]
    assert np.allclose(scanned, 2 * 0.9 ** np.array([0, 0, 0, 3, 3, 3, 6, 6]))
    carry, eager = (start, optimizer.init(start)), []
    for _ in range(4):
        carry, found = step(carry, None)
        eager.append(found["weight_norm"])
    assert np.allclose(eager, scanned[:4])


# Trees.


def test_a_missing_update_counts_as_no_step():
    grads = {**GRADS, "dense": {"kernel": GRADS["dense"]["kernel"], "bias": None}}
    updates, found = one_step(MEASURED, PARAMS, grads)
    assert updates["dense"]["bias"] is None
    assert found["bias"]["update_norm"] == found["bias"]["rotation"] == 0
    norm = np.linalg.norm(PARAMS["dense"]["bias"])
    assert found["bias"]["weight_norm"] == pytest.approx(norm, rel=1e-6)


def test_a_missing_update_is_no_gated_decay():
    params, grads = {"a": draw(0, 2, 2), "b": draw(1, 2, 2)}, {"a": draw(2, 2, 2), "b": None}
    found = one_step(BY_LEAF, params, grads)[1]
    assert found["b"]["gated"] == found["b"]["decay_to_update"] == 0
    assert found["b"]["rotation"] < 1e-6
    assert found["a"]["decay_to_update"] > 0


def test_holes_in_params_and_updates_are_passed_over():
    params = {"kernel": PARAMS["dense"]["kernel"], "activation": None, "bias": draw(1, 5)}
    grads = jax.tree.map(np.sin, params)
    _, found = one_step(BY_LEAF, params, grads)
    assert set(found) == {"kernel", "bias"}
    norm = np.linalg.norm(params["kernel"])
    assert found["kernel"]["weight_norm"] == pytest.approx(norm, rel=1e-6)


def test_a_whole_model_with_its_functions_may_be_passed():
    """Equinox' own examples do: the gradient of a function is None."""
    model = {"kernel": PARAMS["dense"]["kernel"], "activation": jax.nn.relu}
    params, grads = ({**model, "activation": None} for _ in range(2))
    for optimizer in (measured(sgd(), per="leaf"), measured(optax.sgd(0.1), every=2)):
        state = optimizer.init(params)
        got, want = (optimizer.update(grads, state, tree) for tree in (model, params))
        chex.assert_trees_all_equal(got, want)


def test_complex_leaves_and_scalars_are_measured():
    params = {"kernel": np.full((2, 2), 3 + 4j, np.complex64), "gain": np.float32(2.0)}
    found = one_step(measured(optax.sgd(0.1), per="leaf"), params, params)[1]
    assert found["kernel"]["weight_norm"] == pytest.approx(10)
    assert found["kernel"]["update_norm"] == pytest.approx(1)
    assert found["kernel"]["rotation"] == pytest.approx(0, abs=1e-4)
    assert found["gain"]["weight_rms"] == pytest.approx(2)


def test_a_bare_array_has_a_name():
    assert set(on_paper(measured(optax.sgd(0.1), per="leaf"), np.ones((2, 2)))) == {"."}


def test_rules_of_the_same_name_stay_apart():
    rules = ((lambda leaf: leaf.ndim == 1, 0.0), (lambda leaf: leaf.ndim == 2, 1.0))
    assert set(on_paper(measured(sgd(rules=rules)))) == {"<lambda>", "<lambda> (2)"}


def test_any_rules_can_group():
    rules = (("embedding", 1.0), ("**", 1.0))
    _, found = one_step(measured(sgd(), rules=rules))
    assert set(found) == {"embedding", "**"}
    numbers = {"dense/kernel": 30, "dense/bias": 5, "head/kernel": 15}
    share = 45 / sum(numbers.values())  # the bias does not decay
    want = LR * WEIGHT_DECAY * share
    assert found["**"]["strength"] == pytest.approx(want, rel=1e-6)
    assert found["embedding"]["strength"] == 0


def test_float64_parameters_give_float32_readings(x64):
    params = jax.tree.map(np.float64, PARAMS)
    optimizer = measured(wdjax.decayed(optax.adam)(0.1, weight_decay=0.1), every=2)
    assert {x.dtype for x in jax.tree.leaves(on_paper(optimizer, params))} == {jnp.dtype("float32")}


# Transformations and wrappers.


def test_vmap_over_weight_decay_reads_each_member():
    def strength(weight_decay):
        optimizer = measured(wdjax.decayed(optax.sgd)(0.1, weight_decay=weight_decay), every=2)
        state = optimizer.update(GRADS["dense"], optimizer.init(PARAMS["dense"]), PARAMS["dense"])
        return latest(state[1])["weight"]

    lambdas = np.array([0.0, 0.1, 0.5], np.float32)
    found = jax.jit(jax.vmap(strength))(lambdas)
    assert np.allclose(found["strength"], 0.1 * lambdas)
    assert np.allclose(found["weight_norm"], np.linalg.norm(PARAMS["dense"]["kernel"]))


def test_a_gradient_through_training_is_the_one_without_readings():
    def final(learning_rate, wrap):
        optimizer = wrap(wdjax.decayed(optax.adam)(learning_rate, weight_decay=0.1))

        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(lambda p: p - 1, params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = {"kernel": jnp.zeros((2, 2))}
        (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=3)
        return jnp.sum(params["kernel"] ** 2)

    slope = jax.jit(jax.grad(final), static_argnums=1)
    want = slope(0.1, lambda optimizer: optimizer)
    for every in (1, 2):
        got = slope(0.1, functools.partial(measured, every=every))
        assert got == pytest.approx(float(want), rel=1e-6)


def relabeled(params):
    return jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "rest", params)


WRAPPED = {
    "chain": lambda m: optax.chain(optax.clip(1e9), m),
    "MultiSteps": lambda m: optax.MultiSteps(m, 1).gradient_transformation(),
    "masked": lambda m: optax.masked(m, lambda tree: jax.tree.map(lambda p: p.ndim == 2, tree)),
    "apply_if_finite": lambda m: optax.apply_if_finite(m, 5),
    "partition": lambda m: optax.partition({"matrix": m, "rest": optax.sgd(0.1)}, relabeled),
    "compensated": wdjax.compensated,
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.first_is_quick
def test_latest_finds_the_readings_under_wrappers(name):
    params, grads = PARAMS["dense"], GRADS["dense"]
    want = one_step(MEASURED, params, grads)[1]["weight"]
    assert_close(one_step(WRAPPED[name](MEASURED), params, grads)[1]["weight"], want)


def test_a_chain_is_taken_apart_as_a_decayed_factory():
    def factory(learning_rate):
        return optax.chain(optax.clip(0.5), optax.scale_by_adam(), optax.scale(-learning_rate))

    chain = wdjax.decayed(factory)(LR, weight_decay=WEIGHT_DECAY)
    found = one_step(measured(chain, per="leaf"), PARAMS["dense"], GRADS["dense"])[1]["kernel"]
    before = -LR * np.sign(GRADS["dense"]["kernel"])  # Adam's first step
    theta = PARAMS["dense"]["kernel"].astype(np.float64)
    after = before - LR * WEIGHT_DECAY * theta
    assert_close(found, reference([theta], [before], [after], LR * WEIGHT_DECAY), rtol=1e-4)


def test_strength_is_shown_under_inject_hyperparams_too():
    def factory(learning_rate, weight_decay):
        return measured(wdjax.decayed(optax.sgd)(learning_rate, weight_decay=weight_decay))

    optimizer = optax.inject_hyperparams(factory)(learning_rate=0.1, weight_decay=0.3)
    state = optimizer.init(PARAMS["dense"])
    state.hyperparams["weight_decay"] = np.float32(0.7)
    _, state = jax.jit(optimizer.update)(GRADS["dense"], state, PARAMS["dense"])
    assert latest(state)["weight"]["strength"] == pytest.approx(0.07)


def test_accumulated_steps_are_read_once_per_real_step():
    optimizer = optax.MultiSteps(MEASURED, 2)
    state = optimizer.init(PARAMS["dense"])
    update, counts = jax.jit(optimizer.update), []
    for _ in range(4):
        _, state = update(GRADS["dense"], state, PARAMS["dense"])
        counts.append(float(latest(state)["weight"]["weight_norm"]) > 0)
    assert counts == [False, True, True, True]


def test_two_sets_of_readings_stay_apart():
    parts = {"matrix": measured(sgd(rules=(("**", 1.0),))), "rest": measured(optax.sgd(0.1))}
    other = {**parts, "rest": measured(sgd(rules=(("**", 0.0),)))}
    assert set(on_paper(optax.partition(other, relabeled))) == {"**", "** (2)"}
    assert set(on_paper(optax.partition(parts, relabeled))) == {"**", "bias"}


def test_optax_s_own_search_finds_the_state():
    optimizer = optax.chain(optax.clip(1.0), measured(sgd()))
    found = optax.tree_utils.tree_get(optimizer.init(PARAMS), "readings")
    assert set(found) == {"weight", "bias", "embedding"}


def test_the_state_is_the_same_whatever_multipliers_strength_and_schedule():
    ramp = wdjax.linear_ramp(0.0, 0.5, steps=10)
    variants = [
        sgd(),
        wdjax.decayed(optax.sgd)(0.2, weight_decay=ramp, law=wdjax.fixed),
        sgd(rules=wdjax.standard(embeddings=1.0), gate=wdjax.gates.cautious),
    ]
    states = [measured(optimizer, every=n).init(PARAMS) for n, optimizer in enumerate(variants, 1)]
    for state in states[1:]:
        chex.assert_trees_all_equal_shapes_and_dtypes(state, states[0])


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.first_is_quick
def test_a_state_of_other_groups_goes_on(jit):
    """A rule may come or go between save and restore; what was read under the old ones stays."""
    old, new = (measured(sgd(rules=rules), every=2) for rules in (wdjax.standard(), RULES))
    _, state = jit(old.update)(GRADS, old.init(PARAMS), PARAMS)
    before = latest(state)
    _, state = jit(new.update)(GRADS, state, PARAMS)
    assert_close(latest(state)["weight"], before["weight"])
    assert {float(x) for x in latest(state)["head/kernel"].values()} == {0.0}
    _, state = jit(new.update)(GRADS, state, PARAMS)
    _, fresh = jit(new.update)(GRADS, new.init(PARAMS), PARAMS)
    for name, readings in latest(fresh).items():
        assert_close(latest(state)[name], readings)


def test_a_state_without_readings_of_decay_goes_on():
    old, new = measured(optax.sgd(LR), every=2), measured(sgd(), every=2)
    state = jax.eval_shape(old.update, GRADS, old.init(PARAMS), PARAMS)[1]
    state = state._replace(inner_state=new.init(PARAMS).inner_state)
    readings = lambda state: latest(new.update(GRADS, state, PARAMS)[1])
    assert jax.eval_shape(readings, state)["weight"].keys() == OF_STEP | OF_DECAY


def test_a_saved_state_comes_back():
    serialization = pytest.importorskip("flax.serialization")
    optimizer = MEASURED
    _, state = jax.jit(optimizer.update)(GRADS, optimizer.init(PARAMS), PARAMS)
    restored = serialization.from_bytes(optimizer.init(PARAMS), serialization.to_bytes(state))
    assert isinstance(restored, MeasuredState)
    chex.assert_trees_all_equal(latest(restored), latest(state))


def test_nnx_s_optimizer_shows_its_readings():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, MEASURED, wrt=nnx.Param)
    norm = np.linalg.norm(model.kernel[...])
    nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.state(model)))(model, optimizer)
    found = latest(optimizer.opt_state)["weight"]
    assert float(found["weight_norm"]) == pytest.approx(norm, rel=1e-6)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax, wdjax
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
optimizer = wdjax.metrics.measured(wdjax.decayed(optax.adam)(0.1, weight_decay=0.1), every=2)
host = {"kernel": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)}
seen = []
for spec in (P(), P("x"), P(None, "x")):
    params = jax.device_put(host, NamedSharding(mesh, spec))
    state = jax.jit(optimizer.init)(params)
    updates, state = jax.jit(optimizer.update)(params, state, params)
    assert updates["kernel"].sharding.is_equivalent_to(params["kernel"].sharding, 2)
    seen.append([float(x) for x in wdjax.metrics.latest(state)["weight"].values()])
assert np.allclose(seen[0], seen[1], rtol=1e-5) and np.allclose(seen[0], seen[2], rtol=1e-5), seen
print("ok")
"""


@pytest.mark.slow  # a fresh process
def test_sharded_parameters_are_read_as_a_whole():
    assert two_devices.printed(SHARDED).strip() == "ok"


# Training.


def regression(optimizer, **options):
    def loss_fn(params, batch):
        return jnp.mean((batch["x"] @ params["kernel"] + params["bias"][None] - batch["y"]) ** 2)

    params = {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
    step = wdjax.make_train_step(loss_fn, optimizer, **options)
    return step, wdjax.TrainState.create(params, optimizer)


BATCH = {"x": draw(0, 8, 3), "y": draw(1, 8, 2)}


def test_the_train_step_reports_the_readings():
    step, state = regression(measured(sgd()))
    state, found = step(state, BATCH)
    chex.assert_trees_all_equal(found["measured"], latest(state))
    assert found["measured"]["weight"]["weight_norm"] == pytest.approx(np.sqrt(6))
    step, state = regression(sgd())
    assert "measured" not in jax.eval_shape(step, state, BATCH)[1]


def test_the_train_step_names_the_groups_of_another_state():
    """A loop keeps one structure, so there a state of other groups cannot go on."""
    _, state = regression(measured(sgd()))
    step, _ = regression(measured(sgd(), rules=(("kernel", 1.0), ("bias", 0.0))))
    difference = "only in the optimizer: 'readings/kernel'; .* state: 'readings/weight'"
    with pytest.raises(ValueError, match=difference):
        step(state, BATCH)


def test_fit_collects_a_series_without_further_ado():
    step, state = regression(measured(sgd(), every=2))
    _, history = wdjax.fit(step, state, BATCH, epochs=3, batch_size=4, progress=False)
    found = series(history)
    assert set(found) == {"weight", "bias"}
    assert set(found["weight"]) == OF_STEP | OF_DECAY
    assert {x.shape for group in found.values() for x in group.values()} == {(6,)}
    norms = found["weight"]["weight_norm"]
    assert norms[0] == norms[1] == pytest.approx(np.sqrt(6))
    assert norms[2] == norms[3] != norms[1]


def test_a_skipped_step_holds_the_last_reading():
    step, state = regression(measured(sgd()))
    state, first = step(state, BATCH)
    state, second = step(state, {**BATCH, "y": np.full((8, 2), np.nan, np.float32)})
    assert int(state.skipped) == 1
    chex.assert_trees_all_equal(second["measured"], first["measured"])


# What is refused.


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "2"])
def test_a_bad_interval_is_refused(every):
    with pytest.raises((TypeError, ValueError), match=r"`every` must be a whole number >= 1; got"):
        measured(sgd(), every=every)


def test_a_bad_grouping_is_refused():
    with pytest.raises(ValueError, match="`per` must be one of 'rule', 'leaf'; got 'layer'"):
        measured(sgd(), per="layer")


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (optax.adam, "an Optax optimizer; got the function adam. Call it: adam"),
        (optax.MultiSteps(sgd(), 2), "the optimizer inside optax.MultiSteps; got a MultiSteps"),
        (None, "an Optax optimizer; got None"),
    ],
)
def test_what_is_no_optimizer_is_refused(wrong, shown):
    with pytest.raises(TypeError, match=f"`optimizer` must be {shown}"):
        measured(wrong)


def test_missing_params_are_refused():
    optimizer = measured(optax.sgd(0.1))
    with pytest.raises(ValueError, match="`measured` needs the current parameters"):
        optimizer.update(GRADS, optimizer.init(PARAMS))


def test_rules_that_do_not_fit_are_refused_at_init():
    with pytest.raises(wdjax.RuleError, match="matches no parameter"):
        measured(optax.sgd(0.1), rules=(("nothing", 0.0), ("**", 1.0))).init(PARAMS)


def test_a_state_without_readings_is_refused():
    with pytest.raises(ValueError, match=r"`opt_state` must hold the readings .* MaskedState"):
        latest(optax.masked(optax.sgd(0.1), True).init(PARAMS))


def test_a_history_without_readings_is_refused():
    step, state = regression(sgd())
    _, history = wdjax.fit(step, state, BATCH, epochs=1, batch_size=8, progress=False)
    with pytest.raises(
        ValueError, match=r"`history` must have metrics\['measured'\]; got int. Train"
    ):
        metrics.series(3)
    with pytest.raises(ValueError, match=r"`history` must have metrics\['measured'\]; got \['fin"):
        series(history)


def test_the_name_of_the_readings_is_taken():
    _, state = regression(measured(sgd()))

    def loss_fn(params, batch):
        return jnp.sum(params["kernel"]), {"measured": jnp.ones(())}

    with pytest.raises(ValueError, match="leave out names that the step adds; got 'measured"):
        wdjax.make_train_step(loss_fn, measured(sgd()))(state, BATCH)


def test_unless_asked_every_tenth_step_is_read():
    optimizer = metrics.measured(sgd())
    params, grads = PARAMS["dense"], GRADS["dense"]
    state, norms, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for _ in range(21):
        updates, state = update(grads, state, params)
        params = jax.tree.map(np.add, params, updates)
        norms.append(float(latest(state)["weight"]["weight_norm"]))
    assert [i for i in range(1, 21) if norms[i] != norms[i - 1]] == [10, 20]
