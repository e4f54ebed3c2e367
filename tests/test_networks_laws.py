"""Laws on real networks: a stack is what its layers are, and every layout the same.

Parameters are multiples of 1/64 whose sums are exact, with many ties, so that equality
is asked for to the last bit.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import allocation, initializer, optim, score
from maskjax._core import trees
from tests import real_networks
from tests.real_networks import UNKNOWN

KEY = jax.random.key(0)
# Unrolled transformers have the kernels of scanned ones, many times.
UNROLLED = [f"/gpt{kind}" for kind in ("", "_tied", "_grouped")]
NAMES = [n for n in real_networks.NAMES if not n.endswith(tuple(UNROLLED))]
every_network = pytest.mark.parametrize("name", NAMES)


def told(name):
    """Kernels with their axes, by tracing; without those that are undecidable."""
    net = real_networks.get(name)
    known = lambda path, _: net.roles[path] != UNKNOWN  # noqa: E731
    return net.traced() & known


def kernels(name):
    """The leaves that `told` chooses, with their axes."""
    net, chosen = real_networks.get(name), told(name)
    return {
        path: (leaf, chosen.axes(path, leaf))
        for path, leaf in net.leaves()
        if chosen(path, leaf)
    }


def leaves_of(tree):
    """The leaves that are not `None`, by path."""
    named, _ = trees.mask_leaves(tree)
    return {path: leaf for path, leaf in named if leaf is not None}


def exact(shapes, seed=0):
    """Values for a tree of shapes, as NumPy arrays by path."""
    rng = np.random.default_rng(seed)
    return {
        path: (rng.integers(-31, 32, leaf.shape) / 64).astype("f4")
        for path, leaf in trees.named_leaves(shapes)
    }


def tree_of(shapes, values):
    """A tree like `shapes` of values by path."""
    treedef = jax.tree.structure(shapes)
    named = trees.named_leaves(shapes)
    return jax.device_put(treedef.unflatten([values[path] for path, _ in named]))


# Scanned and unrolled.

LAYER = {"linen": "layers/blocks", "nnx": "blocks", "equinox": "blocks"}
frameworks = pytest.mark.parametrize("framework", LAYER)


def layers_of(framework, path):
    """Where the unrolled network has the layers of a leaf of the scanned one."""
    one = f"{LAYER[framework]}/"
    many = "layers/block_{}/" if framework == "linen" else "blocks/{}/"
    if not path.startswith(one):
        return None
    return [many.format(i) + path.removeprefix(one) for i in range(3)]


def unrolled(framework, tree):
    """The leaves of something of the scanned network, as the unrolled one has them."""
    found = {}
    for path, leaf in leaves_of(tree).items():
        layers = layers_of(framework, path)
        found |= (
            {path: leaf} if layers is None else dict(zip(layers, leaf, strict=True))
        )
    return found


def pair(framework, seed=0):
    """The same parameters for the unrolled and the scanned network."""
    shapes = real_networks.get(f"{framework}/gpt").params
    stack = real_networks.get(f"{framework}/gpt_scanned").params
    values = exact(shapes, seed)
    stacked = {
        path: values[path] if layers is None else np.stack([values[p] for p in layers])
        for path, _ in trees.named_leaves(stack)
        for layers in [layers_of(framework, path)]
    }
    return tree_of(shapes, values), tree_of(stack, stacked)


@functools.cache
def both(framework):
    """For each law what comes of the unrolled network, and of the scanned one."""
    chosen = [told(f"{framework}/{kind}") for kind in ("gpt", "gpt_scanned")]

    @jax.jit
    def run(params):
        return [
            {
                "magnitude": score.magnitude(p, where=w),
                "deviation": initializer.signed_deviation(p, where=w),
            }
            for p, w in zip(params, chosen, strict=True)
        ]

    return jax.device_get(run(pair(framework)))


@frameworks
@pytest.mark.parametrize("law", ["magnitude", "deviation"])
def test_a_stack_is_what_its_layers_are(framework, law):
    one, stacked = (out[law] for out in both(framework))
    one, stacked = leaves_of(one), unrolled(framework, stacked)
    assert one.keys() == stacked.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(stacked[path], leaf, err_msg=path)


@frameworks
@pytest.mark.parametrize("density", [0.02, 0.1, 0.6])
def test_a_stack_has_the_erk_of_its_layers(framework, density):
    one, stacked = (
        allocation.erk(
            real_networks.get(name).params, density=density, where=told(name)
        )
        for name in (f"{framework}/gpt", f"{framework}/gpt_scanned")
    )
    for path, share in leaves_of(stacked).items():
        for layer in layers_of(framework, path) or [path]:
            assert leaves_of(one)[layer] == share


# Every network. By shapes.


@every_network
def test_draws_have_the_shapes_of_their_parameters(name):
    net, chosen, found = real_networks.get(name), told(name), kernels(name)

    def of(params, key):
        draw = initializer.signed_constant()
        new = initializer.redraw(draw, params, where=chosen, key=key)
        return new, initializer.scores(params, where=chosen, key=key)

    new, scores = jax.eval_shape(of, net.params, KEY)
    assert jax.tree.structure(new) == jax.tree.structure(net.params)
    for (path, was), now in zip(net.leaves(), jax.tree.leaves(new), strict=True):
        assert (now.shape, now.dtype) == (was.shape, was.dtype), path
    shapes = {path: leaf.shape for path, leaf in leaves_of(scores).items()}
    assert shapes == {path: leaf.shape for path, (leaf, _) in found.items()}


@every_network
def test_erk_keeps_as_much_as_is_asked_for(name):
    net, found = real_networks.get(name), kernels(name)
    shares = leaves_of(allocation.erk(net.params, density=0.2, where=told(name)))
    assert shares.keys() == found.keys()
    sizes = {path: math.prod(leaf.shape) for path, (leaf, _) in found.items()}
    kept = sum(shares[path] * size for path, size in sizes.items())
    assert kept == pytest.approx(0.2 * sum(sizes.values()))


@every_network
def test_kernels_are_pruned_by_default_and_nothing_else(name):
    """No bias of attention, statistic of a stack, embedding or factor of LoRA."""
    net = real_networks.get(name)
    none = (None, real_networks.LOOKUP, real_networks.POSITIONS)
    state = jax.eval_shape(optim.prune(0.5).init, net.params)
    assert leaves_of(optim.mask_of(state)).keys() == {
        path
        for path, words in net.roles.items()
        if words not in none and "lora_" not in path
    }


# What once went wrong.


def test_pruning_a_scanned_network_leaves_its_norms_alone():
    """Their scales have rank 2 there, and equal at first, whole layers of them died."""
    name = "linen/residual_scanned"
    net = real_networks.get(name)
    optimizer = optax.chain(optax.adam(1e-2), optim.prune(0.5))

    @jax.jit
    def run(params, x):
        def loss(params):
            return jnp.mean((net.apply(params, x) - 1) ** 2)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        with jax.numpy_dtype_promotion("standard"):
            start = params, optimizer.init(params)
            return jax.lax.scan(step, start, length=30)[0]

    params = real_networks.make(name)
    params["layers"]["LayerNorm_0"]["scale"] = np.ones((4, 6), "f4")
    params, state = run(params, *real_networks.data(name))
    masks = leaves_of(optim.mask_of(state))
    assert masks.keys() == {"head/kernel", "layers/Dense_0/kernel"}
    assert masks["layers/Dense_0/kernel"].sum() == 72
    assert (np.asarray(params["layers"]["LayerNorm_0"]["scale"]) > 0.5).all()
