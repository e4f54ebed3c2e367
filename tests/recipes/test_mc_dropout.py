"""Dropout kept on: laws of its masks, and NumPy in float64."""

import functools
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

UNITS = {"input": np.ones(6, bool), "hidden": np.ones(8, bool)}
RNG = np.random.default_rng(0)
PARAMS = {
    name: RNG.normal(size=shape).astype(np.float32)
    for name, shape in {"a": (6, 8), "b": (8, 3)}.items()
}
X = RNG.normal(size=(5, 6)).astype(np.float32)
T = 12


def network(masks, x):
    h = jax.nn.relu((x * masks["input"][None]) @ PARAMS["a"]) * masks["hidden"][None]
    return h @ PARAMS["b"]


@jax.jit
def predicted(keys, x, rate):
    """What members say, their masks, and what a mask drawn where it is used says."""
    masks = mc_dropout.masks(UNITS, rate=rate, keys=keys)

    def member(key, x):
        return network(mc_dropout.mask(UNITS, rate=rate, key=key), x)

    drawn = stacking.map(member, keys, x, batch_size=5)
    return stacking.map(network, masks, x), masks, drawn


def keys(count, *, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_units_are_dropped_at_the_rate_and_the_others_enlarged(rate):
    units = {"a": np.ones(30_000, np.float32), "b": None}
    masks = mc_dropout.mask(units, rate=rate, key=jax.random.key(0))
    assert masks["b"] is None
    found = np.asarray(masks["a"])
    size = np.float32(1) / (np.float32(1) - np.float32(rate))
    assert set(np.unique(found)) <= {np.float32(0), size}
    sigma = (rate * (1 - rate) / found.size) ** 0.5
    assert abs((found > 0).mean() - (1 - rate)) <= 4 * sigma


def test_masks_take_the_dtype_of_floats_and_the_rates_of_leaves():
    units = {"a": np.ones(4, jnp.bfloat16), "b": np.ones((3, 1), bool)}
    rates = {"a": 0.0, "b": jnp.asarray(np.float32(0.5))}
    masks = mc_dropout.mask(units, rate=rates, key=jax.random.key(1))
    assert masks["a"].dtype == jnp.bfloat16
    assert masks["b"].dtype == jnp.float32
    assert (np.asarray(masks["a"]) == 1).all()
    assert masks["b"].shape == (3, 1)
    draw = functools.partial(mc_dropout.mask, units, rate=0.5, examples=2)
    assert jax.eval_shape(lambda k: draw(key=k), jax.random.key(1))["a"].shape == (
        *(2, 1, 4),
    )


def test_leaves_and_members_get_keys_of_their_own():
    units = [np.ones(64, "f4")] * 2
    draw = functools.partial(mc_dropout.mask, units, rate=0.5)
    masks = jax.device_get(mc_dropout.masks(units, rate=0.5, keys=keys(3)))
    assert len({row.tobytes() for leaf in masks for row in leaf}) == 6
    for i, key in enumerate(keys(3)):  # as they are alone
        for mine, together in zip(draw(key=key), masks, strict=True):
            np.testing.assert_array_equal(mine, together[i])


def test_without_dropout_members_are_the_network():
    out, *_ = predicted(keys(T), X, np.float32(0))
    plain = np.maximum(X @ PARAMS["a"], 0) @ PARAMS["b"]
    np.testing.assert_allclose(out[0], plain, rtol=1e-5, atol=1e-5)
    mean, variance = mc_dropout.moments(out, precision=math.inf)
    np.testing.assert_allclose(mean, out[0], rtol=1e-6)
    assert np.max(variance) < 1e-10


def test_members_are_those_of_a_loop_over_keys():
    out, masks, drawn = predicted(keys(T), X, np.float32(0.3))
    masks = jax.device_get(masks)
    assert (masks["hidden"] == 0).any()
    for i in range(T):
        kept = X * masks["input"][i]
        alone = np.maximum(kept @ PARAMS["a"], 0) * masks["hidden"][i] @ PARAMS["b"]
        np.testing.assert_allclose(out[i], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(drawn, out, rtol=1e-5, atol=1e-5)


def test_of_a_linear_model_the_moments_are_known():
    rng, rate = np.random.default_rng(0), 0.3
    w, x = rng.normal(size=(6, 1)), rng.normal(size=(4, 6))

    @jax.jit
    def run(keys, w, x):
        masks = mc_dropout.masks(np.ones(6), rate=rate, keys=keys)
        out = stacking.map(lambda mask, x: (x * mask[None]) @ w, masks, x)
        return mc_dropout.moments(out, precision=math.inf)

    mean, variance = run(keys(20_000), *np.float32(w[None]), np.float32(x))
    exact = (w[:, 0] ** 2 * x**2).sum(1, keepdims=True) * rate / (1 - rate)
    assert (abs(np.asarray(mean) - x @ w) < 4 * (exact / 20_000) ** 0.5).all()
    np.testing.assert_allclose(variance, exact, rtol=0.05)


@jax.jit
def judged(outputs, targets, tau):
    of = functools.partial(mc_dropout.log_likelihood, outputs, targets)
    events = [of(precision=tau, event_ndim=axes) for axes in (0, 1, 2)]
    # A precision for each of two numbers.
    each = of(precision=tau * jnp.asarray([1.0, 2.0]))
    alone = jax.vmap(
        lambda o: mc_dropout.log_likelihood(o[None], targets, precision=tau)
    )(outputs)
    return mc_dropout.moments(outputs, precision=tau), events, each, alone


@pytest.mark.parametrize("tau", [0.1, 4.0])
def test_moments_and_likelihood_agree_with_numpy(tau):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(7, 4, 2)).astype("float32")
    targets = rng.normal(size=(4, 2)).astype("float32") + 3
    found = judged(outputs, targets, np.float32(tau))
    moments, events, each, alone = jax.device_get(found)
    eager = mc_dropout.moments(jnp.asarray(outputs), precision=tau)
    for mine, theirs in zip(
        (*moments, *eager), reference.moments(outputs, tau) * 2, strict=True
    ):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    for axes, score in enumerate(events):
        exact = reference.log_likelihood(outputs, targets, tau, axes)
        np.testing.assert_allclose(score, exact, rtol=1e-5)
    np.testing.assert_allclose(each[:, 0], events[0][:, 0], rtol=1e-6)
    assert (events[0] >= alone.mean(0) - 1e-5).all()  # Jensen
    assert (events[0] <= alone.max(0) + 1e-5).all()


def test_likelihoods_by_hand():
    score = mc_dropout.log_likelihood
    outputs, targets = np.float32([[-1, -1], [1, 1]]), np.float32([1, -1])
    found = score(jnp.asarray(outputs), targets, precision=10.0, event_ndim=1)
    # Each member is wrong by 2 in one number, of density e^-20.
    np.testing.assert_allclose(found, np.log(10 / (2 * np.pi)) - 20, rtol=1e-6)
    # Far from every member it stays finite.
    outputs, targets = np.zeros((2, 2), "f4"), np.full(2, 1e3, "f4")
    found = score(jnp.asarray(outputs), targets, precision=1e2, event_ndim=1)
    np.testing.assert_allclose(found, -1e8, rtol=1e-6)


def test_information_is_between_nothing_and_the_entropy():
    out, *_ = predicted(keys(T), 3 * X, np.float32(0.5))

    @jax.jit
    def asked(out):
        p = jax.nn.softmax(out, -1)
        return p, metrics.mutual_information(p), metrics.entropy(p.mean(0))

    p, informed, whole = map(np.asarray, asked(out))
    assert (informed >= 0).all()
    assert (informed <= whole).all()
    assert informed.max() > 0.01
    np.testing.assert_allclose(
        informed, whole - reference.entropy(p).mean(0), atol=1e-6
    )


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
def variables():
    return jax.jit(Net().init)(jax.random.key(0), np.ones((1, 6), "f4"))


def run(variables, masks, x):
    return Net().apply({**variables, "masks": masks}, x)


def test_masks_on_features_are_those_on_rows_and_may_be_each_samples_own(variables):
    # As masks on the rows of the kernel that follows.
    rows = jax.tree.map(lambda _: None, variables["params"])
    units = {**rows, "Dense_1": {"kernel": np.ones((16, 1), bool), "bias": None}}

    @jax.jit
    def compare(variables, keys, x):
        fixed = {k: v for k, v in variables.items() if k != "params"}
        apply = lambda params, x: Net().apply({"params": params, **fixed}, x)  # noqa: E731
        net = functools.partial(run, variables)
        stack = mc_dropout.masks(units, rate=0.5, keys=keys)
        on_rows = stacking.predict(apply, variables["params"], stack, x)
        features = stack["Dense_1"]["kernel"][..., 0]
        masks = {"LinenFeatureMask_0": {"features": features}}
        on_features = stacking.map(net, masks, x)
        same = jnp.broadcast_to(x[:1], x.shape)
        draw = functools.partial(mc_dropout.masks, variables["masks"], rate=0.5)
        shared = stacking.map(net, draw(keys=keys), same)
        own = stacking.map(net, draw(keys=keys, examples=len(x)), same)
        return on_rows, on_features, shared, own

    before = jax.tree.map(np.array, variables)
    found = jax.device_get(compare(variables, keys(3), X))
    on_rows, on_features, shared, own = found
    np.testing.assert_allclose(on_rows, on_features, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(shared, np.repeat(shared[:, :1], 5, 1))
    assert len(np.unique(own.reshape(15, 3).round(5), axis=0)) == 15
    again = jax.device_get(compare(variables, keys(3), X))
    trees.assert_same(again, found)
    trees.assert_same(before, jax.tree.map(np.array, variables))  # statistics too


def test_memory_is_for_as_many_members_as_run_at_a_time(variables):
    def scratch(batch_size):
        def member(key, x):
            masks = mc_dropout.mask(variables["masks"], rate=0.5, key=key)
            return run(variables, masks, x)

        predict = functools.partial(stacking.map, member, batch_size=batch_size)
        shapes = jax.eval_shape(lambda: (keys(1000), jnp.ones((64, 6))))
        compiled = jax.jit(predict).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    hidden = 64 * 16 * 4  # the features of one member
    assert scratch(4) < 40 * hidden
    assert scratch(None) > 1000 * hidden


def test_rates_outside_of_the_interval_are_refused():
    key = jax.random.key(0)
    for name, given in (("mask", {"key": key}), ("masks", {"keys": keys(2)})):
        draw = functools.partial(getattr(mc_dropout, name), UNITS, **given)
        for rate in (-0.1, 1.5, math.nan):
            with pytest.raises(ValueError, match=rf"{name}` needs `rate` in \[0, 1\]"):
                draw(rate=rate)
        for rate in (1, 1.0):
            with pytest.raises(ValueError, match=f"{name}` needs `rate` below 1, got"):
                draw(rate=rate)
        with pytest.raises(TypeError, match=f"{name}` needs `rate` as a number"):
            draw(rate="half")
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
    draw = functools.partial(mc_dropout.masks, np.ones(2, "f4"), rate=0.5)
    twice = jax.random.key_data(keys(3))
    twice = jax.random.wrap_key_data(np.asarray(twice)[[0, 1, 2, 0, 1]])
    with pytest.raises(
        ValueError, match="(?s)masks` needs a key of its own.*0 and 3.*members 1 and 4"
    ):
        draw(keys=twice)
    # What is traced is not known.
    assert jax.eval_shape(lambda k: draw(keys=k), twice).shape == (5, 2)
    with pytest.raises(TypeError, match="`keys` as typed keys, one for each member"):
        draw(keys=jax.random.PRNGKey(0))
    with pytest.raises(
        ValueError, match=r"`keys` of shape \(members,\), got shape \(\)"
    ):
        draw(keys=jax.random.key(0))
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        draw(keys=twice[:0])


def test_other_bad_input_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="`units` with at least one leaf"):
        mc_dropout.mask({"a": None}, rate=0.5, key=key)
    with pytest.raises(ValueError, match="`examples` of at least 1, got 0"):
        mc_dropout.mask(UNITS, rate=0.5, examples=0, key=key)
    with pytest.raises(TypeError, match="`key` as a typed key"):
        mc_dropout.mask(UNITS, rate=0.5, key=jax.random.PRNGKey(0))
    score = functools.partial(mc_dropout.log_likelihood, precision=1.0)
    four = np.ones(4, "f4")
    for shape, wanted in (((3, 5), r"\(3, 4\)"), ((4,), r"\(4, 4\)")):
        needs = f"log_likelihood` needs `outputs` of shape {wanted}, got"
        with pytest.raises(ValueError, match=needs):
            score(np.ones(shape, "f4"), four)
    with pytest.raises(ValueError, match="not empty"):
        score(np.ones((0, 4), "f4"), four)
    whole = np.ones((3, 4), int)
    with pytest.raises(TypeError, match="log_likelihood` needs `outputs` as a float"):
        score(whole, four)
    with pytest.raises(TypeError, match="log_likelihood` needs `targets` as a float"):
        score(np.ones((3, 4), "f4"), np.ones(4, int))
    with pytest.raises(TypeError, match="moments` needs `outputs` as a floating array"):
        mc_dropout.moments(whole, precision=2.0)


def test_rates_and_units_are_named():
    draw = functools.partial(mc_dropout.mask, key=jax.random.key(0))
    units = {"a": np.ones(3, "f4"), "b": np.ones(2, "f4")}
    with pytest.raises(ValueError, match="(?s)`units` and `rate` of the.*`units`: b"):
        draw(units, rate={"a": 0.5})
    with pytest.raises(ValueError, match=r"`rate of b` below 1, got 1\.0"):
        draw(units, rate={"a": 0.5, "b": 1.0})
    with pytest.raises(TypeError, match=r"(?s)`units` with a shape.*  a: int 3"):
        draw({"a": 3, "b": None}, rate=0.5)
