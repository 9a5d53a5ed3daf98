"""The training loop inside compiled chunks, over data in memory or an iterator of batches.

A chunk is one program: a `lax.scan` over epochs, and in each a loop over its full batches and one
over its short last batch, if any. How many rounds each takes is data, so one compilation serves
every interval, every resumption and every remainder. A loop of no or one round is also a branch
that works in place; `lax.cond` would copy the whole state.
"""

import contextlib
import functools
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wdjax._trees import PyTree, checks
from wdjax._trees.checks import checked_readings, require_global
from wdjax._trees.devices import cut_rows, spans_processes, take_rows
from wdjax.training._batches import Draw, Stream, from_memory, from_stream, is_stream
from wdjax.training._step import CREATE, Metrics, Step, TrainState

_SECONDS = 0.5  # per chunk: often enough for a moving bar, rare enough to cost nothing


class History(NamedTuple):
    """What a run showed. Entry i was measured with the parameters after `steps[i]` batches.

    Args:
        steps: (T,) integers, the step counts at which the metrics were measured.
        metrics: name -> (T, ...) array, the metrics of every step; `wdjax.metrics.series` takes the
            readings of a measured optimizer out of it.
        eval_steps: (E,) integers, the step counts at which `evaluate` was called.
        evals: name -> (E, ...) array, what it returned.
    """

    steps: np.ndarray
    metrics: dict[str, Any]
    eval_steps: np.ndarray
    evals: dict[str, np.ndarray]


