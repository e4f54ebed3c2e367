"""What is saved is loaded, or a clear error; what was there survives every failure."""

import errno
import fcntl
import itertools
import json
import os
import re
import stat
import struct
import sys
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx, serialization

from maskjax import bank, packing, stacking, storage
from maskjax.bank import MaskBank
from maskjax.packing import PackedMask
from maskjax.recipes import packnet, supsup_stream
from maskjax.storage import StorageError, _disk, _header, _loading, _saving, _writing
from tests import trees
from tests.reference import packing as reference

SHAPES = [(), (0,), (1,), (31,), (33,), (0, 3), (64, 3), (5, 7, 2), (3, 63), (95, 2)]


def random_bool(shape, *, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.5


def packed(mask):
    """A leaf [...], or a stack [K, ...] of them, packed without the library."""
    return PackedMask(reference.pack(mask), mask.shape)


def packed_stack(stack):
    words = [reference.pack(mask) for mask in stack]
    return PackedMask(np.stack(words), stack.shape[1:])


def a_bank_of(kept, learned, overflowed=0):
    """A bank of boolean masks by the leaves' names, its counts by NumPy."""
    counts = {name: leaf.sum(0, dtype=np.int32) for name, leaf in kept.items()}
    masks = {name: packed_stack(leaf) for name, leaf in kept.items()}
    return MaskBank(
        {"b": None} | masks,
        {"b": None} | counts,
        np.int32(learned),
        np.int32(overflowed),
    )


def a_mask(*, seed=0):
    return {
        "dense": {"kernel": packed(random_bool((5, 7), seed=seed)), "bias": None},
        "out": packed(random_bool((3, 4), seed=seed + 1)),
    }


def a_stack(members=3):
    def kernel(shape, seed):
        return packed_stack(random_bool((members, *shape), seed=seed))

    return {
        "dense": {"kernel": kernel((5, 7), 0), "bias": None},
        "out": kernel((3, 4), 1),
    }


def a_bank(*, learned=3, capacity=5):
    kept = random_bool((capacity, 5, 7), seed=2)
    kept[learned:] = False
    return a_bank_of({"w": kept}, learned, overflowed=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "masks.safetensors"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")}


def raises(pattern, kind=StorageError):
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


# There and back.


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_stacks_and_banks_of_every_shape_come_back(shape, path):
    kept = random_bool((4, *shape))
    kept[2:] = False
    tasks = a_bank_of({"w": kept}, 2)
    for saved in (packed(kept[0]), packed_stack(kept), tasks):
        storage.save(path, saved)
        trees.assert_same(storage.load(path), saved)


def test_boolean_masks_are_packed_on_the_way(path):
    mask = {"w": random_bool((5, 7)), "b": None}
    storage.save(path, mask)
    trees.assert_same(storage.load(path), {"w": packed(mask["w"]), "b": None})
    # With one more axis it is a mask of three axes, and no stack.
    storage.save(path, {"w": mask["w"][None]})
    assert storage.info(path)[:2] == ("mask", {"w": (1, 5, 7)})


def test_masks_of_features_are_a_stack_if_each_is_packed(path):
    masks = {"features": random_bool((4, 6))}
    storage.save(path, masks)  # as a mask of two axes, for nothing says it is a stack
    assert storage.info(path)[:3] == ("mask", {"features": (4, 6)}, 1)
    one = storage.load(path)
    trees.assert_same(packing.unpack(one), masks)
    with raises(
        r"`maskjax.stacking.map` needs .* same number of members, got:\n"
        r"  features: one mask \(.*\); pack a stack by `jax.vmap\(packing.pack\)",
        ValueError,
    ):
        stacking.map(lambda mask: mask, one)
    stack = {"features": packed_stack(masks["features"])}  # jax.vmap(packing.pack)
    storage.save(path, stack)
    assert storage.info(path)[:3] == ("stack", {"features": (6,)}, 4)
    back = storage.load(path)
    assert stacking.size(back) == 4
    each = stacking.map(lambda mask: packing.unpack(mask)["features"], back)
    np.testing.assert_array_equal(each, masks["features"])


def for_params(params):
    """A packed mask for the floating leaves of a tree."""
    return jax.tree.map(
        lambda x: (
            packed(random_bool(x.shape))
            if jnp.issubdtype(x.dtype, jnp.floating)
            else None
        ),
        params,
    )


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_comes_back_with_like(name, path):
    params = trees.make(name)
    mask = for_params(params)
    storage.save(path, mask)
    trees.assert_same(storage.load(path, like=params), mask)
    trees.assert_same(storage.load(path, like=mask), mask)


def test_dicts_lists_and_tuples_come_back_without_like(path):
    leaf = packed(random_bool((2, 3)))
    for mask in (
        {"a": [leaf, None, (), {}], 'q"/': (leaf, {"b": leaf}), "é\ud800": leaf},
        {10: leaf, 9: None},
        [None],
        (),
        None,
        leaf,
        {"a/b": leaf, "a": {"b": None}},
    ):
        storage.save(path, mask)
        trees.assert_same(storage.load(path), mask)


def test_other_containers_come_back_as_dicts_of_their_paths(path):
    leaf = packed(random_bool((2, 3)))
    for mask, expected in (
        (trees.Layer(leaf, [None]), {"kernel": leaf, "bias": [None]}),
        (nnx.State({"a": {0: nnx.Param(leaf)}}), {"a": {0: leaf}}),
        ({(1, 2): leaf, (0, 1): None}, {"(0, 1)": None, "(1, 2)": leaf}),
    ):
        storage.save(path, mask)
        trees.assert_same(storage.load(path), expected)
        trees.assert_same(storage.load(path, like=mask), mask)


def test_names_that_read_the_same_stay_apart(path):
    class Name:
        def __init__(self, rank):
            self.rank = rank

        def __lt__(self, other):
            return self.rank < other.rank

        def __repr__(self):
            return "name"

    first, second = (packed(random_bool((2, 3), seed=seed)) for seed in (0, 1))
    mask = {Name(0): first, Name(1): second}
    storage.save(path, mask)
    trees.assert_same(storage.load(path), {0: first, 1: second})
    trees.assert_same(storage.load(path, like=mask), mask)


def test_like_decides_by_path_and_not_by_order(path):
    mask = {"b": packed(random_bool((2, 3))), "a": packed(random_bool((4,)))}
    storage.save(path, mask)
    storage.save(path, trees.Layer(mask["b"], mask["a"]))  # not in the order of names
    out = storage.load(path, like={"kernel": np.ones((2, 3)), "bias": np.ones(4)})
    trees.assert_same(out, {"kernel": mask["b"], "bias": mask["a"]})


def test_like_may_be_broader_than_a_mask_whose_entries_share_a_decision(path):
    mask = {"w": packed(random_bool((5, 1))), "b": None}
    storage.save(path, mask)
    params = {"w": np.ones((5, 7)), "b": np.ones(7)}
    trees.assert_same(storage.load(path, like=params), mask)


@pytest.mark.parametrize("learned", [1, 2, 3, 127, 128, 129, 300])
def test_counts_are_recomputed_exactly(learned, path):
    kept = random_bool((learned, 33), seed=learned)
    kept[:, 0] = True
    storage.save(path, a_bank_of({"w": kept}, learned))
    counts = storage.load(path).counts["w"]
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, kept.sum(0))


def test_a_bank_takes_the_space_of_what_is_learned(path):
    storage.save(path, a_bank(learned=1, capacity=1))
    size = path.stat().st_size
    storage.save(path, a_bank(learned=1, capacity=900))
    assert path.stat().st_size <= size + 16
    assert bank.capacity(storage.load(path)) == 900


def test_a_bank_is_loaded_with_room_for_more(path):
    tasks = a_bank(learned=3, capacity=5)
    storage.save(path, tasks)
    trees.assert_same(storage.load(path, like=tasks), tasks)
    for capacity in (3, 9):
        out = storage.load(path, capacity=capacity)
        assert bank.capacity(out) == capacity
        bits = np.asarray(out.masks["w"].bits)
        np.testing.assert_array_equal(bits[:3], tasks.masks["w"].bits[:3])
        assert not bits[3:].any()
    with raises("`capacity` of at least 3, got 2", ValueError):
        storage.load(path, capacity=2)
    with raises("`capacity` as a whole number, got float 4.5", TypeError):
        storage.load(path, capacity=4.5)


def test_a_loaded_bank_can_be_donated_and_used(path):
    tasks, mask = a_bank(), {"b": None, "w": packed(random_bool((5, 7), seed=9))}
    storage.save(path, tasks)
    kept = random_bool((5, 5, 7), seed=2)
    kept[3], kept[4] = random_bool((5, 7), seed=9), False
    append = jax.jit(bank.append, donate_argnums=0)
    wanted = a_bank_of({"w": kept}, 4, overflowed=1)
    trees.assert_same(append(storage.load(path), mask), wanted)
    trees.assert_same(storage.load(path), tasks)


def test_an_empty_bank_is_a_bank(path):
    tasks = bank.empty({"w": np.ones((5, 7), np.float32)}, capacity=4)
    storage.save(path, tasks)
    trees.assert_same(storage.load(path), tasks)
    trees.assert_same(storage.load(path, capacity=4), tasks)


def test_metadata_and_info_come_back(path):
    metadata = {"name": "é\ud800", "nested": {"a": [1, 2.5, None, True]}, "": ""}
    for saved, kind, members, capacity in (
        (a_mask(), "mask", 1, None),
        (a_stack(4), "stack", 4, None),
        (a_bank(learned=2, capacity=6), "bank", 2, 6),
    ):
        storage.save(path, saved, metadata=metadata)
        info = storage.info(path)
        assert info.metadata == metadata
        assert (info.kind, info.members, info.capacity) == (kind, members, capacity)
    assert info.shapes == {"b": None, "w": (5, 7)}


# The file.


def test_words_are_little_endian_and_safetensors_reads_them(path):
    kept = random_bool((5, 7))
    storage.save(path, {"a": {"w": packed(kept)}, "b": None})
    words = reference.pack(kept).astype("<u4").tobytes()
    assert path.read_bytes().endswith(words)
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors.pop("0:a/w")[0], reference.pack(kept))
    assert not tensors


