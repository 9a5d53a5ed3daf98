"""Rows of pytorch_optimizer, every name of its registry; see `wdjax.convert._row`."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from wdjax.convert import _update_rules
from wdjax.convert._adafactor import Options, adafactor
from wdjax.convert._links import (
    added,
    coupled,
    laprop,
    last,
    momentum,
    off,
    only,
    ours,
    rated,
    unless,
    when,
)
from wdjax.convert._pieces import Build, Piece, Settings
from wdjax.convert._row import (
    OWN_STEP_SIZE,
    PAIR,
    PLAIN,
    STOPS,
    Entry,
    adadelta,
    adamax,
    adan,
    belief,
    beta1_trace,
    lion,
    normalized,
    row,
)
from wdjax.convert._rows_torch import TORCH
from wdjax.rules import Rules
from wdjax.schedules import fixed, lr_scaled
from wdjax.transforms import decay_after_step, prox_weights

LOST = "with weight_decouple=False its decay is lost, bit for bit."
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


def _floor(root: Any, c: Any, eps: float) -> Any:
    return (jnp.sqrt(root * root + 1e-15) + eps) / c


def _adam_with_floor(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    below = functools.partial(_floor, eps=eps)
    return _update_rules.adam(b1, b2, amsgrad=False, denominator=below)


def _root_of_root(step: Any) -> Any:
    return step**0.25


def _once_rectified(s: Settings, rules: Rules) -> list[Piece]:
    """Decay waits for the first rectified step."""
    b2 = s["betas"][1]
    if 2 / (1 - b2) - 1 <= 5:
        raise ValueError(f"`betas` must have β₂ above 2/3, or no step is rectified; got {b2}.")
    variances = (2 / (1 - b2) - 1 - 2 * t * b2**t / (1 - b2**t) for t in range(1, 1_000))
    wait = sum(variance < 5 for variance in variances)
    return last(fixed if s["fixed_decay"] else lr_scaled, wait=wait)(s, rules)


def _options(s: Settings) -> Options:
    b1, cap = s["betas"]
    return Options(
        None if s["relative_step"] else s["lr"], s["eps1"], s["eps2"], s["clip_threshold"],
        s["decay_rate"], cap, b1, s["momentum_dtype"], s["scale_parameter"], s["warmup_init"],
    )  # fmt: skip


_sign_of_momentum = functools.partial(ours, _update_rules.tiger, "the sign of the momentum")
_ROWS: Mapping[str, Entry] = {
    **{name: TORCH[name] for name in ("Adam", "AdamW", "NAdam", "RMSprop", "SGD", "LBFGS")},
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
    "ADOPT": _either(
        ours(
            lambda b1, b2, eps, limit: _update_rules.adopt(
                b1, b2, eps, (lambda t: jnp.inf) if limit is None else limit
            ),
            "ADOPT, which takes no first step", "betas", "eps", "clip_lambda",
        ),
        lr=1e-3, betas=(0.9, 0.9999), eps=1e-6, clip_lambda=_root_of_root, weight_decouple=False,
    ),
    "NovoGrad": row(
        only("grad_averaging", False, "Nothing here has it."),
        normalized,
        unless("weight_decouple", added("in its momentum, beside the normalized gradient")),
        beta1_trace, rated, _decoupled,
        lr=1e-3, betas=(0.95, 0.98), eps=1e-8, grad_averaging=False,
        **{**_EITHER, "weight_decouple": False}, fixed_decay=False,
    ),
    "LaProp": row(
        off("Nothing here has it.", centered=False, ams_bound=False),
        only("weight_decouple", True, LOST),
        functools.partial(laprop, below=lambda eps: functools.partial(_floor, eps=eps)), rated,
        unless("fixed_decay", last(place=decay_after_step)),
        when("fixed_decay", last(fixed, decay_after_step)),
        lr=4e-4, betas=(0.9, 0.999), eps=1e-15, centered=False, ams_bound=False, **_EITHER,
        fixed_decay=False,
    ),
    "RAdam": row(
        off("Nothing here has it.", n_sma_threshold=5, degenerated_to_sgd=False),
        only("weight_decouple", True, LOST),
        ours(
            functools.partial(_update_rules.radam, early=0.0),
            "rectified Adam, without steps until its variance is known", "betas", "eps",
        ),
        rated, _once_rectified,
        lr=1e-3, **PAIR, n_sma_threshold=5, degenerated_to_sgd=False, **_EITHER, fixed_decay=False,
    ),
    "AdaFactor": row(
        only("ams_bound", False, "Nothing here has it."),
        unless("weight_decouple", coupled),
        lambda s, rules: adafactor(
            _options, is_decoupled=s["weight_decouple"] and not s["fixed_decay"]
        )(s, rules),
        lambda s, rules: _decoupled(s, rules) if s["fixed_decay"] else [],
        lr=1e-3, betas=(0.9, 0.999), decay_rate=-0.8, clip_threshold=1.0, ams_bound=False,
        scale_parameter=True, relative_step=True, warmup_init=False, eps1=1e-30, eps2=1e-3,
        momentum_dtype=jnp.bfloat16, **_EITHER, fixed_decay=False,
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
}  # fmt: skip

# The reasons of the others: the names of each follow.
_REASONS = {
    f"{LOST} Say what you want with wdjax.decayed(...), or with optax.chain and "
    "wdjax.decay_weights last.": "AdamP AdamWSN Grams SGDP SGDSaI TAM",
    "with weight_decouple=False its decay has the wrong sign, and weights grow. Say what you want "
    "with optax.chain and wdjax.decay_weights last.": "Ranger MARS",
    STOPS: "MADGRAD",
    "it divides its decay by half the sum of rows and columns, so that large matrices hardly "
    "decay. Say what you want with wdjax.decay_weights last.": "SPlus",
    "its decay is divided by the RMS of its step, or by a constant of its own. Say what you want "
    "with wdjax.decay_weights last.": "StableAdamW GrokFastAdamW",
    "its decay goes by the second moment of the gradient; see wdjax.adaptive.swd.": "AdamS FAdam",
    OWN_STEP_SIZE:
        "AdamG DAdaptAdaGrad DAdaptAdam DAdaptAdan DAdaptLion DAdaptSGD Prodigy",
    "it needs a second gradient.": "AdaHessian BSAM SophiaH",
    "it takes the model apart, or holds a schedule, an optimizer or a projection of its own.":
        "AdaLOMO AdamMini Alice APOLLO Conda Fira GaLore LoRARite Magma Ranger21 SaRA SPAM",
    "its moments are rounded to 8 bits. Without that it is convert.from_('torch', 'AdamW', ...).":
        "FlashAdamW",
    "its matrices and its AdamW half have a λ each, by default 0. Use wdjax.muonw, whose rules say "
    "what decays.": "AdaGO AdaMuon DistributedMuon Muon MuonClip NorMuon SpectralSphere",
    "its preconditioner is not in Optax. With a port of it write wdjax.decayed(port)(lr, "
    "weight_decay=λ).": "DASH Kron ScalableShampoo Shampoo SOAP",
    "its averaging is that of its authors: write convert.from_('schedulefree', "
    "'AdamWScheduleFree', ...), or 'SGDScheduleFree', 'RAdamScheduleFree'.":
        "ScheduleFreeAdamW ScheduleFreeRAdam ScheduleFreeSGD",
    "it has no weight decay.":
        "A2Grad AdaShift AliG Fromage Gravity LOMO MSVAG Nero SM3 SRMM",
    "it has λ of its own, lambda_2 or what it finds itself, and no weight_decay.": "Amos FTRL",
    "its trust ratio is not that of Optax, nor timm's: write convert.from_('timm', 'lambw', ...), "
    "or wdjax.decayed(...).": "Lamb LARS",
    "its momentum is weighed otherwise than Optax's of that name: write "
    "convert.from_('optax', 'simplified_ademamix', ...).": "SimplifiedAdEMAMix",
    "its update rule is not in Optax. With a port of it write wdjax.decayed(port)(lr, "
    "weight_decay=λ): with weight_decouple its decay is s = λη.":
        "AccSGD AdaBound AdaGC Adai Adalite AdaMod AdaNorm AdaPNM AdaSmooth AdaTAM AggMo Aida Ano "
        "ApolloDQN ASGD AvaGrad BCOS CAME DeMo DiffGrad DualAdam EmoFact EmoLynx EmoNavi EXAdam "
        "FOCUS Kate PAdam PID PNM QHAdam QHM RACS ROSE SCION SCIONLight StableSPAM SWATS VSGD",
}  # fmt: skip
PYTORCH_OPTIMIZER: Mapping[str, Entry] = {
    **_ROWS,
    **{name: why for why, names in _REASONS.items() for name in names.split()},
}
