"""Whether scores tell apart, ties and all: against pairs, thresholds, scikit-learn."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from maskjax import metrics
from tests.predictions import close, raises
from tests.reference import uncertainty as reference

B = 41
AREAS = ["auroc", "average_precision", "fpr_at_tpr"]
CURVES = ["risk_coverage", "aurc"]


@jax.jit
def areas(scores, positive):
    """All areas in one program: few compile, and under `jit` nothing is checked."""
    return {name: getattr(metrics, name)(scores, positive) for name in AREAS}


@jax.jit
def curves(confidence, losses):
    """Risks and their mean."""
    curve = metrics.risk_coverage(confidence, losses)
    return curve.coverage, curve.risk, metrics.aurc(confidence, losses)


def drawn(*, values=8, seed=0, share=0.4, lead=()):
    """Scores [..., B] of few values, so with ties, and which are positive, [B]."""
    rng = np.random.default_rng(seed)
    positive = rng.random(B) < share
    scores = rng.integers(values, size=(*lead, B)) + 2.0 * positive
    return np.float32(scores / 8), positive


def several():
    """Five draws, of two, few and many values each: [15, B], and [15, B]."""
    pairs = [drawn(values=v, seed=s) for s in range(5) for v in (2, 8, 10_000)]
    return tuple(map(np.stack, zip(*pairs, strict=True)))


def defined(name, scores, positive, *, parts=19, of=20):
    """The reference, at a true positive rate of parts / of."""
    options = (parts, of) if name == "fpr_at_tpr" else ()
    return getattr(reference, name)(scores, positive, *options)


def roc_point(scores, positive, tpr):
    """The first point of scikit-learn's curve that reaches a true positive rate."""
    false, true, _ = sklearn_metrics.roc_curve(
        positive, scores, drop_intermediate=False
    )
    return false[np.argmax(true >= tpr)]


# Areas.


def test_areas_are_those_of_the_definitions_and_of_scikit_learn():
    scores, positive = several()
    found, mapped = areas(scores, positive), jax.jit(jax.vmap(areas))(scores, positive)
    theirs = {
        "auroc": lambda s, p: sklearn_metrics.roc_auc_score(p, s),
        "average_precision": lambda s, p: sklearn_metrics.average_precision_score(p, s),
        "fpr_at_tpr": lambda s, p: roc_point(s, p, 0.95),
    }
    for name in AREAS:
        pairs = list(zip(scores, positive, strict=True))
        close(found[name], [defined(name, *pair) for pair in pairs], rtol=1e-6)
        close(found[name], [theirs[name](*pair) for pair in pairs], rtol=1e-6)
        np.testing.assert_array_equal(mapped[name], found[name])
        eager = getattr(metrics, name)(scores, positive)
        np.testing.assert_array_equal(eager, found[name])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_areas_of_half_precision_are_of_what_is_left(dtype):
    scores, positive = drawn(values=10_000)
    given = (100 + scores / 1000).astype(dtype)  # more of them are equal
    assert len(set(np.float64(given))) < len(set(scores))
    for name, found in areas(given, positive).items():
        close(found, defined(name, np.float64(given), positive), rtol=1e-6)


def test_samples_that_do_not_count_may_score_anything():
    scores, positive = (x[:3] for x in several())
    where = np.random.default_rng(5).permuted(
        np.tile(np.arange(B) < 25, (3, 1)), axis=1
    )
    bad = np.where(where, scores, np.nan).astype("f4")
    losses = np.float32(np.random.default_rng(6).random(scores.shape))

    @jax.jit
    def find(scores, positive, losses, where):
        args = {name: (scores, positive) for name in AREAS}
        args |= {"aurc": (scores, losses)}
        return {n: getattr(metrics, n)(*a, where=where) for n, a in args.items()}

    noise = np.where(where, losses, np.inf)
    found = find(bad, positive | ~where, noise, where)
    wrong = metrics.aurc(bad, positive | ~where, where=where)
    for i in np.ndindex(scores.shape[:-1]):
        own, rest = where[i], (np.float32(scores[i]), positive[i], losses[i])
        left, kind, lost = (x[own] for x in rest)
        for name in AREAS:
            close(found[name][i], getattr(metrics, name)(left, kind), atol=1e-6)
        close(found["aurc"][i], metrics.aurc(left, lost))
        close(wrong[i], metrics.aurc(left, kind))


