"""Roles by tracing: which leaves meet data in a contraction, and along which axes.

Nothing is run or compiled here: shapes suffice.
"""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.experimental import pallas

from maskjax import masking, select, where
from maskjax._core import trees


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Networks as they are written, with `x + bias`."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def roles_of(apply, params, *inputs, **options):
    """Each path with what `print` shows for it."""
    text = str(where.traced(apply, params, *inputs, **options))
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())


X = shape(5, 6)
TOKENS = shape(5, dtype="int32")
SCALAR = shape(dtype="int32")


# One leaf, one role for each axis.


def looped(p, x):
    for i in range(3):
        x = jnp.tanh(x @ p["w"][i])
    return x


def nested(p, x):
    def outer(x, ws):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0], None

    return lax.scan(outer, x, p["w"])[0]


def causal(p, x):
    """A depthwise convolution over time, as in Mamba."""
    return lax.conv_general_dilated(
        x[None],
        p["w"][:, None, :],
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=6,
    )


def patches(p, x):
    numbers = ("NWC", "WIO", "NWC")
    kernel = p["w"].reshape(3, 6, 8)
    return lax.conv_general_dilated(
        x[None], kernel, (1,), "SAME", dimension_numbers=numbers
    )


def ensemble_of_convolutions(p, x):
    """Each member has an image of its own."""

    def one(w, x):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return jax.vmap(one)(p["w"], x)


def fused(p, x):
    q, k, v = jnp.split(x @ p["w"], 3, axis=1)
    return jax.nn.softmax(q @ k.T) @ v


def parts(p, x):
    """The columns of a fused kernel, taken apart and put together again."""
    columns = jnp.split(p["w"], 3, axis=1)
    return x @ columns[0] + x @ jnp.concatenate(columns[1:], axis=1)[:, :8]


def made_by_map(p, x):
    halved = lax.map(lambda w: w / 2, p["w"])
    return lax.scan(lambda x, w: (x @ w, None), x, halved)[0]


def carried(p, x):
    step = lambda state, _: ((state[0] @ state[1], state[1]), None)  # noqa: E731
    return lax.scan(step, (x, p["w"]), None, length=3)[0]


def through_while(p, x):
    def step(state):
        i, x = state
        return i + 1, jnp.tanh(x @ p["w"][i])

    return lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]


def standardized(p, x):
    w = p["w"] - p["w"].mean(0)
    return x @ (w / jnp.sqrt(jnp.sum(w**2, axis=0, keepdims=True)))


def sharded(p, x):
    kinds = (jax.sharding.AxisType.Auto,)
    spec, parts = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("d")
    mesh = jax.make_mesh((1,), ("d",), axis_types=kinds)
    product = lambda w, x: lax.psum(x @ lax.all_gather(w, "d", tiled=True), "d")  # noqa: E731
    return jax.shard_map(product, mesh=mesh, in_specs=(parts, spec), out_specs=spec)(
        p["w"], x
    )


@jax.custom_batching.custom_vmap
def by_hand(x, w):
    """The walk goes into its body."""
    return x @ w


@by_hand.def_vmap
def _batched(size, batched, x, w):
    raise NotImplementedError


ONE_LEAF = {
    "dense": (lambda p, x: x @ p["w"], (6, 8), "inputs outputs", X),
    "torch": (lambda p, x: x @ p["w"].T, (8, 6), "outputs inputs", X),
    "vector": (lambda p, x: x @ p["w"], (6,), "inputs", X),
    "one input": (lambda p, x: x @ p["w"], (1, 8), "inputs outputs", shape(5, 1)),
    "one of each": (lambda p, x: x @ p["w"], (1, 1), "inputs outputs", shape(5, 1)),
    "one input, two heads": (
        lambda p, x: x @ p["w"].reshape(1, -1),
        (1, 2, 4),
        "inputs outputs outputs",
        shape(5, 1),
    ),
    "one head out": (
        lambda p, x: x @ p["w"].reshape(-1, 4),
        (1, 6, 4),
        "inputs inputs outputs",
        X,
    ),
    "merged": (
        lambda p, x: x @ p["w"].reshape(6, -1),
        (2, 3, 4, 5),
        "inputs inputs outputs outputs",
        X,
    ),
    "split": (
        lambda p, x: jnp.einsum(
            "bgi,gio->bo", x.reshape(5, 2, 3), p["w"].reshape(2, 3, 4)
        ),
        (6, 4),
        # As one product, 2 x 3 inputs are 6 inputs.
        "inputs outputs",
        X,
    ),
    "flipped": (lambda p, x: x @ p["w"][::-1], (6, 8), "inputs outputs", X),
    "rolled": (lambda p, x: x @ jnp.roll(p["w"], 1, 1), (6, 8), "inputs outputs", X),
    "triangular": (lambda p, x: x @ jnp.tril(p["w"]), (6, 6), "inputs outputs", X),
    "standardized": (standardized, (6, 8), "inputs outputs", X),
    "threshold": (
        lambda p, x: x @ (p["w"] * (p["w"] >= lax.top_k(p["w"].ravel(), 5)[0][-1])),
        (6, 8),
        "inputs outputs",
        X,
    ),
    "straight through": (
        lambda p, x: x @ (p["w"] + lax.stop_gradient(jnp.sign(p["w"]) - p["w"])),
        (6, 8),
        "inputs outputs",
        X,
    ),
    "shards": (sharded, (6, 8), "inputs outputs", X),
    "fused": (fused, (6, 24), "inputs outputs", X),
    "parts": (parts, (6, 24), "inputs outputs", X),
    "scanned twice": (nested, (2, 3, 6, 6), "stack stack inputs outputs", X),
    "looped": (looped, (3, 6, 6), "stack inputs outputs", X),
    "a stack of one": (
        lambda p, x: x @ p["w"][0],
        (1, 6, 8),
        "stack inputs outputs",
        X,
    ),
    "while": (through_while, (3, 6, 6), "stack inputs outputs", X),
    "fori": (
        lambda p, x: lax.fori_loop(0, 3, lambda i, x: x @ p["w"][i], x),
        (3, 6, 6),
        "stack inputs outputs",
        X,
    ),
    "made by map": (made_by_map, (3, 6, 6), "stack inputs outputs", X),
    "carried": (carried, (6, 6), "inputs outputs", X),
    "experts with tokens of their own": (
        lambda p, x: jnp.einsum("eti,eio->eto", x, p["w"]),
        (3, 6, 8),
        "stack inputs outputs",
        shape(3, 5, 6),
    ),
    # That all tokens go to all experts can't be told from a product with heads.
    "experts that all tokens go to": (
        lambda p, x: jnp.einsum("ti,eio->teo", x, p["w"]),
        (3, 6, 8),
        "outputs inputs outputs",
        X,
    ),
    "an expert that data chooses": (
        lambda p, x, i: x @ p["w"][i],
        (3, 6, 8),
        "stack inputs outputs",
        X,
        SCALAR,
    ),
    "an expert for each token": (
        lambda p, x, i: jnp.einsum("ti,tio->to", x, p["w"][i]),
        (3, 6, 8),
        "stack inputs outputs",
        X,
        TOKENS,
    ),
    "ragged": (
        lambda p, x, sizes: lax.ragged_dot(x, p["w"], sizes),
        (3, 6, 8),
        "stack inputs outputs",
        X,
        shape(3, dtype="int32"),
    ),
    "causal": (causal, (3, 6), "inputs outputs", X),
    "patches": (patches, (18, 8), "inputs outputs", X),
    "filter": (
        lambda p, x: jax.vmap(lambda row: jnp.convolve(row, p["w"]))(x),
        (3,),
        "inputs",
        X,
    ),
    "ensemble of convolutions": (
        ensemble_of_convolutions,
        (2, 3, 3, 4, 8),
        "stack window window inputs outputs",
        shape(2, 5, 9, 9, 4),
    ),
    "batched by hand": (
        lambda p, x: by_hand(x, p["w"]),
        (6, 8),
        "inputs outputs",
        X,
    ),
    "complex": (
        lambda p, x: x @ p["w"].astype("complex64"),
        (6, 8),
        "inputs outputs",
        X,
    ),
}


