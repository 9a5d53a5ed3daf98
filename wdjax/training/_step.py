"""One jitted training step that gets counts, skips and shapes right.

Whatever a step needs besides its batch is in a `TrainState`, so a state is all it takes to resume.
Shapes are checked while tracing: a mistake names its entry, and the compiled step pays nothing.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from wdjax._lift.leaves import applied, widened
from wdjax._trees import PyTree, checks
from wdjax._trees.checks import common_axis, kind_of, named_leaves
from wdjax._trees.devices import beside, copied, every_nth
from wdjax._trees.paths import leaves, listed, nodes
from wdjax._trees.reach import always_zero
from wdjax.audit import audit as audit_of
from wdjax.metrics import MeasuredState, latest
from wdjax.training._states import check_kept, check_made_by

Metrics = dict[str, Any]
Step = Callable[["TrainState", PyTree], tuple["TrainState", Metrics]]

CREATE = "Use TrainState.create(params, optimizer)."
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
        audit: bool = False,
    ) -> Self:
        """The state before the first step.

        Everything is copied: a step may donate the state, and the arrays passed here stay valid.
        If the parameters are on a mesh of devices, their moments, anchors and residuals are sharded
        like them, and arrays without a parameter, such as counts, are on all devices.

        Args:
            params: θ, a pytree whose leaves are all floating-point arrays.
            optimizer: any Optax transformation; its `init` sees `params`.
            model_state: handed to a loss that has a parameter `model_state`.
            key: for a loss that has a parameter `key`, from `jax.random.key(seed)`.
            audit: print what the optimizer does to each leaf, by `wdjax.audit`.

        Returns:
            A `TrainState` at step 0.

        Raises:
            TypeError: a leaf of `params` is not a floating-point array; `key` is not a random key.

        Example:
            >>> TrainState.create({"ids": jnp.arange(3)}, optax.sgd(0.1))
            Traceback (most recent call last):
            TypeError: `params` must hold floating-point arrays only; got int32[3] at 'ids'. ...
        """
        checks.optimizer("optimizer", optimizer)
        dtype: Any = getattr(key, "dtype", None)
        # jax.random.PRNGKey makes uint32, and so does saving a key
        is_key = key is None or dtype == jnp.uint32 or jnp.issubdtype(dtype, jax.dtypes.prng_key)
        rule = "be a random key, such as jax.random.key(0)"
        checks.must("key", is_key, rule, checks.shown(key), error=TypeError)
        checks.leaves(
            "params", params, _is_inexact, "floating-point arrays only",
            "Keep other leaves in `model_state` or outside the state (equinox: `eqx.partition`).",
        )  # fmt: skip
        if audit:
            print(audit_of(params, optimizer))
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
    """One jitted step: check the shapes, differentiate, clip, update; skip if not finite.

        g  = mean over micro-batches of ∇ loss_fn(θ)
        g ← g min(1, max_grad_norm / ‖g‖)
        θ ← θ + optimizer.update(g)          unless the loss or ‖g‖ is not finite

    The norm is taken over all gradients in float32 or wider; a norm too large for that counts as
    not finite. Clipping comes before the optimizer, so decay inside the optimizer is not clipped.

    With arrays on a mesh of devices all of this is of the whole batch and the whole model. If each
    of several processes has some examples, make one batch of them by
    `jax.make_array_from_process_local_data`: JAX would assume, unchecked, that an array of one
    process is the same in all.

    Args:
        loss_fn: `loss_fn(params, batch)`. If it has parameters named `model_state` or `key`, it
            gets them by name, unless `functools.partial` has set them. It returns the loss, or
            `(loss, metrics)`, or, when it takes `model_state`, `(loss, metrics, model_state)`;
            metrics is a dict of arrays.
        optimizer: any Optax transformation; those that take extra arguments get `value`.
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

    Warns:
        UserWarning: when the step is first called, no gradient reaches a parameter (it is unused,
            or under `jax.lax.stop_gradient`), and the optimizer makes it decay.

    Example:
        >>> def loss_fn(params, batch):
        ...     return jnp.mean((params["w"] * batch["x"] - batch["y"]) ** 2)
        >>> step = make_train_step(loss_fn, optax.sgd(0.5), batch_spec={"x": ("B",), "y": ("B",)})
        >>> state = TrainState.create({"w": jnp.array(0.0)}, optax.sgd(0.5))
        >>> state, metrics = step(state, {"x": jnp.ones(4), "y": jnp.full(4, 3.0)})
        >>> float(state.params["w"]), float(metrics["loss"]), float(metrics["grad_norm"])
        (3.0, 9.0, 6.0)
    """
    checks.whole("accumulate", accumulate)
    checks.function("loss_fn", loss_fn)
    checks.optimizer("optimizer", optimizer)
    checks.number("max_grad_norm", max_grad_norm, above=0, optional=True)
    checks.leaves(
        "batch_spec", batch_spec, _is_shape, "tuples such as ('B', 13)", is_leaf=_is_shape
    )
    names = set(inspect.signature(loss_fn).parameters) - set(getattr(loss_fn, "keywords", ()))
    extras = tuple(name for name in ("model_state", "key") if name in names)
    optimizer = optax.with_extra_args_support(optimizer)
    gradient = _differentiated(functools.partial(_evaluate, loss_fn, extras), optimizer)

    def train_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        checks.record("state", state, TrainState, CREATE)
        _check_batch(batch, batch_spec, accumulate)
        for name in extras:
            has = getattr(state, name) is not None
            advice = f"Pass {name}= to TrainState.create."
            checks.must("state", has, f"have the `{name}` that `loss_fn` takes", "None", advice)
        check_made_by(optimizer, state.params, state.opt_state)
        loss, grads, metrics, model_state = _accumulated(gradient, accumulate, state, batch)
        grad_norm = _norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if max_grad_norm is not None:
            shrink = jnp.minimum(1.0, max_grad_norm / grad_norm)
            wide = jax.tree.map(widened, grads)
            wide = jax.tree.map(lambda g: g * shrink.astype(g.dtype), wide)
            grads = jax.tree.map(lambda g, old: g.astype(old.dtype), wide, grads)
        old = (state.params, state.opt_state, state.model_state)

        def update(old: tuple[PyTree, PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
            params, opt_state, _ = old
            updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
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
        if nodes(state.opt_state, lambda node: isinstance(node, MeasuredState)):
            metrics = {"measured": latest(state.opt_state), **metrics}
        return state, {"loss": loss, "grad_norm": grad_norm, "finite": finite, **metrics}

    return jax.jit(train_step, donate_argnums=0 if donate else ())


def _differentiated(
    evaluate: Callable[..., Any], optimizer: optax.GradientTransformation
) -> Callable[..., Any]:
    """Value and gradient of the loss; warns of parameters that it cannot move and decay does."""
    gradient = jax.jit(jax.value_and_grad(evaluate, has_aux=True), inline=True)

    def watched(params: PyTree, *rest: PyTree) -> Any:
        found = leaves(params)
        zeros = always_zero(gradient.trace(params, *rest).jaxpr)  # traced once, for both
        rows = zip(found, zeros[-len(found) :], strict=True)
        still = {leaf.path for leaf, is_zero in rows if is_zero}
        fading = _decayed(params, optimizer) & still if still else ()
        if fading:
            warnings.warn(
                "these parameters decay and no gradient reaches them, so they fade away: "
                f"{listed(map(repr, sorted(fading)))}. Give them the multiplier 0 in `rules`, or "
                "keep them out of `params`.",
                stacklevel=2,
            )
        return gradient(params, *rest)

    return watched


def _decayed(params: PyTree, optimizer: optax.GradientTransformation) -> set[str]:
    """The paths of parameters that decay, as far as the audit can tell inside a trace."""
    shapes = jax.eval_shape(lambda: params)
    try:
        with jax.ensure_compile_time_eval():
            rows = audit_of(shapes, optimizer).rows
    except (TypeError, ValueError):  # it cannot run this optimizer, and says nothing of it
        return set()
    return {row["path"] for row in rows if row["acts"] not in ("none", "unknown")}


def _accumulated(
    gradient: Callable[..., Any], accumulate: int, state: TrainState, batch: PyTree
) -> tuple[jax.Array, PyTree, Metrics, PyTree]:
    """Loss, gradients, metrics and model state of one batch, the means over its micro-batches."""
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
) -> tuple[Any, tuple[Metrics, PyTree]]:
    """`loss_fn` with one signature and one kind of result, checked."""
    available = {"model_state": model_state, "key": key}
    result = loss_fn(params, batch, **{name: available[name] for name in extras})
    returned = result if isinstance(result, tuple) else (result, {})
    wanted = "(loss, metrics, model_state)" if "model_state" in extras else "(loss, metrics)"
    loss, metrics, model_state = (*returned, model_state, None, None)[:3]
    kinds = f"({', '.join(map(kind_of, returned))})" if returned is result else kind_of(result)
    fits = len(returned) == wanted.count(",") + 1 and isinstance(metrics, dict)
    advice = "Metrics are a dict; a loss that takes no `model_state` may return the loss alone."
    checks.must("loss_fn", fits, f"return {wanted}", kinds, advice, TypeError)
    taken = [f"'{name}'" for name in _ADDED if name in metrics]
    checks.must("metrics", not taken, "leave out names that the step adds", listed(taken))
    return loss, (metrics, model_state)


def _norm(tree: PyTree) -> jax.Array:
    """‖g‖ over all leaves; float16 would overflow at 65,504² and bfloat16 lose small leaves."""
    leaves = [jnp.abs(widened(g)) for g in jax.tree.leaves(tree)]
    squares = (jnp.sum(jnp.square(g)).astype(float) for g in leaves)
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def _check_batch(batch: PyTree, spec: PyTree, accumulate: int) -> None:
    size = common_axis("batch", batch)
    advice = "Choose a batch size that is a multiple of it, also for the last batch."
    got = f"accumulate={accumulate} and a batch of {size}"
    checks.must("accumulate", size % accumulate == 0, "divide every batch", got, advice)
    if spec is not None:
        _check_spec(dict(named_leaves(batch)), dict(named_leaves(spec, is_leaf=_is_shape)))


def _check_spec(entries: dict[str, jax.Array], shapes: dict[str, tuple[Any, ...]]) -> None:
    missing, extra = sorted(shapes.keys() - entries), sorted(entries.keys() - shapes)
    got = f"missing: {missing}, not declared: {extra}"
    checks.must("batch", not (missing or extra), "have the entries of `batch_spec`", got)
    sizes: dict[Any, int] = {}
    for path, shape in shapes.items():
        found = jnp.shape(entries[path])
        axes = [(axis, size) for axis, size in zip(shape, found, strict=False) if axis is not None]
        known = [(sizes.setdefault(a, n) if isinstance(a, str) else a) == n for a, n in axes]
        rule = f"have shape {shape} at '{path}'"
        sized = " ".join(f"{a} is {sizes[a]}." for a in dict.fromkeys(shape) if a in sizes)
        checks.must("batch", len(shape) == len(found) and all(known), rule, found, sized)


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(axis, str | int | None) for axis in node)


def _is_inexact(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)
