"""Whole configurations of projects in JAX: which entries are an optimizer's, and their schedules.

A schedule here is (settings) -> a function of the step, for where the rate is a number.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from wdjax.convert._links import chain, part, rate_name, when
from wdjax.convert._pieces import Build, Piece, Settings
from wdjax.rules import Rules
from wdjax.schedules import Schedule, Strength

Entries = dict[str, Any]
Reader = Callable[[Entries, str, Settings], Settings]
"""(entries of a configuration, optimizer, settings of its row) -> those of the configuration."""


def entries_of(config: Any) -> Entries:
    """A dict of what a mapping holds, or an object's attributes."""
    if isinstance(config, Mapping) or hasattr(config, "keys"):
        return {key: config[key] for key in config.keys()}  # noqa: SIM118  ml_collections has them
    if not hasattr(config, "__dict__"):
        raise TypeError(f"`config` must be a mapping or have attributes; got {config!r}.")
    return dict(vars(config))


def named(key: str, reader: Reader) -> Reader:
    """Refuse a configuration of another optimizer."""

    def read(entries: Entries, optimizer: str, row: Settings) -> Settings:
        other = str(getattr(entries.get(key), "value", entries.get(key, optimizer)))
        if other != optimizer:
            raise ValueError(f"`config` has {key}={other!r}, which is not {optimizer!r}.")
        return reader(entries, optimizer, row)

    return read


def all_but(*ours: str) -> Reader:
    """All settings of the row, by name; `ours` may be missing, others mean another version."""

    def read(entries: Entries, optimizer: str, row: Settings) -> Settings:
        missing = [key for key in row if key not in entries and key not in ours]
        if missing:
            raise ValueError(
                f"`config` has no {', '.join(missing)}: it is of another version, or of another "
                "optimizer. Pass the settings one by one."
            )
        return {key: entries[key] for key in row if key in entries}

    return read


def easylm_entries(entries: Entries, optimizer: str, row: Settings) -> Settings:
    """EasyLM's configuration of all optimizers, or that of one."""
    if entries.get("accumulate_gradient_steps", 1) > 1:
        raise ValueError(
            "`config` accumulates gradients. Wrap the result in optax.MultiSteps, and pass the "
            f"part of this optimizer: config.{optimizer}_optimizer."
        )
    part = entries_of(entries.get(f"{optimizer}_optimizer", entries))
    return {key: value for key, value in part.items() if key in row}


def big_vision_entries(entries: Entries, optimizer: str, row: Settings) -> Settings:
    """big_vision's, which leaves out what has its default, and has Optax's in a part."""
    own = {key: value for key, value in entries.items() if key in row}
    return {**own, **entries_of(entries.get("optax", {}))}


MADE = "the schedule is made of these, unless the rate is a schedule"


def clipped(name: str) -> Build:
    """Clip by the norm of all gradients, if at all."""
    return when(name, part(optax.clip_by_global_norm, name))


def with_schedule(schedule: Callable[[Settings], Strength], *links: Build) -> Build:
    """The links at the schedule of the settings, unless the rate is one already."""

    def link(s: Settings, rules: Rules) -> list[Piece]:
        name = rate_name(s)
        return chain(*links)(s if callable(s[name]) else {**s, name: schedule(s)}, rules)

    return link


def easylm_cosine(s: Settings) -> Strength:
    """Warm-up and half a cosine."""
    names = ("init_lr", "lr", "lr_warmup_steps", "lr_decay_steps", "end_lr")
    cosine: Strength = optax.warmup_cosine_decay_schedule(*(s[name] for name in names))
    return cosine


def easylm_root(s: Settings) -> Strength:
    """(η / 0.01) / √max(t, warm-up)."""
    height, warm_up = s["lr"] / 0.01, s["lr_warmup_steps"]

    def inverse_root(count: Any) -> Any:
        return height / jnp.sqrt(jnp.maximum(jnp.asarray(count, float), warm_up))

    return inverse_root


def maxtext_schedule(s: Settings) -> Strength:
    """Warm-up, a plateau for "wsd", a fall, and 0 from there to the end."""
    steps, length, lr = s["steps"], s["learning_rate_schedule_steps"], s["learning_rate"]
    steps, length = (length if steps == -1 else steps), (steps if length == -1 else length)
    is_wsd = _text(s["lr_schedule_type"]) == "wsd"
    style = _text(s["wsd_decay_style"]) if is_wsd else "cosine"
    rise = int(length * s["warmup_steps_fraction"])
    fall = int(length * s["wsd_decay_steps_fraction"]) if is_wsd else length - rise
    end = lr * s["learning_rate_final_fraction"]

    def cosine(count: Any) -> Any:
        share = count / (fall - 1) if fall > 1 else 1.0
        weight = 0.5 * (jnp.cos(jnp.pi * share) + 1)
        return lr * weight + end * (1 - weight)

    falls = cosine if style == "cosine" else optax.linear_schedule(lr, end, fall - 1)
    return _joined(
        (rise, optax.linear_schedule(0.0, lr, rise)),
        (length - rise - fall, optax.constant_schedule(lr)),
        (fall, falls),
        (steps - length, optax.constant_schedule(0.0)),
    )


