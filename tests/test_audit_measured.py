"""The measured audit, held to truth written by hand and to simulations in float64."""

import functools
import math
import re

import audit_cases as cases
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from audit_cases import KERNELS, PARAMS, bare, built, sgd
from hypothesis import strategies as st

import wdjax
from wdjax import audit, check_decay, penalties, same_decay
from wdjax.audit import _standins
from wdjax.audit._compiled import Compiled
from wdjax.audit._machine import Plain
from wdjax.stacking import stack, stacked

# Fractions that are taken off are as exact as this; where an optimizer rounds its own constants to
# float32, as optax.fromage does 1/√(1 + η²), as exact as those.
EXACT = 1e-6
ROUNDED = {"fromage": 2e-5}

ones = functools.partial(np.ones, dtype=np.float32)
REFUSED = {"add_decayed_weights after sgd", "decay_weights before sgd"}  # by `init` itself


def run(case):
    return audit(case.params, built(case), steps=case.steps, rules=case.rules, extra=case.extra)


def rows(found):
    return {row["path"]: row for row in found.rows}


# The tables.


def told(table, quick):
    """The cases of a table; in a quick run those that nothing else is like."""
    marks = {name: () if name in quick else (pytest.mark.slow,) for name in table}
    return [pytest.param(name, table[name], id=name, marks=marks[name]) for name in table]


TRUTH = {**cases.OPTAX, **cases.OURS, **cases.RIGHT}
QUICK_TRUTH = {
    *("lookahead", "gates.cautious", "anchor init", "clip, adam, decay", "momentum"),
    *("masked adamw", "injected adamw", "warm-up", "decay inside MultiSteps"),
    *("decay inside apply_if_finite", "partition of two rates", "a frozen part"),
    *("written by hand", "a class of somebody", "L2 before momentum", "L2 before adam"),
    *("add_decayed_weights, sgd", "compensated bfloat16", "strong enough for bfloat16"),
    *("rules of one's own", "penalties.elastic_net"),
}
QUICK_WRONG = {
    *("adam, then +λθ", "adamw of a negative λ", "−λθ before a traced rate"),
    *("−λθ before momentum", "−λθ before partition", "add_decayed_weights after sgd"),
    *("decay_weights before sgd", "a chain of somebody, decay_weights first"),
    *("after MultiSteps", "after a class of somebody", "after set_to_zero of a part"),
    *("after freezing in apply_if_finite", "after apply_if_finite", "adamw, then decay"),
    *("L2 before momentum, then decay", "a mask with a typing error", "adamw without a mask"),
    *("a mask that leaves a kernel out", "bfloat16 adamw", "bfloat16 prox"),
    *("L2 before backtracking", "λ given for a fraction", "signs flip", "names say nothing"),
    *("mechanize of adam, then +λθ",),
}


@pytest.mark.parametrize(("name", "case"), told(TRUTH, QUICK_TRUTH))
def test_what_is_measured_is_the_truth(name, case):
    if case.raises:
        with pytest.raises(case.raises):
            run(case)
        return
    found = run(case)
    for path, (acts, shrink) in (("a/kernel", case.kernel), ("a/bias", case.bias)):
        row = rows(found)[path]
        assert row["acts"] == acts, path
        if shrink is None:
            assert row["shrink"] is None, path
        else:
            assert row["shrink"] == pytest.approx(shrink, rel=ROUNDED.get(name, EXACT)), path
    assert len(found.warnings) == len(case.says), found.warnings
    for piece, warning in zip(case.says, found.warnings, strict=True):
        assert piece in warning
    if case.law:
        assert rows(found)["a/kernel"]["law"] == case.law


@pytest.mark.parametrize(("name", "case"), told(cases.WRONG, QUICK_WRONG))
def test_what_is_wrong_is_said(name, case):
    if name in REFUSED:
        with pytest.raises(TypeError, match="weights` must "):
            run(case)
        return
    said = run(case).warnings
    for piece in case.says:
        assert any(piece in warning for warning in said), said


