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


def stacked(words):
    """Words of leaves with one more axis in front."""
    return {path: f". {axes}" for path, axes in words.items()}


def recurrent(cell, gates):
    words = {
        f"{cell}/i{gates}/kernel": ". a",
        f"{cell}/h{gates}/kernel": "a a",
        f"{cell}/[ih]{gates}/bias": "a",
        **dense("head", "a", "."),
    }
    return words, {"a": 7}


def resnet(*, scan=False):
    stack = "." if scan else ""
    block = "blocks" if scan else "block"
    parts = [
        ("stem", ". r", ""),
        (f"{block}/first", "r f", stack),
        (f"{block}/second", "f r", stack),
        ("wide", "r w", ""),
    ]
    words = dense("params/head", "w", ".")
    for path, axes, stack in parts:
        ins, outs = axes.split()
        words |= under(f"params/{path}", conv("conv", ins, outs), stack)
        words |= under(f"params/{path}", norm("bn", outs), stack)
        kinds = {"mean": outs, "var": outs}
        words |= under(f"batch_stats/{path}/bn", kinds, stack)
    return words, {"r": 5, "f": (2, 7) if scan else 7, "w": 13}


def fused_gates(words):
    """All gates in one kernel."""
    return {**words, **dense("head", "a", ".")}, {"a": 7}


FLAX_GATES = {
    "rnn/cell/dense_i/kernel": ". a",
    "rnn/cell/dense_h/kernel": "a a",
    "rnn/cell/dense_*/bias": "a",
}
EQUINOX_GATES = (
    {
        "cell/weight_ih": "a .",
        "cell/weight_hh": "a a",
        "cell/bias*": "a",
        **linear("head", "a", "."),
    },
    {"a": 7},
)


def equinox_gpt(*, scan=False, grouped=False):
    """The variance of its norms is in two passes: the stream between blocks stays."""
    if grouped:
        attention = {
            **linear("query", ".", "h+g+d"),
            **linear("key", ".", "h+d"),
            **linear("value", ".", "h+e"),
            "out/weight": ". h+g+e",
        }
    else:
        attention = {
            "query_proj/weight": "h+d .",
            "key_proj/weight": "h+d .",
            "value_proj/weight": "h+e .",
            "output_proj/weight": ". h+e",
        }
    block = {
        **under("attention", attention),
        **linear("up", ".", "f"),
        "down/weight": ". f",
    }
    inner = {"h": 2, "d": 4, "e": 3, "f": 14}
    if grouped:
        inner = {"h": 2, "g": 2, "d": 3, "e": 3, "f": 14}
    scanned = 3 if scan else 0
    words, sizes = gpt("blocks" if scan else "blocks/", {}, inner, block, 10, scanned)
    del sizes["r"]
    return words, sizes


