"""Whatever decays is visible: every method of `method_cases.METHODS` in every wrong place.

The audit says so, by what a step does to stand-in weights, or the method refuses before that. What
neither sees is in UNSEEN, with the reason, and a test fails when that changes. Of decay that is
there twice only fractions are told, and of too strong steps those that pass zero: see ONLY.
"""

import re
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from audit_cases import sgd, user_chain
from method_cases import METHODS

from wdjax import adaptive, audit

PARAMS = {"kernel": jnp.ones((3, 4)), "still": {"kernel": jnp.ones((4, 3))}, "bias": jnp.ones(3)}
NARROW = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
RULES = (("bias", 0.0), ("**", 1.0))
FREEZE = optax.stateless(lambda u, p: {**u, "still": jax.tree.map(jnp.zeros_like, u["still"])})


def made(case, x=None, params=PARAMS):
    arguments = {"rules": RULES}
    if case.anchor is not None:
        full = lambda p: jnp.full_like(p, case.anchor)
        is_number = not isinstance(case.anchor, str)
        arguments["anchor"] = jax.tree.map(full, params) if is_number else case.anchor
    return case.build(case.x if x is None else x, **arguments)


def chained(case, *parts):
    """A chain as somebody writes it: no check of ours can look into it."""
    return (adaptive.with_grad if case.needs_grad else lambda tx: tx)(user_chain(*parts))


def in_place(case, method, step=None):
    step = sgd() if step is None else step
    return (method, step) if case.first else (step, method)


def right(case):
    return PARAMS, chained(case, *in_place(case, made(case)))


def on_the_wrong_side(case):
    return PARAMS, chained(case, *reversed(in_place(case, made(case))))


def on_frozen_weights(case):
    step = user_chain(sgd(), FREEZE)
    parts = (FREEZE, made(case), sgd()) if case.first else (step, made(case))
    return PARAMS, chained(case, *parts)


def twice(case):
    return PARAMS, chained(case, *in_place(case, user_chain(made(case), made(case))))


def far_too_strong(case):
    return PARAMS, chained(case, *in_place(case, made(case, 50.0 if case.first else 5.0)))


def in_bfloat16(case):
    method = made(case, 1e-4, NARROW)
    return NARROW, chained(case, *in_place(case, method, optax.sgd(1.0)))


SAYS = {
    on_the_wrong_side: "grow without a gradient",
    on_frozen_weights: "frozen weights decay",
    twice: "2 places of one chain",
    far_too_strong: "one step takes off all of",
    in_bfloat16: "swallows this decay",
}
NO_PULL = {  # on weights of size 1 to 2 that rest where they began, there is none to see
    *("spd", "radial_brake", "update_floor", "relative_update"),
    *("prox_weights l0", "cpr own bound"),  # small weights alone; after three steps
}
WITH_A_STEP = {"decay_weights strictly_cautious", "cpr deviation"}
ANY_STRENGTH = {  # as long a step for the smallest strength, none without one, or one of gradients
    *("prox_weights ball", "prox_weights sphere", "prox_weights spectral_cap", "awd", "swd"),
    *("cpr uniform", "cpr dependent", "rotational", "hyperball", "norm_control"),
}
UNSEEN = {
    on_the_wrong_side: NO_PULL,
    on_frozen_weights: NO_PULL | WITH_A_STEP,
    in_bfloat16: NO_PULL | WITH_A_STEP | ANY_STRENGTH,
}
ONLY = {  # a sum of lengths is a length, and a prox takes off less than everything
    twice: {"add_decayed_weights l2", "decay_weights l2", "prox_weights l2"},
    far_too_strong: {
        f"{verb} {penalty}"
        for verb in ("add_decayed_weights", "decay_weights")
        for penalty in ("l2", "l1", "elastic_net", "group_lasso")
    }
    | {"ada_decay"},
}


def said(way, case):
    """What the audit says, or "refused"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            params, optimizer = way(case)
            return " | ".join(audit(params, optimizer, steps=10).warnings)
        except (ValueError, TypeError):
            return "refused"


# A method with other axes or another anchor, which the audit sees alike: in its right place alone.
VARIANT = re.compile("per |whole leaf|one view|AdamP|short memory|anchor 0.25|p_norm 1.5")


def rows(ways):
    quick = {"decay_weights l1", "prox_weights l2"}
    for way in ways:
        names = [name for name in METHODS if way is right or not VARIANT.search(name)]
        for name in sorted(ONLY.get(way, names)):
            case = METHODS[name]
            marks = [] if name in quick else [pytest.mark.slow]
            yield pytest.param(way, name, case, id=f"{way.__name__}-{name}", marks=marks)


@pytest.mark.parametrize(("way", "name", "case"), [*rows(SAYS)])
def test_what_is_wrong_is_said_or_refused(way, name, case):
    found = said(way, case)
    seen = found == "refused" or SAYS[way] in found
    assert seen == (name not in UNSEEN.get(way, ())), found


@pytest.mark.parametrize(("way", "name", "case"), [*rows([right])])
def test_what_is_right_is_not_blamed(way, name, case):
    found = said(way, case)
    assert not any(piece in found for piece in SAYS.values()), found
