"""The audit of an optimizer: run on stand-ins, and put into rows, or into what each step takes."""

import dataclasses
import inspect
import math
import warnings as python_warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from wdjax._trees import checks, paths
from wdjax._trees.reach import unreached
from wdjax.audit import _course, _trials, _verdicts
from wdjax.audit._compiled import Compiled, machine
from wdjax.audit._course import Finding
from wdjax.audit._declared import decisions_of, half_life_of
from wdjax.audit._machine import Machine, on_leaves, slow_weights_of
from wdjax.audit._standins import Standin, prepared, resized
from wdjax.audit._table import Audit, Row
from wdjax.rules import STANDARD, Rules, is_guess, label

_RATES = (1e-3, 2e-3)  # at which a factory of the rate is tried
_PLACES = (
    "Parameters and optimizer may have changed places: audit(params, optimizer), "
    "check_decay(optimizer, params)."
)
_LAWS = {0: "fixed", 1: "lr_scaled", 2: "lr_squared"}


class Measurement(NamedTuple):
    """What was found of every leaf.

    Attributes:
        described: the leaves.
        leaves: with what is wanted and what is found of them.
        search: the optimizer asks for the loss.
        laws: for each leaf, or None.
    """

    described: list[paths.Leaf]
    leaves: list[_verdicts.Leaf]
    search: bool
    laws: list[str | None]


class Taken(NamedTuple):
    """What is taken off one leaf.

    Attributes:
        path: of the leaf; empty for a bare array.
        acts: as in the rows of an `Audit`.
        why: what could not be measured, and why; empty if everything was.
        fractions: (T,) the part that each step takes off; NaN where it is not a fraction. Through
            momentum, what is taken off once it has settled.
    """

    path: str
    acts: str
    why: str
    fractions: np.ndarray


def measured(
    tree: Any,
    optimizer: Any,
    rules: Rules | None,
    steps: int | None,
    extra: dict[str, Any],
    loss: Callable[[Any], Any] | None = None,
) -> Audit:
    """Run an optimizer on stand-ins of a tree and report what it does to each leaf."""
    found = measure(tree, optimizer, rules, steps, extra)
    still = frozenset() if loss is None else unreached(loss, tree)
    facts = _verdicts.Facts(found.leaves, steps, rules is not None, found.search, still)
    rows = [_row(*each) for each in zip(found.described, found.leaves, found.laws, strict=True)]
    top = max(
        (leaf.found for leaf in found.leaves if leaf.found.shrink),
        key=lambda f: abs(f.shrink or 0.0),
        default=Finding("none", 0.0),
    )
    return Audit(
        rows=rows,
        total=sum(row["numbers"] for row in rows),
        decayed=sum(row["numbers"] for row in rows if row["acts"] not in ("none", "unknown")),
        strength=top.shrink or 0.0,
        step=top.step,
        steps=steps,
        warnings=_verdicts.warnings(facts),
        notes=_verdicts.notes(facts),
    )


def strengths(params: Any, optimizer: Any, *, steps: int, extra: dict[str, Any]) -> list[Taken]:
    """Measure what an optimizer takes off each leaf in each step.

    Where decay depends on the size of large leaves and the run is long, it visits only some steps,
    4,096 at least, and draws a line between them.

    Args:
        params: a pytree of arrays or ShapeDtypeStructs.
        optimizer: any Optax optimizer.
        steps: T >= 1, in real steps.
        extra: as in `audit`.

    Returns:
        One for each leaf, in the order of `jax.tree.leaves`.

    Raises:
        TypeError, ValueError: as in `audit`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> optimizer = optax.adamw(0.1, weight_decay=0.1)
        >>> (found,) = strengths({"w": jnp.ones(3)}, optimizer, steps=2, extra={})
        >>> found.acts, found.fractions.round(6).tolist()
        ('weights', [0.01, 0.01])
    """
    found = measure(params, optimizer, None, steps, extra, every=True)
    at = np.arange(steps)

    def taken(leaf: Any) -> Taken:
        acts, counts, curve = leaf.found.acts, leaf.found.counts, leaf.found.curve
        of_steps = np.interp(at, counts, curve) if counts and acts != "none" else 0.0 * at
        return Taken(leaf.path, acts, leaf.found.why, of_steps)

    return [taken(leaf) for leaf in found.leaves]


