"""Statistics of real networks, against what their layers say that they were given.

Layers of Linen, NNX and Equinox are made to tell, as they run, their kernels and what
they are called with. Each kernel is known again by its entries, in stacks too.
"""

import contextlib
import functools

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from maskjax import calibration, score
from maskjax._core import trees
from tests import real_networks
from tests.reference import calibration as reference
from tests.test_networks_laws import frameworks, leaves_of, pair, unrolled


class Heard:
    """What kernels were called with, by their entries."""

    def __init__(self):
        self.rows = {}

    def hear(self, kernel, x):
        """Note a call, whenever it is run."""
        jax.debug.callback(self._note, kernel, x)

    def _note(self, kernel, x):
        self.rows.setdefault(np.asarray(kernel).tobytes(), []).append(np.asarray(x))

    def gram(self, kernel, axes):
        """Of a kernel with one or more inputs, first or last."""
        found = self.rows[np.asarray(kernel).tobytes()]
        inputs = [kernel.shape[axis] for axis in (*axes.window, *axes.inputs)]
        return reference.gram(
            np.concatenate([x.reshape(-1, np.prod(inputs)) for x in found])
        )


_CALLED = {
    nnx.Linear: "kernel",
    nnx.LinearGeneral: "kernel",
    eqx.nn.Linear: "weight",
}


@contextlib.contextmanager
def listening():
    """Layers that tell what they are called with."""
    heard = Heard()

    def linen(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            if isinstance(context.module, nn.Dense | nn.DenseGeneral):
                kernel = context.module.get_variable("params", "kernel")
                heard.hear(kernel, args[0])
        return out

    with contextlib.ExitStack() as stack:
        stack.enter_context(nn.intercept_methods(linen))
        for kind, name in _CALLED.items():
            plain = kind.__call__

            def told(self, x, *args, plain=plain, name=name, **kwargs):
                kernel = getattr(self, name)
                heard.hear(kernel[...], x)
                return plain(self, x, *args, **kwargs)

            stack.callback(setattr, kind, "__call__", plain)
            kind.__call__ = told
        yield heard


NETWORKS = [
    "linen/gpt",
    "linen/gpt_scanned",
    "linen/gpt_nested",
    "linen/gpt_grouped_scanned",
    "linen/gru",
    "nnx/gpt",
    "nnx/gpt_grouped_scanned",
    "nnx/text",
    "equinox/gpt",
    "equinox/gpt_scanned",
    "plain/experts",
]


def calibrated(name, seed=0, **how):
    """A network's kernels whose axes are known, with their statistics."""
    net = real_networks.get(name)
    traced = net.traced()
    chosen = lambda path, leaf: (  # noqa: E731
        traced(path, leaf) and net.roles[path] != real_networks.UNKNOWN
    )
    params, data = real_networks.make(name, seed), real_networks.data(name, seed)
    stats = calibration.init(net.apply, params, *data, where=chosen, **how)
    update = jax.jit(functools.partial(calibration.update, net.apply))
    stats = update(stats, params, *data)
    paths = trees.paths(params)
    each = jax.tree.structure(params).flatten_up_to(stats)
    kernels = dict(zip(paths, jax.tree.leaves(params), strict=True))
    found = {
        path: (kernels[path], own)
        for path, own in zip(paths, each, strict=True)
        if own is not None
    }
    return net, params, data, stats, found


def layers(kernel, own):
    """Each kernel of a stack with its matrix."""
    stack = own.axes.stack
    rest = [axis for axis in range(kernel.ndim) if axis not in stack]
    whole = kernel.transpose(*stack, *rest)
    for index in np.ndindex(*whole.shape[: len(stack)]):
        yield whole[index], own.sums[index]


@pytest.mark.parametrize("name", NETWORKS[:-1])
def test_matrices_are_those_of_what_layers_were_called_with(name):
    loops = {"linen/gpt_scanned", "linen/gpt_nested", "linen/gpt_grouped_scanned"}
    if jax.__version_info__ >= (0, 12) and name in {*loops, "linen/gru"}:
        pytest.skip("with JAX 0.12, Flax's nn.scan takes no callbacks")
    net, params, data, _, found = calibrated(name)
    with listening() as heard:
        jax.block_until_ready(jax.jit(lambda p, d: net.apply(p, *d))(params, data))
        jax.effects_barrier()
    dense = {path: pair for path, pair in found.items() if not pair[1].axes.window}
    assert dense
    for path, (kernel, own) in dense.items():
        assert str(own.axes) == net.roles[path]
        for one, sums in layers(np.asarray(kernel), own):
            answer = heard.gram(one, own.axes.unstacked())
            np.testing.assert_allclose(sums, answer, rtol=2e-4, atol=1e-3, err_msg=path)


@pytest.mark.parametrize("name", [*NETWORKS, "linen/resnet", "linen/convolutions"])
def test_the_diagonal_is_what_input_norms_gives(name):
    net, params, data, stats, found = calibrated(name)
    norms = jax.jit(calibration.norms)(stats)
    chosen = lambda path, _: path in found  # noqa: E731
    measure = functools.partial(score.input_norms, net.apply, where=chosen)
    others = jax.jit(lambda p, d: measure(p, *d))(params, data)
    some, more = (jax.tree.leaves(each) for each in (norms, others))
    assert len(some) == len(more) == len(found)
    for norm, other in zip(some, more, strict=True):
        whole = np.broadcast_shapes(norm.shape, other.shape)
        pairs = (np.broadcast_to(each, whole) for each in (norm, other))
        np.testing.assert_allclose(*pairs, rtol=1e-4)


@frameworks
def test_a_scanned_network_has_the_statistics_of_the_unrolled_one(framework):
    params = pair(framework)
    found = []
    for name, own in zip(("gpt", "gpt_scanned"), params, strict=True):
        net = real_networks.get(f"{framework}/{name}")
        data = real_networks.data(f"{framework}/{name}")
        stats = calibration.init(net.apply, own, *data, where=net.traced())
        update = jax.jit(functools.partial(calibration.update, net.apply))
        stats = update(stats, own, *data)
        sums = jax.tree.map(lambda own: own.sums, stats, is_leaf=_is_statistics)
        found.append(sums)
    one, many = leaves_of(found[0]), unrolled(framework, found[1])
    assert one.keys() == many.keys()
    for path, sums in one.items():
        if sums is not None:
            np.testing.assert_allclose(many[path], sums, rtol=1e-3, atol=1e-3)


def _is_statistics(x):
    return isinstance(x, calibration.Statistics)


def test_experts_count_the_rows_that_reach_them():
    """`plain/experts` sends each expert the four tokens that it is surest of."""
    _, params, (x,), stats, _ = calibrated("plain/experts")
    own = stats["experts"]["w_up"]
    gate = x @ params["router"]["w"] + params["router"]["b"][None]
    chosen = np.argsort(-jax.nn.softmax(gate).T, axis=1)[:, :4]
    answer = [reference.gram(np.asarray(x)[rows]) for rows in chosen]
    np.testing.assert_allclose(own.sums, answer, rtol=1e-5, atol=1e-5)
