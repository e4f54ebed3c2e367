"""What transformations do with updates, parameters and a mask, and what they check.

>>> mask = {"w": jnp.array([[True, False]])}
>>> ones = {"w": jnp.array([[1.0, 1.0]])}
>>> from maskjax._opt_update import settled
>>> settled(ones, ones, mask, fn="here")
{'w': Array([[ 1., -1.]], dtype=float32)}
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from maskjax import packing
from maskjax._core import checks, trees
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.optim._state import MaskState, any_member, fitted
from maskjax.select._choice import Leaves, Scope
from maskjax.select._quota import quota
from maskjax.structure import NofM, Structure

Schedule = Callable[[Array], Array]
Score = Callable[..., Scores]
Transformation = optax.GradientTransformationExtraArgs


def when(due: Any, change: Callable[[], Any], otherwise: Any) -> Any:
    """A change when it is due; under `vmap` computed only when due for some member."""
    if not isinstance(due, Tracer):
        # Outside of `jit` a conditional would be compiled anew in every call.
        return change() if due else otherwise

    def changed() -> Any:
        return jax.tree.map(lambda a, b: jnp.where(due, a, b), change(), otherwise)

    return lax.cond(any_member(due), changed, lambda: otherwise)


def frozen(updates: Any, mask: Mask, *, fn: str) -> Any:
    """Updates that add -0.0 to what the mask removes."""

    def of_leaf(u: Array, m: Array) -> Array:
        return jnp.where(m, u, jnp.array(-0.0, u.dtype))

    return _masked(of_leaf, mask, updates, fn=fn)


def settled(updates: Any, params: Params, mask: Mask, *, fn: str) -> Any:
    """Updates that take removed parameters to exactly zero."""

    def of_leaf(u: Array, m: Array, p: Array) -> Array:
        # Updates narrower than a parameter could not cancel it.
        u = u.astype(jnp.promote_types(u.dtype, p.dtype))
        return jnp.where(m, u, -p.astype(u.dtype))

    names = ("updates", "params")
    checks.same_shapes(updates, params, fn=fn, names=names, is_leaf=None)
    return _masked(of_leaf, mask, updates, params, fn=fn)


def _masked(
    of_leaf: Callable[..., Array], mask: Mask, updates: Any, *rest: Any, fn: str
) -> Any:
    """Map over updates with a mask, and whatever goes with them."""
    names = ("updates", "mask")
    pairs = checks.mask_of(packing.unpack(mask), updates, fn=fn, names=names)
    treedef = jax.tree.structure(updates)
    others = [treedef.flatten_up_to(other) for other in rest]
    return treedef.unflatten(
        [
            u if m is None else of_leaf(u, m, *more)
            for (_, u, m), *more in zip(pairs, *others, strict=True)
        ]
    )


def holding(mask: Mask | Callable[[Params], Mask], *, fn: str) -> Any:
    """The `init` of a transformation with a mask that stays."""

    def init(params: Params) -> MaskState:
        given = fitted(params, mask(params) if is_function(mask) else mask)
        checks.boolean(given, fn=fn)
        checks.packed(given, fn=fn, stacked=False)
        names = ("params", "mask")
        checks.mask_of(packing.unpack(given), params, fn=fn, names=names)
        # A copy: the state may be donated, which must not take the user's mask along.
        return MaskState(jax.tree.map(jnp.copy, given))

    return init


def bound(
    score: Score, offered: dict[str, Any], *, fn: str
) -> Callable[[Params], Scores]:
    """The score, given those of the arguments offered that it names."""
    named = inspect.signature(score).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in named):
        names = {p.name for p in named}
        offered = {k: v for k, v in offered.items() if k in names}
    missing = [
        p.name
        for i, p in enumerate(named)
        if i and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        if p.default is p.empty and p.name not in offered
    ]
    if missing:
        raise ValueError(
            f"`{fn}` needs `{'`, `'.join(missing)}`, which its `score` names. Pass it "
            "to `update`, or, for `gradients`, wrap the optimizer in `optim.rewired`."
        )
    return lambda params: score(params, **offered)


def below(scores: Scores, mask: Mask) -> Scores:
    """The scores with those of a mask below every other, which nan would be."""

    def of_leaf(s: Array, m: Array) -> Array:
        others = jnp.where(jnp.isnan(s), jnp.finfo(s.dtype).min, s)
        return jnp.where(m, jnp.array(-jnp.inf, s.dtype), others)

    return trees.map_mask(of_leaf, scores, mask)


def params_given(params: Params, *, fn: str) -> None:
    if params is None:
        raise ValueError(
            f"`{fn}` needs `params`: call `update(updates, state, params)`."
        )


def check_fractions(
    value: Density | Scores | Schedule, *, fn: str, name: str
) -> float | None:
    """Fractions, or a schedule of them; the highest, if that is known."""
    if not is_function(value):
        leaves = jax.tree.leaves(value)
        for one in leaves or [value]:
            checks.unit_interval(one, fn=fn, name=name)
        if any(isinstance(one, jax.Array) for one in leaves):
            return None
        return max(leaves)
    found = []
    with jax.ensure_compile_time_eval():
        for count in (0, *(2**i for i in range(31))):
            at = jax.tree.leaves(value(jnp.int32(count)))
            if not at or any(jnp.shape(one) for one in at):
                got = ", ".join(map(checks.kind_of, at)) or "nothing"
                raise ValueError(
                    f"`{fn}` needs `{name}` to give numbers, or trees of them, got "
                    f"{got} at step {count}."
                )
            if any(isinstance(one, Tracer) for one in at):
                return None
            found += [float(one) for one in at]
            outside = [one for one in found if not -1e-6 <= one <= 1 + 1e-6]
            if outside:
                raise ValueError(
                    f"`{fn}` needs `{name}` in [0, 1] at every step, got "
                    f"{outside[0]:.6g} at step {count}."
                )
    return max(found)


def is_function(value: Any) -> TypeGuard[Callable[..., Any]]:
    """Whether it is to be called: not a tree that can be, as Equinox's modules can."""
    return callable(value) and trees.is_single(value)


def at_step(value: Density | Scores | Schedule, count: Array) -> Any:
    """The fraction, or the tree of them, of a step."""
    if not is_function(value):
        return value
    numpy = lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x  # noqa: E731
    return jax.tree.map(numpy, value(count))


def allotted(
    share: Density | Scores,
    allocation: Callable[..., Scores] | None,
    params: Params,
    where: Predicate,
) -> Density | Scores:
    """The share, or what an allocation makes of it for each leaf."""
    if allocation is None:
        return share
    return allocation(params, density=share, where=where)


def check_growth(
    params: Scores,
    shares: Density | Scores,
    peak: float | None,
    scope: Scope,
    structure: Structure,
    *,
    fn: str,
) -> None:
    """Without what was dropped there must be enough that is free."""
    if isinstance(structure, NofM):
        raise ValueError(
            f"`{fn}` needs `regrow` with {structure}, whose groups may have no other "
            "place to grow in."
        )
    leaves = Leaves(params, structure, scope, fn=fn)
    found = leaves.matched_shares(shares, fn=fn, name="density")

    def complaint(path: str, size: int, share: Density) -> str | None:
        if peak is None or isinstance(share, jax.Array):
            return None
        alive = quota(share, size)
        grows, free = quota(peak, alive), size - alive
        if grows <= free:
            return None
        return f"{path}: {grows} to grow, {free} of {size} free"

    checks.raise_all(
        map(complaint, leaves.names, leaves.sizes, found),
        f"`{fn}` without `regrow` needs as many free entries as are to grow",
    )
