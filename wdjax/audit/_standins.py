"""Small stand-ins for large leaves, and the proof that they run the same program.

`update` is traced on the real shapes and on small ones; neither needs memory. Where both are the
same equations but for sizes, a leaf does on stand-ins what it does in the model. Where not, size
matters to this optimizer, and larger stand-ins are tried.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes

from wdjax.audit._compiled import Compiled, machine
from wdjax.audit._machine import Machine, Plain, shape_of
from wdjax.audit._program import Equation, Graph, Value

_MOST_NUMBERS = 2**16  # of all different shapes together, that are measured as they are
_MOST_OF_ONE = 2**22  # of a leaf measured in its real size
_CAPS = (8, 128)  # for axes; optax.adafactor factors axes of 128 and more
_SIZED = {  # parameters of primitives that speak of sizes
    *("shape", "new_sizes", "sizes", "slice_sizes", "limit_indices", "start_indices", "strides"),
    *("padding_config", "window_dimensions", "window_strides", "padding", "dimension", "size"),
    *("sharding", "out_sharding", "length", "jaxpr", "body_jaxpr", "cond_jaxpr", "branches"),
    *("k", "index_dtype"),
}


class Standin(NamedTuple):
    """On what a leaf is measured.

    Attributes:
        machine: the optimizer on stand-ins, or None: its size matters and is too large.
        kind: the leaf's kind there.
        shape: of its stand-in.
        twin: the same machine with the literals of the real program, where these differ.
    """

    machine: Machine | None
    kind: int
    shape: tuple[int, ...]
    twin: Machine | None = None


def prepared(optimizer: Any, tree: Any, extra: dict[str, Any]) -> list[Standin]:
    """Say on what each leaf is to be measured."""
    real = resized(tree, None)
    shapes = {(x.shape, x.dtype): math.prod(x.shape) for x in jax.tree.leaves(real)}
    if sum(shapes.values()) <= _MOST_NUMBERS:
        return _all_on(machine(optimizer, real, extra))
    large = machine(optimizer, real, extra)
    if isinstance(large, Plain):
        return _all_on(machine(optimizer, resized(tree, _CAPS[0]), extra))
    assert isinstance(large, Compiled)
    found: dict[int, Standin] = {}
    for cap in (*_CAPS, None):
        rest = [i for i in range(len(large.kinds)) if i not in found]
        if not rest:
            break
        if cap is None:
            rest = [
                i for i in rest if math.prod(large.shapes[large.kinds[i]].shape) <= _MOST_OF_ONE
            ]
            stand_ins = resized(tree, _CAPS[-1], keep=set(_one_of_each(large, rest)))
        else:
            stand_ins = resized(tree, cap)
        if rest:
            found.update(_proven(large, optimizer, stand_ins, extra, rest))
    shape = [x.shape for x in jax.tree.leaves(real)]
    return [found.get(i, Standin(None, 0, shape[i])) for i in range(len(large.kinds))]


def resized(
    tree: Any, cap: int | None, *, keep: Iterable[int] = (), own_dtypes: bool = False
) -> Any:
    """Return the tree's shapes with axes cut to about `cap`, in the widest dtypes that are enabled.

    The order of a leaf's axes by size stays, and equal ones stay equal.
    """
    leaves, treedef = jax.tree.flatten(tree)
    keep = set(keep)
    small = [
        shape_of(
            x.shape if i in keep else cut(x.shape, cap),
            x.dtype if own_dtypes else widened(x.dtype),
        )
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, small)


def cut(shape: tuple[int, ...], cap: int | None) -> tuple[int, ...]:
    """Cut the sizes of a shape.

    Example:
        >>> cut((4096, 16384, 4096, 3), 8)
        (8, 9, 8, 3)
    """
    if cap is None:
        return tuple(shape)
    rank = {size: i for i, size in enumerate(sorted({n for n in shape if n >= cap}))}
    return tuple(cap + rank[n] if n in rank else n for n in shape)


def widened(dtype: Any) -> Any:
    """Return the widest dtype of its kind that is enabled: stand-ins are to round away nothing."""
    for kind, widest in ((jnp.floating, float), (jnp.complexfloating, complex)):
        if jnp.issubdtype(dtype, kind):
            return dtypes.canonicalize_dtype(widest)
    return dtype


def _all_on(found: Machine) -> list[Standin]:
    return [Standin(found, kind, found.shapes[kind].shape) for kind in found.kinds]


def _one_of_each(large: Compiled, leaves: Iterable[int]) -> Iterator[int]:
    """Yield all leaves of the kinds of these, for those must stay alike."""
    kinds = {large.kinds[i] for i in leaves}
    return (i for i, kind in enumerate(large.kinds) if kind in kinds)


def _proven(
    large: Compiled, optimizer: Any, tree: Any, extra: dict[str, Any], leaves: list[int]
) -> dict[int, Standin]:
    """Return those of the leaves whose program on stand-ins is that on real sizes."""
    small = Compiled(optimizer, tree, extra, apart=large.kinds)
    compared = _Comparison(large, small)
    found = {}
    for i in leaves:
        same = compared.leaf(i)
        if same != "other":
            twin = small.with_literals(compared.literals) if same == "literals" else None
            kind = small.kinds[i]
            found[i] = Standin(small, kind, small.shapes[kind].shape, twin)
    return found


# The proof.


class _Comparison:
    """Two programs side by side, from the updates down to weights, gradients and states.

    A pair of values agrees if both come from the same primitive with the same parameters, sizes
    apart, of values that agree; a state agrees if its start and its next value do.
    """

    def __init__(self, large: Compiled, small: Compiled) -> None:
        """Walk through both programs once."""
        self._sides = (_Side(large), _Side(small))
        self.literals: dict[tuple[Value, int], Any] = {}
        self._users: dict[tuple[Any, Any], list[Any]] = {}
        self._roots = [
            (("update", a), ("update", b))
            for a, b in zip(large.each["updates"], small.each["updates"], strict=True)
        ]
        bad: dict[str, list[Any]] = {"other": [], "literals": []}
        queue = deque(dict.fromkeys(self._roots))
        seen = set(queue)
        while queue:
            pair = queue.popleft()
            verdict, below = self._look(pair)
            if verdict in bad:
                bad[verdict].append(pair)
            for other in below:
                self._users.setdefault(other, []).append(pair)
                if other not in seen:
                    seen.add(other)
                    queue.append(other)
        self._bad = {verdict: self._upward(pairs) for verdict, pairs in bad.items()}

    def leaf(self, index: int) -> str:
        """Return "same", "literals" if some constants differ, or "other"."""
        pair = self._roots[index]
        return next((v for v in ("other", "literals") if pair in self._bad[v]), "same")

    def _upward(self, pairs: list[Any]) -> set[Any]:
        """Return all pairs that depend on these."""
        reached, queue = set(pairs), deque(pairs)
        while queue:
            for user in self._users.get(queue.popleft(), ()):
                if user not in reached:
                    reached.add(user)
                    queue.append(user)
        return reached

    def _look(self, pair: Any) -> tuple[str, list[Any]]:
        """Compare one pair by itself; return the pairs that must agree, too."""
        (where, a), (_, b) = pair
        large, small = (
            side.origin(where, value) for side, value in zip(self._sides, (a, b), strict=True)
        )
        if large[0] != small[0]:
            return "other", []
        if large[0] == "constant":
            return _same_constant(large[1], small[1]), []
        if large[0] == "state":
            common = large[1] & small[1]
            if not common:
                return "other", []
            j = min(common)
            return "same", [
                tuple((part, side.state(part, j)) for side in self._sides)
                for part in ("start", "update")
            ]
        if large[0] in ("weights", "gradients"):
            return "same" if large[1] & small[1] else "other", []
        return self._equations(where, large[1], small[1], a, b)

    def _equations(
        self, where: str, large: Equation, small: Equation, a: Value, b: Value
    ) -> tuple[str, list[Any]]:
        if not _same_equation(large, small) or large.outs.index(a) != small.outs.index(b):
            return "other", []
        constants = [side.graph(where).constants for side in self._sides]
        for k, (x, y) in enumerate(zip(large.ins, small.ins, strict=True)):
            both = x in constants[0] and y in constants[1]
            if both and _same_constant(constants[0][x], constants[1][y]) == "literals":
                self.literals[small.outs[0], k] = constants[0][x]
        return "same", [((where, x), (where, y)) for x, y in zip(large.ins, small.ins, strict=True)]


class _Side:
    """Where the values of one program come from."""

    def __init__(self, of: Compiled) -> None:
        """Index a program."""
        self._of = of
        self._graphs = {"update": of.graph, "start": of.init_graph}
        self._makers = {
            where: {out: e for e in graph.equations for out in e.outs}
            for where, graph in self._graphs.items()
        }
        inputs: dict[Value, tuple[str, set[int]]] = {}
        for role, values in (
            ("weights", of.each["theta"]),
            ("gradients", of.each["grads"]),
            ("state", of.each["state"]),
        ):
            for i, value in enumerate(values):
                inputs.setdefault(value, (role, set()))[1].add(i)
        first: dict[Value, tuple[str, set[int]]] = {}
        for i, value in enumerate(of.init_inputs):
            first.setdefault(value, ("weights", set()))[1].add(i)
        self._inputs = {"update": inputs, "start": first}

    def graph(self, where: str) -> Graph:
        return self._graphs[where]

    def origin(self, where: str, value: Value) -> tuple[str, Any]:
        """Return what a value is: an input with its leaves, a constant, or an equation."""
        if value in self._inputs[where]:
            return self._inputs[where][value]
        if value in self._graphs[where].constants:
            return "constant", self._graphs[where].constants[value]
        return "equation", self._makers[where][value]

    def state(self, where: str, leaf: int) -> Value:
        """Return the value of a leaf of the state, at first or after an update."""
        values = self._of.each["after"] if where == "update" else self._of.started
        return values[leaf]


def _same_constant(large: Any, small: Any) -> str:
    """Compare constants: equal, literals that differ, or arrays that differ."""
    a, b = np.asarray(large), np.asarray(small)
    if a.dtype != b.dtype or a.ndim != b.ndim:
        return "other"
    if a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
        return "same"
    if a.ndim and a.size and b.size and (a == a.flat[0]).all() and (b == a.flat[0]).all():
        return "same"  # filled with one number
    return "other" if a.ndim else "literals"


def _same_equation(large: Equation, small: Equation) -> bool:
    """Compare primitive and parameters, sizes apart."""
    return (
        large.primitive is small.primitive
        and len(large.ins) == len(small.ins)
        and all(
            name in _SIZED or _same_param(param, small.params.get(name))
            for name, param in large.params.items()
        )
        and list(_inner(large.params)) == list(_inner(small.params))
    )


def _same_param(large: Any, small: Any) -> bool:
    return bool(large is small or large == small or callable(large))


def _inner(params: dict[str, Any]) -> Iterator[str]:
    """Yield the primitives of programs inside a primitive, such as the body of a loop."""
    for value in params.values():
        for body in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(body, "jaxpr", body)
            for equation in getattr(jaxpr, "eqns", ()):
                yield equation.primitive.name
                yield from _inner(equation.params)
