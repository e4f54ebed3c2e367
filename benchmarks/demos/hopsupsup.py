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
from jax import lax

import maskjax
from benchmarks import _pictures, _tasks, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import initializer, masking, packing, stacking, superposition, where
from maskjax.recipes import hopsupsup, supsup

WIDTHS = (1024,), (1024,), (512, 1024, 2048)
SEEDS, FEW_SEEDS = (5, 2, 5), (3, 2, 3)  # few for scikit-learn's
STEPS = 94  # one epoch of a task, for the 60,000 images of the paper
LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.9, 1e-4
SEARCH_RATE, STRENGTH = 500.0, 1.5e-3
SEARCH_STEPS, SEARCH_BATCH = 30, 64
SCALES = where.matching("scale$")
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
ROWS = {
    "HopSupSup: on SplitMNIST the new mask converges to the stored mask of the right "
    "task in fewer than 30 steps (2048-2048)": "width {width}: to the bit in {exact} "
    "of {searches} searches, after {first} steps; right task nearest in {right}; "
    "accuracy {recovered:.1%}, with the masks that were stored {stored:.1%}",
    "(narrower networks: nothing is published)": "searches that end nearest to the "
    "right mask: {nearest:.0%}; accuracy: {by_width:.1%}",
    "a reservoir of constant size for all masks": "width {width}: {psi:,} bytes, for "
    "any number of tasks; the {tasks} masks as bits {bits:,}",
}


class Normalized(nn.Module):
    """Batch normalization by the batch at hand; the scale is there to be masked."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, W] to [B, W]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return scale * (x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-5)


class Network(nn.Module):
    """Two hidden layers, random weights without biases."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, 10] of images [B, H * W]."""
        for width in (self.width, self.width):
            x = nn.swish(Normalized()(_dense(width)(x)))
        return _dense(10)(x)


class Found(NamedTuple):
    """What came of K tasks, for one seed, or for S of them with a leading axis.

    Attributes:
        stored: [K], the accuracy under each task's own mask.
        recovered: [K], under the mask that was found for the task's images.
        agreement: [K, T, K], the fraction of entries in which the mask found for a
            task's images, after each step, equals each of the stored ones.
        entropies: [K, T].
        energies: [K, T].
        psi_bytes: Of the memory.
        mask_bytes: Of all masks, one bit an entry.
    """

    stored: Any
    recovered: Any
    agreement: Any
    entropies: Any
    energies: Any
    psi_bytes: Any
    mask_bytes: Any


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

    last = {width: _own(f.agreement[:, :, -1]) for width, f in found.items()}
    nearest = {
        width: f.agreement[:, :, -1].argmax(-1) == np.arange(f.agreement.shape[1])
        for width, f in found.items()
    }
    wide, exact = found[widths[-1]], last[widths[-1]] == 1
    return Outcome(
        rows=rows(
            ROWS,
            width=widths[-1],
            exact=int(exact.sum()),
            searches=exact.size,
            first=_first_exact(wide.agreement),
            right=int(nearest[widths[-1]].sum()),
            recovered=wide.recovered,
            stored=wide.stored,
            nearest={f"width {w}": x for w, x in nearest.items()},
            by_width={f"width {w}": f.recovered for w, f in found.items()},
            psi=int(wide.psi_bytes[0]),
            tasks=exact.shape[1],
            bits=int(wide.mask_bytes[0]),
        ),
        settings=SETTINGS
        | {"batch_size": size, "steps": epochs * batches, "seeds": many},
        numbers={
            "widths": widths,
            "stored_masks": {w: f.stored for w, f in found.items()},
            "recovered_masks": {w: f.recovered for w, f in found.items()},
            "agreement": last,
            "right_task_nearest": nearest,
            "agreement_with_each": {w: f.agreement[:, :, -1] for w, f in found.items()},
            "energies": {w: f.energies[:, :, -1] for w, f in found.items()},
            "psi_bytes": {w: int(f.psi_bytes[0]) for w, f in found.items()},
            "mask_bytes": {w: int(f.mask_bytes[0]) for w, f in found.items()},
        },
        pictures=[
            _draw_search(context, widths[-1], wide),
            _draw_widths(context, last),
        ],
    )


def _dense(width: int) -> nn.Dense:
    draw = initializer.signed_constant()
    return nn.Dense(width, use_bias=False, kernel_init=draw)


