"""The rows of the field guide, by hand: how each optimizer is built, and what to write in wdjax.

A row's `code` builds the optimizer from `params`, `lr` and `wd`, in the package alone. Its `line`
builds the same in wdjax; docs/field_guide.md says what the names in it are. A line that has `base`
in it stands for the decay alone: the optimizer is the reader's own. What the decay does is not
written here: measure.py finds it out.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Row:
    """An optimizer, and what to write instead of it."""

    name: str
    code: str
    line: str = ""
    why: str = ""  # there is no line
    note: str = ""  # beside the line
    law: str = ""  # s(t), where the readings are of no known form
    without: str = ""  # the code without λ, where leaving out `=wd` does not give it
    default: str = ""  # λ by default, where the readings cannot tell
    left_out: str = ""  # by default, where the shape of a parameter does not decide
    matrix_only: bool = False
    within: float = 0.0  # how far wdjax's weights are after four steps; 0: by the dtype

    @property
    def unset(self) -> str:
        """The code in which λ is left at its default."""
        return self.without or re.sub(r",? ?\w+=wd\b", "", self.code, count=1)


@dataclasses.dataclass(frozen=True)
class Package:
    """A package at a version, with what it needs to run."""

    title: str
    family: str
    requires: tuple[str, ...]
    rows: tuple[Row, ...]
    imports: str = ""
    dtype: str = "float64"
    home: str = ""  # its environment, where that is not the family's
    bare: tuple[str, ...] = ()  # installed without what they say they need
    clone: str = ""  # "owner/name==commit" on GitHub, where it is run from its repository
    files: tuple[str, ...] = ()  # what is checked out of that
    distribution: str = ""  # whose version is stated
    bfloat16: bool = True  # run it in this dtype, too


def decayed(base: str = "base", options: str = "") -> str:
    """Return the line that gives an Optax optimizer decay on the weights."""
    options = f", {options}" if options else ""
    return f"wdjax.decayed({base})(lr, weight_decay=wd{options}, rules=everything)"


def coupled(base: str) -> str:
    """Return the line that puts λθ into the gradient."""
    return f"optax.chain(wdjax.add_decayed_weights(wd), {base})"


def torch(name: str, options: str = "") -> str:
    """Return the line that calls a function of `wdjax.convert`."""
    options = f"{options}, " if options else ""
    return f"convert.{name}(lr=lr, {options}weight_decay=wd).optimizer"


def after(base: str = "base") -> str:
    """Return the line that decays the weights that the step has reached."""
    decay = "wdjax.decay_after_step(wdjax.lr_scaled(wd, lr), rules=everything)"
    return f"optax.chain({base}(lr), {decay})"


DIVIDED = "implicit=True"
PEAK = "law=functools.partial(wdjax.{law}, peak=peak)"
CORRECTED = PEAK.format(law="corrected")
PAPER = PEAK.format(law="schedule_scaled")
FIXED = "law=wdjax.fixed"

ADAMW = torch("torch_adamw")
LION = "wdjax.lionw(lr, weight_decay=wd, rules=everything)"
LATER = "wdjax.delayed(wdjax.lr_scaled(wd, lr), 1), rules=everything"  # from the second step on
DELAYED = f"optax.chain(base(lr), wdjax.decay_weights({LATER}))"
BY_SIZE = decayed(options="penalty=wdjax.penalties.cubic()")  # ∂R = RMS(θ) θ
RATIO = "Decay is inside a trust ratio of its own kind."
TORCH = ("torch==2.13.0", "numpy==2.3.5")
JAX = ("jax==0.10.2", "jaxlib==0.10.2", "optax==0.2.8", "numpy==2.3.5")

EAGER = "import os\nos.environ['TORCHDYNAMO_DISABLE'] = '1'\n"  # the compiler takes minutes

PYTORCH = Package("PyTorch", "torch", TORCH, (
    Row("SGD(momentum=0.9)", "optim.SGD(params, lr=lr, momentum=0.9, weight_decay=wd)",
        torch("torch_sgd", "momentum=0.9")),
    Row("SGD(momentum=0.9, nesterov=True)",
        "optim.SGD(params, lr=lr, momentum=0.9, nesterov=True, weight_decay=wd)",
        torch("torch_sgd", "momentum=0.9, nesterov=True")),
    Row("Adam", "optim.Adam(params, lr=lr, weight_decay=wd)", torch("torch_adam")),
    Row("Adam(decoupled_weight_decay=True)",
        "optim.Adam(params, lr=lr, weight_decay=wd, decoupled_weight_decay=True)", ADAMW),
    Row("AdamW", "optim.AdamW(params, lr=lr, weight_decay=wd)", ADAMW),
    Row("NAdam", "optim.NAdam(params, lr=lr, weight_decay=wd)", torch("torch_nadam"), within=1e-8),
    Row("NAdam(decoupled_weight_decay=True)",
        "optim.NAdam(params, lr=lr, weight_decay=wd, decoupled_weight_decay=True)",
        torch("torch_nadam", "decoupled_weight_decay=True"), within=1e-8),
    Row("RAdam", "optim.RAdam(params, lr=lr, weight_decay=wd)", coupled("optax.radam(lr)")),
    Row("RAdam(decoupled_weight_decay=True)",
        "optim.RAdam(params, lr=lr, weight_decay=wd, decoupled_weight_decay=True)",
        decayed("optax.radam")),
    Row("Adagrad", "optim.Adagrad(params, lr=lr, weight_decay=wd)", torch("torch_adagrad")),
    Row("RMSprop", "optim.RMSprop(params, lr=lr, weight_decay=wd)", torch("torch_rmsprop")),
    Row("Adamax", "optim.Adamax(params, lr=lr, weight_decay=wd)", coupled("optax.adamax(lr)")),
    Row("Adadelta", "optim.Adadelta(params, lr=lr, weight_decay=wd)",
        coupled("optax.adadelta(lr, rho=0.9, eps=1e-6)")),
    Row("Adafactor", "optim.Adafactor(params, lr=lr, weight_decay=wd)", decayed()),
    Row("Muon", "optim.Muon(params, lr=lr, weight_decay=wd)",
        torch("torch_muon", "outputs=0"), matrix_only=True, left_out="refuses other than matrices",
        within=2e-2),
    Row("ASGD", "optim.ASGD(params, lr=lr, weight_decay=wd)",
        "convert.from_('torch', 'ASGD', lr=lr, weight_decay=wd).optimizer", within=1e-8),
), imports="from torch import optim")  # fmt: skip

TIMM_ALONE = """
import importlib, importlib.util, sys, types
found = importlib.util.find_spec("timm")
names = "timm", "timm.models", "timm.models.group_parameters"
package, models, stub = map(types.ModuleType, names)
package.__path__, models.__path__ = list(found.submodule_search_locations), []
stub.group_parameters = stub.group_with_matcher = None
sys.modules |= {module.__name__: module for module in (package, models, stub)}
timm = importlib.import_module("timm.optim")
create = timm.create_optimizer_v2
"""  # timm.optim without the models, which need torchvision


def timm(name: str, *args: str, options: str = "", **kwargs) -> Row:
    """Return a row of timm's factory."""
    code = f'create(params, opt="{name}", lr=lr{options}, weight_decay=wd)'
    label = f'"{name}"' + options.replace(", ", " + ", 1)
    return Row(label, code, *args, **kwargs)


