"""What does `where.traced` cost beside the trace that it reads?

A GPT whose layers are unrolled, by shapes; `jax.make_jaxpr` is the limit. The first
call of a compiled step has to trace and to lower it, before it is compiled.
"""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._timing import Contestant
from benchmarks.speed import _case
from maskjax import where

FULL = [(12, 768, 12)]
QUICK = [(2, 64, 4)]
VOCABULARY, LENGTH = 50257, 1024


def shapes(layers: int, width: int, heads: int) -> Any:
    """The parameters of a GPT."""

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def norm():
        return {"scale": shape(width), "bias": shape(width)}

    def dense(fan_in, fan_out):
        return {"kernel": shape(*fan_in, *fan_out), "bias": shape(*fan_out)}

    split = (heads, width // heads)
    return {
        "tokens": shape(VOCABULARY, width),
        "positions": shape(LENGTH, width),
        "norm": norm(),
        "layers": [
            {
                "norm_1": norm(),
                "query": dense((width,), split),
                "key": dense((width,), split),
                "value": dense((width,), split),
                "out": dense(split, (width,)),
                "norm_2": norm(),
                "up": dense((width,), (4 * width,)),
                "down": dense((4 * width,), (width,)),
            }
            for _ in range(layers)
        ],
    }


def _normed(p: Any, x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x) * p["scale"] + p["bias"]


def _layer(p: Any, x: jax.Array) -> jax.Array:
    h = _normed(p["norm_1"], x)
    query, key, value = (
        jnp.einsum("bti,ihd->bthd", h, p[name]["kernel"]) + p[name]["bias"]
        for name in ("query", "key", "value")
    )
    h = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    x = x + jnp.einsum("bthd,hdo->bto", h, p["out"]["kernel"]) + p["out"]["bias"]
    h = _normed(p["norm_2"], x) @ p["up"]["kernel"] + p["up"]["bias"]
    return x + jax.nn.gelu(h) @ p["down"]["kernel"] + p["down"]["bias"]


def gpt(params: Any, ids: jax.Array) -> jax.Array:
    """Logits of the next token, from a table that is the embedding too."""
    x = params["tokens"][ids] + params["positions"][: ids.shape[1]]
    for p in params["layers"]:
        x = _layer(p, x)
    return _normed(params["norm"], x) @ params["tokens"].T


def case(layers: int, width: int, heads: int) -> _case.Case:
    """Each call traces anew: JAX remembers the trace of a function it has seen."""
    params = shapes(layers, width, heads)
    ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    leaves = len(jax.tree.leaves(params))

    def traced():
        return where.traced(lambda p, x: gpt(p, x), params, ids)

    def jaxpr():
        return jax.make_jaxpr(lambda p, x: gpt(p, x))(params, ids)

    def lowered():
        return jax.jit(lambda p, x: gpt(p, x)).lower(params, ids)

    def agree(results):
        """Six kernels a layer, and none else."""
        lines = str(results["where.traced"]).splitlines()
        kernels = [line for line in lines if not line.endswith(")")]
        assert len(lines) == leaves
        assert len(kernels) == 6 * layers
        assert len(results["jax.make_jaxpr"].jaxpr.invars) == leaves + 1

    contestants = [
        Contestant("where.traced", traced),
        Contestant("jax.jit(...).lower", lowered),
        Contestant("jax.make_jaxpr", jaxpr),
    ]
    context = {"structure": None, "density": None, "shape": None}
    name = f"GPT layers={layers} width={width}"
    return _case.of(name, contestants, agree, **context)
