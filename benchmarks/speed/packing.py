"""How fast is arithmetic on a bank of packed masks, and how small is the bank?

K masks of a network: their inner products with a tree, and their weighted sum.
Baselines keep a byte or a float an entry. The limit is one pass that reads the bits.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._timing import Contestant, Role, compiled
from benchmarks.speed._case import Case
from maskjax import packing

NETWORK = [(784, 300), (300, 100), (100, 100)]
SMALL = [(20, 10), (10, 7)]
# Shapes, members, and whether a float an entry fits into memory.
FULL = [(NETWORK, 25, True), (NETWORK, 250, True), (NETWORK, 2500, False)]
QUICK = [(SMALL, 20, True)]
CHUNK = 16

Bank = list[Any]


def cases(*, quick: bool) -> Iterator[Case]:
    """Banks of more and more masks, and both products."""
    for shapes, k, fits in QUICK if quick else FULL:
        rng = np.random.default_rng(0)
        masks = [
            jnp.asarray(rng.integers(0, 2, (k, *s), dtype=np.uint8).view(bool))
            for s in shapes
        ]
        packed = jax.jit(lambda m: lax.map(packing.pack, m, batch_size=CHUNK))(masks)
        tree = [jnp.asarray(rng.standard_normal(s, dtype=np.float32)) for s in shapes]
        weights = jnp.asarray(rng.random(k, dtype=np.float32))
        yield _case("dot", packing.dot, dot, masks, packed, tree, fits=fits)
        yield _case("mix", packing.mix, mix, masks, packed, weights, fits=fits)


def dot(bank: Bank, tree: Bank) -> jax.Array:
    """Inner products by `einsum`, of booleans converted on the way or of floats."""
    of_leaves = [
        jnp.einsum("kij,ij->k", m.astype(v.dtype), v)
        for m, v in zip(bank, tree, strict=True)
    ]
    return jnp.stack(of_leaves).sum(0)


def mix(bank: Bank, weights: jax.Array) -> Bank:
    """Weighted sums by `einsum`."""
    return [jnp.einsum("kij,k->ij", m.astype(weights.dtype), weights) for m in bank]


def _chunked_dot(bank: Bank, tree: Bank) -> jax.Array:
    return lax.map(lambda m: _masked_sum(m, tree), bank, batch_size=CHUNK)


def _masked_sum(mask: Bank, tree: Bank) -> jax.Array:
    sums = [jnp.where(m, v, 0).sum() for m, v in zip(mask, tree, strict=True)]
    return jnp.stack(sums).sum()


def _chunked_mix(bank: Bank, weights: jax.Array) -> Bank:
    def add(i: jax.Array, total: Bank) -> Bank:
        return [t + weights[i] * m[i] for t, m in zip(total, bank, strict=True)]

    zeros = [jnp.zeros(m.shape[1:], weights.dtype) for m in bank]
    return lax.fori_loop(0, weights.shape[0], add, zeros)


def read(packed: Bank) -> Bank:
    """Every word read once, and next to nothing done or written."""
    return [lax.reduce(p.bits, np.uint32(0), lax.bitwise_xor, (0,)) for p in packed]


def _case(
    name: str,
    ours: Callable,
    unpacked: Callable,
    masks: Bank,
    packed: Bank,
    operand: Any,
    *,
    fits: bool,
) -> Case:
    def contestant(
        name: str, role: Role, fn: Callable, bank: Bank, *rest: Any
    ) -> Contestant:
        call, compile_s = compiled(fn, bank, *rest)
        nbytes = sum(leaf.nbytes for leaf in bank)
        return Contestant(
            name, role, lambda: call(bank, *rest), compile_s, nbytes=nbytes
        )

    chunked = {"dot": _chunked_dot, "mix": _chunked_mix}[name]
    contestants = [
        contestant(f"packing.{name}", "ours", ours, packed, operand),
        contestant("booleans in chunks", "baseline", chunked, masks, operand),
    ]
    if fits:
        floats = [m.astype(jnp.float32) for m in masks]
        contestants += [
            contestant("booleans, einsum", "baseline", unpacked, masks, operand),
            contestant("floats, einsum", "baseline", unpacked, floats, operand),
        ]
    contestants.append(contestant("read the bits", "limit", read, packed))

    def agree(results: Mapping[str, Any]) -> None:
        expected = results["booleans in chunks"]
        for each, result in results.items():
            if each == "read the bits":
                continue
            for a, b in zip(
                jax.tree.leaves(result), jax.tree.leaves(expected), strict=True
            ):
                # Sums of 1e5 terms in another order.
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2, err_msg=each)

    k = masks[0].shape[0]
    return Case(
        f"{name} K={k}",
        {
            "dtype": "float32",
            "shape": [list(m.shape[1:]) for m in masks],
            "density": 0.5,
            "structure": "Entries()",
            "members": k,
        },
        contestants,
        agree,
    )
