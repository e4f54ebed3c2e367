"""A source kept while a target is learned: by hand, against NumPy, as promised."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import algebra, optim, packing, where
from maskjax.recipes import packnet, pacnet
from tests import trees
from tests.networks import (
    HEAD,
    RUNS,
    SHAPES,
    drawn,
    linen,
    loss,
    means,
    of_nnx,
    training,
)
from tests.reference import pacnet as reference
from tests.reference.selection import quota

pytestmark = pytest.mark.optimized

WEIGHTS = ("a", "b", "head")
HIDDEN = where.matching("^[ab]$")


def data(*, seed=0):
    """Inputs and targets of the source, and of the target."""
    rng = np.random.default_rng(seed)
    draw = lambda width: jnp.asarray(rng.normal(size=(12, width)), "float32")  # noqa: E731
    return (draw(5), draw(3)), (draw(5), draw(3))


STEPS, RATE = 6, 0.05


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


def fit(phase, x, y, *, lam=0.0, anchor=None, rate=RATE, momentum=0.9):
    """What training makes of a phase, and the parameters after each step."""
    anchor = phase.params if anchor is None else anchor
    numbers = map(jnp.asarray, (lam, rate, momentum))
    each = descend(phase.params, phase.mask, anchor, x, y, *numbers)
    return jax.tree.map(lambda w: w[-1], each), each


class Plain(NamedTuple):
    """Training of everything."""

    params: Any
    mask: Any


def plain(params):
    return Plain(params, {n: jnp.ones(w.shape, bool) for n, w in params.items()})


def learn(params, first, second, *, lams=(0.01, 0.0), start="zero", fresh=None, **how):
    """All phases, and the parameters after each step of both trainings."""
    pruned = pacnet.prune(params, **how)
    trained, early = fit(pruned, *first, lam=lams[0], anchor=pruned.anchor)
    allocated = pacnet.allocate(pruned, trained, fresh, start=start)
    trained, late = fit(allocated, *second, lam=lams[1], anchor=allocated.anchor)
    return pruned, allocated, pacnet.calibrate(allocated, trained), (early, late)


@pytest.fixture(scope="module")
def history():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return learn(drawn(), *data(), density=0.3)


def test_both_tasks_by_hand():
    source = {"w": jnp.array([[1.0, -2.0, 3.0, 4.0]]), "b": jnp.array([7.0])}
    pruned = pacnet.prune(source, density=0.5)
    np.testing.assert_array_equal(pruned.params["w"], [[0, 0, 3, 4]])
    np.testing.assert_array_equal(pruned.mask["w"], [[False, False, True, True]])
    assert pruned.mask["b"].all()
    trees.assert_same(pruned.anchor, source)
    # Trained by one each. What was pruned stays 0, whatever is done to it.
    trained = jax.tree.map(lambda w: w + 1, pruned.params)
    allocated = pacnet.allocate(pruned, trained)
    np.testing.assert_array_equal(allocated.params["w"], [[0, 0, 4, 5]])
    np.testing.assert_array_equal(allocated.params["b"], [8])
    np.testing.assert_array_equal(allocated.mask["w"], [[True, True, False, False]])
    assert not allocated.mask["b"].any()
    np.testing.assert_array_equal(
        pacnet.allocate(pruned, trained, start="source").params["w"], [[1, -2, 4, 5]]
    )
    # The target's training moves all by ten, of which what the source has is undone.
    state = pacnet.calibrate(
        allocated, jax.tree.map(lambda w: w + 10, allocated.params)
    )
    np.testing.assert_array_equal(pacnet.target(state)["w"], [[10, 10, 4, 5]])
    np.testing.assert_array_equal(pacnet.source(state)["w"], [[0, 0, 4, 5]])
    for params in (pacnet.target(state), pacnet.source(state)):
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
    _, allocated, state, _ = learn(drawn(), *data(), **how, where=HIDDEN)
    wide = {name: np.float64(w) for name, w in drawn().items()}
    first, second = jax.tree.map(np.float64, data())
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


@pytest.mark.filterwarnings("ignore:.*leaves the source no weights in")
@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("mapped", [False, True], ids=["jit", "vmap"])
def test_round_of_the_density_is_kept(scope, mapped):
    """Of a traced density; and of a number, outside of `jit`, the same mask."""

    @jax.jit
    def prune(params, density):
        each = lambda p, d: pacnet.prune(p, density=d, scope=scope)  # noqa: E731
        if not mapped:
            return each(params, density)
        both = jax.tree.map(lambda w: jnp.stack([w, -2 * w]), (params, density))
        return jax.tree.map(lambda x: x[0], jax.vmap(each)(*both))

    equal = {name: jnp.full_like(w, -0.5) for name, w in drawn().items()}
    for density in (0.2, 0.35, 0.015):
        for params in (drawn(), equal):
            kept = prune(params, jnp.float32(density)).kept
            trees.assert_same(
                kept, pacnet.prune(params, density=density, scope=scope).kept
            )
            found = [np.asarray(kept[name]).ravel() for name in WEIGHTS]
            parts = found if scope == "leaf" else [np.concatenate(found)]
            for part in parts:
                assert part.sum() == quota(density, part.size)
                if params is equal:
                    assert part[: quota(density, part.size)].all()
    assert kept["bias"] is None
    assert sum(part.size for part in parts) == 40 + 48 + 18


def test_the_default_is_a_fifth_of_all_weights():
    params = drawn()
    kept = pacnet.prune(params).kept
    count = quota(0.2, 40 + 48 + 18)
    assert algebra.count(kept) == count
    sizes = np.sort(np.concatenate([abs(params[n]).ravel() for n in WEIGHTS]))
    for name in WEIGHTS:
        np.testing.assert_array_equal(kept[name], abs(params[name]) >= sizes[-count])


def test_at_every_step_what_is_pruned_is_0_and_then_what_is_kept_stays(history):
    pruned, allocated, state, (early, late) = history
    for name in ("a", "b", "head"):
        kept = np.asarray(state.kept[name])
        assert kept.any()
        assert not np.asarray(early[name])[:, ~kept].any()
        assert (np.diff(np.asarray(early[name])[:, kept], axis=0) != 0).any()
        frozen = np.asarray(late[name])[:, kept]
        np.testing.assert_array_equal(
            frozen, np.broadcast_to(np.asarray(early[name])[-1, kept], frozen.shape)
        )
        assert (np.asarray(late[name])[-1, ~kept] != 0).any()
    assert (np.diff(np.asarray(early["bias"]), axis=0) != 0).any()
    biases = np.asarray(late["bias"])
    np.testing.assert_array_equal(
        biases, np.broadcast_to(early["bias"][-1], biases.shape)
    )
    trees.assert_same(allocated.params, jax.tree.map(lambda w: w[-1], early))
    trees.assert_same(pacnet.source(state), allocated.params)
    trees.assert_same(pacnet.target(state), jax.tree.map(lambda w: w[-1], late))


@pytest.mark.parametrize(("name", "masked"), RUNS)
@pytest.mark.parametrize("framework", [linen, of_nnx])
def test_the_source_says_the_same_to_the_bit(framework, name, masked):
    """With batch normalization, and an optimizer that moves everything."""
    start, train, apply = training(framework, name, masked=masked)
    first, second = data()

    train = jax.jit(train)
    says = jax.jit(apply)
    with jax.numpy_dtype_promotion("standard"):  # which Adam needs
        pruned = pacnet.prune(start)
        trained = train(pruned.params, pruned.mask, *first)
        begun = pacnet.allocate(pruned, trained, start="source")
        before = says(pacnet.source(begun), first[0])
        state = pacnet.calibrate(begun, train(begun.params, begun.mask, *second))
        after = says(pacnet.source(state), first[0])
        target = says(pacnet.target(state), first[0])
    np.testing.assert_array_equal(after, before)
    assert (np.asarray(target) != np.asarray(after)).any()
    trees.assert_same(pacnet.source(begun), pacnet.source(state))
    # Each task has its own running statistics.
    (one,), (other,) = means(pacnet.source(state)), means(pacnet.target(state))
    assert (one != other).any()


def test_statistics_are_the_sources_for_both_if_asked():
    params = {"w": jnp.ones((2, 2)), "norm": {"mean": jnp.zeros(2)}}
    pruned = pacnet.prune(params, density=0.5, statistics=None)
    allocated = pacnet.allocate(pruned, jax.tree.map(lambda w: w + 1, pruned.params))
    state = pacnet.calibrate(allocated, jax.tree.map(lambda w: w + 9, allocated.params))
    np.testing.assert_array_equal(pacnet.target(state)["norm"]["mean"], [1, 1])


def test_a_stronger_penalty_keeps_weights_where_they_were():
    """In steps of 1 / (2 lam) the distance is that of the slope over 2 lam."""
    params, (first, _) = drawn(), data()
    pruned = pacnet.prune(params, density=0.4)
    slopes = jax.grad(loss)(pruned.params, *first)
    steepest = max(float(abs(slopes[name]).max()) for name in WEIGHTS)
    for lam in (1.0, 1e2, 1e4, 1e6, 1e9):
        how = {"lam": lam, "anchor": pruned.anchor, "momentum": 0.0}
        trained, _ = fit(pruned, *first, **how, rate=0.5 / lam)
        kept = pacnet.source(pacnet.allocate(pruned, trained))
        gaps = [abs(kept[n] - params[n])[pruned.kept[n]].max() for n in WEIGHTS]
        assert max(gaps) <= 1.5 * steepest / (2 * lam) + 1e-7
        if lam == 1:
            assert max(gaps) > 0.1 * steepest
    for name in WEIGHTS:  # what float32 can say of infinity
        np.testing.assert_array_equal(kept[name], pruned.params[name])


def test_a_density_of_1_leaves_the_target_the_source():
    params, (first, second) = drawn(), data()
    with pytest.warns(UserWarning, match="leaves the target none of the 106 weights"):
        _, allocated, state, _ = learn(params, first, second, density=1.0)
    trained, _ = fit(plain(params), *first, lam=0.01)
    jax.tree.map(same_but_rounding, allocated.params, trained)
    trees.assert_same(pacnet.source(state), allocated.params)
    trees.assert_same(pacnet.target(state), allocated.params)


@pytest.mark.parametrize("start", ["zero", "source"])
def test_a_density_of_0_is_training_from_the_start(start):
    """From zero or from the source, of which nothing is left."""
    params, (first, second), fresh = drawn(), data(), drawn(seed=4)
    own = {"density": 0.0, "head": HEAD | ~where.kernels, "fresh": fresh}
    with pytest.warns(UserWarning, match="leaves the source none of the 88 weights"):
        _, _, state, _ = learn(params, first, second, start=start, **own)
    hidden = {
        name: params[name] if start == "source" else jnp.zeros(SHAPES[name])
        for name in ("a", "b")
    }
    trained, _ = fit(plain({**fresh, **hidden}), *second)
    jax.tree.map(same_but_rounding, pacnet.target(state), trained)
    for name in ("a", "b"):
        assert not pacnet.source(state)[name].any()


def same_but_rounding(a, b):
    """Programs that differ by a mask need not be fused alike."""
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("head", [None, HEAD | where.matching("bias")])
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_without_a_penalty_it_is_packnet_with_two_tasks(scope, head):
    params, (first, second) = drawn(), data()
    fresh = drawn(seed=4) if head else None

    how = {"density": 0.3, "scope": scope, "head": head, "fresh": fresh}
    one = learn(params, first, second, lams=(0.0, 0.0), **how)[2]
    other = packnet.init(params, head=head, capacity=2)
    pruned = packnet.prune(packnet.begin(other), params, rate=0.7, scope=scope)
    other = packnet.commit(pruned, fit(pruned, *first)[0])
    training = packnet.begin(other, fresh)
    other = packnet.commit(training, fit(training, *second)[0])

    trees.assert_same(one.kept, jax.tree.map(lambda o: o == 1, other.owner))
    trees.assert_same(pacnet.source(one), packnet.params_of(other, 0))
    trees.assert_same(pacnet.target(one), packnet.params_of(other, 1))


def test_a_new_head_may_be_of_another_width_and_biases_may_train():
    params = drawn()
    pruned = pacnet.prune(params, head=HEAD | where.matching("bias"), density=0.5)
    assert pruned.kept["head"] is None
    assert algebra.count(pruned.kept) == 44
    np.testing.assert_array_equal(pruned.params["head"], params["head"])
    fresh = {**params, "head": np.full((6, 5), 2, np.float32)}
    trained = jax.tree.map(lambda w: w + 1, pruned.params)
    allocated = pacnet.allocate(pruned, trained, fresh)
    np.testing.assert_array_equal(allocated.params["head"], np.full((6, 5), 2))
    np.testing.assert_array_equal(allocated.params["bias"], params["bias"])
    assert allocated.mask["head"].all()
    assert allocated.mask["bias"].all()
    # A penalty in the target's loss begins at 0, whatever the widths.
    far = pacnet.allocate(pruned, trained, fresh, start="source")
    assert pacnet.l2_sp(far.params, far.anchor, far.mask, lam=1.0) == 0
    state = pacnet.calibrate(allocated, jax.tree.map(lambda w: w + 9, allocated.params))
    np.testing.assert_array_equal(pacnet.target(state)["head"], np.full((6, 5), 11))
    np.testing.assert_array_equal(pacnet.target(state)["bias"], params["bias"] + 9)
    for name in ("head", "bias"):
        np.testing.assert_array_equal(pacnet.source(state)[name], params[name] + 1)


def test_own_leaves_start_as_the_sources_without_fresh_ones():
    pruned = pacnet.prune(drawn(), head=HEAD)
    trained = jax.tree.map(lambda w: w + 1, pruned.params)
    allocated = pacnet.allocate(pruned, trained)
    np.testing.assert_array_equal(allocated.params["head"], drawn()["head"] + 1)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in trees.NAMES]
    + [(name, "bfloat16") for name in ("nnx", "odd_leaves")],
)
def test_trees_of_every_kind(name, dtype):
    params, first, second = (trees.make(name, dtype, seed=seed) for seed in range(3))
    choose = where.kernels & where.matching("^(?!empty)")  # nothing to prune there

    @jax.jit
    def both(params, first, second):
        pruned = pacnet.prune(params, density=0.4, where=choose)
        allocated = pacnet.allocate(pruned, first)
        state = pacnet.calibrate(allocated, second)
        return state, pacnet.source(state), pacnet.target(state)

    state, source, target = both(params, first, second)
    for tree in (source, target):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
    total = sum(kept.size for kept in jax.tree.leaves(state.kept))
    assert algebra.count(state.kept) == quota(0.4, total)
    for (a, kept), b, early, late in zip(
        trees.pairs(first, state.kept),
        *(map(trees.to_numpy, jax.tree.leaves(t)) for t in (second, source, target)),
        strict=True,
    ):
        assert early.dtype == late.dtype == a.dtype
        np.testing.assert_array_equal(
            early, a if kept is None else np.where(kept, a, 0)
        )
        np.testing.assert_array_equal(late, a if kept is None else np.where(kept, a, b))


def test_seeds_and_densities_side_by_side_are_those_apart():
    starts, densities = [drawn(seed=seed) for seed in range(3)], [0.2, 0.5, 0.9]
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *starts)

    def run(params, density):
        state = learn(params, *data(), density=density)[2]
        return state.kept, pacnet.source(state), pacnet.target(state)

    together = jax.jit(jax.vmap(run))
    for turn in range(2):
        order = np.roll(densities, turn)
        found = together(stacked, jnp.float32(order))
        for i, (start, density) in enumerate(zip(starts, order, strict=True)):
            one = run(start, jnp.float32(density))
            assert algebra.count(one[0]) == quota(density, 106)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)
    assert together._cache_size() == 1


# The penalty.


def test_the_penalty_by_hand(every_transform):
    params = {"w": jnp.array([[1.0, 5.0], [0.0, -1.0]]), "b": jnp.array([2.0])}
    anchor = {"w": jnp.array([[3.0, 0.0], [0.0, 1.0]]), "b": jnp.array([5.0])}
    one = {"w": jnp.array([[True], [False]]), "b": None}
    soft = {"w": jnp.array([[0.5, 2.0], [3.0, 0.0]]), "b": jnp.array([1.0])}
    expected = {"all": 4 + 25 + 4 + 9, "one": 4 + 25, "soft": 2 + 50 + 9}
    for weights, sum_ in zip((None, one, soft), expected.values(), strict=True):
        f = every_transform(lambda p, a, m=weights: pacnet.l2_sp(p, a, m, lam=0.5))
        np.testing.assert_allclose(f(params, anchor), 0.5 * sum_)
    assert pacnet.l2_sp(params, anchor) == np.float32(0.01 * 42)
    packed = pacnet.l2_sp(
        params, anchor, packing.pack({**one, "w": one["w"] & (params["w"] < 9)})
    )
    assert packed == np.float32(0.01 * 29)
    traced = jax.jit(lambda lam: pacnet.l2_sp(params, anchor, lam=lam))
    assert traced(jnp.array(2)) == 84


def test_its_gradient_pulls_back_what_counts_and_nothing_else():
    params, anchor = drawn(), drawn(seed=1)
    mask = {
        name: jnp.asarray(np.random.default_rng(2).random(s) < 0.5)
        for name, s in SHAPES.items()
    }
    mask["bias"] = None
    params["a"] = params["a"].at[~mask["a"]].set(jnp.inf)
    penalty = lambda p: pacnet.l2_sp(p, anchor, mask, lam=0.25)  # noqa: E731
    slopes = jax.jit(jax.grad(penalty))(params)
    for name in ("a", "b", "head"):
        pull = 0.5 * np.float64(params[name] - anchor[name])
        expected = np.where(mask[name], pull, 0)
        np.testing.assert_allclose(slopes[name], expected, rtol=1e-6)
    assert not slopes["bias"].any()


def test_it_sums_in_float32_at_least_and_passes_over_integers(x64):
    many = {"w": jnp.ones(3000, jnp.bfloat16), "n": jnp.ones(2, jnp.int32)}
    none = {"w": jnp.zeros(3000, jnp.bfloat16), "n": jnp.zeros(2, jnp.int32)}
    found = pacnet.l2_sp(many, none, lam=1.0)
    assert found == 3000
    assert found.dtype == jnp.float32
    mixed = [
        {**p, "x": jnp.full(1, v, jnp.float64)} for p, v in ((many, 1e-9), (none, 0))
    ]
    found = pacnet.l2_sp(*mixed, lam=1.0)
    assert found.dtype == jnp.float64
    assert found == 3000 + 1e-18


def test_bad_penalties_are_refused():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    for lam in (-0.1, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match="l2_sp` needs `lam` finite and at least 0"
        ):
            pacnet.l2_sp(params, params, lam=lam)
    for lam in ("much", True, jnp.ones(2)):
        with pytest.raises(TypeError, match="l2_sp` needs `lam` as a number"):
            pacnet.l2_sp(params, params, lam=lam)
    other = {"w": jnp.ones((2, 4)), "b": jnp.ones(3, jnp.bfloat16)}
    both = (
        r"(?s)l2_sp` needs `anchor` of the.*  b: bfloat16 array.*  w: .*\(2, 4\), net"
    )
    with pytest.raises(ValueError, match=both):
        pacnet.l2_sp(params, other)
    with pytest.raises(ValueError, match="(?s)only in `network`: b"):
        pacnet.l2_sp(params, {"w": params["w"]})
    with pytest.raises(
        ValueError, match=r"(?s)`weights` shaped like.*w: weights \(3, 3\)"
    ):
        pacnet.l2_sp(params, params, {"w": jnp.ones((3, 3), bool), "b": None})
    with pytest.raises(TypeError, match="(?s)`weights` to be a boolean or .*w: int32"):
        pacnet.l2_sp(params, params, {"w": jnp.ones((2, 3), int), "b": None})
    with pytest.raises(ValueError, match="needs floating leaves that count, got none"):
        pacnet.l2_sp(params, params, {"w": None, "b": None})


# Bad input.


def test_a_density_that_leaves_a_task_nothing_is_warned_of_with_the_count():
    params = drawn()
    few = "prune` leaves the source none of the 106 weights"
    for density in (0, 0.0, 4e-3):
        with pytest.warns(UserWarning, match=few):
            pacnet.prune(params, density=density)
    full = "prune` leaves the target none of the 106 weights"
    for density in (1, 0.996, jnp.float32(1)):
        with pytest.warns(UserWarning, match=full):
            pacnet.prune(params, density=density)
    with pytest.warns(UserWarning, match=full):  # while tracing
        jax.eval_shape(lambda p: pacnet.prune(p, density=1.0), params)
    with pytest.warns(UserWarning, match=few):  # a hundredth of 48 rounds to nothing
        pacnet.prune(params, density=0.01, scope="leaf")
    with pytest.warns(UserWarning, match="prune` leaves the source no weights in b, h"):
        assert algebra.count(pacnet.prune(params, density=0.01).kept) == 1
    each = {name: None if name == "bias" else 1.0 for name in params}
    with pytest.warns(UserWarning, match=full):
        pacnet.prune(params, density=each, scope="leaf")
    jax.eval_shape(lambda d: pacnet.prune(params, density=d), jnp.float32(1))  # unknown


def test_phases_out_of_order_are_refused():
    params = {"w": jnp.ones((2, 5))}
    pruned = pacnet.prune(params)
    allocated = pacnet.allocate(pruned, params)
    state = pacnet.calibrate(allocated, params)
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
    pruned = pacnet.prune(params, head=HEAD)
    allocated = pacnet.allocate(pruned, params)
    wide = {**params, "a": jnp.ones((5, 9)), "head": jnp.ones((6, 4))}
    shapes = (
        r".*a: float32 array of shape \(5, 9\), net.*head: .*\(6, 4\), net.*\(6, 3\)"
    )
    for call in (pacnet.allocate, pacnet.calibrate):
        phase = pruned if call is pacnet.allocate else allocated
        name = call.__name__
        with pytest.raises(
            ValueError, match=f"(?s){name}` needs `params` of the{shapes}"
        ):
            call(phase, wide)
        half = {**params, "b": params["b"].astype(jnp.bfloat16)}
        with pytest.raises(ValueError, match=r"(?s)b: bfloat16 array.*network float32"):
            call(phase, half)
        with pytest.raises(ValueError, match="(?s)only in `network`: head"):
            call(phase, {n: params[n] for n in ("a", "b", "bias")})


def test_fresh_leaves_that_do_not_fit_are_named():
    params = drawn()
    pruned = pacnet.prune(params, head=HEAD)
    needs = "(?s)allocate` needs `fresh` of the.*"
    with pytest.raises(ValueError, match=needs + r"a: .*\(5, 9\), network"):
        pacnet.allocate(pruned, params, {**params, "a": jnp.ones((5, 9))})
    for head in (jnp.ones(3), jnp.ones((6, 4), int), None, 1.0):
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
        pacnet.prune(params, scope="layer")
    needs = r"`head` to choose.*where\.matching\('hed'\) chooses none of: a, b"
    with pytest.raises(ValueError, match=needs):
        pacnet.prune(params, head=where.matching("hed"))
    alone = pacnet.prune(params)
    with pytest.raises(ValueError, match="allocate` needs `fresh` for a task's own"):
        pacnet.allocate(alone, params, params)
    with pytest.raises(
        ValueError, match="prune` needs weights that are not of the `head`"
    ):
        pacnet.prune(params, head=where.kernels)
    with pytest.raises(TypeError, match="(?s)prune` needs.*floating.*n: int32"):
        pacnet.prune({"n": jnp.ones((2, 2), int)}, where=where.everything)
    with pytest.raises(ValueError, match="`start` as 'zero' or 'source', got 'one'"):
        pacnet.allocate(pacnet.prune(params), params, start="one")
