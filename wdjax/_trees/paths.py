"""The name, type and shape of every leaf, the same for linen, nnx, haiku, equinox and plain trees.

A path is the keys on the way to a leaf, joined by "/". Boxes (an nnx Variable, a linen Partitioned,
a NamedArray of haliax or penzai) are transparent: neither their key nor their class shows, so an
unboxed leaf keeps its name. So does an array alone in a node that was registered without keys.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

_KEY_FIELD = {DictKey: "key", FlattenedIndexKey: "key", GetAttrKey: "name", SequenceKey: "idx"}
_BOXES = {
    ("flax", "Variable"),
    ("flax", "VariableState"),
    ("flax", "AxisMetadata"),
    ("optax", "SplitRealAndImaginaryArrays"),  # whose two leaves share the path of the complex one
    ("haliax", "NamedArray"),
    ("penzai", "NamedArray"),
    ("penzai", "LabeledVariableValue"),
}
_GLOB_TOKEN = re.compile(r"(\*)|(\?)|\[(!?+)(\][^\]]*|[^\]]+)\]|(.)", re.DOTALL)
_CLASS_RANGE = re.compile(r"(.)-(.)|(.)", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """What is known about a leaf without looking at its values.

    Args:
        path: the parts joined by "/"; "" for a bare array. Two leaves may share one path.
        parts: the segments of the path.
        name: the last segment, or "".
        shape: the shape of the array.
        ndim: the number of axes.
        dtype: the dtype of the array.
        types: classes of the containers on the way, outermost first, without boxes.
        family: names of all children of the parent path, the leaf's own name and hidden ones
            (`optax.masked`, None) included.

    Example:
        >>> params = {"dense": {"kernel": jax.numpy.ones((2, 3)), "bias": jax.numpy.ones(3)}}
        >>> leaf = leaves(params)[0]
        >>> leaf.path, leaf.name, leaf.shape, sorted(leaf.siblings)
        ('dense/bias', 'bias', (3,), ['kernel'])
    """

    path: str
    parts: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    ndim: int
    dtype: Any
    types: tuple[type, ...] = ()
    family: frozenset[str] = frozenset()

    @property
    def siblings(self) -> frozenset[str]:
        """Names of the other children of the parent path."""
        return self.family - {self.name}


def leaves(tree: Any) -> tuple[Leaf, ...]:
    """Describe every leaf of a tree, in the order of `jax.tree.leaves`.

    Keys are split again on "/" and "." (haiku modules, flat dicts in PyTorch's manner).

    Args:
        tree: a pytree of arrays, tracers or ShapeDtypeStructs; None and holes do not count.

    Returns:
        One record per leaf.

    Raises:
        TypeError: a leaf is not an array; the message names its path and what to do.

    Example:
        >>> [leaf.path for leaf in leaves({"mlp/~/linear_0": {"w": jax.numpy.ones((2, 3))}})]
        ['mlp/~/linear_0/w']
    """
    everything = list(entries(tree, is_leaf=is_hidden))
    named = [row for row in everything if not is_hidden(row[2])]
    _require_arrays(named)
    children: dict[tuple[str, ...], set[str]] = {}
    for parts, _, _ in everything:
        for end in range(len(parts) - 1, -1, -1):
            family = children.setdefault(parts[:end], set())
            if parts[end] in family:
                break  # the way up from here is known already
            family.add(parts[end])
    families = {parent: frozenset(names) for parent, names in children.items()}
    return tuple(
        Leaf(
            path="/".join(parts),
            parts=parts,
            name=parts[-1] if parts else "",
            shape=tuple(value.shape),
            ndim=len(value.shape),
            dtype=value.dtype,
            types=tuple(cls for cls in classes if not _is_box(cls)),
            family=families[parts[:-1]] if parts else frozenset(),
        )
        for parts, classes, value in named
    )


def frozen(tree: Any) -> tuple[str, ...]:
    """Name the places of None: of what equinox has filtered out, or what a layer goes without.

    Args:
        tree: a pytree.

    Returns:
        Their paths.

    Example:
        >>> frozen({"dense": {"kernel": 1.0, "bias": None}})
        ('dense/bias',)
    """
    named = entries(tree, is_leaf=is_hidden)
    return tuple("/".join(parts) for parts, _, value in named if value is None)


def has_holes(tree: Any) -> bool:
    """Tell whether some leaves are hidden, as inside `optax.masked` and `optax.partition`.

    `optax.tree_map_params` hides all of them.

    Args:
        tree: a pytree.

    Returns:
        True if any node is an `optax.MaskedNode`, or a placeholder for all parameters.

    Example:
        >>> has_holes({"kernel": 1.0, "bias": optax.MaskedNode()})
        True
    """

    def is_hole(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode) or stands_for_all(node)

    return bool(nodes(tree, is_hole))


def stands_for_all(node: Any) -> bool:
    """Tell the placeholder that `optax.tree_map_params` gives to `init` for all parameters.

    Args:
        node: a pytree, or a node of one.

    Returns:
        True for the placeholder itself.

    Example:
        >>> stands_for_all({"kernel": 1.0})
        False
    """
    return type(node).__name__ == "_ParamsPlaceholder"


def is_hidden(node: Any) -> bool:
    """Tell whether a node stands where others see a leaf.

    Args:
        node: of a pytree.

    Returns:
        True for what `optax.masked` puts in place of a leaf, and for None, as equinox does.

    Example:
        >>> is_hidden(optax.MaskedNode()), is_hidden(None), is_hidden(1.0)
        (True, True, False)
    """
    return node is None or isinstance(node, optax.MaskedNode)


def nodes(tree: Any, is_wanted: Callable[[Any], bool]) -> list[Any]:
    """Find nodes of a tree, such as the states of one kind in that of an optimizer.

    Args:
        tree: a pytree.
        is_wanted: tells a node; what is below one is not looked at.

    Returns:
        The nodes, in the order of the leaves.

    Example:
        >>> nodes({"a": (1, [2]), "b": [3]}, lambda node: isinstance(node, list))
        [[2], [3]]
    """
    return [node for node in jax.tree.leaves(tree, is_leaf=is_wanted) if is_wanted(node)]


def listed(items: Iterable[str]) -> str:
    """Join at most five items for an error message.

    Args:
        items: texts, for instance paths in quotes.

    Returns:
        The items separated by commas, then "and N more".

    Example:
        >>> listed("abcdefg")
        'a, b, c, d, e, and 2 more'
    """
    items = list(items)
    rest = [f"and {len(items) - 5} more"] if len(items) > 5 else []
    return ", ".join([*items[:5], *rest])


def distinct(names: Iterable[str]) -> list[str]:
    """Tell equal names apart: each but the first of its kind gets a number.

    Example:
        >>> distinct(["a", "b", "a"])
        ['a', 'b', 'a (2)']
    """
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def structure_difference(
    left: Any, right: Any, names: tuple[str, str] = ("the first", "the second")
) -> str:
    """Say how the structures of two trees differ, by paths.

    Args:
        left: a pytree.
        right: a pytree.
        names: what the two are called.

    Returns:
        One line: the paths only one of them has, else where the containers differ, else "".

    Example:
        >>> structure_difference({"kernel": 1, "bias": 2}, {"kernel": 1, "scale": 2})
        "only in the first: 'bias'; only in the second: 'scale'"
    """
    structures: list[Any] = [jax.tree.structure(left), jax.tree.structure(right)]
    if structures[0] == structures[1]:
        return ""
    first, second = list(entries(left)), list(entries(right))
    # counted, for two leaves may share one path
    here, there = (Counter("/".join(parts) for parts, _, _ in side) for side in (first, second))
    sides = dict(zip(names, (here - there, there - here), strict=True))
    if any(sides.values()):
        return "; ".join(
            f"only in {side}: {listed(map(repr, only))}" for side, only in sides.items() if only
        )
    for (parts, one, _), (_, other, _) in zip(first, second, strict=True):
        if one != other:
            return (
                f"the same paths in other containers: {'/'.join(parts)!r} is in "
                f"{_class_names(one)} in {names[0]}, in {_class_names(other)} in {names[1]}"
            )
    return "the same paths in other containers"


@functools.lru_cache(maxsize=1024)
def glob(pattern: str) -> re.Pattern[str]:
    """Compile a glob on whole path segments, anchored at the right.

    `*`, `?` and `[...]` stay inside one segment, `**` spans zero or more, a leading "/" anchors at
    the root. Case-sensitive.

    Args:
        pattern: for instance "bias", "head/kernel", "w_*", "mlp/**/w", "/encoder/**".

    Returns:
        A regular expression for `fullmatch` on a path with every segment closed by "/".

    Raises:
        ValueError: the pattern is empty or malformed.

    Example:
        >>> bool(glob("blocks/*/bias").fullmatch("model/blocks/10/bias/"))
        True
    """
    segments = pattern.removeprefix("/").split("/")
    if segments == [""]:
        raise ValueError(f"the glob {pattern!r} is empty; write '**' to match everything")
    if not pattern.startswith("/"):
        segments = ["**", *segments]
    return re.compile("".join(_segment_regex(pattern, segment) for segment in segments))


def _segment_regex(pattern: str, segment: str) -> str:
    """One segment and its closing "/" as a regular expression."""
    if segment == "**":
        return "(?:[^/]+/)*"
    if not segment:
        raise ValueError(f"the glob {pattern!r} has an empty segment; remove the extra '/'")
    if "**" in segment:
        raise ValueError(f"in the glob {pattern!r}, '**' must stand alone between slashes")
    return "".join(_token_regex(pattern, *token) for token in _GLOB_TOKEN.findall(segment)) + "/"


def _token_regex(pattern: str, star: str, any_: str, negate: str, inside: str, other: str) -> str:
    """One token of a segment: `*`, `?`, `[...]` or a plain character."""
    if star:
        return "[^/]*"
    if any_:
        return "[^/]"
    if not inside and other != "[":
        return re.escape(other)
    ranges = [(low or one, high or one) for low, high, one in _CLASS_RANGE.findall(inside)]
    if not ranges or any(low > high for low, high in ranges):
        raise ValueError(f"the glob {pattern!r} has a malformed [...]; write [[] for a plain '['")
    body = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ranges)
    return f"(?!/)[{'^' * bool(negate)}{body}]"


def entries(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Iterator[tuple[tuple[str, ...], tuple[type, ...], Any]]:
    """Path segments, container classes and value of every leaf."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    for (keys, value), nodes in zip(keyed, _nodes(treedef), strict=True):
        parts: list[str] = []
        for key, node in zip(keys, nodes, strict=True):
            is_silent = node.is_alone and isinstance(key, FlattenedIndexKey)
            parts = node.label or parts + ([] if node.is_box or is_silent else _split(key))
        yield tuple(parts), tuple(node.cls for node in nodes), value


class _Node(NamedTuple):
    """A container; whether it holds one array alone; the whole name of that, if it knows it."""

    cls: type
    is_box: bool
    is_alone: bool
    label: list[str]


def _nodes(treedef: Any, above: tuple[_Node, ...] = ()) -> Iterator[tuple[_Node, ...]]:
    """The containers of every leaf, outermost first: one per key."""
    data = treedef.node_data()
    if data is None:
        yield above
        return
    cls, static = data
    is_box = _is_box(cls)
    # parameters of penzai have names of their own and stand in a tuple
    label = getattr(static, "static_fields", {}).get("label") if is_box else None
    parts = _split(label) if isinstance(label, str) else []
    below = (*above, _Node(cls, is_box, treedef.num_nodes == 2, parts))
    for child in treedef.children():
        yield from _nodes(child, below)


def _split(key: Any) -> list[str]:
    """The path segments that one key stands for."""
    field = _KEY_FIELD.get(type(key))
    name = key if field is None else getattr(key, field)
    if not isinstance(name, str):
        return [part for part in str(name).split("/") if part]
    return [part for part in name.replace(".", "/").split("/") if part]


@functools.lru_cache(maxsize=1024)
def _is_box(cls: type) -> bool:
    """Whether a container only wraps one value; told by name, so that flax is not imported."""
    return any((base.__module__.split(".")[0], base.__name__) in _BOXES for base in cls.__mro__)


def _class_names(classes: tuple[type, ...]) -> str:
    """The containers of a leaf, outermost first."""
    return "/".join(cls.__name__ for cls in classes) or "no container"


def _require_arrays(named: list[tuple[tuple[str, ...], tuple[type, ...], Any]]) -> None:
    """Raise if a leaf has no shape and dtype."""
    wrong = [
        ("/".join(parts), value)
        for parts, _, value in named
        if not (hasattr(value, "shape") and hasattr(value, "dtype"))
    ]
    if not wrong:
        return
    path, value = wrong[0]
    kind = type(value).__name__
    article = "an" if kind[0] in "aeiou" else "a"
    advice = (
        "wrap it in jnp.asarray"
        if isinstance(value, (bool, int, float, complex))
        else "filter the model first (eqx.filter(model, eqx.is_inexact_array), "
        "nnx.state(model, nnx.Param), ...)"
    )
    every = f". All such leaves: {listed([repr(path) for path, _ in wrong])}" if wrong[1:] else ""
    raise TypeError(f"leaf {path!r} is {article} {kind}, not an array: {advice}{every}")
