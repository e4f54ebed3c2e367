"""Hard concrete gates, how many are open, and a constraint on that."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import algebra, estimator
from maskjax._core import draws
from maskjax.estimator import _concrete
from maskjax.recipes import fedpm, supermask
from tests import trees

KEY = jax.random.key(5)
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
OPTIONS = [(BETA, GAMMA, ZETA), (0.3, -0.5, 1.05), (2.0, -0.01, 1.4)]
LEVELS = np.float32([-6, -2.4, -1.6, 0, 1, 2.5, 6])
EDGES = np.float32([0, 2.0**-23, 0.3, 0.5, 1 - 2.0**-23, 1 - 2.0**-24])


def sigmoid(x):
    return (1 + np.tanh(np.float64(x) / 2)) / 2


def gates(log_alpha, noise, beta=BETA, gamma=GAMMA, zeta=ZETA):
    """The paper's gate, from logistic noise."""
    s = sigmoid((log_alpha + noise) / beta)
    return np.clip(s * (zeta - gamma) + gamma, 0, 1)


@jax.jit
def sampled(log_alphas, options, key):
    names = ("beta", "gamma", "zeta")
    how = dict(zip(names, options, strict=True))
    open_ = estimator.hard_concrete_probabilities(log_alphas, **how)
    found = estimator.hard_concrete(log_alphas, **how, key=key)
    return found, estimator.hard_concrete(log_alphas, **how, key=None), open_


# --- values


@pytest.mark.parametrize("options", OPTIONS)
def test_as_many_gates_are_open_as_the_formula_says(options):
    many = 6000
    log_alphas = {"w": np.repeat(LEVELS, many).reshape(-1, many), "b": None}
    found, _, open_ = sampled(log_alphas, np.float32(options), KEY)
    z, p = np.asarray(found["w"]), np.asarray(open_["w"], np.float64)[:, 0]
    assert z.min() >= 0
    assert z.max() <= 1
    # Within five standard errors at every level, and all together within four.
    assert (abs((z > 0).mean(1) - p) <= 5 * np.sqrt(p * (1 - p) / many) + 1e-9).all()
    expected = float(algebra.expected_count(open_))
    np.testing.assert_allclose(expected, many * p.sum(), rtol=1e-5)
    error = np.sqrt(many * (p * (1 - p)).sum())
    assert abs((z > 0).sum() - expected) < 4 * error
    # By the other end, where the same formula holds for 1 - z.
    beta, gamma, zeta = options
    closed = sigmoid(LEVELS - beta * np.log((1 - gamma) / (zeta - 1)))
    spread = np.sqrt(closed * (1 - closed) / many)
    assert (abs((z == 1).mean(1) - closed) <= 5 * spread + 1e-9).all()
    # And in between, the mean: a sum over the quantiles of the noise.
    u = (np.arange(100_000) + 0.5) / 100_000
    each = [gates(a, np.log(u / (1 - u)), *options) for a in LEVELS]
    mean, deviation = np.mean(each, 1), np.std(each, 1)
    assert (abs(z.mean(1) - mean) <= 5 * deviation / many**0.5 + 1e-6).all()


def test_the_gates_of_a_test_are_those_of_the_formula():
    for options in OPTIONS:
        _, found, open_ = sampled({"w": LEVELS}, np.float32(options), KEY)
        beta, gamma, zeta = options
        wanted = np.clip(sigmoid(LEVELS) * (zeta - gamma) + gamma, 0, 1)
        np.testing.assert_allclose(found["w"], wanted, atol=1e-6)
        wanted = sigmoid(LEVELS - beta * np.log(-gamma / zeta))
        np.testing.assert_allclose(open_["w"], wanted, rtol=1e-5, atol=1e-7)


def test_the_density_at_test_is_that_of_gates_above_a_level():
    log_alphas = {"w": np.random.default_rng(0).normal(0, 4, 999).astype("f4")}
    _, found, open_ = sampled(log_alphas, np.float32(OPTIONS[0]), KEY)
    left = np.asarray(found["w"]) > 0
    np.testing.assert_array_equal(left, log_alphas["w"] > math.log(0.1 / 1.1))
    mask = jax.tree.map(lambda m: m > 0, found)
    np.testing.assert_allclose(algebra.density(mask), left.mean(), rtol=1e-6)
    assert not np.isclose(algebra.expected_density(open_), left.mean(), rtol=1e-2)


