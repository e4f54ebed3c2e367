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

import maskjax
from maskjax import allocation, initializer, masking, optim, score, select, structure
from maskjax._core import axes, trees
from maskjax.recipes import edge_popup
from tests import real_networks
from tests.real_networks import UNKNOWN

KEY = jax.random.key(0)
# Unrolled transformers have the kernels of scanned ones, many times.
UNROLLED = [f"/gpt{kind}" for kind in ("", "_tied", "_grouped")]
NAMES = [n for n in real_networks.NAMES if not n.endswith(tuple(UNROLLED))]
every_network = pytest.mark.parametrize("name", NAMES)
# One of each kind; the others are among the slow tests.
FEW = ("linen/gpt_nested", "nnx/resnet", "nnx/experts", "equinox/cnns", "plain/vision")


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


# Scanned and unrolled. Scopes other than "global", which breaks ties between leaves.

LAYER = {"linen": "layers/blocks", "nnx": "blocks", "equinox": "blocks"}
frameworks = pytest.mark.parametrize("framework", LAYER)
# A kernel of each shape of Linen's; all kernels are among the slow tests.
SOME = ("query/kernel", "out/kernel", "up/kernel", "head/kernel")
mostly_linen = pytest.mark.parametrize(
    ("framework", "some"),
    [("linen", True), *(pytest.param(f, False, marks=pytest.mark.slow) for f in LAYER)],
    ids=lambda value: value if isinstance(value, str) else "some" if value else "all",
)
STRUCTURES = {
    "entries": structure.Entries(),
    "units": structure.Units(),
    "inputs": structure.Units("inputs"),
    "2:4": structure.NofM(1, 2),
    "blocks": structure.Block((2, 2)),
}
WAYS = {
    **{f"{name} by layer": ("layer", name) for name in STRUCTURES},
    **{f"{name} by output": ("output", name) for name in ("entries", "2:4")},
}


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


def steps(step, carry):
    """What 20 steps make of something."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=20)[0]


def pruned(params, chosen):
    """Each layer is pruned to a quarter, while weights shrink."""
    density = optax.linear_schedule(1.0, 0.25, 15)
    prune = optim.prune(density, every=3, scope="layer", where=chosen)
    optimizer = optax.chain(optax.sgd(1 / 64), prune)

    def step(carry):
        params, state = carry
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params, state = steps(step, (params, optimizer.init(params)))
    return {"pruned": params, "mask": optim.mask_of(state)}


def rewired(params, target, mask, chosen):
    """Each layer is rewired, while weights approach a target."""
    how = {"rate": 0.25, "every": 3, "scope": "layer", "where": chosen, "key": KEY}
    optimizer = optim.rigl(0.3, **how)
    state = optimizer.init(params)._replace(mask=mask)

    def step(carry):
        params, state = carry
        slopes = jax.tree.map(jnp.subtract, params, target)
        updates = jax.tree.map(lambda slope: -slope / 8, slopes)
        updates, state = optimizer.update(updates, state, params, gradients=slopes)
        return optax.apply_updates(params, updates), state

    params, state = steps(step, (maskjax.apply(params, mask), state))
    return {"rewired": params, "rigl": state.mask}


def popped_up(params, target, chosen):
    """Scores that approach a target through edge-popup's masks of each layer."""
    how = {"density": 0.3, "scope": "layer", "where": chosen}

    def loss(scores):
        sparse = maskjax.apply(params, edge_popup.soft_mask(scores, **how))
        parts = jax.tree.map(lambda p, t: (p * t).sum(), sparse, target)
        return sum(jax.tree.leaves(parts))

    def step(scores):
        return jax.tree.map(lambda s, d: s - d / 8, scores, jax.grad(loss)(scores))

    scores = steps(step, score.magnitude(params, where=chosen))
    return {"scores": scores, "edge-popup": edge_popup.mask(scores, **how)}


LAWS = (
    *WAYS, "movement", "deviation", "pruned", "mask", "rewired", "rigl", "scores",
    "edge-popup",
)  # fmt: skip