def test_the_same_mask_is_the_same_file(path, tmp_path):
    storage.save(path, a_mask())
    storage.save(tmp_path / "again", a_mask())
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_permissions_are_those_of_any_file(path, tmp_path):
    umask = os.umask(0o027)
    try:
        storage.save(path, a_mask())
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        storage.save(path, a_mask(seed=5))
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
        storage.append(tmp_path / "tasks", a_mask())
        assert stat.S_IMODE((tmp_path / "tasks").stat().st_mode) == 0o750
        shard = tmp_path / "tasks" / "00000.safetensors"
        assert stat.S_IMODE(shard.stat().st_mode) == 0o640
    finally:
        os.umask(umask)


def test_links_are_followed(path, tmp_path):
    path.write_bytes(b"")
    (tmp_path / "latest").symlink_to(path)
    storage.save(tmp_path / "latest", a_mask())
    assert (tmp_path / "latest").is_symlink()
    trees.assert_same(storage.load(path), a_mask())


# A bank that grows in a folder.


def test_a_folder_grows_by_files_and_writes_none_again(tmp_path):
    folder = tmp_path / "tasks"
    assert storage.append(folder, a_mask(seed=0), metadata={"a": 1, "b": 1}) == 1
    first = contents(folder)
    assert storage.append(folder, a_stack(3), metadata={"b": 2}) == 4
    assert storage.append(str(folder), a_mask(seed=7)) == 5
    assert sorted(os.listdir(folder)) == [f"0000{i}.safetensors" for i in range(3)]
    assert first.items() <= contents(folder).items()
    tasks = storage.load(folder)
    assert int(tasks.learned) == bank.capacity(tasks) == 5
    stack = jax.tree.map(
        lambda a, s, b: np.concatenate([a[None], s, b[None]]),
        *(a_mask(seed=0), a_stack(3), a_mask(seed=7)),
    )
    trees.assert_same(tasks, jax.jit(bank.from_stack)(stack))
    info = storage.info(folder)
    assert info.metadata == {"a": 1, "b": 2}
    assert (info.kind, info.members, info.capacity) == ("bank", 5, 5)


