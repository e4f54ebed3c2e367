"""A source kept while a target is learned: by hand, against NumPy, as promised."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import optim, packing, where
from maskjax.recipes import packnet, pacnet
from tests import trees
from tests.networks import HEAD, SHAPES, drawn, loss
from tests.reference import pacnet as reference
from tests.reference import selection
from tests.reference.selection import quota

WEIGHTS = ("a", "b", "head")
HIDDEN = where.matching("^[ab]$")
OWN = HEAD | where.matching("bias")
STEPS, RATE = 6, 0.05
RNG = np.random.default_rng(0)
# Inputs and targets of the source, and of the target.
FIRST, SECOND = (
    tuple(RNG.normal(size=(12, width)).astype(np.float32) for width in (5, 3))
    for _ in range(2)
)


@jax.jit
def descend(params, mask, anchor, x, y, lam, rate, momentum):
    """A user's own loop; the parameters after each step."""
    sgd = optax.sgd(rate, momentum)
    optimizer = optax.chain(sgd, optim.mask_updates(mask))

    def penalized(params):
        return loss(params, x, y) + pacnet.l2_sp(params, anchor, mask, lam=lam)

    def step(carry, _):
        params, opt_state = carry
        slopes = jax.grad(penalized)(params)
        updates, opt_state = optimizer.update(slopes, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[1]


def fit(params, mask, x, y, *, lam=0.0, anchor=None, rate=RATE, momentum=0.9):
    """What training makes of parameters, and these after each step."""
    anchor = params if anchor is None else anchor
    # Of full shapes, so that one program does for all masks.
    mask = {n: jnp.broadcast_to(m, SHAPES[n]) for n, m in mask.items()}
    numbers = map(np.float32, (lam, rate, momentum))
    each = descend(params, mask, anchor, x, y, *numbers)
    return {name: w[-1] for name, w in each.items()}, each


EVERYTHING = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}


def learn(params, *, lams=(0.01, 0.0), start="zero", fresh=None, **how):
    """All phases, and the parameters after each step of both trainings."""
    pruned = pacnet.prune(params, **how)
    trained, early = fit(
        pruned.params, pruned.mask, *FIRST, lam=lams[0], anchor=pruned.anchor
    )
    allocated = pacnet.allocate(pruned, trained, fresh, start=start)
    trained, late = fit(
        allocated.params, allocated.mask, *SECOND, lam=lams[1], anchor=allocated.anchor
    )
    return pruned, allocated, pacnet.calibrate(allocated, trained), (early, late)


@pytest.fixture(scope="module")
def history():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return learn(drawn(), density=0.3)


def test_both_tasks_by_hand():
    source = {"w": np.float32([[1, -2, 3, 4]]), "b": np.float32([7])}

    @jax.jit
    def both(source):
        pruned = pacnet.prune(source, density=0.5)
        # Trained by one each. What was pruned stays 0, whatever is done to it.
        trained = jax.tree.map(lambda w: w + 1, pruned.params)
        allocated = pacnet.allocate(pruned, trained)
        other = pacnet.allocate(pruned, trained, start="source").params
        # The target moves all by ten, of which what the source has is undone.
        moved = jax.tree.map(lambda w: w + 10, allocated.params)
        state = pacnet.calibrate(allocated, moved)
        return pruned, allocated, other, pacnet.target(state), pacnet.source(state)

    pruned, allocated, other, target, kept = both(source)
    np.testing.assert_array_equal(pruned.params["w"], [[0, 0, 3, 4]])
    np.testing.assert_array_equal(pruned.mask["w"], [[False, False, True, True]])
    assert np.all(pruned.mask["b"])
    trees.assert_same(pruned.anchor, jax.tree.map(jnp.asarray, source))
    np.testing.assert_array_equal(allocated.params["w"], [[0, 0, 4, 5]])
    np.testing.assert_array_equal(allocated.params["b"], [8])
    np.testing.assert_array_equal(allocated.mask["w"], [[True, True, False, False]])
    assert not np.any(allocated.mask["b"])
    np.testing.assert_array_equal(other["w"], [[1, -2, 4, 5]])
    np.testing.assert_array_equal(target["w"], [[10, 10, 4, 5]])
    np.testing.assert_array_equal(kept["w"], [[0, 0, 4, 5]])
    for params in (target, kept):
        np.testing.assert_array_equal(params["b"], [8])