def everything(params, target, chosen):
    """What the laws speak of; a program each, for one of all compiles much longer."""

    def choose(scores, scope, name):
        how = {"scope": scope, "structure": STRUCTURES[name], "where": chosen}
        return select.top_k(scores, density=0.3, **how)

    of = lambda law: jax.jit(functools.partial(law, chosen=chosen))  # noqa: E731
    at = lambda law: jax.jit(functools.partial(law, where=chosen))  # noqa: E731
    scores = score.magnitude(params, where=chosen)
    masks = {
        way: jax.jit(functools.partial(choose, scope=scope, name=name))(scores)
        for way, (scope, name) in WAYS.items()
    }
    return {
        **masks,
        "movement": at(score.movement)(params, target),
        "deviation": at(initializer.signed_deviation)(params),
        **of(pruned)(params),
        **of(rewired)(params, target, masks["entries by layer"]),
        **of(popped_up)(params, target),
    }


@functools.cache
def both(framework, *, some):
    """For each law what comes of the unrolled network, and of the scanned one."""
    chosen = [told(f"{framework}/{kind}") for kind in ("gpt", "gpt_scanned")]
    if some:
        chosen = [one & (lambda path, _: path.endswith(SOME)) for one in chosen]
    pairs = zip(pair(framework), pair(framework, seed=1), chosen, strict=True)
    return [jax.device_get(everything(*one)) for one in pairs]


@mostly_linen
@pytest.mark.parametrize("law", LAWS)
def test_a_stack_is_what_its_layers_are(framework, some, law):
    one, stacked = (out[law] for out in both(framework, some=some))
    one, stacked = leaves_of(one), unrolled(framework, stacked)
    assert one.keys() == stacked.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(stacked[path], leaf, err_msg=path)


@mostly_linen
def test_pruning_removes_as_much_of_every_layer(framework, some):
    one, _ = both(framework, some=some)
    for path, mask in leaves_of(one["mask"]).items():
        assert mask.sum() == math.floor(mask.size / 4 + 0.5), path


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


def divisor(n):
    """The smallest divisor above 1."""
    return next(k for k in range(2, n + 1) if n % k == 0)


def fitting(name):
    """For every leaf, N:M and blocks that divide its inputs and outputs."""
    net, found = real_networks.get(name), kernels(name)

    def of(path, kind):
        if path not in found:
            return None
        leaf, roles = found[path]
        inputs = math.prod(leaf.shape[i] for i in roles.inputs)
        outputs = math.prod(leaf.shape[i] for i in roles.outputs)
        m = 1 if inputs == 1 else divisor(inputs)
        return (
            structure.NofM(1, m)
            if kind == "2:4"
            else structure.Block((m, divisor(outputs)))
        )

    treedef = jax.tree.structure(net.params)
    return {
        kind: treedef.unflatten([of(path, kind) for path, _ in net.leaves()])
        for kind in ("2:4", "blocks")
    }


# Masks of each shape; those of entries and of groups in a scope are held by values.
SHAPED = {
    **{f"{name} by layer": ("layer", name) for name in ("units", "inputs", "blocks")},
    "global": ("global", "2:4"),
}


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        *((name, SHAPED) for name in FEW),
        *(pytest.param(n, WAYS | SHAPED, marks=pytest.mark.slow) for n in NAMES),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}_ways",
)
def test_masks_and_draws_have_the_shapes_of_their_parameters(name, ways):
    net, chosen, found = real_networks.get(name), told(name), kernels(name)
    structures = STRUCTURES | fitting(name)

    def of(params, key):
        scores = score.magnitude(params, where=chosen)
        masks = {
            way: select.top_k(
                scores, density=0.3, scope=scope, structure=structures[kind],
                where=chosen,
            )
            for way, (scope, kind) in ways.items()
        }  # fmt: skip
        draw = initializer.signed_constant()
        new = initializer.redraw(draw, params, where=chosen, key=key)
        old = initializer.scores_of(params, masks["units by layer"], where=chosen)
        return masks, old, new

    masks, scores, new = jax.eval_shape(of, net.params, KEY)
    assert jax.tree.structure(new) == jax.tree.structure(net.params)
    for (path, was), now in zip(net.leaves(), jax.tree.leaves(new), strict=True):
        assert (now.shape, now.dtype) == (was.shape, was.dtype), path
    for way, mask in (masks | {"scores": scores}).items():
        mask = leaves_of(mask)
        assert mask.keys() == found.keys()
        for path, (leaf, roles) in found.items():
            kept = None
            if way in ("units by layer", "scores"):
                kept = roles.stack + roles.outputs
            elif way == "inputs by layer":
                kept = roles.stack + roles.inputs
            expected = tuple(
                n if kept is None or i in kept else 1 for i, n in enumerate(leaf.shape)
            )
            assert mask[path].shape == expected, (way, path)


