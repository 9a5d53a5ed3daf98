"""What optimizers do to weights, written by hand: the truth that the measured audit is held to.

Weights without a gradient; learning rate η = 0.1, decay λ = 0.01, so λη = 0.001, unless said
otherwise. Four tables: OPTAX has every factory of optax and optax.contrib that takes a learning
rate, with decay on and off; OURS has every method of wdjax; WRONG and RIGHT are compositions.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import wdjax
from wdjax import adaptive, anchors, bounds, gates, matrices, penalties, radial, tuning

ETA, LAM = 0.1, 0.01
BOTH = ETA * LAM
_KERNEL = np.ones((4, 3), np.float32)  # of one shape, so that the audit runs one leaf for both
PARAMS = {"a": {"kernel": _KERNEL, "bias": np.ones(3, np.float32)}, "b": {"kernel": _KERNEL}}
TWO_SHAPES = {**PARAMS, "b": {"kernel": np.ones((3, 2), np.float32)}}
NARROW = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
KERNELS = wdjax.mask(wdjax.standard())
ALL = (("**", 1.0),)
TRUE = jax.tree.map(lambda _: True, PARAMS)
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)
LABELS = {"a": {"kernel": "x", "bias": "x"}, "b": {"kernel": "y"}}
ONLY_B = {"a": {"kernel": False, "bias": False}, "b": {"kernel": True}}
NONE = ("none", 0.0)
UNKNOWN = ("unknown", None)


class Case(NamedTuple):
    """An optimizer and what it does.

    kernel and bias: (acts, shrink), shrink None where it is not a number. says: a piece of each
    warning; for a wrong composition at least one piece must be said, or `raises` be raised.
    """

    make: Callable[[], Any]
    kernel: tuple[str, float | None] | None = None
    bias: tuple[str, float | None] = NONE
    says: tuple[str, ...] = ()
    raises: type[Exception] | None = None
    law: str | None = None
    steps: int | None = None
    params: Any = PARAMS
    rules: Any = None
    extra: Any = None


# Pieces.


def bare(s=LAM, sign=-1.0):
    """u ± sθ, so that no check of ours helps."""
    return optax.stateless(lambda u, p: jax.tree.map(lambda x, w: x + sign * s * w, u, p))


def user_chain(*parts):
    """A chain as somebody writes it."""

    def init(params):
        return [part.init(params) for part in parts]

    def update(updates, state, params=None, **extra):
        after = []
        for part, before in zip(parts, state, strict=True):
            updates, now = optax.with_extra_args_support(part).update(
                updates, before, params, **extra
            )
            after.append(now)
        return updates, after

    return optax.GradientTransformationExtraArgs(init, update)


class EverySecond:
    """A class of somebody's: it acts in every k-th call."""

    def __init__(self, inner, k=2):
        self.inner, self.k = inner, k

    def init(self, params):
        return jnp.zeros((), int), self.inner.init(params)

    def update(self, updates, state, params=None, **extra):
        n, before = state
        new, after = self.inner.update(updates, before, params)
        acts = (n + 1) % self.k == 0

        def pick(a, b):
            return jax.tree.map(lambda x, y: jnp.where(acts, x, y), a, b)

        return pick(new, jax.tree.map(jnp.zeros_like, new)), (n + 1, pick(after, before))


def masked_adamw(mask):
    return optax.adamw(ETA, weight_decay=LAM, mask=mask)


def sgd(**kwargs):
    return optax.sgd(ETA, **kwargs)


D = functools.partial(wdjax.decay_weights, LAM)
X = functools.partial(wdjax.prox_weights, LAM)
A = functools.partial(wdjax.add_decayed_weights, LAM)
PLUS = functools.partial(optax.add_decayed_weights, LAM)
MINUS = functools.partial(optax.add_decayed_weights, -LAM, mask=KERNELS)
traced_rate = optax.inject_hyperparams(optax.scale_by_learning_rate)
inject = optax.inject_hyperparams
WARMUP = optax.warmup_cosine_decay_schedule(0.0, ETA, 20, 200)

# Optax.