@pytest.mark.parametrize("name", ONE_LEAF)
def test_a_kernel_is_followed_to_its_roles(name):
    apply, sizes, roles, *inputs = ONE_LEAF[name]
    assert roles_of(apply, {"w": shape(*sizes)}, *inputs) == {"w": roles}


def test_branches_count_like_what_they_are_part_of():
    def apply(p, x, i):
        x = lax.cond(x.sum() > 0, lambda x: x @ p["a"], lambda x: x @ p["b"], x)
        return lax.switch(i, [lambda: x @ p["c"].T, lambda: x])

    params = {name: shape(6, 6) for name in "abc"}
    assert roles_of(apply, params, X, SCALAR) == {
        "a": "inputs outputs",
        "b": "inputs outputs",
        "c": "outputs inputs",
    }


def test_what_a_loop_carries_comes_to_depend_on_data():
    """The state is constant in the first step, and so is the state's state."""

    def step(state, x):
        first, second = state
        return (jnp.tanh(x @ p["into"] + first), first @ p["through"] + second), None

    p = {}

    def apply(params, xs):
        p.update(params)
        zeros = jnp.zeros(8)
        _, last = lax.scan(step, (zeros, zeros), xs)[0]
        # The second state depends on data from the third step on.
        both = lambda state, _: ((state[1], last), state[0] @ p["late"])  # noqa: E731
        return lax.scan(both, (zeros, zeros), None, length=3)

    params = {"into": shape(6, 8), "through": shape(8, 8), "late": shape(8, 2)}
    assert set(roles_of(apply, params, X).values()) == {"inputs outputs"}


# What is no kernel.


def test_what_meets_data_elsewhere_is_no_kernel():
    def apply(p, x, i):
        x = x * p["scale"] + p["table"][: x.shape[0]] + p["embedding"][i]
        x = x @ (p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True))
        return (x + p["bias"]) @ (p["rows"][:, None] * np.ones((8, 3), "float32"))

    params = {
        "bias": shape(8),
        "embedding": shape(9, 6),
        "g": shape(1, 8),
        "rows": shape(8),
        "scale": shape(6),
        "table": shape(7, 6),
        "unused": shape(6, 6),
        "v": shape(6, 8),
    }
    found = where.traced(apply, params, X, TOKENS)
    kernels = {path for path, leaf in params.items() if found(path, leaf)}
    assert kernels == {"v"}
    assert str(found.axes("v", params["v"])) == "inputs outputs"
    assert found.axes("embedding", params["embedding"]).lookup
    assert found.axes("embedding", params["embedding"]).fan_in((9, 6)) == 1
    assert found.axes("unused", params["unused"]) == "it never meets data"
    assert "no contraction" in found.axes("table", params["table"])


def test_scales_of_scanned_layers_know_their_stack():
    def apply(p, x):
        step = lambda x, p: (jnp.tanh(x @ p["w"]) * p["scale"], None)  # noqa: E731
        return lax.scan(step, x, p)[0]

    params = {"w": shape(3, 6, 6), "scale": shape(3, 6)}
    assert roles_of(apply, params, X) == {
        "scale": "stack outputs  (no kernel)",
        "w": "stack inputs outputs",
    }


def test_a_tied_embedding_is_an_embedding():
    for tied in (
        lambda p, i: p["e"][i] @ p["e"].T,
        lambda p, i: jnp.take(p["e"], i, axis=0) @ p["e"].T,
        lambda p, i: jax.vmap(lambda i: p["e"] @ p["e"][i])(i),
    ):
        assert roles_of(tied, {"e": shape(9, 6)}, TOKENS) == {
            "e": "inputs outputs  (looked up)"
        }


