"""Inside Optax's wrappers decay happens once per real step, on the right leaves.

Without gradients: what is left of a weight after T steps is then (1 − s)^T, whatever the wrapper.
MultiSteps, apply_if_finite, masked, partition, schedule_free and inject_hyperparams are also in
test_optimizers.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax._lift.leaves import widened

PARAMS = {"kernel": np.full((2, 3), 2, np.float32), "bias": np.full(3, 2, np.float32)}
ZEROS = jax.tree.map(np.zeros_like, PARAMS)
S = 0.1


def decayed():
    return wdjax.decayed(optax.sgd)(1.0, weight_decay=S)


def steps(optimizer, params, count, zeros=ZEROS):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(count):
        updates, state = update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_lookahead_decays_the_fast_weights_once_a_step():
    optimizer = optax.lookahead(decayed(), sync_period=3, slow_step_size=0.5)
    params, _ = steps(optimizer, optax.LookaheadParams.init_synced(PARAMS), 3)
    want = 2 + 0.5 * (2 * (1 - S) ** 3 - 2)  # slow weights, half way after the fast ones
    np.testing.assert_allclose(params.slow["kernel"], want, rtol=1e-6)
    np.testing.assert_allclose(params.fast["kernel"], want, rtol=1e-6)
    np.testing.assert_array_equal(params.slow["bias"], 2.0)


def test_sam_decays_in_the_real_step_and_not_in_the_adversarial_one():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    optimizer = optax.contrib.sam(decayed(), adversary, sync_period=2)
    ones = jax.tree.map(np.ones_like, PARAMS)
    first, _ = steps(optimizer, PARAMS, 1, ones)
    norm = np.sqrt(9)  # nine gradients of 1: the adversary ascends by 0.05 in all
    np.testing.assert_allclose(first["kernel"], 2 + 0.05 / norm, rtol=1e-6)
    second, _ = steps(optimizer, PARAMS, 2, ones)
    # from where it was before the ascent, the step with decay of that point
    np.testing.assert_allclose(second["kernel"], 2 - 1 - S * 2, rtol=1e-6)
    np.testing.assert_allclose(second["bias"], 2 - 1, rtol=1e-6)


def test_frozen_leaves_do_not_decay_behind_freeze_or_selective_transform():
    mask = {"kernel": True, "bias": False}
    rules = (("**", 1.0),)
    inner = wdjax.decayed(optax.sgd)(1.0, weight_decay=S, rules=rules)
    outer = optax.chain(inner, optax.transforms.freeze(mask))
    for optimizer in (outer, optax.transforms.selective_transform(inner, freeze_mask=mask)):
        wdjax.check_decay(optimizer, PARAMS, strength=S, rules=(("kernel", 0.0), ("bias", 1.0)))


@pytest.mark.parametrize("every", [2, 5])
def test_multi_steps_of_a_chain_counts_and_decays_real_steps_only(every):
    chain = optax.chain(optax.sgd(1.0), wdjax.decay_weights(lambda t: S * jnp.minimum(t + 1, 5)))
    params, state = steps(optax.MultiSteps(chain, every), PARAMS, 3 * every)
    want = 2 * (1 - S) * (1 - 2 * S) * (1 - 3 * S)
    np.testing.assert_allclose(params["kernel"], want, rtol=1e-6)
    assert int(state.inner_opt_state[1].count) == 3


WRAPPERS = {
    "optax.MultiSteps": lambda inner: optax.MultiSteps(inner, 4),
    "optax.apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "optax.lookahead": lambda inner: optax.lookahead(inner, 3, 0.5),
    "schedule_free": lambda inner: optax.contrib.schedule_free(inner, 0.1),
    "conditionally_mask": lambda inner: optax.transforms.conditionally_mask(
        inner, lambda step: step % 4 == 0
    ),
    "optax.apply_every": lambda inner: optax.chain(inner, optax.apply_every(4)),
}
DECAYS = {
    "decay_weights": wdjax.decay_weights(S),
    "prox_weights": wdjax.prox_weights(S),
    "decayed": decayed(),
    "in a chain, masked": optax.chain(optax.identity(), optax.masked(wdjax.decay_weights(S), True)),
    "cpr": wdjax.adaptive.cpr(wdjax.bounds.dependent(1.0)),
    "norm_control": wdjax.radial.norm_control(S),
    "hyper_decay": wdjax.tuning.hyper_decay(
        S, lambda params, batch: params["bias"].sum(), np.ones(99)
    ),
}
CHAINS = {
    "chain": optax.chain,
    "in a chain": lambda *parts: optax.chain(optax.clip(1.0), optax.chain(*parts)),
    "between two": lambda first, decay: optax.chain(decay, first, decay),
}


class Callable_:
    """An update that is not a function and has no name."""

    __slots__ = ()

    def __call__(self, updates, state, params=None):
        return updates, state


def chain(*transforms):
    """Somebody else's function of that name, with the same inside."""

    def init_fn(params):
        return tuple(member.init(params) for member in transforms)

    def update_fn(updates, state, params=None):
        raise NotImplementedError

    return optax.GradientTransformation(init_fn, update_fn)


