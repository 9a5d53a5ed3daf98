import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import imported, timm_optim

import wdjax
from wdjax import gates, penalties

FACTORIES = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamw": optax.adamw,
    "adabelief": optax.adabelief,
    "rmsprop": optax.rmsprop,
    "lion": optax.lion,
    "lamb": optax.lamb,
    "muon": optax.contrib.muon,
    "nadam": optax.nadam,
    "adafactor": optax.adafactor,
    "lars": optax.lars,
}
every = pytest.mark.parametrize("name", FACTORIES)

PARAMS = {
    "dense": {
        "kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
        "bias": np.ones(4, np.float32),
    },
    "embedding": np.full((5, 3), 0.5, np.float32),
}


def grads_at(t):
    return jax.tree.map(lambda p: np.sin(3 * p + t), PARAMS)


GRADS = jax.tree.map(lambda *leaves: np.stack(leaves), *map(grads_at, range(5)))


def trajectory(optimizer):
    """The parameters after five steps, in one program."""

    def body(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = lambda params: jax.lax.scan(body, (params, optimizer.init(params)), GRADS)[0][0]
    return jax.jit(run)(PARAMS)


def first_update(optimizer, params=PARAMS, grads=None, **extra):
    """In one program."""
    run = lambda params, grads: optimizer.update(grads, optimizer.init(params), params, **extra)[0]
    return jax.jit(run)(params, grads_at(0) if grads is None else grads)


@every
@pytest.mark.first_is_quick
def test_decay_is_the_factory_s_own_step_minus_the_fraction(name):
    """θ⁺ − θ = Δ − s m θ, with Δ the step of the factory without decay."""
    factory = FACTORIES[name]
    off = {k: 0.0 for k in ("weight_decay",) if k in inspect.signature(factory).parameters}
    plain, ours = factory(0.01, **off), wdjax.decayed(factory)(0.01, weight_decay=0.5)
    want, got = map(first_update, (plain, ours))
    pull = 0.01 * 0.5 * PARAMS["dense"]["kernel"]
    assert np.allclose(got["dense"]["kernel"], want["dense"]["kernel"] - pull, rtol=1e-5, atol=1e-8)
    for path in (("dense", "bias"), ("embedding",)):
        one, two = got, want
        for key in path:
            one, two = one[key], two[key]
        assert np.array_equal(one, two)  # multiplier 0: bit for bit


@pytest.mark.slow
@every
def test_weight_decay_zero_is_the_optimizer_without_decay(name):
    factory = FACTORIES[name]
    off = {k: 0.0 for k in ("weight_decay",) if k in inspect.signature(factory).parameters}
    ours = wdjax.decayed(factory)(0.01, weight_decay=0.0)
    chex.assert_trees_all_close(trajectory(ours), trajectory(factory(0.01, **off)), rtol=1e-6)


FALLING = optax.cosine_decay_schedule(0.02, 10)


@pytest.mark.parametrize(
    ("method", "ours", "theirs", "learning_rate"),
    [
        ("decayed", wdjax.decayed(optax.adam), optax.adamw, 0.02),
        ("adamw", wdjax.adamw, optax.adamw, FALLING),
        ("decayed", wdjax.decayed(optax.nadam), optax.nadamw, FALLING),
        ("lionw", wdjax.lionw, optax.lion, FALLING),
    ],
    ids=["adam", "alias", "nadam", "lion"],
)
def test_it_equals_optax_s_own_decay_with_the_same_mask(
    method, ours, theirs, learning_rate, agrees
):
    rules = (("kernel", 1.0), ("**", 0.0))
    mine = trajectory(ours(learning_rate, weight_decay=0.3, rules=rules))
    other = trajectory(theirs(learning_rate, weight_decay=0.3, mask=wdjax.mask(rules)))
    for got, want in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        agrees(method, "optax", got, want, rtol=2e-6, atol=1e-7)


ONE, ZERO = ({"kernel": np.full((1, 1), x, np.float32)} for x in (1, 0))


@pytest.mark.parametrize("law", [wdjax.lr_scaled, wdjax.fixed, wdjax.lr_squared])
def test_the_law_decides_how_the_schedule_enters(law):
    eta = optax.linear_schedule(0.1, 0.0, 4)
    optimizer = wdjax.decayed(optax.sgd)(eta, weight_decay=0.5, law=law)
    params, kept = ONE, 1.0
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(4):
        updates, state = update(ZERO, state, params)
        params = optax.apply_updates(params, updates)
        rate = 0.1 * (1 - t / 4)
        kept *= (
            1
            - {wdjax.lr_scaled: 0.5 * rate, wdjax.fixed: 0.5, wdjax.lr_squared: 0.5 * rate**2}[law]
        )
        assert np.isclose(params["kernel"].item(), kept, rtol=1e-6)


def test_laws_with_a_peak_come_by_partial_and_ask_for_it():
    law = functools.partial(wdjax.schedule_scaled, peak=0.1)
    optimizer = wdjax.decayed(optax.sgd)(0.05, weight_decay=0.2, law=law)
    assert np.isclose(first_update(optimizer, ONE, ZERO)["kernel"].item(), -0.1)
    with pytest.raises(TypeError, match=r"partial\(wdjax.schedule_scaled, peak=...\)"):
        wdjax.decayed(optax.sgd)(0.05, weight_decay=0.2, law=wdjax.corrected)


def test_the_implicit_form_gives_exact_zeros():
    optimizer = wdjax.decayed(optax.sgd)(0.1, weight_decay=2.0, penalty=penalties.l1, implicit=True)
    params = {"kernel": np.float32([[0.1, -1.0]])}
    updates = first_update(optimizer, params, {"kernel": 0 * params["kernel"]})
    assert optax.apply_updates(params, updates)["kernel"].tolist() == [[0.0, pytest.approx(-0.8)]]


def test_a_gate_gets_the_raw_gradient():
    def gate(z, update, grad):
        return grad > 0  # Adam's first update has no magnitude left: only g can be 3.0

    optimizer = wdjax.decayed(optax.adam)(0.1, weight_decay=1.0, gate=gate)
    params, grads = {"kernel": np.float32([[1, 1]])}, {"kernel": np.float32([[3, -3]])}
    updates = first_update(optimizer, params, grads)
    assert np.allclose(updates["kernel"], [[-0.1 - 0.1, 0.1]], atol=1e-6)


def test_inject_hyperparams_shows_learning_rate_and_weight_decay_and_keeps_rules_static():
    rules = (("kernel", 1.0), ("**", 0.0))
    build = optax.inject_hyperparams(wdjax.decayed(optax.adam))
    optimizer = build(learning_rate=0.1, weight_decay=0.5, rules=rules)
    state = optimizer.init(PARAMS)
    assert {"learning_rate", "weight_decay"} <= set(state.hyperparams)
    assert not {"rules", "law", "penalty", "gate", "anchor"} & set(state.hyperparams)
    want = trajectory(wdjax.decayed(optax.adam)(0.1, weight_decay=0.5, rules=rules))
    # float32 arrays in place of Python floats: b1, b2 round differently
    chex.assert_trees_all_close(trajectory(optimizer), want, rtol=1e-4)
    state.hyperparams["weight_decay"] = np.float32(0)
    zero = jax.tree.map(np.zeros_like, PARAMS)
    updates, _ = jax.jit(optimizer.update)(zero, state, PARAMS)
    assert not np.any(updates["dense"]["kernel"])


def test_inject_hyperparams_takes_a_law_and_a_gate_as_static_arguments():
    build = optax.inject_hyperparams(wdjax.decayed(optax.adam), static_args=("law", "gate"))
    optimizer = build(0.1, weight_decay=0.5, law=wdjax.fixed, gate=gates.cautious)
    want = wdjax.decayed(optax.adam)(0.1, weight_decay=0.5, law=wdjax.fixed, gate=gates.cautious)
    chex.assert_trees_all_close(trajectory(optimizer), trajectory(want), rtol=1e-4)


def test_the_signature_shows_both_argument_lists():
    parameters = inspect.signature(wdjax.decayed(optax.lion)).parameters
    assert list(parameters)[:3] == ["learning_rate", "b1", "b2"]
    assert {"weight_decay", "law", "penalty", "rules", "gate", "anchor"} <= set(parameters)
    assert "mask" not in parameters
    assert parameters["weight_decay"].default is inspect.Parameter.empty
    assert "see `wdjax.decayed`" in wdjax.decayed(optax.lion).__doc__


@pytest.mark.parametrize("wrap", [wdjax.stacking.stacked, wdjax.adaptive.with_grad])
def test_what_wraps_an_optimizer_asks_for_one(wrap):
    with pytest.raises(
        TypeError, match="`optimizer` must be an Optax optimizer; got the function a"
    ):
        wrap(optax.adam)


@pytest.mark.parametrize(
    "tx",
    [
        wdjax.adamw(0.1, weight_decay=0.1),
        wdjax.decay_weights(0.1),
        wdjax.add_decayed_weights(0.1),
        wdjax.metrics.measured(wdjax.sgdw(0.1, weight_decay=0.1)),
    ],
    ids=["adamw", "decay_weights", "add_decayed_weights", "measured"],
)
def test_an_array_in_place_of_a_container_is_named(tx):
    """JAX lines the two up, and goes on with the shape of a dict."""
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    message = r"only in updates: 'dense'; only in params: 'dense/bias', 'dense/kernel'\. Pass the"
    with pytest.raises(ValueError, match=message):
        tx.update({"dense": jnp.ones(2)}, tx.init(params), params)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: wdjax.decayed(optax.adam(1e-3)), r"`factory` must be a function that builds an"),
        (lambda: wdjax.decayed("adam"), r"`factory` must be a function that builds an optimizer"),
        (
            lambda: wdjax.adamw(1e-3),
            r"`weight_decay` must be given by its name, as in wdjax.adamw\(1e-3, .*; got none",
        ),
        (lambda: wdjax.adamw(weight_decay=0.1), r"^decayed_adam\(\) missing .* 'learning_rate'"),
        (lambda: wdjax.adamw(1e-3, 0.1), r"`weight_decay` must be given by its name"),
        (
            lambda: wdjax.lionw(1e-3, weight_decay=0.1, mask=None),
            r"`mask` is replaced by `rules`",
        ),
        (
            lambda: wdjax.adamw(1e-3, weight_decay=0.1, mask=lambda params: params),
            r"`mask` is replaced by `rules`, pairs .* 0\.0\), \*wdjax\.standard\(\)\)",
        ),
        (
            lambda: wdjax.decayed(optax.scale_by_adam),
            r"learning rate first; scale_by_adam takes b1",
        ),
        (
            lambda: wdjax.decayed(functools.partial(optax.ema, debias=False)),
            r"learning rate first; ema takes decay",
        ),
        (
            lambda: wdjax.decayed(functools.partial(optax.adamw, weight_decay=0.1)),
            r"`weight_decay` would decay a second time",
        ),
        (
            lambda: wdjax.decayed(lambda lr: optax.chain(optax.clip(1.0), optax.adamw(lr)))(
                optax.linear_schedule(0.0, 1e-3, 100), weight_decay=0.1
            ),
            r"must not decay by itself.*; <lambda> takes 2e-09 of a weight off in a step without",
        ),
        (
            lambda: wdjax.decayed(lambda lr: wdjax.adamw(lr, weight_decay=0.5))(
                0.1, weight_decay=0.1
            ),
            r"must not decay by itself.*; <lambda> takes 0\.05 of a weight",
        ),
        (lambda: wdjax.decayed(optax.linear_schedule(0.1, 0.0, 9)), r"first; schedule takes count"),
        (lambda: wdjax.decayed(lambda: optax.sgd(0.1)), r"rate first; <lambda> takes nothing"),
        (
            lambda: wdjax.decayed(lambda lr: optax.sgd)(0.1, weight_decay=0.1),
            r"`factory` must return an optimizer; <lambda> returned function",
        ),
        (
            lambda: wdjax.lionw(1e-3, 0.9, 0.99, None, 0.1, weight_decay=0.1),
            r"`weight_decay` was also given by position. Pass decay once, as weight_decay=\.\.\.",
        ),
        (
            lambda: wdjax.muonw(1e-3, weight_decay=0.1, adam_weight_decay=0.1),
            r"`adam_weight_decay` would decay a second time",
        ),
        (
            lambda: wdjax.muonw(0.02, weight_decay=0.1, adam_learning_rate=3e-4),
            r"`adam_learning_rate` would leave decay at the strength of `learning_rate`",
        ),
        (
            lambda: wdjax.adamw(1e-3, weight_decay=0.1, implicit=True, gate=gates.cautious),
            r"`gate` needs implicit=False",
        ),
        (lambda: wdjax.adamw(1e-3, weight_decay=0.1, law=0.5), r"`law` must be a function"),
        (
            lambda: wdjax.adamw(1e-3, weight_decay=0.1, law=wdjax.lr_scaled(0.1, 1e-3)),
            r"`law` must take \(λ, η\); got Constant\(.*Pass the law itself",
        ),
        (
            lambda: wdjax.adamw(1e-3, weight_decay=wdjax.lr_scaled(0.1, 1e-3)),
            r"`weight_decay` must be λ itself; got lr_scaled\(λ, η\), which lr_scaled would mult",
        ),
        (
            lambda: wdjax.lr_squared(
                wdjax.corrected(0.1, optax.constant_schedule(1e-3), 1e-3), 1e-3
            ),
            r"got corrected\(λ, η\), which lr_squared would multiply by η again. Pass λ and law=w",
        ),
        (lambda: wdjax.adamw(1e-3, weight_decay=0.1, bogus=1), r"unexpected keyword .*'bogus'"),
        (
            lambda: wdjax.decayed(optax.adafactor)(None, weight_decay=0.1),
            r"`learning_rate` must be a finite number >= 0, or a schedule; got None",
        ),
    ],
)
def test_bad_arguments_fail_when_built(build, message):
    with pytest.raises(TypeError, match=message):
        build()