def test_a_head_whose_columns_labels_choose_too_is_a_kernel():
    """The program is that of a tied embedding: names decide between the two."""

    def apply(p, x, labels):
        logits = x @ p["body"]["kernel"]
        row = p["head"]["kernel"].T[labels]
        return (logits @ p["head"]["kernel"]).sum() + (logits * row).sum()

    params = {"body": {"kernel": shape(6, 8)}, "head": {"kernel": shape(8, 9)}}
    found = where.traced(apply, params, X, TOKENS)
    assert found("head/kernel", params["head"]["kernel"])
    assert set(str(found).split("\n")) == {
        "body/kernel  inputs outputs",
        "head/kernel  inputs outputs",
    }
    other = lambda p, *inputs: apply({**p, "head": {"kernel": p["embed"]}}, *inputs)  # noqa: E731
    tied = {"body": params["body"], "embed": shape(8, 9)}
    assert roles_of(other, tied, X, TOKENS)["embed"] == "outputs inputs  (looked up)"


ROWS = np.arange(9).reshape(3, 3) % 5
RELATIVE = {
    # Shaw et al. 2018: a row for each pair, which is a conflict of roles too.
    "pairs": lambda table, q: jnp.einsum("id,ijd->ij", q, table[ROWS]),
    "keys": lambda table, q: q @ table[ROWS[0]].T,
    "take": lambda table, q: q @ jnp.take(table, ROWS[0], axis=0).T,
}


@pytest.mark.parametrize("how", RELATIVE)
def test_tables_whose_rows_constants_choose_are_no_kernels(how):
    def apply(p, x):
        (table,) = (leaf for name, leaf in p.items() if name != "wq")
        return RELATIVE[how](table, x @ p["wq"])

    for name in ("rel_emb", "relative_position_embeddings", "embeddings_table"):
        params = {"wq": shape(6, 8), name: shape(5, 8)}
        assert roles_of(apply, params, shape(3, 6)) == {
            name: "(by its name it is a table, and constants choose its rows)",
            "wq": "inputs outputs",
        }
    # All of a table is a kernel where it is contracted: here, of coordinates.
    places = lambda p, x: x @ p["pos_embed"]["weight"].T  # noqa: E731
    params = {"pos_embed": {"weight": shape(8, 6)}}
    assert roles_of(places, params, X) == {"pos_embed/weight": "outputs inputs"}


def test_embeddings_that_meet_each_other_are_looked_up():
    def apply(p, i, j):
        return jnp.einsum("bd,bd->b", p["users"][i], p["items"][j])

    params = {"users": shape(9, 4), "items": shape(7, 4)}
    found = roles_of(apply, params, TOKENS, TOKENS)
    assert set(found.values()) == {"inputs outputs  (looked up)"}


def test_dtypes_are_chosen_as_by_name():
    def apply(p, x):
        return [x @ w.astype("float32") for w in jax.tree.leaves(p)]

    dtypes = {"kernel": "int4", "index": "int32", "half": "bfloat16"}
    params = {name: shape(6, 8, dtype=dtype) for name, dtype in dtypes.items()}
    assert roles_of(apply, params, X) == {
        "half": "inputs outputs",
        "index": "inputs outputs  (no kernel)",
        "kernel": "inputs outputs",
    }


# Parameters that meet parameters.


def folded(p, x):
    return x @ (p["norm"]["scale"][:, None] * p["w"])


def folded_layers(p, x):
    return lax.scan(lambda x, p: (x + folded(p, x), None), x, p)[0]


def folded_into_a_vector(p, x):
    return x @ (p["norm"]["scale"] * p["w"])


