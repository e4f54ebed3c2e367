"""A test bed of small real networks, each with the roles of its leaves told by hand.

`NAMES` lists them; `get(name)` is a `Network` of shapes: nothing is computed or
compiled. `make(name, seed)` draws parameters, `data(name, seed)` inputs. The networks
themselves are in `real_linen`, `real_nnx`, `real_equinox` and `real_plain`. Axes of one
leaf are of different lengths, so that none is found by its length; attention needs
products.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maskjax import where
from maskjax._core import trees

UNKNOWN = "unknown"  # chosen, but what its axes mean depends on what one wants
LOOKUP = "lookup"
POSITIONS = "positions"  # added as a whole or looked up by a constant; no kernel


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of shapes.

    Attributes:
        params: Everything that `apply` is given, statistics too.
        apply: `(params, *inputs) -> output`, for one member where `stack` is 1.
        inputs: Shapes of a small batch.
        roles: For each path a word for each axis; `LOOKUP`; `POSITIONS`; `UNKNOWN`;
            `None` of a leaf without inputs.
        stack: How many leading axes of every leaf count members of an ensemble.
    """

    params: Any
    apply: Callable[..., Any]
    inputs: tuple[Any, ...]
    roles: dict[str, str | None]
    stack: int = 0

    def traced(self) -> Any:
        """The roles by tracing."""
        return where.traced(self.apply, self.params, *self.inputs, stack=self.stack)

    def leaves(self) -> list[tuple[str, Any]]:
        """The leaves with their paths."""
        return trees.named_leaves(self.params)


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    """An array that is not there."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def tokens(*sizes: int) -> jax.ShapeDtypeStruct:
    """Integers below 22, the size of every vocabulary here."""
    return shape(*sizes, dtype="int32")


def network(
    params: Any, apply: Any, inputs: Any, roles: Any, stack: int = 0
) -> Network:
    """A network whose roles are told by patterns, each leaf by exactly one.

    `*` in a pattern stands for anything, as in `block_*/query/kernel`.
    """
    told, used = {}, set()
    for path, leaf in trees.named_leaves(params):
        found = [pattern for pattern in roles if fnmatch.fnmatchcase(path, pattern)]
        assert len(found) == 1, f"{path} {leaf.shape} is told by {found}"
        told[path] = roles[found[0]]
        used.add(found[0])
    assert used == set(roles), f"no leaf is called {set(roles) - used}"

    def promoting(*args: Any) -> Any:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return apply(*args)

    return Network(params, promoting, inputs, told, stack)


def under(prefix: str, roles: dict[str, str | None], stack: str = "") -> Any:
    """Roles of a part of a network, which may be stacked."""
    return {
        f"{prefix}/{path}": words and f"{stack} {words}".strip()
        for path, words in roles.items()
    }


@functools.cache
def _makers() -> dict[str, Callable[[], Network]]:
    from tests import real_equinox, real_linen, real_nnx, real_plain

    return {
        f"{module.__name__.removeprefix('tests.real_')}/{name}": make
        for module in (real_linen, real_nnx, real_equinox, real_plain)
        for name, make in module.NETWORKS.items()
    }


def __getattr__(name: str) -> Any:
    if name == "NAMES":
        return tuple(_makers())
    raise AttributeError(name)


@functools.cache
def get(name: str) -> Network:
    """A network of `NAMES`."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return _makers()[name]()


def make(name: str, seed: int = 0) -> Any:
    """Parameters drawn by NumPy, of about the size that they have in practice."""
    return drawn(get(name).params, seed)


def drawn(params: Any, seed: int = 0) -> Any:
    """Values for a tree of shapes; all are positive, so that variances are."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: np.asarray(rng.uniform(0.1, 1, leaf.shape), leaf.dtype)  # noqa: E731
    return jax.device_put(jax.tree.map(draw, params))


def data(name: str, seed: int = 0) -> tuple[Any, ...]:
    """Inputs drawn by NumPy: a batch of normal numbers or tokens."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        if np.issubdtype(leaf.dtype, np.integer):
            return rng.integers(0, 22, leaf.shape).astype(leaf.dtype)
        return rng.normal(size=leaf.shape).astype(leaf.dtype)

    return jax.device_put(jax.tree.map(draw, get(name).inputs))