def test_update_without_params_says_what_to_call():
    optimizer = wdjax.adamw(1e-3, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"`decayed` needs the current parameters; got `params=N"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))


# Promise 4: the wrappers of Optax.


@pytest.mark.parametrize(
    "factory",
    [
        lambda lr: optax.lamb(lr),  # its trust ratio reads the weights, and pulls at none
        lambda lr: optax.adamw(lr, mask={"kernel": False}),
        lambda lr: optax.chain(optax.add_noise(1.0, 0.0, 0), optax.lamb(lr)),  # alike at −θ
        lambda lr: optax.chain(optax.sgd(lr), optax.keep_params_nonnegative()),  # one side only
        optax.inject_hyperparams(optax.adam),
    ],
)
def test_a_factory_that_reads_weights_need_not_decay(factory):
    wdjax.decayed(factory)(0.1, weight_decay=0.1)


def test_inside_multi_steps_decay_happens_once_per_real_step():
    optimizer = optax.MultiSteps(wdjax.decayed(optax.sgd)(0.1, weight_decay=0.5), 4)
    params, state, update = ONE, optimizer.init(ONE), jax.jit(optimizer.update)
    for _ in range(8):
        updates, state = update(ZERO, state, params)
        params = optax.apply_updates(params, updates)
    assert np.isclose(params["kernel"].item(), 0.95**2, rtol=1e-6)


