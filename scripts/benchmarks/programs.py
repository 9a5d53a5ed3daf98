"""What one compiled step does to memory, read from its text: kernels and bytes per leaf.

Reads what XLA prints for CPU, GPU and TPU. A kernel is an instruction of the entry computation
that works on big arrays; scalars and reshapes cost nothing here, nor does what is on the chip. A
branch of `lax.cond` is counted apart, for it does not run at every step.
"""

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import optax
from jax.experimental import topologies

from benchmarks.steps import compiled_step

BIG = 4_096  # numbers; smaller arrays do not count as passes over memory

# Reading the text.


class Array(NamedTuple):
    """The type of one array; `space` 0 is main memory, others are on the chip."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of it, wherever it is."""
        bits = re.search(r"\d+", self.dtype)
        return self.size * (int(bits.group()) if bits else 8) // 8

    @property
    def traffic(self) -> int:
        """Bytes that reading it takes from main memory."""
        return 0 if self.space else self.nbytes


class Instruction(NamedTuple):
    """A line of the text: name = arrays opcode(operands), attributes."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def argument(self) -> str:
        """What a parameter was called: params['layer']['kernel']."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1).replace("\\'", "'") if found else ""


Computation = dict[str, Instruction]

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")


class Program(NamedTuple):
    """All computations by name, the name of the first to run, and what each returns."""

    computations: dict[str, Computation]
    entry: str
    roots: dict[str, str]