def test_the_tables_are_large():
    assert len(cases.OPTAX) + len(cases.OURS) >= 80
    assert len(cases.WRONG) >= 40
    assert len([case for case in TRUTH.values() if not case.says]) >= 40
    assert len(TRUTH) == len(cases.OPTAX) + len(cases.OURS) + len(cases.RIGHT)
    assert not (QUICK_TRUTH | QUICK_WRONG) - {*TRUTH, *cases.WRONG}


@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "sgd", "adafactor"])
def test_every_factory_of_optax_is_in_the_table(name):
    assert any(key.partition(",")[0] == name for key in cases.OPTAX)


# Numbers against a simulation in float64.


def simulated(optimizer, params, steps, calls=1):
    """What is left of each leaf after real steps without gradients, in float64."""
    with jax.enable_x64(True):
        theta = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        zeros = jax.tree.map(np.zeros_like, theta)

        def step(_, carry):
            theta, state = carry
            updates, state = optimizer.update(zeros, state, theta)
            return optax.apply_updates(theta, updates), state

        @jax.jit
        def run(theta):
            return jax.lax.fori_loop(0, steps * calls, step, (theta, optimizer.init(theta)))[0]

        norm = np.linalg.norm
        return jax.tree.map(lambda a, b: float(norm(a) / norm(b)), run(theta), theta)


