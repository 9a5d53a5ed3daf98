"""Where decay acts in its chain: what comes before it, after it and around it.

A transformation hears nothing of its neighbours. But `optax.chain` calls its members one after the
other, so while one of them runs, the frames above it show the rest.

A step is a gradient times −η, and decay has a sign of its own on either side of that. On the wrong
one weights grow, and nothing else shows it.
"""

import contextlib
import functools
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import jax
import numpy as np

from wdjax._trees import paths
from wdjax.rules import CLOSING, RuleError, Rules, hint, names_any, shown

# The functions of Optax that run, and what is in their closures.

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


# What comes before decay while `init` runs, or around all of it.

_IN_THE_LOSS = (
    "in the loss of a linesearch, which keeps value and gradient of where it ends for "
    "optax.value_and_grad_from_state"
)
# Where decay must stand instead of behind it, by the `init` of what changes when or where a step
# is taken; and what decay behind it would do.
_PLACES = {
    "MultiSteps.init": "inside of optax.MultiSteps, whose every micro-step would decay",
    "apply_every.<locals>.init_fn": "inside of optax.MultiSteps in place of optax.apply_every, "
    "whose every micro-step would decay",
    "apply_if_finite.<locals>.init": "inside of optax.apply_if_finite, whose skipped steps would "
    "decay",
    "conditionally_mask.<locals>.init_fn": "inside of optax.transforms.conditionally_mask, whose "
    "skipped steps would decay",
    "lookahead.<locals>.init_fn": "inside of optax.lookahead, whose slow weights would not decay",
    "schedule_free.<locals>.init_fn": "inside of optax.contrib.schedule_free, whose iterate would "
    "not decay",
    "sam.<locals>.init_fn": "inside of optax.contrib.sam, whose adversarial step would decay",
    "mechanize.<locals>.init_fn": "inside of optax.contrib.mechanize, which computes weights from "
    "the first ones and so undoes it",
    "scale_by_cocob.<locals>.init_fn": "before optax.contrib.cocob, which computes weights from "
    "the first ones and so undoes it",
    "scale_by_madgrad.<locals>.init_fn": "before optax.contrib.madgrad, which computes weights "
    "from the first ones and so undoes it",
    "scale_by_zoom_linesearch.<locals>.init_fn": _IN_THE_LOSS,
    "scale_by_backtracking_linesearch.<locals>.init_fn": _IN_THE_LOSS,  # with store_grad
}
_CHAIN_INITS = ("chain.<locals>.init_fn", "named_chain.<locals>.init_fn")


def place_instead(init: Callable[..., Any]) -> str | None:
    """Tell where decay must stand if not behind this, whatever holds it how deep.

    Args:
        init: of any Optax transformation.

    Returns:
        The place, and what decay behind it would do; None where it may stand behind.

    Example:
        >>> import optax
        >>> place_instead(optax.chain(optax.lookahead(optax.sgd(0.1), 5, 0.5)).init)
        'inside of optax.lookahead, whose slow weights would not decay'
        >>> place_instead(optax.adam(0.1).init)
    """
    # a backtracking linesearch that keeps no gradient needs none
    kept = (f for f in functions(init) if variables(f).get("store_grad", True))
    return next(filter(None, (_PLACES.get(name_in(function)) for function in kept)), None)


def remedy(place: str) -> str:
    """Say what to write instead.

    Args:
        place: from `place_instead`.

    Returns:
        A sentence.

    Example:
        >>> remedy("before optax.contrib.cocob, which ...")
        'Use its own weight_decay, or wdjax.add_decayed_weights first in the chain.'
    """
    if place == _IN_THE_LOSS:
        return "Add it: loss + λ * wdjax.penalty_value(wdjax.penalties.l2, params)."
    if place.startswith("before"):
        return "Use its own weight_decay, or wdjax.add_decayed_weights first in the chain."
    return "Wrap the whole chain: wrapper(optax.chain(...), ...)."


