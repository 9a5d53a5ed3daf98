"""Checks of arguments: the one place, and one wording.

Each says which argument is wrong, what it must be, and what came, before anything is compiled.
Read them with their module: `checks.number("rate", rate, least=0)`. They are called at the
public door, once; inside, values are trusted.
"""

import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import PyTree
from wdjax._trees.devices import at_hand, spans_processes
from wdjax._trees.paths import entries, listed

_SIGNS = {"above": ">", "least": ">=", "below": "<", "most": "<="}
_LIMITS = {"above": operator.gt, "least": operator.ge, "below": operator.lt, "most": operator.le}


def must(
    name: str,
    holds: Any,
    rule: str,
    got: Any,
    advice: str = "",
    error: type[Exception] = ValueError,
) -> None:
    """Refuse an argument, in the one form that all messages have.

    Args:
        name: the argument to blame.
        holds: whether all is well.
        rule: what it must do or be.
        got: what came: a text, or a value to show.
        advice: a last sentence, what to write instead.
        error: the kind of error.

    Raises:
        ValueError: or another error.

    Example:
        >>> must("n", False, "be even", 3, "Add one.")
        Traceback (most recent call last):
        ValueError: `n` must be even; got 3. Add one.
    """
    if not holds:
        shown = got if isinstance(got, str) else repr(got)
        raise error(f"`{name}` must {rule}; got {shown}.{advice and ' ' + advice}")


def number(
    name: str,
    x: Any,
    *,
    optional: bool = False,
    many: bool = False,
    also: str = "",
    advice: str = "",
    **limits: float,
) -> None:
    """Refuse anything but a finite real number in a range; traced values pass.

    Args:
        name: the argument to blame.
        x: what should be a number, of Python, NumPy or JAX.
        optional: whether None passes, too.
        many: whether arrays of numbers pass, too.
        also: what else is allowed, such as "a schedule", for the message.
        advice: a last sentence, what to write instead.
        **limits: the range: `above` or `least`, `below` or `most`.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is not finite or out of range.

    Example:
        >>> number("decay", 1.0, least=0, below=1)
        Traceback (most recent call last):
        ValueError: `decay` must be in [0, 1); got 1.0.
    """
    if isinstance(x, jax.core.Tracer) or (optional and x is None):
        return
    is_number = is_real(x, many)
    fits = is_number and np.all(np.isfinite(x)) and _is_within(x, limits)
    rule = f"be {_wanted('a finite number', limits)}{', or None' * optional}"
    rule += f", or {also}" * bool(also)
    must(name, fits, rule, shown(x), advice, ValueError if is_number else TypeError)


def whole(
    name: str,
    x: Any,
    least: int = 1,
    *,
    most: int | None = None,
    optional: bool = False,
    advice: str = "",
) -> None:
    """Refuse anything but a whole number in a range, such as a count or a seed.

    Args:
        name: the argument to blame.
        x: what should be an int of Python or NumPy.
        least: the smallest that is allowed.
        most: the largest that is allowed; None: no limit.
        optional: whether None passes, too.
        advice: a last sentence, what to write instead.

    Raises:
        TypeError: it is not a whole number, or it is traced.
        ValueError: it is out of range.

    Example:
        >>> whole("every", 0)
        Traceback (most recent call last):
        ValueError: `every` must be a whole number >= 1; got 0.
    """
    limits = {"least": least} if most is None else {"least": least, "most": most}
    if isinstance(x, jax.Array):
        advice = f'Under optax.inject_hyperparams pass static_args=("{name}",).'
    fits = (optional and x is None) or (is_whole(x) and _is_within(x, limits))
    rule = f"be {_wanted('a whole number', limits)}{', or None' * optional}"
    must(name, fits, rule, shown(x), advice, ValueError if is_whole(x) else TypeError)


