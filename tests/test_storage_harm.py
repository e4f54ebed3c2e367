"""Damaged and forged files, and processes that are killed: refused or whole."""

import functools
import json
import os
import subprocess
import sys
import time
import tracemalloc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import packing, storage
from maskjax.bank import MaskBank
from maskjax.packing import PackedMask
from maskjax.storage import StorageError, _header
from maskjax.structure import NofM
from tests import trees
from tests.reference.packing import unpack

MOST_SECONDS, MOST_BYTES = 1.0, 100e6


def a_stack(members, *, seed=0):
    draw = np.random.default_rng(seed).integers
    return {
        "a": [PackedMask(draw(2**32, size=(members, 2), dtype=np.uint32), (64,)), None],
        "b": PackedMask(draw(2**32, size=(members, 3, 4), dtype=np.uint32), (96, 4)),
    }


def a_bank(stack, counts, learned):
    return MaskBank(stack, counts, np.int32(learned), np.int32(0))


class Net(NamedTuple):
    """Parameters and their mask."""

    params: Any
    mask: Any


def a_net():
    rng = np.random.default_rng(3)
    few = np.arange(8)[:, None] % 4 == rng.integers(4, size=(1, 6))
    params = {
        "a": [rng.normal(size=(6, 8)).astype(np.float32), None],
        "b": rng.normal(size=(8, 6)).astype(jnp.bfloat16),
        "c": np.arange(6, dtype=np.int8).reshape(2, 3),
        "d": np.ones((5, 4), np.float32),
    }
    mask = {"a": [rng.random((6, 8)) < 0.3, None], "b": few, "c": None, "d": False}
    return Net(params, mask)


def save(path, value):
    if not isinstance(value, Net):
        return storage.save(path, value, metadata={"step": 7})
    structure = {"a": None, "b": NofM(1, 4), "c": None, "d": None}
    return storage.save_params(path, *value, structure=structure, metadata={"step": 7})


def load(path):
    if storage.info(path).kind == "params":
        return Net(*storage.load_params(path))
    return storage.load(path)


