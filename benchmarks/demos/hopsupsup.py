"""Masks kept in a Hopfield network and found again: HopSupSup (Wortsman et al., 2020).

Five tasks of two digits each. A network of random weights learns a mask of activations
for each, and one matrix a layer stores them all. Then images come, without labels or
task, and the mask that they need is searched for by gradient descent.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

import maskjax
from benchmarks import _pictures, _tasks, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import initializer, masking, packing, stacking, superposition, where
from maskjax.recipes import hopsupsup, supsup

WIDTHS = (1024,), (1024, 2048), (512, 1024, 2048)
SEEDS, FEW_SEEDS = (5, 2, 5), (3, 2, 3)  # few for scikit-learn's
STEPS = 94  # one epoch of a task, for the 60,000 images of the paper
LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.9, 1e-4
SEARCH_RATE, STRENGTH = 500.0, 1.5e-3
SEARCH_STEPS, SEARCH_BATCH = 30, 64
SCALES = where.matching("scale")
SETTINGS = {
    "network": "two hidden layers, batch statistics, swish, without biases",
    "weights": "signed constant",
    "tasks": "classes 0-1, 2-3, ..., 10 outputs",
    "inputs": "standardized",
    "optimizer": "sgd, cosine",
    "learning_rate": LEARNING_RATE,
    "momentum": MOMENTUM,
    "weight_decay": DECAY,
    "search_optimizer": "sgd",
    "search_learning_rate": SEARCH_RATE,
    "strength": STRENGTH,
    "search_steps": SEARCH_STEPS,
    "search_batch_size": SEARCH_BATCH,
    "rule": "storkey",
}


class Network(nn.Module):
    """Two hidden layers, random weights without biases.

    Batch normalization is by the batch at hand; its scale is there to be masked.
    """

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits [B, 10] of images [B, H * W]."""
        dense = functools.partial(
            nn.Dense, use_bias=False, kernel_init=initializer.signed_constant()
        )
        for i in range(2):
            x = dense(self.width)(x)
            scale = self.param(f"scale_{i}", nn.initializers.ones, x.shape[-1:])
            x = nn.swish(scale * (x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-5))
        return dense(10)(x)


class Found(NamedTuple):
    """What came of K tasks, for one seed, or for S of them with a leading axis."""

    stored: Any  # [K], the accuracy under each task's own mask
    recovered: Any  # [K], under the mask that was found for the task's images
    # [K, T, K]: of the mask found for a task's images, after each step, the fraction of
    # entries that equals each of the stored ones.
    agreement: Any
    psi_bytes: Any  # of the memory
    mask_bytes: Any  # of all masks, one bit an entry


def run(context: Context) -> Outcome:
    """Masks of five tasks stored, and searched for, in networks of several widths."""
    data = _tasks.split(context.data.standardized().flat())
    widths = context.pick(WIDTHS)
    epochs, size, batches = _schedule(data)
    many = context.pick(SEEDS if size == _train.BATCH_SIZE else FEW_SEEDS)
    found = {}
    for width in widths:
        experiment = jax.jit(_experiment(width, data))
        seeds = context.track(f"hopsupsup: width {width}", many)
        each = [jax.device_get(experiment(*_inputs(data, seed))) for seed in seeds]
        found[width] = jax.tree.map(lambda *x: np.stack(x), *each)

    ends = {width: f.agreement[:, :, -1] for width, f in found.items()}  # [S, K, K]
    numbers = {
        "widths": widths,
        "stored_masks": {w: f.stored for w, f in found.items()},
        "recovered_masks": {w: f.recovered for w, f in found.items()},
        "agreement": {w: np.diagonal(end, 0, 1, 2) for w, end in ends.items()},
        "right_task_nearest": {
            w: end.argmax(-1) == np.arange(end.shape[1]) for w, end in ends.items()
        },
        "agreement_with_each": ends,
        "psi_bytes": {w: int(f.psi_bytes[0]) for w, f in found.items()},
        "mask_bytes": {w: int(f.mask_bytes[0]) for w, f in found.items()},
    }
    widest = {name: numbers[name][widths[-1]] for name in list(numbers)[1:]}
    agreement, named = found[widths[-1]].agreement, "width {}".format
    return Outcome(
        rows(
            "hopsupsup",
            exact=int((widest["agreement"] == 1).sum()),
            searches=widest["agreement"].size,
            first=_first_exact(agreement),
            right=int(widest["right_task_nearest"].sum()),
            tasks=agreement.shape[1],
            nearest={named(w): x for w, x in numbers["right_task_nearest"].items()},
            by_width={named(w): x for w, x in numbers["recovered_masks"].items()},
            width=widths[-1],
            widest=widest,
        ),
        SETTINGS | {"batch_size": size, "steps": epochs * batches, "seeds": many},
        numbers,
        [_draw_search(context, widths[-1], agreement[0])],
    )


