"""The table of sources: package -> optimizer -> the links of its chain and its own defaults.

A row is read from left to right, as the step is computed: what becomes of the gradient, the
direction, the rate, the decay of the weights. A text in place of a row says why there is none.
"""

from collections.abc import Mapping
from typing import Any

import optax

from wdjax import like
from wdjax._trees.kinds import Kind
from wdjax.convert import _paper, _update_rules
from wdjax.convert._adafactor import PAIRS, adafactor, by_pairs
from wdjax.convert._configs import all_but, big_vision_entries, easylm_entries, named
from wdjax.convert._links import (
    adam,
    by,
    by_batch,
    chain,
    coupled,
    early_adam,
    last,
    momentum,
    only,
    ours,
    part,
    rated,
    told,
    unless,
    when,
)
from wdjax.convert._pieces import EXECUTION, Build, Settings
from wdjax.convert._row import (
    DECOUPLED,
    EARLY,
    INITIAL,
    LION,
    PAIR,
    PLAIN,
    REQUIRED,
    STOPS,
    Row,
    Source,
    lion,
    row,
)
from wdjax.convert._rows_adafactor import EASYLM, T5X, T5X_SCHEDULE
from wdjax.convert._rows_jax import BIG_VISION, LEVANTER, MAXTEXT, levanter_rules
from wdjax.convert._rows_keras import KERAS
from wdjax.convert._rows_optax import OPTAX, OPTAX_NO_EQUAL
from wdjax.convert._rows_others import (
    BALL_NO_EQUAL,
    CHAINER,
    HEAVYBALL,
    MLX,
    PADDLE,
    PADDLE_NO_EQUAL,
)
from wdjax.convert._rows_pytorch_optimizer import PYTORCH_OPTIMIZER
from wdjax.convert._rows_schedulefree import SCHEDULEFREE
from wdjax.convert._rows_timm import TIMM
from wdjax.convert._rows_torch import TORCH
from wdjax.rules import EVERYTHING
from wdjax.schedules import fixed, lr_squared, schedule_scaled
from wdjax.transforms import decay_after_step

_METHODS: Settings = {"l2": coupled, "decoupled": chain(), "independent": chain(), "palm": chain()}
_nvidia_first = by("weight_decay_method", **_METHODS)
_nvidia_last = by(
    "weight_decay_method", l2=chain(), decoupled=last(), independent=last(fixed),
    palm=last(lr_squared),
)  # fmt: skip

_IGNORED = "The package ignores it: leave it at its default."
_BITS = ("args", "min_8bit_size", "block_wise", "is_paged")
_EIGHT = "its moments have 8 bits; without the suffix they have 32 and else it is the same."
_KERNELS = "so on the CPU and by Triton; CUDA kernels (0.49) decay after it: wdjax.decay_after_step"
_bits_only = (
    only("optim_bits", 32, "With 8 the moments are rounded, which nothing here does."),
    only("percentile_clipping", 100, "Clip with optax."),
)
_bits_adam = (
    *_bits_only, only("amsgrad", False, _IGNORED), adam, rated, last(),
    told(_KERNELS, "weight_decay"),
)  # fmt: skip
_BITS_ONLY: Settings = {"optim_bits": 32, "percentile_clipping": 100}
_BITS_ADAM: Settings = {"lr": 1e-3, **PAIR, "amsgrad": False, **_BITS_ONLY}

_deepspeed = (
    only("bias_correction", True, "Nothing here leaves it out."),
    only("amsgrad", False, "The package has none either."),
)
_DEEPSPEED: Settings = {
    "lr": 1e-3,
    "bias_correction": True,
    **PAIR,
    "weight_decay": 0.0,
    "amsgrad": False,
}