@pytest.mark.parametrize(
    ("scope", "start", "lams"),
    [
        ("global", "zero", (0.01, 0.0)),
        ("leaf", "source", (0.3, 0.0)),
        ("global", "source", (0.3, 0.3)),
        ("leaf", "zero", (0.0, 0.3)),
    ],
)
def test_it_agrees_with_the_reference(scope, start, lams):
    how = {"density": 0.3, "scope": scope, "start": start, "lams": lams}
    _, allocated, state, _ = learn(drawn(), **how, where=HIDDEN)
    wide = {name: np.float64(w) for name, w in drawn().items()}
    first, second = jax.tree.map(np.float64, (FIRST, SECOND))
    kept, source, target = reference.learn(
        wide, first, second, **how, steps=STEPS, lr=RATE
    )
    for name in ("a", "b"):
        np.testing.assert_array_equal(state.kept[name], kept[name])
    for found, expected in (
        (pacnet.source(allocated), source),
        (pacnet.source(state), source),
        (pacnet.target(state), target),
    ):
        for name in SHAPES:
            np.testing.assert_allclose(
                found[name], expected[name], rtol=1e-4, atol=1e-6
            )


DENSITIES = (0.2, 0.35, 0.015)
EQUAL = {name: np.full(shape, -0.5, np.float32) for name, shape in SHAPES.items()}


@pytest.mark.filterwarnings("ignore:.*leaves the source no weights in")
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_round_of_the_density_is_kept(scope):
    """Of a number, and of an array, the same mask; of equal weights the first."""
    for density, params in itertools.product(DENSITIES, (drawn(), EQUAL)):
        kept = pacnet.prune(params, density=density, scope=scope).kept
        traced = jax.device_put(np.float32(density))
        trees.assert_same(pacnet.prune(params, density=traced, scope=scope).kept, kept)
        found = [np.asarray(kept[name]).ravel() for name in WEIGHTS]
        for part in found if scope == "leaf" else [np.concatenate(found)]:
            assert part.sum() == quota(density, part.size)
            if params is EQUAL:
                assert part[: quota(density, part.size)].all()


def test_the_default_is_a_fifth_of_all_weights():
    params = drawn()
    kept = pacnet.prune(params).kept
    sizes = [np.abs(params[name]) for name in WEIGHTS]
    expected = selection.top_k(sizes, 0.2, scope="global")
    assert sum(mask.sum() for mask in expected) == quota(0.2, 40 + 48 + 18)
    for name, mask in zip(WEIGHTS, expected, strict=True):
        np.testing.assert_array_equal(kept[name], mask)


def test_at_every_step_what_is_pruned_is_0_and_then_what_is_kept_stays(history):
    _, allocated, state, (early, late) = jax.tree.map(np.asarray, history)
    for name in WEIGHTS:
        kept = state.kept[name]
        assert kept.any()
        assert not early[name][:, ~kept].any()
        assert (np.diff(early[name][:, kept], axis=0) != 0).any()
        frozen = late[name][:, kept]
        np.testing.assert_array_equal(
            frozen, np.broadcast_to(early[name][-1, kept], frozen.shape)
        )
        assert (late[name][-1, ~kept] != 0).any()
    assert (np.diff(early["bias"], axis=0) != 0).any()
    np.testing.assert_array_equal(
        late["bias"], np.broadcast_to(early["bias"][-1], late["bias"].shape)
    )
    for found, steps in (
        (allocated.params, early),
        (pacnet.source(history[1]), early),
        (pacnet.source(history[2]), early),
        (pacnet.target(history[2]), late),
    ):
        for name in SHAPES:
            np.testing.assert_array_equal(found[name], steps[name][-1])