def is_whole(x: Any) -> bool:
    """Whether a value is an int of Python or NumPy, and not a truth value."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def shown(x: Any) -> str:
    """A value as one would write it; of what takes more than a line its kind alone."""
    text = repr(x.item() if isinstance(x, np.generic) else x)  # 0.5, not np.float64(0.5)
    return text if len(text) <= 100 and "\n" not in text else kind_of(x)


def _is_within(x: Any, limits: Mapping[str, float]) -> bool:
    return all(np.all(_LIMITS[name](x, limit)) for name, limit in limits.items())


def _wanted(kind: str, limits: Mapping[str, float]) -> str:
    """`a finite number >= 0` with one limit, `in [0, 1)` with two."""
    if len(limits) < 2:
        return " ".join([kind, *(f"{_SIGNS[name]} {limit}" for name, limit in limits.items())])
    low, high = (limits[name] for name in sorted(limits, key=[*_LIMITS].index))
    span = f"{'[' if 'least' in limits else '('}{low}, {high}{']' if 'most' in limits else ')'}"
    return f"{kind.removeprefix('a finite number')} in {span}".strip()


def is_real(x: Any, many: bool = False) -> bool:
    """Whether a value is one real number, or an array of `many`, and not a truth value."""
    if isinstance(x, np.ndarray | np.number | jax.Array):
        return (many or x.ndim == 0) and jnp.issubdtype(x.dtype, jnp.number) and jnp.isrealobj(x)
    return isinstance(x, int | float) and not isinstance(x, bool)


def choice(name: str, x: Any, choices: Iterable[Any], advice: str = "") -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ValueError: naming them.

    Example:
        >>> choice("per", "layer", ("rule", "leaf"))
        Traceback (most recent call last):
        ValueError: `per` must be one of 'rule', 'leaf'; got 'layer'.
    """
    choices = list(choices)
    is_one = isinstance(x, str | None) and x in choices
    must(name, is_one, f"be one of {listed(map(repr, choices))}", shown(x), advice)


def flag(name: str, x: Any) -> None:
    """Refuse anything but True or False, such as the word "no".

    Raises:
        TypeError: it is something else.

    Example:
        >>> flag("intercept", "no")
        Traceback (most recent call last):
        TypeError: `intercept` must be True or False; got 'no'.
    """
    must(name, is_flag(x), "be True or False", shown(x), error=TypeError)


def flags(name: str, tree: PyTree, advice: str = "") -> None:
    """Refuse a tree, such as a mask, that holds anything but True and False.

    Raises:
        TypeError: it does.

    Example:
        >>> flags("mask", {"bias": False, "kernel": 1.0})
        Traceback (most recent call last):
        TypeError: `mask` must hold booleans; got float at 'kernel'.
    """
    leaves(name, tree, is_flag, "booleans", advice)


def is_flag(x: Any) -> bool:
    """Whether a value is True or False, of Python or NumPy."""
    return isinstance(x, bool | np.bool_)


def names(name: str, x: Any) -> None:
    """Refuse one name where a list of names is expected: it would be split into letters.

    Raises:
        TypeError: it is one name.

    Example:
        >>> names("layers", "head")
        Traceback (most recent call last):
        TypeError: `layers` must be a list of names; got 'head'. Write ['head'].
    """
    must(name, not isinstance(x, str), "be a list of names", repr(x), f"Write [{x!r}].", TypeError)


def function(name: str, x: Any, *, optional: bool = False, advice: str = "") -> None:
    """Refuse anything that cannot be called.

    Raises:
        TypeError: it cannot.

    Example:
        >>> function("loss_fn", 3)
        Traceback (most recent call last):
        TypeError: `loss_fn` must be a function; got 3.
    """
    fits = callable(x) or (optional and x is None)
    must(name, fits, f"be a function{' or None' * optional}", shown(x), advice, TypeError)


def record(name: str, x: Any, kind: type, advice: str = "") -> None:
    """Refuse anything but a record of one class.

    Raises:
        TypeError: it is something else.

    Example:
        >>> record("chosen", 3, dict)
        Traceback (most recent call last):
        TypeError: `chosen` must be a dict; got int.
    """
    must(name, isinstance(x, kind), f"be a {kind.__name__}", kind_of(x), advice, TypeError)


def optimizer(
    name: str, x: Any, advice: str = "For instance wdjax.adamw(1e-3, weight_decay=0.1)."
) -> None:
    """Refuse anything but an Optax optimizer or transformation.

    Raises:
        TypeError: it is something else, such as the function that builds one.

    Example:
        >>> import optax
        >>> optimizer("optimizer", optax.adam)
        Traceback (most recent call last):
        TypeError: `optimizer` must be an Optax optimizer; got the function adam. ...
    """
    # not by class: optax.MultiSteps is none of Optax's own transformations
    fits = all(callable(getattr(x, method, None)) for method in ("init", "update"))
    title = getattr(x, "__name__", "")
    is_factory = callable(x) and title.isidentifier()
    got = f"the function {title}" if is_factory else shown(x)
    advice = f"Call it: {title}(...)." if is_factory else advice
    must(name, fits, "be an Optax optimizer", got, advice, TypeError)