def fit(
    step: Step,
    state: TrainState,
    batches: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    evaluate: Callable[[TrainState], Metrics] | None = None,
    eval_every: int | None = None,
    chunk: int = 1024,
    progress: bool | None = None,
    on_chunk: Callable[[TrainState], object] | None = None,
) -> tuple[TrainState, History]:
    """Train until `state.step` reaches the given number of epochs or steps.

    The goal is counted from step 0 of the state, not from this call: the same call with a state
    that was saved on the way finishes the job, and in-memory data gives the same run bit for bit,
    because the order of the examples depends on `seed`, the epoch and the number of examples only.

    If the state is on the devices of several processes, each of them calls this with the same
    arguments and as many batches, and the batches are on all of these devices, too.

    The caller's `state` stays valid. If something raises on the way (the iterator, `evaluate`,
    `on_chunk`, an interrupt), the exception carries what was reached as `.state` and `.history`,
    and what is left of an iterator as `.batches`: a batch may have been read ahead.

    Args:
        step: `step(state, batch) -> (state, metrics)`, from `make_train_step` or any function JAX
            can trace, hashable; the same function and shapes do not compile twice.
        state: where to start.
        batches: either a pytree of arrays with a common leading axis of N examples (also a tuple
            or list of arrays), cut into mini-batches; the last batch of an epoch is shorter if
            `batch_size` does not divide N, and counts as a step. Arrays whose examples are on
            several devices give batches that do, too. Or an iterator, or any other iterable, of
            batches; it is read in groups, once.
        epochs: passes over in-memory data. Exactly one of `epochs` and `steps`.
        steps: batches. With an iterator optional: its end is the end.
        batch_size: examples per batch, for in-memory data, at most N.
        shuffle: a new order of the examples in every epoch; False keeps theirs.
        seed: >= 0, of the orders.
        evaluate: `evaluate(state) -> dict of scalars`, called outside the compiled program at every
            multiple of `eval_every` and at the end. The state is a copy, to keep if you like.
        eval_every: steps; None evaluates at the end only.
        chunk: most steps in one compiled call. Fewer run at once when steps are slow, so that a
            call takes about half a second and bar and `on_chunk` keep moving. Several processes
            always run all of them, because they must stay in step.
        progress: a tqdm bar; None shows one if tqdm is there, stderr is a terminal and the work
            takes more than a second.
        on_chunk: `on_chunk(state)` after every chunk, for checkpoints, with a copy of the state.

    Returns:
        The last state and the `History`.

    Raises:
        TypeError, ValueError: a bad argument or batch; a state of another optimizer, or one whose
            memory a step has taken.

    Warns:
        UserWarning: nothing is left to do; an iterator ended before `steps`; steps were skipped as
            not finite (how many; `history.metrics["finite"]` says which).

    Example:
        >>> import optax
        >>> from wdjax.training import make_train_step
        >>> def loss_fn(params, batch):
        ...     return jnp.mean((params["w"] * batch["x"] - batch["y"]) ** 2)
        >>> data = {"x": np.ones(10, np.float32), "y": np.full(10, 3.0, np.float32)}
        >>> state = TrainState.create({"w": jnp.array(0.0)}, optax.sgd(0.25))
        >>> step = make_train_step(loss_fn, optax.sgd(0.25))
        >>> state, history = fit(step, state, data, epochs=2, batch_size=4)
        >>> history.steps, history.metrics["loss"][:3]
        (array([0, 1, 2, 3, 4, 5]), array([9.    , 2.25  , 0.5625], dtype=float32))
    """
    counts = {"epochs": epochs, "steps": steps, "eval_every": eval_every, "chunk": chunk}
    _check(step, state, evaluate, on_chunk, counts)
    left = Stream(batches) if is_stream(batches) else None
    if left is not None:
        draw, goal, short = from_stream(left, epochs, steps, batch_size, chunk)
    else:
        draw, goal, short = from_memory(batches, epochs, steps, batch_size, chunk, shuffle, seed)
    run = _Run(functools.partial(_run_chunk, step, short, jax.tree.structure(state)), state)
    if goal is not None and run.reached >= goal:
        warnings.warn(
            f"`fit` has nothing to do: the state is at step {run.reached} of {goal}. Epochs and "
            "steps count from step 0 of the state.",
            stacklevel=2,
        )
        return state, run.history()
    try:
        with _bar(progress, run.reached, goal) as bar:
            run.loop(draw, goal, evaluate, eval_every, on_chunk, bar)
        _warn_about(run, goal, int(state.skipped))
        return run.state, run.history()
    except BaseException as error:
        # a chunk that failed has no metrics to wait for, and a second interrupt ends the wait
        with contextlib.suppress(BaseException):
            run.settle(len(run.results))
        found = {"state": run.state, "history": run.history(), "batches": left}
        for name, value in found.items():
            setattr(error, name, value)
        error.add_note(
            f"`fit` was at step {run.reached}: see .state and .history of this exception"
        )
        raise


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def _run_chunk(
    step: Step,
    short: int,
    structure: Any,
    places: tuple[Any, ...],
    leaves: list[Any],
    data: PyTree,
    table: jax.Array,
    rounds: jax.Array,
) -> tuple[list[Any], Metrics, jax.Array]:
    """Batch i is `data[table[i]]`; `rounds` says how many full and short batches each epoch has.

    A short batch has only the first `short` rows. The state comes and goes as a list of leaves: to
    rebuild a NamedTuple, Python code would run between the end of the program and the return, and
    an interrupt there would lose the state. The number of steps is what to wait for: there may be
    no metrics, and the state may be donated.
    """

    def take(state: TrainState, rows: jax.Array) -> tuple[TrainState, Metrics]:
        return step(state, take_rows(data, rows, places))

    def one(size: int | None, i: jax.Array, carry: tuple[TrainState, Metrics]) -> Any:
        state, metrics = carry
        state, new = take(state, table[i] if size is None else table[i, :size])
        return state, jax.tree.map(lambda all_, value: all_.at[i].set(value), metrics, new)

    def epoch(carry: tuple[jax.Array, Any], counts: jax.Array) -> tuple[Any, None]:
        i, run = carry
        last = i + counts[0]
        run = lax.fori_loop(i, last, functools.partial(one, None), run)
        if short:
            run = lax.fori_loop(last, last + counts[1], functools.partial(one, short), run)
        return (last + counts[1], run), None

    # under jax_debug_nans this also runs without jit, on what the caller gave
    table, rounds = jnp.asarray(table), jnp.asarray(rounds)
    state = jax.tree.unflatten(structure, leaves)
    shapes = jax.eval_shape(take, state, table[0])[1]
    if short:
        _check_same_shapes(shapes, jax.eval_shape(take, state, table[0, :short])[1])
    metrics = jax.tree.map(lambda x: jnp.zeros((len(table), *x.shape), x.dtype), shapes)
    (count, (state, metrics)), _ = lax.scan(epoch, (jnp.int32(0), (state, metrics)), rounds)
    return jax.tree.leaves(state), metrics, count


