"""Friedman's function and its relatives are what they say."""

import math

import numpy as np

from benchmarks import _friedman


def test_values_by_hand():
    x = np.zeros((3, 10))
    x[0, :5] = 0.5, 1.0, 0.0, 0.3, 0.2
    x[1, :5] = 1.0, 0.5, 1.0, 0.0, 1.0
    x[2, 5:] = 0.7  # which mean nothing
    found = _friedman.value(_friedman.TARGET, x)
    np.testing.assert_allclose(found, [10 + 5 + 3 + 1, 10 + 5 + 5, 5])
    other = _friedman.Coefficients(
        np.array([2.0, 3.0, 4.0, 5.0]),
        np.array([1.0, 0.5, 2.0, 3.0, 4.0]),
        np.array([0.1, 0.2, 0.3, 0.4, 0.5]),
    )
    z = [0.5 + 0.1, 0.5 + 0.2, 0.3, 0.9 + 0.4, 0.8 + 0.5]
    expected = 20 * math.sin(math.pi * z[0] * z[1]) + 60 * (z[2] - 0.5) ** 2
    expected += 40 * z[3] + 25 * z[4]
    np.testing.assert_allclose(_friedman.value(other, x[0]), expected)


def test_sources_spread_with_their_distance():
    found = [_friedman.source(2.0, seed=seed) for seed in range(2_000)]
    a, b, c = (np.stack(each) for each in zip(*found, strict=True))
    assert (a.shape[1], b.shape[1], c.shape[1]) == (4, 5, 5)
    for each, mean, deviation in ((a, 1, 0.2), (b, 1, 0.2), (c, 0, 0.1)):
        np.testing.assert_allclose(each.mean(), mean, atol=0.01)
        np.testing.assert_allclose(each.std(), deviation, rtol=0.05)
        assert abs(np.corrcoef(each[:, 0], each[:, 1])[0, 1]) < 0.1
    for one, target in zip(
        _friedman.source(0.0, seed=3), _friedman.TARGET, strict=True
    ):
        np.testing.assert_array_equal(one, target)
    near, far = (_friedman.source(d, seed=5) for d in (1.0, 3.0))
    np.testing.assert_allclose(far.a - 1, 3 * (near.a - 1))


def test_samples_are_uniform_noisy_and_the_same_every_time():
    x, y = _friedman.samples(_friedman.TARGET, 20_000, seed=1)
    assert x.shape == (20_000, 10)
    assert y.shape == (20_000, 1)
    assert x.dtype == y.dtype == np.float32
    assert x.min() >= 0
    assert x.max() <= 1
    np.testing.assert_allclose(x.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(x.var(0), 1 / 12, rtol=0.05)
    noise = y[:, 0] - _friedman.value(_friedman.TARGET, x)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.02)
    assert abs(np.corrcoef(noise, x.T)[0, 1:]).max() < 0.03
    few = _friedman.samples(_friedman.TARGET, 30, seed=1)
    np.testing.assert_array_equal(few[0], x[:30])
    np.testing.assert_array_equal(few[1], y[:30])
    other, values = _friedman.samples(_friedman.TARGET, 30, seed=2, noise=0.0)
    assert (other != few[0]).all()
    exact = _friedman.value(_friedman.TARGET, other)
    np.testing.assert_allclose(values[:, 0], exact, rtol=1e-5)
