"""Masks that hold under every optimizer of optax, in its wrappers and in loops."""

import inspect

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
from jax import lax

import maskjax
from maskjax import algebra, allocation, masking, optim, packing, score, select
from maskjax.structure import Block, NofM, Units
from tests import trees
from tests.reference import optim as reference

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _ordinary_promotion(_strict_promotion):
    """Many of optax's optimizers need it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_params(dtype="float32", *, seed=0):
    """Kernels of two layers, biases among which one is None."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {
        "a": {"kernel": draw(6, 8), "bias": draw(8)},
        "b": {"kernel": draw(8, 4), "bias": None},
    }


def slope(params):
    """A gradient nowhere zero: every entry would move."""
    return jax.tree.map(lambda p: (0.3 * p + 0.05).astype(p.dtype), params)


def run(optimizer, params, *, steps, gradients=slope):
    """Train in one compiled scan."""

    @jax.jit
    def train(params, state):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(gradients(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, state), length=steps)[0]

    return train(params, optimizer.init(params))


def half(params):
    return select.top_k(score.magnitude(params), density=0.5)


def bits(x):
    """An array as unsigned integers, so that -0.0 differs from 0.0."""
    x = np.asarray(x)
    return x.view(f"u{x.itemsize}")


def assert_zero_outside(params, mask):
    kept = zip(trees.pairs(params, mask), jax.tree.leaves(params), strict=True)
    assert any(leaf is not None for _, leaf in trees.pairs(params, mask))
    for (_, leaf), p in kept:
        if leaf is not None:
            outside = ~np.broadcast_to(np.asarray(leaf), p.shape)
            assert outside.any()
            assert not trees.to_numpy(p)[outside].any()


# Every optimizer that can be made from a learning rate and updated from gradients and
# parameters; the others need the loss or its value, or are deprecated.
NEED_MORE = {"lbfgs", "dpsgd", "galore", "momo", "momo_adam", "schedule_free", "sophia"}
NEED_MORE |= {"optimistic_adam"}
OPTIMIZERS = {
    name: getattr(module, name)
    for module in (optax, optax.contrib)
    for name in dir(module)
    if inspect.isfunction(getattr(module, name))
    and not name.startswith(("_", "scale_by"))
    and "learning_rate" in inspect.signature(getattr(module, name)).parameters
    and name not in NEED_MORE
}
OTHERS = {
    "sgd, momentum and nesterov": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adamw, strong decay": lambda: optax.adamw(0.01, weight_decay=0.5),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
}


def make_optimizer(name):
    if name in OTHERS:
        return OTHERS[name]()
    make = OPTIMIZERS[name]
    rate = inspect.signature(make).parameters["learning_rate"]
    extra = {"key": jax.random.key(1)} if name == "noisy_sgd" else {}
    return make(0.01 if rate.default is rate.empty else rate.default, **extra)


def test_the_registry_has_the_optimizers_that_people_use():
    used = {"sgd", "adam", "adamw", "lamb", "lion", "adafactor", "rmsprop", "muon"}
    assert used <= OPTIMIZERS.keys()
    assert len(OPTIMIZERS) > 30


@pytest.mark.parametrize("name", [*OPTIMIZERS, *OTHERS])
def test_a_hundred_steps_of_every_optimizer_hold_to_the_bit(name):
    """One chain drops and grows in one kernel, and freezes half of the other."""
    params = make_params()
    rigl = optim.rigl(
        0.25,
        rate=optax.cosine_decay_schedule(0.3, 80),
        every=30,
        where=maskjax.where.matching("^a/kernel"),
        key=KEY,
    )
    still = {"a": {"kernel": None, "bias": None}, "b": {"kernel": None, "bias": None}}
    still["b"]["kernel"] = half(params)["b"]["kernel"]
    chain = optax.chain(make_optimizer(name), rigl, optim.mask_updates(still))
    trained, state = run(optim.with_gradients(chain), params, steps=100)
    mask = optim.mask_of(state)

    alive = np.asarray(mask["a"]["kernel"])
    assert alive.sum() == 12
    assert not np.asarray(trained["a"]["kernel"])[~alive].any()
    frozen = ~np.asarray(still["b"]["kernel"])
    after, before = (bits(p["b"]["kernel"]) for p in (trained, params))
    np.testing.assert_array_equal(after[frozen], before[frozen])
    assert (after[~frozen] != before[~frozen]).any()
    assert (bits(trained["a"]["bias"]) != bits(params["a"]["bias"])).any()
    for leaf in jax.tree.leaves(trained):
        assert np.isfinite(np.asarray(leaf)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [False, True])