def test_a_key_gives_the_same_gates_and_each_leaf_its_own():
    log_alphas = {"a": np.zeros((9, 7), "f4"), "b": np.zeros((9, 7), "f4"), "c": None}
    keys = jax.random.split(KEY, 3)
    one = functools.partial(estimator.hard_concrete, log_alphas)
    every = jax.jit(jax.vmap(lambda key: one(key=key)))(keys)
    assert every["c"] is None
    for i in range(3):
        alone = one(key=keys[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-6),
            every,
            alone,
        )
    a, b = np.asarray(every["a"]), np.asarray(every["b"])
    assert not np.array_equal(a, b)
    assert not np.array_equal(a[0], a[1])


def test_gates_of_units_are_shared():
    log_alphas = {"w": np.float32([[9.0], [-9.0], [9.0]])}
    gate = estimator.hard_concrete(log_alphas, key=KEY)
    params = {"w": np.ones((3, 4), "f4")}
    wanted = np.repeat([[1.0], [0.0], [1.0]], 4, axis=1)
    np.testing.assert_array_equal(maskjax.apply(params, gate)["w"], wanted)
    open_ = estimator.hard_concrete_probabilities(log_alphas)
    np.testing.assert_allclose(algebra.expected_count(open_, params), 8, rtol=1e-3)
    np.testing.assert_allclose(algebra.expected_density(open_, params), 2 / 3, 1e-3)


# --- at the edges


def test_noise_is_finite_and_symmetric():
    u = np.asarray(draws.inside(EDGES))
    assert ((u > 0) & (u < 1)).all()
    logistic = np.asarray(draws.logit(u))
    assert np.isfinite(logistic).all()
    np.testing.assert_allclose(logistic[0], -logistic[-2], rtol=1e-6)
    exact = np.log(np.float64(u)) - np.log1p(-np.float64(u))
    np.testing.assert_allclose(logistic, exact, rtol=1e-5, atol=1e-6)
    drawn = np.asarray(draws.gumbel(KEY, np.zeros(20_000, "f4")))
    assert abs(drawn.mean() - np.euler_gamma) < 5 * math.pi / 6**0.5 / 20_000**0.5
    assert abs(drawn.var() - math.pi**2 / 6) < 0.1
    drawn = np.asarray(draws.logistic(KEY, np.zeros(20_000, "f4")))
    assert abs(drawn.mean()) < 5 * math.pi / 3**0.5 / 20_000**0.5
    assert abs(drawn.var() - math.pi**2 / 3) < 0.2


@pytest.mark.parametrize("dtype", trees.DTYPES)
def test_values_and_slopes_are_finite_at_both_ends(dtype):
    """Gates at +-1e4, noise where u is next to 0 or 1, and second derivatives."""
    ends = np.array([-1e4, -20, -2.4, 0, 2.4, 20, 1e4], jnp.dtype(dtype))
    noise = np.asarray(draws.logit(draws.inside(EDGES)))
    options = _concrete._Options(*np.float32(OPTIONS[0]))

    @jax.jit
    def pull(a):
        a = jnp.broadcast_to(a[:, None], (len(ends), len(EDGES)))
        both = jnp.broadcast_to(noise[None], a.shape)

        def total(a):
            gate = _concrete.gate(a, both, options)
            test = estimator.hard_concrete({"w": a}, key=None)["w"]
            open_ = estimator.hard_concrete_probabilities({"w": a})["w"]
            return gate, test, open_.astype(a.dtype)

        each = lambda i: lambda a: total(a)[i].sum()  # noqa: E731
        slopes = [jax.grad(each(i))(a) for i in range(3)]
        again = lambda i: lambda a: jax.grad(each(i))(a).sum()  # noqa: E731
        second = [jax.grad(again(i))(a) for i in (0, 2)]
        return total(a), slopes, second

    values, slopes, second = pull(ends)
    for x in jax.tree.leaves((values, slopes, second)):
        assert np.isfinite(trees.to_numpy(x)).all()
    (gate, *_), (slope, *_) = values, slopes
    assert gate.dtype == slope.dtype == dtype
    wide, atol = trees.to_numpy(ends)[:, None], 1e-5 if dtype == "float32" else 1e-2
    wanted = gates(wide, noise[None])
    np.testing.assert_allclose(trees.to_numpy(gate), wanted, atol=atol)
    assert (trees.to_numpy(gate)[0] == 0).all()
    assert (trees.to_numpy(gate)[-1] == 1).all()
    s = sigmoid((wide + noise[None]) / BETA)
    wanted = np.where((wanted > 0) & (wanted < 1), 1.2 * s * (1 - s) / BETA, 0)
    np.testing.assert_allclose(trees.to_numpy(slope), wanted, atol=atol)


