"""Libraries whose models promote ranks are let."""

import jax
import pytest


@pytest.fixture
def rank_promotion_allowed():
    with jax.numpy_rank_promotion("allow"):
        yield
