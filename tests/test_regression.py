"""How good and how sure predicted numbers are, against densities and integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from maskjax import metrics
from tests import trees
from tests.predictions import close, raises
from tests.reference import uncertainty as reference

M, B = 4, 9
ONE, MIXED = ["gaussian_nll", "gaussian_crps"], ["mixture_nll", "mixture_crps"]
NAMES = ONE + MIXED
over_all = pytest.mark.parametrize("name", NAMES)


def drawn(*lead, seed=0):
    """Means and variances [..., B], and targets [B]: multiples of 1/16."""
    rng = np.random.default_rng(seed)
    means, targets = (np.round(16 * rng.normal(size=s)) / 16 for s in ((*lead, B), B))
    return means, (1 + rng.integers(40, size=means.shape)) / 16, targets


def given(name, *, seed=0):
    return drawn(*([M] if name in MIXED else []), seed=seed)


def defined(name, means, variances, targets):
    """The definition, of a mixture of one where there is one."""
    score = getattr(reference, name.replace("gaussian", "mixture"))
    if name in ONE:
        means, variances = means[None], variances[None]
    triples = zip(means.T, variances.T, targets, strict=True)
    return np.array([score(*triple) for triple in triples])


def all_scores(means, variances, targets):
    """All four, of members [M, B] and of the first of them."""
    own = means[0], variances[0] if variances.ndim else variances, targets
    found = {name: getattr(metrics, name)(*own) for name in ONE}
    for name in MIXED:
        found[name] = getattr(metrics, name)(means, variances, targets)
    return found


scores = jax.jit(all_scores)


def all_defined(means, variances, targets):
    own = means[0], variances[0], targets
    found = {name: defined(name, *own) for name in ONE}
    return found | {name: defined(name, means, variances, targets) for name in MIXED}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_are_those_of_the_definitions(dtype):
    arrays = [x.astype(dtype) for x in drawn(M)]
    found, wanted = scores(*arrays), all_defined(*map(np.float64, arrays))
    for name in NAMES:
        assert found[name].shape == (B,)
        close(found[name], wanted[name], rtol=1e-5, atol=1e-5)
        eager = getattr(metrics, name)(
            *(x[0] if name in ONE else x for x in arrays[:2]), arrays[2]
        )
        close(eager, wanted[name], rtol=1e-5, atol=1e-5)


def test_the_likelihood_is_that_of_scipy():
    means, variances, targets = drawn()
    wanted = -stats.norm.logpdf(targets, means, np.sqrt(variances))
    close(metrics.gaussian_nll(means, variances, targets), wanted)


def test_axes_of_targets_stay_and_vmap_is_one_by_one():
    arrays = [np.float32(x) for x in drawn(M)]
    wide = [np.stack([x, x + 0.5], -1) for x in arrays]
    found, mapped = scores(*wide), jax.jit(jax.vmap(all_scores, -1, -1))(*wide)
    for name, wanted in scores(*arrays).items():
        assert found[name].shape == (B, 2)
        close(found[name][:, 0], wanted, rtol=1e-6)
        close(mapped[name], found[name], rtol=1e-5, atol=1e-6)


def test_one_variance_stands_for_all():
    means, _, targets = (np.float32(x) for x in drawn(M))
    found = scores(means, np.float32(0.25), targets)
    for name, wanted in scores(means, np.full_like(means, 0.25), targets).items():
        close(found[name], wanted, rtol=1e-6)


def test_members_that_are_one_are_no_mixture():
    means, variances, targets = drawn()
    stacks = (np.float32(np.stack([x] * M)) for x in (means, variances))
    found = scores(*stacks, np.float32(targets))
    for mixed, one in zip(MIXED, ONE, strict=True):
        close(found[mixed], found[one], atol=1e-6)


def test_a_mixture_is_no_worse_than_its_members_on_average():
    means, variances, targets = (np.float32(x) for x in drawn(M))
    spread = np.broadcast_to(targets, (M, B))
    members = jax.jit(lambda *x: {n: getattr(metrics, n)(*x) for n in ONE})
    each, together = (
        members(means, variances, spread),
        scores(means, variances, targets),
    )
    for mixed, one in zip(MIXED, ONE, strict=True):
        assert (np.asarray(together[mixed]) < np.mean(each[one], 0)).all()


def test_gradients_are_finite_where_scores_are():
    """Targets far out, and variances at both ends of the format."""
    means = np.float32([[0, 1e3, 1e18, 0, 0, 1e-3, 0, 1e30], np.zeros(8)])
    variances = np.float32([[1, 1e-6, 1e-12, 1e-37, 1e37, 1e-20, 1, 1e-30], np.ones(8)])
    targets = np.zeros(8, "f4")

    @jax.jit
    def find(*given):
        def total(name, *given):
            found = all_scores(*given)[name]
            ok = jnp.isfinite(found)
            return jnp.where(ok, found, 0).sum(), ok

        slopes = jax.grad(total, (1, 2, 3), has_aux=True)
        return {name: slopes(name, *given) for name in NAMES}

    for name, (slopes, ok) in find(means, variances, targets).items():
        if name in ("gaussian_crps", "mixture_crps"):
            assert np.all(ok), name
        assert np.isfinite(slopes[0][:, ok]).all(), name
        assert np.isfinite(slopes[1][:, ok]).all(), name
        assert np.isfinite(slopes[2][ok]).all(), name


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_gradients_are_finite_in_half_precision(dtype):
    means = np.array([[0, 200, -0.1], [1, 2, 3]], dtype)
    variances = np.array([[1, 1, 1e-3], [5e4, 100, 1]], dtype)

    @jax.jit
    def find(*given):
        total = lambda *given: jax.tree.map(jnp.sum, all_scores(*given))  # noqa: E731
        return jax.jacrev(total, (0, 1, 2))(*given)

    for slopes in jax.tree.leaves(find(means, variances, np.zeros(3, dtype))):
        assert slopes.dtype == dtype
        assert np.isfinite(trees.to_numpy(slopes)).all()


def test_a_likelihood_that_is_far_away_is_finite():
    means, targets = np.array([[100.0], [101.0]]), np.array([0.0])
    found = metrics.mixture_nll(means, 1.0, targets)
    close(found, [5000 + np.log(2) + np.log(2 * np.pi) / 2], rtol=1e-6)


def test_dropouts_likelihood_is_a_mixtures():
    """With precision tau, as arXiv:1506.02142 has it, of outputs of one number."""
    means, _, targets = drawn(M)
    tau = 4.0
    inside = -tau / 2 * (targets - means) ** 2
    wanted = np.log(np.exp(inside).sum(0)) - np.log(M) - np.log(2 * np.pi / tau) / 2
    close(-metrics.mixture_nll(means, 1 / tau, targets), wanted)


def test_standardized_targets_have_a_likelihood_less_a_constant():
    means, variances, targets = drawn()
    scale = 7.5
    whole = metrics.gaussian_nll(scale * means, scale**2 * variances, scale * targets)
    part = np.asarray(metrics.gaussian_nll(means, variances, targets))
    close(whole, part + np.log(scale))


def test_a_ranked_score_is_nearly_the_error_of_who_is_sure():
    means, _, targets = drawn()
    found = metrics.gaussian_crps(means, 1e-8, targets)
    np.testing.assert_allclose(found, abs(targets - means), atol=1e-4)
    close(
        metrics.gaussian_crps(3 * means, 9.0, 3 * targets),
        3 * np.asarray(metrics.gaussian_crps(means, 1.0, targets)),
        rtol=1e-4,
    )


def test_many_members_take_no_memory_of_pairs():
    means = jax.ShapeDtypeStruct((500, 1000), jnp.float32)
    targets = jax.ShapeDtypeStruct((1000,), jnp.float32)
    compiled = jax.jit(metrics.mixture_crps).lower(means, means, targets).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 10 * 500 * 1000 * 4  # of pairs there would be 500 times as much


def test_doubles_stay_doubles_where_there_are_any(x64):
    means, variances, targets = drawn(M)
    wanted = all_defined(means, variances, targets)
    for name, found in scores(means, np.float32(variances), targets).items():
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, wanted[name], rtol=1e-6)


def test_a_target_is_covered_by_an_interval_that_has_it():
    rng = np.random.default_rng(0)
    targets = np.float32(rng.normal(size=1000))
    for level in (0.5, 0.95):
        half = np.full((2, 1000), stats.norm.ppf((1 + level) / 2), "f4")
        found = jax.jit(metrics.interval_coverage)(-half, half, targets)
        wanted = np.float32((abs(targets) <= half[0]).sum()) / np.float32(1000)
        np.testing.assert_array_equal(found, [wanted, wanted])
        assert abs(wanted - level) < 0.05


def test_interval_coverage_at_its_edges(transform):
    low, high = np.float32([[0, 0, 2, 1]]), np.float32([[1, 1, 1, 1]])
    y = np.float32([0, 1, 1.5, 1])  # at an end, at the other, upside down, a point
    where = np.array([True, True, True, False])
    cover = transform(lambda *a: metrics.interval_coverage(*a))
    np.testing.assert_array_equal(cover(low, high, y), [0.75])
    some = transform(lambda *a: metrics.interval_coverage(*a[:3], where=a[3]))
    y[3] = np.nan
    np.testing.assert_array_equal(some(low, high, y, where), np.float32([2]) / 3)
    assert np.isnan(cover(low, high, y)).all()
    assert np.isnan(some(low, high, y, np.zeros(4, bool))).all()
    np.testing.assert_array_equal(cover(low - np.inf, high + np.inf, y[:1] + low), [1])
    fn = "`maskjax.metrics.interval_coverage` needs"
    with raises(ValueError, rf"{fn} `upper` of shape \(1, 4\), .* got \(4,\)"):
        cover(low, high[0], y)
    with raises(ValueError, rf"{fn} `targets` with one entry .* \(1, 4\)"):
        cover(low, high, y[:3])
    with raises(ValueError, rf"{fn} `lower` of shape \[..., B\], not empty"):
        cover(np.ones(()), high, y)
    with raises(TypeError, f"{fn} `where` as a boolean array, got float32"):
        some(low, high, y, y)


# Bad input.


@pytest.mark.parametrize("bad", [0.0, -1.5])
def test_variances_are_above_0(bad):
    means, variances, targets = (np.float32(x) for x in drawn(M))
    variances[..., 3] = bad
    for name, found in scores(means, variances, targets).items():
        np.testing.assert_array_equal(np.isnan(found), np.arange(B) == 3)
        what = "variances" if name in MIXED else "variance"
        own = (means, variances) if name in MIXED else (means[0], variances[0])
        with raises(
            ValueError, f"`maskjax.metrics.{name}` needs `{what}` above 0, got {bad:g}"
        ):
            getattr(metrics, name)(*own, targets)


@pytest.mark.parametrize("i", range(3))
def test_nan_stays_nan(i):
    arrays = [np.float32(x) for x in drawn(M)]
    arrays[i][..., 3] = np.nan
    for name, found in scores(*arrays).items():
        np.testing.assert_array_equal(np.isnan(found), np.arange(B) == 3)
        own = arrays if name in MIXED else [x[0] for x in arrays[:2]] + arrays[2:]
        np.testing.assert_array_equal(getattr(metrics, name)(*own), found)


@over_all
def test_shapes_fit(name, transform):
    function, fn = transform(getattr(metrics, name)), f"`maskjax.metrics.{name}`"
    first, second = ("means", "variances") if name in MIXED else ("mean", "variance")
    means, variances, targets = given(name)
    for bad in (means[..., :-1], means[None], means[..., None], np.array(1.0)):
        with raises(ValueError, rf"{fn} needs `{first}` of shape .*\(9,\), not empty"):
            function(bad, variances, targets)
    with raises(ValueError, rf"{fn} needs `{first}` of shape .*\(0,\), not empty, got"):
        function(means[..., :0], variances[..., :0], targets[:0])
    if name in MIXED:
        with raises(ValueError, rf"{fn} needs `means` of shape \[M, ...\], M memb"):
            function(means[:0], variances[:0], targets)
    for bad in (variances[..., :-1], targets[:1]):
        with raises(ValueError, rf"{fn} needs `{second}` of shape .*, or a scalar"):
            function(means, bad, targets)


@over_all
def test_numbers_are_floating(name, transform):
    function = transform(getattr(metrics, name))
    names = ("means", "variances") if name in MIXED else ("mean", "variance")
    for i, what in enumerate((*names, "targets")):
        arrays = list(given(name))
        arrays[i] = np.ones(arrays[i].shape, np.int32)
        with raises(
            TypeError, f"`maskjax.metrics.{name}` needs `{what}` as a floating array, g"
        ):
            function(*arrays)
