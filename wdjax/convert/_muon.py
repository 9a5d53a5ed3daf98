"""Muon with a λ for matrices and one for the rest, as Keras and Optax have it."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wdjax._lift.leaves import Params
from wdjax._trees import checks, paths
from wdjax.convert import _update_rules
from wdjax.convert._pieces import (
    Piece,
    Settings,
    check_numbers,
    given,
    on_the_weights,
    rate,
)
from wdjax.rules import Rules


def muon(s: Settings, rules: Rules) -> list[Piece]:
    """Orthogonalized steps for matrices, Adam for the rest, and a λ for either.

    b ← μ b + g,  θ⁺ = (1 − η λ) θ − η c √max(rows, columns) NS(g + μ b)  for matrices
    θ⁺ = (1 − η λ_adam) θ − η r Adam  for vectors, embeddings and what is excluded
    """
    check_numbers(s, "momentum", "adam_beta_1", "adam_beta_2", below=1)
    check_numbers(s, "epsilon", "adam_lr_ratio")
    checks.names("exclude_layers", s["exclude_layers"])

    for_adam = by_owner(lambda leaf: _is_for_adam(leaf, s))
    parts = {
        False: _orthogonalized(s),
        True: optax.chain(_adam(s), optax.scale(s["adam_lr_ratio"])),
    }
    names = ("momentum", "nesterov", "ns_steps", "muon_a", "muon_b", "muon_c", "rms_rate")
    adams = ("adam_beta_1", "adam_beta_2", "epsilon", "adam_lr_ratio")
    chosen = ("exclude_layers", "exclude_embeddings")
    rates = dict.fromkeys(("weight_decay", "adam_weight_decay"), s["learning_rate"])
    return [
        Piece(given(s, *names), "matrices: Newton-Schulz, without a correction of b's bias"),
        Piece(given(s, *adams), "the rest: Adam with ε before the correction of the bias"),
        Piece(given(s, *chosen), "optax.partition of the two", optax.partition(parts, for_adam)),
        rate(given(s, "learning_rate"), s["learning_rate"]),
        *decays_of(s, rates, rules, for_adam),
    ]


def by_owner(is_for_adam: Callable[[paths.Leaf], bool]) -> Callable[[Params], Params]:
    """Make (tree -> whether Adam has each leaf)."""

    def for_adam(tree: Params) -> Params:
        flags = [is_for_adam(leaf) for leaf in paths.leaves(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), flags)

    return for_adam


def decays_of(
    s: Settings, rates: Settings, rules: Rules, for_adam: Callable[[Params], Params]
) -> list[Piece]:
    """The two decays, each by its own λ and rate: of matrices, and of what Adam has."""
    pieces = []
    for (name, lr), whose in zip(rates.items(), ("matrices: ", "the rest: "), strict=True):
        (piece,) = on_the_weights(given(s, name), s[name], lr, rules)
        pieces.append(piece._replace(meaning=whose + piece.meaning))
    first, second = pieces
    both = _either(for_adam, first.link, second.link)
    return [first._replace(link=None), second._replace(link=both)]


def _either(
    is_second: Callable[[Params], Params], *decays: Any
) -> optax.GradientTransformationExtraArgs:
    """Both decays see all leaves, so that the rules do, and each leaf takes one of them."""

    def init(params: Params) -> Any:
        return tuple(decay.init(params) for decay in decays)

    def update(updates: Params, state: Any, params: Any = None, **extra: Any) -> Any:
        pairs = zip(decays, state, strict=True)
        both = [decay.update(updates, own, params, **extra) for decay, own in pairs]
        (first, second), states = zip(*both, strict=True)
        flags = is_second(params)
        return jax.tree.map(lambda is_b, a, b: b if is_b else a, flags, first, second), states

    return optax.GradientTransformationExtraArgs(init, update)


def _is_for_adam(leaf: paths.Leaf, s: Settings) -> bool:
    return (
        leaf.ndim != 2
        or (s["exclude_embeddings"] and "embedding" in leaf.path.lower())
        or any(re.search(pattern, leaf.path) for pattern in s["exclude_layers"] or ())
    )


def _orthogonalized(s: Settings) -> optax.GradientTransformation:
    mu, coefficients = s["momentum"], (s["muon_a"], s["muon_b"], s["muon_c"])

    def iterated(x: Any) -> Any:
        x = x / (1 - mu)  # `muon` averages, Keras sums
        x = x / (jnp.linalg.norm(x) + 1e-7)
        return _update_rules.newton_schulz(x, coefficients, s["ns_steps"], 1.0, None)

    def scale(shape: tuple[int, ...]) -> float:
        return 1.0 if s["rms_rate"] is None else float(max(shape) ** 0.5 * s["rms_rate"])

    return _update_rules.muon(mu, nesterov=s["nesterov"], orthogonalize=iterated, scale=scale)


def _adam(s: Settings) -> optax.GradientTransformation:
    return _update_rules.adam(
        s["adam_beta_1"],
        s["adam_beta_2"],
        amsgrad=False,
        denominator=lambda root, c: (root + s["epsilon"]) / c,
    )
