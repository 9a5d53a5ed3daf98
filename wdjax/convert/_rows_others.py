"""Rows of HeavyBall, pytorch_optimizer, MLX, Paddle and Chainer; see `wdjax.convert._row`."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wdjax.convert import _update_rules
from wdjax.convert._links import (
    adam,
    chain,
    coupled,
    early_adam,
    eta_times_alpha,
    last,
    momentum,
    only,
    ours,
    part,
    rated,
    unless,
    when,
)
from wdjax.convert._pieces import Build, Settings
from wdjax.convert._row import (
    EARLY,
    PAIR,
    PLAIN,
    REQUIRED,
    STOPS,
    Entry,
    adadelta,
    adamax,
    adan,
    belief,
    lion,
    row,
)
from wdjax.schedules import corrected, fixed
from wdjax.transforms import prox_weights

_BELOW = "divided by the larger of √v̂ and ε, where Optax has √v̂ + ε"
_ball_adam = ours(
    lambda b1, b2, eps: _update_rules.adam(
        b1, b2, amsgrad=False, denominator=lambda root, c: jnp.maximum(root / c, eps)
    ),
    f"Adam, {_BELOW}", "betas", "eps",
)  # fmt: skip
_ball_rms = ours(
    lambda _, b2, eps: _update_rules.adam(
        0.0, b2, amsgrad=False, denominator=lambda root, c: jnp.maximum(root / c, eps)
    ),
    f"g {_BELOW}, with Adam's correction of the bias; β₁ has no effect", "betas", "eps",
)  # fmt: skip
_LAPROP = f"LaProp, {_BELOW}; its ε is 1e-8, whatever is given"


def _laprop(b1: float, b2: float, _: float) -> optax.GradientTransformation:
    return _update_rules.laprop(
        b1, b2, 1e-8, lambda t: 1.0, lambda root, c: jnp.maximum(root / c, 1e-8)
    )


def _sign_laprop(*moments: float) -> optax.GradientTransformation:
    def signs(u: Any) -> Any:  # as long as u
        return (
            jnp.sign(u)
            * jnp.linalg.norm(u.ravel())
            / jnp.maximum(jnp.linalg.norm(jnp.sign(u).ravel()), 1e-6)
        )

    signed = optax.stateless(lambda updates, _: jax.tree.map(signs, updates))
    return optax.chain(_laprop(*moments), signed)


_BALL: Settings = {"lr": 2.5e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
HEAVYBALL: Mapping[str, Entry] = {
    "SGD": row(part(optax.trace, "beta"), rated, last(), lr=2.5e-3, beta=0.9, weight_decay=0.0),
    "AdamW": row(_ball_adam, rated, last(), **_BALL),
    "AdamC": row(_ball_adam, rated, last(corrected), **_BALL, max_lr=None),
    "RMSprop": row(_ball_rms, rated, last(), **{**_BALL, "eps": 1e-6}),
    "LaProp": row(ours(_laprop, _LAPROP, "betas", "eps"), rated, last(), **_BALL),
    "SignLaProp": row(
        ours(_sign_laprop, f"the signs, as long as before, of {_LAPROP}", "betas", "eps"),
        rated,
        last(),
        **_BALL,
    ),
    "NAdam": "by default every step also multiplies the weights by 1 + lr·λ: they grow. For "
    "what its name promises write convert.from_('torch', 'NAdam', ...).",
    **dict.fromkeys(
        ("SOAP", "ADOPT", "SUDSAdamW"),
        "it does not decay in its first step, and nothing here takes its steps. The decay alone "
        "would be wdjax.decay_weights(wdjax.delayed(wdjax.lr_scaled(λ, lr), 1)), last.",
    ),
    "SFAdamW": "its memory is float32 and its own. Schedule-Free's AdamW is "
    "convert.from_('schedulefree', 'AdamWScheduleFree', ...).",
}
BALL_NO_EQUAL: Mapping[str, str] = {
    "cautious_weight_decay": "Say it with a gate: wdjax.decay_weights(..., "
    "gate=wdjax.gates.cautious), last.",
    "caution": "Nothing here masks the update.",
    "mars": "Nothing here has it.",
    "palm": "Nothing here has it.",
    "warmup_steps": "Give `lr` a schedule of the step: it rises as (t + 1)/(warmup_steps + 1).",
    "gradient_clipping": "Clip with optax, before the optimizer.",
    "update_clipping": "Clip with optax, after the optimizer.",
}

_decoupled = when(
    "weight_decouple", unless("fixed_decay", last()), when("fixed_decay", last(fixed))
)
_EITHER: Settings = {"weight_decay": 0.0, "weight_decouple": True, "maximize": False}


def _either(*direction: Build, **defaults: Any) -> Entry:
    """The package's three places of decay; `fixed_decay` matters where it is decoupled."""
    return row(
        unless("weight_decouple", coupled), *direction, rated, _decoupled,
        **{**_EITHER, "fixed_decay": False, **defaults},
    )  # fmt: skip


