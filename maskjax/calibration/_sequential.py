"""Layer by layer: each block is calibrated on what the pruned blocks before it give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax._core import checks, placement
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Predicate
from maskjax.calibration import _given, _programs
from maskjax.calibration._collect import Seen, added, as_inputs, instead_of_parts
from maskjax.calibration._update import init
from maskjax.where import kernels

Prune = Callable[[Params, Params], Any]
_FN = "maskjax.calibration.sequential"


@stored("maskjax.calibration.Sequential")
class Sequential(NamedTuple):
    """What came of pruning block by block.

    Attributes:
        params: The pruned parameters, as they came: a list of blocks, or stacked.
        mask: The masks, likewise.
        outputs: What the last block gives for each batch, as the batches came: a list,
            or stacked.
        others: What else `prune` returned, a tuple for each block, or stacked.
    """

    params: Any
    mask: Any
    outputs: Any
    others: Any


class _Program(NamedTuple):
    """What a compiled step depends on beside arrays."""

    apply: Callable[..., Any]
    prune: Prune
    skeleton: _programs.Skeleton
    where: Predicate
    gram: bool
    limit: int | None
    weights: Callable[..., Any] | None


class _Done(NamedTuple):
    """What a step gives: arrays of parameters, and what is seen of each batch."""

    arrays: list[Any]
    mask: Mask
    others: tuple[Any, ...]
    outputs: list[Any]
    seen: Seen


def sequential(
    apply: Callable[..., Any] | Sequence[Callable[..., Any]],
    params: Any,
    batches: Any,
    *,
    prune: Prune,
    scan: bool = False,
    where: Predicate = kernels,
    gram: bool = True,
    limit: int | None = None,
    weights: Callable[..., Any] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Sequential:
    """Blocks pruned one after another, each for what it meets once those before are.

    For each block: statistics over all batches, `prune`, then the outputs of the pruned
    block, which come into the next one. All of it is one compiled program, which serves
    every block of the same function and shapes: parameters are data. Statistics of one
    block at a time are kept.

    Args:
        apply: A block, `(params, x, *rest) -> x`, or a list with a function for each.
        params: A list with the parameters of each block; with `scan`, one tree whose
            leaves have a leading axis of blocks.
        batches: What comes into the first block: a list of batches, each of them a
            tuple `(x, *rest)` or x alone; or such a tuple whose arrays have a leading
            axis of batches. `rest` comes into every block: an attention mask, say.
        prune: `(params, stats) -> (params, mask)`, of one block. It is compiled. What
            else it returns, after these two, is kept as `others`.
        scan: Whether blocks are stacked. It is one `jax.lax.scan` over them.
        where: Which leaves of a block are kernels.
        gram: As in `init`.
        limit: As in `init`, for one block.
        weights: From the inputs of a batch, `(x, *rest)`, to the weights of its rows,
            as in `update`.
        progress: Is called with the number of blocks that are done and that of all.

    Returns:
        Pruned parameters, masks, and the outputs of the last block.

    Raises:
        TypeError: As `init` and `update`, or if a function can't be called, `params`
            are no list, `batches` an iterator, or what `prune` returns second no mask.
        ValueError: As `init` and `update`, or if there are no blocks or batches, there
            are not as many functions as blocks (with `scan`, one), `prune` does not
            return parameters like those that it got and a mask, with `scan` what comes
            out of a block is not shaped as what comes in, weights of rows are negative
            or not finite, or 0 for every row, or the sums are not finite: the block,
            the kernel and the batch are named. What is traced is not looked at: then
            sums with such weights are nan.

    Example:
        >>> def prune(params, stats):
        ...     scores = score.wanda(params, calibration.norms(stats))
        ...     mask = select.top_k(scores, density=0.5, scope="output")
        ...     return maskjax.apply(params, mask), mask
        >>> block = lambda params, x: jax.nn.relu(x @ params["w"])
        >>> layers = [{"w": jnp.array([[1.0, 2.0], [3.0, 1.0]])}] * 2
        >>> done = calibration.sequential(
        ...     block, layers, [jnp.array([[4.0, 1.0]])], prune=prune
        ... )
        >>> print(done.params[0]["w"], done.params[1]["w"], sep=chr(10))
        [[1. 2.]
         [0. 0.]]
        [[0. 2.]
         [3. 0.]]
    """
    for function in apply if isinstance(apply, list | tuple) else [apply]:
        _given.functions(function, weights, progress, fn=_FN)
    of = "(params, stats) -> (params, mask)"
    checks.function(prune, of, fn=_FN, name="prune")
    groups, order = _grouped(batches)
    options = (where, gram, limit, weights)
    if scan:
        done = _scanned(apply, params, groups, order, prune, options, progress)
    else:
        done = _unrolled(apply, params, groups, order, prune, options, progress)
    listed = isinstance(batches, list)
    return done._replace(outputs=_ungrouped(done.outputs, order, listed=listed))


def _unrolled(
    apply: Any,
    params: Any,
    groups: list[Any],
    order: list[list[int]],
    prune: Prune,
    options: tuple[Any, ...],
    progress: Callable[[int, int], Any] | None,
) -> Sequential:
    """One block after another."""
    hint = "Blocks that are stacked are taken with `scan=True`."
    _given.several(params, fn=_FN, name="params", of="a list of blocks", hint=hint)
    blocks = [*params]
    functions = [apply] * len(blocks) if callable(apply) else [*apply]
    if not blocks:
        raise ValueError(f"`{_FN}` needs `params` of at least one block, got none.")
    if len(functions) != len(blocks):
        raise ValueError(
            f"`{_FN}` needs a function for each block, got {len(functions)} functions "
            f"for {len(blocks)} blocks."
        )
    new, masks, others = [], [], []
    for i, (function, own) in enumerate(zip(functions, blocks, strict=True)):
        arrays, skeleton = _programs.split(own)
        program = _Program(function, prune, skeleton, *options)
        done = _programs.compiled(_step, program)(arrays, groups)
        _check(done.seen, order, i)
        new.append(skeleton.filled(done.arrays))
        masks.append(done.mask)
        others.append(done.others)
        groups = [
            (x, *group[1:]) for x, group in zip(done.outputs, groups, strict=True)
        ]
        if progress is not None:
            progress(i + 1, len(blocks))
    return Sequential(new, masks, [group[0] for group in groups], others)


def _scanned(
    apply: Any,
    params: Any,
    groups: list[Any],
    order: list[list[int]],
    prune: Prune,
    options: tuple[Any, ...],
    progress: Callable[[int, int], Any] | None,
) -> Sequential:
    """A loop over stacked blocks."""
    if not callable(apply):
        raise ValueError(
            f"`{_FN}` needs one function for all blocks with `scan=True`, got "
            f"{type(apply).__name__}."
        )
    arrays, skeleton = _programs.split(params)
    lengths = {leaf.shape[:1] for leaf in arrays}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        found = sorted({str(length) for length in lengths}) or ["no arrays"]
        raise ValueError(
            f"`{_FN}` needs `params` whose leaves have one leading axis of blocks with "
            f"`scan=True`, got {', '.join(found)}."
        )
    program = (_Program(apply, prune, skeleton, *options), progress)
    done = _programs.compiled(_scan, program)(arrays, groups)
    _check(done.seen, order, None)
    return Sequential(
        skeleton.filled(done.arrays), done.mask, done.outputs, done.others
    )


def _scan(program: tuple[Any, Any], arrays: list[Any], groups: list[Any]) -> _Done:
    own, progress = program
    count = arrays[0].shape[0]

    def step(xs: list[Any], sliced: tuple[Any, Array]) -> tuple[list[Any], _Done]:
        layer, i = sliced
        full = [(x, *group[1:]) for x, group in zip(xs, groups, strict=True)]
        done = _step(own, layer, full)
        _check_same(xs, done.outputs)
        if progress is not None:
            jax.debug.callback(lambda i: progress(int(i) + 1, count), i)
        return done.outputs, done._replace(outputs=[])

    first = placement.vary_like([group[0] for group in groups], arrays)
    out, done = lax.scan(step, first, (arrays, jnp.arange(count)))
    return done._replace(outputs=out)


def _step(program: _Program, arrays: list[Any], groups: list[Any]) -> _Done:
    """One block: statistics of all batches, pruned parameters, then what they give."""
    params = program.skeleton.filled(arrays)
    apply = program.apply
    first = jax.tree.map(lambda x: x[0], groups[0])
    how: Any = {"where": program.where, "gram": program.gram, "limit": program.limit}

    def add(stats: Params, inputs: tuple[Any, ...]) -> tuple[Params, Seen]:
        return added(apply, stats, params, inputs, program.weights)

    parts = []
    with instead_of_parts(_FN):
        # Sums vary with what blocks before give, and with what is in this one.
        stats = init(apply, params, *first, **how)
        stats = placement.vary_like(stats, (groups, arrays))
        for group in groups:
            stats, own = lax.scan(add, stats, group)
            parts.append(own)
    every = jax.tree.map(lambda *own: jnp.concatenate(own), *parts)
    new, mask, *others = _pruned(program.prune(params, stats), params)
    outputs = [lax.map(lambda inputs: apply(new, *inputs), group) for group in groups]
    kept = _programs.split(new)[0]
    return _Done(kept, mask, tuple(others), outputs, every)


# Batches.


def _grouped(batches: Any) -> tuple[list[Any], list[list[int]]]:
    """Batches of equal shapes stacked, and which of all batches these are."""
    if not isinstance(batches, list):
        if hasattr(batches, "__next__"):
            raise TypeError(
                f"`{_FN}` needs `batches` as a list, because every block reads them, "
                f"got {checks.kind_of(batches)}. Write `list(batches)`."
            )
        inputs = as_inputs(batches)
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
        if len(lengths) != 1 or lengths & {(), (0,)}:
            found = sorted({str(length) for length in lengths}) or ["no arrays"]
            raise ValueError(
                f"`{_FN}` needs `batches` as a list, or as arrays with one leading "
                f"axis of batches, got {', '.join(found)}."
            )
        return [inputs], [[*range(lengths.pop()[0])]]
    if not batches:
        raise ValueError(f"`{_FN}` needs at least one batch, got none.")
    alike: dict[Any, list[int]] = {}
    every = [as_inputs(batch) for batch in batches]
    for i, inputs in enumerate(every):
        leaves, treedef = jax.tree.flatten(inputs)
        kinds = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        alike.setdefault((treedef, kinds), []).append(i)
    order = [*alike.values()]
    stacked = [
        jax.tree.map(lambda *leaves: _stacked(leaves), *(every[i] for i in numbers))
        for numbers in order
    ]
    return stacked, order


def _stacked(leaves: Sequence[Any]) -> Any:
    """Arrays as one; those of NumPy stay there, where no program is compiled."""
    there = any(isinstance(leaf, jax.Array) for leaf in leaves)
    return (jnp if there else np).stack(leaves)


def _ungrouped(groups: list[Any], order: list[list[int]], *, listed: bool) -> Any:
    """Outputs of batches as the batches came."""
    if not listed:
        return groups[0]
    found = {
        number: jax.tree.map(lambda x, i=i: x[i], group)
        for group, numbers in zip(groups, order, strict=True)
        for i, number in enumerate(numbers)
    }
    return [found[number] for number in sorted(found)]


# Checks.


def _pruned(result: Any, params: Params) -> Sequence[Any]:
    """What `prune` returned, if it is parameters and a mask."""
    if not isinstance(result, tuple) or len(result) < 2:
        raise ValueError(
            f"`{_FN}` needs `prune` to return (params, mask), got "
            f"{type(result).__name__}."
        )
    names = ("params", "what `prune` returned first")
    found = checks.rows(params, result[0], fn=_FN, names=names)

    def differs(old: Any, new: Any) -> str | None:
        if not checks.shaped(old) or checks.kind_of(old) == checks.kind_of(new):
            return None
        return f"{checks.kind_of(old)} became {checks.kind_of(new)}"

    needs = f"`{_FN}` needs `prune` to return parameters of the shapes that it got"
    checks.every(differs, found, params, needs)
    if result[1] is not None:
        checks.masked(params, result[1], fn=_FN)
    return result


def _check_same(before: list[Any], after: list[Any]) -> None:
    """Raise unless what comes out of a block may come into the next."""
    kinds = [
        [(x.shape[1:], x.dtype) for x in jax.tree.leaves(each)]
        for each in (before, after)
    ]
    if kinds[0] != kinds[1]:
        told = [", ".join(f"{kind} {shape}" for shape, kind in each) for each in kinds]
        raise ValueError(
            f"`{_FN}` needs a block that gives what it takes with `scan=True`, got "
            f"{told[1]} for {told[0]}."
        )


def _check(seen: Seen, order: list[list[int]], block: int | None) -> None:
    """Raise if weights can't be, or sums whose values are known are not finite.

    Args:
        seen: Of each batch, or, if `block` is None, of each block and batch.
        order: Which of all batches these are.
        block: The number of the block.
    """
    if not all(map(checks.is_readable, jax.tree.leaves(seen))):
        return
    numbers = [number for group in order for number in group]
    finite, weights = jax.tree.map(
        lambda x: x.reshape(-1, len(numbers)), jax.device_get(seen)
    )
    for layer, own in enumerate(weights):
        where = f"in block {layer if block is None else block}"
        if _given.wrong(own).any():
            i = int(np.argmax(_given.wrong(own)))
            raise ValueError(
                f"`{_FN}` needs {_given.WEIGHTS}, got {own[i]} in batch {numbers[i]}, "
                f"{where}."
            )
        if not own.any():
            raise ValueError(
                f"`{_FN}` needs a row of weight above 0, got none {where}."
            )
    first: dict[str, tuple[int, int]] = {}
    for path, good in finite.items():
        bad = np.argwhere(~good)
        if len(bad):
            first[path] = (int(bad[0][0]), numbers[bad[0][1]])
    layer = min((layer for layer, _ in first.values()), default=0)
    lines = [
        f"{path}: inf or nan since batch {batch}, in block "
        f"{layer if block is None else block}"
        for path, (own, batch) in first.items()
        if own == layer
    ]
    checks.raise_all(lines, f"`{_FN}` needs finite statistics")
