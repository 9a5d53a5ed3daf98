"""Whatever decays is visible: every method of `method_cases` with every fault.

The audit says so, by what a step does to stand-in weights, or the method refuses before that. What
neither sees is in the table below, and a test fails when that changes.
"""

import functools
import re
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from audit_cases import sgd, user_chain
from method_cases import LEARNED, METHODS

import wdjax
from wdjax import adaptive, audit, metrics

ONE = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(3, np.float32)}
PARAMS = {**ONE, "still": {"kernel": np.ones((4, 3), np.float32)}}
NARROW = jax.tree.map(lambda x: x.astype(jnp.bfloat16), ONE)
RULES = (("bias", 0.0), ("**", 1.0))
ROWS = METHODS | LEARNED


def loss(params):
    """Its gradient does not reach `still`."""
    return jnp.sum(params["kernel"]) + jnp.sum(jax.lax.stop_gradient(params["still"]["kernel"]))


# One for each method, the same whatever other rows there are.


def some(table, name):
    return list(table.values())[zlib.crc32(name.encode()) % len(table)]


LABELS, STILL = {"kernel": "x", "bias": "x"}, {"kernel": False, "bias": False, "still": True}
STEPS = {  # what hides the step from who reads chains
    "bare": sgd,
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(0.1),
    "masked": lambda: optax.masked(sgd(), {"kernel": True, "bias": True}),
    "partition": lambda: optax.partition({"x": sgd()}, LABELS),
    "MultiSteps": lambda: optax.MultiSteps(sgd(), 1),
    "apply_if_finite": lambda: optax.apply_if_finite(sgd(), 3),
    "with_grad": lambda: adaptive.with_grad(sgd()),
    "measured": lambda: metrics.measured(sgd()),
    "compensated": lambda: wdjax.compensated(sgd()),
    "adamw": lambda: wdjax.adamw(0.1, weight_decay=0.0, rules=RULES),
}
STOPS = {
    "function": lambda: optax.stateless(
        lambda u, p: {**u, "still": jax.tree.map(jnp.zeros_like, u["still"])}
    ),
    "scale(0.0)": lambda: optax.masked(optax.scale(0.0), STILL),
    "set_to_zero": lambda: optax.masked(optax.set_to_zero(), STILL),
    "partition": lambda: optax.partition(
        {"x": optax.identity(), "y": optax.scale(0.0)}, {**LABELS, "still": "y"}
    ),
}


# The faults: name of the method -> parameters and optimizer.


def made(name, x=None, params=ONE):
    case, arguments = ROWS[name], {"rules": RULES}
    if case.anchor is not None:
        full = lambda p: np.full_like(p, case.anchor)
        is_number = not isinstance(case.anchor, str)
        arguments["anchor"] = jax.tree.map(full, params) if is_number else case.anchor
    return case.build(case.x if x is None else x, **arguments)


def chained(name, *parts):
    """A chain as somebody writes it: no check of ours can look into it."""
    return (adaptive.with_grad if ROWS[name].needs_grad else lambda tx: tx)(user_chain(*parts))


def in_place(name, method, step=None):
    parts = (method, sgd() if step is None else step)
    return parts if ROWS[name].first else parts[::-1]


def under_stop_gradient(name):
    """All else is right."""
    return PARAMS, chained(name, *in_place(name, made(name, params=PARAMS)))


def on_the_wrong_side(name):
    return ONE, chained(name, *reversed(in_place(name, made(name), some(STEPS, name)())))


def on_frozen_weights(name):
    stop, method = some(STOPS, name)(), made(name, params=PARAMS)
    parts = (stop, method, sgd()) if ROWS[name].first else (sgd(), stop, method)
    return PARAMS, chained(name, *parts)


def twice(name):
    return ONE, chained(name, *in_place(name, user_chain(made(name), made(name))))


def far_too_strong(name):
    return ONE, chained(name, *in_place(name, made(name, 50.0 if ROWS[name].first else 5.0)))


def in_bfloat16(name):
    return NARROW, chained(name, *in_place(name, made(name, 1e-4, NARROW), optax.sgd(1.0)))


SAYS = {
    under_stop_gradient: "no gradient of the loss reaches still",
    on_the_wrong_side: "grow without a gradient",
    on_frozen_weights: "frozen weights decay",
    twice: "places of one chain",
    far_too_strong: "lower the strength",
    in_bfloat16: "swallows this decay",
}

