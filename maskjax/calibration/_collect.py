"""A loop over batches."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskjax._core import checks
from maskjax._core.trees import Array, Params, Predicate
from maskjax.calibration import _programs
from maskjax.calibration._norms import named
from maskjax.calibration._update import init, update
from maskjax.where import kernels


class _Program(NamedTuple):
    """What a compiled step depends on beside arrays."""

    apply: Callable[..., Any]
    skeleton: _programs.Skeleton
    weights: Callable[..., Any] | None


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
            other shapes than those before compiles anew.
        where: Which leaves are kernels.
        gram: As in `init`.
        limit: As in `init`.
        weights: From the inputs of a batch to the weights of its rows, as in `update`;
            `lambda ids, mask: mask`, say.
        progress: Is called with the number of batches that are done.

    Returns:
        As `update`.

    Raises:
        TypeError: As `init` and `update`.
        ValueError: As `init` and `update`, or if there are no batches, or the sums are
            not finite: the kernel is named, and the number of the batch, from 0 on.

    Example:
        >>> apply = lambda params, x: x @ params["w"]
        >>> batches = [jnp.array([[3.0, 1.0]]), jnp.array([[4.0, 0.0]])]
        >>> stats = calibration.collect(apply, {"w": jnp.ones((2, 5))}, batches)
        >>> calibration.norms(stats)["w"].ravel()
        Array([5., 1.], dtype=float32)
    """
    fn = "maskjax.calibration.collect"
    checks.flat(params, fn=fn)
    arrays, skeleton = _programs.split(params)
    step = _programs.compiled(
        _step, _Program(apply, skeleton, weights), donate_argnums=0
    )
    stats, before = None, None
    for number, batch in enumerate(batches):
        inputs = as_inputs(batch)
        try:
            if stats is None:
                how: Any = {"where": where, "gram": gram, "limit": limit}
                stats = init(apply, params, *inputs, **how)
            stats, finite = step(stats, arrays, inputs)
        except Exception as error:
            error.add_note(f"This was batch {number} of `{fn}`.")
            raise
        # One batch late, so that the next one need not wait.
        check_flags(before, number - 1, fn=fn)
        before = finite
        if progress is not None:
            progress(number + 1)
    if stats is None:
        raise ValueError(f"`{fn}` needs at least one batch, got none.")
    check_flags(before, number, fn=fn)
    return stats


def _step(
    program: _Program, stats: Params, arrays: list[Any], inputs: tuple[Any, ...]
) -> tuple[Params, dict[str, Array]]:
    """Statistics with a batch, and which of them are finite."""
    params = program.skeleton.filled(arrays)
    rows = None if program.weights is None else program.weights(*inputs)
    stats = update(program.apply, stats, params, *inputs, weights=rows)
    return stats, finite(stats)


def finite(stats: Params) -> dict[str, Array]:
    """By the path of a kernel, whether all its sums are finite."""
    return {
        path: jnp.all(jnp.isfinite(own.sums))
        for path, own in named(stats)
        if own is not None
    }


def check_flags(flags: dict[str, Array] | None, number: int, *, fn: str) -> None:
    """Raise if some statistics are no longer finite since a batch."""
    known = {
        path: good for path, good in (flags or {}).items() if checks.is_readable(good)
    }
    bad = [path for path, good in jax.device_get(known).items() if not good]
    checks.raise_all(
        (f"{path}: inf or nan since batch {number}" for path in bad),
        f"`{fn}` needs finite statistics",
    )


def as_inputs(batch: Any) -> tuple[Any, ...]:
    """The inputs of a batch."""
    return batch if type(batch) is tuple else (batch,)
