"""A call of a function of parameters, taken apart: leaves, and what they belong to."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from maskjax._core import checks, placement, trees
from maskjax._core.packed import PackedMask
from maskjax.compaction import _matching, _network
from maskjax.compaction._network import Network


class Call:
    """The arguments of a call.

    Python numbers, words and functions among them are part of the program, as they are
    where a function is written without `jit`.

    Attributes:
        arrays: The leaves that are arrays or shapes.
        paths: The paths of the parameters.
        shapes: Their shapes.
        owners: For each array the number of the parameter that it belongs to, or None.
        packed: The parameters that have a packed mask among the arguments.
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
        given = trees.named_leaves(params)
        self.paths = [path for path, _ in given] if paths is None else list(paths)
        if whole is None:
            whole = [_matching.shape_of(leaf) for _, leaf in given]
        self.shapes = [*whole]
        self._small = self.shapes if small is None else small
        _, self._treedef = _matching.named((params, tuple(inputs), named))
        self._slots: list[_Static | _Bits | None] = []  # None: an array
        self.arrays: list[Any] = []
        self.owners: list[int | None] = []
        self.packed: set[int] = set()
        for part in (params, *inputs, *(named[name] for name in sorted(named))):
            leaves, _ = _matching.named(part)
            owners = _matching.owners(leaves, self.paths, self._small)
            for (_, leaf), owner in zip(leaves, owners, strict=True):
                self._add(leaf, owner)

    def _add(self, leaf: Any, owner: int | None) -> None:
        slot = None
        if isinstance(leaf, PackedMask):
            if owner is None or leaf.lead:
                slot, leaf, owner = _Bits(leaf.shape), leaf.bits, None
            else:  # words of bits can't leave: the function gets booleans
                self.packed.add(owner)
                leaf = _matching.unpacked(leaf)
        if not checks.shaped(leaf):
            self._slots.append(_Static(leaf))
            return
        self._slots.append(slot)
        self.arrays.append(leaf)
        self.owners.append(owner)

    @property
    def key(self) -> Any:
        """What a trace depends on."""
        kinds = tuple(placement.typed(x.shape, x) for x in self.arrays)
        mesh = jax.sharding.get_abstract_mesh()
        return self._treedef, kinds, tuple(map(repr, self._slots)), mesh

    def whole(self) -> list[Any]:
        """The types of the leaves, as in the whole network."""

        def grown(x: Any, owner: int | None) -> tuple[int, ...]:
            if owner is None:
                return x.shape
            rows = zip(x.shape, self._small[owner], self.shapes[owner], strict=True)
            return tuple(to if n == few else n for n, few, to in rows)

        return [
            placement.typed(grown(x, o), x)
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
        if not self.paths:
            raise ValueError(
                f"`{fn}` needs `params` with at least one array, got none."
            )

        def fun(*arrays: Any) -> Any:
            given = iter(arrays)
            leaves = [
                next(given) if slot is None else slot.leaf(given)
                for slot in self._slots
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


@dataclasses.dataclass
class _Static:
    """A leaf that is part of the program."""

    value: Any

    def leaf(self, _: Iterator[Any]) -> Any:
        return self.value


@dataclasses.dataclass
class _Bits:
    """A packed mask that belongs to no parameter: its bits are an array like others."""

    shape: tuple[int, ...]

    def leaf(self, arrays: Iterator[Any]) -> Any:
        return PackedMask(next(arrays), self.shape)


__all__ = ["Call"]
