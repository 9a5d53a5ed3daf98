import functools
import json
import math
import pathlib
import pickle
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest

from wdjax import schedules
from wdjax.audit import Audit, audit, check_decay, same_decay
from wdjax.rules import RuleError, resolve, standard


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


SMALL = {"kernel": shape(2, 3), "bias": shape(3)}
KERNEL = {"kernel": shape(2, 3)}


def only(found):
    (row,) = found.rows
    return row


def body(found):
    """The lines of the table, titles and all, without header and notes."""
    lines = str(found).splitlines()
    title = next(i for i, line in enumerate(lines) if line.startswith("path "))
    return [line for line in lines[title:] if not line.startswith(("!", "  "))]


# the numbers


@pytest.mark.parametrize("half_life", [1, 10, 12_345])
def test_the_half_life_is_the_one_the_strength_was_made_from(half_life):
    row = only(audit(KERNEL, strength=schedules.from_half_life(half_life)))
    assert row["half_life"] == pytest.approx(half_life, rel=1e-12)


def test_after_one_half_life_half_is_left():
    row = only(audit(KERNEL, strength=schedules.from_half_life(250), steps=250))
    assert row["left"] == pytest.approx(0.5, rel=1e-12)


def test_what_is_left_is_the_geometric_product_for_a_constant_strength():
    row = only(audit(KERNEL, strength=0.125, rules=(("**", 0.5),), steps=40))
    exact = (1 - Fraction(1, 16)) ** 40
    assert row["shrink"] == 1 / 16
    assert row["left"] == pytest.approx(float(exact), rel=1e-13)


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_what_is_left_is_the_product_over_warm_up_and_cosine(multiplier):
    warmup, steps, peak, lam = 100, 3_000, 6e-2, 0.1
    lr = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)
    found = audit(
        KERNEL,
        strength=schedules.lr_scaled(lam, lr),
        rules=(("**", multiplier),),
        steps=steps,
    )
    left = 1.0
    for t in range(steps):
        cosine = (1 + math.cos(math.pi * (t - warmup) / (steps - warmup))) / 2
        eta = peak * (t / warmup if t < warmup else cosine)
        left *= 1 - lam * eta * multiplier
    assert only(found)["left"] == pytest.approx(left, rel=1e-5)  # the schedule is in float32
    assert only(found)["shrink"] == pytest.approx(lam * peak * multiplier, rel=1e-6)
    assert (found.step, found.steps) == (warmup, steps)


def test_every_step_counts_the_last_included():
    def strength(count):
        return jnp.where(count == 99, 0.5, 0.0)

    assert only(audit(KERNEL, strength=strength, steps=99))["left"] == 1
    found = audit(KERNEL, strength=strength, steps=100)
    assert (only(found)["left"], found.step, found.strength) == (0.5, 99, 0.5)


@pytest.mark.parametrize(("every", "steps"), [(4, 2**22), (2, 2**21), (10, 10 * 2**20)])
def test_of_a_long_run_the_sample_is_not_in_step_with_the_schedule(every, steps):
    found = audit(KERNEL, strength=schedules.periodic(1e-7, every), steps=steps)
    assert only(found)["left"] == pytest.approx((1 - 1e-7) ** steps, rel=0.01)
    assert "nothing decays" not in str(found)


def test_a_run_of_more_than_a_million_steps_is_sampled_evenly():
    steps = 5_000_000
    linear = optax.linear_schedule(0.0, 1e-6, steps)
    row = only(audit(KERNEL, strength=linear, steps=steps))
    # Σ t/T · 1e-6 = 2.5 to first order, second order below 1e-6
    assert row["left"] == pytest.approx(math.exp(-2.5), rel=1e-5)


def test_counts_stop_at_the_largest_int32_as_those_of_optax_do():
    row = only(audit(KERNEL, strength=lambda count: jnp.where(count < 0, 0.5, 1e-12), steps=2**33))
    assert row["left"] == pytest.approx(math.exp(-1e-12 * 2**33), rel=1e-6)


