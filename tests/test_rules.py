import functools
import re
from collections import namedtuple

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdjax import rules
from wdjax._trees import kinds, paths
from wdjax.rules import RuleError, mask, owners, resolve, standard

F32 = jnp.float32
CLOSED = ("**", 0.0)


def shaped(shape=(2, 3), dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def tree_of(*names):
    return {name: shaped() for name in names}


def by_path(given_rules, tree):
    found = jax.tree.leaves(resolve(given_rules, tree))
    return dict(zip([leaf.path for leaf in paths.leaves(tree)], found, strict=True))


def labels(given_rules, tree):
    found = owners(given_rules, tree)
    texts = [rules.label(given_rules[i][0]) if i >= 0 else "not floating" for i in found]
    return dict(zip([leaf.path for leaf in paths.leaves(tree)], texts, strict=True))


# selectors

Norm = namedtuple("Norm", "scale shift")
SelectorCase = {
    "glob": "dense/kernel",
    "regex is searched": re.compile("nse/ker"),
    "function of the leaf": lambda leaf: leaf.ndim == 3,
    "tuple is any of them": ("nothing/here", (re.compile("^x$"), "dense/kernel")),
}


@pytest.mark.parametrize("selector", SelectorCase.values(), ids=SelectorCase)
def test_a_selector_picks_its_leaves(selector):
    tree = {"dense": {"kernel": shaped((1, 2, 3)), "bias": shaped()}, "kernel": shaped()}
    assert by_path(((selector, 0.5), ("**", 1.0)), tree) == {
        "dense/bias": 1.0,
        "dense/kernel": 0.5,
        "kernel": 1.0,
    }


def test_a_class_picks_the_leaves_inside_its_instances_and_subclasses():
    tree = {"n": Norm(shaped(), {"deep": shaped()}), "t": (shaped(),)}
    assert by_path(((Norm, 0.0), ("**", 1.0)), tree) == {
        "n/scale": 0.0,
        "n/shift/deep": 0.0,
        "t/0": 1.0,
    }
    assert set(by_path(((tuple, 0.0), ("**", 1.0)), tree["n"]).values()) == {0.0}


def test_the_first_matching_rule_wins():
    tree = {"a": tree_of("w", "b"), "c": tree_of("w")}
    assert by_path((("a/w", 3.0), ("w", 2.0), ("**", 1.0)), tree) == {
        "a/b": 1.0,
        "a/w": 3.0,
        "c/w": 2.0,
    }


SELECTORS = st.sampled_from(
    ["w", "b", "a/**", "*/w", "/c/*", re.compile("b$"), ("c/w", "a/b"), lambda leaf: leaf.ndim > 1]
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(SELECTORS, max_size=5),
    st.lists(
        st.tuples(st.sampled_from("ac"), st.sampled_from("wbx"), st.integers(0, 2)), min_size=1
    ),
)
def test_the_owner_is_the_first_rule_whose_selector_alone_picks_the_leaf(selectors, entries):
    tree = {f"{top}/{name}": np.ones((1,) * ndim) for top, name, ndim in entries}
    # a hole switches off the checks on rules that pick nothing
    tree["hole"] = optax.MaskedNode()

    def picked(selector):
        return owners(((selector, 1.0), ("**", 0.0)), tree)

    alone = [picked(selector) for selector in selectors]
    expected = [
        next((i for i, own in enumerate(alone) if own[leaf] == 0), len(selectors))
        for leaf in range(len(jax.tree.leaves(tree)))
    ]
    assert owners((*((s, 1.0) for s in selectors), ("**", 0.0)), tree) == tuple(expected)


def test_duplicate_paths_are_resolved_one_by_one():
    tree = {"a/b": shaped((2,)), "a": {"b": shaped((2, 2))}}
    assert resolve(((lambda leaf: leaf.ndim == 1, 0.0), ("**", 1.0)), tree) == {
        "a/b": 0.0,
        "a": {"b": 1.0},
    }


def test_a_bare_array_is_resolved():
    assert resolve((("**", 0.5),), shaped()) == 0.5


@pytest.mark.parametrize("tree", [{}, None, [], {"a": None}])
def test_a_tree_without_leaves_is_returned(tree):
    assert resolve(standard(), tree) == tree
    assert owners(standard(), tree) == ()


def test_a_tree_keeps_its_containers():
    core = pytest.importorskip("flax.core")
    tree = core.freeze({"d": {"kernel": shaped(), "n": None, "e": {}, "h": optax.MaskedNode()}})
    found = resolve((("**", 2.0),), tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert found["d"]["kernel"] == 2.0


@pytest.mark.parametrize("boxed", ["linen", "nnx"])
def test_boxes_are_kept(boxed):
    nnx = pytest.importorskip("flax.nnx")
    tree = models.linen_boxed() if boxed == "linen" else nnx.state(models.nnx_model(), nnx.Param)
    assert jax.tree.structure(resolve(standard(), tree)) == jax.tree.structure(tree)


# multipliers


def test_multipliers_become_floats():
    given = (
        ("a", True),
        ("b", 2),
        ("c", np.float32(0.5)),
        ("d", np.bool_(False)),
        ("e", np.ones(())),
    )
    found = resolve(given, tree_of(*"abcde"))
    assert found == {"a": 1.0, "b": 2.0, "c": 0.5, "d": 0.0, "e": 1.0}
    assert {type(value) for value in found.values()} == {float}


def test_a_multiplier_may_be_traced():
    tree = {"w": jnp.ones(2), "b": jnp.ones(2), "step": jnp.zeros((), int)}

    def total(multiplier):
        found = resolve((("w", multiplier), ("**", 1.0)), tree)
        return 3 * found["w"] + found["b"] + found["step"]

    assert jax.jit(total)(2.0) == 7.0
    assert jax.grad(total)(2.0) == 3.0
    np.testing.assert_array_equal(jax.vmap(total)(jnp.array([0.0, 1.0])), [1.0, 4.0])


def test_a_jax_scalar_is_passed_on_as_it_is():
    multiplier = jnp.asarray(0.25)
    assert resolve((("**", multiplier),), shaped()) is multiplier


def test_new_multipliers_do_not_meet_old_ones_in_the_memo():
    tree = tree_of("w", "b")
    assert resolve((("w", 1.0), ("**", 0.0)), tree) == {"w": 1.0, "b": 0.0}
    assert resolve((("w", 2.0), ("**", 3.0)), tree) == {"w": 2.0, "b": 3.0}


# leaves that are not floating

NOT_FLOATING = {
    "count": shaped((), jnp.int32),
    "kernel": shaped((2, 2), jnp.int8),
    "flag": shaped((2,), bool),
}


@pytest.mark.parametrize("given_rules", [standard(), (("**", 1.0),), ()])
def test_leaves_that_are_not_floating_never_decay(given_rules):
    tree = NOT_FLOATING | {"rng": jax.random.key(0)}
    assert set(by_path(given_rules, tree).values()) == {0.0}
    assert owners(given_rules, tree) == (-1,) * 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fn, jnp.complex64, np.float64])