def test_statistics_are_the_sources_for_both_if_asked():
    @jax.jit
    def both(params):
        pruned = pacnet.prune(params, density=0.5, statistics=None)
        more = lambda tree: jax.tree.map(lambda w: w + 1, tree)  # noqa: E731
        allocated = pacnet.allocate(pruned, more(pruned.params))
        return pacnet.target(pacnet.calibrate(allocated, more(allocated.params)))

    params = {"w": np.ones((2, 2), "f4"), "norm": {"mean": np.zeros(2, "f4")}}
    np.testing.assert_array_equal(both(params)["norm"]["mean"], [1, 1])


def test_a_stronger_penalty_keeps_weights_where_they_were():
    """In steps of 1 / (2 lam) the distance is that of the slope over 2 lam."""
    params = drawn()
    pruned = pacnet.prune(params, density=0.4)
    slopes = jax.jit(jax.grad(loss))(pruned.params, *FIRST)
    steepest = max(np.abs(slopes[name]).max() for name in WEIGHTS)
    for lam in (1.0, 1e2, 1e4, 1e6, 1e9):
        how = {"lam": lam, "anchor": pruned.anchor, "momentum": 0.0}
        trained, _ = fit(pruned.params, pruned.mask, *FIRST, **how, rate=0.5 / lam)
        kept = pacnet.source(pacnet.allocate(pruned, trained))
        gaps = max(
            np.abs(np.asarray(kept[n]) - params[n])[np.asarray(pruned.kept[n])].max()
            for n in WEIGHTS
        )
        assert gaps <= 1.5 * steepest / (2 * lam) + 1e-7
        if lam == 1:
            assert gaps > 0.1 * steepest
    for name in WEIGHTS:  # what float32 can say of infinity
        np.testing.assert_array_equal(kept[name], pruned.params[name])


def test_a_density_of_1_leaves_the_target_the_source():
    params = drawn()
    with pytest.warns(UserWarning, match="leaves the target none of the 106 weights"):
        _, allocated, state, _ = learn(params, density=1.0)
    trained, _ = fit(params, EVERYTHING, *FIRST, lam=0.01)
    jax.tree.map(same_but_rounding, allocated.params, trained)
    trees.assert_same(pacnet.source(state), allocated.params)
    trees.assert_same(pacnet.target(state), allocated.params)


@pytest.mark.parametrize("start", ["zero", "source"])
def test_a_density_of_0_is_training_from_the_start(start):
    """From zero or from the source, of which nothing is left."""
    params, fresh = drawn(), drawn(seed=4)
    own = {"density": 0.0, "head": OWN, "fresh": fresh}
    with pytest.warns(UserWarning, match="leaves the source none of the 88 weights"):
        _, _, state, _ = learn(params, start=start, **own)
    hidden = {
        name: params[name] if start == "source" else np.zeros(SHAPES[name], "f4")
        for name in ("a", "b")
    }
    trained, _ = fit({**fresh, **hidden}, EVERYTHING, *SECOND)
    jax.tree.map(same_but_rounding, pacnet.target(state), trained)
    for name in ("a", "b"):
        assert not np.any(pacnet.source(state)[name])