_MLP = row(
    by_batch,
    only("learning_rate", "constant", "Give `learning_rate_init` a schedule of the step."),
    by(
        "solver",
        adam=chain(ours(early_adam, EARLY, "beta_1", "beta_2", "epsilon"), rated),
        sgd=chain(
            rated,
            part(optax.trace, "momentum", "nesterovs_momentum"),
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


_PADDLE_LEFT_OUT = ("lazy_mode", "multi_precision", "use_multi_tensor", "name")
SOURCES: Mapping[str, Source] = {
    "torch": Source("torch.optim", TORCH, EXECUTION),
    "keras": Source("keras.optimizers", KERAS, groups=False),
    "timm": Source(
        "timm", TIMM, ("foreach", "capturable", "fused"),
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
            lion, rated, unless(DECOUPLED, last()), when(DECOUPLED, last(schedule_scaled)),
            left_out=("use_triton",), **LION, decoupled_weight_decay=False, initial_lr=None,
        ),
    }),
    "mosaicml": Source("composer.optim", {
        "DecoupledAdamW": row(
            adam, rated, last(schedule_scaled), lr=1e-3, betas=(0.9, 0.95), eps=1e-8,
            weight_decay=1e-5, amsgrad=False, initial_lr=None,
        ),
        "DecoupledSGDW": row(
            momentum, rated, last(schedule_scaled), lr=REQUIRED, **PLAIN, **INITIAL
        ),
    }, own_initial_lr=True),
    "bitsandbytes": Source("bitsandbytes.optim", {
        "Adam": row(*_bits_adam, **_BITS_ADAM, weight_decay=0.0),
        "AdamW": row(*_bits_adam, **_BITS_ADAM, weight_decay=1e-2),
        "Lion": row(*_bits_only, lion, rated, last(), **LION, **_BITS_ONLY),
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
            _nvidia_first, lion, rated, _nvidia_last,
            **{**LION, "weight_decay": 0.01}, weight_decay_method="decoupled",
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
            lr=1e-3, **PAIR, weight_decay=0.0, correct_bias=True, frob_normalize=False,
            weight_decay_method="decoupled",
        ),
    }),
    "optax": Source("optax", OPTAX, no_equal=OPTAX_NO_EQUAL, groups=False),
    "scikit-learn": Source(
        "sklearn.neural_network", {"MLPClassifier": _MLP, "MLPRegressor": _MLP},
        rules=((Kind("scikit-learn: intercepts", lambda leaf: leaf.ndim < 2), 0.0), *EVERYTHING),
        groups=False,
    ),
    "thinc": Source("thinc.optimizers", {
        "Adam": _thinc(
            ours(early_adam, EARLY, "beta1", "beta2", "eps"),
            learn_rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8,
        ),
        "SGD": _thinc(learn_rate=REQUIRED),
        "RAdam": "it counts its steps from 2, which nothing here does. For what its name promises "
        "write convert.from_('torch', 'RAdam', ...).",
    }, groups=False),
    "paper": Source("", {
        "AdamW": _paper.paper_adamw, "SGDW": _paper.paper_sgdw,
    }),
    "heavyball": Source(
        "heavyball", HEAVYBALL,
        ("multi_tensor", "compile_step", "promote", "storage_dtype", "orig_shapes"), BALL_NO_EQUAL,
    ),
    "pytorch_optimizer": Source("pytorch_optimizer", PYTORCH_OPTIMIZER, ("foreach",)),
    "transformers": Source("transformers", {
        "Adafactor": row(adafactor(by_pairs), lr=None, beta1=None, **PAIRS),
    }),
    "mlx": Source("mlx.optimizers", MLX, groups=False),
    "paddle": Source(
        "paddle.optimizer", PADDLE, _PADDLE_LEFT_OUT, PADDLE_NO_EQUAL, scaled_groups=True
    ),
    "chainer": Source("chainer.optimizers", CHAINER, groups=False),
    "maxtext": Source(
        "MaxText", MAXTEXT, groups=False,
        says={"adamw_mask": lambda mask: like.maxtext(adamw_mask=mask)},
        config=named("opt_type", all_but()),
    ),
    "levanter": Source(
        "levanter.optim", LEVANTER, groups=False,
        says={"default_weight_decay_mask": levanter_rules}, config=all_but("num_train_steps"),
    ),
    "big_vision": Source(
        "big_vision", BIG_VISION, groups=False,
        says={"wd_mults": lambda pairs: like.big_vision(wd_mults=pairs)},
        config=named("optax_name", big_vision_entries),
    ),
    "easylm": Source("EasyLM", EASYLM, groups=False, config=named("type", easylm_entries)),
    "t5x": Source("t5x", T5X, groups=False, config=all_but(*T5X_SCHEDULE, "dtype_momentum")),
    "schedulefree": Source("schedulefree", SCHEDULEFREE, ("foreach",)),
    # Only what must not be converted.
    "torch_optimizer": Source("torch_optimizer", {
        "SGDW": "it takes the constant lr·λ off every weight, and negative ones run away. For "
        "what its name promises write convert.from_('timm', 'sgdw', ...).",
    }),
    "madgrad": Source("madgrad", {
        "MADGRAD": STOPS,
    }),
    "eformer": Source("eformer.optimizers", dict.fromkeys(
        ("lion", "quad"),
        "it keeps an inner decay that is neither switched off nor masked. Write optax.lion by "
        "convert.from_('optax', 'lion', ...).",
    )),
}  # fmt: skip
