"""The table of sources: package -> optimizer -> the links of its chain and its own defaults.

A row is read from left to right, as the step is computed: what becomes of the gradient, the
direction, the rate, the decay of the weights. A text in place of a row says why there is none.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import optax

from wdjax import like
from wdjax._trees.kinds import Kind
from wdjax.convert import _keras, _paper, _torch, _update_rules
from wdjax.convert._keras_muon import muon
from wdjax.convert._links import (
    adam,
    averaged,
    by,
    by_batch,
    chain,
    coupled,
    decayed_first,
    early_adam,
    lamb,
    laprop,
    last,
    momentum,
    only,
    ours,
    part,
    rated,
    relative,
    told,
    unless,
    when,
)
from wdjax.convert._pieces import EXECUTION, Build, Converted, Piece, Settings
from wdjax.rules import Rules
from wdjax.schedules import corrected, fixed, lr_squared, schedule_scaled
from wdjax.transforms import EVERYTHING, decay_after_step, prox_weights

REQUIRED = object()
"""In place of a default: the source has none either."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One optimizer of a package.

    Attributes:
        links: its chain.
        defaults: its settings, with the defaults of the package.
        left_out: settings that change no step.
    """

    links: tuple[Build, ...]
    defaults: Settings
    left_out: tuple[str, ...] = ()

    def build(self, s: Settings, rules: Rules) -> list[Piece]:
        """Return the pieces of the chain."""
        first = _torch.ascent(s) if "maximize" in s else []
        return [*first, *chain(*self.links)(s, rules)]


Entry: TypeAlias = Row | Callable[..., Converted] | str


@dataclasses.dataclass(frozen=True)
class Source:
    """One package.

    Attributes:
        name: of the module that has the optimizers, as the explanation shows it.
        entries: by the optimizer's name.
        left_out: settings that change no step.
        no_equal: settings without an equal, and what to write instead.
        rules: what decays by default.
        groups: whether it has parameter groups.
        own_initial_lr: whether a group's initial rate is its own, not that of the constructor.
    """

    name: str
    entries: Mapping[str, Entry]
    left_out: tuple[str, ...] = ()
    no_equal: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: Rules = EVERYTHING
    groups: bool = True
    own_initial_lr: bool = False


def row(*links: Build, left_out: tuple[str, ...] = (), **defaults: Any) -> Row:
    """Return a row; see `Row`."""
    return Row(links, defaults, left_out)


_PAIR: Settings = {"betas": (0.9, 0.999), "eps": 1e-8}
_PLAIN: Settings = {"momentum": 0.0, "dampening": 0.0, "nesterov": False}

_lion = part(optax.scale_by_lion, "betas")
_adamax = part(optax.scale_by_adamax, "betas", "eps")
_adadelta = part(optax.scale_by_adadelta, "rho", "eps")
_radam = ours(_update_rules.radam, "rectified Adam; optax.radam adds ε later", "betas", "eps")
_nadamw = ours(
    _update_rules.nadamw, "Adam that looks ahead; not optax.nadamw, which corrects m otherwise",
    "betas", "eps",
)  # fmt: skip
_adan = ours(
    _update_rules.adan, "Adan with β₂ before d̂; optax.adan has 1 − β₂ there", "betas", "eps"
)
_EARLY = "Adam with ε added before the bias is corrected; optax.scale_by_adam has it after"

_DECOUPLED = "decoupled_weight_decay"
_TORCH: Mapping[str, Entry] = {
    "SGD": _torch.torch_sgd,
    "Adam": _torch.torch_adam,
    "AdamW": _torch.torch_adamw,
    "NAdam": _torch.torch_nadam,
    "Adagrad": _torch.torch_adagrad,
    "RMSprop": _torch.torch_rmsprop,
    "Muon": _torch.torch_muon,
    "RAdam": row(
        unless(_DECOUPLED, coupled), _radam, rated, when(_DECOUPLED, last()),
        lr=1e-3, **_PAIR, weight_decay=0.0, decoupled_weight_decay=False, maximize=False,
    ),
    "Adamax": row(coupled, _adamax, rated, lr=2e-3, **_PAIR, weight_decay=0.0, maximize=False),
    "Adadelta": row(
        coupled, _adadelta, rated, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, maximize=False
    ),
    "Adafactor": row(
        ours(
            lambda power, least, rms: _update_rules.factored(power, 0.0, least),
            "Adafactor's √v with ε₁ as its least value; optax.adafactor adds ε to g²",
            "beta2_decay", "eps",
        ),
        part(optax.clip_by_block_rms, "d"),
        ours(
            lambda least, rms: optax.scale_by_param_block_rms(rms),
            "optax.scale_by_param_block_rms(ε₂): times the RMS of the weights", "eps",
        ),
        relative, last(),
        lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, maximize=False,
    ),
    "ASGD": row(
        coupled, averaged,
        lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0, maximize=False,
    ),
    "Rprop": "it has no weight decay.",
    "LBFGS": "it has no weight decay. See optax.lbfgs.",
}  # fmt: skip

_KERAS: Mapping[str, Entry] = {
    "SGD": _keras.keras_sgd,
    "Adam": _keras.keras_adam,
    "AdamW": _keras.keras_adamw,
    "Nadam": _keras.keras_nadam,
    "Adagrad": _keras.keras_adagrad,
    "RMSprop": _keras.keras_rmsprop,
    "L1": _keras.keras_l1,
    "L2": _keras.keras_l2,
    "L1L2": _keras.keras_l1_l2,
    "Lion": row(
        part(optax.scale_by_lion, "beta_1", "beta_2"), rated, last(),
        learning_rate=1e-3, beta_1=0.9, beta_2=0.99, weight_decay=None,
    ),
    "Adamax": row(
        ours(
            _update_rules.adamax, "Adamax with ε outside the maximum; optax.adamax has it inside",
            "beta_1", "beta_2", "epsilon",
        ),
        rated, last(),
        learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=None,
    ),
    "Adadelta": row(
        part(optax.scale_by_adadelta, "rho", "epsilon"), rated, last(),
        learning_rate=1e-3, rho=0.95, epsilon=1e-7, weight_decay=None,
    ),
    "Lamb": row(
        decayed_first(
            ours(
                lambda *moments: optax.chain(
                    optax.scale_by_adam(*moments), optax.scale_by_trust_ratio()
                ),
                "optax.scale_by_adam, then optax.scale_by_trust_ratio()",
                "beta_1", "beta_2", "epsilon",
            ),
            rated,
        ),
        learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=None,
    ),
    "Adafactor": row(
        decayed_first(
            ours(
                lambda power, added: _update_rules.factored(power, added, 0.0),
                "Adafactor's √v, over the last two axes", "beta_2_decay", "epsilon_1",
            ),
            part(optax.clip_by_block_rms, "clip_threshold"),
            part(optax.scale_by_param_block_rms, "epsilon_2"),
            relative,
        ),
        told("nothing: Keras takes min(η, 1/√t) either way", "relative_step"),
        learning_rate=1e-3, beta_2_decay=-0.8, epsilon_1=1e-30, epsilon_2=1e-3, clip_threshold=1.0,
        relative_step=True, weight_decay=None,
    ),
    "Muon": row(
        muon,
        learning_rate=1e-3, adam_beta_1=0.9, adam_beta_2=0.999, adam_weight_decay=0.004,
        epsilon=1e-7, weight_decay=0.004, exclude_layers=None, exclude_embeddings=True,
        muon_a=3.4445, muon_b=-4.7750, muon_c=2.0315, adam_lr_ratio=1, momentum=0.95, ns_steps=5,
        nesterov=True, rms_rate=0.2,
    ),
    "Ftrl": "its decay is part of its own proximal step.",
    "ScheduleFreeAdamW": "it decays at an iterate between two others; see "
    "optax.contrib.schedule_free with the decay inside.",
}  # fmt: skip

_NESTEROV: Settings = {"momentum": 0.9, "dampening": 0.0, "nesterov": True}
_SUMMED: Settings = {
    "lr": 1e-3, **_PAIR, "eps": 1e-6, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "always_adapt": False,
}  # fmt: skip
_ADAN: Settings = {"lr": 1e-3, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 0.0}
_LAPROP: Settings = {"lr": 4e-4, "betas": (0.9, 0.999), "eps": 1e-15, "weight_decay": 0.0}
_ZERO: Settings = {"weight_decay": 0.0}
_INITIAL: Settings = {"weight_decay": 0.0, "initial_lr": None}
_CAUTIOUS = ("adamw", "nadamw", "lion", "sgdw", "adan", "adanw", "laprop", "lamb", "adamc",
             "nadamc", "lionc", "sgdc", "muon", "adafactor", "mars", "lambw", "radamw")  # fmt: skip
_TIMM: Mapping[str, Entry] = {
    "sgd": row(coupled, momentum, rated, lr=1e-3, **_NESTEROV, **_ZERO),
    "momentum": row(coupled, momentum, rated, lr=1e-3, **{**_NESTEROV, "nesterov": False}, **_ZERO),
    "sgdw": row(momentum, rated, last(), lr=1e-3, **_NESTEROV, **_ZERO),
    "adam": row(coupled, adam, rated, lr=1e-3, **_PAIR, amsgrad=False, **_ZERO),
    "adamw": row(adam, rated, last(), lr=1e-3, **_PAIR, amsgrad=False, **_ZERO),
    "nadamw": row(_nadamw, rated, last(), lr=1e-3, **_PAIR, **_ZERO),
    "radam": row(coupled, _radam, rated, lr=1e-3, **_PAIR, **_ZERO),
    "radamw": row(_radam, rated, last(), lr=1e-3, **_PAIR, **_ZERO),
    "adamax": row(coupled, _adamax, rated, lr=2e-3, **_PAIR, **_ZERO),
    "lion": row(_lion, rated, last(), lr=1e-4, betas=(0.9, 0.99), **_ZERO),
    "adan": row(_adan, rated, last(place=prox_weights), **_ADAN),
    "adanw": row(_adan, rated, last(), **_ADAN),
    "laprop": row(laprop, rated, last(place=decay_after_step), **_LAPROP),
    "lamb": row(lamb, rated, **_SUMMED),
    "adamc": row(adam, rated, last(corrected), lr=1e-3, **_PAIR, amsgrad=False, **_INITIAL),
    "nadamc": row(_nadamw, rated, last(corrected), lr=1e-3, **_PAIR, **_INITIAL),
    "lionc": row(_lion, rated, last(corrected), lr=1e-4, betas=(0.9, 0.99), **_INITIAL),
    "sgdc": row(momentum, rated, last(corrected), lr=1e-3, **_NESTEROV, **_INITIAL),
    "lapropc": row(
        laprop, rated, last(corrected, decay_after_step), **_LAPROP, initial_lr=None
    ),
    "lambc": "its c is no corrected decay but a limit of 1 on the trust ratio, which "
    "optax.scale_by_trust_ratio has not. Use 'lamb', or 'adamc' for corrected decay.",
    **dict.fromkeys(
        ("lars", "larc", "nlars", "nlarc"),
        "a weight_decay of 0 switches its trust ratio off, and 1e-12 in place of 0 makes the step "
        "hundreds of times smaller. Use 'lamb', or optax.lars with a mask.",
    ),
    "madgradw": "its decay stops for ever at 1 − 9·lr·λ of the first weights. Use 'adamw'.",
    **dict.fromkeys(
        ("adamp", "sgdp"),
        "it multiplies the decay of some leaves by wd_ratio, from the angle of their gradient; "
        "sgdp divides it by 1 − momentum, too. Use 'adamw' or 'sgdw'.",
    ),
    **dict.fromkeys(
        ("adopt", "adoptw", "adoptc"),
        "it neither steps nor decays in its first step. Nearest: optax.adopt with "
        "wdjax.decay_weights(wdjax.delayed(wdjax.lr_scaled(λ, lr), 1)) last.",
    ),
    **{
        f"c{name}": f"its update is masked by the sign of the gradient (caution), not its decay; "
        f"nothing here does that. Without the mask it is {name!r}."
        for name in _CAUTIOUS
    },
}  # fmt: skip

_LION: Settings = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}
_METHODS: Settings = {"l2": coupled, "decoupled": chain(), "independent": chain(), "palm": chain()}
_nvidia_first = by("weight_decay_method", **_METHODS)
_nvidia_last = by(
    "weight_decay_method", l2=chain(), decoupled=last(), independent=last(fixed),
    palm=last(lr_squared),
)  # fmt: skip

_IGNORED = "The package ignores it: leave it at its default."
_BITS = ("optim_bits", "args", "min_8bit_size", "block_wise", "is_paged")
_EIGHT = "its moments have 8 bits; without the suffix they have 32 and else it is the same."
_KERNELS = (
    "so on the CPU and by Triton; CUDA kernels (0.49) have wdjax.decay_after_step in its place"
)
_bits_adam = (
    only("amsgrad", False, _IGNORED), only("percentile_clipping", 100, "Clip with optax."),
    adam, rated, last(), told(_KERNELS, "weight_decay"),
)  # fmt: skip
_BITS_ADAM: Settings = {"lr": 1e-3, **_PAIR, "amsgrad": False, "percentile_clipping": 100}

_deepspeed = (
    only("bias_correction", True, "Nothing here leaves it out."),
    only("amsgrad", False, "The package has none either."),
)
_DEEPSPEED: Settings = {
    "lr": 1e-3,
    "bias_correction": True,
    **_PAIR,
    "weight_decay": 0.0,
    "amsgrad": False,
}

_MLP = row(
    by_batch,
    only("learning_rate", "constant", "Give `learning_rate_init` a schedule of the step."),
    by(
        "solver",
        adam=chain(ours(early_adam, _EARLY, "beta_1", "beta_2", "epsilon"), rated),
        sgd=chain(
            rated,
            ours(
                lambda mu, nesterov: optax.trace(mu, nesterov=nesterov),
                "optax.trace, after the learning rate", "momentum", "nesterovs_momentum",
            ),
        ),
    ),
    solver="adam", alpha=1e-4, batch_size=REQUIRED, learning_rate="constant",
    learning_rate_init=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-8, momentum=0.9,
    nesterovs_momentum=True,
)  # fmt: skip

_L2 = "L2_is_weight_decay"
_thinc_clip = when(
    "grad_clip",
    ours(_update_rules.clip_norms, "each leaf's gradient, by its own norm", "grad_clip"),
)
_THINC: Settings = {"L2": 0.0, "L2_is_weight_decay": True, "grad_clip": 1.0, "use_averages": True}
_averages = told("nothing: averages of the weights are not kept here", "use_averages")


def _thinc(*direction: Build, **defaults: Any) -> Row:
    return row(
        unless(_L2, coupled), _thinc_clip, *direction, rated,
        when(_L2, last(place=decay_after_step)), _averages, **defaults, **_THINC,
    )  # fmt: skip


_OPTAX: Settings = {"learning_rate": REQUIRED, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
_ROOT: Settings = {"eps_root": 0.0, "mu_dtype": None}
_NAMES = ("b1", "b2", "eps", "eps_root", "mu_dtype")

SOURCES: Mapping[str, Source] = {
    "torch": Source("torch.optim", _TORCH, EXECUTION),
    "keras": Source("keras.optimizers", _KERAS, groups=False),
    "timm": Source(
        "timm", _TIMM, ("foreach", "capturable", "fused"),
        no_equal={
            "weight_decay_exclude_1d": "Say it in `rules`: "
            "rules=wdjax.like.timm(weight_decay_exclude_1d=False).",
            "layer_decay": "Say it in `groups`: groups=wdjax.convert.timm_layer_decay(layers, "
            "layer_decay=...).",
            "caution": "Nothing here masks the update.",
        },
        rules=like.timm(),
    ),
    "lion-pytorch": Source("lion_pytorch", {
        "Lion": row(
            _lion, rated, unless(_DECOUPLED, last()), when(_DECOUPLED, last(schedule_scaled)),
            left_out=("use_triton",), **_LION, decoupled_weight_decay=False, initial_lr=None,
        ),
    }),
    "mosaicml": Source("composer.optim", {
        "DecoupledAdamW": row(
            adam, rated, last(schedule_scaled), lr=1e-3, betas=(0.9, 0.95), eps=1e-8,
            weight_decay=1e-5, amsgrad=False, initial_lr=None,
        ),
        "DecoupledSGDW": row(
            momentum, rated, last(schedule_scaled), lr=REQUIRED, **_PLAIN, **_INITIAL
        ),
    }, own_initial_lr=True),
    "bitsandbytes": Source("bitsandbytes.optim", {
        "Adam": row(*_bits_adam, **_BITS_ADAM, weight_decay=0.0),
        "AdamW": row(*_bits_adam, **_BITS_ADAM, weight_decay=1e-2),
        "Lion": row(_lion, rated, last(), **_LION),
        **dict.fromkeys(("Adam8bit", "AdamW8bit", "Lion8bit", "PagedAdamW8bit"), _EIGHT),
    }, left_out=_BITS),
    "deepspeed": Source("deepspeed.ops.adam", {
        "Adam": row(
            *_deepspeed, unless("adam_w_mode", coupled), adam, rated, when("adam_w_mode", last()),
            **_DEEPSPEED, adam_w_mode=True, left_out=("torch_adam",),
        ),
        "DeepSpeedCPUAdam": row(
            *_deepspeed, unless("adamw_mode", coupled), adam, rated, when("adamw_mode", last()),
            **_DEEPSPEED, adamw_mode=True, left_out=("fp32_optimizer_states",),
        ),
    }),
    "emerging-optimizers": Source("emerging_optimizers.scalar_optimizers", {
        "Lion": row(
            _nvidia_first, _lion, rated, _nvidia_last,
            **{**_LION, "weight_decay": 0.01}, weight_decay_method="decoupled",
        ),
        "LaProp": row(
            only("correct_bias", True, "Nothing here leaves it out."),
            only("frob_normalize", False, "See wdjax.radial.hyperball."),
            _nvidia_first,
            ours(
                lambda b1, b2, eps: _update_rules.laprop(b1, b2, eps, lambda t: 1.0),
                "LaProp: the momentum of normalized gradients", "betas", "eps",
            ),
            rated, _nvidia_last,
            lr=1e-3, **_PAIR, weight_decay=0.0, correct_bias=True, frob_normalize=False,
            weight_decay_method="decoupled",
        ),
    }),
    "optax": Source("optax", {
        "adamw": row(
            part(optax.scale_by_adam, *_NAMES), rated, last(),
            **_OPTAX, **_ROOT, weight_decay=1e-4, mask=None,
        ),
        "nadamw": row(
            part(optax.scale_by_adam, *_NAMES, nesterov=True), rated, last(),
            **_OPTAX, **_ROOT, weight_decay=1e-4, mask=None,
        ),
        "adamaxw": row(
            part(optax.scale_by_adamax, "b1", "b2", "eps"), rated, last(),
            **_OPTAX, weight_decay=1e-4, mask=None,
        ),
        "lion": row(
            part(optax.scale_by_lion, "b1", "b2", "mu_dtype"), rated, last(),
            learning_rate=REQUIRED, b1=0.9, b2=0.99, mu_dtype=None, weight_decay=1e-3, mask=None,
        ),
        "sgd": row(
            when("momentum", ours(
                lambda mu, nesterov, dtype: optax.trace(mu, nesterov, dtype), "optax.trace",
                "momentum", "nesterov", "accumulator_dtype",
            )),
            rated,
            learning_rate=REQUIRED, momentum=None, nesterov=False, accumulator_dtype=None,
        ),
    }, groups=False),
    "scikit-learn": Source(
        "sklearn.neural_network", {"MLPClassifier": _MLP, "MLPRegressor": _MLP},
        rules=((Kind("scikit-learn: intercepts", lambda leaf: leaf.ndim < 2), 0.0), *EVERYTHING),
        groups=False,
    ),
    "thinc": Source("thinc.optimizers", {
        "Adam": _thinc(
            ours(early_adam, _EARLY, "beta1", "beta2", "eps"),
            learn_rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8,
        ),
        "SGD": _thinc(learn_rate=REQUIRED),
        "RAdam": "it counts steps from 2, and shares a buffer between all parameters.",
    }, groups=False),
    "paper": Source("", {
        "AdamW": _paper.paper_adamw, "SGDW": _paper.paper_sgdw,
    }),
    # Only what must not be converted.
    "heavyball": Source("heavyball", {
        "NAdam": "by default every step also multiplies the weights by 1 + lr·λ: they grow. For "
        "what its name promises write convert.from_('torch', 'NAdam', ...).",
    }),
    "torch_optimizer": Source("torch_optimizer", {
        "SGDW": "it takes the constant lr·λ off every weight, and negative ones run away. For "
        "what its name promises write convert.from_('timm', 'sgdw', ...).",
    }),
    "pytorch_optimizer": Source("pytorch_optimizer", {
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
        "MADGRAD": "its decay stops for ever at 1 − 9·lr·λ of the first weights.",
    }),
    "madgrad": Source("madgrad", {
        "MADGRAD": "its decay stops for ever at 1 − 9·lr·λ of the first weights.",
    }),
    "eformer": Source("eformer.optimizers", dict.fromkeys(
        ("lion", "quad"),
        "it keeps an inner decay that is neither switched off nor masked. Write optax.lion by "
        "convert.from_('optax', 'lion', ...).",
    )),
}  # fmt: skip
