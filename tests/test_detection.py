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
over_areas = pytest.mark.parametrize("name", AREAS)
over_curves = pytest.mark.parametrize("name", CURVES)


def drawn(*, values=8, seed=0, share=0.4, lead=()):
    """Scores [..., B] of few values, so with ties, and which are positive, [B]."""
    rng = np.random.default_rng(seed)
    positive = rng.random(B) < share
    scores = rng.integers(values, size=(*lead, B)) + 2.0 * positive
    return np.float32(scores / 8), positive


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


@over_areas
def test_areas_are_those_of_the_definitions(name, every_transform):
    find = every_transform(getattr(metrics, name))
    for seed in range(5):
        for values in (2, 8, 10_000):
            scores, positive = drawn(values=values, seed=seed)
            wanted = defined(name, scores, positive)
            close(find(scores, positive), wanted, rtol=1e-6)


@over_areas
def test_areas_of_half_precision_are_of_what_is_left(name):
    scores, positive = drawn(values=10_000)
    scores = 100 + scores / 1000
    for dtype in (jnp.bfloat16, jnp.float16):
        given = jnp.asarray(scores, dtype)  # more of them are equal
        assert len(set(np.asarray(given, float))) < len(set(scores))
        wanted = defined(name, np.asarray(given, float), positive)
        close(getattr(metrics, name)(given, positive), wanted, rtol=1e-6)


@over_areas
def test_areas_are_those_of_scikit_learn(name):
    for seed in range(10):
        scores, positive = drawn(seed=seed)
        theirs = {
            "auroc": lambda s, p: sklearn_metrics.roc_auc_score(p, s),
            "average_precision": lambda s, p: sklearn_metrics.average_precision_score(
                p, s
            ),
            "fpr_at_tpr": lambda s, p: roc_point(s, p, 0.95),
        }[name]
        found = getattr(metrics, name)(scores, positive)
        close(found, theirs(scores, positive), rtol=1e-6)


@over_areas
def test_leading_axes_stay(name):
    scores, positive = drawn(lead=(3,))
    function = getattr(metrics, name)
    found = function(scores, positive)
    assert found.shape == (3,)
    close(found, jax.vmap(function, (0, None))(scores, positive), rtol=1e-6)
    close(found, [defined(name, row, positive) for row in scores])
    own = np.stack([positive, ~positive, positive])
    close(function(scores, own)[1], defined(name, scores[1], ~positive))
    assert function(scores[None], own).shape == (1, 3)


@over_areas
def test_nothing_is_told_by_equal_scores(name):
    _, positive = drawn()
    share = positive.mean()
    wanted = {"auroc": 0.5, "average_precision": share, "fpr_at_tpr": 1.0}[name]
    for value in (0.0, -3.0, np.inf):
        scores = np.full(B, value, np.float32)
        close(getattr(metrics, name)(scores, positive), wanted, rtol=1e-6)
    scores[::2] = 0.0
    scores[1::2] = -0.0
    close(getattr(metrics, name)(scores, positive), wanted, rtol=1e-6)


@over_areas
def test_all_is_told_by_scores_that_separate(name):
    _, positive = drawn()
    for low, high in ((0, 1), (-1e30, -1e-30), (-np.inf, np.inf)):
        scores = np.where(positive, high, low).astype(np.float32)
        found = getattr(metrics, name)(scores, positive)
        assert found == (0 if name == "fpr_at_tpr" else 1)
    worst = getattr(metrics, name)(-scores, positive)
    close(worst, defined(name, -scores, positive), rtol=1e-6)
    if name == "auroc":
        assert worst == 0


@over_areas
def test_subnormal_scores_are_no_ties(name):
    scores, positive = drawn(values=10_000)
    tiny = np.float32(np.argsort(np.argsort(scores))) * np.float32(1e-42)
    assert 0 < tiny.max() < np.finfo(np.float32).tiny
    function = getattr(metrics, name)
    assert function(tiny, positive) == function(scores, positive)


def test_auroc_of_the_opposite_is_the_rest():
    scores, positive = drawn()
    found = metrics.auroc(scores, positive)
    close(metrics.auroc(-scores, positive), 1 - found, rtol=1e-6)
    close(metrics.auroc(scores, ~positive), 1 - found, rtol=1e-6)


@over_areas
def test_only_the_order_matters(name):
    scores, positive = drawn()
    function = getattr(metrics, name)
    assert function(np.exp(scores), positive) == function(scores, positive)
    order = np.random.default_rng(3).permutation(B)
    assert function(scores[order], positive[order]) == function(scores, positive)


@pytest.mark.parametrize("tpr", [0, 0.05, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1, 1 / 3])
def test_a_true_positive_rate_is_counted_exactly(tpr):
    part = fractions.Fraction(tpr).limit_denominator(100)
    # Of 60 positives 0.05, 0.7 and so on are whole numbers, which floats may miss.
    scores = np.arange(100, dtype=np.float32)[::-1]
    positive = np.arange(100) % 5 != 0
    positive[75:] = np.arange(25) % 5 == 1
    for count in (60, 59, 20, 1):
        chosen = positive & (positive.cumsum() <= count)
        wanted = reference.fpr_at_tpr(scores, chosen, part.numerator, part.denominator)
        close(metrics.fpr_at_tpr(scores, chosen, tpr=tpr), wanted, rtol=1e-6)
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


