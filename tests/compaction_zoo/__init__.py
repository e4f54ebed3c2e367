"""Small networks to be compacted, with the units that may leave told by hand.

`NAMES` lists them, `TOLD` those whose groups are told. `get(name)` is a `Specimen` of
shapes, `make(name, seed)` draws its parameters and `data(name, seed)` its inputs. The
bed of `real_networks` is among them. Axes of different meaning have different lengths,
so that none is taken for another.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maskjax._core import trees
from tests import real_networks

NOT_TOLD = ("plain/cuts",)
Group = tuple[tuple[int, ...], frozenset[tuple[str, int]]]


@dataclasses.dataclass(frozen=True)
class Specimen:
    """A network of shapes.

    Attributes:
        params: Everything that `apply` is given, statistics too.
        apply: `(params, *inputs) -> output`.
        inputs: Shapes of a small batch, the batch first.
        groups: The units that may leave, one entry for each group: the stack with the
            number of units, and the axes of leaves that run along them. `None` if they
            are not told.
        state: Whether the second output is state, which shrinks with the parameters.
        predict: `apply` as it is used after training: what `groups` is asked about.
    """

    params: Any
    apply: Callable[..., Any]
    inputs: tuple[Any, ...]
    groups: tuple[Group, ...] | None
    state: bool = False
    predict: Callable[..., Any] | None = None


def told(params: Any, words: dict[str, str], sizes: dict[str, Any]) -> Any:
    """Groups from words for the axes of each leaf.

    Args:
        params: The tree of shapes.
        words: For patterns of paths the groups of each axis: ". units" for a kernel
            whose outputs are the group `units`, "heads+dims" for an axis that two
            groups divide. Leaves that no pattern matches are in no group.
        sizes: The number of units by group, (layers, units) of one that is scanned.
    """
    members = {name: set() for name in sizes}
    used = set()
    for path, leaf in trees.named_leaves(params):
        found = [pattern for pattern in words if fnmatch.fnmatchcase(path, pattern)]
        assert len(found) <= 1, f"{path} is told by {found}"
        axes = words[found[0]].split() if found else ()
        assert not found or len(axes) == len(leaf.shape), f"{path} {leaf.shape} {axes}"
        used |= set(found)
        for axis, names in enumerate(axes):
            for name in () if names == "." else names.split("+"):
                members[name].add((path, axis))
    assert used == set(words), f"no leaf is called {set(words) - used}"
    stacked = {n: s if isinstance(s, tuple) else (s,) for n, s in sizes.items()}
    return tuple((stacked[name], frozenset(members[name])) for name in sizes)


def under(prefix: str, words: dict[str, str], stack: str = "", **renamed: str) -> Any:
    """Words of a part of a network, which may be stacked, its groups renamed."""

    def name(axis: str) -> str:
        return "+".join(renamed.get(word, word) for word in axis.split("+"))

    return {
        f"{prefix}/{path}": " ".join([*stack.split(), *map(name, axes.split())])
        for path, axes in words.items()
    }


def specimen(
    params: Any,
    apply: Callable[..., Any],
    inputs: Any,
    words: dict[str, str] | None = None,
    sizes: dict[str, Any] | None = None,
    **other: Any,
) -> Specimen:
    """A specimen whose groups are told in words."""

    def promoting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with jax.numpy_rank_promotion("allow"):
                with jax.numpy_dtype_promotion("standard"):
                    return function(*args)

        return run

    groups = None if words is None else told(params, words, sizes or {})
    if "predict" in other:
        other["predict"] = promoting(other["predict"])
    return Specimen(params, promoting(apply), tuple(inputs), groups, **other)


@functools.cache
def _makers() -> dict[str, Callable[[], Specimen]]:
    from tests.compaction_zoo import bed, equinox, linen, nnx, plain

    made = {
        f"{module.__name__.split('.')[-1]}/{name}": make
        for module in (linen, nnx, equinox, plain)
        for name, make in module.NETWORKS.items()
    }
    both = made.keys() & set(real_networks.NAMES)
    assert not both, f"in both beds: {both}"
    assert not bed.TOLD.keys() - set(real_networks.NAMES)
    return made | {n: functools.partial(bed.of, n) for n in real_networks.NAMES}


def __getattr__(name: str) -> Any:
    if name == "NAMES":
        return tuple(_makers())
    if name == "TOLD":
        from tests.compaction_zoo import bed

        own = _makers().keys() - set(real_networks.NAMES) - set(NOT_TOLD)
        return tuple(n for n in _makers() if n in own or n in bed.TOLD)
    raise AttributeError(name)


@functools.cache
def get(name: str) -> Specimen:
    """A specimen of `NAMES`."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return _makers()[name]()


def make(name: str, seed: int = 0) -> Any:
    """Parameters drawn by NumPy, none 0; variances are positive."""
    rng = np.random.default_rng(seed)
    shapes = get(name).params

    def draw(path: str, leaf: Any) -> np.ndarray:
        values = rng.uniform(0.2, 0.8, leaf.shape)
        if not path.endswith("var"):
            values *= rng.choice([-1, 1], leaf.shape)
        return values.astype(leaf.dtype)

    values = [draw(path, leaf) for path, leaf in trees.named_leaves(shapes)]
    return jax.device_put(jax.tree.structure(shapes).unflatten(values))


def data(name: str, seed: int = 0, *, batch: int | None = None) -> tuple[Any, ...]:
    """Inputs drawn by NumPy: normal numbers or tokens, in a batch of any size."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        sizes = leaf.shape if batch is None else (batch, *leaf.shape[1:])
        if np.issubdtype(leaf.dtype, np.integer):
            return rng.integers(0, 22, sizes).astype(leaf.dtype)
        return rng.normal(size=sizes).astype(leaf.dtype)

    return jax.device_put(jax.tree.map(draw, get(name).inputs))
