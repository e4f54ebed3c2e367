"""Five fine-tuned networks in one: merging, with and without a mask for each task.

One network learns a little of five kinds of images, and is fine-tuned on each of them.
What the five changed is merged into one network: by task arithmetic, DARE, TIES and
consensus; or into one vector, of which a mask tells each task the entries that it uses
(TALL-masks). All that can be chosen is chosen on validation images.
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
WIDTHS, BATCH_SIZE, RATE = (300, 100, CLASSES), 64, 1e-3
PRETRAINED = {"digits": (2, 2, 2), "mnist": (1, 1, 1)}  # epochs of all kinds together
EPOCHS = {"digits": (8, 16, 16), "mnist": (2, 4, 8)}  # of each kind alone
MNIST_PIXELS = 28 * 28
HELD_OUT = 0.2  # of the training images, for validation
BLOCKS = 4  # along each side of an image

# How many times the mean of the task vectors is added; 5 is their sum.
FACTORS = 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0
# Five values for what else a method lets one choose.
TIES = 0.1, 0.2, 0.3, 0.5, 0.7
DARE = 0.1, 0.3, 0.5, 0.7, 0.9
THRESHOLDS = 0.2, 0.3, 0.4, 0.5, 0.6  # those of the paper

MERGED = "task arithmetic", "DARE", "TIES", "consensus"  # into one network
TALL, LARGEST = "TALL-masks", "largest fifth of each"
SEPARATE, JOINT, START = "separate networks", "trained on all", "start"
SETTINGS = {
    "network": "-".join(map(str, WIDTHS)),
    "optimizer": "adam, cosine",
    "learning_rate": RATE,
    "batch_size": BATCH_SIZE,
    "inputs": "standardized",
    "held_out": HELD_OUT,
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
    epochs = tuple(
        context.pick(sizes["mnist" if large else "digits"])
        for sizes in (PRETRAINED, EPOCHS)
    )
    start, networks, joint = _fine_tuned(context, problem, seeds, epochs)
    found, chosen, masks = [], [], []
    for seed in context.track("merging: networks", seeds):
        of_seed = jax.tree.map(lambda w: w[seed], (start, networks, joint))  # noqa: B023
        one, settings, kept = _merged(*of_seed, problem, key=jax.random.key(seed))
        found.append(one)
        chosen.append(settings)
        masks.append(kept)
    accuracy, chosen, density = (
        {name: np.stack([each[name] for each in list_]) for name in list_[0]}
        for list_ in (found, chosen, [_densities(kept) for kept in masks])
    )
    relative = {n: (a / accuracy[SEPARATE]).mean(1) for n, a in accuracy.items()}
    means = {name: share.mean() for name, share in relative.items()}
    best = max(MERGED[2:], key=means.__getitem__)
    numbers = {
        "kinds": [*KINDS],
        "accuracy": accuracy,
        "relative": relative,
        "bytes": _bytes(jax.tree.map(lambda w: w[0], start), masks[0]),
        "density": density,
        "chosen": chosen,
        "in_order": means["task arithmetic"] < means[best] < means[TALL],
        "reached": means[TALL] >= 0.98,
    }
    shown = {
        "separate": accuracy[SEPARATE].mean(1),
        "worst": {n: accuracy[n].mean(0).min() for n in (*MERGED, TALL)},
        "shares": {n: relative[n] for n in (START, *MERGED, TALL)},
        "others": {n: relative[n] for n in (LARGEST, JOINT)},
        "best": best,
        "many": len(KINDS),
    }
    return Outcome(
        rows("merging", **numbers, **shown),
        SETTINGS | {"seeds": seeds, "pretrained": epochs[0], "epochs": epochs[1]},
        numbers,
        [_draw(context, accuracy, relative, numbers["bytes"])],
    )


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


def _fine_tuned(
    context: Context, problem: Problem, seeds: int, epochs: tuple[int, int]
) -> tuple[Any, Any, Any]:
    """Starts [S, ...], networks [S, K, ...], and others [S, ...] that learn all kinds.

    The others see as many images as all networks of a seed together.
    """
    x, y = problem.train
    many, images, pixels = x.shape
    all_x, all_y = x.reshape(-1, pixels), y.reshape(-1)
    pretrained, tuned = epochs

    def order(networks: int, samples: int, epochs: int, seed: int) -> np.ndarray:
        how = {"epochs": epochs, "size": BATCH_SIZE, "seed": seed}
        steps = _train.orders(networks, samples, **how)
        return steps.reshape(networks, -1, BATCH_SIZE)

    of_seeds = jax.vmap(_trained, in_axes=(0, 0, None, None))
    of_kinds = jax.vmap(_trained, in_axes=(None, 0, 0, 0))
    each = jax.jit(jax.vmap(of_kinds, in_axes=(0, 0, None, None)))
    together = jax.jit(of_seeds)
    stages = iter(context.track("merging: training", 3))
    next(stages)
    random = _train.glorot(np.random.default_rng(0), (pixels, *WIDTHS), seeds)
    start = together(random, order(seeds, len(all_x), pretrained, 1), all_x, all_y)
    next(stages)
    rows = order(seeds * many, images, tuned, 2).reshape(seeds, many, -1, BATCH_SIZE)
    networks = jax.block_until_ready(each(start, rows, x, y))
    next(stages)
    joint = together(start, order(seeds, len(all_x), tuned, 3), all_x, all_y)
    return start, networks, jax.block_until_ready(joint)


def _accuracies(params: Any, images: Images) -> Array:
    """The accuracy of one network on each kind of images, [K]."""
    of_kind = lambda x, y: _train.accuracy(_logits(params, x), y)  # noqa: E731
    return jax.vmap(of_kind)(*images)


def _accuracies_each(params: Any, images: Images) -> Array:
    """The accuracy of a network for each kind of images, [K]."""
    of_kind = lambda params, x, y: _train.accuracy(_logits(params, x), y)  # noqa: E731
    return jax.vmap(of_kind)(params, *images)


@jax.jit
def _merged(
    start: Any, networks: Any, joint: Any, problem: Problem, *, key: Array
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Test accuracies [K], what was chosen, and masks, by method."""
    vectors = merging.task_vectors(start, networks)
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
        START: _accuracies(start, problem.test),
        JOINT: _accuracies(joint, problem.test),
        SEPARATE: _accuracies_each(networks, problem.test),
    }
    chosen = {}
    for name, (make, values) in ways.items():
        network, chosen[name] = _best(start, make, values, problem.valid)
        found[name] = _accuracies(network, problem.test)
    tall, chosen[TALL] = _tall(start, vectors, total, problem.valid)
    largest = jax.vmap(_largest)(vectors)
    for name, vector, masks in ((TALL, total, tall), (LARGEST, vectors, largest)):
        by_task = (None if name == TALL else 0, 0)
        of_task = jax.vmap(lambda v, m: merging.network(start, v, m), by_task)
        network = of_task(vector, packing.unpack(masks))
        found[name] = _accuracies_each(network, problem.test)
    return found, chosen, {TALL: tall, LARGEST: largest}


