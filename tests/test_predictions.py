"""Predictions of every group, with strengths that the optimizer is asked for."""

import functools

import jax
import numpy as np
import optax
import pytest

import wdjax
from wdjax import dynamics, metrics
from wdjax.audit import strengths

STEPS = 50
LR = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, STEPS)
RULES = (("head/kernel", 0.5), *wdjax.standard())
PARAMS = {
    "head": {"kernel": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)},
    "dense": {"kernel": np.full((4, 4), 0.5, np.float32), "bias": np.zeros(4, np.float32)},
}
HEAVY_BALL = functools.partial(dynamics.sgd, 1.0, momentum=0.9)

adamw = functools.partial(wdjax.decayed(optax.adam), LR, weight_decay=0.1, rules=RULES)
predict_each = functools.partial(dynamics.predict_each, learning_rate=LR, steps=STEPS)
declared = functools.partial(
    dynamics.predict_declared, PARAMS, dynamics.adam(), LR, weight_decay=0.1, steps=STEPS
)


def coupled(optimizer):
    return optax.chain(wdjax.add_decayed_weights(0.1, rules=wdjax.standard()), optimizer)


def test_each_group_has_the_name_and_multiplier_that_it_is_measured_with():
    params = {**PARAMS, "steps": np.zeros((), np.int32)}
    for per in ("rule", "leaf"):
        found = dynamics.predict_declared(
            params, dynamics.adam(), 1e-2, per=per, rules=RULES, weight_decay=0.1, steps=50
        )
        optimizer = metrics.measured(adamw(), per=per)
        assert set(found) == set(metrics.latest(optimizer.init(PARAMS)))
        assert found["head/kernel"].budget == pytest.approx(50 * 1e-3 / 2)
    assert found["dense/kernel"].budget == pytest.approx(50 * 1e-3)
    assert found["dense/bias"].budget == 0
    alone = dynamics.predict(dynamics.adam(), 1e-2, weight_decay=0.1, steps=50, start_rms=0.5)
    assert found["dense/kernel"].settled == alone.settled


@pytest.mark.slow
def test_an_optimizer_that_is_asked_says_what_was_declared():
    found, wanted = predict_each(PARAMS, adamw(), dynamics.adam()), declared(rules=RULES)
    assert set(found) == set(wanted) == {"weight", "bias", "head/kernel"}
    for group, prediction in found.items():
        for name, value in prediction._asdict().items():
            np.testing.assert_allclose(value, getattr(wanted[group], name), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("per", ["rule", pytest.param("leaf", marks=pytest.mark.slow)])
def test_groups_are_those_of_the_readings(per):
    optimizer = metrics.measured(adamw(), per=per)
    found = predict_each(jax.eval_shape(lambda: PARAMS), optimizer, dynamics.adam())
    assert set(found) == set(metrics.latest(optimizer.init(PARAMS)))
    assert {name: str(p) for name, p in found.items()} == {
        name: str(p) for name, p in declared(rules=RULES, per=per).items()
    }


@pytest.mark.slow
def test_decay_in_the_gradient_is_what_momentum_makes_of_it():
    found = predict_each(PARAMS, coupled(optax.sgd(LR, 0.9)), HEAVY_BALL(coupled=True))
    eta = np.asarray(jax.vmap(LR)(np.arange(STEPS)))
    np.testing.assert_allclose(found["weight"].shrink, 10 * 0.1 * eta, rtol=1e-3, atol=1e-9)


def test_every_step_of_a_long_run_is_asked_and_so_is_a_drop_between_two_samples():
    drops = optax.piecewise_constant_schedule(1e-2, {6_001: 0.01})
    optimizer = optax.adamw(drops, weight_decay=0.1)
    (found,) = strengths({"w": np.ones(3, np.float32)}, optimizer, steps=9_000, extra={})
    np.testing.assert_allclose(
        found.fractions, np.where(np.arange(9_000) < 6_001, 1e-3, 1e-5), rtol=1e-5
    )


def refused(optimizer, direction, message):
    with pytest.raises((TypeError, ValueError), match=message):
        predict_each(PARAMS, optimizer, direction)


def test_what_is_no_optimizer_no_direction_or_no_decay_is_refused():
    refused(optax.adamw, dynamics.adam(), "got the function adamw. Call it: adamw")
    refused(adamw(), "adam", "`direction` must be a Direction; got str. Say what moves")
    with pytest.raises(TypeError, match=r"`direction` must be a Direction; got int\. Say what"):
        dynamics.predict(3, 1e-3, steps=9, weight_decay=0.1)
    with pytest.raises(TypeError, match=r"`prediction` must be a Prediction; got int\. It comes"):
        dynamics.expected_rms(3, 1.0)
    refused(optax.sgd(LR), dynamics.adam(), "`optimizer` decays nothing: its steps")


@pytest.mark.slow  # a measurement each
@pytest.mark.parametrize(
    ("optimizer", "direction", "message"),
    [
        (coupled(optax.adam(LR)), dynamics.adam(), "the optimizer normalizes the decay: no dir"),
        (coupled(optax.sgd(LR, 0.9)), HEAVY_BALL(), "dense/kernel, head/kernel: decay is in"),
        (wdjax.sgdw(0.1, weight_decay=0.1), HEAVY_BALL(coupled=True), "drop coupled"),
        (adamw(penalty=wdjax.penalties.l1), dynamics.adam(), r"another kind \(constant: the de"),
        (optax.chain(optax.sgd(0.1), optax.add_decayed_weights(0.1)), HEAVY_BALL(), "weights grow"),
        (optax.contrib.schedule_free_adamw(0.1, weight_decay=0.1), dynamics.adam(), "unknown: sch"),
        (optax.adamw(2.0, weight_decay=1.0), dynamics.adam(), "a step takes off 2, and signs flip"),
        (optax.chain(adamw()), dynamics.adam(), "'weight' decay differently: 'dense/kernel' 0.001"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_says_why_and_what_to_do(optimizer, direction, message):
    refused(optimizer, direction, message)


def test_missing_steps_are_asked_for():
    with pytest.raises(TypeError, match="`steps` must be a whole number >= 1; got None"):
        predict_each(PARAMS, adamw(), dynamics.adam(), steps=None)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'steps'"):
        dynamics.predict_each(PARAMS, adamw(), dynamics.adam(), learning_rate=LR)


def test_the_tables_hold_every_group_as_text_and_as_html():
    found = declared(rules=RULES, batch_size=10, examples=100)
    text, page = str(found), found._repr_html_()
    assert text.splitlines()[0] == "50 steps"
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["group", *found]
    assert page.count("<tr>") == 1 + len(found)
    assert "in epochs" in text
    assert "in epochs" in page
    one = found["weight"]
    assert all(line.split()[-1] in one._repr_html_() for line in str(one).splitlines())
    report = dynamics.explain(one, {"<w>": {"weight_rms": np.full(STEPS, 0.1)}})._repr_html_()
    assert "&lt;w&gt;: decay acts on a" in report
    assert report.count("<tr>") == 2


def test_predictions_are_a_pytree_and_mapped_ones_have_no_table():
    found = jax.tree.map(np.asarray, declared())
    assert isinstance(found, dynamics.Predictions)
    assert str(found) == str(declared())
    several = jax.tree.map(lambda x: np.array([x, x]), found["weight"])
    assert several._repr_html_() is None
    assert dynamics.Predictions(a=several)._repr_html_() is None
    assert str(dynamics.Predictions(a=several)).startswith("{'a': Prediction(")
