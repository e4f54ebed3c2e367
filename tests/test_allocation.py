"""One density, divided over leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import allocation, score, select, where
from maskjax.select._quota import quota
from tests import trees
from tests.reference import allocation as reference

NETS = {
    "lenet": [(784, 300), (300, 100), (100, 10)],
    "convolutions": [(3, 3, 3, 64), (3, 3, 64, 64), (1, 1, 64, 128), (128, 10)],
    "thin_and_wide": [(1, 50), (400, 400), (2, 3), (50, 50)],
    "one": [(7, 9)],
}


def params_of(shapes):
    return {f"layer_{i}": np.ones(shape, "f4") for i, shape in enumerate(shapes)}


PARAMS = {name: params_of(shapes) for name, shapes in NETS.items()}


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.35, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("net", NETS)
def test_erk_agrees_with_the_iterative_algorithm(net, density):
    shares = allocation.erk(PARAMS[net], density=density)
    assert all(type(share) is float for share in shares.values())
    expected = reference.erk(NETS[net], density)
    np.testing.assert_allclose(list(shares.values()), expected, rtol=1e-9)


def test_erk_of_a_traced_density_agrees_and_compiles_once():
    erk = jax.jit(
        lambda d: {k: allocation.erk(params, density=d) for k, params in PARAMS.items()}
    )
    for density in (0.02, 0.35, 0.9):
        for net, shares in erk(jnp.float32(density)).items():
            expected = reference.erk(NETS[net], density)
            np.testing.assert_allclose(list(shares.values()), expected, rtol=1e-4)
    assert erk._cache_size() == 1
    narrow = jax.jit(lambda d: allocation.erk(PARAMS["lenet"], density=d))
    shares = [float(s) for s in narrow(np.asarray(0.125, jnp.bfloat16)).values()]
    np.testing.assert_allclose(shares, reference.erk(NETS["lenet"], 0.125), rtol=2**-7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erk_takes_a_traced_density_under_x64(dtype, x64):
    erk = jax.jit(lambda d: allocation.erk(PARAMS["lenet"], density=d))
    shares = list(erk(np.asarray(0.1, dtype)).values())
    np.testing.assert_allclose(shares, reference.erk(NETS["lenet"], 0.1), rtol=1e-5)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_erk_at_the_ends_keeps_nothing_or_everything(density):
    shares = allocation.erk(PARAMS["convolutions"], density=density)
    assert set(shares.values()) == {density}


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_erk_keeps_that_fraction_of_all_entries(density):
    params = PARAMS["lenet"]
    shares = allocation.erk(params, density=density)
    kept = sum(quota(shares[name], x.size) for name, x in params.items())
    total = sum(x.size for x in params.values())
    # Each leaf rounds once.
    assert abs(kept - density * total) <= len(params) / 2


@pytest.mark.parametrize("name", trees.NAMES)
def test_shares_have_the_structure_of_parameters(name):
    params = trees.make(name)
    for share in (allocation.uniform, allocation.erk):
        shares = share(params, density=0.5)
        for leaf, (_, value) in zip(
            jax.tree.leaves(params), trees.pairs(params, shares), strict=True
        ):
            assert (value is None) != where.kernels("", leaf)
            assert value is None or 0 <= value <= 1

        def choose(params, shares=shares):
            return select.top_k(score.magnitude(params), density=shares)

        mask = jax.eval_shape(choose, params)
        assert jax.tree.structure(mask) == jax.tree.structure(shares)


def test_uniform_is_the_same_everywhere():
    shapes = {"a": (2, 3), "b": (5, 5), "bias": (3,)}
    params = {name: np.ones(shape, "f4") for name, shape in shapes.items()}
    shares = allocation.uniform(params, density=0.25)
    assert shares == {"a": 0.25, "b": 0.25, "bias": None}
    traced = jax.jit(lambda d: allocation.uniform(params, density=d))(np.float32(0.25))
    assert {k: None if v is None else float(v) for k, v in traced.items()} == shares


def test_matching_gives_some_leaves_their_own_density():
    ones = lambda *shape: np.ones(shape, "f4")  # noqa: E731
    params = {"a": {"w": ones(8, 8), "b": ones(8)}, "out": ones(8, 2)}
    found = allocation.matching(params, densities={"^out": 0.5}, density=0.25)
    assert found == {"a": {"w": 0.25, "b": None}, "out": 0.5}
    every = allocation.matching(params, densities={"w|out": 0.5}, density=0.25)
    assert every == {"a": {"w": 0.5, "b": None}, "out": 0.5}
    more = params | {"c": ones(20, 30)}
    erk = allocation.matching(
        more, densities={"out": 1.0}, density=0.25, rest=allocation.erk
    )
    alone = allocation.erk({"a": params["a"]["w"], "c": more["c"]}, density=0.25)
    assert erk == {"a": {"w": alone["a"], "b": None}, "c": alone["c"], "out": 1.0}


@pytest.mark.parametrize(
    ("densities", "match"),
    [
        ({"none": 0.5}, "'none' finds none of: a, b"),
        ({"a": 0.5, "^a": 0.1}, "one expression for a leaf, got:\n  a: a, \\^a"),
        ({"a": 1.5}, r"`densities\['a'\]` in \[0, 1\]"),
        ({"(": 0.5}, "needs a regular expression"),
    ],
)
def test_matching_refuses(densities, match):
    params = {"a": np.ones((2, 2), "f4"), "b": np.ones((2, 2), "f4")}
    with pytest.raises(ValueError, match=match):
        allocation.matching(params, densities=densities, density=0.5)