def originals():
    stack = a_stack(3)
    mask = {
        "a": [PackedMask(stack["a"][0].bits[0], (64,)), None],
        "b": PackedMask(stack["b"].bits[0], (96, 4)),
    }
    counts = {"a": [np.zeros(64, np.int32), None], "b": np.zeros((96, 4), np.int32)}
    return {
        "mask": mask,
        "stack": stack,
        "bank": a_bank(stack, counts, 3),
        "bank of nothing yet": a_bank(stack, counts, 0),
        "stack without entries": {"a": PackedMask(np.zeros((3, 0), np.uint32), (0, 5))},
        "params": a_net(),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of some files, and what they hold."""
    path = tmp_path_factory.mktemp("saved") / "file"
    files = {}
    for name, value in originals().items():
        save(path, value)
        files[name] = path.read_bytes(), load(path)
    return files


class Costs:
    """What a block takes: CPU seconds, and bytes at its peak beyond those before it."""

    def __enter__(self):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak so far is forgotten
        self.before, self.start = self.read("VmHWM"), time.process_time()
        return self

    def __exit__(self, *error):
        self.seconds = time.process_time() - self.start
        self.bytes = self.read("VmHWM") - self.before

    def read(self, name):
        with open("/proc/self/status") as file:
            (line,) = (line for line in file if line.startswith(name))
        return 1024 * int(line.split()[1])


on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is read as Linux tells it"
)


def damaged(files, draw):
    """A file with bytes flipped, cut out, or put in from itself or another."""
    datas = list(files.values())
    data = bytearray(datas[draw.integers(len(datas))])
    for _ in range(draw.integers(1, 4)):
        start, size = draw.integers(len(data) + 1), int(2 ** draw.uniform(0, 9))
        match draw.integers(5):
            case 0 if start < len(data):
                data[start] ^= 1 << draw.integers(8)
            case 1:
                del data[start:]
            case 2:
                del data[start : start + size]
            case 3:
                other = datas[draw.integers(len(datas))]
                place = draw.integers(len(other))
                data[start:start] = other[place : place + size]
            case _:
                other = datas[draw.integers(len(datas))]
                data[start : start + size] = other[start : start + size]
    return bytes(data)


@on_linux
@pytest.mark.parametrize("times", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_whole(times, saved, tmp_path):
    path, draw = tmp_path / "file", np.random.default_rng(times)
    files = {name: data for name, (data, _) in saved.items()}
    for _ in range(times):
        slowest, refused = 0.0, 0
        with Costs() as costs:
            for _ in range(100):
                path.write_bytes(data := damaged(files, draw))
                start = time.process_time()
                try:
                    loaded = load(path)
                except StorageError:
                    refused += 1
                else:
                    (name,) = (name for name in files if files[name] == data)
                    trees.assert_same(loaded, saved[name][1])
                slowest = max(slowest, time.process_time() - start)
        assert costs.bytes < MOST_BYTES
        assert slowest < MOST_SECONDS
        assert refused > 80


NUMBERS = [
    *(2**n for n in (20, 26, 31, 40, 60, 63, 64)),
    *(2**31 - 1, 10**400, 10**4000, -1, 0, 1, 1e9, 1e400),
]
VALUES = [*NUMBERS, None, True, "x", [], {}, [[]], "DEEP"]


def forgeries(facts, entries):
    """Facts and tensors' entries, each with something in it that was not saved."""

    def changed(change):
        pair = json.loads(json.dumps([facts, entries]))
        change(*pair)
        return pair

    for field in facts:
        for value in VALUES:
            yield changed(lambda f, e, k=field, v=value: f.update({k: v}))
    for value in VALUES:
        yield changed(lambda f, e, v=value: f["leaves"][0].__setitem__(1, v))
        yield changed(lambda f, e, v=value: f["leaves"][0].__setitem__(1, [v]))
        yield changed(lambda f, e, v=value: f["leaves"][0].__setitem__(1, [0, v]))
        yield changed(lambda f, e, v=value: f["leaves"].append(["x", v, "0"]))
        yield changed(lambda f, e, v=value: f["tree"].__setitem__(0, v))
        yield changed(lambda f, e, v=value: f["tree"].__setitem__(0, ["list", v]))
        yield changed(lambda f, e, v=value: f["tree"].__setitem__(0, ["dict", [v]]))
        for name in entries:
            for field in entries[name]:
                yield changed(
                    lambda f, e, k=field, v=value, n=name: e[n].update({k: v})
                )
    for place in _places(facts.get("params", [])):
        for value in VALUES:
            yield changed(lambda f, e, p=place, v=value: _set(f["params"], p, v))
    for rank in (33, 65, 5000):
        yield changed(lambda f, e, r=rank: f["leaves"][0].__setitem__(1, [1] * r))
    for depth in (500, 5000, 50_000):
        deep = [["list", 1]] * depth
        yield changed(lambda f, e, d=deep: f.update(tree=d + f["tree"]))
    for number in NUMBERS:  # as if the tensors were those of the header

        def together(f, e, number=number):
            f.update(members=number, capacity=number)
            for entry in e.values():
                entry["shape"][0] = number

        def shapes(f, e, number=number):
            f["leaves"][0][1] = [32 * number]
            e[min(e)]["shape"][1:] = [number]

        def zeros(f, e, number=number):  # those that only an axis of 1 speaks of
            f["params"][-1]["shape"][0] = number

        yield changed(together)
        yield changed(shapes)
        if "params" in facts:
            yield changed(zeros)


def _places(node, path=()):
    """The keys that lead to each value within dicts and lists."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in items:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from _places(child, (*path, key))


def _set(node, path, value):
    """Set one value within dicts and lists."""
    functools.reduce(lambda at, key: at[key], path[:-1], node)[path[-1]] = value


def of_facts(data, facts, entries):
    """A file with other facts, and checksums that are right for them."""
    begin = 8 + int.from_bytes(data[:8], "little")
    text = json.dumps(facts).replace('"DEEP"', "[" * 3000 + "]" * 3000)
    signed = f"3 {_header.checksum(text.encode())} {text}"
    whole = json.dumps({"__metadata__": {"maskjax.mask": signed}, **entries})
    whole = whole.replace('"DEEP"', "[" * 3000 + "]" * 3000).encode()
    return len(whole).to_bytes(8, "little") + whole + data[begin:]


def taken_apart(data):
    """The facts and the tensors' entries of a file."""
    begin = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:begin])
    text = entries.pop("__metadata__")["maskjax.mask"]
    return json.loads(text.split(" ", 2)[2]), entries


