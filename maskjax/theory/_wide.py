"""Wide random networks in pairs of layers, of which strong tickets are made.

A pair {"inner": [i, k], "outer": [i, k, o]} is a layer from each of i inputs to its own
block of k hidden neurons, ReLU, and a layer from all of these to o outputs. With a bias
the last block is that of a constant 1, and i is one more than there are inputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax import initializer, packing
from maskjax._core import checks, trees
from maskjax._core.trees import Array, Mask, Params


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
    """A wide random network, of twice the depth of the networks it can be pruned to.

    Args:
        widths: Those of the target: of its input, its hidden layers, its output.
        k: How many hidden neurons for each input of a layer; `gadget.block_size` knows
            how many are enough.
        key: A typed key.
        bias: Whether targets have biases.
        inner: What draws the weights to the hidden neurons,
        outer: and those from them, `(key, shape, dtype) -> array`.
        shared: Whether the outer weights are drawn once for each output, and used again
            for each of its inputs, as in the code of arXiv:2006.07990.
        dtype: That of the weights.

    Returns:
        A list of pairs of layers.

    Raises:
        TypeError: If a number is not whole, or the key not a typed key.
        ValueError: If there are not two widths, or a number is below 1.

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
    """What a ReLU network says, dense or in pairs of layers, masked or not.

    Args:
        layers: A list of layers, as above, with ReLU between them.
        x: [..., n].
        bias: Of pairs as in `init`. Dense layers say themselves whether they have one.

    Returns:
        [..., o].

    Raises:
        ValueError: If a layer is of neither kind, or does not fit what it gets.

    Example:
        >>> kernels = jnp.array([[1.0, -1.0]]), jnp.ones((2, 1))
        >>> layers = [{"kernel": kernel} for kernel in kernels]
        >>> strong_ticket.forward(layers, jnp.array([[-3.0], [2.0]]))
        Array([[3.],
               [2.]], dtype=float32)
    """
    return run(layers, x, bias=bias, fn="maskjax.theory.strong_ticket.forward")


def run(layers: Params, x: Array, *, bias: bool, fn: str) -> Array:
    """As `forward`, for a public function to blame."""
    for i, layer in enumerate(layers):
        x = jax.nn.relu(x) if i else x
        if isinstance(layer, Mapping) and "kernel" in layer:
            _fed(x, layer["kernel"].shape[-2], i, bias="bias" in layer, fn=fn)
            x = x @ layer["kernel"]
            if "bias" in layer:
                x = x + jnp.broadcast_to(layer["bias"], x.shape)
            continue
        pair(layer, i, fn=fn)
        v, u = layer["inner"], layer["outer"]
        _fed(x, len(v) - bias, i, bias=bias, fn=fn)
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
    """The wide network with all weights of its first layers, those between blocks too.

    Args:
        params: A wide network of L pairs, from `init`.
        mask: A mask of it; a leaf that is `None` keeps all.
        key: A typed key, for the weights between blocks.
        bias: As in `init`.
        inner: As in `init`.

    Returns:
        A list of 2 L dense layers, and a mask of it: its output under this mask is that
        of `params` under theirs. The first of a pair has n * i * k weights, which is
        why there is another form.

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
        pair(layer, i, fn=fn)
    checks.mask_of(mask, params, fn=fn, names=("params", "mask"))
    mask = packing.unpack(mask)
    layers, masks = [], []
    for i, (layer, kept) in enumerate(zip(params, mask, strict=True)):
        v, u = layer["inner"], layer["outer"]
        kept_v, kept_u = (
            _whole(kept[name], layer[name]) for name in ("inner", "outer")
        )
        (rows, k), o = v.shape, u.shape[-1]
        drawn = inner(jax.random.fold_in(key, i), (rows, rows * k), v.dtype)
        own = jnp.arange(rows * k)[None] // k == jnp.arange(rows)[:, None]
        first = jnp.where(own, v.reshape(1, -1), drawn)
        keep = own & kept_v.reshape(1, -1)
        n = rows - bias
        layers += [{"kernel": first[:n]}, {"kernel": u.reshape(-1, o)}]
        masks += [{"kernel": keep[:n]}, {"kernel": kept_u.reshape(-1, o)}]
        if bias:
            layers[-2]["bias"], masks[-2]["bias"] = first[n], keep[n]
    return layers, masks


def pair(layer: Any, i: int, *, fn: str) -> None:
    """Complain unless a layer is a pair of layers."""
    has = {}
    if isinstance(layer, Mapping):
        has = {name: getattr(x, "shape", ()) for name, x in layer.items()}
    inner, outer = has.get("inner", ()), has.get("outer", ())
    if has.keys() != {"inner", "outer"} or len(inner) != 2 or outer[:-1] != inner:
        raise ValueError(
            f"`{fn}` needs layer {i} with 'inner' [i, k] and 'outer' [i, k, o], got "
            f"{has or checks.kind_of(layer)}."
        )


def finite(layers: Params, *, fn: str, name: str) -> None:
    """Complain of weights, whose values are known, that are inf or nan."""

    def complaint(path: str, leaf: Any) -> str | None:
        array = np.asarray(leaf)
        wrong = np.argwhere(~np.isfinite(array))
        if not len(wrong):
            return None
        at = tuple(wrong[0].tolist())
        return f"{path}: {len(wrong):,} are not, the first {array[at]} at {at}"

    checks.raise_all(
        (complaint(*each) for each in trees.named_leaves(layers)),
        f"`{fn}` needs every weight of `{name}` finite",
    )


def _fed(x: Array, n: int, i: int, *, bias: bool, fn: str) -> None:
    """Complain unless a layer gets as many inputs as it has weights for."""
    if x.shape[-1:] != (n,):
        has = "with a bias" if bias else "without a bias"
        raise ValueError(
            f"`{fn}` needs inputs [..., {n}] for layer {i}, {has}, got {x.shape}."
        )


def _whole(kept: Any, weights: Array) -> Array:
    """A leaf of a mask in the shape of the weights."""
    return jnp.broadcast_to(True if kept is None else kept, weights.shape)
