"""Gates: the formula against its reference, and what it does in training with raw gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import GATES
from oracles import imported

import wdjax
from wdjax import gates

rows = pytest.mark.parametrize("case", GATES.values(), ids=GATES.keys())
needing_grad = {name: case for name, case in GATES.items() if case.needs_grad}
raw = pytest.mark.parametrize("case", needing_grad.values(), ids=needing_grad.keys())

RNG = np.random.default_rng(0)
Z, UPDATE, GRAD = (RNG.normal(size=(5, 4)) for _ in range(3))
Z[1], UPDATE[2, :2], GRAD[3], GRAD[4, 1] = 0.0, 0.0, 0.0, 0.0
RULES = (("bias", 0.0), ("**", 1.0))


@rows
def test_it_equals_the_reference(case, x64):
    ours = np.broadcast_to(jax.jit(case.gate)(Z, UPDATE, GRAD), Z.shape)
    want = case.reference(Z, UPDATE, GRAD)
    assert np.array_equal(ours, want)
    assert len(np.unique(want)) == 2, "the data must show both sides of the gate"


@rows
def test_it_does_not_underflow(case):
    """The product of two such numbers is 0 in float32; the gate looks at directions only."""
    numbers, gate = np.float32([Z, UPDATE, GRAD]), jax.jit(case.gate)
    for tiny in np.float32([1e-25, 1e-36]):
        assert np.array_equal(gate(*(tiny * numbers)), gate(*numbers))


@rows
def test_zeros_and_empty_leaves_give_numbers_in_range(case):
    for shape in ((3, 4), (0, 4), (3, 0)):
        zero = np.zeros(shape, np.float32)
        gate = np.broadcast_to(jax.jit(case.gate)(zero, zero, zero), shape).astype(float)
        assert np.all((gate >= 0) & (gate <= 1))


@rows
@pytest.mark.parametrize(
    ("factory", "dtype"), [(optax.sgd, jnp.bfloat16), (optax.adam, jnp.float32)]
)
@pytest.mark.first_is_quick
def test_decayed_hands_it_the_raw_gradient(case, dtype, factory):
    """θ + Δ − s φ(θ, Δ, g) θ, several steps, with Δ the optimizer's own and g before it."""
    keywords = {"momentum": 0.9} if factory is optax.sgd else {}
    plain = factory(0.1, **keywords)
    gated = wdjax.decayed(factory)(
        0.1, weight_decay=0.125, law=wdjax.fixed, gate=case.gate, rules=RULES, **keywords
    )
    params = {"kernel": Z.astype(dtype), "bias": np.ones(3, dtype)}
    states = plain.init(params), gated.init(params)

    @jax.jit
    def both(params, states, grads):
        step, first = plain.update(grads, states[0], params)
        updates, second = gated.update(grads, states[1], params)
        return step, updates, optax.apply_updates(params, updates), (first, second)

    rng = np.random.default_rng(1)
    for _ in range(3):
        kernel = (rng.normal(size=Z.shape) * (GRAD != 0)).astype(dtype)
        grads = {"kernel": kernel, "bias": np.ones(3, dtype)}
        step, updates, after, states = both(params, states, grads)
        z, delta, grad = (np.float64(x["kernel"]) for x in (params, step, grads))
        want = delta - 0.125 * case.reference(z, delta, grad) * z
        accuracy = 2e-6 if dtype == jnp.float32 else 2e-2
        assert np.allclose(np.float64(updates["kernel"]), want, rtol=accuracy, atol=accuracy)
        assert np.array_equal(updates["bias"], step["bias"])
        params = after
    assert all(np.isfinite(np.float32(leaf)).all() for leaf in jax.tree.leaves(params))


@raw
def test_a_plain_chain_passes_the_gradient_itself(case):
    params, grads = {"kernel": np.float32(Z)}, {"kernel": np.float32(GRAD)}
    tx = optax.chain(optax.sgd(0.1), wdjax.decay_weights(0.125, gate=case.gate))
    got, _ = jax.jit(tx.update)(grads, tx.init(params), params, grad=grads)
    gated = wdjax.decayed(optax.sgd)(0.1, weight_decay=0.125, law=wdjax.fixed, gate=case.gate)
    want, _ = jax.jit(gated.update)(grads, gated.init(params), params)
    assert np.array_equal(got["kernel"], want["kernel"])


@raw
def test_without_the_raw_gradient_it_says_where_to_get_it(case):
    name = next(name for name, other in GATES.items() if other is case)
    message = rf"`{name}` needs the raw gradient; got none. Use wdjax.decayed, or wrap"
    tx = optax.chain(optax.sgd(0.1), wdjax.decay_weights(0.125, gate=case.gate))
    params = {"kernel": np.float32(Z)}
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params)


