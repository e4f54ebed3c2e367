"""Masks in optimizers: in loops, in optax's wrappers, in Flax, against NumPy."""

import functools

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from flax.training import train_state
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import maskjax
from maskjax import allocation, optim, packing, score, select
from maskjax.structure import Block, NofM, Units
from tests import trees
from tests.reference import optim as reference
from tests.reference import selection
from tests.training import (
    assert_zero_outside,
    bits,
    count,
    following,
    half,
    kernel,
    make_params,
    run,
    slope,
)

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _ordinary_promotion(_strict_promotion):
    """Many of optax's optimizers need it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(("dtype", "packed"), [("float32", True), ("bfloat16", False)])
def test_frozen_entries_keep_their_bits(dtype, packed):
    params = make_params(dtype)
    params["a"]["kernel"][:, :4] = -0.0
    mask = half(params)
    given = packing.pack(mask) if packed else mask
    chain = optax.chain(optax.adamw(0.1, weight_decay=0.1), optim.mask_updates(given))
    trained, state = run(chain, params, steps=5)
    for layer in ("a", "b"):
        frozen = ~mask[layer]["kernel"]
        after, before = (bits(p[layer]["kernel"]) for p in (trained, params))
        np.testing.assert_array_equal(after[frozen], before[frozen])
        assert (after[~frozen] != before[~frozen]).all()
    trees.assert_same(packing.unpack(optim.mask_of(state)), mask)


@pytest.mark.parametrize(("dtype", "exact"), [("float32", False), ("float16", True)])
def test_of_frozen_entries_only_subnormal_ones_are_rounded_to_zero(dtype, exact):
    """What the docstring says that XLA's addition may do on CPU."""
    tiny = np.array(jnp.finfo(dtype).smallest_subnormal)
    params = {"w": np.array([1, -0.0, 0, -2, tiny, -tiny], dtype)}
    optimizer = optim.mask_updates({"w": False})
    after, _ = run(optimizer, params, steps=1)
    np.testing.assert_array_equal(bits(after["w"])[:4], bits(params["w"])[:4])
    rounded = np.array([1, -0.0, 0, -2, 0, -0.0], dtype)
    if not exact and jax.__version_info__ >= (0, 11):  # XLA may see that -0.0 adds none
        exact = bits(after["w"])[4] == bits(params["w"])[4]
    expected = params["w"] if exact else rounded
    np.testing.assert_array_equal(bits(after["w"]), bits(expected))


@pytest.mark.parametrize("make", [optim.mask_updates, optim.keep_sparse])
def test_plain_booleans_and_prefixes_are_masks_and_no_mask_at_all_is_refused(make):
    params = make_params("float32")
    trees_of = {name: jax.tree.map(np.ones_like, p) for name, p in params.items()}
    optimizer = make({"a": False, **{name: True for name in params if name != "a"}})
    updates, state = optimizer.update(trees_of, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    wanted = params["a"] if make is optim.mask_updates else trees_of["a"]
    scale = 1 if make is optim.mask_updates else 0
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, scale * y), after["a"], wanted
    )
    assert (np.asarray(after["b"]["kernel"]) != params["b"]["kernel"]).all()
    assert not optim.mask_of(state)["a"]["kernel"].any()
    for none in (None, jax.tree.map(lambda _: None, params)):
        with pytest.raises(ValueError, match="needs a mask with at least one leaf, go"):
            make(none).init(params)


def test_keep_sparse_prunes_in_one_shot_and_holds():
    params = make_params("bfloat16")
    larger = lambda p: select.top_k(score.magnitude(p), density=0.5)  # noqa: E731
    chain = optax.chain(optax.adam(0.1), optim.keep_sparse(larger))
    trained, state = run(chain, params, steps=5)
    trees.assert_same(optim.mask_of(state), half(params))
    assert_zero_outside(trained, half(params))
    assert trained["a"]["kernel"].dtype == "bfloat16"


def test_updates_narrower_than_the_parameters_still_cancel_them():
    params = make_params()
    narrow = lambda p: jax.tree.map(lambda g: g.astype(jnp.bfloat16), slope(p))  # noqa: E731
    chain = optax.chain(optax.sgd(0.1), optim.keep_sparse(half(params)))
    trained, _ = run(chain, params, steps=2, gradients=narrow)
    assert_zero_outside(trained, half(params))


@pytest.mark.parametrize("tree", [n for n in trees.NAMES if n != "odd_leaves"])
def test_prune_takes_any_tree(tree):
    optimizer = optax.chain(optax.sgd(0.1), optim.prune(0.3))

    def step(params):
        state = optimizer.init(params)
        updates, state = optimizer.update(slope(params), state, params)
        expected = select.top_k(score.magnitude(params), density=0.3)
        mask = optim.mask_of(state)
        return optax.apply_updates(params, updates), mask, expected

    params = trees.make(tree)
    after, mask, expected = jax.eval_shape(step, params)
    alike = lambda a, b: jax.tree.map(lambda x, y: x.shape == y.shape, a, b)  # noqa: E731
    assert all(jax.tree.leaves(alike(mask, expected)))
    assert all(jax.tree.leaves(alike(after, params)))


