"""`convert.from_` against the packages themselves, or NumPy where they are not installed."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from convert_runs import (
    EVERYTHING,
    NAMES,
    NOISE,
    RNG,
    START,
    STEPS,
    adam_step,
    agree,
    close,
    coupled,
    decoupled,
    groups_of,
    label,
    lion_step,
    our_groups,
    ours,
    references,
    scheduled,
    slow,
    thinc_step,
    together,
    torchs,
)
from oracles import imported, timm_optim

import wdjax
from wdjax import convert
from wdjax.convert._row import REQUIRED, Row
from wdjax.convert._sources import SOURCES

# PyTorch.


TORCH = [
    ("RAdam", {"lr": 0.01, "weight_decay": 0.05}),
    slow("RAdam", {"lr": 0.01, "weight_decay": 0.5, "decoupled_weight_decay": True, "eps": 1e-2}),
    slow("Adamax", {"lr": 0.01, "weight_decay": 0.05}),
    slow("Adadelta", {"lr": 1.0, "weight_decay": 0.05}),
    slow("Adadelta", {"lr": 1.0, "weight_decay": 0.05, "rho": 0.95, "eps": 1e-3}),
    ("Adafactor", {"lr": 0.05, "weight_decay": 0.2}),
    slow("Adafactor", {"lr": 0.05, "weight_decay": 0.2, "d": 1.2, "eps": (1e-3, 0.5)}),
    slow("ASGD", {"lr": 0.05, "weight_decay": 0.05, "lambd": 0.05}),
    slow("SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}),
]


@pytest.mark.parametrize(("name", "settings"), TORCH, ids=label)
def test_torch(name, settings, torch64, x64):
    lr, weight_decay = settings["lr"], settings["weight_decay"]
    rest = {k: v for k, v in settings.items() if k not in ("lr", "weight_decay")}
    factory = getattr(torch64.optim, name)
    want = torchs(lambda p: factory(groups_of(p, lr, weight_decay), lr=lr, **rest))
    groups = our_groups(lr, weight_decay)
    record = convert.from_("torch", name, **{**settings, "lr": scheduled(lr)}, groups=groups)
    close(ours(record), want)


def rows_of(source):
    return [name for name, entry in SOURCES[source].entries.items() if isinstance(entry, Row)]


@pytest.mark.parametrize("name", rows_of("torch"))
def test_the_defaults_are_those_of_torch(name):
    torch = imported("torch")
    theirs = getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(2, 2))]).defaults
    ran = {k: v for k, v in theirs.items() if k not in SOURCES["torch"].left_out}
    assert ran == SOURCES["torch"].entries[name].defaults
    assert convert.from_("torch", name, **theirs).source == f"torch.optim.{name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", rows_of("torch"))
def test_maximize_climbs_and_still_decays(name, torch64, x64):
    settings = {"lr": 0.05, "weight_decay": 0.3, "maximize": True}
    factory = getattr(torch64.optim, name)
    want = torchs(lambda p: factory([p["bias"], p["kernel"]], **settings), steps=20)
    record = convert.from_("torch", name, **{**settings, "lr": scheduled(0.05)})
    close(ours(record, steps=20), want)


# timm.

QUICK_OF_TIMM = ("adan", "laprop", "adoptw")
BIG = {"min_dim_size_to_factor": 2, "clipping_threshold": 1.0, "momentum_dtype": "float64"}
TIMM = {
    "sgdw": {"momentum": 0.8},
    "adamw": {"eps": 1e-3},
    "adabelief": {"eps": 1e-3},
    "rmsproptfw": {"momentum": 0.9, "eps": 1e-3},
    "rmsprop": {"momentum": 0.9, "centered": True},
    **{name: {"max_grad_norm": None} for name in ("lamb", "lambw", "lambcd")},
    "adafactor": {"min_dim_size_to_factor": 2, "betas": (0.9, 0.999)},
    "adafactorbv": BIG,
    "adafactorbvc": BIG,
}  # the others as they are
SINGLE = ("radamlegacy",)  # computes in float32, whatever it is given


@pytest.mark.parametrize("names", [QUICK_OF_TIMM, slow(None)], ids=["quick", "all"])
def test_timm_by_name(names, torch64, x64):
    create, cases, lr, lam = timm_optim().create_optimizer_v2, [], 0.01, 0.3
    for name in names or rows_of("timm"):
        settings = TIMM.get(name, {})
        theirs = {
            key: torch64.float64 if value == "float64" else value for key, value in settings.items()
        }
        want = torchs(
            lambda p, name=name, theirs=theirs: create(
                groups_of(p, lr, lam), name, lr=lr, weight_decay=lam, **theirs
            )
        )
        has_initial = "initial_lr" in SOURCES["timm"].entries[name].defaults
        initial = {"initial_lr": lr} if has_initial else {}
        given = {**settings, "lr": scheduled(lr), "weight_decay": lam, **initial}
        groups = our_groups(lr, lam)
        record = convert.from_("timm", name, **given, groups=groups, rules=EVERYTHING)
        cases.append((name, record, want, 1e-5 if name in SINGLE else 1e-9))
    agree(cases)


@pytest.mark.slow
def test_timms_adafactor_decays_relative_to_the_weights_without_a_rate(torch64, x64):
    """s = λ min(10⁻², 1/√t) max(ε₂, RMS(θ)); with ε₂ = 3 both sides of the maximum are met."""
    create, cases = timm_optim().create_optimizer_v2, []
    for given in ({"eps_scale": 1e-3}, {"eps_scale": 1.0, "warmup_init": True}, {"eps_scale": 3.0}):
        settings = {"weight_decay": 0.5, "min_dim_size_to_factor": 2, **given}
        want = torchs(
            lambda p, settings=settings: create(
                [p["bias"], p["kernel"]], "adafactor", lr=None, **settings
            ),
            is_scheduled=False,
        )
        record = convert.from_("timm", "adafactor", rules=EVERYTHING, **settings)
        cases.append((str(given), record, want))
    agree(cases)


def test_every_name_of_timm_is_a_row_or_a_reason():
    names = {*timm_optim().list_optimizers()}
    assert len(names) >= 95
    assert names == {*SOURCES["timm"].entries}


@pytest.mark.parametrize("adapt", [False, slow(True)])
def test_timms_lamb_clips_all_gradients_and_trusts_what_decays(adapt, x64):
    lr, lam, create = 0.01, 0.3, timm_optim().create_optimizer_v2

    def build(p):
        groups = [
            {"params": [p["bias"]], "weight_decay": 0.0},
            {"params": [p["kernel"]], "weight_decay": lam},
        ]
        return create(groups, "lamb", lr=lr, weight_decay=lam, always_adapt=adapt)

    record = convert.from_(
        "timm", "lamb", lr=scheduled(lr), weight_decay=lam, always_adapt=adapt
    )  # by default without biases
    close(ours(record), torchs(build))


NOT_OF_TIMM = {
    ("adafactor", "lr"), ("adafactor", "betas"), ("adafactorbv", "momentum_dtype"),
    ("adafactorbvc", "momentum_dtype"),
}  # fmt: skip


@pytest.mark.parametrize("name", rows_of("timm"))
def test_the_defaults_are_those_of_timm(name):
    torch = imported("torch")
    made = timm_optim().create_optimizer_v2([torch.nn.Parameter(torch.zeros(2, 2))], name)
    for setting, value in SOURCES["timm"].entries[name].defaults.items():
        if (name, setting) not in NOT_OF_TIMM and setting != "initial_lr":
            assert made.defaults[setting] == value, setting


def test_what_timm_names_c_divides_by_the_rate_at_construction():
    record = convert.from_("timm", "adamc", lr=0.1, weight_decay=0.1, rules=EVERYTHING,
                           groups=(("bias", {"lr": 0.01}),))  # fmt: skip
    params = jax.tree.map(jnp.ones_like, jax.tree.map(jnp.asarray, START))
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = record.optimizer.update(still, record.optimizer.init(params), params)
    assert float(updates["kernel"][0, 0]) == pytest.approx(-0.01)
    assert float(updates["bias"][0]) == pytest.approx(-1e-4)


# Keras, whose optimizers run in a scan as ours do.


@pytest.fixture
def keras(x64, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
    package = imported("keras")
    if package.backend.backend() != "jax":
        pytest.skip("keras is configured for another backend")
    package.config.set_floatx("float64")
    yield package
    package.config.set_floatx("float32")


def kerass(keras, optimizer, names=NAMES):
    variables = [keras.Variable(START[name], dtype="float64", name=name) for name in names]
    optimizer.build(variables)

    def step(carry, noise):
        weights, memory = carry
        grads = [noise[name] + 0.1 * w for name, w in zip(names, weights, strict=True)]
        weights, memory = optimizer.stateless_apply(memory, grads, weights)
        return (weights, memory), jnp.concatenate([w.ravel() for w in weights])

    start = [v.value for v in variables], [v.value for v in optimizer.variables]
    with jax.numpy_rank_promotion("allow"):
        noise = jax.tree.map(jnp.asarray, NOISE)
        return np.asarray(jax.jit(lambda c, n: jax.lax.scan(step, c, n)[1])(start, noise))


KERAS = [
    slow("Lion", {"learning_rate": 0.01, "weight_decay": 0.5}),
    slow("Adamax", {"learning_rate": 0.01, "weight_decay": 0.5, "epsilon": 1e-2}),
    slow("Adadelta", {"learning_rate": 1.0, "weight_decay": 0.05}),
    ("Lamb", {"learning_rate": 0.01, "weight_decay": 0.5}),
    slow("Adafactor", {"learning_rate": 0.05, "weight_decay": 0.5}),
    slow("Adafactor", {"learning_rate": 0.05, "weight_decay": 0.5, "relative_step": False}),
    ("Muon", {"learning_rate": 0.01, "weight_decay": 0.5, "adam_weight_decay": 0.1}),
    slow("Muon", {"learning_rate": 0.01, "nesterov": False, "rms_rate": None, "adam_lr_ratio": 2}),
    slow("Lion", {"learning_rate": 0.01, "weight_decay": 0.5, "clipnorm": 0.5}),
    slow("Lamb", {"learning_rate": 0.01, "weight_decay": 0.5, "global_clipnorm": 0.5}),
]


@pytest.mark.parametrize(("name", "settings"), KERAS, ids=label)
def test_keras(name, settings, keras):
    got = ours(convert.from_("keras", name, **settings))
    want = kerass(keras, getattr(keras.optimizers, name)(**settings))
    # on JAX its means and norms of float64 are float32
    close(got, want, 1e-6 if name in ("Adafactor", "Muon") else 1e-9)


@pytest.mark.parametrize("name", [slow(name) for name in rows_of("keras")])
def test_keras_schedules_and_exclusions(name, keras):
    """Keras computes its schedules in float32."""
    lr = 1.0 if name == "Adadelta" else 0.01
    theirs = keras.optimizers.schedules.CosineDecay(lr, STEPS)
    optimizer = getattr(keras.optimizers, name)(theirs, weight_decay=0.3)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    rate = lambda t: lr * 0.5 * (1 + jnp.cos(np.pi * t / STEPS))
    record = convert.from_(
        "keras", name, learning_rate=rate, weight_decay=0.3, exclude_from_weight_decay=["bias"]
    )
    close(ours(record), kerass(keras, optimizer), 1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", rows_of("keras"))
def test_the_defaults_are_those_of_keras(name, keras):
    config = getattr(keras.optimizers, name)().get_config()
    for setting, value in SOURCES["keras"].entries[name].defaults.items():
        want = config[setting] or None if setting == "exclude_layers" else config[setting]
        assert value == want or value == pytest.approx(want, rel=1e-6), setting
    assert convert.from_("keras", name, **config).source == f"keras.optimizers.{name}"


def test_keras_muon_leaves_embeddings_and_what_is_excluded_to_adam(x64):
    params = {"embedding": jnp.ones((2, 3)), "head": jnp.ones((2, 3)), "body": jnp.ones((2, 3))}
    record = convert.from_(
        "keras", "Muon", learning_rate=0.1, weight_decay=0.2, adam_weight_decay=0.5,
        exclude_layers=["^head"],
    )  # fmt: skip
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = record.optimizer.update(still, record.optimizer.init(params), params)
    taken = {name: -float(u[0, 0]) for name, u in updates.items()}
    assert taken == pytest.approx({"embedding": 0.05, "head": 0.05, "body": 0.02})


# Optax.

MASK = {"bias": False, "kernel": True}
OPTAX = {
    "adamw": {"weight_decay": 0.3, "mask": MASK, "nesterov": True},
    "nadamw": {"weight_decay": 0.3, "eps_root": 1e-3},
    "adamaxw": {"weight_decay": 0.3, "mask": MASK},
    "lion": {"weight_decay": 0.3, "b1": 0.8},
    "adan": {"weight_decay": 0.3, "mask": MASK},
    "acprop": {"weight_decay": 0.3, "eps": 1e-3},
    "ademamix": {"weight_decay": 0.3, "b3": 0.99},
    "simplified_ademamix": {"weight_decay": 0.3, "mask": MASK, "alpha": 2.0},
    "galore": {"weight_decay": 0.3, "mask": MASK, "rank": 2},
    "sophia": {"weight_decay": 0.3, "weight_decay_mask": MASK},
    "adadelta": {"weight_decay": 0.3, "weight_decay_mask": MASK},
    "cocob": {"weight_decay": 0.03, "mask": MASK},
    "dog": {"weight_decay": 0.03, "mask": MASK, "learning_rate": 3.0},
    "dowg": {"weight_decay": 0.03, "mask": MASK, "learning_rate": 3.0},
    "lars": {"weight_decay": 0.3, "weight_decay_mask": MASK, "trust_coefficient": 1.0},
    "lars everywhere": {"weight_decay": 0.3, "trust_coefficient": 1.0, "nesterov": True},
    "madgrad": {"weight_decay": 0.03},
    "adafactor": {"weight_decay_rate": 0.003, "weight_decay_mask": MASK, "momentum": 0.9},
    "adafactor bare": {"weight_decay_rate": 0.003, "min_dim_size_to_factor": 2, "eps": 1e-3},
    "lamb": {"weight_decay": 0.3, "mask": MASK},
    "muon": {"weight_decay": 0.3, "adam_weight_decay": 0.1},
    "muon adaptive": {"weight_decay": 0.3, "adaptive": True, "beta": 0.8},
    "novograd": {"weight_decay": 0.03},
    "sgd": {"momentum": 0.9, "nesterov": True},
}  # fmt: skip


def in_optax(name):
    return getattr(optax, name, None) or getattr(optax.contrib, name, None)


def with_objective(optimizer):
    """For Sophia, which takes second derivatives."""
    optimizer = optax.with_extra_args_support(optimizer)
    half = lambda params: sum(jnp.sum(p * p) for p in jax.tree.leaves(params)) / 20
    update = lambda g, state, params: optimizer.update(g, state, params, obj_fn=half)
    return convert.Converted(
        "", optax.GradientTransformation(optimizer.init, update), rules=(), parts=()
    )


@pytest.mark.parametrize("labels", [("adamw",), slow(tuple(OPTAX))], ids=["adamw", "all"])
def test_optax(labels, x64):
    pairs = {}
    for each in labels:
        name, settings = each.split()[0], {"learning_rate": 0.01, **OPTAX[each]}
        settings["learning_rate"] = scheduled(settings["learning_rate"])
        if in_optax(name):  # galore and madgrad are newer than the oldest
            ours_ = convert.from_("optax", name, **settings).optimizer
            pairs[each] = ours_, in_optax(name)(**settings)
    ran = together([with_objective(x).optimizer for pair in pairs.values() for x in pair])
    for each, got, want in zip(pairs, ran[::2], ran[1::2], strict=True):
        print(each, end=": ")
        close(got, want)


def has_decay(factory):
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # no function, or one that hides its parameters
        return False
    return bool({"weight_decay", "weight_decay_rate"} & {*parameters})


def test_every_decay_of_optax_is_a_row_or_a_reason():
    found = {
        name
        for module in (optax, optax.contrib)
        for name, factory in vars(module).items()
        if not name.startswith(("add_", "scale_by_")) and has_decay(factory)
    }  # fmt: skip
    assert len(found) >= 25
    assert found - {*SOURCES["optax"].entries} == set()
    assert {*rows_of("optax")} <= found | {"sgd"}


def test_muons_rest_decays_by_its_own_rate():
    name = "adam_learning_rate"
    if name not in inspect.signature(optax.contrib.muon).parameters:
        pytest.skip(f"Optax {optax.__version__} has no {name}")
    record = convert.from_(
        "optax", "muon", learning_rate=0.1, adam_learning_rate=0.01, weight_decay=0.2,
        adam_weight_decay=0.5,
    )  # fmt: skip
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = record.optimizer.update(still, record.optimizer.init(params), params)
    assert float(updates["kernel"][0, 0]) == pytest.approx(-0.02)
    assert float(updates["bias"][0]) == pytest.approx(-0.005)


def test_a_mask_becomes_rules():
    record = convert.from_(
        "optax", "adamw", learning_rate=0.1, mask={"encoder": True, "head": {"kernel": False}}
    )
    params = {"encoder": {"a": jnp.ones(2), "b": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones(2)}}
    found = wdjax.resolve(record.rules, params)
    assert found == {"encoder": {"a": 1.0, "b": 1.0}, "head": {"kernel": 0.0}}
    with pytest.raises(wdjax.RuleError, match="other"):
        record.optimizer.init({**params, "other": jnp.ones(2)})


# NumPy in place of the packages; tests/test_convert_packages.py runs those where they are.
LR = 0.01
OWN = {"divided": lambda lr: lr}  # the group's initial rate
FIRST = {"divided": lambda lr: LR}  # that of the constructor
ADAM95 = functools.partial(adam_step, b2=0.95)
INITIAL = {"weight_decay": 0.003, "initial_lr": LR}
OTHERS = {
    "lion-pytorch Lion decoupled": (
        {**INITIAL, "decoupled_weight_decay": True},
        decoupled(lion_step, **FIRST),
    ),
    "mosaicml DecoupledAdamW": (INITIAL, decoupled(ADAM95, **OWN)),
    "bitsandbytes Adam": ({"weight_decay": 0.3}, decoupled(adam_step)),
    "deepspeed DeepSpeedCPUAdam L2": (
        {"weight_decay": 0.3, "adamw_mode": False},
        coupled(adam_step),
    ),
    "emerging-optimizers Lion palm": (
        {"weight_decay": 0.3, "weight_decay_method": "palm"},
        decoupled(lion_step, power=2.0),
    ),
}


QUICK = ("lion-pytorch Lion decoupled", "mosaicml DecoupledAdamW", "emerging-optimizers Lion palm")


@pytest.mark.parametrize("case", [case if case in QUICK else slow(case) for case in OTHERS])
def test_update_rules_with_groups_in_numpy(case, x64):
    source, name = case.split()[:2]
    settings, made = OTHERS[case]
    own = {"initial_lr": LR / 3} if source == "mosaicml" else {}
    groups = our_groups(LR, settings["weight_decay"], **own)
    record = convert.from_(source, name, lr=scheduled(LR), **settings, groups=groups)
    lam = settings["weight_decay"]
    steps = {"bias": made(LR / 3, 2 * lam), "kernel": made(LR, lam)}
    close(ours(record), references(steps))


LAM = 0.3


@pytest.mark.parametrize("is_decay", [True, slow(False)])
def test_thinc_in_numpy(is_decay, x64):
    record = convert.from_("thinc", "Adam", learn_rate=LR, L2=LAM, L2_is_weight_decay=is_decay)
    close(ours(record), references(dict.fromkeys(NAMES, thinc_step(LR, not is_decay, LAM))))


def test_thincs_sgd_in_numpy(x64):
    def step(theta, g, t, memory):
        reached = theta - 0.1 * g / max(1.0, np.linalg.norm(g))
        return reached * (1 - 0.1 * LAM)

    close(
        ours(convert.from_("thinc", "SGD", learn_rate=0.1, L2=LAM)),
        references(dict.fromkeys(NAMES, step)),
    )


def test_a_group_of_composer_starts_from_its_own_rate(x64):
    groups = (("bias", {"lr": 0.02, "weight_decay": 0.1}),)
    record = convert.from_("mosaicml", "DecoupledSGDW", lr=0.1, weight_decay=0.1, groups=groups)
    params = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = record.optimizer.update(still, record.optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], -0.1)
    np.testing.assert_allclose(updates["kernel"], -0.1)
    with pytest.raises(ValueError, match="`initial_lr` must be given where `lr` is a schedule"):
        convert.from_("mosaicml", "DecoupledSGDW", lr=0.1, initial_lr=0.1,
                      groups=(("bias", {"lr": scheduled(0.1)}),))  # fmt: skip


# scikit-learn, whose MLP takes a step for each call of partial_fit.


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"solver": "adam", "learning_rate_init": 0.01}, id="adam"),
        slow({"solver": "sgd", "learning_rate_init": 0.05}, id="sgd"),
    ],
)
def test_scikit_learns_mlp(settings, x64):
    network = imported("sklearn.neural_network")
    x, y = RNG.normal(size=(16, 4)), RNG.normal(size=16)
    given = {"alpha": 2.0, "batch_size": 16, **settings}
    model = network.MLPRegressor(
        hidden_layer_sizes=(3,), activation="tanh", shuffle=False, random_state=0, **given
    )
    model.partial_fit(x, y)  # makes the weights; and one step
    model._optimizer = type(model._optimizer)(
        [*model.coefs_, *model.intercepts_], settings["learning_rate_init"]
    )
    start = {"coefs": model.coefs_, "intercepts": model.intercepts_}
    params = jax.tree.map(lambda p: jnp.asarray(p.copy()), start)

    def loss(p):
        hidden = jnp.tanh(x @ p["coefs"][0] + p["intercepts"][0][None])
        out = hidden @ p["coefs"][1] + p["intercepts"][1][None]
        return jnp.mean((out[:, 0] - y) ** 2) / 2

    optimizer = convert.from_("scikit-learn", "MLPRegressor", **given).optimizer

    def step(carry, _):
        p, state = carry
        updates, state = optimizer.update(jax.grad(loss)(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    run = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), None, length=STEPS)[0][0])
    got = run(params)
    for _ in range(STEPS):
        model.partial_fit(x, y)
    for ours_, theirs in zip(got["coefs"] + got["intercepts"],
                             model.coefs_ + model.intercepts_, strict=True):  # fmt: skip
        np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e-9)


# What is decoupled decays as its law says.

DECOUPLED = [
    slow("torch", "Adafactor", {"lr": 0.1}, 0.01, 1),
    slow("torch", "RAdam", {"lr": 0.1, "decoupled_weight_decay": True}, 0.01, 1),
    slow("timm", "adamc", {"lr": 0.1}, 0.01, 2),
    slow("timm", "laprop", {"lr": 0.1}, 0.01, 1),
    ("mosaicml", "DecoupledAdamW", {"lr": 0.1}, 0.1, 1),
    slow("keras", "Lamb", {"learning_rate": 0.1}, 0.01, 1),
    slow("keras", "Muon", {"learning_rate": 0.1, "adam_weight_decay": 0.1}, 0.01, 1),
    slow("lion-pytorch", "Lion", {"lr": 0.1, "decoupled_weight_decay": True}, 0.1, 1),
    slow("bitsandbytes", "Adam", {"lr": 0.1}, 0.01, 1),
    slow("emerging-optimizers", "Lion", {"lr": 0.1, "weight_decay_method": "palm"}, 0.001, 2),
    slow("optax", "adamw", {"learning_rate": 0.1, "mask": MASK}, 0.01, 1),
]


@pytest.mark.parametrize(("source", "name", "settings", "strength", "power"), DECOUPLED)
def test_decay_is_as_declared(source, name, settings, strength, power):
    """A schedule that falls to half: the law's share of it is η or η²."""
    (rate,) = (key for key in settings if key in ("lr", "learning_rate"))
    initial = "initial_lr" in SOURCES[source].entries[name].defaults
    half = lambda t: jnp.where(t < 5, 1.0, 0.5)
    given = {**settings, rate: lambda t: 0.1 * half(t), "weight_decay": 0.1}
    record = convert.from_(source, name, **given, **({"initial_lr": 0.1} if initial else {}))
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}
    wdjax.check_decay(
        record.optimizer,
        params,
        strength=lambda t: strength * half(t) ** power,
        rules=record.rules,
        steps=10,
    )