TIMM = Package("timm", "torch", TORCH, (
    timm("adamw", ADAMW),
    timm("nadamw", decayed()),
    timm("lion", LION),
    timm("sgdw", "wdjax.sgdw(lr, momentum=0.9, nesterov=True, weight_decay=wd, rules=everything)"),
    timm("adabelief", decayed("optax.adabelief")),
    timm("novogradw", decayed()),
    timm("radamw", decayed("optax.radam")),
    timm("rmsproptfw", decayed()),
    timm("adafactor", decayed()),
    timm("adafactorbv", decayed()),
    timm("mars", decayed()),
    timm("muon", decayed()),
    timm("adamc", decayed("optax.adam", CORRECTED)),
    timm("lionc", decayed("optax.lion", CORRECTED)),
    timm("sgdc", decayed("optax.sgd", f"momentum=0.9, nesterov=True, {CORRECTED}")),
    timm("laprop", after()),
    timm("adan", decayed(options=DIVIDED)),
    timm("adanw", decayed()),
    timm("adopt", coupled("base(lr)")),
    timm("adoptw", DELAYED),
    timm("lamb", "optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(eps=1e-6), "
         "wdjax.add_decayed_weights(wd), optax.scale_by_trust_ratio(), "
         "optax.scale_by_learning_rate(lr))"),
    timm("lambc", why="Here the c is a clip of the trust ratio, not the corrected law."),
    timm("lars", why=RATIO),
    timm("adamp", why="Decay depends on the angle between weights and gradient."),
    timm("sgdp", why="Decay is divided by 1 − momentum, and depends on the angle."),
    timm("madgradw", why="Decay fades: an average with the first weights holds it."),
    Row('Lookahead("adamw", k=1)',
        'timm.Lookahead(create(params, opt="adamw", lr=lr, weight_decay=wd), k=1)',
        why="Every k steps the wrapper takes back half, of decay too."),
), imports=TIMM_ALONE, bare=("timm==1.0.31",))  # fmt: skip


def collected(name: str, *args: str, options: str = "", **kwargs) -> Row:
    """Return a row of pytorch_optimizer."""
    label = f"{name}({options})" if options else name
    given = f", {options}" if options else ""
    code = f"pytorch_optimizer.{name}(params, lr=lr, weight_decay=wd{given})"
    return Row(label, code, *args, **kwargs)


NOT_COUPLED = "weight_decouple=False"
COLLECTION = Package("pytorch_optimizer", "torch", TORCH, (
    collected("AdaBelief", decayed("optax.adabelief")),
    collected("Lion", LION),
    collected("Tiger", decayed()),
    collected("SGDW", "wdjax.sgdw(lr, momentum=0.0, weight_decay=wd, rules=everything)"),
    collected("Ranger", decayed()),
    collected("Lion", decayed("optax.lion", FIXED), options="fixed_decay=True"),
    collected("AdEMAMix", coupled("base(lr)")),
    collected("QHAdam", coupled("base(lr)")),
    collected("Adan", decayed(options=DIVIDED)),
    collected("LaProp", after()),
    collected("SOAP", f"optax.chain(base(lr), wdjax.decay_after_step({LATER}))"),
    collected("AdamP", why="λ is lost: write no decay.", options=NOT_COUPLED),
    collected("Grams", why="λ is lost: write no decay.", options=NOT_COUPLED),
    collected("LaProp", why="λ is lost: write no decay.", options=NOT_COUPLED),
    collected("Ranger", why="λ has the wrong sign: weights grow.", options=NOT_COUPLED),
    collected("MARS", why="Vectors have a rate and a λ of their own."),
    collected("SPlus", why="No law knows the shape of a matrix; use multipliers in `rules`."),
    collected("StableAdamW", why="The rate of both step and decay is clipped by the update."),
    collected("GrokFastAdamW", why="The constructor divides the rate by 3, for step and decay."),
    collected("AdamS", why="Near: `wdjax.adaptive.swd`, capped where this is not."),
    collected("MADGRAD", why="Decay fades: an average with the first weights holds it.",
              options="weight_decouple=True"),
), imports="import pytorch_optimizer", bare=("pytorch_optimizer==4.1.0",))  # fmt: skip

HEAVYBALL = Package("HeavyBall", "torch", (*TORCH, "heavyball==3.2.1"), tuple(
    Row(label or name, f"heavyball.{name}(params, lr=lr, weight_decay=wd{options})", line, why)
    for name, label, options, line, why in (
        ("AdamW", "", "", decayed("optax.adam", "b2=0.99"), ""),
        ("SGD", "", "", decayed(), ""),
        ("LaProp", "", "", decayed(), ""),
        ("RMSprop", "", "", decayed(), ""),
        ("NAdam", "", "", "", "L2 as in Adam, but weights also grow by 1 + λη in every step."),
        ("NAdam", "NAdam(decoupled_weight_decay=True)", ", decoupled_weight_decay=True", decayed(),
         ""),
        ("AdamC", "", ", max_lr=lr", decayed("base", CORRECTED), ""),
        ("SOAP", "", "", DELAYED, ""),
        ("ADOPT", "", "", DELAYED, ""),
        ("HyperBallAdamW", "", "", "", "Norms are held: `wdjax.radial.hyperball`."),
    )
), imports=EAGER + "import heavyball\nheavyball.utils.compile_mode = None", dtype="float32",
    distribution="heavyball")  # fmt: skip

