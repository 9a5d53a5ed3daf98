"""PyTorch's optimizers, by PyTorch's own names and defaults; see `wdjax.convert`."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import optax

from wdjax._trees import checks
from wdjax.convert import _update_rules
from wdjax.convert._pieces import (
    Converted,
    Groups,
    Piece,
    Settings,
    adam,
    check_numbers,
    from_torch,
    given,
    in_the_gradient,
    on_the_weights,
    rate,
    shown,
)
from wdjax.rules import EVERYTHING, Rules
from wdjax.schedules import Strength, as_schedule


def torch_sgd(
    *,
    lr: Strength = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: Strength = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    groups: Groups = (),
    rules: Rules = EVERYTHING,
    **execution: Any,
) -> Converted:
    """Equivalent of `torch.optim.SGD`.

        g ← g + λ θ,  b ← μ b + (1 − d) g,  θ⁺ = θ − η b;  the first b is g, whatever d

    Args:
        lr: η, a number or a schedule of the step.
        momentum: μ >= 0.
        dampening: d.
        weight_decay: λ, in the gradient, and so in the momentum.
        nesterov: step along g + μ b.
        maximize: maximize the loss: −g in place of g.
        groups: (selector, settings) pairs, as PyTorch's param groups: a selector as in `rules`,
            and a dict of settings that differ. The first match wins; the settings above are for
            the parameters that no group claims. `lr_scale` multiplies the learning rate.
        rules: multipliers of the weight decay. PyTorch decays everything, biases and norms too.
        **execution: foreach, fused, capturable, differentiable; they change no step.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown, or a group is not a pair.
        ValueError: a setting is out of range, or Nesterov's momentum is combined with dampening.

    Example:
        >>> print(torch_sgd(lr=0.1, momentum=0.9, weight_decay=5e-4))
        torch.optim.SGD
          weight_decay=0.0005
            → wdjax.add_decayed_weights(0.0005, rules=everything): in the gradient, before the ...
          momentum=0.9, nesterov=False
            → optax.trace(0.9)
          lr=0.1
            → optax.scale_by_learning_rate(0.1)

    References:
        PyTorch 2.13, `torch/optim/sgd.py`; Sutskever et al., *On the importance of initialization
        and momentum in deep learning*, 2013.
    """
    return from_torch("SGD", _sgd, locals())


def torch_adam(
    *,
    lr: Strength = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Strength = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    groups: Groups = (),
    rules: Rules = EVERYTHING,
    **execution: Any,
) -> Converted:
    """Equivalent of `torch.optim.Adam`, whose weight decay is in the gradient.

        g ← g + λ θ,  θ⁺ = θ − η m̂ / (√v̂ + ε)

    Args:
        lr: η, a number or a schedule of the step.
        betas: β₁ and β₂, in [0, 1).
        eps: ε, outside the root.
        weight_decay: λ, in the gradient: it is divided by √v̂ like the rest of it.
        amsgrad: the largest v so far in place of v, before its bias is corrected.
        maximize: maximize the loss: −g in place of g.
        decoupled_weight_decay: decay the weights instead, which is `torch_adamw`.
        groups: (selector, settings) pairs, as in `torch_sgd`.
        rules: multipliers of the weight decay; PyTorch decays everything.
        **execution: foreach, fused, capturable, differentiable; they change no step.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown, or a group is not a pair.
        ValueError: a setting is out of range.

    Example:
        >>> print(torch_adam(weight_decay=1e-4))
        torch.optim.Adam
          weight_decay=0.0001, decoupled_weight_decay=False
            → wdjax.add_decayed_weights(0.0001, rules=everything): in the gradient, before the ...
          betas=(0.9, 0.999), eps=1e-08, amsgrad=False
            → optax.scale_by_adam(0.9, 0.999, eps=1e-08)
          lr=0.001
            → optax.scale_by_learning_rate(0.001)

    References:
        PyTorch 2.13, `torch/optim/adam.py`; Kingma and Ba, *Adam*, 2015, arXiv:1412.6980.
    """
    return from_torch("Adam", _adam, locals())


def torch_adamw(
    *,
    lr: Strength = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Strength = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = True,
    groups: Groups = (),
    rules: Rules = EVERYTHING,
    **execution: Any,
) -> Converted:
    """Equivalent of `torch.optim.AdamW`, whose default decay is 100 times that of `optax.adamw`.

        θ⁺ = (1 − η λ) θ − η m̂ / (√v̂ + ε)

    Args:
        lr: η, a number or a schedule of the step; it scales the decay, too.
        betas: β₁ and β₂, in [0, 1).
        eps: ε, outside the root.
        weight_decay: λ.
        amsgrad: the largest v so far in place of v, before its bias is corrected.
        maximize: maximize the loss: −g in place of g.
        decoupled_weight_decay: among the `defaults` of a torch optimizer; False is `torch_adam`.
        groups: (selector, settings) pairs, as in `torch_sgd`.
        rules: multipliers of the weight decay; PyTorch decays everything.
        **execution: foreach, fused, capturable, differentiable; they change no step.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown, or a group is not a pair.
        ValueError: a setting is out of range.

    Example:
        >>> print(torch_adamw(groups=[("bias", {"weight_decay": 0.0})]))
        torch.optim.AdamW
        'bias': weight_decay=0.0
          weight_decay=0.0, decoupled_weight_decay=True
            → nothing: no decay
        every other parameter
          ...
          weight_decay=0.01, decoupled_weight_decay=True
            → wdjax.decay_weights(wdjax.lr_scaled(0.01, 0.001), rules=everything): on the ...

    References:
        PyTorch 2.13, `torch/optim/adamw.py`; Loshchilov and Hutter, *Decoupled Weight Decay
        Regularization*, 2019, arXiv:1711.05101, whose own decay is not scaled by the height of
        the learning rate: `paper_adamw`.
    """
    return from_torch("AdamW", _adam, locals())


def torch_nadam(
    *,
    lr: Strength = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Strength = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    groups: Groups = (),
    rules: Rules = EVERYTHING,
    **execution: Any,
) -> Converted:
    """Equivalent of `torch.optim.NAdam`; `optax.nadam` has no schedule of the momentum.

        μ_t = β₁ (1 − ½ 0.96^(t ψ)),  the step looks ahead along μ_{t+1} m + (1 − μ_t) g

    Args:
        lr: η, a number or a schedule of the step.
        betas: β₁ and β₂, in [0, 1).
        eps: ε, outside the root.
        weight_decay: λ, in the gradient unless decoupled.
        momentum_decay: ψ >= 0.
        decoupled_weight_decay: decay the weights, scaled by η, in place of the gradient.
        maximize: maximize the loss: −g in place of g.
        groups: (selector, settings) pairs, as in `torch_sgd`.
        rules: multipliers of the weight decay; PyTorch decays everything.
        **execution: foreach, fused, capturable, differentiable; they change no step.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown, or a group is not a pair.
        ValueError: a setting is out of range.

    Example:
        >>> print(torch_nadam())
        torch.optim.NAdam
          weight_decay=0.0, decoupled_weight_decay=False
            → nothing: no decay
          betas=(0.9, 0.999), eps=1e-08, momentum_decay=0.004
            → Dozat's schedule of the momentum; not optax.nadam, which has a constant one
          lr=0.002
            → optax.scale_by_learning_rate(0.002)

    References:
        PyTorch 2.13, `torch/optim/nadam.py`; Dozat, *Incorporating Nesterov Momentum into Adam*,
        2016.
    """
    return from_torch("NAdam", nadam, locals())


def torch_adagrad(
    *,
    lr: Strength = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: Strength = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
    groups: Groups = (),
    rules: Rules = EVERYTHING,
    **execution: Any,
) -> Converted:
    """Equivalent of `torch.optim.Adagrad`; `optax.adagrad` has its ε inside the root.

        g ← g + λ θ,  a ← a + g²,  θ⁺ = θ − η / (1 + t r) g / (√a + ε)

    Args:
        lr: η, a number or a schedule of the step.
        lr_decay: r >= 0, with t = 0 in the first step.
        weight_decay: λ, in the gradient.
        initial_accumulator_value: a at the start (0; Optax has 0.1).
        eps: ε, outside the root.
        maximize: maximize the loss: −g in place of g.
        groups: (selector, settings) pairs, as in `torch_sgd`; the start of a
            cannot differ between groups.
        rules: multipliers of the weight decay; PyTorch decays everything.
        **execution: foreach, fused, differentiable; they change no step.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown, or a group is not a pair.
        ValueError: a setting is out of range.

    Example:
        >>> print(torch_adagrad(lr=0.1))
        torch.optim.Adagrad
          weight_decay=0.0
            → nothing: no decay
          initial_accumulator_value=0.0, eps=1e-10
            → g / (√a + 1e-10), a from 0.0; not optax.adagrad, whose ε is in the root
          lr=0.1, lr_decay=0.0
            → optax.scale_by_learning_rate(0.1)

    References:
        PyTorch 2.13, `torch/optim/adagrad.py`; Duchi, Hazan and Singer, *Adaptive Subgradient
        Methods*, 2011.
    """
    if any("initial_accumulator_value" in own for _, own in groups):
        raise ValueError(
            "`initial_accumulator_value` of a group has no effect in torch.optim.Adagrad. "
            "Pass it for all parameters."
        )
    return from_torch("Adagrad", adagrad, locals())


def torch_rmsprop(
    *,
    lr: Strength = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: Strength = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    groups: Groups = (),
    rules: Rules = EVERYTHING,
    **execution: Any,
) -> Converted:
    """Equivalent of `torch.optim.RMSprop`.

        g ← g + λ θ,  v ← α v + (1 − α) g²,  b ← μ b + g / (√v + ε),  θ⁺ = θ − η b

    Args:
        lr: η, a number or a schedule of the step. It multiplies the momentum; in Keras and in
            `optax.rmsprop` each step enters the momentum with the rate of its own time.
        alpha: α, in [0, 1) (0.99; Optax has 0.9).
        eps: ε, outside the root.
        weight_decay: λ, in the gradient.
        momentum: μ >= 0.
        centered: √(v − m²) in place of √v, with m the average gradient.
        maximize: maximize the loss: −g in place of g.
        groups: (selector, settings) pairs, as in `torch_sgd`.
        rules: multipliers of the weight decay; PyTorch decays everything.
        **execution: foreach, capturable, differentiable; they change no step.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown, or a group is not a pair.
        ValueError: a setting is out of range.

    Example:
        >>> print(torch_rmsprop(centered=True))
        torch.optim.RMSprop
          weight_decay=0.0
            → nothing: no decay
          alpha=0.99, eps=1e-08, centered=True
            → optax.scale_by_stddev(0.99, 1e-08, eps_in_sqrt=False)
          lr=0.01
            → optax.scale_by_learning_rate(0.01)

    References:
        PyTorch 2.13, `torch/optim/rmsprop.py`; Graves, *Generating Sequences with Recurrent Neural
        Networks*, 2013, arXiv:1308.0850 (centered).
    """
    return from_torch("RMSprop", rmsprop, locals())


# The chains.


def torch_muon(
    *,
    lr: Strength = 1e-3,
    weight_decay: Strength = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    groups: Groups = (),
    rules: Rules = EVERYTHING,
    ns_dtype: Any = jnp.bfloat16,
    outputs: int = -1,
    **execution: Any,
) -> Converted:
    """Equivalent of `torch.optim.Muon`, for matrices only.

        θ⁺ = (1 − η λ) θ − η c NS(μ b + (1 − μ) g),  c = √max(1, outputs / inputs)

    Args:
        lr: η, a number or a schedule of the step.
        weight_decay: λ, scaled by η alone, not by c.
        momentum: μ, in [0, 1).
        nesterov: orthogonalize μ b + (1 − μ) g, without it b.
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
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown, or a group is not a pair.
        ValueError: a setting is out of range; at `init`, a parameter is not a matrix.

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


