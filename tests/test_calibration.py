"""Whether predictions are right as often as they say, against the definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from sklearn import calibration

from maskjax import metrics
from maskjax.metrics import _calibration
from tests.predictions import B, C, close, drawn_labels, raises, sixteenths, smooth
from tests.reference import uncertainty as reference

BINS = 10  # an end of one, 0.5, is a multiple of 1/16, and the others are not
BINNINGS, OF = ["equal-width", "equal-mass"], ["top-label", "class-wise"]
GOOD, LABELS = jnp.full((3, 2), 0.5), jnp.array([0, 1, 1])


# Bins.


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("of", OF)
def test_reliability_is_that_of_the_definition(binning, of, every_transform):
    options = {"binning": binning, "of": of, "bins": BINS}
    find = every_transform(functools.partial(metrics.reliability, **options))
    y = drawn_labels(B)
    for p in (sixteenths(B, least=0), smooth(B)):
        p = np.float32(p)
        found = find(p, y)
        wanted = [
            reference.reliability(*pair, BINS, binning)
            for pair in reference.judged(p, y, of)
        ]
        shape = (C, BINS) if of == "class-wise" else (BINS,)
        for leaf, rows in zip(found, zip(*wanted, strict=True), strict=True):
            assert leaf.shape == shape
            np.testing.assert_allclose(leaf, np.reshape(rows, shape), rtol=1e-5)
        np.testing.assert_array_equal(found.count.sum(-1), B)
        error = metrics.expected_calibration_error(p, y, **options)
        exact = reference.expected_calibration_error(p, y, BINS, binning, of)
        close(error, exact, atol=1e-6)


def test_calibration_under_transformations(every_transform):
    p, y = sixteenths(B, least=0), drawn_labels(B)
    find = every_transform(metrics.expected_calibration_error)
    wanted = reference.expected_calibration_error(
        np.float32(p), y, 15, "equal-width", "top-label"
    )
    close(find(jnp.asarray(p, jnp.bfloat16), y), wanted)


@pytest.mark.parametrize(
    ("binning", "strategy"), [("equal-width", "uniform"), ("equal-mass", "quantile")]
)
def test_reliability_is_the_calibration_curve_of_scikit_learn(binning, strategy):
    rng = np.random.default_rng(0)
    p = np.float32(rng.random(60))
    y = rng.integers(2, size=60)
    both = np.stack([1 - p, p], -1)
    found = metrics.reliability(both, y, bins=6, binning=binning, of="class-wise")
    accuracy, confidence = calibration.calibration_curve(
        y, p, n_bins=6, strategy=strategy
    )
    some = np.asarray(found.count[1]) > 0
    np.testing.assert_allclose(found.confidence[1][some], confidence, rtol=1e-5)
    np.testing.assert_allclose(found.accuracy[1][some], accuracy, rtol=1e-5)


@pytest.mark.parametrize("binning", BINNINGS)
def test_the_order_of_samples_does_not_matter(binning):
    p, y = np.float32(sixteenths(B, least=0)), drawn_labels(B)
    order = np.random.default_rng(2).permutation(B)
    there, again = (
        metrics.reliability(*pair, bins=BINS, binning=binning)
        for pair in ((p, y), (p[order], y[order]))
    )
    for a, b in zip(there, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("binning", BINNINGS)
def test_samples_that_are_equally_sure_are_in_one_bin(binning):
    p = jnp.tile(jnp.array([[0.75, 0.25]]), (8, 1))
    y = jnp.array([0, 0, 1, 1, 1, 1, 1, 1])
    bins = metrics.reliability(p, y, binning=binning)
    np.testing.assert_array_equal(np.sort(bins.count)[-2:], [0, 8])
    assert metrics.expected_calibration_error(p, y, binning=binning) == 0.5


def test_bins_of_equal_mass_are_as_equal_as_can_be():
    p = smooth(B)
    for bins in (5, B + 10):
        count = metrics.reliability(
            p, drawn_labels(B), bins=bins, binning="equal-mass"
        ).count
        assert count.sum() == B
        assert set(np.asarray(count)) <= {B // bins, -(-B // bins)}


def test_a_bin_takes_its_upper_end():
    p = jnp.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0], [0.0, 1.0]])
    count = metrics.reliability(p, jnp.zeros(4, int), bins=4, of="class-wise").count
    np.testing.assert_array_equal(count[0], [1, 1, 1, 1])  # 0 | 0.5 | 0.75 | 1
    np.testing.assert_array_equal(count[1], [2, 1, 0, 1])  # 0, 0.25 | 0.5 | | 1


def test_who_says_what_happens_is_calibrated():
    y = np.repeat([0, 1, 1, 1], 5)
    p = np.tile([0.25, 0.75], (20, 1))
    for binning, of in zip(BINNINGS, OF, strict=True):
        error = metrics.expected_calibration_error(p, y, of=of, binning=binning)
        assert error == 0


# Temperature.


def overconfident(*, size=400, scale=3.0, seed=0):
    """Logits of a calibrated model, multiplied, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(size, C))
    y = (z + rng.gumbel(size=z.shape)).argmax(-1).astype(np.int32)
    return scale * z, y


