import collections
import dataclasses
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdjax._trees import paths, reach

ONE = np.ones(1, np.float32)


def names(tree):
    return [leaf.path for leaf in paths.leaves(tree)]


class Pair(collections.namedtuple("Pair", "first second")):
    pass


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    value: Any
    bias: Any


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Opaque:
    children: tuple

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(tuple(children))


# names


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"dense": {"kernel": ONE, "bias": ONE}}, ["dense/bias", "dense/kernel"]),
        ({"mlp/~/linear_0": {"w": ONE}}, ["mlp/~/linear_0/w"]),
        ({"layers.0.weight": ONE}, ["layers/0/weight"]),
        ({"kernel/scale": ONE, "/odd//": ONE}, ["odd", "kernel/scale"]),
        ([(ONE, ONE), ONE], ["0/0", "0/1", "1"]),
        (ONE, [""]),
        ({"": ONE}, [""]),
        ({3: ONE, 10: ONE}, ["3", "10"]),
        ({0.5: ONE}, ["0.5"]),
        ({("a", "b"): ONE}, ["('a', 'b')"]),
        ({"frozen": None, "kernel": ONE, "empty": {}}, ["kernel"]),
        (Pair(ONE, {"b": ONE}), ["first", "second/b"]),
        ({"attn": Layer(ONE, ONE)}, ["attn/value", "attn/bias"]),
        ({"opaque": Opaque((ONE, ONE))}, ["opaque/0", "opaque/1"]),
        (collections.OrderedDict(b=ONE, a=ONE), ["b", "a"]),
        ({"a": optax.MaskedNode(), "b": ONE}, ["b"]),
        ({}, []),
        (None, []),
    ],
)
def test_a_path_is_the_keys_on_the_way(tree, expected):
    assert names(tree) == expected


def test_two_leaves_may_share_one_path():
    leaves = paths.leaves({"a/b": np.ones(1), "a": {"b": np.ones(2)}})
    assert [(leaf.path, leaf.shape) for leaf in leaves] == [("a/b", (2,)), ("a/b", (1,))]


def test_a_leaf_knows_its_name_shape_and_dtype():
    (leaf,) = paths.leaves({"dense": [jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)]})
    assert (leaf.path, leaf.parts, leaf.name) == ("dense/0", ("dense", "0"), "0")
    assert (leaf.shape, leaf.ndim, leaf.dtype) == ((2, 3), 2, jnp.bfloat16)
    assert leaf.types == (dict, list)


def test_a_bare_array_has_the_empty_name():
    (leaf,) = paths.leaves(ONE)
    assert (leaf.path, leaf.parts, leaf.name, leaf.types) == ("", (), "", ())
    assert leaf.siblings == frozenset()


def test_a_leaf_is_frozen_and_slotted():
    (leaf,) = paths.leaves(ONE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.path = "other"
    assert not hasattr(leaf, "__dict__")


def test_leaves_come_in_the_order_of_jax():
    tree = {"b": {"y": np.ones(1), "x": np.ones(2)}, "a": [np.ones(3), np.ones(4)]}
    shapes = [leaf.shape for leaf in paths.leaves(tree)]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(tree)] == [(3,), (4,), (2,), (1,)]


def test_tracers_have_names_and_shapes():
    seen = []

    @jax.jit
    def function(tree):
        seen.extend((leaf.path, leaf.shape) for leaf in paths.leaves(tree))
        return tree

    function({"w": jnp.ones((2, 3))})
    assert seen == [("w", (2, 3))]


# siblings and containers


def test_siblings_are_the_other_children_of_the_parent_path():
    tree = {"block": {"w": ONE, "b": ONE, "norm": {"scale": ONE}}, "head": ONE, "none": None}
    found = {leaf.path: sorted(leaf.siblings) for leaf in paths.leaves(tree)}
    assert found == {
        "block/b": ["norm", "w"],
        "block/norm/scale": [],
        "block/w": ["b", "norm"],
        "head": ["block", "none"],
    }


def test_hidden_siblings_are_known_by_name():
    """A kind told by what stands beside a leaf does not change where a mask hides that."""
    hole = optax.MaskedNode()
    tree = {"lora": {"A": ONE, "B": hole}, "layer": [{"w": None, "b": ONE}], "part": hole}
    found = {leaf.path: sorted(leaf.family) for leaf in paths.leaves(tree)}
    assert found == {"lora/A": ["A", "B"], "layer/0/b": ["b", "w"]}


