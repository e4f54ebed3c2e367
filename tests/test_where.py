"""Predicates, and the paths that they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import allocation, initializer, masking, optim, score, select, where
from tests import trees

KERNELS = {
    "nested_dict": {"conv/kernel", "encoder/dense/kernel", "out/kernel"},
    "tuple": {"0", "1/1"},
    "namedtuple": {"kernel/kernel", "bias/kernel"},
    "linen": {"Dense_0/kernel", "Dense_1/kernel"},
    "nnx": {"hidden/kernel", "out/kernel"},
    "equinox": {"hidden/weight", "out/weight"},
    "odd_leaves": {"empty/kernel", "kernel"},
}


def chosen(params, predicate):
    """The paths at which a predicate says yes."""
    seen = set()

    def spy(path, leaf):
        if predicate(path, leaf):
            seen.add(path)
        return True

    everything = lambda p: masking.everything(p, where=where.floating & spy)  # noqa: E731
    jax.eval_shape(everything, params)
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
    assert where.statistics(path, np.ones(3)) is counts


@pytest.mark.parametrize("name", trees.NAMES)
def test_kernels_are_what_carries_a_mask_by_default(name):
    for function in (masking.everything, score.magnitude):
        tree = jax.eval_shape(function, trees.make(name))
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
        (where.kernels, np.ones((2, 2)), True),
        (where.kernels, np.ones((2, 2), jnp.bfloat16), True),
        (where.kernels, np.ones(2), False),
        (where.kernels, np.ones((2, 2), jnp.int32), False),
        (where.kernels, np.ones((2, 2), jnp.complex64), False),
        (where.kernels, 3.0, False),
        (where.floating, np.ones(()), True),
        (where.floating, np.ones((2, 2), jnp.int32), False),
        (where.everything, np.ones((), jnp.int32), True),
        (where.ndim_at_least(0), np.ones(()), True),
        (where.ndim_at_least(1), np.ones(()), False),
        (where.ndim_at_least(2), np.ones((2, 2), jnp.int32), True),
    ],
)
def test_a_predicate_looks_at_rank_and_dtype(predicate, leaf, answer):
    assert predicate("path", leaf) is answer


def test_a_regular_expression_is_found_anywhere_in_the_path():
    assert where.matching("dense")("net/dense_0/kernel", None)
    assert not where.matching("^dense")("net/dense_0/kernel", None)
    assert where.matching("kernel$")("net/dense_0/kernel", None)


def test_predicates_say_what_they_choose():
    assert "rank 2 or more" in where.kernels.__doc__
    written = "The leaves that `where.matching('x')` chooses."
    assert where.matching("x").__doc__ == written


PARAMS = {"dense": {"kernel": np.ones((4, 4), "float32")}}
KEY = jax.random.key(0)
REWIRING = {"rate": 0.5, "every": 1, "key": KEY}
TAKERS = {
    "masking.everything": lambda w: masking.everything(PARAMS, where=w),
    "score.magnitude": lambda w: score.magnitude(PARAMS, where=w),
    "select.random": lambda w: select.random(PARAMS, density=0.5, where=w, key=KEY),
    "allocation.erk": lambda w: allocation.erk(PARAMS, density=0.5, where=w),
    "allocation.matching": lambda w: allocation.matching(
        PARAMS, densities={}, density=0.5, where=w
    ),
    "initializer.redraw": lambda w: initializer.redraw(
        initializer.signed_constant(), PARAMS, where=w, key=KEY
    ),
    "optim.prune": lambda w: optim.prune(0.5, where=w),
    "optim.rigl": lambda w: optim.rigl(0.5, where=w, **REWIRING),
    "optim.set_": lambda w: optim.set_(0.5, where=w, **REWIRING),
}


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize(
    ("given", "got", "write"),
    [
        ("kernel$", "str 'kernel$'", "where.matching('kernel$')"),
        (["kernel"], "list ['kernel']", "where.kernels"),
        (where, "module <module 'maskjax.where'", "where.kernels"),
        ({"dense": True}, "dict {'dense': True}", "where.kernels"),
    ],
    ids=["string", "list", "module", "tree"],
)
def test_what_is_no_predicate_is_refused_with_what_to_write(name, given, got, write):
    match = rf"`maskjax.{name}` needs `where` as a function `\(path, leaf\)"
    with pytest.raises(TypeError, match=match) as at:
        TAKERS[name](given)
    assert f"got {got}" in str(at.value)
    assert f"Write `{write}`" in str(at.value)
