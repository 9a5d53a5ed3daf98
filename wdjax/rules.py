"""Which parameters decay: (selector, multiplier) pairs, the first match wins, strict by default.

Rules are data: plain tuples that can be printed, hashed and kept in a configuration. They are
resolved from the tree in hand at every trace.
"""

import difflib
import functools
import math
import numbers
import operator
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import kinds, paths, stacks
from wdjax._trees.kinds import Kind
from wdjax._trees.paths import Leaf

Selector: TypeAlias = str | re.Pattern[str] | type | Callable[[Leaf], bool] | tuple["Selector", ...]
Multiplier: TypeAlias = float | jax.Array
Rules: TypeAlias = tuple[tuple[Selector, Multiplier], ...]

CLOSING = ("**", "/**")
_MEMO_SIZE = 256


class RuleError(ValueError):
    """Rules that are malformed, or that do not fit the tree."""


def standard(*, embeddings: float = 0.0, strict: bool = False) -> Rules:
    """Matrices decay; biases, norm gains, positions, tokens, scalars, SSM rates do not.

        m = 1 for matrices, `embeddings` for tables, 0 for the rest

    Decided by the last segment of the path, for a leaf called `weight` also by its container. What
    the names do not tell is guessed by shape (0 up to one axis, else 1) and marked in the audit.

    Args:
        embeddings: multiplier of embedding tables, >= 0; 1.0 is what nanoGPT and Hugging Face do,
            which decay positions too: put `(("wpe/**", "pos_embedding"), 1.0)` or so in front.
        strict: if True there is no guess: a parameter of unknown kind is an error.

    Returns:
        Rules; put your own in front: `(("head/kernel", 0.5), *standard())`.

    Raises:
        RuleError: `embeddings` is not a finite number >= 0.

    Example:
        >>> resolve(standard(), {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((4, 2))})
        {'bias': 0.0, 'kernel': 1.0}
    """
    multipliers = {kinds.WEIGHT: 1.0, kinds.EMBEDDING: embeddings}
    rules: Rules = tuple((kind, multipliers.get(kind, 0.0)) for kind in kinds.KINDS)
    guesses: Rules = ((kinds.GUESSED_VECTOR, 0.0), (kinds.GUESSED_MATRIX, 1.0))
    return check_rules(rules if strict else rules + guesses)


def resolve(rules: Rules, tree: Any) -> Any:
    """Give every parameter the multiplier of the first rule that matches it.

    Leaves that are not floating (integers, booleans, random keys) get 0.0 whatever the rules.

    Args:
        rules: (selector, multiplier) pairs. A selector is a glob on path segments matched from the
            right ("bias", "head/kernel", "/encoder/**"), a compiled regular expression searched in
            the path, a class of a container on the way, a function of a `paths.Leaf`, or a tuple
            of these (any of them). A multiplier is a finite number >= 0 or a traced scalar.
        tree: a pytree of arrays, tracers or ShapeDtypeStructs.

    Returns:
        The multipliers, with the treedef of `tree`.

    Raises:
        RuleError: a rule is malformed, matches nothing or never wins, or a parameter is unclaimed.
        TypeError: a leaf is not an array.

    Example:
        >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
        >>> resolve((("bias", 0.0), ("**", 0.5)), params)
        {'dense': {'bias': 0.0, 'kernel': 0.5}}
    """
    rules = check_rules(rules)
    if stacks.is_stacked(tree):
        each = resolve(rules, stacks.described(tree))
        return stacks.of_leaf(tree, tree.layout.treedef.flatten_up_to(each))
    leaves, treedef = jax.tree.flatten(tree)
    decision = _decide(rules, tree, leaves, treedef)
    # the last one is for index -1
    return jax.tree.unflatten(treedef, decision.pick([m for _, m in rules] + [0.0]))


def owners(rules: Rules, tree: Any) -> tuple[int, ...]:
    """Tell which rule decides each leaf.

    Args:
        rules: as in `resolve`.
        tree: as in `resolve`.

    Returns:
        The index into `rules` for each leaf, in the order of `jax.tree.leaves`; -1 for a leaf that
        is not floating, which no rule can make decay.

    Raises:
        RuleError: as in `resolve`.
        TypeError: as in `resolve`.

    Example:
        >>> owners((("bias", 0.0), ("**", 1.0)), {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))})
        (0, 1)
    """
    rules = check_rules(rules)
    return _decide(rules, tree, *jax.tree.flatten(tree)).owners


