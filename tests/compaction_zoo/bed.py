"""The networks of `real_networks` as specimens, with their groups."""

import jax

from tests import real_networks
from tests.compaction_zoo import Specimen, specimen, under
from tests.compaction_zoo.equinox import conv as conv_eqx
from tests.compaction_zoo.equinox import linear
from tests.compaction_zoo.linen import conv, dense, norm


def of(name: str) -> Specimen:
    """A network of the other bed; members of an ensemble are run side by side."""
    net = real_networks.get(name)
    apply = net.apply
    if net.stack:
        apply = jax.vmap(apply, (0, *(None for _ in net.inputs)))
    return specimen(net.params, apply, net.inputs, *TOLD.get(name, ()))


HEADS = {"kernel": "r h d", "bias": "h d"}
BLOCK = {
    **norm("ln_[12]", "r"),
    **under("attention/query", HEADS),
    **under("attention/key", HEADS),
    **under("attention/value", HEADS, d="e"),
    "attention/out/kernel": "h e r",
    "attention/out/bias": "r",
    **dense("up", "r", "f"),
    **dense("down", "f", "r"),
}
INNER = {"h": 2, "d": 5, "e": 5, "f": 14}
SHARED = {
    **BLOCK,
    "attention/query/kernel": "r h+g d",
    "attention/query/bias": "h+g d",
    "attention/out/kernel": "h+g e r",
}
SHARED_INNER = {"h": 2, "g": 2, "d": 3, "e": 3, "f": 14}


def gpt(layers, ends, inner, block=BLOCK, width=10, scan=0):
    """Words and sizes: a stream, and what each block has of its own."""
    words, sizes = dict(ends), {"r": width}
    if scan:
        sizes |= {name: (scan, size) for name, size in inner.items()}
        return words | under(layers, block, "."), sizes
    for i in range(3):
        own = {name: f"{name}{i}" for name in inner}
        words |= under(f"{layers}{i}", block, **own)
        sizes |= {own[name]: size for name, size in inner.items()}
    return words, sizes


ENDS = {"wte/embedding": ". r", **norm("ln_f", "r")}
HEAD = {**ENDS, "head/kernel": "r ."}
LINEN = {**HEAD, "pos_embedding": ". r"}
NNX = {**HEAD, "positions": ". r"}
BATCH_NORM = {"scale": "a", "bias": "a", "mean": "a", "var": "a"}
LSTM = {"[ih][ifgo]/kernel": "{} a", "[ih][ifgo]/bias": "a"}


def recurrent(cell, gates):
    words = {
        f"{cell}/i{gates}/kernel": ". a",
        f"{cell}/h{gates}/kernel": "a a",
        f"{cell}/[ih]{gates}/bias": "a",
        **dense("head", "a", "."),
    }
    return words, {"a": 7}


def resnet():
    parts = {"stem": ". r", "block/first": "r f", "block/second": "f r", "wide": "r w"}
    words = dense("params/head", "w", ".")
    for path, axes in parts.items():
        words |= conv(f"params/{path}/conv", *axes.split())
        group = axes.split()[1]
        words |= norm(f"params/{path}/bn", group)
        kinds = {"mean": group, "var": group}
        words |= under(f"batch_stats/{path}/bn", kinds)
    return words, {"r": 5, "f": 7, "w": 13}


TOLD = {
    "linen/gpt": gpt("layers/block_", LINEN, INNER),
    "linen/gpt_scanned": gpt("layers/blocks", LINEN, INNER, scan=3),
    "linen/gpt_remat": gpt("layers/blocks", LINEN, INNER, scan=3),
    "linen/gpt_tied": gpt("layers/block_", {**ENDS, "wpe/embedding": ". r"}, INNER),
    "linen/gpt_grouped": gpt("layers/block_", LINEN, SHARED_INNER, SHARED, 12),
    "linen/gpt_grouped_scanned": gpt(
        "layers/blocks", LINEN, SHARED_INNER, SHARED, 12, 3
    ),
    "linen/resnet": resnet(),
    "linen/text": (
        {**conv("Conv_0", ".", "a", 1), **dense("Dense_0", "a", ".")},
        {"a": 8},
    ),
    "linen/lstm": recurrent("LSTMCell_0", "[ifgo]"),
    "linen/gru": recurrent("GRUCell_0", "[rzn]"),
    "linen/weight_norm": (
        {
            **dense("Dense_1", ".", "a"),
            "WeightNorm_0/Dense_1/kernel/scale": "a",
            **dense("Dense_0", "a", "."),
        },
        {"a": 7},
    ),
    "linen/cnns_apart": (
        {
            **under("params/Conv_0", {"kernel": ". . . . a", "bias": ". a"}),
            **under("params/BatchNorm_0", {"scale": ". a", "bias": ". a"}),
            **under("batch_stats/BatchNorm_0", {"mean": ". a", "var": ". a"}),
            "params/Dense_0/kernel": ". a .",
        },
        {"a": 7},
    ),
    "nnx/gpt": gpt("blocks/", NNX, INNER),
    "nnx/gpt_scanned": gpt("blocks", NNX, INNER, scan=3),
    "nnx/gpt_tied": gpt("blocks/", {**ENDS, "positions": ". r"}, INNER),
    "nnx/resnet": (
        {
            **conv("stem", ".", "a"),
            **conv("first", "a", "b"),
            **conv("second", "b", "a"),
            **under("bn_1", BATCH_NORM),
            **under("bn_2", BATCH_NORM, a="b"),
            **dense("head", "a", "."),
        },
        {"a": 5, "b": 7},
    ),
    "nnx/lora": (
        {
            **dense("first", ".", "a"),
            "first/lora/lora_a": ". l",
            "first/lora/lora_b": "l a",
            **dense("second", "a", "."),
        },
        {"a": 7, "l": 2},
    ),
    "equinox/convolutions": (
        {
            **conv_eqx("layers/2", ".", "a"),
            **linear("layers/4", "a", "."),
        },
        {"a": 5},
    ),
    "plain/mlp": (
        {"hidden/w": ". a", "hidden/b": "a", "out/w": "a ."},
        {"a": 7},
    ),
    "plain/mlps": (
        {"hidden/w": ". . a", "hidden/b": ". a", "out/w": ". a ."},
        {"a": 7},
    ),
    "plain/lora": (
        {
            "embed/tokens": ". e",
            "query/w": "e a",
            "query/b": "a",
            "query/lora_a": "e l",
            "query/lora_b": "l a",
            "out/w": "a .",
        },
        {"e": 5, "l": 2, "a": 7},
    ),
    "plain/tied_autoencoder": ({"w": ". a"}, {"a": 7}),
}