# The door.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (("pytorch", "SGD"), ValueError, r"knows no source named 'pytorch'. Did you mean 't"),
        (
            ("torch", "Adamw"),
            ValueError,
            r"knows no optimizer of torch named 'Adamw'. Did you mean 'AdamW'\?",
        ),
        (("keras", "lion"), ValueError, r"Did you mean 'Lion'\?"),
        (("torch", "Rprop"), ValueError, r"torch's Rprop has no equivalent here: it has no weight"),
        (("heavyball", "NAdam"), ValueError, r"multiplies the weights by 1 \+ lr·λ: they grow"),
        (("heavyball", "SFAdamW"), ValueError, r"convert\.from_\('schedulefree', 'AdamWSchedul"),
        (("levanter", "soap"), ValueError, r"its update rule is Levanter's own"),
        (("optax", "prodigy"), ValueError, r"a step size that it finds itself"),
        (("pytorch_optimizer", "Kate"), ValueError, r"write wdjax\.decayed\(port\)"),
        (("timm", "muon"), ValueError, r"it rounds them to bfloat16"),
        (("mlx", "Muon"), ValueError, r"0.01 and 10 do the same"),
        (("maxtext", "muon"), ValueError, r"everything but its matrices"),
        (("torch_optimizer", "SGDW"), ValueError, r"takes the constant lr·λ off every weight"),
        (("pytorch_optimizer", "Grams"), ValueError, r"its decay is lost, bit for bit"),
        (("timm", "madgradw"), ValueError, r"its decay stops for ever"),
        (("timm", "lambc"), ValueError, r"its c is not corrected decay but a limit of 1"),
        (("timm", "cadamw"), ValueError, r"Without the mask it is 'adamw'"),
        (("bitsandbytes", "AdamW8bit"), ValueError, r"its moments have 8 bits"),
        (("mosaicml", "DecoupledSGDW"), TypeError, r"needs `lr`, which has no default"),
    ],
    ids=label,
)
def test_what_is_unknown_or_wrong_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        convert.from_(*call)


