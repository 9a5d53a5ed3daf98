"""`convert.from_` for less used packages: those that install here, NumPy or their chain for others.

Several rows share one compiled program.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from convert_runs import (
    EVERYTHING,
    NAMES,
    STEPS,
    adam_step,
    agree,
    close,
    decoupled,
    falling,
    lion_step,
    moments,
    momentum_step,
    our_groups,
    references,
    scheduled,
    slow,
    together,
    torchs,
)
from convert_runs import coupled as coupled_with
from oracles import imported

import wdjax
from wdjax import convert
from wdjax.convert._sources import SOURCES

LR, LAM = 0.01, 0.3

# HeavyBall, whose memory is float32 unless told otherwise.

BALL = {
    "SGD": {},
    "AdamW": {"eps": 1e-2},
    "AdamC": {"max_lr": LR},
    "RMSprop": {},
    "LaProp": {"betas": (0.8, 0.95)},
    "SignLaProp": {},
}


@pytest.mark.filterwarnings("ignore:Learning rate changed between steps")
@pytest.mark.slow
def test_heavyball(torch64, x64):
    heavyball = imported("heavyball")
    heavyball.utils.compile_mode = None
    cases = []
    for name, own in BALL.items():
        given = {"weight_decay": LAM, **own}
        record = convert.from_("heavyball", name, lr=scheduled(LR), **given)
        factory = getattr(heavyball, name)
        want = torchs(
            lambda p, factory=factory, given=given: factory(
                [p["bias"], p["kernel"]], lr=LR, storage_dtype="float64", **given
            )
        )
        cases.append((name, record, want))
    agree(cases)


PYTORCH_OPTIMIZER = {
    "Lion": {},
    "Lion fixed_decay": {"fixed_decay": True, "weight_decay": 0.003},
    "Lion coupled": {"weight_decouple": False},
    "Tiger": {"beta": 0.9},
    "SignSGD": {},
    "AdaMax": {},
    "AdaMax fixed_decay": {"weight_decouple": True, "fixed_decay": True, "weight_decay": 0.003},
    "AdaDelta": {"weight_decouple": True, "eps": 1e-3},
    "AdaBelief": {},
    "AdaBelief eps": {"eps": 1e-3},
    "Yogi": {"initial_accumulator": 1e-3},
    "AdEMAMix": {"weight_decouple": True, "alpha": 3.0, "betas": (0.9, 0.99, 0.995)},
    "AdamC": {"eps": 1e-3},
    "SGDW": {"momentum": 0.9, "nesterov": True},
    "SGDW dampened": {"momentum": 0.9, "dampening": 0.5, "weight_decouple": False},
    "Adan": {},
    "Adan decoupled": {"weight_decouple": True, "betas": (0.9, 0.8, 0.95)},
}


@pytest.mark.parametrize("labels", [("Adan",), slow(tuple(PYTORCH_OPTIMIZER))])
def test_pytorch_optimizer(labels, torch64, x64):
    package = imported("pytorch_optimizer")
    cases = []
    for label in labels:
        name, given = label.split()[0], {"weight_decay": LAM, **PYTORCH_OPTIMIZER[label]}
        lam = given.pop("weight_decay")
        groups = our_groups(LR, lam)
        record = convert.from_(
            "pytorch_optimizer", name, lr=scheduled(LR), weight_decay=lam, **given, groups=groups
        )

        def build(p, name=name, given=given, lam=lam):
            bias = {"params": [p["bias"]], "lr": LR / 3, "weight_decay": 2 * lam}
            kernel = {"params": [p["kernel"]], "lr": LR, "weight_decay": lam}
            return getattr(package, name)([bias, kernel], lr=LR, **given)

        cases.append((label, record, torchs(build)))
    agree(cases)


@pytest.mark.parametrize("source", ["heavyball", "pytorch_optimizer"])
def test_their_defaults(source):
    import inspect

    package = imported(source)
    for name, entry in SOURCES[source].entries.items():
        if not isinstance(entry, str):
            theirs = inspect.signature(getattr(package, name)).parameters
            for setting, value in entry.defaults.items():
                assert theirs[setting].default == value, (name, setting)


# MLX 0.32, Paddle 3.3 and Chainer 7.8 by the update rules in their sources, in NumPy;
# tests/test_convert_packages.py runs themselves where they are.


def uncorrected(g, t, memory):
    moments(g, t, memory, 0.9, 0.999)
    return memory["m"] / (np.sqrt(memory["v"]) + 1e-8)


def nesterov(g, t, memory):
    return g + 0.9 * momentum_step(g, t, memory)


def chainers(theta, g, t, memory):
    moments(g, t, memory, 0.9, 0.999)
    rate = 0.02 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    step = rate * memory["m"] / (np.sqrt(memory["v"]) + 1e-3)
    return theta - falling(t - 1) * (step + 0.003 * theta)


REFERENCES = {
    "mlx SGD": ({"momentum": 0.9, "nesterov": True}, coupled_with(nesterov)),
    "mlx AdamW": ({}, decoupled(uncorrected)),
    "mlx AdamW corrected": ({"bias_correction": True}, decoupled(adam_step)),
    "mlx Lion": ({}, decoupled(lion_step)),
    "paddle SGD": ({}, coupled_with(lambda g, t, memory: g)),
    "paddle Momentum": ({}, coupled_with(momentum_step)),
    "paddle Adam": ({}, coupled_with(adam_step)),
    "paddle AdamW": ({}, decoupled(adam_step)),
}


def test_mlx_paddle_and_chainer_in_numpy(x64):
    cases = []
    for label, (given, made) in REFERENCES.items():
        source, name = label.split()[:2]
        record = convert.from_(source, name, learning_rate=scheduled(LR), weight_decay=LAM, **given)
        want = references(dict.fromkeys(NAMES, made(LR, LAM)))
        cases.append((label, record, want))
    record = convert.from_(
        "chainer", "AdamW", alpha=0.02, eta=falling, weight_decay_rate=0.003, eps=1e-3
    )
    cases.append(("chainer", record, references(dict.fromkeys(NAMES, chainers))))
    agree(cases)


# Projects in JAX: the chain that their source builds, of Optax.


def masked(decays):
    return {name: name in decays for name in NAMES}


def maxtexts():
    """MaxText 0.2.5: clipped in the training step, then optax.adamw."""
    given = {"adam_weight_decay": LAM, "gradient_clipping_threshold": 0.5}
    record = convert.from_(
        "maxtext", "adamw", learning_rate=scheduled(LR), adamw_mask=["bias"], **given
    )
    return record, optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(scheduled(LR), b1=0.9, b2=0.95, weight_decay=LAM, mask=masked(["kernel"])),
    )


def levanters():
    """Levanter at 00816d0, AdamConfig.build."""
    record = convert.from_("levanter", "adam", learning_rate=scheduled(LR), weight_decay=LAM)
    return record, optax.inject_hyperparams(
        lambda learning_rate: optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(0.9, 0.95, 1e-8),
            optax.add_decayed_weights(LAM, masked(["kernel"])),
            optax.scale(-learning_rate),
        )
    )(learning_rate=scheduled(LR))


def big_visions():
    """big_vision at 11eea57, make(config, ...): the schedule multiplies the sum of both."""
    given = {"wd": 0.003, "wd_mults": [("bias", 0.5), (".*", 1.0)], "initial_lr": LR}
    record = convert.from_("big_vision", "scale_by_adam", lr=scheduled(LR), b2=0.95, **given)
    return record, optax.chain(
        optax.scale_by_adam(b2=0.95),
        optax.scale(LR),
        optax.add_decayed_weights(0.0015, masked(["bias"])),
        optax.add_decayed_weights(0.003, masked(["kernel"])),
        optax.scale_by_schedule(falling),
        optax.scale(-1.0),
    )


def easylms_adamw():
    """EasyLM at 134105f, AdamWOptimizerFactory."""
    config = {"lr": LR, "end_lr": 1e-3, "lr_warmup_steps": 100, "lr_decay_steps": STEPS}
    record = convert.from_("easylm", "adamw", weight_decay=LAM, rules=(("bias", 0.0), ("**", 1.0)),
                           **config)  # fmt: skip
    rate = optax.warmup_cosine_decay_schedule(0.0, LR, 100, STEPS, 1e-3)
    return record, optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=LAM, mask=masked(["kernel"])),
    )


def easylms_palm():
    """The same, PalmOptimizerFactory."""
    record = convert.from_(
        "easylm", "palm", lr=0.02, lr_warmup_steps=100, weight_decay=1e-3, clip_gradient=0.5
    )
    rate = lambda step: 2.0 / jnp.sqrt(jnp.maximum(jnp.asarray(step, float), 100))
    return record, optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adafactor(
            rate, multiply_by_parameter_scale=True, momentum=0.9, decay_rate=0.99, factored=False,
            clipping_threshold=None,
        ),
        optax.masked(wdjax.decay_weights(lambda t: 10 * rate(t) ** 2, rules=EVERYTHING),
                     masked(NAMES)),
    )  # fmt: skip


PROJECTS = [maxtexts, levanters, big_visions, easylms_adamw, easylms_palm]


def test_projects_in_jax_by_chains_of_their_source(x64):
    pairs = [project() for project in PROJECTS]
    ran = together([x for record, theirs in pairs for x in (record.optimizer, theirs)])
    for project, got, want in zip(PROJECTS, ran[::2], ran[1::2], strict=True):
        print(project.__name__, end=": ")
        close(got, want, 1e-7 if project is easylms_adamw else 1e-9)  # its schedule is float32


def test_levanters_rules_go_by_the_class_that_holds_a_leaf():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "tokens": eqx.nn.Embedding(4, 3, key=keys[0]),
        "first": eqx.nn.Linear(3, 3, key=keys[1]),
        "last": eqx.nn.LayerNorm(3),
    }
    rules = convert.from_("levanter", "adam").rules
    found = wdjax.resolve(rules, eqx.filter(params, eqx.is_inexact_array))
    assert (found["tokens"].weight, found["last"].weight) == (0.0, 0.0)
    assert (found["first"].weight, found["first"].bias) == (1.0, 0.0)


def test_a_configuration_of_easylm_explains_its_schedule():
    told = str(convert.from_("easylm", "palm", lr=0.02, weight_decay=1e-3))
    assert re.search(r"weight_decay=0\.001\n.*lr_squared\(10\.0, <inverse_root>\)", told)
    given = str(convert.from_("easylm", "palm", lr=scheduled(0.02)))
    assert "inverse_root" not in given
