"""Converted optimizers against their originals: same model, data and seeds for 1,000 steps."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import imported, timm_optim

import wdjax
from wdjax import convert
from wdjax.rules import RuleError

STEPS, BATCH, FEATURES, HIDDEN = 1_000, 8, 5, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, FEATURES))
Y = np.sin(X @ RNG.normal(size=(FEATURES, 1))) + 0.1 * RNG.normal(size=(64, 1))
BATCHES = RNG.integers(0, 64, size=(STEPS, BATCH))
START = {
    "hidden": {"kernel": RNG.normal(size=(FEATURES, HIDDEN)), "bias": 0.1 * RNG.normal(size=4)},
    "out": {"kernel": RNG.normal(size=(HIDDEN, 1)), "bias": 0.1 * RNG.normal(size=1)},
}
PATHS = [("hidden", "bias"), ("hidden", "kernel"), ("out", "bias"), ("out", "kernel")]
FLAT = np.concatenate([START[a][b].ravel() for a, b in PATHS])
CUTS = np.cumsum([START[a][b].size for a, b in PATHS])[:-1]


ones = functools.partial(np.ones, dtype="float32")


def falling(count):
    """The multiplier of a learning rate: half a cosine from 1 towards 0."""
    cos = np.cos if isinstance(count, int) else jnp.cos
    return 0.5 * (1 + cos(np.pi * count / STEPS))


def walked(optimizer, params, gradient, inputs):
    """Parameters after each step."""

    def step(carry, inputs):
        p, state = carry
        updates, state = optimizer.update(gradient(p, inputs), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    run = jax.jit(lambda p, inputs: jax.lax.scan(step, (p, optimizer.init(p)), inputs)[1])
    return jax.tree.map(np.asarray, run(params, inputs))


def given(p, grads):
    return grads


def ours(optimizer, theirs, cuts=CUTS):
    """Our parameters, given the gradients at theirs: their rows must be ours."""
    grads = [gradient(theta, rows) for theta, rows in zip([FLAT, *theirs], BATCHES, strict=False)]
    if not len(cuts):
        return walked(optimizer, {"w": FLAT}, given, {"w": np.stack(grads)})["w"]
    tree = jax.tree.map(lambda x: np.empty((len(grads), *x.shape)), START)
    for (a, b), part in zip(PATHS, np.split(np.stack(grads), cuts, axis=1), strict=True):
        tree[a][b] = part.reshape(tree[a][b].shape)
    p = walked(optimizer, START, given, tree)
    return np.hstack([p[a][b].reshape(len(grads), -1) for a, b in PATHS])


def gradient(theta, rows):
    """That of the mean squared error of the model, by hand, of all parameters in one row."""
    bias, kernel, last_bias, last = np.split(theta, CUTS)
    x, kernel = X[rows], kernel.reshape(FEATURES, HIDDEN)
    hidden = np.tanh(x @ kernel + bias)
    error = 2 / BATCH * (hidden @ last + last_bias - Y[rows, 0])
    inner = error[:, None] * last * (1 - hidden**2)
    return np.concatenate(
        [inner.sum(0), (x.T @ inner).ravel(), error.sum(keepdims=True), error @ hidden]
    )


def torchs(build, multiplier=None, cuts=()):
    """Parameters after each step, as rows: one for torch, or as many as there are parts."""
    torch = imported("torch")
    parts = [torch.nn.Parameter(torch.tensor(part)) for part in np.split(FLAT, cuts)]
    optimizer, seen = build(torch.optim, parts), []
    schedule = multiplier and torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
    for rows in BATCHES:
        theta = np.concatenate([part.detach().numpy() for part in parts])
        for part, grad in zip(parts, np.split(gradient(theta, rows), cuts), strict=True):
            part.grad = torch.from_numpy(grad)
        optimizer.step()
        if schedule:
            schedule.step()
        seen.append(np.concatenate([part.detach().numpy() for part in parts]))
    return np.stack(seen)


TORCH = {
    "SGD": [
        {"lr": 0.05, "weight_decay": 0.02},
        {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.02},
        {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.02, "nesterov": True},
        {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.02, "dampening": 0.3},
    ],
    "Adam": [
        {"lr": 0.01, "weight_decay": 0.02},
        {"lr": 0.01, "weight_decay": 0.02, "amsgrad": True, "betas": (0.8, 0.95), "eps": 1e-3},
        {"lr": 0.01, "weight_decay": 0.5, "decoupled_weight_decay": True},
    ],
    "AdamW": [
        {"lr": 0.01},
        {"lr": 0.01, "weight_decay": 0.5, "eps": 1e-3},
        {"lr": 0.01, "weight_decay": 0.5, "amsgrad": True},
    ],
    "NAdam": [
        {"lr": 0.01, "weight_decay": 0.02},
        {"lr": 0.01, "weight_decay": 0.5, "decoupled_weight_decay": True, "momentum_decay": 0.1},
    ],
    "Adagrad": [
        {"lr": 0.1, "weight_decay": 0.02},
        {
            "lr": 0.1,
            "weight_decay": 0.02,
            "lr_decay": 0.01,
            "initial_accumulator_value": 0.3,
            "eps": 1e-3,
        },
    ],
    "RMSprop": [
        {"lr": 0.01, "weight_decay": 0.02},
        {"lr": 0.002, "weight_decay": 0.02, "momentum": 0.9, "alpha": 0.9, "eps": 1e-3},
        {"lr": 0.002, "weight_decay": 0.02, "momentum": 0.9, "centered": True, "eps": 1e-3},
    ],
}
CASES = [
    (name, settings, i > 0) for name, all_of in TORCH.items() for i, settings in enumerate(all_of)
]


def function_of(name):
    return getattr(convert, f"torch_{name.lower()}")


def close(agrees, method, oracle, got, want, within=1e-9):
    """Relative to the largest weight of the run; a run that stands still says nothing."""
    scale = np.abs(want).max()
    assert np.abs(want[-1] - want[0]).max() > 0.05
    agrees(f"convert.{method}", oracle, got / scale, want / scale, atol=within)


def label(value):
    if isinstance(value, bool):
        return "scheduled" if value else "constant"
    return value if isinstance(value, str) else ",".join(value)


@pytest.mark.parametrize(("name", "settings", "scheduled"), CASES, ids=label)
def test_torch_and_its_equal_walk_the_same_way(name, settings, scheduled, x64, agrees):
    want = torchs(
        lambda optim, p: getattr(optim, name)(p, foreach=False, **settings),
        falling if scheduled else None,
    )
    rate = (lambda t: settings["lr"] * falling(t)) if scheduled else settings["lr"]
    got = ours(function_of(name)(**{**settings, "lr": rate}).optimizer, want, cuts=())
    close(agrees, f"torch_{name.lower()}", "torch", got, want)


@pytest.fixture
def torch64():
    """NAdam's product of momenta is a float32 in torch, unless float64 is the default."""
    torch = imported("torch")
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(torch.float32)


