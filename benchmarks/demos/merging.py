"""Five fine-tuned networks in one: merging, with and without a mask for each task.

A network is fine-tuned on five kinds of images. What the five changed is merged into
one network: by task arithmetic, DARE, TIES and consensus; or into one vector, of which
a mask tells each task the entries that it uses (TALL-masks). Each task keeps its own
last layer. All that can be chosen is chosen on validation images. The start is far from
the tasks, a network for images as they are; or near, one that has seen a little of all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import maskjax
from benchmarks import _pictures, _train
from benchmarks._data import CLASSES, Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import error, rows
from maskjax import algebra, packing, score, select, where
from maskjax.recipes import merging

Array = jax.Array

SEEDS = 2, 3, 5
WIDTHS, BATCH_SIZE = (300, 100, CLASSES), 64
RATE = 1e-3
PRETRAINED = 1  # epochs of all kinds together, or as many images as they are
EPOCHS = {"digits": (8, 16, 16), "mnist": (2, 4, 8)}  # of each kind alone
MNIST_PIXELS = 28 * 28
HELD_OUT = 0.2  # of the training images, for validation
BLOCKS = 4  # along each side of an image

# How many times the mean of the task vectors is added; 5 is their sum.
FACTORS = 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0
# Five values for what else a method lets one choose.
TIES = 0.1, 0.2, 0.3, 0.5, 0.7
DARE = 0.1, 0.3, 0.5, 0.7, 0.9
THRESHOLDS = 0.2, 0.3, 0.4, 0.5, 0.6  # those of the paper

HEAD = "Dense_2"  # which each task keeps for itself
MERGES = where.floating & ~where.matching(HEAD)
MERGED = "task arithmetic", "DARE", "TIES", "consensus"  # into one network
TALL, LARGEST = "TALL-masks", "largest fifth of each"
SEPARATE, JOINT, START = "separate networks", "trained on all", "start"
STARTS = "near", "far"
SETTINGS = {
    "network": "-".join(map(str, WIDTHS)),
    "optimizer": "adam, cosine",
    "learning_rate": RATE,
    "batch_size": BATCH_SIZE,
    "inputs": "standardized",
    "held_out": HELD_OUT,
    "pretrained": PRETRAINED,
    "factors": FACTORS,
    "ties_densities": TIES,
    "dare_densities": DARE,
    "thresholds": THRESHOLDS,
}


class Images(NamedTuple):
    """Images of all kinds, [K, N, H * W], and labels [K, N]."""

    x: Any
    y: Any


class Problem(NamedTuple):
    """What is learned, chosen on, and judged on."""

    train: Images
    valid: Images
    test: Images


def run(context: Context) -> Outcome:
    """Accuracy of every kind of images, and bytes, for each way of merging."""
    problem, seeds = _problem(context.data), context.pick(SEEDS)
    large = np.prod(context.data.shape) >= MNIST_PIXELS
    epochs = context.pick(EPOCHS["mnist" if large else "digits"])
    trained = _fine_tuned(problem, seeds, epochs)
    found, chosen, masks = [], [], []
    for i in context.track("merging: networks", len(STARTS) * seeds):
        of_seed = jax.tree.map(lambda w: w[i], trained)  # noqa: B023
        one, settings, kept = _merged(*of_seed, problem, key=jax.random.key(i))
        found.append(one)
        chosen.append(settings)
        masks.append(kept)
    accuracy, chosen, density = (
        _by_start(each, seeds) for each in (found, chosen, map(_densities, masks))
    )
    relative = {
        start: {n: (a / each[SEPARATE]).mean(1) for n, a in each.items()}
        for start, each in accuracy.items()
    }
    means = jax.tree.map(np.mean, relative)
    numbers = {
        "kinds": [*KINDS],
        "accuracy": accuracy,
        "relative": relative,
        "bytes": _bytes(jax.tree.map(lambda w: w[0], trained[0]), masks[0]),
        "density": density,
        "chosen": chosen,
        "in_order": {
            start: means[start]["task arithmetic"]
            < max(means[start]["TIES"], means[start]["consensus"])
            for start in STARTS
        },
        "reached": {start: means[start][TALL] >= 0.98 for start in STARTS},
    }
    return Outcome(
        rows("merging", **numbers, **_shown(numbers), many=len(KINDS)),
        SETTINGS | {"seeds": seeds, "epochs": epochs},
        numbers,
        [_draw(context, accuracy, relative, numbers["bytes"])],
    )


def _by_start(found: Any, seeds: int) -> dict[str, dict[str, np.ndarray]]:
    """What was found for each network, [S, K], by start and method."""
    listed = list(found)
    return {
        start: {
            name: np.stack([one[name] for one in listed[i * seeds : (i + 1) * seeds]])
            for name in listed[0]
        }
        for i, start in enumerate(STARTS)
    }


def _shown(numbers: dict[str, Any]) -> dict[str, Any]:
    """What the rows show, by start."""
    accuracy, relative = numbers["accuracy"], numbers["relative"]
    return {
        "separate": {start: a[SEPARATE].mean(1) for start, a in accuracy.items()},
        "merged": {
            start: {name: each[name] for name in (START, *MERGED)}
            for start, each in relative.items()
        },
        "tall": {start: each[TALL] for start, each in relative.items()},
        "worst": {
            start: {name: a[name].mean(0).min() for name in (*MERGED, TALL)}
            for start, a in accuracy.items()
        },
        "kept": {start: each[TALL] for start, each in numbers["density"].items()},
        "others": {
            start: {name: each[name] for name in (LARGEST, JOINT)}
            for start, each in relative.items()
        },
    }


def _shuffled(x: np.ndarray) -> np.ndarray:
    """Images [N, H, W] whose blocks are in another order."""
    many, height, width = x.shape
    shape = many, BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS
    blocks = x.reshape(shape).swapaxes(2, 3).reshape(many, BLOCKS**2, *shape[2::2])
    blocks = blocks[:, np.random.default_rng(0).permutation(BLOCKS**2)]
    grid = blocks.reshape(many, BLOCKS, BLOCKS, *shape[2::2])
    return grid.swapaxes(2, 3).reshape(x.shape)


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned": lambda x: np.rot90(x, axes=(1, 2)),
    "inverted": lambda x: 1 - x,
    "mirrored": lambda x: x[:, :, ::-1],
    "blocks": _shuffled,
    "next label": lambda x: x,
}


def _problem(data: Data) -> Problem:
    mean, deviation = data.x_train.mean(), data.x_train.std()
    held = round(HELD_OUT * len(data.x_train))

    def images(x: np.ndarray, y: np.ndarray) -> Images:
        kinds = np.stack([change(x) for change in KINDS.values()])
        flat = np.float32((kinds - mean) / deviation).reshape(*kinds.shape[:2], -1)
        labels = [(y + (name == "next label")) % CLASSES for name in KINDS]
        return Images(jnp.asarray(flat), jnp.asarray(np.stack(labels)))

    return Problem(
        images(data.x_train[held:], data.y_train[held:]),
        images(data.x_train[:held], data.y_train[:held]),
        images(data.x_test, data.y_test),
    )


def _logits(params: Any, x: Array) -> Array:
    return _train.MLP(WIDTHS).logits(params, x)


def _loss(params: Any, rest: None, x: Array, y: Array) -> Array:
    return _train.cross_entropy(_logits(params, x), y)


def _trained(params: Any, rows: Array, x: Array, y: Array) -> Any:
    """Parameters after the steps of rows [steps, B]."""
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, len(rows)))
    step = _train.descend(_loss, optimizer)
    return _train.scan(step, _train.begin(optimizer, params), rows, x, y)[0].params


def _fine_tuned(problem: Problem, seeds: int, epochs: int) -> tuple[Any, Any, Any]:
    """Starts [P, ...], networks [P, K, ...], and others [P, ...] that learn all kinds.

    P counts starts and then seeds. The others see as many images as all K networks
    together.
    """
    x, y = problem.train
    many, images, pixels = x.shape
    all_x, all_y = x.reshape(-1, pixels), y.reshape(-1)
    upright = jnp.tile(x[-1], (many, 1)), jnp.tile((y[-1] - 1) % CLASSES, many)

    def order(networks: int, samples: int, epochs: int, seed: int) -> np.ndarray:
        how = {"epochs": epochs, "size": BATCH_SIZE, "seed": seed}
        steps = _train.orders(networks, samples, **how)
        return steps.reshape(networks, -1, BATCH_SIZE)

    of_seeds = jax.vmap(_trained, in_axes=(0, 0, None, None))
    of_starts = jax.jit(jax.vmap(of_seeds, in_axes=(None, 0, 0, 0)))
    of_kinds = jax.vmap(_trained, in_axes=(None, 0, 0, 0))
    each = jax.jit(jax.vmap(of_kinds, in_axes=(0, 0, None, None)))
    random = _train.glorot(np.random.default_rng(0), (pixels, *WIDTHS), seeds)
    rows = np.stack([order(seeds, len(all_x), PRETRAINED, 1)] * len(STARTS))
    data = (jnp.stack(pair) for pair in zip((all_x, all_y), upright, strict=True))
    start = of_starts(random, rows, *data)
    start = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), start)
    networks = len(STARTS) * seeds
    rows = order(networks * many, images, epochs, 2)
    tuned = each(start, rows.reshape(networks, many, -1, BATCH_SIZE), x, y)
    rows = order(networks, len(all_x), epochs, 3)
    joint = jax.jit(of_seeds)(start, rows, all_x, all_y)
    return jax.block_until_ready((start, tuned, joint))


def _accuracies(params: Any, heads: Any, images: Images) -> Array:
    """The accuracy on each kind of images, [K], of one network with K heads."""
    of_head = lambda head: {**params, HEAD: head}  # noqa: E731
    return _accuracies_each(jax.vmap(of_head)(heads), images)


def _accuracies_each(params: Any, images: Images) -> Array:
    """The accuracy on each kind of images, [K], of a network for each."""
    of_kind = lambda params, x, y: _train.accuracy(_logits(params, x), y)  # noqa: E731
    return jax.vmap(of_kind)(params, *images)


def _repeated(params: Any) -> Any:
    """One network for each kind of images."""
    return jax.tree.map(lambda w: jnp.stack([w] * len(KINDS)), params)


@jax.jit
def _merged(
    start: Any, networks: Any, joint: Any, problem: Problem, *, key: Array
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Test accuracies [K], what was chosen, and masks, by method."""
    heads = networks[HEAD]
    vectors = merging.task_vectors(start, networks, where=MERGES)
    mean, total = merging.mean(vectors), merging.total(vectors)

    def agreed(threshold: Array) -> Any:
        masks = merging.tall_masks(vectors, total, threshold=threshold)
        return maskjax.apply(mean, merging.consensus(masks))

    def dropped(density: Array) -> Any:
        return merging.mean(merging.dare(vectors, density=density, key=key))

    ways = {
        "task arithmetic": (lambda _: mean, (1.0,)),
        "DARE": (dropped, DARE),
        "TIES": (lambda density: merging.ties(vectors, density=density), TIES),
        "consensus": (agreed, THRESHOLDS),
    }
    found = {
        START: _accuracies_each(_repeated(start), problem.test),
        JOINT: _accuracies_each(_repeated(joint), problem.test),
        SEPARATE: _accuracies_each(networks, problem.test),
    }
    chosen = {}
    for name, (make, values) in ways.items():
        network, chosen[name] = _best(start, heads, make, values, problem.valid)
        found[name] = _accuracies(network, heads, problem.test)
    tall, chosen[TALL] = _tall(start, heads, vectors, total, problem.valid)
    largest = jax.vmap(_largest)(vectors)
    for name, vector, masks in ((TALL, total, tall), (LARGEST, vectors, largest)):
        axes = (None if name == TALL else 0, 0)
        of_task = jax.vmap(lambda v, m: merging.network(start, v, m), axes)
        network = of_task(vector, packing.unpack(masks)) | {HEAD: heads}
        found[name] = _accuracies_each(network, problem.test)
    return found, chosen, {TALL: tall, LARGEST: largest}


