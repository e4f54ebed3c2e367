"""The table of optax on its page: complete, and right about every cell."""

import pathlib

import jax
import pytest

from tests import optax_grid

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "optax.md").read_text()
ROWS = optax_grid.parse(PAGE)


@pytest.fixture(autouse=True)
def _as_users(_strict_promotion):
    """Many of optax's optimizers need it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_every_name_has_a_row_without_an_empty_cell():
    assert sorted(ROWS) == sorted(optax_grid.public())
    for name, cells in ROWS.items():
        assert len(cells) == len(optax_grid.CELLS), name
        assert set(cells) <= {"exact", "told", "refused"}, name


def test_the_page_has_the_columns_in_order():
    head = next(line for line in PAGE.splitlines() if line.startswith("| optax |"))
    titles = [f"`{mask}` {place}" for mask, place in optax_grid.CELLS]
    assert head == f"| optax | {' | '.join(titles)} |"


def assert_true(name, cells):
    for (mask, place), cell in zip(optax_grid.CELLS, cells, strict=True):
        found = optax_grid.outcome(name, mask, place)
        assert found.split(":")[0] == cell, (name, mask, place, found)


FEW = [("adamw", "rigl"), ("lookahead", "keep_sparse"), ("clip", "mask_updates")]


@pytest.mark.parametrize(("name", "mask"), FEW)
def test_some_cells_are_true(name, mask):
    for cell, at in zip(ROWS[name], optax_grid.CELLS, strict=True):
        if at[0] == mask:
            found = optax_grid.outcome(name, *at)
            assert found.split(":")[0] == cell, (at, found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_cell_is_true(name):
    assert_true(name, ROWS[name])