def test_trees_keep_structure_dtypes_and_nones():
    for name in ("nested_dict", "nnx", "equinox"):
        params = trees.make(name, "bfloat16")
        log_alphas = maskjax.score.magnitude(params, where=trees.WHERE)
        out = jax.eval_shape(lambda a: estimator.hard_concrete(a, key=KEY), log_alphas)
        assert out == jax.eval_shape(lambda a: a, log_alphas)


def test_a_new_temperature_compiles_nothing():
    log_alphas = {"w": np.zeros(17, "f4")}
    estimator.hard_concrete(log_alphas, key=KEY)
    before = _concrete._sampled._cache_size()
    estimator.hard_concrete(log_alphas, beta=0.4, zeta=1.3, key=jax.random.key(9))
    assert _concrete._sampled._cache_size() == before


def test_dtypes_of_64_bits_mix_with_others(x64):
    wide, narrow = np.zeros(5), np.zeros(5, "f4")
    found = estimator.hard_concrete({"a": wide, "b": narrow}, key=KEY)
    assert [x.dtype for x in found.values()] == ["float64", "float32"]
    open_ = estimator.hard_concrete_probabilities({"a": wide, "b": narrow})
    wanted = sigmoid(-BETA * math.log(0.1 / 1.1))
    np.testing.assert_allclose(open_["a"], wanted, rtol=1e-14)
    density = algebra.expected_density(open_)
    assert density.dtype == "float64"
    term = estimator.lagrangian(density - 0.5, np.ones(2, "f4"))
    np.testing.assert_allclose(term, wanted - 0.5 + (wanted - 0.5) ** 2, rtol=1e-6)


# --- the constraint


def test_multipliers_rise_while_others_descend():
    excess, multipliers = np.float32([0.5, -0.2]), np.float32([[1, 3], [2, 4]])
    value, (down, up) = jax.jit(jax.value_and_grad(estimator.lagrangian, (0, 1)))(
        excess, multipliers
    )
    np.testing.assert_allclose(value, 0.5 - 0.6 + 2 * 0.25 + 4 * 0.04, rtol=1e-6)
    np.testing.assert_allclose(down, [1 + 2 * 2 * 0.5, 3 - 2 * 4 * 0.2], rtol=1e-6)
    np.testing.assert_allclose(up, [[-0.5, 0.2], [-0.25, -0.04]], rtol=1e-6)


def test_a_density_is_reached_and_the_useful_gates_are_kept():
    worth = np.random.default_rng(0).permutation(np.linspace(0.0, 1, 100)).astype("f4")
    steps, density = 1500, 0.3

    def loss(both, at):
        log_alphas, multipliers = both
        key = jax.random.fold_in(KEY, at)
        gate = estimator.hard_concrete(log_alphas, key=key)["w"]
        open_ = estimator.hard_concrete_probabilities(log_alphas)
        excess = algebra.expected_density(open_) - density
        missing = jnp.mean(worth * (1 - gate))
        return missing + estimator.lagrangian(excess, multipliers)

    rates = {"gates": optax.adam(0.05), "prices": optax.sgd(0.02)}
    adam = optax.partition(rates, ("gates", "prices"))

    @jax.jit
    def trained():
        with jax.numpy_dtype_promotion("standard"):
            both = {"w": jnp.full(100, 2.0)}, jnp.zeros(2)

            def step(carry, at):
                both, state = carry
                slopes = jax.grad(loss)(both, at)
                updates, state = adam.update(slopes, state)
                return (optax.apply_updates(both, updates), state), None

            start = both, adam.init(both)
            return jax.lax.scan(step, start, jnp.arange(steps))[0][0]

    log_alphas, multipliers = trained()
    open_ = estimator.hard_concrete_probabilities(log_alphas)
    assert abs(float(algebra.expected_density(open_)) - density) < 0.05
    assert (np.asarray(multipliers) > 0).all()
    left = np.asarray(estimator.hard_concrete(log_alphas, key=None)["w"]) > 0
    assert worth[left].mean() > worth[~left].mean() + 0.4  # of 0.5, if all are right
    assert 25 <= left.sum() <= 35


# --- bad input