def mask(rules: Rules) -> Callable[[Any], Any]:
    """Turn rules into a function for any `mask=` argument of Optax.

    A mask knows no multipliers: a parameter is in wherever its multiplier is not 0. Under
    `optax.inject_hyperparams` it needs `static_args=("mask",)`, else it is taken for a schedule.

    Args:
        rules: as in `resolve`, with concrete multipliers.

    Returns:
        A function from a tree of parameters to a tree of booleans of the same structure.

    Raises:
        RuleError: a rule is malformed or a multiplier traced; when called, as in `resolve`, or if
            called with a step count.

    Example:
        >>> mask(standard())({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
        {'bias': False, 'kernel': True}
    """
    rules = check_rules(rules)
    if any(isinstance(multiplier, jax.core.Tracer) for _, multiplier in rules):
        raise RuleError("`mask` needs concrete multipliers; got a traced one. Use `resolve`.")

    def mask_of(tree: Any) -> Any:
        if isinstance(tree, jax.Array) and tree.ndim == 0 and not _is_floating(tree.dtype):
            raise RuleError(
                "the mask was called with a step count, as a schedule is; under "
                'optax.inject_hyperparams pass static_args=("mask",).'
            )
        multipliers = resolve(rules, tree)
        mixed = [x for x in jax.tree.leaves(multipliers) if isinstance(x, jax.core.Tracer)]
        if mixed and stacks.is_stacked(tree):
            raise RuleError(
                "a mask cannot part the leaves of one stack, and these rules do. Use "
                "wdjax.decay_weights with these rules in place of the mask."
            )
        return jax.tree.map(bool, multipliers)

    return mask_of


def check_rules(rules: Rules) -> Rules:
    """Check rules without a tree.

    Args:
        rules: as in `resolve`.

    Returns:
        The same rules with multipliers as floats (traced and jax scalars stay as they are).

    Raises:
        RuleError: `rules` is not a tuple of pairs, or a selector or multiplier is malformed.

    Example:
        >>> check_rules((("bias", False),))
        (('bias', 0.0),)
    """
    given: Any = rules  # whatever the annotation says
    if not isinstance(given, tuple):
        raise RuleError(
            "`rules` must be a tuple of (selector, multiplier) pairs; got a "
            f"{type(given).__name__}. {_advice(given)}"
        )
    if len(given) == 2 and not isinstance(given[0], tuple) and _is_number(given[1]):
        raise RuleError(
            "`rules` must be a tuple of (selector, multiplier) pairs; got one bare pair "
            f"{given!r}. Write ({given!r},)."
        )
    return tuple(map(_checked_pair, given))


def label(selector: Selector) -> str:
    """Name a selector for tables and messages.

    Args:
        selector: as in `resolve`.

    Returns:
        The glob, the pattern of a regular expression, the name of a class, function or kind.

    Example:
        >>> label(("bias", re.compile("scale$")))
        'bias, scale$'
    """
    if isinstance(selector, str):
        return selector
    if isinstance(selector, re.Pattern):
        return selector.pattern
    if isinstance(selector, tuple):
        return ", ".join(label(part) for part in selector)
    if isinstance(selector, Kind):
        return selector.name
    return getattr(selector, "__name__", None) or repr(selector)


def is_guess(selector: Selector) -> bool:
    """Tell whether a selector decides by shape only, for want of a name.

    Args:
        selector: as in `resolve`.

    Returns:
        True for the two closing kinds of `standard`.

    Example:
        >>> is_guess(standard()[-1][0]), is_guess("bias")
        (True, False)
    """
    return isinstance(selector, Kind) and selector.guess


# Deciding, memoised: selectors are hashed, multipliers are not (they may be traced).


class _Decision(NamedTuple):
    """What rules say about a tree."""

    owners: tuple[int, ...]
    pick: Callable[[list[Multiplier]], Iterable[Multiplier]]
    idle: tuple[tuple[int, str], ...]  # rules that win only leaves that cannot decay, and which


_MEMO: dict[Hashable, _Decision] = {}
_AVAL = operator.attrgetter("aval")
_SHAPE_AND_DTYPE = operator.attrgetter("shape", "dtype")