def fractions(
    what: str,
    taken: Iterable[tuple[str, Any]],
    advice: str = "Lower λ, check the law's units, or use wdjax.prox_weights.",
) -> None:
    """Refuse decay that takes all of a weight or more in one step: its sign would flip.

    Args:
        what: the argument, or product of arguments, to blame.
        taken: (path, s m) pairs, the fraction that a step takes off; "" where no leaf is meant.
            Traced fractions pass.
        advice: what to do.

    Raises:
        ValueError: naming the largest fraction and the paths.

    Example:
        >>> fractions("`strength` times multiplier", [("kernel", 1.5), ("bias", 0.0)])
        Traceback (most recent call last):
        ValueError: `strength` times multiplier must be < 1, the fraction taken off in a step; it
        reaches 1.5 for 'kernel' and would flip signs. Lower λ, ...
    """
    known = [(path, m) for path, m in taken if not isinstance(m, jax.core.Tracer)]
    flipped = {path: float(m) for path, m in known if m >= 1}
    if flipped:
        where = listed(repr(path) for path in flipped if path)
        raise ValueError(
            f"{what} must be < 1, the fraction taken off in a step; it reaches "
            f"{max(flipped.values()):g}{where and ' for ' + where} and would flip signs. {advice}"
        )


def tqdm_for(progress: bool | None) -> Any:
    """Import tqdm, or return None where no bar is wanted.

    Args:
        progress: None wants a bar where stderr is a terminal and tqdm is there.

    Raises:
        ImportError: a bar is asked for and tqdm is missing.

    Example:
        >>> tqdm_for(False) is None
        True
    """
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        if progress is None:
            return None
        raise ImportError(
            "`progress=True` needs tqdm, which is missing. Run: pip install tqdm, or pass "
            "progress=False."
        ) from None
    return tqdm


def named_leaves(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """(path, leaf) pairs; the path reads `layer/0/kernel`, and `.` for a tree that is one leaf."""
    return [("/".join(parts) or ".", leaf) for parts, _, leaf in entries(tree, is_leaf)]


def kind_of(leaf: Any) -> str:
    """`float32[3,4]` for an array, the type's name for anything else."""
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return type(leaf).__name__
    masked = "masked " * isinstance(leaf, np.ma.MaskedArray)
    return f"{masked}{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def leaves(
    name: str,
    tree: PyTree,
    holds: Callable[[Any], Any],
    what: str,
    advice: str = "",
    **options: Any,
) -> None:
    """Refuse a tree with other leaves, naming them.

    Args:
        name: the argument to blame.
        tree: a pytree.
        holds: tells a leaf that is right.
        what: what leaves must be.
        advice: a last sentence, what to do.
        **options: `is_leaf`.

    Raises:
        TypeError: a leaf is something else.

    Example:
        >>> leaves("params", {"ids": np.arange(3)}, lambda x: x.dtype.kind == "f", "floats")
        Traceback (most recent call last):
        TypeError: `params` must hold floats; got int64[3] at 'ids'.
    """
    wrong = [
        f"{kind_of(x)} at '{path}'" for path, x in named_leaves(tree, **options) if not holds(x)
    ]
    must(name, not wrong, f"hold {what}", listed(wrong), advice, TypeError)


def arrays(name: str, tree: PyTree) -> None:
    """Refuse lists, texts, dates, and NumPy's masked arrays, whose mask JAX would drop."""
    leaves(
        name, tree, is_plain, "plain arrays of numbers",
        "Turn lists into arrays, texts and dates into numbers; fill or drop what is masked.",
    )  # fmt: skip


def is_plain(x: Any) -> bool:
    """Whether it is an array of numbers, of JAX or NumPy, without a mask."""
    is_masked = isinstance(x, np.ma.MaskedArray)
    return isinstance(x, jax.Array) or (
        isinstance(x, np.ndarray) and not is_masked and x.dtype.kind not in "OSUMm"
    )


def as_arrays(name: str, tree: PyTree, convert: Callable[[Any], Any]) -> PyTree:
    """Anything that NumPy takes as an array (also torch, pandas); device arrays stay there."""

    def leaf(x: Any) -> Any:
        is_known = isinstance(x, jax.Array | np.ma.MaskedArray) or not hasattr(x, "__array__")
        return x if is_known else convert(x)

    converted = jax.tree.map(leaf, tree)
    arrays(name, converted)
    check_widths(name, converted)
    return converted


