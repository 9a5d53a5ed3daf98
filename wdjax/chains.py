"""What must not stand before decay in its chain: what takes steps at other times, or freezes.

Optax tells a transformation nothing about its neighbours. But `optax.chain` calls the `init` of
its members one after the other, so while one of them runs, the frames above it show the rest.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax

from wdjax import paths

# What changes when or where a step is taken, by its `init`; and what decay behind it would do.
_WRAPPERS = {
    "MultiSteps.init": "optax.MultiSteps, whose every micro-step would decay",
    "apply_every.<locals>.init_fn": "optax.MultiSteps in place of optax.apply_every, whose every "
    "micro-step would decay",
    "apply_if_finite.<locals>.init": "optax.apply_if_finite, whose skipped steps would decay",
    "lookahead.<locals>.init_fn": "optax.lookahead, whose slow weights would not decay",
    "schedule_free.<locals>.init_fn": "optax.contrib.schedule_free, whose iterate would not decay",
    "sam.<locals>.init_fn": "optax.contrib.sam, whose adversarial step would decay",
}
_CHAINS = ("chain.<locals>.init_fn", "named_chain.<locals>.init_fn")


def wrapper_in(init: Callable[..., Any]) -> str | None:
    """Find a wrapper that takes steps at other times or places, however deep.

    Args:
        init: of any Optax transformation.

    Returns:
        Its name and what decay behind it would do, or None.

    Example:
        >>> import optax
        >>> wrapper_in(optax.chain(optax.lookahead(optax.sgd(0.1), 5, 0.5)).init)
        'optax.lookahead, whose slow weights would not decay'
        >>> wrapper_in(optax.adam(0.1).init)
    """
    names = (_WRAPPERS.get(function.__qualname__) for function in _functions(init))
    return next(filter(None, names), None)


def check_place(params: Any, multipliers: Any) -> None:
    """Raise if the caller is the `init` of decay that stands where it must not in a chain.

    Args:
        params: θ.
        multipliers: m of each leaf, 0 where it does not decay.

    Raises:
        TypeError: a wrapper that takes steps at other times comes first, or `optax.freeze` of
            parameters that would decay all the same; `optax.flatten` has taken the names away.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from wdjax.transforms import decay_weights
        >>> optax.chain(optax.MultiSteps(optax.sgd(1.0), 4), decay_weights(0.1)).init(jnp.ones(2))
        Traceback (most recent call last):
        TypeError: decay must stand inside of optax.MultiSteps, whose every micro-step would ...
    """
    known = [m for m in jax.tree.leaves(multipliers) if isinstance(m, float)]
    if stands_in("flatten.<locals>.init_fn") and known == [0.0]:
        raise TypeError(
            "decay must stand outside of optax.flatten, which leaves one vector without names, "
            "and vectors do not decay. Write optax.chain(optax.flatten(...), decay)."
        )
    for init in _before_the_caller():
        wrapper = wrapper_in(init)
        if wrapper is not None:
            raise TypeError(
                f"decay must stand inside of {wrapper}; this chain has it behind. "
                "Wrap the whole chain: wrapper(optax.chain(...), ...)."
            )
        frozen = _frozen(init, params)
        rows = zip(paths.leaves(params), jax.tree.leaves(multipliers), frozen, strict=True)
        moved = [
            repr(leaf.path) for leaf, m, still in rows if still and isinstance(m, float) and m > 0
        ]
        if moved:
            raise TypeError(
                "decay must stand before the transformation that freezes parameters, or these "
                f"decay all the same: {paths.listed(moved)}. Move the freezing to the end of the "
                "chain, or give them the multiplier 0 in `rules`."
            )


def stands_in(init: str) -> bool:
    """Tell whether an `init` of this qualified name is running.

    Args:
        init: such as "apply_if_finite.<locals>.init".

    Returns:
        Whether it called the caller, directly or through others.

    Example:
        >>> stands_in("apply_if_finite.<locals>.init")
        False
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_qualname != init:
        frame = frame.f_back
    return frame is not None


def _before_the_caller() -> Iterator[Callable[..., Any]]:
    """The `init` of all that comes before, in the chain that runs and in those around it."""
    frame, inner = inspect.currentframe(), None
    while frame is not None and frame.f_code.co_qualname not in _WRAPPERS:  # it may stand in one
        if frame.f_code.co_qualname in _CHAINS:
            yield from _before(frame, inner)
        frame, inner = frame.f_back, frame


def _before(chain: FrameType, inner: FrameType | None) -> list[Callable[..., Any]]:
    """The `init` of each member that a chain has called so far, without the one that runs.

    `optax.chain` runs a generator over them, and `optax.named_chain` a loop.
    """
    own = chain.f_locals
    if "init_fns" in own:
        members, running = list(own["init_fns"]), inner and inner.f_locals.get("fn")
    else:
        members = [member.init for _, member in own.get("transforms", ())]
        running = own["tx"].init if "tx" in own else None
    return members[: members.index(running)] if running in members else []


def _frozen(init: Callable[..., Any], params: Any) -> list[bool]:
    """Whether each leaf is set to zero by `optax.freeze` or `optax.selective_transform`.

    As far as one can see: one inside of other wrappers may be made for a part of the tree only.
    """
    found = [False] * len(jax.tree.leaves(params))
    for function in _functions(init):
        own = _variables(function)
        if function.__qualname__ == "masked.<locals>.init_fn" and _zeroes(own["inner"]):
            tree, frozen = own["mask"], {True}
        elif function.__qualname__ == "partition.<locals>.init_fn":
            frozen = {group for group, member in own["transforms"].items() if _zeroes(member)}
            tree = own["param_labels"]
        else:
            continue
        with contextlib.suppress(Exception):  # of another tree
            tree = tree(params) if inspect.isroutine(tree) else tree
            flags = jax.tree.map(
                lambda kind, part, frozen=frozen: jax.tree.map(lambda _: kind in frozen, part),
                tree,
                params,
            )
            found = [a or b for a, b in zip(found, jax.tree.leaves(flags), strict=True)]
    return found


def _zeroes(member: Any) -> bool:
    """Whether a transformation is `optax.set_to_zero`."""
    update = member.update
    while update.__qualname__ == "with_extra_args_support.<locals>.update":
        update = _variables(update)["tx"].update
    return bool(update.__qualname__ == "set_to_zero.<locals>.update_fn")


def _variables(function: Any) -> dict[str, Any]:
    """The variables of its closure, by name."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if _is_full(cell)}


def _functions(root: Any) -> Iterator[Any]:
    """Every function that this one can reach: through its closure, methods and containers."""
    waiting, seen = [root], set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if inspect.ismethod(thing):
            waiting += [thing.__func__, *getattr(thing.__self__, "__dict__", {}).values()]
        elif inspect.isfunction(thing):
            yield thing
            waiting += _variables(thing).values()
        elif isinstance(thing, functools.partial):
            waiting += [thing.func, thing.args, thing.keywords]
        elif isinstance(thing, tuple | list):
            waiting += thing
        elif isinstance(thing, dict):
            waiting += thing.values()


def _is_full(cell: Any) -> bool:
    """Whether the variable has a value yet."""
    try:
        cell.cell_contents  # noqa: B018  # raises where there is none
    except ValueError:
        return False
    return True
