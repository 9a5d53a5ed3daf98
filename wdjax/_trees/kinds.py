"""Kinds of parameters, told by the words of their names and, as a last resort, by their shapes.

A name is a compound noun: the last word that the vocabulary knows decides. `in_proj_bias` is a bias
and `norm_mlp` an MLP. A name that says little, such as `weight`, asks for the class that holds the
leaf, then for the parent's name. What the words leave open is guessed by shape.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

from wdjax._trees.paths import Leaf


@dataclasses.dataclass(frozen=True)
class Kind:
    """A selector of the preset: a kind of parameter, recognized by name, container and shape.

    Args:
        name: what the audit table shows.
        test: function of a `Leaf`.
        guess: True if only the shape decides.

    Example:
        >>> [kind.name for kind in KINDS][:4]
        ['running state', 'scalar', 'bias', 'norm/gain']
    """

    name: str
    test: Callable[[Leaf], bool] = dataclasses.field(repr=False)
    guess: bool = False

    def __call__(self, leaf: Leaf) -> bool:
        """Tell whether the leaf is of this kind."""
        return self.test(leaf)


# Words in lower case, digits aside; a capital alone, as in `A_log`, stays one. First row that fits.
_VOCABULARY = {
    "norm": r".*norms?|.*normali[sz]ation|ln|bn|gn",
    "bias": r"bias|biases|betas?|offsets?|shifts?|b[a-z]?",
    "gain": r"(layer)?scales?|scaling|gammas?|gains?|alphas?|slopes?|skip",
    "position": r"pos(?!t|es?$|itiv|s).*|wpe|rel|relpos.*|relative|rope|rotary|freqs?|alibi",
    "token": r"cls|tokens?|probes?|latents?|sinks?|prompts?|init",
    "rate": r"[ABDP]|log|dt|delta|lambdas?|decay|rates?",
    "table": r"emb.*|wte|tables?|codebooks?|vocab.*",
    "matrix": r"C|proj.*|linear|dense|conv.*|mlp|ffn?|fc|heads?|out|logits?|modulat.*|mixing|"
    r"einsum|coefs?|lora",
    "kernel": r"kernels?",
    "weight": r"w[a-z]?|weights?",
}
_WHOLE_NAMES = {
    "temperature": "gain",
    **{"weight_g": "gain", "original0": "gain"},  # torch's two ways of a weight norm
}
_KIND = {  # of a row, where they are not called the same
    "norm": "norm/gain",
    "divided": "norm/gain",
    "gain": "norm/gain",
    "rate": "rate/log",
    "table": "embedding",
    "matrix": "weight",
    "kernel": "weight",
}

# Words that turn the meaning of another one.
_OF_POSITIONS = re.compile(rf"{_VOCABULARY['position']}|bias")  # a table
_OF_NUMBERS = re.compile(  # a table that is none: what it embeds has no index
    r"patch|time|timesteps?|t|sigma|noise|cond.*|pixels?|image|audio|feat.*"
)
_ADAPTIVE = re.compile(r"ada.*|cond.*|film|modulat.*")  # a norm whose gain comes out of a matrix
_OF_MATRICES = re.compile(r"weight|spectral")  # a norm that a matrix is divided by

# Names that say nothing: places in a list, wrappers around an array.
_WRAPPER = re.compile(
    r"~|\d+|args|kwargs|default|tree|values?|data|((data|raw)_)?array|original1?|parametrizations"
)
_WRAPPER_CLASS = re.compile(r".*(Array|Value|Variable|Parameter|Param|Box)")

_STATE = re.compile(r"mean|var|(running|moving)_.+")
_BESIDE_LORA = re.compile(
    r"alpha|base(_layer|_module)?|bias|dropout|kernel|linear|r|rank|scal(e|ing)|w|weight"
)
_OTHER_FACTOR = str.maketrans("abAB", "baBA")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@functools.lru_cache(maxsize=4096)
def told(leaf: Leaf) -> str:
    """Tell the kind of a leaf by its name and by what is around it.

    Args:
        leaf: of a tree.

    Returns:
        The name of a kind, or "" where the names do not tell.

    Example:
        >>> from wdjax._trees.paths import leaves
        >>> import numpy as np
        >>> tree = {"in_proj_bias": np.ones((2, 3)), "mixer": np.ones((2, 3))}
        >>> [told(leaf) for leaf in leaves(tree)]
        ['bias', '']
    """
    if _is_running_state(leaf):
        return "running state"
    if leaf.ndim == 0:
        return "scalar"
    row = "weight" if _is_factor(leaf) else _row_of_a_leaf(leaf)
    return _KIND.get(row, row)


def _row_of_a_leaf(leaf: Leaf) -> str:
    names = [part for part in reversed(leaf.parts) if not _WRAPPER.fullmatch(part)]
    name, parent = (*names, "", "")[:2]
    row, is_one_word = _row(name), len(_words(name)) == 1
    if row in ("weight", "kernel") and is_one_word:
        return _row_of_a_weight(leaf, name, parent)
    if row == "table" and is_one_word and _row(parent) == "position":
        return "position"
    if row == "weight" and leaf.ndim == 1:
        return "gain"
    if row == "matrix" and (leaf.ndim == 1 or leaf.name.isdigit()):
        return ""  # the bias of [W, b], perhaps
    if _words(name) == ["B"] and any(other[0] in "wW" for other in leaf.siblings):
        return "bias"
    around = (_row(_holder(leaf)), _row(parent))
    return row or next((r for r in around if r in ("norm", "divided", "position")), "")


def _row_of_a_weight(leaf: Leaf, name: str, parent: str) -> str:
    """What a leaf called `weight`, `w` or `kernel` is: that depends on whose it is."""
    holder, above = _row(_holder(leaf)), _row(parent)
    has_bias = not leaf.siblings.isdisjoint({"bias", "b"})
    if name != "weight":  # in a linear layer, whatever this is called, but for `scale.weights`
        is_scale = above in ("gain", "bias") and len(_words(parent)) == 1 and not has_bias
        return above if above == "norm" or (is_scale and name != "kernel") else "weight"
    if holder in ("matrix", "norm", "table", "position"):
        return "position" if holder == "table" and above == "position" else holder
    if above == "norm" or leaf.ndim == 1:
        return "norm"
    if parent == "shared":  # by an encoder and a decoder
        return "table"
    return above if above in ("table", "position", "token", "bias") and not has_bias else "weight"


def _holder(leaf: Leaf) -> str:
    """The class name of the immediate container: an outer PreNorm says nothing about a Linear."""
    names = (cls.__name__ for cls in reversed(leaf.types))
    return next((name for name in names if not _WRAPPER_CLASS.fullmatch(name)), "")


def _is_running_state(leaf: Leaf) -> bool:
    return (
        bool(_STATE.fullmatch(leaf.name))
        or leaf.parts[:1] == ("batch_stats",)
        or any(cls.__name__ == "StateIndex" for cls in leaf.types)
    )


def _is_factor(leaf: Leaf) -> bool:
    """Whether a leaf is LoRA's A or B: a state space model has C, D or a time step beside them."""
    if leaf.ndim < 2 or leaf.name[-1:] not in {*"abAB"}:
        return False
    twin = leaf.name[:-1] + leaf.name[-1].translate(_OTHER_FACTOR)
    others = leaf.siblings - {twin}
    is_pair = twin in leaf.siblings and all(map(_BESIDE_LORA.fullmatch, others))
    return is_pair or "lora" in _words(leaf.name)