WARMUP = optax.warmup_cosine_decay_schedule(0.0, 0.1, 20, 200)
SIMULATED = {
    "adamw, warm-up": (lambda: optax.adamw(WARMUP, weight_decay=0.1, mask=KERNELS), 200, 1),
    "lion": (lambda: optax.lion(0.1, weight_decay=0.1), 90, 1),
    "adafactor": (lambda: optax.adafactor(0.1, weight_decay_rate=0.01), 50, 1),
    "sgdw of ours, steps of a schedule": (
        lambda: wdjax.sgdw(
            optax.piecewise_constant_schedule(0.1, {30: 0.5, 60: 0.1}), weight_decay=0.1
        ),
        90,
        1,
    ),
    "L2 before momentum": (
        lambda: optax.chain(optax.add_decayed_weights(0.1), sgd(momentum=0.9)), 120, 1,
    ),
    "inside MultiSteps": (
        lambda: optax.MultiSteps(optax.adamw(WARMUP, weight_decay=0.1), 3), 200, 3,
    ),
    "after MultiSteps": (
        lambda: optax.chain(optax.MultiSteps(sgd(), 4), bare(0.001)), 60, 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIMULATED)
def test_what_is_left_is_that_of_a_simulation_in_float64(name):
    make, steps, calls = SIMULATED[name]
    found = rows(audit(PARAMS, make(), steps=steps))
    wanted = simulated(make(), PARAMS, steps, calls)
    for path in ("a/kernel", "b/kernel"):
        top, leaf = path.split("/")
        assert found[path]["left"] == pytest.approx(wanted[top][leaf], rel=EXACT)


def test_a_long_run_is_sampled():
    lr = optax.cosine_decay_schedule(1e-3, 100_000)
    row = rows(audit(PARAMS, wdjax.sgdw(lr, weight_decay=0.02), steps=100_000))
    # Σ λ η(t) = λ η T / 2 to first order
    assert row["a/kernel"]["left"] == pytest.approx(math.exp(-1.0), rel=1e-4)
    assert row["a/bias"]["left"] == 1


PARTS = {
    "clip": lambda x: optax.clip_by_global_norm(1 + x),
    "zero_nans": lambda _: optax.zero_nans(),
    "scale": lambda x: optax.scale(0.5 + x),
    "L2": lambda x: optax.add_decayed_weights(0.1 * x),
    "masked L2": lambda x: optax.add_decayed_weights(0.1 * x, KERNELS),
    "momentum": lambda x: optax.trace(0.5 * x),
    "average": lambda x: optax.ema(0.5 * x),
}
ENDS = {
    "decay": lambda x: bare(0.02 * x),
    "growth": lambda x: bare(0.02 * x, sign=1.0),
    "masked decay": lambda x: optax.masked(bare(0.02 * x), KERNELS),
    "scale": lambda x: optax.scale(0.5 + x),
}


def chains_leave_what_their_simulations_leave(parts, ends):
    """A chain of 3 to 6 parts, the step among them, against its own simulation."""

    def make():
        return optax.chain(
            *(PARTS[name](x) for name, x in parts), sgd(), *(ENDS[name](x) for name, x in ends)
        )

    found, wanted = audit(PARAMS, make(), steps=60), simulated(make(), PARAMS, 60)
    for path in ("a/kernel", "a/bias"):
        top, leaf = path.split("/")
        row, left = rows(found)[path], wanted[top][leaf]
        if row["left"] is None:  # growth takes back what decay takes off, but for rounding
            assert left == pytest.approx(1, abs=1e-9)
            assert row["acts"] == "unknown"
            assert any(path in note for note in found.notes)
            continue
        assert row["left"] == pytest.approx(left, rel=EXACT)


def drawn(table, least, most):
    one = st.tuples(st.sampled_from(sorted(table)), st.floats(0.1, 0.9))
    return st.lists(one, min_size=least, max_size=most)


random_chains = hypothesis.given(parts=drawn(PARTS, 1, 3), ends=drawn(ENDS, 1, 2))
test_a_random_chain_leaves_what_its_simulation_leaves = hypothesis.settings(max_examples=5)(
    random_chains(chains_leave_what_their_simulations_leave)
)
test_many_random_chains_leave_what_their_simulations_leave = pytest.mark.slow(
    hypothesis.settings(max_examples=25)(random_chains(chains_leave_what_their_simulations_leave))
)


def test_coupled_decay_is_followed_to_the_end():
    """What is left after momentum is far from what decoupled decay would leave."""
    coupled = optax.chain(wdjax.add_decayed_weights(1e-3), sgd(momentum=0.9))
    (row,) = audit({"kernel": SHORT}, coupled, steps=400).rows
    assert row["acts"] == "gradient"
    wanted = simulated(coupled, {"kernel": SHORT}, 400)["kernel"]
    assert row["left"] == pytest.approx(wanted, rel=EXACT)


SHORT = np.float32([[0.5, 1.5], [2.5, 3.5]])


@pytest.mark.parametrize(
    ("make", "acts"),
    [
        # it takes off about η a step, whatever λ, and its own weights are float32 here
        (lambda: optax.chain(wdjax.add_decayed_weights(1e-3), optax.adam(1e-3)), "gradient"),
        (lambda: wdjax.decay_weights(1e-3, wdjax.penalties.l1), "constant"),
    ],
    ids=["adam", "l1"],
)
def test_what_is_left_of_lengths_is_that_of_these_weights(make, acts):
    for weights in ({"kernel": SHORT}, {"kernel": 10 * SHORT}):
        (row,) = audit(weights, make(), steps=300).rows
        wanted = simulated(make(), weights, 300)["kernel"]
        assert (row["acts"], row["left"]) == (acts, pytest.approx(wanted, rel=1e-5))


def test_what_is_left_of_lengths_that_are_not_known_is_no_guess():
    optimizer = wdjax.decay_weights(1e-3, wdjax.penalties.l1)
    found = audit({"kernel": jax.ShapeDtypeStruct((2, 2), "float32")}, optimizer, steps=300)
    assert found.rows[0]["left"] is None
    assert "depends on the weights' own lengths: pass arrays" in found.notes[0]
    found = audit({"kernel": SHORT}, optimizer, steps=10**9)
    assert found.rows[0]["left"] is None
    assert "this run is too long" in found.notes[0]


@pytest.mark.parametrize("factory", [pytest.param(optax.lamb, marks=pytest.mark.slow), optax.lars])
def test_decay_beside_a_trust_ratio_is_exact(factory):
    """It is outside the ratio, unlike the factory's own, and gradients leave it alone."""
    optimizer = wdjax.decayed(factory)(0.1, weight_decay=0.01)
    found = audit(PARAMS, optimizer, steps=50)
    row = rows(found)["a/kernel"]
    assert (row["acts"], found.notes) == ("weights", ())
    wanted = simulated(optimizer, PARAMS, 50)["a"]["kernel"]
    assert row["left"] == pytest.approx(wanted, rel=EXACT)


@pytest.mark.parametrize("s", [1e-8, 1e-7])
def test_float32_swallows_a_very_weak_implicit_decay(s):
    warnings = audit({"kernel": ones((2, 2))}, wdjax.prox_weights(s)).warnings
    assert any("float32 swallows this decay" in text for text in warnings) == (s < 3e-8)


# Machines.


def test_leaves_of_one_kind_are_run_once():
    tree = {f"layer_{i}": {"kernel": ones((4, 3)), "bias": ones(3)} for i in range(20)}
    machine = Compiled(optax.adamw(0.1, mask=KERNELS), tree, {})
    assert len(machine.shapes) == 2
    rated = optax.partition(
        {i: sgd() if i else wdjax.sgdw(0.1, weight_decay=0.1) for i in (0, 1)},
        {name: {"kernel": int(name == "layer_7"), "bias": 0} for name in tree},
    )
    assert len(Compiled(rated, tree, {}).shapes) == 3


def test_states_that_start_alike_and_part_later_are_two_kinds():
    def init(params):
        return jax.tree.map(lambda x: jnp.zeros((), int), params)

    def update(updates, state, params):
        grown = dict(state, b=state["b"] + 1)
        return jax.tree.map(lambda u, p, n: u - 0.1 * n * p, updates, params, state), grown

    tree = {"a": ones((2, 2)), "b": ones((2, 2))}
    assert len(Compiled(optax.GradientTransformation(init, update), tree, {}).shapes) == 2


class Branching:
    """An optimizer that looks at concrete numbers."""

    def init(self, params):
        return {"count": jnp.zeros((), int)}

    def update(self, updates, state, params=None):
        s = 0.1 if int(state["count"]) < 5 else 0.0
        updates = jax.tree.map(lambda u, p: -0.1 * u - s * p, updates, params)
        return updates, {"count": state["count"] + 1}


def test_an_optimizer_that_cannot_be_traced_is_called_as_it_is():
    assert isinstance(_standins.prepared(Branching(), PARAMS, {})[0].machine, Plain)
    found = rows(audit({"kernel": ones((2, 2))}, Branching(), steps=10))["kernel"]
    assert (found["acts"], found["shrink"]) == ("weights", pytest.approx(0.1))
    assert found["left"] == pytest.approx(0.9**5, rel=1e-5)


def test_a_counter_without_a_known_name_is_no_guess():
    def init(params):
        return {"ticks": jnp.zeros((), int)}

    def update(updates, state, params):
        s = 0.01 * state["ticks"]
        updates = jax.tree.map(lambda u, p: -0.1 * u - s * p, updates, params)
        return updates, {"ticks": state["ticks"] + 1}

    found = audit({"kernel": ones((2, 2))}, optax.GradientTransformation(init, update), steps=9)
    assert "not with a named step count" in found.notes[0]
    assert found.rows[0]["left"] is None


def steps_of_decay(round_):
    """Decay by weights that are rounded to 256ths: their derivative is 0, their differences not."""
    return optax.stateless(
        lambda u, p: jax.tree.map(lambda a, b: a - 0.1 * round_(256 * b) / 256, u, p)
    )


def test_where_two_probes_disagree_no_number_is_told():
    found = audit({"kernel": ones((2, 2))}, steps_of_decay(jnp.round), steps=10)
    (row,) = found.rows
    assert (row["acts"], row["shrink"], row["left"]) == ("unknown", None, None)
    assert found.notes == ("kernel: two ways to measure the decay disagree",)
    (row,) = audit({"kernel": ones((2, 2))}, steps_of_decay(lambda x: x)).rows
    assert (row["acts"], row["shrink"]) == ("weights", pytest.approx(0.1))


def test_a_false_derivative_of_a_body_is_of_no_consequence():
    @jax.custom_jvp
    def odd(x):
        return x

    odd.defjvp(lambda primals, tangents: (primals[0], 2 * tangents[0]))
    assert audit({"kernel": ones((2, 2))}, steps_of_decay(odd)).rows[0]["acts"] == "weights"


def test_an_optimizer_that_insists_on_float32_is_measured_in_it():
    def update(updates, state, params):
        def half(args):
            return jax.tree.map(lambda u, p: u - jnp.float32(0.01) * p.astype("float32"), *args)

        same = jax.lax.cond(state >= 0, half, lambda args: args[0], (updates, params))
        return same, state + 1

    single = optax.GradientTransformation(lambda p: jnp.zeros((), int), update)
    (row,) = audit({"kernel": ones((2, 2))}, single).rows
    assert (row["acts"], row["shrink"]) == ("weights", pytest.approx(0.01, rel=EXACT))


# Size.

LARGE = {
    "embed": {"embedding": jax.ShapeDtypeStruct((50_000, 4096), jnp.bfloat16)},
    "block": {
        "kernel": jax.ShapeDtypeStruct((4096, 16_384), jnp.bfloat16),
        "scale": jax.ShapeDtypeStruct((4096,), jnp.bfloat16),
    },
}


def test_axes_are_cut_in_their_order():
    assert _standins.cut((4096, 16_384, 4096, 3, 1), 8) == (8, 9, 8, 3, 1)
    assert _standins.cut((64, 4096), 128) == (64, 128)
    assert _standins.cut((7, 9), None) == (7, 9)


@pytest.mark.parametrize(
    ("make", "shrink", "shape"),
    [
        (lambda: optax.adamw(0.1, weight_decay=0.1, mask=KERNELS), 0.01, (8, 9)),
        pytest.param(
            lambda: optax.adafactor(0.1, weight_decay_rate=0.01, weight_decay_mask=KERNELS),
            0.01, (128, 129), marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: optax.contrib.muon(0.1, weight_decay=0.1, weight_decay_mask=KERNELS),
            0.01, (8, 9), marks=pytest.mark.slow,
        ),
    ],
    ids=["adamw", "adafactor", "muon"],
)  # fmt: skip
def test_stand_ins_for_a_large_model_run_its_program(make, shrink, shape):
    on = _standins.prepared(make(), LARGE, {})[0]
    assert on.shape == shape
    found = rows(audit(LARGE, make(), steps=10))
    assert found["block/kernel"]["shrink"] == pytest.approx(shrink, rel=1e-5)
    assert found["block/scale"]["acts"] == "none"


def test_what_depends_on_size_is_no_guess():
    def per_size(updates, params):
        return jax.tree.map(lambda u, p: -0.1 * u - p / p.shape[0], updates, params)

    found = audit(LARGE, optax.stateless(per_size))
    assert {row["acts"] for row in found.rows} == {"unknown"}
    assert "the strength of the decay depends on the size of the leaf" in found.notes[0]
    large = lambda p: jax.tree.map(lambda x: x.size > 10**6, p)
    found = rows(audit(LARGE, optax.chain(sgd(), optax.masked(bare(), large))))
    assert found["block/kernel"]["acts"] in ("unknown", "weights")
    assert found["block/scale"]["acts"] == "none"


# check_decay and same_decay.


def test_check_decay_passes_what_is_declared():
    lr = optax.cosine_decay_schedule(0.1, 100)
    strength = wdjax.lr_scaled(0.1, lr)
    check_decay(wdjax.sgdw(lr, weight_decay=0.1), PARAMS, strength=strength, steps=100)
    check_decay(wdjax.sgdw(lr, weight_decay=0.1), PARAMS, strength=strength)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: optax.chain(sgd(), bare(0.01)),
            r"a/bias: 0\.01 is taken off in a step, but 0",
        ),
        (lambda: wdjax.sgdw(0.1, weight_decay=0.2), r"a/kernel, b/kernel: 0\.02 .* 0\.01 is decl"),
        (sgd, r"kernel: nothing is taken off, but 0\.01 is declared"),
        (
            lambda: wdjax.sgdw(optax.linear_schedule(0.1, 0.0, 9), weight_decay=0.1),
            r"kernel: .* is taken off in step 9, but 0\.01",
        ),
        (
            lambda: optax.chain(
                wdjax.add_decayed_weights(0.1, rules=wdjax.standard()), optax.adam(0.1)
            ),
            r"acts in another way \(gradient: the optimizer normalizes the decay\)",
        ),
    ],
    ids=["bias", "twice", "none", "schedule", "gradient"],
)
def test_check_decay_names_the_paths(make, says):
    with pytest.raises(AssertionError, match=says):
        check_decay(make(), PARAMS, strength=0.01, steps=10)


