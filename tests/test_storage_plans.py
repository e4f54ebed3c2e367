"""Plans of compaction on disk: whole, or refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import compaction, storage
from maskjax.storage import StorageError
from tests.test_storage_harm import of_facts, taken_apart

PARAMS = {
    "scale": np.float32(2),
    "up": np.ones((5, 8), "f"),
    "bias": np.linspace(-1, 1, 8, dtype="f"),
    "down": np.ones((8, 3), "f"),
}
MASK = {"scale": None, "up": np.arange(8)[None] % 2 == 0, "bias": None, "down": None}
X = np.ones((2, 5), "f")


def net(p, x):
    return jnp.tanh(x @ p["up"] + p["bias"][None]) @ p["down"] * p["scale"]


def plans():
    every = {**MASK, "bias": MASK["up"][0]}
    return {
        "units": compaction.plan(net, PARAMS, every, X),
        "nothing leaves": compaction.plan(net, PARAMS, MASK, X),
        "folded": compaction.plan(net, PARAMS, MASK, X, fold=True),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a file, and the plan in it."""
    path, files = tmp_path_factory.mktemp("saved") / "plan", {}
    for name, plan in plans().items():
        storage.save(path, plan, metadata={"step": 7})
        files[name] = path.read_bytes(), plan
    return files


def test_a_plan_comes_back_as_it_was(saved, tmp_path):
    path = tmp_path / "plan"
    for data, plan in saved.values():
        path.write_bytes(data)
        loaded = storage.load(path)
        assert loaded == plan
        assert hash(loaded) == hash(plan)
        assert str(loaded) == str(plan)
        assert loaded.shapes == plan.shapes
        info = storage.info(path)
        assert (info.kind, info.members, info.capacity) == ("plan", 1, None)
        assert info.shapes == {leaf.path: leaf.shape for leaf in plan.leaves}
        assert info.metadata == {"step": 7}


def test_a_loaded_plan_folds_as_before(saved, tmp_path):
    path = tmp_path / "plan"
    path.write_bytes(saved["folded"][0])
    plan = storage.load(path)
    masked = {**PARAMS, "up": PARAMS["up"] * MASK["up"]}
    found = compaction.narrow(net, plan)(compaction.shrink(masked, plan), X)
    np.testing.assert_allclose(found, net(masked, X), rtol=1e-6)
    assert plan.shapes["up"] == (5, 4)


def test_what_a_plan_does_not_have_is_refused(saved, tmp_path):
    path = tmp_path / "plan"
    data, plan = saved["units"]
    path.write_bytes(data)
    with pytest.raises(StorageError, match="holds a plan, which needs no `like`"):
        storage.load(path, like=PARAMS)
    with pytest.raises(StorageError, match="holds a plan, which has no capacity"):
        storage.load(path, capacity=3)
    with pytest.raises(TypeError, match="maskjax.storage.append"):
        storage.append(tmp_path / "folder", plan)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_and_flipped_files_are_refused(stride, saved, tmp_path):
    path = tmp_path / "plan"
    for data, _ in saved.values():
        for place in range(0, len(data), 8 * stride):
            flipped = bytearray(data)
            flipped[place] ^= 4
            for bad in (data[:place], bytes(flipped)):
                path.write_bytes(bad)
                with pytest.raises(StorageError, match="plan"):
                    storage.load(path)


VALUES = [-1, 0, 1, 7, 2**31, 2**62, 1.5, None, True, "x", [], {}, [[]], "float99"]


def forgeries(facts, entries):
    """Facts about a plan with one thing changed, right checksums or not."""

    def places(node, path=()):
        yield path
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            if isinstance(child, dict | list):
                yield from places(child, (*path, key))
            else:
                yield (*path, key)

    for path in places(facts["plan"]):
        for value in VALUES:
            other = {**facts, "plan": _with(facts["plan"], path, value)}
            if other["plan"] != facts["plan"]:
                yield other, entries


def _with(node, path, value):
    if not path:
        return value
    first, *rest = path
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[first] = _with(copy[first], rest, value)
    return copy


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_forged_facts_are_refused_or_make_a_plan(stride, saved, tmp_path):
    path, tried, refused = tmp_path / "plan", 0, 0
    for data, _ in saved.values():
        for forged in [*forgeries(*taken_apart(data))][::stride]:
            path.write_bytes(of_facts(data, *forged))
            tried += 1
            try:
                loaded = storage.load(path)
            except StorageError:
                refused += 1
            else:
                assert all(len(leaf.small) == len(leaf.shape) for leaf in loaded.leaves)
                str(loaded), hash(loaded)
    assert refused > tried / 2


@pytest.mark.parametrize(
    "rows", [[[True, False], [True, True]], [[False, False], [False, False]]]
)
def test_rows_that_keep_unequal_numbers_or_nothing_are_refused(rows, tmp_path):
    from maskjax.compaction._plan import Leaf, Plan

    keep = (np.ones(2, bool), np.array(rows))
    plan = Plan((Leaf("w", (2, 2), 1, keep, keep, np.zeros((), bool)),))
    storage.save(tmp_path / "plan", plan)
    with pytest.raises(StorageError, match="holds a plan that makes no sense for w"):
        storage.load(tmp_path / "plan")
