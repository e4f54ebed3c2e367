"""Edge-popup: by hand, against NumPy, and what the paper promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import allocation, estimator, initializer, where
from maskjax.recipes import edge_popup
from tests import trees
from tests.recipes import loops
from tests.reference import edge_popup as reference
from tests.reference.selection import quota

SHAPES = {"a": (6, 10), "b": (10, 3)}
KEY = jax.random.key(1)
over_scopes = pytest.mark.parametrize("scope", ["leaf", "global"])


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


@functools.partial(jax.jit, static_argnames="scope")
def choose(scores, density, guess, *, scope="leaf"):
    how = {"density": density, "scope": scope, "guess": guess}
    return edge_popup.mask(scores, **how, return_cutoff=True)


@functools.partial(jax.jit, static_argnames="scope")
def pull(weights, scores, density, x, y, *, scope="leaf"):
    """The soft mask, where it cut, the loss and its gradient by the scores."""

    def objective(scores):
        how = {"density": density, "scope": scope, "return_cutoff": True}
        soft, cutoffs = edge_popup.soft_mask(scores, **how)
        return loss(maskjax.apply(weights, soft), x, y), (soft, cutoffs)

    (value, aux), gradients = jax.value_and_grad(objective, has_aux=True)(scores)
    return *aux, value, gradients


def guess(value=0.0):
    return {name: np.float32(value) for name in SHAPES}


def test_a_step_by_hand():
    # Two inputs, one output, one of two weights kept: the first, as |-0.3| > |0.2|.
    #   out = 2 * 1 = 2, loss = (2 - 1)^2 = 1, dL/dout = 2 * (2 - 1) = 2
    #   dL/ds_0 = 2 * x_0 * w_0 * sign(-0.3) = 2 * 1 * 2 * -1 = -4
    #   dL/ds_1 = 2 * x_1 * w_1 * sign(0.2) = 2 * 3 * -1 * 1 = -6
    # and after a step of 0.1: s_0 = -0.3 + 0.4 = 0.1, s_1 = 0.2 + 0.6 = 0.8.
    weights, x = {"w": np.float32([[2.0], [-1.0]])}, np.float32([[1.0, 3.0]])

    @jax.jit
    def step(scores):
        def objective(scores):
            soft = edge_popup.soft_mask(scores, density=0.5)
            return ((x @ maskjax.apply(weights, soft)["w"] - 1) ** 2).sum()

        value, gradients = jax.value_and_grad(objective)(scores)
        after = jax.tree.map(lambda s, g: s - 0.1 * g, scores, gradients)
        kept = edge_popup.mask(scores, density=0.5), edge_popup.mask(after, density=0.5)
        return value, after, kept

    value, after, (before, kept) = step({"w": np.float32([[-0.3], [0.2]])})
    assert value == 1
    np.testing.assert_allclose(after["w"], [[0.1], [0.8]], rtol=1e-6)
    np.testing.assert_array_equal(before["w"], [[True], [False]])
    np.testing.assert_array_equal(kept["w"], [[False], [True]])


@over_scopes
def test_masks_and_score_gradients_agree_with_the_reference(scope):
    weights, scores, (x, y) = normal(0), normal(1), data()
    for density in (0.3, 0.5, 0.0, 1.0):
        share = np.float32(density)
        soft, cutoffs, value, gradients = pull(
            weights, scores, share, x, y, scope=scope
        )
        kept = reference.masks(wide(scores), density, scope=scope)
        expected = reference.loss_and_score_gradients(
            wide(weights), wide(scores), kept, *wide({"x": x, "y": y})
        )
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        hard, _ = choose(scores, share, guess(), scope=scope)
        for name, gradient, m in zip(SHAPES, expected[1], kept, strict=True):
            np.testing.assert_allclose(gradients[name], gradient, rtol=1e-3, atol=1e-5)
            assert density in (0, 1) or (gradient[~m] != 0).any()  # removed ones too
            np.testing.assert_array_equal(hard[name], m)
            np.testing.assert_array_equal(soft[name], m.astype("float32"))
            size = np.abs(scores[name])
            assert size[~m].max(initial=-np.inf) <= cutoffs[name]
            assert size[m].min(initial=np.inf) >= cutoffs[name]
    assert pull._cache_size() <= 2
    assert choose._cache_size() <= 2


@over_scopes
def test_scores_move_as_those_of_a_plain_transcription_to_the_bit(scope):
    # The user's loop, with the guess in the loss's aux, which changes nothing.
    weights, scores, (x, y) = normal(0), normal(1), data()
    optimizer = optax.adam(0.05)

    def objective(scores, guess):
        how = {"density": 0.3, "scope": scope, "guess": guess, "return_cutoff": True}
        soft, guess = edge_popup.soft_mask(scores, **how)
        return loss(maskjax.apply(weights, soft), x, y), guess

    @jax.jit
    def train(scores):
        def step(carry, _):
            scores, opt_state, guess = carry
            gradients, guess = jax.grad(objective, has_aux=True)(scores, guess)
            updates, opt_state = optimizer.update(gradients, opt_state)
            return (optax.apply_updates(scores, updates), opt_state, guess), None

        carry = scores, optimizer.init(scores), guess()
        return jax.lax.scan(step, carry, length=20)[0][0]

    how = {"density": 0.3, "scope": scope, "rate": 0.05, "steps": 20}
    plain = jax.jit(lambda s: reference.train(loss, weights, s, x, y, **how))
    with jax.numpy_dtype_promotion("standard"):  # as optax's Adam needs it
        found, expected = train(scores), plain(scores)
    share = np.float32(0.3)
    masks = [choose(s, share, guess(), scope=scope)[0] for s in (scores, found)]
    assert loops.differ(*masks)
    for name in SHAPES:
        assert np.asarray(found[name]).tobytes() == np.asarray(expected[name]).tobytes()


@pytest.mark.parametrize("loop", loops.LOOPS)
def test_any_training_loop_works(loop):
    weights, _ = loops.drawn()
    scores = jax.tree.map(lambda w: 1 / w if w.ndim == 2 else None, weights)
    cutoffs = jax.tree.map(lambda s: jnp.float32(0.0), scores)

    def soft_mask(scores, guess, key):
        del key
        how = {"density": 0.5, "guess": guess, "return_cutoff": True}
        return edge_popup.soft_mask(scores, **how)

    loops.trains(loop, loops.Rule(scores, cutoffs, soft_mask))


@over_scopes
def test_ties_signs_guesses_and_increasing_transforms(scope):
    scores, share = normal(1), np.float32(0.4)
    kept, _ = choose(scores, share, guess(), scope=scope)
    sizes = [x.size for x in scores.values()]
    assert sum(m.sum() for m in map(np.asarray, kept.values())) == quota(
        0.4, sum(sizes)
    )
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), max(sizes))
    changed = {
        k: np.tanh(s) * 3 * signs[: s.size].reshape(s.shape) for k, s in scores.items()
    }
    trees.assert_same(choose(changed, share, guess(), scope=scope)[0], kept)
    for wrong in (np.nan, 1e9, 0.5):
        trees.assert_same(choose(scores, share, guess(wrong), scope=scope)[0], kept)
    equal = {k: np.full_like(s, -0.25) for k, s in scores.items()}
    kept, _ = choose(equal, share, guess(), scope=scope)
    flat = np.concatenate([np.ravel(m) for m in kept.values()])
    if scope == "global":
        np.testing.assert_array_equal(flat, np.arange(90) < quota(0.4, 90))
    else:
        first = np.arange(60) < quota(0.4, 60), np.arange(30) < quota(0.4, 30)
        np.testing.assert_array_equal(flat, np.concatenate(first))


@over_scopes
def test_what_a_selection_has_cut_can_be_frozen(scope):
    # A composition: thresholds that stay let the density float, and search nothing.
    scores = normal(1)
    kept, cutoffs = choose(scores, np.float32(0.3), guess(), scope=scope)

    def frozen(scores):
        return estimator.threshold(jax.tree.map(jnp.abs, scores), at=cutoffs)

    total = lambda s: sum(m.sum() for m in frozen(s).values())  # noqa: E731
    assert "while" not in str(jax.make_jaxpr(frozen)(scores))
    soft, gradients = jax.jit(lambda s: (frozen(s), jax.grad(total)(s)))(scores)
    for name, s in scores.items():
        np.testing.assert_array_equal(soft[name], np.asarray(kept[name]) * 1.0)
        np.testing.assert_array_equal(gradients[name], np.sign(s))


def test_density_may_differ_between_leaves():
    weights, scores = normal(0), normal(1)
    shares = allocation.erk(weights, density=0.4)
    assert len(set(shares.values())) > 1
    kept = jax.jit(lambda s: edge_popup.mask(s, density=shares))(scores)
    expected = reference.masks(wide(scores), list(shares.values()))
    for name, m in zip(SHAPES, expected, strict=True):
        np.testing.assert_array_equal(kept[name], m)
        assert m.sum() == quota(shares[name], m.size)


def test_vmap_over_seeds_is_one_of_each():
    scores = {k: np.stack([normal(i)[k] for i in range(3)]) for k in SHAPES}
    mapped = jax.vmap(pull, in_axes=(None, 0, None, None, None))
    found = mapped(normal(0), scores, np.float32(0.5), *data())
    found = jax.tree.map(np.asarray, found)
    for i in range(3):
        one = pull(normal(0), normal(i), np.float32(0.5), *data())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree(name):
    weights = trees.make(name)

    def of(weights):
        scores = edge_popup.init(weights, where=trees.WHERE, key=KEY)
        how = {"density": 0.5, "return_cutoff": True}
        return (
            scores,
            edge_popup.soft_mask(scores, **how),
            edge_popup.mask(scores, **how),
        )

    scores, (soft, cutoffs), (kept, _) = jax.eval_shape(of, weights)
    leaves, treedef = jax.tree.flatten(weights)
    others = map(treedef.flatten_up_to, (scores, soft, kept))
    for w, s, m, k in zip(leaves, *others, strict=True):
        assert (s is None) == (m is None) == (k is None) == (not where.kernels("", w))
        if s is not None:
            assert (s.shape, s.dtype) == (m.shape, m.dtype) == (w.shape, w.dtype)
            assert (k.shape, k.dtype) == (w.shape, bool)
    assert jax.tree.structure(cutoffs) == jax.tree.structure(scores)


def test_init_is_the_start_of_scores_where_the_predicate_chooses():
    weights, chosen = normal(0), where.matching("^a$")
    ours, theirs = jax.jit(
        lambda w: (
            edge_popup.init(w, where=chosen, key=KEY),
            initializer.scores(w, where=chosen, key=KEY),
        )
    )(weights)
    assert ours["b"] is None
    trees.assert_same(ours, theirs)


def test_before_training_the_mask_is_a_random_one():
    weights = normal(0)

    @jax.jit
    @jax.vmap
    def first(key):
        return edge_popup.mask(edge_popup.init(weights, key=key), density=0.3)

    masks = first(jax.random.split(KEY, 1000))
    for name, w in weights.items():
        kept, k = np.asarray(masks[name]), quota(0.3, w.size)
        assert (kept.sum((1, 2)) == k).all()
        bound = 5 * np.sqrt(k / w.size * (1 - k / w.size) / 1000)
        assert (np.abs(kept.mean(0) - k / w.size) < bound).all()


def test_where_one_edge_takes_the_place_of_another_the_loss_falls():
    # The paper's argument, for a neuron and plain steps: to first order the change is
    # dL/dI * (w Z of what enters - w Z of what leaves).
    x, y = np.float32([[1.0, -2.0, 0.5, 1.5, -1.0, 3.0]]), 0.7
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2000, 6, 1)).astype("float32") / 6**0.5
    scores = rng.uniform(-1, 1, (2000, 6, 1)).astype("float32") / 6**0.5

    @jax.jit
    @jax.vmap
    def one(w, s):
        def objective(s):
            kept = edge_popup.soft_mask({"w": s}, density=0.5)
            return jnp.sum((x @ maskjax.apply({"w": w}, kept)["w"] - y) ** 2)

        after = s - 0.02 * jax.grad(objective)(s)
        masks = [edge_popup.mask({"w": each}, density=0.5)["w"] for each in (s, after)]
        return after, *masks

    after, before, kept = map(np.asarray, one(weights, scores))
    slope = 2 * (x @ np.where(before, weights, 0) - y)
    edges = slope * weights * x.T
    change = np.where(kept & ~before, edges, 0) - np.where(before & ~kept, edges, 0)
    swaps = (kept & ~before).sum((1, 2)) == 1
    swaps &= (np.sign(scores) == np.sign(after)).all((1, 2))
    assert swaps.sum() > 100
    assert (change.sum((1, 2))[swaps] < 0).all()


# What is refused, in the name of the function that was called.


@pytest.mark.parametrize("verb", ["soft_mask", "mask"])
def test_bad_arguments_are_refused(verb):
    call, scores = getattr(edge_popup, verb), normal(1)
    fn = f"`maskjax.recipes.edge_popup.{verb}` needs "
    with pytest.raises(ValueError, match=rf"{fn}`density` in \[0, 1\], got 1.5"):
        call(scores, density=1.5)
    with pytest.raises(TypeError, match=f"{fn}`density` as a number"):
        call(scores, density="all")
    with pytest.raises(ValueError, match=f"{fn}.*(?s:.)*only in `scores`: b"):
        call(scores, density={"a": 0.5})
    with pytest.raises(ValueError, match=f"{fn}one `density` for scope="):
        call(scores, density={"a": 0.5, "b": 0.5}, scope="global")
    with pytest.raises(ValueError, match=f"{fn}`scope` as 'leaf' or .*, got 'la"):
        call(scores, density=0.5, scope="layers")
    with pytest.raises(ValueError, match=f"{fn}a scalar in `guess` .*\n  b: float32"):
        call(scores, density=0.5, guess={"a": 0.0, "b": np.ones(3, "float32")})
    with pytest.raises(TypeError, match=f"{fn}every leaf of `scores` .*\n  b: int32"):
        call({**scores, "b": np.ones((2, 2), "int32")}, density=0.5)
    with pytest.raises(ValueError, match=f"{fn}`scores` with at least one leaf"):
        call({"a": None}, density=0.5)


def test_bad_starts_are_refused():
    fn = "`maskjax.recipes.edge_popup.init` needs "
    weights = {"a": np.ones((2, 3), "float32"), "b": np.ones(3, "float32")}
    with pytest.raises(TypeError, match=f"{fn}`key` as a typed key"):
        edge_popup.init(weights, key=0)
    with pytest.raises(ValueError, match=f"(?s){fn}to know .*fan-in.*\n  b: shape"):
        edge_popup.init(weights, where=where.everything, key=KEY)
    with pytest.raises(ValueError, match=f"{fn}`where` to choose at least one leaf"):
        edge_popup.init({"b": weights["b"]}, key=KEY)
    with pytest.raises(TypeError, match=f"{fn}every leaf .*\n  n: int32"):
        edge_popup.init(
            {"n": np.ones((2, 2), "int32")}, where=where.everything, key=KEY
        )
