"""Where decay acts in a bare `optax.chain`: a courtesy. `wdjax.audit` asks every optimizer.

`optax.chain` calls its members one after the other, so while one of them runs, the frame above it
shows the others. A step is a gradient times −η, and decay has a sign of its own on either side of
that: on the wrong one weights grow.

The names of functions and variables inside Optax are read here, and nobody has promised them. So
a canary runs first: where the names are not the known ones, these checks are off, with a warning.
What cannot be read is never a reason to refuse a program.
"""

import contextlib
import functools
import inspect
import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import optax

Update = Callable[..., Any]

_CHAIN = "chain.<locals>.update_fn"
_MAKER = re.compile(r"scale_by_(?!schedule|trust|polyak|param|zoom|back)\w+(?=\.<locals>\.update)")
# What changes when a step is taken, by its update, and what decay after it does.
_WRAPPERS = {
    "MultiSteps.update": "optax.MultiSteps and acts in every micro-step",
    "apply_every.<locals>.update_fn": "optax.apply_every and acts in every micro-step",
    "apply_if_finite.<locals>.update": "optax.apply_if_finite and acts in skipped steps",
    "conditionally_mask.<locals>.update_fn": "conditionally_mask and acts in skipped steps",
    "lookahead.<locals>.update_fn": "optax.lookahead and misses the slow weights",
    "schedule_free.<locals>.update_fn": "schedule_free and misses the iterate",
}
PENALTY = (
    "Put the penalty into the loss that the search is given, and take it out of the chain: "
    "loss(params) + λ * wdjax.penalty_value(wdjax.penalties.l2, params)."
)


def check_is_last(name: str) -> None:
    """Raise if a method that changes finished steps is called too early in a chain.

    Args:
        name: of the caller, for the message.

    Raises:
        TypeError: in a chain around the caller, the learning rate comes later, or a wrapper that
            takes steps at other times or a line search that keeps its gradient comes earlier.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from wdjax.transforms import decay_weights
        >>> params = {"kernel": jnp.ones((1, 1))}
        >>> tx = optax.chain(decay_weights(0.1), optax.sgd(0.1))
        >>> tx.update(params, tx.init(params), params)
        Traceback (most recent call last):
        TypeError: `decay_weights` must come after the learning rate, which would take it for ...
    """
    maker, wrapper = _read(_of_last, ("", ""))
    if maker:
        raise TypeError(
            f"`{name}` must come after {maker}, which would take it for a gradient and make "
            f"weights grow. Put it last: optax.chain(optax.sgd(...), {name}(...)). Before the "
            "learning rate use wdjax.add_decayed_weights."
        )
    if wrapper:
        raise TypeError(f"`{name}` comes after {wrapper}")


def check_is_early(name: str) -> None:
    """Raise if a method that changes gradients is called after the learning rate.

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
        TypeError: `add_decayed_weights` must come before the learning rate: it changes ...
    """
    if _read(_is_late, False):
        raise TypeError(
            f"`{name}` must come before the learning rate: it changes gradients, and after the "
            f"step it makes weights grow. Put it first: optax.chain({name}(...), optax.sgd(...)). "
            "After the learning rate use wdjax.decay_weights."
        )


def comes_later(is_one: Callable[[Update], bool]) -> bool:
    """Tell whether in a chain around the caller an update comes later that is one of these.

    Example:
        >>> comes_later(is_search)
        False
    """
    return bool(_read(lambda places: any(map(is_one, _after(places))), False))


def is_search(update: Update) -> bool:
    """Whether it is the update of a line search of Optax."""
    return "_linesearch." in name_of(update)


def wrapper_in(update: Update) -> str:
    """Say what in an optimizer takes steps at other times, and where decay goes instead.

    Args:
        update: of an Optax transformation; the members of chains are looked at.

    Returns:
        The end of a sentence, "" if nothing does.

    Example:
        >>> wrapper_in(optax.chain(optax.lookahead(optax.sgd(0.1), 5, 0.5)).update)[:45]
        'optax.lookahead and misses the slow weights. '
        >>> wrapper_in(optax.adam(0.1).update)
        ''
    """
    return str(_read(lambda places: _wrapper([update]), ""))


# What the chains around the caller hold: before it, after it, and whether a wrapper is in between.

_Places: TypeAlias = list[tuple[Sequence[Update], Sequence[Update], bool]]


def _read(question: Callable[[_Places], Any], unknown: Any) -> Any:
    """Ask where Optax can be read; an exception is never a reason to refuse a program."""
    if _is_legible():
        with contextlib.suppress(Exception):
            return question(_places())
    return unknown


