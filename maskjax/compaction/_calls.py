"""A call of a function of parameters, taken apart: leaves, and what they belong to."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from maskjax._core import checks, trees
from maskjax.compaction import _matching, _network
from maskjax.compaction._network import Network

_STATIC = (bool, int, float, complex, str, bytes, type(None))


class Call:
    """The arguments of a call.

    Python numbers, words and functions among them are part of the program, as they are
    where a function is written without `jit`.

    Attributes:
        arrays: The leaves that are arrays or shapes.
        paths: The paths of the parameters.
        shapes: Their shapes.
    """

    def __init__(
        self,
        params: Any,
        inputs: Sequence[Any],
        named: dict[str, Any],
        paths: Sequence[str] | None = None,
        small: Sequence[tuple[int, ...]] | None = None,
        whole: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        leaves, self._treedef = jax.tree.flatten((params, tuple(inputs), named))
        self._dynamic = [checks.shaped(leaf) for leaf in leaves]
        self._static = [
            None if d else x for d, x in zip(self._dynamic, leaves, strict=True)
        ]
        self.arrays = [x for x, d in zip(leaves, self._dynamic, strict=True) if d]
        given = trees.named_leaves(params)
        self.paths = [path for path, _ in given] if paths is None else list(paths)
        if whole is None:
            whole = [_matching.shape_of(leaf) for _, leaf in given]
        self.shapes = [*whole]
        owners = self._owners(params, inputs, named, small or self.shapes)
        self.owners = [o for o, d in zip(owners, self._dynamic, strict=True) if d]

    def _owners(
        self, params: Any, inputs: Any, named: Any, small: Sequence[tuple[int, ...]]
    ) -> list[int | None]:
        own = _owned(params, self.paths, small)
        rest = [
            o
            for tree in (*inputs, *named.values())
            for o in _owned(tree, self.paths, small)
        ]
        return [*own, *rest]

    @property
    def key(self) -> Any:
        """What a trace depends on."""
        kinds = tuple((x.shape, str(x.dtype)) for x in self.arrays)
        return self._treedef, kinds, tuple(map(repr, self._static))

    def whole(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes of the leaves, as in the whole network."""
        return [
            jax.ShapeDtypeStruct(x.shape if o is None else self.shapes[o], x.dtype)
            for x, o in zip(self.arrays, self.owners, strict=True)
        ]

    def network(
        self,
        apply: Callable[..., Any],
        state_outputs: Any,
        *,
        fn: str,
        members: int | None = None,
    ) -> Network:
        """The function, traced: for each of so many members, if there are any."""

        def fun(*arrays: Any) -> Any:
            given = iter(arrays)
            leaves = [
                next(given) if d else x
                for d, x in zip(self._dynamic, self._static, strict=True)
            ]
            params, inputs, named = self._treedef.unflatten(leaves)
            return apply(params, *inputs, **named)

        def state(out: Any) -> list[bool]:
            try:
                spread = jax.tree.map(
                    lambda may, part: jax.tree.map(lambda _: bool(may), part),
                    state_outputs,
                    out,
                )
            except ValueError as error:
                raise ValueError(
                    f"`{fn}` needs `state_outputs` as booleans for the outputs, or for "
                    f"parts of them, got {state_outputs!r}: {error}"
                ) from None
            return jax.tree.leaves(spread)

        return _network.traced(
            fun,
            self.whole(),
            self.owners,
            self.paths,
            self.shapes,
            None if state_outputs is None else state,
            () if members is None else (members,),
        )


def _owned(
    tree: Any, paths: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> list[int | None]:
    """The parameters of a tree's leaves, without those that are `None`."""
    leaves, _ = _matching.named(tree)
    found = []
    owners = _matching.owners(leaves, paths, shapes)
    for (_, leaf), owner in zip(leaves, owners, strict=True):
        n = len(jax.tree.leaves(leaf))
        exact = leaf is not None and owner is not None and n == 1
        fits = exact and _matching.shape_of(leaf) == tuple(shapes[owner])
        found += [owner if fits else None] * n
    return found


__all__ = ["Call", "np"]
