"""What a person wants to see."""

import itertools
import pickle
import re
import sys

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from maskjax import algebra, metrics, report, where
from maskjax._core import dtypes
from maskjax.packing import PackedMask
from tests import trees
from tests.reference import packing as reference

PARAMS = {
    "dense": {"kernel": np.ones((3, 4)), "bias": np.ones(4)},
    "wide": np.ones((1000, 2)),
    "scale": np.ones(()),
}
MASK = {
    "dense": {"kernel": np.arange(12).reshape(3, 4) < 4, "bias": None},
    "wide": np.array([[True, False]]),
    "scale": None,
}
PACKED = jax.tree.map(lambda leaf: PackedMask(reference.pack(leaf), leaf.shape), MASK)


def shapes(params):
    return jax.eval_shape(lambda: params)


def cells(text):
    """The table as words, line by line."""
    return [line.split() for line in text.splitlines()]


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_has_a_line_for_each_parameter_and_a_sum(packed):
    text = report.table(PACKED if packed else MASK, shapes(PARAMS))
    assert cells(text) == [
        ["parameter", "shape", "kept", "total", "density", "sparsity"],
        ["dense/bias", "4", "-", "4", "-", "-"],
        ["dense/kernel", "3", "x", "4", "4", "12", "0.3333", "0.6667"],
        ["scale", "-", "1", "-", "-"],
        ["wide", "1000", "x", "2", "1,000", "2,000", "0.5000", "0.5000"],
        ["all", "masked", "1,004", "2,012", "0.4990", "0.5010"],
    ]


def test_counts_that_need_more_than_31_bits(monkeypatch):
    """As if 31 bits ended at 40."""
    stack = jax.tree.map(lambda m: np.stack([m, ~m]), MASK)
    params = {"wide": np.ones((2, 50, 3))}
    mask = {"wide": np.arange(300).reshape(2, 50, 3) < 170}
    told = where.matching("wide", axes="stack inputs outputs")
    how = {"where": told, "layers": True}
    expected = report.table(mask, params, **how), report.overlaps(stack)
    monkeypatch.setattr(dtypes, "_MOST", 40)
    assert report.table(mask, params, **how) == expected[0]
    np.testing.assert_array_equal(report.overlaps(stack), expected[1])


def test_lines_are_aligned_and_have_no_trailing_space():
    lines = report.table(MASK, PARAMS).splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert len({len(line) for line in lines}) == 1


