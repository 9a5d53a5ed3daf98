"""The kinds of parameters, on the names of public models and on what their names are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import public_trees
import pytest

import wdjax
from wdjax import rules
from wdjax._trees import kinds, paths
from wdjax.rules import mask, owners, standard

MARKS = {1.0: "+", 0.5: "e", 0.0: "-"}
# What is decided otherwise: a gate that its project takes out by name, and the energies of single
# atoms, of whose decay `init` warns.
WRONG = {"smear_gate/weight", "atomic_energies_fn/atomic_energies"}


def decided(tree):
    """Path -> mark and kind."""
    preset = standard(embeddings=0.5)
    rows = zip(paths.leaves(tree), owners(preset, tree), strict=True)
    return {leaf.path: (MARKS[preset[i][1]], preset[i][0].name) for leaf, i in rows}


TREES = public_trees.MODELS | public_trees.PIECES


@pytest.mark.parametrize("title", TREES)
def test_the_preset_decides_as_public_models_do(title):
    leaves = public_trees.listed(TREES[title])
    expected = {path.replace(".", "/"): mark for path, (_, mark) in leaves.items()}
    found = decided(public_trees.nested(leaves))
    assert found.keys() == expected.keys()
    assert {path for path in found if found[path][0] != expected[path]} == WRONG & found.keys()


def test_at_most_one_in_a_hundred_is_decided_otherwise():
    count = sum(len(public_trees.listed(text)) for text in public_trees.MODELS.values())
    assert len(public_trees.MODELS) >= 15
    assert len(WRONG) <= count / 100


def test_every_path_of_the_public_models_says_where_it_is_from():
    for title in public_trees.MODELS:
        assert any(len(word.strip(",;()")) == 7 for word in title.split()), title  # a commit


def kind(path, shape=(3, 8), *siblings):
    tree = {path: jax.ShapeDtypeStruct(shape, jnp.float32)}
    parent = path.rpartition("/")[0]
    for name in siblings:
        tree[f"{parent}/{name}"] = jax.ShapeDtypeStruct((8,), jnp.float32)
    return decided(tree)[path][1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # the last known word decides
        ("mlp_norm", "norm/gain"),
        ("norm_mlp", "weight"),
        ("scale_proj", "weight"),
        ("proj_scale", "norm/gain"),
        ("layerNormWeight", "norm/gain"),
        ("pos_embedding", "position"),
        ("token_embedding", "embedding"),
        ("embedding_token", "token"),
        ("patch_embedding", "weight"),
        # `b_out` is the b of the output
        ("b_out", "bias"),
        ("B_out", "rate/log"),
        ("b_w", "weight"),
        ("w_out", "weight"),
        ("gating_b", "bias"),
        ("up_w", "weight"),
        ("rel_pos_w", "position"),
        # wrappers around an array, places in a list
        ("scale/args/0", "norm/gain"),
        ("weight/parametrizations/original1", "weight"),
        ("weight/original0", "norm/gain"),
        ("kernel/0", "weight"),
        ("dense/bias/value", "bias"),
        ("mlp/0", "guess: n-D"),
        # a weight is what it belongs to
        ("attention_norm/kernel", "norm/gain"),
        ("ada_norm/kernel", "weight"),
        ("mask_tokens/weight", "token"),
        ("shared/weight", "embedding"),
        ("shared/kernel", "weight"),
        ("time_embed/0/weight", "weight"),
        ("skip/weight", "weight"),
        ("relative_attention_bias/weight", "bias"),
        ("scale/weights", "norm/gain"),
        ("scale/kernel", "weight"),
        ("norm/theta", "norm/gain"),
        ("head/theta", "guess: n-D"),
        # state space models
        ("Lambda_re", "rate/log"),
        ("log_step", "rate/log"),
        ("C_im", "weight"),
        ("C_bias", "bias"),
    ],
)
def test_words_decide(path, expected):
    assert kind(path) == expected


@pytest.mark.parametrize(
    ("path", "siblings", "expected"),
    [
        ("label_emb/weight", (), "embedding"),
        ("label_emb/weight", ("bias",), "weight"),  # a table has no bias
        ("scale/w", (), "norm/gain"),
        ("scale/w", ("b",), "weight"),  # a linear layer that makes a scale
        ("q/lora_b", ("lora_a",), "weight"),
        ("q/up_b", ("up_w",), "bias"),
        ("q/b", ("a",), "weight"),
        ("q/b", ("a", "c"), "bias"),
        ("ssm/B", ("C",), "rate/log"),
        ("layer/B", ("W",), "bias"),
    ],
)
def test_siblings_tell_apart(path, siblings, expected):
    assert kind(path, (3, 8), *siblings) == expected


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("mixer", (1, 1, 8), "guess: 1-D"),  # axes of length 1 do not count
        ("mixer", (1, 8, 1), "guess: 1-D"),
        ("mixer", (1, 8, 2), "guess: n-D"),
        ("0", (1, 8), "guess: n-D"),  # the first W of [W, b], with one feature
        ("head/kernel", (8, 1), "weight"),  # but names come first
        ("cls_token1", (1, 1, 8), "token"),
        ("point_weights", (8,), "norm/gain"),
        ("w", (8,), "weight"),
        ("proj", (8,), "guess: 1-D"),
        ("A", (), "scalar"),
    ],
)
def test_shapes_come_last(path, shape, expected):
    assert kind(path, shape) == expected


def test_a_norm_of_a_matrix_is_no_norm():
    eqx = pytest.importorskip("equinox")

    class WeightNormalization(eqx.Module):
        weight: jax.Array
        scale: list

    class Layer(eqx.Module):
        weight: WeightNormalization
        bias: jax.Array

    layer = Layer(WeightNormalization(jnp.ones((4, 3)), [jnp.ones((4, 1))]), jnp.ones(4))
    found = {path: mark for path, (mark, _) in decided(layer).items()}
    assert found == {"weight/weight": "+", "weight/scale/0": "-", "bias": "-"}


def test_kinds_are_data():
    import pickle

    assert pickle.loads(pickle.dumps(kinds.KINDS)) == kinds.KINDS
    assert len({*kinds.KINDS}) == len(kinds.KINDS)


# a guess that decays is never silent

GUESSED = {"mixer": np.ones((2, 3), np.float32), "kernel": np.ones((2, 2), np.float32)}
METHODS = {
    "decay_weights": wdjax.decay_weights(0.1),
    "prox_weights": wdjax.prox_weights(0.1),
    "add_decayed_weights": wdjax.add_decayed_weights(0.1, rules=standard()),
    "adamw": wdjax.adamw(1e-3, weight_decay=0.1),
    "memory": wdjax.adaptive.cumulative_l1(0.1),
    "radial": wdjax.radial.norm_control(0.1),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_guess_that_decays_warns_at_init(method):
    message = r"mixer \(2, 3\) decay.* guess.*rules=\(\('mixer', 1.0\), \*wdjax.standard\(\)\)"
    with pytest.warns(UserWarning, match=message):
        METHODS[method].init(GUESSED)


def test_the_rule_of_the_warning_silences_it():
    for meant in (1.0, 0.0):
        wdjax.decay_weights(0.1, rules=(("mixer", meant), *standard())).init(GUESSED)
    wdjax.decay_weights(0.1, rules=(("**", 1.0),)).init(GUESSED)
    wdjax.decay_weights(0.1).init({"mixer": GUESSED["mixer"][0], "kernel": GUESSED["kernel"]})
    wdjax.decay_weights(0.1).init(GUESSED["mixer"])  # one array: no name is missing


@pytest.mark.parametrize(
    ("tree", "written"),
    [
        ([[np.ones((2, 3)), np.ones(3)]], r"0/0 \(2, 3\).*rules=\(\('/0/0', 1.0\), "),
        ({"a": {"mixer": np.ones((2, 3))}, "mixer": np.ones(3)}, r"rules=\(\('/a/mixer', 1.0\), "),
        ({"b1": {"mixer": np.ones((2, 3))}, "b2": {"mixer": np.ones((2, 3))}}, r"\('mixer', 1.0\)"),
        ({"u": np.ones((2, 3)), "v": np.ones((2, 3))}, r"rules=\(\(\('u', 'v'\), 1.0\), "),
    ],
)
def test_the_warning_writes_a_rule_that_fits(tree, written):
    with pytest.warns(UserWarning, match=written) as caught:
        wdjax.decay_weights(0.1).init(tree)
    text = str(caught[0].message)
    given = eval(text.split("rules=")[1].split(", with")[0])  # as a user would paste it
    assert wdjax.resolve(given, tree) == wdjax.resolve(standard(), tree)


def test_a_mask_warns_once():
    optimizer = optax.adamw(1e-3, weight_decay=0.1, mask=mask(standard()))
    with pytest.warns(UserWarning, match=r"`mask`: mixer \(2, 3\) decay"):
        state = optimizer.init(GUESSED)
    optimizer.update(GUESSED, state, GUESSED)  # warnings are errors


def test_strict_still_refuses():
    with pytest.raises(rules.RuleError, match=r"no rule matches: mixer \(2, 3\)"):
        wdjax.decay_weights(0.1, rules=standard(strict=True)).init(GUESSED)
