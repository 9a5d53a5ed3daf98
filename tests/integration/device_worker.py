"""What test_devices.py checks, in a process of its own that has eight devices.

Every check compares a run on a mesh with the same run on one device, in float64, where nothing but
the order of sums can differ.
"""

import functools
import json
import math
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import wdjax
from wdjax import adaptive, anchors, bounds, gates, matrices, metrics, penalties, radial
from wdjax._trees.devices import cut_rows
from wdjax.training import _loop

DEVICES = 8
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if name.endswith("backend_compile_duration") else 0
)


def mesh_of(kind, **axes):
    return jax.make_mesh((*axes.values(),), (*axes,), axis_types=(kind,) * len(axes))


def place(tree, mesh, *axes):
    """Cut every leaf along these axes, or the last of them; a mesh of None is one device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    put = lambda x: jax.device_put(x, NamedSharding(mesh, P(*axes[-x.ndim :])))
    return jax.tree.map(put, tree)


def collectives(compiled):
    return sorted(COLLECTIVE.findall(re.sub(r"\{[0-9,]*\}", "", compiled.as_text())))


def close(a, b, rtol=1e-9):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=rtol)


# Every kind of method. Its optimizer's step, three times, on a kernel cut along both of its axes,
# so that each group of weights lies on several devices.


class Method(NamedTuple):
    """An optimizer, made when it is needed, and what is true of it.

    Attributes:
        build: () -> the optimizer.
        talks: whether its step needs a sum over weights of several devices.
        copies: how many numbers per parameter its state holds.
        dtype: of the parameters.
    """

    build: Callable[[], Any]
    talks: bool
    copies: int = 0
    dtype: Any = np.float64


def adam(**options):
    return functools.partial(wdjax.decayed(optax.adam), 0.01, weight_decay=1.0, **options)


def after_sgd(method):
    return lambda: optax.chain(optax.sgd(0.1), method())


def on_direction(method):
    return lambda: optax.chain(optax.scale_by_adam(), method())


def prox(penalty):
    return after_sgd(lambda: wdjax.prox_weights(0.05, penalty))


COUPLED = lambda: optax.chain(wdjax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
METHODS = {
    "decoupled decay": Method(adam(), False, 2),
    "coupled decay": Method(COUPLED, False, 1),
    "l1": Method(prox(penalties.l1), False),
    "l1 in Adam's metric": Method(
        adam(implicit=True, metric="preconditioner", penalty=penalties.l1), False, 2
    ),
    "cautious": Method(adam(gate=gates.cautious), False, 2),
    "anchor init": Method(adam(anchor="init"), False, 3),
    "anchor ema": Method(adam(anchor=anchors.ema(0.9)), False, 3),
    "cumulative_l1": Method(after_sgd(lambda: adaptive.cumulative_l1(0.05)), False, 1),
    "compensated": Method(lambda: wdjax.compensated(adam()()), False, 3, jnp.bfloat16),
    "stochastically_rounded": Method(
        lambda: wdjax.stochastically_rounded(adam()(), seed=0), False, 2, jnp.bfloat16
    ),
    "group_lasso": Method(prox(penalties.group_lasso(axes=0)), True),
    "ball": Method(prox(penalties.ball(0.5, axes=0)), True),
    "sphere": Method(prox(penalties.sphere(0.5, axes=-1)), True),
    "nuclear": Method(prox(matrices.nuclear), True),
    "orthogonal": Method(after_sgd(lambda: wdjax.decay_weights(0.01, matrices.orthogonal)), True),
    "cosine": Method(adam(gate=gates.cosine(0.5, axes=0)), True, 2),
    "touched_rows": Method(adam(gate=gates.touched_rows()), True, 2),
    "cpr": Method(after_sgd(lambda: adaptive.cpr(bounds.dependent(0.5))), True),
    "cpr of rows": Method(
        after_sgd(lambda: adaptive.cpr(bounds.dependent(0.9), bounds.deviation, axes=-1)), True
    ),
    "spd": Method(after_sgd(lambda: adaptive.spd(axes=0)), True, 1),
    "swd": Method(after_sgd(lambda: adaptive.swd(0.05)), True),
    "norm_control": Method(after_sgd(lambda: radial.norm_control(0.1, axes=0)), True),
    "hyperball": Method(on_direction(lambda: radial.hyperball(0.1, axes=0)), True, 2),
    "project_radial": Method(
        after_sgd(lambda: radial.project_radial(0.05, cosine=0.9, axes=0)), True
    ),
    "muon": Method(lambda: wdjax.muonw(0.01, weight_decay=1.0), True),
    "measured": Method(lambda: metrics.measured(adam()(), every=1), True, 2),
}
# Optax's Newton-Schulz iterations multiply matrices without a word on where the product lies.
ONLY_AUTO = {"muon"}


def host_params(seed, dtype):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (16, 24), "bias": (8,)}
    return {name: rng.normal(0, 0.5, shape).astype(dtype) for name, shape in shapes.items()}


def take_steps(method, mesh, *axes):
    """The state before and after three steps towards a point, and the compiled step."""
    params, goal = (place(host_params(seed, method.dtype), mesh, *axes) for seed in (0, 1))
    optimizer = optax.with_extra_args_support(method.build())

    @jax.jit
    def step(params, opt_state, goal):
        grads = jax.tree.map(jnp.subtract, params, goal)
        updates, opt_state = optimizer.update(grads, opt_state, params, grad=grads)
        return optax.apply_updates(params, updates), opt_state

    first = wdjax.TrainState.create(params, optimizer)
    compiled = step.lower(first.params, first.opt_state, goal).compile()
    last = first.params, first.opt_state
    for _ in range(3):
        last = compiled(*last, goal)  # refuses arrays that lie elsewhere than they did
    return first, first._replace(params=last[0], opt_state=last[1]), compiled


def check_state_lies_like_its_parameters(state, copies):
    """A leaf with a parameter's shape lies like it; one number per group lies like the groups."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    params = {name(keys): leaf for keys, leaf in jax.tree.leaves_with_path(state.params)}
    found = 0
    for keys, leaf in jax.tree.leaves_with_path(state.opt_state):
        path = name(keys)
        param = next((params[own] for own in params if path.endswith(own)), None)
        if param is None or leaf.ndim != param.ndim or "readings" in path:
            assert leaf.sharding.is_fully_replicated, path
            continue
        at = (*param.sharding.spec, *(None,) * param.ndim)
        rows = zip(leaf.shape, param.shape, at, strict=False)
        spec = P(*(axis if n == m else None for n, m, axis in rows))
        wanted = NamedSharding(param.sharding.mesh, spec)
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (path, leaf.sharding, wanted)
        found += leaf.shape == param.shape
    assert found >= copies * len(params), f"{found} leaves of the state have their shapes"


