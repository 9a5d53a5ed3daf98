"""The table of methods: a row for every transformation, with a float64 reference of its own.

A row goes through every property of `test_properties`. A public method without a row fails.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import adaptive_reference as of_adaptive
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import radial_reference as of_radial
import reference as ref
from cases import MATRICES, PENALTIES

import wdjax
from wdjax import adaptive, bounds, gates, penalties, radial, tuning


class MethodCase(NamedTuple):
    verb: str  # the public function, as its messages call it
    build: Callable  # (x, **arguments such as rules) -> transformation
    reference: Callable  # θ₀ -> step: see `reference`
    x: float = 0.125  # what tests vary, exact in binary where x is a strength
    quantity: str = "strength"  # how messages call x
    idle: float | None = 0.0  # the x that changes nothing, where there is one
    anchor: Any = None  # None, "init", or the number that fills the anchor tree
    memory: tuple[int, int] = (0, 0)  # trees like the parameters and scalars in the state
    copies: bool = False  # the memory has the dtype of the parameters
    needs_grad: bool = False  # the raw gradient has to be passed
    first: bool = False  # it stands first in the chain


# Penalties in their verbs, gates and anchors.

# One of each kind in the gradient: there the formula is the explicit one, without any prox.
COUPLED = ("l2", "l1", "elastic_net", "group_lasso", "spectral")


def of_penalty(name, case, scale=1.0, rewritten=lambda rules: rules):
    """The verbs that a penalty can stand in; `scale` is what the rewritten rules multiply by."""
    explicit = case.explicit and case.gradient
    verbs = {
        "add_decayed_weights": (wdjax.add_decayed_weights, ref.coupled, explicit),
        "decay_weights": (wdjax.decay_weights, ref.explicit, explicit),
        "prox_weights": (wdjax.prox_weights, ref.implicit, case.prox),
    }
    for verb, (transformation, lifted, formula) in verbs.items():
        if formula and (verb != "add_decayed_weights" or name in COUPLED):
            yield (
                f"{verb} {name}",
                MethodCase(
                    verb,
                    lambda s, rules, verb=transformation: verb(
                        s, case.penalty, rules=rewritten(rules)
                    ),
                    ref.anchored(None, lifted(formula, scale=scale)),
                    first=verb == "add_decayed_weights",
                ),
            )


def only_matrices(scale):
    """Exempt the biases, which are no matrices, and scale the multipliers of the rest."""

    def rewritten(rules):
        scaled = tuple((selector, scale * m) for selector, m in rules)
        named = any(selector == "bias" for selector, _ in rules)
        return scaled if named else (("bias", 0.0), *scaled)

    return rewritten


def of_transforms():
    for name, case in PENALTIES.items():
        yield from of_penalty(name, case)
    for name, case in MATRICES.items():
        # a fraction s of the orthogonal pull is 8 s of the singular value: keep it below 1
        scale = 1 / case.penalty.curvature / 8 if name == "orthogonal" else 1.0
        yield from of_penalty(name, case, scale, only_matrices(scale))
    identity, soft = ref.each(lambda z: z), ref.each(ref.soft)
    for name in ("cautious", "strictly_cautious"):
        build = functools.partial(wdjax.decay_weights, gate=getattr(gates, name))
        formula = ref.explicit(identity, getattr(ref, f"{name}_gate"))
        yield (
            f"decay_weights {name}",
            MethodCase("decay_weights", build, ref.anchored(None, formula)),
        )
    l1 = functools.partial(wdjax.prox_weights, penalty=penalties.l1)
    after = ref.anchored(None, ref.after_step(identity))
    yield "decay_after_step", MethodCase("decay_after_step", wdjax.decay_after_step, after)
    for point in ("init", 0.25):
        kept = {"anchor": point, "memory": (int(point == "init"), 0), "copies": True}
        for name, build, formula in (
            ("decay_weights", wdjax.decay_weights, ref.explicit(identity)),
            ("decay_after_step", wdjax.decay_after_step, ref.after_step(identity)),
            ("prox_weights", l1, ref.implicit(soft)),
        ):
            reference = ref.anchored(point, formula)
            yield f"{name} anchor {point}", MethodCase(name, build, reference, **kept)


# Methods that remember: see `adaptive_reference`.


def of_cpr(bound, reference, measure=bounds.sum_squares, trees=2, **arguments):
    """The memory is μ and what the bound keeps."""
    build = lambda s, **kw: adaptive.cpr(bound, measure, strength=s, **arguments, **kw)
    return MethodCase("cpr", build, reference, memory=(trees, 0))


def of_adaptive_methods():
    always, cpr = of_adaptive.always, of_adaptive.cpr
    # strengths in the tests are about 0.1: a bound a little below the start keeps μ off its cap
    yield "cpr uniform", of_cpr(bounds.uniform(2.0), cpr(always(lambda r: 2.0)))
    shrinking = always(lambda r: 0.7 * r)
    yield "cpr dependent", of_cpr(bounds.dependent(0.7), cpr(shrinking), trees=3)
    yield (
        "cpr per row",
        of_cpr(bounds.dependent(0.7), cpr(shrinking, axis=-1), trees=3, axes=-1),
    )
    warm_start = bounds.Bound(  # as users may write one: what a group has grown to in three steps
        lambda r: (jnp.full_like(r, jnp.inf),),
        lambda r, count, z: (jnp.where(count + 1 == 3, r, z[0]),),
    )
    yield "cpr own bound", of_cpr(warm_start, cpr(of_adaptive.after(3)))
    for measure, reference, kappa, axis in (
        (bounds.deviation, of_adaptive.spread, 0.6, None),
        (bounds.deviation, of_adaptive.spread, 0.6, -1),
    ):
        own = cpr(always(lambda r, kappa=kappa: kappa), reference, axis)
        name = f"cpr {measure.__name__}{'' if axis is None else ' per row'}"
        yield name, of_cpr(bounds.uniform(kappa), own, measure, axes=axis)
    yield (
        "cumulative_l1",
        MethodCase("cumulative_l1", adaptive.cumulative_l1, of_adaptive.cumulative, memory=(2, 0)),
    )
    for axis, name in ((None, ""), (-1, " per row")):
        build = functools.partial(adaptive.spd, axes=axis)
        kept = {"memory": (1, 0), "copies": True, "needs_grad": True}
        yield f"spd{name}", MethodCase("spd", build, of_adaptive.selective(axis), **kept)
    kept = {"memory": (0, 2), "needs_grad": True}
    yield "swd", MethodCase("swd", adaptive.swd, of_adaptive.stable(), **kept)
    short = functools.partial(adaptive.swd, decay=0.5, largest=0.3)
    yield "swd short memory", MethodCase("swd", short, of_adaptive.stable(0.5, 0.3), **kept)
    yield "awd", MethodCase("awd", adaptive.awd, of_adaptive.awd, memory=(0, 1), first=True)
    for axis, name in ((None, ""), (-1, " per row")):
        build = functools.partial(adaptive.ada_decay, axes=axis)
        reference = of_adaptive.ada_decay(axis)
        yield f"ada_decay{name}", MethodCase("ada_decay", build, reference, first=True)


# Radial methods: see `radial_reference`.


def growing(t):
    return 1 + 0.125 * t


def of_radial_method(verb, quantity, x, reference, **rest):
    """Keyword arguments that are not the table's are the method's."""
    own = {k: rest.pop(k) for k in tuple(rest) if k in MethodCase._fields}
    build = lambda x, **kw: getattr(radial, verb)(**{quantity: x} | rest | kw)
    return MethodCase(verb, build, reference, x, quantity, **({"idle": None} | own))


def of_radial_methods():
    control, ball = of_radial.norm_control(growing), of_radial.hyperball
    length, nothing, per_group = of_radial.length, of_radial.nothing, of_radial.per_group
    for name, axes, radius in (("", None, None), (" per neuron, given radius", -2, 1.5)):
        reference = per_group(axes, length if radius is None else lambda _: 1.5, control)
        yield f"norm_control{name}", of_radial_method(
            "norm_control", "rate", 0.25, reference,
            ratio=growing, radius=radius, axes=axes, idle=0.0, memory=(1, 0),
        )  # fmt: skip
    for name, axes, radius in (
        ("", None, None),
        (" per neuron", -2, None),
        (" per layer, given radius", (-2, -1), 0.7),
    ):
        reference = per_group(axes, length if radius is None else lambda _: 0.7, ball)
        yield (
            f"hyperball{name}",
            of_radial_method(
                "hyperball",
                "learning_rate",
                0.3,
                reference,
                radius=radius,
                axes=axes,
                memory=(1, 0),
            ),
        )
    brake = per_group(-1, nothing, of_radial.radial_brake(0.75))
    yield (
        "radial_brake",
        of_radial_method("radial_brake", "outward", 0.25, brake, inward=0.75, axes=(-1,)),
    )
    for name, axes, whole, delta in (
        ("AdamP", -2, True, 1.6),
        ("AdamP, one view", None, False, 1.0),
    ):
        reference = of_radial.adamp(delta, 0.1, [axes, None] if whole else [axes])
        yield f"project_radial {name}", of_radial_method(
            "project_radial", "strength", 0.05, reference,
            cosine=delta, decay_ratio=0.1, axes=axes, also_whole=whole, needs_grad=True,
        )  # fmt: skip
    project = per_group(-2, nothing, of_radial.project_radial)
    yield "project_radial", of_radial_method("project_radial", "strength", 0.05, project, axes=-2)
    floor = per_group(-2, nothing, of_radial.update_floor)
    yield "update_floor", of_radial_method("update_floor", "ratio", 0.5, floor, axes=-2, idle=0.0)
    relative = per_group(None, nothing, of_radial.relative_update)
    yield "relative_update", of_radial_method("relative_update", "learning_rate", 0.25, relative)
    for name, axes, centered in (("", -2, True), (" whole leaf, not centered", None, False)):
        start = functools.partial(of_radial.Rotation, centered=centered)
        reference = per_group(axes, start, of_radial.rotational(0.8, 1e-8))
        yield f"rotational{name}", of_radial_method(
            "rotational", "learning_rate", 0.2, reference,
            axes=axes, decay=0.8, centered=centered, memory=(2, 0),
        )  # fmt: skip


METHODS = {**dict(of_transforms()), **dict(of_adaptive_methods()), **dict(of_radial_methods())}

# What the lift answers is asked once per verb: its first row, whatever the penalty or bound.
VERBS = {case.verb: case for case in reversed(METHODS.values())}


def first_quick(table):
    """Parameters of a test: rows that are not the first of their verb are slow."""
    first = {id(case) for case in VERBS.values()}
    return [
        pytest.param(case, id=name, marks=[] if id(case) in first else [pytest.mark.slow])
        for name, case in table.items()
    ]


# Learned strengths have no formula of one step: what they learn is tested in `test_tuning`.


def _learned(strength, rules):
    wide = lambda x: x.astype(jnp.float32)
    loss = lambda params, batch: batch[0] * sum(jnp.sum(wide(x)) for x in jax.tree.leaves(params))
    data = np.ones(100, np.float32)
    return tuning.hyper_decay(strength, loss, data, rules=rules, init=1.0)


LEARNED = {"hyper_decay": MethodCase("hyper_decay", _learned, None)}
