"""Supermasks in Superposition: one random network, thousands of tasks (NeurIPS 2020).

Wortsman et al., arXiv:2006.14769. To train without task ids use `supsup_stream`; to
store masks in a Hopfield network, `hopsupsup`.

Algorithm (numbers match the comments below):
  1. Draw weights once and freeze them. Draw scores for each task.
  2. A task's mask keeps the weights whose score is at least 0. Train the scores with
     the identity as the mask's derivative (straight through).
  3. Store each task's mask in a `bank`, one bit a weight.
  4. For an image of an unknown task, run the network under the mean of all masks. Its
     task is the one towards whose mask the objective falls fastest
     (`superposition.infer`).
  5. Run each image under its task's mask (`stacking.predict_each`).
The paper's scenarios: GG is given the task of an image and skips 4. GNs and GNu are
not; in GNs tasks share labels, in GNu a wrong task is a wrong answer. A bank takes the
masks of other recipes, such as `edge_popup`, just as well.

Departures from the paper:
  * "binary" keeps exactly ceil(n / 2) of n tasks; the reference code loops under ties
  * only learned tasks are inferred; the reference code may infer an unlearned one

    >>> from maskjax.recipes import supsup
    >>> weights, x = {"w": jnp.array([[1.0, -1.0], [-1.0, 1.0]])}, jnp.ones((1, 2))
    >>> net = lambda params, x: x @ params["w"]
    >>> def train(task, *, key):  # your loop, with any optimizer; here one step
    ...     scores = supsup.init(weights, key=key)
    ...     def loss(scores):
    ...         params = maskjax.apply(weights, supsup.soft_mask(scores))
    ...         return net(params, x)[0, task]
    ...     value, slopes = jax.value_and_grad(loss)(scores)
    ...     scores = jax.tree.map(lambda s, slope: s - 9 * slope, scores, slopes)
    ...     return supsup.mask(scores), value
    >>> tasks = bank.empty(weights, capacity=2)
    >>> tasks, _ = supsup.learn(train, tasks, jnp.arange(2), key=jax.random.key(0))
    >>> net(maskjax.apply(weights, bank.take(tasks, 1)), x)[0, 1]
    Array(-1., dtype=float32)
    >>> superposition.infer(net, weights, tasks, x).shape  # a task for each image
    (1,)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import estimator, initializer, packing, select, stacking
from maskjax._core import blame, checks
from maskjax._core.trees import Array, Mask, Params, Predicate, Scores, SoftMask
from maskjax.bank import MaskBank, extend
from maskjax.bank._bank import require_bank, require_room
from maskjax.where import kernels

__all__ = ["init", "learn", "mask", "soft_mask"]


def init(weights: Params, *, where: Predicate = kernels, key: Array) -> Scores:
    """Scores for one task, uniform in +-1 / sqrt(fan_in).

    To start from what was learned use `initializer.scores_of` instead, on
    `bank.mean(tasks)` or on the mask of a similar task.

    Args:
        weights: The random weights, for example from `initializer.signed_constant`.
        where: Which leaves carry a mask.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree of scores, `None` where `where` does not choose. Train them with any
        optimizer; the paper uses RMSProp, learning rate 1e-4 and decay 0.99.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not typed.
        ValueError: If `where` chooses nothing, or a leaf without a fan-in.

    Example:
        >>> scores = supsup.init({"w": jnp.ones((4, 2))}, key=jax.random.key(0))
        >>> bool((abs(scores["w"]) <= 0.5).all())
        True
    """
    fn = "maskjax.recipes.supsup.init"
    with blame.instead_of("maskjax.initializer.scores", fn):
        return initializer.scores(weights, where=where, key=key)  # 1.


def soft_mask(scores: Scores) -> SoftMask:
    """The mask to train through: scores of at least 0, derivative 1.

    Args:
        scores: A task's scores.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes, for `maskjax.apply`.

    Raises:
        TypeError: If a leaf is not floating.

    Example:
        >>> supsup.soft_mask({"w": jnp.array([-0.1, 0.0, 0.1])})
        {'w': Array([0., 1., 1.], dtype=float32)}
    """
    checks.floating_scores(scores, fn="maskjax.recipes.supsup.soft_mask")
    return estimator.threshold(scores, at=0.0)  # 2.


def mask(scores: Scores) -> Mask:
    """The mask to keep: scores of at least 0.

    Args:
        scores: A task's scores.

    Returns:
        A mask: True keeps.

    Raises:
        TypeError: If a leaf is not floating.

    Example:
        >>> supsup.mask({"w": jnp.array([-0.1, 0.0, 0.1])})
        {'w': Array([False,  True,  True], dtype=bool)}
    """
    checks.floating_scores(scores, fn="maskjax.recipes.supsup.mask")
    return select.threshold(scores, at=0.0)


def learn(
    train: Callable[..., tuple[Mask, Any]],
    bank: MaskBank,
    tasks: Any,
    *,
    batch_size: int = 8,
    key: Array,
) -> tuple[MaskBank, Any]:
    """Train several tasks at once, and append their masks to a bank.

    Args:
        train: `(task, *, key) -> (mask, metrics)`, one task's whole training, pure.
            Statistics of normalization belong to a task: return them in the metrics.
        bank: The bank to append to.
        tasks: Tree of arrays [K, ...]; `train` gets one entry of each. Tasks on several
            devices are trained there; only their masks' bits travel, to the bank.
        batch_size: How many tasks are trained at once. Memory for scores grows with it.
            More fill an accelerator; on a CPU, 1 is as fast or faster. Under `jit` on
            an Auto mesh, fewer than there are devices gather the tasks.
        key: A typed key. A task's own key depends on the number that it will have in
            the bank, not on the other tasks of the call.

    Returns:
        The bank with K more masks, and metrics [K, ...].

    Raises:
        TypeError: If `bank` is not a bank, `train` does not return a pair, or its mask
            is not a mask, or the key is not typed.
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
    require_bank(bank, fn=fn)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tasks)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"`{fn}` needs `tasks` with one leading axis of at least 1, got shapes "
            f"{shapes}."
        )
    many = shapes[0][0]
    require_room(bank, many, fn=fn)

    def one(each: tuple[Any, Array]) -> tuple[Mask, Any]:
        task, number = each
        result = train(task, key=jax.random.fold_in(key, number))
        if not (isinstance(result, tuple) and len(result) == 2):
            got = type(result).__name__
            raise TypeError(
                f"`{fn}` needs `train` to return (mask, metrics), got {got}."
            )
        with blame.instead_of("maskjax.packing.pack", fn):
            return packing.pack(result[0]), result[1]  # 3.

    def all_of(bank: MaskBank) -> tuple[MaskBank, Any]:
        numbers = bank.learned + jnp.arange(many, dtype=jnp.int32)
        masks, metrics = stacking.map(one, (tasks, numbers), batch_size=batch_size)
        with blame.instead_of("maskjax.bank.extend", fn):
            return extend(bank, masks), metrics

    jax.eval_shape(all_of, bank)  # raises before anything is trained
    return all_of(bank)