def later(module, name, *args, **kwargs):
    """Call a factory that the oldest Optax does not have: `built` then skips."""
    return getattr(module, name)(*args, **kwargs)


_OFF = (
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adan", "amsgrad", "lamb",
    "lars", "nadam", "novograd", "optimistic_adam_v2", "optimistic_gradient_descent",
    "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi",
)  # fmt: skip
_OFF_CONTRIB = (
    "acprop", "ademamix", "adopt", "dog", "dowg", "galore", "momo", "momo_adam", "muon",
    "simplified_ademamix",
)  # fmt: skip
_UNREAD = ("cocob", "dadapt_adamw", "madgrad", "prodigy", "schedule_free_adamw")
_NOTHING = ("nothing decays",)
_BIAS = ("gives a bias or gain the multiplier 0",)

OPTAX = {
    **{n: Case(functools.partial(later, optax, n, ETA), NONE, says=_NOTHING) for n in _OFF},
    **{
        n: Case(functools.partial(later, contrib, n, ETA), NONE, says=_NOTHING)
        for n in _OFF_CONTRIB
    },
    **{
        f"{n}, no decay": Case(
            functools.partial(later, optax, n, ETA, weight_decay=0.0), NONE, says=_NOTHING
        )
        for n in ("adamw", "lion")
    },
    **{
        f"{n}, decay": Case(
            functools.partial(later, optax, n, ETA, weight_decay=LAM, mask=KERNELS),
            ("weights", BOTH),
        )
        for n in ("adamw", "adamaxw", "nadamw", "lion", "adan")
    },
    **{
        f"{n}, decay": Case(
            functools.partial(later, contrib, n, ETA, weight_decay=LAM, mask=KERNELS),
            ("weights", BOTH),
        )
        for n in ("acprop", "ademamix", "galore", "simplified_ademamix")
    },
    **{
        n: Case(functools.partial(later, contrib, n, ETA, weight_decay=LAM), UNKNOWN, UNKNOWN)
        for n in _UNREAD
    },
    # the trust ratio of lamb and lars makes of decay alone a step as long as η times the weights
    "lamb, decay": Case(
        lambda: optax.lamb(ETA, weight_decay=LAM, mask=KERNELS), ("gradient", None)
    ),
    "lars, decay": Case(
        lambda: optax.lars(ETA, LAM, weight_decay_mask=KERNELS), ("gradient", None)
    ),
    "adadelta, decay": Case(
        lambda: optax.adadelta(ETA, weight_decay=LAM, weight_decay_mask=KERNELS),
        ("gradient", None),
    ),
    "adafactor, decay": Case(
        lambda: optax.adafactor(ETA, weight_decay_rate=LAM, weight_decay_mask=KERNELS),
        ("weights", LAM),
    ),
    # λθ is added to the normalized gradient, and momentum 0.9 sums it up
    "novograd, decay": Case(
        lambda: optax.novograd(ETA, weight_decay=LAM),
        ("gradient", BOTH / (1 - 0.9)),
        ("gradient", BOTH / (1 - 0.9)),
        _BIAS,
    ),
    # θ ← (θ − η g ‖θ‖/‖g‖) / √(1 + η²)
    "fromage": Case(
        lambda: optax.fromage(ETA),
        ("weights", 1 - (1 + ETA**2) ** -0.5),
        ("weights", 1 - (1 + ETA**2) ** -0.5),
        _BIAS,
    ),
    # beside two kernels of one shape the bias is unknown: its strength depends on the gradients
    "polyak_sgd": Case(lambda: optax.polyak_sgd(ETA), NONE, says=_NOTHING, params=TWO_SHAPES),
    "noisy_sgd": Case(lambda: optax.noisy_sgd(ETA, key=0), NONE, says=_NOTHING),
    "lbfgs": Case(optax.lbfgs, NONE, says=_NOTHING),
    "lbfgs, no search": Case(lambda: optax.lbfgs(ETA, linesearch=None), NONE, says=_NOTHING),
    # θ ← θ / (1 + ηλ), as MoMo's authors define it
    "momo, decay": Case(
        lambda: contrib.momo(ETA, weight_decay=LAM),
        ("weights", BOTH / (1 + BOTH)),
        ("weights", BOTH / (1 + BOTH)),
        _BIAS,
    ),
    "momo_adam, decay": Case(
        lambda: contrib.momo_adam(ETA, weight_decay=LAM),
        ("weights", BOTH / (1 + BOTH)),
        ("weights", BOTH / (1 + BOTH)),
        _BIAS,
    ),
    "dog, decay": Case(
        lambda: contrib.dog(ETA, weight_decay=LAM), ("gradient", None), ("gradient", None), _BIAS
    ),
    "dowg, decay": Case(
        lambda: contrib.dowg(ETA, weight_decay=LAM), ("gradient", None), ("gradient", None), _BIAS
    ),
    "muon, decay": Case(
        lambda: contrib.muon(ETA, weight_decay=LAM, weight_decay_mask=KERNELS), ("weights", BOTH)
    ),
    "muon, adam decays": Case(
        lambda: contrib.muon(ETA, weight_decay=LAM, adam_weight_decay=LAM),
        ("weights", BOTH),
        ("weights", BOTH),
        _BIAS,
    ),
    "schedule_free_sgd": Case(lambda: contrib.schedule_free_sgd(ETA), UNKNOWN, UNKNOWN),
    "mechanize": Case(lambda: contrib.mechanize(sgd()), UNKNOWN, UNKNOWN),
    "sam": Case(
        lambda: contrib.sam(sgd(), optax.chain(contrib.normalize(), optax.sgd(0.05))),
        UNKNOWN,
        UNKNOWN,
    ),
    "sophia": Case(lambda: contrib.sophia(ETA), raises=TypeError),
    "sophia, obj_fn": Case(
        lambda: contrib.sophia(ETA, weight_decay=LAM, weight_decay_mask=KERNELS),
        ("weights", BOTH),
        extra={"obj_fn": lambda p: sum(jnp.sum(x * x) for x in jax.tree.leaves(p))},
    ),
    "dpsgd": Case(lambda: contrib.dpsgd(ETA, 1.0, 0.1, 0), raises=ValueError),
    "reduce_on_plateau": Case(
        lambda: optax.chain(masked_adamw(KERNELS), contrib.reduce_on_plateau()), ("weights", BOTH)
    ),
    "split_real_and_imaginary": Case(
        lambda: contrib.split_real_and_imaginary(masked_adamw(KERNELS)), ("weights", BOTH)
    ),
    "normalize": Case(lambda: optax.chain(contrib.normalize(), sgd()), NONE, says=_NOTHING),
    # four steps between two synchronizations, half of the way
    "lookahead": Case(
        lambda: optax.lookahead(masked_adamw(KERNELS), 4, 0.5),
        ("weights", 0.5 * (1 - (1 - BOTH) ** 4)),
    ),
}
if not hasattr(optax, "signum"):  # Optax 0.2.5: momo asks for a loss by hand, dog decays by lengths
    for name in ("momo", "momo, decay", "dog, decay"):
        del OPTAX[name]