SINGLE = {
    "lion-pytorch": Package("lion-pytorch", "torch", (*TORCH, "lion-pytorch==0.2.5"), (
        Row("Lion", "Lion(params, lr=lr, weight_decay=wd)", LION),
        Row("Lion(decoupled_weight_decay=True)",
            "Lion(params, lr=lr, weight_decay=wd, decoupled_weight_decay=True)",
            decayed("optax.lion", PAPER)),
    ), imports="from lion_pytorch import Lion"),
    "schedulefree": Package("schedulefree", "torch", (*TORCH, "schedulefree==1.4.1"), (
        Row("AdamWScheduleFree", "schedulefree.AdamWScheduleFree(params, lr=lr, weight_decay=wd)",
            "convert.from_('schedulefree', 'AdamWScheduleFree', lr=lr, weight_decay=wd).optimizer"),
        Row("SGDScheduleFree", "schedulefree.SGDScheduleFree(params, lr=lr, weight_decay=wd)",
            "convert.from_('schedulefree', 'SGDScheduleFree', lr=lr, weight_decay=wd).optimizer"),
    ), imports="import schedulefree"),
    "prodigyopt": Package("prodigyopt", "torch", (*TORCH, "prodigyopt==1.1.2"), (
        Row("Prodigy", "Prodigy(params, lr=lr, weight_decay=wd)",
            why="The rate is found on the way; give `wdjax.decayed(optax.contrib.prodigy)` a law.",
            left_out="nothing"),
    ), imports="from prodigyopt import Prodigy"),
    "adam-atan2-pytorch": Package(
        "adam-atan2-pytorch", "torch", (*TORCH, "adam-atan2-pytorch==0.4.1"), (
        Row("AdamAtan2", "AdamAtan2(params, lr=lr, weight_decay=wd)", decayed()),
        Row("AdoptAtan2", "AdoptAtan2(params, lr=lr, weight_decay=wd)", decayed(options=PAPER)),
    ), imports="from adam_atan2_pytorch import AdamAtan2\n"
               "from adam_atan2_pytorch.adopt_atan2 import AdoptAtan2"),
}  # fmt: skip

BNB = "import bitsandbytes.optim as bnb"
BITSANDBYTES = Package("bitsandbytes, on the CPU", "torch", TORCH, (
    Row("Adam", "bnb.Adam(params, lr=lr, weight_decay=wd)", ADAMW, note="it is AdamW"),
    Row("AdamW", "bnb.AdamW(params, lr=lr, weight_decay=wd)", ADAMW),
    Row("Adam8bit", "bnb.Adam8bit(params, lr=lr, weight_decay=wd)", ADAMW, note="it is AdamW"),
    Row("Lion", "bnb.Lion(params, lr=lr, weight_decay=wd)", LION),
    Row("AdEMAMix", "bnb.AdEMAMix(params, lr=lr, weight_decay=wd)", decayed()),
    Row("LAMB", "bnb.LAMB(params, lr=lr, weight_decay=wd)", decayed()),
    Row("SGD(momentum=0.9)", "bnb.SGD(params, lr=lr, momentum=0.9, weight_decay=wd)",
        torch("torch_sgd", "momentum=0.9")),
    Row("RMSprop", "bnb.RMSprop(params, lr=lr, weight_decay=wd)", torch("torch_rmsprop")),
    Row("Adagrad", "bnb.Adagrad(params, lr=lr, weight_decay=wd)", torch("torch_adagrad")),
    Row("LARS", "bnb.LARS(params, lr=lr, momentum=0.9, weight_decay=wd)", why=RATIO),
), imports=BNB, bare=("bitsandbytes==0.50.2", "packaging==25.0"), dtype="float32")  # fmt: skip

TORCHAO = Package("torchao", "torch", TORCH, (
    *(Row(name, f"ao.{name}(params, lr=lr, weight_decay=wd)", line)
      for name, line in (("AdamW8bit", ADAMW), ("AdamW4bit", ADAMW), ("AdamWFp8", ADAMW),
                         ("Adam8bit", torch("torch_adam")))),
    Row("AdamW8bit(bf16_stochastic_round=True)",
        "ao.AdamW8bit(params, lr=lr, weight_decay=wd, bf16_stochastic_round=True)", ADAMW,
        note="in bfloat16 inside `wdjax.stochastically_rounded`"),
), imports=EAGER + "import torchao.optim as ao", bare=("torchao==0.18.0",),
    dtype="float32")  # fmt: skip


def single(title: str, pin: str, imports: str, *rows: Row, **kwargs) -> Package:
    """Return a package for PyTorch that needs nothing else."""
    return Package(title, "torch", TORCH, rows, imports, bare=(pin,), **kwargs)


COMPOSER_ALONE = """
import importlib.util, pathlib, sys, types
sys.modules["composer"] = sys.modules["composer.utils"] = types.ModuleType("composer")
sys.modules["composer"].dist = None
folder = next(p for p in map(pathlib.Path, sys.path) if (p / "composer/optim").is_dir())
file = folder / "composer/optim/decoupled_weight_decay.py"
spec = importlib.util.spec_from_file_location("decoupled_weight_decay", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
DecoupledAdamW, DecoupledSGDW = module.DecoupledAdamW, module.DecoupledSGDW
"""  # the one file, without what Composer needs for training

