"""Parameters, statistics, moments, averages and masks shrink; training goes on.

Every test trains a masked network, takes out what is masked from all that is trained,
goes on with the small network and, beside it, with the whole one, and compares.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import maskjax
from maskjax import compaction, optim, packing


@pytest.fixture(autouse=True)
def _as_users(_strict_promotion):
    """Flax and optax need it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def half(apply, params, *inputs):
    """A mask that removes every other unit of every group, and nothing else."""
    groups = compaction.groups(apply, params, *inputs)
    decisions = {
        g.name: np.broadcast_to(np.arange(g.size) % 2 == 0, (*g.stack, g.size))
        for g in groups
    }
    return groups.spread(decisions, params)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(small, whole, tolerance=1e-5):
    """Whether two trees agree, each leaf relative to its largest entry."""
    pairs = zip(jax.tree.leaves(small), jax.tree.leaves(whole), strict=True)
    for one, other in pairs:
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        scale = max(1.0, np.abs(other).max(initial=0))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


# Plain trees: every kind of state that optax has.

NESTED = {
    "up": {"kernel": draw(5, 8), "bias": draw(8, seed=1)},
    "down": {"kernel": draw(8, 3, seed=2), "bias": draw(3, seed=3)},
}
X, Y = draw(3, 6, 5, seed=4), draw(3, 6, 3, seed=5)


def net(p, x):
    h = jnp.tanh(x @ p["up"]["kernel"] + p["up"]["bias"])
    return h @ p["down"]["kernel"] + p["down"]["bias"]


def flat_net(p, x):
    return jnp.tanh(x @ p[0] + p[1]) @ p[2] + p[3]


def loss_of(net):
    return lambda p, x, y: ((net(p, x) - y) ** 2).mean()


FLAT = tuple(jax.tree.leaves(NESTED)[i] for i in (3, 2, 1, 0))
FLAT_MASK = (draw(1, 8, seed=6) > 0, None, None, None)


def step_of(optimizer, loss):
    def step(params, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step), step


def goes_on(net, params, optimizer, *, whole_step=True, tolerance=1e-5):
    """Train masked, shrink parameters and state, and go on in both: the same."""
    mask, loss = half(net, params, X[0]), loss_of(net)
    plan = compaction.plan(net, params, mask, X[0])
    masked = lambda p, x, y: loss(maskjax.apply(p, mask), x, y)  # noqa: E731
    whole, _ = step_of(optimizer, masked)
    carry = maskjax.apply(params, mask), optimizer.init(params)
    for _ in range(2):
        carry = whole(*carry, X[0], Y[0])
    small = compaction.shrink(carry, plan)
    _, step = step_of(optimizer, loss)
    ways = [step_of(optimizer, compaction.narrow(loss, plan))[0]]
    if whole_step:
        ways.append(jax.jit(compaction.narrow(step, plan)))
    ends = [small] * len(ways)
    for _ in range(2):
        carry = whole(*carry, X[1], Y[1])
        ends = [way(*end, X[1], Y[1]) for way, end in zip(ways, ends, strict=True)]
    for end in ends:
        assert jax.tree.structure(end) == jax.tree.structure(small)
        assert jax.tree.map(jnp.shape, end) == jax.tree.map(jnp.shape, small)
        close(compaction.expand(end, plan), carry, tolerance)


