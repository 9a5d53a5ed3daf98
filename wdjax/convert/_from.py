"""One door to the table of sources; see `wdjax.convert`."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from wdjax._trees import checks, paths
from wdjax._trees.paths import Leaf
from wdjax.convert._configs import entries_of
from wdjax.convert._keras import from_keras
from wdjax.convert._pieces import Converted, Groups, Settings, check_known, converted
from wdjax.convert._row import REQUIRED, Row, Source
from wdjax.convert._sources import SOURCES
from wdjax.rules import EVERYTHING, Rules


def from_(source: str, optimizer: str, *, config: Any = None, **settings: Any) -> Converted:
    """Equivalent of an optimizer of another package, by that package's own names.

        record = from_(source, optimizer, **settings);  record.optimizer, print(record)

    Args:
        source: the package: "torch", "keras", "timm", "optax", "lion-pytorch", "mosaicml",
            "bitsandbytes", "deepspeed", "emerging-optimizers", "heavyball", "pytorch_optimizer",
            "schedulefree", "transformers", "mlx", "paddle", "chainer", "scikit-learn", "thinc",
            "maxtext", "levanter", "big_vision", "easylm", "t5x", "paper".
        optimizer: its name there, such as "RAdam"; in timm that of `create_optimizer_v2`, in
            MaxText `opt_type`, in big_vision `optax_name`.
        config: the whole configuration of a project ("maxtext", "levanter", "big_vision",
            "easylm", "t5x"): a mapping, or an object with attributes. Its entries that are
            settings of this optimizer count as such; the others are not looked at.
        **settings: those of the original under their names; what is not given has the default of
            the package. A learning rate may be a schedule of the step. Besides:

            rules: multipliers of the weight decay; by default what the package decays.
            groups: (selector, settings) pairs, as in `torch_sgd`, where the package has them.
            initial_lr: for decay that is divided by the rate at construction (timm's names that
                end in c, lion-pytorch's decoupled form, Composer, big_vision), where `lr` is a
                schedule.
            num_train_steps, total_steps: how long Levanter and big_vision train, from which their
                schedules follow, if `lr` is not one.
            mask: Optax's, as a tree of booleans; it becomes rules.

    Returns:
        The optimizer, in `.optimizer`; print the record for the explanation.

    Raises:
        TypeError: a setting is unknown or missing, a mask is not a tree of booleans, or the
            source has no configuration.
        ValueError: the source or the optimizer is unknown, or it has no equivalent here,
            because its decay is lost, constant or makes weights grow; a setting is out of range;
            the configuration is of another optimizer or version.

    Example:
        >>> print(from_("timm", "lionc", lr=lambda t: 1e-4, initial_lr=1e-4, weight_decay=0.1))
        timm.lionc
          betas=(0.9, 0.99)
            → optax.scale_by_lion(0.9, 0.99)
          lr=<lambda>
            → optax.scale_by_learning_rate(<lambda>)
          weight_decay=0.1, initial_lr=0.0001
            → wdjax.decay_weights(wdjax.corrected(0.1, <lambda>, 0.0001), rules=...): on the ...
        >>> from_("heavyball", "NAdam")
        Traceback (most recent call last):
        ValueError: heavyball's NAdam has no equivalent here: by default every step also ...

    References:
        PyTorch 2.13, Keras 3.15, timm 1.0.31, Optax 0.2.8, lion-pytorch 0.2.5, Composer 0.32,
        bitsandbytes 0.50, DeepSpeed 0.19, Emerging-Optimizers 0.3, HeavyBall 3.2,
        pytorch_optimizer 4.1, schedulefree 1.4, transformers 5.24, MLX 0.32, Paddle 3.3,
        Chainer 7.8, scikit-learn 1.9, thinc 8.3; MaxText 0.2.5, Levanter at 9263f81, big_vision at
        0127fb6, EasyLM at fe5b2c3, t5x at cc342d4.
    """
    package = _found("source", source, SOURCES)
    entry = _found(f"optimizer of {source}", optimizer, package.entries)
    if isinstance(entry, str):
        raise ValueError(f"{source}'s {optimizer} has no equivalent here: {entry}")
    if config is not None:
        settings = {**_of_config(config, source, optimizer, entry), **settings}
    if not isinstance(entry, Row):
        own: Converted = entry(**settings)
        return own
    name = f"{package.name}.{optimizer}"
    convert = _of_keras if source == "keras" else _of_row
    return convert(name, package, entry, settings)


def _found(kind: str, name: Any, table: Mapping[str, Any]) -> Any:
    """Look a name up, or say what it might have been."""
    if name in table:
        return table[name]
    lower = {key.lower(): key for key in table}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.6)
    advice = f" Did you mean {lower[near[0]]!r}?" if near else ""
    known = ", ".join(key for key, entry in table.items() if _is_convertible(entry))
    raise ValueError(f"wdjax.convert knows no {kind} named {name!r}.{advice} It knows: {known}.")


def _is_convertible(entry: Any) -> bool:
    """Whether it is more than a reason why not."""
    if isinstance(entry, Source):
        return any(map(_is_convertible, entry.entries.values()))
    return not isinstance(entry, str)


def _of_config(config: Any, source: str, optimizer: str, entry: Any) -> Settings:
    """The settings that a project's own configuration holds."""
    reader = SOURCES[source].config
    if reader is None:
        have = ", ".join(name for name, package in SOURCES.items() if package.config)
        raise TypeError(f"`config` is for {have}. For {source} pass the settings by name.")
    return reader(entries_of(config), optimizer, entry.defaults)


def _of_keras(name: str, package: Source, entry: Row, settings: Settings) -> Converted:
    own = {key: value for key, value in settings.items() if key in entry.defaults}
    doors = {"exclude_from_weight_decay": (), "rules": package.rules}
    rest = {key: value for key, value in settings.items() if key not in own}
    doors = {key: rest.pop(key, value) for key, value in doors.items()}
    arguments = {**entry.defaults, **own, **doors, "common": rest}
    return from_keras(name.split(".")[-1], entry.build, arguments)


def _of_row(name: str, package: Source, entry: Row, settings: Settings) -> Converted:
    doors = ("rules", "groups") if package.groups else ("rules",)
    left_out = (*package.left_out, *entry.left_out)
    known = [*entry.defaults, *doors, *left_out]
    check_known(name, [key for key in settings if key not in known], known, package.no_equal)
    merged: dict[str, Any] = {
        **entry.defaults,
        **{k: v for k, v in settings.items() if k in entry.defaults},
    }
    missing = [key for key, value in merged.items() if value is REQUIRED]
    if missing:
        raise TypeError(f"{name} needs `{missing[0]}`, which has no default.")
    default = package.rules
    for key in merged.keys() & package.says.keys():
        default = package.says[key](merged.pop(key))
    mask = merged.pop("mask", merged.pop("weight_decay_mask", None))
    rules = _rules(mask, settings.get("rules"), default)
    groups = settings.get("groups", ())
    if groups and merged.get("max_grad_norm"):
        raise ValueError(
            f"{name} clips by the norm of all groups together, which a group here does not see. "
            "Pass max_grad_norm=None, and clip before it: "
            "optax.chain(optax.clip_by_global_norm(1.0), record.optimizer)."
        )
    if package.scaled_groups:
        groups = [_scaled(group) for group in groups]
    if "initial_lr" in merged:
        merged, groups = _with_initial(merged, groups, package.own_initial_lr)
    unused = {key: value for key, value in settings.items() if key in left_out}
    return converted(name, entry.build, merged, rules=rules, groups=groups, left_out=unused)


def _scaled(group: Any) -> Any:
    """A group whose learning rate multiplies that of all, where it is one."""
    if not (isinstance(group, tuple) and len(group) == 2 and isinstance(group[1], Mapping)):
        return group  # `converted` says what is wrong
    own = {"lr_scale" if key == "learning_rate" else key: x for key, x in group[1].items()}
    return group[0], own


def _with_initial(s: dict[str, Any], groups: Groups, is_own: bool) -> tuple[dict[str, Any], Groups]:
    """Give every group the initial rate that its decay is divided by."""
    if is_own:  # a group that has a rate of its own starts from that
        groups = tuple(
            (group[0], {"initial_lr": None, **group[1]})
            if isinstance(group, tuple) and len(group) == 2 and "lr" in group[1]
            else group
            for group in groups
        )
    if s["initial_lr"] is None and not callable(s["lr"]):
        s = {**s, "initial_lr": s["lr"]}
    return s, groups


def _rules(mask: Any, rules: Rules | None, default: Rules) -> Rules:
    """Rules, as they were given, or from a mask, or those of the source."""
    if mask is None or mask is True:
        return default if rules is None else rules
    if rules is not None:
        raise TypeError(
            "`mask` and `rules` must not come together: each says what decays. Pass one."
        )
    if callable(mask):
        raise TypeError("`mask` must be a tree of booleans here. Write mask=mask(params).")
    checks.flags("mask", mask)
    flat = paths.entries(mask)
    return tuple((_Under(parts), float(keeps)) for parts, _, keeps in flat) or EVERYTHING


@dataclasses.dataclass(frozen=True)
class _Under:
    """Select what is at or below a place of the mask."""

    parts: tuple[str, ...]

    def __call__(self, leaf: Leaf) -> bool:
        return leaf.parts[: len(self.parts)] == self.parts

    @property
    def __name__(self) -> str:
        return "/".join(self.parts) or "everything"