def test_siblings_are_found_across_flat_keys():
    leaves = paths.leaves({"linear.weight": ONE, "linear.bias": ONE, "other.scale": ONE})
    assert [sorted(leaf.siblings) for leaf in leaves] == [["weight"], ["bias"], []]


def test_types_are_the_classes_of_the_containers_outermost_first():
    leaves = paths.leaves({"a": Pair(ONE, [Layer(ONE, None)]), "b": Opaque((ONE,))})
    assert [leaf.types for leaf in leaves] == [
        (dict, Pair),
        (dict, Pair, list, Layer),
        (dict, Opaque),
    ]


def test_equinox_containers_keep_their_types_under_vmap():
    eqx = pytest.importorskip("equinox")
    found = {leaf.path: leaf.types[-1] for leaf in paths.leaves(models.equinox_stack())}
    assert found["seq/layers/1/weight"] is eqx.nn.LayerNorm
    assert found["seq/layers/0/weight"] is eqx.nn.Linear


def test_none_leaves_of_an_equinox_partition_are_absent():
    eqx = pytest.importorskip("equinox")
    linear = eqx.nn.Linear(2, 2, key=models.KEY)
    params, static = eqx.partition(linear, lambda leaf: eqx.is_array(leaf) and leaf.ndim == 2)
    assert names(params) == ["weight"]
    assert names(static) == ["bias"]


# boxes


def test_boxed_and_unboxed_linen_params_have_the_same_leaves():
    pytest.importorskip("flax")
    import flax.linen as nn

    boxed = models.linen_boxed()
    assert len(jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))) == 4
    assert any(isinstance(leaf, nn.Partitioned) for leaf in boxed["Dense_0"].values())
    assert paths.leaves(boxed) == paths.leaves(nn.unbox(boxed))
    assert names(boxed) == ["Dense_0/bias", "Dense_0/kernel", "value/bias", "value/kernel"]


@pytest.mark.parametrize("build", [models.nnx_model, models.nnx_stack])
def test_nnx_names_are_the_same_at_init_and_update(build):
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(build())
    pure = models.as_pure(state)
    assert any(isinstance(n, nnx.Variable) for n in jax.tree.leaves(state, is_leaf=_is_variable))
    assert not any(_is_variable(n) for n in jax.tree.leaves(pure, is_leaf=_is_variable))
    assert names(state) == names(pure)
    families = [[leaf.siblings for leaf in paths.leaves(tree)] for tree in (state, pure)]
    assert families[0] == families[1]


def _is_variable(node):
    from flax import nnx

    return isinstance(node, nnx.Variable)


def test_an_nnx_projection_called_value_keeps_its_name():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(models.nnx_model(), nnx.Param)
    assert "blocks/0/attn/value/bias" in names(state)


def test_a_variable_that_holds_a_tree_names_what_is_inside():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.State({"x": nnx.Param({"a": jnp.ones(1), "b": jnp.ones(1)})})
    assert names(state) == names(models.as_pure(state)) == ["x/a", "x/b"]


def _registered(cls):
    jax.tree_util.register_pytree_with_keys(
        cls,
        lambda box: (((jax.tree_util.GetAttrKey("value"), box.value),), None),
        lambda _, children: cls(*children),
    )
    return cls


def test_a_box_is_told_by_its_name_and_package():
    def init(self, value):
        self.value = value

    older = type("VariableState", (), {"__init__": init, "__module__": "flax.nnx.variablelib"})
    derived = type("Param", (older,), {"__module__": "mine"})
    stranger = type("Variable", (), {"__init__": init, "__module__": "mine.flax"})
    for cls in (older, derived, stranger):
        _registered(cls)
    tree = {"a": older(ONE), "b": derived(ONE), "c": stranger(ONE)}
    assert names(tree) == ["a", "b", "c/value"]


def test_a_frozen_dict_has_the_names_of_a_dict():
    core = pytest.importorskip("flax.core")
    tree = {"dense": {"kernel": ONE, "bias": ONE}}
    assert names(core.freeze(tree)) == names(tree)


