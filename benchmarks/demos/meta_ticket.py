"""Learn from how few samples to learn: Meta-ticket beside MAML (Chijiwa et al., 2022).

MAML meta-trains the weights that a new task is learned from; Meta-ticket leaves them
random and meta-trains which to keep. Tasks are sine waves, of which five points are
seen, and images of five new classes, of which one or five are. The classes are digits
and their quarter turns, or characters of Omniglot (`--omniglot`), with longer training.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.figure import Figure

from benchmarks import _episodes, _pictures, _train
from benchmarks._episodes import Episodes
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import half, rows
from maskjax import algebra, masking, where
from maskjax.recipes import meta_ticket

CHUNKS = 10  # of a training, for the progress bar
MAML, TICKET, UNTRAINED = "MAML", "Meta-ticket", "not meta-trained"

# Sinusoids, as in the papers but for the clipping, without which training breaks down
# after some ten thousands of steps, and the schedule.
SHOTS, QUERIES, WIDTHS = 5, 100, (1, 40, 40, 1)
RATE, INNER, LOOKS, BATCH = 0.01, 5, 10, 25
META_RATE, CLIP = 1e-3, 1.0
WAVES, SHOWN = 1_000, np.linspace(-5, 5, 101, dtype=np.float32)[:, None]

# Few-shot images, as in the paper but for the iterations, which are 30,000 there.
WAYS, HIDDEN = 5, (256, 128, 64, 64)
IMAGE_RATE, IMAGE_BATCH, TEST_STEPS = 0.4, 4, (1, 3)
EPISODES = 1_000, 200, 1_000  # of a test
AT_ONCE = 5  # test episodes at a time, so that their weights stay near
TICKET_RATE, MOMENTUM, WARM_UP = 10.0, 0.9, 1 / 30

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
        "network": "-".join(map(str, HIDDEN)) + " times the width, batch norm",
        "ways": WAYS,
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
ROWS = {
    "a new sine wave is learned from 5 points in 5 steps (MAML, after 70,000 "
    "iterations)": f"mean squared error of {WAVES} waves before and after, one "
    "training of {budget.waves:,} iterations: {errors:.2f+-95}",
    "new classes are learned from few images": f"{WAYS} ways, {{episodes}} episodes of "
    "{data}, one training of {budget.images:,} iterations, by 1 and 3 inner steps: "
    "{hits:.1%+-95}",
    "random weights are never meta-trained, only which of them to keep": "weights "
    "{same:bit-identical|CHANGED}; kept, of all at first: {kept:.1%}",
}


class Budget(NamedTuple):
    """Iterations, and the networks and episodes of images."""

    waves: int
    images: int
    widths: tuple[int, ...] = (1,)
    shots: tuple[int, ...] = (1,)


BUDGETS = Budget(500, 100), Budget(700, 100), Budget(2_000, 400)
LONG = Budget(20_000, 4_000, widths=(1, 2), shots=(1, 5))


class Tasks(NamedTuple):
    """Tasks of one kind, and how they are learned.

    Attributes:
        draw: `(key, data, tasks) -> (support, query)`, so many tasks.
        data: What it draws from.
        loss: `(params, x, y) -> scalar`.
        rate: The inner learning rate.
        steps: Inner steps in training.
        batch: Tasks in a step of meta-training.
    """

    draw: Callable[[jax.Array, Any, int], Episodes]
    data: Any
    loss: Callable[..., jax.Array]
    rate: float
    steps: int
    batch: int

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
    waves = _sinusoids(context, budget)
    images = {
        f"width {width}, {shots}-shot": _images(context, classes, budget, width, shots)
        for width in budget.widths
        for shots in budget.shots
    }
    by_step = lambda found: {n: h.mean(0) for n, h in found.items()}  # noqa: E731
    interval = lambda found: {n: half(h, 0) for n, h in found.items()}  # noqa: E731
    errors, hits = ({n: f["each"] for n, f in kind.items()} for kind in (waves, images))
    more = {"train": len(classes.train), "test": len(classes.test)}
    more = {"data": classes.name, "classes": more, "iterations": budget.images}
    more["episodes"] = context.pick(EPISODES)
    return Outcome(
        rows=rows(
            ROWS,
            budget=budget,
            data=classes.name,
            episodes=more["episodes"],
            errors={n: [e[:, 0], e[:, INNER]] for n, e in errors.items()},
            hits={s: {n: list(h.T) for n, h in f.items()} for s, f in hits.items()},
            kept={name: found["density"] for name, found in images.items()},
            same=all(found["unchanged"] for found in images.values()),
        ),
        settings=SETTINGS
        | {"sinusoids": SETTINGS["sinusoids"] | {"iterations": budget.waves}}
        | {"images": SETTINGS["images"] | more},
        numbers={
            "sinusoids": {
                name: {
                    "mse_by_step": found["each"].mean(0),
                    "interval_by_step": half(found["each"], 0),
                    "density": found["density"],
                }
                for name, found in waves.items()
            },
            "images": {
                setting: {
                    "accuracy_by_step": by_step(found["each"]),
                    "interval_by_step": interval(found["each"]),
                    "density": found["density"],
                    "unchanged": found["unchanged"],
                }
                for setting, found in images.items()
            },
        },
        pictures=[
            _draw_waves(context, waves),
            _draw_images(context, classes.name, hits),
        ],
    )


def _sinusoids(context: Context, budget: Budget) -> dict[str, Any]:
    """Errors of each method by inner steps, and what it says of one wave."""

    def draw(key: jax.Array, data: None, tasks: int) -> Episodes:
        del data
        return _episodes.sinusoids(key, tasks=tasks, shots=SHOTS, queries=SHOTS)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((_regression(params, x) - y) ** 2)

    tasks = Tasks(draw, None, loss, RATE, INNER, BATCH)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adam(optax.cosine_decay_schedule(META_RATE, budget.waves)),
    )
    methods = {
        MAML: Method(None, where.everything, optimizer),
        TICKET: Method(MIDDLE, ~MIDDLE, optimizer),
    }
    weights = jax.jit(_wave_weights)(jax.random.key(0))
    look = jax.jit(lambda weights, kept: _by_step(tasks, weights, kept))
    found = {}
    for name, method in methods.items():
        label = f"meta_ticket: sine waves, {name}"
        params, kept = _meta_train(context, label, tasks, method, weights, budget.waves)
        kept = kept or masking.everything(weights, where=MIDDLE)  # one program for both
        errors, shown = map(np.asarray, look(params, kept))
        density = float(algebra.density(kept))
        found[name] = {"each": errors, "shown": shown, "density": density}
    return found


def _images(
    context: Context,
    classes: _episodes.Classes,
    budget: Budget,
    width: int,
    shots: int,
) -> dict[str, Any]:
    """Accuracies on episodes of new classes: of each method, and of random weights."""

    def draw(key: jax.Array, data: jax.Array, tasks: int) -> Episodes:
        how = {"tasks": tasks, "ways": WAYS, "shots": shots, "queries": shots}
        return _episodes.images(key, data, **how)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return _train.cross_entropy(_classifier(params, x), y)

    old, new = jnp.asarray(classes.train), jnp.asarray(classes.test)
    tasks = Tasks(draw, old, loss, IMAGE_RATE, 1, IMAGE_BATCH)
    many = budget.images
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, TICKET_RATE, int(WARM_UP * many), many
    )
    methods = {
        MAML: Method(None, where.everything, optax.adamw(META_RATE)),
        TICKET: Method(KERNELS, None, optax.sgd(schedule, MOMENTUM)),
    }
    draw_weights = jax.jit(_image_weights, static_argnums=(1, 2))
    weights = draw_weights(jax.random.key(1), old.shape[-1], width)
    everything = masking.everything(weights, where=KERNELS)
    found = {}
    for name, method in methods.items():
        label = f"meta_ticket: width {width}, {shots}-shot, {name}"
        found[name] = _meta_train(context, label, tasks, method, weights, many)
    found[UNTRAINED] = weights, everything
    tests = context.pick(EPISODES)
    test = jax.jit(lambda weights, kept: _accuracies(tasks, weights, kept, new, tests))
    return {
        "each": {
            n: np.asarray(test(w, m or everything)) for n, (w, m) in found.items()
        },
        "density": float(algebra.density(found[TICKET][1])),
        "unchanged": _train.same_bits(weights, found[TICKET][0]),
    }


def _meta_train(
    context: Context,
    label: str,
    tasks: Tasks,
    method: Method,
    weights: Any,
    iterations: int,
) -> tuple[Any, Any]:
    """Weights and a mask, or `None`, from tasks that are drawn afresh at every step."""
    scores = thresholds = trained = None
    if method.masked is not None:
        init = meta_ticket.init(weights, where=method.masked, key=jax.random.key(2))
        scores, thresholds = init
    if method.trained is not None:
        chosen = masking.everything(weights, where=method.trained)
        trained = jax.tree.map(lambda w, m: None if m is None else w, weights, chosen)

    def params_of(trained: Any) -> Any:
        pick = lambda w, t: w if t is None else t  # noqa: E731
        return weights if trained is None else jax.tree.map(pick, weights, trained)

    def query_loss(learned: Any, support: Any, query: Any) -> jax.Array:
        scores, trained = learned
        soft = None if scores is None else meta_ticket.soft_mask(scores, thresholds)
        params = tasks.adapt(params_of(trained), soft, support, tasks.steps)
        return tasks.loss(params, *query)

    @jax.jit
    def chunk(carry: Any, key: jax.Array, data: Any) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            learned, opt_state = carry
            value, gradients = meta_ticket.mean_over_tasks(
                jax.value_and_grad(query_loss),
                learned,
                *tasks.draw(key, data, tasks.batch),
            )
            updates, opt_state = method.optimizer.update(gradients, opt_state, learned)
            return (optax.apply_updates(learned, updates), opt_state), value

        return lax.scan(step, carry, jax.random.split(key, iterations // CHUNKS))[0]

    learned = scores, trained
    carry = learned, method.optimizer.init(learned)
    for i in context.track(label, CHUNKS):
        key = jax.random.fold_in(jax.random.key(3), i)
        # Waiting keeps the progress bar honest.
        carry = jax.block_until_ready(chunk(carry, key, tasks.data))
    scores, trained = carry[0]
    mask = None if scores is None else meta_ticket.mask(scores, thresholds)
    return params_of(trained), mask


def _by_step(tasks: Tasks, weights: Any, kept: Any) -> tuple[jax.Array, jax.Array]:
    """Errors [WAVES, 1 + LOOKS] after each inner step, and what is said of one wave."""

    def of_wave(support: Any, query: Any) -> tuple[jax.Array, jax.Array]:
        def look(params: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            seen = tasks.loss(params, *query), _regression(params, SHOWN)[:, 0]
            return tasks.adapt(params, kept, support, 1), seen

        start = masking.apply(weights, kept)
        return lax.scan(look, start, length=1 + LOOKS)[1]

    errors, shown = jax.vmap(of_wave)(*_test_waves())
    return errors, shown[0]


def _test_waves() -> Episodes:
    key = jax.random.key(4)
    return _episodes.sinusoids(key, tasks=WAVES, shots=SHOTS, queries=QUERIES)


def _accuracies(
    tasks: Tasks, weights: Any, kept: Any, classes: jax.Array, episodes: int
) -> jax.Array:
    """The fraction of query images told, after each of TEST_STEPS, [episodes, 2]."""

    def of_episode(support: Any, query: Any) -> jax.Array:
        params, done, hits = weights, 0, []
        for steps in TEST_STEPS:
            params = tasks.adapt(params, kept, support, steps - done)
            done = steps
            hits.append(jnp.mean(_classifier(params, query[0]).argmax(-1) == query[1]))
        return jnp.stack(hits)

    def of_few(key: jax.Array) -> jax.Array:
        return jax.vmap(of_episode)(*tasks.draw(key, classes, AT_ONCE))

    keys = jax.random.split(jax.random.key(5), episodes // AT_ONCE)
    return lax.map(of_few, keys).reshape(episodes, -1)


def _wave_weights(key: jax.Array) -> Any:
    """Kernels and biases uniform in +-1 / sqrt(fan_in), but He-normal in the middle."""
    params = {}
    for i, (a, b) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
        inner, outer = jax.random.split(jax.random.fold_in(key, i))
        kernel = jax.random.uniform(inner, (a, b), minval=-1.0) * a**-0.5
        if i == 1:
            kernel = jax.random.normal(inner, (a, b)) * (2 / a) ** 0.5
        bias = jax.random.uniform(outer, (b,), minval=-1.0) * a**-0.5
        params[f"dense_{i}"] = {"kernel": kernel, "bias": bias}
    return params


def _regression(params: Any, x: jax.Array) -> jax.Array:
    for i in range(len(WIDTHS) - 1):
        x = jax.nn.relu(x) if i else x
        x = x @ params[f"dense_{i}"]["kernel"] + params[f"dense_{i}"]["bias"]
    return x


def _image_weights(key: jax.Array, pixels: int, width: int) -> Any:
    """He-normal kernels; norms that change nothing, and biases of 0."""
    widths = (pixels, *(width * n for n in HIDDEN), WAYS)
    params = {}
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        kernel = jax.random.normal(jax.random.fold_in(key, i), (a, b)) * (2 / a) ** 0.5
        layer = {"kernel": kernel, "bias": jnp.zeros(b)}
        norm = {"scale": jnp.ones(b), "offset": jnp.zeros(b)}
        last = i == len(HIDDEN)
        params["head" if last else f"dense_{i}"] = layer if last else layer | norm
    return params


def _classifier(params: Any, x: jax.Array) -> jax.Array:
    """Logits. Batch normalization is by the images at hand, as in the papers' codes."""
    for i in range(len(HIDDEN)):
        layer = params[f"dense_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = (x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-3)
        x = jax.nn.relu(x * layer["scale"] + layer["offset"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def _draw_waves(context: Context, waves: dict[str, Any]) -> str:
    """One wave before, between and after the steps of training, and errors by step."""
    drawn = Figure(figsize=(10, 3.4), layout="constrained")
    axes = drawn.subplots(1, 1 + len(waves))
    sets = jax.jit(_test_waves)()
    (x, y), (others, values) = jax.tree.map(lambda a: np.asarray(a[0]), sets)
    order = np.argsort(others[:, 0])
    for ax, (name, found) in zip(axes, waves.items(), strict=False):
        ax.plot(others[order], values[order], color="gray", label="the wave")
        for steps, style in ((0, ":"), (1, "--"), (INNER, "-")):
            label = f"{steps} step{'s' * (steps != 1)}"
            ax.plot(SHOWN, found["shown"][steps], style, color="C0", label=label)
        ax.plot(x, y, "^", color="C3", label="seen")
        ax.set_title(name)
        mean, interval = found["each"].mean(0), half(found["each"], 0)
        axes[-1].errorbar(range(1 + LOOKS), mean, interval, marker="o", label=name)
    axes[0].legend(fontsize="small")
    axes[-1].set(xlabel="inner steps", title=f"squared error of {WAVES} waves")
    axes[-1].legend()
    return _pictures.save(drawn, context.out / "meta_ticket_sinusoids.png")


def _draw_images(context: Context, data: str, hits: dict[str, Any]) -> str:
    drawn = Figure(figsize=(10, 4.2), layout="constrained")
    drawn.suptitle(f"{WAYS} new classes of {data}, from a few images of each")
    both = drawn.subplots(1, len(TEST_STEPS), sharey=True)
    for i, (axes, steps) in enumerate(zip(both, TEST_STEPS, strict=True)):
        for j, name in enumerate((MAML, TICKET, UNTRAINED)):
            each = [found[name][:, i] for found in hits.values()]
            at = np.arange(len(each)) + (j - 1) * 0.25
            means, intervals = ([f(h) for h in each] for f in (np.mean, half))
            axes.bar(at, means, 0.22, yerr=intervals, capsize=3, label=name)
        axes.axhline(1 / WAYS, color="gray", linestyle=":")
        axes.set_xticks(range(len(hits)), [s.replace(", ", "\n") for s in hits])
        axes.set_title(f"after {steps} inner step{'s' * (steps != 1)}")
    both[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    both[0].set_ylabel(f"accuracy of {context.pick(EPISODES)} episodes, 95 % intervals")
    both[-1].legend(loc="lower right")
    return _pictures.save(drawn, context.out / "meta_ticket_images.png")


DEMO = Demo(
    "meta_ticket", "Meta-ticket and MAML (Chijiwa et al. 2022, Finn et al. 2017)", run
)
