"""A function of parameters, analysed: which of its axes can do with fewer positions."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from maskjax._core import placement
from maskjax.compaction import _facts, _follow, _matching, _tracing
from maskjax.compaction._facts import Fact
from maskjax.compaction._folding import Folding
from maskjax.compaction._follow import Pinned
from maskjax.compaction._ghosts import Ghosts
from maskjax.compaction._program import Program, Var
from maskjax.compaction._rules import Links
from maskjax.compaction._small import Unfit


@dataclasses.dataclass(eq=False)
class Network:
    """A traced function.

    Attributes:
        program: Its equations.
        owners: For each input the number of the parameter that it is, or belongs to.
        results: The same for each output; None where all of it is handed back.
        treedef: The structure of its output.
        types: The type of each input, whole: how it is sharded, and varies.
        members: How many members it is analysed for, each with positions of its own.
    """

    program: Program
    owners: list[int | None]
    results: list[int | None]
    treedef: Any
    types: list[Any]
    members: int | None = None

    def var(self, parameter: int) -> Var | None:
        """The input that is a parameter."""
        return self._first.get(parameter)

    @functools.cached_property
    def _first(self) -> dict[int, Var]:
        """For each parameter the first input that has all of its axes."""
        first: dict[int, Var] = {}
        for var, owner in zip(self.program.ins, self.owners, strict=True):
            if owner is not None and math.prod(var.shape) > math.prod(
                first[owner].shape if owner in first else (-1,)
            ):
                first[owner] = var
        return first

    def facts(
        self, known: Callable[[int, Var], Fact], *, masks: bool = False
    ) -> _facts.Facts:
        """What is known of all values, from what is known of parameters and masks."""
        ins = []
        for var, owner in zip(self.program.ins, self.owners, strict=True):
            if owner is None:
                ins.append((None,) * max(len(var.shape), 1))
                continue
            first = self._first[owner]
            fact = known(owner, first)
            own = fact if var is first else _facts.zeros_of(fact, first, var)
            ins.append(own)
        return _follow.facts_of(self.program, ins, masks=masks)

    def links(
        self,
        facts: _facts.Facts,
        pinned: Pinned,
        *,
        inputs: bool = False,
        folding: Folding | None = None,
        ghosts: bool = False,
    ) -> Links:
        """How axes go together; outputs are whole, and inputs if so asked."""
        equal = Ghosts(self.program, facts) if ghosts else None
        links = _follow.links_of(self.program, facts, pinned, folding, equal)
        for var, owner in zip(self.program.ins, self.owners, strict=True):
            if owner is not None:
                _same(links, self._first[owner], var)
            elif inputs:
                links.pin(var, range(len(var.shape)), "is an input")
        for var, owner in zip(self.program.outs, self.results, strict=True):
            if owner is not None and owner in self._first:
                _same(links, self._first[owner], var)
            else:
                why = "is an output (state may shrink: `state_outputs`)"
                links.pin(var, range(len(var.shape)), why)
        return links


def _same(links: Links, whole: Var, var: Var) -> None:
    """What belongs to a parameter keeps its positions, but on axes of 1."""
    for axis, (n, size) in enumerate(zip(var.shape, whole.shape, strict=True)):
        if n == size:
            links.same(whole, axis, var, axis)


def traced(
    fun: Callable[..., Any],
    args: Sequence[Any],
    owners: Sequence[int | None],
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    state: Callable[[Any], list[bool]] | None,
    scope: tuple[int, ...] = (),
) -> Network:
    """The network of a function of leaves.

    Args:
        fun: From a list of leaves to a tree.
        args: Types of all leaves that it is given, whole.
        owners: For each the number of its parameter, or None.
        paths: The paths of the parameters.
        shapes: Their whole shapes.
        state: Which leaves of its output may shrink, or None: those that belong to a
            parameter.
        scope: (K,) for K members, each with positions of its own.
    """
    program, out = _tracing.traced(fun, list(args), scope)
    results = []
    leaves, _ = _matching.named(out)
    found = _matching.owners(leaves, paths, shapes)
    for (_, leaf), owner in zip(leaves, found, strict=True):
        bits = isinstance(leaf, _matching.PackedMask)
        results += [None if bits else owner] * len(jax.tree.leaves(leaf))
    if state is not None:
        may = state(out)
        results = [r if m else None for r, m in zip(results, may, strict=True)]
    members = scope[0] if scope else None
    treedef = jax.tree.structure(out)
    return Network(program, list(owners), results, treedef, list(args), members)


def solved(
    network: Network,
    known: Callable[[int, Var], Fact],
    wanted: Callable[[Links], None],
    pinned: Pinned,
    write: Callable[[Links], Any],
    *,
    folding: Folding | None = None,
    ghosts: bool = False,
    masks: bool = False,
) -> tuple[Links, Any]:
    """Find what stays; what cannot be written small then is pinned, and again."""
    facts = network.facts(known, masks=masks)
    while True:
        links = network.links(facts, pinned, folding=folding, ghosts=ghosts)
        wanted(links)
        links.solve()
        try:
            return links, write(links)
        except Unfit as unfit:
            pinned.add(unfit)


def small_types(network: Network, links: Links) -> list[Any]:
    """The types of small inputs: those that are no parameters come whole."""
    types = []
    ins = zip(network.program.ins, network.owners, network.types, strict=True)
    for var, owner, whole in ins:
        shape = var.shape
        if owner is not None:
            shape = tuple(
                int(links.at(var, a).keep.sum(-1).max()) for a in range(len(shape))
            )
        types.append(placement.typed(shape, whole))
    return types


def written(
    network: Network,
    links: Links,
    pinned: Pinned,
    arrays: Sequence[Any],
    members: tuple[Any, ...] = (),
    *,
    trial: bool = False,
) -> list[Any]:
    """The outputs, of small parameters and whole inputs; of a stack, of one member."""
    picked = [owner is None for owner in network.owners]
    return _follow.written(
        network.program, links, pinned, arrays, picked, members, trial=trial
    )


def check(
    network: Network,
    links: Links,
    pinned: Pinned,
    members: tuple[Any, ...] | None = None,
) -> None:
    """Write the small program for shapes alone, to see that it can be.

    Derivatives too, which are written later: when the small function is derived.

    Without `members` that of any member, which has a number.

    Raises:
        Unfit: If it can't.
    """
    types = small_types(network, links)
    number = [jax.ShapeDtypeStruct((), np.int32)] * (network.members is not None)

    def small(number: Sequence[Any], *xs: Any) -> Any:
        known = tuple(number) if members is None else members
        return written(network, links, pinned, xs, known, trial=True)

    jax.eval_shape(small, number, *types)