MASK = half(net, NESTED, X[0])
KERNELS = {
    layer: {name: name == "kernel" for name in leaves}
    for layer, leaves in NESTED.items()
}
LABELS = jax.tree.map(lambda kernel: "kernel" if kernel else "rest", KERNELS)
OPTIMIZERS = {
    "clipped": optax.chain(
        optax.clip_by_global_norm(0.1),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 100)),
        optim.keep_sparse(MASK),
    ),
    "frozen": optax.chain(optax.adam(1e-2), optim.mask_updates(MASK)),
    "packed": optax.chain(optax.adam(1e-2), optim.keep_sparse(packing.pack(MASK))),
    "accumulated": optax.MultiSteps(optax.adamw(1e-2), 2),
    "averaged": optax.chain(optax.sgd(1e-2, momentum=0.9), optax.ema(0.9)),
    "parts": optax.partition(
        {"kernel": optax.adam(1e-2), "rest": optax.sgd(1e-2)}, LABELS
    ),
    "some": optax.masked(optax.adam(1e-2), KERNELS),
    "injected": optax.inject_hyperparams(optax.adamw)(1e-2),
    "finite": optax.apply_if_finite(optax.adamw(1e-2), 3),
    "lion": optax.lion(1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_small(name):
    goes_on(net, NESTED, OPTIMIZERS[name])


@pytest.mark.parametrize("packed", [False, True])
def test_paths_of_numbers_are_enough(packed):
    mask = half(flat_net, FLAT, X[0])
    keep = optim.keep_sparse(packing.pack(mask) if packed else mask)
    goes_on(flat_net, FLAT, optax.chain(optax.adamw(1e-2), keep))
    some = optax.masked(optax.adam(1e-2), (True, False, True, False))
    goes_on(flat_net, FLAT, some)


def test_lookahead_shrinks_both_its_parameters():
    plan = compaction.plan(net, NESTED, MASK, X[0])
    params = optax.LookaheadParams.init_synced(NESTED)
    small = compaction.shrink(params, plan)
    for half_of in (small.fast, small.slow):
        found = maskjax._core.trees.named_leaves(half_of)
        assert {path: leaf.shape for path, leaf in found} == plan.shapes


def test_gradual_pruning_goes_on_by_a_mask_that_stays():
    """After pruning, density counts small leaves: `prune(1.0)` keeps what is there."""
    plan = compaction.plan(net, NESTED, MASK, X[0])
    state = optim.prune(0.5).init(NESTED)
    state = optim.with_mask(
        state,
        {
            layer: {
                "kernel": np.broadcast_to(MASK[layer]["kernel"], leaves["kernel"].shape)
            }
            for layer, leaves in NESTED.items()
        },
    )
    params, small = compaction.shrink((NESTED, state), plan)
    updates, small = optim.prune(1.0).update(params, small, params)
    kept = optim.mask_of(small)
    assert all(np.asarray(leaf).all() for leaf in jax.tree.leaves(kept))


# Several steps in one function. Only the hidden layer is masked, not what reads it, so
# that its bias has a gradient where it is masked, and grows again if it is not held.


def rms(h):
    return h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-3)


LAYERS = {
    "rms": rms,
    "rolled": lambda h: jnp.roll(h, 3, -1),
    "every third": lambda h: jnp.concatenate([h[:, i::3] for i in range(3)], 1),
    "padded": lambda h: jnp.pad(h, ((0, 0), (1, 1)))[:, 1:-1],
    "gated": lambda h: h * jax.nn.sigmoid(h.sum(-1, keepdims=True)),
    "looped": lambda h: jax.lax.fori_loop(0, 2, lambda _, h: jnp.sin(h), h),
    "dropped": lambda h: jnp.where(
        jax.random.bernoulli(jax.random.key(0), 0.7, h.shape), h, 0
    ),
}
KEEP = np.arange(8) % 2 == 0
HIDDEN = jax.tree.map(lambda _: None, NESTED)
HIDDEN["up"] = {"kernel": KEEP[None], "bias": KEEP}
PLAIN = optax.adamw(1e-2)
HELD = {
    "kept": (optax.chain(PLAIN, optim.keep_sparse(HIDDEN)), False),
    "frozen": (optax.chain(PLAIN, optim.mask_updates(HIDDEN)), False),
    "applied": (PLAIN, True),
}


def two_steps(layer, optimizer, *, applied):
    """Two steps, in a loop, and the plan of what is masked."""

    def net(p, x):
        p = maskjax.apply(p, HIDDEN) if applied else p
        h = LAYERS[layer](jnp.tanh(x @ p["up"]["kernel"] + p["up"]["bias"]))
        return h @ p["down"]["kernel"] + p["down"]["bias"]

    def step(carry, batch):
        params, state = carry
        slopes = jax.grad(loss_of(net))(params, *batch)
        updates, state = optimizer.update(slopes, state, params)
        return (optax.apply_updates(params, updates), state), None

    plan = compaction.plan(net, NESTED, HIDDEN, X[0])
    assert plan.shapes["up/kernel"] == (5, 4)
    loop = lambda carry: jax.lax.scan(step, carry, (X[:2], Y[:2]))[0]  # noqa: E731
    return loop, plan