def test_every_floating_dtype_decays(dtype):
    assert resolve((("**", 1.0),), {"w": jax.ShapeDtypeStruct((2,), dtype)}) == {"w": 1.0}


def test_an_own_rule_that_wins_only_leaves_that_cannot_decay_is_an_error():
    tree = {**NOT_FLOATING, "bias": shaped()}
    message = (
        "rule 'count' matches only leaves that are not floating, such as 'count'.*multiplier 0"
    )
    with pytest.raises(RuleError, match=message):
        resolve((("count", 0.5), CLOSED), tree)
    assert resolve((("count", 0.0), ("**", 1.0)), tree)["bias"] == 1.0
    assert resolve((("*", 0.5),), tree)["bias"] == 0.5


# strictness


@pytest.mark.parametrize(
    ("given_rules", "message"),
    [
        (
            (("Dens_0/kernel", 1.0), CLOSED),
            r"rule 'Dens_0/kernel' matches no parameter; did you mean \['Dense_0/kernel', 'kernel'",
        ),
        ((("/Dense_0/kernal", 1.0), CLOSED), r"did you mean \['Dense_0/kernel'"),
        ((("xyzxyz", 1.0), CLOSED), "rule 'xyzxyz' matches no parameter$"),
        ((("Kernel", 1.0), CLOSED), r"did you mean \['kernel'"),
        (
            ((re.compile("kernal$"), 1.0), CLOSED),
            r"rule re.compile\('kernal\$'\) matches no.*kernel",
        ),
        (((Norm, 1.0), CLOSED), "rule Norm matches no parameter; the containers here are dict$"),
        (((lambda leaf: False, 1.0), CLOSED), "rule '<lambda>' matches no parameter$"),
        (((("no", "not"), 1.0), CLOSED), r"rule \('no', 'not'\) matches no parameter$"),
        (
            (("*/bias", 0.0), ("bias", 1.0), CLOSED),
            "rule 'bias' never wins: earlier rules already claim all 1 parameters it matches",
        ),
        ((*standard(), ("kernel", 0.5)), "rule 'kernel' never wins"),
        ((("**", 0.0), ("kernel", 0.5)), "rule 'kernel' never wins"),
        ((("*", 1.0), ("**", 0.5), ("**", 0.0)), r"rule '\*\*' never wins"),
        (
            (("kernel", 1.0),),
            r"no rule matches: Dense_0/bias \(8,\); end the rules with \('\*\*', 0.\) or",
        ),
        ((), r"no rule matches: Dense_0/bias \(8,\), Dense_0/kernel \(4, 8\); end"),
        (((("**"), 1.0), ("**", 0.0)), None),
    ],
)
def test_rules_that_do_not_fit_the_tree_are_errors(given_rules, message):
    tree = {"Dense_0": {"kernel": shaped((4, 8)), "bias": shaped((8,))}}
    if message is None:
        assert owners(given_rules, tree) == (0, 0)
        return
    with pytest.raises(RuleError, match=message):
        resolve(given_rules, tree)
    with pytest.raises(RuleError, match=message):  # the memo keeps no failure for a success
        owners(given_rules, tree)


