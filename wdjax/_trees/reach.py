"""Which parameters a loss can move: told by its program, and not by their names."""

from collections.abc import Callable
from typing import Any

import jax

from wdjax._trees import checks, paths


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
    found = zip(paths.leaves(params), reached(gradient.jaxpr), strict=True)
    return frozenset(leaf.path for leaf, moves in found if not moves)


def reached(program: Any) -> list[bool]:
    """Tell which outputs of a program depend on any of its inputs.

    Where no gradient reaches a parameter, behind `jax.lax.stop_gradient` or unused, JAX fills in
    zeros that depend on nothing.

    Args:
        program: a jaxpr, such as that of a gradient; calls inside it count as a whole.

    Returns:
        A bool for each output. A yes may be wrong, a no is certain.

    Example:
        >>> import jax
        >>> gradient = jax.grad(lambda p: p["used"] * jax.lax.stop_gradient(p["buffer"]))
        >>> reached(jax.make_jaxpr(gradient)({"buffer": 1.0, "used": 2.0}).jaxpr)
        [False, True]
    """
    known = {*program.invars, *program.constvars}

    def depends(atom: Any) -> bool:
        return not hasattr(atom, "val") and atom in known  # what has a value is a literal

    for equation in program.eqns:
        if equation.effects or any(map(depends, equation.invars)):
            known.update(equation.outvars)
    return [depends(atom) for atom in program.outvars]
