import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wdjax
from wdjax import scaling
from wdjax.rules import RuleError, resolve, standard

positive = st.floats(1e-6, 1e6)
cheap = settings(max_examples=50, deadline=None)


# Numbers.


@cheap
@given(positive, positive)
def test_timescale_and_weight_decay_are_inverses(timescale, rate):
    weight_decay = scaling.timescale_to_weight_decay(timescale, rate)
    assert np.isclose(scaling.weight_decay_to_timescale(weight_decay, rate), timescale, rtol=1e-12)


def test_a_timescale_is_that_of_the_moving_average_of_updates():
    """Weights of age k are αk = s (1 − s)^k: they sum to 1 − (1 − s)^T, 1 − 1/e after τ steps."""
    rate, steps = 1e-2, 5_000
    s = wdjax.lr_scaled(scaling.timescale_to_weight_decay(steps, rate), rate)(0)
    weights = s * (1 - s) ** np.arange(steps)
    assert np.isclose(weights.sum(), 1 - np.exp(-1), rtol=1e-4)


def test_a_timescale_is_the_strength_from_timescale():
    rate = 3e-4
    weight_decay = scaling.timescale_to_weight_decay(7_000, rate)
    strength = wdjax.lr_scaled(weight_decay, rate)(0)
    assert np.isclose(strength, wdjax.from_timescale(7_000)(0), rtol=1e-12)


def share_of_the_data(weight_decay, rate, batch, data):
    """τ_EMA = B / (η λ D)."""
    return batch / (rate * weight_decay * data)


@cheap
@given(positive, positive, positive, positive)
def test_scaling_keeps_the_share_of_the_data(weight_decay, batch, data, rate):
    scaled = scaling.at_constant_timescale(weight_decay, batch=batch, data=data, learning_rate=rate)
    before = share_of_the_data(weight_decay, 1e-3, 64, 1e6)
    after = share_of_the_data(scaled, 1e-3 * rate, 64 * batch, 1e6 * data)
    assert np.isclose(before, after, rtol=1e-12)


def test_weight_decay_is_proportional_to_the_batch_and_to_one_over_the_data():
    assert scaling.at_constant_timescale(0.1, batch=4) == 0.4
    assert scaling.at_constant_timescale(0.1, data=4) == 0.025
    assert scaling.at_constant_timescale(0.1, learning_rate=4) == 0.025
    assert scaling.at_constant_timescale(0.1) == 0.1


@cheap
@given(positive, positive)
def test_the_square_root_rule_for_the_rate_gives_nanochat_s_decay(batch, data):
    got = scaling.at_constant_timescale(0.2, batch=batch, data=data, learning_rate=batch**0.5)
    assert np.isclose(got, 0.2 * np.sqrt(batch) / data, rtol=1e-12)


def test_normalized_decay_is_the_square_root_over_all_batches():
    """The authors' code divides by √(batches per epoch × epochs)."""
    batches, epochs = 50_000 / 128, 100
    got = scaling.from_normalized(0.05, batch_size=128, examples=50_000, epochs=epochs)
    assert np.isclose(got, 0.05 / np.sqrt(batches * epochs), rtol=1e-12)


def test_the_numbers_may_be_arrays_and_may_be_traced():
    rates = jnp.array([1e-3, 2e-3])
    got = jax.jit(jax.vmap(lambda lr: scaling.timescale_to_weight_decay(1_000.0, lr)))(rates)
    assert np.allclose(got, [1.0, 0.5])
    got = scaling.weight_decay_to_timescale(np.array([0.1, 0.2]), 0.01)
    assert np.allclose(got, [1_000, 500])
    got = jax.jit(lambda b: scaling.at_constant_timescale(0.1, batch=b))(4.0)
    assert np.isclose(got, 0.4)
    traced = lambda b: scaling.from_normalized(0.05, batch_size=b, examples=512, epochs=4)
    assert np.isclose(jax.jit(traced)(8.0), 0.05 * np.sqrt(8 / 2048))


# Widths.