def test_same_decay_says_where_two_optimizers_differ():
    ours, decay = wdjax.sgdw(0.1, weight_decay=0.1), bare(0.01)
    assert same_decay(PARAMS, optax.chain(sgd(), optax.masked(decay, KERNELS)), ours)
    found = same_decay(PARAMS, optax.chain(sgd(), decay), ours)
    assert not found
    assert str(found) == "a/bias: 0.01 is taken off in a step by the first, nothing by the second"


def test_same_decay_looks_at_more_than_the_peak():
    one, two = (
        wdjax.sgdw(optax.linear_schedule(0.1, x, 50), weight_decay=0.1) for x in (0.0, 0.05)
    )
    assert "but other steps are not" in str(same_decay(PARAMS, one, two, steps=50))


# The law.


def test_a_factory_of_the_rate_tells_the_law():
    for law in (wdjax.lr_scaled, wdjax.fixed, wdjax.lr_squared):
        found = audit(PARAMS, _of_rate(law))
        assert rows(found)["a/kernel"]["law"] == law.__name__
        assert rows(found)["a/bias"]["law"] is None


def _of_rate(law):
    return lambda lr: wdjax.sgdw(lr, weight_decay=0.1, law=law)


# What comes in.


def test_an_optimizer_factory_in_place_of_an_optimizer():
    with pytest.raises(
        TypeError, match=r"Optax optimizer; got the function adamw. Call it: adamw\("
    ):
        audit(PARAMS, optax.adamw)
    with pytest.raises(
        TypeError, match=r"must be an Optax optimizer; got 3\. .*changed places: aud"
    ):
        audit(PARAMS, 3)
    with pytest.raises(TypeError, match=r"must be an Optax optimizer; got dict\. Parameters and"):
        audit(sgd(), {"w": jnp.ones(1000)})
    with pytest.raises(TypeError, match="got both"):
        audit(PARAMS, sgd(), strength=0.1)


