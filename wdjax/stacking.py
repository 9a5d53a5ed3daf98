"""Many small leaves as few stacks: equal leaves held in one array, each still treated as a leaf.

A step over 2,000 small leaves costs a kernel for each, to compile and to start. `stack` holds the
leaves of one shape in one array, `unstack` gives them back, and `stacked` runs an optimizer on
stacks as if each leaf were alone: the same numbers, the same rules by path, one kernel a stack.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
import optax

from wdjax._trees import checks, paths, stacks
from wdjax._trees.stacks import Layout, Stacked, is_stacked

__all__ = ["Stacked", "stack", "stack_like", "stacked", "unstack"]

_MOST_NUMBERS = 2**14
_DRAWS = re.compile("random_bits|threefry|rng_bit_generator")  # in a program


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
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 3)), "c": jnp.ones(4)}
        >>> [x.shape for x in stack(params).stacks]
        [(2, 2, 3), (4,)]
    """
    if paths.nodes(tree, is_stacked):
        raise TypeError("`tree` must not be stacked; it is stacked already. Use it as it is.")
    leaves, treedef = jax.tree.flatten(tree)
    found = paths.leaves(tree)
    groups: dict[Hashable, list[int]] = {}
    for i, (leaf, known) in enumerate(zip(leaves, found, strict=True)):
        alone = math.prod(known.shape) > most
        key = (known.shape, known.dtype, stacks.sharding_of(leaf), i if alone else None)
        groups.setdefault(key, []).append(i)
    members = tuple(map(tuple, groups.values()))
    firsts = [found[group[0]] for group in members]
    layout = Layout(treedef, members, tuple(f.shape for f in firsts), tuple(f.path for f in firsts))
    return stacks.gathered(layout, leaves)


def unstack(tree: Any) -> Any:
    """Give the leaves back: the tree that was stacked, or any tree that holds stacked ones.

    In a compiled program these are views of the stacks, and their gradients are collected in
    stacks again. On the state of `stacked(optimizer)` it gives the state of `optimizer`, which is
    the one to save: it does not depend on which leaves are stacked.

    Args:
        tree: what `stack` gave, or a pytree with such nodes, such as an optimizer state.

    Returns:
        The tree, every stacked node replaced by the tree that was stacked.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 3))}
        >>> [x.shape for x in jax.tree.leaves(unstack(stack(params)))]
        [(2, 3), (2, 3)]
    """
    return jax.tree.map(
        lambda x: stacks.spread(x) if is_stacked(x) else x, tree, is_leaf=is_stacked
    )


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
        >>> import jax.numpy as jnp
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
        return stacks.gathered(node.layout, node.layout.treedef.flatten_up_to(part))

    return jax.tree.map(put, template, tree, is_leaf=is_stacked)


def stacked(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Let an optimizer work on stacks as if each leaf were alone.

        unstack(stacked(o).update(g, z, θ)) = o.update(unstack(g), unstack(z), unstack(θ))

    Rules see the paths of the leaves, and norms, groups and matrices stay those of one leaf: a
    stack is an axis that the optimizer does not see. Put what looks at all leaves at once outside:
    `optax.chain(optax.clip_by_global_norm(1.0), stacked(...))`. Inside, it is an error, as random
    numbers are, of which all leaves of a stack would get the same.

    Args:
        optimizer: any Optax transformation that treats each leaf by itself.

    Returns:
        The transformation, for trees from `stack`; on other trees it is `optimizer` itself. Where
        a mesh has axes of type Explicit, call `init` under `jax.set_mesh(mesh)`.

    Raises:
        TypeError: at `update`, the optimizer lets leaves act on each other, or draws at random.

    Example:
        >>> import jax.numpy as jnp, wdjax
        >>> optimizer = stacked(wdjax.adamw(1e-3, weight_decay=0.1))
        >>> params = stack({"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((2, 3))}})
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> [x.shape for x in jax.tree.leaves(unstack(updates))]
        [(2, 3), (2, 3)]
    """
    checks.optimizer("optimizer", optimizer)
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


def _kind(leaf: Any) -> jax.ShapeDtypeStruct:
    known: Any = jax.eval_shape(lambda x: x, leaf if hasattr(leaf, "dtype") else 0)
    return stacks.struct(known.shape, known.dtype)


def _other_kinds(wanted: Any, found: Any) -> str:
    """Name the leaves of one structure whose shape or dtype differ; "" if there are none."""
    return paths.listed(
        f"{x.path!r} must be {x.dtype}{[*x.shape]}, is {y.dtype}{[*y.shape]}"
        for x, y in zip(*map(paths.leaves, (wanted, found)), strict=True)
        if (x.shape, x.dtype) != (y.shape, y.dtype)
    )


# One leaf at a time: a stack is a mapped axis, and each stack has an axis of its own.


def _leaf_by_leaf(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of trees as if the leaves of each stack were alone."""
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
                axis_name=stacks.axis_name(k),
                axis_size=size,
            )
        return function

    def whole(*flat: Any) -> Any:
        return function(*treedef.unflatten(flat))

    program, result = jax.make_jaxpr(over_stacks(whole, lambda k: 0), return_shape=True)(*flat)
    if _DRAWS.search(str(program)):
        raise TypeError(
            "`stacked` cannot hold an optimizer that draws random numbers: all leaves of a stack "
            "would get the same. Put that part outside `stacked`."
        )
    outputs = _owners(result)
    leaves = over_stacks(
        lambda *flat: tuple(jax.tree.leaves(whole(*flat))),
        lambda k: tuple(0 if owner == k else None for owner in outputs),
    )
    try:
        return jax.tree.unflatten(jax.tree.structure(result), leaves(*flat))
    except ValueError as error:
        if "out_axes" not in str(error):  # which say that a result of one stack depends on another
            raise
        raise TypeError(
            "`stacked` treats leaves one by one, and this optimizer lets them act on each other, "
            "as a clip by the global norm does. Put that part outside: "
            "optax.chain(optax.clip_by_global_norm(1.0), stacked(...))."
        ) from error


def _owners(tree: Any) -> list[int]:
    """Return the stack that each leaf of a tree belongs to."""

    def owner(node: Any) -> Any:
        if not is_stacked(node):
            return -1  # of no stack
        numbered = (jax.tree.map(lambda _, k=k: k, x) for k, x in enumerate(node.stacks))
        return Stacked(tuple(numbered), node.layout)

    return jax.tree.leaves(jax.tree.map(owner, tree, is_leaf=is_stacked))


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
        jax.tree.map(lambda x, n=n: stacks.struct((n, *x.shape[1:]), x.dtype), node.stacks[0])
        for n in map(len, members)
    ]
    return Stacked(tuple(halves), layout)


def _holds_arrays(tree: Any) -> bool:
    """Whether all leaves are arrays or numbers, which can be mapped; a function cannot."""
    return all(isinstance(x, jax.Array | np.ndarray | np.number | float | int)
               for x in jax.tree.leaves(tree))  # fmt: skip
