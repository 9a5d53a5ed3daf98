"""All runs of a sweep as one program: configurations inside seeds inside folds.

The three axes are nested, never flattened: a batch depends on fold and seed only, so it is read
once for all configurations. Tables of rows are drawn on the host, because a shuffle inside the
program takes longer to compile than most sweeps take to run.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wdjax._trees import PyTree, checks
from wdjax._trees.paths import listed
from wdjax.folds import Folds
from wdjax.sweeps._functions import Batch, Gaps, Job

Array = np.ndarray[Any, Any]

_ENTRIES = 2**24  # most entries of the table of rows: 64 MB


class Shared(NamedTuple):
    """The arrays that every configuration shares.

    Args:
        seeds: (S,) integers.
        rows: (P, K, S, B) int32, the rows of P steps, −1 where there is none; then they repeat.
        spans: (R,) and (R,) int32, the steps from and to each of R evaluations.
        weights: (K, 2, N) float32, which examples a fold validates on, and which it trains on.
        data: a pytree of arrays with a leading axis of N examples.

    Example:
        >>> Shared._fields
        ('seeds', 'rows', 'spans', 'weights', 'data')
    """

    seeds: Any
    rows: Any
    spans: tuple[Any, Any]
    weights: Any
    data: PyTree


class Trained(NamedTuple):
    """What the program returns, with axes fold, seed, configuration.

    Args:
        scores: (K, S, C, 2, R), the metric on the validation and on the training parts.
        carry: (K, S, C, ...) the last carries, `packed`, or None.

    Example:
        >>> Trained(np.array([[0.1], [0.2]]), None).train
        array([0.2])
    """

    scores: Any
    carry: PyTree

    @property
    def val(self) -> Any:
        """(..., R), the metric on the validation parts."""
        return self.scores[..., 0, :]

    @property
    def train(self) -> Any:
        """(..., R), the metric on the training parts."""
        return self.scores[..., 1, :]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["numbers"], meta_fields=["impl"])
@dataclasses.dataclass
class _Key:
    """What a typed random key is made of: NumPy knows no keys, and files neither."""

    numbers: Any
    impl: Any


def packed(carry: PyTree) -> PyTree:
    """Replace typed random keys by their numbers, so that a carry can leave the device.

    Args:
        carry: any pytree of arrays.

    Returns:
        The same with plain arrays only; `unpacked` undoes it.

    Example:
        >>> unpacked(jax.tree.map(np.asarray, packed(jax.random.key(3))))
        Array((), dtype=key<fry>) overlaying:
        [0 3]
    """

    def pack(x: Any) -> Any:
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        return _Key(jax.random.key_data(x), jax.random.key_impl(x)) if is_key else x

    return jax.tree.map(pack, carry)


def unpacked(carry: PyTree) -> PyTree:
    """Make random keys of their numbers again.

    Args:
        carry: from `packed`.

    Returns:
        What was packed.

    Example:
        >>> unpacked(packed((1.0, jax.random.key(3))))[1] == jax.random.key(3)
        Array(True, dtype=bool)
    """

    def unpack(x: Any) -> Any:
        return jax.random.wrap_key_data(x.numbers, impl=x.impl) if isinstance(x, _Key) else x

    return jax.tree.map(unpack, carry, is_leaf=lambda x: isinstance(x, _Key))


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(job: Job, mesh: Mesh | None, hparams: PyTree, shared: Shared) -> Trained:
    """Train and evaluate C configurations on K folds with S seeds.

    Args:
        job: the functions.
        mesh: one axis "sweep" over which configurations are spread, or None for one device.
        hparams: a pytree of arrays (C, ...); the mesh divides C.
        shared: data, folds and tables.

    Returns:
        Metrics and carries.

    Example:
        >>> job = Job(lambda key, h: 0.0, lambda c, b, h: c + h, lambda c, b: c, False, Gaps.SHORT)
        >>> rows, spans = np.zeros((1, 1, 1, 2), np.int32), (np.array([0, 2]), np.array([2, 3]))
        >>> shared = Shared(np.zeros(1, int), rows, spans, np.ones((1, 2, 2)), ())
        >>> train(job, None, jnp.array([1.0, 10.0]), shared).val[0, 0]
        Array([[ 2.,  3.],
               [20., 30.]], dtype=float32)
    """
    everything = functools.partial(_train, job)
    if mesh is None:
        return everything(hparams, shared)
    each, here = _axes("sweep"), _axes(None, None, "sweep")
    # check_vma=False: an initial carry that does not depend on h would be refused in the loop
    spread = jax.shard_map(
        everything,
        mesh=mesh,
        in_specs=(each, _axes()),
        out_specs=here,
        check_vma=False,
    )
    trained: Trained = spread(hparams, shared)
    return trained


def _train(job: Job, hparams: PyTree, shared: Shared) -> Trained:
    """The loops are outside, only what is done in a step is mapped: that is quick to trace."""

    def advance(h: PyTree, carry: PyTree, rows: jax.Array) -> PyTree:
        examples = batch(job.gaps, shared.data, rows)
        new = job.step(carry, examples, h)
        if job.gaps is Gaps.MISSING:
            new = jax.tree.map(lambda a, b: jnp.where(examples.weights[0] > 0, a, b), new, carry)
        return new

    def measure(carry: PyTree, weights: jax.Array) -> jax.Array:
        # of all examples, with two sets of weights: nothing is gathered, predictions are made once
        score: jax.Array = job.metric(carry, Batch(shared.data, weights))
        return score

    advance_all = _nested(advance, "c", "ksc", "ks")
    measure_all = _nested(measure, "ksc", "kp")

    def step(t: jax.Array, carry: PyTree) -> PyTree:
        place = lax.rem(t, np.int32(len(shared.rows)))
        rows = lax.dynamic_index_in_dim(
            shared.rows, place, keepdims=False, allow_negative_indices=False
        )
        return advance_all(hparams, carry, rows)

    def span(carry: PyTree, ends: tuple[jax.Array, jax.Array]) -> tuple[PyTree, jax.Array]:
        carry = lax.fori_loop(*ends, step, carry)
        return carry, measure_all(carry, shared.weights)

    carry = _begin(job, hparams, shared)
    if len(shared.spans[0]) == 1:  # no loop around it: that would take longer to compile
        carry, only = span(carry, (shared.spans[0][0], shared.spans[1][0]))
        return Trained(only[..., None], packed(carry) if job.keep else None)
    carry, scores = lax.scan(span, carry, shared.spans)
    return Trained(jnp.moveaxis(scores, 0, -1), packed(carry) if job.keep else None)


def batch(gaps: Gaps, data: PyTree, rows: jax.Array) -> Batch:
    """Take the examples of some rows; where there may be gaps, a row of −1 is none.

    Args:
        gaps: what the batches lack.
        data: a pytree of arrays with N rows.
        rows: (B,) int32.

    Returns:
        The batch.

    Example:
        >>> batch(Gaps.SHORT, jnp.array([5.0, 6.0]), jnp.array([1, -1])).weights
        Array([1., 0.], dtype=float32)
    """
    weights = jnp.ones(len(rows))
    if gaps is not Gaps.NONE:
        rows, weights = jnp.maximum(rows, 0), (rows >= 0).astype(jnp.float32)
    examples = jax.tree.map(
        lambda x: x.at[rows].get(mode="promise_in_bounds", wrap_negative_indices=False), data
    )
    return Batch(examples, weights)


def _begin(job: Job, hparams: PyTree, shared: Shared) -> PyTree:
    """(K, S, C, ...) carries before the first step, the same in every fold."""

    def one(h: PyTree, seed: Any) -> PyTree:
        return job.start(jax.random.key(seed), h)

    carry = _nested(one, "c", "s")(hparams, shared.seeds)
    count = len(shared.weights)
    copies: PyTree = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), carry)
    return copies


def _nested(function: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """Map over folds, in them seeds, configurations, parts; axes names those of each argument."""
    for axis in "pcsk":  # the innermost first
        if any(axis in given for given in axes):
            places = tuple(0 if axis in given else None for given in axes)
            function = jax.vmap(function, in_axes=places)
    return function


# What the program is fed.


def share(
    data: PyTree,
    folds: Folds,
    *,
    epochs: Array,
    batch_size: int | None,
    seeds: Sequence[int],
    shuffle: bool,
    mesh: Mesh | None,
) -> Shared:
    """Draw the tables and put everything that is shared on the devices, once.

    Args:
        data: a pytree of arrays with N rows.
        folds: the parts.
        epochs: (R,) increasing, when to evaluate.
        batch_size: B, or None for the whole training part.
        seeds: of the orders.
        shuffle: a new order in every epoch, or the order of the folds.
        mesh: the devices, or None for the default one.

    Returns:
        `Shared` on the devices.

    Example:
        >>> parts = Folds.from_sklearn([([0, 1, 2], [3])], np.zeros(4))
        >>> options = dict(batch_size=2, seeds=[0], shuffle=False, mesh=None)
        >>> share(np.zeros(4), parts, epochs=np.array([2]), **options).rows[:, 0, 0]
        Array([[ 0,  1],
               [ 2, -1]], dtype=int32)
    """
    size = folds.train.shape[1] if batch_size is None else batch_size
    rows = _orders(folds, int(epochs[-1]) if shuffle else 1, size, seeds, shuffle)
    per_epoch = -(-folds.train.shape[1] // size)
    ends = epochs * per_epoch
    spans = np.append(0, ends[:-1]).astype(np.int32), ends.astype(np.int32)
    weights = _weights(folds, len(jax.tree.leaves(data)[0]))
    shared = Shared(np.asarray(seeds), rows, spans, weights, data)
    place = None if mesh is None else NamedSharding(mesh, _axes())
    placed: Shared = jax.device_put(jax.tree.map(_canonical, shared), place)
    return placed


def _weights(folds: Folds, examples: int) -> Array:
    """(K, 2, N): how often each example is in the validation and in the training part."""

    def counted(rows: Array, weights: Array) -> Array:
        return np.bincount(rows, weights, minlength=examples).astype(np.float32)

    train, train_weights, val, val_weights = folds
    parts = zip(val, val_weights, train, train_weights, strict=True)
    return np.stack([[counted(*part[:2]), counted(*part[2:])] for part in parts])


def _orders(folds: Folds, epochs: int, size: int, seeds: Sequence[int], shuffle: bool) -> Array:
    """(P, K, S, B) rows of every batch; orders repeat if they would take more than 64 MB."""
    others = np.setdiff1d(folds.train_weights, (0, 1))
    rule = "have training weights 0 or 1, because a row is in a batch or not"
    advice = "Put weights of examples into `data`, and let the loss multiply by them."
    checks.must("folds", not len(others), rule, listed(map(str, others)), advice)
    count, width = folds.train.shape
    per_epoch = -(-width // size)
    epochs = min(epochs, max(1, _ENTRIES // (count * len(seeds) * per_epoch * size)))
    rows = np.full((count, len(seeds), epochs, per_epoch * size), -1, np.int32)
    for k, (train, weights) in enumerate(zip(folds.train, folds.train_weights, strict=True)):
        own = np.tile(train[weights > 0], (epochs, 1))
        for s, seed in enumerate(seeds):
            generator = np.random.default_rng((seed, k))
            rows[k, s, :, : own.shape[1]] = generator.permuted(own, axis=1) if shuffle else own
    rows = rows.reshape(count, len(seeds), epochs * per_epoch, size)
    return np.ascontiguousarray(rows.transpose(2, 0, 1, 3))


def _canonical(x: Any) -> Any:
    """NumPy arrays in the widths that JAX computes in."""
    return x if isinstance(x, jax.Array) else np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))


def _axes(*names: str | None) -> Any:
    return PartitionSpec(*names)  # type: ignore[no-untyped-call]