def test_areas_of_no_sample_that_counts_are_nan(transform):
    where = np.zeros(4, bool)
    for name in (*AREAS, "aurc"):
        find = transform(getattr(metrics, name))
        assert np.isnan(find(np.ones(4), where, where=where)), name


def test_coverage_is_the_nearest_number_to_the_ratio(transform):
    for size in (37, 41, 49):
        curve = transform(metrics.risk_coverage)(np.ones(size), np.ones(size))
        wanted = np.arange(1, size + 1, dtype="f4") / np.float32(size)
        np.testing.assert_array_equal(curve.coverage, wanted)


def test_leading_axes_stay():
    scores, positive = drawn(lead=(3,))
    found = areas(scores, positive)  # [B] labels for all
    for name in AREAS:
        close(found[name], [defined(name, row, positive) for row in scores])
    shapes = jax.eval_shape(areas, scores[None], np.stack([positive] * 3))
    assert {shape.shape for shape in shapes.values()} == {(1, 3)}


def test_nothing_is_told_by_equal_scores():
    _, positive = drawn()
    share = positive.mean()
    scores = np.stack([np.full(B, x, np.float32) for x in (0, -3, np.inf, 0)])
    scores[3, ::2] = -0.0
    found = areas(scores, np.stack([positive] * 4))
    for name, wanted in (
        ("auroc", 0.5),
        ("average_precision", share),
        ("fpr_at_tpr", 1.0),
    ):
        close(found[name], np.full(4, wanted), rtol=1e-6)


def test_all_is_told_by_scores_that_separate():
    _, positive = drawn()
    ends = ((0, 1), (-1e30, -1e-30), (-np.inf, np.inf), (1, 0))
    scores = np.float32([np.where(positive, high, low) for low, high in ends])
    for name, found in areas(scores, np.stack([positive] * 4)).items():
        np.testing.assert_array_equal(found[:3], 0 if name == "fpr_at_tpr" else 1)
        close(found[3], defined(name, scores[3], positive), rtol=1e-6)  # the worst
    assert areas(scores, np.stack([positive] * 4))["auroc"][3] == 0


def test_only_the_order_matters():
    scores, positive = drawn(values=10_000)
    tiny = np.float32(np.argsort(np.argsort(scores))) * np.float32(1e-42)
    assert 0 < tiny.max() < np.finfo(np.float32).tiny  # subnormals are no ties
    order = np.random.default_rng(3).permutation(B)
    given = np.stack([scores, np.exp(scores / 1000), tiny, scores[order]])
    labels = np.stack([positive] * 3 + [positive[order]])
    for found in areas(given, labels).values():
        np.testing.assert_array_equal(found, np.broadcast_to(found[0], 4))


def test_auroc_of_the_opposite_is_the_rest():
    scores, positive = drawn()
    given = np.stack([scores, -scores, scores, scores])
    labels = np.stack([positive, positive, ~positive, positive])
    found = np.asarray(areas(given, labels)["auroc"])
    np.testing.assert_allclose(found[1:3], 1 - found[0], rtol=1e-6)


@pytest.mark.parametrize("tpr", [0, 0.05, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1, 1 / 3])
def test_a_true_positive_rate_is_counted_exactly(tpr):
    part = fractions.Fraction(tpr).limit_denominator(100)
    # Of 60 positives 0.05, 0.7 and so on are whole numbers, which floats may miss.
    scores = np.arange(100, dtype=np.float32)[::-1]
    positive = np.arange(100) % 5 != 0
    positive[75:] = np.arange(25) % 5 == 1
    chosen = np.stack([positive & (positive.cumsum() <= n) for n in (60, 59, 20, 1)])
    found = metrics.fpr_at_tpr(np.stack([scores] * 4), chosen, tpr=tpr)
    parts = part.numerator, part.denominator
    wanted = [reference.fpr_at_tpr(scores, row, *parts) for row in chosen]
    close(found, wanted, rtol=1e-6)