def test_frozen_entries_keep_their_bits(dtype, packed):
    params = make_params(dtype)
    params["a"]["kernel"] = params["a"]["kernel"].at[:, :4].set(-0.0)
    mask = half(params)
    given = packing.pack(mask) if packed else mask
    chain = optax.chain(optax.adamw(0.1, weight_decay=0.1), optim.mask_updates(given))
    trained, state = run(chain, params, steps=5)
    for layer in ("a", "b"):
        frozen = ~np.asarray(mask[layer]["kernel"])
        after, before = (bits(p[layer]["kernel"]) for p in (trained, params))
        np.testing.assert_array_equal(after[frozen], before[frozen])
        assert (after[~frozen] != before[~frozen]).all()
    trees.assert_same(packing.unpack(optim.mask_of(state)), mask)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keep_sparse_prunes_in_one_shot_and_holds(dtype):
    params = make_params(dtype)
    chain = optax.chain(optax.adam(0.1), optim.keep_sparse(half))
    trained, state = run(chain, params, steps=5)
    trees.assert_same(optim.mask_of(state), half(params))
    assert_zero_outside(trained, half(params))
    assert trained["a"]["kernel"].dtype == dtype


def test_updates_narrower_than_the_parameters_still_cancel_them():
    params = make_params()
    narrow = lambda p: jax.tree.map(lambda g: g.astype(jnp.bfloat16), slope(p))  # noqa: E731
    chain = optax.chain(optax.sgd(0.1), optim.keep_sparse(half))
    trained, _ = run(chain, params, steps=2, gradients=narrow)
    assert_zero_outside(trained, half(params))