def common_axis(name: str, tree: PyTree, advice: str = "") -> int:
    """The length of the leading axis, which all arrays must share."""
    shapes = [(path, jnp.shape(x)) for path, x in named_leaves(tree)]
    lengths = {shape[:1] for _, shape in shapes}
    found = listed(f"{shape} at '{path}'" for path, shape in shapes) or "no array"
    fits = len(lengths) == 1 and not lengths & {(), (0,)}
    must(name, fits, "hold arrays with the same number of rows, at least one", found, advice)
    return int(lengths.pop()[0])


def check_data(name: str, data: Any) -> int:
    """Refuse anything but arrays of finite numbers with N rows each; return N.

    Example:
        >>> check_data("data", {"x": np.zeros((3, 2)), "y": np.zeros(3)})
        3
    """
    arrays(name, data)
    check_finite(name, data)
    check_widths(name, data)
    return common_axis(name, data)


def check_finite(name: str, tree: Any) -> None:
    """Refuse NaN and infinity, and what would be infinite in JAX's dtype; traced values pass.

    Example:
        >>> check_finite("data", {"x": np.array([[1.0, np.nan]])})
        Traceback (most recent call last):
        ValueError: `data` must be finite; got nan in 'x' at [0, 1], 1 in all. Drop or fill ...
    """
    for path, x in named_leaves(tree):
        values = x if isinstance(x, jax.Array) else np.asarray(x)
        if isinstance(x, jax.core.Tracer) or not jnp.issubdtype(values.dtype, jnp.inexact):
            continue
        dtype = jax.dtypes.canonicalize_dtype(values.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            values = at_hand(values).astype(dtype, copy=False)
            if np.isfinite(values.sum()):  # much faster, and nearly always so
                continue
        values = np.asarray(values)
        wrong = np.argwhere(~np.isfinite(values)).tolist()
        if wrong:
            place = f"at {wrong[0]}" if path == "." else f"in '{path}' at {wrong[0]}"
            raise ValueError(
                f"`{name}` must be finite; got {values[tuple(wrong[0])]} {place}, "
                f"{len(wrong)} in all. Drop or fill in these examples."
            )


def check_widths(name: str, tree: Any) -> None:
    """Refuse whole numbers too large for JAX's dtype, which would change silently.

    Example:
        >>> check_widths("data", {"id": np.array([7, 2**32])})
        Traceback (most recent call last):
        ValueError: `data` must fit int32, in which JAX computes; got 4294967296 in 'id'. Encode ...
    """
    for path, x in named_leaves(tree):
        if isinstance(x, jax.Array) or x.dtype.kind not in "iu" or not x.size:
            continue
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        for value in (int(x.min()), int(x.max())) if dtype != x.dtype else ():
            if not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                raise ValueError(
                    f"`{name}` must fit {dtype}, in which JAX computes; got {value} in '{path}'. "
                    "Encode this column, drop it, or set jax.config.update('jax_enable_x64', True)."
                )


def checked_readings(found: Any, first: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Copy what `evaluate` returned; names and shapes must be those of the first time.

    A function may fill the same buffer again and again.
    """
    is_dict = isinstance(found, dict)
    must("evaluate", is_dict, "return a dict of scalars", kind_of(found), error=TypeError)
    copies: dict[str, np.ndarray] = {name: np.array(x) for name, x in found.items()}
    arrays("evaluate", copies)
    first = copies if first is None else first
    now, then = ({name: x.shape for name, x in each.items()} for each in (copies, first))
    got = f"{now}, and {then} the first time"
    must("evaluate", now == then, "return the same names and shapes every time", got)
    return copies


def require_global(name: str, tree: PyTree) -> None:
    """Refuse arrays that only this process has; JAX would assume that all processes have them.

    Args:
        name: what the tree is, for the message.
        tree: what goes into a step that several processes take together.

    Raises:
        ValueError: naming the arrays.

    Example:
        >>> require_global("batches", {"x": jnp.zeros(2)})
        Traceback (most recent call last):
        ValueError: `batches` must lie on the devices of all processes, as the state does; got ...
    """
    own = [repr(path) for path, x in named_leaves(tree) if not spans_processes(x)]
    advice = (
        "Use jax.make_array_from_process_local_data(sharding, part) where each process has its "
        "part, jax.device_put(whole, sharding) where each has the whole."
    )
    rule = "lie on the devices of all processes, as the state does"
    must(name, not own, rule, f"arrays of this process alone: {listed(own)}", advice)
