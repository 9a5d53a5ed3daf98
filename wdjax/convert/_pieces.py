"""The parts of a converted optimizer: its pieces, its groups, and the words that explain both."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from wdjax._lift.leaves import Params
from wdjax._trees import checks, html, paths
from wdjax.penalties import Penalty, l2
from wdjax.rules import EVERYTHING, Rules, Selector, check_rules, label, owners
from wdjax.schedules import Strength, as_schedule, lr_scaled
from wdjax.transforms import add_decayed_weights, decay_weights

Settings: TypeAlias = Mapping[str, Any]
Groups: TypeAlias = Sequence[tuple[Selector, Settings]]


class Piece(NamedTuple):
    """One link of the chain.

    Attributes:
        setting: as it was given, such as "momentum=0.9".
        meaning: the link as one would write it, and what to know about it.
        link: the transformation; None where there is nothing to do.
    """

    setting: str
    meaning: str
    link: optax.GradientTransformation | None = None


# What a setting is called elsewhere.
_ALSO_CALLED = {
    "learning_rate": ("lr", "alpha"),
    "lr": ("learning_rate", "alpha"),
    "wd": ("weight_decay",),
    "decay": ("weight_decay",),
    "mask": ("exclude_from_weight_decay", "rules"),
    "params": ("groups",),
    "param_groups": ("groups",),
    "b1": ("betas", "beta_1"),
    "b2": ("betas", "beta_2"),
    "beta_1": ("betas",),
    "beta_2": ("betas",),
    "betas": ("beta_1",),
    "eps": ("epsilon",),
    "epsilon": ("eps",),
    "rho": ("alpha",),
}
_NONE: Mapping[str, str] = {}
EXECUTION = ("foreach", "fused", "capturable", "differentiable")

Build: TypeAlias = Callable[[Settings, Rules], list[Piece]]


@dataclasses.dataclass(frozen=True)
class Converted:
    """An optimizer equivalent to that of another framework, and how each setting was translated.

    `print` it: every pair of lines is a setting and what it became, in the order of the chain.
    A group shows only what differs from the last part.

    Args:
        source: the original name, such as "torch.optim.SGD".
        optimizer: the equivalent one.
        rules: which parameters its weight decay acts on, and by how much.
        parts: for each group its name and its pieces; the last holds all other parameters.

    Example:
        >>> nothing = Piece("lr=0.1", "optax.scale_by_learning_rate(0.1)")
        >>> print(Converted("torch.optim.SGD", optax.sgd(0.1), (), (("", (nothing,)),)))
        torch.optim.SGD
          lr=0.1
            → optax.scale_by_learning_rate(0.1)
    """

    source: str
    optimizer: optax.GradientTransformation
    rules: Rules
    parts: tuple[tuple[str, tuple[Piece, ...]], ...]

    def __str__(self) -> str:
        """Return the explanation."""
        lines = [self.source]
        for name, own in self._told():
            lines += [name] if name else []
            lines += [f"  {setting}\n    → {meaning}" for setting, meaning in own]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the explanation as a table, for notebooks."""
        told = self._told()
        titles = ("parameters", "setting", "what it became")[len(told) == 1 :]
        rows = [(name, *pair)[len(told) == 1 :] for name, own in told for pair in own]
        return html.table(titles, rows, above=[self.source])

    def _told(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The settings of each part, and what they became; for groups only what differs."""
        common = [piece[:2] for piece in self.parts[-1][1]]
        last = len(self.parts) - 1
        return [
            (name, [p[:2] for p in pieces if i == last or p[:2] not in common])
            for i, (name, pieces) in enumerate(self.parts)
        ]


def converted(
    source: str,
    build: Build,
    settings: Settings,
    *,
    rules: Rules,
    groups: Groups = (),
    left_out: Settings | None = None,
) -> Converted:
    """Build the chain of every group and route the parameters to them.

    Args:
        source: the original name.
        build: (settings, rules) -> the pieces of the chain, in order.
        settings: under their original names, defaults filled in.
        rules: multipliers of the weight decay.
        groups: (selector, settings that differ) pairs; the first match wins.
        left_out: settings that were given and change no step, such as `foreach`.

    Returns:
        The optimizer and its explanation.
    """
    rules = check_rules(rules)
    groups = tuple(_checked_group(source, group, settings) for group in groups)
    parts = [
        (f"{label(selector)!r}: {_given(own)}", build(_merged(settings, own), rules))
        for selector, own in groups
    ]
    parts.append(("every other parameter" if groups else "", build(settings, rules)))
    chains = [optax.chain(*(piece.link for piece in part if piece.link)) for _, part in parts]
    selectors: Rules = (*((selector, 1.0) for selector, _ in groups), *EVERYTHING)
    optimizer = _routed(chains, selectors) if groups else chains[0]
    optimizer = _checked(source, optimizer, rules, selectors)
    if left_out:
        parts[-1][1].append(Piece(_given(left_out), "left out: it changes no step"))
    return Converted(source, optimizer, rules, tuple((name, tuple(part)) for name, part in parts))


def from_torch(
    name: str, build: Build, arguments: Settings, known: tuple[str, ...] = EXECUTION
) -> Converted:
    """Convert from the arguments of one of the functions above, by name."""
    settings = {**arguments}
    rules, groups, execution = (settings.pop(key) for key in ("rules", "groups", "execution"))
    unknown = [other for other in execution if other not in known]
    check_known(f"torch.optim.{name}", unknown, [*settings, "groups", "rules", *known])
    return converted(
        f"torch.optim.{name}", build, settings, rules=rules, groups=groups, left_out=execution
    )


# Pieces that several frameworks share.


def given(settings: Settings, *names: str) -> str:
    """Return settings as they would be written in a call."""
    return _given({name: settings[name] for name in names})


def in_the_gradient(
    setting: str, strength: Strength, rules: Rules, penalty: Penalty = l2
) -> list[Piece]:
    """Classic, coupled decay: g + λ θ, before anything else looks at the gradient."""
    name = "" if penalty is l2 else f", wdjax.penalties.{penalty.name}"
    code = f"wdjax.add_decayed_weights({shown(strength)}{name}, rules={named_rules(rules)})"
    link = add_decayed_weights(strength, penalty, rules=rules)
    return [decay(setting, strength, f"{code}: in the gradient, before the optimizer", link)]


def on_the_weights(
    setting: str, weight_decay: Strength | None, learning_rate: Strength, rules: Rules
) -> list[Piece]:
    """Decoupled decay, θ − η λ θ, after everything else."""
    weight_decay = 0.0 if weight_decay is None else weight_decay
    law = f"wdjax.lr_scaled({shown(weight_decay)}, {shown(learning_rate)})"
    code = f"wdjax.decay_weights({law}, rules={named_rules(rules)})"
    link = decay_weights(lr_scaled(weight_decay, learning_rate), rules=rules)
    return [decay(setting, weight_decay, f"{code}: on the weights, last in the chain", link)]


def decay(
    setting: str, strength: Strength, meaning: str, link: optax.GradientTransformation
) -> Piece:
    """Decay of strength 0 stays in the chain, so that a checkpoint fits once it is not 0."""
    return Piece(setting, "nothing: no decay" if is_zero(strength) else meaning, link)


def rate(setting: str, learning_rate: Strength) -> Piece:
    """−η, once the direction is known."""
    # a schedule whatever it is: the state of a number is another one
    schedule = as_schedule(learning_rate, setting.split("=")[0])
    code = f"optax.scale_by_learning_rate({shown(learning_rate)})"
    return Piece(setting, code, optax.scale_by_learning_rate(schedule))


def adam(setting: str, b1: float, b2: float, eps: float) -> Piece:
    """m̂ / (√v̂ + ε), where Optax's is the one of the paper."""
    meaning = f"optax.scale_by_adam({b1}, {b2}, eps={eps})"
    return Piece(setting, meaning, optax.scale_by_adam(b1, b2, eps))


def is_zero(value: Any) -> bool:
    """Whether a value is known to be 0."""
    return isinstance(value, int | float) and value == 0


def shown(value: Any) -> str:
    """Return a value as one would write it; for a schedule its name."""
    if isinstance(value, jax.core.Tracer):
        return "<traced>"
    if callable(value):
        return f"<{getattr(value, '__name__', 'schedule').strip('<>')}>"
    is_chain = isinstance(value, optax.GradientTransformation)
    return "<transformation>" if is_chain else repr(value)


def check_numbers(settings: Settings, *names: str, **limits: Any) -> None:
    """Refuse settings, or entries of tuples, that are not numbers in a range, by default >= 0."""
    for name in names:
        value = settings[name]
        for number in value if isinstance(value, tuple | list) else (value,):
            checks.number(name, number, least=0, **limits)


def check_known(
    source: str, unknown: Iterable[str], known: Sequence[str], no_equal: Mapping[str, str] = _NONE
) -> None:
    """Raise where a setting is unknown, naming the nearest known one, or has no equivalent."""
    for name in unknown:
        if name in no_equal:
            raise ValueError(f"{source}: `{name}` has no equivalent. {no_equal[name]}")
        near = [other for other in known if other in _ALSO_CALLED.get(name, ())]
        near += difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
        raise TypeError(f"{source} has no setting {name!r}; {hint}")


def _given(settings: Settings) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in settings.items())