@functools.cache
def alone(name):
    return take_steps(METHODS[name], None)[1]


def check_method(name, kind):
    method = METHODS[name]
    first, last, compiled = take_steps(method, mesh_of(kind, x=4, y=2), "x", "y")
    for state in (first, last):
        check_state_lies_like_its_parameters(state, method.copies)
    found = collectives(compiled)
    assert bool(found) == method.talks, found
    if method.dtype == np.float64:
        close(last.params, alone(name).params)
        return
    # float32 inside, where another fusion may round otherwise and now and then flip a last bit
    for x, y in zip(jax.tree.leaves(last.params), jax.tree.leaves(alone(name).params), strict=True):
        close(x.astype(float), y.astype(float), rtol=2**-7)
        assert np.mean(np.asarray(x) == np.asarray(y)) > 0.9


# The train step and the loop.

ROWS = 96
# Axes of the mesh, and along which of them parameters are cut; examples are along the first.
LAYOUTS = {
    "data-parallel": ({"x": 8}, ()),
    "fully sharded": ({"x": 8}, ("x",)),
    "tensor": ({"x": 4, "y": 2}, (None, "y")),
    "fully sharded, tensor": ({"x": 4, "y": 2}, ("x", "y")),
}


def host_model():
    rng = np.random.default_rng(2)
    shapes = {"first": (16, 24), "head": (24, 8)}
    params = {name: {"kernel": rng.normal(0, 0.3, shape)} for name, shape in shapes.items()}
    params["head"]["bias"] = np.zeros(8)
    return params


def host_data(rows=ROWS):
    rng = np.random.default_rng(3)
    return {"x": rng.normal(size=(rows, 16)), "y": rng.normal(size=(rows, 8))}


def loss_fn(params, batch):
    mesh = jax.typeof(params["head"]["bias"]).sharding.mesh
    if EXPLICIT in mesh.axis_types:  # it wants to hear that weights are gathered before their use
        params = jax.tree.map(lambda p: jax.sharding.reshard(p, NamedSharding(mesh, P())), params)
    hidden = jnp.tanh(batch["x"] @ params["first"]["kernel"])
    prediction = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
    return jnp.mean((prediction - batch["y"]) ** 2)