def test_at_most_five_unclaimed_parameters_are_named():
    with pytest.raises(RuleError, match=r"a \(2, 3\), .*e \(2, 3\), and 2 more; end the rules"):
        resolve((), tree_of(*"abcdefg"))


@pytest.mark.parametrize("closing", ["**", "/**"])
def test_a_closing_catch_all_may_be_idle(closing):
    assert resolve((("bias", 0.5), (closing, 0.0)), tree_of("bias")) == {"bias": 0.5}


def test_the_preset_may_be_idle():
    assert resolve((("**", 0.5), *standard()), tree_of("bias")) == {"bias": 0.5}


def test_holes_switch_off_the_checks_on_idle_rules():
    tree = {"kernel": shaped(), "bias": optax.MaskedNode()}
    assert resolve((("bias", 0.0), ("bias", 1.0), ("*", 2.0)), tree)["kernel"] == 2.0
    with pytest.raises(RuleError, match="no rule matches: kernel"):
        resolve((("bias", 0.0),), tree)


def test_a_leaf_that_is_no_array_is_named():
    with pytest.raises(TypeError, match=r"leaf 'mlp/act' is .*, not an array: filter the model"):
        resolve(standard(), {"mlp": {"act": jax.nn.relu}})
    with pytest.raises(TypeError, match=r"leaf 'w' is a float.*wrap it in jnp.asarray"):
        resolve(standard(), {"w": 1.0})


def test_a_rule_error_is_a_value_error():
    assert issubclass(RuleError, ValueError)


# malformed rules


def test_a_function_that_names_a_leaf_is_no_selector():
    """Any name is true: the rule would claim everything."""
    params = {"kernel": shaped((2, 2)), "bias": shaped((2,))}
    with pytest.raises(RuleError, match=r"rule .* must give True or False; got 'bias'"):
        resolve(((lambda leaf: leaf.name, 0.0), ("**", 1.0)), params)
    found = resolve(((lambda leaf: re.search("^b", leaf.name), 0.0), ("**", 1.0)), params)
    assert found == {"kernel": 1.0, "bias": 0.0}


@pytest.mark.parametrize(
    ("given_rules", "message"),
    [
        (
            {"bias": 0.0},
            r"`rules` must be a sequence of .* pairs; got a dict. Write tuple\(rules.items",
        ),
        (("bias", 0.0), r"got one bare pair \('bias', 0.0\). Write \(\('bias', 0.0\),\)"),
        (((Norm), True), "got one bare pair"),
        (lambda params: params, "got a function. A function of a leaf is a selector"),
        ("bias", "got a str. For instance"),
        (None, "got a NoneType"),
        (
            (("head/kernel", 0.5), standard()),
            r"a \(selector, multiplier\) pair, .*; got a tuple of rules. Write \*rules",
        ),
        (
            ("bias", "scale", "b"),
            r"every rule must be a \(selector, multiplier\) pair, .*; got 'bias'",
        ),
        ((("bias",),), r"pair, .*; got \('bias',\)"),
        (["bias", 0.0], r"got one bare pair \('bias', 0.0\)"),
        (((0.0, "bias"),), r"pair, such as \('bias', 0.0\); got \(0.0, 'bias'\)"),
        (((jnp.ones(()), "bias"),), r"pair, such as \(.bias., 0.0\); got \(Array"),
        (
            (("bias", "0.0"),),
            "the multiplier of rule 'bias' must be a finite number >= 0.* got '0.0'",
        ),
        ((("bias", -0.5),), "must be a finite number >= 0 .*got -0.5"),
        ((("bias", float("nan")),), "got nan"),
        ((("bias", float("inf")),), "got inf"),
        ((("bias", None),), "got None"),
        ((("bias", np.ones(3)),), "or a scalar array; got array"),
        ((("bias", jnp.ones(3)),), "or a scalar array; got Array"),
        ((("bias", 1j),), "got 1j"),
        ((("", 0.0),), "`rules`: the glob '' is empty; write '\\*\\*'"),
        ((("a//b", 0.0),), "has an empty segment"),
        ((("a**", 0.0),), "must stand alone"),
        ((("[a", 0.0),), "malformed"),
        ((((), 0.0),), r"a selector must be a glob.*non-empty tuple of these; got \(\)"),
        ([[["bias", 3.0], 0.0]], "a selector must be .*got 3.0"),
        (((None, 0.0),), "a selector must be .*got None"),
        (((("bias", ""), 0.0),), "the glob '' is empty"),
    ],
)
def test_malformed_rules_are_errors_before_any_tree_is_seen(given_rules, message):
    for function in (
        rules.check_rules,
        mask,
        lambda r: resolve(r, tree_of("bias")),
    ):
        with pytest.raises(RuleError, match=message):
            function(given_rules)


