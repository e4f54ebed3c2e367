"""Dropout kept on: laws of its masks, and NumPy in float64."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import layers, metrics, stacking
from maskjax.recipes import mc_dropout
from tests import trees
from tests.reference import mc_dropout as reference

UNITS = {"input": jnp.ones(6, bool), "hidden": jnp.ones(8, bool)}


def network(masks, x, p):
    h = jax.nn.relu((x * masks["input"][None]) @ p["a"]) * masks["hidden"][None]
    return h @ p["b"]


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 8), "b": (8, 3)}
    return {k: jnp.asarray(rng.normal(size=s), "float32") for k, s in shapes.items()}


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), "float32")


def predicted(apply, units, *inputs, keys, **how):
    """One compilation, for all that a prediction consists of."""

    def run(keys, *inputs):
        return mc_dropout.predict(apply, units, *inputs, keys=keys, **how)

    return jax.jit(run)(keys, *inputs)


def keys(count, *, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_units_are_dropped_at_the_rate_and_the_others_enlarged(rate, every_transform):
    units = {"a": jnp.ones(30_000, jnp.float32), "b": None}
    draw = every_transform(lambda data: mc_dropout.masks(
        units, rate=rate, key=jax.random.wrap_key_data(data)
    ))  # fmt: skip
    masks = draw(jax.random.key_data(jax.random.key(0)))
    assert masks["b"] is None
    kept = np.asarray(masks["a"]) > 0
    size = np.float32(1) / (np.float32(1) - np.float32(rate))
    assert set(np.unique(masks["a"])) <= {np.float32(0), size}
    sigma = (rate * (1 - rate) / kept.size) ** 0.5
    assert abs(kept.mean() - (1 - rate)) <= 4 * sigma


def test_masks_take_the_dtype_of_floats_and_the_rates_of_leaves():
    units = {"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones((3, 1), bool)}
    rates = {"a": 0.0, "b": jnp.float32(0.5)}
    masks = mc_dropout.masks(units, rate=rates, key=jax.random.key(1))
    assert masks["a"].dtype == jnp.bfloat16
    assert masks["b"].dtype == jnp.float32
    assert (masks["a"] == 1).all()
    assert masks["b"].shape == (3, 1)
    one = mc_dropout.masks(units, rate=0.5, examples=2, key=jax.random.key(1))
    assert one["a"].shape == (2, 1, 4)


def test_leaves_get_keys_of_their_own():
    masks = mc_dropout.masks(
        [jnp.ones(64), jnp.ones(64)], rate=0.5, key=jax.random.key(0)
    )
    assert not np.array_equal(masks[0], masks[1])


def test_without_dropout_members_are_the_network(params, x):
    how = {"rate": 0.0, "keys": keys(4)}
    out = predicted(network, UNITS, x, params, **how)
    plain = network({k: jnp.ones(u.shape) for k, u in UNITS.items()}, x, params)
    np.testing.assert_allclose(out[0], plain, rtol=1e-5, atol=1e-6)
    mean, variance = mc_dropout.moments(out, precision=math.inf)
    np.testing.assert_array_equal(mean, out[0])
    assert not variance.any()


def test_members_are_those_of_a_loop_over_keys(params, x):
    how = {"rate": 0.3, "keys": keys(6)}
    every = predicted(network, UNITS, x, params, **how)
    for i, key in enumerate(keys(6)):
        masks = mc_dropout.masks(UNITS, rate=0.3, key=key)
        alone = network(masks, x, params)
        np.testing.assert_allclose(every[i], alone, rtol=1e-5, atol=1e-5)
    for size in (1, 4):
        few = predicted(network, UNITS, x, params, **how, batch_size=size)
        np.testing.assert_allclose(few, every, rtol=1e-5, atol=1e-5)


def test_of_a_linear_model_the_moments_are_known():
    rng, rate = np.random.default_rng(0), 0.3
    w, x = rng.normal(size=(6, 1)), rng.normal(size=(4, 6))
    net = lambda masks, x: (x * masks[None]) @ jnp.asarray(w, "float32")  # noqa: E731
    how = {"rate": rate, "keys": keys(20_000)}
    out = predicted(net, jnp.ones(6), jnp.asarray(x, "float32"), **how)
    mean, variance = mc_dropout.moments(out, precision=math.inf)
    exact = (w[:, 0] ** 2 * x**2).sum(1, keepdims=True) * rate / (1 - rate)
    assert (abs(mean - x @ w) < 4 * (exact / 20_000) ** 0.5).all()
    np.testing.assert_allclose(variance, exact, rtol=0.05)


@pytest.mark.parametrize("tau", [0.1, 4.0])
def test_moments_and_likelihood_agree_with_numpy(tau, transform):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(7, 4, 2)).astype("float32")
    targets = rng.normal(size=(4, 2)).astype("float32") + 3
    found = transform(lambda o: mc_dropout.moments(o, precision=tau))(outputs)
    for mine, theirs in zip(found, reference.moments(outputs, tau), strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    score = transform(lambda o, y: mc_dropout.log_likelihood(o, y, precision=tau))
    found = score(jnp.asarray(outputs), jnp.asarray(targets))
    exact = reference.log_likelihood(outputs, targets, tau)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    for axes in (1, 2):
        found_of_samples = mc_dropout.log_likelihood(
            jnp.asarray(outputs), targets, precision=tau, event_ndim=axes
        )
        exact = reference.log_likelihood(outputs, targets, tau, axes)
        np.testing.assert_allclose(found_of_samples, exact, rtol=1e-5)
    each = jnp.array([tau, 2 * tau])  # a precision for each of two numbers
    of_both = mc_dropout.log_likelihood(jnp.asarray(outputs), targets, precision=each)
    np.testing.assert_allclose(of_both[:, 0], found[:, 0], rtol=1e-6)
    alone = [
        mc_dropout.log_likelihood(o[None], targets, precision=tau)
        for o in jnp.asarray(outputs)
    ]
    assert (found >= np.mean(alone, 0) - 1e-5).all()  # Jensen
    assert (found <= np.max(alone, 0) + 1e-5).all()


def test_a_sample_of_two_numbers_is_right_only_under_one_member():
    outputs, targets = jnp.array([[-1.0, -1.0], [1.0, 1.0]]), jnp.array([1.0, -1.0])
    found = mc_dropout.log_likelihood(outputs, targets, precision=10.0, event_ndim=1)
    # By hand: each member is wrong by 2 in one number, of density e^-20.
    np.testing.assert_allclose(found, np.log(10 / (2 * np.pi)) - 20, rtol=1e-6)


def test_a_likelihood_far_from_every_member_stays_finite():
    outputs, targets = jnp.zeros((3, 1)), jnp.full(1, 1e3)
    found = mc_dropout.log_likelihood(outputs, targets, precision=1e2)
    np.testing.assert_allclose(found, -0.5e8, rtol=1e-6)


def test_information_is_between_nothing_and_the_entropy(params, x):
    how = {"rate": 0.5, "keys": keys(50)}
    out = predicted(network, UNITS, 3 * x, params, **how)
    p = jax.nn.softmax(out, -1)
    informed = metrics.mutual_information(p)
    whole = metrics.entropy(p.mean(0))
    assert (informed >= 0).all()
    assert (informed <= whole).all()
    assert informed.max() > 0.01
    parts = reference.entropy(np.asarray(p)).mean(0)
    np.testing.assert_allclose(informed, np.asarray(whole) - parts, atol=1e-6)


def test_a_decay_and_its_precision_belong_together():
    how = {"rate": 0.05, "length_scale": 0.01, "samples": 455}
    # By hand: 0.95 * 1e-4 / (2 * 455 * 0.15)
    decay = mc_dropout.weight_decay(**how, precision=0.15)
    assert decay == pytest.approx(9.5e-5 / 136.5)
    assert mc_dropout.precision(**how, weight_decay=decay) == pytest.approx(0.15)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(16)(x))
        x = layers.LinenFeatureMask()(nn.relu(x))
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def flax_net():
    net = Net()
    variables = net.init(jax.random.key(0), jnp.ones((1, 6)))

    def run(masks, x):
        return net.apply({**variables, "masks": masks}, x)

    return run, variables


def test_predicting_leaves_statistics_alone_and_masks_the_features(flax_net, x):
    run, variables = flax_net
    before = jax.tree.map(np.array, variables)
    how = {"rate": 0.5, "keys": keys(5)}
    first = predicted(run, variables["masks"], x, **how)
    again = predicted(run, variables["masks"], x, **how)
    np.testing.assert_array_equal(first, again)
    trees.assert_same(before, jax.tree.map(np.array, variables))
    # As masks on the rows of the kernel that follows.
    rows = jax.tree.map(lambda _: None, variables["params"])
    units = {**rows, "Dense_1": {"kernel": jnp.ones((16, 1), bool), "bias": None}}
    fixed = {k: v for k, v in variables.items() if k != "params"}
    apply = lambda params, x: Net().apply({"params": params, **fixed}, x)  # noqa: E731

    def as_features(key):
        return mc_dropout.masks(units, rate=0.5, key=key)

    stack = jax.vmap(as_features)(keys(5))
    on_rows = stacking.predict(apply, variables["params"], stack, x)
    features = stack["Dense_1"]["kernel"][..., 0]
    masks = {"LinenFeatureMask_0": {"features": features}}
    on_features = stacking.map(run, masks, x)
    np.testing.assert_allclose(on_rows, on_features, rtol=1e-5, atol=1e-5)


def test_masks_are_shared_by_a_batch_or_each_samples_own(flax_net):
    run, variables = flax_net
    same = jnp.ones((4, 6))
    how = {"rate": 0.5, "keys": keys(3)}
    shared = predicted(run, variables["masks"], same, **how)
    np.testing.assert_array_equal(shared, np.repeat(shared[:, :1], 4, 1))
    own = predicted(run, variables["masks"], same, **how, examples=4)
    assert len(np.unique(np.asarray(own).reshape(12, 3).round(5), axis=0)) == 12


def test_memory_is_for_as_many_members_as_run_at_a_time(flax_net):
    run, variables = flax_net
    x, many = jnp.ones((64, 6)), keys(1000)

    def scratch(batch_size):
        how = {"rate": 0.5, "batch_size": batch_size}
        predict = lambda x, keys: mc_dropout.predict(  # noqa: E731
            run, variables["masks"], x, keys=keys, **how
        )
        compiled = jax.jit(predict).lower(x, many).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    hidden = 64 * 16 * 4  # the features of one member
    assert scratch(4) < 40 * hidden
    assert scratch(None) > 1000 * hidden


def test_rates_outside_of_the_interval_are_refused():
    key = jax.random.key(0)
    for rate in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"masks` needs `rate` in \[0, 1\], got"):
            mc_dropout.masks(UNITS, rate=rate, key=key)
    for rate in (1, 1.0):
        with pytest.raises(ValueError, match="masks` needs `rate` below 1, got 1"):
            mc_dropout.masks(UNITS, rate=rate, key=key)
    with pytest.raises(TypeError, match="`rate` as a number"):
        mc_dropout.masks(UNITS, rate="half", key=key)
    how = {"length_scale": 1.0, "samples": 10}
    with pytest.raises(ValueError, match="precision` needs `rate` below 1"):
        mc_dropout.precision(rate=1.0, weight_decay=1.0, **how)
    with pytest.raises(ValueError, match=r"weight_decay` needs `rate` in \[0, 1\]"):
        mc_dropout.weight_decay(rate=-1.0, precision=1.0, **how)
    with pytest.raises(ValueError, match="precision` needs `samples` of at least 1"):
        mc_dropout.precision(rate=0.5, length_scale=1.0, samples=0, weight_decay=1.0)
    with pytest.raises(ValueError, match="weight_decay` needs `samples` of at least 1"):
        mc_dropout.weight_decay(rate=0.5, length_scale=1.0, samples=0, precision=1.0)


def test_a_key_used_for_two_members_is_refused():
    predict, net = mc_dropout.predict, lambda masks: masks
    twice = jnp.stack([*keys(3), *keys(2)])
    with pytest.raises(
        ValueError, match="(?s)a key of its own.*0 and 3.*members 1 and 4"
    ):
        predict(net, jnp.ones(2), rate=0.5, keys=twice)
    # What is traced is not known.
    run = jax.jit(lambda k: predict(net, jnp.ones(2), rate=0.5, keys=k))
    assert run(twice).shape == (5, 2)
    with pytest.raises(TypeError, match="`keys` as typed keys, one for each member"):
        predict(net, jnp.ones(2), rate=0.5, keys=jax.random.PRNGKey(0))
    with pytest.raises(
        ValueError, match=r"`keys` of shape \(members,\), got shape \(\)"
    ):
        predict(net, jnp.ones(2), rate=0.5, keys=jax.random.key(0))
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        predict(net, jnp.ones(2), rate=0.5, keys=keys(3)[:0])


def test_other_bad_input_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="`units` with at least one leaf"):
        mc_dropout.masks({"a": None}, rate=0.5, key=key)
    with pytest.raises(ValueError, match="`examples` of at least 1, got 0"):
        mc_dropout.masks(UNITS, rate=0.5, examples=0, key=key)
    with pytest.raises(TypeError, match="`key` as a typed key"):
        mc_dropout.masks(UNITS, rate=0.5, key=jax.random.PRNGKey(0))
    for shape, wanted in (((3, 5), r"\(3, 4\)"), ((4,), r"\(4, 4\)")):
        needs = f"log_likelihood` needs `outputs` of shape {wanted}, got"
        with pytest.raises(ValueError, match=needs):
            mc_dropout.log_likelihood(jnp.ones(shape), jnp.ones(4), precision=1.0)
    with pytest.raises(ValueError, match="not empty"):
        mc_dropout.log_likelihood(jnp.ones((0, 4)), jnp.ones(4), precision=1.0)
    whole = jnp.ones((3, 4), int)
    with pytest.raises(TypeError, match="log_likelihood` needs `outputs` as a float"):
        mc_dropout.log_likelihood(whole, jnp.ones(4), precision=1.0)
    with pytest.raises(TypeError, match="moments` needs `outputs` as a floating array"):
        mc_dropout.moments(whole, precision=2.0)


def test_rates_and_units_are_named():
    key, units = jax.random.key(0), {"a": jnp.ones(3), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="(?s)`units` and `rate` of the.*`units`: b"):
        mc_dropout.masks(units, rate={"a": 0.5}, key=key)
    with pytest.raises(ValueError, match=r"`rate of b` below 1, got 1\.0"):
        mc_dropout.masks(units, rate={"a": 0.5, "b": 1.0}, key=key)
    with pytest.raises(TypeError, match=r"(?s)`units` with a shape.*  a: int 3"):
        mc_dropout.masks({"a": 3, "b": None}, rate=0.5, key=key)
