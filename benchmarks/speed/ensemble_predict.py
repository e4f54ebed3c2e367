"""How many single forwards does an ensemble of masks cost?

Masksembles as compacted members that share the first layer, and MC-dropout through
layers, one member at a time, as is best on a CPU. The limit is one forward of the dense
network. Baselines: as many forwards; all members at once; masks in layers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _members
from benchmarks._members import DROPOUT, MASKSEMBLES
from benchmarks.speed import _case, _network
from maskjax import stacking
from maskjax.recipes import mc_dropout

RATE = 0.5
# What is asked, widths, batch, members.
FULL = [
    (MASKSEMBLES, (784, 512, 512, 10), 1024, 4),
    (DROPOUT, (784, 512, 512, 10), 1024, 100),
]
QUICK = [(MASKSEMBLES, (12, 16, 16, 3), 8, 4), (DROPOUT, (12, 16, 16, 3), 8, 5)]
REPEATS, SECONDS = 100, 10.0


def case(kind: str, widths: tuple[int, ...], batch: int, members: int) -> _case.Case:
    """Masksembles of scale 2, or MC-dropout."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, widths[0])), jnp.float32)
    params = _members.Net(widths[1:]).init(jax.random.key(0), x)["params"]
    masks = _members.masks(kind, 1, widths[1:], key=jax.random.key(0))
    variables = {"params": params, "masks": _network.at(masks, 0)}
    make = {MASKSEMBLES: _masksembles, DROPOUT: _mc_dropout}[kind]
    fns, same, context = make(variables, x, members)
    fns["one dense forward"] = _network.forward, params, x
    letter = "N" if kind == MASKSEMBLES else "T"
    scratch = {"nbytes": lambda scratch: scratch or None}
    contestants = [_case.contestant(name, *fn, **scratch) for name, fn in fns.items()]
    agree = _case.agreeing(same, rtol=1e-3, atol=1e-3)
    name = f"{kind} {_case.named(widths)} B={batch} {letter}={members}"
    context |= {"structure": "Units()", "shape": _case.shapes(params)}
    context |= {"members": members, "batch": batch}
    return _case.of(name, contestants, agree, **context)


def _under(params, masks, x):
    net = _members.Net(_members.widths_of(params))
    return net.apply({"params": params, "masks": masks}, x)


def _masksembles(variables: Any, x: jax.Array, members: int) -> Any:
    """Functions and their arguments; which of them agree; and context."""
    params, masks = variables["params"], variables["masks"]
    *small, plan = _members.compacted(variables)
    ask = functools.partial(_members.ask_compacted, plan=plan)

    def times(params, x):
        return jnp.stack([_network.forward(params, x + i) for i in range(members)])

    def on_features(params, masks, x):
        return stacking.map(lambda mask: _under(params, mask, x), masks)

    at_once = functools.partial(ask, batch_size=None)
    fns = {
        "thin, one at a time": (ask, *small, x),
        "thin, all at once": (at_once, *small, x),
        "masks on features": (on_features, params, masks, x),
        f"{members} dense forwards": (times, params, x),
    }
    inputs, _ = plan.shapes["Dense_1/kernel"]
    kept = inputs / params["Dense_0"]["bias"].size
    return fns, list(fns)[:3], {"density": kept, "scale": _members.SCALE}


def _mc_dropout(variables: Any, x: jax.Array, members: int) -> Any:
    """The same, of MC-dropout."""
    params, units = variables["params"], variables["masks"]
    keys = _network.seeds(members)

    def masked(size, examples=None):
        def of(params, keys, x):
            def member(key, x):
                how = {"rate": RATE, "examples": examples, "key": key}
                return _under(params, mc_dropout.mask(units, **how), x)

            return stacking.map(member, keys, x, batch_size=size)

        return of

    fns = {
        "one at a time": (masked(1), params, keys, x),
        "a mask for each sample": (masked(1, len(x)), params, keys, x),
        "all at once": (masked(None), params, keys, x),
    }
    return fns, ["one at a time", "all at once"], {"density": 1 - RATE}