def test_a_bank_begins_a_folder_which_keeps_its_capacity(tmp_path):
    new = random_bool((5, 7))
    mask = {"w": packed(new), "b": None}
    for learned in (0, 3):
        folder = tmp_path / str(learned)
        tasks = a_bank(learned=learned, capacity=5)
        assert storage.append(folder, tasks) == learned
        trees.assert_same(storage.load(folder), tasks)
        assert storage.append(folder, mask) == learned + 1
        kept = random_bool((5, 5, 7), seed=2)
        kept[learned], kept[learned + 1 :] = new, False
        wanted = a_bank_of({"w": kept}, learned + 1, overflowed=1)
        trees.assert_same(storage.load(folder), wanted)
        assert storage.info(folder).capacity == 5
        assert bank.capacity(storage.load(folder, capacity=8)) == 8
        with raises(
            "`maskjax.storage.append` needs a mask or a stack.* got a bank", ValueError
        ):
            storage.append(folder, tasks)
    for _ in range(2):
        storage.append(folder, mask)
    assert bank.capacity(storage.load(folder)) == 6


def test_a_saved_bank_and_a_folder_that_begins_with_it_are_the_same_file(
    path, tmp_path
):
    storage.save(path, a_bank())
    storage.append(tmp_path / "tasks", a_bank())
    (file,) = (tmp_path / "tasks").iterdir()
    assert file.read_bytes() == path.read_bytes()


def test_a_mask_of_another_container_is_appended_by_path(tmp_path):
    leaves = packed(random_bool((5, 7))), packed(random_bool((4,)))
    storage.append(tmp_path, trees.Layer(*leaves))
    storage.append(tmp_path, {"kernel": leaves[0], "bias": leaves[1]})
    bits = np.asarray(storage.load(tmp_path).masks["kernel"].bits)
    np.testing.assert_array_equal(bits[0], bits[1])


def test_other_files_in_a_folder_are_ignored(tmp_path):
    (tmp_path / ".1234.tmp").write_bytes(b"half a file")
    (tmp_path / "notes.txt").write_text("of mine")
    storage.append(tmp_path, a_mask())
    assert storage.info(tmp_path).members == 1


def test_a_mask_of_other_shapes_is_not_appended(tmp_path):
    storage.append(tmp_path, a_mask())
    before = contents(tmp_path)
    other = {**a_mask(), "out": packed(random_bool((4, 4)))}
    with raises(
        r"`maskjax.storage.append` needs `mask` of the shapes in .*"
        r"out: on disk \(3, 4\), `mask` \(4, 4\)"
    ):
        storage.append(tmp_path, other)
    with raises(r"out: on disk \(3, 4\), `mask` None"):
        storage.append(tmp_path, {**a_mask(), "out": None})
    with raises(r"dense/bias: on disk None, `mask` \(2,\)"):
        kernel = a_mask()["dense"]["kernel"]
        bias = packed(random_bool((2,)))
        storage.append(
            tmp_path, {**a_mask(), "dense": {"kernel": kernel, "bias": bias}}
        )
    with raises(r"only in `mask`: new\n.*only on disk: out"):
        storage.append(tmp_path, {"dense": a_mask()["dense"], "new": a_mask()["out"]})
    assert contents(tmp_path) == before


def test_missing_foreign_and_changed_files_are_found(tmp_path):
    for name in ("a", "b"):
        for seed in range(3):
            storage.append(tmp_path / name, a_mask(seed=seed + 10 * (name == "b")))
    folder, shard = tmp_path / "a", "{:05d}.safetensors".format
    kept = contents(folder)

    def restore():
        for file in folder.iterdir():
            file.unlink()
        for name, data in kept.items():
            (folder / name).write_bytes(data)

    (folder / shard(1)).unlink()
    for use in (storage.load, storage.info, lambda p: storage.append(p, a_mask())):
        with raises("a lacks 00001.safetensors"):
            use(folder)
    for number in range(3):  # of another bank
        restore()
        (folder / shard(number)).write_bytes(
            (tmp_path / "b" / shard(number)).read_bytes()
        )
        with raises(rf"0000{max(number, 1)}.safetensors does not begin where .* ends"):
            storage.load(folder)
    restore()
    os.replace(folder / shard(2), folder / shard(1))  # the last one in place of another
    with raises("00001.safetensors does not begin where"):
        storage.info(folder)
    restore()
    storage.save(folder / shard(0), a_mask())
    with raises("00000.safetensors does not begin where"):
        storage.load(folder)
    restore()
    (folder / shard(2)).unlink()  # the state before the last append
    assert storage.info(folder).members == 2
    restore()
    trees.assert_same(storage.load(folder).masks["out"].shape, (3, 4))


def test_two_threads_append_in_turn(tmp_path):
    def appending(seed):
        return [storage.append(tmp_path, a_mask(seed=seed)) for _ in range(6)]

    with futures.ThreadPoolExecutor(2) as pool:
        found = [*itertools.chain(*pool.map(appending, (0, 5)))]
    assert sorted(found) == list(range(1, 13))
    assert sorted(os.listdir(tmp_path)) == [_disk.part(i) for i in range(12)]
    bits = np.asarray(storage.load(tmp_path).masks["out"].bits)
    of_first = np.asarray(a_mask(seed=0)["out"].bits)
    assert sum(np.array_equal(one, of_first) for one in bits) == 6


