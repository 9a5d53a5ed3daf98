"""Links of converted chains: each is (settings, rules) -> pieces, and a row of the table is a list.

A link finds the learning rate, λ and the moments under whatever name its package has for them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wdjax._trees import checks
from wdjax.convert import _update_rules
from wdjax.convert._pieces import (
    Build,
    Piece,
    Settings,
    check_numbers,
    decay,
    given,
    in_the_gradient,
    is_zero,
    named_rules,
    rate,
    shown,
)
from wdjax.convert._pieces import adam as adam_piece
from wdjax.convert._torch import momentum as momentum
from wdjax.rules import Rules, mask
from wdjax.schedules import (
    Schedule,
    Strength,
    as_schedule,
    corrected,
    delayed,
    lr_scaled,
    schedule_scaled,
)
from wdjax.transforms import add_decayed_weights, decay_after_step, decay_weights, prox_weights

_RATES = ("lr", "learning_rate_init", "learning_rate", "learn_rate")
_DECAYS = ("weight_decay", "adam_weight_decay", "weight_decay_rate", "wd", "L2", "alpha")
_INITIALS = ("initial_lr", "max_lr")
_SHARES = (  # all in [0, 1)
    *("betas", "beta_1", "beta_2", "beta1", "beta2", "b1", "b2", "adam_b1", "adam_b2"),
    *("beta", "rho"),
)
_ACTS = {
    decay_weights: "on the weights, last in the chain",
    decay_after_step: "on what the step has reached, last in the chain",
    prox_weights: "what the step has reached, divided by 1 + s",
}


def _name(s: Settings, names: tuple[str, ...]) -> str:
    return next(name for name in names if name in s)


def rate_name(s: Settings) -> str:
    """What the learning rate is called."""
    return _name(s, _RATES)


# Which links, by a setting.


def when(flag: str, *links: Build) -> Build:
    """The links where a setting is true; else nothing."""
    return lambda s, rules: _because(s, flag, chain(*links)(s, rules)) if s[flag] else []


def unless(flag: str, *links: Build) -> Build:
    """The links where a setting is false; else nothing."""
    return lambda s, rules: [] if s[flag] else _because(s, flag, chain(*links)(s, rules))


def by(setting: str, **choices: Build) -> Build:
    """The link of that name."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        checks.choice(setting, s[setting], choices)
        return _because(s, setting, choices[s[setting]](s, rules))

    return link


def _because(s: Settings, name: str, pieces: list[Piece]) -> list[Piece]:
    """Name the setting that chose the pieces, where they do not."""
    return [
        piece
        if f"{name}=" in piece.setting
        else piece._replace(setting=f"{piece.setting}, {given(s, name)}")
        for piece in pieces
    ]


def only(name: str, value: Any, why: str) -> Build:
    """Refuse any other value of a setting that has no equivalent here."""
    return off(why, **{name: value})


def off(why: str, **values: Any) -> Build:
    """Refuse any other values of settings that have no equivalent here."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        for name, value in values.items():
            if s[name] != value:
                raise ValueError(f"`{name}` must be {value!r}; got {s[name]!r}. {why}")
        return [Piece(given(s, *values), "the same here")]

    return link


def chain(*links: Build) -> Build:
    """All links, one after the other."""
    return lambda s, rules: [piece for link in links for piece in link(s, rules)]


# Where decay acts, and its law.


def coupled(s: Settings, rules: Rules) -> list[Piece]:
    """Classic decay, first: g + λ θ."""
    name = _name(s, _DECAYS)
    return in_the_gradient(given(s, name), 0.0 if s[name] is None else s[name], rules)


def added(where: str) -> Build:
    """λ θ joins what has been computed so far."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        name = _name(s, _DECAYS)
        code = f"wdjax.add_decayed_weights({shown(s[name])}, rules={named_rules(rules)})"
        joins = add_decayed_weights(s[name], rules=rules)
        return [decay(given(s, name), s[name], f"{code}: {where}", joins)]

    return link