def check_place(params: Any, rules: Rules, multipliers: Any) -> None:
    """Raise if the caller is the `init` of decay that stands where it must not in a chain.

    Args:
        params: θ.
        rules: those of the decay. Where a mask hides leaves from it, every rule must have its part
            in the whole tree.
        multipliers: m of each leaf, 0 where it does not decay.

    Raises:
        TypeError: what takes steps at other times comes first, or `optax.freeze` of parameters
            that would decay all the same; `optax.flatten` has taken the names away.
        RuleError: a rule matches nothing, hidden leaves included.

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
    _check_hidden(rules, params)
    for init in _before_the_caller():
        place = place_instead(init)
        if place is not None:
            raise TypeError(f"decay must stand {place}; this chain has it behind. {remedy(place)}")
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


def needed_gradient(name: str, grad: Any) -> Any:
    """Return the raw gradients, unless they are missing.

    Args:
        name: whose need it is, for messages.
        grad: from `leafwise.raw_gradients`.

    Returns:
        The same.

    Raises:
        ValueError: there is none, or `optax.MultiSteps` around it hands on that of the last
            micro-batch.

    Example:
        >>> needed_gradient("spd", None)
        Traceback (most recent call last):
        ValueError: `spd` needs the raw gradient; got none. Use wdjax.decayed, or wrap the chain ...
    """
    if grad is not None:
        return grad
    if stands_in("MultiSteps.update"):
        raise ValueError(
            f"`{name}` needs the raw gradient of the whole step; inside of optax.MultiSteps, the "
            "`grad` that is passed is that of the last micro-batch. Write "
            "optax.MultiSteps(wdjax.adaptive.with_grad(optax.chain(...)), ...)."
        )
    raise ValueError(
        f"`{name}` needs the raw gradient; got none. Use wdjax.decayed, or wrap the chain in "
        "wdjax.adaptive.with_grad(...), or call "
        "`optimizer.update(grads, state, params, grad=grads)`."
    )


def is_of_a_micro_batch(grad: Any) -> bool:
    """Tell whether `optax.MultiSteps` was given these gradients, and hands them on as they are.

    Args:
        grad: the argument of that name.

    Returns:
        Whether they are those of one micro-batch out of several.

    Example:
        >>> is_of_a_micro_batch({"kernel": 1.0})
        False
    """
    frame = next((frame for name, frame in running() if name == "MultiSteps.update"), None)
    if frame is None or frame.f_locals.get("extra_args", {}).get("grad") is not grad:
        return False
    count = frame.f_locals.get("k_steps")
    return isinstance(count, jax.core.Tracer) or count is None or int(count) != 1


def is_scheduled(argument: str) -> bool:
    """Tell whether `optax.inject_hyperparams` takes an argument of the caller for a schedule.

    Args:
        argument: its name.

    Returns:
        Whether the value that the caller got is what this argument returned for a step count.

    Example:
        >>> is_scheduled("mask")
        False
    """
    frame = next((frame for name, frame in running() if name.startswith(INJECTED)), None)
    return frame is not None and argument in frame.f_locals.get("sched_hps", ())


def stands_in(init: str) -> bool:
    """Tell whether an `init` of Optax with this qualified name is running.

    Args:
        init: such as "apply_if_finite.<locals>.init".

    Returns:
        Whether it called the caller, directly or through others.

    Example:
        >>> stands_in("apply_if_finite.<locals>.init")
        False
    """
    return any(name == init for name, _ in running())


def _check_hidden(rules: Rules, params: Any) -> None:
    """Raise for a rule that names nothing in the tree which the outermost mask was given.

    Only names can be asked for: what else a rule looks at is hidden for good reason.
    """
    if not paths.has_holes(params):
        return
    whole: tuple[paths.Leaf, ...] = ()
    with contextlib.suppress(TypeError):  # what is no array may be hidden, too
        whole = paths.leaves(_whole())
    names = tuple(leaf.path for leaf in whole)
    if not whole or not {leaf.path for leaf in paths.leaves(params)} <= {*names}:
        return
    for selector, _ in rules:
        if _is_name(selector) and selector not in CLOSING and not names_any(selector, names):
            raise RuleError(f"rule {shown(selector)} matches no parameter{hint(selector, whole)}")


def _is_name(selector: Any) -> bool:
    """Whether a selector looks at the path alone."""
    if isinstance(selector, tuple):
        return all(map(_is_name, selector))
    return isinstance(selector, str | re.Pattern)


# The chain that runs.


def _whole() -> Any:
    """The tree of which the outermost `optax.masked` shows the caller a part; () for none."""
    masks = [frame for name, frame in running() if name == "masked.<locals>.init_fn"]
    return masks[-1].f_locals["params"] if masks else ()


def _before_the_caller() -> Iterator[Callable[..., Any]]:
    """The `init` of all that comes before, in the chain that runs and in those around it."""
    frame, inner = inspect.currentframe(), None
    while frame is not None and name_of(frame) not in _PLACES:  # decay may stand inside of one
        if name_of(frame) in _CHAIN_INITS:
            yield from _before(frame, inner)
        frame, inner = frame.f_back, frame


def _before(chain: FrameType, inner: FrameType | None) -> list[Callable[..., Any]]:
    """The `init` of each member that a chain has finished.

    `optax.chain` runs a generator over them, and `optax.named_chain` a loop.
    """
    own = chain.f_locals
    if "init_fns" in own:
        members, waiting = list(own["init_fns"]), inner.f_locals.get(".0") if inner else None
        return members[: max(0, len(members) - operator.length_hint(waiting) - 1)]
    members = [member.init for _, member in own.get("transforms", ())]
    return members[: len(own.get("states", ()))]


# What a member holds.


def _frozen(init: Callable[..., Any], params: Any) -> list[bool]:
    """Whether each leaf is set to zero by `optax.freeze` or `optax.selective_transform`.

    As far as one can see: one inside of other wrappers may be made for a part of the tree only.
    """
    found = [False] * len(jax.tree.leaves(params))
    for function in functions(init):
        own = variables(function)
        is_frozen: Callable[[Any], bool] = bool
        if name_in(function) == "masked.<locals>.init_fn" and _zeroes(own["inner"].update):
            tree = own["mask"]
        elif name_in(function) == "partition.<locals>.init_fn":
            members = own["transforms"].items()
            is_frozen = {group for group, member in members if _zeroes(member.update)}.__contains__
            tree = own["param_labels"]
        else:
            continue
        with contextlib.suppress(Exception):  # of another tree
            is_function = all(map(callable, jax.tree.leaves(tree)))  # as Optax tells them
            flags = jax.tree.map(
                lambda kind, part, test=is_frozen: jax.tree.map(lambda _: test(kind), part),
                tree(params) if is_function else tree,
                params,
            )
            found = [a or b for a, b in zip(found, jax.tree.leaves(flags), strict=True)]
    return found


def _zeroes(update: Any) -> bool:
    """Whether the `update` is that of `optax.set_to_zero`, alone or in a chain."""
    name = name_in(update)
    if name == "with_extra_args_support.<locals>.update":
        return _zeroes(variables(update)["tx"].update)
    if name == "chain.<locals>.update_fn":
        return any(map(_zeroes, variables(update)["update_fns"]))
    return name == "set_to_zero.<locals>.update_fn"


# The side of the learning rate.

Update = Callable[..., Any]

_CHAIN_UPDATES = ("chain.<locals>.update_fn", "named_chain.<locals>.update_fn")
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
        if name in _CHAIN_UPDATES:
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
        elif name in _CHAIN_UPDATES:
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