def test_the_standard_rules_check_their_multiplier():
    with pytest.raises(
        RuleError, match=r"the multiplier of rule embedding must be a finite number >= 0.*got -1.0"
    ):
        standard(embeddings=-1.0)


def test_checked_rules_keep_their_selectors():
    assert rules.check_rules((("bias", 0), (Norm, True))) == (("bias", 0.0), (Norm, 1.0))


# the preset on real models: what decays, what is a table; the rest does not decay

ATTENTION = ("key", "out", "query", "value")
TRANSFORMER = {"attn/" + part for part in ATTENTION} | {"fc1", "fc2"}
MODELS = {
    "linen_transformer": (
        models.linen_transformer,
        {f"block_0/{part}/kernel" for part in TRANSFORMER} | {"head/kernel"},
        {"wte/embedding"},
    ),
    "linen_scanned": (
        lambda: models.linen_transformer(scanned=True),
        {f"blocks/{part}/kernel" for part in TRANSFORMER} | {"head/kernel"},
        {"wte/embedding"},
    ),
    "linen_vmapped": (models.linen_vmapped, {"kernel"}, set()),
    "linen_boxed": (models.linen_boxed, {"Dense_0/kernel", "value/kernel"}, set()),
    "linen_conv": (
        models.linen_conv,
        {f"params/{part}/kernel" for part in ("Conv_0", "depthwise", "local")},
        set(),
    ),
    "linen_weight_norm": (models.linen_weight_norm, {"wn_dense/kernel"}, set()),
    "linen_experts": (models.linen_experts, {"router/kernel", "wi", "wo"}, set()),
    "linen_recurrent": (
        models.linen_recurrent,
        {f"cell/{gate}/kernel" for gate in ("hn", "hr", "hz", "in", "ir", "iz")},
        set(),
    ),
    "haiku_model": (
        models.haiku_model,
        {f"multi_head_attention/{part}/w" for part in ("key", "linear", "query", "value")}
        | {"mlp/~/linear_0/w", "mlp/~/linear_1/w"},
        {"embed/embeddings"},
    ),
    "haiku_stack": (models.haiku_stack, {"__layer_stack_no_per_layer/ff/w"}, set()),
    "equinox_model": (
        models.equinox_model,
        {f"attn/{part}_proj/weight" for part in ("query", "key", "value", "output")}
        | {"conv/weight", "gru/weight_hh", "gru/weight_ih", "mlp/layers/0/weight"}
        | {"mlp/layers/1/weight", "norm_of_linear/body/weight", "patch_embed/weight"}
        | {"wn/layer/weight"},
        {"embed/weight"},
    ),
    "equinox_batch_norm": (models.equinox_batch_norm, set(), set()),
    "equinox_stack": (models.equinox_stack, {"seq/layers/0/weight"}, set()),
}
NNX_MODELS = {
    "nnx_model": (
        models.nnx_model,
        {f"blocks/0/attn/{part}/kernel" for part in ATTENTION} | {"lora/lora_a", "lora/lora_b"},
        {"embed/embedding"},
    ),
    "nnx_stack": (models.nnx_stack, {"stack/up/kernel"}, set()),
}


def check_preset(tree, decay, tables):
    found = by_path(standard(embeddings=0.5), tree)
    assert {path for path, m in found.items() if m == 1.0} == decay
    assert {path for path, m in found.items() if m == 0.5} == tables
    assert {path for path, m in by_path(standard(), tree).items() if m != 0.0} == decay
    standard_strict = standard(strict=True)  # nothing had to be guessed
    assert by_path(standard_strict, tree) == by_path(standard(), tree)


@pytest.mark.parametrize("name", MODELS)
def test_the_preset_is_right_on_modules(name):
    pytest.importorskip({"linen": "flax"}.get(name.split("_")[0], name.split("_")[0]))
    build, decay, tables = MODELS[name]
    check_preset(build(), decay, tables)