DEEPSPEED = ("packaging", "msgpack", "psutil", "pydantic>=2", "tqdm", "ninja")
FASTAI = ("pandas==2.3.3", "matplotlib", "requests", "pyyaml", "scipy", "rich", "cloudpickle")
SMALL = {
    "adan-pytorch": single(
        "adan-pytorch", "adan-pytorch==0.1.0", "from adan_pytorch import Adan",
        Row("Adan", "Adan(params, lr=lr, weight_decay=wd)", decayed(options=DIVIDED))),
    "came-pytorch": single(
        "came-pytorch", "came-pytorch==0.1.3", "from came_pytorch import CAME",
        Row("CAME", "CAME(params, lr=lr, weight_decay=wd)", decayed())),
    "adam-mini": single(
        "adam-mini", "adam-mini==1.1.1", "from adam_mini import Adam_mini",
        Row("Adam_mini", "Adam_mini(named.items(), lr=lr, weight_decay=wd, verbose=False)",
            "wdjax.decayed(base)(lr, weight_decay=wd)", left_out="names with norm, ln or bias")),
    "grokadamw": single(
        "grokadamw", "grokadamw==0.1.2", "from grokadamw import GrokAdamW",
        Row("GrokAdamW", "GrokAdamW(params, lr=lr, weight_decay=wd)", decayed())),
    "madgrad": single(
        "madgrad", "madgrad==1.3", "from madgrad import MADGRAD, MirrorMADGRAD",
        Row("MADGRAD", "MADGRAD(params, lr=lr, weight_decay=wd)", coupled("base(lr)")),
        Row("MADGRAD(decouple_decay=True)",
            "MADGRAD(params, lr=lr, weight_decay=wd, decouple_decay=True)",
            why="Decay fades: an average with the first weights holds it."),
        Row("MirrorMADGRAD(decouple_decay=True)",
            "MirrorMADGRAD(params, lr=lr, weight_decay=wd, decouple_decay=True)",
            why="Decay fades in as the average follows.")),
    "torch_optimizer": single(
        "torch_optimizer", "torch_optimizer==0.3.0", "import torch_optimizer",
        Row("SGDW", "torch_optimizer.SGDW(params, lr=lr, weight_decay=wd)",
            why="It subtracts λη from every weight, also from negative ones."),
        Row("RAdam", "torch_optimizer.RAdam(params, lr=lr, weight_decay=wd)", decayed(),
            within=1e-7),
        Row("AdaMod", "torch_optimizer.AdaMod(params, lr=lr, weight_decay=wd)", decayed()),
        Row("AdaBelief", "torch_optimizer.AdaBelief(params, lr=lr, weight_decay=wd)",
            coupled("base(lr)")),
        Row("Yogi", "torch_optimizer.Yogi(params, lr=lr, weight_decay=wd)", coupled("base(lr)"),
            default="0"),
        Row("NovoGrad", "torch_optimizer.NovoGrad(params, lr=lr, weight_decay=wd)",
            why="Decay is in the momentum, after the norm of the gradient is divided out."),
        Row("Lamb", "torch_optimizer.Lamb(params, lr=lr, weight_decay=wd)", why=RATIO)),
    "adamp": single(
        "adamp", "adamp==0.3.0", "from adamp import AdamP, SGDP",
        Row("AdamP", "AdamP(params, lr=lr, weight_decay=wd)",
            why="Decay depends on the angle between weights and gradient."),
        Row("SGDP(momentum=0.9)", "SGDP(params, lr=lr, momentum=0.9, weight_decay=wd)",
            why="Decay is divided by 1 − momentum, and depends on the angle.")),
    "mosaicml": single(
        "Composer", "mosaicml==0.32.1", COMPOSER_ALONE,
        Row("DecoupledAdamW", "DecoupledAdamW(params, lr=lr, weight_decay=wd)",
            decayed("optax.adam", f"b2=0.95, {PAPER}")),
        Row("DecoupledSGDW(momentum=0.9)",
            "DecoupledSGDW(params, lr=lr, momentum=0.9, weight_decay=wd)",
            decayed("optax.sgd", f"momentum=0.9, {PAPER}"))),
    "torch-optimi": single(
        "optimi", "torch-optimi==0.3.3", "import optimi",
        Row("Adam", "optimi.Adam(params, lr=lr, weight_decay=wd)", coupled("base(lr)")),
        Row("AdamW", "optimi.AdamW(params, lr=lr, weight_decay=wd)",
            decayed("optax.adam", "b2=0.99, eps=1e-6")),
        Row("AdamW(decouple_lr=True)",
            "optimi.AdamW(params, lr=lr, weight_decay=wd, decouple_lr=True)",
            decayed("optax.adam", f"b2=0.99, eps=1e-6, {PAPER}")),
        Row("Lion", "optimi.Lion(params, lr=lr, weight_decay=wd)", LION),
        Row("SGD(momentum=0.9)", "optimi.SGD(params, lr=lr, momentum=0.9, weight_decay=wd)",
            coupled("base(lr)")),
        Row("SGD(momentum=0.9, decouple_wd=True)",
            "optimi.SGD(params, lr=lr, momentum=0.9, weight_decay=wd, decouple_wd=True)",
            decayed()),
        Row("Adan", "optimi.Adan(params, lr=lr, weight_decay=wd)", decayed(options=DIVIDED))),
    "adv-optm": single(
        "adv-optm", "adv-optm==2.5.16", "import adv_optm",
        Row("AdamW_adv", "adv_optm.AdamW_adv(params, lr=lr, weight_decay=wd)", decayed()),
        Row("AdamW_adv(cautious_wd=True)",
            "adv_optm.AdamW_adv(params, lr=lr, weight_decay=wd, cautious_wd=True)",
            decayed(options="gate=wdjax.gates.cautious")),
        Row("Lion_adv", "adv_optm.Lion_adv(params, lr=lr, weight_decay=wd)", decayed()),
        dtype="float32"),
    "transformers": Package("transformers", "torch", (*TORCH, "transformers==5.24.0"), (
        Row("Adafactor(relative_step=False)",
            "Adafactor(params, lr=lr, weight_decay=wd, relative_step=False)", line=BY_SIZE),
        Row("Adafactor(relative_step=False, scale_parameter=False)",
            "Adafactor(params, lr=lr, weight_decay=wd, relative_step=False, scale_parameter=False)",
            decayed()),
    ), imports="from transformers.optimization import Adafactor"),
    "flashoptim": Package("flashoptim, on the CPU", "torch", TORCH, tuple(
        Row(f"{name}({options})" if options else name,
            f"flashoptim.{name}(params, lr=lr, weight_decay=wd, fused=False, quantize=False, "
            f"master_weight_bits=None{options and ', ' + options})", line)
        for name, options, line in (
            ("FlashAdamW", "", ADAMW),
            ("FlashAdamW", "decouple_lr=True", decayed("optax.adam", PAPER)),
            ("FlashAdam", "", torch("torch_adam")),
            ("FlashLion", "", LION),
            ("FlashSGD", "momentum=0.9", torch("torch_sgd", "momentum=0.9")),
            ("FlashSGDW", "momentum=0.9", decayed()),
        )
    ), imports="import flashoptim", bare=("flashoptim==0.1.4", "triton==3.4.0"), dtype="float32"),
    "fastai": Package("fastai", "torch", (*TORCH, *FASTAI), (
        Row("SGD(mom=0.9)", "optimizer.SGD(params, lr, mom=0.9, wd=wd)", decayed()),
        Row("SGD(mom=0.9, decouple_wd=False)",
            "optimizer.SGD(params, lr, mom=0.9, wd=wd, decouple_wd=False)",
            torch("torch_sgd", "momentum=0.9")),
        Row("Adam", "optimizer.Adam(params, lr, wd=wd)", decayed()),
        Row("Adam(decouple_wd=False)", "optimizer.Adam(params, lr, wd=wd, decouple_wd=False)",
            coupled("base(lr)")),
        Row("RAdam", "optimizer.RAdam(params, lr, wd=wd)", decayed()),
        Row("Lamb", "optimizer.Lamb(params, lr, wd=wd)", after()),
        Row("ranger", "optimizer.ranger(params, lr, wd=wd)",
            why="Every 6 steps the wrapper takes back half, of decay too."),
    ), imports="from fastai import optimizer", bare=(
        "fastai==2.8.12", "fastcore==2.2.41", "fasttransform==0.0.5", "fastprogress==1.0.3",
        "fastdownload==0.0.8", "plum-dispatch==2.10.1", "beartype==0.23.1",
    ), home="fastai"),
    "deepspeed": Package("DeepSpeed, on the CPU", "torch", (*TORCH, *DEEPSPEED), (
        Row("DeepSpeedCPUAdam", "adam.DeepSpeedCPUAdam(params, lr=lr, weight_decay=wd)", ADAMW),
        Row("DeepSpeedCPUAdam(adamw_mode=False)",
            "adam.DeepSpeedCPUAdam(params, lr=lr, weight_decay=wd, adamw_mode=False)",
            torch("torch_adam")),
    ), imports="from deepspeed.ops import adam", bare=(
        "deepspeed==0.19.8", "einops==0.8.2", "hjson==3.1.0", "py-cpuinfo==9.0.0",
    ), home="deepspeed",
       dtype="float32"),
    "galore-torch": Package("galore-torch", "torch", (*TORCH, "transformers==5.24.0"), (
        Row("GaLoreAdamW",
            "GaLoreAdamW(params, lr=lr, weight_decay=wd, no_deprecation_warning=True)",
            after()),
    ), imports="from galore_torch import GaLoreAdamW",
       bare=("galore-torch==1.0", "bitsandbytes==0.50.2")),
}  # fmt: skip