def test_gradual_pruning_is_that_of_the_reference():
    params = make_params()
    schedule = optax.polynomial_schedule(1.0, 0.1, 3, 12)
    chain = optax.chain(
        optax.sgd(0.05, momentum=0.9), optim.prune(schedule, every=4, scope="global")
    )
    wanted = reference.gradual_pruning(
        [params[k]["kernel"] for k in "ab"],
        gradient=lambda w: 0.3 * w + 0.05,
        learning_rate=0.05,
        momentum=0.9,
        density=lambda n: 0.1 + 0.9 * (1 - min(n, 12) / 12) ** 3,
        every=4,
        steps=14,
    )
    trained, state = run(chain, params, steps=14)
    for name, (weights, mask) in zip("ab", wanted, strict=True):
        np.testing.assert_array_equal(optim.mask_of(state)[name]["kernel"], mask)
        np.testing.assert_allclose(trained[name]["kernel"], weights, atol=1e-5)
    assert_zero_outside(trained, optim.mask_of(state))


def test_density_follows_the_schedule_and_never_rises():
    """It rises between powers of two, where nobody looks."""
    parts = [optax.linear_schedule(1.0, 0.25, 6), *map(float, (0.9, 0.25))]
    parts[1:] = map(optax.constant_schedule, parts[1:])
    down_and_up = optax.join_schedules(parts, [9, 16])
    optimizer = optax.chain(optax.sgd(0.1), optim.prune(down_and_up, every=2))
    gradients = {"w": np.ones((12, 6, 8), "float32")}
    _, masks, _ = following(optimizer, {"w": kernel()}, gradients)
    assert not (masks["w"][1:] & ~masks["w"][:-1]).any()
    counts = masks["w"].sum(axis=(1, 2)).tolist()
    assert counts == [48, 48, 36, 36, 24, 24, *7 * [12]]


@pytest.mark.parametrize(
    ("structure", "density"),
    [(NofM(2, 4), 0.5), (Block((2, 2)), 0.25), (Units(), 0.5)],
    ids=str,
)
def test_structures_in_training(structure, density):
    params = {"kernel": kernel()[:4], "bias": np.ones(8, "float32")}
    schedule = optax.linear_schedule(1.0, density, 4)
    optimizer = optax.chain(
        optax.adamw(0.01), optim.prune(schedule, every=2, structure=structure)
    )
    trained, state = run(optimizer, params, steps=4)
    mask = optim.mask_of(state)
    assert_zero_outside(trained, mask)
    whole = np.broadcast_to(np.asarray(mask["kernel"]), (4, 8))
    assert whole.mean() == density
    if isinstance(structure, NofM):
        assert (whole.sum(axis=0) == 2).all()
    elif isinstance(structure, Block):
        tiles = whole.reshape(2, 2, 4, 2).transpose(0, 2, 1, 3).reshape(8, 4)
        assert set(tiles.sum(axis=1)) == {0, 4}
    else:
        assert set(whole.sum(axis=0)) == {0, 4}


def test_densities_may_be_trees_schedules_of_them_and_allocations():
    params = make_params()
    shares = allocation.matching(params, densities={"^b": 0.5}, density=0.25)

    def gradual(n):
        part = jnp.minimum(n / 4, 1)
        return jax.tree.map(lambda d: 1 - (1 - d) * part, shares)

    how = {
        "tree": (shares, None),
        "schedule": (gradual, None),
        "erk": (0.4, allocation.erk),
    }

    @jax.jit
    def masks(params):
        found = {}
        for name, (density, share) in how.items():
            tx = optim.prune(density, every=2, allocation=share)
            state = tx.init(params)
            for _ in range(4):
                _, state = tx.update(slope(params), state, params)
            found[name] = state.mask
        rigl = optim.rigl(shares, rate=0.1, every=9, key=KEY)
        return found | {"rigl": rigl.init(params).mask}

    erk = allocation.erk(params, density=0.4)
    sizes = {"a": 48, "b": 32}
    expected = {name: [12, 16] for name in ("tree", "schedule", "rigl")}
    expected["erk"] = [selection.quota(erk[k]["kernel"], n) for k, n in sizes.items()]
    assert expected["erk"][0] * 32 != expected["erk"][1] * 48
    for name, mask in masks(params).items():
        assert [count(mask[k]) for k in "ab"] == expected[name], name
    with pytest.raises(ValueError, match=r"`density\[a/kernel\]` in \[0, 1\], got 2"):
        optim.prune({"a": {"kernel": 2.0, "bias": None}, "b": None})