def last(
    law: Callable[..., Schedule] = lr_scaled, place: Any = decay_weights, wait: int = 0
) -> Build:
    """Decoupled decay of strength law(λ, η), last, from step `wait` on; some take η₀, too."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        decays, rates = _name(s, _DECAYS), rate_name(s)
        names, values = [decays], [0.0 if s[decays] is None else s[decays], s[rates]]
        if law in (corrected, schedule_scaled):
            names, values = [decays, _name(s, _INITIALS)], [*values, initial_rate(s)]
        code = f"wdjax.{law.__name__}({', '.join(map(shown, values))})"
        strength = law(*values)
        if wait:
            code, strength = f"wdjax.delayed({code}, {wait})", delayed(strength, wait)
        meaning = f"wdjax.{place.__name__}({code}, rules={named_rules(rules)}): {_ACTS[place]}"
        return [decay(given(s, *names), values[0], meaning, place(strength, rules=rules))]

    return link


def initial_rate(s: Settings) -> Any:
    """The rate that the source's constructor was given; a schedule does not tell it."""
    name = _name(s, _INITIALS)
    if s[name] is None and callable(s["lr"]):
        raise ValueError(
            f"`{name}` must be given where `lr` is a schedule: this decay is divided by the "
            "rate that the original optimizer was constructed with, usually the peak."
        )
    return s["lr"] if s[name] is None else s[name]


def eta_times_alpha(s: Settings, rules: Rules) -> list[Piece]:
    """−η α, and decay by η λ: the AdamW paper's law, with Chainer's names."""
    eta, alpha, lam = s["eta"], s["alpha"], s["weight_decay_rate"]
    by_alpha = lambda eta, n: as_schedule(alpha, "alpha")(n) * eta(n)
    code = f"wdjax.lr_scaled({shown(lam)}, {shown(eta)})"
    meaning = f"wdjax.decay_weights({code}, rules={named_rules(rules)}): {_ACTS[decay_weights]}"
    return [
        rate(given(s, "alpha", "eta"), changed(eta, f"times {shown(alpha)}", by_alpha)),
        decay(given(s, "weight_decay_rate"), lam, meaning,
              decay_weights(lr_scaled(lam, eta), rules=rules)),
    ]  # fmt: skip


def by_batch(s: Settings, rules: Rules) -> list[Piece]:
    """Coupled decay, g + (α / batch) θ: scikit-learn divides α by the examples of a batch."""
    checks.whole("batch_size", s["batch_size"], least=1)
    return in_the_gradient(given(s, "alpha", "batch_size"), s["alpha"] / s["batch_size"], rules)


def decayed_first(*links: Build, law: Callable[..., Schedule] = lr_scaled) -> Build:
    """Decay, then the step from there: for steps that look at the weights, as Keras takes them."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        *others, decays = chain(*links, last(law))(s, rules)
        step = optax.chain(*(piece.link for piece in others if piece.link))
        meaning = decays.meaning.replace(
            _ACTS[decay_weights], "first; the step is taken from there"
        )
        whole = _decayed_first(decays.link, step)
        return [*(p._replace(link=None) for p in others), Piece(decays.setting, meaning, whole)]

    return link


def _decayed_first(decay: Any, step: Any) -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> Any:
        return decay.init(params), step.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        nothing = optax.tree.zeros_like(updates)
        taken, decay_state = decay.update(nothing, state[0], params, **extra)
        moved, step_state = step.update(updates, state[1], optax.apply_updates(params, taken))
        return optax.tree.add(taken, moved), (decay_state, step_state)

    return optax.GradientTransformationExtraArgs(init, update)


# The learning rate.


def rated(s: Settings, rules: Rules) -> list[Piece]:
    """−η."""
    name = rate_name(s)
    return [rate(given(s, name), s[name])]


def relative(s: Settings, rules: Rules) -> list[Piece]:
    """−min(η, 1/√t), Adafactor's."""
    name = rate_name(s)
    return [rate(given(s, name), changed(s[name], "min(…, 1/√t)", _relative))]


def _relative(lr: Schedule, count: Any) -> Any:
    return jnp.minimum(lr(count), 1 / jnp.sqrt(jnp.asarray(count, float) + 1))


def averaged(s: Settings, rules: Rules) -> list[Piece]:
    """The rate of ASGD, which is that of the step before, and its decay λ₀ without any λ."""
    check_numbers(s, "lambd", "alpha", "t0")
    eta = changed(s["lr"], "of the step before", lambda lr, n: _lagging(lr, n, s))
    link = decay_weights(lr_scaled(s["lambd"], eta), rules=rules)
    meaning = f"wdjax.decay_weights(wdjax.lr_scaled({shown(s['lambd'])}, η), ...): besides λ"
    return [
        rate(given(s, "lr", "alpha"), eta),
        decay(given(s, "lambd"), s["lambd"], meaning, link),
        Piece(given(s, "t0"), "nothing: it starts an average of the weights that is not kept here"),
    ]


