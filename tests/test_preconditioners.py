import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import penalties

LAM = 0.4


def problem(seed=0):
    """½‖Qw − y‖² with orthonormal Q: its lasso solution is the soft threshold of z = Qᵀy."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(30, 5)))
    z = np.array([2.0, -1.0, 0.3, -0.2, 0.9])
    return q, q @ z, z


def soft(z, s):
    return np.sign(z) * np.maximum(np.abs(z) - s, 0)


def test_the_two_metrics_solve_their_two_problems(x64):
    """Gradient descent with a fixed diagonal D: penalties λ/D_i (Euclidean) and λ (its metric)."""
    q, y, z = problem()
    d = np.array([0.5, 2.0, 1.0, 0.25, 1.5])
    loss = lambda p: 0.5 * jnp.sum((q @ p["kernel"] - y) ** 2)

    def solve(metric):
        tx = wdjax.prox_weights(wdjax.lr_scaled(LAM, 0.1), penalties.l1, metric=metric)

        def body(carry, _):
            params, state = carry
            updates = jax.tree.map(lambda g: -0.1 * d * g, jax.grad(loss)(params))
            updates, state = tx.update(updates, state, params, preconditioner={"kernel": d})
            return (optax.apply_updates(params, updates), state), None

        params = {"kernel": np.zeros(5)}
        run = lambda params: jax.lax.scan(body, (params, tx.init(params)), length=4_000)[0][0]
        return np.asarray(jax.jit(run)(params)["kernel"])

    euclidean, own = solve(None), solve("preconditioner")
    assert np.allclose(euclidean, soft(z, LAM / np.asarray(d)), atol=1e-12)
    assert np.allclose(own, soft(z, LAM), atol=1e-12)
    assert np.abs(euclidean - own).max() > 0.1
    assert ((own == 0) == (soft(z, LAM) == 0)).all()


@pytest.mark.parametrize(
    ("factory", "rate"),
    [
        (optax.adam, optax.exponential_decay(0.05, 1_000, 0.5)),
        (functools.partial(optax.nadam, b1=0.8), optax.exponential_decay(0.05, 1_000, 0.5)),
        (optax.rmsprop, optax.exponential_decay(0.05, 1_000, 0.5)),
        # a momentum of steps keeps the rates that they had
        (functools.partial(optax.rmsprop, momentum=0.9), 2e-4),
        (functools.partial(optax.rmsprop, momentum=0.9, nesterov=True, eps_in_sqrt=False), 2e-4),
        (optax.adagrad, 0.5),
    ],
)
def test_decayed_reaches_the_lasso_in_the_optimizer_s_own_metric(factory, rate, x64):
    q, y, z = problem()
    loss = lambda p: 0.5 * jnp.sum((q @ p["kernel"] - y) ** 2)
    optimizer = wdjax.decayed(factory)(
        rate, weight_decay=LAM, penalty=penalties.l1, implicit=True, metric="preconditioner"
    )

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = lambda params: jax.lax.scan(body, (params, optimizer.init(params)), length=20_000)[0][0]
    params = jax.jit(run)({"kernel": np.ones(5)})
    assert np.allclose(params["kernel"], soft(z, LAM), atol=1e-3)
    assert ((params["kernel"] == 0) == (soft(z, LAM) == 0)).all()


@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        (optax.adam, {"b2": 0.9, "eps": 1e-3, "eps_root": 1e-4}),
        (optax.adam, {}),
        (optax.nadam, {}),
        (optax.rmsprop, {"eps": 1e-2}),
        (optax.rmsprop, {"eps": 1e-2, "eps_in_sqrt": False}),
        (optax.adagrad, {"eps": 1e-3}),
    ],
)
def test_the_diagonal_is_what_the_optimizer_multiplies_by(factory, arguments):
    """D · (momentum-free step direction): with b1 = 0 the update is exactly −η D g."""
    seen = {}

    def spy(z, s):
        seen["s"] = s
        return z

    penalty = penalties.Penalty("spy", prox=spy, separable=True)
    free = {"b1": 0.0} if factory is optax.adam else {}
    build = wdjax.decayed(factory)
    optimizer = build(
        0.1, weight_decay=1.0, penalty=penalty, implicit=True, metric="preconditioner",
        **arguments, **free,
    )  # fmt: skip
    params = {"kernel": np.float32([[1, 2]])}
    state = optimizer.init(params)
    plain = factory(0.1, **arguments, **free)
    plain_state = plain.init(params)
    for t in range(3):
        grads = {"kernel": np.float32([[0.3 + t, -2]])}
        _, state = optimizer.update(grads, state, params)
        updates, plain_state = jax.jit(plain.update)(grads, plain_state, params)
        if factory is optax.nadam:
            continue  # its step mixes moments; the diagonal is Adam's, checked below
        assert np.allclose(seen["s"], -updates["kernel"] / grads["kernel"], rtol=1e-4)
    if factory is optax.nadam:
        v = plain_state[0].nu["kernel"] / (1 - 0.999**3)
        assert np.allclose(seen["s"], 0.1 / (np.sqrt(v) + 1e-8), rtol=1e-4)


def test_what_cannot_work_says_so():
    params = {"kernel": jnp.ones((1, 2))}
    with pytest.raises(
        ValueError, match=r"`metric` must be one of None, 'preconditioner'; got 'adam'"
    ):
        wdjax.prox_weights(0.1, penalties.l1, metric="adam")
    with pytest.raises(
        TypeError, match=r"a sum over entries, such as l1, with a metric; got group_lasso"
    ):
        wdjax.prox_weights(0.1, penalties.group_lasso(), metric="preconditioner")
    with pytest.raises(TypeError, match=r"`metric` needs implicit=True"):
        wdjax.adamw(0.1, weight_decay=0.1, metric="preconditioner")
    tx = wdjax.prox_weights(0.1, penalties.l1, metric="preconditioner")
    with pytest.raises(ValueError, match=r"needs the diagonal D at every step. Use wdjax.decayed"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        (optax.lion, {}),
        (optax.lamb, {}),  # Adam's state, a step of another length
        (optax.radam, {}),
        (optax.adamax, {}),
        (optax.yogi, {}),
        (optax.contrib.muon, {}),
        (lambda learning_rate: optax.chain(optax.clip(1.0), optax.adam(learning_rate)), {}),
        (optax.rmsprop, {"centered": True}),
        (optax.rmsprop, {"bias_correction": True}),
    ],
)
def test_a_metric_that_is_not_known_is_refused_when_built(factory, arguments):
    with pytest.raises(TypeError, match=r"known for optax\.adam, .*; not for .* as given"):
        wdjax.decayed(factory)(
            0.1, weight_decay=0.1, penalty=penalties.l1, implicit=True, metric="preconditioner",
            **arguments,
        )  # fmt: skip
