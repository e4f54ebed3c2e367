"""A registry of calls: every public function of the library, as a function of arrays.

A call is run in every way in which arrays lie on devices (`tests/everywhere.py`), and
compiled for chips that are not here. A new function is one line of `CALLS`:

    call("select.threshold", lambda s: select.threshold(s, at=0.5), _scores, specs="xy")

Nothing is computed on import: arguments are drawn when they are asked for.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

import maskjax
from maskjax import (
    algebra,
    allocation,
    bank,
    calibration,
    compaction,
    estimator,
    initializer,
    layers,
    masking,
    metrics,
    optim,
    packing,
    score,
    select,
    stacking,
    superposition,
    where,
)
from maskjax._core import placement
from maskjax.calibration import Statistics
from maskjax.recipes import (
    deconstructing,
    deep_ensemble,
    edge_popup,
    fedpm,
    hopsupsup,
    iterand,
    lottery_ticket,
    maskllm,
    masksembles,
    mc_dropout,
    merging,
    meta_ticket,
    packnet,
    pacnet,
    sparsegpt,
    supermask,
    supsup,
    supsup_stream,
    wsn,
)
from maskjax.structure import Block, Group, Groups, Member, NofM, Units
from maskjax.theory import gadget, neuron, strong_ticket, subset_sum

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a public function.

    Attributes:
        name: The function, as `module.function`; ": ..." tells its calls apart.
        run: A function of arrays alone, so that it can be jitted.
        draw: From a generator to the arguments, trees of NumPy arrays.
        specs: For each argument, the mesh axis ("x", "y" or "-" for none) that each
            axis of its leaves is sharded over. What a leaf's length does not allow is
            left out.
        moves: The collectives, other than sums, that the function's docstring allows:
            "gather" (all-gather), "exchange" (all-to-all, collective-permute).
        members: Whether it can be mapped over members by `jax.vmap`.
        follows: Whether masks and draws are sharded as arguments of the same shape are.
    """

    name: str
    run: Callable[..., Any]
    draw: Callable[[Rng], tuple[Any, ...]]
    specs: tuple[str, ...]
    moves: frozenset[str] = frozenset()
    members: bool = True
    follows: bool = False

    @property
    def function(self) -> str:
        """The public function that is called."""
        return self.name.split(":")[0]

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """The arguments, trees of NumPy arrays; another seed draws other values."""
        return jax.tree.map(np.asarray, self.draw(np.random.default_rng(seed)))

    def shardings(self, sizes: Mapping[str, int]) -> tuple[Any, ...]:
        """The partition of each leaf of the arguments over mesh axes of these sizes."""
        return tuple(
            jax.tree.map(lambda x, spec=spec: _spec(np.shape(x), spec, sizes), tree)
            for tree, spec in zip(self.arguments(), self.specs, strict=True)
        )


def _spec(shape: tuple[int, ...], names: str, sizes: Mapping[str, int]) -> Any:
    axes = [
        name if name != "-" and length and length % sizes[name] == 0 else None
        for name, length in zip(names, shape, strict=False)
    ]
    return PartitionSpec(*axes)


CALLS: list[Call] = []


def call(
    name: str,
    run: Callable[..., Any],
    *draws: Callable[[Rng], Any],
    specs: str = "xy",
    moves: str = "",
    **rest: Any,
) -> None:
    """Add a call to the registry.

    Args:
        name: As in `Call`.
        run: As in `Call`.
        *draws: For each argument, from a generator to its value.
        specs: For each argument, separated by spaces; the last is that of all others.
        moves: As in `Call`, separated by spaces.
        **rest: As in `Call`.
    """
    given = specs.split()
    given += given[-1:] * (len(draws) - len(given))
    CALLS.append(
        Call(
            name,
            run,
            lambda rng: tuple(draw(rng) for draw in draws),
            tuple(given),
            frozenset(moves.split()),
            **rest,
        )
    )


def key() -> jax.Array:
    return jax.random.key(7)


# --- arguments ----------------------------------------------------------------------

_SHAPES = {"a": (16, 8), "b": (16, 8), "c": (24, 8)}
_K = 8  # members of a stack


def of(*shape: int, dtype: str = "float32") -> Callable[[Rng], np.ndarray]:
    """Normal numbers; whole ones that are not negative for an integer type."""

    def draw(rng: Rng) -> np.ndarray:
        if dtype == "bool":
            return rng.random(shape) < 0.6
        if np.issubdtype(np.dtype(dtype), np.integer):
            return rng.integers(0, 4, shape).astype(dtype)
        return rng.normal(size=shape).astype(dtype)

    return draw


def tree_of(**shapes: tuple[int, ...] | None) -> Callable[[Rng], Any]:
    """A tree of normal numbers, `None` where there is no shape."""
    return lambda rng: {
        n: None if s is None else of(*s)(rng) for n, s in shapes.items()
    }


def masks_of(*lead: int, **shapes: tuple[int, ...] | None) -> Callable[[Rng], Any]:
    """A mask, or a stack of them."""
    return lambda rng: {
        n: None if s is None else of(*lead, *s, dtype="bool")(rng)
        for n, s in shapes.items()
    }


def made(function: Callable[..., Any], *draws: Callable[[Rng], Any]) -> Any:
    """What a function makes of drawn arguments, with keys left as they are."""
    compiled = jax.jit(function)
    return lambda rng: compiled(*(draw(rng) for draw in draws))


_scores = tree_of(**_SHAPES, bias=None)
_params = tree_of(**_SHAPES, bias=(8,))
_mask = masks_of(**_SHAPES, bias=None)
_other = masks_of(**_SHAPES, bias=None)
_stack = masks_of(_K, **_SHAPES, bias=None)

# For bits: a device has 32 entries of the packed axis, and 32 masks of a stack.
_LONG = {"a": (128, 8), "b": (8, 128), "c": (256, 2)}
_MANY = 256
_long = tree_of(**_LONG, bias=(8,))
_long_mask = masks_of(**_LONG, bias=None)
_packed = made(lambda m: packing.pack(m), _long_mask)
_packed_stack = made(
    lambda s: jax.vmap(packing.pack)(s), masks_of(_MANY, **_LONG, bias=None)
)
_few = made(lambda s: jax.vmap(packing.pack)(s), _stack)
_bank = made(
    lambda s: bank.from_stack(s, capacity=_MANY), masks_of(200, **_LONG, bias=None)
)


def _number(low, high):
    return lambda rng: np.float32(rng.uniform(low, high))


_density = _number(0.2, 0.8)
_twins = tree_of(a=(16, 8), b=(16, 8))
_layers = tree_of(layers=(4, 16, 8), head=(16, 8))
_LAYERED = where.matching("layers", axes="stack inputs outputs") | where.kernels


def _group(name: str, size: int, *members: tuple[str, int, tuple[int, ...]]) -> Group:
    each = np.arange(size)
    return Group(
        name,
        (),
        size,
        tuple(Member(p, axis, each, shape) for p, axis, shape in members),
    )


_GROUPS = Groups(
    (
        _group("wide", 16, ("a", 0, (16, 8)), ("b", 0, (16, 8))),
        _group("thin", 8, ("a", 1, (16, 8)), ("c", 1, (24, 8)), ("bias", 0, (8,))),
    )
)
_layer = Member("layers", 1, np.tile(np.arange(16), (4, 1)), (4, 16, 8))
_IN_LAYERS = Groups(
    (Group("layers", (4,), 16, (_layer,)), _group("head", 8, ("head", 1, (16, 8))))
)

# A network of one layer, and its data.
_NET = {"w": (8, 16), "bias": (16,)}
_net = tree_of(**_NET)
_net_mask = masks_of(w=(8, 16), bias=None)
_net_stack = masks_of(_K, w=(8, 16), bias=None)
_net_bank = made(lambda s: bank.from_stack(s), _net_stack)
_x = of(16, 8)
_y = of(16, 16)