@rows
def test_it_runs_under_jit_and_vmap(case):
    numbers = np.float32([Z, UPDATE, GRAD])
    together = jax.jit(jax.vmap(case.gate))(*(x[None].repeat(2, 0) for x in numbers))
    alone = case.gate(*numbers)
    assert np.array_equal(together, np.stack([alone, alone]))


@rows
def test_the_signature_is_that_of_a_gate(case):
    assert list(inspect.signature(case.gate).parameters) == ["z", "update", "grad"]


def test_the_two_cautious_gates_differ_only_where_nothing_moves():
    z = jnp.array([1.0, 1.0, 1.0, 0.0])
    update = jnp.array([-1.0, 1.0, 0.0, 1.0])
    assert gates.cautious(z, update).tolist() == [True, False, True, True]
    assert gates.strictly_cautious(z, update).tolist() == [True, False, False, False]


def test_unseen_rows_of_an_embedding_keep_their_values_with_touched_rows():
    """Plain decay takes the same fraction off all rows."""
    embed = {"embedding": np.ones((3, 2), np.float32)}
    grads = {"embedding": np.float32([[1e-9] * 2, [0, 0], [0, 0]])}
    optimizer = wdjax.decayed(optax.sgd)(
        0.1, weight_decay=0.5, gate=gates.touched_rows(), rules=wdjax.standard(embeddings=1.0)
    )
    plain = wdjax.decayed(optax.sgd)(0.1, weight_decay=0.5, rules=wdjax.standard(embeddings=1.0))
    results = []
    for tx in (optimizer, plain):
        params, state = embed, tx.init(embed)
        for _ in range(10):
            updates, state = jax.jit(tx.update)(grads, state, params)
            params = optax.apply_updates(params, updates)
        results.append(np.asarray(params["embedding"]))
    gated, decayed = results
    assert np.array_equal(gated[1:], np.ones((2, 2)))
    assert np.allclose(gated[0], 0.95**10, rtol=1e-5)
    assert np.allclose(decayed, 0.95**10, rtol=1e-5)


def test_descent_with_the_initial_anchor_never_pulls_against_the_loss(x64):
    """f(w) = ½(w − 2)² from w₀ = 0: decay to the start settles at 2/(1 + λ), gated at 2."""
    grads = lambda p: {"kernel": p["kernel"] - 2}
    ends = []
    for gate in (None, gates.descent()):
        optimizer = wdjax.decayed(optax.sgd)(0.1, weight_decay=0.5, gate=gate, anchor="init")
        params = {"kernel": np.zeros((1, 1))}

        def body(_, carry, optimizer=optimizer):
            updates, state = optimizer.update(grads(carry[0]), carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        run = lambda x, tx=optimizer, body=body: jax.lax.fori_loop(0, 300, body, (x, tx.init(x)))
        ends.append(jax.jit(run)(params)[0]["kernel"].item())
    assert np.allclose(ends, [2 / 1.5, 2.0], atol=1e-9)


def test_groups_of_zeros_close_the_descent_gate_and_count_as_orthogonal():
    one, zero = np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)
    descent, cosine = jax.jit(gates.descent()), jax.jit(gates.cosine())
    for z, grad in ((one, zero), (zero, one), (zero, zero)):
        assert not descent(z, grad, grad).item()
        assert np.isclose(cosine(z, grad, grad).item(), 0.1)


