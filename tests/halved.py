"""Networks whose masks halve them, and the same networks built at half the width.

A GPT with its layers unrolled or in a scan, and a ResNet with batch normalization, each
with a training step. The axes of parameters have letters, and a letter has a size: what
stays of a masked network has the shapes of the one that is `built` small. Layers of a
scan keep other units.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from maskjax import compaction

ADAM = optax.adam(1e-3)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of any width, and a mask that leaves half of the units.

    Attributes:
        apply: `(params, x) -> outputs`, and new statistics if there are any.
        step: `(params, moments, x, y) -> (params, moments)`.
        axes: For each parameter the letters of its axes, in a tree.
        sizes: How long each axis is.
        halved: The letters whose units are masked.
        inputs: The shapes of `x` and `y`.
    """

    apply: Callable[..., Any]
    step: Callable[..., Any]
    axes: Any
    sizes: Mapping[str, int]
    halved: str
    inputs: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]

    @property
    def params(self) -> Any:
        """Shapes of the whole network's parameters."""
        return self._shapes(self.sizes)

    @property
    def built(self) -> Any:
        """Shapes of those of the network built small."""
        return self._shapes({n: self._left(n) for n in self.sizes})

    @property
    def mask(self) -> Any:
        """A mask without half of the units, in each layer of a stack without others."""
        return jax.tree.map(self._mask, self.axes)

    def plan(self) -> compaction.Plan:
        return compaction.plan(self.apply, self.params, self.mask, self.inputs[0])

    def moments(self, params: Any) -> Any:
        """Shapes of Adam's moments."""
        return jax.eval_shape(ADAM.init, params.get("params", params))

    def _shapes(self, sizes: Mapping[str, int]) -> Any:
        def shaped(letters: str) -> jax.ShapeDtypeStruct:
            return shape(*(sizes[n] for n in letters))

        return jax.tree.map(shaped, self.axes)

    def _left(self, letter: str) -> int:
        return self.sizes[letter] // (1 + (letter in self.halved))

    def _mask(self, letters: str) -> np.ndarray:
        mask = np.ones([1] * len(letters), bool)
        for axis, letter in enumerate(letters):
            keep = np.arange(self.sizes[letter]) % 2 < 1 + (letter not in self.halved)
            each = keep.reshape([-1 if i == axis else 1 for i in range(len(letters))])
            if letters[0] == "L" and letter in "hf":
                rolled = [np.roll(each, i, axis) for i in range(self.sizes["L"])]
                each = np.concatenate(rolled)
            mask = mask & each
        return mask


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _over(*spec: str | None) -> P | None:
    """How an output is sharded, which Explicit meshes ask for: rows over x, units y."""
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return P(*spec) if explicit else None


def _loss(logits: Any, y: Any) -> Any:
    labels = jax.nn.one_hot(y, logits.shape[-1])
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, -1))


def _updated(gradients: Any, moments: Any, params: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):  # Optax divides by whole numbers
        updates, moments = ADAM.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments


# GPT.

_LAYER = {
    "first": "d",
    "query": "dhe",
    "key": "dhe",
    "value": "dhe",
    "out": "hed",
    "second": "d",
    "up": "df",
    "down": "fd",
}
_ENDS = {"embed": "vd", "last": "d", "head": "dv"}


def _normed(x: Any, scale: Any) -> Any:
    square = jnp.mean(x * x, -1, keepdims=True)
    return x * lax.rsqrt(square + 1e-6) * jnp.expand_dims(scale, (0, 1))


def _block(x: Any, p: Any) -> Any:
    h = _normed(x, p["first"])
    query, key, value = (
        jnp.einsum("btd,dhe->bthe", h, p[n]) for n in ("query", "key", "value")
    )
    h = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    rows = _over("x", None, None)
    x = x + jnp.einsum("bthe,hed->btd", h, p["out"], out_sharding=rows)
    h = jax.nn.gelu(_normed(x, p["second"]) @ p["up"])
    return x + jnp.matmul(h, p["down"], out_sharding=rows)


def _embedded(params: Any, ids: Any) -> Any:
    return params["embed"].at[ids].get(out_sharding=_over("x", None, None))


def _unrolled(params: Any, ids: Any) -> Any:
    x = _embedded(params, ids)
    for name in sorted(params["layers"]):
        x = _block(x, params["layers"][name])
    return _normed(x, params["last"]) @ params["head"]


