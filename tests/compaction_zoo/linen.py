"""Flax Linen's networks to be compacted: `NETWORKS`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.compaction_zoo import Specimen, specimen, under
from tests.real_networks import shape, tokens


def of(
    module: nn.Module,
    *inputs: Any,
    words: dict[str, str],
    sizes: dict[str, Any],
    norms: dict[str, str] | None = None,
    **other: Any,
) -> Specimen:
    """A specimen of one module, all of its collections among the parameters.

    `norms` are batch normalizations, each with its group.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(module.init, key, *inputs)
    words = {"params/" + path: axes for path, axes in words.items()}
    for name, group in (norms or {}).items():
        words |= under(f"params/{name}", {"scale": group, "bias": group})
        words |= under(f"batch_stats/{name}", {"mean": group, "var": group})
    apply = other.pop("apply", module.apply)
    return specimen(params, apply, inputs, words, sizes, **other)


def dense(name: str, ins: str, outs: str) -> dict[str, str]:
    """A dense layer between two groups, "." for none."""
    return {f"{name}/kernel": f"{ins} {outs}", f"{name}/bias": outs}


def conv(name: str, ins: str, outs: str, window: int = 2) -> dict[str, str]:
    """A convolution between two groups, "." for none."""
    kernel = " ".join(["."] * window + [ins, outs])
    return {f"{name}/kernel": kernel, f"{name}/bias": outs}


def norm(name: str, group: str) -> dict[str, str]:
    """The scale and bias of a group."""
    return {f"{name}/scale": group, f"{name}/bias": group}


# Batch normalization, with running statistics and while it is trained.


class Cnn(nn.Module):
    """A residual block of convolutions, which may be trained."""

    @nn.compact
    def __call__(self, x, *, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm(name="bn_0")(nn.Conv(5, (3, 3), name="stem")(x)))
        h = nn.Conv(7, (3, 3), strides=2, use_bias=False, name="first")(x)
        h = nn.relu(norm(name="bn_1")(h))
        h = norm(name="bn_2")(nn.Conv(9, (3, 3), name="second")(h))
        x = nn.Conv(9, (1, 1), strides=2, name="shortcut")(x)
        x = nn.relu(h + norm(name="bn_3")(x))
        return nn.Dense(11, name="head")(x.mean((1, 2)))


def cnn(*, train=False) -> Specimen:
    module, other = Cnn(), {}
    if train:
        apply = lambda p, x: module.apply(p, x, train=True, mutable=["batch_stats"])  # noqa: E731
        other = {"apply": apply, "predict": module.apply, "state": True}
    return of(
        module,
        shape(2, 6, 6, 4),
        words={
            **conv("stem", ".", "a"),
            "first/kernel": ". . a b",
            **conv("second", "b", "c"),
            **conv("shortcut", "a", "c"),
            **dense("head", "c", "."),
        },
        sizes={"a": 5, "b": 7, "c": 9},
        norms={"bn_0": "a", "bn_1": "b", "bn_[23]": "c"},
        **other,
    )


# Convolutions that divide their channels.