K = "keras.optimizers.{}(lr, weight_decay=wd)"
KERAS_JAX = """
import os
os.environ["KERAS_BACKEND"] = "jax"
import jax, keras
jax.config.update("jax_enable_x64", True)
"""
KERAS = Package("Keras, on JAX", "keras", (*JAX, "keras==3.15.1"), (
    Row("SGD(momentum=0.9)", "keras.optimizers.SGD(lr, momentum=0.9, weight_decay=wd)",
        "convert.keras_sgd(learning_rate=lr, momentum=0.9, weight_decay=wd).optimizer"),
    *(Row(name, K.format(name),
          f"convert.keras_{name.lower()}(learning_rate=lr, weight_decay=wd).optimizer")
      for name in ("Adam", "AdamW", "Nadam", "RMSprop", "Adagrad")),
    Row("Adamax", K.format("Adamax"), decayed("optax.adamax", "eps=1e-7")),
    Row("Adadelta", K.format("Adadelta"), decayed("optax.adadelta", "rho=0.95, eps=1e-7")),
    Row("Lion", K.format("Lion"), LION),
    Row("Lamb", K.format("Lamb"), after()),
    Row("Adafactor", K.format("Adafactor"), after()),
    Row("Muon", K.format("Muon"),
        "convert.from_('keras', 'Muon', learning_rate=lr, weight_decay=wd).optimizer",
        within=1e-8),
), imports=KERAS_JAX, home="optax")  # fmt: skip