def test_without_locks_the_slower_one_tries_again(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    storage.append(tmp_path, a_mask())
    link = os.link

    def late(source, target):
        monkeypatch.setattr(os, "link", link)
        storage.append(tmp_path, a_mask(seed=5))  # another process
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert storage.append(tmp_path, a_mask(seed=6)) == 3
    bits = np.asarray(storage.load(tmp_path).masks["out"].bits)
    np.testing.assert_array_equal(bits[1], a_mask(seed=5)["out"].bits)
    np.testing.assert_array_equal(bits[2], a_mask(seed=6)["out"].bits)
    assert len(os.listdir(tmp_path)) == 3

    def always(source, target):
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", always)
    monkeypatch.setattr(_saving, "_TRIES", 3)
    with raises("can't be written: others append to it all the time"):
        storage.append(tmp_path, a_mask())
    assert len(os.listdir(tmp_path)) == 3


def beside(path, call, suffix):
    """The name of a file beside the one that is written."""
    stem = _writing.stem_of(path.name) if call is storage.save else "append"
    return (path.parent if call is storage.save else path) / f".{stem}.{suffix}"


both_ways = pytest.mark.parametrize(
    "call", [storage.save, storage.append], ids=lambda call: call.__name__
)


@both_ways
def test_who_writes_for_long_is_named(call, tmp_path, monkeypatch):
    path = tmp_path / "tasks"
    if call is storage.append:
        path.mkdir()
    monkeypatch.setattr(_writing, "_PATIENCE", 0.05)
    lock = beside(path, call, "lock")
    with open(lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for text, who in (
            ("", "another process"),
            ("process 7 on x", "process 7 on x"),
        ):
            lock.write_text(text)
            with raises(
                f"{path} can't be written: {who} writes to it, .* 0.05 seconds"
            ):
                call(path, a_mask())
    call(path, a_mask())
    assert not lock.exists()
    lock.mkdir()
    with raises(f"{path} can't be written: Is a directory"):
        call(path, a_mask())


@both_ways
def test_what_the_killed_left_is_removed(call, tmp_path):
    path = tmp_path / "tasks"
    if call is storage.append:
        path.mkdir()
    for name in ("lock", "0123456789abcdef.tmp"):
        beside(path, call, name).write_bytes(b"half")
    mine = beside(path, call, "tmp").with_name(".mine.tmp")
    mine.write_bytes(b"mine")
    call(path, a_mask())
    left = sorted(p.name for p in mine.parent.iterdir())
    assert left == [
        ".mine.tmp",
        "00000.safetensors" if mine.parent == path else "tasks",
    ]


def test_a_lock_is_not_taken_for_that_of_another(tmp_path, monkeypatch):
    """Its holder removes it between the time it is opened and the time it is locked."""
    path = tmp_path / "tasks"
    lock, flock, turns = beside(path, storage.save, "lock"), fcntl.flock, []

    def late(descriptor, how):
        if not turns:
            lock.unlink()
        if len(turns) == 1:
            lock.rename(lock.with_name("moved"))
            lock.write_bytes(b"")
        turns.append(1)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    storage.save(path, a_mask())
    assert len(turns) == 3
    assert sorted(os.listdir(tmp_path)) == ["moved", "tasks"]


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage.append(tmp_path, a_mask())
    assert storage.append(tmp_path, a_mask()) == storage.info(tmp_path).members == 2


# Whatever goes wrong while writing, what was there is there.


class Crash(BaseException):
    """The process ends here."""


def half(file, header, bits):
    file.write(b"half of it")
    raise OSError(28, "No space left on device")


def crash(*args, **kwargs):
    raise Crash("killed")


def no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


FAILURES = {
    "the writer": (_writing, "fill", half, StorageError),
    "killed": (_writing, "fill", crash, Crash),
    "fsync": (os, "fsync", no_space, StorageError),
    "fsync, killed": (os, "fsync", crash, Crash),
    "replace": (os, "replace", no_space, StorageError),
    "replace, killed": (os, "replace", crash, Crash),
}
SAYS = {StorageError: "No space left on device", Crash: "killed"}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_save_leaves_the_old_file_whole(failure, path, monkeypatch):
    owner, name, broken, kind = FAILURES[failure]
    storage.save(path, a_mask())
    before = contents(path.parent)
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(kind, match=SAYS[kind]):
        storage.save(path, a_bank())
    with pytest.raises(kind, match=SAYS[kind]):
        storage.save(path.parent / "new.safetensors", a_bank())
    assert contents(path.parent) == before


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_append_leaves_the_bank_as_it_was(failure, tmp_path, monkeypatch):
    owner, name, broken, kind = FAILURES[failure]
    old, new = tmp_path / "old", tmp_path / "new"
    storage.append(old, a_mask())
    before = contents(tmp_path)
    monkeypatch.setattr(owner, name, broken)
    if name == "replace":
        monkeypatch.setattr(os, "link", no_space if kind is StorageError else crash)
    for folder in (old, new):
        with pytest.raises(kind, match=SAYS[kind]):
            storage.append(folder, a_mask())
    assert contents(tmp_path) == before
    assert not new.exists()


def test_a_folder_that_cannot_be_synced_is_no_failure(path, monkeypatch):
    fsync = os.fsync

    def of_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    storage.save(path, a_mask())
    trees.assert_same(storage.load(path), a_mask())
    assert storage.append(path.parent / "tasks", a_mask()) == 1


def test_a_file_is_on_disk_before_it_has_its_name(path, monkeypatch):
    calls = []

    def note(name):
        real = getattr(os, name)

        def noted(*args):
            calls.append(name)
            return real(*args)

        return noted

    for name in ("fsync", "replace", "link"):
        monkeypatch.setattr(os, name, note(name))
    storage.save(path, a_mask())
    assert calls == ["fsync", "replace", "fsync"]
    calls.clear()
    storage.append(path.parent, a_mask())
    assert calls == ["fsync", "link", "fsync"]


def test_places_that_cannot_be_written_are_named(path, tmp_path):
    path.write_bytes(b"mine")
    for bad in (path / "below", tmp_path / "missing" / "file"):
        with raises(f"{bad} can't be written: (Not a directory|No such file or dir)"):
            storage.save(bad, a_mask())
        with raises(f"{bad} can't be written: (Not a directory|No such file or dir)"):
            storage.append(bad, a_mask())
    with raises(f"{tmp_path} is no file. A bank in a folder grows by `append`"):
        storage.save(tmp_path, a_mask())
    with raises(f"{path} can't be written: Not a directory"):
        storage.append(path, a_mask())
    assert contents(tmp_path) == {path.relative_to(tmp_path): b"mine"}


# What can't be saved.


@pytest.mark.parametrize(
    "save", [storage.save, storage.append], ids=lambda f: f.__name__
)
def test_what_is_no_mask_is_not_saved(save, path):
    fn = f"maskjax.storage.{save.__name__}"
    good = {"w": packed(random_bool((5, 7)))}
    ones = np.ones((2, 2), np.uint32)
    with raises(
        rf"`{fn}` needs every leaf of `mask` to be a bool.*b: float32", TypeError
    ):
        save(path, {**good, "b": np.ones(3, np.float32)})
    with raises(rf"`{fn}` needs masks with values.*a/w: bool array", TypeError):
        jax.jit(lambda m: save(path, {"a": m}))({"w": np.ones(3, bool)})
    with raises(rf"`{fn}` needs masks with values.*w/bits: uint32 array", TypeError):
        jax.jit(lambda m: save(path, m))(good)
    with raises(rf"`{fn}` needs masks with values.*learned: int32 array", TypeError):
        jax.jit(lambda b: save(path, b))(a_bank())
    with raises(rf"`{fn}` needs packed masks whose bits fit .*b: uint32", ValueError):
        save(path, {**good, "b": PackedMask(ones[0], (5,))})
    with raises(rf"`{fn}` needs packed masks .* w: one mask, not a stack", ValueError):
        save(path, {**good, "b": PackedMask(ones, (33,))})
    with raises(rf"`{fn}` needs every leaf of `stack` with the same", ValueError):
        save(path, {"a": PackedMask(ones[:1], (33,)), "b": PackedMask(ones, (33,))})
    with raises(rf"`{fn}` needs the bits of one mask or of one stack.*b: ", ValueError):
        save(path, {"b": PackedMask(ones[None], (33,))})
    with raises(rf"`{fn}` needs packed masks without bits past .*\n  b$", ValueError):
        save(path, {**good, "b": PackedMask(np.full(1, 8, np.uint32), (3,))})
    for learned, message in (
        (6, "mask.capacity` of at least 6"),
        (-1, "mask.learned`"),
    ):
        with raises(message, ValueError):
            save(path, a_bank()._replace(learned=np.int32(learned)))
    assert not path.exists()


def test_a_bank_has_leaves(tmp_path):
    for nothing in ({}, {"w": None}):
        with raises(
            "`maskjax.storage.append` needs `mask` with at least one", ValueError
        ):
            storage.append(tmp_path / "tasks", nothing)
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: 2}, float("nan"), np.float32(1), np.ones(2), jnp.ones(2), {1}, b"x"],
    ids=repr,
)
def test_metadata_are_what_json_holds(value, path):
    with raises(
        "`maskjax.storage.save` needs `metadata` as a dict.*'bad': ", TypeError
    ):
        storage.save(path, a_mask(), metadata={"good": 1, "bad": value})
    assert not path.exists()


