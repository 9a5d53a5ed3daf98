"""What a row of the table of sources is, and what several packages' rows share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import optax

from wdjax.convert import _torch, _update_rules
from wdjax.convert._configs import Reader
from wdjax.convert._links import chain, ours, part
from wdjax.convert._pieces import Build, Converted, Piece, Settings
from wdjax.rules import EVERYTHING, Rules

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
        scaled_groups: whether a group's learning rate multiplies that of all.
        own_initial_lr: whether a group's initial rate is its own, not that of the constructor.
        says: settings that say what decays, and the rules that they are.
        config: how a whole configuration is read, where the package has one.
    """

    name: str
    entries: Mapping[str, Entry]
    left_out: tuple[str, ...] = ()
    no_equal: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: Rules = EVERYTHING
    groups: bool = True
    scaled_groups: bool = False
    own_initial_lr: bool = False
    says: Mapping[str, Callable[[Any], Rules]] = dataclasses.field(default_factory=dict)
    config: Reader | None = None


def row(*links: Build, left_out: tuple[str, ...] = (), **defaults: Any) -> Row:
    """Return a row; see `Row`."""
    return Row(links, defaults, left_out)


PAIR: Settings = {"betas": (0.9, 0.999), "eps": 1e-8}
PLAIN: Settings = {"momentum": 0.0, "dampening": 0.0, "nesterov": False}

lion = part(optax.scale_by_lion, "betas")
adamax = part(optax.scale_by_adamax, "betas", "eps")
adadelta = part(optax.scale_by_adadelta, "rho", "eps")
radam = ours(_update_rules.radam, "rectified Adam; optax.radam adds ε later", "betas", "eps")
nadamw = ours(
    _update_rules.nadamw, "Adam that looks ahead; not optax.nadamw, which corrects m otherwise",
    "betas", "eps",
)  # fmt: skip
adan = ours(
    _update_rules.adan, "Adan with β₂ before d̂; optax.adan has 1 − β₂ there", "betas", "eps"
)
belief = ours(
    lambda b1, b2, eps: optax.scale_by_belief(b1, b2, eps, eps_root=eps),
    "optax.scale_by_belief", "betas", "eps",
)  # fmt: skip
normalized = ours(
    lambda _, b2, eps: _update_rules.normalized(b2, eps),
    "NovoGrad: each leaf's gradient over its running norm", "betas", "eps",
)  # fmt: skip
beta1_trace = ours(lambda b1, _: optax.trace(b1), "optax.trace(β₁)", "betas")
EARLY = "Adam with ε added before the bias is corrected; optax.scale_by_adam has it after"


DECOUPLED = "decoupled_weight_decay"
INITIAL: Settings = {"weight_decay": 0.0, "initial_lr": None}
LION: Settings = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}
OWN_STEP_SIZE = "its λ is multiplied by a step size that it finds itself, which no schedule knows."
STOPS = "its decay stops for ever at 1 − 9·lr·λ of the first weights."