def test_leaves_that_are_no_arrays_are_named():
    with pytest.raises(TypeError, match="leaf 'w' is a str, not an array"):
        audit({"w": "x"}, sgd())


def test_a_missing_extra_argument_is_named():
    def update(updates, state, params=None, *, temperature):
        return updates, state

    needs = optax.GradientTransformationExtraArgs(lambda p: None, update)
    with pytest.raises(TypeError, match=r"needs the extra argument 'temperature'.* extra=\{'temp"):
        audit(PARAMS, needs)
    assert audit(PARAMS, needs, extra={"temperature": 1.0}).rows[0]["acts"] == "none"


def test_an_optimizer_that_raises_says_where():
    def update(updates, state, params=None):
        raise ZeroDivisionError("own trouble")

    with pytest.raises(ZeroDivisionError, match="own trouble") as caught:
        audit(PARAMS, optax.GradientTransformation(lambda p: None, update))
    assert any("wdjax.audit: the optimizer raised this" in note for note in caught.value.__notes__)


def test_stacks_and_pairs_are_seen_as_leaves():
    found = audit(stack(PARAMS), stacked(wdjax.sgdw(0.1, weight_decay=0.1)))
    assert [row["path"] for row in found.rows] == ["a/bias", "a/kernel", "b/kernel"]
    assert [row["acts"] for row in found.rows] == ["none", "weights", "weights"]
    pair = optax.LookaheadParams.init_synced(PARAMS)
    found = audit(pair, optax.lookahead(wdjax.sgdw(0.1, weight_decay=0.1), 2, 0.5))
    assert rows(found)["a/kernel"]["shrink"] == pytest.approx(0.5 * (1 - 0.99**2), rel=1e-5)


