"""Parameters, statistics, moments, averages and masks shrink together; training goes on.

Every test trains a masked network, takes out what is masked from all that is trained,
goes on with the small network and, beside it, with the whole one, and compares.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import maskjax
from maskjax import compaction, optim, packing

pytestmark = pytest.mark.optimized


@pytest.fixture(autouse=True)
def _as_users(_strict_promotion):
    """Flax and optax need it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def half(apply, params, *inputs):
    """A mask that removes every other unit of every group, and nothing else."""
    groups = compaction.groups(apply, params, *inputs)
    decisions = {
        g.name: np.broadcast_to(np.arange(g.size) % 2 == 0, (*g.stack, g.size))
        for g in groups
    }
    return groups.spread(decisions, params)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(small, whole, tolerance=1e-5):
    """Whether two trees agree, each leaf relative to its largest entry."""
    pairs = zip(jax.tree.leaves(small), jax.tree.leaves(whole), strict=True)
    for one, other in pairs:
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        scale = max(1.0, np.abs(other).max(initial=0))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


# Plain trees: every kind of state that optax has.

NESTED = {
    "up": {"kernel": draw(5, 8), "bias": draw(8, seed=1)},
    "down": {"kernel": draw(8, 3, seed=2), "bias": draw(3, seed=3)},
}
X, Y = draw(3, 6, 5, seed=4), draw(3, 6, 3, seed=5)


def net(p, x):
    h = jnp.tanh(x @ p["up"]["kernel"] + p["up"]["bias"])
    return h @ p["down"]["kernel"] + p["down"]["bias"]


def flat_net(p, x):
    return jnp.tanh(x @ p[0] + p[1]) @ p[2] + p[3]


def loss_of(net):
    return lambda p, x, y: ((net(p, x) - y) ** 2).mean()


FLAT = tuple(jax.tree.leaves(NESTED)[i] for i in (3, 2, 1, 0))
FLAT_MASK = (draw(1, 8, seed=6) > 0, None, None, None)
