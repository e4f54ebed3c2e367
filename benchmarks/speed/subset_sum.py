"""How fast are subset sums found, the nearest of all 2**21, and by a greedy walk?

Times are for one target. Baselines: meeting in the middle target by target in NumPy,
as one would write it down; in XLA, with two pointers, all targets at once; the walk in
NumPy over sorted coefficients. The limit of the exact search is to sort one part's
sums, that of the walk to write the subsets.
"""

from collections.abc import Mapping, Sequence
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


def case(asked: str, rows: int, many: int, n: int) -> _case.Case:
    """The exact search, or the walk."""
    if asked == WALK:
        return _greedy(rows, many, n)
    return _exact(asked, rows, many, n)


def meet(target: float, c: np.ndarray) -> float:
    """The least error of a target, by halves as one would write it down."""

    def sums(c: np.ndarray) -> np.ndarray:
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

    def sums(c: jax.Array) -> jax.Array:
        out = jnp.zeros((len(c), 1), c.dtype)
        for each in c.T:
            out = jnp.concatenate([out, out + each[:, None]], 1)
        return jnp.sort(out)

    half = c.shape[1] // 2

    def row(left: jax.Array, right: jax.Array, t: jax.Array) -> jax.Array:
        a, b = len(left), len(right)

        def step(_: Any, state: Any) -> Any:
            i, j, best = state
            off = left[jnp.minimum(i, a - 1)] + right[jnp.maximum(j, 0)] - t
            off = jnp.where((i < a) & (j >= 0), off, jnp.inf)
            low = off < 0
            return i + low, j - ~low, jnp.minimum(best, jnp.abs(off))

        start = jnp.zeros(t.shape, jnp.int32), jnp.full(t.shape, b - 1, jnp.int32)
        worst = jnp.full(t.shape, jnp.inf, t.dtype)
        return lax.fori_loop(0, a + b - 1, step, (*start, worst))[-1]

    return jax.vmap(row)(sums(c[:, :half]), sums(c[:, half:]), t)


def _exact(name: str, rows: int, many: int, n: int) -> _case.Case:
    rng = np.random.default_rng(0)
    t, c = rng.normal(0, 0.03, (rows, many)), rng.uniform(-0.5, 0.5, (rows, n))
    some = list(np.ndindex(rows, many))[:: max(1, t.size // ALONE)][:ALONE]
    split = 2 ** ((n + int(np.log2(many))) // 2)
    sums = rng.normal(size=(rows, min(split, 2**n)))

    def alone() -> np.ndarray:
        return np.array([meet(t[at], c[at[0]]) for at in some])

    with jax.enable_x64(True):
        given = jnp.asarray(t), jnp.asarray(c)
        call, seconds = compiled(two_pointers, *given)

    def agree(results: Mapping[str, Any]) -> None:
        error = results["subset_sum.nearest"].error
        few = np.array([error[at] for at in some])
        _case.close(few, results["NumPy, one by one"], rtol=1e-7, atol=1e-15)
        _case.close(results["XLA, two pointers"], error, rtol=1e-7, atol=1e-15)

    every = {"steps": t.size}
    contestants = [
        Contestant("subset_sum.nearest", lambda: subset_sum.nearest(t, c), **every),
        Contestant("NumPy, one by one", alone, steps=len(some)),
        Contestant("XLA, two pointers", lambda: call(*given), seconds, **every),
        Contestant("sort a part's sums", lambda: np.sort(sums, axis=1), **every),
    ]
    return _case_of(f"nearest, {name}, n={n}", contestants, agree, t, n)


def _greedy(rows: int, many: int, n: int) -> _case.Case:
    rng = np.random.default_rng(0)
    sizes, signs = rng.uniform(-14, 0, (rows, n)), rng.choice([-1, 1], (rows, n))
    c = (2.0**sizes * signs).astype(np.float32)
    t = rng.uniform(-1, 1, (rows, many)).astype(np.float32)
    given = jnp.asarray(t), jnp.asarray(c)

    def write(t: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.broadcast_to(t[..., None] > 0, (*t.shape, n))

    def walk() -> np.ndarray:
        left, mask = t.copy(), np.zeros((*t.shape, n), bool)
        for row, order in enumerate(np.argsort(-np.abs(c), axis=1)):
            for h in order:
                rest = left[row] - c[row, h]
                mask[row, :, h] = np.abs(rest) < np.abs(left[row])
                left[row] = np.where(mask[row, :, h], rest, left[row])
        return np.abs(left)

    def agree(results: Mapping[str, Any]) -> None:
        # In bins another order, and other subsets, as near.
        ours, theirs = results["subset_sum.greedy"].error, results["NumPy, sorted"]
        for error in (ours, theirs):
            assert np.median(error) < 1e-4
        assert np.mean(np.asarray(ours) > 1e-3) <= 0.01

    every = {"steps": t.size}
    greedy = subset_sum.greedy
    contestants = [
        _case.contestant("subset_sum.greedy", greedy, *given, **every),
        Contestant("NumPy, sorted", walk, **every),
        _case.contestant("write the subsets", write, *given, **every),
    ]
    return _case_of(f"greedy, {t.size:,} targets, n={n}", contestants, agree, t, n)


def _case_of(
    name: str, given: Sequence[Contestant], agree: Any, t: np.ndarray, n: int
) -> _case.Case:
    how = {"shape": list(t.shape), "density": None, "coefficients": n}
    return _case.of(name, given, agree, dtype=str(t.dtype), **how)
