"""A machine that runs one leaf of each kind.

The kinds are found, not assumed: two leaves are of a kind if equal weights, gradients and states
lead to equal updates and states again.
"""

import copy
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wdjax._trees.checks import named_leaves
from wdjax.audit._machine import (
    Arrays,
    Machine,
    Plain,
    Run,
    applied,
    caller,
    class_names,
    is_count,
    needed_arguments,
    shape_of,
)
from wdjax.audit._program import Equation, Graph, Value, evaluate

_LINEAR = {  # of one argument: f(2x) = 2 f(x)
    *("neg", "convert_element_type", "broadcast_in_dim", "reshape", "transpose", "squeeze"),
    *("expand_dims", "copy", "copy_p", "reduce_precision", "rev", "slice"),
}
_SUMS = {"add", "add_any", "sub"}
_MOST_SITES = 8
BLOCK = 264  # steps visited at once


class _Traced(NamedTuple):
    """What `init` and `update` are, as programs."""

    init: Any
    update: Any
    state: Any  # shapes
    needs: frozenset[str]


def _trace(optimizer: Any, tree: Any, extra: dict[str, Any]) -> _Traced:
    init, state = jax.make_jaxpr(optimizer.init, return_shape=True)(tree)

    def attempt(needs: frozenset[str]) -> Any:
        return jax.make_jaxpr(caller(optimizer, extra, needs), return_shape=True)(tree, state, tree)

    (update, (updates, _)), needs = needed_arguments(attempt, optimizer)
    shapes = [x.shape for x in jax.tree.leaves(tree)]
    if [x.shape for x in jax.tree.leaves(updates)] != shapes:
        raise TypeError(
            "`optimizer` must return one update for each leaf of `params`, of the same shape. "
            "Check what its `update` returns."
        )
    return _Traced(init, update, state, needs)