def masked(member, tree):
    def init_fn(params):
        assert tree
        return member.init(params)

    return optax.GradientTransformation(init_fn, member.update)


class Holder:
    """Its own init is inside the wrapper that it holds."""

    def __init__(self):
        own = optax.GradientTransformation(self.init, self.update)
        whole = optax.chain(own, optax.sgd(0.1), wdjax.decay_weights(S))
        self.tx = optax.MultiSteps(whole, 4)

    def init(self, params):
        del params
        return ()

    def update(self, updates, state, params=None):
        del params
        return updates, state


def empty(params):
    del params
    return ()


ODD = {
    "partial": optax.masked(
        optax.GradientTransformation(empty, functools.partial(lambda c, u, s, p=None: (u, s), 2)),
        True,
    ),
    "object": optax.masked(optax.GradientTransformation(empty, Callable_()), True),
    "chain": chain(optax.sgd(0.1), optax.identity()),
    "masked": masked(optax.sgd(0.1), {"kernel": True}),
    "long list": optax.GradientTransformation(
        functools.partial(lambda numbers, params: (), list(range(1_000_000))), Callable_()
    ),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_others_write_before_decay_is_taken(odd):
    optax.chain(odd, wdjax.decay_weights(S)).init(PARAMS)
    chain(odd, wdjax.decay_weights(S)).init(PARAMS)
    Holder().tx.init(PARAMS)


def started(wrapper, params=PARAMS):
    """Parameters as a wrapper takes them."""
    is_pair = wrapper == "optax.lookahead"
    return optax.LookaheadParams.init_synced(params) if is_pair else params


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_decayed_around_a_wrapper_that_takes_steps_elsewhere_is_refused(wrapper):
    factory = lambda learning_rate: optax.chain(WRAPPERS[wrapper](optax.sgd(learning_rate)))
    with pytest.raises(TypeError, match=rf"`decayed` adds decay, which .* after {wrapper} and "):
        wdjax.decayed(factory)(0.1, weight_decay=S)


def test_a_ready_schedule_free_optimizer_is_refused_by_name():
    with pytest.raises(TypeError, match="comes after schedule_free and misses the iterate"):
        wdjax.decayed(optax.contrib.schedule_free_adamw)(0.1, weight_decay=S)


def first_update(optimizer, params):
    return optimizer.update(ZEROS, optimizer.init(params), params)


def on_paper(optimizer, params, **extra):
    """The first update without its numbers."""
    state = jax.eval_shape(optimizer.init, params)
    return jax.eval_shape(optimizer.update, ZEROS, state, params, **extra)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
def test_decay_after_a_wrapper_is_refused(wrapper, decay):
    chain = optax.chain(WRAPPERS[wrapper](optax.sgd(0.1)), decay)
    with pytest.raises(TypeError, match=rf"comes after {wrapper} and .* Wrap the whole chain"):
        on_paper(chain, started(wrapper))


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_it_is_found_in_chains_and_while_tracing(chain):
    optimizer = chain(WRAPPERS["optax.MultiSteps"](optax.sgd(0.1)), wdjax.decay_weights(S))
    update = functools.partial(first_update, optimizer)
    for run in (update, jax.jit(update), lambda p: jax.eval_shape(update, p)):
        with pytest.raises(
            TypeError, match=r"comes after optax\.MultiSteps and acts in every micro"
        ):
            run(PARAMS)


ALONE = sorted({*WRAPPERS} - {"optax.lookahead"})  # which has a pair of parameters


@pytest.mark.parametrize("wrapper", ALONE)
def test_decay_in_the_gradient_before_a_wrapper_is_taken(wrapper):
    chain = optax.chain(wdjax.add_decayed_weights(S), WRAPPERS[wrapper](optax.sgd(0.1)))
    on_paper(chain, PARAMS)


@pytest.mark.parametrize("wrapper", ALONE)
def test_decay_inside_a_wrapper_is_taken(wrapper):
    decay = wdjax.decay_weights(S)
    wrap = WRAPPERS[wrapper]
    for optimizer in (
        optax.chain(wrap(optax.chain(optax.sgd(0.1), decay))),
        optax.chain(wrap(optax.sgd(0.1)), optax.MultiSteps(decay, 2)),  # has steps of its own
        optax.chain(optax.adam(0.1), decay, decay),
    ):
        on_paper(optimizer, PARAMS)


def test_a_mean_of_steps_that_is_skipped_does_not_decay():
    """What `comes after ...` is for: the chain inside both wrappers."""
    inner = optax.chain(optax.sgd(1.0), wdjax.decay_weights(S))
    optimizer = optax.MultiSteps(optax.apply_if_finite(inner, 9), 2)
    nans = jax.tree.map(lambda x: np.full_like(x, np.nan), PARAMS)
    params, state = steps(optimizer, PARAMS, 4)
    for _ in range(2):
        updates, state = jax.jit(optimizer.update)(nans, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], 2 * (1 - S) ** 2, rtol=1e-6)