@pytest.mark.parametrize("name", NNX_MODELS)
def test_the_preset_is_right_on_nnx_at_init_and_at_update(name):
    nnx = pytest.importorskip("flax.nnx")
    build, decay, tables = NNX_MODELS[name]
    state = nnx.state(build())
    check_preset(state, decay, tables)
    check_preset(models.as_pure(state), decay, tables)


# the preset on names: path, shape, siblings beside it -> kind


def words(text):
    return text.split()


NAMES = [
    ("batch_stats/bn/anything", (8, 8), "running state"),
    ("bn/running_mean", (8,), "running state"),
    ("bn/var", (3, 8), "running state"),
    ("weight", (), "scalar"),
    ("in_proj_bias", (2, 3), "bias"),
    ("bias_n", (2, 3), "bias"),
    ("biases", (2, 3), "bias"),
    ("beta", (2, 3), "bias"),
    ("norm/offset", (1, 1, 8), "bias"),
    ("b", (8,), "bias"),
    ("b1", (8,), "bias"),
    ("b+w", (3, 8), "bias"),
    ("bq+wq", (2, 4), "bias"),
    ("B1+W1", (3, 8), "bias"),
    ("b+x", (3, 8), "bias"),
    ("bias/kernel", (3, 8), "weight"),
    ("gamma", (3, 8), "norm/gain"),
    ("ls1/gamma_1", (3, 8), "norm/gain"),
    ("q_scale", (3, 8), "norm/gain"),
    ("gain", (3, 8), "norm/gain"),
    ("negative_slope", (3, 8), "norm/gain"),
    ("multiscale", (3, 8), "guess: n-D"),
    ("film/scale/kernel", (3, 8), "weight"),
    *[
        (f"{parent}/weight", (3, 8), "norm/gain")
        for parent in words(
            "norm ln bn gn layernorm layer_norm rmsnorm batchnorm groupnorm ln_1 norm1 "
            "final_norm downsample_bn LayerNorm_0 RMSNorm blocks/norms/0 ln_f"
        )
    ],
    *[
        (f"{parent}/weight", (3, 8), "weight")
        for parent in words(
            "normalizer unnormalized aln_head PreNorm_0/fc fc lm_head patch_embed "
            "patch_embeddings pos_proj embedding_projection post_mix blend"
        )
    ],
    *[
        (name, (3, 8), "norm/gain")  # stacked for a scan
        for name in words(
            "attn_norm attention_norm norm_1 input_layernorm ln1 ln_f attention_norm_weight norm_w "
            "input_layernorm/w ln_2/w ln_2/g rmsnorm/g"
        )
    ],
    ("ada_norm/kernel", (3, 8), "weight"),
    *[
        (f"{parent}/w", (3, 8), "weight")
        for parent in words("ada_norm norm_linear ln_proj prenorm_mlp norm_fc norm_out")
    ],
    ("norm_kernel", (3, 8), "weight"),
    ("norm_proj", (3, 8), "weight"),
    ("normalizer", (3, 8), "guess: n-D"),
    ("head/w", (3, 8), "weight"),
    ("head/g", (3, 8), "guess: n-D"),
    ("layers/0/weight", (8,), "norm/gain"),
    ("layers/0/weight", (8, 8), "weight"),
    *[
        (name, (5, 8), "position")
        for name in words(
            "pos_embedding pos_embs rel_pos_h position_table wpe abs_pos_embed "
            "relative_position_bias_table bias_table posEmbed pos_emb/embedding wpe/embedding "
            "position_embeddings/weight pos_embed/weight PosEmbed_0/table"
        )
    ],
    ("pos_embed/kernel", (5, 8), "weight"),
    ("pos_embed/w", (5, 8), "weight"),
    ("pos_kernel", (5, 8), "weight"),
    ("post_embed/embedding", (5, 8), "embedding"),
    ("positive", (5, 8), "guess: n-D"),
    ("cls", (1, 8), "token"),
    ("mask_token", (1, 8), "token"),
    ("register_tokens", (4, 8), "token"),
    ("probe", (1, 8), "token"),
    ("attn/temperature", (4, 1), "norm/gain"),
    ("A_log", (8, 4), "rate/log"),
    ("dt_bias", (8, 4), "bias"),
    ("A", (8, 4), "rate/log"),
    ("D", (8, 4), "rate/log"),
    ("A+B+C", (8, 4), "rate/log"),
    ("A+B+D", (8, 4), "rate/log"),
    ("A+B+log_dt", (8, 4), "rate/log"),
    ("A+B", (8, 4), "weight"),
    ("B+A", (8, 4), "weight"),
    ("A+B+alpha", (8, 4), "weight"),
    ("lora_A", (8, 4), "weight"),
    *[
        (name, (10, 8), "embedding")
        for name in words(
            "embedding embed/embeddings token_embedding tok_embeddings/weight emb/weight "
            "wte/weight embed/weight embedder/input_embedding word_embeddings/weight wte"
        )
    ],
    *[
        (name, (3, 8), "weight")
        for name in words(
            "kernel w weights w_in weight_hh gate_kernel W1 wq wi_0 W in_proj_weight "
            "embed/kernel embed/w patch_embedding"
        )
    ],
    ("w", (8,), "weight"),
    ("mixer", (3, 8), "guess: n-D"),
    ("theta", (8,), "guess: 1-D"),
    ("0", (8, 8), "guess: n-D"),
    ("", (8,), "guess: 1-D"),
]