class Compiled:
    """A `Machine` that runs one leaf of each kind."""

    def __init__(
        self,
        optimizer: Any,
        tree: Any,
        extra: dict[str, Any],
        *,
        apart: Sequence[int] | None = None,
    ) -> None:
        """Trace the optimizer on shapes, and find which leaves are of a kind.

        Leaves of different numbers in `apart` are kept apart.
        """
        traced = _trace(optimizer, tree, extra)
        leaves = jax.tree.leaves(tree)
        self.needs = traced.needs
        self.names = class_names(traced.state)
        apart = [0] * len(leaves) if apart is None else apart
        keys = [(x.shape, x.dtype, part) for x, part in zip(leaves, apart, strict=True)]
        self._theta = _ranks(keys)  # kinds at first
        self.init_graph = Graph()
        self.init_inputs = _inputs(self.init_graph, self._theta)
        self.started = started = self.init_graph.add(traced.init, self.init_inputs)
        named = named_leaves(traced.state)
        keyed = jax.tree.leaves_with_path(traced.state)
        words = [tuple(k.name for k in path if hasattr(k, "name")) for path, _ in keyed]
        self._state = _ranks(list(zip(started, words, strict=True)))
        self._refine(traced)
        first = dict(zip(reversed(self._state), reversed(range(len(named))), strict=True))
        firsts = [first[kind] for kind in range(len(first))]
        self._started = [started[i] for i in firsts]
        self._counts = tuple(kind for kind, i in enumerate(firsts) if is_count(*named[i]))
        self._rates = tuple(
            kind
            for kind, i in enumerate(firsts)
            if named[i][0].split("/")[-2:] == ["hyperparams", "learning_rate"]
        )
        self.kinds = tuple(self._theta)
        leaf = {kind: leaves[i] for i, kind in reversed(list(enumerate(self.kinds)))}
        self.shapes = tuple(shape_of(leaf[k].shape, leaf[k].dtype) for k in range(len(leaf)))
        self._find_sites()
        self._literals: dict[tuple[Value, int], Any] = {}
        self._compile()

    def with_literals(self, literals: dict[tuple[Value, int], Any]) -> "Compiled":
        """Return the same machine with other numbers as operands: (result, position) -> it."""
        other = copy.copy(self)
        other._literals = literals
        other._compile()
        return other

    def _compile(self) -> None:
        self._jitted, self._visited = jax.jit(self._loop), jax.jit(self._visit)
        self._once = jax.jit(self._step)

    # which leaves are of a kind

    def _refine(self, traced: _Traced) -> None:
        """Split kinds until equal inputs of a kind have equal results."""
        while True:
            self.graph = Graph()
            theta = _inputs(self.graph, self._theta)
            grads = _inputs(self.graph, self._theta)
            state = _inputs(self.graph, self._state)
            outs = self.graph.add(traced.update, [*grads, *state, *theta])
            updates, after = outs[: len(theta)], outs[len(theta) :]
            new_theta = _ranks(list(zip(self._theta, updates, strict=True)))
            new_state = _ranks(list(zip(self._state, after, strict=True)))
            if max(new_theta) == max(self._theta) and _most(new_state) == _most(self._state):
                break
            self._theta, self._state = new_theta, new_state
        self.theta_in, self.grads_in = _firsts(self._theta, theta), _firsts(self._theta, grads)
        self.state_in = _firsts(self._state, state)
        self.updates, self.after = _firsts(self._theta, updates), _firsts(self._state, after)
        self.each = dict(theta=theta, grads=grads, state=state, updates=updates, after=after)

    # where weights enter

    def _find_sites(self) -> None:
        """Number the places at which weights, or weights times something, meet something else."""
        self._equations = self.graph.needed([*self.updates, *self.after])
        linear = {value: kind for kind, value in enumerate(self.theta_in)}
        depends = set(self.theta_in)
        self._scaled: dict[tuple[int, int], int] = {}
        used = [0] * len(self.theta_in)

        def site(kind: int) -> int:
            used[kind] += 1
            return min(used[kind], _MOST_SITES) - 1

        for i, equation in enumerate(self._equations):
            weights = [k for k, value in enumerate(equation.ins) if value in linear]
            dependent = sum(value in depends for value in equation.ins)
            if dependent:
                depends.update(equation.outs)
            if dependent == 1 and weights and _keeps_linear(equation, weights[0]):
                linear[equation.outs[0]] = linear[equation.ins[weights[0]]]
                continue
            for k in weights:
                self._scaled[i, k] = site(linear[equation.ins[k]])
        self._scaled_outs = {
            j: site(linear[value])
            for j, value in enumerate([*self.updates, *self.after])
            if value in linear
        }
        self.sites = max([1, *(min(n, _MOST_SITES) for n in used)])
        self.repeats = self._repeats_of_pulls(linear)

    def _repeats_of_pulls(self, linear: Collection[Value]) -> tuple[int, ...]:
        """Count for each kind how often one pull that is not linear is added to an update.

        Equal equations stand once: two L1 in a chain are one sign(θ), subtracted twice.
        """
        moved = set(self.grads_in)  # what depends on gradients
        kinds = {value: {kind} for kind, value in enumerate(self.theta_in)}
        pull_of: dict[Value, Value] = {}  # a pull, or a multiple of it -> that pull
        shifted: set[Value] = set()  # θ + c is a pull once it is scaled; before, it is a weight
        added: Counter[Value] = Counter()
        for equation in self.graph.needed(self.updates):
            weights = [x for x in equation.ins if x in kinds]
            is_sum = equation.primitive.name in _SUMS
            if not moved.isdisjoint(equation.ins):
                moved.update(equation.outs)
                pulls = (x for x in equation.ins if x in pull_of and x not in shifted)
                added.update(pull_of[x] for x in pulls if is_sum)
            elif weights:
                first, *others = weights
                is_multiple = not others and _keeps_linear(equation, equation.ins.index(first))
                if is_sum and not others and first in linear:
                    shifted.update(equation.outs)
                for out in equation.outs:
                    kinds[out] = set().union(*(kinds[x] for x in weights))
                    if not (is_multiple and first in linear):
                        pull_of[out] = pull_of.get(first, out) if is_multiple else out
        return tuple(
            max([1, *(n for pull, n in added.items() if kind in kinds[pull])])
            for kind in range(len(self.theta_in))
        )

    # running

    def start(self, theta: Arrays) -> Arrays:
        """Return the state for these weights."""
        values = {v: theta[k] for v, k in zip(self.init_inputs, self.kinds, strict=True)}
        equations = self.init_graph.needed(self._started)

        @jax.jit
        def run(values: dict[Value, Any]) -> Arrays:
            known = {**self.init_graph.constants, **values}
            return [jnp.asarray(x) for x in evaluate(equations, known, self._started)]

        started: Arrays = run(values)
        return started

    def at(self, state: Arrays, count: Any) -> Arrays | None:
        """Return the state with its step counts set, or None if it names no counts."""
        if not self._counts:
            return None
        moved = list(state)
        for kind in self._counts:
            traced = isinstance(count, jax.core.Tracer)
            moved[kind] = (jnp if traced else np).asarray(count, state[kind].dtype)
        return moved

    @property
    def has_rate(self) -> bool:
        """Whether a learning rate was injected."""
        return bool(self._rates)

    def with_rate(self, state: Arrays, factor: float) -> Arrays:
        """Return the state with injected learning rates multiplied."""
        return [x * factor if kind in self._rates else x for kind, x in enumerate(state)]

    def run(
        self,
        theta: Arrays,
        grads: Arrays,
        state: Arrays,
        *,
        calls: int = 1,
        scales: Any = 1.0,
        moving: bool = False,
        pinned: bool = False,
    ) -> Run:
        """Call `update` several times with the same gradients."""
        scales = np.broadcast_to(np.asarray(scales, float), (self.sites,))
        return Run(*self._jitted(theta, scales, grads, state, calls, moving, pinned))

    def slope(self, theta: Arrays, grads: Arrays, state: Arrays, *, calls: int) -> Arrays:
        """Return the derivative of the summed updates along the weights: a second probe."""

        def total(scales: jax.Array) -> Arrays:
            if calls == 1:  # without a loop it compiles in half the time
                return self._once(theta, scales, grads, state)[0]  # type: ignore[no-any-return]
            return self._jitted(theta, scales, grads, state, calls, False, False)[1]  # type: ignore[no-any-return]

        ones = np.ones(self.sites)
        return jax.jvp(total, (ones,), (ones,))[1]  # type: ignore[no-any-return]

    def fractions(
        self, theta: Arrays, grads: Arrays, state: Arrays, counts: np.ndarray, *, calls: int
    ) -> np.ndarray:
        """Return f = −⟨U(2θ) − U(θ), θ⟩ / ⟨θ, θ⟩ at each of these steps, (steps, kinds)."""
        blocks = [
            self._visited(theta, grads, state, part.astype(np.int32), calls)
            for part in padded(counts, BLOCK)
        ]
        found: np.ndarray = np.concatenate(jax.device_get(blocks))[: len(counts)]
        return found.astype(np.float64)

    def _visit(
        self, theta: Arrays, grads: Arrays, state: Arrays, counts: jax.Array, calls: jax.Array
    ) -> jax.Array:
        def at(count: jax.Array) -> jax.Array:
            moved = self.at(state, count) or state
            once, twice = (
                self._loop(theta, s * jnp.ones(self.sites), grads, moved, calls, False, False)[1]
                for s in (1.0, 2.0)
            )
            return jnp.array(
                [
                    -jnp.real(jnp.vdot(x, b - a)) / jnp.maximum(jnp.real(jnp.vdot(x, x)), 1e-30)
                    for a, b, x in zip(once, twice, theta, strict=True)
                ]
            )

        return jax.vmap(at)(counts)

    def _loop(
        self,
        theta: Arrays,
        scales: jax.Array,
        grads: Arrays,
        state: Arrays,
        calls: jax.Array,
        moving: Any,
        pinned: Any,
    ) -> tuple[Arrays, Arrays, Arrays, Arrays]:
        def call(_: Any, carry: Any) -> Any:
            now, total, _, before = carry
            last, after = self._step(now, scales, grads, before)
            after = [x.astype(y.dtype) for x, y in zip(after, before, strict=True)]
            for kind in self._counts:
                after[kind] = jnp.where(pinned, before[kind], after[kind])
            total = [a + b.astype(a.dtype) for a, b in zip(total, last, strict=True)]
            last = [b.astype(a.dtype) for a, b in zip(total, last, strict=True)]
            moved = [applied(p, jnp.where(moving, u, 0)) for p, u in zip(now, last, strict=True)]
            return moved, total, last, after

        zeros = [jnp.zeros_like(x) for x in theta]
        return lax.fori_loop(0, calls, call, (theta, zeros, zeros, state))  # type: ignore[no-any-return]

    def _step(
        self, theta: Arrays, scales: jax.Array, grads: Arrays, state: Arrays
    ) -> tuple[Arrays, Arrays]:
        """Return updates and state after one call."""
        values = dict(self.graph.constants)
        values.update(zip([*self.theta_in, *self.grads_in], [*theta, *grads], strict=True))
        values.update(zip(self.state_in, state, strict=True))

        def scaled(i: int, equation: Equation, ins: Arrays) -> Arrays:
            ins = [self._literals.get((equation.outs[0], k), x) for k, x in enumerate(ins)]
            return [
                x * scales[self._scaled[i, k]].astype(x.dtype) if (i, k) in self._scaled else x
                for k, x in enumerate(ins)
            ]

        outs = evaluate(self._equations, values, [*self.updates, *self.after], scaled)
        for j, site in self._scaled_outs.items():
            outs[j] = outs[j] * scales[site].astype(outs[j].dtype)
        outs = [jnp.asarray(x) for x in outs]
        return outs[: len(theta)], outs[len(theta) :]