WAVES = np.cos(np.arange(20.0).reshape(5, 4) + np.arange(5)[:, None, None])


@pytest.mark.parametrize("name", TORCH)
def test_maximize_climbs_the_negated_loss_and_still_decays(name, torch64, x64):
    torch = torch64
    settings = {"lr": 0.02, "weight_decay": 0.3, "maximize": True}
    theirs = torch.nn.Parameter(torch.tensor(START["hidden"]["kernel"]))
    oracle = getattr(torch.optim, name)([theirs], **settings)
    p = {"kernel": START["hidden"]["kernel"]}
    optimizer = function_of(name)(**settings).optimizer
    for grads in WAVES:
        theirs.grad = torch.tensor(grads)
        oracle.step()
    p = walked(optimizer, p, given, {"kernel": WAVES})
    np.testing.assert_allclose(p["kernel"][-1], theirs.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", [*TORCH, "Muon"])
def test_the_defaults_are_those_of_torch(name):
    torch = imported("torch")
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    theirs = getattr(torch.optim, name)([weight]).defaults
    known = inspect.signature(function_of(name)).parameters
    for setting, value in theirs.items():
        if setting not in ("foreach", "fused", "capturable", "differentiable"):
            assert known[setting].default == value, setting
    # all of them are accepted, so that an optimizer at hand can be converted as it is
    assert function_of(name)(**theirs).source == f"torch.optim.{name}"


# Muon.


def muons(shape, torch_settings, our_settings, steps, axes):
    torch = imported("torch")
    rng = np.random.default_rng(1)
    start, noise = rng.normal(size=shape), rng.normal(size=(steps, *shape))
    theirs = torch.nn.Parameter(torch.tensor(start))
    oracle = torch.optim.Muon([theirs], **torch_settings)
    optimizer = convert.torch_muon(**torch_settings, **our_settings).optimizer
    grads, want = np.zeros_like(noise), np.zeros_like(noise)
    for t in range(steps):
        grads[t] = 0.1 * theirs.detach().numpy() + noise[t]
        theirs.grad = torch.tensor(grads[t])
        oracle.step()
        want[t] = theirs.detach().numpy()
    turn = lambda rows: rows.transpose(0, *(1 + axis for axis in axes))
    got = walked(optimizer, {"kernel": turn(start[None])[0]}, given, {"kernel": turn(grads)})
    assert np.abs(want[-1] - start).max() > 0.01
    return np.abs(turn(got["kernel"]) - want).max() / np.abs(start).max()


MUON = [
    {"lr": 0.02},
    {"lr": 0.02, "weight_decay": 0.5, "nesterov": False, "momentum": 0.8, "ns_steps": 3},
    {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw", "eps": 10.0},
]


@pytest.mark.parametrize(
    ("settings", "shape"),
    [(MUON[0], (6, 3)), (MUON[0], (3, 6)), (MUON[1], (6, 3)), (MUON[2], (3, 6))],
    ids=["defaults, tall", "defaults, wide", "plain momentum", "match_rms_adamw"],
)
def test_muon_walks_with_torchs_whose_iteration_keeps_its_digits(
    settings, shape, x64, agrees, monkeypatch
):
    torch = imported("torch")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    ours_only = {"ns_dtype": None, "outputs": -1}  # our matrices are transposed, as in Flax
    worst = muons(shape, settings, ours_only, STEPS, (1, 0))
    agrees("convert.torch_muon", "torch", worst, 0.0, atol=1e-9)


def test_muon_rounds_its_iteration_as_torch_does(x64, agrees):
    """To bfloat16. Sums in another order flip a bit in the end, here after some hundred steps."""
    worst = muons((6, 3), {"lr": 0.02}, {"outputs": 0}, 10, (0, 1))
    agrees("convert.torch_muon", "torch", worst, 0.0, atol=1e-12)
    exact = muons((6, 3), {"lr": 0.02}, {"outputs": 0, "ns_dtype": None}, 1, (0, 1))
    assert exact > 1e-4


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match=r"matrices only; got 'bias' \(4,\)\. Give the other"):
        convert.torch_muon().optimizer.init({"bias": ones(4), "kernel": ones((2, 2))})


def test_muon_shares_a_model_with_another_optimizer():
    params = {"kernel": ones((2, 2)), "bias": ones(2)}
    parts = {"muon": convert.torch_muon(lr=0.1), "other": convert.torch_adamw(lr=0.1)}
    optimizer = optax.partition(
        {name: record.optimizer for name, record in parts.items()},
        lambda tree: jax.tree.map(lambda x: "muon" if x.ndim == 2 else "other", tree),
    )
    rules = (("kernel", 0.1), ("bias", 0.01))
    wdjax.check_decay(optimizer, params, strength=0.1, rules=rules)


# Param groups.


def grouped_settings():
    return [
        ("SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.02}, {"momentum": 0.5}),
        ("AdamW", {"lr": 0.01, "weight_decay": 0.5}, {"betas": (0.5, 0.9), "weight_decay": 0.0}),
        ("RMSprop", {"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.003, "centered": True}),
    ]


@pytest.mark.parametrize(("name", "settings", "bias"), grouped_settings(), ids=lambda x: str(x)[:9])
def test_param_groups_walk_with_torchs(name, settings, bias, x64, agrees):
    head = {"lr": 0.5 * settings["lr"], "weight_decay": 0.1}

    def build(optim, p):
        return getattr(optim, name)(
            [
                {"params": [p[0], p[2]], **bias},
                {"params": [p[3]], **head},
                {"params": [p[1]]},
            ],
            foreach=False,
            **settings,
        )

    scaled = lambda own: {
        **own,
        **({"lr": lambda t, lr=own["lr"]: lr * falling(t)} if "lr" in own else {}),
    }
    record = function_of(name)(
        **scaled(settings), groups=[("bias", scaled(bias)), ("out/kernel", scaled(head))]
    )
    want = torchs(build, falling, CUTS)
    close(agrees, f"torch_{name.lower()}", "torch", ours(record.optimizer, want), want)


@pytest.mark.parametrize("name", [*TORCH, "Muon"])
def test_groups_may_claim_everything(name):
    """No parameter is left for the last part."""
    params, grads = {"kernel": np.eye(2, dtype="f")}, {"kernel": np.eye(2, dtype="f")[None]}
    grouped = function_of(name)(groups=[("kernel", {"lr": 0.1})]).optimizer
    alone = function_of(name)(lr=0.1).optimizer
    got, want = (walked(each, params, given, grads)["kernel"] for each in (grouped, alone))
    np.testing.assert_array_equal(got, want)


def test_lr_scale_multiplies_the_rate_and_with_it_the_decay():
    params = {"kernel": ones((2, 2)), "head": ones((2, 2))}
    rules = (("head", 0.2), ("**", 1.0))
    for lr in (0.1, lambda count: 0.1):
        record = convert.torch_adamw(lr=lr, weight_decay=0.5, groups=[("head", {"lr_scale": 0.2})])
        wdjax.check_decay(record.optimizer, params, strength=0.05, rules=rules)


def test_rules_and_groups_go_together():
    params = {"kernel": ones((2, 2)), "bias": ones(2), "head": {"kernel": ones((2, 2))}}
    record = convert.torch_sgd(
        lr=1.0, weight_decay=0.1, rules=wdjax.standard(), groups=[("head/**", {"lr": 0.5})]
    )
    rules = (("bias", 0.0), ("head/**", 0.5), ("**", 1.0))
    wdjax.check_decay(record.optimizer, params, strength=0.1, rules=rules)


def test_a_group_that_matches_nothing_says_so():
    record = convert.torch_sgd(groups=[("kernal", {"lr": 0.5})])
    with pytest.raises(RuleError, match=r"'kernal' matches no parameter; did you mean \['kernel'"):
        record.optimizer.init({"kernel": ones((2, 2))})


def test_a_rule_that_matches_nothing_says_so_in_spite_of_groups():
    record = convert.torch_sgd(
        weight_decay=0.1, rules=(("bais", 0.0), ("**", 1.0)), groups=[("kernel", {"lr": 0.5})]
    )
    with pytest.raises(RuleError, match="'bais' matches no parameter; did you mean"):
        record.optimizer.init({"kernel": ones((2, 2)), "bias": ones(2)})


def test_rules_that_look_at_neighbors_see_them_in_other_groups():
    """A stacked bias called b is known by the w beside it."""
    params = {"w": ones((3, 2, 2)), "b": ones((3, 2))}
    tx = convert.torch_sgd(
        lr=0.1, weight_decay=0.1, rules=wdjax.standard(), groups=[("b", {"lr": 0.5})]
    ).optimizer
    wdjax.check_decay(tx, params, strength=0.01, rules=(("b", 0.0), ("w", 1.0)))


@pytest.mark.parametrize("group", [{"params": [], "lr": 0.1}, ("bias", 0.1), "bias"])
def test_a_group_is_a_selector_and_settings(group):
    with pytest.raises(TypeError, match=r"every group must be a \(selector, settings\) pair; got"):
        convert.torch_sgd(groups=[group])


# Keras. On JAX its learning rate schedules are float32, whatever the dtypes, and so are functions
# such as tanh (the model's is JAX's own for that reason). A constant learning rate is of floatx.


@pytest.fixture
def keras(request, x64, monkeypatch, tmp_path_factory):
    """Keras with its usual floatx, or the one of the test's parameter."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
    package = imported("keras")
    if package.backend.backend() != "jax":
        pytest.skip("keras is configured for another backend")
    package.config.set_floatx(getattr(request, "param", "float32"))
    yield package
    package.config.set_floatx("float32")


def kerass(keras, build, hidden=None):
    """Parameters after each step of a Keras model and optimizer, as rows."""
    model = keras.Sequential(
        [
            keras.Input((FEATURES,), dtype="float64"),
            keras.layers.Dense(
                HIDDEN, activation=jnp.tanh, kernel_regularizer=hidden, dtype="float64"
            ),
            keras.layers.Dense(1, dtype="float64"),
        ]
    )
    for layer, values in zip(model.layers, START.values(), strict=True):
        layer.set_weights([values["kernel"], values["bias"]])
    optimizer = build(keras.optimizers)
    optimizer.build(model.trainable_variables)

    def loss(weights, rows):
        output, _, penalties = model.stateless_call(
            weights, [], jnp.asarray(X)[rows], return_losses=True
        )
        return jnp.mean((output - jnp.asarray(Y)[rows]) ** 2) + sum(penalties)

    def step(carry, rows):
        weights, memory = carry
        grads = jax.grad(loss)(weights, rows)
        weights, memory = optimizer.stateless_apply(memory, grads, weights)
        return (weights, memory), jnp.concatenate([weights[i].ravel() for i in (1, 0, 3, 2)])

    start = [v.value for v in model.trainable_variables], [v.value for v in optimizer.variables]
    with jax.numpy_rank_promotion("allow"):
        run = jax.jit(lambda carry: jax.lax.scan(step, carry, BATCHES)[1])
        return np.asarray(run(start))


slow = functools.partial(pytest.param, marks=pytest.mark.slow)  # two seconds each, and many
KERAS = [
    slow("SGD", {"learning_rate": 0.05, "weight_decay": 0.02}),
    slow("SGD", {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.02, "clipvalue": 0.05}),
    ("SGD", {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.02, "nesterov": True}),
    slow("Adam", {"learning_rate": 0.01, "clipnorm": 0.1}),
    ("Adam", {"learning_rate": 0.01, "weight_decay": 0.5, "amsgrad": True, "epsilon": 1e-3}),
    slow("AdamW", {"learning_rate": 0.01}),
    slow("AdamW", {"learning_rate": 0.01, "weight_decay": 0.5, "global_clipnorm": 0.1}),
    ("Nadam", {"learning_rate": 0.01, "weight_decay": 0.02}),
    slow("Adagrad", {"learning_rate": 0.1, "weight_decay": 0.02, "epsilon": 1e-3}),
    slow("RMSprop", {"learning_rate": 0.01, "weight_decay": 0.02}),
    ("RMSprop", {"learning_rate": 0.003, "weight_decay": 0.02, "momentum": 0.9, "centered": True}),
]
floatx = functools.partial(pytest.mark.parametrize, "keras", indirect=True)


@floatx(["float64"])
@pytest.mark.parametrize(("name", "settings"), KERAS, ids=label)
def test_keras_and_its_equal_walk_the_same_way(name, settings, keras, agrees):
    function = getattr(convert, f"keras_{name.lower()}")
    want = kerass(keras, lambda optimizers: getattr(optimizers, name)(**settings))
    got = ours(function(**settings).optimizer, want)
    close(agrees, f"keras_{name.lower()}", "keras", got, want)


@pytest.mark.parametrize("name", ["SGD", slow("Adam"), slow("RMSprop")])
def test_keras_schedules_and_exclusions_walk_the_same_way(name, keras, agrees):
    """Schedules are computed in float32, and so is a constant rate with the usual floatx."""
    settings = {"weight_decay": 0.5} | ({} if name == "Adam" else {"momentum": 0.9})

    def build(optimizers):
        schedule = optimizers.schedules.CosineDecay(0.005, STEPS)
        optimizer = getattr(optimizers, name)(schedule, **settings)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    record = getattr(convert, f"keras_{name.lower()}")(
        learning_rate=lambda t: 0.005 * falling(t), exclude_from_weight_decay=["bias"], **settings
    )
    want = kerass(keras, build)
    close(agrees, f"keras_{name.lower()}", "keras", ours(record.optimizer, want), want, 1e-6)


@floatx(["float64"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [slow("L1", {"l1": 0.01}), slow("L2", {"l2": 0.05}), ("L1L2", {"l1": 0.01, "l2": 0.05})],
)
def test_a_kernel_regularizer_is_twice_l2_in_the_gradient(name, settings, keras, agrees):
    """It is clipped with the rest of the gradient."""
    common = {"learning_rate": 0.05, "momentum": 0.9, "clipvalue": 0.1}
    want = kerass(
        keras,
        lambda optimizers: optimizers.SGD(**common),
        getattr(keras.regularizers, name)(**settings),
    )
    function = {"L1": convert.keras_l1, "L2": convert.keras_l2, "L1L2": convert.keras_l1_l2}[name]
    regularizer = function(rules=(("hidden/kernel", 1.0), ("**", 0.0)), **settings)
    got = ours(optax.chain(regularizer.optimizer, convert.keras_sgd(**common).optimizer), want)
    # with the quick compiler L2 is 1.6e-7 away
    close(agrees, f"keras_{name.lower()}", "keras", got, want, within=1e-6)


@floatx(["float32"])
def test_a_constant_learning_rate_of_keras_is_rounded_to_its_floatx(keras, agrees):
    settings = {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.02}
    want = kerass(keras, lambda optimizers: optimizers.SGD(**settings))
    got = ours(convert.keras_sgd(**settings).optimizer, want)
    close(agrees, "keras_sgd", "keras", got, want, 1e-6)
    with pytest.raises(AssertionError, match="allowed are 1e-09"):
        close(agrees, "keras_sgd", "keras", got, want)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Nadam", "Adagrad", "RMSprop"])
def test_the_defaults_are_those_of_keras(name, keras):
    config = getattr(keras.optimizers, name)().get_config()
    function = getattr(convert, f"keras_{name.lower()}")
    known = inspect.signature(function).parameters
    for setting, value in config.items():
        if setting in known:
            want = known[setting].default
            assert value == want or value == pytest.approx(want, rel=1e-6), setting
    # all of them are accepted, so that an optimizer at hand can be converted as it is
    assert function(**config).source == f"keras.optimizers.{name}"


def test_the_regularizers_have_the_defaults_of_keras(keras):
    assert float(keras.regularizers.L1().l1) == pytest.approx(0.01)
    assert keras.regularizers.L2().l2 == 0.01
    assert (keras.regularizers.L1L2().l1, keras.regularizers.L1L2().l2) == (0.0, 0.0)
    for function in (convert.keras_l1, convert.keras_l2, convert.keras_l1_l2):
        for setting, parameter in inspect.signature(function).parameters.items():
            if setting != "rules":
                assert parameter.default == (0.0 if function is convert.keras_l1_l2 else 0.01)


def test_an_exclusion_searches_the_last_segment_of_a_path():
    params = {"bias": {"kernel": ones((2, 2)), "debiased": ones(2)}}
    record = convert.keras_sgd(weight_decay=0.5, exclude_from_weight_decay=["bias"])
    assert wdjax.resolve(record.rules, params) == {"bias": {"debiased": 0.0, "kernel": 1.0}}


# timm, with a module of torch.


def transformer():
    """Two blocks of twelve parameters each, so that timm takes each for a layer, and a head."""
    nn = imported("torch").nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
            self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)

    class Model(nn.Module):
        pretrained_cfg = {"classifier": "head"}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])
            self.head = nn.Linear(4, 2)
            self.pos_embed = nn.Parameter(imported("torch").ones(1, 3, 4))

    return Model().double()


def as_tree(module):
    """Parameters of a module, by the same names."""
    tree = {}
    for name, param in module.named_parameters():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.array(param.detach().numpy())  # a copy: torch steps in place
    return tree


def at(tree, name):
    return functools.reduce(lambda node, key: node[key], name.split("."), tree)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"no_weight_decay_list": ["pos_embed"]},
        {"no_weight_decay_list": ["p*"]},  # not blocks.0.proj
        {"no_weight_decay_list": ["blocks.*.qkv.weight", "pos_emb?d"]},
        {"weight_decay_exclude_1d": False, "no_weight_decay_list": ["head.weight"]},
    ],
    ids=str,
)
def test_timms_decayed_parameters_are_those_of_its_rules(settings, x64):
    group = timm_optim().param_groups_weight_decay
    module = transformer()
    theirs = group(module, weight_decay=0.05, **settings)
    multipliers = wdjax.resolve(wdjax.like.timm(**settings), as_tree(module))
    found = {id(param): part["weight_decay"] for part in theirs for param in part["params"]}
    assert set(found.values()) == {0.0, 0.05}
    for name, param in module.named_parameters():
        assert 0.05 * at(multipliers, name) == found[id(param)], name


def test_a_name_in_timms_list_must_match():
    rules = wdjax.like.timm(no_weight_decay_list=["pos_embd"])
    with pytest.raises(RuleError, match=r"'/pos_embd' matches no parameter; did you mean"):
        wdjax.resolve(rules, {"pos_embed": ones((1, 2, 2))})


@pytest.mark.parametrize("names", [["bias", "layer_norm"], ["layer_norm"]])
def test_a_name_that_keras_would_not_find_is_named(names):
    record = convert.keras_adamw(exclude_from_weight_decay=names)
    with pytest.raises(RuleError, match=r"rule 'layer_norm' of `exclude_from_weight_decay` match"):
        record.optimizer.init({"dense": {"kernel": ones((2, 2)), "bias": ones(2)}})


def test_timms_layer_decay_walks_with_adamw(x64, agrees):
    min_scale = 0.1  # more than the scale of the lowest layer, less than that of the others
    torch = imported("torch")
    module = transformer()
    tree = as_tree(module)
    groups = timm_optim()._param_groups.param_groups_layer_decay(
        module,
        weight_decay=0.5,
        no_weight_decay_list=["pos_embed"],
        layer_decay=0.4,
        min_scale=min_scale,
    )
    for group in groups:  # as timm's own schedulers do
        group["lr"] = 0.01 * group.pop("lr_scale")
    oracle = torch.optim.AdamW(groups, lr=0.01)
    # timm takes the parameters in their order, twelve at a time: pos_embed is the first one
    trunk = [name for name, _ in module.named_parameters() if not name.startswith("head")]
    layers = [
        tuple("/" + name.replace(".", "/") for name in trunk[i : i + 12])
        for i in range(0, len(trunk), 12)
    ]
    record = convert.torch_adamw(
        lr=0.01,
        weight_decay=0.5,
        groups=convert.timm_layer_decay(layers, layer_decay=0.4, min_scale=min_scale),
        rules=wdjax.like.timm(no_weight_decay_list=["pos_embed"]),
    )
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: rng.normal(size=(20, *x.shape)), tree)
    for t in range(20):
        for name, param in module.named_parameters():
            param.grad = torch.tensor(at(grads, name)[t])
        oracle.step()
    tree = walked(record.optimizer, tree, given, grads)
    for name, param in module.named_parameters():
        agrees("convert.timm_layer_decay", "timm", at(tree, name)[-1], param.detach(), atol=1e-13)


# The AdamW paper, in a loop of its own.


def algorithm(number, start, gradient, *, alpha, eta, lam, steps, b1=0.9, b2=0.999, eps=1e-8):
    """Algorithms 1 (SGDW) and 2 (AdamW), line by line."""
    theta, m, v = np.array(start), np.zeros_like(start), np.zeros_like(start)
    for t in range(1, steps + 1):
        g = gradient(theta, t - 1)
        if number == 1:
            m = b1 * m + eta(t - 1) * alpha * g
            theta = theta - m - eta(t - 1) * lam * theta
            continue
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        theta = theta - eta(t - 1) * (alpha * m_hat / (np.sqrt(v_hat) + eps) + lam * theta)
    return theta


def pull(theta, t):
    return (theta - 1.0) * (1 + np.arange(theta.size)) + jnp.cos(1.0 * t)


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
@pytest.mark.parametrize("number", [1, 2], ids=["SGDW", "AdamW"])
def test_the_papers_algorithms_walk_the_same_way(number, scheduled, x64):
    start = np.array([2.0, -1.0, 0.5])
    eta = falling if scheduled else 1.0
    function = convert.paper_sgdw if number == 1 else convert.paper_adamw
    record = function(weight_decay=0.01, alpha=0.05, eta=eta)
    got = walked(record.optimizer, start, pull, np.arange(STEPS))[-1]
    want = algorithm(
        number,
        start,
        lambda theta, t: np.asarray(pull(theta, t)),
        alpha=0.05,
        eta=falling if scheduled else lambda t: 1.0,
        lam=0.01,
        steps=STEPS,
    )
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_the_normalized_decay_is_that_of_the_paper():
    run = {"batch_size": 128, "examples": 50_000, "epochs": 100}
    record = convert.paper_normalized(weight_decay=0.025, **run, alpha=0.5)
    want = 0.025 * np.sqrt(128 / (50_000 * 100))
    wdjax.check_decay(record.optimizer, {"kernel": ones((1, 1))}, strength=want)
    assert "weight_decay=0.025, batch_size=128, examples=50000, epochs=100" in str(record)


# States.

FUNCTIONS = [getattr(convert, name) for name in convert.__all__ if "_" in name]
OTHERS = ("timm", "keras_l", "paper_n", "from_")
OPTIMIZERS = [f for f in FUNCTIONS if not f.__name__.startswith(OTHERS)]


def made(function, **settings):
    needed = {"weight_decay": 0.1} if function.__name__.startswith("paper") else {}
    return function(**{**needed, **settings}).optimizer


def rate_name(function):
    names = inspect.signature(function).parameters
    return next(name for name in ("lr", "learning_rate", "eta") if name in names)


@pytest.mark.parametrize("function", OPTIMIZERS, ids=lambda f: f.__name__)
def test_a_checkpoint_fits_after_lr_and_weight_decay_have_changed(function):
    params = {"kernel": ones((2, 2))}
    schedule = {rate_name(function): falling}
    one = jax.eval_shape(made(function, weight_decay=0.0).init, params)
    other = jax.eval_shape(made(function, weight_decay=0.2, **schedule).init, params)
    assert jax.tree.structure(one) == jax.tree.structure(other)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("function", OPTIMIZERS, ids=lambda f: f.__name__)
def test_dtypes_stay_as_they_are(function, dtype):
    params = {"kernel": np.ones((2, 2), dtype)}
    optimizer = made(function, weight_decay=0.0, **{rate_name(function): falling})
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, params, state, params)
    assert updates["kernel"].dtype == dtype
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("function", [convert.torch_sgd, convert.torch_adamw, convert.keras_sgd])
def test_rates_and_decays_may_be_traced(function):
    params, grads = {"kernel": np.ones((2, 2), "f")}, {"kernel": np.full((2, 2), 0.3, "f")}

    def step(rate, weight_decay):
        optimizer = made(function, weight_decay=weight_decay, **{rate_name(function): rate})
        return optimizer.update(grads, optimizer.init(params), params)[0]["kernel"]

    rates, decays = np.float32([0.1, 0.2]), np.float32([0.3, 0.0])
    together = jax.jit(jax.vmap(step))(rates, decays)
    alone = [
        jax.jit(functools.partial(step, float(rate), float(decay)))()
        for rate, decay in zip(rates, decays, strict=True)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


# The explanation.


def test_the_explanation_names_every_setting_in_the_order_of_the_chain():
    text = str(
        convert.torch_sgd(
            lr=falling, momentum=0.9, dampening=0.5, weight_decay=0.1, maximize=True, foreach=True
        )
    )
    wanted = ["maximize=True", "weight_decay=0.1", "dampening=0.5", "momentum=0.9", "lr=<falling>"]
    places = [text.index(setting) for setting in wanted]
    assert places == sorted(places)
    assert "foreach=True\n    → left out" in text
    assert "rules=everything" in text


@pytest.mark.parametrize("name", [*TORCH, "Muon"])
def test_every_setting_that_changes_a_step_is_explained(name):
    function = function_of(name)
    text = str(function())
    silent = {"groups", "rules", "execution", "ns_dtype", "outputs"}
    switched_off = {"maximize", "momentum", "dampening", "nesterov"}
    for setting, parameter in inspect.signature(function).parameters.items():
        if setting in silent or (setting in switched_off and not parameter.default):
            continue
        if name == "Adagrad" and setting == "lr_decay":
            assert "lr_decay" in text
        assert f"{setting}=" in text, setting


def test_the_decay_that_stands_in_the_explanation_is_the_one_of_the_rules():
    record = convert.torch_adamw(rules=(("bias", 0.0), ("**", 1.0)))
    assert "rules=('bias': 0.0, '**': 1.0)" in str(record)
    assert record.rules == (("bias", 0.0), ("**", 1.0))


def test_a_group_shows_only_what_differs():
    text = str(convert.torch_adamw(groups=[("bias", {"weight_decay": 0.0})]))
    first, _, rest = text.partition("every other parameter")
    assert "'bias': weight_decay=0.0" in first
    assert "nothing: no decay" in first
    assert "betas=" not in first
    assert "betas=" in rest
    assert "wdjax.decay_weights(wdjax.lr_scaled(0.01, 0.001)" in rest


def test_the_html_holds_each_pair_and_names_parameters_only_where_there_are_groups():
    record = convert.torch_adamw(weight_decay=0.1)
    text = record._repr_html_()
    assert "<th" in text
    assert "parameters" not in text
    for setting, meaning in (piece[:2] for piece in record.parts[0][1]):
        assert f">{setting}</td>" in text
        assert f">{meaning}</td>" in text
    text = convert.torch_adamw(groups=[("bias", {"weight_decay": 0.0})])._repr_html_()
    assert text.count("&#x27;bias&#x27;: weight_decay=0.0</td>") == 1
    assert ">parameters</th>" in text


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: convert.torch_sgd(weight_deacy=0.1),
            "torch.optim.SGD has no setting 'weight_deacy'; did you mean 'weight_decay'",
        ),
        (lambda: convert.torch_adam(learning_rate=0.1), "'learning_rate'; did you mean 'lr'"),
        (lambda: convert.torch_adam(b1=0.1), "no setting 'b1'; did you mean 'betas'"),
        (lambda: convert.torch_adamw(mask=None), "no setting 'mask'; did you mean 'rules'"),
        (
            lambda: convert.torch_muon(foreach=False),
            "torch.optim.Muon has no setting 'foreach'; it",
        ),
        (
            lambda: convert.torch_sgd(groups=[("bias", {"momentun": 0.1})]),
            "A group of torch.optim.SGD has no setting 'momentun'; did you mean 'momentum'",
        ),
        (
            lambda: convert.keras_adam(eps=1e-8),
            "keras.optimizers.Adam has no setting 'eps'; did you mean 'epsilon'",
        ),
        (lambda: convert.timm_layer_decay([], decay=0.5), "no setting 'decay'; did you mean"),
        (
            lambda: convert.paper_adamw(weight_decay=0.1, lr=0.1),
            "AdamW, Algorithm 2 of its paper has no setting 'lr'; did you mean 'alpha'",
        ),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_known_one(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convert.torch_sgd(lr=-0.1), "`lr` must be a finite number >= 0"),
        (lambda: convert.torch_sgd(weight_decay=-0.1), "must be a finite number >= 0"),
        (lambda: convert.torch_sgd(momentum=-0.1), "`momentum` must be a finite number >= 0"),
        (
            lambda: convert.torch_sgd(nesterov=True),
            "`nesterov` must come with momentum and without",
        ),
        (
            lambda: convert.torch_sgd(nesterov=True, momentum=0.9, dampening=0.1),
            "without dampening, as in PyTorch; got momentum=0.9, dampening=0.1",
        ),
        (lambda: convert.torch_adam(betas=(0.9, 1.0)), r"`betas` must be in \[0, 1\); got 1.0"),
        (lambda: convert.torch_adam(eps=-1.0), "`eps` must be a finite number >= 0"),
        (lambda: convert.torch_nadam(momentum_decay=-1.0), "`momentum_decay` must be a finite"),
        (lambda: convert.torch_adagrad(lr_decay=-1.0), "`lr_decay` must be a finite number"),
        (
            lambda: convert.torch_adagrad(groups=[("w", {"initial_accumulator_value": 4.0})]),
            "`initial_accumulator_value` of a group has no effect in torch.optim.Adagrad",
        ),
        (lambda: convert.torch_rmsprop(alpha=1.0), r"`alpha` must be in \[0, 1\); got 1.0"),
        (lambda: convert.torch_muon(adjust_lr_fn="spectral"), "`adjust_lr_fn` must be one of"),
        (lambda: convert.torch_muon(outputs=2), r"`outputs` must be in \[-2, 1\]; got 2"),
        (
            lambda: convert.torch_sgd(groups=[("bias", {"lr_scale": -1.0})]),
            "`lr_scale` must be a finite number >= 0",
        ),
        (
            lambda: convert.keras_sgd(use_ema=True),
            r"keras.optimizers.SGD: `use_ema` has no equivalent. Nearest: .*incremental_update",
        ),
        (
            lambda: convert.keras_sgd(gradient_accumulation_steps=4),
            "has no equivalent. Nearest: optax.MultiSteps",
        ),
        (
            lambda: convert.keras_sgd(clipnorm=1.0, clipvalue=1.0),
            "only one of clipnorm, clipvalue, global_clipnorm may be set; got clipnorm=1.0, clipv",
        ),
        (lambda: convert.keras_sgd(momentum=1.5), r"`momentum` must be in \[0, 1\]"),
        (lambda: convert.keras_adam(beta_1=1.0), r"`beta_1` must be in \[0, 1\); got 1.0"),
        (lambda: convert.keras_l2(l2=-0.1), "`l2` must be a finite number >= 0"),
        (
            lambda: convert.timm_layer_decay(["a"], no_opt_scale=0.1),
            "`no_opt_scale` has no equivalent. Nearest: optax.freeze",
        ),
        (
            lambda: convert.timm_layer_decay([], fallback_list=["a"]),
            "`fallback_list` has no equivalent",
        ),
        (lambda: convert.timm_layer_decay(["a"], layer_decay=2.0), r"must be in \[0, 1\]"),
        (lambda: convert.paper_adamw(weight_decay=-1.0), "`weight_decay` must be a finite number"),
        (lambda: convert.paper_adamw(weight_decay=0.1, eta=-1.0), "`eta` must be a finite number"),
    ],
)
def test_a_setting_out_of_range_or_without_equal_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: convert.paper_adamw(weight_decay=1e-4, alpha=optax.constant_schedule(1e-3)),
            "`alpha` must be a finite number >= 0; got .* A schedule goes into `eta`",
        ),
        (lambda: convert.torch_adam(betas=0.9), r"`betas` must be a pair \(β₁, β₂\); got 0.9"),
        (lambda: convert.torch_nadam(betas=(0.9,)), r"`betas` must be a pair \(β₁, β₂\); got \("),
        (
            lambda: convert.torch_sgd(momentum=optax.constant_schedule(0.9)),
            "`momentum` must be a finite number >= 0; got <function",
        ),
        (lambda: convert.torch_adam(eps=None), "`eps` must be a finite number >= 0; got None"),
        (
            lambda: convert.keras_l2(l2=optax.constant_schedule(0.1)),
            "`l2` must be a finite number >= 0; got <function",
        ),
        (
            lambda: convert.keras_l1_l2(l1=0.1, l2=optax.constant_schedule(0.1)),
            "`l2` must be a finite number >= 0; got <function",
        ),
        (
            lambda: convert.keras_sgd(exclude_from_weight_decay="bias"),
            r"`exclude_from_weight_decay` must be a list of names; got 'bias'. Write \['bias'\]",
        ),
        (lambda: convert.timm_layer_decay("stem/**"), "`layers` must be a list of names"),
    ],
)
def test_a_setting_of_another_kind_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match="a complex parameter as two real ones; got 'w'"):
        convert.torch_adam().optimizer.init({"w": np.ones((2, 2), "complex64")})


@pytest.mark.parametrize("setting", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clipping_at_zero_is_off_as_in_keras(setting):
    optimizer = wdjax.convert.keras_sgd(learning_rate=0.5, **{setting: 0.0}).optimizer
    params = {"kernel": ones((2, 2))}
    got, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(got["kernel"], -0.5)