def same_but_rounding(a, b):
    """Programs that differ by a mask need not be fused alike."""
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("scope", "head"), [("leaf", None), ("global", OWN)])
def test_without_a_penalty_it_is_packnet_with_two_tasks(scope, head):
    params = drawn()
    fresh = drawn(seed=4) if head else None

    how = {"density": 0.3, "scope": scope, "head": head, "fresh": fresh}
    one = learn(params, lams=(0.0, 0.0), **how)[2]
    other = packnet.init(params, head=head, capacity=2)
    pruned = packnet.prune(packnet.begin(other), params, rate=0.7, scope=scope)
    other = packnet.commit(pruned, fit(pruned.params, pruned.mask, *FIRST)[0])
    begun = packnet.begin(other, fresh)
    other = packnet.commit(begun, fit(begun.params, begun.mask, *SECOND)[0])

    for kept, owner in zip(*map(jax.tree.leaves, (one.kept, other.owner)), strict=True):
        np.testing.assert_array_equal(kept, np.asarray(owner) == 1)
    trees.assert_same(pacnet.source(one), packnet.params_of(other, 0))
    trees.assert_same(pacnet.target(one), packnet.params_of(other, 1))


def test_a_new_head_may_be_of_another_width_and_biases_may_train():
    params = drawn()
    fresh = {**params, "head": np.full((6, 5), 2, np.float32)}

    @jax.jit
    def both(params, fresh):
        pruned = pacnet.prune(params, head=OWN, density=0.5)
        trained = jax.tree.map(lambda w: w + 1, pruned.params)
        unchanged = pacnet.allocate(pruned, trained).params
        allocated = pacnet.allocate(pruned, trained, fresh)
        # A penalty in the target's loss begins at 0, whatever the widths.
        far = pacnet.allocate(pruned, trained, fresh, start="source")
        penalty = pacnet.l2_sp(far.params, far.anchor, far.mask, lam=1.0)
        moved = jax.tree.map(lambda w: w + 9, allocated.params)
        state = pacnet.calibrate(allocated, moved)
        views = pacnet.target(state), pacnet.source(state)
        return pruned, unchanged, allocated, penalty, *views

    pruned, unchanged, allocated, penalty, target, kept = both(params, fresh)
    assert pruned.kept["head"] is None
    assert sum(np.sum(mask) for mask in jax.tree.leaves(pruned.kept)) == 44
    np.testing.assert_array_equal(pruned.params["head"], params["head"])
    np.testing.assert_array_equal(allocated.params["head"], np.full((6, 5), 2))
    np.testing.assert_array_equal(allocated.params["bias"], params["bias"])
    assert np.all(allocated.mask["head"])
    assert np.all(allocated.mask["bias"])
    assert penalty == 0
    np.testing.assert_array_equal(target["head"], np.full((6, 5), 11))
    np.testing.assert_array_equal(target["bias"], np.asarray(params["bias"]) + 9)
    for name in ("head", "bias"):
        one_more = np.asarray(params[name]) + 1
        np.testing.assert_array_equal(kept[name], one_more)
        # Without fresh leaves they start as the source's.
        np.testing.assert_array_equal(unchanged[name], one_more)


def phases(params, first, second):
    choose = where.kernels & where.matching("^(?!empty)")  # nothing to prune there
    pruned = pacnet.prune(params, density=0.4, where=choose)
    allocated = pacnet.allocate(pruned, first)
    state = pacnet.calibrate(allocated, second)
    return state, pacnet.source(state), pacnet.target(state)


@pytest.mark.parametrize("name", trees.NAMES)
def test_trees_of_every_kind_keep_structure_and_dtypes(name):
    for dtype in trees.DTYPES:
        params = trees.make(name, dtype)
        shapes = jax.eval_shape(lambda w: w, params)
        _, source, target = jax.eval_shape(phases, params, params, params)
        assert source == target == shapes


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("odd_leaves", "bfloat16"),
        *(pytest.param(n, d, marks=pytest.mark.slow) for n in trees.NAMES
          for d in trees.DTYPES),
    ],
)  # fmt: skip
def test_trees_of_every_kind(name, dtype):
    params, first, second = (trees.make(name, dtype, seed=seed) for seed in range(3))
    state, source, target = jax.jit(phases)(params, first, second)
    kept = [np.asarray(mask) for mask in jax.tree.leaves(state.kept)]
    assert sum(m.sum() for m in kept) == quota(0.4, sum(m.size for m in kept))
    for (a, kept), b, early, late in zip(
        trees.pairs(first, state.kept),
        *(map(trees.to_numpy, jax.tree.leaves(t)) for t in (second, source, target)),
        strict=True,
    ):
        np.testing.assert_array_equal(
            early, a if kept is None else np.where(kept, a, 0)
        )
        np.testing.assert_array_equal(late, a if kept is None else np.where(kept, a, b))


