"""How benchmarks are tested."""

import jax
import pytest


@pytest.fixture
def loose(_strict_promotion):
    """Benchmarks are scripts of users, who leave promotion as it is."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
