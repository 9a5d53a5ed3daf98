"""What every library's loop is checked for, and the data all of them train on."""

import functools
import pydoc_data.topics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

import wdjax
from wdjax._trees import paths

RULES = wdjax.standard()  # one object for all libraries
STEPS, KEY = 40, jax.random.key(7)


class Model(NamedTuple):
    """A model as its library builds it, with its loss and its library's own loop.

    Attributes:
        params: what is trained.
        model_state: what the model carries besides, or None.
        loss_fn: as `make_train_step` takes it.
        batches: STEPS of them.
        decayed: the paths of all parameters that `standard()` should decay, and of no other.
        own_loop: (optimizer, batches) -> the last parameters, written as the library's users do;
            step t gets the key fold_in(KEY, t).
    """

    params: Any
    model_state: Any
    loss_fn: Callable[..., Any]
    batches: list[Any]
    decayed: set[str]
    own_loop: Callable[[Any, list[Any]], Any]


def optimizer() -> Any:
    """Adam with decay strong enough to be seen in few steps.

    The gradient of the bias of attention's keys is rounding only. An ε above that keeps Adam from
    making steps of it, in which two loops, that is two programs, would differ.
    """
    return wdjax.decayed(optax.adam)(3e-3, eps=1e-4, weight_decay=1.0, rules=RULES)


@functools.cache
def images() -> list[dict[str, np.ndarray]]:
    """Batches of 32 digits, (32, 8, 8, 1)."""
    pytest.importorskip("sklearn")
    train = wdjax.datasets.digits(seed=0).train
    rows = np.random.default_rng(0).integers(len(train["y"]), size=(STEPS, 32))
    return [{"x": train["x"][r].reshape(-1, 8, 8, 1), "y": train["y"][r]} for r in rows]


@functools.cache
def text() -> list[dict[str, np.ndarray]]:
    """Batches of 8 windows of 17 bytes, out of the manual that comes with Python."""
    manual = "".join(pydoc_data.topics.topics.values()).encode()[:100_000]
    data = np.frombuffer(manual, np.uint8).astype(np.int32)
    starts = np.random.default_rng(0).integers(len(data) - 17, size=(STEPS, 8))
    return [{"tokens": data[s[:, None] + np.arange(17)]} for s in starts]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over all examples."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def check_the_audit_lists_what_should_decay(model: Model) -> None:
    audit = wdjax.audit(model.params, strength=0.003, rules=RULES, steps=STEPS)
    assert {row["path"] for row in audit.rows if row["multiplier"]} == model.decayed
    assert not any(row["guess"] for row in audit.rows)


def check_only_what_should_decay_shrinks(model: Model) -> None:
    rules = ((lambda leaf: leaf.path in model.decayed, 1.0), ("**", 0.0))
    wdjax.check_decay(optimizer(), model.params, strength=0.003, rules=rules)


def check_our_loop_learns_and_equals_the_library_s_own(model: Model) -> None:
    tx = optimizer()
    step = wdjax.make_train_step(model.loss_fn, tx)
    state = wdjax.TrainState.create(model.params, tx, model_state=model.model_state, key=KEY)
    ours, history = wdjax.fit(step, state, iter(model.batches), progress=False)
    losses = history.metrics["loss"]
    assert np.isfinite(losses).all()
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    assert ours.skipped == 0

    theirs = model.own_loop(optimizer(), model.batches)
    pairs = zip(*map(jax.tree.leaves, (ours.params, theirs)), strict=True)
    for leaf, (a, b) in zip(paths.leaves(model.params), pairs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=leaf.path)


CHECKS = [
    check_the_audit_lists_what_should_decay,
    check_only_what_should_decay_shrinks,
    check_our_loop_learns_and_equals_the_library_s_own,
]


def checks_of(*builders: Callable[[], Model]) -> Any:
    """Parametrize a test over models and checks; each model is built once."""
    cached = [functools.cache(builder) for builder in builders]
    rows = [
        pytest.param(
            check,
            build,
            id=f"{build.__name__}-{check.__name__.removeprefix('check_')}",
            # a whole model to build, and two loops to compile
            marks=pytest.mark.slow,
        )
        for build in cached
        for check in CHECKS
    ]
    return pytest.mark.parametrize(("check", "build"), rows)
