"""What the names of parameters say they are: kernels, tables, biases, scales.

Names are read as words, from the last to the first: `attn_ln` and `LayerNorm_2` are
normalizations, `ln_proj` is a projection. What no word tells may be a kernel, because
the leaves of small networks have any name.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Literal

Kind = Literal["layer", "table", "tokens", "other", ""]


def _some(words: str) -> frozenset[str]:
    return frozenset(words.split())


_COLLECTIONS = re.compile(r"(^|/)(batch_stats|cache)/")
# Biases beside `w1`, `w_up` and `wq`; first states of recurrent cells, and what else is
# learned in place of data; RWKV's shares of two steps; ReZero's weights of branches.
_LETTERS = re.compile(
    r"b(\d+|[qkvo]|_\w+)|[hc]_?0|init(ial)?_[hc]"
    r"|((init|initial|hidden|cell|learned|persistent)_)?(state|carry|memory|prefix)s?"
    r"|time_(first|faaaa|(mix|maa)_[kvrgwx])|res(idual)?_?weight"
)
_IN_A_LAYER = re.compile(r"(?!w)(\w+_)?b|D")
# What spectral normalization keeps beside a kernel: a singular value and its vectors.
_SPECTRAL = re.compile(r"(^|/)(kernel|weight)/sigma$|weight_u$|/_[uv]$")
_LAYERS = _some(
    "kernel linear dense proj projection modulation conv dwconv fc einsum head "
    "classifier"
)
# Convolutions that are transposed, share no weights, or are layers of graphs.
_NO_WINDOW = _some(
    "transpose transposed trans tr t up upsample upsampling inverse local lstm gru "
    "graph dt gcn gat gin sage edge cheb sg tag node message hetero relational rgcn"
)
_NORMS = _some(
    "norm layernorm batchnorm groupnorm instancenorm rmsnorm normalization ln bn gn rms"
)
_BIASES = _some("bias biases")
_OTHERS = (
    _NORMS
    | _BIASES
    | _some(
        "scale gain gamma beta alpha lambda ls slope temperature offset shift mean var "
        "variance std log mask cached freq cos sin decay latents queries probe cls "
        "slot prompt register"
    )
)
_TOKENS = _some("token")
_TABLES = _some(
    "embed embedding embedder emb wte wpe pe pos relpos position positional"
)
_POSITIONS = _some("pos position positional pe wpe time temporal rel relpos relative")
# After `lora`, the names of its factors.
_LORA = _some("lora")
_FACTORS = _some("a b up down embedding")
# What is embedded by a kernel, because it is a vector or a number.
_VECTORS = _some("patch time timestep sigma")


@functools.cache
def _words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, without numbers."""
    name = name.replace("LoRA", "Lora")
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return tuple(word.lower() for word in words)


def _has(words: Sequence[str], known: frozenset[str]) -> bool:
    """Whether one of some words, or of their plurals, is known."""
    return any(
        word in known or word[-1] == "s" and word[:-1] in known for word in words
    )


def _said(name: str, others: frozenset[str], vectors: frozenset[str]) -> Kind:
    """What the last word that says anything says of one part of a path."""
    words = _words(name)
    layer = _has(words, _LAYERS)
    embeds = _has(words, vectors) and not _has(words, _POSITIONS - vectors)
    if _has(words[-1:], _TOKENS) and not _has(words, _TABLES):
        # `cls_tokens` are learned, `tokens` may be a vocabulary.
        return "tokens" if len(words) > 1 else "table"
    for word in reversed(words):
        if _has([word], _LAYERS):
            return "layer"
        if _has([word], others):
            return "other"
        if _has([word], _TABLES) and not layer and not embeds:
            return "table"
    return ""


def _is_factor(path: str) -> bool:
    """Whether a leaf is a factor of LoRA, by the word `lora` and where it is.

    `q_lora/kernel` and `LoRADense_0/kernel` are none: they are kernels that have
    factors beside them.
    """
    parent, name = last_two(path)
    if _has(_words(name), _LORA):
        return True
    for part in path.split("/")[:-1]:  # whatever is in `lora`, `lora_A`, `LoRA_0`
        words = _words(part)
        if _has(words[:1], _LORA) and {*words[1:]} <= _FACTORS:
            return True
    words = _words(parent)
    while words and words[-1] in _FACTORS:
        words = words[:-1]
    if words != _words(parent) and _has(words[-1:], _LORA):  # `q_lora_a`
        return True
    return _has(words, _LORA) and not is_called_kernel(name)


