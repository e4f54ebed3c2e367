"""What does a step of edge-popup cost beside an ordinary one?

The mask is selected anew in each step. Steps are measured as users run them, in a
`lax.scan` over batches, so that scores move and selection starts near where it cut
last. Baselines select in the same step by sorting, by bisection without guesses, or
not at all (the mask stays). The limit is an ordinary step, that trains the weights.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._timing import Contestant, Role, compiled
from benchmarks.speed import _network
from benchmarks.speed._case import Case
from maskjax import estimator, masking
from maskjax.recipes import edge_popup

# Widths, members, steps in a scan, and steps in a scan for what sorts.
FULL = [
    ((784, 300, 100, 10), 1, 64, 4),
    ((784, 300, 100, 10), 8, 16, 1),
    ((784, 300, 100, 10), 64, 4, 1),
]
QUICK = [((784, 30, 10), 1, 2, 2), ((784, 30, 10), 2, 2, 2)]
DENSITY = 0.5

Pick = Callable[[jax.Array], jax.Array]


def cases(*, quick: bool) -> Iterator[Case]:
    """Networks of one size, more and more of them at once."""
    for case in QUICK if quick else FULL:
        yield _case(*case)


def by_sorting(scores: jax.Array) -> jax.Array:
    """Everything that reaches the k-th of the sorted scores."""
    k = round(DENSITY * scores.size)
    return scores >= jnp.sort(scores.ravel())[scores.size - k]


def by_bisection(scores: jax.Array) -> jax.Array:
    """Everything that reaches the k-th score, whose bits are found one by one."""
    k = round(DENSITY * scores.size)
    keys = lax.bitcast_convert_type(scores, jnp.int32)  # scores are not negative

    def settle(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (1 << (30 - i))
        return jnp.where(jnp.sum(keys >= candidate) >= k, candidate, found)

    return keys >= lax.fori_loop(0, 31, settle, jnp.int32(0))


def _step(state: Any, x: jax.Array, y: jax.Array, *, pick: Pick | None) -> Any:
    """A step of edge-popup with another selection, or none."""
    weights, mask, training = state

    def objective(scores: Any) -> jax.Array:
        ranked = jax.tree.map(jnp.abs, scores)
        hard = mask if pick is None else jax.tree.map(pick, ranked)
        soft = estimator.straight_through(hard, ranked)
        return _network.loss(masking.apply(weights, soft), x, y)

    training, value = _network.descend(objective, training)
    return (weights, mask, training), value


def _case(widths: tuple[int, ...], members: int, steps: int, sorts: int) -> Case:
    single = members == 1
    keys = jax.random.key(0)
    if not single:
        keys = jax.random.split(keys, members)

    def mapped(fn: Callable, in_axes: Any = 0) -> Callable:
        return fn if single else jax.vmap(fn, in_axes)

    @jax.jit
    @mapped
    def start(key: jax.Array) -> Any:
        params = _network.init(key, widths)
        state = edge_popup.init(params, _network.OPTIMIZER, key=key)
        return params, state, edge_popup.mask(state, density=DENSITY)

    @jax.jit
    @mapped
    def selections(state: edge_popup.EdgePopupState) -> Any:
        ranked = jax.tree.map(jnp.abs, state.scores)
        ours = edge_popup.mask(state, density=DENSITY)
        return ours, *(jax.tree.map(f, ranked) for f in (by_sorting, by_bisection))

    params, popup, mask = start(keys)
    by_hand = (popup.weights, mask, (popup.scores, popup.opt_state))
    xs, ys = _network.batches(jax.random.key(1), max(steps, sorts))

    def ours(state: Any, x: jax.Array, y: jax.Array) -> Any:
        return edge_popup.step(
            state, _network.loss, _network.OPTIMIZER, x, y, density=DENSITY
        )

    def plain(state: Any, x: jax.Array, y: jax.Array) -> Any:
        return _network.descend(_network.loss, state, x, y)

    def contestant(
        name: str, role: Role, step: Callable, state: Any, steps: int = steps
    ) -> Contestant:
        each = mapped(step, (0, None, None))

        def several(state: Any, x: jax.Array, y: jax.Array) -> Any:
            return lax.scan(lambda s, batch: each(s, *batch), state, (x, y))

        data = (xs[:steps], ys[:steps])
        call, compile_s = compiled(several, state, *data, donate=(0,))
        loop = _network.Training(call, state, *data)
        return Contestant(name, role, loop, compile_s, steps)

    def other(name: str, pick: Pick | None, steps: int = steps) -> Contestant:
        def step(state: Any, x: jax.Array, y: jax.Array) -> Any:
            return _step(state, x, y, pick=pick)

        return contestant(name, "baseline", step, by_hand, steps)

    def agree(results: Mapping[str, Any]) -> None:
        # The first step of each: later ones may differ, since of equal scores the
        # baselines keep all.
        first = {name: np.asarray(losses)[0] for name, (_, losses) in results.items()}
        for name in ("by sorting", "by bisection", "mask kept"):
            np.testing.assert_allclose(
                first["edge_popup"], first[name], rtol=1e-4, err_msg=name
            )
        state, losses = results["edge_popup"]
        assert np.isfinite(losses).all()
        for a, b in zip(
            jax.tree.leaves(state.weights), jax.tree.leaves(params), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        masks = map(jax.tree.leaves, selections(state))
        for a, b, c in zip(*masks, strict=True):
            size = a.size // members
            counts = np.asarray(a).reshape(members, -1).sum(1)
            np.testing.assert_array_equal(counts, round(DENSITY * size))
            np.testing.assert_array_equal(b, c)
            assert not np.any(np.asarray(a & ~b))

    return Case(
        f"{'-'.join(map(str, widths))} members={members}",
        {
            "dtype": "float32",
            "shape": _network.shapes(
                params if single else jax.tree.map(lambda p: p[0], params)
            ),
            "density": DENSITY,
            "structure": "Entries()",
            "scope": "leaf",
            "batch": _network.BATCH,
            "members": members,
            "mode": "scan",
        },
        [
            contestant("edge_popup", "ours", ours, popup),
            other("by sorting", by_sorting, sorts),
            other("by bisection", by_bisection),
            other("mask kept", None),
            contestant(
                "ordinary step", "limit", plain, mapped(_network.dense_init)(params)
            ),
        ],
        agree,
    )
