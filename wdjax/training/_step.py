"""One jitted training step that gets counts, skips and shapes right.

Whatever a step needs besides its batch is in a `TrainState`, so a state is all it takes to resume.
Shapes are checked while tracing: a mistake names its entry, and the compiled step pays nothing.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from wdjax._lift.leaves import applied, widened
from wdjax._trees.checks import (
    check_function,
    check_positive,
    check_whole,
    common_axis,
    kind_of,
    named_leaves,
)
from wdjax._trees.devices import beside, copied, every_nth
from wdjax._trees.paths import listed
from wdjax.metrics import collected
from wdjax.training._states import check_kept, check_key, check_made_by

PyTree = Any
Metrics = dict[str, Any]
Step = Callable[["TrainState", PyTree], tuple["TrainState", Metrics]]

_ADDED = ("loss", "grad_norm", "finite", "measured")  # metrics that the step adds itself


class TrainState(NamedTuple):
    """All that changes while training, a pytree: save it, restore it, go on.

    Args:
        step: t, int32 scalar, the batches consumed so far, skipped ones included.
        params: θ, a pytree of floating-point arrays.
        opt_state: the state of the Optax optimizer.
        model_state: what the model itself carries (BatchNorm statistics), or None.
        key: the random key of the run, or None; step t uses `fold_in(key, t)`.
        skipped: int32 scalar, the steps skipped because the loss or a gradient was not finite.

    Example:
        >>> state = TrainState.create({"w": jnp.ones(2)}, optax.sgd(0.1))
        >>> int(state.step), state.params["w"]
        (0, Array([1., 1.], dtype=float32))
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    model_state: PyTree
    key: jax.Array | None
    skipped: jax.Array

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        *,
        model_state: PyTree = None,
        key: jax.Array | None = None,
    ) -> Self:
        """The state before the first step.

        Everything is copied: a step may donate the state, and the arrays passed here stay valid.
        Where the parameters lie on a mesh of devices, their moments, anchors and residuals lie as
        they do, and what belongs to no parameter, such as counts, lies on all of them.

        Args:
            params: θ, a pytree whose leaves are all floating-point arrays.
            optimizer: any Optax transformation; its `init` sees `params`.
            model_state: handed to a loss that has a parameter `model_state`.
            key: for a loss that has a parameter `key`, from `jax.random.key(seed)`.

        Returns:
            A `TrainState` at step 0.

        Raises:
            TypeError: a leaf of `params` is not a floating-point array; `key` is no random key.

        Example:
            >>> TrainState.create({"ids": jnp.arange(3)}, optax.sgd(0.1))
            Traceback (most recent call last):
            TypeError: `params` must hold floating-point arrays only; got int32[3] at 'ids'. ...
        """
        _check_optimizer(optimizer)
        check_key(key)
        wrong = [
            f"{kind_of(x)} at '{path}'" for path, x in named_leaves(params) if not _is_inexact(x)
        ]
        if wrong:
            raise TypeError(
                f"`params` must hold floating-point arrays only; got {listed(wrong)}. Keep other "
                "leaves in `model_state` or outside the state (equinox: `eqx.partition`)."
            )
        zero = jnp.zeros((), jnp.int32)
        # one copy of each leaf, also where the optimizer keeps `params` itself in its state: no
        # buffer can then be donated twice
        state = cls(zero, params, optimizer.init(params), model_state, key, zero)
        return beside(params, state.copy())

    def copy(self) -> Self:
        """The same state in buffers of its own: donating one leaves the other valid."""
        return copied(self)