def _sgd(s: Settings, rules: Rules) -> list[Piece]:
    return [*_gradient(s, rules), *momentum(s, rules), rate(given(s, "lr"), s["lr"])]


def momentum(s: Settings, rules: Rules) -> list[Piece]:
    """PyTorch's, of gradients that no learning rate has scaled."""
    mu, dampening = s["momentum"], s["dampening"]
    check_numbers(s, "momentum")
    if s["nesterov"] and (mu == 0 or dampening != 0):
        raise ValueError(
            "`nesterov` must come with momentum and without dampening, as in PyTorch; got "
            f"{given(s, 'momentum', 'dampening')}."
        )
    pieces = []
    if mu != 0 and dampening != 0:
        damped = optax.scale_by_schedule(lambda count: jnp.where(count == 0, 1.0, 1 - dampening))
        meaning = f"the gradient times {1 - dampening:g}, but for the first"
        pieces.append(Piece(given(s, "dampening"), meaning, damped))
    if mu != 0:
        code = f"optax.trace({mu}{', nesterov=True' if s['nesterov'] else ''})"
        link = optax.trace(mu, nesterov=s["nesterov"])
        pieces.append(Piece(given(s, "momentum", "nesterov"), code, link))
    return pieces


def _adam(s: Settings, rules: Rules) -> list[Piece]:
    (b1, b2), eps = _betas(s), s["eps"]
    check_numbers(s, "eps")
    direction = adam(given(s, "betas", "eps", "amsgrad"), b1, b2, eps)
    if s["amsgrad"]:
        meaning = "the largest v, then its bias; not optax.amsgrad, which does both the other way"
        link = _update_rules.adam(b1, b2, amsgrad=True, denominator=lambda root, c: root / c + eps)
        direction = Piece(direction.setting, meaning, link)
    return _with_either_decay(s, rules, direction)


