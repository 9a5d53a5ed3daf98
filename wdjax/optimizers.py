"""Any Optax optimizer with decay in its right place: after it, on the parameters."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax import penalties
from wdjax._lift import preconditioners
from wdjax._lift.leaves import Params, lined_up, moved_params
from wdjax._lift.place import wrapper_in
from wdjax._trees import checks
from wdjax._trees.reach import always_zero
from wdjax.gates import Gate
from wdjax.penalties import Penalty
from wdjax.rules import STANDARD, Rules
from wdjax.schedules import Schedule, Strength, lr_scaled
from wdjax.transforms import Anchor, decay_weights, prox_weights

Factory = Callable[..., optax.GradientTransformation]
Law = Callable[[Strength, Strength], Schedule]

_REQUIRED: Any = inspect.Parameter.empty  # so that signatures show no default

# What Optax's factories call decay of their own, and the value that switches it off.
_OWN_DECAY = {"weight_decay": 0.0, "weight_decay_rate": None, "adam_weight_decay": 0.0}
_OWN_MASK = ("mask", "weight_decay_mask")
_OWN_RATE = ("adam_learning_rate",)  # of some leaves only
_ROUNDING = 1e-12  # of float64, in a step


def decayed(factory: Factory) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Give an Optax optimizer factory decoupled weight decay.

        θ⁺ = θ + Δ − s(t) m φ ∂R(θ − a)         with Δ the factory's own finished step,
        θ⁺ = a + prox_{s(t) m R}(θ + Δ − a)     with implicit=True

    and s = law(weight_decay, learning_rate). The result takes the factory's own arguments and

        weight_decay: λ >= 0; what it means is the law's business.
        law: (λ, η) -> s(t); default `lr_scaled`, s = λ η(t), as in PyTorch and Optax. For a law
            with a peak: functools.partial(wdjax.schedule_scaled, peak=3e-4). It must be given for
            an optimizer that finds its step size itself, such as `optax.contrib.prodigy`.
        penalty: R, default `penalties.l2`.
        implicit: True takes the proximal form, for exact zeros.
        rules: which parameters; default `standard()`: matrices, not biases, norms, embeddings.
        metric: None, or "preconditioner" for the proximal step in the metric of optax.adam, adamw,
            nadam, nadamw, rmsprop (not centered, no bias correction) or adagrad, which solves the
            penalized problem as written; implicit form only.
        gate: φ, such as `gates.cautious`, which also gets the raw gradient; explicit form only.
        anchor: a: None, "init" or a pytree.

    A factory that decays by itself, such as `optax.adamw` or `optax.lion`, has that switched off.
    `optax.lamb` and `optax.lars` decay inside their trust ratio, and decay that comes after it is
    another method; for LAMB itself write `optax.lamb(..., mask=wdjax.mask(rules))`.

    Args:
        factory: such as `optax.adam`; its first argument is the learning rate.

    Returns:
        A factory of complete optimizers. Its state is the pair (inner state, decay state). Under
        `optax.inject_hyperparams`, name `law` and `gate` in `static_args` when you pass them.

    Raises:
        TypeError: `factory` is not a factory, or a part or schedule of Optax, or a partial with
            decay or a mask of its own; at build, it returns no optimizer, an argument is wrong, or
            it wraps an optimizer and takes its steps at other times (MultiSteps, apply_if_finite,
            lookahead, schedule-free): decay goes inside; or a function of your own returns an
            optimizer that decays by itself.
        ValueError: at build or `init`, as `decay_weights` and `prox_weights`.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = decayed(optax.adam)(1e-3, weight_decay=0.1)
        >>> params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
        >>> grads = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
        >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
        >>> float(updates["kernel"][0, 0]), float(updates["bias"][0])
        (-9.99...e-05, -0.0)

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019, arXiv:1711.05101,
        Algorithms 1 and 2.
    """
    signature = _signature_of(factory)
    own = dict(signature.parameters)
    held = getattr(factory, "keywords", {})  # of functools.partial
    _check_arguments(own, [*held], held)
    switched_off = {name: _OWN_DECAY[name] for name in _OWN_DECAY if name in own}
    is_known = _home(factory).startswith("optax.")  # what decays there is switched off

    def decayed_factory(
        learning_rate: Any,
        *args: Any,
        weight_decay: Strength = _REQUIRED,
        law: Law | None = None,
        penalty: Penalty = penalties.l2,
        implicit: bool = False,
        metric: str | None = None,
        rules: Rules = STANDARD,
        gate: Gate | None = None,
        anchor: Anchor = None,
        **kwargs: Any,
    ) -> optax.GradientTransformationExtraArgs:
        is_given = weight_decay is not _REQUIRED
        rule = "be given by its name, as in wdjax.adamw(1e-3, weight_decay=0.1)"
        got = f"none for a decayed {_name(factory)}"
        checks.must("weight_decay", is_given, rule, got, error=TypeError)
        _check_arguments(own, [*list(own)[1 : 1 + len(args)], *kwargs], kwargs)
        inner = factory(learning_rate, *args, **switched_off, **kwargs)
        if not (hasattr(inner, "init") and hasattr(inner, "update")):
            raise TypeError(
                f"`factory` must return an optimizer; {_name(factory)} returned "
                f"{type(inner).__name__}."
            )
        wrapper = wrapper_in(inner.update)
        if wrapper:
            raise TypeError(f"`decayed` adds decay, which here comes after {wrapper}")
        if not is_known:
            _check_is_plain(factory, inner)
        if law is None and next(iter(own.values())).default == 1.0:
            raise TypeError(
                f"`law` must be given to a decayed {_name(factory)}: its learning rate is a "
                "multiplier, by default 1, so the default law would take off λ in every step. Pass "
                "law=wdjax.fixed with λ as that fraction, or law=wdjax.lr_scaled if you mean it."
            )
        strength = _strength(law or lr_scaled, weight_decay, learning_rate)
        if (gate if implicit else metric) is not None:
            raise TypeError(
                f"`gate` needs implicit=False, and `metric` needs implicit=True; got {implicit}."
            )
        if implicit:
            decay = prox_weights(strength, penalty, rules=rules, anchor=anchor, metric=metric)
        else:
            decay = decay_weights(strength, penalty, rules=rules, gate=gate, anchor=anchor)
        given = signature.bind(learning_rate, *args, **switched_off, **kwargs)
        given.apply_defaults()
        reading = _metric(metric, factory, given.arguments)
        return _followed_by(inner, decay, reading, strength, rules)

    title = f"decayed_{_name(factory)}"
    decayed_factory.__name__ = decayed_factory.__qualname__ = title  # Python's errors say it
    decayed_factory.__doc__ = f"`{_name(factory)}` with decoupled decay: see `wdjax.decayed`."
    decayed_factory.__signature__ = _merged(own, decayed_factory)  # type: ignore[attr-defined]
    return decayed_factory


