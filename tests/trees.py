"""A registry of parameter trees: every kind of container, with the same few shapes.

Values are random, signed and pairwise different in float32, so that a ranking by
magnitude has no ties there; in bfloat16 some of them may be equal.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskjax import where


class Layer(NamedTuple):
    """A dense layer's parameters."""

    kernel: Any
    bias: Any


class _LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(5)(nn.relu(nn.Dense(8)(x)))


class _NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.out = nnx.Linear(8, 5, rngs=rngs)


class _EquinoxNet(eqx.Module):
    """Kernels are (out, in) here; not to be called: shapes are those of the others."""

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        self.hidden = eqx.nn.Linear(8, 6, key=key)
        self.out = eqx.nn.Linear(5, 8, key=key)


# Containers for one small set of leaves, so that what is compiled for a leaf of one
# tree serves the others. Nothing is computed: values are drawn in `make`.


def _of(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _nested_dict() -> Any:
    return {
        "encoder": {"dense": {"kernel": _of(6, 8), "bias": _of(8)}},
        "conv": {"kernel": _of(3, 3, 2, 4)},
        "out": {"kernel": _of(8, 5), "bias": _of(5)},
    }


def _tuple() -> Any:
    return (_of(6, 8), [_of(8), _of(8, 5)])


def _namedtuple() -> Any:
    return Layer(Layer(_of(6, 8), _of(8)), Layer(_of(8, 5), None))


def _linen() -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(_LinenNet().init, key, _of(1, 6))["params"]


def _nnx() -> Any:
    return nnx.split(nnx.eval_shape(lambda: _NnxNet(nnx.Rngs(0))))[1]


def _equinox() -> Any:
    return eqx.filter_eval_shape(lambda: _EquinoxNet(jax.random.key(0)))


def _odd_leaves() -> Any:
    return {
        "scalar": _of(),
        "empty": {"kernel": _of(0, 3), "flat": _of(0)},
        "steps": _of(2, 3, dtype=jnp.int32),
        "kernel": _of(6, 8),
    }


_TREES: dict[str, Callable[[], Any]] = {
    "nested_dict": _nested_dict,
    "tuple": _tuple,
    "namedtuple": _namedtuple,
    "linen": _linen,
    "nnx": _nnx,
    "equinox": _equinox,
    "odd_leaves": _odd_leaves,
}

NAMES = tuple(_TREES)
# Kernels of all these trees, with the axes that no name tells.
WHERE = where.matching("weight$", axes="outputs inputs") & where.kernels | where.kernels
DTYPES = ("float32", "bfloat16")


def make(name: str, dtype: str = "float32", *, seed: int = 0) -> Any:
    """The tree of that name; its floating leaves of that dtype, random."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype))
        return jax.device_put(rng.standard_normal(leaf.shape).astype(jnp.dtype(dtype)))

    return jax.tree.map(draw, _TREES[name]())


def pairs(params: Any, other: Any) -> list[tuple[np.ndarray, Any]]:
    """Leaves of `params` as NumPy arrays, with the other tree's, which may be None."""
    leaves, treedef = jax.tree.flatten(params)
    others = treedef.flatten_up_to(other)
    return [(to_numpy(a), b) for a, b in zip(leaves, others, strict=True)]


def to_numpy(x: Any) -> np.ndarray:
    """A NumPy array, of float32 where NumPy has no such type."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype == jnp.bfloat16 else x


def assert_same(a: Any, b: Any) -> None:
    """Two trees of one structure, the same to the bit, dtypes and shapes included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert jax.device_put(x).dtype == jax.device_put(y).dtype
        np.testing.assert_array_equal(to_numpy(x), to_numpy(y))