def nadam(s: Settings, rules: Rules) -> list[Piece]:
    """Return the pieces of `torch_nadam`."""
    b1, b2 = _betas(s)
    check_numbers(s, "eps", "momentum_decay")
    link = _update_rules.nadam(b1, b2, s["eps"], s["momentum_decay"])
    meaning = "Dozat's schedule of the momentum; not optax.nadam, which has a constant one"
    direction = Piece(given(s, "betas", "eps", "momentum_decay"), meaning, link)
    return _with_either_decay(s, rules, direction)


def adagrad(s: Settings, rules: Rules) -> list[Piece]:
    """Return the pieces of `torch_adagrad`."""
    initial, eps = s["initial_accumulator_value"], s["eps"]
    check_numbers(s, "initial_accumulator_value", "eps", "lr_decay")
    meaning = f"g / (√a + {eps}), a from {initial}; not optax.adagrad, whose ε is in the root"
    return [
        *_gradient(s, rules),
        Piece(
            given(s, "initial_accumulator_value", "eps"),
            meaning,
            _update_rules.adagrad(initial, eps),
        ),
        rate(given(s, "lr", "lr_decay"), _falling(s["lr"], s["lr_decay"])),
    ]


def _betas(s: Settings) -> tuple[float, float]:
    betas = s["betas"]
    if not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise TypeError(f"`betas` must be a pair (β₁, β₂); got {betas!r}.")
    check_numbers(s, "betas", below=1)
    return betas[0], betas[1]


