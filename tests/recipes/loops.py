"""Training loops as users write them, around a recipe that turns scores into masks.

Each takes a `Rule`, trains its scores for a few steps and returns them. Weights are
closed over or passed on, and never trained; every loop compiles its step once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

import maskjax

STEPS = 4


class Rule(NamedTuple):
    """`scores` to begin with, and `(scores, guess, key) -> (soft mask, guess)`."""

    scores: Any
    guess: Any
    soft_mask: Callable[..., Any]

    def value(self, scores, key):
        """The loss of the random network under a mask of scores."""
        weights, stats = drawn()
        soft, _ = self.soft_mask(scores, self.guess, key)
        return loss(maskjax.apply(weights, soft), stats)[0]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(8, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(3, use_bias=False)(nn.relu(x))


NET = Net()


@functools.cache
def drawn():
    """Weights and statistics of the network, as NumPy arrays."""
    start = jax.eval_shape(
        lambda x: NET.init(jax.random.key(0), x, train=False), jnp.zeros((2, 6))
    )
    rng = np.random.default_rng(0)
    fill = lambda s: rng.normal(size=s.shape).astype("float32")  # noqa: E731
    weights = jax.tree.map(fill, start["params"])
    stats = {"mean": np.zeros(8, "float32"), "var": np.ones(8, "float32")}
    return weights, {"BatchNorm_0": stats}


@functools.cache
def data():
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(16, n)).astype("float32") for n in (6, 3))


def loss(params, stats):
    """Of the network in training, and its new statistics."""
    x, y = data()
    out, new = NET.apply(
        {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
    )
    return jnp.mean((out - y) ** 2), new["batch_stats"]


def keys():
    return [jax.random.key(i) for i in range(STEPS)]


def once(step):
    """The step, compiled; what it is compiled for must not change."""

    @functools.wraps(step)
    def counted(*args):
        counted.traces += 1
        assert counted.traces == 1, "the step was compiled twice"
        return step(*args)

    counted.traces = 0
    return counted


def aux_and_batch_norm(rule):
    """Statistics and the selection's guess ride in the loss's aux."""
    weights, stats = drawn()
    optimizer = optax.adam(0.1)

    def objective(scores, stats, guess, key):
        soft, guess = rule.soft_mask(scores, guess, key)
        value, stats = loss(maskjax.apply(weights, soft), stats)
        return value, (stats, guess)

    @jax.jit
    @once
    def step(scores, opt_state, stats, guess, key):
        grad = jax.grad(objective, has_aux=True)
        gradients, (stats, guess) = grad(scores, stats, guess, key)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(scores, updates), opt_state, stats, guess

    carry = rule.scores, jax.jit(optimizer.init)(rule.scores), stats, rule.guess
    for key in keys():
        carry = step(*carry, key)
    before, after = stats["BatchNorm_0"], carry[2]["BatchNorm_0"]
    assert (np.asarray(after["mean"]) != before["mean"]).any()
    return carry[0]


def line_search(rule):
    """L-BFGS, which evaluates the loss several times in a step, under one sample."""
    optimizer = optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(5))
    objective = functools.partial(rule.value, key=jax.random.key(0))

    def step(carry, _):
        scores, opt_state = carry
        value, gradients = jax.value_and_grad(objective)(scores)
        how = {"value": value, "grad": gradients, "value_fn": objective}
        updates, opt_state = optimizer.update(gradients, opt_state, scores, **how)
        return (optax.apply_updates(scores, updates), opt_state), None

    @jax.jit
    def train(scores):
        carry = scores, optimizer.init(scores)
        return jax.lax.scan(step, carry, length=STEPS)[0][0]

    return train(rule.scores)


def accumulation(rule):
    """`optax.MultiSteps`: scores move at every second batch."""
    optimizer = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=2)

    @jax.jit
    @once
    def step(scores, opt_state, key):
        gradients = jax.grad(rule.value)(scores, key)
        updates, opt_state = optimizer.update(gradients, opt_state, scores)
        return optax.apply_updates(scores, updates), opt_state

    carry = rule.scores, jax.jit(optimizer.init)(rule.scores)
    moved = []
    for key in keys():
        before, carry = carry[0], step(*carry, key)
        moved.append(differ(before, carry[0]))
    assert moved == [False, True] * (STEPS // 2)
    return carry[0]


def train_state(rule):
    """Flax's `TrainState`, whose parameters are the scores."""
    state = jax.jit(
        lambda scores: TrainState.create(
            apply_fn=None, params=scores, tx=optax.sgd(0.1, momentum=0.9)
        )
    )(rule.scores)

    @jax.jit
    @once
    def step(state, key):
        gradients = jax.grad(rule.value)(state.params, key)
        return state.apply_gradients(grads=gradients)

    for key in keys():
        state = step(state, key)
    assert int(state.step) == STEPS
    return state.params


class Score(nnx.Variable):
    """What `nnx.Optimizer` trains."""


def nnx_optimizer(rule):
    """A module that holds scores, which `nnx.Optimizer` updates in place."""

    class Model(nnx.Module):
        def __init__(self):
            leaves, self.structure = jax.tree.flatten(rule.scores)
            self.leaves = nnx.List([Score(jax.device_put(leaf)) for leaf in leaves])

        def scores(self):
            return self.structure.unflatten([leaf[...] for leaf in self.leaves])

    @nnx.jit
    @once
    def step(model, optimizer, key):
        objective = lambda model: rule.value(model.scores(), key)  # noqa: E731
        wrt = nnx.DiffState(0, Score)
        optimizer.update(model, nnx.grad(objective, argnums=wrt)(model))

    model = Model()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=Score)
    for key in keys():
        step(model, optimizer, key)
    return model.scores()


def donation(rule):
    """Donated scores; whatever was handed out for them earlier lives on."""

    @functools.partial(jax.jit, donate_argnums=0)
    @once
    def step(scores, key):
        slope = jax.grad(rule.value)(scores, key)
        return jax.tree.map(lambda s, g: s - g, scores, slope)

    scores = jax.tree.map(jnp.array, rule.scores)
    for key in keys():
        handed_out = rule.soft_mask(scores, rule.guess, key)
        before, scores = scores, step(scores, key)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        for leaf in jax.tree.leaves(handed_out):
            assert np.isfinite(leaf).all()
    return scores


LOOPS = {
    loop.__name__: loop
    for loop in (
        aux_and_batch_norm,
        line_search,
        accumulation,
        train_state,
        nnx_optimizer,
        donation,
    )
}


def differ(a, b):
    """Whether some entry of two trees differs."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in pairs)


def trains(loop, rule):
    """Run a loop; its scores move, and the weights do not."""
    weights = jax.tree.map(np.array, drawn()[0])
    begun = jax.tree.map(np.array, rule.scores)
    with jax.numpy_dtype_promotion("standard"):  # as some of optax needs it
        after = LOOPS[loop](rule)
    assert jax.tree.structure(after) == jax.tree.structure(begun)
    assert differ(begun, after)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert not differ(weights, drawn()[0])