def optimizer():
    return optax.chain(adam()(), adaptive.cpr(bounds.dependent(0.9)))


OPTIONS = {
    "plain": {},
    "accumulated": {"accumulate": 2, "max_grad_norm": 0.1},
}


def train(layout, kind, options):
    """Four train steps on one batch; (state, metrics of every step)."""
    axes, cut = LAYOUTS[layout] if layout else ({}, ())
    mesh = mesh_of(kind, **axes) if layout else None
    step = wdjax.make_train_step(loss_fn, optimizer(), **OPTIONS[options])
    state = wdjax.TrainState.create(place(host_model(), mesh, *cut), optimizer())
    batch, shown = place(host_data(), mesh, "x"), []
    begun, programs = state, []
    for _ in range(4):
        state, found = step(state, batch)
        shown.append(jax.tree.map(float, found))
        programs.append(len(COMPILED))
    assert programs[0] == programs[-1] > 0, "compiled more than once"
    donated = jax.tree.leaves((begun.params, begun.opt_state))
    assert all(x.is_deleted() for x in donated), "the old state is still there"
    return state, shown


@functools.cache
def trained_alone(options):
    return train(None, None, options)


def check_train_step(layout, kind, options):
    state, shown = train(layout, kind, options)
    close((state.params, shown), (trained_alone(options)[0].params, trained_alone(options)[1]))
    check_state_lies_like_its_parameters(state, 2)


OPTIMIZERS = {
    "plain": lambda: optax.adam(0.01),
    "decayed": adam(gate=gates.cautious, anchor="init"),
}


@functools.cache
def compiled_step(layout, name, **options):
    axes, cut = LAYOUTS[layout]
    mesh, optimizer = mesh_of(AUTO, **axes), OPTIMIZERS[name]()
    state = wdjax.TrainState.create(place(host_model(), mesh, *cut), optimizer)
    step = wdjax.make_train_step(loss_fn, optimizer, **options)
    return step.lower(state, place(host_data(), mesh, "x")).compile()


def check_decay_says_nothing(layout):
    """The collectives of the whole step, with their shapes, are those without decay."""
    plain, decayed = (collectives(compiled_step(layout, name)) for name in OPTIMIZERS)
    assert plain
    assert decayed == plain


def check_micro_batches_are_spread():
    """Of 96 examples in two micro-batches each of eight devices has six at a time, and no more."""
    text = compiled_step("data-parallel", "plain", accumulate=2).as_text()
    assert "f64[6,24]" in text
    assert "f64[12,24]" not in text
    assert "f64[48,24]" not in text


def fitted(mesh, cut, batches, **options):
    begun = wdjax.TrainState.create(place(host_model(), mesh, *cut), optimizer())
    step = fitting_step()
    before = _loop._run_chunk._cache_size()
    state, history = wdjax.fit(step, begun, batches, progress=False, **options)
    assert not any(x.is_deleted() for x in jax.tree.leaves(begun))
    assert _loop._run_chunk._cache_size() <= before + 1, "compiled more than once"
    return state, history


@functools.cache
def fitting_step():
    return wdjax.make_train_step(loss_fn, optimizer(), max_grad_norm=0.1)


def check_fit(kind, batch_size):
    """60 examples on four devices, which can share 16 of them evenly, and the 12 at the end."""
    mesh, data = mesh_of(kind, x=4, y=2), host_data(60)
    options = {"epochs": 3, "batch_size": batch_size}
    state, history = fitted(mesh, ("x",), place(data, mesh, "x"), **options)
    wanted = fitted(None, (), data, **options)
    close((state.params, history.metrics), (wanted[0].params, wanted[1].metrics))
    check_state_lies_like_its_parameters(state, 2)


def check_fit_of_an_iterator():
    mesh, data = mesh_of(AUTO, x=8), host_data()
    batches = [jax.tree.map(lambda x, i=i: x[i : i + 16], data) for i in range(0, ROWS, 16)]
    state, history = fitted(mesh, ("x",), (place(batch, mesh, "x") for batch in batches))
    wanted = fitted(None, (), iter(batches))
    close((state.params, history.metrics), (wanted[0].params, wanted[1].metrics))
    check_state_lies_like_its_parameters(state, 2)