def words(loaded):
    """What is in a file: words of masks, in a bank those that are learned; values."""
    if isinstance(loaded, Net):
        leaves, treedef = jax.tree.flatten(loaded.params)
        masks = treedef.flatten_up_to(loaded.mask)
        kept = [
            x if m is None else np.asarray(x)[np.broadcast_to(_unpacked(m), x.shape)]
            for x, m in zip(leaves, masks, strict=True)
        ]
        counts = [0 if m is None else int(_unpacked(m).sum()) for m in masks]
        return b"".join(np.asarray(x).tobytes() for x in kept), counts
    masks = loaded.masks if isinstance(loaded, MaskBank) else loaded
    used = slice(int(loaded.learned)) if isinstance(loaded, MaskBank) else ...
    return b"".join(np.asarray(bits)[used].tobytes() for bits in jax.tree.leaves(masks))


def _unpacked(mask):
    return unpack(np.asarray(mask.bits), mask.shape)


@on_linux
@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_forged_headers_are_refused_or_whole(stride, saved, tmp_path):
    path, tried, whole = tmp_path / "file", 0, 0
    for data, original in saved.values():
        as_it_was = taken_apart(data)  # what is refused below is so for what is forged
        for forged in [as_it_was, *[*forgeries(*taken_apart(data))][::stride]]:
            path.write_bytes(of_facts(data, *forged))
            tried += 1
            with Costs() as costs:
                for use in (storage.info, load):
                    try:
                        loaded = use(path)
                    except StorageError:
                        assert forged is not as_it_was
                        continue
                    if use is load:
                        whole += 1
                        assert words(loaded) == words(original)
            assert costs.bytes < MOST_BYTES, forged
            assert costs.seconds < MOST_SECONDS, forged
    assert tried > 1000 / stride
    assert tried // 20 <= whole < tried // 3


HARMFUL = [  # took 7 GB, did not end, or raised errors of Python and NumPy
    (("capacity",), 2**26, "asks for room for 67108864 masks"),
    (("capacity",), 2**31, "makes no sense"),
    (("capacity",), 10**400, "makes no sense"),
    (("members",), 2**40, "makes no sense"),
    (("leaves", 0, 1), [2**60], "makes no sense"),
    (("leaves", 0, 1), [0, 2**60], "makes no sense"),
    (("leaves", 0, 1), [1] * 5000, "makes no sense"),
    (("tree", 0), "DEEP", "makes no sense"),
]


@on_linux
@pytest.mark.parametrize(("place", "value", "match"), HARMFUL)
def test_a_header_that_asks_for_more_than_the_file_holds(
    place, value, match, saved, tmp_path
):
    data, _ = saved["bank"]
    facts, entries = taken_apart(data)
    functools.reduce(lambda at, key: at[key], place[:-1], facts)[place[-1]] = value
    (tmp_path / "file").write_bytes(of_facts(data, facts, entries))
    with Costs() as costs, pytest.raises(StorageError, match=match):
        storage.load(tmp_path / "file")
    assert costs.bytes < MOST_BYTES
    assert costs.seconds < MOST_SECONDS


MB = 2**20


def peak(function):
    """The most bytes that NumPy and Python take in a function's second run."""
    function()
    tracemalloc.start()
    try:
        result = function()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def test_saving_and_loading_take_memory_for_one_leaf_at_a_time(tmp_path):
    """Six leaves of 8 MB; a mask of 2 MB for each, packed when it is returned."""
    path, size = tmp_path / "net", 2**21
    draw = np.random.default_rng(0).random
    params = {f"{i}": draw(size, np.float32) for i in range(6)}
    for tree in (params, jax.device_put(params)):
        taken, _ = peak(lambda tree=tree: storage.save_params(path, tree, None))
        assert taken < 0.5 * MB
    taken, _ = peak(lambda: storage.load_params(path))
    assert taken < (48 + 0.5) * MB
    kept, mask = 0.3 * 8, packing.pack({k: v < 0.3 for k, v in params.items()})
    taken, _ = peak(lambda: storage.save_params(path, params, mask))
    assert taken < (kept + 2 + 0.5) * MB
    taken, (_, loaded) = peak(lambda: storage.load_params(path))
    returned = 48 + sum(leaf.nbytes for leaf in loaded.values()) / MB
    assert returned < 50
    assert taken < (returned + kept + 2 + 0.5) * MB


