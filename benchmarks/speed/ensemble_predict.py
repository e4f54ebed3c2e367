"""How many single forwards does an ensemble of masks cost?

Masksembles as thin members that share the first layer, and MC-dropout through layers,
one member at a time, as is best on a CPU. The limit is one forward of the dense
network. Baselines: as many forwards; all members at once; masks on the rows of kernels,
by `stacking.predict`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _members
from benchmarks.speed import _case, _network
from maskjax import stacking
from maskjax.recipes import masksembles, mc_dropout

RATE = 0.5
# What is asked, widths, batch, members.
FULL = [
    ("Masksembles", (784, 512, 512, 10), 1024, 4),
    ("MC-dropout", (784, 512, 512, 10), 1024, 100),
]
QUICK = [("Masksembles", (12, 16, 16, 3), 8, 4), ("MC-dropout", (12, 16, 16, 3), 8, 5)]
REPEATS, SECONDS = 100, 10.0


def case(kind: str, widths: tuple[int, ...], batch: int, members: int) -> _case.Case:
    """Masksembles of scale 2, or MC-dropout."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, widths[0])), jnp.float32)
    make = {"Masksembles": _masksembles, "MC-dropout": _mc_dropout}[kind]
    params, fns, same, context = make(widths, x, members)
    letter = "N" if kind == "Masksembles" else "T"
    scratch = {"nbytes": lambda scratch: scratch or None}
    return _case.of(
        f"{kind} {_case.named(widths)} B={batch} {letter}={members}",
        [_case.contestant(name, *fn, **scratch) for name, fn in fns.items()],
        _case.agreeing(same, rtol=1e-3, atol=1e-3),
        structure="Units()",
        shape=_case.shapes(params),
        members=members,
        batch=batch,
        **context,
    )


def _masksembles(widths: tuple[int, ...], x: jax.Array, members: int) -> Any:
    """Parameters; functions and their arguments; which of them agree; and context."""
    key = jax.random.key(0)
    params = _network.init(key, widths)
    last = len(params)
    after = lambda path, leaf: leaf.ndim == 2 and "layer_0" not in path  # noqa: E731
    stack = masksembles.init(params, where=after, members=members, key=key)
    names = [f"layer_{i}" for i in range(1, last)]
    links = {
        f"layer_{i}/kernel": [f"layer_{i - 1}/kernel", f"layer_{i - 1}/bias"]
        for i in range(2, last)
    }
    body = {name: params[name] for name in names}
    thin = masksembles.thin(body, {name: stack[name] for name in names}, links=links)

    def shared(size):
        """The first layer once, then thin members."""

        def of(params, thin, x):
            first = {"layer_0": params["layer_0"]}
            x = jax.nn.relu(_network.forward(first, x))
            return masksembles.predict(_network.forward, thin, x, batch_size=size)

        return of

    def times(params, x):
        return jnp.stack([_network.forward(params, x + i) for i in range(members)])

    def on_rows(params, stack, x):
        return stacking.predict(_network.forward, params, stack, x)

    def on_features(params, stack, x):
        def member(masks, x):
            for i in range(last):
                x = x if i == 0 else jnp.where(masks[i - 1][:, 0], jax.nn.relu(x), 0)
                x = x @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
            return x

        return stacking.map(member, [stack[name]["kernel"] for name in names], x)

    fns = {
        "thin, one at a time": (shared(1), params, thin, x),
        "thin, all at once": (shared(None), params, thin, x),
        "masks on features": (on_features, params, stack, x),
        "masks on rows": (on_rows, params, stack, x),
        f"{members} dense forwards": (times, params, x),
        "one dense forward": (_network.forward, params, x),
    }
    context = {"density": int(thin.inputs.shape[1]) / widths[1], "scale": 2.0}
    return params, fns, list(fns)[:4], context


def _mc_dropout(widths: tuple[int, ...], x: jax.Array, members: int) -> Any:
    """The same, of MC-dropout."""
    net = _members.Net(widths[1:])
    variables = net.init(jax.random.key(0), x)
    params, units = variables["params"], variables["masks"]
    keys = _network.seeds(members)

    def dense(params, x, masks=units):
        return net.apply({"params": params, "masks": masks}, x)

    def masked(size, examples=None):
        def of(params, keys, x):
            def member(key, x):
                how = {"rate": RATE, "examples": examples, "key": key}
                return dense(params, x, mc_dropout.mask(units, **how))

            return stacking.map(member, keys, x, batch_size=size)

        return of

    def on_rows(params, keys, x):
        """The same masks as a stack on kernels."""

        def member(key):
            masks = mc_dropout.mask(units, rate=RATE, key=key)
            rows = [
                masks[f"LinenFeatureMask_{i}"]["features"] for i in range(len(units))
            ]
            kernels = [None, *(row[:, None] for row in rows)]
            return {
                f"Dense_{i}": {"kernel": kernel, "bias": None}
                for i, kernel in enumerate(kernels)
            }

        return stacking.predict(dense, params, jax.vmap(member)(keys), x, batch_size=1)

    fns = {
        "one at a time": (masked(1), params, keys, x),
        "a mask for each sample": (masked(1, len(x)), params, keys, x),
        "all at once": (masked(None), params, keys, x),
        "masks on rows": (on_rows, params, keys, x),
        "one dense forward": (dense, params, x),
    }
    same = ["one at a time", "all at once", "masks on rows"]
    return params, fns, same, {"density": 1 - RATE}