def make_train_step(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    batch_spec: PyTree = None,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    skip_nonfinite: bool = True,
    donate: bool = True,
) -> Step:
    """One jitted step: check the shapes, differentiate, clip, update, skip what is not finite.

        g  = mean over micro-batches of ∇ loss_fn(θ)
        g ← g min(1, max_grad_norm / ‖g‖)
        θ ← θ + optimizer.update(g)          unless the loss or ‖g‖ is not finite

    The norm is taken over all gradients in float32 or wider; a norm too large for that counts as
    not finite. Clipping comes before the optimizer, so decay inside the optimizer is not clipped.

    With arrays on a mesh of devices all of this is of the whole batch and the whole model. Of
    several processes, each with its examples, make a batch that lies on the devices of all by
    `jax.make_array_from_process_local_data`: an array of one process JAX takes to be the same in
    all of them, and does not look.

    Args:
        loss_fn: `loss_fn(params, batch)`. If it has parameters named `model_state` or `key`, it
            gets them by name, unless `functools.partial` has set them. It returns the loss, or
            `(loss, metrics)`, or, when it takes `model_state`, `(loss, metrics, model_state)`;
            metrics is a dict of arrays.
        optimizer: any Optax transformation; those that take extra arguments get `value` and `grad`.
        batch_spec: the shape of every entry of a batch, such as `{"x": ("B", 13), "y": ("B",)}`:
            an int is exact, a letter is one size throughout the batch, None is any size.
        accumulate: number of micro-batches A, of every A-th example each; loss, gradients and
            metrics are their means, and `model_state` passes through them in turn.
        max_grad_norm: > 0, or None for no clipping.
        skip_nonfinite: a step with a non-finite loss or gradient leaves `params`, `opt_state` and
            `model_state` as they were, bit for bit, and adds one to `skipped`.
        donate: give the state's memory to the next state; the state passed in is then used up,
            and JAX raises "Buffer has been deleted or donated" where it is used again; pass
            `state.copy()` to keep it.

    Returns:
        `step(state, batch) -> (state, metrics)`; metrics has "loss", "grad_norm" (before clipping),
        "finite", the entries from `loss_fn`, and "measured" if the optimizer has
        `wdjax.metrics.measured` in it: group -> name -> reading.

    Raises:
        TypeError, ValueError: a bad argument, when the step is built; a bad batch or loss, or a
            state of another optimizer, when the step is first called with such shapes, naming the
            entry.

    Example:
        >>> def loss_fn(params, batch):
        ...     return jnp.mean((params["w"] * batch["x"] - batch["y"]) ** 2)
        >>> step = make_train_step(loss_fn, optax.sgd(0.5), batch_spec={"x": ("B",), "y": ("B",)})
        >>> state = TrainState.create({"w": jnp.array(0.0)}, optax.sgd(0.5))
        >>> state, metrics = step(state, {"x": jnp.ones(4), "y": jnp.full(4, 3.0)})
        >>> float(state.params["w"]), float(metrics["loss"]), float(metrics["grad_norm"])
        (3.0, 9.0, 6.0)
    """
    check_whole("accumulate", accumulate)
    check_function("loss_fn", loss_fn)
    _check_optimizer(optimizer)
    check_positive("max_grad_norm", max_grad_norm)
    _check_shapes(batch_spec)
    names = set(inspect.signature(loss_fn).parameters) - set(getattr(loss_fn, "keywords", ()))
    extras = tuple(name for name in ("model_state", "key") if name in names)
    evaluate = functools.partial(_evaluate, loss_fn, extras)
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        _check_batch(batch, batch_spec, accumulate)
        _check_extras(state, extras)
        check_made_by(optimizer, state.params, state.opt_state)
        loss, grads, metrics, model_state = _accumulated(evaluate, accumulate, state, batch)
        grad_norm = _norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if max_grad_norm is not None:
            shrink = jnp.minimum(1.0, max_grad_norm / grad_norm)
            grads = jax.tree.map(functools.partial(_shrunk, shrink), grads)
        old = (state.params, state.opt_state, state.model_state)

        def update(old: tuple[PyTree, PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
            params, opt_state, _ = old
            updates, opt_state = optimizer.update(grads, opt_state, params, value=loss, grad=grads)
            new = (applied(params, updates), opt_state, model_state)
            for name, *trees in zip(("params", "opt_state", "model_state"), old, new, strict=True):
                check_kept(name, *trees)
            return new

        # A branch, not a selection between new and old: on CPU that took 1.7 times as long and
        # twice the memory, because the old values had to stay beside the new ones.
        new = lax.cond(finite, update, lambda old: old, old) if skip_nonfinite else update(old)
        skips = (~finite).astype(state.skipped.dtype)
        state = state._replace(
            step=state.step + 1,
            params=new[0],
            opt_state=new[1],
            model_state=new[2],
            skipped=state.skipped + skips if skip_nonfinite else state.skipped,
        )
        readings = collected(state.opt_state)
        metrics = {"measured": readings, **metrics} if readings else metrics
        return state, {"loss": loss, "grad_norm": grad_norm, "finite": finite, **metrics}

    return jax.jit(train_step, donate_argnums=0 if donate else ())


def _accumulated(
    evaluate: Callable[..., Any], accumulate: int, state: TrainState, batch: PyTree
) -> tuple[jax.Array, PyTree, Metrics, PyTree]:
    """Loss, gradients, metrics and model state of one batch, the means over its micro-batches."""
    gradient = jax.value_and_grad(evaluate, has_aux=True)
    key = None if state.key is None else jax.random.fold_in(state.key, state.step)
    if accumulate == 1:
        (loss, (metrics, model_state)), grads = gradient(
            state.params, batch, state.model_state, key
        )
        return loss, grads, metrics, model_state

    def add(carry: tuple[PyTree, PyTree], part: tuple[jax.Array, PyTree]) -> Any:
        total, before = carry
        index, micro_batch = part
        micro_key = None if key is None else jax.random.fold_in(key, index)
        (loss, (metrics, after)), grads = gradient(state.params, micro_batch, before, micro_key)
        check_kept("model_state", before, after)
        total = jax.tree.map(lambda sum_, g: sum_ + widened(g), total, grads)
        return (total, after), (loss, metrics)

    parts = every_nth(batch, accumulate)
    # sums in float32 or wider: bfloat16 would lose the small terms
    zeros = jax.tree.map(lambda p: jnp.zeros_like(widened(p)), state.params)
    (total, model_state), (loss, metrics) = lax.scan(
        add, (zeros, state.model_state), (jnp.arange(accumulate), parts)
    )
    grads = jax.tree.map(lambda g, p: (g / accumulate).astype(p.dtype), total, state.params)
    loss, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), (loss, metrics))
    return loss, grads, metrics, model_state


