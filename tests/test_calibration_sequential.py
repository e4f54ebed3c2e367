"""Blocks pruned one after another, each for what the pruned ones before it give."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import calibration, score, select, where
from tests import trees


def normal(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


def block(p, x, keep=None):
    h = x + jax.nn.gelu(x @ p["up"]) @ p["down"] / 4
    return h if keep is None else jnp.where(keep[..., None], h, 0)


def drawn(n, seed=0):
    return {"up": normal(n, 6, 9, seed=seed), "down": normal(n, 9, 6, seed=seed + 1)}


def listed(stack):
    n = len(stack["up"])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(n)]


def prune(params, stats):
    scores = score.wanda(params, calibration.norms(stats))
    mask = select.top_k(scores, density=0.5, scope="output")
    return maskjax.apply(params, mask), mask


def by_hand(blocks, batches, weights=None):
    """Block by block, by the functions that there are for one."""
    done = []
    for params in blocks:
        stats = calibration.collect(block, params, batches, weights=weights)
        pruned, mask = prune(params, stats)
        done.append((pruned, mask))
        batches = [
            (block(pruned, *batch), *batch[1:])
            if isinstance(batch, tuple)
            else block(pruned, batch)
            for batch in batches
        ]
    return done, batches


def assert_close(some, others):
    for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def raises(pattern, kind=ValueError):
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


N, BATCHES = 3, [normal(4, 5, 6, seed=i) for i in range(3)]


def test_blocks_are_pruned_for_what_the_pruned_ones_before_give():
    stack = drawn(N)
    expected, outputs = by_hand(listed(stack), BATCHES)
    done = calibration.sequential(block, listed(stack), BATCHES, prune=prune)
    trees.assert_same(done.mask, [mask for _, mask in expected])
    assert_close(done.params, [params for params, _ in expected])
    assert_close(done.outputs, outputs)
    assert done.others == [(), (), ()]
    first = calibration.collect(block, listed(stack)[1], BATCHES)
    _, dense = prune(listed(stack)[1], first)
    pairs = zip(dense.values(), done.mask[1].values(), strict=True)
    differs = [(a != b).any() for a, b in pairs]
    assert any(differs)  # it does matter what came before


def test_stacked_blocks_and_batches_give_the_same():
    stack = drawn(N)
    blocks = calibration.sequential(block, listed(stack), BATCHES, prune=prune)
    scan = functools.partial(calibration.sequential, block, prune=prune, scan=True)
    both = np.stack(BATCHES)
    for done in (scan(stack, BATCHES), scan(stack, both), jax.jit(scan)(stack, both)):
        for i in range(N):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], done)
            trees.assert_same(own.mask, blocks.mask[i])
            assert_close(own.params, blocks.params[i])
        assert_close([*done.outputs], blocks.outputs)
    listed_ones = calibration.sequential(block, listed(stack), both, prune=prune)
    trees.assert_same(listed_ones.mask, blocks.mask)
    assert_close([*listed_ones.outputs], blocks.outputs)


def test_what_every_block_takes_is_passed_on():
    stack = drawn(N)
    keep = [np.arange(5)[None] < np.arange(2, 6)[:, None] + i for i in range(3)]
    batches = [*zip(BATCHES, keep, strict=True)]
    weights = lambda x, keep: keep  # noqa: E731
    expected, outputs = by_hand(listed(stack), batches, weights)
    how = {"prune": prune, "weights": weights}
    done = calibration.sequential(block, listed(stack), batches, **how)
    trees.assert_same(done.mask, [mask for _, mask in expected])
    assert_close(done.outputs, [x for x, _ in outputs])
    scanned = calibration.sequential(block, stack, batches, scan=True, **how)
    for i in range(N):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], scanned.mask)
        trees.assert_same(own, expected[i][1])


def test_batches_may_have_other_shapes_than_others():
    stack = drawn(N)
    batches = [normal(2, 5, 6), normal(3, 4, 6, seed=1), normal(2, 5, 6, seed=2)]
    expected, outputs = by_hand(listed(stack), batches)
    for scan in (False, True):
        params = stack if scan else listed(stack)
        done = calibration.sequential(block, params, batches, prune=prune, scan=scan)
        assert [out.shape for out in done.outputs] == [x.shape for x in batches]
        assert_close(done.outputs, outputs)
        last = done.mask[-1] if not scan else jax.tree.map(lambda m: m[-1], done.mask)
        trees.assert_same(last, expected[-1][1])


def test_one_program_serves_twelve_blocks():
    stack, x = drawn(12), np.stack(BATCHES)
    traced = []

    def own(p, x):
        traced.append(1)
        return block(p, x)

    calibration.sequential(own, listed(stack)[:1], x, prune=prune)
    once = len(traced)
    found = compiled_programs(
        lambda: calibration.sequential(own, listed(stack), x, prune=prune)
    )
    assert len(traced) == once
    assert found == []


def compiled_programs(run):
    """The programs that are compiled, or read from a cache, while something runs."""
    found = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        run()
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    return found


def test_a_program_for_each_function_and_shape():
    wide = lambda p, x: x @ p["w"]  # noqa: E731
    blocks = [{"w": normal(6, 8)}, {"w": normal(8, 8)}, {"w": normal(8, 8)}]
    functions = [wide, wide, lambda p, x: jnp.tanh(x @ p["w"])]
    done = calibration.sequential(functions, blocks, BATCHES, prune=prune)
    x = BATCHES[0]
    for function, params in zip(functions, done.params, strict=True):
        x = function(params, x)
    np.testing.assert_allclose(done.outputs[0], x, rtol=1e-4, atol=1e-5)


def test_progress_is_told_block_by_block():
    seen = []
    tell = lambda done, total: seen.append((done, total))  # noqa: E731
    stack = drawn(N)
    how = {"prune": prune, "progress": tell}
    calibration.sequential(block, listed(stack), BATCHES, **how)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    calibration.sequential(block, stack, BATCHES, scan=True, **how)
    jax.effects_barrier()
    assert sorted(seen) == [(1, 3), (2, 3), (3, 3)]


def test_blocks_of_equinox_and_what_else_prune_returns():
    blocks = [eqx.nn.MLP(6, 6, 9, 1, key=jax.random.key(i)) for i in range(2)]
    apply = lambda m, x: jax.vmap(jax.vmap(m))(x)  # noqa: E731

    def pruned(params, stats):
        arrays, rest = eqx.partition(params, eqx.is_array)
        scores = score.wanda(arrays, calibration.norms(stats), where=weight)
        mask = select.top_k(scores, density=0.5)
        kept = eqx.combine(maskjax.apply(arrays, mask), rest)
        return kept, mask, stats.layers[0].weight.sums.trace()

    weight = where.matching("weight$")
    done = calibration.sequential(apply, blocks, BATCHES, prune=pruned, where=weight)
    assert done.params[0].activation is blocks[0].activation
    assert_close(
        apply(done.params[1], apply(done.params[0], BATCHES[1])), done.outputs[1]
    )
    squares = sum((x**2).sum() for x in BATCHES)
    np.testing.assert_allclose(done.others[0][0], squares, rtol=1e-5)
    assert done.mask[0].layers[0].bias is None


def test_sums_that_are_not_finite_are_named():
    stack = drawn(N)
    stack["up"][1] = np.inf
    for scan in (False, True):
        params = stack if scan else listed(stack)
        with raises(
            r"`maskjax.calibration.sequential` needs finite statistics, got:\n"
            r"  down: inf or nan since batch 0, in block 1$"
        ):
            calibration.sequential(block, params, BATCHES, prune=prune, scan=scan)
    batches = [BATCHES[0], BATCHES[1][:, :2], np.full_like(BATCHES[0], np.nan)]
    with raises(r"up: inf or nan since batch 2, in block 0$"):
        calibration.sequential(block, listed(drawn(N)), batches, prune=prune)


def test_what_is_refused():
    stack, run = drawn(N), functools.partial(calibration.sequential, prune=prune)
    name = "`maskjax.calibration.sequential` needs "
    with raises(name + "at least one batch, got none"):
        run(block, listed(stack), [])
    with raises(name + r"`batches` as a list, or as arrays .*, got \(3,\), \(4,\)\."):
        run(block, listed(stack), (normal(3, 4, 6), normal(4, 4)))
    with raises(name + r"`batches` as a list, or as arrays .*, got \(0,\)\."):
        run(block, listed(stack), normal(0, 4, 6))
    with raises(name + "`params` of at least one block, got none"):
        run(block, [], BATCHES)
    with raises(name + "a function for each block, got 2 functions for 3 blocks"):
        run([block, block], listed(stack), BATCHES)
    uneven = {"up": stack["up"], "down": stack["down"][:2]}
    with raises(
        name + r"`params` whose leaves have one .* `scan=True`, got \(2,\), \(3,"
    ):
        run(block, uneven, BATCHES, scan=True)
    with raises(name + "one function for all blocks with `scan=True`, got list"):
        run([block] * 3, stack, BATCHES, scan=True)
    narrow = lambda p, x: block(p, x)[..., :3]  # noqa: E731
    with raises(
        name + r"a block that gives what it takes with `scan=True`, got float32 "
        r"\(4, 5, 3\) for float32 \(4, 5, 6\)\."
    ):
        run(narrow, stack, BATCHES, scan=True)
    with raises(name + r"468 bytes for statistics, and `limit` is 99 "):
        run(block, listed(stack), BATCHES, limit=99)
    with raises(r"needs `where` to choose at least one leaf"):
        run(block, listed(stack), BATCHES, where=where.matching("nothing"))
    partly = lambda params, stats: (params, {"up": params["up"] > 0})  # noqa: E731
    with raises(name + r"`params` and `mask` of the same .*\n  only in `params`: down"):
        run(block, listed(stack), BATCHES, prune=partly)


def test_what_is_no_function_or_list_is_refused():
    blocks, name = listed(drawn(1)), "`maskjax.calibration.sequential` needs "

    def refused(pattern, *args, prune=prune, **how):
        with raises(name + pattern, TypeError):
            calibration.sequential(*args, prune=prune, **how)

    refused(
        "`params` as a list of blocks, got dict.*`scan=True`", block, *blocks, BATCHES
    )
    refused("`params` as a list of blocks, got NoneType", block, None, BATCHES)
    refused("`apply` as a function", None, blocks, BATCHES)
    refused("`apply` as a function", [None], blocks, BATCHES)
    refused("`prune` as a function .*got dict", block, blocks, BATCHES, prune=blocks[0])
    refused("`weights` as a function", block, blocks, BATCHES, weights=np.ones(4))
    refused(r"`batches` as a list, .* Write `list\(b", block, blocks, iter(BATCHES))
    twice = lambda params, stats: (params, params)  # noqa: E731
    refused(
        "every leaf of `mask` to be a boolean.*\n  down: float32",
        *(block, blocks, BATCHES),
        prune=twice,
    )


def test_weights_of_rows_are_finite_and_at_least_0_and_some_above():
    name = "`maskjax.calibration.sequential` needs "
    weights = lambda x, w: w  # noqa: E731
    apply = lambda p, x, w: block(p, x)  # noqa: E731
    for scan in (False, True):
        params = drawn(2) if scan else listed(drawn(2))
        for worst, of in ((-2.0, "batch 1, in"), (np.nan, "batch 1, in"), (0, None)):
            least = 0 if of is None else 1
            batches = [
                (x, np.float32([least, 0, least, w if w is not None else least]))
                for x, w in zip(BATCHES, (None, worst, None), strict=True)
            ]
            said = f"finite weights .*, got {worst} in {of} block 0"
            with raises(name + (said if of else "a row of weight .* none in block 0")):
                calibration.sequential(
                    apply, params, batches, prune=prune, weights=weights, scan=scan
                )


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda p, s: p, r"needs `prune` to return \(params, mask\), got dict"),
        (
            lambda p, s: ({"up": p["up"]}, None),
            r"needs `params` and `what `prune` returned first` of the same structure",
        ),
        (
            lambda p, s: (jax.tree.map(lambda w: w[:1], p), None),
            r"parameters of the shapes that it got, got:\n  down: float32 array of "
            r"shape \(9, 6\) became float32 array of shape \(1, 6\)",
        ),
    ],
)
def test_prune_returns_parameters_and_a_mask(wrong, why):
    with raises(why):
        calibration.sequential(block, listed(drawn(1)), BATCHES, prune=wrong)