def test_seeds_and_densities_side_by_side_are_those_apart():
    seeds = [[drawn(seed=seed + i) for seed in range(3)] for i in range(3)]
    first, second, third = (
        jax.tree.map(lambda *w: np.stack(w), *each) for each in seeds
    )

    def run(params, first, second, density):
        pruned = pacnet.prune(params, density=density)
        allocated = pacnet.allocate(pruned, first)
        state = pacnet.calibrate(allocated, second)
        return state.kept, pacnet.source(state), pacnet.target(state)

    together = jax.jit(jax.vmap(run))
    for densities in ([0.2, 0.5, 0.9], [0.9, 0.2, 0.5]):
        found = together(first, second, third, np.float32(densities))
        for i, density in enumerate(densities):
            one = run(*(each[i] for each in seeds), jax.device_put(np.float32(density)))
            assert sum(np.sum(m) for m in jax.tree.leaves(one[0])) == quota(
                density, 106
            )
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
                np.testing.assert_array_equal(a[i], b)
    assert together._cache_size() == 1


# The penalty.


def test_the_penalty_by_hand():
    params = {"w": np.float32([[1, 5], [0, -1]]), "b": np.float32([2])}
    anchor = {"w": np.float32([[3, 0], [0, 1]]), "b": np.float32([5])}
    one = {"w": np.array([[True], [False]]), "b": None}
    soft = {"w": np.float32([[0.5, 2], [3, 0]]), "b": np.float32([1])}
    bits = {"w": np.array([[True, True], [False, False]]), "b": None}

    def each(params, lam):
        whole = packing.pack(bits)
        return [pacnet.l2_sp(params, anchor, c, lam=lam)
                for c in (None, one, soft, whole)]  # fmt: skip

    expected = np.array([4 + 25 + 4 + 9, 4 + 25, 2 + 50 + 9, 4 + 25])
    lam = np.float32([0.5, 2])
    twice = jax.tree.map(lambda w: np.stack([w, w]), params)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(each))(twice, lam), np.outer(expected, lam)
    )
    np.testing.assert_allclose(jax.jit(each)(params, np.int32(2)), 2 * expected)
    assert pacnet.l2_sp(params, anchor) == np.float32(0.01 * 42)


def test_its_gradient_pulls_back_what_counts_and_nothing_else():
    params, anchor = (
        {n: np.asarray(w) for n, w in drawn(seed=s).items()} for s in (0, 1)
    )
    rng = np.random.default_rng(2)
    mask = {name: rng.random(s) < 0.5 for name, s in SHAPES.items()}
    mask["bias"] = None
    params["a"] = np.where(mask["a"], params["a"], np.inf)
    penalty = lambda p: pacnet.l2_sp(p, anchor, mask, lam=0.25)  # noqa: E731
    slopes = jax.jit(jax.grad(penalty))(params)
    for name in WEIGHTS:
        pull = 0.5 * (np.float64(params[name]) - anchor[name])
        expected = np.where(mask[name], pull, 0)
        np.testing.assert_allclose(slopes[name], expected, rtol=1e-6)
    assert not np.any(slopes["bias"])