def levanter_schedule(s: Settings) -> Strength:
    """Warm-up, a plateau, and a fall to `min_lr_ratio`."""
    steps, lr, least = s["num_train_steps"], s["learning_rate"], s["min_lr_ratio"]
    if steps is None:
        raise ValueError(
            "`num_train_steps` must be given, or `learning_rate` a schedule: a number is the peak "
            "of Levanter's."
        )
    rise = _steps(s["warmup"], steps)
    fall = steps - rise if s["decay"] is None else _steps(s["decay"], steps)

    def root(count: Any) -> Any:
        count = jnp.asarray(count, float)
        return jnp.maximum(lr * jnp.minimum(1, 100 / jnp.sqrt(jnp.maximum(count + rise, 1))),
                           lr * least)  # fmt: skip

    def inverse(count: Any) -> Any:
        share = jnp.maximum(jnp.asarray(count, float), 1) / fall
        return jnp.maximum(lr / ((1 / least - 1) * share + 1), lr * least)

    falls: Mapping[str, Schedule] = {
        "constant": optax.constant_schedule(lr),
        "cosine": optax.cosine_decay_schedule(lr, max(fall, 1), least),
        "linear": optax.linear_schedule(lr, lr * least, fall),
        "inv_sqrt": root,
        "inv": inverse,
    }
    if s["lr_schedule"] not in falls:
        raise ValueError(
            f"`lr_schedule` must be one of {', '.join(falls)}; got {s['lr_schedule']!r}. Give "
            "`learning_rate` the schedule: config.lr_scheduler(num_train_steps)."
        )
    return _joined(
        (rise, optax.linear_schedule(0.0, lr, rise)),
        (steps - rise - fall, optax.constant_schedule(lr)),
        (fall, falls[s["lr_schedule"]]),
    )


def big_vision_schedule(s: Settings) -> Strength:
    """`lr` times the shape of `schedule`, by steps or shares of all steps."""
    shape, total, lr = dict(s["schedule"]), s["total_steps"], s["lr"]
    if not shape:
        constant: Strength = lr
        return constant
    if total is None:
        raise ValueError("`total_steps` must be given, or `lr` a schedule.")
    kind = shape.pop("decay_type", "stair")
    rise, cool = (_duration(shape, name, total) for name in ("warmup", "cooldown"))
    scale, shift = shape.pop("timescale", 10_000), shape.pop("shift", 0)
    zero = shape.pop("end", shape.pop("linear_end", 0))
    if shape or kind not in ("linear", "cosine", "rsqrt"):
        raise ValueError(
            f"`schedule` has no equivalent here: {dict(s['schedule'])!r}. Give `lr` the schedule "
            "times config.lr, and `initial_lr` config.lr itself."
        )

    def height(count: Any) -> Any:
        count = jnp.asarray(count, float)
        share = jnp.clip((count - rise) / (total - rise), 0, 1)
        if kind == "linear":
            top = zero + (1 - zero) * (1 - share)
        elif kind == "cosine":
            top = (1 + jnp.cos(jnp.pi * share)) / 2
        else:
            top = 1 / jnp.sqrt(1 + (jnp.maximum(count - rise, 0) + shift) / scale)
        top = top * jnp.minimum(1, count / rise) if rise else top
        top = top * jnp.clip((total - count) / cool, 0, 1) if cool else top
        return lr * top

    height.__name__ = kind
    return height


def t5x_schedule(s: Settings) -> Strength:
    """The product of `factors`; a rate that is given is meant as it is."""
    if s["learning_rate"] is not None:
        rate: Strength = s["learning_rate"]
        return rate
    base, rise, decay = s["base_learning_rate"], s["warmup_steps"], s["decay_factor"]
    shapes: Mapping[str, Schedule] = {
        "constant": lambda t: base,
        "linear_warmup": lambda t: jnp.minimum(1.0, t / rise),
        "linear_decay": lambda t: base * jnp.minimum(t / rise, 1.0 + decay * (rise - t)),
        "rsqrt_decay": lambda t: 1 / jnp.sqrt(jnp.maximum(t, rise)),
        "rsqrt_normalized_decay": lambda t: jnp.sqrt(rise / jnp.maximum(t, rise)),
        "decay_every": lambda t: decay ** (t // s["steps_per_decay"]),
        "cosine_decay": lambda t: 0.5 * (1 + jnp.cos(
            jnp.pi * (jnp.maximum(0, (t - rise) / s["steps_per_cycle"]) % 1)
        )),
    }  # fmt: skip
    factors = [name.strip() for name in s["factors"].split("*")]
    unknown = [name for name in factors if name not in shapes]
    if unknown:
        raise ValueError(f"`factors` must be of {', '.join(shapes)}; got {unknown[0]!r}.")

    def product(count: Any) -> Any:
        t = jnp.asarray(count, float)
        height = jnp.prod(jnp.stack([jnp.asarray(shapes[name](t), float) for name in factors]))
        return jnp.maximum(height, s["min_learning_rate"])

    return product


def _joined(*pieces: tuple[int, Schedule]) -> Strength:
    """One schedule of (steps, schedule) pairs, without those of no steps."""
    kept = [(steps, schedule) for steps, schedule in pieces if steps > 0]
    ends = list(itertools.accumulate(steps for steps, _ in kept))
    whole: Strength = optax.join_schedules([schedule for _, schedule in kept], ends[:-1])
    return whole


def _steps(value: float, total: int) -> int:
    """Levanter's: up to 1 it is a share."""
    return int(value * total if value <= 1 else value)


def _duration(shape: Entries, name: str, total: int) -> int:
    """big_vision's, of a number of steps or a share of all; epochs and examples stay behind."""
    share = shape.pop(f"{name}_percent", 0)
    steps: int = shape.pop(f"{name}_steps", max(1, round(share * total)) if share else 0)
    return steps


def _text(value: Any) -> str:
    """An enumeration's value, or the text itself."""
    return str(getattr(value, "value", value))
