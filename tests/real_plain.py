"""Networks of plain trees for the test bed: `NETWORKS`, among them the undecidable."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tests.real_networks import LOOKUP, POSITIONS, UNKNOWN, network, shape, tokens

WORDS = "inputs outputs"


def dense(n, m):
    return {"w": shape(n, m), "b": shape(m)}


def mlp():
    params = {"hidden": dense(5, 7), "out": dense(7, 3)}

    def apply(p, x):
        x = jax.nn.relu(x @ p["hidden"]["w"] + p["hidden"]["b"])
        return x @ p["out"]["w"] + p["out"]["b"]

    return network(params, apply, (shape(2, 5),), {"*/w": WORDS, "*/b": None})


def mlps():
    one = mlp()
    params = jax.tree.map(lambda leaf: shape(4, *leaf.shape), one.params)
    roles = {"*/w": f"stack {WORDS}", "*/b": None}
    return network(params, one.apply, one.inputs, roles, stack=1)


def lora():
    params = {
        "embed": {"tokens": shape(22, 5)},
        "query": {**dense(5, 7), "lora_a": shape(5, 2), "lora_b": shape(2, 7)},
        "out": dense(7, 3),
    }

    def apply(p, ids):
        x, q = p["embed"]["tokens"][ids], p["query"]
        x = x @ q["w"] + x @ q["lora_a"] @ q["lora_b"] + q["b"]
        return x @ p["out"]["w"] + p["out"]["b"]

    roles = {
        "embed/tokens": LOOKUP,
        "*/w": WORDS,
        "*/b": None,
        "*/lora_[ab]": WORDS,
    }
    return network(params, apply, (tokens(2, 3),), roles)


def scanned_lora():
    shapes = lora().params["query"]
    square = {**shapes, "w": shape(5, 5), "b": shape(5), "lora_b": shape(2, 5)}
    layers = jax.tree.map(lambda leaf: shape(3, *leaf.shape), square)

    def apply(p, x):
        def step(x, q):
            low = x @ q["lora_a"] @ q["lora_b"]
            return jnp.tanh(x @ q["w"] + low + q["b"]), None

        return lax.scan(step, x, p["layers"])[0]

    roles = {
        "layers/w": f"stack {WORDS}",
        "layers/b": None,
        "layers/lora_[ab]": f"stack {WORDS}",
    }
    return network({"layers": layers}, apply, (shape(2, 5),), roles)


def experts(*, every):
    """Experts in one array: each token to its own, or every token to all of them."""
    params = {
        "router": dense(5, 3),
        "experts": {"w_up": shape(3, 5, 7), "w_down": shape(3, 7, 5)},
    }

    def apply(p, x):
        gate = jax.nn.softmax(x @ p["router"]["w"] + p["router"]["b"])
        up, down = p["experts"]["w_up"], p["experts"]["w_down"]
        if every:
            h = jax.nn.relu(jnp.einsum("td,edf->tef", x, up))
            return jnp.einsum("te,tef,efd->td", gate, h, down)
        # The four tokens that each expert is surest of.
        sent = x[lax.top_k(gate.T, 4)[1]]
        h = jax.nn.relu(jnp.einsum("ecd,edf->ecf", sent, up))
        return jnp.einsum("ecf,efd->ecd", h, down)

    roles = {
        "router/w": WORDS,
        "router/b": None,
        "experts/w_*": UNKNOWN if every else f"stack {WORDS}",
    }
    return network(params, apply, (shape(11, 5),), roles)


def vision():
    """Tokens that are learned, scanned layers, and their scales and slopes."""
    width = 10
    layers = {
        "up": dense(width, 7),
        "prelu": {"negative_slope": shape(7)},
        "down": dense(7, width),
        "layer_scale": shape(width),
    }
    params = {
        "patches": dense(12, width),
        "cls_token": shape(1, 1, width),
        "pos_embed": shape(1, 6, width),
        "layers": jax.tree.map(lambda leaf: shape(3, *leaf.shape), layers),
        "head": dense(width, 3),
    }

    def apply(p, x):
        def step(h, layer):
            up = h @ layer["up"]["w"] + layer["up"]["b"]
            up = jnp.where(up > 0, up, layer["prelu"]["negative_slope"] * up)
            down = up @ layer["down"]["w"] + layer["down"]["b"]
            return h + layer["layer_scale"] * down, None

        h = x @ p["patches"]["w"] + p["patches"]["b"]
        first = jnp.broadcast_to(p["cls_token"], (len(h), 1, width))
        h = jnp.concatenate([first, h], 1) + p["pos_embed"]
        h = lax.scan(step, h, p["layers"])[0][:, 0]
        return h @ p["head"]["w"] + p["head"]["b"]

    roles = {
        "patches/w": WORDS,
        "layers/*/w": f"stack {WORDS}",
        "head/w": WORDS,
        "*/b": None,
        "*/negative_slope": None,
        "*/layer_scale": None,
        "cls_token": None,
        "pos_embed": POSITIONS,
    }
    return network(params, apply, (shape(2, 5, 12),), roles)


def tied_autoencoder():
    """A kernel and its transpose: in two roles."""
    params = {"w": shape(5, 7), "out": {"w": shape(5, 3)}}
    apply = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["w"].T @ p["out"]["w"]  # noqa: E731
    return network(params, apply, (shape(2, 5),), {"w": UNKNOWN, "out/w": WORDS})


NETWORKS = {
    "mlp": mlp,
    "mlps": mlps,
    "lora": lora,
    "lora_scanned": scanned_lora,
    "experts": functools.partial(experts, every=False),
    "experts_all": functools.partial(experts, every=True),
    "vision": vision,
    "tied_autoencoder": tied_autoencoder,
}
