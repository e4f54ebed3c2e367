"""Predicates, and the paths that they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import allocation, initializer, masking, optim, score, select, where
from tests import parameter_names, trees

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
        (where.kernels, np.ones((2, 2), jnp.complex64), True),
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
    assert "2 axes or more" in where.kernels.__doc__
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


A = where.Axes
CONVENTION = {
    "dense/kernel 3 4": A(inputs=(0,), outputs=(1,)),
    "Conv_0/kernel 3 3 8 16": A((), (0, 1), (2,), (3,)),
    "conv1d/kernel 3 8 16": A((), (0,), (1,), (2,)),
    "attention/query/kernel 8 2 4": A((), (), (0,), (1, 2)),
    "attention/out/kernel 2 4 8": A((), (), (0, 1), (2,)),
    "conv_1d/w 3 8 16": A((), (0,), (1,), (2,)),
    "embed/embedding 9 4": A(inputs=(0,), outputs=(1,), lookup=True),
    "wte/weight 9 4": A(inputs=(0,), outputs=(1,), lookup=True),
    # Unknown: a stack of dense layers, of attention (or grouped queries), a scanned or
    # oblong convolution, an Equinox kernel.
    "layers/dense/kernel 3 4 5": "3 axes",
    "layers/query/kernel 3 8 8": "3 axes",
    "attention/key/kernel 8 1 4": "3 axes",
    "mlp/out/kernel 2 5 10": "3 axes",
    "conv_block/dense/kernel 3 8 16": "3 axes",
    "pwconv1/kernel 3 8 16": "3 axes",
    "deconv/kernel 3 3 8 16": "4 axes",
    "layers/query/kernel 5 8 2 4": "4 axes",
    "layers/Conv_0/kernel 5 3 3 8 16": "5 axes",
    "layers/conv1d/kernel 3 3 8 16": "4 axes",
    "Conv_0/kernel 2 3 8 16": "4 axes",
    "ConvTranspose_0/kernel 3 3 8 16": "4 axes",
    "linear/weight 4 3": "(out, in)",
    "attention/in_proj_weight 4 3": "(out, in)",
    "h/0/attn/c_attn/kernel 9 3": "of GPT-2 are (in, out) in one framework",
}
POSITIONS = "pos_embedding", "positions", "wpe/embedding", "position_embed/weight"
NO_KERNELS = (
    "bias", "attention/query/bias", "norm/scale", "bn/mean", "bn/var", "layer/b",
    "batch_stats/dense/kernel/u", "cache/attention/cached_key", "q/lora_a", "q/lora_b",
    "norm1/weight", "ln_f/weight", "pos_embedding", "Embed_0/embedding",
    "PReLU_0/negative_slope", "cls_token", "vit/register_tokens", "mixer/A_log",
)  # fmt: skip


@pytest.mark.parametrize("leaf", CONVENTION)
def test_names_and_shapes_tell_the_axes_where_they_leave_no_doubt(leaf):
    path, *shape = leaf.split()
    shape = np.ones([int(n) for n in shape])
    told = where.kernels.axes(path, shape)
    known = CONVENTION[leaf]
    if isinstance(known, str):
        assert where.kernels(path, shape)
        assert known in told
    else:
        assert told == known
        assert told.source == "convention"
        assert where.kernels(path, shape) is not known.lookup
        assert where.embeddings(path, shape) is known.lookup


@pytest.mark.parametrize("path", POSITIONS)
def test_positions_are_added_or_looked_up(path):
    table = np.ones((9, 4))
    assert where.embeddings(path, table)
    assert not where.kernels(path, table)
    assert "added as they are, or looked up" in where.kernels.axes(path, table)


@pytest.mark.parametrize("path", NO_KERNELS)
def test_what_has_no_inputs_is_no_kernel_however_it_is_stacked(path):
    for shape in ((8,), (3, 8), (3, 4, 8)):
        assert not where.kernels(path, np.ones(shape))


@pytest.mark.parametrize("row", parameter_names.ROWS)
def test_names_of_networks_that_people_train(row):
    path, sizes, known = row.split()
    leaf = np.ones([3 if size == "L" else int(size) for size in sizes.split(",")])
    told = where.kernels.axes(path, leaf)
    assert where.embeddings(path, leaf) is (known in ("table", "position"))
    assert where.kernels(path, leaf) is (known not in ("table", "position", "no"))
    if known == "position":
        assert "tables of positions" in told
    elif known != "table":
        letters = "".join(word[0] for word in str(told).split())
        assert ("?" if isinstance(told, str) else letters) == known.replace("no", "?")


@pytest.mark.parametrize("path", ["layer/g", "layer/weight_g"])
def test_lengths_of_weight_norm_are_no_kernels(path):
    for shape in ((8, 1), (3, 8, 1), (8, 1, 1, 1)):
        assert not where.kernels(path, np.ones(shape))
    assert where.kernels(path, np.ones((8, 4)))


def test_a_quantized_kernel_is_not_passed_over():
    assert where.kernels("dense/kernel", np.ones((2, 2), jnp.int4))
    assert not where.kernels("tokens", np.ones((2, 2), jnp.int4))


@pytest.mark.parametrize("leaf", [1.0, None, "text"])
def test_what_is_no_array_has_no_axes(leaf):
    for predicate in (where.kernels, where.embeddings, where.everything):
        assert predicate.axes("kernel", leaf) == "it is no array"


def test_what_was_told_is_believed_before_names():
    leaf = np.ones((4, 3))
    equinox = where.matching("weight$", axes="outputs inputs")
    for both in (equinox | where.kernels, where.kernels & equinox, ~~equinox):
        assert both.axes("weight", leaf) == A(outputs=(0,), inputs=(1,))
        assert both.axes("other", leaf) == A(inputs=(0,), outputs=(1,))
    transposed = where.matching("kernel", axes="outputs inputs")
    for both in (transposed | where.kernels, where.kernels & transposed):
        assert both.axes("kernel", leaf) == A(outputs=(0,), inputs=(1,))
    assert (equinox & (lambda p, x: True)).axes("weight", leaf).source == "told"


def test_sources_of_equal_strength_that_disagree_leave_axes_unknown():
    params = {"w": np.ones((2, 3, 4)), "v": np.ones((2, 3, 4)), "u": np.ones((4, 3))}
    tell = where.matching
    one, other = (
        tell("[wv]", axes="stack inputs outputs"),
        tell("w|v", axes="inputs " * 3),
    )
    for predicate in (one | other, other & one, (one | other) | where.kernels):
        with pytest.raises(ValueError, match="maskjax.allocation.erk` needs to") as at:
            allocation.erk(params, density=0.5, where=where.floating & predicate)
        for path in ("w", "v"):
            assert (
                f"\n  {path}: shape (2, 3, 4), its axes were told as '" in f"{at.value}"
            )
        assert "\n  u" not in str(at.value)
        assert "stack inputs outputs" in str(at.value)
    # Rank 2 as well: one of the two may know that it is a stack.
    clash = tell("u", axes="stack outputs") | tell("u$", axes="inputs outputs")
    with pytest.raises(
        ValueError, match=r"u: .*'stack outputs' and as 'inputs outputs"
    ):
        allocation.erk({"u": params["u"]}, density=0.5, where=clash | where.kernels)


def test_what_is_told_settles_what_two_traces_leave_open():
    x, leaf = np.ones((1, 4), "f4"), np.ones((4, 4), "f4")
    forth = where.traced(lambda p, x: x @ p["w"], {"w": leaf}, x)
    back = where.traced(lambda p, x: x @ p["w"].T, {"w": leaf}, x)
    assert "were traced as 'inputs outputs' and as" in (forth & back).axes("w", leaf)
    told = (forth & back) | where.matching("w", axes="outputs inputs")
    assert told.axes("w", leaf) == A(outputs=(0,), inputs=(1,))
    with pytest.raises(
        ValueError, match="w: shape .*, its axes were traced as 'inputs"
    ):
        select.top_k({"w": np.ones((4, 4, 1))}, density=0.5, scope="layer", where=forth)


@pytest.mark.parametrize("words", ["", "inputs output", "in out"])
def test_a_word_that_is_no_role_is_refused(words):
    with pytest.raises(ValueError, match="words stack, window, inputs, outputs for"):
        where.matching("w", axes=words)
    with pytest.raises(TypeError, match="`axes` as a string with a word for each axis"):
        where.matching("w", axes=("inputs", "outputs"))


def test_axes_cover_each_axis_once():
    for wrong in ({"inputs": (0,), "outputs": (0,)}, {"inputs": (1,)}):
        with pytest.raises(ValueError, match="each axis from 0 on in one role"):
            A(**wrong)


def test_axes_are_tuples_however_they_are_given():
    axes = A(stack=[0], inputs=range(1, 2), outputs=[2])  # type: ignore[arg-type]
    assert axes == A(stack=(0,), inputs=(1,), outputs=(2,))
    assert hash(axes) == hash(A(stack=(0,), inputs=(1,), outputs=(2,)))


def test_axes_of_a_stack_and_of_one_of_it():
    axes = where.matching("", axes="inputs stack outputs window").axes("", np.ones(1))
    assert axes.unstacked() == A((), (2,), (0,), (1,))
    assert axes.stacked(2) == A((0, 1, 3), (5,), (2,), (4,))
    assert axes.fan_in((2, 3, 5, 7)) == 14
    assert str(axes) == "inputs stack outputs window"


@pytest.mark.parametrize("answer", [-1, "dense", None])
def test_a_predicate_answers_true_or_false(answer):
    """`str.find` says -1 where it finds nothing, which would count as true."""
    plain = lambda p, x: answer  # noqa: E731
    combined = (where.kernels & plain, plain & where.kernels, ~where.kernels | plain)
    for predicate in (plain, *combined, ~(where.kernels & plain)):
        match = "maskjax.select.random` needs `where` to return True or False, but "
        with pytest.raises(TypeError, match=match) as at:
            select.random({"w": np.ones((2, 2)), "v": np.ones((2, 2))}, density=0.5,
                          where=predicate, key=jax.random.key(0))  # fmt: skip
        lines = str(at.value).splitlines()[1:]
        assert [line.strip().split(":")[0] for line in lines] == ["v", "w"]