@over_areas
def test_one_kind_alone_is_nan(name, transform):
    function = transform(getattr(metrics, name))
    scores, positive = drawn()
    assert jnp.isnan(function(scores, np.zeros(B, bool)))
    alone = function(scores, np.ones(B, bool))
    assert alone == 1 if name == "average_precision" else jnp.isnan(alone)
    several = np.stack([positive, np.zeros(B, bool), positive])
    found = function(np.stack([scores] * 3), several)
    np.testing.assert_array_equal(jnp.isnan(found), [False, True, False])


@pytest.mark.parametrize("name", [*AREAS, *CURVES])
def test_a_score_that_is_no_number_is_nan(name, transform):
    scores, positive = drawn(lead=(3,))
    scores[1, 7] = np.nan
    found = transform(getattr(metrics, name))(scores, positive)
    risk = found.risk if name == "risk_coverage" else found[:, None]
    np.testing.assert_array_equal(jnp.isnan(risk).all(-1), [False, True, False])
    np.testing.assert_array_equal(jnp.isnan(risk).any(-1), [False, True, False])


# Risk and coverage.


@pytest.mark.parametrize("kind", ["boolean", "loss"])
def test_risks_are_the_mean_of_all_orders(kind, every_transform):
    rng = np.random.default_rng(0)
    find = every_transform(metrics.risk_coverage)
    for values in (1, 2, 4, 100):
        confidence = np.float32(rng.integers(values, size=7) / 128)
        losses = rng.random(7) < 0.5 if kind == "boolean" else rng.normal(size=7)
        losses = losses if kind == "boolean" else np.float32(losses)
        found = find(confidence, losses)
        wanted = reference.risk_coverage(confidence, losses)
        close(found.risk, wanted, rtol=1e-5, atol=1e-6)
        close(found.coverage, np.arange(1, 8) / 7, rtol=1e-6)
        close(metrics.aurc(confidence, losses), wanted.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("odd", [[np.inf], [-np.inf], [np.nan], [np.inf, -np.inf]])
def test_risks_of_losses_without_end_are_so_from_where_they_may_be(
    odd, every_transform
):
    rng = np.random.default_rng(1)
    find = every_transform(metrics.risk_coverage)
    seen = set()
    for values in (1, 2, 4, 100, 100):
        confidence = np.float32(rng.integers(values, size=6) / 128)
        losses = np.float32(rng.integers(8, size=6))
        losses[rng.permutation(6)[: len(odd)]] = odd
        risk = find(confidence, losses).risk
        with np.errstate(invalid="ignore"):
            wanted = reference.risk_coverage(confidence, losses)
        close(risk, wanted, rtol=1e-6)
        close(metrics.aurc(confidence, losses), wanted.mean(), rtol=1e-6)
        seen |= {int(np.isfinite(wanted).sum())}
    assert len(seen) > 1  # at the beginning, and later


def test_one_loss_without_end_by_hand():
    sure = jnp.array([0.9, 0.8, 0.8, 0.7])
    curve = metrics.risk_coverage(sure, jnp.array([1.0, jnp.inf, 2.0, 3.0]))
    np.testing.assert_array_equal(curve.risk, [1, np.inf, np.inf, np.inf])


def test_losses_and_errors_of_zero_and_one_are_the_same(every_transform):
    confidence, wrong = drawn(lead=(3,))
    find = every_transform(metrics.aurc)
    given = jnp.asarray(confidence, jnp.bfloat16)
    errors = find(given, wrong)
    close(find(given, jnp.asarray(wrong, jnp.bfloat16)), errors)
    curve = metrics.risk_coverage(given, wrong)
    assert curve.coverage.shape == (B,)
    assert curve.risk.shape == (3, B)
    close(curve.risk[:, -1], wrong.mean())
    close(curve.risk.mean(-1), errors)
    close(metrics.aurc(given[1], wrong), errors[1])


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


@over_curves
def test_the_order_of_samples_does_not_matter(name):
    confidence, wrong = drawn()
    order = np.random.default_rng(3).permutation(B)
    function = getattr(metrics, name)
    there, again = (
        function(confidence, wrong),
        function(confidence[order], wrong[order]),
    )
    jax.tree.map(np.testing.assert_array_equal, there, again)


# Bad input.


@pytest.mark.parametrize("name", [*AREAS, *CURVES])
def test_scores_and_flags_fit(name, transform):
    function, fn = transform(getattr(metrics, name)), f"`maskjax.metrics.{name}`"
    first, second = ("confidence", "losses") if name in CURVES else ("scores", "labels")
    scores, positive = drawn()
    with raises(TypeError, f"{fn} needs `{first}` as a floating array, got int32 arr"):
        function(np.arange(B), positive)
    for empty in (jnp.ones(0), jnp.ones((2, 0))):
        with raises(
            ValueError, rf"{fn} needs `{first}` of shape \[..., B\], not empty"
        ):
            function(empty, jnp.ones(0, bool))
    with raises(ValueError, rf"{fn} needs `{first}` of shape \[..., B\], not empty"):
        function(jnp.array(1.0), jnp.array(True))
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