# Methods of wdjax.


def last(part):
    return optax.chain(optax.adam(ETA), part)


OURS = {
    "decay_weights": Case(lambda: last(D()), ("weights", LAM)),
    "prox_weights": Case(lambda: last(X()), ("weights", LAM / (1 + LAM))),
    "add_decayed_weights, sgd": Case(
        lambda: optax.chain(A(rules=wdjax.standard()), sgd()), ("weights", BOTH)
    ),
    "gates.cautious": Case(lambda: last(D(gate=gates.cautious)), ("weights", LAM)),
    "anchor init": Case(lambda: last(D(anchor="init")), ("point", LAM)),
    # the average has moved to 0.1 of the way when the weights are seen
    "anchors.ema": Case(lambda: last(D(anchor=anchors.ema(0.9))), ("point", 0.9 * LAM)),
    "penalties.l1": Case(lambda: last(D(penalties.l1)), ("constant", None)),
    "penalties.l1, prox": Case(lambda: last(X(penalties.l1)), ("constant", None)),
    "penalties.elastic_net": Case(
        lambda: last(D(penalties.elastic_net(0.5))), ("constant", 0.5 * LAM)
    ),
    "penalties.group_lasso": Case(lambda: last(D(penalties.group_lasso())), ("constant", None)),
    "penalties.huber": Case(lambda: last(D(penalties.huber(0.1))), ("constant", None)),
    "penalties.ball": Case(lambda: last(X(penalties.ball(0.7, axes=-1))), UNKNOWN),
    "penalties.sphere": Case(lambda: last(X(penalties.sphere(0.7, axes=-1))), UNKNOWN),
    "penalties.l0": Case(lambda: last(X(penalties.l0)), UNKNOWN),
    "matrices.nuclear": Case(lambda: last(X(matrices.nuclear)), ("constant", None)),
    "adamw": Case(lambda: wdjax.adamw(ETA, weight_decay=LAM), ("weights", BOTH)),
    "adamw, implicit": Case(
        lambda: wdjax.adamw(ETA, weight_decay=LAM, implicit=True), ("weights", BOTH / (1 + BOTH))
    ),
    "adamw, fixed": Case(
        lambda: wdjax.adamw(ETA, weight_decay=LAM, law=wdjax.fixed), ("weights", LAM)
    ),
    "adamw, lr_squared": Case(
        lambda: wdjax.adamw(ETA, weight_decay=LAM, law=wdjax.lr_squared), ("weights", LAM * ETA**2)
    ),
    "adamw, warm-up": Case(
        lambda: wdjax.adamw(WARMUP, weight_decay=LAM), ("weights", BOTH), steps=200
    ),
    "sgdw": Case(lambda: wdjax.sgdw(ETA, weight_decay=LAM), ("weights", BOTH)),
    "lionw": Case(lambda: wdjax.lionw(ETA, weight_decay=LAM), ("weights", BOTH)),
    "adagradw": Case(lambda: wdjax.adagradw(ETA, weight_decay=LAM), ("weights", BOTH)),
    "muonw": Case(lambda: wdjax.muonw(ETA, weight_decay=LAM), ("weights", BOTH)),
    "decayed": Case(lambda: wdjax.decayed(optax.rmsprop)(ETA, weight_decay=LAM), ("weights", BOTH)),
    "compensated": Case(
        lambda: wdjax.compensated(wdjax.adamw(ETA, weight_decay=LAM)), ("weights", BOTH)
    ),
    "stochastically_rounded": Case(
        lambda: wdjax.stochastically_rounded(wdjax.adamw(ETA, weight_decay=LAM), 0),
        ("weights", BOTH),
    ),
    "metrics.measured": Case(
        lambda: wdjax.metrics.measured(wdjax.adamw(ETA, weight_decay=LAM)), ("weights", BOTH)
    ),
    "adaptive.cpr": Case(lambda: last(adaptive.cpr(bounds.dependent(0.9), strength=LAM)), UNKNOWN),
    "adaptive.cumulative_l1": Case(lambda: last(adaptive.cumulative_l1(LAM)), ("constant", None)),
    "adaptive.swd": Case(
        lambda: adaptive.with_grad(optax.chain(optax.adam(ETA), adaptive.swd(1e-3))), UNKNOWN
    ),
    "adaptive.awd": Case(lambda: optax.chain(adaptive.awd(LAM), sgd()), UNKNOWN),
    "adaptive.ada_decay": Case(
        lambda: optax.chain(adaptive.ada_decay(LAM), sgd()), ("gradient", None)
    ),
    "radial.norm_control": Case(lambda: last(radial.norm_control(LAM)), UNKNOWN),
    "radial.hyperball": Case(lambda: last(radial.hyperball(LAM)), UNKNOWN),
    "radial.rotational": Case(lambda: last(radial.rotational(LAM, axes=-2)), UNKNOWN),
    # it takes the radial part off steps: how much that is depends on gradients
    "radial.radial_brake": Case(lambda: last(radial.radial_brake(0.5)), UNKNOWN, params=TWO_SHAPES),
    "radial.project_radial": Case(lambda: last(radial.project_radial(LAM)), ("weights", LAM)),
    "radial.update_floor": Case(lambda: last(radial.update_floor(0.1)), NONE, says=_NOTHING),
    "radial.relative_update": Case(lambda: last(radial.relative_update(LAM)), NONE, says=_NOTHING),
    # λ starts at 0.001, and the strength multiplies it
    "tuning.hyper_decay": Case(
        lambda: tuning.hyper_decay(
            LAM, lambda p, b: jnp.sum(p["a"]["kernel"] * b[0, 0]), jnp.ones((8, 4))
        ),
        ("weights", LAM * 1e-3),
    ),
}