def test_a_true_positive_rate_may_be_a_float32():
    scores, positive = drawn()
    assert metrics.fpr_at_tpr(scores, positive, tpr=np.float32(0.95)) == (
        metrics.fpr_at_tpr(scores, positive)
    )


@pytest.mark.slow
def test_counts_past_the_reach_of_float32_are_exact():
    size = 2**24 + 2**20
    # One positive below all, and one above: every negative is above the first.
    scores = (
        jnp.zeros(size, jnp.bfloat16)
        .at[jnp.array([3, 5])]
        .set(jnp.array([-1, 1], jnp.bfloat16))
    )
    positive = jnp.zeros(size, bool).at[jnp.array([3, 5])].set(jnp.array([True, True]))
    close(metrics.auroc(scores, ~positive), 0.5, rtol=1e-7)


def test_one_kind_alone_is_nan():
    scores, positive = drawn()
    kinds = np.stack([positive, np.zeros(B, bool), np.ones(B, bool), positive])
    for name, found in areas(np.stack([scores] * 4), kinds).items():
        nan = [False, True, name != "average_precision", False]
        np.testing.assert_array_equal(np.isnan(found), nan)
        eager = getattr(metrics, name)(np.stack([scores] * 4), kinds)
        np.testing.assert_array_equal(eager, found)
        if name == "average_precision":
            assert found[2] == 1