def test_it_sums_in_float32_at_least_and_passes_over_integers(x64):
    many = {"w": jnp.asarray(np.ones(3000), jnp.bfloat16), "n": np.ones(2, np.int32)}
    none = {"w": jnp.asarray(np.zeros(3000), jnp.bfloat16), "n": np.zeros(2, np.int32)}
    found = jax.jit(lambda a, b: pacnet.l2_sp(a, b, lam=1.0))(many, none)
    assert found == 3000
    assert found.dtype == jnp.float32
    mixed = [{**p, "x": np.full(1, v)} for p, v in ((many, 1e-9), (none, 0.0))]
    found = jax.jit(lambda a, b: pacnet.l2_sp(a, b, lam=1.0))(*mixed)
    assert found.dtype == jnp.float64
    assert found == 3000 + 1e-18


def test_bad_penalties_are_refused():
    params = {"w": np.ones((2, 3), "f4"), "b": np.ones(3, "f4")}
    for lam in (-0.1, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match="l2_sp` needs `lam` finite and at least 0"
        ):
            pacnet.l2_sp(params, params, lam=lam)
    for lam in ("much", True, jax.device_put(np.ones(2, "f4"))):
        with pytest.raises(TypeError, match="l2_sp` needs `lam` as a number"):
            pacnet.l2_sp(params, params, lam=lam)
    other = {"w": np.ones((2, 4), "f4"), "b": np.ones(3, jnp.bfloat16)}
    both = (
        r"(?s)l2_sp` needs `anchor` of the.*  b: bfloat16 array.*  w: .*\(2, 4\), net"
    )
    with pytest.raises(ValueError, match=both):
        pacnet.l2_sp(params, other)
    with pytest.raises(ValueError, match="(?s)only in `network`: b"):
        pacnet.l2_sp(params, {"w": params["w"]})
    with pytest.raises(
        ValueError, match=r"(?s)`coefficients` shaped like.*w: coefficients \(3, 3\)"
    ):
        pacnet.l2_sp(params, params, {"w": np.ones((3, 3), bool), "b": None})
    with pytest.raises(
        TypeError, match="(?s)`coefficients` to be a boolean or .*w: int"
    ):
        pacnet.l2_sp(params, params, {"w": np.ones((2, 3), int), "b": None})
    with pytest.raises(ValueError, match="needs floating leaves that count, got none"):
        pacnet.l2_sp(params, params, {"w": None, "b": None})


# Bad input.


def test_a_density_that_leaves_a_task_nothing_is_warned_of_with_the_count():
    params = drawn()
    few = "prune` leaves the source none of the 106 weights"
    full = "prune` leaves the target none of the 106 weights"

    def trace(density, **how):
        jax.eval_shape(lambda p: pacnet.prune(p, density=density, **how), params)

    for density in (0, 0.0, 4e-3):  # known while tracing
        with pytest.warns(UserWarning, match=few):
            trace(density)
    for density in (1, 0.996):
        with pytest.warns(UserWarning, match=full):
            trace(density)
    with pytest.warns(UserWarning, match=few):  # a hundredth of 48 rounds to nothing
        trace(0.01, scope="leaf")
    with pytest.warns(UserWarning, match=full):
        pacnet.prune(params, density=jax.device_put(np.float32(1)))
    with pytest.warns(UserWarning, match="prune` leaves the source no weights in b, h"):
        kept = pacnet.prune(params, density=0.01).kept
    assert sum(np.sum(mask) for mask in jax.tree.leaves(kept)) == 1
    each = {name: None if name == "bias" else 1.0 for name in params}
    with pytest.warns(UserWarning, match=full):
        pacnet.prune(params, density=each, scope="leaf")
    jax.eval_shape(lambda d: pacnet.prune(params, density=d), np.float32(1))  # unknown


def shaped(params, **how):
    """A network's shapes in each phase."""

    def run(params):
        pruned = pacnet.prune(params, **how)
        allocated = pacnet.allocate(pruned, params)
        return pruned, allocated, pacnet.calibrate(allocated, params)

    return jax.eval_shape(run, params)


