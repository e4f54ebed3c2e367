"""How fast are subset sums found, the nearest of all 2**21, and by a greedy walk?

Times are for one target. Baselines: meeting in the middle target by target in NumPy,
as one would write it down; in XLA, with two pointers, all targets at once; the walk in
NumPy over sorted coefficients. The limit of the exact search is to sort one part's
sums, that of the walk to write the subsets.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._timing import Contestant, compiled
from benchmarks.speed import _case
from maskjax.theory import subset_sum

REPEATS = 10
# What is asked; rows, targets each, coefficients: a part of 784-500-10, whose rows
# share theirs; a set for each target; and a million targets for the walk.
ROW, TARGET, WALK = "coefficients of a row", "coefficients of a target", "greedy"
FULL = [(ROW, 50, 784, 21), (TARGET, 2_000, 1, 21), (WALK, 1_000, 1_000, 128)]
QUICK = [(ROW, 2, 30, 10), (TARGET, 20, 1, 10), (WALK, 4, 10, 64)]
ALONE = 100  # targets that are solved one by one


def meet(target: float, c: np.ndarray) -> float:
    """The least error of a target, by halves as one would write it down."""

    def sums(c):
        out = np.zeros(1)
        for each in c:
            out = np.concatenate([out, out + each])
        return out

    left, right = sums(c[: len(c) // 2]), np.sort(sums(c[len(c) // 2 :]))
    place = np.searchsorted(right, target - left)
    near = right[np.minimum(place, len(right) - 1)], right[np.maximum(place - 1, 0)]
    return min(np.abs(left + each - target).min() for each in near)


def two_pointers(t: jax.Array, c: jax.Array) -> jax.Array:
    """Errors [R, M] in XLA: up one part's sorted sums and down the other's."""

    def sums(c):
        out = jnp.zeros((len(c), 1), c.dtype)
        for each in c.T:
            out = jnp.concatenate([out, out + each[:, None]], 1)
        return jnp.sort(out)

    def row(left, right, t):
        a, b = len(left), len(right)

        def step(_, state):
            i, j, best = state
            off = left[jnp.minimum(i, a - 1)] + right[jnp.maximum(j, 0)] - t
            off = jnp.where((i < a) & (j >= 0), off, jnp.inf)
            low = off < 0
            return i + low, j - ~low, jnp.minimum(best, jnp.abs(off))

        start = jnp.zeros(t.shape, jnp.int32), jnp.full(t.shape, b - 1, jnp.int32)
        worst = jnp.full(t.shape, jnp.inf, t.dtype)
        return lax.fori_loop(0, a + b - 1, step, (*start, worst))[-1]

    half = c.shape[1] // 2
    return jax.vmap(row)(sums(c[:, :half]), sums(c[:, half:]), t)


def walk(t: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Errors [R, M] in NumPy: of sorted coefficients, each that brings nearer."""
    left, mask = t.copy(), np.zeros((*t.shape, c.shape[1]), bool)
    for row, order in enumerate(np.argsort(-np.abs(c), axis=1)):
        for h in order:
            rest = left[row] - c[row, h]
            mask[row, :, h] = np.abs(rest) < np.abs(left[row])
            left[row] = np.where(mask[row, :, h], rest, left[row])
    return np.abs(left)


def case(asked: str, rows: int, many: int, n: int) -> _case.Case:
    """The exact search, or the walk."""
    rng, shape = np.random.default_rng(0), (rows, many)
    make, dtype = (_greedy, "float32") if asked == WALK else (_exact, "float64")
    name = f"greedy, {rows * many:,} targets" if asked == WALK else f"nearest, {asked}"
    context = {"shape": list(shape), "density": None, "coefficients": n}
    contestants, agree = make(rng, shape, n)
    return _case.of(f"{name}, n={n}", contestants, agree, dtype=dtype, **context)


def _exact(rng: np.random.Generator, shape: tuple[int, int], n: int) -> tuple[Any, Any]:
    t, c = rng.normal(0, 0.03, shape), rng.uniform(-0.5, 0.5, (shape[0], n))
    some = list(np.ndindex(shape))[:: max(1, t.size // ALONE)][:ALONE]
    split = 2 ** ((n + int(np.log2(shape[1]))) // 2)
    sums = rng.normal(size=(shape[0], min(split, 2**n)))

    def alone():
        return np.array([meet(t[at], c[at[0]]) for at in some])

    with jax.enable_x64(True):
        given = jnp.asarray(t), jnp.asarray(c)
        call, seconds = compiled(two_pointers, *given)

    def agree(results):
        error = results["subset_sum.nearest"].error
        few = np.array([error[at] for at in some])
        _case.close(few, results["NumPy, one by one"], rtol=1e-7, atol=1e-15)
        _case.close(results["XLA, two pointers"], error, rtol=1e-7, atol=1e-15)

    every = {"steps": t.size}
    return [
        Contestant("subset_sum.nearest", lambda: subset_sum.nearest(t, c), **every),
        Contestant("NumPy, one by one", alone, steps=len(some)),
        Contestant("XLA, two pointers", lambda: call(*given), seconds, **every),
        Contestant("sort a part's sums", lambda: np.sort(sums, axis=1), **every),
    ], agree


def _greedy(
    rng: np.random.Generator, shape: tuple[int, int], n: int
) -> tuple[Any, Any]:
    sizes = rng.uniform(-14, 0, (shape[0], n))
    c = np.float32(2.0**sizes * rng.choice([-1, 1], sizes.shape))
    t = np.float32(rng.uniform(-1, 1, shape))
    given = jnp.asarray(t), jnp.asarray(c)

    def write(t, c):
        return jnp.broadcast_to(t[..., None] > 0, (*t.shape, n))

    def agree(results):
        # In bins another order, and other subsets, as near.
        ours, theirs = results["subset_sum.greedy"].error, results["NumPy, sorted"]
        for error in (ours, theirs):
            assert np.median(error) < 1e-4
        assert np.mean(np.asarray(ours) > 1e-3) <= 0.01

    every = {"steps": t.size}
    return [
        _case.contestant("subset_sum.greedy", subset_sum.greedy, *given, **every),
        Contestant("NumPy, sorted", lambda: walk(t, c), **every),
        _case.contestant("write the subsets", write, *given, **every),
    ], agree
