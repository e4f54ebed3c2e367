"""SparseGPT: by hand, against the paper's loop in float64, and its laws."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import calibration, packing, score, select, where
from maskjax.calibration import Statistics
from maskjax.recipes import sparsegpt
from maskjax.recipes.sparsegpt import _cholesky, _counts, _leaf
from maskjax.recipes.sparsegpt._layout import Layout
from maskjax.select._quota import quota
from maskjax.structure import Block, Entries, NofM, Units
from tests import real_networks
from tests.real_networks import UNKNOWN
from tests.reference import sparsegpt as reference

DENSE = where.Axes(inputs=(0,), outputs=(1,))


def drawn(d, out, *, dead=(), seed=0):
    """A kernel [d, out], and the Gram matrix of correlated inputs."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(d) + rng.normal(0, 0.6 / d**0.5, (d, d))
    x = rng.normal(size=(3 * d, d)) @ mixing
    x[:, list(dead)] = 0
    return rng.normal(size=(d, out)).astype("f4"), (x.T @ x).astype("f4")


def stats_of(w, gram, axes=DENSE, groups=1):
    return Statistics(jnp.asarray(gram), axes, w.shape, groups)


@functools.partial(jax.jit, static_argnames=("structure", "scope", "block"))
def pruned(
    w, gram, density=None, damping=0.01, *, structure=None, scope="layer", block
):
    """One dense kernel, pruned: what is left, and the mask."""
    how = {"structure": structure, "scope": scope, "block": block}
    stats = {"w": stats_of(w, gram)}
    done = sparsegpt.prune({"w": w}, stats, density=density, damping=damping, **how)
    return done.params["w"], done.mask["w"]


@functools.partial(jax.jit, static_argnames="block")
def repaired(w, gram, mask, damping=0.01, block=128):
    stats = {"w": stats_of(w, gram)}
    how = {"damping": damping, "block": block}
    return sparsegpt.repair({"w": w}, {"w": mask}, stats, **how).params["w"]


def agree(found, expected, atol=1e-5):
    """With the reference, [out, d]: masks equal, weights close."""
    left, mask = found
    np.testing.assert_array_equal(np.asarray(mask).T, expected[1])
    np.testing.assert_allclose(np.asarray(left).T, expected[0], atol=atol)


# The paper.

SIZES = [  # d, out, block
    (12, 5, 1),
    (12, 5, 3),
    (12, 5, 128),
    (10, 4, 4),  # d is no multiple of the block
    (200, 6, 12),  # many blocks, in segments of several
    pytest.param(300, 20, 128, marks=pytest.mark.slow),
    pytest.param(97, 7, 97, marks=pytest.mark.slow),
]
over_sizes = pytest.mark.parametrize(("d", "out", "block"), SIZES)


@over_sizes
def test_the_mask_and_the_weights_are_those_of_the_paper(d, out, block):
    w, gram = drawn(d, out, dead=(3, 7))
    live = np.diag(gram) > 0
    for density in (0.5, 0.3, 0.0, 1.0):
        counts = reference.shares(quota(density, d * out), live, block, out)
        expected = reference.prune(w.T, gram, block=block, counts=counts)
        agree(pruned(w, gram, np.float32(density), block=block), expected)


@pytest.mark.parametrize(("d", "out", "block"), [SIZES[1], SIZES[3], SIZES[5]])
def test_each_output_keeps_as_many_as_in_the_paper(d, out, block):
    w, gram = drawn(d, out, dead=(3,))
    live = np.diag(gram) > 0
    for density in (0.5, 0.3):
        counts = reference.shares(quota(density, d), live, block, 1)
        expected = reference.prune(w.T, gram, block=block, counts=counts, each=True)
        found = pruned(w, gram, np.float32(density), scope="output", block=block)
        agree(found, expected)
        assert set(found[1].sum(0).tolist()) == {quota(density, d)}


@pytest.mark.parametrize(
    ("n", "m", "d", "block"),
    [
        (2, 4, 12, 128),
        (2, 4, 12, 3),
        (1, 2, 12, 4),
        pytest.param(4, 8, 200, 16, marks=pytest.mark.slow),
        pytest.param(2, 4, 300, 128, marks=pytest.mark.slow),
    ],
)
def test_patterns_are_those_of_the_paper(n, m, d, block):
    w, gram = drawn(d, 5, dead=(3,))
    expected = reference.prune(w.T, gram, block=d, nm=(n, m))
    found = pruned(w, gram, structure=NofM(n, m), block=block)
    agree(found, expected)
    assert set(found[1].reshape(-1, m, 5).sum(1).ravel().tolist()) == {n}