def _best(
    start: Any, heads: Any, make: Callable[[Array], Any], values: Any, valid: Images
) -> tuple[Any, Array]:
    """The merged network that is best on validation images, and its settings.

    `make` merges, given one of the values. Its vector is added so many times.
    """
    values, factors = np.meshgrid(np.float32(values), np.float32(FACTORS))
    settings = jnp.asarray(values.ravel()), jnp.asarray(factors.ravel())

    def network(value: Array, factor: Array) -> Any:
        return merging.network(start, make(value), scale=factor)

    def worth(setting: tuple[Array, Array]) -> Array:
        return _accuracies(network(*setting), heads, valid).mean()

    best = jnp.argmax(lax.map(worth, settings))
    chosen = [each[best] for each in settings]
    return network(*chosen), jnp.stack(chosen)


def _tall(
    start: Any, heads: Any, vectors: Any, total: Any, valid: Images
) -> tuple[Any, Array]:
    """Packed masks [K] of the thresholds [K] that are best on validation images."""
    tried = jnp.float32(THRESHOLDS)

    def worth(threshold: Array) -> Array:
        masks = merging.tall_masks(vectors, total, threshold=threshold)
        networks = jax.vmap(lambda mask: merging.network(start, total, mask))(masks)
        return _accuracies_each(networks | {HEAD: heads}, valid)

    threshold = tried[jnp.argmax(lax.map(worth, tried), axis=0)]
    masks = merging.tall_masks(vectors, total, threshold=threshold)
    return jax.vmap(packing.pack)(masks), threshold


