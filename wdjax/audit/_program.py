"""A traced program as a list of equations in which equal computations stand once.

For a model with 300 leaves an optimizer makes the same few equations 300 times. If two leaves hold
equal numbers, equal equations on them give equal numbers; so one of them is enough, and what is
left is small: quick to compile, and small to run.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from jax import lax

if TYPE_CHECKING:
    from jax.extend import core  # brings Pallas: half the time of importing wdjax

Value: TypeAlias = int  # a number for each value that a program computes

_CALLS = {  # a call by any of these is its body
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_MOST_COMPARED = 2**16  # numbers of a constant; larger ones are equal if they are the same object


class Equation(NamedTuple):
    """outs = primitive(*ins, **params)."""

    primitive: Any
    params: dict[str, Any]
    ins: tuple[Value, ...]
    outs: tuple[Value, ...]
    key: Hashable


class Graph:
    """Equations in the order in which they run; values are numbered as they come.

    Attributes:
        equations: those of all programs that were added.
        constants: value -> what it is, for literals and arrays that a program holds.
    """

    def __init__(self) -> None:
        """Begin without an equation."""
        self.equations: list[Equation] = []
        self.constants: dict[Value, Any] = {}
        self._known: dict[Hashable, Any] = {}
        self._kept: list[Any] = []  # what is known by its id must not go away
        self._size = 0

    def new(self) -> Value:
        """Return a value that no equation computes."""
        self._size += 1
        return self._size - 1

    def constant(self, value: Any) -> Value:
        """Return the value of a literal or of an array; equal ones are one."""
        key = self._constant_key(value)
        if key not in self._known:
            self._known[key] = self.new()
            self.constants[self._known[key]] = value
        found: Value = self._known[key]
        return found

    def add(self, program: Any, ins: Iterable[Value]) -> list[Value]:
        """Add a program, a jaxpr with or without constants; return its results."""
        consts = getattr(program, "consts", ())
        return self._add(getattr(program, "jaxpr", program), map(self.constant, consts), ins)

    def _add(
        self, jaxpr: "core.Jaxpr", consts: Iterable[Value], ins: Iterable[Value]
    ) -> list[Value]:
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, ins, strict=True))

        def read(atom: Any) -> Value:
            if hasattr(atom, "val"):  # a literal
                aval: Any = atom.aval
                return self.constant(np.asarray(atom.val, aval.dtype))
            return values[atom]

        for equation in jaxpr.eqns:
            outs = self._result(equation, tuple(map(read, equation.invars)))
            values.update(zip(equation.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _result(self, equation: "core.JaxprEqn", ins: tuple[Value, ...]) -> Sequence[Value]:
        """Return what an equation computes, as values."""
        body = equation.params.get(_CALLS.get(equation.primitive.name, ""))
        if body is not None:
            return self.add(body, ins)
        if equation.primitive.name == "stop_gradient":  # the value is the same
            return ins
        if equation.primitive.name == "cond" and not equation.effects:
            return self._either(equation, ins)
        return self.apply(
            equation.primitive, equation.params, ins, len(equation.outvars), bool(equation.effects)
        )

    def _either(self, equation: "core.JaxprEqn", ins: tuple[Value, ...]) -> Sequence[Value]:
        """Run all branches and select: leaves inside stay apart, as `vmap` does it."""
        index, *operands = ins
        results = [self.add(branch, operands) for branch in equation.params["branches"]]
        if len(results) == 2:  # select_n takes a boolean for two
            as_bool = {"new_dtype": np.dtype(bool), "weak_type": False, "sharding": None}
            (index,) = self.apply(lax.convert_element_type_p, as_bool, (index,), 1)
        else:  # as cond does, keep the index in its range
            low, high = self.constant(np.int32(0)), self.constant(np.int32(len(results) - 1))
            (index,) = self.apply(lax.clamp_p, {}, (low, index, high), 1)
        outs: list[Value] = []
        for choice in zip(*results, strict=True):
            same = len(set(choice)) == 1
            outs += choice[:1] if same else self.apply(lax.select_n_p, {}, (index, *choice), 1)
        return outs

    def apply(
        self,
        primitive: Any,
        params: dict[str, Any],
        ins: tuple[Value, ...],
        count: int,
        effects: bool = False,
    ) -> Sequence[Value]:
        """Return the results of an equation: of an equal one, if there is any."""
        key = (primitive, ins, tuple(sorted((k, self._key(v)) for k, v in params.items())))
        if effects or key not in self._known:
            outs = tuple(self.new() for _ in range(count))
            self.equations.append(Equation(primitive, params, ins, outs, key))
            self._known[key] = outs
        found: Sequence[Value] = self._known[key]
        return found

    def _key(self, value: Any) -> Hashable:
        """Tell a parameter, or what cannot be compared by its numbers, from others."""
        try:
            hash(value)
        except TypeError:
            self._kept.append(value)
            return "at", id(value)
        return type(value), value

    def _constant_key(self, value: Any) -> Hashable:
        dtype = getattr(value, "dtype", None)
        if isinstance(dtype, np.dtype) and value.size <= _MOST_COMPARED:
            return dtype.name, value.shape, np.asarray(value).tobytes()
        self._kept.append(value)
        return "at", id(value)

    def needed(self, outs: Iterable[Value]) -> list[Equation]:
        """Return the equations on which these values depend."""
        wanted = set(outs)
        chosen = []
        for equation in reversed(self.equations):
            if not wanted.isdisjoint(equation.outs):
                chosen.append(equation)
                wanted.update(equation.ins)
        return chosen[::-1]


def evaluate(
    equations: Sequence[Equation],
    values: dict[Value, Any],
    outs: Sequence[Value],
    seen: Callable[[int, Equation, list[Any]], list[Any]] | None = None,
) -> list[Any]:
    """Run equations.

    Args:
        equations: what to run, in order.
        values: inputs and constants.
        outs: the values wanted.
        seen: may change what an equation takes in: called with its index, itself, its inputs.

    Returns:
        The values wanted.
    """
    values = dict(values)
    for i, equation in enumerate(equations):
        ins = [values[value] for value in equation.ins]
        if seen is not None:
            ins = seen(i, equation, ins)
        result = equation.primitive.bind(*ins, **equation.params)
        results = result if equation.primitive.multiple_results else [result]
        values.update(zip(equation.outs, results, strict=True))
    return [values[value] for value in outs]