FOLDED = {
    "one output": (folded, (6,), (6, 1), "outputs", "inputs outputs"),
    "layers": (folded_layers, (3, 6), (3, 6, 1), "stack outputs", None),
    "a vector": (folded_into_a_vector, (6,), (6,), "outputs", "inputs"),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_scale_that_is_folded_into_a_kernel_is_none(name):
    """With one output both factors look alike, and their names decide."""
    apply, scale, kernel, roles, known = FOLDED[name]
    params = {"norm": {"scale": shape(*scale)}, "w": shape(*kernel)}
    assert roles_of(apply, params, X) == {
        "norm/scale": f"{roles}  (no kernel)",
        "w": known or "stack inputs outputs",
    }


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_scales_of_blocks_are_no_kernels(dtype):
    def apply(p, x):
        blocks = p["kernel"].reshape(2, 3, 8) * p["scale"][:, None]
        return x @ blocks.reshape(6, 8)

    params = {"kernel": shape(6, 8, dtype=dtype), "scale": shape(2, 8)}
    assert roles_of(apply, params, X) == {
        "kernel": "inputs outputs",
        "scale": "(it is a scale or bias of a kernel)",
    }


def test_factors_that_are_called_lora_are_traced_like_others():
    apply = lambda p, x: x @ (p["kernel"] + p["lora_a"] @ p["lora_b"])  # noqa: E731
    params = {"kernel": shape(6, 8), "lora_a": shape(6, 2), "lora_b": shape(2, 8)}
    assert set(roles_of(apply, params, X).values()) == {"inputs outputs"}


def test_factors_of_a_kernel_have_their_roles():
    def flax(p, x):
        return x @ p["w"] + x @ p["a"] @ p["b"]

    def merged(p, x):
        return x @ (p["w"] + p["a"] @ p["b"])

    def torch(p, x):
        return x @ (p["w"] + p["a"] @ p["b"]).T

    params = {"w": shape(6, 8), "a": shape(6, 2), "b": shape(2, 8)}
    for apply in (flax, merged):
        assert set(roles_of(apply, params, X).values()) == {"inputs outputs"}
    params = {"w": shape(8, 6), "a": shape(8, 2), "b": shape(2, 6)}
    assert set(roles_of(torch, params, X).values()) == {"outputs inputs"}


def test_learned_queries_do_not_turn_their_kernel_around():
    """The name tells which of two parameters is the kernel; the trace can't."""

    def apply(p, x):
        query = jnp.einsum("nd,dhk->nhk", p["latents"], p["query"]["kernel"])
        key = jnp.einsum("td,dhk->thk", x, p["key"]["kernel"])
        return jnp.einsum("nhk,thk->hnt", query + p["query"]["bias"], key)

    kernel = {"kernel": shape(6, 2, 3), "bias": shape(2, 3)}
    params = {"latents": shape(4, 6), "query": kernel, "key": kernel}
    found = where.traced(apply, params, X)
    for name in ("query", "key"):
        axes = found.axes(f"{name}/kernel", kernel["kernel"])
        assert str(axes) == "inputs outputs outputs"
        assert axes.source == "traced"
        assert not found(f"{name}/bias", kernel["bias"])


def factors(p):
    return p["w"] + p["a"] @ p["b"]


def convolution_of_factors(p, x):
    kernel = p["w"] + (p["a"] @ p["b"]).reshape(p["w"].shape)
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_factors_of_stacked_kernels_and_convolutions_have_their_roles():
    layer = lambda x, p: (x @ factors(p), None)  # noqa: E731
    layers = lambda p, x: lax.scan(layer, x, p)[0]  # noqa: E731
    params = {"w": shape(3, 6, 6), "a": shape(3, 6, 2), "b": shape(3, 2, 6)}
    assert set(roles_of(layers, params, X).values()) == {"stack inputs outputs"}
    params = {"w": shape(3, 2, 4, 8), "a": shape(6, 4, 2), "b": shape(2, 8)}
    assert roles_of(convolution_of_factors, params, shape(5, 9, 9, 4)) == {
        "a": "window inputs outputs",
        "b": "inputs outputs",
        "w": "window window inputs outputs",
    }


OPEN = (
    "(it meets other parameters or constants before data, so that tracing can't tell "
    "inputs from outputs)"
)


def test_where_structure_does_not_tell_tokens_from_factors_names_do():
    """`k @ (tokens @ w).T` and `k @ (a @ b).T` are one program."""

    def perceiver(p, x):
        query = jax.nn.gelu(p["latents"] @ p["up"]) @ p["wq"]
        values = jax.nn.softmax(query @ (x @ p["wk"]).T) @ (x @ p["wv"])
        return values @ p["wo"]

    sizes = {"up": (5, 9), "wq": (9, 7), "wk": (6, 7), "wv": (6, 8), "wo": (8, 3)}
    params = {"latents": shape(4, 5)} | {k: shape(*v) for k, v in sizes.items()}
    traced = where.traced(perceiver, params, X)
    told = {"wk", "wv", "wo"}
    assert {path for path, leaf in params.items() if traced(path, leaf)} == told
    for path, leaf in params.items():
        axes = traced.axes(path, leaf)
        assert str(axes) == "inputs outputs" if path in told else f"({axes})" == OPEN
        names = traced | where.kernels
        assert names(path, leaf) is (path != "latents")
        if path != "latents":
            assert str(names.axes(path, leaf)) == "inputs outputs"
    low_rank = lambda p, x: x @ (p["a"] @ p["b"])  # noqa: E731
    params = {"a": shape(6, 2), "b": shape(2, 8)}
    assert roles_of(low_rank, params, X) == {"a": OPEN, "b": OPEN}


def test_what_is_added_to_tokens_is_no_factor_of_theirs():
    """Though tokens that meet data as they are look like a kernel."""
    residual = lambda p, x: x @ (p["rows"] + jnp.tanh(p["rows"] @ p["v"])).T  # noqa: E731
    params = {"rows": shape(4, 6), "v": shape(6, 6)}
    assert roles_of(residual, params, X) == {"rows": "outputs inputs", "v": OPEN}


def test_a_kernel_of_constants_that_meets_data_is_chosen():
    """As in Transformer-XL, where keys are made of positions."""
    constants = np.ones((4, 7), "float32")
    relative = lambda p, x: (x @ p["wq"]) @ (constants @ p["wr"]).T  # noqa: E731
    params = {"wq": shape(6, 5), "wr": shape(7, 5)}
    assert roles_of(relative, params, X) == {
        "wq": "inputs outputs",
        "wr": f"unknown  {OPEN}",
    }
    # The other way around, a kernel is followed by a constant.
    followed = lambda p, x: x @ (p["wr"] @ constants.T)  # noqa: E731
    assert roles_of(followed, {"wr": shape(6, 7)}, X) == {"wr": f"unknown  {OPEN}"}


def test_a_kernel_that_meets_data_as_it_is_is_told_by_that():
    def shared(p, x):
        return (p["tokens"] @ p["w"]) @ (x @ p["w"]).T

    params = {"tokens": shape(4, 6), "w": shape(6, 5)}
    assert roles_of(shared, params, X) == {"tokens": OPEN, "w": "inputs outputs"}


class Decoder(nn.Module):
    """Learned queries meet each other, a layer, and then data."""

    count: int

    @nn.compact
    def __call__(self, x):
        queries = self.param("queries", nn.initializers.normal(), (self.count, 6))
        attention = lambda: nn.MultiHeadDotProductAttention(3, qkv_features=12)  # noqa: E731
        h = jnp.broadcast_to(queries, (x.shape[0], self.count, 6))
        h = h + attention()(nn.LayerNorm()(h))
        h = h + nn.Dense(6)(nn.gelu(nn.Dense(7)(h)))
        return nn.Dense(2)(h + attention()(h, x))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_flax_kernels_of_learned_queries_have_their_roles(count, batch):
    model, x = Decoder(count), shape(batch, 5, 6)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    found = roles_of(model.apply, params, x)
    kernel = {"out": "inputs inputs outputs"}
    kernel |= dict.fromkeys(("query", "key", "value"), "inputs outputs outputs")
    traced = where.traced(model.apply, params, x)
    for path in found:
        parent, name = path.split("/")[-2:]
        assert traced(path, None) is (name == "kernel"), path
        if name == "kernel":
            assert found[path] == kernel.get(parent, "inputs outputs"), path


def test_a_kernel_that_may_lie_either_way_is_not_told_by_its_name():
    """GPT-2's, which one library has as (out, in)."""
    apply = lambda p, x: x @ (p["rows"] @ p["c_fc"]["kernel"].T).T  # noqa: E731
    params = {"rows": shape(4, 8), "c_fc": {"kernel": shape(6, 8)}}
    assert roles_of(apply, params, X)["c_fc/kernel"] == f"unknown  {OPEN}"


def test_equinox_probes_are_not_chosen():
    keys = jax.random.split(jax.random.key(0), 2)
    model = eqx.filter_eval_shape(
        lambda: (
            jnp.ones((4, 6)),
            eqx.nn.Linear(6, 6, key=keys[0]),
            eqx.nn.MultiheadAttention(2, 6, key=keys[1]),
        )
    )

    def apply(model, x):
        probe, linear, attention = model
        return attention(jax.vmap(linear)(probe), x, x)

    found = roles_of(apply, model, X)
    assert {path: line for path, line in found.items() if "dropout" not in path} == {
        "0": OPEN,
        "1/bias": "(it meets data only as a part of other parameters)",
        "1/weight": f"unknown  {OPEN}",
        "2/key_proj/weight": "outputs inputs",
        "2/output_proj/weight": "outputs inputs",
        "2/query_proj/weight": f"unknown  {OPEN}",
        "2/value_proj/weight": "outputs inputs",
    }


# What can't be told.


def unknown(apply, sizes, *inputs):
    """Why the axes of a chosen leaf are unknown."""
    leaf = shape(*sizes)
    found = where.traced(apply, {"w": leaf}, *inputs)
    assert found("w", leaf)
    assert isinstance(found.axes("w", leaf), str)
    return found.axes("w", leaf)


def test_two_roles_of_one_axis_are_a_conflict():
    both = lambda p, x: (x @ p["w"]) @ p["w"].T  # noqa: E731
    assert unknown(both, (6, 8), X) == "its axis 0 is used as inputs and as outputs"
    symmetric = lambda p, x: x @ (p["w"] + p["w"].T)  # noqa: E731
    assert unknown(symmetric, (6, 6), X) == "it loses its axes in add"

    def diagonal(p, x):
        blocks = p["w"].reshape(2, 3, 4)
        return jnp.einsum("bgi,gio->bgo", x.reshape(5, 2, 3), blocks)

    assert unknown(diagonal, (6, 4), X) == "its axis 0 is used as inputs and as stack"
    flat = lambda p, x: x @ p["w"].reshape(6, 8)  # noqa: E731
    assert unknown(flat, (48,), X) == "its axis 0 is used as inputs and as outputs"


def test_names_do_not_settle_what_one_trace_contradicts():
    both = lambda p, x: (x @ p["w"]) @ p["w"].T  # noqa: E731
    leaf, why = shape(6, 8), "its axis 0 is used as inputs and as outputs"
    traced = where.traced(both, {"w": leaf}, X)
    for predicate in (traced | where.kernels, where.kernels & traced, ~~traced):
        assert predicate("w", leaf)
        assert predicate.axes("w", leaf) == why
    told = traced | where.matching("w", axes="inputs outputs")
    assert str(told.axes("w", leaf)) == "inputs outputs"
    # Neither way is it a stack.
    scores = {"w": jax.device_put(np.arange(48.0, dtype="f4").reshape(6, 8))}
    mask = select.top_k(scores, density=0.5, scope="layer", where=traced)
    assert int(np.sum(mask["w"])) == 24
    with pytest.raises(ValueError, match=rf"w: shape \(6, 8\), {why}"):
        select.top_k(scores, density=0.5, scope="output", where=traced | where.kernels)


def in_pallas(p, x):
    """The walk does not go into Pallas."""

    def kernel(x, w, out):
        out[...] = jnp.dot(x[...], w[...])

    return pallas.pallas_call(kernel, shape(5, 8), interpret=True)(x, p["w"])


def test_axes_may_be_lost():
    expm = lambda p, x: x @ jnp.linalg.inv(p["w"])  # noqa: E731
    assert "loses its axes in" in unknown(expm, (6, 6), X)
    image = lambda p, x: lax.conv(p["w"], x, (1, 1), "SAME")  # noqa: E731
    why = "it is the image of a convolution"
    assert unknown(image, (1, 1, 9, 9), shape(1, 1, 3, 3)) == why
    mean = lambda p, x: x @ p["w"].mean(0)  # noqa: E731
    assert unknown(in_pallas, (6, 8), X) == "it goes into pallas_call"
    assert unknown(mean, (3, 6, 8), X) == "its axis 0 is gone before it meets data"


def test_learned_queries_that_go_into_pallas_are_not_chosen():
    def apply(p, x):
        query = jnp.einsum("nd,dhk->nhk", p["latents"], p["query"]["kernel"])
        query = (query + p["query"]["bias"]).reshape(8, 6)
        return in_pallas({"w": query.T}, x)

    query = {"bias": shape(2, 3), "kernel": shape(4, 2, 3)}
    params = {"latents": shape(8, 4), "query": query}
    assert roles_of(apply, params, X) == {
        "latents": OPEN,
        "query/bias": "(it goes into pallas_call)",
        "query/kernel": "inputs outputs outputs",
    }


@pytest.mark.parametrize("batch", [1, 5, 600])
def test_a_bilinear_form_is_ambiguous_at_every_shape(batch):
    """`einsum` takes the one or the other operand first, by their sizes."""
    form = lambda p, x, y: jnp.einsum("bi,ij,bj->b", x, p["w"], y)  # noqa: E731
    why = unknown(form, (6, 7), shape(batch, 6), shape(batch, 7))
    assert why == "it is between two operands in einsum 'bi,ij,bj->b'"


def test_a_stack_whose_members_share_their_input_is_told():
    """Traced as one function, the first layer's members look like outputs."""
    one = lambda p, x: jnp.tanh(x @ p["first"] + p["bias"]) @ p["second"]  # noqa: E731
    own = {"first": shape(6, 8), "bias": shape(8), "second": shape(8, 2)}
    stacked = jax.tree.map(lambda leaf: shape(3, *leaf.shape), own)
    members = lambda p, x: jax.vmap(one, (0, None))(p, x)  # noqa: E731
    assert roles_of(members, stacked, X)["first"] == "outputs inputs outputs"
    assert roles_of(members, stacked, X)["second"] == "stack inputs outputs"
    for path, roles in roles_of(one, own, X).items():
        assert roles_of(one, stacked, X, stack=1)[path] == f"stack {roles}"


def test_an_axis_of_a_member_is_not_counted_from_the_stack():
    both = lambda p, x: (x @ p["w"]) @ p["w"].T  # noqa: E731
    traced = where.traced(both, {"w": shape(3, 6, 8)}, X, stack=1)
    why = "in one member, its axis 0 is used as inputs and as outputs"
    assert (traced | where.kernels).axes("w", shape(3, 6, 8)) == why


# The same under everything that computes the same.


def network(p, x):
    x = jnp.tanh(x @ p["dense"]["kernel"] + p["dense"]["bias"])
    return jnp.einsum("bi,ohi->boh", x, p["out"])


NETWORK = {
    "dense": {"kernel": shape(6, 8), "bias": shape(8)},
    "out": shape(4, 2, 8),
}
ROLES = {
    "dense/bias": "outputs  (no kernel)",
    "dense/kernel": "inputs outputs",
    "out": "outputs outputs inputs",
}
MASK = {
    "dense": {"kernel": np.arange(48).reshape(6, 8) > 9, "bias": None},
    "out": np.ones((4, 1, 8), bool),
}


def mean_square(p, x):
    decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))
    return jnp.mean(jnp.square(network(p, x))) + 1e-3 * decay


