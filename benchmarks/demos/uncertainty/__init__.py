"""How sure is a network? MC-dropout, Masksembles and deep ensembles beside one network.

Gal & Ghahramani (ICML 2016), Durasov et al. (CVPR 2021), Lakshminarayanan et al.
(NeurIPS 2017). Images as they were learned, turned ones, and some of no class that was
learned: which way knows best when it is wrong, and what does that cost? The same hidden
layers, first weights, order of images and number of steps for all.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _members, _pictures, _timing
from benchmarks._members import DROPOUT, ENSEMBLE, MASKSEMBLES, MEMBERS, SINGLE, WAYS
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows, said
from benchmarks.demos.uncertainty import _networks
from benchmarks.demos.uncertainty._networks import (
    ANGLES,
    SEEDS,
    TEMPERED,
    Problem,
    Told,
)
from benchmarks.speed import _case
from maskjax import metrics, report
from maskjax.recipes import masksembles

RACES = tuple({"repeats": n, "seconds": s} for n, s in ((10, 2), (10, 0.2), (30, 2)))
TOLD = (0, 30, 60)  # of these, in the table
FEWEST = 20  # images in a bin that is drawn
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
WAY = (
    "{told}accuracy {accuracy:.2%+-}, NLL {nll:.4f+-}, ECE {ece:.4f+-}, AUROC of "
    "{what} {auroc:.3f+-}; {params:,} parameters, predicts in {slow} times one "
    "network's time"
)


def run(context: Context) -> Outcome:
    """Learn, ask, and compare."""
    problem = _networks.problem_of(context)
    variables, logits = {}, {}
    ways = (ENSEMBLE, SINGLE, DROPOUT, MASKSEMBLES)
    for way in context.track("uncertainty: networks", ways):
        variables[way] = _networks.learned(problem, way, variables)
        logits[way] = _networks.asked(problem, way, variables[way])
    logits = {way: logits[way] for way in WAYS}
    told, temperatures = _networks.told_by(problem, logits)
    measured = {way: _measured(problem, each) for way, each in told.items()}
    found = {way: numbers for way, (numbers, _) in measured.items()}
    times, thin_agree = _times(context, problem, variables)
    laws = _laws(problem, found, variables) | {
        "mutual_information_is_what_entropy_loses": all(
            ok for _, ok in measured.values()
        ),
        "thin_members_agree": thin_agree,
    }
    numbers = {
        "ways": found,
        "params": _sizes(variables),
        "predict": times,
        "temperatures": temperatures,
        "angles": ANGLES,
        "laws": laws,
    }
    return Outcome(
        rows=rows("uncertainty", **_for_rows(problem, numbers)),
        settings=_settings(problem),
        numbers=numbers,
        pictures=[_draw_reliability(context, problem, told)],
    )


def _for_rows(problem: Problem, numbers: dict[str, Any]) -> dict[str, Any]:
    """What the table says, by the names in `promises.toml`."""
    found, times = numbers["ways"], numbers["predict"]
    temperature = f"temperature {said(numbers['temperatures'], '.3f+-')}, "
    at = [ANGLES.index(angle) for angle in TOLD]
    of_ways, turned = {}, {}
    for way, each in found.items():
        kind, count = (SINGLE, 1) if way == TEMPERED else (way, MEMBERS[way])
        told = temperature if way == TEMPERED else f"{count} members, " * (count > 1)
        slow = f"{times[kind]['relative']:.1f}"
        if way == MASKSEMBLES:
            slow += f" ({times[LAYERED]['relative']:.1f} as layers)"
        more = {"told": told, "params": numbers["params"][kind], "slow": slow}
        (row,) = rows({"": WAY}, what=problem.what, **more, **each)
        of_ways[way] = row.measured
        turned[way] = [list(each[f"turned_{n}"].mean(-1)[at]) for n in ("nll", "ece")]
    return {
        "ways": of_ways,
        "ordered": " < ".join(sorted(found, key=lambda way: found[way]["nll"].mean())),
        "seeds": SEEDS,
        "images": len(problem.x),
        "nll": {way: each["nll"] for way, each in found.items()},
        "turned": turned,
        "laws": list(numbers["laws"].values()),
        "all_laws": all(numbers["laws"].values()),
    }


def _settings(problem: Problem) -> dict[str, Any]:
    return SETTINGS | {
        "network": "-".join(map(str, (problem.x.shape[1], *problem.widths))),
        "ones": [plan.ones for plan in _plans(problem)],
        **problem.training._asdict(),
        "train": len(problem.x),
        "validation": len(problem.validation[0]),
        "test": len(problem.test[0]),
        "turned": len(problem.turned) // len(ANGLES),
        "unknown": f"{len(problem.unknown)} images: {problem.what}",
    }


def _plans(problem: Problem) -> list[masksembles.Plan]:
    how = {"members": MEMBERS[MASKSEMBLES], "scale": _members.SCALE}
    return [masksembles.plan(width, **how) for width in problem.widths[:-1]]


def _laws(problem: Problem, found: dict[str, Any], variables: Any) -> dict[str, bool]:
    """What holds whatever the data."""
    masks = jax.tree.leaves(variables[MASKSEMBLES]["masks"])
    began = jax.tree.leaves(_networks.masks_of(problem, MASKSEMBLES))
    pairs = zip(map(np.asarray, masks), _plans(problem), strict=True)
    exact = [(m.sum(-1) == plan.ones).all() & m.any(1).all() for m, plan in pairs]
    jensen = (each["nll"] <= each["members_nll"] for each in found.values())
    return {
        "ensemble_nll_at_most_mean_of_members": all(map(np.all, jensen)),
        "masks_exact": all(map(bool, exact)),
        "masks_unchanged_by_training": all(map(np.array_equal, masks, began)),
    }


def _unsure(told: Told, both: np.ndarray) -> tuple[dict[str, Any], bool]:
    """Uncertainties, and whether mutual information is what entropy loses."""
    entropy = metrics.entropy(both)
    if len(told.test) == 1:
        return {"entropy": entropy}, True
    every = np.concatenate([told.test, told.unknown], axis=2)
    mutual = metrics.mutual_information(every)
    lost = np.asarray(entropy) - np.asarray(metrics.expected_entropy(every))
    return {
        "entropy": entropy,
        "mutual_information": mutual,
    }, np.allclose(mutual, lost, atol=1e-4)


def _measured(problem: Problem, told: Told) -> tuple[dict[str, Any], bool]:
    """Numbers [S], [A, S] of turned images; and if mutual information is right."""
    y = problem.test[1]
    test, unknown = map(np.asarray, map(_networks.mean, (told.test, told.unknown)))
    both = np.concatenate([test, unknown], axis=1)
    odd = np.arange(both.shape[1]) >= test.shape[1]
    unsure, informed = _unsure(told, both)
    # Angle by angle: of digits they are as many as the test, and nothing is compiled.
    turned = np.split(np.asarray(_networks.mean(told.turned)), len(ANGLES), axis=1)
    labels = y[: turned[0].shape[1]]
    nll, ece = metrics.negative_log_likelihood, metrics.expected_calibration_error
    by_metric = {"accuracy": metrics.accuracy, "nll": nll, "ece": ece}
    found = {
        "accuracy": np.asarray(metrics.accuracy(test, y)),
        "nll": np.asarray(nll(test, y)),
        "members_nll": np.mean([nll(probs, y) for probs in told.test], axis=0),
        "ece": np.asarray(ece(test, y)),
        "auroc": {n: np.asarray(metrics.auroc(x, odd)) for n, x in unsure.items()},
    }
    for name, metric in by_metric.items():
        found[f"turned_{name}"] = np.stack([metric(p, labels) for p in turned])
    return found, informed


def _times(
    context: Context, problem: Problem, variables: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """How long each way predicts 1,024 images, and if small members say the same."""
    x = problem.test[0]
    x, key = jnp.asarray(np.resize(x, (1_024, x.shape[1]))), jax.random.key(3)
    one = {way: jax.tree.map(lambda v: v[0], each) for way, each in variables.items()}

    def contestant(name: str, way: str) -> _timing.Contestant:
        def ask(variables: Any, x: jax.Array, key: jax.Array) -> jax.Array:
            return _members.ask(way, variables, x, rate=_networks.RATE, key=key)

        return _case.contestant(name, ask, one[way], x, key)

    contestants = [contestant(way, way) for way in (SINGLE, DROPOUT, ENSEMBLE)]
    contestants.append(contestant(LAYERED, MASKSEMBLES))
    *small, plan = _members.compacted(one[MASKSEMBLES])
    compacted = functools.partial(_members.ask_compacted, plan=plan)
    contestants.append(_case.contestant(MASKSEMBLES, compacted, *small, x))
    agreed = []

    def agree(results: Any) -> None:
        close = np.allclose(results[LAYERED], results[MASKSEMBLES], 1e-4, 1e-4)
        agreed.append(bool(close))

    raced = _timing.race(contestants, agree, **context.pick(RACES))
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


def _draw_reliability(context: Context, problem: Problem, told: dict[str, Told]) -> str:
    """Of all seeds together."""
    y, bins = np.tile(problem.test[1], SEEDS), {}
    for way, each in told.items():
        pooled = np.asarray(_networks.mean(each.test)).reshape(len(y), -1)
        found = metrics.reliability(pooled, y)
        # The accuracy of a handful of images says nothing.
        enough = np.where(found.count >= FEWEST, found.count, 0)
        bins[way] = found._replace(count=enough)
    drawn = report.plot_reliability(bins)
    drawn.set_size_inches(7.5, 5)
    (axes,) = drawn.axes
    which = f"{SEEDS} seeds together, bins of {FEWEST} images or more"
    axes.set_title(f"Reliability: {context.data.name}\n{which}")
    axes.legend(loc="lower right")  # where overconfidence would be
    return _pictures.save(drawn, context, "uncertainty_reliability")


TITLE = "MC-dropout, Masksembles, deep ensembles: how sure (2016, 2021, 2017)"
DEMO = Demo("uncertainty", TITLE, run, seconds=9, uses=("omniglot",))