@pytest.mark.parametrize("also_step", [False, True])
def test_rigl_drops_and_grows_as_the_reference_and_compiles_once(also_step):
    chex.clear_trace_counter()
    params = {"w": kernel()}
    rigl = optim.rigl(0.25, rate=0.3, every=2, also_step=also_step, key=KEY)
    optimizer = optim.with_gradients(optax.chain(optax.sgd(0.1), rigl))
    state = jax.jit(optimizer.init)(params)
    mask, weights = np.asarray(optim.mask_of(state)["w"]), params["w"]

    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for n in range(1, 5):
        gradient = np.cos(np.arange(48.0) * n).reshape(6, 8).astype(np.float32)
        params, state = update({"w": gradient}, state, params)
        how = {"learning_rate": 0.1, "rate": 0.3, "also_step": also_step}
        weights, mask = reference.rigl(weights, gradient, mask, due=n % 2 == 0, **how)
        np.testing.assert_array_equal(optim.mask_of(state)["w"], mask)
        np.testing.assert_allclose(params["w"], weights, atol=1e-6)


def test_grown_weights_start_at_zero_and_dropped_ones_end_there():
    rigl = optim.rigl(0.5, rate=0.5, every=1, key=KEY, regrow=False)
    optimizer = optim.with_gradients(optax.chain(optax.adamw(0.1), rigl))
    params = {"w": kernel()}
    gradients = jax.tree.map(lambda p: 0.3 * p[None] + 0.05, params)
    after, masks, _ = following(optimizer, params, gradients)
    new, (before, after) = after["w"][0], masks["w"]
    grown, dropped = after & ~before, before & ~after
    assert grown.sum() == dropped.sum() == 12
    assert not new[grown].any()
    assert not new[dropped].any()
    assert new[before & after].all()


def test_set_grows_at_random_and_differently_each_time():
    set_ = optim.set_(0.25, rate=0.5, every=1, key=KEY)
    optimizer = optim.with_gradients(optax.chain(optax.sgd(0.01), set_))
    ones = {"w": np.ones((2, 8, 8), "float32")}
    _, masks, _ = following(optimizer, {"w": ones["w"][0]}, ones)
    zeroth, first, second = masks["w"]
    assert masks["w"].sum(axis=(1, 2)).tolist() == [16, 16, 16]
    assert (zeroth != first).any()
    assert ((first & ~zeroth) != (second & ~first)).any()


def test_a_loop_without_jit_scores_only_when_a_change_is_due():
    params, calls = {"w": kernel()}, []

    def counted(params, *, where):
        calls.append(0)
        return score.magnitude(params, where=where)

    optimizer = optax.chain(optax.sgd(0.1), optim.prune(0.5, every=3, score=counted))
    state, sizes = optimizer.init(params), []
    for _ in range(7):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
        sizes.append(count(optim.mask_of(state)))
    assert len(calls) == 2
    assert sizes == [48, 48, 24, 24, 24, 24, 24]
    assert_zero_outside(params, optim.mask_of(state))


def test_vmap_over_seeds_and_densities_equals_a_loop():
    def train(params, density, key):
        rigl = optim.rigl(density, rate=0.5, every=2, scope="global", key=key)
        chain = optax.chain(optax.sgd(0.1, momentum=0.9), rigl)
        trained, state = run(optim.with_gradients(chain), params, steps=5)
        return trained, optim.mask_of(state)

    members = [{"w": make_params(seed=i)["a"]["kernel"]} for i in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *members)
    densities, keys = np.array([0.25, 0.5, 0.75], "f4"), jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(train))(stacked, densities, keys)
    alone = jax.jit(train)
    for i, params in enumerate(members):
        one = alone(params, densities[i], keys[i])
        mine = jax.tree.map(lambda x, i=i: np.asarray(x)[i], together)
        trees.assert_same(one[1], mine[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), one, mine)
        assert count(mine[1]) == [12, 24, 36][i]


def test_members_in_step_share_one_branch():
    """Under `vmap` the selection stays behind a conditional, not a select."""
    update = jax.vmap(optim.prune(0.5, every=100).update)
    params = {"w": np.ones((3, 4, 4), "float32")}
    mask = {"w": np.ones((3, 4, 4), bool)}
    state = optim.MaskState(mask, np.array([98, 99, 100], "int32"))
    assert "cond[" in str(jax.make_jaxpr(update)(params, state, params))
    _, after = jax.jit(update)(params, state, params)
    assert np.asarray(after.mask["w"]).sum(axis=(1, 2)).tolist() == [16, 8, 16]
    twice = jax.tree.map(lambda x: np.stack([x, x]), (params, state, params))
    assert "cond[" in str(jax.make_jaxpr(jax.vmap(update))(*twice))


