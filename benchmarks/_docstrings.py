"""Text to learn from without a network: the docstrings of the standard library.

They are read off the source, and nothing is imported. Which text it is follows the
version of Python.
"""

import ast
import inspect
import pathlib
import string
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

CHARACTERS = string.printable[:95] + "\n"
HELD_BACK = 10  # every tenth docstring is for the test
_DEFINED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
_CODES = {ord(character): code for code, character in enumerate(CHARACTERS)}


class Text(NamedTuple):
    """Windows of text, int32 codes in `CHARACTERS`, and the characters after each."""

    x_train: np.ndarray  # [N, T]
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(characters: int, length: int) -> Text:
    """About so many characters of docstrings, in windows [N, T]."""
    parts: tuple[list[str], list[str]] = [], []
    sizes = 0
    for i, text in enumerate(_docstrings()):
        parts[i % HELD_BACK == 0].append(text)
        sizes += len(text)
        if sizes >= characters:
            break
    return Text(*(w for part in parts for w in _windows("\n\n".join(part), length)))


def _windows(text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    codes = np.array([_CODES[ord(character)] for character in text], np.int32)
    count = (len(codes) - 1) // length
    x, y = codes[: count * length], codes[1 : count * length + 1]
    return x.reshape(count, length), y.reshape(count, length)


def _docstrings() -> Iterator[str]:
    """Those that are plain ASCII, file by file in the order of their names."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("[!_]*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            text = isinstance(node, _DEFINED) and ast.get_docstring(node, clean=False)
            text = inspect.cleandoc(text) if text else ""
            if text and all(ord(character) in _CODES for character in text):
                yield text
