"""Real networks: which leaves are kernels, and along which axes, as told by hand."""

import re

import jax
import jax.numpy as jnp
import pytest

from maskjax import where
from maskjax._core import axes, trees
from tests import real_networks
from tests.real_networks import LOOKUP, POSITIONS, UNKNOWN

every_network = pytest.mark.parametrize("name", real_networks.NAMES)


def told(words):
    """Axes as a word for each."""
    if words == LOOKUP:
        return where.Axes(inputs=(0,), outputs=(1,), lookup=True)
    return axes.parsed(words)


def is_kernel(path, words):
    """Whether names choose a leaf; tracing chooses the factors of LoRA too."""
    return words not in (None, LOOKUP, POSITIONS) and "lora_" not in path


def resolved(net, predicate, needed):
    """What is found of the leaves that need their axes, by path."""
    named, _ = trees.mask_leaves(net.params)
    flags = [path in needed for path, _ in named]
    found = axes.resolved(predicate, named, flags, fn="maskjax.f", why="for this test")
    return {
        path: got
        for (path, _), got in zip(named, found, strict=True)
        if got is not None
    }


@every_network
def test_names_choose_kernels_and_nothing_else(name):
    """However it is stacked, no leaf without inputs is chosen."""
    net = real_networks.get(name)
    for path, leaf in net.leaves():
        words = net.roles[path]
        assert where.kernels(path, leaf) is is_kernel(path, words), path
        assert where.embeddings(path, leaf) is (words in (LOOKUP, POSITIONS)), path


@every_network
def test_where_names_tell_the_axes_they_are_right(name):
    net = real_networks.get(name)
    for path, leaf in net.leaves():
        answer = where.kernels.axes(path, leaf)
        if not isinstance(answer, str) and net.roles[path] != UNKNOWN:
            assert answer == told(net.roles[path]), path


@every_network
def test_where_names_do_not_tell_the_axes_the_error_says_what_does(name):
    net = real_networks.get(name)
    kernels = dict(leaf for leaf in net.leaves() if where.kernels(*leaf))
    silent = {
        p for p, x in kernels.items() if isinstance(where.kernels.axes(p, x), str)
    }
    if not silent:
        assert resolved(net, where.kernels, kernels).keys() == kernels.keys()
        return
    with pytest.raises(ValueError, match=r"`where=where.traced\(apply, params") as at:
        resolved(net, where.kernels, kernels)
    message = f"{at.value}\n"
    assert 'where.matching(regex, axes="stack inputs outputs")' in message
    for path, leaf in kernels.items():
        line = f"\n  {path}: shape {tuple(leaf.shape)}, "
        assert (line in message) is (path in silent)


@every_network
def test_told_by_hand_every_axis_is_known(name):
    net = real_networks.get(name)
    kernels = {
        path: words
        for path, words in net.roles.items()
        if is_kernel(path, words) and words != UNKNOWN
    }
    hand = where.kernels
    for path, words in kernels.items():
        hand |= where.matching(f"^{re.escape(path)}$", axes=words)
    assert resolved(net, hand, kernels) == {p: told(w) for p, w in kernels.items()}


@every_network
def test_tracing_tells_what_was_told_by_hand(name):
    """Kernels, factors of LoRA and lookups are exactly these, and nothing else is."""
    net = real_networks.get(name)
    traced = net.traced()
    for path, leaf in net.leaves():
        words, answer = net.roles[path], traced.axes(path, leaf)
        none = words in (None, LOOKUP, POSITIONS)
        assert traced(path, leaf) is not none, path
        if words not in (None, POSITIONS, UNKNOWN):
            assert answer == told(words), path
        elif words is not UNKNOWN and not isinstance(answer, str):
            assert not answer.inputs + answer.window, path


STEPS = ("linen/gpt_nested", "nnx/gpt_grouped_scanned", "nnx/cnns", "equinox/lstm")


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_training_has_the_roles_of_the_network(name):
    net = real_networks.get(name)

    def step(params, *inputs):
        loss = lambda params: jnp.mean(net.apply(params, *inputs) ** 2)  # noqa: E731
        slopes = jax.grad(loss)(params)
        return jax.tree.map(lambda p, slope: p - slope / 8, params, slopes)

    traced = where.traced(step, net.params, *net.inputs, stack=net.stack)
    assert str(traced) == str(net.traced())