def _of_last(places: _Places) -> tuple[str, str]:
    """What makes steps after the caller, and what before it takes them at other times."""
    near = [update for before, _, wrapped in places if not wrapped for update in before]
    return next(filter(None, map(_maker, _after(places))), ""), _wrapper(near)


def _is_late(places: _Places) -> bool:
    # a factor of −1 makes no step: it climbs
    earlier = any(_is_rate(f, other_than=-1) for before, _, _ in places for f in _links(before))
    return earlier and not any(map(_is_rate, _after(places)))


def _after(places: _Places) -> list[Update]:
    return [link for _, after, _ in places for link in _links(after)]


def _places() -> _Places:
    wrapped, found = False, []
    for frame, _ in traceback.walk_stack(None):
        name = _name(frame.f_code, frame.f_globals)
        wrapped |= name in _WRAPPERS
        if name == _CHAIN:
            members, done = frame.f_locals["update_fns"], len(frame.f_locals["new_state"])
            found.append((members[:done], members[done + 1 :], wrapped))
    return found


def _links(updates: Sequence[Update]) -> Iterator[Update]:
    """The updates of chains within chains. What else holds others may act on other leaves."""
    for update in updates:
        name = name_of(update)
        if name == "with_extra_args_support.<locals>.update":
            yield from _links([held(update, "tx").update])
        elif name == _CHAIN:
            yield from _links(held(update, "update_fns"))
        else:
            yield update


def _wrapper(updates: Sequence[Update]) -> str:
    for update in _links(updates):
        found = _WRAPPERS.get(name_of(update))
        if found:
            return f"{found}. Wrap the whole chain: wrapper(optax.chain(optax.sgd(...), decay))."
        if is_search(update) and _keeps_gradient(update):
            return f"a line search, which keeps the gradient of weights before decay. {PENALTY}"
    return ""


def _keeps_gradient(search: Update) -> bool:
    """Whether `optax.value_and_grad_from_state` reads what a line search has kept."""
    return bool(inspect.getclosurevars(search).nonlocals.get("store_grad", True))


def _maker(update: Update) -> str:
    """What takes gradients and makes steps, in words; "" for anything else."""
    direction = _MAKER.match(name_of(update))
    return f"optax.{direction[0]}" if direction else "the learning rate" * _is_rate(update)


def _is_rate(update: Update, other_than: float | None = None) -> bool:
    """Whether it is the update of `optax.scale` or `scale_by_schedule` with a negative factor."""
    name, factors = name_of(update), []
    if name == "scale.<locals>.update_fn":
        factors = [held(update, "step_size")]
    elif name == "scale_by_schedule.<locals>.update_fn":
        schedule = held(update, "step_size_fn")
        if name_of(schedule).startswith("scale_by_learning_rate."):
            return bool(held(schedule, "m") == -1)
        with jax.ensure_compile_time_eval():
            factors = [float(schedule(count)) for count in (0, 1, 10, 100, 1_000, 10_000)]
    # −0.0 is the rate 0 with its sign turned; a rate is never positive
    return max((math.copysign(1, x) for x in factors if x != other_than), default=1) < 0


# Names inside Optax, told by the code that runs: decorators copy the name of what they wrap.


def _name(code: Any, module: Mapping[str, Any]) -> str:
    """The qualified name of a function of Optax, "" for others."""
    return str(code.co_qualname) if str(module.get("__name__")).split(".")[0] == "optax" else ""


def held(function: Any, name: str) -> Any:
    """What a function holds in its closure."""
    return inspect.getclosurevars(function).nonlocals[name]


def name_of(function: Any) -> str:
    plain = getattr(function, "__func__", function)
    return _name(plain.__code__, plain.__globals__) if inspect.isfunction(plain) else ""


@functools.cache
def _is_legible() -> bool:
    """Whether chains show what they must: asked once in a process, on paper."""
    seen: list[Any] = []

    def look(updates: Any, state: Any, params: Any = None) -> Any:
        here = _places()[:1]  # there may be others above
        seen.append((*map(bool, _of_last(here)), _is_late(here)))
        return updates, state

    probe, step = optax.GradientTransformation(lambda params: (), look), optax.sgd(0.1)
    chains = ((optax.clip(1.0), step, probe), (probe, step), (optax.MultiSteps(step, 2), probe))
    with contextlib.suppress(Exception), jax.numpy_dtype_promotion("standard"):
        for tx in (optax.chain(*members) for members in chains):
            jax.eval_shape(lambda x, tx=tx: tx.update(x, tx.init(x), x), 1.0)
    if seen == [(False, False, True), (True, False, False), (False, True, False)]:
        return True
    warnings.warn(
        f"wdjax cannot see the order of chains in Optax {optax.__version__}; "
        "use wdjax.audit(params, optimizer)",
        stacklevel=2,
    )
    return False