def _adam_with_floor(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    return _update_rules.adam(
        b1, b2, amsgrad=False,
        denominator=lambda root, c: (jnp.sqrt(root * root + 1e-15) + eps) / c,
    )  # fmt: skip


_sign_of_momentum = functools.partial(ours, _update_rules.tiger, "the sign of the momentum")
PYTORCH_OPTIMIZER: Mapping[str, Entry] = {
    "Lion": _either(lion, lr=1e-4, betas=(0.9, 0.99)),
    "Tiger": _either(_sign_of_momentum("beta"), lr=1e-3, beta=0.965, weight_decay=0.01),
    "SignSGD": row(
        unless("weight_decouple", coupled), _sign_of_momentum("momentum"), rated,
        when("weight_decouple", last()),
        lr=1e-3, momentum=0.9, **_EITHER,
    ),
    "AdaMax": _either(adamax, lr=1e-3, **PAIR, weight_decouple=False),
    "AdaDelta": _either(adadelta, lr=1.0, rho=0.9, eps=1e-6, weight_decouple=False),
    "AdaBelief": _either(
        only("rectify", False, "Nothing here has it."),
        only("ams_bound", False, "Nothing here has it."),
        belief,
        lr=1e-3, **{**PAIR, "eps": 1e-16}, rectify=False, ams_bound=False,
    ),
    "Yogi": _either(
        ours(
            lambda b1, b2, eps, start: optax.scale_by_yogi(
                b1, b2, eps, eps_root=0.0, initial_accumulator_value=start
            ),
            "optax.scale_by_yogi", "betas", "eps", "initial_accumulator",
        ),
        lr=1e-2, **{**PAIR, "eps": 1e-3}, initial_accumulator=1e-6,
    ),
    "AdEMAMix": _either(
        only("t_alpha_beta3", None, "Nothing here lets its α and β₃ rise."),
        ours(
            lambda b1, b2, b3, eps, alpha: optax.contrib.scale_by_ademamix(b1, b2, b3, alpha, eps),
            "optax.contrib.scale_by_ademamix", "betas", "eps", "alpha",
        ),
        lr=1e-3, betas=(0.9, 0.999, 0.9999), eps=1e-8, alpha=5.0, t_alpha_beta3=None,
        weight_decouple=False,
    ),
    "AdamC": _either(
        only("ams_bound", False, "Nothing here has it."),
        ours(_adam_with_floor, "Adam whose root is of v + 1e-15", "betas", "eps"),
        lr=1e-3, **PAIR, ams_bound=False,
    ),
    "SGDW": row(
        unless("weight_decouple", coupled), momentum, rated, when("weight_decouple", last()),
        lr=1e-4, **PLAIN, **_EITHER,
    ),
    "Adan": row(
        only("max_grad_norm", 0.0, "Clip with optax.clip_by_global_norm, before the optimizer."),
        adan, rated,
        unless("weight_decouple", last(place=prox_weights)), when("weight_decouple", last()),
        lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, max_grad_norm=0.0,
        **{**_EITHER, "weight_decouple": False},
    ),
    **dict.fromkeys(
        ("AdamP", "AdamWSN", "Grams", "LaProp", "RAdam", "SGDP", "SGDSaI", "TAM"),
        "with weight_decouple=False its decay is lost, bit for bit. Say what you want with "
        "wdjax.decayed(...), or with optax.chain and wdjax.decay_weights last.",
    ),
    **dict.fromkeys(
        ("Ranger", "MARS"),
        "with weight_decouple=False its decay has the wrong sign, and weights grow. Say what "
        "you want with optax.chain and wdjax.decay_weights last.",
    ),
    "MADGRAD": STOPS,
    "SPlus": "it divides its decay by half the sum of rows and columns, so that large matrices "
    "hardly decay. Say what you want with wdjax.decay_weights last.",
}  # fmt: skip

_either_adam = chain(
    when("bias_correction", adam),
    unless(
        "bias_correction",
        ours(_update_rules.uncorrected_adam, "Adam without correction of its bias", "betas", "eps"),
    ),
)
_MLX_ADAM: Settings = {"learning_rate": REQUIRED, **PAIR, "bias_correction": False}
MLX: Mapping[str, Entry] = {
    "SGD": row(
        only("dampening", 0.0, "MLX dampens the first gradient, too; PyTorch and this do not."),
        coupled, momentum, rated,
        learning_rate=REQUIRED, **PLAIN, weight_decay=0.0,
    ),
    "AdamW": row(_either_adam, rated, last(), **_MLX_ADAM, weight_decay=0.01),
    "Lion": row(
        lion, rated, last(), learning_rate=REQUIRED, betas=(0.9, 0.99), weight_decay=0.0
    ),
    "Muon": "its decay joins the gradient before Newton-Schulz, which takes all size from it: 0.01 "
    "and 10 do the same. Use wdjax.muonw.",
    "Adafactor": "its decay is multiplied by the RMS of the weights. The decay alone would be "
    "wdjax.penalties.cubic; see wdjax.decayed(optax.adafactor).",
}  # fmt: skip

_PADDLE: Settings = {"learning_rate": 1e-3, "weight_decay": None}
_PADDLE_ADAM: Settings = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
_paddle_adam = part(optax.scale_by_adam, "beta1", "beta2", "epsilon")
PADDLE: Mapping[str, Entry] = {
    "SGD": row(coupled, rated, **_PADDLE),
    "Momentum": row(
        coupled, part(optax.trace, "momentum", "use_nesterov"), rated,
        **_PADDLE, momentum=0.9, use_nesterov=False,
    ),
    "Adam": row(coupled, _paddle_adam, rated, **_PADDLE, **_PADDLE_ADAM),
    "AdamW": row(
        _paddle_adam, rated, last(), **{**_PADDLE, "weight_decay": 0.01}, **_PADDLE_ADAM
    ),
}  # fmt: skip
PADDLE_NO_EQUAL: Mapping[str, str] = {
    "apply_decay_param_fun": "Say it in `rules`: rules=((lambda leaf: fun(leaf.path), 1.0), "
    "('**', 0.0)).",
    "lr_ratio": "Nothing here has it: optax.partition gives layers their own rates.",
    "grad_clip": "Clip with optax, before the optimizer.",
    "amsgrad": "Nothing here has Paddle's.",
}

_CHAINER: Settings = {
    "alpha": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eta": 1.0, "amsgrad": False,
}  # fmt: skip
_chainer = row(
    only("amsgrad", False, "Nothing here has Chainer's."),
    ours(early_adam, EARLY, "beta1", "beta2", "eps"), eta_times_alpha,
    **_CHAINER, weight_decay_rate=0.0,
)  # fmt: skip
CHAINER: Mapping[str, Entry] = {"Adam": _chainer, "AdamW": _chainer}