def test_paths_are_shown_as_they_are():
    text = report.table({"[bold]w[/bold]": None}, {"[bold]w[/bold]": np.ones(2)})
    assert "[bold]w[/bold]" in text


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_parameter_of_every_framework_is_in_the_table(name):
    params = jax.tree.map(np.asarray, trees.make(name))
    mask = jax.tree.map(
        lambda w: np.ones(w.shape, bool) if w.dtype == np.float32 else None, params
    )
    lines = cells(report.table(mask, params))
    masked = [line for line in lines[1:-1] if line[-1] != "-"]
    assert len(lines) - 2 == len(trees.pairs(params, params))
    assert masked
    assert all(line[-1] in ("0.0000", "nan") for line in masked)
    assert lines[-1][-2:] == ["1.0000", "0.0000"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_says_how_many_parameters_are_not_zero(packed):
    """Also those that a mask removes and that came back, nan and -0.0 among them."""
    params = {
        "bias": np.zeros(4, "float32"),
        "key": jax.random.key(0),
        "kernel": np.ones((3, 2, 4), "bfloat16"),
        "shape": jax.ShapeDtypeStruct((4,), "float32"),
    }
    params["kernel"][0] = -0.0
    params["kernel"][1, 0, :3] = 0.0, np.nan, 1e-40  # subnormal
    kept = np.arange(24).reshape(3, 2, 4) >= 10
    mask = dict.fromkeys(params) | {"kernel": kept}
    if packed:
        mask["kernel"] = PackedMask(reference.pack(kept), kept.shape)
    rows = cells(report.table(mask, params))
    assert rows == [
        "parameter shape kept nonzero total density sparsity".split(),
        "bias 4 - 0 4 - -".split(),
        "kernel 3 x 2 x 4 14 15 24 0.5833 0.4167".split(),
        "key - - 1 - -".split(),
        "shape 4 - - 4 - -".split(),
        "all masked 14 15 24 0.5833 0.4167".split(),
    ]
    rows = cells(report.table(mask, params, where=TOLD, layers=True))
    assert rows[2:5] == [
        "kernel[0] 2 x 4 0 0 8 0.0000 1.0000".split(),
        "kernel[1] 2 x 4 6 7 8 0.7500 0.2500".split(),
        "kernel[2] 2 x 4 8 8 8 1.0000 0.0000".split(),
    ]


def test_a_table_with_flops_shares_them_out_by_what_is_kept():
    flops = {"dense": {"kernel": 1200, "bias": None}, "wide": 5000, "scale": 7}
    assert cells(report.table(MASK, shapes(PARAMS), flops)) == [
        "parameter shape kept total density sparsity flops kept flops".split(),
        "dense/bias 4 - 4 - - - -".split(),
        "dense/kernel 3 x 4 4 12 0.3333 0.6667 400 1,200".split(),
        "scale - 1 - - - 7".split(),
        "wide 1000 x 2 1,000 2,000 0.5000 0.5000 2,500 5,000".split(),
        "all masked 1,004 2,012 0.4990 0.5010 2,900 6,200".split(),
    ]


def test_a_table_of_the_flops_of_a_network():
    params = {"w": np.ones((3, 4)), "b": np.ones((1, 4))}
    flops = report.flops(lambda p, x: x @ p["w"] + p["b"], params, np.ones((5, 3)))
    mask = {"w": np.array([[True, False, False, False]]), "b": None}
    last = cells(report.table(mask, params, flops))[-1]
    assert last[-2:] == ["30", "120"]


def test_flops_kept_are_exact_integers():
    params = {"w": np.ones((3, 1))}
    mask = {"w": np.array([[True], [True], [False]])}
    last = cells(report.table(mask, params, {"w": 3 * 10**18}))[-1]
    assert last[-2] == f"{2 * 10**18:,}"


LAYERS = {
    "bias": np.ones((3, 4)),
    "kernel": np.ones((3, 2, 4)),
    "last": np.ones((5, 4, 3)),
    "none": np.ones((3, 2, 2)),
    "z": np.ones((2, 2)),
}
LAYERS_MASK = {
    "bias": None,
    "kernel": np.arange(24).reshape(3, 2, 4) >= 10,
    "last": np.array([[[True, False, False]]]),
    "none": None,
    "z": np.array([[True, True], [False, True]]),
}
TOLD = where.matching("kernel|none", axes="stack inputs outputs")
TOLD |= where.matching("last", axes="inputs outputs stack")
TOLD |= where.matching("bias", axes="stack inputs outputs")  # does not fit


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_says_which_axes_are_layers_and_how_they_differ(packed):
    mask = LAYERS_MASK
    if packed:
        pack = lambda leaf: PackedMask(reference.pack(leaf), leaf.shape)  # noqa: E731
        mask = jax.tree.map(pack, mask)
    flops = {"bias": None, "kernel": 48, "last": None, "none": 24, "z": 8}
    assert cells(report.table(mask, shapes(LAYERS), flops, where=TOLD)) == [
        "parameter shape kept total density sparsity flops kept flops layers".split(),
        "bias 3 x 4 - 12 - - - - -".split(),
        "kernel 3 x (2 x 4) 14 24 0.5833 0.4167 28 48 0.0000 to 1.0000".split(),
        "last 3 x (5 x 4) 20 60 0.3333 0.6667 - - 0.0000 to 1.0000".split(),
        "none 3 x (2 x 2) - 12 - - - 24 -".split(),
        "z 2 x 2 3 4 0.7500 0.2500 6 8 -".split(),
        "all masked 37 88 0.4205 0.5795 34 56 -".split(),
    ]
    rows = cells(report.table(mask, shapes(LAYERS), flops, where=TOLD, layers=True))
    assert (
        rows[0]
        == "parameter shape kept total density sparsity flops kept flops".split()
    )
    assert rows[2:6] == [
        "kernel[0] 2 x 4 0 8 0.0000 1.0000 0 16".split(),
        "kernel[1] 2 x 4 6 8 0.7500 0.2500 12 16".split(),
        "kernel[2] 2 x 4 8 8 1.0000 0.0000 16 16".split(),
        "last[0] 5 x 4 20 20 1.0000 0.0000 - -".split(),
    ]
    assert [row[0] for row in rows[6:]] == [
        "last[1]", "last[2]", "none[0]", "none[1]", "none[2]", "z", "all",
    ]  # fmt: skip
    assert rows[-1] == "all masked 37 88 0.4205 0.5795 34 56".split()


def test_layers_that_are_equal_or_not_known_need_no_column():
    mask = {"w": np.ones((2, 1, 1, 3), bool)}
    params = shapes({"w": np.ones((2, 4, 2, 3))})
    told = where.matching("w", axes="stack inputs stack outputs")
    for how, shape in (({}, "2 x 4 x 2 x 3"), ({"where": told}, "2 x 2 x (4 x 3)")):
        assert cells(report.table(mask, params, **how)) == [
            "parameter shape kept total density sparsity".split(),
            f"w {shape} 48 48 1.0000 0.0000".split(),
            "all masked 48 48 1.0000 0.0000".split(),
        ]
    rows = cells(report.table(mask, params, where=told, layers=True))
    assert rows[2] == "w[0, 1] 4 x 3 12 12 1.0000 0.0000".split()
    with pytest.raises(TypeError, match="report.table` needs `where` as a function"):
        report.table(mask, params, where="w")


def test_layers_that_cannot_be_shown_are_named():
    params = {"b": np.ones((3, 4)), "v": np.ones((3, 2, 4)), "w": np.ones((3, 2, 4))}
    mask = {name: np.ones(leaf.shape, bool) for name, leaf in params.items()}
    rows = report.table(mask, params, layers=True).splitlines()
    assert len(rows) == 6
    assert rows[-1] == (
        "The axes of v, w are unknown, and may stack layers. Pass "
        "`where=where.traced(apply, params, *inputs)`."
    )
    told = where.matching("v", axes="stack inputs outputs")
    told |= where.matching("w", axes="stack outputs")  # does not fit
    assert "The axes of w are" in report.table(mask, params, where=told, layers=True)
    for how in ({}, {"where": where.matching("[vw]", axes="inputs " * 3)}):
        layers = bool(how)
        assert "axes" not in report.table(mask, params, layers=layers, **how)
    assert "axes" not in report.table(
        mask | {"v": None, "w": None}, params, layers=True
    )


def test_a_table_by_a_trace_needs_the_paths_that_were_traced():
    params = {"w": np.ones((3, 4)), "v": np.ones((2, 3, 4))}
    mask = {"w": np.ones((3, 4), bool), "v": None}
    traced = where.traced(lambda p, x: x @ p["w"], {"w": params["w"]}, np.ones((1, 3)))
    with pytest.raises(ValueError, match="where.traced` needs the paths .* got 'v'"):
        report.table(mask, params, where=traced)
    text = report.table(mask, params, where=traced | where.kernels)
    assert "2 x 3 x 4" in text


# Pictures.


@pytest.mark.parametrize("packed", [False, True])
def test_density_is_drawn_as_a_bar_for_each_masked_parameter(packed):
    figure = report.plot_density(PACKED if packed else MASK, PARAMS)
    (axes,) = figure.axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    widths = [bar.get_width() for bar in axes.patches]
    assert named == ["dense/kernel", "wide"]
    np.testing.assert_allclose(widths, [4 / 12, 1000 / 2000])
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    np.testing.assert_allclose(middles, axes.get_yticks())
    assert axes.yaxis_inverted()
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), 1004 / 2012)
    assert axes.get_xlim() == (0, 1)
    figure.savefig("/dev/null", format="png")