def _decide(rules: Rules, tree: Any, leaves: list[Any], treedef: Any) -> _Decision:
    """Look the decision up or make it, and check the multipliers that it makes pointless."""
    selectors = tuple(selector for selector, _ in rules)
    key: Hashable = None
    try:
        key = (selectors, treedef, _facts(leaves))
        decision = _MEMO.get(key)
    except (TypeError, ValueError, AttributeError):  # not hashable, not comparable, no array
        key = decision = None
    if decision is None:
        decision = _made(selectors, tree)
        if key is not None:
            if len(_MEMO) >= _MEMO_SIZE:
                _MEMO.clear()
            _MEMO[key] = decision
    for index, path in decision.idle:
        selector, multiplier = rules[index]
        if isinstance(multiplier, float) and multiplier != 0:
            raise RuleError(
                f"rule {shown(selector)} matches only leaves that are not floating, such as "
                f"{path!r}, and those never decay; give it the multiplier 0 or remove it"
            )
    return decision


def _facts(leaves: list[Any]) -> Hashable:
    """Shapes and dtypes; a jax array keeps both in one object, which is the fast way."""
    try:
        return tuple(map(_AVAL, leaves))
    except AttributeError:
        return tuple(map(_SHAPE_AND_DTYPE, leaves))


def _made(selectors: tuple[Selector, ...], tree: Any) -> _Decision:
    """Find the first matching rule of every leaf, and check that every rule has a part in it."""
    leaves = paths.leaves(tree)
    tests = [_test(selector) for selector in selectors]
    winners = [next((i for i, test in enumerate(tests) if test(leaf)), -1) for leaf in leaves]
    floating = [_is_floating(leaf.dtype) for leaf in leaves]
    own = [
        index
        for index, selector in enumerate(selectors)
        if not isinstance(selector, Kind)
        and not (index == len(selectors) - 1 and selector in CLOSING)
    ]
    idle = []
    if not paths.has_holes(tree):  # a hidden leaf may be the one that a rule is for
        for index in own:
            if index not in winners and not names_any(selectors[index], paths.frozen(tree)):
                raise RuleError(_why_not(selectors[index], tests[index], leaves))
        moved = {winner for winner, can in zip(winners, floating, strict=True) if can}
        idle = [(i, leaves[winners.index(i)].path) for i in own if i in {*winners} - moved]
    unclaimed = [
        f"{leaf.path} {leaf.shape}"
        for leaf, winner, can in zip(leaves, winners, floating, strict=True)
        if can and winner < 0
    ]
    if unclaimed:
        raise RuleError(
            f"no rule matches: {paths.listed(unclaimed)}; "
            "end the rules with ('**', 0.) or ('**', 1.)"
        )
    found = tuple(w if can else -1 for w, can in zip(winners, floating, strict=True))
    return _Decision(found, _picker(found), tuple(idle))


def names_any(selector: Selector, names: tuple[str, ...]) -> bool:
    """Tell whether a glob or a regular expression matches one of the paths; others match none."""
    if isinstance(selector, str):
        return any(paths.glob(selector).fullmatch(name + "/") for name in names)
    if isinstance(selector, re.Pattern):
        return any(map(selector.search, names))
    return isinstance(selector, tuple) and any(names_any(part, names) for part in selector)


def _picker(found: tuple[int, ...]) -> Callable[[list[Multiplier]], Iterable[Multiplier]]:
    """Map multipliers to leaves."""
    if len(found) > 1:
        return operator.itemgetter(*found)  # many at a time, in C
    return lambda multipliers: [multipliers[index] for index in found]


def _test(selector: Selector) -> Callable[[Leaf], Any]:
    """A selector as a function of a leaf."""
    if isinstance(selector, str):
        fullmatch = paths.glob(selector).fullmatch
        return lambda leaf: fullmatch(leaf.path + "/" if leaf.path else "")
    if isinstance(selector, re.Pattern):
        search = selector.search
        return lambda leaf: search(leaf.path)
    if isinstance(selector, type):
        return lambda leaf: any(issubclass(cls, selector) for cls in leaf.types)
    if isinstance(selector, tuple):
        tests = [_test(part) for part in selector]
        return lambda leaf: any(test(leaf) for test in tests)
    return selector.test if isinstance(selector, Kind) else functools.partial(_told, selector)


def _told(selector: Callable[[Leaf], Any], leaf: Leaf) -> bool:
    """What a function says of a leaf: any name would count as True."""
    found = selector(leaf)
    if isinstance(found, str):
        raise RuleError(f"rule {shown(selector)} must tell True or False of a leaf; got {found!r}.")
    return bool(found)


