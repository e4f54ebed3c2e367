"""Whether predictions are right as often as they say, against the definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special
from sklearn import calibration

from maskjax import metrics
from maskjax.metrics import _calibration
from tests.predictions import B, C, close, drawn_labels, raises, sixteenths, smooth
from tests.reference import uncertainty as reference

BINS = 10  # an end of one, 0.5, is a multiple of 1/16, and the others are not
BINNINGS, OF = ["equal-width", "equal-mass"], ["top-label", "class-wise"]
GOOD, LABELS = np.full((3, 2), 0.5, np.float32), np.array([0, 1, 1])


# Bins.


@functools.partial(jax.jit, static_argnames=("bins", "binning", "of"))
def both(p, y, **options):
    """The bins and their error, in one program."""
    error = metrics.expected_calibration_error(p, y, **options)
    return metrics.reliability(p, y, **options), error


def assert_defined(found, error, p, y, binning, of):
    wanted = [
        reference.reliability(*pair, BINS, binning)
        for pair in reference.judged(p, y, of)
    ]
    shape = (C, BINS) if of == "class-wise" else (BINS,)
    for leaf, rows in zip(found, zip(*wanted, strict=True), strict=True):
        assert leaf.shape == shape
        np.testing.assert_allclose(leaf, np.reshape(rows, shape), rtol=1e-5)
    np.testing.assert_array_equal(np.sum(found.count, -1), B)
    exact = reference.expected_calibration_error(p, y, BINS, binning, of)
    np.testing.assert_allclose(error, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("of", OF)
def test_reliability_is_that_of_the_definition(binning, of):
    options, y = {"binning": binning, "of": of, "bins": BINS}, drawn_labels(B)
    for p in (sixteenths(B, least=0), smooth(B)):
        p = np.float32(p)
        assert_defined(*both(p, y, **options), p, y, binning, of)


def test_reliability_is_the_same_eagerly_and_one_by_one():
    stack = np.float32(np.stack([sixteenths(B, least=0), smooth(B)]))
    y = drawn_labels(B)
    found, mapped = (
        both(stack, y, bins=BINS),
        jax.vmap(functools.partial(both, bins=BINS), (0, None))(stack, y),
    )
    jax.tree.map(np.testing.assert_array_equal, mapped, found)
    for i, p in enumerate(stack):
        one = metrics.reliability(p, y, bins=BINS)
        error = metrics.expected_calibration_error(p, y, bins=BINS)
        assert_defined(one, error, p, y, "equal-width", "top-label")
        own = jax.tree.map(lambda x, i=i: np.asarray(x)[i], found)
        assert_defined(*own, p, y, "equal-width", "top-label")


def test_calibration_in_half_precision():
    p, y = sixteenths(B, least=0), drawn_labels(B)
    wanted = reference.expected_calibration_error(
        np.float32(p), y, BINS, "equal-width", "top-label"
    )
    close(both(p.astype(jnp.bfloat16), y, bins=BINS)[1], wanted)


@pytest.mark.parametrize(
    ("binning", "strategy"), [("equal-width", "uniform"), ("equal-mass", "quantile")]
)
def test_reliability_is_the_calibration_curve_of_scikit_learn(binning, strategy):
    rng = np.random.default_rng(0)
    p = np.float32(rng.random(60))
    y = rng.integers(2, size=60)
    given, options = np.stack([1 - p, p], -1), {"bins": 6, "binning": binning}
    found = jax.tree.map(np.asarray, both(given, y, **options, of="class-wise")[0])
    accuracy, confidence = calibration.calibration_curve(
        y, p, n_bins=6, strategy=strategy
    )
    some = found.count[1] > 0
    np.testing.assert_allclose(found.confidence[1][some], confidence, rtol=1e-5)
    np.testing.assert_allclose(found.accuracy[1][some], accuracy, rtol=1e-5)


@pytest.mark.parametrize("binning", BINNINGS)
def test_the_order_of_samples_does_not_matter(binning):
    p, y = np.float32(sixteenths(B, least=0)), drawn_labels(B)
    order = np.random.default_rng(2).permutation(B)
    options = {"bins": BINS, "binning": binning, "of": "top-label"}
    there, again = both(p, y, **options), both(p[order], y[order], **options)
    for a, b in zip(*map(jax.tree.leaves, (there, again)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("binning", BINNINGS)
def test_samples_that_are_equally_sure_are_in_one_bin(binning):
    p = np.tile(np.float32([0.75, 0.25]), (8, 1))
    y = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    found, error = both(p, y, binning=binning)
    np.testing.assert_array_equal(np.sort(found.count)[-2:], [0, 8])
    assert error == 0.5


def test_bins_of_equal_mass_are_as_equal_as_can_be():
    p = np.float32(smooth(B))
    for bins in (5, B + 10):
        found, _ = both(p, drawn_labels(B), bins=bins, binning="equal-mass")
        count = np.asarray(found.count)
        assert count.sum() == B
        assert set(np.asarray(count)) <= {B // bins, -(-B // bins)}


def test_a_bin_takes_its_upper_end():
    p = np.float32([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0], [0.0, 1.0]])
    count = both(p, np.zeros(4, int), bins=4, of="class-wise")[0].count
    np.testing.assert_array_equal(count[0], [1, 1, 1, 1])  # 0 | 0.5 | 0.75 | 1
    np.testing.assert_array_equal(count[1], [2, 1, 0, 1])  # 0, 0.25 | 0.5 | | 1


@pytest.mark.parametrize("of", OF)
def test_bins_of_batches_are_pooled_to_those_of_all_samples(of):
    rng = np.random.default_rng(0)
    p = np.float32(smooth(20 * B)).reshape(20, B, C)
    y = (p.cumsum(-1) < rng.random((20, B, 1))).sum(-1).clip(0, C - 1)  # calibrated

    @jax.jit
    def find(p, y):
        of_batches = metrics.reliability(p, y, bins=BINS, of=of)
        whole = p.reshape(-1, C), y.ravel()
        return (
            metrics.pooled(of_batches),
            metrics.reliability(*whole, bins=BINS, of=of),
            metrics.calibration_error(of_batches).mean(),
            metrics.calibration_error(metrics.pooled(of_batches)).mean(),
            metrics.expected_calibration_error(*whole, bins=BINS, of=of),
        )

    pooled, whole, by_batch, error, exact = find(p, y)
    np.testing.assert_array_equal(pooled.count, whole.count)
    for a, b in zip(pooled[1:], whole[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(error, exact, rtol=1e-4)
    assert by_batch > 2 * error  # few samples are far from their mean by chance


def test_batches_with_other_samples_that_count_are_pooled():
    p, y = np.float32(smooth(4, B)), drawn_labels(4, B)
    where = np.arange(4 * B).reshape(4, B) < 2 * B + 5  # the last batch is empty
    find = jax.jit(
        lambda p, y, where: metrics.pooled(metrics.reliability(p, y, where=where))
    )
    found = find(np.where(where[..., None], p, np.nan), y, where)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        found,
        metrics.reliability(p[where], y[where]),
    )


def test_a_bin_that_is_no_number_stays_so():
    p, y = np.float32(smooth(2, B)), drawn_labels(2, B)
    p[1, 3] = np.nan
    bins = metrics.pooled(jax.jit(metrics.reliability)(p, y))
    assert np.isnan(metrics.calibration_error(bins))
    bad = metrics.reliability(p, y)
    assert np.isfinite(metrics.calibration_error(bad)[0])
    nothing = bad._replace(count=np.zeros_like(bad.count))
    assert np.isnan(metrics.calibration_error(nothing)).all()
    assert np.isnan(metrics.pooled(nothing).accuracy).all()


def test_bins_are_those_of_reliability(transform):
    bins = metrics.reliability(GOOD, LABELS)
    with raises(
        ValueError, r"pooled` needs `bins` of shape \[N, ..., bins\], .*\(15,\)"
    ):
        transform(metrics.pooled)(bins)
    empty = jax.tree.map(lambda x: x[:0], bins)
    with raises(ValueError, r"calibration_error` needs `bins` .*not empty, got \(0,\)"):
        transform(metrics.calibration_error)(empty)
    for name in ("pooled", "calibration_error"):
        with raises(TypeError, rf"{name}` needs `bins` as a `Reliability`, got float3"):
            transform(getattr(metrics, name))(GOOD)


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("of", OF)
def test_bins_are_of_the_samples_that_count(binning, of):
    p, y = np.float32(sixteenths(2, B, least=0)), drawn_labels(2, B)
    where = np.random.default_rng(2).random((2, B)) < 0.6
    options = {"binning": binning, "of": of, "bins": BINS}
    bad = np.where(where[..., None], p, np.nan), np.where(where, y, -100)
    found = both(*bad, where=where, **options)
    for i in range(2):
        alone = metrics.reliability(p[i][where[i]], y[i][where[i]], **options)
        error = metrics.calibration_error(alone).mean()
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, 1e-5, 1e-6),
            found,
            (alone, error),
        )


def test_who_says_what_happens_is_calibrated():
    y = np.repeat([0, 1, 1, 1], 5)
    p = np.tile([0.25, 0.75], (20, 1))
    for binning, of in zip(BINNINGS, OF, strict=True):
        assert both(np.float32(p), y, of=of, binning=binning)[1] == 0


# Temperature.


def overconfident(*, size=400, scale=3.0, seed=0):
    """Logits of a calibrated model, multiplied, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(size, C))
    y = (z + rng.gumbel(size=z.shape)).argmax(-1).astype(np.int32)
    return scale * z, y