def test_density_of_no_masked_parameter_is_an_empty_picture():
    figure = report.plot_density({"w": None}, {"w": np.ones(3)})
    assert not figure.axes[0].patches
    figure.savefig("/dev/null", format="png")


def test_history_is_drawn_as_a_line_for_each_label():
    lines = {"a": [1.0, 0.5, 0.25], "b": jnp.array([1.0, 0.9, 0.8])}
    (axes,) = report.plot_history(lines, steps=jnp.array([0, 10, 30])).axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b"]
    for line, values in zip(axes.lines, lines.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [0, 10, 30])
        np.testing.assert_array_equal(line.get_ydata(), np.asarray(values))
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray, list])
def test_a_history_without_a_label_is_one_line(make):
    figure = report.plot_history(make([1.0, 0.5]))
    (axes,) = figure.axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), [[0, 1], [1, 0.5]])
    assert axes.get_legend() is None
    figure.savefig("/dev/null", format="png")


def random_stack(size, *, seed=0):
    """Masks of several densities; the last two keep nothing."""
    rng = np.random.default_rng(seed)
    densities = np.linspace(1, 0, size - 1).tolist() + [0]

    def draw(*shape):
        kept = [rng.random(shape) < d for d in densities]
        return np.stack(kept)

    return {"kernel": draw(7, 9), "units": draw(1, 5), "none": None}