# leaves that are no arrays


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"mlp": {"activation": jax.nn.relu}}, "leaf 'mlp/activation' is a .*, not an array: filt"),
        ({"x": 0.5}, "leaf 'x' is a float, not an array: wrap it in jnp.asarray$"),
        ({"x": 1}, "leaf 'x' is an int, not an array: wrap it in jnp.asarray$"),
        ({"x": True}, "leaf 'x' is a bool, not an array: wrap it in jnp.asarray$"),
        ("text", r"leaf '' is a str, not an array: filter the model first \(eqx.filter\(model"),
        ({"a": 1, "b": ONE, "c": 2}, "leaf 'a' is an int.*jnp.asarray. All such leaves: 'a', 'c'$"),
        (list(range(8)), "leaf '0' is an int.*: '0', '1', '2', '3', '4', and 3 more$"),
    ],
)
def test_a_leaf_that_is_no_array_is_named(tree, message):
    with pytest.raises(TypeError, match=message):
        paths.leaves(tree)


def test_numpy_scalars_are_arrays():
    assert paths.leaves({"x": np.float32(1.0)})[0].shape == ()


# holes, lists of names, differences


def test_holes_are_masked_nodes():
    assert paths.has_holes({"a": [ONE, optax.MaskedNode()]})
    assert not paths.has_holes({"a": [ONE, None, ()], "b": Pair(ONE, ONE)})


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, ""), (1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4, and 1 more")],
)
def test_at_most_five_items_are_listed(count, expected):
    assert paths.listed(str(i) for i in range(count)) == expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 3, "b": 4}, ""),
        ({"a": 1}, {"a": 1, "b": {"c": 2}}, "only in the second: 'b/c'"),
        (
            {"a": 1, "b": None},
            {"a": None, "b": 1},
            "only in the first: 'a'; only in the second: 'b'",
        ),
        ({"a/b": 1, "a": {"b": 1}}, {"a": {"b": 1}}, "only in the first: 'a/b'"),
        (
            [0] * 8,
            [0],
            "only in the first: '1', '2', '3', '4', '5', and 2 more",
        ),
        (
            {"a": [1, 2]},
            {"a": (1, 2)},
            "the same paths in other containers: 'a/0' is in dict/list in the first, "
            "in dict/tuple in the second",
        ),
        (1, [1], "only in the first: ''; only in the second: '0'"),
        ({}, (), "the same paths in other containers"),
    ],
)
def test_a_structure_difference_names_paths(left, right, expected):
    assert paths.structure_difference(left, right) == expected


# globs


def matches(pattern, path):
    return bool(paths.glob(pattern).fullmatch(path + "/" if path else ""))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("bias", ["bias", "a/b/bias"], ["a/bias_n", "bias/a", "Bias", ""]),
        ("scale", ["scale", "norm/scale"], ["multiscale", "film/scale/kernel"]),
        ("head/kernel", ["head/kernel", "a/head/kernel"], ["ahead/kernel", "head/x/kernel"]),
        ("blocks/1/**", ["blocks/1/w", "m/blocks/1/a/b", "blocks/1"], ["blocks/10/w"]),
        ("w_*", ["w_", "w_in", "a/w_in"], ["w", "aw_in", "w_in/b"]),
        ("mlp/**/w", ["mlp/w", "mlp/a/w", "x/mlp/a/b/w"], ["mlp", "w"]),
        ("/encoder/**", ["encoder/a", "encoder/a/b", "encoder"], ["x/encoder/a", "encoders/a"]),
        ("/bias", ["bias"], ["a/bias"]),
        ("**", ["", "a", "a/b"], []),
        ("/**", ["", "a", "a/b"], []),
        ("*", ["a", "a/b"], [""]),
        ("/*", ["a"], ["a/b", ""]),
        ("b?", ["b1", "a/bq"], ["b", "b12", "b/1"]),
        ("[ab]_[0-9]", ["a_1", "b_9"], ["c_1", "a_x"]),
        ("[!ab]", ["c", "a/d"], ["a", "b", ""]),
        ("x[!a]y", ["xby"], ["xay", "x/y"]),
        ("a?b*", ["a\nb\n"], ["a/b"]),
        ("[]]", ["]"], ["["]),
        ("[!]]", ["a"], ["]"]),
        ("x[[]y", ["x[y"], ["xy"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[^a]", ["^", "a"], ["b"]),
        ("[\\d]", ["d", "\\"], ["1"]),
        ("a.b+(c)", ["a.b+(c)"], ["axb+(c)"]),
        ("~/w", ["mlp/~/w"], ["w"]),
        ("a*c", ["ac", "abc", "abcc"], ["ab/c"]),
    ],
)
def test_a_glob_matches_whole_segments_from_the_right(pattern, yes, no):
    assert [path for path in yes if not matches(pattern, path)] == []
    assert [path for path in no if matches(pattern, path)] == []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "the glob '' is empty; write '\\*\\*' to match everything"),
        ("/", "the glob '/' is empty"),
        ("a//b", "'a//b' has an empty segment; remove the extra '/'"),
        ("encoder/", "has an empty segment"),
        ("//a", "has an empty segment"),
        ("a**", r"in the glob 'a\*\*', '\*\*' must stand alone between slashes"),
        ("***", "must stand alone"),
        ("[ab", r"'\[ab' has a malformed \[...\]"),
        ("[a/b]", "has a malformed"),
        ("[z-a]", "has a malformed"),
        ("[]", "has a malformed"),
        ("[!]", "has a malformed"),
    ],
)
def test_a_malformed_glob_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        paths.glob(pattern)


