"""`convert.from_` beside packages that few have: 1,000 steps, a schedule, groups if there are any.

`make oracles` installs the light ones. What else is named here is large, or needs a compiler:
install it, and its tests no longer skip.
"""

import collections
import importlib
import inspect
import pathlib
import sys
import types
import typing
import warnings
from unittest import mock

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import script_files
from convert_runs import (
    NAMES,
    NOISE,
    START,
    STEPS,
    agree,
    close,
    falling,
    flat,
    groups_of,
    our_groups,
    scheduled,
    together,
    torchs,
)
from oracles import alone, composer_optim, imported

from wdjax import convert
from wdjax.convert._row import REQUIRED, Row
from wdjax.convert._sources import SOURCES

LR, LAM, SMALL = 0.01, 0.3, 0.003
FAMILIES = script_files.load("field_guide/families")
pytestmark = pytest.mark.slow
MAKE = "`make oracles`"
PACKAGES = {
    "lion-pytorch": lambda: imported("lion_pytorch", MAKE),
    "mosaicml": composer_optim,
    "schedulefree": lambda: imported("schedulefree", MAKE),
    "emerging-optimizers": lambda: imported("emerging_optimizers.scalar_optimizers", MAKE),
    "bitsandbytes": lambda: imported("bitsandbytes", "pip install bitsandbytes").optim,
    "deepspeed": lambda: imported("deepspeed.ops.adam", "pip install deepspeed"),
    "mlx": lambda: imported("mlx.optimizers", "pip install mlx[cpu]"),
    "paddle": lambda: imported("paddle", "pip install paddlepaddle").optimizer,
    "thinc": lambda: imported("thinc.api", "pip install thinc"),
}


# Optimizers for PyTorch, with parameter groups.


@pytest.fixture
def emerging_optimizers(monkeypatch):
    """It asks for Python 3.12, and of what is new there has only typing.override."""
    monkeypatch.setattr(typing, "override", lambda method: method, raising=False)
    imported("torch").compiler.set_stance("force_eager")
    yield PACKAGES["emerging-optimizers"]()
    imported("torch").compiler.set_stance("default")


def beside(source, package, cases, dtype="float64", **own):
    """Compare "name, what is special": settings; `own` is more of ours for the bias."""
    compared = []
    for label, given in cases.items():
        name, given = label.split()[0], {"weight_decay": LAM, **given}
        lam, initial = given.pop("weight_decay"), given.pop("initial_lr", None)
        ours = {**given, "lr": scheduled(LR), "weight_decay": lam}
        groups = our_groups(LR, lam, **(own if initial else {}))
        record = convert.from_(
            source, name, **ours, **({"initial_lr": initial} if initial else {}), groups=groups
        )
        factory = getattr(package, name)
        want = torchs(
            lambda p, factory=factory, lam=lam, given=given: factory(
                groups_of(p, LR, lam), lr=LR, **given
            ),
            dtype=dtype,
        )
        compared.append((label, record, want))
    agree(compared, 1e-9 if dtype == "float64" else 3e-6)


def test_lion_pytorch(x64):
    cases = {
        "Lion": {},
        "Lion decoupled": {
            "weight_decay": SMALL, "decoupled_weight_decay": True, "initial_lr": LR,
        },
    }  # fmt: skip
    beside("lion-pytorch", PACKAGES["lion-pytorch"](), cases)


def test_composer(x64):
    cases = {
        "DecoupledAdamW": {"weight_decay": SMALL, "initial_lr": LR},
        "DecoupledAdamW amsgrad": {"weight_decay": SMALL, "initial_lr": LR, "amsgrad": True},
        "DecoupledSGDW": {
            "weight_decay": SMALL, "initial_lr": LR, "momentum": 0.9, "nesterov": True,
        },
    }  # fmt: skip
    beside("mosaicml", PACKAGES["mosaicml"](), cases, initial_lr=LR / 3)


METHODS = {"decoupled": LAM, "independent": SMALL, "palm": 30.0, "l2": LAM}


def test_emerging_optimizers(emerging_optimizers, torch64, x64):
    cases = {
        f"{name} {method}": {"weight_decay": lam, "weight_decay_method": method}
        for name in ("Lion", "LaProp")
        for method, lam in METHODS.items()
    }
    beside("emerging-optimizers", emerging_optimizers, cases)