def _evaluate(
    loss_fn: Callable[..., Any],
    extras: tuple[str, ...],
    params: PyTree,
    batch: PyTree,
    model_state: PyTree,
    key: jax.Array | None,
) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
    """`loss_fn` with one signature and one kind of result, checked."""
    available = {"model_state": model_state, "key": key}
    result = loss_fn(params, batch, **{name: available[name] for name in extras})
    if "model_state" in extras:
        if not (isinstance(result, tuple) and len(result) == 3):
            raise TypeError(
                "a `loss_fn` that takes model_state must return (loss, metrics, model_state); "
                f"got {_kinds_of(result)}. Return an empty dict where there are no metrics."
            )
        loss, metrics, model_state = result
    elif isinstance(result, tuple):
        if len(result) != 2:
            raise TypeError(
                f"`loss_fn` must return the loss or (loss, metrics); got {_kinds_of(result)}. "
                "To return a model state as well, take a parameter named `model_state`."
            )
        loss, metrics = result
    else:
        loss, metrics = result, {}
    _check_loss(loss)
    _check_metrics(metrics)
    return jnp.asarray(loss), (metrics, model_state)


def _norm(tree: PyTree) -> jax.Array:
    """‖g‖ over all leaves; float16 would overflow at 65,504² and bfloat16 lose small leaves."""
    leaves = [jnp.abs(widened(g)) for g in jax.tree.leaves(tree)]
    squares = (jnp.sum(jnp.square(g)).astype(float) for g in leaves)
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def _shrunk(shrink: jax.Array, g: jax.Array) -> jax.Array:
    wide = widened(g)
    return (wide * shrink.astype(wide.dtype)).astype(g.dtype)