def test_a_schedule_that_branches_in_python_is_followed():
    found = audit(KERNEL, strength=lambda count: 0.5 if count < 3 else 0.25, steps=4)
    assert only(found)["left"] == pytest.approx(0.5**3 * 0.75)
    assert found.step == 0


def test_what_does_not_decay_stays_for_ever():
    row = audit(SMALL, strength=0.1, steps=10).rows[0]
    assert (row["path"], row["shrink"], row["half_life"], row["left"]) == ("bias", 0, None, 1)


# the rows


def test_rows_are_plain_python_in_the_order_of_the_leaves():
    tree = {"b": shape(4), "w": shape(4, 3, dtype=jnp.bfloat16), "n": shape(dtype=jnp.int32)}
    rules = (("w", jnp.float32(0.5)), *standard())
    found = audit(tree, strength=np.float32(0.25), rules=rules, steps=np.int64(2))
    assert json.loads(json.dumps(found.rows, allow_nan=False)) == found.rows
    assert json.loads(json.dumps([found.total, found.decayed, found.strength, found.steps])) == [
        17, 12, 0.25, 2,
    ]  # fmt: skip
    assert [row["path"] for row in found.rows] == ["b", "n", "w"]
    assert found.rows[2] == {
        "path": "w",
        "shape": [4, 3],
        "dtype": "bfloat16",
        "numbers": 12,
        "rule": "w",
        "guess": False,
        "multiplier": 0.5,
        "shrink": 0.125,
        "half_life": pytest.approx(math.log(2) / -math.log(0.875)),
        "left": pytest.approx(0.875**2),
    }
    assert {type(value) for row in found.rows for value in row.values()} <= {
        str, list, int, float, bool, type(None),
    }  # fmt: skip


def test_without_steps_nothing_is_said_about_the_end():
    found = audit(SMALL, strength=0.1)
    assert {row["left"] for row in found.rows} == {None}
    assert "at end" not in str(found)
    assert (found.step, found.steps) == (None, None)


def test_leaves_that_are_not_floating_never_decay():
    tree = {"kernel": shape(2, 2), "key": jax.random.key(0), "count": shape(dtype=jnp.uint32)}
    found = audit(tree, strength=0.1, rules=(("**", 1.0),))
    assert [row["rule"] for row in found.rows] == ["not float", "**", "not float"]
    assert (found.total, found.decayed) == (6, 4)


@pytest.mark.parametrize(
    "build",
    [
        models.linen_transformer,
        models.linen_boxed,
        models.linen_conv,
        models.nnx_model,
        models.nnx_stack,
        models.haiku_model,
        models.haiku_stack,
        models.equinox_model,
        models.equinox_stack,
    ],
)
def test_every_library_has_one_row_per_leaf_with_its_multiplier(build):
    library = build.__name__.split("_")[0]
    pytest.importorskip({"linen": "flax", "nnx": "flax"}.get(library, library))
    tree = build()
    found = audit(tree, strength=1e-3, steps=100)
    assert [row["multiplier"] for row in found.rows] == jax.tree.leaves(resolve(standard(), tree))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)]
    assert [row["numbers"] for row in found.rows] == sizes
    assert found.total == sum(sizes)
    printed = re.findall(r"^\S+(?: ×\d+)? +(?:\d+x)*(?:\d+|scalar) ", str(found), re.MULTILINE)
    assert 0 < len(printed) <= len(sizes)


def test_arrays_and_their_shapes_give_the_same_audit():
    arrays = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    assert audit(arrays, strength=0.1) == audit(SMALL, strength=0.1)