def _forward(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["bias"][None]


def _loss(params: Any, x: Any, y: Any) -> Any:
    return jnp.mean((_forward(params, x) - y) ** 2)


def _energy(params: Any, x: Any) -> Any:
    return jnp.mean(_forward(params, x) ** 2)


_DATA = "-y x"  # of parameters: by outputs; of data: by examples

# --- algebra, allocation, masking, packing ------------------------------------------

call("algebra.complement", algebra.complement, _mask)
call("algebra.count", algebra.count, _mask, _params)
call("algebra.density", algebra.density, _mask, _params)
call("algebra.difference", algebra.difference, _mask, _other)
call(
    "algebra.expected_count",
    lambda s, p: algebra.expected_count(jax.tree.map(jax.nn.sigmoid, s), p),
    _scores,
    _params,
)
call(
    "algebra.expected_density",
    lambda s: algebra.expected_density(jax.tree.map(jax.nn.sigmoid, s)),
    _scores,
)
call("algebra.intersection", algebra.intersection, _mask, _other)
call("algebra.overlap", algebra.overlap, _mask, _other)
_stray = made(lambda m: packing.pack(m), masks_of(a=(250, 8), bias=None))
call("algebra.overlap: packed", algebra.overlap, _stray, _stray, specs="-x")
call("algebra.union", algebra.union, _mask, _other)
call("algebra.union: packed", algebra.union, _packed, _packed)

call("allocation.erk", lambda p, d: allocation.erk(p, density=d), _params, _density)
call(
    "allocation.matching",
    lambda p, d: allocation.matching(p, densities={"a": 0.5}, density=d),
    _params,
    _number(0.4, 0.5),
)
call(
    "allocation.owl",
    lambda p, n, d: allocation.owl(p, n, density=d),
    _params,
    tree_of(a=(16, 1), b=(16, 1), c=(24, 1), bias=None),
    _density,
    specs="xy x -",
)
call(
    "allocation.owl: layers",
    lambda p, n: allocation.owl(p, n, density=0.5, where=_LAYERED),
    _layers,
    tree_of(layers=(4, 16, 1), head=(16, 1)),
    specs="xy xy",
    moves="gather exchange",
)
call(
    "allocation.uniform",
    lambda p, d: allocation.uniform(p, density=d),
    _params,
    _density,
)

call("masking.apply", maskjax.apply, _params, _mask)
call("masking.apply: packed", maskjax.apply, _long, _packed)
call("masking.apply: fill", maskjax.apply, _params, _mask, _params)
call("masking.everything", masking.everything, _params, follows=True)
call("masking.nonzero", masking.nonzero, _params, follows=True)
call("masking.rescale", masking.rescale, _params, _mask)

call("packing.pack", packing.pack, _long_mask)
call("packing.pack: a run", packing.pack, _mask, moves="gather")
call("packing.unpack", packing.unpack, _packed)
call("packing.unpack: a stack", packing.unpack, _packed_stack, specs="x")
_long_scores = tree_of(**_LONG, bias=None)
call("packing.dot", packing.dot, _packed_stack, _long_scores, specs="x -")
call("packing.dot: words", packing.dot, _packed_stack, _long_scores, specs="-xy xy")
call("packing.dot: both", packing.dot, _packed_stack, _long_scores, specs="x-y -y")

# --- compaction ---------------------------------------------------------------------

_TWO = {"up": (8, 16), "bias": (16,), "down": (16, 8)}
_LAYERS = {"up": (4, 8, 16), "down": (4, 16, 8)}
_UNITS = np.arange(16) % 4 != 1  # 12 of 16 stay


def _two(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["up"] + params["bias"][None]) @ params["down"]


def _two_loss(params: Any, x: Any, y: Any) -> Any:
    return jnp.mean((_two(params, x) - y) ** 2)


def _scanned(params: Any, x: Any) -> Any:
    def layer(x: Any, p: Any) -> Any:
        return x + jax.nn.relu(x @ p["up"]) @ p["down"], None

    return jax.lax.scan(layer, placement.vary_like(x, params), params)[0]


@functools.cache
def _plan(function: Callable[..., Any], units: tuple[bool, ...]) -> compaction.Plan:
    """In a stack, each layer keeps other units."""
    shapes = _LAYERS if function is _scanned else _TWO
    shaped = {n: jax.ShapeDtypeStruct(s, "float32") for n, s in shapes.items()}
    mask = {n: None for n in shaped}
    if function is _scanned:
        mask["up"] = np.stack([np.roll(units, i) for i in range(4)])[:, None]
    else:
        mask |= {"up": np.array(units)[None], "bias": np.array(units)}
    x = jax.ShapeDtypeStruct((16, 8), "float32")
    return compaction.plan(function, shaped, mask, x)


_two_plan = functools.partial(_plan, _two, tuple(_UNITS))
_scanned_plan = functools.partial(_plan, _scanned, tuple(_UNITS))
_odd_plan = functools.partial(_plan, _two, tuple(np.arange(16) < 13))


def _small(function: Callable[..., Any], plan: Callable[[], Any] = _two_plan) -> Any:
    """The small function; plans are made when they are first asked for."""
    return lambda *given: compaction.narrow(function, plan())(*given)


_ADAM = optax.adam(1e-2)


def _step(params: Any, state: Any, x: Any, y: Any) -> Any:
    gradients = jax.grad(_two_loss)(params, x, y)
    with jax.numpy_dtype_promotion("standard"):  # Optax divides by whole numbers
        updates, state = _ADAM.update(gradients, state, params)
        return optax.apply_updates(params, updates), state


_small_two = tree_of(up=(8, 12), bias=(12,), down=(12, 8))
_small_layers = tree_of(up=(4, 8, 12), down=(4, 12, 8))
_ins = of(16, 8)

call("compaction.narrow", _small(_two), _small_two, _ins, specs="- x")
call(
    "compaction.narrow: outputs across shards",
    _small(_two),
    _small_two,
    _ins,
    specs="-y x",
    moves="gather exchange",  # of what enters the second layer
)
call(
    "compaction.narrow: in a scan",
    _small(_scanned, _scanned_plan),
    _small_layers,
    _ins,
    specs="- x",
)
call(
    "compaction.narrow: odd sizes",
    _small(_two, _odd_plan),
    tree_of(up=(8, 13), bias=(13,), down=(13, 8)),
    _ins,
    specs="-y x",
    moves="gather exchange",
)
call(
    "compaction.narrow: gradient",
    jax.grad(_small(_two_loss)),
    _small_two,
    _ins,
    _ins,
    specs="- x x",
)
call(
    "compaction.narrow: a training step",
    _small(_step),
    _small_two,
    made(_ADAM.init, _small_two),
    _ins,
    _ins,
    specs="- - x x",
)
call(
    "compaction.shrink",
    lambda up, down: compaction.shrink({"up": up, "down": down}, _two_plan()),
    of(8, 16),
    of(16, 8),
    specs="x -y",
)
call(
    "compaction.shrink: units across shards",
    lambda t: compaction.shrink(t, _two_plan()),
    tree_of(**_TWO),
    specs="xy",
    moves="gather exchange",
)
call(
    "compaction.shrink: a scan",
    lambda up, down: compaction.shrink({"up": up, "down": down}, _scanned_plan()),
    of(4, 8, 16),
    of(4, 16, 8),
    specs="-x --y",
)
call(
    "compaction.expand",
    lambda up, down: compaction.expand({"up": up, "down": down}, _two_plan()),
    of(8, 12),
    of(12, 8),
    specs="x -y",
)
call(
    "compaction.expand: units across shards",
    lambda t: compaction.expand(t, _two_plan()),
    _small_two,
    specs="xy",
    moves="gather exchange",
)


_KEPT = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]], bool)


def _last(params: Any, h: Any) -> Any:
    return h @ params["down"]


@functools.cache
def _members_plan() -> compaction.Plan:
    """Each of two members reads four features of its own."""
    shaped = {"down": jax.ShapeDtypeStruct((8, 4), "float32")}
    h = jax.ShapeDtypeStruct((16, 8), "float32")
    mask = {"down": _KEPT[..., None]}
    return compaction.plan(_last, shaped, mask, h, stack=True)


def _of_members(small: Any, h: Any, *, batch_size: int | None = None) -> Any:
    def one(member: Any, h: Any) -> Any:
        number, params = member
        return compaction.narrow(_last, _members_plan(), member=number)(params, h)

    return stacking.map(one, (jnp.arange(2), small), h, batch_size=batch_size)


_small_members = tree_of(down=(2, 4, 4))
call(
    "compaction.narrow: members of a stack",
    _of_members,
    _small_members,
    _ins,
    specs="- x",
)
call(
    "compaction.narrow: members of a stack, one at a time",
    functools.partial(_of_members, batch_size=1),
    _small_members,
    _ins,
    specs="- x",
)
call(
    "compaction.shrink: members of a stack",
    lambda p: compaction.shrink(p, _members_plan()),
    tree_of(down=(8, 4)),
    specs="-y",
)
call(
    "compaction.expand: members of a stack",
    lambda p: compaction.expand(p, _members_plan()),
    _small_members,
    specs="--y",
)


def _there_and_back(up: Any, down: Any) -> Any:
    small = compaction.shrink({"up": up, "down": down}, _scanned_plan())
    return compaction.expand(small, _scanned_plan())


call(
    "compaction.expand: a scan, there and back",
    _there_and_back,
    of(4, 8, 16),
    of(4, 16, 8),
    specs="-x --y",
    follows=True,
)

# --- calibration ---------------------------------------------------------------------

_IMAGE_NET = {"kernel": (3, 3, 4, 8), "bias": (8,)}


def _stats(apply: Any, **how: Any) -> Any:
    """A draw of statistics of no data, for drawn parameters and data."""
    return lambda params, x: calibration.init(apply, params, x, **how)


def _met(apply: Any) -> Any:
    """A draw of statistics of drawn data."""

    def draw(params: Any, x: Any) -> Any:
        stats = calibration.init(apply, params, x)
        return calibration.update(apply, stats, params, x)

    return draw


def _convolved(params: Any, x: Any) -> Any:
    layer = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=layer
    )


