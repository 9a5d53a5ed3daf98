"""λ learned while training: exact hypergradients, and what is done with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import penalties, tuning
from wdjax.tuning import _implicit_hypergrad, hyper_decay, learnt_rules

RULES = (("bias", 0.0), ("first", 1.0), ("second", 0.5))
NAMES = {"first": 1, "second": 2}  # the rule of each decayed leaf


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"bias": (3,), "first": (4, 3), "second": (3, 2)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def val_loss(params, batch, xp=jnp):
    hidden = xp.tanh(batch["x"] @ params["first"] + params["bias"][None])
    return xp.mean((hidden @ params["second"] - batch["y"]) ** 2)


def validation(n=200, seed=5):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(n, 4)), "y": rng.normal(size=(n, 2))}


def update(tx, grads, params):
    """The first update and the state after it, in one program."""
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)


def run(optimizer, params, steps=7):
    """The parameters after some steps and the state, and all states on the way."""
    grads = jax.tree.map(lambda *x: np.stack(x), *(tree(10 + i) for i in range(steps)))

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        return (optax.apply_updates(params, updates), state), state

    @jax.jit
    def all_steps(params):
        (params, state), states = jax.lax.scan(step, (params, optimizer.init(params)), grads)
        return params, state, states

    return all_steps(params)


# The hypergradient.

HUBER = 0.5


@pytest.mark.parametrize(
    ("inner", "penalty", "pull"),
    [
        (optax.sgd(0.1, momentum=0.9), penalties.l2, lambda z: z),
        (optax.adam(0.1), penalties.huber(HUBER), lambda z: np.clip(z, -HUBER, HUBER)),
    ],
    ids=["l2", "huber"],
)
def test_the_hypergradient_is_the_finite_difference_of_one_step(inner, penalty, pull, x64):
    strength, data, params, grads = 0.05, validation(), tree(0, float), tree(1, float)
    tx = hyper_decay(strength, val_loss, data, penalty=penalty, rules=RULES, init=0.3, every=1)
    _, state = update(optax.chain(inner, tx), grads, params)
    step, _ = jax.device_get(update(inner, grads, params))

    def after(log_decay):  # written out: θ + Δ − s λ m ∂R(θ)
        new = jax.tree.map(np.add, params, step)
        for name, m in (("first", 1.0), ("second", 0.5)):
            new[name] = new[name] - strength * np.exp(log_decay[name]) * m * pull(params[name])
        return val_loss(new, data, np)

    start = dict.fromkeys(NAMES, np.log(0.3))
    for name, rule in NAMES.items():
        up, down = (after(start | {name: start[name] + h}) for h in (1e-5, -1e-5))
        found = state[-1].hypergradient[rule]
        assert found == pytest.approx((up - down) / 2e-5, rel=1e-5)
    assert state[-1].hypergradient[0] == 0


def test_lambda_moves_against_its_hypergradient_by_the_hyper_optimizer_alone():
    data, step = validation(), optax.sgd(0.5)
    tx = hyper_decay(0.05, val_loss, data, rules=RULES, init=0.3, every=1, hyper_optimizer=step)
    _, state = update(tx, tree(1), tree(0))
    hypergradient = np.asarray(state.hypergradient)
    np.testing.assert_allclose(state.log_weight_decay, np.log(0.3) - 0.5 * hypergradient, rtol=1e-6)
    assert np.abs(hypergradient[1:]).min() > 1e-4


# The decay.


def test_until_the_first_hypergradient_it_is_decay_weights_with_that_lambda():
    tx = hyper_decay(0.05, val_loss, validation(), rules=RULES, init=0.3, every=1000)
    fixed = tuple((selector, 0.3 * m) for selector, m in RULES)
    learned, *_ = run(optax.chain(optax.adam(0.1), tx), tree(0))
    known, *_ = run(optax.chain(optax.adam(0.1), wdjax.decay_weights(0.05, rules=fixed)), tree(0))
    for name in known:
        np.testing.assert_allclose(learned[name], known[name], rtol=2e-7, atol=1e-7)


def test_lambda_moves_every_k_steps_only():
    tx = hyper_decay(0.05, val_loss, validation(), rules=RULES, init=0.3, every=3)
    seen = np.asarray(run(tx, tree(0))[2].log_weight_decay[:, 1])
    moved = np.diff(seen, prepend=np.float32(np.log(0.3))) != 0
    assert moved.tolist() == [False, False, True, False, False, True, False]


def test_lambda_stays_within_its_bounds():
    for sign, want in ((1.0, 1e-3), (-1.0, 0.5)):
        loss = lambda params, batch, sign=sign: -sign * jnp.sum(params["first"] ** 2)
        tx = hyper_decay(
            0.05, loss, validation(), rules=RULES, init=0.01, every=1,
            hyper_optimizer=optax.sgd(1e9), bounds=(1e-3, 0.5),
        )  # fmt: skip
        _, state = update(tx, tree(1), tree(0))
        assert np.exp(state.log_weight_decay[1]) == pytest.approx(want, rel=1e-6)


def test_a_validation_loss_that_is_not_finite_teaches_nothing():
    loss = lambda params, batch: jnp.sum(params["first"]) * jnp.nan
    tx = hyper_decay(0.05, loss, validation(), rules=RULES, init=0.01, every=1)
    before = jax.jit(tx.init)(tree(0))
    updates, after = jax.jit(tx.update)(tree(1), before, tree(0))
    assert np.isnan(after.hypergradient[1])  # there to be seen
    rest = updates, after._replace(hypergradient=0.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(rest)))
    np.testing.assert_array_equal(after.log_weight_decay, before.log_weight_decay)
    for old, new in zip(*map(jax.tree.leaves, (before.opt_state, after.opt_state)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_validation_batches_are_taken_in_turn():
    data = np.arange(5.0, dtype=np.float32)
    loss = lambda params, batch: params["w"] * jnp.mean(batch)  # its slope is the batch's mean
    tx = hyper_decay(
        1.0, loss, data, rules=(("**", 1.0),), init=0.5, every=1, batch_size=2,
        hyper_optimizer=optax.sgd(0.0), bounds=(1e-6, 0.9),
    )  # fmt: skip
    params, none = {"w": np.float32(1)}, {"w": np.float32(0)}
    with pytest.warns(UserWarning, match="overfit"):
        state = tx.init(params)
    means, update = [], jax.jit(tx.update)
    for _ in range(4):
        _, state = update(none, state, params)
        means.append(-float(state.hypergradient[0]) / 0.5)
    assert means == pytest.approx([0.5, 2.5, 2.0, 0.5])  # rows 0 1, 2 3, 4 0, and again


# In every kind of program.


def test_the_first_lambda_may_be_traced_under_vmap():
    data = validation()

    def after(init):
        tx = hyper_decay(0.05, val_loss, data, rules=RULES, init=init, every=1)
        return run(tx, tree(0), steps=2)[1].log_weight_decay

    traced = jax.vmap(after)(np.array([0.01, 0.1]))
    np.testing.assert_allclose(traced[1], after(0.1), rtol=1e-5)
    assert np.all(np.asarray(traced[0]) < traced[1])


def test_low_precision_frozen_and_undecayed_leaves():
    tx = hyper_decay(0.5, val_loss, validation(), rules=RULES, init=0.5, every=1)
    grads = tree(1, jnp.bfloat16) | {"second": None}
    updates, state = update(tx, grads, tree(0, jnp.bfloat16))
    assert updates["first"].dtype == jnp.bfloat16
    assert updates["second"] is None
    np.testing.assert_array_equal(updates["bias"], grads["bias"])
    assert state.log_weight_decay.dtype == jnp.float32
    assert state.hypergradient[1] != 0
    assert state.hypergradient[2] == 0


def test_states_have_one_structure_whatever_the_strength_and_the_order_of_rules():
    data, others = validation(), ((RULES[2][0], 1.0), *RULES[:2])
    one = hyper_decay(0.05, val_loss, data, rules=RULES)
    other = hyper_decay(lambda t: 0.1 / (1 + t), val_loss, data, rules=others, every=9)
    a, b = (jax.eval_shape(tx.init, tree(0)) for tx in (one, other))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert [x.shape for x in jax.tree.leaves(a)] == [x.shape for x in jax.tree.leaves(b)]


def test_rules_in_another_order_find_their_lambda():
    """Each group got the λ that another one had learned, without a word."""
    data, turned = validation(), RULES[::-1]
    one, other = (
        optax.chain(optax.adam(0.1), hyper_decay(0.05, val_loss, data, rules=rules, every=1))
        for rules in (RULES, turned)
    )
    params, state = tree(0), jax.jit(one.init)(tree(0))
    learned = state[-1]._replace(log_weight_decay=np.log(np.float32([0.1, 0.2, 0.4])))
    state = state[0], learned
    assert dict(learnt_rules(state, turned)) == dict(learnt_rules(state, RULES))
    straight, back = (jax.jit(o.update)(tree(99), state, params) for o in (one, other))
    assert jax.tree.structure(straight) == jax.tree.structure(back)
    for a, b in zip(*map(jax.tree.leaves, (straight, back)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "rules",
    [(("bias", 0.0), ("**", 1.0)), (*RULES[:2], ("sec*", 1.0)), (*RULES, ("**", 0.0))],
    ids=["fewer", "another", "more"],
)
def test_a_state_of_other_rules_is_refused_at_update(rules):
    """Some were errors from inside JAX."""
    params, data = tree(0), validation()
    state = hyper_decay(0.05, val_loss, data, rules=RULES).init(params)
    tx = hyper_decay(0.05, val_loss, data, rules=rules)
    with pytest.raises(ValueError, match=r"those of the state.* 'bias', 'first', 'second'; got "):
        tx.update(params, state, params)


def test_the_name_of_a_selector_is_the_same_after_a_restart():
    """That of a partial function has its address in it."""
    selector = functools.partial(lambda name, leaf: leaf.name == name, "first")
    tx = hyper_decay(0.05, val_loss, validation(), rules=((selector, 1.0), ("**", 0.5)))
    assert not any("0x" in name for name in tx.init(tree(0)).entry_of)


# What it is for.


def wide_regression(seed):
    """Few examples; five features that matter and forty that are noise, in a leaf each."""
    rng = np.random.default_rng(seed)

    def draw(n):
        signal, noise = rng.normal(size=(n, 5)), rng.normal(size=(n, 40))
        return {"signal": signal, "noise": noise, "y": signal.sum(1) + rng.normal(size=n)}

    return tuple(
        {name: x.astype(np.float32) for name, x in draw(n).items()} for n in (50, 200, 2000)
    )


def mean_error(params, batch, xp=jnp):
    fit = batch["signal"] @ params["signal"] + batch["noise"] @ params["noise"]
    return xp.mean((fit - batch["y"]) ** 2)


def test_it_finds_that_noise_needs_more_decay_and_beats_training_without():
    train, val, test = wide_regression(0)
    groups, learning_rate = (("signal", 1.0), ("noise", 1.0)), 0.05
    unit = wdjax.lr_scaled(1.0, learning_rate)
    start = {"signal": np.zeros(5, np.float32), "noise": np.zeros(40, np.float32)}

    def train_with(decay):
        optimizer = optax.chain(optax.sgd(learning_rate), decay)
        step = wdjax.make_train_step(mean_error, optimizer)
        state = wdjax.TrainState.create(start, optimizer)
        state, _ = wdjax.fit(step, state, train, steps=2000, batch_size=50, progress=False)
        return state

    learned = train_with(hyper_decay(unit, mean_error, val, rules=groups, bounds=(1e-6, 10.0)))
    rules = learnt_rules(learned.opt_state, groups)
    assert [selector for selector, _ in rules] == ["signal", "noise"]
    assert rules[1][1] > 10 * rules[0][1]

    none = train_with(optax.identity())
    again = train_with(wdjax.decay_weights(unit, rules=rules))
    errors = [
        mean_error(jax.device_get(state.params), test, np) for state in (learned, again, none)
    ]
    assert errors[0] < 0.6 * errors[2]  # the best there is would be 1, the noise
    assert errors[1] == pytest.approx(errors[0], rel=0.05)

    # the optimum of both λ by brute force over exact solutions, in float64
    x = np.concatenate([train["signal"], train["noise"]], axis=1).astype(np.float64)
    gram, moment = x.T @ x * 2 / 50, x.T @ train["y"] * 2 / 50

    def best(log_s, log_n):
        pull = np.repeat(np.exp([log_s, log_n]), [5, 40])
        w = np.linalg.solve(gram + np.diag(pull), moment)
        return mean_error({"signal": w[:5], "noise": w[5:]}, val, np)

    grid = np.linspace(np.log(1e-6), np.log(10.0), 40)
    floor = min(best(s, n) for s in grid for n in grid)
    assert mean_error(jax.device_get(learned.params), val, np) < 1.03 * floor


# Implicit differentiation at the optimum.


def ridge(penalties_of, x, y):
    return np.linalg.solve(x.T @ x / len(y) + np.diag(penalties_of), x.T @ y / len(y))


def test_the__implicit_hypergradient_is_that_of_exact_ridge_per_group(x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 6)), rng.normal(size=30)
    x_val, y_val = rng.normal(size=(40, 6)), rng.normal(size=40)
    spread = lambda lam: np.repeat([float(lam["a"]), float(lam["b"])], 3)
    lam = {"a": 0.3, "b": 0.05}

    def train_loss(w, lam):
        pull = jnp.repeat(jnp.stack([lam["a"], lam["b"]]), 3)
        return jnp.mean((x @ w - y) ** 2) / 2 + jnp.sum(pull * w**2) / 2

    def loss_at(w, xp=jnp):
        return xp.mean((x_val @ w - y_val) ** 2)

    found = hypergrad(train_loss, loss_at)(ridge(spread(lam), x, y), lam)
    for name in lam:
        ends = [
            loss_at(ridge(spread(lam | {name: lam[name] + h}), x, y), np) for h in (1e-6, -1e-6)
        ]
        want = (ends[0] - ends[1]) / 2e-6
        assert float(found.gradient[name]) == pytest.approx(want, rel=1e-5)
    assert float(found.residual) < 1e-6
    assert float(found.train_slope) < 1e-12


def quadratic(w, lam):
    scales = jnp.asarray(np.logspace(0, 3, 30), jnp.float32)
    return jnp.sum(scales * (w - 1.0) ** 2) / 2 + lam * jnp.sum(w**2) / 2


def hypergrad(*functions, **options):
    """In one program."""
    return jax.jit(lambda w, lam: _implicit_hypergrad(*functions, w, weight_decay=lam, **options))


def test_too_few_iterations_and_a_start_off_the_optimum_show():
    w = np.ones(30)
    few, many = (hypergrad(quadratic, jnp.sum, iterations=n)(w, 0.1) for n in (2, 200))
    assert few.residual > 0.1 > 1e-3 > many.residual
    assert many.train_slope == pytest.approx(0.1 * np.sqrt(30), rel=1e-5)  # λ ‖w‖


def test_damping_adds_to_the_curvature():
    # θ* = 3 / (1 + λ); with δ the slope is −θ / (1 + λ + δ)
    train_loss = lambda w, lam: (w - 3.0) ** 2 / 2 + lam * w**2 / 2
    found = hypergrad(train_loss, lambda w: w, damping=2.5)(2.0, 0.5)
    assert float(found.gradient) == pytest.approx(-2 / 4)


def test_implicit_differentiation_can_be_mapped():
    f = hypergrad(quadratic, jnp.sum)
    found = jax.vmap(f, (None, 0))(np.ones(30), np.array([0.1, 1.0])).gradient
    np.testing.assert_allclose(
        found, [f(np.ones(30), lam).gradient for lam in (0.1, 1.0)], rtol=1e-4
    )


# Reading what was learned.


def test_the_learnt_rules_are_found_in_any_state():
    optimizer = optax.MultiSteps(
        optax.chain(optax.adam(0.1), hyper_decay(0.1, val_loss, validation(), rules=RULES)), 2
    )
    rules = learnt_rules(optimizer.init(tree(0)), RULES)
    assert [s for s, _ in rules] == ["bias", "first", "second"]
    assert [m for _, m in rules] == pytest.approx([0.0, 1e-3, 0.5e-3])


def test_a_state_without_or_with_other_rules_is_refused():
    params = tree(0)
    with pytest.raises(ValueError, match="must hold one state of hyper_decay; got 0"):
        learnt_rules(optax.adam(0.1).init(params), RULES)
    state = hyper_decay(0.1, val_loss, validation(), rules=RULES).init(params)
    with pytest.raises(ValueError, match="one state of hyper_decay; got 2"):
        learnt_rules((state, state), RULES)
    with pytest.raises(ValueError, match=r"'bias', 'first', 'second'; got 'running state'"):
        learnt_rules(state)


# Bad input.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "`every` must be a whole number >= 1; got 0"),
        ({"init": 2.0}, r"`init` must be in \[1e-06, 1.0\]; got 2.0"),
        ({"bounds": (0.0, 1.0)}, r"`bounds\[0\]` must be a finite number > 0; got 0.0"),
        ({"bounds": (0.5, 0.1)}, r"`bounds\[1\]` must be a finite number > 0.5; got 0.1"),
        ({"batch_size": 300}, r"`batch_size` must be .* in \[1, 200\], or None; got 300"),
        ({"batch_size": 0}, r"`batch_size` must be .* in \[1, 200\], or None; got 0"),
    ],
)
def test_bad_numbers_are_refused_when_built(options, match):
    with pytest.raises(ValueError, match=match):
        hyper_decay(0.1, val_loss, validation(), **options)


def test_bad_functions_and_data_are_refused_when_built():
    with pytest.raises(TypeError, match="`val_loss` must be a function"):
        hyper_decay(0.1, 3.0, validation())
    with pytest.raises(
        TypeError, match="`penalty` must be a penalty with a gradient; got <penalty ball"
    ):
        hyper_decay(0.1, val_loss, validation(), penalty=penalties.ball(1.0))
    with pytest.raises(ValueError, match="`val_data` must hold arrays with the same number"):
        hyper_decay(0.1, val_loss, {"x": np.ones(3), "y": np.ones(4)})
    with pytest.raises(ValueError, match="`strength` must be a finite number >= 0"):
        hyper_decay(-0.1, val_loss, validation())
    broken = validation()
    broken["x"][7, 1] = np.nan
    with pytest.raises(ValueError, match=r"`val_data` must be finite; got nan in 'x' at \[7, 1\]"):
        hyper_decay(0.1, val_loss, broken)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bounds": 1.0}, "unpack"),
        ({"bounds": ("a", 0.2)}, r"`bounds\[0\]` must be a finite number > 0; got 'a'"),
        ({"init": np.array([0.1, 0.2])}, r"`init` must be in .* got array.* put them into `rules`"),
        ({"init": "0.1"}, r"`init` must be in .* got '0.1'"),
        ({"hyper_optimizer": 0.1}, r"`hyper_optimizer` must be an Optax optimizer.* got 0.1"),
    ],
)
def test_options_of_another_kind_are_refused_when_built(options, match):
    with pytest.raises(TypeError, match=match):
        hyper_decay(0.1, val_loss, validation(), **options)


def test_a_strength_that_would_flip_signs_at_the_largest_lambda_is_refused():
    tx = hyper_decay(0.5, val_loss, validation(), rules=RULES, bounds=(1e-6, 3.0))
    with pytest.raises(ValueError, match=r"largest λ of `bounds` must be < 1.*it reaches 1.5"):
        tx.init(tree(0))


def test_too_many_lambdas_for_the_validation_data_are_warned_of():
    tx = hyper_decay(0.1, val_loss, validation(n=99), rules=RULES)
    with pytest.warns(UserWarning, match="2 λ .*from 99 validation"):
        tx.init(tree(0))
    hyper_decay(0.1, val_loss, validation(n=100), rules=RULES).init(tree(0))


def test_missing_params_are_named():
    tx = hyper_decay(0.1, val_loss, validation(), rules=RULES)
    params = tree(0)
    with pytest.raises(ValueError, match="`hyper_decay` needs the current parameters"):
        tx.update(params, tx.init(params))


def test_iterations_and_damping_are_checked():
    with pytest.raises(ValueError, match="`iterations` must be a whole number >= 1"):
        _implicit_hypergrad(quadratic, jnp.sum, np.ones(30), weight_decay=0.1, iterations=0)
    with pytest.raises(ValueError, match="`damping` must be a finite number >= 0"):
        _implicit_hypergrad(quadratic, jnp.sum, np.ones(30), weight_decay=0.1, damping=-1.0)


def test_the_module_names_what_it_answers():
    assert "ARNN" in tuning.__doc__


def test_leaves_that_are_no_numbers_of_the_loss_are_left_alone():
    """A counter among the parameters, which the validation loss may even look at."""
    loss = lambda params, batch: jnp.mean((params["kernel"][0, 0] - batch) ** 2) * params["steps"]
    tx = hyper_decay(0.1, loss, np.ones(100), init=0.5, every=1)
    params = {"kernel": np.full((1, 1), 2.0, np.float32), "steps": np.array(3)}
    _, state = update(tx, jax.tree.map(np.zeros_like, params), params)
    # −s λ ⟨∂L/∂θ, θ⟩ at θ⁺ = 2 (1 − 0.1 · 0.5)
    np.testing.assert_allclose(
        np.min(state.hypergradient), -0.05 * 3 * 2 * (1.9 - 1) * 2, rtol=1e-5
    )


def test_a_part_of_the_model_is_refused():
    tx = hyper_decay(0.1, val_loss, validation(), rules=RULES)
    masked = optax.masked(tx, jax.tree.map(lambda x: x.ndim > 1, tree(0)))
    with pytest.raises(
        TypeError, match=r"must be those of the whole model.* outside optax\.masked"
    ):
        masked.init(tree(0))
    optax.tree_map_params(tx, lambda x: x, jax.eval_shape(tx.init, tree(0)))
