"""What does a step of edge-popup cost beside an ordinary one?

The mask is selected anew in each step. Steps are measured as users run them, in a
`lax.scan` over batches, so that scores move and selection starts near where it cut
last. Baselines select in the same step by sorting, by bisection without guesses, or
not at all (the mask stays). The limit is an ordinary step, that trains the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import _train
from benchmarks.speed import _case, _network
from maskjax import estimator, masking
from maskjax.recipes import edge_popup

WIDTHS, SMALL, DENSITY = (784, 300, 100, 10), (784, 30, 10), 0.5
# Widths, members, steps in a scan, and steps in a scan for what sorts.
FULL = [(WIDTHS, 1, 64, 4), (WIDTHS, 8, 16, 1), (WIDTHS, 64, 4, 1)]
QUICK = [(SMALL, 1, 2, 2), (SMALL, 2, 2, 2)]


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


def _ours(scores: Any, rest: Any, x: jax.Array, y: jax.Array) -> Any:
    """The loss, and what the next step needs: where this selection cut."""
    weights, cutoffs = rest
    soft, cutoffs = edge_popup.soft_mask(
        scores, density=DENSITY, guess=cutoffs, return_cutoff=True
    )
    loss = _network.loss(masking.apply(weights, soft), x, y)
    return loss, (weights, cutoffs)


def _selecting(pick: Callable[[jax.Array], jax.Array] | None) -> Callable[..., Any]:
    """The loss of edge-popup with another selection, or none."""

    def loss(scores: Any, rest: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        weights, mask = rest
        ranked = jax.tree.map(jnp.abs, scores)
        hard = mask if pick is None else jax.tree.map(pick, ranked)
        soft = estimator.straight_through(hard, ranked)
        return _network.loss(masking.apply(weights, soft), x, y)

    return loss


def _ordinary(params: Any, rest: None, x: jax.Array, y: jax.Array) -> jax.Array:
    return _network.loss(params, x, y)


def case(widths: tuple[int, ...], members: int, steps: int, sorts: int) -> _case.Case:
    """Networks of one size, one or several at once."""

    def mapped(fn: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        return fn if members == 1 else jax.vmap(fn, in_axes)

    @jax.jit
    @mapped
    def start(key: jax.Array) -> Any:
        params = _network.init(key, widths)
        scores = edge_popup.init(params, key=key)
        chosen = edge_popup.mask(scores, density=DENSITY, return_cutoff=True)
        return params, scores, *chosen

    @jax.jit
    @mapped
    def selections(scores: Any) -> Any:
        ranked = jax.tree.map(jnp.abs, scores)
        ours = edge_popup.mask(scores, density=DENSITY)
        return ours, *(jax.tree.map(f, ranked) for f in (by_sorting, by_bisection))

    key = jax.random.key(0)
    keys = key if members == 1 else jax.random.split(key, members)
    params, scores, mask, cutoffs = start(keys)
    data = _network.batches(jax.random.key(1), max(steps, sorts))

    def contestant(
        name: str, loss: Any, learned: Any, rest: Any = None, steps: int = steps
    ) -> Any:
        step = _train.descend(loss, _network.OPTIMIZER, has_aux=loss is _ours)
        each = mapped(step, (0, None, None))

        def several(member: Any, *data: jax.Array) -> Any:
            return lax.scan(lambda m, batch: each(m, *batch), member, data)

        begin = mapped(lambda p, rest: _train.begin(_network.OPTIMIZER, p, rest))
        some = jax.tree.map(lambda leaf: leaf[:steps], data)
        return _case.training(name, several, begin(learned, rest), *some, steps=steps)

    others = {"by sorting": by_sorting, "by bisection": by_bisection, "mask kept": None}

    def agree(results: Mapping[str, Any]) -> None:
        # The first step of each: later ones may differ, since of equal scores the
        # baselines keep all.
        first = {name: np.asarray(losses)[0] for name, (_, losses) in results.items()}
        for name in others:
            _case.close(first["edge_popup"], first[name], rtol=1e-4)
        member, losses = results["edge_popup"]
        assert np.isfinite(losses).all()
        assert _train.same_bits(member.rest[0], params)
        masks = map(jax.tree.leaves, selections(member.params))
        for ours, sorted_, bisected in zip(*masks, strict=True):
            counts = np.asarray(ours).reshape(members, -1).sum(1)
            np.testing.assert_array_equal(counts, round(DENSITY * ours.size / members))
            np.testing.assert_array_equal(sorted_, bisected)
            assert not np.any(np.asarray(ours) & ~np.asarray(sorted_))

    one = params if members == 1 else jax.tree.map(lambda p: p[0], params)
    return _case.of(
        f"{_case.named(widths)} members={members}",
        [
            contestant("edge_popup", _ours, scores, (params, cutoffs)),
            *(
                contestant(
                    name,
                    _selecting(pick),
                    scores,
                    (params, mask),
                    sorts if pick is by_sorting else steps,
                )
                for name, pick in others.items()
            ),
            contestant("ordinary step", _ordinary, params),
        ],
        agree,
        shape=_case.shapes(one),
        density=DENSITY,
        scope="leaf",
        batch=_network.BATCH,
        members=members,
        mode="scan",
    )
