"""Networks trained apart: against NumPy, and against a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import stacking
from maskjax.recipes import deep_ensemble
from tests import trees
from tests.reference import deep_ensemble as reference

M, D = 3, 2
RNG = np.random.default_rng(0)
DATA = tuple(RNG.normal(size=(10, width)).astype(np.float32) for width in (4, D))
ORDER = functools.partial(deep_ensemble.order, 10, size=4, epochs=2)


@jax.jit
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


@jax.jit
def fit(params, x, y, *, key):
    def step(p, which):
        slopes = jax.grad(loss)(p, x[which], y[which])
        return jax.tree.map(lambda w, g: w - 0.1 * g, p, slopes), None

    return jax.lax.scan(step, params, ORDER(key=key))[0]


@functools.partial(jax.jit, static_argnames="batch_size")
def train(params, keys, x, y, batch_size=None):
    how = {"keys": keys, "batch_size": batch_size}
    return deep_ensemble.train(fit, params, x, y, **how)


def keys(count=M, *, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(deep_ensemble.init(draw, keys=keys()))


@pytest.fixture(scope="module")
def trained(params):
    return jax.device_get(train(params, keys(seed=1), *DATA))


def member(tree, i):
    return {name: leaf[i] for name, leaf in tree.items()}


def close(found, wanted, **tolerance):
    for name in wanted:
        np.testing.assert_allclose(
            found[name], wanted[name], **({"rtol": 1e-5, "atol": 1e-6} | tolerance)
        )


def test_members_are_drawn_from_their_own_keys(params):
    for i, key in enumerate(keys()):
        trees.assert_same(member(params, i), jax.device_get(draw(key)))
    assert not np.allclose(params["a"][0], params["a"][1])


def test_training_together_is_training_alone_and_agrees_with_numpy(params, trained):
    x, y = (np.float64(d) for d in DATA)
    orders = jax.jit(jax.vmap(lambda key: ORDER(key=key)))(keys(seed=1))
    for i, key in enumerate(keys(seed=1)):
        close(fit(member(params, i), *DATA, key=key), member(trained, i))
        start = {k: np.float64(v) for k, v in member(params, i).items()}
        theirs = reference.train(start, x, y, np.asarray(orders[i]), lr=0.1)
        close(member(trained, i), theirs, rtol=1e-4, atol=1e-5)
        assert reference.loss(theirs, x, y) < reference.loss(start, x, y)
    assert not np.allclose(trained["a"][0], trained["a"][1], atol=1e-2)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_does_not_matter_how_many_train_at_a_time(params, trained, batch_size):
    close(train(params, keys(seed=1), *DATA, batch_size=batch_size), trained)


def test_the_order_matters_and_differs_among_members(params):
    same = {name: np.stack([leaf[0]] * M) for name, leaf in params.items()}
    found = jax.device_get(train(same, keys(seed=1), *DATA))
    assert not np.allclose(found["a"][0], found["a"][1], atol=1e-4)


def test_an_epoch_has_every_sample_once():
    order = functools.partial(deep_ensemble.order, 10, size=3, epochs=4)
    key = jax.random.key(0)
    steps = np.asarray(order(key=key))
    np.testing.assert_array_equal(jax.jit(lambda key: order(key=key))(key), steps)
    assert steps.shape == (12, 3)
    assert steps.dtype == np.int32
    epochs = steps.reshape(4, 9)
    for epoch in epochs:
        assert len(set(epoch)) == 9
        assert set(epoch) <= set(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_head_yields_means_and_variances_above_the_floor():
    raw = np.float32([[1, -2, 0, -1e4], [0.5, 3, 5, 100]])

    @jax.jit
    def run(raw):
        loss = lambda r: deep_ensemble.gaussian_loss(r, r[:, :2] + 1).sum()  # noqa: E731
        return deep_ensemble.gaussian(raw), jax.grad(loss)(raw)

    (mean, variance), slopes = run(raw)
    np.testing.assert_array_equal(mean, raw[:, :2])
    exact = reference.softplus(np.float64(raw[:, 2:])) + 1e-6
    np.testing.assert_allclose(variance, exact, rtol=1e-6)
    assert np.min(variance) >= np.float32(1e-6)
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2", "float32"])
def test_a_sure_head_has_finite_losses_and_gradients_in_every_format(dtype):
    raw = np.array([[0, -20], [30, -20], [-1, -1e4], [0, 40]], dtype)
    y = np.array([[1], [0], [-1], [5]], dtype)

    @jax.jit
    def run(raw):
        loss = lambda raw: deep_ensemble.gaussian_loss(raw, y).sum()  # noqa: E731
        return deep_ensemble.gaussian_loss(raw, y), jax.grad(loss)(raw)

    losses, slopes = run(raw)
    assert losses.dtype == np.float32
    assert slopes.dtype == dtype
    assert np.isfinite(losses).all()
    assert np.isfinite(trees.to_numpy(slopes)).all()
    floor = max(1e-6, 64 / float(jnp.finfo(dtype).max))
    mean, pre = np.float64(raw)[:, :1], np.float64(raw)[:, 1:]
    var = reference.softplus(pre) + floor
    exact = np.log(var) / 2 + (np.float64(y) - mean) ** 2 / (2 * var)
    np.testing.assert_allclose(losses, exact, rtol=1e-5)


def test_the_mixture_agrees_with_the_papers_formula_and_is_symmetric():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 7)).astype("float32")
    variances = rng.random((5, 7)).astype("float32")
    order = rng.permutation(5)
    exact = reference.mixture(means, variances)
    mixture = jax.jit(deep_ensemble.mixture)
    for i in (range(5), order):
        mean, variance = map(np.asarray, mixture(means[i], variances[i]))
        np.testing.assert_allclose(mean, exact[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance, exact[1], rtol=1e-5)
        assert (variance >= variances.mean(0) - 1e-7).all()
    one = mixture(means[:1], variances[:1])
    np.testing.assert_array_equal(one[0], means[0])
    np.testing.assert_array_equal(one[1], variances[0])
    # It does not cancel far from zero.
    _, variance = mixture(np.float32([[1e4], [1e4 + 2]]), np.full((2, 1), 0.25, "f4"))
    np.testing.assert_allclose(variance, 1.25)


def test_an_ensemble_is_mapped_over(params):
    said = jax.jit(functools.partial(stacking.map, network))(params, DATA[0])
    for i in range(M):
        one = {name: np.float64(leaf) for name, leaf in member(params, i).items()}
        _, mean, raw = reference.forward(one, np.float64(DATA[0]))
        np.testing.assert_allclose(
            said[i], np.concatenate([mean, raw], 1), rtol=1e-4, atol=1e-5
        )


def test_a_key_used_for_two_members_is_refused(params):
    twice = jax.random.key_data(keys(2))
    twice = jax.random.wrap_key_data(np.asarray(twice)[[0, 1, 0]])
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
            deep_ensemble.gaussian(np.ones(shape))
        with pytest.raises(ValueError, match="_loss` needs `outputs` with an even"):
            deep_ensemble.gaussian_loss(np.ones(shape), np.ones(shape))
    two = np.ones((2, 2), "f4")
    for outputs in (np.ones((2, 2), int), [1.0, 2.0]):
        with pytest.raises(TypeError, match="gaussian` needs `outputs` as a floating"):
            deep_ensemble.gaussian(outputs)
        with pytest.raises(TypeError, match="_loss` needs `outputs` as a floating"):
            deep_ensemble.gaussian_loss(outputs, two)
    with pytest.raises(ValueError, match=r"`targets` of shape \(2, 1\), got \(2, 2\)"):
        jax.eval_shape(deep_ensemble.gaussian_loss, two, two)
    with pytest.raises(ValueError, match=r"mixture` needs `variances` of shape \(3, 1"):
        deep_ensemble.mixture(np.ones((3, 1)), np.ones(3))