def train_step(p, x):
    optimizer = optax.adamw(1e-3)
    loss, grads = jax.value_and_grad(jax.checkpoint(mean_square))(p, x)
    updates, state = optimizer.update(grads, optimizer.init(p), p)
    return optax.apply_updates(p, updates), state, loss


def cast(p, x):
    return network(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), p), x)


SAME = {
    "network": network,
    "jit": jax.jit(network),
    "remat": jax.checkpoint(network),
    "cast": lambda p, x: cast(p, x.astype("bfloat16")),
    "mask": lambda p, x: network(masking.apply(p, MASK), x),
    "loss": mean_square,
    "gradient": jax.grad(mean_square),
    "step": jax.jit(train_step),
    "forward": lambda p, x: jax.jvp(lambda p: mean_square(p, x), (p,), (p,)),
    "curvature": lambda p, x: jax.jvp(
        jax.grad(lambda p: mean_square(p, x)), (p,), (p,)
    ),
    "each example": lambda p, x: jax.vmap(lambda row: network(p, row[None]))(x),
    "gradient of each example": lambda p, x: jax.vmap(
        lambda row: jax.grad(mean_square)(p, row[None])
    )(x),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("batch", [1, 5])
def test_roles_are_the_same(name, batch):
    assert roles_of(SAME[name], NETWORK, shape(batch, 6)) == ROLES


def test_roles_are_the_same_for_other_paths():
    renamed = {"bias": NETWORK, "scale": (NETWORK,)}

    def both(p, x):
        return network(p["bias"], x), network(p["scale"][0], x)

    found = roles_of(both, renamed, X)
    for path, roles in ROLES.items():
        assert found[f"bias/{path}"] == found[f"scale/0/{path}"] == roles


def test_roles_of_arrays_are_those_of_their_shapes():
    arrays = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), NETWORK)
    by_arrays = where.traced(network, arrays, np.zeros((5, 6), "float32"))
    assert by_arrays == where.traced(network, NETWORK, X)