def wrapped(kind):
    """An optimizer in one of optax's wrappers."""
    chain = optax.chain(optax.adamw(0.1), optim.prune(0.5, every=2))
    only = maskjax.where.matching("^b/kernel")
    rigl = optim.rigl(0.5, rate=0.3, every=2, where=only, key=KEY)
    rewired = optim.with_gradients(optax.chain(optax.adam(0.1), rigl))
    labels = {"a": "left", "b": {"kernel": "right", "bias": "rest"}}
    parts = {"left": optax.sgd(0.1, momentum=0.9), "right": rigl}
    static = {"static_args": ("score", "where")}
    return {
        "MultiSteps": lambda: optax.MultiSteps(rewired, 2),
        "inject_hyperparams": lambda: optax.inject_hyperparams(
            lambda rate, density: optax.chain(optax.adamw(rate), optim.prune(density))
        )(rate=0.1, density=optax.constant_schedule(0.5)),
        "inject_hyperparams, directly": lambda: optax.inject_hyperparams(
            optim.prune, **static
        )(0.5, every=2),
        "inject_hyperparams, rigl": lambda: optim.with_gradients(
            optax.inject_hyperparams(optim.rigl, **static)(
                0.5, rate=0.3, every=2, key=KEY
            )
        ),
        "multi_transform": lambda: optax.multi_transform(
            {"left": chain, "right": rewired, "rest": optax.sgd(0.1)}, labels
        ),
        "multi_transform in with_gradients": lambda: optim.with_gradients(
            optax.multi_transform(parts | {"rest": optax.identity()}, labels)
        ),
        "masked": lambda: optax.masked(chain, {"a": True, "b": False}),
        "apply_if_finite": lambda: optax.apply_if_finite(rewired, 3),
        "named_chain": lambda: optax.named_chain(
            ("adam", optax.adam(0.1)), ("prune", optim.prune(0.5))
        ),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "masked"),
    [
        ("MultiSteps", "b"),
        ("inject_hyperparams", "ab"),
        ("inject_hyperparams, directly", "ab"),
        ("inject_hyperparams, rigl", "ab"),
        ("multi_transform", "ab"),
        ("multi_transform in with_gradients", "b"),
        ("masked", "a"),
        ("apply_if_finite", "b"),
        ("named_chain", "ab"),
    ],
)
def test_masks_hold_inside_wrappers(kind, masked):
    params = make_params()
    trained, state = run(wrapped(kind), params, steps=4)
    mask = optim.mask_of(state, params)
    none = lambda x: x is None  # noqa: E731
    structures = [jax.tree.structure(tree, is_leaf=none) for tree in (mask, params)]
    assert structures[0] == structures[1]
    assert_zero_outside(trained, mask)
    assert "".join(k for k in "ab" if mask[k]["kernel"] is not None) == masked
    for k in masked:
        assert count(mask[k]) * 2 == mask[k]["kernel"].size


def test_apply_if_finite_leaves_the_mask_alone_when_it_rejects():
    params = make_params()
    optimizer = optax.apply_if_finite(optax.chain(optax.sgd(1.0), optim.prune(0.5)), 3)
    bad = lambda params: jax.tree.map(lambda p: p * jnp.nan, params)  # noqa: E731
    trained, state = run(optimizer, params, steps=1, gradients=bad)
    trees.assert_same(jax.tree.map(np.asarray, trained), params)
    assert count(optim.mask_of(state)) == 80


REWIRED = optim.with_gradients(
    optax.chain(optax.adamw(0.1), optim.rigl(0.25, rate=0.5, every=2, key=KEY))
)


def test_a_train_state_of_flax():
    model, x = nn.Dense(4), np.ones((2, 6), "float32")

    @jax.jit
    def create():
        params = model.init(KEY, x)["params"]
        return train_state.TrainState.create(
            apply_fn=model.apply, params=params, tx=REWIRED
        )

    @jax.jit
    def step(state):
        loss = lambda p: jnp.sum((state.apply_fn({"params": p}, x) - 1.0) ** 2)  # noqa: E731
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    state = create()
    for _ in range(4):
        state = step(state)
    mask = optim.mask_of(state.opt_state)
    assert count(mask) == 6
    assert mask["bias"] is None
    assert_zero_outside(state.params, mask)


@pytest.mark.parametrize("bias", [True, False])
def test_an_optimizer_of_nnx(bias):
    x = np.ones((2, 6), "float32")

    @nnx.jit
    def create():
        model = nnx.Linear(6, 4, use_bias=bias, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, REWIRED, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda m: jnp.sum((m(x) - 1.0) ** 2))(model)
        optimizer.update(model, gradients)

    model, optimizer = create()
    for _ in range(5):
        step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    mask = optim.mask_of(optimizer.opt_state, params)
    sparse = maskjax.apply(params, mask)
    trees.assert_same(jax.tree.leaves(sparse), jax.tree.leaves(params))
    assert np.count_nonzero(model.kernel[...]) == 6