OPTAX = Package("Optax", "optax", JAX, imports="import optax", rows=(
    Row("adamw", "optax.adamw(lr, weight_decay=wd)",
        "wdjax.adamw(lr, weight_decay=wd, rules=everything)"),
    Row("nadamw", "optax.nadamw(lr, weight_decay=wd)", decayed("optax.nadam")),
    Row("adamaxw", "optax.adamaxw(lr, weight_decay=wd)", decayed("optax.adamax")),
    Row("lion", "optax.lion(lr, weight_decay=wd)", LION),
    Row("adan", "optax.adan(lr, weight_decay=wd)", decayed("optax.adan")),
    Row("adafactor", "optax.adafactor(lr, weight_decay_rate=wd)",
        decayed("optax.adafactor", FIXED)),
    Row("lamb", "optax.lamb(lr, weight_decay=wd)", "optax.lamb(lr, weight_decay=wd)",
        note="`mask=wdjax.mask(rules)`"),
    Row("lars", "optax.lars(lr, weight_decay=wd)", "optax.lars(lr, weight_decay=wd)",
        note="`weight_decay_mask=wdjax.mask(rules)`"),
    Row("novograd", "optax.novograd(lr, weight_decay=wd)", "optax.novograd(lr, weight_decay=wd)",
        note="decay is in the momentum"),
    Row("adadelta", "optax.adadelta(lr, weight_decay=wd)", coupled("optax.adadelta(lr)")),
    Row("fromage", "optax.fromage(lr)", default="it has none",
        why="It shrinks by 1 − 1/√(1 + η²) by itself."),
    Row("contrib.muon", "optax.contrib.muon(lr, weight_decay=wd)",
        'wdjax.muonw(lr, weight_decay=wd, rules=(("kernel", 1.0), ("**", 0.0)))'),
    Row("contrib.ademamix", "optax.contrib.ademamix(lr, weight_decay=wd)",
        decayed("optax.contrib.ademamix")),
    Row("contrib.acprop", "optax.contrib.acprop(lr, weight_decay=wd)",
        decayed("optax.contrib.acprop")),
    Row("add_decayed_weights, then sgd(momentum=0.9)",
        "optax.chain(optax.add_decayed_weights(wd), optax.sgd(lr, momentum=0.9))",
        coupled("optax.sgd(lr, momentum=0.9)"),
        without="optax.chain(optax.add_decayed_weights(), optax.sgd(lr, momentum=0.9))"),
    Row("sgd, then add_decayed_weights",
        "optax.chain(optax.sgd(lr), optax.add_decayed_weights(wd))",
        why="Weights grow by 1 + λ in every step; wdjax refuses this order.",
        without="optax.chain(optax.sgd(lr), optax.add_decayed_weights())"),
    Row("contrib.madgrad", "optax.contrib.madgrad(lr, weight_decay=wd)",
        coupled("base(lr)")),
    Row("contrib.prodigy", "optax.contrib.prodigy(lr, weight_decay=wd)",
        why="The rate is found on the way; give `wdjax.decayed` a law."),
    Row("contrib.schedule_free_adamw",
        "optax.contrib.schedule_free_adamw(lr, weight_decay=wd)",
        why="The average of weights decays half as fast; decay goes inside the wrapper."),
))  # fmt: skip

MLX = Package("MLX, on the CPU", "mlx", ("mlx[cpu]==0.32.4", "numpy==2.3.5"), (
    Row("SGD(momentum=0.9)", "optim.SGD(lr, momentum=0.9, weight_decay=wd)",
        torch("torch_sgd", "momentum=0.9")),
    Row("AdamW(bias_correction=True)", "optim.AdamW(lr, weight_decay=wd, bias_correction=True)",
        ADAMW),
    Row("AdamW", "optim.AdamW(lr, weight_decay=wd)", decayed(),
        note="by default Adam's means are not corrected"),
    Row("Lion", "optim.Lion(lr, weight_decay=wd)", LION),
    Row("Adafactor(relative_step=False)",
        "optim.Adafactor(lr, weight_decay=wd, relative_step=False)", line=BY_SIZE),
    Row("Muon", "optim.Muon(lr, weight_decay=wd)", coupled("base(lr)"), default="0.01",
        note="Newton-Schulz forgets how large λθ was"),
), imports="import mlx.optimizers as optim", dtype="float32", distribution="mlx")  # fmt: skip

PADDLE = Package("PaddlePaddle", "paddle", ("paddlepaddle==3.3.1", "numpy==2.3.5"), (
    *(Row(name, f"optimizer.{name}(lr, parameters=params, weight_decay=wd)", line, within=1e-7)
      for name, line in (
        ("SGD", torch("torch_sgd")),
        ("Momentum", torch("torch_sgd", "momentum=0.9")),
        ("Adam", torch("torch_adam")),
        ("AdamW", ADAMW),
        ("NAdam", coupled("base(lr)")),
        ("RAdam", coupled("base(lr)")),
        ("Adagrad", coupled("base(lr)")),
        ("Adamax", coupled("base(lr)")),
      )),
    Row("Lamb", "optimizer.Lamb(lr, parameters=params, lamb_weight_decay=wd)", why=RATIO,
        default="0.01"),
), imports="from paddle import optimizer", bfloat16=False)  # fmt: skip

THINC = Package("Thinc, which spaCy uses", "thinc", ("thinc==8.3.11",), (
    Row("Adam", "Adam(lr, L2=wd, grad_clip=0.0)", after()),
    Row("RAdam", "RAdam(lr, L2=wd, grad_clip=0.0)", after()),
    Row("SGD", "SGD(lr, L2=wd, grad_clip=0.0)", after("optax.sgd")),
    Row("Adam(L2_is_weight_decay=False)",
        "Adam(lr, L2=wd, L2_is_weight_decay=False, grad_clip=0.0)", coupled("base(lr)")),
), imports="from thinc.api import Adam, RAdam, SGD", dtype="float32", bfloat16=False)  # fmt: skip

OLDER = ("jax==0.8.0", "jaxlib==0.8.0", "optax==0.2.5", "numpy==2.3.5")
PSGD = Package("psgd-jax", "optax", (*OLDER, "chex==0.1.90", "flax==0.12.0"), (
    Row("kron", "plain(kron(lr, weight_decay=wd))", decayed()),
), imports="""import optax
from psgd_jax.kron import kron
plain = lambda tx: optax.GradientTransformation(*tx)  # it takes no more arguments than it says
""", bare=("psgd-jax==0.2.9",), home="psgd")  # fmt: skip

KAULDRON_ALONE = """
import importlib.util, pathlib, sys, types
import optax
folder = next(p for p in map(pathlib.Path, sys.path) if (p / "kauldron/optim").is_dir())
spec = importlib.util.spec_from_file_location("transform", folder / "kauldron/optim/transform.py")
transform = importlib.util.module_from_spec(spec)
spec.loader.exec_module(transform)
"""  # the one file, without TensorFlow
KAULDRON = Package("Kauldron", "optax", JAX, (
    Row("decay_to_init, then sgd", "optax.chain(transform.decay_to_init(wd), optax.sgd(lr))",
        decayed("optax.sgd", 'anchor="init"'), note="before momentum or Adam it is coupled",
        law="λη of the way from the first weights", default="none", left_out="nothing"),
), imports=KAULDRON_ALONE, bare=("kauldron==1.4.2",), bfloat16=False)  # fmt: skip

