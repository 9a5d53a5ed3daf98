"""What Optax does not tell: the functions that run, and what is in their closures.

A transformation hears nothing of its neighbours. But `optax.chain` calls its members one after the
other, so while one of them runs, the frames above it show the rest.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

INJECTED = "inject_hyperparams.<locals>.wrapped_transform.<locals>."
_INJECT = INJECTED + "init_fn"
_MOST = 1_000  # items of a container: more are data


def running() -> Iterator[tuple[str, FrameType]]:
    """The functions of Optax that have called the caller, by qualified name, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        name = name_of(frame)
        if name:
            yield name, frame
        frame = frame.f_back


def name_of(frame: FrameType) -> str:
    """The qualified name of the function that runs, if it is Optax's."""
    return frame.f_code.co_qualname if _is_optax(frame.f_globals.get("__name__")) else ""


def functions(root: Any) -> Iterator[Any]:
    """Every function that this one can reach: through its closure, methods and containers."""
    waiting, seen = [root], set()
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen:
            seen.add(id(thing))
            if inspect.isfunction(thing):
                yield thing
            waiting += _within(thing)


def _within(thing: Any) -> list[Any]:
    """What a function, a method or a container holds."""
    if inspect.isfunction(thing):
        return [
            *variables(thing).values(),
            *(_injected(thing) if name_in(thing) == _INJECT else ()),
        ]
    if inspect.ismethod(thing):
        is_optax = _is_optax(type(thing.__self__).__module__)
        return [thing.__func__, *(vars(thing.__self__).values() if is_optax else ())]
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, tuple | list | dict):
        items = list(thing.values() if isinstance(thing, dict) else thing)
        return items if len(items) <= _MOST else []
    return [thing.__wrapped__] if hasattr(thing, "__wrapped__") else []  # by jax.jit


def _injected(init: Any) -> list[Any]:
    """The `init` that `optax.inject_hyperparams` makes anew in every step."""
    own = variables(init)
    with contextlib.suppress(Exception):  # it may need the values of some step
        hyperparams = {name: s(s.init()) for name, s in own["sched_hps"].items()}
        return [own["inner_factory"](**own["other_hps"], **own["numeric_hps"], **hyperparams).init]
    return []


def variables(function: Any) -> dict[str, Any]:
    """The variables of its closure, by name."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if _is_full(cell)}


def _is_full(cell: Any) -> bool:
    """Whether the variable has a value yet."""
    try:
        cell.cell_contents  # noqa: B018  # raises where there is none
    except ValueError:
        return False
    return True


def name_in(function: Any) -> str:
    """The qualified name of a function, if it is Optax's."""
    own = getattr(function, "__module__", None)
    return getattr(function, "__qualname__", "") if _is_optax(own) else ""


def _is_optax(module: Any) -> bool:
    return str(module).split(".")[0] == "optax"