GATE = functools.partial(estimator.hard_concrete, {"w": LEVELS}, key=KEY)
BAD = {
    "integers": (
        lambda: estimator.hard_concrete({"w": np.ones(2, int)}, key=KEY),
        TypeError,
        "hard_concrete` needs every leaf of `log_alphas` to be a floating.*w: int64",
    ),
    "nothing": (
        lambda: estimator.hard_concrete_probabilities({"w": None}),
        ValueError,
        "hard_concrete_probabilities` needs `log_alphas` with at least one leaf",
    ),
    "an old key": (
        lambda: estimator.hard_concrete({"w": LEVELS}, key=np.uint32([0, 1])),
        TypeError,
        "hard_concrete` needs `key` as a typed key",
    ),
    "beta of 0": (
        lambda: GATE(beta=0),
        ValueError,
        "hard_concrete` needs `beta` finite and above 0, got 0",
    ),
    "gamma of 0": (
        lambda: GATE(gamma=0.0),
        ValueError,
        "hard_concrete` needs `gamma` finite and below 0, got 0.0",
    ),
    "zeta of 1": (
        lambda: GATE(zeta=np.float32(1)),
        ValueError,
        "hard_concrete` needs `zeta` finite and above 1, got 1.0",
    ),
    "many betas": (
        lambda: GATE(beta=np.ones(2, "f4")),
        TypeError,
        r"hard_concrete` needs `beta` as a number, got float32 array of shape \(2,",
    ),
    "beta by name": (
        lambda: estimator.hard_concrete_probabilities({"w": LEVELS}, beta="low"),
        TypeError,
        "hard_concrete_probabilities` needs `beta` as a number, got str 'low'",
    ),
    "excess": (
        lambda: estimator.lagrangian(0.5, np.zeros(2, "f4")),
        TypeError,
        "lagrangian` needs `excess` as a floating array, got float 0.5",
    ),
    "multipliers": (
        lambda: estimator.lagrangian(np.float32(0.5), [0.0, 0.0]),
        TypeError,
        "lagrangian` needs `multipliers` as a floating array, got list",
    ),
    "one multiplier": (
        lambda: estimator.lagrangian(np.float32(0.5), np.zeros(1, "f4")),
        ValueError,
        r"lagrangian` needs `multipliers` of shape \(2,\), got \(1,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    pattern = re.compile("maskjax.estimator." + message, re.DOTALL)
    with pytest.raises(kind, match=pattern):
        call()


LOST = {"a": np.float32([0, np.nan, np.nan]), "b": None, "c": LEVELS.astype("bfloat16")}
OF_NAN = {
    "estimator.hard_concrete": (
        lambda x: estimator.hard_concrete(x, key=KEY),
        "log_alphas",
    ),
    "estimator.hard_concrete (at test)": (
        lambda x: estimator.hard_concrete(x, key=None),
        "log_alphas",
    ),
    "estimator.hard_concrete_probabilities": (
        estimator.hard_concrete_probabilities,
        "log_alphas",
    ),
    "algebra.expected_count": (algebra.expected_count, "probabilities"),
    "algebra.expected_density": (algebra.expected_density, "probabilities"),
    "recipes.supermask.density": (supermask.density, "scores"),
    "recipes.fedpm.entropy": (fedpm.entropy, "probabilities"),
}


@pytest.mark.parametrize("name", OF_NAN)
def test_nan_is_named_where_it_is_known_and_goes_on_where_it_is_traced(name):
    call, what = OF_NAN[name]
    fn = f"`maskjax.{name.split()[0]}` needs `{what}` without nan"
    with pytest.raises(ValueError, match=rf"^{fn}, got:\n  a: 2 of 3 are nan$"):
        call(LOST)
    found = jax.jit(call)(LOST)
    if name.startswith("estimator"):
        np.testing.assert_array_equal(np.isnan(found["a"]), np.isnan(LOST["a"]))
        assert not np.isnan(trees.to_numpy(found["c"])).any()
    else:
        assert np.isnan(found)

    @jax.jit
    def known_while_tracing():
        return call(LOST)

    with pytest.raises(ValueError, match=fn):
        known_while_tracing()


@pytest.mark.parametrize("which", ["excess", "multipliers"])
def test_a_constraint_that_is_nan_is_said(which):
    given = {"excess": np.float32(0.5), "multipliers": jnp.zeros(2)}
    given[which] = given[which] * np.float32(np.nan)
    size = np.size(given[which])
    needs = f"^`maskjax.estimator.lagrangian` needs `{which}` without nan, got:\n"
    with pytest.raises(
        ValueError, match=f"{needs}  the root: {size} of {size} are nan$"
    ):
        estimator.lagrangian(**given)
    assert np.isnan(jax.jit(estimator.lagrangian)(**given))
