"""`convert.from_` beside packages that few have: 1,000 steps, a schedule, and groups where there are.

`make oracles` installs the light ones. What else is named here is large, or needs a compiler:
install it, and its tests no longer skip.
"""

import functools
import importlib
import inspect
import types
import typing
import warnings

import numpy as np
import pytest
import script_files
from convert_runs import (
    NAMES,
    NOISE,
    START,
    STEPS,
    agree,
    falling,
    flat,
    groups_of,
    our_groups,
    scheduled,
    torchs,
)
from oracles import composer_optim, imported

from wdjax import convert
from wdjax.convert._sources import SOURCES

LR, LAM, SMALL = 0.01, 0.3, 0.003
FAMILIES = script_files.load("field_guide/families")


# Optimizers for PyTorch, with parameter groups.


@pytest.fixture
def emerging_optimizers(monkeypatch):
    """It asks for Python 3.12, and of what is new there has only typing.override."""
    monkeypatch.setattr(typing, "override", lambda method: method, raising=False)
    imported("torch").compiler.set_stance("force_eager")
    yield imported("emerging_optimizers.scalar_optimizers")
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
    beside("lion-pytorch", imported("lion_pytorch"), cases)


def test_composer(x64):
    cases = {
        "DecoupledAdamW": {"weight_decay": SMALL, "initial_lr": LR},
        "DecoupledAdamW amsgrad": {"weight_decay": SMALL, "initial_lr": LR, "amsgrad": True},
        "DecoupledSGDW": {
            "weight_decay": SMALL, "initial_lr": LR, "momentum": 0.9, "nesterov": True,
        },
    }  # fmt: skip
    beside("mosaicml", composer_optim(), cases, initial_lr=LR / 3)


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
    package = imported("schedulefree")
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


def test_bitsandbytes(x64):
    cases = {"Adam": {}, "AdamW": {"eps": 1e-3}, "Lion": {}}
    beside("bitsandbytes", imported("bitsandbytes").optim, cases, "float32")


def test_deepspeed(x64):
    """It compiles its Adam of the CPU, and has no other there."""
    adam = imported("deepspeed.ops.adam")
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
    ]  # fmt: skip
    courses("mlx", imported("mlx.optimizers"), cases)


def test_paddle(x64):
    """It keeps the shares of its moments in float32."""
    cases = [
        (f"o.{name}(lr, parameters=params, weight_decay=wd)", name, {"weight_decay": LAM}, within)
        for name, within in (
            ("SGD", 1e-9), ("Momentum", FLOAT32), ("Adam", FLOAT32), ("AdamW", FLOAT32)
        )
    ]  # fmt: skip
    courses("paddle", imported("paddle").optimizer, cases)


def test_thinc(x64):
    coupled = {"L2": LAM, "L2_is_weight_decay": False, "grad_clip": 0}
    cases = [
        ("o.Adam(lr, L2=wd)", "Adam", {"L2": LAM}, FLOAT32),
        ("o.Adam(lr, L2=wd, L2_is_weight_decay=False, grad_clip=0)", "Adam", coupled, FLOAT32),
        ("o.SGD(lr, L2=wd, grad_clip=0.5)", "SGD", {"L2": LAM, "grad_clip": 0.5}, FLOAT32),
    ]
    courses("thinc", imported("thinc.api"), cases, "float32")


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
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    kinds = ("int8 int16 int32 int64", "uint8 uint16 uint32 uint64", "float16 float32 float64")
    names = ("int", "uint", "float")
    sctypes = {key: [np.dtype(x).type for x in kind.split()] for key, kind in zip(names, kinds, strict=True)}
    sctypes["complex"] = [np.complex64, np.complex128]
    for kind in (bool, int, float, complex, object, str):
        monkeypatch.setitem(vars(np), kind.__name__, kind)
    monkeypatch.setitem(vars(np), "sctypes", sctypes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield imported("chainer")


# Their defaults.


def theirs(source, name):
    """What the package calls by that name, for the sources above."""
    places = {
        "lion-pytorch": "lion_pytorch", "schedulefree": "schedulefree",
        "bitsandbytes": "bitsandbytes.optim", "deepspeed": "deepspeed.ops.adam",
        "mlx": "mlx.optimizers", "paddle": "paddle.optimizer", "thinc": "thinc.api",
    }  # fmt: skip
    return getattr(imported(places[source]), name)