# The faults in the order of SAYS: + said or refused, . nothing is wrong, ? wrong and not seen.
#
# Nothing is wrong where weights at rest are not pulled (spd, the brake, floors, gates that wait for
# a step, lengths that weights start at), where the length of a step does not depend on its strength
# (projections, rotations), where twice is once (projections), and where no strength flips signs (a
# prox, a cap).
#
# Not seen: twice, what gradients decide (a strict gate, swd, awd, ada_decay), what has a multiplier
# of its own (cpr) and a prox whose pull depends on the length of the weights or is not along them.
# What acts on small weights alone (l0), or after three steps (own bound). What gradients cause:
# before Adam (swd) and too strong (awd).
TABLE = """
add_decayed_weights l2           +  +  +  +  +  +
decay_weights l2                 +  +  +  +  +  +
prox_weights l2                  +  +  +  +  .  +
add_decayed_weights l1           +  +  +  +  +  +
decay_weights l1                 +  +  +  +  +  +
prox_weights l1                  +  +  +  +  +  +
add_decayed_weights elastic_net  +  +  +  +  +  +
decay_weights elastic_net        +  +  +  +  +  +
prox_weights elastic_net         +  +  +  +  .  +
add_decayed_weights group_lasso  +  +  +  +  +  +
decay_weights group_lasso        +  +  +  +  +  +
prox_weights group_lasso         +  +  +  +  +  +
decay_weights cubic              +  +  +  +  +  +
prox_weights cubic               +  +  +  ?  .  +
decay_weights spread             +  +  +  +  +  +
prox_weights spread              +  +  +  ?  .  +
decay_weights p_norm 0.8         +  +  +  +  +  +
prox_weights p_norm 0.8          +  +  +  ?  .  +
prox_weights l0                  ?  ?  ?  .  +  .
prox_weights l_half              +  +  +  ?  +  +
decay_weights mcp                +  +  +  +  +  +
prox_weights mcp                 +  +  +  ?  +  +
decay_weights scad               +  +  +  +  +  +
prox_weights scad                +  +  +  ?  +  +
decay_weights huber              +  +  +  +  +  +
prox_weights huber               +  +  +  +  .  +
prox_weights ball                +  +  +  .  .  .
prox_weights sphere              +  +  +  .  .  .
prox_weights nuclear             +  +  +  +  .  +
add_decayed_weights spectral     +  +  +  +  +  +
decay_weights spectral           +  +  +  +  +  +
prox_weights spectral            +  +  +  ?  .  +
decay_weights orthogonal         +  +  +  +  +  +
prox_weights spectral_cap        +  +  +  .  .  .
decay_weights cautious           +  +  +  +  +  +
decay_weights strictly_cautious  .  +  .  ?  +  .
decay_after_step                 +  +  +  +  +  +
decay_weights anchor init        +  +  +  +  +  +
decay_after_step anchor init     +  +  +  +  +  +
prox_weights anchor init         +  +  +  ?  +  +
cpr uniform                      +  +  +  ?  .  .
cpr dependent                    +  +  +  ?  .  .
cpr own bound                    ?  ?  ?  ?  .  .
cpr deviation                    .  +  .  ?  .  .
cumulative_l1                    +  +  +  +  +  +
spd                              .  .  .  .  .  .
swd                              ?  ?  +  ?  .  .
awd                              ?  +  +  ?  ?  .
ada_decay                        +  +  +  ?  +  +
norm_control                     .  +  +  +  +  .
hyperball                        .  +  +  .  .  .
radial_brake                     .  .  .  .  +  .
project_radial                   +  +  +  .  +  +
update_floor                     .  .  .  .  .  .
relative_update                  .  .  .  .  .  .
rotational                       +  +  +  +  .  .
hyper_decay                      +  +  +  +  +  +
"""
SEEN = {
    (way, name): mark
    for name, *marks in (line.rsplit(maxsplit=len(SAYS)) for line in TABLE.strip().splitlines())
    for way, mark in zip(SAYS, marks, strict=True)
}


@functools.cache
def said(way, name):
    """What the audit says, or "refused"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            params, optimizer = way(name)
            known = {"loss": loss} if way is under_stop_gradient else {}
            return " | ".join(audit(params, optimizer, steps=10, **known).warnings)
        except (ValueError, TypeError):
            return "refused"


def rows(pairs):
    quick = {"decay_weights l1", "prox_weights l2"}
    return [
        pytest.param(
            way,
            name,
            id=f"{way.__name__}-{name}",
            marks=[] if name in quick else [pytest.mark.slow],
        )
        for way, name in pairs
    ]


@pytest.mark.parametrize(("way", "name"), rows(SEEN))
def test_what_is_wrong_is_said_or_refused(way, name):
    found = said(way, name)
    assert (found == "refused" or SAYS[way] in found) == (SEEN[way, name] == "+"), found


@pytest.mark.parametrize(("way", "name"), rows((under_stop_gradient, name) for name in ROWS))
def test_what_is_right_is_not_blamed(way, name):
    """But for the weights under `stop_gradient`."""
    found = said(way, name)
    assert not any(text in found for fault, text in SAYS.items() if fault is not way), found


# A method with other axes or another anchor, which the audit sees alike: not in the table.
VARIANT = re.compile("per |whole leaf|one view|AdamP|short memory|anchor 0.25|p_norm 1.5")


def test_every_method_is_in_the_table():
    assert {name for _, name in SEEN} == {name for name in ROWS if not VARIANT.search(name)}
