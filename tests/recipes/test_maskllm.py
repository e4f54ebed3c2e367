"""Learned N:M patterns: by hand, against NumPy, and what the paper promises."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import packing, score, select, where
from maskjax._core import draws
from maskjax.recipes import maskllm
from maskjax.structure import NofM, Units
from tests import trees
from tests.reference import maskllm as reference

KEY = jax.random.key(3)
# A kernel of 8 inputs in many layouts, and what its axes are.
LAYOUTS = {
    "inputs outputs": (8, 6),
    "outputs inputs": (6, 8),
    "inputs inputs outputs": (2, 4, 6),
    "inputs outputs inputs": (4, 3, 2),
    "stack inputs outputs outputs": (3, 8, 2, 3),
    "window window inputs outputs": (3, 2, 8, 4),
    "outputs stack inputs window stack": (4, 2, 8, 3, 2),
}
TWO_OF_FOUR = NofM(2, 4)


def told(words):
    return where.matching("", axes=words)


def in_groups(x, words, m, shape):
    """[stack, window, outputs, groups, m] of a leaf, as NumPy lays it out."""
    roles, words = ("stack", "window", "outputs", "inputs"), words.split()
    order = [i for role in roles for i, word in enumerate(words) if word == role]
    x = np.broadcast_to(np.asarray(x), shape).transpose(order)
    sizes = [
        math.prod(n for n, word in zip(shape, words, strict=True) if word == role)
        for role in roles
    ]
    return x.reshape(*sizes[:-1], sizes[-1] // m, m)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@functools.partial(jax.jit, static_argnames=("words", "structure"))
def everything(w, prior, progress, strength, words, structure=TWO_OF_FOUR):
    """Logits, the soft mask, and the mask of one leaf, with what it was drawn from."""
    how = {"structure": structure, "where": told(words)}
    start = {"strength": strength, "deviation": 0.5, "key": KEY}
    logits = maskllm.init({"": w}, {"": prior}, **start, **how)
    noise = maskllm.init({"": w}, **start | {"deviation": 1.0}, **how)
    given = {"temperatures": (4.0, 0.5), "scales": (1.0, 5.0), "key": KEY}
    pull = lambda x: maskllm.soft_mask(  # noqa: E731
        {"": x}, {"": w}, progress=progress, **given, **how
    )[""]
    soft, vjp = jax.vjp(pull, logits[""])
    gumbel = draws.gumbel(jax.random.fold_in(KEY, 0), logits[""])
    hard = maskllm.mask(logits, {"": w}, **how)[""]
    return logits[""], noise[""], gumbel, soft, vjp(w)[0], hard


def flat(x):
    return np.asarray(x, np.float64).reshape(-1, x.shape[-1])


# --- by hand


def test_a_group_by_hand():
    # 1:2 has the patterns (1, 0) and (0, 1). With equal noise for both, logits 0 and
    # log 3 / scale have shares 1/4 and 3/4 at temperature 1; weights 2 and 10 become
    # 0.5 and 7.5, and the second pattern wins in the end.
    shares, soft = reference.mixed(
        np.array([[0.0, math.log(3) / 7]]),
        np.ones((1, 2)),
        n=1,
        m=2,
        temperature=1.0,
        scale=7.0,
    )
    np.testing.assert_allclose(shares, [[0.25, 0.75]])
    np.testing.assert_allclose(soft * [[2, 10]], [[0.5, 7.5]])
    params = {"w": jnp.array([[2.0], [10.0]])}
    logits = {"w": jnp.array([0.0, math.log(3) / 7]).reshape(1, 1, 1, 1, 2)}
    how = {"structure": NofM(1, 2)}
    mask = maskllm.mask(logits, params, **how)
    np.testing.assert_array_equal(mask["w"], [[False], [True]])
    # With a temperature that drowns the noise in a large scale, the same by our own.
    fixed = {"temperatures": (1e4, 1e4), "scales": (7e4, 7e4)}
    soft = maskllm.soft_mask(logits, params, progress=0.3, **fixed, **how, key=KEY)
    np.testing.assert_allclose(soft["w"], [[0.25], [0.75]], atol=1e-3)


# --- against the reference, in every layout


@pytest.mark.parametrize("words", LAYOUTS)
def test_masks_and_slopes_agree_with_the_reference_in_every_layout(words):
    shape, counts = LAYOUTS[words], {"n": 2, "m": 4}
    w = normal(0, *shape)
    prior = np.random.default_rng(1).random(shape) < 0.5
    for progress in (0.25, 1.0):
        found = everything(w, prior, np.float32(progress), np.float32(3), words)
        logits, noise, gumbel, soft, slope, hard = found
        assert logits.dtype == soft.dtype == "float32"
        assert soft.shape == hard.shape == shape
        groups = functools.partial(in_groups, words=words, m=4, shape=shape)
        wanted = reference.started(
            flat(noise), flat(groups(prior)), **counts, strength=3, deviation=0.5
        )
        np.testing.assert_allclose(flat(logits), wanted, atol=1e-5)
        at = {"temperature": 4 - 3.5 * progress, "scale": 1 + 4 * progress, **counts}
        shares, wanted = reference.mixed(flat(logits), flat(gumbel), **at)
        np.testing.assert_allclose(flat(groups(soft)), wanted, atol=1e-5)
        wanted = reference.slopes(shares, flat(groups(w)), **at)
        np.testing.assert_allclose(flat(slope), wanted, rtol=1e-3, atol=1e-4)
        wanted = reference.best(flat(logits), **counts)
        np.testing.assert_array_equal(flat(groups(hard)), wanted)
        assert (groups(hard).sum(-1) == 2).all()
        np.testing.assert_allclose(groups(soft).sum(-1), 2, rtol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(0, 2), (1, 4), (3, 4), (4, 8), (8, 8)])
def test_exactly_n_of_m_are_kept_for_any_numbers(n, m):
    words = "stack inputs outputs"
    w, none = normal(2, 2, 8, 3), np.zeros((2, 8, 3), bool)
    how = {"words": words, "structure": NofM(n, m)}
    logits, *_, soft, _, hard = everything(w, none, np.float32(1), np.float32(0), **how)
    assert logits.shape == (2, 1, 3, 8 // m, math.comb(m, n))
    groups = functools.partial(in_groups, words=words, m=m, shape=w.shape)
    assert (groups(hard).sum(-1) == n).all()
    np.testing.assert_allclose(groups(soft).sum(-1), n, rtol=1e-5)
    assert np.asarray(soft).min() >= 0
    assert np.asarray(soft).max() <= 1 + 1e-6


def test_axes_may_be_numbers():
    w, structure = normal(0, 3, 8), NofM(2, 4, axis=-1)
    logits = maskllm.init({"w": w}, structure=structure, key=KEY)
    assert logits["w"].shape == (3, 2, 6)
    mask = maskllm.mask(logits, {"w": w}, structure=structure)["w"]
    assert (np.asarray(mask).reshape(-1, 4).sum(1) == 2).all()


# --- where it starts


@jax.jit
def begun(params, prior, strength):
    logits = maskllm.init(params, prior, strength=strength, key=KEY)
    return logits, maskllm.mask(logits, params)


def test_a_strong_prior_is_what_comes_out_and_none_leaves_all_equal():
    params = {"a": normal(0, 16, 5), "b": normal(1, 8, 4), "c": normal(2, 4)}
    scores = score.magnitude(params)
    prior = select.top_k(scores, density=0.5, structure=TWO_OF_FOUR)
    for given in (prior, packing.pack(prior)):
        _, mask = begun(params, given, np.float32(50))
        assert mask["c"] is None
        trees.assert_same(mask, prior)
    weak, mask = begun(params, prior, np.float32(0))
    without = maskllm.init(params, key=KEY)
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, weak, without)
    assert 0.1 < np.mean(np.asarray(mask["a"]) != np.asarray(prior["a"])) < 0.9
    every = np.concatenate([np.ravel(x) for x in without.values() if x is not None])
    assert abs(every.mean()) < 4 * 0.01 / every.size**0.5
    assert 0.008 < every.std() < 0.012
    some, _ = begun(params, {**prior, "b": None}, np.float32(50))
    np.testing.assert_allclose(some["b"], without["b"], rtol=1e-6)
    shared = {"a": np.ones((16, 1), bool), "b": np.ones((1, 1), bool), "c": None}
    same, _ = begun(params, shared, np.float32(50))
    jax.tree.map(close, same, without)  # all patterns share n with what keeps all


# --- while it is trained


def test_mixes_become_patterns():
    params = {"w": normal(0, 32, 8)}
    logits = maskllm.init(params, key=KEY)

    @jax.jit
    def soft(progress, key):
        return maskllm.soft_mask(logits, params, progress=progress, key=key)["w"]

    far = []
    for progress in (0.0, 0.5, 1.0):
        m = np.asarray(soft(np.float32(progress), KEY))
        far.append(np.minimum(m, 1 - m).mean())
    assert far[0] > far[1] > far[2]
    assert far[0] > 0.3
    assert far[2] < 0.03
    keys = KEY, KEY, jax.random.key(4)
    first, again, other = (soft(np.float32(0), key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert soft._cache_size() == 1


def test_leaves_of_one_shape_have_draws_of_their_own():
    params = {"a": normal(0, 8, 4), "b": normal(0, 8, 4)}
    logits = maskllm.init(params, key=KEY)
    assert not np.array_equal(logits["a"], logits["b"])
    same = {"a": logits["a"], "b": logits["a"]}
    soft = maskllm.soft_mask(same, params, progress=0.0, key=KEY)
    assert not np.array_equal(soft["a"], soft["b"])


def test_members_are_what_each_is_alone():
    params = {"w": normal(0, 3, 8, 2)}
    keys = jax.random.split(KEY, 3)

    def one(params, progress, key):
        logits = maskllm.init(params, key=key)
        soft = maskllm.soft_mask(logits, params, progress=progress, key=key)
        return logits, soft, maskllm.mask(logits, params)

    progress = np.float32([0, 0.5, 1])
    every = jax.jit(jax.vmap(one))(params, progress, keys)
    alone = jax.jit(one)
    for i in range(3):
        mine = jax.tree.map(lambda x, i=i: x[i], (params, progress))
        wanted = alone(*mine, keys[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5),
            every,
            wanted,
        )


def test_the_best_patterns_are_learned_where_magnitude_and_wanda_are_wrong():
    # Inputs that say the same: of two large weights that cancel, none is needed.
    rng = np.random.default_rng(0)
    shared, others = rng.normal(size=(64, 1)), rng.normal(size=(64, 6))
    x = np.concatenate([shared, shared, others], 1).astype("float32")
    w = np.float32([[2.0], [-1.9], [0.9], [0.8], [0.5], [1.0], [-0.3], [0.6]])
    params = {"w": w}

    def task(mask):
        out = x @ maskjax.apply(params, {"w": mask})["w"]
        return jnp.mean((out - x @ w) ** 2)

    def loss(logits, progress, key):
        soft = maskllm.soft_mask(logits, params, progress=progress, key=key)
        slack = 1e-4 * (1 - progress) * maskllm.squared_norm(params, soft)
        return task(soft["w"]) - slack

    prior = select.top_k(score.magnitude(params), density=0.5, structure=TWO_OF_FOUR)
    adam, steps = optax.adam(3e-3), 300

    @jax.jit
    def learned(key):
        logits = maskllm.init(params, prior, strength=1.0, key=key)

        def step(carry, at):
            logits, state = carry
            slopes = jax.grad(loss)(logits, at / steps, jax.random.fold_in(key, at))
            with jax.numpy_dtype_promotion("standard"):  # which Adam needs
                updates, state = adam.update(slopes, state)
            return (optax.apply_updates(logits, updates), state), None

        with jax.numpy_dtype_promotion("standard"):
            start = logits, adam.init(logits)
            (logits, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
        return maskllm.mask(logits, params)["w"]

    halves = reference.patterns(2, 4) > 0
    pairs = itertools.product(halves, halves)
    every = [np.concatenate(pair)[:, None] for pair in pairs]
    least = min(float(task(mask)) for mask in every)
    norms = np.linalg.norm(x, axis=0)[:, None]
    wanda = select.top_k(
        score.wanda(params, {"w": norms}), density=0.5, structure=TWO_OF_FOUR
    )
    found = float(task(learned(KEY)))
    np.testing.assert_allclose(found, least, rtol=1e-5)
    assert found < 0.5 * min(float(task(prior["w"])), float(task(wanda["w"])))


def test_the_squared_norm_counts_what_is_kept_and_moves_the_mask_alone():
    params = {"w": normal(0, 4, 3), "v": normal(1, 4, 2), "b": np.ones(2, "f4")}
    soft = {"w": np.float32([[0.5, 1, 0]]), "v": None, "b": None}
    value, (of_params, of_soft) = jax.value_and_grad(
        lambda p, s: maskllm.squared_norm(p, s), (0, 1)
    )(params, soft)
    squares = np.square(params["w"].astype(np.float64)).sum(0)
    np.testing.assert_allclose(value, (squares * [0.25, 1, 0]).sum(), rtol=1e-6)
    np.testing.assert_allclose(of_soft["w"], 2 * soft["w"] * squares, rtol=1e-5)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(of_params))
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (params, soft))
    wide = jax.tree.map(lambda x: np.asarray(x).astype("float64"), half[0]["w"])
    np.testing.assert_allclose(
        maskllm.squared_norm(*half), (wide**2 * [[0.25, 1, 0]]).sum(), rtol=1e-5
    )


def test_dtypes_of_64_bits_mix_with_others(x64):
    params = {"a": normal(0, 8, 2).astype("f8"), "b": normal(1, 4, 2)}
    logits = maskllm.init(params, key=KEY)
    soft = maskllm.soft_mask(logits, params, progress=0.5, key=KEY)
    for tree in (logits, soft):
        assert [x.dtype for x in tree.values()] == ["float64", "float32"]
    np.testing.assert_allclose(np.sum(soft["a"]), 8, rtol=1e-12)
    assert maskllm.squared_norm(params, soft).dtype == "float64"


@pytest.mark.parametrize("name", trees.NAMES)
def test_trees_of_every_kind_keep_structure_and_shapes(name):
    params = trees.make(name, "bfloat16")
    chosen = trees.WHERE
    if name == "equinox":  # whose other kernel has five inputs
        chosen &= where.matching("hidden")
    how = {"where": chosen, "structure": NofM(1, 2)}

    def run(params):
        logits = maskllm.init(params, **how, key=KEY)
        soft = maskllm.soft_mask(logits, params, progress=0.5, **how, key=KEY)
        mask = maskllm.mask(logits, params, **how)
        return logits, soft, mask, maskjax.apply(params, soft)

    logits, soft, mask, applied = jax.eval_shape(run, params)
    assert applied == jax.eval_shape(lambda p: p, params)
    chosen = score.magnitude(params, where=chosen)
    rows = zip(
        jax.tree.leaves(chosen),
        jax.tree.leaves(logits),
        jax.tree.leaves(soft),
        jax.tree.leaves(mask),
        strict=True,
    )
    for c, own, s, m in rows:
        assert (s.shape, s.dtype) == (c.shape, "float32")
        assert (m.shape, m.dtype) == (c.shape, bool)
        assert own.size == c.size  # two patterns for two inputs


# --- bad input

W = {"w": np.ones((8, 2), "f4"), "b": np.ones(2, "f4")}
LOGITS = {"w": np.zeros((1, 1, 2, 2, 6), "f4"), "b": None}
SOFT = functools.partial(maskllm.soft_mask, LOGITS, W, progress=0.5, key=KEY)


def infinite(value):
    logits = LOGITS["w"].copy()
    logits[0, 0, 1, 0, :2] = value
    return {**LOGITS, "w": logits}


BAD = {
    "units": (
        lambda: maskllm.init(W, structure=Units(), key=KEY),
        TypeError,
        r"init` needs `structure` as `structure.NofM\(n, m\)`, got Units",
    ),
    "too many patterns": (
        lambda: maskllm.init(W, structure=NofM(8, 16), key=KEY),
        ValueError,
        "init` needs n and m with at most 256 patterns, got n=8, m=16.*have 12870",
    ),
    "indivisible": (
        lambda: maskllm.init({"w": np.ones((6, 2), "f4")}, key=KEY),
        ValueError,
        "init` needs every leaf to fit NofM.*w: .*6 inputs are not divisible by 4",
    ),
    "unknown axes": (
        lambda: maskllm.init({"layers": {"kernel": np.ones((2, 8, 2), "f4")}}, key=KEY),
        ValueError,
        "init` needs to know the axes of these leaves.*layers/kernel",
    ),
    "nothing chosen": (
        lambda: maskllm.init({"b": np.ones(2, "f4")}, key=KEY),
        ValueError,
        "init` needs `where` to choose at least one leaf",
    ),
    "an old key": (
        lambda: maskllm.init(W, key=np.uint32([0, 1])),
        TypeError,
        "init` needs `key` as a typed key",
    ),
    "a negative strength": (
        lambda: maskllm.init(W, strength=-1, key=KEY),
        ValueError,
        "init` needs `strength` finite and at least 0, got -1",
    ),
    "a deviation by name": (
        lambda: maskllm.init(W, deviation="small", key=KEY),
        TypeError,
        "init` needs `deviation` as a number, got str 'small'",
    ),
    "a prior of another shape": (
        lambda: maskllm.init(W, {"w": np.ones((4, 2), bool), "b": None}, key=KEY),
        ValueError,
        r"init` needs every leaf of `prior`.*w: prior \(4, 2\), params \(8, 2\)",
    ),
    "a prior of numbers": (
        lambda: maskllm.init(W, {"w": np.ones((8, 2), "f4"), "b": None}, key=KEY),
        TypeError,
        "init` needs every leaf of `prior` to be a boolean",
    ),
    "progress": (
        lambda: maskllm.soft_mask(LOGITS, W, progress=1.5, key=KEY),
        ValueError,
        r"soft_mask` needs `progress` in \[0, 1\], got 1.5",
    ),
    "one temperature": (
        lambda: SOFT(temperatures=4.0),
        TypeError,
        "soft_mask` needs `temperatures` as two numbers, got 4.0",
    ),
    "a temperature of 0": (
        lambda: SOFT(temperatures=(4.0, 0.0)),
        ValueError,
        "soft_mask` needs `temperatures` finite and above 0",
    ),
    "an infinite scale": (
        lambda: SOFT(scales=(1.0, math.inf)),
        ValueError,
        "soft_mask` needs `scales` finite and above 0",
    ),
    "another structure": (
        lambda: SOFT(structure=NofM(1, 4)),
        ValueError,
        r"soft_mask` needs `logits` of these parameters.*w: .*6\), needs .*4\)$",
    ),
    "logits of another tree": (
        lambda: maskllm.mask({"w": LOGITS["w"]}, W),
        ValueError,
        "mask` needs `logits` and `params` of the same structure.*only in `params`: b",
    ),
    "integer parameters": (
        lambda: maskllm.mask(LOGITS, {**W, "w": np.ones((8, 2), int)}),
        TypeError,
        "mask` needs every leaf of `params` with logits to be floating.*w: int64",
    ),
    "no logits": (
        lambda: maskllm.mask({"w": None, "b": None}, W),
        ValueError,
        "mask` needs `logits` with at least one leaf",
    ),
    "nan": (
        lambda: maskllm.mask(infinite(np.nan), W),
        ValueError,
        "mask` needs finite `logits`, got:\n  w: 2 of 24 logits are inf or nan",
    ),
    "inf": (
        lambda: maskllm.soft_mask(infinite(np.inf), W, progress=0.0, key=KEY),
        ValueError,
        "soft_mask` needs finite `logits`, got:\n  w: 2 of 24 logits are inf or nan",
    ),
    "a norm of booleans": (
        lambda: maskllm.squared_norm(W, {"w": np.ones((8, 2), bool), "b": None}),
        TypeError,
        "squared_norm` needs every leaf of `soft` to be a floating array",
    ),
    "a norm of another shape": (
        lambda: maskllm.squared_norm(W, {"w": np.ones((4, 2), "f4"), "b": None}),
        ValueError,
        r"squared_norm` needs every leaf of `soft`.*w: soft \(4, 2\), params \(8, 2\)",
    ),
    "a norm of integers": (
        lambda: maskllm.squared_norm({"n": np.ones(2, int)}, {"n": np.ones(2, "f4")}),
        TypeError,
        "squared_norm` needs every leaf of `params` that has a mask to be floating",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    pattern = re.compile("maskjax.recipes.maskllm." + message, re.DOTALL)
    with pytest.raises(kind, match=pattern):
        call()


def test_traced_logits_that_are_not_finite_still_give_n_of_m():
    found = jax.jit(lambda logits: maskllm.mask(logits, W))(infinite(np.nan))["w"]
    assert (np.asarray(found).T.reshape(-1, 4).sum(1) == 2).all()
