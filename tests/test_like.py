"""Each project's rule decides what the project decides, on real names and shapes."""

import re

import jax
import jax.numpy as jnp
import project_rules
import public_trees
import pytest

import wdjax
from wdjax import like
from wdjax.rules import RuleError


def tree_of(table):
    """Torch's flat names and shapes, and the names that decay."""
    rows = [line.split() for line in table.strip().splitlines()]
    shapes = {name: tuple(map(int, re.findall(r"\d+", shape))) for name, shape, _ in rows}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return tree, {name: mark == "+" for name, _, mark in rows}


def decays(rules, tree):
    return jax.tree.map(bool, wdjax.resolve(rules, tree))


@pytest.mark.parametrize("model", project_rules.TRANSFORMERS)
def test_hugging_face(model):
    layer_norms, table = project_rules.TRANSFORMERS[model]
    tree, expected = tree_of(table)
    assert decays(like.hugging_face(layer_norms=layer_norms), tree) == expected


@pytest.mark.parametrize("model", project_rules.TIMM)
def test_timm(model):
    no_weight_decay, table = project_rules.TIMM[model]
    tree, expected = tree_of(table)
    assert decays(like.timm(no_weight_decay_list=no_weight_decay), tree) == expected


def test_nanogpt():
    tree, expected = tree_of(project_rules.NANOGPT)
    assert decays(like.nanogpt(), tree) == expected


@pytest.mark.parametrize("flag", project_rules.MEGATRON)
def test_megatron(flag):
    tree, expected = tree_of(project_rules.MEGATRON[flag])
    assert decays(like.megatron(apply_wd_to_qk_layernorm=flag), tree) == expected


# big_vision and MaxText read paths of flax, joined by slashes.

(VIT,) = (text for title, text in public_trees.MODELS.items() if title.startswith("ViT"))


def whole_match(patterns):
    """big_vision: the multiplier of the first pattern that is the whole name."""

    def multiplier(name):
        found = [mult for pattern, mult in patterns if re.fullmatch(pattern, name)]
        return found[0] if found else 0.0

    return multiplier


@pytest.mark.parametrize(
    ("rules", "multiplier"),
    [
        (like.big_vision(), whole_match([(".*/kernel$", 1.0)])),
        (
            like.big_vision(wd_mults=[("h.*el", 0.5), (".*kernel|cls", 2.0)]),
            whole_match([("h.*el", 0.5), (".*kernel|cls", 2.0)]),
        ),
        (like.maxtext(), lambda name: 1.0),
        (
            like.maxtext(adamw_mask=["bias", ".*norm", ".*ln.*", "^cls"]),
            lambda name: float(not re.search("bias|norm|ln|^cls", name)),
        ),
    ],
    ids=["big_vision", "big_vision with mults", "maxtext", "maxtext with a mask"],
)
def test_rules_of_patterns(rules, multiplier):
    tree = public_trees.nested(public_trees.listed(VIT)) | {"blend": {"ln": {"w": jnp.ones(2)}}}
    named = jax.tree_util.tree_flatten_with_path(wdjax.resolve(rules, tree))[0]
    names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in named]
    assert {name: m for name, (_, m) in zip(names, named, strict=True)} == {
        name: multiplier(name) for name in names
    }


def test_a_layer_norm_is_known_by_its_class():
    eqx = pytest.importorskip("equinox")
    found = wdjax.resolve(like.hugging_face(), [eqx.nn.LayerNorm(2), eqx.nn.RMSNorm(2)])
    assert (found[0].weight, found[0].bias) == (0.0, 0.0)
    assert found[1].weight == 1.0  # transformers looks for LayerNorm, and for names


@pytest.mark.parametrize(
    "rules",
    [
        like.hugging_face(layer_norms=["ln_9/*"]),
        like.timm(no_weight_decay_list=["pos_embd"]),
        like.big_vision(),  # no slash before the kernel
        like.maxtext(adamw_mask=["layernorm"]),
    ],
)
def test_what_matches_nothing_is_an_error(rules):
    with pytest.raises(RuleError, match="matches no parameter"):
        wdjax.resolve(rules, {"kernel": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (like.hugging_face, "layer_norms"),
        (like.timm, "no_weight_decay_list"),
        (like.maxtext, "adamw_mask"),
    ],
)
def test_one_text_is_no_list(function, name):
    with pytest.raises(TypeError, match=rf"`{name}` must be a list of names; got 'bias'\. Write"):
        function(**{name: "bias"})