def _best(
    start: Any, make: Callable[[Array], Any], values: Any, valid: Images
) -> tuple[Any, Array]:
    """The merged network that is best on validation images, and its settings.

    `make` merges, given one of the values. Its vector is added so many times.
    """
    values, factors = np.meshgrid(np.float32(values), np.float32(FACTORS))
    settings = jnp.asarray(values.ravel()), jnp.asarray(factors.ravel())

    def network(value: Array, factor: Array) -> Any:
        return merging.network(start, make(value), scale=factor)

    def worth(setting: tuple[Array, Array]) -> Array:
        return _accuracies(network(*setting), valid).mean()

    best = jnp.argmax(lax.map(worth, settings))
    chosen = [each[best] for each in settings]
    return network(*chosen), jnp.stack(chosen)


def _tall(start: Any, vectors: Any, total: Any, valid: Images) -> tuple[Any, Array]:
    """Packed masks [K] of the thresholds [K] that are best on validation images."""
    tried = jnp.float32(THRESHOLDS)

    def worth(threshold: Array) -> Array:
        masks = merging.tall_masks(vectors, total, threshold=threshold)
        networks = jax.vmap(lambda mask: merging.network(start, total, mask))(masks)
        return _accuracies_each(networks, valid)

    threshold = tried[jnp.argmax(lax.map(worth, tried), axis=0)]
    masks = merging.tall_masks(vectors, total, threshold=threshold)
    return jax.vmap(packing.pack)(masks), threshold


def _largest(vector: Any) -> Any:
    """The packed mask of a task's largest entries: no task's is touched by another's.

    With five tasks, a fifth of each takes as many bytes as one merged vector.
    """
    scores = score.magnitude(vector, where=where.floating)
    return packing.pack(select.top_k(scores, density=1 / len(KINDS), scope="global"))


def _densities(masks: dict[str, Any]) -> dict[str, np.ndarray]:
    """The share of all weights that each task's mask keeps, [K]."""
    share = jax.vmap(algebra.density)
    return {n: np.asarray(share(packing.unpack(m))) for n, m in masks.items()}


def _bytes(start: Any, masks: dict[str, Any]) -> dict[str, int]:
    """What is to be stored, to the byte."""

    def size(tree: Any) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    one = size(start)
    kept = int(algebra.count(packing.unpack(masks[LARGEST])))
    return {
        SEPARATE: len(KINDS) * one,
        "one merged network": one,
        TALL: 2 * one + size(masks[TALL]),  # the start, the vector, and the masks
        LARGEST: one + 4 * kept + size(masks[LARGEST]),
    }


def _draw(
    context: Context, accuracy: Any, relative: Any, sizes: dict[str, int]
) -> str:
    title = f"Five networks merged, {context.data.name}"
    drawn, (left, right) = _pictures.page(title, 2, size=(12, 4.8))
    names = [*MERGED, TALL, SEPARATE]
    places, width = np.arange(len(KINDS)), 0.8 / len(names)
    for i, name in enumerate(names):
        at = places + (i - (len(names) - 1) / 2) * width
        how = {"width": width, "label": name, "yerr": error(accuracy[name], 0)}
        left.bar(at, accuracy[name].mean(0), **how)
    left.set_xticks(places, [*KINDS])
    left.set(ylabel="test accuracy: mean and standard error", ylim=(0, 1))
    left.legend(loc="lower left", fontsize="small")
    for name in (*MERGED, TALL, LARGEST, SEPARATE):
        kib = sizes.get(name, sizes["one merged network"]) / 1024
        how = {"yerr": error(relative[name]), "marker": "o", "label": name}
        right.errorbar(kib, relative[name].mean(), **how)
    right.set(xlabel="KiB to store", ylabel="accuracy, relative to separate networks")
    right.legend(loc="lower right", fontsize="small")
    return _pictures.save(drawn, context, "merging")


DEMO = Demo(
    "merging",
    "merging: TALL-masks, TIES, DARE, task arithmetic (Wang et al., 2024, and others)",
    run,
    seconds=12,
)
