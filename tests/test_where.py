"""Predicates, and the paths that they read."""

import jax
import jax.numpy as jnp
import pytest

from maskjax import masking, score, where
from tests import trees

KERNELS = {
    "nested_dict": {"conv/kernel", "encoder/dense/kernel", "out/kernel"},
    "tuple": {"0", "1/1"},
    "namedtuple": {"kernel/kernel", "bias/kernel"},
    "linen": {"Dense_0/kernel", "Dense_1/kernel"},
    "nnx": {"hidden/kernel", "out/kernel"},
    "equinox": {"layers/0/weight", "layers/1/weight"},
    "odd_leaves": {"empty/kernel", "kernel"},
}


def chosen(params, predicate):
    """The paths at which a predicate says yes."""
    seen = set()

    def spy(path, leaf):
        if predicate(path, leaf):
            seen.add(path)
        return True

    masking.everything(params, where=where.floating & spy)
    return seen


@pytest.mark.parametrize("name", trees.NAMES)
def test_kernels_have_readable_paths_in_every_framework(name):
    assert chosen(trees.make(name), where.kernels) == KERNELS[name]


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("batch_stats/BatchNorm_0/mean", True),
        ("net/batch_stats/norm/whatever", True),
        ("norm/mean", True),
        ("var", True),
        ("params/BatchNorm_0/scale", False),
        ("invar", False),
        ("mean/kernel", False),
        ("my_batch_stats/x", False),
    ],
)
def test_statistics_are_known_by_flaxs_names(path, counts):
    assert where.statistics(path, jnp.ones(3)) is counts


@pytest.mark.parametrize("name", trees.NAMES)
def test_kernels_are_what_carries_a_mask_by_default(name):
    params = trees.make(name)
    for tree in (masking.everything(params), score.magnitude(params)):
        assert len(jax.tree.leaves(tree)) == len(KERNELS[name])


def test_predicates_combine():
    params = trees.make("nested_dict")
    encoder = where.matching("^encoder/")
    assert chosen(params, encoder & where.kernels) == {"encoder/dense/kernel"}
    assert chosen(params, encoder | where.matching("^out/bias$")) == {
        "encoder/dense/kernel",
        "encoder/dense/bias",
        "out/bias",
    }
    assert chosen(params, ~where.kernels) == {"encoder/dense/bias", "out/bias"}
    assert chosen(params, ~(encoder | ~where.kernels)) == {"conv/kernel", "out/kernel"}
    assert chosen(params, ~~encoder) == chosen(params, encoder)


def test_predicates_combine_with_plain_functions():
    def wide(path, leaf):
        return leaf.shape[-1] == 8

    params = trees.make("nested_dict")
    assert chosen(params, where.kernels & wide) == {"encoder/dense/kernel"}
    assert chosen(params, where.matching("^conv") | wide) == {
        "conv/kernel",
        "encoder/dense/kernel",
        "encoder/dense/bias",
    }


def test_predicates_are_equal_when_they_say_the_same():
    a = where.matching("x") & ~where.ndim_at_least(2) | where.floating
    b = where.matching("x") & ~where.ndim_at_least(2) | where.floating
    assert a == b
    assert hash(a) == hash(b)
    assert a != (where.matching("y") & ~where.ndim_at_least(2) | where.floating)


def test_predicates_are_represented_as_they_are_written():
    predicate = where.matching("x") & ~where.ndim_at_least(2) | where.kernels
    written = "((where.matching('x') & ~where.ndim_at_least(2)) | where.kernels)"
    assert repr(predicate) == written
    assert repr(where.everything | where.floating) == (
        "(where.everything | where.floating)"
    )


@pytest.mark.parametrize(
    ("predicate", "leaf", "answer"),
    [
        (where.kernels, jnp.ones((2, 2)), True),
        (where.kernels, jnp.ones((2, 2), jnp.bfloat16), True),
        (where.kernels, jnp.ones(2), False),
        (where.kernels, jnp.ones((2, 2), jnp.int32), False),
        (where.kernels, jnp.ones((2, 2), jnp.complex64), False),
        (where.kernels, 3.0, False),
        (where.floating, jnp.ones(()), True),
        (where.floating, jnp.ones((2, 2), jnp.int32), False),
        (where.everything, jnp.ones((), jnp.int32), True),
        (where.ndim_at_least(0), jnp.ones(()), True),
        (where.ndim_at_least(1), jnp.ones(()), False),
        (where.ndim_at_least(2), jnp.ones((2, 2), jnp.int32), True),
    ],
)
def test_a_predicate_looks_at_rank_and_dtype(predicate, leaf, answer):
    assert predicate("path", leaf) is answer


def test_a_regular_expression_is_found_anywhere_in_the_path():
    assert where.matching("dense")("net/dense_0/kernel", None)
    assert not where.matching("^dense")("net/dense_0/kernel", None)
    assert where.matching("kernel$")("net/dense_0/kernel", None)