TINYGRAD = Package("tinygrad", "tinygrad", ("tinygrad==0.14.0", "numpy==2.3.5"), (
    Row("SGD(momentum=0.9)", "optim.SGD(params, lr=lr, momentum=0.9, weight_decay=wd)",
        torch("torch_sgd", "momentum=0.9")),
    Row("AdamW", "optim.AdamW(params, lr=lr, weight_decay=wd)", ADAMW),
    Row("LAMB", "optim.LAMB(params, lr=lr, weight_decay=wd)", why=RATIO),
    Row("LARS", "optim.LARS(params, lr=lr, weight_decay=wd)", why=RATIO),
    Row("Muon", "optim.Muon(params, lr=lr, weight_decay=wd)", decayed(), matrix_only=True),
), imports="import os\nos.environ['DEV'] = 'PYTHON'\nfrom tinygrad.nn import optim",
    dtype="float32")  # fmt: skip

NET = (
    "MLPRegressor(hidden_layer_sizes=(), batch_size=n, shuffle=False, learning_rate_init=lr, "
    "alpha=n * wd{})"
)
SCIKIT_LEARN = Package("scikit-learn", "sklearn", ("scikit-learn==1.9.1", "numpy==2.3.5"), (
    Row("MLPRegressor(alpha=batch·λ, solver=sgd)",
        NET.format(', solver="sgd", momentum=0.9, nesterovs_momentum=False'),
        coupled("optax.scale_by_learning_rate(lr), optax.trace(0.9)"), matrix_only=True,
        left_out="intercepts", default="α = 0.0001"),
    Row("MLPRegressor(alpha=batch·λ)", NET.format(""), torch("torch_adam"), matrix_only=True,
        within=1e-6, left_out="intercepts",
        default="α = 0.0001"),
), imports="from sklearn.neural_network import MLPRegressor", bfloat16=False)  # fmt: skip

RATE = """
schedule = lambda lr: lr if callable(lr) else lambda step: lr
first = lambda lr: float(schedule(lr)(0))
"""  # a project's rate comes from its configuration; the runs put theirs in its place
MAXTEXT = Package("MaxText", "optax", (*JAX, "pyyaml==6.0.4"), (
    Row("adamw", 'maxtext("adamw", lr, adam_weight_decay=wd)',
        "convert.from_('maxtext', 'adamw', learning_rate=lr, gradient_clipping_threshold=0.0, "
        "adam_weight_decay=wd).optimizer", note="MaxText clips elsewhere"),
    Row("adam_pax", 'maxtext("adam_pax", lr, adam_weight_decay=wd)', decayed()),
    Row("muon", 'maxtext("muon", lr, adam_weight_decay=wd)',
        'wdjax.decayed(base)(lr, weight_decay=wd, rules=(("bias", 1.0), ("**", 0.0)))',
        note="`muon_weight_decay` is another λ", default="0.1, for matrices 0"),
), imports=RATE + """
import pathlib, types
import optax, yaml
from alone import alone
dimensions = lambda *_: {"kernel": optax.contrib.MuonDimensionNumbers(), "bias": None}
optimizers = alone("maxtext.optimizers.optimizers", {
    "maxtext": {}, "maxtext.common": {}, "maxtext.optimizers": {}, "maxtext.utils": {},
    "maxtext.common.common_types": {"DecoderBlockType": types.SimpleNamespace(DEEPSEEK4=None)},
    "maxtext.optimizers.muon": {"muon": None},
    "maxtext.utils.muon_utils": {"get_muon_weight_dimension_numbers": dimensions},
    "maxtext.utils.maxtext_muon_utils": {"get_maxtext_muon_weight_dimension_numbers": None},
})
file = pathlib.Path(optimizers.__file__).parents[1] / "configs/base.yml"
base = yaml.safe_load(file.read_text()) | {"mu_dtype": None, "muon_consistent_rms": None}
def maxtext(name, lr, **settings):
    config = types.SimpleNamespace(**{**base, "opt_type": name, **settings})
    return optimizers.get_optimizer(config, schedule(lr), model="a model")
""", bare=("maxtext==0.2.5",))  # fmt: skip

LEVANTER = Package("Levanter at", "optax",
    (*JAX, "equinox==0.13.8", "draccus==0.11.6"), (
    Row("adam", "adam(lr, weight_decay=wd)",
        "convert.from_('levanter', 'adam', learning_rate=lr, weight_decay=wd, rules=everything)"
        ".optimizer", left_out="LayerNorm, RMSNorm, Embedding, bias"),
    Row("adam(adamc_weight_decay=True)", "adam(lr, weight_decay=wd, adamc_weight_decay=True)",
        decayed(options=CORRECTED), left_out="LayerNorm, RMSNorm, Embedding, bias"),
), imports=RATE + """
from alone import alone
config = alone("levanter.optim.config", {
    "haliax": {"is_named_array": None},
    "levanter": {}, "levanter.optim": {}, "levanter.tracker": {"jit_log": None},
    "levanter.optim.clip_update_norm": {"ClipUpdateNormConfig": None},
    "levanter.optim.skipstep": {"SkipStepConfig": int},
    "levanter.optim.util": {"log_norm_passthrough": None, "scan_aware_clip_by_block_rms": None},
    "levanter.utils": {}, "levanter.utils.jax_utils": {"leaf_key_paths": None},
})
class Adam(config.AdamConfig):
    lr_scheduler = lambda self, steps: self.rates
def adam(lr, **settings):
    made = Adam(learning_rate=first(lr), default_weight_decay_mask=False, **settings)
    object.__setattr__(made, "rates", schedule(lr))
    return made.build(4)
""", clone="stanford-crfm/levanter==9263f81", files=("src/levanter/optim",))  # fmt: skip