@pytest.mark.parametrize(("entry", "shape", "kind"), NAMES)
def test_the_preset_knows_names(entry, shape, kind):
    path, *siblings = entry.split("+")
    tree = shaped(shape)
    if path:
        tree = {path: tree} | {name: shaped((8, 8)) for name in siblings}
    assert labels(standard(), tree)[path] == kind


@pytest.mark.parametrize("parent", ["norm", "embed", "head", "block"])
@pytest.mark.parametrize(
    ("container", "kind"),
    [
        ("Linear", "weight"),
        ("Conv2d", "weight"),
        ("ConvTranspose", "weight"),
        ("MyDense", "weight"),
        ("PatchEmbed", "weight"),
        ("LayerNorm", "norm/gain"),
        ("Embedding", "embedding"),
    ],
)
def test_the_container_decides_for_a_weight_before_the_parent_does(container, kind, parent):
    outer = namedtuple("PreNorm", parent)
    tree = outer(namedtuple(container, "weight")(shaped()))
    assert labels(standard(), tree) == {f"{parent}/weight": kind}


def test_a_linear_weight_in_a_position_module_is_a_matrix():
    eqx = pytest.importorskip("equinox")
    tree = {"pos_embed": eqx.nn.Linear(2, 2, key=models.KEY)}
    assert labels(standard(), tree)["pos_embed/weight"] == "weight"


def test_embeddings_are_one_switch():
    tree = {"wte": {"embedding": shaped()}, "wpe": {"embedding": shaped()}}
    assert by_path(standard(embeddings=1.0), tree) == {"wte/embedding": 1.0, "wpe/embedding": 0.0}
    assert set(by_path(standard(), tree).values()) == {0.0}


def test_strict_refuses_to_guess():
    tree = {"kernel": shaped(), "mixer": shaped(), "theta": shaped((2,))}
    with pytest.raises(RuleError, match=r"no rule matches: mixer \(2, 3\), theta \(2,\); end the"):
        resolve(standard(strict=True), tree)
    assert resolve((*standard(strict=True), ("**", 0.0)), tree)["kernel"] == 1.0


# rules are data


def test_rules_are_hashable_comparable_data():
    assert standard() == standard()
    assert hash(standard()) == hash(standard())
    assert standard(embeddings=1.0) != standard()
    assert not callable(standard())
    assert all(isinstance(kind, kinds.Kind) for kind, _ in standard())


def test_a_kind_is_a_function_of_a_leaf():
    (leaf,) = paths.leaves({"bias": shaped()})
    assert [kind.name for kind in kinds.KINDS if kind(leaf)] == ["bias"]


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("head/*", "head/*"),
        (re.compile("a|b"), "a|b"),
        (Norm, "Norm"),
        (("bias", Norm, re.compile("x")), "bias, Norm, x"),
        (kinds.EMBEDDING, "embedding"),
        (test_rules_are_hashable_comparable_data, "test_rules_are_hashable_comparable_data"),
    ],
)
def test_a_selector_has_a_label(selector, text):
    assert rules.label(selector) == text


def test_guesses_are_marked():
    guesses = [rules.label(selector) for selector, _ in standard() if rules.is_guess(selector)]
    assert guesses == ["guess: 1-D", "guess: n-D"]
    assert not rules.is_guess("bias")


# inside optax, nnx and transformations of jax


def trivial(given_rules):
    """Decay by a tenth of the multiplier; resolves at init and at every update."""

    def init(params):
        resolve(given_rules, params)
        return optax.EmptyState()

    def update(updates, state, params):
        found = resolve(given_rules, params)
        return jax.tree.map(lambda u, p, m: u - 0.1 * m * p, updates, params, found), state

    return optax.GradientTransformation(init, update)


PARAMS = {"dense": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}}


