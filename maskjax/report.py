"""What a person wants to see of a mask: tables and pictures.

>>> params = {"dense": {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)}}
>>> scores = score.random(params, key=jax.random.key(0))
>>> print(report.table(select.top_k(scores, density=0.1), params))
parameter     shape    kept  total  density  sparsity
dense/bias    10          -     10        -         -
dense/kernel  10 x 10    10    100   0.1000    0.9000
all masked               10    100   0.1000    0.9000
"""

import io
import math

import jax
import numpy as np
from jax.core import Tracer

from maskjax import _checks, algebra
from maskjax._tree import Mask, Params

__all__ = ["table"]

_NEEDS_RICH = (
    "`maskjax.report.table` draws with rich. Install it with `pip install "
    "'maskjax[plot]'`."
)


def table(mask: Mask, params: Params) -> str:
    """How much a mask keeps of each parameter, as text.

    Args:
        mask: A mask with concrete leaves, boolean or packed.
        params: The parameters it is for.

    Returns:
        A table: path, shape, entries kept and in all, density (fraction kept) and
        sparsity (fraction removed); a parameter without a mask has `-`. The last line
        sums over parameters with a mask.

    Raises:
        ImportError: If rich is not installed.
        TypeError: If the mask is traced, or a leaf is neither boolean nor packed.
        ValueError: If the mask does not fit `params`.

    Example:
        >>> units = {"w": jnp.array([[True, False]])}
        >>> print(report.table(units, {"w": jnp.ones((3, 2))}))
        parameter   shape  kept  total  density  sparsity
        w           3 x 2     3      6   0.5000    0.5000
        all masked            3      6   0.5000    0.5000
    """
    try:
        from rich import console
        from rich import table as rich_table
    except ImportError as error:
        raise ImportError(_NEEDS_RICH) from error

    fn = "maskjax.report.table"
    _checks.boolean(mask, fn=fn)
    _checks.packed(mask, fn=fn, stacked=False)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(mask)):
        raise TypeError(f"`{fn}` needs a mask with values, got a traced one.")
    pairs = _checks.mask_of(mask, params, fn=fn, names=("params", "mask"))

    rows, kept_in_all, size_in_all = [], 0, 0
    for path, param, leaf in pairs:
        shape, size = np.shape(param), math.prod(np.shape(param))
        shown = " x ".join(str(length) for length in shape)
        if leaf is None:
            rows.append((path, shown, "-", f"{size:,}", "-", "-"))
            continue
        kept = int(algebra.count({"": leaf}, {"": param}))
        rows.append((path, shown, *_numbers(kept, size)))
        kept_in_all += kept
        size_in_all += size
    rows.append(("all masked", "", *_numbers(kept_in_all, size_in_all)))

    drawn = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, title in enumerate(
        ("parameter", "shape", "kept", "total", "density", "sparsity")
    ):
        drawn.add_column(title, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    file = io.StringIO()
    plain = {"color_system": None, "force_jupyter": False, "force_terminal": False}
    console.Console(file=file, width=10_000, markup=False, **plain).print(drawn)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _numbers(kept: int, size: int) -> tuple[str, str, str, str]:
    density = kept / size if size else math.nan
    return f"{kept:,}", f"{size:,}", f"{density:.4f}", f"{1 - density:.4f}"