@pytest.mark.parametrize(
    ("layer", "held"),
    [*((layer, "kept") for layer in LAYERS), ("rms", "frozen"), ("rms", "applied")],
)
def test_steps_that_hold_the_mask_go_on_small(layer, held):
    optimizer, applied = HELD[held]
    loop, plan = two_steps(layer, optimizer, applied=applied)

    @jax.jit
    def both(params):
        carry = maskjax.apply(params, HIDDEN), optimizer.init(params)
        small = compaction.narrow(lambda p, s: loop((p, s)), plan)
        ours = small(*compaction.shrink(carry, plan))
        return ours, compaction.shrink(loop(carry), plan)

    close(*both(NESTED))


@pytest.mark.parametrize("layer", ["rms", "rolled"])
def test_steps_in_which_masked_entries_grow_again_are_refused(layer):
    loop, plan = two_steps(layer, PLAIN, applied=False)
    carry = maskjax.apply(NESTED, HIDDEN), PLAIN.init(NESTED)
    (grown, _) = jax.jit(loop)(carry)
    assert np.abs(np.asarray(grown["up"]["bias"])[~KEEP]).min() > 1e-3
    hold = (
        r"narrow`: this function needs what was taken out\. .* hold the mask(.|\n)*up/"
    )
    with pytest.raises(ValueError, match=hold):
        compaction.narrow(lambda p, s: loop((p, s)), plan)(
            *compaction.shrink(carry, plan)
        )


# What does not fit.


@pytest.mark.parametrize(
    ("optimizer", "path"),
    [
        (
            optax.adafactor(1e-2, min_dim_size_to_factor=2),
            r"0/v_row/down/kernel: \(3,\)",
        ),
        (optax.sm3(1e-2), r"0/mu/up/kernel/0: \(5,\)"),
    ],
)
def test_moments_of_another_shape_are_refused(optimizer, path):
    plan = compaction.plan(net, NESTED, MASK, X[0])
    with pytest.raises(ValueError, match=path):
        compaction.shrink(optimizer.init(NESTED), plan)
    compaction.shrink(
        optax.adafactor(1e-2).init(NESTED), plan
    )  # of one number: no harm


def test_moments_of_another_shape_are_refused_where_paths_are_numbers():
    mask = half(flat_net, FLAT, X[0])
    plan = compaction.plan(flat_net, FLAT, mask, X[0])
    state = optax.adafactor(1e-2, min_dim_size_to_factor=2).init(FLAT)
    with pytest.raises(ValueError, match=r"0/v_row/0: \(5,\), 0 \(5, 8\)") as caught:
        compaction.shrink(state, plan)
    assert "v/1" not in str(caught.value)


def test_a_leaf_that_could_be_of_two_parameters_is_refused():
    params = {side: {"dense": {"w": np.ones((4, 6), "f")}} for side in ("a", "b")}
    net = lambda p, x: jnp.tanh(x @ p["a"]["dense"]["w"]) @ p["b"]["dense"]["w"].T  # noqa: E731
    mask = jax.tree.map(lambda _: np.arange(6)[None] > 2, params)
    plan = compaction.plan(net, params, mask, np.ones((2, 4), "f"))
    with pytest.raises(ValueError, match=r"mu/dense/w: \(4, 6\), a/dense/w .*, or b/"):
        compaction.shrink({"mu": params["a"]}, plan)


def test_a_stack_of_packed_masks_shrinks():
    plan = compaction.plan(net, NESTED, MASK, X[0])
    draws = np.random.default_rng(0).random((3, 5, 8)) < 0.5
    stack = {"up": {"kernel": jax.vmap(packing.pack)(jax.device_put(draws))}}
    small = compaction.shrink(stack, plan)
    found = packing.unpack(small)["up"]["kernel"]
    np.testing.assert_array_equal(found, draws[..., ::2])
    back = packing.unpack(compaction.expand(small, plan))["up"]["kernel"]
    np.testing.assert_array_equal(back, draws & (np.arange(8) % 2 == 0))


# Linen, with batch statistics. A bias before a normalization has a gradient of 0, of
# which Adam would make steps out of rounding.


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class State(train_state.TrainState):
    batch_stats: dict
    average: dict


IMAGES, LABELS_OF = draw(2, 4, 6, 6, 2, seed=7), draw(2, 4, 3, seed=8)