def measure(
    tree: Any,
    optimizer: Any,
    rules: Rules | None,
    steps: int | None,
    extra: dict[str, Any],
    *,
    every: bool = False,
) -> Measurement:
    """Return what is found of every leaf, before it is put into rows; at `every` step or some."""
    tree, optimizers = on_leaves(tree, _checked(optimizer))
    paths.leaves(tree)  # raises where a leaf is not an array
    tried = None
    with suppress(Exception), jax.enable_x64(True):
        tried = _tried(tree, optimizers, steps, extra, every)
    if tried is None:  # its own dtypes do not go with float64, or it raises anyway
        tried = _tried(tree, optimizers, steps, extra, every)
    findings, laws, asked, optimizer = tried
    with _silence():
        findings = _with_narrow(findings, optimizer, tree, extra)
        findings = _with_ends(findings, optimizer, tree, steps, extra, asked)
    decided = decisions_of(tree, STANDARD if rules is None else rules)
    leaves = [
        _verdicts.Leaf(leaf.path, str(leaf.dtype), label(selector), is_guess(selector), m, finding)
        for (leaf, selector, m), finding in zip(decided, findings, strict=True)
    ]
    described = [leaf for leaf, _, _ in decided]
    return Measurement(described, leaves, "value_fn" in asked.union(extra), laws)


def _tried(
    tree: Any, optimizers: list[Any], steps: int | None, extra: dict[str, Any], every: bool
) -> tuple[list[Finding], list[str | None], frozenset[str], Any]:
    """Run an optimizer on stand-ins: what is found, the laws, what it asks for, and itself."""
    with _asked(tree):
        try:
            on = prepared(optimizers[0], tree, extra)
        except AttributeError as error:
            if "'fast'" not in str(error):
                raise
            optimizers = [slow_weights_of(each) for each in optimizers]
            on = prepared(optimizers[0], tree, extra)
    with _silence():
        findings = _found(on, steps, every)
        laws = _laws(on, findings, optimizers, tree, steps, extra)
    asked = frozenset(name for each in on if each.machine for name in each.machine.needs)
    return findings, laws, asked, optimizers[0]


# What comes in.


def _checked(optimizer: Any) -> list[Any]:
    """Return the optimizer, or two of a factory of the rate."""
    if not hasattr(optimizer, "update") and _takes_a_rate_only(optimizer):
        made = [optimizer(rate) for rate in _RATES]
        if all(hasattr(each, "update") for each in made):
            return made
    checks.optimizer("optimizer", optimizer, _PLACES)
    return [optimizer]


def _takes_a_rate_only(factory: Callable[..., Any]) -> bool:
    try:
        return len(inspect.signature(factory).parameters) == 1
    except (TypeError, ValueError):
        return False


@contextmanager
def _silence() -> Iterator[None]:
    """Silence what the optimizer warns of."""
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        yield


@contextmanager
def _asked(tree: Any) -> Iterator[None]:
    """Silence the optimizer, and say of its errors where they come from."""
    leaves = jax.tree.leaves(tree)
    shapes = sorted({tuple(x.shape) for x in leaves})[:1]
    try:
        with _silence():
            yield
    except Exception as error:
        error.add_note(
            f"wdjax.audit: the optimizer raised this when it was run on stand-ins for "
            f"{len(leaves)} parameters, of shapes such as {shapes}. If it was made for another "
            "tree, pass that tree; else try optimizer.init(params) and "
            "optimizer.update(grads, state, params) by hand."
        )
        raise


# What is found.


def _found(on: list[Standin], steps: int | None, every: bool = False) -> list[Finding]:
    """Follow each machine once; look up each leaf in its own."""
    done: dict[int, list[Finding]] = {}

    def of(found: Machine) -> list[Finding]:
        if id(found) not in done:
            done[id(found)] = _course.followed(found, steps, every)
        return done[id(found)]

    findings = []
    for each in on:
        if each.machine is None:
            size = "x".join(map(str, each.shape))
            why = f"the program depends on the size of the leaf: {size} is too large to run here"
            findings.append(Finding("unknown", None, why=why))
            continue
        finding = of(each.machine)[each.kind]
        if each.twin is not None and not _agree(finding, of(each.twin)[each.kind]):
            why = "the strength of the decay depends on the size of the leaf"
            finding = Finding("unknown", None, why=why)
        findings.append(finding)
    return findings


