"""Whole training runs against loops in Python, with what is compiled and without."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import wdjax
from benchmarks.timing import Figure, against, scaled
from benchmarks.trainers import available, with_optax, with_wdjax


class Peer(NamedTuple):
    """Another way to train: `make()` returns `train(epochs)`, timed on a part of the epochs."""

    name: str
    make: Callable[[], Any]
    goal: float | None = None
    parts: int = 1


def peer(library: str, job: str, data: Any, **how: bool) -> Callable[[], Any]:
    """The job in a library that is imported now."""
    module = importlib.import_module(f"benchmarks.trainers.with_{library}")
    return functools.partial(getattr(module, job), data, **how)


def keras_peers(job: str, data: Any, goal: float | None, parts: int) -> list[Peer]:
    """Eager Keras, where it is installed: its own loop, and one by hand."""
    ways = {"fit": False, "batches": True} if available("keras") else {}
    return [
        Peer(f"Keras, eager {way}", peer("keras", job, data, eager=True, by_hand=by_hand),
             goal, parts)
        for way, by_hand in ways.items()
    ]  # fmt: skip


def compared(
    what: str, make: Callable[[], Any], peers: list[Peer], epochs: int, repeats: int
) -> list[Figure]:
    """Two rows for each peer: all that is compiled already there, and compiled in every run."""
    figures = []
    for name, make_theirs, goal, parts in peers:
        mine, theirs = make(), make_theirs()
        theirs(1)  # compile, warm up
        part = scaled(lambda theirs=theirs, parts=parts: theirs(epochs // parts), parts)
        whole = scaled(lambda make_theirs=make_theirs: make_theirs()(epochs), 1)
        title = f"{what}, {epochs:,} epochs"
        title = f"{title} against {name}" + (f" (1/{parts} timed)" if parts > 1 else "")
        figures += [
            against(title, lambda mine=mine: mine(epochs), part, repeats=repeats, goal=goal),
            against(f"cold {title}", lambda: make()(epochs), part if parts > 1 else whole,
                    repeats=repeats, goal=None),
        ]  # fmt: skip
    return figures


def bench_loop(repeats: int, smoke: bool) -> list[Figure]:
    """The documents' job by `fit`: 80 rows, mini-batches of 32 and 16, a straight line."""
    epochs, goals = (10, (None, None)) if smoke else (1_000, (100.0, 1_000.0))
    data = wdjax.datasets.linear(seed=0).train
    on_device = jax.tree.map(jnp.asarray, data)
    make = functools.partial(with_optax.line, read_loss=True)
    peers = [
        Peer("Optax, jax arrays, losses read", lambda: make(on_device), goals[0]),
        Peer("Optax, NumPy arrays, losses read", lambda: make(data)),
        Peer("Optax, NumPy arrays", lambda: with_optax.line(data)),
    ]
    if available("torch"):
        peers.append(Peer("PyTorch", peer("torch", "line", data)))
    peers += keras_peers("line", data, goals[1], parts=epochs // 5)
    ours = functools.partial(with_wdjax.line, data)
    return compared("fit, line", ours, peers, epochs, max(2, repeats // 3))


def bench_digits(repeats: int, smoke: bool) -> list[Figure]:
    """A network of 64-128-10 by `fit`: 1,437 digits, mini-batches of 64, AdamW."""
    epochs, goal = (2, None) if smoke else (20, 10.0)
    data = wdjax.datasets.digits(seed=0).train
    peers = [Peer("Optax, NumPy arrays", lambda: with_optax.digits(data))]
    if available("torch"):
        peers += [
            Peer("PyTorch, fused, slices", peer("torch", "digits", data), goal),
            Peer("PyTorch, DataLoader", peer("torch", "digits", data, loader=True), goal),
        ]
    peers += keras_peers("digits", data, None, parts=epochs // 2)
    ours = functools.partial(with_wdjax.digits, data)
    return compared("fit, digits MLP", ours, peers, epochs, max(2, repeats // 3))
