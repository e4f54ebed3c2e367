"""A loop over batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import blame, checks
from maskjax._core.trees import Array, Params, Predicate
from maskjax.calibration import _given, _programs, _sound
from maskjax.calibration._update import init, update
from maskjax.where import kernels


class _Program(NamedTuple):
    """What a compiled step depends on beside arrays."""

    apply: Callable[..., Any]
    skeleton: _programs.Skeleton
    weights: Callable[..., Any] | None


class Seen(NamedTuple):
    """Of a batch: by kernel, whether all sums are finite with it; `_given.extreme`."""

    finite: dict[str, Array]
    weight: Array


def collect(
    apply: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    *,
    where: Predicate = kernels,
    gram: bool = True,
    limit: int | None = None,
    weights: Callable[..., Any] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Params:
    """Statistics of all batches of an iterable: `init`, then a compiled `update` each.

    Args:
        apply: `(params, *inputs) -> output`.
        params: Tree of arrays.
        batches: Each of them a tuple of inputs, or what is the only input. One that has
            other shapes than those before compiles anew. An array is one batch for each
            index of its first axis.
        where: Which leaves are kernels.
        gram: As in `init`.
        limit: As in `init`.
        weights: From the inputs of a batch to the weights of its rows, as in `update`;
            `lambda ids, mask: mask`, say. If it returns `None`, each row counts once.
        progress: Is called with the number of batches that are done.

    Returns:
        As `update`.

    Raises:
        TypeError: As `init` and `update`, or if a function can't be called, or
            `batches` are a dict, a named tuple, or nothing to iterate over.
        ValueError: As `init` and `update`, or if there are no batches, weights of rows
            are negative or not finite, sums are not finite, or all of them are 0. The
            number of the batch is told, from 0 on, and the kernel. What is traced is
            not looked at: then sums with such weights are nan.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> batches = [jnp.array([[3.0, 1.0]]), jnp.array([[4.0, 0.0]])]
        >>> stats = calibration.collect(apply, {"w": jnp.ones((2, 5))}, batches)
        >>> calibration.norms(stats)["w"].ravel()
        Array([5., 1.], dtype=float32)
    """
    fn = "maskjax.calibration.collect"
    checks.flat(params, fn=fn)
    _given.functions(apply, weights, progress, fn=fn)
    hint = "Write `[batch]` for one batch."
    how_many: Any = {"of": "an iterable of batches", "hint": hint, "arrays": True}
    _given.several(batches, fn=fn, name="batches", **how_many)
    arrays, skeleton = _programs.split(params)
    step = _programs.compiled(
        _step, _Program(apply, skeleton, weights), donate_argnums=0
    )
    stats, before = None, None
    for number, batch in enumerate(batches):
        inputs = as_inputs(batch)
        try:
            with instead_of_parts(fn):
                if stats is None:
                    how: Any = {"where": where, "gram": gram, "limit": limit}
                    stats = init(apply, params, *inputs, **how)
                stats, seen = step(stats, arrays, inputs)
        except Exception as error:
            error.add_note(f"This was batch {number} of `{fn}`.")
            raise
        # One batch late, so that the next one need not wait.
        _check(before, number - 1, fn=fn)
        before = seen
        if progress is not None:
            progress(number + 1)
    if stats is None:
        raise ValueError(f"`{fn}` needs at least one batch, got none.")
    _check(before, number, fn=fn)
    _sound.refuse(stats, fn=fn)
    return stats


def _step(
    program: _Program, stats: Params, arrays: list[Any], inputs: tuple[Any, ...]
) -> tuple[Params, Seen]:
    """Statistics with a batch, and what is seen of it."""
    params = program.skeleton.filled(arrays)
    return added(program.apply, stats, params, inputs, program.weights)


def added(
    apply: Callable[..., Any],
    stats: Params,
    params: Params,
    inputs: tuple[Any, ...],
    weights: Callable[..., Any] | None,
) -> tuple[Params, Seen]:
    """Statistics with a batch, and what is seen of it."""
    rows = None if weights is None else weights(*inputs)
    stats = update(apply, stats, params, *inputs, weights=rows)
    finite = {
        path: jnp.all(jnp.isfinite(own.sums))
        for path, own in _sound.kernels(stats, fn="maskjax.calibration.update").items()
    }
    return stats, Seen(finite, _given.extreme(rows))


def _check(seen: Seen | None, number: int, *, fn: str) -> None:
    """Raise if weights of a batch can't be, or sums are no longer finite with it."""
    known = [x for x in jax.tree.leaves(seen) if checks.is_readable(x)]
    if seen is None or len(known) < len(jax.tree.leaves(seen)):
        return
    finite, weight = jax.device_get(seen)
    if _given.wrong(np.asarray(weight)):
        raise ValueError(
            f"`{fn}` needs {_given.WEIGHTS}, got {weight} in batch {number}."
        )
    checks.raise_all(
        (
            f"{path}: inf or nan since batch {number}"
            for path in finite
            if not finite[path]
        ),
        f"`{fn}` needs finite statistics",
    )


@contextlib.contextmanager
def instead_of_parts(fn: str) -> Iterator[None]:
    """Let errors of `init` and `update` name the loop that called them."""
    with (
        blame.instead_of("maskjax.calibration.init", fn),
        blame.instead_of("maskjax.calibration.update", fn),
    ):
        yield


def as_inputs(batch: Any) -> tuple[Any, ...]:
    """The inputs of a batch."""
    return batch if type(batch) is tuple else (batch,)
