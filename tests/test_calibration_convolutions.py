"""What the kernels of convolutions meet, place by place of their windows."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import lax

from maskjax import calibration, score, where
from maskjax._core.walk import _windows
from tests.reference import calibration as reference


def normal(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


LAYOUTS = {  # of the kernel: what its axes are, and the order of d
    "HWIO": (("NHWC", "HWIO", "NHWC"), "window window inputs outputs"),
    "OIHW": (("NCHW", "OIHW", "NCHW"), "outputs inputs window window"),
    "WOHI": (("HNWC", "WOHI", "NCHW"), "window outputs window inputs"),
}
KINDS = {
    "plain": {},
    "strided": {"strides": (2, 1)},
    "dilated": {"rhs_dilation": (1, 2)},
    "transposed": {"lhs_dilation": (2, 1), "padding": [(2, 1), (0, 2)]},
    "cropped": {"padding": [(-1, 0), (1, -1)]},
    "in groups": {"groups": 2},
    "depthwise": {"groups": 4},
}


def convolve(image, kernel, layout, **kind):
    how = {"strides": (1, 1), "padding": [(1, 1), (0, 1)], "groups": 1, **kind}
    if layout == "WOHI":  # JAX counts positions in the order of the kernel's axes
        how["padding"] = how["padding"][::-1]
    return lax.conv_general_dilated(
        image,
        kernel,
        how["strides"],
        how["padding"],
        lhs_dilation=how.get("lhs_dilation"),
        rhs_dilation=how.get("rhs_dilation"),
        dimension_numbers=LAYOUTS[layout][0],
        feature_group_count=how["groups"],
    )


def expected(image, layout, groups, order, **kind):
    """[groups, d, d] for an image NHWC and a window of (3, 2)."""
    pads = kind.get("padding", [(1, 1), (0, 1)])
    image = image[:, -min(pads[0][0], 0) :, : image.shape[2] + min(pads[1][1], 0)]
    met = reference.windows(
        image,
        (3, 2),
        strides=kind.get("strides", (1, 1)),
        pads=[tuple(max(n, 0) for n in pad) for pad in pads],
        between=kind.get("lhs_dilation", (1, 1)),
        apart=kind.get("rhs_dilation", (1, 1)),
    )
    parts = np.split(met.reshape(-1, *met.shape[2:]), groups, axis=-1)
    rows = [part.transpose(0, *order).reshape(len(part), -1) for part in parts]
    return np.stack([reference.gram(each) for each in rows])


@pytest.mark.parametrize(
    ("kind", "layout"),
    [*((kind, "HWIO") for kind in KINDS), ("plain", "OIHW"), ("in groups", "WOHI")],
)
def test_gram_matrices_of_a_convolution(kind, layout):
    how, (numbers, words) = KINDS[kind], LAYOUTS[layout]
    groups = how.get("groups", 1)
    image = normal(2, 5, 6, 4)
    sizes = {"N": 0, "H": 1, "W": 2, "C": 3}
    moved = image.transpose([sizes[letter] for letter in numbers[0]])
    lengths = {"H": 3, "W": 2, "I": 4 // groups, "O": 8}
    kernel = {"w": normal(*(lengths[letter] for letter in numbers[1]))}
    apply = lambda p, x: convolve(x, p["w"], layout, **how)  # noqa: E731
    told = where.matching("w", axes=words)
    stats = calibration.init(apply, kernel, moved, where=told)
    update = jax.jit(functools.partial(calibration.update, apply))
    own = update(stats, kernel, moved)["w"]
    letters = [letter for letter in numbers[1] if letter != "O"]
    order = [1 + "HWI".index(letter) for letter in letters]
    found = own.sums if groups > 1 else own.sums[None]
    assert own.groups == groups
    answer = expected(image, layout, order=order, **{"groups": 1, **how})
    np.testing.assert_allclose(found, answer, rtol=1e-5, atol=1e-4)
    squares = calibration.init(apply, kernel, moved, where=told, gram=False)
    squares = update(squares, kernel, moved)["w"]
    assert squares.groups == groups
    diagonal = np.diagonal(answer, axis1=1, axis2=2)
    found = squares.sums if groups > 1 else squares.sums[None]
    np.testing.assert_allclose(found, diagonal, rtol=1e-5)
    norms = calibration.norms({"w": own})["w"]
    other = score.input_norms(apply, kernel, moved, where=told)["w"]
    assert norms.shape == other.shape
    np.testing.assert_allclose(norms, other, rtol=1e-5)


@pytest.mark.parametrize("rows", [6, 5])  # of the output
@pytest.mark.parametrize("kind", ["strided", "dilated", "transposed", "in groups"])
def test_a_large_image_is_gone_through_in_parts(kind, rows, monkeypatch):
    how = KINDS[kind]
    image = normal(2, rows, 6, 4)
    kernel = {"kernel": normal(3, 2, 4 // how.get("groups", 1), 8)}
    apply = lambda p, x: convolve(x, p["kernel"], "HWIO", **how)  # noqa: E731
    told = where.matching("kernel", axes=LAYOUTS["HWIO"][1])
    stats = calibration.init(apply, kernel, image, where=told)
    whole = calibration.update(apply, stats, kernel, image)["kernel"].sums
    monkeypatch.setattr(_windows, "_MOST", 2**9)
    update = jax.jit(functools.partial(calibration.update, apply))
    parts = update(stats, kernel, image)["kernel"].sums
    assert "while" in update.lower(stats, kernel, image).as_text()
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-4)


def test_a_matrix_says_how_a_convolution_errs():
    """The squared error of a change D of a kernel is the trace of D^T H D."""
    image, kernel, change = normal(2, 5, 6, 4), normal(3, 2, 4, 8), normal(3, 2, 4, 8)
    apply = lambda p, x: convolve(x, p["kernel"], "HWIO")  # noqa: E731
    params = {"kernel": kernel}
    told = where.matching("kernel", axes=LAYOUTS["HWIO"][1])
    stats = calibration.init(apply, params, image, where=told)
    h = calibration.update(apply, stats, params, image)["kernel"].sums
    error = apply({"kernel": change}, image)
    flat = change.reshape(-1, 8)
    np.testing.assert_allclose(np.sum(flat * (h @ flat)), (error**2).sum(), rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_members_under_vmap_have_statistics_of_their_own(groups):
    """They are one convolution in groups."""
    image, kernels = normal(2, 3, 5, 5, 4), normal(2, 3, 3, 4 // groups, 8)
    layer = nn.Conv(8, (3, 3), feature_group_count=groups, use_bias=False)
    apply = lambda p, x: layer.apply({"params": p}, x)  # noqa: E731
    both = jax.vmap(apply)
    told = where.matching("kernel", axes="stack window window inputs outputs")
    params = {"kernel": kernels}
    stats = calibration.init(both, params, image, where=told)
    own = calibration.update(both, stats, params, image)["kernel"]
    assert own.groups == groups
    for i in range(2):
        one = {"kernel": kernels[i]}
        stats = calibration.init(apply, one, image[i])
        alone = calibration.update(apply, stats, one, image[i])["kernel"]
        np.testing.assert_allclose(own.sums[i], alone.sums, rtol=1e-5, atol=1e-5)


def test_a_convolution_of_one_axis_and_rows_of_a_batch():
    model = eqx.nn.Conv1d(4, 6, 3, padding=1, key=jax.random.key(0))
    sound, weights = normal(3, 4, 9), np.float32([2, 0, 1])
    apply = lambda m, x: jax.vmap(m)(x)  # noqa: E731
    told = where.matching("weight", axes="outputs inputs window")
    stats = calibration.init(apply, model, sound, where=told)
    own = calibration.update(apply, stats, model, sound, weights=weights).weight
    padded = np.pad(sound, [(0, 0), (0, 0), (1, 1)])
    rows = np.stack([padded[:, :, i : i + 3] for i in range(9)], 1).reshape(27, 12)
    answer = reference.gram(rows, np.repeat(weights, 9))
    np.testing.assert_allclose(own.sums, answer, rtol=1e-5, atol=1e-4)


def test_complex_images_are_refused():
    image = normal(1, 5, 5, 4).astype("complex64")
    kernel = {"kernel": normal(3, 3, 4, 8)}
    apply = lambda p, x: convolve(x, p["kernel"].astype(x.dtype), "HWIO")  # noqa: E731
    with pytest.raises(ValueError, match="meets complex numbers in a convolution"):
        calibration.init(apply, kernel, image)