def _check_optimizer(optimizer: Any) -> None:
    # not by class: optax.MultiSteps is none of Optax's own transformations
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"`optimizer` must be an Optax transformation, such as wdjax.adamw(1e-3); got "
            f"{optimizer!r}."
        )


def _check_shapes(spec: PyTree) -> None:
    entries = named_leaves(spec, is_leaf=_is_shape)
    wrong = [f"{shape!r} at '{path}'" for path, shape in entries if not _is_shape(shape)]
    if wrong:
        raise TypeError(
            f"`batch_spec` must hold shapes, tuples such as ('B', 13); got {listed(wrong)}."
        )


def _check_batch(batch: PyTree, spec: PyTree, accumulate: int) -> None:
    size = common_axis("batch", batch)
    if size % accumulate:
        raise ValueError(
            f"`accumulate` must divide every batch; got accumulate={accumulate} and a batch of "
            f"{size}. Choose a batch size that is a multiple of it, also for the last batch."
        )
    if spec is not None:
        _check_spec(dict(named_leaves(batch)), spec)


def _check_spec(entries: dict[str, jax.Array], spec: PyTree) -> None:
    shapes = dict(named_leaves(spec, is_leaf=_is_shape))
    wrong = [f"'{path}' is missing" for path in shapes if path not in entries]
    wrong += [f"'{path}' is not declared" for path in entries if path not in shapes]
    if wrong:
        raise ValueError(f"the batch must have the entries of `batch_spec`; {listed(wrong)}.")
    sizes: dict[str, int] = {}
    for path, shape in shapes.items():
        x = entries[path]
        rule = f"batch entry '{path}' must have shape {shape}; got {x.shape}."
        chex.assert_rank(x, len(shape), custom_message=rule, exception_type=ValueError)
        for axis, size in zip(shape, x.shape, strict=True):
            if isinstance(axis, str):
                sizes.setdefault(axis, size)
        rule = f"{rule} {', '.join(f'{axis} is {sizes[axis]}' for axis in shape if axis in sizes)}"
        exact = tuple(sizes.get(axis, axis) for axis in shape)
        chex.assert_shape(x, exact, custom_message=rule, exception_type=ValueError)


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(axis, str | int | None) for axis in node)


def _check_extras(state: TrainState, extras: tuple[str, ...]) -> None:
    for name in extras:
        if getattr(state, name) is None:
            raise ValueError(
                f"`loss_fn` takes {name}, but the state has none. "
                f"Pass {name}= to TrainState.create."
            )


def _check_loss(loss: Any) -> None:
    if not _is_number(loss):
        raise TypeError(f"the loss must be a scalar array; got {kind_of(loss)}.")
    shape, dtype = jnp.shape(loss), jnp.result_type(loss)
    rule = f"the loss must be a scalar; got shape {shape}. Take its mean."
    chex.assert_rank(loss, 0, custom_message=rule, exception_type=ValueError)
    rule = f"the loss must be a floating-point number; got {dtype}."
    chex.assert_type(loss, float, custom_message=rule, exception_type=TypeError)


def _check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, dict):
        raise TypeError(
            f"metrics must be a dict of arrays; got {kind_of(metrics)}. `loss_fn` returns (loss, "
            "metrics), and (loss, metrics, model_state) where it takes model_state."
        )
    wrong = [f"{kind_of(x)} at '{path}'" for path, x in named_leaves(metrics) if not _is_number(x)]
    if wrong:
        raise TypeError(f"metrics must be a dict of arrays; got {listed(wrong)}.")
    taken = [f"'{name}'" for name in _ADDED if name in metrics]
    if taken:
        raise ValueError(
            f"metrics must not use the names that the step adds; got {listed(taken)}. Rename them."
        )


def _kinds_of(result: Any) -> str:
    return f"({', '.join(map(kind_of, result))})" if isinstance(result, tuple) else kind_of(result)


def _is_inexact(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float)