def test_metadata_are_a_dict_from_strings(path):
    with raises("'?3'?: int 1", TypeError):
        storage.save(path, a_mask(), metadata={3: 1})
    for bad in ("text", [("a", 1)], 3):
        with raises("needs `metadata` as a dict from strings .*, got", TypeError):
            storage.save(path, a_mask(), metadata=bad)
    loop = {}
    loop["loop"] = loop
    with raises("'loop': nested more than 100 deep", TypeError):
        storage.save(path, a_mask(), metadata=loop)


# What can't be loaded.


# A thin sample; `-m slow` tries every byte and every length.
over_strides = pytest.mark.parametrize(
    "stride", [7, pytest.param(1, marks=pytest.mark.slow)]
)


@over_strides
def test_every_flipped_byte_is_found(stride, path):
    storage.save(path, a_bank(learned=2), metadata={"step": 7})
    data = path.read_bytes()
    for position in range(0, len(data), stride):
        bad = bytearray(data)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        with raises(str(path)):
            storage.load(path)


@over_strides
def test_every_truncated_file_is_found(stride, path):
    storage.save(path, a_mask())
    data = path.read_bytes()
    for length in (*range(0, len(data), stride), len(data) - 1):
        path.write_bytes(data[:length])
        with raises(f"{path} is damaged, or no safetensors file"):
            storage.load(path)
    path.write_bytes(data + b"\0")
    with raises(f"{path} is damaged, or no safetensors file"):
        storage.load(path)


def test_damaged_bits_are_found_and_named(path, tmp_path):
    storage.append(tmp_path, a_mask())
    storage.append(tmp_path, a_mask(seed=3))
    last = tmp_path / "00001.safetensors"
    data = last.read_bytes()
    last.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with raises(f"{last} is damaged: out is not what was saved"):
        storage.load(tmp_path)
    assert storage.info(tmp_path).members == 2


def test_files_that_are_not_ours_are_refused(path):
    safetensors.numpy.save_file({"w": np.ones(3, np.uint32)}, path)
    for use in (storage.load, storage.info):
        with raises(f"{path} is a safetensors file, but not one of maskjax"):
            use(path)
    for data in (b"", b"text", np.random.default_rng(0).bytes(999), bytes(64)):
        path.write_bytes(data)
        with raises(f"{path} is damaged, or no safetensors file"):
            storage.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.parametrize("use", [storage.load, storage.info], ids=lambda f: f.__name__)
