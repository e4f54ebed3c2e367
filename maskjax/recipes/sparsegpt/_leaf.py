"""What is done with one kernel, as one program for all kernels of a shape."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from maskjax._core import dtypes, placement, turns
from maskjax._core.trees import Array
from maskjax.calibration import Statistics
from maskjax.recipes.sparsegpt._factor import factored
from maskjax.recipes.sparsegpt._layout import Layout
from maskjax.recipes.sparsegpt._sweep import swept


@dataclasses.dataclass(frozen=True)
class How:
    """What a program of a kernel depends on, besides its arguments.

    Attributes:
        layout: The kernel's.
        block: How many inputs are decided on at once.
        pattern: (n, m): of every m inputs of an output, n are kept. Or `None`.
        each: Whether numbers of weights are of each output.
    """

    layout: Layout
    block: int
    pattern: tuple[int, int] | None = None
    each: bool = False

    @classmethod
    def of(
        cls,
        stats: Statistics,
        block: int,
        pattern: tuple[int, int] | None = None,
        *,
        each: bool = False,
    ) -> "How":
        """For a kernel, with blocks that are no longer than it, and of whole groups."""
        layout = Layout(stats.axes, tuple(stats.shape), stats.groups)
        size = pattern[1] if pattern else 1
        block = max(min(-(-block // size) * size, layout.d), 1)
        return cls(layout, block, pattern, each)


class Task(NamedTuple):
    """A kernel, the Gram matrices of its inputs, and its mask or what decides on it.

    Attributes:
        w: The kernel.
        sums: The Gram matrices.
        choice: How many weights each block keeps, [S, G, N]; or a mask of the kernel's
            shape; or `None` where a pattern decides.
        damping: A number.
    """

    w: Array
    sums: Array
    choice: Array | None
    damping: Any


class Done(NamedTuple):
    """The pruned kernel, its mask, and the damping that was used."""

    w: Array
    mask: Array
    damping: Array


def run(tasks: Sequence[Task], hows: Sequence[How]) -> list[Done]:
    """Prune many kernels. While tracing, those of one type are one program."""
    alike: dict[Any, list[int]] = {}
    tasks = [task._replace(damping=dtypes.operand(task.damping)) for task in tasks]
    for i, (task, how) in enumerate(zip(tasks, hows, strict=True)):
        traced = any(isinstance(x, Tracer) for x in task)
        types = tuple(None if x is None else jax.typeof(x) for x in task)
        alike.setdefault((how, types) if traced else i, []).append(i)
    found: dict[int, Done] = {}
    for ids in alike.values():
        apart = _apart(tasks[ids[0]], hows[ids[0]].layout)
        each = functools.partial(_pruned, how=hows[ids[0]], apart=apart)
        if len(ids) == 1:
            found[ids[0]] = each(tasks[ids[0]])
            continue
        stack = jax.tree.map(lambda *x: jnp.stack(x), *(tasks[i] for i in ids))
        every = lax.map(each, stack)
        for n, i in enumerate(ids):
            found[i] = jax.tree.map(lambda x, n=n: x[n], every)
    return [_placed(found[i], task.w) for i, task in enumerate(tasks)]


def _placed(done: Done, w: Array) -> Done:
    """The pruned kernel and its mask where the kernel is, whatever was compiled."""
    where = None if isinstance(w, Tracer) else placement.known(w)
    if where is None or isinstance(done.w, Tracer):
        return done
    new, mask = (jax.device_put(x, where) for x in (done.w, done.mask))
    return done._replace(w=new, mask=mask)


def _apart(task: Task, layout: Layout) -> int | None:
    """On how many devices the layers of a stack lie, each its own; `None`: not known.

    It is asked outside the kernel's own program, within which an Auto mesh tells
    nothing.
    """
    if not layout.stack or not placement.tells(task.w, task.sums):
        return None
    first = next((i for i, n in enumerate(layout.stack) if n > 1), 0)
    return max(
        placement.shards(task.w, layout.axes.stack[first]),
        placement.shards(task.sums, first),
    )


@functools.partial(jax.jit, static_argnames=("how", "apart"))
def _pruned(task: Task, *, how: How, apart: int | None) -> Done:
    layout, groups = how.layout, how.layout.groups
    w, sums, choice, damping = placement.vary_like(task, task)
    if not w.size:
        return _empty(w, layout)
    wide = dtypes.widest(w, sums)
    if choice is not None and choice.dtype == bool:
        choice = layout.laid(choice)

    def member(given: Any) -> Any:
        if groups > 1:
            return jax.vmap(group)(given)
        found = group(jax.tree.map(lambda x: x[0], given))
        return jax.tree.map(lambda x: x[None], found)

    def group(given: Any) -> Any:
        w, gram, choice = given
        factor = factored(gram, damping)
        static = {"block": how.block, "pattern": how.pattern, "each": how.each}
        return *swept(w.astype(wide), factor, choice, **static), factor.damping

    every = layout.laid(w), layout.gram(sums).astype(wide), choice
    if layout.stack:
        # Layers one after another, those of each device at a time.
        most = apart or placement.groups(*jax.tree.leaves(every))
        mask, new, used = turns.run(member, every, most, groups=apart)
    else:
        found = member(jax.tree.map(lambda x: x[0], every))
        mask, new, used = jax.tree.map(lambda x: x[None], found)
    new, mask = (layout.back(x, w) for x in (new.astype(w.dtype), mask))
    return Done(new, mask, used.reshape(layout.of_kernels))


def _empty(w: Array, layout: Layout) -> Done:
    """A kernel without weights."""
    nothing = jnp.zeros(layout.of_kernels, dtypes.at_least_float32(w.dtype))
    return Done(w, jnp.ones_like(w, dtype=bool), nothing)
