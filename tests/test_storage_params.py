"""Masked parameters that are saved come back to the bit, or a clear error."""

import json
import math
import os
import re
import struct

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import nnx

import maskjax
from maskjax import packing, score, select, storage, where
from maskjax.packing import PackedMask
from maskjax.storage import StorageError, _sparse, _writing
from maskjax.structure import Entries, Group, Groups, Member, NofM, Units
from tests import trees
from tests.reference import packing as reference

SHAPES = {
    "scalar": (),
    "empty": (0, 3),
    "flat": (33,),
    "kernel": (6, 8),
    "conv": (3, 3, 2, 4),
}
NARROW = {"int4": 16, "uint4": 16, "int2": 4, "uint2": 4, "float4_e2m1fn": 16}
DTYPES = sorted(_sparse._CODES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def raises(pattern, kind=StorageError):
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


def values(shape, dtype, *, seed=0):
    """Any bits that the dtype has: each nan, both zeros, subnormal numbers."""
    rng, dtype = np.random.default_rng(seed), jnp.dtype(dtype)
    if dtype.name in {"bool", *NARROW}:
        bits = rng.integers(NARROW.get(dtype.name, 2), size=shape)
        raw = np.asarray(bits, np.uint8)
        whole = dtype.name.startswith(("int", "uint"))
        return raw.astype(dtype) if whole else raw.view(dtype)
    raw = rng.integers(256, size=(*shape, dtype.itemsize), dtype=np.uint8)
    return np.asarray(raw, order="C").view(dtype).reshape(shape)


def random_bool(shape, density, *, seed=0):
    return np.asarray(np.random.default_rng(seed).random(shape) < density)


def shared(shape, density):
    """A mask whose entries share a decision along every other axis."""
    return random_bool([1 if i % 2 else n for i, n in enumerate(shape)], density)


def packed(keep):
    return PackedMask(reference.pack(keep), keep.shape)


MASKS = {
    "boolean": random_bool,
    "packed": lambda *how: packed(random_bool(*how)),
    "shared": shared,
    "shared, packed": lambda *how: packed(shared(*how)),
    "on devices": lambda *how: jax.device_put(random_bool(*how)),
    "plain": lambda shape, density: density >= 0.3,
    "none": lambda shape, density: None,
}


def boolean(mask, shape):
    """A leaf of a mask as NumPy's booleans, without the library; `None` stays."""
    if isinstance(mask, bool):
        return np.full((1,) * len(shape), mask)
    if isinstance(mask, PackedMask):
        return reference.unpack(np.asarray(mask.bits), mask.shape)
    return None if mask is None else np.asarray(mask)


def octets(x):
    return np.asarray(x).tobytes()


def assert_masked(loaded, params, mask):
    """What was loaded is the masked parameters to the bit, and the mask, packed."""
    found, keep = loaded
    assert jax.tree.structure(found) == jax.tree.structure(params)
    leaves, treedef = jax.tree.flatten(params)
    rows = zip(
        leaves,
        jax.tree.leaves(found),
        treedef.flatten_up_to(mask),
        treedef.flatten_up_to(keep),
        strict=True,
    )
    for value, back, own, kept in rows:
        value, own = np.asarray(value), boolean(own, value.shape)
        assert isinstance(back, jax.Array)
        assert back.dtype == value.dtype
        assert back.shape == value.shape
        if own is None:
            assert kept is None
            assert octets(back) == octets(value)
            continue
        size, raw = value.dtype.itemsize, f"V{value.dtype.itemsize}"
        whole = np.broadcast_to(own, value.shape)
        assert octets(np.asarray(back).view(raw)[whole]) == octets(value[whole])
        assert octets(np.asarray(back)[~whole]) == bytes(size * int((~whole).sum()))
        assert isinstance(kept.bits, jax.Array)
        trees.assert_same(kept, packed(own))


# There and back.


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_mask_and_shape_comes_back_to_the_bit(dtype, density, path, x64):
    params = {name: values(shape, dtype) for name, shape in SHAPES.items()}
    params = {kind: params for kind in MASKS}
    mask = {
        kind: {name: draw(shape, density) for name, shape in SHAPES.items()}
        for kind, draw in MASKS.items()
    }
    storage.save_params(path, params, mask)
    assert_masked(storage.load_params(path), params, mask)


@pytest.mark.parametrize("dtype", trees.DTYPES)
@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_comes_back_with_like(name, dtype, path):
    for density in (0.0, 0.3, 1.0):
        params = {kind: trees.make(name, dtype) for kind in MASKS}
        mask = {
            kind: jax.tree.map(lambda x, draw=draw, d=density: draw(x.shape, d), tree)
            for (kind, draw), tree in zip(MASKS.items(), params.values(), strict=True)
        }
        storage.save_params(path, params, mask)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        for like in (params, shapes):
            assert_masked(storage.load_params(path, like=like), params, mask)


@pytest.mark.parametrize("name", trees.NAMES)
def test_what_is_saved_is_what_apply_gives(name, path):
    params = trees.make(name)
    mask = select.top_k(
        score.magnitude(params, where=trees.WHERE), density=0.3, where=trees.WHERE
    )
    masked = maskjax.apply(params, mask)
    storage.save_params(path, params, mask)
    before = path.read_bytes()
    loaded, keep = storage.load_params(path, like=params)
    trees.assert_same(loaded, masked)
    trees.assert_same(packing.unpack(keep), mask)
    for again in (masked, loaded):  # saved, loaded and saved: the same file
        storage.save_params(path, again, keep)
        assert path.read_bytes() == before


def test_plain_booleans_and_prefixes_are_masks(path):
    params = trees.make("nested_dict")
    whole = {
        "encoder": {"dense": {"kernel": False, "bias": False}},
        "conv": {"kernel": None},
        "out": {"kernel": True, "bias": True},
    }
    storage.save_params(path, params, {"encoder": False, "conv": None, "out": True})
    assert_masked(storage.load_params(path), params, whole)
    storage.save_params(path, params, None)
    none = jax.tree.map(lambda x: None, params)
    assert_masked(storage.load_params(path), params, none)


def test_none_in_parameters_stays(path):
    params = {"a": np.ones((2, 3), np.float32), "b": None, "c": {"d": None}}
    mask = {"a": random_bool((2, 3), 0.5), "b": None, "c": {"d": None}}
    storage.save_params(path, params, mask)
    assert_masked(storage.load_params(path), params, mask)
    assert_masked(storage.load_params(path, like=params), params, mask)
    assert storage.info(path).shapes == {"a": (2, 3), "b": None, "c/d": None}


def test_trees_without_arrays_come_back(path):
    for nothing in ({}, None, [None, ()]):
        storage.save_params(path, nothing, nothing)
        loaded, mask = storage.load_params(path)
        assert loaded == mask == nothing


def test_other_containers_come_back_as_dicts_of_their_paths(path):
    kernel, keep = values((6, 8), "float32"), random_bool((6, 8), 0.3)
    params = trees.Layer(kernel, [None])
    storage.save_params(path, params, trees.Layer(keep, [None]))
    expected = {"kernel": kernel, "bias": [None]}
    assert_masked(storage.load_params(path), expected, {"kernel": keep, "bias": [None]})
    state = nnx.State({"a": {0: nnx.Param(kernel)}})
    storage.save_params(path, state, jax.tree.map(lambda _: keep, state))
    assert_masked(storage.load_params(path), {"a": {0: kernel}}, {"a": {0: keep}})


def test_a_module_is_loaded_into_a_module(path):
    model = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    mask = select.top_k(score.magnitude(state), density=0.3)
    storage.save_params(path, state, mask)
    other = nnx.Linear(6, 8, rngs=nnx.Rngs(1))
    nnx.update(other, storage.load_params(path, like=nnx.state(other, nnx.Param))[0])
    kernel = maskjax.apply(state, mask)["kernel"][...]
    np.testing.assert_array_equal(other.kernel[...], kernel)

    module = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    own, rest = eqx.partition(module, eqx.is_array)
    storage.save_params(path, own, None)
    loaded = eqx.combine(storage.load_params(path, like=own)[0], rest)
    np.testing.assert_array_equal(module(jnp.ones(3)), loaded(jnp.ones(3)))
    with raises(
        r"every leaf of `params` as an array.*activation: custom_jvp", TypeError
    ):
        storage.save_params(path, module, None)


def test_numpy_of_any_order_of_bytes_and_axes_is_saved(path):
    kernel = np.arange(48, dtype=np.float32).reshape(6, 8)
    keep = random_bool((6, 8), 0.3)
    for given in (
        kernel.astype(">f4"),
        np.asfortranarray(kernel),
        kernel[::-1][::-1],
        np.repeat(kernel, 2, 0)[::2],
    ):
        for mask in (keep, np.asfortranarray(keep), None):
            storage.save_params(path, {"w": given}, {"w": mask})
            assert_masked(storage.load_params(path), {"w": kernel}, {"w": mask})


def test_like_decides_by_path_and_not_by_order(path):
    params = trees.Layer(values((2, 3), "float32"), values((4,), "float32"))
    mask = trees.Layer(random_bool((2, 3), 0.5), None)
    storage.save_params(path, params, mask)
    like = {"bias": params.bias, "kernel": params.kernel}
    keep = {"bias": None, "kernel": mask.kernel}
    assert_masked(storage.load_params(path, like=like), like, keep)


def test_metadata_and_info_come_back(path):
    params = {"w": np.ones((6, 8), np.float32), "b": np.ones(8, np.float32)}
    mask = {"w": shared((6, 8), 0.3), "b": None}
    storage.save_params(path, params, mask, metadata={"step": [7, "é"]})
    info = storage.info(path)
    assert info.metadata == {"step": [7, "é"]}
    assert (info.kind, info.members, info.capacity) == ("params", 1, None)
    assert info.shapes == {"b": (8,), "w": (6, 8)}
    with raises("`maskjax.storage.save_params` needs `metadata` as a dict", TypeError):
        storage.save_params(path, params, mask, metadata={"step": {1}})


def test_the_same_parameters_are_the_same_file(path, tmp_path):
    params, mask = {"w": values((6, 8), "float32")}, {"w": random_bool((6, 8), 0.3)}
    storage.save_params(path, params, mask)
    storage.save_params(tmp_path / "again", params, {"w": packed(mask["w"])})
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


# What it takes.

PATTERNS = [None, NofM(1, 4), NofM(2, 4), NofM(4, 8), NofM(1, 16)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "complex64"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_files_are_as_small_as_promised(pattern, dtype, path):
    shape, bits = (1536, 384), 8 * jnp.dtype(dtype).itemsize
    draws = np.random.default_rng(0).random(shape, np.float32)
    if pattern is None:
        density, index = 0.3, 1.0
        keep = draws < np.sort(draws, axis=None)[round(0.3 * draws.size)]
    else:
        density = pattern.n / pattern.m
        index = min(1.0, density * math.ceil(math.log2(pattern.m)))
        ranks = draws.reshape(-1, pattern.m, 384).argsort(1).argsort(1)
        keep = (ranks < pattern.n).reshape(shape)
    params = {"kernel": values(shape, dtype)}
    structure = Entries() if pattern is None else pattern
    storage.save_params(path, params, {"kernel": keep}, structure=structure)
    size = path.stat().st_size
    promised = (density * bits + index) * keep.size / 8
    assert size == pytest.approx(promised, rel=0.01, abs=1024)
    assert size < 0.95 * keep.size * bits / 8
    found, mask = storage.load_params(path)
    trees.assert_same(packing.unpack(mask), {"kernel": keep})
    kernel = np.asarray(found["kernel"])
    assert octets(kernel[keep]) == octets(params["kernel"][keep])
    assert not kernel.view(np.uint8).reshape(*shape, -1)[~keep].any()
    written = safetensors.deserialize(path.read_bytes())
    assert ("index" in str(written)) == (index < 1)


def of_groups(shape, n, m, axes, *, seed=0):
    """A mask with exactly n of every m along some axes together, row-major."""
    order = [i for i in range(len(shape)) if i not in axes] + list(axes)
    laid = [shape[i] for i in order]
    draws = np.random.default_rng(seed).random((math.prod(shape) // m, m))
    keep = draws.argsort(1).argsort(1) < n
    return keep.reshape(laid).transpose(np.argsort(order))


@pytest.mark.parametrize(
    ("n", "m"), [(0, 4), (1, 1), (1, 2), (1, 3), (1, 8), (2, 8), (3, 12), (12, 12)]
)
def test_patterns_come_back_whatever_their_axes(n, m, path):
    structure = NofM(n, m)
    leaves = {  # by convention, and told: which axes are inputs
        "w": ((24, 5), (0,)),
        "attention/out/kernel": ((6, 4, 24), (0, 1)),
        "weight": ((5, 24), (1,)),
        "empty": ((0, 5), (0,)),
    }
    told = where.matching("weight", axes="outputs inputs") | where.kernels
    params = {name: values(shape, "float32") for name, (shape, _) in leaves.items()}
    mask = {
        name: of_groups(shape, n, m, axes) for name, (shape, axes) in leaves.items()
    }
    storage.save_params(path, params, mask, structure=structure, where=told)
    assert_masked(storage.load_params(path), params, mask)
    smaller = n * math.ceil(math.log2(m)) < m
    assert (b".index:" in path.read_bytes()) == smaller
    by_hand = {"w": of_groups((5, 24), n, m, (1,)), "b": None}
    params = {"w": values((5, 24), "bfloat16"), "b": values((3,), "float32")}
    storage.save_params(path, params, by_hand, structure=NofM(n, m, axis=-1))
    assert_masked(storage.load_params(path), params, by_hand)


def test_a_mask_that_select_made_is_stored_by_its_structure(path):
    params = {
        "w": jnp.asarray(np.random.default_rng(0).normal(size=(24, 5)), "float32")
    }
    scores = score.magnitude(params)
    for structure in (NofM(1, 4), NofM(2, 4), Entries(), Units("inputs")):
        mask = select.top_k(scores, density=0.25, structure=structure)
        if structure != NofM(2, 4):
            storage.save_params(path, params, mask, structure=structure)
            assert_masked(storage.load_params(path), params, mask)
    members = (Member("w", 1, tuple(range(5)), shape=(24, 5)),)
    groups = Groups((Group("units", (), 5, members),))
    storage.save_params(path, params, {"w": True}, structure=groups)
    with raises(
        r"`maskjax.storage.save_params` needs masks that fit `structure`, got:\n"
        r"  w: \d+ of 30 groups of 4 do not keep 2$",
        ValueError,
    ):
        storage.save_params(path, params, mask, structure=NofM(2, 4))
    with raises(
        r"w: shape \(24, 5\) is .*: 24 inputs are not divisible by 7", ValueError
    ):
        storage.save_params(path, params, mask, structure=NofM(2, 7))
    with raises("needs `structure` as a value of `maskjax.structure`", TypeError):
        storage.save_params(path, params, mask, structure=NofM)
    with raises(r"save_params` needs `where` as a function `\(path, leaf", TypeError):
        storage.save_params(path, params, mask, where="w")


def test_each_leaf_may_have_its_own_structure(path):
    params = {"a": values((24, 5), "float32"), "b": values((5, 3), "float32")}
    mask = {"a": of_groups((24, 5), 1, 4, (0,)), "b": random_bool((5, 3), 0.5)}
    with raises(
        r"b: shape \(5, 3\) is .* 5 inputs are not divisible by 4$", ValueError
    ):
        storage.save_params(path, params, mask, structure=NofM(1, 4))
    for other in (None, Entries()):
        structure = {"a": NofM(1, 4), "b": other}
        storage.save_params(path, params, mask, structure=structure)
        assert b"0.index:a" in path.read_bytes()
        assert b"1.mask:b" in path.read_bytes()
        assert_masked(storage.load_params(path), params, mask)
    with raises("only in `structure`: c", ValueError):
        storage.save_params(path, params, mask, structure={"c": NofM(1, 4)})
    with raises(r"needs `structure\[a\]` as a value of `maskjax.structure`", TypeError):
        storage.save_params(path, params, mask, structure={"a": "1:4", "b": None})


def test_axes_are_asked_for_only_where_a_pattern_has_a_role(path):
    params = {"layers": values((2, 8, 3), "float32")}
    mask = {"layers": of_groups((2, 8, 3), 1, 4, (1,))}
    storage.save_params(path, params, mask)
    storage.save_params(path, params, mask, structure=NofM(1, 4, axis=1))
    assert_masked(storage.load_params(path), params, mask)
    with raises(
        "`maskjax.storage.save_params` needs to know the axes .* for NofM.*"
        r"layers: shape \(2, 8, 3\), 3 axes could stack",
        ValueError,
    ):
        storage.save_params(path, params, mask, structure=NofM(1, 4))
    told = where.matching("layers", axes="stack inputs outputs")
    storage.save_params(path, params, mask, structure=NofM(1, 4), where=told)
    assert_masked(storage.load_params(path), params, mask)


# The file.


def test_others_can_read_it(path):
    params = {
        "a": {"kernel": values((6, 8), "float32")},
        "b": values((6, 8), "bfloat16"),
        "c": values((8, 3), "complex64"),
        "d": values((5,), "float8_e3m4"),
        "e": np.float16(3),
    }
    mask = {
        "a": {"kernel": random_bool((6, 8), 0.3)},
        "b": shared((6, 8), 0.5),
        "c": of_groups((8, 3), 1, 4, (0,)),
        "d": None,
        "e": None,
    }
    structure = {"a": None, "b": None, "c": NofM(1, 4), "d": None, "e": None}
    storage.save_params(path, params, mask, structure=structure)
    with safetensors.safe_open(path, "np") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["maskjax.mask"].split(" ", 2)[2])
    dtypes = {name: str(array.dtype) for name, array in found.items()}
    assert dtypes == {
        "0:a/kernel": "float32",
        "0.mask:a/kernel": "uint8",
        "1:b": "bfloat16",
        "1.mask:b": "uint8",
        "2:c": "float32",
        "2.index:c": "uint8",
        "3:d": "uint8",
        "4:e": "float16",
    }
    assert found["2:c"].shape == (6, 2)
    assert found["4:e"] == 3
    keep = mask["a"]["kernel"]
    bits = np.unpackbits(found["0.mask:a/kernel"], count=48, bitorder="little")
    np.testing.assert_array_equal(bits.reshape(6, 8), keep)
    assert octets(found["0:a/kernel"]) == octets(params["a"]["kernel"][keep])
    facts = header["params"]
    assert [leaf["dtype"] for leaf in facts] == [
        "float32", "bfloat16", "complex64", "float8_e3m4", "float16",
    ]  # fmt: skip
    assert facts[1]["mask"] == [6, 1]
    assert facts[2]["pattern"] == {"n": 1, "m": 4, "order": [1, 0]}
    assert [leaf["kept"] for leaf in facts[2:]] == [6, None, None]


def test_tensors_are_aligned(path):
    params = {f"{i}": values((5, 7), d) for i, d in enumerate(DTYPES)}
    mask = {f"{i}": random_bool((5, 7), 0.3, seed=i) for i in range(len(DTYPES))}
    storage.save_params(path, params, mask)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    del entries["__metadata__"]
    assert length % 8 == 0
    for entry in entries.values():
        start, stop = entry["data_offsets"]
        size = stop - start
        assert start % (size // max(1, math.prod(entry["shape"]))) == 0


# What can't be saved.


def test_what_is_no_parameter_is_not_saved(path):
    fn, good = "`maskjax.storage.save_params`", np.ones((2, 3), np.float32)
    for bad, name in (
        (2.0, "float 2.0"),
        ("text", "str 'text'"),
        (np.array("text"), "<U4 array"),
        (np.array([None]), "object array"),
        (np.zeros(2, "M8[s]"), r"datetime64\[s\] array"),
        (jax.random.key(0), r"key<fry> array of shape \(\)"),
        (
            packed(random_bool((2, 3), 0.5)),
            "a packed mask, which .*storage.save. saves",
        ),
    ):
        with raises(
            rf"{fn} needs every leaf of `params` as an array of numbers or booleans "
            rf"\(`jax.random.key_data` .*a/b: {name}",
            TypeError,
        ):
            storage.save_params(path, {"a": {"b": bad}, "c": good}, None)
    with raises(rf"{fn} needs parameters with values.*\n  w: float32 array", TypeError):
        jax.jit(lambda p: storage.save_params(path, p, None))({"w": good})
    with raises(rf"{fn} needs masks with values.*\n  w: bool array", TypeError):
        jax.jit(lambda m: storage.save_params(path, {"w": good}, m))({"w": good > 0})
    assert not path.exists()


def test_masks_that_do_not_fit_are_named(path):
    fn, good = "`maskjax.storage.save_params`", np.ones((2, 3), np.float32)
    for mask, message, kind in (
        (
            {"w": np.ones((3, 3), bool)},
            r"w: mask \(3, 3\), params \(2, 3\)",
            ValueError,
        ),
        ({"v": np.ones((2, 3), bool)}, "only in `params`: w", ValueError),
        ({"w": good}, "w: float32 array", TypeError),
        ({"w": np.ones((4, 2, 3), bool)}, "a stack of masks", ValueError),
        (jax.vmap(packing.pack)({"w": jnp.ones((4, 2, 3), bool)}), "w: ", ValueError),
        ({"w": PackedMask(np.ones(2, "u4"), (2, 3))}, "bits fit.*w: ", ValueError),
        ({"w": PackedMask(np.full(1, 64, "u4"), (2, 3))}, "bits past .*w$", ValueError),
    ):
        with raises(rf"{fn} needs .*{message}", kind):
            storage.save_params(path, {"w": good}, mask)
    assert not path.exists()


class Crash(BaseException):
    """The process ends here."""


def test_a_failed_save_leaves_the_old_file_whole(path, monkeypatch):
    params = {name: values((64, 64), "float32", seed=i) for i, name in enumerate("ab")}
    mask = {"a": random_bool((64, 64), 0.3), "b": None}
    storage.save_params(path, params, mask)
    before = path.read_bytes()
    encoded, turns = _sparse.encoded, []

    def crash(*args):
        raise Crash

    def late(*args):  # in the middle of writing
        turns.append(1)
        return encoded(*args) if len(turns) % 2 else crash()

    def no_space(*args):
        raise OSError(28, "No space left on device")

    for owner, name, broken, kind in (
        (_sparse, "encoded", late, Crash),
        (_writing, "fill_in_turn", crash, Crash),
        (_writing, "_heading", no_space, StorageError),
        (os, "fsync", crash, Crash),
        (os, "replace", no_space, StorageError),
        (os, "replace", crash, Crash),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            for target in (path, path.with_name("new")):
                with pytest.raises(kind):
                    storage.save_params(target, params, {"a": False, "b": True})
        assert os.listdir(path.parent) == [path.name]
        assert path.read_bytes() == before
    assert len(turns) == 4
    assert_masked(storage.load_params(path), params, mask)


def test_places_that_cannot_be_written_are_named(path, tmp_path):
    params = {"w": np.ones(3, np.float32)}
    with raises(f"{tmp_path} is no file"):
        storage.save_params(tmp_path, params, None)
    with raises("can't be written: No such file"):
        storage.save_params(tmp_path / "missing" / "file", params, None)
    with raises("can't be the path of a file"):
        storage.save_params("", params, None)


# What can't be loaded.


def test_each_loader_names_what_it_does_not_read(path, tmp_path):
    params, mask = {"w": np.ones((5, 7), np.float32)}, {"w": random_bool((5, 7), 0.3)}
    storage.save(path, mask)
    with raises(f"{path} holds a mask, and no parameters; .*storage.load` reads it"):
        storage.load_params(path)
    storage.save_params(path, params, mask)
    with raises(f"{path} holds parameters, and no mask.*load_params` reads it"):
        storage.load(path)
    storage.append(tmp_path / "tasks", mask)
    with raises(
        "is a folder, not a file of parameters; .*storage.load` reads the bank"
    ):
        storage.load_params(tmp_path / "tasks")
    os.replace(path, tmp_path / "tasks" / "00000.safetensors")
    for use in (storage.load, storage.info, lambda p: storage.append(p, mask)):
        with raises("does not begin where|only on disk|on disk None"):
            use(tmp_path / "tasks")
    with raises(f"{path} can't be read: No such file"):
        storage.load_params(path)


def test_like_of_another_network_names_the_leaves(path):
    params = {"a": values((5, 7), "float32"), "b": None, "c": values((3,), "int8")}
    storage.save_params(
        path, params, {"a": random_bool((5, 7), 0.3), "b": None, "c": None}
    )
    like = {"a": np.ones((5, 8), "f"), "b": np.ones(2, "f"), "d": np.ones(3, "i1")}
    with raises(
        r"`maskjax.storage.load_params` needs `like` of the structure, shapes and "
        rf"dtypes in {path}, got:\n"
        r"  a: on disk float32 array of shape \(5, 7\), `like` float32 array of shape "
        r"\(5, 8\)\n  b: on disk None, `like` float32 array .*\n"
        r"  only in `like`: d\n  only on disk: c"
    ):
        storage.load_params(path, like=like)
    with raises(r"c: on disk int8 array .*, `like` bfloat16 array of shape \(3,\)$"):
        storage.load_params(path, like={**params, "c": jnp.ones(3, jnp.bfloat16)})
    with raises(r"a: on disk float32 array .*, `like` None"):
        storage.load_params(path, like={**params, "a": None})


def test_numbers_of_64_bits_are_not_cut(path):
    params = {"a": values((5,), "float64"), "b": {"c": values((2, 3), "int64")}}
    storage.save_params(path, params, {"a": random_bool((5,), 0.5), "b": None})
    with raises(
        r"`maskjax.storage.load_params` needs `jax.enable_x64\(True\)` around it .*\n"
        r"  a: float64 array of shape \(5,\)\n  b/c: int64 array of shape \(2, 3\)$",
        ValueError,
    ):
        storage.load_params(path)
    with jax.enable_x64(True):
        loaded, _ = storage.load_params(path)
    assert octets(loaded["b"]["c"]) == octets(params["b"]["c"])


# A thin sample; `-m slow` tries every byte and every length.
@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_cut_and_longer_file_is_refused(stride, path):
    params = {
        "a": values((6, 8), "bfloat16"),
        "b": values((8, 2), "float32"),
        "c": None,
    }
    mask = {
        "a": random_bool((6, 8), 0.3),
        "b": of_groups((8, 2), 1, 4, (0,)),
        "c": None,
    }
    structure = {"a": None, "b": NofM(1, 4), "c": None}
    storage.save_params(path, params, mask, structure=structure, metadata={"step": 7})
    data = path.read_bytes()
    for place in range(0, len(data), stride):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        for bad in (bytes(flipped), data[:place]):
            path.write_bytes(bad)
            with raises(str(path)):
                storage.load_params(path)
    for bad in (data[:-1], data + bytes(1), data + data):
        path.write_bytes(bad)
        with raises(f"{path} is damaged, or no safetensors file"):
            storage.load_params(path)
    path.write_bytes(data)
    assert_masked(storage.load_params(path), params, mask)


def rewritten(path, change, *, tensors=None, version="3"):
    """The file with other facts, and checksums that are right for them."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    facts = json.loads(entries.pop("__metadata__")["maskjax.mask"].split(" ", 2)[2])
    change(facts)
    entries = {**entries, **(tensors or {})}
    text = json.dumps(facts)
    sha256 = maskjax.storage._header.checksum(text.encode())
    entries["__metadata__"] = {"maskjax.mask": f"{version} {sha256} {text}"}
    whole = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(whole)) + whole + data[8 + length :])


def test_a_newer_format_says_so(path):
    storage.save_params(path, {"w": np.ones(3, np.float32)}, None)
    rewritten(path, lambda facts: None)
    storage.load_params(path)
    rewritten(path, lambda facts: None, version="4")
    with raises(f"{path} has format version 4, and this maskjax reads 3: a newer"):
        storage.load_params(path)


def test_what_makes_no_sense_is_refused_even_if_it_is_signed(path):
    """A mask with other counts, bits past its end, places twice, and no booleans."""
    checksum = storage._header.checksum
    params = {
        "bits": values((5, 7), "float32"),
        "places": values((16, 2), "float32"),
        "flags": np.array([True, False]),
    }
    mask = {
        "bits": random_bool((5, 7), 0.3),
        "places": of_groups((16, 2), 2, 16, (0,)),
        "flags": None,
    }
    structure = {"bits": None, "places": NofM(2, 16), "flags": None}
    for part, place, change in (
        ("0.mask:bits", 0, lambda bits: bits ^ 1),  # one more, or one less
        ("0.mask:bits", -1, lambda bits: bits | 128),  # of entries that are not there
        ("2.index:places", 0, lambda bits: bits & 15 | bits << 4 & 240),  # twice one
        ("2.index:places", 0, lambda bits: bits >> 4 | bits << 4 & 240),  # in disorder
        ("1:flags", 0, lambda flag: 2),
    ):
        storage.save_params(path, params, mask, structure=structure)
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        start, stop = json.loads(data[8 : 8 + length])[part]["data_offsets"]
        part_data = bytearray(data[8 + length + start : 8 + length + stop])
        part_data[place] = change(part_data[place])
        data = bytearray(data)
        data[8 + length + start : 8 + length + stop] = part_data
        path.write_bytes(data)
        i, name = int(part[0]), part.split(":")[1]
        with raises(f"{path} is damaged: {name} is not what was saved"):
            storage.load_params(path)
        key = {"mask": "mask", "inde": "index"}.get(part[2:6], "values")

        def sign(facts, i=i, key=key, data=part_data):
            facts["params"][i]["sha256"][key] = checksum(data)

        rewritten(path, sign)
        with raises(f"{path} holds what makes no sense for {name}"):
            storage.load_params(path)


def test_a_small_file_asks_for_no_more_than_the_caller_does(path):
    storage.save_params(path, {"w": np.ones((4, 4), np.float32)}, {"w": False})
    rewritten(path, lambda facts: facts["params"][0].update(shape=[2**12, 2**13]))
    with raises(
        rf"{path} asks for parameters of 128 MiB, and holds 0\. .* pass `like`"
    ):
        storage.load_params(path)
    like = {"w": jax.ShapeDtypeStruct((2**12, 2**13), "float32")}
    loaded, _ = storage.load_params(path, like=like)
    assert not loaded["w"].any()
    rewritten(path, lambda facts: facts["params"][0].update(shape=[2**10, 2**10]))
    assert not storage.load_params(path)[0]["w"].any()
    rewritten(path, lambda facts: facts["params"][0].update(shape=[2**30, 2**28]))
    like = {"w": jax.ShapeDtypeStruct((2**30, 2**28), "float32")}
    with raises(f"{path} needs more memory than there is"):
        storage.load_params(path, like=like)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_masks_that_remove_everything_ask_for_no_more_than_they_may(dtype, path, x64):
    params = {"w": np.zeros((2**12, 2**10), dtype)}
    storage.save_params(path, params, {"w": params["w"] != 0})
    assert path.stat().st_size < 2**20
    loaded, _ = storage.load_params(path)
    assert loaded["w"].dtype == dtype
