"""Where the batches of a training loop come from: arrays in memory, or an iterator.

Arrays and iterators both give a function `draw(step, limit)` that returns data, the rows of each
step's batch in that data, and per epoch the number of full batches and of short ones, at most
`limit` in all; 0 is the end.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import PyTree, checks
from wdjax._trees.checks import as_arrays, common_axis

Draw = Callable[[int, int], tuple[PyTree, np.ndarray, np.ndarray]]

_INDICES = 2**22  # most entries of one index table: 16 MB
_BYTES = 2**25  # most bytes of one stack of streamed batches
_SHUFFLED = 2**14  # about how many indices are shuffled at once: tiny data is cheap in blocks


def from_memory(
    batches: PyTree,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    chunk: int,
    shuffle: bool,
    seed: int,
) -> tuple[Draw, int, int]:
    """Batches cut from arrays in memory: the arrays go to the device once, then only indices."""
    data = jax.tree.map(jnp.asarray, as_arrays("batches", batches, np.asarray))
    size = common_axis("batches", data)
    advice = f"These are {size} examples in memory; iter(batches) trains on a list of batches."
    checks.whole("batch_size", batch_size, most=size, advice=advice)
    assert batch_size is not None
    is_one = (epochs is None) != (steps is None)
    checks.must(
        "epochs", is_one, "be given, or else `steps`, but not both", f"{epochs=} and {steps=}"
    )
    checks.whole("seed", seed, least=0)
    per_epoch = -(-size // batch_size)
    capacity = max(1, min(chunk, _INDICES // batch_size))
    # a function of N alone, so that the order does not depend on the batch size
    block_epochs = max(1, _SHUFFLED // size)

    @functools.lru_cache(maxsize=2)
    def block(index: int) -> np.ndarray:
        """The rows of all batches in some epochs; -1 fills up the last, short batch of each."""
        order = np.tile(np.arange(size, dtype=np.int32), (block_epochs, 1))
        if shuffle:
            order = np.random.default_rng((seed, index)).permuted(order, axis=1)
        rows = np.full((block_epochs, per_epoch * batch_size), -1, np.int32)
        rows[:, :size] = order
        return rows.reshape(-1, batch_size)

    def draw(step: int, limit: int) -> tuple[PyTree, np.ndarray, np.ndarray]:
        table = np.zeros((capacity, batch_size), np.int32)
        count = filled = min(limit, capacity)
        while filled:
            index, first = divmod(step + count - filled, block_epochs * per_epoch)
            rows = block(index)[first : first + filled]
            table[count - filled :][: len(rows)] = rows
            filled -= len(rows)
        return data, table, _rounds(step, count, capacity, per_epoch, size % batch_size > 0)

    goal = steps if epochs is None else epochs * per_epoch
    assert goal is not None
    return draw, goal, size % batch_size


def _rounds(step: int, count: int, capacity: int, per_epoch: int, ragged: bool) -> np.ndarray:
    """(E, 2) full and short batches in each epoch that the steps [step, step + count) touch."""
    if not ragged:
        return np.array([[count, 0]], np.int32)
    edges = step // per_epoch + np.arange(-(-capacity // per_epoch) + 2)
    bounds = np.clip(edges * per_epoch, step, step + count)
    total = np.diff(bounds)
    short = (total > 0) & (bounds[1:] == edges[1:] * per_epoch)
    return np.stack([total - short, short], axis=1).astype(np.int32)


class Stream:
    """An iterator of batches that takes back what was read too early."""

    def __init__(self, batches: Any) -> None:
        self._rest: Iterator[Any] = iter(batches)
        self._back: list[Any] = []

    def __iter__(self) -> "Stream":
        """Return itself: what is left."""
        return self

    def __next__(self) -> Any:
        """Return the next batch, or raise an error that waited."""
        if not self._back:
            return next(self._rest)
        item = self._back.pop()
        if isinstance(item, BaseException):
            raise item
        return item

    def take_back(self, item: Any) -> None:
        """Keep a batch, or an error in place of one, for next time."""
        self._back.append(item)


def from_stream(
    batches: Stream, epochs: int | None, steps: int | None, batch_size: int | None, chunk: int
) -> tuple[Draw, int | None, int]:
    """Batches from an iterator, stacked in groups of one shape so that a chunk can scan them."""
    got = f"{epochs=} and {batch_size=} for an iterator of batches, which has its own"
    is_free = epochs is None and batch_size is None
    checks.must("epochs", is_free, "come with data in memory, as `batch_size`", got, "Use `steps`.")

    def draw(_: int, limit: int) -> tuple[PyTree, np.ndarray, np.ndarray]:
        group = _group(batches, min(limit, chunk))
        if not group:
            return None, np.zeros(0, np.int32), np.zeros((1, 2), np.int32)
        capacity = _stack_size(group[0], chunk)
        table = np.arange(capacity, dtype=np.int32)
        return _stacked(group, capacity), table, np.array([[len(group), 0]], np.int32)

    return draw, steps, 0


def _group(batches: Stream, limit: int) -> list[PyTree]:
    """The next batches of one shape; an error of the iterator waits until they are trained on."""
    group: list[PyTree] = []
    try:
        while len(group) < limit:
            # a copy, because many iterators fill the same buffer again and again
            batch = as_arrays("batch", next(batches), np.array)
            if group and _signature(batch) != _signature(group[0]):
                batches.take_back(batch)
                break
            group.append(batch)
            limit = min(limit, _stack_size(batch, limit))
    except StopIteration:
        pass
    except BaseException as error:
        if not group:
            raise
        batches.take_back(error)
    return group


def _stack_size(batch: PyTree, chunk: int) -> int:
    """Batches in a stack. Those already on the device stay as they are, one at a time."""
    leaves = jax.tree.leaves(batch)
    if any(isinstance(x, jax.Array) for x in leaves):
        return 1
    size = max(1, sum(int(x.nbytes) for x in leaves))
    return max(1, min(chunk, _BYTES // size))


def _stacked(group: list[PyTree], capacity: int) -> PyTree:
    def stack(*parts: Any) -> Any:
        if capacity == 1:
            return parts[0][None]
        stacked = np.zeros((capacity, *parts[0].shape), parts[0].dtype)
        np.stack(parts, out=stacked[: len(parts)])
        return stacked

    return jax.tree.map(stack, *group)


def _signature(batch: PyTree) -> Any:
    leaves, tree = jax.tree.flatten(batch)
    return tree, [(x.shape, x.dtype) for x in leaves]


def is_stream(batches: Any) -> bool:
    """An iterator, or an iterable that is neither an array nor a container JAX knows."""
    if hasattr(batches, "__next__"):
        return True
    known = not jax.tree_util.all_leaves([batches]) or hasattr(batches, "__array__")
    return hasattr(batches, "__iter__") and not known