def test_equinox_models_are_trees_and_not_functions():
    model = eqx.filter_eval_shape(lambda: eqx.nn.MLP(6, 4, 8, 1, key=KEY))
    shapes = eqx.filter(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    params = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)
    mask = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    assert callable(mask)
    state = optim.keep_sparse(mask).init(params)
    assert count(optim.mask_of(state)) == count(mask)


def shaped(function, *args, **static):
    """A call for its shapes and complaints only: nothing is compiled."""
    return jax.eval_shape(functools.partial(function, **static), *args)


def test_extra_arguments_pass_through():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append((value, sorted(extra)))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = make_params()
    last = [
        optim.prune(0.5),
        optim.keep_sparse(half(params)),
        optim.mask_updates(half(params)),
        optim.set_(0.5, rate=0.1, every=9, key=KEY),
    ]
    for transformation in last:
        optimizer = optim.with_gradients(optax.chain(transformation, spy))
        state = shaped(optimizer.init, params)
        shaped(optimizer.update, params, state, params, value=3.0)
    assert seen == [(3.0, ["gradients", "mask"])] * 4


def test_scores_name_the_arguments_they_need():
    params = make_params()

    def saliency(params, *, where, gradients):
        return jax.tree.map(
            lambda p, g: jnp.abs(p * g) if p.ndim == 2 else None, params, gradients
        )

    chain = optax.chain(optax.sgd(0.0), optim.prune(0.5, score=saliency))
    gradients = jax.tree.map(
        lambda p: np.arange(p.size, 0, -1).reshape(p.shape).astype("float32"), params
    )
    optimizer = optim.with_gradients(chain)
    _, state = run(optimizer, params, steps=1, gradients=lambda _: gradients)
    products = jax.tree.map(lambda p, g: np.abs(p * g), params, gradients)
    trees.assert_same(jax.tree.map(np.asarray, optim.mask_of(state)), half(products))
    with pytest.raises(ValueError, match="`maskjax.optim.prune` needs `gradients`"):
        shaped(chain.update, gradients, shaped(chain.init, params), params)


def test_moments_restart_where_the_mask_changes():
    params = {"w": kernel(), "b": np.ones(8, "float32")}
    chain = optax.chain(optax.adam(0.1), optim.rigl(0.5, rate=0.5, every=2, key=KEY))
    optimizer = optim.with_gradients(chain)
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    for n in (1, 2):
        before = np.asarray(optim.mask_of(state)["w"])
        gradients = jax.tree.map(lambda p: 0.3 * np.asarray(p) + 0.05, params)
        updates, state = update(gradients, state, params)
        params = jax.tree.map(lambda p, u: p + np.asarray(u), params, updates)
        changed = before != np.asarray(optim.mask_of(state)["w"])
        for moment in (state[0][0].mu, state[0][0].nu):
            zero = np.asarray(moment["w"]) == 0
            assert zero.sum() == changed.sum()
            assert zero[changed].all()
            assert np.asarray(moment["b"]).all()
        assert changed.any() == (n == 2)
        assert int(state[0][0].count) == n


def test_reset_moments_of_every_kind_of_state():
    params = {"w": np.ones((4, 4), "float32"), "b": np.ones(4, "float32")}
    before = {"w": np.eye(4, dtype=bool), "b": None}
    after = {"w": ~before["w"], "b": None}
    optimizers = (
        optax.MultiSteps(optax.chain(optax.clip(1.0), optax.adam(0.1)), 3),
        optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9),
        optax.contrib.prodigy(),
        optax.adafactor(0.1),
    )

    @jax.jit
    def resets(params, before, after):
        found = []
        for optimizer in optimizers:
            initial = optimizer.init(params)
            _, state = optimizer.update(slope(params), initial, params)
            same = optim.reset_moments(state, initial, before, before)
            reset = optim.reset_moments(state, initial, before, packing.pack(after))
            found.append((initial, state, same, reset))
        return found

    for initial, state, same, reset in resets(params, before, after):
        trees.assert_same(same, state)
        like = [x.shape == (4, 4) for x in jax.tree.leaves(state)]
        for inside, a, b, c in zip(
            like, *map(jax.tree.leaves, (reset, initial, state)), strict=True
        ):
            trees.assert_same(a, b if inside else c)


def test_donated_states_take_neither_keys_nor_masks_along():
    params, key = {"w": np.ones((4, 4), "float32")}, jax.random.key(3)
    mask = {"w": jax.device_put(np.eye(4, dtype=bool))}
    for tx in (optim.set_(0.5, rate=0.1, every=9, key=key), optim.keep_sparse(mask)):
        update = jax.jit(
            lambda s, tx=tx: tx.update(params, s, params, gradients=params)[1],
            donate_argnums=0,
        )
        update(tx.init(params))  # eager, as users do
        trees.assert_same(update(tx.init(params)).mask, tx.init(params).mask)
    assert np.asarray(mask["w"]).sum() == 4


