"""Supermasks in Superposition: one random network, thousands of tasks (NeurIPS 2020).

Wortsman et al., arXiv:2006.14769. Without task ids in training: `supsup_stream`; masks
kept in a Hopfield network: `hopsupsup`.

Algorithm (numbers match the comments below):
  1. draw weights once and freeze them; for each task draw scores
  2. the mask is where a score is at least 0; train scores straight through it
  3. keep each task's mask, one bit a weight, in a `bank`
  4. given an image of an unknown task, weigh all masks alike: the one along which the
     objective falls fastest is the task's (`superposition.infer`)
  5. run each image under its task's mask (`stacking.predict_each`)
GG: skip 4. GNs: all tasks share labels. GNu: they do not, so that a wrong task is a
wrong answer. Masks of other recipes (`edge_popup`) can be kept in a bank just as well.

Departures from the paper:
  * of n tasks "binary" keeps exactly ceil(n / 2); the reference code loops under ties
  * a task that is not learned is never inferred; in the reference code it may be

    >>> from maskjax.recipes import supsup
    >>> weights = {"w": jnp.array([[1.0, -1.0], [-1.0, 1.0]])}
    >>> net = lambda params, x: x @ params["w"]
    >>> def train(task, *, key):
    ...     loss = lambda params: net(params, jnp.ones((1, 2)))[0, task]
    ...     state = supsup.init(weights, optax.sgd(9.0), key=key)
    ...     state, value = supsup.step(state, weights, loss, optax.sgd(9.0))
    ...     return supsup.mask(state), value
    >>> tasks = bank.empty(weights, capacity=2)
    >>> tasks, _ = supsup.learn(train, tasks, jnp.arange(2), key=jax.random.key(0))
    >>> net(maskjax.apply(weights, bank.take(tasks, 1)), jnp.ones((1, 2)))[0, 1]
    Array(-1., dtype=float32)
    >>> superposition.infer(net, weights, tasks, jnp.ones((1, 2))).shape  # per image
    (1,)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskjax import estimator, initializer, masking, packing, select, stacking
from maskjax._core import checks
from maskjax._core.trees import Array, Mask, Params, Predicate, Scores
from maskjax.bank import MaskBank, extend, require_room
from maskjax.where import kernels

__all__ = ["SupSupState", "init", "learn", "mask", "step"]


class SupSupState(NamedTuple):
    """What the training of one task carries; a pytree.

    Attributes:
        scores: One for each weight that carries a mask, else `None`.
        opt_state: The optimizer's, for the scores.
    """

    scores: Scores
    opt_state: optax.OptState


def init(
    weights: Params,
    optimizer: optax.GradientTransformation,
    *,
    where: Predicate = kernels,
    key: Array,
) -> SupSupState:
    """Scores, uniform in +-1 / sqrt(fan_in), for one task.

    Args:
        weights: The random weights, drawn by `initializer.signed_constant`, say.
        optimizer: Trains the scores. The paper: RMSProp of rate 1e-4 and decay 0.99.
        where: Which leaves carry a mask.
        key: A typed key; every leaf gets its own.

    Returns:
        The state before the first step. To begin with what was learned, replace its
        scores: `initializer.scores_of(bank.mean(tasks))`, or of a similar task's mask.

    Raises:
        TypeError: As in `initializer.scores`.
        ValueError: As in `initializer.scores`.

    Example:
        >>> w = {"w": jnp.ones((4, 2))}
        >>> supsup.init(w, optax.sgd(0.1), key=jax.random.key(0)).scores["w"].shape
        (4, 2)
    """
    scores = initializer.scores(weights, where=where, key=key)  # 1.
    return SupSupState(scores, optimizer.init(scores))


def mask(state: SupSupState) -> Mask:
    """The mask of scores that are at least 0.

    Args:
        state: The training state.

    Returns:
        A mask: True keeps.

    Example:
        >>> supsup.mask(supsup.SupSupState({"w": jnp.array([-0.1, 0.0, 0.1])}, ()))
        {'w': Array([False,  True,  True], dtype=bool)}
    """
    return select.threshold(state.scores, at=0.0)


def step(
    state: SupSupState,
    weights: Params,
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    *data: Any,
) -> tuple[SupSupState, Array]:
    """One step on a task's scores; pure, to be compiled and mapped by the caller.

    Args:
        state: The training state.
        weights: The random weights, which never change.
        loss: `(params, *data) -> scalar`.
        optimizer: The one that `init` was given.
        *data: A batch, passed on to `loss`.

    Returns:
        The next state, and the loss at this one.

    Raises:
        ValueError: If the scores do not fit the weights.

    Example:
        >>> w = {"w": jnp.ones((4, 1))}
        >>> state = supsup.init(w, optax.sgd(9.0), key=jax.random.key(0))
        >>> loss = lambda params: jnp.sum(params["w"])
        >>> state, _ = supsup.step(state, w, loss, optax.sgd(9.0))
        >>> int(supsup.mask(state)["w"].sum())
        0
    """

    def objective(scores: Scores) -> Array:
        soft = estimator.threshold(scores, at=0.0)
        return loss(masking.apply(weights, soft), *data)  # 2.

    value, gradients = jax.value_and_grad(objective)(state.scores)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.scores)
    return SupSupState(optax.apply_updates(state.scores, updates), opt_state), value


def learn(
    train: Callable[..., tuple[Mask, Any]],
    bank: MaskBank,
    tasks: Any,
    *,
    batch_size: int = 8,
    key: Array,
) -> tuple[MaskBank, Any]:
    """Tasks trained side by side, and their masks appended to a bank.

    Args:
        train: `(task, *, key) -> (mask, metrics)`, one whole training, pure. Statistics
            of normalization are a task's own: return them among the metrics.
        bank: Where the masks go.
        tasks: Tree of arrays [K, ...]: what `train` is given, one for each task.
        batch_size: How many are trained side by side; memory for their scores. More
            fill an accelerator; on a CPU, one after the other (1) is as fast or faster.
        key: A typed key. Each task gets its own, which depends on the number it will
            have in the bank, not on which others are learned in the same call.

    Returns:
        The bank with K masks more, and metrics [K, ...].

    Raises:
        TypeError: If `train` returns no pair or no mask, or the key is not typed.
        ValueError: If K is 0, there is no room, or the masks do not fit the bank.

    Example:
        >>> train = lambda mask, *, key: (mask, algebra.count(mask))
        >>> tasks = bank.empty({"w": jnp.ones((1, 2))}, capacity=2)
        >>> masks = {"w": jnp.array([[[True, True]], [[True, False]]])}
        >>> supsup.learn(train, tasks, masks, key=jax.random.key(0))[1]
        Array([2, 1], dtype=int32)
    """
    fn = "maskjax.recipes.supsup.learn"
    checks.typed_key(key, fn=fn)
    checks.at_least(batch_size, 1, fn=fn, name="batch_size")
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"`{fn}` needs `tasks` with one leading axis of at least 1, got shapes "
            f"{[jnp.shape(leaf) for leaf in jax.tree.leaves(tasks)]}."
        )
    many = sizes.pop()[0]

    def one(each: tuple[Any, Array]) -> tuple[Mask, Any]:
        task, number = each
        result = train(task, key=jax.random.fold_in(key, number))
        if not (isinstance(result, tuple) and len(result) == 2):
            got = type(result).__name__
            raise TypeError(
                f"`{fn}` needs `train` to return (mask, metrics), got {got}."
            )
        return packing.pack(result[0]), result[1]  # 3.

    def all_of(bank: MaskBank) -> tuple[MaskBank, Any]:
        numbers = bank.learned + jnp.arange(many, dtype=jnp.int32)
        each = tasks, numbers
        masks, metrics = stacking.map(one, each, batch_size=batch_size)
        return extend(bank, masks), metrics

    require_room(bank, many, fn=fn)
    jax.eval_shape(all_of, bank)  # complains before anything is trained
    return all_of(bank)
