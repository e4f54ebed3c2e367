"""Objectives of logits that are low when a network runs under the right mask."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array


def logit_entropy(logits: Array) -> Array:
    """The mean entropy of softmax(logits): how unsure a network is.

    `metrics` has entropies of probabilities.

    Args:
        logits: [..., outputs], at least one image.

    Returns:
        A scalar in nats, from 0 to log(outputs).

    Raises:
        ValueError: If there are no images or no outputs.

    Example:
        >>> print(f"{superposition.logit_entropy(jnp.zeros((1, 4))):.3f}")  # log 4
        1.386

    References:
        Wortsman et al., "Supermasks in Superposition", NeurIPS 2020. arXiv:2006.14769,
        section 3.3.
    """
    _outputs(logits, "maskjax.superposition.logit_entropy")
    return _entropy(logits)


def superfluous(logits: Array, *, labels: int) -> Array:
    """The mean of -log(probability of the outputs that have a label).

    Training lowers the outputs without a label, for its own task's mask only. The
    gradient is that of the paper's G: the softmax for outputs without a label, 0 for
    the others. Unlike G, the value can be compared between masks.

    Args:
        logits: [..., outputs], at least one image. Outputs with a label come first.
        labels: How many outputs have a label. If all have one, the result is 0.

    Returns:
        A scalar, at least 0.

    Raises:
        TypeError: If `labels` is not a whole number.
        ValueError: If there are no images, or not 1 to `outputs` labels.

    Example:
        >>> print(superposition.superfluous(jnp.zeros((1, 4)), labels=2))  # log 2
        0.6931472

    References:
        Wortsman et al., arXiv:2006.14769, section 3.6, and lemma 1.
    """
    fn = "maskjax.superposition.superfluous"
    outputs = _outputs(logits, fn)
    checks.at_least(labels, 1, fn=fn, name="labels")
    if labels > outputs:
        raise ValueError(
            f"`{fn}` needs at most as many `labels` as outputs, got {labels} of "
            f"{outputs}."
        )
    return _superfluous(logits, labels=labels)


@jax.jit
def _entropy(logits: Array) -> Array:
    log = jax.nn.log_softmax(logits.astype(dtypes.at_least_float32(logits.dtype)))
    probability = jnp.exp(log)
    # An output of probability 0 adds 0: its logarithm may be -inf.
    each = probability * jnp.where(probability > 0, log, 0)
    return -jnp.sum(each, axis=-1).mean()


@functools.partial(jax.jit, static_argnames="labels")
def _superfluous(logits: Array, *, labels: int) -> Array:
    real = lax.stop_gradient(logits[..., :labels])
    every = jnp.concatenate([real, logits[..., labels:]], axis=-1)
    return (jax.nn.logsumexp(every, axis=-1) - jax.nn.logsumexp(real, axis=-1)).mean()


def _outputs(logits: Array, fn: str) -> int:
    if not logits.size or not logits.ndim:
        raise ValueError(
            f"`{fn}` needs `logits` of at least one image and output, got shape "
            f"{logits.shape}."
        )
    return logits.shape[-1]
