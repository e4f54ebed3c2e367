"""Flax layers that apply masks to features, where `nn.Dropout` would stand.

A mask on features does what a mask on the input rows of the next kernel does, but the
kernel is read once for all members and never copied. Masks are state: the collection
"masks" in Linen, variables of type `Mask` in NNX. So checkpoints contain them, and you
choose the masks of all layers at once:

    >>> from maskjax import layers
    >>> import flax.linen as nn
    >>> from maskjax.recipes import masksembles
    >>> dropout = layers.LinenFeatureMask(masksembles.masks)
    >>> net = nn.Sequential([nn.Dense(8), nn.relu, dropout, nn.Dense(3)])
    >>> x = jnp.ones((6, 4))
    >>> variables = jax.jit(net.init)(jax.random.key(0), x)
    >>> params, masks = variables["params"], variables["masks"]
    >>> run = lambda masks, x: net.apply({"params": params, "masks": masks}, x)
    >>> stacking.map(run, masks, x).shape  # all members
    (4, 6, 3)
    >>> run(stacking.take(masks, 0), x).shape  # the first member
    (6, 3)
    >>> members = masksembles.in_chunks(6, members=4)
    >>> run(layers.assign(masks, members), x).shape  # one member for each sample
    (6, 3)

In NNX write `graph, masks, rest = nnx.split(model, layers.Mask, ...)`, and `run` is
`lambda masks, x: nnx.merge(graph, masks, rest, copy=True)(x)`. (The copy lets a network
change state of its own while it is mapped: keys of dropout, statistics of BatchNorm.)
Soft masks multiply: dropout masks, of 0 and 1 / (1 - rate), can take the place of
`masks`.

The axis of members leads: [N, C]. Where layers are stacked, by `nn.scan` or `nnx.scan`,
put the axis of layers second to last: `variable_axes={"masks": -2, ...}`, or
`nnx.StateAxes({layers.Mask: -2, ...: 0})`. Then masks are [N, L, C]. If layers came
first, `stacking.map`, `take` and `size` would take layers for members. In `assign`
write `stack=1`.

On disk, a boolean [N, C] is one mask. Save `jax.vmap(packing.pack)(masks)`: the layers
take packed masks as they take others, and `stacking` maps over them.

Importing this module also lets `flax.serialization` store packed masks, and banks and
states that have them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx, serialization

from maskjax import masking, packing, stacking
from maskjax._core import checks, slots, trees
from maskjax._core.stored import on_each
from maskjax._core.trees import Array

__all__ = ["LinenFeatureMask", "Mask", "NNXFeatureMask", "assign"]

_Draw = Callable[..., Array]


class Mask(nnx.Variable):
    """The masks of an `NNXFeatureMask`."""


class LinenFeatureMask(nn.Module):
    """A Linen layer that masks features, the last axis of its input.

    Its collection "masks" has one leaf, `features`. `init` draws it, a stack [N, C],
    and does not mask. `apply` needs one mask [C] for all samples, or one for each
    sample, from `assign`.

    Attributes:
        draw: `(channels, *, key) -> [N, C]`; the key is of the stream "masks", or else
            of "params". `None`: one mask [C] that keeps everything, to be replaced by
            dropout masks.

    Example:
        >>> layer = layers.LinenFeatureMask()
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> variables
        {'masks': {'features': Array([ True,  True,  True], dtype=bool)}}
        >>> masks = {"features": jnp.array([True, False, True])}
        >>> layer.apply({"masks": masks}, jnp.ones((1, 3)))
        Array([[1., 0., 1.]], dtype=float32)
    """

    draw: _Draw | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Set the features that the mask removes to 0.

        Args:
            x: [B, ..., C].

        Returns:
            An array like `x`.

        Raises:
            ValueError: If there are no features or no samples, or the mask does not fit
                `x`, or is a stack: then choose a member, or map over it.
        """
        fn = "maskjax.layers.LinenFeatureMask"

        def make() -> Array:
            return _drawn(self.draw, x, lambda: self.make_rng("masks"), fn=fn)

        mask = self.variable("masks", "features", make).value
        return x if self.is_initializing() else _masked(x, mask, name=_name(self))


class NNXFeatureMask(nnx.Module):
    """An NNX layer that masks features, the last axis of its input.

    It runs with one mask [C] for all samples, or one for each sample, from `assign`:
    replace its variable `features`, of type `Mask`, by `nnx.split` and `nnx.merge`.

    Attributes:
        features: The masks, [N, C]; [C] if `draw` is `None`.

    Example:
        >>> from flax import nnx
        >>> draw = lambda channels, key: jnp.eye(channels, dtype=bool)
        >>> layer = layers.NNXFeatureMask(3, draw, rngs=nnx.Rngs(0))
        >>> graph, masks = nnx.split(layer)
        >>> nnx.merge(graph, stacking.take(masks, 1))(jnp.ones((1, 3)))
        Array([[0., 1., 0.]], dtype=float32)
    """

    def __init__(
        self, channels: int, draw: _Draw | None = None, *, rngs: nnx.Rngs | None = None
    ):
        """Draw the masks.

        Args:
            channels: C, at least 1.
            draw: `(channels, *, key) -> [N, C]`. `None`: one mask [C] that keeps
                everything, to be replaced by dropout masks.
            rngs: Needed if there is `draw`: its key is of the stream "masks", or else
                of the default stream.

        Raises:
            ValueError: If there is `draw` and no `rngs`, or channels are below 1.
        """
        fn = "maskjax.layers.NNXFeatureMask"
        if draw is not None and rngs is None:
            raise ValueError(f"`{fn}` needs `rngs` to draw.")
        like = jax.ShapeDtypeStruct((1, channels), jnp.float32)
        key = lambda: rngs["masks"]()  # noqa: E731  # type: ignore[index]
        self.features = Mask(_drawn(draw, like, key, fn=fn))

    def __call__(self, x: Array) -> Array:
        """Set the features that the mask removes to 0.

        Args:
            x: [B, ..., C].

        Returns:
            An array like `x`.

        Raises:
            ValueError: If there are no features or no samples, or the mask does not fit
                `x`, or is a stack: then choose a member, or map over it.
        """
        return _masked(x, self.features.get_value(), name="NNXFeatureMask")


