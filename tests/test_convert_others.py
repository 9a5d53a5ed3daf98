"""`convert.from_` for less used packages: those that install here, NumPy or their chain for others.

Several rows share one compiled program.
"""

import dataclasses
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
    ours,
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
from wdjax.convert._row import Row
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
    "ADOPT": {},
    "ADOPT decoupled": {"weight_decouple": True, "eps": 1e-2},
    "NovoGrad": {"weight_decay": 0.03},
    "NovoGrad decoupled": {"weight_decouple": True},
    "LaProp": {"eps": 1e-3},
    "LaProp fixed_decay": {"fixed_decay": True, "weight_decay": 0.003},
    "RAdam": {},
    "RAdam later": {"betas": (0.9, 0.99), "fixed_decay": True, "weight_decay": 0.003},
    "AdaFactor": {"momentum_dtype": "float64"},
    "AdaFactor unscaled": {
        "momentum_dtype": "float64",
        "scale_parameter": False,
        "relative_step": False,
    },
    "AdaFactor scaled": {
        "momentum_dtype": "float64",
        "relative_step": False,
        "betas": (0.8, 0.99),
        "eps2": 3.0,
    },
    "AdaFactor fixed_decay": {
        "momentum_dtype": "float64",
        "fixed_decay": True,
        "weight_decay": 0.003,
    },
    "AdaFactor coupled": {"momentum_dtype": "float64", "weight_decouple": False},
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
            given = {k: torch64.float64 if v == "float64" else v for k, v in given.items()}
            return getattr(package, name)([bias, kernel], lr=LR, **given)

        cases.append((label, record, torchs(build)))
    agree(cases)


@pytest.mark.filterwarnings("ignore")  # it imports what is deprecated
def test_every_name_of_pytorch_optimizer_is_a_row_or_a_reason():
    package = imported("pytorch_optimizer")
    names = {package.load_optimizer(name).__name__ for name in package.get_supported_optimizers()}
    assert len(names) >= 128
    assert names == {*SOURCES["pytorch_optimizer"].entries}


@pytest.mark.parametrize("source", ["heavyball", "pytorch_optimizer"])
def test_their_defaults(source):
    import inspect

    package = imported(source)
    for name, entry in SOURCES[source].entries.items():
        if isinstance(entry, Row):
            theirs = inspect.signature(getattr(package, name)).parameters
            for setting, value in entry.defaults.items():
                if setting == "clip_lambda":
                    assert theirs[setting].default(7) == value(7)
                elif setting != "momentum_dtype":
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


def test_the_rate_of_a_group_of_paddle_multiplies_that_of_all(x64):
    groups = (("bias", {"learning_rate": 0.3, "weight_decay": 2 * LAM}),)
    record = convert.from_("paddle", "AdamW", learning_rate=scheduled(LR), weight_decay=LAM,
                           groups=groups)  # fmt: skip
    made = REFERENCES["paddle AdamW"][1]
    close(ours(record), references({"bias": made(0.3 * LR, 2 * LAM), "kernel": made(LR, LAM)}))
    with pytest.raises(TypeError, match=r"every group must be a \(selector, settings\) pair"):
        convert.from_("paddle", "AdamW", groups=["bias"])


# Projects in JAX: the chain that their source builds, of Optax.


def masked(decays):
    return {name: name in decays for name in NAMES}


def maxtext_schedule():
    """MaxText 0.2.5: clipped in the training step, then optax.adamw."""
    given = {"adam_weight_decay": LAM, "gradient_clipping_threshold": 0.5}
    record = convert.from_(
        "maxtext", "adamw", learning_rate=scheduled(LR), adamw_mask=["bias"], **given
    )
    return record, optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(scheduled(LR), b1=0.9, b2=0.95, weight_decay=LAM, mask=masked(["kernel"])),
    )


def levanter_schedule():
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


def big_vision_entries():
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


PROJECTS = [maxtext_schedule, levanter_schedule, big_vision_entries, easylms_adamw, easylms_palm]


def test_projects_in_jax_by_chains_of_their_source(x64):
    pairs = [project() for project in PROJECTS]
    ran = together([x for record, theirs in pairs for x in (record.optimizer, theirs)])
    for project, got, want in zip(PROJECTS, ran[::2], ran[1::2], strict=True):
        print(project.__name__, end=": ")
        close(got, want, 1e-7 if project is easylms_adamw else 1e-9)  # its schedule is float32


