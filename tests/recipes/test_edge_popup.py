"""Edge-popup: by hand, against NumPy, and what the paper promises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from maskjax import allocation, initializer, masking, where
from maskjax.recipes import edge_popup
from tests import trees
from tests.reference import edge_popup as reference
from tests.reference import supermask as sampled_reference
from tests.reference.selection import quota

SHAPES = {"a": (6, 10), "b": (10, 8), "c": (8, 3)}
RATE = 0.5


def network(params, x):
    *hidden, last = params.values()
    for w in hidden:
        x = jax.nn.relu(x @ w)
    return x @ last


def loss(params, x, y):
    return jnp.mean((network(params, x) - y) ** 2)


def random_weights(*, seed=0):
    params = {k: jnp.zeros(s) for k, s in SHAPES.items()}
    init = initializer.signed_constant(0.5)
    return initializer.redraw(params, init, key=jax.random.key(seed))


@pytest.fixture
def weights():
    return random_weights()


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 6)), rng.normal(size=(16, 3))
    return jnp.asarray(x, "float32"), jnp.asarray(y, "float32")


@pytest.fixture
def state(weights):
    return edge_popup.init(weights, optax.sgd(RATE), key=jax.random.key(1))


def compiled_step(optimizer=None, *, scope="leaf"):
    optimizer = optimizer or optax.sgd(RATE)
    return jax.jit(
        lambda state, x, y, density: edge_popup.step(
            state, loss, optimizer, x, y, density=density, scope=scope
        )
    )


def wide(tree):
    return [np.asarray(x).astype(np.float64) for x in tree.values()]


def test_a_step_by_hand():
    # Two inputs, one output, one of two weights kept: the first, as |-0.3| > |0.2|.
    #   out = 2 * 1 = 2, loss = (2 - 1)^2 = 1, dL/dout = 2 * (2 - 1) = 2
    #   dL/ds_0 = 2 * x_0 * w_0 * sign(-0.3) = 2 * 1 * 2 * -1 = -4
    #   dL/ds_1 = 2 * x_1 * w_1 * sign(0.2) = 2 * 3 * -1 * 1 = -6
    # and after a step of 0.1: s_0 = -0.3 + 0.4 = 0.1, s_1 = 0.2 + 0.6 = 0.8.
    optimizer = optax.sgd(0.1)
    state = edge_popup.init(
        {"w": jnp.array([[2.0], [-1.0]])}, optimizer, key=jax.random.key(0)
    )
    state = state._replace(scores={"w": jnp.array([[-0.3], [0.2]])})
    x, y = jnp.array([[1.0, 3.0]]), jnp.array([[1.0]])
    kept = edge_popup.mask(state, density=0.5)["w"]
    np.testing.assert_array_equal(kept, [[True], [False]])

    state, value = edge_popup.step(state, loss, optimizer, x, y, density=0.5)

    assert value == 1
    np.testing.assert_allclose(state.scores["w"], [[0.1], [0.8]], rtol=1e-6)
    np.testing.assert_array_equal(state.weights["w"], [[2.0], [-1.0]])
    kept = edge_popup.mask(state, density=0.5)["w"]
    np.testing.assert_array_equal(kept, [[False], [True]])
    out = edge_popup.predict(network, state, x, density=0.5)
    np.testing.assert_array_equal(out, [[-3.0]])


@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_loss_and_score_gradients_agree_with_the_reference(density, scope, state, data):
    after, value = compiled_step(scope=scope)(state, *data, jnp.float32(density))
    expected, gradients = reference.loss_and_score_gradients(
        wide(state.weights),
        wide(state.scores),
        *map(np.asarray, data),
        density,
        scope=scope,
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    kept = reference.masks(wide(state.scores), density, scope=scope)
    for name, gradient, m in zip(SHAPES, gradients, kept, strict=True):
        step = (state.scores[name] - after.scores[name]) / RATE
        np.testing.assert_allclose(step, gradient, rtol=1e-3, atol=1e-5)
        assert (gradient[~m] != 0).any() or m.all()  # removed edges receive theirs


def test_training_agrees_with_the_reference(state, data):
    scores = reference.train(
        wide(state.weights),
        wide(state.scores),
        *(np.asarray(d).astype(np.float64) for d in data),
        0.5,
        learning_rate=RATE,
        steps=10,
    )
    step = compiled_step()
    for _ in range(10):
        state, _ = step(state, *data, jnp.float32(0.5))
    for name, expected in zip(SHAPES, scores, strict=True):
        np.testing.assert_allclose(state.scores[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_weights_never_change_and_counts_are_exact(scope, state, data):
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9)
    )
    state = edge_popup.init(state.weights, optimizer, key=jax.random.key(1))
    before = jax.tree.map(np.array, state.weights)
    step = compiled_step(optimizer, scope=scope)
    choose = jax.jit(lambda s: edge_popup.mask(s, density=0.3, scope=scope))
    first = choose(state)
    losses = []
    for _ in range(20):
        state, value = step(state, *data, jnp.float32(0.3))
        losses.append(float(value))
        kept = [int(m.sum()) for m in choose(state).values()]
        sizes = [w.size for w in state.weights.values()]
        if scope == "leaf":
            assert kept == [quota(0.3, n) for n in sizes]
        assert sum(kept) == quota(0.3, sum(sizes))
    trees.assert_same(state.weights, before)
    assert any((first[k] != m).any() for k, m in choose(state).items())
    assert losses[-1] < losses[0]
    assert step._cache_size() == 1
    assert choose._cache_size() == 1


def test_a_guess_carried_along_never_changes_the_mask(state, data):
    step = compiled_step()
    choose = jax.jit(lambda s: edge_popup.mask(s, density=0.5))
    for _ in range(3):
        state, _ = step(state, *data, jnp.float32(0.5))
        spoilt = state._replace(
            cutoffs=jax.tree.map(lambda c: jnp.full_like(c, jnp.nan), state.cutoffs)
        )
        trees.assert_same(choose(state), choose(spoilt))


def test_equal_scores_still_keep_an_exact_count(state):
    equal = jax.tree.map(lambda s: jnp.full_like(s, -0.25), state.scores)
    kept = edge_popup.mask(state._replace(scores=equal), density=0.3)
    for name, shape in SHAPES.items():
        k = quota(0.3, int(np.prod(shape)))
        np.testing.assert_array_equal(kept[name].ravel(), np.arange(np.prod(shape)) < k)


def test_signs_and_increasing_transforms_of_scores_do_not_matter(state):
    rng = np.random.default_rng(0)
    changed = jax.tree.map(
        lambda s: jnp.tanh(s) * 3 * jnp.asarray(rng.choice([-1.0, 1.0], s.shape), "f4"),
        state.scores,
    )
    trees.assert_same(
        edge_popup.mask(state, density=0.4),
        edge_popup.mask(state._replace(scores=changed), density=0.4),
    )


def test_a_density_of_one_is_the_dense_network(state, data):
    out = edge_popup.predict(network, state, data[0], density=1.0)
    np.testing.assert_array_equal(out, network(state.weights, data[0]))
    out = edge_popup.predict(network, state, data[0], density=0.0)
    np.testing.assert_array_equal(out, np.zeros((16, 3)))


def test_predict_is_the_network_under_the_mask(state, data):
    kept = reference.masks(wide(state.scores), 0.5)
    expected, _, _ = reference.forward(wide(state.weights), kept, np.asarray(data[0]))
    out = jax.jit(lambda s, x: edge_popup.predict(network, s, x, density=0.5))(
        state, data[0]
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_density_may_differ_between_leaves(state, data):
    shares = allocation.erk(state.weights, density=0.4)
    assert len(set(shares.values())) > 1
    state, _ = jax.jit(
        lambda s, x, y: edge_popup.step(s, loss, optax.sgd(RATE), x, y, density=shares)
    )(state, *data)
    kept = edge_popup.mask(state, density=shares)
    for name, w in state.weights.items():
        assert kept[name].sum() == quota(shares[name], w.size)


def test_vmap_over_seeds_is_a_loop(weights, data):
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def train(key):
        state = edge_popup.init(weights, optimizer, key=key)

        def step(state, _):
            return edge_popup.step(state, loss, optimizer, *data, density=0.5)

        return jax.lax.scan(step, state, length=5)

    keys = jax.random.split(jax.random.key(0), 3)
    states, losses = jax.vmap(train)(keys)
    for i in range(3):
        state, expected = train(keys[i])
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)
        for name in SHAPES:
            np.testing.assert_allclose(
                states.scores[name][i], state.scores[name], rtol=1e-3, atol=1e-5
            )
    assert len(set(np.asarray(losses[:, -1]).tolist())) == 3


def test_scores_start_uniform_within_the_bound_of_the_fan_in():
    weights = {
        "dense": jnp.ones((100, 40)),
        "conv": jnp.ones((3, 3, 10, 40), jnp.bfloat16),
        "bias": jnp.ones(40),
    }
    state = edge_popup.init(weights, optax.sgd(0.1), key=jax.random.key(0))
    assert state.scores["bias"] is None
    for name, fan_in in [("dense", 100), ("conv", 90)]:
        scores, bound = trees.to_numpy(state.scores[name]), fan_in**-0.5
        assert state.scores[name].dtype == weights[name].dtype
        assert np.abs(scores).max() <= bound * (1 + 2**-7)
        np.testing.assert_allclose(scores.std(), bound / 3**0.5, rtol=0.05)
        np.testing.assert_allclose(scores.mean(), 0, atol=bound / 20)


def test_parameters_without_a_mask_take_part_as_they_are(data):
    weights = {**random_weights(), "bias": jnp.ones(3)}

    def biased(params, x, y):
        params = dict(params)
        bias = params.pop("bias")
        return jnp.mean((network(params, x) + bias[None] - y) ** 2)

    optimizer = optax.sgd(0.1, momentum=0.9)
    state = edge_popup.init(weights, optimizer, key=jax.random.key(0))
    expected = biased(
        masking.apply(weights, edge_popup.mask(state, density=0.5)), *data
    )
    after, value = edge_popup.step(state, biased, optimizer, *data, density=0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    trees.assert_same(after.weights, weights)
    assert after.scores["bias"] is None


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_can_be_searched(name):
    weights = trees.make(name)
    optimizer = optax.sgd(0.1)
    state = edge_popup.init(weights, optimizer, key=jax.random.key(0))

    def total(params):
        return sum(x.sum() for x in jax.tree.leaves(params) if x.dtype == jnp.float32)

    step = jax.jit(lambda s: edge_popup.step(s, total, optimizer, density=0.5))
    after, _ = step(state)
    after, _ = step(after)
    trees.assert_same(after.weights, weights)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert step._cache_size() == 1


# Convolutional networks, in both of Flax's ways.


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), use_bias=False, padding="VALID")(x))
        return nn.Dense(3, use_bias=False)(x.mean((1, 2)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        how = {"use_bias": False, "rngs": rngs}
        self.conv = nnx.Conv(1, 4, (3, 3), padding="VALID", **how)
        self.out = nnx.Linear(4, 3, **how)

    def __call__(self, x):
        return self.out(nnx.relu(self.conv(x)).mean((1, 2)))


def linen():
    net = LinenNet()
    params = net.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
    return params, lambda params, x: net.apply({"params": params}, x)


def flax_nnx():
    graph, params = nnx.split(NnxNet(nnx.Rngs(0)))
    return params, lambda params, x: nnx.merge(graph, params)(x)


@pytest.mark.parametrize("framework", [linen, flax_nnx])
def test_small_convolutional_networks_are_searched_at_every_kind_of_density(framework):
    params, apply = framework()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 8, 8, 1)), "float32")
    y = jnp.asarray(rng.normal(size=(8, 3)), "float32")
    shares = allocation.erk(params, density=0.6)
    ways = [
        {"density": 0.6},
        {"density": 0.6, "scope": "global"},
        {"density": shares},
    ]
    optimizer = optax.sgd(0.1, momentum=0.9)
    draw = initializer.signed_constant(0.6)
    weights = initializer.redraw(params, draw, key=jax.random.key(1))

    @jax.jit
    def train(state):
        def error(params):
            return jnp.mean((apply(params, x) - y) ** 2)

        found = []
        for how in ways:
            before = masking.apply(weights, edge_popup.mask(state, **how))
            after, value = edge_popup.step(state, error, optimizer, **how)
            kept = edge_popup.mask(after, **how)
            out = edge_popup.predict(apply, after, x, **how)
            same = apply(masking.apply(weights, kept), x)
            found.append((after, kept, (value, error(before)), (out, same)))
        return found

    state = edge_popup.init(weights, optimizer, key=jax.random.key(2))
    sizes = [36, 12]
    expected_counts = [
        [quota(0.6, n) for n in sizes],
        None,  # of both together
        [quota(d, n) for d, n in zip(jax.tree.leaves(shares), sizes, strict=True)],
    ]
    assert expected_counts[0] != expected_counts[2]
    for (after, kept, values, outs), counts in zip(
        train(state), expected_counts, strict=True
    ):
        trees.assert_same(after.weights, weights)
        found = [int(m.sum()) for m in jax.tree.leaves(kept)]
        assert sum(found) == quota(0.6, sum(sizes))
        assert counts is None or found == counts
        np.testing.assert_allclose(*values, rtol=1e-5)
        np.testing.assert_allclose(*outs, rtol=1e-4, atol=1e-6)
        moved = zip(*map(jax.tree.leaves, (after.scores, state.scores)), strict=True)
        assert all((a != b).mean() > 0.5 for a, b in moved)


# Baselines: thresholds that stay, samples, and chance.


def test_frozen_thresholds_stay_and_let_the_density_float(weights, data):
    optimizer = optax.sgd(0.1, momentum=0.9)
    key = jax.random.key(1)
    state = edge_popup.init(weights, optimizer, density=0.3, key=key)
    for name, (fan_in, _) in SHAPES.items():
        np.testing.assert_allclose(state.cutoffs[name], 0.7 / fan_in**0.5, rtol=1e-6)
    step = jax.jit(lambda s: edge_popup.step(s, loss, optimizer, *data, density=None))
    assert "while" not in str(step.trace(state).jaxpr)  # nothing is searched
    before, first = state, edge_popup.mask(state, density=None)
    for _ in range(20):
        state, _ = step(state)
    trees.assert_same(state.cutoffs, before.cutoffs)
    trees.assert_same(state.weights, before.weights)
    last = edge_popup.mask(state, density=None)
    for name, kept in last.items():
        expected = np.abs(state.scores[name]) >= np.float32(before.cutoffs[name])
        np.testing.assert_array_equal(kept, expected)
    assert any(first[name].sum() != last[name].sum() for name in SHAPES)
    # What is just at a threshold is kept.
    at = jax.tree.map(lambda s, c: jnp.full_like(s, -c), state.scores, state.cutoffs)
    for kept in edge_popup.mask(state._replace(scores=at), density=None).values():
        assert kept.all()


def test_frozen_thresholds_have_the_gradients_of_the_reference(state, data):
    after, value = jax.jit(
        lambda s: edge_popup.step(s, loss, optax.sgd(RATE), *data, density=None)
    )(state)
    expected, gradients = reference.loss_and_score_gradients(
        wide(state.weights),
        wide(state.scores),
        *map(np.asarray, data),
        0.5,
        thresholds=wide(state.cutoffs),
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, gradient in zip(SHAPES, gradients, strict=True):
        step = (state.scores[name] - after.scores[name]) / RATE
        np.testing.assert_allclose(step, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_what_a_search_has_cut_can_be_frozen_later(scope, state, data):
    after, _ = compiled_step(optax.sgd(0.0), scope=scope)(
        state, *data, jnp.float32(0.3)
    )
    trees.assert_same(after.scores, state.scores)
    trees.assert_same(
        edge_popup.mask(after, density=None),
        edge_popup.mask(after, density=0.3, scope=scope),
    )


def test_first_thresholds_let_the_wanted_fraction_pass():
    weights = {"w": jnp.ones((100, 60))}
    for density in (0.0, 0.1, 0.8, 1.0):
        state = edge_popup.init(
            weights, optax.sgd(0.1), density=density, key=jax.random.key(0)
        )
        kept = np.asarray(edge_popup.mask(state, density=None)["w"])
        bound = 5 * np.sqrt(density * (1 - density) / kept.size)
        assert abs(kept.mean() - density) <= bound


def test_samples_have_the_gradients_of_the_reference(state, data):
    key = jax.random.key(5)
    state = state._replace(scores=jax.tree.map(lambda s: 5 * s, state.scores))
    after, value = jax.jit(
        lambda s: edge_popup.step(
            s, loss, optax.sgd(RATE), *data, density=None, sample=key
        )
    )(state)
    kept = edge_popup.mask(state, density=None, sample=key)
    kept = [np.asarray(m) for m in kept.values()]
    w, s = wide(state.weights), wide(state.scores)
    x, y = (np.asarray(d).astype(np.float64) for d in data)
    np.testing.assert_allclose(value, sampled_reference.loss(w, kept, x, y), rtol=1e-5)
    gradients = sampled_reference.logit_gradients(w, s, kept, x, y)
    for name, gradient in zip(SHAPES, gradients, strict=True):
        step = (state.scores[name] - after.scores[name]) / RATE
        np.testing.assert_allclose(step, gradient, rtol=1e-3, atol=1e-5)
    trees.assert_same(after.cutoffs, state.cutoffs)
    out = edge_popup.predict(network, state, data[0], density=None, sample=key)
    expected, _, _ = sampled_reference.forward(w, kept, x)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_samples_have_the_probabilities_of_the_scores():
    scores = jnp.array([[-20.0, -2.0, -0.5, 0.0, 0.5, 3.0, 20.0]])
    weights = {"w": jnp.ones(scores.shape)}
    state = edge_popup.init(weights, optax.sgd(0.1), key=jax.random.key(0))
    state = state._replace(scores={"w": scores})
    keys = jax.random.split(jax.random.key(1), 4000)
    kept = jax.vmap(lambda k: edge_popup.mask(state, density=None, sample=k))(keys)
    p = sampled_reference.sigmoid(np.asarray(scores).astype(np.float64))
    bound = 5 * np.sqrt(p * (1 - p) / len(keys))
    assert (np.abs(np.asarray(kept["w"]).mean(0) - p) <= bound + 1e-9).all()


def test_before_the_first_step_the_mask_is_a_random_one(weights):
    @jax.jit
    @jax.vmap
    def first(key):
        state = edge_popup.init(weights, optax.sgd(0.1), key=key)
        return edge_popup.mask(state, density=0.3)

    masks = first(jax.random.split(jax.random.key(0), 1000))
    for name, shape in SHAPES.items():
        kept = np.asarray(masks[name])
        k, n = quota(0.3, int(np.prod(shape))), int(np.prod(shape))
        assert (kept.sum((1, 2)) == k).all()
        bound = 5 * np.sqrt(k / n * (1 - k / n) / 1000)
        assert (np.abs(kept.mean(0) - k / n) < bound).all()


def test_where_one_edge_takes_the_place_of_another_the_loss_falls():
    # The paper's argument, for a neuron and plain steps: to first order the change is
    # dL/dI * (w Z of what enters - w Z of what leaves).
    x, y = jnp.array([[1.0, -2.0, 0.5, 1.5, -1.0, 3.0]]), jnp.array([[0.7]])

    @jax.jit
    @jax.vmap
    def one(key):
        draw, scores = jax.random.split(key)
        weights = {"w": initializer.scaled_normal(0.5)(draw, (6, 1))}
        optimizer = optax.sgd(0.02)
        state = edge_popup.init(weights, optimizer, key=scores)
        before = edge_popup.mask(state, density=0.5)["w"]
        after, _ = edge_popup.step(state, loss, optimizer, x, y, density=0.5)
        kept = edge_popup.mask(after, density=0.5)["w"]
        signs = jnp.sign(state.scores["w"]) == jnp.sign(after.scores["w"])
        slope = 2 * (network({"w": jnp.where(before, weights["w"], 0)}, x) - y)
        entered, left = kept & ~before, before & ~kept
        edges = slope * weights["w"] * x.T
        change = jnp.sum(jnp.where(entered, edges, 0) - jnp.where(left, edges, 0))
        return change, entered.sum(), signs.all()

    change, swapped, signs = map(
        np.asarray, one(jax.random.split(jax.random.key(0), 2000))
    )
    swaps = (swapped == 1) & signs
    assert swaps.sum() > 100
    assert (change[swaps] < 0).all()


def test_a_sample_goes_without_a_density(state, data):
    key = jax.random.key(0)
    needs = (
        "`maskjax.recipes.edge_popup` needs `density` as None with a `sample`, .*0.5"
    )
    for verb in (
        lambda: edge_popup.mask(state, density=0.5, sample=key),
        lambda: edge_popup.step(
            state, loss, optax.sgd(RATE), *data, density=0.5, sample=key
        ),
        lambda: edge_popup.predict(network, state, data[0], density=0.5, sample=key),
    ):
        with pytest.raises(ValueError, match=needs):
            verb()
    with pytest.raises(TypeError, match="`key` as a typed key"):
        edge_popup.mask(state, density=None, sample=jax.random.PRNGKey(0))


@pytest.mark.parametrize(("density", "kind"), [(1.5, ValueError), ("all", TypeError)])
def test_the_first_density_lies_between_0_and_1(density, kind, weights):
    fn = "`maskjax.recipes.edge_popup.init` needs `density`"
    with pytest.raises(kind, match=fn):
        edge_popup.init(weights, optax.sgd(0.1), density=density, key=jax.random.key(0))


def test_scores_follow_the_predicate_and_the_initializer(weights):
    key = jax.random.key(4)
    chosen = where.matching("^[ac]$")
    state = edge_popup.init(weights, optax.sgd(0.1), where=chosen, key=key)
    expected = initializer.uniform_scores(weights, where=chosen, key=key)
    assert expected["b"] is None
    trees.assert_same(state.scores, expected)
    assert state.cutoffs["b"] is None


def test_frozen_thresholds_may_differ_between_leaves(weights):
    densities = {"a": 0.25, "b": 0.5, "c": 1.0}
    state = edge_popup.init(
        weights, optax.sgd(RATE), density=densities, key=jax.random.key(1)
    )
    for name, density in densities.items():
        bound = SHAPES[name][0] ** -0.5
        np.testing.assert_allclose(
            state.cutoffs[name], (1 - density) * bound, rtol=1e-6
        )
    with pytest.raises(ValueError, match="only in `weights`: c"):
        edge_popup.init(
            weights,
            optax.sgd(RATE),
            density={"a": 0.5, "b": 0.5},
            key=jax.random.key(1),
        )
