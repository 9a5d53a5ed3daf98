"""Kinds of parameters, recognised by name, container and, as a last resort, by shape.

Names decide; for a leaf called `weight` the class of its container does, then its parent's name.
The order matters: a leaf is of the first kind in `KINDS` that fits.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

from wdjax._trees.paths import Leaf


@dataclasses.dataclass(frozen=True)
class Kind:
    """A selector of the preset: a kind of parameter, recognised by name, container and shape.

    Args:
        name: what the audit table shows.
        test: function of a `Leaf`.
        guess: True if only the shape decides.

    Example:
        >>> [kind.name for kind in KINDS][:4]
        ['running state', 'scalar', 'bias', 'norm/gain']
    """

    name: str
    test: Callable[[Leaf], bool]
    guess: bool = False

    def __call__(self, leaf: Leaf) -> bool:
        """Tell whether the leaf is of this kind."""
        return self.test(leaf)


_BIAS = re.compile(r"bias|biases|.+_bias|bias_.+|offset|beta")
_SHORT_BIAS = re.compile(r"[bB]([a-z]?\d*|_.+)")
_GAIN = re.compile(r"scale|.+_scale|gamma.*|.+_gamma|gain|negative_slope|weight_g")
_TOKEN = re.compile(r"cls|(.+_)?tokens?|probe|.*temperature|A_log|dt_bias")
_MATRIX = re.compile(
    r"(.+_)?kernel(_.+)?|(.+_)?[wW][a-z]?_?\d*|[wW]_.+|weights|weight_.+|.+_weights?|lora_[abAB]"
)
_BESIDE_LORA = re.compile(
    r"alpha|base(_layer|_module)?|bias|dropout|kernel|linear|r|rank|scal(e|ing)|w|weight"
)
_STATE = re.compile(r"mean|var|(running|moving)_.+")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_KERNEL = re.compile(r"(.+_)?kernel(_.+)?")
_ADAPTIVE_WORD = re.compile(r"ada.*")  # a norm whose gain comes out of a matrix
_NORM_WORD = re.compile(r".*norms?|ln|bn|gn")
_POSITION_WORD = re.compile(r"pos(?!t|es?$|itiv|s).*|wpe|relpos.*|relative")
_TABLE_WORD = re.compile(r"emb.*|wte")
_MATRIX_WORD = re.compile(r"patch|proj.*|linear|dense|conv.*|mlp|fc|head|out")


def _is_running_state(leaf: Leaf) -> bool:
    return (
        bool(_STATE.fullmatch(leaf.name))
        or leaf.parts[:1] == ("batch_stats",)
        or any(cls.__name__ == "StateIndex" for cls in leaf.types)
    )


def _is_scalar(leaf: Leaf) -> bool:
    return leaf.ndim == 0


def _is_bias(leaf: Leaf) -> bool:
    if _BIAS.fullmatch(leaf.name):
        return not leaf.name.endswith("bias_table")
    # `b` is a bias beside a weight; LoRA's B beside its A is a matrix
    return bool(_SHORT_BIAS.fullmatch(leaf.name)) and (
        leaf.ndim == 1 or any(name[0] in "wW" for name in leaf.siblings)
    )


def _is_gain(leaf: Leaf) -> bool:
    if leaf.name == "g" and "Norm" in _container(leaf):  # equinox's WeightNorm
        return True
    if leaf.name in ("g", "w"):  # a gain; stacked for a scan it has two axes
        parent = _parent(leaf)
        others = _has_word(parent, _ADAPTIVE_WORD) or _has_word(parent, _MATRIX_WORD)
        return _has_word(parent, _NORM_WORD) and not others
    is_norm = _has_word(leaf.name, _NORM_WORD) and not _KERNEL.fullmatch(leaf.name)
    return (
        bool(_GAIN.fullmatch(leaf.name))
        or _weight_role(leaf) == "norm/gain"
        or (is_norm and not _has_word(leaf.name, _MATRIX_WORD))
    )


def _is_position(leaf: Leaf) -> bool:
    if leaf.name == "weight":
        return _weight_role(leaf) == "position"
    if _MATRIX.fullmatch(leaf.name):
        return False
    if leaf.name.endswith("bias_table") or _has_word(leaf.name, _POSITION_WORD):
        return True
    return _is_table_name(leaf.name) and _has_word(_parent(leaf), _POSITION_WORD)


def _is_token(leaf: Leaf) -> bool:
    return bool(_TOKEN.fullmatch(leaf.name)) or (leaf.name in ("A", "D") and not _is_lora(leaf))


def _is_table(leaf: Leaf) -> bool:
    if leaf.name == "weight":
        return _weight_role(leaf) == "embedding"
    return _is_table_name(leaf.name) and not _has_word(leaf.name, _MATRIX_WORD)


def _is_matrix(leaf: Leaf) -> bool:
    return (
        _weight_role(leaf) == "weight"
        or bool(_MATRIX.fullmatch(leaf.name))
        or _has_word(leaf.name, _TABLE_WORD)  # a patch embedding: tables are claimed before
        or _is_lora(leaf)
    )


def _is_vector(leaf: Leaf) -> bool:
    return leaf.ndim <= 1


def _is_anything(leaf: Leaf) -> bool:
    return True


def _weight_role(leaf: Leaf) -> str:
    """The kind of a leaf called `weight`: its container's class, its parent's name, its shape."""
    if leaf.name != "weight":
        return ""
    container, parent = _container(leaf), _parent(leaf)
    if re.search("linear|conv|dense|patch", container, re.IGNORECASE):
        return "weight"
    table = "Embed" in container
    if "Norm" in container or (not table and _has_word(parent, _NORM_WORD)):
        return "norm/gain"
    if leaf.ndim == 1:
        return "norm/gain"
    if not table and _has_word(parent, _MATRIX_WORD):
        return "weight"
    if _has_word(parent, _POSITION_WORD):
        return "position"
    return "embedding" if table or _has_word(parent, _TABLE_WORD) else "weight"


def _container(leaf: Leaf) -> str:
    """The class name of the immediate container: an outer PreNorm says nothing about a Linear."""
    return leaf.types[-1].__name__ if leaf.types else ""


def _parent(leaf: Leaf) -> str:
    """The nearest segment above the leaf that is a name."""
    above = (part for part in reversed(leaf.parts[:-1]) if part != "~" and not part.isdigit())
    return next(above, "")


def _is_lora(leaf: Leaf) -> bool:
    # a state space model has C, D or a time step beside them
    others = leaf.family - {"A", "B"}
    is_pair = leaf.name in ("A", "B") and len(leaf.family - others) == 2
    return is_pair and all(map(_BESIDE_LORA.fullmatch, others))


def _is_table_name(name: str) -> bool:
    return name == "table" or _has_word(name, _TABLE_WORD)


@functools.lru_cache(maxsize=4096)
def _has_word(name: str, word: re.Pattern[str]) -> bool:
    """Whether one word of a snake_case or CamelCase name matches, digits aside."""
    return any(word.fullmatch(part.lower()) for part in _WORD.findall(name))


EMBEDDING = Kind("embedding", _is_table)
WEIGHT = Kind("weight", _is_matrix)
KINDS = (
    Kind("running state", _is_running_state),
    Kind("scalar", _is_scalar),
    Kind("bias", _is_bias),
    Kind("norm/gain", _is_gain),
    Kind("position", _is_position),
    Kind("token", _is_token),
    EMBEDDING,
    WEIGHT,
)
GUESSED_VECTOR = Kind("guess: 1-D", _is_vector, guess=True)
GUESSED_MATRIX = Kind("guess: n-D", _is_anything, guess=True)