@pytest.mark.parametrize(("d", "out", "block"), [SIZES[2], SIZES[3], SIZES[4]])
def test_any_mask_is_repaired_as_in_the_paper(d, out, block):
    w, gram = drawn(d, out, dead=(3,))
    mask = np.random.default_rng(1).random(w.shape) < 0.4
    for damping in (0.01, 1.0):
        how = {"damping": damping, "mask": mask.T, "block": block}
        expected = reference.prune(w.T, gram, **how)[0]
        found = repaired(w, gram, mask, np.float32(damping), block=block)
        np.testing.assert_allclose(found.T, expected, atol=1e-5)


def test_by_hand_the_other_weight_takes_over_what_it_can():
    # y = w_1 x_1 + w_2 x_2 with correlation r: without x_1, x_2 has r of it.
    r, w = 0.6, np.float32([[5.0], [2.0]])
    gram = np.float32([[1.0, r], [r, 1.0]])
    mask = np.array([[False], [True]])
    for damping in (1e-2, 1e-4, 0.0):
        found = repaired(w, gram, mask, np.float32(damping))
        expected = [[0.0], [2.0 + 5.0 * r / (1 + damping)]]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    # From the first input to the last: an earlier weight never changes.
    np.testing.assert_array_equal(repaired(w, gram, ~mask), [[5.0], [0.0]])


# What the mask keeps.


def test_counts_are_exact_among_equal_weights():
    w, gram = np.ones((10, 7), "f4"), np.eye(10, dtype="f4")
    for density in (0.0, 0.05, 0.35, 0.5, 0.99, 1.0):
        for block in (3, 128):
            mask = pruned(w, gram, np.float32(density), block=block)[1]
            assert int(mask.sum()) == quota(density, 70)
        mask = pruned(w, gram, np.float32(density), scope="output", block=3)[1]
        assert set(mask.sum(0).tolist()) == {quota(density, 10)}


def test_blocks_share_what_is_kept_as_their_inputs_fire():
    dead = (0, 1, 2, 5)
    w, gram = drawn(12, 10, dead=dead)
    for density in (0.0, 0.1, 0.55, 2 / 3, 0.9, 1.0):
        mask = np.asarray(pruned(w, gram, np.float32(density), block=4)[1])
        keep = quota(density, 120)
        assert mask.sum() == keep
        blocks = mask.reshape(3, 40).sum(1)
        if keep <= 80:
            assert not mask[list(dead)].any()
            assert np.all(np.abs(blocks - keep * np.array([1, 3, 4]) / 8) <= 1)
        else:
            assert mask[[i for i in range(12) if i not in dead]].all()


def test_numbers_of_more_bits_than_32_are_shared_without_rounding():
    layout = Layout(DENSE, (300, 2**24), 1)  # 5 * 2^30 weights
    gram = jnp.eye(300).at[7, 7].set(0)
    found = _counts.of_blocks(0.5, gram, layout, block=128, each=False)
    live = np.arange(300) != 7
    expected = reference.shares(150 * 2**24, live, 128, 2**24)
    np.testing.assert_array_equal(found[0, 0], expected)
    assert found.dtype == jnp.int32


def test_kept_weights_of_inputs_that_never_fire_stay_as_they_are():
    w, gram = drawn(12, 5, dead=(2, 3))
    left, mask = pruned(w, gram, np.float32(0.9), block=128)
    assert 0 < mask[2:4].sum() < 10
    np.testing.assert_array_equal(left[2:4], np.where(mask[2:4], w[2:4], 0))
    nothing = np.zeros_like(gram)
    for structure, density in ((None, np.float32(0.5)), (NofM(2, 4), None)):
        how = {"structure": structure, "block": 128}
        left, mask = pruned(w, nothing, density, **how)
        np.testing.assert_array_equal(left, np.where(mask, w, 0))
        assert mask.sum() == 30


# What is left.


def test_removed_weights_are_zero_and_other_leaves_the_same_arrays():
    w, gram = drawn(12, 5)
    params = {"w": jnp.asarray(w), "other": jnp.ones((4, 4)), "b": jnp.ones(3)}
    stats = {"w": stats_of(w, gram), "other": None, "b": None}
    done = sparsegpt.prune(params, stats, density=0.5)
    np.testing.assert_array_equal(done.params["w"] != 0, done.mask["w"])
    for name in ("other", "b"):
        assert done.params[name] is params[name]
        assert done.mask[name] is None
        assert done.damping[name] is None
    assert float(done.damping["w"]) == np.float32(0.01)
    again = sparsegpt.repair(params, done.mask, stats)
    np.testing.assert_allclose(again.params["w"], done.params["w"], atol=1e-6)
    np.testing.assert_array_equal(again.mask["w"], done.mask["w"])


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_without_correlations_it_is_magnitude_and_nothing_else_moves(scope):
    w, _ = drawn(12, 5)
    eye = 3 * np.eye(12, dtype="f4")
    left, mask = pruned(w, eye, np.float32(0.5), scope=scope, block=128)
    expected = select.top_k(score.magnitude({"w": w}), density=0.5, scope=scope)["w"]
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(left, np.where(expected, w, 0))