class Decayed(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # Any to mypy
    """What a decayed factory builds: an optimizer that can tell its decay from the rest.

    Attributes:
        parts: as `update`, but (step before decay, step after decay, state).
        shrink: the state -> s(t), the strength of the step that comes.
        rules: which parameters decay.
    """

    parts: Callable[..., tuple[Params, Params, tuple[Any, Any]]]
    shrink: Callable[[tuple[Any, Any]], Any]
    rules: Rules


Metric = Callable[[Any], dict[str, Any]]  # of the inner state


def _followed_by(
    inner: optax.GradientTransformation,
    decay: optax.GradientTransformationExtraArgs,
    metric: Metric,
    strength: Schedule,
    rules: Rules,
) -> Decayed:
    """Chain the two, handing the second what it may need: the raw gradients, the metric."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> tuple[Any, Any]:
        decay_state = decay.init(params)  # first, because it says what is wrong with the leaves
        return inner.init(params), decay_state

    def parts(
        updates: Params,
        state: tuple[Any, Any],
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, Params, tuple[Any, Any]]:
        params = moved_params("decayed", updates, params)
        # its own gradients, not those a caller passes: inside optax.masked they are fewer
        own = {**extra_args, "grad": updates}
        try:
            before, inner_state = inner.update(updates, state[0], params, **own)
        except (TypeError, ValueError):
            lined_up("decayed", updates, params)  # a clearer error, if the trees do not fit
            raise
        after, decay_state = decay.update(before, state[1], params, **own, **metric(inner_state))
        return before, after, (inner_state, decay_state)

    def update(*args: Any, **extra_args: Any) -> tuple[Params, tuple[Any, Any]]:
        return parts(*args, **extra_args)[1:]

    built = Decayed(init, update)
    built.parts, built.rules = parts, rules
    built.shrink = lambda state: strength(state[1].count)
    return built


def _metric(metric: str | None, factory: Factory, arguments: dict[str, Any]) -> Metric:
    """Return what reads the preconditioner from the inner state, where a metric needs it."""
    if metric is None:
        return lambda inner_state: {}
    diagonal = preconditioners.diagonal_of(factory, arguments)
    if diagonal is None:
        raise TypeError(
            '`metric="preconditioner"` is known for optax.adam, nadam, their AdamW forms, rmsprop '
            f"and adagrad, also in functools.partial; not for {_name(factory)} as given here. "
            "Use metric=None."
        )

    return lambda inner_state: {"preconditioner": diagonal(inner_state)}


def _name(factory: Factory) -> str:
    """Return the factory's name; `optax.nadam` is a partial and has none of its own."""
    inner = getattr(factory, "func", None)
    own = _name(inner) if inner else type(factory).__name__
    return getattr(factory, "__name__", own)


def _signature_of(factory: Factory) -> inspect.Signature:
    """Return the factory's own signature, or say why it is not a factory."""
    if isinstance(factory, optax.GradientTransformation) or not callable(factory):
        raise TypeError(
            f"`factory` must be a function that builds an optimizer, such as optax.adam; got "
            f"{type(factory).__name__}. Pass optax.adam, not optax.adam(1e-3)."
        )
    signature = inspect.signature(factory)
    first = next(iter(signature.parameters.values()), None)
    # in Optax' own factories it has this name; parts and schedules take something else first
    is_part = (
        first and _home(factory).startswith("optax.") and not first.name.endswith("learning_rate")
    )
    if first is None or is_part:
        raise TypeError(
            f"`factory` must take the learning rate first; {_name(factory)} takes "
            f"{first.name if first else 'nothing'}. If it builds an optimizer, write "
            "wdjax.decayed(lambda learning_rate: ...); optax.scale_by_adam and such build parts."
        )
    return signature


def _home(factory: Factory) -> str:
    """Return the module of the factory, or of what a partial holds."""
    return str(getattr(getattr(factory, "func", factory), "__module__", ""))


def _check_is_plain(factory: Factory, inner: optax.GradientTransformation) -> None:
    """Refuse an optimizer that decays by itself: without a gradient it moves a stand-in weight."""

    def step(state: Any, theta: Any) -> tuple[Any, Any]:
        updates, state = inner.update(jax.tree.map(jnp.zeros_like, theta), state, theta)
        return state, updates

    def pull(theta: Any) -> Any:
        return sum(map(jnp.sum, jax.tree.leaves(step(inner.init(theta), theta)[1])))

    def run(theta: Any) -> Any:
        return jax.lax.scan(lambda state, _: step(state, theta), inner.init(theta), length=3)[1]

    def inward(theta: Any) -> Any:
        """What pulls θ and −θ to 0 alike, in three steps, for a warm-up begins at 0.

        Noise and a bound on one side, such as `keep_params_nonnegative`, do not.
        """
        there, here = run(jax.tree.map(jnp.negative, theta)), run(theta)
        return jax.tree.map(lambda x, y: jnp.minimum(x, -y), there, here)

    taken = 0.0
    # what cannot be tried, such as a traced learning rate, is for `wdjax.audit` to see
    with contextlib.suppress(Exception):
        theta = {"kernel": np.ones((2, 2), np.float32)}
        if all(always_zero(jax.make_jaxpr(jax.grad(pull))(theta).jaxpr)):
            return
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            theta = jax.tree.map(np.float64, theta)
            taken = float(jnp.max(jax.jit(inward)(theta)["kernel"]))
    if taken > _ROUNDING:
        raise TypeError(
            f"`factory` must not decay by itself, or decay would act twice; {_name(factory)} takes "
            f"{taken:.2g} of a weight off in a step without a gradient. Switch that off, for "
            "instance by weight_decay=0.0, and pass λ to the decayed factory. A bound on weights "
            "goes last: optax.chain(wdjax.decayed(...)(...), bound)."
        )


def _check_arguments(
    own: dict[str, inspect.Parameter], given: list[str], kwargs: dict[str, Any]
) -> None:
    """Refuse what would decay twice, or select in two places."""
    for name in given:
        if name in _OWN_MASK:
            raise TypeError(
                f"`{name}` is replaced by `rules`, pairs of a pattern and a multiplier; the first "
                'that matches wins: rules=(("head/**", 0.0), *wdjax.standard()). By default '
                "matrices decay, and biases, norms and embeddings do not."
            )
        if name in _OWN_DECAY:
            is_named = name in kwargs
            why = "would decay a second time" if is_named else "was also given by position"
            raise TypeError(f"`{name}` {why}. Pass decay once, as weight_decay=...")
        if name in _OWN_RATE and kwargs.get(name) is not None:
            raise TypeError(
                f"`{name}` would leave decay at the strength of `learning_rate` where steps have "
                "another size. Give those parameters an optimizer of their own: optax.partition "
                "with wdjax.adamw and wdjax.muonw."
            )


def _strength(law: Law, weight_decay: Strength, learning_rate: Any) -> Schedule:
    checks.function("law", law, advice="A law is (λ, η) -> s(t), such as wdjax.lr_scaled.")
    try:
        inspect.signature(law).bind(weight_decay, learning_rate)
    except TypeError as error:
        raise TypeError(
            f"`law` must take (λ, η); got {law!r}: {error}. Pass the law itself, such as "
            "wdjax.lr_scaled, and λ as `weight_decay`; write a law with a peak as "
            "functools.partial(wdjax.schedule_scaled, peak=...)."
        ) from None
    return law(weight_decay, learning_rate)


def _merged(
    own: dict[str, inspect.Parameter], decayed_factory: Callable[..., Any]
) -> inspect.Signature:
    """Merge the two argument lists, for `help` and for `optax.inject_hyperparams`."""
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    added = [
        parameter
        for parameter in inspect.signature(decayed_factory).parameters.values()
        if parameter.kind is keyword_only
    ]
    names = {parameter.name for parameter in added}
    kept = [
        parameter
        for name, parameter in own.items()
        if name not in names | set(_OWN_DECAY) | set(_OWN_MASK)
    ]
    tail = [p for p in kept if p.kind in (p.VAR_KEYWORD,)]
    middle = [p for p in kept if p.kind is keyword_only]
    head = [p for p in kept if p not in tail and p not in middle]
    return inspect.Signature([*head, *middle, *added, *tail])


sgdw = decayed(optax.sgd)
"""SGD, with or without momentum, with decoupled decay: `decayed(optax.sgd)`."""

adagradw = decayed(optax.adagrad)
"""Adagrad with decoupled decay: `decayed(optax.adagrad)`."""

adamw = decayed(optax.adam)
"""Adam with decoupled decay: `decayed(optax.adam)`."""

lionw = decayed(optax.lion)
"""Lion with decay by rules: `decayed(optax.lion)`."""

muonw = decayed(optax.contrib.muon)
"""Muon with decay by rules, on its Adam half too: `decayed(optax.contrib.muon)`."""
