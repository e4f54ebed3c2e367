"""How sure is a network? MC-dropout, Masksembles and deep ensembles beside one network.

Gal & Ghahramani (ICML 2016), Durasov et al. (CVPR 2021), Lakshminarayanan et al.
(NeurIPS 2017). Images as they were learned, turned ones, and some of no class that was
learned: which way knows best when it is wrong, and what does that cost? The same hidden
layers, first weights, order of images and number of steps for all.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import _members, _pictures, _regression, _shift, _timing, _train
from benchmarks._members import (
    DROPOUT,
    ENSEMBLE,
    MASKSEMBLES,
    MEMBERS,
    NETWORKS,
    SINGLE,
    WAYS,
    Training,
)
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows, said
from maskjax import metrics, report
from maskjax.recipes import deep_ensemble, masksembles

SEEDS, MNIST_PIXELS = 5, 28 * 28
HIDDEN = {"mnist": (200, 200, 200), "digits": (100, 100, 100)}
# What MC-dropout drops: as Gal & Ghahramani do on MNIST, and about what a member of
# Masksembles lacks.
RATE = 0.5
EPOCHS = {"mnist": (10, 5, 20), "digits": (10, 15, 40)}
BATCH_SIZES = {"mnist": (64, 128, 128), "digits": (64, 64, 64)}
NUMBERS = tuple(Training(epochs, 32, 1e-2, 0.1) for epochs in (10, 20, 40))
CURVE = tuple(Training(epochs, 20, 1e-2, 0.1) for epochs in (100, 300, 1_000))
SPLITS = 3, 3, 10
ANGLES = tuple(range(0, 91, 15))
TOLD = (0, 30, 60)  # of these, in the table
TURNED = ("turned_nll", "turned_ece")
ELSEWHERE = 2_000  # at most so many images that are turned, or unknown
VALIDATION_SHARE = 0.1
TEMPERED = "one network, temperature fitted"
LAYERED = f"{MASKSEMBLES}, as layers"
SETTINGS = {
    "seeds": SEEDS,
    "members": MEMBERS,
    "scale": _members.SCALE,
    "masks_follow": "every hidden layer",
    "optimizer": "adam",
    "ece": "15 bins of equal width, top label",
    "temperature": "fitted to the validation images, which nothing else uses",
    "inputs": "standardized",
}
PROMISES = {
    SINGLE: "what the others are to improve on",
    TEMPERED: "calibrated by one number (Guo et al., 2017)",
    DROPOUT: "dropout kept on tells how sure a network is (published for MNIST as "
    "pictures only)",
    MASKSEMBLES: "near an ensemble at the cost of one network (published: a small "
    "convolutional one, all of MNIST, 98.27% after 5 epochs; no likelihood)",
    ENSEMBLE: "likelihood and calibration improve much (published, LeNet-5 on all of "
    "MNIST, 10 members: NLL .037 to .016, 99.1% to 99.4%, ECE .005; dense 3 x 200, 15 "
    "members: error about 1.7% to 1.25%)",
}
ROWS = {
    **{
        f"{way}: {promise}": f"{{found[{way}][told]}}accuracy "
        f"{{found[{way}][accuracy]:.2%+-}}, NLL {{found[{way}][nll]:.4f+-}}, ECE "
        f"{{found[{way}][ece]:.4f+-}}, AUROC of {{what}} "
        f"{{found[{way}][auroc]:.3f+-}}; {{found[{way}][params]:,}} parameters, "
        f"predicts in {{found[{way}][slow]}} times one network's time"
        for way, promise in PROMISES.items()
    },
    "an ensemble's likelihood is better than one network's, and Masksembles' between "
    "them": "NLL, best first: {ordered} (means of {seeds} seeds; {images:,} images to "
    "learn, so that published figures are not to be reached)",
    f"images turned by {said(TOLD)} degrees are answered less surely": "NLL and ECE: "
    "{turned:.3f}",
    "numbers with how sure they are (published, Boston housing, RMSE / log-likelihood: "
    "MC-dropout 2.97 / -2.46, deep ensemble 3.28 / -2.41; not at hand)": "diabetes of "
    "scikit-learn, {splits} splits: {regression:.2f+-}",
    "laws: an ensemble's NLL is at most its members' mean; mutual information is what "
    "entropy loses; masks are exact, and stay; thin members agree": "{laws:yes|NO}",
}


class Problem(NamedTuple):
    """Images as rows, scaled.

    Attributes:
        x: To learn.
        y: Their labels.
        validation: Images and labels to fit temperatures to.
        test: Images and labels.
        turned: [A * N, D], of the first N of the test.
        unknown: Of no class that is learned.
        what: What these are.
        widths: Of the layers.
        training: How networks are trained.
    """

    x: jax.Array
    y: jax.Array
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    turned: jax.Array
    unknown: jax.Array
    what: str
    widths: tuple[int, ...]
    training: Training


class Told(NamedTuple):
    """Probabilities [M, S, N, C] of members, for each part of a problem."""

    test: jax.Array
    turned: jax.Array
    unknown: jax.Array


def run(context: Context) -> Outcome:
    """Learn, ask, and compare."""
    problem = _problem(context)
    variables, logits = {}, {}
    ways = (ENSEMBLE, SINGLE, DROPOUT, MASKSEMBLES)
    for way in context.track("uncertainty: networks", ways):
        variables[way] = _learned(problem, way, variables)
        logits[way] = _asked(problem, way, variables[way])
    told, temperatures = _told(problem, {way: logits[way] for way in WAYS})
    found = {way: _measured(problem, each) for way, each in told.items()}
    times, thin_agree = _times(context, problem, variables)
    regression = _diabetes(context)
    curve, points = _cubic(context)
    numbers = {
        "ways": found,
        "params": _sizes(variables),
        "predict": times,
        "temperatures": temperatures,
        "angles": ANGLES,
        "diabetes": regression,
        "laws": _laws(problem, told, found, variables)
        | {"thin_members_agree": thin_agree},
    }
    return Outcome(
        rows=rows(ROWS, **_for_rows(problem, numbers)),
        settings=_settings(context, problem),
        numbers=numbers,
        pictures=[
            _draw_reliability(context, problem, told),
            _draw_risk(context, problem, told),
            _draw_turned(context, found),
            _draw_entropies(context, problem, told),
            _draw_cubic(context, curve, points),
        ],
    )


def _for_rows(problem: Problem, numbers: dict[str, Any]) -> dict[str, Any]:
    """What the table says, by the names of `ROWS`."""
    found, times = numbers["ways"], numbers["predict"]
    temperature = f"temperature {said(numbers['temperatures'], '.3f+-')}, "
    at = [ANGLES.index(angle) for angle in TOLD]

    def of_way(way: str) -> dict[str, Any]:
        kind, count = (SINGLE, 1) if way == TEMPERED else (way, MEMBERS[way])
        told = temperature if way == TEMPERED else f"{count} members, " * (count > 1)
        slow = f"{times[kind]['relative']:.1f}"
        if way == MASKSEMBLES:
            slow += f" ({times[LAYERED]['relative']:.1f} as layers)"
        more = {"told": told, "params": numbers["params"][kind], "slow": slow}
        return found[way] | more

    return {
        "found": {way: of_way(way) for way in found},
        "what": problem.what,
        "ordered": sorted(found, key=lambda way: found[way]["nll"].mean()),
        "seeds": SEEDS,
        "images": len(problem.x),
        "turned": {
            way: [list(each[name].mean(-1)[at]) for name in TURNED]
            for way, each in found.items()
        },
        "splits": len(numbers["diabetes"][SINGLE]["rmse"]),
        "regression": numbers["diabetes"],
        "laws": list(numbers["laws"].values()),
    }


def _settings(context: Context, problem: Problem) -> dict[str, Any]:
    return SETTINGS | {
        "network": "-".join(map(str, (problem.x.shape[1], *problem.widths))),
        "ones": [plan.ones for plan in _plans(problem)],
        **problem.training._asdict(),
        "train": len(problem.x),
        "validation": len(problem.validation[0]),
        "test": len(problem.test[0]),
        "turned": len(problem.turned) // len(ANGLES),
        "unknown": f"{len(problem.unknown)} images: {problem.what}",
        "regression": {
            "hidden": _regression.WIDTHS[0],
            "diabetes": context.pick(NUMBERS)._asdict(),
            "cubic": context.pick(CURVE)._asdict(),
            "splits": context.pick(SPLITS),
        },
    }


def _plans(problem: Problem) -> list[masksembles.Plan]:
    how = {"members": MEMBERS[MASKSEMBLES], "scale": _members.SCALE}
    return [masksembles.plan(width, **how) for width in problem.widths[:-1]]


def _laws(
    problem: Problem,
    told: dict[str, Told],
    found: dict[str, Any],
    variables: dict[str, Any],
) -> dict[str, bool]:
    """What holds whatever the data."""
    masks = jax.tree.leaves(variables[MASKSEMBLES]["masks"])
    began = jax.tree.leaves(_masks(problem, MASKSEMBLES))
    exact = [
        bool((mask.sum(-1) == plan.ones).all() and mask.any(1).all())
        for mask, plan in zip(masks, _plans(problem), strict=True)
    ]
    jensen = (each["nll"] <= each["members_nll"] for each in found.values())

    def informed(probs: jax.Array) -> bool:
        lost = metrics.entropy(probs.mean(0)) - metrics.expected_entropy(probs)
        return np.allclose(metrics.mutual_information(probs), lost, atol=1e-4)

    return {
        "ensemble_nll_at_most_mean_of_members": all(map(np.all, jensen)),
        "mutual_information_is_what_entropy_loses": all(
            informed(each.unknown) for each in told.values()
        ),
        "masks_exact": all(exact),
        "masks_unchanged_by_training": all(map(np.array_equal, masks, began)),
    }


def _problem(context: Context) -> Problem:
    data = context.data
    large = np.prod(data.shape) >= MNIST_PIXELS
    if context.omniglot is None:
        part = _shift.held_out(data)
        data, unknown = part.known, part.unknown
        what = f"classes {', '.join(map(str, _shift.HELD_OUT))} of {data.name}"
    else:
        unknown = _shift.drawings(context.omniglot, data.shape)
        what = f"drawings of {context.omniglot.name}"
    rng = np.random.default_rng(0)
    unknown = unknown[rng.permutation(len(unknown))[:ELSEWHERE]]
    mean, deviation = data.x_train.mean(), data.x_train.std()

    def rows(images: np.ndarray) -> jax.Array:
        scaled = (images - mean) / deviation
        return jnp.asarray(scaled.reshape(-1, images.shape[-2] * images.shape[-1]))

    held = round(VALIDATION_SHARE * len(data.x_train))
    x, y = rows(data.x_train), jnp.asarray(data.y_train)
    kind = "mnist" if large else "digits"
    how = (context.pick(each[kind]) for each in (EPOCHS, BATCH_SIZES))
    return Problem(
        x[:-held],
        y[:-held],
        (x[-held:], y[-held:]),
        (rows(data.x_test), jnp.asarray(data.y_test)),
        rows(_shift.rotations(data.x_test[:ELSEWHERE], ANGLES)),
        rows(unknown),
        what,
        (*HIDDEN[kind], int(data.y_train.max()) + 1),
        Training(*how, 1e-3, RATE),
    )


def _masks(problem: Problem, way: str) -> Any:
    return _members.masks(way, SEEDS, problem.widths, key=jax.random.key(0))


def _learned(problem: Problem, way: str, others: dict[str, Any]) -> Any:
    """Parameters and masks [S, ...]; parameters [S, M, ...] of ensembles.

    One network is the first of each ensemble, which is not trained again. The others
    begin with its weights, and see the images in its order.
    """
    masks = _masks(problem, way)
    if way == SINGLE:
        first = jax.tree.map(lambda w: w[:, 0], others[ENSEMBLE]["params"])
        return {"params": first, "masks": masks}
    count = SEEDS * NETWORKS
    widths = (problem.x.shape[1], *problem.widths)
    params = _train.glorot(np.random.default_rng(0), widths, count)
    rows = _members.orders(count, len(problem.x), problem.training, seed=1)
    every = masks
    if way == ENSEMBLE:
        every = jax.tree.map(lambda mask: mask.repeat(NETWORKS, axis=0), masks)
    else:
        params, rows = jax.tree.map(lambda leaf: leaf[::NETWORKS], (params, rows))
    fit = functools.partial(_members.fit, way, problem.training, _train.cross_entropy)
    # One network at a time: kernels are large enough, and it compiles sooner.
    train = functools.partial(deep_ensemble.train, fit, batch_size=1)
    trained = jax.jit(lambda begun, x, y, keys: train(begun, x, y, keys=keys))(
        ({"params": params, "masks": every}, jnp.asarray(rows)),
        problem.x,
        problem.y,
        jax.random.split(jax.random.key(1), len(rows)),
    )
    if way != ENSEMBLE:
        return trained
    apart = lambda leaf: leaf.reshape(SEEDS, NETWORKS, *leaf.shape[1:])  # noqa: E731
    return {"params": jax.tree.map(apart, trained["params"]), "masks": masks}


def _asked(problem: Problem, way: str, variables: Any) -> np.ndarray:
    """Logits [M, S, N, C] of all images: validation, test, turned and unknown."""
    parts = problem.validation[0], problem.test[0], problem.turned, problem.unknown
    keys = jax.random.split(jax.random.key(2), SEEDS)

    def seed(each: Any, x: jax.Array) -> jax.Array:
        variables, key = each
        return _members.ask(way, variables, x, rate=RATE, key=key)

    ask = jax.jit(lambda each, x: jax.lax.map(lambda one: seed(one, x), each))
    return np.moveaxis(np.asarray(ask((variables, keys), jnp.concatenate(parts))), 0, 1)


def _told(problem: Problem, logits: dict[str, Any]) -> tuple[dict[str, Told], Any]:
    """Probabilities, and the temperatures [S] that are fitted to one network."""
    held = len(problem.validation[0])
    ends = np.cumsum([len(problem.test[0]), len(problem.turned)])
    mine = jnp.asarray(logits[SINGLE])
    fitted = metrics.temperature(mine[0, :, :held], problem.validation[1])
    tempered = {TEMPERED: mine / fitted[:, None, None]}
    order = {SINGLE: logits[SINGLE]} | tempered | logits
    softmax = jax.jit(jax.nn.softmax)
    return {
        way: Told(*jnp.split(softmax(jnp.asarray(each[:, :, held:])), ends, axis=2))
        for way, each in order.items()
    }, np.asarray(fitted)


def _measured(problem: Problem, told: Told) -> dict[str, Any]:
    """Numbers [S]; of turned images [A, S]."""
    y = problem.test[1]
    test, unknown = told.test.mean(0), told.unknown.mean(0)
    odd = np.arange(test.shape[1] + unknown.shape[1]) >= test.shape[1]
    both = jnp.concatenate([test, unknown], axis=1)
    unsure = {"entropy": metrics.entropy(both)}
    if len(told.test) > 1:
        every = jnp.concatenate([told.test, told.unknown], axis=2)
        unsure["mutual_information"] = metrics.mutual_information(every)
    turned = jnp.split(told.turned.mean(0), len(ANGLES), axis=1)
    labels = y[: turned[0].shape[1]]

    def by_angle(metric: Callable[..., Any]) -> np.ndarray:
        # One by one: of digits they are as many as the test, and nothing is compiled.
        return np.stack([metric(probs, labels) for probs in turned])

    wrong = test.argmax(-1) != y
    gone = jnp.concatenate([wrong, jnp.ones(unknown.shape[:2], bool)], axis=1)
    each = {
        "accuracy": metrics.accuracy(test, y),
        "nll": metrics.negative_log_likelihood(test, y),
        "members_nll": np.mean(
            [metrics.negative_log_likelihood(probs, y) for probs in told.test], axis=0
        ),
        "ece": metrics.expected_calibration_error(test, y),
        "auroc": {name: metrics.auroc(each, odd) for name, each in unsure.items()},
        "aurc_with_unknown": metrics.aurc(both.max(-1), gone),
        "turned_accuracy": by_angle(metrics.accuracy),
        "turned_nll": by_angle(metrics.negative_log_likelihood),
        "turned_ece": by_angle(metrics.expected_calibration_error),
    }
    return {  # not by `jax.tree`, which would sort the names
        name: {n: np.asarray(v) for n, v in value.items()}
        if isinstance(value, dict)
        else np.asarray(value)
        for name, value in each.items()
    }


def _times(
    context: Context, problem: Problem, variables: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """How long each way predicts a batch of 1,024, and if thin members say the same."""
    x = problem.test[0]
    x = jnp.resize(x, (1_024, x.shape[1]))
    one = {way: jax.tree.map(lambda v: v[0], each) for way, each in variables.items()}
    first, members = _members.thin(one[MASKSEMBLES])
    key = jax.random.key(3)

    def asked(way: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        ask = functools.partial(_members.ask, way, rate=RATE)
        return lambda variables, x, key: ask(variables, x, key=key), (one[way], x, key)

    fns = {way: asked(way) for way in (SINGLE, DROPOUT, ENSEMBLE)}
    fns[LAYERED] = asked(MASKSEMBLES)
    fns[MASKSEMBLES] = _members.ask_thin, (first, members, x)
    contestants = []
    for name, (fn, given) in fns.items():
        call, seconds = _timing.compiled(fn, *given)
        ready = functools.partial(call, *given)
        contestants.append(_timing.Contestant(name, ready, seconds))
    agreed = []

    def agree(results: Any) -> None:
        close = np.allclose(results[LAYERED], results[MASKSEMBLES], 1e-4, 1e-4)
        agreed.append(bool(close))

    how = {"repeats": 10 if context.quick else 30, "seconds": 2.0}
    raced = _timing.race(contestants, agree, **how)
    base = raced[SINGLE].median_s
    times = {
        name: {"relative": timing.median_s / base, **timing._asdict()}
        for name, timing in raced.items()
    }
    return times, agreed[0]


def _sizes(variables: dict[str, Any]) -> dict[str, int]:
    """Parameters of one seed, each way."""
    count = lambda tree: sum(w[0].size for w in jax.tree.leaves(tree))  # noqa: E731
    return {way: count(each["params"]) for way, each in variables.items()}


def _diabetes(context: Context) -> dict[str, dict[str, np.ndarray]]:
    """RMSE and log-likelihood [splits], each way."""
    splits = range(context.pick(SPLITS))
    problems = [_shift.diabetes(seed=seed).standardized() for seed in splits]
    found = _regression.learn(problems, context.pick(NUMBERS))
    return _regression.scores(found, problems)


def _cubic(context: Context) -> tuple[dict[str, Any], _shift.Numbers]:
    """Means and deviations over the grid, each way; and the points."""
    raw = _shift.cubic(seed=0)
    numbers = raw.standardized()
    precision = (numbers.deviation / _shift.CUBIC_NOISE) ** 2
    training = context.pick(CURVE)
    found = _regression.learn([numbers], training, precision=precision)

    def spread(normals: _regression.Normals) -> tuple[np.ndarray, np.ndarray]:
        of_one = (jnp.asarray(leaf[0]) for leaf in normals)
        mean, variance = map(np.asarray, deep_ensemble.mixture(*of_one))
        return (
            numbers.mean + numbers.deviation * mean,
            numbers.deviation * variance**0.5,
        )

    return {way: spread(normals) for way, normals in found.items()}, raw


def _draw_reliability(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    """Of all seeds together."""
    y = jnp.tile(problem.test[1], SEEDS)
    pooled = {
        way: each.test.mean(0).reshape(-1, each.test.shape[-1])
        for way, each in told.items()
    }
    bins = {way: metrics.reliability(probs, y) for way, probs in pooled.items()}
    drawn = report.plot_reliability(bins)
    drawn.axes[0].set_title(f"images as they were learned, {SEEDS} seeds together")
    return _pictures.save(drawn, context.out / "uncertainty_reliability.png")


def _draw_risk(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    """Of all seeds together; unknown images can't be right."""
    curves = {}
    for way, each in told.items():
        test, unknown = each.test.mean(0), each.unknown.mean(0)
        wrong = test.argmax(-1) != problem.test[1]
        gone = jnp.concatenate([wrong, jnp.ones(unknown.shape[:2], bool)], axis=1)
        sure = jnp.concatenate([test, unknown], axis=1).max(-1)
        curves[way] = metrics.risk_coverage(sure.ravel(), gone.ravel())
    drawn = report.plot_risk_coverage(curves)
    drawn.axes[0].set_title("of what is answered, how much is wrong or unknown")
    return _pictures.save(drawn, context.out / "uncertainty_risk.png")