def expected_overlaps(stack):
    flat = [leaf.reshape(len(leaf), -1) for leaf in stack.values() if leaf is not None]
    sets = [set(np.flatnonzero(row)) for row in np.concatenate(flat, axis=1)]
    return [[len(a & b) / len(a | b) if a | b else 1 for b in sets] for a in sets]


@pytest.mark.parametrize("form", ["boolean", "packed", "mixed"])
def test_overlaps_are_those_of_every_two_masks(form):
    stack = random_stack(5)
    packed = {
        name: leaf
        if leaf is None
        else PackedMask(
            np.stack([reference.pack(member) for member in leaf]), leaf.shape[1:]
        )
        for name, leaf in stack.items()
    }
    given = {
        "boolean": stack,
        "packed": packed,
        "mixed": {**stack, "kernel": packed["kernel"]},
    }[form]
    matrix = report.overlaps(given)
    np.testing.assert_allclose(matrix, expected_overlaps(stack))
    assert matrix[3, 4] == 1  # of two masks that keep nothing
    if form == "boolean":
        pair = ({name: stack[name][i] for name in ("kernel", "units")} for i in (1, 2))
        overlap = jax.jit(algebra.overlap)(*pair)
        np.testing.assert_allclose(matrix[1, 2], overlap, rtol=1e-6)


def test_overlap_is_drawn_as_a_heat_map():
    stack = random_stack(4)
    figure = report.plot_overlap(stack, labels=["a", "b", "c", "d"])
    axes, bar = figure.axes
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), report.overlaps(stack))
    assert image.get_clim() == (0, 1)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b", "c", "d"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c", "d"]
    assert bar.get_ylabel().startswith("overlap")
    for text in axes.texts:
        column, row = text.get_position()
        assert text.get_text() == f"{image.get_array()[row, column]:.2f}"
    assert len(axes.texts) == 16
    figure.savefig("/dev/null", format="png")