class _Run:
    """What has been reached so far, kept so that an interrupt at any point loses nothing."""

    def __init__(self, run_chunk: Callable[..., Any], state: TrainState) -> None:
        self.run_chunk = run_chunk
        self.start = state
        self.is_shared = spans_processes(state)
        # chunk i ended at step ends[i] with results[i] = (leaves of the state, metrics, steps);
        # chunk 0 is the start, and only the newest chunk still has its leaves
        self.ends = [int(state.step)]
        self.results: list[tuple[list[Any], Metrics, Any]] = [([], {}, 0)]
        self.settled = 1  # chunks whose metrics are on the host
        self.evals: list[tuple[int, dict[str, np.ndarray]]] = []

    @property
    def state(self) -> TrainState:
        if len(self.results) == 1:
            return self.start
        state: TrainState = jax.tree.unflatten(jax.tree.structure(self.start), self.results[-1][0])
        return state

    @property
    def reached(self) -> int:
        return self.ends[len(self.results) - 1]

    def loop(
        self,
        draw: Draw,
        goal: int | None,
        evaluate: Callable[[TrainState], Metrics] | None,
        eval_every: int | None,
        on_chunk: Callable[[TrainState], object] | None,
        bar: Any,
    ) -> None:
        limit = sys.maxsize if self.is_shared else 1
        clock = time.perf_counter()
        while goal is None or self.reached < goal:
            stop = _next_stop(self.reached, goal, eval_every)
            data, table, rounds = draw(self.reached, min(limit, stop - self.reached))
            if self.is_shared:
                require_global("batches", data)
            if not rounds.any():
                advice = "An iterator can be used only once: make a new one."
                has_moved = self.reached > self.ends[0]
                checks.must("batches", has_moved, "yield at least one batch", "none", advice)
                break
            self.advance(data, table, rounds)
            due = eval_every is not None and self.reached % eval_every == 0
            # the device always has the next chunk to work on, unless someone wants this one now
            self.settle(len(self.results) - (0 if due or on_chunk else 1))
            limit = self.pace(limit, time.perf_counter() - clock)
            _show(bar, self.ends[self.settled - 1], self.results[self.settled - 1][1])
            if due:
                self.evaluate(evaluate)
            if on_chunk is not None:
                on_chunk(self.state.copy())
            clock = time.perf_counter()
        self.settle(len(self.results))
        _show(bar, self.reached, self.results[-1][1])
        if not self.evals or self.evals[-1][0] < self.reached:
            self.evaluate(evaluate)

    def advance(self, data: PyTree, table: np.ndarray, rounds: np.ndarray) -> None:
        self.ends.append(self.reached + int(rounds.sum()))
        leaves = self.results[-1][0] or jax.tree.leaves(self.start.copy())
        # The old state is donated, so the new one must be kept even if an interrupt arrives while
        # the call returns: extend(map(...)) stores it before Python looks at signals again.
        self.results.extend(
            map(self.run_chunk, (cut_rows(data),), (leaves,), (data,), (table,), (rounds,))
        )
        self.results[-2] = ([], *self.results[-2][1:])

    def settle(self, until: int) -> None:
        """Wait for the chunks before `until` and take their metrics to the host."""
        while self.settled < until:
            i = self.settled
            leaves, metrics, count = self.results[i]
            count.block_until_ready()
            active = slice(self.ends[i] - self.ends[i - 1])
            metrics = jax.tree.map(lambda x, rows=active: np.asarray(x)[rows].copy(), metrics)
            _check_same_shapes(
                *(jax.tree.map(lambda x: x.shape[1:], m) for m in (self.results[1][1], metrics))
            )
            self.results[i] = (leaves, metrics, count)
            self.settled += 1

    def pace(self, limit: int, seconds: float) -> int:
        """Steps in the next chunk. The first wait is for the first chunk, in the second round.

        Processes that share a state must run the same programs, and no two of their clocks agree.
        """
        if self.is_shared or len(self.ends) < 3:
            return limit
        count = min(self.ends[-1] - self.ends[-2], self.ends[-2] - self.ends[-3])
        return max(1, int(_SECONDS * count / seconds))

    def evaluate(self, evaluate: Callable[[TrainState], Metrics] | None) -> None:
        if evaluate is None:
            return
        found = evaluate(self.state.copy())
        found = checked_readings(found, self.evals[0][1] if self.evals else None)
        self.evals.append((self.reached, found))

    def history(self) -> History:
        chunks = [metrics for _, metrics, _ in self.results[1 : self.settled]]
        metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks) if chunks else {}
        names = self.evals[0][1] if self.evals else {}
        return History(
            steps=np.arange(self.ends[0], self.ends[self.settled - 1]),
            metrics=metrics,
            eval_steps=np.array([step for step, _ in self.evals], int),
            evals={name: np.stack([found[name] for _, found in self.evals]) for name in names},
        )


