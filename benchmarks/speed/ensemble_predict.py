"""How many single forwards does an ensemble of masks cost?

Masksembles as thin members that share the first layer, and MC-dropout through layers,
one member at a time, as is best on a CPU. The limit is one forward of the dense
network. Baselines: as many forwards; all members at once; masks on the rows of kernels,
by `stacking.predict`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _members
from benchmarks._timing import Contestant, Role, compiled
from benchmarks.speed import _network
from benchmarks.speed._case import Case
from maskjax import stacking
from maskjax.recipes import masksembles, mc_dropout

NETWORK, BATCH = (784, 512, 512, 10), 1024
RATE = 0.5
# Widths, batch, members of Masksembles, members of MC-dropout.
FULL = [(NETWORK, BATCH, 4, 100)]
QUICK = [((12, 16, 16, 3), 8, 4, 5)]
REPEATS, SECONDS = 100, 10.0


def cases(*, quick: bool) -> Iterator[Case]:
    """Masksembles of scale 2, then MC-dropout."""
    for widths, batch, few, many in QUICK if quick else FULL:
        yield _masksembles(widths, batch, few)
        yield _mc_dropout(widths, batch, many)


def _contestant(name: str, role: Role, fn: Callable, *args: Any) -> Contestant:
    call, compile_s = compiled(fn, *args)
    scratch = getattr(call.memory_analysis(), "temp_size_in_bytes", 0) or None
    return Contestant(name, role, lambda: call(*args), compile_s, nbytes=scratch)


def _inputs(batch: int, widths: tuple[int, ...]) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((batch, widths[0])), jnp.float32)


def _agree(results: Mapping[str, Any], names: list[str]) -> None:
    first = results[names[0]]
    for name in names[1:]:
        np.testing.assert_allclose(
            first, results[name], rtol=1e-3, atol=1e-3, err_msg=name
        )


def _masksembles(widths: tuple[int, ...], batch: int, members: int) -> Case:
    key, x = jax.random.key(0), _inputs(batch, widths)
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

    def shared(size: int | None) -> Callable:
        """The first layer once, then thin members."""

        def of(params: Any, thin: Any, x: jax.Array) -> jax.Array:
            features = jax.nn.relu(_network.forward({"layer_0": params["layer_0"]}, x))
            return masksembles.predict(
                _network.forward, thin, features, batch_size=size
            )

        return of

    def times(params: Any, x: jax.Array) -> jax.Array:
        return jnp.stack([_network.forward(params, x + i) for i in range(members)])

    def on_rows(params: Any, stack: Any, x: jax.Array) -> jax.Array:
        return stacking.predict(_network.forward, params, stack, x)

    def on_features(params: Any, stack: Any, x: jax.Array) -> jax.Array:
        def member(masks: list[jax.Array], x: jax.Array) -> jax.Array:
            for i in range(last):
                x = x if i == 0 else jnp.where(masks[i - 1][:, 0], jax.nn.relu(x), 0)
                x = x @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
            return x

        masks = [stack[name]["kernel"] for name in names]
        return stacking.map(member, masks, x)

    alone = "one dense forward"
    ours, all_ = "thin, one at a time", "thin, all at once"
    rows, features = "masks on rows", "masks on features"
    return Case(
        f"Masksembles {'-'.join(map(str, widths))} B={batch} N={members}",
        {
            "dtype": "float32",
            "shape": _network.shapes(params),
            "density": int(thin.inputs.shape[1]) / widths[1],
            "structure": "Units()",
            "members": members,
            "batch": batch,
            "scale": 2.0,
        },
        [
            _contestant(ours, "ours", shared(1), params, thin, x),
            _contestant(all_, "baseline", shared(None), params, thin, x),
            _contestant(features, "baseline", on_features, params, stack, x),
            _contestant(rows, "baseline", on_rows, params, stack, x),
            _contestant(f"{members} dense forwards", "baseline", times, params, x),
            _contestant(alone, "limit", _network.forward, params, x),
        ],
        lambda results: _agree(results, [ours, all_, rows, features]),
    )


def _mc_dropout(widths: tuple[int, ...], batch: int, members: int) -> Case:
    net = _members.Net(widths[1:])
    key, x = jax.random.key(0), _inputs(batch, widths)
    variables = net.init(key, x)
    params, units = variables["params"], variables["masks"]
    keys = jax.random.split(key, members)
    hidden = len(widths) - 2

    def predict(size: int | None, examples: int | None = None) -> Callable:
        def of(params: Any, keys: jax.Array, x: jax.Array) -> jax.Array:
            run = lambda masks, x: net.apply(  # noqa: E731
                {"params": params, "masks": masks}, x
            )
            how = {"rate": RATE, "keys": keys, "batch_size": size}
            return mc_dropout.predict(run, units, x, **how, examples=examples)

        return of

    def on_rows(params: Any, keys: jax.Array, x: jax.Array) -> jax.Array:
        """The same masks as a stack on kernels."""

        def member(key: jax.Array) -> Any:
            masks = mc_dropout.masks(units, rate=RATE, key=key)
            rows = [masks[f"LinenFeatureMask_{i}"]["features"] for i in range(hidden)]
            return {
                f"Dense_{i}": {
                    "kernel": rows[i - 1][:, None] if i else None,
                    "bias": None,
                }
                for i in range(hidden + 1)
            }

        run = lambda params, x: net.apply(  # noqa: E731
            {"params": params, "masks": units}, x
        )
        stack = jax.vmap(member)(keys)
        return stacking.predict(run, params, stack, x, batch_size=1)

    def dense(params: Any, x: jax.Array) -> jax.Array:
        return net.apply({"params": params, "masks": units}, x)

    args = params, keys, x
    ours, all_, rows = "one at a time", "all at once", "masks on rows"
    return Case(
        f"MC-dropout {'-'.join(map(str, widths))} B={batch} T={members}",
        {
            "dtype": "float32",
            "shape": _network.shapes(params),
            "density": 1 - RATE,
            "structure": "Units()",
            "members": members,
            "batch": batch,
        },
        [
            _contestant(ours, "ours", predict(1), *args),
            _contestant("a mask for each sample", "baseline", predict(1, batch), *args),
            _contestant(all_, "baseline", predict(None), *args),
            _contestant(rows, "baseline", on_rows, *args),
            _contestant("one dense forward", "limit", dense, params, x),
        ],
        lambda results: _agree(results, [ours, all_, rows]),
    )