# In every framework.


def test_linen():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            h = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            return x + h, None

    class Network(nn.Module):
        @nn.compact
        def __call__(self, ids, image):
            embed = nn.Embed(9, 6)
            axes = {"params": 0}
            blocks = nn.scan(
                nn.remat(Block), axes, split_rngs={"params": True}, length=3
            )
            x, _ = blocks()(embed(ids), None)
            x = nn.RNN(nn.LSTMCell(4))(x)
            x = nn.WeightNorm(nn.Dense(5, name="normed"))(
                nn.DenseGeneral((2, 3))(x)[..., 0]
            )
            y = nn.Conv(8, (3, 3), feature_group_count=4)(image)
            y = nn.ConvTranspose(3, (2, 2), transpose_kernel=True)(y)
            y = nn.BatchNorm(use_running_average=True)(y)
            return embed.attend(blocks()(embed(ids), None)[0]), x, y

    ids, image = shape(2, 7, dtype="int32"), shape(2, 8, 8, 4)
    model = Network()
    variables = jax.eval_shape(model.init, jax.random.key(0), ids, image)
    found = roles_of(model.apply, variables, ids, image)
    kernels = {
        "query": "stack inputs outputs outputs",
        "out": "stack inputs inputs outputs",
        "hf": "inputs outputs",
        "ig": "inputs outputs",
        "DenseGeneral_0": "inputs outputs outputs",
        "normed": "inputs outputs",
        "Conv_0": "window window inputs outputs",
        "ConvTranspose_0": "window window outputs inputs",
    }
    for name, roles in kernels.items():
        paths = [path for path in found if path.endswith(f"/{name}/kernel")]
        assert paths
        assert all(found[path] == roles for path in paths)
    others = {path for path in found if not path.endswith("kernel")}
    known = "stack outputs", "outputs", "inputs outputs  (looked up)", "("
    assert all(found[path].startswith(known) for path in others)
    traced = where.traced(model.apply, variables, ids, image)
    assert not any(traced(path, None) for path in others)


def test_nnx():
    def made(rngs):
        return nnx.List(
            [
                nnx.LoRALinear(6, 6, lora_rank=2, rngs=rngs),
                nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs),
                nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=rngs),
            ]
        )

    graph, params, rest = nnx.split(made(nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, x):
        lora, attention, general = nnx.merge(graph, params, rest)
        return general(attention(lora(x)).reshape(5, 7, 2, 3))

    found = roles_of(apply, params, shape(5, 7, 6))
    assert {
        path: roles for path, roles in found.items() if not path.endswith("bias")
    } == {
        "0/kernel": "inputs outputs",
        "0/lora/lora_a": "inputs outputs",
        "0/lora/lora_b": "inputs outputs",
        "1/key/kernel": "inputs outputs outputs",
        "1/out/kernel": "inputs inputs outputs",
        "1/query/kernel": "inputs outputs outputs",
        "1/value/kernel": "inputs outputs outputs",
        "2/kernel": "inputs inputs outputs outputs",
    }


def test_nnx_models_with_state_of_their_own():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.RNN(nnx.GRUCell(6, 4, rngs=rngs)),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
        nnx.SpectralNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs),
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params, x):
        return nnx.merge(graph, params, rest, copy=True)(x)

    found = roles_of(apply, params, shape(5, 7, 6))
    kernels = {roles for path, roles in found.items() if path.endswith("kernel")}
    assert kernels == {"inputs outputs"}
    others = {roles for path, roles in found.items() if not path.endswith("kernel")}
    assert others == {"outputs  (no kernel)"}