def check_fit_spreads_a_batch():
    """Each device computes with the four of 32 examples that it has, not with all."""
    mesh = mesh_of(AUTO, x=8)
    state = wdjax.TrainState.create(place(host_model(), mesh), optimizer())
    data, rows = place(host_data(), mesh, "x"), np.arange(32, dtype=np.int32)[None]
    static = fitting_step(), 0, jax.tree.structure(state), cut_rows(data)
    leaves, rounds = jax.tree.leaves(state), np.array([[1, 0]], np.int32)
    text = _loop._run_chunk.lower(*static, leaves, data, rows, rounds).compile().as_text()
    assert "f64[4,24]" in text
    assert "f64[32,24]" not in text


def check_jitted_creation():
    """The whole state made in one program, each leaf in its place from the start."""
    mesh = mesh_of(AUTO, x=8)
    create = lambda: wdjax.TrainState.create(jax.tree.map(jnp.asarray, host_model()), optimizer())
    at = lambda x: NamedSharding(mesh, P("x") if x.ndim and x.shape[0] % DEVICES == 0 else P())
    state = jax.jit(create, out_shardings=jax.tree.map(at, jax.eval_shape(create)))()
    close(state, create())
    assert jax.jit(lambda p: wdjax.TrainState.create(p, optimizer()))(state.params) is not None


# Sweeps: a configuration lies on one device.


def check_sweep():
    with jax.enable_x64(False):
        _check_sweep()


def _check_sweep():
    import test_sweeps as t

    from wdjax import sweeps
    from wdjax.sweeps import _chunks, _functions, _program

    hparams = sweeps.grid(weight_decay=np.linspace(0.0, 1.0, 13))  # three repetitions fill up
    options = {"hparams": hparams, "seeds": 2, "init": t.init_random, "keep_params": True}
    spread, one = t.run(**options), t.run(**options, devices=jax.local_devices()[:1])
    close((spread.val, spread.params), (one.val, one.params), rtol=1e-4)
    mesh = _chunks.mesh_over(None, 16)
    assert mesh.size == DEVICES
    loss = t.half_square
    job = _functions.optimized(t.l2_sgd, t.init, loss, loss, keep=True, gaps=_functions.Gaps.SHORT)
    shared = _program.share(
        t.DATA,
        sweeps.kfold(30, 4),
        epochs=np.array([2, 4]),
        batch_size=8,
        seeds=[0],
        shuffle=True,
        mesh=mesh,
    )
    h = {"weight_decay": np.ones(16, np.float32)}
    compiled = _program.train.lower(job, mesh, h, shared).compile()
    assert not collectives(compiled)
    assert "f32[4,1,2,6]" in compiled.as_text()  # two of the sixteen on each device


# What stands on paper (scripts/memory.py).


def on_paper():
    import script_files

    return script_files.load("memory")


def numbers_in(compiled, kind):
    """How many numbers each device has of the arrays that these collectives make; no scalars."""
    shapes = [shape for shape, name in collectives(compiled) if name == kind]
    sizes = re.findall(r"\[([0-9,]+)\]", " ".join(shapes))
    return sum(math.prod(map(int, size.split(","))) for size in sizes)


def scheme_of(name):
    """A mesh, and along which axis parameters and moments are cut."""
    return {
        "data-parallel": ({"x": 8}, (), ()),
        "ZeRO-1": ({"x": 8}, (), ("x",)),
        "fully sharded": ({"x": 8}, ("x",), ("x",)),
        "hybrid": ({"replica": 2, "x": 4}, ("x",), ("x",)),
    }[name]


def together(mesh):
    """The updates on all devices, wherever the moments are: without this they pull them along."""
    whole = lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))
    return optax.stateless(lambda updates, params: jax.tree.map(whole, updates))


@functools.cache
def held_alone():
    step = wdjax.make_train_step(loss_fn, adam()())
    state = wdjax.TrainState.create(place(host_model(), None), adam()())
    return step(state, place(host_data(), None))[0].params


def check_held(name):
    """Bytes on the first device, after a step."""
    axes, cut, state_cut = scheme_of(name)
    mesh = mesh_of(AUTO, **axes)
    last = together(mesh) if cut != state_cut else optax.identity()
    optimizer = optax.chain(adam()(), last)
    state = wdjax.TrainState.create(place(host_model(), mesh, *cut), optimizer)
    if cut != state_cut:
        moved = lambda x: place(x, mesh, *state_cut) if x.ndim else x
        state = state._replace(opt_state=jax.tree.map(moved, state.opt_state))
    batch = place(host_data(), mesh, tuple(axes))
    state, _ = wdjax.make_train_step(loss_fn, optimizer)(state, batch)
    close(state.params, held_alone())
    paper = on_paper()
    psi, store = sum(x.size for x in jax.tree.leaves(state.params)), paper.Store(8, 8, 16)
    cost = paper.SCHEMES[name](psi, store, DEVICES, 4)
    first = lambda tree: sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree) if x.ndim
    )
    assert (first(state.params), first(state.opt_state)) == (cost.params, cost.state)