@pytest.mark.parametrize("tree", [n for n in trees.NAMES if n != "odd_leaves"])
def test_prune_takes_any_tree(tree):
    params = trees.make(tree)
    optimizer = optax.chain(optax.sgd(0.1), optim.prune(0.3))
    trained, state = run(optimizer, params, steps=2)
    assert_zero_outside(trained, optim.mask_of(state))
    expected = select.top_k(score.magnitude(params), density=0.3)
    for (_, ours), (_, theirs) in zip(
        trees.pairs(params, optim.mask_of(state)),
        trees.pairs(params, expected),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        assert ours is None or ours.sum() == theirs.sum()


def test_gradual_pruning_is_that_of_the_reference():
    params = make_params()
    schedule = optax.polynomial_schedule(1.0, 0.1, 3, 12)
    chain = optax.chain(
        optax.sgd(0.05, momentum=0.9), optim.prune(schedule, every=4, scope="global")
    )
    kernels = [np.asarray(params[k]["kernel"]) for k in "ab"]
    wanted = reference.gradual_pruning(
        kernels,
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


def test_density_follows_the_schedule_and_never_rises():
    params = {"w": make_params()["a"]["kernel"]}
    down_and_up = optax.join_schedules(
        [optax.linear_schedule(1.0, 0.25, 6), optax.constant_schedule(0.9)], [7]
    )
    optimizer = optax.chain(optax.sgd(0.1), optim.prune(down_and_up, every=2))
    state, counts, last = optimizer.init(params), [], None
    update = jax.jit(optimizer.update)
    for _ in range(8):
        updates, state = update(slope(params), state, params)
        params = optax.apply_updates(params, updates)
        mask = optim.mask_of(state)["w"]
        assert last is None or not (mask & ~last).any()
        counts.append(int(mask.sum()))
        last = mask
    assert counts == [48, 36, 36, 24, 24, 12, 12, 12]


@pytest.mark.parametrize(
    ("structure", "density"),
    [(NofM(2, 4), 0.5), (Block((2, 2)), 0.25), (Units(), 0.5)],
    ids=str,
)
def test_structures_in_training(structure, density):
    params = {"kernel": make_params()["a"]["kernel"][:4], "bias": jnp.ones(8)}
    schedule = optax.linear_schedule(1.0, density, 4)
    optimizer = optax.chain(
        optax.adamw(0.01), optim.prune(schedule, every=2, structure=structure)
    )
    trained, state = run(optimizer, params, steps=4)
    mask = optim.mask_of(state)
    assert float(algebra.density(mask, params)) == density
    assert_zero_outside(trained, mask)
    whole = np.broadcast_to(np.asarray(mask["kernel"]), (4, 8))
    if isinstance(structure, NofM):
        assert (whole.sum(axis=0) == 2).all()
    elif isinstance(structure, Block):
        tiles = whole.reshape(2, 2, 4, 2).transpose(0, 2, 1, 3).reshape(8, 4)
        assert set(tiles.sum(axis=1)) == {0, 4}
    else:
        assert set(whole.sum(axis=0)) == {0, 4}


def test_trees_of_densities_and_schedules_of_them():
    params = make_params()
    shares = allocation.matching(params, densities={"^b": 0.5}, density=0.25)

    def gradual(n):
        part = jnp.minimum(n / 4, 1)
        return jax.tree.map(lambda d: 1 - (1 - d) * part, shares)

    for density in (shares, gradual):
        tx = optax.chain(optax.sgd(0.1), optim.prune(density, every=2))
        _, state = run(tx, params, steps=4)
        mask = optim.mask_of(state)
        assert [int(mask[k]["kernel"].sum()) for k in "ab"] == [12, 16]
    first = optim.mask_of(optim.rigl(shares, rate=0.1, every=9, key=KEY).init(params))
    assert [int(first[k]["kernel"].sum()) for k in "ab"] == [12, 16]
    with pytest.raises(ValueError, match=r"`density` in \[0, 1\], got 2"):
        optim.prune({"a": {"kernel": 2.0, "bias": None}, "b": None})


def test_erdos_renyi_densities_in_training():
    params = make_params()
    erk = optim.prune(0.4, allocation=allocation.erk)
    _, state = run(optax.chain(optax.sgd(0.1), erk), params, steps=1)
    shares = allocation.erk(params, density=0.4)
    expected = select.top_k(score.magnitude(params), density=shares)
    assert shares["a"]["kernel"] != shares["b"]["kernel"]
    for layer in "ab":
        mask = optim.mask_of(state)[layer]["kernel"]
        assert mask.sum() == expected[layer]["kernel"].sum()


def test_rigl_drops_and_grows_as_the_reference():
    params = {"w": make_params()["a"]["kernel"]}
    optimizer = optim.with_gradients(
        optax.chain(
            optax.sgd(0.1), optim.rigl(0.25, rate=0.3, every=2, scope="leaf", key=KEY)
        )
    )
    state = optimizer.init(params)
    mask = np.asarray(optim.mask_of(state)["w"])
    weights = np.asarray(params["w"])
    update = jax.jit(optimizer.update)
    for n in range(1, 5):
        gradient = np.cos(np.arange(48.0) * n).reshape(6, 8).astype(np.float32)
        updates, state = update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        weights, mask = reference.rigl(
            weights, gradient, mask, learning_rate=0.1, rate=0.3, due=n % 2 == 0
        )
        np.testing.assert_array_equal(optim.mask_of(state)["w"], mask)
        np.testing.assert_allclose(params["w"], weights, atol=1e-6)


def test_grown_weights_start_at_zero_and_dropped_ones_end_there():
    params = {"w": make_params()["a"]["kernel"]}
    optimizer = optim.with_gradients(
        optax.chain(
            optax.adamw(0.1), optim.rigl(0.5, rate=0.5, every=1, key=KEY, regrow=False)
        )
    )
    state = optimizer.init(params)
    before = optim.mask_of(state)["w"]
    updates, state = optimizer.update(slope(params), state, params)
    after = optim.mask_of(state)["w"]
    new = optax.apply_updates(params, updates)["w"]
    grown, dropped = after & ~before, before & ~after
    assert grown.sum() == dropped.sum() == 12
    assert not new[grown].any()
    assert not new[dropped].any()
    assert new[before & after].all()


def test_set_grows_at_random_and_differently_each_time():
    params = {"w": jnp.ones((8, 8))}
    optimizer = optax.chain(
        optax.sgd(0.01), optim.set_(0.25, rate=0.5, every=1, key=KEY)
    )
    state = optimizer.init(params)
    masks = [optim.mask_of(state)["w"]]
    for _ in range(2):
        updates, state = optimizer.update(slope(params), state, params)
        params = optax.apply_updates(params, updates)
        masks.append(optim.mask_of(state)["w"])
    assert [int(m.sum()) for m in masks] == [16, 16, 16]
    assert (masks[0] != masks[1]).any()
    first, second = masks[1] & ~masks[0], masks[2] & ~masks[1]
    assert (first != second).any()


def test_a_loop_without_jit_scores_only_when_a_change_is_due():
    params, calls = make_params(), []

    def counted(params, *, where):
        calls.append(0)
        return score.magnitude(params, where=where)

    optimizer = optax.chain(optax.sgd(0.1), optim.prune(0.5, every=3, score=counted))
    state, sizes = optimizer.init(params), []
    for _ in range(7):
        updates, state = optimizer.update(slope(params), state, params)
        params = optax.apply_updates(params, updates)
        sizes.append(int(algebra.count(optim.mask_of(state))))
    assert len(calls) == 2
    assert sizes == [80, 80, 40, 40, 40, 40, 40]
    assert_zero_outside(params, optim.mask_of(state))


def test_no_second_compilation():
    params = make_params()
    optimizer = optim.with_gradients(
        optax.chain(
            optax.adam(0.1),
            optim.rigl(0.3, rate=0.3, every=2, scope="global", key=KEY),
        )
    )
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(0)
        updates, state = optimizer.update(slope(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert len(traces) == 1


def test_vmap_over_seeds_and_densities_equals_a_loop():
    def train(params, density, key):
        optimizer = optim.with_gradients(
            optax.chain(
                optax.sgd(0.1, momentum=0.9),
                optim.rigl(density, rate=0.5, every=2, scope="global", key=key),
            )
        )
        state = optimizer.init(params)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(slope(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = lax.scan(step, (params, state), length=5)
        return params, optim.mask_of(state)

    members = [make_params(seed=i) for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
    densities, keys = jnp.array([0.25, 0.5, 0.75]), jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(train))(stacked, densities, keys)
    alone = jax.jit(train)
    for i, params in enumerate(members):
        one = alone(params, densities[i], keys[i])
        mine = jax.tree.map(lambda x, i=i: x[i], together)
        trees.assert_same(one[1], mine[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), one, mine)
        assert int(algebra.count(mine[1])) == [20, 40, 60][i]


def test_members_in_step_share_one_branch():
    """Under `vmap` the selection stays behind a conditional, not a select."""
    optimizer = optim.prune(0.5, every=100)
    params = {"w": jnp.ones((3, 4, 4))}
    state = jax.vmap(optimizer.init)(params)
    jaxpr = jax.make_jaxpr(jax.vmap(optimizer.update))(params, state, params)
    assert "cond[" in str(jaxpr)
    counts = state._replace(count=jnp.array([98, 99, 100]))
    _, after = jax.vmap(optimizer.update)(params, counts, params)
    assert after.mask["w"].sum(axis=(1, 2)).tolist() == [16, 8, 16]
    nested = jax.vmap(jax.vmap(optimizer.update))
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), (params, state, params))
    assert "cond[" in str(jax.make_jaxpr(nested)(*twice))


def wrapped(kind):
    """An optimizer in one of optax's wrappers."""
    chain = optax.chain(optax.adamw(0.1), optim.prune(0.5, every=2))
    rigl = optim.with_gradients(
        optax.chain(optax.adam(0.1), optim.rigl(0.5, rate=0.3, every=2, key=KEY))
    )
    labels = {"a": "left", "b": {"kernel": "right", "bias": "rest"}}
    return {
        "MultiSteps": lambda: optax.MultiSteps(rigl, 2),
        "inject_hyperparams": lambda: optax.inject_hyperparams(
            lambda rate, density: optax.chain(optax.adamw(rate), optim.prune(density))
        )(rate=0.1, density=optax.constant_schedule(0.5)),
        "inject_hyperparams, directly": lambda: optax.inject_hyperparams(
            optim.prune, static_args=("score", "where")
        )(0.5, every=2),
        "inject_hyperparams, rigl": lambda: optim.with_gradients(
            optax.inject_hyperparams(optim.rigl, static_args=("score", "where"))(
                0.5, rate=0.3, every=2, key=KEY
            )
        ),
        "multi_transform": lambda: optax.multi_transform(
            {"left": chain, "right": rigl, "rest": optax.sgd(0.1)}, labels
        ),
        "multi_transform in with_gradients": lambda: optim.with_gradients(
            optax.multi_transform(
                {
                    "left": optax.sgd(0.1, momentum=0.9),
                    "right": optim.rigl(0.5, rate=0.3, every=2, key=KEY),
                    "rest": optax.identity(),
                },
                labels,
            )
        ),
        "masked": lambda: optax.masked(chain, {"a": True, "b": False}),
        "apply_if_finite": lambda: optax.apply_if_finite(rigl, 3),
        "named_chain": lambda: optax.named_chain(
            ("adam", optax.adam(0.1)), ("prune", optim.prune(0.5))
        ),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "MultiSteps",
        "inject_hyperparams",
        "inject_hyperparams, directly",
        "inject_hyperparams, rigl",
        "multi_transform",
        "multi_transform in with_gradients",
        "masked",
        "apply_if_finite",
        "named_chain",
    ],
)
def test_masks_hold_inside_wrappers(kind):
    params = make_params()
    optimizer = wrapped(kind)
    trained, state = run(optimizer, params, steps=4)
    mask = optim.mask_of(state, params)
    assert jax.tree.structure(mask, is_leaf=lambda x: x is None) == jax.tree.structure(
        params, is_leaf=lambda x: x is None
    )
    assert_zero_outside(trained, mask)
    masked = [k for k in "ab" if mask[k]["kernel"] is not None]
    expected = {"masked": ["a"], "multi_transform in with_gradients": ["b"]}.get(
        kind, ["a", "b"]
    )
    assert masked == expected
    assert all(
        int(mask[k]["kernel"].sum()) * 2 == mask[k]["kernel"].size for k in masked
    )


def test_apply_if_finite_leaves_the_mask_alone_when_it_rejects():
    params = make_params()
    optimizer = optax.apply_if_finite(optax.chain(optax.sgd(1.0), optim.prune(0.5)), 3)
    state = optimizer.init(params)
    bad = jax.tree.map(lambda p: p * jnp.nan, params)
    updates, state = optimizer.update(bad, state, params)
    assert not any(u.any() for u in jax.tree.leaves(updates))
    assert int(algebra.count(optim.mask_of(state))) == 80


def test_a_train_state_of_flax():
    model = nn.Dense(4)
    x = jnp.ones((2, 6))
    optimizer = optim.with_gradients(
        optax.chain(optax.adamw(0.1), optim.rigl(0.25, rate=0.5, every=2, key=KEY))
    )
    variables = model.init(KEY, x)
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=optimizer
    )

    @jax.jit
    def step(state):
        loss = lambda p: jnp.sum((state.apply_fn({"params": p}, x) - 1.0) ** 2)  # noqa: E731
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(4):
        state = step(state)
    mask = optim.mask_of(state.opt_state)
    assert int(mask["kernel"].sum()) == 6
    assert mask["bias"] is None
    assert_zero_outside(state.params, mask)


@pytest.mark.parametrize("bias", [True, False])
def test_an_optimizer_of_nnx(bias):
    model = nnx.Linear(6, 4, use_bias=bias, rngs=nnx.Rngs(0))
    chain = optax.chain(optax.adamw(0.1), optim.rigl(0.25, rate=0.5, every=2, key=KEY))
    optimizer = nnx.Optimizer(model, optim.with_gradients(chain), wrt=nnx.Param)
    x = jnp.ones((2, 6))

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda m: jnp.sum((m(x) - 1.0) ** 2))(model)
        optimizer.update(model, gradients)

    for _ in range(5):
        step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    mask = optim.mask_of(optimizer.opt_state, params)
    sparse = maskjax.apply(params, mask)
    trees.assert_same(jax.tree.leaves(sparse), jax.tree.leaves(params))
    assert int((model.kernel[...] != 0).sum()) == 6


def test_equinox_models_are_trees_and_not_functions():
    model = eqx.filter(eqx.nn.MLP(6, 4, 8, 1, key=KEY), eqx.is_array)
    mask = masking.everything(model)
    state = optim.keep_sparse(mask).init(model)
    assert algebra.count(optim.mask_of(state)) == algebra.count(mask)


def test_extra_arguments_pass_through():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append((value, sorted(extra)))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = make_params()
    last = [
        optim.prune(0.5),
        optim.keep_sparse(half),
        optim.mask_updates(half),
        optim.set_(0.5, rate=0.1, every=9, key=KEY),
    ]
    for transformation in last:
        optimizer = optim.with_gradients(optax.chain(transformation, spy))
        optimizer.update(slope(params), optimizer.init(params), params, value=3.0)
    assert seen == [(3.0, ["gradients"])] * 4


def test_scores_name_the_arguments_they_need():
    params = make_params()

    def saliency(params, *, where, gradients):
        return jax.tree.map(
            lambda p, g: jnp.abs(p * g) if p.ndim == 2 else None, params, gradients
        )

    chain = optax.chain(optax.sgd(0.0), optim.prune(0.5, score=saliency))
    optimizer = optim.with_gradients(chain)
    gradients = jax.tree.map(
        lambda p: p.size - jnp.arange(p.size).reshape(p.shape) * 1.0, params
    )
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    expected = select.top_k(
        saliency(params, where=None, gradients=gradients), density=0.5
    )
    trees.assert_same(optim.mask_of(state), expected)
    with pytest.raises(ValueError, match="`maskjax.optim.prune` needs `gradients`"):
        chain.update(gradients, chain.init(params), params)


def test_moments_restart_moments_where_the_mask_changes():
    params = {"w": make_params()["a"]["kernel"], "b": jnp.ones(8)}
    chain = optax.chain(optax.adam(0.1), optim.rigl(0.5, rate=0.5, every=2, key=KEY))
    optimizer = optim.with_gradients(chain)
    state = optimizer.init(params)
    for n in (1, 2):
        before = optim.mask_of(state)["w"]
        updates, state = optimizer.update(slope(params), state, params)
        params = optax.apply_updates(params, updates)
        changed = before != optim.mask_of(state)["w"]
        for moment in (state[0][0].mu, state[0][0].nu):
            assert (moment["w"] == 0).sum() == changed.sum()
            assert not moment["w"][changed].any()
            assert moment["b"].all()
        assert changed.any() == (n == 2)
        assert int(state[0][0].count) == n


def test_reset_moments_of_every_kind_of_state():
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    before = {"w": jnp.eye(4, dtype=bool), "b": None}
    after = {"w": ~before["w"], "b": None}
    for optimizer in (
        optax.MultiSteps(optax.chain(optax.clip(1.0), optax.adam(0.1)), 3),
        optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9),
        optax.contrib.prodigy(),
        optax.adafactor(0.1),
    ):
        initial = optimizer.init(params)
        _, state = optimizer.update(slope(params), initial, params)
        fresh = optim.reset_moments(state, initial, before, before)
        trees.assert_same(fresh, state)
        reset = optim.reset_moments(state, initial, before, packing.pack(after))
        like = [x.shape == (4, 4) for x in jax.tree.leaves(state)]
        for inside, a, b, c in zip(
            like, *map(jax.tree.leaves, (reset, initial, state)), strict=True
        ):
            trees.assert_same(a, b if inside else c)