@pytest.mark.parametrize(
    ("call", "settings", "error", "message"),
    [
        (
            ("torch", "RAdam"),
            {"learning_rate": 1.0},
            TypeError,
            r"'learning_rate'; did you mean 'l",
        ),
        (("torch", "RAdam"), {"betas": (0.9, 1.0)}, ValueError, r"`betas` must be in \[0, 1\)"),
        (("keras", "Lion"), {"beta1": 0.9}, TypeError, r"'beta1'; did you mean 'beta_1'"),
        (("keras", "Lion"), {"use_ema": True}, ValueError, r"`use_ema` has no equivalent"),
        (("keras", "Muon"), {"exclude_layers": "head"}, TypeError, r"Write \['head'\]"),
        (("timm", "adamw"), {"layer_decay": 0.9}, ValueError, r"timm_layer_decay"),
        (("timm", "adamc"), {"lr": scheduled(0.1)}, ValueError, r"`initial_lr` must be given"),
        (
            ("bitsandbytes", "Adam"),
            {"amsgrad": True},
            ValueError,
            r"`amsgrad` must be False; got T",
        ),
        (
            ("emerging-optimizers", "Lion"),
            {"weight_decay_method": "L2"},
            ValueError,
            r"`weight_decay_method` must",
        ),
        (
            ("scikit-learn", "MLPRegressor"),
            {"batch_size": "auto"},
            TypeError,
            r"`batch_size` must be a whole number",
        ),
        (
            ("optax", "adamw"),
            {"learning_rate": 0.1, "mask": lambda p: p},
            TypeError,
            r"Write mask=mask\(params\)",
        ),
        (
            ("optax", "adamw"),
            {"learning_rate": 0.1, "mask": {"a": 1.0}},
            TypeError,
            r"float at 'a'",
        ),
        (
            ("optax", "adamw"),
            {"learning_rate": 0.1, "mask": {"a": True}, "rules": EVERYTHING},
            TypeError,
            r"`mask` and `rules` must not come together",
        ),
        (("optax", "adamw"), {"learning_rate": 0.1, "groups": ()}, TypeError, r"no setting 'gro"),
        (("heavyball", "AdamW"), {"caution": True}, ValueError, r"Nothing here masks the update"),
        (("heavyball", "AdamC"), {"lr": scheduled(0.1)}, ValueError, r"`max_lr` must be given"),
        (("heavyball", "SGD"), {"beta": 1.0}, ValueError, r"`beta` must be in \[0, 1\)"),
        (("mlx", "SGD"), {"learning_rate": 1.0, "dampening": 0.1}, ValueError, r"must be 0\.0"),
        (("paddle", "AdamW"), {"apply_decay_param_fun": len}, ValueError, r"Say it in `rules`"),
        (("maxtext", "adamw"), {"skip_step_on_spikes": True}, ValueError, r"Nothing here skips"),
        (
            ("maxtext", "adamw"),
            {"config": {"opt_type": "sgd"}},
            ValueError,
            r"opt_type='sgd'",
        ),
        (
            ("maxtext", "adamw"),
            {"config": {"steps": 9}},
            ValueError,
            r"no learning_rate, ",
        ),
        (("maxtext", "adamw"), {"config": 3}, TypeError, r"a mapping or have attributes; got 3"),
        (("torch", "AdamW"), {"config": {}}, TypeError, r"is for maxtext, levanter, .* by name"),
        (("levanter", "adam"), {}, ValueError, r"`num_train_steps` must be given"),
        (
            ("levanter", "adam"),
            {"num_train_steps": 9, "lr_schedule": "power"},
            ValueError,
            r"one of constant, .*got 'power'. Give `learning_rate` the schedule",
        ),
        (("levanter", "adam"), {"cycles": 2}, ValueError, r"config\.lr_scheduler\(num_train_steps"),
        (
            ("levanter", "adam"),
            {"adamc_weight_decay": True, "learning_rate": scheduled(0.1)},
            ValueError,
            r"divided by that peak",
        ),
        (
            ("big_vision", "scale_by_adam"),
            {"lr": 0.1, "schedule": [(".*", None)]},
            ValueError,
            r"must be that of all parameters",
        ),
        (
            ("big_vision", "scale_by_adam"),
            {"lr": 0.1, "total_steps": 9, "schedule": {"warmup_epochs": 5}},
            ValueError,
            r"`schedule` has no equivalent here: \{'warmup_epochs': 5\}",
        ),
        (
            ("easylm", "adamw"),
            {"config": {"accumulate_gradient_steps": 2}},
            ValueError,
            r"optax\.MultiSteps",
        ),
        (
            ("t5x", "Adafactor"),
            {"weight_decay_rate": 0.0, "weight_decay_rate_lr_exponent": 2},
            ValueError,
            r"it then counts as 1",
        ),
        (("t5x", "Adafactor"), {"factors": "constant*cube"}, ValueError, r"got 'cube'"),
        (("maxtext", "adamw"), {"adamw_mask": "bias"}, TypeError, r"Write \['bias'\]"),
        (("transformers", "Adafactor"), {"lr": 0.1}, ValueError, r"ignores it. Got lr=0.1 and rel"),
        (("mlx", "Adafactor"), {"relative_step": False}, ValueError, r"Got learning_rate=None and"),
        (
            ("transformers", "Adafactor"),
            {"lr": 0.1, "relative_step": False, "warmup_init": True},
            ValueError,
            r"`warmup_init` needs relative_step=True",
        ),
        (("transformers", "Adafactor"), {"eps": 1e-3}, ValueError, r"`eps` must be a pair"),
        (("pytorch_optimizer", "RAdam"), {"betas": (0.9, 0.5)}, ValueError, r"β₂ above 2/3"),
        (("easylm", "palm"), {"weight_decay": lambda t: 0.1}, TypeError, r"`weight_decay` must be"),
    ],
)
def test_a_wrong_setting_is_refused(call, settings, error, message):
    with pytest.raises(error, match=message):
        convert.from_(*call, **settings)