def check_sent():
    """Numbers in the collectives: each gradient reduced once, each parameter gathered once."""
    paper = on_paper()
    psi, store = sum(x.size for x in jax.tree.leaves(host_model())), paper.Store(8, 8, 16)
    compiled = compiled_step("data-parallel", "decayed")
    reduced = 8 * numbers_in(compiled, "all-reduce")
    assert reduced == 8 * psi
    cost = paper.data_parallel(psi, store, DEVICES, 4)
    assert paper.all_reduce(reduced, DEVICES) == cost.sent
    assert not numbers_in(compiled, "all-gather")
    # This compiler remembers what it gathered: once for both directions. And it reduces gradients
    # for all devices where that of an accelerator scatters them.
    compiled = compiled_step("fully sharded", "decayed")
    assert numbers_in(compiled, "all-gather") == psi
    assert numbers_in(compiled, "all-reduce") == psi
    both, once = 2 * paper.all_gather(8 * psi, DEVICES), paper.reduce_scatter(8 * psi, DEVICES)
    assert paper.fully_sharded(psi, store, DEVICES, 4).sent == both + once


def check_sent_by_methods():
    """Sums of each group of weights, which lies on all eight devices."""
    paper, mesh = on_paper(), mesh_of(AUTO, x=8)
    cases = {"group_lasso": ("`group_lasso`", 24), "hyperball": ("`radial.hyperball`", 24)}
    for name, (row, groups) in (cases | {"cpr": ("`adaptive.cpr`", 1)}).items():
        extra = next(extra for text, extra in paper.METHODS.items() if text.startswith(row))
        _, last, compiled = take_steps(METHODS[name], mesh, "x")
        found = [shape for shape, _ in collectives(compiled)]
        sizes = [size for shape in found for size in re.findall(r"\[([0-9,]*)\]", shape)]
        assert sum(math.prod(map(int, filter(None, s.split(",")))) for s in sizes) == (
            extra.sums * groups
        )
        own = [x for x in jax.tree.leaves(last.opt_state) if x.size == groups and x.ndim == 2]
        assert len(own) == (extra.per_group + extra.per_param) / 4


def _checks():
    for kind in (AUTO, EXPLICIT):
        on = f"on {kind.name.lower()} axes"
        for name in METHODS:
            if not (kind == EXPLICIT and name in ONLY_AUTO):
                yield f"{name}, {on}", functools.partial(check_method, name, kind)
        for layout in LAYOUTS if kind == AUTO else ("data-parallel", "fully sharded"):
            name = f"train step, {layout}, {on}"
            yield name, functools.partial(check_train_step, layout, kind, "accumulated")
        yield f"fit, examples in parts, {on}", functools.partial(check_fit, kind, 16)
    plain = functools.partial(check_train_step, "data-parallel", AUTO, "plain")
    yield "train step, one micro-batch", plain
    yield "fit, batches of odd size", functools.partial(check_fit, EXPLICIT, 18)
    yield "fit, an iterator", check_fit_of_an_iterator
    for layout in LAYOUTS:
        name = f"no collective of decay, {layout}"
        yield name, functools.partial(check_decay_says_nothing, layout)
    yield "micro-batches are spread", check_micro_batches_are_spread
    yield "batches of fit are spread", check_fit_spreads_a_batch
    yield "jitted creation", check_jitted_creation
    for name in ("data-parallel", "ZeRO-1", "fully sharded", "hybrid"):
        yield f"bytes held, {name}", functools.partial(check_held, name)
    yield "bytes sent", check_sent
    yield "bytes sent by methods", check_sent_by_methods
    yield "sweep", check_sweep


CHECKS = dict(_checks())


def main():
    """Print {check: what went wrong, or nothing} as the last line."""
    sys.path.append(str(pathlib.Path(__file__).parents[1]))
    assert jax.device_count() == DEVICES
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    found = {}
    for name in sys.argv[1:] or CHECKS:
        try:
            CHECKS[name]()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
