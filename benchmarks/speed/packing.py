"""How fast is arithmetic on a bank of packed masks, and how small is the bank?

K masks of a network: their inner products with a tree, and their weighted sum.
Baselines keep a byte or a float an entry. The limit is one pass that reads the bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.speed import _case
from maskjax import packing, stacking

NETWORK = [(784, 300), (300, 100), (100, 100)]
SMALL = [(20, 10), (10, 7)]
# What is asked, shapes, members; and whether a float an entry fits into memory.
FLOATS, NO_FLOATS = "floats", "no floats"
SIZES = {25: FLOATS, 250: FLOATS, 2500: NO_FLOATS}
FULL = [(name, NETWORK, k, SIZES[k]) for k in SIZES for name in ("dot", "mix")]
QUICK = [(name, SMALL, 20, FLOATS) for name in ("dot", "mix")]
CHUNK = 16

Bank = list[Any]


def dot(bank: Bank, tree: Bank) -> jax.Array:
    """Inner products by `einsum`, of booleans converted on the way or of floats."""
    pairs = zip(bank, tree, strict=True)
    sums = [jnp.einsum("kij,ij->k", m.astype(v.dtype), v) for m, v in pairs]
    return jnp.stack(sums).sum(0)


def mix(bank: Bank, coefficients: jax.Array) -> Bank:
    """Weighted sums by `einsum`."""
    c = coefficients
    return [jnp.einsum("kij,k->ij", m.astype(c.dtype), c) for m in bank]


def _chunked_dot(bank: Bank, tree: Bank) -> jax.Array:
    def one(mask):
        pairs = zip(mask, tree, strict=True)
        return jnp.stack([jnp.where(m, v, 0).sum() for m, v in pairs]).sum()

    return lax.map(one, bank, batch_size=CHUNK)


def _chunked_mix(bank: Bank, coefficients: jax.Array) -> Bank:
    def add(i, total):
        pairs = zip(total, bank, strict=True)
        return [t + coefficients[i] * m[i] for t, m in pairs]

    zeros = [jnp.zeros(m.shape[1:], coefficients.dtype) for m in bank]
    return lax.fori_loop(0, coefficients.shape[0], add, zeros)


WAYS: dict[str, tuple[Callable[..., Any], ...]] = {
    "dot": (packing.dot, _chunked_dot, dot),
    "mix": (stacking.mix, _chunked_mix, mix),
}


def read(packed: Bank) -> Bank:
    """Every word read once, and next to nothing done or written."""
    return [lax.reduce(p.bits, np.uint32(0), lax.bitwise_xor, (0,)) for p in packed]


def drawn(shapes: Sequence[tuple[int, ...]], k: int) -> tuple[Bank, Bank]:
    """K masks at random, as booleans and packed."""
    rng = np.random.default_rng(0)
    bits = (rng.integers(0, 2, (k, *s), dtype=np.uint8).view(bool) for s in shapes)
    masks = list(map(jnp.asarray, bits))
    pack = jax.jit(lambda m: lax.map(packing.pack, m, batch_size=CHUNK))
    return masks, pack(masks)


def case(name: str, shapes: Sequence[Any], k: int, kinds: str) -> _case.Case:
    """One product with a bank of one size."""
    masks, packed = drawn(shapes, k)
    rng = np.random.default_rng(1)
    tree = [jnp.asarray(rng.standard_normal(s, dtype=np.float32)) for s in shapes]
    coefficients = jnp.asarray(rng.random(k, dtype=np.float32))
    operand = {"dot": tree, "mix": coefficients}[name]
    ours, chunked, unpacked = WAYS[name]
    ways = {
        f"{ours.__module__.split('.')[1]}.{name}": (ours, packed, operand),
        "booleans in chunks": (chunked, masks, operand),
    }
    if kinds == FLOATS:
        floats = [m.astype(jnp.float32) for m in masks]
        ways["booleans, einsum"] = unpacked, masks, operand
        ways["floats, einsum"] = unpacked, floats, operand
    names = list(ways)
    ways["read the bits"] = read, packed

    def contestant(name, fn, bank, *rest):
        held = sum(leaf.nbytes for leaf in bank)
        return _case.contestant(name, fn, bank, *rest, nbytes=lambda _: held)

    contestants = [contestant(each, *way) for each, way in ways.items()]
    # Sums of 1e5 terms in another order.
    agree = _case.agreeing(names, rtol=1e-3, atol=1e-2)
    context = {"shape": list(map(list, shapes)), "density": 0.5, "members": k}
    return _case.of(f"{name} K={k}", contestants, agree, **context)