def test_at_density_one_nothing_changes():
    w, gram = drawn(12, 5, dead=(3,))
    for scope in ("layer", "output"):
        left, mask = pruned(w, gram, np.float32(1), scope=scope, block=3)
        assert mask.all()
        np.testing.assert_array_equal(left, w)


@pytest.mark.parametrize("kind", ["layer", "output", "2:4", "magnitude", "wanda"])
def test_the_repair_lowers_the_error_on_the_data(kind):
    for seed in range(5):
        w, gram = drawn(40, 30, seed=seed)
        half = np.float32(0.5)
        if kind == "2:4":
            left, mask = pruned(w, gram, structure=NofM(2, 4), block=128)
        elif kind in ("layer", "output"):
            left, mask = pruned(w, gram, half, scope=kind, block=16)
        else:
            norms = np.sqrt(np.diag(gram))[:, None] if kind == "wanda" else 1
            scores = np.abs(w) * np.float32(norms)
            mask = select.top_k({"w": scores}, density=0.5, scope="output")["w"]
            left = repaired(w, gram, mask)
        of = functools.partial(reference.output_error, w.T, gram=gram)
        assert of(np.asarray(left).T) < 0.95 * of(np.where(mask, w, 0).T)


def test_a_single_output_may_get_worse_as_the_documentation_says():
    # The second weight makes up for the first, and the third, which goes too, can't.
    gram = np.float32([[1.0, 0.1, 0.0], [0.1, 1.0, 0.9], [0.0, 0.9, 1.0]])
    w, mask = np.float32([[1.0], [1.0], [0.1]]), np.array([[False], [True], [False]])
    of = functools.partial(reference.output_error, w.T, gram=gram)
    left = np.asarray(repaired(w, gram, mask, np.float32(0)))
    assert 1.01 < of(left.T) / of(np.where(mask, w, 0).T) < 2


def test_weights_that_are_not_finite_do_not_spoil_counts():
    w, gram = drawn(12, 5)
    w[3, 1], w[5, 2] = np.nan, np.inf
    for block in (3, 128):
        left, mask = pruned(w, gram, np.float32(0.5), block=block)
        assert mask.sum() == 30
        assert (np.asarray(left)[~np.asarray(mask)] == 0).all()
        fine = np.isin(np.arange(5), [1, 2], invert=True)
        assert np.isfinite(np.asarray(left)[:, fine]).all()


# Layouts.


def canonical(x, axes):
    """[stack..., d, out], the window before the inputs."""
    met = (*axes.window, *axes.inputs)
    x = np.transpose(x, (*axes.stack, *met, *axes.outputs))
    lead = x.shape[: len(axes.stack)]
    return x.reshape(*lead, -1, int(np.prod(x.shape[x.ndim - len(axes.outputs) :])))


LAYOUTS = {  # the words, the shape, and m of N:M
    "dense": ("inputs outputs", (12, 6), 4),
    "equinox": ("outputs inputs", (6, 12), 4),
    "query": ("inputs outputs outputs", (12, 2, 3), 4),
    "out": ("inputs inputs outputs", (3, 4, 6), 4),
    "convolution": ("window window inputs outputs", (2, 3, 2, 6), 2),
    "equinox convolution": ("outputs inputs window window", (6, 2, 2, 3), 2),
    "layers": ("inputs stack outputs", (12, 3, 6), 4),
    "groups of layers": ("stack stack inputs outputs", (2, 2, 12, 6), 4),
}


def gram_of(stats_axes, shape, seed=0):
    """Gram matrices in the order of `Statistics`, and in the canonical one."""
    rng = np.random.default_rng(seed)
    own = sorted((*stats_axes.window, *stats_axes.inputs))
    lengths = [shape[axis] for axis in own]
    lead = [shape[axis] for axis in stats_axes.stack]
    x = rng.normal(size=(*lead, 40, *lengths))
    x = x + 0.5 * rng.normal(size=(*lead, 40, *[1] * len(lengths)))
    flat = x.reshape(*lead, 40, -1)
    met = (*stats_axes.window, *stats_axes.inputs)
    n = len(lead) + 1
    moved = x.transpose(*range(n), *(n + own.index(axis) for axis in met))
    moved = moved.reshape(flat.shape)
    gram = lambda x: np.float32(np.swapaxes(x, -1, -2) @ x)  # noqa: E731
    return gram(flat), gram(moved)


