"""SRigL: outputs with the same number of inputs, or none, against NumPy and by laws."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import optim, where
from maskjax.structure import Units
from tests.reference import optim as reference
from tests.reference.selection import quota
from tests.training import bits, following

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
GIVEN = {"scope": "output", "every": 1, "key": KEY}


def drawn(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def chain(*args, **how):
    rigl = optim.rigl(*args, **GIVEN | how)
    return optim.with_gradients(optax.chain(optax.sgd(0.1, momentum=0.9), rigl))


@jax.jit
@chex.assert_max_traces(n=1)
def changed(params, gradients, state, least):
    optimizer = chain(0.25, rate=0.4, min_salient=least)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("least", [0.0, 0.3, 0.5, 1.0])
def test_masks_are_those_of_the_reference_and_compile_once(least):
    params = {"w": drawn(12, 9)}
    state = chain(0.25, rate=0.4, min_salient=0.0).init(params)
    mask = np.asarray(optim.mask_of(state)["w"])
    params, fewest = maskjax.apply(params, {"w": mask}), 9
    for _ in range(6):
        gradient = drawn(12, 9) * np.exp(drawn(9))  # some outputs matter more
        before = np.asarray(params["w"])
        how = {"inputs": 3, "rate": 0.4, "least": least}
        wanted = reference.srigl(before, gradient, mask, **how)
        params, state = changed(params, {"w": gradient}, state, np.float32(least))
        found = np.asarray(optim.mask_of(state)["w"])
        np.testing.assert_array_equal(found, wanted)
        # Nothing moves where the mask changes, and what grows starts at zero.
        np.testing.assert_array_equal(params["w"], before * (mask & found))
        moved = params["w"] + 0.5 * drawn(12, 9)
        params = maskjax.apply({"w": moved}, {"w": found})
        mask, fewest = found, min(fewest, int(found.any(0).sum()))
    assert (fewest < 9) == (least > 0)


# Kernels of several kinds, and for each: stacked layers, inputs, outputs, as axes.
KINDS = {
    "torch": ((8, 10), "outputs inputs", (), (1,)),
    "conv": ((3, 3, 2, 6), "window window inputs outputs", (), (0, 1, 2)),
    "heads": ((3, 8, 2, 3), "stack inputs outputs outputs", (0,), (1,)),
}
ROLES = functools.reduce(
    lambda a, b: a | b,
    (where.matching(f"^{name}$", axes=kind[1]) for name, kind in KINDS.items()),
)


def assert_laws(name, mask, density):
    """All active outputs of a layer have equally many inputs; counts are exact."""
    shape, _, stack, inputs = KINDS[name]
    fan_in = int(np.prod([shape[i] for i in inputs]))
    each = mask.sum(axis=inputs)
    layers = each.reshape(*([shape[0]] if stack else [1]), -1)
    for counts in layers:
        active = counts[counts > 0]
        budget = quota(density, fan_in) * counts.size
        assert len(active) > 0
        assert len(set(active)) == 1
        assert active[0] == budget // len(active) <= fan_in
        assert budget - len(active) < active.sum() <= budget
    return layers


@jax.jit
def rewired(density, params, gradients, state):
    """A change for each of the stacked gradients; masks after each."""
    how = {"rate": 0.5, "min_salient": 0.8, "where": ROLES}
    rigl = optim.rigl(density, **GIVEN | how)

    def step(state, gradients):
        _, state = rigl.update(gradients, state, params, gradients=gradients)
        return state, state.mask

    return jax.lax.scan(step, state, gradients)[1]


@pytest.mark.parametrize("density", [0.3, 0.65])
def test_active_outputs_have_the_same_number_of_inputs(density):
    params = {name: drawn(*shape) for name, (shape, *_) in KINDS.items()}
    gradients = jax.tree.map(lambda w: drawn(5, *w.shape), params)
    gradients = jax.tree.map(lambda g: g * np.exp(2 * drawn(*g.shape[2:])), gradients)
    given = np.float32(density), params, gradients
    state = optim.rigl(density, rate=0.5, where=ROLES, **GIVEN).init(params)
    masks = rewired(*given, state)
    for name, each in jax.tree.map(np.asarray, masks).items():
        first = np.asarray(state.mask[name])
        layers = [assert_laws(name, mask, density) for mask in (first, *each)]
        assert np.min(layers) == 0 or density > 0.5
        assert (each[0] != first).any()


def test_an_ablated_output_comes_back_if_gradients_ask_for_it():
    weights = {"w": np.float32([[9, 8, 0.1], [7, 6, 0.2], [5, 4, 0.3], [3, 2, 0.4]])}
    optimizer = chain(0.5, rate=0.5, min_salient=1.0)
    state = optimizer.init(weights)
    mask = {"w": np.array([[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]], bool)}
    state = optim.with_mask(state, mask)
    step = jax.jit(optimizer.update)
    # Salient: 9, 8, 7 and three gradients below them: nothing of the third output.
    slopes = {"w": np.float32([[0, 0, 0], [0, 0, 0], [9, 8, 0], [7, 6, 0]])}
    updates, state = step(slopes, state, maskjax.apply(weights, mask))
    after = optax.apply_updates(maskjax.apply(weights, mask), updates)
    found = np.asarray(optim.mask_of(state)["w"])
    np.testing.assert_array_equal(found.sum(0), [3, 3, 0])
    np.testing.assert_array_equal(found[:, :2], [[1, 1], [1, 0], [1, 1], [0, 1]])
    np.testing.assert_array_equal(
        after["w"], [[9, 8, 0], [7, 0, 0], [0, 0, 0], [0, 0, 0]]
    )
    # Now only gradients of the third output are large, and 9, 8, 7 are salient again.
    slopes = {"w": np.float32([[0, 0, 9], [0, 0, 8], [0, 0, 7], [0, 0, 0]])}
    _, state = step(slopes, state, after)
    found = np.asarray(optim.mask_of(state)["w"])
    np.testing.assert_array_equal(found, [[1, 0, 1], [1, 0, 1], [1, 0, 1], [0, 0, 0]])


def test_all_outputs_stay_where_the_last_layer_says_so():
    params = {"a": {"kernel": drawn(8, 6)}, "b": {"kernel": drawn(6, 4)}}
    least = {"a": {"kernel": 1.0}, "b": {"kernel": 0.0}}
    gradients = jax.tree.map(
        lambda w: drawn(3, *w.shape) * np.exp(drawn(w.shape[1])), params
    )
    masks = following(chain(0.5, rate=0.5, min_salient=least), params, gradients)[1]
    active = {name: masks[name]["kernel"].any(1).all(0) for name in "ab"}
    assert active["b"].all()
    assert not active["a"].all()


def test_without_ablation_every_output_keeps_its_number_of_inputs():
    """Unlike in RigL with the same scope, a layer's smallest weights are dropped."""
    params, gradients = {"w": drawn(10, 5)}, {"w": drawn(1, 10, 5)}
    params["w"][:, 0] *= 1e-3
    for least, kept in ((0.0, 0), (None, 2)):
        optimizer = chain(0.4, rate=0.5, min_salient=least)
        old, new = following(optimizer, params, gradients)[1]["w"]
        assert (new.sum(0) == 4).all()
        held = np.abs(params["w"][:, 0]) * old[:, 0]
        assert (new[:, 0] & (held > 0)).sum() >= kept
    assert (following(chain(0.4, rate=0.5), params, gradients)[1]["w"][1] == new).all()