def _wanda_of(params: Any, stats: Any) -> Any:
    scores = score.wanda(params, calibration.norms(stats))
    mask = select.top_k(scores, density=0.5, scope="output")
    return maskjax.apply(params, mask), mask


def _block(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w"])


_net_stats = made(_stats(_forward), _net, _x)
call(
    "calibration.init",
    lambda p, x: calibration.init(_forward, p, x),
    _net,
    _x,
    specs=_DATA,
)
call(
    "calibration.update",
    lambda s, p, x: calibration.update(_forward, s, p, x),
    _net_stats,
    _net,
    _x,
    specs=f"- {_DATA}",
)
call(
    "calibration.update: weights",
    lambda s, p, x, w: calibration.update(_forward, s, p, x, weights=w),
    _net_stats,
    _net,
    _x,
    of(16, dtype="int32"),
    specs=f"- {_DATA}",
)
call(
    "calibration.update: a sharded matrix",
    lambda s, p, x: calibration.update(_forward, s, p, x),
    _net_stats,
    _net,
    _x,
    specs="x -y x",
    moves="exchange",
)
call(
    "calibration.update: squares",
    lambda s, p, x: calibration.update(_forward, s, p, x),
    made(_stats(_forward, gram=False), _net, _x),
    _net,
    _x,
    specs=f"- {_DATA}",
)
call(
    "calibration.update: a convolution",
    lambda s, p, x: calibration.update(_convolved, s, p, x),
    made(_stats(_convolved), tree_of(**_IMAGE_NET), of(16, 5, 5, 4)),
    tree_of(**_IMAGE_NET),
    of(16, 5, 5, 4),
    specs=f"- {_DATA}",
)
_scan_stats = made(_stats(lambda p, x: _scanned(p, x)), tree_of(**_LAYERS), of(16, 8))
call(
    "calibration.update: layers",
    lambda s, p, x: calibration.update(_scanned, s, p, x),
    _scan_stats,
    tree_of(**_LAYERS),
    of(16, 8),
    specs="- - x",
)
_layer_stats = made(_met(lambda p, x: _scanned(p, x)), tree_of(**_LAYERS), of(16, 8))
call("calibration.norms", calibration.norms, _layer_stats, specs="x")
call("calibration.check", calibration.check, _layer_stats, specs="x")
call(
    "calibration.collect",
    lambda p, *xs: calibration.collect(_forward, p, xs),
    _net,
    _x,
    _x,
    specs=_DATA,
)
call(
    "calibration.sequential",
    lambda p, x: calibration.sequential(
        _block, [{"w": w} for w in p["layers"]], x, prune=_wanda_of
    ),
    tree_of(layers=(4, 8, 8)),
    of(3, 16, 8),
    specs="- -x",
)
call(
    "calibration.sequential: scan",
    lambda p, x: calibration.sequential(_block, p, x, prune=_wanda_of, scan=True),
    tree_of(w=(4, 8, 8)),
    of(3, 16, 8),
    specs="- -x",
)

# --- stacking, bank, superposition --------------------------------------------------

_flags = of(_K, dtype="bool")
call("stacking.counts", stacking.counts, _packed_stack, specs="x")
call(
    "stacking.counts: words",
    stacking.counts,
    _packed_stack,
    of(_MANY, dtype="bool"),
    specs="-xy -",
)
call(
    "stacking.counts: few",
    stacking.counts,
    _few,
    _flags,
    specs="x",
    moves="gather exchange",
)
call("stacking.counts: unpacked", stacking.counts, _stack, _flags, specs="x-y x")
call("stacking.map", lambda s: stacking.map(algebra.count, s), _stack, specs="-xy")
call("stacking.mix", stacking.mix, _packed_stack, of(_MANY), specs="x")
call("stacking.mix: words", stacking.mix, _packed_stack, of(_MANY), specs="-xy -")
call(
    "stacking.mix: few", stacking.mix, _few, of(_K), specs="x", moves="gather exchange"
)
call("stacking.mix: unpacked", stacking.mix, _stack, of(_K), specs="-xy -")
call(
    "stacking.predict",
    lambda p, s, x: stacking.predict(_forward, p, s, x),
    _net,
    _net_stack,
    _x,
    specs="- - x",
)
call(
    "stacking.predict_each",
    lambda p, s, i, x: stacking.predict_each(_forward, p, s, i, x, group=4),
    _net,
    _net_stack,
    of(16, dtype="int32"),
    _x,
    specs="- - x x",
    moves="gather",
)
call("stacking.stack", lambda a, b: stacking.stack([a, b]), _mask, _other)
call("stacking.take", lambda s: stacking.take(s, -1), _stack, specs="-xy")
call("stacking.unstack", stacking.unstack, _stack, specs="-xy")

call("bank.empty", lambda p: bank.empty(p, capacity=8), _params, follows=True)


def _change(name: str, change: Callable[..., Any], new: Any, lead: str = "") -> None:
    """A change of a bank that is sharded by tasks, and of one sharded by words."""

    def run(masks: Any, counts: Any, new: Any) -> Any:
        return change(bank.MaskBank(masks, counts, jnp.int32(200), jnp.int32(0)), new)

    parts = [made(lambda b, i=i: b[i], _bank) for i in (0, 1)]
    call(name, run, *parts, new, specs="x -")
    call(f"{name}: words", run, *parts, new, specs=f"-xy xy {lead}xy")


_change("bank.append", bank.append, _long_mask)
_change("bank.extend", bank.extend, masks_of(2, **_LONG, bias=None), "-")
_change("bank.put", lambda b, m: bank.put(b, 3, m), _long_mask)
call(
    "bank.put: a mask that is sharded into a bank that is not",
    lambda b, m: bank.put(b, 3, m),
    _bank,
    _packed,
    specs="- xy",
    moves="gather",
)
call(
    "bank.extend: many",
    bank.extend,
    _bank,
    made(lambda s: jax.tree.map(lambda bits: bits[:8], s), _packed_stack),
    specs="x",
    moves="gather exchange",
)
call("bank.from_stack", bank.from_stack, _packed_stack, specs="x")
call("bank.grow", lambda b: bank.grow(b, 264), _bank, specs="x", moves="exchange")
call("bank.is_used", bank.is_used, _bank, specs="x")
call("bank.mean", bank.mean, _bank, specs="x")
call("bank.take", lambda b: bank.take(b, 3), _bank, specs="x")
call("bank.take: words", lambda b: bank.take(b, 3), _bank, specs="-xy")

# Where data are whole, so that only the bank's collectives are seen.
_wide_net = tree_of(w=(128, 8), bias=(8,))
_wide_bank = made(
    lambda s: bank.from_stack(s, capacity=_MANY), masks_of(250, w=(128, 8), bias=None)
)
_wide_x = of(3, 128)
for _way in ("binary", "one_shot"):
    call(
        f"superposition.{_way}",
        lambda p, b, x, ask=getattr(superposition, _way): ask(_energy, p, b, x),
        _wide_net,
        _wide_bank,
        _wide_x,
        specs="- x -",
        moves="gather",  # K numbers
    )
call(
    "superposition.exhaustive",
    lambda p, b, x: superposition.exhaustive(_energy, p, b, x, batch_size=8),
    _wide_net,
    _wide_bank,
    _wide_x,
    specs="- x -",
    moves="gather",  # K numbers
)
call(
    "superposition.gradient",
    lambda p, b, c, x: superposition.gradient(_energy, p, b.masks, c, x),
    _wide_net,
    _wide_bank,
    of(_MANY),
    _wide_x,
    specs="- x x -",
)
call(
    "superposition.infer",
    lambda p, b, x: superposition.infer(_forward, p, b, x, batch_size=8),
    _net,
    _net_bank,
    _x,
    specs="- - x",
)
call("superposition.logit_entropy", superposition.logit_entropy, _y, specs="x")
call(
    "superposition.superfluous",
    lambda x: superposition.superfluous(x, labels=12),
    _y,
    specs="x",
)

# --- estimator, initializer, layers -------------------------------------------------


def _gradient(soft_mask: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient of a soft mask that meets weights."""

    def total(scores: Any, weights: Any) -> Any:
        soft = soft_mask(scores)
        return sum(jnp.sum(soft[n] * weights[n]) for n in _SHAPES)

    return jax.grad(total)


call("estimator.bernoulli", lambda s: estimator.bernoulli(s, key=key()), _scores)
call(
    "estimator.hard_concrete",
    lambda s: estimator.hard_concrete(s, key=key()),
    _scores,
    follows=True,
)
call(
    "estimator.hard_concrete: a test's",
    lambda s: estimator.hard_concrete(s, key=None),
    _scores,
    follows=True,
)
call(
    "estimator.hard_concrete: gradient",
    _gradient(lambda s: estimator.hard_concrete(s, key=key())),
    _scores,
    _params,
)
call(
    "estimator.hard_concrete_probabilities",
    estimator.hard_concrete_probabilities,
    _scores,
    follows=True,
)
call(
    "estimator.lagrangian",
    jax.value_and_grad(estimator.lagrangian, (0, 1)),
    of(8),
    of(2, 8),
    specs="x -x",
)
call("estimator.straight_through", estimator.straight_through, _mask, _scores)
call("estimator.threshold", estimator.threshold, _scores)
call("estimator.top_k", lambda s: estimator.top_k(s, density=0.3), _scores)
call(
    "estimator.top_k: gradient, groups",
    _gradient(lambda s: estimator.top_k(s, density=0.3, structure=_GROUPS)),
    _scores,
    _params,
    moves="gather exchange",
)
call(
    "estimator.top_k: gradient",
    _gradient(lambda s: estimator.top_k(s, density=0.3, structure=Units())),
    _scores,
    _params,
)


def _redraw(draw: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p: initializer.redraw(draw, p, key=key())


call(
    "initializer.elementwise",
    _redraw(initializer.elementwise(jax.random.normal)),
    _params,
)
call(
    "initializer.redraw",
    _redraw(jax.nn.initializers.he_normal()),
    _params,
    follows=True,
)
call(
    "initializer.scores",
    lambda p: initializer.scores(p, key=key()),
    _params,
    follows=True,
)
call("initializer.scores_of", initializer.scores_of, _params, _mask)
call("initializer.signed_constant", _redraw(initializer.signed_constant(0.5)), _params)
call("initializer.signed_deviation", initializer.signed_deviation, _params)
call(
    "initializer.signed_deviation: layers",
    lambda p: initializer.signed_deviation(p, where=_LAYERED),
    _layers,
    specs="-xy",
)
call(
    "initializer.signed_deviation: layers, sharded by layers",
    lambda p: initializer.signed_deviation(p, where=_LAYERED),
    _layers,
    specs="xy",
    moves="gather exchange",
)
call(
    "initializer.signed_log_uniform",
    _redraw(initializer.signed_log_uniform(0.1)),
    _params,
)
call("initializer.uniform", _redraw(initializer.uniform()), _params)

call(
    "layers.assign",
    layers.assign,
    lambda rng: {"features": of(4, 8, dtype="bool")(rng)},
    of(16, dtype="int32"),
    specs="-y x",
)

# --- score, select ------------------------------------------------------------------

call(
    "score.fisher",
    lambda *a: score.fisher(_loss, *a, batch_size=8),
    _net,
    _x,
    _y,
    specs=_DATA,
)
call("score.grasp", lambda *a: score.grasp(_loss, *a), _net, _x, _y, specs=_DATA)
call(
    "score.input_norms",
    lambda *a: score.input_norms(_forward, *a),
    _net,
    _x,
    specs=_DATA,
)
call("score.magnitude", score.magnitude, _params)
call("score.movement", score.movement, _params, _params)
call("score.random", lambda p: score.random(p, key=key()), _params, follows=True)
call("score.snip", lambda *a: score.snip(_loss, *a), _net, _x, _y, specs=_DATA)
call("score.synflow", lambda p: score.synflow(_forward, p, (1, 8)), _net, specs="-y")
call("score.taylor", lambda *a: score.taylor(_loss, *a), _net, _x, _y, specs=_DATA)
call(
    "score.wanda",
    score.wanda,
    _params,
    tree_of(a=(16, 1), b=(16, 1), c=(24, 1), bias=None),
)

call("select.bernoulli", lambda s: select.bernoulli(s, key=key()), _scores)
call("select.drop", lambda s, m: select.drop(s, m, rate=0.3), _scores, _mask)
call("select.grow", lambda s, m: select.grow(s, m, density=0.8), _scores, _mask)
call(
    "select.iterative_top_k",
    lambda p: select.iterative_top_k(score.magnitude, p, density=0.2, rounds=3),
    _params,
    follows=True,
)
call(
    "select.iterative_top_k: units",
    lambda p: select.iterative_top_k(
        score.magnitude, p, density=0.4, rounds=3, structure=Units()
    ),
    _params,
    follows=True,
)
call(
    "select.iterative_top_k: synflow",
    lambda p: select.iterative_top_k(
        lambda p: score.synflow(_forward, p, (1, 8)), p, density=0.2, rounds=3
    ),
    _net,
    specs="-y",
)
call(
    "select.random",
    lambda p: select.random(p, density=0.3, key=key()),
    _params,
    follows=True,
)
call(
    "select.random_like",
    lambda m: select.random_like(m, key=key()),
    _mask,
    follows=True,
)
call(
    "select.drop: groups",
    lambda s, m: select.drop(s, m, rate=0.3, structure=_GROUPS),
    _scores,
    _mask,
    moves="gather exchange",
)
call(
    "select.random: groups",
    lambda p: select.random(p, density=0.3, structure=_GROUPS, key=key()),
    _params,
)
call(
    "select.random_like: groups",
    lambda m: select.random_like(m, structure=_GROUPS, key=key()),
    _mask,
    moves="gather exchange",
)
call("select.shrink", lambda s, m: select.shrink(s, m, density=0.3), _scores, _mask)
call("select.threshold", lambda s: select.threshold(s, at=0.5), _scores)


def _top_k(
    tag: str, draw: Any, *, specs: str = "xy", moves: str = "", **how: Any
) -> None:
    def run(scores: Any, density: Any) -> Any:
        return select.top_k(scores, density=density, **how)

    call(f"select.top_k{tag}", run, draw, _density, specs=specs, moves=moves)


_top_k("", _scores)
_top_k(": global", _scores, scope="global")
_top_k(": cutoffs", _scores, return_cutoff=True)
_top_k(": groups", _scores, structure=_GROUPS, moves="gather exchange")
_top_k(
    ": groups, global",
    _layers,
    scope="global",
    structure=_IN_LAYERS,
    moves="gather exchange",
)
_top_k(": outputs", _twins, scope="output")
_top_k(": layers", _layers, scope="layer", where=_LAYERED)
_top_k(
    ": layers, sharded by layers", _layers, scope="layer", where=_LAYERED, specs="xy"
)
_top_k(
    ": layers, sharded by inputs", _layers, scope="layer", where=_LAYERED, specs="-xy"
)
_top_k(": units", _scores, structure=Units())
_top_k(": units, global", _scores, scope="global", structure=Units())
_top_k(": blocks", _scores, structure=Block((2, 2)))
_top_k(
    ": blocks across shards", _scores, structure=Block((8, 8)), moves="gather exchange"
)
_top_k(": N:M", _twins, structure=NofM(2, 4))
_top_k(": N:M across shards", _twins, structure=NofM(4, 8), moves="gather exchange")
_top_k(": N:M along outputs", _twins, structure=NofM(2, 4, axis="outputs"))

_HEADS = where.matching("out", axes="inputs inputs outputs")
_heads = tree_of(out=(8, 4, 16))
_top_k(": N:M of heads", _heads, structure=NofM(2, 4), where=_HEADS, specs="x-y")
_top_k(
    ": N:M of heads, sharded within heads",
    _heads,
    structure=NofM(4, 8),
    where=_HEADS,
    specs="yx-",
    moves="gather exchange",
)
_top_k(": outputs of heads", _heads, scope="output", where=_HEADS, specs="xy-")
_top_k(": outputs, sharded", _twins, scope="output", specs="-x")


def _kept(structure: Any) -> Callable[..., Any]:
    """Parameters under a mask, which is where they are."""

    def run(params: Any, density: Any) -> Any:
        mask = select.top_k(params, density=density, structure=structure)
        return maskjax.apply(params, mask)

    return run


call("select.top_k: blocks, applied", _kept(Block((2, 2))), _twins, _density)
call(
    "select.top_k: blocks across shards, applied",
    _kept(Block((8, 8))),
    _twins,
    _density,
    moves="gather exchange",
)
call(
    "select.top_k: N:M across shards, applied",
    _kept(NofM(4, 8)),
    _twins,
    _density,
    moves="gather exchange",
)

call(
    "select.drop: blocks across shards",
    lambda s, m: select.drop(s, m, rate=0.3, structure=Block((8, 8))),
    _twins,
    masks_of(a=(16, 8), b=(16, 8)),
    moves="gather exchange",
)

# --- optim --------------------------------------------------------------------------


def _step(make: Callable[[Any], Any]) -> Callable[..., Any]:
    """The first step of an optimizer, and its state afterwards."""

    def run(params: Any, gradients: Any, *rest: Any) -> Any:
        optimizer = make(*rest)
        return optimizer.update(gradients, optimizer.init(params), params)

    return run


def _steps(optimizer: Any, params: Any, gradients: Any) -> Any:
    """Three steps in a `lax.scan`, which keeps the type of the state."""

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=3)[0]


_REWIRE = {"rate": 0.3, "every": 1}
call(
    "optim.keep_sparse", _step(lambda m: optim.keep_sparse(m)), _params, _params, _mask
)
call(
    "optim.mask_gradients",
    _step(
        lambda m: optim.with_gradients(
            optax.chain(optim.mask_gradients(), optim.keep_sparse(m))
        )
    ),
    _params,
    _params,
    _mask,
)
call(
    "optim.mask_of",
    lambda p, m: optim.mask_of(optim.keep_sparse(m).init(p)),
    _params,
    _mask,
)
call(
    "optim.mask_updates",
    _step(lambda m: optim.mask_updates(m)),
    _params,
    _params,
    _mask,
)
call("optim.prune", _step(lambda: optim.prune(0.4)), _params, _params, follows=True)
call(
    "optim.prune: global",
    _step(lambda: optax.chain(optax.sgd(0.1, 0.9), optim.prune(0.4, scope="global"))),
    _params,
    _params,
)
call(
    "optim.reset_moments: packed",
    lambda state, first, a, b: optim.reset_moments(state, first, a, b),
    _params,
    _params,
    made(lambda m: packing.pack(m), _mask),
    made(lambda m: packing.pack(m), _other),
    specs="xy xy - -",
)
call(
    "optim.reset_moments",
    lambda state, a, b: optim.reset_moments(
        optax.TraceState(state),
        optax.TraceState(jax.tree.map(jnp.zeros_like, state)),
        a,
        b,
    ),
    _params,
    _mask,
    _other,
)
call(
    "optim.rigl",
    _step(lambda: optim.with_gradients(optim.rigl(0.4, **_REWIRE, key=key()))),
    _params,
    _params,
    follows=True,
)
call(
    "optim.set_",
    _step(lambda: optim.with_gradients(optim.set_(0.4, **_REWIRE, key=key()))),
    _params,
    _params,
    follows=True,
)
call(
    "optim.with_gradients",
    _step(lambda: optim.with_gradients(optax.sgd(0.1, 0.9))),
    _params,
    _params,
)

call(
    "optim.with_mask",
    lambda p, m, other: optim.with_mask(optim.keep_sparse(m).init(p), other),
    _params,
    _mask,
    _other,
)
call(
    "optim.rigl: units",
    _step(
        lambda: optim.with_gradients(
            optim.rigl(0.4, **_REWIRE, structure=Units(), key=key())
        )
    ),
    _params,
    _params,
    follows=True,
)
call(
    "optim.rigl: ablated outputs",
    _step(
        lambda: optim.with_gradients(
            optim.rigl(0.4, **_REWIRE, scope="output", min_salient=0.9, key=key())
        )
    ),
    _params,
    _params,
    follows=True,
)
call(
    "optim.prune: units",
    _step(lambda: optim.prune(0.4, structure=Units())),
    _params,
    _params,
    follows=True,
)
call(
    "optim.prune: groups",
    _step(lambda: optim.prune(0.4, structure=_GROUPS)),
    _params,
    _params,
    moves="gather exchange",
)
call(
    "optim.prune: in a scan",
    lambda p, g: _steps(optim.prune(0.4, every=2), p, g),
    _params,
    _params,
    follows=True,
)
call(
    "optim.rigl: in a scan",
    lambda p, g: _steps(
        optim.with_gradients(optim.rigl(0.4, rate=0.3, every=2, key=key())), p, g
    ),
    _params,
    _params,
    follows=True,
)

call(
    "optim.prune: blocks across shards, in a scan",
    lambda p, g: _steps(optim.prune(0.4, every=2, structure=Block((8, 8))), p, g),
    _twins,
    _twins,
    moves="gather exchange",
)

# --- metrics ------------------------------------------------------------------------

_labels = of(16, dtype="int32")
_logits = of(16, 4)


def _probs(rng):
    return rng.dirichlet(np.ones(4), 16).astype("float32")


def _member_probs(rng):
    return rng.dirichlet(np.ones(4), (3, 16)).astype("float32")


def _unit(rng):
    return rng.random(16).astype("float32")


def _unit_members(rng):
    return (rng.random((3, 16)) + 0.5).astype("float32")


def _both(rng):
    return rng.permutation(np.arange(16) % 2 == 0)


def _some(rng):
    return rng.permutation(np.arange(16) % 4 > 0)


def _accuracies(rng):
    return rng.random((4, 4)).astype("float32")


_SORTED = "gather exchange"


def _bins(rng):
    count = rng.integers(3, size=(8, 4)).astype("int32")
    return metrics.Reliability(count, *rng.random((2, 8, 4)).astype("float32"))


call("metrics.accuracy", metrics.accuracy, _probs, _labels, specs="x")
call(
    "metrics.accuracy: some",
    lambda p, y, where: metrics.accuracy(p, y, where=where),
    _probs,
    _labels,
    _both,
    specs="x",
)
call("metrics.aurc", metrics.aurc, _unit, _both, specs="x", moves=_SORTED)
call("metrics.auroc", metrics.auroc, _unit, _both, specs="x", moves=_SORTED)
call(
    "metrics.auroc: some",
    lambda p, y, where: metrics.auroc(p, y, where=where),
    _unit,
    _both,
    _some,
    specs="x",
    moves=_SORTED,
)
call(
    "metrics.aurc: some",
    lambda p, y, where: metrics.aurc(p, y, where=where),
    _unit,
    _both,
    _some,
    specs="x",
    moves=_SORTED,
)
call(
    "metrics.average_accuracy",
    metrics.average_accuracy,
    _accuracies,
    specs="x",
    moves=_SORTED,
)
call(
    "metrics.average_precision",
    metrics.average_precision,
    _unit,
    _both,
    specs="x",
    moves=_SORTED,
)
call(
    "metrics.backward_transfer",
    metrics.backward_transfer,
    _accuracies,
    specs="x",
    moves=_SORTED,
)
call("metrics.brier_score", metrics.brier_score, _probs, _labels, specs="x")
call("metrics.calibration_error", metrics.calibration_error, _bins, specs="x")
call("metrics.disagreement", metrics.disagreement, _member_probs, specs="-x")
call("metrics.entropy", metrics.entropy, _probs, specs="x")
call(
    "metrics.expected_calibration_error",
    metrics.expected_calibration_error,
    _probs,
    _labels,
    specs="x",
)
call(
    "metrics.expected_calibration_error: equal mass",
    lambda p, y: metrics.expected_calibration_error(p, y, bins=4, binning="equal-mass"),
    _probs,
    _labels,
    specs="x",
    moves=_SORTED,
)
call(
    "metrics.expected_calibration_error: equal mass, some",
    lambda p, y, where: metrics.expected_calibration_error(
        p, y, bins=4, binning="equal-mass", of="class-wise", where=where
    ),
    _probs,
    _labels,
    _some,
    specs="x",
    moves=_SORTED,
)
call("metrics.expected_entropy", metrics.expected_entropy, _member_probs, specs="-x")
call("metrics.forgetting", metrics.forgetting, _accuracies, specs="x", moves=_SORTED)
call(
    "metrics.forward_transfer",
    metrics.forward_transfer,
    _accuracies,
    of(4),
    specs="x",
    moves="gather exchange",
)
call("metrics.fpr_at_tpr", metrics.fpr_at_tpr, _unit, _both, specs="x", moves=_SORTED)
call("metrics.gaussian_crps", metrics.gaussian_crps, of(16), _unit, of(16), specs="x")
call("metrics.gaussian_nll", metrics.gaussian_nll, of(16), _unit, of(16), specs="x")
call(
    "metrics.interval_coverage",
    lambda low, width, y: metrics.interval_coverage(low, low + width, y),
    of(16),
    _unit,
    of(16),
    specs="x",
)
call(
    "metrics.mixture_crps",
    metrics.mixture_crps,
    of(3, 16),
    _unit_members,
    of(16),
    specs="-x -x x",
)
call(
    "metrics.mixture_nll",
    metrics.mixture_nll,
    of(3, 16),
    _unit_members,
    of(16),
    specs="-x -x x",
)
call(
    "metrics.mutual_information", metrics.mutual_information, _member_probs, specs="-x"
)
call(
    "metrics.negative_log_likelihood",
    metrics.negative_log_likelihood,
    _probs,
    _labels,
    specs="x",
)
call(
    "metrics.negative_log_likelihood: soft labels",
    metrics.negative_log_likelihood,
    _probs,
    _probs,
    specs="x",
)
call("metrics.pooled", metrics.pooled, _bins, specs="x")
call("metrics.reliability", metrics.reliability, _probs, _labels, specs="x")
call(
    "metrics.risk_coverage",
    metrics.risk_coverage,
    _unit,
    _both,
    specs="x",
    moves=_SORTED,
)
call("metrics.temperature", metrics.temperature, _logits, _labels, specs="x")
call("metrics.variation_ratio", metrics.variation_ratio, _member_probs, specs="-x")

# --- recipes ------------------------------------------------------------------------

call(
    "recipes.deconstructing.restart",
    lambda a, b, m: deconstructing.restart(
        a, b, m, kept="constant", removed="freeze_init_zero_mask", key=key()
    ),
    _params,
    _params,
    _mask,
)
call(
    "recipes.deconstructing.restart: packed",
    lambda a, b, m: deconstructing.restart(a, b, m, key=key()),
    _params,
    _params,
    made(lambda m: packing.pack(m), _mask),
    specs="xy xy -",
)
call(
    "recipes.deconstructing.restart: reshuffle",
    lambda a, b, m: deconstructing.restart(
        a, b, m, kept="reshuffle", sign="random", key=key()
    ),
    _params,
    _params,
    _mask,
    moves=_SORTED,
)
call(
    "recipes.deconstructing.scores",
    lambda a, b, m, g: deconstructing.scores(a, b, m, gradients=g, key=key()),
    _params,
    _params,
    _mask,
    _params,
    moves=_SORTED,
)

call("recipes.deep_ensemble.gaussian", deep_ensemble.gaussian, of(16, 4), specs="x")
call(
    "recipes.deep_ensemble.gaussian_loss",
    deep_ensemble.gaussian_loss,
    of(16, 4),
    of(16, 2),
    specs="x",
)
call(
    "recipes.deep_ensemble.init",
    lambda seeds: deep_ensemble.init(
        lambda key: {"w": jax.random.normal(key, (16, 8))},
        keys=jax.vmap(jax.random.key)(seeds),
    ),
    of(_K, dtype="uint32"),
    specs="x",
)
call(
    "recipes.deep_ensemble.mixture",
    deep_ensemble.mixture,
    of(3, 16),
    _unit_members,
    specs="-x",
)
call(
    "recipes.deep_ensemble.order",
    lambda seed: deep_ensemble.order(16, size=4, key=jax.random.key(seed)),
    lambda rng: np.uint32(rng.integers(100)),
)


def _descend(params: Any, x: Any, y: Any, *, key: Any) -> Any:
    coins = jax.random.bernoulli(key, 0.5, (3, 16))

    def step(params: Any, coin: Any) -> tuple[Any, None]:
        slopes = jax.grad(_loss)(params, x * coin[:, None].astype(x.dtype), y)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, slopes), None

    return jax.lax.scan(step, params, coins)[0]


call(
    "recipes.deep_ensemble.train",
    lambda p, x, y: deep_ensemble.train(
        lambda p, x, y, key: _descend(p, x, y, key=key),
        p,
        x,
        y,
        keys=jax.random.split(key(), _K),
    ),
    tree_of(w=(_K, 8, 16), bias=(_K, 16)),
    _x,
    _y,
    specs="x - -",
)

call(
    "recipes.edge_popup.init",
    lambda p: edge_popup.init(p, key=key()),
    _params,
    follows=True,
)
call("recipes.edge_popup.mask", lambda s: edge_popup.mask(s, density=0.3), _scores)
call(
    "recipes.edge_popup.soft_mask",
    lambda s: edge_popup.soft_mask(s, density=0.3),
    _scores,
)
call(
    "recipes.edge_popup.soft_mask: gradient, with cutoffs",
    lambda s, x, y: jax.value_and_grad(
        lambda s: _popped(s, jax.tree.map(jnp.ones_like, s), x, y), has_aux=True
    )(s),
    tree_of(w=(8, 16), bias=None),
    _x,
    _y,
    specs=_DATA,
)


def _popped(scores: Any, weights: Any, x: Any, y: Any) -> Any:
    soft, cutoffs = edge_popup.soft_mask(scores, density=0.3, return_cutoff=True)
    params = {"w": weights["w"] * soft["w"], "bias": jnp.zeros(16)}
    return _loss(params, x, y), cutoffs


_patterns = masks_of(a=(8,), b=(4, 2))
_memory = made(lambda m: hopsupsup.store(hopsupsup.init(m), m), _patterns)
call(
    "recipes.hopsupsup.energy",
    hopsupsup.energy,
    _memory,
    _patterns,
    specs="x",
    moves="gather exchange",
)
call("recipes.hopsupsup.init", hopsupsup.init, _patterns, specs="x")
call(
    "recipes.hopsupsup.recover",
    lambda p, m, x: hopsupsup.recover(
        lambda p, x: jnp.mean((x @ p["b"]) ** 2) + jnp.sum(p["a"]),
        p,
        m,
        x,
        optimizer=optax.sgd(1.0),
    ),
    tree_of(a=(8,), b=(4, 2)),
    _memory,
    of(3, 8, 4),
    specs="- - -x",
)
call(
    "recipes.hopsupsup.store",
    hopsupsup.store,
    _memory,
    _patterns,
    specs="x",
    moves="gather exchange",
)

call(
    "recipes.iterand.redraw",
    lambda p, m: iterand.redraw(
        initializer.uniform(), p, m, probability=0.5, mix=0.5, key=key()
    ),
    _params,
    _mask,
)


def _train(params: Any, mask: Any, *, key: Any) -> tuple[Any, Any]:
    return jax.tree.map(lambda p: p * 0.9, params), algebra.count(mask)


call(
    "recipes.lottery_ticket.random_masks",
    lambda s: lottery_ticket.random_masks(s, mode="layerwise", key=key()),
    _stack,
    specs="-xy",
)
call(
    "recipes.lottery_ticket.retrain",
    lambda p, s: lottery_ticket.retrain(_train, p, s, key=key()),
    _params,
    _stack,
    specs="xy -xy",
)
call(
    "recipes.lottery_ticket.search",
    lambda p: lottery_ticket.search(_train, p, rounds=2, rate=0.3, key=key()),
    _params,
    follows=True,
)

call(
    "recipes.lottery_ticket.search: units",
    lambda p: lottery_ticket.search(
        _train, p, rounds=2, rate=0.3, structure=Units(), key=key()
    ),
    _params,
)

call(
    "recipes.masksembles.at_random",
    lambda seed: masksembles.at_random(16, members=4, key=jax.random.key(seed)),
    of(dtype="uint32"),
)
call(
    "recipes.masksembles.init",
    lambda p, seed: masksembles.init(
        p, where=where.matching("^[ab]$"), key=jax.random.key(seed)
    ),
    _params,
    of(dtype="uint32"),
)
call(
    "recipes.masksembles.masks",
    lambda seed: masksembles.masks(8, key=jax.random.key(seed)),
    of(dtype="uint32"),
)
call(
    "recipes.masksembles.rows",
    masksembles.rows,
    of(4, 8, dtype="bool"),
    of(16, 8),
    specs="- xy",
)

call(
    "recipes.mc_dropout.log_likelihood",
    lambda o, t: mc_dropout.log_likelihood(o, t, precision=2.0),
    of(3, 16),
    of(16),
    specs="-x x",
)
call(
    "recipes.mc_dropout.mask",
    lambda u: mc_dropout.mask(u, rate=0.5, key=key()),
    tree_of(a=(16, 8)),
)
call(
    "recipes.mc_dropout.masks",
    lambda u: mc_dropout.masks(u, rate=0.5, keys=jax.random.split(key(), 4)),
    tree_of(a=(16, 8)),
)
call(
    "recipes.mc_dropout.moments",
    lambda o: mc_dropout.moments(o, precision=2.0),
    of(3, 16),
    specs="-x",
)

_vectors = tree_of(a=(_K, 16, 8), b=(_K, 16, 8), c=(_K, 24, 8), bias=(_K, 8))
_one = tree_of(**_SHAPES, bias=(8,))
_all_masks = masks_of(_K, **_SHAPES, bias=(8,))
# Of groups of four, and some whose shards hold no whole ones.
_fours = tree_of(a=(16, 8), b=(32, 8), bias=(8,))
_fours_prior = masks_of(a=(16, 8), b=(32, 8), bias=None)


def _mixed(params: Any, logits: Any) -> Any:
    return maskllm.soft_mask(logits, params, progress=0.5, key=key())


def _begun(params: Any, prior: Any = None, **how: Any) -> Any:
    return maskllm.init(params, prior, key=key(), **how)


_fours_logits = made(_begun, _fours)
# The counters of draws may move, one for each row: drawn axes are in another order.
call("recipes.maskllm.init", _begun, _fours, moves="exchange")
call("recipes.maskllm.init: a prior", _begun, _fours, _fours_prior, moves="exchange")
call(
    "recipes.maskllm.init: across shards",
    _begun,
    _params,
    moves="gather exchange",
)
call(
    "recipes.maskllm.mask",
    lambda p, logits: maskllm.mask(logits, p),
    _fours,
    _fours_logits,
    specs="xy --yx-",
    follows=True,
)
call(
    "recipes.maskllm.mask: layers",
    lambda p: maskllm.mask(_begun(p, where=_LAYERED), p, where=_LAYERED),
    _layers,
    follows=True,
    specs="-xy",
    moves="gather exchange",
)
call(
    "recipes.maskllm.soft_mask",
    _mixed,
    _fours,
    _fours_logits,
    specs="xy --yx-",
    follows=True,
    moves="exchange",
)
call(
    "recipes.maskllm.soft_mask: gradient",
    lambda p, logits: jax.grad(lambda s: maskllm.squared_norm(p, _mixed(p, s)))(logits),
    _fours,
    _fours_logits,
    specs="xy --yx-",
    moves="exchange",
)
call(
    "recipes.maskllm.soft_mask: across shards",
    lambda p: _mixed(p, _begun(p)),
    _params,
    moves="gather exchange",
)
call("recipes.maskllm.squared_norm", maskllm.squared_norm, _params, _scores)
_tall = functools.partial(merging.tall_masks, threshold=0.4)

call("recipes.merging.consensus", merging.consensus, _stack, specs="-xy")
call("recipes.merging.consensus: by tasks", merging.consensus, _stack, specs="x-y")
call("recipes.merging.consensus: packed", merging.consensus, _packed_stack, specs="-xy")
call(
    "recipes.merging.dare",
    lambda v, d: merging.dare(v, density=d, key=key()),
    _vectors,
    _density,
    specs="-xy -",
    follows=True,
)
call("recipes.merging.mean", merging.mean, _vectors, specs="-xy")
call("recipes.merging.mean: masks", merging.mean, _vectors, _all_masks, specs="-xy")
call(
    "recipes.merging.mean: masks, by tasks",
    merging.mean,
    _vectors,
    _all_masks,
    specs="x-y",
)
call(
    "recipes.merging.network",
    lambda p, v, m, s: merging.network(p, v, m, scale=s),
    _params,
    _one,
    _mask,
    _density,
    specs="xy xy xy -",
    follows=True,
)
call("recipes.merging.network: no mask", merging.network, _params, _one, follows=True)
call("recipes.merging.network: packed", merging.network, _long, _long, _packed)
call(
    "recipes.merging.tall_masks",
    _tall,
    _vectors,
    _one,
    specs="-xy xy",
    follows=True,
)
call(
    "recipes.merging.tall_masks: by tasks",
    lambda v, o, t: merging.tall_masks(v, o, threshold=jnp.abs(t)),
    _vectors,
    _one,
    of(_K),
    specs="x-y -y x",
    follows=True,
)
call(
    "recipes.merging.task_vectors",
    merging.task_vectors,
    _params,
    _vectors,
    specs="xy -xy",
    follows=True,
)
call(
    "recipes.merging.task_vectors: by tasks",
    merging.task_vectors,
    _params,
    _vectors,
    specs="-y x-y",
    follows=True,
)
call("recipes.merging.ties", merging.ties, _vectors, specs="-xy")
call(
    "recipes.merging.ties: by tasks",
    merging.ties,
    _vectors,
    specs="x-y",
    moves="gather",
)
call(
    "recipes.merging.ties_masks",
    lambda v, d: merging.ties_masks(v, density=d, scope="leaf"),
    _vectors,
    _density,
    specs="-xy -",
)
call("recipes.merging.total", merging.total, _vectors, specs="-xy")
call("recipes.merging.total: by tasks", merging.total, _vectors, of(_K), specs="x-y x")

_thresholds = tree_of(a=(), b=(), c=(), bias=None)
call(
    "recipes.meta_ticket.adapt",
    lambda p, m, x, y: meta_ticket.adapt(
        lambda p, x, y: jnp.mean((x @ p["w"] - y) ** 2),
        p,
        m,
        x,
        y,
        inner_learning_rates=0.1,
        steps=2,
    ),
    tree_of(w=(8, 16)),
    masks_of(w=(8, 16)),
    _x,
    _y,
    specs="-y -y x",
)
call(
    "recipes.meta_ticket.init",
    lambda p: meta_ticket.init(
        p, density=0.5, where=where.matching("^[ab]$"), key=key()
    ),
    _params,
)
call("recipes.meta_ticket.mask", meta_ticket.mask, _scores, _thresholds)
call(
    "recipes.meta_ticket.mean_over_tasks",
    lambda p, x, y: meta_ticket.mean_over_tasks(jax.grad(_loss), p, x, y),
    _net,
    of(8, 16, 8),
    of(8, 16, 16),
    specs="- x x",
)
call("recipes.meta_ticket.soft_mask", meta_ticket.soft_mask, _scores, _thresholds)

_HEAD = where.matching("c")


def _packnet(params: Any) -> Any:
    return packnet.init(params, capacity=4, head=_HEAD)


def _learned(params: Any) -> Any:
    return packnet.commit(packnet.begin(_packnet(params)), params)


call(
    "recipes.packnet.allotment",
    lambda p: packnet.allotment(_packnet(p), rates=(0.5, 0.75, 0.5)),
    _params,
)
call(
    "recipes.packnet.begin",
    lambda p, f: packnet.begin(_learned(p), f),
    _params,
    _params,
    follows=True,
)
call(
    "recipes.packnet.commit",
    lambda p, f, q: packnet.commit(packnet.begin(_learned(p), f), q),
    _params,
    _params,
    _params,
    follows=True,
)
call("recipes.packnet.init", _packnet, _params, follows=True)
call("recipes.packnet.mask", lambda p: packnet.mask(_learned(p), 0), _params)
call("recipes.packnet.params_of", lambda p: packnet.params_of(_learned(p), 0), _params)
call(
    "recipes.packnet.prune",
    lambda p, f, q: packnet.prune(packnet.begin(_packnet(p), f), q, rate=0.5),
    _params,
    _params,
    _params,
    follows=True,
)

_pruned = made(lambda p: pacnet.prune(p, density=0.5), _params)
call(
    "recipes.pacnet.allocate",
    lambda s, p: pacnet.allocate(s, p, start="source"),
    _pruned,
    _params,
)
call(
    "recipes.pacnet.calibrate",
    lambda s, p, q: pacnet.calibrate(pacnet.allocate(s, p), q),
    _pruned,
    _params,
    _params,
)
call("recipes.pacnet.l2_sp", pacnet.l2_sp, _params, _params, _mask)
call("recipes.pacnet.prune", lambda p: pacnet.prune(p, density=0.5), _params)
call(
    "recipes.pacnet.source",
    lambda s, p: pacnet.source(pacnet.allocate(s, p)),
    _pruned,
    _params,
)
call(
    "recipes.pacnet.target",
    lambda s, p, q: pacnet.target(pacnet.calibrate(pacnet.allocate(s, p), q)),
    _pruned,
    _params,
    _params,
)


def _messages(params: Any, stack: Any) -> fedpm.Message:
    """What clients with these masks send in the first round."""
    packed, network = jax.vmap(packing.pack)(stack), fedpm.init(params).network
    network = jnp.broadcast_to(network, (_K, 2))
    return fedpm.Message(packed, jnp.zeros(_K, jnp.int32), network)


def _round(params: Any, stack: Any, flags: Any) -> fedpm.FedPMState:
    messages = _messages(params, stack)
    how = {"participates": flags, "prior": 1.5}
    return fedpm.aggregate(fedpm.init(params), messages, **how)


_votes = masks_of(_K, **_LONG, bias=None)
call(
    "recipes.fedpm.aggregate",
    _round,
    _long,
    _votes,
    _flags,
    specs="- x",
    moves="gather exchange",
)
call(
    "recipes.fedpm.aggregate: a large network",
    _round,
    _long,
    _votes,
    _flags,
    specs="xy -xy -",
    follows=True,
)
_chances = made(lambda s: jax.tree.map(jax.nn.sigmoid, s), _scores)
call("recipes.fedpm.entropy", fedpm.entropy, _chances)
call("recipes.fedpm.init", fedpm.init, _long, follows=True)
call(
    "recipes.fedpm.mask",
    lambda p: fedpm.mask(fedpm.init(p), key=key()),
    _long,
    follows=True,
)
call(
    "recipes.fedpm.message",
    lambda p, s: fedpm.message(fedpm.init(p), p, s, key=key()),
    _long,
    _long_scores,
)
call("recipes.fedpm.scores", lambda p: fedpm.scores(fedpm.init(p)), _long, follows=True)
call("recipes.supermask.density", supermask.density, _scores, _params)
call("recipes.supermask.init", supermask.init, _params, follows=True)
call("recipes.supermask.mask", lambda s: supermask.mask(s, key=key()), _scores)


def _grams(*shape: int) -> Callable[[Rng], np.ndarray]:
    """Gram matrices [..., d, d] of 3 d rows each."""

    def draw(rng: Rng) -> np.ndarray:
        x = rng.normal(size=(*shape[:-1], 3 * shape[-1], shape[-1]))
        return np.float32(np.swapaxes(x, -1, -2) @ x)

    return draw


def _known(grams: Any, axes: Any = None) -> Any:
    """Statistics of kernels with 8 outputs."""
    axes = axes or where.Axes(inputs=(0,), outputs=(1,))
    return {
        n: None if g is None else Statistics(g, axes, (*g.shape[:-1], 8))
        for n, g in grams.items()
    }


def _sparsegpt(p: Any, g: Any, **how: Any) -> Any:
    return sparsegpt.prune(p, _known({"bias": None, **g}), **how)


def _pruned_layers(p: Any, g: Any) -> Any:
    axes = where.Axes(stack=(0,), inputs=(1,), outputs=(2,))
    return sparsegpt.prune(p, _known(g, axes), density=0.5)


_kernels = tree_of(a=(16, 8), b=(16, 8), bias=(8,))
_met = lambda rng: {"a": _grams(16)(rng), "b": _grams(16)(rng)}  # noqa: E731
call(
    "recipes.sparsegpt.prune",
    lambda p, g: _sparsegpt(p, g, density=0.5, block=6),
    _kernels,
    _met,
    specs="-x -",
    follows=True,
)
call(
    "recipes.sparsegpt.prune: each output, traced",
    lambda p, g, d: _sparsegpt(p, g, density=d, scope="output", block=6),
    _kernels,
    _met,
    _density,
    specs="-x - -",
    follows=True,
)
call(
    "recipes.sparsegpt.prune: N:M",
    lambda p, g: _sparsegpt(p, g, structure=NofM(2, 4)),
    _kernels,
    _met,
    specs="-x -",
    follows=True,
)
call(
    "recipes.sparsegpt.prune: sharded by inputs",
    lambda p, g: _sparsegpt(p, g, density=0.5),
    _kernels,
    _met,
    specs="xy x",
    moves="gather exchange",
)
call(
    "recipes.sparsegpt.prune: layers, sharded by layers",
    _pruned_layers,
    lambda rng: {"w": of(4, 16, 8)(rng)},
    lambda rng: {"w": _grams(4, 16)(rng)},
    specs="x-y x",
    follows=True,
)
call(
    "recipes.sparsegpt.repair",
    lambda p, m, g: sparsegpt.repair(p, m, _known({"bias": None, **g})),
    _kernels,
    masks_of(a=(16, 8), b=(16, 8), bias=None),
    _met,
    specs="-x -x -",
    follows=True,
)
call(
    "recipes.sparsegpt.repair: packed",
    lambda p, m, g: sparsegpt.repair(p, m, _known({"bias": None, **g})),
    _kernels,
    made(lambda m: packing.pack(m), masks_of(a=(16, 8), b=(16, 8), bias=None)),
    _met,
    specs="-x - -",
    follows=True,
)

call(
    "recipes.supermask.soft_mask", lambda s: supermask.soft_mask(s, key=key()), _scores
)

call("recipes.supsup.init", lambda p: supsup.init(p, key=key()), _params)
call(
    "recipes.supsup.learn",
    lambda s: supsup.learn(
        lambda m, *, key: (m, algebra.count(m)),
        bank.from_stack(s, learned=jnp.int32(0)),
        s,
        key=key(),
    ),
    _stack,
    specs="x",
    moves="gather exchange",  # of bits
)
call("recipes.supsup.mask", supsup.mask, _scores)
call("recipes.supsup.soft_mask", supsup.soft_mask, _scores)

_stream = made(
    lambda p, seed: supsup_stream.init(p, capacity=4, key=jax.random.key(seed)),
    tree_of(w=(8, 16)),
    of(dtype="uint32"),
)
call(
    "recipes.supsup_stream.allocate",
    lambda p, s, x: supsup_stream.allocate(_energy, p, s, x),
    _net,
    made(
        lambda p, seed: supsup_stream.init(p, capacity=4, key=jax.random.key(seed)),
        _net,
        of(dtype="uint32"),
    ),
    _x,
    specs="- - x",
)
call(
    "recipes.supsup_stream.init",
    lambda p: supsup_stream.init(p, capacity=4, key=key()),
    _long,
)
call(
    "recipes.supsup_stream.masks",
    supsup_stream.masks,
    _stream,
    specs="x",
    moves="gather exchange",  # of bits
)
call("recipes.supsup_stream.soft_mask", supsup_stream.soft_mask, _scores)


def _wsn(params: Any) -> Any:
    return wsn.init(params, capacity=4, head=_HEAD, key=key())


def _won(params: Any) -> Any:
    training = wsn.begin(_wsn(params))
    mask = wsn.mask(training.scores, density=0.5)
    return wsn.commit(training, params, training.scores, mask)


call(
    "recipes.wsn.begin",
    lambda p, f: wsn.begin(_won(p), f),
    _long,
    _long,
    follows=True,
)
call(
    "recipes.wsn.commit",
    lambda p, q, s, m: wsn.commit(wsn.begin(_won(p)), q, {**s, "c": None}, m),
    _long,
    _long,
    _long_scores,
    masks_of(**{**_LONG, "c": None}, bias=None),
    follows=True,
)
call("recipes.wsn.init", _wsn, _long, follows=True)
call("recipes.wsn.mask", lambda s: wsn.mask(s, density=0.3), _scores)
call("recipes.wsn.params_of", lambda p: wsn.params_of(_won(p), 0), _long)
call(
    "recipes.wsn.params_of: few words",  # whole on every device, so `commit` gathers
    lambda p: wsn.params_of(_won(p), 0),
    _params,
    moves="gather",
)
call(
    "recipes.wsn.soft_mask",
    lambda s: wsn.soft_mask(s, density=0.3),
    _scores,
)
call("recipes.wsn.union", lambda p: wsn.union(_won(p)), _long)


# --- theory -------------------------------------------------------------------------

call(
    "theory.gadget.choose",
    lambda v, u, w: gadget.choose(v, u, w, construction="greedy"),
    of(8, 16),
    of(8, 16, 4),
    of(8, 4),
    specs="x",
    moves="gather exchange",
)
call(
    "theory.neuron.error",
    neuron.error,
    of(8, dtype="bool"),
    of(16, 8),
    of(16),
    specs="- x x",
    moves="gather exchange",
)
call(
    "theory.neuron.greedy",
    lambda o, y: neuron.greedy(o, y, budget=3),
    of(16, 8),
    of(16),
    specs="x",
    moves="gather exchange",
)
call(
    "theory.neuron.learned",
    lambda o, y: neuron.learned(
        o, y, budget=3, optimizer=optax.sgd(0.1), steps=3, key=key()
    ),
    of(16, 8),
    of(16),
    specs="x",
    moves="gather exchange",
)
call(
    "theory.neuron.ridge",
    lambda o, y: neuron.ridge(o, y, penalty=0.1),
    of(16, 8),
    of(16),
    specs="x",
    moves="gather exchange",
)
call(
    "theory.neuron.scale",
    neuron.scale,
    of(8, dtype="bool"),
    of(16, 8),
    of(16),
    specs="- x x",
    moves="gather exchange",
)


def _wide(rng):
    return [{"inner": of(8, 16)(rng), "outer": of(8, 16, 4)(rng)}]


call(
    "theory.strong_ticket.dense",
    lambda wide: strong_ticket.dense(wide, masking.everything(wide), key=key()),
    _wide,
    specs="x",
    moves="gather exchange",
)
call(
    "theory.strong_ticket.forward",
    strong_ticket.forward,
    lambda rng: [{"kernel": of(8, 16)(rng)}, {"kernel": of(16, 4)(rng)}],
    _x,
    specs="- x",
)
call(
    "theory.subset_sum.greedy",
    lambda t, c: subset_sum.greedy(t, c, bins=8),
    of(8, 4),
    of(8, 16),
    specs="x",
    moves="gather exchange",
)

# --- what is no function of arrays --------------------------------------------------

EXCLUDED = {
    "bank.capacity": "a Python number, from a shape",
    "calibration.memory": "Python numbers, from shapes",
    "compaction.groups": "names and numbers come out, from shapes",
    "compaction.plan": "a plan comes out, on the host, of shapes and a concrete mask",
    "metrics.bits_per_task": "a Python number, from shapes and dtypes",
    "optim.check": "a complaint, on the host: tests/test_optim_check.py",
    "recipes.masksembles.in_chunks": "no array goes in",
    "recipes.masksembles.plan": "Python numbers go in and out",
    "recipes.mc_dropout.precision": "Python numbers go in and out",
    "recipes.mc_dropout.weight_decay": "Python numbers go in and out",
    "report.flops": "counts from shapes, on the host",
    "report.overlaps": "NumPy, on the host",
    "report.plot_density": "draws, on the host",
    "report.plot_history": "draws, on the host",
    "report.plot_overlap": "draws, on the host",
    "report.plot_reliability": "draws, on the host",
    "report.plot_risk_coverage": "draws, on the host",
    "report.table": "a string, on the host",
    "stacking.size": "a Python number, from a shape",
    "storage.append": "files: tests/test_storage.py",
    "storage.info": "files: tests/test_storage.py",
    "storage.load": "files: tests/test_storage.py",
    "storage.load_params": "files: tests/test_storage_params.py",
    "storage.save": "files: tests/test_storage.py",
    "storage.save_params": "files: tests/test_storage_params.py",
    "theory.gadget.beyond": "exact sums in NumPy, on the host",
    "theory.gadget.block_size": "Python numbers go in and out",
    "theory.gadget.gains": "exact sums in NumPy, on the host",
    "theory.strong_ticket.bound": "Python numbers come out",
    "theory.strong_ticket.init": "no array goes in",
    "theory.strong_ticket.predict": "takes a `Ticket`, which is made on the host",
    "theory.strong_ticket.prune": "an exact search in NumPy, on the host",
    "theory.subset_sum.nearest": "an exact search in NumPy, on the host",
    "theory.subset_sum.smallest": "an exact search in NumPy, on the host",
    "where.matching": "a predicate",
    "where.ndim_at_least": "a predicate",
    "where.traced": "a predicate",
}
