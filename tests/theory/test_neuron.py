"""Neurons kept or removed as a whole, against least squares and ridge regression."""

import functools

import jax
import numpy as np
import optax
import pytest

from maskjax.theory import neuron
from tests.reference import theory as reference

LEARN = {
    "optimizer": optax.sgd(1.0, momentum=0.9),
    "steps": 60,
    "key": jax.random.key(0),
}
CALLS = {
    "scale": functools.partial(neuron.scale, np.ones(7, bool)),
    "error": functools.partial(neuron.error, np.ones(7, bool)),
    "greedy": functools.partial(neuron.greedy, budget=2),
    "learned": functools.partial(neuron.learned, budget=2, **LEARN),
    "ridge": functools.partial(neuron.ridge, penalty=0.1),
}


def drawn(n=60, h=7, *, d=3, seed=0):
    """Random neurons' outputs [N, H], and a ReLU neuron's [N]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    hidden = np.maximum(x @ rng.normal(size=(d, h)), 0) * rng.uniform(-1, 1, h)
    y = np.maximum(x @ rng.normal(size=d), 0)
    return np.float32(hidden), np.float32(y)


errors = jax.jit(jax.vmap(neuron.error, (0, None, None)))  # of several masks


def test_scales_and_errors_are_those_of_least_squares():
    outputs, y = drawn()
    masks = np.array([[1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0, 1], [1] * 7], bool)
    mapped = errors(masks, outputs, y)
    for mask, own in zip(masks, np.asarray(mapped), strict=True):
        total = np.float64(outputs)[:, mask].sum(1)
        (s,), (left,), *_ = np.linalg.lstsq(total[:, None], np.float64(y), rcond=None)
        np.testing.assert_allclose(neuron.scale(mask, outputs, y), s, rtol=1e-4)
        missed = left / np.sum(np.float64(y) ** 2)
        np.testing.assert_allclose(neuron.error(mask, outputs, y), missed, rtol=1e-4)
        np.testing.assert_allclose(own, missed, rtol=1e-4)


def test_no_neuron_misses_everything_and_has_no_slope():
    outputs, y = drawn()
    none = np.zeros(7, np.float32)
    value, slope = jax.jit(jax.value_and_grad(neuron.error))(none, outputs, y)
    assert value == 1
    np.testing.assert_array_equal(slope, none)
    assert neuron.scale(none, outputs, y) == 0


def test_errors_have_the_slopes_of_finite_differences(x64):
    outputs, y = map(np.float64, drawn())
    soft, nudges = np.linspace(0.1, 1, 7), 1e-6 * np.eye(7)
    slopes = jax.jit(jax.grad(neuron.error))(soft, outputs, y)
    up, down = (np.asarray(errors(soft + s * nudges, outputs, y)) for s in (1, -1))
    np.testing.assert_allclose(slopes, (up - down) / 2e-6, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("budget", [1, 3, 12])
def test_neurons_are_added_as_in_the_reference(budget):
    draws = [drawn(h=12, seed=seed) for seed in (0, 1)]
    stacked = tuple(map(np.stack, zip(*draws, strict=True)))
    greedy = functools.partial(neuron.greedy, budget=budget)
    mapped = np.asarray(jax.jit(jax.vmap(greedy))(*stacked))
    for (outputs, y), mask in zip(draws, mapped, strict=True):
        np.testing.assert_array_equal(greedy(outputs, y), mask)
        kept, error = reference.neurons(np.float64(outputs), np.float64(y), budget)
        assert set(np.flatnonzero(mask).tolist()) == kept
        np.testing.assert_allclose(neuron.error(mask, outputs, y), error, rtol=1e-3)
        assert len(kept) <= budget


def test_a_larger_budget_is_never_worse_and_need_not_be_used():
    outputs, y = drawn(h=40, d=8)
    masks = [neuron.greedy(outputs, y, budget=b) for b in (1, 8, 40, 50)]
    missed = np.asarray(errors(np.stack(masks), outputs, y))
    assert missed[0] > missed[1] > missed[2] == missed[3]
    assert 8 < np.asarray(masks[-1]).sum() < 40


def test_a_neuron_is_found_again():
    outputs, _ = drawn(n=200, h=12, d=6)
    y = -3 * outputs[:, 7]
    mask = neuron.greedy(outputs, y, budget=5)
    np.testing.assert_array_equal(np.flatnonzero(mask), [7])
    np.testing.assert_allclose(neuron.scale(mask, outputs, y), -3, rtol=1e-4)
    assert neuron.error(mask, outputs, y) < 1e-5


@pytest.mark.parametrize("budget", [1, 5, 30])
def test_learned_neurons_are_as_many_as_asked_for_and_better_than_random(budget):
    outputs, y = drawn(h=30, d=5)
    mask = np.asarray(neuron.learned(outputs, y, budget=budget, **LEARN))
    assert mask.sum() == budget
    assert mask.dtype == bool
    if budget == 5:
        rng = np.random.default_rng(0)
        others = [rng.permutation(30) < budget for _ in range(20)]
        mine, *random = np.asarray(errors(np.stack([mask, *others]), outputs, y))
        assert mine < min(random)
        learn = jax.jit(functools.partial(neuron.learned, budget=budget, **LEARN))
        np.testing.assert_array_equal(learn(outputs, y), mask)


@pytest.mark.parametrize(("n", "h"), [(40, 7), (7, 40)])
def test_ridge_regression_is_that_of_the_augmented_system(n, h, x64):
    outputs, y = map(np.float64, drawn(n, h))
    found = neuron.ridge(outputs, y, penalty=0.01)
    rows = np.concatenate([outputs, np.sqrt(n * 0.01) * np.eye(h)])
    expected = np.linalg.lstsq(rows, np.concatenate([y, np.zeros(h)]), rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_no_neuron_subnetwork_is_better_than_regression_on_its_features(seed):
    outputs, y = drawn(n=200, h=30, d=6, seed=seed)
    free = neuron.error(neuron.ridge(outputs, y, penalty=1e-6), outputs, y)
    for found in (
        neuron.greedy(outputs, y, budget=30),
        neuron.learned(outputs, y, budget=8, **LEARN),
    ):
        mask = np.float32(found)
        kept = outputs * mask
        among = neuron.error(neuron.ridge(kept, y, penalty=1e-6), kept, y)
        assert free < among < neuron.error(mask, outputs, y)


def test_a_second_call_does_not_compile():
    greedy = jax.jit(functools.partial(neuron.greedy, budget=3))
    for seed in range(2):
        greedy(*drawn(seed=seed))
    assert greedy._cache_size() == 1


@pytest.mark.parametrize("name", CALLS)
def test_arrays_that_do_not_fit_are_refused(name):
    outputs, y = drawn()
    message = f"`maskjax.theory.neuron.{name}` needs `outputs` as a floating array"
    with pytest.raises(TypeError, match=message):
        CALLS[name](outputs.astype(np.int32), y)
    with pytest.raises(TypeError, match="needs `y` as a floating array, got list"):
        CALLS[name](outputs, [1.0])
    for arrays in ((outputs[0], y), (outputs, y[:5]), (outputs[:0], y[:0])):
        with pytest.raises(ValueError, match=r"`outputs` \[N, H\] and `y` \[N\], got"):
            CALLS[name](*arrays)


def test_masks_and_numbers_out_of_range_are_refused():
    outputs, y = drawn()
    for call in (neuron.error, neuron.scale):
        with pytest.raises(ValueError, match=r"`mask` \[7\], one for each neuron, got"):
            call(np.ones(6, bool), outputs, y)
    with pytest.raises(ValueError, match="`budget` of at least 1, got 0"):
        neuron.greedy(outputs, y, budget=0)
    for wrong, message in (
        ({"budget": 0}, "`budget` of at least 1"),
        ({"budget": 8}, "`budget` of at most 7 neurons, got 8"),
        ({"steps": 0}, "`steps` of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            neuron.learned(outputs, y, **({"budget": 2} | LEARN | wrong))
    with pytest.raises(TypeError, match="`key` as a typed key"):
        neuron.learned(outputs, y, **({"budget": 2} | LEARN | {"key": 0}))
