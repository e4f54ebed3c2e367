"""Members of a stack of masks as networks of their own, without what is masked."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from maskjax import packing, stacking
from maskjax._core import checks, trees
from maskjax._core.trees import Array, Mask, Params, Path

_FN = "maskjax.recipes.masksembles"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Thin:
    """Members as thinner networks; a pytree.

    Attributes:
        params: Like the whole network's, each leaf [N, ...] and only what is kept.
        inputs: [N, m], the features of the input that members read; `None`: all.
        features: How many features the input has, known while tracing; `None` where
            `inputs` is.
    """

    params: Params
    inputs: Array | None
    features: int | None = dataclasses.field(metadata={"static": True})


def thin(params: Params, stack: Mask, *, links: Mapping[Path, Sequence[Path]]) -> Thin:
    """Members as dense networks that lack what their masks remove; same outputs.

    Args:
        params: Tree of arrays, of a network or of its latter part.
        stack: Masks on the input rows of kernels, [N, 1, ..., C, 1], as many ones in
            each member's. Not traced, for the shapes of the result depend on it.
        links: For each kernel with masks the leaves that yield the features it meets, a
            kernel and a bias, say: their last axis is thinned too. One kernel may be
            missing: its features are the input, and `predict` picks them. So members
            share whatever comes before, computed once.

    Returns:
        The members. `jax.tree.map(lambda leaf: leaf[i], thin.params)` is one of them.

    Raises:
        TypeError: If the stack is traced, or has leaves that are not boolean.
        ValueError: If a mask is not on input rows, members keep different numbers, a
            path is unknown, or its leaf has not as many features.

    Example:
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 1))}
        >>> kept = jnp.array([[True, True, False, False], [False, True, True, False]])
        >>> stack = {"a": None, "b": kept[..., None]}
        >>> members = masksembles.thin(params, stack, links={"b": ["a"]})
        >>> jax.tree.map(jnp.shape, members.params)
        {'a': (2, 3, 2), 'b': (2, 2, 1)}
        >>> body = {"b": params["b"]}, {"b": stack["b"]}
        >>> members = masksembles.thin(*body, links={})
        >>> members.inputs, members.features
        (Array([[0, 1],
               [1, 2]], dtype=int32), 4)
    """
    fn = f"{_FN}.thin"
    size = checks.members(stack, fn=fn)
    with jax.ensure_compile_time_eval():  # known masks stay so inside of a `jit`
        stack = packing.unpack(stack)
    masks = dict(_masks(params, stack, fn=fn))
    leaves = dict(trees.named_leaves(params))
    unknown = [path for path in links if path not in masks]
    unknown += [p for names in links.values() for p in names if p not in leaves]
    needs = f"`{fn}` needs `links` from kernels with masks to leaves"
    checks.raise_all((f"{path}: no such" for path in unknown), needs)
    read = {path: _kept(mask) for path, mask in masks.items()}
    made: dict[Path, np.ndarray] = {}
    for path, names in links.items():
        for name in names:
            kept = _kept(_features(masks[path], np.shape(leaves[name]), path, name, fn))
            if name in made and not np.array_equal(made[name], kept):
                raise ValueError(f"`{fn}` needs one mask on what `{name}` yields.")
            made[name] = kept
    free = [path for path in masks if path not in links]
    if len(free) > 1:
        raise checks.listing(free, f"`{fn}` needs `links` for all masks but one")

    def of_leaf(path: Path, leaf: Array) -> Array:
        every = jnp.broadcast_to(leaf, (size, *jnp.shape(leaf)))
        if path in read:
            every = jnp.moveaxis(jnp.take(leaf, read[path], axis=-2), -3, 0)
        if path in made:
            pick = lambda x, i: jnp.take(x, i, axis=-1)  # noqa: E731
            every = jax.vmap(pick)(every, jnp.asarray(made[path], jnp.int32))
        return every

    slim = [of_leaf(path, jnp.asarray(leaf)) for path, leaf in leaves.items()]
    inputs = jnp.asarray(read[free[0]], jnp.int32) if free else None
    features = masks[free[0]].shape[1] if free else None
    return Thin(jax.tree.structure(params).unflatten(slim), inputs, features)


def predict(
    apply: Callable[..., Any],
    thin: Thin,
    x: Any,
    *rest: Any,
    batch_size: int | None = None,
) -> Any:
    """What each of the thin members says.

    Args:
        apply: `(params, x, *rest) -> output`, the network, or the part of it that was
            thinned: then `x` are the features that come before.
        thin: The members, from `thin`.
        x: [..., features]; each member gets those that it reads.
        *rest: Passed on to `apply`.
        batch_size: As in `stacking.map`. On a CPU 1 is the fastest for large kernels.

    Returns:
        The outputs with a leading axis, [N, ...].

    Raises:
        ValueError: If `batch_size` is less than 1, or `x` has not as many features as
            the kernel had rows of which members read some.

    Example:
        >>> body = {"b": jnp.array([[1.0], [10.0], [100.0]])}
        >>> kept = jnp.array([[True, True, False], [False, True, True]])
        >>> members = masksembles.thin(body, {"b": kept[..., None]}, links={})
        >>> net = lambda params, x: x @ params["b"]
        >>> masksembles.predict(net, members, jnp.ones((1, 3))).ravel()
        Array([ 11., 110.], dtype=float32)
    """
    if thin.inputs is None:
        return stacking.map(apply, thin.params, x, *rest, batch_size=batch_size)
    if np.shape(x)[-1:] != (thin.features,):  # which clipped indices would hide
        raise ValueError(
            f"`{_FN}.predict` needs `x` [..., {thin.features}], the features of which "
            f"members pick theirs, got {np.shape(x)}."
        )
    if batch_size is None:
        # Flat: by a matrix of indices XLA gathers transposed, which is slow on a CPU.
        picked = jnp.take(x, thin.inputs.ravel(), axis=-1, mode="clip")
        picked = picked.reshape(*picked.shape[:-1], *thin.inputs.shape)
        picked = jnp.moveaxis(picked, -2, 0)
        each = lambda member, *rest: apply(member[0], member[1], *rest)  # noqa: E731
        return stacking.map(each, (thin.params, picked), *rest)

    def one(member: tuple, x: Array, *rest: Any) -> Any:
        picked = jnp.take(x, member[1], axis=-1, mode="clip")
        # What follows does not fuse with it, for the same reason.
        return apply(member[0], lax.optimization_barrier(picked), *rest)

    members = thin.params, thin.inputs
    return stacking.map(one, members, x, *rest, batch_size=batch_size)


def _masks(params: Params, stack: Mask, *, fn: str) -> list[tuple[Path, np.ndarray]]:
    """Masks on input rows, [N, C], with the paths of their kernels."""
    pairs = checks.matched(params, stack, fn=fn, names=("params", "stack"))
    pairs = [(path, np.shape(p), mask) for path, p, mask in pairs if mask is not None]
    checks.raise_all(
        (path for path, _, mask in pairs if isinstance(mask, Tracer)),
        f"`{fn}` needs `stack` not traced",
        TypeError,
    )

    def complaint(path: Path, shape: tuple[int, ...], mask: Array) -> str | None:
        if len(shape) < 2 or mask.shape[1:] != (*(1,) * (len(shape) - 2), shape[-2], 1):
            return f"{path}: {mask.shape}, kernel {shape}"
        counts = np.unique(np.asarray(mask).reshape(len(mask), -1).sum(1))
        return f"{path}: {counts.tolist()} ones" if len(counts) > 1 else None

    needs = f"`{fn}` needs masks on input rows, [N, 1, ..., C, 1], of as many ones each"
    checks.raise_all((complaint(*each) for each in pairs), needs)
    return [(path, np.asarray(m).reshape(len(m), -1)) for path, _, m in pairs]


def _features(
    mask: np.ndarray, shape: tuple[int, ...], path: Path, name: Path, fn: str
) -> np.ndarray:
    """The mask on features of one place, where the rows are those of several."""
    c = shape[-1] if shape else 0
    if c and not mask.shape[1] % c:
        places = mask.reshape(len(mask), -1, c)
        if (places == places[:, :1]).all():
            return places[:, 0]
    raise ValueError(
        f"`{fn}` needs what `{name}` yields to be what `{path}` meets, under one mask "
        f"at each place, got {c} features and {mask.shape[1]} rows."
    )


def _kept(mask: np.ndarray) -> np.ndarray:
    return np.nonzero(mask)[1].reshape(len(mask), -1)
