"""What was learned stays, to the bit, in programs that are optimized as users' are.

With batch normalization, loops that donate, and optimizers that move everything; masked
or not, in which case only what a recipe restores is undone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import optim
from maskjax.recipes import packnet, pacnet, wsn
from tests import trees
from tests.networks import HEAD, OPTIMIZERS, RUNS, means, training
from tests.reference.continual import forgetting

pytestmark = pytest.mark.optimized

TASKS = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(TASKS, 12, 5)).astype(np.float32)
Y = RNG.normal(size=(TASKS, 12, 3)).astype(np.float32)


@pytest.mark.parametrize(("framework", "name", "masked"), RUNS)
def test_packnet_forgets_nothing(framework, name, masked):
    start, train, apply = training(framework, name, masked=masked)

    @functools.partial(jax.jit, donate_argnums=0)
    def task(state, x, y):
        training = packnet.begin(state)
        params = train(training.params, training.mask, x, y)
        pruned = packnet.prune(training, params, rate=jnp.float32(0.6))
        return packnet.commit(pruned, train(pruned.params, pruned.mask, x, y))

    @jax.jit
    def every(state):
        """What each task says of its inputs, [T, N, 3]."""

        def one(task):
            return apply(packnet.params_of(state, task), jax.device_put(X)[task])

        return jax.lax.map(one, jnp.arange(TASKS))

    state, said = packnet.init(start, head=HEAD, capacity=TASKS), []
    for i in range(TASKS):
        state = task(state, X[i], Y[i])
        said.append(np.asarray(every(state)))
    assert task._cache_size() == 1
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    for i in range(TASKS):
        assert (said[i][i] != said[-1][TASKS - 1 - i]).any()
        for later in said[i:]:
            np.testing.assert_array_equal(later[i], said[i][i])
    assert forgetting(-np.square(np.stack(said) - Y).mean((2, 3))) == 0
    (each,) = means(state.slots)
    assert len({mean.tobytes() for mean in np.asarray(each)}) == TASKS


def winning(framework, name, *, masked):
    """`training` of weights and scores together: `(training, x, y) -> both`."""
    start, split, join, loss, apply = framework()

    def train(training, x, y):
        frozen = optim.mask_updates((split(training.mask)[0], True))
        optimizer = optax.chain(
            OPTIMIZERS[name], frozen if masked else optax.identity()
        )

        def objective(both, rest):
            params, scores = both
            soft = wsn.soft_mask(scores, density=0.4)
            return loss(*split(maskjax.apply(join(params, rest), soft)), x, y)

        def step(carry, _):
            both, rest, opt_state = carry
            slopes, rest = jax.grad(objective, has_aux=True)(both, rest)
            with jax.numpy_dtype_promotion("standard"):  # which Adam needs
                updates, opt_state = optimizer.update(slopes, opt_state, both)
            return (optax.apply_updates(both, updates), rest, opt_state), None

        params, rest = split(training.params)
        both = params, training.scores
        carry = both, rest, optimizer.init(both)
        (params, scores), rest, _ = jax.lax.scan(step, carry, length=4)[0]
        return join(params, rest), scores

    return start, train, apply


@pytest.mark.parametrize(("framework", "name", "masked"), RUNS)
def test_wsn_forgets_nothing(framework, name, masked):
    start, train, apply = winning(framework, name, masked=masked)

    @functools.partial(jax.jit, donate_argnums=0)
    def task(state, x, y):
        training = wsn.begin(state)
        params, scores = train(training, x, y)
        mask = wsn.mask(scores, density=0.4)
        return wsn.commit(training, params, scores, mask)

    @jax.jit
    def every(state):
        """What each task says of its inputs, [T, N, 3]."""

        def one(task):
            return apply(wsn.params_of(state, task), jax.device_put(X)[task])

        return jax.lax.map(one, jnp.arange(TASKS))

    key = jax.random.key(0)
    state, said = wsn.init(start, head=HEAD, capacity=TASKS, key=key), []
    for i in range(TASKS):
        state = task(state, X[i], Y[i])
        said.append(np.asarray(every(state)))
    assert task._cache_size() == 1
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    for i in range(TASKS):
        assert said[-1][i].any()
        for later in said[i:]:
            np.testing.assert_array_equal(later[i], said[i][i])
    assert len({one.tobytes() for one in said[-1]}) == TASKS
    assert 0 < np.sum(state.reused) < np.sum(state.counts)
    (each,) = means(state.slots)
    assert len({mean.tobytes() for mean in np.asarray(each)}) == TASKS


@pytest.mark.parametrize(("framework", "name", "masked"), RUNS)
def test_the_source_of_pacnet_says_the_same(framework, name, masked):
    start, train, apply = training(framework, name, masked=masked)
    train, says = jax.jit(train, donate_argnums=0), jax.jit(apply)
    with jax.numpy_dtype_promotion("standard"):  # which Adam needs
        pruned = pacnet.prune(start)
        trained = train(pruned.params, pruned.mask, X[0], Y[0])
        begun = pacnet.allocate(pruned, trained, start="source")
        before = says(pacnet.source(begun), X[0])
        state = pacnet.calibrate(begun, train(begun.params, begun.mask, X[1], Y[1]))
        after = says(pacnet.source(state), X[0])
        target = says(pacnet.target(state), X[0])
        for view in (pacnet.target, pacnet.source):
            train(view(state), begun.mask, X[1], Y[1])
    np.testing.assert_array_equal(after, before)
    assert (np.asarray(target) != np.asarray(after)).any()
    trees.assert_same(pacnet.source(begun), pacnet.source(state))
    for phase in (pruned, begun):
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(phase.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    # Each task has its own running statistics.
    (one,), (other,) = means(pacnet.source(state)), means(pacnet.target(state))
    assert (np.asarray(one) != np.asarray(other)).any()