# Processes.

# Forks before JAX has started any thread: a fork costs little, an import seconds.
START = """
import os, random, signal, sys, time, traceback
import numpy as np
from maskjax import packing, storage
from maskjax.packing import PackedMask

folder, times = sys.argv[1], int(sys.argv[2])

def mask(number):
    return {"w": PackedMask(np.full(2048, number, np.uint32), (65536,))}

def fork(function):
    "A process that calls a function with a file to write to; the other end of that."
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        return child, os.fdopen(read)
    try:
        with os.fdopen(write, "w") as out:
            function(out)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)

def numbers():
    bits = np.asarray(storage.load(folder).masks["w"].bits)
    assert (bits == bits[:, :1]).all()
    return bits[:, 0].tolist()
"""

KILLED = (
    START
    + """
def append(out):
    while True:
        number = random.getrandbits(32)
        storage.append(folder, mask(number))
        print(number, file=out, flush=True)

said, left = [], 0
for _ in range(times):
    child, out = fork(append)
    first = out.readline()
    time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said += [int(line) for line in [first, *out] if line.endswith("\\n")]
    left += any(name.startswith(".") for name in os.listdir(folder))
    storage.append(folder, mask(0))
    said.append(0)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
found = iter(numbers())
assert all(number in found for number in said)  # in their order
print(f"{len(said)} said, {left} left something")
"""
)

TOGETHER = (
    START
    + """
def append(out):
    for number in range(times):
        print(storage.append(folder, mask(number)), file=out)

processes = [fork(append) for _ in range(2)]
found = [int(line) for _, out in processes for line in out]
assert [os.waitpid(child, 0)[1] for child, _ in processes] == [0, 0]
assert sorted(found) == [*range(1, 2 * times + 1)]
assert sorted(numbers()) == sorted([*range(times)] * 2)
assert not [name for name in os.listdir(folder) if name.startswith(".")]
"""
)


REPLACED = (
    START
    + """
keep, files = np.arange(65536) % 3 == 0, []

def write(out):
    while True:
        number = random.getrandbits(31)
        full = lambda size: np.full(size, number, np.int32)
        params = {"w": full(65536), "b": full(9)}
        storage.save_params(folder, params, {"w": keep, "b": None})
        print(number, file=out, flush=True)

for _ in range(times):
    child, out = fork(write)
    first = out.readline()
    time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = [int(line) for line in [first, *out] if line.endswith("\\n")]
    with open(folder, "rb") as file:
        files.append((said, file.read()))
for said, data in files:
    with open(folder, "wb") as file:
        file.write(data)
    found, mask = storage.load_params(folder)
    number = int(found["b"][0])
    assert number == said[-1] or number not in said  # or the next, which was not said
    assert (np.asarray(found["w"]) == np.where(keep, number, 0)).all()
"""
)


def run(code, folder, times):
    command = [sys.executable, "-W", "ignore", "-c", code, folder, str(times)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not out.returncode, out.stderr
    print(out.stdout)


on_posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@on_posix
@pytest.mark.slow
def test_what_was_appended_outlives_a_kill_and_nothing_else_stays(tmp_path):
    run(KILLED, tmp_path / "tasks", 150)


@on_posix
@pytest.mark.slow
def test_parameters_that_are_replaced_are_whole_after_a_kill(tmp_path):
    run(REPLACED, tmp_path / "net", 100)


@on_posix
@pytest.mark.slow
def test_two_processes_that_append_both_succeed(tmp_path):
    run(TOGETHER, tmp_path / "tasks", 40)