def test_complex_parameters_keep_their_names_where_they_are_split():
    params = {name: np.ones((2, 2), np.complex64) for name in ("kernel", "bias", "embedding")}
    for optimizer in (decayed(), optax.contrib.split_real_and_imaginary(decayed())):
        wdjax.check_decay(optimizer, params, strength=S)


def test_flatten_around_decay_by_names_warns_that_nothing_decays():
    with pytest.warns(UserWarning, match=r"no parameter decays"):
        optax.flatten(decayed()).init(PARAMS)
    outside = optax.chain(optax.flatten(optax.sgd(1.0)), wdjax.decay_weights(S))
    wdjax.check_decay(outside, PARAMS, strength=S)
    everything = optax.flatten(wdjax.decay_weights(S, rules=(("**", 1.0),)))  # needs no names
    wdjax.check_decay(everything, PARAMS, strength=S, rules=(("**", 1.0),))


def loss_fn(params, batch):
    return jnp.mean(batch) * sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("decay", "hide"),
    [
        (wdjax.decay_weights(S, gate=wdjax.gates.cautious), "masked"),
        (wdjax.radial.hyperball(0.1), "partition"),
        (wdjax.radial.norm_control(0.1), "masked"),
        (wdjax.adaptive.with_grad(wdjax.adaptive.swd(S)), "masked"),
        (wdjax.adaptive.with_grad(wdjax.adaptive.swd(S)), "partition"),
        (wdjax.adaptive.with_grad(wdjax.adaptive.spd()), "partition"),
    ],
    ids=["cautious", "hyperball", "norm_control", "swd", "swd, parted", "spd"],
)
@pytest.mark.first_is_quick
def test_masks_may_hide_leaves_from_what_is_given_all_raw_gradients(decay, hide):
    chain = optax.chain(optax.sgd(0.1), decay)
    labels = {"kernel": "decayed", "bias": "not"}
    hidden = {
        "partition": optax.partition({"decayed": chain, "not": optax.sgd(0.1)}, labels),
        "masked": optax.chain(
            optax.masked(optax.sgd(0.1), {"kernel": False, "bias": True}),
            optax.masked(chain, {"kernel": True, "bias": False}),
        ),
    }
    after = []
    for optimizer in (chain, hidden[hide]):
        step = wdjax.make_train_step(loss_fn, optimizer)
        state, _ = step(wdjax.TrainState.create(PARAMS, optimizer), np.ones(4, np.float32))
        after.append(state.params["kernel"])
    np.testing.assert_allclose(*after, rtol=1e-6)