def test_equinox():
    keys = jax.random.split(jax.random.key(0), 4)

    def made():
        return (
            eqx.nn.MLP(6, 5, 8, 1, key=keys[0]),
            eqx.nn.Conv2d(4, 8, 3, groups=2, key=keys[1]),
            eqx.nn.MultiheadAttention(2, 6, key=keys[2]),
            eqx.nn.Embedding(9, 6, key=keys[3]),
        )

    model = eqx.filter_eval_shape(made)

    def apply(model, ids, image):
        mlp, convolution, attention, embedding = model
        x = jax.vmap(embedding)(ids)
        return jax.vmap(mlp)(attention(x, x, x)), jax.vmap(convolution)(image)

    found = roles_of(apply, model, TOKENS, shape(2, 4, 9, 9))
    weights = {path: roles for path, roles in found.items() if "weight" in path}
    assert weights.pop("1/weight") == "outputs inputs window window"
    assert weights.pop("3/weight") == "inputs outputs  (looked up)"
    assert set(weights.values()) == {"outputs inputs"}
    assert found["0/activation"] == "(it is no array)"


def test_an_ensemble_of_equinox_models_over_its_own_data():
    keys = jax.random.split(jax.random.key(0), 3)
    model = eqx.filter_eval_shape(
        lambda: eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 5, key=key))(keys)
    )
    batches = lambda model, x: jax.vmap(model)(x)  # noqa: E731
    apply = lambda models, x: eqx.filter_vmap(batches)(models, x)  # noqa: E731
    found = roles_of(apply, model, shape(3, 4, 6))
    assert found["weight"] == "stack outputs inputs"


# The predicate.


def test_a_traced_predicate_is_a_value():
    found = where.traced(network, NETWORK, X)
    assert found == where.traced(mean_square, NETWORK, X)
    assert hash(found) == hash(where.traced(mean_square, NETWORK, X))
    other = where.traced(network, {**NETWORK, "unused": shape(2)}, X)
    assert found != other
    every = where.everything
    assert found & every == where.traced(mean_square, NETWORK, X) & every
    assert found & every != other & every
    assert ~found != ~other
    both = found & where.matching("dense")
    assert both("dense/kernel", NETWORK["dense"]["kernel"])
    assert not both("out", NETWORK["out"])
    assert (
        str(both.axes("dense/kernel", NETWORK["dense"]["kernel"])) == "inputs outputs"
    )
    assert found.axes("out", NETWORK["out"]).source == "traced"


def test_it_chooses_for_functions_that_take_a_predicate():
    arrays = jax.tree.map(lambda leaf: np.ones(leaf.shape, "float32"), NETWORK)
    found = where.traced(network, NETWORK, X)
    mask = jax.eval_shape(lambda p: masking.everything(p, where=found), arrays)
    assert mask["dense"]["bias"] is None
    assert mask["out"].shape == (4, 2, 8)


def test_predicates_refuse_what_was_not_traced():
    found = where.traced(network, NETWORK, X)
    needs = "`maskjax.where.traced` needs the paths of the `params` that were traced"
    nearby = "Trace the tree that carries masks; what was traced has"
    asked = f"{needs}, got 'head/kernel'. {nearby} 'dense/kernel'"
    with pytest.raises(ValueError, match=asked):
        found("head/kernel", shape(2, 2))
    with pytest.raises(ValueError, match=f"{needs}, got 'params/out'. {nearby} 'out'"):
        found.axes("params/out", shape(2, 2))
    empty = where.traced(lambda p, x: x, {}, X)
    with pytest.raises(ValueError, match=f"{needs}, got 'w'. Trace .* masks\\.$"):
        empty("w", shape(2, 2))


def test_what_a_trace_chooses_none_of_can_be_printed():
    factors = {"a": np.ones((4, 2), "f4"), "b": np.ones((2, 4), "f4")}
    base = np.ones((4, 4), "f4")
    found = where.traced(
        lambda p, x: x @ (base + p["a"] @ p["b"]), factors, shape(1, 4)
    )
    for predicate in (found, found & where.kernels):
        with pytest.raises(
            ValueError, match="chooses none of: a, b. Print what `where.traced` ret"
        ):
            masking.everything(factors, where=predicate)
    apart = where.traced(
        lambda p, x: x @ base + x @ p["a"] @ p["b"], factors, shape(1, 4)
    )
    assert all(apart(name, leaf) for name, leaf in factors.items())
    assert "can't tell inputs from outputs" in str(found)


HEAD = {"head": shape(4, 3), "bias": shape(3)}
HALVES = NETWORK | HEAD


