"""PyTorch's Muon, by PyTorch's own names and defaults; see `wdjax.convert`."""

import functools
import math
from typing import Any

import jax.numpy as jnp

from wdjax import foreign
from wdjax.conversions import (
    Converted,
    Groups,
    Piece,
    Settings,
    check_below_one,
    check_numbers,
    from_torch,
    given,
    on_the_weights,
    rate,
)
from wdjax.rules import Rules
from wdjax.schedules import Strength
from wdjax.transforms import EVERYTHING

QUINTIC = (3.4445, -4.7750, 2.0315)
_SCALES = (None, "original", "match_rms_adamw")


def torch_muon(
    *,
    lr: Strength = 1e-3,
    weight_decay: Strength = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = QUINTIC,
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    groups: Groups = (),
    rules: Rules = EVERYTHING,
    ns_dtype: Any = jnp.bfloat16,
    outputs: int = -1,
    **execution: Any,
) -> Converted:
    """The equal of `torch.optim.Muon`, for matrices only.

        θ⁺ = (1 − η λ) θ − η c NS(μ b + (1 − μ) g),  c = √max(1, outputs / inputs)

    Args:
        lr: η, a number or a schedule of the step.
        weight_decay: λ, scaled by η alone, not by c.
        momentum: μ, in [0, 1).
        nesterov: orthogonalise μ b + (1 − μ) g, without it b.
        ns_coefficients: of the Newton-Schulz iteration.
        eps: the smallest norm to divide by.
        ns_steps: iterations, fewer than 100.
        adjust_lr_fn: None or "original" for the c above, "match_rms_adamw" for
            c = 0.2 √max(outputs, inputs).
        groups: (selector, settings) pairs, as in `torch_sgd`.
        rules: multipliers of the weight decay; PyTorch decays everything.
        ns_dtype: of the iteration; PyTorch has bfloat16, whose rounding depends on the machine.
            None keeps that of the gradients.
        outputs: the axis of a matrix that counts its outputs: -1 in Flax and Haiku, 0 in PyTorch
            and Equinox. Muon's c depends on it.
        **execution: Muon has none of foreach, fused, ...

    Returns:
        The optimiser, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown, or a group is no pair.
        ValueError: a setting is out of range; at `init`, a parameter is no matrix.

    Example:
        >>> print(torch_muon(lr=0.02))
        torch.optim.Muon
          momentum=0.95, nesterov=True, ...
            → Newton-Schulz in bfloat16; not optax.contrib.muon, which corrects the bias of b
          lr=0.02
            → optax.scale_by_learning_rate(0.02)
          weight_decay=0.1
            → wdjax.decay_weights(wdjax.lr_scaled(0.1, 0.02), rules=everything): on the ...

    References:
        PyTorch 2.13, `torch/optim/_muon.py`; Jordan et al., *Muon*, 2024; Liu et al., *Muon is
        Scalable for LLM Training*, 2025, arXiv:2502.16982 (match_rms_adamw).
    """
    arguments = {k: v for k, v in locals().items() if k not in ("ns_dtype", "outputs")}
    build = functools.partial(_muon, ns_dtype=ns_dtype, outputs=outputs)
    return from_torch("Muon", build, arguments, known=())


def _muon(s: Settings, rules: Rules, ns_dtype: Any, outputs: int) -> list[Piece]:
    check_below_one(s, "momentum")
    check_numbers(s, "eps")
    if s["adjust_lr_fn"] not in _SCALES:
        raise ValueError(f"`adjust_lr_fn` must be one of {_SCALES}; got {s['adjust_lr_fn']!r}.")
    if outputs not in (0, 1, -1, -2):
        raise ValueError(f"`outputs` must be an axis of a matrix; got {outputs}.")

    def scale(shape: tuple[int, ...]) -> float:
        rows, columns = shape[outputs % 2], shape[1 - outputs % 2]
        if s["adjust_lr_fn"] == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, rows / columns))

    iteration = functools.partial(
        foreign.newton_schulz,
        coefficients=s["ns_coefficients"],
        steps=s["ns_steps"],
        eps=s["eps"],
        dtype=ns_dtype,
    )
    dtype = "the gradients' dtype" if ns_dtype is None else jnp.dtype(ns_dtype).name
    meaning = f"Newton-Schulz in {dtype}; not optax.contrib.muon, which corrects the bias of b"
    link = foreign.muon(s["momentum"], nesterov=s["nesterov"], orthogonalize=iteration, scale=scale)
    names = ("momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    return [
        Piece(given(s, *names), meaning, link),
        rate(given(s, "lr"), s["lr"]),
        *on_the_weights(given(s, "weight_decay"), s["weight_decay"], s["lr"], rules),
    ]
