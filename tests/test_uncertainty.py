"""How good and how sure predicted classes are, against definitions and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from maskjax import metrics
from tests import trees
from tests.predictions import B, C, M, close, drawn_labels, raises, sixteenths, smooth
from tests.reference import uncertainty as reference

SCORED = ["accuracy", "negative_log_likelihood", "brier_score"]
WITH_ERROR = [*SCORED, "expected_calibration_error"]
MEMBERS = ["expected_entropy", "mutual_information", "disagreement", "variation_ratio"]
BY_SAMPLE = [*WITH_ERROR, "reliability", "temperature"]
OF_PROBABILITIES = [n for n in BY_SAMPLE if n not in ("accuracy", "temperature")]


def all_of(names):
    """All of the metrics in one program, as a dict."""
    return lambda *args: {name: getattr(metrics, name)(*args) for name in names}


scores = jax.jit(all_of(WITH_ERROR))
compared = jax.jit(all_of(["entropy", *MEMBERS]))


def defined(name, p, y):
    options = (15, "equal-width", "top-label") if name not in SCORED else ()
    return getattr(reference, name)(p, y, *options)


# Scores of probabilities.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_are_those_of_the_definitions(dtype):
    p, y = sixteenths(B), drawn_labels(B)
    found = scores(p.astype(dtype), y)
    for name in WITH_ERROR:
        close(found[name], defined(name, np.float32(p), y), atol=1e-6)


def test_members_are_scored_one_by_one_and_under_vmap():
    p = np.float32(sixteenths(M, B))
    for y in (drawn_labels(B), drawn_labels(M, B)):
        found, own = scores(p, y), np.broadcast_to(y, (M, B))
        for name in WITH_ERROR:
            close(
                found[name],
                [defined(name, *pair) for pair in zip(p, own, strict=True)],
                atol=1e-6,
            )
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(jax.vmap(scores))(p, own), found
    )


def test_scores_are_those_of_scikit_learn():
    p, y = smooth(B), drawn_labels(B)
    found = {name: getattr(metrics, name)(p, y) for name in SCORED}  # eager
    close(found["accuracy"], sklearn_metrics.accuracy_score(y, p.argmax(-1)))
    close(found["negative_log_likelihood"], sklearn_metrics.log_loss(y, p))
    # For two classes, theirs is half of ours.
    two = np.stack([p[:, 0], 1 - p[:, 0]], -1)
    theirs = sklearn_metrics.brier_score_loss(y % 2, two[:, 1])
    close(metrics.brier_score(two, y % 2), 2 * theirs)


def test_the_first_of_equal_classes_is_predicted():
    p = np.full((2, C), 1 / C)
    assert metrics.accuracy(p, np.array([0, 1])) == 0.5
    assert metrics.accuracy(np.zeros((1, 3)), np.array([0])) == 1


def test_accuracy_takes_logits():
    logits, y = 10 * np.random.default_rng(0).normal(size=(B, C)), drawn_labels(B)
    close(metrics.accuracy(logits, y), np.mean(logits.argmax(-1) == y))


def test_a_label_of_probability_0_is_infinitely_surprising():
    p, y = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([1, 0])
    assert metrics.negative_log_likelihood(p, y) == np.inf
    assert metrics.brier_score(p, y) == (2 + 0.5) / 2


def test_logarithms_reach_further_than_probabilities(transform):
    log_probs = np.array([[-150.0, 0.0, -147.0], [-np.log(2), -np.log(2), -np.inf]])
    y = np.array([0, 1])
    find = transform(lambda p, y: metrics.negative_log_likelihood(p, y, logs=True))
    close(find(np.float32(log_probs), y), (150 + np.log(2)) / 2, rtol=1e-6)
    assert metrics.negative_log_likelihood(np.exp(np.float32(log_probs)), y) == np.inf


def test_soft_labels_are_weighed_by_their_probabilities():
    p, q = np.float32(smooth(M, B)), np.float32(sixteenths(B, seed=3, least=0))
    found = jax.jit(
        lambda p, q: {
            "negative_log_likelihood": metrics.negative_log_likelihood(p, q),
            "logs": metrics.negative_log_likelihood(jnp.log(p), q, logs=True),
            "brier_score": metrics.brier_score(p, q),
        }
    )(p, q)
    wanted = -(q * np.log(p)).sum(-1).mean(-1)
    close(found["negative_log_likelihood"], wanted)
    close(found["logs"], wanted)
    close(found["brier_score"], ((p - q) ** 2).sum(-1).mean(-1))
    for name in SCORED[1:]:  # one-hot labels are soft labels
        hard = getattr(metrics, name)(p, np.eye(C, dtype="f4")[drawn_labels(B)])
        close(hard, getattr(metrics, name)(p, drawn_labels(B)))


def test_a_soft_label_of_0_does_not_meet_an_infinite_logarithm():
    p, q = np.float32([[1, 0], [0.5, 0.5]]), np.float32([[1, 0], [0, 1]])
    close(metrics.negative_log_likelihood(p, q), np.log(2) / 2)
    with np.errstate(divide="ignore"):
        logs = np.log(p)
    close(metrics.negative_log_likelihood(logs, q, logs=True), np.log(2) / 2)
    assert metrics.negative_log_likelihood(p, q[::-1].copy()) == np.inf


def test_a_share_is_the_nearest_number_to_the_ratio():
    for size in (3, 7, 37, 41, 49):
        right = np.tri(size + 1, size, -1, dtype=bool)  # 0, 1, ..., all of them
        p = np.stack([right, ~right], -1).astype("f4")
        count = np.arange(size + 1, dtype="f4")

        @jax.jit
        def find(p, members):
            y = jnp.zeros(p.shape[-2], jnp.int32)
            return metrics.accuracy(p, y), metrics.variation_ratio(members)

        accuracy, ratio = find(p, p.swapaxes(0, 1))
        np.testing.assert_array_equal(accuracy, count / np.float32(size))
        fewer = np.minimum(count, size - count)
        np.testing.assert_array_equal(ratio, fewer / np.float32(size))
        np.testing.assert_array_equal(
            metrics.accuracy(p, np.zeros(size, int)), count / np.float32(size)
        )


def test_an_ensemble_is_no_worse_than_its_members_on_average():
    p, y = np.float32(smooth(M, B)), drawn_labels(B)
    mean, each = scores(p.mean(0), y), scores(p, y)
    for name in ("negative_log_likelihood", "brier_score"):
        assert mean[name] < np.mean(each[name])
    mixed = np.log(p.mean(0))
    found = metrics.negative_log_likelihood(mixed, y, logs=True)
    close(found, mean["negative_log_likelihood"])


def test_counts_past_the_reach_of_float32_are_exact():
    size = 2**24 + 3
    certain = np.ones((size, 1), jnp.bfloat16)

    @jax.jit
    def find(p, y):
        return metrics.accuracy(p, y), metrics.reliability(p, y, bins=2)

    accuracy, bins = find(certain, np.zeros(size, np.int8))
    close(accuracy, 1, rtol=1e-7)  # a sum that stops is 2e-7 short
    np.testing.assert_array_equal(bins.count, [0, size])
    close(bins.confidence, [np.nan, 1], rtol=1e-6)
    close(bins.accuracy, [np.nan, 1], rtol=1e-7)


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


def test_doubles_stay_doubles_where_there_are_any(x64):
    p, y = smooth(B), drawn_labels(B).astype(np.int64)
    for name, found in jax.jit(all_of(WITH_ERROR))(p, y).items():
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, defined(name, p, y), rtol=1e-12)


# Samples that do not count.

ignoring = jax.jit(
    lambda p, y, where: {
        name: getattr(metrics, name)(p, y, where=where) for name in BY_SAMPLE
    }
)


def test_samples_that_do_not_count_may_be_anything():
    """Both in the program and outside, and for members that each ignore others."""
    p, y = np.float32(smooth(M, B)), drawn_labels(B)
    for where in (np.arange(B) % 3 > 0, np.arange(M * B).reshape(M, B) % 5 > 1):
        own = np.broadcast_to(where, (M, B))
        bad_p, bad_y = p.copy(), np.broadcast_to(y, (M, B)).copy()
        bad_p[~own], bad_y[~own] = np.nan, -100
        found = ignoring(bad_p, bad_y, where)
        for i in range(M):
            alone = few(p[i, own[i]], y[own[i]])
            for name in BY_SAMPLE:
                one = jax.tree.map(lambda x, i=i: x[i], found[name])
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6),
                    one,
                    alone[name],
                )
    eager = {
        name: getattr(metrics, name)(bad_p, bad_y, where=where) for name in BY_SAMPLE
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), eager, found)


def few(p, y):
    """The metrics of the samples that are left, whose number differs."""
    return {name: getattr(metrics, name)(p, y) for name in BY_SAMPLE}


def test_labels_to_ignore_are_told_not_guessed(transform):
    p, y = GOOD[:2], np.array([0, -100])
    assert transform(lambda p, y: metrics.accuracy(p, y, where=y != -100))(p, y) == 1
    with raises(ValueError, r"labels from -100 to 0. To .* `where=labels >= 0`"):
        metrics.accuracy(p, y)


def test_soft_labels_and_logarithms_may_be_ignored():
    p, q = np.float32(smooth(B)), np.float32(sixteenths(B, seed=3))
    where = np.arange(B) % 2 == 0
    wanted = -(q * np.log(p))[where].sum() / where.sum()
    bad_p, bad_q = np.where(where[:, None], p, np.nan), np.where(where[:, None], q, 7)

    @jax.jit
    def find(p, q, where):
        def nll(p, q):
            return metrics.negative_log_likelihood(p, q, logs=True, where=where)

        return jax.value_and_grad(nll, (0, 1))(jnp.log(p), q)

    found, slopes = find(bad_p, bad_q.astype("f4"), where)
    close(found, wanted)
    for slope in slopes:
        assert np.isfinite(slope).all()
        assert (np.asarray(slope)[~where] == 0).all()


def test_pixels_are_samples():
    images = np.float32(smooth(2, 3, 4))  # [B, H, W, C]
    y = drawn_labels(2, 3, 4)
    by_row = jax.jit(metrics.accuracy)(images, y)
    assert by_row.shape == (2, 3)
    flat = images.reshape(-1, C), y.ravel()
    close(metrics.accuracy(*flat), np.mean(by_row))


def test_no_sample_that_counts_is_nan():
    p, y = np.float32(smooth(2, B)), drawn_labels(B)
    where = np.stack([np.zeros(B, bool), np.ones(B, bool)])
    found = ignoring(p, y, where)
    assert found.pop("temperature")[0] == 1  # every temperature fits
    for name, result in found.items():
        floats = [x for x in jax.tree.leaves(result) if x.dtype == jnp.float32]
        assert all(np.isnan(x[0]).all() for x in floats), name
        assert all(np.isfinite(x[1]).any() for x in floats), name


# What members agree about.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_members_are_compared_as_defined(dtype):
    p = sixteenths(M, B, least=0)
    found = compared(p.astype(dtype))
    close(found["entropy"], [reference.entropy(q) for q in p])
    for name in MEMBERS:
        close(found[name], getattr(reference, name)(p), atol=1e-6)


def test_other_axes_stay():
    p = np.float32(sixteenths(M, 3, B))
    found, mapped = compared(p), jax.jit(jax.vmap(compared, 1, 0))(p)
    for name in MEMBERS:
        assert found[name].shape == (3, B)
        wanted = [getattr(reference, name)(p[:, i]) for i in range(3)]
        close(found[name], wanted, atol=1e-6)
        close(mapped[name], wanted, atol=1e-6)
    close(metrics.entropy(np.full(4, 0.25)), np.log(4))


def test_entropies_add_up():
    p = np.float32(smooth(M, B))
    found = compared(p)
    parts = found["expected_entropy"] + found["mutual_information"]
    close(parts, reference.entropy(p.mean(0)))
    kl = (p * np.log(p / p.mean(0))).sum(-1)
    close(found["mutual_information"], kl.mean(0), atol=1e-6)


def test_members_that_are_one_agree():
    found = compared(np.float32(np.tile(smooth(1, B), (M, 1, 1))))
    for name in MEMBERS[1:]:
        np.testing.assert_array_equal(found[name], 0)


def test_members_may_be_next_to_certain(transform):
    logits = 40 * np.random.default_rng(0).normal(size=(M, B, 3))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = np.float32(p / p.sum(-1, keepdims=True))
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
    assert (
        np.asarray(compared(np.float32(smooth(M, B)))["mutual_information"]) >= 0
    ).all()


def test_members_who_all_differ():
    p = np.eye(3)[:, None]
    assert metrics.disagreement(p) == 1
    close(metrics.variation_ratio(p), [2 / 3])
    close(metrics.mutual_information(p), [np.log(3)])


def test_many_members_are_counted():
    p = np.zeros((1000, 1, 2), np.float32)
    p[:600, :, 0], p[600:, :, 1] = 1, 1
    found = compared(p)
    close(found["disagreement"], [2 * 600 * 400 / (1000 * 999)])
    close(found["variation_ratio"], [0.4])
    close(found["mutual_information"], reference.entropy(np.array([[0.6, 0.4]])))


# Gradients.


FAR = [[0, 0], [16, 0], [50, -2], [88, 0], [95, 0], [200, 0], [1e4, -1e4]]
SLOPED = {
    "accuracy": lambda p, y: metrics.accuracy(p, y),
    "negative_log_likelihood": lambda p, y: metrics.negative_log_likelihood(p, y),
    "brier_score": lambda p, y: metrics.brier_score(p, y),
    "soft": lambda p, y: metrics.negative_log_likelihood(p, jnp.eye(2)[1 - y]),
    "expected_calibration_error": metrics.expected_calibration_error,
    "equal_mass": lambda p, y: metrics.expected_calibration_error(
        p, y, binning="equal-mass", of="class-wise"
    ),
    "temperature": lambda p, y: metrics.temperature(p, y),
    "entropy": lambda p, y: metrics.entropy(p).sum(),
    "expected_entropy": lambda p, y: metrics.expected_entropy(p[:, None]).sum(),
    "mutual_information": lambda p, y: metrics.mutual_information(p[:, None]).sum(),
    "disagreement": lambda p, y: metrics.disagreement(p[:, None]).sum(),
    "variation_ratio": lambda p, y: metrics.variation_ratio(p[:, None]).sum(),
    "auroc": lambda p, y: metrics.auroc(p[:, 0], y == 0),
    "average_precision": lambda p, y: metrics.average_precision(p[:, 0], y == 0),
    "fpr_at_tpr": lambda p, y: metrics.fpr_at_tpr(p[:, 0], y == 0),
    "aurc": lambda p, y: metrics.aurc(p[:, 0], p[:, 1].astype(jnp.float32)),
}


@jax.jit
def slopes_of(logits, y):
    """Of all metrics by the logits, through a softmax in their format."""
    return {
        name: jax.grad(lambda z, find=find: find(jax.nn.softmax(z), y))(logits)
        for name, find in SLOPED.items()
    }


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_gradients_are_finite_where_probabilities_are_0(dtype):
    z, y = np.array(FAR, dtype), np.arange(len(FAR)) % 2
    for name, slopes in slopes_of(z, y).items():
        assert slopes.dtype == dtype
        found = np.isfinite(trees.to_numpy(slopes))
        if dtype == jnp.float16 and name in ("negative_log_likelihood", "soft"):
            found = found[[0, 2, 3, 4, 5, 6]]  # -1 / p of 1e-7 is past its reach
        assert found.all(), name


def test_gradients_through_a_softmax_are_those_of_its_logits():
    z = np.float32(4 * np.random.default_rng(0).normal(size=(M, B, C)))

    @jax.jit
    def find(z):
        def mutual(z):
            p = jax.nn.softmax(z)
            mean = p.mean(0, keepdims=True)
            ratio = jnp.log(p) - jnp.log(mean)
            return (p * ratio).sum() / M

        own = jax.grad(lambda z: metrics.mutual_information(jax.nn.softmax(z)).sum())
        entropy = jax.grad(lambda z: metrics.entropy(jax.nn.softmax(z)).sum())
        p, log = jax.nn.softmax(z), jax.nn.log_softmax(z)
        exact = -p * (log - (p * log).sum(-1, keepdims=True))
        return (own(z), jax.grad(mutual)(z)), (entropy(z), exact)

    for found, wanted in find(z):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_gradients_in_logarithms_are_those_of_logits_in_half_precision(transform):
    z, y = np.array(FAR, np.float16), np.ones(len(FAR), int)

    def loss(z):
        logs = jax.nn.log_softmax(z)
        return metrics.negative_log_likelihood(logs, y, logs=True)

    found = transform(jax.grad(loss))(z)
    p = np.exp(np.float64(z) - z.max(-1, keepdims=True))
    wanted = (p / p.sum(-1, keepdims=True) - np.eye(2)[y]) / len(FAR)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


# Bad input.

JITTED = jax.jit(all_of(BY_SAMPLE))
GOOD, LABELS = np.full((3, 2), 0.5, np.float32), np.array([0, 1, 1])
over_samples = pytest.mark.parametrize("name", BY_SAMPLE)


def changed(array, at, value):
    array = array.copy()
    array[at] = value
    return array


def all_nan(result):
    floats = [x for x in jax.tree.leaves(result) if x.dtype == jnp.float32]
    return all(bool(np.isnan(x).all()) for x in floats)


@pytest.mark.parametrize("label", [-1, 2, 300])
def test_labels_outside_the_classes(label):
    y = changed(LABELS, 1, label)
    for name in BY_SAMPLE:
        with raises(
            ValueError,
            rf"`maskjax.metrics.{name}` needs `labels` in \[0, 2\), got labels from "
            f"{min(label, 0)} to {max(label, 1)}",
        ):
            getattr(metrics, name)(GOOD, y)
    found = JITTED(changed(GOOD, 0, (0.75, 0.25)), y)
    for name in BY_SAMPLE:
        assert all_nan(found[name]), name


def test_labels_of_few_bits_may_be_fewer_than_classes():
    y = np.array([3, 127, 0], np.int8)
    found = JITTED(np.full((3, 512), 1 / 512, np.float32), y)
    assert not any(map(all_nan, found.values()))


@over_samples
def test_samples_there_are_and_labels_for_each(name, transform):
    function, fn = transform(getattr(metrics, name)), f"`maskjax.metrics.{name}`"
    of = {"accuracy": "outputs", "temperature": "logits"}.get(name, "probs")
    with raises(ValueError, rf"{fn} needs `{of}` of shape .*empty, got \(0, 2\)"):
        function(np.ones((0, 2)), np.ones(0, int))
    with raises(ValueError, rf"{fn} needs `labels` with one .* \(3,\) .* got \(2,\)"):
        function(GOOD, LABELS[:2])
    for y in (LABELS[:, None], LABELS[None], np.array(0)):
        with raises(ValueError, rf"{fn} needs `labels` with one entry for each sample"):
            function(GOOD, y)
    for y in (np.float32(LABELS), LABELS == 1):
        with raises(TypeError, rf"{fn} needs `labels` as an integer array, got \w+ ar"):
            function(GOOD, y)
    with raises(TypeError, rf"{fn} needs `{of}` as a floating array, got int32 array"):
        function(GOOD.astype(np.int32), LABELS)


def test_probabilities_sum_to_one():
    for row, found in [
        ((2.0, 1.0), "sum of 3 and a least of 1"),
        ((1.25, -0.25), "sum of 1 and a least of -0.25"),
        ((0.5, 0.49), "sum of 0.99 "),
    ]:
        bad = changed(GOOD, 1, row)
        nan = JITTED(bad, LABELS)
        for name in OF_PROBABILITIES:
            fn = f"`maskjax.metrics.{name}` needs `probs` as probabilities, at least 0 "
            with raises(ValueError, f"{fn}.*{found}.*Of logits take `jax.nn.softmax`"):
                getattr(metrics, name)(bad, LABELS)
            assert all_nan(nan[name]), name


def test_entropies_are_of_probabilities():
    bad = np.stack([GOOD, changed(GOOD, 1, 0.25)])
    found = compared(bad)
    for name in ["entropy", "expected_entropy", "mutual_information"]:
        with raises(
            ValueError, f"`maskjax.metrics.{name}` needs `probs` .* sum of 0.5 "
        ):
            getattr(metrics, name)(bad)
        wanted = [[0, 0, 0], [0, 1, 0]] if name == "entropy" else [0, 1, 0]
        np.testing.assert_array_equal(np.isnan(found[name]), wanted)


def test_logarithms_of_probabilities_are_told_apart():
    fn = "`maskjax.metrics.negative_log_likelihood` needs `probs` as logarithms of prob"
    with raises(ValueError, f"{fn}.* sum of 3.29.*Of logits take `jax.nn.log_softmax`"):
        metrics.negative_log_likelihood(GOOD, LABELS, logs=True)
    with raises(ValueError, "needs `probs` as probabilities"):
        metrics.negative_log_likelihood(np.log(GOOD), LABELS)


def test_probabilities_of_one_of_two_classes_are_told_from_logits():
    p = np.float32([0.75, 0.875, 0.25])
    cure = r"as `jax.nn.sigmoid` gives, take `jnp.stack\(\[1 - p, p\], axis=-1\)`"
    for name in BY_SAMPLE:
        for transform in (lambda f: f, jax.jit):
            fn = f"`maskjax.metrics.{name}` needs `\\w+` of shape .* got \\(3,\\)"
            with raises(ValueError, f"{fn}.*{cure}"):
                transform(getattr(metrics, name))(p, LABELS)
    for name in ("entropy", "brier_score"):
        given = (p,) if name == "entropy" else (np.stack([p, p], -1), LABELS)
        with raises(ValueError, f"`maskjax.metrics.{name}` needs .* sum of .*{cure}"):
            getattr(metrics, name)(*given)
    found = metrics.brier_score(np.stack([1 - p, p], -1), LABELS)
    close(found, 2 * np.mean((p - LABELS) ** 2))


def test_soft_labels_fit_and_are_probabilities(transform):
    soft = np.float32(np.eye(2)[LABELS])
    for name in SCORED[1:]:
        fn, find = f"`maskjax.metrics.{name}`", getattr(metrics, name)
        for bad in (soft[:2], soft[:, :1], soft[None]):
            with raises(ValueError, rf"{fn} needs soft `labels` of shape \(3, 2\) or"):
                transform(find)(GOOD, bad)
        with raises(ValueError, rf"{fn} needs `labels` as probabilities.* sum of 2 "):
            find(GOOD, 2 * soft)
        assert np.isnan(jax.jit(find)(GOOD, 2 * soft))
    for name in ("accuracy", "reliability", "temperature"):
        with raises(TypeError, rf"{name}` needs .*Of soft labels take `jnp.argmax\("):
            transform(getattr(metrics, name))(GOOD, soft)


@over_samples
def test_which_samples_count_is_told_by_flags_of_samples(name, transform):
    find, fn = getattr(metrics, name), f"`maskjax.metrics.{name}`"
    with raises(TypeError, rf"{fn} needs `where` as a boolean array, got \w+ array"):
        transform(lambda p, y: find(p, y, where=y))(GOOD, LABELS)
    with raises(ValueError, rf"{fn} needs `where` with one .* \(3,\) .* got \(3, 2\)"):
        transform(lambda p, y: find(p, y, where=p > 0))(GOOD, LABELS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_rounded_probabilities_are_probabilities(dtype):
    p = np.exp(3 * np.random.default_rng(0).normal(size=(64, 1000)))
    given = jax.device_put((p / p.sum(-1, keepdims=True)).astype(dtype))
    assert np.isfinite(metrics.entropy(given)).all()


def test_nan_stays_nan():
    bad = changed(GOOD, 1, np.nan)
    found = JITTED(bad, LABELS)
    for name in BY_SAMPLE:
        assert all_nan(found[name]), name


def test_nan_of_a_member_is_nan_of_the_sample():
    p = changed(np.float32(smooth(M, B)), (2, 5, 1), np.nan)
    for name, found in compared(p).items():
        assert np.isnan(found).sum() == 1, name
        assert np.isnan(found[2, 5] if name == "entropy" else found[5]), name


@pytest.mark.parametrize("name", MEMBERS)
def test_members_have_an_axis(name, transform):
    function, fn = transform(getattr(metrics, name)), f"`maskjax.metrics.{name}`"
    few = [np.full(4, 0.25)]
    few += [np.full((1, 3, 2), 0.5)] if name == "disagreement" else []
    for p in few:
        with raises(ValueError, rf"{fn} needs `\w+` of shape \[M, ..., C\], with at "):
            function(p)
    for p in (np.ones((0, 3, 2)), np.ones((2, 3, 0)), np.ones(())):
        with raises(ValueError, rf"{fn} needs `\w+` of shape \[..., C\], not empty"):
            function(p)