def test_the_functions_of_their_own_are_behind_the_door_too():
    for source, name, function in [
        ("torch", "SGD", convert.torch_sgd),
        ("keras", "AdamW", convert.keras_adamw),
        ("keras", "L2", convert.keras_l2),
    ]:
        assert str(convert.from_(source, name)) == str(function())
    assert str(convert.from_("paper", "AdamW", weight_decay=0.1)) == str(
        convert.paper_adamw(weight_decay=0.1)
    )


EVERY_ROW = [(source, name) for source in SOURCES for name in rows_of(source)]


def with_what_it_needs(source, name, **settings):
    defaults = SOURCES[source].entries[name].defaults
    needed = {k: 8 if k == "batch_size" else 0.1 for k, v in defaults.items() if v is REQUIRED}
    unset = [key for key in ("learning_rate", "lr") if defaults.get(key, 0) is None]
    needed |= dict.fromkeys(unset, 0.1)
    if unset and "relative_step" in defaults:  # which ignores the rate
        needed["relative_step"] = False
    needed |= {key: 10 for key in ("num_train_steps", "total_steps") if key in defaults}
    return convert.from_(source, name, **{**needed, **settings})


SILENT = {  # at their defaults they are no part of the chain, or they are its rules
    *(
        "mask",
        "weight_decay_mask",
        "wd_mults",
        "adamw_mask",
        "grad_clip_norm",
        "global_norm_clip_threshold",
        "default_weight_decay_mask",
        "fixed_decay",
        "maximize",
        "momentum",
        "nesterov",
        "dampening",
        "accumulator_dtype",
    ),
    *("nesterovs_momentum", "decoupled_weight_decay", "initial_lr", "warmup_steps"),
}