def test_raw_gradients_of_another_tree_are_named():
    tx = wdjax.decay_weights(S, gate=wdjax.gates.descent())
    with pytest.raises(ValueError, match=r"`grad` and params of the same structure .*bias"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad={"kernel": PARAMS["kernel"]})


def test_raw_gradients_in_multi_steps_are_the_mean_of_the_micro_batches():
    chain = optax.chain(optax.sgd(0.1), wdjax.adaptive.swd(0.01))
    wrapper = optax.MultiSteps(wdjax.adaptive.with_grad(chain), 2)
    # as one writes it for MultiSteps to take what the step passes
    optimizer = optax.GradientTransformationExtraArgs(wrapper.init, wrapper.update)
    loss = lambda params, batch: jnp.mean(batch) * jnp.sum(params["kernel"])
    step = wdjax.make_train_step(loss, optimizer)
    state = wdjax.TrainState.create(PARAMS, optimizer)
    for size in (1.0, 3.0):
        state, _ = step(state, np.full(4, size, np.float32))
    plain = wdjax.adaptive.with_grad(chain)
    mean = PARAMS | {"bias": ZEROS["bias"]}
    updates, _ = jax.jit(plain.update)(mean, plain.init(PARAMS), PARAMS)
    want = optax.apply_updates(PARAMS, updates)["kernel"]
    np.testing.assert_allclose(state.params["kernel"], want, rtol=1e-6)


NEEDS_GRAD = {
    "descent": wdjax.decay_weights(0.1, gate=wdjax.gates.descent()),
    "swd": wdjax.adaptive.swd(0.1),
    "project_radial": wdjax.radial.project_radial(0.1, cosine=0.1),
}


def hand_written(chain):
    """What `with_grad` does, as a user may have written it."""
    hand_on = lambda updates, state, params=None, **extra: chain.update(
        updates, state, params, **extra | {"grad": updates}
    )
    return optax.GradientTransformationExtraArgs(chain.init, hand_on)


@pytest.mark.parametrize("decay", NEEDS_GRAD.values(), ids=NEEDS_GRAD)
def test_the_raw_gradient_in_multi_steps_comes_from_with_grad(decay):
    chain = optax.chain(optax.sgd(0.1), decay)
    plain = optax.MultiSteps(chain, 2)
    with pytest.raises(ValueError, match=r"needs the raw gradient; got none\. .*with_grad"):
        on_paper(plain, PARAMS)
    for optimizer in (
        optax.MultiSteps(wdjax.adaptive.with_grad(chain), 2),
        optax.MultiSteps(wdjax.decayed(lambda learning_rate: chain)(1.0, weight_decay=0.1), 2),
        optax.MultiSteps(hand_written(chain), 2),
        wdjax.adaptive.with_grad(chain),
    ):
        on_paper(optimizer, PARAMS)


def test_gates_that_look_at_no_gradient_may_stand_in_multi_steps():
    chain = optax.chain(optax.sgd(0.1), wdjax.decay_weights(S, gate=wdjax.gates.cautious))
    optimizer = optax.MultiSteps(chain, 2)
    on_paper(optimizer, PARAMS, grad=ZEROS)


def test_a_mask_is_named_for_inject_hyperparams():
    """Which takes functions for schedules."""
    mask = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    build = optax.inject_hyperparams(wdjax.add_decayed_weights, static_args=("mask",))
    updates, _ = (tx := build(S, mask=mask)).update(ZEROS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], 2 * S, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


INJECTED = {
    "rotational": lambda: wdjax.radial.rotational,
    "norm_control": lambda: wdjax.radial.norm_control,
    "hyperball": lambda: wdjax.radial.hyperball,
    "project_radial": lambda: functools.partial(wdjax.radial.project_radial, cosine=0.1),
}