def test_moments_restart_where_only_the_mask_is_wrapped():
    params = {"a": kernel(), "c": np.ones((6, 8), "float32")}
    rigl = optim.rigl(0.5, rate=0.5, every=1, key=KEY)
    chain = optax.chain(
        optax.sgd(0.1, momentum=0.9), optax.masked(rigl, {"a": True, "c": False})
    )
    gradients = jax.tree.map(lambda p: 0.3 * p[None] + 0.05, params)
    _, masks, state = following(optim.with_gradients(chain), params, gradients)
    changed = masks["a"][0] != masks["a"][1]
    trace = jax.tree.map(np.asarray, state[0][0].trace)
    assert changed.any()
    assert not trace["a"][changed].any()
    assert trace["c"].all()


def test_what_grows_back_at_once_was_never_away():
    params = {"w": np.array([[1.0, 2.0, 3.0, 4.0]], "float32")}
    rigl = optim.rigl(0.5, rate=0.5, every=1, also_step=True, key=KEY)
    optimizer = optim.with_gradients(optax.chain(optax.sgd(0.1, momentum=0.9), rigl))

    @jax.jit
    def step(params):
        state = optimizer.init(params)
        mask = optim.mask_of(state)["w"]
        steep = {"w": jnp.where(mask, 10.0, 0.1)}
        updates, state = optimizer.update(steep, state, params)
        new = optax.apply_updates(params, updates)["w"]
        return mask, optim.mask_of(state)["w"], new

    mask, after, new = map(np.asarray, step(params))
    np.testing.assert_array_equal(after, mask)
    np.testing.assert_allclose(new, np.where(mask, params["w"] - 1.0, 0.0))


def test_masks_are_found_by_path_and_not_by_its_spelling():
    one = np.ones((1, 2), "float32")
    params = {"a": {"b": one}, "a/b": one}
    mask = {"a": {"b": np.array([[True, False]])}, "a/b": np.array([[False, True]])}
    state = optim.keep_sparse(mask).init(params)
    trees.assert_same(optim.mask_of(state, params), mask)


def test_without_regrow_gradients_that_are_nan_grow_other_entries():
    rigl = optim.rigl(0.5, rate=0.5, every=1, regrow=False, key=KEY)
    bad = {"w": np.full((1, 6, 8), np.nan, "float32")}
    _, masks, _ = following(optim.with_gradients(rigl), {"w": kernel()}, bad)
    old, new = masks["w"]
    assert new.sum() == old.sum() == 2 * (old & new).sum()


def refusal(kind, match, function, *args, **kwargs):
    with pytest.raises(kind, match=match):
        function(*args, **kwargs)


def test_bad_schedules_and_options_are_refused():
    too_low = optax.linear_schedule(1.0, -0.2, 100)
    refusal(ValueError, r"`density` in \[0, 1\] at every step", optim.prune, too_low)
    refusal(ValueError, r"`density` in \[0, 1\], got 1.5", optim.prune, 1.5)
    refusal(ValueError, "`every` of at least 1, got 0", optim.prune, 0.5, every=0)
    refusal(TypeError, "`every` as a whole number", optim.prune, 0.5, every=2.5)
    for bad, kind, got in (
        (0, ValueError, "of at least 1, got 0"),
        (2.5, TypeError, "as a whole number, got float32 array"),
        ([1], ValueError, r"of shape \(\), got \(1,\)"),
    ):
        refusal(kind, f"`every` {got}", optim.prune, 0.5, every=jnp.asarray(bad))
    for make in (optim.prune, lambda d, **k: optim.set_(d, rate=0.1, key=KEY, **k)):
        match = "`scope` as 'leaf' or 'global'"
        refusal(ValueError, match, make, 0.5, every=9, scope="x")
    match = "numbers, or trees of them, got nothing"
    refusal(ValueError, match, optim.prune, lambda n: None)
    vector = lambda n: jnp.ones(1)  # noqa: E731
    refusal(ValueError, r"of shape \(1,\) at step 0", optim.prune, vector)
    bad = {"rate": None, "every": 1, "key": KEY}
    refusal(TypeError, "`rate` as a number", optim.rigl, 0.5, **bad)


