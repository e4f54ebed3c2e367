"""Numbers in words: rows of the table are templates, filled with what was measured.

    >>> rows({"exact": "{exact:yes|NO}, {accuracy:.1%+-}"}, exact=True, accuracy=x)

The templates of the demonstrations are in `promises.toml`. Beside `promise` and
`measured` there may stand `short`, what was measured in a few words, and `met`, a
comparison of what stands in its braces, as `{mean[ours]} > {mean[theirs]} - 0.01`.

What a value looks like is its format after the colon:

  * `yes|no`, of a truth value: one or the other;
  * a number's, as `.1%`: of an array it is the mean that is shown;
  * the same and `+-`: the mean, and the standard deviation over all values;
  * the same and `+-95`: the mean, and half of its 95 % interval (Student's t);
  * the same and `+-se`: the mean, and its standard error; of one value alone, itself;
  * of a dict: `name value, name value`, each as told; of a list or tuple its values.
"""

import math
import pathlib
import string
import tomllib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from scipy import stats

from benchmarks._registry import Row

_PROMISES = tomllib.loads(pathlib.Path(__file__).with_name("promises.toml").read_text())


def rows(templates: str | Mapping[str, str], **found: Any) -> list[Row]:
    """A row for each promise, its template filled; or for those of a demonstration."""
    if isinstance(templates, str):
        each = _PROMISES[templates]
    else:
        each = [{"promise": p, "measured": t} for p, t in templates.items()]
    return [_row(template, found) for template in each]


def _row(template: Mapping[str, str], found: Mapping[str, Any]) -> Row:
    filled = _Formatter()

    def told(part: str) -> str:
        """What this size of a demonstration leaves out is not told, nor judged."""
        try:
            return filled.vformat(template.get(part, ""), (), found)
        except KeyError:
            return ""

    met = told("met")
    measured = filled.vformat(template["measured"], (), found)
    holds = _holds(met) if met else None
    return Row(template["promise"], measured, holds, told("short"))


def _holds(comparison: str) -> bool:
    """Whether numbers compare so; nan does not."""
    return bool(
        eval(
            comparison, {"__builtins__": {"abs": abs}, "nan": math.nan, "inf": math.inf}
        )
    )


def said(value: Any, how: str = "") -> str:
    """A value in words, as the module's docstring tells."""
    if isinstance(value, Mapping):
        nested = any(isinstance(x, Mapping | list | tuple) for x in value.values())
        each = (f"{name} {said(x, how)}" for name, x in value.items())
        return ("; " if nested else ", ").join(each)
    if isinstance(value, list | tuple):
        return ", ".join(said(each, how) for each in value)
    if "|" in how:
        return how.split("|")[not value]
    if not isinstance(value, np.ndarray | jax.Array):
        return format(value, how)
    values, (how, sign, spread) = np.asarray(value), how.partition("+-")
    if not sign or (spread == "se" and values.size == 1):
        return format(values.mean(), how)
    spread = _SPREADS[spread](values.ravel())
    if how.endswith("%"):
        how = f"{how[:-1]}f"
        return f"{100 * values.mean():{how}}% +- {100 * spread:{how}}"
    return f"{values.mean():{how}} +- {spread:{how}}"


def half(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Half of the 95 % interval (Student's t) of the mean over an axis."""
    return stats.t.ppf(0.975, values.shape[axis] - 1) * error(values, axis)


def error(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The standard error of the mean over an axis."""
    return values.std(axis, ddof=1) / values.shape[axis] ** 0.5


_SPREADS = {"": np.std, "95": half, "se": error}


class _Formatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return said(value, format_spec)
