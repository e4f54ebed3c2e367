"""How good and how sure predicted numbers are, against densities and integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from maskjax import metrics
from tests.predictions import close, raises
from tests.reference import uncertainty as reference

M, B = 4, 9
ONE, MIXED = ["gaussian_nll", "gaussian_crps"], ["mixture_nll", "mixture_crps"]
NAMES = ONE + MIXED
over_pairs = pytest.mark.parametrize(
    ("mixed", "one"), list(zip(MIXED, ONE, strict=True))
)
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


@over_all
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_are_those_of_the_definitions(name, dtype, every_transform):
    means, variances, targets = given(name)
    find = every_transform(getattr(metrics, name))
    found = find(*(jnp.asarray(x, dtype) for x in (means, variances, targets)))
    assert found.shape == (B,)
    rounded = (np.asarray(jnp.asarray(x, dtype), float) for x in given(name))
    close(found, defined(name, *rounded), rtol=1e-5, atol=1e-5)


def test_the_likelihood_is_that_of_scipy():
    means, variances, targets = drawn()
    wanted = -stats.norm.logpdf(targets, means, np.sqrt(variances))
    close(metrics.gaussian_nll(means, variances, targets), wanted)


@over_all
def test_axes_of_targets_stay(name):
    means, variances, targets = given(name)
    function = getattr(metrics, name)
    columns = [x[..., None] for x in (means, variances, targets)]
    wide = [np.concatenate([x, x + 0.5], -1) for x in columns]
    found = function(*wide)
    assert found.shape == (B, 2)
    close(found[:, 0], function(means, variances, targets), rtol=1e-6)
    close(found[:, 1], function(*(x[..., 1] for x in wide)), rtol=1e-6)


@over_all
def test_one_variance_stands_for_all(name):
    means, _, targets = given(name)
    function = getattr(metrics, name)
    close(
        function(means, 0.25, targets),
        function(means, np.full(means.shape, 0.25), targets),
        rtol=1e-6,
    )


@over_pairs
def test_members_that_are_one_are_no_mixture(mixed, one):
    means, variances, targets = drawn()
    wanted = getattr(metrics, one)(means, variances, targets)
    stacks = (np.stack([x] * M) for x in (means, variances))
    close(getattr(metrics, mixed)(*stacks, targets), wanted, atol=1e-6)


@over_pairs
def test_a_mixture_is_no_worse_than_its_members_on_average(mixed, one):
    means, variances, targets = drawn(M)
    members = jax.vmap(getattr(metrics, one), (0, 0, None))(means, variances, targets)
    together = getattr(metrics, mixed)(means, variances, targets)
    assert (together < members.mean(0)).all()


def test_a_likelihood_that_is_far_away_is_finite():
    means, targets = jnp.array([[100.0], [101.0]]), jnp.array([0.0])
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
    close(metrics.gaussian_nll(means, variances, targets) + np.log(scale), whole)


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


@over_all
def test_doubles_stay_doubles_where_there_are_any(name, x64):
    means, variances, targets = given(name)
    found = getattr(metrics, name)(means, np.float32(variances), targets)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(
        found, defined(name, means, variances, targets), rtol=1e-6
    )


# Bad input.


@over_all
def test_variances_are_above_0(name):
    means, variances, targets = given(name)
    function = getattr(metrics, name)
    what = "variances" if name in MIXED else "variance"
    for bad in (0.0, -1.5):
        variances[..., 3] = bad
        with raises(
            ValueError, f"`maskjax.metrics.{name}` needs `{what}` above 0, got {bad:g}"
        ):
            function(means, variances, targets)
        found = jax.jit(function)(means, variances, targets)
        np.testing.assert_array_equal(jnp.isnan(found), np.arange(B) == 3)


@over_all
def test_nan_stays_nan(name, transform):
    for i in range(3):
        arrays = [x.copy() for x in given(name)]
        arrays[i][..., 3] = np.nan
        found = transform(getattr(metrics, name))(*arrays)
        np.testing.assert_array_equal(jnp.isnan(found), np.arange(B) == 3)


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