# Wrong.

_GROWS, _TIMES, _FROZEN = ("grow",), ("times per real step",), ("frozen weights decay",)
_SKIPPED, _TWICE = ("skipped steps decay",), ("2 places of one chain",)
_SWALLOWED, _SEARCH = ("swallows",), ("line search does not see",)


def levanter_like(learning_rate):
    return optax.chain(optax.scale_by_adam(), D(), optax.scale(-learning_rate))


def wrong(says, make, **more):
    return Case(make, says=says, **more)


def refused(make):
    """Ours raises at init already, and the audit lets that through."""
    return Case(make, raises=Exception)


def linesearch():
    return optax.scale_by_backtracking_linesearch(15)


WRONG = {
    # the wrong sign
    "adam, then +λθ": wrong(_GROWS, lambda: last(PLUS())),
    "injected sgd, then +λθ": wrong(_GROWS, lambda: optax.chain(inject(optax.sgd)(ETA), PLUS())),
    "fromage, then +λθ": wrong(_GROWS, lambda: optax.chain(optax.fromage(ETA), PLUS())),
    "adamw of a negative λ": wrong(_GROWS, lambda: optax.adamw(ETA, weight_decay=-LAM)),
    "adamw of a negative rate": wrong(_GROWS, lambda: optax.adamw(-ETA, weight_decay=LAM)),
    "scale without its sign": wrong(
        _GROWS, lambda: optax.chain(optax.scale_by_adam(), PLUS(), optax.scale(ETA))
    ),
    "−λθ before a traced rate": wrong(
        _GROWS, lambda: optax.chain(optax.scale_by_adam(), bare(), traced_rate(ETA))
    ),
    "−λθ before momentum": wrong(_GROWS, lambda: optax.chain(bare(), sgd(momentum=0.9))),
    "−λθ before adam": wrong(_GROWS, lambda: optax.chain(bare(), optax.adam(ETA))),
    "−λθ before masked sgd": wrong(_GROWS, lambda: optax.chain(bare(), optax.masked(sgd(), TRUE))),
    "−λθ before partition": wrong(
        _GROWS,
        lambda: optax.chain(bare(), optax.partition({"x": sgd(), "y": optax.sgd(0.2)}, LABELS)),
    ),
    "−λθ before muon": wrong(_GROWS, lambda: optax.chain(bare(), contrib.muon(ETA))),
    "−λθ before flatten": wrong(_GROWS, lambda: optax.chain(bare(), optax.flatten(sgd()))),
    "decay_weights before a traced rate": wrong(
        _GROWS, lambda: inject(levanter_like)(learning_rate=WARMUP), steps=200
    ),
    "a chain of somebody, +λθ last": wrong(_GROWS, lambda: user_chain(sgd(), PLUS())),
    "a chain of somebody, decay_weights first": wrong(_GROWS, lambda: user_chain(D(), sgd())),
    "add_decayed_weights after measured": wrong(
        _GROWS, lambda: optax.chain(wdjax.metrics.measured(optax.adam(ETA)), A())
    ),
    "add_decayed_weights after sgd": wrong(_GROWS, lambda: optax.chain(sgd(), A())),
    "decay_weights before sgd": wrong(_GROWS, lambda: optax.chain(D(), sgd())),
    # more often than steps
    "after MultiSteps": wrong(_TIMES, lambda: optax.chain(optax.MultiSteps(sgd(), 4), bare())),
    "after apply_every": wrong(_TIMES, lambda: optax.chain(optax.apply_every(3), sgd(), bare())),
    "after a class of somebody": wrong(_TIMES, lambda: optax.chain(EverySecond(sgd()), D())),
    "after conditionally_mask": wrong(
        _TIMES,
        lambda: optax.chain(
            optax.conditionally_mask(sgd(), lambda step, **_: step % 2 == 0), bare()
        ),
    ),
    # on frozen weights
    "after set_to_zero of a part": wrong(
        _FROZEN,
        lambda: optax.chain(
            optax.partition({"x": sgd(), "y": optax.set_to_zero()}, LABELS), bare()
        ),
    ),
    "after scale(0) of a part": wrong(
        _FROZEN, lambda: optax.chain(sgd(), optax.masked(optax.scale(0.0), ONLY_B), D())
    ),
    "after a rate of 0 of a part": wrong(
        _FROZEN,
        lambda: optax.chain(optax.partition({"x": sgd(), "y": optax.sgd(0.0)}, LABELS), bare()),
    ),
    "after a function that stops a part": wrong(
        _FROZEN,
        lambda: optax.chain(
            sgd(),
            optax.stateless(lambda u, p: {**u, "b": jax.tree.map(jnp.zeros_like, u["b"])}),
            D(),
        ),
    ),
    "after freezing in apply_if_finite": wrong(
        _FROZEN,
        lambda: optax.chain(
            optax.apply_if_finite(optax.chain(sgd(), optax.transforms.freeze(ONLY_B)), 3), bare()
        ),
    ),
    # in steps that are skipped
    "after apply_if_finite": wrong(
        _SKIPPED, lambda: optax.chain(optax.apply_if_finite(optax.adam(ETA), 5), bare())
    ),
    "after MultiSteps that skips": wrong(
        _SKIPPED,
        lambda: optax.chain(
            optax.MultiSteps(sgd(), 1, should_skip_update_fn=optax.skip_not_finite), bare()
        ),
    ),
    # twice
    "adamw, then decay": wrong(_TWICE, lambda: optax.chain(optax.adamw(ETA), D())),
    "adamw of ours, then decay": wrong(
        _TWICE, lambda: optax.chain(wdjax.adamw(ETA, weight_decay=LAM), bare(0.003))
    ),
    "adamw, then gated decay": wrong(
        _TWICE,
        lambda: optax.chain(
            optax.adamw(ETA), wdjax.decay_weights(0.003, gate=wdjax.gates.cautious)
        ),
    ),
    "L2 before momentum, then decay": wrong(
        _TWICE, lambda: optax.chain(PLUS(), sgd(momentum=0.9), bare())
    ),
    "L2, then adamw": wrong(_TWICE, lambda: optax.chain(PLUS(), optax.adamw(ETA))),
    # masks and rules
    "a mask with a typing error": wrong(
        _NOTHING,
        lambda: masked_adamw(
            lambda p: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernal", p)
        ),
    ),
    "adamw without a mask": wrong(_BIAS, lambda: optax.adamw(ETA)),
    "an inverted mask": wrong(
        _BIAS, lambda: masked_adamw(lambda p: jax.tree.map(lambda x: x.ndim < 2, p))
    ),
    "a mask that leaves a kernel out": wrong(
        ("does not decay",), lambda: masked_adamw(ONLY_B), rules=wdjax.standard()
    ),
    # rounding
    "bfloat16 adamw": wrong(
        _SWALLOWED,
        lambda: optax.adamw(1e-3, weight_decay=0.1, mask=KERNELS),
        params=NARROW,
    ),
    "bfloat16 prox": wrong(_SWALLOWED, lambda: wdjax.prox_weights(1e-4), params=NARROW),
    "bfloat16 L2": wrong(
        _SWALLOWED,
        lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(1.0)),
        params=NARROW,
    ),
    # line searches
    "L2 before lbfgs": wrong(
        _SEARCH, lambda: optax.chain(PLUS(), optax.lbfgs(linesearch=linesearch()))
    ),
    "decay after backtracking": wrong(
        _SEARCH, lambda: optax.chain(optax.sgd(1.0), linesearch(), MINUS())
    ),
    "L2 before backtracking": wrong(
        _SEARCH, lambda: optax.chain(PLUS(), optax.sgd(1.0), linesearch())
    ),
    # strength
    "λ given for a fraction": wrong(
        ("far too strong",), lambda: last(wdjax.decay_weights(0.1)), steps=10_000
    ),
    "a fixed law with λ of another": wrong(
        ("far too strong",),
        lambda: wdjax.adamw(1e-3, weight_decay=0.1, law=wdjax.fixed),
        steps=10_000,
    ),
    "signs flip": wrong(("one step takes off all",), lambda: optax.chain(sgd(), bare(1.2))),
    "L2 of 30": wrong(
        ("one step takes off all",), lambda: optax.chain(optax.add_decayed_weights(30.0), sgd())
    ),
    "names say nothing": wrong(
        ("because of its shape only",),
        lambda: wdjax.adamw(ETA, weight_decay=LAM),
        params={"mixer": jnp.ones((3, 3)), "bias": jnp.ones(3)},
    ),
    # decay on another sequence than the returned updates
    "schedule_free of adam, then +λθ": wrong(
        _GROWS, lambda: contrib.schedule_free(last(PLUS()), ETA)
    ),
    "mechanize of adam, then +λθ": wrong(_GROWS, lambda: contrib.mechanize(last(PLUS()))),
}