# What others ask.


def last_two(path: str) -> tuple[str, str]:
    """The names of a leaf's parent and of the leaf.

    Numbers are passed over: `norms/0/weight` is a weight of `norms`. But `embed/0` may
    be any layer of a sequence.
    """
    parts = path.split("/")
    while len(parts) > 1 and parts[-1].isdecimal():
        parts.pop()
    *above, name = ("", *parts)
    listed = above[-1].isdecimal()
    while above[-1].isdecimal():
        above.pop()
    parent = above[-1]
    return "" if listed and parent[-1:] != "s" else parent, name


def says_weight(name: str) -> bool:
    """Whether a leaf has the name that Equinox and PyTorch give to kernels."""
    return _has(_words(name), _some("weight"))


def is_called_kernel(name: str) -> bool:
    """Whether a leaf has a name that only kernels have."""
    return name in ("kernel", "w") or says_weight(name)


def window_axes(name: str) -> int | None:
    """How many axes the window of a convolution has, by a part of its path.

    0 if its rank has to tell, and `None` if it is none, or one that may swap its inputs
    and outputs because it is transposed. Layers of graphs are called convolutions too.
    """
    words = _words(name)
    layers = [word for word in words if word != "kernel" and _has([word], _LAYERS)]
    if not _has(layers[-1:], _some("conv dwconv")) or _has(words, _NO_WINDOW):
        return None
    said = re.search(r"([123])_?d(?![a-z])", name.lower())
    return int(said[1]) if said else 0


def is_linen_convolution(name: str) -> bool:
    """Whether a part of a path is the name that Linen gives to `nn.Conv`."""
    return re.fullmatch(r"Conv_\d+", name) is not None


def is_attention(name: str) -> bool:
    """Whether a part of a path is an attention."""
    return _has(_words(name), _some("attention attn mha mhsa"))


def is_normalization(path: str) -> bool:
    """Whether a leaf is right below a part that is called a normalization."""
    return _said(last_two(path)[0], _NORMS, _VECTORS) == "other"


def is_position(path: str) -> bool:
    """Whether a table is one of positions."""
    return _has(_words("/".join(last_two(path))), _POSITIONS)


def kind_of(path: str, shape: Sequence[int]) -> Kind:
    """What a leaf of 1 axis or more is, by its names and shape."""
    parent, name = last_two(path)
    if _COLLECTIONS.search(path) or _is_factor(path) or _SPECTRAL.search(path):
        return "other"
    if _LETTERS.fullmatch(name) or name == "reg" and len(shape) > 2:
        return "other"
    if parent in ("kernel", "weight") and name == "u" and shape[-2:-1] == (1,):
        return "other"
    # `b` is a bias beside `w` in a layer; {"a": ..., "b": ...} are two leaves.
    if "/" in path and _IN_A_LAYER.fullmatch(name):
        return "other"
    # Lengths of weight norm, in Equinox and PyTorch: one for each output.
    if name in ("g", "weight_g", "original0") and shape[-1:] == (1,):
        return "other"
    weight = _has(_words(name)[-1:], _some("w weight"))
    vectors = _VECTORS if weight else _some("patch")
    said = _said(name, _NORMS | _BIASES if weight else _OTHERS, vectors)
    if not said:
        biases = _has(_words(parent)[-1:], _BIASES)  # `bias_net` is none
        above = "other" if biases else _said(parent, _NORMS, vectors)
        said = above if weight or above == "other" else ""
    if said == "table" and weight and len(shape) > 3:
        return ""  # a convolution embeds patches
    # (1, 1, features) are learned tokens.
    single = len(shape) > 2 and math.prod(shape[:-1]) == 1
    if said == "tokens" or not said and single and not weight:
        return "other"
    return said
