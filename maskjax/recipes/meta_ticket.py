"""Meta-ticket: meta-learn a mask on random weights (Chijiwa et al., NeurIPS 2022).

arXiv:2205.15619. MAML (Finn et al., arXiv:1703.03400) is the same loop around a mask
that keeps everything, with the weights meta-trained.

Algorithm (numbers match the comments below):
  1. draw weights and scores; a leaf's threshold is an order statistic of its first
     scores, for good; the mask is where scores reach it, however many come to do so
  2. each task begins with these weights: some steps of gradient descent on its support
     set under the mask, which stays as it is meanwhile
  3. descend the tasks' mean query loss, after that, in the scores: straight through the
     mask, and through the steps of 2 (second order)
MAML: `where=None, trained=where.everything`. ANIL, BOIL: rates of 0 or `None` for the
body, or for the head. IteRand: `recipes.iterand` every 1000 steps, on `fixed`.

Departures from the paper:
  * the rank of a threshold is rounded in whole numbers, halves towards keeping
  * no learnable scale for each leaf

    >>> from maskjax.recipes import meta_ticket
    >>> weights, sgd = {"w": jnp.array([[1.0], [-1.0]])}, optax.sgd(9.0)
    >>> loss = lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2)
    >>> state = meta_ticket.init(weights, sgd, key=jax.random.key(0))
    >>> tasks, how = (jnp.eye(2)[None], jnp.ones((1, 2, 1))), {"rates": 0.1, "steps": 1}
    >>> state, _ = meta_ticket.step(state, loss, sgd, tasks, tasks, **how)
    >>> kept = meta_ticket.mask(state)
    >>> kept["w"].ravel(), state.weights["w"].ravel()
    (Array([ True, False], dtype=bool), Array([ 1., -1.], dtype=float32))
    >>> one = jnp.eye(2), jnp.ones((2, 1))  # parameters for a task
    >>> meta_ticket.adapt(loss, state.weights, kept, *one, **how)["w"].ravel()
    Array([1., 0.], dtype=float32)
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maskjax import estimator, initializer, masking, stacking
from maskjax._core import checks, trees
from maskjax._core.trees import (
    Array,
    Density,
    Mask,
    Params,
    Predicate,
    Scores,
    map_mask,
)
from maskjax.select._choice import choose_count
from maskjax.select._quota import quota
from maskjax.where import kernels, matching

__all__ = ["MetaTicketState", "adapt", "init", "mask", "step"]

_FN = "maskjax.recipes.meta_ticket"
_SPARED: Any = matching(  # a classifier by its name; and biases, of rank 2 in attention
    "(^|/)(classifier|head|logits|output|bias)(/|$)|^(params/)?out(/|$)"
)
_HIDDEN = kernels & ~_SPARED


class MetaTicketState(NamedTuple):
    """What meta-training carries; a pytree.

    Attributes:
        scores: One for each weight that carries a mask, else `None`.
        thresholds: What they have to reach, one scalar for each leaf of scores.
        trained: The weights that are meta-trained, `None` for the others.
        fixed: The weights that never change, `None` for the others.
        opt_state: The optimizer's, for the pair `(scores, trained)`.
    """

    scores: Scores
    thresholds: Scores
    trained: Params
    fixed: Params
    opt_state: optax.OptState

    @property
    def weights(self) -> Params:
        """Where every task begins."""
        pick = lambda f, t: t if f is None else f  # noqa: E731
        return jax.tree.map(pick, self.fixed, self.trained, is_leaf=trees.is_mask_leaf)


def init(
    weights: Params,
    optimizer: optax.GradientTransformation,
    *,
    density: Density = 1.0,
    where: Predicate | None = _HIDDEN,
    trained: Predicate | None = None,
    key: Array,
) -> MetaTicketState:
    """Scores, uniform in +-sqrt(6 / fan_in), for random weights, and their thresholds.

    Args:
        weights: Tree of arrays: where every task begins.
        optimizer: Trains the pair `(scores, trained weights)`. To have one for each:
            `optax.partition({"s": ..., "w": ...}, ("s", "w"))`.
        density: The fraction kept at first: 1 + round(density * (n - 1)) of n, and what
            ties with the last of them. The paper's configurations keep all.
        where: Which leaves carry a mask; they have a fan-in. `None`: none (MAML). The
            default is all kernels but those of layers named `classifier`, `head`,
            `logits` or `output`, or `out` at the top: name yours if it is another.
        trained: Which weights are meta-trained themselves. `None`: none.
        key: A typed key; every leaf gets its own.

    Returns:
        The state before the first step.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not typed.
        ValueError: If there is nothing to train, or a chosen leaf has no fan-in.

    Example:
        >>> w = {"hidden": jnp.ones((4, 2)), "head": jnp.ones((2, 5))}
        >>> meta_ticket.init(w, optax.sgd(1.0), key=jax.random.key(0)).scores["head"]
    """
    fn = f"{_FN}.init"
    checks.typed_key(key, fn=fn)
    checks.unit_interval(density, fn=fn, name="density")
    if where is None and trained is None:
        raise ValueError(f"`{fn}` needs `where` or `trained`, for something to train.")
    scores = thresholds = chosen = jax.tree.map(lambda _: None, weights)
    if trained is not None:
        chosen = checks.chosen_leaves(weights, trained, fn=fn, name="trained")
    if where is not None:
        scores = initializer.scores(
            weights, draw=jax.nn.initializers.he_uniform(), where=where, key=key
        )
        sizes = [s.size for s in jax.tree.leaves(scores)]  # 1.
        counts = [1 + jnp.asarray(quota(density, max(n - 1, 0))) for n in sizes]
        kept = choose_count(scores, counts, "leaf", fn=fn)
        least = lambda s, m: jnp.min(s, where=m, initial=jnp.inf)  # noqa: E731
        thresholds = map_mask(least, scores, kept)
    rest = jax.tree.map(lambda w, t: w if t is None else None, weights, chosen)
    learned = scores, chosen
    return MetaTicketState(scores, thresholds, chosen, rest, optimizer.init(learned))


def mask(state: MetaTicketState) -> Mask:
    """Where the scores reach their thresholds.

    Args:
        state: The training state.

    Returns:
        A mask: True keeps.

    Example:
        >>> scores, cut = {"w": jnp.array([0.1, 0.2])}, {"w": jnp.array(0.2)}
        >>> meta_ticket.mask(meta_ticket.MetaTicketState(scores, cut, None, None, ()))
        {'w': Array([False,  True], dtype=bool)}
    """
    return map_mask(jnp.greater_equal, state.scores, state.thresholds)


def adapt(
    loss: Callable[..., Array],
    params: Params,
    mask: Mask,
    *support: Any,
    rates: Any,
    steps: int,
    first_order: bool = False,
) -> Params:
    """The parameters for one task: gradient descent on its support set.

    Args:
        loss: `(params, *support) -> scalar`.
        params: Where to begin. What the mask removes gets no gradient, so stays.
        mask: A mask, or a soft one, which gradients go through.
        *support: Trees of arrays [n, ...].
        rates: The learning rate: a number, or a tree like `params` of them. What has 0
            or `None` does not adapt. `jax.tree.map(lambda _: 0.4, masking.everything(
            params, where=head))` is ANIL's.
        steps: How many, a Python number.
        first_order: Derivatives take the gradients for constants.

    Returns:
        A tree like `params`, masked already, for this task's other inputs.

    Raises:
        TypeError: If a rate is no number, or the mask neither boolean nor floating.
        ValueError: If the support set is empty, `steps` below 0, or the mask or the
            rates do not fit; the offending leaves are named.

    Example:
        >>> loss = lambda params, x: jnp.sum(x * params["w"])
        >>> params, kept = {"w": jnp.ones(2)}, {"w": jnp.array([True, False])}
        >>> meta_ticket.adapt(loss, params, kept, jnp.ones(2), rates=0.25, steps=2)
        {'w': Array([0.5, 0. ], dtype=float32)}
    """
    fn = f"{_FN}.adapt"
    checks.at_least(steps, 0, fn=fn, name="steps")
    checks.mask_of(mask, params, fn=fn, names=("params", "mask"))
    checks.boolean(mask, fn=fn, or_soft=True)
    _not_empty({"support": support}, fn=fn)
    if trees.is_single(rates):
        rates = jax.tree.map(lambda _, r=rates: r, params)
    pairs = checks.matched(params, rates, fn=fn, names=("params", "rates"))
    checks.raise_all(
        (f"{path}: {checks.kind_of(r)}" for path, _, r in pairs if not _is_rate(r)),
        f"`{fn}` needs every rate as a number, a floating scalar or None",
        TypeError,
    )
    # In w = m * params a step is w - rate * m^2 * dL/dw, and of that only the gradient
    # differs between tasks: the rest is done once under `vmap`.
    inner = lax.stop_gradient(mask) if first_order else mask
    paces = jax.tree.map(_pace, params, mask, inner, rates)

    def descend(w: Params, _: None = None) -> tuple[Params, None]:
        gradients = jax.grad(loss, allow_int=True)(w, *support)  # 2.
        gradients = lax.stop_gradient(gradients) if first_order else gradients
        move = lambda w, g, pace: w if pace is None else w - pace * g  # noqa: E731
        return jax.tree.map(move, w, gradients, paces), None

    w = masking.apply(params, mask)
    if steps:  # The first is no part of the scan: there all tasks have the same w.
        w, _ = descend(w)
    return lax.scan(descend, w, length=steps - 1)[0] if steps > 1 else w


def step(
    state: MetaTicketState,
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    support: tuple,
    query: tuple,
    *,
    rates: Any,
    steps: int,
    first_order: bool = False,
    batch_size: int | None = None,
) -> tuple[MetaTicketState, Array]:
    """One step on a batch of tasks; pure, to be compiled and mapped by the caller.

    Args:
        state: The training state.
        loss: `(params, *data) -> scalar`, of one task.
        optimizer: The one that `init` was given.
        support: What `loss` takes of B support sets: arrays [B, n, ...].
        query: The same of their query sets.
        rates: As in `adapt`.
        steps: As in `adapt`.
        first_order: As in `adapt`.
        batch_size: How many tasks at a time, as in `stacking.map`. On a CPU 1 is faster
            than all where weights are many. `None`: all.

    Returns:
        The next state, and the mean query loss of this one.

    Raises:
        ValueError: As in `adapt`, if a query set is empty, there is no task, or
            `batch_size` is below 1.

    Example:
        >>> weights, loss = {"w": jnp.ones((4, 1))}, lambda p, x: jnp.sum(x @ p["w"])
        >>> state = meta_ticket.init(weights, optax.sgd(1.0), key=jax.random.key(0))
        >>> x, how = (jnp.ones((3, 2, 4)),), {"rates": 0.0, "steps": 1}
        >>> print(meta_ticket.step(state, loss, optax.sgd(1.0), x, x, **how)[1])
        8.0
    """
    how = {"rates": rates, "steps": steps, "first_order": first_order}
    learned: Any = state.scores, state.trained
    if batch_size is not None:
        checks.at_least(batch_size, 1, fn=f"{_FN}.step", name="batch_size")
    _not_empty({"support": support, "query": query}, fn=f"{_FN}.step", axes=2)

    def of_task(task: tuple) -> Any:
        def query_loss(learned: tuple) -> Array:
            soft = map_mask(estimator.straight_through, mask(state), learned[0])
            params = state._replace(trained=learned[1]).weights
            return loss(adapt(loss, params, soft, *task[0], **how), *task[1])

        return jax.value_and_grad(query_loss)(learned)  # 3.

    def mean(x: Array) -> Array:  # On a CPU `jnp.mean` takes 50 times as long.
        one = jnp.ones_like(x, shape=x.shape[:1])
        return jnp.tensordot(one, x, axes=1, precision="highest") / len(x)

    of_all = stacking.map(of_task, (support, query), batch_size=batch_size)
    value, gradients = jax.tree.map(mean, of_all)
    updates, opt_state = optimizer.update(gradients, state.opt_state, learned)
    scores, trained = cast(tuple, optax.apply_updates(learned, updates))
    return state._replace(scores=scores, trained=trained, opt_state=opt_state), value


def _is_rate(rate: Any) -> bool:
    scalar = checks.is_floating(rate) and not rate.shape
    return rate is None or scalar or checks.is_number(rate)


def _pace(w: Array, m: Any, inner: Any, rate: Any) -> Array | None:
    if rate is None or not checks.is_floating(w):
        return None
    rate = jnp.asarray(rate).astype(w.dtype)
    if m is None:
        return rate
    return masking.apply(masking.apply(jnp.full_like(w, rate), inner), m)


def _not_empty(data: Any, *, fn: str, axes: int = 1) -> None:
    found = [(p, x) for p, x in trees.named_leaves(data) if 0 in jnp.shape(x)[:axes]]
    lines = [f"{path}: {checks.kind_of(x)}" for path, x in found]
    checks.raise_all(lines, f"`{fn}` needs at least one sample, and one task")