def _scanned(params: Any, ids: Any) -> Any:
    x = _embedded(params, ids)
    x, _ = lax.scan(lambda x, p: (_block(x, p), None), x, params["layers"])
    return _normed(x, params["last"]) @ params["head"]


def gpt(*, scan: bool, layers: int, batch: tuple[int, int], **sizes: int) -> Network:
    """A GPT of `sizes`: v words, d of the stream, h heads of e, f hidden."""
    apply = _scanned if scan else _unrolled
    stack = {n: "L" + letters for n, letters in _LAYER.items()}
    each = {f"layer_{i}": _LAYER for i in range(layers)}

    def step(params: Any, moments: Any, ids: Any, y: Any) -> Any:
        gradients = jax.grad(lambda p: _loss(apply(p, ids), y))(params)
        return _updated(gradients, moments, params)

    axes = {**_ENDS, "layers": stack if scan else each}
    ids = shape(*batch, dtype="int32")
    return Network(apply, step, axes, {**sizes, "L": layers}, "dhf", (ids, ids))


# ResNet.


def _unit(x: Any, p: Any, s: Any, *, stride: int = 1, train: bool) -> tuple[Any, Any]:
    """A convolution and a batch normalization, and new statistics."""
    layout = ("NHWC", "HWIO", "NHWC")
    units = jax.typeof(p["kernel"]).sharding.spec[-1:]
    how = {"dimension_numbers": layout}
    how |= {"out_sharding": _over("x", None, None, *units)}
    x = lax.conv_general_dilated(x, p["kernel"], (stride, stride), "SAME", **how)
    mean, var = s["mean"], s["var"]
    if train:
        mean = jnp.mean(x, (0, 1, 2))
        var = jnp.mean(jnp.square(x), (0, 1, 2)) - mean * mean
        s = {"mean": 0.9 * s["mean"] + 0.1 * mean, "var": 0.9 * s["var"] + 0.1 * var}
    along = lambda v: jnp.expand_dims(v, (0, 1, 2))  # noqa: E731
    x = (x - along(mean)) * along(lax.rsqrt(var + 1e-5) * p["scale"])
    return x + along(p["bias"]), s


def _features(variables: Any, x: Any, *, train: bool) -> tuple[Any, Any]:
    p, old, new = variables["params"], variables["batch_stats"], {}

    def unit(x: Any, name: str, stride: int = 1) -> Any:
        x, new[name] = _unit(x, p[name], old[name], stride=stride, train=train)
        return x

    x = jax.nn.relu(unit(x, "stem"))
    h = jax.nn.relu(unit(x, "first"))
    x = jax.nn.relu(x + unit(h, "second"))
    h = jax.nn.relu(unit(x, "third", 2))
    x = jax.nn.relu(unit(x, "skip", 2) + unit(h, "fourth"))
    return jnp.mean(x, (1, 2)) @ p["head"], new


def resnet(*, batch: int, image: int, **sizes: int) -> Network:
    """Two blocks, the second of twice the width: a, b are streams, m, n hidden."""
    units = {"stem": "ca", "first": "am", "second": "ma", "third": "an", "fourth": "nb"}
    units["skip"] = "ab"
    params: Any = {
        n: {"kernel": "kk" + io, "scale": io[1], "bias": io[1]}
        for n, io in units.items()
    }
    stats = {n: {"mean": io[1], "var": io[1]} for n, io in units.items()}
    axes = {"params": {**params, "head": "bo"}, "batch_stats": stats}

    def apply(variables: Any, x: Any) -> Any:
        return _features(variables, x, train=True)

    def step(variables: Any, moments: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, stats = apply({**variables, "params": params}, x)
            return _loss(logits, y), stats

        gradients, stats = jax.grad(loss, has_aux=True)(variables["params"])
        params, moments = _updated(gradients, moments, variables["params"])
        return {"params": params, "batch_stats": stats}, moments

    every = {"k": 3, "c": 3, "o": 10, **sizes}
    x, y = shape(batch, image, image, 3), shape(batch, dtype="int32")
    return Network(apply, step, axes, every, "abmn", (x, y))


def small() -> dict[str, Network]:
    """By name, small enough to run."""
    sizes = {"v": 12, "d": 8, "h": 4, "e": 4, "f": 16}
    return {
        "gpt": gpt(scan=False, layers=2, batch=(2, 5), **sizes),
        "scanned gpt": gpt(scan=True, layers=3, batch=(2, 5), **sizes),
        "resnet": resnet(batch=2, image=8, a=4, b=8, m=4, n=8),
    }