def _falling(lr: Strength, lr_decay: float) -> Strength:
    """η / (1 + r t)."""
    if lr_decay == 0:
        return lr
    schedule = as_schedule(lr, "lr")

    def falling(count: Any) -> Any:
        return schedule(count) / (1 + lr_decay * jnp.asarray(count, float))

    falling.__name__ = f"{shown(lr).strip('<>')} / (1 + {lr_decay:g} t)"
    return falling


def rmsprop(s: Settings, rules: Rules) -> list[Piece]:
    """Return the pieces of `torch_rmsprop`."""
    alpha, eps, momentum = s["alpha"], s["eps"], s["momentum"]
    check_numbers(s, "alpha", below=1)
    check_numbers(s, "eps", "momentum")
    scale = optax.scale_by_stddev if s["centered"] else optax.scale_by_rms
    meaning = f"optax.{scale.__name__}({alpha}, {eps}, eps_in_sqrt=False)"
    link = scale(alpha, eps, eps_in_sqrt=False)
    pieces = [
        *_gradient(s, rules),
        Piece(given(s, "alpha", "eps", "centered"), meaning, link),
    ]
    if momentum != 0:
        meaning = f"optax.trace({momentum}), before the learning rate; optax.rmsprop has it after"
        pieces.append(Piece(given(s, "momentum"), meaning, optax.trace(momentum)))
    return [*pieces, rate(given(s, "lr"), s["lr"])]