def _keeps_linear(equation: Equation, position: int) -> bool:
    name = equation.primitive.name
    return name in _LINEAR or name == "mul" or (name == "div" and position == 0)


def _ranks(keys: Sequence[Hashable]) -> list[int]:
    """Number equal keys alike, in the order in which they come."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def _inputs(graph: Graph, kinds: Sequence[int]) -> list[Value]:
    """One new value for each kind, given to each of its leaves."""
    values = {kind: graph.new() for kind in dict.fromkeys(kinds)}
    return [values[kind] for kind in kinds]


def _firsts(kinds: Sequence[int], values: Sequence[Value]) -> list[Value]:
    first = dict(zip(reversed(kinds), reversed(values), strict=True))
    return [first[kind] for kind in range(len(first))]


def _most(kinds: Sequence[int]) -> int:
    return max(kinds, default=0)


def padded(counts: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut into blocks of one size; the last is filled with its last step."""
    size = min(size, -(-len(counts) // 33) * 33)
    blocks = [counts[i : i + size] for i in range(0, len(counts), size)]
    return [np.pad(block, (0, size - len(block)), mode="edge") for block in blocks]


def machine(optimizer: Any, tree: Any, extra: dict[str, Any]) -> Machine:
    """Trace an optimizer, or call it as it is where tracing stumbles over concrete values."""
    try:
        return Compiled(optimizer, tree, extra)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return Plain(optimizer, tree, extra)
