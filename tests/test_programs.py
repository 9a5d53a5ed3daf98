"""The compiled step: decay, gates, rules and readings cost no pass over memory of their own."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import optax
import pytest
from script_files import load

import wdjax

accelerator = load("benchmarks/accelerator")
programs = accelerator.programs

CASES = accelerator.cases()
DECAYED = [name for name in CASES if name not in ("optax.adam, no decay", "optax.adamw")]


@functools.cache
def compiled(name, bare):
    case = CASES[name]
    # every big leaf is a kernel that decays, but for the embeddings
    params = accelerator.blocks(64, 1, 128, case.dtype)
    return programs.compiled(case.bare if bare else case.optimizer, params)


def text_of(name, *, bare=False):
    return compiled(name, bare).as_text()


@functools.cache
def costs_of(name, *, bare=False):
    return programs.costs(text_of(name, bare=bare))


@pytest.mark.parametrize("name", DECAYED)
@pytest.mark.first_is_quick
def test_decay_adds_no_kernel_to_any_leaf(name):
    with_decay, without = (
        programs.kernels_of_leaves(programs.read(text_of(name, bare=bare)))
        for bare in (False, True)
    )
    assert len(with_decay) == 5
    assert with_decay == without


@pytest.mark.parametrize("name", [name for name in DECAYED if "anchor" not in name])
def test_decay_moves_not_one_byte_more(name):
    assert costs_of(name).nbytes == costs_of(name, bare=True).nbytes
    assert costs_of(name).least == costs_of(name, bare=True).least


def test_an_anchor_is_read_once_for_each_number_that_decays():
    params = accelerator.blocks(64, 1, 128, jnp.float32)
    decays = wdjax.resolve(wdjax.standard(), params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(decays), strict=True)
    sizes = [(leaf.size, m) for leaf, m in pairs if leaf.size >= programs.BIG]
    share = sum(size for size, m in sizes if m) / sum(size for size, _ in sizes)

    added = costs_of('with anchor="init"').nbytes - costs_of("decayed adam").nbytes
    assert added == pytest.approx(4 * share, abs=1e-9)


def test_readings_cost_nothing_where_they_are_not_due_and_no_copy_where_they_are():
    name = "with metrics.measured, every 10"
    assert costs_of(name).nbytes == costs_of("decayed adam").nbytes
    assert costs_of(name).copies == 0
    # read g, m, v, θ; a compiler may write the step down in between, as that of GPUs does
    assert 16 <= costs_of(name).in_branch <= 24


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_called_on_the_host_and_no_array_is_baked_in(name):
    costs = costs_of(name)
    assert costs.calls == ()
    assert costs.constants == 1  # scalars only
    assert costs.converts == 0


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_state_are_updated_in_place(name):
    case = CASES[name]
    params = accelerator.blocks(64, 1, 128, case.dtype)
    donated = jax.tree.leaves((params, jax.eval_shape(case.optimizer.init, params)))
    head = text_of(name).split("\n")[0]
    assert head.count("may-alias)") == len(donated)


@pytest.mark.parametrize("gate", [None, wdjax.gates.cautious])
def test_sgd_with_decay_is_one_kernel_a_leaf_that_reads_and_writes_once(gate):
    """Here even a CPU's compiler can: it makes kernels of one result, and SGD has one."""
    optimizer = wdjax.sgdw(0.1, weight_decay=0.1, gate=gate)
    text = programs.compiled(optimizer, accelerator.blocks(64, 1, 128, jnp.float32)).as_text()
    assert set(programs.kernels_of_leaves(programs.read(text)).values()) == {1}
    assert programs.costs(text).nbytes == programs.costs(text).least == 12


# Rules are resolved while tracing, and leave nothing behind.


def layers(count):
    return {
        f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((64, 64), "float32")} for i in range(count)
    }


def program_with(rules, params):
    optimizer = wdjax.sgdw(0.1, weight_decay=0.1, rules=rules)
    return programs.compiled(optimizer, params).as_text()


def test_a_rule_for_each_layer_compiles_to_the_same_program_as_two():
    params = layers(30)
    every = tuple((f"layer_{i}/kernel", 0.5 if i % 2 else 1.0) for i in range(30))
    two = (("layer_*[13579]/kernel", 0.5), ("**", 1.0))
    assert wdjax.resolve(every, params) == wdjax.resolve(two, params)
    ours, same = program_with(every, params), program_with(two, params)
    assert programs.fingerprint(ours) == programs.fingerprint(same)
    assert programs.costs(ours).constants == 1


def test_other_multipliers_are_another_program():
    one, other = (program_with((("**", m),), layers(2)) for m in (0.5, 0.25))
    assert programs.fingerprint(one) != programs.fingerprint(other)


# The programs of devices that are not here.


PLATFORMS = [(name, ("cuda", "tpu")[i % 2]) for i, name in enumerate(CASES)]