def test_schedulefree(x64):
    """The weights are those of training: between its two others."""
    package = PACKAGES["schedulefree"]()
    cases = {
        "AdamWScheduleFree": {"warmup_steps": 100},
        "AdamWScheduleFree other": {"betas": (0.8, 0.95), "weight_lr_power": 1.0, "eps": 1e-3},
        "SGDScheduleFree": {"momentum": 0.7, "warmup_steps": 7},
        "RAdamScheduleFree": {},
    }
    training = {name.split()[0]: in_training(getattr(package, name.split()[0])) for name in cases}
    beside("schedulefree", types.SimpleNamespace(**training), cases)


def in_training(factory):
    def made(*args, **settings):
        optimizer = factory(*args, **settings)
        optimizer.train()
        return optimizer

    return made


def test_transformers_whose_relative_steps_decay_by_the_rms_of_the_weights(torch64, x64):
    """Its Adafactor takes no schedule where its steps are relative."""
    stand_ins = {
        "transformers": {},
        "transformers.trainer_pt_utils": {
            "LayerWiseDummyOptimizer": None, "LayerWiseDummyScheduler": None,
        },
        "transformers.trainer_utils": {"SchedulerType": mock.MagicMock()},
        "transformers.utils": {"logging": mock.MagicMock()},
    }  # fmt: skip
    reason = "pip install --no-deps transformers"
    factory = alone("transformers.optimization", stand_ins, reason).Adafactor
    cases = []
    for given in (
        {"weight_decay": 0.5},
        {"weight_decay": 0.5, "beta1": 0.9, "warmup_init": True, "clip_threshold": 0.7},
        {"weight_decay": 0.5, "eps": (1e-30, 3.0), "decay_rate": -0.6},
        {"weight_decay": LAM, "relative_step": False, "lr": LR},
    ):
        want = torchs(
            lambda p, given=given: factory([p["bias"], p["kernel"]], **given), is_scheduled=False
        )
        record = convert.from_("transformers", "Adafactor", **given)
        cases.append((str(given), record, want))
    agree(cases)


def test_bitsandbytes(x64):
    cases = {"Adam": {}, "AdamW": {"eps": 1e-3}, "Lion": {}}
    beside("bitsandbytes", PACKAGES["bitsandbytes"](), cases, "float32")


def test_deepspeed(x64):
    """It compiles its Adam of the CPU, and has no other there."""
    adam = PACKAGES["deepspeed"]()
    cases = {"DeepSpeedCPUAdam": {}, "DeepSpeedCPUAdam coupled": {"adamw_mode": False}}
    beside("deepspeed", adam, cases, "float32")


# Packages with arrays of their own. The field guide knows how to step them.
BACKWARD = tuple(reversed(NAMES))  # as the field guide orders them
FLOAT32 = 3e-6


def courses(source, package, cases, dtype="float64"):
    """Compare (code, name, settings, within what if not 1e-9)."""
    start = [START[name] for name in BACKWARD]
    given = lambda t, now: [NOISE[n][t] + 0.1 * x for n, x in zip(BACKWARD, now, strict=True)]
    rates = [LR * falling(t) for t in range(STEPS)]
    compared = []
    for code, name, settings, *within in cases:
        rate = "learn_rate" if source == "thinc" else "learning_rate"
        record = convert.from_(source, name, **{rate: scheduled(LR)}, **settings)
        seen = FAMILIES.course(source, code, {"o": package}, start, given, rates, LAM, dtype)
        rows = [flat(dict(zip(BACKWARD, x, strict=True))) for x in seen[1:]]
        compared.append((code, record, np.stack(rows), *within))
    agree(compared)


def test_mlx(x64):
    """It corrects the bias in float32."""
    decays, moves = {"weight_decay": LAM}, {"momentum": 0.9, "nesterov": True}
    corrects = {"bias_correction": True}
    cases = [
        ("o.SGD(lr, weight_decay=wd)", "SGD", decays),
        ("o.SGD(lr, weight_decay=wd, momentum=0.9, nesterov=True)", "SGD", {**decays, **moves}),
        ("o.AdamW(lr, weight_decay=wd)", "AdamW", decays),
        (
            "o.AdamW(lr, weight_decay=wd, bias_correction=True)",
            "AdamW", {**decays, **corrects}, FLOAT32,
        ),
        ("o.Lion(lr, weight_decay=wd)", "Lion", decays),
        (
            "o.Adafactor(lr, relative_step=False, weight_decay=wd, beta_1=0.9)",
            "Adafactor", {**decays, "relative_step": False, "beta_1": 0.9},
        ),
    ]  # fmt: skip
    courses("mlx", PACKAGES["mlx"](), cases)