def assign(masks: Any, members: Array, *, stack: int = 0) -> Any:
    """Masks for a batch, one for each sample, for any number of layers.

    Args:
        masks: Tree of stacks [N, C]: the collection "masks", or an NNX state of masks.
        members: [B], integers in [0, N): the mask that each sample gets. Traced ones
            out of range are clipped.
        stack: How many axes of layers come between N and C, as with `nn.scan`; masks
            of layers that are not stacked may be among them.

    Returns:
        A tree like `masks` with leaves [B, 1, C], not packed; [B, 1, L, C] of stacked
        layers.

    Raises:
        TypeError: If members are not integers.
        ValueError: If there are no members, one is out of range and not traced, or
            leaves are not stacks of equally many masks, or have more axes than `stack`
            says.

    Example:
        >>> masks = {"features": jnp.eye(2, dtype=bool)}
        >>> layers.assign(masks, jnp.array([1, 0, 1]))["features"][:, 0]
        Array([[False,  True],
               [ True, False],
               [False,  True]], dtype=bool)
    """
    fn = "maskjax.layers.assign"
    checks.at_least(stack, 0, fn=fn, name="stack")
    size = checks.members(masks, fn=fn)
    masks = trees.map_mask(packing.unpack_leaf, masks)
    leaves, _ = trees.mask_leaves(masks)
    between = f", or with up to {stack} axes of layers between" if stack else ""
    cure = ""
    if not stack and any(leaf.ndim > 2 for _, leaf in leaves):
        cure = ' (of `nn.scan` with `variable_axes={"masks": -2}`, say `stack=1`)'
    checks.raise_all(
        (
            f"{path}: {leaf.shape}"
            for path, leaf in leaves
            if not 2 <= leaf.ndim <= 2 + stack
        ),
        f"`{fn}` needs every leaf of `masks` as a stack [N, C]{between}{cure}",
    )
    if jnp.ndim(members) != 1 or not jnp.size(members):
        raise ValueError(
            f"`{fn}` needs `members` [B], for at least one sample, got shape "
            f"{jnp.shape(members)}."
        )
    if not jnp.issubdtype(jnp.result_type(members), jnp.integer):
        raise TypeError(
            f"`{fn}` needs `members` as integers, got {checks.kind_of(members)}."
        )
    slots.in_range(members, size, fn=fn, name="members")
    return jax.tree.map(lambda leaf: leaf[:, None], stacking.take(masks, members))


def _drawn(
    draw: _Draw | None, x: Any, make_key: Callable[[], Array], *, fn: str
) -> Array:
    """The masks that a layer starts with."""
    channels = x.shape[-1] if x.ndim else 0
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"`{fn}` needs features to mask, got shape {x.shape}.")
    if draw is None:
        return jnp.ones(channels, bool)
    key = make_key()
    if not checks.is_typed_key(key):
        key = jax.random.wrap_key_data(key)
    masks = draw(channels, key=key)
    if masks.ndim != 2 or masks.shape[1] != channels:
        raise ValueError(
            f"`{fn}` needs `draw` to return masks [N, {channels}], got shape "
            f"{masks.shape}."
        )
    return masks


def _masked(x: Array, mask: Any, *, name: str) -> Array:
    """Features under one mask [C] for all samples, or one for each, [B, 1, C]."""
    mask = packing.unpack_leaf(mask)
    if not x.size:
        raise ValueError(f"`{name}` needs features of samples, got shape {x.shape}.")
    one = mask.shape == x.shape[-1:]
    each = x.ndim > 1 and mask.shape == (x.shape[0], 1, x.shape[-1])
    if not one and not each:
        hint = ""
        if mask.ndim == 2 and mask.shape[1] == x.shape[-1]:
            hint = (
                " That is a stack: map over it with `stacking.map`, or choose by "
                "`stacking.take` or `layers.assign`."
            )
        raise ValueError(
            f"`{name}` needs a mask [C], or [B, 1, C] for the samples of a batch, got "
            f"{mask.shape} for features {x.shape}.{hint}"
        )
    lead = x.shape[:1] if each else (1,) * min(x.ndim - 1, 1)
    shape = (*lead, *(1,) * (x.ndim - 2), x.shape[-1])
    return masking.apply(x, mask.reshape(shape))


def _name(module: nn.Module) -> str:
    return "/".join(module.path) or type(module).__name__


def _restorable(cls: type) -> None:
    """Let `flax.serialization` store a dataclass: its arrays, not its static fields."""
    names = [
        field.name
        for field in dataclasses.fields(cls)
        if not field.metadata.get("static")
    ]

    def to_state(value: Any) -> dict[str, Any]:
        return {n: serialization.to_state_dict(getattr(value, n)) for n in names}

    def from_state(value: Any, state: dict[str, Any]) -> Any:
        each = (
            serialization.from_state_dict(getattr(value, n), state[n], n) for n in names
        )
        return dataclasses.replace(value, **dict(zip(names, each, strict=True)))

    serialization.register_serialization_state(cls, to_state, from_state, override=True)


on_each(_restorable)
