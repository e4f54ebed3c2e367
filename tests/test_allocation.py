"""One density, divided over leaves."""

import functools

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
    kinds = {2: "dense", 4: "conv"}
    return {
        f"{kinds[len(shape)]}_{i}": {"kernel": np.ones(shape, "f4")}
        for i, shape in enumerate(shapes)
    }


def values(tree):
    """The leaves, by layer."""
    return [layer["kernel"] for layer in tree.values()]


PARAMS = {name: params_of(shapes) for name, shapes in NETS.items()}


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.35, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("net", NETS)
def test_erk_agrees_with_the_iterative_algorithm(net, density):
    shares = values(allocation.erk(PARAMS[net], density=density))
    assert all(type(share) is float for share in shares)
    expected = reference.erk(NETS[net], density)
    np.testing.assert_allclose(shares, expected, rtol=1e-9)


def test_erk_of_a_traced_density_agrees_and_compiles_once():
    erk = jax.jit(
        lambda d: {k: allocation.erk(params, density=d) for k, params in PARAMS.items()}
    )
    for density in (0.02, 0.35, 0.9):
        for net, shares in erk(jnp.float32(density)).items():
            expected = reference.erk(NETS[net], density)
            np.testing.assert_allclose(values(shares), expected, rtol=1e-4)
    assert erk._cache_size() == 1
    narrow = jax.jit(lambda d: allocation.erk(PARAMS["lenet"], density=d))
    shares = [float(s) for s in values(narrow(np.asarray(0.125, jnp.bfloat16)))]
    np.testing.assert_allclose(shares, reference.erk(NETS["lenet"], 0.125), rtol=2**-7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erk_takes_a_traced_density_under_x64(dtype, x64):
    erk = jax.jit(lambda d: allocation.erk(PARAMS["lenet"], density=d))
    shares = values(erk(np.asarray(0.1, dtype)))
    np.testing.assert_allclose(shares, reference.erk(NETS["lenet"], 0.1), rtol=1e-5)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_erk_at_the_ends_keeps_nothing_or_everything(density):
    shares = allocation.erk(PARAMS["convolutions"], density=density)
    assert set(values(shares)) == {density}


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_erk_keeps_that_fraction_of_all_entries(density):
    params = PARAMS["lenet"]
    shares = allocation.erk(params, density=density)
    sizes = [x.size for x in values(params)]
    kept = sum(quota(d, n) for d, n in zip(values(shares), sizes, strict=True))
    total = sum(sizes)
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


# What axes mean.

STACK = where.matching("layers", axes="stack inputs outputs") | where.kernels


def test_a_stack_of_layers_counts_as_its_layers():
    table, layers = np.ones((1000, 64), "f4"), np.ones((12, 64, 256), "f4")
    unrolled = {f"dense_{i}": layers[i] for i in range(12)}
    told = STACK | where.embeddings
    for density in (0.1, 0.003, 0.7, np.float32(0.1)):
        erk = functools.partial(allocation.erk, density=density, where=told)
        stacked = erk({"embedding": table, "layers": layers})
        each = erk({"embedding": table} | unrolled)
        assert {each[name] for name in unrolled} == {stacked["layers"]}
        assert stacked["embedding"] == each["embedding"]
        if density == 0.1:
            assert (
                f"{stacked['layers']:.3f} {stacked['embedding']:.3f}" == "0.104 0.088"
            )
        kept = stacked["layers"] * layers.size + stacked["embedding"] * table.size
        np.testing.assert_allclose(kept / (layers.size + table.size), density)


def test_shares_do_not_depend_on_how_layers_are_stacked_or_ordered():
    """To the last bit, traced too; with layers that become dense."""
    a, b = np.ones((3, 7, 9), "f4"), np.ones((3, 2, 5), "f4")
    told = STACK | where.matching("nested", axes="stack inputs outputs stack")
    scanned = {"layers_a": a, "layers_b": b}
    nested = {"nested_a": a.reshape(3, 7, 9, 1), "nested_b": b.reshape(3, 2, 5, 1)}
    unrolled = {f"{i}_{k}": x[i] for i in range(3) for k, x in (("b", b), ("a", a))}

    def of(density):
        how = {"density": density, "where": told}
        trees = (allocation.erk(p, **how) for p in (scanned, nested, unrolled))
        return [list(tree.values()) * (6 // len(tree)) for tree in trees]

    for density in (0.07, 0.31, 0.6):
        for found in (of(density), jax.jit(of)(np.float32(density))):
            first, *others = np.asarray(found)
            assert 0 < first[0] < first[1] <= 1
            for other in others:
                np.testing.assert_array_equal(other, first)


LAYOUTS = {  # the words, and the shape, of what is (6, 20) or (3, 3, 6, 20)
    "query": ("inputs outputs outputs", (6, 4, 5), (6, 20)),
    "out": ("inputs inputs outputs", (2, 3, 20), (6, 20)),
    "equinox": ("outputs inputs", (20, 6), (6, 20)),
    "equinox_conv": ("outputs inputs window window", (20, 6, 3, 3), (3, 3, 6, 20)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shares_are_those_of_the_kernel_in_any_layout(layout):
    words, shape, plain = LAYOUTS[layout]
    other = {"z": np.ones((50, 60), "f4")}
    conv = where.matching("conv", axes="window window inputs outputs")
    told = where.matching("^k$", axes=words) | conv | where.kernels
    erk = functools.partial(allocation.erk, density=0.2, where=told)
    name = "dense" if len(plain) == 2 else "conv"
    expected = erk({name: np.ones(plain, "f4")} | other)
    found = erk({"k": np.ones(shape, "f4")} | other)
    assert list(found.values()) == list(expected.values())


def test_erk_asks_for_axes_only_where_they_matter():
    params = {
        "bias": np.ones(3, "f4"),
        "dense": {"weight": np.ones((6, 20), "f4")},
        "z": np.ones((50, 60), "f4"),
    }
    every = functools.partial(allocation.erk, density=0.2, where=where.everything)
    shares = every(params)
    assert shares["bias"] == 1
    flipped = params | {"dense": {"weight": np.ones((20, 6), "f4")}}
    assert every(flipped) == shares
    params |= {"layers": {"bias": np.ones((3, 4)), "kernel": np.ones((3, 4, 5))}}
    params = jax.tree.map(np.float32, params)
    match = (
        r"^`maskjax.allocation.erk` needs to know the axes of these leaves for the "
        r"size of each layer. .*got:\n  layers/bias: shape \(3, 4\), by its name .*\n"
        r"  layers/kernel: shape \(3, 4, 5\), 3 axes could .*$"
    )
    with pytest.raises(ValueError, match=match):
        every(params)


def test_matching_tells_the_rest_what_axes_mean():
    params = {"layers": np.ones((3, 4, 5), "f4"), "z": np.ones((50, 60), "f4")}
    params["out"] = params["z"]
    how = {"densities": {"out": 1.0}, "density": 0.1, "rest": allocation.erk}
    found = allocation.matching(params, **how, where=STACK)
    rest = {name: params[name] for name in ("layers", "z")}
    alone = allocation.erk(rest, density=0.1, where=STACK)
    assert found == alone | {"out": 1.0}
    with pytest.raises(ValueError, match="erk` needs to know .*\n  layers: shape"):
        allocation.matching(params, **how, where=lambda path, leaf: True)


# Outliers.

OWL_SHAPES = {"a": (8, 40), "b": (40, 20), "c": (20, 30), "d": (4, 5)}


def heavy(shapes=OWL_SHAPES, seed=0):
    """Kernels with more and more outliers, and norms of their inputs."""
    rng = np.random.default_rng(seed)
    params, norms = {}, {}
    for i, (name, shape) in enumerate(shapes.items()):
        w = rng.normal(size=shape) * (1 + 30 * (rng.random(shape) < 0.02 * (i + 1)))
        params[name] = w.astype("f4")
        norms[name] = rng.uniform(0.5, 2, (*shape[:-1], 1)).astype("f4")
    return params, norms


def fractions_of(params, norms, outlier=5.0):
    return [
        reference.outliers([np.abs(w) * norms[name]], outlier)
        for name, w in params.items()
    ]


owl = jax.jit(allocation.owl, static_argnames=("spread", "outlier", "where", "layer"))


@pytest.mark.parametrize("spread", [0.0, 0.08, 0.3])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 0.5, 0.97, 1.0])
def test_owl_agrees_with_its_rule_and_keeps_its_promises(density, spread):
    params, norms = heavy()
    shares = allocation.owl(params, norms, density=density, spread=spread)
    shares = np.array(list(shares.values()))
    fractions = fractions_of(params, norms)
    sizes = [w.size for w in params.values()]
    expected = reference.owl(fractions, sizes, density, spread)
    np.testing.assert_allclose(shares, expected, atol=1e-7)
    np.testing.assert_allclose(np.average(shares, weights=sizes), density, rtol=1e-12)
    assert np.all((shares >= 0) & (shares <= 1))
    far = np.max(np.abs(shares - density))
    if spread < density < 1 - spread:
        np.testing.assert_allclose(far, spread, atol=1e-9)
        order = np.argsort(fractions)
        assert len(set(fractions)) == 4
        assert np.all(np.diff(shares[order]) > 0) or not spread
    else:
        assert far <= spread


def test_owl_of_a_traced_density_agrees_and_compiles_once():
    params, norms = heavy()
    for outlier in (3.0, 5.0):
        for density in (0.1, 0.5):
            known = allocation.owl(params, norms, density=density, outlier=outlier)
            assert all(type(share) is float for share in known.values())
            found = owl(params, norms, density=np.float32(density), outlier=outlier)
            for name, share in known.items():
                np.testing.assert_allclose(found[name], share, atol=1e-6)
    assert owl._cache_size() == 2


def test_owl_of_layers_without_a_difference_is_uniform():
    params = {name: np.ones((4, 5), "f4") for name in "ab"}
    norms = {name: np.ones((4, 1), "f4") for name in "ab"}
    assert allocation.owl(params, norms, density=0.3) == {"a": 0.3, "b": 0.3}
    empty = {"a": np.ones((4, 5), "f4"), "b": np.ones((0, 5), "f4")}
    norms["b"] = np.ones((0, 1), "f4")
    assert allocation.owl(empty, norms, density=0.3)["a"] == 0.3


def test_owl_gives_each_layer_of_a_stack_its_own_density():
    shapes = {f"dense_{i}": (12, 20) for i in range(3)} | {"z": (30, 20)}
    params, norms = heavy(shapes)
    each = allocation.owl(params, norms, density=0.4)
    stack = lambda tree, axis: np.stack(  # noqa: E731
        [tree[f"dense_{i}"] for i in range(3)], axis
    )
    told = where.matching("layers", axes="inputs stack outputs") | where.kernels
    params = {"layers": stack(params, 1), "z": params["z"]}
    norms = {"layers": stack(norms, 1), "z": norms["z"]}
    shares = allocation.owl(params, norms, density=0.4, where=told)
    expected = [each[f"dense_{i}"] for i in range(3)]
    np.testing.assert_allclose(shares["layers"], expected, rtol=1e-12)
    np.testing.assert_allclose(shares["z"], each["z"], rtol=1e-12)
    traced = owl(params, norms, density=0.4, where=told)
    np.testing.assert_allclose(traced["layers"], expected, atol=1e-6)
    for found in (shares, traced):
        scores = score.wanda(params, norms, where=told)
        how = {"density": found, "scope": "layer", "where": told}
        mask = select.top_k(scores, **how)
        kept = np.asarray(mask["layers"]).sum((0, 2))
        assert kept.tolist() == [quota(one, 240) for one in expected]


def test_kernels_of_one_layer_share_a_density():
    shapes = {
        "0_up": (12, 20),
        "0_down": (20, 12),
        "1_up": (12, 20),
        "1_down": (20, 12),
    }
    params, norms = heavy(shapes)
    block = lambda path: path.split("_")[0]  # noqa: E731
    shares = allocation.owl(params, norms, density=0.4, layer=block)
    scores = {name: np.abs(w) * norms[name] for name, w in params.items()}
    fractions = [
        reference.outliers([scores[f"{i}_{name}"] for name in ("up", "down")], 5.0)
        for i in range(2)
    ]
    expected = reference.owl(fractions, [480, 480], 0.4, 0.08)
    for i, share in enumerate(expected):
        for name in ("up", "down"):
            np.testing.assert_allclose(shares[f"{i}_{name}"], share, rtol=1e-12)

    def stacked(tree, name):
        return np.stack([tree[f"{i}_{name}"] for i in range(2)])

    told = where.matching("up|down", axes="stack inputs outputs")
    both = [{n: stacked(tree, n) for n in ("up", "down")} for tree in (params, norms)]
    how = {"density": 0.4, "where": told}
    together = allocation.owl(*both, layer=lambda path: "block", **how)
    for name in ("up", "down"):
        np.testing.assert_allclose(together[name], expected, rtol=1e-12)
    both[0]["down"] = np.ones((3, 4, 5), "f4")
    both[1]["down"] = np.ones((3, 4, 1), "f4")
    match = r"one `layer` that stack equally .*\n  x: down \(3,\), up \(2,\)"
    with pytest.raises(ValueError, match=match):
        allocation.owl(*both, layer=lambda path: "x", **how)


def test_owl_refuses():
    params, norms = heavy()
    for kind, how, match in (
        (ValueError, {"density": 1.5}, r"`density` in \[0, 1\]"),
        (ValueError, {"density": 0.5, "spread": -0.1}, "`spread` finite and at"),
        (TypeError, {"density": 0.5, "outlier": "5"}, "`outlier` as a number"),
        (TypeError, {"density": 0.5, "layer": "a"}, "`layer` as a function `.path. "),
    ):
        with pytest.raises(kind, match=f"`maskjax.allocation.owl` needs {match}"):
            allocation.owl(params, norms, **how)
    with pytest.raises(ValueError, match="`maskjax.allocation.owl` needs .* structure"):
        allocation.owl(params, {"a": norms["a"]}, density=0.5)
    bad = {**params, "b": params["b"] * np.float32(np.nan)}
    finite = (
        "`maskjax.allocation.owl` needs finite scores .*\n  b: scores sum up to nan"
    )
    with pytest.raises(ValueError, match=finite):
        allocation.owl(bad, norms, density=0.5)
    traced = owl(bad, norms, density=np.float32(0.5))
    assert traced["b"] == min(jax.tree.leaves(traced))  # it counts as without outliers
    stacked = {"layers": {"kernel": np.ones((3, 4, 5), "f4")}}
    ones = {"layers": {"kernel": np.ones((3, 4, 1), "f4")}}
    match = r"`maskjax.allocation.owl` needs to know the axes .* for the layers of a st"
    with pytest.raises(ValueError, match=match):
        allocation.owl(stacked, ones, density=0.5)
