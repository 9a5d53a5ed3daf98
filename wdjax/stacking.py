"""Many small leaves as few stacks: equal leaves held in one array, each still treated as a leaf.

A step over 2,000 small leaves costs a kernel for each, to compile and to start. `stack` holds the
leaves of one shape in one array, `unstack` gives them back, and `stacked` runs an optimizer on
stacks as if each leaf stood alone: the same numbers, the same rules by path, one kernel a stack.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from wdjax._trees import paths

_MOST_NUMBERS = 2**14


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

    Save `unstack(...)` of it: `flax.serialization` takes no such class, and the tree fits any other
    stacking, too.

    Attributes:
        stacks: one array (n, *shape) for n equal leaves; a leaf without its like stays as it is.
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


def stack(tree: Any, *, most: int = _MOST_NUMBERS) -> Stacked:
    """Hold the leaves of one shape, dtype and sharding in one array.

        unstack(stack(tree)) = tree

    Args:
        tree: a pytree of arrays or of ShapeDtypeStructs.
        most: leaves of more numbers than this stay alone: a stack of large ones saves no time and
            costs copies.

    Returns:
        The stacks: a pytree with few leaves. Train it with `stacked(optimizer)`, and give
        `unstack(params)` to the model.

    Raises:
        TypeError: a leaf is not an array; the tree is stacked already.

    Example:
        >>> params = {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 3)), "c": jnp.ones(4)}
        >>> [x.shape for x in stack(params).stacks]
        [(2, 2, 3), (4,)]
    """
    if paths.nodes(tree, is_stacked):
        raise TypeError("`tree` must not be stacked; got one that is. Use it as it is.")
    leaves, treedef = jax.tree.flatten(tree)
    found = paths.leaves(tree)
    groups: dict[Hashable, list[int]] = {}
    for i, (leaf, known) in enumerate(zip(leaves, found, strict=True)):
        alone = math.prod(known.shape) > most
        key = (known.shape, known.dtype, _sharding(leaf), i if alone else None)
        groups.setdefault(key, []).append(i)
    members = tuple(map(tuple, groups.values()))
    firsts = [found[group[0]] for group in members]
    layout = Layout(treedef, members, tuple(f.shape for f in firsts), tuple(f.path for f in firsts))
    return _gathered(layout, leaves)


def unstack(tree: Any) -> Any:
    """Give the leaves back: the tree that was stacked, or any tree that holds stacked ones.

    In a compiled program these are views of the stacks, and their gradients are collected in
    stacks again. On the state of `stacked(optimizer)` it gives the state of `optimizer`, which is
    the one to save: it does not depend on which leaves are stacked.

    Args:
        tree: what `stack` gave, or a pytree with such nodes, such as an optimizer state.

    Returns:
        The tree, every stacked node replaced by the tree it stands for.

    Example:
        >>> params = {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 3))}
        >>> [x.shape for x in jax.tree.leaves(unstack(stack(params)))]
        [(2, 3), (2, 3)]
    """
    return jax.tree.map(lambda x: _spread(x) if is_stacked(x) else x, tree, is_leaf=is_stacked)


def stack_like(template: Any, tree: Any) -> Any:
    """Stack a tree as another one is stacked: the way back from `unstack`.

        stack_like(stacked_tree, unstack(stacked_tree)) = stacked_tree

    Args:
        template: a pytree with stacked nodes, such as `jax.eval_shape(optimizer.init, params)`.
        tree: the same without, such as a restored optimizer state.

    Returns:
        The values of `tree` in the structure of `template`.

    Raises:
        ValueError: the two do not fit, in structure or in the shape or dtype of a leaf.

    Example:
        >>> params = stack({"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 3))})
        >>> stack_like(params, {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}).stacks[0].shape
        (2, 2, 3)
    """
    wanted, found = unstack(jax.tree.map(_kind, template)), jax.tree.map(_kind, tree)
    difference = paths.structure_difference(wanted, found) or _other_kinds(wanted, found)
    if difference:
        raise ValueError(f"`tree` must be like `template` unstacked; {difference}.")

    def put(node: Any, part: Any) -> Any:
        if not is_stacked(node):
            return part
        return _gathered(node.layout, node.layout.treedef.flatten_up_to(part))

    return jax.tree.map(put, template, tree, is_leaf=is_stacked)


def stacked(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Let an optimizer work on stacks as if each leaf stood alone.

        unstack(stacked(o).update(g, z, θ)) = o.update(unstack(g), unstack(z), unstack(θ))

    Rules see the paths of the leaves, and norms, groups and matrices stay those of one leaf: a
    stack is an axis that the optimizer does not see. What looks at all leaves at once belongs
    outside: `optax.chain(optax.clip_by_global_norm(1.0), stacked(...))`.

    Args:
        optimizer: any Optax transformation that treats each leaf by itself.

    Returns:
        The transformation, for trees from `stack`; on other trees it is `optimizer` itself. Where
        a mesh has axes of type Explicit, call `init` under `jax.set_mesh(mesh)`.

    Raises:
        TypeError: at `update`, the optimizer lets leaves act on each other, or draws random
            numbers, which would be the same for all leaves of a stack.

    Example:
        >>> import wdjax
        >>> optimizer = stacked(wdjax.adamw(1e-3, weight_decay=0.1))
        >>> params = stack({"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((2, 3))}})
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> [x.shape for x in jax.tree.leaves(unstack(updates))]
        [(2, 3), (2, 3)]
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        return _leaf_by_leaf(inner.init, params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        arrays = {name: x for name, x in extra_args.items() if _holds_arrays(x)}
        others = {name: x for name, x in extra_args.items() if name not in arrays}

        def step(updates: Any, state: Any, params: Any, arrays: dict[str, Any]) -> Any:
            return inner.update(updates, state, params, **arrays, **others)

        return _leaf_by_leaf(step, updates, state, params, arrays)

    return optax.GradientTransformationExtraArgs(init, update)


# For the modules above: what a leaf of a stack is.


def is_stacked(tree: Any) -> TypeGuard[Stacked]:
    """Tell a stacked tree.

    Args:
        tree: anything.

    Returns:
        Whether it is what `stack` gives.

    Example:
        >>> is_stacked(stack([jnp.ones(2), jnp.ones(2)]))
        True
    """
    return isinstance(tree, Stacked)


def described(tree: Stacked) -> Any:
    """Describe the tree that this one stands for, from inside `stacked`.

    Args:
        tree: with one leaf in place of each stack, as an optimizer inside `stacked` sees it.

    Returns:
        The tree with every leaf as a ShapeDtypeStruct.

    Raises:
        TypeError: this is not inside `stacked`.

    Example:
        >>> inside = jax.tree.map(lambda x: x[0], stack([jnp.ones(2), jnp.ones(2)]))
        >>> described(inside)[1]
        ShapeDtypeStruct(shape=(2,), dtype=float32)
    """
    if False in _are_leaves(tree):
        raise TypeError(
            "stacked parameters need an optimizer that treats their leaves one by one. "
            "Wrap it, wdjax.stacking.stacked(optimizer); to look at them, unstack(params)."
        )
    layout = tree.layout
    alone = [_struct(x.shape, x.dtype) if hasattr(x, "shape") else x for x in tree.stacks]
    return layout.treedef.unflatten(_in_order(layout, [[x] * n for x, n in _sizes(alone, layout)]))


def of_leaf(tree: Stacked, values: Sequence[Any]) -> Stacked:
    """Give each stack the value of the leaf at hand, from inside `stacked`.

    Args:
        tree: as an optimizer inside `stacked` sees it.
        values: one for each leaf of the tree that it stands for: numbers or traced scalars.

    Returns:
        The values in the structure of `tree`: what all leaves of a stack share is there as it is,
        else a scalar that is mapped with them.

    Example:
        >>> inside = jax.tree.map(lambda x: x[0], stack([jnp.ones(2), jnp.ones(2)]))
        >>> of_leaf(inside, [0.5, 0.5]).stacks
        (0.5,)
    """
    stacks = []
    for k, group in enumerate(tree.layout.members):
        own = [values[i] for i in group]
        # a float, or what a mask leaves in place of a leaf
        same = all(x is own[0] or (isinstance(x, float | tuple) and x == own[0]) for x in own)
        stacks.append(own[0] if same else jnp.stack(own)[lax.axis_index(_axis_name(k))])
    return Stacked(tuple(stacks), tree.layout)


def _are_leaves(tree: Stacked) -> list[bool]:
    """For each stack, whether it is just one leaf here, as inside of `stacked`."""
    groups = zip(tree.stacks, tree.layout.shapes, tree.layout.members, strict=True)
    return [
        x.shape == shape for x, shape, group in groups if len(group) > 1 and hasattr(x, "shape")
    ]


# The isomorphism.


def _gathered(layout: Layout, leaves: Sequence[Any]) -> Stacked:
    """Stack leaves, each an array or a subtree such as a hole."""
    groups = [[leaves[i] for i in group] for group in layout.members]
    stacks = (
        jax.tree.map(lambda *xs: _joined(xs), *group) if len(group) > 1 else group[0]
        for group in groups
    )
    return Stacked(tuple(stacks), layout)


def _spread(tree: Stacked) -> Any:
    """Return the tree that this one stands for."""
    if set(_are_leaves(tree)) == {True}:
        raise TypeError(
            "leaves cannot be brought together inside of `stacked`, which treats them one by one, "
            "as metrics.measured does, for instance. Put that part outside of `stacked`."
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
        return _struct((len(leaves), *first.shape), first.dtype)
    if all(isinstance(x, np.ndarray) for x in leaves):
        return np.stack(leaves)
    whole = jnp.stack(leaves)
    sharding = _sharding(first)
    if isinstance(sharding, NamedSharding) and not isinstance(whole, jax.core.Tracer):
        spec = PartitionSpec(None, *sharding.spec)  # type: ignore[no-untyped-call]
        return jax.device_put(whole, NamedSharding(sharding.mesh, spec))
    return whole


def _struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _kind(leaf: Any) -> jax.ShapeDtypeStruct:
    known: Any = jax.eval_shape(lambda x: x, leaf if hasattr(leaf, "dtype") else 0)
    return _struct(known.shape, known.dtype)


def _other_kinds(wanted: Any, found: Any) -> str:
    """Name the leaves of one structure whose shape or dtype differ; "" if there are none."""
    return paths.listed(
        f"{x.path!r} must be {x.dtype}{[*x.shape]}, is {y.dtype}{[*y.shape]}"
        for x, y in zip(*map(paths.leaves, (wanted, found)), strict=True)
        if (x.shape, x.dtype) != (y.shape, y.dtype)
    )


def _sharding(leaf: Any) -> Any:
    """Return how a leaf is spread over devices, where that is known."""
    known = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return leaf.sharding if known else None


def _rows(x: Any) -> Sequence[Any]:
    if isinstance(x, jax.ShapeDtypeStruct):
        return [_struct(x.shape[1:], x.dtype)] * x.shape[0]
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


# One leaf at a time: a stack is a mapped axis, and each stack has an axis of its own.


def _leaf_by_leaf(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of trees as if the leaves of each stack stood alone."""
    layouts = {node.layout for node in paths.nodes(args, is_stacked)}
    if not layouts:
        return function(*args)
    if len(layouts) > 1:
        raise ValueError(
            "updates, state and params must be stacked alike; got different layouts. Take the "
            "gradient at the stacked parameters: jax.grad(lambda params: loss(unstack(params)))."
        )
    (layout,) = layouts
    sizes = {k: len(group) for k, group in enumerate(layout.members) if len(group) > 1}
    if len(layout.members) == 1 and sizes:
        # a sum over the only stack looks like a leaf's own sum: parted in two, it shows
        halves = jax.tree.map(_parted, args, is_leaf=is_stacked)
        jax.eval_shape(lambda *args: _mapped(function, args, {0: 1, 1: sizes[0] - 1}), *halves)
    return _mapped(function, args, sizes)


def _mapped(function: Callable[..., Any], args: tuple[Any, ...], sizes: dict[int, int]) -> Any:
    """Map over the stacks of these sizes, each mapped over its own leaves only."""
    treedef: Any
    flat, treedef = jax.tree.flatten(args)
    inputs = _owners(args)

    def over_stacks(function: Callable[..., Any], outputs: Callable[[int], Any]) -> Any:
        for k, size in sizes.items():
            function = jax.vmap(
                function,
                in_axes=tuple(0 if owner == k else None for owner in inputs),
                out_axes=outputs(k),
                axis_name=_axis_name(k),
                axis_size=size,
            )
        return function

    def whole(*flat: Any) -> Any:
        return function(*treedef.unflatten(flat))

    program, result = jax.make_jaxpr(over_stacks(whole, lambda k: 0), return_shape=True)(*flat)
    _check_draws_nothing(program)
    outputs = _owners(result)
    leaves = over_stacks(
        lambda *flat: tuple(jax.tree.leaves(whole(*flat))),
        lambda k: tuple(0 if owner == k else None for owner in outputs),
    )
    try:
        return jax.tree.unflatten(jax.tree.structure(result), leaves(*flat))
    except ValueError as error:
        if "out_axes is None" not in str(error):
            raise
        raise TypeError(
            "`stacked` treats leaves one by one, and this optimizer lets them act on each other, "
            "as a clip by the global norm does. Put that part outside: "
            "optax.chain(optax.clip_by_global_norm(1.0), stacked(...))."
        ) from None


def _owners(tree: Any) -> list[int]:
    """Return the stack that each leaf of a tree belongs to."""

    def owner(node: Any) -> Any:
        if not is_stacked(node):
            return -1  # of no stack
        numbered = (jax.tree.map(lambda _, k=k: k, x) for k, x in enumerate(node.stacks))
        return Stacked(tuple(numbered), node.layout)

    return jax.tree.leaves(jax.tree.map(owner, tree, is_leaf=is_stacked))


def _axis_name(k: int) -> str:
    return f"stack {k}"


def _parted(node: Any) -> Any:
    """Part the only stack in two, its first leaf and the others, on paper."""
    if not is_stacked(node):
        return node
    (group,), (shape,), (name,) = node.layout.members, node.layout.shapes, node.layout.names
    members = group[:1], group[1:]
    layout = dataclasses.replace(
        node.layout, members=members, shapes=(shape, shape), names=(name, f"{name} and others")
    )
    halves = [
        jax.tree.map(lambda x, n=n: _struct((n, *x.shape[1:]), x.dtype), node.stacks[0])
        for n in map(len, members)
    ]
    return Stacked(tuple(halves), layout)


def _check_draws_nothing(program: Any) -> None:
    """Refuse random numbers: one draw would serve all leaves of a stack."""
    text = str(program)
    if any(word in text for word in ("random_bits", "threefry", "rng_bit_generator")):
        raise TypeError(
            "`stacked` cannot hold an optimizer that draws random numbers: all leaves of a stack "
            "would get the same. Put that part outside of `stacked`."
        )


def _holds_arrays(tree: Any) -> bool:
    """Whether all leaves are arrays or numbers, which can be mapped; a function cannot."""
    return all(isinstance(x, jax.Array | np.ndarray | np.number | float | int)
               for x in jax.tree.leaves(tree))  # fmt: skip