def test_all_or_nothing_of_a_layer_is_alive():
    for density, expected in ((0.0, 0), (1.0, 40)):
        gradients = {"w": drawn(2, 10, 4)}
        optimizer = chain(density, rate=0.5, min_salient=1.0)
        masks = following(optimizer, {"w": drawn(10, 4)}, gradients)[1]["w"]
        assert masks.sum(axis=(1, 2)).tolist() == 3 * [expected]


def test_vmap_over_densities_and_shares_equals_a_loop():
    params, gradients = {"w": drawn(3, 10, 6)}, {"w": drawn(3, 2, 10, 6)}
    numbers = np.float32([0.2, 0.5, 0.8]), np.float32([1.0, 0.3, 0.0])
    keys = jax.random.split(KEY, 3)

    def train(params, gradients, density, least, key):
        optimizer = chain(density, rate=0.5, min_salient=least, key=key)
        state = optimizer.init(params)
        for i in range(2):
            slopes = jax.tree.map(lambda g: g[i], gradients)  # noqa: B023
            updates, state = optimizer.update(slopes, state, params)
            params = optax.apply_updates(params, updates)
        return params["w"], optim.mask_of(state)["w"]

    together = jax.jit(jax.vmap(train))(params, gradients, *numbers, keys)
    alone = jax.jit(train)
    for i in range(3):
        mine = jax.tree.map(lambda x: x[i], (params, gradients))  # noqa: B023
        given = numbers[0][i], numbers[1][i], keys[i]
        first, second = alone(*mine, *given), alone(*mine, *given)
        for one, again, batch in zip(first, second, together, strict=True):
            np.testing.assert_array_equal(bits(one), bits(again))
            np.testing.assert_array_equal(np.asarray(one), np.asarray(batch)[i])
    # A Python number means the same as an array.
    named = chain(0.5, rate=0.5, min_salient=0.3, key=keys[1])
    masks = following(named, {"w": params["w"][1]}, {"w": gradients["w"][1]})[1]["w"]
    np.testing.assert_array_equal(masks[-1], np.asarray(together[1])[1])