def test_a_heat_map_of_many_masks_has_no_numbers():
    figure = report.plot_overlap({"w": np.eye(13, dtype=bool)})
    assert not figure.axes[0].texts
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), np.eye(13))
    few = report.plot_overlap({"w": np.eye(2, dtype=bool)}).axes[0]
    assert [t.get_text() for t in few.get_xticklabels()] == ["0", "1"]


def reliability(*, count=(0, 6, 2), accuracy=(np.nan, 0.25, 1.0)):
    """Three bins, the first of them empty."""
    confidence = np.array([np.nan, 0.5, 0.75])
    return metrics.Reliability(np.array(count), confidence, np.array(accuracy))


def test_reliability_is_drawn_as_a_point_for_each_bin_with_samples():
    bins = {"one": reliability(), "other": reliability(accuracy=(np.nan, 0.5, 0.5))}
    figure = report.plot_reliability(bins)
    (axes,) = figure.axes
    diagonal, *lines = axes.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    assert [line.get_label() for line in lines] == ["one", "other"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["one", "other"]
    np.testing.assert_array_equal(lines[0].get_xydata(), [[0.5, 0.25], [0.75, 1]])
    np.testing.assert_array_equal(lines[1].get_ydata(), [0.5, 0.5])
    for line, dots in zip(lines, axes.collections, strict=True):
        np.testing.assert_array_equal(dots.get_offsets(), line.get_xydata())
        large, small = dots.get_sizes()
        np.testing.assert_allclose(large, 3 * small)
    assert axes.get_xlim() == axes.get_ylim() == (0, 1)
    figure.savefig("/dev/null", format="png")


def test_reliability_of_a_network_is_drawn():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), size=50)
    bins = metrics.reliability(probs, rng.integers(3, size=50))
    figure = report.plot_reliability(bins)
    (axes,) = figure.axes
    assert axes.get_legend() is None
    assert len(axes.lines[1].get_xdata()) == np.count_nonzero(bins.count)
    figure.savefig("/dev/null", format="png")


def test_risk_is_drawn_against_coverage():
    curve = metrics.risk_coverage(
        np.array([0.9, 0.2, 0.5]), np.array([False, True, True])
    )
    figure = report.plot_risk_coverage({"a": curve, "b": curve._replace(risk=curve[0])})
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 1 / 2, 2 / 3])
    assert axes.get_xlim() == (0, 1)
    assert axes.get_ylim()[0] <= 0
    (alone,) = report.plot_risk_coverage(curve).axes
    assert alone.get_legend() is None
    figure.savefig("/dev/null", format="png")


def overlapping(texts):
    """Pairs of texts, one after the other, that cover each other."""
    boxes = [text.get_window_extent() for text in texts]
    pairs = itertools.pairwise(zip(texts, boxes, strict=True))
    return [(a.get_text(), b.get_text()) for (a, x), (b, y) in pairs if x.overlaps(y)]


def ticks(axis):
    """The labels that are drawn: a locator may have others."""
    low, high = sorted(axis.get_view_interval())
    pairs = zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
    return [label for label, at in pairs if low <= at <= high]


MANY = [f"transformer/h/{i}/mlp/kernel" for i in range(96)]
LARGE = {
    "plot_density": lambda: report.plot_density(
        {"transformer": {"h": [{"mlp": {"kernel": np.ones((1, 1), bool)}}] * 45}},
        {"transformer": {"h": [{"mlp": {"kernel": np.ones((2, 2))}}] * 45}},
    ),
    "plot_history": lambda: report.plot_history(dict.fromkeys(MANY, [1.0, 0.5])),
    "numbers": lambda: report.plot_overlap(random_stack(12), labels=MANY[:12]),
    "plot_overlap": lambda: report.plot_overlap({"w": np.eye(96) > 0}, labels=MANY),
}