@pytest.mark.parametrize("make", [optim.rigl, optim.set_])
def test_rewiring_that_cannot_be_is_refused(make):
    params = make_params()
    name = f"`maskjax.optim.{make.__name__}` needs "
    given = {"rate": 0.3, "every": 1, "key": KEY}
    refusal(ValueError, name + r"`rate` in \[0, 1\]", make, 0.5, **given | {"rate": 2})
    high = given | {"rate": optax.linear_schedule(0.0, 1.5, 1000)}
    refusal(ValueError, name + "`rate` in .* step 1024", make, 0.5, **high)
    refusal(ValueError, name + "`density` in", make, -0.1, **given)
    refusal(ValueError, name + "`every` of", make, 0.5, **given | {"every": 0})
    refusal(TypeError, name + "`key` as a typed key", make, 0.5, **given | {"key": 0})
    crowded = make(0.75, **given | {"rate": 0.5, "regrow": False})
    refusal(ValueError, "a/kernel: 18 to grow, 12 of 48 free", crowded.init, params)
    refusal(ValueError, "b/kernel: 12 to grow, 8 of 32 free", crowded.init, params)
    together = make(0.75, **given | {"rate": 0.5, "regrow": False, "scope": "global"})
    refusal(ValueError, "all leaves: 30 to grow, 20 of 80", together.init, params)
    nothing = make(0.5, **given | {"where": maskjax.where.matching("none")})
    refusal(ValueError, "choose at least one leaf", nothing.init, params)


def test_no_room_to_grow_is_refused():
    params, how = make_params(), {"every": 1, "regrow": False, "key": KEY}
    blocks = optim.rigl(0.5, rate=0.75, structure=Block((2, 2)), **how)
    one = {"w": np.ones((2, 6), "float32")}
    refusal(ValueError, "w: 2 to grow, 1 of 3 free", blocks.init, one)
    groups = optim.rigl(0.75, rate=0.3, structure=NofM(3, 4), **how)
    tall = {"w": np.ones((4, 2), "float32")}
    refusal(ValueError, "needs `regrow` with NofM", groups.init, tall)
    shares = {"a": {"kernel": 0.75, "bias": None}, "b": {"kernel": 0.25, "bias": None}}
    uneven = optim.rigl(shares, rate=0.5, **how)
    refusal(ValueError, "a/kernel: 18 to grow, 12 of 48 free$", uneven.init, params)
    erk = optim.prune(0.5, every=9, scope="global", allocation=allocation.erk)
    refusal(ValueError, 'one `density` for scope="global"', erk.init, params)
    other = optim.prune({"c": 0.5}, every=9)
    refusal(ValueError, "only in `density`: c", other.init, params)


