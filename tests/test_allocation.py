"""One density, shared out over leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import algebra, allocation, score, select, where
from tests import trees
from tests.reference import allocation as reference

NETS = {
    "lenet": [(784, 300), (300, 100), (100, 10)],
    "convolutions": [(3, 3, 3, 64), (3, 3, 64, 64), (1, 1, 64, 128), (128, 10)],
    "thin_and_wide": [(1, 50), (400, 400), (2, 3), (50, 50)],
    "one": [(7, 9)],
}


def params_of(shapes):
    return {f"layer_{i}": jnp.ones(shape) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.35, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shapes", NETS.values(), ids=NETS.keys())
def test_erk_agrees_with_the_iterative_algorithm(shapes, density):
    shares = allocation.erk(params_of(shapes), density=density)
    assert all(type(share) is float for share in shares.values())
    expected = reference.erk(shapes, density)
    np.testing.assert_allclose(list(shares.values()), expected, rtol=1e-9)


@pytest.mark.parametrize("shapes", NETS.values(), ids=NETS.keys())
def test_erk_of_a_traced_density_agrees_and_compiles_once(shapes):
    params = params_of(shapes)
    erk = jax.jit(lambda d: allocation.erk(params, density=d))
    for density in (0.02, 0.35, 0.9):
        shares = erk(jnp.float32(density))
        expected = reference.erk(shapes, density)
        np.testing.assert_allclose(list(shares.values()), expected, rtol=1e-4)
    assert erk._cache_size() == 1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erk_takes_a_traced_density_under_x64(dtype, x64):
    params = params_of(NETS["lenet"])
    shares = jax.jit(lambda d: allocation.erk(params, density=d))(
        jnp.asarray(0.1, dtype)
    )
    expected = reference.erk(NETS["lenet"], 0.1)
    np.testing.assert_allclose(list(shares.values()), expected, rtol=1e-5)


def test_erk_takes_a_bfloat16_density():
    params = params_of(NETS["lenet"])
    shares = allocation.erk(params, density=jnp.bfloat16(0.125))
    expected = reference.erk(NETS["lenet"], 0.125)
    np.testing.assert_allclose(
        [float(s) for s in shares.values()], expected, rtol=2**-7
    )


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_erk_at_the_ends_keeps_nothing_or_everything(density):
    shares = allocation.erk(params_of(NETS["convolutions"]), density=density)
    assert set(shares.values()) == {density}


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_erk_keeps_that_fraction_of_all_entries(density):
    params = params_of(NETS["lenet"])
    shares = allocation.erk(params, density=density)
    mask = select.top_k(score.magnitude(params), density=shares)
    total = sum(x.size for x in params.values())
    # Each leaf rounds once.
    assert abs(int(algebra.count(mask)) - density * total) <= len(params) / 2


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
        mask = select.top_k(score.magnitude(params), density=shares)
        assert jax.tree.structure(mask) == jax.tree.structure(shares)


def test_uniform_is_the_same_everywhere():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((5, 5)), "bias": jnp.ones(3)}
    shares = allocation.uniform(params, density=0.25)
    assert shares == {"a": 0.25, "b": 0.25, "bias": None}
    traced = jax.jit(lambda d: allocation.uniform(params, density=d))(jnp.float32(0.25))
    assert {k: None if v is None else float(v) for k, v in traced.items()} == shares


def test_matching_gives_some_leaves_their_own_density():
    params = {"a": {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}, "out": jnp.ones((8, 2))}
    found = allocation.matching(params, densities={"^out": 0.5}, density=0.25)
    assert found == {"a": {"w": 0.25, "b": None}, "out": 0.5}
    every = allocation.matching(params, densities={"w|out": 0.5}, density=0.25)
    assert every == {"a": {"w": 0.5, "b": None}, "out": 0.5}
    more = params | {"c": jnp.ones((20, 30))}
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
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=match):
        allocation.matching(params, densities=densities, density=0.5)