def test_a_number_for_each_layer_and_a_schedule_are_taken():
    shape = 3, 10, 6
    shares = {"w": np.float32([0.2, 0.5, 0.5])}
    least = {"w": np.float32([1.0, 1.0, 0.0])}
    how = {"rate": 0.5, "where": where.matching("w", axes="stack inputs outputs")}
    gradients = {"w": drawn(2, *shape) * np.exp(2 * drawn(6))}
    masks = following(
        chain(shares, min_salient=least, **how), {"w": drawn(*shape)}, gradients
    )[1]["w"]
    active = masks.any(2)[-1]
    assert active[2].all()
    assert not active[:2].all()
    assert masks[-1].sum(axis=(1, 2))[2] == 30
    late = chain(0.5, min_salient=lambda n: jnp.where(n > 1, 1.0, 0.0), **how)
    masks = following(late, {"w": drawn(*shape)}, gradients)[1]["w"].any(2)
    assert masks[1].all()
    assert not masks[2].all()


def test_options_that_do_not_go_with_it_are_refused():
    how = {"rate": 0.3, "every": 1, "key": KEY, "min_salient": 0.3}
    match = (
        "`maskjax.optim.rigl` with `min_salient` needs(.|\n)*scope='output', got 'leaf'"
    )
    with pytest.raises(ValueError, match=match):
        optim.rigl(0.5, **how)
    how["scope"] = "output"
    with pytest.raises(ValueError, match=r"structure=Entries\(\), got Units"):
        optim.rigl(0.5, structure=Units(), **how)
    with pytest.raises(ValueError, match="regrow=True, got False"):
        optim.rigl(0.5, regrow=False, **how)
    with pytest.raises(ValueError, match=r"`min_salient` in \[0, 1\], got 1.5"):
        optim.rigl(0.5, **how | {"min_salient": 1.5})
    with pytest.raises(TypeError, match="`min_salient` as a number"):
        optim.rigl(0.5, **how | {"min_salient": "0.3"})
    other = chain(0.5, rate=0.3, min_salient={"v": 0.3})
    params = {"w": drawn(4, 3)}
    match = "`maskjax.optim.rigl` needs(.|\n)*only in `min_salient`: v"
    with pytest.raises(ValueError, match=match):
        other.update(params, other.init(params), params)