@pytest.mark.parametrize("make", [optim.rigl, optim.set_])
@pytest.mark.parametrize("scope", ["leaf", "layer", "output", "global"])
def test_a_density_that_leaves_a_leaf_no_weight_is_refused(make, scope):
    size, each, path = {  # what is ranked together in kernels (6, 8) and (8, 4)
        "leaf": (32, "", "b/kernel"),
        "layer": (32, " in each layer", "b/kernel"),
        "output": (6, " in each output", "a/kernel"),
        "global": (80, "", "all leaves"),
    }[scope]
    params, how = make_params(), {"rate": 0.5, "every": 1, "scope": scope, "key": KEY}
    least = -(-5000 // size) / 10_000  # half a weight of them, or a little more
    few = make(0.95 * least, **how)
    match = "`density` that leaves each leaf a weight (.|\n)*, got:\n"
    match += rf"  {path}: {0.95 * least:.3g} of {size}{each}$"
    refusal(ValueError, match, few.init, params)
    begin = lambda density: make(density, **how).init(params)  # noqa: E731
    jax.eval_shape(begin, 0.95 * least)  # traced
    for fine in (least, 0.0):
        jax.eval_shape(functools.partial(begin, fine))


@pytest.mark.parametrize("regrow", [True, False])
def test_weights_do_not_grow_where_gradients_are_nan_but_elsewhere(regrow):
    params = {"w": np.arange(1, 25, dtype="f4").reshape(4, 6)}
    lost = np.arange(24).reshape(4, 6) % 3 == 0
    gradients = {"w": np.where(lost, np.nan, np.float32(1))}
    rigl = optim.rigl(0.25, rate=0.5, every=1, regrow=regrow, key=KEY)
    optimizer = optim.with_gradients(rigl)
    state = optimizer.init(params)
    _, after = jax.jit(optimizer.update)(gradients, state, params)
    before, now = (np.asarray(optim.mask_of(s)["w"]) for s in (state, after))
    assert now.sum() == before.sum() == 6
    assert (now & ~before).any()
    assert not (now & ~before & lost).any()


def test_updates_without_what_they_need_are_refused():
    params = make_params()
    gradients = jax.tree.map(np.ones_like, params)
    positional = optim.prune(0.5, score=lambda params, gradients: params)
    state = shaped(positional.init, params)
    match = "needs `gradients`, which its `score` names(.|\n)*`optim.with_gradients`"
    refusal(ValueError, match, shaped, positional.update, gradients, state, params)
    few = {"a": params["a"], "b": {"kernel": np.ones((2, 2), "f4"), "bias": None}}
    keep = optim.keep_sparse(half(params))
    state = keep.init(params)
    match = r"b/kernel: updates \(8, 4\), params \(2, 2\)"
    refusal(ValueError, match, keep.update, gradients, state, few)

    rigl = optim.rigl(0.5, rate=0.3, every=10, key=KEY)
    state = shaped(rigl.init, params)
    match = "needs `gradients`, to grow(.|\n)*`optim.with_gradients`, and that in wra"
    refusal(ValueError, match, shaped, rigl.update, gradients, state, params)
    wrong = {"a": gradients["a"], "b": few["b"]}
    match = r"b/kernel: params \(8, 4\), gradients \(2, 2\)"
    update = lambda u, s, p, g: rigl.update(u, s, p, gradients=g)  # noqa: E731
    refusal(ValueError, match, shaped, update, gradients, state, params, wrong)
    for tx in (rigl, optim.prune(0.5), keep):
        state = shaped(tx.init, params)
        refusal(ValueError, "needs `params`", tx.update, gradients, state)
    for name, tx in (("rigl", rigl), ("prune", optim.prune(0.5))):
        state = shaped(tx.init, params)
        update = functools.partial(tx.update, gradients=few)
        match = rf"`maskjax.optim.{name}` needs (.|\n)*b/kernel: mask \(8, 4\), params "
        refusal(ValueError, match, shaped, update, few, state, few)


def _rank_by_gradients(params, gradients):
    return gradients


@pytest.mark.parametrize(
    ("name", "tx"),
    [
        ("rigl", optim.rigl(0.5, rate=0.3, every=10, key=KEY)),
        ("prune", optim.prune(0.5, score=_rank_by_gradients)),
        ("set_", optim.set_(0.5, rate=0.3, every=1, score=_rank_by_gradients, key=KEY)),
    ],
)
def test_gradients_that_differ_between_devices_are_refused_for_one_mask(name, tx):
    params = {"w": jax.ShapeDtypeStruct((8, 4), "float32")}
    gradients = {"w": jax.ShapeDtypeStruct((2, 8, 4), "float32")}
    axes = PartitionSpec(), PartitionSpec("x")
    mesh = AbstractMesh((2,), ("x",), (AxisType.Auto,))

    def step(params, gradients, *, mean):
        own = jax.tree.map(lambda g: g[0], gradients)
        own = jax.lax.pmean(own, "x") if mean else own
        updates = jax.tree.map(jnp.zeros_like, params)
        return tx.update(updates, tx.init(params), params, gradients=own)

    over = lambda mean: jax.shard_map(  # noqa: E731
        functools.partial(step, mean=mean),
        mesh=mesh,
        in_specs=axes,
        out_specs=PartitionSpec(),
    )
    match = f"`maskjax.optim.{name}` needs gradients(.|\n)*axis 'x', (.|\n)*pmean"
    refusal(ValueError, match, shaped, over(mean=False), params, gradients)
    assert shaped(over(mean=True), params, gradients)[0]["w"].shape == (8, 4)


@pytest.mark.parametrize("make", [optim.mask_updates, optim.keep_sparse])
def test_masks_that_do_not_fit_are_refused(make):
    params = make_params()
    name = f"`maskjax.optim.{make.__name__}` needs "
    misfit = {"kernel": np.ones((2, 8), bool), "bias": None}
    none = {"kernel": None, "bias": None}
    at = name + r".*\n.*a/kernel: mask \(2, 8\), params \(6, 8\)"
    refusal(ValueError, at, make({"a": misfit, "b": none}).init, params)
    soft = {"a": {"kernel": np.ones((6, 8), "f4"), "bias": None}, "b": none}
    match = name + "every leaf of `mask` to be a boolean"
    refusal(TypeError, match, make(soft).init, params)
    refusal(TypeError, match + r"(.|\n)*str 'a'", make("a").init, params)
    tx, few = make(half(params)), {"kernel": np.ones((2, 2), "f4"), "bias": None}
    match = r"b/kernel: (mask \(8, 4\), )?updates \(2, 2\)"
    wrong = {"a": params["a"], "b": few}
    refusal(ValueError, match, tx.update, wrong, tx.init(params), params)


def test_states_without_the_one_mask_are_refused():
    params = make_params()
    keep = optim.keep_sparse(half(params))
    without = shaped(optax.adam(0.1).init, params)
    refusal(ValueError, "with a mask in it", optim.mask_of, without)
    double = shaped(optax.chain(keep, optim.prune(0.5)).init, params)
    match = "one mask for each parameter, got:\n  a/kernel"
    refusal(ValueError, match, optim.mask_of, double)
    part, match = {"a": params["a"]}, "masks of, got:\n  b/kernel"
    refusal(ValueError, match, optim.mask_of, keep.init(params), part)
    match = "every leaf of `before` to be a boolean"
    refusal(TypeError, match, optim.reset_moments, (), (), params, half(params))
