"""Members as smaller dense networks, without the features that their masks remove."""

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
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Path

_FN = "maskjax.recipes.masksembles"


@stored("maskjax.recipes.masksembles.Thin")
@dataclasses.dataclass(frozen=True)
class Thin:
    """Members as thinner networks; a pytree.

    Attributes:
        params: Like the network's, but each leaf is [N, ...] and has only what is kept.
        inputs: [N, m], the input features that each member reads; `None`: all of them.
        features: The number of input features, static; `None` if `inputs` is `None`.
    """

    params: Params
    inputs: Array | None
    features: int | None = dataclasses.field(metadata={"static": True})


def thin(params: Params, stack: Mask, *, links: Mapping[Path, Sequence[Path]]) -> Thin:
    """Members as dense networks without what their masks remove; same outputs.

    Args:
        params: Tree of arrays: a network, or its last layers.
        stack: Masks on the input rows of kernels (..., C, out), as Flax lays them out:
            [N, 1, ..., C, 1], equally many ones for each member. Not traced.
        links: For each kernel with masks, the paths of the leaves that produce its
            input features, such as a kernel and a bias: their last axis is thinned too.
            One kernel may be missing: its features are the input, and `predict` picks
            them for each member, so that members share all earlier layers.

    Returns:
        The members. `jax.tree.map(lambda leaf: leaf[i], thin.params)` is one of them.

    Raises:
        TypeError: If the stack is traced, or has leaves that are not boolean.
        ValueError: If a mask is not on input rows, members keep different numbers of
            rows, a path is unknown, or its leaf has another number of features.

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
    with jax.ensure_compile_time_eval():  # under `jit` known masks stay known
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
    """The output of each thin member: 4.

    Args:
        apply: `(params, x, *rest) -> output`: the network, or the last layers that were
            thinned; then `x` holds the features before them.
        thin: The members, from `thin`.
        x: [..., features]; each member gets the features that it reads.
        *rest: Passed on to `apply`.
        batch_size: How many members to run at a time; `None` runs all at once. On a CPU
            1 is fastest for large kernels.

    Returns:
        The outputs with a leading axis, [N, ...].

    Raises:
        ValueError: If `batch_size` is below 1, or `x` has another number of features
            than the network that was thinned.

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
    if np.shape(x)[-1:] != (thin.features,):  # clipped indices would hide it
        raise ValueError(
            f"`{_FN}.predict` needs `x` [..., {thin.features}], the features of which "
            f"members pick theirs, got {np.shape(x)}."
        )
    if batch_size is None:
        # Flat indices: for a matrix of them XLA gathers transposed, slow on a CPU.
        picked = jnp.take(x, thin.inputs.ravel(), axis=-1, mode="clip")
        apart = picked.reshape(*picked.shape[:-1], *thin.inputs.shape)
        members = thin.params, jnp.moveaxis(apart, -2, 0)
        return stacking.map(lambda m, *rest: apply(*m, *rest), members, *rest)

    def one(member: tuple, x: Array, *rest: Any) -> Any:
        picked = jnp.take(x, member[1], axis=-1, mode="clip")
        # A barrier, because fused with what follows the gather is transposed too.
        return apply(member[0], lax.optimization_barrier(picked), *rest)

    members = thin.params, thin.inputs
    return stacking.map(one, members, x, *rest, batch_size=batch_size)


def _masks(params: Params, stack: Mask, *, fn: str) -> list[tuple[Path, np.ndarray]]:
    """The masks [N, C], with the paths of their kernels; raises unless on rows."""
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
    """The mask on one place's features, if rows belong to several places."""
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
