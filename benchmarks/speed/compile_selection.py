"""How long does a first selection over many leaves take to trace and compile?

The limit is the update of optax's AdamW on the same tree, which a training step
compiles anyway. Each call traces and compiles anew, in CPU seconds of the process.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks._timing import Contestant
from benchmarks.speed import _case
from maskjax import select

# Kernels of transformers, of each as many leaves as there are layers.
SHAPES = [(768, 768), (768, 3072), (3072, 768), (768, 2304), (1024, 768), (512, 768)]
FULL = [(150, "leaf"), (150, "global"), (600, "leaf"), (600, "global")]
QUICK = [(12, "leaf")]
REPEATS = 5


def by_sorting(scores: Any) -> Any:
    """A tenth of each leaf, with the threshold from a sort."""
    return jax.tree.map(lambda x: x >= jnp.sort(x, axis=None)[-x.size // 10], scores)


def case(leaves: int, scope: str) -> _case.Case:
    """Leaves named as unrolled layers name theirs."""
    tree = {
        f"layer_{i // len(SHAPES)}/{i % len(SHAPES)}": jax.ShapeDtypeStruct(
            SHAPES[i % len(SHAPES)], "float32"
        )
        for i in range(leaves)
    }
    optimizer = optax.adamw(1e-3)
    state = jax.eval_shape(optimizer.init, tree)

    def compiling(name: str, fn: Any, *args: Any) -> Contestant:
        def run() -> float:
            jax.clear_caches()  # of traces: what is inside of `fn` is traced once
            start = time.process_time()
            jax.jit(lambda *args: fn(*args)).lower(*args).compile()
            return time.process_time() - start

        return Contestant(name, run, keeps_time=True)

    def agree(seconds):
        assert min(seconds.values()) > 0

    contestants = [
        compiling(
            "select.top_k", lambda x: select.top_k(x, density=0.1, scope=scope), tree
        ),
        compiling("sort each leaf", by_sorting, tree),
        compiling("optax.adamw", optimizer.update, tree, state, tree),
    ]
    return _case.of(
        f"leaves={leaves} {scope}",
        contestants,
        agree,
        density=0.1,
        shape=SHAPES,
        scope=scope,
    )