@pytest.mark.parametrize(("source", "name"), EVERY_ROW)
def test_every_row_builds_and_explains_its_settings(source, name):
    record = with_what_it_needs(source, name)
    record.optimizer.init({"layer": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}})
    assert record.source.endswith(name)
    settings = {*SOURCES[source].entries[name].defaults} - SILENT
    assert [setting for setting in settings if f"{setting}=" not in str(record)] == []


def changed(source, name):
    """Another rate, a schedule, and another decay, by the row's own names."""
    defaults = SOURCES[source].entries[name].defaults
    rates = ("lr", "learning_rate_init", "learning_rate", "learn_rate", "alpha")
    rate = next(key for key in rates if key in defaults)
    decays = ("weight_decay", "weight_decay_rate", "adam_weight_decay", "wd", "L2", "alpha")
    decay = next((key for key in decays if key in defaults), None)
    initial = next((key for key in ("initial_lr", "max_lr") if key in defaults), None)
    return {
        rate: scheduled(0.1),
        **({decay: 1e-3} if decay else {}),
        **({initial: 0.1} if initial else {}),
    }


@pytest.mark.parametrize(("source", "name"), EVERY_ROW)
@pytest.mark.first_is_quick
def test_a_checkpoint_fits_after_rate_and_decay_have_changed(source, name):
    params = {"layer": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}}
    one = with_what_it_needs(source, name).optimizer
    other = with_what_it_needs(source, name, **changed(source, name)).optimizer
    states = [jax.eval_shape(optimizer.init, params) for optimizer in (one, other)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


OWN_STATES = ("sophia", "dog", "dowg")  # Optax itself does not keep their dtypes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*swallow this decay")
@pytest.mark.parametrize(("source", "name"), [row for row in EVERY_ROW if row[1] != "sophia"])
def test_dtypes_stay_as_they_are(source, name):
    layer = {"kernel": jnp.ones((3, 2), jnp.bfloat16), "bias": jnp.ones(3, jnp.float32)}
    params = {"layer": layer}
    optimizer = with_what_it_needs(source, name, **changed(source, name)).optimizer
    start = jax.eval_shape(optimizer.init, params)
    updates, state = jax.eval_shape(optimizer.update, params, start, params)
    dtypes = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
    assert dtypes(updates) == dtypes(params)
    if name not in OWN_STATES:
        assert dtypes(state) == dtypes(start)


@pytest.mark.parametrize(
    ("source", "name"), [("torch", "RAdam"), ("keras", "Lamb"), ("timm", "lamb"), ("timm", "adamc")]
)
@pytest.mark.first_is_quick
def test_rates_and_decays_may_be_traced(source, name):
    params = {"kernel": jnp.ones((3, 2))}
    rate = "learning_rate" if source == "keras" else "lr"

    def step(eta, lam):
        optimizer = convert.from_(source, name, **{rate: eta, "weight_decay": lam}).optimizer
        return optimizer.update(params, optimizer.init(params), params)[0]["kernel"]

    together = jax.jit(jax.vmap(step))(jnp.array([0.1, 0.2]), jnp.array([0.3, 0.1]))
    np.testing.assert_allclose(together, [step(0.1, 0.3), step(0.2, 0.1)], rtol=1e-6)


def test_lamb_refuses_groups_while_it_clips():
    groups = (("bias", {"weight_decay": 0.0}),)
    with pytest.raises(ValueError, match="clips by the norm of all groups together"):
        convert.from_("timm", "lamb", groups=groups)
    convert.from_("timm", "lamb", groups=groups, max_grad_norm=None)