def decayed_once(optimizer, params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.jit(optimizer.update)(zeros, optimizer.init(params), params)[0]


def test_injected_hyperparams_leave_rules_static():
    def factory(learning_rate, rules):
        return optax.chain(trivial(rules), optax.scale(learning_rate))

    optimizer = optax.inject_hyperparams(factory)(learning_rate=2.0, rules=standard())
    assert list(optimizer.init(PARAMS).hyperparams) == ["learning_rate"]
    updates = decayed_once(optimizer, PARAMS)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.2)
    np.testing.assert_array_equal(updates["dense"]["bias"], 0.0)


def test_a_mask_is_true_where_the_multiplier_is_not_zero():
    found = mask((("bias", 0.0), ("**", 0.5)))(PARAMS)
    assert found == {"dense": {"bias": False, "kernel": True}}


def test_a_mask_works_in_optax():
    optimizer = optax.adamw(1.0, weight_decay=0.1, mask=mask(standard()))
    updates = decayed_once(optimizer, PARAMS)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1)
    np.testing.assert_array_equal(updates["dense"]["bias"], 0.0)


def test_a_mask_taken_for_a_schedule_says_so():
    factory = optax.inject_hyperparams(optax.adamw)
    with pytest.raises(RuleError, match=r"called with a step count.*static_args=\(\"mask\",\)"):
        factory(1.0, weight_decay=0.1, mask=mask(standard())).init(PARAMS)
    static = optax.inject_hyperparams(optax.adamw, static_args=("mask",))
    updates = decayed_once(static(1.0, weight_decay=0.1, mask=mask(standard())), PARAMS)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1)
    np.testing.assert_array_equal(updates["dense"]["bias"], 0.0)


def test_a_mask_needs_concrete_multipliers():
    with pytest.raises(RuleError, match="a mask cannot hold traced multipliers"):
        jax.jit(lambda m: mask((("**", m),))(PARAMS)["dense"]["bias"])(1.0)


def test_rules_work_inside_masked():
    rules_of_both = (("bias", 0.0), ("kernel", 1.0))
    keep = {"dense": {"kernel": True, "bias": False}}
    updates = decayed_once(optax.masked(trivial(rules_of_both), keep), PARAMS)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1)
    np.testing.assert_array_equal(updates["dense"]["bias"], 0.0)


def test_rules_work_inside_partition():
    rules_of_both = (("bias", 2.0), ("kernel", 1.0))
    groups = {
        "a": trivial(rules_of_both),
        "b": optax.chain(trivial(rules_of_both), optax.scale(3.0)),
    }
    optimizer = optax.partition(groups, {"dense": {"kernel": "a", "bias": "b"}})
    updates = decayed_once(optimizer, PARAMS)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1)
    np.testing.assert_allclose(updates["dense"]["bias"], -0.6)


