"""How good and how sure predicted classes are, against definitions and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from maskjax import metrics
from tests.predictions import B, C, M, close, drawn_labels, raises, sixteenths, smooth
from tests.reference import uncertainty as reference

SCORED = ["accuracy", "negative_log_likelihood", "brier_score"]
MEMBERS = ["expected_entropy", "mutual_information", "disagreement", "variation_ratio"]


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


def test_members_may_be_next_to_certain(transform):
    logits = 40 * np.random.default_rng(0).normal(size=(M, B, 3))
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits, "float32"), -1))
    assert ((p > 0) & (p < 1e-8 * p.mean(0))).any()  # the ratio less 1 rounds to -1
    found = transform(metrics.mutual_information)(p)
    close(found, reference.mutual_information(p.astype("float64")), atol=1e-6)


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
JITTED = {name: jax.jit(function) for name, function in BY_SAMPLE.items()}
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
    assert all_nan(JITTED[name](logits, y))


@over_samples
def test_labels_of_few_bits_may_be_fewer_than_classes(name, function):
    y = jnp.array([3, 127, 0], jnp.int8)
    p = jnp.full((3, 512), 1 / 512)
    assert not all_nan(function(p, y))


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
        assert all_nan(JITTED[name](bad, LABELS))


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
    assert all_nan(transform(function)(GOOD.at[1].set(jnp.nan), LABELS))


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
