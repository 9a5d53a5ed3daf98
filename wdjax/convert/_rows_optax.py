"""Rows of Optax: its own factories with their decay switched off, and that decay by rules."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import optax

from wdjax.convert import _update_rules
from wdjax.convert._links import added, coupled, in_the_dtypes, last, only, ours, part, rated
from wdjax.convert._muon import by_owner, decays_of
from wdjax.convert._pieces import Build, Piece, Settings, given
from wdjax.convert._row import OWN_STEP_SIZE, REQUIRED, Entry, Row
from wdjax.rules import Rules
from wdjax.schedules import as_schedule, fixed

_OFF = {"weight_decay": 0.0, "weight_decay_rate": None, "adam_weight_decay": 0.0}


def _without_decay(name: str) -> Build:
    """What the factory builds of all settings but its decay."""
    factory = _factory(name)
    full = f"optax.{name}" if hasattr(optax, name) else f"optax.contrib.{name}"

    def link(s: Settings, rules: Rules) -> list[Piece]:
        own = {key: value for key, value in s.items() if key not in _OFF}
        lr = own["learning_rate"]
        # a schedule whatever it is: the state of a number is another one
        schedule = None if lr is None else as_schedule(lr, "learning_rate")
        off = {key: value for key, value in _OFF.items() if key in s}
        step = factory(**{**own, **off, "learning_rate": schedule})
        step = optax.chain(step, in_the_dtypes)
        return [Piece(given(s, *own), f"{full} of these, without its decay", step)]

    return link


def _row(name: str, *links: Build, without: tuple[str, ...] = ()) -> Row:
    """A row whose settings and defaults are those of the installed factory."""
    parameters = inspect.signature(_factory(name)).parameters
    defaults = {
        key: REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
        for key, parameter in parameters.items()
        if key not in without
    }
    return Row(links, defaults)


def _factory(name: str) -> Any:
    return getattr(optax, name, None) or getattr(optax.contrib, name, None)


def _rows(names: str, *before: Build, after: tuple[Build, ...] = ()) -> Iterator[tuple[str, Row]]:
    """One row for each name that the installed Optax has."""
    for name in names.split():
        if _factory(name):
            yield name, _row(name, *before, _without_decay(name), *after)


def _both(s: Settings, rules: Rules) -> list[Piece]:
    """Muon's two λ: of matrices, and of the rest at its own rate, if that has one."""
    rest = s.get("adam_learning_rate")
    rates = {
        "weight_decay": s["learning_rate"],
        "adam_weight_decay": s["learning_rate"] if rest is None else rest,
    }
    return decays_of(s, rates, rules, by_owner(lambda leaf: leaf.ndim != 2))


def _trust_ratio(s: Settings, rules: Rules) -> list[Piece]:
    return [Piece("always", "optax.scale_by_trust_ratio()", optax.scale_by_trust_ratio())]


_AXES = ("muon_weight_dimension_numbers", "weight_decay_mask")
_POLYAK = "its λ is part of its step size, which it computes from the loss."
_SCHEDULE_FREE = "it decays inside its averaging. Write convert.from_('schedulefree', '{}', ...)."

OPTAX: Mapping[str, Entry] = {
    **dict(_rows(
        "adamw nadamw adamaxw lion adan acprop ademamix simplified_ademamix galore sophia",
        after=(last(),),
    )),
    **dict(_rows("adadelta cocob dog dowg lars madgrad", coupled)),
    **dict(_rows("adafactor", after=(last(fixed),))),
    "sgd": _row("sgd", _without_decay("sgd")),
    "lamb": _row(  # inside, so in parts
        "lamb",
        part(optax.scale_by_adam, "b1", "b2", "eps", "eps_root"),
        added("between Adam and the trust ratio"),
        _trust_ratio, rated,
    ),
    "muon": _row("muon", _without_decay("muon"), _both, without=_AXES),
    "novograd": _row(
        "novograd",
        only("eps_root", 0.0, "Nothing here has it."),
        ours(_update_rules.normalized, "each leaf's gradient over its running norm", "b2", "eps"),
        added("in its momentum, beside the normalized gradient"),
        part(optax.trace, "b1"), rated,
    ),
    **dict.fromkeys(("prodigy", "dadapt_adamw"), OWN_STEP_SIZE),
    **dict.fromkeys(("momo", "momo_adam"), _POLYAK),
    "mechanize": "its λ is multiplied by the norm of the gradient over that of the weights. "
    "Decay inside: optax.contrib.mechanize(wdjax.adamw(...), weight_decay=0.0).",
    "schedule_free_adamw": _SCHEDULE_FREE.format("AdamWScheduleFree"),
    "schedule_free_sgd": _SCHEDULE_FREE.format("SGDScheduleFree"),
}  # fmt: skip
OPTAX_NO_EQUAL: Mapping[str, str] = {
    "weight_decay_mask": "Say it in `rules`: they hold for both of its parts.",
    "muon_weight_dimension_numbers": "Its matrices are the arrays of two axes here.",
}
