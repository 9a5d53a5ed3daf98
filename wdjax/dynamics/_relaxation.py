"""Sizes that relax towards an equilibrium, which may move: recursions over a whole run at once.

Everything works on NumPy arrays in float64 and on traced arrays alike.
"""

import math
from typing import Any

import jax
import numpy as np

from wdjax.dynamics._theory import Number, foldings, numpy_of


def spread(shrink: Number, live: Number) -> Number:
    """Spread decay that acts in every k-th step evenly over all k of them.

    Args:
        shrink: (T,) s in [0, 1).
        live: (T,) whether something moves in a step: only these are counted.

    Returns:
        (T,) s, the same where two successive steps decay. Each decay is spread over as many steps
        as lie before it or after it, whichever are fewer; one that is alone stays as it is.
    """
    xp = numpy_of(shrink, live)
    count, on, clock = len(shrink), shrink > 0, xp.cumsum(live)
    steps, never = xp.arange(count), 2 * count + 2
    following = _from_the_end(xp, xp.where(on, steps, count))
    owner = xp.where(following < count, following, _so_far(xp, xp.where(on, steps, -1)))
    before = _so_far(xp, xp.where(on, clock, -never))
    after = _from_the_end(xp, xp.where(on, clock, 2 * never))
    to_the_last = clock - xp.concatenate([xp.full(1, -never), before[:-1]])
    to_the_next = xp.concatenate([after[1:], xp.full(1, 2 * never)]) - clock
    k = xp.minimum(to_the_last, to_the_next)[owner]
    k = xp.where(k > count, 1, k)
    share = foldings(shrink[owner]) / k
    reached = live & (abs(clock[owner] - clock) < k)
    return xp.where(k == 1, shrink, xp.where(reached, -xp.expm1(-share), 0))


def relaxed(kept: Number, added: Number, start: Number) -> Number:
    """All values of x⁺ = kept x + added from the start on: (T,), by doubling the stride."""
    xp, stride = numpy_of(kept, added), 1
    while stride < len(kept):
        more = added[stride:] + kept[stride:] * added[:-stride]
        added = xp.concatenate([added[:stride], more])
        kept = xp.concatenate([kept[:stride], kept[stride:] * kept[:-stride]])
        stride *= 2
    return kept * start + added


def arrival(x: Number, goal: Number, within: float, spent: Number) -> Number:
    """How many steps it takes until x is near a goal and stays near for a while.

    Args:
        x: (T,) after each step.
        goal: (T,) where it would settle.
        within: how near, as a fraction of the goal.
        spent: (T,) a clock: to stay for one unit of it, or to the end, is to have arrived. A goal
            that only passes by does not count.

    Returns:
        The number of the first such step, from 1; infinite if there is none.
    """
    xp, count = numpy_of(x, goal), len(x)
    near = (x >= (1 - within) * goal) & (x <= (1 + within) * goal)
    leaves = _from_the_end(xp, xp.where(near, count, xp.arange(count)))
    stays = spent[xp.maximum(leaves - 1, 0)] - spent >= 1
    arrived = near & ((leaves == count) | stays)
    return xp.where(arrived.any(), 1.0 + arrived.argmax(), math.inf)


def _so_far(xp: Any, values: Number) -> Number:
    """The largest of this value and all earlier ones; jnp.maximum.accumulate takes T steps."""
    return np.maximum.accumulate(values) if xp is np else jax.lax.cummax(values)


def _from_the_end(xp: Any, values: Number) -> Number:
    """The least of this value and all later ones."""
    return -_so_far(xp, -values[::-1])[::-1]
