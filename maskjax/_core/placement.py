"""Where arrays are: how constants, loops and reads follow the data they are for.

On a mesh of Explicit axes an array's type says how it is sharded. Inside `shard_map` it
says over which axes its values vary. Elsewhere a type says nothing, and the compiler
shards: there `follow` asks it to shard one array as another, and the other functions
change nothing.
"""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray, Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from maskjax._core.trees import Array

Names = str | tuple[str, ...] | None  # of the mesh axes that one axis is sharded over


def vary_like(x: Any, *others: Any) -> Any:
    """The same tree of arrays, which inside `shard_map` varies wherever `others` do.

    The carry of a loop has to have one type from the first round on.
    """
    wanted = frozenset().union(*(varying(leaf) for leaf in jax.tree.leaves(others)))

    def cast(leaf: Any) -> Any:
        missing = wanted - varying(leaf)
        return lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(cast, x) if wanted else x


def varying(x: Any) -> frozenset[str]:
    """The mesh axes over which, inside `shard_map`, the values of an array vary."""
    kind = jax.typeof(x)
    if hasattr(kind, "vma"):
        return kind.vma
    return getattr(getattr(kind, "mat", None), "varying", frozenset())


def explicit(x: Any) -> bool:
    """Whether the type of an array says how it is sharded."""
    return AxisType.Explicit in sharding(x).mesh.axis_types


def spec_of(x: Any) -> tuple[Names, ...]:
    """The mesh axes that each axis is sharded over, as far as the type says so."""
    spec = tuple(sharding(x).spec) if explicit(x) else ()
    return (*spec, *[None] * (jax.typeof(x).ndim - len(spec)))


def names_of(parts: Any) -> tuple[str, ...]:
    """The mesh axes in a part of a spec, one after another."""
    listed = [p if isinstance(p, tuple) else (p,) for p in parts if p is not None]
    return tuple(name for part in listed for name in part)


def shards(x: Any, axis: int) -> int:
    """How many parts an axis is cut into, as far as that is known."""
    names = names_of(known_spec(x)[axis : axis + 1])
    sizes = known(x).mesh.shape if names else {}  # type: ignore[union-attr]
    return math.prod(sizes[name] for name in names)


def tells(*leaves: Any) -> bool:
    """Whether it is known how arrays are sharded: types say so, or all have values."""
    values = not any(isinstance(leaf, Tracer) for leaf in leaves)
    return values or any(explicit(leaf) for leaf in leaves)


def groups(*leaves: Any) -> int:
    """Into how many equal groups of rows every even sharding of the rows falls.

    Where it is known how arrays are sharded, that is the number of shards. Elsewhere
    the rows may be on as many devices as there are.
    """
    if tells(*leaves):
        return max(shards(leaf, 0) for leaf in leaves)
    mesh = sharding(leaves[0]).mesh
    devices = jax.device_count()
    if not mesh.empty:
        kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        devices = math.prod(size for size, kind in kinds if kind == AxisType.Auto)
    return math.gcd(leaves[0].shape[0], devices)


def place(x: Array, spec: Any, *, like: Any = None) -> Array:
    """The array with another spec, on its own mesh or on that of another array.

    Where types say nothing about shardings it is returned as it is.
    """
    like = x if like is None else like
    if not explicit(like) or explicit(x) and spec_of(x) == tuple(spec):
        return x
    values = not isinstance(x, Tracer) and not isinstance(like, Tracer)
    mesh = like.sharding.mesh if values else sharding(like).mesh
    move = jax.device_put if values else jax.sharding.reshard
    return move(x, NamedSharding(mesh, PartitionSpec(*spec)))


def spec_for(shape: Sequence[int], like: Any) -> list[Names]:
    """The spec of another array for this shape: axes of another length are whole.

    An axis of 1 is whole too: entries along the other array's axis share it.
    """
    pairs = zip(shape, like.shape, spec_of(like), strict=True)
    return [names if n == other and n > 1 else None for n, other, names in pairs]