def _schedule(data: Data) -> tuple[int, int, int]:
    """Epochs, batch size, and batches in an epoch: eight or more, as many steps."""
    images = data.x_train.shape[1]
    size = min(_train.BATCH_SIZE, images // 8)
    batches = images // size
    return max(round(STEPS / batches), 1), size, batches


def _experiment(width: int, data: Data) -> Any:
    """`(train, test, key) -> Found`: all about one network, to be compiled."""
    model = Network(width)

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x)

    def entropy(params: Any, x: jax.Array) -> jax.Array:
        return superposition.logit_entropy(logits(params, x))

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return _train.cross_entropy(logits(params, x), y)

    def learn(weights: Any, x: jax.Array, y: jax.Array) -> Any:
        """The mask of one task, from batches [T, B, ...]."""

        def objective(scores: Any, _: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return loss(maskjax.apply(weights, supsup.soft_mask(scores)), x, y)

        optimizer = _sgd(optax.cosine_decay_schedule(LEARNING_RATE, len(x)))
        everything = masking.everything(weights, where=SCALES)
        scores = jax.tree.map(lambda m: jnp.zeros(m.shape), everything)
        step = _train.descend(objective, optimizer)
        start = _train.begin(optimizer, scores)
        member, _ = lax.scan(lambda m, batch: step(m, *batch), start, (x, y))
        return supsup.mask(member.params)

    def accuracy(weights: Any, mask: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        """Of batches [T, B, ...], whose statistics count."""
        params = maskjax.apply(weights, mask)
        right = lax.map(lambda b: logits(params, b[0]).argmax(-1) == b[1], (x, y))
        return right.mean(dtype=jnp.float32)

    def experiment(train: Any, test: Any, key: jax.Array) -> Found:
        x, y = test
        weights = model.init(key, x[0, 0])["params"]
        masks = jax.vmap(learn, (None, 0, 0))(weights, *train)

        memory = hopsupsup.init(stacking.take(masks, 0))
        memory, _ = lax.scan(lambda m, z: (hopsupsup.store(m, z), None), memory, masks)

        recover = functools.partial(
            hopsupsup.recover, entropy, optimizer=_sgd(SEARCH_RATE), strength=STRENGTH
        )
        found = jax.vmap(recover, (None, None, 0))(weights, memory, x)
        under = jax.vmap(accuracy, (None, 0, 0, 0))
        once = min(data.x_test.shape[1] // x.shape[2], SEARCH_STEPS)
        return Found(
            under(weights, masks, x[:, :once], y[:, :once]),
            under(weights, found.mask, x[:, :once], y[:, :once]),
            _agreement(found.path, masks),
            found.objectives,
            found.energies,
            _bytes(memory.psi),
            _bytes(jax.vmap(packing.pack)(masks)),
        )

    return experiment


def _sgd(rate: Any) -> optax.GradientTransformation:
    decayed = optax.add_decayed_weights(DECAY)
    return optax.chain(decayed, optax.sgd(rate, MOMENTUM))


def _inputs(data: Data, seed: int) -> tuple[Any, Any, jax.Array]:
    """Batches for training and for the search, [K, T, B, ...], and a key."""
    rng = np.random.default_rng(seed)
    epochs, size, batches = _schedule(data)
    train = _batches(data.x_train, data.y_train, epochs, batches, size, rng)
    # Test images come again where there are few.
    images = data.x_test.shape[1]
    size = min(SEARCH_BATCH, images)
    epochs = -(-SEARCH_STEPS // (images // size))
    test = _batches(data.x_test, data.y_test, epochs, images // size, size, rng)
    test = jax.tree.map(lambda x: x[:, :SEARCH_STEPS], test)
    return train, test, jax.random.key(seed)


def _batches(
    x: np.ndarray,
    y: np.ndarray,
    epochs: int,
    batches: int,
    size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Every epoch of every task in an order of its own."""
    tasks, images = y.shape
    order = np.tile(np.arange(images), (tasks, epochs, 1))
    rows = rng.permuted(order, axis=-1)[..., : batches * size]
    rows = rows.reshape(tasks, epochs * batches, size)
    each = np.arange(tasks)[:, None, None]
    return x[each, rows], y[each, rows]


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _agreement(path: Any, masks: Any) -> jax.Array:
    """Masks [K, T, ...] beside the stored ones [K, ...]: equal entries, [K, T, K]."""
    found = jnp.concatenate(jax.tree.leaves(path), axis=-1)
    stored = jnp.concatenate(jax.tree.leaves(masks), axis=-1)
    return (found[:, :, None] == stored).mean(-1, dtype=jnp.float32)


def _own(agreement: np.ndarray) -> np.ndarray:
    """[S, K, K] to [S, K]: with the mask of the right task."""
    return np.diagonal(agreement, axis1=1, axis2=2)


def _first_exact(agreement: np.ndarray) -> str:
    """After how many steps the searches that end at the right mask are there."""
    own = np.moveaxis(np.diagonal(agreement, axis1=1, axis2=3), 1, -1)  # [S, K, T]
    reached = [
        1 + int((path == 1).argmax())
        for path in own.reshape(-1, own.shape[-1])
        if path[-1] == 1
    ]
    return f"{min(reached)} to {max(reached)}" if reached else "no"


def _draw_search(context: Context, width: int, found: Found) -> str:
    """Each task's search, for one seed."""
    tasks = found.agreement.shape[1]
    figure = _pictures.Figure(figsize=(13, 3.4), layout="constrained")
    figure.suptitle(
        f"HopSupSup: the mask while it is searched for, width {width}, one seed, "
        f"{context.data.name}"
    )
    panels = figure.subplots(1, tasks, sharey=True)
    for task, axes in enumerate(panels):
        for stored in range(tasks):
            axes.plot(
                range(1, SEARCH_STEPS + 1),
                found.agreement[0, task, :, stored],
                color="C0" if stored == task else "0.7",
                label={task: "right task"}.get(
                    stored, "others" if not stored else None
                ),
            )
        axes.set_title(f"images of {2 * task} and {2 * task + 1}", fontsize="medium")
        axes.set_xlabel("step")
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("entries equal to a stored mask")
    panels[-1].legend(loc="center right")
    return _pictures.save(figure, context.out / "hopsupsup_search.png")


def _draw_widths(context: Context, agreement: dict[int, np.ndarray]) -> str:
    """Where searches end, by width."""
    figure, axes = _pictures.figure(
        f"HopSupSup: the mask that is found, {context.data.name}"
    )
    values = np.stack([a.ravel() for a in agreement.values()])
    axes.plot(list(agreement), values, "o", color="C0", alpha=0.4)
    axes.plot(list(agreement), values.mean(1), color="C0", label="mean")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(agreement), [str(width) for width in agreement])
    axes.set_xlabel("width")
    axes.set_ylabel(
        f"entries equal to the right stored mask, {len(values[0])} searches"
    )
    axes.legend(loc="lower right")
    return _pictures.save(figure, context.out / "hopsupsup_width.png")


DEMO = Demo("hopsupsup", "HopSupSup (Wortsman et al. 2020)", run, seconds=20)