def brute_force(pattern, parts):
    """The same by recursion over segments, without regular expressions of ours."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(brute_force(pattern[1:], parts[i:]) for i in range(len(parts) + 1))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and brute_force(pattern[1:], parts[1:])
    )


PARTS = st.lists(st.text("ab1_.", min_size=1, max_size=4), max_size=5)
SEGMENTS = st.one_of(
    st.just("**"),
    st.lists(st.sampled_from(["a", "b", "1", ".", "_", "*", "?", "[ab]", "[!a]"]), min_size=1)
    .map("".join)
    .filter(lambda segment: "**" not in segment),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(SEGMENTS, min_size=1, max_size=4), PARTS, st.booleans())
def test_a_glob_agrees_with_brute_force(segments, parts, rooted):
    wanted = brute_force(segments if rooted else ["**", *segments], parts)
    assert matches("/" * rooted + "/".join(segments), "/".join(parts)) == wanted


# arrays in wrappers of other libraries


class Metadata:
    """As penzai's static half of a node: it knows the parameter's name."""

    def __init__(self, label):
        self.static_fields = {"label": label}

    def __eq__(self, other):
        return self.static_fields == other.static_fields

    def __hash__(self):
        return 0


def _wrapper(name, module, key=None):
    """A class with one array inside, registered with that key or without any."""

    def init(self, inside, label=None):
        self.inside, self.label = inside, label

    def flatten(node):
        inside = node.inside if key is None else (jax.tree_util.GetAttrKey(key), node.inside)
        return (inside,), Metadata(node.label)

    def unflatten(static, children):
        return cls(*children, static.static_fields["label"])

    cls = type(name, (), {"__init__": init, "__module__": module})
    if key is None:
        jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    else:
        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


HaliaxArray = _wrapper("NamedArray", "haliax.core")
PenzaiArray = _wrapper("NamedArray", "penzai.core.named_axes", "data_array")
LabeledValue = _wrapper("LabeledVariableValue", "penzai.core.variables", "value")


def test_arrays_with_named_axes_keep_the_name_of_their_place():
    tree = {"dense": Layer(HaliaxArray(ONE), PenzaiArray(ONE))}
    assert [(leaf.path, leaf.types) for leaf in paths.leaves(tree)] == [
        ("dense/value", (dict, Layer)),
        ("dense/bias", (dict, Layer)),
    ]


def test_an_array_alone_in_a_node_without_keys_has_the_name_of_the_node():
    tree = {"weight": Opaque((ONE,)), "rest": Opaque(({"w": ONE},))}
    assert names(tree) == ["rest/0/w", "weight"]
    assert names({"weight": Opaque((ONE, None))}) == ["weight/0"]


def test_a_parameter_of_penzai_is_called_by_its_label():
    label = "transformer/block_0/norm/scale.weights"
    values = LabeledValue(PenzaiArray(ONE), label), LabeledValue(PenzaiArray(ONE), ("no", "text"))
    assert names(values) == ["transformer/block_0/norm/scale/weights", "1"]
    assert names({"body": [values[0]]}) == ["transformer/block_0/norm/scale/weights"]


def test_zeros_that_are_cast_and_reshaped_are_zeros():
    def outputs(x):
        return jnp.zeros(4).astype(jnp.bfloat16).reshape(2, 2), jnp.zeros(2) + x, x.reshape(2, 1)

    program = jax.make_jaxpr(outputs)(jnp.ones(2)).jaxpr
    assert reach.always_zero(program) == [True, False, False]