# Right.


def right(make, kernel=("weights", LAM), **more):
    return Case(make, kernel, **more)


RIGHT = {
    "clip, adam, decay": right(
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(ETA), D())
    ),
    "adaptive clipping": right(
        lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.adam(ETA), D())
    ),
    "zero_nans in front": right(lambda: optax.chain(optax.zero_nans(), optax.adam(ETA), D())),
    "centralize in front": right(lambda: optax.chain(optax.centralize(), optax.adam(ETA), D())),
    "noise in front": right(
        lambda: optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.adam(ETA), D())
    ),
    "normalize in front": right(lambda: optax.chain(contrib.normalize(), optax.sgd(ETA), D())),
    "momentum": right(lambda: optax.chain(sgd(momentum=0.9), D())),
    "nesterov": right(lambda: optax.chain(sgd(momentum=0.9, nesterov=True), D())),
    "masked adamw": right(lambda: masked_adamw(KERNELS), ("weights", BOTH)),
    "injected adamw": right(
        lambda: inject(optax.adamw, static_args=("mask",))(ETA, weight_decay=LAM, mask=KERNELS),
        ("weights", BOTH),
        law="lr_scaled",
    ),
    "injected chain of ours": right(
        lambda: inject(lambda rate: wdjax.adamw(rate, weight_decay=LAM))(ETA), ("weights", BOTH)
    ),
    "warm-up": right(
        lambda: optax.adamw(WARMUP, weight_decay=LAM, mask=KERNELS), ("weights", BOTH), steps=200
    ),
    "injected warm-up": right(
        lambda: inject(optax.adamw, static_args=("mask",))(WARMUP, weight_decay=LAM, mask=KERNELS),
        ("weights", BOTH),
        steps=200,
    ),
    "decay inside MultiSteps": right(lambda: optax.MultiSteps(optax.chain(sgd(), D()), 4)),
    "adamw inside MultiSteps, warm-up": right(
        lambda: optax.MultiSteps(optax.adamw(WARMUP, weight_decay=LAM, mask=KERNELS), 3),
        ("weights", BOTH),
        steps=200,
    ),
    "decay inside apply_if_finite": right(
        lambda: optax.apply_if_finite(optax.chain(sgd(), D()), 4)
    ),
    "apply_every before adam": right(
        lambda: optax.chain(sgd(), MINUS(), optax.apply_every(3)), ("weights", 3 * LAM)
    ),
    "partition of two rates": right(
        lambda: optax.partition(
            {"x": wdjax.sgdw(ETA, weight_decay=LAM), "y": wdjax.sgdw(0.2, weight_decay=LAM)},
            LABELS,
        ),
        ("weights", BOTH),
    ),
    "a frozen part": right(
        lambda: optax.partition(
            {"x": wdjax.sgdw(ETA, weight_decay=LAM), "y": optax.set_to_zero()}, LABELS
        ),
        ("weights", BOTH),
    ),
    "freeze after decay": right(
        lambda: optax.chain(sgd(), bare_masked(), optax.transforms.freeze(ONLY_B))
    ),
    "a fixed decay and a rate that starts at 0": right(
        lambda: optax.chain(optax.adam(WARMUP), D()), steps=200
    ),
    "a named chain": right(
        lambda: optax.named_chain(("adam", optax.adam(ETA)), ("decay", MINUS()))
    ),
    "a chain in a chain": right(
        lambda: optax.chain(optax.chain(optax.clip(1.0), optax.adam(ETA)), optax.chain(D()))
    ),
    "masked decay": right(lambda: optax.chain(sgd(), optax.masked(bare(), KERNELS))),
    "a chain of somebody": right(lambda: user_chain(sgd(), D())),
    "written by hand": right(lambda: optax.chain(sgd(), bare_masked())),
    "a class of somebody": right(lambda: EverySecond(optax.chain(sgd(), bare_masked()), 1)),
    "L2 before momentum": right(
        lambda: optax.chain(optax.add_decayed_weights(LAM, KERNELS), sgd(momentum=0.9)),
        ("gradient", BOTH / (1 - 0.9)),
    ),
    "L2 before adam": right(
        lambda: optax.chain(optax.add_decayed_weights(LAM, KERNELS), optax.adam(ETA)),
        ("gradient", None),
    ),
    "L2 before an average of gradients": right(
        lambda: optax.chain(
            optax.add_decayed_weights(LAM, KERNELS), optax.ema(0.9, debias=False), sgd()
        ),
        ("gradient", BOTH),
    ),
    "flatten": right(
        lambda: optax.flatten(sgd_then_minus()), ("weights", LAM), bias=("weights", LAM), says=_BIAS
    ),
    "ema of weights beside": right(
        lambda: optax.chain(sgd(), D(), optax.snapshot("u", lambda u: u))
    ),
    "compensated bfloat16": right(
        lambda: wdjax.compensated(optax.chain(sgd(), wdjax.decay_weights(1e-4))),
        ("weights", 1e-4),
        params=NARROW,
    ),
    "rounded at random, bfloat16": right(
        lambda: wdjax.stochastically_rounded(optax.chain(sgd(), wdjax.decay_weights(1e-4)), 0),
        ("weights", 1e-4),
        params=NARROW,
    ),
    "strong enough for bfloat16": right(
        lambda: optax.chain(sgd(), wdjax.decay_weights(0.02)), ("weights", 0.02), params=NARROW
    ),
    "rules of one's own": right(
        lambda: optax.chain(sgd(), wdjax.decay_weights(LAM, rules=(("bias", 0.0), ("**", 1.0)))),
        rules=(("bias", 0.0), ("**", 1.0)),
    ),
    "masked lion": right(
        lambda: optax.lion(ETA, weight_decay=LAM, mask=KERNELS), ("weights", BOTH)
    ),
    "masked adafactor": right(
        lambda: optax.adafactor(ETA, weight_decay_rate=LAM, weight_decay_mask=KERNELS)
    ),
    "a cautious gate": right(lambda: last(D(gate=gates.cautious))),
    "masked galore": right(
        lambda: contrib.galore(ETA, weight_decay=LAM, mask=KERNELS), ("weights", BOTH)
    ),
}


def bare_masked():
    return optax.masked(bare(), KERNELS)


def sgd_then_minus():
    return optax.chain(sgd(), optax.add_decayed_weights(-LAM))


def built(case):
    """Make an optimizer; what it warns of is not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return case.make()
        except AttributeError as error:
            if "module 'optax" not in str(error):
                raise
            pytest.skip(f"another version of Optax: {error}")
