"""Which parameters decay: (selector, multiplier) pairs, the first match wins, strict by default.

Rules are data: plain tuples that can be printed, hashed and kept in a configuration. They are
resolved for the current tree at every trace.
"""

import difflib
import functools
import math
import numbers
import operator
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import checks, kinds, paths, stacks
from wdjax._trees.kinds import Kind
from wdjax._trees.paths import Leaf

Selector: TypeAlias = str | re.Pattern[str] | type | Callable[[Leaf], bool] | tuple["Selector", ...]
Multiplier: TypeAlias = float | jax.Array
Rules: TypeAlias = tuple[tuple[Selector, Multiplier], ...]

_CLOSING = ("**", "/**")
_MEMO_SIZE = 256


class RuleError(ValueError):
    """Rules that are malformed, or that do not fit the tree."""


def standard(*, embeddings: float = 0.0, strict: bool = False) -> Rules:
    """Matrices decay; biases, norm gains, positions, tokens, scalars, SSM rates do not.

        m = 1 for matrices, `embeddings` for tables, 0 for the rest

    Decided by the words of the last segment of the path, for a name such as `weight` also by its
    container. What the names do not tell is guessed by shape, axes of length 1 aside: 0 up to one
    axis, else 1. The audit marks guesses, and `init` warns of those that decay.

    Args:
        embeddings: multiplier of embedding tables, >= 0; 1.0 is what nanoGPT and Hugging Face do,
            which decay positions too: put `(("wpe/**", "pos_embedding"), 1.0)` or so in front.
        strict: if True nothing is guessed: a parameter of unknown kind is an error.

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
    return ruled(check_rules(rules), tree)[1]


class Ruled(NamedTuple):
    """A leaf, the selector that decides it, and the multiplier it gets.

    The selector is None, and the multiplier 0, for a leaf that is not floating.
    """

    leaf: Leaf
    selector: Selector | None
    multiplier: Multiplier


def ruled(rules: Rules, tree: Any) -> tuple[tuple[Ruled, ...], Any]:
    """Resolve rules that were checked: what `resolve` gives, and how it came about.

    Args:
        rules: from `check_rules`.
        tree: as in `resolve`.

    Returns:
        A row for each leaf, for each single leaf of a stack; the multipliers, as from `resolve`.

    Raises:
        RuleError: as in `resolve`.
        TypeError: as in `resolve`.

    Example:
        >>> (row,), multipliers = ruled((("**", 0.5),), {"kernel": jnp.ones((2, 3))})
        >>> row.leaf.path, row.selector, row.multiplier, multipliers
        ('kernel', '**', 0.5, {'kernel': 0.5})
    """
    whole = stacks.described(tree) if stacks.is_stacked(tree) else tree
    leaves, treedef = jax.tree.flatten(whole)
    decision = _decide(rules, whole, leaves, treedef)
    named = zip(decision.leaves, decision.owners, strict=True)
    rows = tuple(Ruled(leaf, *((None, 0.0) if i < 0 else rules[i])) for leaf, i in named)
    multipliers = jax.tree.unflatten(treedef, [row.multiplier for row in rows])
    if stacks.is_stacked(tree):
        multipliers = stacks.of_leaf(tree, tree.layout.treedef.flatten_up_to(multipliers))
    return rows, multipliers


def owners(rules: Rules, tree: Any) -> tuple[int, ...]:
    """Tell which rule decides each leaf, of rules that were checked.

    Args:
        rules: from `check_rules`.
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
        RuleError: a rule is malformed; when called, as in `resolve`, or if a multiplier is traced,
            or if called with a step count.

    Warns:
        UserWarning: when first called, if a parameter decays by a guess, as at `init`.

    Example:
        >>> mask(standard())({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
        {'bias': False, 'kernel': True}
    """
    rules = check_rules(rules)

    warned: list[bool] = []

    def mask_of(tree: Any) -> Any:
        if isinstance(tree, jax.Array) and tree.ndim == 0 and not _is_floating(tree.dtype):
            raise RuleError(
                "the mask was called with a step count, as a schedule is; under "
                'optax.inject_hyperparams pass static_args=("mask",).'
            )
        rows, multipliers = ruled(rules, tree)
        if not warned:
            warned.append(True)
            warn_of_guesses("mask", rows)
        if any(isinstance(m, jax.core.Tracer) for m in jax.tree.leaves(multipliers)):
            raise RuleError(
                "a mask cannot hold traced multipliers, or treat the leaves of one stack "
                "differently. Use wdjax.decay_weights with these rules in place of the mask."
            )
        return jax.tree.map(bool, multipliers)

    return mask_of


def check_rules(rules: Rules) -> Rules:
    """Check rules without a tree.

    Args:
        rules: as in `resolve`.

    Returns:
        The same rules as tuples, with multipliers as floats (traced and jax scalars stay as they
        are).

    Raises:
        RuleError: `rules` is not a sequence of pairs, or a selector or multiplier is malformed.

    Example:
        >>> check_rules([["bias", False]])
        (('bias', 0.0),)
    """
    given: Any = _as_tuples(rules)  # whatever the annotation says
    pairs, kind = "be a sequence of (selector, multiplier) pairs", f"a {type(given).__name__}"
    checks.must("rules", isinstance(given, tuple), pairs, kind, _advice(given), RuleError)
    is_bare = len(given) == 2 and not isinstance(given[0], tuple) and _is_number(given[1])
    bare, advice = f"one bare pair {given!r}", f"Write ({given!r},)."
    checks.must("rules", not is_bare, pairs, bare, advice, RuleError)
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
    return str(getattr(selector, "__name__", type(selector).__name__))


def is_guess(selector: Selector | None) -> bool:
    """Tell whether a selector decides by shape only, because no name says more.

    Args:
        selector: as in `resolve`.

    Returns:
        True for the two closing kinds of `standard`.

    Example:
        >>> is_guess(standard()[-1][0]), is_guess("bias")
        (True, False)
    """
    return isinstance(selector, Kind) and selector.guess


def warn_of_guesses(name: str, rows: Iterable[Ruled]) -> None:
    """Warn of parameters that decay although nothing but their shape says that they are matrices.

    A tree that is one bare array has no name to go by: what is to decay is plain.

    Args:
        name: of the caller.
        rows: from `ruled`.

    Warns:
        UserWarning: with the paths, and the rule that says what is meant, after which none comes.

    Example:
        >>> warn_of_guesses("decay_weights", ruled(standard(), {"kernel": jnp.ones((2, 2))})[0])
    """
    rows = tuple(rows)
    guessed = [r.leaf for r in rows if is_guess(r.selector) and _decays(r) and r.leaf.path]
    if guessed:
        others = {row.leaf.name for row in rows if row.leaf not in guessed}
        warnings.warn(_guesses(name, guessed, others), stacklevel=4)


def _decays(row: Ruled) -> bool:
    return not (isinstance(row.multiplier, float) and row.multiplier == 0)


# Deciding, memoized: selectors are hashed, multipliers are not (they may be traced).


class _Decision(NamedTuple):
    """What rules say about a tree."""

    leaves: tuple[Leaf, ...]
    owners: tuple[int, ...]  # -1 for a leaf that is not floating
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
                f"rule {_shown(selector)} matches only leaves that are not floating, such as "
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
        and not (index == len(selectors) - 1 and selector in _CLOSING)
    ]
    idle = []
    if not paths.has_holes(tree):  # a hidden leaf may be the one that a rule is for
        for index in own:
            if index not in winners and not _names_any(selectors[index], paths.frozen(tree)):
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
    return _Decision(leaves, found, tuple(idle))


def _names_any(selector: Selector, names: tuple[str, ...]) -> bool:
    """Tell whether a glob or a regular expression matches one of the paths; others match none."""
    if isinstance(selector, str):
        return any(paths.glob(selector).fullmatch(name + "/") for name in names)
    if isinstance(selector, re.Pattern):
        return any(map(selector.search, names))
    return isinstance(selector, tuple) and any(_names_any(part, names) for part in selector)


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
    if isinstance(selector, Kind):
        return selector.test

    def told(leaf: Leaf) -> bool:
        found: Any = selector(leaf)
        if isinstance(found, str):  # any name would count as True
            raise RuleError(f"rule {_shown(selector)} must give True or False; got {found!r}.")
        return bool(found)

    return told


@functools.lru_cache(maxsize=256)
def _is_floating(dtype: Any) -> bool:
    """Whether decay has a meaning: not for integers, booleans and random keys."""
    return bool(jnp.issubdtype(dtype, jnp.inexact))


# Messages.


def _guesses(name: str, guessed: list[Leaf], others: set[str]) -> str:
    """What decays by a guess, and what to write instead: a name, or the path if others share it."""
    described = paths.listed(f"{leaf.path} {leaf.shape}" for leaf in guessed)
    globs = [
        f"/{leaf.path}" if leaf.name.isdigit() or leaf.name in others else leaf.name
        for leaf in guessed
    ]
    first, *rest = [repr(glob) for glob in dict.fromkeys(globs)]
    selector = f"({paths.listed([first, *rest])})" if rest else first
    return (
        f"`{name}`: {described} decay by a guess: the names do not tell what they are, and arrays "
        f"with two axes are mostly matrices. Say what you mean: rules=(({selector}, 1.0), "
        "*wdjax.standard()), with 0.0 where they must not decay."
    )


def _why_not(selector: Selector, test: Callable[[Leaf], Any], leaves: tuple[Leaf, ...]) -> str:
    """Say why a rule wins nothing."""
    matched = sum(bool(test(leaf)) for leaf in leaves)
    if matched:
        return (
            f"rule {_shown(selector)} never wins: earlier rules already claim all {matched} "
            "parameters it matches"
        )
    return f"rule {_shown(selector)} matches no parameter{_hint(selector, leaves)}"


def _hint(selector: Selector, leaves: tuple[Leaf, ...]) -> str:
    """Suggest what the selector may have been meant to be."""
    if isinstance(selector, type):
        names = sorted({cls.__name__ for leaf in leaves for cls in leaf.types})
        return f"; the containers here are {paths.listed(names)}" if names else ""
    if not isinstance(selector, str | re.Pattern):
        return ""
    ends = ("/".join(leaf.parts[i:]) for leaf in leaves for i in range(len(leaf.parts)))
    close = difflib.get_close_matches(label(selector).strip("/"), dict.fromkeys(ends))
    return f"; did you mean {close}?" if close else ""


def _shown(selector: Selector) -> str:
    """Write a selector for a message."""
    if isinstance(selector, Kind | type):
        return label(selector)
    if isinstance(selector, tuple):
        return f"({', '.join(map(_shown, selector))})"
    text = repr(selector)
    return repr(label(selector)) if " at 0x" in text else text  # an address tells nothing


def _advice(rules: Any) -> str:
    """Say what to write instead of something that is not a sequence."""
    if isinstance(rules, dict):
        return "Write tuple(rules.items()): the order of rules matters."
    if callable(rules):
        return "A function of a leaf is a selector: ((function, 1.0), ('**', 0.0))."
    return "For instance (('bias', 0.0), ('**', 1.0))."


def _as_tuples(given: Any) -> Any:
    """Lists, as configurations have them, as tuples: selectors are hashed."""
    is_sequence = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    return tuple(map(_as_tuples, given)) if is_sequence else given


def _checked_pair(rule: Any) -> tuple[Selector, Multiplier]:
    """One rule, its multiplier as a float."""
    if not isinstance(rule, tuple) or len(rule) != 2 or _is_number(rule[0]):
        has_rules = isinstance(rule, tuple) and any(isinstance(part, tuple) for part in rule)
        raise RuleError(
            "every rule must be a (selector, multiplier) pair, such as ('bias', 0.0); got "
            f"{'a tuple of rules. Write *rules' if has_rules else repr(rule)}."
        )
    selector, multiplier = rule
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
        f"the multiplier of rule {_shown(selector)} must be a finite number >= 0 or a scalar "
        f"array; got {checks.shown(multiplier)}."
    )


def _is_number(value: Any) -> bool:
    """Whether a value is a real number or a scalar array."""
    if isinstance(value, jax.Array | np.ndarray):
        return value.ndim == 0
    return isinstance(value, numbers.Real | np.bool_)


STANDARD: Rules = standard()  # the default of `rules` nearly everywhere
EVERYTHING: Rules = (("**", 1.0),)  # that of what comes from other packages