def test_integers_and_empty_leaves_do_not_decay():
    tree = {"kernel": ones((2, 2)), "table": jnp.arange(3), "w": ones((0, 2))}
    found = rows(audit(tree, wdjax.sgdw(0.1, weight_decay=0.1)))
    assert [found[name]["acts"] for name in ("kernel", "table", "w")] == ["weights", "none", "none"]


# What is printed.


def test_the_table_and_its_sentences_are_as_written_by_hand():
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    expected = """\
3 float32 arrays, 27 numbers, 27 of them decayed (100.0%)
measured: strength 0.01 at each of 100 steps
                                                   shrink  half    left
path      shape  numbers  rule    mult  acts        /step  life  at end
a/kernel  4x3         12  weight     1  weights  1.00e-02  69.0   0.366
b/kernel  4x3         12  weight     1  weights  1.00e-02  69.0   0.366
a/bias    3            3  bias       0  weights  1.00e-02  69.0   0.366
! a/bias decays, but wdjax.standard() gives a bias or gain the multiplier 0; give the optimizer
  these rules, or mask=wdjax.mask(rules)"""
    found = audit(PARAMS, optimizer, steps=100)
    assert str(found) == expected
    assert found.warnings[0].startswith("a/bias decays, but wdjax.standard() gives")