@functools.lru_cache(maxsize=256)
def _is_floating(dtype: Any) -> bool:
    """Whether decay has a meaning: not for integers, booleans and random keys."""
    return bool(jnp.issubdtype(dtype, jnp.inexact))


# Messages.


def _why_not(selector: Selector, test: Callable[[Leaf], Any], leaves: tuple[Leaf, ...]) -> str:
    """Say why a rule wins nothing."""
    matched = sum(bool(test(leaf)) for leaf in leaves)
    if matched:
        return (
            f"rule {shown(selector)} never wins: earlier rules already claim all {matched} "
            "parameters it matches"
        )
    return f"rule {shown(selector)} matches no parameter{hint(selector, leaves)}"


def hint(selector: Selector, leaves: tuple[Leaf, ...]) -> str:
    """Suggest what the selector may have been meant to be."""
    if isinstance(selector, type):
        names = sorted({cls.__name__ for leaf in leaves for cls in leaf.types})
        return f"; the containers here are {paths.listed(names)}" if names else ""
    if not isinstance(selector, str | re.Pattern):
        return ""
    ends = ("/".join(leaf.parts[i:]) for leaf in leaves for i in range(len(leaf.parts)))
    close = difflib.get_close_matches(label(selector).strip("/"), dict.fromkeys(ends))
    return f"; did you mean {close}?" if close else ""


def shown(selector: Selector) -> str:
    """Write a selector as it stands in a message."""
    return label(selector) if isinstance(selector, Kind | type) else repr(selector)


def _advice(rules: Any) -> str:
    """What to write instead of something that is no tuple."""
    if isinstance(rules, dict):
        return "Write tuple(rules.items()): the order of rules matters."
    if isinstance(rules, list):
        return "Write tuple(rules)."
    if callable(rules):
        return "A function of a leaf is a selector: ((function, 1.0), ('**', 0.0))."
    return "For instance (('bias', 0.0), ('**', 1.0))."


def _checked_pair(rule: Any) -> tuple[Selector, Multiplier]:
    """One rule, its multiplier as a float."""
    if not isinstance(rule, tuple) or len(rule) != 2:
        has_rules = isinstance(rule, tuple) and any(isinstance(part, tuple) for part in rule)
        raise RuleError(
            "every rule must be a (selector, multiplier) pair; got "
            f"{'a tuple of rules. Write *rules' if has_rules else repr(rule)}. "
            "For instance ('bias', 0.0)."
        )
    selector, multiplier = rule
    if _is_number(selector):
        raise RuleError(
            f"every rule must be a (selector, multiplier) pair; got {rule!r}. "
            "Put the selector first."
        )
    _check_selector(selector)
    return selector, _checked_multiplier(multiplier, selector)


def _check_selector(selector: Any) -> None:
    """Raise unless the selector is of a known kind and well formed."""
    if isinstance(selector, str):
        try:
            paths.glob(selector)
        except ValueError as error:
            raise RuleError(f"`rules`: {error}.") from None
    elif isinstance(selector, tuple) and selector:
        for part in selector:
            _check_selector(part)
    elif isinstance(selector, re.Pattern) and isinstance(selector.pattern, bytes):
        raise RuleError(f"`rules`: {selector!r} is a pattern of bytes; compile a str.")
    elif not isinstance(selector, re.Pattern) and not callable(selector):  # a class is callable
        raise RuleError(
            "a selector must be a glob, a compiled regular expression, a class, a function of a "
            f"leaf, or a non-empty tuple of these; got {selector!r}."
        )


def _checked_multiplier(multiplier: Any, selector: Selector) -> Multiplier:
    """A finite float >= 0, or a scalar array as it is."""
    if isinstance(multiplier, jax.Array) and multiplier.ndim == 0:
        return multiplier  # may be traced: its value is unknown
    if _is_number(multiplier):
        number = float(multiplier)
        if math.isfinite(number) and number >= 0:
            return number
    raise RuleError(
        f"the multiplier of rule {shown(selector)} must be a finite number >= 0 or a scalar "
        f"array; got {multiplier!r}."
    )


def _is_number(value: Any) -> bool:
    """Whether a value is a real number or a scalar array."""
    if isinstance(value, jax.Array | np.ndarray):
        return value.ndim == 0
    return isinstance(value, numbers.Real | np.bool_)