def test_pipes_devices_and_folders_are_no_files(use, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    folder = tmp_path / "tasks"
    (folder / _disk.part(0)).mkdir(parents=True)
    for bad, name in (
        (tmp_path / "pipe", tmp_path / "pipe"),
        (os.devnull, os.devnull),
        ("/dev/zero", "/dev/zero"),
        (folder, folder / _disk.part(0)),
    ):
        with raises(f"{name} can't be read: it is no regular file"):
            use(bad)
    (folder / _disk.part(0)).rmdir()
    os.mkfifo(folder / _disk.part(0))
    with raises("it is no regular file"):
        storage.append(folder, a_mask())
    # A file that becomes a pipe just before it is opened.
    file = tmp_path / "file"
    storage.save(file, a_mask())
    status = os.stat(file)
    file.unlink()
    os.mkfifo(file)
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: status)
    with raises(f"{file} is damaged, or no safetensors file"):
        _disk.opened(file).__enter__()


def test_a_file_that_is_cut_while_it_is_read_is_no_crash(path, monkeypatch):
    storage.save(path, {"w": np.ones((32, 2**12), bool)})
    read_into, sizes = _disk.read_into, []

    def cutting(file, data):
        sizes.append(len(data))
        if len(data) == 2**14:
            os.truncate(path, path.stat().st_size - 2**13)
        read_into(file, data)

    monkeypatch.setattr(_disk, "read_into", cutting)
    with raises(f"{path} was cut while it was read"):
        storage.load(path)
    assert sizes[-1] == 2**14


def test_how_deep_the_caller_is_says_nothing_about_a_file(path):
    metadata = None
    for _ in range(100):
        metadata = [metadata]
    storage.save(path, a_mask(), metadata={"deep": metadata})
    assert storage.info(path).metadata == {"deep": metadata}
    with raises("'deeper': nested more than 100 deep", TypeError):
        storage.save(path, a_mask(), metadata={"deeper": [metadata]})

    def at(depth, call):
        return call() if not depth else at(depth - 1, call)

    def errors(call):
        for depth in range(0, 1000, 30):
            try:
                at(depth, call)
            except (RecursionError, StorageError, TypeError) as error:
                yield type(error)

    metadata = {"deep": metadata}
    assert {*errors(lambda: storage.info(path))} == {RecursionError}
    assert {*errors(lambda: _header.jsonable(metadata, ""))} == {RecursionError}
    rewritten(path, lambda facts: facts["metadata"].update(deeper="DEEP"))
    # From Python 3.12 on its reader of JSON has a stack of its own, and reads this too.
    refused = {StorageError} if sys.version_info < (3, 12) else set()
    assert {*errors(lambda: storage.info(path))} == {RecursionError, *refused}


def test_masks_that_are_nested_deep_come_back(path):
    mask = leaf = packed(random_bool((2, 3)))
    for i in range(400):
        mask = [{"a": mask}, (mask, None), [mask]][i % 3]
        mask = mask if i % 3 else {"a": mask["a"], "b": None}
    storage.save(path, mask)
    trees.assert_same(storage.load(path), mask)
    trees.assert_same(storage.load(path, like=mask), mask)
    with raises("`save` needs `mask` with at most 1,000 containers", ValueError):
        deep = leaf
        for _ in range(1001):
            deep = [deep]
        _header.layout(deep, "save")


def test_what_is_not_there_is_named(path, tmp_path):
    for use in (storage.load, storage.info):
        with raises(f"{path} can't be read: No such file or directory"):
            use(path)
        with raises(f"{tmp_path} is a folder without masks"):
            use(tmp_path)


