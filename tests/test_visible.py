"""Whatever decays is visible: every method of `method_cases.METHODS` in every wrong place.

The audit says so, by what a step does to stand-in weights, or the method refuses before that. What
neither sees is in UNSEEN, with the reason, and a test fails when that changes.
"""

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
    method = made(case, 1e-5, NARROW)
    return NARROW, chained(case, *in_place(case, method, optax.sgd(1.0)))


SAYS = {
    on_the_wrong_side: "grow without a gradient",
    on_frozen_weights: "frozen weights decay",
    twice: "two decays",
    far_too_strong: "takes off everything or more",
    in_bfloat16: "swallows this decay",
}
UNSEEN = {}


def said(way, case):
    """What the audit says, or "refused"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            params, optimizer = way(case)
            return " | ".join(audit(params, optimizer, steps=10).warnings)
        except (ValueError, TypeError):
            return "refused"


def rows(ways):
    quick = {"decay_weights l1", "prox_weights l2", "prox_weights nuclear"}
    for way in ways:
        for name, case in METHODS.items():
            marks = [] if name in quick else [pytest.mark.slow]
            yield pytest.param(way, name, case, id=f"{way.__name__}-{name}", marks=marks)


@pytest.mark.parametrize(("way", "name", "case"), rows(SAYS))
def test_what_is_wrong_is_said_or_refused(way, name, case):
    found = said(way, case)
    seen = found == "refused" or SAYS[way] in found
    assert seen == (name not in UNSEEN.get(way, ())), found


@pytest.mark.parametrize(("way", "name", "case"), rows([right]))
def test_what_is_right_is_not_blamed(way, name, case):
    found = said(way, case)
    assert not any(piece in found for piece in SAYS.values()), found
