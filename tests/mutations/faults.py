"""The faults, as data.

A fault replaces one piece of text of the library. The text has to be there exactly
once, so that a fault whose code has moved is an error, and not silently lost. When
code changes, look up the behavior in `breaks` and write `old` and `new` anew for the
place where that behavior now lives.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One deliberate mistake.

    Attributes:
        name: What to pass to `--only`.
        breaks: The public behavior that goes wrong, in one sentence.
        place: A file, or a folder with the one file that holds `old`, below `maskjax/`.
        old: The text to replace: short, and there exactly once.
        new: The text to put in its place.
        tests: The files below `tests/` of which at least one test has to fail.
    """

    name: str
    breaks: str
    place: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    # Selection
    Fault(
        "ties-one-too-many",
        "select.top_k: one entry too many is kept where scores are equal.",
        "select",
        "jnp.where(run.at_high == missing, run.high, run.low)",
        "run.low",
        ("test_laws.py", "test_select.py"),
    ),
    Fault(
        "ties-of-a-group-by-the-last",
        "structure.NofM: of equal scores in a group the last are kept, not the first.",
        "select",
        "place[None, :] < place[:, None]",
        "place[None, :] > place[:, None]",
        ("test_select.py",),
    ),
    Fault(
        "groups-keep-one-more",
        "structure.NofM: a group keeps up to n + 1 of its m entries.",
        "select",
        "rank < structure.n",
        "rank <= structure.n",
        ("test_structure.py",),
    ),
    Fault(
        "nan-is-the-best-score",
        "select.top_k: a score that is nan ranks above every number, not below.",
        "select",
        "jnp.where(magnitude > infinity, _lowest(key) + 1, ordered)",
        "ordered",
        ("test_select.py",),
    ),
    Fault(
        "within-counts-everything",
        "select.top_k, select.drop: `within` restricts what is kept, but the density "
        "counts all entries.",
        "select",
        "known = of_all or within is None",
        "known = True",
        ("test_rounds.py", "test_select.py"),
    ),
    Fault(
        "within-does-not-restrict",
        "select.top_k: entries outside of `within` compete with those inside.",
        "select",
        "return ordered if alive is None else jnp.where(alive, ordered, _lowest(key))",
        "return ordered",
        ("test_select.py",),
    ),
    Fault(
        "guess-is-believed",
        "select.top_k: a guess changes the mask, for only scores near it are searched.",
        "select",
        "interval = update(interval, [jnp.clip(p, *ends) for p in first])",
        "interval = update(interval, [jnp.clip(p, *ends) for p in first])\n"
        "        half = (interval.high - interval.low) // 2\n"
        "        interval = interval._replace(low=interval.low + half)",
        ("test_select.py",),
    ),
    Fault(
        "halves-to-even",
        "select.top_k: density * n that ends in one half is rounded to the even count.",
        "select",
        "math.floor(exact * n + fractions.Fraction(1, 2))",
        "round(exact * n)",
        ("test_quota.py",),
    ),
    Fault(
        "traced-counts-rounded-down",
        "select.drop: rate * n is rounded down where n is traced.",
        "select",
        "(2 * p_ * rest + q_) // (2 * q_)",
        "(2 * p_ * rest) // (2 * q_)",
        ("test_quota.py",),
    ),
    Fault(
        "one-round-too-few",
        "select.iterative_top_k: one of the rounds is left out.",
        "select",
        "jnp.arange(1, rounds, dtype=jnp.float32)",
        "jnp.arange(2, rounds, dtype=jnp.float32)",
        ("test_rounds.py",),
    ),
    Fault(
        "grow-removes",
        "select.grow: entries of the mask are removed if it holds more than is asked.",
        "select",
        "mask if hold is None else mask | hold",
        "mask",
        ("test_rounds.py",),
    ),
    Fault(
        "threshold-is-strict",
        "select.threshold: a score equal to the threshold is removed. `supsup` and "
        "`hopsupsup` rely on it at 0.",
        "select",
        "lambda s: s >= ",
        "lambda s: s > ",
        ("test_select.py", "recipes/test_supsup.py"),
    ),
    Fault(
        "one-key-for-all-leaves",
        "select.bernoulli: leaves of one shape are drawn with the same key.",
        "select",
        "jax.random.uniform(jax.random.fold_in(key, i), p.shape, jnp.float32)",
        "jax.random.uniform(key, p.shape, jnp.float32)",
        ("test_select.py",),
    ),
    # Structures, allocation, predicates
    Fault(
        "block-score-is-a-sum",
        "structure.Block, Units: within a mask the score is a sum over what is alive, "
        "not a mean.",
        "structure.py",
        "return total / jnp.maximum(count, 1).astype(wide)",
        "return total",
        ("test_structure.py",),
    ),
    Fault(
        "density-above-one",
        "allocation.erk: the share of a small leaf is not capped at 1.",
        "allocation.py",
        "min(float(factor * rate), 1.0) for rate in rates",
        "float(factor * rate) for rate in rates",
        ("test_allocation.py",),
    ),
    Fault(
        "biases-are-kernels",
        "where.kernels: biases are chosen too.",
        "where.py",
        "len(leaf.shape) >= 2",
        "len(leaf.shape) >= 1",
        ("test_where.py",),
    ),
    # Packed masks
    Fault(
        "bits-in-reverse",
        "packing.pack: bits of a word are written in reverse order.",
        "packing.py",
        "planes[j].astype(jnp.uint32) << j",
        "planes[j].astype(jnp.uint32) << (WORD - 1 - j)",
        ("test_packing.py",),
    ),
    Fault(
        "padding-bits-are-set",
        "packing.pack: bits past the last entry are 1, and are counted.",
        "packing.py",
        "_planes(leaf, padding=0)",
        "_planes(leaf, padding=1)",
        ("test_packing.py", "test_algebra.py"),
    ),
    Fault(
        "complement-of-padding",
        "algebra.complement: of a packed mask the bits past the last entry flip too.",
        "algebra.py",
        "leaf.bits ^ packing.valid_bits(leaf.shape)",
        "~leaf.bits",
        ("test_algebra.py",),
    ),
    Fault(
        "members-mixed-twice",
        "packing.mix: members at the seam of two chunks count twice if their number is "
        "no multiple of the chunk.",
        "packing.py",
        "jnp.where(again, jnp.zeros((), weight.dtype), weight)",
        "weight",
        ("test_packing.py",),
    ),
    # Banks
    Fault(
        "full-bank-overwrites",
        "bank.append: under `jit` a full bank overwrites its last mask.",
        "bank.py",
        "free = bank.learned < capacity(bank)",
        "free = bank.learned <= capacity(bank)",
        ("test_bank.py",),
    ),
    Fault(
        "mean-of-what-was-not-stored",
        "bank.append, bank.put: the mean changes though the mask was not stored.",
        "bank.py",
        "return count + jnp.where(allowed, gain, 0)",
        "return count + gain",
        ("test_bank.py",),
    ),
    Fault(
        "tasks-from-the-end-of-the-room",
        "bank.take: -1 is the last slot, learned or not, rather than the last task.",
        "_core/slots.py",
        "index = jnp.where(index < 0, index + end, index)",
        "index = jnp.where(index < 0, index + capacity, index)",
        ("test_bank.py",),
    ),
    # Applying
    Fault(
        "apply-multiplies",
        "maskjax.apply: removed entries are 0 * parameter, so inf and nan stay nan.",
        "masking.py",
        "jnp.where(mask, param, jnp.zeros_like(param) if fill is None else fill)",
        "param * mask.astype(param.dtype) if fill is None "
        "else jnp.where(mask, param, fill)",
        ("test_laws.py",),
    ),
    Fault(
        "fill-is-added",
        "maskjax.apply: with a soft mask `fill` is added in full, not by what is left.",
        "masking.py",
        "mask * param + (1 - mask) * fill",
        "mask * param + fill",
        ("test_masking.py",),
    ),
    Fault(
        "gradient-through-the-count",
        "masking.rescale: through_count=False lets the gradient through all the same.",
        "masking.py",
        "kept = kept if through_count else lax.stop_gradient(kept)",
        "",
        ("test_masking.py",),
    ),
    # Estimators
    Fault(
        "gradient-of-the-kept-only",
        "estimator.straight_through: scores of removed entries get no gradient.",
        "estimator.py",
        "return _pass_through(hard, soft), tangents[1]",
        "return _pass_through(hard, soft), tangents[1] * hard.astype(soft.dtype)",
        ("test_estimator.py",),
    ),
    # Many masks
    Fault(
        "answers-in-order-of-members",
        "stacking.predict_each: samples are grouped without sorting them by member.",
        "stacking.py",
        "[number, place % group].set(order)",
        "[number, place % group].set(at)",
        ("test_stacking.py",),
    ),
    Fault(
        "from-the-end-is-the-first",
        "stacking.take: a negative index takes the first member.",
        "stacking.py",
        "index = jnp.where(index < 0, index + k, index)",
        "",
        ("test_stacking.py",),
    ),
    # Superposition
    Fault(
        "gradient-with-the-wrong-sign",
        "superposition.gradient, one_shot: the gradient has the wrong sign.",
        "superposition.py",
        "lambda m: objective(",
        "lambda m: -objective(",
        ("test_superposition.py",),
    ),
    Fault(
        "unlearned-slot-is-inferred",
        "superposition.infer: a slot that holds no task can be the answer.",
        "superposition.py",
        "jnp.where(comparable, values, jnp.inf)",
        "jnp.where(jnp.isnan(values), jnp.inf, values)",
        ("test_superposition.py",),
    ),
    Fault(
        "superfluous-pulls-real-outputs",
        "superposition.superfluous: the gradient reaches real outputs too.",
        "superposition.py",
        "lax.stop_gradient(logits[..., :labels])",
        "logits[..., :labels]",
        ("test_superposition.py",),
    ),
    Fault(
        "binary-drops-one-too-many",
        "superposition.binary: of an odd number of tasks the smaller half goes on.",
        "superposition.py",
        "return (rows, -(-left // base)), None",
        "return (rows, left // base), None",
        ("test_superposition.py",),
    ),
    # Storage
    Fault(
        "stale-checksum",
        "storage.load: a flipped bit of a mask goes unnoticed.",
        "storage",
        "if digest.hexdigest() != leaf.sha256:",
        "if not leaf.sha256:",
        ("test_storage.py",),
    ),
    Fault(
        "chain-without-checksums",
        "storage.load: a file of another bank may take the place of one in a folder.",
        "storage",
        'if folder and start != ("bank", total, before):',
        'if folder and start[:2] != ("bank", total):',
        ("test_storage.py",),
    ),
    Fault(
        "first-stray-bit-is-fine",
        "storage.save, storage.load: the first bit past the entries is not looked at.",
        "storage",
        "np.arange(math.prod(shape), WORD * width)",
        "np.arange(math.prod(shape) + 1, WORD * width)",
        ("test_storage.py",),
    ),
    # Optimizers
    Fault(
        "removed-weights-come-back",
        "optim.keep_sparse, optim.prune: removed weights keep the value they had.",
        "optim",
        "return jnp.where(m, u, -p.astype(u.dtype))",
        "return jnp.where(m, u, jnp.zeros_like(u))",
        ("test_optim.py",),
    ),
    Fault(
        "frozen-weights-drift",
        "optim.mask_updates: the momentum of frozen weights moves them.",
        "optim",
        "return jnp.where(m, u, jnp.array(-0.0, u.dtype))",
        "return u",
        ("test_optim.py",),
    ),
    Fault(
        "moments-of-grown-weights",
        "optim.reset_moments: a weight that grows keeps the moments it had before.",
        "optim",
        "jnp.where(c, f, x) if c is not None and _entrywise(x, c) else x",
        "x",
        ("test_optim.py",),
    ),
    Fault(
        "rigl-grows-where-flat",
        "optim.rigl: weights grow where the gradient is small.",
        "optim",
        "return lambda _: magnitude(gradients, where=where)",
        "return lambda _: jax.tree.map(\n"
        "            jnp.negative, magnitude(gradients, where=where)\n        )",
        ("test_optim.py",),
    ),
    Fault(
        "schedule-one-step-late",
        "optim.prune: the density is that of the schedule one step before.",
        "optim",
        "return shrunk(scored(now), state.mask, now, count)",
        "return shrunk(scored(now), state.mask, now, state.count)",
        ("test_optim.py",),
    ),
    Fault(
        "change-one-step-late",
        "optim.rigl, optim.set_: the mask changes one step after it is due.",
        "optim",
        "when(count % every == 0, change, old)",
        "when(count % every == 1, change, old)",
        ("test_optim.py",),
    ),
    Fault(
        "grown-weights-are-updated",
        "optim.rigl, optim.set_: a grown weight takes part in the step in which it "
        "grows.",
        "optim",
        "return mask, algebra.intersection(mask, state.mask)",
        "return mask, mask",
        ("test_optim.py",),
    ),
    Fault(
        "no-room-to-grow",
        "optim.rigl, optim.set_: regrow=False is accepted where nothing can grow.",
        "optim",
        "if grows <= free:",
        "if grows <= size:",
        ("test_optim.py",),
    ),
    # Scores
    Fault(
        "synflow-of-signed-weights",
        "score.synflow: parameters keep their signs, so paths cancel.",
        "score",
        "jnp.abs(leaf) if checks.is_floating(leaf) else leaf",
        "leaf",
        ("test_score.py",),
    ),
    Fault(
        "fisher-of-the-batch",
        "score.fisher: squares the gradient of a batch, not of each example.",
        "score",
        "jnp.sum(jnp.square(wide(g)), axis=0)",
        "jnp.square(jnp.sum(wide(g), axis=0))",
        ("test_score.py",),
    ),
    Fault(
        "fisher-skips-the-rest",
        "score.fisher: one example that is left over after whole batches is skipped.",
        "score",
        "if whole < examples:",
        "if whole + 1 < examples:",
        ("test_score.py",),
    ),
    Fault(
        "grasp-with-the-wrong-sign",
        "score.grasp: what hurts the flow of gradients is kept.",
        "score",
        "f.tree([wide(w) * wide(x) for",
        "f.tree([-wide(w) * wide(x) for",
        ("test_score.py",),
    ),
    Fault(
        "norms-along-the-wrong-axis",
        "score.input_norms: norms of a transposed kernel lie along its outputs.",
        "_core/walk.py",
        'tuple(axes[i] for i in params["permutation"])',
        "axes",
        ("test_contraction.py",),
    ),
    Fault(
        "scan-counts-once",
        "report.flops: the steps of a scan count as one.",
        "_core/walk.py",
        'params["length"] * inner.found.flops.get(i, 0)',
        "inner.found.flops.get(i, 0)",
        ("test_contraction.py",),
    ),
    # Recipes
    Fault(
        "packnet-owner-off-by-one",
        "packnet.active: a task runs without the weights that are its own.",
        "recipes",
        "last = jnp.where(exists, index + 1, 0)",
        "last = jnp.where(exists, index, 0)",
        ("recipes/test_packnet.py",),
    ),
    Fault(
        "packnet-retrains",
        "packnet.begin: weights of earlier tasks are trained again.",
        "recipes",
        "return (owner == 0) & room",
        "return (owner >= 0) & room",
        ("recipes/test_packnet.py",),
    ),
    Fault(
        "pacnet-retrains-the-source",
        "pacnet.allocate: the target trains the weights of the source, not the others.",
        "recipes",
        "if kept is None else ~kept",
        "if kept is None else kept",
        ("recipes/test_pacnet.py",),
    ),
    Fault(
        "pacnet-penalty-of-everything",
        "pacnet.l2_sp: the penalty counts weights that its mask leaves out.",
        "recipes",
        "jnp.sum(jnp.square(masking.apply(d, m)))",
        "jnp.sum(jnp.square(d))",
        ("recipes/test_pacnet.py",),
    ),
    Fault(
        "ticket-rewinds-too-far",
        "lottery_ticket.search: rounds start from the initial weights, not from those "
        "after the warm-up.",
        "recipes",
        "start = rewound if reset_each_round else final",
        "start = params if reset_each_round else final",
        ("recipes/test_lottery_ticket.py",),
    ),
    Fault(
        "ranks-of-the-larger",
        "deconstructing.scores: large_init_large_final takes the higher of two ranks.",
        "recipes",
        "jnp.minimum(x, y_as_x)",
        "jnp.maximum(x, y_as_x)",
        ("recipes/test_deconstructing.py",),
    ),
    Fault(
        "too-few-ones",
        "masksembles.masks: masks have too few ones for the overlap that is asked.",
        "recipes/masksembles",
        "-math.expm1(members * math.log1p(-1 / scale)) if scale > 1 else 1.0",
        "1.0",
        ("recipes/test_masksembles.py",),
    ),
    Fault(
        "edge-popup-ranks-signed",
        "edge_popup: ranks scores by their value, not by their magnitude.",
        "recipes/edge_popup.py",
        "map_mask(jnp.abs, state.scores)",
        "state.scores",
        ("recipes/test_edge_popup.py",),
    ),
    Fault(
        "supermask-density-of-leaves",
        "supermask.density: leaves count alike, whatever their size.",
        "recipes/supermask.py",
        "jnp.average(means, weights=jnp.array(sizes, jnp.float32))",
        "jnp.mean(means)",
        ("recipes/test_supermask.py",),
    ),
    Fault(
        "supsup-keys-begin-anew",
        "supsup.learn: later tasks get the keys of the first ones.",
        "recipes/supsup.py",
        "bank.learned + jnp.arange(many, dtype=jnp.int32)",
        "jnp.arange(many, dtype=jnp.int32)",
        ("recipes/test_supsup.py",),
    ),
    Fault(
        "stream-allocates-when-certain",
        "supsup_stream.allocate: a new task is begun when a known one fits, and no "
        "other time.",
        "recipes/supsup_stream.py",
        "nu[best] < 1 + epsilon",
        "nu[best] > 1 + epsilon",
        ("recipes/test_supsup_stream.py",),
    ),
    Fault(
        "meta-ticket-first-order",
        "meta_ticket.adapt: gradients never flow through the inner gradients.",
        "recipes/meta_ticket.py",
        "lax.stop_gradient(gradients) if first_order else gradients",
        "lax.stop_gradient(gradients)",
        ("recipes/test_meta_ticket.py",),
    ),
    Fault(
        "meta-ticket-first-order-of-the-mask",
        "meta_ticket.adapt: first_order=True lets a second-order term of the mask in.",
        "recipes/meta_ticket.py",
        "lax.stop_gradient(mask) if first_order else mask",
        "mask",
        ("recipes/test_meta_ticket.py",),
    ),
    Fault(
        "hopsupsup-not-normalized",
        "hopsupsup.store: outer products are not divided by the number of entries.",
        "recipes/hopsupsup.py",
        "return psi + new / z.size",
        "return psi + new",
        ("recipes/test_hopsupsup.py",),
    ),
    Fault(
        "hopsupsup-schedule-reversed",
        "hopsupsup.recover: the energy counts at the start, the objective at the end.",
        "recipes/hopsupsup.py",
        "(1 - share) * value + share * strength * stored",
        "share * value + (1 - share) * strength * stored",
        ("recipes/test_hopsupsup.py",),
    ),
    Fault(
        "dropout-does-not-rescale",
        "mc_dropout.masks: kept units are not divided by the chance of being kept.",
        "recipes/mc_dropout.py",
        "jnp.where(kept, 1 / keep, 0.0)",
        "jnp.where(kept, 1.0, 0.0)",
        ("recipes/test_mc_dropout.py",),
    ),
    Fault(
        "mixture-without-spread",
        "deep_ensemble.mixture: the variance leaves out how far the means are apart.",
        "recipes/deep_ensemble.py",
        "jnp.mean(variances, 0) + jnp.var(means, 0)",
        "jnp.mean(variances, 0)",
        ("recipes/test_deep_ensemble.py",),
    ),
    Fault(
        "iterand-mixes-linearly",
        "iterand.redraw: old weights are scaled by 1 - mix, so their variance shrinks.",
        "recipes/iterand.py",
        "jnp.sqrt(1 - share**2) * old",
        "(1 - share) * old",
        ("recipes/test_iterand.py",),
    ),
    # Theory
    Fault(
        "bound-forgets-the-bias",
        "strong_ticket.bound: errors of biases are left out of the bound.",
        "theory",
        'np.sqrt((r + e) ** 2 + ("bias" in layer))',
        "np.sqrt((r + e) ** 2)",
        ("theory/test_strong_ticket.py",),
    ),
    Fault(
        "negative-half-of-no-use",
        "gadget.choose: neurons for negative inputs are kept though inputs are never "
        "negative.",
        "theory",
        "mask | (half(-1) & ~never[:, None, None])",
        "mask | half(-1)",
        ("theory/test_gadget.py",),
    ),
    # Metrics and reports
    Fault(
        "bins-take-their-lower-end",
        "metrics.reliability: a confidence on an edge falls into the bin above.",
        "metrics",
        "(place > low) & (place <= high)",
        "(place >= low) & (place < high)",
        ("test_calibration.py",),
    ),
    Fault(
        "ties-are-lost",
        "metrics.auroc: a positive and a negative of one score count as a loss.",
        "metrics",
        "(1 + (won - lost)) / 2",
        "won",
        ("test_detection.py",),
    ),
    Fault(
        "crps-spread-twice",
        "metrics.mixture_crps: the spread within the mixture is subtracted twice.",
        "metrics",
        ".mean(0) - within / 2",
        ".mean(0) - within",
        ("test_regression.py",),
    ),
    Fault(
        "forgetting-before-learning",
        "metrics.forgetting: accuracies from before a task was learned count too.",
        "metrics",
        "jnp.where(since, matrix[..., :-1, :-1], -jnp.inf)",
        "matrix[..., :-1, :-1]",
        ("test_metrics.py",),
    ),
    Fault(
        "union-counts-twice",
        "report.overlaps: entries of both masks count twice in their union.",
        "report",
        "kept[:, None] + kept[None] - both",
        "kept[:, None] + kept[None]",
        ("test_report.py",),
    ),
    # What is refused, and how
    Fault(
        "error-without-a-path",
        "maskjax.apply: the error about a mask's shape does not name the leaf.",
        "_core/checks.py",
        'return f"{path}: {names[1]} {leaf.shape}, {names[0]} {np.shape(param)}"',
        'return f"{names[1]} {leaf.shape}, {names[0]} {np.shape(param)}"',
        ("test_errors.py",),
    ),
    Fault(
        "negative-density",
        "Every function with a density or rate: a negative one passes.",
        "_core/checks.py",
        "not 0.0 <= float(value) <= 1.0",
        "not float(value) <= 1.0",
        ("test_errors.py",),
    ),
    Fault(
        "keys-used-twice",
        "deep_ensemble.init, mc_dropout: a key that two members share passes.",
        "_core/checks.py",
        "if first[k] != i",
        "if first[k] > i",
        ("recipes/test_deep_ensemble.py",),
    ),
    Fault(
        "signs-without-density",
        "initializer.signed_constant: weights are not scaled by the density.",
        "initializer.py",
        "(2 / (density * max(math.prod(shape[:-1]), 1))) ** 0.5",
        "(2 / max(math.prod(shape[:-1]), 1)) ** 0.5",
        ("test_initializer.py",),
    ),
)
