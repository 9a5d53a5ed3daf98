"""One leaf's formula becomes Optax's transformation."""
