"""Which parameters a loss can move: told by its program, and not by their names."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wdjax._trees import checks, paths

_FILLS = ("broadcast_in_dim", "convert_element_type", "reshape")  # zeros of zeros


def unreached(loss: Callable[[Any], Any], params: Any) -> frozenset[str]:
    """Name the parameters that no gradient of a loss can reach.

    Args:
        loss: of the parameters alone.
        params: a pytree of arrays or of their shapes.

    Returns:
        Their paths.

    Raises:
        TypeError: the loss is not a function.

    Example:
        >>> params = {"used": jax.numpy.ones(()), "other": jax.numpy.ones(3)}
        >>> sorted(unreached(lambda p: p["used"] ** 2, params))
        ['other']
    """
    checks.function("loss", loss)
    gradient = jax.make_jaxpr(jax.grad(loss, allow_int=True))(params)
    found = zip(paths.leaves(params), always_zero(gradient.jaxpr), strict=True)
    return frozenset(leaf.path for leaf, is_zero in found if is_zero)


def always_zero(program: Any) -> list[bool]:
    """Tell which outputs of a program are zeros, whatever its inputs.

    Where no gradient reaches a parameter, under `jax.lax.stop_gradient` or unused, JAX fills in
    zeros.

    Args:
        program: a jaxpr, such as that of a gradient.

    Returns:
        A bool for each output. A no may be wrong, a yes is certain.

    Example:
        >>> gradient = jax.grad(lambda p: p["used"] * jax.lax.stop_gradient(p["buffer"]))
        >>> always_zero(jax.make_jaxpr(gradient)({"buffer": 1.0, "used": 2.0}).jaxpr)
        [True, False]
    """
    zeros: set[Any] = set()

    def is_zero(atom: Any) -> bool:
        literal = hasattr(atom, "val")
        return bool(np.all(np.equal(atom.val, 0))) if literal else atom in zeros

    for equation in program.eqns:
        if equation.primitive.name in _FILLS and all(map(is_zero, equation.invars)):
            zeros.update(equation.outvars)
    return [is_zero(atom) for atom in program.outvars]