@every_network
def test_erk_keeps_as_much_as_is_asked_for(name):
    net, found = real_networks.get(name), kernels(name)
    shares = leaves_of(allocation.erk(net.params, density=0.2, where=told(name)))
    assert shares.keys() == found.keys()
    sizes = {path: math.prod(leaf.shape) for path, (leaf, _) in found.items()}
    kept = sum(shares[path] * size for path, size in sizes.items())
    assert kept == pytest.approx(0.2 * sum(sizes.values()))


@every_network
def test_kernels_have_masks_by_default_and_nothing_else(name):
    """No bias of attention, statistic of a stack, embedding or factor of LoRA."""
    net = real_networks.get(name)
    none = (None, real_networks.LOOKUP, real_networks.POSITIONS)
    chosen = jax.eval_shape(masking.everything, net.params)
    assert leaves_of(chosen).keys() == {
        path
        for path, words in net.roles.items()
        if words not in none and "lora_" not in path
    }


# Values, held against NumPy.


def laid(leaf, roles):
    """Something of a leaf as [stack, window, inputs, outputs]."""
    groups = [roles.of(role) for role in axes.ROLES]
    sizes = [math.prod(leaf.shape[i] for i in group) for group in groups]
    return np.transpose(leaf, sum(groups, ())).reshape(sizes)


def best(x, density):
    """Of each row the largest entries; among equals the first in the leaf's order."""
    k = math.floor(density * x.shape[1] + 0.5)
    order = np.argsort(-x, axis=1, kind="stable")[:, :k]
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, order, True, axis=1)  # noqa: FBT003
    return mask


MEASURED = (
    "linen/gpt_nested",
    "linen/convolutions",
    "nnx/gpt_grouped_scanned",
    "equinox/cnns",
    "plain/experts",
)


def one_of_each_layout(name):
    """Of the kernels of a network the first with each order of the roles of axes."""
    first = {}
    for path, (leaf, roles) in kernels(name).items():
        first.setdefault((leaf.ndim, roles), path)
    return frozenset(first.values())


@functools.cache
def masks_of(name, *, few):
    """Scores that are a permutation in each leaf, and masks of them."""
    rng = np.random.default_rng(1)
    values = {
        path: rng.permutation(math.prod(leaf.shape)).reshape(leaf.shape).astype("f4")
        for path, leaf in real_networks.get(name).leaves()
    }
    chosen, structures = told(name), STRUCTURES | fitting(name)
    if few:
        paths = one_of_each_layout(name)
        chosen = chosen & (lambda path, _: path in paths)

    @jax.jit
    def run(params):
        scores = score.magnitude(params, where=chosen)
        choose = functools.partial(select.top_k, scores, density=0.3, where=chosen)
        return {
            way: choose(scope=scope, structure=structures[kind])
            for way, (scope, kind) in WAYS.items()
            if kind in ("entries", "units")
        } | {
            "2:4": select.top_k(
                scores, density=1.0, structure=structures["2:4"], where=chosen
            )
        }

    params = tree_of(real_networks.get(name).params, values)
    return values, {k: leaves_of(v) for k, v in jax.device_get(run(params)).items()}


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize(
    "few", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_each_layer_each_output_and_each_group_keeps_its_best(name, few):
    values, masks = masks_of(name, few=few)
    assert few or masks["2:4"].keys() == kernels(name).keys()
    for path in masks["2:4"]:
        leaf, roles = kernels(name)[path]
        x = laid(values[path], roles)
        stack, *_, outputs = x.shape
        layer = laid(masks["entries by layer"][path], roles)
        kept = best(x.reshape(stack, -1), 0.3)
        np.testing.assert_array_equal(layer.reshape(stack, -1), kept, err_msg=path)
        output = laid(masks["entries by output"][path], roles)
        kept = best(np.moveaxis(x, -1, 1).reshape(stack * outputs, -1), 0.3)
        output = np.moveaxis(output, -1, 1).reshape(stack * outputs, -1)
        np.testing.assert_array_equal(output, kept, err_msg=path)
        units = laid(np.broadcast_to(masks["units by layer"][path], leaf.shape), roles)
        kept = best(x.sum((1, 2), dtype="f8"), 0.3)[:, None, None]
        np.testing.assert_array_equal(units, np.broadcast_to(kept, x.shape), path)
        m = 1 if x.shape[2] == 1 else divisor(x.shape[2])
        groups = laid(masks["2:4"][path], roles)
        groups = groups.reshape(*x.shape[:2], -1, m, outputs)
        assert (groups.sum(-2) == 1).all(), path


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
