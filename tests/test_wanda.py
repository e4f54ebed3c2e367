"""Wanda's masks on real networks, against NumPy, output by output."""

import math

import jax
import numpy as np
import pytest

from maskjax import allocation, calibration, score, select
from maskjax._core import trees
from maskjax.select._quota import quota
from maskjax.structure import NofM
from tests import real_networks
from tests.real_networks import UNKNOWN

SLOW = ("linen/gpt", "linen/gpt_nested", "linen/resnet", "nnx/gpt", "equinox/gpt")
NAMES = ["linen/gpt_scanned", "equinox/convolutions", "nnx/convolutions"]
NAMES += [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]


def by_output(x, axes):
    """[stack..., d, outputs], the window before the inputs."""
    met = (*axes.window, *axes.inputs)
    x = np.transpose(x, (*axes.stack, *met, *axes.outputs))
    n = len(axes.stack)
    return x.reshape(*x.shape[:n], math.prod(x.shape[n : n + len(met)]), -1)


def best(scores, count):
    """True for the highest along the last axis but one; the first of equal ones."""
    order = np.argsort(-scores, axis=-2, kind="stable")
    return np.argsort(order, axis=-2) < count


@pytest.mark.parametrize("name", NAMES)
def test_the_best_of_each_output_are_kept(name):
    net = real_networks.get(name)
    where = net.traced() & (lambda path, _: net.roles[path] != UNKNOWN)
    even = where & (lambda path, leaf: inputs(leaf, where.axes(path, leaf)) % 2 == 0)
    params, data = real_networks.make(name), real_networks.data(name)

    @jax.jit
    def masks(params, data):
        norms = score.input_norms(net.apply, params, *data, where=where)
        scores = score.wanda(params, norms, where=where)
        some = score.wanda(params, norms, where=even)
        half = select.top_k(scores, density=0.5, scope="output", where=where)
        pattern = select.top_k(some, density=0.5, structure=NofM(1, 2), where=where)
        return norms, half, pattern

    found = (dict(trees.mask_leaves(tree)[0]) for tree in masks(params, data))
    norms, half, pattern = found
    checked = [0, 0]
    for path, w in trees.named_leaves(params):
        if not where(path, w):
            assert half[path] is None
            continue
        axes = where.axes(path, w)
        scores = by_output(np.abs(w) * np.broadcast_to(norms[path], w.shape), axes)
        d, outputs = scores.shape[-2:]
        wanted = best(scores, quota(0.5, d))
        np.testing.assert_array_equal(by_output(half[path], axes), wanted, path)
        checked[0] += 1
        if even(path, w):
            pairs = scores.reshape(*scores.shape[:-2], d // 2, 2, outputs)
            wanted = best(pairs, 1).reshape(scores.shape)
            np.testing.assert_array_equal(by_output(pattern[path], axes), wanted, path)
            checked[1] += 1
    assert min(checked) > 0


def test_statistics_are_no_norms():
    params = {"net": {"w": np.ones((3, 2), "f4")}}
    apply = lambda p, x: x @ p["net"]["w"]  # noqa: E731
    stats = calibration.init(apply, params, np.ones((4, 3), "f4"))
    needs = "needs `input_norms` as arrays, `calibration.norms.*:\n  net/w: Statistics$"
    with pytest.raises(TypeError, match=f"`maskjax.score.wanda` {needs}"):
        score.wanda(params, stats)
    with pytest.raises(TypeError, match=f"`maskjax.allocation.owl` {needs}"):
        allocation.owl(params, stats, density=0.5)


def inputs(leaf, axes):
    return math.prod(leaf.shape[axis] for axis in axes.inputs)
