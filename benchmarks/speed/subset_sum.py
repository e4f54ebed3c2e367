"""How fast are subset sums found, the nearest of all 2**21, and by a greedy walk?

Times are for one target. Baselines: meeting in the middle target by target in NumPy,
as one would write it down; in XLA, with two pointers, all targets at once; the walk in
NumPy over sorted coefficients. The limit of the exact search is to sort one part's
sums, that of the walk to write the subsets.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._timing import Contestant, compiled
from benchmarks.speed._case import Case
from maskjax.theory import subset_sum

REPEATS = 10
# Rows, targets each, coefficients: a part of 784-500-10, whose rows share theirs; a set
# for each target; and a million targets for the walk.
FULL = [(50, 784, 21), (2_000, 1, 21), (1_000, 1_000, 128)]
QUICK = [(2, 30, 10), (20, 1, 10), (4, 10, 64)]
ALONE = 100  # targets that are solved one by one


def cases(*, quick: bool) -> Iterator[Case]:
    """Shared coefficients, others for each target, and the walk."""
    shared, fresh, walk = QUICK if quick else FULL
    yield _exact("coefficients of a row", *shared)
    yield _exact("coefficients of a target", *fresh)
    yield _greedy(*walk)


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


def _exact(name: str, rows: int, many: int, n: int) -> Case:
    rng = np.random.default_rng(0)
    t, c = rng.normal(0, 0.03, (rows, many)), rng.uniform(-0.5, 0.5, (rows, n))
    some = list(np.ndindex(rows, many))[:: max(1, t.size // ALONE)][:ALONE]
    split = 2 ** ((n + int(np.log2(many))) // 2)
    sums = rng.normal(size=(rows, min(split, 2**n)))

    def alone() -> np.ndarray:
        return np.array([meet(t[at], c[at[0]]) for at in some])

    with jax.enable_x64(True):
        given = jnp.asarray(t), jnp.asarray(c)
        call, compile_s = compiled(two_pointers, *given)

    def agree(results: Mapping[str, Any]) -> None:
        error = results["subset_sum.nearest"].error
        np.testing.assert_allclose(
            [error[at] for at in some], results["NumPy, one by one"], atol=1e-15
        )
        np.testing.assert_allclose(results["XLA, two pointers"], error, atol=1e-15)

    contestants = [
        Contestant(
            "subset_sum.nearest",
            "ours",
            lambda: subset_sum.nearest(t, c),
            steps=t.size,
        ),
        Contestant("NumPy, one by one", "baseline", alone, steps=len(some)),
        Contestant(
            "XLA, two pointers",
            "baseline",
            lambda: call(*given),
            compile_s,
            steps=t.size,
        ),
        Contestant(
            "sort a part's sums", "limit", lambda: np.sort(sums, axis=1), steps=t.size
        ),
    ]
    return _case(f"nearest, {name}, n={n}", t, "float64", n, contestants, agree)


def _greedy(rows: int, many: int, n: int) -> Case:
    rng = np.random.default_rng(0)
    sizes, signs = rng.uniform(-14, 0, (rows, n)), rng.choice([-1, 1], (rows, n))
    c = (2.0**sizes * signs).astype(np.float32)
    t = rng.uniform(-1, 1, (rows, many)).astype(np.float32)
    given = jnp.asarray(t), jnp.asarray(c)
    call, compile_s = compiled(subset_sum.greedy, *given)
    write, write_s = compiled(
        lambda t: jnp.broadcast_to(t[..., None] > 0, (*t.shape, n)), t
    )

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

    contestants = [
        Contestant(
            "subset_sum.greedy", "ours", lambda: call(*given), compile_s, steps=t.size
        ),
        Contestant("NumPy, sorted", "baseline", walk, steps=t.size),
        Contestant(
            "write the subsets", "limit", lambda: write(t), write_s, steps=t.size
        ),
    ]
    return _case(
        f"greedy, {t.size:,} targets, n={n}", t, "float32", n, contestants, agree
    )


def _case(
    name: str,
    t: np.ndarray,
    dtype: str,
    n: int,
    contestants: list[Contestant],
    agree: Callable[[Mapping[str, Any]], None],
) -> Case:
    context = {
        "dtype": dtype,
        "shape": list(t.shape),
        "density": None,
        "structure": "Entries()",
        "coefficients": n,
    }
    return Case(name, context, contestants, agree)
