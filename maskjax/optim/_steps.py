"""What each step of `prune`, `set_` and `rigl` asks: when, how much, by which score."""

import inspect
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from maskjax._core import checks, placement, trees
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.select._leaves import BY_LAYER, BY_SCOPE, SCOPES, is_tree
from maskjax.select._units import check_scope
from maskjax.structure import Groups

Schedule = Callable[[Array], Array]
Score = Callable[..., Scores]
Transformation = optax.GradientTransformationExtraArgs


def when(due: Any, change: Callable[[], Any], otherwise: Any, *, fn: str) -> Any:
    """Masks that change if it is due; in a `vmap` only when due for some member."""
    if not isinstance(due, Tracer):
        # Outside of `jit` a conditional would be compiled anew in every call.
        return change() if due else otherwise

    def changed() -> Any:
        new = change()
        _check_same_on_devices(new, otherwise, fn=fn)
        return jax.tree.map(lambda a, b: jnp.where(due, a, b), new, otherwise)

    return lax.cond(_any_member(due), changed, lambda: otherwise)


def _check_same_on_devices(new: Mask, old: Mask, *, fn: str) -> None:
    """Raise if, inside `shard_map`, devices that have one mask would get several."""
    apart: set[str] = set()
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        apart |= placement.varying(a) - placement.varying(b)
    if apart:
        axes = ", ".join(map(repr, sorted(apart)))
        raise ValueError(
            f"`{fn}` needs gradients and scores that are the same along mesh axis "
            f"{axes}, as its mask is. Average them first: `jax.lax.pmean`."
        )


@jax.custom_batching.custom_vmap
def _any_member(flag: Array) -> Array:
    """The flag; in a `vmap`, whether it is True for any member.

    It keeps a `lax.cond` one conditional under `vmap`. Otherwise members that count the
    same steps would compute both branches every time.
    """
    return flag


@_any_member.def_vmap
def _(size: int, batched: list[bool], flags: Array) -> tuple[Array, bool]:
    del size, batched
    return _any_member(jnp.any(flags)), False


def check_how(scope: str, structure: Any, *, fn: str) -> None:
    """Raise if a scope is unknown, or a structure neither one nor a tree of them."""
    if isinstance(structure, Groups):
        check_scope(scope, fn=fn)
        return
    checks.one_of(scope, SCOPES, fn=fn, name="scope")
    for one in jax.tree.leaves(structure) if is_tree(structure) else [structure]:
        checks.structure(one, fn=fn)


def params_given(params: Params, *, fn: str) -> None:
    """Raise if `update` was called without parameters."""
    if params is None:
        raise ValueError(
            f"`{fn}` needs `params`: call `update(updates, state, params)`."
        )


def check_score(score: Any, *, fn: str) -> None:
    """Raise if a score is none, or takes parameters where it is given other things."""
    if not callable(score):
        raise TypeError(
            f"`{fn}` needs `score` as a function, got {checks.kind_of(score)}."
        )
    if "params" in [*inspect.signature(score).parameters][1:]:
        name = getattr(score, "__name__", "score")
        raise TypeError(
            f"`{fn}` calls its `score` with parameters first, and `{name}` needs a "
            f"loss and data before. Give it them: `lambda params: {name}(loss, params, "
            "*data)`, with `where=` if you pass it here."
        )


def bound(
    score: Score, offered: dict[str, Any], *, fn: str
) -> Callable[[Params], Scores]:
    """The score as a function of parameters, given the offered arguments it names."""
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
            "to `update`, or, for `gradients`, wrap the optimizer in "
            "`optim.with_gradients`."
        )
    return lambda params: score(params, **offered)


def is_function(value: Any) -> TypeGuard[Callable[..., Any]]:
    """Whether to call it. Trees are not called, though Equinox's modules could be."""
    return callable(value) and trees.is_single(value)


def at_step(value: Density | Scores | Schedule, count: Array) -> Any:
    """The fraction, or the tree of them, at a step."""
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


def check_fractions(
    value: Density | Scores | Schedule,
    scope: str,
    *,
    fn: str,
    name: str,
    falling: bool = False,
) -> float | None:
    """Raise unless fractions are in [0, 1]; return the highest, `None` if unknown.

    A schedule is evaluated at step 0 and at every power of two. It must not rise
    between them if it has to be `falling`. In scope "layer" and
    "output" a leaf of a tree may hold a number for each layer.
    """
    apart = scope in ("layer", "output")
    if not is_function(value):
        leaves = jax.tree.leaves(value)
        if trees.is_single(value) or not leaves:
            hint = BY_LAYER if apart else checks.BY_VMAP
            checks.unit_interval(value, fn=fn, name=name, hint=hint)
        for path, one in trees.named_leaves(value):
            label = f"{name}[{path}]" if path else name
            several = {"several": apart, "hint": BY_SCOPE}
            checks.unit_interval(one, fn=fn, name=label, **several)
        if any(isinstance(one, Tracer) for one in leaves):
            return None
        return max(float(np.max(one, initial=0.0)) for one in leaves)
    found, before = [], None
    with jax.ensure_compile_time_eval():
        for count in (0, *(2**i for i in range(31))):
            given = value(jnp.int32(count))
            at = jax.tree.leaves(given)
            by_layer = apart and not trees.is_single(given)
            wrong = any(np.ndim(one) and not by_layer for one in at)
            if not at or wrong or not all(map(checks.is_real, at)):
                got = ", ".join(map(checks.kind_of, at)) or "nothing"
                raise ValueError(
                    f"`{fn}` needs `{name}` to give numbers, or trees of them, got "
                    f"{got} at step {count}."
                )
            if any(isinstance(one, Tracer) for one in at):
                return None
            found += [float(number) for one in at for number in np.ravel(one)]
            outside = [one for one in found if not -1e-6 <= one <= 1 + 1e-6]
            if outside:
                raise ValueError(
                    f"`{fn}` needs `{name}` in [0, 1] at every step, got "
                    f"{outside[0]:.6g} at step {count}."
                )
            now = [np.asarray(one, np.float64) for one in at]
            if falling and before is not None:
                _check_falls(before, now, count, fn=fn, name=name)
            before = now
    return max(found)


def _check_falls(
    before: list[Any], now: list[Any], count: int, *, fn: str, name: str
) -> None:
    """Raise if a schedule rises up to a step."""
    for was, one in zip(before, now, strict=False):
        if np.shape(was) == np.shape(one) and np.any(one > was + 1e-6):
            at = np.argmax(one - was)
            low, high = np.ravel(was)[at], np.ravel(one)[at]
            raise ValueError(
                f"`{fn}` needs `{name}` that does not rise, got {low:.6g} before step "
                f"{count}, and {high:.6g} there. It is the fraction that is kept: for "
                "a schedule of the sparsity, the fraction that is removed, pass "
                "`lambda step: 1 - sparsity(step)`."
            )