def test_paddle(x64):
    """It keeps the shares of its moments in float32."""
    cases = [
        (f"o.{name}(lr, parameters=params, weight_decay=wd)", name, {"weight_decay": LAM}, within)
        for name, within in (
            ("SGD", 1e-9), ("Momentum", FLOAT32), ("Adam", FLOAT32), ("AdamW", FLOAT32)
        )
    ]  # fmt: skip
    courses("paddle", PACKAGES["paddle"](), cases)


def test_paddles_groups_whose_rates_multiply_that_of_all(x64):
    own = {"learning_rate": 0.3, "weight_decay": 2 * LAM}
    parts = (
        "[{'params': params[:1]}, {'params': params[1:], 'learning_rate': 0.3, "
        "'weight_decay': 2 * wd}]"
    )
    cases = [
        (
            f"o.{name}(lr, parameters={parts}, weight_decay=wd)", name,
            {"weight_decay": LAM, "groups": (("bias", own),)}, within,
        )
        for name, within in (
            ("SGD", 1e-9), ("Momentum", FLOAT32), ("Adam", FLOAT32), ("AdamW", FLOAT32)
        )
    ]  # fmt: skip
    courses("paddle", PACKAGES["paddle"](), cases)


def test_thinc(x64):
    coupled = {"L2": LAM, "L2_is_weight_decay": False, "grad_clip": 0}
    cases = [
        ("o.Adam(lr, L2=wd)", "Adam", {"L2": LAM}, FLOAT32),
        ("o.Adam(lr, L2=wd, L2_is_weight_decay=False, grad_clip=0)", "Adam", coupled, FLOAT32),
        ("o.SGD(lr, L2=wd, grad_clip=0.5)", "SGD", {"L2": LAM, "grad_clip": 0.5}, FLOAT32),
    ]
    courses("thinc", PACKAGES["thinc"](), cases, "float32")


def test_chainer(chainer, x64):
    """Each step of a link is one of its optimizer; the schedule is in eta."""
    link = chainer.Link()
    with link.init_scope():
        for name in NAMES:
            setattr(link, name, chainer.Parameter(START[name].copy()))
    optimizer = chainer.optimizers.AdamW(alpha=0.02, weight_decay_rate=SMALL, eps=1e-3).setup(link)
    rows = []
    for t in range(STEPS):
        optimizer.eta = float(falling(t))
        for name, p in link.namedparams():
            p.grad = NOISE[name[1:]][t] + 0.1 * p.array
        optimizer.update()
        rows.append(flat({name[1:]: p.array for name, p in link.namedparams()}))
    record = convert.from_(
        "chainer", "AdamW", alpha=0.02, eta=falling, weight_decay_rate=SMALL, eps=1e-3
    )
    agree([("AdamW", record, np.stack(rows))])


