"""Hard concrete gates: random numbers in [0, 1] that are exactly 0 or 1 quite often."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax._core import checks, draws, dtypes, trees
from maskjax._core.trees import Array, Scores, SoftMask


class _Options(NamedTuple):
    """The numbers of the distribution that all gates share."""

    beta: Any
    gamma: Any
    zeta: Any


def hard_concrete(
    log_alphas: Scores,
    *,
    beta: ArrayLike = 2 / 3,
    gamma: ArrayLike = -0.1,
    zeta: ArrayLike = 1.1,
    key: Array | None,
) -> SoftMask:
    """Random gates in [0, 1] that can be learned, many of them exactly 0 or 1.

    A gate is a random number in (0, 1), stretched to (gamma, zeta) and clipped to
    [0, 1]. `log_alphas` say how much of it lies on either side: at 2 a gate is 0 with
    probability .03, at -1.6 with one half. Train them together with the weights, or
    alone, with a term for how many gates are open: `hard_concrete_probabilities`
    gives the probabilities, `algebra.expected_count` and `algebra.expected_density`
    sum them up. That term may be a multiple of the count, or a `lagrangian`.

    Gates of whole units are leaves with axes of 1: [inputs, 1] for the inputs of a
    dense kernel.

    Args:
        log_alphas: Tree of finite floating leaves, `None` where a parameter is left
            alone. A constant of about 2 is a good start.
        beta: The temperature, above 0: the lower, the closer gates are to 0 and 1.
        gamma: Where the stretched interval begins, below 0.
        zeta: Where it ends, above 1.
        key: A typed key, a new one for each step; every leaf gets its own. `None` for
            the gates to test with, which are not random:
            `clip(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1)`.

    Returns:
        A soft mask in the dtypes of `log_alphas`. Its derivative is that of its values:
        finite everywhere, and 0 where a gate was clipped. `m > 0` is the mask of what
        is left. At test that is where `log_alpha > log(-gamma / zeta)`, which is not
        the expected count; for that many, use `select.top_k` with that density.

    Raises:
        TypeError: If a leaf is not floating, an option not a number, or the key neither
            a typed key nor `None`.
        ValueError: If an option is out of its range, no leaf is given, or one has nan
            (unless traced: then its gate is nan). Options in arrays of JAX are not
            looked at.

    Example:
        >>> log_alphas = {"w": jnp.array([-9.0, 0.0, 9.0])}
        >>> estimator.hard_concrete(log_alphas, key=None)
        {'w': Array([0. , 0.5, 1. ], dtype=float32)}
        >>> estimator.hard_concrete(log_alphas, key=jax.random.key(0))["w"][::2]
        Array([0., 1.], dtype=float32)

    References:
        Louizos et al., "Learning Sparse Neural Networks through L0 Regularization",
        ICLR 2018. arXiv:1712.01312, section 2.2.
    """
    fn = "maskjax.estimator.hard_concrete"
    options = _checked(log_alphas, _Options(beta, gamma, zeta), fn=fn)
    if key is None:
        return trees.map_mask(lambda a: _tested(a, options), log_alphas)
    checks.typed_key(key, fn=fn)
    checks.beside(log_alphas, fn=fn, name="log_alphas", key=key)
    leaves, treedef = jax.tree.flatten(log_alphas, is_leaf=trees.is_mask_leaf)
    gates = [
        None if a is None else _sampled(a, options, key, i)
        for i, a in enumerate(leaves)
    ]
    return treedef.unflatten(gates)


def hard_concrete_probabilities(
    log_alphas: Scores,
    *,
    beta: ArrayLike = 2 / 3,
    gamma: ArrayLike = -0.1,
    zeta: ArrayLike = 1.1,
) -> Scores:
    """The probability that each gate of `hard_concrete` is not 0, exactly.

    It is `sigmoid(log_alpha - beta log(-gamma / zeta))`.

    Args:
        log_alphas: Tree of floating leaves, `None` where a parameter is left alone.
        beta: As for `hard_concrete`.
        gamma: As for `hard_concrete`.
        zeta: As for `hard_concrete`.

    Returns:
        A tree of probabilities like `log_alphas`, float32 or float64.

    Raises:
        TypeError: If a leaf is not floating, or an option not a number.
        ValueError: If an option is out of its range, no leaf is given, or one has nan
            (unless traced: then its probability is nan).

    Example:
        >>> log_alphas = {"w": jnp.array([-9.0, 0.0, 9.0])}
        >>> open = estimator.hard_concrete_probabilities(log_alphas)
        >>> open["w"].round(2)
        Array([0.  , 0.83, 1.  ], dtype=float32)
        >>> round(float(algebra.expected_count(open)), 2)
        1.83

    References:
        Louizos et al., arXiv:1712.01312, section 2.2.
    """
    fn = "maskjax.estimator.hard_concrete_probabilities"
    options = _checked(log_alphas, _Options(beta, gamma, zeta), fn=fn)
    return trees.map_mask(lambda a: _open(a, options), log_alphas)


def _checked(log_alphas: Scores, given: _Options, *, fn: str) -> _Options:
    """The options as operands of a program, so that a new number compiles nothing."""
    checks.floating_scores(log_alphas, fn=fn, name="log_alphas")
    beside = {"beta": given.beta, "gamma": given.gamma, "zeta": given.zeta}
    checks.beside(log_alphas, fn=fn, name="log_alphas", **beside)
    checks.no_nan(log_alphas, fn=fn, name="log_alphas")
    _check(given.beta, "beta", "above 0", lambda x: 0 < x < np.inf, fn=fn)
    _check(given.gamma, "gamma", "below 0", lambda x: -np.inf < x < 0, fn=fn)
    _check(given.zeta, "zeta", "above 1", lambda x: 1 < x < np.inf, fn=fn)
    return _Options(*(dtypes.operand(x, np.float64) for x in given))


def _check(value: Any, name: str, needs: str, fine: Any, *, fn: str) -> None:
    if np.ndim(value) or not checks.is_real(value):
        raise TypeError(
            f"`{fn}` needs `{name}` as a number, got {checks.kind_of(value)}."
        )
    if not isinstance(value, jax.Array) and not fine(float(value)):
        raise ValueError(f"`{fn}` needs `{name}` finite and {needs}, got {value}.")


@jax.jit
def _sampled(log_alpha: Array, options: _Options, key: Array, leaf: int) -> Array:
    noise = draws.logistic(jax.random.fold_in(key, leaf), log_alpha)
    return gate(log_alpha, noise, options)


def gate(log_alpha: Array, noise: Array, options: _Options) -> Array:
    """A gate from logistic noise."""
    wide = dtypes.at_least_float32(log_alpha.dtype)
    logits = log_alpha.astype(wide) + noise.astype(wide)
    found = _stretched(logits / _as(options.beta, wide), options)
    return found.astype(log_alpha.dtype)


@jax.jit
def _tested(log_alpha: Array, options: _Options) -> Array:
    wide = log_alpha.astype(dtypes.at_least_float32(log_alpha.dtype))
    return _stretched(wide, options).astype(log_alpha.dtype)


@jax.jit
def _open(log_alpha: Array, options: _Options) -> Array:
    wide = dtypes.at_least_float32(log_alpha.dtype)
    beta, gamma, zeta = (_as(value, wide) for value in options)
    return jax.nn.sigmoid(log_alpha.astype(wide) - beta * jnp.log(-gamma / zeta))


def _stretched(logits: Array, options: _Options) -> Array:
    _, gamma, zeta = (_as(value, logits.dtype) for value in options)
    return jnp.clip(jax.nn.sigmoid(logits) * (zeta - gamma) + gamma, 0, 1)


def _as(value: Any, dtype: Any) -> Array:
    return jnp.asarray(value).astype(dtype)