def named_rules(rules: Rules) -> str:
    """Short for rules in an explanation: each selector with its multiplier."""
    if rules == EVERYTHING:
        return "everything"
    pairs = [f"{label(selector)!r}: {shown(m)}" for selector, m in rules]
    return f"({paths.listed(pairs)})"


# Groups.


def _checked_group(source: str, group: Any, settings: Settings) -> tuple[Selector, Settings]:
    if not (isinstance(group, tuple) and len(group) == 2 and isinstance(group[1], Mapping)):
        raise TypeError(
            f"every group must be a (selector, settings) pair; got {group!r}. Parameters are "
            "chosen by path here, such as ('bias', {'weight_decay': 0.0})."
        )
    selector, own = group
    ((selector, _),) = check_rules(((selector, 1.0),))
    unknown = [name for name in own if name not in (*settings, "lr_scale")]
    check_known(f"A group of {source}", unknown, [*settings, "lr_scale"])
    return selector, own


def _merged(settings: Settings, own: Settings) -> Settings:
    """Settings of a group; `lr_scale`, timm's invention, multiplies the learning rate."""
    merged = {**settings, **own}
    scale = merged.pop("lr_scale", None)
    checks.number("lr_scale", scale, least=0, optional=True)
    name = "lr" if "lr" in merged else "learning_rate"
    return merged if scale is None else {**merged, name: _scaled(merged[name], scale)}