@pytest.mark.parametrize("method", [*INJECTED])
@pytest.mark.first_is_quick
def test_numbers_of_radial_methods_may_be_injected(method):
    factory = INJECTED[method]()
    own = {"axes": (0,), "decay": 0.75, "eps": 1e-3} if method == "rotational" else {}
    alone = factory(0.1, **own)
    tx = optax.inject_hyperparams(factory, static_args=("axes",))(0.1, **own)
    params = {"kernel": np.arange(1, 7, dtype=np.float32).reshape(3, 2)}
    grads = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T - 3}
    got, _ = jax.jit(tx.update)(grads, tx.init(params), params, grad=grads)
    want, _ = jax.jit(alone.update)(grads, alone.init(params), params, grad=grads)
    np.testing.assert_allclose(got["kernel"], want["kernel"], rtol=1e-5, atol=1e-6)


def test_tree_map_params_passes_over_readings():
    optimizer = wdjax.metrics.measured(wdjax.decayed(optax.adam)(0.1, weight_decay=S))
    before = optimizer.init(PARAMS)
    after = optax.tree_map_params(optimizer, lambda m: m + 1, before)
    np.testing.assert_array_equal(optax.tree_utils.tree_get(after, "mu")["kernel"], 1.0)
    jax.tree.map(np.testing.assert_array_equal, after.readings, before.readings)


def test_an_anchor_survives_the_donation_of_what_it_was():
    params = jax.tree.map(jnp.asarray, PARAMS)
    optimizer = optax.chain(optax.sgd(0.1), wdjax.decay_weights(S, anchor=params))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(params):
        updates, _ = optimizer.update(ZEROS, state, params)
        return optax.apply_updates(params, updates)

    step(params)
    assert params["kernel"].is_deleted()
    far = jax.tree.map(lambda p: p + 1, PARAMS)
    updates, _ = jax.jit(optimizer.update)(ZEROS, state, far)  # traced anew, or not at all
    np.testing.assert_allclose(updates["kernel"], -S, rtol=1e-6)
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        wdjax.decay_weights(S, anchor=params)


@pytest.mark.parametrize("own", [0.3, None])
def test_tree_map_params_sees_moments_and_copies_whatever_the_rules(own):
    rules = (("kernel", 0.5), *wdjax.standard())
    anchor = None if own is None else jax.tree.map(lambda p: own * p, PARAMS)
    optimizer = wdjax.decayed(optax.adam)(0.1, weight_decay=S, rules=rules, anchor=anchor)
    state = optax.tree_map_params(optimizer, lambda m: m + 1, optimizer.init(PARAMS))
    np.testing.assert_array_equal(optax.tree_utils.tree_get(state, "mu")["kernel"], 1.0)


@pytest.mark.parametrize(
    "wrap", [wdjax.compensated, lambda inner: wdjax.stochastically_rounded(inner, 0)]
)
def test_what_rounds_goes_around_apply_if_finite(wrap):
    params = {"kernel": np.full((2, 3), 2, jnp.bfloat16)}
    grads = {"kernel": np.full((2, 3), np.nan, jnp.bfloat16)}
    optimizer = wrap(optax.apply_if_finite(decayed(), 3))
    after, _ = steps(optimizer, params, 1, grads)
    np.testing.assert_array_equal(after["kernel"], params["kernel"])


# What masks hide.


ones = lambda *shape: np.ones(shape, np.float32)
LORA = {"lora": {"A": ones(8, 4), "B": ones(4, 8)}, "head": {"w": ones(4, 4)}}
TABLE = {"layers": {"w": ones(3, 8, 8), "b": ones(3, 8)}}
SPLITS = {
    "lora": (LORA, {"lora": {"A": "a", "B": "b"}, "head": {"w": "b"}}),
    "weights and biases": (TABLE, {"layers": {"w": "a", "b": "b"}}),
}