@pytest.mark.parametrize("name", LARGE)
def test_pictures_of_deep_networks_can_be_read(name):
    """All labels are there, inside of the picture, and none over another."""
    figure = LARGE[name]()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = [ticks(axes.xaxis), ticks(axes.yaxis), [axes.title]]
    texts += [legend.get_texts() for legend in figure.legends] + [axes.texts]
    for some in texts:
        assert not overlapping(some)
    inside = figure.bbox.padded(1)
    for text in itertools.chain(*texts, [axes.xaxis.label, axes.yaxis.label]):
        box = text.get_window_extent()
        if text.get_text():
            assert inside.x0 <= box.x0 < box.x1 <= inside.x1, text
            assert inside.y0 <= box.y0 < box.y1 <= inside.y1, text
    assert axes.get_title()
    sides = axes.get_window_extent().size / figure.dpi
    assert min(sides) > 2.5  # inches
    if name == "plot_history":
        assert [t.get_text() for t in figure.legends[0].get_texts()] == MANY
        assert len({line.get_color() for line in axes.lines}) == len(MANY)


def test_notebooks_show_pictures():
    """Also before pyplot has drawn any, which brings IPython its own way."""
    figure = report.plot_history([1.0, 0.5])
    assert isinstance(figure, matplotlib.figure.Figure)
    shown = figure._repr_png_()
    assert shown[:4] == b"\x89PNG"
    width, height = np.frombuffer(shown[16:24], ">u4")
    assert (width, height) == (6 * figure.dpi, 4 * figure.dpi)
    assert type(pickle.loads(pickle.dumps(figure))) is type(figure)


def test_bars_are_in_the_order_of_layers():
    params = {"h": {str(i): np.ones(2) for i in range(12)}, "a": np.ones(2)}
    mask = jax.tree.map(lambda w: np.ones(w.shape, bool), params)
    (axes,) = report.plot_density(mask, params).axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert named == ["a", *(f"h/{i}" for i in range(12))]


def test_steps_that_are_whole_have_whole_ticks():
    for steps, whole in ((None, True), ([0, 1, 2], True), ([0, 0.5, 1], False)):
        (axes,) = report.plot_history([1.0, 0.8, 0.5], steps=steps).axes
        assert all(tick == int(tick) for tick in axes.get_xticks()) == whole


# Complaints.


def raises(kind, pattern):
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