def _agree(one: Finding, other: Finding) -> bool:
    return one.acts == other.acts and bool(
        np.allclose(one.curve, other.curve, rtol=1e-5, atol=1e-12, equal_nan=True)
    )


def _with_narrow(
    findings: list[Finding], optimizer: Any, tree: Any, extra: dict[str, Any]
) -> list[Finding]:
    """Try weights in their own dtype, where it may swallow their decay."""
    weak = [
        _trials.may_swallow(x.dtype, f)
        for x, f in zip(jax.tree.leaves(tree), findings, strict=True)
    ]
    if not any(weak):
        return findings
    own = machine(optimizer, resized(tree, 8, own_dtypes=True), extra)
    of_kind = {kind: findings[i] for i, kind in enumerate(own.kinds) if weak[i]}
    nothing = Finding("none", 0.0)
    lost = _trials.swallowed(own, [of_kind.get(k, nothing) for k in range(len(own.shapes))])
    return [
        dataclasses.replace(finding, swallowed=decays and lost[own.kinds[i]])
        for i, (finding, decays) in enumerate(zip(findings, weak, strict=True))
    ]


def _with_ends(
    findings: list[Finding],
    optimizer: Any,
    tree: Any,
    steps: int | None,
    extra: dict[str, Any],
    asked: frozenset[str],
) -> list[Finding]:
    """Say what is left where decay is not a fraction and depends on the weights themselves."""
    wanted = [f.acts in ("gradient", "both", "constant") and f.left is None for f in findings]
    if steps is None or not any(wanted):
        return findings
    ends = _trials.ends(optimizer, tree, steps * findings[wanted.index(True)].calls, extra, asked)
    if isinstance(ends, str):
        why = f"; what is left depends on the weights' own lengths: {ends}"
        return [
            dataclasses.replace(f, why=f"{f.why}{why}") if want else f
            for f, want in zip(findings, wanted, strict=True)
        ]
    return [
        dataclasses.replace(f, left=end) if want else f
        for f, want, end in zip(findings, wanted, ends, strict=True)
    ]


def _laws(
    on: list[Standin],
    findings: list[Finding],
    optimizers: list[Any],
    tree: Any,
    steps: int | None,
    extra: dict[str, Any],
) -> list[str | None]:
    """How shrink follows the rate: by a factory of it, or where the optimizer was injected."""
    if len(optimizers) == 2:
        twice = _found(prepared(optimizers[1], tree, extra), steps)
        return [_law(a.shrink, b.shrink) for a, b in zip(findings, twice, strict=True)]
    machines = {id(each.machine): each.machine for each in on}
    laws = {
        key: _trials.injected_laws(found) if isinstance(found, Compiled) else None
        for key, found in machines.items()
    }
    shares = [laws[id(each.machine)] for each in on]
    return [
        _law(1.0, ratios[each.kind]) if ratios is not None and finding.shrink else None
        for each, ratios, finding in zip(on, shares, findings, strict=True)
    ]


def _law(once: float | None, twice: float | None) -> str | None:
    """Name the power of the rate."""
    if not once or not twice or twice / once <= 0:
        return None
    power = math.log2(twice / once)
    return _LAWS.get(round(power)) if abs(power - round(power)) < 0.02 else None


def _row(leaf: paths.Leaf, known: _verdicts.Leaf, law: str | None) -> Row:
    found = known.found
    shape = [int(size) for size in leaf.shape]
    return {
        "path": leaf.path,
        "shape": shape,
        "dtype": str(leaf.dtype),
        "numbers": math.prod(shape),
        "rule": known.rule,
        "guess": known.guess,
        "multiplier": known.multiplier,
        "acts": found.acts,
        "shrink": found.shrink,
        "half_life": half_life_of(found.shrink),
        "left": found.left,
        "law": law,
    }