def test_parameters_may_be_traced():
    texts = []

    @jax.jit
    def step(params):
        texts.append(str(audit(params, strength=lambda count: 0.1 / (1 + count), steps=5)))
        return params

    step({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    assert texts == [str(audit(SMALL, strength=lambda count: 0.1 / (1 + count), steps=5))]


# the table


def test_the_table_of_a_small_tree_is_as_written_by_hand():
    tree = {
        "block_0": {"attn": {"kernel": shape(64, 64), "bias": shape(64)}},
        "block_1": {"attn": {"kernel": shape(64, 64), "bias": shape(64)}},
        "embed": {"embedding": shape(1000, 64)},
        "head": {"kernel": shape(64, 10)},
        "mixer": shape(4, 4),
        "temperature": shape(),
    }
    strength = optax.linear_schedule(0.0, 1 / 64, 2)
    rules = (("head/kernel", 0.5), *standard())
    left_1 = np.prod([1 - s for s in (0, 1 / 128, *[1 / 64] * 98)])
    left_2 = np.prod([1 - s / 2 for s in (0, 1 / 128, *[1 / 64] * 98)])
    assert (f"{left_1:.3g}", f"{left_2:.3g}") == ("0.212", "0.462")
    assert (f"{math.log(2) / -math.log(1 - 1 / 64):.3g}") == "44"
    expected = """\
8 float32 arrays, 72,977 numbers, 8,848 of them decayed (12.1%)
strength 0.0156 at most, at step 2 of 100
1 array judged by shape only (marked ?)
                                                                shrink   half    left
path                    shape    numbers  rule          mult     /step   life  at end
block_*/attn/kernel ×2  64x64      8,192  weight           1  1.56e-02   44.0   0.212
mixer                   4x4           16  ? guess: n-D     1  1.56e-02   44.0   0.212
head/kernel             64x10        640  head/kernel    0.5  7.81e-03   88.4   0.462
embed/embedding         1000x64   64,000  embedding        0         0  never       1
block_*/attn/bias ×2    64           128  bias             0         0  never       1
temperature             scalar         1  scalar           0         0  never       1"""
    found = str(audit(tree, strength=strength, rules=rules, steps=100)).splitlines()
    for line, wanted in zip(found, expected.splitlines(), strict=True):
        assert line == wanted


def test_repr_is_the_table_and_has_no_trailing_spaces():
    found = audit(SMALL, strength=0.1, steps=10)
    assert repr(found) == str(found)
    assert all(line == line.rstrip() for line in str(found).splitlines())


def test_repeated_blocks_share_a_line_and_keep_their_rows():
    block = {"attn": {"kernel": shape(8, 8)}, "fc_1": {"kernel": shape(8, 2)}}
    found = audit({f"block_{i}": block for i in range(12)}, strength=0.1)
    assert [line.split()[:4] for line in body(found)[1:]] == [
        ["block_*/attn/kernel", "×12", "8x8", "768"],
        ["block_*/fc_1/kernel", "×12", "8x2", "192"],
    ]
    assert len(found.rows) == 24


def test_bare_integers_and_trailing_numbers_are_counters_and_nothing_else_is():
    tree = [{"w_3": shape(2, 2), "x2": {"w": shape(2, 2)}, "x3": {"w": shape(2, 2)}}] * 2
    lines = [line.split()[:2] for line in body(audit(tree, strength=0.1))[1:]]
    assert lines == [["*/w_3", "×2"], ["*/x2/w", "×2"], ["*/x3/w", "×2"]]


@pytest.mark.parametrize(
    ("second", "rules"),
    [
        (shape(3, 2), (("**", 1.0),)),
        (shape(2, 2, dtype=jnp.float16), (("**", 1.0),)),
        (shape(2, 2), (("1/w", 0.5), ("**", 1.0))),
        (shape(2, 2), (("1/w", 1.0), ("**", 1.0))),
    ],
    ids=["shape", "dtype", "multiplier", "rule"],
)
def test_blocks_that_differ_have_lines_of_their_own(second, rules):
    found = audit([{"w": shape(2, 2)}, {"w": second}], strength=0.1, rules=rules)
    assert sorted(line.split()[0] for line in body(found)[1:]) == ["0/w", "1/w"]


def test_a_star_in_a_path_is_no_counter():
    found = audit({"*": {"w": shape(2, 2)}, "1": {"w": shape(2, 2)}}, strength=0.1)
    assert [line.split()[0] for line in body(found)[1:]] == ["*/w", "1/w"]


def test_a_number_in_the_middle_of_a_segment_is_no_counter():
    found = audit({"w_1_a": shape(2, 2), "w_2_a": shape(2, 2)}, strength=0.1)
    assert [line.split()[0] for line in body(found)[1:]] == ["w_1_a", "w_2_a"]


def test_rules_of_the_same_name_are_told_apart_by_their_multipliers():
    rules = ((lambda leaf: leaf.parts[0] == "0", 0.5), (lambda leaf: True, 1.0))
    found = audit([{"w": shape(2, 2)}, {"w": shape(2, 2)}], strength=0.1, rules=rules)
    assert [line.split()[0] for line in body(found)[1:]] == ["1/w", "0/w"]


def test_two_leaves_of_one_path_share_a_line():
    found = audit({"a/w": shape(2, 2), "a": {"w": shape(2, 2)}}, strength=0.1)
    assert body(found)[1].startswith("a/w ×2  2x2")


def test_lines_go_from_the_most_decayed_to_the_largest_undecayed():
    tree = {"a": shape(9), "b": shape(99), "c": shape(4, 4), "d": shape(5, 5), "e": shape(1, 1)}
    found = audit(tree, strength=0.1, rules=(("d", 0.5), ("[ab]", 0.0), ("**", 1.0)))
    assert [line.split()[0] for line in body(found)[1:]] == ["c", "e", "d", "b", "a"]


def test_dtypes_have_a_column_only_where_they_differ():
    mixed = {"kernel": shape(2, 3), "bias": shape(3, dtype=jnp.bfloat16)}
    assert "dtype" not in str(audit(SMALL, strength=0.1))
    assert str(audit(SMALL, strength=0.1)).startswith("2 float32 arrays, ")
    text = str(audit(mixed, strength=0.1))
    assert text.startswith("2 arrays, ")
    assert re.search(r"^bias +3 +bfloat16 +3", text, re.MULTILINE)


def test_long_paths_are_cut_in_the_middle_and_rows_stay_whole():
    deep = {"kernel": shape(12, 768, 12, 64)}
    for name in reversed(["encoder", *[f"quite_a_long_name_{c}" for c in "abcdef"]]):
        deep = {name: deep}
    found = audit(deep, strength=0.1, steps=1_000_000)
    line = body(found)[1]
    assert re.match(r"encoder/\S*…\S+/kernel  12x768x12x64 ", line)
    assert max(map(len, str(found).splitlines())) <= 100
    assert len(found.rows[0]["path"]) > 100


def test_a_long_rule_is_cut_too():
    found = audit(KERNEL, strength=0.1, rules=((re.compile("a|very|long|pattern|kernel$"), 1.0),))
    assert "a|very…" in str(found)
    assert found.rows[0]["rule"] == "a|very|long|pattern|kernel$"


@pytest.mark.parametrize(
    ("half_life", "text"),
    [
        (1.0, "1.00"),
        (44.04, "44.0"),
        (99.98, "100"),
        (693.2, "693"),
        (11_552.1, "11,552"),
        (2.5e9, "2.50e+09"),
    ],
)
def test_half_lives_read_well(half_life, text):
    strength = -math.expm1(-math.log(2) / half_life)
    assert body(audit(KERNEL, strength=strength))[1].split()[-1] == text


@pytest.mark.parametrize(
    ("left", "text"),
    [(0.5, "0.5"), (0.9996, ">0.999"), (0.999, "0.999"), (1e-9, "1e-09")],
)
def test_almost_everything_left_is_not_printed_as_all(left, text):
    found = audit(KERNEL, strength=-math.expm1(math.log(left) / 100), steps=100)
    assert body(found)[1].split()[-1] == text


def test_a_bare_array_and_an_empty_tree_have_tables():
    assert body(audit(shape(3, 4), strength=0.1))[1].startswith("(bare array)  3x4 ")
    assert str(audit({}, strength=0.1)).splitlines() == [
        "0 arrays, 0 numbers, 0 of them decayed (0.0%)",
        "strength 0.1 at every step",
        "! nothing decays: the tree holds no numbers",
    ]


def test_guesses_are_marked_and_counted():
    tree = {"kernel": shape(2, 2), "mixer": shape(2, 2), "vector": shape(2)}
    found = audit(tree, strength=0.1)
    assert [row["guess"] for row in found.rows] == [False, True, True]
    text = str(found)
    assert "\n2 arrays judged by shape only (marked ?)\n" in text
    assert re.search(r"^mixer .* \? guess: n-D ", text, re.MULTILINE)
    assert re.search(r"^vector .* \? guess: 1-D ", text, re.MULTILINE)
    assert "marked" not in str(audit(SMALL, strength=0.1))


# notes


def notes(found):
    text = str(found)
    return " ".join(text[text.find("\n!") :].split()) if "\n!" in text else ""


def test_a_dtype_that_swallows_the_decay_is_noted():
    tree = {"a_w": shape(2, 2, dtype=jnp.bfloat16), "b_w": shape(2, 2), "bias": shape(2)}
    limit = float(jnp.finfo(jnp.bfloat16).eps) / 4
    assert notes(audit(tree, strength=limit)) == ""
    assert notes(audit(tree, strength=limit * 0.999)) == (
        "! bfloat16 swallows this decay: a change below 0.00195 of a number rounds away, for a_w; "
        "wrap the optimizer in wdjax.compensated, or keep these parameters in float32"
    )


def test_parameters_that_do_not_decay_have_nothing_to_swallow():
    tree = {"kernel": shape(2, 2), "bias": shape(2, dtype=jnp.bfloat16)}
    assert notes(audit(tree, strength=1e-4)) == ""


def test_a_decay_without_effect_is_noted():
    assert notes(audit(KERNEL, strength=0.02, steps=1)) == ""
    assert notes(audit(KERNEL, strength=0.009, steps=1)) == (
        "! decay has almost no effect over this run: more than 99% is left of kernel"
    )


def test_notes_keep_paths_whole():
    path = "/".join(f"quite_a_long_name_{c}" for c in "abcdef") + "/w"
    assert path in str(audit({path: shape(2, 2)}, strength=1e-3, steps=1))


def test_notes_name_five_lines_at_most():
    tree = {name + "_w": shape(2, 2) for name in "abcdefg"}
    assert notes(audit(tree, strength=1e-4, steps=1)).endswith("d_w, e_w, and 2 more")


@pytest.mark.parametrize(
    ("tree", "strength", "why"),
    [
        ({"bias": shape(3)}, 0.1, "the multiplier of every parameter is 0"),
        (KERNEL, 0.0, "the strength is 0 at every step"),
        (KERNEL, lambda count: 0.0 * count, "the strength is 0 at every step"),
    ],
)
def test_decay_of_nothing_is_noted(tree, strength, why):
    found = audit(tree, strength=strength, steps=10)
    assert found.decayed == 0
    assert notes(found) == f"! nothing decays: {why}"


# errors


@pytest.mark.parametrize(
    ("strength", "steps", "message"),
    [
        (-0.1, 10, "`strength` must be a finite number >= 0"),
        (math.nan, 10, "`strength` must be a finite number >= 0"),
        (lambda t: 0.1 - 0.05 * t, 10, r"finite and >= 0 at every step; got -0\.05 at step 3\."),
        (lambda t: jnp.where(t == 7, jnp.nan, 0.1), 10, "got nan at step 7"),
        (lambda t: jnp.where(t == 7, jnp.inf, 0.1), 10, "got inf at step 7"),
        (lambda t: 0.1, None, r"`steps` must be given where .* is a schedule; got None\. Pass"),
        (0.1, 0, "`steps` must be a whole number >= 1, or None; got 0"),
        (1.0, 10, r"must be < 1, .* reaches 1 for 'kernel' and would flip"),
        (lambda t: 0.5 * t, 4, r"reaches 1\.5 for 'kernel'"),
    ],
)
def test_wrong_strengths_and_steps_are_errors(strength, steps, message):
    with pytest.raises(ValueError, match=message):
        audit(SMALL, strength=strength, steps=steps)


@pytest.mark.parametrize("steps", [1e5, True, "a"])
@pytest.mark.parametrize(
    "look",
    [
        lambda steps: audit(SMALL, strength=0.1, steps=steps),
        lambda steps: audit(SMALL, optax.sgd(0.1), steps=steps),
        lambda steps: check_decay(optax.sgd(0.1), SMALL, strength=0.1, steps=steps),
        lambda steps: same_decay(SMALL, optax.sgd(0.1), optax.sgd(0.1), steps=steps),
    ],
)
def test_steps_of_another_kind_are_type_errors_at_every_door(look, steps):
    with pytest.raises(
        TypeError, match=f"`steps` must be a whole number >= 1.*; got {steps!r}. Cou"
    ):
        look(steps)


def test_a_multiplier_can_make_the_strength_flip_signs():
    tree = {"a": shape(2, 2), "b": shape(2, 2)}
    rules = (("b", 20.0), ("**", 1.0))
    with pytest.raises(ValueError, match=r"reaches 1 for 'b' and"):
        audit(tree, strength=0.05, rules=rules)
    audit(tree, strength=0.0499, rules=rules)


def test_a_strength_of_another_kind_is_an_error():
    with pytest.raises(
        TypeError, match="`strength` must be a finite number >= 0, or a schedule; got 'x'"
    ):
        audit(SMALL, strength="x")
    with pytest.raises(TypeError, match=r"needs either an optimizer or a strength; got neither"):
        audit(SMALL, strength=None)


@pytest.mark.parametrize(
    "law", [lambda x: x, lambda x: schedules.lr_scaled(x, lambda count: 0.1)], ids=["bare", "law"]
)
def test_a_traced_strength_is_an_error(law):
    def step(x):
        audit(SMALL, strength=law(x), steps=10)
        return x

    with pytest.raises(ValueError, match="`strength` must be known before training; got a traced"):
        jax.jit(step)(0.1)


def test_a_traced_multiplier_is_an_error():
    def step(x):
        audit(SMALL, strength=0.1, rules=(("**", x),))
        return x

    message = r"multiplier of rule '\*\*' must be known before training; got a traced value"
    with pytest.raises(RuleError, match=message):
        jax.jit(step)(0.1)


def test_a_negative_multiplier_is_an_error_even_as_an_array():
    with pytest.raises(RuleError, match="must be a finite number >= 0"):
        audit(SMALL, strength=0.1, rules=(("**", jnp.float32(-1.0)),))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("kernal", 0.5), *standard()), r"'kernal' matches no parameter; did you mean .*kernel"),
        ((("**", 1.0), ("kernel", 0.5), ("**", 1.0)), "'kernel' never wins"),
        ((("kernel", 1.0),), "no rule matches: bias"),
        ({"**": 1.0}, "`rules` must be a sequence"),
    ],
)
def test_rules_are_as_strict_as_in_training(rules, message):
    with pytest.raises(RuleError, match=message):
        audit(SMALL, strength=0.1, rules=rules)


def test_a_leaf_that_is_no_array_is_an_error():
    with pytest.raises(TypeError, match="leaf 'activation' is a function, not an array"):
        audit({"activation": lambda x: x}, strength=0.1)


# the name


def test_an_audit_survives_pickling():
    found = audit(SMALL, strength=0.1, steps=10)
    again = pickle.loads(pickle.dumps(found))
    assert isinstance(again, Audit)
    assert again == found


# the README


def test_the_readme_s_optimizer_decays_as_its_rules_and_lambda_say():
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = {}
    exec(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1], shown)
    rules, rate = shown["rules"], shown["lr"]
    check = functools.partial(check_decay, shown["optimizer"], shown["params"], steps=1_000)
    check(strength=lambda count: 0.1 * rate(count), rules=rules)
    with pytest.raises(AssertionError, match="head/kernel"):  # half of the decay, by its rule
        check(strength=lambda count: 0.1 * rate(count), rules=rules[1:])