@pytest.mark.parametrize("scale", [1e-6, 0.1, 3.0, 1e4])
def test_the_temperature_is_the_best_there_is(scale, every_transform):
    logits, y = overconfident(scale=scale)
    found = every_transform(metrics.temperature)(np.float32(logits), y)
    best = optimize.minimize_scalar(
        lambda log_t: reference.tempered(logits, y, np.exp(log_t)),
        bounds=(np.log(scale / 10), np.log(scale * 10)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    close(found, np.exp(best.x), rtol=2e-5)
    assert found == pytest.approx(scale, rel=0.2)  # it was multiplied by this


def test_a_temperature_does_not_depend_on_shifts_or_outliers():
    logits, y = overconfident()
    found = metrics.temperature(logits, y)
    shift = np.random.default_rng(1).normal(size=(len(y), 1)) * 10
    close(metrics.temperature(logits + shift, y), found, rtol=1e-4)
    for never in (-np.inf, -1e9, float(jnp.finfo(jnp.float32).min)):
        wider = np.concatenate([logits, np.full((len(y), 1), never)], axis=1)
        close(metrics.temperature(wider, y), found, rtol=1e-5)


def test_temperatures_of_members_and_of_half_precision():
    logits, y = overconfident()
    stack = jnp.asarray(np.stack([logits, 2 * logits, logits[::-1]]), "float32")
    found = metrics.temperature(stack, y)
    assert found.shape == (3,)
    close(found[1], 2 * found[0], rtol=1e-5)
    close(found[0], metrics.temperature(logits, y), rtol=1e-6)
    half = metrics.temperature(jnp.asarray(logits, jnp.bfloat16), y)
    close(half, found[0], rtol=0.02)


def test_temperatures_at_the_ends():
    y = jnp.array([0, 1, 0])
    right = jnp.array([[1.0, 0.0], [0.0, 0.5], [2.0, 0.0]])
    assert metrics.temperature(right, y) == 2.0**-64
    sharp = jax.nn.softmax(right / metrics.temperature(right, y))
    np.testing.assert_array_equal(sharp, [[1, 0], [0, 1], [1, 0]])
    assert metrics.temperature(-right, y) == jnp.inf
    np.testing.assert_array_equal(jax.nn.softmax(-right / jnp.inf), 0.5)
    assert metrics.temperature(jnp.ones((3, 2)), y) == 1
    assert metrics.temperature(jnp.zeros((3, 1)), jnp.zeros(3, int)) == 1


def test_a_temperature_leaves_accuracy_and_improves_likelihood():
    logits, y = overconfident()
    logits = jnp.asarray(logits, "float32")
    t = metrics.temperature(logits, y)
    before, after = jax.nn.softmax(logits), jax.nn.softmax(logits / t)
    assert metrics.accuracy(before, y) == metrics.accuracy(after, y)
    for name in (
        "negative_log_likelihood",
        "brier_score",
        "expected_calibration_error",
    ):
        assert getattr(metrics, name)(after, y) < getattr(metrics, name)(before, y)


@pytest.mark.parametrize("name", ["reliability", "expected_calibration_error"])
def test_bins_are_what_they_can_be(name):
    function, fn = getattr(metrics, name), f"`maskjax.metrics.{name}`"
    with raises(ValueError, f"{fn} needs `bins` of at least 1, got 0"):
        function(GOOD, LABELS, bins=0)
    with raises(TypeError, f"{fn} needs `bins` as a whole number, got float 2.5"):
        function(GOOD, LABELS, bins=2.5)
    with raises(ValueError, f"{fn} needs `binning` as 'equal-width' or 'equal-mass'"):
        function(GOOD, LABELS, binning="width")
    with raises(ValueError, f"{fn} needs `of` as 'top-label' or 'class-wise', got 'al"):
        function(GOOD, LABELS, of="all")


def test_temperatures_of_what_can_not_be():
    logits, y = (jnp.asarray(x) for x in overconfident(size=5))
    for bad in (jnp.nan, jnp.inf):
        assert jnp.isnan(metrics.temperature(logits.at[1, 2].set(bad), y))
    assert jnp.isnan(metrics.temperature(logits.at[1, y[1]].set(-jnp.inf), y))
    both = jnp.stack([logits, logits.at[1, 2].set(jnp.nan)])
    np.testing.assert_array_equal(jnp.isnan(metrics.temperature(both, y)), [0, 1])


def test_nothing_compiles_twice_outside_of_jit():
    y = drawn_labels(B)
    sizes = []
    for seed in (0, 1):
        p = np.float32(smooth(B, seed=seed))
        metrics.expected_calibration_error(p, y)
        metrics.temperature(np.log(p), y)
        kernels = (_calibration._tally, _calibration._temperature)
        sizes.append([kernel._cache_size() for kernel in kernels])
    assert sizes[0] == sizes[1]
