"""How good and how sure predicted classes are, against definitions and scikit-learn."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from sklearn import calibration
from sklearn import metrics as sklearn_metrics

from maskjax import metrics
from tests.reference import uncertainty as reference

M, B, C = 4, 37, 5
SCORED = ["accuracy", "negative_log_likelihood", "brier_score"]
MEMBERS = ["expected_entropy", "mutual_information", "disagreement", "variation_ratio"]
BINNINGS, OF = ["equal-width", "equal-mass"], ["top-label", "class-wise"]


def sixteenths(*lead, seed=0, least=1):
    """Probabilities [..., C] that are multiples of 1/16: exact, with many ties."""
    rng = np.random.default_rng(seed)
    rest = rng.multinomial(16 - C * least, np.full(C, 1 / C), size=lead) + least
    return rest / 16


def drawn_labels(*lead, seed=1):
    return np.random.default_rng(seed).integers(C, size=lead).astype(np.int32)


def smooth(*lead, seed=0):
    """Probabilities [..., C] without ties."""
    z = 2 * np.random.default_rng(seed).normal(size=(*lead, C))
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def raises(kind, pattern):
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


def close(found, wanted, **tolerance):
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, **({"rtol": 1e-5} | tolerance))


# Scores of probabilities.


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_are_those_of_the_definitions(name, dtype, every_transform):
    p, y = sixteenths(B), drawn_labels(B)
    found = every_transform(getattr(metrics, name))(jnp.asarray(p, dtype), y)
    close(found, getattr(reference, name)(p, y))


def test_scores_are_those_of_scikit_learn():
    p, y = smooth(B), drawn_labels(B)
    found = {name: getattr(metrics, name)(p, y) for name in SCORED}
    close(found["accuracy"], sklearn_metrics.accuracy_score(y, p.argmax(-1)))
    close(found["negative_log_likelihood"], sklearn_metrics.log_loss(y, p))
    # Of two classes, theirs is half of ours.
    two = p[:, :1] + np.zeros((1, 2))
    two[:, 1] = 1 - two[:, 0]
    theirs = sklearn_metrics.brier_score_loss(y % 2, two[:, 1])
    close(metrics.brier_score(two, y % 2), 2 * theirs)


@pytest.mark.parametrize("name", [*SCORED, "expected_calibration_error"])
def test_members_are_scored_one_by_one(name):
    p, y = jnp.asarray(sixteenths(M, B), "float32"), drawn_labels(B)
    function = getattr(metrics, name)
    found = function(p, y)
    assert found.shape == (M,)
    close(found, jax.vmap(function, (0, None))(p, y), rtol=1e-6)
    own = drawn_labels(M, B)
    close(function(p, own), jax.vmap(function)(p, own), rtol=1e-6)
    close(function(p, own)[2], function(p[2], own[2]), rtol=1e-6)


def test_the_first_of_equal_classes_is_predicted():
    p = jnp.full((2, C), 1 / C)
    assert metrics.accuracy(p, jnp.array([0, 1])) == 0.5
    assert metrics.accuracy(jnp.zeros((1, 3)), jnp.array([0])) == 1


def test_accuracy_takes_logits():
    logits = 10 * np.random.default_rng(0).normal(size=(B, C))
    p = jax.nn.softmax(jnp.asarray(logits, "float32"))
    y = drawn_labels(B)
    assert metrics.accuracy(logits, y) == metrics.accuracy(p, y)


def test_what_has_no_probability_is_infinitely_surprising():
    p, y = jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.array([1, 0])
    assert metrics.negative_log_likelihood(p, y) == jnp.inf
    assert metrics.brier_score(p, y) == (2 + 0.5) / 2


def test_logarithms_reach_further_than_probabilities(every_transform):
    logits = jnp.array([[0.0, 150.0, 3.0], [0.0, 0.0, -jnp.inf]])
    log_probs, y = jax.nn.log_softmax(logits), jnp.array([0, 1])
    find = every_transform(
        lambda p, y: metrics.negative_log_likelihood(p, y, logs=True)
    )
    close(find(log_probs, y), (150 + np.log(2)) / 2, rtol=1e-6)
    assert metrics.negative_log_likelihood(jnp.exp(log_probs), y) == jnp.inf


def test_an_ensemble_is_no_worse_than_its_members_on_average():
    p, y = jnp.asarray(smooth(M, B), "float32"), drawn_labels(B)
    for name in ("negative_log_likelihood", "brier_score"):
        function = getattr(metrics, name)
        assert function(p.mean(0), y) < function(p, y).mean()
    mixed = jax.nn.logsumexp(jnp.log(p), 0, b=1 / M)
    found = metrics.negative_log_likelihood(mixed, y, logs=True)
    close(found, metrics.negative_log_likelihood(p.mean(0), y))


def test_counts_past_the_reach_of_float32_are_exact():
    size = 2**24 + 3
    halves = jnp.full((size, 2), 0.5, jnp.bfloat16)
    y = jnp.zeros(size, jnp.int8)
    close(metrics.accuracy(halves, y), 1, rtol=1e-7)  # a sum that stops is 2e-7 short
    bins = metrics.reliability(halves, y, bins=2)
    np.testing.assert_array_equal(bins.count, [size, 0])
    close(bins.confidence, [0.5, np.nan], rtol=1e-6)
    close(bins.accuracy, [1, np.nan], rtol=1e-7)


@pytest.mark.parametrize("name", ["accuracy", "reliability", "auroc", "aurc"])
def test_more_samples_than_32_bits_count_need_64(name):
    size = 2**31 - 1
    if name in ("accuracy", "reliability"):
        given = ((size, 1), jnp.bfloat16), (size, jnp.int8)
    else:
        given = (size, jnp.bfloat16), (size, bool)
    shapes = [jax.ShapeDtypeStruct(np.atleast_1d(s), d) for s, d in given]
    with raises(ValueError, f"`maskjax.metrics.{name}` needs 64-bit integers to count"):
        jax.eval_shape(getattr(metrics, name), *shapes)


@pytest.mark.parametrize("name", [*SCORED, "expected_calibration_error"])
def test_doubles_stay_doubles_where_there_are_any(name, x64):
    p, y = smooth(B), drawn_labels(B).astype(np.int64)
    found = getattr(metrics, name)(p, y)
    assert found.dtype == jnp.float64
    options = (15, "equal-width", "top-label") if name not in SCORED else ()
    np.testing.assert_allclose(
        found, getattr(reference, name)(p, y, *options), rtol=1e-12
    )


# What members agree about.


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_members_are_compared_as_defined(name, dtype, every_transform):
    p = sixteenths(M, B, least=0)
    find = every_transform(lambda p: getattr(metrics, name)(p))
    close(find(jnp.asarray(p, dtype)), getattr(reference, name)(p), atol=1e-6)


def test_entropy_is_that_of_the_definition(every_transform):
    p = sixteenths(M, B, least=0)
    find = every_transform(metrics.entropy)
    close(find(jnp.asarray(p, jnp.bfloat16)), [reference.entropy(q) for q in p])
    close(metrics.entropy(jnp.asarray(p[0], "float32")), reference.entropy(p[0]))
    close(metrics.entropy(jnp.full(4, 0.25)), np.log(4))


@pytest.mark.parametrize("name", MEMBERS)
def test_other_axes_stay(name):
    p = jnp.asarray(sixteenths(M, 3, B), "float32")
    function = getattr(metrics, name)
    found = function(p)
    assert found.shape == (3, B)
    close(found, jax.vmap(function, 1)(p), atol=1e-6)
    close(function(p[:, 1, 2]), found[1, 2], atol=1e-6)


def test_entropies_add_up():
    p = jnp.asarray(smooth(M, B), "float32")
    parts = metrics.expected_entropy(p) + metrics.mutual_information(p)
    close(parts, metrics.entropy(p.mean(0)))
    kl = (p * jnp.log(p / p.mean(0, keepdims=True))).sum(-1)
    close(metrics.mutual_information(p), kl.mean(0), atol=1e-6)


@pytest.mark.parametrize("name", MEMBERS[1:])
def test_members_that_are_one_agree(name):
    p = np.tile(smooth(1, B), (M, 1, 1))
    np.testing.assert_array_equal(getattr(metrics, name)(p), 0)


def test_a_small_mutual_information_is_not_lost():
    base = np.array([0.3, 0.5, 0.2])
    shift = 1e-4 * np.array([1, -2, 1])
    p = np.stack([base + shift, base - shift])[:, None]
    exact = np.float32(p).astype(float)  # as it is after rounding
    exact /= exact.sum(-1, keepdims=True)
    wanted = reference.mutual_information(exact)
    assert wanted < 2e-7  # what is left of a difference of entropies is noise
    np.testing.assert_allclose(metrics.mutual_information(p), wanted, rtol=0.01)
    assert (metrics.mutual_information(smooth(M, B)) >= 0).all()


def test_members_who_all_differ():
    p = jnp.eye(3)[:, None]
    assert metrics.disagreement(p) == 1
    close(metrics.variation_ratio(p), [2 / 3])
    close(metrics.mutual_information(p), [np.log(3)])


def test_many_members_are_counted():
    p = np.zeros((1000, 1, 2), np.float32)
    p[:600, :, 0], p[600:, :, 1] = 1, 1
    close(metrics.disagreement(p), [2 * 600 * 400 / (1000 * 999)])
    close(metrics.variation_ratio(p), [0.4])
    entropy = reference.entropy(np.array([[0.6, 0.4]]))
    close(metrics.mutual_information(p), entropy)


# Calibration.


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("of", OF)
def test_reliability_is_that_of_the_definition(binning, of, every_transform):
    for p in (sixteenths(B, least=0), smooth(B)):
        p = np.asarray(p, np.float32)
        y = drawn_labels(B)
        options = {"binning": binning, "of": of}
        for bins in (4, 10):  # an end of some is, of others is not a sixteenth
            found = every_transform(
                functools.partial(metrics.reliability, bins=bins, **options)
            )(p, y)
            wanted = [
                reference.reliability(*pair, bins, binning)
                for pair in reference.judged(p, y, of)
            ]
            shape = (C, bins) if of == "class-wise" else (bins,)
            for leaf, rows in zip(found, zip(*wanted, strict=True), strict=True):
                assert leaf.shape == shape
                np.testing.assert_allclose(leaf, np.reshape(rows, shape), rtol=1e-5)
            np.testing.assert_array_equal(found.count.sum(-1), B)
            error = metrics.expected_calibration_error(p, y, bins=bins, **options)
            exact = reference.expected_calibration_error(p, y, bins, binning, of)
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
        metrics.reliability(*pair, bins=7, binning=binning)
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
    for bins in (1, 5, B, B + 10):
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
    for of in OF:
        for binning in BINNINGS:
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


# Bad input.

BY_SAMPLE = {name: getattr(metrics, name) for name in SCORED} | {
    "expected_calibration_error": metrics.expected_calibration_error,
    "reliability": metrics.reliability,
    "temperature": metrics.temperature,
}
OF_PROBABILITIES = {
    name: function
    for name, function in BY_SAMPLE.items()
    if name not in ("accuracy", "temperature")
}
over_samples = pytest.mark.parametrize(
    ("name", "function"), BY_SAMPLE.items(), ids=BY_SAMPLE
)
over_probabilities = pytest.mark.parametrize(
    ("name", "function"), OF_PROBABILITIES.items(), ids=OF_PROBABILITIES
)
GOOD, LABELS = jnp.full((3, 2), 0.5), jnp.array([0, 1, 1])


def all_nan(result):
    floats = [x for x in jax.tree.leaves(result) if x.dtype == jnp.float32]
    return all(bool(jnp.isnan(x).all()) for x in floats)


@over_samples
@pytest.mark.parametrize("label", [-1, 2, 300])
def test_labels_outside_the_classes(name, function, label):
    y = LABELS.at[1].set(label)
    least, most = min(label, 0), max(label, 1)
    with raises(
        ValueError,
        rf"`maskjax.metrics.{name}` needs `labels` in \[0, 2\), got labels from "
        f"{least} to {most}",
    ):
        function(GOOD, y)
    logits = GOOD.at[0, 0].set(0.75) if name == "temperature" else GOOD
    assert all_nan(jax.jit(function)(logits, y))


@over_samples
def test_labels_of_few_bits_may_be_fewer_than_classes(name, function):
    y = jnp.array([3, 127, 0], jnp.int8)
    p = jnp.full((3, 512), 1 / 512)
    assert not all_nan(jax.jit(function)(p, y)) or name == "reliability"


@over_samples
def test_samples_there_are_and_labels_for_each(name, function, transform):
    fn = f"`maskjax.metrics.{name}`"
    of = "outputs" if name == "accuracy" else "probs"
    of = "logits" if name == "temperature" else of
    with raises(ValueError, rf"{fn} needs `{of}` of shape .*empty, got \(0, 2\)"):
        transform(function)(jnp.ones((0, 2)), jnp.ones(0, int))
    with raises(ValueError, rf"{fn} needs `labels` with one .* \(3,\) .* got \(2,\)"):
        transform(function)(GOOD, LABELS[:2])
    for y in (LABELS[:, None], LABELS[None], jnp.array(0)):
        with raises(ValueError, rf"{fn} needs `labels` with one entry for each sample"):
            transform(function)(GOOD, y)
    for y in (LABELS.astype("float32"), LABELS == 1):
        with raises(TypeError, rf"{fn} needs `labels` as an integer array, got \w+ ar"):
            transform(function)(GOOD, y)
    with raises(TypeError, rf"{fn} needs `{of}` as a floating array, got int32 array"):
        transform(function)(GOOD.astype(int), LABELS)


@over_probabilities
def test_probabilities_sum_to_one(name, function):
    fn = f"`maskjax.metrics.{name}` needs `probs` as probabilities, at least 0 and with"
    for row, found in [
        ((2.0, 1.0), "sum of 3 and a least of 1"),
        ((1.25, -0.25), "sum of 1 and a least of -0.25"),
        ((0.5, 0.49), "sum of 0.99 "),
    ]:
        bad = GOOD.at[1].set(jnp.array(row))
        with raises(ValueError, f"{fn}.*{found}.*Of logits take `jax.nn.softmax`"):
            function(bad, LABELS)
        assert all_nan(jax.jit(function)(bad, LABELS))


@pytest.mark.parametrize("name", ["entropy", "expected_entropy", "mutual_information"])
def test_entropies_are_of_probabilities(name):
    function = getattr(metrics, name)
    bad = jnp.stack([GOOD, GOOD.at[1].set(0.25)])
    with raises(ValueError, f"`maskjax.metrics.{name}` needs `probs` .* sum of 0.5 "):
        function(bad)
    found = jax.jit(function)(bad)
    wanted = [[False] * 3, [False, True, False]] if name == "entropy" else [0, 1, 0]
    np.testing.assert_array_equal(jnp.isnan(found), wanted)


def test_logarithms_of_probabilities_are_told_apart():
    fn = "`maskjax.metrics.negative_log_likelihood` needs `probs` as logarithms of prob"
    with raises(ValueError, f"{fn}.* sum of 3.29.*Of logits take `jax.nn.log_softmax`"):
        metrics.negative_log_likelihood(GOOD, LABELS, logs=True)
    with raises(ValueError, "needs `probs` as probabilities"):
        metrics.negative_log_likelihood(jnp.log(GOOD), LABELS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_rounded_probabilities_are_probabilities(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 1000)), dtype)
    p = jax.nn.softmax(3 * logits)
    for given in (p, p.astype(jnp.float32) if dtype == jnp.float32 else p):
        assert jnp.isfinite(metrics.entropy(given)).all()


@over_samples
def test_nan_stays_nan(name, function, transform):
    result = transform(function)(GOOD.at[1].set(jnp.nan), LABELS)
    if name == "reliability":
        assert jnp.isnan(result.confidence[result.count > 0]).any()
    else:
        assert jnp.isnan(result)


@pytest.mark.parametrize("name", ["entropy", *MEMBERS])
def test_nan_of_a_member_is_nan_of_the_sample(name):
    p = np.float32(smooth(M, B))
    p[2, 5, 1] = np.nan
    found = jnp.isnan(getattr(metrics, name)(p))
    assert found.sum() == 1
    assert found[2, 5] if name == "entropy" else found[5]


@pytest.mark.parametrize("name", MEMBERS)
def test_members_have_an_axis(name, transform):
    function = transform(getattr(metrics, name))
    fn = f"`maskjax.metrics.{name}`"
    few = [jnp.full(4, 0.25)]
    few += [jnp.full((1, 3, 2), 0.5)] if name == "disagreement" else []
    for p in few:
        with raises(ValueError, rf"{fn} needs `\w+` of shape \[M, ..., C\], with at "):
            function(p)
    for p in (jnp.ones((0, 3, 2)), jnp.ones((2, 3, 0)), jnp.ones(())):
        with raises(ValueError, rf"{fn} needs `\w+` of shape \[..., C\], not empty"):
            function(p)


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