def test_donated_states_take_neither_keys_nor_masks_along():
    params, key = {"w": jnp.ones((4, 4))}, jax.random.key(3)
    mask = {"w": jnp.eye(4, dtype=bool)}
    for tx in (optim.set_(0.5, rate=0.1, every=9, key=key), optim.keep_sparse(mask)):
        update = jax.jit(
            lambda s, tx=tx: tx.update(params, s, params)[1], donate_argnums=0
        )
        update(tx.init(params))
        trees.assert_same(update(tx.init(params)).mask, tx.init(params).mask)
    assert mask["w"].sum() == 4


def test_moments_restart_where_only_the_mask_is_wrapped():
    params = {"a": make_params()["a"]["kernel"], "c": jnp.ones((6, 8))}
    rigl = optim.rigl(0.5, rate=0.5, every=1, key=KEY)
    chain = optax.chain(
        optax.sgd(0.1, momentum=0.9), optax.masked(rigl, {"a": True, "c": False})
    )
    optimizer = optim.with_gradients(chain)
    state = optimizer.init(params)
    before = optim.mask_of(state)["a"]
    _, state = optimizer.update(slope(params), state, params)
    changed = before != optim.mask_of(state)["a"]
    trace = state[0][0].trace
    assert changed.any()
    assert not trace["a"][changed].any()
    assert trace["c"].all()


