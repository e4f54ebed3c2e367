"""What does a step of edge-popup cost beside an ordinary one?

The mask is selected anew in each step. Steps are measured as users run them, in a
`lax.scan` over batches, so that scores move and selection starts near where it cut
last. Baselines select in the same step by bisection without guesses, or not at all
(the mask stays). The limit is an ordinary step, that trains the weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import _train
from benchmarks.speed import _case, _network
from maskjax import estimator, masking
from maskjax.recipes import edge_popup

WIDTHS, SMALL, DENSITY = (784, 300, 100, 10), (784, 30, 10), 0.5
# Widths, members, steps in a scan.
FULL = [(WIDTHS, 1, 64), (WIDTHS, 8, 16), (WIDTHS, 64, 4)]
QUICK = [(SMALL, 1, 2), (SMALL, 2, 2)]


def by_bisection(scores: jax.Array) -> jax.Array:
    """Everything that reaches the k-th score, whose bits are found one by one."""
    k = round(DENSITY * scores.size)
    keys = lax.bitcast_convert_type(scores, jnp.int32)  # scores are not negative

    def settle(i, found):
        candidate = found | (1 << (30 - i))
        return jnp.where(jnp.sum(keys >= candidate) >= k, candidate, found)

    return keys >= lax.fori_loop(0, 31, settle, jnp.int32(0))


SELECTIONS = {"by bisection": by_bisection, "mask kept": None}


def _ours(scores, rest, x, y):
    """The loss, and what the next step needs: where this selection cut."""
    weights, cutoffs = rest
    soft, cutoffs = edge_popup.soft_mask(
        scores, density=DENSITY, guess=cutoffs, return_cutoff=True
    )
    loss = _network.loss(masking.apply(weights, soft), x, y)
    return loss, (weights, cutoffs)


def _selecting(pick):
    """The loss of edge-popup with another selection, or none."""

    def loss(scores, rest, x, y):
        weights, mask = rest
        ranked = jax.tree.map(jnp.abs, scores)
        hard = mask if pick is None else jax.tree.map(pick, ranked)
        soft = estimator.straight_through(hard, ranked)
        return _network.loss(masking.apply(weights, soft), x, y)

    return loss


def _start(key, widths):
    params = _network.init(key, widths)
    scores = edge_popup.init(params, key=key)
    return params, scores, *edge_popup.mask(scores, density=DENSITY, return_cutoff=True)


def _selected(scores):
    ranked = jax.tree.map(jnp.abs, scores)
    ours = edge_popup.mask(scores, density=DENSITY)
    return ours, jax.tree.map(by_bisection, ranked)


def case(widths: tuple[int, ...], members: int, steps: int) -> _case.Case:
    """Networks of one size, one or several at once."""
    start = _network.mapped(members, lambda key: _start(key, widths))
    params, scores, mask, cutoffs = jax.jit(start)(_network.keys(members))
    data = _network.batches(jax.random.key(1), steps)

    def contestant(name, loss, learned, rest=None):
        optimizer = _network.OPTIMIZER
        step = _train.descend(loss, optimizer, has_aux=loss is _ours)
        run = _network.over_batches(_network.mapped(members, step, (0, None, None)))
        begin = _network.mapped(members, lambda p, r: _train.begin(optimizer, p, r))
        return _case.training(name, run, begin(learned, rest), *data, steps=steps)

    def agree(results):
        # The first step of each: later ones may differ, since of equal scores the
        # baselines keep all.
        first = {name: np.asarray(losses)[0] for name, (_, losses) in results.items()}
        for name in SELECTIONS:
            _case.close(first["edge_popup"], first[name], rtol=1e-4)
        member, losses = results["edge_popup"]
        assert np.isfinite(losses).all()
        assert _train.same_bits(member.rest[0], params)
        selected = jax.jit(_network.mapped(members, _selected))(member.params)
        for ours, theirs in zip(*map(jax.tree.leaves, selected), strict=True):
            counts = np.asarray(ours).reshape(members, -1).sum(1)
            np.testing.assert_array_equal(counts, round(DENSITY * ours.size / members))
            # Of equal scores all are kept, which are few.
            assert not np.any(np.asarray(ours) & ~np.asarray(theirs))

    contestants = [contestant("edge_popup", _ours, scores, (params, cutoffs))]
    for name, pick in SELECTIONS.items():
        contestants.append(contestant(name, _selecting(pick), scores, (params, mask)))
    contestants.append(contestant("ordinary step", _network.plain_loss, params))
    name = f"{_case.named(widths)} members={members}"
    shape = _case.shapes(params if members == 1 else _network.at(params, 0))
    context = {"shape": shape, "density": DENSITY, "scope": "leaf", "mode": "scan"}
    context |= {"batch": _network.BATCH, "members": members}
    return _case.of(name, contestants, agree, **context)