def _scaled(rate: Any, scale: float) -> Any:
    if not callable(rate):
        return rate * scale

    def scaled(count: Any) -> Any:
        return rate(count) * scale

    scaled.__name__ = f"{scale:g} * {shown(rate).strip('<>')}"
    return scaled


def _routed(
    chains: Sequence[optax.GradientTransformation], selectors: Rules
) -> optax.GradientTransformation:
    """Send each parameter to the chain of the first selector that matches it."""
    rest = len(chains) - 1

    def labels(tree: Params) -> Params:
        numbers = (owner if owner >= 0 else rest for owner in owners(selectors, tree))
        return jax.tree.unflatten(jax.tree.structure(tree), numbers)

    return optax.partition(dict(enumerate(chains)), labels)


def _checked(
    source: str, optimizer: optax.GradientTransformation, rules: Rules, selectors: Rules
) -> optax.GradientTransformationExtraArgs:
    """Check the parameters at `init`, before a group hides any from the rules."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> Any:
        complexes = [
            repr(leaf.path)
            for leaf in paths.leaves(params)
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        ]
        if complexes:
            raise TypeError(
                f"{source} treats a complex parameter as two real ones; got "
                f"{paths.listed(complexes)}. Make two leaves of its real and imaginary parts."
            )
        owners(selectors, params)
        owners(rules, params)
        return optimizer.init(params)

    return optax.GradientTransformationExtraArgs(init, optimizer.update)