def head(p, x):
    return x @ p["head"] + p["bias"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_path_that_one_predicate_does_not_know_is_left_to_the_other(turned):
    found, other = where.traced(network, NETWORK, X), where.traced(head, HEAD, shape(4))
    told = where.matching("^head$", axes="outputs inputs")

    def pair(combined, one, two):
        return combined(two, one) if turned else combined(one, two)

    halves = pair(lambda a, b: a | b, found, other)
    kernels = {"dense/kernel", "out", "head"}
    for predicate in (halves, halves & ~where.matching("^bias$"), ~~halves):
        named = trees.named_leaves(HALVES)
        assert {path for path, leaf in named if predicate(path, leaf)} == kernels
    assert str(halves.axes("head", HEAD["head"])) == "inputs outputs"
    assert str(halves.axes("out", NETWORK["out"])) == ROLES["out"]
    for combined in (lambda a, b: a | b, lambda a, b: a & b):
        both = pair(combined, told, found)
        assert both("head", HEAD["head"])
        assert str(both.axes("head", HEAD["head"])) == "outputs inputs"
        names = pair(combined, where.kernels, found)
        assert names("head", HEAD["head"])
        assert not names("bias", HEAD["bias"])
        assert str(names.axes("head", HEAD["head"])) == "inputs outputs"


EVERY = {
    "everything": where.everything & where.traced(network, NETWORK, X),
    "not bias": where.traced(network, NETWORK, X) & ~where.matching("^bias"),
    "told": where.matching("^head$") | where.traced(network, NETWORK, X),
    "function": (lambda path, leaf: path == "head") | where.traced(network, NETWORK, X),
    "twice": where.traced(network, NETWORK, X) | where.traced(head, HEAD, shape(4)),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_path_that_no_predicate_knows_is_refused(name):
    needs = "`maskjax.where.traced` needs the paths of the `params` that were traced"
    for ask in (EVERY[name], ~EVERY[name], EVERY[name].axes, (~EVERY[name]).axes):
        with pytest.raises(ValueError, match=f"{needs}, got 'params/out'"):
            ask("params/out", shape(4, 2, 8))


def test_kernels_have_to_meet_data():
    def apply(p, x, mask):
        x = x @ (p["masked"]["kernel"] * mask)
        x = (x[:, :, None] * p["by_hand"]["kernel"]).sum(1)
        return x + p["added"]["kernel"], jnp.ones(6) @ p["constant"]["kernel"]

    kernel = {"kernel": shape(6, 6)}
    names = ("masked", "by_hand", "constant", "unused")
    params = {name: kernel for name in names} | {"added": {"kernel": shape(5, 6)}}
    hint = r"meets an input by multiplication only \(pass masks and keys by closure"
    with pytest.raises(
        ValueError,
        match=r"`maskjax.where.traced` needs every leaf called `kernel` to meet "
        r"`inputs` in a dot product or convolution, got:\n"
        r"  added/kernel: meets data in add only\n"
        rf"  by_hand/kernel: {hint}.*\n"
        r"  constant/kernel: meets constants only .*\n"
        rf"  masked/kernel: {hint}.*\n"
        r"  unused/kernel: never meets data",
    ):
        where.traced(apply, params, X, shape(6, 6))


@pytest.mark.parametrize("name", ["attention_norm", "ln_f"])
def test_the_scale_of_a_normalization_may_be_called_kernel(name):
    """As in EasyLM, unrolled and stacked."""

    def apply(p, x):
        def layer(h, p):
            return jnp.tanh(h * p[name]["kernel"]) @ p["wq"]["kernel"], None

        return jax.lax.scan(layer, x, p["layers"])[0] * p[name]["kernel"]

    layers = {name: {"kernel": shape(3, 6)}, "wq": {"kernel": shape(3, 6, 6)}}
    params = {"layers": layers, name: {"kernel": shape(6)}}
    traced = where.traced(apply, params, X)
    lines = [" ".join(line.split()) for line in str(traced).splitlines()]
    assert sorted(lines) == sorted(
        [
            f"{name}/kernel outputs (no kernel)",
            f"layers/{name}/kernel stack outputs (no kernel)",
            "layers/wq/kernel stack inputs outputs",
        ]
    )
    unused = lambda p, x: x @ p["layers"]["wq"]["kernel"][0]  # noqa: E731
    with pytest.raises(ValueError, match=rf"\n  {name}/kernel: never meets data"):
        where.traced(unused, params, X)


CONSTANT = "it is contracted with constants and other parameters only"


def test_kernels_that_meet_constants_only_are_left_out_and_say_so():
    class Network(nn.Module):
        """The biases of SwinV2, the image of StyleGAN, the first step of a cell."""

        @nn.compact
        def __call__(self, x):
            places = np.ones((5, 2), "float32")
            x = x + nn.Dense(6, name="outer")(
                nn.relu(nn.Dense(3, name="inner")(places))
            )
            image = self.param("image", nn.initializers.ones, (1, 4, 4, 6))
            image = nn.Conv(6, (3, 3), name="conv")(image) * x.mean(0)
            state = nn.Dense(6, name="state")(np.zeros((5, 6), "float32"))
            return nn.Dense(2, name="out")(jnp.tanh(x + state)), image

    model = Network()
    params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    apply = lambda params, x: model.apply({"params": params}, x)  # noqa: E731
    found = where.traced(apply, params, X)
    lines = roles_of(apply, params, X)
    for name in ("inner", "outer", "conv", "state"):
        assert lines[f"{name}/kernel"] == f"({CONSTANT})"
    chosen = [path for path in lines if found(path, None)]
    assert chosen == ["out/kernel"]
    assert found.axes("inner/kernel", None) == CONSTANT
    names = found | where.kernels
    assert names("inner/kernel", params["inner"]["kernel"])
    assert str(names.axes("inner/kernel", shape(2, 3))) == "inputs outputs"


def test_inputs_are_needed():
    with pytest.raises(ValueError, match="where.traced` needs `inputs`, .* got none"):
        where.traced(lambda p: network(p, jnp.ones((5, 6))), NETWORK)


@pytest.mark.parametrize("stack", [1.0, "1", True, None])
def test_a_stack_is_a_count(stack):
    match = "`maskjax.where.traced` needs `stack` as a whole number, got "
    with pytest.raises(TypeError, match=match):
        where.traced(network, NETWORK, X, stack=stack)


def test_a_stack_is_not_negative():
    match = "`maskjax.where.traced` needs `stack` of at least 0, got -1"
    with pytest.raises(ValueError, match=match):
        where.traced(network, NETWORK, X, stack=-1)


def test_stacks_need_their_axes():
    needs = r"needs every leaf to have the axes that `stack` \(2\) counts, got:\n  b: "
    with pytest.raises(ValueError, match=needs):
        where.traced(network, {"w": shape(2, 2), "b": shape(3)}, X, stack=2)