def test_a_score_that_is_no_number_is_nan():
    scores, positive = drawn(lead=(3,))
    scores[1, 7] = np.nan
    for found in areas(scores, positive).values():
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    _, risk, area = curves(scores, positive)
    np.testing.assert_array_equal(np.isnan(risk).all(-1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(risk).any(-1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(area), [False, True, False])


# Risk and coverage.


@pytest.mark.parametrize("kind", ["boolean", "loss"])
def test_risks_are_the_mean_of_all_orders(kind):
    rng = np.random.default_rng(0)
    values = np.array([[1], [2], [4], [100]])
    confidence = np.float32(rng.integers(values, size=(4, 7)) / 128)
    losses = rng.random((4, 7)) < 0.5
    if kind == "loss":
        losses = np.float32(rng.normal(size=(4, 7)))
    coverage, risk, area = curves(confidence, losses)
    pairs = zip(confidence, losses, strict=True)
    wanted = np.array([reference.risk_coverage(*pair) for pair in pairs])
    close(risk, wanted, rtol=1e-5, atol=1e-6)
    close(coverage, np.arange(1, 8) / 7, rtol=1e-6)
    close(area, wanted.mean(-1), rtol=1e-5, atol=1e-6)
    mapped = jax.jit(jax.vmap(curves))(confidence, losses)
    close(mapped[1], wanted, rtol=1e-5, atol=1e-6)
    eager = metrics.risk_coverage(confidence, losses)
    np.testing.assert_array_equal(eager.risk, risk)


def test_risks_of_losses_without_end_are_so_from_where_they_may_be():
    rng = np.random.default_rng(1)
    odds = [[np.inf], [-np.inf], [np.nan], [np.inf, -np.inf]]
    values = np.tile([[1], [2], [4], [100], [100]], (4, 1))
    confidence = np.float32(rng.integers(values, size=(20, 6)) / 128)
    losses = np.float32(rng.integers(8, size=(20, 6)))
    for row, odd in zip(losses, np.repeat(np.arange(4), 5), strict=True):
        row[rng.permutation(6)[: len(odds[odd])]] = odds[odd]
    _, risk, area = curves(confidence, losses)
    with np.errstate(invalid="ignore"):
        pairs = zip(confidence, losses, strict=True)
        wanted = np.array([reference.risk_coverage(*pair) for pair in pairs])
        close(risk, wanted, rtol=1e-6)
        close(area, wanted.mean(-1), rtol=1e-6)
    finite = np.isfinite(wanted).sum(-1)
    assert (np.ptp(finite.reshape(4, 5), axis=1) > 0).all()  # at the start, and later


def test_one_loss_without_end_by_hand():
    sure = np.array([0.9, 0.8, 0.8, 0.7])
    curve = metrics.risk_coverage(sure, np.array([1.0, np.inf, 2.0, 3.0]))
    np.testing.assert_array_equal(curve.risk, [1, np.inf, np.inf, np.inf])


def test_losses_and_errors_of_zero_and_one_are_the_same():
    confidence, wrong = drawn(lead=(3,))
    given = confidence.astype(jnp.bfloat16)
    coverage, risk, area = curves(given, wrong)
    close(curves(given, wrong.astype(jnp.bfloat16))[2], area)
    assert coverage.shape == (B,)
    assert risk.shape == (3, B)
    close(risk[:, -1], np.full(3, wrong.mean()))
    close(area, np.mean(risk, -1), rtol=1e-6)
    close(metrics.aurc(given[1], wrong), area[1])


def test_confidence_that_says_nothing_has_the_mean_risk():
    wrong = np.arange(10) < 3
    curve = metrics.risk_coverage(np.ones(10, np.float32), wrong)
    close(curve.risk, np.full(10, 0.3), rtol=1e-6)


def test_the_best_and_the_worst_order():
    wrong = np.array([True, False, False, True])
    best = metrics.risk_coverage(np.float32(~wrong), wrong)
    np.testing.assert_allclose(best.risk, [0, 0, 1 / 3, 0.5], rtol=1e-6)
    worst = metrics.risk_coverage(np.float32(wrong), wrong)
    np.testing.assert_allclose(worst.risk, [1, 1, 2 / 3, 0.5], rtol=1e-6)


def test_the_order_of_samples_does_not_matter():
    confidence, wrong = drawn()
    order = np.random.default_rng(3).permutation(B)
    there, again = curves(confidence, wrong), curves(confidence[order], wrong[order])
    jax.tree.map(np.testing.assert_array_equal, there, again)


# Bad input.


@pytest.mark.parametrize("name", [*AREAS, *CURVES])
def test_scores_and_flags_fit(name, transform):
    function, fn = transform(getattr(metrics, name)), f"`maskjax.metrics.{name}`"
    first, second = ("confidence", "losses") if name in CURVES else ("scores", "labels")
    scores, positive = drawn()
    with raises(TypeError, f"{fn} needs `{first}` as a floating array, got int32 arr"):
        function(np.arange(B), positive)
    for empty in (np.ones(0), np.ones((2, 0))):
        with raises(
            ValueError, rf"{fn} needs `{first}` of shape \[..., B\], not empty"
        ):
            function(empty, np.ones(0, bool))
    with raises(ValueError, rf"{fn} needs `{first}` of shape \[..., B\], not empty"):
        function(np.array(1.0), np.array(True))
    for bad in (positive[:-1], positive[None], np.array(True)):
        with raises(ValueError, rf"{fn} needs `{second}` with one entry for each sa"):
            function(scores, bad)
    kind = "floating" if name in CURVES else "boolean"
    with raises(TypeError, f"{fn} needs `{second}` as a {kind} array, got int32 arr"):
        function(scores, positive.astype(np.int32))


def test_a_true_positive_rate_is_a_fraction():
    fn = "`maskjax.metrics.fpr_at_tpr`"
    given = drawn()
    for bad in (-0.1, 1.1, float("nan")):
        with raises(ValueError, rf"{fn} needs `tpr` in \[0, 1\], got {bad}"):
            metrics.fpr_at_tpr(*given, tpr=bad)
    for bad, kind in (("0.9", "str"), (jnp.array(0.9), "float32"), (True, "bool")):
        with raises(TypeError, rf"{fn} needs `tpr` as a .*number.*, got {kind}"):
            metrics.fpr_at_tpr(*given, tpr=bad)
    with raises(ValueError, f"{fn} needs `tpr` as a fraction of at most 40,000 parts"):
        metrics.fpr_at_tpr(*given, tpr=0.999999)