def test_phases_out_of_order_are_refused():
    params = {"w": np.ones((2, 5), "f4")}
    pruned, allocated, state = shaped(params)
    order = "Call `prune`, `allocate` and `calibrate`, in this order"
    for given in (allocated, state, params):
        kind = type(given).__name__
        with pytest.raises(
            TypeError, match=f"allocate` needs a `Pruned`, got {kind}. {order}"
        ):
            pacnet.allocate(given, params)
    for given in (pruned, state):
        with pytest.raises(TypeError, match="calibrate` needs a `Allocated`, got"):
            pacnet.calibrate(given, params)
    with pytest.raises(
        TypeError, match="source` needs a `Allocated` or `Calibrated`, got P"
    ):
        pacnet.source(pruned)
    for given in (pruned, allocated):
        with pytest.raises(TypeError, match="target` needs a `Calibrated`, got"):
            pacnet.target(given)
    with pytest.raises(TypeError, match="got Pruned"):  # while tracing
        jax.eval_shape(lambda p: pacnet.calibrate(p, params), pruned)


def test_trees_that_do_not_fit_are_named():
    params = drawn()
    pruned, allocated, _ = shaped(params, head=HEAD)
    wide = {**params, "a": np.ones((5, 9), "f4"), "head": np.ones((6, 4), "f4")}
    half = {**params, "b": np.asarray(params["b"]).astype(jnp.bfloat16)}
    shapes = (
        r".*a: float32 array of shape \(5, 9\), net.*head: .*\(6, 4\), net.*\(6, 3\)"
    )
    for call, phase in ((pacnet.allocate, pruned), (pacnet.calibrate, allocated)):
        needs = f"(?s){call.__name__}` needs `params` of the"
        with pytest.raises(ValueError, match=needs + shapes):
            call(phase, wide)
        with pytest.raises(ValueError, match=r"(?s)b: bfloat16 array.*network float32"):
            call(phase, half)
        with pytest.raises(ValueError, match="(?s)only in `network`: head"):
            call(phase, {n: params[n] for n in ("a", "b", "bias")})
    needs = "(?s)allocate` needs `fresh` of the.*"
    with pytest.raises(ValueError, match=needs + r"a: .*\(5, 9\), network"):
        pacnet.allocate(pruned, params, {**params, "a": wide["a"]})
    for head in (np.ones(3, "f4"), np.ones((6, 4), int), None, 1.0):
        with pytest.raises(ValueError, match=needs + "head: "):
            pacnet.allocate(pruned, params, {**params, "head": head})
    with pytest.raises(ValueError, match="(?s)only in `network`: bias"):
        pacnet.allocate(pruned, params, {n: params[n] for n in ("a", "b", "head")})


def test_bad_arguments_are_refused():
    params = drawn()
    for density in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"`density` in \[0, 1\]"):
            pacnet.prune(params, density=density)
    with pytest.raises(TypeError, match="`density` as a number"):
        pacnet.prune(params, density="half")
    with pytest.raises(ValueError, match="`scope` as 'leaf' or 'global'"):
        pacnet.prune(params, scope="layers")
    needs = r"`head` to choose.*where\.matching\('hed'\) chooses none of: a, b"
    with pytest.raises(ValueError, match=needs):
        pacnet.prune(params, head=where.matching("hed"))
    with pytest.raises(
        ValueError, match="prune` needs weights that are not of the `head`"
    ):
        pacnet.prune(params, head=where.kernels)
    with pytest.raises(
        TypeError, match=r"pacnet\.prune` needs `statistics` as a funct"
    ):
        pacnet.prune(params, statistics="mean")
    with pytest.raises(TypeError, match="(?s)prune` needs.*floating.*n: int"):
        pacnet.prune({"n": np.ones((2, 2), int)}, where=where.everything)
    pruned, *_ = shaped(params)
    with pytest.raises(ValueError, match="allocate` needs `fresh` for a task's own"):
        pacnet.allocate(pruned, params, params)
    with pytest.raises(ValueError, match="`start` as 'zero' or 'source', got 'one'"):
        pacnet.allocate(pruned, params, start="one")
