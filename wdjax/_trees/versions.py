"""Names that earlier versions of JAX have in other places; none is left when the floor is 0.9."""

from typing import Any

import jax
import jax.experimental
import jax.sharding


def _first(name: str, *places: Any) -> Any:
    return next(getattr(place, name) for place in places if hasattr(place, name))


enable_x64 = _first("enable_x64", jax, jax.experimental)
reshard = _first("reshard", jax, jax.sharding)
