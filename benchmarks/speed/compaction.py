"""How fast is a network after half of its units are taken out?

Half of the units of each group are masked at random, and taken out. The masked network
does what the compacted one does at the whole size; the limit is one that was built at
half the width. What it takes to plan is apart: its limit is to trace the network once,
and the bytes are what planning takes at its peak, in a process of its own.
"""

import functools
import pathlib
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from benchmarks import _deep
from benchmarks._timing import Contestant
from benchmarks.speed import _case
from maskjax import compaction, masking, structure

WHO = "compacted", "masked", "dense", "built small"
KEPT = 0.5
OPTIMIZER = optax.adam(1e-3)
PLANNED = "shapes only"
REPEATS = 50
SECONDS = 10.0


class Size(NamedTuple):
    """A network, of a share of its width, and what it is given."""

    build: Callable[..., nn.Module]
    batch: tuple[int, ...]  # the shape of its inputs
    labels: int  # or characters


def _gpt(
    layers: int, width: int, batch: tuple[int, int], vocabulary: int, **how: Any
) -> Size:
    how |= {"layers": layers, "width": width, "heads": width // 64, "head_width": 64}
    how |= {"hidden": 4 * width, "vocabulary": vocabulary, "length": max(128, batch[1])}
    return Size(functools.partial(_deep.gpt, **how), batch, vocabulary)


def _resnet(batch: tuple[int, ...], classes: int, **how: Any) -> Size:
    how |= {"classes": classes}
    return Size(functools.partial(_deep.resnet, **how), batch, classes)


_DEEP = {"blocks": (3, 4, 6, 3), "expansion": 4, "large": True}
SIZES = {
    "ResNet18 32x32": _resnet((4, 32, 32, 3), 10),
    "ResNet50 224x224": _resnet((1, 224, 224, 3), 1000, **_DEEP),
    "GPT d=256 layers=4": _gpt(4, 256, (4, 64), 1024),
    "GPT d=384 layers=12": _gpt(12, 384, (1, 32), 2048),
    "ResNet18 32x32 batch=128": _resnet((128, 32, 32, 3), 10),
    "GPT d=512 layers=8 batch=32x256": _gpt(8, 512, (32, 256), 8192),
    "GPT d=512 layers=8 in a scan batch=32x256": _gpt(
        8, 512, (32, 256), 8192, scan=True
    ),
    "small ResNet": _resnet((2, 8, 8, 1), 10, widths=(8, 16), blocks=(1, 1)),
    "small GPT": _gpt(1, 128, (2, 8), 16),
}
TIMED = "ResNet18 32x32", "GPT d=256 layers=4"
COMPILED = [name for name in SIZES if "batch=" in name]
FULL = [
    *((kind, name) for name in TIMED for kind in ("forward", "step")),
    ("plan", "GPT d=384 layers=12"),
    ("plan", "ResNet50 224x224"),
]
QUICK = [
    ("forward", "small ResNet"),
    ("step", "small ResNet"),
    ("step", "small GPT"),
    ("plan", "small GPT"),
]


def shapes_of(
    name: str, share: float = 1
) -> tuple[nn.Module, Any, jax.ShapeDtypeStruct]:
    """A network, the shapes of its variables, and its input's."""
    net, x = SIZES[name].build(share), _input(name)
    init = functools.partial(net.init, train=False)
    return net, jax.eval_shape(init, jax.random.key(0), x), x


def halved(units: structure.Groups, variables: Any, seed: int = 0) -> Any:
    """A mask of variables that keeps half of the units of each group, at random."""
    rng = np.random.default_rng(seed)

    def drawn(group: structure.Group) -> np.ndarray:
        ranks = np.broadcast_to(np.arange(group.size), group.shape)
        return rng.permuted(ranks, axis=-1) < KEPT * group.size

    return units.spread({group.name: drawn(group) for group in units}, variables)


def planned(name: str) -> tuple[nn.Module, Any, Any, compaction.Plan]:
    """A network, its variables' shapes, a mask, and the plan, from shapes alone."""
    net, variables, x = shapes_of(name)
    told = _deep.logits(net)
    mask = halved(compaction.groups(told, variables, x), variables)
    return net, variables, mask, compaction.plan(told, variables, mask, x)


def versions(
    make: Callable[..., Any], net: nn.Module, built: nn.Module, mask: Any, plan: Any
) -> dict[str, Callable[..., Any]]:
    """What `make` makes of a network, by contestant: a function of variables first."""
    fn = make(net)

    def masked(variables: Any, *rest: Any) -> Any:
        return fn(masking.apply(variables, mask), *rest)

    each = compaction.narrow(fn, plan), masked, fn, make(built)
    return dict(zip(WHO, each, strict=True))


def steps(name: str) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Training steps by contestant, and the shapes of what they are given."""
    net, whole, mask, plan = planned(name)
    built, x = SIZES[name].build(KEPT), _input(name)
    small, half = compaction.shrink(whole, plan), shapes_of(name, KEPT)[1]
    fns = versions(_descent, net, built, mask, plan)
    y = jax.ShapeDtypeStruct(x.shape if len(x.shape) == 2 else x.shape[:1], np.int32)
    given = dict(zip(WHO, (small, whole, whole, half), strict=True))
    states = {n: jax.eval_shape(begun, given[n]) for n in WHO}
    return {n: (_of_state(fns[n]), (states[n], x, y)) for n in WHO}


def case(kind: str, name: str) -> _case.Case:
    """A forward pass, a training step, or planning."""
    if kind == "plan":
        return _planning(name)
    net, _, mask, plan = planned(name)
    built = SIZES[name].build(KEPT)
    x, y = _batch(name)
    whole, half = (_deep.fresh(each, x) for each in (net, built))
    whole = jax.jit(masking.apply)(whole, mask)
    small = compaction.shrink(whole, plan)
    given = dict(zip(WHO, (small, whole, whole, half), strict=True))
    make = _deep.logits if kind == "forward" else _descent
    fns = versions(make, net, built, mask, plan)
    if kind == "forward":
        contestants = [_case.contestant(n, fns[n], given[n], x) for n in WHO]
    else:
        states = {n: begun(variables) for n, variables in given.items()}
        contestants = [
            _case.training(n, _of_state(fns[n]), states[n], x, y) for n in WHO
        ]

    def agree(results):
        """What is compacted does what is masked does."""
        one, two = (results[who] for who in ("compacted", "masked"))
        one, two = (one, two) if kind == "forward" else (one[1], two[1])
        _case.close(one, two, rtol=1e-4, atol=1e-4)

    count = {"whole": _deep.parameters(whole), "small": _deep.parameters(small)}
    context = {"shape": list(x.shape), "density": KEPT, "variables": count}
    context |= {"optimizer": "adam" if kind == "step" else None}
    title = f"{kind} {name} batch={len(x)}"
    return _case.of(title, contestants, agree, structure="groups", **context)


def _planning(name: str) -> _case.Case:
    net, variables, x = shapes_of(name)
    told = _deep.logits(net)
    mask = halved(compaction.groups(told, variables, x), variables)

    def traced():
        # A function of its own, for one traced before would be found in the cache.
        return jax.make_jaxpr(lambda *args: told(*args))(variables, x)

    contestants = [
        Contestant(
            "plan",
            lambda: compaction.plan(told, variables, mask, x).shapes,
            nbytes=_peak(name),
        ),
        Contestant("groups", lambda: len(compaction.groups(told, variables, x))),
        Contestant("trace once", lambda: len(traced().eqns)),
    ]

    def agree(results):
        _, small, _ = shapes_of(name, KEPT)
        assert sorted(results["plan"].values()) == sorted(
            leaf.shape for leaf in jax.tree.leaves(small)
        )

    context = {"shape": list(x.shape), "density": KEPT, "mode": PLANNED}
    return _case.of(f"plan {name}", contestants, agree, structure="groups", **context)


def _peak(name: str) -> int:
    """Bytes that a process takes to find groups and to plan, at its peak."""
    code = f"from benchmarks.speed import compaction; compaction.peak({name!r})"
    root = pathlib.Path(__file__).parents[2]
    told = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    return int(told.split()[-1])


def peak(name: str) -> None:
    """Print how many bytes more are resident at the peak than before planning."""
    shapes_of(name)
    before = _resident()
    planned(name)
    print(_resident() - before)


def _resident() -> int:
    """The most bytes so far; Linux counts them in units of 1,024."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _input(name: str) -> jax.ShapeDtypeStruct:
    shape = SIZES[name].batch
    return jax.ShapeDtypeStruct(shape, np.int32 if len(shape) == 2 else np.float32)


def _batch(name: str) -> tuple[jax.Array, jax.Array]:
    size, rng = SIZES[name], np.random.default_rng(0)
    if len(size.batch) == 2:
        drawn = rng.integers(size.labels, size=(2, *size.batch), dtype=np.int32)
        return tuple(map(jax.device_put, drawn))
    x = rng.normal(size=size.batch).astype(np.float32)
    y = rng.integers(size.labels, size=len(x), dtype=np.int32)
    return jax.device_put(x), jax.device_put(y)


def begun(variables: Any) -> tuple[Any, Any]:
    """Variables and the optimizer's state."""
    return variables, OPTIMIZER.init(_deep.apart(variables)[0])


def _descent(net: nn.Module) -> _deep.Step:
    return _deep.descent(net, OPTIMIZER)


def _of_state(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step `(state, x, y) -> (state, loss)`."""

    def one(state: tuple[Any, Any], *data: Any) -> tuple[Any, Any]:
        *state, value = step(*state, *data)
        return tuple(state), value

    return one