DRAWN = {
    "plot_density": lambda: report.plot_density(MASK, PARAMS),
    "plot_history": lambda: report.plot_history([1.0]),
    "plot_overlap": lambda: report.plot_overlap(random_stack(3)),
    "plot_reliability": lambda: report.plot_reliability(reliability()),
    "plot_risk_coverage": lambda: report.plot_risk_coverage(
        metrics.RiskCoverage(np.ones(1), np.ones(1))
    ),
    "table": lambda: report.table(MASK, PARAMS),
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_draws_is_named_when_it_is_missing(name, monkeypatch):
    needed = "rich" if name == "table" else "matplotlib"
    monkeypatch.setitem(sys.modules, needed, None)
    monkeypatch.setitem(sys.modules, f"{needed}.figure", None)
    message = (
        rf"`maskjax.report.{name}` draws with {needed}. Install it with `pip .*\[pl"
    )
    with raises(ImportError, message):
        DRAWN[name]()


def test_values_from_outside_of_a_trace_are_shown_in_it():
    stack, shown = random_stack(3), []

    def show(params):
        shown.append(report.table(MASK, PARAMS))
        shown.append(report.table(MASK, params))  # traced: only their shapes
        shown.append(report.overlaps(stack))
        report.plot_density(MASK, params)
        report.plot_overlap(stack)

    jax.eval_shape(show, PARAMS)
    assert shown[0] == report.table(MASK, PARAMS)
    assert shown[1] == report.table(MASK, jax.eval_shape(lambda: PARAMS))
    np.testing.assert_array_equal(shown[2], report.overlaps(stack))


def test_pictures_need_values():
    needs = "`maskjax.report.{}` needs {} with values, got a traced one"
    stack = random_stack(3)
    with raises(TypeError, needs.format("plot_density", "a mask")):
        jax.jit(lambda m: report.plot_density(m, PARAMS))(MASK)
    for name in ("overlaps", "plot_overlap"):
        with raises(TypeError, needs.format(name, "a stack")):
            jax.jit(getattr(report, name))(stack)
    with raises(TypeError, needs.format("plot_history", "`densities`")):
        jax.jit(report.plot_history)(jnp.ones(3))


def test_pictures_need_what_fits():
    soft = {"w": np.ones((2, 3), np.float32)}
    with raises(TypeError, "plot_density` needs every leaf of `mask` .*w: float32"):
        report.plot_density({"w": np.ones(3, np.float32)}, {"w": np.ones(3)})
    with raises(ValueError, r"plot_density` .*w: mask \(2,\), params \(3,\)"):
        report.plot_density({"w": np.ones(2, bool)}, {"w": np.ones(3)})
    for name in ("overlaps", "plot_overlap"):
        function, fn = getattr(report, name), f"`maskjax.report.{name}`"
        with raises(TypeError, f"{fn} needs every leaf of `stack` .*w: float32"):
            function(soft)
        with raises(ValueError, f"{fn} .* same number of members.*a: 2\n  b: 3"):
            function({"a": np.ones((2, 1), bool), "b": np.ones((3, 1), bool)})
        with raises(ValueError, f"{fn} .*w: one mask, not a stack"):
            function({"w": PackedMask(np.ones(1, np.uint32), (3,))})
    with raises(ValueError, "plot_overlap` needs `labels` for 3 masks, got 2"):
        report.plot_overlap(random_stack(3), labels=["a", "b"])
    with raises(ValueError, "table` needs `params` and `flops` of the same structure"):
        report.table(MASK, PARAMS, {"wide": 3})


TRUSTED = {
    "plot_reliability": ("bins", reliability(), r"\[bins\]"),
    "plot_risk_coverage": (
        "curves",
        metrics.RiskCoverage(np.ones(3), np.zeros(3)),
        r"\[B\]",
    ),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_diagrams_are_of_what_metrics_return(name):
    argument, good, shape = TRUSTED[name]
    draw, fn = getattr(report, name), f"`maskjax.report.{name}`"
    kind = type(good).__name__
    with raises(
        TypeError, f"{fn} needs every line of `{argument}` as `metrics.{kind}`.*b: tup"
    ):
        draw({"a": good, "b": tuple(good)})
    with raises(TypeError, f"{fn} needs .*{argument}: float"):
        draw(1.0)
    with raises(TypeError, f"{fn} needs `{argument}` with values, got a traced one"):
        jax.jit(draw)(jax.tree.map(jnp.asarray, good))
    several = type(good)(*(np.stack([array, array]) for array in good))
    uneven = good._replace(**{good._fields[-1]: np.ones(2)})
    with raises(
        ValueError,
        rf"{fn} needs every line of `{argument}` with arrays {shape}, got:"
        r"\n  b: shapes \(2, 3\).*\n  c: shapes \(3,\).*\(2,\)$",
    ):
        draw({"a": good, "b": several, "c": uneven})


def test_histories_are_lines():
    needs = "`maskjax.report.plot_history` needs every line of `densities` of shape "
    with raises(ValueError, needs + r"\[T\], got:\n  densities: shape \(1, 2\)$"):
        report.plot_history(jnp.ones((1, 2)))
    lines = {"a": [1.0, 0.5], "b": [1.0], "c": 1.0}
    with raises(ValueError, needs + r"\[T\], got:\n  c: shape \(\)$"):
        report.plot_history(lines)
    with raises(ValueError, needs + r"\(2,\), like `steps`, got:\n  b: .*\n  c: "):
        report.plot_history(lines, steps=[0, 1])
