"""Names that earlier versions of JAX have in other places; none is left when the floor is 0.9."""

from typing import Any

import jax
import jax.experimental
import jax.sharding

enable_x64: Any = getattr(jax, "enable_x64", None) or jax.experimental.enable_x64
reshard: Any = getattr(jax, "reshard", None) or getattr(jax.sharding, "reshard", None)