# Each is much like one that stays: another order of the same roles, or a stack more.
MORE = ("dense", "equinox", "convolution", "groups of layers")


@pytest.mark.parametrize(
    "layout",
    [pytest.param(n, marks=pytest.mark.slow) if n in MORE else n for n in LAYOUTS],
)
def test_every_layout_is_pruned_as_the_plain_kernel(layout):
    words, shape, m = LAYOUTS[layout]
    told = where.matching("k", axes=words).axes("k", np.zeros(shape))
    w = np.random.default_rng(1).normal(size=shape).astype("f4")
    sums, grams = gram_of(told, shape)
    params, stats = {"k": w}, {"k": stats_of(w, sums, told)}

    @jax.jit
    def every(params, stats):
        half = sparsegpt.prune(params, stats, density=0.5, block=8)
        fixed = sparsegpt.prune(params, stats, structure=NofM(m // 2, m))
        return half, fixed, sparsegpt.repair(params, half.mask, stats)

    half, fixed, again = every(params, stats)
    plain = canonical(w, told)
    for index in np.ndindex(plain.shape[:-2]):
        left, mask = pruned(plain[index], grams[index], np.float32(0.5), block=8)
        found = canonical(half.params["k"], told)[index]
        np.testing.assert_allclose(found, left, atol=1e-6)
        np.testing.assert_array_equal(canonical(half.mask["k"], told)[index], mask)
        kept = canonical(fixed.mask["k"], told)[index]
        expected = reference.prune(
            plain[index].T, grams[index], block=12, nm=(m // 2, m)
        )
        np.testing.assert_array_equal(kept.T, expected[1])
        found = canonical(fixed.params["k"], told)[index]
        np.testing.assert_allclose(found.T, expected[0], atol=1e-5)
    np.testing.assert_allclose(again.params["k"], half.params["k"], atol=1e-6)
    assert half.damping["k"].shape == plain.shape[:-2]


def test_groups_of_a_convolution_meet_inputs_of_their_own():
    rng = np.random.default_rng(0)
    axes = where.Axes(stack=(0,), window=(1,), inputs=(2,), outputs=(3,))
    w = rng.normal(size=(2, 3, 2, 8)).astype("f4")
    x = rng.normal(size=(2, 2, 20, 6))
    x[1, 0, :, 2] = 0
    sums = np.float32(np.swapaxes(x, -1, -2) @ x)
    stats = {"k": stats_of(w, sums, axes, groups=2)}
    done = sparsegpt.prune({"k": w}, stats, density=0.3)
    assert done.damping["k"].shape == (2, 2)
    for layer in range(2):
        kernel, mask = w[layer].reshape(6, 8), np.asarray(done.mask["k"])[layer]
        mask = mask.reshape(6, 8)
        assert mask.sum() == quota(0.3, 48)
        for group in range(2):
            own = slice(4 * group, 4 * group + 4)
            how = {"mask": mask[:, own].T, "block": 6}
            left = reference.prune(kernel[:, own].T, sums[layer, group], **how)[0]
            found = np.asarray(done.params["k"])[layer].reshape(6, 8)[:, own]
            np.testing.assert_allclose(found.T, left, atol=1e-5)
    each = sparsegpt.prune({"k": w}, stats, density=0.5, scope="output").mask["k"]
    assert set(np.asarray(each).reshape(2, 6, 8).sum(1).ravel()) == {3}


def test_a_kernel_without_weights_is_passed_through():
    axes = where.Axes(stack=(0,), inputs=(1,), outputs=(2,))
    for shape in ((3, 0, 4), (3, 4, 0)):
        w = jnp.zeros(shape)
        stats = {"k": stats_of(w, np.zeros((3, shape[1], shape[1]), "f4"), axes)}
        done = sparsegpt.prune({"k": w}, stats, density=0.5)
        assert done.mask["k"].shape == done.params["k"].shape == shape
        assert done.damping["k"].shape == (3,)


# Networks.


def mlp(params, x):
    return jnp.tanh(x @ params["up"]["kernel"]) @ params["down"]["kernel"]


@functools.cache
def calibrated():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), "float32")  # noqa: E731
    params = {"up": {"kernel": draw(12, 16), "bias": draw(16)}}
    params["down"] = {"kernel": draw(16, 8)}
    x = draw(60, 12) + 0.7 * draw(60, 1) * jnp.ones((1, 12))
    stats = calibration.init(mlp, params, x)
    update = jax.jit(functools.partial(calibration.update, mlp))
    return params, update(stats, params, x), x


def test_a_network_computes_nearly_the_same():
    params, stats, x = calibrated()

    @jax.jit
    def errors(params, stats):
        done = sparsegpt.prune(params, stats, density=0.6)
        scores = score.wanda(params, calibration.norms(stats))
        wanda = select.top_k(scores, density=0.6, scope="output")
        alone = maskjax.apply(params, wanda)
        both = sparsegpt.repair(params, wanda, stats).params
        far = lambda p: jnp.mean((mlp(p, x) - mlp(params, x)) ** 2)  # noqa: E731
        return far(done.params), far(both), far(alone)

    own, mended, alone = errors(params, stats)
    assert own < mended < alone


@pytest.mark.parametrize(
    "name",
    [
        "equinox/convolutions",
        pytest.param("linen/gpt_scanned", marks=pytest.mark.slow),
        pytest.param("linen/gpt", marks=pytest.mark.slow),
        pytest.param("nnx/gpt", marks=pytest.mark.slow),
        pytest.param("nnx/convolutions", marks=pytest.mark.slow),
        pytest.param("equinox/gpt_scanned", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_of_a_real_network_is_pruned_as_in_the_paper(name):
    net = real_networks.get(name)
    chosen = net.traced() & (lambda path, _: net.roles[path] != UNKNOWN)
    params, data = real_networks.make(name), real_networks.data(name)

    @jax.jit
    def run(params, data):
        stats = calibration.init(net.apply, params, *data, where=chosen)
        stats = calibration.update(net.apply, stats, params, *data)
        return stats, sparsegpt.prune(params, stats, density=0.5)

    stats, done = run(params, data)
    assert jax.tree.structure(done.params) == jax.tree.structure(params)
    known = jax.tree.structure(params).flatten_up_to(stats)
    masks = jax.tree.structure(params).flatten_up_to(done.mask)
    leaves = jax.tree.leaves(params), jax.tree.leaves(done.params)
    assert jax.tree.leaves(done.mask)
    for w, left, mask, own in zip(*leaves, masks, known, strict=True):
        if mask is None:
            np.testing.assert_array_equal(w, left)
            continue
        for index in np.ndindex(*(w.shape[axis] for axis in own.axes.stack)):
            kernels = [
                canonical(np.asarray(x), own.axes)[index] for x in (w, left, mask)
            ]
            assert kernels[2].sum() == quota(0.5, kernels[2].size)
            parts = [np.split(x, own.groups, axis=-1) for x in kernels]
            for group, (before, after, keep) in enumerate(zip(*parts, strict=True)):
                at = (*index, group) if own.groups > 1 else index
                gram = ordered(np.asarray(own.sums)[at], own)
                how = {"block": len(gram), "mask": keep.T}
                found = reference.prune(before.T, gram, **how)[0]
                np.testing.assert_allclose(after.T, found, rtol=1e-3, atol=1e-4)


def ordered(gram, stats):
    """A Gram matrix with the window before the inputs."""
    lengths = [stats.shape[axis] for axis in stats.inputs]
    met = [stats.inputs.index(i) for i in (*stats.axes.window, *stats.axes.inputs)]
    places = np.arange(len(gram)).reshape(lengths).transpose(met).ravel()
    return gram[np.ix_(places, places)]


def test_equal_kernels_of_a_traced_network_are_one_program():
    w, gram = drawn(12, 5)
    names = [f"layer_{i}" for i in range(6)]
    params = {name: w + i for i, name in enumerate(names)}
    stats = {name: stats_of(w, (1 + i) * gram) for i, name in enumerate(names)}
    params["wide"], wide = drawn(12, 9)
    stats["wide"] = stats_of(params["wide"], wide)
    prune = functools.partial(sparsegpt.prune, density=0.5)
    program = jax.jit(prune).lower(params, stats)
    assert program.as_text().count("custom_call @lapack_spotrf") == 2
    found, each = program.compile()(params, stats), prune(params, stats)
    for name in params:
        np.testing.assert_array_equal(found.mask[name], each.mask[name])
        np.testing.assert_allclose(found.params[name], each.params[name], atol=1e-5)
        assert found.damping[name].shape == ()


def test_a_new_number_compiles_nothing():
    params, stats, _ = calibrated()
    prune = functools.partial(sparsegpt.prune, params, stats)
    prune(density=0.5)
    programs = _leaf._pruned, _counts._shares
    sizes = [program._cache_size() for program in programs]
    prune(density=0.25, damping=0.1)
    assert [program._cache_size() for program in programs] == sizes


def test_it_is_the_same_under_every_transform(every_transform):
    w, gram = drawn(12, 5)

    def both(w, gram, mask, density):
        params, stats = {"w": w}, {"w": stats_of(w, gram)}
        done = sparsegpt.prune(params, stats, density=density, block=8)
        return done, sparsegpt.repair(params, {"w": mask}, stats)

    mask = np.random.default_rng(0).random(w.shape) < 0.5
    done, mended = every_transform(both)(w, gram, mask, np.float32(0.5))
    left, keep = pruned(w, gram, np.float32(0.5), block=8)
    np.testing.assert_array_equal(done.mask["w"], keep)
    np.testing.assert_allclose(done.params["w"], left, atol=1e-6)
    expected = repaired(w, gram, mask)
    np.testing.assert_allclose(mended.params["w"], expected, atol=1e-6)


def test_members_of_a_vmap_are_pruned_each_by_itself():
    pairs = [drawn(12, 5, seed=i) for i in range(3)]
    w, gram = (np.stack(x) for x in zip(*pairs, strict=True))
    densities = np.float32([0.2, 0.5, 0.8])
    for scope in ("layer", "output"):
        of = functools.partial(pruned, scope=scope, block=8)
        left, mask = jax.jit(jax.vmap(of))(w, gram, densities)
        for i in range(3):
            alone = of(w[i], gram[i], densities[i])
            np.testing.assert_array_equal(mask[i], alone[1])
            np.testing.assert_allclose(left[i], alone[0], atol=1e-6)
    both = jax.vmap(of, in_axes=(None, None, 0))(w[0], gram[0], densities)
    np.testing.assert_array_equal(both[1][2], of(w[0], gram[0], densities[2])[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_pruned_in_float32(dtype):
    w, gram = drawn(12, 5)
    w = jnp.asarray(w, dtype)
    done = sparsegpt.prune({"w": w}, {"w": stats_of(w, gram)}, density=0.5)
    left, mask = pruned(w.astype(jnp.float32), gram, np.float32(0.5), block=128)
    assert done.params["w"].dtype == dtype
    np.testing.assert_array_equal(done.mask["w"], mask)
    np.testing.assert_array_equal(done.params["w"], left.astype(dtype))


def test_wide_weights_are_pruned_in_float64(x64):
    w, gram = drawn(12, 5)
    w, gram = w.astype("f8"), gram.astype("f8")
    done = sparsegpt.prune({"w": w}, {"w": stats_of(w, gram)}, density=0.5)
    expected = reference.prune(w.T, gram, block=12, counts=[30])
    assert done.params["w"].dtype == done.damping["w"].dtype == "float64"
    agree((done.params["w"], done.mask["w"]), expected, atol=1e-12)


def test_masks_of_every_kind_are_repaired():
    params, stats, _ = calibrated()
    mask = sparsegpt.prune(params, stats, density=0.5).mask
    of = lambda m: sparsegpt.repair(params, m, stats)  # noqa: E731
    expected = of(mask)
    packed = of(packing.pack(mask))
    for name in params:
        kernel = lambda tree: tree[name]["kernel"]  # noqa: B023, E731
        np.testing.assert_array_equal(kernel(packed.params), kernel(expected.params))
    rows = {"up": None, "down": {"kernel": np.arange(16)[:, None] % 2 > 0}}
    done = of(rows)
    assert done.params["up"]["kernel"] is params["up"]["kernel"]
    assert done.mask["down"]["kernel"].shape == (16, 8)
    assert not done.params["down"]["kernel"][::2].any()
    whole = of({"up": {"kernel": False, "bias": None}, "down": None})
    assert not whole.params["up"]["kernel"].any()


def test_densities_may_differ_between_kernels_and_layers():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 12, 5)).astype("f4")
    axes = where.Axes(stack=(0,), inputs=(1,), outputs=(2,))
    grams = np.stack([drawn(12, 5, seed=i)[1] for i in range(3)])
    params = {"layers": w, "w": w[0]}
    stats = {"layers": stats_of(w, grams, axes), "w": stats_of(w[0], grams[0])}
    shares = np.array([0.2, 0.5, 0.75])
    for scope in ("layer", "output"):
        for of in (np.asarray, lambda x: jnp.asarray(x, "float32")):
            density = {"layers": of(shares), "w": 0.75}
            how = {"density": density, "scope": scope}
            mask = sparsegpt.prune(params, stats, **how).mask
            kept = np.asarray(mask["layers"]).sum((1, 2) if scope == "layer" else 1)
            wanted = [quota(one, 60 if scope == "layer" else 12) for one in shares]
            assert (kept.T == wanted).all()
            assert mask["w"].sum() == 45
    only = sparsegpt.prune(params, stats, density=0.5, where=where.matching("^w"))
    assert only.mask["layers"] is None
    assert only.params["layers"] is w


def test_it_prunes_the_blocks_of_a_network_one_after_another():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 12, 12)).astype("f4") / 3
    x = rng.normal(size=(2, 30, 12)).astype("f4")

    def prune(params, stats):
        return sparsegpt.prune(params, stats, density=0.5)

    block = lambda params, x: jnp.tanh(x @ params["w"])  # noqa: E731
    done = calibration.sequential(block, {"w": w}, x, prune=prune, scan=True)
    assert set(np.asarray(done.mask["w"]).sum((1, 2))) == {72}
    first = {"w": w[0]}
    stats = calibration.init(block, first, x[0])
    for batch in x:
        stats = calibration.update(block, stats, first, batch)
    alone = prune(first, stats).params["w"]
    np.testing.assert_allclose(done.params["w"][0], alone, atol=1e-5)


# Matrices that can't be used as they are.


@pytest.mark.parametrize("d", [128, 200])
def test_factors_by_a_loop_are_those_of_cholesky(d):
    """Where programs are for TPU, large matrices are factored so."""
    _, gram = drawn(d, 1)
    factor = jax.jit(_cholesky.blocked)
    expected = np.linalg.cholesky(gram.astype(float))
    np.testing.assert_allclose(factor(gram), expected, rtol=1e-4, atol=1e-4)
    gram[70, 70] = -1
    assert not np.isfinite(factor(gram)).all()


def test_damping_is_raised_until_the_matrix_can_be_used():
    w, _ = drawn(6, 4)
    for low, expected in ((-0.05, 0.1), (-0.5, 1.0)):
        gram = np.diag(np.float32([1, 1, 1, 1, 1, 1]))
        gram[0, 1] = gram[1, 0] = 1 - low  # an eigenvalue of `low`
        stats = {"w": stats_of(w, gram)}
        done = sparsegpt.prune({"w": w}, stats, density=0.5)
        np.testing.assert_allclose(done.damping["w"], expected, rtol=1e-6)
        counts = np.array([12])
        how = {"block": 6, "counts": counts, "damping": expected}
        agree((done.params["w"], done.mask["w"]), reference.prune(w.T, gram, **how))
    done = sparsegpt.prune({"w": w}, stats, density=0.5, damping=0.0)
    np.testing.assert_allclose(done.damping["w"], 1.0, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_matrices_that_are_not_finite_are_refused_or_told(bad):
    w, gram = drawn(6, 4)
    params = {"fine": w, "net": {"w": w}}
    broken = gram.copy()
    broken[2, 2] = bad
    stats = {"fine": stats_of(w, gram), "net": {"w": stats_of(w, broken)}}
    match = "needs finite statistics, got:\n  net/w: 1 of 36 sums are inf or nan$"
    with pytest.raises(ValueError, match=match):
        sparsegpt.prune(params, stats, density=0.5)
    mask = {"fine": None, "net": {"w": w > 0}}
    with pytest.raises(ValueError, match=match):
        sparsegpt.repair(params, mask, stats)
    done = jax.jit(functools.partial(sparsegpt.prune, density=0.5))(params, stats)
    assert np.isinf(done.damping["net"]["w"])
    assert np.isfinite(done.damping["fine"])
    mask = np.asarray(done.mask["net"]["w"])
    assert mask.sum() == 12
    np.testing.assert_array_equal(done.params["net"]["w"], np.where(mask, w, 0))


def test_a_matrix_that_nothing_makes_positive_is_refused():
    w, _ = drawn(4, 3)
    gram = np.float32(np.eye(4))
    gram[0, 1] = gram[1, 0] = 1e20
    match = "w: no damping makes its Gram matrix positive definite"
    with pytest.raises(ValueError, match=match):
        sparsegpt.prune({"w": w}, {"w": stats_of(w, gram)}, density=0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_or_spread(bad):
    w, gram = drawn(6, 4)
    params = {"fine": w, "net": {"w": w.copy()}}
    params["net"]["w"][2, 1] = bad
    stats = {"fine": stats_of(w, gram), "net": {"w": stats_of(w, gram)}}
    mask = {"fine": w > 0, "net": {"w": np.ones((6, 4), bool)}}
    mask["net"]["w"][2] = False
    refused = functools.partial(
        refuses, ValueError, "finite weights .*\n  net/w: 1 of 24"
    )
    refused(sparsegpt.prune, params, stats, density=0.5)
    refused(sparsegpt.repair, params, mask, stats)
    alone = {"fine": mask["fine"], "net": {"w": None}}  # what is left alone may be so
    sparsegpt.repair(params, alone, stats)
    left = np.asarray(repaired(params["net"]["w"], gram, mask["net"]["w"]))
    spread = np.zeros((6, 4), bool)
    spread[3:, 1] = True
    np.testing.assert_array_equal(~np.isfinite(left), spread)


# Bad input.


def refuses(kind, text, function, *args, **how):
    needs = f"`maskjax.recipes.sparsegpt.{function.__name__}` needs "
    with pytest.raises(kind, match=re.escape(needs) + text):
        function(*args, **how)


def test_bad_statistics_are_refused():
    w, gram = drawn(6, 4)
    params, stats = {"w": w, "b": w}, {"w": stats_of(w, gram), "b": None}
    mask = {"w": w > 0, "b": None}
    for function, more, how in (
        (sparsegpt.prune, (), {"density": 0.5}),
        (sparsegpt.repair, (mask,), {}),
    ):

        def run(
            kind, text, stats, params=params, function=function, more=more, how=how
        ):
            refuses(kind, text, function, params, *more, stats, **how)

        run(ValueError, ".*same structure.*\n  only in `params`: b", {"w": stats["w"]})
        text = "every kernel .*\n  w: statistics of \\(4, 6\\), parameter \\(6, 4\\)"
        run(ValueError, text, {**stats, "w": stats_of(w.T, np.eye(4))})
        alone = Statistics(np.ones(6, "f4"), DENSE, w.shape, gram=False)
        run(ValueError, ".*\n  w: norms alone", {**stats, "w": alone})
        text = "every leaf .*`Statistics`.*`calibration.collect` .*\n  w: float32"
        run(TypeError, text, {**stats, "w": gram})
        run(ValueError, ".*of at least one kernel, .*, got none", None)
        nothing = {**stats, "w": stats_of(w, 0 * gram)}
        run(ValueError, "statistics of some data, but all sums are 0", nothing)
        negative = {**stats, "w": stats_of(w, -np.eye(6, dtype="f4"))}
        run(ValueError, ".*at least 0, got:\n  w: 6 of 6 are negative", negative)
        whole = {**params, "w": np.ones((6, 4), "i4")}
        run(TypeError, "every kernel .*floating.*\n  w: int32", stats, whole)
    refuses(
        ValueError,
        ".*\n  `params` is NoneType",
        sparsegpt.prune,
        None,
        stats,
        density=0.5,
    )
    text = "`stats` of at least one kernel"
    none = {"w": None, "b": None}
    refuses(ValueError, text, sparsegpt.prune, params, none, density=0.5)
    text = ".*\n  b: no statistics"
    every = where.everything
    refuses(ValueError, text, sparsegpt.prune, params, stats, density=0.5, where=every)
    more = {**mask, "b": w > 0}
    refuses(ValueError, text, sparsegpt.repair, params, more, stats)
    text = "`mask` with at least one leaf"
    refuses(ValueError, text, sparsegpt.repair, params, none, stats)
    soft = {"w": w, "b": None}
    refuses(TypeError, ".*boolean", sparsegpt.repair, params, soft, stats)


def test_bad_options_are_refused():
    w, gram = drawn(6, 4)
    params, stats = {"w": w}, {"w": stats_of(w, gram)}

    def of(kind, text, **how):
        refuses(kind, text, sparsegpt.prune, params, stats, **how)

    of(ValueError, r"`density` in \[0, 1\], got 1.5", density=1.5)
    of(ValueError, r"`density\[w\]` in \[0, 1\]", density={"w": -0.5})
    of(TypeError, "`density` as a number", density="half")
    of(TypeError, "`density`, or `structure` as")
    of(
        ValueError,
        "`scope` as 'layer' or 'output', got 'leaf'",
        density=1,
        scope="leaf",
    )
    of(ValueError, "`damping` finite", density=1, damping=-1.0)
    of(ValueError, "`block` of at least 1", density=1, block=0)
    of(TypeError, "`where` as a function", density=1, where="w")
    text = r".*fit NofM\(n=2, m=4, .*\n  w: .* 6 inputs are not divisible by 4"
    of(ValueError, text, structure=NofM(2, 4))
    for other in (Units(), Block((2, 2)), NofM(1, 2, axis=0)):
        of(ValueError, "`structure` as `Entries", structure=other, density=0.5)
    of(TypeError, "`structure` as a value", structure=NofM, density=0.5)
    text = r"`density` as a number of at least 1/2 with .*\n  w: 0.25"
    of(ValueError, text, structure=NofM(1, 2), density=0.25)
    of(ValueError, text[:40], structure=NofM(1, 2), density=jnp.float32(0.5))
    half = sparsegpt.prune(params, stats, structure=NofM(1, 2), density=0.5)
    alone = sparsegpt.prune(params, stats, structure=NofM(1, 2))
    np.testing.assert_array_equal(half.mask["w"], alone.mask["w"])
    entries = sparsegpt.prune(params, stats, structure=Entries(), density=0.5)
    assert entries.mask["w"].sum() == 12