def _next_stop(reached: int, goal: int | None, eval_every: int | None) -> int:
    stops = [sys.maxsize if goal is None else goal]
    if eval_every is not None:
        stops.append(reached - reached % eval_every + eval_every)
    return min(stops)


# What the user says and sees.


def _check(step: Any, state: Any, evaluate: Any, on_chunk: Any, counts: dict[str, Any]) -> None:
    for name, function in {"step": step, "evaluate": evaluate, "on_chunk": on_chunk}.items():
        checks.function(name, function, optional=name != "step")
    for name, count in counts.items():
        checks.whole(name, count, optional=True)
    is_lone = evaluate is None and counts["eval_every"] is not None
    checks.must("eval_every", not is_lone, "come with `evaluate`", "`evaluate=None`")
    checks.record("state", state, TrainState, CREATE)
    used_up = any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(state))
    advice = "Give that step state.copy(), or build it by make_train_step(..., donate=False)."
    got = "one that was donated to an earlier step"
    checks.must("state", not used_up, "still have its memory", got, advice)


def _check_same_shapes(first: PyTree, then: PyTree) -> None:
    rule = "keep their shapes, also for a shorter last batch"
    got = f"{first} and then {then}"
    checks.must("metrics", first == then, rule, got, "Reduce them over the batch.")


def _bar(progress: bool | None, start: int, goal: int | None) -> Any:
    tqdm = checks.tqdm_for(progress)
    if tqdm is None:
        return contextlib.nullcontext()
    return tqdm(total=goal, initial=start, unit="step", delay=0.0 if progress else 1.0)


def _show(bar: Any, reached: int, metrics: Metrics) -> None:
    if bar is not None:
        if "loss" in metrics:
            bar.set_postfix_str(f"loss {metrics['loss'][-1]:.4g}", refresh=False)
        bar.update(reached - bar.n)


def _warn_about(run: _Run, goal: int | None, skipped_before: int) -> None:
    skipped = int(run.state.skipped) - skipped_before
    if skipped:
        warnings.warn(
            f"`fit` skipped {skipped} of {run.reached - run.ends[0]} steps: their loss or gradient "
            'was not finite; see history.metrics["finite"].',
            stacklevel=3,
        )
    if goal is not None and run.reached < goal:
        warnings.warn(
            f"`batches` ended at step {run.reached}, before step {goal} was reached.",
            stacklevel=3,
        )
