"""The groups of m inputs of every kernel, and the patterns that each may have."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import blame, checks, trees
from maskjax._core.trees import Array, Params, Path, Predicate, Scores
from maskjax.select._leaves import Leaves
from maskjax.select._plan import Plan
from maskjax.structure import NofM

FN = "maskjax.recipes.maskllm."


class Kernel(NamedTuple):
    """A kernel that has logits, where it is in the tree, and how it is laid out."""

    place: int
    path: Path
    w: Array
    plan: Plan


def kernels(chosen: Params, structure: Any, where: Predicate, *, fn: str) -> list:
    """The kernels of a tree with `None` for leaves that are left alone.

    Raises:
        TypeError: If the structure is not N:M.
        ValueError: If it has too many patterns, or a leaf does not fit it.
    """
    if not isinstance(structure, NofM):
        raise TypeError(
            f"`{fn}` needs `structure` as `structure.NofM(n, m)`, got {structure!r}."
        )
    with blame.instead_of("maskjax.structure.NofM.patterns", fn):
        structure.patterns()
    leaves = Leaves(chosen, "leaf", structure, where, fn=fn)
    found = zip(leaves.scored, leaves.paths(), leaves.plans, strict=True)
    return [Kernel(i, path, leaves.leaves[i], plan) for i, path, plan in found]


def with_logits(
    logits: Scores, params: Params, structure: Any, where: Predicate, *, fn: str
) -> list[tuple[Kernel, Array]]:
    """The kernels that have logits, with these.

    Raises:
        TypeError: If logits or kernels are not floating.
        ValueError: If they do not fit each other, or logits are not finite, as far as
            they are known.
    """
    checks.floating_scores(logits, fn=fn, name="logits")
    names, stop = ("logits", "params"), trees.is_mask_leaf
    pairs = checks.rows(logits, params, fn=fn, names=names, is_leaf=stop)

    def wrong(own: Any, w: Any) -> str | None:
        return None if own is None or checks.is_floating(w) else checks.kind_of(w)

    needs = f"`{fn}` needs every leaf of `params` with logits to be floating"
    checks.every(wrong, pairs, logits, needs, TypeError, stop)
    treedef = jax.tree.structure(logits, is_leaf=stop)
    chosen = treedef.unflatten([None if own is None else w for own, w in pairs])
    found = kernels(chosen, structure, where, fn=fn)
    own = [pairs[kernel.place][0] for kernel in found]
    checks.raise_all(
        (
            f"{kernel.path}: {x.shape}, needs {shape_of(kernel)}"
            for kernel, x in zip(found, own, strict=True)
            if x.shape != shape_of(kernel)
        ),
        f"`{fn}` needs `logits` of these parameters, from `init` with the same "
        "structure and `where`",
    )
    named = {kernel.path: x for kernel, x in zip(found, own, strict=True)}
    checks.finite(named, f"`{fn}` needs finite `logits`", "logits")
    return list(zip(found, own, strict=True))


def shape_of(kernel: Kernel) -> tuple[int, ...]:
    """The shape of a kernel's logits: a number for each pattern of each group."""
    one = jax.ShapeDtypeStruct(kernel.w.shape, jnp.float32)
    groups = jax.eval_shape(lambda w: cut(w, kernel.plan), one).shape[:-1]
    return (*groups, len(patterns(kernel.plan, bool)))


def cut(x: Array, plan: Plan) -> Array:
    """An array of a kernel's shape as [..., groups, m]."""
    return plan.structure.group(plan.laid(x))  # type: ignore[attr-defined]


def joined(x: Array, plan: Plan) -> Array:
    """The inverse of `cut`."""
    return plan.back(plan.structure.ungroup(x))  # type: ignore[attr-defined]


def patterns(plan: Plan, dtype: Any) -> np.ndarray:
    """The patterns as numbers, [P, m]."""
    return plan.structure.patterns().astype(dtype)  # type: ignore[attr-defined]


def product(x: Array, matrix: np.ndarray) -> Array:
    """[..., A] times [A, B], exact where the entries are whole numbers."""
    return jnp.tensordot(x, jnp.asarray(matrix), axes=1, precision="highest")
