"""Learn from how few samples to learn: Meta-ticket beside MAML (Chijiwa et al., 2022).

MAML meta-trains the weights that a new task is learned from; Meta-ticket leaves them
random and meta-trains which to keep. Tasks are sine waves, of which five points are
seen, and images of five new classes, one of each. The classes are digits and their
quarter turns, or characters of Omniglot (`--omniglot`), with longer training.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from benchmarks import _episodes, _pictures, _train
from benchmarks._episodes import Episodes
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import half, rows
from maskjax import algebra, masking, where
from maskjax.recipes import meta_ticket

CHUNKS = 10  # of a training, for the progress bar
MAML, TICKET, UNTRAINED = "MAML", "Meta-ticket", "not meta-trained"
ON_WAVES = (MAML, TICKET), (MAML,), (MAML, TICKET)

# Sinusoids, as in the papers but for the clipping, without which training breaks down
# after some ten thousands of steps, and the schedule.
SHOTS, QUERIES, WIDTHS = 5, 100, (1, 40, 40, 1)
RATE, INNER, LOOKS, BATCH = 0.01, 5, 10, 25
META_RATE, CLIP = 1e-3, 1.0
WAVES = 1_000

# Few-shot images, as in the paper but for the iterations, which are 30,000 there.
WAYS, IMAGE_SHOTS, HIDDEN = 5, 1, (256, 128, 64, 64)
IMAGE_RATE, IMAGE_BATCH, TEST_STEPS = 0.4, 4, (1, 3)
EPISODES = 1_000, 200, 1_000  # of a test
AT_ONCE = 5  # test episodes at a time, so that their weights stay near
TICKET_RATE, MOMENTUM, WARM_UP = 10.0, 0.9, 1 / 30

Results = dict[str, np.ndarray]  # [tasks, steps], by method
MIDDLE = where.matching("dense_1/kernel")
KERNELS = where.kernels & ~where.matching("head")
SETTINGS = {
    "seeds": 1,  # of training: intervals are of waves and of episodes
    "second_order": True,
    "sinusoids": {
        "network": "-".join(map(str, WIDTHS)),
        "shots": SHOTS,
        "inner_rate": RATE,
        "inner_steps": INNER,
        "tasks_in_a_step": BATCH,
        "optimizer": f"adam {META_RATE}, cosine, clipped to a norm of {CLIP}",
        "masked": "the middle kernel; all else is meta-trained",
    },
    "images": {
        "network": "-".join(map(str, HIDDEN)) + ", batch norm",
        "ways": WAYS,
        "shots": IMAGE_SHOTS,
        "inner_rate": IMAGE_RATE,
        "inner_steps": {"train": 1, "test": TEST_STEPS},
        "tasks_in_a_step": IMAGE_BATCH,
        "optimizer": {
            MAML: f"adamw {META_RATE}",
            TICKET: f"sgd {TICKET_RATE}, momentum {MOMENTUM}, warm-up, cosine",
        },
        "first_density": 1.0,
    },
}


class Budget(NamedTuple):
    """Iterations."""

    waves: int
    images: int


BUDGETS = Budget(500, 100), Budget(500, 100), Budget(2_000, 400)
LONG = Budget(20_000, 4_000)


class Tasks(NamedTuple):
    """Tasks of one kind, and how they are learned."""

    draw: Callable[..., Episodes]  # `(key, data, tasks) -> support, query`
    data: Any  # what it draws from
    loss: Callable[..., Array]  # `(params, x, y) -> scalar`
    rate: float  # the inner learning rate
    steps: int  # inner steps in training
    batch: int  # tasks in a step of meta-training

    def adapt(self, params: Any, mask: Any, support: Any, steps: int) -> Any:
        """Parameters for one task."""
        how = {"inner_learning_rates": self.rate, "steps": steps}
        return meta_ticket.adapt(self.loss, params, mask, *support, **how)


class Method(NamedTuple):
    """Which weights have a mask, which are meta-trained, and by which optimizer."""

    masked: where.Predicate | None
    trained: where.Predicate | None
    optimizer: optax.GradientTransformation


def run(context: Context) -> Outcome:
    """Sine waves, then images of classes that were never seen."""
    budget = context.pick(BUDGETS)
    if context.omniglot is not None and not context.quick:
        budget = LONG
    classes = context.omniglot or _episodes.digits(context.data)
    waves = _sinusoids(context, budget.waves)
    images = _images(context, classes, budget.images)
    errors, hits = {n: f["each"] for n, f in waves.items()}, images["each"]
    more = {"train": len(classes.train), "test": len(classes.test)}
    more = {"data": classes.name, "classes": more, "iterations": budget.images}
    more["episodes"] = context.pick(EPISODES)
    numbers: dict[str, Any] = {
        "sinusoids": {
            name: {
                "mse_by_step": found["each"].mean(0),
                "interval_by_step": half(found["each"], 0),
                "density": found["density"],
            }
            for name, found in waves.items()
        },
        "images": {
            "accuracy_by_step": {n: h.mean(0) for n, h in hits.items()},
            "interval_by_step": {n: half(h, 0) for n, h in hits.items()},
            "density": images["density"],
            "unchanged": images["unchanged"],
        },
    }
    return Outcome(
        rows(
            "meta_ticket",
            waves=WAVES,
            ways=WAYS,
            budget=budget,
            data=classes.name,
            episodes=more["episodes"],
            errors={n: [e[:, 0], e[:, INNER]] for n, e in errors.items()},
            hits={n: list(h.T) for n, h in hits.items()},
            kept=images["density"],
            same=images["unchanged"],
        ),
        SETTINGS
        | {"sinusoids": SETTINGS["sinusoids"] | {"iterations": budget.waves}}
        | {"images": SETTINGS["images"] | more},
        numbers,
        [_draw(context, errors, hits, classes.name)],
    )


def _sinusoids(context: Context, iterations: int) -> dict[str, Any]:
    """Errors of each method by inner steps."""

    def draw(key: Array, _: None, tasks: int) -> Episodes:
        return _episodes.sinusoids(key, tasks=tasks, shots=SHOTS, queries=SHOTS)

    def loss(params: Any, x: Array, y: Array) -> Array:
        return jnp.mean((_forward(params, x) - y) ** 2)

    tasks = Tasks(draw, None, loss, RATE, INNER, BATCH)
    adam = optax.adam(optax.cosine_decay_schedule(META_RATE, iterations))
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), adam)
    methods = {
        MAML: Method(None, where.everything, optimizer),
        TICKET: Method(MIDDLE, ~MIDDLE, optimizer),
    }
    weights = jax.jit(_wave_weights)(jax.random.key(0))
    look = jax.jit(lambda weights, kept: _by_step(tasks, weights, kept))
    found = {}
    for name in context.pick(ON_WAVES):
        track = context.track(f"meta_ticket: sine waves, {name}", CHUNKS)
        params, kept = _meta_train(track, tasks, methods[name], weights, iterations)
        kept = kept or masking.everything(weights, where=MIDDLE)  # one program for both
        density = float(algebra.density(kept))
        found[name] = {"each": np.asarray(look(params, kept)), "density": density}
    return found


def _images(context: Context, classes: Any, iterations: int) -> dict[str, Any]:
    """Accuracies on episodes of new classes: of each method, and of random weights."""

    def draw(key: Array, data: Array, tasks: int) -> Episodes:
        how = {"tasks": tasks, "ways": WAYS, "shots": IMAGE_SHOTS}
        how |= {"queries": IMAGE_SHOTS}
        return _episodes.images(key, data, **how)

    def loss(params: Any, x: Array, y: Array) -> Array:
        return _train.cross_entropy(_forward(params, x), y)

    old, new = jnp.asarray(classes.train), jnp.asarray(classes.test)
    tasks = Tasks(draw, old, loss, IMAGE_RATE, 1, IMAGE_BATCH)
    tests = context.pick(EPISODES)
    warm_up = 0.0, TICKET_RATE, int(WARM_UP * iterations), iterations
    schedule = optax.warmup_cosine_decay_schedule(*warm_up)
    methods = {
        MAML: Method(None, where.everything, optax.adamw(META_RATE)),
        TICKET: Method(KERNELS, None, optax.sgd(schedule, MOMENTUM)),
    }
    widths = old.shape[-1], *HIDDEN, WAYS
    weights = jax.jit(_image_weights, static_argnums=1)(jax.random.key(1), widths)
    everything = masking.everything(weights, where=KERNELS)
    found = {}
    for name, method in methods.items():
        track = context.track(f"meta_ticket: images, {name}", CHUNKS)
        found[name] = _meta_train(track, tasks, method, weights, iterations)
    found[UNTRAINED] = weights, everything
    test = jax.jit(lambda weights, kept: _accuracies(tasks, weights, kept, new, tests))
    each = {n: np.asarray(test(w, m or everything)) for n, (w, m) in found.items()}
    return {
        "each": each,
        "density": float(algebra.density(found[TICKET][1])),
        "unchanged": _train.same_bits(weights, found[TICKET][0]),
    }


def _meta_train(
    track: Iterable[int], tasks: Tasks, method: Method, weights: Any, iterations: int
) -> tuple[Any, Any]:
    """Weights and a mask, or `None`, from tasks that are drawn afresh at every step."""
    scores = thresholds = trained = None
    if method.masked is not None:
        init = jax.jit(functools.partial(meta_ticket.init, where=method.masked))
        scores, thresholds = init(weights, key=jax.random.key(2))
    if method.trained is not None:
        chosen = masking.everything(weights, where=method.trained)
        trained = jax.tree.map(lambda w, m: None if m is None else w, weights, chosen)

    def params_of(trained: Any) -> Any:
        pick = lambda w, t: w if t is None else t  # noqa: E731
        return weights if trained is None else jax.tree.map(pick, weights, trained)

    def query_loss(learned: Any, support: Any, query: Any) -> Array:
        scores, trained = learned
        soft = None if scores is None else meta_ticket.soft_mask(scores, thresholds)
        params = tasks.adapt(params_of(trained), soft, support, tasks.steps)
        return tasks.loss(params, *query)

    @jax.jit
    def chunk(carry: Any, key: Array, data: Any) -> Any:
        def step(carry: Any, key: Array) -> tuple[Any, Array]:
            learned, opt_state = carry
            episodes = tasks.draw(key, data, tasks.batch)
            valued = jax.value_and_grad(query_loss)
            value, gradients = meta_ticket.mean_over_tasks(valued, learned, *episodes)
            updates, opt_state = method.optimizer.update(gradients, opt_state, learned)
            return (optax.apply_updates(learned, updates), opt_state), value

        return lax.scan(step, carry, jax.random.split(key, iterations // CHUNKS))[0]

    carry = (scores, trained), method.optimizer.init((scores, trained))
    for i in track:
        key = jax.random.fold_in(jax.random.key(3), i)
        # Waiting keeps the progress bar honest.
        carry = jax.block_until_ready(chunk(carry, key, tasks.data))
    scores, trained = carry[0]
    mask = None if scores is None else meta_ticket.mask(scores, thresholds)
    return params_of(trained), mask


def _by_step(tasks: Tasks, weights: Any, kept: Any) -> Array:
    """Errors [WAVES, 1 + LOOKS] after each inner step."""
    how = {"tasks": WAVES, "shots": SHOTS, "queries": QUERIES}

    def of_wave(support: Any, query: Any) -> Array:
        def look(params: Any, _: None) -> tuple[Any, Array]:
            return tasks.adapt(params, kept, support, 1), tasks.loss(params, *query)

        start = masking.apply(weights, kept)
        return lax.scan(look, start, length=1 + LOOKS)[1]

    return jax.vmap(of_wave)(*_episodes.sinusoids(jax.random.key(4), **how))


def _accuracies(
    tasks: Tasks, weights: Any, kept: Any, data: Array, count: int
) -> Array:
    """The fraction of query images told, after each of TEST_STEPS, [count, 2]."""

    def of_episode(support: Any, query: Any) -> Array:
        params, done, hits = weights, 0, []
        for steps in TEST_STEPS:
            params = tasks.adapt(params, kept, support, steps - done)
            done = steps
            hits.append(_train.accuracy(_forward(params, query[0]), query[1]))
        return jnp.stack(hits)

    def of_few(key: Array) -> Array:
        return jax.vmap(of_episode)(*tasks.draw(key, data, AT_ONCE))

    keys = jax.random.split(jax.random.key(5), count // AT_ONCE)
    return lax.map(of_few, keys).reshape(count, -1)


def _wave_weights(key: Array) -> Any:
    """Kernels and biases uniform in +-1 / sqrt(fan_in), but He-normal in the middle."""
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(WIDTHS)):
        inner, outer = jax.random.split(jax.random.fold_in(key, i))
        kernel = jax.random.uniform(inner, (a, b), minval=-1.0) * a**-0.5
        if i == 1:
            kernel = jax.random.normal(inner, (a, b)) * (2 / a) ** 0.5
        bias = jax.random.uniform(outer, (b,), minval=-1.0) * a**-0.5
        params[f"dense_{i}"] = {"kernel": kernel, "bias": bias}
    return params


def _image_weights(key: Array, widths: tuple[int, ...]) -> Any:
    """He-normal kernels; norms that change nothing, and biases of 0."""
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        kernel = jax.random.normal(jax.random.fold_in(key, i), (a, b)) * (2 / a) ** 0.5
        layer = {"kernel": kernel, "bias": jnp.zeros(b)}
        norm = {"scale": jnp.ones(b), "offset": jnp.zeros(b)}
        last = i == len(HIDDEN)
        params["head" if last else f"dense_{i}"] = layer if last else layer | norm
    return params


def _forward(params: Any, x: Array) -> Array:
    """Outputs; batch normalization is by the images at hand, as in the papers."""
    *hidden, last = params.values()
    for layer in hidden:
        x = x @ layer["kernel"] + layer["bias"]
        if "scale" in layer:
            x = (x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-3)
            x = x * layer["scale"] + layer["offset"]
        x = jax.nn.relu(x)
    return x @ last["kernel"] + last["bias"]


def _draw(context: Context, errors: Results, hits: Results, data: str) -> str:
    """Errors by inner step, for the first few of which training was; accuracies."""
    title = "Meta-ticket and MAML: new tasks after training on others"
    drawn, (waves, images) = _pictures.page(title, 2, size=(11, 4.8))
    by_step = {name: each.T for name, each in errors.items()}
    _pictures.errorbars(waves, range(1 + LOOKS), by_step)
    waves.set(xlabel="inner steps", ylabel="squared error: mean and 95% interval")
    waves.set_title(f"{WAVES} sine waves, from {SHOTS} points of each")
    waves.legend()
    for i, (name, each) in enumerate(hits.items()):
        at, how = np.arange(2) + 0.1 * (i - 1), {"fmt": "o-", "label": name}
        images.errorbar(at, each.mean(0), half(each, 0), **how)
    images.set_xticks((0, 1), map(str, TEST_STEPS))
    images.set(xlim=(-0.5, 1.5), xlabel="inner steps")
    images.set_ylabel("test accuracy: mean and 95% interval")
    images.set_title(f"{WAYS} classes, {IMAGE_SHOTS} image of each: {data}")
    images.yaxis.set_major_formatter(_pictures.PERCENT)
    images.legend()
    return _pictures.save(drawn, context, "meta_ticket")


DEMO = Demo(
    "meta_ticket",
    "Meta-ticket and MAML (Chijiwa et al. 2022, Finn et al. 2017)",
    run,
    seconds=13,
    uses=("omniglot",),
)
