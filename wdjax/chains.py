"""What stands before decay in its chain: a wrapper that takes steps at other times must not.

Optax tells a transformation nothing about its neighbours. But `optax.chain` calls the `init` of
its members one after the other, so while one of them runs, the frames above it show the rest.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# What changes when or where a step is taken, by its `init`; and what decay behind it would do.
_WRAPPERS = {
    "MultiSteps.init": "optax.MultiSteps, whose every micro-step would decay",
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


def require_no_wrapper_before() -> None:
    """Raise if the caller is the `init` of decay that stands behind a wrapper in a chain.

    Raises:
        TypeError: naming the wrapper.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from wdjax.transforms import decay_weights
        >>> optax.chain(optax.MultiSteps(optax.sgd(1.0), 4), decay_weights(0.1)).init(jnp.ones(2))
        Traceback (most recent call last):
        TypeError: decay must stand inside of optax.MultiSteps, whose every micro-step would ...
    """
    frame, inner = inspect.currentframe(), None
    while frame is not None:
        name = frame.f_code.co_qualname
        if name in _WRAPPERS:
            return  # this decay stands inside of one
        if name in _CHAINS:
            for init in _before(frame, inner):
                wrapper = wrapper_in(init)
                if wrapper is not None:
                    raise TypeError(
                        f"decay must stand inside of {wrapper}; this chain has it behind. "
                        "Wrap the whole chain: wrapper(optax.chain(...), ...)."
                    )
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
            waiting += [cell.cell_contents for cell in thing.__closure__ or () if _is_full(cell)]
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