@functools.lru_cache(maxsize=4096)
def _row(name: str) -> str:
    """The row of the vocabulary that a name belongs to, or ""."""
    words = _words(name)
    rows = [row for word in reversed(words) if (row := _row_of_a_word(word))]
    row = next((row for row in rows if row != "weight"), rows[0] if rows else "")
    if row == "norm" and any(map(_ADAPTIVE.fullmatch, words)):
        row = ""
    if row == "norm" and any(map(_OF_MATRICES.fullmatch, words)):
        row = "divided"
    if row == "table" and any(map(_OF_POSITIONS.fullmatch, words)):
        row = "position"
    if row == "table" and any(map(_OF_NUMBERS.fullmatch, words)):
        row = "matrix"
    return _WHOLE_NAMES.get(name, row)


def _row_of_a_word(word: str) -> str:
    return next((row for row, words in _VOCABULARY.items() if re.fullmatch(words, word)), "")


def _words(name: str) -> list[str]:
    """The words of a snake_case or CamelCase name; `b_out` is the b of the output, so b is last."""
    words = _WORD.findall(name)
    first = [word if word in {*"ABCDP"} else word.lower() for word in words[:1]]
    rest = [word.lower() for word in words[1:]]
    if first not in (["b"], ["B"]):
        return first + rest
    return rest if rest[-1:] == ["w"] else rest + first  # `b_w` is the w of b


@dataclasses.dataclass(frozen=True)
class _Told:
    """Whether the names say that a leaf is of this kind."""

    kind: str

    def __call__(self, leaf: Leaf) -> bool:
        return told(leaf) == self.kind


def _is_vector(leaf: Leaf) -> bool:
    """At most one axis; in a (1, 1, D) with a name of its own only D counts."""
    has_name = leaf.name and not leaf.name.isdigit()
    return sum(size != 1 for size in leaf.shape) <= 1 if has_name else leaf.ndim <= 1


def _is_anything(leaf: Leaf) -> bool:
    return True


KINDS = tuple(
    Kind(name, _Told(name))
    for name in (
        "running state",
        "scalar",
        "bias",
        "norm/gain",
        "position",
        "token",
        "rate/log",
        "embedding",
        "weight",
    )
)
EMBEDDING, WEIGHT = KINDS[-2:]
GUESSED_VECTOR = Kind("guess: 1-D", _is_vector, guess=True)
GUESSED_MATRIX = Kind("guess: n-D", _is_anything, guess=True)
