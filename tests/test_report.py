"""What a person wants to see."""

import jax.numpy as jnp
import pytest

from maskjax import masking, packing, report
from tests import trees

PARAMS = {
    "dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "wide": jnp.ones((1000, 2)),
    "scale": jnp.ones(()),
}
MASK = {
    "dense": {"kernel": jnp.zeros((3, 4), bool).at[0].set(True), "bias": None},
    "wide": jnp.array([[True, False]]),
    "scale": None,
}


def cells(text):
    """The table as words, line by line."""
    return [line.split() for line in text.splitlines()]


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_has_a_line_for_each_parameter_and_a_sum(packed):
    text = report.table(packing.pack(MASK) if packed else MASK, PARAMS)
    assert cells(text) == [
        ["parameter", "shape", "kept", "total", "density", "sparsity"],
        ["dense/bias", "4", "-", "4", "-", "-"],
        ["dense/kernel", "3", "x", "4", "4", "12", "0.3333", "0.6667"],
        ["scale", "-", "1", "-", "-"],
        ["wide", "1000", "x", "2", "1,000", "2,000", "0.5000", "0.5000"],
        ["all", "masked", "1,004", "2,012", "0.4990", "0.5010"],
    ]


def test_lines_are_aligned_and_have_no_trailing_space():
    lines = report.table(MASK, PARAMS).splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert len({len(line) for line in lines}) == 1


def test_paths_are_shown_as_they_are():
    text = report.table({"[bold]w[/bold]": None}, {"[bold]w[/bold]": jnp.ones(2)})
    assert "[bold]w[/bold]" in text


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_parameter_of_every_framework_is_in_the_table(name):
    params = trees.make(name)
    lines = cells(report.table(masking.everything(params), params))
    masked = [line for line in lines[1:-1] if line[-1] != "-"]
    assert len(lines) - 2 == len(trees.pairs(params, params))
    assert masked
    assert all(line[-1] in ("0.0000", "nan") for line in masked)
    assert lines[-1][-2:] == ["1.0000", "0.0000"]