def read(text: str) -> Program:
    """Read the text of a compiled program, as from `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    roots: dict[str, str] = {}
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head.group(2)
            computations[name] = {}
            entry = name if head.group(1) else entry
        elif start := _LINE.match(line):
            instruction = _instruction(start.group(2), line[start.end() :])
            computations[name][instruction.name] = instruction
            if start.group(1):
                roots[name] = instruction.name
    return Program(computations, entry, roots)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _closing("(" + rest) - 1
    operands = tuple(re.findall(r"%([\w.-]+)", rest[: end - 1]))
    return Instruction(name, opcode, tuple(_arrays(kind)), operands, rest[end:])


def _closing(text: str) -> int:
    """Return where the first parenthesis closes."""
    depth = 0
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return i + 1
    raise ValueError(f"no end: {text[:80]}")


def _arrays(text: str) -> Iterator[Array]:
    for dtype, shape, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n) for n in shape.split(",") if n)
        yield Array(dtype, sizes, int(space.group(1)) if space else 0)


# Who reads and writes what.

Source = tuple[str, int]  # the i-th result of an instruction

_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "copy-done",
         "slice-done", "conditional", "after-all", "opt-barrier"}  # fmt: skip
_MOVED = {"copy-start": 0, "slice-start": 1}  # in the background; where the result is listed
_JOINED = "ConcatBitcast"  # how a TPU joins the slices that it fetched


class Kernel(NamedTuple):
    """An instruction that works on big arrays, and the bytes of main memory for each."""

    name: str
    does: frozenset[str]  # opcodes, those of a fusion's inside among them
    reads: dict[Source, int]
    writes: dict[Source, int]

    @property
    def nbytes(self) -> int:
        """Bytes read and written."""
        return sum(self.reads.values()) + sum(self.writes.values())

    @property
    def computes(self) -> bool:
        """Whether it is more than a way between main memory and the chip."""
        within = any(self.reads.values()) and any(self.writes.values())
        return within or not self.does <= {*_MOVED, _JOINED}


def _sources(computation: Computation, name: str) -> list[tuple[Source, Array]]:
    """Follow a name to the instructions that made its arrays."""
    instruction = computation[name]
    if instruction.opcode == "tuple":
        return [pair for operand in instruction.operands for pair in _sources(computation, operand)]
    if instruction.opcode == "get-tuple-element":
        found = re.search(r"index=(\d+)", instruction.attributes)
        index = int(found.group(1)) if found else 0
        return [_sources(computation, instruction.operands[0])[index]]
    if instruction.opcode in ("copy-done", "slice-done"):
        start = computation[instruction.operands[0]]
        return [((start.name, _MOVED[start.opcode]), instruction.arrays[0])]
    if instruction.opcode in ("bitcast", "opt-barrier"):
        first = _sources(computation, instruction.operands[0])
        pairs = zip(first, instruction.arrays, strict=False)
        return [(source, array) for (source, _), array in pairs]
    return [((name, i), array) for i, array in enumerate(instruction.arrays)]


def kernels(program: Program, computation: str = "") -> list[Kernel]:
    """List the kernels of a computation; by default, of the one that runs at every step."""
    lines = program.computations[computation or program.entry]
    found = []
    for line in lines.values():
        if line.opcode in _FREE:
            continue
        sources = [pair for operand in line.operands for pair in _sources(lines, operand)]
        results = [((line.name, i), array) for i, array in enumerate(line.arrays)]
        reads = {source: array.traffic for source, array in sources if array.size >= BIG}
        if line.opcode in _MOVED:
            results = results[_MOVED[line.opcode] :][:1]
            size = results[0][1].nbytes
            reads = {source: min(size, n) for source, n in reads.items()}
        writes = {source: array.traffic for source, array in results if array.size >= BIG}
        if reads or writes:
            found.append(Kernel(line.name, _does(program, line), reads, writes))
    return found


def _does(program: Program, line: Instruction) -> frozenset[str]:
    called = re.search(r"calls=%?([\w.-]+)", line.attributes)
    if called is None:
        return frozenset({_target(line) or line.opcode})
    inside = program.computations[called.group(1)].values()
    return frozenset(x.opcode for x in inside) - {"parameter", "bitcast", "tuple"}


def branches(program: Program) -> list[list[Kernel]]:
    """List the kernels of each branch of each `lax.cond` in the entry computation."""
    return [
        kernels(program, name)
        for line in program.computations[program.entry].values()
        if line.opcode == "conditional"
        for name in re.findall(r"%([\w.-]+)", line.attributes)
        if name in program.computations
    ]


def kernels_of_leaves(program: Program, argument: str = "params") -> dict[str, int]:
    """Count the kernels that work on each big leaf of an argument, or on what is made of it.

    Two kernels work on the same leaf where a big array joins them.
    """
    group: dict[Source, Source] = {}

    def root(source: Source) -> Source:
        while group.setdefault(source, source) != source:
            source = group[source]
        return source

    found = kernels(program)
    for kernel in found:
        first, *others = [*kernel.reads, *kernel.writes]
        for other in others:
            group[root(other)] = root(first)
    at = [root(next(iter({**k.reads, **k.writes}))) for k in found if k.computes]
    return {leaf.argument: at.count(root((leaf.name, 0))) for leaf in big_leaves(program, argument)}


def big_leaves(program: Program, argument: str = "params") -> list[Instruction]:
    """List the big leaves of an argument of the program."""
    return [
        line
        for line in program.computations[program.entry].values()
        if line.opcode == "parameter" and line.argument.startswith(f"{argument}[")
        if line.arrays[0].size >= BIG
    ]


# What a program costs.


class Costs(NamedTuple):
    """One row of the table; bytes are of main memory, per number in the big parameters."""

    kernels: int  # of the leaf that has most
    nbytes: float  # moved in a step
    least: float  # arguments that are used, and results that are new, once each
    copies: int  # kernels that do nothing else
    converts: int
    in_branch: float  # bytes in the costliest branch of a lax.cond
    constants: int  # numbers in the largest constant
    calls: tuple[str, ...]  # targets of custom calls: callbacks among them


def costs(text: str) -> Costs:
    """Read what a compiled optimizer step costs from its text."""
    program = read(text)
    numbers = sum(leaf.arrays[0].size for leaf in big_leaves(program))
    found = kernels(program)
    alone = [next(iter(k.does)) for k in found if k.computes and len(k.does) == 1]
    lines = [line for lines in program.computations.values() for line in lines.values()]
    return Costs(
        kernels=max(kernels_of_leaves(program).values()),
        nbytes=sum(kernel.nbytes for kernel in found) / numbers,
        least=_least(program, found) / numbers,
        copies=alone.count("copy") + alone.count("copy-start"),
        converts=alone.count("convert"),
        in_branch=max((sum(k.nbytes for k in b) for b in branches(program)), default=0) / numbers,
        constants=max((x.arrays[0].size for x in lines if x.opcode == "constant"), default=0),
        calls=tuple(sorted({_target(line) for line in lines} - {"", _JOINED})),
    )


def _least(program: Program, found: list[Kernel]) -> int:
    """Count the bytes of a step that reads each argument and writes each new result once."""
    entry = program.computations[program.entry]
    arguments = {name for name, line in entry.items() if line.opcode == "parameter"}
    used = {source[0] for kernel in found for source in kernel.reads} & arguments
    outputs = _sources(entry, program.roots[program.entry])
    results = {source: array.traffic for source, array in outputs if array.size >= BIG}
    new = {source: n for source, n in results.items() if source[0] not in arguments}
    return sum(entry[name].arrays[0].traffic for name in used) + sum(new.values())


_CALLS = {"custom-call", "infeed", "outfeed", "send", "recv"}


def _target(line: Instruction) -> str:
    """Name what an instruction calls outside the program, if it does."""
    if line.opcode not in _CALLS:
        return ""
    found = re.search(r'custom_call_target="([^"]*)"', line.attributes)
    return found.group(1) if found else line.opcode


def fingerprint(text: str) -> str:
    """Return the program without what says only where it came from: equal for equal work."""
    text = text[text.index("\n\n") :]  # without the module's name
    text = re.sub(r"^(\w*Names|\w*Locations|StackFrames)\n(\d+ .*\n)*", "", text, flags=re.M)
    text = re.sub(r",? *metadata=\{[^}]*\}", "", text)
    names: dict[str, str] = {}
    return re.sub(r"%[\w.-]+", lambda m: names.setdefault(m.group(), f"%{len(names)}"), text)


# Compiling: for the device in hand, or for one that is not here.


def arguments(optimizer: optax.GradientTransformation, params: Any, device: Any = None) -> Any:
    """Return the shapes of (params, state, grads), on a device."""
    device = jax.devices()[0] if device is None else device
    sharding = jax.sharding.SingleDeviceSharding(device)

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.eval_shape(optimizer.init, params)
    return jax.tree.map(shape, (params, state, params))


def compiled(optimizer: optax.GradientTransformation, params: Any, device: Any = None) -> Any:
    """Compile one step; `params` may be shapes, and nothing is computed."""
    return compiled_step(optimizer).lower(*arguments(optimizer, params, device)).compile()


def exported(optimizer: optax.GradientTransformation, params: Any, platform: str) -> str:
    """Return the StableHLO that a "cuda" or "tpu" would get; no such device is needed."""
    export = jax.export.export(compiled_step(optimizer), platforms=[platform])
    module: str = export(*arguments(optimizer, params)).mlir_module()
    return module


def absent_device(platform: str) -> Any:
    """Describe a device that need not be here, for its own compiler; None without that compiler.

    "tpu" needs the package libtpu (a v5e), "cuda" a CUDA plugin of JAX (an H100).
    """
    if platform == "tpu" and importlib.util.find_spec("libtpu"):
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # asks no metadata server
        return topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if platform == "cuda" and any(map(importlib.util.find_spec, plugins)):
        topology = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=_H100)
        return topology.devices[0]
    return None


# What the compiler asks about a card, from the H100's data sheet and CUDA's table of limits for
# compute capability 9.0.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 85899345920
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""
