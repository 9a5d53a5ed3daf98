"""Where the arrays of a run are: on one device, on a mesh of devices, or in several processes."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from wdjax._trees import PyTree

Tree = TypeVar("Tree")


def beside(params: PyTree, tree: Tree) -> Tree:
    """Copy arrays on a single device to all devices of the parameters' mesh.

    Counts and keys are made on the first device. The first step would return them on the mesh, and
    so compile twice; and one of several processes can save only arrays on all of their devices.

    Args:
        params: θ, placed; without one mesh under them nothing is moved.
        tree: a pytree of arrays. Those on a mesh stay where they are.

    Returns:
        The tree.

    Example:
        >>> import numpy as np
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> placed = jax.device_put(np.zeros(2), NamedSharding(mesh, P("data")))
        >>> beside(placed, jnp.zeros(())).sharding.spec == P()
        True
    """
    places = (x.sharding for x in _arrays(params))
    meshes = {at.mesh for at in places if isinstance(at, NamedSharding)}
    mesh = meshes.pop() if len(meshes) == 1 else None
    if not isinstance(mesh, Mesh):
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]

    def leaf(x: Any) -> Any:
        is_alone = any(isinstance(y.sharding, SingleDeviceSharding) for y in _arrays(x))
        return _moved(x, everywhere) if is_alone else x

    placed: Tree = jax.tree.map(leaf, tree)
    return placed


def _moved(x: Any, at: NamedSharding) -> Any:
    if at.is_fully_addressable:
        return jax.device_put(x, at)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _moved(jax.random.key_data(x), at)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    # JAX takes it from the host to several processes, and refuses it if they do not agree
    return jax.device_put(np.asarray(x), at)


def copied(tree: Tree) -> Tree:
    """Copy every array, in place.

    Weak types (of `jnp.full(3, 0.5)`) are dropped, because they would trace the step again.

    Args:
        tree: a pytree of arrays.

    Returns:
        The tree, in buffers of its own.

    Example:
        >>> array = jnp.zeros(2)
        >>> copied(array).unsafe_buffer_pointer() == array.unsafe_buffer_pointer()
        False
    """
    leaves, structure = jax.tree.flatten(tree)
    # jnp.array compiles a program for each shape; device_put does not know all shardings
    places = [[y.sharding for y in _arrays(x)] for x in leaves]
    is_alone = [any(isinstance(at, SingleDeviceSharding) for at in its) for its in places]
    alone = [x for x, is_one in zip(leaves, is_alone, strict=True) if is_one]
    moved = iter(jax.device_put(alone, may_alias=False))  # one call for all: much less to do
    arrays = [
        next(moved) if is_one else jnp.array(x, copy=True)
        for x, is_one in zip(leaves, is_alone, strict=True)
    ]
    arrays = [x.astype(x.dtype) if jax.typeof(x).weak_type else x for x in arrays]
    copies: Tree = jax.tree.unflatten(structure, arrays)
    return copies


def cut_rows(tree: PyTree) -> tuple[NamedSharding | None, ...]:
    """The sharding of every array whose rows are on several devices; None for others.

    Args:
        tree: a pytree of arrays (N, ...).

    Returns:
        A hashable tuple, for `take_rows`.

    Example:
        >>> cut_rows({"x": jnp.zeros(2)})
        (None,)
    """

    def leaf(x: Any) -> NamedSharding | None:
        at = x.sharding if _arrays(x) else None
        return at if isinstance(at, NamedSharding) and (*at.spec, None)[0] is not None else None

    return tuple(map(leaf, jax.tree.leaves(tree)))


def take_rows(tree: PyTree, rows: jax.Array, places: tuple[NamedSharding | None, ...]) -> PyTree:
    """Take some rows of every array, sharded like the array: each device gets as many of them.

    Left to itself the compiler gives all rows to every device, which then all do the same work.

    Args:
        tree: a pytree of arrays (N, ...).
        rows: (B,) or () integers. If the devices do not divide B, each gets all of them.
        places: from `cut_rows`.

    Returns:
        The tree, its leaves (B, ...) or (...).

    Example:
        >>> take_rows(jnp.arange(4.0), jnp.array([3, 0]), (None,))
        Array([3., 0.], dtype=float32)
    """
    leaves, structure = jax.tree.flatten(tree)
    taken = [_rows_of(x, rows, at) for x, at in zip(leaves, places, strict=True)]
    return jax.tree.unflatten(structure, taken)


def _rows_of(x: Any, rows: jax.Array, at: NamedSharding | None) -> Any:
    if at is None:
        return x.at[rows].get(mode="promise_in_bounds")
    pieces = len(x) // at.shard_shape(x.shape)[0]
    if len(rows) % pieces:
        at = NamedSharding(at.mesh, PartitionSpec(None, *at.spec[1:]))  # type: ignore[no-untyped-call]
    is_explicit = jax.typeof(x).sharding.spec[0] is not None  # else the compiler's business
    if is_explicit:
        return x.at[rows].get(mode="promise_in_bounds", out_sharding=at)
    taken = x.at[rows].get(mode="promise_in_bounds")
    return lax.with_sharding_constraint(taken, at)  # type: ignore[no-untyped-call]


def every_nth(tree: PyTree, count: int) -> PyTree:
    """Cut every array into parts, of which part i has the rows i, i + n, i + 2 n, ...

    Neighboring rows are on one device. This way each part has some of every device, and no device
    waits for another or does its work again.

    Args:
        tree: a pytree of arrays (N, ...).
        count: n, the number of parts; it divides N.

    Returns:
        The tree, its leaves (n, N / n, ...).

    Example:
        >>> every_nth(jnp.arange(6), 2)
        Array([[0, 2, 4],
               [1, 3, 5]], dtype=int32)
    """

    def leaf(x: Any) -> jax.Array:
        return jnp.moveaxis(x.reshape(len(x) // count, count, *x.shape[1:]), 1, 0)

    return jax.tree.map(leaf, tree)


def spans_processes(tree: PyTree) -> bool:
    """Whether an array is on devices of other processes, too.

    Example:
        >>> spans_processes({"kernel": jnp.zeros(2)})
        False
    """
    return not all(x.is_fully_addressable for x in _arrays(tree))


def _arrays(tree: PyTree) -> list[jax.Array]:
    """The arrays that have a place; a traced one has none."""
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)]


def at_hand(array: Any) -> Any:
    """The array as NumPy's, if that takes no copy: NumPy is much faster for small arrays.

    Args:
        array: NumPy's or JAX's, not traced.

    Returns:
        NumPy's array for one in the memory of the host, else the same.

    Example:
        >>> type(at_hand(jnp.zeros(2))).__name__
        'ndarray'
    """
    if isinstance(array, jax.Array) and any(d.platform != "cpu" for d in array.devices()):
        return array
    return np.asarray(array)