temperature = jax.jit(metrics.temperature)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 3.0, 1e4])
def test_the_temperature_is_the_best_there_is(scale):
    logits, y = overconfident(scale=scale)
    found = temperature(np.float32(logits), y)
    best = optimize.minimize_scalar(
        lambda log_t: reference.tempered(logits, y, np.exp(log_t)),
        bounds=(np.log(scale / 10), np.log(scale * 10)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    close(found, np.exp(best.x), rtol=2e-5)
    assert found == pytest.approx(scale, rel=0.2)  # it was multiplied by this
    assert metrics.temperature(np.float32(logits), y) == found


def test_a_temperature_does_not_depend_on_shifts_or_outliers():
    logits, y = overconfident()
    found = temperature(np.float32(logits), y)
    shift = np.random.default_rng(1).normal(size=(len(y), 1)) * 10
    close(temperature(np.float32(logits + shift), y), found, rtol=1e-4)
    for never in (-np.inf, -1e9, np.finfo(np.float32).min):
        wider = np.concatenate([logits, np.full((len(y), 1), never)], axis=1)
        close(temperature(np.float32(wider), y), found, rtol=1e-5)


def test_temperatures_of_members_and_of_half_precision():
    logits, y = overconfident()
    stack = np.float32(np.stack([logits, 2 * logits, logits[::-1]]))
    found = temperature(stack, y)
    mapped = jax.jit(jax.vmap(metrics.temperature, (0, None)))(stack, y)
    assert found.shape == (3,)
    close(mapped, found, rtol=1e-6)
    close(found[1], 2 * found[0], rtol=1e-5)
    close(temperature(stack[0], y), found[0], rtol=1e-6)
    close(temperature(logits.astype(jnp.bfloat16), y), found[0], rtol=0.02)


def test_temperatures_at_the_ends():
    right = np.float32([[1.0, 0.0], [0.0, 0.5], [2.0, 0.0]])
    same = np.ones((3, 2), np.float32)
    y = np.array([0, 1, 0])
    found = temperature(np.stack([right, -right, same]), y)
    np.testing.assert_array_equal(found, [2.0**-64, np.inf, 1])
    sharp = special.softmax(right / np.float64(found[0]), -1)
    np.testing.assert_array_equal(sharp, [[1, 0], [0, 1], [1, 0]])
    assert metrics.temperature(np.zeros((3, 1)), np.zeros(3, int)) == 1
    assert metrics.temperature(right, y, where=np.zeros(3, bool)) == 1


def test_a_temperature_leaves_accuracy_and_improves_likelihood():
    logits, y = overconfident()
    t = float(temperature(np.float32(logits), y))

    @jax.jit
    def judged(p):
        names = ("negative_log_likelihood", "brier_score", "expected_calibration_error")
        found = [getattr(metrics, name)(p, y) for name in names]
        return metrics.accuracy(p, y), jnp.stack(found)

    (before, worse), (after, better) = (
        judged(np.float32(special.softmax(logits / scale, -1))) for scale in (1, t)
    )
    assert before == after
    assert (np.asarray(better) < np.asarray(worse)).all()


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
    logits, y = overconfident(size=5)
    stack = np.float32(np.stack([logits] * 4))
    stack[1, 1, 2], stack[2, 1, 2], stack[3, 1, y[1]] = np.nan, np.inf, -np.inf
    found = temperature(stack, y)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, True])


def test_nothing_compiles_twice_outside_of_jit():
    y = drawn_labels(B)
    sizes = []
    for seed in (0, 1):
        p = np.float32(smooth(B, seed=seed))
        metrics.expected_calibration_error(p, y)
        metrics.temperature(np.log(p), y)
        kernels = (_calibration._in_bins, _calibration._temperature)
        sizes.append([kernel._cache_size() for kernel in kernels])
    assert sizes[0] == sizes[1]
