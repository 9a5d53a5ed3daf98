"""Adafactor as packages for PyTorch have it, whose relative steps decay relative to the weights.

η_t = η, or min(10⁻² or 10⁻⁶ t, 1/√t) for relative steps
ρ = max(ε₂, RMS(θ)), or 1 without scaling
θ⁺ = θ − η_t ρ (u + λ θ)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from wdjax._trees import checks
from wdjax.convert import _update_rules
from wdjax.convert._links import in_the_dtypes, rate_name
from wdjax.convert._pieces import Build, Piece, Settings, decay, given, named_rules, rate, shown
from wdjax.penalties import cubic, l2
from wdjax.rules import Rules
from wdjax.schedules import Strength, lr_scaled
from wdjax.transforms import decay_weights


class Options(NamedTuple):
    """What the packages have other names for.

    Attributes:
        lr: η, None for relative steps.
        eps: ε₁, added to g².
        floor: ε₂.
        clip: the RMS to which u is limited.
        power: of the falling share of the newest g².
        cap: the largest β₂.
        beta1: of the momentum, None without.
        dtype: of the momentum.
        scaled: whether ρ is not 1.
        warmup: whether relative steps start with 10⁻⁶ t.
        above: the size of both axes above which a matrix is factored.
    """

    lr: Strength | None
    eps: float
    floor: float
    clip: float
    power: float
    cap: float = 1.0
    beta1: float | None = None
    dtype: Any = None
    scaled: bool = True
    warmup: bool = False
    above: int = 0


def adafactor(read: Callable[[Settings], Options], *, is_decoupled: bool = True) -> Build:
    """All of Adafactor, from the settings that `read` takes the options from."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        o = read(s)
        eta = _relative(o.warmup) if o.lr is None else o.lr
        others = [key for key in s if key not in (rate_name(s), "weight_decay")]
        direction = optax.chain(
            _update_rules.factored(o.power, o.eps, 0.0, cap=o.cap, above=o.above),
            optax.clip_by_block_rms(o.clip),
        )
        pieces = [
            Piece(given(s, *others), "Adafactor's direction, limited; g² is factored", direction),
            rate("lr", eta)._replace(setting=given(s, rate_name(s))),
        ]
        if o.scaled:
            meaning = f"optax.scale_by_param_block_rms({o.floor}): times the RMS of the weights"
            pieces.append(Piece("its scale", meaning, optax.scale_by_param_block_rms(o.floor)))
        if o.beta1 is not None:
            average = optax.ema(o.beta1, debias=False, accumulator_dtype=o.dtype)
            meaning = f"optax.ema({o.beta1}, debias=False), of the steps"
            pieces.append(Piece("its momentum", meaning, optax.chain(average, in_the_dtypes)))
        return [*pieces, _decay(s, eta, o, rules)] if is_decoupled else pieces

    return link


def by_pairs(s: Settings) -> Options:
    """The options of transformers and MLX, whose ε are a pair."""
    name, eps = rate_name(s), s["eps"]
    if s["relative_step"] == (s[name] is not None):
        raise ValueError(
            f"`{name}` must be given exactly where relative_step=False: a relative step ignores "
            f"it. Got {name}={shown(s[name])} and relative_step={s['relative_step']}."
        )
    if s["warmup_init"] and not s["relative_step"]:
        raise ValueError("`warmup_init` needs relative_step=True; got False.")
    is_pair = isinstance(eps, tuple | list) and len(eps) == 2
    checks.must("eps", is_pair, "be a pair, that of g² and that of the weights", repr(eps))
    lr, (eps, floor) = s[name], eps
    return Options(
        lr, eps, floor, s["clip_threshold"], s["decay_rate"], beta1=s.get("beta1", s.get("beta_1")),
        scaled=s["scale_parameter"], warmup=s["warmup_init"],
    )  # fmt: skip


PAIRS: Settings = {
    "eps": (1e-30, 1e-3), "clip_threshold": 1.0, "decay_rate": -0.8, "weight_decay": 0.0,
    "scale_parameter": True, "relative_step": True, "warmup_init": False,
}  # fmt: skip


def _decay(s: Settings, eta: Strength, o: Options, rules: Rules) -> Piece:
    lam = s["weight_decay"]
    penalty = cubic(least=o.floor) if o.scaled else l2
    law = f"wdjax.lr_scaled({shown(lam)}, {shown(eta)}), wdjax.penalties.{penalty.name}"
    meaning = f"wdjax.decay_weights({law}, rules={named_rules(rules)}): on the weights, last"
    link = decay_weights(lr_scaled(lam, eta), penalty, rules=rules)
    return decay(given(s, "weight_decay"), lam, meaning, link)


def _relative(warmup: bool) -> Strength:
    def relative(count: Any) -> Any:
        t = jnp.asarray(count, float) + 1
        return jnp.minimum(1e-6 * t if warmup else 1e-2, 1 / jnp.sqrt(t))

    return relative


def capped(
    least: int, decay_rate: float, offset: int, cap: float, most: Any, momentum: Any,
    dtype: Any, eps: float | None,
) -> optax.GradientTransformation:  # fmt: skip
    """big_vision's direction: β₂ is at most `cap`, and the average comes before the rate."""

    def share(count: Any, exponent: Any) -> Any:
        return jnp.minimum(cap, 1 - (jnp.asarray(count, float) + 1) ** -exponent)

    added = 1e-30 if eps is None else eps
    return optax.chain(
        optax.scale_by_factored_rms(True, decay_rate, offset, least, added, share),
        optax.clip_by_block_rms(most) if most else optax.identity(),
        optax.ema(momentum, debias=False, accumulator_dtype=dtype) if momentum
        else optax.identity(),
        in_the_dtypes,
    )  # fmt: skip