def test_inside_apply_if_finite_a_skipped_step_neither_decays_nor_counts():
    optimizer = optax.apply_if_finite(wdjax.decayed(optax.sgd)(0.1, weight_decay=0.5), 10)
    params, state, update = ONE, optimizer.init(ONE), jax.jit(optimizer.update)
    for value in (0.0, np.nan, 0.0):
        updates, state = update({"kernel": np.full((1, 1), value, np.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    assert np.isclose(params["kernel"].item(), 0.95**2, rtol=1e-6)
    assert int(state.inner_state[1].count) == 2


def test_inside_masked_and_partition_the_rules_see_the_whole_paths():
    rules = (("dense/kernel", 1.0), ("**", 0.0))
    inner = wdjax.decayed(optax.sgd)(0.1, weight_decay=0.5, rules=rules)
    want = trajectory(inner)
    labels = {"dense": {"kernel": "a", "bias": "b"}, "embedding": "b"}
    split = optax.partition({"a": inner, "b": inner}, labels)
    chex.assert_trees_all_close(trajectory(split), want, rtol=1e-6)
    mask = {"dense": {"kernel": True, "bias": False}, "embedding": False}
    masked = trajectory(optax.masked(inner, mask))
    assert np.allclose(masked["dense"]["kernel"], want["dense"]["kernel"])


@pytest.mark.parametrize("gate", [None, gates.cautious])
def test_a_caller_that_passes_all_gradients_does_not_disturb_a_masked_optimizer(gate):
    inner = wdjax.decayed(optax.sgd)(0.1, weight_decay=0.5, gate=gate)
    tail = wdjax.decay_weights(0.05)
    mask = {"dense": {"kernel": True, "bias": False}, "embedding": False}
    for tx in (optax.masked(inner, mask), optax.masked(tail, mask)):
        chex.assert_trees_all_equal(first_update(tx, grad=grads_at(0)), first_update(tx))


def test_inside_schedule_free_it_runs_and_decays():
    optimizer = optax.contrib.schedule_free(
        wdjax.decayed(optax.sgd)(0.1, weight_decay=0.5), learning_rate=0.1
    )
    plain = optax.contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1)
    decayed, free = trajectory(optimizer), trajectory(plain)
    assert not np.allclose(decayed["dense"]["kernel"], free["dense"]["kernel"], rtol=1e-3)
    assert np.allclose(decayed["embedding"], free["embedding"])


def test_under_vmap_over_hyperparameters_each_member_equals_its_own_run():
    def run(weight_decay, learning_rate):
        return trajectory(wdjax.decayed(optax.adam)(learning_rate, weight_decay=weight_decay))

    decays, rates = np.float32([0.0, 0.1, 1.0]), np.float32([0.01, 0.02, 0.03])
    together, run = jax.jit(jax.vmap(run))(decays, rates), jax.jit(run)
    for i in range(3):
        alone = run(decays[i], rates[i])
        row = jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_close(row, alone, rtol=1e-5, atol=1e-6)


# Against torch, which another extra installs.


def torch_trajectory(torch, build, steps):
    w = torch.nn.Parameter(torch.tensor(np.asarray(PARAMS["dense"]["kernel"], np.float64)))
    optimizer = build([w])
    for t in range(steps):
        optimizer.zero_grad()
        w.grad = torch.sin(3 * torch.tensor(np.asarray(PARAMS["dense"]["kernel"], np.float64)) + t)
        optimizer.step()
    return w.detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "ours", "theirs"),
    [
        (
            "sgdw",
            lambda: wdjax.sgdw(0.05, momentum=0.9, weight_decay=0.3),
            lambda torch, p: decoupled_torch_sgd(torch, p, 0.05, 0.9, 0.3),
        ),
        (
            "adamw",
            lambda: wdjax.adamw(0.05, weight_decay=0.3),
            lambda torch, p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3),
        ),
        (
            "add_decayed_weights",
            lambda: optax.chain(wdjax.add_decayed_weights(0.3), optax.sgd(0.05, momentum=0.9)),
            lambda torch, p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.3),
        ),
        (
            "add_decayed_weights",
            lambda: optax.chain(wdjax.add_decayed_weights(0.3), optax.adam(0.05)),
            lambda torch, p: torch.optim.Adam(p, lr=0.05, weight_decay=0.3),
        ),
    ],
    ids=["SGD decoupled", "AdamW", "SGD(weight_decay=)", "Adam(weight_decay=)"],
)
def test_it_equals_torch_in_float64(method, ours, theirs, x64, agrees):
    torch = pytest.importorskip("torch", reason="torch comes with the extra 'oracles'")
    params = {"kernel": np.float64(PARAMS["dense"]["kernel"])}
    start, optimizer = params["kernel"], ours()
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(50):
        updates, state = update({"kernel": np.sin(3 * start + t)}, state, params)
        params = optax.apply_updates(params, updates)
    want = torch_trajectory(torch, lambda p: theirs(torch, p), 50)
    agrees(method, "torch", params["kernel"], want, rtol=1e-10, atol=1e-12)