@pytest.mark.parametrize(("name", "platform"), PLATFORMS)
def test_every_step_lowers_for_accelerators_and_calls_nothing(name, platform):
    case = CASES[name]
    module = programs.exported(case.optimizer, accelerator.blocks(64, 1, 128, case.dtype), platform)
    assert "stablehlo.add" in module
    for outside in ("custom_call", "callback", "infeed", "outfeed", "stablehlo.send"):
        assert outside not in module


@pytest.mark.slow  # the compilers of accelerators take a minute
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_run_one_kernel_a_leaf_that_reads_and_writes_once(platform):
    """What their own compilers make of it, where these are installed; no device is needed."""
    device = programs.absent_device(platform)
    if device is None:
        pytest.skip(f"no compiler for {platform}: pip install libtpu or jax[cuda12]")
    for name in DECAYED:
        case = CASES[name]
        if platform == "tpu" and name.startswith("compensated"):
            continue  # more than one kernel there, with decay and without
        params = accelerator.blocks(2_048, 1, 8_192, case.dtype)
        text = programs.compiled(case.optimizer, params, device).as_text()
        assert set(programs.kernels_of_leaves(programs.read(text)).values()) == {1}, name
        assert programs.costs(text).nbytes == programs.costs(text).least, name


# The reader itself.


@pytest.mark.parametrize("name", CASES)
def test_the_bytes_counted_are_those_of_the_compiler(name):
    if "measured" in name:
        pytest.skip("the compiler counts the branch too")
    nbytes = costs_of(name).nbytes  # of a number of a large leaf
    large, norms = 12 * 64**2 + 128 * 64, 2 * 64
    accessed = compiled(name, False).cost_analysis()["bytes accessed"]
    assert nbytes * large <= accessed
    assert accessed <= nbytes * large + nbytes * norms + 1_000  # and scalars


TPU = """HloModule jit_step

%fused (p: f32[64,128], q: f32[64,128]) -> (f32[64,128], f32[64,128]) {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  %q = f32[64,128]{1,0:T(8,128)S(1)} parameter(1)
  %add.1 = f32[64,128]{1,0:T(8,128)} add(%p, %q)
  ROOT %t = (f32[64,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) tuple(%add.1, %p)
}

ENTRY %main (a: f32[64,128], b: f32[64,128]) -> (f32[64,128], f32[64,128]) {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0), metadata={op_name="params[\\'w\\']"}
  %b = f32[64,128]{1,0:T(8,128)} parameter(1), metadata={op_name="grads[\\'w\\']"}
  %copy-start = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%b)
  %copy-done = f32[64,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %fusion = (f32[64,128]{1,0:T(8,128)}, /*index=1*/f32[64,128]{1,0:T(8,128)}) fusion(%a, %copy-done), kind=kLoop, calls=%fused
  %x = f32[64,128]{1,0:T(8,128)} get-tuple-element(%fusion), index=0
  %y = f32[64,128]{1,0:T(8,128)} get-tuple-element(%fusion), index=1
  ROOT %out = (f32[64,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) tuple(%x, %y)
}
"""  # noqa: E501  # as printed for a TPU, which fetches b while nothing else runs


def test_what_is_fetched_onto_the_chip_is_read_once():
    costs = programs.costs(TPU)
    assert (costs.kernels, costs.nbytes, costs.least, costs.copies) == (1, 16, 16, 0)
    assert programs.kernels_of_leaves(programs.read(TPU)) == {"params['w']": 1}


@pytest.mark.parametrize("package", ["libtpu", "jax_cuda12_plugin"])
def test_without_a_compiler_there_is_no_absent_device(package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert programs.absent_device("tpu" if package == "libtpu" else "cuda") is None


def test_callbacks_and_baked_arrays_are_seen():
    """So that the tests above can fail."""
    table = jnp.arange(8_192, dtype=jnp.float32).reshape(64, 128)

    def update(updates, state, params=None):
        jax.debug.callback(lambda x: None, updates["w"][0, 0])
        return jax.tree.map(lambda g: g * table, updates), state

    optimizer = optax.GradientTransformation(lambda params: (), update)
    params = {"w": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
    costs = programs.costs(programs.compiled(optimizer, params).as_text())
    assert any("callback" in target for target in costs.calls)
    assert costs.constants == 8_192


def test_an_extra_pass_is_seen():
    plain = optax.sgd(0.1)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), plain)  # the norm reads g once more

    def costs_with(optimizer):
        params = {"w": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
        costs = programs.costs(programs.compiled(optimizer, params).as_text())
        return costs.kernels, costs.nbytes, costs.least

    assert costs_with(plain) == (1, 12, 12)
    kernels, nbytes, least = costs_with(clipped)
    assert kernels >= 2  # 3 in an earlier XLA
    assert nbytes >= 16 > least == 12
