"""Masks hold to the bit under every optimizer of optax."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from maskjax import algebra, optim, where
from tests.training import bits, half, make_params, run

# Compiled as users compile: whether removed weights are exactly zero depends on fusion.
pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _ordinary_promotion(_strict_promotion):
    """Many of optax's optimizers need it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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
NAMES = [*OPTIMIZERS, *OTHERS]
# Those that people use, and one of each kind: with decay, noise, a norm, a sign,
# factors, averages of iterates, estimates of their rate. The others are slow tests.
MANY = {"adafactor", "adam", "adamw", "cocob", "lamb", "lars", "lion", "muon"}
MANY |= {"noisy_sgd", "prodigy", "rmsprop", "schedule_free_adamw", "sm3", *OTHERS}
FEW = {"adamw, strong decay"}


def each_of(names):
    """One test for each optimizer; those not among these are slow."""
    slow = pytest.mark.slow
    marked = [n if n in names else pytest.param(n, marks=slow) for n in NAMES]
    return pytest.mark.parametrize("name", marked)


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
    assert MANY <= set(NAMES)
    assert len(OPTIMIZERS) > 30


def assert_holds(name, moving, *, steps):
    """One kernel's mask moves, half of the other is frozen, and biases train."""
    params = make_params()
    still = half(params)
    still["a"]["kernel"] = None
    chain = optax.chain(make_optimizer(name), moving, optim.mask_updates(still))
    trained, state = run(optim.with_gradients(chain), params, steps=steps)
    alive = np.asarray(optim.mask_of(state)["a"]["kernel"])
    assert alive.sum() == 12
    assert not np.asarray(trained["a"]["kernel"])[~alive].any()
    frozen = ~still["b"]["kernel"]
    after, before = (bits(p["b"]["kernel"]) for p in (trained, params))
    np.testing.assert_array_equal(after[frozen], before[frozen])
    assert (after[~frozen] != before[~frozen]).any()
    assert (bits(trained["a"]["bias"]) != bits(params["a"]["bias"])).any()
    for leaf in jax.tree.leaves(trained):
        assert np.isfinite(np.asarray(leaf)).all()


def by_table(*, steps):
    """Like `rigl` on one kernel, with masks from a table: no search to compile."""
    rng = np.random.default_rng(0)
    table = np.stack([rng.permutation(np.arange(48) < 12) for _ in range(steps + 1)])
    table = jax.device_put(table.reshape(-1, 6, 8))

    def at(count):
        alone = {"kernel": table[count], "bias": None}
        return {"a": alone, "b": {"kernel": None, "bias": None}}

    def init(params):
        return optim.MaskState(at(0), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra):
        mask = at(state.count + 1)
        kept = optim.MaskState(algebra.intersection(mask, state.mask), state.count)
        updates, _ = optim.keep_sparse(mask).update(updates, kept, params)
        return updates, optim.MaskState(mask, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


@each_of(MANY)
def test_every_optimizer_holds_to_the_bit(name):
    assert_holds(name, by_table(steps=12), steps=12)


@each_of(FEW)
def test_a_hundred_steps_of_rigl_hold_to_the_bit(name):
    rigl = optim.rigl(
        0.25,
        rate=optax.cosine_decay_schedule(0.3, 80),
        every=30,
        where=where.matching("^a/kernel"),
        key=KEY,
    )
    assert_holds(name, rigl, steps=100)
