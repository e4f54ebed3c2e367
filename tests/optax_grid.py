"""Every transformation, wrapper and optimizer of optax, with each mask before or after.

`outcome` trains a few steps, and answers as the table in `docs/optax.md` does.
"""

import functools
import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from maskjax import optim, where
from tests.training import bits, make_params, top_half

KEY = jax.random.key(0)
MASKS = ("mask_updates", "keep_sparse", "prune", "rigl")
PLACES = ("before", "after")
CELLS = [(mask, place) for mask in MASKS for place in PLACES]
STEPS = 6

PARAMS = make_params()
del PARAMS["b"]["bias"]  # galore takes no None
PARAMS["a"]["kernel"][:3, :4] = -0.0  # among those that a mask removes
ONE = where.matching("a.*kernel")
NEED_GRADIENTS = set()
LABELS = {"a": "x", "b": "y"}
ONLY, REST = {"a": True, "b": False}, {"a": False, "b": True}


def loss(params):
    return sum(jnp.sum(0.15 * p**2 + 0.05 * p) for p in jax.tree.leaves(params))


def larger(params):
    """The larger half of one kernel, wherever it is, by NumPy.

    Where none is, the mask of those that there were, as users would pass it.
    """

    def of_leaf(path, leaf):
        return top_half(leaf) if ONE("/".join(map(str, path)), leaf) else None

    found = jax.tree_util.tree_map_with_path(of_leaf, params)
    return found if jax.tree.leaves(found) else larger(PARAMS)


def mask_of_kind(name):
    """A fresh transformation of `maskjax.optim`."""
    if name == "mask_updates":
        return optim.mask_updates(larger)
    if name == "keep_sparse":
        return optim.keep_sparse(larger)
    if name == "prune":
        return optim.prune(optax.linear_schedule(0.8, 0.4, 4), every=2, where=ONE)
    rigl = optim.rigl(0.5, rate=0.4, every=2, where=ONE, key=KEY)
    NEED_GRADIENTS.add(rigl.update)
    return rigl


def chained(before, after):
    """A chain in which `rigl` gets gradients."""
    chain = optax.chain(before, after)
    rigl = {before.update, after.update} & NEED_GRADIENTS
    return optim.with_gradients(chain) if rigl else chain


def around(wrap):
    """A wrapper around a chain with the mask; and before it."""

    def make(mask, place):
        if place == "after":
            return chained(wrap(optax.sgd(0.05)), mask)
        return wrap(chained(optax.sgd(0.05), mask))

    return make


def beside(transformation):
    """A transformation behind the mask, and before it."""

    def make(mask, place):
        pair = (mask, transformation) if place == "before" else (transformation, mask)
        return chained(*pair)

    return make


def _every_other(step, *_, **__):
    return step % 2 == 0


def _halved(updates, params=None):
    return jax.tree.map(lambda u: 0.5 * u, updates)


def _lookahead(mask, place):
    wrap = lambda fast: optax.lookahead(fast, 2, 0.5)  # noqa: E731
    return around(wrap)(mask, place)


def _injected(inject):
    def make(mask, place):
        if place == "after":
            return chained(inject(optax.sgd)(0.05), mask)
        return inject(lambda rate: chained(optax.sgd(rate), mask))(rate=0.05)

    return make


def _parts(split):
    return around(lambda inner: split({"x": inner, "y": optax.sgd(0.05)}, LABELS))


def _multi_steps(inner):
    return optax.MultiSteps(inner, 2).gradient_transformation()


def _sam(inner):
    away = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    return optax.contrib.sam(inner, away, sync_period=2)


def _split_names(inner):
    return optax.named_chain(("first", optax.identity()), ("second", inner))


def _schedule_free(inner):
    return optax.contrib.schedule_free(inner, learning_rate=0.05, b1=0.9)


WRAPPERS = {
    "MultiSteps": around(_multi_steps),
    "apply_if_finite": around(lambda inner: optax.apply_if_finite(inner, 3)),
    "chain": around(lambda inner: optax.chain(optax.identity(), inner)),
    "conditionally_mask": around(
        lambda inner: optax.conditionally_mask(inner, _every_other, True)
    ),
    "conditionally_transform": around(
        lambda inner: optax.conditionally_transform(inner, _every_other, True)
    ),
    "flatten": around(optax.flatten),
    "inject_hyperparams": _injected(optax.inject_hyperparams),
    "inject_stateful_hyperparams": _injected(optax.inject_stateful_hyperparams),
    "lookahead": _lookahead,
    "masked": around(lambda inner: optax.masked(inner, ONLY)),
    "multi_transform": _parts(optax.multi_transform),
    "named_chain": around(_split_names),
    "partition": _parts(optax.partition),
    "selective_transform": around(
        lambda inner: optax.selective_transform(inner, freeze_mask=REST)
    ),
    "with_extra_args_support": around(optax.with_extra_args_support),
    "contrib.mechanize": around(optax.contrib.mechanize),
    "contrib.sam": around(_sam),
    "contrib.schedule_free": around(_schedule_free),
    "contrib.split_real_and_imaginary": around(optax.contrib.split_real_and_imaginary),
}