def fitted(where: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """A sharding for another shape: axes that its mesh axes do not divide are whole."""
    sizes = where.mesh.shape
    parts = [*where.spec, *[None] * (len(shape) - len(where.spec))]
    new = [
        None if n % math.prod(sizes.get(name, 1) for name in names_of([part])) else part
        for n, part in zip(shape, parts, strict=True)
    ]
    return where if new == parts else where.update(spec=PartitionSpec(*new))


def typed(shape: Sequence[int], like: Any) -> Any:
    """The type of an array of this shape, sharded and varying as another one is.

    Axes that mesh axes do not divide are whole.

    Args:
        shape: The shape.
        like: An array, or what stands for one: a type or `jax.ShapeDtypeStruct`.
    """
    kind = like if isinstance(like, ShapedArray) else jax.typeof(like)
    where = fitted(kind.sharding, shape)
    return kind.update(shape=tuple(shape), sharding=where)


def cut_as(x: Array, spec: Sequence[Names], *, like: Array) -> Array:
    """The array with axes that are whole cut as a spec says, where they can be.

    Every device has what it keeps: nothing travels.

    Args:
        x: The array.
        spec: The mesh axes for each of its axes.
        like: An array on the mesh that is meant.
    """
    if not explicit(like):
        return x
    new: list[Names] = list(spec_of(x))
    sizes = sharding(like).mesh.shape
    for axis, part in enumerate(spec):
        names, taken = names_of([part]), names_of(new)
        even = not x.shape[axis] % math.prod(sizes[name] for name in names)
        if new[axis] is None and even and not set(names) & set(taken):
            new[axis] = part
    return place(x, new, like=like)


def alike(x: Array, like: Array) -> Array:
    """The array broadcast to another one and sharded as that is, if types say so."""
    if not explicit(like) or spec_of(x) == spec_of(like):
        return x
    return place(jnp.broadcast_to(x, like.shape), spec_of(like), like=like)


def gathered(x: Array, *axes: int) -> Array:
    """The array with some axes whole on every device, as far as types say so."""
    every = {axis % jnp.ndim(x) for axis in axes}
    spec = [None if a in every else part for a, part in enumerate(spec_of(x))]
    return place(x, spec)


def cut(x: Array, axis: int, size: int) -> Array:
    """The array with an axis cut into [parts, size]."""
    shapes = [(n,) for n in x.shape]
    return split(x, *shapes[:axis], (x.shape[axis] // size, size), *shapes[axis + 1 :])


def split(x: Array, *shapes: Sequence[int]) -> Array:
    """The array with a shape in place of each axis.

    If types say how it is sharded, an axis stays so where its shards hold whole parts,
    and is gathered where they do not.
    """
    shape = [n for part in shapes for n in part]
    if not explicit(x):
        return x.reshape(shape)
    spec: list[Names] = []
    for axis, part in enumerate(shapes):
        first = next((i for i, n in enumerate(part) if n > 1), 0)
        if len(part) != 1 and (not part or part[first] % shards(x, axis)):
            x = gathered(x, axis)
        names = spec_of(x)[axis]
        spec += [names if i == first else None for i in range(len(part))]
    return _reshaped(x, shape, spec)


def merge(x: Array, *counts: int) -> Array:
    """The array with so many of its axes at a time as one, row-major; 0 adds an axis.

    If types say how it is sharded, the first of those axes stays so, and the others are
    gathered.
    """
    ends = list(itertools.accumulate(counts, initial=0))
    parts = [range(*pair) for pair in itertools.pairwise(ends)]
    shape = [math.prod(x.shape[i] for i in part) for part in parts]
    if not explicit(x):
        return x.reshape(shape)
    firsts = [next((i for i in part if x.shape[i] > 1), part[-1:]) for part in parts]
    x = gathered(x, *(i for i in range(x.ndim) if i not in firsts))
    names = spec_of(x)
    return _reshaped(
        x, shape, [names[i] if isinstance(i, int) else None for i in firsts]
    )


def _reshaped(x: Array, shape: Sequence[int], spec: Sequence[Names]) -> Array:
    where = NamedSharding(sharding(x).mesh, PartitionSpec(*spec))
    return jnp.reshape(x, shape, out_sharding=where)


def repeated(x: Array, axis: int, size: int) -> Array:
    """The array with each entry along an axis repeated, where it is."""
    where = None
    if explicit(x):
        where = NamedSharding(sharding(x).mesh, PartitionSpec(*spec_of(x)))
    return jnp.repeat(x, size, axis, out_sharding=where)


def whole(x: Any) -> Any:
    """A tree of arrays, whole on every device, as far as types say so."""
    return jax.tree.map(lambda leaf: place(leaf, (None,) * jnp.ndim(leaf)), x)


def lead(x: Array, like: Array) -> Array:
    """[K] with axes of 1 behind it, up to the rank of another array."""
    return x.reshape(x.shape + (1,) * (jax.typeof(like).ndim - x.ndim))


def zeros(shape: Any, dtype: Any, like: Any, *, spec: Any = None) -> Array:
    """Zeros on the devices of another array, if it is known where that is.

    Args:
        shape: The shape of the result.
        dtype: Its dtype.
        like: The other array.
        spec: How to shard the result over its mesh; `None` for its own spec.
    """
    where = known(like)
    if isinstance(where, NamedSharding) and spec is not None:
        where = NamedSharding(where.mesh, PartitionSpec(*spec))
    if isinstance(like, Tracer):
        if isinstance(where, NamedSharding) and not names_of(where.spec):
            where = None  # the type of any constant
        made = jnp.zeros(shape, dtype, out_sharding=where)  # type: ignore[arg-type]
        made = vary_like(made, like)
        return follow(made, like) if spec is None else made
    return jnp.zeros(shape, dtype, device=where)


def made(
    function: Callable[..., Array], like: Any, *args: Any, static: tuple[Any, ...] = ()
) -> Array:
    """What a function makes, on the devices of an array of the same shape.

    Every device makes its own part: nothing is whole anywhere.

    Args:
        function: `(*args, *static) -> array`. It computes the same wherever it runs, as
            random draws do.
        like: The other array.
        *args: Keys and other small arrays.
        static: Values that are not arrays, preferably hashable.
    """
    where: Any = known(like)
    if where and not isinstance(like, Tracer):
        hashable = all(isinstance(value, Hashable) for value in static)
        program = _program if hashable else _program.__wrapped__
        return program(function, static, where)(*args)
    if not where or not names_of(where.spec):
        return follow(vary_like(function(*args, *static), like), like)
    spread = jax.sharding.auto_axes(
        lambda *args: function(*args, *static), out_sharding=where
    )
    return spread(*args)  # type: ignore[return-value]


@functools.lru_cache(maxsize=256)
def _program(
    function: Callable[..., Array], static: tuple[Any, ...], where: Any
) -> Any:
    return jax.jit(lambda *args: function(*args, *static), out_shardings=where)


def uniform(key: Array, like: Any) -> Array:
    """A draw in [0, 1) for each entry of an array, float32 and sharded as that is."""
    return made(jax.random.uniform, like, key, static=(tuple(like.shape), jnp.float32))


def ones(like: Any) -> Array:
    """True for each entry of an array, sharded as that is."""
    if isinstance(like, jax.Array):  # varies as it does
        return follow(jnp.ones_like(like, dtype=bool), like)
    return jnp.ones(like.shape, bool)


def left_to_compiler(x: Any) -> bool:
    """Whether only the compiler knows how an array is sharded."""
    if not isinstance(x, Tracer) or jax.device_count() == 1:
        return False
    kinds = sharding(x).mesh.axis_types
    return AxisType.Explicit not in kinds and AxisType.Manual not in kinds


def follow(x: Array, like: Any) -> Array:
    """An array that depends on no other, which the compiler is to shard as another one.

    Without it JAX drops the other one from a program, and with it the devices. The
    other one is not read. `x` may have more axes, in front; other shapes don't follow.
    """
    lead = jnp.ndim(x) - jnp.ndim(like)
    if not left_to_compiler(like) or jnp.shape(x)[lead:] != jnp.shape(like):
        return x
    # Imported here, as few programs need it and `jax.extend` is slow to import.
    from maskjax._core.sharded import sharded_as

    return sharded_as(x, jnp.broadcast_to(lax.stop_gradient(like), x.shape))


def known(x: Any) -> Sharding | None:
    """How an array is sharded, if its type says so, or if it was put somewhere."""
    if isinstance(x, Tracer):
        return sharding(x) if explicit(x) else None
    return x.sharding if getattr(x, "committed", False) else None


def known_spec(x: Any) -> tuple[Names, ...]:
    """The spec in `known`."""
    where: Any = known(x)
    spec = tuple(where.spec) if isinstance(where, NamedSharding) else ()
    return (*spec, *[None] * (len(x.shape) - len(spec)))


def sharding(x: Any) -> Any:
    """The sharding in an array's type."""
    return jax.typeof(x).sharding


def clear(tree: Any, stack: Any) -> Any:
    """A tree whose arrays are gathered from mesh axes that hold members of a stack.

    One mesh axis can't hold both, where every member meets the whole tree. That is as
    far as types tell.
    """
    firsts = [spec_of(leaf)[:1] for leaf in jax.tree.leaves(stack)]
    taken = {name for part in firsts for name in names_of(part)}

    def of_leaf(x: Array) -> Array:
        if not explicit(x):
            return x
        parts = [None if taken & set(names_of([p])) else p for p in spec_of(x)]
        return place(x, parts)

    return jax.tree.map(of_leaf, tree) if taken else tree


def clear_of(x: Array, others: Any) -> Array:
    """The array with whole rows, if others are sharded over the mesh axes of its rows.

    One mesh axis can't hold rows of both where every row meets all of the others.
    """
    taken = {n for leaf in jax.tree.leaves(others) for n in names_of(known_spec(leaf))}
    if taken.isdisjoint(names_of(known_spec(x)[:1])):
        return x
    spec = (None, *known_spec(x)[1:])
    if isinstance(x, Tracer):
        return place(x, spec)
    where: Any = known(x)
    return jax.device_put(x, NamedSharding(where.mesh, PartitionSpec(*spec)))