def test_groups_of_a_scan_stacked_kernel_are_decided_layer_by_layer():
    z = np.ones((2, 3, 4), np.float32)
    grad = z * np.float32([1, -1])[:, None, None]
    of = lambda gate: jax.jit(gate(axes=(1, 2)))(z, grad, grad)
    assert of(gates.descent).ravel().tolist() == [True, False]
    assert of(gates.cosine).shape == (2, 1, 1)
    assert of(gates.touched_rows).ravel().tolist() == [True, True]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gates.cosine(delta=0.0), r"`delta` must be a finite number > 0; got 0.0"),
        (lambda: gates.cosine(delta=float("nan")), r"`delta` must be a finite number > 0; got nan"),
        (lambda: gates.cosine(factor=1.5), r"`factor` must be in \[0, 1\]; got 1.5"),
        (
            lambda: gates.descent(axes=2)(jnp.ones(2), jnp.ones(2), jnp.ones(2)),
            r"`axes` must be axes of every penalized leaf; got 2 for a leaf of shape \(2,\)",
        ),
    ],
)
def test_bad_arguments_say_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_cosine_gate_of_one_group_equals_adamp(x64, agrees):
    """AdamP's factor, read off its own steps: one neuron, so that its two views are the same."""
    torch = pytest.importorskip("torch", reason="torch comes with the extra 'oracles'")
    adamp = pytest.importorskip("adamp", reason="adamp comes with the extra 'oracles'")
    rng = np.random.default_rng(2)
    seen, gate = set(), jax.jit(gates.cosine(delta=1.0, factor=0.3))
    for _ in range(20):
        z, grad = rng.normal(size=(2, 1, 50))
        ends = []
        for decay in (0.0, 0.5):
            weight = torch.nn.Parameter(torch.tensor(z))
            optimizer = adamp.AdamP([weight], lr=0.1, weight_decay=decay, delta=1.0, wd_ratio=0.3)
            weight.grad = torch.tensor(grad)
            optimizer.step()
            ends.append(weight.detach().numpy())
        theirs = (ends[0] - ends[1]) / (0.1 * 0.5 * z)
        ours = gate(z, None, grad)
        agrees("gates.cosine", "adamp", np.full_like(theirs, ours.item()), theirs, atol=1e-9)
        seen.add(round(ours.item(), 6))
    assert seen == {0.3, 1.0}


@pytest.mark.parametrize("weight_decay", [0.3, 3.0])
def test_the_cautious_gate_equals_heavyball(weight_decay, agrees):
    """No update is exactly zero here: at zero HeavyBall looks at the sign bit, not at the paper."""
    torch, heavyball = imported("torch"), imported("heavyball")
    heavyball.utils.compile_mode = None
    rng = np.random.default_rng(4)
    start = rng.normal(size=(6, 5)).astype(np.float32)
    grads = [rng.normal(size=(6, 5)).astype(np.float32) for _ in range(12)]
    theirs, params = torch.nn.Parameter(torch.tensor(start)), {"kernel": jnp.asarray(start)}
    oracle = heavyball.AdamW(
        [theirs],
        lr=0.05,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=weight_decay,
        cautious_weight_decay=True,
        multi_tensor=False,
    )
    optimizer = wdjax.adamw(0.05, b2=0.99, weight_decay=weight_decay, gate=gates.cautious)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grad in grads:
        theirs.grad = torch.tensor(grad)
        with torch.no_grad():
            oracle.step()
        updates, state = update({"kernel": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
    agrees("gates.cautious", "heavyball", params["kernel"], theirs.detach().numpy(), atol=2e-6)


# Complex entries: the plane, in which moving away from 0 has a direction.


def test_cautious_on_complex_entries_compares_directions_in_the_plane():
    z = jnp.array([1j, 1j, 1 + 0j, 1 + 1j, 1 + 1j])
    update = jnp.array([0.1j, -0.1j, 0.1j, 1 - 2j, 2 - 1j])
    np.testing.assert_array_equal(gates.cautious(z, update), [False, True, True, True, False])
    strict = gates.strictly_cautious(z, update)
    np.testing.assert_array_equal(strict, [False, True, False, True, False])


def test_descent_and_cosine_on_complex_groups_equal_those_on_their_parts():
    rng = np.random.default_rng(0)
    z, grad = (rng.normal(size=(2, 6, 4)).view(complex) for _ in range(2))
    z, grad = z[0], grad[1]  # (6, 2)
    parts = [np.ascontiguousarray(x).view(float) for x in (z, grad)]  # (6, 4)
    descent, cosine = jax.jit(gates.descent(axes=1)), jax.jit(gates.cosine(axes=1))
    np.testing.assert_array_equal(descent(z, -grad, grad), descent(parts[0], -parts[1], parts[1]))
    turned = 1j * z  # orthogonal to z in the plane
    np.testing.assert_allclose(cosine(z, -turned, turned), 0.1)
    np.testing.assert_allclose(cosine(z, -z, z), 1.0)


def test_a_gate_in_a_mask_sees_the_gradients_of_its_leaves():
    """`with_grad` outside passes those of all."""
    tx = wdjax.decay_weights(0.5, gate=gates.descent(), rules=(("**", 1.0),))
    masked = optax.masked(tx, {"a": True, "b": False})
    optimizer = wdjax.adaptive.with_grad(optax.chain(optax.set_to_zero(), masked))
    params = {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)}
    got, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    np.testing.assert_allclose(got["a"], -0.5)
    np.testing.assert_allclose(got["b"], 0.0)