@pytest.fixture
def chainer(monkeypatch):
    """It is older than NumPy 2, and than setuptools without distutils of its own."""
    for name in ("numpy.distutils", "numpy.distutils.system_info"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kinds = ("int8 int16 int32 int64", "uint8 uint16 uint32 uint64", "float16 float32 float64")
    names = ("int", "uint", "float")
    sctypes = {
        key: [np.dtype(x).type for x in kind.split()]
        for key, kind in zip(names, kinds, strict=True)
    }
    sctypes["complex"] = [np.complex64, np.complex128]
    for kind in (bool, int, float, complex, object, str):
        monkeypatch.setitem(vars(np), kind.__name__, kind)
    monkeypatch.setitem(vars(np), "sctypes", sctypes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield imported("chainer", "pip install chainer")


# Projects in JAX, which give an Optax transformation, by their whole configurations. MaxText
# installs; the others are clones on the path.
CLONE = "a clone of it on PYTHONPATH"


def maxtext():
    """Its base.yml as it ships, but for what one changes, and the function of its schedule."""
    stand_ins = {
        "maxtext.common": {}, "maxtext.optimizers": {}, "maxtext.utils": {},
        "maxtext.common.common_types": {"DecoderBlockType": None},
        "maxtext.optimizers.muon": {"muon": None},
        "maxtext.utils.muon_utils": {"get_muon_weight_dimension_numbers": None},
        "maxtext.utils.maxtext_muon_utils": {"get_maxtext_muon_weight_dimension_numbers": None},
    }  # fmt: skip
    project = alone("maxtext.optimizers.optimizers", stand_ins, "pip install --no-deps maxtext")
    folder = pathlib.Path(project.__file__).parents[1]
    shipped = imported("yaml", "pip install pyyaml").safe_load(
        (folder / "configs/base.yml").read_text()
    )
    text = (folder / "utils/maxtext_utils.py").read_text()
    function = text[text.index("def create_learning_rate_schedule") :].split("\ndef ")[0]
    kinds = types.SimpleNamespace(
        LearningRateScheduleType=types.SimpleNamespace(COSINE="cosine"),
        WsdDecayStyle=types.SimpleNamespace(LINEAR="linear"),
    )
    names = {"jnp": jnp, "optax": optax, "types": kinds}
    exec(function, names)
    given = {
        "learning_rate": LR, "steps": STEPS, "adam_weight_decay": LAM, "adamw_mask": ["bias"],
        "gradient_clipping_threshold": 0.0, "mu_dtype": "float64",
    }  # fmt: skip
    for name, own in (
        ("adamw", {}),
        ("adamw", {"learning_rate_schedule_steps": 700, "warmup_steps_fraction": 0.0}),
        ("adamw", {"lr_schedule_type": "wsd", "wsd_decay_steps_fraction": 0.3}),
        ("adam_pax", {"lr_schedule_type": "wsd", "wsd_decay_style": "cosine"}),
    ):
        config = {**shipped, **given, "opt_type": name, **own}
        theirs = {**config}  # its loader fills this in
        if theirs["learning_rate_schedule_steps"] == -1:
            theirs["learning_rate_schedule_steps"] = STEPS
        theirs = types.SimpleNamespace(**theirs)
        rate = names["create_learning_rate_schedule"](theirs)
        yield (
            convert.from_("maxtext", name, config=config),
            project.get_optimizer(theirs, rate),
        )


def easylm():
    stand_ins = {"EasyLM": {}, "EasyLM.jax_utils": {"float_to_dtype": None}}
    factory = alone("EasyLM.optimizers", stand_ins, CLONE).OptimizerFactory
    mask = lambda params: {name: name == "kernel" for name in params}
    rules = (("kernel", 1.0), ("**", 0.0))
    rate = {"lr": 0.02, "lr_warmup_steps": 100}
    cosine = {**rate, "lr_decay_steps": STEPS, "weight_decay": LAM}
    for changes in (
        {"adamw_optimizer": cosine},
        {"adamw_optimizer": {**cosine, "multiply_by_parameter_scale": True}},
        {"type": "palm", "palm_optimizer": {**rate, "clip_gradient": 0.5, "weight_decay": 1e-3}},
    ):
        config = factory.get_default_config(changes)
        record = convert.from_("easylm", config.type, config=config, rules=rules)
        yield record, factory.get_optimizer(config, mask)[0]


def big_vision():
    files = {
        "tensorflow": {"io": types.SimpleNamespace(gfile=None)},
        "tensorflow.io": {"gfile": None}, "tensorflow.io.gfile": {"GFile": None},
    }  # fmt: skip
    project = alone("big_vision.optax", files, CLONE)
    shipped = importlib.import_module("big_vision.configs.vit_s16_i1k").get_config()
    cosine = {"decay_type": "cosine", "warmup_steps": 100}
    linear = {"decay_type": "linear", "end": 0.1, "warmup_percent": 0.05, "cooldown_steps": 50}
    root = {"decay_type": "rsqrt", "timescale": 200, "shift": 5, "warmup_steps": 30}
    steps = {"total_steps": STEPS, "batch_size": 1, "data_size": STEPS}
    for name, given, schedule in (
        ("scale_by_adam", {"b2": 0.95}, cosine),
        ("scale_by_lion", {}, linear),
        ("big_vision.scale_by_adafactor", {"beta2_cap": 0.95, "dtype_momentum": "float64"}, root),
        ("big_vision.momentum_hp", {"dtype": "float64", "nesterov": True}, {}),
    ):
        config = shipped.copy_and_resolve_references()
        config.update({"lr": LR, "wd": SMALL, "optax_name": name})
        config.optax, config.schedule = given, schedule
        config.wd_mults = [("bias", 0.5), (".*", 1.0)]
        record = convert.from_("big_vision", name, config=config, total_steps=STEPS)
        yield record, project.make(config, START, sched_kw=steps)[0]


def levanter():
    stand_ins = {
        "haliax": {"is_named_array": None},
        "levanter": {}, "levanter.optim": {}, "levanter.tracker": {"jit_log": None},
        "levanter.optim.clip_update_norm": {"ClipUpdateNormConfig": None},
        "levanter.optim.skipstep": {"SkipStepConfig": int},
        "levanter.optim.util": {"log_norm_passthrough": None, "scan_aware_clip_by_block_rms": None},
        "levanter.utils": {}, "levanter.utils.jax_utils": {"leaf_key_paths": None},
    }  # fmt: skip
    project = alone("levanter.optim.config", stand_ins, CLONE)
    given = {"learning_rate": LR, "weight_decay": LAM, "default_weight_decay_mask": False}
    for name, factory, own in (
        ("adam", project.AdamConfig, {"warmup": 100}),
        ("adam", project.AdamConfig, {"adamc_weight_decay": True, "lr_schedule": "linear"}),
        ("adam", project.AdamConfig, {"nesterov": True, "lr_schedule": "inv", "decay": 0.5}),
        ("lion", project.LionConfig, {"lr_schedule": "inv_sqrt"}),
        ("lion", project.LionConfig, {"lr_schedule": "constant", "warmup": 0, "decay": 10}),
    ):
        config = factory(**given, **own)
        record = convert.from_("levanter", name, config=config, num_train_steps=STEPS)
        yield record, config.build(STEPS)


def t5x():
    """Its Adafactor steps parameters and takes the rate of each step from its trainer."""

    class Definition:
        def __init__(self, hyper_params):
            self.hyper_params = hyper_params

    imported("flax", "pip install flax")
    flat = lambda tree: dict(tree)  # those of the test are flat already
    state = collections.namedtuple("OptimizerState", "step param_states")
    stand_ins = {
        "t5x": {}, "t5x.utils": {"flatten_dict_string_keys": flat},
        "t5x.optimizers": {"OptimizerDef": Definition, "OptimizerState": state},
    }  # fmt: skip
    project = alone("t5x.adafactor", stand_ins, CLONE)
    for given in (
        {"weight_decay_rate": SMALL},
        {"weight_decay_rate_lr_exponent": 2.0, "beta1": 0.9, "clipping_threshold": None},
        {"weight_decay_rate": 0.5, "weight_decay_rate_lr_exponent": 1.0, "factored": False,
         "global_norm_clip_threshold": 1.0, "multiply_by_parameter_scale": False},
    ):  # fmt: skip
        theirs = project.Adafactor(min_dim_size_to_factor=2, **given)
        rate = {"factors": "constant * linear_warmup * rsqrt_decay", "warmup_steps": 50}
        record = convert.from_("t5x", "Adafactor", config=theirs.hyper_params, **rate)
        yield record, stepped(theirs)


def stepped(theirs):
    def update(grads, state, params):
        t = state.step
        rate = 0.5 * jnp.minimum(1.0, t / 50) / jnp.sqrt(jnp.maximum(t, 50))
        own = theirs.hyper_params.replace(learning_rate=rate)
        new, state = theirs.apply_gradient(own, params, state, grads)
        return optax.tree.sub(new, params), state

    return optax.GradientTransformation(theirs.init_state, update)


@pytest.mark.parametrize("pairs", [maxtext, easylm, big_vision, levanter, t5x])
def test_project_in_jax_by_its_whole_configuration(pairs, x64):
    """Their schedules, and t5x' moments, are float32 in part."""
    made = [*pairs()]
    ran = together([x for record, theirs in made for x in (record.optimizer, theirs)])
    for (record, _), got, want in zip(made, ran[::2], ran[1::2], strict=True):
        print(record.source, end=": ")
        close(got, want, 1e-6)


# Their defaults.

NOT_THEIRS = {
    ("lion-pytorch", "initial_lr"), ("mosaicml", "initial_lr"),
    ("bitsandbytes", "percentile_clipping"),  # before 0.50
}  # fmt: skip


@pytest.mark.parametrize("source", PACKAGES)
def test_their_defaults(source, monkeypatch):
    monkeypatch.setattr(typing, "override", lambda method: method, raising=False)
    package = PACKAGES[source]()
    for name, entry in SOURCES[source].entries.items():
        if isinstance(entry, Row) and hasattr(package, name):  # DeepSpeed's Adam is a config's
            theirs = inspect.signature(getattr(package, name)).parameters
            for setting, value in entry.defaults.items():
                if value is not REQUIRED and (source, setting) not in NOT_THEIRS:
                    given = theirs[setting].default
                    assert (tuple(given) if isinstance(given, list) else given) == value, setting