BIG_VISION = Package("big_vision at", "optax", (
    *JAX, "flax==0.12.7", "ml_collections==1.1.0", "einops==0.8.2"), tuple(
    Row(name, f'big_vision("{name}", params, lr, wd=wd)',
        f"convert.from_('big_vision', '{name}', lr=lr, initial_lr=peak, wd=wd, rules=everything)"
        ".optimizer", left_out="all but `.*/kernel$`")
    for name in ("scale_by_adam", "scale_by_lion")
), imports=RATE + """
import types, ml_collections
from alone import alone
project = alone("big_vision.optax", {
    "tensorflow": {"io": types.SimpleNamespace(gfile=None)},
    "tensorflow.io": {"gfile": None}, "tensorflow.io.gfile": {"GFile": None},
})
def big_vision(name, params, lr, **settings):
    rate, peak = schedule(lr), first(lr)
    project.u.create_learning_rate_schedule = lambda **_: lambda step: rate(step) / peak
    given = {"lr": peak, "optax_name": name, "wd_mults": [(".*", 1.0)], **settings}
    return project.make(ml_collections.ConfigDict(given), params, sched_kw={})[0]
""", clone="google-research/big_vision==0127fb6",
    files=("big_vision/optax.py", "big_vision/utils.py", "big_vision/pp/registry.py"))  # fmt: skip

EASYLM = Package("EasyLM at", "optax", (*JAX, "ml_collections==1.1.0"), (
    Row("adamw", "adamw(lr, weight_decay=wd)",
        "convert.from_('easylm', 'adamw', lr=lr, weight_decay=wd).optimizer", within=1e-7),
    Row("palm(weight_decay=λ/10,000)", "palm(lr, weight_decay=1e-4 * wd)",
        "convert.from_('easylm', 'palm', lr=lr, weight_decay=1e-4 * wd).optimizer",
        within=1e-7, without="palm(lr)", default="1"),
), imports=RATE + """
import types
import jax.numpy as jnp, optax
from alone import alone
project = alone("EasyLM.optimizers", {"EasyLM": {}, "EasyLM.jax_utils": {"float_to_dtype": None}})
def adamw(lr, **settings):
    cosine = {"warmup_cosine_decay_schedule": lambda **_: schedule(lr)}
    project.optax = types.SimpleNamespace(**{**vars(optax), **cosine})
    return project.AdamWOptimizerFactory.get_optimizer(settings)[0]
def palm(lr, **settings):  # its rate is 1 / jnp.sqrt(jnp.maximum(step, warm_up)) where lr is 0.01
    maximum = {"maximum": lambda step, warm_up: schedule(lr)(step) ** -2.0}
    project.jnp = types.SimpleNamespace(**{**vars(jnp), **maximum})
    return project.PalmOptimizerFactory.get_optimizer({"lr": 0.01, **settings})[0]
""", clone="young-geng/EasyLM==fe5b2c3",
    files=("EasyLM/__init__.py", "EasyLM/optimizers.py"))  # fmt: skip


def nvidia(name: str, line: str, options: str = "", **kwargs) -> Row:
    """Return a row of Emerging-Optimizers."""
    label, given = (f"{name}({options})", f", {options}") if options else (name, "")
    return Row(label, f"{name}(params, lr=lr, weight_decay=wd{given})", line, **kwargs)


NVIDIA = Package("Emerging-Optimizers", "torch", (*TORCH, "absl-py==2.5.1"), (
    nvidia("Lion", LION),
    nvidia("Lion", decayed("optax.lion", FIXED), 'weight_decay_method="independent"'),
    nvidia("Lion", decayed("optax.lion", "law=wdjax.lr_squared"), 'weight_decay_method="palm"'),
    nvidia("Lion", coupled("optax.scale_by_lion(), optax.scale_by_learning_rate(lr)"),
           'weight_decay_method="l2"', default="0.01"),
    nvidia("LaProp", "convert.from_('emerging-optimizers', 'LaProp', lr=lr, weight_decay=wd)"
           ".optimizer"),
    nvidia("Muon", decayed(), matrix_only=True, left_out="refuses other than matrices"),
    nvidia("SOAP", decayed(), matrix_only=True, left_out="refuses other than matrices"),
), imports=EAGER + """
import typing
typing.override = lambda method: method  # Python 3.12 has it
from emerging_optimizers.orthogonalized_optimizers import Muon
from emerging_optimizers.scalar_optimizers import LaProp, Lion
from emerging_optimizers.soap import SOAP
""", bare=("emerging-optimizers==0.3.0",), dtype="float32")  # fmt: skip

CHAINER = Package("Chainer", "chainer", ("chainer==7.8.1", "numpy==1.23.5"), (
    Row("AdamW", "(optimizers.AdamW(alpha=lr, weight_decay_rate=wd),)",
        "convert.from_('chainer', 'AdamW', alpha=lr, weight_decay_rate=wd).optimizer",
        note="a schedule in `eta` scales decay, one in `alpha` does not"),
    *(Row(f"{name} and WeightDecay", f"(optimizers.{name}(lr), WeightDecay(rate=wd))", line,
          without=f"(optimizers.{name}(lr),)", default="none")
      for name, line in (
        ("SGD", torch("torch_sgd")),
        ("MomentumSGD", coupled("optax.scale_by_learning_rate(lr), optax.trace(0.9)")),
        ("Adam", coupled("base(lr)")),
      )),
), imports="from chainer import optimizers\nfrom chainer.optimizer_hooks import WeightDecay",
    bfloat16=False)  # fmt: skip

PACKAGES: dict[str, Package] = {
    "torch": PYTORCH,
    "optax": OPTAX,
    "timm": TIMM,
    "keras": KERAS,
    "pytorch_optimizer": COLLECTION,
    "heavyball": HEAVYBALL,
    **SINGLE,
    "bitsandbytes": BITSANDBYTES,
    "torchao": TORCHAO,
    **SMALL,
    "psgd-jax": PSGD,
    "kauldron": KAULDRON,
    "mlx": MLX,
    "tinygrad": TINYGRAD,
    "paddlepaddle": PADDLE,
    "thinc": THINC,
    "scikit-learn": SCIKIT_LEARN,
    "emerging-optimizers": NVIDIA,
    "chainer": CHAINER,
    "maxtext": MAXTEXT,
    "levanter": LEVANTER,
    "big_vision": BIG_VISION,
    "easylm": EASYLM,
}