class Mobile(nn.Module):
    """An inverted residual: wide, depthwise, narrow."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.Conv(5, (3, 3), name="stem")(x)
        h = nn.relu6(norm(name="bn_0")(nn.Conv(8, (1, 1), name="expand")(x)))
        deep = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")
        h = nn.relu6(norm(name="bn_1")(deep(h)))
        x += norm(name="bn_2")(nn.Conv(5, (1, 1), name="project")(h))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def mobile():
    return of(
        Mobile(),
        shape(2, 6, 6, 4),
        words={
            **conv("stem", ".", "a"),
            **conv("expand", "a", "b"),
            **conv("depthwise", ".", "b"),
            **conv("project", "b", "a"),
            **dense("head", "a", "."),
        },
        sizes={"a": 5, "b": 8},
        norms={"bn_[01]": "b", "bn_2": "a"},
    )


class Grouped(nn.Module):
    """Two groups of channels, whole or a share of each; then they are shuffled."""

    shuffle: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(12, (3, 3), name="stem")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2, name="grouped")(x))
        if self.shuffle:
            x = x.reshape(*x.shape[:-1], 2, 4).swapaxes(-1, -2)
            x = x.reshape(*x.shape[:-2], 8)
            # A group of this one has channels of both groups of the one before.
            x = nn.relu(nn.Conv(10, (1, 1), feature_group_count=2, name="next")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def grouped():
    """Either group of channels may leave, or the same position of both."""
    words = {
        **conv("stem", ".", "g+a"),
        "grouped/kernel": ". . a g+b",
        "grouped/bias": "g+b",
        **dense("head", "g+b", "."),
    }
    sizes = {"g": 2, "a": 6, "b": 4}
    return of(Grouped(shuffle=False), shape(2, 5, 5, 3), words=words, sizes=sizes)


def shuffled():
    """Four blocks of channels: of the first group or the second, then of the next.

    The halves of a block are an axis of no value: not found, but gone if masked.
    """
    return of(
        Grouped(shuffle=True),
        shape(2, 5, 5, 3),
        words={
            **conv("stem", ".", "g+a"),
            "grouped/kernel": ". . a g+h",
            "grouped/bias": "g+h",
            "next/kernel": ". . g h+c",
            "next/bias": "h+c",
            **dense("head", "h+c", "."),
        },
        sizes={"g": 2, "a": 6, "h": 2, "c": 5},
    )


# What joins branches.


class Unet(nn.Module):
    @nn.compact
    def __call__(self, x):
        down = nn.relu(nn.Conv(6, (3, 3), name="down")(x))
        low = nn.max_pool(down, (2, 2), (2, 2))
        low = nn.relu(nn.Conv(8, (3, 3), name="low")(low))
        up = nn.ConvTranspose(5, (2, 2), strides=(2, 2), name="up")(low)
        x = jnp.concatenate([up, down], -1)
        x = nn.relu(nn.Conv(7, (3, 3), name="join")(x))
        return nn.Conv(3, (1, 1), name="head")(x)


def unet():
    words = {
        **conv("down", ".", "a"),
        **conv("low", "a", "b"),
        **conv("up", "b", "c"),
        **conv("join", "c+a", "d"),
        **conv("head", "d", "."),
    }
    sizes = {"a": 6, "b": 8, "c": 5, "d": 7}
    return of(Unet(), shape(2, 6, 6, 4), words=words, sizes=sizes)


class Densely(nn.Module):
    """Each layer sees all before it, the inputs too."""

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate((5, 6, 7)):
            h = nn.relu(nn.Conv(width, (3, 3), name=f"conv_{i}")(x))
            x = jnp.concatenate([x, h], -1)
        x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def densely():
    words = {
        **conv("conv_0", ".", "a"),
        **conv("conv_1", "a", "b"),
        **conv("conv_2", "a+b", "c"),
        **dense("head", "a+b+c", "."),
    }
    sizes = {"a": 5, "b": 6, "c": 7}
    return of(Densely(), shape(2, 6, 6, 4), words=words, sizes=sizes)


class Squeezed(nn.Module):
    """Squeeze and excite: a gate for each channel, from all of them."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
        gate = nn.relu(nn.Dense(3, name="squeeze")(x.mean((1, 2))))
        gate = nn.sigmoid(nn.Dense(8, name="excite")(gate))
        x *= gate[:, None, None]
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def squeezed():
    words = {
        **conv("conv", ".", "a"),
        **dense("squeeze", "a", "b"),
        **dense("excite", "b", "a"),
        **dense("head", "a", "."),
    }
    return of(Squeezed(), shape(2, 5, 5, 4), words=words, sizes={"a": 8, "b": 3})


class GroupNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.relu(nn.GroupNorm(2, name="norm")(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def group_normed():
    """A whole group may leave, or the same position of each."""
    words = {
        **conv("conv", ".", "g+a"),
        **norm("norm", "g+a"),
        **dense("head", "g+a", "."),
    }
    return of(GroupNormed(), shape(2, 5, 5, 3), words=words, sizes={"g": 2, "a": 4})


class Flat(nn.Module):
    """A convolution whose output becomes one long vector."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(5, (3, 3), name="conv")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(7, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(3, name="head")(x)


def flat():
    words = {
        **conv("conv", ".", "a"),
        **dense("hidden", "a", "b"),
        **dense("head", "b", "."),
    }
    return of(Flat(), shape(2, 6, 8, 2), words=words, sizes={"a": 5, "b": 7})


class Decoder(nn.Module):
    """From a vector to an image."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(2 * 3 * 5, name="seed")(x)).reshape(len(x), 2, 3, 5)
        x = nn.relu(nn.ConvTranspose(7, (3, 3), strides=(2, 2), name="up")(x))
        x = jax.image.resize(x, (len(x), 8, 12, 7), "nearest")
        return nn.tanh(nn.ConvTranspose(2, (3, 3), name="image")(x))


def decoder():
    words = {
        **dense("seed", ".", "a"),
        **conv("up", "a", "b"),
        **conv("image", "b", "."),
    }
    return of(Decoder(), shape(2, 4), words=words, sizes={"a": 5, "b": 7})


# Attention.


def rotated(x):
    """Rotary positions: pairs of dimensions, of which each is from another half."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [left * cos - right * sin, right * cos + left * sin], axis=-1
    )


class LlamaBlock(nn.Module):
    @nn.compact
    def __call__(self, h, _=None):
        project = functools.partial(nn.DenseGeneral, use_bias=False)
        x = nn.RMSNorm(name="norm_1")(h)
        query = rotated(project((4, 6), name="query")(x))
        key = rotated(project((2, 6), name="key")(x))
        value = project((2, 6), name="value")(x)
        x = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        h += project(h.shape[-1], axis=(-2, -1), name="out")(x)
        x = nn.RMSNorm(name="norm_2")(h)
        dense = functools.partial(nn.Dense, use_bias=False)
        x = nn.silu(dense(14, name="gate")(x)) * dense(14, name="up")(x)
        return h + dense(h.shape[-1], name="down")(x), None


class Llama(nn.Module):
    scan: bool = False

    @nn.compact
    def __call__(self, ids):
        h = nn.Embed(22, 10, name="embed")(ids)
        if self.scan:
            layers = nn.scan(
                LlamaBlock, {"params": 0}, split_rngs={"params": True}, length=3
            )
            h, _ = layers(name="blocks")(h)
        else:
            h, _ = LlamaBlock(name="block")(h)
        h = nn.RMSNorm(name="norm")(h)
        return nn.Dense(22, use_bias=False, name="head")(h)


LLAMA = {
    "norm_[12]/scale": "r",
    "query/kernel": "r k+g d",
    "key/kernel": "r k d",
    "value/kernel": "r k e",
    "out/kernel": "k+g e r",
    "gate/kernel": "r f",
    "up/kernel": "r f",
    "down/kernel": "f r",
}


def llama(*, scan=False):
    """Pairs of dimensions leave, and heads with all heads of their query group."""
    inner = {"k": 2, "g": 2, "d": 3, "e": 6, "f": 14}
    if scan:
        inner = {name: (3, size) for name, size in inner.items()}
    words = {
        "embed/embedding": ". r",
        **under("blocks" if scan else "block", LLAMA, "." if scan else ""),
        "norm/scale": "r",
        "head/kernel": "r .",
    }
    return of(Llama(scan), tokens(2, 7), words=words, sizes={"r": 10, **inner})


class Fused(nn.Module):
    """Queries, keys and values by one kernel, one after another or head by head."""

    by_head: bool

    @nn.compact
    def __call__(self, ids):
        h = nn.Embed(22, 10, name="embed")(ids)
        x = nn.Dense(3 * 4 * 5, name="qkv")(nn.LayerNorm(name="norm")(h))
        if self.by_head:
            query, key, value = jnp.split(x.reshape(*x.shape[:-1], 4, 15), 3, -1)
        else:
            parts = jnp.split(x, 3, -1)
            query, key, value = (x.reshape(*x.shape[:-1], 4, 5) for x in parts)
        scores = jnp.einsum("bthd,bshd->bhts", query, key) / 5**0.5
        weights = nn.softmax(jnp.where(jnp.tri(7, dtype=bool), scores, -1e9))
        x = jnp.einsum("bhts,bshd->bthd", weights, value)
        h += nn.Dense(10, name="out")(x.reshape(*x.shape[:-2], 20))
        return nn.Dense(22, name="head")(h)


def fused(*, by_head):
    words = {
        "embed/embedding": ". r",
        **norm("norm", "r"),
        **dense("qkv", "r", "h+d+e"),
        **dense("out", "h+e", "r"),
        **dense("head", "r", "."),
    }
    sizes = {"r": 10, "h": 4, "d": 5, "e": 5}
    return of(Fused(by_head), tokens(2, 7), words=words, sizes=sizes)


class Pooled(nn.Module):
    """Tokens are averaged by how well they fit learned queries."""

    @nn.compact
    def __call__(self, x):
        query = self.param("query", nn.initializers.normal(), (3, 5))
        key, value = nn.Dense(5, name="key")(x), nn.Dense(6, name="value")(x)
        weights = nn.softmax(jnp.einsum("qd,btd->bqt", query, key))
        x = jnp.einsum("bqt,btd->bqd", weights, value)
        return nn.Dense(4, name="head")(x.reshape(len(x), -1))


def pooled():
    """Queries may leave too, with the head's inputs that come from them."""
    words = {
        "query": "q d",
        **dense("key", ".", "d"),
        **dense("value", ".", "e"),
        **dense("head", "q+e", "."),
    }
    sizes = {"q": 3, "d": 5, "e": 6}
    return of(Pooled(), shape(2, 7, 8), words=words, sizes=sizes)


class Dropped(nn.Module):
    """Dropout whose key is no argument."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="hidden")(x))
        x = nn.Dropout(0.5, deterministic=False)(x, rng=jax.random.key(3))
        return nn.Dense(3, name="head")(x)


def dropped():
    words = {**dense("hidden", ".", "a"), **dense("head", "a", ".")}
    return of(Dropped(), shape(4, 5), words=words, sizes={"a": 8})


class Mlp(nn.Module):
    normed: bool = False
    two_pass: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="first")(x))
        if self.normed:
            x = nn.LayerNorm(use_fast_variance=not self.two_pass, name="norm")(x)
        x = nn.gelu(nn.Dense(7, name="second")(x))
        return nn.Dense(3, name="head")(x)


def mlp(*, normed=False, two_pass=False):
    """A variance in two passes sums squares of -mean, so that none may leave."""
    a = "." if two_pass else "a"
    words = {
        **dense("first", ".", a),
        **dense("second", a, "b"),
        **dense("head", "b", "."),
        **(norm("norm", a) if normed else {}),
    }
    sizes = {"b": 7} if two_pass else {"a": 8, "b": 7}
    return of(Mlp(normed, two_pass), shape(2, 5), words=words, sizes=sizes)


NETWORKS = {
    "mlp": mlp,
    "mlp_normed": functools.partial(mlp, normed=True),
    "mlp_two_pass": functools.partial(mlp, normed=True, two_pass=True),
    "cnn": cnn,
    "cnn_train": functools.partial(cnn, train=True),
    "mobile": mobile,
    "grouped": grouped,
    "shuffled": shuffled,
    "unet": unet,
    "densely": densely,
    "squeezed": squeezed,
    "group_normed": group_normed,
    "flat": flat,
    "decoder": decoder,
    "llama": llama,
    "llama_scanned": functools.partial(llama, scan=True),
    "fused": functools.partial(fused, by_head=False),
    "fused_by_head": functools.partial(fused, by_head=True),
    "pooled": pooled,
    "dropped": dropped,
}
