"""Wide random networks in pairs of layers, which strong tickets are made of.

A pair {"inner": [i, k], "outer": [i, k, o]} connects each of i inputs to its own block
of k hidden neurons, and after a ReLU all of these to o outputs. With biases, the last
block belongs to a constant 1, and i is the number of inputs plus one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import initializer, packing
from maskjax._core import checks, placement
from maskjax._core.trees import Array, Mask, Params
from maskjax.theory import _networks


def init(
    widths: Sequence[int],
    *,
    k: int,
    key: Array,
    bias: bool = False,
    inner: initializer.Initializer = initializer.uniform(),
    outer: initializer.Initializer = initializer.uniform(),
    shared: bool = False,
    dtype: Any = jnp.float32,
) -> Params:
    """A wide random network, twice as deep as the networks it can be pruned to.

    Args:
        widths: The target's widths: input, hidden layers, output.
        k: The number of hidden neurons for each input of a layer. For most
            constructions `gadget.block_size` computes how many are enough.
        key: A typed key.
        bias: Whether targets have biases.
        inner: Draws the weights to the hidden neurons, `(key, shape, dtype) -> array`.
        outer: Draws the weights from the hidden neurons, `(key, shape, dtype) ->
            array`.
        shared: Whether all inputs of a layer share one draw of outer weights, as in the
            code of arXiv:2006.07990.
        dtype: The dtype of the weights.

    Returns:
        A list of pairs of layers.

    Raises:
        TypeError: If a number is not whole, or the key not a typed key.
        ValueError: If there are fewer than two widths, or a number is below 1.

    Example:
        >>> wide = strong_ticket.init((3, 2), k=5, bias=True, key=jax.random.key(0))
        >>> jax.tree.map(jnp.shape, wide)
        [{'inner': (4, 5), 'outer': (4, 5, 2)}]
    """
    fn = "maskjax.theory.strong_ticket.init"
    checks.typed_key(key, fn=fn)
    checks.at_least(k, 1, fn=fn, name="k")
    widths = tuple(widths)
    if len(widths) < 2:
        raise ValueError(f"`{fn}` needs `widths` of 2 numbers or more, got {widths}.")
    for width in widths:
        checks.at_least(width, 1, fn=fn, name="widths")
    layers = []
    for i, (n, o) in enumerate(zip(widths, widths[1:], strict=False)):
        one, other = jax.random.split(jax.random.fold_in(key, i))
        n += bias
        drawn = outer(other, (1 if shared else n, k, o), dtype)  # 1.
        drawn = jnp.broadcast_to(drawn, (n, k, o))
        layers.append({"inner": inner(one, (n, k), dtype), "outer": drawn})
    return layers


def forward(layers: Params, x: Array, *, bias: bool = False) -> Array:
    """The output of a ReLU network of dense layers, or of pairs of layers.

    Args:
        layers: A list of layers, masked or not, with ReLU between them.
        x: [..., n].
        bias: Whether pairs of layers have biases, as in `init`. It does not matter for
            dense layers.

    Returns:
        [..., o].

    Raises:
        ValueError: If a layer is of neither kind, or does not fit its input.

    Example:
        >>> kernels = jnp.array([[1.0, -1.0]]), jnp.ones((2, 1))
        >>> layers = [{"kernel": kernel} for kernel in kernels]
        >>> strong_ticket.forward(layers, jnp.array([[-3.0], [2.0]]))
        Array([[3.],
               [2.]], dtype=float32)
    """
    fn = "maskjax.theory.strong_ticket.forward"
    _networks.require_inputs(layers, x.shape, bias=bias, fn=fn)
    return run(layers, x, bias=bias)


@functools.partial(jax.jit, static_argnames="bias")
def run(layers: Params, x: Array, *, bias: bool) -> Array:
    """The output of layers that fit."""
    for i, layer in enumerate(layers):
        x = jax.nn.relu(x) if i else x
        if "kernel" in layer:
            x = x @ layer["kernel"]
            if "bias" in layer:
                x = x + jnp.broadcast_to(layer["bias"], x.shape)
            continue
        v, u = layer["inner"], layer["outer"]
        if bias:
            x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)
        hidden = jax.nn.relu(jnp.einsum("...i,ik->...ik", x, v))
        x = hidden.reshape(*x.shape[:-1], -1) @ u.reshape(-1, u.shape[-1])
    return x


def dense(
    params: Params,
    mask: Mask,
    *,
    key: Array,
    bias: bool = False,
    inner: initializer.Initializer = initializer.uniform(),
) -> tuple[Params, Mask]:
    """The wide network as dense layers, with random weights between blocks too.

    Use it to check the construction. It needs n * i * k weights where a pair of layers
    needs i * k.

    Args:
        params: A wide network of L pairs, from `init`.
        mask: A mask of it; a leaf that is `None` keeps all.
        key: A typed key, for the weights between blocks.
        bias: Whether pairs of layers have biases, as in `init`.
        inner: Draws the weights between blocks, `(key, shape, dtype) -> array`.

    Returns:
        A list of 2 L dense layers, and a mask of it. Under that mask its output is the
        output of `params` under `mask`.

    Raises:
        TypeError: If the key is not a typed key.
        ValueError: If a layer is no pair, or the mask does not fit.

    Example:
        >>> wide = strong_ticket.init((2, 1), k=3, key=jax.random.key(0))
        >>> mask = masking.everything(wide)
        >>> layers, _ = strong_ticket.dense(wide, mask, key=jax.random.key(1))
        >>> jax.tree.map(jnp.shape, layers)
        [{'kernel': (2, 6)}, {'kernel': (6, 1)}]
    """
    fn = "maskjax.theory.strong_ticket.dense"
    checks.typed_key(key, fn=fn)
    for i, layer in enumerate(params):
        _networks.require_pair(layer, i, fn=fn)
    checks.shaped_like(params, mask, fn=fn, names=("params", "mask"))
    layers, masks = [], []
    for i, (layer, kept) in enumerate(zip(params, packing.unpack(mask), strict=True)):
        rows, k = layer["inner"].shape
        shape = (rows, rows * k)
        drawn = inner(jax.random.fold_in(key, i), shape, layer["inner"].dtype)
        for found, pair in zip(
            (layers, masks), _dense(layer, kept, drawn), strict=True
        ):
            first, second = pair
            ends = {"bias": first[-1]} if bias else {}
            found += [{"kernel": first[: rows - bias]} | ends, {"kernel": second}]
    return layers, masks


@jax.jit
def _dense(layer: Params, kept: Mask, drawn: Array) -> tuple[Any, Any]:
    """The two kernels of a pair, and their masks; the constant's row is the last."""
    layer, kept = placement.whole((layer, kept))
    kept = {
        name: jnp.broadcast_to(True if kept[name] is None else kept[name], w.shape)
        for name, w in layer.items()
    }
    (rows, k), o = layer["inner"].shape, layer["outer"].shape[-1]
    own = jnp.arange(rows * k)[None] // k == jnp.arange(rows)[:, None]
    kernels = jnp.where(own, layer["inner"].reshape(1, -1), drawn), layer["outer"]
    masks = own & kept["inner"].reshape(1, -1), kept["outer"]
    return tuple((a, b.reshape(-1, o)) for a, b in (kernels, masks))
