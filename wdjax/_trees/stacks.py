"""Leaves of one shape held in one array, and what a leaf is to an optimizer that sees only one."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import DictKey


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where each leaf of a tree lies.

    Attributes:
        treedef: of the tree.
        members: for each stack, which leaves it holds, in the order of `jax.tree.leaves`.
        shapes: for each stack, the shape of one leaf.
        names: for each stack, the path of its first leaf.
    """

    treedef: Any
    members: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        """Compare; nearly always it is the same object."""
        return self is other or (isinstance(other, Layout) and self._key() == other._key())

    def __hash__(self) -> int:
        """Hash what is quick to hash."""
        return hash((self.shapes, self.names))

    def _key(self) -> Hashable:
        return self.members, self.shapes, self.names, self.treedef


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Stacked:
    """A tree whose leaves of one shape share an array: a pytree of its stacks.

    Save `unstack(...)` of it: `flax.serialization` does not take this class, and the plain tree
    fits any other stacking.

    Attributes:
        stacks: one array (n, *shape) for n equal leaves; a leaf of a unique kind stays as it is.
        layout: where each leaf lies; static.
    """

    stacks: tuple[Any, ...]
    layout: Layout

    def tree_flatten_with_keys(self) -> tuple[Any, Layout]:
        """Return the stacks, each under the path of its first leaf."""
        keys = map(DictKey, self.layout.names)
        return tuple(zip(keys, self.stacks, strict=True)), self.layout

    @classmethod
    def tree_unflatten(cls, layout: Layout, stacks: Sequence[Any]) -> "Stacked":
        """Put stacks back."""
        return cls(tuple(stacks), layout)


def is_stacked(tree: Any) -> TypeGuard[Stacked]:
    """Tell what `stack` gives."""
    return isinstance(tree, Stacked)


def axis_name(k: int) -> str:
    """The name of the mapped axis of stack k."""
    return f"stack {k}"


def described(tree: Stacked) -> Any:
    """Describe the tree that is stacked, from inside `stacked`: each leaf a ShapeDtypeStruct.

    Raises:
        TypeError: this is not inside `stacked`.
    """
    if False in _are_leaves(tree):
        raise TypeError(
            "stacked parameters need an optimizer that treats their leaves one by one. "
            "Wrap it: wdjax.stacking.stacked(optimizer). To look at the leaves: unstack(params)."
        )
    layout = tree.layout
    alone = [struct(x.shape, x.dtype) if hasattr(x, "shape") else x for x in tree.stacks]
    return layout.treedef.unflatten(_in_order(layout, [[x] * n for x, n in _sizes(alone, layout)]))


def of_leaf(tree: Stacked, values: Sequence[Any]) -> Stacked:
    """Give each stack the value of the leaf at hand, from inside `stacked`.

    `values` has one for each leaf of the tree that is stacked, numbers or traced scalars. What all
    leaves of a stack share is returned as it is, else a scalar that is mapped with them.
    """
    stacks = []
    for k, group in enumerate(tree.layout.members):
        own = [values[i] for i in group]
        # a float, or what a mask leaves in place of a leaf
        same = all(x is own[0] or (isinstance(x, float | tuple) and x == own[0]) for x in own)
        stacks.append(own[0] if same else jnp.stack(own)[lax.axis_index(axis_name(k))])
    return Stacked(tuple(stacks), tree.layout)


def _are_leaves(tree: Stacked) -> list[bool]:
    """For each stack, whether it is just one leaf here, as inside `stacked`."""
    groups = zip(tree.stacks, tree.layout.shapes, tree.layout.members, strict=True)
    return [
        x.shape == shape for x, shape, group in groups if len(group) > 1 and hasattr(x, "shape")
    ]


# The isomorphism.


def gathered(layout: Layout, leaves: Sequence[Any]) -> Stacked:
    """Stack leaves, each an array or a subtree such as a hole."""
    groups = [[leaves[i] for i in group] for group in layout.members]
    stacks = (
        jax.tree.map(lambda *xs: _joined(xs), *group) if len(group) > 1 else group[0]
        for group in groups
    )
    return Stacked(tuple(stacks), layout)


def spread(tree: Stacked) -> Any:
    """Give the tree back that was stacked."""
    if set(_are_leaves(tree)) == {True}:
        raise TypeError(
            "`stacked` treats leaves one by one, so a part that combines them, such as "
            "metrics.measured, cannot be inside. Put that part outside: measured(stacked(...))."
        )
    groups = []
    for x, n in _sizes(tree.stacks, tree.layout):
        treedef: Any
        leaves, treedef = jax.tree.flatten(x)
        columns = [_rows(leaf) if n > 1 else [leaf] for leaf in leaves]
        groups.append([treedef.unflatten([column[i] for column in columns]) for i in range(n)])
    return tree.layout.treedef.unflatten(_in_order(tree.layout, groups))


def _sizes(stacks: Iterable[Any], layout: Layout) -> Iterable[tuple[Any, int]]:
    return zip(stacks, map(len, layout.members), strict=True)


def _in_order(layout: Layout, groups: Sequence[Sequence[Any]]) -> list[Any]:
    """Bring values of the leaves, given by stack, into the order of the tree."""
    pairs = (
        pair
        for members, group in zip(layout.members, groups, strict=True)
        for pair in zip(members, group, strict=True)
    )
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def _joined(leaves: Sequence[Any]) -> Any:
    """Stack equal arrays; a sharded one keeps its sharding, the new axis is not split."""
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return struct((len(leaves), *first.shape), first.dtype)
    if all(isinstance(x, np.ndarray) for x in leaves):
        return np.stack(leaves)
    whole = jnp.stack(leaves)
    sharding = sharding_of(first)
    if isinstance(sharding, NamedSharding) and not isinstance(whole, jax.core.Tracer):
        spec = PartitionSpec(None, *sharding.spec)  # type: ignore[no-untyped-call]
        return jax.device_put(whole, NamedSharding(sharding.mesh, spec))
    return whole


def struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def sharding_of(leaf: Any) -> Any:
    """Return how a leaf is spread over devices, where that is known."""
    known = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return leaf.sharding if known else None


def _rows(x: Any) -> Sequence[Any]:
    if isinstance(x, jax.ShapeDtypeStruct):
        return [struct(x.shape[1:], x.dtype)] * x.shape[0]
    if isinstance(x, jax.core.Tracer):
        return _views(x)
    return [x[i] for i in range(x.shape[0])]


@jax.custom_jvp
def _views(x: jax.Array) -> list[jax.Array]:
    """The rows of x, at positions that the compiler does not know.

    Kernels that differ in a constant are compiled one by one, 20 times as long as those of the
    model without stacks; with unknown positions equal layers share their kernels again.
    """
    unknown = lax.optimization_barrier(jnp.bool_(True))  # type: ignore[no-untyped-call]
    positions = lax.cond(
        unknown,
        lambda: [jnp.int32(i) for i in range(x.shape[0])],
        lambda: [jnp.int32(0)] * x.shape[0],
    )
    return [lax.dynamic_index_in_dim(x, i, keepdims=False) for i in positions]


@_views.defjvp
def _views_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> Any:
    """Linear; its transpose is one concatenation."""
    (x,), (t,) = primals, tangents
    return _views(x), [lax.squeeze(row, (0,)) for row in lax.split(t, [1] * t.shape[0])]