def test_no_two_rows_read_alike():
    tree = {
        "decoder": {
            "transformer": {
                f"layer{i}": {
                    "self_attention": {
                        "attention": {
                            "i_proj": {
                                p: {"weight": jnp.ones((8, 2, 4))} for p in ("q_proj", "k_proj")
                            }
                        }
                    }
                }
                for i in range(3)
            }
        }
    }
    lines = str(audit(tree, strength=1e-4, steps=100)).splitlines()
    assert len(lines) == len(set(lines))
    two = {name: tree["decoder"]["transformer"]["layer0"] for name in ("one" * 20, "two" * 20)}
    lines = str(audit(two, strength=1e-4, steps=100)).splitlines()
    assert len(lines) == len(set(lines))


def test_hundreds_of_rows_have_a_line_for_each_rule():
    tree = {
        f"w{'abcdefghij'[i % 10]}{chr(97 + i // 10)}": {
            "kernel": jnp.ones((2, 2)),
            "bias": jnp.ones(2),
        }
        for i in range(90)
    }
    found = audit(tree, strength=1e-2)
    assert len(str(found).splitlines()) < 10
    assert re.search(r"^\S+ and 89 more", str(found), re.MULTILINE)
    assert found.short() == str(found)


def test_the_html_holds_each_row_and_each_sentence_and_loads_nothing():
    text = audit({"<kernel>": jnp.ones((2, 2)), "bias": jnp.ones(2)}, sgd())._repr_html_()
    assert text.count("<tr>") == 3
    assert "&lt;kernel&gt;" in text
    assert "nothing decays" in text
    assert not re.search(r"https?:|<script|<link", text)


def test_a_leaf_that_no_gradient_reaches_and_that_decays_is_named():
    params = jax.eval_shape(lambda: {"kernel": jnp.ones((2, 2)), "table": jnp.ones((2, 2))})
    loss = lambda p: jnp.sum(p["kernel"] * jax.lax.stop_gradient(p["table"]))
    rules = (("**", 1.0),)
    (said,) = audit(params, optax.adamw(0.1, weight_decay=0.1), rules=rules, loss=loss).warnings
    assert said.startswith(
        "no gradient of the loss reaches table, but decay does, so it fades away"
    )
    assert not audit(params, wdjax.adamw(0.1, weight_decay=0.1, rules=rules), rules=rules).warnings
    with pytest.raises(TypeError, match="`loss` must be a function"):
        audit(params, optax.adamw(0.1), loss=3.0)


def test_a_method_that_keeps_a_length_is_no_decay_at_several_places():
    """It takes a leaf off and gives it back; beside another shape that counted as three."""
    kernel = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    params = {"a": kernel, "b": {"kernel": jnp.ones((3, 2))}}
    found = audit(params, optax.chain(optax.sgd(0.1), wdjax.radial.radial_brake(0.5)))
    assert not found.warnings
    assert {row["acts"] for row in found.rows if row["numbers"] > 3} <= {"unknown", "gradient"}


@pytest.mark.parametrize("verb", [wdjax.decay_weights, wdjax.prox_weights])
@pytest.mark.parametrize(
    ("second", "is_twice"),
    [
        (penalties.l1, True),
        (penalties.l2, False),  # with L1 an elastic net
        (penalties.group_lasso(), False),  # with L1 a sparse group lasso
    ],
)
def test_two_penalties_are_no_decay_twice_but_one_penalty_twice_is(verb, second, is_twice):
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(3)}
    found = audit(params, optax.chain(sgd(), verb(1e-3, penalties.l1), verb(2e-3, second)))
    assert [("2 places" in text) for text in found.warnings] == [True] * is_twice
