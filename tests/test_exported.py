"""Functions of masks, banks and states are exported for TPU and CUDA, and read back."""

import dataclasses

import jax
import optax
import pytest
from jax import export

from tests import trees
from tests.calls import CALLS
from tests.test_public_api import CLASSES

PLATFORMS = ("cpu", "cuda", "tpu")
# One call for each kind of value that goes in or comes out.
KINDS = [
    "masking.apply",
    "packing.unpack",
    "bank.append",
    "compaction.narrow: a training step",
    "optim.prune",
    "recipes.packnet.commit",
]
# Optax leaves this to users.
for state in (optax.EmptyState, optax.TraceState, optax.ScaleByAdamState):
    export.register_namedtuple_serialization(state, serialized_name=state.__name__)
NO_PYTREES = {
    "maskjax.layers.LinenFeatureMask",
    "maskjax.layers.NNXFeatureMask",
    "maskjax.storage.Info",
    "maskjax.structure.Block",
    "maskjax.compaction.Plan",
    "maskjax.structure.Entries",
    "maskjax.structure.Group",
    "maskjax.structure.Groups",
    "maskjax.structure.Member",
    "maskjax.structure.NofM",
    "maskjax.structure.Units",
    "maskjax.where.Axes",
}
PYTREES = [
    each
    for each in CLASSES
    if issubclass(each.values[0], tuple) or dataclasses.is_dataclass(each.values[0])
    if each.id not in NO_PYTREES
]


def read_back(call, platforms):
    """The exported function before and after it was bytes, and its arguments."""
    args = call.arguments()
    before = export.export(jax.jit(call.run), platforms=platforms)(*args)
    assert "CustomSPMDPartitioning" not in before.mlir_module()
    after = export.deserialize(before.serialize())
    assert (after.in_tree, after.out_tree) == (before.in_tree, before.out_tree)
    return after, args


@pytest.mark.parametrize("name", KINDS)
def test_an_exported_function_gives_the_same(name):
    (call,) = (call for call in CALLS if call.name == name)
    exported, args = read_back(call, PLATFORMS)
    expected = jax.jit(call.run)(*args)
    trees.assert_same(exported.call(*args), expected)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_every_call_is_exported_for_tpu_and_cuda(call):
    read_back(call, ("cuda", "tpu"))


@pytest.mark.parametrize("cls", PYTREES)
def test_every_public_pytree_can_be_part_of_it(cls):
    register = export.register_pytree_node_serialization
    how = {"serialize_auxdata": bytes, "deserialize_auxdata": bytes}
    with pytest.raises(ValueError, match="Duplicate serialization registration"):
        register(cls, serialized_name=cls.__name__, **how)