class Linen(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Embed(10, self.width)(x)
        x = nn.LayerNorm()(nn.Dense(self.width, name="one")(x))
        x = nn.Dense(2 * self.width, name="up")(x)
        return nn.Dense(3, name="head")(nn.Dense(self.width, name="down")(x))


def linen(width):
    init = lambda: Linen(width).init(jax.random.key(0), jnp.zeros(2, jnp.int32))
    return jax.eval_shape(init)["params"]


def perceptron(width):
    make = lambda: eqx.nn.MLP(3, 5, width, 2, key=jax.random.key(0))
    return eqx.filter_eval_shape(lambda: eqx.filter(make(), eqx.is_inexact_array))


def multipliers(rules, tree):
    keyed = jax.tree_util.tree_flatten_with_path(resolve(rules, tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): m for path, m in keyed}


def test_hidden_matrices_are_those_that_grow_along_two_axes():
    ratios = multipliers(scaling.width_ratios(linen(8), linen(32)), linen(32))
    grown = {path for path, m in ratios.items() if m != 1}
    assert grown == {"one/kernel", "up/kernel", "down/kernel"}
    assert all(ratios[path] == 4.0 for path in grown)


def test_an_equinox_model_may_keep_its_sizes_in_the_containers():
    ratios = scaling.width_ratios(perceptron(8), perceptron(24))
    assert ratios == (("/layers/1/weight", 3.0), ("**", 1.0))


def test_the_axis_of_the_inputs_decides_where_axes_grow_differently():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
    base, scaled = {"w": shape(8, 16)}, {"w": shape(16, 128)}
    assert scaling.width_ratios(base, scaled, fan_in=-2)[0] == ("/w", 2.0)
    assert scaling.width_ratios(base, scaled, fan_in=-1)[0] == ("/w", 8.0)
    with pytest.raises(ValueError, match=r"`fan_in` must say .* got None for 'w'. Pass the axis"):
        scaling.width_ratios(base, scaled)
    with pytest.raises(ValueError, match=r"`fan_in` must say .* got -3 for 'w'"):
        scaling.width_ratios(base, scaled, fan_in=-3)


def test_equal_models_need_no_rules():
    assert scaling.width_ratios(linen(8), linen(8)) == (("**", 1.0),)


def test_a_model_of_other_paths_or_ranks_is_refused():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
    with pytest.raises(
        ValueError, match=r"`scaled` must have the paths and ranks .* 'v', 'w'. Only"
    ):
        scaling.width_ratios({"w": shape(2, 2)}, {"v": shape(4, 4)})
    with pytest.raises(ValueError, match=r"they differ in 'w'\."):
        scaling.width_ratios({"w": shape(2, 2)}, {"w": shape(4, 4, 1)})


def test_width_rules_multiply_what_the_rules_say():
    rules = (("head/kernel", 0.5), ("up/kernel", 0.25), *standard(embeddings=0.1))
    widths = scaling.width_ratios(linen(8), linen(32))
    got = multipliers(scaling.width_rules(widths, linen(32), power=0.5, rules=rules), linen(32))
    want = multipliers(rules, linen(32))
    for path in ("one/kernel", "up/kernel", "down/kernel"):
        want[path] *= 2.0  # √4
    assert got == want


def test_rules_that_lose_all_their_parameters_are_dropped_and_others_stay():
    rules = (("up/kernel", 0.25), ("kernel", 1.0), ("**", 0.0))
    widths = (("up/kernel", 9.0), ("**", 1.0))
    got = scaling.width_rules(widths, linen(8), power=0.5, rules=rules)
    assert got == (("/up/kernel", 0.75), ("kernel", 1.0), ("**", 0.0))


def test_parameters_that_do_not_decay_get_no_rule_of_their_own():
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    rules = scaling.width_rules((("**", 4.0),), params, power=1)
    assert [selector for selector, _ in rules if isinstance(selector, str)] == ["/kernel"]


def test_power_zero_changes_nothing():
    widths = scaling.width_ratios(linen(8), linen(32))
    assert scaling.width_rules(widths, linen(32), power=0) == standard()


def test_names_with_glob_characters_are_matched_as_they_are():
    params = {"w[0]*?": jnp.ones((4, 4)), "w0": jnp.ones((4, 4))}
    rules = scaling.width_rules(
        ((lambda leaf: "*" in leaf.path, 4.0), ("**", 1.0)), params, power=1
    )
    assert resolve(rules, params) == {"w[0]*?": 4.0, "w0": 1.0}


def test_a_single_array_has_no_path_and_still_a_rule():
    rules = scaling.width_rules((("**", 4.0),), jnp.ones((4, 4)), power=1)
    assert resolve(rules, jnp.ones((4, 4))) == 4.0


def test_a_width_rule_that_matches_nothing_is_refused():
    with pytest.raises(RuleError, match="matches no parameter"):
        scaling.width_rules((("block/kernel", 4.0), ("**", 1.0)), linen(8), power=1)


def test_a_traced_width_gives_traced_multipliers():
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}

    def shrink(width):
        rules = scaling.width_rules((("kernel", width), ("**", 1.0)), params, power=-0.5)
        tx = wdjax.decay_weights(0.1, rules=rules)
        zero = jax.tree.map(jnp.zeros_like, params)
        return tx.update(zero, tx.init(params), params)[0]

    got = jax.vmap(shrink)(jnp.array([4.0, 16.0]))
    assert np.allclose(got["kernel"][:, 0, 0], [-0.05, -0.025])
    assert np.all(got["bias"] == 0)