def _draw_turned(context: Context, found: dict[str, Any]) -> str:
    drawn = Figure(figsize=(12, 4.2), layout="constrained")
    names = ("turned_accuracy", *TURNED)
    for axes, name in zip(drawn.subplots(1, 3), names, strict=True):
        for way, each in found.items():
            _pictures.band(axes, ANGLES, each[name], way)
        title = name.removeprefix("turned_")
        axes.set_title(title.upper() if title in ("nll", "ece") else title)
        axes.set(xlabel="degrees turned", xticks=ANGLES)
        axes.grid(visible=True, alpha=0.3)
    drawn.axes[1].legend(fontsize="small")
    drawn.suptitle(f"mean and range of {SEEDS} seeds")
    return _pictures.save(drawn, context.out / "uncertainty_turned.png")


def _draw_entropies(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    drawn = Figure(figsize=(3.2 * len(told), 3.2), layout="constrained")
    bins = np.linspace(0, np.log(problem.widths[-1]), 31)
    panels = drawn.subplots(1, len(told), sharey=True)
    for axes, (way, each) in zip(panels, told.items(), strict=True):
        for images, label in ((each.test, "learned"), (each.unknown, "unknown")):
            entropy = np.asarray(metrics.entropy(images.mean(0))).ravel()
            axes.hist(entropy, bins, density=True, alpha=0.6, label=label)
        axes.set_title(way, fontsize="medium")
        axes.set(xlabel="entropy (nats)", yscale="log")
    panels[0].legend()
    drawn.suptitle(f"unknown: {problem.what}")
    return _pictures.save(drawn, context.out / "uncertainty_entropy.png")


def _draw_cubic(
    context: Context, curve: dict[str, Any], numbers: _shift.Numbers
) -> str:
    drawn = Figure(figsize=(3.4 * len(curve), 3.6), layout="constrained")
    grid = numbers.x_test[:, 0]
    panels = drawn.subplots(1, len(curve), sharey=True)
    for axes, (way, (mean, deviation)) in zip(panels, curve.items(), strict=True):
        axes.plot(grid, numbers.y_test, color="black", linestyle="--", linewidth=1)
        axes.scatter(numbers.x_train[:, 0], numbers.y_train, s=10, color="black")
        (line,) = axes.plot(grid, mean)
        band = mean - 2 * deviation, mean + 2 * deviation
        axes.fill_between(grid, *band, color=line.get_color(), alpha=0.25)
        axes.axvspan(-4, 4, color="gray", alpha=0.08)
        axes.set_title(way)
        axes.set(ylim=(-250, 250), xlabel="x; points come from the gray part")
    drawn.suptitle("x**3: mean and 2 standard deviations")
    return _pictures.save(drawn, context.out / "uncertainty_cubic.png")


DEMO = Demo(
    "uncertainty",
    "MC-dropout, Masksembles, deep ensembles: how sure (2016, 2021, 2017)",
    run,
)
