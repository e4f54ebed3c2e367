"""Networks trained apart: against NumPy, against a loop, and as one wide network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import masking, metrics, optim, stacking, where
from maskjax.recipes import deep_ensemble
from tests import trees
from tests.reference import deep_ensemble as reference

M, D = 3, 2
INPUTS = where.matching("^a$")


def draw(key):
    a, b = jax.random.split(key)
    return {
        "a": jax.random.normal(a, (4, 8)) / 2,
        "b": jax.random.normal(b, (8, 2 * D)) / 3,
        "bias": jnp.full(2 * D, 0.1),
    }


def network(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["b"] + p["bias"][None]


def loss(p, x, y):
    return deep_ensemble.gaussian_loss(network(p, x), y).mean()


def fit(params, x, y, *, key, lr=0.1):
    steps = deep_ensemble.order(len(x), size=4, epochs=2, key=key)

    def step(p, which):
        slopes = jax.grad(loss)(p, x[which], y[which])
        return jax.tree.map(lambda w, g: w - lr * g, p, slopes), None

    return jax.lax.scan(step, params, steps)[0]


def keys(count=M, *, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(10, D))
    return jnp.asarray(x, "float32"), jnp.asarray(y, "float32")


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda k: deep_ensemble.init(draw, keys=k))(keys())


@pytest.fixture(scope="module")
def trained(params, data):
    run = jax.jit(lambda p, k, *d: deep_ensemble.train(fit, p, *d, keys=k))
    return run(params, keys(seed=1), *data)


def member(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def test_members_are_drawn_from_their_own_keys(params):
    alone = jax.jit(draw)
    for i, key in enumerate(keys()):
        trees.assert_same(member(params, i), alone(key))
    assert not np.allclose(params["a"][0], params["a"][1])


def test_training_together_is_training_alone(params, data, trained):
    alone = jax.jit(lambda p, k, *d: fit(p, *d, key=k))
    for i, key in enumerate(keys(seed=1)):
        one = alone(member(params, i), key, *data)
        pairs = zip(*map(jax.tree.leaves, (member(trained, i), one)), strict=True)
        for mine, theirs in pairs:
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not np.allclose(trained["a"][0], trained["a"][1], atol=1e-2)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_does_not_matter_how_many_train_at_a_time(params, data, trained, batch_size):
    how = {"keys": keys(seed=1), "batch_size": batch_size}
    few = jax.jit(lambda p, *d: deep_ensemble.train(fit, p, *d, **how))(params, *data)
    for a, b in zip(*map(jax.tree.leaves, (few, trained)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_training_agrees_with_numpy(params, data, trained):
    x, y = (np.asarray(d, "float64") for d in data)
    for i, key in enumerate(keys(seed=1)):
        start = {k: np.asarray(v, "float64") for k, v in member(params, i).items()}
        steps = np.asarray(deep_ensemble.order(10, size=4, epochs=2, key=key))
        theirs = reference.train(start, x, y, steps, lr=0.1)
        for name in start:
            np.testing.assert_allclose(
                trained[name][i], theirs[name], rtol=1e-4, atol=1e-5
            )
        assert reference.loss(theirs, x, y) < reference.loss(start, x, y)


def test_the_order_matters_and_differs_among_members(params, data):
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * M), params)
    run = jax.jit(lambda p, k, *d: deep_ensemble.train(fit, p, *d, keys=k))
    found = run(same, keys(seed=1), *data)
    assert not np.allclose(found["a"][0], found["a"][1], atol=1e-4)


def test_an_epoch_has_every_sample_once(transform):
    draw = transform(lambda key: deep_ensemble.order(10, size=3, epochs=4, key=key))
    steps = np.asarray(draw(jax.random.key(0)))
    assert steps.shape == (12, 3)
    assert steps.dtype == np.int32
    epochs = steps.reshape(4, 9)
    for epoch in epochs:
        assert len(set(epoch)) == 9
        assert set(epoch) <= set(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_head_yields_means_and_variances_above_the_floor(transform):
    raw = jnp.array([[1.0, -2.0, 0.0, -1e4], [0.5, 3.0, 5.0, 100.0]])
    mean, variance = transform(deep_ensemble.gaussian)(raw)
    np.testing.assert_array_equal(mean, raw[:, :2])
    exact = reference.softplus(np.asarray(raw[:, 2:], "float64")) + 1e-6
    np.testing.assert_allclose(variance, exact, rtol=1e-6)
    assert (variance >= 1e-6).all()
    slopes = jax.grad(lambda r: deep_ensemble.gaussian_loss(r, mean + 1).sum())(raw)
    assert jnp.isfinite(slopes).all()


def test_the_mixture_agrees_with_the_papers_formula_and_is_symmetric():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 7)).astype("float32")
    variances = rng.random((5, 7)).astype("float32")
    mean, variance = deep_ensemble.mixture(jnp.asarray(means), jnp.asarray(variances))
    exact = reference.mixture(means, variances)
    np.testing.assert_allclose(mean, exact[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, exact[1], rtol=1e-5)
    assert (variance >= variances.mean(0)).all()
    order = rng.permutation(5)
    moved = deep_ensemble.mixture(
        jnp.asarray(means[order]), jnp.asarray(variances[order])
    )
    for a, b in zip(moved, (mean, variance), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    one = deep_ensemble.mixture(jnp.asarray(means[:1]), jnp.asarray(variances[:1]))
    np.testing.assert_array_equal(one[0], means[0])
    np.testing.assert_array_equal(one[1], variances[0])


def test_shapes_of_normals_have_to_agree():
    with pytest.raises(ValueError, match=r"mixture` needs `variances` of shape \(3, 1"):
        deep_ensemble.mixture(jnp.ones((3, 1)), jnp.ones(3))


def test_the_variance_does_not_cancel_far_from_zero():
    means = jnp.array([[1e4], [1e4 + 2]])
    _, variance = deep_ensemble.mixture(means, jnp.full((2, 1), 0.25))
    np.testing.assert_allclose(variance, 1.25)


def test_the_ensemble_scores_no_worse_than_its_members_do_on_average(params, data):
    x = data[0]
    y = np.random.default_rng(1).integers(0, 2 * D, 10)
    out = deep_ensemble.predict(network, params, 3 * x)
    p = jax.nn.softmax(out, -1)
    for score in (metrics.negative_log_likelihood, metrics.brier_score):
        alone = [float(score(each, y)) for each in p]
        assert score(p.mean(0), y) < np.mean(alone) - 1e-3  # Jensen, for they differ


def test_adversarial_inputs_go_up_the_gradient(transform):
    w, step = jnp.array([[2.0], [-1.0], [0.0]]), jnp.array([[0.1, 0.2, 0.3]])
    x = jnp.array([[1.0, 2.0, 3.0]])

    def nearby(x):
        return deep_ensemble.adversarial(lambda x: (x @ w).sum(), x, step=step)

    np.testing.assert_allclose(transform(nearby)(x), [[1.1, 1.8, 3.0]], rtol=1e-6)
    # They are data: nothing is learned from how they came about.
    assert not jax.grad(lambda x: nearby(x).sum())(x).any()


def test_the_smoothed_loss_takes_adversarial_inputs_as_they_are(params, data):
    one, (x, y) = member(params, 0), data
    step = 0.01 * (x.max(0) - x.min(0))[None]
    smooth = jax.jit(deep_ensemble.smoothed(loss, step=step))
    near = deep_ensemble.adversarial(lambda x: loss(one, x, y), x, step=step)
    fixed = lambda p: loss(p, x, y) + loss(p, near, y)  # noqa: E731
    np.testing.assert_allclose(smooth(one, x, y), fixed(one), rtol=1e-6)
    assert fixed(one) > 2 * loss(one, x, y)
    found, exact = jax.grad(smooth)(one, x, y), jax.grad(fixed)(one)
    for a, b in zip(*map(jax.tree.leaves, (found, exact)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_one_wide_network_is_the_ensemble(params, data):
    x = data[0]
    every = deep_ensemble.predict(network, params, x)
    wide = deep_ensemble.wide(params, inputs=INPUTS)
    assert jax.tree.map(jnp.shape, wide.params) == {
        "a": (4, 24),
        "b": (24, 12),
        "bias": (12,),
    }
    assert wide.mask["a"] is None
    assert wide.mask["b"].sum() == M * 8 * 2 * D
    # Whatever stands off the blocks, the mask removes it.
    dense = jax.tree.map(lambda leaf: jnp.where(leaf == 0, 7, leaf), wide.params)
    under = masking.apply(dense, wide.mask)
    trees.assert_same(under, wide.params)
    together = deep_ensemble.blocks(network(under, x), members=M)
    np.testing.assert_allclose(together, every, rtol=1e-5, atol=1e-6)
    # And as a list of masks, by the path that all ensembles share.
    alone = stacking.predict(network, under, wide.members, x)
    for i, out in enumerate(alone):
        apart = deep_ensemble.blocks(out, members=M)
        np.testing.assert_allclose(apart[i], every[i], rtol=1e-5, atol=1e-6)
        assert not np.delete(np.asarray(apart), i, 0).any()


def test_the_wide_network_trains_like_its_members(params, data):
    x, y = data
    decay = optax.add_decayed_weights(0.1)
    heavy = optax.chain(decay, optax.sgd(0.05, momentum=0.9))

    def total(p):
        outputs = deep_ensemble.blocks(network(p, x), members=M)
        losses = jax.vmap(lambda o: deep_ensemble.gaussian_loss(o, y).mean())(outputs)
        return losses.sum()

    def descend(value, optimizer, p):
        def step(carry, _):
            p, state = carry
            updates, state = optimizer.update(jax.grad(value)(p), state, p)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (p, optimizer.init(p)), length=5)[0][0]

    wide = deep_ensemble.wide(params, inputs=INPUTS)
    masked = optax.chain(heavy, optim.mask_updates(wide.mask))
    found = jax.jit(lambda p: descend(total, masked, p))(wide.params)
    alone = jax.jit(jax.vmap(lambda p: descend(lambda p: loss(p, x, y), heavy, p)))(
        params
    )
    exact = deep_ensemble.wide(alone, inputs=INPUTS)
    for a, b in zip(*map(jax.tree.leaves, (found, exact.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert not np.asarray(found["b"])[~np.asarray(wide.mask["b"])].any()


def test_convolutions_widen_too():
    rng = np.random.default_rng(0)
    shapes = {"a": (M, 3, 3, 2, 4), "scale": (M, 4), "b": (M, 3, 3, 4, 5)}
    params = {k: jnp.asarray(rng.normal(size=s), "float32") for k, s in shapes.items()}
    x = jnp.asarray(rng.normal(size=(2, 5, 5, 2)), "float32")

    def net(p, x):
        def conv(x, w):
            dims = ("NHWC", "HWIO", "NHWC")
            how = {"window_strides": (1, 1), "padding": "SAME"}
            return jax.lax.conv_general_dilated(x, w, **how, dimension_numbers=dims)

        h = conv(x, p["a"]) * p["scale"][None, None, None]
        return conv(jax.nn.relu(h), p["b"]).mean((1, 2))

    wide = deep_ensemble.wide(params, inputs=INPUTS)
    assert wide.members["b"].shape == (M, 1, 1, M * 4, 1)
    every = deep_ensemble.predict(net, params, x)
    together = deep_ensemble.blocks(net(wide.params, x), members=M)
    np.testing.assert_allclose(together, every, rtol=1e-4, atol=1e-5)
    alone = stacking.predict(net, wide.params, wide.members, x)
    np.testing.assert_allclose(alone.sum(0), net(wide.params, x), rtol=1e-4, atol=1e-5)


def test_a_key_used_for_two_members_is_refused(params):
    twice = jnp.stack([*keys(2), keys(2)[0]])
    needs = "` needs a key of its own for each member.*members 0 and 2 have one key"
    with pytest.raises(ValueError, match="(?s)init" + needs):
        deep_ensemble.init(draw, keys=twice)
    with pytest.raises(ValueError, match="(?s)train" + needs):
        deep_ensemble.train(fit, params, keys=twice)
    with pytest.raises(TypeError, match="init` needs `keys` as typed keys"):
        deep_ensemble.init(draw, keys=[0, 1])
    with pytest.raises(ValueError, match=r"init` needs `keys` of shape \(members,\)"):
        deep_ensemble.init(draw, keys=keys().reshape(1, -1))


def test_other_bad_input_is_refused(params):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="(?s)same number of members.*keys: 2"):
        deep_ensemble.train(fit, params, keys=keys(2))
    with pytest.raises(ValueError, match="order` needs `size` of at most 5, got 6"):
        deep_ensemble.order(5, size=6, key=key)
    for name in ("samples", "size", "epochs"):
        how = {"samples": 5, "size": 5, "epochs": 1} | {name: 0}
        samples = how.pop("samples")
        with pytest.raises(ValueError, match=f"order` needs `{name}` of at least 1"):
            deep_ensemble.order(samples, **how, key=key)
    with pytest.raises(TypeError, match="order` needs `key` as a typed key"):
        deep_ensemble.order(5, size=5, key=jax.random.PRNGKey(0))
    for shape in ((2, 3), (), (2, 0)):
        with pytest.raises(ValueError, match="gaussian` needs `outputs` with an even"):
            deep_ensemble.gaussian(jnp.ones(shape))
    with pytest.raises(ValueError, match=r"`targets` of shape \(2, 1\), got \(2, 2\)"):
        deep_ensemble.gaussian_loss(jnp.ones((2, 2)), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"blocks` needs `outputs` \[..., 3 \* D\]"):
        deep_ensemble.blocks(jnp.ones((2, 4)), members=3)
    with pytest.raises(ValueError, match="blocks` needs `members` of at least 1"):
        deep_ensemble.blocks(jnp.ones((2, 4)), members=0)
    with pytest.raises(ValueError, match="(?s)wide` needs leaves with an axis.*bias"):
        deep_ensemble.wide({"bias": jnp.ones(3)}, inputs=INPUTS)
    needs = (
        r"wide` needs `inputs` to choose at least one kernel.*'first'\) chooses none"
    )
    with pytest.raises(ValueError, match=needs):
        deep_ensemble.wide({"a": jnp.ones((2, 3, 4))}, inputs=where.matching("first"))