def test_what_grows_back_at_once_was_never_away():
    params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    rigl = optim.rigl(0.5, rate=0.5, every=1, key=KEY)
    optimizer = optim.with_gradients(optax.chain(optax.sgd(0.1, momentum=0.9), rigl))
    state = optimizer.init(params)
    mask = optim.mask_of(state)["w"]
    steep = {"w": jnp.where(mask, 10.0, 0.1)}
    updates, state = optimizer.update(steep, state, params)
    np.testing.assert_array_equal(optim.mask_of(state)["w"], mask)
    moved = np.where(mask, params["w"] - 1.0, 0.0)
    np.testing.assert_allclose(params["w"] + updates["w"], moved)


def test_masks_are_found_by_path_and_not_by_its_spelling():
    params = {"a": {"b": jnp.ones((1, 2))}, "a/b": jnp.ones((1, 2))}
    mask = {"a": {"b": jnp.array([[True, False]])}, "a/b": jnp.array([[False, True]])}
    state = optim.keep_sparse(mask).init(params)
    trees.assert_same(optim.mask_of(state, params), mask)


def test_without_regrow_gradients_that_are_nan_grow_other_entries():
    params = make_params()
    rigl = optim.rigl(0.5, rate=0.5, every=1, regrow=False, key=KEY)
    state = rigl.init(params)
    bad = jax.tree.map(lambda p: p * jnp.nan, params)
    _, after = rigl.update(bad, state, params, gradients=bad)
    for layer in "ab":
        old, new = state.mask[layer]["kernel"], after.mask[layer]["kernel"]
        assert new.sum() == old.sum() == 2 * (old & new).sum()