def _with_either_decay(s: Settings, rules: Rules, direction: Piece) -> list[Piece]:
    """Place the decay before the direction, or decoupled at the end."""
    setting = given(s, "weight_decay", "decoupled_weight_decay")
    step = rate(given(s, "lr"), s["lr"])
    if s["decoupled_weight_decay"]:
        return [
            *ascent(s),
            direction,
            step,
            *on_the_weights(setting, s["weight_decay"], s["lr"], rules),
        ]
    return [*ascent(s), *in_the_gradient(setting, s["weight_decay"], rules), direction, step]


def _gradient(s: Settings, rules: Rules) -> list[Piece]:
    """The gradient that the optimizer sees: g + λ θ, or −g + λ θ."""
    setting = given(s, "weight_decay")
    return [*ascent(s), *in_the_gradient(setting, s["weight_decay"], rules)]


def ascent(s: Settings) -> list[Piece]:
    """−g, before the decay is added to it."""
    return [Piece("maximize=True", "optax.scale(-1.0)", optax.scale(-1.0))] * bool(
        s.get("maximize")
    )


def _muon(s: Settings, rules: Rules, ns_dtype: Any, outputs: int) -> list[Piece]:
    check_numbers(s, "momentum", below=1)
    check_numbers(s, "eps")
    checks.choice("adjust_lr_fn", s["adjust_lr_fn"], (None, "original", "match_rms_adamw"))
    checks.number("outputs", outputs, least=-2, most=1)

    def scale(shape: tuple[int, ...]) -> float:
        rows, columns = shape[outputs % 2], shape[1 - outputs % 2]
        if s["adjust_lr_fn"] == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, rows / columns))

    iteration = functools.partial(
        _update_rules.newton_schulz,
        coefficients=s["ns_coefficients"],
        steps=s["ns_steps"],
        eps=s["eps"],
        dtype=ns_dtype,
    )
    dtype = "the gradients' dtype" if ns_dtype is None else jnp.dtype(ns_dtype).name
    meaning = f"Newton-Schulz in {dtype}; not optax.contrib.muon, which corrects the bias of b"
    link = _update_rules.muon(
        s["momentum"], nesterov=s["nesterov"], orthogonalize=iteration, scale=scale
    )
    names = ("momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    return [
        Piece(given(s, *names), meaning, link),
        rate(given(s, "lr"), s["lr"]),
        *on_the_weights(given(s, "weight_decay"), s["weight_decay"], s["lr"], rules),
    ]
