"""Strict promotion for every test, and the ways in which a test is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _strict_promotion():
    """Nothing is promoted in silence: neither dtypes nor ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def _eager(function):
    return function


def _vmap(function):
    """Run as the only member of a batch."""
    compiled = jax.jit(jax.vmap(function))

    def lead(x):
        keys = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        return x[None] if keys else jax.device_put(np.asarray(x)[None])

    def mapped(*args):
        out = compiled(*jax.tree.map(lead, args))
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x)[0]), out)

    return mapped


_TRANSFORMS = {"eager": _eager, "jit": jax.jit, "vmap": _vmap}


@pytest.fixture
def transforms():
    """The ways in which a function is run, by name."""
    return _TRANSFORMS


@pytest.fixture(params=["eager", "jit"])
def transform(request):
    """Runs a function as written, and under `jax.jit`."""
    return _TRANSFORMS[request.param]


@pytest.fixture(params=["eager", "jit", "vmap"])
def every_transform(request):
    """Runs a function as written, under `jax.jit`, and under `jax.vmap`."""
    return _TRANSFORMS[request.param]


@pytest.fixture
def x64():
    """Floats and integers of 64 bits."""
    with jax.enable_x64(True):
        yield