def decoupled_torch_sgd(torch, params, rate, momentum, weight_decay):
    """torch's SGD with AdamW's way of decaying: multiply the parameters, then step."""
    inner = torch.optim.SGD(params, lr=rate, momentum=momentum)

    class Decoupled:
        zero_grad = staticmethod(inner.zero_grad)

        @staticmethod
        @torch.no_grad()
        def step():
            for p in params:
                p.mul_(1 - rate * weight_decay)
            inner.step()

    return Decoupled


PEAK = 0.05


def falling(count):
    """A learning rate that starts at its peak and falls to 0."""
    return PEAK * jnp.maximum(1 - jnp.asarray(count, float) / 50, 0)


@pytest.mark.parametrize(
    ("law", "oracle", "weight_decay", "build"),
    [
        (
            "corrected",
            "timm",
            0.3,
            lambda p: timm_optim().adamw.AdamWLegacy(
                p, lr=PEAK, weight_decay=0.3, corrected_weight_decay=True
            ),
        ),
        (
            "schedule_scaled",
            "torch-optimi",
            9e-4,  # from 1e-3 on it warns
            lambda p: imported("optimi").AdamW(
                p,
                lr=PEAK,
                betas=(0.9, 0.999),
                eps=1e-8,
                weight_decay=9e-4,
                decouple_lr=True,
                max_lr=PEAK,
                foreach=False,
                triton=False,
            ),
        ),
    ],
    ids=["corrected", "schedule_scaled"],
)
def test_the_laws_with_a_peak_equal_other_packages(law, oracle, weight_decay, build, x64, agrees):
    torch = imported("torch")
    function = functools.partial(getattr(wdjax, law), peak=PEAK)
    optimizer = wdjax.adamw(falling, weight_decay=weight_decay, law=function)
    start = np.asarray(PARAMS["dense"]["kernel"], np.float64)
    params, theirs = {"kernel": jnp.asarray(start)}, torch.nn.Parameter(torch.tensor(start))
    state, oracle_optimizer = optimizer.init(params), build([theirs])
    update = jax.jit(optimizer.update)
    for t in range(50):
        grad = np.sin(3 * start + t)
        updates, state = update({"kernel": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = torch.tensor(grad)
        oracle_optimizer.param_groups[0]["lr"] = float(falling(t))
        oracle_optimizer.step()
    agrees(law, oracle, params["kernel"], theirs.detach().numpy(), atol=1e-14)


def test_the_compiled_step_moves_no_more_bytes_than_optax_s_own():
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    params = {f"layer_{i}": {"kernel": shape(64, 64), "bias": shape(64)} for i in range(3)}
    rules = wdjax.standard()

    def bytes_accessed(optimizer):
        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(
            params, jax.eval_shape(optimizer.init, params), params
        )
        return compiled.compile().cost_analysis()["bytes accessed"]

    ours = bytes_accessed(wdjax.adamw(1e-3, weight_decay=0.1, rules=rules))
    theirs = bytes_accessed(optax.adamw(1e-3, weight_decay=0.1, mask=wdjax.mask(rules)))
    assert ours <= theirs + 64  # our own step counter, and nothing per parameter


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dog", "dowg", "momo", "polyak_sgd"])
def test_an_optimizer_that_finds_its_step_size_needs_a_law(name):
    factory = getattr(optax.contrib, name, None) or getattr(optax, name)
    with pytest.raises(TypeError, match=f"`law` must be given to a decayed {name}"):
        wdjax.decayed(factory)(1.0, weight_decay=0.1)
    optimizer = wdjax.decayed(factory)(1.0, weight_decay=1e-3, law=wdjax.fixed)
    params = {"kernel": np.full((2, 2), 0.5, np.float32)}
    step = lambda tx: first_update(tx, params, {"kernel": 0 * params["kernel"]}, value=jnp.ones(()))
    updates, want = step(optimizer), step(optax.with_extra_args_support(factory(1.0)))
    np.testing.assert_allclose(updates["kernel"], want["kernel"] - 5e-4, rtol=1e-5)


def test_decay_looks_at_the_gradients_of_the_step_and_not_at_those_that_a_caller_passes():
    optimizer = wdjax.sgdw(0.1, weight_decay=1.0, gate=gates.descent())
    own, others = ({"kernel": np.full((2, 2), x, np.float32)} for x in (1, -1))
    got = first_update(optimizer, own, own, grad=others)
    chex.assert_trees_all_equal(got, first_update(optimizer, own, own))
    np.testing.assert_allclose(got["kernel"], -0.2, rtol=1e-6)  # the step and the decay


@pytest.mark.parametrize(
    "build", [wdjax.adamw, wdjax.sgdw, wdjax.lionw, wdjax.decayed(optax.adamw)]
)
def test_a_mask_is_told_of_rules(build):
    """Also where the factory itself takes none."""
    with pytest.raises(TypeError, match="`mask` is replaced by `rules`"):
        build(1e-3, weight_decay=0.1, mask=lambda params: params)


def test_a_factory_of_ones_own_may_call_its_rate_anything():
    params = {"kernel": np.ones((2, 2), np.float32)}
    own = wdjax.decayed(lambda h: optax.sgd(h))(0.1, weight_decay=0.5)
    wdjax.check_decay(own, params, strength=0.05)