def _largest(vector: Any) -> Any:
    """The packed mask of a task's largest entries: no task's is touched by another's.

    With five tasks, a fifth of each takes as many bytes as one merged vector.
    """
    scores = score.magnitude(vector, where=MERGES)
    return packing.pack(select.top_k(scores, density=1 / len(KINDS), scope="global"))


def _densities(masks: dict[str, Any]) -> dict[str, np.ndarray]:
    """The share of all weights that each task's mask keeps, [K]."""
    share = jax.vmap(algebra.density)
    return {n: np.asarray(share(packing.unpack(m))) for n, m in masks.items()}


def _bytes(start: Any, masks: dict[str, Any]) -> dict[str, int]:
    """What is to be stored, to the byte. Each task has a last layer of its own."""

    def size(tree: Any) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    many, heads = len(KINDS), len(KINDS) * size(start[HEAD])
    one = size(start) - size(start[HEAD])
    kept = int(algebra.count(packing.unpack(masks[LARGEST])))
    return {
        SEPARATE: many * one + heads,
        "one merged network": one + heads,
        TALL: 2 * one + size(masks[TALL]) + heads,  # the start, the vector, the masks
        LARGEST: one + 4 * kept + size(masks[LARGEST]) + heads,
    }


def _draw(context: Context, accuracy: Any, relative: Any, sizes: dict[str, int]) -> str:
    title = f"Five networks merged, {context.data.name}"
    drawn, (*left, right) = _pictures.page(title, 3, size=(13, 4.8))
    names = [*MERGED, TALL, SEPARATE]
    places, width = np.arange(len(KINDS)), 0.8 / len(names)
    for axes, start in zip(left, STARTS, strict=True):
        for i, name in enumerate(names):
            at = places + (i - (len(names) - 1) / 2) * width
            found = accuracy[start][name]
            axes.bar(at, found.mean(0), yerr=error(found, 0), width=width)
        axes.set_xticks(places, [*KINDS], fontsize="small")
        axes.set(title=f"{start} start", xlabel="kind of images", ylim=(0, 1))
    left[0].set_ylabel("test accuracy: mean and standard error")
    for i, name in enumerate((*names, LARGEST)):
        kib = sizes.get(name, sizes["one merged network"]) / 1024
        kib += 0.015 * (i - 3) * sizes[SEPARATE] / 1024  # none hides another
        for start, marker in zip(STARTS, "os", strict=True):
            share = relative[start][name]
            how = {"fmt": f"C{i}{marker}", "label": name * (marker == "o")}
            right.errorbar(kib, share.mean(), error(share), **how)
    right.set(title="disks: near start, squares: far", xlabel="KiB to store, about")
    right.set_ylabel("accuracy, relative to separate networks")
    _pictures.beside(right)
    return _pictures.save(drawn, context, "merging")


DEMO = Demo(
    "merging",
    "merging: TALL-masks, TIES, DARE, task arithmetic (Wang et al., 2024, and others)",
    run,
    seconds=11,
)
