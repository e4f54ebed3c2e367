"""Learned supermasks: by hand, against NumPy, and what the paper promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import estimator, masking, stacking, where
from maskjax.recipes import supermask
from tests import trees
from tests.recipes import loops
from tests.reference import supermask as reference

SHAPES = {"a": (6, 10), "b": (10, 3)}
KEY = jax.random.key(11)
WAYS = {
    "apply": (masking.apply, {}),
    "rescale": (masking.rescale, {"rescale": True}),
    "rescale, not through the count": (
        functools.partial(masking.rescale, through_count=False),
        {"rescale": True, "through_count": False},
    ),
}


def network(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def loss(params, x, y):
    return jnp.mean((network(params, x) - y) ** 2)


def normal(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype("float32") for k, s in shapes.items()}


def data():
    return normal(7, {"x": (16, 6), "y": (16, 3)}).values()


def wide(tree):
    return [np.asarray(x).astype(np.float64) for x in tree.values()]


@jax.jit
def pull(weights, scores, x, y, key):
    """The sample, and for each way of masking the loss and its gradient."""

    def objective(scores, masked):
        return loss(masked(weights, supermask.soft_mask(scores, key=key)), x, y)

    by_way = {
        way: jax.value_and_grad(functools.partial(objective, masked=masked))(scores)
        for way, (masked, _) in WAYS.items()
    }
    return supermask.mask(scores, key=key), by_way


@jax.jit
def samples(scores, keys, rounded):
    """Soft masks and masks for each key, [N, ...]."""

    def one(key):
        soft = supermask.soft_mask(scores, rounded=rounded, key=key)
        return soft, supermask.mask(scores, key=key)

    return jax.vmap(one)(keys)


def test_a_step_by_hand():
    # Two inputs, one output; the sample keeps the first weight only.
    #   out = 2 * 1 = 2, loss = (2 - 1)^2 = 1, dL/dout = 2 * (2 - 1) = 2
    #   dL/dm = 2 * x * w = (2 * 1 * 2, 2 * 3 * -1) = (4, -6)
    #   sigma(1 - sigma): 1/4 at score 0; 3/16 at log(3), where sigma is 3/4
    # and after a step of 0.5: a_0 = 0 - 0.5 * 4 / 4 = -0.5,
    #                          a_1 = log(3) + 0.5 * 6 * 3 / 16 = log(3) + 0.5625.
    # Rescaled the one weight counts twice: out = 4, loss = 9.
    weights, x = {"w": np.float32([[2.0], [-1.0]])}, np.float32([[1.0, 3.0]])
    scores = {"w": np.float32([[0.0], [np.log(3)]])}

    @jax.jit
    @jax.vmap
    def step(key):
        def objective(scores, masked=masking.apply):
            params = masked(weights, supermask.soft_mask(scores, key=key))
            return jnp.sum((x @ params["w"] - 1) ** 2)

        value, gradients = jax.value_and_grad(objective)(scores)
        after = jax.tree.map(lambda a, g: a - 0.5 * g, scores, gradients)
        kept = supermask.mask(scores, key=key), supermask.mask(after, key=None)
        return value, objective(scores, masking.rescale), after["w"], kept

    value, rescaled, after, (kept, rounded) = step(jax.random.split(KEY, 50))
    kept = np.asarray(kept["w"])[:, :, 0]
    assert len(np.unique(kept, axis=0)) == 4
    i = int(np.flatnonzero((kept == [True, False]).all(1))[0])
    assert (np.asarray(value)[i], np.asarray(rescaled)[i]) == (1, 9)
    expected = [[-0.5], [np.log(3) + 0.5625]]
    np.testing.assert_allclose(np.asarray(after)[i], expected, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(rounded["w"])[i], [[False], [True]])


def test_loss_and_score_gradients_agree_with_the_reference():
    weights, scores, (x, y) = normal(0), normal(2), data()
    sample, by_way = pull(weights, scores, x, y, KEY)
    kept = [np.asarray(m) for m in sample.values()]
    w, a, (x, y) = wide(weights), wide(scores), wide({"x": x, "y": y})
    for way, (_, how) in WAYS.items():
        value, found = by_way[way]
        expected = reference.loss(w, kept, x, y, rescale=how.get("rescale", False))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        gradients = reference.score_gradients(w, a, kept, x, y, **how)
        for name, gradient, m in zip(SHAPES, gradients, kept, strict=True):
            atol = 1e-5 * np.abs(gradient).max()
            np.testing.assert_allclose(found[name], gradient, rtol=1e-3, atol=atol)
            assert (gradient[~m] != 0).any()  # removed entries receive theirs
    assert pull._cache_size() == 1


@pytest.mark.parametrize("rescale", [False, True])
def test_the_reference_agrees_with_finite_differences(rescale):
    # Of the loss as a function of probabilities, taken at the sample.
    rng = np.random.default_rng(5)
    kept = [1.0 * (rng.random(s) < 0.5) for s in SHAPES.values()]
    w, a, (x, y) = wide(normal(0)), wide(normal(2)), map(np.float64, data())
    gradients = reference.score_gradients(w, a, kept, x, y, rescale=rescale)
    for leaf, at in [(0, (2, 3)), (0, (0, 0)), (1, (9, 2)), (1, (4, 1))]:
        p = reference.sigmoid(a[leaf][at])
        ends = []
        for move in (1e-6, -1e-6):
            moved = [m.copy() for m in kept]
            moved[leaf][at] += move * p * (1 - p)
            ends.append(reference.loss(w, moved, x, y, rescale=rescale))
        slope = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(gradients[leaf][at], slope, rtol=1e-4, atol=1e-6)


def test_scores_move_as_those_of_a_plain_transcription_to_the_bit():
    weights, scores, (x, y) = normal(0), normal(2), data()
    optimizer, keys = optax.adam(0.05), jax.random.split(KEY, 20)

    def objective(scores, key):
        return loss(masking.apply(weights, supermask.soft_mask(scores, key=key)), x, y)

    @jax.jit
    def train(scores):
        def step(carry, key):
            scores, opt_state = carry
            updates, opt_state = optimizer.update(
                jax.grad(objective)(scores, key), opt_state
            )
            return (optax.apply_updates(scores, updates), opt_state), None

        return jax.lax.scan(step, (scores, optimizer.init(scores)), keys)[0][0]

    plain = functools.partial(reference.train, loss, weights, keys=keys, rate=0.05)
    with jax.numpy_dtype_promotion("standard"):  # as optax's Adam needs it
        found, expected = train(scores), jax.jit(plain)(scores, x, y)
    for name in SHAPES:
        assert np.asarray(found[name]).tobytes() == np.asarray(expected[name]).tobytes()
    assert loops.differ(found, scores)


@pytest.mark.parametrize("loop", loops.LOOPS)
def test_any_training_loop_works(loop):
    weights, _ = loops.drawn()
    scores = jax.tree.map(lambda w: w if w.ndim == 2 else None, weights)

    def soft_mask(scores, guess, key):
        return supermask.soft_mask(scores, key=key), guess

    loops.trains(loop, loops.Rule(scores, (), soft_mask))


@pytest.mark.parametrize("rounded", [0.0, 0.5, 1.0])
def test_samples_have_the_probabilities_of_the_scores(rounded):
    scores = np.float32([[-30.0, -2.0, -0.5, 0.0, 0.5, 3.0, 30.0]])
    keys = jax.random.split(KEY, 4000)
    drawn, sampled = samples({"w": scores}, keys, np.float32(rounded))
    drawn = np.asarray(drawn["w"])[:, 0]
    assert set(np.unique(drawn)) <= {0.0, 1.0}
    p = reference.sigmoid(scores.astype(np.float64).ravel())
    p = (1 - rounded) * p + rounded * (p >= 0.5)
    bound = 5 * np.sqrt(p * (1 - p) / len(keys))
    assert (np.abs(drawn.mean(0) - p) <= bound + 1e-9).all()
    # Entries are drawn independently: no two of them agree more often than by chance.
    if rounded < 1:
        together = np.corrcoef(drawn[:, 1:-1].T)[np.triu_indices(5, 1)]
        together = together[np.isfinite(together)]  # some have always the same value
        assert np.abs(together).max() < 5 / np.sqrt(len(keys))
    if not rounded:  # the same sample for the same key
        np.testing.assert_array_equal(drawn, np.asarray(sampled["w"])[:, 0] * 1.0)
    assert samples._cache_size() == 1


def test_soft_and_rounded_masks_of_one_key():
    scores = {"w": np.linspace(-1, 1, 12, dtype="float32").reshape(3, 4), "b": None}

    @jax.jit
    def of(scores):
        ours = supermask.soft_mask(scores, key=KEY)
        theirs = estimator.bernoulli(scores, key=KEY)
        all_rounded = supermask.soft_mask(scores, rounded=1.0, key=KEY)
        return ours, theirs, all_rounded, supermask.mask(scores, key=None)

    ours, theirs, all_rounded, rounded = of(scores)
    trees.assert_same(ours, theirs)
    np.testing.assert_array_equal(rounded["w"], scores["w"] >= 0)  # one half keeps
    np.testing.assert_array_equal(all_rounded["w"], (scores["w"] >= 0) * 1.0)


@pytest.mark.parametrize("way", ["apply", "rescale"])
def test_outputs_of_samples_are_those_of_their_masks(way):
    masked, how = WAYS[way]
    weights, scores, (x, _) = normal(0), normal(2), data()

    def member(key):
        return network(masked(weights, supermask.mask(scores, key=key)), x)

    keys = jax.random.split(KEY, 3)
    out = np.asarray(jax.jit(lambda keys: stacking.map(member, keys))(keys))
    stack = jax.jit(jax.vmap(lambda key: supermask.mask(scores, key=key)))(keys)
    for i in range(3):
        kept = [np.asarray(m)[i] for m in stack.values()]
        expected, _, _ = reference.forward(wide(weights), kept, np.float64(x), **how)
        np.testing.assert_allclose(out[i], expected, rtol=1e-3, atol=1e-4)


def test_density_is_the_mean_probability_of_all_entries():
    scores = normal(2)
    p = np.concatenate([reference.sigmoid(a).ravel() for a in wide(scores)])
    np.testing.assert_allclose(jax.jit(supermask.density)(scores), p.mean(), rtol=1e-5)
    # Shared decisions count as often as they have weights, others do not count.
    weights = {"w": np.ones((4, 2)), "v": np.ones((2, 2)), "b": np.ones(2)}
    shared = {
        "w": np.full((1, 2), -np.log(3), "float32"),
        "v": jnp.asarray(np.zeros((2, 2)), "bfloat16"),
        "b": None,
    }
    found = jax.jit(lambda s: supermask.density(s, weights))(shared)
    np.testing.assert_allclose(found, (8 * 0.25 + 4 * 0.5) / 12, rtol=1e-6)


def test_scores_begin_at_zero_where_a_mask_is_carried():
    weights = {"w": jnp.asarray(np.ones((2, 3)), "bfloat16"), "b": np.ones(3, "f4")}
    scores = supermask.init(weights)
    trees.assert_same(scores, {"w": np.zeros((2, 3), jnp.bfloat16), "b": None})
    scores = jax.eval_shape(
        lambda w: supermask.init(w, where=where.matching("b")), weights
    )
    assert scores["w"] is None
    assert scores["b"].shape == (3,)


@pytest.mark.parametrize("way", ["apply", "rescale"])
def test_masks_of_random_weights_are_learned(way):
    # The paper's promise: random weights hold a network to be found. Seeds are mapped.
    masked, _ = WAYS[way]
    rng = np.random.default_rng(3)
    weights = {
        k: (rng.normal(size=(m, n)) * m**-0.5).astype("float32")
        for k, (m, n) in {"a": (8, 32), "b": (32, 2)}.items()
    }
    if way == "rescale":
        weights = {k: np.copysign(w.std(), w) for k, w in weights.items()}
    hidden = jax.tree.map(lambda w: rng.random(w.shape) < 0.5, weights)
    x = rng.normal(size=(128, 8)).astype("float32")
    optimizer = optax.sgd(30.0, momentum=0.9)

    @jax.jit
    def train(key):
        y = network(masked(weights, hidden), x)

        def step(carry, key):
            def objective(scores):
                sample = supermask.soft_mask(scores, key=key)
                return loss(masked(weights, sample), x, y)

            scores, opt_state = carry
            value, gradients = jax.value_and_grad(objective)(scores)
            updates, opt_state = optimizer.update(gradients, opt_state)
            return (optax.apply_updates(scores, updates), opt_state), value

        def seed(key):
            start = supermask.init(weights)
            carry = start, optimizer.init(start)
            return jax.lax.scan(step, carry, jax.random.split(key, 200))[1]

        return jax.vmap(seed)(jax.random.split(key, 3))

    losses = np.asarray(train(KEY))
    assert (losses[:, -20:].mean(1) < 0.4 * losses[:, 0].mean()).all()
    assert len(set(losses[:, 0].tolist())) == 3


def test_vmap_over_seeds_is_one_of_each():
    scores = {k: np.stack([normal(i)[k] for i in range(3)]) for k in SHAPES}
    keys = [jax.random.key(i) for i in range(3)]
    mapped = jax.vmap(pull, in_axes=(None, 0, None, None, 0))
    found = mapped(normal(0), scores, *data(), jax.jit(jnp.stack)(keys))
    found = jax.tree.map(np.asarray, found)
    for i in range(3):
        one = pull(normal(0), normal(i), *data(), keys[i])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree(name):
    weights = trees.make(name)

    def of(weights):
        scores = supermask.init(weights)
        soft = supermask.soft_mask(scores, rounded=0.5, key=KEY)
        masks = [supermask.mask(scores, key=key) for key in (KEY, None)]
        return scores, soft, *masks, masking.rescale(weights, soft)

    scores, soft, *masks, params = jax.eval_shape(of, weights)
    leaves, treedef = jax.tree.flatten(weights)
    for w, s, m, k, r, p in zip(
        leaves, *map(treedef.flatten_up_to, (scores, soft, *masks, params)), strict=True
    ):
        assert (s is None) == (m is None) == (k is None) == (not where.kernels("", w))
        assert (p.shape, p.dtype) == (w.shape, w.dtype)
        if s is not None:
            assert (s.shape, s.dtype) == (m.shape, m.dtype) == (w.shape, w.dtype)
            assert (k.shape, k.dtype) == (r.shape, r.dtype) == (w.shape, bool)


# What is refused, in the name of the function that was called.

VERBS = {
    "soft_mask": lambda scores, key=KEY: supermask.soft_mask(scores, key=key),
    "mask": lambda scores, key=KEY: supermask.mask(scores, key=key),
    "density": lambda scores: supermask.density(scores),
}


@pytest.mark.parametrize("verb", VERBS)
def test_scores_are_floating(verb):
    fn = f"`maskjax.recipes.supermask.{verb}` needs"
    bad = {"w": np.ones((2, 3), bool), "v": np.ones((2, 3), "int32"), "b": None}
    with pytest.raises(TypeError, match=rf"{fn} .*`scores` .*\n  v: int32.*\n  w: boo"):
        VERBS[verb](bad)
    with pytest.raises(TypeError, match=rf"{fn} .*\n  w: int 3"):
        VERBS[verb]({"w": 3})
    with pytest.raises(
        ValueError, match=f"{fn} `scores` with at least one leaf, got n"
    ):
        VERBS[verb]({"w": None})


@pytest.mark.parametrize("verb", ["mask", "soft_mask"])
def test_a_key_is_a_typed_key(verb):
    fn = f"`maskjax.recipes.supermask.{verb}`"
    for key in (np.zeros(2, "uint32"), 0):
        with pytest.raises(TypeError, match=f"{fn} needs `key` as a typed key"):
            VERBS[verb](normal(0), key)
    with pytest.raises(ValueError, match=f"{fn} needs `key` as a single key"):
        VERBS[verb](normal(0), jax.random.split(KEY, 3))


@pytest.mark.parametrize(
    ("rounded", "kind"), [(1.1, ValueError), (-0.1, ValueError), (True, TypeError)]
)
def test_a_fraction_of_rounded_entries_lies_between_0_and_1(rounded, kind):
    needs = "`maskjax.recipes.supermask.soft_mask` needs `rounded`"
    with pytest.raises(kind, match=needs):
        supermask.soft_mask(normal(0), rounded=rounded, key=KEY)


def test_weights_and_scores_fit():
    weights = {"w": np.ones((2, 3), "float32"), "v": np.ones((2, 3), "float32")}
    fn = "`maskjax.recipes.supermask.density`"
    for scores, complaint in [
        (
            {"w": np.ones((3, 2), "f4"), "v": None},
            r"\n  w: scores \(3, 2\), params \(2",
        ),
        ({"w": np.ones((2, 3), "f4")}, r"same structure, got:\n  only in `params`: v"),
        ({"w": None, "v": None, "u": np.ones(1, "f4")}, r"only in `scores`: u"),
    ]:
        with pytest.raises(ValueError, match=rf"(?s){fn} .*{complaint}"):
            supermask.density(scores, weights)
    wrong = {"w": None, "v": np.ones((3, 2), "f4")}
    with pytest.raises(ValueError, match=r"\n  v: mask \(3, 2\), params \(2, 3\)"):
        jax.eval_shape(
            lambda: maskjax.apply(weights, supermask.soft_mask(wrong, key=KEY))
        )
    fn = "`maskjax.recipes.supermask.init`"
    with pytest.raises(ValueError, match=f"{fn} needs `where` to choose at least one"):
        supermask.init({"b": np.ones(3, "float32")})
    with pytest.raises(TypeError, match=rf"{fn} needs .*\n  n: int32"):
        supermask.init({"n": np.ones((2, 2), "int32")}, where=where.everything)