def test_an_nnx_optimizer_decays_the_right_parameters():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.value = nnx.Linear(2, 2, rngs=rngs, bias_init=nnx.initializers.ones)
            self.norm = nnx.LayerNorm(2, rngs=rngs)

    model = Model(nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    given = (("value/kernel", 2.0), *standard())
    optimizer = nnx.Optimizer(model, trivial(given), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    after = nnx.to_pure_dict(nnx.state(model))
    np.testing.assert_allclose(after["value"]["kernel"], 0.8 * before["value"]["kernel"], rtol=1e-6)
    for module, name in (("value", "bias"), ("norm", "scale"), ("norm", "bias")):
        np.testing.assert_array_equal(after[module][name], before[module][name])


def test_an_equinox_model_decays_the_right_parameters():
    eqx = pytest.importorskip("equinox")
    model = eqx.filter(eqx.nn.MLP(2, 2, 4, 1, key=models.KEY), eqx.is_inexact_array)
    updates = decayed_once(trivial(((eqx.nn.Linear, 1.0), ("**", 0.0))), model)
    np.testing.assert_allclose(updates.layers[0].bias, -0.1 * model.layers[0].bias, rtol=1e-6)
    updates = decayed_once(trivial(standard()), model)
    np.testing.assert_allclose(updates.layers[0].weight, -0.1 * model.layers[0].weight, rtol=1e-6)
    np.testing.assert_array_equal(updates.layers[0].bias, 0.0)


# the memo


def counted(calls):
    def selector(leaf):
        calls.append(leaf.path)
        return leaf.ndim == 2

    return selector


def test_rules_are_asked_once_per_tree_of_shapes():
    calls = []
    given_rules = ((counted(calls), 1.0), ("**", 0.0))
    tree = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    for _ in range(3):
        assert resolve(given_rules, tree) == {"w": 1.0, "b": 0.0}
        tree = jax.tree.map(lambda x: x + 1, tree)
    assert calls == ["b", "w"]


def as_traced(array):
    seen = []
    jax.eval_shape(seen.append, array)
    return seen[0]


CONVERSIONS = {
    "jax": jnp.asarray,
    "numpy": np.asarray,
    "shapes": lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype),
    "traced": as_traced,
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_a_new_shape_or_dtype_is_a_new_question(convert):
    given_rules = (((lambda leaf: leaf.ndim == 2, "nothing"), 1.0), ("**", 0.5))
    hole = optax.MaskedNode()  # switches off the check on idle rules
    for _ in range(2):
        for shape, dtype, expected in (
            ((2, 2), np.float32, 1.0),
            ((2,), np.float32, 0.5),
            ((2, 2), np.int32, 0.0),
        ):
            tree = {"w": convert(np.ones(shape, dtype)), "hole": hole}
            assert resolve(given_rules, tree)["w"] == expected


@jax.tree_util.register_pytree_node_class
class Noted:
    def __init__(self, child, note):
        self.child, self.note = child, note

    def tree_flatten(self):
        return (self.child,), self.note

    @classmethod
    def tree_unflatten(cls, note, children):
        return cls(*children, note)


class Odd(list):
    def __eq__(self, other):
        raise TypeError("no comparison")

    __ne__ = __eq__
    __hash__ = None


@pytest.mark.parametrize("note", [lambda: np.ones(2), lambda: Odd([1])], ids=["array", "odd"])
def test_a_treedef_that_cannot_be_compared_is_resolved_without_memo(note):
    one, other = ({"x": Noted(jnp.ones(2), note())} for _ in range(2))
    with pytest.raises((TypeError, ValueError)):
        jax.tree.structure(one) == jax.tree.structure(other)  # noqa: B015
    for tree in (one, other):
        assert resolve((("**", 0.5),), tree)["x"].child == 0.5


def test_a_selector_that_cannot_be_hashed_is_resolved_without_memo():
    class Selector:
        __hash__ = None

        def __call__(self, leaf):
            return leaf.name == "w"

    for _ in range(2):
        assert resolve(((Selector(), 0.5), ("**", 1.0)), tree_of("w", "b")) == {"w": 0.5, "b": 1.0}


def test_the_memo_is_bounded():
    for size in range(1, 600):
        resolve((("**", 0.5),), {"w": jax.ShapeDtypeStruct((size,), F32)})
    assert len(rules._MEMO) <= rules._MEMO_SIZE


def test_the_result_may_be_changed_by_its_owner():
    tree = tree_of("w")
    resolve((("**", 0.5),), tree)["w"] = 7.0
    assert resolve((("**", 0.5),), tree) == {"w": 0.5}


def test_nothing_of_the_rules_is_in_the_compiled_program():
    def scaled(tree):
        return jax.tree.map(lambda m, x: m * x, resolve(standard(), tree), tree)

    assert len(jax.make_jaxpr(scaled)(PARAMS).eqns) == 2


def test_a_rule_for_what_is_filtered_out_is_no_error_and_a_misspelt_one_is():
    """Equinox puts None where a leaf is frozen."""
    trainable = {"conv": {"weight": None, "bias": shaped((3,))}, "head": {"weight": shaped()}}
    for selector in ("conv/weight", re.compile("^conv/w"), ("none", "conv/weight")):
        found = resolve(((selector, 0.5), ("**", 1.0)), trainable)
        assert found["head"]["weight"] == 1.0
    for selector in ("conv/wieght", re.compile("^conv/x"), kinds.Kind):
        with pytest.raises(RuleError, match="matches no parameter"):
            resolve(((selector, 0.5), ("**", 1.0)), trainable)


# lists, as configurations have them


@pytest.mark.parametrize(
    "given_rules",
    [
        [("bias", 0.0), ("**", 1.0)],
        [["bias", 0.0], ["**", 1.0]],
        (["bias", 0.0], ["**", 1.0]),
        [[["bias", "b"], 0.0], ["**", 1.0]],
        [*standard()],
    ],
)
def test_any_sequence_of_pairs_is_taken(given_rules):
    tree = tree_of("bias", "kernel")
    assert resolve(given_rules, tree) == mask(given_rules)(tree) == {"bias": 0.0, "kernel": 1.0}
    assert hash(rules.check_rules(given_rules)) == hash(rules.check_rules(given_rules))


def named_selector(leaf):
    return False


class Asked:
    def __call__(self, leaf):
        return False


@pytest.mark.parametrize(
    ("selector", "shown"),
    [
        (named_selector, "'named_selector'"),
        (functools.partial(named_selector), "'partial'"),
        (Asked(), "'Asked'"),
        (("heed", named_selector), "('heed', 'named_selector')"),
        (re.compile("he+d"), "re.compile('he+d')"),
    ],
)
def test_a_message_names_the_selector_and_no_address(selector, shown):
    with pytest.raises(RuleError, match=rf"^rule {re.escape(shown)} matches no parameter"):
        resolve(((selector, 0.5), CLOSED), tree_of("bias"))