def test_levanters_rules_go_by_the_class_that_holds_a_leaf():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    other = type("RmsNorm", (eqx.nn.RMSNorm,), {"__module__": "levanter.layers"})
    params = {
        "other": other(3),
        "tokens": eqx.nn.Embedding(4, 3, key=keys[0]),
        "first": eqx.nn.Linear(3, 3, key=keys[1]),
        "last": eqx.nn.LayerNorm(3),
    }
    rules = convert.from_("levanter", "adam", num_train_steps=10).rules
    found = wdjax.resolve(rules, eqx.filter(params, eqx.is_inexact_array))
    assert (found["tokens"].weight, found["last"].weight, found["other"].weight) == (0.0, 0.0, 0.0)
    assert (found["first"].weight, found["first"].bias) == (1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class LevantersAdam:
    """AdamConfig of Levanter, as at 9263f81, and what a trainer might hold besides."""

    learning_rate: float = 1.0
    weight_decay: float = 0.1
    min_lr_ratio: float = 0.1
    warmup: float = 0.2
    decay: float | None = None
    rewarmup: float = 0.0
    cooldown: float | None = None
    cycle_length: int | None = None
    cycles: int | None = None
    lr_schedule: str = "linear"
    haps: list[int] | None = None
    weight_decay_modules: str | None = None
    default_weight_decay_mask: bool | None = False
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    max_grad_norm: float | None = 1.0
    nesterov: bool = False
    update_rms_clipping: float | None = None
    clip_update_norm: None = None
    skip_bad_steps: bool = False
    adamc_weight_decay: bool = False
    run_name: str = "first"


MAXTEXTS = {
    "learning_rate": 1.0, "adam_b1": 0.9, "adam_b2": 0.95, "adam_eps": 1e-8, "adam_eps_root": 0.0,
    "adam_weight_decay": 0.1, "mu_dtype": "", "adamw_mask": [],
    "gradient_clipping_threshold": 1.0, "skip_step_on_spikes": False, "steps": 12,
    "learning_rate_schedule_steps": 10, "lr_schedule_type": "wsd", "warmup_steps_fraction": 0.2,
    "learning_rate_final_fraction": 0.1, "wsd_decay_steps_fraction": 0.4,
    "wsd_decay_style": "linear", "opt_type": "adamw", "run_name": "first",
}  # fmt: skip
BIG_VISIONS = {
    "lr": 1.0, "wd": 0.1, "optax_name": "scale_by_adam", "optax": {"b2": 0.95}, "seed": 0,
    "schedule": {"decay_type": "cosine", "warmup_steps": 2}, "wd_mults": [(".*", 1.0)],
}  # fmt: skip
EASYLMS = {
    "type": "adamw", "accumulate_gradient_steps": 1, "palm_optimizer": {},
    "adamw_optimizer": {"lr": 1.0, "end_lr": 0.1, "lr_warmup_steps": 2, "lr_decay_steps": 10,
                        "weight_decay": 0.1, "notes": "none of its settings"},
}  # fmt: skip
T5XS = {
    "learning_rate": None, "factored": True, "multiply_by_parameter_scale": True, "beta1": None,
    "decay_rate": 0.8, "step_offset": 0, "clipping_threshold": 1.0, "weight_decay_rate": 0.1,
    "min_dim_size_to_factor": 128, "epsilon1": 1e-30, "epsilon2": 1e-3, "factor_map": None,
    "logical_factor_rules": None, "weight_decay_rate_lr_exponent": 2,
    "global_norm_clip_threshold": None, "max_parameter_scale": None, "skip_nan_updates": False,
}  # fmt: skip
ROOTS = {"factors": "linear_warmup * rsqrt_decay", "warmup_steps": 4}
WHOLE = [  # the rate of steps 0, 1, 2, ... by hand
    ("maxtext", "adamw", MAXTEXTS, {}, [0, 0.5, 1, 1, 1, 1, 1, 0.7, 0.4, 0.1, 0, 0]),
    (
        "levanter", "adam", LevantersAdam(), {"num_train_steps": 10},
        [0, 0.5, *(1 - 0.9 * k / 8 for k in range(9))],
    ),
    (
        "big_vision", "scale_by_adam", BIG_VISIONS, {"total_steps": 10},
        [0, 0.5, *((1 + np.cos(np.pi * k / 8)) / 2 for k in range(9))],
    ),
    (
        "easylm", "adamw", EASYLMS, {},
        [0, 0.5, *(0.1 + 0.45 * (1 + np.cos(np.pi * k / 8)) for k in range(9))],
    ),
    ("t5x", "Adafactor", T5XS, ROOTS, [0, 1 / 64, 1 / 16, 9 / 64, 1 / 4, 1 / 5, 1 / 6]),
]  # fmt: skip


@pytest.mark.parametrize(("source", "name", "config", "steps", "rates"), WHOLE)
def test_a_whole_configuration_becomes_its_schedule_and_decay(source, name, config, steps, rates):
    """Without gradients a step takes off λη, a tenth of the rate; λη/η₀ with η₀ = 1; in t5x λη²."""
    optimizer = convert.from_(source, name, config=config, **steps).optimizer
    params = {"layer": {"kernel": jnp.ones((2, 2))}}
    still = jax.tree.map(jnp.zeros_like, params)

    def step(state, _):
        updates, state = optimizer.update(still, state, params)
        return state, -updates["layer"]["kernel"][0, 0]

    taken = jax.lax.scan(step, optimizer.init(params), None, length=len(rates))[1]
    np.testing.assert_allclose(taken, np.array(rates) / 10, atol=1e-7)


def test_a_configuration_of_easylm_explains_its_schedule():
    told = str(convert.from_("easylm", "palm", lr=0.02, weight_decay=1e-3))
    assert re.search(r"weight_decay=0\.001\n.*lr_squared\(10\.0, <inverse_root>\)", told)
    given = str(convert.from_("easylm", "palm", lr=scheduled(0.02)))
    assert "inverse_root" not in given
