"""Training loops for tests: small parameters, steps in one program, masks by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from maskjax import optim
from tests import trees
from tests.reference import selection


def make_params(dtype="float32", *, seed=0):
    """Kernels of two layers, biases among which one is None."""
    rng = np.random.default_rng(seed)
    draw = lambda *s: rng.normal(size=s).astype(jnp.dtype(dtype))  # noqa: E731
    return {
        "a": {"kernel": draw(6, 8), "bias": draw(8)},
        "b": {"kernel": draw(8, 4), "bias": None},
    }


def kernel():
    return make_params()["a"]["kernel"]


def slope(params):
    """A gradient nowhere zero: every entry would move."""
    return jax.tree.map(lambda p: (0.3 * p + 0.05).astype(p.dtype), params)


def run(optimizer, params, *, steps, gradients=slope):
    """Initialize and train in one program: parameters, state, and the mask's counts."""

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(gradients(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        return lax.scan(step, carry, length=steps)[0]

    return train(params)


def following(optimizer, params, gradients):
    """A step for each of the stacked gradients: parameters and masks after each."""

    @jax.jit
    def train(params, gradients):
        def step(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, optim.mask_of(state))

        state = optimizer.init(params)
        (_, last), (ps, masks) = lax.scan(step, (params, state), gradients)
        return optim.mask_of(state), ps, masks, last

    first, ps, masks, last = train(params, gradients)
    every = jax.tree.map(lambda m, ms: np.stack([m, *ms]), first, masks)
    return jax.tree.map(np.asarray, ps), every, last


def top_half(x):
    return selection.best(np.abs(x).ravel(), x.size // 2).reshape(x.shape)


def half(params):
    """The larger half of each kernel, by NumPy."""
    return {k: {"kernel": top_half(params[k]["kernel"]), "bias": None} for k in "ab"}


def bits(x):
    """An array as unsigned integers, so that -0.0 differs from 0.0."""
    x = np.asarray(x)
    return x.view(f"u{x.itemsize}")


def count(mask):
    return sum(int(np.asarray(m).sum()) for m in jax.tree.leaves(mask))


def assert_zero_outside(params, mask):
    kept = zip(trees.pairs(params, mask), jax.tree.leaves(params), strict=True)
    assert any(leaf is not None for _, leaf in trees.pairs(params, mask))
    for (_, leaf), p in kept:
        if leaf is not None:
            outside = ~np.broadcast_to(np.asarray(leaf), p.shape)
            assert outside.any()
            assert not trees.to_numpy(p)[outside].any()