# What the others need besides a learning rate; strong enough to act in a few steps.
_norm = optax.tree.norm
ARGUMENTS = {
    "adaptive_grad_clip": (0.001,),
    "add_decayed_weights": (0.1,),
    "add_noise": (0.01, 0.5, 0),
    "apply_every": (2,),
    "clip": (0.01,),
    "clip_by_block_rms": (0.01,),
    "clip_by_global_norm": (0.01,),
    "ema": (0.9,),
    "freeze": (ONLY,),
    "measure_with_ema": (_norm, 0.9),
    "monitor": ({"norm": _norm},),
    "noisy_sgd": (0.01, 0.01, 0.55, 0),
    "scale": (-0.1,),
    "scale_by_backtracking_linesearch": (5,),
    "scale_by_learning_rate": (0.1,),
    "scale_by_polyak": (0.0, 0.1),
    "scale_by_rprop": (0.01,),
    "scale_by_schedule": (lambda step: -0.1,),
    "scale_by_zoom_linesearch": (5,),
    "snapshot": ("norm", _norm),
    "stateless": (_halved,),
    "stateless_with_tree_map": (lambda u, p: 0.5 * u,),
    "trace": (0.9,),
    "contrib.differentially_private_aggregate": (0.1, 0.1, 0),
    "contrib.dpsgd": (0.01, 0.1, 0.1, 0),
    "contrib.hutchinson_estimator_diag_hessian": (KEY,),
    "contrib.reduce_on_plateau": (0.5, 1, 0.9),
    "contrib.scale_by_madgrad": (0.01,),
}
VALUE = ["value"]
SEARCH = ["value", "grad", "value_fn"]
EXTRA = {
    "lbfgs": SEARCH,
    "polyak_sgd": VALUE,
    "scale_by_backtracking_linesearch": SEARCH,
    "scale_by_polyak": VALUE,
    "scale_by_zoom_linesearch": SEARCH,
    "contrib.hutchinson_estimator_diag_hessian": ["obj_fn"],
    "contrib.momo": VALUE,
    "contrib.momo_adam": VALUE,
    "contrib.reduce_on_plateau": VALUE,
    "contrib.sophia": ["obj_fn"],
}
# One program each, as they have loops and branches. The others share the programs of
# their arithmetic, so that the whole grid takes minutes.
COMPILED = {*WRAPPERS, *EXTRA, "sophia", "contrib.galore", "contrib.muon"}
COMPILED |= {"contrib.scale_by_galore", "contrib.scale_by_muon"}
PER_EXAMPLE = {"contrib.differentially_private_aggregate", "contrib.dpsgd"}
UNANNOTATED = {"monitor", "scale_by_factored_rms", "contrib.dog", "contrib.dowg"}
UNANNOTATED |= {"contrib.hutchinson_estimator_diag_hessian"}


def public():
    """The names of all public functions that make a transformation, and of a class."""
    names = {"MultiSteps"} | UNANNOTATED
    for module, prefix in ((optax, ""), (optax.contrib, "contrib.")):
        for name in dir(module):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                function = getattr(module, name)
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            if prefix == "" and hasattr(optax.contrib, name):
                continue  # deprecated
            returned = inspect.signature(function).return_annotation
            if "GradientTransformation" in str(returned):
                names.add(prefix + name)
    return sorted(names, key=lambda name: name.removeprefix("contrib."))


def maker(name):
    """From a transformation with a mask and its place to the whole optimizer."""
    if name in WRAPPERS:
        return WRAPPERS[name]
    if name == "contrib.scale_by_muon":
        return beside(optax.masked(_scale_by_muon(), matrices))
    module = optax.contrib if name.startswith("contrib.") else optax
    make = getattr(module, name.removeprefix("contrib."))
    arguments = ARGUMENTS.get(name)
    if arguments is None:
        rate = inspect.signature(make).parameters.get("learning_rate")
        needed = rate is not None and rate.default is rate.empty
        arguments = (0.01,) if needed else ()
    return beside(make(*arguments))


def matrices(params):
    return jax.tree.map(lambda p: np.ndim(p) == 2, params)