LINEN_MLPS = (
    {
        **under("params", dense("Dense_1", ".", "a"), "."),
        **under("params", norm("LayerNorm_0", "a"), "."),
        **under("params", dense("Dense_0", "a", "."), "."),
    },
    {"a": 7},
)
LINEN_CNNS = (
    {
        **under("params", conv("Conv_0", ".", "a"), "."),
        **under("params", norm("BatchNorm_0", "a"), "."),
        **under("batch_stats/BatchNorm_0", {"mean": "a", "var": "a"}, "."),
        **under("params", dense("Dense_0", "a", "."), "."),
    },
    {"a": 7},
)
NNX_CNN = {
    **conv("conv", ".", "a"),
    **under("bn", BATCH_NORM),
    **dense("head", "a", "."),
}
NNX_MLP = {**dense("up", ".", "f"), **norm("norm", "f"), **dense("down", "f", ".")}
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
    "linen/resnet_scanned": resnet(scan=True),
    "linen/residual_scanned": ({}, {}),
    "linen/convolutions": (
        {
            **conv("grouped_conv", ".", "b"),
            **conv("oblong_conv", "b", "c"),
            **conv("ConvTranspose_0", "c", "."),
        },
        {"b": 5, "c": 7},
    ),
    "linen/experts": ({"up_kernel": ". . f", "down_kernel": ". f ."}, {"f": 7}),
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
    "linen/mlps": LINEN_MLPS,
    "linen/mlps_apart": LINEN_MLPS,
    "linen/cnns": LINEN_CNNS,
    "linen/cnns_apart": LINEN_CNNS,
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
    "nnx/gpt_grouped": gpt("blocks/", NNX, SHARED_INNER, SHARED, 12),
    "nnx/gpt_grouped_scanned": gpt("blocks", NNX, SHARED_INNER, SHARED, 12, 3),
    "nnx/convolutions": (
        {**conv("grouped_conv", ".", "b"), **conv("conv", "b", ".")},
        {"b": 5},
    ),
    "nnx/text": ({**conv("conv", ".", "a", 1), **dense("head", "a", ".")}, {"a": 8}),
    "nnx/lstm": fused_gates(FLAX_GATES),
    "nnx/gru": fused_gates(FLAX_GATES),
    "nnx/experts": (under("experts", NNX_MLP, "."), {"f": 7}),
    "nnx/mlps": (stacked(NNX_MLP), {"f": 7}),
    "nnx/cnns": (stacked(NNX_CNN), {"a": 7}),
    "nnx/lora": (
        {
            **dense("first", ".", "a"),
            "first/lora/lora_a": ". l",
            "first/lora/lora_b": "l a",
            **dense("second", "a", "."),
        },
        {"a": 7, "l": 2},
    ),
    "equinox/gpt": equinox_gpt(),
    "equinox/gpt_scanned": equinox_gpt(scan=True),
    "equinox/gpt_tied": equinox_gpt(),
    "equinox/gpt_grouped": equinox_gpt(grouped=True),
    "equinox/gpt_grouped_scanned": equinox_gpt(scan=True, grouped=True),
    "equinox/text": (
        {"conv/weight": "a . .", "conv/bias": "a .", **linear("head", "a", ".")},
        {"a": 8},
    ),
    "equinox/lstm": EQUINOX_GATES,
    "equinox/gru": EQUINOX_GATES,
    "equinox/weight_norm": (
        {
            **linear("first/layer", ".", "a"),
            "first/g": "a .",
            **linear("second", "a", "."),
        },
        {"a": 7},
    ),
    # Norms in two passes: a whole group of channels may leave, and no unit of an MLP.
    "equinox/experts": ({}, {}),
    "equinox/mlps": ({}, {}),
    "equinox/cnns": (
        stacked(
            {
                **conv_eqx("conv", ".", "g"),
                **dict.fromkeys(("norm/weight", "norm/bias"), "g"),
                **linear("head", "g", "."),
            }
        ),
        {"g": 2},
    ),
    "equinox/convolutions": (
        {
            **conv_eqx("layers/0", ".", "g+a"),
            **conv_eqx("layers/1", ".", "g+a"),
            **conv_eqx("layers/2", "a", "g+b"),
            **linear("layers/4", "g+b", "."),
        },
        {"g": 2, "a": 3, "b": 5},
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
    "plain/lora_scanned": (
        {"layers/lora_a": ". . l", "layers/lora_b": ". l ."},
        {"l": (3, 2)},
    ),
    "plain/experts": (
        {"experts/w_up": ". . f", "experts/w_down": ". f ."},
        {"f": 7},
    ),
    "plain/experts_all": (
        {"experts/w_up": ". . f", "experts/w_down": ". f ."},
        {"f": 7},
    ),
    "plain/vision": (
        {
            "patches/w": ". r",
            "patches/b": "r",
            "cls_token": ". . r",
            "pos_embed": ". . r",
            "layers/up/w": ". r f",
            "layers/up/b": ". f",
            "layers/prelu/negative_slope": ". f",
            "layers/down/w": ". f r",
            "layers/down/b": ". r",
            "layers/layer_scale": ". r",
            "head/w": "r .",
        },
        {"r": 10, "f": (3, 7)},
    ),
    "plain/tied_autoencoder": ({"w": ". a"}, {"a": 7}),
}