@pytest.mark.parametrize(("params", "labels"), SPLITS.values(), ids=SPLITS)
def test_the_same_parameters_decay_in_a_partition_as_outside(params, labels):
    zeros = jax.tree.map(np.zeros_like, params)
    outside, _ = steps(decayed(), params, 1, zeros)
    split = optax.partition({"a": decayed(), "b": decayed()}, labels)
    inside, _ = steps(split, params, 1, zeros)
    jax.tree.map(np.testing.assert_array_equal, inside, outside)


RULED = {
    "decay_weights": lambda rules: wdjax.decay_weights(S, rules=rules),
    "decayed": lambda rules: wdjax.decayed(optax.sgd)(1.0, weight_decay=S, rules=rules),
    "cpr": lambda rules: wdjax.adaptive.cpr(wdjax.bounds.dependent(1.0), rules=rules),
    "norm_control": lambda rules: wdjax.radial.norm_control(S, rules=rules),
}
HIDING = {
    "masked": lambda tx: optax.masked(optax.chain(tx), {"kernel": True, "bias": False}),
    "partition": lambda tx: optax.partition(
        {"a": tx, "b": optax.sgd(0.1)}, {"kernel": "a", "bias": "b"}
    ),
    "both": lambda tx: optax.masked(
        optax.partition({"a": tx, "b": tx}, {"kernel": "a", "bias": optax.MaskedNode()}),
        {"kernel": True, "bias": False},
    ),
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
@pytest.mark.parametrize("decay", RULED.values(), ids=RULED)
def test_a_rule_for_hidden_leaves_is_taken(decay, hide):
    for rules in ((("bias", 0.5), ("kernel", 1.0)), (("bias", 0.5), ("**", 1.0))):
        hide(decay(rules)).init(PARAMS)


def test_rules_that_ask_for_more_than_names_are_not_asked_of_hidden_leaves():
    columns = (lambda leaf: leaf.shape[1] > 2, 0.5), ("**", 1.0)
    params = PARAMS | {"ids": jnp.arange(3)}
    mask = {"kernel": True, "bias": False, "ids": False}
    optax.masked(wdjax.decay_weights(S, rules=columns), mask).init(params)
    of_ids = ("ids", 0.5), ("kernel", 1.0), ("**", 0.0)
    optax.masked(wdjax.decay_weights(S, rules=of_ids), mask).init(params)


def test_a_wrapper_that_hands_on_a_branch_under_a_mask_is_taken():
    decay = wdjax.decay_weights(S, rules=(("/kernel", 1.0), ("**", 0.0)))
    branch = optax.GradientTransformation(
        lambda params: decay.init(params["model"]), lambda updates, state, params: (updates, state)
    )
    mask = {"model": {"kernel": True, "bias": False}}
    optax.masked(branch, mask).init({"model": PARAMS})


def test_hidden_leaves_may_be_no_arrays_and_hidden_whole_branches():
    params = {"net": {"kernel": jnp.ones((2, 2))}, "head": {"bias": jnp.ones(2)}}
    rules = (("head/bias", 0.0), ("**", 1.0))
    inner = wdjax.decay_weights(S, rules=rules)
    optax.masked(inner, {"net": True, "head": False}).init(params)
    optax.masked(inner, {"net": True, "head": False}).init(params | {"head": jax.nn.relu})


STRICT = {
    "decay_weights": wdjax.decay_weights(S),
    "cautious": wdjax.decay_weights(S, gate=wdjax.gates.cautious),
    "prox_weights": wdjax.prox_weights(S, wdjax.penalties.l1),
    "cpr": wdjax.adaptive.cpr(wdjax.bounds.dependent(1.0)),
    "rotational": wdjax.radial.rotational(S, axes=0),
    "hyperball": wdjax.radial.hyperball(S),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("decay", STRICT.values(), ids=STRICT)
@pytest.mark.first_is_quick
def test_it_runs_where_dtypes_are_not_promoted(decay, dtype):
    with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion("strict"):
        params = {"kernel": jax.ShapeDtypeStruct((2, 3), dtype)}
        grads = {"kernel": jax.eval_shape(widened, params["kernel"])}
        state = jax.eval_shape(decay.init, params)
        updates, _ = jax.eval_shape(decay.update, grads, state, params)
        assert updates["kernel"].dtype == grads["kernel"].dtype