def rewritten(path, change, *, tensors=None, version="3", sha256=None):
    """The file with other facts and a checksum that is right for them."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    old = json.loads(data[8 : 8 + length])["__metadata__"]
    facts = json.loads(old["maskjax.mask"].split(" ", 2)[2])
    change(facts)
    text = json.dumps(facts).replace('"DEEP"', "[" * 5000 + "]" * 5000)
    text = text.replace('"LONG"', "1" * 5000)
    sha256 = sha256 or _header.checksum(text.encode())
    new = {"maskjax.mask": f"{version} {sha256} {text}"}
    found = safetensors.numpy.load_file(path) if tensors is None else tensors
    safetensors.numpy.save_file(found, path, new)


def unchanged(facts):
    pass


def test_a_newer_format_says_so(path):
    storage.save(path, a_mask())
    rewritten(path, unchanged)
    storage.load(path)
    rewritten(path, unchanged, version="4")
    with raises(f"{path} has format version 4, and this maskjax reads 3"):
        storage.load(path)
    rewritten(path, unchanged, version="2")
    with raises(f"{path} has format version 2, .* 3: an older one may read it"):
        storage.load(path)
    rewritten(path, unchanged, version="one")
    with raises(f"{path} is damaged: its header is not what was saved"):
        storage.load(path)
    rewritten(path, unchanged, sha256="0" * 64)
    with raises(f"{path} is damaged: its header is not what was saved"):
        storage.load(path)


FORGERIES = {
    "kind": {"kind": "pickle"},
    "a mask of two": {"kind": "mask"},
    "no members": {"members": -1},
    "members": {"members": 2.0},
    "a bank of nothing": {"members": 0, "capacity": None},
    "a stack of nothing": {"kind": "stack", "members": 0},
    "capacity": {"capacity": 1},
    "capacity's type": {"capacity": "5"},
    "metadata": {"metadata": [1]},
    "no leaves": {"leaves": []},
    "leaf": {"leaves": [["b", None, None], ["w", [-5, 7], "0"]]},
    "leaf's parts": {"leaves": [["b", None], ["w", [5, 7], "0"]]},
    "leaf's rank": {"leaves": [["b", None, None], ["w", [1] * 5000, "0"]]},
    "leaf's size": {"leaves": [["b", None, None], ["w", [0, 2**60], "0"]]},
    "tree": {"tree": [["dict", ["b", "w"]], 0, 0]},
    "tree's leaf": {"tree": [["dict", ["b", "w"]], 0, "1"]},
    "tree's kind": {"tree": [["eval", 2], 0, 1]},
    "tree's keys": {"tree": [["dict", [[], {}]], 0, 1]},
    "tree's keys' kinds": {"tree": [["dict", ["b", 1]], 0, 1]},
    "tree's key twice": {"tree": [["dict", ["b", "b"]], 0, 1]},
    "tree's length": {"tree": [["list", 2**40], 0, 1]},
    "tree's negative length": {"tree": [["list", 2], 0, ["list", -1], 1]},
    "two trees": {"tree": [["list", 1], 0, 1]},
    "no tree": {"tree": []},
    "tree's depth": {"tree": [["list", 1]] * 1000 + [["list", 2], 0, 1]},
    "JSON's depth": {"more": "DEEP"},
    "too many": {"members": 2**31},
    "far too many": {"capacity": 10**400},
    "no number": {"capacity": "LONG"},
    "infinite": {"capacity": float("inf")},
    "overflowed": {"overflowed": 2**31},
    "unknown": {"more": 1},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_headers_that_make_no_sense_are_refused(forgery, path):
    storage.save(path, a_bank(learned=2))
    rewritten(path, lambda facts: facts.update(FORGERIES[forgery]))
    with raises(f"{path} has a header that makes no sense"):
        storage.load(path)


def test_a_small_file_asks_for_no_more_than_the_caller_does(path):
    storage.save(path, a_bank(learned=2))
    rewritten(path, lambda facts: facts.update(capacity=2**26))
    assert storage.info(path).capacity == 2**26
    for like in (None, {"w": np.ones((5, 7)), "b": None}, a_bank(capacity=9)):
        with raises(
            rf"{path} asks for room for 67108864 masks, 512 MiB more than it holds\. "
            r"If that is right, pass `capacity=67108864`\.$"
        ):
            storage.load(path, like=like)
    assert bank.capacity(storage.load(path, capacity=9)) == 9
    rewritten(path, lambda facts: facts.update(capacity=2**20))
    assert bank.capacity(storage.load(path)) == 2**20
    # A bank of that capacity names it too.
    masks = {
        "b": None,
        "w": PackedMask(np.broadcast_to(np.uint32(0), (2**25, 2)), (5, 7)),
    }
    rewritten(path, lambda facts: facts.update(capacity=2**25))
    like = MaskBank(masks, masks, np.int32(0), np.int32(0))
    assert bank.capacity(storage.load(path, like=like)) == 2**25


def test_the_shapes_of_an_empty_bank_are_bounded_too(path):
    storage.save(path, bank.empty({"w": np.ones((5, 7), np.float32)}, capacity=4))
    words = {"0:w": np.zeros((0, 2**25), np.uint32)}

    def larger(facts):
        facts["leaves"][0][1] = [2**30]

    rewritten(path, larger, tensors=words)
    assert storage.info(path).shapes == {"w": (2**30,)}
    with raises(r"4,608 MiB more than it holds. .* pass `capacity=4` and `like`\.$"):
        storage.load(path)
    with raises(r"4,096 MiB more than it holds. .* pass `like`\.$"):
        storage.load(path, capacity=4)
    with raises(r"512 MiB more than it holds. .* pass `capacity=4`\.$"):
        storage.load(path, like={"w": np.broadcast_to(np.float32(0), 2**30)})


def test_more_memory_than_there_is_is_no_crash(path):
    storage.save(path, a_bank())
    with raises(f"{path} needs more memory than there is"):
        storage.load(path, capacity=2**60)


def test_masks_without_entries_are_not_walked_through(path):
    storage.save(path, a_bank_of({"w": np.ones((3, 0), bool)}, 3))
    most = 2**31 - 1
    rewritten(
        path,
        lambda facts: facts.update(members=most, capacity=most),
        tensors={"1:w": np.zeros((most, 0), np.uint32)},
    )
    assert int(storage.load(path).learned) == most


def test_a_folder_is_of_one_shape_and_its_masks_are_counted(tmp_path):
    names = [tmp_path / _disk.part(i) for i in range(2)]
    for _ in names:
        storage.append(tmp_path, {"w": packed(np.ones((0, 3), bool))})
    rewritten(
        names[1],
        lambda facts: facts.update(members=2**31 - 1),
        tensors={"0:w": np.zeros((2**31 - 1, 0), np.uint32)},
    )
    with raises(f"{tmp_path} holds more masks than can be counted"):
        storage.load(tmp_path)

    def other(facts):
        facts["leaves"][0][1] = [0, 4]

    rewritten(names[1], other)
    with raises(f"{names[1]} holds masks of other shapes than {names[0]}"):
        storage.info(tmp_path)


def test_tensors_are_those_of_the_header(path):
    words = np.asarray(a_bank().masks["w"].bits)[:3]
    for tensors in (
        {},
        {"1:w": words, "more": words},
        {"0:w": words},
        {"1:w": words[:2]},
        {"1:w": words[:, None]},
        {"1:w": words.astype(np.float32)},
    ):
        storage.save(path, a_bank())
        rewritten(path, unchanged, tensors=tensors)
        with raises(f"{path} is damaged: its tensors are not what was saved"):
            storage.load(path)


def test_bits_past_the_entries_are_refused(path):
    storage.save(path, {"w": packed(np.ones(3, bool))})
    bits = np.array([[15]], np.uint32)

    def sign(facts):
        facts["leaves"][0][2] = _header.checksum(bits)

    rewritten(path, sign, tensors={"0:w": bits})
    with raises(f"without bits past their entries in {path}.*w"):
        storage.load(path)


def test_like_of_another_network_names_the_leaves(path):
    storage.save(path, a_mask())
    like = {
        "dense": {"kernel": np.ones((5, 8)), "bias": np.ones(8)},
        "head": np.ones((3, 4)),
    }
    with raises(
        rf"`maskjax.storage.load` needs `like` of the structure and shapes in {path}, "
        r"got:\n  dense/kernel: on disk \(5, 7\), `like` \(5, 8\)\n"
        r"  only in `like`: head\n  only on disk: out"
    ):
        storage.load(path, like=like)
    with raises(r"out: on disk \(3, 4\), `like` None"):
        storage.load(path, like={**a_mask(), "out": None})


def test_only_banks_have_a_capacity(path):
    for saved, kind in ((a_mask(), "mask"), (a_stack(), "stack")):
        storage.save(path, saved)
        with raises(f"{path} holds a {kind}, which has no capacity"):
            storage.load(path, capacity=9)


# Checkpoints of others.


@pytest.mark.parametrize("kind", ["boolean", "packed", "bank"])
def test_orbax_restores_masks(kind, tmp_path):
    mask = {"a": [jax.device_put(random_bool((5, 7))), None], "b": jnp.ones(3, bool)}
    tasks = jax.tree.map(jnp.asarray, a_bank())
    saved = {"boolean": mask, "packed": packing.pack(mask), "bank": tasks}[kind]
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "mask", saved)
        checkpointer.wait_until_finished()
        trees.assert_same(checkpointer.restore(tmp_path / "mask", like), saved)


def test_flax_restores_states_whose_masks_are_then_saved(path, tmp_path):
    """What comes back has leaves of NumPy."""
    scores = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    tasks = a_bank()
    stream = supsup_stream.StreamState(
        {"w": scores[0], "b": None},
        {"w": scores, "b": None},
        {"w": packed_stack(scores > 0), "b": None},
        *np.int32([2, 1, 0]),
        np.bool_(True),
    )
    owner = {"w": np.int16([[0, 1], [2, 1]]), "b": None}
    network = packnet.PackNetState(
        {"w": scores[0, :2, :2], "b": scores[0, 0, :2]},
        owner,
        {"w": None, "b": scores[:, 0, :2]},
        np.int32([2, 1]),
        *np.int32([2, 0]),
    )
    trained = packnet.Pruned(network.params, {"w": owner["w"] == 2, "b": None}, network)
    for state in (tasks, stream, network, trained, [tasks, {"deep": (stream, None)}]):
        fresh = jax.tree.map(np.zeros_like, state)
        data = serialization.to_bytes(jax.device_put(state))
        trees.assert_same(serialization.from_bytes(fresh, data), state)
    back = serialization.from_bytes(tasks, serialization.to_bytes(tasks))
    storage.save(path, back)
    trees.assert_same(storage.load(path, like=back), tasks)
    assert storage.append(tmp_path / "tasks", back) == 3
    back = serialization.from_bytes(stream, serialization.to_bytes(stream)).packed
    assert storage.append(tmp_path / "stream", back) == 2
    trees.assert_same(storage.load(tmp_path / "stream").masks, stream.packed)
    mask = serialization.from_bytes(trained, serialization.to_bytes(trained)).mask
    storage.save(path, mask)
    trees.assert_same(
        storage.load(path, like=network.params), {"w": packed(mask["w"]), "b": None}
    )


# While others write.


def test_a_file_that_is_replaced_while_it_is_read_is_read_anew(path, monkeypatch):
    old, new = a_mask(seed=0), a_mask(seed=5)
    storage.save(path, old)
    read_headers, turns = _disk.read_headers, []

    def replacing(name):
        found = read_headers(name)
        if not turns:
            storage.save(path, new)
        turns.append(1)
        return found

    monkeypatch.setattr(_disk, "read_headers", replacing)
    trees.assert_same(storage.load(path), new)
    assert len(turns) == 2


def test_a_file_that_never_stays_is_not_read_for_ever(path, monkeypatch):
    storage.save(path, a_mask())
    read_headers, seeds = _disk.read_headers, iter(range(1, 1000))

    def replacing(name):
        found = read_headers(name)
        storage.save(path, a_mask(seed=2 * next(seeds)))
        return found

    monkeypatch.setattr(_disk, "read_headers", replacing)
    monkeypatch.setattr(_loading, "_TRIES", 3)
    with raises("replaced again and again"):
        storage.load(path)


@pytest.mark.parametrize("call", [storage.save, storage.append])
def test_paths_that_no_file_can_have_are_named(call, tmp_path):
    with raises("can't be"):
        call(tmp_path / ("a" * 300), a_mask())
    for name in ("a\0b", ""):
        with raises("can't be the path of a file"):
            call(name, a_mask())
    with raises("can't be the path of a file"):
        storage.load("a\0b")


CALLS = {
    "save": lambda path, tree: storage.save(path, tree),
    "append": lambda path, tree: storage.append(path, tree),
    "save_params": lambda path, tree: storage.save_params(path, tree, None),
    "save_params(mask)": lambda path, tree: storage.save_params(path, a_mask(), tree),
    "load": lambda path, tree: storage.load(path, like=tree),
    "load_params": lambda path, tree: storage.load_params(path, like=tree),
    "info": lambda path, tree: storage.info(path),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_path_is_said_before_anything_is_done(call):
    fn = f"`maskjax.storage.{call.split('(')[0]}`"
    for bad, name in ((None, "NoneType None"), (3, "int 3"), (b"a", "bytes b'a'")):
        with raises(rf"^{fn} needs `path` as a string or .*, got {name}\.$", TypeError):
            CALLS[call](bad, {"w": np.ones(2, bool)})


@pytest.mark.parametrize("call", [call for call in CALLS if call != "info"])
def test_dicts_that_jax_cannot_sort_are_named(call, tmp_path):
    fn, path = f"`maskjax.storage.{call.split('(')[0]}`", tmp_path / "file"
    keep = np.ones(2, bool)
    if call == "load":
        storage.save(path, keep)
    if call == "load_params":
        storage.save_params(path, keep, None)
    for tree, line in (
        ({1: keep, "1": keep}, "the root: keys 1, '1'"),
        ({"a": [keep, {2: keep, "b": keep}], "c": None}, "a/1: keys 2, 'b'"),
    ):
        with raises(rf"^{fn} needs dicts whose keys can be .*\n  {line}$", TypeError):
            CALLS[call](path, tree)
    assert path.exists() == call.startswith("load")