def test_bad_input_is_refused():
    params = make_params()
    gradients = slope(params)

    def refusal(kind, match, function, *args, **kwargs):
        with pytest.raises(kind, match=match):
            function(*args, **kwargs)

    too_low = optax.linear_schedule(1.0, -0.2, 100)
    refusal(ValueError, r"`density` in \[0, 1\] at every step", optim.prune, too_low)
    refusal(ValueError, r"`density` in \[0, 1\], got 1.5", optim.prune, 1.5)
    refusal(ValueError, "`every` of at least 1, got 0", optim.prune, 0.5, every=0)
    refusal(TypeError, "`every` as a whole number", optim.prune, 0.5, every=2.5)
    for make in (optim.rigl, optim.set_):
        name = f"`maskjax.optim.{make.__name__}` needs "
        bad = {"rate": 0.3, "every": 1, "key": KEY}
        refusal(
            ValueError, name + r"`rate` in \[0, 1\]", make, 0.5, **bad | {"rate": 2}
        )
        high = optax.linear_schedule(0.0, 1.5, 1000)
        refusal(
            ValueError,
            name + "`rate` in .* step 1024",
            make,
            0.5,
            **bad | {"rate": high},
        )
        refusal(ValueError, name + "`density` in", make, -0.1, **bad)
        refusal(ValueError, name + "`every` of", make, 0.5, **bad | {"every": 0})
        refusal(TypeError, name + "`key` as a typed key", make, 0.5, **bad | {"key": 0})
        crowded = make(0.75, **bad | {"rate": 0.5, "regrow": False})
        refusal(ValueError, "a/kernel: 18 to grow, 12 of 48 free", crowded.init, params)
        refusal(ValueError, "b/kernel: 12 to grow, 8 of 32 free", crowded.init, params)
        together = make(0.75, **bad | {"rate": 0.5, "regrow": False, "scope": "global"})
        refusal(ValueError, "all leaves: 30 to grow, 20 of 80", together.init, params)
        nothing = make(0.5, **bad | {"where": maskjax.where.matching("none")})
        refusal(ValueError, "choose at least one leaf", nothing.init, params)

    how = {"every": 1, "regrow": False, "key": KEY}
    blocks = optim.rigl(0.5, rate=0.75, structure=Block((2, 2)), **how)
    one = {"w": jnp.ones((2, 6))}
    refusal(ValueError, "w: 2 to grow, 1 of 3 free", blocks.init, one)
    groups = optim.rigl(0.75, rate=0.3, structure=NofM(3, 4), **how)
    refusal(
        ValueError, "needs `regrow` with NofM", groups.init, {"w": jnp.ones((4, 2))}
    )
    shares = {"a": {"kernel": 0.75, "bias": None}, "b": {"kernel": 0.25, "bias": None}}
    uneven = optim.rigl(shares, rate=0.5, **how)
    refusal(ValueError, "a/kernel: 18 to grow, 12 of 48 free$", uneven.init, params)
    for make in (optim.prune, lambda d, **k: optim.set_(d, rate=0.1, key=KEY, **k)):
        refusal(
            ValueError, "`scope` as 'leaf' or 'global'", make, 0.5, every=9, scope="x"
        )
    erk = optim.prune(0.5, every=9, scope="global", allocation=allocation.erk)
    refusal(ValueError, 'one `density` for scope="global"', erk.init, params)
    other = optim.prune({"c": 0.5}, every=9)
    refusal(ValueError, "only in `density`: c", other.init, params)
    refusal(
        ValueError,
        "numbers, or trees of them, got nothing",
        optim.prune,
        lambda n: None,
    )
    vector = lambda n: jnp.ones(1)  # noqa: E731
    refusal(ValueError, r"of shape \(1,\) at step 0", optim.prune, vector)
    refusal(
        TypeError, "`rate` as a number", optim.rigl, 0.5, rate=None, every=1, key=KEY
    )
    positional = optim.prune(0.5, score=lambda params, gradients: params)
    refusal(
        ValueError,
        "needs `gradients`, which its `score` names",
        positional.update,
        gradients,
        positional.init(params),
        params,
    )
    few = {"a": params["a"], "b": {"kernel": jnp.ones((2, 2)), "bias": None}}
    refusal(
        ValueError,
        r"b/kernel: updates \(8, 4\), params \(2, 2\)",
        optim.keep_sparse(half).update,
        gradients,
        optim.keep_sparse(half).init(params),
        few,
    )

    rigl = optim.rigl(0.5, rate=0.3, every=10, key=KEY)
    state = rigl.init(params)
    refusal(
        ValueError, "needs `gradients`, to grow", rigl.update, gradients, state, params
    )
    wrong = {"a": gradients["a"], "b": {"kernel": jnp.ones((2, 2)), "bias": None}}
    refusal(
        ValueError,
        r"b/kernel: params \(8, 4\), gradients \(2, 2\)",
        rigl.update,
        gradients,
        state,
        params,
        gradients=wrong,
    )
    for tx in (rigl, optim.prune(0.5), optim.keep_sparse(half)):
        refusal(ValueError, "needs `params`", tx.update, gradients, tx.init(params))

    misfit = {
        "a": {"kernel": jnp.ones((2, 8), bool), "bias": None},
        "b": {"kernel": None, "bias": None},
    }
    for make in (optim.mask_updates, optim.keep_sparse):
        name = f"`maskjax.optim.{make.__name__}` needs "
        at = r"a/kernel: mask \(2, 8\), params \(6, 8\)"
        refusal(ValueError, name + ".*\n.*" + at, make(misfit).init, params)
        soft = {
            "a": {"kernel": jnp.ones((6, 8)), "bias": None},
            "b": {"kernel": None, "bias": None},
        }
        refusal(
            TypeError,
            name + "every leaf of `mask` to be a boolean",
            make(soft).init,
            params,
        )
        tx = make(half)
        refusal(
            ValueError,
            r"b/kernel: (mask \(8, 4\), )?updates \(2, 2\)",
            tx.update,
            wrong,
            tx.init(params),
            params,
        )
    refusal(
        ValueError, "with a mask in it", optim.mask_of, optax.adam(0.1).init(params)
    )
    double = optax.chain(optim.keep_sparse(half), optim.prune(0.5)).init(params)
    refusal(
        ValueError,
        "one mask for each parameter, got:\n  a/kernel",
        optim.mask_of,
        double,
    )
    part = {"a": params["a"]}
    state = optim.keep_sparse(half).init(params)
    refusal(ValueError, "masks of, got:\n  b/kernel", optim.mask_of, state, part)
    mask = half(params)
    refusal(
        TypeError,
        "every leaf of `before` to be a boolean",
        optim.reset_moments,
        (),
        (),
        params,
        mask,
    )
