"""Keras' Muon, whose matrices and other parameters have a λ each; see `wdjax.convert`."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wdjax._lift.leaves import Params
from wdjax._trees import paths
from wdjax._trees.kinds import Kind
from wdjax.convert import _update_rules
from wdjax.convert._pieces import (
    Piece,
    Settings,
    check_list,
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
    check_list("exclude_layers", s["exclude_layers"])
    others = Kind("not Keras' matrices", lambda leaf: _is_for_adam(leaf, s))
    matrices = Kind("Keras' matrices", lambda leaf: not _is_for_adam(leaf, s))

    def labels(tree: Params) -> Params:
        names = ["adam" if others(leaf) else "muon" for leaf in paths.leaves(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), names)

    parts = {
        "muon": _orthogonalized(s),
        "adam": optax.chain(_adam(s), optax.scale(s["adam_lr_ratio"])),
    }
    names = ("momentum", "nesterov", "ns_steps", "muon_a", "muon_b", "muon_c", "rms_rate")
    adams = ("adam_beta_1", "adam_beta_2", "epsilon", "adam_lr_ratio")
    chosen = ("exclude_layers", "exclude_embeddings")
    eta = s["learning_rate"]
    return [
        Piece(given(s, *names), "matrices: Newton-Schulz, without a correction of b's bias"),
        Piece(given(s, *adams), "the rest: Adam with ε before the correction of the bias"),
        Piece(given(s, *chosen), "optax.partition of the two", optax.partition(parts, labels)),
        rate(given(s, "learning_rate"), eta),
        *_decay(s, "weight_decay", ((others, 0.0), *rules)),
        *_decay(s, "adam_weight_decay", ((matrices, 0.0), *rules)),
    ]


def _decay(s: Settings, name: str, rules: Rules) -> list[Piece]:
    return on_the_weights(given(s, name), s[name], s["learning_rate"], rules)


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