def shrink_per_step(m, learning_rate, weight_decay, *, power, last):
    """Run one step of zero gradients under μP's learning rate η/m for the hidden matrix."""
    params = {"hidden": jnp.ones((8, 8)), "head": jnp.ones((8, 2))}
    rules = scaling.width_rules(
        (("hidden", m), ("**", 1.0)), params, power=power, rules=(("**", 1.0),)
    )
    slower = optax.stateless(lambda u, p: u | {"hidden": u["hidden"] / m})
    rate = optax.chain(slower, optax.scale(-learning_rate))
    if last:
        strength = wdjax.lr_scaled(weight_decay, learning_rate)
        steps = (optax.scale_by_adam(), rate, wdjax.decay_weights(strength, rules=rules))
    else:
        decay = wdjax.add_decayed_weights(weight_decay, rules=rules)
        steps = (optax.scale_by_adam(), decay, rate)
    tx = optax.chain(*steps)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    return {name: -float(u.ravel()[0]) for name, u in updates.items()}


@pytest.mark.parametrize(
    ("before", "after", "exponent"), [(1, 0, 0.0), (0.5, -0.5, -0.5), (0, -1, -1.0)]
)
def test_the_two_places_of_decay_take_the_powers_of_the_table(before, after, exponent):
    """MuAdam: group lr/m and weight_decay·m; with decoupled_wd=True weight_decay as it is."""
    rate, weight_decay, m = 0.01, 0.2, 16.0
    want = {"hidden": rate * weight_decay * m**exponent, "head": rate * weight_decay}
    for power, last in ((before, False), (after, True)):
        got = shrink_per_step(m, rate, weight_decay, power=power, last=last)
        assert np.allclose([got[k] for k in want], list(want.values()), rtol=1e-6)


# Bad numbers.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: scaling.timescale_to_weight_decay(0, 1.0),
            ValueError,
            r"`timescale` .* > 0; got 0",
        ),
        (
            lambda: scaling.timescale_to_weight_decay(10, float("inf")),
            ValueError,
            r"`learning_rate` must be a finite number > 0; got inf",
        ),
        (
            lambda: scaling.weight_decay_to_timescale(0.0, 1.0),
            ValueError,
            r"`weight_decay` must be a finite number > 0; got 0.0",
        ),
        (
            lambda: scaling.weight_decay_to_timescale(0.1, lambda count: 0.1),
            TypeError,
            r"`learning_rate` must be a finite number > 0; got .* For a schedule, pass its peak",
        ),
        (lambda: scaling.at_constant_timescale(0.1, batch=None), TypeError, r"`batch` .* got None"),
        (lambda: scaling.at_constant_timescale(0.1, data=-2), ValueError, r"`data` .* got -2"),
        (
            lambda: scaling.at_constant_timescale(-0.1),
            ValueError,
            r"`weight_decay` .* >= 0; got -0.1",
        ),
        (lambda: scaling.weight_decay_to_timescale("1", 1.0), TypeError, r"got '1'"),
        (
            lambda: scaling.weight_decay_to_timescale(np.array([1.0, -1.0]), 1.0),
            ValueError,
            r"got array\(\[ 1., -1.\]\)",
        ),
        (
            lambda: scaling.from_normalized(0.05, batch_size=0, examples=1, epochs=1),
            ValueError,
            r"`batch_size` must be a finite number > 0; got 0",
        ),
    ],
)
def test_bad_numbers_say_what_they_must_be(call, error, message):
    with pytest.raises(error, match=message):
        call()
