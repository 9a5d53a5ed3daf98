"""Whether decay stands on the right side of what turns a gradient into a step.

A step is a gradient times −η, and decay has a sign of its own on either side of that. On the wrong
one weights grow, and nothing else shows it.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from wdjax.frames import name_in, running, variables

Update = Callable[..., Any]

_CHAINS = ("chain.<locals>.update_fn", "named_chain.<locals>.update_fn")
_FROM_GRADIENTS = re.compile(
    r"(scale_by_(?!schedule|trust_ratio|polyak|param_block|zoom_|backtracking_)\w+)\.<locals>\.update"
)
_COUNTS = (0, 1, 10, 100, 1_000, 10_000)  # at which a schedule may show its sign


def check_is_last(name: str) -> None:
    """Raise if what changes finished steps is called in a chain that has not finished them.

    Args:
        name: of the caller, for the message.

    Raises:
        TypeError: what makes a step of a gradient comes later in a chain around the caller.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from wdjax.transforms import decay_weights
        >>> params = {"kernel": jnp.ones((1, 1))}
        >>> tx = optax.chain(decay_weights(0.1), optax.sgd(0.1))
        >>> tx.update(params, tx.init(params), params)
        Traceback (most recent call last):
        TypeError: `decay_weights` must stand behind a negative learning rate: it changes ...
    """
    for _, after in _neighbours():
        found = _makes_steps(after)
        if found:
            raise TypeError(
                f"`{name}` must stand behind {found}: it changes finished steps, θ + Δ, and what "
                "follows would take its part for a gradient, so that weights grow. Put it last: "
                f"optax.chain(optax.sgd(...), {name}(...)). What stands before the learning rate "
                "is wdjax.add_decayed_weights."
            )


def check_is_early(name: str) -> None:
    """Raise if what changes gradients is called in a chain that has made steps of them.

    Args:
        name: of the caller, for the message.

    Raises:
        TypeError: a learning rate comes earlier in a chain around the caller, and none later.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from wdjax.transforms import add_decayed_weights
        >>> params = {"kernel": jnp.ones((1, 1))}
        >>> tx = optax.chain(optax.sgd(0.1), add_decayed_weights(0.1))
        >>> tx.update(params, tx.init(params), params)
        Traceback (most recent call last):
        TypeError: `add_decayed_weights` must stand before a negative learning rate: it changes ...
    """
    around = list(_neighbours())
    later = any(_is_rate(f) for _, after in around for f in _links(after))
    # a factor of −1 makes no step: it climbs
    earlier = any(_is_rate(f, other_than=-1) for before, _ in around for f in _links(before))
    if earlier and not later:
        raise TypeError(
            f"`{name}` must stand before a negative learning rate: it changes gradients, and "
            "behind the step its part would make weights grow. Put it first: "
            f"optax.chain({name}(...), optax.sgd(...)). What stands last is wdjax.decay_weights."
        )


def _neighbours() -> Iterator[tuple[Sequence[Update], Sequence[Update]]]:
    """The updates before and after the one that has called this, in every chain that runs."""
    for name, frame in running():
        if name in _CHAINS:
            own = frame.f_locals
            members = _members(own)
            done = len(own.get("new_state", ()))
            yield tuple(members[:done]), tuple(members[done + 1 :])


def _makes_steps(updates: Sequence[Update]) -> str:
    """What in them takes gradients and makes steps, in words; empty if nothing does."""
    for function in _links(updates):
        direction = _FROM_GRADIENTS.match(name_in(function))
        if direction:
            return f"optax.{direction[1]}"
        if _is_rate(function):
            return "a negative learning rate"
    return ""


def _links(updates: Sequence[Update]) -> Iterator[Update]:
    """The updates of chains within chains. What else holds others may act on other leaves."""
    for update in updates:
        name, own = _opened(update)
        if name == "with_extra_args_support.<locals>.update":
            yield from _links([own["tx"].update])
        elif name in _CHAINS:
            yield from _links(_members(own))
        else:
            yield update


def _opened(update: Update) -> tuple[str, Mapping[str, Any]]:
    """The name of a function of Optax and the variables of its closure; of another's neither."""
    name = name_in(update)
    return name, variables(update) if name else {}


def _members(own: Mapping[str, Any]) -> Sequence[Update]:
    return own.get("update_fns") or [tx.update for _, tx in own.get("transforms", ())]


def _is_rate(update: Update, other_than: float | None = None) -> bool:
    """Whether it is the update of `optax.scale` or `scale_by_schedule` with a negative factor."""
    name, own = _opened(update)
    if name == "scale.<locals>.update_fn":
        factors: list[Any] = [own.get("step_size")]
    elif name == "scale_by_schedule.<locals>.update_fn":
        schedule = own.get("step_size_fn")
        if name_in(schedule).startswith("scale_by_learning_rate."):
            return bool(variables(schedule).get("m") == -1)
        factors = [_at(schedule, count) for count in _COUNTS]
    else:
        return False
    unknown = (type(None), jax.core.Tracer)
    known = [x for x in factors if not isinstance(x, unknown) and np.size(x) == 1]
    signs = [math.copysign(1, x) for x in known if np.isrealobj(x) and x != other_than]
    # −0.0 is the rate 0 with its sign turned; what is positive at times is no rate
    return bool(signs) and max(signs) < 0


def _at(schedule: Any, count: int) -> Any:
    """The value of a schedule, or None where it cannot be told."""
    with contextlib.suppress(Exception), jax.ensure_compile_time_eval():
        return float(schedule(count))
    return None