def _schedule(data: Data) -> tuple[int, int, int]:
    """Epochs, batch size, and batches in an epoch: eight or more, as many steps."""
    images = data.x_train.shape[1]
    size = min(_train.BATCH_SIZE, images // 8)
    batches = images // size
    return max(round(STEPS / batches), 1), size, batches


def _experiment(width: int, data: Data) -> Any:
    """`(train, test, key) -> Found`: all about one network, to be compiled."""
    model = Network(width)

    def logits(params: Any, x: Array) -> Array:
        return model.apply({"params": params}, x)

    def entropy(params: Any, x: Array) -> Array:
        return superposition.logit_entropy(logits(params, x))

    def learn(weights: Any, x: Array, y: Array) -> Any:
        """The mask of one task, from batches [T, B, ...]."""

        def loss(scores: Any, _: Any, x: Array, y: Array) -> Array:
            params = maskjax.apply(weights, supsup.soft_mask(scores))
            return _train.cross_entropy(logits(params, x), y)

        optimizer = _sgd(optax.cosine_decay_schedule(LEARNING_RATE, len(x)))
        everything = masking.everything(weights, where=SCALES)
        scores = jax.tree.map(lambda m: jnp.zeros(m.shape), everything)
        step, start = _train.descend(loss, optimizer), _train.begin(optimizer, scores)
        member, _ = lax.scan(lambda m, batch: step(m, *batch), start, (x, y))
        return supsup.mask(member.params)

    def accuracy(weights: Any, mask: Any, x: Array, y: Array) -> Array:
        """Of batches [T, B, ...], whose statistics count."""
        params = maskjax.apply(weights, mask)
        right = lax.map(lambda b: logits(params, b[0]).argmax(-1) == b[1], (x, y))
        return right.mean(dtype=jnp.float32)

    def experiment(train: Any, test: Any, key: Array) -> Found:
        x, y = test
        weights = model.init(key, x[0, 0])["params"]
        masks = jax.vmap(learn, (None, 0, 0))(weights, *train)

        memory = hopsupsup.init(stacking.take(masks, 0))
        memory, _ = lax.scan(lambda m, z: (hopsupsup.store(m, z), None), memory, masks)

        how = {"optimizer": _sgd(SEARCH_RATE), "strength": STRENGTH}
        recover = functools.partial(hopsupsup.recover, entropy, **how)
        found = jax.vmap(recover, (None, None, 0))(weights, memory, x)
        once = min(data.x_test.shape[1] // x.shape[2], SEARCH_STEPS)
        stored, recovered = (
            jax.vmap(accuracy, (None, 0, 0, 0))(weights, m, x[:, :once], y[:, :once])
            for m in (masks, found.mask)
        )
        # Masks [K, T, ...] beside the stored ones [K, ...].
        path, own = (
            jnp.concatenate(jax.tree.leaves(m), axis=-1) for m in (found.path, masks)
        )
        agreement = (path[:, :, None] == own).mean(-1, dtype=jnp.float32)
        bits = _bytes(jax.vmap(packing.pack)(masks))
        return Found(stored, recovered, agreement, _bytes(memory.psi), bits)

    return experiment


def _sgd(rate: Any) -> optax.GradientTransformation:
    decayed = optax.add_decayed_weights(DECAY)
    return optax.chain(decayed, optax.sgd(rate, MOMENTUM))


def _inputs(data: Data, seed: int) -> tuple[Any, Any, Array]:
    """Batches for training and for the search, [K, T, B, ...], and a key."""
    rng = np.random.default_rng(seed)

    def batches(x: np.ndarray, y: np.ndarray, epochs: int, size: int) -> Any:
        rows = _train.orders(*y.shape, epochs=epochs, size=size, seed=rng)
        rows = rows.reshape(len(y), -1, size)
        each = np.arange(len(y))[:, None, None]
        return x[each, rows], y[each, rows]

    train = batches(data.x_train, data.y_train, *_schedule(data)[:2])
    # Test images come again where there are few.
    images = data.x_test.shape[1]
    size = min(SEARCH_BATCH, images)
    epochs = -(-SEARCH_STEPS // (images // size))
    test = batches(data.x_test, data.y_test, epochs, size)
    test = jax.tree.map(lambda x: x[:, :SEARCH_STEPS], test)
    return train, test, jax.random.key(seed)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _first_exact(agreement: np.ndarray) -> str:
    """After how many steps the searches that end at the right mask are there."""
    own = np.diagonal(agreement, axis1=1, axis2=3).swapaxes(1, 2)  # [S, K, T]
    exact = (own == 1)[own[..., -1] == 1]
    first = 1 + exact.argmax(-1)
    return f"{first.min()} to {first.max()}" if len(first) else "no"


def _draw_search(context: Context, width: int, agreement: np.ndarray) -> str:
    """How near the searches of one seed are to the right mask, and to the others."""
    tasks = np.arange(len(agreement))
    own = agreement[tasks, :, tasks]
    others = [np.delete(found, i, axis=1).max(1) for i, found in enumerate(agreement)]
    return _pictures.plot(
        context,
        "hopsupsup_search",
        f"HopSupSup: a search for stored masks, width {width}, {context.data.name}",
        range(1, SEARCH_STEPS + 1),
        {"right task": own.T, "nearest of the others": np.transpose(others)},
        xlabel="step",
        ylabel=f"fraction of equal entries: mean and range of {len(tasks)} tasks",
    )


DEMO = Demo("hopsupsup", "HopSupSup (Wortsman et al. 2020)", run, seconds=3)
