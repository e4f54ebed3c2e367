"""Learned supermasks: by hand, against NumPy, and what the paper promises."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import estimator, initializer, masking, where
from maskjax.recipes import supermask
from tests import trees
from tests.reference import supermask as reference

pytestmark = pytest.mark.optimized

SHAPES = {"a": (6, 10), "b": (10, 8), "c": (8, 3)}
RATE = 0.5
KEY = jax.random.key(11)
FIXED = functools.partial(masking.rescale, through_count=False)
WAYS = {
    "apply": (masking.apply, {}),
    "rescale": (masking.rescale, {"rescale": True}),
    "rescale, not through the count": (
        FIXED,
        {"rescale": True, "through_count": False},
    ),
}


def network(params, x):
    *hidden, last = params.values()
    for w in hidden:
        x = jax.nn.relu(x @ w)
    return x @ last


def loss(params, x, y):
    return jnp.mean((network(params, x) - y) ** 2)


@jax.jit
def sample(state, key):
    return supermask.mask(state, key=key)


def wide(tree):
    return [np.asarray(x).astype(np.float64) for x in tree.values()]


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s), "float32") for k, s in SHAPES.items()}


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(16, 6)), rng.normal(size=(16, 3))
    return jnp.asarray(x, "float32"), jnp.asarray(y, "float32")


@pytest.fixture
def state(weights):
    """Logits of all sizes and signs."""
    rng = np.random.default_rng(2)
    logits = {k: jnp.asarray(rng.normal(size=s), "float32") for k, s in SHAPES.items()}
    return supermask.init(weights, optax.sgd(RATE), logits=logits)


def codes(state, keys, **how):
    """Samples [N, n] that steps draw of the mask of a single leaf "w", n < 24."""
    n = state.weights["w"].size
    powers = np.float32(2) ** np.arange(n).reshape(state.weights["w"].shape)
    state = state._replace(weights={"w": jnp.asarray(powers, "float32")})

    def drawn(key):
        total = lambda params: jnp.sum(params["w"])  # noqa: E731
        return supermask.step(state, total, optax.sgd(0.0), key=key, **how)[1]

    values = np.asarray(jax.jit(jax.vmap(drawn))(keys)).astype(int)
    return values[:, None] >> np.arange(n) & 1


def test_a_step_by_hand():
    # Two inputs, one output; the sample keeps the first weight only.
    #   out = 2 * 1 = 2, loss = (2 - 1)^2 = 1, dL/dout = 2 * (2 - 1) = 2
    #   dL/dm = 2 * x * w = (2 * 1 * 2, 2 * 3 * -1) = (4, -6)
    #   sigma(1 - sigma): 1/4 at logit 0; 3/16 at log(3), where sigma is 3/4
    # and after a step of 0.5: a_0 = 0 - 0.5 * 4 / 4 = -0.5,
    #                          a_1 = log(3) + 0.5 * 6 * 3 / 16 = log(3) + 0.5625.
    sgd = optax.sgd(0.5)
    weights = {"w": jnp.array([[2.0], [-1.0]])}
    logits = {"w": jnp.array([[0.0], [np.log(3)]], "float32")}
    state = supermask.init(weights, sgd, logits=logits)
    x, y = jnp.array([[1.0, 3.0]]), jnp.array([[1.0]])
    drawn = {}
    for i in range(50):
        kept = supermask.mask(state, key=jax.random.key(i))["w"].ravel()
        drawn[tuple(np.asarray(kept).tolist())] = jax.random.key(i)
    assert len(drawn) == 4

    after, value = supermask.step(state, loss, sgd, x, y, key=drawn[True, False])

    assert value == 1
    expected = [[-0.5], [np.log(3) + 0.5625]]
    np.testing.assert_allclose(after.logits["w"], expected, rtol=1e-6)
    np.testing.assert_array_equal(after.weights["w"], [[2.0], [-1.0]])
    # Rescaled the one weight counts twice: out = 4, loss = 9.
    rescaled = functools.partial(supermask.step, masked=masking.rescale)
    assert rescaled(state, loss, sgd, x, y, key=drawn[True, False])[1] == 9
    np.testing.assert_array_equal(
        supermask.mask(after, key=None)["w"], [[False], [True]]
    )
    np.testing.assert_array_equal(
        supermask.predict(network, after, x, key=None), [[-3.0]]
    )
    np.testing.assert_array_equal(
        supermask.predict(network, after, x, masked=masking.rescale, key=None), [[-6.0]]
    )


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_logit_gradients_agree_with_the_reference(way, state, data):
    masked, how = WAYS[way]
    after, value = jax.jit(
        lambda s: supermask.step(
            s, loss, optax.sgd(RATE), *data, masked=masked, key=KEY
        )
    )(state)
    kept = [np.asarray(m) for m in sample(state, KEY).values()]
    w, a = wide(state.weights), wide(state.logits)
    x, y = (np.asarray(d).astype(np.float64) for d in data)
    rescale = how.get("rescale", False)
    expected = reference.loss(w, kept, x, y, rescale=rescale)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gradients = reference.logit_gradients(w, a, kept, x, y, **how)
    for name, gradient, m in zip(SHAPES, gradients, kept, strict=True):
        step = (state.logits[name] - after.logits[name]) / RATE
        largest = np.abs(gradient).max()
        np.testing.assert_allclose(step, gradient, rtol=1e-3, atol=1e-5 * largest)
        assert (gradient[~m] != 0).any()  # removed entries receive theirs


@pytest.mark.parametrize("rescale", [False, True])
def test_the_reference_agrees_with_finite_differences(rescale, state, data):
    # Of the loss as a function of probabilities, taken at the sample.
    kept = [np.asarray(m) * 1.0 for m in sample(state, KEY).values()]
    w, a = wide(state.weights), wide(state.logits)
    x, y = (np.asarray(d).astype(np.float64) for d in data)
    gradients = reference.logit_gradients(w, a, kept, x, y, rescale=rescale)
    for leaf, at in [(0, (2, 3)), (1, (0, 0)), (1, (9, 7)), (2, (4, 1))]:
        p = reference.sigmoid(a[leaf][at])
        ends = []
        for move in (1e-6, -1e-6):
            moved = [m.copy() for m in kept]
            moved[leaf][at] += move * p * (1 - p)
            ends.append(reference.loss(w, moved, x, y, rescale=rescale))
        slope = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(gradients[leaf][at], slope, rtol=1e-4, atol=1e-6)


def test_samples_are_those_of_the_estimator(state, data):
    def through(logits):
        sample = estimator.bernoulli(logits, key=KEY)
        return loss(masking.apply(state.weights, sample), *data)

    value, gradients = jax.jit(jax.value_and_grad(through))(state.logits)
    after, same = jax.jit(
        lambda s: supermask.step(s, loss, optax.sgd(RATE), *data, key=KEY)
    )(state)
    np.testing.assert_allclose(same, value, rtol=1e-6)
    for name in SHAPES:
        step = (state.logits[name] - after.logits[name]) / RATE
        np.testing.assert_allclose(step, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rounded", [0.0, 0.5, 1.0])
def test_samples_have_the_probabilities_of_the_logits(rounded):
    logits = jnp.array([[-30.0, -2.0, -0.5, 0.0, 0.5, 3.0, 30.0]])
    weights = {"w": jnp.ones(logits.shape)}
    state = supermask.init(weights, optax.sgd(0.0), logits={"w": logits})
    p = reference.sigmoid(np.asarray(logits).astype(np.float64).ravel())
    p = (1 - rounded) * p + rounded * (p >= 0.5)
    samples = codes(state, jax.random.split(KEY, 4000), rounded=jnp.float32(rounded))
    bound = 5 * np.sqrt(p * (1 - p) / len(samples))
    assert (np.abs(samples.mean(0) - p) <= bound + 1e-9).all()
    # Entries are drawn independently: no two of them agree more often than by chance.
    if rounded < 1:
        together = np.corrcoef(samples[:, 1:-1].T)[np.triu_indices(5, 1)]
        together = together[np.isfinite(together)]  # some have always the same value
        assert np.abs(together).max() < 5 / np.sqrt(len(samples))


def test_a_step_draws_what_mask_draws(state):
    logits = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4)}
    state = supermask.init({"w": jnp.ones((3, 4))}, optax.sgd(0.0), logits=logits)
    keys = jax.random.split(KEY, 5)
    kept = jax.vmap(lambda key: supermask.mask(state, key=key))(keys)["w"]
    np.testing.assert_array_equal(codes(state, keys), kept.reshape(5, -1))
    assert len(np.unique(kept.reshape(5, -1), axis=0)) == 5
    rounded = supermask.mask(state, key=None)["w"]
    np.testing.assert_array_equal(rounded, logits["w"] >= 0)
    np.testing.assert_array_equal(
        codes(state, keys, rounded=1.0), np.tile(rounded.ravel(), (5, 1))
    )


@pytest.mark.parametrize("way", ["apply", "rescale"])
def test_predict_is_the_network_under_samples_or_the_rounded_mask(way, state, data):
    masked, how = WAYS[way]
    x = np.asarray(data[0]).astype(np.float64)
    predict = functools.partial(supermask.predict, network, masked=masked)
    out = jax.jit(lambda s, x: predict(s, x, samples=3, key=KEY))(state, data[0])
    assert out.shape == (3, 16, 3)
    for row, key in zip(out, jax.random.split(KEY, 3), strict=True):
        kept = [np.asarray(m) for m in sample(state, key).values()]
        expected, _, _ = reference.forward(wide(state.weights), kept, x, **how)
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-4)
    kept = [a >= 0 for a in wide(state.logits)]
    expected, _, _ = reference.forward(wide(state.weights), kept, x, **how)
    out = predict(state, data[0], key=None)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)


def test_density_is_the_mean_probability_of_all_entries(state):
    p = np.concatenate([reference.sigmoid(a).ravel() for a in wide(state.logits)])
    np.testing.assert_allclose(jax.jit(supermask.density)(state), p.mean(), rtol=1e-5)
    # Shared decisions count as often as they have weights, others do not count.
    state = supermask.init(
        {"w": jnp.ones((4, 2)), "v": jnp.ones((2, 2)), "b": jnp.ones(2)},
        optax.sgd(0.1),
        logits={
            "w": jnp.array([[-np.log(3), -np.log(3)]], "float32"),
            "v": jnp.zeros((2, 2), "bfloat16"),
            "b": None,
        },
    )
    np.testing.assert_allclose(
        supermask.density(state), (8 * 0.25 + 4 * 0.5) / 12, rtol=1e-6
    )
    assert supermask.mask(state, key=KEY)["w"].shape == (1, 2)


def test_logits_begin_at_zero_where_a_mask_is_carried():
    weights = {"w": jnp.ones((2, 3), "bfloat16"), "b": jnp.ones(3)}
    state = supermask.init(weights, optax.sgd(0.1))
    trees.assert_same(state.logits, {"w": jnp.zeros((2, 3), "bfloat16"), "b": None})
    assert supermask.density(state) == 0.5
    state = supermask.init(weights, optax.sgd(0.1), where=where.matching("b"))
    assert state.logits["w"] is None
    # At one half a rounded mask keeps.
    np.testing.assert_array_equal(supermask.mask(state, key=None)["b"], [True] * 3)


@pytest.mark.parametrize("way", ["apply", "rescale"])
def test_masks_are_learned_while_weights_stay_to_the_bit(way):
    # The paper's promise: random weights hold a network to be found. Seeds are mapped.
    masked, _ = WAYS[way]
    rng = np.random.default_rng(3)
    weights = {
        k: jnp.asarray(rng.normal(size=(m, n)) * m**-0.5, "float32")
        for k, (m, n) in {"a": (8, 32), "b": (32, 2)}.items()
    }
    if way == "rescale":
        weights = initializer.signed_deviation(weights)
    hidden = jax.tree.map(lambda w: jnp.asarray(rng.random(w.shape) < 0.5), weights)
    x = jnp.asarray(rng.normal(size=(128, 8)), "float32")
    y = network(masked(weights, hidden), x)
    before = jax.tree.map(np.array, weights)
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-5), optax.sgd(30.0, momentum=0.9)
    )

    @jax.jit
    def train(state, key):
        def step(state, key):
            return supermask.step(state, loss, optimizer, x, y, masked=masked, key=key)

        def seed(key):
            return jax.lax.scan(step, state, jax.random.split(key, 200))

        return jax.vmap(seed)(jax.random.split(key, 3))

    states, losses = train(supermask.init(weights, optimizer), KEY)
    assert (losses[:, -20:].mean(1) < 0.4 * losses[:, 0].mean()).all()
    for name, w in before.items():
        for copy in np.asarray(states.weights[name]):
            assert copy.tobytes() == w.tobytes()


def test_vmap_over_seeds_is_a_loop(weights, data):
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def train(key):
        def step(state, key):
            return supermask.step(state, loss, optimizer, *data, key=key)

        state = supermask.init(weights, optimizer)
        return jax.lax.scan(step, state, jax.random.split(key, 5))

    keys = jax.random.split(jax.random.key(0), 3)
    states, losses = jax.vmap(train)(keys)
    for i in range(3):
        state, expected = train(keys[i])
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)
        for name in SHAPES:
            np.testing.assert_allclose(
                states.logits[name][i], state.logits[name], rtol=1e-3, atol=1e-5
            )
    assert len(set(np.asarray(losses[:, 0]).tolist())) == 3


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_can_be_searched(name):
    weights, sgd = trees.make(name), optax.sgd(0.1)
    state = supermask.init(weights, sgd)

    def total(params):
        return sum(x.sum() for x in jax.tree.leaves(params) if x.dtype == jnp.float32)

    @jax.jit
    def step(state, key, rounded):
        how = {"masked": masking.rescale, "rounded": rounded}
        return supermask.step(state, total, sgd, key=key, **how)

    after, _ = step(state, KEY, jnp.float32(0.0))
    after, value = step(after, jax.random.key(2), jnp.float32(0.5))
    assert jnp.isfinite(value)
    trees.assert_same(after.weights, weights)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert step._cache_size() == 1


# What is refused.


@pytest.mark.parametrize(
    ("logits", "complaint"),
    [
        (
            {"w": jnp.ones((3, 2)), "v": None},
            r"\n  w: logits \(3, 2\), weights \(2, 3\)",
        ),
        ({"w": jnp.ones((2, 3))}, r"same structure, got:\n  only in `weights`: v"),
        ({"w": None, "v": None, "u": jnp.ones(1)}, r"only in `logits`: u"),
        ({"w": None, "v": None}, r"needs `logits` with at least one leaf, got none"),
    ],
)
def test_logits_fit_the_weights(logits, complaint):
    weights = {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 3))}
    fn = "`maskjax.recipes.supermask.init`"
    with pytest.raises(ValueError, match=rf"(?s){fn} .*{complaint}"):
        supermask.init(weights, optax.sgd(0.1), logits=logits)


def test_logits_are_floating():
    weights = {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 3))}
    logits = {"w": jnp.ones((2, 3), bool), "v": jnp.ones((2, 3), "int32")}
    with pytest.raises(TypeError, match=r"(?s)`logits` .*\n  v: int32 .*\n  w: bool"):
        supermask.init(weights, optax.sgd(0.1), logits=logits)
    with pytest.raises(TypeError, match=r"to be an array or None, got:\n  w: int 3"):
        supermask.init(weights, optax.sgd(0.1), logits={"w": 3, "v": None})


def test_something_is_chosen():
    with pytest.raises(ValueError, match=r"init` needs `where` to choose at least one"):
        supermask.init({"b": jnp.ones(3)}, optax.sgd(0.1))


def test_logits_that_were_replaced_are_looked_at_too(state, data):
    wrong = state._replace(logits={**state.logits, "b": jnp.ones((8, 10))})
    verbs = (
        lambda: supermask.step(wrong, loss, optax.sgd(RATE), *data, key=KEY),
        lambda: supermask.predict(network, wrong, data[0], key=KEY),
    )
    for verb in verbs:
        complaint = r"\n  b: mask \(8, 10\), params \(10, 8\)"
        with pytest.raises(ValueError, match=complaint):
            jax.eval_shape(verb)


@pytest.mark.parametrize("verb", ["mask", "step", "predict"])
def test_a_key_is_a_typed_key(verb, state, data):
    calls = {
        "mask": lambda key: supermask.mask(state, key=key),
        "step": lambda key: supermask.step(
            state, loss, optax.sgd(RATE), *data, key=key
        ),
        "predict": lambda key: supermask.predict(network, state, data[0], key=key),
    }
    fn = f"`maskjax.recipes.supermask.{verb}`"
    for key in (jax.random.PRNGKey(0), 0):
        with pytest.raises(TypeError, match=f"{fn} needs `key` as a typed key"):
            calls[verb](key)
    with pytest.raises(ValueError, match=f"{fn} needs `key` as a single key"):
        calls[verb](jax.random.split(KEY, 3))


@pytest.mark.parametrize(
    ("rounded", "kind"), [(1.1, ValueError), (-0.1, ValueError), (True, TypeError)]
)
def test_a_fraction_of_rounded_entries_lies_between_0_and_1(rounded, kind, state, data):
    needs = re.escape("`maskjax.recipes.supermask.step` needs `rounded`")
    with pytest.raises(kind, match=needs):
        supermask.step(state, loss, optax.sgd(RATE), *data, rounded=rounded, key=KEY)


# Signed constants.


@pytest.mark.parametrize("dtype", trees.DTYPES)
def test_signed_deviations_have_signs_and_deviations_of_what_was_drawn(dtype):
    params = trees.make("nested_dict", dtype)
    out = jax.jit(initializer.signed_deviation)(params)
    assert jax.tree.structure(out) == jax.tree.structure(params)
    for old, new in trees.pairs(params, out):
        assert new.dtype == dtype
        if old.ndim < 2:
            np.testing.assert_array_equal(trees.to_numpy(new), old)
            continue
        expected = np.copysign(np.std(old.astype(np.float64)), old)
        rtol = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
        np.testing.assert_allclose(trees.to_numpy(new), expected, rtol=rtol)
        assert len(np.unique(trees.to_numpy(new))) == 2


def test_signed_deviations_need_floating_leaves_to_be_chosen():
    fn = "`maskjax.initializer.signed_deviation`"
    params = {"n": jnp.ones((2, 3), "int32"), "b": jnp.ones(3)}
    with pytest.raises(TypeError, match=rf"{fn} .*floating.*\n  n: int32"):
        initializer.signed_deviation(params, where=where.everything)
    with pytest.raises(ValueError, match=f"{fn} needs `where` to choose at least one"):
        initializer.signed_deviation({"b": jnp.ones(3)})


@pytest.mark.parametrize("samples", [0, -1])
def test_there_is_at_least_one_sample(samples):
    state = supermask.init({"w": jnp.ones((4, 1))}, optax.sgd(1.0))
    with pytest.raises(ValueError, match=f"`samples` of at least 1, got {samples}"):
        supermask.predict(
            lambda params: params["w"], state, samples=samples, key=jax.random.key(0)
        )