def test_a_train_state_of_linen_shrinks_as_a_whole():
    variables = Cnn().init(jax.random.key(0), IMAGES[0], train=True)
    evaluate = lambda v, x: Cnn().apply(v, x, train=False)  # noqa: E731
    mask = half(evaluate, variables, IMAGES[0])
    plan = compaction.plan(evaluate, variables, mask, IMAGES[0])

    def forward(variables, x):
        return Cnn().apply(variables, x, train=True, mutable=["batch_stats"])

    def step(state, x, y, forward=forward, mask=None):
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            if mask is not None:
                variables = maskjax.apply(variables, mask)
            out, new = forward(variables, x)
            return ((out - y) ** 2).mean(), new

        slopes, new = jax.grad(loss, has_aux=True)(state.params)
        state = state.apply_gradients(grads=slopes, batch_stats=new["batch_stats"])
        average = optax.incremental_update(state.params, state.average, 0.1)
        return state.replace(average=average)

    masked = maskjax.apply(variables, mask)
    optimizer = optax.chain(optax.adamw(1e-2), optim.keep_sparse(mask["params"]))
    start = State.create(
        apply_fn=None,
        params=masked["params"],
        tx=optimizer,
        batch_stats=masked["batch_stats"],
        average=masked["params"],
    )
    whole = jax.jit(lambda s, x, y: step(s, x, y, mask=mask))
    carry = whole(start, IMAGES[0], LABELS_OF[0])
    small = compaction.shrink(carry, plan)
    by_forward = compaction.narrow(forward, plan)
    ways = [
        jax.jit(lambda s, x, y: step(s, x, y, by_forward)),
        jax.jit(compaction.narrow(step, plan)),
    ]
    ends = [small, small]
    for _ in range(2):
        carry = whole(carry, IMAGES[1], LABELS_OF[1])
        ends = [
            way(end, IMAGES[1], LABELS_OF[1])
            for way, end in zip(ways, ends, strict=True)
        ]
    for end in ends:
        back = compaction.expand(end, plan)
        masks = {"params": mask["params"], "batch_stats": mask["batch_stats"]}
        close(back.opt_state, carry.opt_state)
        close(back.params, carry.params)
        close(back.average, carry.average)
        found, expected = (
            maskjax.apply({"params": s.params, "batch_stats": s.batch_stats}, masks)
            for s in (back, carry)
        )
        close(found["batch_stats"], expected["batch_stats"], 1e-6)


# NNX.


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def test_a_model_of_nnx_shrinks_with_its_optimizer():
    model = Nnx(nnx.Rngs(0))
    graph, state = nnx.split(model)

    def evaluate(state, x):
        model = nnx.merge(graph, state)
        model.eval()
        return model(x)

    mask = half(evaluate, state, IMAGES[0])
    plan = compaction.plan(evaluate, state, mask, IMAGES[0])
    nnx.update(model, maskjax.apply(state, mask))
    keep = nnx.state(nnx.merge(graph, mask), nnx.Param)
    chain = optax.chain(optax.adamw(1e-2), optim.keep_sparse(keep))
    both = model, nnx.Optimizer(model, chain, wrt=nnx.Param)
    graph_of_both, carry = nnx.split(both)

    def train(state, x, y, mask=None):
        model, optimizer = nnx.merge(graph_of_both, state)
        model.train()
        if mask is not None:
            nnx.update(model, maskjax.apply(nnx.state(model), mask))
        loss = lambda model: ((model(x) - y) ** 2).mean()  # noqa: E731
        value, slopes = nnx.value_and_grad(loss)(model)
        optimizer.update(model, slopes)
        return nnx.state((model, optimizer)), value

    whole = jax.jit(lambda s, x, y: train(s, x, y, mask))
    carry, _ = whole(carry, IMAGES[0], LABELS_OF[0])
    small = compaction.shrink(carry, plan)
    narrowed = jax.jit(compaction.narrow(train, plan))
    for _ in range(2):
        carry, expected = whole(carry, IMAGES[1], LABELS_OF[1])
        small, found = narrowed(small, IMAGES[1], LABELS_OF[1])
        close(found, expected)
    back = compaction.expand(small, plan)
    model, _ = nnx.merge(graph_of_both, carry)
    # Statistics of channels that left go on in the whole network, and mean nothing.
    found, expected = (
        maskjax.apply(nnx.state(nnx.merge(graph_of_both, s)[0]), mask)
        for s in (back, carry)
    )
    close(found, expected)
    close(back[1], carry[1])


def test_equinox_goes_on_small():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(5, 3, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    net = lambda p, x: jax.vmap(eqx.combine(p, static))(x)  # noqa: E731
    keep = optim.keep_sparse(half(net, params, X[0]))
    goes_on(net, params, optax.chain(optax.adamw(1e-2), keep))