def _scale_by_muon():
    either = optax.contrib.MuonDimensionNumbers()
    told = lambda params: jax.tree.map(lambda _: either, params)  # noqa: E731
    return optax.contrib.scale_by_muon(weight_dimension_numbers=told)


def views(name, params, state):
    """The parameters, and others that a wrapper makes of them."""
    if name == "lookahead" and isinstance(params, optax.LookaheadParams):
        mask = optim.mask_of(state)
        if not isinstance(mask, optax.LookaheadParams):
            return [params.fast, params.slow]
    if name.startswith("contrib.schedule_free"):
        is_state = lambda s: isinstance(s, optax.contrib.ScheduleFreeState)  # noqa: E731
        found = [s for s in jax.tree.leaves(state, is_leaf=is_state) if is_state(s)]
        return [params, optax.contrib.schedule_free_eval_params(found[0], params)]
    return [params]


def outcome(name, mask, place):
    """What the cell of the table says."""
    try:
        optimizer = maker(name)(mask_of_kind(mask), place)
        return _trained(name, optimizer, frozen=mask == "mask_updates")
    except (TypeError, ValueError) as error:
        return f"refused: {str(error).splitlines()[0]}"


def _trained(name, optimizer, *, frozen):
    params = jax.tree.map(jax.device_put, PARAMS)
    if name == "lookahead":
        params = optax.LookaheadParams.init_synced(params)
    if name in EXTRA:
        optimizer = optax.with_extra_args_support(optimizer)
    state, start = optimizer.init(params), params
    step = functools.partial(_step, name, optimizer)
    step = jax.jit(step) if name in COMPILED else step
    starts = views(name, start, state) if name == "lookahead" else [start] * 2
    told = exact = 0
    for n in range(STEPS):
        if n == 3 and not frozen and name not in WRAPPERS:
            # Not only what was zero before is zero.
            params = jax.tree.map(lambda p: p + np.float32(0.1), params)
        params, state, seen = step(params, state)
        if not frozen and not _begun(state):
            continue
        for first, one in zip(starts, seen, strict=False):
            right = _right(one, first, optim.mask_of(state, one), frozen=frozen)
            try:
                optim.check(state, one, first if frozen else None)
                noticed = False
            except ValueError as error:
                if "finds parameters" not in str(error):
                    raise
                noticed = True
            assert noticed != right, (name, noticed, right)
            told, exact = told + noticed, exact + right
    assert told or exact, name
    return "told" if told else "exact"


def _step(name, optimizer, params, state):
    plain = params.fast if name == "lookahead" else params
    gradients = jax.grad(loss)(plain)
    given = gradients
    if name in PER_EXAMPLE:
        given = jax.tree.map(lambda g: g[None], gradients)
    every = {"value": loss(plain), "grad": gradients, "value_fn": loss, "obj_fn": loss}
    extra = {key: every[key] for key in EXTRA.get(name, ())}
    updates, state = optimizer.update(given, state, params, **extra)
    params = optax.apply_updates(params, updates)
    return params, state, views(name, params, state)


def _begun(state):
    is_state = lambda s: isinstance(s, optim.MaskState)  # noqa: E731
    found = [s for s in jax.tree.leaves(state, is_leaf=is_state) if is_state(s)]
    return all(int(s.count) > 0 for s in found)


def _right(params, start, mask, *, frozen):
    """Whether every leaf with a mask is as it leaves it, by NumPy."""
    none = lambda x: x is None  # noqa: E731
    masks = jax.tree.leaves(mask, is_leaf=none)
    leaves = [jax.tree.leaves(tree, is_leaf=none) for tree in (params, start)]
    assert any(m is not None for m in masks)
    for m, p, s in zip(masks, *leaves, strict=True):
        if m is None:
            continue
        out = ~np.broadcast_to(np.asarray(m), np.shape(p))
        if frozen and (bits(p)[out] != bits(s)[out]).any():
            return False
        if not frozen and np.asarray(p)[out].any():
            return False
    return True


ROW = re.compile(r"^\| (.+?) \| (.+) \|$")


def parse(text):
    """The cells of every name in the table of a page."""
    rows = {}
    for line in text.splitlines():
        found = ROW.match(line)
        if not found or not found[1].startswith("`"):
            continue
        cells = [cell.strip() for cell in found[2].split("|")]
        for name in re.findall(r"`([^`]+)`", found[1]):
            assert name not in rows, name
            rows[name] = cells
    return rows


def table(results):
    """The rows of the table: names with equal cells share one."""
    groups = {}
    for name, cells in results.items():
        groups.setdefault(tuple(cells), []).append(f"`{name}`")
    lines = [f"| {', '.join(names)} | {' | '.join(c)} |" for c, names in groups.items()]
    return "\n".join(sorted(lines))