def _lagging(lr: Schedule, count: Any, s: Settings) -> Any:
    before = lr(jnp.maximum(count - 1, 0))
    return before / (1 + s["lambd"] * before * jnp.asarray(count, float)) ** s["alpha"]


def changed(lr: Strength, how: str, formula: Callable[[Schedule, Any], Any]) -> Schedule:
    """formula(η, t) as a schedule of the step, and its name."""
    schedule = as_schedule(lr, "lr")

    def made(count: Any) -> Any:
        return formula(schedule, count)

    made.__name__ = f"{shown(lr).strip('<>')} {how}"
    return made


# Directions.

in_the_dtypes = optax.stateless(
    lambda updates, params: jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params)
)


def part(factory: Callable[..., Any], *names: str, **fixed: Any) -> Build:
    """A part of Optax: `names` are settings, in the order of its own arguments."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        values = _values(s, names)
        words = [*map(shown, values), *(f"{k}={v}" for k, v in fixed.items())]
        meaning = f"optax.{factory.__name__}({', '.join(words)})"
        return [Piece(given(s, *names), meaning, factory(*values, **fixed))]

    return link


def ours(factory: Callable[..., Any], meaning: str, *names: str) -> Build:
    """An update rule that Optax has not, or computes otherwise; settings as in `part`."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        return [Piece(given(s, *names), meaning, factory(*_values(s, names)))]

    return link


def told(meaning: str, *names: str) -> Build:
    """What is to be said of settings that change nothing here."""
    return lambda s, rules: [Piece(given(s, *names), meaning)]


def _values(s: Settings, names: tuple[str, ...]) -> list[Any]:
    """Settings as arguments, pairs one by one; what is a share must be in [0, 1)."""
    shares = (name for name in names if name in _SHARES and s[name] is not None)
    check_numbers(s, *shares, below=1)
    given_ones = (s[name] for name in names)
    return [x for v in given_ones for x in (v if isinstance(v, tuple | list) else (v,))]


def adam(s: Settings, rules: Rules) -> list[Piece]:
    """m̂ / (√v̂ + ε), or with AMSGrad as PyTorch has it."""
    b1, b2, eps = _values(s, ("betas", "eps"))
    setting = given(s, *(name for name in ("betas", "eps", "amsgrad") if name in s))
    if s.get("amsgrad"):
        link = _update_rules.adam(b1, b2, amsgrad=True, denominator=lambda root, c: root / c + eps)
        meaning = "the largest v, then its bias; not optax.amsgrad, which does both the other way"
        return [Piece(setting, meaning, link)]
    return [adam_piece(setting, b1, b2, eps)]


def early_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with ε added before the bias of √v is corrected."""
    return _update_rules.adam(b1, b2, amsgrad=False, denominator=lambda root, c: (root + eps) / c)


def laprop(
    s: Settings, rules: Rules, below: Callable[[float], Any] = lambda eps: None
) -> list[Piece]:
    """LaProp whose momentum holds the rates, as in timm; `below` makes the denominator of ε."""
    b1, b2, eps = _values(s, ("betas", "eps"))
    lr = as_schedule(s["lr"], "lr")
    link = _update_rules.laprop(b1, b2, eps, lambda t: lr(t - 1), below(eps))
    meaning = "LaProp; its momentum weighs each step by the rate of its time, and divides by them"
    return [Piece(given(s, "betas", "eps"), meaning, link)]


def _clipped(s: Settings, rules: Rules) -> list[Piece]:
    most = s["max_grad_norm"]
    return [] if most is None else part(optax.clip_by_global_norm, "max_grad_norm")(s, rules)


def _trust_ratio(s: Settings, rules: Rules) -> list[Piece]:
    """None for what does not decay, as in timm."""
    ratio, where = optax.scale_by_trust_ratio(), "everywhere"
    if not s["always_adapt"]:
        still = is_zero(s["weight_decay"])
        ratio, where = optax.masked(ratio, mask((("**", 0.0),) if still else rules)), "where λ > 0"
    return [Piece(given(s, "always_adapt"), f"optax.scale_by_trust_ratio(), {where}", ratio)]


lamb = chain(_clipped, adam, added("between Adam and the trust ratio"), _trust_ratio, rated)


def lambw(law: Callable[..., Schedule] = lr_scaled) -> Build:
    """LAMB with decay of the weights: the trust ratio is of decayed ones."""
    return chain(_clipped, adam, decayed_first(_trust_ratio, rated, law=law))
